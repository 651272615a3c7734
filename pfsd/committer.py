"""Group commit: records of all commands go to the journal together, then to the registry.

While one batch is written and synced, the next one gathers; one sync answers everyone in a batch. What has
been synced is applied to the registry in the order of the journal, and then those who wait are woken in that
order. Beside this the journal is compacted when most of it is dead. The committer must never know what
commands are; it knows of records only which file they are about and whether they free space.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from dataclasses import dataclass
from typing import TypeVar

from pfsd.aio import finish
from pfsd.errors import Internal, IoError, NoSpace, RequestError, StorageFailed, from_os_error
from pfsd.histogram import Histogram
from pfsd.journal import Journal
from pfsd.records import Delete, Drop, Parts, Put, Ready, Record, Removed, encode
from pfsd.registry import Registry, Snapshot

log = logging.getLogger(__name__)

Result = TypeVar("Result")

#: Below this many bytes a journal is not worth compacting.
COMPACT_ABOVE_BYTES = 1 << 20
#: Bytes of records made at one go while compacting, or one record: about a millisecond, for which everyone waits.
SNAPSHOT_BYTES = 32 << 10
#: Seconds of an append with its sync: from memory, over flash and disks, to a network that is slow.
COMMIT_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)


@dataclass(frozen=True)
class _Group:
    """The records of one commit: written together or not at all."""

    records: Sequence[Record]
    objects: list[bytes]
    done: asyncio.Future[None]

    @property
    def frees_space(self) -> bool:
        return all(isinstance(record, (Delete, Removed, Drop)) for record in self.records)


class Committer:
    """The only one who writes to the journal and who changes the registry of a running daemon.

    `on_full` is called when the disk is full and somebody wants to free space; it gives up a reserve, and says
    whether there was one. `on_failure` is called once when the journal cannot be trusted any more: the daemon has to
    exit. `is_ours` says whether the store is still this daemon's (blocking).
    """

    def __init__(
        self,
        journal: Journal,
        registry: Registry,
        *,
        on_full: Callable[[], object] = lambda: None,
        on_failure: Callable[[StorageFailed], object] = lambda error: None,
        is_ours: Callable[[], bool] = lambda: True,
        compact_above: int = COMPACT_ABOVE_BYTES,
    ) -> None:
        """`compact_above` is in bytes."""
        #: Records written since the start.
        self.records = 0
        #: Compactions finished since the start.
        self.compactions = 0
        #: How long appends took, with their syncs.
        self.times = Histogram(COMMIT_BOUNDS)
        self._journal = journal
        self._registry = registry
        self._on_full = on_full
        self._on_failure = on_failure
        self._is_ours = is_ours
        self._compact_above = compact_above
        # The threads are two, so that a compaction does not hold up commits. All appends and their syncs are
        # on one thread.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._compact_thread = ThreadPoolExecutor(1, thread_name_prefix="compact")
        for thread in (self._thread, self._compact_thread):
            thread.submit(int)  # started now: later there might be no room for another thread
        self._turn = asyncio.Lock()  # held while what is in the journal and in the registry differs
        self._waiting: list[_Group] = []
        self._writer: asyncio.Task[None] | None = None
        self._compacting: asyncio.Task[bool] | None = None
        self._compacted_size = 0  # of the journal after the last compaction, or when one last failed
        self._must_compact = False
        self._lost: dict[int, RequestError] = {}  # file -> why a record was lost that others build upon
        self._failure: StorageFailed | None = None
        self._closed = False

    # --- committing ---

    async def commit(self, records: Sequence[Record]) -> None:
        """Return when the records are durable and applied; all of them, or none.

        The caller has made sure that they fit the registry, and that nobody else makes them unfit meanwhile.
        The cancellation of a caller does not stop the write. NoSpace or IoError: none was written, or, when
        the journal has `failed`, it is not known. RecordError: not a record that can be written.
        """
        if records:
            await self.submit(records)

    def submit(self, records: Sequence[Record]) -> asyncio.Future[None]:
        """As `commit`, for callers that have something to do before they wait."""
        objects = [encode(record) for record in records]
        if self._failure is not None:
            raise _io_error(self._failure)
        if self._closed:
            raise IoError("the journal is closed")
        group = _Group(records, objects, asyncio.get_running_loop().create_future())
        self._waiting.append(group)
        if self._writer is None:
            # In a context of its own: it works for all, and not just for who comes first.
            self._writer = asyncio.create_task(self._write_waiting(), context=Context())
        return group.done

    def forgive(self, file_id: int) -> None:
        """Let records of a file be written again after some were refused: its caller goes on from the registry."""
        self._lost.pop(file_id, None)

    async def look(self) -> None:
        """See whether the store is still in its place; if not, the journal has `failed`."""
        if self._is_over():
            return
        try:
            await self._in(self._thread, self._check_place)
        except StorageFailed as error:
            self._fail(error, [])

    def _check_place(self) -> None:
        if not (self._is_ours() and self._journal.is_in_place()):
            raise StorageFailed(f"{self._journal.path} or the lock beside it was moved, removed or replaced")

    async def flush(self) -> None:
        """Return when everything handed in so far has been written, or has failed."""
        while self._writer is not None:
            await asyncio.wait({self._writer})

    async def close(self) -> None:
        """Flush, give up a compaction under way, and close the journal."""
        self._closed = True
        await self.flush()
        if self._compacting is not None:
            await asyncio.wait({self._compacting})
        self._thread.shutdown()
        self._compact_thread.shutdown()
        self._journal.close()

    @property
    def failed(self) -> bool:
        """Whether the journal cannot be trusted any more: it is not known what of it is on the disk."""
        return self._failure is not None

    @property
    def journal_size(self) -> int:
        """Bytes in the journal."""
        return self._journal.size

    @property
    def syncs(self) -> int:
        """How often the journal was synced."""
        return self._journal.syncs

    async def _write_waiting(self) -> None:
        try:
            while self._waiting:
                async with self._turn:
                    batch, self._waiting = self._waiting, []
                    await self._write(self._without_lost(batch))
                self.compact_if_worthwhile()
        finally:
            self._writer = None

    async def _write(self, batch: list[_Group]) -> None:
        if self._failure is not None:
            self._fail(self._failure, batch)
            return
        try:
            await self._append(batch)
        except StorageFailed as error:
            self._fail(error, batch)
        except OSError as error:
            refusal = from_os_error(error, "writing to the journal")
            log.error("%s: %d commits fail", refusal, len(batch))
            await self._write_after_refusal(batch, refusal)
        else:
            self._apply(batch)

    async def _write_after_refusal(self, batch: list[_Group], refusal: RequestError) -> None:
        """Nothing of a batch was written. On a full disk, what frees space gets another chance."""
        again = [group for group in batch if isinstance(refusal, NoSpace) and group.frees_space]
        for group in batch:
            if group not in again:
                self._refuse(group, refusal)
        if not again:
            return
        try:
            self._on_full()
            await self._append(again)
        except StorageFailed as error:
            self._fail(error, again)
        except OSError as error:
            for group in again:
                self._refuse(group, from_os_error(error, "writing to the journal"))
        else:
            self._apply(again)

    async def _append(self, batch: list[_Group]) -> None:
        objects = [encoded for group in batch for encoded in group.objects]
        if objects:
            began = time.perf_counter()
            await self._in(self._thread, self._journal.append, objects)
            self.times.note(time.perf_counter() - began)
            self.records += len(objects)

    def _apply(self, batch: list[_Group]) -> None:
        for group in batch:
            try:
                for record in group.records:
                    self._registry.apply(record)
                    if isinstance(record, Drop):
                        self._lost.pop(record.file, None)
            except Exception as error:
                # A bug of the caller. The next start would refuse what the journal now holds: replace it.
                log.exception("a record was written that does not fit the registry")
                self._must_compact = True
                _settle(group, Internal(f"the registry refuses what was committed: {error}"))
            else:
                _settle(group, None)

    # --- failing ---

    def _without_lost(self, batch: list[_Group]) -> list[_Group]:
        """Refuse what builds upon a record that was never written: without that it would be damage."""
        sound = []
        for group in batch:
            reasons = [self._lost.get(record.file) for record in group.records if isinstance(record, (Parts, Ready))]
            reason = next(filter(None, reasons), None)
            if reason is None:
                sound.append(group)
            else:
                self._refuse(group, reason)
        return sound

    def _refuse(self, group: _Group, reason: RequestError) -> None:
        for record in group.records:
            if isinstance(record, (Put, Parts)):
                self._lost[record.file] = reason
            elif isinstance(record, Drop):
                self._lost.pop(record.file, None)
        _settle(group, reason)

    def _fail(self, error: StorageFailed, batch: list[_Group]) -> None:
        if self._failure is None:
            log.critical("%s; nothing is committed any more", error)
            self._failure = error
            self._on_failure(error)
        for group in batch:
            _settle(group, _io_error(error))

    # --- compacting ---

    def compact_if_worthwhile(self) -> bool:
        """Start a compaction in the background if most of the journal is dead; whether it did so."""
        if self._compacting is not None or self._is_over() or not self._is_worthwhile():
            return False
        self._start_compaction()
        return True

    async def compact(self) -> bool:
        """Compact now, beside commits, or join the compaction under way; False when it failed."""
        return await asyncio.shield(self._compacting or self._start_compaction())

    def _is_worthwhile(self) -> bool:
        size = self._journal.size
        # The second bound ends what else could go round in circles when live bytes are estimated too low, or
        # when the disk is too full to compact.
        wasteful = size > self._compact_above and size > 2 * self._registry.live_bytes
        return self._must_compact or (wasteful and size > 2 * self._compacted_size)

    def _start_compaction(self) -> asyncio.Task[bool]:
        self._compacting = asyncio.create_task(self._compact(), context=Context())
        return self._compacting

    async def _compact(self) -> bool:
        before = self._journal.size
        must, self._must_compact = self._must_compact, False
        try:
            finished = await self._new_generation_despite_full_disk()
        except StorageFailed as error:
            finished = False
            self._fail(error, [])
        except OSError as error:
            finished = False
            log.warning("the journal could not be compacted, and stays: %s", error)
        finally:
            self._compacted_size = self._journal.size
            self._compacting = None
        if finished:
            self.compactions += 1
            log.info("journal compacted from %d to %d bytes", before, self._journal.size)
        else:
            self._must_compact |= must
        return finished

    def _is_over(self) -> bool:
        return self._closed or self.failed

    async def _new_generation_despite_full_disk(self) -> bool:
        try:
            return await self._new_generation()
        except OSError as error:
            if error.errno != errno.ENOSPC or not self._on_full():
                raise
            return await self._new_generation()

    async def _new_generation(self) -> bool:
        async with self._turn:
            if self._is_over():
                return False
            compaction = await self._in(self._thread, self._journal.begin_compaction)
            snapshot = self._registry.snapshot()
        try:
            while objects := _encode_some(snapshot):
                await self._in(self._compact_thread, compaction.write, objects)
                if self._is_over():
                    return False
            while compaction.missed_many:
                await self._in(self._compact_thread, compaction.catch_up)
            await self._in(self._compact_thread, compaction.sync)
            async with self._turn:
                await self._in(self._thread, self._check_place)  # or it would replace the journal of another daemon
                await self._in(self._thread, compaction.finish)
            return True
        finally:
            snapshot.close()
            await self._in(self._thread, compaction.abort)

    async def _in(self, thread: ThreadPoolExecutor, work: Callable[..., Result], *args: object) -> Result:
        """Run blocking work in a thread; to its end, since it cannot be stopped."""
        loop = asyncio.get_running_loop()

        async def run() -> Result:
            return await loop.run_in_executor(thread, work, *args)

        return await finish(run())


def _encode_some(snapshot: Snapshot) -> list[bytes]:
    """The next records of a snapshot in JSON, as much as can be made at one go; none at its end."""
    objects: list[bytes] = []
    size = 0
    for record in snapshot:
        objects.append(encode(record))
        size += len(objects[-1])
        if size >= SNAPSHOT_BYTES:
            break
    return objects


def _io_error(error: StorageFailed) -> IoError:
    return IoError(f"{error.message}; the daemon stops")


def _settle(group: _Group, error: RequestError | None) -> None:
    if group.done.done():
        return  # whoever waited was cancelled
    if error is None:
        group.done.set_result(None)
    else:
        group.done.set_exception(error)
