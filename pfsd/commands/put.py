"""put: a file of the daemon's machine, or content that arrives over a connection, becomes parts in the store.

Commit rule: packs durable first, then one journal record that makes the file exist, then OK. Until that record
every trace of a put can be taken back, and is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from pfsd import hashing, packs, records, work
from pfsd.aio import Window, finish, opened
from pfsd.budget import Extent
from pfsd.commands.engine import Engine, Progress, fd_path
from pfsd.commands.shared import SmallFile
from pfsd.errors import Busy, Cancelled, Changed, RequestError, from_os_error
from pfsd.fair import Flow
from pfsd.protocol import check_name

log = logging.getLogger(__name__)

#: An upload that gets no memory for this long is refused: all of it is held by clients that stand still.
MEMORY_PATIENCE_SECONDS = 30.0
#: Runs that wait in memory until they are journalled together; one record holds their rows in well under 1 MiB.
RUNS_PER_RECORD = 64


@dataclass(frozen=True)
class Stored:
    """A file that now exists."""

    id: int
    name: bytes
    size: int
    stored: int
    parts: int
    etag: str


class Storing:
    """One file on its way into the store: `async with`, `store` its runs, `commit`; else all is taken back.

    A small file goes with `store_small` instead, and costs a fraction of a run of its own.
    """

    def __init__(self, engine: Engine, name: bytes, replace: bool, size: int | None, flow: Flow) -> None:
        self._engine = engine
        self._name = check_name(name)
        self._replace = replace
        self._flow = flow
        self._size = size
        self._staged: list[tuple[str, int]] = []
        self._tokens: set[str] = set()  # under which something may be staged, though no task has said so
        self._runs: dict[int, records.Run] = {}  # by seq, not journalled yet
        self._md5s: dict[int, bytes] = {}  # by seq, of a run each
        self._stored = 0
        self._coding = engine.coding.file()
        self._journalled: list[asyncio.Task[None]] = []
        self._shared_pack: int | None = None
        self._announced = False
        self._committed = False
        self.part_size = engine.settings.part_size

    async def __aenter__(self) -> Storing:
        self._engine.claim(self._name, self._replace)
        self.file_id = self._engine.registry.new_file_id()
        self._put_id = random.randbytes(8)
        self._created = time.time_ns()
        return self

    async def __aexit__(self, *error: object) -> None:
        try:
            if not self._committed:
                await finish(self._take_back())
        finally:
            if self._shared_pack is not None:
                self._engine.shared.release(self._shared_pack, given_up=not self._committed)
            self._engine.disclaim(self._name)

    def announce(self) -> None:
        """Enter the file as being stored: it has more than one run, which are journalled on the way."""
        if not self._announced:
            self._announced = True
            self._journal(
                records.Put(file=self.file_id, name=self._name, part_size=self.part_size, created=self._created)
            )

    async def store_small(self, extents: Sequence[Extent], source: str | None = None) -> None:
        """Store all parts of a small file, which lie in these extents or are to be read to them from `source`.

        No extents stand for an empty file. The extents stay the caller's.
        """
        parts = self._parts(0, extents, final_size=sum(extent.size for extent in extents))
        placed = await self._engine.shared.store(SmallFile(parts, source))
        self._shared_pack = placed.pack
        self._note(0, placed.pack, placed.rows)

    async def store(
        self, seq: int, extents: Sequence[Extent], source: str | None = None, final_size: int | None = None
    ) -> None:
        """Store consecutive parts, which lie in these extents or are to be read to them from `source`.

        No extents stand for the end marker. The extents stay the caller's.
        """
        pack = self._engine.registry.new_pack_id()
        choice = self._coding.choose()
        batch = work.StoreBatch(
            token=f"{pack:016x}",
            parts=self._parts(seq, extents, final_size),
            codec=choice.codec,
            level=choice.level,
            every=choice.every,
            reads=(work.Read(source, seq * self.part_size, 0, len(extents)),) if source is not None else (),
        )
        cost = sum(extent.size for extent in extents)
        self._tokens |= work.staging_tokens(batch)
        stored = await self._engine.workers.run(work.store_batch, batch, self._flow, cost)
        for row in stored.parts:
            if isinstance(row, work.Failure):
                raise row.error()
        self._tokens -= work.staging_tokens(batch)
        self._coding.tell(choice, stored.measured)
        self._staged.append((stored.token, pack))
        self._note(seq, pack, [row for row in stored.parts if isinstance(row, work.PartRow)])
        if self._announced and len(self._runs) > RUNS_PER_RECORD:
            self._journal_runs()

    def _parts(self, seq: int, extents: Sequence[Extent], final_size: int | None) -> tuple[work.PartIn, ...]:
        """The parts in these extents, or the end marker if there are none."""
        origin = packs.Origin(
            store=self._engine.store_id,
            file=self.file_id,
            put=self._put_id,
            created=self._created,
            part_size=self.part_size,
            file_size=self._size if final_size is None else final_size,
            name=self._name,
        )
        if not extents:
            return (work.PartIn(origin, seq, 0, 0),)
        return tuple(work.PartIn(origin, seq + at, *extent) for at, extent in enumerate(extents))

    def _note(self, seq: int, pack: int, rows: Sequence[work.PartRow]) -> None:
        """Remember where a run went; the row of an end marker tells only that."""
        head, rows = rows[0].head, [row for row in rows if row.size]
        self._md5s[seq] = b"".join(row.md5 for row in rows)
        self._stored += sum(row.stored for row in rows)
        self._runs[seq] = records.Run(
            pack=pack,
            seq=seq,
            part=self._engine.registry.new_part_ids(len(rows)) if rows else 0,
            head=head,
            parts=[(row.offset, row.size, row.stored, row.codec, row.md5.hex()) for row in rows],
        )

    async def commit(self, size: int) -> Stored:
        """Make the file exist, durably. From here on nothing is taken back."""
        await finish(self._commit(size))
        md5s = b"".join(self._md5s[seq] for seq in sorted(self._md5s))
        parts = len(md5s) // hashing.MD5_BYTES
        return Stored(self.file_id, self._name, size, self._stored, parts, hashing.etag(md5s))

    async def _commit(self, size: int) -> None:
        engine = self._engine
        if self._staged:
            await asyncio.to_thread(self._publish)
        for task in self._journalled:
            await task
        while old := engine.registry.find(self._name):
            async with engine.locked([old]):
                if engine.registry.find(self._name) is old:
                    await self._commit_ready(size, replaces=old.id)
                    engine.remove_soon(old)
                    return
        await self._commit_ready(size, replaces=0)

    async def _commit_ready(self, size: int, replaces: int) -> None:
        ready = records.Ready(
            file=self.file_id,
            name=self._name,
            size=size,
            part_size=self.part_size,
            created=self._created,
            runs=[self._runs[seq] for seq in sorted(self._runs)],
            replaces=replaces,
        )
        await self._engine.committer.commit([ready])
        self._committed = True

    def _publish(self) -> None:
        try:
            self._engine.store.publish(self._staged)
            self._engine.store.sync_published([pack for _, pack in self._staged])
        except OSError as error:
            raise from_os_error(error, "publishing packs") from error

    def _journal_runs(self) -> None:
        """Move the gathered runs to the journal, so that no record grows with the file."""
        runs, self._runs = self._runs, {}
        self._journal(*(records.Parts(file=self.file_id, run=run) for run in runs.values()))

    def _journal(self, *batch: records.Record) -> None:
        task = asyncio.create_task(self._engine.committer.commit(batch))
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._journalled.append(task)

    async def _take_back(self) -> None:
        if self._engine.committer.failed:
            return  # the record may be on disk all the same: leave everything to the next start
        await asyncio.gather(*self._journalled, return_exceptions=True)
        if self._tokens or self._staged:
            try:
                await asyncio.to_thread(self._discard)
            except OSError as error:
                log.warning("the packs of a given up put stay until the next start: %s", error)
        with suppress(RequestError):  # the next start drops it
            await self._engine.committer.commit([records.Drop(file=self.file_id)])

    def _discard(self) -> None:
        self._engine.store.discard([*self._tokens, *(token for token, _ in self._staged)])
        self._engine.store.delete([pack for _, pack in self._staged])


# --- from a path --------------------------------------------------------------------------------


async def put_path(
    engine: Engine, source: bytes, name: bytes | None, replace: bool, progress: Progress, flow: Flow
) -> Stored:
    """Store a file of the daemon's machine; the I/O processes read it themselves."""
    if name is None:
        name = os.path.basename(source.rstrip(b"/"))
    check_name(name)
    async with opened(partial(engine.roots.open_source, source), os.close) as fd:
        before = os.fstat(fd)
        size = progress.total = before.st_size
        async with Storing(engine, name, replace, size, flow) as storing:
            async with Window(len(engine.workers) + 1) as window:
                await _store_file(engine, storing, fd_path(fd), size, window, progress, flow)
            _check_unchanged(before, os.fstat(fd))
            return await storing.commit(size)


async def _store_file(
    engine: Engine, storing: Storing, source: str, size: int, window: Window, progress: Progress, flow: Flow
) -> None:
    run_size = storing.part_size * engine.settings.run_parts
    if size <= engine.settings.small_bytes:
        await _store_small_file(engine, storing, source, size, progress, flow)
        return
    if size > run_size:
        storing.announce()
    offset = seq = 0
    while offset < size:
        await window.room()
        extents = await engine.take(part_sizes(min(run_size, size - offset), storing.part_size), flow)
        window.start_now(_store_run(storing, seq, extents, source, progress), partial(engine.budget.give, extents))
        seq += len(extents)
        offset += sum(extent.size for extent in extents)


async def _store_small_file(
    engine: Engine, storing: Storing, source: str, size: int, progress: Progress, flow: Flow
) -> None:
    sizes = part_sizes(size, storing.part_size)
    extents = await engine.budget.take(sizes, flow, least=len(sizes)) if sizes else []
    try:
        await storing.store_small(extents, source if sizes else None)
    finally:
        engine.budget.give(extents)
    progress.bytes, progress.parts = size, len(sizes)


async def _store_run(storing: Storing, seq: int, extents: list[Extent], source: str, progress: Progress) -> None:
    await storing.store(seq, extents, source)
    progress.bytes += sum(extent.size for extent in extents)
    progress.parts += len(extents)


def part_sizes(size: int, part_size: int) -> list[int]:
    """The sizes of the parts that `size` bytes make."""
    return [min(part_size, size - offset) for offset in range(0, size, part_size)]


def _check_unchanged(before: os.stat_result, after: os.stat_result) -> None:
    if (before.st_size, before.st_mtime_ns, before.st_ctime_ns) != (
        after.st_size,
        after.st_mtime_ns,
        after.st_ctime_ns,
    ):
        raise Changed("the source changed while it was read; nothing was stored")


# --- from a connection --------------------------------------------------------------------------


async def put_content(
    engine: Engine, name: bytes, replace: bool, extents: Sequence[Extent], progress: Progress, flow: Flow
) -> Stored:
    """Store a small file that has been received whole; the extents stay the caller's."""
    size = progress.total = sum(extent.size for extent in extents)
    async with Storing(engine, name, replace, size, flow) as storing:
        await storing.store_small(extents)
        progress.bytes, progress.parts = size, len(extents)
        return await storing.commit(size)


class Upload:
    """Content that a connection receives straight into the slab.

    The connection writes to `view` and reports with `advance`; when `view` is empty it awaits `space`. Parts
    gather until they make a run, or until someone needs the memory. `size` None is not known beforehand.
    """

    def __init__(
        self, engine: Engine, name: bytes, replace: bool, size: int | None, progress: Progress, flow: Flow
    ) -> None:
        self._engine = engine
        self._storing = Storing(engine, name, replace, size, flow)
        self._window = Window(len(engine.workers) + 1)
        self._progress = progress
        self._flow = flow
        self._extent: Extent | None = None  # being filled
        self._filled = 0
        self._full: list[Extent] = []  # full parts that wait for their run
        self._seq = 0  # of the first of them
        self._size_was_known = size is not None
        self._closed = False
        self.size = progress.total = size
        self.received = 0
        self.view = memoryview(b"")

    async def __aenter__(self) -> Upload:
        await self._storing.__aenter__()
        self._engine.budget.on_pressure.add(self._flush)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._closed = True
        self._engine.budget.on_pressure.discard(self._flush)
        self.view = memoryview(b"")
        try:
            await self._window.cancel()
        finally:
            held = self._full + ([self._extent] if self._extent else [])
            self._full, self._extent = [], None
            self._engine.budget.give(held)
            await self._storing.__aexit__(kind, error, trace)

    async def space(self) -> None:
        """Wait until `view` has room for a byte; raises what storing earlier parts ran into."""
        if len(self.view):
            return
        size = self._storing.part_size
        if self.size is not None:
            size = min(size, self.size - self.received)
        await self._window.room()
        extent = self._engine.budget.try_take(size)
        if extent is None:
            self._flush()
            try:
                async with asyncio.timeout(MEMORY_PATIENCE_SECONDS):
                    (extent,) = await self._engine.budget.take([size], self._flow)
            except TimeoutError:
                raise Busy(
                    "no memory for this upload: others hold it and stand still; try again, send fewer uploads "
                    "at once, or raise memory in the configuration"
                ) from None
        if self._closed:
            self._engine.budget.give([extent])
            raise Cancelled("the upload was given up")
        self._extent, self._filled = extent, 0
        self.view = self._engine.budget.view(extent)

    def advance(self, count: int) -> None:
        """Say that the first `count` bytes of `view` were filled."""
        assert self._extent is not None
        self.view = self.view[count:]
        self.received += count
        self._filled += count
        if self._filled == self._extent.size:
            self._full.append(self._extent)
            self._extent = None
            if len(self._full) == self._engine.settings.run_parts or self._engine.budget.pressed:
                self._flush()

    async def complete(self, content: asyncio.Future[None]) -> None:
        """Wait for the end of the content; raises why it will not come, or what storing ran into meanwhile."""
        failed = asyncio.ensure_future(self._window.failed.wait())
        either: set[asyncio.Future[Any]] = {content, failed}
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            failed.cancel()
        self._window.check()
        content.result()

    async def commit(self) -> Stored:
        """The content is complete: store what is left and make the file exist."""
        self._engine.budget.on_pressure.discard(self._flush)
        self.size = self.received
        if self._extent is not None:
            self._shrink()
        if not self._seq and self.size <= self._engine.settings.small_bytes:
            self._store_whole()
        elif self._full:
            self._store_full()
        elif not self._size_was_known:
            # No header so far could state the file's size.
            self._window.start_now(self._storing.store(self._seq, [], final_size=self.size))
        await self._window.drain()
        return await self._storing.commit(self.size)

    def _shrink(self) -> None:
        """Turn the part being filled into the last one, and give back what it does not need."""
        assert self._extent is not None
        extent, self._extent = self._extent, None
        if not self._filled:
            self._engine.budget.give([extent])
            return
        self._full.append(self._engine.budget.shrink(extent, self._filled))

    def _flush(self) -> None:
        """Hand the full parts over to be stored, before all have come."""
        if self._full:
            self._storing.announce()
            self._store_full()

    def _store_whole(self) -> None:
        """Hand over a file that was small, and is complete."""
        # Taken out of reach of a flush that was called for just before.
        whole, self._full = self._full, []
        self._window.start_now(self._storing.store_small(whole), partial(self._engine.budget.give, whole))

    def _store_full(self) -> None:
        """Hand over the parts that are full as a run."""
        run, self._full = self._full, []
        self._window.start_now(self._store(self._seq, run, self.size), partial(self._engine.budget.give, run))
        self._seq += len(run)

    async def _store(self, seq: int, run: list[Extent], final_size: int | None) -> None:
        await self._storing.store(seq, run, final_size=final_size)
        self._progress.bytes += sum(extent.size for extent in run)
        self._progress.parts += len(run)
