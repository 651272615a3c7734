"""Turns between commands: weighted fair queueing with equal weights (Demers, Keshav, Shenker: SIGCOMM 1989).

Every command is a flow. An item waits under a finish tag: what it costs, added to the later of the queue's clock and
of what its flow was given before. The clock moves with each item served: by its share of the cost among all that
wait, and at least to where the item itself began. So a small new command goes ahead of the next run of one that already
had gigabytes, and of equals that came before it; equal commands take turns; and nobody waits for ever, because what the
small ones are given moves the clock too.
"""

from __future__ import annotations

import heapq
from itertools import count
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Flow:
    """What one command was given so far, in bytes, by each queue it stands in.

    Of what others want too, a patient one gets its share divided by its patience: each byte counts so many times.
    """

    __slots__ = ("finish", "patience")

    def __init__(self, patience: int = 1) -> None:
        self.patience = patience
        self.finish: dict[int, int] = {}


class FairQueue(Generic[Item]):
    """A queue whose order is fair between flows."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, int, int, int, Item]] = []
        self._clock = 0
        self._order = count()

    def __len__(self) -> int:
        return len(self._heap)

    def push(self, flow: Flow, cost: int, item: Item) -> None:
        """Add an item that will use `cost` bytes of the resource."""
        before = flow.finish.get(id(self), 0)
        finish = self._tag(flow, cost)
        begin = finish - cost * flow.patience
        heapq.heappush(self._heap, (finish, before, next(self._order), begin, cost, item))  # of equals, who had less

    def count(self, flow: Flow, cost: int) -> None:
        """Count what a flow was given without having to wait, the queue being empty."""
        self._clock = self._tag(flow, cost) - cost * (flow.patience - 1)

    def peek(self) -> Item:
        """The item whose turn it is."""
        return self._heap[0][-1]

    def pop(self) -> Item:
        """Take the item whose turn it is; the clock moves on."""
        share = len(self._heap)
        _, _, _, begin, cost, item = heapq.heappop(self._heap)
        self._clock = max(self._clock + cost // share, begin)
        return item

    def _tag(self, flow: Flow, cost: int) -> int:
        finish = max(self._clock, flow.finish.get(id(self), 0)) + cost * flow.patience
        flow.finish[id(self)] = finish
        return finish
