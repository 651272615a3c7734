"""MD5 of parts, and what is made of them. Knows bytes in memory only.

MD5 finds accidents, such as rot on a disk; it does not decide that two pieces of content are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

#: Hashes many parts side by side: (memory, their offsets and sizes, the longest first) -> their MD5s.
Lanes = Callable[[memoryview, Sequence[tuple[int, int]]], list[bytes]]

MD5_BYTES = 16

_lanes: Lanes | None = None
#: Lanes pay off above this size: below, setting up costs more than it gains.
MIN_LANE_BYTES = 4096
#: A lane alone is about a third as fast as hashlib, so a part goes there only if this many of its size would.
MIN_LANES = 4


def use_lanes() -> bool:
    """Hash parts in SIMD lanes from now on; False, and hashlib for all, where numba is not installed."""
    global _lanes
    try:
        from pfsd import lanes
    except ImportError:
        return False
    _lanes = lanes.md5_lanes
    return True


def md5_many(memory: memoryview, places: Sequence[tuple[int, int]]) -> list[bytes]:
    """The binary MD5s of the parts at these (offset, size) places of `memory`, in their order."""
    order = _worth_lanes(places) if _lanes is not None else []
    found = dict(zip(order, _lanes(memory, [places[at] for at in order]), strict=True)) if _lanes and order else {}
    return [
        found[at] if at in found else md5(memory[offset : offset + size]) for at, (offset, size) in enumerate(places)
    ]


def _worth_lanes(places: Sequence[tuple[int, int]]) -> list[int]:
    """Which parts to hash in lanes, the longest first: not the small ones, nor those with too little beside them."""
    sizes = [size for _, size in places]
    order = sorted((at for at, size in enumerate(sizes) if size >= MIN_LANE_BYTES), key=sizes.__getitem__, reverse=True)
    left = sum(sizes[at] for at in order)
    for first, at in enumerate(order):
        if MIN_LANES * sizes[at] <= left:
            return order[first:]
        left -= sizes[at]
    return []


def md5(data: bytes | bytearray | memoryview) -> bytes:
    """The binary MD5 of one piece."""
    return hashlib.md5(data, usedforsecurity=False).digest()


def etag(md5s: bytes | bytearray) -> str:
    """The tag of a file's content, from the joined binary MD5s of its parts: their MD5, a dash, their number."""
    return f"{md5(md5s).hex()}-{len(md5s) // MD5_BYTES}"
