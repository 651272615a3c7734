"""Which ranges of a file to fetch, and when: few bytes for who jumps about, ever more ahead of who reads on.

Knows offsets and sizes; how a range is fetched, and what waits for it, is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

#: The least that is fetched at once: a request costs as much as so many bytes.
FIRST = 128 << 10
#: The most that is fetched at once: a few parts, so that the daemon has work for its processes.
MAX_BLOCK = 4 << 20
#: The most that is fetched ahead of the reader.
MAX_AHEAD = 16 << 20

Fetch = TypeVar("Fetch")


class ReadAhead(Generic[Fetch]):
    """The blocks of a file of `size` bytes that are there or on their way, in the order of their offsets.

    `fetch(offset, length)` begins to fetch one; `forget` is called with those that nobody wants any more.
    """

    def __init__(
        self,
        size: int,
        fetch: Callable[[int, int], Fetch],
        forget: Callable[[Fetch], None],
        *,
        most: int = MAX_AHEAD,
    ) -> None:
        self._size = size
        self._fetch = fetch
        self._forget = forget
        self._most = most
        self._blocks: list[tuple[int, int, Fetch]] = []  # begin, end
        self._expected = 0  # where the next read begins if the file is read on
        self._ahead = 0

    def block(self, offset: int, wanted: int) -> tuple[int, Fetch]:
        """The block that covers `offset`, and where it begins, when `wanted` bytes from there are to be read.

        `offset` is below the size of the file, `wanted` is at least 1.
        """
        wanted = min(wanted, self._most)
        self._pace(offset, wanted)
        self._drop_others(offset)
        step = min(MAX_BLOCK, max(FIRST, wanted, self._ahead // 4))
        self._fill(offset, max(offset + wanted, offset + self._ahead), step)
        begin, end, block = self._blocks[0]
        self._expected = min(offset + wanted, end)
        return begin, block

    def _pace(self, offset: int, wanted: int) -> None:
        if offset != self._expected:
            self._ahead = 0  # whoever jumps once may jump again
        elif offset or wanted >= FIRST:
            self._ahead = min(self._most, max(2 * self._ahead, 2 * FIRST))

    def _drop_others(self, offset: int) -> None:
        """Keep what lies at the offset and behind it, without a gap."""
        kept: list[tuple[int, int, Fetch]] = []
        for begin, end, block in self._blocks:
            if end > offset and begin <= (kept[-1][1] if kept else offset):
                kept.append((begin, end, block))
            else:
                self._forget(block)
        self._blocks = kept

    def _fill(self, offset: int, until: int, step: int) -> None:
        at = self._blocks[-1][1] if self._blocks else offset
        while at < self._size and (at <= offset or min(at + step, self._size) <= until):
            length = min(step, self._size - at)
            self._blocks.append((at, at + length, self._fetch(at, length)))
            at += length

    def clear(self) -> None:
        """Forget all of them."""
        for _, _, block in self._blocks:
            self._forget(block)
        self._blocks.clear()
