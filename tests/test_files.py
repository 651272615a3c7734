"""Delete and rename, cancelled while the journal is being written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from pfsd import coding
from pfsd.commands import files
from pfsd.commands.engine import Engine, Settings
from pfsd.errors import NotFound, NotReady
from pfsd.records import Ready, Record, Run
from pfsd.registry import Registry

SETTINGS = Settings(part_size=4096, run_parts=16)


class SlowCommitter:
    """Writes when it is told to, and goes on when its callers are cancelled."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.may_write = asyncio.Event()

    async def commit(self, records: Sequence[Record]) -> None:
        async def write() -> None:
            await self.may_write.wait()
            for record in records:
                self.registry.apply(record)

        await asyncio.shield(asyncio.ensure_future(write()))


class NoWorkers:
    def __len__(self) -> int:
        return 1

    async def run(self, *_: object) -> int:
        return 0


@pytest.mark.parametrize(
    "change", [lambda engine: files.delete(engine, [1]), lambda engine: files.rename(engine, 1, b"b", True)]
)
async def test_a_change_under_way_is_finished_whoever_leaves(change: Callable[[Engine], Awaitable[Any]]) -> None:
    registry = Registry()
    for number, name in ((1, b"a"), (2, b"b")):
        run = Run(pack=number, seq=0, part=number, head=100, parts=[(0, 3, 3, "none", "00" * 16)])
        registry.apply(Ready(file=number, name=name, size=3, part_size=4096, created=0, runs=[run]))
    committer: Any = SlowCommitter(registry)
    unused: Any = None
    workers: Any = NoWorkers()
    engine = Engine(bytes(16), registry, committer, unused, unused, workers, unused, SETTINGS, coding.policy("none", 1))

    leaving = asyncio.ensure_future(change(engine))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.sleep(0)
    another = asyncio.ensure_future(files.delete(engine, [1, 2]))
    await asyncio.sleep(0)
    committer.may_write.set()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    with pytest.raises((NotFound, NotReady)):  # and no record that does not fit the registry
        await another
    await engine.settle()
    assert len(registry.files_after(0, 10)) == 1, "what was deleted or replaced is gone for good"


@pytest.mark.promise("whole")
@pytest.mark.parametrize(
    "late", [lambda engine: files.delete(engine, [b"a"]), lambda engine: files.rename(engine, b"a", b"c", False)]
)
async def test_a_file_is_left_alone_when_it_was_just_given_another_name(
    late: Callable[[Engine], Awaitable[Any]],
) -> None:
    registry = Registry()
    run = Run(pack=1, seq=0, part=1, head=100, parts=[(0, 3, 3, "none", "00" * 16)])
    registry.apply(Ready(file=1, name=b"a", size=3, part_size=4096, created=0, runs=[run]))
    committer: Any = SlowCommitter(registry)
    unused: Any = None
    workers: Any = NoWorkers()
    engine = Engine(bytes(16), registry, committer, unused, unused, workers, unused, SETTINGS, coding.policy("none", 1))
    first = asyncio.ensure_future(files.rename(engine, b"a", b"b", False))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    second = asyncio.ensure_future(late(engine))  # the name still leads to the file
    await asyncio.sleep(0)
    committer.may_write.set()
    await first
    with pytest.raises(NotReady):
        await second
    assert registry.find(b"b") is not None, "nobody has asked for this"


async def test_damage_found_side_by_side_adds_up() -> None:
    registry = Registry()
    rows = [(at * 10, 4096, 5, "zstd", "00" * 16) for at in range(3)]
    registry.apply(Ready(file=1, name=b"a", size=3 * 4096, part_size=4096, created=0, runs=[Run(1, 0, 1, 5, rows)]))
    committer: Any = SlowCommitter(registry)
    unused: Any = None
    workers: Any = NoWorkers()
    engine = Engine(bytes(16), registry, committer, unused, unused, workers, unused, SETTINGS, coding.policy("none", 1))
    found = asyncio.gather(*(engine.note_checked(1, bad=bad) for bad in ({0}, {2}, {0, 1})))
    await asyncio.sleep(0)
    committer.may_write.set()
    await found
    assert registry.bad_parts(1) == (0, 1, 2)
