"""What a view looks like: pieces of text with a style each, in lines that fit a width. Knows no terminal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from pfsd import protocol
from pfsd.console.output import show_name, show_size
from pfsd.errors import PfsdError
from pfsd.top.model import Row, View, Worker


class Piece(NamedTuple):
    """Some text; `style` is one of the words below, or nothing."""

    text: str
    style: str = ""


Line = list[Piece]
LABEL, GOOD, WARNING, BAD, IN, OUT = "label", "good", "warning", "bad", "in", "out"

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_UNKNOWN = "-"


def plain(lines: Sequence[Line]) -> str:
    """Lines without their styles."""
    return "\n".join("".join(piece.text for piece in line).rstrip() for line in lines)


# --- numbers --------------------------------------------------------------------------------------


def show_rate(rate: float | None) -> str:
    """Bytes a second."""
    return _UNKNOWN if rate is None else f"{show_size(round(rate))}/s"


def show_span(seconds: float | None) -> str:
    """A time that passes, in its two biggest units."""
    if seconds is None:
        return _UNKNOWN
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, name, smaller, lesser in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            return f"{whole // unit} {name} {whole % unit // smaller} {lesser}"
    return f"{whole} s"


def bar(done: float, width: int) -> str:
    """How much of a whole, from 0 to 1, as a bar."""
    full = math.floor(done * width + 1e-9)
    return "█" * full + "░" * (width - full)


def chart(values: Sequence[float], width: int, height: int, most: float) -> list[str]:
    """The last `width` values as columns, the newest on the right; `most` is as high as the chart."""
    shown = list(values)[-width:] if width > 0 else []
    # What is above nothing can be seen.
    heights = [math.ceil(value / most * height * 8) if value > 0 else 0 for value in shown]
    columns = [0] * (width - len(heights)) + heights
    rows = reversed(range(height))
    return ["".join(_EIGHTHS[min(8, max(0, column - 8 * row))] for column in columns) for row in rows]


# --- the daemon -----------------------------------------------------------------------------------


def summary(view: View, address: str, width: int, chart_height: int) -> list[Line]:
    """All but the commands."""
    return [
        _headline(view, address, width),
        *_throughput(view, width, chart_height),
        _memory(view, width),
        _workers(view.sample.workers, width),
        _files(view),
        _health(view),
    ]


def _headline(view: View, address: str, width: int) -> Line:
    stats, number = view.sample.stats, view.sample.number
    state = str(stats.get("state", "?"))
    pieces = [
        Piece(f"pfsd {stats.get('version', '?')} at {address}", LABEL),
        Piece(state, GOOD if state == "ready" else WARNING),
        Piece(f"up {show_span(number('uptime'))}"),
        Piece(f"{number('clients')} of {number('max_clients')} clients"),
    ]
    if view.now is not None:
        pieces.append(Piece(f"{view.now.commands:.1f} requests/s"))
    return _joined(pieces, width)


def _throughput(view: View, width: int, height: int) -> list[Line]:
    most = max((max(rates.bytes_in, rates.bytes_out) for rates in view.rates), default=0.0) or 1.0
    lines: list[Line] = []
    for label, style, key in (("in", IN, "bytes_in"), ("out", OUT, "bytes_out")):
        rate = None if view.now is None else float(getattr(view.now, key))
        head = f"{label:8}{show_rate(rate):>12}  "
        drawn = chart([getattr(rates, key) for rates in view.rates], width - len(head), height, most)
        for at, row in enumerate(drawn, 1):
            first, second = (label, head[8:]) if at == height else ("", " " * (len(head) - 8))
            lines.append([Piece(f"{first:8}", LABEL), Piece(second), Piece(row, style)])
    return lines


def _memory(view: View, width: int) -> Line:
    used, limit, peak = map(view.sample.number, ("memory_used", "memory_limit", "memory_peak"))
    done = used / limit if limit else 0.0
    text = f" {show_size(used)} of {show_size(limit)}"
    if width >= 70:
        text += f", {show_size(peak)} at most"
    drawn = bar(done, max(5, min(40, width - 8 - len(text))))
    return [Piece("memory  ", LABEL), Piece(drawn, WARNING if done > 0.9 else GOOD), Piece(text)]


def _workers(workers: Sequence[Worker], width: int) -> Line:
    busy = sum(worker.state == "busy" for worker in workers)
    line = [Piece("workers ", LABEL), Piece(f"{busy} of {len(workers)} busy")]
    room = width - 8 - len(line[1].text)
    for worker in workers:
        text = f"  {worker.slot}: {worker.task or worker.state}"
        if worker.seconds is not None and worker.seconds >= 1:
            text += f" {show_span(worker.seconds)}"
        room -= len(text)
        if room < 0:
            break
        line.append(Piece(text, {"busy": GOOD, "down": BAD}.get(worker.state, "")))
    return line


def _files(view: View) -> Line:
    number = view.sample.number
    text = f"{number('files')}, {show_size(number('size'))} stored in {show_size(number('stored'))}"
    if number("waste"):
        text += f", {show_size(number('waste'))} waste"
    return [Piece("files   ", LABEL), Piece(text)]


def _health(view: View) -> Line:
    number = view.sample.number
    bad, oldest, every = map(number, ("bad_parts", "verified_oldest", "verify_every"))
    late = bool(every) and oldest > every * 86400
    damage = Piece(f"{bad} bad parts", BAD) if bad else Piece("no damage known", GOOD)
    checked = Piece(f", oldest check {show_span(oldest)} ago", WARNING if late else "")
    errors = Piece(f", {number('errors_total')} errors")
    return [Piece("health  ", LABEL), damage, *([checked] if number("files") else []), errors]


def _joined(pieces: Sequence[Piece], width: int) -> Line:
    """As many of the pieces as have room, two spaces between them."""
    line: Line = []
    room = width
    for piece in pieces:
        text = piece.text if not line else f"  {piece.text}"
        if len(text) > room and line:
            break
        room -= len(text)
        line.append(Piece(text, piece.style))
    return line


# --- the commands ---------------------------------------------------------------------------------

BAR_WIDTH = 10


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table of commands; the more `important` a column, the longer it stays as a terminal narrows."""

    heading: str
    width: int
    important: int
    cell: Callable[[Row], str]
    numbers: bool = False


def _progress(row: Row) -> str:
    return "" if row.done is None else bar(row.done, BAR_WIDTH)


def _percent(row: Row) -> str:
    return _UNKNOWN if row.done is None else f"{math.floor(row.done * 100)} %"


def _moved(row: Row) -> str:
    return _UNKNOWN if row.command.moved is None else show_size(row.command.moved)


COLUMNS = [
    Column("COMMAND", 7, 9, lambda row: row.command.verb),
    Column("PROGRESS", BAR_WIDTH, 6, _progress),
    Column("DONE", 5, 8, _percent, True),
    Column("BYTES", 10, 4, _moved, True),
    Column("RATE", 12, 7, lambda row: show_rate(row.rate), True),
    Column("LEFT", 11, 5, lambda row: show_span(row.left), True),
    Column("TIME", 11, 3, lambda row: show_span(row.command.seconds), True),
    Column("CLIENT", 21, 1, lambda row: row.command.client),
]
_NAME_LEAST, _GAP = 20, 2


def columns(width: int) -> tuple[list[Column], int]:
    """The columns that fit, and how wide the last one is, which is always the name."""
    room = width - _NAME_LEAST
    kept = []
    for column in sorted(COLUMNS, key=lambda column: -column.important):
        if room >= column.width + _GAP:
            room -= column.width + _GAP
            kept.append(column)
    return [column for column in COLUMNS if column in kept], room + _NAME_LEAST


def headings(width: int) -> str:
    """The line above the commands."""
    shown, _ = columns(width)
    cells = [_aligned(column, column.heading) for column in shown]
    return (" " * _GAP).join([*cells, "NAME"])


def command_line(row: Row, width: int) -> str:
    """A command in one line."""
    shown, room = columns(width)
    cells = [_aligned(column, column.cell(row)) for column in shown]
    name = "" if row.command.name is None else show_name(row.command.name)
    return (" " * _GAP).join([*cells, _shortened(name, room)])


def _aligned(column: Column, text: str) -> str:
    text = _shortened(text, column.width)
    return text.rjust(column.width) if column.numbers else text.ljust(column.width)


def _shortened(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def details(row: Row) -> list[tuple[str, str]]:
    """All that is known of a command."""
    command = row.command
    total = _UNKNOWN if command.total is None else show_size(command.total)
    return [
        ("command", command.verb),
        ("name", _UNKNOWN if command.name is None else show_name(command.name)),
        ("client", protocol.escape(command.client.encode(), spaces=True)),
        ("id", str(command.id)),
        ("running", show_span(command.seconds)),
        ("done", f"{_moved(row)} of {total}"),
        ("rate", show_rate(row.rate)),
        ("left", show_span(row.left)),
    ]


# --- without a terminal ---------------------------------------------------------------------------


def snapshot(view: View, address: str, rows: Sequence[Row], width: int) -> str:
    """All of it as lines of text."""
    lines = plain(summary(view, address, width, 1))
    commands = [headings(width), *(command_line(row, width).rstrip() for row in rows)]
    return "\n".join([lines, "", *(commands if rows else ["no command is running"])])


def as_json(view: View, rows: Sequence[Row], when: float) -> str:
    """All of it as one JSON object; `when` is in seconds since 1970. Rates are null until there were two looks."""
    now = None if view.now is None else asdict(view.now)
    if now is not None:
        del now["at"]
    facts: dict[str, Any] = {"type": "top", "time": round(when, 3), "stats": dict(view.sample.stats), "rates": now}
    facts["commands"] = [_json_row(row) for row in rows]
    facts["workers"] = [asdict(worker) for worker in view.sample.workers]
    return json.dumps(facts, ensure_ascii=False)


def _json_row(row: Row) -> dict[str, Any]:
    facts: dict[str, Any] = asdict(row.command) | {"rate": row.rate, "left": row.left}
    facts["bytes"], name = facts.pop("moved"), row.command.name
    if name is not None:
        try:
            facts["name"] = name.decode()
        except UnicodeDecodeError:
            facts |= {"name": show_name(name), "name_hex": name.hex()}
    return facts


def error_as_json(error: PfsdError, when: float) -> str:
    """That there was no answer, as one JSON object."""
    facts = {"type": "error", "time": round(when, 3)}
    facts |= {"code": getattr(error, "code", "internal"), "message": error.message}
    return json.dumps(facts, ensure_ascii=False)
