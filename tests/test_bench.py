"""The figures of the measuring scripts: what is made of times, without taking any."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"

_spec = importlib.util.spec_from_file_location("bench_figures", BENCH / "figures.py")
figures = importlib.util.module_from_spec(_spec)
sys.modules["bench_figures"] = figures  # dataclasses look their module up
_spec.loader.exec_module(figures)


def row(value=2.0, samples=(1.0, 2.0, 3.0), name="linux put, borg", **more):
    return figures.Row(name, value, list(samples), **more)


# --- times --------------------------------------------------------------------------------------


def test_ratios_are_those_of_each_pair_and_above_one_where_ours_is_faster():
    assert figures.Pairs([1.0, 2.0, 4.0], [2.0, 2.0, 2.0]).ratios == [2.0, 1.0, 0.5]


def test_pairs_of_different_lengths_are_refused():
    with pytest.raises(ValueError):
        _ = figures.Pairs([1.0, 2.0], [1.0]).ratios


def test_row_of_a_contest_has_the_median_of_ratios_and_not_the_ratio_of_medians():
    pairs = figures.Pairs([1.0, 2.0, 10.0], [3.0, 2.0, 40.0])
    made = figures.ratio_row("put", pairs, 20.0, (4.0, 5.0), details={"command": "x"})
    assert made.value == 3.0  # of 3, 1 and 4; the ratio of medians is 1.5
    assert made.samples == [3.0, 1.0, 4.0]
    assert made.speeds == (10.0, 20.0 / 3.0)
    assert made.compression == (4.0, 5.0)
    assert made.details == {"our_seconds": pairs.ours, "their_seconds": pairs.theirs, "command": "x"}


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1), (1, 1), (50, 50), (98.5, 99), (99, 99), (99.1, 100), (100, 100)]
)
def test_percentile_is_a_sample_that_so_many_do_not_exceed(percent, expected):
    assert figures.percentile(reversed(range(1, 101)), percent) == expected


def test_percentile_of_one_sample_is_that_sample():
    assert figures.percentile([7.0], 99) == 7.0


def test_no_samples_have_no_percentile():
    with pytest.raises(ValueError, match="without samples"):
        figures.percentile([], 99)


def test_limit_is_the_sum_of_the_steps_shared_by_the_cores():
    steps = {"read": 0.5, "hash": 1.5, "compress": 5.5, "write": 0.5}
    assert figures.limit_seconds(steps.values(), 1) == 8.0
    assert figures.limit_seconds(steps.values(), 2) == 4.0
    # pfsd that takes 5 s is at 0.8 of that limit
    assert figures.Pairs([5.0], [figures.limit_seconds(steps.values(), 2)]).ratios == [0.8]


# --- rows and goals -----------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"speeds": (2.0, 1.0), "compression": (5.8, 5.9), "details": {"a": [1]}}])
def test_a_row_survives_json(more):
    assert figures.Row.from_json(json.loads(json.dumps(row(**more).to_json()))) == row(**more)


@pytest.mark.parametrize(("value", "reached"), [(1.99, False), (2.0, True), (2.5, True)])
def test_a_ratio_has_to_be_as_high_as_its_goal(value, reached):
    assert figures.Goal("linux put, borg", 2.0).reached(row(value)) is reached


@pytest.mark.parametrize(("value", "reached"), [(20.1, False), (20.0, True), (0.0, True)])
def test_a_wait_has_to_be_as_short_as_its_goal(value, reached):
    assert figures.Goal("p99", 20, at_most=True).reached(row(value)) is reached


@pytest.mark.parametrize(("ours", "reached"), [(9.69, False), (9.71, True), (12.0, True)])
def test_speed_does_not_count_with_a_compression_that_is_worse_by_more_than_3_percent(ours, reached):
    goal, measured = figures.Goal("linux put, borg", 1.0), row(2.0, compression=(ours, 10.0))
    assert goal.reached(measured) is reached
    assert figures.verdict(goal, measured) == ("reached" if reached else "compresses worse")


# --- tables -------------------------------------------------------------------------------------


def test_table_aligns_columns_and_leaves_out_empty_ones():
    rows = [row(2.0, name="ping", unit="ms"), row(10.5, [10.5], name="a long name", unit="ms")]
    assert figures.table(rows).splitlines() == [
        "             median  lowest  highest",
        "ping           2.00    1.00     3.00  ms",
        "a long name   10.50   10.50    10.50  ms",
    ]


def test_table_shows_speeds_and_both_compressions():
    (_, line) = figures.table([row(speeds=(210.4, 99.6), compression=(5.81, 5.79))]).splitlines()
    assert line.split() == [
        "linux",
        "put,",
        "borg",
        "2.00",
        "1.00",
        "3.00",
        "x",
        "210",
        "100",
        "MiB/s",
        "1/5.81",
        "1/5.79",
    ]


def test_goal_table_has_a_line_for_each_goal_measured_or_not():
    goals = [figures.Goal("fast", 2.0), figures.Goal("slow", 4.0), figures.Goal("p99", 20, at_most=True)]
    rows = {"fast": row(2.5, name="fast"), "slow": row(3.0, name="slow")}
    assert [line.split() for line in figures.goal_table(goals, rows).splitlines()[1:]] == [
        ["fast", "2.50", "x", ">=", "2", "reached"],
        ["slow", "3.00", "x", ">=", "4", "75%", "of", "it"],
        ["p99", "-", "<=", "20", "not", "measured"],
    ]
