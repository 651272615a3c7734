"""Measures how near pfsd by path comes to the limit that its own steps set.

The limit is what a store and a fetch would take if every core did nothing but the steps that cannot be left out, with
nothing to wait for and nobody to tell: the steps run alone on one core, in turns with pfsd, on the same file and file
system, by the same hashing and codec code; their seconds are added up and divided by the cores. The efficiency is the
limit's seconds divided by pfsd's. Syncing is no step: what waiting for the disk costs, counts against pfsd.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import suite
from contest import Pfsd, hold
from corpora import FILES, corpus, warm
from daemon import ROOT, Daemon, Failed
from figures import MIB, aligned, limit_seconds

sys.path.insert(1, str(ROOT))
from pfsd import codecs, hashing

PART_BYTES = MIB
RUN_BYTES = 16 * MIB
WRITE_BYTES = 512 << 10
CODEC, LEVEL = "zstd", 1
#: From malloc.h: memory of one part is kept for the next, as pfsd's I/O processes keep it.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _KEEP_BYTES = -1, -3, 32 << 20


class Steps:
    """A contestant that does the bare steps on one core; its seconds are the limit's, those of all cores together."""

    def __init__(self, source: Path, scratch: Path, cores: int) -> None:
        self._source = source
        self._packed = scratch / "packed"
        self._cores = cores
        self._memory = memoryview(mmap.mmap(-1, RUN_BYTES))
        self._stored = memoryview(mmap.mmap(-1, RUN_BYTES))
        #: The parts in `packed`, run by run: (stored bytes, original bytes, MD5).
        self._runs: list[list[tuple[int, int, bytes]]] = []
        #: Seconds of each step on one core, one value for each time it ran.
        self.seconds: dict[str, list[float]] = {}
        if not hashing.use_lanes():
            suite.say("numba is not installed: the steps hash one part after the other")
        keep_freed_memory()

    def prepare(self) -> None:
        """Nothing is needed."""

    def put(self) -> float:
        clock = Clock("read", "hash", "compress", "write")
        self._runs = []
        at = 0
        with one_core(), self._source.open("rb", 0) as source, self._packed.open("wb", 0) as packed:
            while True:
                with clock.step("read"):
                    size = os.preadv(source.fileno(), [self._memory], at)
                if not size:
                    break
                places = part_places(size)
                with clock.step("hash"):
                    md5s = hashing.md5_many(self._memory, places)
                with clock.step("compress"):
                    parts = self._compress(places)
                with clock.step("write"):
                    write_all(packed.fileno(), parts)
                rows = zip(parts, places, md5s, strict=True)
                self._runs.append([(len(part), place[1], md5) for part, place, md5 in rows])
                at += size
        return self._finish("put", clock)

    def stored(self) -> int:
        return self._packed.stat().st_size

    def get(self, target: Path) -> float:
        clock = Clock("read", "decompress", "hash", "write")
        at = 0
        with one_core(), self._packed.open("rb", 0) as packed, (target / "file").open("wb", 0) as file:
            for run in self._runs:
                length = sum(stored for stored, _, _ in run)
                size = sum(size for _, size, _ in run)
                with clock.step("read"):
                    os.preadv(packed.fileno(), [self._stored[:length]], at)
                with clock.step("decompress"):
                    self._decompress(run)
                with clock.step("hash"):
                    md5s = hashing.md5_many(self._memory, part_places(size))
                with clock.step("write"):
                    for start in range(0, size, WRITE_BYTES):
                        write_all(file.fileno(), [self._memory[start : min(start + WRITE_BYTES, size)]])
                if md5s != [md5 for _, _, md5 in run]:
                    raise Failed("the steps lost something")
                at += length
        return self._finish("get", clock)

    def clear(self) -> None:
        self._packed.unlink(missing_ok=True)

    def _compress(self, places: Sequence[tuple[int, int]]) -> list[codecs.Buffer]:
        """Each part, compressed where that makes it smaller."""
        parts: list[codecs.Buffer] = []
        for at, size in places:
            part = self._memory[at : at + size]
            encoded = codecs.encode(CODEC, LEVEL, part)
            parts.append(encoded if len(encoded) < size else part)
        return parts

    def _decompress(self, run: Sequence[tuple[int, int, bytes]]) -> None:
        """Bring the parts of a run to where they belong in the buffer."""
        start = at = 0
        for length, size, _ in run:
            codec = CODEC if length < size else "none"
            self._memory[at : at + size] = codecs.decode(codec, self._stored[start : start + length], size)
            start += length
            at += size

    def _finish(self, step: str, clock: Clock) -> float:
        for name, seconds in clock.seconds.items():
            self.seconds.setdefault(f"{step}: {name}", []).append(seconds)
        return limit_seconds(clock.seconds.values(), self._cores)


class Clock:
    """Adds up what steps take."""

    def __init__(self, *names: str) -> None:
        self.seconds = dict.fromkeys(names, 0.0)

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add what is done inside to a step."""
        begin = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - begin


@contextmanager
def one_core() -> Iterator[None]:
    """This process runs on one of its cores for a while."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def part_places(size: int) -> list[tuple[int, int]]:
    """Where the parts of a run of `size` bytes lie in the buffer: (offset, size)."""
    return [(at, min(PART_BYTES, size - at)) for at in range(0, size, PART_BYTES)]


def write_all(file: int, pieces: Sequence[codecs.Buffer]) -> None:
    """Write pieces one after the other; Failed if not all of it goes at once, which disks do not do."""
    if os.writev(file, pieces) != sum(len(piece) for piece in pieces):
        raise Failed("a write was cut short")


def keep_freed_memory() -> None:
    """Let malloc keep what was freed: else each part's memory is taken anew from the kernel, page by page."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)


# --- from arguments to exit code ----------------------------------------------------------------


def step_table(size: int, steps: Steps) -> str:
    """The median speed of each step on one core."""
    rows = [["one core, alone", "MiB/s"]]
    rows += [[name, f"{size / MIB / median(seconds):.0f}"] for name, seconds in steps.seconds.items()]
    return aligned(rows)


def measure(subject: str, arguments: argparse.Namespace) -> suite.Result:
    """Contests of pfsd with the bare steps on one corpus."""
    settings = suite.settings(arguments) | {"codec": CODEC, "level": LEVEL}
    result = suite.Result("limit", subject, arguments, settings)
    file = corpus(subject, arguments.cache, arguments.quick)
    with (
        suite.scratch_directory(arguments.dir) as scratch,
        Daemon(scratch, [scratch, file.parent], **settings) as daemon,
    ):
        warm(file)
        steps = Steps(file, scratch, arguments.cores)
        try:
            contest = hold(f"{subject}, limit", file, Pfsd(daemon, file), steps, arguments.pairs, scratch)
        except Failed as error:
            result.failed(subject, error)
            return result
    result.rows += contest.rows(subject, "limit of its steps", step_seconds=steps.seconds)
    print(f"\n{step_table(contest.size, steps)}")
    return result


def parse() -> argparse.Namespace:
    """The command line."""
    parser = suite.options("Measure how near pfsd by path comes to the limit of its own steps.")
    suite.daemon_options(parser, codec=False)
    parser.add_argument("--corpus", nargs="+", choices=FILES, default=["linux"], help="(linux)")
    return suite.parse(parser)


def main() -> int:
    """Measure; 1 if something failed."""
    arguments = parse()
    return max(measure(subject, arguments).report() for subject in arguments.corpus)


if __name__ == "__main__":
    suite.run(main)
