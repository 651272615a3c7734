"""Measures the daemon with a million files in its registries: the start, the memory, and who has to wait for whom.

Journals are made up, of files with one part each and names of some 40 bytes, and the real daemon is started on each:

  alone     each part in a pack of its own
  shared    64 parts in a pack
  replaced  each file was put twice, so that more than half of the journal is dead and the first change compacts it

No content is there: packs that the journal names are only looked for when they are read or removed. What the daemon
takes with ten files is measured in the same way and subtracted, so that only the files count.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import md5
from itertools import count
from pathlib import Path
from socket import socket
from statistics import median
from zlib import crc32

import suite
from daemon import Daemon, Failed
from figures import Row, percentile
from memory import SWITCH_SECONDS, data, usage_of

FILES, QUICK_FILES = 1_000_000, 20_000
#: What the many files are compared with.
FEW = 10
FILES_OF_A_PACK = {"alone": 1, "shared": 64, "replaced": 1}
PING_SECONDS = 0.003
#: Of each command that is timed by itself.
TIMES = 100
WRITE_LINES = 5000
#: A compaction that takes longer has not begun.
PATIENCE_SECONDS = 600.0


# --- journals -----------------------------------------------------------------------------------


def write_journal(path: Path, kind: str, files: int) -> None:
    """A journal of files with one part each."""
    seq = crc = 0
    lines = []
    with path.open("wb") as journal:
        for record in records(kind, files):
            body = b'{"seq":%d,%b' % (seq, record[1:-1])
            crc, seq = crc32(body, crc), seq + 1
            lines.append(b'%b,"crc":"%08x"}\n' % (body, crc))
            if len(lines) == WRITE_LINES:
                journal.write(b"".join(lines))
                lines.clear()
        journal.write(b"".join(lines))


def records(kind: str, files: int) -> Iterator[bytes]:
    """The JSON objects of a journal, the header first."""
    yield b'{"type":"header","format":1,"min_reader":1,"store":"%032x","generation":1,"checksum":"crc32"}' % 1
    of_a_pack = FILES_OF_A_PACK[kind]
    for number in range(files):
        yield ready(number + 1, number, 1 + number // of_a_pack, number % of_a_pack)
    if kind == "replaced":
        for number in range(files):
            new = files + number + 1
            yield ready(new, number, new, 0, b',"replaces":%d' % (number + 1))
            yield b'{"type":"removed","file":%d}' % (number + 1)


def ready(file: int, number: int, pack: int, place: int, replaces: bytes = b"") -> bytes:
    """A file with one part, at this place among those of its pack."""
    size, stored, head = 10_000 + number % 5000, 9_000, 134
    run = b'{"pack":%d,"seq":0,"part":%d,"head":%d,"parts":[[%d,%d,%d,"zstd","%b"]]}' % (
        *(pack, file, head, place * (head + stored), size, stored),
        md5(b"%d" % file).hexdigest().encode(),
    )
    return b'{"type":"ready","file":%d,"size":%d,"part_size":1048576,"created":%d,"name":"%b","runs":[%b]%b}' % (
        *(file, size, 1_700_000_000_000_000_000 + file, name_of(number).encode(), run, replaces),
    )


def name_of(number: int) -> str:
    """The name of a file, counted from 0."""
    return f"photos/2023/summer/IMG_{number:08d}-edited.jpeg"


# --- measuring ----------------------------------------------------------------------------------


class Line:
    """A connection that asks one thing at a time."""

    def __init__(self, daemon: Daemon) -> None:
        self._socket: socket = daemon.connect()
        self._replies = self._socket.makefile("rb")

    def ask(self, line: str) -> float:
        """Ask, and return how long the reply took, in ms; Failed when it is an ERR."""
        begin = time.perf_counter()
        self._socket.sendall(line.encode() + b"\n")
        for reply in self._replies:
            if reply.startswith(b"OK"):
                return 1000 * (time.perf_counter() - begin)
            if reply.startswith(b"ERR"):
                raise Failed(f"{line}: {reply.decode().strip()}")
        raise Failed(f"{line}: the connection was closed")

    def read_list(self) -> float:
        """Take a list of everything as fast as it comes; seconds."""
        begin = time.perf_counter()
        self._socket.sendall(b"list\n")
        end = b""
        while b"\nOK list" not in end or not end.endswith(b"\n"):
            piece = self._socket.recv(1 << 20)
            if not piece:
                raise Failed("list: the connection was closed")
            end = end[-200:] + piece[-4096:]
        return time.perf_counter() - begin


def ping_while(daemon: Daemon, work: Callable[[], object]) -> list[float]:
    """Ping every few ms from here while something is done in a thread; how long each ping took."""
    waits, line, failures = [], Line(daemon), []

    def run() -> None:
        try:
            work()
        except (Failed, OSError) as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        waits.append(line.ask("ping"))
        time.sleep(PING_SECONDS)
    for error in failures:
        raise error
    return waits


@dataclass
class Started:
    """A daemon that has just read its journal, and what that took, in seconds and bytes."""

    daemon: Daemon
    seconds: float
    cpu_seconds: float
    memory: int
    peak: int


@contextmanager
def started(kind: str, files: int, arguments: argparse.Namespace) -> Iterator[Started]:
    """A daemon on a journal of so many files."""
    with suite.scratch_directory(arguments.dir) as home:
        daemon = Daemon(home, [home], **suite.settings(arguments))
        daemon.store.mkdir(mode=0o700)
        write_journal(daemon.store / "journal.jsonl", kind, files)
        begin = time.perf_counter()
        with daemon:
            seconds = time.perf_counter() - begin
            process = Path(f"/proc/{daemon.process.pid}")
            spent = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
            (peak,) = (line for line in (process / "status").read_text().splitlines() if line.startswith("VmHWM"))
            yield Started(
                daemon,
                seconds,
                sum(map(int, spent)) / os.sysconf("SC_CLK_TCK"),
                data({0: usage_of(daemon.process.pid, 0)}),
                1024 * int(peak.split()[1]),
            )


def commands(daemon: Daemon, files: int) -> dict[str, list[float]]:
    """How long commands on single files take, by name."""
    line = Line(daemon)
    # Spread over all files; with few of them, the same come again.
    names = [name_of(step * max(1, files // TIMES) % files) for step in range(TIMES)]
    there_and_back = [pair for name in names for pair in ((name, "another"), ("another", name))]
    return {
        "stat": [line.ask(f"stat {name}") for name in names],
        "rename": [line.ask(f"rename {old} {new}") for old, new in there_and_back],
        "delete": [line.ask(f"delete {name}") for name in dict.fromkeys(names)],
    }


def compact(daemon: Daemon, renames: list[float]) -> None:
    """Rename files until the journal, mostly dead, has been replaced by a new generation."""
    line, journal = Line(daemon), daemon.store / "journal.jsonl"
    give_up = time.monotonic() + PATIENCE_SECONDS
    for number in count():
        renames.append(line.ask(f"rename {name_of(number % FEW)} moved"))
        renames.append(line.ask(f"rename moved {name_of(number % FEW)}"))
        with journal.open("rb") as file:
            if b'"generation":1,' not in file.readline():
                return
        if time.monotonic() > give_up:
            raise Failed("the journal was not compacted")
        time.sleep(PING_SECONDS)


# --- rows ---------------------------------------------------------------------------------------


def waits(name: str, milliseconds: Sequence[float]) -> list[Row]:
    """The median, the 99th percentile and the worst of waiting times."""
    return [
        Row(f"{what} of {name}", value, [min(milliseconds), max(milliseconds)], unit="ms")
        for what, value in (
            ("p50", median(milliseconds)),
            ("p99", percentile(milliseconds, 99)),
            ("worst", max(milliseconds)),
        )
    ]


def one(name: str, value: float, unit: str) -> Row:
    """A figure that was taken once."""
    return Row(name, value, [value], unit=unit)


def measure(kind: str, arguments: argparse.Namespace) -> suite.Result:
    """Everything about a daemon on one journal."""
    files = arguments.files
    result = suite.Result("registry", kind, arguments, {"files": files, **suite.settings(arguments)})
    suite.say(f"{kind}: with {FEW} files")
    with started(kind, FEW, arguments) as few:
        few_commands = commands(few.daemon, FEW)
    suite.say(f"{kind}: writing a journal of {files} files, and starting on it")
    with started(kind, files, arguments) as many:
        result.rows += [
            one(f"{kind}, replay", many.seconds - few.seconds, "s"),
            one(f"{kind}, replay, processor", many.cpu_seconds - few.cpu_seconds, "s"),
            one(f"{kind}, memory", (many.memory - few.memory) / files, "bytes a file"),
            one(f"{kind}, memory at the peak", (many.peak - few.peak) / files, "bytes a file"),
        ]
        result.rows += waits(f"{kind}, ping at rest", ping_while(many.daemon, lambda: time.sleep(2)))
        if kind == "replaced":
            suite.say(f"{kind}: compacting")
            renames: list[float] = []
            pings = ping_while(many.daemon, lambda: compact(many.daemon, renames))
            result.rows += waits(f"{kind}, ping beside a compaction", pings)
            result.rows += waits(f"{kind}, rename beside a compaction", renames)
            return result
        suite.say(f"{kind}: list")
        listing: list[float] = []
        pings = ping_while(many.daemon, lambda: listing.append(Line(many.daemon).read_list()))
        result.rows += [one(f"{kind}, list of all", listing[0], "s"), *waits(f"{kind}, ping beside list", pings)]
        suite.say(f"{kind}: commands")
        many_commands = commands(many.daemon, files)
    for command, milliseconds in many_commands.items():
        result.rows += waits(f"{kind}, {command} with {FEW} files", few_commands[command])
        result.rows += waits(f"{kind}, {command} with {files} files", milliseconds)
    return result


def parse() -> argparse.Namespace:
    """The command line."""
    parser = suite.daemon_options(suite.options("Measure the daemon with very many files.", pairs=False))
    parser.add_argument("--files", type=int, metavar="N", help=f"({FILES}, with --quick {QUICK_FILES})")
    kinds = [*FILES_OF_A_PACK]
    parser.add_argument("--kinds", nargs="+", default=kinds, choices=kinds, metavar="KIND", help=" ".join(kinds))
    arguments = suite.parse(parser)
    if arguments.files is None:
        arguments.files = QUICK_FILES if arguments.quick else FILES
    if arguments.files < FEW:
        parser.error(f"--files must be at least {FEW}")
    return arguments


def main() -> int:
    """Measure what the command line asks for; 1 if something failed."""
    arguments = parse()
    sys.setswitchinterval(SWITCH_SECONDS)  # or a ping would wait for the thread beside it
    return max([measure(kind, arguments).report() for kind in arguments.kinds])


if __name__ == "__main__":
    suite.run(main)
