from __future__ import annotations

import asyncio
import mmap
from collections.abc import Iterator

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pfsd import budget
from pfsd.budget import GRAIN, SMALL, Extent, MemoryBudget, Slab
from pfsd.errors import Busy
from pfsd.fair import Flow

#: The tests count in the smallest unit there is.
PAGE = GRAIN


def pages(extent: Extent) -> range:
    """The units that an extent takes."""
    assert extent.offset % PAGE == 0
    return range(extent.offset // PAGE, (extent.offset + budget._rounded(extent.size)) // PAGE)


# --- the slab -----------------------------------------------------------------------------------


class SlabMachine(RuleBasedStateMachine):
    """Any takes and gives, against a set of pages."""

    SIZE = 300

    def __init__(self) -> None:
        super().__init__()
        self.slab = Slab(self.SIZE * PAGE)
        self.held: list[Extent] = []
        self.peak = 0

    def covered(self) -> list[int]:
        return [page for extent in self.held for page in pages(extent)]

    def longest_gap(self) -> int:
        taken, best, gap = set(self.covered()), 0, 0
        for page in range(self.SIZE):
            gap = 0 if page in taken else gap + 1
            best = max(best, gap)
        return best

    @rule(size=st.integers(0, 120 * PAGE))
    def take(self, size: int) -> None:
        fits = self.longest_gap() * PAGE >= budget._rounded(size)
        extent = self.slab.take(size)
        assert (extent is not None) == fits, "taken exactly when a gap is long enough: freed gaps have joined"
        if extent is not None:
            assert extent.size == size
            self.held.append(extent)
        self.peak = max(self.peak, len(self.covered()) * PAGE)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        self.slab.give(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def shrink(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.held) - 1))
        size = data.draw(st.integers(0, self.held[at].size))
        kept = self.slab.shrink(self.held[at], size)
        assert kept == Extent(self.held[at].offset, size)
        self.held[at] = kept

    @invariant()
    def extents_never_overlap_and_the_sum_is_right(self) -> None:
        covered = self.covered()
        assert len(covered) == len(set(covered))
        assert all(0 <= page < self.SIZE for page in covered)
        assert self.slab.used == len(covered) * PAGE
        assert self.slab.peak == self.peak

    def teardown(self) -> None:
        for extent in self.held:
            self.slab.give(extent)
        assert self.slab.take(self.SIZE * PAGE) == Extent(0, self.SIZE * PAGE), "whole again"


TestSlab = SlabMachine.TestCase
TestSlab.settings = settings(max_examples=40)


def test_small_extents_come_from_the_far_end() -> None:
    slab = Slab(100 * SMALL)
    small, big = slab.take(SMALL - PAGE), slab.take(SMALL)
    assert small is not None and big is not None
    assert big.offset == 0 and small.offset + small.size == slab.size


def test_an_extent_of_nothing_still_has_a_place_of_its_own() -> None:
    slab = Slab(2 * PAGE)
    first, second = slab.take(0), slab.take(0)
    assert first is not None and second is not None and first.offset != second.offset
    assert slab.take(0) is None


# --- waiting for memory -------------------------------------------------------------------------

SIZE = 100


@pytest.fixture
def memory() -> Iterator[MemoryBudget]:
    memory = MemoryBudget(SIZE * PAGE)
    yield memory
    assert memory.used == 0, "a test gives everything back"
    memory.close()


async def settle() -> None:
    """Let every task that can run come to its next await."""
    for _ in range(5):
        await asyncio.sleep(0)


async def timers() -> None:
    """Let every timer that is due run."""
    due = asyncio.Event()
    asyncio.get_running_loop().call_later(0.001, due.set)
    await due.wait()
    await settle()


async def hold(memory: MemoryBudget, count: int) -> list[Extent]:
    return await memory.take([count * PAGE], Flow())


def waiter(memory: MemoryBudget, *counts: int, least: int = 1, flow: Flow | None = None) -> asyncio.Task[list[Extent]]:
    return asyncio.create_task(memory.take([count * PAGE for count in counts], flow or Flow(), least))


async def test_memory_is_there_at_once_when_it_is_free(memory: MemoryBudget) -> None:
    extents = await memory.take([10, 3 * PAGE, PAGE + 1], Flow(), least=3)
    assert [extent.size for extent in extents] == [10, 3 * PAGE, PAGE + 1]
    assert memory.used == 6 * PAGE == memory.peak
    memory.give(extents)
    assert (memory.used, memory.peak, memory.limit) == (0, 6 * PAGE, SIZE * PAGE)


async def test_views_are_the_memory_of_their_extents(memory: MemoryBudget) -> None:
    first, second = await memory.take([5, 5], Flow(), least=2)
    memory.view(first)[:] = b"first"
    memory.view(second)[:] = b"other"
    assert bytes(memory.view(first)) == b"first" and len(memory.view(second)) == 5
    memory.give([first, second])


async def test_a_taker_waits_until_there_is_room(memory: MemoryBudget) -> None:
    held = await hold(memory, 60)
    waiting = waiter(memory, 50)
    await settle()
    assert not waiting.done() and memory.pressed
    memory.give(held)
    extents = await waiting
    assert memory.used == 50 * PAGE and not memory.pressed
    memory.give(extents)


async def test_under_pressure_a_taker_gets_what_fits_but_no_less_than_it_needs(memory: MemoryBudget) -> None:
    held = await hold(memory, 75)
    extents = await memory.take([10 * PAGE] * 8, Flow(), least=2)
    assert len(extents) == 2
    waiting = waiter(memory, 10, 10, least=2)
    await settle()
    assert not waiting.done() and memory.used == 95 * PAGE, "what does not suffice is not held"
    memory.give(held)
    memory.give(await waiting)
    memory.give(extents)


async def test_equal_commands_are_served_in_order_of_arrival(memory: MemoryBudget) -> None:
    held = await hold(memory, SIZE)
    served: list[int] = []

    async def command(number: int) -> None:
        extents = await hold(memory, SIZE)
        served.append(number)
        memory.give(extents)

    tasks = [asyncio.create_task(command(number)) for number in range(5)]
    await settle()
    memory.give(held)
    await asyncio.gather(*tasks)
    assert served == [0, 1, 2, 3, 4]


@pytest.mark.promise("memory")
async def test_a_small_request_does_not_overtake_a_big_one_for_ever(memory: MemoryBudget) -> None:
    held = await hold(memory, 50)
    big = waiter(memory, 80)
    overtaken = 0
    while True:
        small = waiter(memory, 1)
        await settle()
        if not small.done():
            break
        memory.give(await small)
        overtaken += 1
        assert overtaken < 200
    assert memory.try_take(PAGE) is None
    memory.give(held)
    for extents in await asyncio.gather(big, small):
        memory.give(extents)


async def test_a_new_command_goes_ahead_of_one_that_had_much(memory: MemoryBudget) -> None:
    greedy = Flow()
    memory.give(await memory.take([90 * PAGE], greedy))
    held = await memory.take([90 * PAGE], greedy)
    more, new = waiter(memory, 90, flow=greedy), waiter(memory, 90)
    await settle()
    memory.give(held)
    await settle()
    assert new.done() and not more.done()
    memory.give(new.result())
    memory.give(await more)


async def test_what_can_never_fit_is_busy(memory: MemoryBudget) -> None:
    with pytest.raises(Busy, match="memory"):
        await memory.take([(SIZE + 1) * PAGE], Flow())
    with pytest.raises(Busy):
        await memory.take([60 * PAGE, 60 * PAGE], Flow(), least=2)
    extents = await memory.take([60 * PAGE, 60 * PAGE], Flow(), least=1)
    assert len(extents) == 1
    memory.give(extents)


async def test_nothing_is_had_at_once(memory: MemoryBudget) -> None:
    held = await hold(memory, SIZE)
    memory.give(held)
    assert await memory.take([], Flow()) == []


async def test_a_waiter_cancelled_in_the_queue_lets_the_next_one_through(memory: MemoryBudget) -> None:
    held = await hold(memory, 50)
    big, small = waiter(memory, 80), waiter(memory, 10)
    await settle()
    big.cancel()
    with pytest.raises(asyncio.CancelledError):
        await big
    memory.give(await small)
    memory.give(held)


async def test_a_waiter_cancelled_behind_the_head_is_skipped(memory: MemoryBudget) -> None:
    held = await hold(memory, SIZE)
    first, second, third = waiter(memory, SIZE), waiter(memory, SIZE), waiter(memory, SIZE)
    await settle()
    second.cancel()
    await settle()
    memory.give(held)
    memory.give(await first)
    memory.give(await third)
    assert second.cancelled() and memory.used == 0


async def test_a_waiter_cancelled_after_its_grant_gives_it_back(memory: MemoryBudget) -> None:
    held = await hold(memory, SIZE)
    waiting, next_one = waiter(memory, SIZE), waiter(memory, SIZE)
    await settle()
    memory.give(held)  # grants, but the task has not run yet
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    memory.give(await next_one)


@pytest.mark.promise("memory")
async def test_cancelling_at_every_step_loses_no_memory(memory: MemoryBudget) -> None:
    for steps in range(8):
        held = await hold(memory, 70)
        tasks = [waiter(memory, 40, 20), waiter(memory, 90), waiter(memory, 20, 20, least=2)]
        for step in range(8):
            if step == 3:
                memory.give(held)
            if step == steps:
                for task in tasks:
                    task.cancel()
            await asyncio.sleep(0)
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, list):
                memory.give(result)
        await settle()
        assert memory.used == 0 and not memory.pressed


async def test_holders_are_asked_for_memory_when_someone_waits(memory: MemoryBudget) -> None:
    held = await hold(memory, SIZE)
    asked: list[str] = []

    def give_back() -> None:
        asked.append("please")
        memory.on_pressure.discard(give_back)
        memory.give(held)

    memory.on_pressure.add(give_back)
    memory.give(await hold(memory, 10))
    assert asked == ["please"]


async def test_try_take_asks_holders_too_but_does_not_wait(memory: MemoryBudget) -> None:
    held = await hold(memory, SIZE)
    asked: list[str] = []
    memory.on_pressure.add(lambda: asked.append("please"))
    assert memory.try_take(PAGE) is None
    await settle()
    assert asked == ["please"]
    memory.give(held)
    extent = memory.try_take(PAGE)
    assert extent is not None
    memory.give([extent])


async def test_shrinking_frees_whole_units_only(memory: MemoryBudget) -> None:
    (extent,) = await hold(memory, 10)
    kept = memory.shrink(extent, 3 * PAGE + 1)
    assert kept == Extent(extent.offset, 3 * PAGE + 1) and memory.used == 4 * PAGE
    kept = memory.shrink(kept, 3 * PAGE + 1)
    assert memory.used == 4 * PAGE
    memory.give([kept])


async def test_shrinking_lets_the_next_one_through(memory: MemoryBudget) -> None:
    (extent,) = await hold(memory, SIZE)
    waiting = waiter(memory, 50)
    await settle()
    kept = memory.shrink(extent, 50 * PAGE)
    memory.give(await waiting)
    memory.give([kept])


@pytest.mark.parametrize("size", [mmap.PAGESIZE, 16 * mmap.PAGESIZE, 64 << 10, 1 << 20])
def test_parts_of_whole_pages_do_not_all_begin_in_the_same_cache_lines(size: int) -> None:
    slab = Slab(32 << 20)
    extents = [slab.take(size) for _ in range(8)]
    assert len({extent.offset % mmap.PAGESIZE for extent in extents if extent is not None}) == 8


@pytest.mark.promise("memory")
async def test_many_commands_share_a_small_slab_and_all_come_to_an_end(memory: MemoryBudget) -> None:
    async def command(size: int) -> int:
        flow, got = Flow(), 0
        for _ in range(10):
            extents = await memory.take([size * PAGE] * 4, flow)
            assert memory.used <= memory.limit
            await asyncio.sleep(0)
            got += len(extents)
            memory.give(extents)
        return got

    got = await asyncio.gather(*(command(size) for size in (1, 5, 20, 33, 50, 99, 100)))
    assert all(count >= 10 for count in got) and memory.peak <= memory.limit


async def test_an_idle_slab_gives_its_pages_back(memory: MemoryBudget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "IDLE_SECONDS", 0)
    (extent,) = await hold(memory, 1)
    memory.view(extent)[:4] = b"data"
    memory.give([extent])
    await timers()
    assert bytes(memory.view(extent)[:4]) == bytes(4)


async def test_a_slab_in_use_again_keeps_its_pages(memory: MemoryBudget, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "IDLE_SECONDS", 0)
    memory.give(await hold(memory, 1))
    (extent,) = await hold(memory, 1)
    memory.view(extent)[:4] = b"data"
    await timers()
    assert bytes(memory.view(extent)[:4]) == b"data"
    memory.give([extent])


async def test_a_view_still_held_does_not_stop_the_close() -> None:
    memory = MemoryBudget(SIZE * PAGE)
    (extent,) = await hold(memory, 1)
    view = memory.view(extent)
    memory.give([extent])
    memory.close()
    view[:4] = b"safe"
    assert bytes(view[:4]) == b"safe"
