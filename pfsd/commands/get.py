"""get and cat: parts come back out of the store, checked, to a path of the daemon's machine or to a connection."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, chain, groupby, islice
from typing import Any, NamedTuple

from pfsd import hashing
from pfsd.aio import Window, finish, opened
from pfsd.budget import Extent
from pfsd.commands.engine import Engine, FileRef, Progress, Target, fd_path
from pfsd.errors import BY_CODE, Partial, RequestError
from pfsd.fair import Flow
from pfsd.paths import TargetFile
from pfsd.registry import File, Part
from pfsd.work import BadPart

#: A reader that took nothing for this long gives back what was loaded for it, if others wait for memory.
STALL_SECONDS = 0.25
#: Content goes to a connection in pieces of at most this many bytes: what a reader that stands still can pin.
SEND_BYTES = 1 << 20

Send = Callable[[memoryview], Coroutine[Any, Any, None]]


@dataclass(frozen=True)
class Damage:
    """A stretch of content that could not be read, and went out as zeros."""

    offset: int
    length: int
    seq: int


@dataclass(frozen=True)
class Fetched:
    """What a get delivered; `bytes` is what was written or sent, `resumed` what of it was there from an earlier try."""

    id: int
    name: bytes
    size: int
    etag: str
    bytes: int
    damage: list[Damage]
    resumed: int = 0

    def error(self) -> Partial | None:
        """Partial when zeros stand in for content."""
        if not self.damage:
            return None
        lost = sum(damage.length for damage in self.damage)
        return Partial(
            f"{lost} bytes could not be read and are zeros; the rows say which",
            id=self.id,
            bad=len(self.damage),
        )


@dataclass(frozen=True)
class Range:
    """A stretch of a file's content, cut to the file's size."""

    start: int
    end: int

    @classmethod
    def of(cls, file: File, offset: int | None, length: int | None) -> Range:
        """What a client asked for; past the end is no error, just less."""
        start = min(offset or 0, file.size)
        return cls(start, file.size if length is None else min(start + length, file.size))

    @property
    def length(self) -> int:
        """Bytes in the range."""
        return self.end - self.start


def plan_runs(engine: Engine, file: File, wanted: Range) -> Iterator[list[Part]]:
    """The parts that hold a range, in runs that one task can load: from one pack, and not too many."""
    if not wanted.length:
        return
    first, last = wanted.start // file.part_size, (wanted.end - 1) // file.part_size
    for _, same_pack in groupby(engine.registry.parts(file.id, first, last), key=lambda part: part.pack):
        while run := list(islice(same_pack, engine.settings.run_parts)):
            yield run


def _overlap(part: Part, wanted: Range) -> Range:
    """Which stretch of the content this part contributes to a range."""
    return Range(max(part.offset, wanted.start), min(part.offset + part.size, wanted.end))


def bad_part_error(file: File, bad: BadPart) -> RequestError:
    """The error for the first part that could not be read."""
    return BY_CODE[bad.code](
        f"part {bad.seq} of the file: {bad.message}",
        id=file.id,
        part=bad.seq,
        offset=bad.seq * file.part_size,
        name=file.name,
    )


# --- to a path ----------------------------------------------------------------------------------


async def get_path(
    engine: Engine,
    ref: FileRef,
    target: bytes,
    offset: int | None,
    length: int | None,
    replace: bool,
    zero_damage: bool,
    sync: bool,
    progress: Progress,
    flow: Flow,
    resume: bool = False,
) -> Fetched:
    """Write a file, or a range of it, to a path of the daemon's machine; nothing appears there unless all is well.

    With `zero_damage` unreadable parts become zeros instead of an error. With `sync` the content is on the disk
    before the name appears; without, a loss of power soon afterwards may cut it short, as it may with cp. With
    `resume` what was written stays for the next try when this one is cut short.
    """
    file = engine.ready(ref)
    with engine.pinned(file):
        wanted = Range.of(file, offset, length)
        progress.total = wanted.length
        etag = engine.registry.etag(file.id)
        kept_as = _partial_id(engine, file, etag, wanted) if resume else None
        create = partial(TargetFile.create, engine.roots, target, replace, wanted.length, kept_as)
        async with opened(create, TargetFile.close) as out:
            damage, resumed = await _fill(engine, file, wanted, out, zero_damage, sync, progress, flow)
            await finish(asyncio.to_thread(out.commit, sync=sync))
        return Fetched(file.id, file.name, file.size, etag, wanted.length, damage, resumed)


def _partial_id(engine: Engine, file: File, etag: str, wanted: Range) -> bytes:
    """What a partial target has in its name: of another file, content or range it is another one."""
    facts = f"{engine.store_id.hex()} {file.id} {etag} {wanted.start} {wanted.end}"
    return b"%d.%s" % (file.id, hashing.md5(facts.encode()).hex()[:16].encode())


async def _fill(
    engine: Engine,
    file: File,
    wanted: Range,
    out: TargetFile,
    zero_damage: bool,
    sync: bool,
    progress: Progress,
    flow: Flow,
) -> tuple[list[Damage], int]:
    """Returns what is damaged, and how many bytes the target held already."""
    damage: list[Damage] = []
    resumed = 0
    path = fd_path(out.fd)

    async def load_run(run: Sequence[Part], extents: Sequence[Extent]) -> None:
        nonlocal resumed
        start, end = _overlap(run[0], wanted).start, _overlap(run[-1], wanted).end
        at = start - wanted.start
        into = Target(path, at, start - run[0].offset, end - start, sync, resume=at < out.found)
        bad, held = await engine.load(run, extents, flow, into)
        resumed += held
        if bad and not zero_damage:
            raise bad_part_error(file, bad[0])
        damage.extend(_damage(run, bad, wanted))
        progress.bytes += end - start
        progress.parts += len(run)

    async with Window(len(engine.workers) + 1) as window:
        for run in plan_runs(engine, file, wanted):
            while run:
                await window.room()
                extents = await engine.take([part.size for part in run], flow)
                window.start_now(load_run(run[: len(extents)], extents), partial(engine.budget.give, extents))
                run = run[len(extents) :]
    return sorted(damage, key=lambda lost: lost.offset), resumed


def _damage(run: Sequence[Part], bad: Sequence[BadPart], wanted: Range) -> Iterator[Damage]:
    for part in run:
        if part.seq in {lost.seq for lost in bad}:
            lost = _overlap(part, wanted)
            yield Damage(lost.start, lost.length, part.seq)


# --- to a connection ----------------------------------------------------------------------------


async def stream(
    engine: Engine,
    ref: FileRef,
    offset: int | None,
    length: int | None,
    send: Send,
    zero_damage: bool,
    progress: Progress,
    flow: Flow,
) -> Fetched:
    """Send a file, or a range of it, piece by piece; the next runs are loaded while some are sent.

    `send` returns when the connection no longer needs the memory it was given.
    """
    file = engine.ready(ref)
    with engine.pinned(file):
        wanted = Range.of(file, offset, length)
        progress.total = wanted.length
        if file.parts == 1 and wanted.length:
            damage = await _send_only_part(engine, file, wanted, send, zero_damage, flow)
            progress.bytes, progress.parts = wanted.length, 1
            return Fetched(file.id, file.name, file.size, engine.registry.etag(file.id), wanted.length, damage)
        outgoing = _Outgoing(engine, file, send, zero_damage, progress, flow)
        try:
            position = wanted.start
            while position < wanted.end:
                position += await outgoing.send_some(Range(position, wanted.end))
        finally:
            outgoing.drop_ahead()
        return Fetched(file.id, file.name, file.size, engine.registry.etag(file.id), wanted.length, outgoing.damage)


async def _send_only_part(
    engine: Engine, file: File, wanted: Range, send: Send, zero_damage: bool, flow: Flow
) -> list[Damage]:
    """Send from a file of one part, for which nothing can be loaded ahead; returns what is damaged."""
    (part,) = engine.registry.parts(file.id)
    extents = await engine.take([part.size], flow)
    try:
        bad = (await engine.load([part], extents, flow)).bad
        if bad and not zero_damage:
            raise bad_part_error(file, bad[0])
        view = engine.budget.view(extents[0])[wanted.start : wanted.end]
        for first in range(0, len(view), SEND_BYTES):
            await send(view[first : first + SEND_BYTES])
    finally:
        engine.budget.give(extents)
    return list(_damage([part], bad, wanted))


class _Loaded(NamedTuple):
    """Some runs in memory. Parts leave it at the front as they are sent, or all at once when memory is needed."""

    parts: deque[tuple[Part, Extent]]
    end: int
    bad: tuple[BadPart, ...]


class _Outgoing:
    """One stream of content to a connection."""

    def __init__(
        self, engine: Engine, file: File, send: Send, zero_damage: bool, progress: Progress, flow: Flow
    ) -> None:
        self._engine = engine
        self._file = file
        self._send = send
        self._zero_damage = zero_damage
        self._progress = progress
        self._flow = flow
        self._ahead: asyncio.Task[_Loaded] | None = None
        self.damage: list[Damage] = []

    async def send_some(self, wanted: Range) -> int:
        """Send some of the range from its start; returns how many bytes."""
        self._ahead = self._ahead or asyncio.ensure_future(self._load(wanted))
        await asyncio.wait({self._ahead})
        loaded, self._ahead = self._ahead.result(), None
        try:
            if loaded.bad and not self._zero_damage:
                raise bad_part_error(self._file, loaded.bad[0])
            if loaded.end < wanted.end:
                self._ahead = asyncio.ensure_future(self._load(Range(loaded.end, wanted.end)))
            sent = 0
            while loaded.parts:
                part, extent = loaded.parts.popleft()
                try:
                    sent += await self._send_part(part, extent, wanted, loaded)
                finally:
                    self._engine.budget.give([extent])
            return sent
        finally:
            self._give(loaded)

    def drop_ahead(self) -> None:
        """Give back what was loaded and will not be sent, as soon as its process is done with it."""
        if self._ahead is not None:
            self._ahead.add_done_callback(self._give_unsent)
            self._ahead.cancel()
            self._ahead = None

    def _give_unsent(self, ahead: asyncio.Task[_Loaded]) -> None:
        if not ahead.cancelled() and not ahead.exception():
            self._give(ahead.result())

    async def _load(self, wanted: Range) -> _Loaded:
        """Load a run in each process, or less if memory is short."""
        runs = list(islice(plan_runs(self._engine, self._file, wanted), len(self._engine.workers)))
        extents = await self._engine.take([part.size for run in runs for part in run], self._flow)
        places = list(zip(chain.from_iterable(runs), extents, strict=False))
        starts = accumulate(map(len, runs), initial=0)
        loads = [places[start : start + len(run)] for start, run in zip(starts, runs, strict=False)]
        try:
            bad = await self._load_all([load for load in loads if load])
        except BaseException:
            self._engine.budget.give(extents)
            raise
        return _Loaded(deque(places), _overlap(places[-1][0], wanted).end, bad)

    async def _load_all(self, loads: Sequence[Sequence[tuple[Part, Extent]]]) -> tuple[BadPart, ...]:
        """Load runs side by side; returns, or raises, when no process is at work on them any more."""
        jobs = (
            self._engine.load([part for part, _ in load], [extent for _, extent in load], self._flow) for load in loads
        )
        bad: list[BadPart] = []
        for loaded in await asyncio.gather(*jobs, return_exceptions=True):
            if isinstance(loaded, BaseException):
                raise loaded
            bad += loaded.bad
        return tuple(bad)

    async def _send_part(self, part: Part, extent: Extent, wanted: Range, rest: _Loaded) -> int:
        piece = _overlap(part, wanted)
        self.damage += _damage([part], rest.bad, wanted)
        view = self._engine.budget.view(extent)[piece.start - part.offset : piece.end - part.offset]
        for first in range(0, len(view), SEND_BYTES):
            content = view[first : first + SEND_BYTES]
            sending = asyncio.ensure_future(self._send(content))
            try:
                while not (await asyncio.wait({sending}, timeout=STALL_SECONDS))[0]:
                    if self._engine.budget.pressed:
                        self._give(rest)
                        self.drop_ahead()
            finally:
                sending.cancel()
                # Only then may the memory be given back: until it is told, the connection sends from it.
                await finish(asyncio.wait({sending}))
            sending.result()
            self._progress.bytes += len(content)
        self._progress.parts += 1
        return piece.length

    def _give(self, loaded: _Loaded) -> None:
        self._engine.budget.give([extent for _, extent in loaded.parts])
        loaded.parts.clear()
