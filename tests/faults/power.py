"""Power cuts without a power switch: a small ext4 of its own that forgets, all at once, what was not synced.

FS_IOC_SHUTDOWN makes a mounted file system drop its dirty pages and the log it has in memory; what is there when it is
mounted again is what a disk would hold. `commit=300` keeps the kernel from syncing by itself in between. A copy of the
image below a mounted file system is the same: what was not synced is in no image yet.
"""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import struct
import subprocess
import time
from collections.abc import Sequence
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
    """A disk of its own, mounted at `home`/disk; as a context manager it leaves no mount behind.

    With `journal` it is an ext4, whose every sync brings everything that was renamed before to the disk too. Without, a
    sync is for nothing but what it is asked for, so that one that is left out is missed, and `e2fsck` sets right
    what the cut has left. That is good for one cut: a directory that was removed before it is still there for e2fsck,
    which mends it, and writes to blocks that belong to other files by then. A daemon removes one when it starts.
    """

    def __init__(self, home: Path, *, journal: bool = True, size: str = "256M") -> None:
        self.path = home / "disk"
        self.image = home / "disk.img"
        self.journal = journal
        self._size = size

    def __enter__(self) -> Disk:
        self.path.mkdir()
        _run("truncate", "-s", self._size, self.image)
        features = [] if self.journal else ["-O", "^has_journal"]
        _run("mke2fs", "-q", "-t", "ext4", *features, "-E", "lazy_itable_init=1", "-F", self.image)
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

    def cut(self, daemon: Daemon) -> None:
        """The power fails under the daemon; it is back, and the disk holds what had come to it."""
        # A sync that is under way while the file system shuts down may say that all is well when it is not: with one
        # in twenty this was so. So each has come to its end first; nobody has been told.
        daemon.freeze()
        if self.journal:
            self._forget()
            daemon.kill_all()
            _run("umount", self.path)
        else:
            kept = self.copy(self.image.with_suffix(".kept"))
            daemon.kill_all()
            _run("umount", self.path)  # which writes what the kernel still had in mind, to what is thrown away
            kept.rename(self.image)
        self._mount()

    def copy(self, image: Path) -> Path:
        """What is on the disk just now; all that write to it must stand still."""
        _run("cp", "--sparse=always", self.image, image)
        return image

    def _forget(self) -> None:
        """Whatever is not on the disk now never will be, and nothing can be read or written."""
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, _WITHOUT_LOG)
        finally:
            os.close(fd)

    def _mount(self) -> None:
        if not self.journal:
            checked = subprocess.run(["e2fsck", "-fy", self.image], capture_output=True, text=True)
            assert checked.returncode in (0, 1), checked.stdout
        _run("mount", "-o", _OPTIONS if self.journal else "loop", self.image, self.path)


class Snapshot(Disk):
    """A copy of a disk, as if the power had been cut when it was taken."""

    def __init__(self, disk: Disk, home: Path) -> None:
        home.mkdir()
        super().__init__(home, journal=disk.journal)
        disk.copy(self.image)

    def __enter__(self) -> Snapshot:
        self.path.mkdir()
        self._mount()
        return self


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def power_cut_run(
    home: Path,
    *daemon_faults: str,
    rounds: int = 1,
    journal: bool = True,
    seed: int | None = None,
    seconds: float = 1.5,
    rerun: str = "",
) -> list[str]:
    """Cut the power under a working daemon, `rounds` times on one store: what was wrong when it was back.

    Each time it works for up to `seconds`. `daemon_faults` are armed as in `inject`, `journal` is that of the `Disk`,
    and without there is a new store for each cut; the run ends with the first violation.
    """
    seed = seed_of_run() if seed is None else seed
    print(f"PFSD_SEED={seed}")
    if journal:
        return _cut_again_and_again(Disk(home), seed, daemon_faults, rounds, seconds, rerun)
    for number in range(rounds):
        once = home / str(number)
        once.mkdir()
        wrong = _cut_again_and_again(Disk(once, journal=False), seed + number, daemon_faults, 1, seconds, rerun)
        if wrong:
            return wrong
        shutil.rmtree(once)
    return []


def _cut_again_and_again(
    disk: Disk, seed: int, daemon_faults: Sequence[str], rounds: int, seconds: float, rerun: str
) -> list[str]:
    moment = random.Random(seed)
    with disk, disk.daemon() as daemon, Oracle(disk.path.parent, seed, rerun=rerun) as oracle:
        inject(daemon, *daemon_faults)
        daemon.start()
        for _ in range(rounds):
            try:
                with oracle.load(daemon):
                    oracle.wait(moment.uniform(0.005, seconds))
                    oracle.fault()
                    disk.cut(daemon)
                for _ in range(moment.choice([0, 0, 1, 3]) if disk.journal else 0):  # and again while it starts
                    daemon.spawn()
                    time.sleep(moment.uniform(0.005, 0.6))  # there is no event to wait for: any moment is meant
                    disk.cut(daemon)
                daemon.start()
                oracle.check(daemon)
            except AssertionError as error:
                return str(error).splitlines()
    return []
