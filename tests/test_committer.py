"""Group commit, counted; and what happens when the disk is full, fails, or the journal is mostly dead.

The disk is held at a sync by an event, so that a test decides what gathers meanwhile.
"""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from pfsd import committer as committer_module
from pfsd import disk, logs
from pfsd import journal as journal_module
from pfsd.committer import Committer
from pfsd.errors import Internal, IoError, NoSpace, StorageFailed
from pfsd.journal import Journal
from pfsd.records import Damage, Delete, Drop, Ids, Parts, Put, Ready, Record, RecordError, Removed, Run
from pfsd.registry import Registry, RegistryError

MD5 = "79054025255fb1a26e4bc422aef54eb4"


def ready(file: int, name: bytes = b"") -> Ready:
    return Ready(file, name or b"n%d" % file, 0, 100, 5, [])


def part(file: int, seq: int) -> Parts:
    return Parts(file, Run(seq + 1, seq, seq + 1, 10, [(0, 100, 50, "none", MD5)]))


class Disk:
    """The calls of `disk` by journal threads: they can be held, counted, and made to fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.syncs = 0
        self.errors: dict[str, list[int]] = {"write_all": [], "fdatasync": [], "rename": [], "fsync_dir": []}
        for name in self.errors:
            monkeypatch.setattr(disk, name, self._wrap(name, getattr(disk, name)))

    def _wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            if name == "fdatasync":
                self.syncs += 1
                self.entered.release()
                assert self.gate.wait(20)
            if self.errors[name]:
                code = self.errors[name].pop(0)
                raise OSError(code, os.strerror(code))
            return call(*args)

        return wrapped

    async def in_sync(self) -> None:
        """Return when one more sync has been entered."""
        await asyncio.to_thread(self.entered.acquire, timeout=20)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


class Made:
    """A committer on a new journal, and what it reported."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = Journal.create(path)
        self.registry = Registry()
        self.failures: list[StorageFailed] = []
        self.full = 0
        self.on_full: Callable[[], None] = lambda: None
        self.committer = Committer(self.journal, self.registry, on_full=self._on_full, on_failure=self.failures.append)

    def _on_full(self) -> None:
        self.full += 1
        self.on_full()

    def replayed(self) -> Registry:
        registry = Registry()
        Journal.open(self.path, registry.replay).close()
        return registry

    def same_after_replay(self) -> bool:
        again = self.replayed()
        return snapshot(again) == snapshot(self.registry)


def snapshot(registry: Registry) -> list[Record]:
    return [record for record in registry.snapshot() if not isinstance(record, Ids)]


@pytest.fixture
async def made(tmp_path: Path, fake: Disk) -> AsyncIterator[Made]:
    made = Made(tmp_path / "journal.jsonl")
    fake.syncs = 0
    fake.entered = threading.Semaphore(0)
    yield made
    fake.gate.set()
    await made.committer.close()


async def compacted(made: Made) -> None:
    """Wait for the compaction that a commit has started, if it has."""
    await made.committer.flush()
    if made.committer._compacting is not None:
        await made.committer._compacting


# --- committing ---


async def test_a_commit_is_durable_and_applied_when_it_returns(made: Made, fake: Disk) -> None:
    fake.gate.clear()
    commit = asyncio.create_task(made.committer.commit([ready(1), ready(2)]))
    await fake.in_sync()
    assert made.registry.file(1) is None and not commit.done(), "visible before it is durable"
    fake.gate.set()
    await commit
    assert made.registry.file(1) is not None and made.registry.file(2) is not None
    assert (fake.syncs, made.committer.syncs, made.committer.records) == (1, 1, 2)
    assert made.committer.journal_size == made.path.stat().st_size
    assert made.same_after_replay()


async def test_while_one_sync_runs_all_others_share_the_next(made: Made, fake: Disk) -> None:
    fake.gate.clear()
    first = asyncio.create_task(made.committer.commit([ready(1)]))
    await fake.in_sync()
    others = [asyncio.create_task(made.committer.commit([ready(n)])) for n in range(2, 101)]
    await asyncio.sleep(0)
    fake.gate.set()
    await asyncio.gather(first, *others)
    assert fake.syncs == 2
    assert made.registry.files_ready == made.committer.records == 100
    assert made.same_after_replay()


async def test_waiters_wake_in_the_order_of_the_journal(made: Made) -> None:
    order: list[int] = []

    async def commit(number: int) -> None:
        await made.committer.commit([ready(number)])
        order.append(number)

    await asyncio.gather(*(commit(number) for number in range(1, 30)))
    assert order == list(range(1, 30))


async def test_nothing_to_commit_costs_nothing(made: Made, fake: Disk) -> None:
    await made.committer.commit([])
    assert fake.syncs == 0


async def test_a_cancelled_waiter_does_not_stop_its_write(made: Made, fake: Disk) -> None:
    fake.gate.clear()
    gone = asyncio.create_task(made.committer.commit([ready(1)]))
    stays = asyncio.create_task(made.committer.commit([ready(2)]))
    await fake.in_sync()
    gone.cancel()
    await asyncio.wait({gone})
    fake.gate.set()
    await stays
    assert gone.cancelled() and made.registry.file(1) is not None
    assert made.same_after_replay()


async def test_what_cannot_be_written_is_refused_at_once(made: Made) -> None:
    with pytest.raises(RecordError):
        await made.committer.commit([ready(1), Drop(0)])
    assert made.committer.records == 0 and made.registry.file(1) is None


async def test_a_record_that_does_not_fit_hurts_only_its_caller_and_is_compacted_away(made: Made) -> None:
    """It is a bug of the caller; the journal must still be readable afterwards."""
    bad = asyncio.create_task(made.committer.commit([Delete(77)]))
    good = asyncio.create_task(made.committer.commit([ready(1)]))
    with pytest.raises(Internal):
        await bad
    await good
    await compacted(made)
    assert made.committer.compactions == 1 and made.same_after_replay()


async def test_after_close_nothing_is_taken(tmp_path: Path, fake: Disk) -> None:
    made = Made(tmp_path / "journal.jsonl")
    first = asyncio.create_task(made.committer.commit([ready(1)]))
    await asyncio.sleep(0)
    await asyncio.gather(made.committer.close(), first)
    assert made.same_after_replay() and made.registry.file(1) is not None
    with pytest.raises(IoError):
        await made.committer.commit([ready(2)])


# --- a full disk ---


@pytest.mark.promise("full")
async def test_a_full_disk_fails_a_whole_batch_and_then_goes_on(made: Made, fake: Disk) -> None:
    fake.errors["write_all"] = [errno.ENOSPC]
    outcomes = await asyncio.gather(*(made.committer.commit([ready(n)]) for n in range(1, 6)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [NoSpace] * 5
    assert snapshot(made.registry) == [] and made.full == 0 and not made.failures
    await made.committer.commit([ready(6)])
    assert made.same_after_replay()


async def test_an_io_error_at_write_is_told_as_such(made: Made, fake: Disk) -> None:
    await made.committer.commit([ready(1)])
    fake.errors["write_all"] = [errno.EIO]
    with pytest.raises(IoError):
        await made.committer.commit([Delete(1)])
    assert made.full == 0 and not made.committer.failed


@pytest.mark.promise("full")
async def test_on_a_full_disk_what_frees_space_gets_the_reserve(made: Made, fake: Disk) -> None:
    await made.committer.commit([ready(1), ready(2), Delete(2), Put(3, b"c", 100, 5)])
    fake.errors["write_all"] = [errno.ENOSPC]
    freeing: list[Record] = [Delete(1), Removed(2), Drop(3)]
    commits = [asyncio.create_task(made.committer.commit([record])) for record in [*freeing, ready(4)]]
    commits.append(asyncio.create_task(made.committer.commit([Damage(1, []), Drop(9)])))
    outcomes = await asyncio.gather(*commits, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [type(None)] * 3 + [NoSpace] * 2
    assert made.full == 1
    assert [file.id for file in made.registry.files_after(0, 9)] == [1]
    assert made.same_after_replay()


async def test_when_the_reserve_does_not_help_either(made: Made, fake: Disk) -> None:
    await made.committer.commit([ready(1)])
    fake.errors["write_all"] = [errno.ENOSPC, errno.ENOSPC]
    with pytest.raises(NoSpace):
        await made.committer.commit([Delete(1)])
    assert made.full == 1 and made.registry.find(b"n1") is not None
    await made.committer.commit([Delete(1)])


@pytest.mark.parametrize("lost", [Put(1, b"a", 100, 5), part(1, 0)], ids=["put", "parts"])
async def test_what_builds_on_a_lost_record_is_refused(made: Made, fake: Disk, lost: Record) -> None:
    """Alone it would not fit, and the next start would be refused."""
    if isinstance(lost, Parts):
        await made.committer.commit([Put(1, b"a", 100, 5)])
    before = made.journal.size
    fake.errors["write_all"] = [errno.ENOSPC]
    for record in (lost, part(1, 1), Ready(1, b"a", 200, 100, 5, [])):
        with pytest.raises(NoSpace):
            await made.committer.commit([record])
    assert made.journal.size == before
    await made.committer.commit([Drop(1)])
    await made.committer.commit([Put(1, b"a", 100, 5), part(1, 0), Ready(1, b"a", 100, 100, 5, [])])
    assert made.same_after_replay()


# --- a disk that fails ---


async def test_what_is_written_for_all_is_about_nobody(made: Made, fake: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    about = []
    monkeypatch.setattr(made.committer, "_on_failure", lambda error: about.append(logs.about.get()))
    fake.errors["fdatasync"] = [errno.EIO]
    logs.about.set(logs.About(1, "unix", "put", 7))
    with pytest.raises(IoError):
        await made.committer.commit([ready(1)])
    assert about == [None]


async def test_a_failed_sync_is_told_to_everyone_and_is_final(made: Made, fake: Disk) -> None:
    fake.gate.clear()
    fake.errors["fdatasync"] = [errno.EIO]
    first = [asyncio.create_task(made.committer.commit([ready(n)])) for n in (1, 2)]
    await fake.in_sync()
    later = [asyncio.create_task(made.committer.commit([ready(n)])) for n in (3, 4)]
    await asyncio.sleep(0)
    fake.gate.set()
    outcomes = await asyncio.gather(*first, *later, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [IoError] * 4
    assert made.committer.failed and len(made.failures) == 1 and made.failures[0].exit_code == 74
    with pytest.raises(IoError):
        await made.committer.commit([ready(5)])
    assert not made.committer.compact_if_worthwhile()
    assert not await made.committer.compact()
    assert fake.syncs == 1 and len(made.failures) == 1
    assert snapshot(made.registry) == [], "it is not known what is on the disk"


async def test_a_sync_that_fails_on_the_reserve_is_final_too(made: Made, fake: Disk) -> None:
    await made.committer.commit([ready(1)])
    fake.errors["write_all"] = [errno.ENOSPC]
    made.on_full = lambda: fake.errors["fdatasync"].append(errno.EIO)
    with pytest.raises(IoError):
        await made.committer.commit([Delete(1)])
    assert made.committer.failed and len(made.failures) == 1


# --- compaction ---


@pytest.fixture
async def dead(made: Made, monkeypatch: pytest.MonkeyPatch) -> Made:
    """A journal in which almost all is dead; a snapshot, and what a compaction misses, are taken in small pieces."""
    monkeypatch.setattr(committer_module, "SNAPSHOT_BYTES", 1)
    monkeypatch.setattr(journal_module, "CATCH_UP", 2)
    life = [[ready(file), Delete(file), Removed(file)] if file % 10 else [ready(file)] for file in range(1, 200)]
    await asyncio.gather(*map(made.committer.commit, life))
    return made


async def test_a_journal_that_is_mostly_dead_is_compacted(dead: Made) -> None:
    before = dead.journal.size
    assert not dead.committer.compact_if_worthwhile(), "smaller than what is worth it"
    dead.committer._compact_above = before - 1
    assert dead.committer.compact_if_worthwhile()
    assert not dead.committer.compact_if_worthwhile(), "one is under way"
    assert await dead.committer.compact()
    assert dead.committer.compactions == 1
    assert dead.journal.size < before / 2 and dead.journal.generation == 2
    assert dead.same_after_replay()
    assert dead.replayed().next_file == 200
    assert not dead.committer.compact_if_worthwhile(), "nothing is dead now"


async def test_a_commit_starts_the_compaction_by_itself(dead: Made) -> None:
    dead.committer._compact_above = 1
    await dead.committer.commit([ready(500)])
    await compacted(dead)
    assert dead.committer.compactions == 1 and dead.same_after_replay()


async def test_a_journal_that_lives_is_not_compacted(made: Made) -> None:
    made.committer._compact_above = 1
    for file in range(1, 50):
        await made.committer.commit([ready(file)])
    assert made.committer.compactions == 0 and not made.committer.compact_if_worthwhile()


async def test_a_wrong_estimate_does_not_make_it_go_round_in_circles(made: Made) -> None:
    made.committer._compact_above = 1
    await made.committer.commit([ready(file) for file in range(1, 50)])
    made.registry.live_bytes = 0
    assert made.committer.compact_if_worthwhile()
    await made.committer.compact()
    assert not made.committer.compact_if_worthwhile()


async def test_commits_go_on_during_a_compaction(dead: Made, fake: Disk) -> None:
    compacting = asyncio.create_task(dead.committer.compact())
    file = 1000
    during = 0
    while not compacting.done():
        await dead.committer.commit([ready(file), Delete(10 * (file - 999))] if file < 1010 else [ready(file)])
        during += not compacting.done()
        file += 1
    assert await compacting and during > 0
    await dead.committer.commit([ready(file)])
    assert dead.journal.generation == 2 and dead.same_after_replay()
    assert dead.registry.file(file) is not None and dead.registry.file(1000) is not None


@pytest.mark.parametrize("call", ["rename", "fdatasync"])
async def test_a_compaction_that_fails_changes_nothing(dead: Made, fake: Disk, call: str) -> None:
    fake.errors[call] = [errno.ENOSPC]
    dead.committer._compact_above = 1
    assert not await dead.committer.compact()
    assert not dead.committer.compact_if_worthwhile(), "not again at once"
    assert not dead.committer.failed and sorted(os.listdir(dead.path.parent)) == ["journal.jsonl", "journal.mark"]
    await dead.committer.commit([ready(500)])
    assert dead.journal.generation == 1 and dead.same_after_replay()
    assert await dead.committer.compact() and dead.same_after_replay()


async def test_a_compaction_whose_rename_may_not_last_stops_everything(dead: Made, fake: Disk) -> None:
    fake.errors["fsync_dir"] = [errno.EIO]
    assert not await dead.committer.compact()
    assert dead.committer.failed and len(dead.failures) == 1
    with pytest.raises(IoError):
        await dead.committer.commit([ready(500)])


async def test_closing_gives_a_compaction_up(tmp_path: Path, fake: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(committer_module, "SNAPSHOT_BYTES", 1)
    made = Made(tmp_path / "journal.jsonl")
    await made.committer.commit([ready(file) for file in range(1, 200)])
    compacting = asyncio.create_task(made.committer.compact())
    await asyncio.sleep(0)
    await made.committer.close()
    assert not await compacting
    assert sorted(os.listdir(tmp_path)) == ["journal.jsonl", "journal.mark"] and made.same_after_replay()
    list(made.registry.snapshot())  # the one of the compaction is closed


def test_registry_errors_are_what_the_opener_expects() -> None:
    assert issubclass(RegistryError, ValueError) and issubclass(RecordError, ValueError)
