"""Measures pfsd side by side with other programs that store a file and give it back.

pfsd and a peer take turns, A B B A ..., on the same file and the same file system, and what counts is the ratio of
each pair: machines are noisy, and noise that lasts hits both. Every file that comes back is compared byte by byte.
Nothing is installed; peers that are not there are left out.
"""

from __future__ import annotations

import argparse
import json
import lzma
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Protocol

from daemon import PIECE_BYTES, ROOT, Daemon, Failed, fields, quote, require_same

MIB = 1 << 20
LINUX_SOURCE = Path("/usr/src/linux-source-6.1.tar.xz")
USR_BYTES = 1 << 30
RANDOM_BYTES = 500 * MIB
#: Packages that do the work inside pfsd.
PACKAGES = ("uvloop", "msgspec", "backports.zstd", "numba")


# --- peers --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """A program to compare with, as lines for sh.

    `put` stores $FILE below $STORE, a directory that is empty but for what `prepare`, which is not timed, made there.
    `get` brings it into the current directory, an empty one. $THREADS is how many cores may be used.
    """

    name: str
    program: str
    version: str
    put: str
    get: str
    prepare: str = ":"


def borg(codec: str) -> Peer:
    """borg without encryption, which pfsd has not either."""
    return Peer(
        name=f"borg-{codec.partition(',')[0]}",
        program="borg",
        version="borg --version",
        prepare='borg init -e none "$STORE"',
        put=f'borg create -C {codec} "$STORE::a" "$FILE"',
        get='borg extract "$STORE::a"',
    )


def restic(compression: str) -> Peer:
    """restic, which always encrypts."""
    return Peer(
        name=f"restic-{compression}",
        program="restic",
        version="restic version",
        prepare='restic -q -r "$STORE" init',
        put=f'restic -q -r "$STORE" backup --compression {compression} "$FILE"',
        get='restic -q -r "$STORE" restore latest --target .',
    )


PEERS = [
    borg("zstd,1"),
    borg("lz4"),
    restic("auto"),
    restic("off"),
    Peer(
        name="zstd",
        program="zstd",
        version="zstd --version",
        put='zstd -q -1 -T"$THREADS" "$FILE" -o "$STORE/file.zst"',
        get='zstd -q -d "$STORE/file.zst" -o file',
    ),
    Peer(
        name="pigz",
        program="pigz",
        version="pigz --version 2>&1",
        put='pigz -1 -p "$THREADS" -c "$FILE" > "$STORE/file.gz"',
        get='pigz -d -p "$THREADS" -c "$STORE/file.gz" > file',
    ),
    Peer(
        name="cp",
        program="cp",
        version="cp --version",
        put='cp "$FILE" "$STORE/file"',
        get='cp "$STORE/file" file',
    ),
]


def choose(names: Sequence[str]) -> list[Peer]:
    """The peers of these names or programs (all if there are none) that are installed; says what is not."""
    wanted = [peer for peer in PEERS if not names or peer.name in names or peer.program in names]
    missing = sorted({peer.program for peer in wanted if not shutil.which(peer.program)})
    if missing:
        say(f"left out, not installed: on Debian, apt-get install {' '.join(missing)}")
    return [peer for peer in wanted if peer.program not in missing]


# --- corpora ------------------------------------------------------------------------------------


def make_linux(path: Path) -> None:
    """The source of Linux 6.1 as Debian packs it."""
    if not LINUX_SOURCE.exists():
        raise Failed("corpus linux is left out: on Debian, apt-get install linux-source-6.1")
    with lzma.open(LINUX_SOURCE) as packed, path.open("wb") as unpacked:
        shutil.copyfileobj(packed, unpacked, PIECE_BYTES)


def make_usr(path: Path) -> None:
    """The first GiB of a tar of /usr/lib: programs and libraries."""
    with (
        path.open("wb") as file,
        subprocess.Popen(["tar", "-C", "/usr", "-cf", "-", "lib"], stdout=subprocess.PIPE) as tar,
    ):
        assert tar.stdout is not None
        while (left := USR_BYTES - file.tell()) and (piece := tar.stdout.read(min(left, PIECE_BYTES))):
            file.write(piece)
        tar.kill()


def make_random(path: Path) -> None:
    """Bytes that nothing makes smaller."""
    with path.open("wb") as file:
        for _ in range(RANDOM_BYTES // PIECE_BYTES):
            file.write(os.urandom(PIECE_BYTES))


CORPORA: dict[str, Callable[[Path], None]] = {"linux": make_linux, "usr": make_usr, "random": make_random}


def corpus(name: str, cache: Path) -> Path:
    """The file of a corpus, made if it is not in the cache; Failed if it cannot be."""
    path = cache / name
    if not path.exists():
        say(f"making {path}")
        cache.mkdir(parents=True, exist_ok=True)
        half = path.with_suffix(".tmp")
        try:
            CORPORA[name](half)
            half.rename(path)
        finally:
            half.unlink(missing_ok=True)
    return path


# --- contestants --------------------------------------------------------------------------------


class Contestant(Protocol):
    """Stores the file and gives it back. Only `put` and `get` are timed."""

    def prepare(self) -> None:
        """Make an empty store."""

    def put(self) -> None:
        """Store the file."""

    def stored(self) -> int:
        """Bytes that the stored file takes."""

    def get(self, target: Path) -> None:
        """Bring it into an empty directory."""

    def clear(self) -> None:
        """Remove all that `put` made."""


class Pfsd:
    """pfsd: a daemon that keeps running, asked over a connection."""

    def __init__(self, daemon: Daemon, file: Path) -> None:
        self._daemon = daemon
        self._file = file
        self._before = 0

    def prepare(self) -> None:
        self._before = tree_bytes(self._daemon.store)

    def put(self) -> None:
        answer = fields(self._daemon.ask(f"put {quote(self._file)} name=corpus")[-1])
        if int(answer["size"]) != self._file.stat().st_size:
            raise Failed(f"pfsd stored {answer['size']} bytes")

    def stored(self) -> int:
        return tree_bytes(self._daemon.store) - self._before

    def get(self, target: Path) -> None:
        self._daemon.ask(f"get corpus {quote(target / 'file')}")

    def clear(self) -> None:
        self._daemon.ask("delete corpus")


class Program:
    """A peer, run for each step."""

    def __init__(self, peer: Peer, file: Path, scratch: Path, threads: int) -> None:
        self._peer = peer
        self._store = scratch / "peer"
        self._cache = scratch / "peer-cache"
        self._environ = os.environ | {
            "FILE": str(file),
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

    def put(self) -> None:
        self._run(self._peer.put, self._store)

    def stored(self) -> int:
        return tree_bytes(self._store)

    def get(self, target: Path) -> None:
        self._run(self._peer.get, target)

    def clear(self) -> None:
        shutil.rmtree(self._store)
        shutil.rmtree(self._cache)

    def _run(self, command: str, where: Path) -> None:
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=where,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            raise Failed(f"{command}: {done.stdout.decode(errors='replace').strip()}")


def tree_bytes(path: Path) -> int:
    """The sizes of all files below a directory."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


# --- measuring ----------------------------------------------------------------------------------


@dataclass
class Step:
    """The seconds that pfsd and its peer took for one kind of step, pair by pair."""

    pfsd_seconds: list[float] = field(default_factory=list)
    peer_seconds: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """How many times as fast pfsd was."""
        return [peer / pfsd for pfsd, peer in zip(self.pfsd_seconds, self.peer_seconds, strict=True)]

    def summary(self) -> dict[str, object]:
        """For the JSON."""
        return {
            "pfsd_seconds": self.pfsd_seconds,
            "peer_seconds": self.peer_seconds,
            "ratios": self.ratios,
            "median_ratio": median(self.ratios),
        }


@dataclass
class Comparison:
    """All pairs of pfsd and one peer."""

    peer: Peer
    size: int
    put: Step = field(default_factory=Step)
    get: Step = field(default_factory=Step)
    pfsd_stored: int = 0
    peer_stored: int = 0

    def summary(self) -> dict[str, object]:
        """For the JSON."""
        return {
            "put_command": self.peer.put,
            "get_command": self.peer.get,
            "put": self.put.summary(),
            "get": self.get.summary(),
            "pfsd_compression": self.size / self.pfsd_stored,
            "peer_compression": self.size / self.peer_stored,
        }


def timed(step: Callable[[], None]) -> float:
    """Seconds a step takes, begun with nothing left to write back from the steps before."""
    os.sync()
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def timed_get(contestant: Contestant, file: Path, scratch: Path) -> float:
    """Seconds of a `get`, whose result is compared with the file and removed."""
    target = scratch / "out"
    target.mkdir()
    seconds = timed(lambda: contestant.get(target))
    (result,) = [path for path in target.rglob("*") if path.is_file()]
    require_same(file, result)
    shutil.rmtree(target)
    return seconds


def run_pair(
    pfsd: Contestant, peer: Contestant, file: Path, scratch: Path, comparison: Comparison, pfsd_first: bool
) -> None:
    """Put by one and the other, then get by one and the other.

    Who goes first alternates from pair to pair: the second finds the memory that the first has just given back,
    which on a virtual machine is several times as fast to fill as memory that was not touched for long.
    """
    pfsd.prepare()
    peer.prepare()
    put, get = comparison.put, comparison.get
    turns = [(pfsd, put.pfsd_seconds, get.pfsd_seconds), (peer, put.peer_seconds, get.peer_seconds)]
    if not pfsd_first:
        turns.reverse()
    for contestant, seconds, _ in turns:
        seconds.append(timed(contestant.put))
    comparison.pfsd_stored, comparison.peer_stored = pfsd.stored(), peer.stored()
    for contestant, _, seconds in turns:
        seconds.append(timed_get(contestant, file, scratch))
    pfsd.clear()
    peer.clear()


def compare(file: Path, peers: Sequence[Peer], arguments: argparse.Namespace) -> tuple[list[Comparison], str]:
    """All comparisons on one file, and what pfsd says of its version."""
    comparisons = []
    with scratch_directory(arguments.dir or file.parent) as scratch:
        settings = {key: getattr(arguments, key) for key in ("memory", "processes", "codec")}
        with Daemon(scratch, [scratch, file.parent], **settings) as daemon:
            version = fields(daemon.ask("hello")[-1])["version"]
            require_same(file, file)  # has it read into the page cache
            for peer in peers:
                comparison = Comparison(peer, file.stat().st_size)
                program = Program(peer, file, scratch, arguments.processes)
                for number in range(1, arguments.pairs + 1):
                    say(f"{file.name}: {peer.name}, pair {number} of {arguments.pairs}")
                    run_pair(Pfsd(daemon, file), program, file, scratch, comparison, pfsd_first=number % 2 == 1)
                comparisons.append(comparison)
    return comparisons, version


@contextmanager
def scratch_directory(where: Path) -> Iterator[Path]:
    """A directory for everything that comes and goes; pfsd may write only to the real path of it."""
    with tempfile.TemporaryDirectory(prefix="pfsd-bench-", dir=where) as name:
        yield Path(name).resolve()


# --- what is reported ---------------------------------------------------------------------------


def say(text: str) -> None:
    """What happens, beside the results."""
    print(text, file=sys.stderr, flush=True)


def first_line(command: str) -> str:
    """The first line that a command prints, empty if it fails."""
    done = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
    return done.stdout.decode(errors="replace").strip().partition("\n")[0]


def machine(where: Path) -> dict[str, object]:
    """The machine, and the file system that holds the stores."""
    filesystem = subprocess.run(["df", "--output=fstype", where], stdout=subprocess.PIPE, check=True).stdout
    return {
        "cpu": first_line("sed -n 's/^model name[^:]*: //p' /proc/cpuinfo") or platform.machine(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "filesystem": filesystem.decode().split()[-1],
    }


def versions(peers: Sequence[Peer], pfsd: str) -> dict[str, str]:
    """The version of each program and package that takes part."""
    found = {"pfsd": pfsd, "pfsd_commit": first_line("git describe --always --dirty"), "python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found | {peer.program: first_line(peer.version) for peer in peers}


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0))


def table(comparisons: Sequence[Comparison]) -> str:
    """Medians in MiB/s, the median of the ratios, and compression ratios."""
    lines = [
        "                 put, MiB/s             get, MiB/s             compression",
        "peer             pfsd    peer   ratio   pfsd    peer   ratio   pfsd    peer",
    ]
    for comparison in comparisons:
        speeds = ""
        for step in (comparison.put, comparison.get):
            pfsd, peer = (comparison.size / MIB / median(each) for each in (step.pfsd_seconds, step.peer_seconds))
            speeds += f"{pfsd:8.0f}{peer:8.0f}{median(step.ratios):7.2f}"
        pfsd, peer = comparison.size / comparison.pfsd_stored, comparison.size / comparison.peer_stored
        lines.append(f"{comparison.peer.name:13}{speeds}{pfsd:7.2f}{peer:8.2f}")
    return "\n".join(lines)


def report(name: str, file: Path, peers: Sequence[Peer], arguments: argparse.Namespace) -> None:
    """Measure one file, print the table and write the JSON."""
    begin = time.time()
    load_before = os.getloadavg()
    comparisons, version = compare(file, peers, arguments)
    where = machine(arguments.dir or file.parent)
    load_after = os.getloadavg()
    print(
        f"\n{name}: {file.stat().st_size / MIB:.0f} MiB, {arguments.pairs} pairs, {where['filesystem']}, "
        f"{where['cores']} cores, load {load_before[0]:.2f} before and {load_after[0]:.2f} after"
    )
    print(table(comparisons), flush=True)
    result = {
        "corpus": name,
        "size": file.stat().st_size,
        "began": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(begin)),
        "seconds": time.time() - begin,
        "load_before": load_before,
        "load_after": load_after,
        "pairs": arguments.pairs,
        "settings": {key: getattr(arguments, key) for key in ("memory", "processes", "codec")},
        "machine": where,
        "versions": versions(peers, version),
        "peers": {comparison.peer.name: comparison.summary() for comparison in comparisons},
    }
    arguments.results.mkdir(parents=True, exist_ok=True)
    path: Path = arguments.results / f"{time.strftime('%Y-%m-%d', time.localtime(begin))}-{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    say(f"written: {path}")


def parse() -> argparse.Namespace:
    """The command line."""
    names = [peer.name for peer in PEERS] + [peer.program for peer in PEERS]
    parser = argparse.ArgumentParser(description="Measure pfsd side by side with other programs.")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--corpus", choices=[*CORPORA, "all"], default="all", help="(%(default)s)")
    what.add_argument("--file", type=Path, metavar="PATH", help="measure on this file instead")
    parser.add_argument("--pairs", type=int, default=5, metavar="N", help="(%(default)s)")
    parser.add_argument("--peers", nargs="+", default=[], choices=names, metavar="NAME", help=" ".join(names))
    parser.add_argument("--dir", type=Path, help="where the stores are (a directory beside the file)")
    parser.add_argument("--memory", default="256MiB", metavar="SIZE", help="pfsd's memory (%(default)s)")
    parser.add_argument("--processes", type=int, default=cores(), metavar="N", help="of all of them (%(default)s)")
    parser.add_argument("--codec", default="zstd", help="pfsd's codec (%(default)s)")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pfsd-bench"
    parser.add_argument("--cache", type=Path, default=cache, metavar="DIR", help="of the corpora (%(default)s)")
    results = Path(__file__).parent / "results"
    parser.add_argument("--results", type=Path, default=results, metavar="DIR", help="of the JSON (%(default)s)")
    arguments = parser.parse_args()
    if arguments.pairs < 1:
        parser.error("--pairs must be at least 1")
    return arguments


def main() -> int:
    """Measure what the command line asks for; 1 if nothing was measured or something failed."""
    arguments = parse()
    peers = choose(arguments.peers)
    if not peers:
        return 1
    measured = 0
    for name in CORPORA if arguments.corpus == "all" and not arguments.file else [arguments.corpus]:
        try:
            file = arguments.file.resolve(strict=True) if arguments.file else corpus(name, arguments.cache)
        except Failed as error:
            say(str(error))
            continue
        report(file.stem if arguments.file else name, file, peers, arguments)
        measured += 1
    return 0 if measured else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (Failed, OSError) as error:
        say(f"compare: {error}")
        sys.exit(1)
