"""put: a file of the daemon's machine, or content that arrives over a connection, becomes parts in the store.

Commit rule: packs durable first, then one journal record that makes the file exist, then OK. Until that record
every trace of a put can be taken back, and is; unless the put is to be resumed when it is cut short. Then what was
stored of it is made durable now and then, and stays under its name (`resume` says what becomes of it).
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from pfsd import hashing, packs, records, stores, work
from pfsd.aio import Window, finish, opened
from pfsd.budget import Extent
from pfsd.commands.engine import Engine, Progress, fd_path
from pfsd.commands.resume import Kept, key_of_path, missing, take_up
from pfsd.commands.shared import SmallFile
from pfsd.errors import Busy, Cancelled, Changed, Denied, RequestError, from_os_error
from pfsd.fair import Flow
from pfsd.protocol import check_name

log = logging.getLogger(__name__)

#: An upload that gets no memory for this long is refused: all of it is held by clients that stand still.
MEMORY_PATIENCE_SECONDS = 30.0
#: Runs that wait in memory until they are journalled together; one record holds their rows in well under 1 MiB.
RUNS_PER_RECORD = 64
#: A put that can be resumed makes what it has stored durable every so many bytes: what a crash can cost it.
CHECKPOINT_BYTES = 64 << 20


@dataclass(frozen=True)
class Stored:
    """A file that now exists."""

    id: int
    name: bytes
    size: int
    stored: int
    parts: int
    etag: str
    resumed: int = 0  # bytes that an earlier try had stored


class Storing:
    """One file on its way into the store: `async with`, `store` its runs, `commit`; else all is taken back.

    A small file goes with `store_small` instead, and costs a fraction of a run of its own.

    With a `source`, the key of a put that can be resumed, what was stored is kept instead, unless `keeps` is cleared,
    and `kept` are the runs of an earlier try that this one goes on from.
    """

    def __init__(
        self, engine: Engine, name: bytes, replace: bool, size: int | None, flow: Flow, source: str = ""
    ) -> None:
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
        self._source = source
        self._unsaved = 0  # bytes stored since the last checkpoint
        self._published: list[tuple[str, int]] = []  # by a checkpoint whose records are not in the journal yet
        self.part_size = engine.settings.part_size
        self.keeps = bool(source)
        self.kept: list[records.Run] = []
        self.resumed = 0

    async def __aenter__(self) -> Storing:
        self._engine.claim(self._name, self._replace)
        try:
            interrupted = self._engine.registry.storing(self._name)
            self._check_room(interrupted.size if interrupted else 0)
            earlier = await self._take_up() if interrupted else None
        except BaseException:
            self._engine.disclaim(self._name)
            raise
        if earlier is not None:
            self._go_on(earlier)
        else:
            self.file_id = self._engine.registry.new_file_id()
            self._put_id = random.randbytes(8)
            self._created = time.time_ns()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if self._committed:
                return
            if self.keeps and self._announced and not isinstance(error, Changed):
                await finish(self._keep())
            else:
                await finish(self._take_back())
        finally:
            if self._shared_pack is not None:
                self._engine.shared.release(self._shared_pack, given_up=not self._committed)
            self._engine.disclaim(self._name)

    def _check_room(self, kept: int) -> None:
        """NoSpace before anything is stored, if that is certain; how far content shrinks is not known beforehand."""
        raw = self._engine.coding.choose().codec == "none"
        self._engine.check_room(max(0, (self._size or 0) - kept) if raw else 0)

    async def _take_up(self) -> Kept | None:
        # What comes over a connection comes from a place on, not into gaps.
        from_start = self._size is None
        return await take_up(self._engine, self._name, self._source, self.part_size, self._flow, from_start=from_start)

    def _go_on(self, earlier: Kept) -> None:
        self.file_id, self._put_id, self._created = earlier.file, earlier.put, earlier.created
        self._announced = True
        self.kept = earlier.runs
        for run in earlier.runs:
            self._md5s[run.seq] = b"".join(bytes.fromhex(md5) for _, _, _, _, md5 in run.parts)
            self._stored += sum(stored for _, _, stored, _, _ in run.parts)
            self.resumed += sum(size for _, size, _, _, _ in run.parts)

    def announce(self) -> None:
        """Enter the file as being stored: it has more than one run, which are journalled on the way."""
        if not self._announced:
            self._announced = True
            put_id = self._put_id.hex() if self._source else ""
            self._journal(records.Put(self.file_id, self._name, self.part_size, self._created, self._source, put_id))

    async def store_small(self, extents: Sequence[Extent], source: str | None = None) -> None:
        """Store all parts of a small file, which lie in these extents or are to be read to them from `source`.

        No extents stand for an empty file. The extents stay the caller's.
        """
        self.keeps = False  # there would be nothing to go on from
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
        self._unsaved += cost
        if not self._announced:
            return
        if self.keeps:
            if self._unsaved >= CHECKPOINT_BYTES or len(self._runs) > RUNS_PER_RECORD:
                self._later(self._save(*self._unsaved_runs()))
        elif len(self._runs) > RUNS_PER_RECORD:
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
        if self._staged or self._journalled or self._engine.registry.find(self._name):
            await finish(self._commit(size))
        else:
            await self._commit_ready(size, replaces=0)
        md5s = b"".join(self._md5s[seq] for seq in sorted(self._md5s))
        parts = len(md5s) // hashing.MD5_BYTES
        return Stored(self.file_id, self._name, size, self._stored, parts, hashing.etag(md5s), self.resumed)

    async def _commit(self, size: int) -> None:
        engine = self._engine
        if self._staged:
            await asyncio.to_thread(stores.publish_durably, engine.store, self._staged)
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
        written = self._engine.committer.submit([ready])
        try:
            await finish(written)
        finally:
            self._committed = not written.exception()

    def _journal_runs(self) -> None:
        """Move the gathered runs to the journal, so that no record grows with the file."""
        runs, self._runs = self._runs, {}
        self._journal(*(records.Parts(file=self.file_id, run=run) for run in runs.values()))

    def _journal(self, *batch: records.Record) -> None:
        self._later(self._engine.committer.commit(batch))

    def _later(self, job: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(job)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._journalled.append(task)

    def _unsaved_runs(self) -> tuple[list[tuple[str, int]], list[records.Run]]:
        """Take what the next checkpoint is to save out of what is gathered: staged packs, and their runs.

        The end marker stays: it belongs to this try, another one may end elsewhere.
        """
        runs = [run for run in self._runs.values() if run.parts]
        packs = {run.pack for run in runs}
        staged = [pair for pair in self._staged if pair[1] in packs]
        self._runs = {seq: run for seq, run in self._runs.items() if not run.parts}
        self._staged = [pair for pair in self._staged if pair[1] not in packs]
        self._published += staged
        self._unsaved = 0
        return staged, runs

    async def _save(self, staged: Sequence[tuple[str, int]], runs: Sequence[records.Run]) -> None:
        """A checkpoint: the packs first, durably, then the records, so that none names a pack that is not there."""
        await asyncio.to_thread(stores.publish_durably, self._engine.store, staged)
        await self._engine.committer.commit([records.Parts(file=self.file_id, run=run) for run in runs])
        saved = set(staged)
        self._published = [pair for pair in self._published if pair not in saved]

    async def _keep(self) -> None:
        """Leave what was stored to the put that goes on from here."""
        await asyncio.gather(*self._journalled, return_exceptions=True)
        try:
            await self._save(*self._unsaved_runs())
        except RequestError as error:
            log.warning("what a put has stored last cannot be kept: %s", error)
        if self._engine.committer.failed:
            return
        file = self._engine.registry.file(self.file_id)
        if file is None or not file.parts:
            await self._take_back()
        else:
            await self._discard_unsaved()
            log.info("file %d was cut short and is kept: %d bytes", file.id, file.size)

    async def _take_back(self) -> None:
        if self._engine.committer.failed:
            return  # the record may be on disk all the same: leave everything to the next start
        await asyncio.gather(*self._journalled, return_exceptions=True)
        await self._discard_unsaved()
        known = self._source and self._engine.registry.file(self.file_id)
        saved = self._engine.registry.packs_of(self.file_id) if known else []
        with suppress(RequestError):  # the next start drops it
            await self._engine.committer.commit([records.Drop(file=self.file_id)])
            await self._engine.unlink_unused(saved)

    async def _discard_unsaved(self) -> None:
        if self._tokens or self._staged or self._published:
            try:
                await asyncio.to_thread(self._discard)
            except OSError as error:
                log.warning("the packs of a given up put stay until the next start: %s", error)

    def _discard(self) -> None:
        unsaved = self._staged + self._published
        self._engine.store.discard([*self._tokens, *(token for token, _ in unsaved)])
        self._engine.store.delete([pack for _, pack in unsaved])


# --- from a path --------------------------------------------------------------------------------


async def put_path(
    engine: Engine,
    source: bytes,
    name: bytes | None,
    replace: bool,
    progress: Progress,
    flow: Flow,
    resumable: bool = False,
) -> Stored:
    """Store a file of the daemon's machine; the I/O processes read it themselves.

    With `resumable` what was stored is kept when it is cut short, and what is kept of this source is not read again.
    """
    if name is None:
        name = os.path.basename(source.rstrip(b"/"))
    check_name(name)
    async with opened(partial(engine.roots.open_source, source), os.close) as fd:
        before = os.fstat(fd)
        size = progress.total = before.st_size
        _check_honest(fd, size)
        key = key_of_path(fd, before, engine.settings.part_size) if resumable else ""
        async with Storing(engine, name, replace, size, flow, key) as storing:
            progress.bytes = progress.skipped = storing.resumed
            async with Window(len(engine.workers) + 1) as window:
                await _store_file(engine, storing, fd_path(fd), size, window, progress, flow)
            _check_unchanged(before, os.fstat(fd))
            return await storing.commit(size)


async def _store_file(
    engine: Engine, storing: Storing, source: str, size: int, window: Window, progress: Progress, flow: Flow
) -> None:
    if size <= engine.settings.small_bytes and not storing.kept:
        await _store_small_file(engine, storing, source, size, progress, flow)
        return
    if size > storing.part_size * engine.settings.run_parts:
        storing.announce()
    for stretch in missing(storing.kept, -(-size // storing.part_size)):
        seq = stretch.start
        while seq < stretch.stop:
            end = min(seq + engine.settings.run_parts, stretch.stop)
            run_size = min(end * storing.part_size, size) - seq * storing.part_size
            await window.room()
            extents = await engine.take(part_sizes(run_size, storing.part_size), flow)
            window.start_now(_store_run(storing, seq, extents, source, progress), partial(engine.budget.give, extents))
            seq += len(extents)


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


def _check_honest(fd: int, size: int) -> None:
    """Refuse what claims to be empty and is not, as files of /proc do: it would be stored as empty."""
    try:
        if not size and os.pread(fd, 1, 0):
            raise Denied("the source has content but no size, as files of /proc do; send its content with put -")
    except OSError as error:
        raise from_os_error(error, "reading the source") from error


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
    With a `key`, which goes with an unknown size, an upload that is cut short is kept, and one with the same key
    begins where it stopped, at byte `offset` of the content.
    """

    def __init__(
        self,
        engine: Engine,
        name: bytes,
        replace: bool,
        size: int | None,
        progress: Progress,
        flow: Flow,
        key: str = "",
    ) -> None:
        self._engine = engine
        self._storing = Storing(engine, name, replace, size, flow, key)
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
        self.offset = 0
        self.view = memoryview(b"")

    async def __aenter__(self) -> Upload:
        await self._storing.__aenter__()
        self.offset = self.received = self._storing.resumed
        self._seq = self.offset // self._storing.part_size
        self._progress.bytes = self._progress.skipped = self.offset
        self._engine.budget.on_pressure.add(self._flush)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._closed = True
        self._engine.budget.on_pressure.discard(self._flush)
        self.view = memoryview(b"")
        try:
            if self._storing.keeps and not self._window.failed.is_set():
                await finish(self._rescue())
            await self._window.cancel()
        finally:
            held = self._full + ([self._extent] if self._extent else [])
            self._full, self._extent = [], None
            self._engine.budget.give(held)
            await self._storing.__aexit__(kind, error, trace)

    def give_up(self) -> None:
        """The client does not want it any more: nothing of it is kept."""
        self._storing.keeps = False

    async def _rescue(self) -> None:
        """Store the full parts that have come: they are kept."""
        self._flush()
        with suppress(RequestError):  # those before it are kept
            await self._window.drain()

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
