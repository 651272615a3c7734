"""What can still be trusted of a journal, and the registries that it makes. Pure: bytes and records in, records out.

A line is trusted when its checksum continues the line before it, or what is left of that; or, where that line is
gone altogether, when the line behind continues *its* checksum and number. Records behind a gap may not fit those
before it: then what the gap must have held is put in their place, as far as it is certain, and told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple
from zlib import crc32

from pfsd import journal
from pfsd.protocol import quote
from pfsd.records import (
    MAX_NAME,
    Damage,
    Delete,
    Drop,
    FileRecord,
    Ids,
    Moved,
    Parts,
    Put,
    Ready,
    Record,
    RecordError,
    Removed,
    Rename,
    Run,
    Verified,
    decode,
)
from pfsd.registry import Registry, RegistryError, Status

_READABLE = (Status.READY, Status.DAMAGED)


# --- lines --------------------------------------------------------------------------------------


class Line(NamedTuple):
    """A line that is what was written: its number from 0, and its JSON object."""

    seq: int
    json: bytes


#: Stands for all behind the last line that can be trusted.
UNTRUSTED_END = Line(-1, b"")


class _Held(NamedTuple):
    """A line that is trusted if the one behind it says so, by continuing this checksum of it."""

    seq: int
    json: bytes
    crc: int


def trusted(lines: Iterable[bytes]) -> Iterator[Line]:
    """The lines, of all between LFs, that can be trusted; their numbers ascend. UNTRUSTED_END if others follow."""
    seeds = {0}  # what the checksum of the next line may continue
    held: list[_Held] = []
    last, before_it, good = -1, -1, True  # numbers of the last trusted line, and of the one before this
    for line in _unjoined(lines):
        body, own = journal.split_checksum(line)
        continued = {crc32(body, seed): seed for seed in seeds}
        seq = journal.number_of(line)
        good = own in continued and seq > last
        if own is not None and good:
            for before in held:
                if before.crc == continued[own] and last < before.seq == seq - 1:
                    yield Line(before.seq, before.json)
            yield Line(seq, line)
            seeds, held, last, before_it = {own}, [], seq, seq
            continue
        # Either its own checksum is damaged; or the line that it continues is gone, and only the next one can tell.
        content = body + b"}"
        number = journal.number_of(content)
        held = [_Held(number, content, crc) for crc in continued if crc != own and number > last]
        if own is not None and (not seeds or seq > before_it + 1 > 0):
            held.append(_Held(seq, line, own))
        before_it = seq
        seeds = {before.crc for before in held} | ({own} if own is not None else set())
    if not good:
        yield UNTRUSTED_END


def _unjoined(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The same lines, but where an LF was lost they are two."""
    for line in lines:
        start = 0
        for end in journal.ends_of_lines(line):
            yield line[start:end]
            start = end if line[end : end + 2] == b'{"' else end + 1
        if start < len(line):
            yield line[start:]


# --- records ------------------------------------------------------------------------------------


class Mended(NamedTuple):
    """A record that did not fit the ones before it, and what was made of it."""

    seq: int
    file: int
    what: str


class Gap(NamedTuple):
    """Records that are lost, from number `first` to `last`; `last` None: unknown how many, at the end."""

    first: int
    last: int | None


class Salvage:
    """The registries as the trusted records make them; `take` each line, then `end`."""

    def __init__(self, on_record: Callable[[Record], None] = lambda record: None) -> None:
        self.registry = Registry()
        #: Records that were taken.
        self.records = 0
        self.gaps: list[Gap] = []
        self.mended: list[Mended] = []
        #: Files that records say are gone, and those of them that they do not say when.
        self.dead: set[int] = set()
        #: Names of files that are known by a rename only.
        self.names: dict[int, bytes] = {}
        #: Files that got ready with parts that no record that is left describes.
        self.unfinished: dict[int, Ready] = {}
        #: file -> seq -> id of the part, of files that are not in the registry.
        self.part_ids: dict[int, dict[int, int]] = {}
        #: Files below this id that no record names are gone: the state as it was compacted is there to its end.
        self.known_below = 0
        self._on_record = on_record
        self._next = 1
        self._compacted_below = 0
        self._ids = Ids(1, 1, 1)

    def replay(self, line: bytes) -> None:
        """Take a line of a journal that has no gap; ValueError when it does not fit."""
        record = decode(line)
        self.registry.apply(record)
        self._taken(record)

    def take(self, line: Line) -> None:
        """Take a trusted line, or UNTRUSTED_END."""
        if line is UNTRUSTED_END:
            self.gaps.append(Gap(self._next, None))
        if line.seq <= 0:
            return
        if line.seq > self._next:
            self.gaps.append(Gap(self._next, line.seq - 1))
        self._next = line.seq + 1
        try:
            record = decode(line.json)
        except RecordError as error:
            self._mend(line.seq, 0, f"it is no record: {error}")
            return
        try:
            self.registry.apply(record)
            self._on_record(record)
        except RegistryError as error:
            if isinstance(record, Verified | Ids):
                self._mend(line.seq, 0, f"left out: {error}")
            else:
                self._take_what_does_not_fit(line.seq, record)
        self._taken(record)

    def end(self) -> None:
        """All lines were taken."""
        if self.mended:  # what was left out has used ids, too
            self.registry.apply(self._ids)
            self._on_record(self._ids)

    @property
    def whole(self) -> bool:
        """Whether no record is lost or does not fit."""
        return not self.gaps and not self.mended

    def _taken(self, record: Record) -> None:
        self.records += 1
        if isinstance(record, Put):
            self.dead.discard(record.file)
        elif isinstance(record, Delete | Removed | Drop):
            self.dead.add(record.file)
        elif isinstance(record, Ready | Rename) and record.replaces:
            self.dead.add(record.replaces)
        elif isinstance(record, Ids):
            if self.records == 1:
                self._compacted_below = record.file
            elif self.whole and record.file == self._compacted_below:
                self.known_below = record.file

    # --- what does not fit ---

    def _take_what_does_not_fit(self, seq: int, record: FileRecord) -> None:
        self._note_ids(record)
        steps, what = self._made_to_fit(record)
        for step in steps:
            try:
                self.registry.apply(step)
            except RegistryError as error:
                what = f"left out: {error}"
                if isinstance(step, Ready):
                    self._note_unfinished(step)
                    what = f"its parts are not all in the journal: {error}"
                break
            self._on_record(step)
        self._mend(seq, record.file, what)

    def _note_ids(self, record: FileRecord) -> None:
        runs = record.runs if isinstance(record, Ready) else [record.run] if isinstance(record, Parts | Moved) else []
        self._ids = Ids(
            max(self._ids.file, record.file + 1),
            max([self._ids.part, *(run.part + len(run.parts) for run in runs)]),
            max([self._ids.pack, *(run.pack + 1 for run in runs)]),
        )

    def _mend(self, seq: int, file: int, what: str) -> None:
        self.mended.append(Mended(seq, file, what))

    def _made_to_fit(self, record: FileRecord) -> tuple[list[Record], str]:
        """Records to apply in place of one that does not fit, and what that means."""
        file = self.registry.file(record.file)
        status = file.status if file else None
        if isinstance(record, Ready):
            if file is not None and status is not Status.STORING:
                return [], "left out: this file is there already"
            stale = file is not None and (file.name, file.part_size) != (record.name, record.part_size)
            steps: list[Record] = [Drop(record.file)] if stale else []
            freed, what = self._free_name(record.name, record.file, record.replaces)
            return [*steps, *freed, _without_replaces(record)], what or "its parts were announced in lost records"
        if isinstance(record, Rename):
            if status not in _READABLE:
                self.names[record.file] = record.name
                return [], "a rename of a file whose own record is lost"
            freed, what = self._free_name(record.name, record.file, record.replaces)
            return [*freed, Rename(record.file, record.name)], what
        if isinstance(record, Put):
            if status not in (None, Status.STORING):
                return [], "left out: this file is there already"
            storing = self.registry.storing(record.name)
            others = {other.id for other in (file, storing) if other is not None}
            return [*map(Drop, sorted(others)), record], "what was being stored before it was given up in a lost record"
        if isinstance(record, Parts):
            self._note_part_ids(record.file, record.run)
            return [], "parts of a file whose own record is lost"
        return self._ended(record, status)

    def _ended(self, record: FileRecord, status: Status | None) -> tuple[list[Record], str]:
        file = record.file
        if isinstance(record, Delete | Removed) and status is Status.STORING:
            return [Drop(file)], "the file was deleted; that it had got ready is lost"
        if isinstance(record, Removed) and status in _READABLE:
            return [Delete(file), record], "the file was removed; its delete is lost"
        if isinstance(record, Delete | Removed) and status is None:
            return [], "a delete of a file whose own record is lost"
        if isinstance(record, Moved | Damage) and status is None:
            return [], "where parts lie, of a file whose own record is lost"
        return [], "left out: it does not fit what is known of the file"

    def _free_name(self, name: bytes, file: int, replaces: int) -> tuple[list[Record], str]:
        """What must have happened before `file` could get `name`."""
        steps: list[Record] = []
        what = "the file it replaced is known by lost records only" if replaces else ""
        storing, holder = self.registry.storing(name), self.registry.find(name)
        replaced = self.registry.file(replaces) if replaces else None
        if storing is not None and storing.id != file:
            steps.append(Drop(storing.id))
            what = f"the put of file {storing.id} under this name was given up in a lost record"
        if replaced is not None and replaced.status in _READABLE:
            steps.append(Delete(replaces))
            what = f"file {replaces} had another name, which is lost, and is replaced"
        if holder is not None and holder.id not in (file, replaces):
            spare = spare_name(name, holder.id, self.registry.name_taken)
            steps.append(Rename(holder.id, spare))
            what = f"file {holder.id} was renamed or deleted in a lost record; it is {quote(spare)} now"
        return steps, what

    def _note_unfinished(self, record: Ready) -> None:
        self.unfinished[record.file] = record
        for run in record.runs:
            self._note_part_ids(record.file, run)

    def _note_part_ids(self, file: int, run: Run) -> None:
        ids = self.part_ids.setdefault(file, {})
        ids.update((run.seq + at, run.part + at) for at in range(len(run.parts)))


def spare_name(name: bytes, file: int, taken: Callable[[bytes], object]) -> bytes:
    """A name that says which file it is of, whose own name another one has."""
    suffix = b"~rebuilt-%d" % file
    spare = name[: MAX_NAME - len(suffix)] + suffix
    while taken(spare):
        suffix += b"~"
        spare = name[: MAX_NAME - len(suffix)] + suffix
    return spare


def _without_replaces(record: Ready) -> Ready:
    return Ready(record.file, record.name, record.size, record.part_size, record.created, record.runs)
