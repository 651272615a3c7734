"""Small tools for asyncio: work that a cancellation must not cut in half, and a window of tasks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, TypeVar

Result = TypeVar("Result")


async def finish(job: Coroutine[Any, Any, Result] | asyncio.Future[Result]) -> Result:
    """Await a job to its end, whatever happens to the waiter; a cancellation is delivered afterwards.

    For work that other parties (a process, the journal) carry on with anyway, so that what it uses is freed
    only when it is over.
    """
    task = job if isinstance(job, asyncio.Future) else asyncio.ensure_future(job)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            if not task.cancelled():
                cancelled = error
        except BaseException:
            break  # its own, which its result tells
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # seen: the cancellation outranks it
    raise cancelled


@asynccontextmanager
async def opened(open: Callable[[], Result], close: Callable[[Result], None]) -> AsyncIterator[Result]:
    """What a blocking `open` returns, until a blocking `close` is done with it, whenever the user is cancelled."""
    opening = asyncio.ensure_future(asyncio.to_thread(open))
    try:
        yield await finish(opening)
    finally:
        if not opening.exception():
            await finish(asyncio.to_thread(close, opening.result()))


class Window:
    """Runs coroutines beside each other, at most `size` at once; the first failure stops the rest.

    `async with` ends when all are done and raises the first failure. When the body fails or is cancelled, the
    tasks are cancelled and awaited before the error goes on.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._tasks: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        #: Set at the first failure, for those who wait for something else meanwhile.
        self.failed = asyncio.Event()

    @property
    def full(self) -> bool:
        """Whether the next `start` has to wait."""
        return len(self._tasks) >= self._size

    async def start(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Start a task when there is room; raises the first failure of an earlier one."""
        try:
            await self.room()
        except BaseException:
            coroutine.close()
            raise
        self.start_now(coroutine)

    def start_now(self, coroutine: Coroutine[Any, Any, None], release: Callable[[], None] | None = None) -> None:
        """Start a task at once, for callers that waited for `room` before.

        `release` is called when the task is over, even if it was cancelled before its first step: a `finally`
        inside the coroutine would not run then.
        """
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        if release is not None:
            task.add_done_callback(lambda _: release())

    async def room(self) -> None:
        """Wait until another task may start; raises the first failure of an earlier one."""
        while self.full and self._failure is None:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
        self.check()

    def check(self) -> None:
        """Raise the first failure, if there was one."""
        if self._failure is not None:
            raise self._failure

    async def drain(self) -> None:
        """Wait for all tasks; raises the first failure."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        self.check()

    async def cancel(self) -> None:
        """Cancel all tasks and wait until they are over."""
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await finish(asyncio.wait(set(self._tasks)))  # a copy: they may end before the wait begins

    async def __aenter__(self) -> Window:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            await self.cancel()
            return
        try:
            await self.drain()
        except BaseException:
            await self.cancel()
            raise

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and self._failure is None:
            self._failure = error
            self.failed.set()
            for other in self._tasks:
                other.cancel()
