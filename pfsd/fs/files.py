"""Open files: reads come from one version of a file, writes become a file as a whole or not at all."""

from __future__ import annotations

import asyncio
import errno
import io
import sys
import tempfile
from collections.abc import AsyncIterator
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from fsspec.asyn import sync
from fsspec.spec import AbstractBufferedFile

from pfsd.client import Client
from pfsd.fs.errors import os_errors

if TYPE_CHECKING:
    from pfsd.fs import PfsFileSystem

#: What a transaction keeps of a file in memory before it goes to a local temporary file, in bytes.
SPOOL_IN_MEMORY = 16 << 20


class Upload:
    """A put whose content is handed in piece by piece. All of it lives in one event loop."""

    def __init__(self, client: Client, name: bytes, replace: bool) -> None:
        self._pieces: asyncio.Queue[memoryview | None] = asyncio.Queue(1)
        self._put = asyncio.ensure_future(client.put(self._content(), name, replace=replace))

    async def send(self, piece: memoryview | None) -> None:
        """Hand a piece in when there is room, None at the end. Raises what became of a put that failed."""
        giving = asyncio.ensure_future(self._pieces.put(piece))
        await asyncio.wait({giving, self._put}, return_when=asyncio.FIRST_COMPLETED)
        if self._put.done():
            giving.cancel()
            self._put.result()

    async def finish(self) -> None:
        """Say that this was all; returns when it is stored."""
        await self.send(None)
        await self._put

    async def abort(self) -> None:
        """Give up; nothing is stored."""
        self._put.cancel()
        await asyncio.wait({self._put})

    async def _content(self) -> AsyncIterator[memoryview]:
        while (piece := await self._pieces.get()) is not None:
            yield piece


class PfsFile(AbstractBufferedFile):
    """A file of a daemon, opened to be read (`rb`) or to be written as a whole (`wb`, `xb`).

    What is read is the version that was there when it was opened: when it is replaced or deleted meanwhile, reading
    on is OSError with ESTALE. What is written shows at `close`, or when the transaction ends that it belongs to; in a
    `with` that an exception leaves, it is discarded.
    """

    fs: PfsFileSystem

    def __init__(self, fs: PfsFileSystem, path: str, mode: str, details: dict[str, Any] | None, **kwargs: Any) -> None:
        self._details = details
        self._upload: Upload | None = None
        self._spool: IO[bytes] | None = None
        if details is not None:
            kwargs |= {"id": details["id"], "size": details["size"]}  # `id` is for who unpickles it
        super().__init__(fs, path, mode, **kwargs)

    # --- reading ---

    def _fetch_range(self, start: int, end: int) -> bytes:
        content: bytes = sync(self.fs.loop, self._fetch, start, end)
        return content

    async def _fetch(self, start: int, end: int) -> bytes:
        with os_errors(self.path, not_found=errno.ESTALE, not_ready=errno.ESTALE):
            return await self.fs._read(self.details["id"], start, end)

    # --- writing ---

    def _upload_chunk(self, final: bool = False) -> None:
        content = self.buffer.getbuffer()
        if self.autocommit:
            sync(self.fs.loop, self._send, content, final)
            return
        if self._spool is None:
            self._spool = tempfile.SpooledTemporaryFile(SPOOL_IN_MEMORY)  # noqa: SIM115 - until commit or discard
        self._spool.write(content)

    async def _send(self, content: memoryview, final: bool) -> None:
        with os_errors(self.path):
            if self._upload is None and final:
                await self.fs._store_content(content, self.path, self.mode)
                return
            if self._upload is None:
                self._upload = await self.fs._begin_upload(self.path, self.mode)
            await self._upload.send(content)
            if final:
                await self._upload.finish()

    def commit(self) -> None:
        """Store what was written in a transaction."""
        self.close()
        if self._spool is not None:
            with self._spool as spool:
                sync(self.fs.loop, self._store_spool, spool)

    async def _store_spool(self, spool: IO[bytes]) -> None:
        with os_errors(self.path):
            await self.fs._store_content(spool, self.path, self.mode)

    def discard(self) -> None:
        """Throw away what was written; the file is closed."""
        self.closed = True
        if self._spool is not None:
            self._spool.close()
        if self._upload is not None:
            sync(self.fs.loop, self._upload.abort)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self.writable():
            self.discard()
        self.close()

    def __del__(self) -> None:
        if not sys.is_finalizing():  # else nobody runs the event loop any more, and waiting for it would be for ever
            super().__del__()


class PfsTextFile(io.TextIOWrapper):
    """A `PfsFile` as text, which knows as well when an exception leaves its `with`."""

    buffer: PfsFile

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self.buffer.writable():
            self.buffer.discard()
        self.close()
