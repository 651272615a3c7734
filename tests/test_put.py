"""Uploads, without a daemon around them."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from pfsd.budget import Extent
from pfsd.commands import put
from pfsd.commands.engine import Progress
from pfsd.fair import Flow


async def test_memory_asked_for_in_the_last_moment_hands_nothing_over_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be given back, and filled by others, while the file is still to be read from it."""
    stored: list[str] = []
    may_finish = asyncio.Event()

    class Storing:
        part_size = 10

        def __init__(self, *_: object) -> None: ...

        def announce(self) -> None:
            stored.append("announced")

        async def store(self, *_: object, **__: object) -> None:
            stored.append("run")

        async def store_small(self, extents: list[Extent]) -> None:
            stored.append(f"small {len(extents)}")
            await may_finish.wait()

        async def commit(self, size: int) -> int:
            return size

    monkeypatch.setattr(put, "Storing", Storing)
    given: list[Extent] = []
    budget = SimpleNamespace(on_pressure=set(), give=given.extend)
    engine: Any = SimpleNamespace(budget=budget, workers=[1], settings=SimpleNamespace(small_bytes=100))
    upload = put.Upload(engine, b"name", False, 10, Progress(), Flow())
    upload._full, upload.received = [Extent(0, 10)], 10
    committing = asyncio.create_task(upload.commit())
    await asyncio.sleep(0)
    upload._flush()  # as it was called for by someone who waits, just before
    await asyncio.sleep(0)
    assert stored == ["small 1"] and given == []
    may_finish.set()
    assert await committing == 10
    assert stored == ["small 1"] and given == [Extent(0, 10)]
