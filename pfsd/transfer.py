"""The client's own side of a transfer: where content comes from, and the file it goes to.

Knows files and threads, never the connection. Blocking reads and writes happen in daemon threads, since one that
hangs (a terminal, a pipe, a dead network disk) must not keep the program from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import stat
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TypeVar

from pfsd.aio import finish
from pfsd.errors import Busy, Changed, Denied, Exists
from pfsd.protocol import MAX_FRAME

Result = TypeVar("Result")
Buffer = bytes | bytearray | memoryview

#: Pieces read from a file before the first of them is sent.
READ_AHEAD = 3
#: The longest name of a directory entry on the file systems in use, in bytes.
MAX_ENTRY = 255


class Readable(Protocol):
    """An open binary file to read from."""

    def read(self, size: int, /) -> bytes | None: ...


class Writable(Protocol):
    """An open binary file to write to; `write` may take less than all."""

    def write(self, data: Buffer, /) -> int | None: ...


Source = Buffer | os.PathLike[str] | Readable | Iterable[Buffer] | AsyncIterable[Buffer]


async def in_thread(function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a blocking function in a daemon thread; a cancelled waiter leaves it behind."""
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[Result] = loop.create_future()

    def settle(result: Result | None, error: BaseException | None) -> None:
        if outcome.done():
            return
        if error is not None:
            outcome.set_exception(error)
        else:
            outcome.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        try:
            result, error = function(*arguments), None
        except BaseException as raised:
            result, error = None, raised
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, daemon=True).start()
    return await outcome


# --- sources ------------------------------------------------------------------------------------


def size_of(source: Source) -> int | None:
    """How many bytes a source holds, if that is known before it is read. OSError when it cannot be read."""
    if isinstance(source, Buffer):
        return memoryview(source).nbytes
    if isinstance(source, os.PathLike):
        status = os.stat(source)
        return status.st_size if stat.S_ISREG(status.st_mode) else None
    return None


def frames(source: Source, size: int | None) -> AsyncIterator[Buffer]:
    """The content of a source as frames of at most MAX_FRAME bytes, full ones where possible.

    `size` is what was announced: raises Changed when the source holds another number of bytes, or when a
    regular file changes while it is read. Errors of the source come as they are. TypeError for other types.
    """
    return _counted(_joined(_pieces(source)), size)


def _pieces(source: Source) -> AsyncIterator[Buffer]:
    if isinstance(source, Buffer):
        return _each([source])
    if isinstance(source, os.PathLike):
        path = os.fspath(source)
        return _pumped(lambda: open(path, "rb", buffering=0), owned=True)
    if hasattr(source, "read"):
        file = source
        return _pumped(lambda: file, owned=False)
    if isinstance(source, AsyncIterable):
        return aiter(source)
    if isinstance(source, Iterable):
        return _each(source)
    raise TypeError(f"content comes from bytes, a path, an open file or an iterable of bytes, not {type(source)}")


async def _each(pieces: Iterable[Buffer]) -> AsyncIterator[Buffer]:
    for piece in pieces:
        yield piece


async def _joined(pieces: AsyncIterator[Buffer]) -> AsyncIterator[Buffer]:
    """Cut long pieces, gather short ones."""
    short = bytearray()
    async for piece in pieces:
        view = memoryview(piece).cast("B")  # TypeError for a str
        if short or len(view) < MAX_FRAME:
            taken = MAX_FRAME - len(short)
            short += view[:taken]
            view = view[taken:]
            if len(short) < MAX_FRAME:
                continue
            yield short
            short = bytearray()
        whole = len(view) // MAX_FRAME * MAX_FRAME
        for at in range(0, whole, MAX_FRAME):
            yield view[at : at + MAX_FRAME]
        short += view[whole:]
    if short:
        yield short


async def _counted(pieces: AsyncIterator[Buffer], size: int | None) -> AsyncIterator[Buffer]:
    count = 0
    async for piece in pieces:
        count += len(piece)
        if size is not None and count > size:
            break
        yield piece
    if size is not None and count != size:
        more = "more than" if count > size else f"{count} instead of"
        raise Changed(f"the source holds {more} the {size} bytes announced; nothing was stored")


async def _pumped(open_file: Callable[[], Any], owned: bool) -> AsyncIterator[Buffer]:
    """Pieces of a file, read ahead by a thread that opens it and closes it again if it is `owned`."""
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[bytes | BaseException] = asyncio.Queue()
    room = threading.Semaphore(READ_AHEAD)
    stopped = threading.Event()

    def put(piece: bytes | BaseException) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

    def run() -> None:
        try:
            file = open_file()
            try:
                before = _state(file) if owned else None
                while room.acquire() and not stopped.is_set():
                    piece = file.read(MAX_FRAME) or b""
                    if not piece and before != (_state(file) if owned else None):
                        raise Changed("the source changed while it was read; nothing was stored")
                    put(piece)
                    if not piece:
                        return
            finally:
                if owned:
                    file.close()
        except BaseException as error:
            put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        while piece := await pieces.get():
            if isinstance(piece, BaseException):
                raise piece
            room.release()
            yield piece
    finally:
        stopped.set()
        room.release()


def _state(file: BinaryIO) -> tuple[int, int, int] | None:
    """What changes when a regular file is written to; None for files of which more is expected."""
    status = os.fstat(file.fileno())
    return (status.st_size, status.st_mtime_ns, status.st_ino) if stat.S_ISREG(status.st_mode) else None


# --- targets ------------------------------------------------------------------------------------


def write_all(file: Writable, pieces: Sequence[Buffer]) -> None:
    """Write all of the pieces, however little the file takes at a time."""
    for piece in pieces:
        view = memoryview(piece)
        while len(view):
            # A buffered file takes everything and may return nothing.
            written = file.write(view)
            view = view[len(view) if written is None else written :]


class Draft:
    """A local file in the making: a hidden temporary beside it that takes its place when all is written.

    The target appears whole or not at all; a symlink, FIFO, device or directory is never written through or
    replaced. Every method blocks. Raises Exists, Denied, OSError.
    """

    def __init__(
        self, path: str, replace: bool, *, folder: Callable[[], int | None] = lambda: None, shown: str = ""
    ) -> None:
        """`path` counts from the directory whose descriptor `folder` gives; `shown` is how people know it."""
        self._path = path
        self._replace = replace
        self._folder = folder
        self._shown = shown or path
        parent, name = os.path.split(path)
        # The name is cut so that the temporary's is not too long where the target's is just long enough.
        short = os.fsencode(name)[: MAX_ENTRY - 32].decode("utf-8", "ignore")
        self._temporary = os.path.join(parent, f".{short}.{os.urandom(4).hex()}.pfsd")
        self._fd = -1

    def check(self) -> None:
        """Raise what keeps the target from being written."""
        if not os.path.basename(self._path):
            raise Denied(f"{self._shown} does not name a file")
        try:
            mode = os.lstat(self._path, dir_fd=self._folder()).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISREG(mode):
            raise Denied(f"{self._shown} is not a regular file and is left alone")
        if not self._replace:
            raise self._taken()

    @property
    def is_open(self) -> bool:
        """Whether it may be written to."""
        return self._fd >= 0

    def open(self) -> None:
        """Make the temporary."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._temporary, flags, 0o666, dir_fd=self._folder())

    def write(self, content: Buffer) -> None:
        """Append."""
        written = os.write(self._fd, content)
        while written < len(content):
            written += os.write(self._fd, memoryview(content)[written:])

    def commit(self, sync: bool = False) -> None:
        """Put the temporary in the target's place; with `sync` all its bytes on the disk first."""
        if sync:
            os.fdatasync(self._fd)
        where = self._folder()
        if self._replace:
            self.check()
            os.replace(self._temporary, self._path, src_dir_fd=where, dst_dir_fd=where)
            self._close()
            return
        try:
            # Unlike a rename, a link never replaces a file that came in between.
            os.link(self._temporary, self._path, src_dir_fd=where, dst_dir_fd=where, follow_symlinks=False)
        except FileExistsError:
            raise self._taken() from None
        except OSError:  # a file system without hard links
            self.check()
            os.rename(self._temporary, self._path, src_dir_fd=where, dst_dir_fd=where)
            self._close()
        else:
            self._remove()

    def discard(self) -> None:
        """Remove the temporary, if there is one."""
        if self.is_open:
            self._remove()

    def _remove(self) -> None:
        self._close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary, dir_fd=self._folder())

    def _close(self) -> None:
        os.close(self._fd)
        self._fd = -1

    def _taken(self) -> Exists:
        return Exists(f"{self._shown} exists already and is kept; ask for it to be replaced, or name another target")


class KeptDraft(Draft):
    """A `Draft` that stays when it is not finished, to be gone on with: its temporary has a name of its own.

    `key` stands for the content; drafts of other content have other temporaries.
    """

    def __init__(
        self,
        path: str,
        replace: bool,
        key: str,
        *,
        folder: Callable[[], int | None] = lambda: None,
        shown: str = "",
    ) -> None:
        super().__init__(path, replace, folder=folder, shown=shown)
        parent, name = os.path.split(path)
        short = os.fsencode(name)[: MAX_ENTRY - 64].decode("utf-8", "ignore")
        self._temporary = os.path.join(parent, f".{short}.{key}.pfsd-partial")

    def resume(self, parts: Iterable[tuple[int, str]]) -> int:
        """Open the temporary and cut it behind the last part, of a size and an MD5, that is sound; returns its size.

        Raises Busy when another program is writing it, Denied when something else is in its place.
        """
        self.check()
        self._open_kept()
        try:
            self._lock()
            if os.fstat(self._fd).st_nlink > 1:
                # Killed in `commit`, behind the link: it is the finished target too, which must not be written to.
                self._remove()
                self._open_kept()
                self._lock()
            return self._cut(parts)
        except BaseException:
            if self.is_open:
                self._close()
            raise

    def _open_kept(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        try:
            self._fd = os.open(self._temporary, flags, 0o666, dir_fd=self._folder())
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise self._strange() from None
            raise

    def _lock(self) -> None:
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            raise self._strange()
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"another program is retrieving {self._shown} just now") from None

    def _cut(self, parts: Iterable[tuple[int, str]]) -> int:
        sound = self._sound(parts)
        if os.fstat(self._fd).st_size > sound:  # ext4 writes back at `close` what was ever cut to nothing
            os.ftruncate(self._fd, sound)
        os.lseek(self._fd, sound, os.SEEK_SET)
        return sound

    def _strange(self) -> Denied:
        return Denied(f"{self._temporary} is no regular file and is left alone")

    def _sound(self, parts: Iterable[tuple[int, str]]) -> int:
        sound = 0
        with open(self._fd, "rb", buffering=0, closefd=False) as file:
            for size, md5 in parts:
                content = file.read(size)
                if len(content) < size or hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
                    break
                sound += size
        return sound

    def discard(self) -> None:
        """Close the temporary and keep it, unless nothing is in it."""
        if self.is_open and os.fstat(self._fd).st_size:
            self._close()
        else:
            super().discard()


class Target:
    """A `Draft` for use in an event loop: `async with` opens it and, unless `commit` was reached, removes it."""

    def __init__(self, path: Path, replace: bool, sync: bool = False) -> None:
        self._draft = Draft(str(path), replace)
        self._sync = sync

    async def __aenter__(self) -> Target:
        self._draft.check()
        self._draft.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._draft.discard()

    async def write(self, pieces: Sequence[Buffer]) -> None:
        """Append."""
        # Waited for even when cancelled: the descriptor must not be closed under a write.
        await finish(in_thread(self._write, pieces))

    def _write(self, pieces: Sequence[Buffer]) -> None:
        for piece in pieces:
            self._draft.write(piece)

    async def commit(self) -> None:
        """Put it in the target's place."""
        await finish(in_thread(self._draft.commit, self._sync))
