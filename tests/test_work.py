"""What I/O processes run, without a process around it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from pfsd import packs, stores, work
from pfsd.stores.memory import open_store

STORE = bytes(16)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> stores.PackStore:
    """The store of a process with 64 KiB of slab."""
    store = open_store("", sync=True, epoch="e")
    monkeypatch.setattr(work._Process, "slab", memoryview(bytearray(64 << 10)), raising=False)
    monkeypatch.setattr(work._Process, "store", store, raising=False)
    return store


def origin(file: int, size: int) -> packs.Origin:
    return packs.Origin(STORE, file, bytes(8), 0, 4096, size, b"name")


def test_a_source_that_cannot_be_read_fails_alone(store: stores.PackStore, tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("sound", "short", "gone", "sound too")]
    for path, content in zip(paths, (b"a" * 100, b"b" * 99, b"", b"c" * 100), strict=True):
        path.write_bytes(content)
    paths[2].unlink()
    batch = work.StoreBatch(
        token="t",
        parts=tuple(work.PartIn(origin(at + 1, 100), 0, at * 4096, 100) for at in range(4)),
        codec="none",
        level=1,
        reads=tuple(work.Read(str(path), 0, at, at + 1) for at, path in enumerate(paths)),
    )
    stored = work.store_batch(batch, 0)
    assert isinstance(stored, work.StoredBatch)
    codes = [row.code if isinstance(row, work.Failure) else row.md5 for row in stored.parts]
    assert codes == [hashlib.md5(b"a" * 100).digest(), "changed", "not-found", hashlib.md5(b"c" * 100).digest()]
    store.publish([(stored.token, 1)])
    assert [pack.pack for pack in store.list()] == [1]


def test_a_batch_of_which_nothing_can_be_read_stages_nothing(store: stores.PackStore, tmp_path: Path) -> None:
    read = work.Read(str(tmp_path / "gone"), 0, 0, 1)
    stored = work.store_batch(work.StoreBatch("t", (work.PartIn(origin(1, 9), 0, 0, 9),), "none", 1, (read,)), 0)
    assert isinstance(stored, work.StoredBatch)
    assert [type(row) for row in stored.parts] == [work.Failure]
    with pytest.raises(FileNotFoundError):
        store.publish([(stored.token, 1)])


def test_batches_loaded_together_fail_alone(store: stores.PackStore, tmp_path: Path) -> None:
    content = {1: b"first" * 10, 2: b"second" * 10}
    rows = {}
    for file, data in content.items():
        work._Process.slab[: len(data)] = data
        batch = work.StoreBatch(f"t{file}", (work.PartIn(origin(file, len(data)), 0, 0, len(data)),), "none", 1)
        stored = work.store_batch(batch, 0)
        assert isinstance(stored, work.StoredBatch)
        store.publish([(stored.token, file)])
        (rows[file],) = stored.parts
    work._Process.slab[:100] = bytes(100)

    def load(pack: int, file: int, at: int, target: Path | None = None) -> work.LoadBatch:
        row = rows[file]
        assert isinstance(row, work.PartRow)
        path = None if target is None else str(target)
        return work.LoadBatch(pack, (work.PartOut(STORE, file, 0, at, row),), path, length=row.size)

    (tmp_path / "out").write_bytes(b"")
    batches = (
        load(1, 1, 0, tmp_path / "out"),
        load(9, 2, 4096),
        load(2, 2, 8192),
        load(2, 2, 4096, tmp_path / "no/out"),
    )
    results = work.load_batches(batches, 0)
    assert isinstance(results, tuple)
    first, missing, second, no_target = results
    assert (first, second) == (work.LoadedBatch(), work.LoadedBatch())
    assert isinstance(missing, work.LoadedBatch) and [bad.code for bad in missing.bad] == ["missing"]
    assert isinstance(no_target, work.Failure) and no_target.code == "not-found"
    assert bytes(work._Process.slab[8192 : 8192 + 60]) == content[2]
    assert (tmp_path / "out").read_bytes() == content[1]
