"""Another witness, below Python: what the processes ask of the kernel, told by strace, and killed by it.

The other tests make calls of `pfsd.disk` fail. That proves something only if nothing changes a store in another way.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from itertools import count as numbers
from pathlib import Path

import pytest

from tests.faults.inject import compact_above, fired, inject
from tests.faults.test_crash_points import Client, check_after_crash
from tests.harness import Daemon


def _can_trace() -> bool:
    return bool(shutil.which("strace")) and not subprocess.run(["strace", "-qq", "-o", "/dev/null", "true"]).returncode


pytestmark = pytest.mark.skipif(not _can_trace(), reason="strace is missing, or may not trace here")

#: What changes files, by the call of `pfsd.disk` that may ask for it.
ASKED_BY = {
    "fdatasync": "fdatasync",
    "fsync": "fsync_dir",
    "ftruncate": "truncate",
    "rename": "rename",
    "unlink": "unlink",
    "mkdir": "make_dir",
    "pwrite64": "write_at",
    "writev": "writev_all",
    "fallocate": "preallocate",
}
#: What else could change a file, and must not.
FORBIDDEN = {"write", "pwritev", "pwritev2", "renameat", "renameat2", "link", "linkat", "symlink", "truncate", "sync"}
#: These touch no file of a store that counts, and are made before it is known to be this daemon's.
LOCK = re.compile(r"/store/lock[>\"]")


def traced(daemon: Daemon, *options: str) -> Path:
    """Let the daemon be started by strace, which writes the calls of all its processes to this file."""
    told = daemon.home / "calls"
    daemon.starter = ["strace", "-f", "-qq", "-y", "-s", "0", "-o", str(told), *options]
    return told


def calls(told: Path, store: Path) -> Iterator[tuple[str, str]]:
    """The system calls that name something in a store: name and line."""
    for line in told.read_text(errors="replace").splitlines():
        found = re.match(r"\d+ +(\w+)\(", line)
        if found and str(store) in line and not LOCK.search(line):
            yield found[1], line


def test_all_that_changes_a_store_goes_by_way_of_one_module(idle_daemon: Daemon) -> None:
    compact_above(idle_daemon, 1000)
    inject(idle_daemon, *(f"{function}:*/store*:1+:note" for function in sorted(set(ASKED_BY.values()))))
    told = traced(idle_daemon, "-e", "trace=" + ",".join(sorted([*ASKED_BY, *FORBIDDEN])))
    idle_daemon.start()
    client = Client()
    client.run(idle_daemon)
    assert not client.unknown
    idle_daemon.ask(b"exit\n")
    idle_daemon.wait()
    made = list(calls(told, idle_daemon.store))
    assert [line for name, line in made if name in FORBIDDEN] == []
    by_kernel = Counter(ASKED_BY[name] for name, _ in made)
    by_module = Counter(line.split()[1] for line in fired(idle_daemon))
    for function in ("fdatasync", "fsync_dir", "rename", "unlink", "write_at"):
        assert by_kernel[function] == by_module[function] > 0, function
    assert by_kernel["writev_all"] >= by_module["writev_all"] > 0


@pytest.mark.thorough
@pytest.mark.promise("durable")
@pytest.mark.promise("unknown")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("call", ["fdatasync", "rename", "unlink", "writev"])
def test_a_daemon_that_the_kernel_kills_at_any_call_has_lost_nothing(call: str, in_memory: Path) -> None:
    """Calls are counted by thread, so the last N is that of the thread which makes most of them."""
    for number in numbers(1):
        home = in_memory / str(number)
        home.mkdir()
        with Daemon(home, processes=1) as daemon:
            compact_above(daemon, 1000)
            told = traced(daemon, "-e", f"trace={call}", "-e", f"inject={call}:signal=SIGKILL:when={number}")
            client = Client()
            try:
                daemon.start()
            except AssertionError:
                assert _was_last(call, told), daemon.log
            else:
                client.run(daemon)
                _end(daemon)
            daemon.starter = []
            killed = _was_last(call, told)
            check_after_crash(daemon, client)
        if not killed:
            assert number > 1, f"no {call} was ever made"
            return


def _was_last(call: str, told: Path) -> bool:
    """Whether some process never came back from this call."""
    return bool(re.search(rf"{call}\(.*= \?$", told.read_text(), re.MULTILINE))


def _end(daemon: Daemon) -> None:
    """The daemon was killed, or one of its processes was, or nothing."""
    assert daemon.process is not None
    if daemon.process.poll() is None:
        with suppress(AssertionError, OSError):  # it may die over that
            daemon.ask(b"exit\n")
    assert daemon.process.wait(30) in (0, -signal.SIGKILL, 128 + signal.SIGKILL)
    daemon.process.communicate()
    daemon.process = None
