"""A new journal in place of the old one: written beside it, read again, and only then put in its place."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from pfsd import disk, journal, records
from pfsd.errors import StorageFailed
from pfsd.records import Record
from pfsd.registry import Registry
from pfsd.rescue.directory import Directory, translated


def write(path: Path, store: bytes, generation: int, content: Iterable[Record], wanted: Registry) -> None:
    """Write a journal, and see that reading it gives the registries that are wanted. StorageFailed: there is none."""
    with translated(path):
        journal.write(path, store.hex(), generation, map(records.encode, content))
    read_back = Registry()
    verdict = journal.examine(path, read_back.replay)
    if verdict.state != "sound" or digest(read_back) != digest(wanted):
        with suppress(OSError):
            disk.unlink(path)
        raise StorageFailed(f"{path}: what was written is not what is read ({verdict.reason or 'other content'})")


def digest(registry: Registry) -> bytes:
    """Equal for equal registries."""
    found = hashlib.sha256()
    for record in registry.snapshot():
        found.update(records.encode(record) + b"\n")
    return found.digest()


def put_in_place(directory: Directory, new: Path) -> str:
    """What people are told of it."""
    kept = directory.put_in_place(new)
    return f"{directory.journal.name} is the new one" + (f"; the old one is kept as {kept}" if kept else "")
