"""The copying of mostly dead packs, with the tasks of I/O processes run in place."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pfsd import coding, packs, stores, work
from pfsd.commands import files
from pfsd.commands.engine import Engine, Settings
from pfsd.commands.reclaim import Reclaimer
from pfsd.records import Ready, Record, Run
from pfsd.registry import Registry
from pfsd.stores.memory import open_store

STORE = bytes(16)
SIZE = 1000


class Committer:
    failed = False

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def commit(self, records: Sequence[Record]) -> None:
        for record in records:
            self._registry.apply(record)


class Workers:
    def __len__(self) -> int:
        return 1

    async def run(self, function: Callable[[Any, int], Any], task: object, *_: object) -> Any:
        return function(task, 0)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> stores.PackStore:
    """The store of a process."""
    store = open_store("", sync=True, epoch="e")
    monkeypatch.setattr(work._Process, "slab", memoryview(bytearray(64 << 10)), raising=False)
    monkeypatch.setattr(work._Process, "store", store, raising=False)
    return store


def engine_with_one_pack(store: stores.PackStore, count: int) -> Engine:
    """Files 1 to `count` of one part each, all of them in pack 1."""
    registry = Registry()
    origins = [packs.Origin(STORE, at, bytes(8), 0, 4096, SIZE, b"f%d" % at) for at in range(1, count + 1)]
    batch = work.StoreBatch("t", tuple(work.PartIn(origin, 0, 0, SIZE) for origin in origins), "none", 1)
    stored = work.store_batch(batch, 0)
    assert isinstance(stored, work.StoredBatch)
    store.publish([(stored.token, 1)])
    for origin, row in zip(origins, stored.parts, strict=True):
        assert isinstance(row, work.PartRow)
        run = Run(1, 0, origin.file, row.head, [(row.offset, row.size, row.stored, row.codec, row.md5.hex())])
        registry.apply(Ready(origin.file, origin.name, SIZE, 4096, 0, [run]))
    committer: Any = Committer(registry)
    workers: Any = Workers()
    unused: Any = None
    settings = Settings(part_size=4096, run_parts=16)
    return Engine(STORE, registry, committer, store, unused, workers, unused, settings, coding.policy("none", 1))


async def until(is_so: Callable[[], bool]) -> None:
    """Let the others go on until it is so."""
    async with asyncio.timeout(30):
        while not is_so():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def test_a_pack_stays_while_what_was_moved_is_read_whoever_else_leaves_it(store: stores.PackStore) -> None:
    engine = engine_with_one_pack(store, 4)
    reclaimer = Reclaimer(engine)
    moved, doomed = engine.lookup(4), engine.lookup(1)
    with engine.pinned(moved):
        with engine.pinned(doomed):
            await files.delete(engine, [1, 2, 3])
            await until(lambda: reclaimer.copied == 1)
            assert engine.registry.packs_of(4) != [1]
        await until(lambda: engine.registry.file(1) is None)
        for _ in range(10):  # the last file of the pack is forgotten, and whoever would unlink it has had his turns
            await asyncio.sleep(0)
        assert 1 in {pack.pack for pack in store.list()}, "it is being read"
    await engine.settle()
    assert [pack.pack for pack in store.list()] == engine.registry.packs_of(4)
    assert reclaimer.freed > 4 * SIZE and not reclaimer.waste
