"""get to a path, without a daemon around it."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pfsd import coding
from pfsd.budget import Extent
from pfsd.commands import get
from pfsd.commands.engine import Engine, Progress, Settings
from pfsd.fair import Flow
from pfsd.paths import Roots
from pfsd.records import Ready, Run
from pfsd.registry import Part, Registry


@pytest.mark.parametrize("sync", [False, True])
async def test_content_is_synced_before_the_target_appears_if_asked_for(
    sync: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    synced: list[bool] = []
    monkeypatch.setattr(os, "fdatasync", lambda fd: synced.append(target.exists()))
    registry = Registry()
    registry.apply(Ready(file=1, name=b"void", size=0, part_size=4096, created=0, runs=[Run(1, 0, 0, 0, [])]))
    unused: Any = None
    workers: Any = ()
    settings = Settings(part_size=4096, run_parts=16)
    engine = Engine(
        bytes(16),
        registry,
        unused,
        unused,
        unused,
        workers,
        Roots([tmp_path], forbidden=[]),
        settings,
        coding.policy("none", 1),
    )
    await get.get_path(engine, 1, b"target", None, None, False, False, sync, Progress(), Flow())
    assert target.read_bytes() == b""
    assert synced == ([False] if sync else [])


async def test_memory_is_given_back_only_when_the_connection_has_let_go_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    sending = asyncio.Event()

    async def send(content: memoryview) -> None:
        sending.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            happened.append("let go")

    def give(extents: list[Extent]) -> None:
        happened.extend("given back" for _ in extents)

    async def load(self: object, wanted: get.Range) -> get._Loaded:
        part = Part(1, 1, 0, 0, 10, 10, "none", bytes(16), 1, 0, 100)
        return get._Loaded(deque([(part, Extent(0, 10))]), 10, ())

    monkeypatch.setattr(get._Outgoing, "_load", load)
    budget = SimpleNamespace(view=lambda extent: memoryview(bytes(10)), give=give, pressed=False)
    engine: Any = SimpleNamespace(budget=budget)
    file: Any = None
    outgoing = get._Outgoing(engine, file, send, False, Progress(), Flow())
    task = asyncio.create_task(outgoing.send_some(get.Range(0, 10)))
    await sending.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert happened == ["let go", "given back"]
