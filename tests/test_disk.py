"""disk: whole writes whatever the kernel takes at once, and one daemon for each store."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pfsd import disk
from pfsd.errors import StoreUnavailable


@pytest.fixture
def out(tmp_path: Path):
    fd = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def contents(fd: int) -> bytes:
    return os.pread(fd, 1 << 20, 0)


@pytest.mark.parametrize("at_once", [1, 2, 3, 5, 7, 100])
def test_short_writes_are_continued(out, monkeypatch, at_once):
    def short(fd: int, pieces: list[memoryview]) -> int:
        return os.write(fd, b"".join(pieces)[:at_once])

    monkeypatch.setattr(disk.os, "writev", short)
    disk.writev_all(out, [b"ab", b"", bytearray(b"cdefg"), memoryview(b"h"), b"ijk", b""])
    disk.write_all(out, b"lmn")
    assert contents(out) == b"abcdefghijklmn"


def test_more_pieces_than_one_call_takes(out):
    disk.writev_all(out, [bytes([at % 251]) for at in range(3000)])
    assert contents(out) == bytes(at % 251 for at in range(3000))


def test_views_of_other_items_count_in_bytes(out):
    disk.write_all(out, memoryview(b"abcdefgh").cast("I"))
    assert contents(out) == b"abcdefgh"


def test_a_failed_write_is_not_hidden(out, monkeypatch):
    def full(fd: int, pieces: list[memoryview]) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(disk.os, "writev", full)
    with pytest.raises(OSError, match="full"):
        disk.write_all(out, b"abc")


def test_a_directory_is_synced_and_nothing_else(tmp_path, monkeypatch):
    synced: list[str] = []
    monkeypatch.setattr(disk.os, "fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")))
    disk.fsync_dir(tmp_path)
    assert synced == [str(tmp_path)]
    with pytest.raises(NotADirectoryError):
        disk.fsync_dir(__file__)


def test_rename_and_unlink(tmp_path):
    (tmp_path / "a").write_bytes(b"new")
    (tmp_path / "b").write_bytes(b"old")
    disk.rename(tmp_path / "a", tmp_path / "b")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    assert (tmp_path / "b").read_bytes() == b"new"
    disk.unlink(tmp_path / "b")
    assert list(tmp_path.iterdir()) == []


def test_the_lock_is_held_by_one_and_names_its_holder(tmp_path):
    path = tmp_path / "lock"
    held = disk.lock_exclusive(path)
    assert path.read_bytes() == b"%d\n" % os.getpid()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not os.get_inheritable(held)
    with pytest.raises(StoreUnavailable) as caught:
        disk.lock_exclusive(path)
    assert str(path) in caught.value.message
    assert f"pid {os.getpid()}" in caught.value.message
    os.close(held)
    os.close(disk.lock_exclusive(path))


def test_the_lock_ends_with_its_process(tmp_path):
    path = tmp_path / "lock"
    code = f"from pfsd import disk; import os; disk.lock_exclusive({str(path)!r}); print('held', flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(StoreUnavailable, match=f"pid {holder.pid}"):
        disk.lock_exclusive(path)
    holder.kill()
    holder.communicate()
    fd = disk.lock_exclusive(path)
    assert path.read_bytes() == b"%d\n" % os.getpid()
    os.close(fd)


def test_a_lock_that_cannot_be_opened_is_refused(tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (tmp_path / "lock").symlink_to("elsewhere")
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        disk.lock_exclusive(tmp_path / "lock")
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"


def test_a_longer_pid_of_a_former_holder_is_gone(tmp_path):
    (tmp_path / "lock").write_bytes(b"99999999999\n")
    os.close(disk.lock_exclusive(tmp_path / "lock"))
    assert (tmp_path / "lock").read_bytes() == b"%d\n" % os.getpid()


def test_preallocate_takes_the_room(tmp_path):
    disk.preallocate(tmp_path / "reserve", 100_000)
    assert (tmp_path / "reserve").stat().st_size == 100_000
    assert (tmp_path / "reserve").stat().st_blocks * 512 >= 100_000


def test_preallocate_leaves_nothing_when_it_fails(tmp_path, monkeypatch):
    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(disk.os, "posix_fallocate", full)
    with pytest.raises(OSError, match="full"):
        disk.preallocate(tmp_path / "reserve", 100_000)
    assert list(tmp_path.iterdir()) == []


def test_free_space_is_what_the_file_system_says(tmp_path):
    room = os.statvfs(tmp_path)
    found = disk.room(tmp_path)
    assert 0 < found.bytes <= room.f_blocks * room.f_frsize
    assert 0 < found.files <= room.f_files
    assert not found.read_only


@pytest.mark.parametrize("free", [(0, 0), (12_345, -1)])
def test_what_a_file_system_does_not_count_is_enough(tmp_path, monkeypatch, free):
    files, left = free
    found = (4096, 4096, 100, 50, 50, files, left, left, 0, 255)
    monkeypatch.setattr(disk.os, "statvfs", lambda path: os.statvfs_result(found))
    assert disk.room(tmp_path) == (50 * 4096, sys.maxsize, False)


def test_directories_are_for_their_user_only(tmp_path):
    disk.make_dir(tmp_path / "a")
    disk.make_dir(tmp_path / "a")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o700
