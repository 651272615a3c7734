"""What the daemon is doing for its clients now, and what it has done since it started.

Sessions tell when a command begins and how it ends; the command itself counts bytes in its `Progress` as it always
does. Everything else is worked out by who looks (`ps`, `stats`, the status page), so that looking costs the
commands nothing.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

from pfsd.commands.engine import Progress
from pfsd.errors import Cancelled, RequestError
from pfsd.protocol import Request, Value
from pfsd.registry import Registry
from pfsd.verbs import VERBS

#: Commands whose content comes in from clients, and goes out to them.
_IN = frozenset({"put"})
_OUT = frozenset({"get", "cat"})
_MOVING = _IN | _OUT | {"verify"}
#: Commands whose first word is a FILE. Never auth: its word is the token.
_OF_A_FILE = frozenset({"get", "cat", "stat", "delete", "rename", "verify"})
#: How a command ended that did what it was asked; others ended in an error word.
OK = "ok"
#: What lines count as that are no command.
INVALID = "invalid"
#: A number of more digits is no file's id; of thousands, it could not even be read.
MAX_DIGITS = 19


#: What a request was told at its end: the fields of its OK, or an error; None is nothing, since its client has gone.
Outcome = dict[str, Value] | RequestError | None


@dataclass(slots=True, eq=False)
class Command:
    """A command at work. `client` is the address of who sent it, `since` a time of `time.monotonic`.

    Events of the log are about it under its id.
    """

    id: int
    request: Request
    client: str
    since: float
    progress: Progress = field(default_factory=Progress)

    @property
    def verb(self) -> str:
        """What it does."""
        return self.request.verb

    @property
    def moves_content(self) -> bool:
        """Whether its progress says anything."""
        return self.verb in _MOVING

    @property
    def moved(self) -> int:
        """Bytes of content that it has moved itself, without those of an earlier try."""
        return self.progress.bytes - self.progress.skipped

    def name(self, registry: Registry) -> bytes | None:
        """The name of the file it works on; None if that is none, several, or not known."""
        words = self.request.words
        if self.verb == "put":
            return self.request.options.get("name") or os.path.basename(words[0].value.rstrip(b"/"))
        if self.verb not in _OF_A_FILE or (len(words) != 1 and self.verb in ("delete", "verify")):
            return None
        word = words[0]
        if word.quoted or not word.value.isdigit():
            return word.value
        if len(word.value) > MAX_DIGITS:
            return None
        file = registry.file(int(word.value))
        return None if file is None else file.name


class Activity:
    """The commands at work, and counters that only go up."""

    def __init__(self) -> None:
        # From the clock on, so that the log of two daemons, one after the other, has each id once.
        self._ids = count(time.time_ns() // 1_000_000)
        self._running: dict[int, Command] = {}
        self._ended: Counter[tuple[str, str]] = Counter()
        self._bytes_in = 0
        self._bytes_out = 0

    def begin(self, request: Request, client: str) -> Command:
        """A command starts to work; each one has to be ended."""
        command = Command(next(self._ids), request, client, time.monotonic())
        self._running[command.id] = command
        return command

    def end(self, command: Command, outcome: Outcome) -> float:
        """It is over; returns how many seconds it took."""
        del self._running[command.id]
        verb = command.request.verb
        if verb in _IN:
            self._bytes_in += command.moved
        elif verb in _OUT:
            self._bytes_out += command.moved
        self._ended[verb if verb in VERBS else INVALID, _word(outcome)] += 1
        return time.monotonic() - command.since

    # --- for who looks ---

    def running(self) -> Iterator[Command]:
        """The commands at work, those that began first before the others."""
        return iter(self._running.values())

    @property
    def ended(self) -> dict[tuple[str, str], int]:
        """How many commands ended, by verb and outcome."""
        return dict(self._ended)

    @property
    def bytes_in(self) -> int:
        """Content taken from clients, in bytes before compression."""
        return self._bytes_in + sum(command.moved for command in self._running.values() if command.verb in _IN)

    @property
    def bytes_out(self) -> int:
        """Content given to clients, in bytes after decompression."""
        return self._bytes_out + sum(command.moved for command in self._running.values() if command.verb in _OUT)

    @property
    def commands(self) -> int:
        """How many commands ended, however."""
        return self._ended.total()

    @property
    def errors(self) -> int:
        """How many commands ended in an error."""
        return sum(number for (_, outcome), number in self._ended.items() if outcome != OK)


def _word(outcome: Outcome) -> str:
    """What an outcome counts as."""
    if isinstance(outcome, RequestError):
        return outcome.code
    return Cancelled.code if outcome is None else OK
