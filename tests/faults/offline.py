"""`server.py check`, on the store of a daemon that is not running."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.harness import PATIENCE_SECONDS, SERVER, Daemon


def check(daemon: Daemon) -> tuple[int, list[dict[str, Any]]]:
    """All content is read: the exit code, and what was found. AssertionError when it changed anything in the store."""
    before = _stamps(daemon.store)
    ended = subprocess.run(
        [sys.executable, SERVER, "--config", daemon.home / "config.yaml", "check", "--data", "--json"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=daemon.home,
        env={key: value for key, value in os.environ.items() if not key.startswith("PFSD_")},
        timeout=10 * PATIENCE_SECONDS,
    )
    changed = {path for path, _ in before.items() ^ _stamps(daemon.store).items()}
    assert not changed, f"check has changed {sorted(changed)}"
    assert not ended.stderr, ended.stderr
    return ended.returncode, [json.loads(line) for line in ended.stdout.splitlines()]


def damaged(said: list[dict[str, Any]]) -> set[tuple[int, int]]:
    """The parts that are damaged, each by file and sequence number."""
    return {
        (found["id"], part["seq"])
        for found in said
        if found["type"] == "file" and found["state"] == "damaged"
        for part in found["parts"]
    }


def _stamps(top: Path) -> dict[Path, tuple[int, int, int, int]]:
    """What any change of a file or directory changes; that of the lock, which is to be taken, left out."""
    stats = {path: path.lstat() for path in [top, *top.rglob("*")] if path.name != "lock"}
    return {path: (stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for path, stat in stats.items()}
