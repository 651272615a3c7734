"""Stretches of a line, each with the time it was looked at: few of them, however long the line is.

The line is that of all parts, in order of file and sequence number. A later stretch replaces what it covers of the
ones before. When there are too many, two that touch become one with the earlier of their times: what is known gets
older by that, never younger.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import pairwise
from operator import itemgetter
from typing import NamedTuple

#: A place on the line: a file, and the sequence number of one of its parts.
Position = tuple[int, int]

#: Where the line begins, and behind everything.
START: Position = (1, 0)
END: Position = (2**64, 0)
#: Stretches kept: enough to tell a 256th of the line, while one pass over it takes the place of another.
MOST = 512

_first, _end, _time = itemgetter(0), itemgetter(1), itemgetter(2)


class Stretch(NamedTuple):
    """From `first` up to and without `end`; the time is in ns since the epoch."""

    first: Position
    end: Position
    time: int


class Stretches:
    """Stretches in order, which do not overlap."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._all: list[Stretch] = []

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Stretch]:
        return iter(self._all)

    def cover(self, new: Stretch) -> None:
        """Replace what is known of a stretch, which must not be empty."""
        low = bisect_right(self._all, new.first, key=_end)
        high = bisect_left(self._all, new.end, key=_first)
        before = [old._replace(end=new.first) for old in self._all[low:high] if old.first < new.first]
        behind = [old._replace(first=new.end) for old in self._all[low:high] if old.end > new.end]
        self._all[low:high] = [*before, new, *behind]
        while len(self._all) > self._most:
            self._make_fewer()

    def around(self, position: Position) -> Stretch | None:
        """The stretch that a position is in."""
        at = bisect_right(self._all, position, key=_first) - 1
        return self._all[at] if at >= 0 and position < self._all[at].end else None

    def gap_end(self, position: Position) -> Position:
        """Where the first stretch behind a position begins; END if there is none."""
        at = bisect_right(self._all, position, key=_first)
        return self._all[at].first if at < len(self._all) else END

    def _make_fewer(self) -> None:
        """Join the two that differ least, of those that touch; when none do, forget the oldest."""
        pairs = list(pairwise(self._all))
        touching = [(abs(one.time - other.time), at) for at, (one, other) in enumerate(pairs) if one.end == other.first]
        if touching:
            _, at = min(touching)
            one, other = pairs[at]
            self._all[at : at + 2] = [Stretch(one.first, other.end, min(one.time, other.time))]
        else:
            self._all.remove(min(self._all, key=_time))
