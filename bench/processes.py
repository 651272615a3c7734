"""Measures what more I/O processes bring: pfsd with as many as there are cores against pfsd with one."""

from __future__ import annotations

import argparse

import suite
from contest import Pfsd, hold
from corpora import FILES, corpus, warm
from daemon import Daemon, Failed


def parse() -> argparse.Namespace:
    """The command line."""
    parser = suite.daemon_options(suite.options("Measure pfsd with one I/O process for each core against one."))
    parser.add_argument("--corpus", nargs="+", choices=FILES, default=["linux"], help="(linux)")
    return suite.parse(parser)


def measure(subject: str, arguments: argparse.Namespace) -> suite.Result:
    """The contest of two daemons on one corpus."""
    settings = suite.settings(arguments)
    result = suite.Result("processes", subject, arguments, settings)
    file = corpus(subject, arguments.cache, arguments.quick)
    with suite.scratch_directory(arguments.dir) as scratch:
        homes = [scratch / "many", scratch / "one"]
        for home in homes:
            home.mkdir()
        roots = [scratch, file.parent]
        alone = settings | {"processes": 1}
        with Daemon(homes[0], roots, **settings) as many, Daemon(homes[1], roots, **alone) as one:
            warm(file)
            try:
                title = f"{subject}, {arguments.cores} processes and 1"
                contest = hold(title, file, Pfsd(many, file), Pfsd(one, file), arguments.pairs, scratch)
                result.rows += contest.rows(subject, f"{arguments.cores} processes to 1")
            except Failed as error:
                result.failed(subject, error)
    return result


def main() -> int:
    """Measure; 1 if something failed."""
    arguments = parse()
    return max(measure(subject, arguments).report() for subject in arguments.corpus)


if __name__ == "__main__":
    suite.run(main)
