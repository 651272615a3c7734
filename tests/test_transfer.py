"""Where content comes from and goes to on the client's side: frames cut from sources, files that appear whole."""

from __future__ import annotations

import asyncio
import io
import os
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfsd import transfer
from pfsd.errors import Changed, Denied, Exists
from pfsd.transfer import Target, frames, in_thread, size_of, write_all


async def taken(source: Any, size: int | None = None) -> list[bytes]:
    return [bytes(frame) async for frame in frames(source, size)]


def entries(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest.fixture
def small_frames(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(transfer, "MAX_FRAME", 16)
    return 16


# --- frames -------------------------------------------------------------------------------------


def run(source: Any) -> list[bytes]:
    """Drive `frames` over a source that never waits."""

    async def collect() -> list[bytes]:
        return await taken(source)

    try:
        collect_ = collect()
        collect_.send(None)
    except StopIteration as end:
        result: list[bytes] = end.value
        return result
    raise AssertionError("it waited")


@given(st.lists(st.binary(max_size=50)))
def test_frames_are_full_and_hold_everything_in_order(pieces: list[bytes]) -> None:
    limit, transfer.MAX_FRAME = transfer.MAX_FRAME, 16
    try:
        got = run(pieces)
    finally:
        transfer.MAX_FRAME = limit
    assert b"".join(got) == b"".join(pieces)
    assert all(len(frame) == 16 for frame in got[:-1])
    assert all(0 < len(frame) <= 16 for frame in got)


async def test_long_pieces_are_not_copied(small_frames: int) -> None:
    content = bytes(range(64))
    got = [frame async for frame in frames(content, None)]
    assert [isinstance(frame, memoryview) and frame.obj is content for frame in got] == [True] * 4


async def test_views_of_other_types_count_in_bytes(small_frames: int) -> None:
    view = memoryview(bytes(range(48))).cast("I")
    assert size_of(view) == 48
    assert b"".join(await taken(view, 48)) == bytes(range(48))


@pytest.mark.parametrize("size", [0, 1, 16, 17, 1000])
async def test_files_paths_and_iterables_give_their_content(tmp_path: Path, small_frames: int, size: int) -> None:
    content = os.urandom(size)
    path = tmp_path / "source"
    path.write_bytes(content)

    async def later() -> AsyncIterator[bytes]:
        for at in range(0, size, 5):
            yield content[at : at + 5]

    with path.open("rb") as file, path.open("rb", buffering=0) as raw:
        for source in (path, file, raw, io.BytesIO(content), content, bytearray(content), later()):
            assert b"".join(await taken(source, size)) == content
        assert not file.closed and not raw.closed


async def test_text_is_refused() -> None:
    for source in ("text", ["text"], io.StringIO("text"), 7):
        with pytest.raises(TypeError):
            await taken(source)


def test_sizes_that_are_known_before(tmp_path: Path) -> None:
    path = tmp_path / "source"
    path.write_bytes(b"12345")
    os.mkfifo(tmp_path / "fifo")
    assert size_of(path) == 5
    assert size_of(b"123") == 3
    assert size_of(tmp_path / "fifo") is None
    assert size_of(io.BytesIO(b"1")) is None
    with pytest.raises(FileNotFoundError):
        size_of(tmp_path / "none")


@pytest.mark.parametrize("announced", [0, 9, 11, 1000])
async def test_another_size_than_announced_is_an_error(announced: int) -> None:
    with pytest.raises(Changed, match=str(announced)):
        await taken(iter([b"01234", b"56789"]), announced)


async def test_a_file_that_changes_while_it_is_read(tmp_path: Path, small_frames: int) -> None:
    path = tmp_path / "source"
    path.write_bytes(bytes(1000))
    os.utime(path, ns=(0, 0))
    with pytest.raises(Changed, match="changed while"):
        async for _ in frames(path, None):
            os.utime(path, ns=(1, 1))


async def test_errors_of_a_source_come_as_they_are(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"a"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await taken(broken())
    with pytest.raises(FileNotFoundError):
        await taken(tmp_path / "none")
    with pytest.raises(IsADirectoryError):
        await taken(tmp_path)


async def test_a_file_is_read_ahead_by_a_bounded_number_of_pieces() -> None:
    enough = threading.Event()

    class Endless:
        reads = 0

        def read(self, size: int) -> bytes:
            self.reads += 1
            if self.reads == transfer.READ_AHEAD:
                enough.set()
            return b"x" * size

    source = Endless()
    content = frames(source, None)
    await anext(content)  # makes room for one more
    assert await in_thread(enough.wait, 10)
    await content.aclose()  # type: ignore[attr-defined]
    assert source.reads <= transfer.READ_AHEAD + 1


async def test_a_reader_that_leaves_does_not_wait_for_a_read_that_hangs() -> None:
    reading, writing = os.pipe()
    content = frames(io.FileIO(reading), None)
    waiting = asyncio.ensure_future(anext(content))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    os.close(writing)


# --- writing ------------------------------------------------------------------------------------


def test_short_writes_are_continued() -> None:
    class Slow:
        def __init__(self) -> None:
            self.got = b""

        def write(self, data: Any) -> int:
            self.got += bytes(data[:3])
            return min(3, len(data))

    file = Slow()
    write_all(file, [b"0123456", bytearray(b"78"), b"", memoryview(b"9")])
    assert file.got == b"0123456789"


async def test_a_target_appears_whole_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "target"
    async with Target(path, replace=False) as target:
        await target.write([b"ab", b"c"])
        assert not path.exists()
        assert len(entries(tmp_path)) == 1
        await target.commit()
    assert path.read_bytes() == b"abc"
    assert entries(tmp_path) == [path]


async def test_a_target_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with Target(tmp_path / "target", replace=False) as target:
            await target.write([b"ab"])
            raise ZeroDivisionError
    assert entries(tmp_path) == []


async def test_a_taken_target_is_kept_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "target"
    path.write_bytes(b"old")
    with pytest.raises(Exists):
        async with Target(path, replace=False):
            raise AssertionError
    assert path.read_bytes() == b"old"
    async with Target(path, replace=True) as target:
        await target.write([b"new"])
        assert path.read_bytes() == b"old"
        await target.commit()
    assert path.read_bytes() == b"new"
    assert entries(tmp_path) == [path]


async def test_a_target_that_came_in_between_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "target"
    async with Target(path, replace=False) as target:
        path.write_bytes(b"theirs")  # after the last look
        with pytest.raises(Exists):
            await target.commit()
    assert path.read_bytes() == b"theirs"
    assert entries(tmp_path) == [path]


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("kind", ["link", "dangling link", "fifo", "directory"])
async def test_what_is_no_regular_file_is_left_alone(tmp_path: Path, kind: str, replace: bool) -> None:
    path, other = tmp_path / "target", tmp_path / "other"
    if kind == "link":
        other.write_bytes(b"other")
    if kind.endswith("link"):
        path.symlink_to(other)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    before = os.lstat(path)
    with pytest.raises(Denied, match="regular"):
        async with Target(path, replace):
            raise AssertionError
    assert os.lstat(path) == before
    assert not other.exists() or other.read_bytes() == b"other"


async def test_the_longest_name_has_a_temporary(tmp_path: Path) -> None:
    path = tmp_path / ("é" * 127)
    async with Target(path, replace=False) as target:
        await target.commit()
    assert path.exists()
