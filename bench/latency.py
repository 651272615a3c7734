"""Measures how long small requests wait while big ones run: `ping`, `get` of 1 KB and `list` beside eight puts.

The puts are of one file by path, each on a connection of its own, started anew as they end. The small requests go one
after the other over connections of their own, in turns, with a little pause between them.
"""

from __future__ import annotations

import argparse
import os
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import suite
from corpora import FILES, corpus, warm
from daemon import Daemon, Failed, quote
from figures import Row, percentile

SAMPLES, QUICK_SAMPLES = 1000, 100
SMALL_BYTES = 1000
SMALL_FILES = 100
PAUSE_SECONDS = 0.002
RECEIVE_BYTES = 1 << 16


class Probe:
    """A request that is sent again and again over one connection."""

    def __init__(self, name: str, daemon: Daemon, line: str, whole: Callable[[bytes], bool]) -> None:
        self.name = name
        self.seconds: list[float] = []
        self._request = line.encode() + b"\n"
        self._whole = whole
        self._sock = daemon.connect()
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self) -> None:
        """Send it once and wait for its reply; Failed when that is wrong."""
        begin = time.perf_counter()
        self._sock.sendall(self._request)
        reply = b""
        while not self._whole(reply):
            piece = self._sock.recv(RECEIVE_BYTES)
            reply += piece
            if not piece or reply.startswith(b"ERR"):
                raise Failed(f"{self.name}: {reply!r}")
        self.seconds.append(time.perf_counter() - begin)

    def take(self) -> list[float]:
        """The samples so far; from now on new ones are collected."""
        taken, self.seconds = self.seconds, []
        return taken

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        self._sock.close()


def probes(daemon: Daemon, stack: ExitStack) -> list[Probe]:
    """The small requests, and the small files that they want."""
    content = os.urandom(SMALL_BYTES)
    with daemon.connect() as sock, sock.makefile("rb") as replies:
        for number in range(SMALL_FILES):
            sock.sendall(b"put - name=small-%d size=%d\n" % (number, SMALL_BYTES) + content)
            if not (reply := replies.readline()).startswith(b"OK"):
                raise Failed(f"put: {reply!r}")
    frame = b"DATA %d\n" % SMALL_BYTES + content + b"OK get "
    return [
        stack.enter_context(Probe("ping", daemon, "ping", lambda reply: reply == b"OK ping\n")),
        stack.enter_context(
            Probe("get of 1 KB", daemon, "get small-7 -", lambda got: got.startswith(frame) and got[-1:] == b"\n")
        ),
        stack.enter_context(
            Probe(
                f"list of {SMALL_FILES} files",
                daemon,
                "list small-*",
                lambda got: b"\nOK list " in got and got[-1:] == b"\n",
            )
        ),
    ]


def sample(asked: list[Probe], count: int) -> None:
    """Ask each so many times."""
    for _ in range(count):
        for probe in asked:
            probe.ask()
            time.sleep(PAUSE_SECONDS)


def put_until(daemon: Daemon, file: Path, name: str, stop: threading.Event) -> int:
    """Put a file under a name, and again as soon as it is stored; how often, the last time counted."""
    times = 0
    while not stop.is_set():
        daemon.ask(f"put {quote(file)} name={name} replace=yes")
        times += 1
    return times


def measure(subject: str, arguments: argparse.Namespace) -> suite.Result:
    """Sample at rest, then beside the puts."""
    settings = suite.settings(arguments)
    result = suite.Result("latency", subject, arguments, settings)
    file = corpus(subject, arguments.cache, arguments.quick)
    count = arguments.samples or (QUICK_SAMPLES if arguments.quick else SAMPLES)
    stop = threading.Event()
    with (
        suite.scratch_directory(arguments.dir) as scratch,
        Daemon(scratch, [scratch, file.parent], **settings) as daemon,
        ExitStack() as stack,
        ThreadPoolExecutor(arguments.puts) as pool,
    ):
        warm(file)
        asked = probes(daemon, stack)
        suite.say(f"{count} times each, at rest")
        sample(asked, count)
        at_rest = {probe.name: probe.take() for probe in asked}
        suite.say(f"{count} times each, beside {arguments.puts} puts of {subject}")
        begin = time.perf_counter()
        puts = [pool.submit(put_until, daemon, file, f"big-{number}", stop) for number in range(arguments.puts)]
        try:
            sample(asked, count)
        finally:
            stop.set()
        seconds = time.perf_counter() - begin
        suite.say("waiting for the puts to end")
        times = sum(put.result() for put in puts)
    suite.say(f"{seconds:.1f} s, in which {times} puts began")
    for probe in asked:
        for when, samples in ((f"beside {arguments.puts} puts", probe.seconds), ("at rest", at_rest[probe.name])):
            result.rows += rows(f"{probe.name} {when}", samples)
    return result


def rows(name: str, seconds: list[float]) -> list[Row]:
    """The 99th percentile of samples, with the median for comparison, in milliseconds."""
    milliseconds = [1000 * each for each in seconds]
    details = {"milliseconds": milliseconds}
    extremes = [min(milliseconds), max(milliseconds)]
    return [
        Row(f"p99 of {name}", percentile(milliseconds, 99), extremes, unit="ms", details=details),
        Row(f"p50 of {name}", median(milliseconds), extremes, unit="ms"),
    ]


def parse() -> argparse.Namespace:
    """The command line."""
    parser = suite.daemon_options(suite.options("Measure how long small requests wait beside big puts.", pairs=False))
    parser.add_argument("--corpus", choices=FILES, default="linux", help="what is put (%(default)s)")
    parser.add_argument("--puts", type=int, default=8, metavar="N", help="at once (%(default)s)")
    parser.add_argument("--samples", type=int, metavar="N", help=f"({SAMPLES}, with --quick {QUICK_SAMPLES})")
    return suite.parse(parser)


def main() -> int:
    """Measure; 1 if something failed."""
    arguments = parse()
    return measure(arguments.corpus, arguments).report()


if __name__ == "__main__":
    suite.run(main)
