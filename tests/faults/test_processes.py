"""I/O processes, and the daemon itself, that are killed, stopped, starved or told to end, at any moment."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import random
import resource
import select
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from pfsd import work
from pfsd.budget import MemoryBudget
from pfsd.errors import IoError, RequestError
from pfsd.fair import Flow
from pfsd.workers import Workers
from tests.faults.conftest import Count, often_enough
from tests.faults.inject import fired, inject
from tests.harness import PART, Daemon, etag, noise
from tests.wire import Wire, code, fields

#: A task that takes longer than two seconds has hung.
IMPATIENT = "import pfsd.workers; pfsd.workers.Workers.__init__.__defaults__ = (2.0,)"


def seed() -> int:
    chosen = int(os.environ.get("PFSD_TEST_SEED", random.randrange(1 << 30)))
    print(f"PFSD_TEST_SEED={chosen}")
    return chosen


# --- processes that die or stand still ------------------------------------------------------------


@pytest.mark.promise("processes")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV], ids=lambda how: how.name)
def test_a_process_that_is_killed_costs_a_retry(daemon: Daemon, how: signal.Signals, count: Count) -> None:
    """At random moments, idle and at work, while files go in and out beside it."""
    if how == signal.SIGSEGV:
        often_enough(count)
    chance = random.Random(seed())
    content = noise(60 * PART)
    (daemon.root / "source").write_bytes(content)
    with daemon.connect() as wire, daemon.connect() as other:
        for turn in range(count(3, 17)):
            wire.send(b"put source name=f%d\nput - name=g%d size=%d\n" % (turn, turn, len(content)) + content)
            for _ in range(chance.randrange(40)):
                assert other.ask(b"ping\n") == [b"OK ping"]
            chance.choice(daemon.workers() or [psutil.Process()]).send_signal(how if daemon.workers() else 0)
            assert [fields(wire.line())["etag"] for _ in range(2)] == [etag(content)] * 2
            chance.choice(daemon.workers() or [psutil.Process()]).send_signal(how if daemon.workers() else 0)
            wire.send(b"get f%d -\n" % turn)
            assert wire.frames()[0] == content
            assert code(wire.last(b"delete f%d g%d\n" % (turn, turn))) == "OK"
        assert int(daemon.stats()["processes_replaced"]) >= 1
        for _ in range(4):
            assert code(wire.last(b"put source replace=yes\n")) == "OK"
    daemon.wait_until("memory_used", "0")
    daemon.wait_until("processes_busy", "0")
    assert len(daemon.workers()) == 2 and daemon.staged() == []


@pytest.mark.promise("processes")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("at_work", [False, True])
def test_a_process_that_stands_still_is_replaced(idle_daemon: Daemon, at_work: bool, count: Count) -> None:
    idle_daemon.prelude = IMPATIENT
    if not at_work:
        often_enough(count)
    else:
        inject(idle_daemon, "fdatasync:*/store/tmp/*:3:stop")
    idle_daemon.start()
    content = noise(20 * PART)
    with idle_daemon.connect() as wire:
        for turn in range(count(1, 10)):
            if not at_work:
                idle_daemon.workers()[0].suspend()
            wire.send(
                b"".join(
                    b"@%d put - name=f%d size=%d replace=yes\n" % (at, at, len(content)) + content for at in range(4)
                )
            )
            assert [code(wire.line()) for _ in range(4)] == ["OK"] * 4
            assert int(idle_daemon.stats()["processes_replaced"]) > (turn if not at_work else -1)
    if at_work:
        assert any(line.endswith("stop") for line in fired(idle_daemon))
        assert int(idle_daemon.stats()["processes_replaced"]) >= 1
    idle_daemon.wait_until("memory_used", "0")


@pytest.mark.promise("processes")
@pytest.mark.parametrize("victim", ["forkserver", "resource_tracker"])
def test_the_helpers_of_python_may_die_too(daemon: Daemon, victim: str, count: Count) -> None:
    if victim == "resource_tracker":
        often_enough(count)
    content = noise(20 * PART)
    (found,) = [child for child in psutil.Process(daemon.pid).children() if victim in " ".join(child.cmdline())]
    found.kill()
    with daemon.connect() as wire:
        for turn in range(3):
            reply = wire.last(b"put - name=f%d size=%d\n" % (turn, len(content)) + content)
            assert code(reply) == "OK", reply
            for process in daemon.workers():
                process.kill()
        wire.send(b"get f0 -\n")
        assert wire.frames()[0] == content


@pytest.mark.promise("processes")
def test_the_system_takes_memory_from_io_processes_first(daemon: Daemon) -> None:
    def score(pid: int) -> int:
        return int(Path(f"/proc/{pid}/oom_score_adj").read_text())

    assert all(score(worker.pid) > score(daemon.pid) for worker in daemon.workers())


@pytest.fixture
def cgroup(request: pytest.FixtureRequest) -> Iterator[Callable[[str], Path]]:
    """Makes a cgroup (version 1) of a controller, and removes it when its processes are gone."""
    made: list[Path] = []

    def make(controller: str) -> Path:
        path = Path(f"/sys/fs/cgroup/{controller}/pfsd-test-{os.getpid()}")
        if os.geteuid() or not (path.parent / "cgroup.procs").exists():
            pytest.skip(f"needs root and a cgroup v1 of {controller}")
        path.mkdir()
        made.append(path)
        return path

    yield make
    for path in made:
        path.rmdir()


@pytest.mark.root
@pytest.mark.promise("processes")
def test_when_no_process_can_be_made_it_is_an_error_and_passes(
    cgroup: Callable[[str], Path], idle_daemon: Daemon
) -> None:
    group = cgroup("pids")
    idle_daemon.start()
    content = noise(20 * PART)
    for process in [psutil.Process(idle_daemon.pid), *psutil.Process(idle_daemon.pid).children(recursive=True)]:
        (group / "cgroup.procs").write_text(str(process.pid))
    with idle_daemon.connect() as wire:
        (group / "pids.max").write_text((group / "pids.current").read_text())
        for process in idle_daemon.workers():
            process.kill()
        (group / "pids.max").write_text("1")
        wire.send(b"put - name=a size=%d\n" % len(content) + content)
        assert code(wire.line()) in ("io", "busy")
        assert wire.ask(b"ping\n") == [b"OK ping"]
        (group / "pids.max").write_text("max")
        wire.send(b"put - name=a size=%d\n" % len(content) + content)
        assert code(wire.line()) == "OK"
    idle_daemon.wait_until("memory_used", "0")
    idle_daemon.stop()


# --- tasks that misbehave -------------------------------------------------------------------------


@asynccontextmanager
async def processes(store: Path, count: int = 1) -> AsyncIterator[Workers]:
    budget = MemoryBudget(1 << 20)
    setup = work.Setup(f"/proc/{os.getpid()}/fd/{budget.fd}", budget.limit, f"file:{store}", "epoch", False, False)
    workers = Workers(count, setup, 60)
    try:
        await workers.start()
        yield workers
    finally:
        await workers.stop()
        budget.close()


def fault(task: object, attempt: int) -> object:
    ctypes.string_at(0)
    return None


def leave(task: object, attempt: int) -> object:
    os._exit(0)


class Unreadable:
    """What can be pickled, and not read back."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("not a number",)


def garbage(task: object, attempt: int) -> object:
    return Unreadable()


def unsendable(task: object, attempt: int) -> object:
    return lambda: None


def raise_unsendable(task: object, attempt: int) -> object:
    error = ValueError("x")
    error.held = lambda: None  # type: ignore[attr-defined]
    raise error


def die_in_the_pipe(task: object, attempt: int) -> object:
    """Is killed while a result that fills its pipe is on its way."""
    if not attempt:
        threading.Timer(0.01, os.kill, [os.getpid(), signal.SIGKILL]).start()
        return bytes(64 << 20)
    return b"done"


def answer(task: object, attempt: int) -> object:
    return task


@work._task
def too_much(task: object, attempt: int) -> object:
    room = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + (64 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (room, resource.RLIM_INFINITY))
    try:
        return len(bytearray(1 << 30))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


@pytest.mark.promise("processes")
@pytest.mark.parametrize("task", [fault, leave, garbage, unsendable, raise_unsendable], ids=lambda task: task.__name__)
async def test_a_task_that_misbehaves_fails_alone(tmp_path: Path, task: work.Task[object]) -> None:
    async with processes(tmp_path, 2) as workers:
        doomed = asyncio.ensure_future(workers.run(task, None, Flow(), 1))
        others = await asyncio.gather(*(workers.run(answer, at, Flow(), 1) for at in range(20)))
        assert others == list(range(20))
        with pytest.raises(Exception) as caught:
            await doomed
        assert not isinstance(caught.value, asyncio.CancelledError)
        assert task is raise_unsendable or task is unsendable or isinstance(caught.value, IoError)
        assert workers.busy == 0 and await workers.run(answer, "next", Flow(), 1) == "next"


@pytest.mark.promise("processes")
async def test_a_task_that_finds_no_memory_is_told_busy(tmp_path: Path) -> None:
    async with processes(tmp_path) as workers:
        with pytest.raises(RequestError) as caught:
            await workers.run(too_much, None, Flow(), 1)
        assert caught.value.code == "busy" and workers.replaced == 0


@pytest.mark.promise("processes")
async def test_a_result_that_is_cut_off_in_its_pipe_is_asked_for_again(tmp_path: Path, count: Count) -> None:
    async with processes(tmp_path) as workers:
        for _ in range(count(1, 10)):
            before = workers.replaced
            got = await workers.run(die_in_the_pipe, None, Flow(), 1)
            assert got == b"done" or len(got) == 64 << 20  # type: ignore[arg-type]
            assert workers.replaced == before + 1 or got != b"done"


@pytest.mark.promise("processes")
async def test_nobody_hangs_when_cancelled_tasks_wait_beside_a_dead_process(tmp_path: Path, count: Count) -> None:
    async with processes(tmp_path, 2) as workers:
        for _ in range(count(2, 10)):
            callers = [asyncio.ensure_future(workers.run(answer, at, Flow(), 1)) for at in range(12)]
            await asyncio.sleep(0)
            for caller in callers[::3]:
                caller.cancel()
            for pid in workers.pids[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            _, pending = await asyncio.wait(callers, timeout=30)
            assert not pending
            assert [caller.result() for caller in callers if not caller.cancelled()] == [1, 2, 4, 5, 7, 8, 10, 11]
            assert workers.busy == 0


# --- none outlives the daemon ---------------------------------------------------------------------


@pytest.mark.promise("processes")
@pytest.mark.parametrize("state", ["idle", "stopped", "at-work", "stopped-at-work"])
def test_no_process_outlives_the_daemon(idle_daemon: Daemon, state: str, count: Count) -> None:
    if state not in ("stopped", "at-work"):
        often_enough(count)
    idle_daemon.config(level=19, part_size="1MiB", memory="256MiB")
    if state == "stopped-at-work":
        inject(idle_daemon, "fdatasync:*/store/tmp/*:1:stop")
    idle_daemon.start()
    workers = [os.pidfd_open(worker.pid) for worker in idle_daemon.workers()]
    assert len(workers) == 2
    with idle_daemon.connect() as wire:
        if state.endswith("work"):
            (idle_daemon.root / "text").write_bytes(os.urandom(1000).hex().encode() * 20_000)
            wire.send(b"put text\n")
            idle_daemon.wait_until("processes_busy", "2")
        if state == "stopped":
            for worker in idle_daemon.workers():
                worker.suspend()
        idle_daemon.note_family()
        os.kill(idle_daemon.pid, signal.SIGKILL)
        until = time.monotonic() + 10  # two seconds, on a machine that does nothing else
        for worker in workers:
            assert select.select([worker], [], [], max(0.0, until - time.monotonic()))[0], "it lives on"
            os.close(worker)
    idle_daemon.wait(-signal.SIGKILL)


# --- stopping -------------------------------------------------------------------------------------


def _stop_by_signal(daemon: Daemon) -> None:
    os.kill(daemon.pid, signal.SIGTERM)


def _stop_twice(daemon: Daemon) -> None:
    _stop_by_signal(daemon)
    _stop_by_signal(daemon)


def _stop_by_exit(daemon: Daemon) -> None:
    with contextlib.suppress(AssertionError, OSError):
        daemon.ask(b"exit\n")


def _ctrl_c(daemon: Daemon) -> None:
    for process in [psutil.Process(daemon.pid), *psutil.Process(daemon.pid).children(recursive=True)]:
        process.send_signal(signal.SIGINT)


STOPS = [_stop_by_signal, _stop_twice, _stop_by_exit, _ctrl_c]


@pytest.mark.promise("stop")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("hanging", [False, True], ids=["processes-work", "processes-stopped"])
def test_a_stop_ends_whatever_clients_and_processes_do(idle_daemon: Daemon, hanging: bool, count: Count) -> None:
    """Puts, 100 queued requests, idle clients, one that does not read and one that does not send; processes stopped."""
    if not hanging:
        often_enough(count)
    chance = random.Random(seed())
    content = noise(60 * PART)
    (idle_daemon.root / "source").write_bytes(content)
    idle_daemon.config(stop_timeout=1)
    for _ in range(count(1, 10)):
        idle_daemon.start()
        assert code(idle_daemon.ask(b"put - name=big replace=yes size=%d\n" % len(content) + content)[-1]) == "OK"
        queue, idle, sending = (idle_daemon.connect() for _ in range(3))
        lazy = Wire(idle_daemon.address, receive_buffer=2048)
        sending.send(b"put - name=half size=1000000\n" + bytes(500_000))
        lazy.send(b"get big -\n" * 10)
        queue.send(b"".join(b"put source name=q%d replace=yes\n" % at for at in range(100)))
        for _ in range(chance.randrange(20)):
            idle_daemon.ask(b"ping\n")
        idle_daemon.note_family()
        if hanging:
            for worker in idle_daemon.workers():
                worker.suspend()
        chance.choice(STOPS)(idle_daemon)
        began = time.monotonic()
        answered = [line for line in _rest(queue) if line]
        assert all(code(line) in ("OK", "cancelled", "stopping") for line in answered)
        assert idle_daemon.process is not None and idle_daemon.process.wait(30) in (0, 75), idle_daemon.log
        assert time.monotonic() - began < 1 + 5 + 3, "and some for a busy machine"
        idle_daemon.wait(idle_daemon.process.returncode)
        stored = {fields(line)["name"] for line in answered if code(line) == "OK"}
        for wire in (queue, idle, sending, lazy):
            wire.close()
        assert "Traceback" not in idle_daemon.log
        idle_daemon.start()
        rows = [fields(row) for row in idle_daemon.ask(b"list\n")[:-1]]
        assert stored | {"big"} <= {row["name"] for row in rows if row["status"] == "ready"}
        assert "half" not in {row["name"] for row in rows}
        idle_daemon.stop()


def _rest(wire: Wire) -> list[bytes]:
    with contextlib.suppress(ConnectionError):
        return wire.rest().split(b"\n")
    return []
