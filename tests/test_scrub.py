"""When parts are verified without being asked: on a clock of the tests' own, with a registry and no store."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfsd import work
from pfsd.commands.engine import Settings
from pfsd.commands.scrub import PASS_SHARE, STRETCHES, Clock, Pace, Scrubber
from pfsd.errors import IoError
from pfsd.records import Damage, Delete, Put, Ready, Record, Removed, Run, Verified
from pfsd.registry import Part, Registry

DAY = 86_400.0
EVERY = DAY / 24
PERIOD = PASS_SHARE * EVERY
PART = 1 << 20
BORN = 1_700_000_000
#: How long it takes to read a run.
READING = 0.002
#: A part may be so late: what is due at once is read one after the other, and stretches are a 256th of a pass.
SLACK = EVERY / STRETCHES


class Time(Clock):
    """It stands still until `Daemon.until`, and then goes as fast as everyone sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.off = 0.0  # by how much the time of day is wrong
        self.end = 0.0
        self._go_on = asyncio.Event()
        self.stands = asyncio.Event()

    def wall(self) -> int:
        return int((BORN + self.now + self.off) * 1e9)

    def moment(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        wake = self.now + seconds
        while wake > self.end:
            self.stands.set()
            await self._go_on.wait()
        self.now = wake
        await asyncio.sleep(0)

    async def until(self, end: float) -> None:
        self.end = end
        self.stands.clear()
        self._go_on.set()
        self._go_on = asyncio.Event()
        await self.stands.wait()
        self.now = end


class Daemon:
    """A registry with files, all that a scrubber asks of an engine, and what it read: when, and which part."""

    def __init__(self, every: float = EVERY) -> None:
        self.time = Time()
        self.registry = Registry()
        self.journal: list[Record] = []
        self.every = every
        self.reads: list[tuple[float, int, int]] = []
        self.reads_of: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
        self.written: dict[tuple[int, int], float] = {}
        self.bad: set[tuple[int, int]] = set()
        self.failing: set[int] = set()  # files
        self.full = False
        self.scrubber = self._started()

    def _started(self) -> Scrubber:
        engine: Any = SimpleNamespace(
            registry=self.registry,
            settings=Settings(PART, 16),
            budget=SimpleNamespace(take=self._take, give=lambda extents: None),
            pinned=self._pinned,
            load=self._load,
            note_checked=self._note_checked,
            committer=SimpleNamespace(commit=self.commit),
        )
        scrubber = Scrubber(engine, self.every, self.time)
        scrubber.start()
        return scrubber

    @contextmanager
    def _pinned(self, file: object) -> Iterator[None]:
        yield

    async def _take(self, sizes: Sequence[int], flow: object) -> list[int]:
        return list(sizes[:3])

    async def _load(self, parts: Sequence[Part], extents: Sequence[int], flow: object) -> work.LoadedBatch:
        assert len(parts) == len(extents)
        self.time.now += READING
        if parts[0].file in self.failing:
            raise IoError("the process died")
        self.reads += [(self.time.now, part.file, part.seq) for part in parts]
        for part in parts:
            self.reads_of[part.file, part.seq].append(self.time.now)
        bad = {part.seq for part in parts if (part.file, part.seq) in self.bad}
        await self._note_checked(parts[0].file, bad=bad)
        return work.LoadedBatch(tuple(work.BadPart(seq, "corrupt", "") for seq in bad))

    async def _note_checked(self, file: int, *, bad: Iterable[int] = (), sound: Iterable[int] = ()) -> None:
        known = set(self.registry.bad_parts(file))
        now = (known | set(bad)) - set(sound)
        if now != known:
            with suppress(IoError):  # as the engine does
                await self.commit([Damage(file, sorted(now))])

    async def commit(self, records: Sequence[Record]) -> None:
        if self.full:
            raise IoError("no room")
        for record in records:
            self.registry.apply(record)
            self.journal.append(record)

    async def restart(self, crash: bool = False) -> None:
        if crash:
            assert self.scrubber._work is not None
            self.scrubber._work.cancel()
            await asyncio.wait({self.scrubber._work})
        else:
            await self.scrubber.stop()
        self.registry = Registry()
        for record in self.journal:
            self.registry.apply(record)
        self.scrubber = self._started()

    async def put(self, *sizes: int) -> list[int]:
        """Files of so many parts."""
        files = []
        for parts in sizes:
            file = self.registry.new_file_id()
            rows = [(at * PART, PART, 1, "none", "00" * 16) for at in range(parts)]
            run = Run(file, 0, self.registry.new_part_ids(parts), 10, rows)  # type: ignore[arg-type]
            await self.commit([Ready(file, b"%d" % file, parts * PART, PART, self.time.wall(), [run])])
            self.written |= {(file, seq): self.time.now for seq in range(parts)}
            files.append(file)
        return files

    async def delete(self, *files: int) -> None:
        for file in files:
            await self.commit([Delete(file), Removed(file)])
            self.written = {part: when for part, when in self.written.items() if part[0] != file}

    def times(self, part: tuple[int, int]) -> list[float]:
        """When a part was written, and read since, and now."""
        return [self.written[part], *self.reads_of[part], self.time.now]

    def longest(self) -> float:
        """The longest that any part there is was not read for."""
        return max(
            (after - before for part in self.written for before, after in pairwise(self.times(part))), default=0.0
        )


@pytest.mark.promise("verified")
async def test_every_part_is_read_in_time_and_evenly() -> None:
    daemon = Daemon()
    await daemon.put(*[50] * 20, 0, 1)
    await daemon.time.until(3 * EVERY)
    assert daemon.longest() < EVERY
    pass_of = [when for when, *_ in daemon.reads if PERIOD < when < 2 * PERIOD]
    assert len(pass_of) == pytest.approx(1001, rel=0.02), "once, and no more"
    gaps = [after - before for before, after in pairwise(pass_of)]
    assert max(gaps) < 5 * PERIOD / 1001, "a run of four, of which there was memory for three"
    assert [type(record) for record in daemon.journal].count(Verified) < 6 * (STRETCHES + 2)
    await daemon.scrubber.stop()


@pytest.mark.promise("verified")
@pytest.mark.parametrize("seed", range(2))
async def test_every_part_is_read_in_time_whatever_comes_and_goes(seed: int) -> None:
    chance = random.Random(seed)
    daemon = Daemon()
    files = await daemon.put(*(chance.randrange(30) for _ in range(20)))
    while daemon.time.now < 3 * EVERY:
        await daemon.time.until(daemon.time.now + chance.expovariate(15 / EVERY))
        match chance.randrange(4):
            case 0:
                files += await daemon.put(*(chance.randrange(chance.choice((2, 40, 300))) for _ in range(3)))
            case 1:
                chance.shuffle(files)
                doomed, files = files[: len(files) // 2], files[len(files) // 2 :]
                assert daemon.longest() < EVERY + SLACK
                await daemon.delete(*doomed)
            case 2:
                await daemon.restart(crash=chance.random() < 0.5)
        if daemon.written:
            oldest = max(daemon.time.now - daemon.times(part)[-2] for part in daemon.written)
            # What it claims is never younger than the truth, and no older than the stretches are long.
            assert oldest - 1 <= daemon.scrubber.oldest < EVERY + SLACK
    assert daemon.longest() < EVERY + SLACK
    await daemon.scrubber.stop()


@pytest.mark.promise("verified")
async def test_a_crash_costs_a_256th_of_a_pass() -> None:
    daemon = Daemon()
    await daemon.put(*[100] * 10)
    for at in range(1, 10):
        await daemon.time.until(at * PERIOD / 10)
        await daemon.restart(crash=True)
    await daemon.time.until(0.999 * PERIOD)
    assert len(daemon.reads) < 1000 * (1 + 10 / STRETCHES) + 30
    assert len({part for _, *part in daemon.reads for part in [tuple(part)]}) >= 950
    await daemon.scrubber.stop()


@pytest.mark.promise("verified")
@pytest.mark.parametrize("jump", [-3600.0, 10 * 365 * DAY, -BORN])
async def test_a_clock_that_is_set_neither_stops_it_nor_makes_it_spin(jump: float) -> None:
    daemon = Daemon()
    await daemon.put(*[50] * 20)
    await daemon.time.until(1.5 * EVERY)
    daemon.time.off = jump
    before = len(daemon.reads)
    await daemon.time.until(3.5 * EVERY)
    assert daemon.longest() < EVERY, "by the clock on the wall of the test"
    assert len(daemon.reads) - before < 1000 * (2 / PASS_SHARE + 1), "the pass is hurried to its end at most"
    await daemon.restart()  # which knows only the time of day
    before = len(daemon.reads)
    daemon.time.off = 0
    await daemon.time.until(5.5 * EVERY)
    assert daemon.longest() < 2 * EVERY, "it goes on from where it was, at the usual pace"
    assert len(daemon.reads) - before < 1000 * (1 + 2 / PASS_SHARE + 0.1), "once more at most, for all seemed old"
    assert daemon.scrubber.oldest >= 0
    await daemon.scrubber.stop()


async def test_a_clock_set_back_in_the_middle_of_a_stretch_makes_it_older() -> None:
    daemon = Daemon()
    await daemon.put(2000)
    await daemon.time.until(PERIOD / 2)
    while daemon.scrubber._from == daemon.scrubber._at:
        await daemon.time.until(daemon.time.now + 1)
    daemon.time.off = -EVERY
    await daemon.restart()
    last = daemon.journal[-1]
    assert isinstance(last, Verified) and last.time <= daemon.time.wall()
    await daemon.scrubber.stop()


@pytest.mark.promise("verified")
async def test_what_cannot_be_read_does_not_count_and_is_tried_once_a_pass() -> None:
    daemon = Daemon()
    first, failing, last = await daemon.put(40, 40, 40)
    daemon.failing = {failing}
    await daemon.time.until(3 * EVERY)
    assert daemon.scrubber.oldest == 3 * EVERY
    passes = 3 / PASS_SHARE
    assert len(daemon.reads) <= 80 * passes + 80
    assert {file for _, file, _ in daemon.reads} == {first, last}
    daemon.failing = set()
    await daemon.time.until(4 * EVERY)
    assert daemon.scrubber.oldest < EVERY
    await daemon.scrubber.stop()


@pytest.mark.promise("verified")
async def test_a_file_that_was_being_stored_when_the_pass_came_by_does_not_count_as_read() -> None:
    daemon = Daemon()
    (first,) = await daemon.put(1)
    slow = daemon.registry.new_file_id()
    await daemon.commit([Put(slow, b"slow", PART, daemon.time.wall())])
    (last,) = await daemon.put(1)
    await daemon.time.until(PERIOD + 1)
    assert {file for _, file, _ in daemon.reads} == {first, last}
    rows = [(0, PART, 1, "none", "00" * 16)]
    await daemon.commit([Ready(slow, b"slow", PART, PART, int(BORN * 1e9), [Run(99, 0, 99, 10, rows)])])  # type: ignore[list-item]
    file = daemon.registry.file(slow)
    assert file is not None and daemon.registry.verified_at(file, 0) == file.created
    await daemon.time.until(2 * EVERY)
    assert slow in {file for _, file, _ in daemon.reads}
    await daemon.scrubber.stop()


async def test_what_a_full_disk_kept_from_the_journal_is_told_later() -> None:
    daemon = Daemon()
    await daemon.put(300)
    daemon.full = True
    await daemon.time.until(PERIOD / 2)
    assert not any(isinstance(record, Verified) for record in daemon.journal)
    daemon.full = False
    await daemon.time.until(PERIOD + SLACK)
    stretches = [record for record in daemon.journal if isinstance(record, Verified)]
    assert stretches[0].first == (1, 0)
    assert all(one.end == other.first for one, other in pairwise(stretches[:200]))
    await daemon.scrubber.stop()


@pytest.mark.promise("verified")
async def test_damage_comes_and_goes_part_by_part() -> None:
    daemon = Daemon()
    (file,) = await daemon.put(300)
    daemon.bad = {(file, 7), (file, 250)}
    await daemon.time.until(EVERY)
    assert daemon.registry.bad_parts(file) == (7, 250) and daemon.registry.known_bad == 2
    daemon.bad.remove((file, 7))
    await daemon.time.until(2 * EVERY)
    assert daemon.registry.bad_parts(file) == (250,)
    daemon.bad.clear()
    await daemon.time.until(3 * EVERY)
    assert daemon.registry.bad_parts(file) == () and daemon.registry.known_bad == 0
    await daemon.scrubber.stop()


async def test_never_is_never() -> None:
    daemon = Daemon(every=0)
    await daemon.put(3)
    await asyncio.sleep(0)
    assert daemon.scrubber._work is None and daemon.reads == []
    await daemon.scrubber.stop()


async def test_an_empty_store_is_looked_at_now_and_then() -> None:
    daemon = Daemon(every=10.0)
    await daemon.time.until(100.0)
    await daemon.put(1)
    await daemon.time.until(120.0)
    assert daemon.longest() < 10
    await daemon.scrubber.stop()


# --- the pace ---

spans = st.floats(0, 1e7)
costs = st.integers(1, 1 << 50)


@given(spans, spans, costs, costs, st.floats(-1e9, 1e9))
def test_a_run_is_due_between_now_and_the_end_of_the_pass(
    period: float, since: float, cost: int, left: int, age: float
) -> None:
    pace = Pace(period, began=100.0, last=100.0 + since)
    now = 100.0 + since
    due = pace.due(now, cost, left, age)
    assert due <= max(now, 100.0 + period) + 1e-6
    if age <= 0:
        assert due >= min(now, 100.0 + period) - 1e-6
    assert not (age > period and due > now), "a part that is too old does not wait"


def test_a_run_waits_for_its_share_of_the_time_that_is_left() -> None:
    pace = Pace(period=1000.0, began=0.0, last=200.0)
    assert pace.due(200.0, cost=10, left=80, age=0.0) == 300.0
    assert pace.due(200.0, cost=10, left=0, age=0.0) == 1000.0, "nothing more is known of what is left"
    assert pace.due(200.0, cost=10, left=80, age=950.0) == 250.0
    assert not pace.is_late(200.0, age=1000.0) and pace.is_late(200.0, age=1001.0) and pace.is_late(1001.0, age=0.0)


def test_the_time_of_day_does_not_hurry_it_on_after_its_first_pass() -> None:
    pace = Pace(period=1000.0, began=0.0, last=0.0).next_pass(900.0)
    assert pace.due(900.0, cost=1, left=10, age=1e9) == 1000.0, "it was read at 0, or later"
    assert pace.due(1001.0, cost=1, left=10, age=1e9) <= 1001.0
    assert not pace.is_late(950.0, age=1e9)


@pytest.mark.promise("verified")
async def test_parts_whose_damage_could_not_be_journaled_do_not_count_as_verified() -> None:
    daemon = Daemon()
    (file,) = await daemon.put(300)
    daemon.bad = {(file, 7)}
    daemon.full = True
    await daemon.time.until(PERIOD / 2)
    daemon.full = False
    await daemon.time.until(PERIOD + SLACK)
    stored = daemon.registry.file(file)
    assert stored is not None
    assert daemon.registry.bad_parts(file) == (7,) or daemon.registry.verified_at(stored, 7) == stored.created
    await daemon.time.until(2 * PERIOD + 2 * SLACK)
    assert daemon.registry.bad_parts(file) == (7,)
    await daemon.scrubber.stop()
