"""The daemon, its processes, or all of them die at any moment: what was acknowledged is there when it is back."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests.faults.conftest import Count, in_full
from tests.faults.inject import fired, inject
from tests.faults.oracle import Oracle, seed_of_run
from tests.harness import Daemon, has_ended, noise
from tests.wire import code

#: No I/O process outlives its daemon by more than this.
OUTLIVES_SECONDS = 2.0
#: Until an operation is under way in every client.
MOMENTS = 0.005, 1.5


@pytest.fixture
def oracle(request: pytest.FixtureRequest, in_memory: Path) -> Iterator[Oracle]:
    seed = seed_of_run()
    rerun = f"PFSD_SEED={seed} python -m pytest -n 0 --faults=full '{request.node.nodeid}'"
    print(rerun)
    with Oracle(in_memory, seed, rerun=rerun) as oracle:
        yield oracle


@pytest.fixture
def stopped(in_memory: Path) -> Iterator[Daemon]:
    """A daemon that is to be started so often that its store is not on a disk."""
    with Daemon(in_memory, log_level="info") as daemon:
        yield daemon


@pytest.fixture
def crashing(stopped: Daemon) -> Daemon:
    """The same, started for the first time."""
    stopped.start()
    return stopped


@pytest.mark.promise("durable")
@pytest.mark.promise("unknown")
@pytest.mark.promise("whole")
@pytest.mark.timeout(600)
def test_a_killed_daemon_has_lost_nothing(oracle: Oracle, crashing: Daemon, count: Count) -> None:
    moment = random.Random(oracle.seed)
    for _ in range(count(2, 50)):
        with oracle.load(crashing):
            oracle.wait(moment.uniform(*MOMENTS))
            oracle.fault()
            crashing.kill()
        oracle.note_packs(crashing)
        crashing.start()
        oracle.check(crashing)
        oracle.check_resources(crashing)
    oracle.check_twice(crashing)


@pytest.mark.promise("durable")
@pytest.mark.promise("unknown")
@pytest.mark.timeout(600)
def test_nothing_is_lost_when_all_processes_are_killed(oracle: Oracle, crashing: Daemon, count: Count) -> None:
    moment = random.Random(oracle.seed)
    for _ in range(count(1, 20)):
        with oracle.load(crashing):
            oracle.wait(moment.uniform(*MOMENTS))
            oracle.fault()
            crashing.kill_all()
        oracle.note_packs(crashing)
        crashing.start()
        oracle.check(crashing)


@pytest.mark.promise("durable")
@pytest.mark.thorough
@pytest.mark.timeout(600)
def test_without_durability_a_killed_daemon_has_lost_nothing_either(
    oracle: Oracle, stopped: Daemon, count: Count
) -> None:
    stopped.config(durability="none")
    stopped.start()
    moment = random.Random(oracle.seed)
    for _ in range(count(1, 10)):
        with oracle.load(stopped):
            oracle.wait(moment.uniform(*MOMENTS))
            oracle.fault()
            stopped.kill()
        stopped.start()
        oracle.check(stopped)


@pytest.mark.promise("processes")
@pytest.mark.timeout(600)
def test_killed_io_processes_cost_nobody_anything(oracle: Oracle, crashing: Daemon, count: Count) -> None:
    moment = random.Random(oracle.seed)
    with oracle.load(crashing):
        oracle.wait(0.2)
    oracle.check_resources(crashing)
    with oracle.load(crashing):
        for killed in range(1, count(3, 30) + 1):
            oracle.wait(moment.uniform(0, 0.3))
            moment.choice(crashing.workers()).kill()
            crashing.wait_until("processes_replaced", str(killed))
    oracle.check(crashing, crashed=False)
    oracle.check_resources(crashing)


@pytest.mark.promise("processes")
@pytest.mark.timeout(600)
def test_a_daemon_starts_beside_the_processes_of_a_killed_one(oracle: Oracle, crashing: Daemon, count: Count) -> None:
    moment = random.Random(oracle.seed)
    for _ in range(count(1, 20)):
        workers = crashing.workers()
        with oracle.load(crashing):
            oracle.wait(moment.uniform(*MOMENTS))
            oracle.fault()
            for worker in workers:
                worker.suspend()
            orphans = crashing.kill_alone()
        crashing.start()
        oracle.check(crashing)
        packs = crashing.packs()
        for worker in workers:
            with suppress(psutil.NoSuchProcess):  # it has ended with its daemon, stopped as it was
                worker.resume()
        _assert_end_soon(orphans)
        assert crashing.packs() == packs, "a process has published a pack after its daemon had died"
        crashing.restart()  # sweeps what they have written last
        oracle.check(crashing)


@pytest.mark.promise("processes")
@pytest.mark.timeout(600)
def test_processes_end_with_their_daemon(crashing: Daemon, count: Count) -> None:
    for seed in range(count(1, 20)):
        with crashing.connect() as wire:
            wire.send(b"put - name=big size=%d replace=yes\n" % (8 << 20) + noise(4 << 20, seed))
            orphans = crashing.kill_alone()
            crashing.start()  # at once: they hold neither port nor lock
            _assert_end_soon(orphans)


@pytest.mark.promise("durable")
@pytest.mark.promise("unknown")
@pytest.mark.timeout(600)
def test_a_daemon_is_killed_again_while_it_starts(oracle: Oracle, crashing: Daemon, count: Count) -> None:
    moment = random.Random(oracle.seed)
    for _ in range(count(1, 20)):
        with oracle.load(crashing):
            oracle.wait(moment.uniform(*MOMENTS))
            oracle.fault()
            crashing.kill()
        for _ in range(moment.randrange(1, 4)):
            crashing.spawn()
            time.sleep(moment.uniform(0.005, 0.6))  # there is no event to wait for: any moment is meant
            crashing.kill_all()
        crashing.start()
        oracle.check(crashing)


@pytest.mark.promise("durable")
@pytest.mark.parametrize(
    "fault",
    [
        "rename:*/journal.jsonl.new:1:after-kill",
        *in_full(
            "",
            "fdatasync:*/journal.jsonl.new:1:kill",
            "rename:*/journal.jsonl.new:1:kill",
            "fsync_dir:*/store:1:kill",
        ),
    ],
)
def test_a_store_whose_first_daemon_was_killed_takes_a_put(stopped: Daemon, fault: str) -> None:
    if fault:
        inject(stopped, fault)
        stopped.spawn()
        stopped.wait(-signal.SIGKILL)
        assert fired(stopped)
        inject(stopped)
    else:
        stopped.start()
        stopped.kill()
    stopped.start()
    assert stopped.ask(b"list\n") == [b"OK list files=0 size=0 stored=0"]
    assert code(stopped.ask(b"put - name=first size=1\nx")[-1]) == "OK"
    stopped.kill()
    stopped.start()
    assert stopped.ask(b"list\n")[-1].startswith(b"OK list files=1 size=1 ")


@pytest.mark.promise("durable")
def test_what_was_deleted_stays_deleted_though_its_packs_were_not_unlinked(stopped: Daemon) -> None:
    inject(stopped, "unlink:*.pack:1+:kill")  # whoever is to unlink a pack dies
    stopped.start()
    assert code(stopped.ask(b"put - name=gone size=3000000\n" + noise(3_000_000))[-1]) == "OK"
    assert code(stopped.ask(b"delete gone\n")[-1]) == "OK"
    assert len(fired(stopped)) == 3
    assert stopped.packs()
    stopped.kill()
    stopped.spawn()  # the daemon itself sweeps at the start
    stopped.wait(-signal.SIGKILL)
    assert stopped.packs()
    inject(stopped)
    stopped.start()
    assert stopped.ask(b"list\n") == [b"OK list files=0 size=0 stored=0"]
    assert not stopped.packs()


def _assert_end_soon(orphans: list[psutil.Process]) -> None:
    until = time.monotonic() + OUTLIVES_SECONDS
    left = [orphan for orphan in orphans if not has_ended(orphan.pid, max(0.0, until - time.monotonic()))]
    for orphan in left:
        orphan.kill()
    assert not left, f"{OUTLIVES_SECONDS} s after their daemon these are left: {left}"
