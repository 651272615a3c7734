"""Which local files are the same as stored ones: compared by the MD5s of the parts, without sending content."""

from __future__ import annotations

import asyncio
import hashlib
import os
import stat
from collections.abc import Iterable, Sequence

from pfsd.client import Client, FileInfo, PartInfo
from pfsd.errors import NotFound, NotReady
from pfsd.transfer import in_thread

#: A local path and a stored file.
Pair = tuple[str, FileInfo]
#: Files compared at once.
SIDE_BY_SIDE = 32


async def pairs(client: Client, candidates: Sequence[Pair]) -> list[Pair]:
    """Those whose content is the same; requests for many of them are on their way at once."""
    room = asyncio.Semaphore(SIDE_BY_SIDE)

    async def is_same(path: str, file: FileInfo) -> bool:
        async with room:
            try:
                found = await client.stat(file.id, parts=True)
            except (NotFound, NotReady):
                return False  # it went meanwhile
            return await in_thread(holds, path, found.parts)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(is_same(*pair)) for pair in candidates]
    return [pair for pair, task in zip(candidates, tasks, strict=True) if task.result()]


def holds(path: str, parts: Iterable[PartInfo]) -> bool:
    """Whether a regular file holds just these parts. Nothing is followed, nor waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    with open(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        try:
            for part in parts:
                content = file.read(part.size)
                if hashlib.md5(content, usedforsecurity=False).hexdigest() != part.md5:
                    return False
            return not file.read(1)
        except OSError:
            return False
