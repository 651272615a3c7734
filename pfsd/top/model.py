"""What was seen of a daemon, and what follows from it: rates, and how long commands will still take.

Knows values, no connection and no terminal. Sizes are bytes, times are seconds, rates are per second.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pfsd.protocol import Reply
from pfsd.results import plain

Stats = Mapping[str, int | str]

#: How far back the charts go.
CHART_SECONDS = 300.0
#: A command's rate is what it did in this time: long enough for content that comes in gusts.
RATE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Command:
    """A request at work, which has `moved` so many bytes of `total`. None is what the daemon does not know."""

    id: int
    verb: str
    client: str
    seconds: float
    moved: int | None = None
    total: int | None = None
    name: bytes | None = None


@dataclass(frozen=True, slots=True)
class Worker:
    """An I/O process. `task` is what it does, for `seconds` now; None for one that is idle."""

    slot: int
    pid: int | None
    state: str
    task: str | None = None
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """What a daemon said at one moment; `at` is of a clock that only goes forward."""

    at: float
    stats: Stats
    commands: tuple[Command, ...] = ()
    workers: tuple[Worker, ...] = ()

    def number(self, key: str) -> int:
        """A counter; 0 when this daemon has none of that name."""
        value = self.stats.get(key, 0)
        return value if isinstance(value, int) else 0


@dataclass(frozen=True, slots=True)
class Row:
    """A command with what two looks tell of it; None as long as nobody knows."""

    command: Command
    rate: float | None

    @property
    def done(self) -> float | None:
        """How much of it is done, from 0 to 1."""
        moved, total = self.command.moved, self.command.total
        return None if moved is None or not total else min(1.0, moved / total)

    @property
    def left(self) -> float | None:
        """Seconds to its end, if it goes on like this."""
        moved, total = self.command.moved, self.command.total
        return None if moved is None or total is None or not self.rate else max(0, total - moved) / self.rate


@dataclass(frozen=True, slots=True)
class Rates:
    """What went through the daemon between two looks that ended `at`: bytes, and requests."""

    at: float
    bytes_in: float
    bytes_out: float
    commands: float
    errors: float


@dataclass(frozen=True, slots=True)
class View:
    """All there is to show: the newest sample, its commands with their rates, the rates of the last minutes."""

    sample: Sample
    rows: tuple[Row, ...]
    rates: tuple[Rates, ...]

    @property
    def now(self) -> Rates | None:
        """The newest rates; None until there were two looks at the same daemon."""
        return self.rates[-1] if self.rates and self.rates[-1].at == self.sample.at else None


class Recorder:
    """Takes samples as they come."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque()
        self._rates: deque[Rates] = deque()

    def add(self, sample: Sample) -> View:
        """Take another sample; what can be said now. One of a daemon that was restarted begins anew."""
        if self._samples and _restarted(self._samples[-1], sample):
            self._samples.clear()
        elif self._samples and sample.at > self._samples[-1].at:
            self._rates.append(_between(self._samples[-1], sample))
        self._samples.append(sample)
        while len(self._samples) > 2 and self._samples[1].at <= sample.at - RATE_SECONDS:
            self._samples.popleft()
        while self._rates and self._rates[0].at < sample.at - CHART_SECONDS:
            self._rates.popleft()
        rows = tuple(Row(command, self._rate(command, sample.at)) for command in sample.commands)
        return View(sample, rows, tuple(self._rates))

    def _rate(self, command: Command, now: float) -> float | None:
        """From the oldest look that saw it; on the first look, from its beginning."""
        if command.moved is None:
            return None
        for sample in self._samples:
            for seen in sample.commands:
                if seen.id == command.id and seen.moved is not None and now > sample.at:
                    return max(0, command.moved - seen.moved) / (now - sample.at)
        return command.moved / command.seconds if command.seconds else None


def _restarted(before: Sample, after: Sample) -> bool:
    return before.stats.get("pid") != after.stats.get("pid") or after.number("uptime") < before.number("uptime")


def _between(before: Sample, after: Sample) -> Rates:
    def rate(key: str) -> float:
        return max(0, after.number(key) - before.number(key)) / (after.at - before.at)

    return Rates(after.at, *map(rate, ("bytes_in", "bytes_out", "commands_total", "errors_total")))


# --- from reply lines -----------------------------------------------------------------------------


def sample(at: float, stats: Stats, rows: Sequence[Reply]) -> Sample:
    """What `stats` and the rows of `ps` say. Rows and keys that are not known are passed over."""
    commands = tuple(_command(row.fields) for row in rows if row.word == "COMMAND" and row.fields.get("verb") != b"ps")
    return Sample(at, stats, commands, tuple(_worker(row.fields) for row in rows if row.word == "WORKER"))


def _command(fields: Mapping[str, bytes]) -> Command:
    return Command(
        id=_number(fields, "id") or 0,
        verb=_text(fields, "verb") or "?",
        client=_text(fields, "client") or "?",
        seconds=_seconds(fields) or 0.0,
        moved=_number(fields, "bytes"),
        total=_number(fields, "total"),
        name=fields.get("name"),
    )


def _worker(fields: Mapping[str, bytes]) -> Worker:
    state = _text(fields, "state") or "?"
    return Worker(_number(fields, "slot") or 0, _number(fields, "pid"), state, _text(fields, "task"), _seconds(fields))


def _text(fields: Mapping[str, bytes], key: str) -> str | None:
    value = fields.get(key)
    return None if value is None else str(plain(value))


def _number(fields: Mapping[str, bytes], key: str) -> int | None:
    value = plain(fields.get(key, b""))
    return value if isinstance(value, int) else None


def _seconds(fields: Mapping[str, bytes]) -> float | None:
    try:
        return float(fields["seconds"])
    except (KeyError, ValueError):
        return None


# --- which rows, in which order -------------------------------------------------------------------

#: What commands can be sorted by, in the order in which a key goes through it.
ORDERS: dict[str, Callable[[Row], tuple[object, ...]]] = {
    "age": lambda row: (-row.command.seconds,),
    "rate": lambda row: (-(row.rate or 0.0),),
    "time left": lambda row: (row.left is None, row.left or 0.0),
    "client": lambda row: (row.command.client,),
    "name": lambda row: (row.command.name is None, row.command.name or b""),
}


def arranged(rows: Sequence[Row], order: str, wanted: str = "") -> list[Row]:
    """The rows whose verb, client or name holds `wanted`, in upper or lower case, by one of ORDERS."""
    needle = wanted.lower().encode("utf-8", "surrogateescape")

    def matches(row: Row) -> bool:
        command = row.command
        texts = (command.verb.encode(), command.client.encode(), command.name or b"")
        return any(needle in text.lower() for text in texts)

    return sorted(filter(matches, rows), key=lambda row: (*ORDERS[order](row), row.command.id))
