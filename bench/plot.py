"""Draws a directory of results: how far each goal is reached, and the speeds, as a PNG and on the terminal."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import suite
from daemon import ROOT, Failed
from figures import Row
from goals import GOALS, newest

#: Longer bars are cut, so that the others stay readable.
MOST = 3.0
PFSD, OTHER, REACHED, MISSED = "#1f6f8b", "#c8c8c8", "#3a8f5a", "#c0563b"
INSTALL = "make bench installs it; by hand: pip install -e '.[bench]'"


def shares(rows: dict[str, Row]) -> list[tuple[str, float, bool]]:
    """Each goal that was measured: its name, how much of it there is, and whether it counts as reached."""
    found = [(goal, rows[goal.name]) for goal in GOALS if goal.name in rows]
    return [(goal.name, goal.share(row), goal.reached(row)) for goal, row in found]


def with_speeds(rows: dict[str, Row]) -> list[tuple[Row, tuple[float, float]]]:
    """The rows in MiB/s, and the speeds."""
    return [(row, row.speeds) for row in rows.values() if row.speeds and row.speed_unit == "MiB/s"]


def draw(rows: dict[str, Row], title: str, path: Path) -> None:
    """The PNG; Failed without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        raise Failed(f"no PNG, matplotlib is not installed: {INSTALL}") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    reached, speeds = shares(rows), with_speeds(rows)
    bars = max(len(reached), len(speeds), 4)
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(16, 1.5 + 0.3 * bars), layout="constrained")
    figure.suptitle(title)
    names = [name for name, _, _ in reached]
    lengths = [min(share, MOST) for _, share, _ in reached]
    left.barh(names, lengths, color=[REACHED if whole else MISSED for _, _, whole in reached])
    left.margins(y=0.01)
    left.axvline(1, color="black", linewidth=1)
    left.set_title(f"how much of each goal is reached, cut at {MOST:g}")
    left.invert_yaxis()
    places = range(len(speeds))
    right.barh([at - 0.2 for at in places], [ours for _, (ours, _) in speeds], 0.4, color=PFSD, label="pfsd")
    right.barh([at + 0.2 for at in places], [theirs for _, (_, theirs) in speeds], 0.4, color=OTHER, label="other")
    right.set_yticks(list(places), [f"{row.name}  {row.value:.2f}x" for row, _ in speeds])
    right.margins(y=0.01)
    right.set_title("MiB/s of original bytes, and the median of the ratios")
    right.invert_yaxis()
    if speeds:
        right.legend(loc="lower right")
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def show(rows: dict[str, Row]) -> str:
    """The same goals for a terminal; Failed without plotext."""
    try:
        import plotext
    except ImportError:
        raise Failed(f"no plot on the terminal, plotext is not installed: {INSTALL}") from None
    reached = shares(rows)
    if not reached:
        return ""
    plotext.simple_bar(
        [name for name, _, _ in reached],
        [round(min(share, MOST), 2) for _, share, _ in reached],
        width=shutil.get_terminal_size((110, 0)).columns,
        title=f"how much of each goal is reached, cut at {MOST:g}",
        color=["green" if whole else "red" for _, _, whole in reached],
    )
    drawn = str(plotext.build())
    return drawn if sys.stdout.isatty() else str(plotext.uncolorize(drawn))


def plot(where: Path) -> None:
    """Print the one and write the other; what is not installed is said and left out."""
    results = suite.load_results(where)
    rows = suite.rows_of(results)
    try:
        print(show(rows), flush=True)
    except Failed as error:
        suite.say(str(error))
    try:
        draw(rows, heading(results), where / "plot.png")
        suite.say(f"drawn: {where / 'plot.png'}")
    except Failed as error:
        suite.say(str(error))


def heading(results: Sequence[dict[str, object]]) -> str:
    """What was measured where."""
    last = results[-1]
    machine, versions = last["machine"], last["versions"]
    assert isinstance(machine, dict)
    assert isinstance(versions, dict)
    quick = " - QUICK, proves nothing" if any(result["quick"] for result in results) else ""
    return (
        f"{versions['pfsd']} ({versions['pfsd_commit']}), {last['cores']} cores of {machine['cpu']}, "
        f"{machine['filesystem']}, {str(last['began'])[:10]}{quick}"
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Draw results as a PNG and on the terminal.")
    parser.add_argument("results", nargs="?", type=Path, metavar="DIR", help="of results (the newest)")
    return parser.parse_args()


def main() -> int:
    """Draw."""
    arguments = parse()
    plot(arguments.results or newest(ROOT / "bench" / "results"))
    return 0


if __name__ == "__main__":
    suite.run(main)
