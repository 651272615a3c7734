"""Packs that are mostly dead are written again without what is dead, in the background, one at a time.

Only packs that small files share can be like that: one of them is deleted, the others stay. A pack is copied when
more than half of it belongs to no file any more; so at most half of the space that shared packs take is waste, and
each byte is copied once for at least one byte that comes free.

The order of things is that of every change: the new pack durable first, then records that say where the parts are now,
then the old pack goes, once nobody reads what was moved. A crash in between leaves one pack of nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from contextvars import Context

from pfsd import packs, records, stores, work
from pfsd.aio import finish
from pfsd.commands.engine import Engine
from pfsd.errors import Missing, NoSpace, RequestError
from pfsd.fair import Flow
from pfsd.registry import File, Part, Status

log = logging.getLogger(__name__)

_READABLE = (Status.READY, Status.DAMAGED)

#: The parts of one file that lie in one pack, one after the other, as `work.copy_parts` wants them.
_Run = list[tuple[int, int, work.PartRow]]


class Reclaimer:
    """Looks after packs with waste in them: bytes of no file, beside those that files use."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._flow = Flow()
        self._sizes: dict[int, int] = {}  # of packs with waste
        self._waste: dict[int, int] = {}  # of the same
        self._unknown: set[int] = set()  # packs with waste, whose sizes have to be looked up
        self._mostly_dead: set[int] = set()
        self._postponed: set[int] = set()  # mostly dead too, for when something more was freed: the disk was full
        self._work: asyncio.Task[None] | None = None
        self._stopped = False
        #: Bytes of waste there are.
        self.waste = 0
        #: Packs copied, and bytes that came free by that, since the start.
        self.copied = 0
        self.freed = 0
        engine.on_waste = self.note

    def note(self, changed: Iterable[int]) -> None:
        """What is alive in these packs has changed."""
        for pack in changed:
            if pack in self._sizes:
                self._weigh(pack)
            elif self._engine.registry.is_used(pack):
                self._unknown.add(pack)
        self._mostly_dead |= self._postponed & self._waste.keys()
        self._postponed.clear()
        if self._unknown or self._mostly_dead:
            self._start()

    def note_size(self, pack: int, size: int) -> None:
        """How big a pack that files use is, for those who know it already."""
        if size > self._engine.registry.live_bytes_of(pack):
            self._sizes[pack] = size
            self._weigh(pack)

    async def stop(self) -> None:
        """Finish the step under way, and do no more."""
        self._stopped = True
        if self._work is not None:
            await asyncio.wait({self._work})

    def _weigh(self, pack: int) -> None:
        live, size = self._engine.registry.live_bytes_of(pack), self._sizes[pack]
        # What is not used goes by itself, as does a pack of deleted files that are still being read.
        waste = size - live if self._engine.registry.is_used(pack) else 0
        self.waste += waste - self._waste.pop(pack, 0)
        if waste:
            self._waste[pack] = waste
        else:
            del self._sizes[pack]
        if waste and 0 < 2 * live < size:
            self._mostly_dead.add(pack)
        else:
            self._mostly_dead.discard(pack)

    def _start(self) -> None:
        if self._work is None and not self._stopped:
            self._work = asyncio.create_task(self._run(), context=Context())  # on behalf of nobody

    async def _run(self) -> None:
        try:
            while (self._unknown or self._mostly_dead) and not self._stopped:
                unknown, self._unknown = self._unknown, set()
                for pack, size in (await asyncio.to_thread(self._sizes_of, unknown)).items():
                    self.note_size(pack, size)
                if self._mostly_dead:
                    await self._try_copy(self._mostly_dead.pop())
        except Exception:
            log.exception("mostly dead packs stay as they are until the next start")
            self._stopped = True
        finally:
            self._work = None

    def _sizes_of(self, wanted: Iterable[int]) -> dict[int, int]:
        sizes = {}
        for pack in wanted:
            try:
                with self._engine.store.open(pack) as reader:
                    sizes[pack] = reader.size
            except (OSError, RequestError):
                continue  # gone meanwhile, or for `verify` to find
        return sizes

    async def _try_copy(self, pack: int) -> None:
        try:
            await self._copy(pack)
        except NoSpace as error:
            log.info("pack %016x is mostly dead and waits for room: %s", pack, error)
            self._postponed.add(pack)
        except RequestError as error:
            if self._engine.registry.is_used(pack):
                log.warning("pack %016x is mostly dead and stays as it is: %s", pack, error)

    async def _copy(self, pack: int) -> None:
        engine, size = self._engine, self._sizes[pack]
        engine.check_room(engine.registry.live_bytes_of(pack))
        found = await engine.workers.run(work.list_pack, pack, self._flow, size)
        runs = self._live_runs(pack, found)
        if not runs:
            return  # all of it died meanwhile
        new = engine.registry.new_pack_id()
        batch = work.CopyBatch(f"{new:016x}", engine.store_id, pack, tuple(part for run in runs for part in run))
        engine.shared.hold(new)
        engine.shared.hold(pack)  # for those who read what is moved: they do not count as users once it is
        try:
            stored = await engine.workers.run(work.copy_parts, batch, self._flow, size)
            rows = [row for row in stored.parts if isinstance(row, work.PartRow)]
            files = await finish(self._move(runs, rows, stored.token, new))
        except BaseException:
            engine.shared.release(pack)
            await asyncio.to_thread(engine.store.discard, work.staging_tokens(batch))
            raise
        finally:
            engine.shared.release(new)
        self.copied += 1
        engine.in_background(self._unlink_unread(pack, files))
        if engine.registry.live_bytes_of(pack):
            raise Missing("something that files need was not found in it; verify tells what")

    async def _unlink_unread(self, pack: int, files: Sequence[File]) -> int:
        """Unlink a pack when nobody reads any more what was moved away from it."""
        for file in files:
            await self._engine.unpinned(file)
        self._engine.shared.let_go(pack)
        freed = await self._engine.unlink_unused([pack])
        self.freed += freed
        return freed

    def _live_runs(self, pack: int, found: Sequence[packs.Found]) -> list[_Run]:
        """What of a pack belongs to files that can be read, run by run."""
        registry = self._engine.registry
        runs = []
        for file_id in dict.fromkeys(part.header.origin.file for part in found):
            file = registry.file(file_id)
            if file is None or file.status not in _READABLE:
                continue
            if not file.parts and registry.packs_of(file_id) == [pack]:
                runs += [[_end_marker(part)] for part in found if part.header.origin.file == file_id][:1]
            runs += [list(map(_place, run)) for run in registry.runs(file_id) if run[0].pack == pack]
        return runs

    async def _move(self, runs: Sequence[_Run], rows: Sequence[work.PartRow], token: str, new: int) -> list[File]:
        """Publish the new pack and say what is there now; returns the files that were moved."""
        await asyncio.to_thread(stores.publish_durably, self._engine.store, [(token, new)])
        engine = self._engine
        files = [file for file in (engine.registry.file(run[0][0]) for run in runs) if file is not None]
        async with engine.locked(files):
            moved: list[records.Record] = []
            at = 0
            for run in runs:
                moved += self._moved(run, rows[at : at + len(run)], new)
                at += len(run)
            await engine.committer.commit(moved)
        return files

    def _moved(self, run: _Run, rows: Sequence[work.PartRow], new: int) -> list[records.Moved]:
        """The record of a run; none if its file has changed or gone while it was copied."""
        file_id, seq, old = run[0]
        registry = self._engine.registry
        file = registry.file(file_id)
        if file is None or file.status not in _READABLE:
            return []
        part_id = 0
        parts: list[records.PartRow] = []
        if old.size:
            (first,) = registry.parts(file_id, seq, seq)
            part_id = first.id
            parts = [(row.offset, row.size, row.stored, row.codec, row.md5.hex()) for row in rows]
        return [records.Moved(file_id, records.Run(new, seq, part_id, old.head, parts))]


def _place(part: Part) -> tuple[int, int, work.PartRow]:
    return part.file, part.seq, work.PartRow(part.pack_offset, part.head, part.size, part.stored, part.codec, part.md5)


def _end_marker(found: packs.Found) -> tuple[int, int, work.PartRow]:
    header = found.header
    row = work.PartRow(found.offset, found.head, header.size, header.stored, header.codec, header.md5)
    return header.origin.file, header.seq, row
