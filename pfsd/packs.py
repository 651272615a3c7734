"""The format of a pack: parts one after the other, each a header that describes it and its payload.

Pure: bytes in, bytes out. Knows no store, no journal and no disk. Because every part says what it is and whom
it belongs to, the registries can be rebuilt from packs alone.

A part, all numbers little-endian:

     offset  size
          0     4  magic "PFSP"
          4     1  version, 1
          5     1  codec of the payload: 0 none, 1 zlib, 2 zstd
          6     2  length of this header, checksum included: 94 + length of the name
          8    16  store id
         24     8  file id
         32     8  put id: random, the same in all parts of one put
         40     8  created: nanoseconds since 1970
         48     4  sequence number of the part in its file, from 0
         52     4  part size of the file: the size of every part but the last
         56     4  size of the part, before compression
         60     4  size of the payload
         64     8  size of the file; all ones when it was not known yet
         72    16  MD5 of the part, before compression
         88     2  length of the name
         90     n  name
     90 + n     4  CRC-32 of all header bytes before it
     94 + n        payload

A header with size 0 and payload 0 is an end marker: its sequence number is the number of parts of the file,
and it states the size of the file, which the last part may not have known. An empty file is one end marker.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple, Protocol

from pfsd import codecs
from pfsd.codecs import Buffer, CodecError
from pfsd.errors import Corrupt

MAGIC = b"PFSP"
VERSION = 1
_SIGN = MAGIC + bytes([VERSION])
MAX_NAME_BYTES = 1024

_FIXED = struct.Struct("<4sBBH16sQ8sQIIIIQ16sH")
#: Of a header: its length, the size of the part, that of the payload, the length of the name.
_LENGTHS = struct.Struct("<6xH48xII24xH")
_CRC = struct.Struct("<I")
_UNKNOWN_SIZE = (1 << 64) - 1

MIN_HEADER_BYTES = _FIXED.size + _CRC.size + 1
MAX_HEADER_BYTES = _FIXED.size + _CRC.size + MAX_NAME_BYTES
#: `scan` looks for the next header after damage in steps of this size.
SCAN_BYTES = 1 << 16


class PackError(ValueError):
    """These bytes are no sound part header."""


class Origin(NamedTuple):
    """The file that parts belong to, as their headers tell it."""

    store: bytes  # 16 bytes
    file: int
    put: bytes  # 8 bytes
    created: int  # ns since 1970
    part_size: int
    file_size: int | None  # None: not known yet when the part was written
    name: bytes


class PartHeader(NamedTuple):
    """What the header of a part says."""

    origin: Origin
    seq: int
    size: int
    stored: int
    codec: str
    md5: bytes

    @property
    def is_end(self) -> bool:
        """Whether this is an end marker: no part, but the statement that the file has `seq` parts."""
        return self.size == 0


class Expected(Protocol):
    """What the registry knows of a part."""

    @property
    def head(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def stored(self) -> int: ...
    @property
    def codec(self) -> str: ...
    @property
    def md5(self) -> bytes: ...


# --- headers ------------------------------------------------------------------------------------


def pack_header(header: PartHeader) -> bytes:
    """The bytes of a header. PackError when a field does not fit the format."""
    origin = header.origin
    _check(header)
    fields = _FIXED.pack(
        MAGIC,
        VERSION,
        codecs.number(header.codec),
        _FIXED.size + len(origin.name) + _CRC.size,
        origin.store,
        origin.file,
        origin.put,
        origin.created,
        header.seq,
        origin.part_size,
        header.size,
        header.stored,
        _UNKNOWN_SIZE if origin.file_size is None else origin.file_size,
        header.md5,
        len(origin.name),
    )
    covered = fields + origin.name
    return covered + _CRC.pack(zlib.crc32(covered))


def read_header(buffer: Buffer, offset: int = 0) -> tuple[PartHeader, int]:
    """The header at `offset`, and its length in bytes. PackError when there is no sound one."""
    if len(buffer) - offset < MIN_HEADER_BYTES:
        raise PackError("too short for a part header")
    magic, version, codec, head, *identity, name_length = _FIXED.unpack_from(buffer, offset)
    if magic != MAGIC:
        raise PackError("no part header here")
    if version != VERSION:
        raise PackError(f"part header of version {version}, this program reads version {VERSION}")
    if head != _FIXED.size + name_length + _CRC.size or head > len(buffer) - offset:
        raise PackError("the part header has a wrong length")
    covered = memoryview(buffer)[offset : offset + head - _CRC.size]
    if _CRC.unpack_from(buffer, offset + head - _CRC.size)[0] != zlib.crc32(covered):
        raise PackError("the part header fails its checksum")
    store, file, put, created, seq, part_size, size, stored, file_size, md5 = identity
    origin = Origin(
        store=store,
        file=file,
        put=put,
        created=created,
        part_size=part_size,
        file_size=None if file_size == _UNKNOWN_SIZE else file_size,
        name=bytes(covered[_FIXED.size :]),
    )
    try:
        header = PartHeader(origin, seq, size, stored, codecs.name(codec), md5)
    except CodecError as error:
        raise PackError(str(error)) from error
    _check(header)
    return header, head


def _check(header: PartHeader) -> None:
    """What holds for every header, written or read."""
    origin = header.origin
    if not 1 <= len(origin.name) <= MAX_NAME_BYTES:
        raise PackError(f"a name has 1 to {MAX_NAME_BYTES} bytes")
    if len(origin.store) != 16 or len(origin.put) != 8 or len(header.md5) != 16:
        raise PackError("an identity or MD5 of a wrong length")
    if header.size > origin.part_size or header.stored > header.size:
        raise PackError("a part larger than its file's part size, or a payload larger than its part")
    if header.size and not header.stored:
        raise PackError("a part without payload")
    if header.codec == "none" and header.stored != header.size:
        raise PackError("a payload that is not compressed and yet not as long as its part")
    if header.is_end and origin.file_size is None:
        raise PackError("an end marker without the size of the file")


# --- parts --------------------------------------------------------------------------------------


def encode_part(
    origin: Origin, seq: int, data: memoryview, md5: bytes, codec: str, level: int
) -> tuple[bytes, Buffer, str]:
    """The header and payload of a part, and the codec used: `none` where compression gains nothing.

    With no data, the end marker of a file of `seq` parts.
    """
    payload: Buffer = codecs.encode(codec, level, data) if len(data) else b""
    if len(payload) >= len(data):
        payload, codec = data, "none"
    header = PartHeader(origin, seq, len(data), len(payload), codec, md5)
    return pack_header(header), payload, codec


def decode_part(encoded: Buffer, store: bytes, file: int, seq: int, expected: Expected) -> Buffer:
    """The content of a part from its header and payload, which must be what the registry expects.

    Its MD5 is compared with the header only: hashing is for the caller, who does it for many parts at once.
    Raises Corrupt.
    """
    check_header(encoded, store, file, seq, expected)
    payload = memoryview(encoded)[expected.head :]
    if len(payload) != expected.stored:
        raise Corrupt(f"its payload has {len(payload)} bytes instead of {expected.stored}")
    try:
        return codecs.decode(expected.codec, payload, expected.size)
    except CodecError as error:
        raise Corrupt(str(error)) from error


def check_header(encoded: Buffer, store: bytes, file: int, seq: int, expected: Expected) -> None:
    """See that a part begins with the header that the registry expects; Corrupt when it does not."""
    try:
        header, head = read_header(encoded)
    except PackError as error:
        raise Corrupt(str(error)) from error
    if (header.origin.store, header.origin.file, header.seq) != (store, file, seq):
        raise Corrupt("another part is stored in its place")
    found = (head, header.size, header.stored, header.codec, header.md5)
    if found != (expected.head, expected.size, expected.stored, expected.codec, expected.md5):
        raise Corrupt("its header does not say what the registry says")


# --- whole packs --------------------------------------------------------------------------------


class Found(NamedTuple):
    """A part whose header is sound; its payload, behind the header, is not looked at."""

    offset: int
    head: int
    header: PartHeader


class Damage(NamedTuple):
    """A stretch of a pack in which no part can be made out."""

    offset: int
    length: int
    #: Whether it is one part, whose damaged header still says where it ends: what is behind it is surely a part, too.
    is_one_part: bool


def scan(read: Callable[[int, int], Buffer], size: int) -> Iterator[Found | Damage]:
    """Walk a pack of `size` bytes from part to part; `read(offset, length)` gives its bytes.

    After damage it goes on where the lengths in the damaged header lead to, if a sound part is there or the pack's end;
    else with the next sound header. What follows then may be the content of a stored file that looks like a
    part, so whoever uses a part must check that it belongs to the file.
    """
    offset = 0
    while offset < size:
        found = _find_at(read, offset, size)
        if found is None:
            end = _damaged_end(read, offset, size)
            after = _next_header(read, offset + 1, size) if end is None else end
            yield Damage(offset, after - offset, end is not None)
            offset = after
        else:
            yield found
            offset += found.head + found.header.stored


def _find_at(read: Callable[[int, int], Buffer], offset: int, size: int) -> Found | None:
    """The part at `offset`, if its header is sound and it ends within the pack."""
    try:
        header, head = read_header(read(offset, min(MAX_HEADER_BYTES, size - offset)))
    except PackError:
        return None
    if offset + head + header.stored > size:
        return None
    return Found(offset, head, header)


def _damaged_end(read: Callable[[int, int], Buffer], offset: int, size: int) -> int | None:
    """Where the part ends whose header at `offset` is damaged, or whose payload is cut off; None without a proof."""
    start = read(offset, min(MAX_HEADER_BYTES, size - offset))
    if len(start) < MIN_HEADER_BYTES:
        return None
    with suppress(PackError):
        read_header(start)
        return size  # the header is sound, so the pack ends too early
    head, content, stored, name_length = _LENGTHS.unpack_from(start)
    for header in (head, _FIXED.size + name_length + _CRC.size):
        for payload in (stored, content):
            end: int = offset + header + payload
            if end == size or (offset < end < size and _find_at(read, end, size)):
                return end
    return None


def _next_header(read: Callable[[int, int], Buffer], offset: int, size: int) -> int:
    """Where the next part begins, at `offset` or behind; `size` when there is none."""
    while offset < size:
        chunk = bytes(read(offset, min(SCAN_BYTES, size - offset)))
        at = chunk.find(_SIGN)
        while at >= 0:
            if _find_at(read, offset + at, size):
                return offset + at
            at = chunk.find(_SIGN, at + 1)
        # Step so that a magic across the border of two chunks is seen.
        offset += max(1, len(chunk) - len(_SIGN) + 1)
    return size
