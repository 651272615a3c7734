"""How far a transfer is: bars with rate and time left on a terminal, or status objects for programs.

Commands ask for a `Watch`; whether it draws, counts or does nothing is decided by whoever starts them. Bars are drawn
on stderr only, and not at all when that is no terminal or `rich` is not installed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from pfsd import protocol
from pfsd.client import UnderWay

if TYPE_CHECKING:
    import rich.console
    import rich.progress

#: How something may be said while bars are drawn.
Printer = Callable[[str], None]
#: What is being transferred; asked again whenever it is shown, if it is a function.
What = str | Callable[[], str]

#: Files that are small enough to be over at once have no bar of their own.
BIG = 4 << 20
#: Bars of single files at a time.
MOST_BARS = 4
#: Between two status objects.
STATUS_SECONDS = 1.0


class Meter(Protocol):
    """Shows how far one transfer is."""

    def __call__(self, done: int, total: int | None, /) -> None:
        """So many bytes of the whole are done; the total is None while it is unknown."""

    def under_way(self, files: Sequence[UnderWay], /) -> None:
        """These files of it are being transferred."""


class Watch(Protocol):
    """Called with what is being transferred; the meter is None when nobody looks."""

    def __call__(self, what: What, /) -> AbstractContextManager[Meter | None]: ...


def unwatched(what: What, /) -> AbstractContextManager[Meter | None]:
    """A `Watch` that shows nothing."""
    return nullcontext()


def described(what: What) -> str:
    """What is being transferred, now."""
    return what() if callable(what) else what


# --- for programs -------------------------------------------------------------------------------

#: Called with the facts of a status object.
Tell = Callable[[dict[str, Any]], None]


class _Status:
    """Tells how far a transfer is when it begins, every second, and when it ends."""

    def __init__(self, what: What, tell: Tell) -> None:
        self._what = what
        self._tell = tell
        self._begun = self._told = time.monotonic()
        self._done = 0
        self._total: int | None = None
        self._files: Sequence[UnderWay] = ()

    def __call__(self, done: int, total: int | None, /) -> None:
        first = not self._done
        self._done, self._total = done, total
        if first or time.monotonic() - self._told >= STATUS_SECONDS:
            self.tell()

    def under_way(self, files: Sequence[UnderWay], /) -> None:
        self._files = files

    def tell(self) -> None:
        """Tell now."""
        self._told = time.monotonic()
        facts: dict[str, Any] = {"what": described(self._what), "bytes": self._done, "total": self._total}
        facts["seconds"] = round(self._told - self._begun, 3)
        facts["files"] = [{"about": each.path, "bytes": each.done} for each in self._files if each.done >= BIG]
        self._tell(facts)


def status(tell: Tell) -> Watch:
    """A `Watch` that tells of each transfer as facts."""

    @contextmanager
    def watch(what: What, /) -> Iterator[Meter]:
        meter = _Status(what, tell)
        yield meter
        meter.tell()

    return watch


# --- on a terminal ------------------------------------------------------------------------------


def _shown(path: str) -> str:
    return protocol.escape(os.fsencode(path), spaces=True)


class _Bar:
    """A bar for a transfer, and below it some for the big files of many."""

    def __init__(self, display: rich.progress.Progress, what: What) -> None:
        self._display = display
        self._what = what
        self._task = display.add_task(described(what), total=None)
        self._files: dict[str, rich.progress.TaskID] = {}

    def __call__(self, done: int, total: int | None, /) -> None:
        self._display.update(self._task, completed=done, total=total, description=described(self._what))

    def under_way(self, files: Sequence[UnderWay], /) -> None:
        shown = {each.path: each for each in files if each.done >= BIG}
        for path in self._files.keys() - shown.keys():
            self._display.remove_task(self._files.pop(path))
        for path, each in shown.items():
            if path not in self._files and len(self._files) < MOST_BARS:
                self._files[path] = self._display.add_task(_shown(path), total=each.total)
            if path in self._files:
                self._display.update(self._files[path], completed=each.done, total=each.total)

    def close(self) -> None:
        """Take the bars away."""
        for task in (self._task, *self._files.values()):
            self._display.remove_task(task)


class Bars:
    """A `Watch` that draws bars for each transfer; a context manager that clears them away."""

    def __init__(self, display: rich.progress.Progress) -> None:
        self._display = display

    def __enter__(self) -> Bars:
        self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._display.stop()

    @contextmanager
    def _bar(self, what: What) -> Iterator[Meter]:
        bar = _Bar(self._display, what)
        try:
            yield bar
        finally:
            bar.close()

    def __call__(self, what: What, /) -> AbstractContextManager[Meter]:
        return self._bar(what)

    def refresh(self) -> None:
        """Draw now."""
        self._display.refresh()

    def print(self, text: str) -> None:
        """Write lines above the bars."""
        self._display.console.print(text.removesuffix("\n"), markup=False, highlight=False, soft_wrap=True)


def bars() -> Bars | None:
    """Bars on stderr, if that is a terminal and `rich` is there."""
    if not sys.stderr.isatty():
        return None
    try:
        from rich.console import Console
    except ImportError:
        return None
    return make_bars(Console(stderr=True))


def make_bars(console: rich.console.Console) -> Bars:
    """Bars on a terminal."""
    from rich import progress
    from rich.text import Text

    class Percentage(progress.ProgressColumn):
        """Nothing while the total is unknown: 0 % would be a lie."""

        def render(self, task: progress.Task) -> Text:
            return Text("" if task.total is None else f"{task.percentage:>3.0f}%")

    display = progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        Percentage(),
        progress.DownloadColumn(binary_units=True),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=console,
        transient=True,
        # Results go through `Bars.print`, or to a stdout that is no terminal.
        redirect_stdout=False,
        redirect_stderr=False,
    )
    return Bars(display)
