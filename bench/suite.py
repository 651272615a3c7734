"""What all measuring scripts share: their options, their scratch directory, and the shape of their results.

A result is one JSON file: what ran, on which machine, with which versions and settings, and rows of figures.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import NoReturn

from daemon import ROOT, Failed, parse_size
from figures import Row, table

#: The cores that every side gets unless told otherwise: what the goals are stated for.
CORES = 2
PAIRS, QUICK_PAIRS = 5, 2
#: The smallest blocks of free memory, as a power of two of pages, that the kernel reports to a host; and one above all
#: there are.
REPORTED_ORDER, ABOVE_ALL_ORDERS = Path("/sys/module/page_reporting/parameters/page_reporting_order"), 11
#: Packages that do the work inside pfsd.
PACKAGES = ("uvloop", "msgspec", "backports.zstd", "numba")


def say(text: str) -> None:
    """What happens, beside the results."""
    print(text, file=sys.stderr, flush=True)


# --- the command line ---------------------------------------------------------------------------


def options(description: str, *, pairs: bool = True) -> argparse.ArgumentParser:
    """A parser with the options that all scripts have, and `--pairs` for those that compare two sides."""
    parser = argparse.ArgumentParser(description=description)
    if pairs:
        parser.add_argument("--pairs", type=int, metavar="N", help=f"({PAIRS}, with --quick {QUICK_PAIRS})")
    parser.add_argument("--quick", action="store_true", help="only see that all works: little slices, few rounds")
    parser.add_argument("--cores", type=int, default=CORES, metavar="N", help="of everything that runs (%(default)s)")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pfsd-bench"
    parser.add_argument("--cache", type=Path, default=cache, metavar="DIR", help="of the corpora (%(default)s)")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="where the stores are, for a while (the cache)")
    parser.add_argument(
        "--keep-memory",
        action="store_true",
        help="on a virtual machine, as root: let no unused memory go back to the host while this runs",
    )
    parser.add_argument("--results", type=Path, metavar="DIR", help="of the JSON (bench/results/<date>)")
    return parser


def daemon_options(parser: argparse.ArgumentParser, *, codec: bool = True) -> argparse.ArgumentParser:
    """The same parser, with settings of pfsd."""
    parser.add_argument("--memory", default="256MiB", metavar="SIZE", help="pfsd's setting (%(default)s)")
    if codec:
        parser.add_argument("--codec", metavar="NAME", help="pfsd's setting (its default)")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, its defaults filled in; from here on this process and its children have `--cores` cores."""
    parsed = parser.parse_args(arguments)
    if "pairs" in parsed:
        if parsed.pairs is None:
            parsed.pairs = QUICK_PAIRS if parsed.quick else PAIRS
        if parsed.pairs < 1:
            parser.error("--pairs must be at least 1")
    allowed = sorted(os.sched_getaffinity(0))
    if not 1 <= parsed.cores <= len(allowed):
        parser.error(f"--cores must be from 1 to the {len(allowed)} of this machine")
    os.sched_setaffinity(0, allowed[: parsed.cores])
    if parsed.keep_memory:
        keep_memory(parser)
    parsed.dir = parsed.dir or parsed.cache
    parsed.results = parsed.results or ROOT / "bench" / "results" / time.strftime("%Y-%m-%d")
    return parsed


def settings(arguments: argparse.Namespace) -> dict[str, object]:
    """The settings of the daemon that is measured; what is not here has pfsd's default."""
    given: dict[str, object] = {"memory": parse_size(arguments.memory), "processes": arguments.cores}
    if vars(arguments).get("codec"):
        given["codec"] = arguments.codec
    return given


def keep_memory(parser: argparse.ArgumentParser) -> None:
    """Until this process ends, let the kernel report no block of free memory to the host as unused."""
    try:
        before = REPORTED_ORDER.read_text()
        REPORTED_ORDER.write_text(str(ABOVE_ALL_ORDERS))
    except OSError as error:
        parser.error(f"--keep-memory: {REPORTED_ORDER}: {error.strerror}")
    atexit.register(REPORTED_ORDER.write_text, before)


@contextmanager
def scratch_directory(where: Path) -> Iterator[Path]:
    """A directory for everything that comes and goes; pfsd may write only to the real path of it."""
    where.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="scratch-", dir=where) as name:
        yield Path(name).resolve()


def run(script: Callable[[], int]) -> None:
    """Run a script's `main` and end with its code; 1 and a line when something failed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end_orderly)
    try:
        code = script()
    except (Failed, OSError, subprocess.CalledProcessError) as error:
        say(f"{Path(sys.argv[0]).stem}: {error}")
        code = 1
    sys.exit(code)


def end_orderly(number: int, _: FrameType | None) -> NoReturn:
    """End on a signal as on an exception, so that no daemon and no scratch directory is left; once is enough."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    sys.exit(128 + number)


# --- results ------------------------------------------------------------------------------------


@dataclass
class Result:
    """What one script found out; `failures` says what it could not."""

    script: str
    subject: str
    arguments: argparse.Namespace
    settings: Mapping[str, object]
    rows: list[Row] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    began: float = field(default_factory=time.time)
    load_before: tuple[float, float, float] = field(default_factory=os.getloadavg)

    def failed(self, what: str, error: Exception) -> None:
        """Say and keep that something failed; the rest goes on."""
        self.failures.append(f"{what}: {error}")
        say(f"FAILED: {what}: {error}")

    def report(self) -> int:
        """Print the table and write the JSON; the exit code: 1 if something failed or nothing was measured."""
        where = machine(self.arguments.dir)
        load_after = os.getloadavg()
        quick = ", QUICK: the figures prove nothing" if self.arguments.quick else ""
        print(
            f"\n{self.script}, {self.subject}: {where['filesystem']}, {self.arguments.cores} cores, "
            f"load {self.load_before[0]:.2f} before and {load_after[0]:.2f} after{quick}"
        )
        if self.rows:
            print(table(self.rows), flush=True)
        values = {
            "script": self.script,
            "subject": self.subject,
            "quick": self.arguments.quick,
            "began": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self.began)),
            "seconds": time.time() - self.began,
            "load_before": self.load_before,
            "load_after": load_after,
            "pairs": vars(self.arguments).get("pairs"),
            "cores": self.arguments.cores,
            "settings": self.settings,
            "machine": where,
            "versions": own_versions() | self.versions,
            "rows": [row.to_json() for row in self.rows],
            "failures": self.failures,
        }
        self.arguments.results.mkdir(parents=True, exist_ok=True)
        path: Path = self.arguments.results / f"{self.script}-{self.subject}.json"
        path.write_text(json.dumps(values, indent=1) + "\n")
        say(f"written: {path}")
        return 1 if self.failures or not self.rows else 0


def load_results(where: Path) -> list[dict[str, object]]:
    """What the scripts wrote into a directory, oldest first; Failed if there is nothing."""
    found = [json.loads(path.read_text()) for path in where.glob("*.json")]
    if not found:
        raise Failed(f"no results in {where}: run the scripts first")
    return sorted(found, key=lambda result: str(result["began"]))


def rows_of(results: Sequence[Mapping[str, object]]) -> dict[str, Row]:
    """All rows of results by name, the last of each name."""
    found: dict[str, Row] = {}
    for result in results:
        rows = result["rows"]
        assert isinstance(rows, list)
        found |= {row["name"]: Row.from_json(row) for row in rows}
    return found


def first_line(command: str) -> str:
    """The first line that a command prints, empty if it fails."""
    done = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
    return done.stdout.decode(errors="replace").strip().partition("\n")[0]


def machine(where: Path) -> dict[str, object]:
    """The machine, and the file system that holds the stores."""
    filesystem = subprocess.run(["df", "--output=fstype", where], stdout=subprocess.PIPE, check=True).stdout
    return {
        "cpu": first_line("sed -n 's/^model name[^:]*: //p' /proc/cpuinfo") or platform.machine(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "keeps_free_memory": not REPORTED_ORDER.exists() or int(REPORTED_ORDER.read_text()) >= ABOVE_ALL_ORDERS,
        "filesystem": filesystem.decode().split()[-1],
    }


def own_versions() -> dict[str, str]:
    """The versions of pfsd, of Python and of the packages that do the work."""
    found = {
        "pfsd": first_line(f"'{sys.executable}' server.py --version"),
        "pfsd_commit": first_line("git describe --always --dirty"),
        "python": sys.version.split()[0],
    }
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found
