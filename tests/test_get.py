"""get to a path, without a daemon around it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pfsd import coding
from pfsd.commands import get
from pfsd.commands.engine import Engine, Progress, Settings
from pfsd.fair import Flow
from pfsd.paths import Roots
from pfsd.records import Ready, Run
from pfsd.registry import Registry


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
