"""A daemon without sockets and processes: it opens a store, runs commands and tidies up as the real one does.

It is the real `Daemon`, up to where it would listen; tasks of I/O processes run in threads of this one. Thousands of
these open and close in a minute, so that every state a crash can leave can be recovered from.
"""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from pfsd import config, packs, stores, work
from pfsd.budget import MemoryBudget
from pfsd.commands.engine import Progress
from pfsd.commands.files import delete, rename
from pfsd.commands.put import Stored, put_content, put_path
from pfsd.committer import Committer
from pfsd.config import Config, Reloaded
from pfsd.daemon import Daemon
from pfsd.fair import Flow
from pfsd.listening import Passed
from pfsd.registry import Status
from pfsd.systemd import Manager

PART = 4096
#: A journal above this many bytes is compacted as soon as most of it is dead.
COMPACT_ABOVE = 2000


class _Threads:
    """Stands for `Workers`: one task at a time, in a thread."""

    replaced = busy = 0

    def __init__(self) -> None:
        self._turn = asyncio.Lock()

    def __len__(self) -> int:
        return 1

    async def run(self, function: Callable[[Any, int], Any], task: object, flow: Flow, cost: int) -> Any:
        async with self._turn:
            outcome = await asyncio.to_thread(function, task, 0)
        if isinstance(outcome, work.Failure):
            assert not outcome.trace, outcome.trace
            raise outcome.error()
        return outcome


def _never(config: Config) -> Reloaded:
    raise AssertionError("no reload is wanted")


class InProcess(Daemon):
    """A daemon on the store of its configuration; `async with` opens and closes it."""

    def __init__(self, config: Config) -> None:
        super().__init__(config, reread=_never, manager=Manager(), passed=Passed([]))

    async def _start_workers(self) -> None:
        self._budget = MemoryBudget(self._config.slab_size)
        work._Process.slab = self._budget._view
        work._Process.store = stores.open_store(self._store_url, sync=True, epoch=self._epoch)
        self._workers = _Threads()  # type: ignore[assignment]

    async def __aenter__(self) -> InProcess:
        try:
            self._open_store()
            await self._start_workers()
            self._make_service()
            await self._tidy()
            await self.settle()
        except BaseException:
            if self._lock_fd >= 0:
                os.close(self._lock_fd)
            raise
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.settle()
        await self._committer.close()
        del work._Process.slab, work._Process.store
        self._budget.close()
        os.close(self._lock_fd)

    async def settle(self) -> None:
        """Wait for what goes on in the background."""
        while self._engine._background or self._reclaimer._work or self._committer._compacting:
            await self._engine.settle()
            for task in (self._reclaimer._work, self._committer._compacting):
                if task is not None:
                    await asyncio.wait({task})

    # --- commands ---

    async def put(self, name: bytes, content: bytes, replace: bool = False, resumable: bool = False) -> Stored:
        """Small content as from a connection, big content as from a path, below the only root."""
        progress, flow = Progress(), Flow()
        if len(content) > self._engine.settings.small_bytes:
            source = self._config.roots[0] / name.decode()
            source.write_bytes(content)
            return await put_path(self._engine, os.fsencode(source), name, replace, progress, flow, resumable)
        sizes = [min(PART, len(content) - at) for at in range(0, len(content), PART)]
        extents = await self._budget.take(sizes, flow, least=len(sizes)) if sizes else []
        try:
            for at, extent in enumerate(extents):
                self._budget.view(extent)[:] = content[at * PART :][:PART]
            return await put_content(self._engine, name, replace, extents, progress, flow)
        finally:
            self._budget.give(extents)

    async def rename(self, old: bytes, new: bytes, replace: bool = False) -> None:
        """As the command."""
        await rename(self._engine, old, new, replace)

    async def delete(self, *names: bytes) -> None:
        """As the command."""
        await delete(self._engine, names)

    async def compact(self) -> None:
        """Write a new generation of the journal."""
        assert await self._committer.compact()

    # --- what is there ---

    def files(self) -> dict[bytes, bytes]:
        """Every file by name, read and checked as `get` does."""
        registry = self._registry
        return {
            file.name: self._content(file.id)
            for file in registry.files_after(0, 1 << 30)
            if file.status in (Status.READY, Status.DAMAGED)
        }

    def check(self) -> None:
        """What holds for every store that has just been opened."""
        registry, store = self._registry, self._store
        held = {found.pack for found in store.list()}
        assert held >= registry.live_packs(), "files without packs"
        assert held == registry.live_packs(), "packs of nobody"
        assert not registry.deleting()
        for file in registry.interrupted():
            self._content(file.id)  # what a resumed put would build upon
        assert [entry.name for entry in os.scandir(self._config.path / "tmp")] == [self._epoch]
        assert not (self._config.path / "journal.jsonl.new").exists()

    @property
    def ids(self) -> tuple[int, int, int]:
        """The ids that come next: of a file, a part, a pack."""
        return self._registry.next_file, self._registry.next_part, self._registry.next_pack

    def _content(self, file_id: int) -> bytes:
        pieces = []
        for part in self._registry.parts(file_id):
            row = work.PartRow(part.pack_offset, part.head, part.size, part.stored, part.codec, part.md5)
            with self._store.open(part.pack) as reader:
                encoded = reader.read(row.offset, row.head + row.stored)
            pieces.append(bytes(packs.decode_part(encoded, self._journal.store_id, file_id, part.seq, row)))
        return b"".join(pieces)


def configuration(home: Path) -> Config:
    """Settings for stores below `home`, with the smallest parts there are."""
    (home / "root").mkdir(exist_ok=True)
    (home / "config.yaml").write_text(
        f"path: store\nroots: [root]\nprocesses: 1\nmemory: 24MiB\npart_size: {PART}\ncodec: zlib\n"
    )
    return config.load(home / "config.yaml", {})


def at(settings: Config, path: Path) -> Config:
    """The same settings for another store."""
    return replace(settings, path=path)


@contextmanager
def small_limits() -> Iterator[None]:
    """Let little content do what otherwise takes much: records on the way, checkpoints, compaction."""
    with (
        mock.patch("pfsd.commands.put.RUNS_PER_RECORD", 1),
        mock.patch("pfsd.commands.put.CHECKPOINT_BYTES", 32 * PART),
        mock.patch("pfsd.spare.RESERVE_BYTES", 4096),
        mock.patch.dict(Committer.__init__.__kwdefaults__, {"compact_above": COMPACT_ABOVE}),
        mock.patch.object(gc, "freeze"),  # what one daemon leaves is garbage to the next
    ):
        yield
