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
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import md5
from itertools import count
from pathlib import Path
from socket import socket
from statistics import median
from zlib import crc32

from daemon import Daemon, Failed
from memory import SWITCH_SECONDS, data, usage_of
from suite import machine, say

#: In the files that everything is compared with.
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


@dataclass
class Waits:
    """How long replies took, in ms."""

    all: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """What of them is reported."""
        ordered = sorted(self.all)
        return {
            "count": len(ordered),
            "median": round(median(ordered), 3),
            "p99": round(ordered[len(ordered) * 99 // 100], 3),
            "worst": round(ordered[-1], 3),
        }


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


def ping_while(daemon: Daemon, work: Callable[[], None]) -> Waits:
    """Ping every few ms from here while something is done in a thread; how long each ping took."""
    waits, line, failure = Waits(), Line(daemon), []

    def run() -> None:
        try:
            work()
        except (Failed, OSError) as error:
            failure.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while thread.is_alive():
        waits.all.append(line.ask("ping"))
        time.sleep(PING_SECONDS)
    if failure:
        raise failure[0]
    return waits


@dataclass
class Started:
    """A daemon that has just read its journal, and what that took."""

    daemon: Daemon
    seconds: float
    cpu_seconds: float
    memory: int
    peak: int


@contextmanager
def started(kind: str, files: int, where: Path | None) -> Iterator[Started]:
    """A daemon on a journal of so many files."""
    with tempfile.TemporaryDirectory(prefix="pfsd-bench-", dir=where) as name:
        home = Path(name).resolve()
        (home / "store").mkdir(mode=0o700)
        write_journal(home / "store" / "journal.jsonl", kind, files)
        daemon = Daemon(home, [home], memory="64MiB", processes=2)
        begin = time.perf_counter()
        with daemon:
            seconds = time.perf_counter() - begin
            process = Path(f"/proc/{daemon.process.pid}")
            spent = process.joinpath("stat").read_text().rpartition(")")[2].split()[11:13]
            (peak,) = (line for line in process.joinpath("status").read_text().splitlines() if line.startswith("VmHWM"))
            yield Started(
                daemon,
                seconds,
                sum(map(int, spent)) / os.sysconf("SC_CLK_TCK"),
                data({0: usage_of(daemon.process.pid, 0)}),
                1024 * int(peak.split()[1]),
            )


def commands(daemon: Daemon, files: int) -> dict[str, dict[str, float]]:
    """How long commands on single files take, in ms; the files are given their names back."""
    line = Line(daemon)
    # Spread over all files, and never the same twice in a row.
    numbers = [step * max(1, files // TIMES) % files for step in range(TIMES)]
    return {
        "ping": Waits([line.ask("ping") for _ in numbers]).summary(),
        "stat": Waits([line.ask(f"stat {name_of(number)}") for number in numbers]).summary(),
        "rename": Waits(
            [
                line.ask(f"rename {old} {new}")
                for number in numbers
                for old, new in ((name_of(number), "another"), ("another", name_of(number)))
            ]
        ).summary(),
        "delete": Waits([line.ask(f"delete {name_of(number)}") for number in dict.fromkeys(numbers)]).summary(),
    }


def compact(daemon: Daemon, renames: Waits) -> None:
    """Rename files until the journal, mostly dead, has been replaced by a new generation."""
    line, journal = Line(daemon), daemon.store / "journal.jsonl"
    give_up = time.monotonic() + PATIENCE_SECONDS
    for number in count():
        renames.all.append(line.ask(f"rename {name_of(number % 5)} moved"))
        renames.all.append(line.ask(f"rename moved {name_of(number % 5)}"))
        with journal.open("rb") as file:
            if b'"generation":1,' not in file.readline():
                return
        if time.monotonic() > give_up:
            raise Failed("the journal was not compacted")
        time.sleep(PING_SECONDS)


def measure(kind: str, files: int, where: Path | None) -> dict[str, object]:
    """Everything about a daemon on one journal."""
    say(f"{kind}: with {FEW} files")
    with started(kind, FEW, where) as few:
        commands_of_few = commands(few.daemon, FEW)
    say(f"{kind}: writing a journal of {files} files, and starting on it")
    with started(kind, files, where) as many:
        result: dict[str, object] = {
            "replay_seconds": round(many.seconds - few.seconds, 2),
            "replay_cpu_seconds": round(many.cpu_seconds - few.cpu_seconds, 2),
            "bytes_a_file": round((many.memory - few.memory) / files),
            "peak_bytes_a_file": round((many.peak - few.peak) / files),
        }
        if kind == "replaced":
            renames = Waits()
            say(f"{kind}: compacting")
            result["pings_during_compaction"] = ping_while(many.daemon, lambda: compact(many.daemon, renames)).summary()
            result["renames_during_compaction"] = renames.summary()
            return result
        result["pings_at_rest"] = ping_while(many.daemon, lambda: time.sleep(2)).summary()
        say(f"{kind}: list")
        listing: list[float] = []
        result["pings_during_list"] = ping_while(
            many.daemon, lambda: listing.append(Line(many.daemon).read_list())
        ).summary()
        result["list_seconds"] = round(listing[0], 2)
        say(f"{kind}: commands")
        result["commands"] = {str(FEW): commands_of_few, str(files): commands(many.daemon, files)}
    return result


# --- from arguments to exit code ----------------------------------------------------------------


def describe(value: object, name: str = "") -> Iterator[str]:
    """A result in lines."""
    if not isinstance(value, dict):
        yield f"  {name:40} {value}"
    elif "worst" in value:
        waits = "  ".join(f"{key} {value[key]:8.2f}" for key in ("median", "p99", "worst"))
        yield f"  {name:40} {waits} ms"
    else:
        for key, each in value.items():
            yield from describe(each, f"{name} {key}".strip())


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Measure the daemon with very many files.")
    parser.add_argument("--files", type=int, default=1_000_000, metavar="N", help="(%(default)s)")
    kinds = [*FILES_OF_A_PACK]
    parser.add_argument("--kinds", nargs="+", default=kinds, choices=kinds, metavar="KIND", help=" ".join(kinds))
    parser.add_argument("--dir", type=Path, help="where the stores are (a temporary directory)")
    results = Path(__file__).parent / "results"
    parser.add_argument("--results", type=Path, default=results, metavar="DIR", help="of the JSON (%(default)s)")
    arguments = parser.parse_args()
    if arguments.files < FEW:
        parser.error(f"--files must be at least {FEW}")
    return arguments


def main() -> int:
    """Measure what the command line asks for."""
    arguments = parse()
    sys.setswitchinterval(SWITCH_SECONDS)  # or a ping would wait for the thread beside it
    begin, load_before = time.time(), os.getloadavg()
    kinds: dict[str, object] = {}
    for kind in arguments.kinds:
        kinds[kind] = measure(kind, arguments.files, arguments.dir)
        print(f"{kind}, {arguments.files} files:", *describe(kinds[kind]), sep="\n", flush=True)
    result = {
        "files": arguments.files,
        "began": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(begin)),
        "seconds": time.time() - begin,
        "load_before": load_before,
        "load_after": os.getloadavg(),
        "machine": machine(arguments.dir or Path(tempfile.gettempdir())),
        "kinds": kinds,
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    path: Path = arguments.results / f"{time.strftime('%Y-%m-%d', time.localtime(begin))}-registry.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    say(f"written: {path}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Failed, OSError) as error:
        say(f"registry: {error}")
        sys.exit(1)
