"""The live view: a thin shell of textual around `model` and `view`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Input, Static

from pfsd.errors import PfsdError
from pfsd.top import view as views
from pfsd.top.model import ORDERS, Recorder, Row, View, arranged
from pfsd.top.watch import Watcher

#: Seconds between looks that + and - go through.
INTERVALS = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)

_STYLES = {
    views.LABEL: "bold",
    views.GOOD: "green",
    views.WARNING: "yellow",
    views.BAD: "bold red",
    views.IN: "cyan",
    views.OUT: "magenta",
}


def _text(lines: Sequence[views.Line]) -> Text:
    pieces = [(piece.text, _STYLES.get(piece.style, "")) for line in lines for piece in [*line, views.Piece("\n")]]
    return Text.assemble(*pieces[:-1], no_wrap=True, overflow="ellipsis")


class Details(ModalScreen[None]):
    """All about one command."""

    CSS = """
    Details { align: center middle; }
    Details > Static { width: auto; max-width: 90%; height: auto; border: round $accent; padding: 0 1; }
    """
    BINDINGS = [Binding("escape,enter,q", "dismiss", "Close")]

    def __init__(self, row: Row) -> None:
        super().__init__()
        self._row = row

    def compose(self) -> ComposeResult:
        """What to show."""
        lines = [Text.assemble((f"{label:9}", "bold"), value) for label, value in views.details(self._row)]
        yield Static(Text("\n").join(lines))


class Top(App[None]):
    """A daemon as it works. `first` is what was seen already; `watcher` looks again."""

    CSS = """
    #summary, #status { height: auto; }
    #status { color: $text-muted; }
    #status.lost { color: $text; background: $error; }
    #commands { height: 1fr; }
    #filter { height: 1; border: none; padding: 0; }
    """
    TITLE = "pfs top"
    ENABLE_COMMAND_PALETTE = False
    BINDINGS = [
        Binding("q", "quit", "Quit"),
        Binding("ctrl+c", "quit", show=False, priority=True),
        Binding("p", "pause", "Pause"),
        Binding("s", "sort", "Sort"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("plus,equals_sign", "interval(1)", "Slower", key_display="+"),
        Binding("minus", "interval(-1)", "Faster", key_display="-"),
        Binding("escape", "clear", show=False),
    ]

    def __init__(self, watcher: Watcher, recorder: Recorder, first: View, address: str, interval: float) -> None:
        super().__init__()
        self._watcher = watcher
        self._recorder = recorder
        self._view = first
        self._address = address
        self._interval = interval
        self._paused = False
        self._trouble = ""
        self._order = next(iter(ORDERS))
        self._wanted = ""
        self._rows: list[Row] = []
        self._changed = asyncio.Event()

    def compose(self) -> ComposeResult:
        """From top to bottom."""
        yield Static(id="summary")
        yield Static(id="status")
        yield DataTable(id="commands", cursor_type="row", zebra_stripes=False, cell_padding=0)
        line = Input(id="filter", placeholder="part of a command, client or name", compact=True)
        line.display = False
        yield line
        yield Footer(compact=True)

    def on_mount(self) -> None:
        """Begin to look."""
        self.query_one(DataTable).focus()
        self.show()
        self.run_worker(self._keep_looking(), exit_on_error=True)

    def on_resize(self) -> None:
        """Another width has other columns."""
        self.show()

    async def _keep_looking(self) -> None:
        while True:
            try:
                async with asyncio.timeout(self._interval):
                    await self._changed.wait()
            except TimeoutError:
                pass
            else:
                self._changed.clear()
                continue  # another interval begins
            if self._paused:
                continue
            try:
                self._view = self._recorder.add(await self._watcher.look())
                self._trouble = ""
            except PfsdError as error:
                self._trouble = str(error)
            self.show()

    # --- what is seen ---

    def show(self) -> None:
        """Draw what is known now."""
        width, height = self.size
        if width == 0 or not self.query("#summary"):
            return
        chart_height = 1 if height < 20 else 2 if height < 30 else 4
        self.query_one("#summary", Static).update(_text(views.summary(self._view, self._address, width, chart_height)))
        status = self.query_one("#status", Static)
        status.set_class(bool(self._trouble), "lost")
        status.update(Text(self._status(), no_wrap=True, overflow="ellipsis"))
        self._show_commands(width)

    def _status(self) -> str:
        if self._trouble:
            return f"reconnecting: {self._trouble}"
        facts = ["paused" if self._paused else f"every {self._interval:g} s", f"by {self._order}"]
        facts += [f"with {self._wanted!r}"] if self._wanted else []
        return f"{len(self._view.rows)} running   " + "   ".join(facts)

    def _show_commands(self, width: int) -> None:
        """Draw the commands anew; the cursor stays on the one it was on."""
        table: DataTable[Text] = self.query_one(DataTable)
        chosen = self._rows[table.cursor_row].command.id if table.cursor_row < len(self._rows) else None
        self._rows = arranged(self._view.rows, self._order, self._wanted)
        # The table has a scroll bar when its rows do not fit.
        room = width - table.styles.scrollbar_size_vertical
        table.clear(columns=True)
        table.add_column(Text(views.headings(room)), width=room)
        for row in self._rows:
            table.add_row(Text(views.command_line(row, room)))
        for at, row in enumerate(self._rows):
            if row.command.id == chosen:
                table.move_cursor(row=at)

    # --- keys ---

    def action_pause(self) -> None:
        """Stop looking, or go on."""
        self._paused = not self._paused
        self.show()

    def action_sort(self) -> None:
        """Sort by what comes next."""
        orders = list(ORDERS)
        self._order = orders[(orders.index(self._order) + 1) % len(orders)]
        self.show()

    def action_interval(self, step: int) -> None:
        """Look less often, or more often."""
        at = min(range(len(INTERVALS)), key=lambda at: abs(INTERVALS[at] - self._interval))
        self._interval = INTERVALS[min(max(at + step, 0), len(INTERVALS) - 1)]
        self._changed.set()
        self.show()

    def action_filter(self) -> None:
        """Let a filter be typed; it takes effect with each key."""
        line = self.query_one("#filter", Input)
        line.display = True
        self.set_focus(line)  # at once: the next key is for it already

    def action_clear(self) -> None:
        """Show everything again."""
        self.query_one("#filter", Input).value = ""
        self._close_filter()

    def _close_filter(self) -> None:
        self.query_one("#filter", Input).display = False
        self.set_focus(self.query_one(DataTable))

    def on_input_changed(self, event: Input.Changed) -> None:
        """The filter is another one."""
        self._wanted = event.value
        self.show()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """The filter stays as it is."""
        self._close_filter()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Show all about the command under the cursor."""
        if event.cursor_row < len(self._rows):
            self.push_screen(Details(self._rows[event.cursor_row]))
