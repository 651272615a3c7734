"""The daemon dies at any moment: what it had acknowledged is there when it is back."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Count
from tests.faults.oracle import Oracle, seed_of_run
from tests.harness import Daemon


@pytest.fixture
def oracle(request: pytest.FixtureRequest, in_memory: Path) -> Iterator[Oracle]:
    seed = seed_of_run()
    rerun = f"PFSD_SEED={seed} python -m pytest -n 0 --faults=full '{request.node.nodeid}'"
    print(rerun)
    with Oracle(in_memory, seed, rerun=rerun) as oracle:
        yield oracle


@pytest.fixture
def crashing(in_memory: Path) -> Iterator[Daemon]:
    """A daemon that is started again so often that its store is not on a disk."""
    with Daemon(in_memory, log_level="info") as daemon:
        daemon.start()
        yield daemon


@pytest.mark.promise("durable")
@pytest.mark.promise("unknown")
@pytest.mark.promise("whole")
@pytest.mark.timeout(600)
def test_a_killed_daemon_has_lost_nothing(oracle: Oracle, crashing: Daemon, count: Count) -> None:
    moment = random.Random(oracle.seed)
    for _ in range(count(2, 50)):
        with oracle.load(crashing):
            oracle.wait(moment.uniform(0.005, 1.5))
            oracle.fault()
            crashing.kill()
        oracle.note_packs(crashing)
        crashing.start()
        oracle.check(crashing)
    oracle.check_twice(crashing)
