"""The journal's record types, and one JSON object for each.

A record says what became true of a file. `encode` and `decode` are strict mirror images: what one refuses,
the other never writes. Unknown fields are ignored, so that a later version may add some. This module knows
neither lines, checksums and disks (that is `journal`) nor what a record means (that is `registry`).

    {"type":"put","file":7,"part_size":1048576,"created":1700000000000000000,"name":"movie"}
    {"type":"put","file":8,...,"name":"film","source":"path:<hex>","put":"<16 hex>"}
    {"type":"parts","file":7,"run":{"pack":12,"seq":0,"part":31,"head":96,"parts":[[0,1048576,9000,"zstd","<md5>"],...]}}
    {"type":"ready","file":7,"size":5000000,...,"name":"movie","runs":[...],"replaces":3}
    {"type":"drop","file":7}    {"type":"delete","file":7}    {"type":"removed","file":7}
    {"type":"rename","file":7,"name":"film"}    {"type":"damage","file":7,"parts":[0,4]}
    {"type":"moved","file":7,"run":{"pack":19,"seq":0,...}}
    {"type":"verified","first":[1,0],"end":[7,4],"time":1700000000000000000}
    {"type":"ids","file":8,"part":36,"pack":13}

A name is bytes. It is written as `name` when it is UTF-8, else as `name_hex` in hexadecimal.
"""

from __future__ import annotations

import binascii
from typing import Annotated

import msgspec
from msgspec import Meta, Struct

#: Longest name in bytes.
MAX_NAME = 1024
#: Most parts of one run, so that a record stays far below the longest line of a journal.
MAX_RUN_PARTS = 4096

#: Longest record in JSON, in bytes: a line of the journal has at most 1 MiB.
MAX_RECORD = (1 << 20) - 64

Id = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Small = Annotated[int, Meta(ge=0, le=2**32 - 1)]
Codec = Annotated[str, Meta(min_length=1, max_length=16)]
Source = Annotated[str, Meta(max_length=128)]
PutId = Annotated[str, Meta(pattern="^([0-9a-f]{16})?$")]
Md5Hex = Annotated[str, Meta(min_length=32, max_length=32)]

#: [offset of the part's header in its pack, size, stored, codec, md5 in hex]; sizes in bytes.
PartRow = tuple[Count, Small, Small, Codec, Md5Hex]


class RecordError(ValueError):
    """Not a record: wrong shape, unknown type, or a value out of its range."""


class Run(Struct, frozen=True, gc=False):
    """Consecutive parts of one file in one pack, one after the other.

    `seq` and `part` are the sequence number and id of the first, `head` the bytes of the header before each.
    A run without parts stands for the file's end marker.
    """

    pack: Id
    seq: Small
    part: Count
    head: Small
    parts: Annotated[list[PartRow], Meta(max_length=MAX_RUN_PARTS)]


class Put(Struct, frozen=True, gc=False):
    """A file is being stored: its name is reserved, it cannot be read. `created` in ns since the epoch.

    One that can be resumed says what it stores (`source`, a key that only means something when compared) and has
    the put id (in hex) that is in its packs.
    """

    file: int
    name: bytes
    part_size: int
    created: int
    source: str = ""
    put: str = ""


class Parts(Struct, frozen=True, gc=False, tag_field="type", tag="parts"):
    """A run of a file that is being stored is in the store."""

    file: Id
    run: Run


class Ready(Struct, frozen=True, gc=False):
    """The file exists. `runs` are those no Parts has named; `replaces` is deleted in the same instant."""

    file: int
    name: bytes
    size: int
    part_size: int
    created: int
    runs: list[Run]
    replaces: int = 0


class Drop(Struct, frozen=True, gc=False, tag_field="type", tag="drop"):
    """A put was given up, announced or not; its id stays used."""

    file: Id


class Delete(Struct, frozen=True, gc=False, tag_field="type", tag="delete"):
    """The file cannot be read any more and its name is free."""

    file: Id


class Removed(Struct, frozen=True, gc=False, tag_field="type", tag="removed"):
    """The packs of a deleted file are gone: forget it."""

    file: Id


class Rename(Struct, frozen=True, gc=False):
    """The file has another name; the file `replaces`, which had it, is deleted in the same instant."""

    file: int
    name: bytes
    replaces: int = 0


class Damage(Struct, frozen=True, gc=False, tag_field="type", tag="damage"):
    """The parts (sequence numbers, ascending) known to be bad now, instead of those known before."""

    file: Id
    parts: list[Small]


class Moved(Struct, frozen=True, gc=False, tag_field="type", tag="moved"):
    """The file's run that begins at `run.seq` lies elsewhere now; its parts are what they were."""

    file: Id
    run: Run


class Verified(Struct, frozen=True, gc=False, tag_field="type", tag="verified"):
    """Every part of readable files from `first` up to and without `end` was read after `time`, in ns since the epoch.

    Parts are in order of file and sequence number. What is bad, `Damage` says.
    """

    first: tuple[Id, Small]
    end: tuple[Id, Small]
    time: Count


class Ids(Struct, frozen=True, gc=False, tag_field="type", tag="ids"):
    """All ids below these have been given out, whether or not a record still shows it."""

    file: Id
    part: Id
    pack: Id


#: What became true of one file.
FileRecord = Put | Parts | Ready | Drop | Delete | Removed | Rename | Damage | Moved
Record = FileRecord | Verified | Ids


# --- names: what JSON cannot hold ---------------------------------------------------------------
# The types above that have a name are written by way of a twin whose name is text.


class _PutLine(Struct, gc=False, omit_defaults=True, tag_field="type", tag="put"):
    file: Id
    part_size: Id
    created: Count
    name: str = ""
    name_hex: str = ""
    source: Source = ""
    put: PutId = ""

    def record(self) -> Put:
        if bool(self.source) != bool(self.put):
            raise RecordError("source and put go together")
        return Put(self.file, _name(self), self.part_size, self.created, self.source, self.put)


class _ReadyLine(Struct, gc=False, omit_defaults=True, tag_field="type", tag="ready"):
    file: Id
    size: Count
    part_size: Id
    created: Count
    name: str = ""
    name_hex: str = ""
    runs: list[Run] = []
    replaces: Count = 0

    def record(self) -> Ready:
        return Ready(self.file, _name(self), self.size, self.part_size, self.created, self.runs, self.replaces)


class _RenameLine(Struct, gc=False, omit_defaults=True, tag_field="type", tag="rename"):
    file: Id
    name: str = ""
    name_hex: str = ""
    replaces: Count = 0

    def record(self) -> Rename:
        return Rename(self.file, _name(self), self.replaces)


_Named = _PutLine | _ReadyLine | _RenameLine
_Line = _PutLine | Parts | _ReadyLine | Drop | Delete | Removed | _RenameLine | Damage | Moved | Verified | Ids
_NAMED = (_PutLine, _ReadyLine, _RenameLine)
_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[_Line] = msgspec.json.Decoder(_Line)


def encode(record: Record) -> bytes:
    """One JSON object on one line, `type` first. RecordError for a record that `decode` would refuse."""
    try:
        encoded = _encoder.encode(_line(record))
    except (msgspec.MsgspecError, ValueError, TypeError, OverflowError) as error:
        raise RecordError(f"cannot write {record!r}: {error}") from error
    if len(encoded) > MAX_RECORD:
        raise RecordError(f"a record of {len(encoded)} bytes; {MAX_RECORD} can be")
    decode(encoded)
    return encoded


def decode(line: bytes) -> Record:
    """The record in a JSON object; fields it does not know are ignored. RecordError for anything else."""
    try:
        found = _decoder.decode(line)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise RecordError(str(error)) from error
    # The same again with isinstance would take as long as all the rest: of a Struct, it asks Python code.
    return found.record() if type(found) in _NAMED else found  # type: ignore[union-attr,return-value]


def _line(record: Record) -> _Line:
    if isinstance(record, Ready):
        text, hexed = _spell(record.name)
        return _ReadyLine(
            record.file,
            record.size,
            record.part_size,
            record.created,
            text,
            hexed,
            record.runs,
            record.replaces,
        )
    if isinstance(record, Put):
        return _PutLine(record.file, record.part_size, record.created, *_spell(record.name), record.source, record.put)
    if isinstance(record, Rename):
        return _RenameLine(record.file, *_spell(record.name), record.replaces)
    return record


def _spell(name: bytes) -> tuple[str, str]:
    """A name as (text, hex), one of them empty."""
    try:
        return name.decode(), ""
    except UnicodeDecodeError:
        return "", name.hex()


def _name(line: _Named) -> bytes:
    """The name in a line, checked."""
    name = line.name.encode()
    if line.name_hex:
        if name:
            raise RecordError("both name and name_hex")
        try:
            name = binascii.unhexlify(line.name_hex)
        except ValueError as error:
            raise RecordError(f"name_hex: {error}") from error
    if not 1 <= len(name) <= MAX_NAME:
        raise RecordError(f"a name of {len(name)} bytes; 1 to {MAX_NAME} can be")
    if b"\0" in name:
        raise RecordError("NUL in a name")
    return name
