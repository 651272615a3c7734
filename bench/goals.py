"""What pfsd is meant to reach, and a table of each goal next to what was measured."""

from __future__ import annotations

import argparse
from pathlib import Path

import suite
from daemon import ROOT
from figures import Goal, goal_table

#: For two cores, named as the rows of the results are.
GOALS = [
    Goal("linux put, borg-zstd", 2.6),
    Goal("linux get, borg-zstd", 2.8),
    Goal("linux put, restic-auto", 3.5),
    Goal("linux get, restic-auto", 3.0),
    Goal("linux put, zstd", 1.25),
    Goal("linux get, zstd", 1.1),
    Goal("linux put, cp-sync", 1.5),
    Goal("linux get, cp-sync", 1.0),
    Goal("random put, borg-lz4", 2),
    Goal("random put, restic-off", 3),
    Goal("linux put, client to path", 0.85),
    Goal("linux get, client to path", 0.85),
    Goal("tree put, borg-zstd", 1.5),
    Goal("tree get, borg-zstd", 1.0),
    Goal("tree put, restic-auto", 1.5),
    Goal("tree get, restic-auto", 1.0),
    Goal("put of 4096 bytes, redis", 0.25),
    Goal("linux put, 2 processes to 1", 1.85),
    Goal("linux get, 2 processes to 1", 1.85),
    Goal("linux put, limit of its steps", 0.9),
    Goal("linux get, limit of its steps", 0.85),
    Goal("p99 of ping beside 8 puts", 20, at_most=True),
    Goal("p99 of get of 1 KB beside 8 puts", 100, at_most=True),
    Goal("alone, replay", 5, at_most=True),
    Goal("alone, memory", 400, at_most=True),
    Goal("shared, replay", 5, at_most=True),
    Goal("shared, memory", 400, at_most=True),
    Goal("peak over idle, memory 32 MiB", 1, at_most=True),
    Goal("peak over idle, memory 256 MiB", 1, at_most=True),
    Goal("peak over idle, memory 2048 MiB", 1, at_most=True),
]


def newest(results: Path) -> Path:
    """The directory of the newest results; the names are dates."""
    return max((path for path in results.glob("*") if path.is_dir()), default=results)


def summary(where: Path) -> str:
    """The table of a directory of results, with a word on those that prove nothing."""
    results = suite.load_results(where)
    quick = any(result["quick"] for result in results)
    note = "\nSome of this is of a quick run, whose figures prove nothing." if quick else ""
    return f"{goal_table(GOALS, suite.rows_of(results))}{note}"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Print each goal next to what was measured.")
    parser.add_argument("results", nargs="?", type=Path, metavar="DIR", help="of results (the newest)")
    return parser.parse_args()


def main() -> int:
    """Print the table."""
    arguments = parse()
    where = arguments.results or newest(ROOT / "bench" / "results")
    print(f"{where}:\n{summary(where)}")
    return 0


if __name__ == "__main__":
    suite.run(main)
