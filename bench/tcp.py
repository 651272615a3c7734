"""Measures pfsd against itself: through its client, a program that sends content over TCP, and by path."""

from __future__ import annotations

import argparse

import suite
from contest import Pfsd, PfsdClient, hold
from corpora import FILES, corpus, warm
from daemon import Daemon, Failed


def parse() -> argparse.Namespace:
    """The command line."""
    parser = suite.daemon_options(suite.options("Measure pfsd through client.py over TCP against pfsd by path."))
    parser.add_argument("--corpus", nargs="+", choices=FILES, default=["linux"], help="(linux)")
    return suite.parse(parser)


def measure(subject: str, arguments: argparse.Namespace) -> suite.Result:
    """The contest on one corpus. Two daemons, because both sides hold what they stored until both have read it."""
    settings = suite.settings(arguments)
    result = suite.Result("tcp", subject, arguments, settings)
    file = corpus(subject, arguments.cache, arguments.quick)
    with suite.scratch_directory(arguments.dir) as scratch:
        homes = [scratch / "tcp", scratch / "path"]
        for home in homes:
            home.mkdir()
        roots = [scratch, file.parent]
        with Daemon(homes[0], roots, **settings) as one, Daemon(homes[1], roots, **settings) as other:
            warm(file)
            try:
                title = f"{subject} through the client"
                contest = hold(title, file, PfsdClient(one, file), Pfsd(other, file), arguments.pairs, scratch)
                result.rows += contest.rows(subject, "client to path")
            except Failed as error:
                result.failed(subject, error)
    return result


def main() -> int:
    """Measure; 1 if something failed."""
    arguments = parse()
    return max(measure(subject, arguments).report() for subject in arguments.corpus)


if __name__ == "__main__":
    suite.run(main)
