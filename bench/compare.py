"""Measures pfsd side by side with other programs that store a file and give it back."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import suite
from contest import Pfsd, Program, hold
from corpora import FILES, corpus, warm
from daemon import Daemon, Failed
from peers import PEERS, Peer, chosen, installed, versions_of


def compare(subject: str, file: Path, peers: Sequence[Peer], arguments: argparse.Namespace) -> suite.Result:
    """All contests on one file."""
    settings = suite.settings(arguments)
    result = suite.Result("compare", subject, arguments, settings, versions=versions_of(peers))
    with (
        suite.scratch_directory(arguments.dir) as scratch,
        Daemon(scratch, [scratch, file.parent], **settings) as daemon,
    ):
        warm(file)
        for peer in peers:
            title = f"{subject}, {peer.name}"
            program = Program(peer, file, scratch, arguments.cores)
            try:
                contest = hold(title, file, Pfsd(daemon, file, peer.get_options), program, arguments.pairs, scratch)
            except Failed as error:
                result.failed(title, error)
                continue
            result.rows += contest.rows(subject, peer.name, put_command=peer.put, get_command=peer.get)
    return result


def parse() -> argparse.Namespace:
    """The command line."""
    names = sorted({peer.name for peer in PEERS} | {peer.program for peer in PEERS})
    parser = suite.daemon_options(suite.options("Measure pfsd by path side by side with other programs."))
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--corpus", nargs="+", choices=FILES, default=list(FILES), help="(all)")
    what.add_argument("--file", type=Path, metavar="PATH", help="measure on this file instead")
    parser.add_argument("--peers", nargs="+", default=[], choices=names, metavar="NAME", help=" ".join(names))
    return suite.parse(parser)


def main() -> int:
    """Measure what the command line asks for; 1 if something failed."""
    arguments = parse()
    failed = 0
    for subject in [arguments.file.stem] if arguments.file else arguments.corpus:
        peers = installed(chosen(arguments.peers, subject))
        try:
            path = arguments.file.resolve(strict=True) if arguments.file else None
            file = path or corpus(subject, arguments.cache, arguments.quick)
        except Failed as error:
            suite.say(str(error))
            failed = 1
            continue
        failed |= compare(subject, file, peers, arguments).report()
    return failed


if __name__ == "__main__":
    suite.run(main)
