"""The daemon's log: one line for each event, plain or JSON, whatever bytes of clients are in it.

An event is a message and facts: those it was logged with (`extra={"facts": {...}}`), and those of the request it is
about, if it is about one. Plain lines end in them, as key=value; in JSON each is a member.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, TextIO

from pfsd.protocol import Value, quote

Fact = Value | float

#: Before each further line of an event, such as those of a traceback.
INDENT = "    "
#: Levels as syslog numbers them, for the service manager's journal.
PRIORITIES = {"DEBUG": 7, "INFO": 6, "WARNING": 4, "ERROR": 3, "CRITICAL": 2}


@dataclass(slots=True)
class About:
    """The request that events are about. `ref` is the id that `ps` shows it under while it runs."""

    client: int
    peer: str
    verb: str
    ref: int

    @property
    def facts(self) -> dict[str, Fact]:
        """What its events end in."""
        verb = {"verb": self.verb} if self.verb else {}  # a line that was not understood has none
        return {"client": self.client, "peer": self.peer, **verb, "ref": self.ref}


#: What the task at work is about. Tasks inherit it: what outlives a request is to be started in a context of its own.
about: ContextVar[About | None] = ContextVar("about", default=None)


class Event(NamedTuple):
    """What a line of the log says. `moment` is in seconds since 1970; a `trace` has lines of its own."""

    moment: float
    level: str
    message: str
    facts: Mapping[str, Fact]
    trace: str = ""


class EventFormatter(logging.Formatter):
    """Makes lines of events, also of those that come as records of `logging`."""

    def format(self, record: logging.LogRecord) -> str:
        return self.lines(self._event(record))

    def lines(self, event: Event) -> str:
        """One line, or more if there is a trace."""
        raise NotImplementedError

    def _event(self, record: logging.LogRecord) -> Event:
        request, facts = about.get(), getattr(record, "facts", {})
        if request is not None:
            facts = facts | request.facts
        pieces = [
            getattr(record, "trace", "").rstrip(),  # what an I/O process tells of a bug
            self.formatException(record.exc_info) if record.exc_info else "",
            record.stack_info or "",
        ]
        trace = "\n".join(filter(None, pieces))
        return Event(record.created, record.levelname, record.getMessage(), facts, trace)


class Formatter(EventFormatter):
    """Nothing that a client named can begin a line of its own, or reach the terminal of who reads the log.

    Control characters, and what else cannot be printed, are written as Python escapes them; the lines of a
    traceback stay lines, indented.
    """

    def __init__(self, *, with_head: bool = True) -> None:
        """The head of a line is time and level."""
        super().__init__()
        self._with_head = with_head

    def lines(self, event: Event) -> str:
        trace = f"\n{_indented(event.trace)}" if event.trace else ""
        facts = "".join([f" {key}={_shown(value)}" for key, value in event.facts.items()])
        return f"{self._head(event)}{_escaped(event.message)}{facts}{trace}"

    def _head(self, event: Event) -> str:
        if not self._with_head:
            return ""
        return f"{_local(int(event.moment))},{_milliseconds(event.moment):03d} {event.level} "


class JsonFormatter(EventFormatter):
    """An object in a line for each event, of printable ASCII whatever is in it."""

    def lines(self, event: Event) -> str:
        members: dict[str, object] = {
            "time": f"{_utc(int(event.moment))}.{_milliseconds(event.moment):03d}Z",
            "level": event.level.lower(),
            "message": _valid(event.message),
        }
        members |= {key: _member(value) for key, value in event.facts.items()}
        if event.trace:
            members["trace"] = _valid(event.trace)
        return json.dumps(members)


class JournalFormatter(EventFormatter):
    """Each line of another formatter behind its priority, for the journal of systemd, which takes it off."""

    def __init__(self, inner: EventFormatter) -> None:
        super().__init__()
        self._inner = inner

    def lines(self, event: Event) -> str:
        mark = f"<{PRIORITIES.get(event.level, 6)}>"
        return "\n".join([mark + line for line in self._inner.lines(event).split("\n")])


class Handler(logging.StreamHandler[TextIO]):
    """Writes records, and events many at once."""

    def write(self, events: Sequence[Event]) -> None:
        """In one piece. What cannot be written is lost, and nothing else."""
        formatter = self.formatter
        assert isinstance(formatter, EventFormatter)
        text = "".join([f"{formatter.lines(event)}\n" for event in events])
        with self.lock or nullcontext(), suppress(OSError, ValueError):
            self.stream.write(text)
            self.stream.flush()


def start(level: str, form: str) -> None:
    """Write all events from `level` on to standard error, in a form: plain or json."""
    logging.captureWarnings(True)
    logging.root.addHandler(Handler())
    use(level, form)


def use(level: str, form: str) -> None:
    """Go on with another level and form."""
    chosen = formatter(form, in_journal=is_journal(sys.stderr.fileno(), os.environ))
    for handler in _handlers():
        handler.setFormatter(chosen)
    logging.root.setLevel(level.upper())


def write(events: Sequence[Event]) -> None:
    """Write events whose level is wanted, which is not asked here."""
    for handler in _handlers():
        handler.write(events)


def _handlers() -> list[Handler]:
    return [handler for handler in logging.root.handlers if isinstance(handler, Handler)]


def formatter(form: str, in_journal: bool) -> EventFormatter:
    """What writes events in a form: plain or json."""
    if form == "json":
        return JournalFormatter(JsonFormatter()) if in_journal else JsonFormatter()
    # The journal knows the time and shows the level by itself.
    return JournalFormatter(Formatter(with_head=False)) if in_journal else Formatter()


def is_journal(fd: int, environ: Mapping[str, str]) -> bool:
    """Whether systemd has connected a stream to its journal, and it was not led elsewhere."""
    stream = os.fstat(fd)
    return environ.get("JOURNAL_STREAM") == f"{stream.st_dev}:{stream.st_ino}"


@lru_cache(4)
def _local(second: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(second))


@lru_cache(4)
def _utc(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def _milliseconds(moment: float) -> int:
    return int(moment % 1 * 1000)


def _shown(value: Fact) -> str:
    return f"{value:.3f}" if isinstance(value, float) else quote(value)


def _member(value: Fact) -> int | float | str:
    if isinstance(value, float):
        return round(value, 3)
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return _valid(value) if isinstance(value, str) else value


def _indented(text: str) -> str:
    # Of a line break inside the text of an exception nobody can tell: its second line is indented too.
    return "\n".join(INDENT + _escaped(line) for line in text.split("\n"))


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _valid(text: str) -> str:
    """Text that is valid Unicode: bytes of file names that are not are written as \\xNN would be in Python."""
    return text.encode("utf-8", "backslashreplace").decode()
