"""Which ranges are fetched for which reads."""

from __future__ import annotations

from pfsd.readahead import FIRST, MAX_AHEAD, MAX_BLOCK, ReadAhead

MIB = 1 << 20


class Fetches:
    """What was asked for, as pairs of an offset and a length, and what was forgotten."""

    def __init__(self, size: int) -> None:
        self.asked: list[tuple[int, int]] = []
        self.forgotten: list[tuple[int, int]] = []
        self.blocks: ReadAhead[tuple[int, int]] = ReadAhead(size, self._fetch, self.forgotten.append)

    def _fetch(self, offset: int, length: int) -> tuple[int, int]:
        self.asked.append((offset, length))
        return offset, length

    def read(self, offset: int, wanted: int) -> int:
        """Read at an offset; returns how many bytes its block has from there on."""
        begin, (offset_asked, length) = self.blocks.block(offset, wanted)
        assert begin == offset_asked <= offset < begin + length
        return begin + length - offset


def test_reading_on_fetches_more_and_more_ahead_and_every_byte_once() -> None:
    size = 100 * MIB + 7
    fetches = Fetches(size)
    at, most = 0, 0
    while at < size:
        at += min(FIRST, fetches.read(at, FIRST))
        fetched = fetches.asked[-1][0] + fetches.asked[-1][1]
        most = max(most, fetched - at)
        assert fetched - at <= MAX_AHEAD
    assert most > MAX_AHEAD // 2
    assert fetches.asked[0] == (0, FIRST)
    assert [offset for offset, _ in fetches.asked] == [0] + [sum(pair) for pair in fetches.asked[:-1]]
    assert sum(fetches.asked[-1]) == size
    assert max(length for _, length in fetches.asked) == MAX_BLOCK
    assert len(fetches.asked) < 50


def test_jumping_about_fetches_what_is_wanted_and_no_more() -> None:
    fetches = Fetches(100 * MIB)
    places = [70 * MIB, 3 * MIB, 99 * MIB, 5, 50 * MIB]
    for place in places:
        fetches.read(place, 100)
    assert fetches.asked == [(place, FIRST) for place in places]
    assert fetches.forgotten == fetches.asked[:-1]


def test_a_jump_after_reading_on_begins_small_again() -> None:
    fetches = Fetches(100 * MIB)
    at = 0
    for _ in range(200):
        at += min(FIRST, fetches.read(at, FIRST))
    before = len(fetches.asked)
    fetches.read(90 * MIB, FIRST)
    assert fetches.asked[before:] == [(90 * MIB, FIRST)]


def test_what_was_fetched_is_kept_for_a_short_step_ahead() -> None:
    fetches = Fetches(100 * MIB)
    fetches.read(0, MIB)
    asked = list(fetches.asked)
    fetches.read(MIB // 2, 10)
    assert fetches.asked == asked


def test_a_long_read_begins_with_long_blocks_and_is_bounded() -> None:
    fetches = Fetches(1000 * MIB)
    fetches.read(MIB, 900 * MIB)
    assert fetches.asked == [(MIB + at, MAX_BLOCK) for at in range(0, MAX_AHEAD, MAX_BLOCK)]


def test_the_end_of_a_file_is_not_passed() -> None:
    fetches = Fetches(FIRST + 1)
    assert fetches.read(FIRST, 100) == 1
    assert fetches.asked == [(FIRST, 1)]
    fetches.blocks.clear()
    assert fetches.forgotten == fetches.asked
