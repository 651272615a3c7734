"""A small journal with every type of record, and small packs: what damage and fuzzing begin with."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from zlib import crc32

from pfsd import packs
from pfsd.packs import Origin
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
    encode,
)
from pfsd.registry import Registry
from pfsd.work import PartRow

STORE = bytes(range(16))
PART = 4096
HEADER = (
    b'{"type":"header","format":1,"min_reader":1,"store":"%b","generation":1,"checksum":"crc32"}' % STORE.hex().encode()
)

# --- a journal ----------------------------------------------------------------------------------


def chain(objects: Iterable[bytes]) -> bytes:
    """JSON objects as journal lines with right checksums, whatever they are; the tests' own idea of the format."""
    crc, lines = 0, []
    for seq, encoded in enumerate(objects):
        body = b'{"seq":%d,' % seq + encoded[1:-1]
        crc = crc32(body, crc)
        lines.append(body + b',"crc":"%08x"}\n' % crc)
    return b"".join(lines)


def _run(pack: int, seq: int, part: int, *sizes: int) -> Run:
    rows, offset = [], 0
    for size in sizes:
        rows.append((offset, size, size // 2, "zstd", hashlib.md5(b"%d" % (part + len(rows))).hexdigest()))
        offset += 99 + size // 2
    return Run(pack, seq, part, 99, rows)


RECORDS: Sequence[Record] = (
    Put(1, b"movie", PART, 1700000000000000000),
    Parts(1, _run(1, 0, 1, PART, PART)),
    Parts(1, _run(2, 2, 3, PART, PART)),
    Ready(1, b"movie", 5 * PART - 8, PART, 1700000000000000000, [_run(3, 4, 5, PART - 8)]),
    Ready(2, b"small", 700, PART, 1700000001000000000, [_run(4, 0, 6, 700)]),
    Ready(3, b"empty", 0, PART, 1700000002000000000, [_run(5, 0, 0)]),
    Rename(3, b"caf\xe9"),
    Put(4, b"kept", PART, 1700000003000000000, "upload:key", "00112233445566ff"),
    Parts(4, _run(6, 0, 7, PART)),
    Put(5, b"given up", PART, 1700000004000000000),
    Drop(5),
    Damage(1, [1, 4]),
    Moved(2, _run(7, 0, 6, 700)),
    Ready(6, b"small", 701, PART, 1700000005000000000, [_run(8, 0, 8, 701)], 2),
    Removed(2),
    Ready(7, "\u2028 \x85\x0b\r\n".encode(), 9, PART, 1700000006000000000, [_run(8, 0, 9, 9)]),
    Delete(3),
    Rename(6, b"movie", 1),
    Ids(20, 40, 30),
    Ready(20, b"last but one", 12, PART, 1700000007000000000, [_run(30, 0, 40, 12)]),
    Rename(20, b"a name much longer than most " * 20),
    Ready(21, b"last", 8, PART, 1700000008000000000, [_run(31, 0, 41, 8)]),
)
OBJECTS = [HEADER, *map(encode, RECORDS)]
JOURNAL = chain(OBJECTS)


def state(registry: Registry) -> bytes:
    """All that a registry knows, as the records that would make it again."""
    return b"\n".join(map(encode, registry.snapshot()))


def states() -> list[bytes]:
    """What the registry knows after none, one, two ... of RECORDS."""
    registry = Registry()
    found = [state(registry)]
    for record in RECORDS:
        registry.apply(record)
        found.append(state(registry))
    return found


# --- packs --------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """A part of a pack: whose it is, its content, and where it lies."""

    file: int
    seq: int
    content: bytes
    row: PartRow


class Pack(NamedTuple):
    """The bytes of a pack and what they stand for."""

    data: bytes
    pieces: tuple[Piece, ...]


def content(size: int, seed: int) -> bytes:
    """Bytes that compress to about a third."""
    lots = random.Random(seed)
    return bytes(lots.choice(b"  eeaatn") for _ in range(size))


def pack(*parts: tuple[int, int, bytes, str], store: bytes = STORE) -> Pack:
    """A pack of parts (file, sequence number, content, codec); without content, the end marker of the file."""
    data, pieces = b"", []
    for file, seq, plain, codec in parts:
        size = seq * PART + len(plain)
        origin = Origin(store, file, bytes(8), 1700000000000000000, PART, size, b"file %d" % file)
        md5 = hashlib.md5(plain).digest()
        header, payload, used = packs.encode_part(origin, seq, memoryview(plain), md5, codec, 1)
        row = PartRow(len(data), len(header), len(plain), len(payload), used, md5)
        pieces.append(Piece(file, seq, plain, row))
        data += header + bytes(payload)
    return Pack(data, tuple(pieces))


def run_pack(codec: str = "zstd") -> Pack:
    """About 4 KiB: some parts of one file, the last one short, and its end marker."""
    size = 900 if codec == "none" else 2400
    parts = [(7, seq, content(size, seed=seq), codec) for seq in range(4)]
    return pack(*parts, (7, 4, b"", "none"))


def shared_pack() -> Pack:
    """A dozen small files in all codecs."""
    codecs = ("none", "zlib", "zstd")
    return pack(*((file, 0, content(100 + 60 * file, seed=file), codecs[file % 3]) for file in range(1, 13)))
