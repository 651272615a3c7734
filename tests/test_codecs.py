"""codecs: what goes in comes out, and nothing else is taken for it or makes memory grow."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import tracemalloc
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfsd import codecs
from pfsd.codecs import CodecError, zstd

TEXT = b"It is a truth universally acknowledged. " * 500
BOTH = pytest.mark.parametrize(("codec", "level"), [("zlib", 1), ("zlib", 9), ("zstd", 1), ("zstd", 19)])


def test_numbers_on_disk_never_change():
    assert [codecs.number(name) for name in ("none", "zlib", "zstd")] == [0, 1, 2]
    assert [codecs.name(number) for number in range(3)] == ["none", "zlib", "zstd"]


@pytest.mark.parametrize("number", [-1, 3, 255])
def test_unknown_numbers_are_refused(number):
    with pytest.raises(CodecError, match=str(number)):
        codecs.name(number)


def test_unknown_names_are_refused_everywhere():
    for use in (
        lambda: codecs.number("lzma"),
        lambda: codecs.encode("lzma", 1, b"x"),
        lambda: codecs.decode("lzma", b"x", 1),
    ):
        with pytest.raises(CodecError, match="lzma"):
            use()


@pytest.mark.parametrize("codec", codecs.CODECS)
@given(data=st.binary(max_size=5000), level=st.integers(1, 9))
def test_round_trip(codec, data, level):
    assert codecs.decode(codec, codecs.encode(codec, level, data), len(data)) == data


@BOTH
def test_views_are_taken_and_text_becomes_small(codec, level):
    encoded = codecs.encode(codec, level, memoryview(TEXT))
    assert len(encoded) < len(TEXT) // 20
    assert codecs.decode(codec, memoryview(encoded), len(TEXT)) == TEXT


def test_none_copies_nothing():
    data = memoryview(TEXT)
    assert codecs.encode("none", 0, data) is data
    assert codecs.decode("none", data, len(TEXT)) is data


@BOTH
@pytest.mark.parametrize("wrong", [-1, 1, -len(TEXT), len(TEXT)])
def test_another_size_is_refused(codec, level, wrong):
    encoded = codecs.encode(codec, level, TEXT)
    with pytest.raises(CodecError):
        codecs.decode(codec, encoded, len(TEXT) + wrong)


@pytest.mark.parametrize("size", [len(TEXT) - 1, len(TEXT) + 1])
def test_another_size_is_refused_without_compression(size):
    with pytest.raises(CodecError, match="instead of"):
        codecs.decode("none", TEXT, size)


@BOTH
def test_every_cut_is_refused(codec, level):
    encoded = codecs.encode(codec, level, TEXT)
    for length in range(len(encoded)):
        with pytest.raises(CodecError):
            codecs.decode(codec, encoded[:length], len(TEXT))


def test_a_zlib_stream_without_its_checksum_is_incomplete():
    """All content is there, so only the missing end gives it away."""
    with pytest.raises(CodecError, match="too early"):
        codecs.decode("zlib", zlib.compress(TEXT)[:-4], len(TEXT))


def test_a_zstd_frame_without_its_last_block_is_incomplete():
    coder = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 14})
    encoded = coder.compress(TEXT, zstd.ZstdCompressor.FLUSH_BLOCK)
    with pytest.raises(CodecError, match="too early"):
        codecs.decode("zstd", encoded, len(TEXT))


@BOTH
@pytest.mark.parametrize("behind", [b"\0", b"PFSP", "again"])
def test_anything_behind_the_end_is_refused(codec, level, behind):
    encoded = codecs.encode(codec, level, TEXT)
    behind = encoded if behind == "again" else behind
    with pytest.raises(CodecError, match="behind"):
        codecs.decode(codec, encoded + behind, len(TEXT))


@BOTH
@given(noise=st.binary(max_size=200))
def test_noise_is_refused(codec, level, noise):
    with pytest.raises(CodecError):
        codecs.decode(codec, noise, 100)


@pytest.mark.promise("memory")
@pytest.mark.promise("checked")
@BOTH
def test_a_bomb_costs_no_more_than_a_part(codec, level):
    bomb = codecs.encode(codec, level, bytes(64 << 20))
    tracemalloc.start()
    with pytest.raises(CodecError):
        codecs.decode(codec, bomb, 1000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.promise("memory")
@pytest.mark.promise("checked")
def test_a_frame_that_wants_a_large_window_is_refused():
    wide = {zstd.CompressionParameter.window_log: 27, zstd.CompressionParameter.content_size_flag: 0}
    coder = zstd.ZstdCompressor(options=wide)
    frame = coder.compress(TEXT) + coder.flush()
    assert zstd.decompress(frame) == TEXT
    with pytest.raises(CodecError, match="zstd"):
        codecs.decode("zstd", frame, len(TEXT))


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 1023, 1025, 65535, 65537, (1 << 20) + 1])
@pytest.mark.parametrize("level", [1, 3, 19])
def test_own_frames_never_want_a_larger_window_than_allowed(size, level):
    data = random.Random(size).randbytes(size // 2 + 1) * 2
    encoded = codecs.encode("zstd", level, data[:size])
    assert codecs.decode("zstd", encoded, size) == data[:size]


def test_the_size_is_in_the_frame_and_no_checksum():
    encoded = codecs.encode("zstd", 1, TEXT)
    assert zstd.get_frame_info(encoded).decompressed_size == len(TEXT)
    assert encoded[4] & 0b100 == 0


def test_one_compressor_serves_all_parts_of_a_level():
    codecs.encode("zstd", 4, TEXT)
    first = codecs._compressor(4)
    assert codecs.encode("zstd", 4, TEXT) == codecs.encode("zstd", 4, TEXT)
    assert codecs._compressor(4) is first


def test_a_compressor_that_failed_is_not_used_again():
    first = codecs._compressor(4)
    with pytest.raises(TypeError):
        codecs.encode("zstd", 4, "text")  # type: ignore[arg-type]
    assert codecs._compressor(4) is not first
    assert codecs.decode("zstd", codecs.encode("zstd", 4, TEXT), len(TEXT)) == TEXT


def test_threads_may_share_it():
    parts = [random.Random(at).randbytes(1000) * 20 for at in range(4)]
    wrong: list[int] = []

    def work(at: int) -> None:
        for _ in range(50):
            if codecs.decode("zstd", codecs.encode("zstd", 1, parts[at]), 20_000) != parts[at]:
                wrong.append(at)

    threads = [threading.Thread(target=work, args=(at,)) for at in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# --- memory -------------------------------------------------------------------------------------

MEASURE = """
import sys
from random import Random
from pfsd import codecs
codec, level, size, text = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "text"
def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024
words = [Random(at).randbytes(7) for at in range(999)]
data = b"".join(Random(1).choices(words, k=size // 7 + 1))[:size] if text else Random(1).randbytes(size)
codecs.decode(codec, codecs.encode(codec, 1, b"warm"), 4)
for step in ("encode", "decode"):
    open("/proc/self/clear_refs", "w").write("5")
    before = status("VmRSS")
    result = codecs.encode(codec, level, data) if step == "encode" else codecs.decode(codec, result, size)
    print(status("VmHWM") - before - len(result))
"""


@pytest.mark.parametrize("kind", ["text", "noise"])
@pytest.mark.parametrize(
    ("codec", "level", "size"),
    [
        ("zlib", 9, 1 << 20),
        ("zstd", 1, 1 << 20),
        ("zstd", 9, 1 << 20),
        ("zstd", 19, 1 << 16),
        ("zstd", 19, 1_100_000),
    ],
)
def test_workspace_is_an_upper_bound(codec, level, size, kind):
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, codec, str(level), str(size), kind],
        check=True,
        capture_output=True,
        text=True,
        cwd=os.getcwd(),
    )
    encoding, decoding = map(int, result.stdout.split())
    assert max(encoding, decoding) <= codecs.workspace(codec, level, size)


@pytest.mark.parametrize("part_size", [4096, 1 << 20, 64 << 20])
def test_workspace_grows_with_the_part_and_stays_reasonable(part_size):
    for codec, levels in (("none", [0]), ("zlib", range(1, 10)), ("zstd", range(1, 20))):
        for level in levels:
            needed = codecs.workspace(codec, level, part_size)
            assert part_size < needed <= 2 * part_size + (90 << 20)
            assert needed < codecs.workspace(codec, level, 2 * part_size)
