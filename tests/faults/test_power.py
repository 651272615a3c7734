"""The power fails: what was acknowledged is on the disk, and nothing else needs to be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import power
from tests.faults.conftest import Count

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(power.why_not()), reason=power.why_not())]


@pytest.mark.promise("durable")
@pytest.mark.promise("unknown")
@pytest.mark.promise("whole")
@pytest.mark.timeout(600)
def test_a_power_cut_loses_nothing_that_was_acknowledged(in_memory: Path, count: Count) -> None:
    assert power.power_cut_run(in_memory, rounds=count(1, 30)) == []
