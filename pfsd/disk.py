"""The system calls below the store and the journal: opening, whole writes, syncs, renames, the lock, room on the disk.

Store and journal touch the file system through this module only, so that a test can make each call fail, lie, or be
the last one before a crash. Everything here is a thin layer over one or two calls of the operating system, and
raises OSError as it comes; only the lock speaks of the store. It knows neither packs nor records. Nothing is tried
again: a failed sync may have dropped the very pages it was to save, and whoever asks a second time is told that all is
well.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

from pfsd.errors import StoreUnavailable

Buffer = bytes | bytearray | memoryview
AnyPath = str | os.PathLike[str]

#: The kernel takes no more pieces than this in one writev (IOV_MAX of Linux).
MAX_PIECES = 1024


#: For files that are appended to, written once, written over in place, or only read. A FIFO in place of a file keeps
#: nobody waiting, a symlink is never followed, and nothing is inherited by I/O processes.
APPEND = os.O_RDWR | os.O_APPEND
CREATE_APPEND = APPEND | os.O_CREAT | os.O_EXCL
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL
UPDATE = os.O_RDWR | os.O_CREAT
READ = os.O_RDONLY
_ALWAYS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY


def open_file(path: AnyPath, flags: int) -> int:
    """Open a file in one of the ways above; new ones are for this user only."""
    return os.open(path, flags | _ALWAYS, 0o600)


def close(fd: int) -> None:
    """Close what `open_file` opened."""
    os.close(fd)


def is_regular(fd: int) -> bool:
    """Whether this is a file with bytes of its own, not a FIFO, device or directory."""
    return stat.S_ISREG(os.fstat(fd).st_mode)


def size(fd: int) -> int:
    """Bytes in an open file."""
    return os.fstat(fd).st_size


def read(fd: int, length: int, offset: int) -> bytes:
    """Some bytes from `offset` on, at most `length`; none at the end of the file."""
    return os.pread(fd, length, offset)


def read_into(fd: int, view: memoryview, offset: int) -> int:
    """Fill some of `view` from `offset` on and return how much; 0 at the end of the file."""
    return os.preadv(fd, [view], offset)


def truncate(fd: int, length: int) -> None:
    """Cut a file to `length` bytes."""
    os.ftruncate(fd, length)


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


def write_at(fd: int, data: Buffer, offset: int) -> None:
    """Write a few bytes over what is at `offset`, in one call."""
    os.pwrite(fd, data, offset)


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


def link(old: AnyPath, new: AnyPath) -> None:
    """Give a file a second name, which must be free."""
    os.link(old, new, follow_symlinks=False)


def unlink(path: AnyPath) -> None:
    """Remove a name."""
    os.unlink(path)


class Entry(NamedTuple):
    """A name in a directory."""

    name: str
    is_file: bool
    is_dir: bool
    #: Bytes, of a regular file.
    size: int


def entries(path: AnyPath) -> Iterator[Entry]:
    """What is in a directory, sorted by name; symlinks are neither files nor directories."""
    with os.scandir(path) as found:
        for entry in sorted(found, key=lambda entry: entry.name):
            status = entry.stat(follow_symlinks=False)
            yield Entry(entry.name, stat.S_ISREG(status.st_mode), stat.S_ISDIR(status.st_mode), status.st_size)


def exists(path: AnyPath) -> bool:
    """Whether there is anything of this name, a dangling symlink included."""
    return os.path.lexists(path)


def file_size(path: AnyPath) -> int:
    """Bytes of what has this name."""
    return os.lstat(path).st_size


def is_at(fd: int, path: AnyPath) -> bool:
    """Whether an open file is still what has this name."""
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except OSError:
        return False


def remove_tree(path: AnyPath) -> None:
    """Remove a directory with all in it, as far as that is possible."""
    shutil.rmtree(path, ignore_errors=True)


def lock_exclusive(path: AnyPath) -> int:
    """Take the lock for this process and write its pid there; it is held until the returned fd is closed.

    The kernel frees it with the process, however that ends. Raises StoreUnavailable, with its pid.
    """
    try:
        fd = open_file(path, UPDATE)
    except OSError as error:
        raise StoreUnavailable(f"{path} cannot be opened: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(OSError):  # only for people: a full disk may have no room for it
            os.ftruncate(fd, os.pwrite(fd, b"%d\n" % os.getpid(), 0))
    except BlockingIOError:
        holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise StoreUnavailable(f"{path} is held by another daemon, pid {holder}") from None
    except OSError as error:
        os.close(fd)
        raise StoreUnavailable(f"{path} cannot be locked: {error.strerror}") from error
    return fd


class Room(NamedTuple):
    """What can still be written on a file system without being root."""

    bytes: int
    #: That can be made.
    files: int
    read_only: bool


def room(path: AnyPath) -> Room:
    """The room on the file system of `path`; some do not count what they have, and then there is always enough.

    They say 0 of 0, or -1 free.
    """
    found = os.statvfs(path)
    return Room(
        found.f_bavail * found.f_frsize if found.f_blocks and found.f_bavail >= 0 else sys.maxsize,
        found.f_favail if found.f_files and found.f_favail >= 0 else sys.maxsize,
        bool(found.f_flag & os.ST_RDONLY),
    )


def preallocate(path: AnyPath, nbytes: int) -> None:
    """See to it that the file `path` exists and owns at least `nbytes` of disk; a failure leaves no file."""
    fd = open_file(path, UPDATE)
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


def make_dirs(path: Path, *, sync: bool) -> None:
    """Create a directory and those above it that are missing; with `sync` its place in them is durable.

    The one that is there may be what somebody made who died before he synced its place.
    """
    missing = list(takewhile(lambda directory: not directory.exists(), [path, *path.parents]))
    there = next((above for above in [path, *path.parents] if above not in missing), path)
    for directory in [there, *reversed(missing)]:
        make_dir(directory)
        if sync:
            with suppress(PermissionError):  # the directory above is somebody else's, and so was making this one
                fsync_dir(directory.parent)
