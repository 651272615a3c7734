"""How far a transfer is, shown on a terminal: bars with rate and time left.

Commands ask for a `Watch`; whether it draws, counts or does nothing is decided by whoever starts them. This module
draws on stderr only, and nothing at all when that is no terminal or `rich` is not installed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

from pfsd.client import Progress

if TYPE_CHECKING:
    import rich.console
    import rich.progress

#: How something may be said while bars are drawn.
Printer = Callable[[str], None]


#: What is being transferred; asked again whenever it is shown, if it is a function.
What = str | Callable[[], str]


class Watch(Protocol):
    """Called with what is being transferred; the callback is None when nobody looks."""

    def __call__(self, what: What, /) -> AbstractContextManager[Progress | None]: ...


def unwatched(what: What, /) -> AbstractContextManager[Progress | None]:
    """A `Watch` that shows nothing."""
    return nullcontext()


class Bars:
    """A `Watch` that draws a bar for each transfer; a context manager that clears them away."""

    def __init__(self, display: rich.progress.Progress) -> None:
        self._display = display

    def __enter__(self) -> Bars:
        self._display.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._display.stop()

    @contextmanager
    def _bar(self, what: What) -> Iterator[Progress]:
        describe = what if callable(what) else lambda: what
        task = self._display.add_task(describe(), total=None)

        def show(done: int, total: int | None) -> None:
            self._display.update(task, completed=done, total=total, description=describe())

        try:
            yield show
        finally:
            self._display.remove_task(task)

    def __call__(self, what: What, /) -> AbstractContextManager[Progress]:
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
