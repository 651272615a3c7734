"""What all commands work on: the registries, the store, the memory budget and the I/O processes.

The rules that keep commands out of each other's way live here and nowhere else:

* a name that is being given to a file is *claimed*, so that of two puts of one name one fails at once;
* a file that is about to change (delete, rename, being replaced) is *locked* from the check to the commit;
* a file that is being read is *pinned*: its packs stay until the last reader is done;
* a pack that small files share is *held* until each of them is committed or given up (see `shared`).
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence, Set
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

from pfsd import records, stores, work
from pfsd.budget import Extent, MemoryBudget
from pfsd.coding import Policy
from pfsd.commands.shared import SMALL_BYTES, SharedPacks
from pfsd.committer import Committer
from pfsd.errors import Exists, NotFound, NotReady, RequestError
from pfsd.fair import Flow
from pfsd.gather import Gatherer
from pfsd.paths import Roots
from pfsd.protocol import show
from pfsd.registry import File, Part, Registry, Status
from pfsd.workers import Workers

log = logging.getLogger(__name__)

#: A stored file as clients name it: an id or a name.
FileRef = int | bytes

#: Packs unlinked by one task, so that a huge delete takes turns with other commands.
UNLINK_BATCH = 256
#: What unlinking one pack counts in the queue for a process, in bytes.
UNLINK_COST = 64 << 10
#: Loads of up to SMALL_BYTES make their trip to a process together: at most so many, and so many bytes.
SMALL_LOADS = 128
SMALL_LOADS_BYTES = 4 << 20
#: What a small load costs in the queue beside its bytes.
LOAD_COST = 16 << 10


@dataclass(frozen=True)
class Settings:
    """How files are stored from now on."""

    part_size: int
    run_parts: int

    @property
    def small_bytes(self) -> int:
        """Files of up to this many bytes share packs; all of such a file fits in memory at once."""
        return min(SMALL_BYTES, self.run_parts * self.part_size)


@dataclass(slots=True)
class Progress:
    """How far a command is; written by the command, read by whoever shows it. `total` None is not known yet."""

    total: int | None = None
    bytes: int = 0
    skipped: int = 0  # of these bytes, what an earlier try had done
    parts: int = 0


@dataclass
class Engine:
    """Everything a command needs."""

    store_id: bytes
    registry: Registry
    committer: Committer
    store: stores.PackStore
    budget: MemoryBudget
    workers: Workers
    roots: Roots
    settings: Settings
    coding: Policy
    _claimed: set[bytes] = field(default_factory=set)
    _locks: WeakValueDictionary[int, asyncio.Lock] = field(default_factory=WeakValueDictionary)
    _pins: Counter[int] = field(default_factory=Counter)
    _unpinned: dict[int, asyncio.Event] = field(default_factory=dict)
    _background: set[asyncio.Task[int]] = field(default_factory=set)
    #: NoSpace unless something of at least so many stored bytes can fit on the disk.
    check_room: Callable[[int], None] = lambda size: None
    #: Called with packs in which something has died.
    on_waste: Callable[[Iterable[int]], None] = lambda packs: None

    def __post_init__(self) -> None:
        #: Where small files are stored together.
        self.shared = SharedPacks(self.store, self.workers, self.coding, self.registry.new_pack_id, self._let_go)
        self._small_loads: Gatherer[work.LoadBatch, work.LoadedBatch | work.Failure] = Gatherer(
            self._load_together, at_once=len(self.workers), most_items=SMALL_LOADS, most_cost=SMALL_LOADS_BYTES
        )
        self._small_flow = Flow()  # all small loads together count as one command

    def code_with(self, policy: Policy) -> None:
        """How files are coded from now on; those on their way go on as they began."""
        self.coding = self.shared.coding = policy

    # --- finding ---

    def lookup(self, ref: FileRef) -> File:
        """The file a client means, whatever its status; NotFound or NotReady (its name is just being stored)."""
        if isinstance(ref, int):
            file = self.registry.file(ref)
            if file is None:
                raise NotFound(f"no file has id {ref} (a name of digits needs quotes)", id=ref)
            return file
        file = self.registry.find(ref)
        if file is not None:
            return file
        if ref in self._claimed:
            raise NotReady("a file of this name is being stored", name=ref)
        kept = self.registry.storing(ref)
        if kept is not None:
            raise NotReady(f"the put of this name was cut short: resume it, or delete {kept.id}", id=kept.id, name=ref)
        raise NotFound("no file has this name", name=ref)

    def ready(self, ref: FileRef) -> File:
        """The file a client means, if it can be read; NotFound or NotReady."""
        file = self.lookup(ref)
        if self.is_interrupted(file):
            raise NotReady(f"the put of file {file.id} was cut short: resume it, or delete {file.id}", id=file.id)
        if file.status in (Status.STORING, Status.DELETING):
            what = "stored" if file.status is Status.STORING else "deleted"
            raise NotReady(f"file {file.id} is being {what}", id=file.id)
        return file

    def is_interrupted(self, file: File) -> bool:
        """Whether the put of a file was cut short, and nobody is going on with it."""
        known = self.registry.file(file.id) is file
        return known and file.status is Status.STORING and file.name not in self._claimed

    # --- staying out of each other's way ---

    def claim(self, name: bytes, replace: bool) -> None:
        """Hold a name for a file that will have it, until it is `disclaim`ed. Exists when it is taken."""
        if name in self._claimed:
            raise Exists("this name is just being given to another file", name=name)
        taken = self.registry.find(name)
        if taken is not None and not replace:
            raise Exists("this name is taken; replace=yes overrides", id=taken.id, name=name)
        self._claimed.add(name)

    def disclaim(self, name: bytes) -> None:
        """The file has its name now, or will never have it."""
        self._claimed.discard(name)

    @asynccontextmanager
    async def locked(self, files: Sequence[File]) -> AsyncIterator[None]:
        """Hold files between the check of their state and the commit that changes it."""
        async with AsyncExitStack() as held:
            for file_id in sorted({file.id for file in files}):  # one order for all, so that nobody waits in a ring
                await held.enter_async_context(self._locks.setdefault(file_id, asyncio.Lock()))
            yield

    @contextmanager
    def pinned(self, file: File) -> Iterator[None]:
        """Keep the packs of a file while it is read."""
        self._pins[file.id] += 1
        try:
            yield
        finally:
            self._pins[file.id] -= 1
            if not self._pins[file.id]:
                del self._pins[file.id]
                if event := self._unpinned.pop(file.id, None):
                    event.set()

    async def unpinned(self, file: File) -> None:
        """Wait until nobody reads the file."""
        if self._pins[file.id]:
            await self._unpinned.setdefault(file.id, asyncio.Event()).wait()

    # --- packs ---

    async def remove(self, file: File) -> int:
        """Forget a file that is `deleting`, once nobody reads it, and unlink the packs that nobody else needs.

        Returns the bytes freed. What fails is logged and done at the next start, which knows packs of nobody.
        """
        await self.unpinned(file)
        packs = self.registry.packs_of(file.id)
        try:
            await self.committer.commit([records.Removed(file=file.id)])
        except RequestError as error:
            log.warning("deleted file %d is forgotten only at the next start: %s", file.id, error)
            return 0
        return await self.unlink_unused(packs)

    async def unlink_unused(self, packs: Sequence[int]) -> int:
        """Unlink those of these packs that no file needs; returns the bytes freed."""
        unused = [pack for pack in packs if not self.registry.is_used(pack) and not self.shared.is_held(pack)]
        freed, flow = 0, Flow()
        try:
            for first in range(0, len(unused), UNLINK_BATCH):
                batch = tuple(unused[first : first + UNLINK_BATCH])
                freed += await self.workers.run(work.delete_packs, batch, flow, UNLINK_COST * len(batch))
        except RequestError as error:
            log.warning("unused packs stay until the next start: %s", error)
        self.on_waste(packs)
        return freed

    async def give_up(self, file: File) -> int:
        """Drop an interrupted put, whose name the caller has claimed; returns the bytes freed."""
        packs = self.registry.packs_of(file.id)
        await self.committer.commit([records.Drop(file=file.id)])
        return await self.unlink_unused(packs)

    def remove_soon(self, file: File) -> asyncio.Task[int]:
        """`remove` in the background."""
        return self.in_background(self.remove(file))

    def unlink_unused_soon(self, packs: Sequence[int]) -> asyncio.Task[int]:
        """`unlink_unused` in the background."""
        return self.in_background(self.unlink_unused(packs))

    def _let_go(self, pack: int, wasted: bool) -> None:
        """A pack is not held any more; `wasted` if something in it belongs to no file."""
        if self.committer.failed:
            return  # it is not known which records were written
        if not self.registry.is_used(pack):
            self.unlink_unused_soon([pack])
        elif wasted:
            self.on_waste([pack])

    def in_background(self, job: Coroutine[Any, Any, int]) -> asyncio.Task[int]:
        """Start a job that the daemon waits for when it stops."""
        task = asyncio.create_task(job)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def is_pinned(self, file: File) -> bool:
        """Whether the file is being read."""
        return bool(self._pins[file.id])

    async def settle(self) -> None:
        """Wait for background work."""
        while self._background:
            await asyncio.wait(self._background)

    async def take(self, sizes: Sequence[int], flow: Flow) -> list[Extent]:
        """Memory for the parts of a run: all of them, or under pressure a good share, so that runs stay long."""
        # Counted in bytes, since a file may have been stored with parts of another size.
        share = self.settings.run_parts // 2 * self.settings.part_size
        return await self.budget.take(sizes, flow, least=max(1, min(len(sizes), share // sizes[0])))

    async def load(
        self, parts: Sequence[Part], extents: Sequence[Extent], flow: Flow, into: Target | None = None
    ) -> work.LoadedBatch:
        """Load and check parts of one pack into their extents, and on into a target. Notes damage.

        Small loads make their trip together and count as one command, unless their flow is a patient one.
        """
        batch = work.LoadBatch(
            pack=parts[0].pack,
            parts=tuple(
                work.PartOut(
                    self.store_id,
                    part.file,
                    part.seq,
                    extent.offset,
                    work.PartRow(part.pack_offset, part.head, part.size, part.stored, part.codec, part.md5),
                )
                for part, extent in zip(parts, extents, strict=True)
            ),
        )
        if into is not None:
            batch = batch._replace(
                target=into.path,
                target_offset=into.offset,
                skip=into.skip,
                length=into.length,
                sync=into.sync,
                resume=into.resume,
            )
        cost = sum(part.size for part in parts)
        if cost <= self.settings.small_bytes and flow.patience == 1:
            loaded = await self._small_loads.add(batch, cost + LOAD_COST)
        else:
            (loaded,) = await self.workers.run(work.load_batches, (batch,), flow, cost)
        if isinstance(loaded, work.Failure):
            raise loaded.error()
        if loaded.bad:
            await self.note_checked(parts[0].file, bad={part.seq for part in loaded.bad})
        return loaded

    async def _load_together(self, batches: Sequence[work.LoadBatch]) -> tuple[work.LoadedBatch | work.Failure, ...]:
        cost = sum(LOAD_COST + part.row.size for batch in batches for part in batch.parts)
        return await self.workers.run(work.load_batches, tuple(batches), self._small_flow, cost)

    async def note_checked(self, file_id: int, *, bad: Set[int] = frozenset(), sound: Set[int] = frozenset()) -> None:
        """Enter parts that turned out bad, or sound after all, into the registry, unless that is known."""
        file = self.registry.file(file_id)
        if file is None:
            return
        async with self.locked([file]):  # runs of one file find damage side by side
            if self.registry.file(file_id) is not file or file.status not in (Status.READY, Status.DAMAGED):
                return
            known = set(self.registry.bad_parts(file_id))
            now = (known | bad) - sound
            if now == known:
                return
            if now - known:
                log.warning("file %d, %s, has damaged parts: %s", file_id, show(file.name), sorted(now - known))
            if known - now:
                log.info(
                    "file %d, %s, has parts that are sound again: %s", file_id, show(file.name), sorted(known - now)
                )
            with suppress(RequestError):  # whoever reads them next finds out again
                await self.committer.commit([records.Damage(file=file_id, parts=sorted(now))])


@dataclass(frozen=True)
class Target:
    """Where in a file of the daemon's machine the bytes of a run go."""

    path: str
    offset: int
    skip: int
    length: int
    sync: bool  # it will be synced: let the disk begin
    resume: bool = False  # some of it may be there already


def fd_path(fd: int) -> str:
    """A path by which the I/O processes open what the daemon has open: the same file, whatever its name is now."""
    return f"/proc/{os.getpid()}/fd/{fd}"
