"""Measures small durable puts, many clients at once: pfsd against Redis that syncs before each answer.

One process without threads asks both sides in turns, over as many connections as wanted, each with one request under
way. So what the asking costs is the same on both sides, and the sides differ only in what they do about it. New names
all the time; the content is incompressible.
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import suite
from daemon import Daemon, Failed, fields
from figures import Pairs, ratio_row

REQUESTS, QUICK_REQUESTS = 5000, 300
#: Names that are read back and compared after each round.
SAMPLES = 5
RECEIVE_BYTES = 1 << 16

Address = tuple[str, int]
#: The bytes of a request that stores `content` under this number.
Encode = Callable[[int], bytes]


def load(address: Address, encode: Encode, numbers: range, connections: int, good: bytes) -> float:
    """Send a request for each number, as many under way as there are connections; the seconds until all are answered.

    Failed at an answer that does not begin with `good`.
    """
    waiting = iter(numbers)
    poller = select.epoll()
    sockets = {}
    for _ in range(connections):
        sock = socket.create_connection(address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        poller.register(sock, select.EPOLLIN)
        sockets[sock.fileno()] = sock
    try:
        begin = time.perf_counter()
        for sock, number in zip(sockets.values(), waiting, strict=False):
            sock.sendall(encode(number))
        left = len(numbers)
        while left:
            for file, _ in poller.poll():
                sock = sockets[file]
                reply = sock.recv(RECEIVE_BYTES)
                if not (reply.startswith(good) and reply.endswith(b"\n")):
                    raise Failed(f"a request was answered {reply!r}")
                left -= 1
                for number in waiting:
                    sock.sendall(encode(number))
                    break
        return time.perf_counter() - begin
    finally:
        poller.close()
        for sock in sockets.values():
            sock.close()


# --- Redis --------------------------------------------------------------------------------------


@contextmanager
def redis(home: Path) -> Iterator[Address]:
    """A redis-server of our own, which appends each change to a file and syncs it before it answers."""
    home.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    options = f"--bind 127.0.0.1 --port {port} --appendonly yes --appendfsync always --auto-aof-rewrite-percentage 0"
    command = ["redis-server", *options.split(), "--save", "", "--dir", str(home), "--logfile", str(home / "log")]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        await_redis(process, port)
        yield ("127.0.0.1", port)
    finally:
        process.terminate()
        process.wait()


def await_redis(process: subprocess.Popen[bytes], port: int) -> None:
    """Wait until it answers; Failed if it ends or takes 10 s."""
    for _ in range(200):
        try:
            if ask_redis(("127.0.0.1", port), b"PING\r\n") == b"+PONG\r\n":
                return
        except ConnectionRefusedError:
            if process.poll() is not None:
                break
            time.sleep(0.05)
    raise Failed("redis-server did not start")


def ask_redis(address: Address, request: bytes) -> bytes:
    """The reply to one request."""
    with socket.create_connection(address) as sock:
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        reply = b""
        while piece := sock.recv(RECEIVE_BYTES):
            reply += piece
    return reply


def command(*words: bytes) -> bytes:
    """A request to Redis."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


# --- rounds -------------------------------------------------------------------------------------


class Round:
    """The contents of one round, and how each side stores and returns them."""

    def __init__(self, numbers: range, size: int, connections: int) -> None:
        self.numbers = numbers
        self._connections = connections
        self._content = os.urandom(size)
        self._pfsd_tail = b" size=%d\n" % size + self._content
        self._redis_tail = b"\r\n$%d\r\n%s\r\n" % (size, self._content)

    def pfsd(self, daemon: Daemon) -> float:
        """The seconds that pfsd takes for all; checked."""
        seconds = load(daemon.address, self._put, self.numbers, self._connections, b"OK put ")
        stored = fields(daemon.ask("list")[-1])["files"]
        if int(stored) != self.numbers.stop:
            raise Failed(f"pfsd lists {stored} files in place of {self.numbers.stop}")
        for number in self.numbers[:SAMPLES]:
            with daemon.connect() as sock, sock.makefile("rb") as reply:
                sock.sendall(b"cat %012d.bin\n" % number)
                if reply.read() != self._content:
                    raise Failed(f"pfsd returned wrong bytes for {number}")
        return seconds

    def redis(self, address: Address) -> float:
        """The seconds that Redis takes for all; checked."""
        seconds = load(address, self._set, self.numbers, self._connections, b"+OK\r\n")
        if (size := ask_redis(address, command(b"DBSIZE"))) != b":%d\r\n" % self.numbers.stop:
            raise Failed(f"redis holds {size!r} keys in place of {self.numbers.stop}")
        for number in self.numbers[:SAMPLES]:
            reply = ask_redis(address, command(b"GET", b"%012d.bin" % number))
            if reply != b"$%d\r\n%s\r\n" % (len(self._content), self._content):
                raise Failed(f"redis returned wrong bytes for {number}")
        return seconds

    def _put(self, number: int) -> bytes:
        return b"put - name=%012d.bin%s" % (number, self._pfsd_tail)

    def _set(self, number: int) -> bytes:
        return b"*3\r\n$3\r\nSET\r\n$16\r\n%012d.bin%s" % (number, self._redis_tail)


def measure(arguments: argparse.Namespace) -> suite.Result:
    """All rounds."""
    settings = suite.settings(arguments)
    versions = {"redis-server": suite.first_line("redis-server --version")}
    subject = f"{arguments.size} bytes, {arguments.connections} connections"
    result = suite.Result("small", subject.replace(", ", "-").replace(" ", "-"), arguments, settings, versions=versions)
    requests = arguments.requests or (QUICK_REQUESTS if arguments.quick else REQUESTS)
    pairs = Pairs()
    with (
        suite.scratch_directory(arguments.dir) as scratch,
        Daemon(scratch, [scratch], **settings) as daemon,
        redis(scratch / "redis") as address,
    ):
        for number in range(arguments.pairs):
            suite.say(f"{requests} puts of {subject}: pair {number + 1} of {arguments.pairs}")
            now = Round(range(requests * number, requests * (number + 1)), arguments.size, arguments.connections)
            turns = [(pairs.ours, lambda now=now: now.pfsd(daemon)), (pairs.theirs, lambda now=now: now.redis(address))]
            for seconds, turn in turns if number % 2 == 0 else reversed(turns):
                os.sync()
                seconds.append(turn())
    result.rows.append(ratio_row(f"put of {arguments.size} bytes, redis", pairs, requests, unit="1/s"))
    return result


def parse() -> argparse.Namespace:
    """The command line."""
    parser = suite.daemon_options(suite.options("Measure small durable puts next to Redis with appendfsync always."))
    parser.add_argument("--size", type=int, default=4096, metavar="BYTES", help="(%(default)s)")
    parser.add_argument("--connections", type=int, default=50, metavar="N", help="(%(default)s)")
    parser.add_argument("--requests", type=int, metavar="N", help=f"({REQUESTS}, with --quick {QUICK_REQUESTS})")
    return suite.parse(parser)


def main() -> int:
    """Measure; 1 if something failed."""
    arguments = parse()
    if not shutil.which("redis-server"):
        raise Failed("redis-server is not installed: on Debian, apt-get install redis-server")
    return measure(arguments).report()


if __name__ == "__main__":
    suite.run(main)
