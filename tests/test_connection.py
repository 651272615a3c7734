"""Back pressure of one connection, against a transport that does what both event loops do."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, cast

import pytest

from pfsd.connection import MAX_PENDING, Connection


class Transport:
    """Starts to read after `connection_made`, whatever that asked for, as uvloop does."""

    def __init__(self) -> None:
        self.reading = False

    def connect(self, connection: Connection) -> None:
        connection.connection_made(cast(asyncio.BaseTransport, self))
        self.reading = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_write_buffer_limits(self, **limits: int) -> None:
        pass

    def get_extra_info(self, name: str) -> Any:
        return None


def flood(connection: Connection, transport: Transport, data: bytes, most: int) -> int:
    """Let a client send as long as the daemon reads, but not more than `most` bytes; returns how many it took."""
    taken = 0
    while transport.reading and taken < most:
        buffer = connection.get_buffer(-1)
        piece = (data * (len(buffer) // len(data) + 1))[: len(buffer)]
        buffer[: len(piece)] = piece
        connection.buffer_updated(len(piece))
        taken += len(piece)
    return taken


@pytest.mark.promise("memory")
async def test_a_client_that_sends_at_once_is_stopped_before_anything_is_read() -> None:
    connection, transport = Connection(0, 0), Transport()
    transport.connect(connection)
    assert flood(connection, transport, b"ping\n", 64 << 20) <= MAX_PENDING


@pytest.mark.promise("memory")
async def test_content_is_not_taken_before_there_is_memory_for_it() -> None:
    connection, transport = Connection(0, 0), Transport()
    transport.connect(connection)
    flood(connection, transport, b"put - name=x size=eof\n", 1)
    lines = connection.lines(lambda: False)
    await anext(lines)
    first = bytearray(MAX_PENDING // 2)
    await connection.fill(memoryview(first))  # served from what came with the line
    assert flood(connection, transport, b"x", 64 << 20) <= MAX_PENDING


async def test_reading_goes_on_when_what_came_is_used() -> None:
    connection, transport = Connection(0, 0), Transport()
    transport.connect(connection)
    taken = flood(connection, transport, b"12345678", 64 << 20)
    assert not transport.reading
    await connection.fill(memoryview(bytearray(taken)))
    filling = asyncio.ensure_future(connection.fill(memoryview(bytearray(100))))
    await asyncio.sleep(0)
    assert transport.reading
    flood(connection, transport, b"x", 100)
    assert await filling == 100


def taken_at_once(content: bytes) -> int:
    """How many bytes the system takes from a sender whose peer does not read."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        return ours.send(content)


async def test_a_frame_is_sent_only_when_its_last_byte_is_out_of_our_memory() -> None:
    content = bytearray(taken_at_once(bytes(8 << 20)) + 1000)  # few enough to be left over below any limit
    ours, theirs = socket.socketpair()
    connection = Connection(0, 0)
    loop = asyncio.get_running_loop()
    theirs.setblocking(False)
    with theirs:
        transport, _ = await loop.create_connection(lambda: connection, sock=ours)
        sending = asyncio.ensure_future(connection.write_frame(b"", memoryview(content)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert transport.get_write_buffer_size() > 0
        assert not sending.done(), "the transport still holds the memory"
        received = 0
        while received < len(content):
            received += len(await loop.sock_recv(theirs, 1 << 20))
        await sending
        assert transport.get_write_buffer_size() == 0
        transport.abort()
