"""I/O processes that die, hang or fail under their tasks."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from pfsd import packs, work
from pfsd.budget import MemoryBudget
from pfsd.errors import IoError, NoSpace
from pfsd.fair import Flow
from pfsd.workers import Workers


@asynccontextmanager
async def processes(store: Path, count: int = 1, task_seconds: float = 60) -> AsyncIterator[Workers]:
    budget = MemoryBudget(1 << 20)
    setup = work.Setup(f"/proc/{os.getpid()}/fd/{budget.fd}", budget.limit, f"file:{store}", "epoch", False, False)
    workers = Workers(count, setup, task_seconds)
    try:
        await workers.start()
        yield workers
    finally:
        await workers.stop()
        budget.close()


# --- tasks --------------------------------------------------------------------------------------


def attempt_of(task: object, attempt: int) -> int:
    return attempt


def die_at_first(task: int, attempt: int) -> int:
    """Dies in as many attempts as the task says."""
    if attempt < task:
        os.kill(os.getpid(), signal.SIGKILL)
    return attempt


def stop_at_first(task: int, attempt: int) -> int:
    """Stands still in as many attempts as the task says."""
    if attempt < task:
        os.kill(os.getpid(), signal.SIGSTOP)
    return attempt


def fail(task: object, attempt: int) -> work.Failure:
    return work.Failure("no-space", "full", {"errno": "ENOSPC"})


def wait_for_pipe(task: str, attempt: int) -> str:
    """Ends when somebody writes to the named pipe."""
    with open(task) as pipe:
        return pipe.read()


# --- tests --------------------------------------------------------------------------------------


@pytest.mark.parametrize("deaths", [0, 1, 2])
@pytest.mark.promise("processes")
async def test_the_task_of_a_process_that_died_is_done_by_another(tmp_path: Path, deaths: int) -> None:
    async with processes(tmp_path) as workers:
        before = workers.pids
        assert await workers.run(die_at_first, deaths, Flow(), 1) == deaths
        assert workers.replaced == deaths
        assert (workers.pids == before) is (deaths == 0)
        assert await workers.run(attempt_of, None, Flow(), 1) == 0


@pytest.mark.promise("processes")
async def test_nothing_of_a_slot_is_left_when_its_process_was_killed(tmp_path: Path) -> None:
    """What is still ending when the interpreter ends would say so in the log."""
    before = set(threading.enumerate())
    async with processes(tmp_path, count=2) as workers:
        await workers.run(attempt_of, 0, Flow(), 1)
        its_own = [thread for thread in threading.enumerate() if type(thread).__name__ == "_ExecutorManagerThread"]
        assert len(set(its_own) - before) == 2
        workers.kill()
        assert [thread for thread in its_own if thread.is_alive()] == []


async def test_a_task_that_kills_every_process_fails_and_nothing_else_does(tmp_path: Path) -> None:
    async with processes(tmp_path, count=2) as workers:
        doomed = asyncio.ensure_future(workers.run(die_at_first, work.ATTEMPTS, Flow(), 1))
        others = [asyncio.ensure_future(workers.run(attempt_of, None, Flow(), 1)) for _ in range(20)]
        assert await asyncio.gather(*others) == [0] * 20
        with pytest.raises(IoError, match="3 times"):
            await doomed
        assert workers.replaced == work.ATTEMPTS and workers.busy == 0


@pytest.mark.promise("processes")
async def test_a_process_that_hangs_is_replaced_and_its_task_repeated(tmp_path: Path) -> None:
    async with processes(tmp_path, task_seconds=2) as workers:
        (hung,) = workers.pids
        assert await workers.run(stop_at_first, 1, Flow(), 1) == 1
        assert workers.replaced == 1 and hung not in workers.pids


async def test_a_failure_comes_back_as_the_error_it_stands_for(tmp_path: Path) -> None:
    async with processes(tmp_path) as workers:
        with pytest.raises(NoSpace) as caught:
            await workers.run(fail, None, Flow(), 1)
        assert caught.value.fields == {"errno": "ENOSPC"} and workers.replaced == 0


@pytest.mark.promise("processes")
async def test_a_cancelled_caller_is_let_go_when_the_process_is_done(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    async with processes(tmp_path) as workers:
        caller = asyncio.ensure_future(workers.run(wait_for_pipe, str(pipe), Flow(), 1))
        with await asyncio.to_thread(open, pipe, "w") as end:  # opens when the task has opened its end
            caller.cancel()
            assert await asyncio.wait({caller}, timeout=0) == (set(), {caller})
            end.write("go on")
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert workers.busy == 0 and workers.replaced == 0


@pytest.mark.parametrize(
    ("codec", "every", "used"),
    [
        ("zstd", 1, ["zstd", "none", "zstd", "zstd"]),
        ("zstd", 3, ["zstd", "none", "none", "zstd"]),  # the parts number 3 and 6
        ("zstd", 7, ["none", "none", "none", "none"]),
        ("none", 1, ["none", "none", "none", "none"]),
    ],
)
async def test_a_stored_run_tells_what_coding_made_of_it(
    tmp_path: Path, codec: str, every: int, used: list[str]
) -> None:
    size = 64 << 10
    content = [bytes(size), random.Random(0).randbytes(size), b"a" * size, b"b" * size]
    source = tmp_path / "source"
    source.write_bytes(b"".join(content))
    origin = packs.Origin(b"s" * 16, 1, b"p" * 8, 1, size, 8 * size, b"name")
    parts = tuple(work.PartIn(origin, seq, at * size, size) for at, seq in enumerate(range(3, 7)))
    async with processes(tmp_path / "store") as workers:
        batch = work.StoreBatch("token", parts, codec, 1, (work.Read(str(source), 0, 0, 4),), every)
        stored = await workers.run(work.store_batch, batch, Flow(), 4 * size)
    rows = [row for row in stored.parts if isinstance(row, work.PartRow)]
    assert [row.codec for row in rows] == used
    coded = [at for at, part in enumerate(parts) if codec != "none" and part.seq % every == 0]
    measured = stored.measured
    assert measured.coded == len(coded) * size
    assert (measured.coding > 0) == bool(coded) and measured.writing > 0
    assert measured.shrunk == sum(rows[at].stored for at in coded)
