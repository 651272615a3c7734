"""A daemon of the benchmarks' own, and how they talk to it: blocking sockets and plain lines.

The scripts beside this one share it. It never imports the daemon's code: what is measured is `server.py` as a
process, from outside.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).resolve().parent.parent
#: Of comparing and sending; big enough that the calls cost nothing.
PIECE_BYTES = 1 << 20
#: A stop waits for running requests at most 30 s, as configured by default, and then some.
STOP_SECONDS = 60.0

_FIELD = re.compile(rb" ([a-z_0-9]+)=(\S*)")


class Failed(Exception):
    """The daemon, or what it is compared with, did not do what was asked; the words are for people."""


class Daemon:
    """`with Daemon(...)` runs a daemon on a fresh store below `home`, an existing directory."""

    def __init__(self, home: Path, roots: Sequence[Path], **settings: object) -> None:
        self.store = home / "store"
        self.log = home / "log"
        self._config = home / "config.yaml"
        everything = {
            "listen": "127.0.0.1:0",
            "path": str(self.store),
            "roots": [str(root) for root in roots],
            **settings,
        }
        self._config.write_text(json.dumps(everything))  # JSON is YAML

    def __enter__(self) -> Daemon:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "server.py"), "--config", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={key: value for key, value in os.environ.items() if not key.startswith("PFSD_")},
            )
        assert self.process.stdout is not None
        ready = self.process.stdout.readline()
        if not ready:
            self.process.wait()
            raise Failed(f"the daemon did not start: {self.log.read_text().strip()}")
        host, _, port = ready.decode().split()[-1].rpartition(":")
        self.address = (host, int(port))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def ask(self, line: str) -> list[bytes]:
        """The reply lines to one request, the last one is its OK; Failed when it is an ERR."""
        with self.connect() as sock, sock.makefile("rb") as replies:
            sock.sendall(os.fsencode(line) + b"\n")
            rows = [next(replies, b"ERR the connection was closed")]
            while not rows[-1].startswith((b"OK", b"ERR")):
                rows.append(next(replies, b"ERR the connection was closed"))
        if rows[-1].startswith(b"ERR"):
            raise Failed(f"{line}: {rows[-1].decode().strip()}")
        return [row.rstrip(b"\n") for row in rows]

    def connect(self) -> socket.socket:
        """A new connection."""
        return socket.create_connection(self.address)

    def exit(self) -> None:
        """Shut it down as a client would, and wait until its process has ended; Failed unless it ended well."""
        self.ask("exit")
        if code := self.process.wait(STOP_SECONDS):
            raise Failed(f"the daemon ended with {code}: {self.log.read_text().strip()}")


def parse_size(text: str) -> int:
    """Bytes in a size such as 4096 or 64MiB."""
    found = re.fullmatch(r"(\d+)(|KiB|MiB|GiB)", text)
    if not found:
        raise Failed(f"{text} is no size; 64MiB is one")
    return int(found[1]) << {"": 0, "KiB": 10, "MiB": 20, "GiB": 30}[found[2]]


def quote(path: Path) -> str:
    """A path as a word of a request line."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'


def fields(row: bytes) -> dict[str, str]:
    """The plain key=value words of a reply line."""
    return {key.decode(): value.decode() for key, value in _FIELD.findall(row)}


def require_same(one: Path, other: Path) -> None:
    """Failed unless both files hold the same bytes."""
    if one.stat().st_size != other.stat().st_size:
        raise Failed(f"{other} has {other.stat().st_size} bytes, {one} has {one.stat().st_size}")
    with one.open("rb", buffering=0) as first, other.open("rb", buffering=0) as second:
        at = 0
        while piece := first.read(PIECE_BYTES):
            if piece != second.read(PIECE_BYTES):
                raise Failed(f"{other} differs from {one} in the MiB from byte {at}")
            at += len(piece)
