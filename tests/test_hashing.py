"""MD5 of many parts gives hashlib's digests, whichever way it goes."""

from __future__ import annotations

import hashlib
import random
import sys

import pytest

import pfsd
from pfsd import hashing

MEMORY = memoryview(bytearray(random.Random(1).randbytes(1 << 20)))


@pytest.fixture(params=["hashlib", "lanes"])
def calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many parts went through the lanes, for each call."""
    counts: list[int] = []
    monkeypatch.setattr(hashing, "_lanes", None)
    if request.param == "lanes":
        lanes = pytest.importorskip("pfsd.lanes")
        assert hashing.use_lanes()

        def counted(memory: memoryview, places: list[tuple[int, int]]) -> list[bytes]:
            counts.append(len(places))
            found: list[bytes] = lanes.md5_lanes(memory, places)
            return found

        monkeypatch.setattr(hashing, "_lanes", counted)
    return counts


def places(*sizes: int) -> list[tuple[int, int]]:
    """Parts of these sizes, one after the other with a gap of a cache line between them."""
    found, at = [], 0
    for size in sizes:
        found.append((at, size))
        at += -(-size // 64) * 64 + 64
    return found


@pytest.mark.parametrize(
    ("sizes", "in_lanes"),
    [
        ((), 0),
        ((0,), 0),
        ((1, 63, 64, 65), 0),
        ((8192,) * 16, 16),
        ((8192,) * 17, 17),
        ((8192,) * 33, 33),
        ((8192,) * 4, 4),
        ((8192,) * 3, 0),
        ((8192,) * 15 + (100,), 15),
        ((8200,) * 16, 16),  # not whole blocks
        ((64,) * 16, 0),  # too small to be worth it
        ((16384,) * 16 + (8192,) * 16, 32),
        ((5000, 16384) * 8, 16),
        ((500_000,) + (8192,) * 16, 16),  # one so long that the other lanes would stand still
        ((500_000, 4096, 4097), 0),
        (tuple(range(4096, 4096 + 130 * 37, 37)), 130),  # endings of every length, of one block and of two
    ],
)
def test_every_digest_is_right(calls: list[int], sizes: tuple[int, ...], in_lanes: int) -> None:
    parts = places(*sizes)
    right = [hashlib.md5(MEMORY[at : at + size]).digest() for at, size in parts]
    assert hashing.md5_many(MEMORY, parts) == right
    assert sum(calls) == (in_lanes if hashing._lanes is not None else 0)


def test_mixed_sizes_keep_their_order(calls: list[int]) -> None:
    parts = places(*([8192] * 10), 5, *([8192] * 3))
    assert hashing.md5_many(MEMORY, parts) == [hashlib.md5(MEMORY[at : at + size]).digest() for at, size in parts]


def test_without_numba_hashlib_does_it_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_lanes", None)
    monkeypatch.setitem(sys.modules, "pfsd.lanes", None)  # what a failed import looks like
    monkeypatch.delattr(pfsd, "lanes", raising=False)
    assert not hashing.use_lanes()
    parts = places(8192, 8192)
    assert hashing.md5_many(MEMORY, parts) == [hashlib.md5(MEMORY[at : at + size]).digest() for at, size in parts]


def test_etag_is_the_md5_of_the_md5s() -> None:
    first, second = hashing.md5(b"one"), hashing.md5(b"two")
    assert hashing.etag(first + second) == f"{hashlib.md5(first + second).hexdigest()}-2"
    assert hashing.etag(b"") == f"{hashlib.md5().hexdigest()}-0"
