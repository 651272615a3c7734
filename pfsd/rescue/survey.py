"""What is in the packs of a store, held against what the registries say of them. Reads packs, and writes nothing.

Headers are always read, content where it is asked for: then some processes decode and hash it, a pack at a time.
"""

from __future__ import annotations

import errno
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

from pfsd import disk, hashing, packs
from pfsd.errors import Corrupt, Missing, ProcessesUnavailable
from pfsd.packs import Found, Origin
from pfsd.registry import File, Part, Registry, Status
from pfsd.stores.local import LocalStore, open_for_reading

#: Less content than this is checked by this process alone: starting others would take longer.
ALONE_BYTES = 32 << 20
#: Files that are asked for at once.
PAGE = 256
_LARGEST = 2**63 - 1


class Sighting(NamedTuple):
    """A part in a pack that no record names there; `seq` of an end marker (size 0) is the number of parts."""

    origin: Origin
    pack: int
    offset: int
    head: int
    seq: int
    size: int
    stored: int
    codec: str
    md5: bytes
    #: Not behind damage, where it may be content of another file.
    certain: bool


@dataclass
class Seen:
    """A pack that is there."""

    size: int
    damage: list[packs.Damage] = field(default_factory=list)
    strangers: int = 0  # parts of another store
    files: set[int] = field(default_factory=set)  # of parts that no record names here
    unreadable: str = ""


@dataclass
class Survey:
    """What the packs of a store hold."""

    packs: dict[int, Seen] = field(default_factory=dict)
    #: file -> seq -> why this part, which a record names, is not there or not sound.
    bad: dict[int, dict[int, str]] = field(default_factory=dict)
    #: Packs that records name, and why each cannot be used.
    missing: dict[int, str] = field(default_factory=dict)
    #: file -> its parts that are elsewhere than a record says, or that no record names.
    loose: dict[int, list[Sighting]] = field(default_factory=dict)
    #: Places (pack, offset) of loose parts whose content is damaged.
    unsound: dict[tuple[int, int], str] = field(default_factory=dict)
    #: Files being stored -> sizes that their parts state.
    sizes: dict[int, set[int]] = field(default_factory=dict)
    parts: int = 0
    bytes: int = 0
    last_file: int = 0
    last_pack: int = 0

    def note_bad(self, file: int, seq: int, why: str) -> None:
        """A part that a record names cannot be used."""
        self.bad.setdefault(file, {})[seq] = why


# --- which store --------------------------------------------------------------------------------


def store_of_packs(store: LocalStore) -> bytes | None:
    """The store that most packs say they belong to; None when none says anything."""
    votes: Counter[bytes] = Counter()
    for pack, size in store.list():
        try:
            with store.open(pack) as reader:
                header, _ = packs.read_header(reader.read(0, min(size, packs.MAX_HEADER_BYTES)))
        except (packs.PackError, Corrupt, Missing, OSError):
            continue
        votes[header.origin.store] += 1
    return votes.most_common(1)[0][0] if votes else None


# --- headers ------------------------------------------------------------------------------------


#: pack -> stretches of parts that records place there: file, first and last seq.
_Expected = dict[int, list[tuple[int, int, int]]]


def survey(store: LocalStore, registry: Registry, store_id: bytes) -> Survey:
    """Read all headers of all packs."""
    expected, ends = _expected(registry)
    found = Survey()
    origins: dict[Origin, Origin] = {}
    for pack, size in store.list():
        seen = found.packs[pack] = Seen(size)
        found.last_pack = max(found.last_pack, pack)
        parts = {part.pack_offset: part for at in expected.pop(pack, ()) for part in registry.parts(*at)}
        lost = False  # something that is surely no part was passed
        try:
            with store.open(pack) as reader:
                for item in packs.scan(reader.read, reader.size):
                    if isinstance(item, packs.Damage):
                        seen.damage.append(item)
                        lost |= not item.is_one_part
                    elif item.header.origin.store != store_id or not _is_possible(item):
                        seen.strangers += 1
                    elif not _is_expected(item, parts, found, registry):
                        _note_loose(found, pack, item, not lost, ends, origins)
        except (Corrupt, Missing, OSError) as error:
            seen.unreadable = _words(error)
        for part in parts.values():
            found.note_bad(part.file, part.seq, _why_bad(part, seen))
    for pack in {pack for pack, _ in ends} - found.packs.keys() - expected.keys():
        found.missing[pack] = f"{_why_missing(store, pack)}; it told the end of a file, which is known"
    for pack, stretches in expected.items():
        why = found.missing[pack] = _why_missing(store, pack)
        for part in chain.from_iterable(registry.parts(*at) for at in stretches):
            found.note_bad(part.file, part.seq, why)
    return found


def note_lost(found: Survey, lost: Iterable[tuple[int, Path]], store_id: bytes) -> None:
    """See that no id in a pack that was moved aside is given out again: it may be put back."""
    for pack, path in lost:
        found.last_pack = max(found.last_pack, pack)
        fd = disk.open_file(path, disk.READ)
        try:
            for item in packs.scan(lambda offset, length, fd=fd: disk.read(fd, length, offset), disk.size(fd)):  # type: ignore[misc]
                if isinstance(item, packs.Damage):
                    if not item.is_one_part:
                        break  # what is behind it may be content of a file
                elif item.header.origin.store == store_id and _is_possible(item):
                    found.last_file = max(found.last_file, item.header.origin.file)
        except OSError:
            continue  # it told nothing before, either
        finally:
            disk.close(fd)


def _expected(registry: Registry) -> tuple[_Expected, set[tuple[int, int]]]:
    """What records place in which pack; and of which (pack, file) there is an end marker."""
    expected: _Expected = {}
    ends = set()
    for file in all_files(registry):
        for run in registry.stored_runs(file.id):
            if run.parts:
                expected.setdefault(run.pack, []).append((file.id, run.seq, run.seq + len(run.parts) - 1))
            else:
                ends.add((run.pack, file.id))
    return expected, ends


def all_files(registry: Registry) -> Iterator[File]:
    """The files that are stored or being stored, by id."""
    last = 0
    while page := registry.files_after(last, PAGE):
        yield from (file for file in page if file.status is not Status.DELETING)
        last = page[-1].id


def _is_possible(item: Found) -> bool:
    """Whether records could say the same."""
    origin = item.header.origin
    return 1 <= origin.file <= _LARGEST and origin.created <= _LARGEST and b"\0" not in origin.name


def _is_expected(item: Found, parts: dict[int, Part], found: Survey, registry: Registry) -> bool:
    """Whether this is the part that a record places there; it is then taken from `parts`."""
    part, header = parts.get(item.offset), item.header
    if part is None or (part.file, part.seq, part.head) != (header.origin.file, header.seq, item.head):
        return False
    if (part.size, part.stored, part.codec, part.md5) != (header.size, header.stored, header.codec, header.md5):
        return False
    del parts[item.offset]
    found.parts += 1
    found.bytes += part.size
    file = registry.file(part.file)
    if file is not None and file.status is Status.STORING and header.origin.file_size is not None:
        found.sizes.setdefault(part.file, set()).add(header.origin.file_size)
    return True


def _note_loose(
    found: Survey, pack: int, item: Found, certain: bool, ends: set[tuple[int, int]], origins: dict[Origin, Origin]
) -> None:
    header = item.header
    file = header.origin.file
    if header.is_end and (pack, file) in ends:
        return
    origin = origins.setdefault(header.origin, header.origin)
    rest = (header.seq, header.size, header.stored, header.codec, header.md5)
    found.loose.setdefault(file, []).append(Sighting(origin, pack, item.offset, item.head, *rest, certain))
    found.packs[pack].files.add(file)
    if certain:
        found.last_file = max(found.last_file, file)


def _why_bad(part: Part, seen: Seen) -> str:
    if seen.unreadable:
        return seen.unreadable
    if part.pack_offset + part.head + part.stored > seen.size:
        return f"pack {part.pack:016x} ends at byte {seen.size}, before the part does"
    return f"at byte {part.pack_offset} of pack {part.pack:016x} its header is damaged, or another part lies there"


def _why_missing(store: LocalStore, pack: int) -> str:
    try:
        with store.open(pack):
            return f"pack {pack:016x} is in the wrong place"
    except (Missing, Corrupt) as error:
        return error.message
    except OSError as error:
        return _words(error)


def _words(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"the disk says: {os.strerror(error.errno or errno.EIO)}"
    return str(error)


# --- content ------------------------------------------------------------------------------------


class Row(NamedTuple):
    """A part to decode and hash."""

    file: int
    seq: int
    offset: int
    head: int
    size: int
    stored: int
    codec: str
    md5: bytes


#: A part of a pack that failed: file, seq, offset of its header, why.
_Bad = tuple[int, int, int, str]


def prove_loose(found: Survey, path: Path, store_id: bytes, files: Iterable[int], processes: int) -> None:
    """Read the content of the loose parts of these files, and note what is not sound."""
    rows: dict[int, list[Row]] = {}
    for file in files:
        for at in found.loose[file]:
            if at.size:
                row = Row(file, at.seq, at.offset, at.head, at.size, at.stored, at.codec, at.md5)
                rows.setdefault(at.pack, []).append(row)
    for pack, bad in _prove(path, store_id, rows, processes):
        found.unsound.update(((pack, offset), why) for _, _, offset, why in bad)


def prove_known(found: Survey, registry: Registry, path: Path, store_id: bytes, processes: int) -> None:
    """Read the content of all parts that records name, and note what is not sound."""
    for _, bad in _prove(path, store_id, _LazyRows(found, registry), processes):
        for file, seq, _, why in bad:
            found.note_bad(file, seq, why)


class _LazyRows(Mapping[int, Sequence[Row]]):
    """pack -> parts in it that have a sound header; made when they are wanted."""

    def __init__(self, found: Survey, registry: Registry) -> None:
        expected, _ = _expected(registry)
        self._expected = {pack: at for pack, at in expected.items() if pack in found.packs}
        self._found = found
        self._registry = registry

    def __getitem__(self, pack: int) -> list[Row]:
        parts = chain.from_iterable(self._registry.parts(*at) for at in self._expected[pack])
        return [
            Row(part.file, part.seq, part.pack_offset, part.head, part.size, part.stored, part.codec, part.md5)
            for part in parts
            if part.seq not in self._found.bad.get(part.file, ())
        ]

    def __iter__(self) -> Iterator[int]:
        return iter(self._expected)

    def __len__(self) -> int:
        return len(self._expected)


def _prove(
    path: Path, store_id: bytes, rows: Mapping[int, Sequence[Row]], processes: int
) -> Iterator[tuple[int, list[_Bad]]]:
    """Check parts by packs; what failed of each pack that is not sound."""
    waiting = ((pack, rows[pack]) for pack in rows)
    few: list[tuple[int, Sequence[Row]]] = []
    for pack, of_pack in waiting:
        few.append((pack, of_pack))
        if sum(row.stored for _, some in few for row in some) > ALONE_BYTES or len(few) > PAGE:
            break
    else:
        yield from ((pack, bad) for pack, some in few if (bad := check_pack(path, store_id, pack, some)))
        return
    under_way: deque[tuple[int, Future[list[_Bad]]]] = deque()
    with ProcessPoolExecutor(processes, mp_context=get_context("forkserver")) as pool:
        try:
            for pack, some in chain(few, waiting):
                under_way.append((pack, pool.submit(check_pack, path, store_id, pack, some)))
                if len(under_way) >= 4 * processes:
                    yield from _result(*under_way.popleft())
            while under_way:
                yield from _result(*under_way.popleft())
        except BrokenProcessPool as error:
            raise ProcessesUnavailable("a process that checks content was killed; nothing was changed") from error


def _result(pack: int, result: Future[list[_Bad]]) -> Iterator[tuple[int, list[_Bad]]]:
    if bad := result.result():
        yield pack, bad


def check_pack(path: Path, store_id: bytes, pack: int, rows: Sequence[Row]) -> list[_Bad]:
    """Decode and hash parts of one pack, one at a time; those that are not what they should be."""
    bad: list[_Bad] = []
    try:
        with open_for_reading(path).open(pack) as reader:
            for row in rows:
                try:
                    encoded = reader.read(row.offset, row.head + row.stored)
                    content = packs.decode_part(encoded, store_id, row.file, row.seq, row)
                    if hashing.md5(content) != row.md5:
                        raise Corrupt("its content does not have the MD5 that its header states")
                except (Corrupt, OSError) as error:
                    why = f"at byte {row.offset} of pack {pack:016x}: {_words(error)}"
                    bad.append((row.file, row.seq, row.offset, why))
    except (Corrupt, Missing, OSError) as error:
        bad = [(row.file, row.seq, row.offset, _words(error)) for row in rows]
    return bad
