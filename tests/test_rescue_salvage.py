"""What can be trusted of a damaged journal: every line that is given out was written, and few others are left out."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pfsd import journal, records
from pfsd.records import Delete, Drop, Ids, Parts, Put, Ready, Record, Removed, Rename, Run
from pfsd.registry import Status
from pfsd.rescue.salvage import UNTRUSTED_END, Gap, Line, Salvage, trusted

STORE = "00" * 16
MD5 = "0123456789abcdef" * 2


def run(pack: int, part: int, seq: int = 0, sizes: tuple[int, ...] = (100,)) -> Run:
    return Run(pack, seq, part, 98, [(at * 198, size, size, "none", MD5) for at, size in enumerate(sizes)])


def ready(file: int, name: bytes, replaces: int = 0, size: int = 100) -> Ready:
    return Ready(file, name, size, 100, file * 10, [run(file, file)], replaces)


HISTORY: list[Record] = [
    ready(1, b"one"),
    ready(2, b"two"),
    Rename(1, b"first"),
    ready(3, b"three"),
    Delete(2),
    Removed(2),
    ready(4, b"two"),
    ready(5, b"first", replaces=1),
    Removed(1),
    Drop(6),
    ready(7, b"seven"),
]


def lines_of(path: Path, history: list[Record]) -> list[bytes]:
    journal.write(path, STORE, 1, map(records.encode, history))
    return path.read_bytes().splitlines()


def salvaged(lines: list[bytes]) -> Salvage:
    salvage = Salvage()
    for line in trusted(lines):
        salvage.take(line)
    salvage.end()
    return salvage


def without(history: list[Record], lost: int, tmp_path: Path) -> Salvage:
    """The history with the record at `lost` made unreadable."""
    lines = lines_of(tmp_path / "j", history)
    lines[lost + 1] = b"?" + lines[lost + 1][1:]
    return salvaged(lines)


def names(salvage: Salvage) -> dict[int, bytes]:
    return {file.id: file.name for file in salvage.registry.files_after(0, 100) if file.status is not Status.DELETING}


def test_a_whole_journal_is_trusted_whole(tmp_path: Path) -> None:
    lines = lines_of(tmp_path / "j", HISTORY)
    assert list(trusted([*lines, b""])) == [Line(seq, line) for seq, line in enumerate(lines)]
    assert salvaged(lines).whole


@pytest.mark.promise("rebuilt")
def test_one_flipped_bit_costs_one_record_and_never_makes_one_up(tmp_path: Path) -> None:
    lines = lines_of(tmp_path / "j", HISTORY)
    whole = b"\n".join(lines) + b"\n"
    for at in range(len(whole)):
        damaged = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        found = list(trusted(damaged.split(b"\n")))
        hurt = whole[:at].count(b"\n")
        kept = {line.seq for line in found if line is not UNTRUSTED_END}
        # Of a line whose checksum is hit nothing may be lost, since the next line continues what it should be.
        assert kept >= set(range(len(lines))) - {hurt, hurt + (whole[at] == 10)}, at
        for line in found:
            assert line is UNTRUSTED_END or records_equal(line.json, lines[line.seq]), at


def records_equal(found: bytes, written: bytes) -> bool:
    """Whether a line says what was written; its own checksum may be gone."""
    return found == written or found == written[: -journal.TAIL_BYTES] + b"}"


@pytest.mark.promise("rebuilt")
def test_lost_stretches_of_any_length_make_nothing_up(tmp_path: Path) -> None:
    lines = lines_of(tmp_path / "j", HISTORY)
    whole = b"\n".join(lines) + b"\n"
    seed = 7
    chance = random.Random(seed)
    for _ in range(500):
        first, last = sorted(chance.sample(range(len(whole)), 2))
        filling = chance.choice([b"", bytes(last - first), chance.randbytes(last - first)])
        found = list(trusted((whole[:first] + filling + whole[last:]).split(b"\n")))
        assert all(line is UNTRUSTED_END or records_equal(line.json, lines[line.seq]) for line in found), seed
        before, after = whole[:first].count(b"\n"), whole[last:].count(b"\n")
        assert len([line for line in found if line is not UNTRUSTED_END]) >= before + max(0, after - 2), seed


@pytest.mark.parametrize("change", ["swapped", "doubled", "left out"])
def test_lines_in_a_wrong_place_are_not_trusted(change: str, tmp_path: Path) -> None:
    lines = lines_of(tmp_path / "j", HISTORY)
    if change == "swapped":
        damaged = [*lines[:3], lines[4], lines[3], *lines[5:]]
    elif change == "doubled":
        damaged = [*lines[:4], lines[3], *lines[4:]]
    else:
        damaged = [*lines[:3], *lines[4:]]
    kept = [line.seq for line in trusted(damaged)]
    assert kept == sorted(set(kept)) and len(kept) >= len(lines) - {"swapped": 3, "doubled": 0, "left out": 1}[change]


def test_the_first_line_behind_a_gap_needs_the_next_as_a_witness(tmp_path: Path) -> None:
    lines = lines_of(tmp_path / "j", HISTORY)
    gap = [*lines[:3], b"\0" * 200]
    assert [line.seq for line in trusted([*gap, lines[5], lines[6]])] == [0, 1, 2, 5, 6]
    assert [line.seq for line in trusted([*gap, lines[5], lines[7]])] == [0, 1, 2, -1]
    assert [line.seq for line in trusted([*gap, lines[5]])] == [0, 1, 2, -1]


# --- records that do not fit ---


def test_a_gap_is_told(tmp_path: Path) -> None:
    salvage = without(HISTORY, 3, tmp_path)
    assert salvage.gaps == [Gap(4, 4)] and not salvage.whole
    assert without(HISTORY, len(HISTORY) - 1, tmp_path).gaps == [Gap(len(HISTORY), None)]


def test_what_ended_before_its_beginning_was_lost_stays_dead(tmp_path: Path) -> None:
    salvage = without(HISTORY, 1, tmp_path)  # the ready of file 2, which is deleted later
    assert 2 in salvage.dead and names(salvage) == {3: b"three", 4: b"two", 5: b"first", 7: b"seven"}


def test_a_lost_delete_gives_way_to_the_new_owner_of_the_name(tmp_path: Path) -> None:
    history = [ready(1, b"a"), Delete(1), ready(2, b"a")]
    salvage = without(history, 1, tmp_path)
    assert names(salvage) == {1: b"a~rebuilt-1", 2: b"a"}
    assert [mended.file for mended in salvage.mended] == [2]


def test_a_file_that_is_replaced_is_gone_whatever_its_name_is_now(tmp_path: Path) -> None:
    history = [ready(1, b"a"), Rename(1, b"b"), ready(2, b"b", replaces=1)]
    assert names(without(history, 1, tmp_path)) == {2: b"b"}
    assert names(without(history, 0, tmp_path)) == {2: b"b"}


def test_a_removed_file_whose_delete_is_lost_is_gone(tmp_path: Path) -> None:
    salvage = without([ready(1, b"a"), Delete(1), Removed(1), ready(2, b"b")], 1, tmp_path)
    assert salvage.registry.file(1) is None and 1 in salvage.dead


def test_a_rename_of_an_unknown_file_is_remembered(tmp_path: Path) -> None:
    salvage = without([ready(1, b"a"), Rename(1, b"b"), ready(2, b"c")], 0, tmp_path)
    assert salvage.names == {1: b"b"}


def test_a_file_with_parts_in_lost_records_is_not_finished(tmp_path: Path) -> None:
    history = [
        Put(1, b"a", 100, 5),
        Parts(1, run(1, 1)),
        Ready(1, b"a", 200, 100, 5, [run(2, 2, seq=1)]),
        ready(3, b"b"),
    ]
    salvage = without(history, 1, tmp_path)
    assert set(salvage.unfinished) == {1} and names(salvage)[3] == b"b"
    assert salvage.part_ids == {1: {1: 2}}


def test_ids_of_what_is_left_out_are_not_given_again(tmp_path: Path) -> None:
    salvage = without([ready(1, b"a"), Put(90, b"b", 100, 5), Parts(90, run(70, 80)), ready(2, b"c")], 1, tmp_path)
    registry = salvage.registry
    assert (registry.next_file, registry.next_part, registry.next_pack) == (91, 81, 71)


def test_what_a_compaction_left_out_is_known_to_be_gone_only_if_all_of_it_is_there(tmp_path: Path) -> None:
    compacted: list[Record] = [Ids(9, 9, 9), ready(3, b"three"), Ids(9, 9, 9)]
    assert salvaged(lines_of(tmp_path / "j", [*compacted, ready(10, b"x")])).known_below == 9
    assert salvaged(lines_of(tmp_path / "j", compacted[:2])).known_below == 0
    assert without(compacted, 1, tmp_path).known_below == 0
