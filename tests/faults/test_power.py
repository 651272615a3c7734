"""The power fails: what was acknowledged is on the disk, and nothing else needs to be."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.faults import power
from tests.faults.conftest import Count
from tests.faults.inject import fired, inject
from tests.faults.oracle import Oracle, seed_of_run
from tests.faults.power import Disk, Snapshot, power_cut_run
from tests.harness import Daemon, stands_still

pytestmark = [
    pytest.mark.root,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(power.why_not()), reason=power.why_not()),
]

#: Copies of the disk that are taken from one life of the daemon, and the seconds that it gets for them.
COPIES, PATIENCE_SECONDS = 10, 10.0


@pytest.mark.promise("durable")
@pytest.mark.promise("unknown")
@pytest.mark.promise("whole")
def test_a_power_cut_loses_nothing_that_was_acknowledged(
    request: pytest.FixtureRequest, in_memory: Path, count: Count
) -> None:
    assert power_cut_run(in_memory, rounds=count(1, 20), rerun=request.node.nodeid) == []


@pytest.mark.promise("durable")
def test_nor_on_a_disk_whose_syncs_do_no_more_than_they_are_asked_for(
    request: pytest.FixtureRequest, in_memory: Path, count: Count
) -> None:
    if not count(0, 1):
        pytest.skip("tried with --faults=full")
    assert power_cut_run(in_memory, journal=False, rounds=20, rerun=request.node.nodeid) == []


@pytest.mark.parametrize("sync", ["fdatasync:*/journal.jsonl", "fdatasync:*/tmp/*", "fsync_dir:*/packs/*"])
def test_a_sync_that_is_left_out_is_noticed(in_memory: Path, count: Count, sync: str) -> None:
    """What the tests above would find, if pfsd did not do what it does."""
    if not count(0, 1):
        pytest.skip("tried with --faults=full")
    assert power_cut_run(in_memory, f"{sync}:1+:skip", journal=False, rounds=10) != []


@pytest.mark.promise("durable")
@pytest.mark.promise("unknown")
def test_after_each_sync_the_disk_holds_what_was_acknowledged(in_memory: Path, count: Count) -> None:
    """A copy of the disk is taken right after some of the syncs and renames, and pfsd started on it."""
    copies = count(0, 40)
    if not copies:
        pytest.skip("tried with --faults=full")
    seed = seed_of_run()
    print(f"PFSD_SEED={seed}")
    chosen = random.Random(seed)
    taken = 0
    while taken < copies:
        home = in_memory / str(taken)
        home.mkdir()
        with ExitStack() as stack:
            disk = stack.enter_context(Disk(home))
            daemon = stack.enter_context(disk.daemon())
            oracle = stack.enter_context(Oracle(home, seed + taken))
            calls = [(call, chosen.randrange(10, 60)) for call in ("fdatasync", "fsync_dir", "rename") * 4]
            inject(daemon, *(f"{call}:*:{number}:stop" for call, number in calls))
            daemon.start()
            snapshots = _snapshots(disk, daemon, oracle)
            for snapshot, known in snapshots:
                _check_copy(snapshot, known)
        taken += len(snapshots)


def _snapshots(disk: Disk, daemon: Daemon, oracle: Oracle) -> list[tuple[Snapshot, Oracle]]:
    """Copies of a working daemon's disk, each with what is known at that instant."""
    snapshots: list[tuple[Snapshot, Oracle]] = []
    seen = len(fired(daemon))
    with oracle.load(daemon):
        until = time.monotonic() + PATIENCE_SECONDS
        while len(snapshots) < COPIES and time.monotonic() < until:
            stopped = fired(daemon)
            if not any(stands_still(int(line.split()[0])) for line in stopped[seen:]):
                continue
            seen = len(stopped)
            daemon.freeze()
            home = daemon.home / f"copy{len(snapshots)}"
            snapshots.append((Snapshot(disk, home), oracle.as_of_now(home)))
            daemon.thaw()
        oracle.fault()
        daemon.kill_all()  # more calls would stop it
    assert snapshots, "no call has stopped"
    return snapshots


def _check_copy(snapshot: Snapshot, known: Oracle) -> None:
    with snapshot, snapshot.daemon() as daemon, known:
        daemon.start()
        known.check(daemon)
