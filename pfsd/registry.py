"""The file registry and the part registry: what is known of files and parts, in memory.

`Registry.apply(record)` is the only way their state changes, live and at replay alike. A record that does not
fit raises RegistryError and changes nothing. The registry must never know where records are kept, who asks,
or how a store works; it does no I/O and belongs to one thread.

Parts are held packed, one `bytes` per run, since there are millions of them (little-endian):

    run   +0 u64 pack | +8 u64 id of first part | +16 u32 seq of first part | +20 u32 header bytes of a part
          +24 u64 bytes it takes in its pack, headers and payloads
    then for each part, 33 bytes
          +0 u64 offset in the pack | +8 u32 size | +12 u32 stored | +16 u8 codec (index) | +17 16 bytes md5
"""

from __future__ import annotations

from binascii import unhexlify
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from enum import Enum
from itertools import chain
from operator import lt
from struct import Struct
from struct import error as StructError
from typing import Any, NamedTuple

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
    decode,
)

_RUN = Struct("<QQIIQ")
_ROW = Struct("<QIIB16s")

#: Parts that a snapshot writes into a Ready record; files of more are written as Put, Parts, Ready.
INLINE_PARTS = 256

#: What records cost in the journal, in bytes: close enough to tell when compaction pays.
FILE_BYTES = 145
RUN_BYTES = 60
PART_BYTES = 66


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


class File:
    """A file, changed by the registry alone; it stays the same object as long as the file exists.

    `size` and `stored` (bytes after compression) and `parts` (their number) count what is known so far;
    `created` is in ns since the epoch, `part_size` in bytes.
    """

    __slots__ = ("_bad", "_runs", "created", "id", "name", "part_size", "parts", "size", "status", "stored")

    def __init__(self, id: int, name: bytes, part_size: int, created: int) -> None:
        self.id = id
        self.name = name
        self.part_size = part_size
        self.created = created
        self.status = _STORING
        self.size = 0
        self.stored = 0
        self.parts = 0
        # Most files have one run: a list for each would cost as much as the run.
        self._runs: bytes | list[bytes] = b""
        self._bad: tuple[int, ...] = ()

    def __repr__(self) -> str:
        return f"File({self.id}, {self.name!r}, {self.status.value}, size={self.size}, parts={self.parts})"

    def _packed_runs(self) -> Sequence[bytes]:
        """The runs in order of their seq."""
        if isinstance(self._runs, list):
            return self._runs
        return (self._runs,) if self._runs else ()

    def _copy(self) -> File:
        """As it is now, for a snapshot."""
        twin = File(self.id, self.name, self.part_size, self.created)
        twin.status, twin.size, twin.stored, twin.parts = self.status, self.size, self.stored, self.parts
        twin._runs = list(self._runs) if isinstance(self._runs, list) else self._runs
        twin._bad = self._bad
        return twin


class _Packed(NamedTuple):
    """A checked run, packed, and what it adds to its file."""

    data: bytes
    parts: int
    size: int
    stored: int


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
        self._files: dict[int, File] = {}
        self._readable: dict[bytes, File] = {}
        self._storing: dict[bytes, File] = {}
        self._deleting: dict[int, File] = {}
        self._ids: list[int] = []  # ascending; some may be of files that are forgotten
        self._pack_users: dict[int, int] = {}  # pack -> its runs, of files of any status
        self._pack_live: dict[int, int] = {}  # pack -> bytes in it of files that are stored or being stored
        self._codecs: list[str] = []
        self._snapshot: Snapshot | None = None
        self._handlers: dict[type, Callable[[Any], None]] = {
            Put: self._put,
            Parts: self._parts,
            Ready: self._ready,
            Drop: self._drop,
            Delete: self._delete,
            Removed: self._removed,
            Rename: self._rename,
            Damage: self._damage,
            Moved: self._moved,
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
        file = File(record.file, record.name, record.part_size, record.created)
        self._enter(file)
        self._storing[file.name] = file

    def _parts(self, record: Parts) -> None:
        file = self._need(record.file, (Status.STORING,), "parts")
        run = self._pack(record.run, file.part_size)
        runs = [*file._packed_runs()] if not isinstance(file._runs, list) else file._runs
        at = bisect_left(runs, record.run.seq, key=_first_seq)
        if at and _end_seq(runs[at - 1]) > record.run.seq:
            raise RegistryError(f"parts: file {file.id} has part {record.run.seq} already")
        if at < len(runs) and _first_seq(runs[at]) < record.run.seq + max(1, run.parts):
            raise RegistryError(f"parts: file {file.id} has part {_first_seq(runs[at])} already")
        self._keep(file)
        self._add(file, (run,))
        runs.insert(at, run.data)
        file._runs = runs

    def _ready(self, record: Ready) -> None:
        file = self._files.get(record.file)
        if file is not None and (file.status is not Status.STORING or file.name != record.name):
            raise RegistryError(f"ready: {file!r} is not being stored as {record.name!r}")
        if file is not None and file.part_size != record.part_size:
            raise RegistryError(f"ready: file {file.id} has parts of {file.part_size} bytes, not {record.part_size}")
        replaced = self._holder(record.name, record.replaces, record.file)
        added = [self._pack(run, record.part_size) for run in record.runs]
        runs = [run.data for run in added]
        size = file.size if file is not None else 0
        for run in added:
            size += run.size
        if file is not None:
            runs = sorted([*file._packed_runs(), *runs], key=_first_seq)
        _check_complete(runs, record)
        if size != record.size:
            raise RegistryError(f"ready: the parts of file {record.file} have {size} bytes, not {record.size}")

        if replaced is not None:
            self._retire(replaced)
        if file is None:
            file = File(record.file, record.name, record.part_size, record.created)
            self._enter(file)
        else:
            self._keep(file)
            del self._storing[file.name]
        self._add(file, added)
        file._runs = runs[0] if len(runs) == 1 else runs or b""
        file.created = record.created
        file.status = _READY
        self._readable[file.name] = file
        self._count(file, 1)

    def _drop(self, record: Drop) -> None:
        file = self._files.get(record.file)
        if file is None:  # a put that had not been announced
            self.next_file = max(self.next_file, record.file + 1)
            return
        self._need(record.file, (Status.STORING,), "drop")
        self._keep(file)
        del self._storing[file.name]
        self._bury(file)
        self._leave(file)

    def _delete(self, record: Delete) -> None:
        self._retire(self._need(record.file, _READABLE, "delete"))

    def _removed(self, record: Removed) -> None:
        file = self._need(record.file, (Status.DELETING,), "removed")
        self._keep(file)
        del self._deleting[file.id]
        self._leave(file)

    def _rename(self, record: Rename) -> None:
        file = self._need(record.file, _READABLE, "rename")
        replaced = self._holder(record.name, record.replaces, record.file)
        if replaced is not None:
            self._retire(replaced)
        self._keep(file)
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
        self._keep(file)
        file._bad = tuple(record.parts)
        file.status = Status.DAMAGED if file._bad else Status.READY

    def _moved(self, record: Moved) -> None:
        file = self._need(record.file, _READABLE, "moved")
        new = self._pack(record.run, file.part_size)
        runs = file._packed_runs()
        at = bisect_left(runs, record.run.seq, key=_first_seq)
        if at == len(runs) or not _same_parts(runs[at], new.data):
            raise RegistryError(f"moved: file {file.id} has no run from part {record.run.seq} with these parts")
        old = runs[at]
        self._keep(file)
        self._use_pack(new.data)
        self._bury_run(old)
        self._release_pack(old)
        if isinstance(file._runs, list):
            file._runs[at] = new.data
        else:
            file._runs = new.data

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

    def name_taken(self, name: bytes) -> File | None:
        """The file that has this name or is being stored under it."""
        return self._readable.get(name) or self._storing.get(name)

    def files_after(self, last_id: int, count: int) -> list[File]:
        """Up to `count` files of any status with ids above `last_id`, by id; empty at the end.

        Page by passing the last id got: files that stay are seen once, whatever comes and goes meanwhile.
        """
        found: list[File] = []
        at = bisect_right(self._ids, last_id)
        while at < len(self._ids) and len(found) < count:
            file = self._files.get(self._ids[at])
            if file is not None:
                found.append(file)
            at += 1
        return found

    def parts(self, file_id: int, first: int = 0, last: int | None = None) -> Iterator[Part]:
        """The parts from seq `first` to seq `last`, both included; KeyError for an unknown file."""
        return (part for run in self.runs(file_id, first, last) for part in run)

    def runs(self, file_id: int, first: int = 0, last: int | None = None) -> Iterator[list[Part]]:
        """The same parts by runs: each list is in one pack, in order of offset."""
        file = self._files[file_id]
        packed = file._packed_runs()
        at = max(0, bisect_right(packed, first, key=_first_seq) - 1)
        # The slice is a copy: what is being stored may grow meanwhile.
        return self._unpack_runs(file.id, file.part_size, packed[at:], first, 2**63 if last is None else last)

    def bad_parts(self, file_id: int) -> tuple[int, ...]:
        """Sequence numbers of the parts known to be bad, ascending; KeyError for an unknown file."""
        return self._files[file_id]._bad

    def etag(self, file_id: int) -> str:
        """Hex MD5 of the parts' MD5s, a dash, and their number; KeyError for an unknown file."""
        md5s = bytearray()
        for packed in self._files[file_id]._packed_runs():
            md5s += b"".join([packed[at : at + 16] for at in range(_RUN.size + 17, len(packed), _ROW.size)])
        return hashing.etag(md5s)

    def packs_of(self, file_id: int) -> list[int]:
        """The packs that a file lies in, each once, in order of use; KeyError for an unknown file."""
        return list(dict.fromkeys(map(_pack_id, self._files[file_id]._packed_runs())))

    def is_used(self, pack: int) -> bool:
        """Whether any file lies in this pack; a deleted one does until it is `Removed`."""
        return pack in self._pack_users

    def live_bytes_of(self, pack: int) -> int:
        """Bytes in a pack, headers and payloads, of files that are stored or being stored, not of deleted ones."""
        return self._pack_live.get(pack, 0)

    def footprint(self, file_id: int) -> int:
        """Bytes of a file, headers and payloads, in packs that no other file uses; KeyError for an unknown file."""
        runs = self._files[file_id]._packed_runs()
        own = Counter(map(_pack_id, runs))
        return sum(_footprint(run) for run in runs if self._pack_users[_pack_id(run)] == own[_pack_id(run)])

    def live_packs(self) -> set[int]:
        """All packs that are used."""
        return set(self._pack_users)

    def interrupted(self) -> list[File]:
        """The files being stored: after a replay, those whose put was cut short and is to be dropped."""
        return list(self._storing.values())

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

    def _need(self, file_id: int, statuses: tuple[Status, ...], doing: str) -> File:
        file = self._files.get(file_id)
        if file is None:
            raise RegistryError(f"{doing}: there is no file {file_id}")
        if file.status not in statuses:
            raise RegistryError(f"{doing}: file {file_id} is {file.status.value}")
        return file

    def _holder(self, name: bytes, replaces: int, file_id: int) -> File | None:
        """The file to be replaced when `file_id` gets a name; RegistryError when it must not have it."""
        storing = self._storing.get(name)
        if storing is not None and storing.id != file_id:
            raise RegistryError(f"file {file_id}: {name!r} is being stored as file {storing.id}")
        holder = self._readable.get(name)
        if replaces and (holder is None or holder.id != replaces or replaces == file_id):
            raise RegistryError(f"file {file_id}: {name!r} is not the name of file {replaces}, to be replaced")
        if holder is not None and not replaces and holder.id != file_id:
            raise RegistryError(f"file {file_id}: {name!r} is the name of file {holder.id}")
        return holder if replaces else None

    def _pack(self, run: Run, part_size: int) -> _Packed:
        """Pack a run. Only its last part may be shorter than `part_size`; they lie one after the other."""
        pieces, total, stored_total, end = [], 0, 0, 0
        last = len(run.parts) - 1
        try:
            for index, (offset, size, stored, codec, md5) in enumerate(run.parts):
                if size != part_size and not (index == last and 0 < size < part_size):
                    raise RegistryError(f"part {run.seq + index} has {size} bytes in a file of parts of {part_size}")
                if offset < end:
                    raise RegistryError(f"part {run.seq + index} overlaps the one before it in pack {run.pack}")
                end = offset + run.head + stored
                total += size
                stored_total += stored
                pieces.append(_ROW.pack(offset, size, stored, self._codec_index(codec), unhexlify(md5)))
            head = _RUN.pack(run.pack, run.part, run.seq, run.head, stored_total + run.head * len(run.parts))
        except (StructError, ValueError) as error:
            raise RegistryError(str(error)) from error
        return _Packed(head + b"".join(pieces), len(run.parts), total, stored_total)

    def _codec_index(self, codec: str) -> int:
        if codec not in self._codecs:
            self._codecs.append(codec)
        return self._codecs.index(codec)

    # --- helpers: bookkeeping ---

    def _keep(self, file: File) -> None:
        """Called before a file changes: a snapshot under way still needs it as it was."""
        if self._snapshot is not None:
            self._snapshot._keep(file)

    def _enter(self, file: File) -> None:
        self._files[file.id] = file
        if not self._ids or self._ids[-1] < file.id:
            self._ids.append(file.id)
        else:
            self._insert_id(file.id)
        if file.id >= self.next_file:
            self.next_file = file.id + 1
        self.live_bytes += FILE_BYTES + len(file.name)

    def _insert_id(self, file_id: int) -> None:
        at = bisect_left(self._ids, file_id)
        if self._ids[at] != file_id:
            self._ids.insert(at, file_id)

    def _leave(self, file: File) -> None:
        del self._files[file.id]
        for run in file._packed_runs():
            self._release_pack(run)
        self.live_bytes -= _live_bytes(file)
        if len(self._ids) > 2 * len(self._files) + 1024:
            self._ids = sorted(self._files)

    def _add(self, file: File, runs: Iterable[_Packed]) -> None:
        """Count runs that a file gets; the caller puts them in."""
        for run in runs:
            file.parts += run.parts
            file.size += run.size
            file.stored += run.stored
            self._use_pack(run.data)
            part = _RUN.unpack_from(run.data)[1]
            if part + run.parts > self.next_part:
                self.next_part = part + run.parts
            self.live_bytes += RUN_BYTES + PART_BYTES * run.parts

    def _retire(self, file: File) -> None:
        """From readable to deleting."""
        self._keep(file)
        self._count(file, -1)
        del self._readable[file.name]
        self._bury(file)
        file.status = Status.DELETING
        file._bad = ()
        self._deleting[file.id] = file

    def _use_pack(self, run: bytes) -> None:
        """A pack has one run more."""
        pack = _pack_id(run)
        self._pack_users[pack] = self._pack_users.get(pack, 0) + 1
        self._pack_live[pack] = self._pack_live.get(pack, 0) + _footprint(run)
        if pack >= self.next_pack:
            self.next_pack = pack + 1

    def _release_pack(self, run: bytes) -> None:
        """A pack has one run less, whose bytes do not count any more."""
        pack = _pack_id(run)
        self._pack_users[pack] -= 1
        if not self._pack_users[pack]:
            del self._pack_users[pack], self._pack_live[pack]

    def _bury(self, file: File) -> None:
        """The bytes of a file do not count as live any more, though it still uses its packs."""
        for run in file._packed_runs():
            self._bury_run(run)

    def _bury_run(self, run: bytes) -> None:
        self._pack_live[_pack_id(run)] -= _footprint(run)

    def _count(self, file: File, sign: int) -> None:
        self.files_ready += sign
        self.parts_ready += sign * file.parts
        self.size += sign * file.size
        self.stored += sign * file.stored

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
                    self._codecs[codec],
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

    def _records_of(self, file: File) -> Iterator[Record]:
        """The records that bring a file into its state; it must not change meanwhile."""
        runs = map(self._unpack_run, file._packed_runs())
        announced = file.status is Status.STORING or file.parts > INLINE_PARTS
        if announced:
            yield Put(file.id, file.name, file.part_size, file.created)
            for run in runs:
                yield Parts(file.id, run)
        if file.status is Status.STORING:
            return
        yield Ready(file.id, file.name, file.size, file.part_size, file.created, list(runs))
        if file._bad:
            yield Damage(file.id, list(file._bad))
        if file.status is Status.DELETING:
            yield Delete(file.id)

    def _unpack_run(self, packed: bytes) -> Run:
        pack, part, seq, head, _ = _RUN.unpack_from(packed)
        rows: list[PartRow] = [
            (offset, size, stored, self._codecs[codec], md5.hex()) for offset, size, stored, codec, md5 in _rows(packed)
        ]
        return Run(pack, seq, part, head, rows)


class Snapshot:
    """The state of the registries at one instant, as an iterator of records.

    Records may be applied while it is consumed: a file about to change is copied first. It costs 8 bytes for
    each file, and the copies. Consume it to the end or `close` it; there is one at a time.
    """

    def __init__(self, registry: Registry) -> None:
        """Use `Registry.snapshot`."""
        self._registry = registry
        self._kept: dict[int, File] = {}
        self._records = self._generate(
            Ids(registry.next_file, registry.next_part, registry.next_pack),
            list(registry._deleting),
            list(registry._files),
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

    def _keep(self, file: File) -> None:
        if file.id not in self._kept:
            self._kept[file.id] = file._copy()

    def _generate(
        self, ids: Ids, deleting: Sequence[int], files: Sequence[int], storing: Sequence[int]
    ) -> Generator[Record, None, None]:
        # Deleted files first: each has its old name for a moment, which another file may have now. Files
        # being stored last: they reserve names which others may still have.
        yield ids
        special = {*deleting, *storing}
        readable = (file_id for file_id in files if file_id not in special)
        for file_id in chain(deleting, readable, storing):
            # A copy: the file may change between two of its records.
            file = self._kept.get(file_id) or self._registry._files[file_id]._copy()
            yield from self._registry._records_of(file)
        self._detach()


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


def _live_bytes(file: File) -> int:
    return FILE_BYTES + len(file.name) + RUN_BYTES * len(file._packed_runs()) + PART_BYTES * file.parts


def _check_complete(runs: Sequence[bytes], record: Ready) -> None:
    """RegistryError unless the runs, in order of seq, make a file without gap, short only at its end."""
    expected = 0
    short = ended = False
    for packed in runs:
        count = _part_count(packed)
        if _first_seq(packed) != expected:
            raise RegistryError(
                f"ready: file {record.file} has a run from part {_first_seq(packed)} instead of {expected}"
            )
        if ended or (short and count):
            raise RegistryError(f"ready: file {record.file} goes on after its end, with part {expected}")
        if count:
            short = _last_size(packed) != record.part_size
        else:
            ended = True
        expected += count


def _last_size(packed: bytes) -> int:
    return int.from_bytes(packed[-_ROW.size + 8 : -_ROW.size + 12], "little")
