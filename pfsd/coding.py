"""How the parts of a file are coded: as configured, or with `codec: auto` as measurements advise.

A chooser says how the next run is coded (`choose`) and is told how that went (`tell`); it never reads a clock, a
file or the content. `auto` answers two questions, each where it is best known:

* Does the content shrink? Asked for each file (`FileCoding`). What does not is stored as it is, but for one part
  in `SAMPLE_EVERY`, which is coded all the same: a tar may change in its middle.
* Would stronger coding cost time? Asked for the whole daemon (`Auto`), since all commands share cores and disk. A run
  codes and writes by turns while the disk works in the background, so the time that an I/O process spends in writing
  is what no coding could hide. As long as the extra coding of the next level fits into it, that level is free.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

#: Of content that does not shrink, one part in so many is coded.
SAMPLE_EVERY = 16
#: Content that keeps more than this share of its size is not worth the coding, now and when it is read.
RAW_ABOVE = 31 / 32

#: zstd levels that `auto` may use above the configured one -> what coding costs, level 1 being 1. Measured on source
#: and on programs. Above 6, half as much time again saves 2 % of the bytes.
COSTS = {1: 1.0, 2: 1.25, 3: 1.55, 4: 1.7, 5: 3.2, 6: 4.6}
#: The steps among them; each saves 4 % of the bytes and more over the one before.
STEPS = (3, 5, 6)

#: A decision is made on so many bytes of content that shrinks, coded at the level in use.
WINDOW_BYTES = 64 << 20
#: A stronger level has to leave this share of its coding time for writing, or it would be given up again at once.
SPARE = 0.25
#: A level is too strong when writing takes a smaller share of the time for coding than this.
TOO_LITTLE = 0.1
#: A stronger level is on trial for so many windows; if they took longer than by this factor, it is given up.
TRIAL_WINDOWS = 2
SLOWER = 1.1
#: So many windows in a row have to speak for a stronger level; twice as many after each trial that failed.
FIRST_PATIENCE = 2
MAX_PATIENCE = 64


class Choice(NamedTuple):
    """How the parts of a run are coded: those whose number in the file is a multiple of `every`; others are not."""

    codec: str
    level: int
    every: int = 1


class Measured(NamedTuple):
    """What an I/O process saw in one run: bytes that were coded, what they became, and seconds (of a clock)."""

    coded: int
    shrunk: int
    coding: float
    writing: float  # and syncing: all of staging the pack that was not coding

    @property
    def is_worth_it(self) -> bool:
        """Whether the content shrank enough."""
        return self.shrunk <= RAW_ABOVE * self.coded


class Chooser(Protocol):
    """Decides how runs are coded. Runs may overlap, and their results come in any order or not at all."""

    def choose(self) -> Choice:
        """How to code the next run."""
        ...

    def tell(self, choice: Choice, measured: Measured) -> None:
        """What became of a run coded like that."""
        ...


class Policy(Chooser, Protocol):
    """The chooser of a daemon: itself for runs that hold parts of many files, `file` for those of one."""

    def file(self) -> Chooser:
        """A chooser for the runs of one file."""
        ...

    @property
    def facts(self) -> dict[str, str | int]:
        """What it does at the moment, for `stats`."""
        ...


def policy(codec: str, level: int) -> Policy:
    """What the settings `codec` and `level` ask for."""
    return Auto(level) if codec == "auto" else Fixed(codec, level)


def strongest(codec: str, level: int) -> tuple[str, int]:
    """The codec and level that these settings may lead to and that need the most memory."""
    return ("zstd", max(level, *STEPS)) if codec == "auto" else (codec, level)


# --- as configured ------------------------------------------------------------------------------


class Fixed:
    """Codes everything alike."""

    def __init__(self, codec: str, level: int) -> None:
        self._choice = Choice(codec, level)

    def choose(self) -> Choice:
        return self._choice

    def tell(self, choice: Choice, measured: Measured) -> None:
        pass

    def file(self) -> Chooser:
        return self

    @property
    def facts(self) -> dict[str, str | int]:
        return {"codec": self._choice.codec, "level": self._choice.level}


# --- as measured --------------------------------------------------------------------------------


@dataclass
class _Window:
    """Sums over the runs since the last decision."""

    coded: int = 0
    coding: float = 0.0
    writing: float = 0.0

    def add(self, run: Measured) -> None:
        self.coded += run.coded
        self.coding += run.coding
        self.writing += run.writing


def _pace(windows: list[_Window]) -> float:
    """Seconds for each byte."""
    return sum(each.coding + each.writing for each in windows) / sum(each.coded for each in windows)


class Auto:
    """The level for content that shrinks: `level`, or stronger while writing takes so long that it costs no time.

    Steps up are slow and steps down are fast: a level too weak costs some bytes, one too strong costs everybody time.
    """

    def __init__(self, level: int) -> None:
        self._levels = [level, *(step for step in STEPS if step > level)]
        self._step = 0
        self._window = _Window()
        self._votes: list[_Window] = []  # in a row, for a stronger level
        self._patience = FIRST_PATIENCE
        self._trial: list[_Window] | None = None  # of the level in use
        self._pace_before = 0.0  # the trial
        self._bottleneck: Literal["unknown", "cpu", "disk"] = "unknown"

    @property
    def fast_level(self) -> int:
        """The weakest level."""
        return self._levels[0]

    @property
    def level(self) -> int:
        """The level in use."""
        return self._levels[self._step]

    def choose(self) -> Choice:
        return Choice("zstd", self.level)

    def tell(self, choice: Choice, measured: Measured) -> None:
        # What is written as it came waits for the disk too, but no level could change that.
        if choice != self.choose() or not measured.coded or not measured.is_worth_it:
            return
        self._window.add(measured)
        if self._window.coded >= WINDOW_BYTES:
            self._decide(self._window)
            self._window = _Window()

    def file(self) -> FileCoding:
        return FileCoding(self)

    @property
    def facts(self) -> dict[str, str | int]:
        return {"codec": "auto", "level": self.level, "bottleneck": self._bottleneck}

    def _decide(self, seen: _Window) -> None:
        self._bottleneck = "disk" if seen.writing > seen.coding else "cpu"
        if self._step and (seen.writing < TOO_LITTLE * seen.coding or self._fails_trial(seen)):
            self._weaken()
        elif self._would_be_free(seen):
            self._votes.append(seen)
            if len(self._votes) >= self._patience:
                self._strengthen()
        else:
            self._votes = []

    def _fails_trial(self, seen: _Window) -> bool:
        """Whether the level in use is on trial and turned out slower; one that is not is confirmed."""
        if self._trial is None:
            return False
        self._trial.append(seen)
        if len(self._trial) < TRIAL_WINDOWS:
            return False
        if _pace(self._trial) > SLOWER * self._pace_before:
            return True
        self._trial, self._patience = None, FIRST_PATIENCE
        return False

    def _would_be_free(self, seen: _Window) -> bool:
        """Whether the next level's extra coding fits into the time for writing, and leaves some."""
        if self._step + 1 == len(self._levels):
            return False
        factor = COSTS[self._levels[self._step + 1]] / COSTS[self.level]
        return seen.writing >= (factor - 1 + SPARE * factor) * seen.coding

    def _strengthen(self) -> None:
        self._step += 1
        self._pace_before = _pace(self._votes)
        self._trial, self._votes = [], []

    def _weaken(self) -> None:
        self._step -= 1
        if self._trial is not None:
            self._patience = min(2 * self._patience, MAX_PATIENCE)
        self._trial, self._votes = None, []


class FileCoding:
    """One file under `auto`: its content is coded while it shrinks, and looked at now and then when it does not."""

    def __init__(self, shared: Auto) -> None:
        self._shared = shared
        self._shrinks = True  # until a run has shown otherwise

    def choose(self) -> Choice:
        if self._shrinks:
            return self._shared.choose()
        return Choice("zstd", self._shared.fast_level, SAMPLE_EVERY)

    def tell(self, choice: Choice, measured: Measured) -> None:
        if measured.coded:
            self._shrinks = measured.is_worth_it
        self._shared.tell(choice, measured)
