"""Measures a whole tree of small files through pfsd's client, side by side with other programs."""

from __future__ import annotations

import argparse

import suite
from contest import PfsdClient, Program, hold
from corpora import corpus, files_of, warm
from daemon import Daemon, Failed
from peers import chosen, installed, versions_of


def parse() -> argparse.Namespace:
    """The command line."""
    description = "Measure `client.py put --recursive` and `get --recursive` side by side with borg and restic."
    parser = suite.daemon_options(suite.options(description))
    names = [peer.name for peer in chosen([], "tree")]
    parser.add_argument("--peers", nargs="+", default=[], choices=names, metavar="NAME", help=" ".join(names))
    return suite.parse(parser)


def main() -> int:
    """Measure; 1 if something failed."""
    arguments = parse()
    settings = suite.settings(arguments)
    peers = installed(chosen(arguments.peers, "tree"))
    tree = corpus("tree", arguments.cache, arguments.quick)
    result = suite.Result("tree", "tree", arguments, settings, versions=versions_of(peers))
    with suite.scratch_directory(arguments.dir) as scratch, Daemon(scratch, [scratch], **settings) as daemon:
        warm(tree)
        suite.say(f"{len(files_of(tree))} files")
        for peer in peers:
            title = f"tree, {peer.name}"
            program = Program(peer, tree, scratch, arguments.cores)
            try:
                contest = hold(title, tree, PfsdClient(daemon, tree), program, arguments.pairs, scratch)
            except Failed as error:
                result.failed(title, error)
                continue
            result.rows += contest.rows("tree", peer.name, put_command=peer.put, get_command=peer.get)
    return result.report()


if __name__ == "__main__":
    suite.run(main)
