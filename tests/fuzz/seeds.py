"""What the fuzzer begins with: real requests, a real journal, real packs, the configuration that is shipped."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pfsd import packs
from tests import specimens

_ROOT = Path(__file__).parent.parent.parent
_RECORD, _FILE, _LINES, _EDITS = b"\x00", b"\x40", b"\x80", b"\xc0"  # how `check_journal` takes bytes
_PACK, _SEALED, _PACK_EDITS = b"\x00", b"\x55", b"\xaa"  # and `check_packs`


def seeds(target: str) -> list[bytes]:
    """Inputs for a target."""
    return list(_SEEDS[target]())


def _protocol() -> Iterator[bytes]:
    """The lines of the transcripts in the documentation."""
    text = (_ROOT / "docs/protocol.md").read_text()
    lines = [line[2:] for block in re.findall(r"```\w*\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    yield from {line.encode() for line in lines if 2 < len(line) < 120}
    yield b"\x03" + b"ping\r\nput - size=3\nabc" + b"x" * 80 + b"\nlist\n" + b"y" * 310
    yield b"\xff\xfd\x06\xff\xfa\x18\x01\xff\xf0ping\n"


def _journal() -> Iterator[bytes]:
    for encoded in specimens.OBJECTS[1:]:
        yield _RECORD + encoded
    lines = specimens.JOURNAL.splitlines(keepends=True)
    yield _FILE + b"".join(lines[:4])
    yield _FILE + b"".join(lines[:4])[:-1]
    yield _LINES + b"\n".join(specimens.OBJECTS[1:])
    for edits in (b"\x01\x07\x02\x01", b"\x00\x30\x00", b"\x00\x00\x00" + bytes(40), b"\x00\x01\x00\x0b"):
        yield _EDITS + edits


def _packs() -> Iterator[bytes]:
    for codec in ("none", "zlib", "zstd"):
        yield _PACK + specimens.pack((7, 0, b"some content " * 9, codec), (7, 1, b"", "none")).data
        yield _SEALED + specimens.pack((7, 0, b"the same " * 9, codec)).data
    yield _PACK + b"damage" + specimens.pack((7, 0, b"PFSP\x01" * 20, "none")).data + packs.MAGIC
    for edits in (b"\x01\x07\x02\x01", b"\x00\x30\x00", b"\x02\x60\x00\x01\x00\x08\xff"):
        yield _PACK_EDITS + edits


def _config() -> Iterator[bytes]:
    text = (_ROOT / "config.yaml").read_bytes()
    plain = b"\n".join(line for line in text.splitlines() if line and not line.startswith(b"#"))
    yield plain
    yield from plain.splitlines()
    yield b"roots: [., /tmp]\nlisten: [127.0.0.1:0, 'unix:socket']\n"
    yield b"\0auto\x00zlib\x001MiB\0-5\x001e30"


_SEEDS = {"protocol": _protocol, "journal": _journal, "packs": _packs, "config": _config}
