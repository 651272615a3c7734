"""A connection for one thread: lines and content by blocking calls, sending that never keeps answers from being taken.

Knows sockets, lines and frames of bytes, never what they mean, and no event loop; `abort` may come from any thread.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pfsd import protocol
from pfsd.exchange import Buffer, CannotConnect, ConnectionLost, standstill
from pfsd.protocol import MAX_UNTERMINATED, Word

#: Room for what is received: several frames of small files, and still in a core's cache.
ROOM = 512 << 10
#: A connection to a machine that is up takes milliseconds.
CONNECT_SECONDS = 10.0

Address = Path | tuple[str, int]
#: What a socket raises that does not wait; with TLS, reading may have to wait for room to write.
_NOT_NOW = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Link:
    """A connection for one thread: lines and content out of one buffer, sending that never blocks receiving."""

    def __init__(
        self,
        where: Address,
        token: bytes | None,
        tls: ssl.SSLContext | None = None,
        timeout: float | None = None,
    ) -> None:
        """Connect, with TLS if there is a context for it, and show the token. Raises CannotConnect, AuthError.

        With `timeout`, ConnectionTimedOut ends what waits when for so many seconds no byte moves, not even for a ping.
        """
        self._timeout = timeout
        self._socket = _connect(where, tls)
        self._view = memoryview(bytearray(ROOM))
        self._begin = self._end = 0  # of what was received and not taken
        self._poll = select.poll()
        try:
            if token is not None:
                self._authenticate(token)
        except BaseException:
            self.close()
            raise

    def _authenticate(self, token: bytes) -> None:
        self.send(protocol.format_request("auth", (Word(token, quoted=True),)), lambda: None)
        while (line := self.line()) is None:
            self.fill()
        reply = protocol.parse_reply(line)
        if reply is not None and reply.word == "ERR":
            raise reply.error()

    def abort(self) -> None:
        """End the connection from any thread: whoever waits for it gets ConnectionLost."""
        with suppress(OSError):
            # Not that of `SSLSocket`: it first forgets that there is TLS, and the other thread may be about to send.
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def end(self) -> bool:
        """Send no more, if that can be said: requests that are complete are answered, one that is cut short is not.

        With TLS it cannot: `ssl` throws away what comes behind its own end.
        """
        if isinstance(self._socket, ssl.SSLSocket):
            return False
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        return True

    def close(self) -> None:
        """Close the connection; what still runs on it is given up."""
        self._socket.close()

    # --- sending ---

    def send(self, content: Buffer, received: Callable[[], None]) -> None:
        """Send all; `received` is called when something came meanwhile, which must be taken. ConnectionLost."""
        view = memoryview(content)
        while len(view):
            try:
                view = view[self._socket.send(view) :]
            except _NOT_NOW:
                self._make_room(received)
            except OSError as error:
                self._take_last(received)
                raise _lost(error) from None

    def send_file(self, file: int, offset: int, count: int, received: Callable[[], None]) -> int:
        """Send a range of an open file; returns the bytes sent, fewer where it ends or cannot be read.

        Raises the file's OSError if nothing was sent before it, ConnectionLost.
        """
        end = offset + count
        at = offset
        while at < end:
            try:
                if isinstance(self._socket, ssl.SSLSocket):
                    raise OSError(errno.EINVAL, "")  # the kernel cannot encrypt
                sent = os.sendfile(self._socket.fileno(), file, at, end - at)
            except BlockingIOError:
                self._make_room(received)
                continue
            except OSError as error:
                if error.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN, errno.ETIMEDOUT):
                    self._take_last(received)
                    raise _lost(error) from None
                if error.errno not in (errno.EINVAL, errno.ENOSYS):
                    if at > offset:
                        break
                    raise
                piece = os.pread(file, min(end - at, ROOM), at)  # a file system that cannot do it
                self.send(piece, received)
                sent = len(piece)
            if not sent:
                break
            at += sent
        return at - offset

    def _make_room(self, received: Callable[[], None]) -> None:
        # The daemon may read no more until its answers are taken.
        # With TLS there may be bytes and nothing in them: to wait for more then would be to wait for each other.
        if self._wait(select.POLLIN | select.POLLOUT) & ~select.POLLOUT and self.fill(wait=False):
            received()

    def _take_last(self, received: Callable[[], None]) -> None:
        # What came before the end may say why it came: `received` raises that.
        with suppress(ConnectionLost):
            while self.fill(wait=False):
                pass
        received()

    def _wait(self, events: int, ask: bool = False) -> int:
        """Wait for the socket; with `ask`, where a request may be sent, a ping makes a silent daemon speak."""
        self._poll.register(self._socket, events)
        if self._timeout is None:
            return self._poll.poll()[0][1]
        half = self._timeout * 500  # in milliseconds
        ready = self._poll.poll(half)
        if not ready:
            if ask:
                self._ask()
            ready = self._poll.poll(half)
        if not ready:
            raise standstill(self._timeout)
        return ready[0][1]

    def _ask(self) -> None:
        # Its tag is nobody's, so the answer is passed over.
        with suppress(OSError):
            self._socket.send(b"@ping ping\n")

    # --- receiving ---

    def fill(self, wait: bool = True) -> bool:
        """Receive something; False when nothing is there and `wait` is not set. ConnectionLost at the end."""
        self._move()
        while True:
            try:
                count = self._socket.recv_into(self._view[self._end :])
            except _NOT_NOW:
                if not wait:
                    return False
                self._wait(select.POLLIN, ask=True)
                continue
            except OSError as error:
                raise _lost(error) from None
            if not count:
                raise ConnectionLost("the daemon closed the connection")
            self._end += count
            return True

    def _move(self) -> None:
        """Make room behind what was received."""
        held = self._end - self._begin
        if not held:
            self._begin = self._end = 0
        elif self._end > len(self._view) // 2:
            if held > len(self._view) // 2:
                if held > MAX_UNTERMINATED:
                    raise nonsense()
                old, self._view = self._view, memoryview(bytearray(2 * len(self._view)))
                self._view[:held] = old[self._begin : self._end]
            else:
                self._view[:held] = bytes(self._view[self._begin : self._end])
            self._begin, self._end = 0, held

    def line(self) -> bytes | None:
        """Take a line without its ending; None when no whole one has come."""
        end = self._view.obj.find(b"\n", self._begin, self._end)  # type: ignore[attr-defined]
        if end < 0:
            return None
        line = bytes(self._view[self._begin : end])
        self._begin = end + 1
        return line

    def content(self, most: int) -> memoryview:
        """Take up to `most` bytes of what has come; valid until the next `fill`."""
        begin = self._begin
        self._begin = min(begin + most, self._end)
        return self._view[begin : self._begin]


def _connect(where: Address, tls: ssl.SSLContext | None) -> socket.socket:
    try:
        if isinstance(where, Path):
            connected = socket.socket(socket.AF_UNIX)
            connected.settimeout(CONNECT_SECONDS)
            connected.connect(str(where))
        else:
            connected = socket.create_connection(where, CONNECT_SECONDS)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                connected = tls.wrap_socket(connected, server_hostname=where[0])
    except OSError as error:
        raise CannotConnect(f"no daemon answers at a further connection: {error.strerror or error}") from None
    connected.setblocking(False)
    return connected


def _lost(error: OSError) -> ConnectionLost:
    return ConnectionLost(f"the connection to the daemon broke: {error.strerror or error}")


def nonsense() -> ConnectionLost:
    """The error for an answer that is none."""
    return ConnectionLost("what answers does not speak this protocol")
