"""Batches of what comes one by one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from pfsd import logs
from pfsd.gather import WORTH_SHARING, Gatherer


class Work:
    """Takes note of batches; each is done when it is told so."""

    def __init__(self, at_once: int = 1, most_items: int = 100, most_cost: int = 100 * WORTH_SHARING) -> None:
        self.batches: list[list[int]] = []
        self.may_finish: list[asyncio.Future[None]] = []
        self.unwanted: list[str] = []
        self.gatherer: Gatherer[int, str] = Gatherer(
            self.work, at_once=at_once, most_items=most_items, most_cost=most_cost, unwanted=self.unwanted.append
        )

    async def work(self, items: Sequence[int]) -> list[str]:
        self.batches.append(list(items))
        self.may_finish.append(asyncio.get_running_loop().create_future())
        await self.may_finish[-1]
        return [f"done {item}" for item in items]

    def add(self, *items: int, cost: int = 1) -> list[asyncio.Task[str]]:
        return [asyncio.create_task(self.gatherer.add(item, cost)) for item in items]


async def settle() -> None:
    """Let everything happen that can happen without anything new."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_what_arrives_together_goes_together() -> None:
    work = Work()
    added = work.add(1, 2, 3)
    await settle()
    assert work.batches == [[1, 2, 3]]
    work.may_finish[0].set_result(None)
    assert await asyncio.gather(*added) == ["done 1", "done 2", "done 3"]


async def test_what_arrives_meanwhile_is_the_next_batch() -> None:
    work = Work()
    first = work.add(1)
    await settle()
    later = work.add(2) + work.add(3)
    await settle()
    assert work.batches == [[1]], "one at a time"
    work.may_finish[0].set_result(None)
    await settle()
    assert work.batches == [[1], [2, 3]]
    work.may_finish[1].set_result(None)
    assert await asyncio.gather(*first, *later) == ["done 1", "done 2", "done 3"]


async def test_a_batch_has_its_limits() -> None:
    work = Work(most_items=3, most_cost=10)
    added = work.add(1, 2, 3, 4) + work.add(5, 6, cost=6) + work.add(7, cost=50) + work.add(8)
    await settle()
    while len(work.may_finish) < 10 and not all(task.done() for task in added):
        work.may_finish[-1].set_result(None)
        await settle()
    assert work.batches == [[1, 2, 3], [4, 5], [6], [7], [8]], "more than allowed goes alone"


async def test_much_work_is_shared_out_and_little_is_not() -> None:
    work = Work(at_once=2)
    work.add(*range(8), cost=WORTH_SHARING)
    await settle()
    assert work.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]
    for future in work.may_finish:
        future.set_result(None)
    await settle()
    added = work.add(*range(8))
    await settle()
    assert work.batches[2:] == [list(range(8))]
    work.may_finish[-1].set_result(None)
    await asyncio.gather(*added)


async def test_a_failure_is_everyones_and_the_next_batch_goes_on() -> None:
    async def fail_at_first(items: Sequence[int]) -> list[int]:
        if 1 in items:
            raise OSError("broken")
        return list(items)

    gatherer: Gatherer[int, int] = Gatherer(fail_at_first, at_once=1, most_items=2, most_cost=9)
    results = await asyncio.gather(*(gatherer.add(item, 1) for item in (1, 2, 3)), return_exceptions=True)
    assert [type(result) for result in results] == [OSError, OSError, int]


async def test_a_batch_is_about_nobody() -> None:
    async def about(items: Sequence[int]) -> list[logs.About | None]:
        return [logs.about.get() for _ in items]

    gatherer: Gatherer[int, logs.About | None] = Gatherer(about, at_once=1, most_items=2, most_cost=9)
    logs.about.set(logs.About(1, "unix", "put", 7))
    assert await gatherer.add(1, 1) is None


async def test_who_leaves_before_the_batch_is_not_in_it() -> None:
    work = Work()
    first = work.add(1)
    await settle()
    waiting = work.add(2, 3)
    await settle()
    waiting[0].cancel()
    await settle()
    assert waiting[0].cancelled()
    work.may_finish[0].set_result(None)
    await settle()
    assert work.batches == [[1], [3]]
    work.may_finish[1].set_result(None)
    assert await asyncio.gather(*first, waiting[1]) == ["done 1", "done 3"]
    assert work.unwanted == []


@pytest.mark.parametrize("first", ["result", "cancellation"])
async def test_who_leaves_in_the_instant_of_the_result(first: str) -> None:
    work = Work()
    (leaving,) = work.add(1)
    await settle()
    if first == "result":
        work.may_finish[0].set_result(None)
        await asyncio.sleep(0)  # the batch is about to go on
    leaving.cancel()
    if first == "cancellation":
        work.may_finish[0].set_result(None)
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert work.unwanted == ["done 1"]


async def test_who_leaves_during_the_batch_waits_for_its_end() -> None:
    """What the batch works on may be freed only then."""
    work = Work()
    (leaving,) = work.add(1)
    await settle()
    leaving.cancel()
    await settle()
    assert not leaving.done()
    leaving.cancel()  # again
    await settle()
    assert not leaving.done()
    work.may_finish[0].set_result(None)
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert work.unwanted == ["done 1"]


async def test_a_result_is_unwanted_whatever_the_loop_does_first() -> None:
    """Cancelled in the same turn of the loop in which the batch ends, before and after it."""
    for steps in range(6):
        work = Work()
        (leaving,) = work.add(1)
        await settle()
        work.may_finish[0].set_result(None)
        for _ in range(steps):
            await asyncio.sleep(0)
        if leaving.done():
            assert leaving.result() == "done 1" and work.unwanted == []
            continue
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(5):
                await leaving
        assert work.unwanted == ["done 1"]
