"""list, stat, rename and delete: commands on files as a whole, which read no content."""

from __future__ import annotations

import asyncio
import fnmatch
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from pfsd import records
from pfsd.aio import finish
from pfsd.commands.engine import Engine, FileRef
from pfsd.errors import Exists, NotFound, NotReady
from pfsd.protocol import check_name
from pfsd.registry import File, Status

#: Files handed out at once by `list_files`, so that a long list can be sent in pieces.
PAGE = 64


class Deleted(NamedTuple):
    """A file that is gone, and the bytes that its packs gave back to the disk."""

    id: int
    name: bytes
    parts: int
    freed: int


def list_files(engine: Engine, pattern: bytes | None) -> Iterator[list[File]]:
    """Pages of the files whose names match a glob, by id; files that come and go meanwhile may be in or not."""
    matches = re.compile(_glob(pattern)).match if pattern is not None else None
    last = 0
    while page := engine.registry.files_after(last, PAGE):
        last = page[-1].id
        yield [file for file in page if matches is None or matches(file.name)]


def _glob(pattern: bytes) -> bytes:
    # fnmatch works on text here; latin-1 maps each byte to one character and back.
    return fnmatch.translate(pattern.decode("latin-1")).encode("latin-1")


async def rename(engine: Engine, ref: FileRef, name: bytes, replace: bool) -> File:
    """Give a file another name; with `replace` a file that has it is deleted in the same instant."""
    check_name(name)
    file = engine.ready(ref)
    if file.name == name:
        return file
    await finish(_rename(engine, ref, file, name, replace))
    return file


async def _rename(engine: Engine, ref: FileRef, file: File, name: bytes, replace: bool) -> None:
    engine.claim(name, replace)
    try:
        interrupted = engine.registry.storing(name)
        if interrupted is not None:
            if not replace:
                raise Exists("a put of this name was cut short; replace=yes drops it", id=interrupted.id, name=name)
            await engine.give_up(interrupted)
        old = engine.registry.find(name)
        async with engine.locked([file] + ([old] if old else [])):
            _check_still_ready(engine, ref, file)
            old = engine.registry.find(name) if old else None
            await engine.committer.commit([records.Rename(file=file.id, name=name, replaces=old.id if old else 0)])
    finally:
        engine.disclaim(name)
    if old:
        engine.remove_soon(old)


async def delete(engine: Engine, refs: Sequence[FileRef]) -> list[Deleted]:
    """Remove files for good: durable when it returns, and their space is free again.

    An unknown file among them removes none. A file that is being read keeps its packs until that is over. A put
    that was cut short, and is kept to be resumed, can be removed by its id.
    """
    files = [(ref, _deletable(engine, ref)) for ref in refs]
    return [
        # Shielded: who stops waiting for a removal does not stop it.
        deleted._replace(freed=await asyncio.shield(removal)) if removal else deleted
        for deleted, removal in await finish(_delete(engine, files))
    ]


def _deletable(engine: Engine, ref: FileRef) -> File:
    file = engine.lookup(ref)
    return file if engine.is_interrupted(file) else engine.ready(ref)


async def _delete(
    engine: Engine, meant: Sequence[tuple[FileRef, File]]
) -> list[tuple[Deleted, asyncio.Task[int] | None]]:
    """The files are gone; their packs go in the background, and tell how much it was unless a reader keeps them."""
    files = list({file.id: file for _, file in meant}.values())
    async with engine.locked(files):
        for ref, file in meant:
            if not engine.is_interrupted(file):
                _check_still_ready(engine, ref, file)
        with ExitStack() as claims:
            for file in files:
                if engine.is_interrupted(file):
                    engine.claim(file.name, replace=True)  # nobody goes on with it meanwhile
                    claims.callback(engine.disclaim, file.name)
            facts = [(file, file.name, file.parts) for file in files]
            dropped = {
                file.id: (engine.registry.footprint(file.id), engine.registry.packs_of(file.id))
                for file in files
                if file.status is Status.STORING
            }
            await engine.committer.commit(
                [(records.Drop if file.id in dropped else records.Delete)(file=file.id) for file in files]
            )
    deleted = []
    for file, name, parts in facts:
        removal: asyncio.Task[int] | None
        if file.id in dropped:
            footprint, packs = dropped[file.id]
            removal = engine.unlink_unused_soon(packs)
        else:
            pinned, footprint, removal = (
                engine.is_pinned(file),
                engine.registry.footprint(file.id),
                engine.remove_soon(file),
            )
            removal = None if pinned else removal
        deleted.append((Deleted(file.id, name, parts, footprint), removal))
    return deleted


def _check_still_ready(engine: Engine, ref: FileRef, file: File) -> None:
    """Another command may have had the file first, and even given it another name than the one it was meant by."""
    if engine.registry.file(file.id) is not file:
        raise NotFound(f"file {file.id} was just deleted", id=file.id)
    if file.status not in (Status.READY, Status.DAMAGED):
        raise NotReady(f"file {file.id} is being deleted", id=file.id)
    if isinstance(ref, bytes) and file.name != ref:
        raise NotReady(f"file {file.id} was just renamed", id=file.id)
