"""A store as a directory that this process alone uses: its lock, its journal, and what else lies in it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pfsd import disk, journal
from pfsd.errors import StorageFailed, StoreUnavailable
from pfsd.records import Record
from pfsd.rescue.salvage import UNTRUSTED_END, Line, Salvage, trusted
from pfsd.stores.local import open_for_reading

#: What the daemon puts in a store.
_OWN = {"journal.jsonl", "journal.jsonl.new", "journal.mark", "lock", "reserve", "packs", "tmp", "lost"}
#: What `repair` and `rebuild` write before they put it in place.
NEW = ("journal.jsonl.repair", "journal.jsonl.rebuild")
_LOST_PACK = re.compile(r"([0-9a-f]{16})\.pack~*")


class Directory:
    """Use `opened`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal = path / "journal.jsonl"
        self.lost = path / "lost"
        self.store = open_for_reading(path)

    # --- reading ---

    def read_journal(
        self, on_record: Callable[[Record], None] = lambda record: None
    ) -> tuple[journal.Verdict, Salvage]:
        """What is to be thought of the journal, and all of it that can be trusted. StorageFailed, ConfigError.

        `on_record` is called with what is kept of a damaged one.
        """
        salvage = Salvage()
        verdict = journal.examine(self.journal, salvage.replay)
        if verdict.state in ("sound", "torn"):
            return verdict, salvage
        salvage = Salvage(on_record)
        if self.has_regular_journal():
            with translated(self.journal):
                for line in self._what_is_left(verdict):
                    salvage.take(line)
        else:
            salvage.take(UNTRUSTED_END)
        salvage.end()
        return verdict, salvage

    def _what_is_left(self, verdict: journal.Verdict) -> Iterator[Line]:
        """The lines of a damaged journal that can be trusted, and UNTRUSTED_END if there were others behind them."""
        last = -1
        for line in trusted(journal.raw_lines(self.journal)):
            yield line
            last = line.seq
            if line is UNTRUSTED_END:
                return
        if (verdict.generation or verdict.mark.generation, last) < verdict.mark:
            yield UNTRUSTED_END

    def has_packs(self) -> bool:
        """Whether there is any pack."""
        return next(iter(self.store.list()), None) is not None

    def leftovers(self) -> Iterator[tuple[str, str]]:
        """What is here besides journal and packs, below the store's path, and what it is."""
        for entry in disk.entries(self.path):
            name = entry.name
            if name == "journal.jsonl.new":
                yield name, "an interrupted compaction; the next start removes it"
            elif name in NEW:
                yield name, "of a repair or rebuild that was interrupted; the next one writes it anew"
            elif name.startswith("journal.torn-"):
                yield name, "the end of an interrupted write, which was cut off; nothing needs it"
            elif name.startswith("journal.damaged-"):
                yield name, "a journal that a repair or rebuild has replaced; keep it until all is well"
            elif name not in _OWN:
                yield name, "not of pfsd"
        if disk.exists(self.lost) and (count := sum(1 for _ in disk.entries(self.lost))):
            yield (
                "lost/",
                f"{count} packs of no file, which rebuild or repair kept; nothing needs them while all is well",
            )
        yield from self._staged()
        yield from self._foreign()

    def is_lost(self, pack: int) -> bool:
        """Whether a pack was moved aside."""
        return disk.exists(self.lost / self.store.path_of(pack).name)

    def lost_packs(self) -> Iterator[tuple[int, Path]]:
        """The packs that were moved aside, and where they are now: their numbers are used, as are the ids in them."""
        if disk.exists(self.lost):
            for entry in disk.entries(self.lost):
                if entry.is_file and (match := _LOST_PACK.fullmatch(entry.name)):
                    yield int(match[1], 16), self.lost / entry.name

    def _staged(self) -> Iterator[tuple[str, str]]:
        tmp = self.path / "tmp"
        if disk.exists(tmp):
            for epoch in disk.entries(tmp):
                count = sum(1 for _ in disk.entries(tmp / epoch.name)) if epoch.is_dir else 1
                if count:
                    yield f"tmp/{epoch.name}", f"{count} packs that were being written; the next start removes them"

    def _foreign(self) -> Iterator[tuple[str, str]]:
        packs = self.path / "packs"
        if not disk.exists(packs):
            return
        known = {self.store.path_of(pack) for pack, _ in self.store.list()}
        for directory in disk.entries(packs):
            if not directory.is_dir:
                yield f"packs/{directory.name}", "no pack; it is never touched"
                continue
            for entry in disk.entries(packs / directory.name):
                if packs / directory.name / entry.name not in known:
                    yield f"packs/{directory.name}/{entry.name}", "no pack, or in the wrong place; it is never touched"

    def has_regular_journal(self) -> bool:
        """Whether the journal is a file."""
        for entry in disk.entries(self.path):
            if entry.name == self.journal.name:
                return entry.is_file
        return False

    # --- writing ---

    def move_to_lost(self, packs: Iterable[int]) -> None:
        """Move packs aside, where no start removes them. StorageFailed."""
        moved = [self.store.path_of(pack) for pack in packs]
        if not moved:
            return
        with translated(self.lost):
            disk.make_dir(self.lost)
            for path in moved:
                target = self.lost / path.name
                while disk.exists(target):
                    target = target.with_name(target.name + "~")
                disk.rename(path, target)
            for changed in {self.lost, self.path, *(path.parent for path in moved)}:
                disk.fsync_dir(changed)

    def put_in_place(self, new: Path) -> str:
        """Make `new` the journal; returns the name under which the old one is kept, empty if there is none.

        At each moment there is the old or the new one. StorageFailed.
        """
        kept = ""
        with translated(self.journal):
            if disk.exists(self.journal):
                kept = journal.aside_path(os.fspath(self.journal), "damaged")
                if self.has_regular_journal():
                    disk.link(self.journal, kept)
                else:  # nothing that anyone could read
                    disk.rename(self.journal, kept)
                disk.fsync_dir(self.path)
            disk.rename(new, self.journal)
            disk.fsync_dir(self.path)
        return os.path.basename(kept)


@contextmanager
def opened(path: Path) -> Iterator[Directory]:
    """Take the lock of a store that is there. StoreUnavailable."""
    if not disk.exists(path):
        raise StoreUnavailable(f"there is no store at {path}")
    try:
        fd = disk.lock_exclusive(path / "lock")
    except StoreUnavailable as error:
        raise StoreUnavailable(
            f"{error}. While a daemon runs, use the command `verify` of its clients instead; or stop it first"
        ) from error
    try:
        yield Directory(path)
    finally:
        disk.close(fd)


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Make StorageFailed of what the disk says."""
    try:
        yield
    except OSError as error:
        raise StorageFailed(f"{error.filename or path}: {os.strerror(error.errno or 5)}") from error
