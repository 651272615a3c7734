"""Two looks at a daemon to rates and times, and how that is put in lines."""

from __future__ import annotations

import json

import pytest

from pfsd.protocol import Reply
from pfsd.top import view
from pfsd.top.model import CHART_SECONDS, ORDERS, Command, Rates, Recorder, Row, Sample, Worker, arranged, sample


def look(at: float, moved: int | None = None, *, pid: int = 1, total: int | None = 1000, **stats: int) -> Sample:
    """A look at a daemon with one put at work, if `moved` is given."""
    command = Command(7, "put", "unix", at, moved, total, b"x")
    return Sample(at, {"pid": pid, "uptime": int(at), **stats}, (command,) if moved is not None else ())


# --- rates ---


def test_rates_are_what_was_done_between_two_looks() -> None:
    recorder = Recorder()
    assert recorder.add(look(10, bytes_in=100, bytes_out=5, commands_total=1, errors_total=0)).now is None
    seen = recorder.add(look(12, bytes_in=500, bytes_out=5, commands_total=7, errors_total=1))
    assert seen.now == Rates(12, 200, 0, 3, 0.5)


def test_counters_that_a_daemon_lacks_are_nothing() -> None:
    recorder = Recorder()
    recorder.add(look(1))
    assert recorder.add(look(2)).now == Rates(2, 0, 0, 0, 0)


@pytest.mark.parametrize("again", [look(100, 30, pid=2), look(100, 30, uptime=3)], ids=["other pid", "younger"])
def test_a_daemon_that_was_restarted_begins_anew(again: Sample) -> None:
    recorder = Recorder()
    recorder.add(look(50, 10, bytes_in=1000))
    before = recorder.add(look(51, 20, bytes_in=2000))
    after = recorder.add(again)
    assert after.now is None
    assert after.rates == before.rates
    # Its command has the number of another one: how far that was says nothing.
    assert after.rows[0].rate == 30 / again.at


def test_the_chart_forgets_what_is_long_ago() -> None:
    recorder = Recorder()
    for at in range(0, int(2 * CHART_SECONDS), 10):
        seen = recorder.add(look(at))
    assert [rates.at for rates in seen.rates] == list(range(290, 600, 10))


def test_a_commands_rate_is_that_of_the_last_seconds() -> None:
    recorder = Recorder()
    assert recorder.add(look(2, 100)).rows[0].rate == 50  # since its beginning
    assert recorder.add(look(4, 100)).rows[0].rate == 0
    for at in range(5, 40):
        seen = recorder.add(look(at, 100 + 10 * at))
    assert seen.rows[0].rate == 10
    assert seen.rows[0].done == 0.49
    assert seen.rows[0].left == 51


@pytest.mark.parametrize(
    ("moved", "total", "rate", "done", "left"),
    [
        (None, None, 1.0, None, None),
        (5, None, 1.0, None, None),
        (5, 10, None, 0.5, None),
        (5, 10, 0.0, 0.5, None),
        (0, 0, 1.0, None, 0.0),
        (12, 10, 1.0, 1.0, 0.0),
    ],
)
def test_what_is_not_known_is_not_guessed(
    moved: int | None, total: int | None, rate: float | None, done: float | None, left: float | None
) -> None:
    row = Row(Command(1, "get", "unix", 1, moved, total), rate)
    assert (row.done, row.left) == (done, left)


# --- reply lines ---


def test_rows_become_values() -> None:
    rows = [
        Reply("COMMAND", "", {"id": b"3", "verb": b"put", "client": b"unix", "seconds": b"1.5", "name": b"\xff"}),
        Reply("COMMAND", "", {"id": b"4", "verb": b"ps"}),
        Reply("WORKER", "", {"slot": b"0", "pid": b"9", "state": b"busy", "task": b"store", "seconds": b"0.1"}),
        Reply("WORKER", "", {"slot": b"1", "state": b"down"}),
        Reply("NEWS", "", {"a": b"b"}),
        Reply("COMMAND", "", {"seconds": b"?"}),
    ]
    seen = sample(1.0, {"pid": 1}, rows)
    assert seen.commands == (Command(3, "put", "unix", 1.5, None, None, b"\xff"), Command(0, "?", "?", 0.0))
    assert seen.workers == (Worker(0, 9, "busy", "store", 0.1), Worker(1, None, "down"))


# --- order and filter ---

ROWS = [
    Row(Command(1, "put", "127.0.0.1:5", 9, 50, 100, b"zebra"), 10),
    Row(Command(2, "get", "unix", 8, 10, 100, b"Apple"), 90),
    Row(Command(3, "verify", "unix", 7), None),
]


@pytest.mark.parametrize(
    ("order", "ids"),
    [
        ("age", [1, 2, 3]),
        ("rate", [2, 1, 3]),
        ("time left", [2, 1, 3]),
        ("client", [1, 2, 3]),
        ("name", [2, 1, 3]),
    ],
)
def test_order(order: str, ids: list[int]) -> None:
    assert [row.command.id for row in arranged(ROWS[::-1], order)] == ids


def test_every_order_is_tested() -> None:
    assert list(ORDERS) == ["age", "rate", "time left", "client", "name"]


@pytest.mark.parametrize(
    ("wanted", "ids"), [("", [1, 2, 3]), ("APP", [2]), ("put", [1]), ("UNIX", [2, 3]), ("e", [1, 2, 3]), ("\udcff", [])]
)
def test_filter(wanted: str, ids: list[int]) -> None:
    assert [row.command.id for row in arranged(ROWS, "age", wanted)] == ids


# --- lines ---


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0.0 s"), (9.96, "10 s"), (59.6, "1 min 0 s"), (3599, "59 min 59 s"), (90000, "1 d 1 h")],
)
def test_spans(seconds: float | None, text: str) -> None:
    assert view.show_span(seconds) == text


def test_bars_and_charts() -> None:
    assert [view.bar(done, 4) for done in (0, 0.2, 0.5, 1)] == ["░░░░", "░░░░", "██░░", "████"]
    assert view.chart([0, 1, 4, 8], 6, 1, 8) == ["   ▁▄█"]
    assert view.chart([0.001, 8, 4, 16], 3, 2, 16) == ["  █", "█▄█"]
    assert view.chart([0.001], 1, 1, 1e12) == ["▁"]  # something is not nothing
    assert view.chart([1], 0, 1, 1) == [""]


def busy() -> view.View:
    recorder = Recorder()
    name = b"photos/\x1b[31m \xff" + b"x" * 300
    commands = (Command(1, "put", "127.0.0.1:50000", 61, 5 << 20, 10 << 20, name), *(row.command for row in ROWS))
    workers = tuple(Worker(slot, slot, "busy", "store", 3.0) for slot in range(64))
    stats = {"version": "1", "state": "full", "pid": 1, "bad_parts": 2, "files": 3, "waste": 5}
    stats |= {"memory_used": 95, "memory_limit": 100, "verify_every": 30, "verified_oldest": 31 * 86400}
    recorder.add(Sample(1, stats, commands, workers))
    return recorder.add(Sample(2, stats | {"bytes_in": 1 << 40}, commands, workers))


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_nothing_is_wider_than_the_terminal(width: int) -> None:
    seen = busy()
    lines = [view.headings(width), *(view.command_line(row, width) for row in seen.rows)]
    assert all(len(line) <= width for line in lines)
    assert all("\x1b" not in line for line in lines)
    assert width == 20 or lines[1].startswith("put ")


def test_what_is_wrong_stands_out() -> None:
    pieces = [piece for line in view.summary(busy(), "unix", 80, 2) for piece in line]
    styles = {piece.text.strip(): piece.style for piece in pieces}
    assert styles["full"] == view.WARNING
    assert styles["2 bad parts"] == view.BAD
    assert styles[", oldest check 31 d 0 h ago"] == view.WARNING
    assert next(piece.style for piece in pieces if "█" in piece.text and "░" in piece.text) == view.WARNING


def test_a_snapshot_is_lines_of_text() -> None:
    seen = busy()
    text = view.snapshot(seen, "unix:/x", seen.rows, 200)
    assert text.startswith("pfsd 1 at unix:/x  full  up 0.0 s")
    assert "1.0 TiB/s" in text
    assert "photos/\\x1b[31m \\xff" in text
    assert "no command is running" in view.snapshot(seen, "unix:/x", [], 100)


def test_json_has_names_in_both_spellings() -> None:
    seen = busy()
    facts = json.loads(view.as_json(seen, seen.rows, 1.0))
    assert facts["rates"] == {"bytes_in": 1 << 40, "bytes_out": 0, "commands": 0, "errors": 0}
    odd, plain = facts["commands"][0], facts["commands"][1]
    assert bytes.fromhex(odd["name_hex"]) == seen.rows[0].command.name
    assert plain["name"] == "zebra" and "name_hex" not in plain
    assert plain["bytes"] == 50 and plain["total"] == 100
    assert len(facts["workers"]) == 64
