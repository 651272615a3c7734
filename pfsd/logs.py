"""The daemon's log: one line for each event, plain or JSON, whatever bytes of clients are in it.

An event is a message and facts: those it was logged with (`extra={"facts": {...}}`), and those of the request it is
about, if it is about one. Plain lines end in them, as key=value; in JSON each is a member.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass

from pfsd.protocol import Value, quote

Fact = Value | float

FORMAT = "%(asctime)s %(levelname)s %(message)s"
#: Before each further line of an event, such as those of a traceback.
INDENT = "    "
#: Levels as syslog numbers them, for the service manager's journal.
PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


@dataclass(slots=True)
class About:
    """The request that events are about. `ref` is the id that `ps` shows it under while it runs."""

    client: int
    peer: str
    verb: str
    ref: int

    @property
    def facts(self) -> dict[str, Fact]:
        """What its events end in."""
        verb = {"verb": self.verb} if self.verb else {}  # a line that was not understood has none
        return {"client": self.client, "peer": self.peer, **verb, "ref": self.ref}


#: What the task at work is about. Tasks inherit it: what outlives a request is to be started in a context of its own.
about: ContextVar[About | None] = ContextVar("about", default=None)


class Formatter(logging.Formatter):
    """Nothing that a client named can begin a line of its own, or reach the terminal of who reads the log.

    Control characters, and what else cannot be printed, are written as Python escapes them; the lines of a
    traceback stay lines, indented.
    """

    def __init__(self, form: str = FORMAT) -> None:
        super().__init__(form)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        # What an I/O process tells of a bug.
        trace = getattr(record, "trace", "")
        return f"{text}\n{_indented(trace.rstrip())}" if trace else text

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = " ".join([_escaped(record.message), *map(_word, _facts(record).items())])
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        return _indented(super().formatException(ei))  # type: ignore[arg-type]

    def formatStack(self, stack_info: str) -> str:
        return _indented(super().formatStack(stack_info))


class JsonFormatter(logging.Formatter):
    """An object in a line for each event, of printable ASCII whatever is in it."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        event: dict[str, object] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": _valid(record.getMessage()),
        }
        event |= {key: _member(value) for key, value in _facts(record).items()}
        if trace := self._trace(record):
            event["trace"] = _valid(trace)
        return json.dumps(event)

    def _trace(self, record: logging.LogRecord) -> str:
        pieces = [
            getattr(record, "trace", "").rstrip(),
            self.formatException(record.exc_info) if record.exc_info else "",
            record.stack_info or "",
        ]
        return "\n".join(filter(None, pieces))


class JournalFormatter(logging.Formatter):
    """Each line of another formatter behind its priority, for the journal of systemd, which takes it off."""

    def __init__(self, lines: logging.Formatter) -> None:
        super().__init__()
        self._lines = lines

    def format(self, record: logging.LogRecord) -> str:
        mark = f"<{PRIORITIES.get(record.levelname, 6)}>"
        return "\n".join(mark + line for line in self._lines.format(record).split("\n"))


def start(level: str, form: str) -> None:
    """Write all events from `level` on to standard error, in a form: plain or json."""
    logging.captureWarnings(True)
    logging.root.addHandler(logging.StreamHandler())
    use(level, form)


def use(level: str, form: str) -> None:
    """Go on with another level and form."""
    chosen = formatter(form, in_journal=is_journal(sys.stderr.fileno(), os.environ))
    for handler in logging.root.handlers:
        handler.setFormatter(chosen)
    logging.root.setLevel(level.upper())


def formatter(form: str, in_journal: bool) -> logging.Formatter:
    """What writes events in a form: plain or json."""
    if form == "json":
        return JournalFormatter(JsonFormatter()) if in_journal else JsonFormatter()
    # The journal knows the time and shows the level by itself.
    return JournalFormatter(Formatter("%(message)s")) if in_journal else Formatter()


def is_journal(fd: int, environ: Mapping[str, str]) -> bool:
    """Whether systemd has connected a stream to its journal, and it was not led elsewhere."""
    stream = os.fstat(fd)
    return environ.get("JOURNAL_STREAM") == f"{stream.st_dev}:{stream.st_ino}"


def _facts(record: logging.LogRecord) -> dict[str, Fact]:
    facts: dict[str, Fact] = getattr(record, "facts", {})
    request = about.get()
    return facts if request is None else facts | request.facts


def _word(fact: tuple[str, Fact]) -> str:
    key, value = fact
    return f"{key}={value:.3f}" if isinstance(value, float) else f"{key}={quote(value)}"


def _member(value: Fact) -> int | float | str:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return _valid(value) if isinstance(value, str) else value


def _indented(text: str) -> str:
    # Of a line break inside the text of an exception nobody can tell: its second line is indented too.
    return "\n".join(INDENT + _escaped(line) for line in text.split("\n"))


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _valid(text: str) -> str:
    """Text that is valid Unicode: bytes of file names that are not are written as \\xNN would be in Python."""
    return text.encode("utf-8", "backslashreplace").decode()
