"""The memory ceiling: one slab of shared memory that all file data in flight lives in.

The slab is a memfd mapped by the daemon and by every worker, so content is received, hashed, coded and sent
without being copied between processes. Its free list *is* the memory semaphore: what does not fit waits, in
fair turns, and the daemon never grows past the slab.
"""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from pfsd.errors import Busy
from pfsd.fair import FairQueue, Flow

#: Extents begin at multiples of a cache line.
GRAIN = 64
#: Extents below this size are cut from the far end, so that they do not break up the room for parts.
SMALL = 256 << 10
#: An unused slab keeps its pages this long before the system gets them back: commands often follow each other, and
#: touching all pages anew costs a put some 3 %.
IDLE_SECONDS = 30.0


class Extent(NamedTuple):
    """A stretch of the slab, in bytes."""

    offset: int
    size: int


class Slab:
    """Which stretches of `size` bytes are free. Plain bookkeeping, no memory and no waiting."""

    def __init__(self, size: int) -> None:
        self.size = size // GRAIN * GRAIN
        self.used = 0
        self.peak = 0
        self._free: list[Extent] = [Extent(0, self.size)]  # by offset, never touching each other

    def take(self, size: int) -> Extent | None:
        """An extent of `size` bytes, or None when no free stretch is long enough."""
        need = _rounded(size)
        order = range(len(self._free))
        for at in reversed(order) if need < SMALL else order:
            offset, length = self._free[at]
            if length < need:
                continue
            if need < SMALL:
                start, rest = offset + length - need, Extent(offset, length - need)
            else:
                start, rest = offset, Extent(offset + need, length - need)
            self._free[at : at + 1] = [rest] if rest.size else []
            self.used += need
            self.peak = max(self.peak, self.used)
            return Extent(start, size)
        return None

    def give(self, extent: Extent) -> None:
        """Free an extent; it joins its free neighbours."""
        self._free_stretch(extent.offset, extent.offset + _rounded(extent.size))

    def shrink(self, extent: Extent, size: int) -> Extent:
        """Keep the first `size` bytes of an extent and free the rest."""
        start, end = extent.offset + _rounded(size), extent.offset + _rounded(extent.size)
        if start < end:
            self._free_stretch(start, end)
        return Extent(extent.offset, size)

    def _free_stretch(self, start: int, end: int) -> None:
        self.used -= end - start
        at = next((at for at, free in enumerate(self._free) if free.offset > start), len(self._free))
        if at < len(self._free) and self._free[at].offset == end:
            end += self._free.pop(at).size
        if at and sum(self._free[at - 1]) == start:
            at -= 1
            start = self._free.pop(at).offset
        self._free.insert(at, Extent(start, end - start))


def _rounded(size: int) -> int:
    """What an extent takes. Never whole pages: parts hashed side by side would then all want the same few cache
    lines, which halves the speed."""
    rounded = max(GRAIN, -(-size // GRAIN) * GRAIN)
    return rounded + GRAIN if rounded % mmap.PAGESIZE == 0 else rounded


class _Waiter(NamedTuple):
    sizes: Sequence[int]
    least: int
    granted: asyncio.Future[list[Extent]]


class MemoryBudget:
    """The slab's memory and the queue for it. Close it when no worker uses it any more."""

    def __init__(self, size: int) -> None:
        self._slab = Slab(size)
        self.fd = os.memfd_create("pfsd-slab", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, self._slab.size)
        self._map = mmap.mmap(self.fd, self._slab.size)
        self._view = memoryview(self._map)
        self._queue: FairQueue[_Waiter] = FairQueue()
        self._idle_timer: asyncio.TimerHandle | None = None
        #: Called when someone has to wait: holders that can give memory back early should do so.
        self.on_pressure: set[Callable[[], None]] = set()

    @property
    def limit(self) -> int:
        """Size of the slab in bytes."""
        return self._slab.size

    @property
    def used(self) -> int:
        """Bytes of the slab in use."""
        return self._slab.used

    @property
    def peak(self) -> int:
        """Most bytes of the slab ever in use at once."""
        return self._slab.peak

    @property
    def pressed(self) -> bool:
        """Whether anyone waits for memory."""
        return len(self._queue) > 0

    def view(self, extent: Extent) -> memoryview:
        """The memory of an extent."""
        return self._view[extent.offset : extent.offset + extent.size]

    def try_take(self, size: int) -> Extent | None:
        """An extent at once, or None; never overtakes those who wait."""
        if self._queue:
            return None
        extent = self._slab.take(size)
        if extent is None:
            self._press()
        return extent

    async def take(self, sizes: Sequence[int], flow: Flow, least: int = 1) -> list[Extent]:
        """Wait for extents of these sizes in this order: as many as fit now, but `least` of them.

        Busy when they could never fit.
        """
        if sum(map(_rounded, sizes[:least])) > self._slab.size:
            raise Busy(
                f"{sum(sizes[:least])} bytes of memory are needed at once, the slab has {self._slab.size}; "
                "raise memory in the configuration"
            )
        if not self._queue and len(sizes) == 1 and (extent := self._slab.take(sizes[0])) is not None:
            self._queue.count(flow, sizes[0])
            return [extent]
        waiter = _Waiter(sizes, least, asyncio.get_running_loop().create_future())
        self._queue.push(flow, sum(sizes), waiter)
        self._serve()
        try:
            return await waiter.granted
        except asyncio.CancelledError:
            if waiter.granted.cancelled():
                self._serve()  # the next in the queue may fit where this one did not
            else:
                self.give(waiter.granted.result())
            raise

    def give(self, extents: Iterable[Extent]) -> None:
        """Free extents and serve those who wait."""
        for extent in extents:
            self._slab.give(extent)
        self._serve()
        if not self._slab.used and self._idle_timer is None:
            self._idle_timer = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._release_pages)

    def shrink(self, extent: Extent, size: int) -> Extent:
        """Keep the first `size` bytes of an extent and free the rest."""
        kept = self._slab.shrink(extent, size)
        self._serve()
        return kept

    def close(self) -> None:
        """Unmap the slab; if a view of it is still held somewhere, it stays mapped until that is gone."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
        with suppress(BufferError):
            self._view.release()
            self._map.close()
        os.close(self.fd)

    def _serve(self) -> None:
        while self._queue:
            waiter = self._queue.peek()
            if not waiter.granted.done():
                extents = self._take_many(waiter)
                if extents is None:
                    self._press()
                    return
                waiter.granted.set_result(extents)
            self._queue.pop()

    def _take_many(self, waiter: _Waiter) -> list[Extent] | None:
        extents: list[Extent] = []
        for size in waiter.sizes:
            extent = self._slab.take(size)
            if extent is None:
                break
            extents.append(extent)
        if len(extents) < min(waiter.least, len(waiter.sizes)):
            for extent in extents:
                self._slab.give(extent)
            return None
        return extents

    def _press(self) -> None:
        # Holders free memory from a fresh call stack, never from inside the caller's own take.
        loop = asyncio.get_running_loop()
        for holder in self.on_pressure:
            loop.call_soon(holder)

    def _release_pages(self) -> None:
        self._idle_timer = None
        if not self._slab.used:
            self._map.madvise(mmap.MADV_REMOVE)
