"""The client's multiplexer, fed by hand: which bytes belong to whom, and when receiving stops."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pfsd.errors import Busy, NotFound, PfsdError
from pfsd.exchange import BACKLOG, ConnectionLost, Exchange, Multiplexer
from pfsd.protocol import MAX_FRAME, Reply

FRAME = bytes(range(256)) * 300  # longer than what is received at once with lines


class Transport(asyncio.Transport):
    """Notes what is asked of it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.reading = True
        self.aborted = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def abort(self) -> None:
        self.aborted = True


def connected() -> tuple[Multiplexer, Transport]:
    line, transport = Multiplexer(), Transport()
    line.connection_made(transport)
    return line, transport


def feed(line: Multiplexer, data: bytes, step: int = 1 << 20) -> None:
    """Deliver bytes as a transport does: into the buffer that is offered, at most `step` at a time."""
    while data:
        buffer = line.get_buffer(-1)
        count = min(len(buffer), len(data), step)
        assert count
        buffer[:count] = data[:count]
        buffer.release()
        line.buffer_updated(count)
        data = data[count:]


async def collect(exchange: Exchange) -> list[tuple[str, str] | bytes]:
    items: list[tuple[str, str] | bytes] = []
    while (item := await exchange.next()) is not None:
        items.append((item.word, item.name) if isinstance(item, Reply) else bytes(item))
    return items


@pytest.mark.parametrize("step", [1, 7, 4096, 1 << 20])
@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
async def test_replies_are_told_apart_by_tag(step: int, ending: bytes) -> None:
    line, transport = connected()
    one, two = line.start("get"), line.start("list")
    assert transport.written == b"@1 get\n@2 list\n"
    pieces = [
        b"@1 DATA %d" % len(FRAME) + ending + FRAME,
        b"# for people" + ending,
        ending,
        b"@2 FILE id=1" + ending,
        b"@1 DATA 3" + ending + b"@2 ",
        b"@9 FILE id=7" + ending,
        b"@9 DATA 2" + ending + b"\nx",
        b"@2 WHATEVER now key=1" + ending,
        b"@2 # for people, too" + ending,
        b"@2 OK list" + ending,
        b"@1 DATA 1" + ending + b"\n",
        b"@1 OK get" + ending,
    ]
    feed(line, b"".join(pieces), step)
    assert await collect(one) == [FRAME, b"@2 ", b"\n"]
    assert await collect(two) == [("FILE", ""), ("WHATEVER", "now")]
    assert one.result().name == "get"


async def test_an_error_is_raised_behind_the_rows() -> None:
    line, _ = connected()
    exchange = line.start("stat")
    feed(line, b'@1 FILE id=1\n@1 ERR not-found id=4 message="no such file"\n')
    assert isinstance(await exchange.next(), Reply)
    with pytest.raises(NotFound, match="no such file") as caught:
        await exchange.next()
    assert caught.value.fields == {"id": "4"}


async def test_next_waits() -> None:
    line, _ = connected()
    exchange = line.start("list")
    waiting = asyncio.ensure_future(exchange.next())
    await asyncio.sleep(0)
    assert not waiting.done()
    feed(line, b"@1 OK list\n")
    assert await waiting is None


async def test_what_nobody_takes_stops_the_receiving_and_what_is_taken_resumes_it() -> None:
    line, transport = connected()
    one, two = line.start("get"), line.start("get")
    frame = b"@%d DATA %d\n" + bytes(MAX_FRAME)
    held = BACKLOG // MAX_FRAME
    for count in range(1, held + 1):
        assert transport.reading
        feed(line, frame % (1, MAX_FRAME))
        assert transport.reading == (count < held)
    feed(line, (frame % (2, MAX_FRAME)) * held)  # had been received already
    await one.next()
    assert not transport.reading
    await two.next()
    assert transport.reading


async def test_rows_never_stop_the_receiving() -> None:
    line, transport = connected()
    line.start("list")
    feed(line, (b"@1 FILE id=1 name=" + b"x" * 1000 + b"\n") * (2 * BACKLOG // 1000))
    assert transport.reading


async def test_a_dropped_exchange_holds_nothing() -> None:
    line, transport = connected()
    exchange = line.start("get")
    frame = b"@1 DATA %d\n" % MAX_FRAME + bytes(MAX_FRAME)
    feed(line, frame * (BACKLOG // MAX_FRAME))
    assert not transport.reading
    exchange.drop()
    assert transport.reading
    feed(line, frame * (BACKLOG // MAX_FRAME) + b"@1 OK get\n")
    assert transport.reading
    assert not exchange.content_ready
    assert exchange.result().name == "get"


@pytest.mark.parametrize(
    "garbage",
    [
        b"@1 DATA x\n",
        b"@1 DATA -1\n",
        b"@1 DATA 1048577\n",
        b"@ DATA 1\n",
        b'@1 OK list name="open\n',
        b"x" * ((1 << 20) + 1),
    ],
    ids=lambda garbage: garbage[:16].decode(),
)
async def test_what_is_no_reply_ends_the_connection(garbage: bytes) -> None:
    line, transport = connected()
    exchange = line.start("list")
    feed(line, garbage)
    assert transport.aborted
    with pytest.raises(ConnectionLost, match="protocol"):
        await exchange.next()
    with pytest.raises(ConnectionLost):
        line.start("ping")


async def test_a_long_line_is_received() -> None:
    line, _ = connected()
    exchange = line.start("list")
    name = "x" * 500_000
    feed(line, f"@1 FILE name={name}\n@1 OK list\n".encode(), 10_000)
    row = await exchange.next()
    assert isinstance(row, Reply) and row.fields["name"] == name.encode()


async def test_an_answer_without_a_tag_is_about_the_connection() -> None:
    line, _ = connected()
    exchanges = [line.start("list"), line.start("ping")]
    feed(line, b'ERR busy message="too many clients"\n')
    line.connection_lost(None)
    for exchange in exchanges:
        with pytest.raises(Busy, match="too many"):
            await exchange.next()


@pytest.mark.parametrize("reason", [None, ConnectionResetError(104, "Connection reset by peer")])
async def test_losing_the_connection_ends_every_exchange(reason: Exception | None) -> None:
    line, _ = connected()
    exchanges = [line.start("list") for _ in range(3)]
    waiting = [asyncio.ensure_future(exchange.next()) for exchange in exchanges]
    await asyncio.sleep(0)
    feed(line, b"@1 DATA 5\nab")
    line.connection_lost(reason)
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [ConnectionLost] * 3
    with pytest.raises(PfsdError, match="reset" if reason else "closed"):
        line.start("ping")


async def test_senders_take_turns_and_wait_for_room() -> None:
    line, transport = connected()
    one, two = line.start("put"), line.start("put")
    transport.written = b""
    line.pause_writing()
    sends = [asyncio.ensure_future(each.send_frame(text)) for each, text in ((one, b"a"), (two, b"bb"), (one, b"c"))]
    await asyncio.sleep(0)
    assert transport.written == b""
    line.resume_writing()
    await asyncio.gather(*sends)
    assert transport.written == b"@1 DATA 1\na@2 DATA 2\nbb@1 DATA 1\nc"
    one.end_content()
    two.abort_content()
    assert transport.written.endswith(b"@1 DATA 0\n@2 ABORT\n")


async def test_a_sender_that_waits_for_room_hears_of_the_end() -> None:
    line, _ = connected()
    exchange = line.start("put")
    line.pause_writing()
    sending = asyncio.ensure_future(exchange.send_frame(b"a"))
    await asyncio.sleep(0)
    line.connection_lost(None)
    with pytest.raises(ConnectionLost):
        await sending
