"""How much there is to transfer, added up beside the transfer."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from pfsd.client import Progress
from pfsd.transfer import in_thread


def of_total(progress: Progress, total: int | None) -> Progress:
    """Tells `progress` a total that who reports does not know."""

    def report(done: int, _: int | None) -> None:
        progress(done, total)

    return report


def size_of(path: str) -> int | None:
    """The bytes of what is at a path; None if nothing is, or it cannot be told."""
    try:
        return os.stat(path).st_size
    except OSError:
        return None


@contextmanager
def counted(walk: Callable[[], Iterable[tuple[str, bytes]]], progress: Progress | None) -> Iterator[Progress | None]:
    """Tells `progress` the sum of the sizes of all files, once a thread has added it up. Nobody else pays for it."""
    if progress is None:
        yield None
        return
    show, ended = progress, False
    total: int | None = None

    def count() -> int:
        size = 0
        for path, _ in walk():
            if ended:
                break
            size += size_of(path) or 0
        return size

    async def learn() -> None:
        nonlocal total
        total = await in_thread(count)

    def report(done: int, _: int | None) -> None:
        show(done, total)

    counting = asyncio.create_task(learn())
    try:
        yield report
    finally:
        ended = True
        counting.cancel()
