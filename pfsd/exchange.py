"""The client's end of a connection: many exchanges (a request and its reply) at once, told apart by their tags.

It knows lines, frames and tags, never what a verb means. Content is received straight into the memory that is
handed out, so a byte of a frame is copied once, by the system; only what came together with lines is copied twice.

All exchanges share one stream of bytes. An exchange whose content nobody takes holds at most BACKLOG bytes of it,
then nothing more is received for any exchange of the connection until something is taken. Rows are kept without a
bound (about their length on the wire): a loop over a long `list` may use the same connection for other requests.
"""

from __future__ import annotations

import asyncio
import select
from collections import deque
from collections.abc import Callable, Mapping
from typing import cast

from pfsd import protocol
from pfsd.aio import finish
from pfsd.errors import PfsdError
from pfsd.protocol import MAX_FRAME, MAX_LINE, MAX_UNTERMINATED, Reply, Value, Word

#: Content an exchange holds before receiving stops: enough to keep a writer of files busy.
BACKLOG = 4 * MAX_FRAME
#: Bytes queued for the socket before senders wait. Two frames: one under way, one waiting.
WRITE_HIGH = 2 * MAX_FRAME
WRITE_LOW = MAX_FRAME // 2
#: What is queued gets this long to leave when a connection is closed.
CLOSE_SECONDS = 5.0
#: Room for lines; a line longer than that makes it grow.
LINE_ROOM = 2 * MAX_LINE

Buffer = bytes | bytearray | memoryview


class ConnectionLost(PfsdError):
    """The connection to the daemon broke, or what came over it is no reply; what was running there is unknown."""

    code = "connection-lost"


class CannotConnect(ConnectionLost):
    """No daemon answers at the address."""

    code = "cannot-connect"


class TimedOut(PfsdError):
    """Nothing moved for as long as the caller was ready to wait."""

    code = "timed-out"


class ConnectionTimedOut(ConnectionLost, TimedOut):
    """The daemon, or the way to it, stands still; what was running there is unknown."""

    code = "timed-out"


def standstill(seconds: float) -> ConnectionTimedOut:
    """The error for a daemon that has kept still for so long."""
    return ConnectionTimedOut(f"the daemon has not moved a byte for {seconds:g} seconds, nor answered a ping")


class ConnectTimedOut(CannotConnect, TimedOut):
    """Whoever has the address lets a newcomer wait."""

    code = "timed-out"


class Exchange:
    """One request on its way and what has come back so far. One task reads it, one task sends its content."""

    def __init__(self, line: Multiplexer, tag: bytes) -> None:
        self._line = line
        self._tag = tag
        self._items: deque[bytes | bytearray] = deque()  # rows as bytes, content as bytearray
        self._held = 0
        self._news: asyncio.Future[None] | None = None
        self._dropped = False
        #: The final line, or the error that took its place.
        self.final: asyncio.Future[Reply | PfsdError] = asyncio.get_running_loop().create_future()

    # --- receiving ---

    async def next(self) -> Reply | bytearray | None:
        """The next row, or piece of content; None when the reply has ended.

        Raises the error that an ERR line stands for, or ConnectionLost.
        """
        while not self._items:
            if self.final.done():
                self.result()
                return None
            await self._wait()
        item = self._items.popleft()
        if isinstance(item, bytearray):
            self._release(len(item))
            return item
        row = protocol.parse_reply(item)
        assert row is not None  # comments are not kept
        return row

    @property
    def content_ready(self) -> bool:
        """Whether `next` would return content, and without waiting."""
        return bool(self._items) and isinstance(self._items[0], bytearray)

    def result(self) -> Reply:
        """The OK line, once `final` is done. Raises as `next`."""
        final = self.final.result()
        if isinstance(final, Reply) and final.word == "OK":
            return final
        raise final if isinstance(final, PfsdError) else final.error()

    async def answer(self) -> Reply:
        """Wait for the OK line; rows and content that were not taken are thrown away. Raises as `next`."""
        self.drop()
        await asyncio.wait({self.final})
        return self.result()

    def drop(self) -> None:
        """Nobody wants the rest: it is thrown away as it comes. The protocol has no way to stop it."""
        self._dropped = True
        self._items.clear()
        self._release(self._held)

    async def _wait(self) -> None:
        self._news = asyncio.get_running_loop().create_future()
        try:
            await self._news
        finally:
            self._news = None

    def _release(self, size: int) -> None:
        self._held -= size
        if self._held < BACKLOG:
            self._line.unblock(self)

    # --- sending content ---

    async def send_frame(self, content: Buffer) -> None:
        """Send content, at most MAX_FRAME bytes, once there is room; its memory must not change afterwards."""
        await self._line.send(protocol.format_frame(len(content), self._tag, protocol.LF), content)

    def end_content(self) -> None:
        """Say that all content was sent."""
        self._line.write(protocol.format_frame(0, self._tag, protocol.LF))

    def abort_content(self) -> None:
        """Give the upload up, or end the frames of one that failed. Never waits."""
        self._line.write(b"@%b ABORT\n" % self._tag)

    # --- the multiplexer's side ---

    def received_row(self, row: bytes) -> None:
        """A row has come."""
        if not self._dropped:
            self._items.append(row)
            self._wake()

    def received_content(self, content: bytearray) -> None:
        """A frame has come."""
        if self._dropped:
            return
        self._items.append(content)
        self._held += len(content)
        if self._held >= BACKLOG:
            self._line.block(self)
        self._wake()

    def ended(self, final: Reply | PfsdError) -> None:
        """Nothing more will come."""
        if not self.final.done():
            self.final.set_result(final)
        self._wake()

    def _wake(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


class Multiplexer(asyncio.BufferedProtocol):
    """One connection. `start` an exchange; everything else happens there."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self._exchanges: dict[bytes, Exchange] = {}
        self._count = 0
        self._lines = bytearray(LINE_ROOM)
        self._end = 0  # of the bytes received into _lines
        self._frame: bytearray | None = None  # being received
        self._filled = 0
        self._receiver: Exchange | None = None  # of that frame; None throws it away
        self._blocked: set[Exchange] = set()
        self._writable = asyncio.Event()
        self._writable.set()
        self._turn = asyncio.Lock()
        self._reason: PfsdError | None = None  # why no exchange can go on
        self._gone: asyncio.Future[None] = loop.create_future()
        self._transport: asyncio.Transport
        self._written = 0
        #: Bytes received so far.
        self.received = 0
        #: Bytes of content that have come and gone so far.
        self.content = 0
        #: Called with each request that is sent.
        self.on_request: Callable[[], None] = lambda: None

    # --- requests ---

    def start(
        self, verb: str, words: tuple[Word, ...] = (), options: Mapping[str, Value] | None = None, content: Buffer = b""
    ) -> Exchange:
        """Send a request line, with content that follows it at once. Never waits, so content should be short.

        Raises TooLong for a line over the limit, ConnectionLost.
        """
        self._count += 1
        tag = b"%d" % self._count
        line = protocol.format_request(verb, words, options, tag)
        exchange = Exchange(self, tag)
        self.check()
        self._exchanges[tag] = exchange
        self.write(line, content)
        self.on_request()
        return exchange

    def check(self) -> None:
        """Raise ConnectionLost, or what the daemon said, when the connection cannot be used any more."""
        if self._reason is not None:
            raise self._reason

    @property
    def queued(self) -> int:
        """Bytes to be sent for which the system has no room yet."""
        return self._transport.get_write_buffer_size()

    @property
    def sent(self) -> int:
        """Bytes that the system has taken so far."""
        return self._written - self.queued

    @property
    def running(self) -> bool:
        """Whether the daemon owes answers."""
        return bool(self._exchanges)

    @property
    def held_up(self) -> bool:
        """Whether nothing is received, since someone here does not take what has come."""
        return bool(self._blocked)

    @property
    def alive(self) -> bool:
        """Whether the connection can be used, as far as that can be told without asking the daemon.

        Where nothing runs nothing can come but the end, of which the loop may not have heard yet: so ask the system.
        """
        if self._reason is not None or self._transport.is_closing():
            return False
        if self._exchanges:
            return True
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not poll.poll(0)

    def give_up(self, reason: PfsdError) -> None:
        """End all that runs with an error, and the connection."""
        self._fail(reason)
        self._transport.abort()

    async def close(self) -> None:
        """Send what is queued and close; what is running is given up."""
        self._transport.close()
        if self._blocked:
            self._transport.resume_reading()  # else the end is not noticed
            self._blocked.clear()
        done, _ = await asyncio.wait({self._gone}, timeout=CLOSE_SECONDS)
        if not done:
            self._transport.abort()
            await finish(asyncio.ensure_future(asyncio.wait({self._gone})))

    # --- sending ---

    def write(self, line: bytes, content: Buffer = b"") -> None:
        """Queue bytes that must stay together."""
        if self._reason is not None:
            return
        self._written += len(line) + len(content)
        self.content += len(content)
        if len(content) <= MAX_LINE:
            self._transport.write(line + content)
        else:
            self._transport.write(line)
            self._transport.write(content)

    async def send(self, line: bytes, content: Buffer) -> None:
        """As `write`, when there is room; senders take turns. ConnectionLost."""
        async with self._turn:
            await self._writable.wait()
            self.check()
            self.write(line, content)

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # --- back pressure ---

    def block(self, exchange: Exchange) -> None:
        """An exchange holds too much content: receive nothing until it has been taken."""
        if not self._blocked and self._reason is None:
            self._transport.pause_reading()
        self._blocked.add(exchange)

    def unblock(self, exchange: Exchange) -> None:
        """An exchange holds little content."""
        if exchange in self._blocked:
            self._blocked.discard(exchange)
            if not self._blocked and self._reason is None:
                self._transport.resume_reading()

    # --- receiving ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=WRITE_HIGH, low=WRITE_LOW)

    def connection_lost(self, exc: Exception | None) -> None:
        words = f"the connection to the daemon broke: {exc}" if exc else "the daemon closed the connection"
        self._fail(ConnectionLost(words))
        self._writable.set()
        if not self._gone.done():
            self._gone.set_result(None)

    def get_buffer(self, sizehint: int) -> memoryview:
        if self._frame is not None:
            return memoryview(self._frame)[self._filled :]
        if self._end == len(self._lines):
            self._lines += bytes(len(self._lines))
        return memoryview(self._lines)[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        self.received += nbytes
        if self._frame is not None:
            self._filled += nbytes
            self.content += nbytes
            self._end_frame()
            return
        scanned = self._end
        self._end += nbytes
        try:
            self._cut_lines(scanned)
        except (PfsdError, ValueError):
            self._fail(ConnectionLost("what answers does not speak this protocol"))
            self._transport.abort()

    def _cut_lines(self, scan: int) -> None:
        """Handle all complete lines that were received, and the frames among them."""
        start = 0
        while not self._in_frame() and (end := self._lines.find(b"\n", max(start, scan), self._end)) >= 0:
            line = bytes(memoryview(self._lines)[start:end])
            start = end + 1
            self._received(line.removesuffix(b"\r"))
            if self._in_frame():
                start += self._fill_frame(start)
        self._lines[: self._end - start] = self._lines[start : self._end]
        self._end -= start
        if self._end > MAX_UNTERMINATED:
            raise ValueError("no end of line")

    def _in_frame(self) -> bool:
        return self._frame is not None

    def _received(self, line: bytes) -> None:
        tag, rest = protocol.split_tag(line)
        word = rest.partition(b" ")[0]
        if word == b"DATA":
            self._begin_frame(tag, int(rest[5:]))
        elif word in (b"OK", b"ERR"):
            self._received_final(tag, line)
        elif rest and tag is not None and not rest.startswith(b"#") and tag in self._exchanges:
            self._exchanges[tag].received_row(line)

    def _received_final(self, tag: bytes | None, line: bytes) -> None:
        reply = protocol.parse_reply(line)
        assert reply is not None
        if tag is None:
            # Nothing is sent without a tag, so this is about the connection: too many clients, idle for too long.
            self._fail(reply.error() if reply.word == "ERR" else ConnectionLost("an answer to no request came"))
        elif exchange := self._exchanges.pop(tag, None):
            exchange.ended(reply)

    def _begin_frame(self, tag: bytes | None, size: int) -> None:
        if not 0 <= size <= MAX_FRAME:
            raise ValueError("a frame over the limit")
        if size:
            self._frame, self._filled = bytearray(size), 0
            self._receiver = self._exchanges.get(tag) if tag is not None else None

    def _fill_frame(self, start: int) -> int:
        """Content that came together with lines goes where the rest will be received; returns how much."""
        assert self._frame is not None
        count = min(self._end - start, len(self._frame))
        self._frame[:count] = memoryview(self._lines)[start : start + count]
        self._filled = count
        self._end_frame()
        return count

    def _end_frame(self) -> None:
        frame = self._frame
        if frame is None or self._filled < len(frame):
            return
        self._frame = None
        if self._receiver is not None:
            self._receiver.received_content(frame)
            self._receiver = None

    def _fail(self, reason: PfsdError) -> None:
        self._reason = self._reason or reason
        exchanges = list(self._exchanges.values())
        self._exchanges.clear()
        for exchange in exchanges:
            exchange.ended(self._reason)
