"""The last minutes of a few numbers, for a chart: looks in equal steps, the oldest forgotten first."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from typing import NamedTuple

#: Between two looks, in seconds, and how many are kept: ten minutes.
STEP_SECONDS = 2.0
LOOKS = 300


class Look(NamedTuple):
    """What was seen at a time of `time.monotonic`: bytes in all, in and out; bytes of memory in use."""

    at: float
    bytes_in: int
    bytes_out: int
    memory: int


class History:
    """Looks, and what happened between them."""

    def __init__(self) -> None:
        self._looks: deque[Look] = deque(maxlen=LOOKS + 1)

    def note(self, look: Look) -> None:
        """Add one."""
        self._looks.append(look)

    def as_json(self, now: float) -> dict[str, list[float]]:
        """Of each step: how many seconds ago it ended, bytes in and out a second during it, memory at its end."""
        looks = list(self._looks)
        steps = list(pairwise(looks))
        return {
            "ago": [round(now - after.at, 1) for _, after in steps],
            "in": [_rate(after.bytes_in - before.bytes_in, before, after) for before, after in steps],
            "out": [_rate(after.bytes_out - before.bytes_out, before, after) for before, after in steps],
            "memory": [after.memory for _, after in steps],
        }


def _rate(count: int, before: Look, after: Look) -> int:
    return int(count / max(after.at - before.at, 1e-3))
