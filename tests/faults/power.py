"""Power cuts without a power switch: a small ext4 of its own that forgets, all at once, what was not synced.

FS_IOC_SHUTDOWN makes a mounted file system drop its dirty pages and the log it has in memory; what is there when it is
mounted again is what a disk would hold. `commit=300` keeps the kernel from syncing by itself in between.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import struct
import subprocess
from pathlib import Path

from tests.faults.inject import inject
from tests.faults.oracle import Oracle, seed_of_run
from tests.harness import Daemon

_SHUTDOWN = 0x8004587D
_WITHOUT_LOG = struct.pack("I", 2)  # not even what waits in the log of the file system is written
_OPTIONS = "loop,commit=300"


def why_not() -> str:
    """Why power cannot be cut here; empty when it can."""
    if os.geteuid() != 0:
        return "needs root, to mount a file system"
    missing = [tool for tool in ("mke2fs", "mount", "umount", "losetup") if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    if subprocess.run(["losetup", "--find"], capture_output=True).returncode:
        return "needs a loop device"
    return ""


class Disk:
    """A disk of its own, mounted at `home`/disk; as a context manager it leaves no mount behind."""

    def __init__(self, home: Path, size: str = "256M") -> None:
        self.path = home / "disk"
        self.image = home / "disk.img"
        self._size = size

    def __enter__(self) -> Disk:
        self.path.mkdir()
        _run("truncate", "-s", self._size, self.image)
        _run("mke2fs", "-q", "-t", "ext4", "-E", "lazy_itable_init=1", "-F", self.image)
        self._mount()
        return self

    def __exit__(self, *reason: object) -> None:
        try:
            _run("umount", self.path)
        except subprocess.CalledProcessError:
            _run("umount", "--lazy", self.path)  # somebody is still there, and has failed the test
            raise

    def daemon(self, **overrides: object) -> Daemon:
        """A daemon whose store is on this disk, and everything else beside it."""
        store = self.path / "store"
        daemon = Daemon(self.path.parent, path=str(store), log_level="info", **overrides)
        daemon.store = store
        return daemon

    def cut(self) -> None:
        """The power fails: whatever is not on the disk now never will be, and nothing can be read or written."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, _WITHOUT_LOG)
        finally:
            os.close(fd)

    def power_on(self) -> None:
        """The power is back. Nobody may have a file of this disk open."""
        _run("umount", self.path)
        self._mount()

    def snapshot(self, home: Path) -> Snapshot:
        """What the disk holds at this instant, as a disk of its own below `home`."""
        return Snapshot(self.image, home)

    def _mount(self) -> None:
        _run("mount", "-o", _OPTIONS, self.image, self.path)


class Snapshot(Disk):
    """A copy of a disk, as if the power had been cut when it was taken."""

    def __init__(self, image: Path, home: Path) -> None:
        super().__init__(home)
        _run("cp", "--sparse=always", image, self.image)

    def __enter__(self) -> Snapshot:
        self.path.mkdir()
        self._mount()
        return self


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def power_cut_run(
    home: Path, *daemon_faults: str, rounds: int = 1, seed: int | None = None, seconds: float = 1.5
) -> list[str]:
    """Cut the power under a working daemon, `rounds` times on one store: what was wrong when it was back.

    Each time it works for up to `seconds`. `daemon_faults` are armed as in `inject`; the run ends with the first
    violation.
    """
    seed = seed_of_run() if seed is None else seed
    print(f"PFSD_SEED={seed}")
    moment = random.Random(seed)
    with Disk(home) as disk, disk.daemon() as daemon, Oracle(home, seed) as oracle:
        inject(daemon, *daemon_faults)
        daemon.start()
        for _ in range(rounds):
            with oracle.load(daemon):
                oracle.wait(moment.uniform(0.005, seconds))
                oracle.fault()
                disk.cut()
                daemon.kill_all()
            disk.power_on()
            try:
                daemon.start()
                oracle.check(daemon)
            except AssertionError as error:
                return str(error).splitlines()
    return []
