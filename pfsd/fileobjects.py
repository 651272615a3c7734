"""Stored files as file objects: what Python's `open` returns, for a file of a daemon.

A reader is pinned to the id that its name had when it was opened: what it reads is that file and no other. A writer is
an upload on its way, which becomes a file when it is closed, and nothing in any other case.

Those for programs with an event loop are `AsyncReader` and `AsyncWriter`; `Reader` and `Writer` do the same for
programs without. Knows how to fetch a range, and how to store what an iterator yields, from who opens the file.
"""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from contextlib import suppress
from types import TracebackType
from typing import Any, Generic, TypeVar

from pfsd.aio import finish
from pfsd.background import Call, run
from pfsd.exchange import CLOSE_SECONDS, Buffer
from pfsd.protocol import MAX_FRAME
from pfsd.readahead import ReadAhead
from pfsd.results import FileInfo, StoredFile

#: Gives a range of the file that is being read.
FetchRange = Callable[[int, int], Coroutine[Any, Any, bytes]]
#: Stores what an iterator yields.
StoreContent = Callable[[AsyncIterator[Buffer]], Coroutine[Any, Any, StoredFile]]
#: Frames of a writer that wait to be sent.
FRAMES_AHEAD = 2
#: A buffered reader asks for so much when less is wanted.
READ_BUFFER = 128 << 10


# --- with an event loop -------------------------------------------------------------------------


class AsyncReader:
    """A stored file, open for reading: seekable, read ahead in the background.

    One task at a time may use it. What it reads is the file that had the name when it was opened, whatever becomes of
    the name; Changed when that file is gone.
    """

    def __init__(self, file: FileInfo, etag: str, fetch: FetchRange) -> None:
        self.file = file
        self.etag = etag
        self._position = 0
        self._closed = False
        self._blocks: ReadAhead[asyncio.Task[bytes]] = ReadAhead(
            file.size, lambda offset, length: asyncio.ensure_future(fetch(offset, length)), _forget
        )

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return self.file.size

    @property
    def name(self) -> str:
        """The name that the file had when it was opened."""
        return os.fsdecode(self.file.name)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._closed

    def tell(self) -> int:
        """Where the next read begins."""
        return self._position

    async def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to an offset, which counts from the start, from here (SEEK_CUR) or from the end (SEEK_END)."""
        self._check_open()
        self._position = sought(self._position, self.size, offset, whence)
        return self._position

    async def readinto(self, buffer: bytearray | memoryview) -> int:
        """Read what fits, fewer bytes only at the end; returns how many."""
        view = memoryview(buffer).cast("B")
        filled = 0
        while filled < len(view) and (piece := await self._piece(len(view) - filled)):
            view[filled : filled + len(piece)] = piece
            filled += len(piece)
        return filled

    async def read(self, size: int = -1) -> bytes:
        """Read so many bytes, or all to the end; fewer only at the end."""
        self._check_open()
        left = self.size - self._position if size < 0 else size
        out = io.BytesIO()
        while left > 0 and (piece := await self._piece(left)):
            out.write(piece)
            left -= len(piece)
        return out.getvalue()

    async def _piece(self, most: int) -> memoryview:
        self._check_open()
        at = self._position
        if at >= self.size:
            return memoryview(b"")
        begin, task = self._blocks.block(at, most)
        try:
            content = await task
        except BaseException:
            self._blocks.clear()  # the next read asks anew
            raise
        piece = memoryview(content)[at - begin : at - begin + most]
        self._position += len(piece)
        return piece

    def __aiter__(self) -> AsyncReader:
        return self

    async def __anext__(self) -> bytes:
        """The next piece, of up to 1 MiB: pieces are not lines."""
        if piece := await self.read(MAX_FRAME):
            return piece
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Read no more."""
        self._closed = True
        self._blocks.clear()

    close = aclose

    async def __aenter__(self) -> AsyncReader:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the file is closed")


def _forget(task: asyncio.Task[bytes]) -> None:
    task.cancel()
    task.add_done_callback(lambda task: task.cancelled() or task.exception())  # seen


def sought(position: int, size: int, offset: int, whence: int) -> int:
    """Where a seek leads; ValueError when that is before the start."""
    if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
        raise ValueError(f"whence is 0 (start), 1 (here) or 2 (end), not {whence}")
    target = (0, position, size)[whence] + offset
    if target < 0:
        raise ValueError(f"offset {target} is before the start of the file")
    return target


class AsyncWriter:
    """A file on its way: `close` makes it exist, all of it, and anything else leaves nothing behind.

    As a context manager it is closed at the end, and aborted by an exception. After `close`, `stored` says what it is.
    """

    def __init__(self, name: str, store: StoreContent) -> None:
        self.name = name
        self._gathered = bytearray()
        self._frames: asyncio.Queue[Buffer | _Aborted | None] = asyncio.Queue(FRAMES_AHEAD)
        self._position = 0
        self._closed = False
        self._broken = False
        self._stored: StoredFile | None = None
        self._task = asyncio.ensure_future(store(_taken(self._frames)))
        self._task.add_done_callback(_seen)  # its error is raised by what is called next, if anything is

    @property
    def closed(self) -> bool:
        """Whether it was closed or aborted."""
        return self._closed

    @property
    def stored(self) -> StoredFile:
        """The file that it became; ValueError before it is closed, and when it was aborted."""
        if self._stored is None:
            raise ValueError("the file has not been stored")
        return self._stored

    def tell(self) -> int:
        """How many bytes were written."""
        return self._position

    async def write(self, data: Buffer) -> int:
        """Append; waits while the daemon has not taken what was written before. Raises what the upload ended with.

        Who is cancelled here, as by a timeout, cannot know how much was taken: that gives the file up.
        """
        self._check_open()
        view = memoryview(data).cast("B")
        self._position += len(view)
        at = 0
        while at < len(view):
            taken = min(MAX_FRAME - len(self._gathered), len(view) - at)
            self._gathered += view[at : at + taken]
            at += taken
            if len(self._gathered) == MAX_FRAME:
                frame, self._gathered = self._gathered, bytearray()
                try:
                    await self._send(frame)
                except BaseException:
                    try:
                        await self.abort()
                    finally:
                        self._broken = True
                    raise
        return len(view)

    async def _send(self, frame: Buffer | None) -> None:
        sending = asyncio.ensure_future(self._frames.put(frame))
        try:
            waited: set[asyncio.Future[Any]] = {sending, self._task}
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
        if self._task.done():
            self._task.result()

    async def close(self) -> None:
        """Store the file; without an error it is durable. Once it was closed or aborted this does nothing.

        ValueError when a write has failed: there is no file then.
        """
        if self._broken:
            raise ValueError("nothing was stored, as a write has failed")
        if self._closed:
            return
        try:
            if self._gathered:
                await self._send(self._gathered)
            await self._send(None)
            self._stored = await asyncio.shield(self._task)
        except BaseException:
            await self.abort()
            raise
        self._closed = True

    aclose = close

    async def abort(self) -> None:
        """Give it up: nothing is stored, and the name is as it was."""
        self._closed, self._broken = True, False
        self._gathered.clear()
        if self._task.done():
            return
        while not self._frames.empty():
            self._frames.get_nowait()
        self._frames.put_nowait(_Aborted())
        # That the name is free again is worth waiting for, but not for a daemon that does not take what is sent.
        await finish(asyncio.ensure_future(asyncio.wait({self._task}, timeout=CLOSE_SECONDS)))
        self._task.cancel()
        await finish(asyncio.ensure_future(asyncio.wait({self._task})))

    async def __aenter__(self) -> AsyncWriter:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await (self.close() if error is None else self.abort())

    def __del__(self) -> None:
        # Without a writer nothing more comes; the queue and its task would wait for ever.
        if not self._closed:
            with suppress(RuntimeError):  # the loop has ended, and the connection with it
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)

    def _check_open(self) -> None:
        if self._broken:
            raise ValueError("nothing was stored, as a write has failed")
        if self._closed:
            raise ValueError("the file is closed")


class _Aborted(Exception):
    """Ends the content of an upload that is given up."""


async def _taken(frames: asyncio.Queue[Buffer | _Aborted | None]) -> AsyncIterator[Buffer]:
    while (frame := await frames.get()) is not None:
        if isinstance(frame, _Aborted):
            raise frame
        yield frame


def _seen(task: asyncio.Task[StoredFile]) -> None:
    if not task.cancelled():
        task.exception()


Opened = TypeVar("Opened", bound=AsyncReader | AsyncWriter)


class Opening(Generic[Opened]):
    """A file about to be opened: `async with` opens and closes it, `await` opens it."""

    def __init__(self, opening: Coroutine[Any, Any, Opened]) -> None:
        self._opening = opening

    def __await__(self) -> Generator[Any, None, Opened]:
        return self._opening.__await__()

    async def __aenter__(self) -> Opened:
        self._opened = await self._opening
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.__aexit__(kind, error, trace)


# --- without an event loop ----------------------------------------------------------------------


class RawReader(io.RawIOBase):
    """What is below a `Reader`: reads without a buffer of its own, ahead in the background."""

    def __init__(self, file: FileInfo, etag: str, fetch: FetchRange) -> None:
        super().__init__()
        self.file = file
        self.etag = etag
        self._position = 0
        self._blocks: ReadAhead[Call[bytes]] = ReadAhead(
            file.size, lambda offset, length: Call(fetch(offset, length)), Call.cancel
        )

    @property
    def name(self) -> str:
        """The name that the file had when it was opened."""
        return os.fsdecode(self.file.name)

    def readable(self) -> bool:
        self._check_open()
        return True

    def seekable(self) -> bool:
        self._check_open()
        return True

    def tell(self) -> int:
        self._check_open()
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._check_open()
        self._position = sought(self._position, self.file.size, offset, whence)
        return self._position

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        piece = self._piece(len(view))
        view[: len(piece)] = piece
        return len(piece)

    def readall(self) -> bytes:
        out = io.BytesIO()
        while piece := self._piece(self.file.size):
            out.write(piece)
        return out.getvalue()

    def _piece(self, most: int) -> memoryview:
        self._check_open()
        at = self._position
        if at >= self.file.size or not most:
            return memoryview(b"")
        begin, call = self._blocks.block(at, most)
        try:
            content = call.result()
        except BaseException:
            self._blocks.clear()  # the next read asks anew
            raise
        piece = memoryview(content)[at - begin : at - begin + most]
        self._position += len(piece)
        return piece

    def close(self) -> None:
        if not self.closed:
            self._blocks.clear()
        super().close()

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the file is closed")


class Reader(io.BufferedReader):
    """A stored file, open for reading: all that a binary file of Python's `open` does.

    What it reads is the file that had the name when it was opened, whatever becomes of the name; Changed when that
    file is gone.
    """

    raw: RawReader

    def __init__(self, raw: RawReader) -> None:
        super().__init__(raw, READ_BUFFER)

    @property
    def size(self) -> int:
        """The size of the file in bytes."""
        return self.raw.file.size

    @property
    def etag(self) -> str:
        """The etag of the file."""
        return self.raw.etag


class Writer(io.BufferedIOBase):
    """A file on its way: `close` makes it exist, all of it, and anything else leaves nothing behind.

    As a context manager it is closed at the end, and aborted by an exception; so it is when it is dropped without
    `close`. After `close`, `stored` says what it is.
    """

    def __init__(self, opened: AsyncWriter) -> None:
        super().__init__()
        self._writer = opened
        self._gathered = bytearray()
        self._position = 0

    @property
    def stored(self) -> StoredFile:
        """The file that it became; ValueError before it is closed, and when it was aborted."""
        return self._writer.stored

    @property
    def name(self) -> str:
        """The name that the file will have."""
        return self._writer.name

    def writable(self) -> bool:
        self._check_open()
        return True

    def tell(self) -> int:
        """How many bytes were written."""
        self._check_open()
        return self._position

    def write(self, data: Any, /) -> int:
        """Append; waits while the daemon has not taken what was written before. Raises what the upload ended with."""
        self._check_open()
        view = memoryview(data).cast("B")
        self._position += len(view)
        at = 0
        while at < len(view):
            taken = min(MAX_FRAME - len(self._gathered), len(view) - at)
            self._gathered += view[at : at + taken]
            at += taken
            if len(self._gathered) == MAX_FRAME:
                frame, self._gathered = self._gathered, bytearray()
                run(self._writer.write(frame))
        return len(view)

    def close(self) -> None:
        """Store the file; without an error it is durable. Once it was closed or aborted this does nothing."""
        if self.closed:
            return
        try:
            run(self._finish())
        finally:
            super().close()

    async def _finish(self) -> None:
        await self._writer.write(self._gathered)
        await self._writer.close()

    def abort(self) -> None:
        """Give it up: nothing is stored, and the name is as it was."""
        if not self.closed:
            try:
                run(self._writer.abort())
            finally:
                super().close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self.abort()

    def __del__(self) -> None:
        # Python's own would close, and so store what may be half a file. `AsyncWriter` gives up by itself.
        pass

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("the file is closed")


class TextWriter(io.TextIOWrapper):
    """A `Writer` for text."""

    def __init__(self, writer: Writer, encoding: str | None, errors: str | None, newline: str | None) -> None:
        super().__init__(writer, encoding or "utf-8", errors, newline)
        self._writer = writer

    def abort(self) -> None:
        """Give it up: nothing is stored, and the name is as it was."""
        self._writer.abort()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.abort()
        else:
            self.close()

    def __del__(self) -> None:
        pass  # as with `Writer`
