"""MD5 of parts, and what is made of them. Knows bytes in memory only.

MD5 finds accidents, such as rot on a disk; it does not decide that two pieces of content are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from itertools import takewhile

#: Hashes LANES equally long parts at once: (memory, their offsets, their size) -> their MD5s.
Lanes = Callable[[memoryview, Sequence[int], int], list[bytes]]

MD5_BYTES = 16

_lanes: Lanes | None = None
_lane_count = 0
#: Lanes pay off above this size: below, the parts fit a cache and setting up costs more than it gains.
MIN_LANE_BYTES = 4096


def use_lanes() -> bool:
    """Hash equal parts in SIMD lanes from now on; False, and hashlib for all, where numba is not installed."""
    global _lanes, _lane_count
    try:
        from pfsd import lanes
    except ImportError:
        return False
    _lanes, _lane_count = lanes.md5_lanes, lanes.LANES
    return True


def md5_many(memory: memoryview, places: Sequence[tuple[int, int]]) -> list[bytes]:
    """The binary MD5s of the parts at these (offset, size) places of `memory`, in their order."""
    md5s: list[bytes] = []
    at = 0
    while at < len(places):
        size = places[at][1]
        group = _equal_parts(places[at : at + _lane_count])
        if _lanes is not None and size >= MIN_LANE_BYTES and not size % 64 and 2 * len(group) > _lane_count:
            # A group that is not full hashes its last part again in the lanes left over: still faster.
            full = group + group[-1:] * (_lane_count - len(group))
            md5s += _lanes(memory, full, size)[: len(group)]
            at += len(group)
        else:
            offset, size = places[at]
            md5s.append(md5(memory[offset : offset + size]))
            at += 1
    return md5s


def _equal_parts(places: Sequence[tuple[int, int]]) -> list[int]:
    """The offsets of the first part and of those behind it, up to one of another size."""
    return [offset for offset, _ in takewhile(lambda place: place[1] == places[0][1], places)]


def md5(data: bytes | bytearray | memoryview) -> bytes:
    """The binary MD5 of one piece."""
    return hashlib.md5(data, usedforsecurity=False).digest()


def etag(md5s: bytes | bytearray) -> str:
    """The tag of a file's content, from the joined binary MD5s of its parts: their MD5, a dash, their number."""
    return f"{md5(md5s).hex()}-{len(md5s) // MD5_BYTES}"
