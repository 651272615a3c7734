"""The system calls below the store and the journal: whole writes, syncs, renames, the lock, room on the disk.

Everything here is a thin layer over one or two calls of the operating system, and raises OSError as it
comes; only the lock speaks of the store. It knows neither packs nor records. Nothing is tried again: a failed
sync may have dropped the very pages it was to save, and whoever asks a second time is told that all is well.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from pfsd.errors import StoreUnavailable

Buffer = bytes | bytearray | memoryview
AnyPath = str | os.PathLike[str]

#: The kernel takes no more pieces than this in one writev (IOV_MAX of Linux).
MAX_PIECES = 1024


def write_all(fd: int, data: Buffer) -> None:
    """Write all of `data`, however many calls it takes."""
    writev_all(fd, [data])


def writev_all(fd: int, pieces: Sequence[Buffer]) -> None:
    """Write these pieces one after the other, however many calls it takes."""
    left = [memoryview(piece).cast("B") for piece in pieces if len(piece)]
    at = 0  # pieces before this one are written
    while at < len(left):
        count = os.writev(fd, left[at : at + MAX_PIECES])
        while at < len(left) and count >= len(left[at]):
            count -= len(left[at])
            at += 1
        if count:
            left[at] = left[at][count:]


def fdatasync(fd: int) -> None:
    """Make the content and size of an open file durable."""
    os.fdatasync(fd)


def start_writeback(fd: int, offset: int, length: int) -> None:
    """Let the disk begin with a stretch of a file, and do not wait: a later sync has less left to do.

    Only a hint, so that nothing is said when it fails: the sync would say it.
    """
    if _sync_file_range is not None:
        _sync_file_range(fd, ctypes.c_int64(offset), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE)


_SYNC_FILE_RANGE_WRITE = 2  # from fcntl.h
_sync_file_range = getattr(ctypes.CDLL(None), "sync_file_range", None)


def fsync_dir(path: AnyPath) -> None:
    """Make the entries of a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def rename(old: AnyPath, new: AnyPath) -> None:
    """Give a file another name; a file of that name is replaced."""
    os.rename(old, new)


def unlink(path: AnyPath) -> None:
    """Remove a name."""
    os.unlink(path)


def lock_exclusive(path: AnyPath) -> int:
    """Take the lock for this process and write its pid there; it is held until the returned fd is closed.

    The kernel frees it with the process, however that ends. Raises StoreUnavailable, with its pid.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise StoreUnavailable(f"{path} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    except BlockingIOError:
        holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise StoreUnavailable(f"{path} is held by another daemon, pid {holder}") from None
    except OSError as error:
        os.close(fd)
        raise StoreUnavailable(f"{path} cannot be locked: {error.strerror}") from error
    return fd


def free_space(path: AnyPath) -> int:
    """Bytes that can still be written on the file system of `path` without being root."""
    room = os.statvfs(path)
    return room.f_bavail * room.f_frsize


def preallocate(path: AnyPath, nbytes: int) -> None:
    """See to it that the file `path` exists and owns at least `nbytes` of disk; a failure leaves no file."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.posix_fallocate(fd, 0, nbytes)
    except OSError:
        with suppress(OSError):
            os.unlink(path)
        raise
    finally:
        os.close(fd)


def make_dir(path: AnyPath) -> None:
    """Create a directory for this user only, unless it is there."""
    Path(path).mkdir(mode=0o700, exist_ok=True)
