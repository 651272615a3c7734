"""The bytes of one client connection: lines and content in, replies and content out, each with back pressure.

Knows sockets and lines, never commands. Content is received straight into memory that the reader names, and
sent straight from memory that is not touched until the system has taken it.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import cast

from pfsd.errors import Cancelled, UsageError
from pfsd.protocol import Flood, Line, LineReader, LongLine, Tls

#: Most bytes of lines, and of content behind them, that are received before somebody looks at them.
MAX_PENDING = 256 << 10
#: A read takes at least this many.
LEAST_READ = 4 << 10
#: Content that nobody wants is received in pieces of this size.
SCRATCH = 64 << 10
#: After its last byte a connection takes what still comes for so long, before it closes.
LINGER_SECONDS = 1.0
#: Frames up to this many bytes are copied, and their writers need not wait until they have left.
COPIED_FRAME = 64 << 10
#: Replies that come in the same turn of the loop leave together, up to this many bytes.
MAX_QUEUED = 64 << 10


class ConnectionLost(Cancelled):
    """The client is gone, or stood still for too long."""


class Connection(asyncio.BufferedProtocol):
    """One client. `lines` and `fill` take turns and are for one reader; any number of tasks may write.

    `idle_seconds` bounds how long the connection waits for a client that moves no byte, `line_seconds` how long
    a line may take to arrive; 0 is no bound.
    """

    #: Where lines are received. One for all connections: the loops fill it and say so in one step.
    _buffer = memoryview(bytearray(MAX_PENDING))

    def __init__(self, idle_seconds: float, line_seconds: float) -> None:
        self._idle_seconds = idle_seconds or None
        self._line_seconds = line_seconds or None
        self._lines = LineReader()
        self._target: memoryview | None = None  # where content goes, while `fill` waits
        self._filled = 0
        self._news: asyncio.Future[None] | None = None  # resolved when bytes, end of input or loss come
        self._deadline: float | None = None  # of the wait for news
        self._patience = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._reading = True  # the loops begin to read after `connection_made`, whatever it says
        self._ended = False
        self._half_closed = False
        self._lost = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._gone = asyncio.Event()
        self._queued: list[bytes] = []  # replies that leave at the end of this turn of the loop
        self._queued_bytes = 0
        self.transport: asyncio.Transport
        self.received = 0

    # --- asyncio's side ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        # Paused by the first byte that has to wait, and resumed only when empty: as long as there is one, it is in
        # memory that was handed over.
        self.transport.set_write_buffer_limits(high=0)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._target is not None:
            return self._target
        return self._buffer[: max(LEAST_READ, MAX_PENDING - self._lines.pending)]

    def buffer_updated(self, nbytes: int) -> None:
        self.received += nbytes
        if self._target is None:
            self._lines.feed(self._buffer[:nbytes])
            self._wake()
            if self._lines.pending >= MAX_PENDING:
                self._set_reading(False)
            return
        self._filled += nbytes
        self._target = self._target[nbytes:]
        if not len(self._target):
            self._set_reading(False)
            self._wake()

    def eof_received(self) -> bool:
        self._ended = self._half_closed = True
        self._wake()
        return True  # half-close: answers still go out

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = self._lost = True
        if self._timer is not None:
            self._timer.cancel()
        self._gone.set()
        self._wake()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- facts ---

    @property
    def lost(self) -> bool:
        """Whether the client is gone for good, so that nothing can be answered."""
        return self._lost

    @property
    def half_closed(self) -> bool:
        """Whether the client itself has ended the input, which was not just cut."""
        return self._half_closed

    @property
    def idle_seconds(self) -> float:
        """How long it waits for a client that moves no byte; 0 is for ever."""
        return self._idle_seconds or 0

    async def wait_lost(self) -> None:
        """Wait until the client is gone for good."""
        await self._gone.wait()

    @property
    def is_local(self) -> bool:
        """Whether the peer is on this machine: a loopback address or a Unix socket."""
        peer = self.transport.get_extra_info("peername")
        if not isinstance(peer, tuple):
            return True
        host = str(peer[0])
        return host.startswith(("127.", "::ffff:127.")) or host == "::1"

    @property
    def host(self) -> str:
        """The peer's address without its port; `unix` of a Unix socket."""
        peer = self.transport.get_extra_info("peername")
        return str(peer[0]) if isinstance(peer, tuple) else "unix"

    @property
    def peer(self) -> str:
        """The peer's address, for logs."""
        peer = self.transport.get_extra_info("peername")
        return f"{peer[0]}:{peer[1]}" if isinstance(peer, tuple) else "unix"

    def set_keepalive(self) -> None:
        """Notice peers whose machine is gone."""
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    # --- reading ---

    async def lines(self, on_idle: Callable[[], bool]) -> AsyncIterator[Line | LongLine]:
        """The lines that arrive, until the end of input or a flood; the beginning of TLS is a UsageError.

        ConnectionLost when the client is idle, unless `on_idle()` says that it waits for an answer.
        UsageError for a line that the end of input cut off or that took too long.
        """
        loop = asyncio.get_running_loop()
        started: float | None = None  # when the line being received began
        while True:
            event = self._lines.next_event()
            if isinstance(event, Flood):
                return
            if isinstance(event, Tls):
                raise UsageError("this listener speaks plain text, not TLS; the connection is closed")
            if event is not None:
                started = None
                yield event
                continue
            if self._ended:
                if self._lines.unterminated and not self._lost:
                    raise UsageError("the last line was cut off by the end of input and was not executed")
                return
            if not self._lines.unterminated:
                started = None
                try:
                    await self._wait(self._idle_seconds)
                except ConnectionLost:
                    if not on_idle():
                        raise
                continue
            started = started or loop.time()
            left = None if self._line_seconds is None else started + self._line_seconds - loop.time()
            try:
                await self._wait(left)
            except ConnectionLost:
                raise UsageError(f"the line did not end within {self._line_seconds:g} seconds") from None

    @property
    def buffered(self) -> int:
        """Bytes that have been received and can be taken without waiting."""
        return self._lines.pending

    def take(self, view: memoryview) -> None:
        """Fill a view with content that is `buffered`."""
        self._lines.take(view)

    async def fill(self, view: memoryview) -> int:
        """Receive content until the view is full; fewer bytes only at the end of input, or after `stop_filling`."""
        buffered = self._lines.take(view)
        if buffered == len(view):
            return buffered
        self._target, self._filled = view[buffered:], buffered
        try:
            while self._target is not None and len(self._target) and not self._ended:
                before = self.received
                try:
                    await self._wait(self._idle_seconds)
                except ConnectionLost:
                    if self.received == before:
                        raise
            return self._filled
        finally:
            self._target = None

    def stop_filling(self) -> None:
        """The memory given to `fill` is no longer its to write to; `fill` returns."""
        self._target = None
        self._wake()

    async def discard(self, count: int) -> bool:
        """Receive content and throw it away; whether all of it came."""
        scratch = memoryview(bytearray(min(count, SCRATCH)))
        while count:
            got = await self.fill(scratch[: min(count, SCRATCH)])
            if not got:
                return False
            count -= got
        return True

    async def discard_all(self) -> None:
        """Throw away everything up to the end of input."""
        while await self.discard(SCRATCH):
            pass

    async def _wait(self, seconds: float | None) -> None:
        """Wait for bytes, the end of input or the loss of the connection. ConnectionLost when it takes too long."""
        loop = asyncio.get_running_loop()
        self._news = loop.create_future()
        if seconds is not None:
            self._deadline, self._patience = loop.time() + seconds, seconds
            # A timer for each wait would cost more than the wait: one that is set for earlier sets itself anew.
            if self._timer is None or self._timer.when() > self._deadline:
                self._set_timer()
        self._set_reading(True)
        try:
            await self._news
        finally:
            self._news, self._deadline = None, None

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        assert self._deadline is not None
        self._timer = asyncio.get_running_loop().call_at(self._deadline, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._deadline is None or self._news is None or self._news.done():
            return
        if asyncio.get_running_loop().time() < self._deadline:
            self._set_timer()
        else:
            self._news.set_exception(ConnectionLost(f"no byte from the client for {self._patience:g} seconds"))

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)

    def _set_reading(self, wanted: bool) -> None:
        if wanted == self._reading or self._ended:
            return
        self._reading = wanted
        if wanted:
            self.transport.resume_reading()
        else:
            self.transport.pause_reading()

    # --- writing ---

    async def write(self, data: bytes) -> None:
        """Send reply bytes, once those before them are on their way."""
        if not self._writable.is_set() or self._lost:
            await self.flushed()
        self._queue(data)

    async def write_frame(self, header: bytes, content: memoryview) -> None:
        """Send a frame; when this returns, the content's memory may change."""
        if not self._writable.is_set() or self._lost:
            await self.flushed()
        if len(content) <= COPIED_FRAME:
            self._queue(header + bytes(content))
            return
        await self.flushed()
        if header:
            self.transport.write(header)
        self.transport.write(content)
        try:
            await self.flushed()
        except asyncio.CancelledError:
            self.abort()  # the rest would be sent from memory that is someone else's by then
            raise

    def _queue(self, data: bytes) -> None:
        if not self._queued:
            asyncio.get_running_loop().call_soon(self._send_queued)
        self._queued.append(data)
        self._queued_bytes += len(data)
        if self._queued_bytes > MAX_QUEUED:
            self._send_queued()

    def _send_queued(self) -> None:
        if self._queued and not self._lost:
            self.transport.write(b"".join(self._queued))
        self._queued.clear()
        self._queued_bytes = 0

    async def flushed(self) -> None:
        """Wait until all has left. ConnectionLost when the client takes nothing for too long."""
        self._send_queued()
        while not self._writable.is_set():
            before = self.transport.get_write_buffer_size()
            try:
                async with asyncio.timeout(self._idle_seconds):
                    await self._writable.wait()
            except TimeoutError:
                if not self._lost and self.transport.get_write_buffer_size() >= before:
                    self.transport.abort()
                    raise ConnectionLost(f"the client took nothing for {self._idle_seconds:g} seconds") from None
        if self._lost:
            raise ConnectionLost("the client is gone")

    def end_input(self) -> None:
        """Read no more, as if the client had said all it has to say."""
        self._set_reading(False)
        self._lines = LineReader()
        self._ended = True
        self._wake()

    async def say_end(self) -> None:
        """Send what is queued and the end, then take what still comes for a moment.

        To close with input unread would be a reset, which can overtake the last answers.
        """
        await self.flushed()
        if not self._ended:
            self.transport.write_eof()
            with suppress(TimeoutError):
                async with asyncio.timeout(LINGER_SECONDS):
                    await self.discard_all()

    def close(self) -> None:
        """Close once everything queued is sent."""
        self._send_queued()
        self.transport.close()

    def abort(self) -> None:
        """Close at once; what is queued is lost and the peer sees a reset."""
        if self._lost:
            return
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            # Linger 0 makes the close a reset, so that the peer cannot take a cut for the end.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.transport.abort()


class Accepted(Connection):
    """A connection that is among the arriving ones until it is made, which it reports, or lost."""

    def __init__(
        self,
        idle_seconds: float,
        line_seconds: float,
        arriving: set[asyncio.BufferedProtocol],
        made: Callable[[Connection], None],
    ) -> None:
        super().__init__(idle_seconds, line_seconds)
        self._arriving = arriving
        self._made = made
        arriving.add(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.set_keepalive()
        self._arriving.discard(self)
        self._made(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._arriving.discard(self)
        super().connection_lost(exc)
