"""Puts that were cut short and are to go on: what is kept of them, and whether it can be relied upon.

Only puts that ask for it are kept. The journal has a key for their source; the put that comes with an equal key, under
the same name, takes the kept runs as its own. How parts are stored, and content, are no business of this module.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from pfsd import hashing, records, stores
from pfsd.aio import Window, finish
from pfsd.budget import Extent
from pfsd.commands.engine import Engine
from pfsd.errors import Corrupt, Missing, UsageError
from pfsd.fair import Flow
from pfsd.records import Run
from pfsd.registry import File, Part, Registry, Source

log = logging.getLogger(__name__)

#: An interrupted put that began longer ago than this is dropped at the start of the daemon.
KEEP_SECONDS = 7 * 24 * 3600

_KEY = re.compile(rb"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Kept:
    """An interrupted put to go on with; its runs are in order of their seq."""

    file: int
    created: int
    put: bytes
    runs: list[Run]


# --- keys ---------------------------------------------------------------------------------------


def key_of_path(fd: int, status: os.stat_result, part_size: int) -> str:
    """The key of an open file of this machine: another one when the file was replaced, changed or moved.

    `status` is what the put takes the file's size from: a key of a later one might stand for content of another size.
    """
    facts = (
        os.readlink(b"/proc/self/fd/%d" % fd),
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,  # the time of a change can be set back, this one cannot
        part_size,
    )
    return f"path:{hashing.md5(repr(facts).encode()).hex()}"


def key_of_upload(key: bytes) -> str:
    """The key that a client chose for its content. UsageError when it is none."""
    if not _KEY.fullmatch(key) or key.lower() in (b"yes", b"no"):
        raise UsageError(
            "resume= of an upload is a KEY that stands for this very content: 1 to 64 of A-Z a-z 0-9 - _ . "
            "and neither yes nor no"
        )
    return f"upload:{key.decode()}"


# --- going on -----------------------------------------------------------------------------------


async def take_up(
    engine: Engine, name: bytes, key: str, part_size: int, flow: Flow, *, from_start: bool
) -> Kept | None:
    """What is kept under a name that the caller has claimed, if it has this key; anything else there is dropped.

    Only runs that are in the store, each part as it was, are relied upon: now is the last time that its source is at
    hand. With `from_start` only full parts without a gap: the rest will come again.
    """
    file = engine.registry.storing(name)
    if file is None:
        return None
    source = engine.registry.source(file.id)
    if source is None or source.key != key or file.part_size != part_size:
        await finish(engine.give_up(file))
        return None
    engine.committer.forgive(file.id)
    runs = engine.registry.stored_runs(file.id)
    usable = await asyncio.to_thread(lambda: [run for run in runs if _is_in_store(engine.store, run)])
    if from_start:
        usable = list(_from_start(usable, part_size))
    sound = await _sound_runs(engine, file, {run.seq for run in usable}, flow)
    usable = [run for run in usable if run.seq in sound]
    if from_start:
        usable = list(_from_start(usable, part_size))
    if len(usable) < len(runs):
        await finish(_keep_only(engine, file, source, usable))
    return Kept(file.id, file.created, source.put, usable)


def _is_in_store(store: stores.PackStore, run: Run) -> bool:
    if not run.parts:
        return False
    offset, _, stored, _, _ = run.parts[-1]
    try:
        with store.open(run.pack) as pack:
            return pack.size == offset + run.head + stored
    except (Missing, Corrupt, OSError):
        return False


async def _sound_runs(engine: Engine, file: File, seqs: set[int], flow: Flow) -> set[int]:
    """Those of the runs of a file that begin at these parts in which every part passes its checks."""
    sound = set(seqs)

    async def check(first: int, parts: Sequence[Part], extents: Sequence[Extent]) -> None:
        if (await engine.load(parts, extents, flow)).bad:
            sound.discard(first)

    async with Window(len(engine.workers) + 1) as window:
        for run in engine.registry.runs(file.id):
            first = run[0].seq
            while run and first in sound:
                await window.room()
                extents = await engine.take([part.size for part in run], flow)
                window.start_now(check(first, run[: len(extents)], extents), partial(engine.budget.give, extents))
                run = run[len(extents) :]
    if len(sound) < len(seqs):
        log.warning("file %d was cut short, and %d runs of it are damaged: stored anew", file.id, len(seqs - sound))
    return sound


def _from_start(runs: Sequence[Run], part_size: int) -> Iterator[Run]:
    end = 0
    for run in runs:
        _, size, _, _, _ = run.parts[-1]
        if run.seq != end or size != part_size:
            return
        yield run
        end += len(run.parts)


async def _keep_only(engine: Engine, file: File, source: Source, runs: Sequence[Run]) -> None:
    """Let the journal forget the other runs, in one step with announcing the put again."""
    kept = {run.pack for run in runs}
    others = [pack for pack in engine.registry.packs_of(file.id) if pack not in kept]
    await engine.committer.commit(
        [
            records.Drop(file=file.id),
            records.Put(file.id, file.name, file.part_size, file.created, source.key, source.put.hex()),
            *(records.Parts(file=file.id, run=run) for run in runs),
        ]
    )
    await engine.unlink_unused(others)


def missing(runs: Sequence[Run], parts: int) -> Iterator[range]:
    """The sequence numbers that a file of `parts` parts lacks, in stretches."""
    end = 0
    for run in runs:
        if run.seq > end:
            yield range(end, run.seq)
        end = run.seq + len(run.parts)
    if end < parts:
        yield range(end, parts)


# --- at the start -------------------------------------------------------------------------------


def is_worth_keeping(registry: Registry, file: File, now: int) -> bool:
    """Whether an interrupted put may be gone on with after a start at `now` (ns since the epoch)."""
    fresh = now - file.created < KEEP_SECONDS * 1_000_000_000
    return fresh and file.parts > 0 and registry.source(file.id) is not None
