"""Batches of what comes one by one: items that arrive while others are worked on are handed over together.

As with a group commit nobody waits for company, and under load everybody has it. It knows neither what the items
are nor what is done with them.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import Context
from typing import Generic, TypeVar

from pfsd.aio import finish

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Items that cost less than this together are not worth being shared out among several batches.
WORTH_SHARING = 1 << 20


class _Entry(Generic[Item, Result]):
    __slots__ = ("cost", "done", "is_over", "item", "over")

    def __init__(self, item: Item, cost: int) -> None:
        self.item = item
        self.cost = cost
        self.done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self.is_over = False  # its batch
        self.over: asyncio.Future[None] | None = None  # the same, for a caller that was cancelled and waits for it


class Gatherer(Generic[Item, Result]):
    """Gathers items for `work`, which returns a result for each; at most `at_once` batches are worked on.

    A batch has at most `most_items` items, and `most_cost` of cost unless one item alone costs more. `unwanted` is
    called with a result whose caller was cancelled.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
        *,
        at_once: int,
        most_items: int,
        most_cost: int,
        unwanted: Callable[[Result], None] = lambda result: None,
    ) -> None:
        self._work = work
        self._at_once = at_once
        self._most_items = most_items
        self._most_cost = most_cost
        self._unwanted = unwanted
        self._waiting: deque[_Entry[Item, Result]] = deque()
        self._waiting_cost = 0
        self._running: set[asyncio.Task[None]] = set()
        self._starting = False

    async def add(self, item: Item, cost: int) -> Result:
        """The result for an item; an exception of `work` is raised for every item of its batch.

        A cancelled caller is let go only when the batch is over, if its item has gone into one.
        """
        entry: _Entry[Item, Result] = _Entry(item, cost)
        self._waiting.append(entry)
        self._waiting_cost += cost
        self._start_soon()
        try:
            return await entry.done
        except asyncio.CancelledError:
            await self._leave(entry)
            raise

    async def _leave(self, entry: _Entry[Item, Result]) -> None:
        if entry in self._waiting:
            self._waiting.remove(entry)
            self._waiting_cost -= entry.cost
            return
        if not entry.is_over:
            entry.over = asyncio.get_running_loop().create_future()
            with suppress(asyncio.CancelledError):  # once is enough: the caller raises it
                await finish(entry.over)
        elif not entry.done.cancelled() and not entry.done.exception():
            self._unwanted(entry.done.result())  # it came just before the cancellation

    def _start_soon(self) -> None:
        """Start batches when everybody who is about to add something has done so."""
        if not self._starting and self._waiting and len(self._running) < self._at_once:
            self._starting = True
            # In a context of its own: a batch is about many, and not just who comes first.
            asyncio.get_running_loop().call_soon(self._start, context=Context())

    def _start(self) -> None:
        self._starting = False
        while self._waiting and len(self._running) < self._at_once:
            task = asyncio.create_task(self._run(self._next_batch()))
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._start_soon()

    def _next_batch(self) -> list[_Entry[Item, Result]]:
        """The items that go now: an even share of those that wait, if that is worth it, and no more than allowed."""
        free = self._at_once - len(self._running)
        enough = min(self._most_cost, max(WORTH_SHARING, -(-self._waiting_cost // free)))
        batch: list[_Entry[Item, Result]] = []
        cost = 0
        while self._waiting and len(batch) < self._most_items:
            if batch and cost + self._waiting[0].cost > enough:
                break
            entry = self._waiting.popleft()
            self._waiting_cost -= entry.cost
            cost += entry.cost
            batch.append(entry)
        return batch

    async def _run(self, batch: list[_Entry[Item, Result]]) -> None:
        try:
            results = await self._work([entry.item for entry in batch])
        except BaseException as error:
            failure = error if isinstance(error, Exception) else RuntimeError("the batch was cancelled")
            for entry in batch:
                if not entry.done.done():
                    entry.done.set_exception(failure)
            if not isinstance(error, Exception):
                raise
        else:
            for entry, result in zip(batch, results, strict=True):
                if entry.done.done():
                    self._unwanted(result)
                else:
                    entry.done.set_result(result)
        finally:
            for entry in batch:
                entry.is_over = True
                if entry.over is not None:
                    entry.over.set_result(None)
