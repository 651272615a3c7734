"""What is in a store, read with nothing of pfsd: from docs/format.md alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zlib import crc32

_LINE = re.compile(rb'(\{"seq":(\d+),.*),"crc":"([0-9a-f]{8})"\}', re.DOTALL)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All records; AssertionError where the sequence numbers or the checksums do not go on."""
    records, crc = [], 0
    data = path.read_bytes()
    assert data.endswith(b"\n"), f"the journal ends in the middle of a line: {data[-100:]!r}"
    for number, line in enumerate(data[:-1].split(b"\n")):
        found = _LINE.fullmatch(line)
        assert found, f"line {number + 1} of the journal is no record: {line[:100]!r}"
        assert int(found[2]) == number, f"line {number + 1} of the journal has seq {int(found[2])}"
        crc = crc32(found[1], crc)
        assert int(found[3], 16) == crc, f"line {number + 1} of the journal breaks the chain of checksums"
        records.append(json.loads(line))
    return records


@dataclass
class Kept:
    """A file as the journal knows it; `packs` by the sequence number that their run begins with."""

    name: str
    status: str
    packs: dict[int, int] = field(default_factory=dict)


def replay(records: Iterable[dict[str, Any]]) -> dict[int, Kept]:
    """The files by id that these records leave."""
    files: dict[int, Kept] = {}
    for record in records:
        kind, number = record["type"], record.get("file", 0)
        name = record.get("name", record.get("name_hex", ""))
        if kind == "put":
            files[number] = Kept(name, "storing")
        elif kind == "ready":
            file = files.setdefault(number, Kept(name, "ready"))
            file.name, file.status = name, "ready"
            file.packs |= {run["seq"]: run["pack"] for run in record.get("runs", [])}
        elif kind in ("parts", "moved"):
            files[number].packs[record["run"]["seq"]] = record["run"]["pack"]
        elif kind == "delete":
            files[number].status = "deleting"
        elif kind in ("drop", "removed"):
            files.pop(number, None)
        elif kind == "rename":
            files[number].name = name
        if replaced := record.get("replaces"):
            files[replaced].status = "deleting"
    return files


@dataclass(frozen=True)
class Place:
    """Where the bytes of a part are, header and payload."""

    pack: int
    offset: int
    length: int


def place_of(records: Iterable[dict[str, Any]], file: int, seq: int) -> Place:
    """Where this part of this file is."""
    place = None
    for record in records:
        if record.get("file") == file and record["type"] in ("parts", "moved", "ready"):
            for run in [record["run"]] if "run" in record else record.get("runs", []):
                if 0 <= (at := seq - run["seq"]) < len(run["parts"]):
                    offset, _, stored, *_ = run["parts"][at]
                    place = Place(run["pack"], offset, run["head"] + stored)
    assert place, f"no record says where part {seq} of file {file} is"
    return place


def path_of(store: Path, pack: int) -> Path:
    """The file of a pack."""
    return store / "packs" / f"{pack // 4096:05x}" / f"{pack:016x}.pack"


def packs_of(files: dict[int, Kept]) -> set[int]:
    """The packs that files use."""
    return {pack for file in files.values() for pack in file.packs.values()}


def packs_there(store: Path) -> set[int]:
    """The packs in a store."""
    return {int(path.stem, 16) for path in (store / "packs").rglob("*.pack")}


def bytes_there(store: Path) -> int:
    """What all files of a store hold."""
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())
