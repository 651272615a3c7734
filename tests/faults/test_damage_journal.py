"""A journal cut, flipped, mixed up and forged: what a crash explains is cut off and kept, all else is refused."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pfsd.errors import RegistryDamaged
from pfsd.journal import MAX_TORN, SECTOR, Journal
from pfsd.records import Ready, encode
from pfsd.registry import Registry
from tests.faults.conftest import Count
from tests.faults.inject import fired, inject
from tests.harness import SERVER, Daemon
from tests.specimens import HEADER, JOURNAL, OBJECTS, PART, RECORDS, chain, state, states
from tests.wire import code, fields

#: Where lines begin, and where the last one ends.
BOUNDS = [0, *(at + 1 for at in range(len(JOURNAL)) if JOURNAL[at : at + 1] == b"\n")]
STATES = states()


class Opened(NamedTuple):
    """What came of opening a journal."""

    state: bytes
    warnings: int
    left: bytes  # in the file
    aside: list[bytes]  # the torn ends that were kept


Open = Callable[[bytes], Opened]


@pytest.fixture
def opened(in_memory: Path) -> Iterator[Open]:
    """Open a journal of these bytes as a start does; what is refused must stay as it is."""
    path = in_memory / "journal.jsonl"
    said: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = said.append  # type: ignore[method-assign]
    logging.getLogger("pfsd").addHandler(handler)

    def open_bytes(data: bytes) -> Opened:
        path.write_bytes(data)
        registry = Registry()
        said.clear()
        try:
            Journal.open(path, registry.replay, sync=False).close()
        except RegistryDamaged:
            assert path.read_bytes() == data and not _torn(path) and not said
            raise
        aside = _torn(path)
        kept = [torn.read_bytes() for torn in aside]
        for torn in aside:
            torn.unlink()
        assert all(one.levelno == logging.WARNING for one in said)
        return Opened(state(registry), len(said), path.read_bytes(), kept)

    yield open_bytes
    logging.getLogger("pfsd").removeHandler(handler)


def _torn(path: Path) -> list[Path]:
    return [path.parent / name for name in sorted(os.listdir(path.parent)) if name.startswith("journal.torn-")]


# --- cut and flipped ----------------------------------------------------------------------------


@pytest.mark.promise("torn")
def test_cut_at_every_byte(opened: Open, count: Count) -> None:
    """The longest prefix of records; what was torn is kept, and there is one warning; no header, no journal."""
    around_bounds = {min(max(bound + by, 0), len(JOURNAL)) for bound in BOUNDS for by in (-2, -1, 0, 1)}
    for cut in sorted({*range(0, len(JOURNAL), count(7, 1)), *around_bounds}):
        if cut < BOUNDS[1]:
            with pytest.raises(RegistryDamaged):
                opened(JOURNAL[:cut])
            continue
        lines = sum(end <= cut + 1 for end in BOUNDS[1:])  # one more when it only lacks its LF
        end = BOUNDS[lines]
        torn = JOURNAL[end:cut]
        assert opened(JOURNAL[:cut]) == Opened(STATES[lines - 1], bool(torn), JOURNAL[:end], [torn] if torn else [])


@pytest.mark.promise("torn")
def test_every_bit_flipped(opened: Open, count: Count) -> None:
    """Refused with line and byte; the last LF alone is mended, with a warning."""
    for bit in range(0, 8 * len(JOURNAL), count(13, 1)):
        damaged = bytearray(JOURNAL)
        damaged[bit // 8] ^= 1 << bit % 8
        line = sum(begin <= bit // 8 for begin in BOUNDS)
        if bit // 8 == len(JOURNAL) - 1:
            assert opened(bytes(damaged)) == Opened(STATES[-1], 1, JOURNAL, [])
            continue
        with pytest.raises(RegistryDamaged) as caught:
            opened(bytes(damaged))
        assert (caught.value.fields["line"], caught.value.fields["offset"]) == (line, BOUNDS[line - 1])


@pytest.mark.promise("torn")
def test_any_byte_in_place_of_the_last_lf_is_mended(opened: Open) -> None:
    for byte in set(range(256)) - {ord("\n")}:
        assert opened(JOURNAL[:-1] + bytes([byte])) == Opened(STATES[-1], 1, JOURNAL, [])


# --- behind the end -----------------------------------------------------------------------------


@pytest.mark.promise("torn")
def test_zeros_behind_the_end_are_cut_off(opened: Open, count: Count) -> None:
    for size in {*range(1, 8193, count(97, 1)), 8192, MAX_TORN + 1}:
        found = opened(JOURNAL + bytes(size))
        assert found == Opened(STATES[-1], 1, JOURNAL, [bytes(min(size, MAX_TORN))])


@pytest.mark.promise("torn")
def test_random_bytes_behind_the_end_are_cut_off_or_refused(opened: Open, count: Count) -> None:
    """Never another registry; what has no LF could be a torn write."""
    seed = int(os.environ.get("PFSD_TEST_SEED", "1"))
    print(f"PFSD_TEST_SEED={seed}")
    lots = random.Random(seed)
    refused = 0
    for _ in range(count(100, 2000)):
        tail = lots.randbytes(lots.choice((1, 2, 17, 300, 4096, 8192)))
        try:
            assert opened(JOURNAL + tail) == Opened(STATES[-1], 1, JOURNAL, [tail])
        except RegistryDamaged:
            refused += 1
            assert b"\n" in tail
    assert refused


@pytest.mark.promise("torn")
@pytest.mark.parametrize("at", range(1, len(RECORDS)))
def test_records_from_elsewhere_behind_the_end_are_refused(opened: Open, at: int) -> None:
    """Old records of this journal, and of one that began in the same way."""
    other = chain([HEADER, *map(encode, RECORDS[:at]), b'{"type":"drop","file":77}', *map(encode, RECORDS[at:])])
    lines = other.splitlines(keepends=True)
    for tail in (JOURNAL[BOUNDS[at] : BOUNDS[at + 1]], JOURNAL[BOUNDS[at] :], b"".join(lines[at + 1 :])):
        with pytest.raises(RegistryDamaged) as caught:
            opened(JOURNAL + tail)
        assert caught.value.fields["offset"] == len(JOURNAL)


@pytest.mark.promise("torn")
@pytest.mark.parametrize("at", range(1, len(RECORDS)))
def test_records_lost_doubled_swapped_and_pasted_are_refused(opened: Open, at: int) -> None:
    lines = JOURNAL.splitlines(keepends=True)
    older = chain([HEADER, *([b'{"type":"drop","file":77}'] * len(RECORDS))]).splitlines(keepends=True)
    older[1] = older[2]  # whose checksum has only the header before it fits here as well
    changed = {
        "lost": lines[:at] + lines[at + 1 :],
        "doubled": lines[: at + 1] + lines[at:],
        "swapped": [*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]],
        "pasted": lines[:at] + older[at : at + 2] + lines[at + 2 :],
    }
    for what, kept in changed.items():
        with pytest.raises(RegistryDamaged) as caught:
            opened(b"".join(kept))
        assert caught.value.fields["offset"] == BOUNDS[at] + (len(lines[at]) if what == "doubled" else 0), what


# --- forged, behind right checksums -------------------------------------------------------------

BOMBS = {
    "deep": b'{"type":"drop","file":' + b"[" * 100_000 + b"}",
    "deep in a field nobody knows": b'{"type":"drop","file":5,"x":' + b"[" * 100_000 + b"}",
    "digits": b'{"type":"drop","file":' + b"9" * 5000 + b"}",
    "NaN": b'{"type":"drop","file":NaN}',
    "infinity": b'{"type":"drop","file":1e999}',
    "surrogate": b'{"type":"rename","file":20,"name":"\\ud800"}',
    "bool": b'{"type":"drop","file":true}',
    "fraction": b'{"type":"drop","file":1.5}',
    "unknown type": b'{"type":"undelete","file":1}',
    "no type": b'{"file":1}',
    "long": b'{"type":"drop","file":5,"x":"' + b"a" * (10 << 20) + b'"}',
    "lines": b'{"type":"a\\nb\\u001b[2J"}',
    "trailing": b'{"type":"drop","file":5}}',
}


@pytest.mark.promise("torn")
@pytest.mark.promise("answered")
@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_a_forged_record_is_refused_with_its_line(opened: Open, bomb: bytes) -> None:
    with pytest.raises(RegistryDamaged) as caught:
        opened(chain([*OBJECTS, bomb, encode(RECORDS[4])]))
    message = str(caught.value)
    assert caught.value.fields["line"] == len(OBJECTS) + 1
    assert message.isprintable() and len(message) < 2000


def test_unknown_fields_and_doubled_keys_mean_what_they_say(opened: Open) -> None:
    """Of a doubled key the last one counts, as in every reader of JSON; nothing else is taken from it."""
    doubled = opened(chain([*OBJECTS, b'{"type":"delete","file":20,"file":21,"new":{"a":[1]}}']))
    assert doubled.state == opened(chain([*OBJECTS, b'{"type":"delete","file":21}'])).state


@pytest.mark.parametrize("name", ["a\u2028b", "a\u0085b", "a\vb", "a\rb", "a\r\nb", "\x1c\x1d\x1e"])
def test_separators_of_other_programs_end_no_line(opened: Open, name: str) -> None:
    record = Ready(50, name.encode(), 0, PART, 0, [])
    run = b'"runs":[{"pack":60,"seq":0,"part":0,"head":99,"parts":[]}]'
    encoded = encode(record).replace(b'"runs":[]', run)
    unescaped = encoded.replace(rb"\u000b", b"\x0b")  # as another writer may have it, which is no JSON
    registry = Registry()
    assert opened(chain([*OBJECTS, encoded])).warnings == 0
    for line in chain([*OBJECTS, encoded]).split(b"\n")[1:-1]:
        registry.replay(line)
    assert registry.find(name.encode()) is not None
    if unescaped != encoded:
        with pytest.raises(RegistryDamaged):
            opened(chain([*OBJECTS, unescaped]))


@pytest.mark.promise("memory")
def test_the_largest_bombs_cost_little_memory(tmp_path: Path) -> None:
    """A line of 48 MiB, deep nesting and long numbers: at most 32 MiB above what a sound journal takes."""
    path = tmp_path / "journal.jsonl"
    peaks = []
    for bomb in (
        encode(RECORDS[4]),
        BOMBS["deep"],
        b'{"x":"' + b"a" * (48 << 20) + b'"}',
        b'{"x":%b}' % (b"9" * 900_000),
    ):
        path.write_bytes(chain([HEADER, bomb]) + encode(RECORDS[4]) + b"\n")
        ended = subprocess.run([sys.executable, "-c", _OPEN, str(path)], capture_output=True, text=True, check=True)
        verdict, peak = ended.stdout.split()
        assert verdict == "65"
        peaks.append(int(peak))
    assert max(peaks) - peaks[0] < 32 << 10, peaks


_OPEN = r"""
import re, sys
from pfsd.errors import RegistryDamaged
from pfsd.journal import Journal
from pfsd.registry import Registry
try:
    Journal.open(sys.argv[1], Registry().replay)
    code = 0
except RegistryDamaged as error:
    code = error.exit_code
print(code, re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])
"""


# --- with the real daemon -----------------------------------------------------------------------


@pytest.fixture
def stopped(daemon: Daemon) -> Daemon:
    """A daemon that has stored files `a` and `z`, each in a pack of its own, and was stopped."""
    for name in (b"a", b"z"):
        assert code(daemon.ask(b"put - name=%b size=3\n%b" % (name, name * 3))[-1]) == "OK"
    daemon.stop()
    assert len(daemon.packs()) == 2
    return daemon


def journal_of(daemon: Daemon) -> Path:
    return daemon.store / "journal.jsonl"


def names(daemon: Daemon) -> list[str]:
    return [fields(row)["name"] for row in daemon.ask(b"list\n")[:-1]]


@pytest.mark.promise("torn")
@pytest.mark.promise("durable")
def test_an_answered_file_outlives_a_damaged_last_lf(stopped: Daemon) -> None:
    journal = journal_of(stopped)
    sound = journal.read_bytes()
    journal.write_bytes(sound[:-1] + b"\x8a")
    stopped.start()
    assert stopped.ask(b"list\n")[-1].startswith(b"OK list files=2")
    with stopped.connect() as wire:
        wire.send(b"get z -\n")
        assert wire.frames()[0] == b"zzz"
    assert stopped.log.count("instead of the LF") == 1
    stopped.stop()
    assert journal.read_bytes() == sound and not list(stopped.store.glob("journal.torn-*"))


REFUSED: dict[str, Callable[[Path], object]] = {
    "flip": lambda path: path.write_bytes(path.read_bytes().replace(b'"ready"', b'"reedy"', 1)),
    "emptied": lambda path: path.write_bytes(b""),
    "half a header": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "missing": lambda path: path.unlink(),
    "directory": lambda path: (path.unlink(), path.mkdir()),
    "symlink": lambda path: (path.rename(path.parent / "elsewhere"), path.symlink_to("elsewhere")),
    "fifo": lambda path: (path.unlink(), os.mkfifo(path)),
    "bomb": lambda path: path.write_bytes(chain([HEADER, BOMBS["deep"]])),
    "ten mebibytes": lambda path: path.write_bytes(chain([HEADER, BOMBS["long"]])),
    "unknown type": lambda path: path.write_bytes(chain([HEADER, BOMBS["unknown type"]])),
}


@pytest.mark.promise("torn")
def test_a_refused_start_says_so_in_one_line_and_touches_nothing(stopped: Daemon, count: Count) -> None:
    journal, packs = journal_of(stopped), {pack: pack.read_bytes() for pack in stopped.packs()}
    sound = journal.read_bytes()
    for what in list(REFUSED)[:: count(4, 1)]:
        REFUSED[what](journal)
        before = sorted(os.listdir(stopped.store))
        exit_code, words = stopped.start_fails()
        assert exit_code == 65 and words.count("\n") == 1 and "journal" in words, (what, words)
        assert {pack: pack.read_bytes() for pack in stopped.packs()} == packs, what
        assert sorted(os.listdir(stopped.store)) == before, what
        if journal.is_dir():
            journal.rmdir()
        else:
            journal.unlink(missing_ok=True)
        journal.write_bytes(sound)
    stopped.start()
    assert names(stopped) == ["a", "z"]


def test_a_newer_format_is_refused_with_78_and_unchanged(stopped: Daemon) -> None:
    journal = journal_of(stopped)
    newer = chain([HEADER.replace(b'"min_reader":1', b'"min_reader":99')])
    journal.write_bytes(newer)
    exit_code, words = stopped.start_fails()
    assert exit_code == 78 and words.count("\n") == 1 and "newer" in words
    assert journal.read_bytes() == newer and len(stopped.packs()) == 2


@pytest.mark.promise("torn")
@pytest.mark.parametrize("call", ["open_file", "read"])
def test_a_journal_that_cannot_be_read_is_not_taken_for_empty(stopped: Daemon, call: str) -> None:
    inject(stopped, f"{call}:*/journal.jsonl:1+:eio")
    exit_code, words = stopped.start_fails()
    assert fired(stopped) and exit_code in (73, 74) and words.count("\n") == 1
    assert len(stopped.packs()) == 2
    inject(stopped)
    stopped.start()
    assert names(stopped) == ["a", "z"]


# --- an end that was answered, and is gone ------------------------------------------------------


def tree(daemon: Daemon) -> dict[str, bytes]:
    """Every file in the store but its lock, which has the pid of the last one who tried."""
    found = {str(path.relative_to(daemon.store)): path for path in daemon.store.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if name != "lock"}


def zeros_in_the_last_line(sound: bytes) -> bytes:
    """A sector that an answered line has lost, which looks as if it never had come to the disk."""
    last = sound[:-1].rindex(b"\n") + 1
    edge = min(len(sound), (last // SECTOR + 1) * SECTOR)
    return sound[:last] + bytes(edge - last) + sound[edge:]


SHORTENED: dict[str, Callable[[bytes], bytes]] = {
    "the last record": lambda sound: sound[: sound[:-1].rindex(b"\n") + 1],
    "all records": lambda sound: sound[: sound.index(b"\n") + 1],
    "half of the last record": lambda sound: sound[:-40],
    "a sector of the last record": zeros_in_the_last_line,
}


@pytest.mark.promise("torn")
@pytest.mark.promise("durable")
@pytest.mark.promise("rebuilt")
@pytest.mark.parametrize("end", [Daemon.stop, Daemon.kill_all], ids=["stopped", "killed"])
def test_an_end_that_was_answered_and_lost_is_refused_and_comes_back(
    daemon: Daemon, end: Callable[[Daemon], object], count: Count
) -> None:
    """The journal becomes shorter in place: the start changes not one byte, and a rebuild brings all back."""
    stored = [f"n{number}" for number in range(5)]
    for name in stored:
        assert code(daemon.ask(b"put - name=%b size=3\nnew" % name.encode())[-1]) == "OK"
    end(daemon)
    journal = journal_of(daemon)
    sound = journal.read_bytes()
    for what in list(SHORTENED)[:: count(2, 1)]:
        journal.write_bytes(SHORTENED[what](sound))
        before = tree(daemon)
        exit_code, words = daemon.start_fails()
        assert exit_code == 65 and "cut short" in words and "server.py check" in words, (what, words)
        assert tree(daemon) == before, what
    journal.write_bytes(SHORTENED["all records"](sound))
    _rebuild(daemon)
    daemon.start()
    assert sorted(names(daemon)) == stored
    assert code(daemon.ask(b"verify\n")[-1]) == "OK"
    daemon.restart()
    assert sorted(names(daemon)) == stored


@pytest.mark.promise("torn")
@pytest.mark.promise("durable")
@pytest.mark.promise("rebuilt")
def test_an_old_copy_of_the_journal_is_refused_and_what_came_later_comes_back(stopped: Daemon) -> None:
    """Also when the copy is of an older generation and has as many records."""
    journal = journal_of(stopped)
    old = journal.read_bytes()
    opened = Journal.open(journal, lambda line: None)
    compaction = opened.begin_compaction()
    compaction.write([b"{" + line[line.index(b",") + 1 : -18] + b"}" for line in old.splitlines()[1:]])
    compaction.finish()
    opened.close()
    stopped.start()
    assert code(stopped.ask(b"put - name=late size=4\nlate")[-1]) == "OK"
    for _ in range(10):  # so that it had more records than the rebuilt one has
        assert code(stopped.ask(b"rename a b\n")[-1]) == code(stopped.ask(b"rename b a\n")[-1]) == "OK"
    stopped.stop()
    journal.write_bytes(old)
    before = tree(stopped)
    exit_code, words = stopped.start_fails()
    assert exit_code == 65 and "older copy" in words and tree(stopped) == before
    _rebuild(stopped)
    stopped.start()
    assert sorted(names(stopped)) == ["a", "late", "z"]
    with stopped.connect() as wire:
        wire.send(b"get late -\n")
        assert wire.frames()[0] == b"late"


def _rebuild(daemon: Daemon) -> None:
    """As the refused start says: check, then what that says."""
    for command, exit_code, then in (("check", 65, "rebuild"), ("rebuild", 0, "check --data"), ("check", 0, "")):
        arguments = [sys.executable, str(SERVER), command, "--config", str(daemon.home / "config.yaml")]
        ran = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
        assert ran.returncode == exit_code, ran
        assert f"server.py {then}".strip() in ran.stdout.splitlines()[-1], ran
