"""The journal against cuts, flipped bits, lost lines, broken disks and crashes at every step."""

from __future__ import annotations

import errno
import json
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from pfsd import disk, journal, mark
from pfsd.errors import ConfigError, RegistryDamaged, StorageFailed, StoreUnavailable
from pfsd.journal import MAX_LINE, MAX_TORN, Journal
from pfsd.mark import NOTHING, Reached

RECORDS = [b'{"type":"drop","file":%d,"pad":"%b"}' % (n, b"x" * (n * 7 % 40)) for n in range(1, 25)]


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "journal.jsonl")


@pytest.fixture
def good(path: str) -> bytes:
    """The bytes of a journal that holds RECORDS."""
    made = Journal.create(path)
    made.append(RECORDS[:10])
    made.append(RECORDS[10:])
    made.close()
    return Path(path).read_bytes()


def replay(path: str) -> list[bytes]:
    """The records in a journal, as they were appended."""
    found: list[bytes] = []
    Journal.open(path, lambda line: found.append(plain(line))).close()
    return found


def plain(line: bytes) -> bytes:
    fields = json.loads(line)
    del fields["seq"], fields["crc"]
    return json.dumps(fields, separators=(",", ":")).encode()


def chain(objects: list[bytes]) -> bytes:
    """Objects as journal lines, with valid checksums, whatever they are; the test's own idea of the format."""
    crc, lines = 0, []
    for seq, encoded in enumerate(objects):
        body = b'{"seq":%d,' % seq + encoded[1:-1]
        crc = crc32(body, crc)
        lines.append(body + b',"crc":"%08x"}\n' % crc)
    return b"".join(lines)


HEADER = b'{"type":"header","format":1,"min_reader":1,"store":"' + b"0" * 32 + b'","generation":1,"checksum":"crc32"}'


def torn_files(path: str) -> list[Path]:
    return sorted(Path(path).parent.glob("journal.torn-*"))


def mark_of(path: str) -> Path:
    return Path(path).with_name("journal.mark")


class Faults:
    """Makes calls of `disk` (and ftruncate) fail from now on, and counts and orders them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[str] = []
        self.failing: dict[str, int] = {}
        for name in ("write_all", "write_at", "fdatasync", "fsync_dir", "rename"):
            monkeypatch.setattr(disk, name, self._wrap(name, getattr(disk, name)))
        monkeypatch.setattr(os, "ftruncate", self._wrap("ftruncate", os.ftruncate))

    def _wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any) -> Any:
            self.calls.append(name)
            if name in self.failing:
                if name == "write_all":
                    call(args[0], bytes(args[1])[: len(args[1]) // 2])
                raise OSError(self.failing[name], os.strerror(self.failing[name]))
            return call(*args)

        return wrapped


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    return Faults(monkeypatch)


# --- sound journals ---


def test_what_was_appended_comes_back(path: str, good: bytes) -> None:
    assert replay(path) == RECORDS
    assert good == Path(path).read_bytes()


def test_each_line_is_json_numbered_and_chained(good: bytes) -> None:
    lines = [json.loads(line) for line in good.split(b"\n")[:-1]]
    assert [line["seq"] for line in lines] == list(range(25))
    assert {next(iter(line)) for line in lines} == {"seq"} and {list(line)[-1] for line in lines} == {"crc"}
    assert lines[0]["type"] == "header" and lines[0]["checksum"] == "crc32" and lines[0]["generation"] == 1
    header = b"{" + good.split(b"\n")[0][len(b'{"seq":0,') : -18] + b"}"
    assert chain([header, *RECORDS]) == good


def test_appending_goes_on_after_opening(path: str, good: bytes) -> None:
    opened = Journal.open(path, lambda line: None)
    assert (opened.size, opened.records) == (len(good), 24)
    opened.append([b'{"type":"drop","file":99}'])
    assert (opened.size, opened.records) == (os.path.getsize(path), 25)
    opened.close()
    assert replay(path)[-1] == b'{"type":"drop","file":99}'


def test_lines_across_the_reader_s_chunks(path: str, monkeypatch: pytest.MonkeyPatch, good: bytes) -> None:
    for size in (1, 7, 64, 1000):
        monkeypatch.setattr(journal, "CHUNK", size)
        assert replay(path) == RECORDS


def test_separators_that_only_text_mode_knows(path: str) -> None:
    record = '{"type":"rename","name":"a\u2028b\u0085c\\u000b"}'.encode()
    made = Journal.create(path)
    made.append([record, record])
    made.close()
    assert len(replay(path)) == 2


def test_the_store_id_stays_and_is_random(path: str, tmp_path: Path) -> None:
    first = Journal.create(path)
    other = Journal.create(tmp_path / "other.jsonl")
    again = Journal.open(path, lambda line: None)
    assert len(first.store_id) == 16 and first.store_id == again.store_id != other.store_id
    for opened in (first, other, again):
        opened.close()


def test_create_makes_a_private_file_and_never_replaces(path: str, faults: Faults) -> None:
    Journal.create(path).close()
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert faults.calls == ["write_all", "fdatasync", "rename", "fsync_dir", "write_at"]
    with pytest.raises(FileExistsError):
        Journal.create(path)


def test_one_append_is_one_write_and_one_sync(path: str, faults: Faults) -> None:
    made = Journal.create(path)
    faults.calls.clear()
    made.append(RECORDS)
    assert faults.calls == ["write_all", "fdatasync", "write_at"]
    assert made.syncs == 1
    made.close()


def test_without_sync_nothing_is_synced(path: str, faults: Faults) -> None:
    made = Journal.create(path, sync=False)
    made.append(RECORDS)
    made.begin_compaction().finish()
    made.close()
    assert not {"fdatasync", "fsync_dir", "write_at"} & {*faults.calls}


@pytest.mark.parametrize(
    "bad", [b"", b"[]", b"{}", b'{"a":1', b'{"a":\n1}', b'{"a":"' + b"x" * MAX_LINE + b'"}'], ids=lambda b: b[:8]
)
def test_what_is_no_object_on_one_line_is_not_written(path: str, good: bytes, bad: bytes) -> None:
    opened = Journal.open(path, lambda line: None)
    with pytest.raises(ValueError):
        opened.append([RECORDS[0], bad])
    opened.close()
    assert Path(path).read_bytes() == good


def test_the_longest_line_comes_back(path: str) -> None:
    longest = b'{"a":"' + b"x" * (MAX_LINE - len(b'{"seq":1,"a":"","crc":"00000000"}\n')) + b'"}'
    made = Journal.create(path)
    made.append([longest])
    made.close()
    assert replay(path) == [longest]


# --- cut, flipped, shuffled ---


@pytest.mark.promise("torn")
def test_appending_goes_on_behind_a_cut(path: str, good: bytes, caplog: pytest.LogCaptureFixture) -> None:
    """The longest prefix of records, the torn bytes kept, one warning; no header, no journal."""
    ends = [at + 1 for at in range(len(good)) if good[at : at + 1] == b"\n"]
    for cut in sorted({*range(0, len(good) + 1, 7), *ends, *(end - 1 for end in ends)}):
        for torn in torn_files(path):
            torn.unlink()
        mark_of(path).unlink(missing_ok=True)  # what is lost was never answered
        Path(path).write_bytes(good[:cut])
        caplog.clear()
        if cut < ends[0]:
            with pytest.raises(RegistryDamaged):
                Journal.open(path, lambda line: None, sync=False)
            assert Path(path).read_bytes() == good[:cut]
            continue
        found: list[bytes] = []
        opened = Journal.open(path, lambda line: found.append(line), sync=False)  # noqa: B023
        lacks_lf = cut + 1 in ends
        complete = [end for end in ends if end <= cut + lacks_lf]
        assert len(found) == len(complete) - 1
        assert Path(path).read_bytes() == good[: complete[-1]]
        clean = cut in ends or lacks_lf
        assert [torn.read_bytes() for torn in torn_files(path)] == ([] if clean else [good[complete[-1] : cut]])
        assert len(caplog.records) == (0 if clean else 1)
        opened.append([b'{"type":"after"}'])
        opened.close()
        assert len(replay(path)) == len(found) + 1


@pytest.mark.promise("torn")
def test_the_checksum_has_one_spelling(path: str, good: bytes) -> None:
    """An upper-case digit has the same value, and yet is a flipped bit."""
    lines = good.split(b"\n")
    at = next(at for at, line in enumerate(lines) if at and any(c in b"abcdef" for c in line[-10:-2]))
    lines[at] = lines[at][:-10] + lines[at][-10:-2].upper() + lines[at][-2:]
    Path(path).write_bytes(b"\n".join(lines))
    with pytest.raises(RegistryDamaged):
        replay(path)


@pytest.mark.promise("torn")
@pytest.mark.parametrize("at", range(24))
def test_lines_lost_doubled_and_swapped(path: str, good: bytes, at: int) -> None:
    lines = good.splitlines(keepends=True)
    changed = {
        "lost": lines[:at] + lines[at + 1 :],
        "doubled": lines[: at + 1] + lines[at:],
        "swapped": [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]],
    }
    for what, kept in changed.items():
        Path(path).write_bytes(b"".join(kept))
        with pytest.raises(RegistryDamaged):
            replay(path)
        assert not torn_files(path), what


@pytest.mark.promise("torn")
def test_the_last_line_doubled(path: str, good: bytes) -> None:
    Path(path).write_bytes(good + good.splitlines(keepends=True)[-1])
    with pytest.raises(RegistryDamaged):
        replay(path)


@pytest.mark.promise("torn")
def test_a_block_of_an_older_journal_inside(path: str, good: bytes, tmp_path: Path) -> None:
    older = Journal.create(tmp_path / "older.jsonl")
    older.append([b'{"type":"drop","file":5}'] * 24)
    older.close()
    lines, old = good.splitlines(keepends=True), (tmp_path / "older.jsonl").read_bytes().splitlines(keepends=True)
    Path(path).write_bytes(b"".join(lines[:5] + old[5:9] + lines[9:]))
    with pytest.raises(RegistryDamaged) as caught:
        replay(path)
    assert caught.value.fields["line"] == 6


def test_a_wrong_number_behind_a_right_checksum(path: str) -> None:
    right = chain([HEADER, *RECORDS[:3]]).split(b"\n")
    body = right[3].replace(b'{"seq":3,', b'{"seq":4,')[:-18]
    right[3] = body + b',"crc":"%08x"}' % crc32(body, int(right[2][-10:-2], 16))
    Path(path).write_bytes(b"\n".join(right))
    with pytest.raises(RegistryDamaged):
        replay(path)


@pytest.mark.promise("torn")
def test_the_refusal_says_where_how_much_and_what_now(path: str, good: bytes) -> None:
    lines = good.splitlines(keepends=True)
    lines[10] = lines[10].replace(b"drop", b"drip")
    Path(path).write_bytes(b"".join(lines))
    with pytest.raises(RegistryDamaged) as caught:
        replay(path)
    message = str(caught.value)
    offset = sum(map(len, lines[:10]))
    assert caught.value.exit_code == 65
    assert path in message and f"line 11 at byte {offset}" in message
    assert "9 good records are before it, 14 plausible ones after it" in message
    assert "server.py check" in message


# --- what a crash may leave at the end ---


@pytest.mark.promise("torn")
@pytest.mark.parametrize("count", [1, 511, 512, 8192, 3 * MAX_TORN])
def test_zeros_at_the_end_are_cut(path: str, good: bytes, count: int) -> None:
    Path(path).write_bytes(good + bytes(count))
    assert replay(path) == RECORDS
    assert Path(path).read_bytes() == good
    assert len(torn_files(path)[0].read_bytes()) == min(count, MAX_TORN)


@pytest.mark.promise("torn")
@pytest.mark.parametrize("tail", [b"\xff" * 700, b'{"seq":25,"typ', b"\xc3", b"x" * 8192], ids=repr)
def test_short_garbage_without_an_end_is_cut(path: str, good: bytes, tail: bytes) -> None:
    Path(path).write_bytes(good + tail)
    assert replay(path) == RECORDS
    assert torn_files(path)[0].read_bytes() == tail
    assert stat.S_IMODE(torn_files(path)[0].stat().st_mode) == 0o600


@pytest.mark.promise("torn")
def test_a_line_with_a_sector_that_never_reached_the_disk_is_cut(path: str, good: bytes) -> None:
    line = chain([HEADER, *RECORDS, b'{"type":"drop","pad":"' + b"y" * 3000 + b'"}']).splitlines(keepends=True)[-1]
    first = 512 - len(good) % 512
    lost = line[: first + 512] + bytes(512) + line[first + 1024 :]
    Path(path).write_bytes(good + lost)
    assert replay(path) == RECORDS
    # The same hole, but not where a sector is.
    Path(path).write_bytes(good + line[: first + 300] + bytes(512) + line[first + 812 :])
    with pytest.raises(RegistryDamaged):
        replay(path)


TAILS = {
    "ended": b"garbage\n",
    "long": b"\xff" * (MAX_TORN + 1),
    "plausible": b'torn\n{"seq":99,"type":"drop"}\n',
    "old": b'{"seq":1,"type":"drop"}\n',
    "several": b"torn\ngarbage\n[]\n",
    "deep": b"torn\n" + b"[" * 100_000 + b"\n",
}


@pytest.mark.promise("torn")
@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS.keys())
def test_other_tails_are_damage(path: str, good: bytes, tail: bytes) -> None:
    Path(path).write_bytes(good + tail)
    with pytest.raises(RegistryDamaged):
        replay(path)
    assert Path(path).read_bytes() == good + tail
    assert not torn_files(path)


@pytest.mark.promise("torn")
def test_records_behind_a_lost_sector_are_damage(path: str, good: bytes) -> None:
    """Only an interrupted last write may be cut; what follows was written later."""
    more = chain([HEADER, *RECORDS, b'{"pad":"' + b"y" * 3000 + b'"}', *RECORDS[:2]]).splitlines(keepends=True)[-3:]
    first = 512 - len(good) % 512
    more[0] = more[0][:first] + bytes(512) + more[0][first + 512 :]
    Path(path).write_bytes(good + b"".join(more))
    with pytest.raises(RegistryDamaged, match="2 plausible"):
        replay(path)


@pytest.mark.promise("torn")
def test_the_repair_is_synced_and_the_torn_bytes_are_safe_first(path: str, good: bytes, faults: Faults) -> None:
    Path(path).write_bytes(good + b"torn")
    replay(path)
    assert faults.calls == ["write_all", "fdatasync", "fsync_dir", "ftruncate", "fdatasync", "fsync_dir", "write_at"]


@pytest.mark.promise("torn")
@pytest.mark.parametrize("call", ["write_all", "fdatasync", "fsync_dir", "ftruncate"])
def test_a_repair_that_fails_refuses_the_start(path: str, good: bytes, faults: Faults, call: str) -> None:
    Path(path).write_bytes(good + b"torn")
    faults.failing[call] = errno.ENOSPC
    before = os.listdir("/proc/self/fd")
    with pytest.raises(StorageFailed):
        replay(path)
    assert os.listdir("/proc/self/fd") == before
    assert Path(path).read_bytes() == good + b"torn"
    assert call not in ("write_all", "fdatasync") or not torn_files(path)


@pytest.mark.promise("torn")
def test_a_sector_that_holds_its_lf_was_not_lost(path: str, good: bytes) -> None:
    """Zeros up to the LF of an ended line are rot: the sector they are in has reached the disk."""
    line = chain([HEADER, *RECORDS, b'{"type":"drop","pad":"' + b"y" * 3000 + b'"}']).splitlines(keepends=True)[-1]
    last = (len(good) + len(line) - 1) // 512 * 512 - len(good)
    Path(path).write_bytes(good + line[:last] + bytes(len(line) - 1 - last) + b"\n")
    with pytest.raises(RegistryDamaged):
        replay(path)


@pytest.mark.promise("torn")
def test_a_damaged_last_lf_is_put_back_and_synced(path: str, good: bytes, faults: Faults) -> None:
    Path(path).write_bytes(good[:-1] + b"\0")
    assert replay(path) == RECORDS
    assert faults.calls == ["ftruncate", "write_all", "fdatasync", "fsync_dir", "write_at"]
    assert Path(path).read_bytes() == good


@pytest.mark.promise("torn")
def test_a_missing_last_lf_is_put_back_and_synced(path: str, good: bytes, faults: Faults) -> None:
    Path(path).write_bytes(good[:-1])
    assert replay(path) == RECORDS
    assert faults.calls == ["write_all", "fdatasync", "fsync_dir", "write_at"]
    assert Path(path).read_bytes() == good


@pytest.mark.promise("durable")
def test_what_is_found_is_made_durable_before_anyone_relies_on_it(path: str, good: bytes, faults: Faults) -> None:
    """Who wrote it, or renamed it, may have been killed before he synced that."""
    assert replay(path) == RECORDS
    assert faults.calls == ["fdatasync", "fsync_dir", "write_at"]
    Journal.open(path, lambda line: None, sync=False).close()
    assert faults.calls == ["fdatasync", "fsync_dir", "write_at"]


# --- how far it had come ---


@pytest.mark.promise("durable")
def test_the_mark_is_what_was_synced(path: str) -> None:
    made = Journal.create(path)
    assert mark.read(path) == Reached(1, 0)
    made.append(RECORDS[:3])
    assert mark.read(path) == Reached(1, 3)
    compaction = made.begin_compaction()
    compaction.write(RECORDS[:1])
    made.append(RECORDS[3:4])
    assert mark.read(path) == Reached(1, 4)
    compaction.finish()
    assert mark.read(path) == Reached(2, 2)
    made.close()
    assert mark_of(path).read_bytes() == mark_line(2, 2)
    assert stat.S_IMODE(mark_of(path).stat().st_mode) == 0o600


def shortened(sound: bytes) -> dict[str, bytes]:
    """A journal whose records were all answered, without its last ones."""
    ends = [at + 1 for at in range(len(sound)) if sound[at : at + 1] == b"\n"]
    cuts = {f"{cut} bytes": sound[:cut] for end in ends[:-1] for cut in (end - 1, end, end + 20) if cut >= ends[0]}
    cuts |= {f"{end} bytes, LF": sound[: end - 1] + b"\0" for end in ends[1:-1]}
    last, edge = ends[-2], (ends[-2] // 512 + 1) * 512
    return cuts | {"zeros": sound[:last] + bytes(edge - last) + sound[edge:], "no brace": sound[:-2]}


@pytest.mark.promise("torn")
@pytest.mark.promise("durable")
def test_an_end_before_the_mark_is_refused_and_nothing_is_changed(path: str, good: bytes) -> None:
    """However it looks: whole, without its LF, with another byte in its place, torn, or lost to zeros."""
    marked = mark_of(path).read_bytes()
    for what, left in shortened(good).items():
        Path(path).write_bytes(left)
        for sync in (True, False):
            with pytest.raises(RegistryDamaged, match=r"of generation 1, but had reached record 24 of gen.*cut short"):
                Journal.open(path, lambda line: None, sync=sync)
        assert journal.examine(path, lambda line: None).state == "damaged", what
        assert (Path(path).read_bytes(), mark_of(path).read_bytes(), torn_files(path)) == (left, marked, []), what
    Path(path).write_bytes(good)
    assert replay(path) == RECORDS


@pytest.mark.promise("torn")
def test_an_older_generation_is_refused(path: str, good: bytes) -> None:
    opened = Journal.open(path, lambda line: None)
    opened.begin_compaction().finish()
    opened.close()
    Path(path).write_bytes(good)
    with pytest.raises(RegistryDamaged, match=r"record 24 of generation 1, but had reached record 0 of generation 2"):
        replay(path)
    assert journal.examine(path, lambda line: None).next_generation == 3


@pytest.mark.promise("torn")
def test_a_mark_may_lag_behind(path: str, good: bytes) -> None:
    """The power fails: what is behind it may be torn, or not."""
    for reached in (NOTHING, Reached(1, 0), Reached(1, 23)):
        writer = mark.Mark(path)
        writer.advance(reached)
        writer.close()
        Path(path).write_bytes(good + b"torn")
        assert replay(path) == RECORDS and mark.read(path) == Reached(1, 24)


def _link(path: Path) -> None:
    path.with_name("real").write_bytes(mark_line(9, 99))
    path.symlink_to("real")


def mark_line(generation: int, seq: int) -> bytes:
    line = b"%016x %016x" % (generation, seq)
    return line + b" %08x\n" % crc32(line)


NO_MARK: dict[str, Callable[[Path], object]] = {
    "missing": lambda path: None,
    "empty": lambda path: path.touch(),
    "zeros": lambda path: path.write_bytes(bytes(43)),
    "another checksum": lambda path: path.write_bytes(mark_line(1, 24).replace(b"8 ", b"9 ", 1)),
    "cut off": lambda path: path.write_bytes(mark_line(1, 24)[:-1]),
    "too long": lambda path: path.write_bytes(mark_line(1, 24) + b"\n"),
    "directory": lambda path: path.mkdir(),
    "fifo": os.mkfifo,
    "symlink": _link,
}


@pytest.mark.parametrize("make", NO_MARK.values(), ids=NO_MARK)
def test_what_is_no_mark_says_nothing_and_stops_nothing(path: str, good: bytes, make: Callable[[Path], object]) -> None:
    mark_of(path).unlink()
    make(mark_of(path))
    Path(path).write_bytes(b"".join(good.splitlines(keepends=True)[:10]))
    assert mark.read(path) == NOTHING
    opened = Journal.open(path, lambda line: None)
    opened.append(RECORDS[:2])
    opened.close()
    assert len(replay(path)) == 11
    assert make is not _link or mark_of(path).read_bytes() == mark_line(9, 99)


@pytest.mark.parametrize("call", ["open_file", "write_at"])
def test_a_mark_that_cannot_be_written_stops_nothing(path: str, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    real = getattr(disk, call)

    def full(file: Any, *rest: Any) -> Any:
        if call == "write_at" or str(file).endswith(".mark"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(file, *rest)

    monkeypatch.setattr(disk, call, full)
    made = Journal.create(path)
    made.append(RECORDS)
    made.begin_compaction().abort()
    made.close()
    assert replay(path) == RECORDS and mark.read(path) == NOTHING


def test_without_sync_the_mark_is_read_and_not_written(path: str, good: bytes) -> None:
    marked = mark_of(path).read_bytes()
    opened = Journal.open(path, lambda line: None, sync=False)
    opened.append(RECORDS[:1])
    opened.begin_compaction().finish()
    opened.close()
    assert mark_of(path).read_bytes() == marked
    Journal.create(Path(path).with_name("other.jsonl"), sync=False).close()
    assert not Path(path).with_name("other.mark").exists()


def test_a_new_journal_is_of_a_generation_above_the_mark_of_the_old_one(path: str, good: bytes) -> None:
    """Else a power cut that brings the old mark back would refuse it."""
    os.unlink(path)
    assert journal.examine(path, lambda line: None).next_generation == 2
    made = Journal.create(path, sync=False)
    assert made.generation == 2
    made.close()
    assert replay(path) == []


# --- what stands behind a valid checksum ---


@pytest.mark.promise("torn")
@pytest.mark.parametrize(
    "bomb",
    [
        b'{"x":' + b"[" * 100_000 + b"}",
        b'{"x":' + b"9" * 5000 + b"}",
        b'{"type":"drop","file":NaN}',
        b'{"type":"drop","file":true}',
        b'{"type":"drop","file":1e999}',
        b'{"type":"rename","file":1,"name":"\\ud800"}',
        b'{"type":"become","file":1}',
    ],
    ids=lambda bomb: bomb[:30],
)
def test_a_record_that_cannot_be_is_damage(path: str, bomb: bytes) -> None:
    from pfsd.records import decode

    Path(path).write_bytes(chain([HEADER, RECORDS[0], bomb, RECORDS[1]]))
    with pytest.raises(RegistryDamaged, match=r"line 3 .* 1 good records are before it") as caught:
        Journal.open(path, decode)
    assert caught.value.fields["line"] == 3


@pytest.mark.promise("torn")
def test_a_line_of_ten_mebibytes_is_damage(path: str) -> None:
    Path(path).write_bytes(chain([HEADER, RECORDS[0], b'{"x":"' + b"a" * (10 << 20) + b'"}']))
    with pytest.raises(RegistryDamaged):
        replay(path)


def test_what_the_visitor_refuses_is_damage_with_its_line(path: str, good: bytes) -> None:
    seen: list[bytes] = []

    def visit(line: bytes) -> None:
        seen.append(line)
        if len(seen) == 7:
            raise ValueError("file 7 is unknown")

    with pytest.raises(RegistryDamaged, match=r"line 8 .*file 7 is unknown"):
        Journal.open(path, visit)


@pytest.mark.promise("torn")
@pytest.mark.parametrize(
    "change",
    [
        (b'"format":1', b'"format":2'),
        (b'"min_reader":1', b'"min_reader":9'),
        (b'"format":1', b'"format":2,"new":[]'),
    ],
    ids=["format", "min_reader", "fields"],
)
def test_a_newer_format_is_refused_untouched(path: str, change: tuple[bytes, bytes]) -> None:
    newer = chain([HEADER.replace(*change), *RECORDS]) + b"torn"
    Path(path).write_bytes(newer)
    with pytest.raises(ConfigError) as caught:
        replay(path)
    assert caught.value.exit_code == 78
    assert Path(path).read_bytes() == newer


@pytest.mark.promise("torn")
def test_a_newer_format_with_another_checksum_is_no_damage(path: str) -> None:
    Path(path).write_bytes(
        b'{"type":"header","format":3,"min_reader":3,"store":"x","checksum":"xxh3","sum":"12"}\nbinary'
    )
    with pytest.raises(ConfigError):
        replay(path)


@pytest.mark.promise("torn")
@pytest.mark.parametrize(
    "header",
    [
        RECORDS[0],
        HEADER.replace(b'"crc32"', b'"md5"'),
        HEADER.replace(b"0" * 32, b"0" * 31),
        HEADER.replace(b'"format":1', b'"format":0'),
        b'{"type":"header"}',
    ],
    ids=range(5),
)
def test_a_header_that_cannot_be_is_damage(path: str, header: bytes) -> None:
    Path(path).write_bytes(chain([header, *RECORDS]))
    with pytest.raises(RegistryDamaged):
        replay(path)


def test_unknown_header_fields_are_ignored(path: str) -> None:
    Path(path).write_bytes(chain([HEADER[:-1] + b',"new":1}', *RECORDS]))
    assert replay(path) == RECORDS


@pytest.mark.promise("torn")
def test_missing_empty_and_strange_journals_are_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(RegistryDamaged, match="missing"):
        replay(path)
    Path(path).touch()
    with pytest.raises(RegistryDamaged, match="header"):
        replay(path)
    os.unlink(path)
    for make in (os.mkdir, os.mkfifo, lambda path: os.symlink("real", path)):
        (tmp_path / "real").write_bytes(chain([HEADER]))
        make(path)
        with pytest.raises(RegistryDamaged, match="regular file"):
            replay(path)
        os.rmdir(path) if os.path.isdir(path) else os.unlink(path)


def test_a_journal_that_may_not_be_opened(path: str, good: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> int:
        raise PermissionError(errno.EACCES, "no")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StoreUnavailable):
        Journal.open(path, lambda line: None)


def test_descriptors_are_not_leaked(path: str, good: bytes) -> None:
    before = os.listdir("/proc/self/fd")
    for content in (good, good + b"x\n", good + b"x", b"", good[:30]):
        Path(path).write_bytes(content)
        try:
            replay(path)
        except RegistryDamaged:
            continue
    Path(path).write_bytes(good)
    opened = Journal.open(path, lambda line: None)
    opened.begin_compaction().abort()
    opened.begin_compaction().finish()
    opened.close()
    assert os.listdir("/proc/self/fd") == before


# --- a disk that fails ---


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_failed_write_is_taken_back_and_the_journal_goes_on(path: str, faults: Faults, code: int) -> None:
    made = Journal.create(path)
    made.append(RECORDS[:3])
    before = Path(path).read_bytes()
    faults.failing["write_all"] = code
    with pytest.raises(OSError) as caught:
        made.append(RECORDS[3:6])
    assert caught.value.errno == code and not made.failed
    assert Path(path).read_bytes() == before
    assert faults.calls[-4:] == ["write_all", "ftruncate", "fdatasync", "write_at"]
    faults.failing.clear()
    made.append(RECORDS[6:9])
    made.close()
    assert replay(path) == RECORDS[:3] + RECORDS[6:9]


def test_a_write_that_only_claims_success(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Journal.create(path)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "write_all", lambda fd, data: os.write(fd, data[:-4]))
        with pytest.raises(OSError, match="not grown"):
            made.append(RECORDS[:2])
    made.append(RECORDS[2:4])
    made.close()
    assert replay(path) == RECORDS[2:4]


def test_after_a_failed_sync_nothing_is_written_or_synced_again(path: str, faults: Faults) -> None:
    made = Journal.create(path)
    faults.failing["fdatasync"] = errno.EIO
    with pytest.raises(StorageFailed):
        made.append(RECORDS[:3])
    assert made.failed and mark.read(path) == Reached(1, 0)
    faults.failing.clear()
    faults.calls.clear()
    with pytest.raises(StorageFailed):
        made.append(RECORDS[3:6])
    with pytest.raises(StorageFailed):
        made.begin_compaction()
    assert faults.calls == []
    made.close()


@pytest.mark.parametrize("second", ["ftruncate", "fdatasync"])
def test_a_write_that_cannot_be_taken_back_fails_for_ever(path: str, faults: Faults, second: str) -> None:
    made = Journal.create(path)
    faults.failing |= {"write_all": errno.ENOSPC, second: errno.EIO}
    with pytest.raises(StorageFailed):
        made.append(RECORDS[:3])
    faults.failing.clear()
    with pytest.raises(StorageFailed):
        made.append(RECORDS[:3])
    made.close()


# --- compaction ---


def test_compaction_replaces_what_was_and_keeps_what_came_meanwhile(path: str) -> None:
    made = Journal.create(path)
    made.append(RECORDS[:8])
    compaction = made.begin_compaction()
    compaction.write(RECORDS[2:4])
    made.append(RECORDS[8:9])
    compaction.write(RECORDS[4:5])
    made.append(RECORDS[9:11])
    compaction.sync()
    compaction.finish()
    made.append(RECORDS[11:12])
    assert (made.generation, made.records, made.size) == (2, 7, os.path.getsize(path))
    made.close()
    kept = RECORDS[2:5] + RECORDS[8:12]
    assert replay(path) == kept
    again = Journal.open(path, lambda line: None)
    assert (again.generation, again.store_id) == (2, made.store_id)
    again.close()
    assert sorted(os.listdir(os.path.dirname(path))) == ["journal.jsonl", "journal.mark"]


def test_a_failed_append_is_not_carried_over(path: str, faults: Faults) -> None:
    made = Journal.create(path)
    compaction = made.begin_compaction()
    faults.failing["write_all"] = errno.ENOSPC
    with pytest.raises(OSError):
        made.append(RECORDS[:1])
    faults.failing.clear()
    made.append(RECORDS[1:2])
    compaction.finish()
    made.close()
    assert replay(path) == RECORDS[1:2]


def test_compaction_syncs_before_it_renames_and_the_directory_after(path: str, faults: Faults) -> None:
    made = Journal.create(path)
    faults.calls.clear()
    made.begin_compaction().finish()
    made.close()
    assert faults.calls == ["write_all", "write_all", "fdatasync", "rename", "fsync_dir", "write_at"]


@pytest.mark.parametrize("call", ["write_all", "fdatasync", "rename"])
def test_a_compaction_that_fails_leaves_the_old_generation(path: str, faults: Faults, call: str) -> None:
    made = Journal.create(path)
    made.append(RECORDS[:8])
    compaction = made.begin_compaction()
    made.append(RECORDS[8:9])
    faults.failing[call] = errno.EIO
    with pytest.raises(OSError):
        compaction.write(RECORDS[4:6])
        compaction.finish()
    compaction.abort()
    faults.failing.clear()
    assert sorted(os.listdir(os.path.dirname(path))) == ["journal.jsonl", "journal.mark"]
    made.append(RECORDS[9:10])
    made.begin_compaction().abort()
    made.close()
    assert replay(path) == RECORDS[:10]


def test_a_rename_that_may_not_last_fails_the_journal(path: str, faults: Faults) -> None:
    made = Journal.create(path)
    faults.failing["fsync_dir"] = errno.EIO
    compaction = made.begin_compaction()
    with pytest.raises(StorageFailed):
        compaction.finish()
    assert mark.read(path) == Reached(1, 0)
    compaction.abort()
    faults.failing.clear()
    with pytest.raises(StorageFailed):
        made.append(RECORDS[:1])
    made.close()


def test_a_failed_journal_is_not_replaced(path: str, faults: Faults) -> None:
    """What was appended last may be on the disk or not; a new generation would decide that it is not."""
    made = Journal.create(path)
    compaction = made.begin_compaction()
    faults.failing["fdatasync"] = errno.EIO
    with pytest.raises(StorageFailed):
        made.append(RECORDS[:1])
    faults.failing.clear()
    with pytest.raises(StorageFailed):
        compaction.finish()
    compaction.abort()
    made.close()
    assert replay(path) == RECORDS[:1]


def test_a_crash_at_every_step_of_a_compaction(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the rename the old generation counts, after it the new one; they mean the same."""
    crash_at = 0
    seen = set()
    while True:
        for name in os.listdir(os.path.dirname(path)):
            os.unlink(os.path.join(os.path.dirname(path), name))
        made = Journal.create(path)
        made.append(RECORDS[:4])
        with monkeypatch.context() as patch:
            steps = _crash_at(crash_at, patch)
            crashed = True
            try:
                compaction = made.begin_compaction()
                compaction.write(RECORDS[10:12])
                made.append(RECORDS[4:5])
                compaction.finish()
                crashed = False
            except _Crash:
                pass
        found = replay(path)
        old, new = RECORDS[:4], RECORDS[10:12]
        assert found in (old, old + RECORDS[4:5], new + RECORDS[4:5])
        seen.add(tuple(found))
        assert sorted(os.listdir(os.path.dirname(path))) == ["journal.jsonl", "journal.mark"]
        if not crashed:
            append = ["write_all", "fdatasync", "write_at"]
            finish = ["write_all", "fdatasync", "rename", "fsync_dir", "write_at"]
            assert steps == ["write_all", "write_all", *append, *finish]
            break
        crash_at += 1
    assert crash_at == 10 and len(seen) == 3


class _Crash(BaseException):
    pass


def _crash_at(step: int, patch: pytest.MonkeyPatch) -> list[str]:
    """Let the process die before this call of `disk`, counted from 0."""
    steps: list[str] = []
    for name in ("write_all", "write_at", "fdatasync", "fsync_dir", "rename"):
        real = getattr(disk, name)

        def wrapped(*args: Any, name: str = name, real: Callable[..., Any] = real) -> Any:
            if len(steps) == step:
                raise _Crash
            steps.append(name)
            return real(*args)

        patch.setattr(disk, name, wrapped)
    return steps


def test_two_compactions_at_once_are_a_bug(path: str) -> None:
    made = Journal.create(path)
    first = made.begin_compaction()
    with pytest.raises(RuntimeError):
        made.begin_compaction()
    first.abort()
    made.close()


def test_the_collector_is_left_as_it_was(path: str, good: bytes) -> None:
    import gc

    states: list[bool] = []
    Journal.open(path, lambda line: states.append(gc.isenabled())).close()
    assert not any(states) and gc.isenabled()


def test_messages_do_not_go_out_for_a_sound_journal(path: str, good: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    replay(path)
    assert not caplog.records
