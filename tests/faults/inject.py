"""Make one call of `pfsd.disk` in a daemon, or in its I/O processes, fail, lie, wait, or be the last one."""

from __future__ import annotations

import os
from pathlib import Path

from tests.harness import SERVER, Daemon

_PATH = os.pathsep.join([str(Path(__file__).parent / "injection"), str(SERVER.parent)])


def inject(daemon: Daemon, *faults: str) -> None:
    """Arm faults, `FUNCTION:PATTERN:N:ACTION` (see injection/sitecustomize.py), for the next starts; none disarms."""
    log = daemon.home / "faults"
    log.unlink(missing_ok=True)
    for key in ("PFSD_TEST_FAULT", "PFSD_TEST_FAULT_LOG"):
        daemon.environ.pop(key, None)
    if faults:
        daemon.environ |= {
            "PYTHONPATH": _PATH,
            "PFSD_TEST_FAULT": ",".join(faults),
            "PFSD_TEST_FAULT_LOG": str(log),
        }


def compact_above(daemon: Daemon, nbytes: int) -> None:
    """Let journals above this size be compacted as soon as they are mostly dead, at the next starts."""
    daemon.environ |= {"PYTHONPATH": _PATH, "PFSD_TEST_COMPACT_ABOVE": str(nbytes)}


def fired(daemon: Daemon) -> list[str]:
    """The faults that happened since they were armed, each `PID FUNCTION N ACTION`."""
    log = daemon.home / "faults"
    return log.read_text().splitlines() if log.exists() else []
