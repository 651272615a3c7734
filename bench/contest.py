"""Two sides store the same files and give them back, in turns: who takes part, and how a contest goes.

The sides take turns A B B A ..., and what counts is the ratio of each pair: machines are noisy, and noise that lasts
hits both. What comes back is compared byte by byte, each time.
"""

from __future__ import annotations

import mmap
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from corpora import bytes_of, files_of, warm
from daemon import PIECE_BYTES, ROOT, Daemon, Failed, fields, quote, require_same
from figures import MIB, Pairs, Row, ratio_row
from peers import Peer
from suite import say

#: Memory to have at hand beside as much as the source is long.
SPARE_BYTES = 512 << 20
#: Ids in one `delete`, far below the length of a request line.
DELETE_IDS = 1000


# --- contestants --------------------------------------------------------------------------------


class Contestant(Protocol):
    """Stores a source, a file or a tree, and gives it back."""

    def prepare(self) -> None:
        """Make an empty store."""

    def put(self) -> float:
        """Store the source; the seconds that took."""

    def stored(self) -> int:
        """Bytes that the stored source takes."""

    def get(self, target: Path) -> float:
        """Bring it into an empty directory; the seconds that took."""

    def clear(self) -> None:
        """Remove all that `put` made, even if it failed."""


def timed(step: Callable[[], object]) -> float:
    """Seconds a step takes."""
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


class Pfsd:
    """pfsd: a daemon that keeps running, told by path."""

    def __init__(self, daemon: Daemon, source: Path, get_options: str = "") -> None:
        self._daemon = daemon
        self._source = source
        self._get_options = get_options
        self._before = 0

    def prepare(self) -> None:
        self._before = bytes_of(self._daemon.store)

    def put(self) -> float:
        return timed(lambda: self._daemon.ask(f"put {quote(self._source)} name=corpus"))

    def stored(self) -> int:
        return bytes_of(self._daemon.store) - self._before

    def get(self, target: Path) -> float:
        line = f"get corpus {quote(target / 'file')} {self._get_options}"
        return timed(lambda: self._daemon.ask(line.strip()))

    def clear(self) -> None:
        ids = [fields(row)["id"] for row in self._daemon.ask("list")[:-1]]
        for at in range(0, len(ids), DELETE_IDS):
            self._daemon.ask(f"delete {' '.join(ids[at : at + DELETE_IDS])}")


class PfsdClient(Pfsd):
    """pfsd through its client, a program that is started for each step and sends content over TCP."""

    def put(self) -> float:
        if self._source.is_dir():
            return self._client("put", "--recursive", str(self._source))
        return self._client("put", str(self._source), "--name", "corpus")

    def get(self, target: Path) -> float:
        if self._source.is_dir():
            return self._client("get", "--recursive", self._source.name, str(target))
        return self._client("get", "corpus", str(target / "file"))

    def _client(self, *words: str) -> float:
        host, port = self._daemon.address
        program = [sys.executable, str(ROOT / "client.py"), "--server", f"{host}:{port}", "--quiet"]
        environ = {key: value for key, value in os.environ.items() if not key.startswith("PFSD_")}
        return run_program([*program, *words], ROOT, environ)


class Program:
    """A peer, run for each step."""

    def __init__(self, peer: Peer, source: Path, scratch: Path, threads: int) -> None:
        self._peer = peer
        self._store = scratch / "peer"
        self._cache = scratch / "peer-cache"
        self._environ = os.environ | {
            "FILE": str(source),
            "STORE": str(self._store),
            "THREADS": str(threads),
            "BORG_BASE_DIR": str(self._cache),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "RESTIC_CACHE_DIR": str(self._cache),
            "RESTIC_PASSWORD": "benchmark",
        }

    def prepare(self) -> None:
        self._store.mkdir()
        self._cache.mkdir()
        self._run(self._peer.prepare, self._store)

    def put(self) -> float:
        return self._run(self._peer.put, self._store)

    def stored(self) -> int:
        return bytes_of(self._store)

    def get(self, target: Path) -> float:
        return self._run(self._peer.get, target)

    def clear(self) -> None:
        shutil.rmtree(self._store, ignore_errors=True)
        shutil.rmtree(self._cache, ignore_errors=True)

    def _run(self, command: str, where: Path) -> float:
        return run_program(["sh", "-c", command], where, self._environ)


def run_program(command: list[str], where: Path, environ: dict[str, str]) -> float:
    """The seconds that a program takes from start to end; Failed, with what it printed, if it fails."""
    begin = time.perf_counter()
    with subprocess.Popen(
        command,
        cwd=where,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    ) as process:
        try:
            printed, _ = process.communicate()
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # what the shell started as well
            raise
    seconds = time.perf_counter() - begin
    if process.returncode:
        words = printed.decode(errors="replace").strip()
        raise Failed(f"{' '.join(command)}: exit code {process.returncode}: {words}")
    return seconds


# --- the contest --------------------------------------------------------------------------------


@dataclass
class Contest:
    """All pairs of two sides on one source."""

    size: int
    put: Pairs = field(default_factory=Pairs)
    get: Pairs = field(default_factory=Pairs)
    our_stored: int = 0
    their_stored: int = 0

    def rows(self, subject: str, other: str, **details: object) -> list[Row]:
        """The rows of `put` and `get`, named `<subject> put, <other>`."""
        compression = (self.size / self.our_stored, self.size / self.their_stored)
        return [
            ratio_row(f"{subject} put, {other}", self.put, self.size / MIB, compression, details=details),
            ratio_row(f"{subject} get, {other}", self.get, self.size / MIB, compression, details=details),
        ]


def hold(title: str, source: Path, ours: Contestant, theirs: Contestant, pairs: int, scratch: Path) -> Contest:
    """All pairs, one after the other; the source has to be in the page cache. Failed if a side fails."""
    contest = Contest(bytes_of(source))
    for number in range(1, pairs + 1):
        say(f"{title}: pair {number} of {pairs}")
        try:
            _run_pair(source, ours, theirs, scratch, contest, ours_first=number % 2 == 1)
        finally:
            ours.clear()
            theirs.clear()
    return contest


def _run_pair(
    source: Path, ours: Contestant, theirs: Contestant, scratch: Path, contest: Contest, ours_first: bool
) -> None:
    """Put by one and the other, then get by one and the other. Who goes first alternates from pair to pair."""
    ours.prepare()
    theirs.prepare()
    put, get = contest.put, contest.get
    turns = [(ours, put.ours, get.ours), (theirs, put.theirs, get.theirs)]
    if not ours_first:
        turns.reverse()
    for contestant, seconds, _ in turns:
        level_ground(source)
        seconds.append(contestant.put())
    contest.our_stored, contest.their_stored = ours.stored(), theirs.stored()
    for contestant, _, seconds in turns:
        seconds.append(_checked_get(contestant, source, scratch))


def _checked_get(contestant: Contestant, source: Path, scratch: Path) -> float:
    """Seconds of a `get`, whose result is compared with the source and removed."""
    target = scratch / "out"
    target.mkdir()
    try:
        level_ground(source)
        seconds = contestant.get(target)
        if source.is_dir():
            require_same_tree(source, target)
        else:
            (result,) = files_of(target)
            require_same(source, result)
    finally:
        _put_aside(target)
    return seconds


def _put_aside(target: Path) -> None:
    """Remove what came back; of a tree at the end, as ext4 takes a millisecond for each file that is made while
    thousands have been removed in the last minutes."""
    if any(path.is_dir() for path in target.iterdir()):
        target.rename(target.with_name(f"{target.name}-{time.monotonic_ns()}"))
    else:
        shutil.rmtree(target)


def level_ground(source: Path) -> None:
    """What each step begins with: the source in the page cache, nothing to write back, and memory that is at hand.

    A virtual machine may have given memory that nobody used for some seconds back to its host; to get it again takes
    several times as long as to use it, and who comes second would find what the first has just freed.
    """
    warm(source)
    with mmap.mmap(-1, bytes_of(source) + SPARE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        piece = bytes(PIECE_BYTES)
        for _ in range(len(memory) // PIECE_BYTES):
            memory.write(piece)


def require_same_tree(one: Path, other: Path) -> None:
    """Failed unless all files of one tree, and no others, are below the other, wherever in it their directory is."""
    first, found = files_of(one), files_of(other)
    top = Path(os.path.commonpath([file.parent for file in found])) if found else other
    names = [file.relative_to(one) for file in first]
    if names != [file.relative_to(top) for file in found]:
        raise Failed(f"{len(found)} files came back of {len(first)}, or with other names")
    for name in names:
        require_same(one / name, top / name)
