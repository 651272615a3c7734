"""The store in a directory: the suite, and what only files can do."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys

import pytest

from pfsd import disk
from pfsd.errors import Corrupt, Missing, StoreUnavailable
from pfsd.stores import PackInfo, open_store
from tests.store_suite import PackStoreTests


def open_at(tmp_path, epoch="e1", sync=True):
    return open_store(f"file:{tmp_path}/store", sync=sync, epoch=epoch)


class TestLocalStore(PackStoreTests):
    def make_store(self, tmp_path):
        return open_at(tmp_path)

    def staged(self, store):
        return sorted(os.listdir(store._own_tmp))

    def test_it_is_the_same_store_in_another_process(self, store, tmp_path):
        self.put(store, 4097, b"hello")
        code = (
            "import sys; from pfsd.stores import open_store\n"
            f"store = open_store('file:{tmp_path}/store', sync=True, epoch='e1')\n"
            "with store.open(4097) as reader: print(reader.read(0, 5))\n"
            "print(store.stage('there', [b'staged there']))"
        )
        result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert result.stdout == "b'hello'\n12\n"
        store.publish([("there", 2)])
        assert self.get(store, 2, 12) == b"staged there"


class TestLocalStoreWithoutSync(TestLocalStore):
    def make_store(self, tmp_path):
        return open_at(tmp_path, sync=False)


@pytest.fixture
def store(tmp_path):
    return open_at(tmp_path)


@pytest.fixture
def one(store, tmp_path):
    """The path of pack 4097, which holds b"hello"."""
    store.stage("t", [b"hello"])
    store.publish([("t", 4097)])
    return tmp_path / "store/packs/00001/0000000000001001.pack"


# --- layout -------------------------------------------------------------------------------------


def test_where_things_are_and_for_whom(store, one, tmp_path):
    store.stage("u", [b"x"])
    found = {
        str(path.relative_to(tmp_path / "store")): stat.S_IMODE(path.stat().st_mode)
        for path in (tmp_path / "store").rglob("*")
    }
    assert found == {
        "packs": 0o700,
        "packs/00001": 0o700,
        "packs/00001/0000000000001001.pack": 0o600,
        "tmp": 0o700,
        "tmp/e1": 0o700,
        "tmp/e1/u": 0o600,
    }


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../up", "a\0b", ".hidden", "x" * 300])
def test_names_that_lead_elsewhere_are_refused(store, tmp_path, name):
    for use in (
        lambda: store.stage(name, [b"x"]),
        lambda: store.publish([(name, 1)]),
        lambda: store.discard([name]),
        lambda: open_at(tmp_path, epoch=name),
    ):
        with pytest.raises(ValueError, match="cannot be the name"):
            use()


@pytest.mark.parametrize("url", ["s3:bucket", "file", "nonsense", "", "file:relative/path", "file:"])
def test_urls_that_name_no_store(url):
    with pytest.raises(StoreUnavailable):
        open_store(url, sync=True, epoch="e1")


def test_a_store_that_cannot_be_made(tmp_path):
    (tmp_path / "store").write_bytes(b"in the way")
    with pytest.raises(StoreUnavailable, match="cannot be used"):
        open_at(tmp_path)


# --- durability: every sync that must happen, and none without need -----------------------------


@pytest.fixture
def calls(monkeypatch, tmp_path):
    made: list[str] = []

    def name(fd_or_path) -> str:
        path = os.readlink(f"/proc/self/fd/{fd_or_path}") if isinstance(fd_or_path, int) else str(fd_or_path)
        return os.path.relpath(path, tmp_path / "store")

    real_write, real_rename = disk.writev_all, disk.rename

    def write(fd, pieces):
        made.append(f"write {sum(map(len, pieces))} {name(fd)}")
        real_write(fd, pieces)

    def rename(old, new):
        made.append(f"rename {name(old)} {name(new)}")
        real_rename(old, new)

    monkeypatch.setattr(disk, "writev_all", write)
    monkeypatch.setattr(disk, "rename", rename)
    monkeypatch.setattr(disk, "fdatasync", lambda fd: made.append(f"fdatasync {name(fd)}"))
    monkeypatch.setattr(disk, "fsync_dir", lambda path: made.append(f"fsync_dir {name(path)}"))
    return made


def test_the_order_of_a_durable_pack(store, calls):
    store.stage("t", [b"ab", b"c"])
    store.publish([("t", 1)])
    store.sync_published([1])
    assert calls == [
        "write 3 tmp/e1/t",
        "fdatasync tmp/e1/t",
        "rename tmp/e1/t packs/00000/0000000000000001.pack",
        "fsync_dir packs/00000",
        "fsync_dir packs",
        "fsync_dir .",
    ]


def test_each_directory_is_synced_once_and_its_parent_only_the_first_time(store, calls):
    for pack in (1, 2, 3, 4096):
        store.stage(f"t{pack}", [b"x"])
    store.publish([("t1", 1), ("t2", 2), ("t4096", 4096)])
    calls.clear()
    store.sync_published([1, 2, 4096])
    assert sorted(calls) == ["fsync_dir .", "fsync_dir packs", "fsync_dir packs/00000", "fsync_dir packs/00001"]
    store.publish([("t3", 3)])
    calls.clear()
    store.sync_published([3])
    assert calls == ["fsync_dir packs/00000"]


def test_a_directory_that_an_earlier_daemon_made_is_not_trusted(store, one, tmp_path, calls):
    later = open_at(tmp_path, epoch="e2")
    later.stage("t", [b"x"])
    later.publish([("t", 4098)])
    calls.clear()
    later.sync_published([4098])
    assert calls == ["fsync_dir packs/00001", "fsync_dir packs", "fsync_dir ."]


def test_a_failed_sync_of_the_parent_is_made_up_for(store, calls, monkeypatch):
    store.stage("t", [b"x"])
    store.publish([("t", 1)])

    def broken(path):
        raise OSError(errno.EIO, "broken")

    with monkeypatch.context() as patched:
        patched.setattr(disk, "fsync_dir", broken)
        with pytest.raises(OSError, match="broken"):
            store.sync_published([1])
    calls.clear()
    store.sync_published([1])
    assert "fsync_dir packs" in calls


def test_without_sync_nothing_waits_for_the_disk(tmp_path, calls):
    store = open_at(tmp_path, sync=False)
    store.stage("t", [b"x"])
    store.publish([("t", 1)])
    store.sync_published([1])
    assert [call.split()[0] for call in calls] == ["write", "rename"]


def test_writes_are_gathered_to_about_one_mib(store, calls):
    store.stage("t", [bytes(100_000)] * 25)
    assert [call for call in calls if call.startswith("write")] == [
        "write 1100000 tmp/e1/t",
        "write 1100000 tmp/e1/t",
        "write 300000 tmp/e1/t",
    ]


@pytest.mark.parametrize("step", ["writev_all", "fdatasync"])
def test_an_error_of_the_disk_while_staging_leaves_nothing(store, tmp_path, monkeypatch, step):
    def broken(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(disk, step, broken)
    with pytest.raises(OSError, match="full"):
        store.stage("t", [b"x"])
    assert os.listdir(tmp_path / "store/tmp/e1") == []


def test_no_file_stays_open(store, one):
    before = len(os.listdir("/proc/self/fd"))
    store.stage("u", [b"x"])
    with pytest.raises(ZeroDivisionError):
        store.stage("v", (1 // 0 for _ in "x"))
    with store.open(4097) as reader:
        reader.read(0, 5)
    one.unlink()
    os.mkfifo(one)
    with pytest.raises(Corrupt):
        store.open(4097)
    assert len(os.listdir("/proc/self/fd")) == before


# --- what may lie where a pack should be --------------------------------------------------------


def test_a_fifo_in_place_of_a_pack_is_corrupt_at_once(store, one):
    one.unlink()
    os.mkfifo(one)
    with pytest.raises(Corrupt, match="not a regular file"):
        store.open(4097)
    assert list(store.list()) == []


def test_a_directory_in_place_of_a_pack_is_corrupt(store, one):
    one.unlink()
    one.mkdir()
    with pytest.raises(Corrupt, match="not a regular file"):
        store.open(4097)


def test_a_symlink_in_place_of_a_pack_is_corrupt_wherever_it_leads(store, one, tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"hello")
    one.unlink()
    for target in (tmp_path / "elsewhere", tmp_path / "nowhere"):
        one.symlink_to(target)
        with pytest.raises(Corrupt, match="not a regular file"):
            store.open(4097)
        assert list(store.list()) == []
        one.unlink()


def test_a_missing_directory_means_a_missing_pack(store, one):
    with pytest.raises(Missing):
        store.open(1 << 40)
    one.unlink()
    one.parent.rmdir()
    one.parent.write_bytes(b"a file where the directory was")
    with pytest.raises(Missing):
        store.open(4097)
    assert store.delete([4097]) == 0
    assert list(store.list()) == []


def test_a_pack_cut_while_it_is_open_is_corrupt(store, one):
    with store.open(4097) as reader:
        os.truncate(one, 3)
        assert reader.read(0, 3) == b"hel"
        with pytest.raises(Corrupt):
            reader.read(0, 5)
        with pytest.raises(Corrupt):
            reader.read_into(0, memoryview(bytearray(5)))


def test_short_reads_are_continued(store, one, monkeypatch):
    pread, preadv = os.pread, os.preadv
    monkeypatch.setattr(os, "pread", lambda fd, length, offset: pread(fd, min(length, 2), offset))
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: preadv(fd, [views[0][:2]], offset))
    room = bytearray(5)
    with store.open(4097) as reader:
        assert reader.read(0, 5) == b"hello"
        assert reader.read_into(0, memoryview(room)) == 5
    assert room == b"hello"


def test_an_error_of_the_disk_is_neither_missing_nor_corrupt(store, one, monkeypatch):
    real = os.open

    def broken(path, *rest, **named):
        if str(path) == str(one):
            raise OSError(errno.EIO, "broken")
        return real(path, *rest, **named)

    monkeypatch.setattr(os, "open", broken)
    with pytest.raises(OSError, match="broken"):
        store.open(4097)


# --- foreign files ------------------------------------------------------------------------------


def test_foreign_files_are_not_listed_and_stay(store, one, tmp_path):
    packs = tmp_path / "store/packs"
    foreign = [
        packs / "README",
        packs / "0000000000000007.pack",
        packs / "00000/0000000000001002.pack",  # a good name in the wrong directory
        packs / "00001/0000000000001002.pack~",
        packs / "00001/000000000000100A.pack",
        packs / "00001/1003.pack",
        packs / "00001/0000000000001004.pack/file",
        packs / "lost+found/0000000000001005.pack",
    ]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"foreign")
    (packs / "00002").symlink_to("00001")
    assert list(store.list()) == [PackInfo(4097, 5)]
    store.delete([4097])
    store.sweep_staged()
    assert all(path.read_bytes() == b"foreign" for path in foreign)


def test_delete_goes_on_behind_what_it_cannot_remove(store, tmp_path):
    for pack in (1, 3):
        store.stage(f"t{pack}", [b"12345"])
        store.publish([(f"t{pack}", pack)])
    (tmp_path / "store/packs/00000/0000000000000002.pack").mkdir()
    with pytest.raises(OSError):
        store.delete([1, 2, 3])
    assert list(store.list()) == []
    assert os.listdir(tmp_path / "store/packs/00000") == ["0000000000000002.pack"]


# --- litter of earlier daemons ------------------------------------------------------------------


def test_sweeping_takes_what_earlier_daemons_staged(tmp_path):
    first = open_at(tmp_path, epoch="e1")
    first.stage("a", [b"x"])
    first.stage("b", [b"x"])
    second = open_at(tmp_path, epoch="e2")
    second.stage("c", [b"x"])
    (tmp_path / "store/tmp/litter").write_bytes(b"x")
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_bytes(b"x")
    (tmp_path / "store/tmp/link").symlink_to(tmp_path / "precious")
    assert second.sweep_staged() == 4
    assert os.listdir(tmp_path / "store/tmp") == ["e2"]
    assert os.listdir(tmp_path / "store/tmp/e2") == ["c"]
    assert (tmp_path / "precious/file").exists()


def test_a_process_that_outlives_its_daemon_publishes_nothing(tmp_path):
    orphan = open_at(tmp_path, epoch="e1")
    successor = open_at(tmp_path, epoch="e2")
    successor.sweep_staged()
    with pytest.raises(FileNotFoundError):
        orphan.stage("late", [b"x"])
    with pytest.raises(FileNotFoundError):
        successor.publish([("late", 1)])
    assert list(successor.list()) == []
