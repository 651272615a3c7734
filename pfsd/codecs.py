"""Compression of single parts. Knows nothing of headers, packs or files.

The place of a name in `CODECS` is its number on disk, so names are only ever added at the end. Decoding is
bounded by the size that the part must have: damaged or hostile bytes cost at most that much memory.
"""

from __future__ import annotations

import sys
import zlib
from functools import lru_cache

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Buffer = bytes | bytearray | memoryview

#: Number on disk -> name.
CODECS = ("none", "zlib", "zstd")

MIB = 1 << 20


class CodecError(ValueError):
    """These bytes are not what the codec makes of a part of that size, or the codec is unknown."""


def number(name: str) -> int:
    """The number on disk of the codec `name`; CodecError when there is none."""
    try:
        return CODECS.index(name)
    except ValueError:
        raise CodecError(f"unknown codec {name!r}") from None


def name(number: int) -> str:
    """The name of a codec by its number on disk; CodecError when there is none."""
    if not 0 <= number < len(CODECS):
        raise CodecError(f"unknown codec number {number}")
    return CODECS[number]


# --- both ways ----------------------------------------------------------------------------------


def encode(codec: str, level: int, data: Buffer) -> Buffer:
    """Compress one part. The result may be longer than `data`; with `none` it is `data`."""
    if codec == "zstd":
        return _encode_zstd(level, data)
    if codec == "zlib":
        return zlib.compress(data, level)
    number(codec)
    return data


def decode(codec: str, data: Buffer, size: int) -> Buffer:
    """The `size` bytes that `encode` was given; never produces more than one byte above it.

    CodecError when `data` holds less, more, or anything behind its end.
    """
    decoded: Buffer
    if codec == "zstd":
        decoded = _decode_zstd(data, size)
    elif codec == "zlib":
        decoded = _decode_zlib(data, size)
    else:
        number(codec)
        decoded = data
    if len(decoded) != size:
        raise CodecError(f"{codec}: {len(decoded)} bytes or more instead of {size}")
    return decoded


@lru_cache(maxsize=1)
def _compressor(level: int) -> zstd.ZstdCompressor:
    # Kept, because setting up the tables of a new one for each part of 1 MiB costs 3 % of the speed.
    return zstd.ZstdCompressor(level)


def _encode_zstd(level: int, data: Buffer) -> bytes:
    try:
        return _compressor(level).compress(data, zstd.ZstdCompressor.FLUSH_FRAME)
    except BaseException:
        _compressor.cache_clear()  # it may stand in the middle of a frame
        raise


def _decode_zstd(data: Buffer, size: int) -> bytes:
    # A frame may ask for a window of 128 MiB; ours never reach further back than the part is long.
    window_log = max(10, (size - 1).bit_length())
    decoder = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: window_log})
    try:
        decoded = decoder.decompress(data, size + 1)
    except zstd.ZstdError as error:
        raise CodecError(f"zstd: {error}") from error
    if len(decoded) <= size and not decoder.eof:
        raise CodecError("zstd: the data ends too early")
    if decoder.unused_data:
        raise CodecError("zstd: there is something behind the end of the data")
    return decoded


def _decode_zlib(data: Buffer, size: int) -> bytes:
    decoder = zlib.decompressobj()
    try:
        decoded = decoder.decompress(data, size + 1)
    except zlib.error as error:
        raise CodecError(f"zlib: {error}") from error
    if len(decoded) <= size and not decoder.eof:
        raise CodecError("zlib: the data ends too early")
    if decoder.unused_data:
        raise CodecError("zlib: there is something behind the end of the data")
    return decoded


# --- memory -------------------------------------------------------------------------------------

#: Up to which zstd level -> the most that a compressor keeps, in MiB; measured with parts of 64 MiB.
_ZSTD_TABLES_MIB = {2: 1, 4: 3, 8: 6, 9: 11, 11: 22, 14: 52, 18: 68, 19: 84}
#: zlib keeps 256 KiB, a zstd decoder less than 512 KiB besides its window.
_SMALL = MIB


def workspace(codec: str, level: int, part_size: int) -> int:
    """Upper bound of the bytes that coding one part takes beyond the part and its result.

    Encoding: the spare output buffer, at most a part long, and the tables of the compressor, which grow
    with level and part size up to a limit for each level. Decoding: the output once more, in pieces, and a
    window of at most 8 MiB, for any codec, because parts that other settings stored are read as well.
    """
    encoding = part_size + part_size // 128 + _tables(codec, level, part_size) + _SMALL
    decoding = part_size + min(part_size, 8 * MIB) + _SMALL
    return max(encoding, decoding)


def _tables(codec: str, level: int, part_size: int) -> int:
    if codec != "zstd":
        return 0
    limit = next(mib for up_to, mib in _ZSTD_TABLES_MIB.items() if level <= up_to)
    rounded = 1 << (part_size - 1).bit_length()
    return min(limit * MIB, 20 * rounded)
