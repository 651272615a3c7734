"""Open files: reads come from one version of a file, writes become a file as a whole or not at all."""

from __future__ import annotations

import errno
import io
import sys
import tempfile
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from fsspec.asyn import sync
from fsspec.spec import AbstractBufferedFile

from pfsd.fileobjects import AsyncWriter, FetchRange
from pfsd.fs.errors import os_errors
from pfsd.fs.folders import file_info
from pfsd.results import FileInfo

if TYPE_CHECKING:
    from pfsd.fs import PfsFileSystem

#: What a transaction keeps of a file in memory before it goes to a local temporary file, in bytes.
SPOOL_IN_MEMORY = 16 << 20
#: What it means when a file that was open is gone.
PINNED = {"changed": errno.ESTALE, "not_found": errno.ESTALE, "not_ready": errno.ESTALE}


class Opened(NamedTuple):
    """A file to be read: its path, its row, its etag, and what fetches a range of it and of no other."""

    path: str
    file: FileInfo
    etag: str
    fetch: FetchRange


class PfsFile(AbstractBufferedFile):
    """A file of a daemon, opened to be read (`rb`) or to be written as a whole (`wb`, `xb`).

    What is read is the version that was there when it was opened: when it is replaced or deleted meanwhile, reading
    on is OSError with ESTALE.

    What is written shows at `close`, or when the transaction ends that it belongs to; in a `with` that an exception
    leaves, and at the end of the program, it is discarded. A file that is dropped is closed: fsspec relies on that, as
    it drops the file below what it compresses.
    """

    #: Bytes read ahead, and written at once. A daemon reads whole parts of about this size; more would be read in vain
    #: by who takes a column here and there.
    DEFAULT_BLOCK_SIZE = 1 << 20

    fs: PfsFileSystem

    def __init__(self, fs: PfsFileSystem, path: str, mode: str, opened: Opened | None, **kwargs: Any) -> None:
        self._upload: AsyncWriter | None = None
        self._spool: IO[bytes] | None = None
        if opened is not None:
            self._opened = opened
            self._details = file_info(opened.file, opened.etag) | {"name": path}
            # `id` is for who unpickles it: `open` gets it back.
            kwargs |= {"size": opened.file.size, "id": opened.file.id}
        super().__init__(fs, path, mode, **kwargs)

    # --- reading ---

    def _fetch_range(self, start: int, end: int) -> bytes:
        content: bytes = sync(self.fs.loop, self._fetch, start, end)
        return content

    async def _fetch(self, start: int, end: int) -> bytes:
        with os_errors(self.path, **PINNED):
            return await self._opened.fetch(start, end - start)

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
            await self._upload.write(content)
            if final:
                await self._upload.close()

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

    def close(self) -> None:
        """End reading; store what was written, unless that is for a transaction to do."""
        if sys.is_finalizing():
            self.closed = True  # nobody runs the event loop any more, so waiting for it would be for ever
        super().close()


class PfsTextFile(io.TextIOWrapper):
    """A `PfsFile` as text, which knows as well when an exception leaves its `with`."""

    buffer: PfsFile

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and self.buffer.writable():
            self.buffer.discard()
        self.close()
