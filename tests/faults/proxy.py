"""A bad line between a client and a daemon: slow, in small pieces, cut in the middle, or silent."""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple

PIECE_BYTES = 64 << 10
#: A socket that is closed is let go by the thread that waits for it after this long.
LET_GO_SECONDS = 0.02


class Way(NamedTuple):
    """How bytes travel in one direction.

    After `cut` of them, `end` happens: `reset` (both sides get an RST), `close` (both sides see the end), `half` (only
    the receiver sees the end, the other direction goes on) or `hole` (nothing travels any more, and nobody is told).
    """

    cut: int | None = None
    end: str = "close"
    piece: int = PIECE_BYTES  # bytes that are sent at once
    delay: float = 0.0  # seconds before each piece


UNHARMED = Way()


class Proxy:
    """Connects each client to `address`; `up` is the way to the daemon, `down` the way back."""

    def __init__(self, address: tuple[str, int], up: Way = UNHARMED, down: Way = UNHARMED) -> None:
        self._target = address
        self._ways = up, down
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._start(self._accept)

    @property
    def address(self) -> tuple[str, int]:
        """Where clients connect to."""
        host, port = self._listener.getsockname()
        return host, port

    def _start(self, run: object, *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                daemon = socket.create_connection(self._target)
                for sock in (client, daemon):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    sock.settimeout(LET_GO_SECONDS)
                self._sockets += [client, daemon]
                up, down = self._ways
                self._start(self._pump, client, daemon, up)
                self._start(self._pump, daemon, client, down)

    def _pump(self, source: socket.socket, target: socket.socket, way: Way) -> None:
        left = way.cut
        with suppress(OSError):
            while left is None or left > 0:
                data = _receive(source, PIECE_BYTES if left is None else min(left, PIECE_BYTES))
                if not data:
                    target.shutdown(socket.SHUT_WR)
                    return
                for at in range(0, len(data), way.piece):
                    time.sleep(way.delay) if way.delay else None
                    _send(target, data[at : at + way.piece])
                left = None if left is None else left - len(data)
            self._end(source, target, way.end)

    def _end(self, source: socket.socket, target: socket.socket, how: str) -> None:
        if how == "half":
            target.shutdown(socket.SHUT_WR)
        elif how in ("reset", "close"):
            for sock in (source, target):
                if how == "reset":
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                else:
                    sock.shutdown(socket.SHUT_RDWR)
            for sock in (source, target):
                sock.close()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()  # which accepts, so that there are no more sockets than these
        for sock in [self._listener, *self._sockets]:
            sock.close()
        for thread in self._threads:
            thread.join()


def _receive(sock: socket.socket, count: int) -> bytes:
    while True:
        with suppress(TimeoutError):
            return sock.recv(count)


def _send(sock: socket.socket, data: bytes) -> None:
    while data:
        with suppress(TimeoutError):
            data = data[sock.send(data) :]
