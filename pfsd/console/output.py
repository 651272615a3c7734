"""How results and errors are shown: as text for people, or as one JSON object a line; and the exit codes of `pfs`."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Mapping
from typing import Any

from pfsd import protocol
from pfsd.errors import FieldValue, NotFound, Partial, PfsdError, TooLong, UnknownCommand, UsageError
from pfsd.exchange import CannotConnect
from pfsd.progress import Printer

DONE, FAILED, USAGE, PARTIAL, NOT_FOUND, CANNOT_CONNECT, INTERRUPTED = 0, 1, 2, 3, 4, 5, 130

Facts = Mapping[str, Any]


def exit_code(error: Exception) -> int:
    """The exit code of the process for an error that a command ended with."""
    match error:
        case UsageError() | UnknownCommand() | TooLong():
            return USAGE
        case Partial():
            return PARTIAL
        case NotFound():
            return NOT_FOUND
        case CannotConnect():
            return CANNOT_CONNECT
        case _:
            return FAILED


#: What the daemon advises in the words of the protocol, as it is spelled here.
_SPELLED = {
    "replace=yes": "--replace",
    "ask for it to be replaced": "say --replace",
    "on_error=zero": "--zero-damage",
    "needs quotes": "needs --by-name",
}


class Output:
    """Shows results and errors: as text, or as one JSON object a line. `job` marks the lines of one command."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False, job: int | None = None) -> None:
        self.as_json = as_json
        self.quiet = quiet
        self._job = job
        self._print: Printer = _print_stdout
        self._print_error: Printer = _print_stderr
        self.is_terminal = sys.stdout.isatty()

    def print_with(self, result: Printer | None, error: Printer | None = None) -> None:
        """Have results, or errors, written elsewhere."""
        self._print = result or self._print
        self._print_error = error or self._print_error

    def to_stderr(self) -> None:
        """Keep stdout free: content goes there."""
        self.print_with(_print_stderr)

    def row(self, kind: str, facts: Facts, text: str) -> None:
        """Show what was asked for."""
        self._print((self._object(kind, facts) if self.as_json else text) + "\n")

    def done(self, kind: str, facts: Facts, text: str = "") -> None:
        """Show that something was done; with --quiet, or without a text for people, only as JSON."""
        if self.as_json or (text and not self.quiet):
            self.row(kind, facts, text)

    def note(self, kind: str, facts: Facts, text: str) -> None:
        """Tell something that is no result and no error, on stderr."""
        if self.as_json:
            self._print(self._object(kind, facts) + "\n")
        elif not self.quiet:
            self._print_error(f"pfs: {text}\n")

    def error(self, error: PfsdError, about: str = "") -> None:
        """Show an error in one line: its code, what it is about, its message."""
        code = getattr(error, "code", "internal")
        if self.as_json:
            facts = {key: _plain(key, value) for key, value in error.fields.items()}
            facts |= {"about": os.fsencode(about)} if about else {}
            self._print(self._object("error", facts | {"code": code, "message": error.message}) + "\n")
            return
        about = about or str(error.fields.get("name", ""))
        named = not about or about in re.split("[: ]+", error.message)
        message = error.message if named else f"{about}: {error.message}"
        for wire, option in _SPELLED.items():
            message = message.replace(wire, option)
        shown = protocol.escape(message.encode("utf-8", "surrogateescape"), spaces=True)
        self._print_error(f"pfs: {code}: {shown}\n")

    def _object(self, kind: str, facts: Facts) -> str:
        job = {} if self._job is None else {"job": self._job}
        return json.dumps({"type": kind, **job, **_jsonable(facts)}, ensure_ascii=False)


def _print_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _print_stderr(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _plain(key: str, value: FieldValue) -> FieldValue:
    """Numbers come as text over the wire."""
    return int(value) if isinstance(value, str) and value.isdecimal() and key != "name" else value


def _jsonable(facts: Facts) -> dict[str, Any]:
    """Bytes become text; what is not UTF-8 gets its bytes beside it, in KEY_hex."""
    values: dict[str, Any] = {}
    for key, value in facts.items():
        if not isinstance(value, bytes):
            values[key] = value
            continue
        try:
            values[key] = value.decode()
        except UnicodeDecodeError:
            values[key] = show_name(value)
            values[f"{key}_hex"] = value.hex()
    return values


def show_name(name: bytes) -> str:
    """A name for people: what cannot be printed as it is becomes \\xNN."""
    return protocol.escape(name, spaces=True)


def show_count(count: int, what: str) -> str:
    """So many of something: 1 file, 2 files."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def show_size(size: int) -> str:
    """Bytes for people."""
    if size < 1024:
        return f"{size} B"
    value = float(size)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        value /= 1024
        if value < 1023.95:
            return f"{value:.1f} {unit}"
    return f"{value / 1024:.1f} PiB"


def show_time(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
