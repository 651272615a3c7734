"""Turns between commands: start-time fair queueing (Goyal, Vin, Cheng: SIGCOMM 1996).

Every command is a flow. An item waits under a start tag: the later of the queue's clock and of what its flow
was given before. So a new command goes ahead of the next run of one that already had gigabytes, and equal
commands take turns; nobody waits for ever, because the clock moves on with every item served.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Flow:
    """What one command was given so far, in bytes, by each queue it stands in."""

    __slots__ = ("finish",)

    def __init__(self) -> None:
        self.finish: dict[int, int] = {}


class FairQueue(Generic[Item]):
    """A queue whose order is fair between flows."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Item]] = []
        self._clock = 0
        self._order = count()

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, flow: Flow, cost: int, item: Item) -> None:
        """Add an item that will use `cost` bytes of the resource."""
        start = max(self._clock, flow.finish.get(id(self), 0))
        flow.finish[id(self)] = start + cost
        heapq.heappush(self._heap, (start, next(self._order), item))

    def count(self, flow: Flow, cost: int) -> None:
        """Count what a flow was given without having to wait, the queue being empty."""
        self._clock = max(self._clock, flow.finish.get(id(self), 0))
        flow.finish[id(self)] = self._clock + cost

    def peek(self) -> Item:
        """The item whose turn it is."""
        return self._heap[0][2]

    def pop(self) -> Item:
        """Take the item whose turn it is; the clock moves to its start."""
        start, _, item = heapq.heappop(self._heap)
        self._clock = max(self._clock, start)
        return item
