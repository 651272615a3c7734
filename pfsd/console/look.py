"""Commands that only look: `list`, `du`, `stat`, `ps`, `stats`, `ping`."""

from __future__ import annotations

import os
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from pfsd.client import Client, FileInfo, PartInfo
from pfsd.console.files import below, expanded, fixed_part, is_pattern
from pfsd.console.output import DONE, Output, show_count, show_name, show_size, show_time
from pfsd.errors import UnknownCommand
from pfsd.progress import Watch
from pfsd.results import plain

# --- list ---------------------------------------------------------------------------------------


async def list_files(client: Client, arguments: Namespace, out: Output, watch: Watch) -> int:
    """Show the files whose names match."""
    pattern = None if arguments.pattern is None else os.fsencode(arguments.pattern)
    if pattern is not None and pattern.endswith(b"/"):
        pattern += b"*"
    for_people = out.is_terminal and not out.as_json
    if for_people:
        out.row("", {}, _HEADER_LONG if arguments.long else _HEADER)
    count = size = stored = 0
    async for file in client.list(pattern):
        out.row("file", asdict(file), _list_line(file, arguments.long, for_people))
        count, size, stored = count + 1, size + file.size, stored + file.stored
    text = f"{show_count(count, 'file')}, {show_size(size)}, {show_size(stored)} kept" if for_people else ""
    out.done("list", {"files": count, "size": size, "stored": stored}, text)
    return DONE


_HEADER = f"{'ID':>8} {'SIZE':>11}  NAME"
_HEADER_LONG = f"{'ID':>8} {'SIZE':>11} {'KEPT':>11} {'PARTS':>8}  {'STATUS':8}  {'STORED':19}  NAME"


def _list_line(file: FileInfo, long: bool, for_people: bool) -> str:
    name, created = show_name(file.name), show_time(file.created)
    if for_people:
        size, stored = show_size(file.size), show_size(file.stored)
        if long:
            return f"{file.id:8} {size:>11} {stored:>11} {file.parts:8}  {file.status:8}  {created}  {name}"
        return f"{file.id:8} {size:>11}  {name}"
    if long:
        return f"{file.id}\t{file.size}\t{file.stored}\t{file.parts}\t{file.status}\t{created}\t{name}"
    return f"{file.id}\t{file.size}\t{name}"


# --- du -----------------------------------------------------------------------------------------


@dataclass(slots=True)
class Usage:
    """What is stored below a prefix."""

    files: int = 0
    size: int = 0
    stored: int = 0

    def add(self, file: FileInfo) -> None:
        """One file more."""
        self.files, self.size, self.stored = self.files + 1, self.size + file.size, self.stored + file.stored


async def du(client: Client, arguments: Namespace, out: Output, watch: Watch) -> int:
    """Show what is stored below each prefix."""
    word = b"" if arguments.prefix is None else os.fsencode(arguments.prefix)
    if word and is_pattern(arguments.prefix, arguments):
        pattern, prefix = word, fixed_part(word)
    else:
        prefix = word.rstrip(b"/") + b"/" if word else b""
        pattern = below(prefix)
    usages: dict[bytes, Usage] = {}
    everything = Usage()
    async for file in client.list(pattern):
        everything.add(file)
        for folder in folders_of(file.name, prefix, arguments.depth):
            usages.setdefault(folder, Usage()).add(file)
    for_people = out.is_terminal and not out.as_json
    if for_people:
        out.row("", {}, f"{'SIZE':>11} {'KEPT':>11} {'FILES':>8}  PREFIX")
    for folder, usage in sorted(usages.items()):
        out.row("prefix", asdict(usage) | {"name": folder}, _usage_line(usage, folder, for_people))
    out.row("du", asdict(everything) | {"name": prefix}, _usage_line(everything, prefix or b"(all)", for_people))
    return DONE


def folders_of(name: bytes, prefix: bytes, depth: int) -> list[bytes]:
    """What of a name ends in a slash, from behind a prefix on, as far as `depth` slashes."""
    pieces = name[len(prefix) :].split(b"/")[:-1][:depth]
    return [prefix + b"/".join(pieces[: at + 1]) + b"/" for at in range(len(pieces))]


def _usage_line(usage: Usage, prefix: bytes, for_people: bool) -> str:
    if for_people:
        return f"{show_size(usage.size):>11} {show_size(usage.stored):>11} {usage.files:8}  {show_name(prefix)}"
    return f"{usage.size}\t{usage.stored}\t{usage.files}\t{show_name(prefix)}"


# --- stat ---------------------------------------------------------------------------------------


async def stat(client: Client, arguments: Namespace, out: Output, watch: Watch) -> int:
    """Show all about files, each in a block."""
    single, matched = await expanded(client, arguments.files, arguments)
    for at, ref in enumerate([*single, *(file.id for file in matched)]):
        if at and not out.as_json:
            out.row("", {}, "")
        await _stat_one(client, ref, arguments.parts, out)
    return DONE


async def _stat_one(client: Client, ref: int | str | bytes, parts: bool, out: Output) -> None:
    found = await client.stat(ref, parts=parts)
    file = found.file
    lines = {
        "id": file.id,
        "name": show_name(file.name),
        "status": file.status,
        "size": f"{file.size} ({show_size(file.size)})",
        "stored": f"{file.stored} ({show_size(file.stored)})",
        "parts": file.parts,
        "created": show_time(file.created),
        "etag": found.etag,
    }
    text = "\n".join(f"{key:8} {value}" for key, value in lines.items())
    out.row("file", asdict(file) | {"etag": found.etag}, text)
    for part in found.parts:
        out.row("part", asdict(part), _part_line(part))


def _part_line(part: PartInfo) -> str:
    return f"part {part.seq}\tat {part.offset}\t{part.size} bytes\t{part.stored} kept\t{part.codec}\tmd5 {part.md5}"


# --- the daemon ---------------------------------------------------------------------------------


async def ps(client: Client, arguments: Namespace, out: Output, watch: Watch) -> int:
    """Show running commands and I/O processes."""
    try:
        _, rows = await client.request("ps")
    except UnknownCommand:
        version = (await client.hello()).version
        raise UnknownCommand(f"this daemon is pfsd {version}, which cannot tell yet what it is running") from None
    commands = [row.fields for row in rows if row.word == "COMMAND"]
    workers = [row.fields for row in rows if row.word == "WORKER"]
    for kind, found, table in (("command", commands, _COMMANDS), ("worker", workers, _WORKERS)):
        if out.as_json:
            for fields in found:
                facts = {key: value if key == "name" else _typed(value) for key, value in fields.items()}
                out.row(kind, facts, "")
        elif found:
            out.row("", {}, _table(found, table))
    text = "" if commands else "no command is running"
    out.done("ps", {"commands": len(commands), "workers": len(workers)}, text)
    return DONE


def _typed(value: bytes) -> int | float | str:
    try:
        return float(value) if b"." in value else plain(value)
    except ValueError:
        return plain(value)


#: Heading -> the key of its column; those of numbers stand to the right.
_COMMANDS = {"ID": "id", "COMMAND": "verb", "CLIENT": "client", "SECONDS": "seconds", "DONE": "bytes", "OF": "total"}
_COMMANDS |= {"NAME": "name"}
_WORKERS = {"SLOT": "slot", "PID": "pid", "STATE": "state", "TASK": "task"}
_NUMBERS = {"id", "seconds", "bytes", "total", "slot", "pid"}


def _table(rows: Sequence[Mapping[str, bytes]], columns: Mapping[str, str]) -> str:
    """Rows below headings, each column as wide as what is in it."""
    lines = [list(columns)] + [[_cell(key, row.get(key)) for key in columns.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    keys = list(columns.values())

    def line(cells: Sequence[str]) -> str:
        aligned = [
            cell.rjust(width) if key in _NUMBERS else cell.ljust(width)
            for key, cell, width in zip(keys, cells, widths, strict=True)
        ]
        return "  ".join(aligned).rstrip()

    return "\n".join(map(line, lines))


def _cell(key: str, value: bytes | None) -> str:
    if value is None:
        return "-"
    if key in ("bytes", "total") and value.isdigit():
        return show_size(int(value))
    return show_name(value)


async def stats(client: Client, arguments: Namespace, out: Output, watch: Watch) -> int:
    """Show the daemon's counters."""
    facts = await client.stats()
    width = max(map(len, facts), default=0)
    out.row("stats", facts, "\n".join(f"{key:{width}}  {value}" for key, value in facts.items()))
    return DONE


async def ping(client: Client, arguments: Namespace, out: Output, watch: Watch) -> int:
    """See whether the daemon answers."""
    begun = time.perf_counter()
    hello = await client.hello()
    milliseconds = (time.perf_counter() - begun) * 1000
    facts = {"version": hello.version, "state": hello.state, "milliseconds": round(milliseconds, 3)}
    out.done("ping", facts, f"pfsd {hello.version} answers: {hello.state}, {milliseconds:.1f} ms")
    return DONE
