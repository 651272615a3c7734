"""How often a fault is tried, and where stores are kept while it is."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

Count = Callable[[int, int], int]


@pytest.fixture(scope="session")
def count(pytestconfig: pytest.Config) -> Count:
    """`count(quick, full)`: how often to try something in `make test`, and in `make test-faults`."""
    full = pytestconfig.getoption("--faults") == "full"
    return lambda quick, all_of_them: all_of_them if full else quick


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what is marked `thorough`, before any daemon is started for it."""
    if config.getoption("--faults") != "full":
        for item in items:
            if item.get_closest_marker("thorough"):
                item.add_marker(pytest.mark.skip(reason="with --faults=full only"))


def in_full(*values: object) -> list[Any]:
    """Values of a parameter that are only tried with --faults=full."""
    return [pytest.param(value, marks=pytest.mark.thorough) for value in values]


def often_enough(count: Count) -> None:
    """Skip a variant that adds little to the others of its test, unless everything is tried."""
    if not count(0, 1):
        pytest.skip("one variant of several: with --faults=full only")


@contextmanager
def directory_in_memory() -> Iterator[Path]:
    """A directory that is not on a disk: for what is killed and started so often that syncs would be all it does."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="pfsd-", dir=where) as path:
        yield Path(path)


@pytest.fixture
def in_memory() -> Iterator[Path]:
    """The same for one test."""
    with directory_in_memory() as path:
        yield path
