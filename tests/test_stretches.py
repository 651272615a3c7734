"""Few stretches of a long line, against a list of its points."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pfsd.stretches import END, Position, Stretch, Stretches

POINTS: list[Position] = [(file, seq) for file in range(1, 5) for seq in range(5)]
places = st.lists(st.integers(0, len(POINTS) - 1), min_size=2, max_size=2, unique=True).map(sorted)
histories = st.lists(st.tuples(places, st.integers(0, 99)), max_size=20)


def covered(history: list[tuple[list[int], int]], most: int) -> tuple[Stretches, list[int | None]]:
    """The stretches, and what each point was given last."""
    stretches, points = Stretches(most), [None] * len(POINTS)
    for (first, end), time in history:
        stretches.cover(Stretch(POINTS[first], POINTS[end], time))
        points[first:end] = [time] * (end - first)
    return stretches, points


@given(histories)
def test_each_point_has_the_time_that_it_was_given_last(history: list[tuple[list[int], int]]) -> None:
    stretches, points = covered(history, 100)
    found = [stretches.around(point) for point in POINTS]
    assert [stretch and stretch.time for stretch in found] == points
    assert all(stretch.first <= point < stretch.end for stretch, point in zip(found, POINTS, strict=True) if stretch)
    everything = list(stretches)
    assert all(one.first < one.end for one in everything)
    assert all(one.end <= other.first for one, other in pairwise(everything))
    for point, stretch in zip(POINTS, found, strict=True):
        if stretch is None:
            assert stretches.gap_end(point) == min((one.first for one in everything if one.first > point), default=END)


@given(histories, st.integers(1, 5))
def test_when_there_are_too_many_nothing_gets_younger(history: list[tuple[list[int], int]], most: int) -> None:
    stretches, points = covered(history, most)
    assert len(stretches) <= most
    for point, time in zip(POINTS, points, strict=True):
        found = stretches.around(point)
        assert found is None or (time is not None and found.time <= time)


def test_those_that_differ_least_are_joined_and_only_if_they_touch() -> None:
    stretches = Stretches(3)
    for first, end, time in (((1, 0), (2, 0), 10), ((2, 0), (3, 0), 50), ((3, 0), (4, 0), 52), ((5, 0), (6, 0), 51)):
        stretches.cover(Stretch(first, end, time))
    assert list(stretches) == [((1, 0), (2, 0), 10), ((2, 0), (4, 0), 50), ((5, 0), (6, 0), 51)]
    apart = Stretches(2)
    for at, time in ((1, 7), (3, 5), (5, 6)):
        apart.cover(Stretch((at, 0), (at + 1, 0), time))
    assert list(apart) == [((1, 0), (2, 0), 7), ((5, 0), (6, 0), 6)]
