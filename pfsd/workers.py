"""The I/O processes: one single-process `ProcessPoolExecutor` for each slot.

A shared pool breaks as a whole when one of its processes dies and stalls when one is stopped; a slot of its own
is replaced alone, its task is tried again, and nobody else notices. The processes start from a forkserver:
forked from the daemon they would inherit its sockets, its lock and its signal handlers.

Tasks are functions of importable modules with small plain tuples in and out; they must be safe to run twice.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, TypeVar

from pfsd import work
from pfsd.aio import finish
from pfsd.errors import IoError, Stopping
from pfsd.fair import FairQueue, Flow

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: A process that has not finished one task by then is stuck: so long, and what the slowest codec and disk take.
TASK_SECONDS = 120.0
SLOWEST_BYTES_PER_SECOND = 1 << 20
#: A process that is not there by then will not come.
START_SECONDS = 60.0


#: How a slot shows that its process died, hangs, or could not be started; tasks themselves return their errors.
_BROKEN = (BrokenExecutor, OSError, EOFError, RuntimeError)


class _Lost(Exception):
    """The process died or hung under its task."""


class SlotState(NamedTuple):
    """What a slot is doing: `idle`, `busy` with a kind of task since a time of `time.monotonic`, or `down` until a
    process that died is replaced. `done` counts tasks, `restarts` processes."""

    number: int
    pid: int | None
    state: str
    task: str | None
    since: float | None
    done: int
    restarts: int


class _Slot:
    """One process and the executor around it."""

    def __init__(self, number: int, make_executor: Callable[[], ProcessPoolExecutor]) -> None:
        self.number = number
        self._make_executor = make_executor
        self.executor = make_executor()
        self.task: str | None = None
        self.since: float | None = None
        self.done = 0
        self.restarts = 0

    def begin(self, function_name: str) -> None:
        """A task goes to the process; `function_name` begins with its kind."""
        self.task, self.since = function_name.partition("_")[0], time.monotonic()

    def end(self) -> None:
        """The task is over."""
        self.task = self.since = None
        self.done += 1

    def state(self) -> SlotState:
        """What the slot is doing."""
        pid = next((process.pid for process in self._processes() if not wait([process.sentinel], 0)), None)
        state = "down" if pid is None else "busy" if self.task else "idle"
        return SlotState(self.number, pid, state, self.task, self.since, self.done, self.restarts)

    def start(self) -> int:
        """Start the process (blocking) and return its pid."""
        pid = self.executor.submit(work.ready).result(START_SECONDS)
        assert isinstance(pid, int)
        return pid

    @property
    def pids(self) -> list[int]:
        """The slot's process, unless it is just being replaced."""
        return [process.pid for process in self._processes() if process.pid is not None]

    def _processes(self) -> list[BaseProcess]:
        return list((self.executor._processes or {}).values())

    def replace(self) -> None:
        """Kill the process, wait until it is gone (blocking), and start another.

        It must be gone before its memory is given to another task: it could still write there.
        """
        self.kill()
        self.executor = self._make_executor()
        try:
            self.start()
        except BaseException:
            self.kill()  # half started it might take a task, and never tell
            raise

    def kill(self) -> None:
        """End the process now (blocking until it is gone)."""
        processes = self._processes()
        for process in processes:
            process.kill()
        for process in processes:
            process.join()
        manager: threading.Thread | None = getattr(self.executor, "_executor_manager_thread", None)
        self.executor.shutdown(wait=False)
        if manager is not None:  # it must not close its pipe while the interpreter, on its way out, writes to that
            manager.join(START_SECONDS)


class Workers:
    """`count` I/O processes that take tasks in fair turns."""

    def __init__(self, count: int, setup: work.Setup, task_seconds: float = TASK_SECONDS) -> None:
        context = multiprocessing.get_context("forkserver")
        # Imported (and compiled) once, before the processes are forked: they share that memory.
        context.set_forkserver_preload(["pfsd.work", "pfsd.lanes"] if setup.lanes else ["pfsd.work"])
        _show_forkserver_this_pfsd()

        def make_executor() -> ProcessPoolExecutor:
            return ProcessPoolExecutor(1, mp_context=context, initializer=work.set_up, initargs=(setup,))

        self._task_seconds = task_seconds
        self._slots = [_Slot(number, make_executor) for number in range(count)]
        self._idle: list[_Slot] = []
        self._queue: FairQueue[asyncio.Future[_Slot]] = FairQueue()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopped = False

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def pids(self) -> list[int]:
        """Process ids of the I/O processes."""
        return [pid for slot in self._slots for pid in slot.pids]

    @property
    def busy(self) -> int:
        """How many processes have a task."""
        return len(self._slots) - len(self._idle)

    @property
    def replaced(self) -> int:
        """Processes replaced since the start."""
        return sum(slot.restarts for slot in self._slots)

    def slots(self) -> list[SlotState]:
        """What each process is doing."""
        return [slot.state() for slot in self._slots]

    async def start(self) -> None:
        """Start every process, so that the first request does not pay for it."""
        for slot in self._slots:
            await asyncio.to_thread(slot.start)
            self._idle.append(slot)

    async def run(self, function: work.Task[Result], task: object, flow: Flow, cost: int) -> Result:
        """Run `function(task, attempt)` in a process when its flow's turn comes; `cost` is in bytes.

        A cancelled caller is let go only when the process is done with the task, so that memory the task
        works on can be freed safely by the caller. IoError when no attempt came to an end.
        """
        for attempt in range(work.ATTEMPTS):
            slot = await self._slot(flow, cost)
            job = asyncio.create_task(self._run_on(slot, function, task, attempt, cost))
            self._tasks.add(job)
            job.add_done_callback(self._tasks.discard)
            try:
                outcome = await finish(job)
            except _Lost:
                continue
            if isinstance(outcome, work.Failure):
                if outcome.trace:
                    log.error("a bug in %s", function.__name__, extra={"trace": outcome.trace})
                raise outcome.error()
            return outcome
        raise IoError(f"the I/O process died or hung {work.ATTEMPTS} times over this task; the log says more")

    async def stop(self) -> None:
        """End all processes now, whatever they do; their tasks, and all later ones, are told Stopping."""
        self._stopped = True
        await asyncio.to_thread(self.kill)
        while self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.to_thread(self.kill)  # one that was just being replaced

    def kill(self) -> None:
        """End all processes now (blocking)."""
        for slot in self._slots:
            slot.kill()

    async def _slot(self, flow: Flow, cost: int) -> _Slot:
        granted: asyncio.Future[_Slot] = asyncio.get_running_loop().create_future()
        self._queue.push(flow, cost, granted)
        self._serve()
        try:
            return await granted
        except asyncio.CancelledError:
            if not granted.cancelled():
                self._give_back(granted.result())
            raise

    def _give_back(self, slot: _Slot) -> None:
        self._idle.append(slot)
        self._serve()

    def _serve(self) -> None:
        while self._idle and self._queue:
            granted = self._queue.pop()
            if not granted.done():
                granted.set_result(self._idle.pop())

    async def _run_on(
        self, slot: _Slot, function: work.Task[Result], task: object, attempt: int, cost: int
    ) -> Result | work.Failure:
        executor: Executor = slot.executor
        slot.begin(function.__name__)
        seconds = self._task_seconds + cost / SLOWEST_BYTES_PER_SECOND
        try:
            self._check_stopped()
            # Shielded: a cancelled future beside a dead process can hang its executor for good (gh-107219).
            future = asyncio.get_running_loop().run_in_executor(executor, function, task, attempt)
            future.add_done_callback(_retrieve)
            return await asyncio.wait_for(asyncio.shield(future), seconds)
        except _BROKEN as error:
            self._check_stopped()
            slot.restarts += 1
            log.warning(
                "I/O process %d %s during %s, attempt %d; it is replaced",
                slot.number,
                f"hung for {seconds:g} s" if isinstance(error, TimeoutError) else "died",
                function.__name__,
                attempt + 1,
            )
            await self._replace(slot)
            raise _Lost from error
        finally:
            slot.end()
            self._give_back(slot)

    def _check_stopped(self) -> None:
        if self._stopped:
            raise Stopping("the daemon is shutting down")

    async def _replace(self, slot: _Slot) -> None:
        try:
            await asyncio.to_thread(slot.replace)
        except _BROKEN as error:
            # The next task on this slot finds it broken and comes here again.
            log.error("I/O process %d cannot be started again: %s", slot.number, error or type(error).__name__)


def _show_forkserver_this_pfsd() -> None:
    """Let the forkserver find the pfsd that runs here: up to Python 3.12 it looks in paths of its own, in which there
    may be another one, or none."""
    home = os.path.dirname(os.path.dirname(os.path.abspath(work.__file__)))
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if home not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [*paths, home]))


def _retrieve(future: asyncio.Future[Any]) -> None:
    """Mark a future's exception as seen; the waiter may be gone."""
    if not future.cancelled():
        future.exception()
