"""The registries: rules of each record, and a model that random records must agree with."""

from __future__ import annotations

import hashlib
import tracemalloc
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from msgspec import structs

from pfsd import registry as registry_module
from pfsd.records import (
    Damage,
    Delete,
    Drop,
    Ids,
    Moved,
    Parts,
    Put,
    Ready,
    Record,
    Removed,
    Rename,
    Run,
    Verified,
    encode,
)
from pfsd.registry import VERIFIED_BYTES, Part, Registry, RegistryError, Snapshot, Status

PART_SIZE = 100
CREATED = 5
HEAD = 10


def md5(seq: int) -> bytes:
    return hashlib.md5(str(seq).encode()).digest()


def run(pack: int, seq: int, sizes: Sequence[int], part: int = 1) -> Run:
    """Parts of these sizes, each stored in half as many bytes."""
    rows, offset = [], 0
    for at, size in enumerate(sizes):
        rows.append((offset, size, size // 2, "zstd", md5(seq + at).hex()))
        offset += HEAD + size // 2
    return Run(pack, seq, part, HEAD if rows else 0, rows)


def ready(file: int, name: bytes, *runs: Run, replaces: int = 0, size: int | None = None) -> Ready:
    total = sum(row[1] for run in runs for row in run.parts) if size is None else size
    return Ready(file, name, total, PART_SIZE, CREATED, list(runs), replaces)


def put(file: int, name: bytes) -> Put:
    return Put(file, name, PART_SIZE, CREATED)


def made(*records: Record) -> Registry:
    registry = Registry()
    for record in records:
        registry.apply(record)
    return registry


def state(registry: Registry) -> tuple[Any, ...]:
    """All there is to know, by what can be asked."""
    files = registry.files_after(0, 10**6)
    return (
        [
            (file.id, file.name, file.status, file.size, file.stored, file.parts, file.part_size, file.created)
            for file in files
        ],
        [list(registry.parts(file.id)) for file in files],
        [registry.bad_parts(file.id) for file in files],
        [registry.packs_of(file.id) for file in files],
        [registry.footprint(file.id) for file in files],
        {pack: registry.live_bytes_of(pack) for pack in registry.live_packs()},
        [[len(run) for run in registry.runs(file.id)] for file in files],
        registry.live_packs(),
        {file.id for file in registry.interrupted()},
        {file.id for file in registry.deleting()},
        {file.name: registry.find(file.name) and registry.find(file.name).id for file in files},
        {file.name: registry.name_taken(file.name) and registry.name_taken(file.name).id for file in files},
        [[registry.verified_at(file, seq) for seq in range(file.parts)] for file in files],
        (registry.to_verify, registry.first_verified_at(), registry.oldest_verified_at(), registry.known_bad),
        (registry.files_ready, registry.parts_ready, registry.size, registry.stored, registry.live_bytes),
    )


def ids(registry: Registry) -> tuple[int, int, int]:
    return registry.next_file, registry.next_part, registry.next_pack


def replayed(records: Snapshot | Sequence[Record]) -> Registry:
    """What comes of records that went through the journal."""
    registry = Registry()
    for record in records:
        registry.replay(encode(record))
    return registry


# --- files ---


def test_a_small_file() -> None:
    registry = made(ready(4, b"a", run(9, 0, [100, 30], part=21)))
    file = registry.find(b"a")
    assert file is not None and file is registry.file(4) and file is registry.name_taken(b"a")
    assert (file.id, file.size, file.stored, file.parts, file.created) == (4, 130, 65, 2, 5)
    assert file.status is Status.READY
    assert list(registry.parts(4)) == [
        Part(21, 4, 0, 0, 100, 50, "zstd", md5(0), 9, 0, HEAD),
        Part(22, 4, 1, 100, 30, 15, "zstd", md5(1), 9, 60, HEAD),
    ]
    assert registry.etag(4) == hashlib.md5(md5(0) + md5(1)).hexdigest() + "-2"
    assert (registry.files_ready, registry.parts_ready, registry.size, registry.stored) == (1, 2, 130, 65)


def test_an_empty_file_with_and_without_an_end_marker() -> None:
    registry = made(ready(1, b"a"), ready(2, b"b", run(7, 0, [])))
    for file_id in (1, 2):
        assert list(registry.parts(file_id)) == []
        assert registry.etag(file_id) == "d41d8cd98f00b204e9800998ecf8427e-0"
    assert registry.live_packs() == {7}


def test_a_big_file_is_readable_only_when_ready_and_runs_may_come_in_any_order() -> None:
    registry = made(put(1, b"a"), Parts(1, run(3, 4, [100, 100])), Parts(1, run(2, 0, [100] * 4)))
    file = registry.file(1)
    assert file is not None and file.status is Status.STORING and file.parts == 6
    assert registry.find(b"a") is None and registry.name_taken(b"a") is file
    assert registry.files_ready == 0 and registry.interrupted() == [file]
    registry.apply(ready(1, b"a", run(5, 7, []), run(4, 6, [1]), size=601))
    assert registry.find(b"a") is file and registry.interrupted() == []
    assert [part.seq for part in registry.parts(1)] == list(range(7))
    assert [part.pack for part in registry.parts(1)] == [2, 2, 2, 2, 3, 3, 4]


def test_ranges_of_parts_and_runs() -> None:
    registry = made(ready(1, b"a", run(1, 0, [100] * 3), run(2, 3, [100] * 3), run(3, 6, [50])))
    for first in range(7):
        for last in range(first, 8):
            seqs = list(range(first, min(last, 6) + 1))
            assert [part.seq for part in registry.parts(1, first, last)] == seqs
            assert [part.seq for run in registry.runs(1, first, last) for part in run] == seqs
    assert [[part.seq for part in run] for run in registry.runs(1, 2, 4)] == [[2], [3, 4]]
    assert [len(run) for run in registry.runs(1)] == [3, 3, 1]
    assert list(registry.parts(1, 7)) == []


def test_parts_of_a_growing_file_do_not_shift_under_a_reader() -> None:
    registry = made(put(1, b"a"), Parts(1, run(1, 2, [100])))
    reader = registry.parts(1)
    assert next(reader).seq == 2
    registry.apply(Parts(1, run(2, 0, [100, 100])))
    assert list(reader) == []


def test_paging_sees_each_file_that_stays_once_whatever_comes_and_goes() -> None:
    registry = made(*(ready(file, b"n%d" % file) for file in (2, 9, 4, 6, 8)))
    assert [file.id for file in registry.files_after(0, 2)] == [2, 4]
    registry.apply(Delete(4))
    registry.apply(Removed(4))
    registry.apply(ready(5, b"late"))
    registry.apply(ready(1, b"early"))
    registry.apply(Delete(5))
    registry.apply(Removed(5))
    registry.apply(ready(5, b"again"))
    assert [file.id for file in registry.files_after(4, 2)] == [5, 6]
    assert [file.id for file in registry.files_after(6, 9)] == [8, 9]
    assert registry.files_after(9, 9) == []


def test_paging_after_most_files_are_gone() -> None:
    registry = Registry()
    for file in range(1, 3001):
        registry.apply(ready(file, b"n%d" % file))
        if file % 100:
            registry.apply(Delete(file))
            registry.apply(Removed(file))
    assert [file.id for file in registry.files_after(150, 3)] == [200, 300, 400]


def test_delete_frees_the_name_and_keeps_the_file_until_removed() -> None:
    registry = made(ready(1, b"a", run(1, 0, [10])), Delete(1))
    file = registry.file(1)
    assert file is not None and file.status is Status.DELETING and registry.deleting() == [file]
    assert registry.find(b"a") is None and registry.name_taken(b"a") is None
    assert registry.files_after(0, 9) == [file] and registry.size == registry.files_ready == 0
    registry.apply(ready(2, b"a"))
    registry.apply(Removed(1))
    assert registry.file(1) is None and registry.deleting() == [] and registry.find(b"a") is registry.file(2)


def test_replacing_is_one_instant() -> None:
    registry = made(ready(1, b"a", run(1, 0, [10])), put(2, b"a"), Parts(2, run(2, 0, [20])))
    assert registry.find(b"a") is registry.file(1)
    registry.apply(ready(2, b"a", replaces=1, size=20))
    assert registry.find(b"a") is registry.file(2)
    assert [file.id for file in registry.deleting()] == [1]
    registry.apply(ready(3, b"b"))
    registry.apply(Rename(3, b"a", replaces=2))
    assert registry.find(b"a") is registry.file(3) and registry.find(b"b") is None
    assert [file.id for file in registry.deleting()] == [1, 2]


def test_damage_replaces_what_was_known_and_can_be_taken_back() -> None:
    registry = made(ready(1, b"a", run(1, 0, [100, 100, 7])), Damage(1, [0, 2]))
    file = registry.file(1)
    assert file is not None and file.status is Status.DAMAGED and registry.bad_parts(1) == (0, 2)
    assert registry.find(b"a") is file and registry.files_ready == 1
    registry.apply(Damage(1, [1]))
    assert registry.bad_parts(1) == (1,)
    registry.apply(Damage(1, []))
    assert file.status is Status.READY and registry.bad_parts(1) == ()


def test_damage_found_by_a_reader_whom_a_delete_overtook_is_no_matter() -> None:
    registry = made(ready(1, b"a", run(1, 0, [10])), Delete(1), Damage(1, [0]))
    assert registry.deleting() == [registry.file(1)]
    registry.apply(Removed(1))
    registry.apply(Damage(1, [0]))


def test_drop_gives_the_name_back_but_not_the_id() -> None:
    registry = made(put(5, b"a"), Parts(5, run(1, 0, [10])), Drop(5), Drop(8))
    assert registry.name_taken(b"a") is None and registry.file(5) is None and registry.live_packs() == set()
    assert ids(registry) == (9, 2, 2)


# --- millions of files ---


def test_the_quick_way_for_small_files_and_the_other_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    history = [
        ready(
            file, b"n%d" % (file % 40), run(file // 3, 0, [file], part=2 * file), replaces=file - 40 if file > 42 else 0
        )
        for file in range(3, 60)
    ]
    quick = made(*history)
    slowly = Registry()
    calls = []
    original = Registry._ready
    monkeypatch.setattr(Registry, "_ready", lambda self, record: (calls.append(1), original(self, record)))
    for record in history:
        slowly._ready(record)
    assert len(calls) == len(history)
    made(*history)
    assert len(calls) == len(history) + 1, "only the first, whose codec is new, takes the other way"
    assert (state(quick), ids(quick)) == (state(slowly), ids(slowly))


@pytest.mark.parametrize("files_of_a_pack", [1, 64])
def test_a_small_file_takes_little_memory(files_of_a_pack: int) -> None:
    lines = [
        encode(
            ready(file, b"photos/2023/summer/IMG_%08d-edited.jpeg" % file, run(file // files_of_a_pack + 1, 0, [77]))
        )
        for file in range(1, 20_001)
    ]
    registry = Registry()
    tracemalloc.start()
    try:
        for line in lines:
            registry.replay(line)
        taken, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert registry.files_ready == 20_000
    assert taken / 20_000 < 400 and peak < 1.05 * taken


def test_a_snapshot_begins_without_looking_at_files(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = made(*(ready(file, b"n%d" % file) for file in range(1, 1000)))
    seen = []
    original = registry._files.after
    monkeypatch.setattr(registry._files, "after", lambda *of: seen.append(1) or original(*of))
    snapshot = registry.snapshot()
    assert not seen
    assert next(snapshot) == Ids(1000, 1, 1)
    next(snapshot)
    assert len(seen) == 1, "a page"
    registry.apply(Delete(999))
    registry.apply(Delete(1))
    assert len(snapshot._kept) == 1, "the file that is still to come, not the one that is out"
    registry.apply(Removed(999))
    registry.apply(ready(2000, b"new"))
    rest = [record for record in snapshot if isinstance(record, Ready)]
    assert [record.file for record in rest] == [*range(2, 1000)]


# --- refusals ---

SOME = (
    ready(1, b"one", run(1, 0, [100, 40])),
    put(2, b"two"),
    Parts(2, run(2, 4, [100, 100], part=3)),
    ready(3, b"three", run(3, 0, [10], part=5)),
    Delete(3),
    ready(4, b"four"),
)

REFUSED: dict[str, Record] = {
    "put: id is there": put(1, b"x"),
    "put: name is being stored": put(9, b"two"),
    "parts: unknown": Parts(9, run(9, 0, [1])),
    "parts: not being stored": Parts(1, run(9, 2, [1])),
    "parts: the same again": Parts(2, run(9, 4, [100, 100])),
    "parts: overlap from before": Parts(2, run(9, 3, [100, 100])),
    "parts: overlap from behind": Parts(2, run(9, 5, [100])),
    "parts: marker on a part": Parts(2, run(9, 4, [])),
    "parts: bigger than part_size": Parts(2, run(9, 0, [101])),
    "parts: short in the middle": Parts(2, run(9, 0, [99, 100])),
    "parts: without a byte": Parts(2, run(9, 0, [0])),
    "parts: overlap in the pack": Parts(
        2, Run(9, 0, 1, HEAD, [(0, 100, 9, "n", "00" * 16), (18, 1, 1, "n", "00" * 16)])
    ),
    "parts: md5 is no hex": Parts(2, Run(9, 0, 1, HEAD, [(0, 1, 1, "n", "zz" * 16)])),
    "parts: number too big": Parts(2, Run(9, 0, 1, HEAD, [(0, 1, 2**32, "n", "00" * 16)])),
    "ready: id is ready": ready(1, b"one"),
    "ready: id is deleted": ready(3, b"three"),
    "ready: another name": ready(2, b"zwei", run(9, 0, [100] * 4), size=600),
    "ready: another part size": Ready(2, b"two", 600, 50, 5, []),
    "ready: gap": ready(2, b"two", run(9, 0, [100] * 3), size=500),
    "ready: gap at the start": ready(9, b"x", run(9, 1, [100])),
    "ready: overlap": ready(2, b"two", run(9, 0, [100] * 5), size=700),
    "ready: short in the middle": ready(9, b"x", run(9, 0, [50]), run(10, 1, [100])),
    "ready: marker in the middle": ready(9, b"x", run(9, 0, []), run(10, 0, [100])),
    "ready: size": ready(9, b"x", run(9, 0, [50]), size=51),
    "ready: size of a big file": ready(2, b"two", run(9, 0, [100] * 4), size=400),
    "ready: name taken": ready(9, b"one"),
    "ready: name being stored": ready(9, b"two"),
    "ready: replaces another": ready(9, b"one", replaces=4),
    "ready: replaces nobody": ready(9, b"x", replaces=1),
    "ready: replaces a deleted one": ready(9, b"three", replaces=3),
    "drop: ready": Drop(1),
    "drop: deleted": Drop(3),
    "delete: unknown": Delete(9),
    "delete: being stored": Delete(2),
    "delete: again": Delete(3),
    "verified: nothing": Verified((1, 1), (1, 1), 5),
    "verified: backwards": Verified((2, 0), (1, 1), 5),
    "removed: unknown": Removed(9),
    "removed: not deleted": Removed(1),
    "removed: being stored": Removed(2),
    "rename: unknown": Rename(9, b"x"),
    "rename: being stored": Rename(2, b"x"),
    "rename: deleted": Rename(3, b"x"),
    "rename: name taken": Rename(1, b"four"),
    "rename: name being stored": Rename(1, b"two"),
    "rename: replaces another": Rename(1, b"x", replaces=4),
    "rename: replaces itself": Rename(1, b"one", replaces=1),
    "damage: being stored": Damage(2, [4]),
    "damage: beyond the end": Damage(1, [2]),
    "damage: twice": Damage(1, [0, 0]),
    "damage: descending": Damage(1, [1, 0]),
}


@pytest.mark.parametrize("record", REFUSED.values(), ids=REFUSED.keys())
def test_a_record_that_does_not_fit_changes_nothing(record: Record) -> None:
    registry = made(*SOME)
    before = state(registry), ids(registry)
    with pytest.raises(RegistryError):
        registry.apply(record)
    assert (state(registry), ids(registry)) == before


def test_what_the_refused_records_are_next_to_is_accepted() -> None:
    """The table above tests rules, not that everything is refused."""
    made(*SOME, Parts(2, run(9, 3, [100])), Parts(2, run(8, 6, [30])), ready(2, b"two", run(7, 0, [100] * 3), size=630))
    made(*SOME, Rename(1, b"one"), Rename(1, b"four", replaces=4), Removed(3), Removed(4), Drop(2))
    made(*SOME, ready(9, b"three"), Rename(9, b"x"), Damage(1, [0, 1]))


def test_nothing_comes_where_the_end_marker_is() -> None:
    registry = made(put(1, b"a"), Parts(1, run(1, 2, [])))
    with pytest.raises(RegistryError):
        registry.apply(Parts(1, run(2, 2, [100])))
    registry.apply(Parts(1, run(2, 0, [100, 10])))
    registry.apply(ready(1, b"a", size=110))


# --- ids and packs ---


def test_ids_are_never_given_out_twice() -> None:
    registry = Registry()
    assert (registry.new_file_id(), registry.new_part_ids(16), registry.new_pack_id()) == (1, 1, 1)
    assert (registry.new_file_id(), registry.new_part_ids(1), registry.new_pack_id()) == (2, 17, 2)
    registry.apply(ready(40, b"a", run(50, 0, [100, 1], part=60)))
    assert (registry.new_file_id(), registry.new_part_ids(1), registry.new_pack_id()) == (41, 62, 51)
    registry.apply(Ids(100, 200, 300))
    registry.apply(Ids(1, 1, 1))
    assert ids(registry) == (100, 200, 300)
    registry.skip_packs([7, 400, 3])
    registry.skip_packs([])
    assert ids(registry) == (100, 200, 401)


def test_ids_outlive_all_files() -> None:
    registry = made(ready(40, b"a", run(50, 0, [100, 1], part=60)), Delete(40), Removed(40))
    assert ids(replayed(registry.snapshot())) == (41, 62, 51)


def test_a_shared_pack_is_used_until_its_last_file_is_forgotten() -> None:
    registry = made(
        ready(1, b"a", run(1, 0, [100]), run(2, 1, [100]), run(1, 2, [100])),
        ready(2, b"b", run(2, 0, [10])),
        put(3, b"c"),
        Parts(3, run(2, 0, [10])),
    )
    assert [registry.packs_of(file) for file in (1, 2, 3)] == [[1, 2], [2], [2]]
    assert [registry.footprint(file) for file in (1, 2, 3)] == [120, 0, 0]
    assert (registry.live_bytes_of(1), registry.live_bytes_of(2), registry.live_bytes_of(9)) == (120, 60 + 15 + 15, 0)
    registry.apply(Drop(3))
    assert registry.live_bytes_of(2) == 75
    registry.apply(Delete(2))
    registry.apply(Delete(1))
    assert (registry.live_bytes_of(1), registry.live_bytes_of(2)) == (0, 0), "nobody can read them any more"
    registry.apply(Removed(1))
    assert not registry.is_used(1) and registry.is_used(2), "file 2 may still be read"
    assert registry.live_packs() == {2} and registry.footprint(2) == 15
    registry.apply(Removed(2))
    assert registry.live_packs() == set() and not registry.is_used(2)


# --- moving ---

PLACED = (
    put(1, b"a"),
    Parts(1, run(1, 0, [100, 100], part=1)),
    Parts(1, run(1, 2, [100], part=3)),
    ready(1, b"a", run(2, 3, [40], part=4), run(3, 4, []), size=340),
    Damage(1, [0, 2]),
    ready(2, b"b", run(2, 0, [100, 100], part=5)),
    ready(3, b"c", run(4, 0, [])),
    put(4, b"d"),
    Parts(4, run(5, 0, [100], part=7)),
    ready(5, b"e", run(6, 0, [100], part=8)),
    Delete(5),
)


def shifted(found: Run, pack: int, by: int = 1000, **changes: Any) -> Run:
    """A run as it is after it was moved, or nearly so."""
    rows = [(row[0] + by, *row[1:]) for row in found.parts]
    return structs.replace(found, **{"pack": pack, "parts": rows, **changes})


def test_a_moved_run_is_the_same_but_for_its_place() -> None:
    registry = made(*PLACED)
    before = list(registry.parts(1))
    registry.apply(Moved(1, shifted(run(1, 0, [100, 100], part=1), pack=2, head=HEAD - 1)))
    places = [(part.pack, part.pack_offset, part.head) for part in registry.parts(1)]
    assert places == [(2, 1000, HEAD - 1), (2, 1060, HEAD - 1), (1, 0, HEAD), (2, 0, HEAD)]
    there = [part._replace(pack=0, pack_offset=0, head=0) for part in before]
    assert [part._replace(pack=0, pack_offset=0, head=0) for part in registry.parts(1)] == there
    assert registry.bad_parts(1) == (0, 2)
    assert registry.packs_of(1) == [2, 1, 3]
    assert (registry.live_bytes_of(1), registry.live_bytes_of(2)) == (60, 2 * (HEAD + 49) + 30 + 120)
    registry.apply(Moved(1, shifted(run(1, 2, [100], part=3), pack=77)))
    assert not registry.is_used(1) and registry.live_bytes_of(77) == 60 and registry.next_pack == 78
    assert state(replayed(registry.snapshot())) == state(registry)


def test_the_end_marker_of_a_file_can_be_moved() -> None:
    registry = made(*PLACED, Moved(3, run(9, 0, [])), Moved(1, run(9, 4, [])))
    assert registry.packs_of(3) == [9] and registry.packs_of(1) == [1, 2, 9]
    assert registry.live_packs() == {1, 2, 5, 6, 9} and registry.live_bytes_of(9) == 0


WHOLE = run(2, 0, [100, 100], part=5)
MOVED_REFUSED: dict[str, Record] = {
    "unknown file": Moved(9, shifted(WHOLE, 9)),
    "being stored": Moved(4, shifted(run(5, 0, [100], part=7), 9)),
    "deleted": Moved(5, shifted(run(6, 0, [100], part=8), 9)),
    "no run begins there": Moved(2, run(9, 1, [100], part=6)),
    "no run begins behind": Moved(2, run(9, 2, [])),
    "fewer parts": Moved(2, run(9, 0, [100], part=5)),
    "more parts": Moved(2, run(9, 0, [100, 100, 100], part=5)),
    "no parts": Moved(2, run(9, 0, [], part=5)),
    "parts for a marker": Moved(3, run(9, 0, [100], part=0)),
    "other ids": Moved(2, shifted(WHOLE, 9, part=6)),
    "another size": Moved(2, run(9, 0, [100, 99], part=5)),
    "another stored size": Moved(2, shifted(WHOLE, 9, parts=[WHOLE.parts[0], (60, 100, 49, *WHOLE.parts[1][3:])])),
    "another codec": Moved(2, shifted(WHOLE, 9, parts=[WHOLE.parts[0], (60, 100, 50, "zlib", WHOLE.parts[1][4])])),
    "another md5": Moved(2, shifted(WHOLE, 9, parts=[WHOLE.parts[0], (60, 100, 50, "zstd", "00" * 16)])),
    "overlap": Moved(2, shifted(WHOLE, 9, parts=[WHOLE.parts[0], (59, *WHOLE.parts[1][1:])])),
}


@pytest.mark.parametrize("record", MOVED_REFUSED.values(), ids=MOVED_REFUSED.keys())
def test_a_move_to_other_parts_is_refused_and_changes_nothing(record: Record) -> None:
    registry = made(*PLACED)
    before = state(registry), ids(registry)
    with pytest.raises(RegistryError):
        registry.apply(record)
    assert (state(registry), ids(registry)) == before


# --- snapshots ---


def test_one_snapshot_at_a_time() -> None:
    registry = made(*SOME)
    first = registry.snapshot()
    next(first)
    with pytest.raises(RuntimeError):
        registry.snapshot()
    first.close()
    list(registry.snapshot())
    list(registry.snapshot())


def test_a_snapshot_splits_big_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "INLINE_PARTS", 4)
    registry = made(ready(1, b"a", run(1, 0, [100] * 3), run(2, 3, [100] * 2)), ready(2, b"b", run(3, 0, [100] * 4)))
    kinds = [type(record) for record in registry.snapshot()]
    assert kinds == [Ids, Put, Parts, Parts, Ready, Ready, Ids]
    assert state(replayed(registry.snapshot())) == state(registry)


def test_a_snapshot_of_names_that_changed_hands() -> None:
    """One name: of a deleted file, of a readable one, of one that is being stored; in every order of ids."""
    registry = made(
        ready(7, b"n"),
        Delete(7),
        ready(3, b"n"),
        Delete(3),
        ready(6, b"m"),
        Rename(6, b"n"),
        put(2, b"n"),
        put(5, b"m"),
    )
    assert state(replayed(registry.snapshot())) == state(registry)


def test_live_bytes_are_close_to_the_truth() -> None:
    registry = Registry()
    for file in range(1, 200):
        sizes = [100] * (file % 16) + [50]
        runs = [run(file << 20, 0, sizes, part=file << 20)]
        registry.apply(Ready(file, b"some/name-%d" % file, sum(sizes), PART_SIZE, 1_700 * 10**15, runs))
        registry.apply(Verified((file, 0), (file + 1, 0), 1_700 * 10**15))
    journal_bytes = sum(len(encode(record)) + 40 for record in registry.snapshot())
    assert 0.75 * journal_bytes < registry.live_bytes < 1.25 * journal_bytes
    for file in range(1, 200):
        registry.apply(Rename(file, b"x"))
        registry.apply(Delete(file))
        registry.apply(Removed(file))
    registry.apply(Verified((1, 0), (200, 0), 1_700 * 10**15))
    assert registry.live_bytes == VERIFIED_BYTES


def test_a_snapshot_of_a_file_that_changes_between_two_of_its_records() -> None:
    registry = made(ready(1, b"a", run(1, 0, [10])), Damage(1, [0]))
    before = state(registry)
    snapshot = registry.snapshot()
    taken = [next(snapshot), next(snapshot)]
    assert [type(record) for record in taken] == [Ids, Ready]
    registry.apply(Delete(1))
    assert state(replayed([*taken, *snapshot])) == before


class Model(RuleBasedStateMachine):
    """Random records against dicts, and at every step: replay and snapshot bring the same state back."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(registry_module, "SNAPSHOT_PAGE", 2)
        self.registry = Registry()
        self.history: list[Record] = []
        self.names: dict[bytes, int] = {}
        self.sizes: dict[int, list[int]] = {}
        self.packs: dict[int, list[int]] = {}
        self.storing: dict[int, bytes] = {}
        self.deleting: set[int] = set()
        self.bad: dict[int, list[int]] = {}
        self.verified: list[tuple[tuple[int, int], tuple[int, int], int]] = []
        self.snapshot: Snapshot | None = None
        self.taken: list[Record] = []
        self.at_start: tuple[Any, ...] = ()

    def do(self, record: Record) -> None:
        self.registry.apply(record)
        self.history.append(record)

    def random_runs(self, data: st.DataObject, seq: int, end: bool) -> list[Run]:
        runs = []
        for last in [False] * data.draw(st.integers(0, 3)) + [end]:
            sizes = [PART_SIZE] * data.draw(st.integers(1, 3)) + [data.draw(st.integers(1, PART_SIZE))] * last
            shared = data.draw(st.booleans())
            pack = 1 + seq % 3 if shared else self.registry.new_pack_id() + 3
            runs.append(run(pack, seq, sizes, part=self.registry.new_part_ids(len(sizes))))
            seq += len(sizes)
        return runs

    def add(self, file: int, runs: list[Run]) -> None:
        for added in runs:
            self.sizes[file] += [row[1] for row in added.parts]
            self.packs[file].append(added.pack)

    def retire(self, file: int) -> None:
        self.names = {name: holder for name, holder in self.names.items() if holder != file}
        self.deleting.add(file)
        self.bad.pop(file, None)

    def forget(self, file: int) -> None:
        del self.sizes[file], self.packs[file]

    @rule(name=st.sampled_from([b"a", b"b", b"c", b"\xff"]))
    def put(self, name: bytes) -> None:
        file = self.registry.new_file_id()
        if name in self.storing.values():
            with pytest.raises(RegistryError):
                self.registry.apply(put(file, name))
            return
        self.do(put(file, name))
        self.storing[file], self.sizes[file], self.packs[file] = name, [], []

    @precondition(lambda self: self.storing)
    @rule(data=st.data())
    def store(self, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(sorted(self.storing)))
        runs = self.random_runs(data, len(self.sizes[file]), end=False)
        for added in data.draw(st.permutations(runs)):
            self.do(Parts(file, added))
        self.add(file, runs)

    @precondition(lambda self: self.storing)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(sorted(self.storing)))
        self.make_ready(data, file, self.storing[file])
        del self.storing[file]

    @rule(data=st.data(), name=st.sampled_from([b"a", b"b", b"c", b"d", b"e"]))
    def put_small(self, data: st.DataObject, name: bytes) -> None:
        if name in self.storing.values():
            return
        file = self.registry.new_file_id()
        self.sizes[file], self.packs[file] = [], []
        self.make_ready(data, file, name)

    def make_ready(self, data: st.DataObject, file: int, name: bytes) -> None:
        runs = self.random_runs(data, len(self.sizes[file]), end=True) if data.draw(st.booleans()) else []
        self.add(file, runs)
        old = self.names.get(name, 0)
        self.do(ready(file, name, *runs, replaces=old, size=sum(self.sizes[file])))
        if old:
            self.retire(old)
        self.names[name] = file

    @precondition(lambda self: self.storing)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(sorted(self.storing)))
        self.do(Drop(file))
        del self.storing[file]
        self.forget(file)

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(sorted(self.names.values())))
        self.do(Delete(file))
        self.retire(file)

    @precondition(lambda self: self.deleting)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(sorted(self.deleting)))
        self.do(Removed(file))
        self.deleting.remove(file)
        self.forget(file)

    @precondition(lambda self: self.names)
    @rule(data=st.data(), name=st.sampled_from([b"a", b"b", b"c", b"z"]))
    def rename(self, data: st.DataObject, name: bytes) -> None:
        file = data.draw(st.sampled_from(sorted(self.names.values())))
        old = self.names.get(name, 0)
        if name in self.storing.values() or old == file:
            return
        self.do(Rename(file, name, replaces=old))
        if old:
            self.retire(old)
        self.names = {kept: holder for kept, holder in self.names.items() if holder != file} | {name: file}

    @precondition(lambda self: self.names)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(sorted(self.names.values())))
        seqs = sorted(data.draw(st.sets(st.integers(0, len(self.sizes[file]) - 1)))) if self.sizes[file] else []
        self.do(Damage(file, seqs))
        self.bad[file] = seqs

    @precondition(lambda self: any(self.packs[file] for file in self.names.values()))
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        file = data.draw(st.sampled_from(sorted(file for file in self.names.values() if self.packs[file])))
        at = data.draw(st.integers(0, len(self.packs[file]) - 1))
        old = self.registered_runs(file)[at]
        pack = data.draw(st.sampled_from([1, 2, 3, self.registry.new_pack_id() + 3]))
        self.do(Moved(file, shifted(old, pack, by=data.draw(st.integers(0, 9)))))
        self.packs[file][at] = pack

    @rule(data=st.data(), time=st.integers(0, 9))
    def verify(self, data: st.DataObject, time: int) -> None:
        """Stretches that join, overlap and leave gaps; a part's time is that of the last one over it."""
        end = self.registry.next_file + 1
        positions = st.tuples(st.integers(1, end), st.integers(0, 4))
        first, last = sorted(data.draw(st.lists(positions, min_size=2, max_size=2, unique=True)))
        self.do(Verified(first, last, time))
        self.verified.append((first, last, time))

    def time_of(self, file: int, seq: int) -> int:
        times = [time for first, end, time in self.verified if first <= (file, seq) < end]
        return times[-1] if times else CREATED

    @invariant()
    def knows_when_each_part_was_verified(self) -> None:
        registry = self.registry
        times = []
        for file_id in self.names.values():
            file = registry.file(file_id)
            assert file is not None
            for seq in range(max(1, file.parts)):
                times.append(self.time_of(file_id, seq))
                assert registry.verified_at(file, seq) == times[-1]
        assert registry.oldest_verified_at() == min(times, default=None)
        assert registry.to_verify == (self.verified[-1][1] if self.verified else (1, 0))

    def registered_runs(self, file: int) -> list[Run]:
        """The runs of a file in order, from what can be asked: none of this model's is without parts."""
        return [
            Run(
                run[0].pack,
                run[0].seq,
                run[0].id,
                run[0].head,
                [(part.pack_offset, part.size, part.stored, part.codec, part.md5.hex()) for part in run],
            )
            for run in self.registry.runs(file)
        ]

    @precondition(lambda self: self.snapshot is None)
    @rule()
    def begin_snapshot(self) -> None:
        self.at_start = (state(self.registry), ids(self.registry))
        self.snapshot, self.taken = self.registry.snapshot(), []

    @precondition(lambda self: self.snapshot is not None)
    @rule(count=st.integers(1, 6))
    def take_of_snapshot(self, count: int) -> None:
        """Between two pieces anything may have been applied; the snapshot is of when it began."""
        assert self.snapshot is not None
        for _ in range(count):
            record = next(self.snapshot, None)
            if record is None:
                again = replayed(self.taken)
                assert (state(again), ids(again)) == self.at_start
                self.snapshot = None
                return
            self.taken.append(record)

    @invariant()
    def agrees_with_the_model(self) -> None:
        registry = self.registry
        known = [*self.names.values(), *self.storing, *self.deleting]
        assert [file.id for file in registry.files_after(0, 10**6)] == sorted(known)
        for file_id in known:
            file = registry.file(file_id)
            assert file is not None and (file.size, file.parts) == (
                sum(self.sizes[file_id]),
                len(self.sizes[file_id]),
            )
            assert [part.size for part in registry.parts(file_id)] == self.sizes[file_id]
            assert [part.seq for part in registry.parts(file_id)] == list(range(file.parts))
            assert list(registry.bad_parts(file_id)) == self.bad.get(file_id, [])
        for name, file_id in self.names.items():
            found = registry.find(name)
            assert found is not None and (found.id, found.name) == (file_id, name)
            assert found.status is (Status.DAMAGED if self.bad.get(file_id) else Status.READY)
        assert registry.files_ready == len(self.names)
        assert registry.size == sum(sum(self.sizes[file]) for file in self.names.values())
        assert registry.stored == sum(size // 2 for file in self.names.values() for size in self.sizes[file])
        assert {file.id for file in registry.interrupted()} == {*self.storing}
        assert {file.id for file in registry.deleting()} == self.deleting

    @invariant()
    def counts_the_users_of_packs(self) -> None:
        users = Counter(pack for packs in self.packs.values() for pack in {*packs})
        live: Counter[int] = Counter()
        for file, packs in self.packs.items():
            assert self.registry.packs_of(file) == list(dict.fromkeys(packs))
            parts = list(self.registry.parts(file))
            assert self.registry.footprint(file) == sum(
                part.head + part.stored for part in parts if users[part.pack] == 1
            )
            if file not in self.deleting:
                for part in parts:
                    live[part.pack] += part.head + part.stored
        assert self.registry.live_packs() == {*users}
        assert all(self.registry.live_bytes_of(pack) == live[pack] for pack in users)
        assert all(self.registry.is_used(pack) == (pack in users) for pack in range(self.registry.next_pack + 1))

    def teardown(self) -> None:
        self.patch.undo()
        if self.snapshot is not None:
            self.take_of_snapshot(10**6)
        for again in (replayed(self.history), replayed(self.registry.snapshot())):
            assert state(again) == state(self.registry)
        assert ids(replayed(self.registry.snapshot())) == ids(self.registry)


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
