"""packs: the format byte for byte, damage of every bit, and finding parts behind damage."""

from __future__ import annotations

import random
import struct
import zlib
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfsd import hashing, packs
from pfsd.errors import Corrupt
from pfsd.packs import Damage, Found, Origin, PackError, PartHeader

STORE = bytes(range(16))
ORIGIN = Origin(STORE, 7, b"putputpu", 1_700_000_000_000_000_001, 1 << 20, 3_000_000, "ä\n".encode())
TEXT = b"all happy families are alike " * 100


class Row(NamedTuple):
    """What a registry would know."""

    head: int
    size: int
    stored: int
    codec: str
    md5: bytes


def part(data=TEXT, seq=0, codec="zstd", origin=ORIGIN):
    md5 = hashing.md5(data)
    header, payload, used = packs.encode_part(origin, seq, memoryview(data), md5, codec, 3)
    return header + payload, Row(len(header), len(data), len(payload), used, md5)


def decode(encoded, row, store=STORE, file=7, seq=0):
    return packs.decode_part(encoded, store, file, seq, row)


# --- headers ------------------------------------------------------------------------------------


def test_the_header_byte_for_byte():
    header = PartHeader(ORIGIN, 2, 902_848, 500, "zstd", b"m" * 16)
    expected = (
        b"PFSP\x01\x02" + struct.pack("<H", 94 + 3) + STORE + struct.pack("<Q", 7) + b"putputpu"
        + struct.pack("<Q", 1_700_000_000_000_000_001)
        + struct.pack("<IIIIQ", 2, 1 << 20, 902_848, 500, 3_000_000)
        + b"m" * 16 + struct.pack("<H", 3) + b"\xc3\xa4\n"
    )  # fmt: skip
    expected += struct.pack("<I", zlib.crc32(expected))
    assert packs.pack_header(header) == expected
    assert packs.read_header(expected) == (header, 97)
    assert packs.read_header(b"???" + expected + b"payload", 3) == (header, 97)


def test_a_size_that_is_not_known_yet_is_all_ones():
    header = PartHeader(ORIGIN._replace(file_size=None), 0, 5, 5, "none", b"m" * 16)
    packed = packs.pack_header(header)
    assert packed[64:72] == b"\xff" * 8
    assert packs.read_header(packed)[0] == header


@given(
    name=st.binary(min_size=1, max_size=1024),
    numbers=st.tuples(*[st.integers(0, (1 << 64) - 2)] * 3),
    sizes=st.lists(st.integers(1, (1 << 32) - 1), min_size=3, max_size=3),
    seq=st.integers(0, (1 << 32) - 1),
    ids=st.tuples(st.binary(min_size=16, max_size=16), st.binary(min_size=8, max_size=8)),
)
def test_headers_round_trip(name, numbers, sizes, seq, ids):
    stored, size, part_size = sorted(sizes)
    origin = Origin(ids[0], numbers[0], ids[1], numbers[1], part_size, numbers[2], name)
    header = PartHeader(origin, seq, size, stored, "zlib", ids[0])
    packed = packs.pack_header(header)
    assert packs.read_header(packed) == (header, len(packed))
    assert packs.MIN_HEADER_BYTES <= len(packed) == 94 + len(name) <= packs.MAX_HEADER_BYTES


@pytest.mark.promise("checked")
def test_every_flipped_bit_and_every_cut_is_noticed():
    packed = packs.pack_header(PartHeader(ORIGIN, 0, 100, 50, "zlib", b"m" * 16))
    for bit in range(len(packed) * 8):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(PackError):
            packs.read_header(damaged)
    for length in range(len(packed)):
        with pytest.raises(PackError):
            packs.read_header(packed[:length])
        with pytest.raises(PackError):
            packs.read_header(b"x" + packed[:length], 1)


BAD_HEADERS = {
    "no name": {"name": b""},
    "long name": {"name": b"n" * 1025},
    "short store id": {"store": b"s" * 15},
    "short put id": {"put": b"p"},
    "short md5": {"md5": b"m"},
    "larger than a part": {"size": (1 << 20) + 1},
    "grown": {"stored": 101},
    "no payload": {"stored": 0},
    "raw but shorter": {"codec": "none"},
    "end of unknown size": {"size": 0, "stored": 0, "codec": "none", "file_size": None},
}


def changed(header: PartHeader, fields: dict) -> PartHeader:
    origin = {key: value for key, value in fields.items() if key in Origin._fields}
    rest = {key: value for key, value in fields.items() if key not in Origin._fields}
    return header._replace(origin=header.origin._replace(**origin), **rest)


@pytest.mark.parametrize("fields", BAD_HEADERS.values(), ids=BAD_HEADERS.keys())
def test_headers_that_make_no_sense_are_not_written(fields):
    with pytest.raises(PackError):
        packs.pack_header(changed(PartHeader(ORIGIN, 0, 100, 50, "zlib", b"m" * 16), fields))


def sealed(packed: bytes, at: int, new: bytes) -> bytes:
    """Change header bytes and make its checksum right again."""
    body = packed[:at] + new + packed[at + len(new) : -4]
    return body + struct.pack("<I", zlib.crc32(body))


@pytest.mark.parametrize(
    ("at", "new", "words"),
    [
        (0, b"PFSQ", "no part header"),
        (4, b"\x02", "version 2"),
        (5, b"\x03", "codec number 3"),
        (6, b"\x62\x00", "wrong length"),
        (56, struct.pack("<I", (1 << 20) + 1), "larger"),
        (60, struct.pack("<I", 101), "larger"),
        (60, struct.pack("<I", 0), "without payload"),
        (88, b"\x00\x00", "wrong length"),
    ],
)
def test_headers_that_make_no_sense_are_not_read(at, new, words):
    packed = packs.pack_header(PartHeader(ORIGIN, 0, 100, 50, "zlib", b"m" * 16))
    with pytest.raises(PackError, match=words):
        packs.read_header(sealed(packed, at, new))


@given(st.binary(max_size=300))
def test_noise_is_a_pack_error_and_nothing_else(noise):
    for data in (noise, b"PFSP\x01" + noise):
        with pytest.raises(PackError):
            packs.read_header(data)


# --- parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["none", "zlib", "zstd"])
@pytest.mark.parametrize("data", [b"x", TEXT, random.Random(1).randbytes(5000)])
def test_parts_round_trip(codec, data):
    encoded, row = part(data, codec=codec)
    assert decode(encoded, row) == data
    assert row.stored <= row.size


def test_what_does_not_shrink_is_kept_as_it_is():
    noise = random.Random(1).randbytes(5000)
    encoded, row = part(noise, codec="zstd")
    assert (row.codec, row.stored) == ("none", 5000)
    assert encoded[row.head :] == noise
    assert part(TEXT, codec="zstd")[1].codec == "zstd"


def test_the_payload_of_a_raw_part_is_not_copied():
    data = memoryview(random.Random(1).randbytes(5000))
    assert packs.encode_part(ORIGIN, 0, data, b"m" * 16, "zstd", 1)[1] is data


@pytest.mark.promise("checked")
def test_every_flipped_bit_of_a_part_is_noticed_or_for_md5_to_see():
    encoded, row = part(b"to be or not to be " * 8, codec="zstd")
    for bit in range(len(encoded) * 8):
        damaged = bytearray(encoded)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            content = decode(bytes(damaged), row)
        except Corrupt:
            continue
        assert bit // 8 >= row.head, "damage of the header went through"
        assert hashing.md5(content) != row.md5 or content == b"to be or not to be " * 8


@pytest.mark.parametrize(
    "wrong", [{"store": b"another store id"}, {"file": 8}, {"seq": 1}], ids=["store", "file", "seq"]
)
def test_a_part_of_somebody_else_is_refused(wrong):
    encoded, row = part()
    with pytest.raises(Corrupt, match="another part"):
        decode(encoded, row, **wrong)


@pytest.mark.promise("checked")
@pytest.mark.parametrize(
    "wrong",
    [{"head": 1}, {"size": 1}, {"stored": 1}, {"codec": "zlib"}, {"md5": b"m" * 16}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_header_that_differs_from_the_registry_is_refused(wrong):
    encoded, row = part()
    with pytest.raises(Corrupt, match="registry"):
        decode(encoded, row._replace(**wrong))


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_cut_or_longer_payload_is_refused(codec):
    encoded, row = part(codec=codec)
    for wrong in (encoded[:-1], encoded + b"\0", encoded[: row.head]):
        with pytest.raises(Corrupt, match="payload"):
            decode(wrong, row)


def test_a_payload_of_another_content_size_is_refused():
    encoded, row = part(bytes(2000))
    other, other_row = part(bytes(2001))
    assert row.stored == other_row.stored
    with pytest.raises(Corrupt):
        decode(encoded[: row.head] + other[other_row.head :], row)


def test_an_end_marker_states_the_size():
    for codec in ("none", "zstd"):
        encoded, row = part(b"", seq=3, codec=codec)
        header, head = packs.read_header(encoded)
        assert head == len(encoded)
        assert header.is_end
        assert (header.seq, header.size, header.stored, header.codec) == (3, 0, 0, "none")
        assert header.origin.file_size == 3_000_000
        assert row.stored == 0
    assert not packs.read_header(part()[0])[0].is_end


# --- scan ---------------------------------------------------------------------------------------


def scan(pack: bytes) -> list[Found | Damage]:
    def read(offset: int, length: int) -> bytes:
        assert offset >= 0 and offset + length <= len(pack), "read past the end"
        return pack[offset : offset + length]

    return list(packs.scan(read, len(pack)))


def four_parts() -> list[bytes]:
    datas = [TEXT, random.Random(1).randbytes(200_000), b"x", b""]
    return [part(data, seq)[0] for seq, data in enumerate(datas)]


def seqs(found: list[Found | Damage]) -> list[int | str]:
    return [item.header.seq if isinstance(item, Found) else "damage" for item in found]


def test_scan_finds_all_parts_where_they_are():
    parts = four_parts()
    found = scan(b"".join(parts))
    assert seqs(found) == [0, 1, 2, 3]
    assert [item.offset for item in found] == [sum(map(len, parts[:at])) for at in range(4)]
    assert scan(b"") == []


def test_scan_goes_on_behind_a_damaged_header():
    parts = four_parts()
    for hurt in range(4):
        for at in (0, 5, 60, len(parts[hurt]) - 1 if hurt == 3 else 90):
            damaged = list(parts)
            damaged[hurt] = parts[hurt][:at] + bytes([parts[hurt][at] ^ 1]) + parts[hurt][at + 1 :]
            found = scan(b"".join(damaged))
            assert seqs(found) == ["damage" if seq == hurt else seq for seq in range(4)]
            lengths_are_right = at != 60 or hurt > 0  # of what did not shrink, two fields tell the length
            assert found[hurt] == Damage(sum(map(len, parts[:hurt])), len(parts[hurt]), lengths_are_right)


def test_scan_of_a_cut_pack_reports_the_rest_as_damage():
    parts = four_parts()
    pack = b"".join(parts[:2])
    for length in (1, 50, len(parts[0]) - 1, len(parts[0]) + 10, len(pack) - 1):
        found = scan(pack[:length])
        assert isinstance(found[-1], Damage)
        assert found[-1].offset + found[-1].length == length
        assert seqs(found[:-1]) == ([0] if length > len(parts[0]) else [])


@pytest.mark.parametrize("shift", range(-6, 7))
def test_scan_sees_a_header_across_the_border_of_two_reads(shift):
    junk = b"z" * (packs.SCAN_BYTES + 1 + shift)
    found = scan(junk + four_parts()[0])
    assert seqs(found) == ["damage", 0]
    assert found[0] == Damage(0, len(junk), False)


def test_scan_is_not_led_astray_by_magic_in_damage():
    found = scan(b"PFSP\x01" * 1000 + b"PF" + four_parts()[0] + b"PFSP")
    assert seqs(found) == ["damage", 0, "damage"]
    assert found[0] == Damage(0, 5002, False)


@given(st.binary(max_size=500))
def test_scan_accounts_for_every_byte(noise):
    middle = four_parts()[2]
    covered = 0
    for item in scan(noise + middle + noise):
        assert item.offset == covered
        covered += item.length if isinstance(item, Damage) else item.head + item.header.stored
    assert covered == 2 * len(noise) + len(middle)


# --- hashes -------------------------------------------------------------------------------------


def test_md5_and_etag():
    md5s = [hashing.md5(b""), hashing.md5(b"abc")]
    assert [md5.hex() for md5 in md5s] == [
        "d41d8cd98f00b204e9800998ecf8427e",
        "900150983cd24fb0d6963f7d28e17f72",
    ]
    assert hashing.etag(b"".join(md5s)) == "66027c6d92d43d01c4f2aa8759629be3-2"
    assert hashing.etag(b"") == "d41d8cd98f00b204e9800998ecf8427e-0"
