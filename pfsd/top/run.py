"""`pfs top` as a command: the live view on a terminal, otherwise lines of text or JSON."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
import time
from importlib.util import find_spec

from pfsd.errors import PfsdError, UsageError
from pfsd.top import view as views
from pfsd.top.model import Recorder, View, arranged
from pfsd.top.watch import Connect, Watcher


async def run(connect: Connect, address: str, *, interval: float, once: bool, as_json: bool) -> int:
    """Show what a daemon does, `interval` seconds apart, until the user has seen enough; the exit code.

    Raises PfsdError when there is no daemon that can be looked at to begin with, UsageError without textual.
    """
    live = not once and not as_json and _is_terminal()
    if live and find_spec("textual") is None:
        raise UsageError("the live view needs textual: pip install 'pfsd[tui]'; --once and --json do without")
    recorder = Recorder()
    async with Watcher(connect) as watcher:
        first = recorder.add(await watcher.look())
        if live:
            from pfsd.top.app import Top

            app = Top(watcher, recorder, first, address, interval)
            await app.run_async()
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise asyncio.CancelledError  # textual restores the terminal, and then takes it for a normal end
            return app.return_code or 0
        if as_json and not once:
            await _json_lines(watcher, recorder, first, interval)
        else:
            # Rates take a second look.
            await asyncio.sleep(interval)
            second = recorder.add(await watcher.look())
            rows = arranged(second.rows, "age")
            if as_json:
                _print(views.as_json(second, rows, time.time()))
            else:
                _print(views.snapshot(second, address, rows, shutil.get_terminal_size().columns))
    return 0


def _is_terminal() -> bool:
    """Whether there is one to draw on; textual does that on stderr."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    return all(stream.isatty() for stream in streams) and os.environ.get("TERM", "dumb") != "dumb"


async def _json_lines(watcher: Watcher, recorder: Recorder, seen: View, interval: float) -> None:
    """An object for each look; when the daemon is gone, one error, and the next object when it is back."""
    lost = False
    while True:
        if not lost:
            _print(views.as_json(seen, arranged(seen.rows, "age"), time.time()))
        await asyncio.sleep(interval)
        try:
            seen, lost = recorder.add(await watcher.look()), False
        except PfsdError as error:
            if not lost:
                _print(views.error_as_json(error, time.time()))
            lost = True


def _print(line: str) -> None:
    print(line, flush=True)
