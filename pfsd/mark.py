"""The mark: how far a journal had come, in a file beside it, so that its next reader sees when it has become shorter.

    <generation> <seq of the last durable record> <crc32 of the bytes before>      16, 16 and 8 hex digits, and LF

It is written over in place after each sync of the journal that succeeded, and is not synced itself: so it is exact when
the process dies, may lag behind when the power fails, and is never ahead of what is durable. It only ever warns, so
whatever goes wrong with it is ignored: a mark that cannot be written lags, one that cannot be read says nothing.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from typing import NamedTuple
from zlib import crc32

from pfsd import disk

_LINE = re.compile(rb"(([0-9a-f]{16}) ([0-9a-f]{16})) ([0-9a-f]{8})\n")
#: Bytes in the file.
SIZE = 43


class Reached(NamedTuple):
    """A place in the history of a journal; later ones are greater."""

    generation: int
    #: Of its last record; 0 when there is only the header.
    seq: int


#: What a mark says that is not there, or no mark.
NOTHING = Reached(0, 0)


def path_of(journal: str) -> str:
    """Where the mark of a journal is."""
    return os.path.splitext(journal)[0] + ".mark"


def read(journal: str) -> Reached:
    """How far the journal of this path had come, for all that is known."""
    try:
        fd = disk.open_file(path_of(journal), disk.READ)
    except OSError:
        return NOTHING
    try:
        found = _LINE.fullmatch(disk.read(fd, SIZE + 1, 0))
    except OSError:
        return NOTHING
    finally:
        disk.close(fd)
    if found is None or crc32(found[1]) != int(found[4], 16):
        return NOTHING
    return Reached(int(found[2], 16), int(found[3], 16))


class Mark:
    """The mark of a journal that is being written."""

    def __init__(self, journal: str) -> None:
        self._fd = -1
        with suppress(OSError):
            self._fd = disk.open_file(path_of(journal), disk.UPDATE)

    def advance(self, reached: Reached) -> None:
        """Say that the journal is durable up to here."""
        line = b"%016x %016x" % reached
        with suppress(OSError):
            disk.write_at(self._fd, b"%b %08x\n" % (line, crc32(line)), 0)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            disk.close(self._fd)
