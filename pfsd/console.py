"""The client's commands as people type them: their syntax, what they do, how results and errors are shown.

The one-shot command line and the interactive one share all of it. Paths are on this side of the connection. This
module never starts or stops anything but a command: connections, signals and processes belong to its callers.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import stat
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from pfsd import producer, protocol, tree
from pfsd.client import (
    CannotConnect,
    Client,
    ConnectionLost,
    DamagedCopy,
    FileInfo,
    FileRef,
    PartInfo,
    Progress,
    Retrieved,
    Source,
    StoredFile,
)
from pfsd.errors import (
    Corrupt,
    Denied,
    FieldValue,
    NotFound,
    Partial,
    PfsdError,
    RequestError,
    TooLong,
    UnknownCommand,
    UsageError,
    from_os_error,
)
from pfsd.progress import Printer, Watch

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
_SPELLED = {"replace=yes": "--replace", "on_error=zero": "--zero-damage", "needs quotes": "needs --by-name"}


# --- output -------------------------------------------------------------------------------------


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
            self._print_error(f"pfsd: {text}\n")

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
        self._print_error(f"pfsd: {code}: {shown}\n")

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


def _show_time(seconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


# --- syntax -------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({' '.join(self.format_usage().split())})")


def add_commands(parser: argparse.ArgumentParser, shared: list[Parser]) -> Any:
    """Add a subparser for each command; each also takes the options of the `shared` parsers."""
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", parser_class=Parser)

    def add(name: str, run: Command, does: str) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(name, help=does, description=does, parents=shared)
        command.set_defaults(run=run, command=name)
        return command

    put = add("put", _put, "store files; several are sent side by side")
    put.add_argument("files", nargs="*", metavar="FILE", help="a local path; - is standard input")
    put.add_argument(
        "--from-command", metavar="COMMAND", help="store what a shell command prints, only if it succeeds; needs --name"
    )
    put.add_argument(
        "--name", help="its name in the store, or the beginning of all names below it (default: last component)"
    )
    put.add_argument("--replace", action="store_true", help="replace a stored file of that name")
    put.add_argument("-r", "--recursive", action="store_true", help="of a directory, store every regular file below it")
    put.add_argument(
        "--resume", action="store_true", help="go on where the last one was cut short, if FILE is the same"
    )

    get = add("get", _get, "retrieve a file; it appears whole or not at all")
    _add_file(get, nargs=None)
    get.add_argument("target", nargs="?", metavar="TARGET", help="a local path (default: its name); - is stdout")
    get.add_argument("--replace", action="store_true", help="replace a regular file at TARGET")
    get.add_argument("-r", "--recursive", action="store_true", help="all files FILE/..., to below the directory TARGET")
    get.add_argument("--offset", type=_number, default=0, metavar="BYTES", help="begin here")
    get.add_argument("--length", type=_number, metavar="BYTES", help="retrieve this many bytes")
    get.add_argument("--sync", action="store_true", help="have it on the disk before it appears, power loss or not")
    get.add_argument("--zero-damage", action="store_true", help="fill what cannot be read with zeros; exit code 3")
    get.add_argument("--resume", action="store_true", help="go on where the last one was cut short")

    listing = add("list", _list, "list the stored files")
    listing.add_argument("pattern", nargs="?", metavar="PATTERN", help="a glob over names, such as '*.tar'")
    listing.add_argument("-l", "--long", action="store_true", help="show status, stored size, parts and time too")

    status = add("stat", _stat, "show all about a file")
    _add_file(status, nargs=None)
    status.add_argument("--parts", action="store_true", help="and about each of its parts")

    _add_file(add("delete", _delete, "delete files for good; none, if one of them is unknown"), nargs="+")

    rename = add("rename", _rename, "give a file another name")
    _add_file(rename, nargs=None)
    rename.add_argument("name", metavar="NAME", help="its new name")
    rename.add_argument("--replace", action="store_true", help="replace a stored file of that name")

    _add_file(add("verify", _verify, "have every part of these files, or of all, read and checked"), nargs="*")
    add("stats", _stats, "show the daemon's counters")
    add("ping", _ping, "see whether the daemon answers")
    add("exit", _exit, "shut the daemon down: running commands finish first")
    return commands


def _add_file(parser: argparse.ArgumentParser, nargs: str | None) -> None:
    one, many = ("file", "FILE"), ("files", "FILE")
    dest, metavar = one if nargs is None else many
    parser.add_argument(dest, nargs=nargs, metavar=metavar, help="a name; plain digits are an id")
    parser.add_argument("--by-name", action="store_true", help="digits are a name too")


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise argparse.ArgumentTypeError(f"not a number of bytes: {text!r}")
    return int(text)


def _ref(text: str, arguments: argparse.Namespace) -> FileRef:
    if text.isascii() and text.isdigit() and not arguments.by_name:
        return protocol.parse_number("FILE", text.encode())
    return os.fsencode(text)


# --- commands -----------------------------------------------------------------------------------

Command = Callable[[Client, argparse.Namespace, Output, Watch], Awaitable[int]]


async def run(client: Client, arguments: argparse.Namespace, out: Output, watch: Watch) -> int:
    """Run a parsed command; errors are shown. Returns an exit code; BrokenPipeError when stdout is closed."""
    try:
        command: Command = arguments.run
        return await command(client, arguments, out, watch)
    except PfsdError as error:
        out.error(error)
        return exit_code(error)


class _Tally:
    """What became of the files of one command. Of single files (not `whole`) each is told, of a directory the sum."""

    def __init__(self, out: Output, whole: bool) -> None:
        self._out = out
        self._whole = whole
        self.codes: list[int] = []  # of those that failed
        self.files = self.size = self.kept = self.passed_over = 0

    def progress(self) -> str:
        """How many are done, for people."""
        return f"{self.files + len(self.codes)} files"

    def stored(self, file: StoredFile) -> None:
        """A file was stored."""
        self.files, self.size, self.kept = self.files + 1, self.size + file.size, self.kept + file.stored
        if self._out.as_json:
            self._out.done("put", asdict(file))
        elif not self._whole:
            size, kept = show_size(file.size), show_size(file.stored)
            self._out.done("put", {}, f"{show_name(file.name)}: stored as {file.id}, {size}, {kept} kept")

    def retrieved(self, file: Retrieved, target: str) -> None:
        """A file was written to a local path."""
        self.files, self.size = self.files + 1, self.size + file.transferred
        path = os.fsencode(target)
        if self._out.as_json:
            self._out.done("get", asdict(file) | {"target": path})
        elif not self._whole:
            self._out.done(
                "get", {}, f"{show_name(file.name)}: {show_size(file.transferred)} written to {show_name(path)}"
            )

    def failed(self, error: RequestError, about: str) -> None:
        """A file could not be transferred."""
        self._out.error(error, about)
        self.codes.append(exit_code(error))

    def pass_over(self, path: str, why: str | RequestError) -> None:
        """Something in a directory is no regular file, or cannot be read."""
        if isinstance(why, RequestError):
            self.failed(why, path)
            return
        self.passed_over += 1
        self._out.note(
            "skipped", {"about": os.fsencode(path), "is": why}, f"{show_name(os.fsencode(path))} is {why}: skipped"
        )

    def end(self, command: str, did: str) -> int:
        """Show the sum, if each file was not told; the exit code."""
        if self._whole:
            facts = {"command": command, "files": self.files, "size": self.size}
            facts |= {"failed": len(self.codes), "skipped": self.passed_over}
            text = f"{self.files} files, {show_size(self.size)} {did}"
            if command == "put":
                facts, text = facts | {"stored": self.kept}, f"{text}, {show_size(self.kept)} kept"
            text += f", {len(self.codes)} failed" if self.codes else ""
            text += f", {self.passed_over} skipped" if self.passed_over else ""
            self._out.done("summary", facts, text)
        if not self.codes:
            return DONE
        return PARTIAL if self.files else self.codes[0]


@contextmanager
def _told_how_far(tally: _Tally, command: str, did: str) -> Iterator[None]:
    """Show the sum also when the connection breaks."""
    try:
        yield
    except ConnectionLost:
        tally.end(command, did)
        raise


async def _put(client: Client, arguments: argparse.Namespace, out: Output, watch: Watch) -> int:
    paths: list[str] = arguments.files
    if arguments.from_command is not None:
        return await _put_output(client, arguments, out, watch)
    if not paths:
        raise UsageError("nothing to store: put FILE, put - --name NAME or put --from-command COMMAND --name NAME")
    if len(paths) > 1 and (arguments.name is not None or "-" in paths):
        raise UsageError("--name and - go with one FILE only")
    if arguments.resume and (arguments.recursive or "-" in paths):
        raise UsageError("--resume is for files: it goes neither with -r nor with -")
    if paths == ["-"] and arguments.name is None:
        raise UsageError("standard input has no name: put - --name NAME")
    names = [path_name(path) if arguments.name is None else os.fsencode(arguments.name) for path in paths]
    tally = _Tally(out, arguments.recursive)
    regular: list[tuple[str, bytes]] = []
    for path, name in zip(paths, names, strict=True):
        if path == "-" or _is(path, _is_special):
            await _put_stream(client, path, name, arguments.replace, tally, watch)
        elif not arguments.recursive and _is(path, stat.S_ISDIR):
            tally.failed(Denied(f"{path} is a directory; -r stores the files below it"), path)
        else:
            regular.append((path, name))
    if regular:
        with _told_how_far(tally, "put", "stored"):
            await _put_regular(client, regular, arguments, tally, watch)
    if arguments.recursive and not tally.files and not tally.codes:
        raise NotFound(f"there is no regular file below {', '.join(paths)}; nothing was stored")
    return tally.end("put", "stored")


async def _put_output(client: Client, arguments: argparse.Namespace, out: Output, watch: Watch) -> int:
    """Store what a command prints, if it succeeds."""
    if arguments.files or arguments.recursive or arguments.resume:
        raise UsageError("--from-command goes with no FILE, -r or --resume")
    if arguments.name is None:
        raise UsageError("what a command prints has no name: put --from-command COMMAND --name NAME")
    tally, name = _Tally(out, whole=False), os.fsencode(arguments.name)
    async with aclosing(producer.output(arguments.from_command)) as source:
        with watch(show_name(name)) as progress:
            tally.stored(await client.put(source, name, replace=arguments.replace, progress=progress))
    return tally.end("put", "stored")


def _is(path: str, kind: Callable[[int], bool]) -> bool:
    """Whether there is something of this kind at a path."""
    try:
        return kind(os.stat(path).st_mode)
    except OSError:
        return False  # who opens it will hear of it


def _is_special(mode: int) -> bool:
    """Whether it is something like a FIFO, of which nobody knows how much will come."""
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


async def _put_regular(
    client: Client, paths: list[tuple[str, bytes]], arguments: argparse.Namespace, tally: _Tally, watch: Watch
) -> None:
    noted: list[tuple[str, str | RequestError]] = []  # by the thread that walks

    def files() -> Iterator[tuple[str, bytes]]:
        for path, name in paths:
            if arguments.recursive and _is(path, stat.S_ISDIR):
                yield from tree.walk(path, name, lambda *what: noted.append(what))
            else:
                yield path, name

    def tell() -> None:
        while noted:
            tally.pass_over(*noted.pop(0))

    single = len(paths) == 1 and not arguments.recursive
    with watch(show_name(paths[0][1]) if single else tally.progress) as progress:
        total = _size_of(paths[0][0]) if single else None
        report = None if progress is None else partial(_of_total, progress, total)
        options = {"replace": arguments.replace, "resume": arguments.resume}
        async for outcome in client.put_many(files(), progress=report, **options):
            tell()
            if outcome.result is not None:
                tally.stored(outcome.result)
            elif outcome.error is not None:
                tally.failed(outcome.error, outcome.path)
        tell()


def _of_total(progress: Progress, total: int | None, done: int, _: int | None) -> None:
    progress(done, total)


def _size_of(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


async def _put_stream(client: Client, path: str, name: bytes, replace: bool, tally: _Tally, watch: Watch) -> None:
    """Store what comes from standard input, a FIFO or a device."""
    try:
        source: Source = Path(path)
        size = None
        if path == "-":
            # Not sys.stdin: its lock would be held by a thread that hangs in a read.
            source = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115, ASYNC230
            size = _rest_of(source.fileno())
        with watch(show_name(name)) as progress:
            tally.stored(await client.put(source, name, replace=replace, size=size, progress=progress))
    except OSError as error:
        tally.failed(from_os_error(error, f"reading {path}"), path)
    except RequestError as error:
        tally.failed(error, path)


def _rest_of(descriptor: int) -> int | None:
    """Bytes left in a regular file."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return None
    return max(0, status.st_size - os.lseek(descriptor, 0, os.SEEK_CUR))


def path_name(path: str) -> bytes:
    """The last component of a path, which names what is stored. UsageError when there is none."""
    name = os.path.basename(path.rstrip("/"))
    if name in ("", ".", ".."):
        raise UsageError(f"{path} gives no name to store under; say --name NAME")
    return os.fsencode(name)


async def _get(client: Client, arguments: argparse.Namespace, out: Output, watch: Watch) -> int:
    ranged = arguments.offset or arguments.length is not None or arguments.zero_damage
    if arguments.resume and (arguments.recursive or ranged or arguments.target == "-"):
        raise UsageError("--resume is for whole files: no -r, -, --offset, --length, --zero-damage")
    if arguments.recursive:
        if ranged or arguments.target == "-":
            raise UsageError("-r retrieves whole files to a directory: no -, --offset, --length, --zero-damage")
        return await _get_tree(client, arguments, out, watch)
    if arguments.target == "-":
        out.to_stderr()
    file = (await client.stat(_ref(arguments.file, arguments))).file
    target = arguments.target or _default_target(file)
    if target == "-" or ranged:
        return await _get_stream(client, file, target, arguments, out, watch)
    tally = _Tally(out, whole=False)
    folder, name = os.path.split(target)
    if name in ("", ".", ".."):
        raise Denied(f"{target} does not name a file")
    with watch(show_name(file.name)) as progress:
        if arguments.resume:
            await _get_resumed(client, file, target, arguments, tally, progress)
        else:
            await _get_regular(client, [(file.id, name)], folder, file.size, arguments, tally, progress)
    return tally.end("get", "written")


async def _get_resumed(
    client: Client,
    file: FileInfo,
    target: str,
    arguments: argparse.Namespace,
    tally: _Tally,
    progress: Progress | None,
) -> None:
    report = None if progress is None else partial(_of_total, progress, file.size)
    options = {"replace": arguments.replace, "sync": arguments.sync}
    tally.retrieved(await client.get_resumed(file.id, target, progress=report, **options), target)


async def _get_tree(client: Client, arguments: argparse.Namespace, out: Output, watch: Watch) -> int:
    prefix = os.fsencode(arguments.file).rstrip(b"/") + b"/"
    target = arguments.target or _local_name(prefix[:-1], prefix)
    pattern = re.sub(rb"([*?\[])", rb"[\1]", prefix) + b"*"
    files, total = [], 0
    async for file in client.list(pattern):
        if file.status in ("ready", "damaged"):
            files.append((file.id, file.name[len(prefix) :]))
            total += file.size
    if not files:
        raise NotFound(f"no stored file has a name that begins with {show_name(prefix)}")
    try:
        os.makedirs(target, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, f"making {target}") from None
    tally, did = _Tally(out, whole=True), f"written to {show_name(os.fsencode(target))}"
    with watch(tally.progress) as progress, _told_how_far(tally, "get", did):
        await _get_regular(client, files, target, total, arguments, tally, progress)
    return tally.end("get", did)


async def _get_regular(
    client: Client,
    files: Sequence[tuple[FileRef, str | bytes]],
    folder: str,
    total: int,
    arguments: argparse.Namespace,
    tally: _Tally,
    progress: Progress | None,
) -> None:
    """Write whole files to below a folder."""
    report = None if progress is None else partial(_of_total, progress, total)
    options = {"replace": arguments.replace, "sync": arguments.sync}
    try:
        async for outcome in client.get_many(files, folder or ".", progress=report, **options):
            target = os.path.join(folder, outcome.path)
            if outcome.result is not None:
                tally.retrieved(outcome.result, target)
            elif outcome.error is not None:
                tally.failed(outcome.error, target)
    except OSError as error:
        raise from_os_error(error, f"writing below {folder}") from None


async def _get_stream(
    client: Client, file: FileInfo, target: str, arguments: argparse.Namespace, out: Output, watch: Watch
) -> int:
    """Retrieve a range, or to standard output, or what is left of a damaged file."""
    tally = _Tally(out, whole=False)
    try:
        with watch(show_name(file.name)) as progress:
            retrieved = await _get_file(client, file, target, arguments, progress)
    except DamagedCopy as error:
        for lost in error.damage:
            out.row("damage", asdict(lost), f"{show_name(file.name)}: {lost.length} bytes at {lost.offset} are zeros")
        raise
    if target == "-":
        out.done("get", asdict(retrieved))
    else:
        tally.retrieved(retrieved, target)
    return DONE


async def _get_file(
    client: Client, file: FileInfo, target: str, arguments: argparse.Namespace, progress: Progress | None
) -> Retrieved:
    sink = open(1, "wb", buffering=0, closefd=False) if target == "-" else Path(target)  # noqa: SIM115, ASYNC230
    try:
        return await client.get_to(
            file.id,
            sink,
            offset=arguments.offset,
            length=arguments.length,
            replace=arguments.replace,
            zero_damage=arguments.zero_damage,
            sync=arguments.sync,
            progress=progress,
        )
    except BrokenPipeError:
        raise
    except OSError as error:
        raise from_os_error(error, f"writing {target}") from None


def _default_target(file: FileInfo) -> str:
    return _local_name(file.name, file.name)


def _local_name(path: bytes, shown: bytes) -> str:
    """The last component of a stored name, as a local name."""
    name = os.fsdecode(path.rpartition(b"/")[2])
    if name in ("", ".", "..", "-"):
        raise UsageError(f"{show_name(shown)} makes no local file name; name a TARGET")
    return name


async def _list(client: Client, arguments: argparse.Namespace, out: Output, watch: Watch) -> int:
    pattern = None if arguments.pattern is None else os.fsencode(arguments.pattern)
    for_people = out.is_terminal and not out.as_json
    if for_people:
        out.row("", {}, _HEADER_LONG if arguments.long else _HEADER)
    count = size = stored = 0
    async for file in client.list(pattern):
        out.row("file", asdict(file), _list_line(file, arguments.long, for_people))
        count, size, stored = count + 1, size + file.size, stored + file.stored
    text = f"{count} files, {show_size(size)}, {show_size(stored)} kept" if for_people else ""
    out.done("list", {"files": count, "size": size, "stored": stored}, text)
    return DONE


_HEADER = f"{'ID':>8} {'SIZE':>11}  NAME"
_HEADER_LONG = f"{'ID':>8} {'SIZE':>11} {'KEPT':>11} {'PARTS':>8}  {'STATUS':8}  {'STORED':19}  NAME"


def _list_line(file: FileInfo, long: bool, for_people: bool) -> str:
    name, created = show_name(file.name), _show_time(file.created)
    if for_people:
        size, stored = show_size(file.size), show_size(file.stored)
        if long:
            return f"{file.id:8} {size:>11} {stored:>11} {file.parts:8}  {file.status:8}  {created}  {name}"
        return f"{file.id:8} {size:>11}  {name}"
    if long:
        return f"{file.id}\t{file.size}\t{file.stored}\t{file.parts}\t{file.status}\t{created}\t{name}"
    return f"{file.id}\t{file.size}\t{name}"


async def _stat(client: Client, arguments: argparse.Namespace, out: Output, watch: Watch) -> int:
    found = await client.stat(_ref(arguments.file, arguments), parts=arguments.parts)
    file = found.file
    lines = {
        "id": file.id,
        "name": show_name(file.name),
        "status": file.status,
        "size": f"{file.size} ({show_size(file.size)})",
        "stored": f"{file.stored} ({show_size(file.stored)})",
        "parts": file.parts,
        "created": _show_time(file.created),
        "etag": found.etag,
    }
    text = "\n".join(f"{key:8} {value}" for key, value in lines.items())
    out.row("file", asdict(file) | {"etag": found.etag}, text)
    for part in found.parts:
        out.row("part", asdict(part), _part_line(part))
    return DONE


def _part_line(part: PartInfo) -> str:
    return f"part {part.seq}\tat {part.offset}\t{part.size} bytes\t{part.stored} kept\t{part.codec}\tmd5 {part.md5}"


async def _delete(client: Client, arguments: argparse.Namespace, out: Output, watch: Watch) -> int:
    report = await client.delete(*(_ref(file, arguments) for file in arguments.files))
    for file in report.deleted:
        out.done("deleted", asdict(file), f"{show_name(file.name)}: deleted, {show_size(file.freed)} freed")
    out.done("delete", {"files": report.files, "parts": report.parts, "freed": report.freed})
    return DONE


async def _rename(client: Client, arguments: argparse.Namespace, out: Output, watch: Watch) -> int:
    file = _ref(arguments.file, arguments)
    renamed = await client.rename(file, os.fsencode(arguments.name), replace=arguments.replace)
    out.done("rename", asdict(renamed), f"{renamed.id}: renamed to {show_name(renamed.name)}")
    return DONE


async def _verify(client: Client, arguments: argparse.Namespace, out: Output, watch: Watch) -> int:
    with watch("verify") as progress:
        report = await client.verify(*(_ref(file, arguments) for file in arguments.files), progress=progress)
    for bad in report.bad:
        text = f"{show_name(bad.name)}: part {bad.seq} at {bad.offset} is bad: {bad.code}"
        out.row("bad", asdict(bad), text)
    facts = {"files": report.files, "parts": report.parts, "bytes": report.bytes, "bad": len(report.bad)}
    text = f"{report.files} files, {report.parts} parts, {show_size(report.bytes)} checked: "
    out.done("verify", facts, text + (f"{len(report.bad)} parts are bad" if report.bad else "all are sound"))
    if report.bad:
        raise Corrupt(f"{len(report.bad)} parts failed their checks", bad=len(report.bad))
    return DONE


async def _stats(client: Client, arguments: argparse.Namespace, out: Output, watch: Watch) -> int:
    facts = await client.stats()
    width = max(map(len, facts), default=0)
    out.row("stats", facts, "\n".join(f"{key:{width}}  {value}" for key, value in facts.items()))
    return DONE


async def _ping(client: Client, arguments: argparse.Namespace, out: Output, watch: Watch) -> int:
    begun = time.perf_counter()
    hello = await client.hello()
    milliseconds = (time.perf_counter() - begun) * 1000
    facts = {"version": hello.version, "state": hello.state, "milliseconds": round(milliseconds, 3)}
    out.done("ping", facts, f"pfsd {hello.version} answers: {hello.state}, {milliseconds:.1f} ms")
    return DONE


async def _exit(client: Client, arguments: argparse.Namespace, out: Output, watch: Watch) -> int:
    await client.exit()
    out.done("exit", {}, "the daemon has stopped")
    return DONE
