"""One thread with an event loop, for programs that have none: coroutines run there while the caller waits.

All of a process share it. It begins when it is first needed, anew in a child that was forked, and ends with the
process.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import os
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any, Generic, TypeVar

from pfsd.errors import UsageError

Result = TypeVar("Result")

#: Items of an async iterator that are fetched ahead of who takes them.
AHEAD = 1024
#: The end of a program waits at most so long for what still runs, and then as long for the thread.
END_SECONDS = 1.0
#: A coroutine that was cancelled gets so long to clean up before the caller goes on without it.
CLEANUP_SECONDS = 10.0


class _Thread:
    """A daemon thread that runs an event loop."""

    def __init__(self) -> None:
        self.loop = _new_loop()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="pfsd", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped:
            # What is raised here would end a program, as SystemExit out of a callback: its caller is told.
            with suppress(BaseException):
                self.loop.run_forever()

    @property
    def is_current(self) -> bool:
        return threading.current_thread() is self._thread

    def stop(self) -> None:
        asyncio.run_coroutine_threadsafe(self._wind_up(), self.loop)
        self._thread.join(2 * END_SECONDS)
        if not self._thread.is_alive():
            self.loop.close()

    async def _wind_up(self) -> None:
        """Cancel all that runs, such as uploads nobody closed; then end the loop."""
        own = asyncio.current_task()
        until = self.loop.time() + END_SECONDS
        while (tasks := asyncio.all_tasks() - {own}) and (left := until - self.loop.time()) > 0:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=left)
        self._stopped = True
        self.loop.stop()


def _new_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


_lock = threading.Lock()
_thread: _Thread | None = None
_ended = False
#: What belongs to a parent process. To let go of it might close what the parent uses.
_inherited: list[_Thread] = []


def _current() -> _Thread:
    global _thread
    with _lock:
        if _ended:
            raise UsageError("the program is ending, and stores cannot be used any more")
        if _thread is None:
            _thread = _Thread()
        return _thread


@atexit.register
def _end() -> None:
    global _ended, _thread
    with _lock:
        thread, _thread, _ended = _thread, None, True
    if thread is not None:
        thread.stop()


def _in_child() -> None:
    global _lock, _thread
    _lock = threading.Lock()
    if _thread is not None:
        _inherited.append(_thread)
        _thread = None


os.register_at_fork(after_in_child=_in_child)


class Call(Generic[Result]):
    """A coroutine that runs in the thread."""

    def __init__(self, coroutine: Coroutine[Any, Any, Result]) -> None:
        self._coroutine = coroutine
        self._future: concurrent.futures.Future[Result] = concurrent.futures.Future()
        try:
            self._loop = _current().loop
            self._loop.call_soon_threadsafe(self._begin)
        except BaseException:
            coroutine.close()
            raise

    def _begin(self) -> None:
        self._task = self._loop.create_task(self._coroutine)
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[Result]) -> None:
        if _ended:  # only daemon threads can wait now: woken, they would have the last word of the program
            return
        if task.cancelled():
            self._future.set_exception(concurrent.futures.CancelledError())
        elif error := task.exception():
            self._future.set_exception(error)
        else:
            self._future.set_result(task.result())

    def cancel(self) -> None:
        """Cancel it, if it has not ended; never waits."""
        with suppress(RuntimeError):  # the thread has ended
            self._loop.call_soon_threadsafe(lambda: self._task.cancel())

    def result(self) -> Result:
        """Wait for its end. Whoever is interrupted while waiting cancels it."""
        try:
            if _current().is_current:
                words = "a progress callback, or an async iterator given to it"
                raise UsageError(f"a Store cannot be used where it calls back, in {words}")
            return self._future.result()
        except BaseException:
            if not self._future.done():
                self.cancel()
                if not _current().is_current:
                    concurrent.futures.wait([self._future], CLEANUP_SECONDS)
            raise


def run(coroutine: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine in the thread and wait for its end.

    UsageError in the thread itself, as in callbacks, where this would wait for itself.
    """
    return Call(coroutine).result()


# --- iterators ----------------------------------------------------------------------------------


class _Fetched(Generic[Result]):
    """Items of an async iterator, fetched ahead by a task; lives in the loop."""

    def __init__(self, items: AsyncIterator[Result]) -> None:
        self._items: list[Result] = []
        self._news = asyncio.Event()
        self._room = asyncio.Event()
        self._task = asyncio.ensure_future(self._fetch(items))
        self._task.add_done_callback(lambda _: self._news.set())

    async def _fetch(self, items: AsyncIterator[Result]) -> None:
        try:
            async for item in items:
                self._items.append(item)
                self._news.set()
                if len(self._items) >= AHEAD:
                    self._room.clear()
                    await self._room.wait()
        finally:
            if isinstance(items, AsyncGenerator):
                await items.aclose()

    async def take(self) -> list[Result]:
        """All that is there, once there is something; empty at the end. Raises what the iterator raised."""
        await self._news.wait()
        taken, self._items = self._items, []
        self._room.set()
        if not taken:
            self._task.result()
        if not self._task.done():
            self._news.clear()
        return taken

    async def end(self) -> None:
        """Fetch no more."""
        self._task.cancel()
        await asyncio.wait({self._task})


def iterate(make: Callable[[], AsyncIterator[Result]]) -> Iterator[Result]:
    """The items of an async iterator, which is made and run in the thread."""

    async def begin() -> _Fetched[Result]:
        return _Fetched(make())

    fetched = run(begin())
    try:
        while items := run(fetched.take()):
            yield from items
    finally:
        with suppress(UsageError):  # the program is ending
            ending = Call(fetched.end())
            if not _current().is_current:  # where the garbage collector may have come by
                ending.result()
