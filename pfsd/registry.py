"""The file registry and the part registry: what is known of files and parts, in memory.

`Registry.apply(record)` is the only way their state changes, live and at replay alike. A record that does not
fit raises RegistryError and changes nothing. The registry must never know where records are kept, who asks,
or how a store works; it does no I/O and belongs to one thread.

There may be millions of files and of parts, so most of what is known is packed (little-endian). A `File` has its name,
its status, and one `bytes` of facts, with the run behind them when the file has just one:

    facts +0 u64 id | +8 u64 part size | +16 u64 created | +24 u64 size | +32 u64 stored | +40 u32 parts
    run   +0 u64 pack | +8 u64 id of first part | +16 u32 seq of first part | +20 u32 header bytes of a part
          +24 u64 bytes it takes in its pack, headers and payloads
    then for each part, 33 bytes
          +0 u64 offset in the pack | +8 u32 size | +12 u32 stored | +16 u8 codec (index) | +17 16 bytes md5

Files are found by id in an `IdTable` and by name in a `NameTable`. Of packs, an `IdTable` says how many of their
bytes are live, and a dict how many runs those have that have more than one: that is all there is to a pack.
"""

from __future__ import annotations

from array import array
from binascii import unhexlify
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from enum import Enum
from functools import partial
from itertools import chain, islice
from operator import itemgetter, lt
from struct import Struct
from struct import error as StructError
from typing import Any, NamedTuple

import msgspec

from pfsd import hashing
from pfsd.records import (
    Damage,
    Delete,
    Drop,
    Ids,
    Moved,
    PartRow,
    Parts,
    Put,
    Ready,
    Record,
    Removed,
    Rename,
    Run,
    Verified,
    decode,
)
from pfsd.stretches import START, Position, Stretch, Stretches
from pfsd.tables import IdTable, NameTable

_FACTS = Struct("<QQQQQI")
_RUN = Struct("<QQIIQ")
_ROW = Struct("<QIIB16s")
_MD5 = Struct("<17x16s")
#: Facts, run and row of a file of one part.
_ONE_PART = Struct("<QQQQQIQQIIQQIIB16s")

#: Parts that a snapshot writes into a Ready record; files of more are written as Put, Parts, Ready.
INLINE_PARTS = 256

#: What records cost in the journal, in bytes: close enough to tell when compaction pays.
FILE_BYTES = 145
RUN_BYTES = 60
PART_BYTES = 66
VERIFIED_BYTES = 120

#: Files that a snapshot looks up at once.
SNAPSHOT_PAGE = 64


class RegistryError(ValueError):
    """A record does not fit the state of the registries."""


class Status(Enum):
    """What can be done with a file. DAMAGED is ready, but some parts are known to be bad."""

    STORING = "storing"
    READY = "ready"
    DELETING = "deleting"
    DAMAGED = "damaged"


#: What every record touches, without the detour that an Enum makes of each access.
_STORING, _READY = Status.STORING, Status.READY
_READABLE = (Status.READY, Status.DAMAGED)


class Part(NamedTuple):
    """A part, and where it lies: at `pack_offset` in `pack` a header of `head`, then `stored` bytes."""

    id: int
    file: int
    seq: int
    offset: int
    size: int
    stored: int
    codec: str
    md5: bytes
    pack: int
    pack_offset: int
    head: int


class Source(NamedTuple):
    """What an interrupted put stored: `key` is equal for equal sources, `put` is the put id in its packs."""

    key: str
    put: bytes


_NO_SOURCE = Source("", b"")


class File(msgspec.Struct, gc=False, eq=False):
    """A file, changed by the registry alone; it stays the same object as long as the file exists."""

    name: bytes
    status: Status
    _facts: bytes  # with the only run behind them, unless there are `_runs`
    _runs: list[bytes] | None = None

    @property
    def id(self) -> int:
        """What it is called in the journal; never that of another file."""
        return int.from_bytes(self._facts[:8], "little")

    @property
    def part_size(self) -> int:
        """Bytes in each part but the last."""
        return int.from_bytes(self._facts[8:16], "little")

    @property
    def created(self) -> int:
        """When, in ns since the epoch."""
        return int.from_bytes(self._facts[16:24], "little")

    @property
    def size(self) -> int:
        """Bytes known so far."""
        return int.from_bytes(self._facts[24:32], "little")

    @property
    def stored(self) -> int:
        """Bytes after compression, known so far."""
        return int.from_bytes(self._facts[32:40], "little")

    @property
    def parts(self) -> int:
        """Number of parts known so far."""
        return int.from_bytes(self._facts[40:44], "little")

    def __repr__(self) -> str:
        return f"File({self.id}, {self.name!r}, {self.status.value}, size={self.size}, parts={self.parts})"

    def _packed_runs(self) -> Sequence[bytes]:
        """The runs in order of their seq."""
        if self._runs is not None:
            return self._runs
        return (self._facts[_FACTS.size :],) if len(self._facts) > _FACTS.size else ()

    def _copy(self) -> File:
        """As it is now, for a snapshot."""
        return File(self.name, self.status, self._facts, None if self._runs is None else self._runs.copy())


#: A checked run, packed; the number of its parts; their bytes before and after compression.
_Packed = tuple[bytes, int, int, int]


class Registry:
    """Both registries. Ids are given out by `new_file_id`, `new_part_ids` and `new_pack_id`, never twice."""

    def __init__(self) -> None:
        #: What can be read: number of files and of their parts, bytes before and after compression.
        self.files_ready = 0
        self.parts_ready = 0
        self.size = 0
        self.stored = 0
        #: Bytes of a journal that holds this state and nothing else; an estimate.
        self.live_bytes = 0
        #: The ids to be given out next.
        self.next_file = 1
        self.next_part = 1
        self.next_pack = 1
        self._files: IdTable[File] = IdTable()
        self._readable: NameTable[File] = NameTable()
        self._storing: dict[bytes, File] = {}
        self._deleting: dict[int, File] = {}
        self._sources: dict[int, Source] = {}  # of files being stored whose put can be resumed
        self._bad: dict[int, tuple[int, ...]] = {}  # file -> seqs of its bad parts
        self._verified = Stretches()
        #: Where the parts begin that are to be verified next: behind those that were verified last.
        self.to_verify: Position = START
        # Used packs, and bytes in them of files that are stored or being stored.
        self._packs: IdTable[int] = IdTable(partial(array, "Q"))
        self._more_runs: dict[int, int] = {}  # pack -> runs in it, of files of any status, beyond the first
        self._codecs: dict[str, int] = {}
        self._codec_names: list[str] = []
        self._snapshot: Snapshot | None = None
        self._handlers: dict[type, Callable[[Any], None]] = {
            Put: self._put,
            Parts: self._parts,
            Ready: self._ready_quickly,
            Drop: self._drop,
            Delete: self._delete,
            Removed: self._removed,
            Rename: self._rename,
            Damage: self._damage,
            Moved: self._moved,
            Verified: self._note_verified,
            Ids: self._note_ids,
        }

    # --- changing ---

    def apply(self, record: Record) -> None:
        """Change the state as the record says; RegistryError, and no change, when it does not fit."""
        self._handlers[type(record)](record)

    def new_file_id(self) -> int:
        """An id for a file."""
        self.next_file += 1
        return self.next_file - 1

    def new_part_ids(self, count: int) -> int:
        """The first of `count` consecutive ids for parts."""
        self.next_part += count
        return self.next_part - count

    def new_pack_id(self) -> int:
        """An id for a pack."""
        self.next_pack += 1
        return self.next_pack - 1

    def replay(self, line: bytes) -> None:
        """`apply` a record in JSON; RecordError or RegistryError, both ValueErrors."""
        self.apply(decode(line))

    def skip_packs(self, packs: Iterable[int]) -> None:
        """Never give out the ids of these packs, which are in the store though no record names them."""
        self.next_pack = max(self.next_pack, *(pack + 1 for pack in packs), 1)

    def _put(self, record: Put) -> None:
        if record.file in self._files:
            raise RegistryError(f"put: file {record.file} is there already")
        if record.name in self._storing:
            raise RegistryError(f"put: {record.name!r} is being stored as file {self._storing[record.name].id}")
        facts = _FACTS.pack(record.file, record.part_size, record.created, 0, 0, 0)
        file = File(record.name, _STORING, facts)
        self._enter(record.file, file)
        self._storing[file.name] = file
        if record.source:
            self._sources[record.file] = Source(record.source, bytes.fromhex(record.put))

    def _parts(self, record: Parts) -> None:
        file = self._need(record.file, (_STORING,), "parts")
        run, parts, size, stored = self._pack(record.run, file.part_size)
        at = _place_for(run, file._packed_runs(), record.file)
        self._keep(record.file, file)
        if file._runs is None:
            file._runs = []
        file._runs.insert(at, run)
        self._add(record.run)
        file._facts = _FACTS.pack(
            record.file, file.part_size, file.created, file.size + size, file.stored + stored, file.parts + parts
        )

    def _ready_quickly(self, record: Ready) -> None:
        """`_ready` for new files of one part, as nearly all are of which there are millions, in a third of the time."""
        file_id, name, runs, replaces = record.file, record.name, record.runs, record.replaces
        replaced = self._readable.get(name)
        if (
            len(runs) != 1
            or len(runs[0].parts) != 1
            or file_id < self.next_file
            or (replaced.id if replaced is not None else 0) != replaces
            or name in self._storing
            or self._snapshot is not None
        ):
            self._ready(record)
            return
        run = runs[0]
        ((offset, size, stored, codec, md5),) = run.parts
        index, part_size, part, pack = self._codecs.get(codec), record.part_size, run.part, run.pack
        if run.seq or size != record.size or not 0 < size <= part_size or index is None:
            self._ready(record)
            return
        footprint = run.head + stored
        try:
            facts = _ONE_PART.pack(
                *(file_id, part_size, record.created, size, stored, 1),
                *(pack, part, 0, run.head, footprint),
                *(offset, size, stored, index, unhexlify(md5)),
            )
        except (StructError, ValueError) as error:
            raise RegistryError(str(error)) from error
        if replaced is not None:
            self._retire(replaces, replaced)
        self._files[file_id] = self._readable[name] = File(name, _READY, facts)
        self._use_pack(pack, footprint)
        self.next_file = file_id + 1
        if part >= self.next_part:
            self.next_part = part + 1
        self.live_bytes += FILE_BYTES + RUN_BYTES + PART_BYTES + len(name)
        self.files_ready += 1
        self.parts_ready += 1
        self.size += size
        self.stored += stored

    def _ready(self, record: Ready) -> None:
        file_id = record.file
        file = self._files.get(file_id) if file_id < self.next_file else None
        if file is not None:
            self._check_announced(file, record)
        replaced = self._holder(record.name, record.replaces, file_id)
        runs, parts, size, stored = self._all_runs(file, record)
        facts = _FACTS.pack(file_id, record.part_size, record.created, size, stored, parts)

        if replaced is not None:
            self._retire(record.replaces, replaced)
        if file is None:
            file = File(record.name, _READY, facts)
            self._enter(file_id, file)
        else:
            self._keep(file_id, file)
            del self._storing[file.name]
            self._sources.pop(file_id, None)
            file.status = _READY
        for run in record.runs:
            self._add(run)
        file._runs = runs if len(runs) > 1 else None
        file._facts = facts + runs[0] if len(runs) == 1 else facts
        self._readable[record.name] = file
        self._count(1, parts, size, stored)

    def _all_runs(self, file: File | None, record: Ready) -> tuple[list[bytes], int, int, int]:
        """The runs of a file that gets ready, in order of seq; its parts, size and stored bytes."""
        if file is None and len(record.runs) == 1:  # as most are
            run, parts, size, stored = self._pack(record.runs[0], record.part_size)
            runs = [run]
        else:
            size = stored = parts = 0
            runs = []
            if file is not None:
                size, stored, parts, runs = file.size, file.stored, file.parts, [*file._packed_runs()]
            for added in record.runs:
                run, more, more_size, more_stored = self._pack(added, record.part_size)
                runs.insert(_place_for(run, runs, record.file), run)
                parts, size, stored = parts + more, size + more_size, stored + more_stored
        _check_complete(runs, parts, size, record)
        return runs, parts, size, stored

    def _drop(self, record: Drop) -> None:
        file = self._files.get(record.file)
        if file is None:  # a put that had not been announced
            self.next_file = max(self.next_file, record.file + 1)
            return
        self._need(record.file, (_STORING,), "drop")
        self._keep(record.file, file)
        del self._storing[file.name]
        self._sources.pop(record.file, None)
        self._leave(record.file, file)

    def _delete(self, record: Delete) -> None:
        self._retire(record.file, self._need(record.file, _READABLE, "delete"))

    def _removed(self, record: Removed) -> None:
        file = self._need(record.file, (Status.DELETING,), "removed")
        self._keep(record.file, file)
        del self._deleting[record.file]
        self._leave(record.file, file)

    def _rename(self, record: Rename) -> None:
        file = self._need(record.file, _READABLE, "rename")
        replaced = self._holder(record.name, record.replaces, record.file)
        if replaced is not None:
            self._retire(record.replaces, replaced)
        self._keep(record.file, file)
        del self._readable[file.name]
        self.live_bytes += len(record.name) - len(file.name)
        file.name = record.name
        self._readable[file.name] = file

    def _damage(self, record: Damage) -> None:
        file = self._files.get(record.file)
        if file is None or file.status is Status.DELETING:
            return  # found by a reader whom a delete has overtaken
        self._need(record.file, _READABLE, "damage")
        ascending = all(map(lt, record.parts, record.parts[1:]))
        if not ascending or (record.parts and record.parts[-1] >= file.parts):
            raise RegistryError(f"damage: file {file.id} of {file.parts} parts cannot have bad parts {record.parts}")
        self._keep(record.file, file)
        self._bad.pop(record.file, None)
        if record.parts:
            self._bad[record.file] = tuple(record.parts)
        file.status = Status.DAMAGED if record.parts else _READY

    def _moved(self, record: Moved) -> None:
        file = self._need(record.file, _READABLE, "moved")
        new, *_ = self._pack(record.run, file.part_size)
        runs = file._packed_runs()
        at = bisect_left(runs, record.run.seq, key=_first_seq)
        if at == len(runs) or not _same_parts(runs[at], new):
            raise RegistryError(f"moved: file {file.id} has no run from part {record.run.seq} with these parts")
        old = runs[at]
        self._keep(record.file, file)
        self._use_pack(_pack_id(new), _footprint(new))
        self._bury(old)
        self._release_pack(old)
        if file._runs is not None:
            file._runs[at] = new
        else:
            file._facts = file._facts[: _FACTS.size] + new

    def _note_verified(self, record: Verified) -> None:
        if record.first >= record.end:
            raise RegistryError(f"verified: there is nothing from {record.first} to {record.end}")
        before = len(self._verified)
        self._verified.cover(Stretch(record.first, record.end, record.time))
        self.to_verify = record.end
        self.live_bytes += VERIFIED_BYTES * (len(self._verified) - before)

    def _note_ids(self, record: Ids) -> None:
        self.next_file = max(self.next_file, record.file)
        self.next_part = max(self.next_part, record.part)
        self.next_pack = max(self.next_pack, record.pack)

    # --- asking ---

    def file(self, file_id: int) -> File | None:
        """The file of this id, whatever its status."""
        return self._files.get(file_id)

    def find(self, name: bytes) -> File | None:
        """The readable file of this name."""
        return self._readable.get(name)

    def storing(self, name: bytes) -> File | None:
        """The file that is being stored under this name, or whose put was interrupted."""
        return self._storing.get(name)

    def source(self, file_id: int) -> Source | None:
        """What a file that is being stored is made of, if its put can be resumed."""
        return self._sources.get(file_id)

    def stored_runs(self, file_id: int) -> list[Run]:
        """The runs of a file as records name them, by seq; KeyError for an unknown file."""
        return [self._unpack_run(packed) for packed in self._known(file_id)._packed_runs()]

    def name_taken(self, name: bytes) -> File | None:
        """The file that has this name or is being stored under it."""
        return self._readable.get(name) or self._storing.get(name)

    def files_after(self, last_id: int, count: int) -> list[File]:
        """Up to `count` files of any status with ids above `last_id`, by id; empty at the end.

        Page by passing the last id got: files that stay are seen once, whatever comes and goes meanwhile.
        """
        return self._files.after(last_id, count)

    def parts(self, file_id: int, first: int = 0, last: int | None = None) -> Iterator[Part]:
        """The parts from seq `first` to seq `last`, both included; KeyError for an unknown file."""
        return (part for run in self.runs(file_id, first, last) for part in run)

    def runs(self, file_id: int, first: int = 0, last: int | None = None) -> Iterator[list[Part]]:
        """The same parts by runs: each list is in one pack, in order of offset."""
        file = self._known(file_id)
        packed = file._packed_runs()
        at = max(0, bisect_right(packed, first, key=_first_seq) - 1)
        # The slice is a copy: what is being stored may grow meanwhile.
        return self._unpack_runs(file_id, file.part_size, packed[at:], first, 2**63 if last is None else last)

    def bad_parts(self, file_id: int) -> tuple[int, ...]:
        """Sequence numbers of the parts known to be bad, ascending; KeyError for an unknown file."""
        self._known(file_id)
        return self._bad.get(file_id, ())

    @property
    def known_bad(self) -> int:
        """How many parts of readable files are known to be bad."""
        return sum(map(len, self._bad.values()))

    def readable_from(self, position: Position) -> tuple[File, int] | None:
        """The first part of a readable file there or behind it: its file and seq; of an empty file, seq 0."""
        file_id, seq = position
        file = self._files.get(file_id)
        if file is not None and file.status in _READABLE and (not seq or seq < file.parts):
            return file, seq
        while page := self._files.after(file_id, SNAPSHOT_PAGE):
            for file in page:
                if file.status in _READABLE:
                    return file, 0
            file_id = page[-1].id
        return None

    def verified_at(self, file: File, seq: int) -> int:
        """When a part was known to be sound or bad: after it was verified last, or written; in ns since the epoch."""
        stretch = self._verified.around((file.id, seq))
        return file.created if stretch is None else stretch.time

    def first_verified_at(self) -> int | None:
        """The time of the first stretch that was verified: when the pass that is under way began."""
        return next((stretch.time for stretch in self._verified), None)

    def oldest_verified_at(self) -> int | None:
        """The earliest `verified_at` of all parts of readable files; None if there are none.

        Looks at a file or two for each stretch that was verified: ids are given out in order of time.
        """
        oldest, position = None, START
        while (found := self.readable_from(position)) is not None:
            file, seq = found
            stretch = self._verified.around((file.id, seq))
            time = file.created if stretch is None else stretch.time
            oldest = time if oldest is None else min(oldest, time)
            position = self._verified.gap_end((file.id, seq)) if stretch is None else stretch.end
        return oldest

    def etag(self, file_id: int) -> str:
        """Hex MD5 of the parts' MD5s, a dash, and their number; KeyError for an unknown file."""
        md5s = bytearray()
        for packed in self._known(file_id)._packed_runs():
            md5s += b"".join(map(itemgetter(0), _MD5.iter_unpack(memoryview(packed)[_RUN.size :])))
        return hashing.etag(md5s)

    def packs_of(self, file_id: int) -> list[int]:
        """The packs that a file lies in, each once, in order of use; KeyError for an unknown file."""
        return list(dict.fromkeys(map(_pack_id, self._known(file_id)._packed_runs())))

    def is_used(self, pack: int) -> bool:
        """Whether any file lies in this pack; a deleted one does until it is `Removed`."""
        return pack in self._packs

    def live_bytes_of(self, pack: int) -> int:
        """Bytes in a pack, headers and payloads, of files that are stored or being stored, not of deleted ones."""
        return self._packs.get(pack) or 0

    def footprint(self, file_id: int) -> int:
        """Bytes of a file, headers and payloads, in packs that no other file uses; KeyError for an unknown file."""
        runs = self._known(file_id)._packed_runs()
        own = Counter(map(_pack_id, runs))
        shared = {pack for pack, runs_of_it in own.items() if self._more_runs.get(pack, 0) >= runs_of_it}
        return sum(_footprint(run) for run in runs if _pack_id(run) not in shared)

    def live_packs(self) -> set[int]:
        """All packs that are used."""
        return set(self._packs)

    def interrupted(self) -> list[File]:
        """The files being stored: after a replay, those whose put was cut short."""
        return list(self._storing.values())

    @property
    def files_damaged(self) -> int:
        """How many readable files have parts known to be bad."""
        return len(self._bad)

    def damaged(self, most: int | None = None) -> list[File]:
        """The files that have parts known to be bad, or `most` of them."""
        return [file for file in map(self._files.get, islice(self._bad, most)) if file is not None]

    def deleting(self) -> list[File]:
        """The deleted files whose packs have not been reported removed."""
        return list(self._deleting.values())

    def snapshot(self) -> Snapshot:
        """The state of now as records that recreate it, consumable in pieces while others are applied."""
        if self._snapshot is not None:
            raise RuntimeError("a snapshot is being taken")
        self._snapshot = Snapshot(self)
        return self._snapshot

    # --- helpers: checking ---

    def _known(self, file_id: int) -> File:
        file = self._files.get(file_id)
        if file is None:
            raise KeyError(file_id)
        return file

    def _need(self, file_id: int, statuses: tuple[Status, ...], doing: str) -> File:
        file = self._files.get(file_id)
        if file is None:
            raise RegistryError(f"{doing}: there is no file {file_id}")
        if file.status not in statuses:
            raise RegistryError(f"{doing}: file {file_id} is {file.status.value}")
        return file

    @staticmethod
    def _check_announced(file: File, record: Ready) -> None:
        if file.status is not _STORING or file.name != record.name:
            raise RegistryError(f"ready: {file!r} is not being stored as {record.name!r}")
        if file.part_size != record.part_size:
            raise RegistryError(f"ready: file {file.id} has parts of {file.part_size} bytes, not {record.part_size}")

    def _holder(self, name: bytes, replaces: int, file_id: int) -> File | None:
        """The file to be replaced when `file_id` gets a name; RegistryError when it must not have it."""
        storing = self._storing.get(name)
        if storing is not None and storing.id != file_id:
            raise RegistryError(f"file {file_id}: {name!r} is being stored as file {storing.id}")
        holder = self._readable.get(name)
        if holder is None and not replaces:
            return None
        if replaces and (holder is None or holder.id != replaces or replaces == file_id):
            raise RegistryError(f"file {file_id}: {name!r} is not the name of file {replaces}, to be replaced")
        if holder is not None and not replaces and holder.id != file_id:
            raise RegistryError(f"file {file_id}: {name!r} is the name of file {holder.id}")
        return holder if replaces else None

    def _pack(self, run: Run, part_size: int) -> _Packed:
        """Pack a run. Only its last part may be shorter than `part_size`; they lie one after the other."""
        head, rows = run.head, run.parts
        full, total, total_stored, end = len(rows) - 1, 0, 0, 0
        packed: list[bytes] = []
        try:
            for offset, size, stored, codec, md5 in rows:
                if size != part_size and (len(packed) != full or not 0 < size < part_size):
                    raise RegistryError(
                        f"part {run.seq + len(packed)} has {size} bytes in a file of parts of {part_size}"
                    )
                if offset < end:
                    raise RegistryError(f"part {run.seq + len(packed)} overlaps the one before it in pack {run.pack}")
                end = offset + head + stored
                total += size
                total_stored += stored
                packed.append(_ROW.pack(offset, size, stored, self._codec_index(codec), unhexlify(md5)))
            count = len(packed)
            footprint = total_stored + head * max(1, count)  # an end marker is a header
            packed.insert(0, _RUN.pack(run.pack, run.part, run.seq, head, footprint))
        except (StructError, ValueError) as error:
            raise RegistryError(str(error)) from error
        return b"".join(packed), count, total, total_stored

    def _codec_index(self, codec: str) -> int:
        index = self._codecs.get(codec)
        if index is None:
            index = self._codecs[codec] = len(self._codec_names)
            self._codec_names.append(codec)
        return index

    # --- helpers: bookkeeping ---

    def _keep(self, file_id: int, file: File) -> None:
        """Called before a file changes: a snapshot under way may still need it as it was."""
        if self._snapshot is not None:
            self._snapshot._keep(file_id, file)

    def _enter(self, file_id: int, file: File) -> None:
        if self._snapshot is not None:
            self._snapshot._pass_over(file_id)
        self._files[file_id] = file
        if file_id >= self.next_file:
            self.next_file = file_id + 1
        self.live_bytes += FILE_BYTES + len(file.name)

    def _leave(self, file_id: int, file: File) -> None:
        del self._files[file_id]
        runs = file._packed_runs()
        if file.status is _STORING:
            self._bury(*runs)
        for run in runs:
            self._release_pack(run)
        self.live_bytes -= FILE_BYTES + len(file.name) + RUN_BYTES * len(runs) + PART_BYTES * file.parts

    def _add(self, run: Run) -> None:
        """Count a run that a file gets; the caller puts it in."""
        footprint, parts = (0 if run.parts else run.head), 0
        for row in run.parts:
            footprint += run.head + row[2]
            parts += 1
        self._use_pack(run.pack, footprint)
        if run.part + parts > self.next_part:
            self.next_part = run.part + parts
        self.live_bytes += RUN_BYTES + PART_BYTES * parts

    def _retire(self, file_id: int, file: File) -> None:
        """From readable to deleting."""
        self._keep(file_id, file)
        _, _, _, size, stored, parts = _FACTS.unpack_from(file._facts)
        self._count(-1, parts, size, stored)
        del self._readable[file.name]
        self._bury(*file._packed_runs())
        file.status = Status.DELETING
        self._bad.pop(file_id, None)
        self._deleting[file_id] = file

    def _use_pack(self, pack: int, footprint: int) -> None:
        """A pack has one run more."""
        if pack >= self.next_pack:
            self.next_pack = pack + 1
            self._packs[pack] = footprint
            return
        place = self._packs.place(pack)
        if place is None:
            self._packs[pack] = footprint
            return
        live_bytes, at = place
        live_bytes[at] += footprint
        self._more_runs[pack] = self._more_runs.get(pack, 0) + 1

    def _release_pack(self, run: bytes) -> None:
        """A pack has one run less, whose bytes do not count any more."""
        pack = _pack_id(run)
        more = self._more_runs.pop(pack, 0)
        if not more:
            del self._packs[pack]
        elif more > 1:
            self._more_runs[pack] = more - 1

    def _bury(self, *runs: bytes) -> None:
        """The bytes of runs do not count as live any more, though their file still uses the packs."""
        for run in runs:
            place = self._packs.place(_pack_id(run))
            assert place is not None
            live_bytes, at = place
            live_bytes[at] -= _footprint(run)

    def _count(self, sign: int, parts: int, size: int, stored: int) -> None:
        """A readable file of so much comes or goes."""
        self.files_ready += sign
        self.parts_ready += sign * parts
        self.size += sign * size
        self.stored += sign * stored

    # --- helpers: unpacking ---

    def _unpack_runs(
        self, file_id: int, part_size: int, runs: Iterable[bytes], first: int, last: int
    ) -> Iterator[list[Part]]:
        for packed in runs:
            pack, part_id, seq, head, _ = _RUN.unpack_from(packed)
            if seq > last:
                return
            wanted = [
                Part(
                    part_id + index,
                    file_id,
                    seq + index,
                    (seq + index) * part_size,
                    size,
                    stored,
                    self._codec_names[codec],
                    md5,
                    pack,
                    offset,
                    head,
                )
                for index, (offset, size, stored, codec, md5) in enumerate(_rows(packed))
                if first <= seq + index <= last
            ]
            if wanted:
                yield wanted

    def _verified_records(self) -> list[Verified]:
        """The stretches that were verified; the last is that before `to_verify`, for that is where it comes from."""
        records = [Verified(*stretch) for stretch in self._verified]
        done = sum(record.end <= self.to_verify for record in records)
        return records[done:] + records[:done]

    def _records_of(self, file: File, bad: Sequence[int]) -> Iterator[Record]:
        """The records that bring a file with these bad parts into its state; it must not change meanwhile."""
        runs = map(self._unpack_run, file._packed_runs())
        file_id = file.id
        if file.status is _STORING or file.parts > INLINE_PARTS:
            source = self._sources.get(file_id, _NO_SOURCE)
            yield Put(file_id, file.name, file.part_size, file.created, source.key, source.put.hex())
            for run in runs:
                yield Parts(file_id, run)
        if file.status is _STORING:
            return
        yield Ready(file_id, file.name, file.size, file.part_size, file.created, list(runs))
        if bad:
            yield Damage(file_id, list(bad))
        if file.status is Status.DELETING:
            yield Delete(file_id)

    def _unpack_run(self, packed: bytes) -> Run:
        pack, part, seq, head, _ = _RUN.unpack_from(packed)
        rows: list[PartRow] = [
            (offset, size, stored, self._codec_names[codec], md5.hex())
            for offset, size, stored, codec, md5 in _rows(packed)
        ]
        return Run(pack, seq, part, head, rows)


class _Kept(NamedTuple):
    """A file as it was when the snapshot began."""

    file: File
    bad: tuple[int, ...]


class Snapshot:
    """The state of the registries at one instant, as an iterator of records.

    Records may be applied while it is consumed: a file about to change that is still to come is copied first. So
    neither its start nor a step of it takes long, and it takes memory for what changes meanwhile, no more. Consume
    it to the end or `close` it; there is one at a time.
    """

    def __init__(self, registry: Registry) -> None:
        """Use `Registry.snapshot`."""
        self._registry = registry
        self._done = 0  # of the files that were readable, those up to this id
        self._kept: dict[int, _Kept | None] = {}  # by id; None was not there when the snapshot began
        self._records = self._generate(
            [Ids(registry.next_file, registry.next_part, registry.next_pack), *registry._verified_records()],
            list(registry._deleting),
            [file.id for file in registry._storing.values()],
        )

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        return next(self._records)

    def close(self) -> None:
        """Give up what is left of it."""
        self._records.close()
        self._detach()

    def _detach(self) -> None:
        if self._registry._snapshot is self:
            self._registry._snapshot = None
        self._kept.clear()

    def _keep(self, file_id: int, file: File) -> None:
        """This file is about to change."""
        done = file_id <= self._done and file.status in _READABLE
        if not done and file_id not in self._kept:
            self._kept[file_id] = self._as_it_is(file_id, file)

    def _pass_over(self, file_id: int) -> None:
        """This file is new."""
        self._kept.setdefault(file_id, None)

    def _as_it_is(self, file_id: int, file: File) -> _Kept:
        return _Kept(file._copy(), self._registry.bad_parts(file_id))

    def _generate(
        self, first: Sequence[Record], deleting: Sequence[int], storing: Sequence[int]
    ) -> Generator[Record, None, None]:
        # Deleted files first: each has its old name for a moment, which another file may have now. Files
        # being stored last: they reserve names which others may still have.
        # The end is marked by the record of ids again, so that a reader knows that no file is missing.
        yield from first
        for found in chain(self._those(deleting), self._readable(), self._those(storing)):
            yield from self._registry._records_of(*found)
        yield first[0]
        self._detach()

    def _those(self, file_ids: Sequence[int]) -> Iterator[_Kept]:
        for file_id in file_ids:
            # Whether it is there still or is kept, it was there when the snapshot began.
            yield self._kept.get(file_id) or self._as_it_is(file_id, self._registry._known(file_id))

    def _readable(self) -> Iterator[_Kept]:
        """Files that were readable: those in the registry, by id, then those that have left it since."""
        while page := self._registry.files_after(self._done, SNAPSHOT_PAGE):
            for file in page:
                file_id = file.id
                found = self._kept[file_id] if file_id in self._kept else self._as_it_is(file_id, file)
                self._done = file_id
                if found is not None and found.file.status in _READABLE:
                    self._kept.pop(file_id, None)
                    yield found
        self._done = 2**64
        for file_id in list(self._kept):
            found = self._kept[file_id]
            if found is not None and found.file.status in _READABLE:
                yield found


def _first_seq(packed: bytes) -> int:
    return int.from_bytes(packed[16:20], "little")


def _end_seq(packed: bytes) -> int:
    return _first_seq(packed) + _part_count(packed)


def _part_count(packed: bytes) -> int:
    return (len(packed) - _RUN.size) // _ROW.size


def _pack_id(packed: bytes) -> int:
    return int.from_bytes(packed[:8], "little")


def _footprint(packed: bytes) -> int:
    return int.from_bytes(packed[24:32], "little")


def _same_parts(one: bytes, other: bytes) -> bool:
    """Whether two runs are of the same parts, wherever these lie."""
    same_ids = one[8:20] == other[8:20] and len(one) == len(other)
    return same_ids and all(row[1:] == moved[1:] for row, moved in zip(_rows(one), _rows(other), strict=True))


def _rows(packed: bytes) -> Iterator[tuple[int, int, int, int, bytes]]:
    return _ROW.iter_unpack(memoryview(packed)[_RUN.size :])


def _place_for(run: bytes, runs: Sequence[bytes], file_id: int) -> int:
    """Where a run belongs among others of its file, which are in order of seq; RegistryError if they overlap."""
    seq = _first_seq(run)
    at = bisect_left(runs, seq, key=_first_seq)
    if at and _end_seq(runs[at - 1]) > seq:
        raise RegistryError(f"file {file_id} has part {seq} already")
    if at < len(runs) and _first_seq(runs[at]) < max(seq + 1, _end_seq(run)):
        raise RegistryError(f"file {file_id} has part {_first_seq(runs[at])} already")
    return at


def _check_complete(runs: Sequence[bytes], parts: int, size: int, record: Ready) -> None:
    """RegistryError unless runs of so many parts and bytes make a file without gap, short only at its end.

    They do not overlap, and no part is bigger than the part size: so it is enough to count.
    """
    if size != record.size:
        raise RegistryError(f"ready: the parts of file {record.file} have {size} bytes, not {record.size}")
    if not runs:
        return
    last = runs[-1]
    if _end_seq(last) != parts:
        raise RegistryError(f"ready: file {record.file} has {parts} parts, but the last is to be part {_end_seq(last)}")
    if len(last) == _RUN.size and len(runs) > 1:  # an end marker
        last = runs[-2]
    if size != (parts and (parts - 1) * record.part_size + _last_size(last)):
        raise RegistryError(f"ready: file {record.file} has a short part before its end")


def _last_size(packed: bytes) -> int:
    return int.from_bytes(packed[-_ROW.size + 8 : -_ROW.size + 12], "little")
