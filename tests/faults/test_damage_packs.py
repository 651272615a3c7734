"""Packs with damaged bytes, cut, mixed up or replaced: an error that names file and part, never wrong data."""

from __future__ import annotations

import errno
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from pfsd import disk, stores, work
from tests.faults.conftest import Count
from tests.harness import PART as WIRE_PART
from tests.harness import Daemon, etag, noise
from tests.specimens import STORE, Pack, Piece, content, pack, run_pack, shared_pack
from tests.test_wire_reclaim import put_in_one_pack
from tests.wire import Wire, code, fields

FILLER = 0xAA
NUMBER = 5

# --- as an I/O process reads them ---------------------------------------------------------------


class Process:
    """An I/O process in this one: its slab, and a store with one pack."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slab = bytearray(64 << 10)
        self.store = stores.open_store(f"file:{home}", sync=False, epoch="e")
        monkeypatch.setattr(work._Process, "slab", memoryview(self.slab), raising=False)
        monkeypatch.setattr(work._Process, "store", self.store, raising=False)
        self.path = home / "packs" / f"{NUMBER >> 12:05x}" / f"{NUMBER:016x}.pack"
        self.path.parent.mkdir()

    def bad(self, pieces: Sequence[Piece]) -> dict[Piece, str]:
        """Load parts, in one batch for each file; the bad ones. All others must be what they were, bad ones zeros."""
        self.slab[:] = bytes([FILLER]) * len(self.slab)
        wanted = [piece for piece in pieces if piece.content]
        ends = [sum(len(piece.content) for piece in wanted[: at + 1]) for at in range(len(wanted))]
        places = {piece: end - len(piece.content) for piece, end in zip(wanted, ends, strict=True)}
        files = sorted({piece.file for piece in wanted})
        batches = tuple(
            work.LoadBatch(
                NUMBER,
                tuple(
                    work.PartOut(STORE, file, piece.seq, places[piece], piece.row)
                    for piece in wanted
                    if piece.file == file
                ),
            )
            for file in files
        )
        results = work.load_batches(batches, 0)
        assert isinstance(results, tuple)
        codes = {}
        for file, loaded in zip(files, results, strict=True):
            assert isinstance(loaded, work.LoadedBatch)
            codes |= {(file, part.seq): part.code for part in loaded.bad}
        for piece, at in places.items():
            found = self.slab[at : at + len(piece.content)]
            assert found == (bytes(len(found)) if (piece.file, piece.seq) in codes else piece.content)
        assert self.slab[ends[-1] :] == bytes([FILLER]) * (len(self.slab) - ends[-1]), "written where nothing belongs"
        return {piece: codes[piece.file, piece.seq] for piece in wanted if (piece.file, piece.seq) in codes}

    def copied(self, pieces: Sequence[Piece]) -> str:
        """Copy parts to another pack, as what is left of a pack is; the error word, if it is refused."""
        parts = tuple((piece.file, piece.seq, piece.row) for piece in pieces if piece.content)
        outcome = work.copy_parts(work.CopyBatch("copy", STORE, NUMBER, parts), 0)
        if isinstance(outcome, work.Failure):
            return outcome.code
        self.store.discard([outcome.token])
        return "OK"


@pytest.fixture
def process(in_memory: Path, monkeypatch: pytest.MonkeyPatch) -> Process:
    return Process(in_memory, monkeypatch)


PACKS: dict[str, Callable[[], Pack]] = {
    "none": lambda: run_pack("none"),
    "zlib": lambda: run_pack("zlib"),
    "zstd": lambda: run_pack("zstd"),
    "shared": shared_pack,
}


@pytest.mark.promise("checked")
@pytest.mark.parametrize("kind", PACKS)
def test_every_byte_of_a_pack_damaged(process: Process, kind: str, count: Count) -> None:
    """The part that has it is corrupt, all others come as they were; the end marker is not read.

    A few bits of what codecs write mean nothing: with those flipped, the content is what it was.
    """
    sound = PACKS[kind]()
    flips = harmless = 0
    process.path.write_bytes(sound.data)
    assert process.bad(sound.pieces) == {}
    with open(process.path, "r+b", buffering=0) as file:
        for bit in range(0, 8 * len(sound.data), count(9 if kind == "zstd" else 101, 1)):
            at = bit // 8
            os.pwrite(file.fileno(), bytes([sound.data[at] ^ 1 << bit % 8]), at)
            hit, bad = _piece_at(sound, at), process.bad(sound.pieces)
            means_nothing = not bad and _may_mean_nothing(hit, at)
            assert means_nothing or bad == ({hit: "corrupt"} if hit.content else {}), (at, bit % 8)
            flips, harmless = flips + 1, harmless + means_nothing
            os.pwrite(file.fileno(), sound.data[at : at + 1], at)
    assert harmless < flips / 50


def _piece_at(sound: Pack, at: int) -> Piece:
    return [piece for piece in sound.pieces if piece.row.offset <= at][-1]


def _may_mean_nothing(piece: Piece, at: int) -> bool:
    return piece.row.codec != "none" and at >= piece.row.offset + piece.row.head


@pytest.mark.promise("checked")
@pytest.mark.parametrize("kind", PACKS)
def test_what_is_damaged_is_never_copied_to_another_pack(process: Process, kind: str, count: Count) -> None:
    sound = PACKS[kind]()
    process.path.write_bytes(sound.data)
    assert process.copied(sound.pieces) == "OK"
    for at in range(0, len(sound.data), count(61, 1)):
        process.path.write_bytes(sound.data[:at] + bytes([sound.data[at] ^ 1 << at % 8]) + sound.data[at + 1 :])
        hit = _piece_at(sound, at)
        if not (process.bad(sound.pieces) == {} and _may_mean_nothing(hit, at)):
            assert process.copied(sound.pieces) == ("corrupt" if hit.content else "OK"), at
        assert process.copied([piece for piece in sound.pieces if piece != hit]) == "OK"
    assert os.listdir(process.path.parent.parent.parent / "tmp" / "e") == []


@pytest.mark.promise("checked")
@pytest.mark.parametrize("kind", PACKS)
def test_a_pack_cut_anywhere(process: Process, kind: str, count: Count) -> None:
    sound = PACKS[kind]()
    for size in range(len(sound.data), -1, -count(37, 1)):
        process.path.write_bytes(sound.data[:size])
        lost = {
            piece: "corrupt"
            for piece in sound.pieces
            if piece.content and piece.row.offset + piece.row.head + piece.row.stored > size
        }
        assert process.bad(sound.pieces) == lost, size


def _swapped_inside() -> bytes:
    """The pack of `zstd`, with its first two parts in the place of each other."""
    first, second = (_bytes_of(piece) for piece in run_pack().pieces[:2])
    return second + first + run_pack().data[len(first) + len(second) :]


def _bytes_of(piece: Piece) -> bytes:
    return run_pack().data[piece.row.offset : piece.row.offset + piece.row.head + piece.row.stored]


_PARTS = [(7, seq, content(2400, seed=seq), "zstd") for seq in range(4)]
IMPOSTORS: dict[str, bytes] = {
    "empty": b"",
    "zeros": bytes(len(run_pack().data)),
    "another pack": shared_pack().data,
    "the same parts of another file": pack(*((8, *rest) for _, *rest in _PARTS)).data,
    "the same file of another store": pack(*_PARTS, store=bytes(16)).data,
    "another version of the file": pack(*((7, seq, content(2400, seed=seq + 9), "zstd") for seq in range(4))).data,
    "the same content in another codec": run_pack("zlib").data,
    "the parts a place further": pack(*((7, seq + 1, plain, used) for _, seq, plain, used in _PARTS)).data,
    "swapped inside": _swapped_inside(),
    "text": b"this was a pack\n" * 300,
}


@pytest.mark.promise("checked")
@pytest.mark.parametrize("what", IMPOSTORS)
def test_another_pack_in_its_place_is_corrupt(process: Process, what: str) -> None:
    sound = run_pack()
    process.path.write_bytes(IMPOSTORS[what])
    bad = process.bad(sound.pieces)
    whole = 2 if what == "swapped inside" else 4
    assert bad == dict.fromkeys(sound.pieces[:whole], "corrupt")


@pytest.mark.promise("checked")
def test_a_longer_pack_is_as_good_for_reading(process: Process) -> None:
    """Its parts are where they were; who walks through it all, to write it again, is told."""
    sound = run_pack()
    for more in (b"x", bytes(4096), sound.data):
        process.path.write_bytes(sound.data + more)
        assert process.bad(sound.pieces) == {}
        listed = work.list_pack(NUMBER, 0)
        assert more == sound.data or (isinstance(listed, work.Failure) and listed.code == "corrupt")


def _refuse(*arguments: object) -> int:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.promise("checked")
@pytest.mark.timeout(10)  # a FIFO that is waited for would hang
def test_what_is_no_readable_file(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    sound, path = run_pack(), process.path
    aside = path.with_name("aside")
    aside.write_bytes(sound.data)
    makers: list[tuple[str, Callable[[], object], str]] = [
        ("missing", lambda: None, "missing"),
        ("FIFO", lambda: os.mkfifo(path), "corrupt"),
        ("directory", path.mkdir, "corrupt"),
        ("symlink to the very bytes", lambda: path.symlink_to(aside), "corrupt"),
        ("symlink in circles", lambda: path.symlink_to(path), "corrupt"),
        ("socket", lambda: _bind(path), "corrupt"),
    ]
    for what, make, word in makers:
        make()
        assert process.bad(sound.pieces) == dict.fromkeys(sound.pieces[:4], word), what
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
    path.write_bytes(sound.data)
    for call in ("open_file", "read"):
        with monkeypatch.context() as patch:
            patch.setattr(disk, call, _refuse)
            assert process.bad(sound.pieces) == dict.fromkeys(sound.pieces[:4], "io"), call
    assert process.bad(sound.pieces) == {}


def _bind(path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


# --- bombs --------------------------------------------------------------------------------------

_BOMB = r"""
import hashlib, re, sys, zlib
from backports import zstd
from pfsd import packs
from pfsd.errors import Corrupt
from tests.specimens import STORE, PartRow

SIZE, BOMB = 1 << 20, 128 << 20

def peak():
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])

def squeezed(codec):
    coder = zlib.compressobj(9) if codec == "zlib" else zstd.ZstdCompressor(1)
    return b"".join([coder.compress(bytes(1 << 20)) for _ in range(BOMB >> 20)] + [coder.flush()])

def windowed():
    "A frame that asks for a window of 128 MiB and holds little."
    return bytes.fromhex("28b52ffd00") + bytes([(27 - 10) << 3]) + bytes.fromhex("0b000058") * 3

payloads = {"zlib": squeezed("zlib"), "zstd": squeezed("zstd")}
payloads["window"] = windowed()
before = peak()
for codec, payload in payloads.items():
    codec = "zstd" if codec == "window" else codec
    payload = payload[:SIZE]
    md5 = hashlib.md5(bytes(SIZE)).digest()
    for size in (SIZE, len(payload)):
        origin = packs.Origin(STORE, 7, bytes(8), 0, SIZE, (1 << 64) - 2, b"bomb")
        header = packs.pack_header(packs.PartHeader(origin, 0, size, len(payload), codec, md5))
        row = PartRow(0, len(header), size, len(payload), codec, md5)
        try:
            packs.decode_part(header + payload, STORE, 7, 0, row)
        except Corrupt:
            continue
        raise SystemExit(f"{codec} of {size} bytes was taken")
print(peak() - before)
"""


@pytest.mark.promise("memory")
@pytest.mark.promise("checked")
def test_bombs_cost_no_more_than_a_part() -> None:
    """Payloads that decode to 128 MiB, or ask for a window of 128 MiB, where a part has 1 MiB."""
    ended = subprocess.run([sys.executable, "-c", _BOMB], capture_output=True, text=True, cwd=Path.cwd())
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) < 16 << 10, "KiB more than before"


# --- through the daemon -------------------------------------------------------------------------

BIG = noise(20 * WIRE_PART + 17, seed=3)  # two packs
TEXT = bytes(content(3 * WIRE_PART, seed=4))


def stored(daemon: Daemon, name: bytes, data: bytes) -> None:
    assert code(daemon.ask(b"put - name=%b size=%d\n" % (name, len(data)) + data)[-1]) == "OK"


def parts_in(path: Path) -> list[tuple[int, int, int]]:
    """Where each part of a pack begins and ends, and its sequence number, end markers left out."""
    from pfsd import packs

    data = path.read_bytes()
    found = packs.scan(lambda at, length: data[at : at + length], len(data))
    sound = [part for part in found if isinstance(part, packs.Found) and part.header.size]
    return [(part.offset, part.offset + part.head + part.header.stored, part.header.seq) for part in sound]


def fetched(wire: Wire, request: bytes) -> tuple[bytes, bytes]:
    wire.send(request)
    return wire.frames()


@pytest.mark.promise("checked")
@pytest.mark.promise("target")
def test_damage_is_told_by_file_and_part_in_every_way_of_reading(daemon: Daemon, count: Count) -> None:
    seed = int(os.environ.get("PFSD_TEST_SEED", "1"))
    print(f"PFSD_TEST_SEED={seed}")
    lots = random.Random(seed)
    stored(daemon, b"big", BIG)
    stored(daemon, b"text", TEXT)
    files = {b"big": BIG, b"text": TEXT}
    of_big = set(daemon.packs()[:2])
    target = daemon.root / "out"
    target.write_bytes(b"old")
    with daemon.connect() as wire:
        for _ in range(count(4, 150)):
            path = lots.choice(daemon.packs())
            start, end, seq = lots.choice(parts_in(path))
            at = lots.choice((lots.randrange(start, start + 94), lots.randrange(start, end)))
            name = b"big" if path in of_big else b"text"
            data, other = files[name], b"text" if name == b"big" else b"big"
            first = seq * WIRE_PART
            length = min(WIRE_PART, len(data) - first)
            sound = path.read_bytes()
            path.write_bytes(sound[:at] + bytes([sound[at] ^ 1 << lots.randrange(8)]) + sound[at + 1 :])
            told = {"name": name.decode(), "part": str(seq), "offset": str(first)}

            final = wire.last(b"get %b out replace=yes\n" % name)
            assert code(final) == "corrupt" and told.items() <= fields(final).items(), final
            assert target.read_bytes() == b"old" and os.listdir(daemon.root) == ["out"]
            content, final = fetched(wire, b"get %b -\n" % name)
            assert code(final) == "corrupt" and content == data[: len(content)] and len(content) <= first
            content, final = fetched(wire, b"get %b - offset=%d length=1\n" % (name, first + length - 1))
            assert code(final) == "corrupt" and content == b""
            if seq:
                assert fetched(wire, b"get %b - length=%d\n" % (name, first))[0] == data[:first]
            with daemon.connect() as cat:
                cat.send(b"cat %b\n" % name)
                try:
                    got = cat.rest()
                except ConnectionResetError:
                    got = b""
                assert got.startswith(b"ERR corrupt") or data.startswith(got)
            rows = wire.ask(b"get %b out replace=yes on_error=zero\n" % name)
            assert rows[:-1] == [b"DAMAGE offset=%d length=%d seq=%d" % (first, length, seq)], rows
            assert code(rows[-1]) == "partial"
            assert target.read_bytes() == data[:first] + bytes(length) + data[first + length :]
            bad, final = wire.ask(b"verify\n")
            assert (fields(bad)["name"], fields(bad)["seq"]) == (name.decode(), str(seq))
            assert fetched(wire, b"get %b -\n" % other)[0] == files[other]

            path.write_bytes(sound)
            target.write_bytes(b"old")
            assert code(wire.last(b"verify\n")) == "OK"
            assert fields(wire.ask(b"list %b\n" % name)[0])["status"] == "ready"


def side_by_side(wire: Wire, names: Sequence[str]) -> dict[str, bytes]:
    """The content of files that are asked for at once: small ones are read in one batch."""
    wire.send(b"".join(b"@%b get %b -\n" % (name.encode(), name.encode()) for name in names))
    got, left = dict.fromkeys(names, b""), len(names)
    while left:
        line = wire.line()
        if frame := re.fullmatch(rb"@(\S+) DATA (\d+)", line):
            got[frame[1].decode()] += wire.exactly(int(frame[2]))
        else:
            assert code(line) == "OK"
            left -= 1
    return got


PAIR = bytes.fromhex(
    "d131dd02c5e6eec4693d9a0698aff95c2fcab58712467eab4004583eb8fb7f8955ad340609f4b30283e488832571415a085125e8f7cdc99f"
    "d91dbdf280373c5bd8823e3156348f5bae6dacd436c919c6dd53e2b487da03fd02396306d248cda0e99f33420f577ee8ce54b67080a80d1e"
    "c69821bcb6a8839396f9652b6ff72a70"
)
TWIN = bytes(byte ^ (0x80 if at in (19, 45, 59, 83, 109, 123) else 0) for at, byte in enumerate(PAIR))


@pytest.mark.promise("checked")
def test_files_whose_md5s_collide_stay_apart(daemon: Daemon) -> None:
    """MD5 tells damage; it never decides that two pieces are the same."""
    tail = noise(WIRE_PART - len(PAIR), seed=8)
    one, other = PAIR + tail + noise(WIRE_PART, seed=9) + PAIR, TWIN + tail + noise(WIRE_PART, seed=9) + TWIN
    assert one != other and etag(one) == etag(other)
    small = {"a": PAIR, "b": TWIN, "c": PAIR + b"tail", "d": TWIN + b"tail"}
    big = {b"one": one, b"other": other, b"many": one * 9}
    filler = {f"x{at}": noise(3000, seed=at) for at in range(12)}
    with daemon.connect() as wire:
        pack = put_in_one_pack(daemon, wire, small | filler)
        for name, data in big.items():
            stored(daemon, name, data)

        def assert_all_come_back() -> None:
            assert side_by_side(wire, list(small)) == small
            for name, data in big.items():
                assert fetched(wire, b"get %b -\n" % name)[0] == data

        assert_all_come_back()
        assert code(wire.last(b"delete %b\n" % " ".join(filler).encode())) == "OK"
        daemon.wait_until("packs_copied", "1")
        daemon.wait_until("waste", "0")
        assert not pack.exists()
        assert_all_come_back()


@pytest.mark.promise("checked")
def test_packs_of_nobody_go_and_files_of_others_stay(daemon: Daemon) -> None:
    stored(daemon, b"a", b"abc")
    (known,) = daemon.packs()
    daemon.stop()
    (daemon.store / "tmp" / "dead").mkdir()
    litter = [daemon.store / "tmp" / "dead" / "7.0", daemon.store / "tmp" / "loose"]
    orphan = known.with_name(f"{77:016x}.pack")
    foreign = [
        known.with_name("notes.txt"),
        known.with_name(known.name.upper()),
        known.with_name(known.name + ".bak"),
        daemon.store / "packs" / "README",
        daemon.store / "packs" / "00001" / known.name,  # in the wrong directory
        daemon.store / "backup.tar",
    ]
    foreign[-2].parent.mkdir()
    for path in (*litter, orphan, *foreign):
        path.write_bytes(b"somebody's")
    daemon.start()
    assert not orphan.exists() and not any(path.exists() for path in litter)
    assert [path.read_bytes() for path in foreign] == [b"somebody's"] * len(foreign)
    assert code(daemon.ask(b"verify\n")[-1]) == "OK"
    assert code(daemon.ask(b"delete a\n")[-1]) == "OK"
    daemon.restart()
    assert all(path.exists() for path in foreign) and not known.exists()
