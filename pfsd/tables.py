"""Containers for millions of entries: little memory for each, and no operation that takes long.

A dict of a million entries takes 50 ms when it grows, and keys and values that are objects of their own. These are
for the event loop, which everyone waits for. They must never know what they hold.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, MutableSequence, Sequence
from typing import Generic, TypeVar

Row = TypeVar("Row")
Value = TypeVar("Value")

#: Entries of a page: few enough to move in a microsecond, enough for what a page itself takes not to matter.
PAGE = 512
#: Parts of a `NameTable`: of a million names each has some thousands.
SHARDS = 256


class IdTable(Generic[Row]):
    """A mapping from ids, 1 to 2**64 - 1, to rows, in order of id.

    It is a list of pages, each two parallel columns: ids ascending, and their rows. New ids mostly go to the end, where
    pages are filled up; a page that is full in the middle is split. An entry takes 8 bytes, and what its row takes
    in a column: 8 bytes for an object in a list.
    """

    def __init__(self, column: Callable[[Iterable[Row]], MutableSequence[Row]] = list) -> None:
        self._column = column
        self._last = 0  # no id is above it
        self._firsts: list[int] = []  # no id of a page is below its first, none of the page before is above
        self._ids: list[array[int]] = []
        self._rows: list[MutableSequence[Row]] = []

    def __len__(self) -> int:
        return sum(map(len, self._ids))

    def __contains__(self, id: int) -> bool:
        return self.place(id) is not None

    def get(self, id: int) -> Row | None:
        """The row of an id."""
        place = self.place(id)
        return None if place is None else place[0][place[1]]

    def place(self, id: int) -> tuple[MutableSequence[Row], int] | None:
        """The column that has the row of an id, and where in it; good until the next id comes or goes."""
        page = bisect_right(self._firsts, id) - 1
        if page < 0:
            return None
        ids = self._ids[page]
        at = bisect_left(ids, id)
        return (self._rows[page], at) if at < len(ids) and ids[at] == id else None

    def __setitem__(self, id: int, row: Row) -> None:
        if id <= self._last:
            self._set_within(id, row)
            return
        self._last = id
        if self._ids and len(self._ids[-1]) < PAGE:
            self._ids[-1].append(id)
            self._rows[-1].append(row)
        else:
            self._begin_page(len(self._ids), (id,), (row,))

    def __delitem__(self, id: int) -> None:
        page = bisect_right(self._firsts, id) - 1
        at = bisect_left(self._ids[page], id) if page >= 0 else 0
        if page < 0 or at == len(self._ids[page]) or self._ids[page][at] != id:
            raise KeyError(id)
        del self._ids[page][at], self._rows[page][at]
        if not self._ids[page]:
            del self._firsts[page], self._ids[page], self._rows[page]

    def after(self, id: int, count: int) -> list[Row]:
        """The rows of the first `count` ids above this one, in order of id."""
        found: list[Row] = []
        page = max(0, bisect_right(self._firsts, id) - 1)
        at = bisect_right(self._ids[page], id) if self._ids else 0
        while page < len(self._rows) and len(found) < count:
            found += self._rows[page][at : at + count - len(found)]
            page, at = page + 1, 0
        return found

    def __iter__(self) -> Iterator[int]:
        """The ids in order; the table must not change meanwhile."""
        for ids in self._ids:
            yield from ids

    def _set_within(self, id: int, row: Row) -> None:
        if not self._ids:
            self._begin_page(0, (id,), (row,))
            return
        page = max(0, bisect_right(self._firsts, id) - 1)
        ids, rows = self._ids[page], self._rows[page]
        at = bisect_left(ids, id)
        if at < len(ids) and ids[at] == id:
            rows[at] = row
            return
        ids.insert(at, id)
        rows.insert(at, row)
        self._firsts[page] = min(self._firsts[page], id)
        if len(ids) > PAGE:
            half = PAGE // 2
            self._begin_page(page + 1, ids[half:], rows[half:])
            del ids[half:], rows[half:]

    def _begin_page(self, page: int, ids: Sequence[int], rows: Sequence[Row]) -> None:
        self._firsts.insert(page, ids[0])
        self._ids.insert(page, array("Q", ids))
        self._rows.insert(page, self._column(rows))


class NameTable(Generic[Value]):
    """A dict with names as keys, in parts, so that only a small one has to be built anew when it grows."""

    def __init__(self) -> None:
        self._shards: list[dict[bytes, Value]] = [{} for _ in range(SHARDS)]

    def __len__(self) -> int:
        return sum(map(len, self._shards))

    def get(self, name: bytes) -> Value | None:
        """What the name stands for."""
        return self._shards[hash(name) >> 32 & SHARDS - 1].get(name)

    def __setitem__(self, name: bytes, value: Value) -> None:
        # Not by the lowest bits: by these a dict spreads its keys.
        self._shards[hash(name) >> 32 & SHARDS - 1][name] = value

    def __delitem__(self, name: bytes) -> None:
        del self._shards[hash(name) >> 32 & SHARDS - 1][name]
