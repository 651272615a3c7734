"""Stored files as file objects."""

from __future__ import annotations

import asyncio
import gc
import io
import os
import random
from collections.abc import AsyncIterator, Iterator

import pytest

import pfsd
from pfsd import AsyncStore, Store
from pfsd.exchange import Buffer
from pfsd.fileobjects import AsyncWriter
from pfsd.protocol import MAX_FRAME
from pfsd.results import StoredFile
from tests.harness import Daemon, noise

MIB = 1 << 20
CONTENT = noise(5 * MIB + 123)


@pytest.fixture(scope="module")
def kept(shared_daemon: Daemon) -> Iterator[Store]:
    with Store(f"127.0.0.1:{shared_daemon.port}") as store:
        store.put(CONTENT, "file", replace=True)
        yield store


@pytest.fixture
def store(kept: Store) -> Store:
    if others := [file.id for file in kept.list() if file.name != b"file" and file.status == "ready"]:
        kept.delete(*others)
    return kept


@pytest.fixture
async def async_store(kept: Store) -> AsyncIterator[AsyncStore]:
    async with AsyncStore(kept.address) as store:
        yield store


# --- reading ------------------------------------------------------------------------------------


def test_a_reader_is_a_file_like_any_other(store: Store) -> None:
    local = io.BytesIO(CONTENT)
    chance = random.Random(5)
    with store.open("file") as file:
        assert (file.size, file.name, file.readable(), file.seekable(), file.writable()) == (
            len(CONTENT),
            "file",
            True,
            True,
            False,
        )
        for _ in range(60):
            whence = chance.choice([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END])
            offset = chance.randrange(len(CONTENT) + 1000)
            if whence == os.SEEK_END:
                offset -= len(CONTENT)
            assert file.seek(offset, whence) == local.seek(offset, whence)
            size = chance.choice([0, 1, 10, 100_000, 2 * MIB])
            assert file.read(size) == local.read(size)
            assert file.tell() == local.tell()
            if file.tell() > 2 * len(CONTENT):
                assert file.seek(0) == local.seek(0)
        assert (file.seek(0), file.read()) == (0, CONTENT)
        assert file.read() == b""
        file.seek(7)
        buffer = bytearray(2 * MIB)
        assert file.readinto(buffer) == len(buffer) and buffer == CONTENT[7 : 7 + 2 * MIB]
        for offset, whence in ((-1, os.SEEK_SET), (-len(CONTENT) - 1, os.SEEK_END), (0, 9)):
            with pytest.raises(ValueError):
                file.seek(offset, whence)
    assert file.closed
    with pytest.raises(ValueError):
        file.read()


def test_text(store: Store) -> None:
    with store.open("text", "w") as file:
        assert file.write("grün\n" * 3) == 15
    assert store.get("text") == "grün\n".encode() * 3
    with store.open("text", "r") as file:
        assert file.readline() == "grün\n"
        assert list(file) == ["grün\n"] * 2
    with store.open("text", "rt", encoding="latin-1", newline="") as file:
        assert file.read(5) == "grÃ¼n"
    with pytest.raises(pfsd.Exists):
        store.open("text", "x")


async def test_an_async_reader(async_store: AsyncStore) -> None:
    async with async_store.open("file") as file:
        assert await file.read(10) == CONTENT[:10]
        assert await file.seek(-5, os.SEEK_END) == len(CONTENT) - 5 == file.tell()
        assert await file.read() == CONTENT[-5:]
        assert await file.read() == b""
        await file.seek(0)
        assert b"".join([piece async for piece in file]) == CONTENT
        await file.seek(1)
        buffer = bytearray(len(CONTENT))
        assert await file.readinto(buffer) == len(CONTENT) - 1
        assert buffer[:-1] == CONTENT[1:]
    with pytest.raises(ValueError):
        await file.read()


def test_a_file_that_is_replaced_is_not_mixed_with_another(store: Store) -> None:
    one, two = noise(40 * MIB, 1), noise(40 * MIB, 2)
    store.put(one, "mixed")
    with store.open("mixed") as file:
        assert file.read(10) == one[:10]
        store.put(two, "mixed", replace=True)
        with pytest.raises(pfsd.Changed, match=r"mixed \(id \d+\) was deleted or replaced"):
            file.seek(30 * MIB)
            file.read(MIB)
        with pytest.raises(pfsd.Changed):
            file.read(MIB)
    with store.open("mixed") as file:
        assert file.read() == two


async def test_ranges_of_a_file_that_is_gone_are_an_error(async_store: AsyncStore, store: Store) -> None:
    await async_store.put(noise(MIB), "gone")
    file = await async_store.open("gone")
    await async_store.delete("gone")
    with pytest.raises(pfsd.Changed):
        await file.read()
    await file.close()


def test_wrong_ways_to_open(store: Store) -> None:
    with pytest.raises(pfsd.NotFound):
        store.open("none")
    for arguments in (("file", "ab"), ("file", "r+b"), ("file", ""), ("file", "rb", "utf-8"), (5, "wb"), ("", "wb")):
        with pytest.raises(pfsd.UsageError):
            store.open(*arguments)  # type: ignore[call-overload]


# --- writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [[], [1], [MAX_FRAME], [10, MAX_FRAME, 3], [3 * MIB + 1, 0, 7]])
def test_what_was_written_is_there_when_it_is_closed(store: Store, sizes: list[int]) -> None:
    pieces = [noise(size, size) for size in sizes]
    with store.open("written", "wb") as file:
        for piece in pieces:
            assert file.write(piece) == len(piece)
        assert file.tell() == sum(sizes)
        with pytest.raises(ValueError):
            _ = file.stored
        assert not store.exists("written")
    file.close()
    assert store.get("written") == b"".join(pieces)
    assert file.stored.size == sum(sizes)
    with pytest.raises(ValueError):
        file.write(b"more")


def test_replacing_and_not(store: Store) -> None:
    store.put(b"old", "name")
    with pytest.raises(pfsd.Exists, match='"wb" replaces it'):
        store.open("name", "xb")
    with store.open("name", "wb") as file:
        file.write(b"new")
        assert store.get("name") == b"old"
    assert store.get("name") == b"new"


def _raise(file: pfsd.Writer | pfsd.TextWriter) -> None:
    with pytest.raises(ZeroDivisionError), file:
        raise ZeroDivisionError


def _abort(file: pfsd.Writer | pfsd.TextWriter) -> None:
    file.abort()
    file.abort()
    file.close()


def _drop(file: pfsd.Writer | pfsd.TextWriter) -> None:
    pass


@pytest.mark.parametrize("end", [_raise, _abort, _drop])
@pytest.mark.parametrize("mode", ["wb", "w", "xb"])
def test_what_is_not_closed_leaves_nothing(daemon: Daemon, end: object, mode: str) -> None:
    with Store(f"127.0.0.1:{daemon.port}") as store:
        file = store.open("half", mode)  # type: ignore[call-overload]
        file.write(noise(5 * MIB) if "b" in mode else "half" * MIB)
        end(file)  # type: ignore[operator]
        del file
        gc.collect()
        daemon.wait_until_listed(0)
        daemon.wait_until_packs(0)
        assert daemon.staged() == []
        assert store.put(b"whole", "half").size == 5


async def test_an_async_writer(async_store: AsyncStore, store: Store) -> None:
    async with async_store.open("async", "xb") as file:
        for at in range(0, len(CONTENT), 100_000):
            await file.write(CONTENT[at : at + 100_000])
    assert file.stored.size == len(CONTENT)
    assert await async_store.get("async") == CONTENT
    with pytest.raises(ZeroDivisionError):
        async with async_store.open("raised", "wb") as file:
            await file.write(CONTENT)
            raise ZeroDivisionError
    with pytest.raises(ValueError):
        await file.write(b"more")
    assert not await async_store.exists("raised")


async def test_a_write_that_is_cancelled_gives_the_file_up(async_store: AsyncStore) -> None:
    """Nobody knows how much of it was taken, so what is written next would be a file with a hole."""
    taking = asyncio.Event()

    async def store_later(content: AsyncIterator[Buffer]) -> StoredFile:
        await taking.wait()
        return await async_store.put(content, "hole")

    file = AsyncWriter("hole", store_later)
    writing = asyncio.create_task(file.write(noise(9 * MIB)))
    for _ in range(20):
        await asyncio.sleep(0)
    assert not writing.done()
    writing.cancel()
    taking.set()
    with pytest.raises(asyncio.CancelledError):
        await writing
    for step in (file.write(b"more"), file.close()):
        with pytest.raises(ValueError, match="nothing was stored"):
            await step
    assert not await async_store.exists("hole")
    await file.abort()
    await file.close()  # as it was asked for
