"""Room on the store's file system that puts leave alone, so that what frees space can be written on a full disk.

There are two kinds. Puts are refused when little is left, since deletes, renames and the next journal need some; and
the file `reserve` holds more, for when other programs, or puts that were under way, have taken even that. It is given
up to the journal, and taken back when there is room again. Knows no clock: whoever is about to store something asks.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from pfsd import disk
from pfsd.errors import NoSpace

#: In the file `reserve`.
RESERVE_BYTES = 1 << 20
#: What puts leave beside it: bytes, and files that can still be made.
SPARE_BYTES = 2 << 20
SPARE_FILES = 16


class Spare:
    """The spare room of the store in a directory; `keep` its reserve before anything is stored."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._reserve = store / "reserve"
        self._is_kept = False

    def keep(self) -> None:
        """Take the reserve from the disk, if there is room for it."""
        with suppress(OSError):
            disk.preallocate(self._reserve, RESERVE_BYTES)
            self._is_kept = True

    def give_up(self) -> bool:
        """Give the reserve to whoever writes next; whether there was one."""
        self._is_kept = False
        try:
            disk.unlink(self._reserve)
        except OSError:
            return False
        return True

    def check(self, size: int) -> None:
        """NoSpace when what takes at least `size` bytes of the disk (0 if nobody knows) cannot be stored."""
        try:
            room = disk.room(self._store)
        except OSError:
            return  # the store is gone, which whoever writes to it can say better
        free = self._left(room) - size
        if free < 0 or room.files < SPARE_FILES:
            raise NoSpace(
                f"the disk of the store is full: {room.bytes} bytes and {room.files} files are left, of which "
                f"{SPARE_BYTES} and {SPARE_FILES} are kept for deleting; delete something",
                free=room.bytes,
            )
        if not self._is_kept:
            self.keep()

    def free(self) -> int | None:
        """Bytes that the file system has left for anybody; None when that is not known."""
        try:
            return disk.room(self._store).bytes
        except OSError:
            return None

    def state(self) -> str:
        """`ready`; `full` when nothing more can be stored; `readonly` when nothing can be changed."""
        try:
            room = disk.room(self._store)
        except OSError:  # the store is gone
            return "readonly"
        if room.read_only:
            return "readonly"
        return "full" if self._left(room) < 0 or room.files < SPARE_FILES else "ready"

    def _left(self, room: disk.Room) -> int:
        """Bytes that puts may still take."""
        return room.bytes - SPARE_BYTES - (0 if self._is_kept else RESERVE_BYTES)
