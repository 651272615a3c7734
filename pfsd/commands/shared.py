"""Small files on their way into the store: those that arrive together share a pack.

A pack of its own for each would cost a trip to a process, a file, and several syncs, which is many times what a
small file itself takes. Here one batch is gathered while the ones before it are written.

Between the publishing of a pack and the commits of its files nobody can tell from the registry who needs it. So it is
*held* until each of its files is committed or given up; then it goes, if no file uses it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pfsd import stores, work
from pfsd.coding import Chooser
from pfsd.fair import Flow
from pfsd.gather import Gatherer
from pfsd.workers import Workers

log = logging.getLogger(__name__)

#: Files up to this many bytes share packs. A bigger one is worth the trips that it makes.
SMALL_BYTES = 1 << 20
#: What one batch holds at most: enough to make the syncs cheap, and no more than a process is done with soon.
BATCH_FILES = 128
BATCH_BYTES = 4 << 20
#: What a file costs in the queue for a process beside its bytes.
FILE_COST = 16 << 10


class SmallFile(NamedTuple):
    """All parts of a file, or its end marker if it is empty; to be read from `source` unless they are in the slab."""

    parts: tuple[work.PartIn, ...]
    source: str | None


@dataclass(frozen=True)
class Placed:
    """The pack that a small file was stored in, and its parts there."""

    pack: int
    rows: tuple[work.PartRow, ...]


class SharedPacks:
    """Stores small files, many to a pack. Whoever got a file `Placed` must `release` its pack in the end."""

    def __init__(
        self,
        store: stores.PackStore,
        workers: Workers,
        coding: Chooser,
        new_pack_id: Callable[[], int],
        let_go: Callable[[int, bool], object],
    ) -> None:
        """`let_go` is called with a pack that nobody holds any more, and whether something in it was given up."""
        self._store = store
        self._workers = workers
        self.coding = coding
        self._new_pack_id = new_pack_id
        self._let_go = let_go
        self._flow = Flow()  # all small files together count as one command
        self._held: Counter[int] = Counter()
        self._wasted: set[int] = set()  # those with something in them that was given up
        self._gatherer: Gatherer[SmallFile, Placed | work.Failure] = Gatherer(
            self._store_together,
            at_once=len(workers),
            most_items=BATCH_FILES,
            most_cost=BATCH_BYTES,
            unwanted=self._give_up,
        )

    async def store(self, file: SmallFile) -> Placed:
        """Return when the file is in a published pack, durably. Errors are those of reading it and of the store."""
        placed = await self._gatherer.add(file, _cost(file))
        if isinstance(placed, work.Failure):
            raise placed.error()
        return placed

    def is_held(self, pack: int) -> bool:
        """Whether some file in the pack is neither committed nor given up."""
        return self._held[pack] > 0

    def hold(self, pack: int, files: int = 1) -> None:
        """Files in the pack will be committed or given up, with a `release` for each."""
        self._held[pack] += files

    def release(self, pack: int, given_up: bool = False) -> None:
        """One file in the pack is committed, or given up."""
        if given_up:
            self._wasted.add(pack)
        wasted = pack in self._wasted
        if self.let_go(pack):
            self._let_go(pack, wasted)

    def let_go(self, pack: int) -> bool:
        """As `release`, for callers that look after the pack themselves; whether nobody holds it any more."""
        self._held[pack] -= 1
        if self._held[pack]:
            return False
        del self._held[pack]
        self._wasted.discard(pack)
        return True

    def _give_up(self, placed: Placed | work.Failure) -> None:
        if isinstance(placed, Placed):
            self.release(placed.pack, given_up=True)

    async def _store_together(self, files: Sequence[SmallFile]) -> list[Placed | work.Failure]:
        pack = self._new_pack_id()
        choice = self.coding.choose()
        batch = work.StoreBatch(
            token=f"{pack:016x}",
            parts=tuple(part for file in files for part in file.parts),
            codec=choice.codec,
            level=choice.level,
            reads=tuple(_reads(files)),
        )
        cost = sum(map(_cost, files))
        try:
            stored = await self._workers.run(work.store_batch, batch, self._flow, cost)
            self.coding.tell(choice, stored.measured)
            results = _share_out(pack, files, stored.parts)
            held = sum(isinstance(result, Placed) for result in results)
            if held:
                await asyncio.to_thread(stores.publish_durably, self._store, [(stored.token, pack)])
        except BaseException:
            await asyncio.to_thread(self._discard, batch, pack)
            raise
        if held:
            self.hold(pack, held)
        return results

    def _discard(self, batch: work.StoreBatch, pack: int) -> None:
        try:
            self._store.discard(work.staging_tokens(batch))
            self._store.delete([pack])
        except OSError as error:
            log.warning("what a failed batch left stays until the next start: %s", error)


def _cost(file: SmallFile) -> int:
    return FILE_COST + sum(part.size for part in file.parts)


def _reads(files: Sequence[SmallFile]) -> list[work.Read]:
    reads, first = [], 0
    for file in files:
        if file.source is not None:
            reads.append(work.Read(file.source, 0, first, first + len(file.parts)))
        first += len(file.parts)
    return reads


def _share_out(
    pack: int, files: Sequence[SmallFile], rows: Sequence[work.PartRow | work.Failure]
) -> list[Placed | work.Failure]:
    """The result for each file; parts of one file fail together."""
    results: list[Placed | work.Failure] = []
    first = 0
    for file in files:
        own = rows[first : first + len(file.parts)]
        first += len(file.parts)
        sound = tuple(row for row in own if isinstance(row, work.PartRow))
        failures = (row for row in own if isinstance(row, work.Failure))
        results.append(next(failures, Placed(pack, sound)))
    return results
