"""Small file systems of a test's own, to be filled, made read-only, and torn away. All of it needs root."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

#: From <linux/fs.h>, and its flag for: what is not on the disk yet is lost.
_FS_IOC_SHUTDOWN = 0x8004587D
_NO_LOG_FLUSH = 2


class Disk:
    """A mounted file system; what fills it is in files of its own at its top."""

    def __init__(self, top: Path, remount: Callable[[], None]) -> None:
        self.top = top
        self.mount_again = remount

    def fill_bytes(self, but: int = 0) -> None:
        """Take every byte that is left, or all but about so many."""
        self._fill_bytes()
        if but:
            filler = self.top / "filler"
            os.truncate(filler, filler.stat().st_size - but)

    def _fill_bytes(self) -> None:
        fd = os.open(self.top / "filler", os.O_WRONLY | os.O_CREAT)
        try:
            _sync(fd)
            end, step = os.fstat(fd).st_size, 1 << 20
            while step >= 512:
                try:
                    os.posix_fallocate(fd, end, step)
                    end += step
                except OSError as error:
                    assert error.errno == errno.ENOSPC
                    step //= 2
        finally:
            os.close(fd)

    def fill_files(self, but: int = 0) -> None:
        """Make files until none can be made any more, or all but so many."""
        where = self.top / "fillers"
        where.mkdir(exist_ok=True)
        made = 0
        with contextlib.suppress(OSError):
            while True:
                (where / f"{made}").touch()
                made += 1
        for at in range(made - but, made):
            (where / f"{at}").unlink()

    def make_room(self) -> None:
        """Remove all that fills it."""
        shutil.rmtree(self.top / "fillers", ignore_errors=True)
        (self.top / "filler").unlink(missing_ok=True)

    def used(self) -> tuple[int, int]:
        """Bytes and files in use."""
        fd = os.open(self.top, os.O_RDONLY)
        try:
            _sync(fd)
        finally:
            os.close(fd)
        room = os.statvfs(self.top)
        return (room.f_blocks - room.f_bfree) * room.f_frsize, room.f_files - room.f_ffree

    def detach(self) -> None:
        """Take it away from where it is; who has a file of it open keeps that."""
        subprocess.run(["umount", "-l", str(self.top)], check=True)

    def tear_away(self) -> None:
        """What is not on the disk yet is lost, and every call from here on fails."""
        fd = os.open(self.top, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _FS_IOC_SHUTDOWN, struct.pack("I", _NO_LOG_FLUSH))
        finally:
            os.close(fd)


def _sync(fd: int) -> None:
    """Bring the file system of an open file up to date, and no other: `os.sync` would wait for all there are."""
    if ctypes.CDLL(None, use_errno=True).syncfs(fd):
        raise OSError(ctypes.get_errno(), "syncfs")


@contextmanager
def small_tmpfs(top: Path) -> Iterator[Disk]:
    """16 MiB and 64 files in memory."""
    with _mounted(top, "-t", "tmpfs", "-o", "size=16m,nr_inodes=64", "tmpfs") as disk:
        yield disk


@contextmanager
def small_ext4(top: Path) -> Iterator[Disk]:
    """16 MiB with ext4, in an image beside `top`."""
    image = top.with_suffix(".img")
    if shutil.which("mke2fs") is None:
        pytest.skip("needs mke2fs")
    image.touch()
    os.truncate(image, 16 << 20)
    subprocess.run(["mke2fs", "-q", "-t", "ext4", "-F", "-N", "64", str(image)], check=True)
    with _mounted(top, "-o", "loop,commit=300", str(image)) as disk:
        yield disk


@contextmanager
def read_only(path: Path) -> Iterator[None]:
    """Nothing below `path` can be changed by way of it, whoever asks; what is open already stays so."""
    _mount(str(path), "--bind", str(path))
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(path)], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@contextmanager
def immutable(path: Path) -> Iterator[None]:
    """Nothing can be made, removed or renamed in the directory `path`, not even by root."""
    changed = subprocess.run(["chattr", "+i", str(path)], capture_output=True, text=True)
    if changed.returncode:
        pytest.skip(f"needs root, and a file system with attributes: {changed.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", str(path)], check=True)


@contextmanager
def _mounted(top: Path, *how: str) -> Iterator[Disk]:
    top.mkdir(exist_ok=True)

    def remount() -> None:
        if os.path.ismount(top):
            subprocess.run(["umount", str(top)], check=True)
        _mount(str(top), *how)

    _mount(str(top), *how)
    try:
        yield Disk(top, remount)
    finally:
        if os.path.ismount(top):
            subprocess.run(["umount", str(top)], check=False)
        if os.path.ismount(top):
            subprocess.run(["umount", "-l", str(top)], check=True)


def _mount(top: str, *how: str) -> None:
    mounted = subprocess.run(["mount", *how, top], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"needs root, and a kernel that mounts this: {mounted.stderr.strip()}")
