"""What is made of measured times: ratios, medians, limits, rows and tables.

Pure: no files, no clock, no processes. Whatever is said with a figure is worked out here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

MIB = 1 << 20


# --- times --------------------------------------------------------------------------------------


@dataclass
class Pairs:
    """The seconds that two sides took for the same step, pair by pair."""

    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        """How many times as fast ours was, for each pair."""
        return [their / our for our, their in zip(self.ours, self.theirs, strict=True)]


def percentile(samples: Iterable[float], percent: float) -> float:
    """The smallest sample that at least `percent` of all do not exceed; ValueError without samples."""
    ordered = sorted(samples)
    if not ordered:
        raise ValueError("no percentile without samples")
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def limit_seconds(step_seconds: Iterable[float], cores: int) -> float:
    """The least that all steps can take when every core works all the time; `step_seconds` are those of one core."""
    return sum(step_seconds) / cores


# --- rows ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A figure of a result, the median of its samples; of ratios, above 1 pfsd is faster."""

    name: str
    value: float
    samples: Sequence[float]
    unit: str = "x"
    #: Median speeds in `speed_unit`, pfsd's and the other's.
    speeds: tuple[float, float] | None = None
    speed_unit: str = "MiB/s"
    #: Original bytes for each stored one, pfsd's and the other's.
    compression: tuple[float, float] | None = None
    #: Whatever else is worth keeping, such as all the times.
    details: Mapping[str, object] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Plain values; `from_json` is the way back."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Row:
        """The row that `to_json` was called on."""
        pairs = {key: tuple(values[key]) if values[key] else None for key in ("speeds", "compression")}
        return cls(**(dict(values) | pairs))


def ratio_row(
    name: str,
    pairs: Pairs,
    amount: float,
    compression: tuple[float, float] | None = None,
    unit: str = "MiB/s",
    details: Mapping[str, object] | None = None,
) -> Row:
    """The row of a contest in which both sides did `amount` of work (in MiB, or what `unit` says) in each step."""
    return Row(
        name=name,
        value=median(pairs.ratios),
        samples=pairs.ratios,
        speeds=(amount / median(pairs.ours), amount / median(pairs.theirs)),
        speed_unit=unit,
        compression=compression,
        details={"our_seconds": pairs.ours, "their_seconds": pairs.theirs, **(details or {})},
    )


# --- goals --------------------------------------------------------------------------------------


#: Compression may be this much worse than the other's before a ratio of speeds stops counting.
COMPRESSION_SLACK = 0.03


@dataclass(frozen=True)
class Goal:
    """What a row should reach: `bound` at least, or at most."""

    name: str
    bound: float
    at_most: bool = False

    def share(self, row: Row) -> float:
        """How much of the goal is reached: from 1 on, it is."""
        if not self.at_most:
            return row.value / self.bound
        return self.bound / row.value if row.value > 0 else math.inf

    def reached(self, row: Row) -> bool:
        """Whether the row reaches it, with a compression that is not worse than the other's beyond the slack."""
        return self.share(row) >= 1 and compresses_as_well(row)

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {self.bound:g}"


def compresses_as_well(row: Row) -> bool:
    """Whether pfsd's compression is at most COMPRESSION_SLACK below the other's; True if nothing was compressed."""
    if row.compression is None:
        return True
    ours, theirs = row.compression
    return ours >= theirs * (1 - COMPRESSION_SLACK)


# --- tables -------------------------------------------------------------------------------------


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines, the first column to the left and all others to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for first, *rest in rows:
        cells = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def table(rows: Sequence[Row]) -> str:
    """Median, smallest and largest sample of each row, with speeds and compression if there are any."""
    header = ["", "median", "lowest", "highest", "", "pfsd", "other", "", "pfsd stores", "other stores"]
    lines = [header]
    for row in rows:
        speeds = (
            [f"{each:.3g}" if each < 10 else f"{each:.0f}" for each in row.speeds] + [row.speed_unit]
            if row.speeds
            else ["", "", ""]
        )
        compression = [f"1/{each:.2f}" for each in row.compression] if row.compression else ["", ""]
        figures = [f"{each:.2f}" for each in (row.value, min(row.samples), max(row.samples))]
        lines.append([row.name, *figures, row.unit, *speeds, *compression])
    columns = [column for column in zip(*lines, strict=True) if any(column[1:])]
    return aligned(list(zip(*columns, strict=True)))


def goal_table(goals: Sequence[Goal], rows: Mapping[str, Row]) -> str:
    """Each goal next to what was measured, and whether it is reached."""
    lines = [["", "measured", "", "goal", "compression", ""]]
    for goal in goals:
        row = rows.get(goal.name)
        if row is None:
            lines.append([goal.name, "-", "", str(goal), "", "not measured"])
            continue
        compression = "{:.2f} to {:.2f}".format(*row.compression) if row.compression else ""
        lines.append([goal.name, f"{row.value:.2f}", row.unit, str(goal), compression, verdict(goal, row)])
    return aligned(lines)


def verdict(goal: Goal, row: Row) -> str:
    """Whether the goal is reached, in a word or two."""
    if goal.reached(row):
        return "reached"
    return f"{goal.share(row):.0%} of it" if compresses_as_well(row) else "compresses worse"
