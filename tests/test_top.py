"""`pfs top`: the live view under a pilot, as a program on a terminal, and without one."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Static

from pfsd.client import Client, ConnectionLost
from pfsd.top import run
from pfsd.top.app import INTERVALS, Details, Top
from pfsd.top.model import ORDERS, Command, Recorder, Sample
from pfsd.top.watch import Watcher
from tests.harness import Daemon
from tests.wire import PATIENCE_SECONDS

CLIENT = Path(__file__).parent.parent / "client.py"
NEVER = 3600.0


class Scripted(Watcher):
    """Says what a test told it to: samples, or errors."""

    def __init__(self, *script: Sample | BaseException) -> None:
        super().__init__(partial(Client.connect, "unix:/nobody"))
        self.script = list(script)

    async def look(self) -> Sample:
        what = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(what, BaseException):
            raise what
        return what


def sample(at: float, *names: bytes, **stats: int) -> Sample:
    commands = tuple(
        Command(number, "put", "unix", 10.0 - number, 10, 100, name) for number, name in enumerate(names, 1)
    )
    return Sample(at, {"version": "1", "state": "ready", "pid": 1, **stats}, commands)


def top(*script: Sample | ConnectionLost, interval: float = NEVER) -> Top:
    recorder = Recorder()
    first = script[0]
    assert isinstance(first, Sample)
    return Top(Scripted(*(script[1:] or script)), recorder, recorder.add(first), "unix:/x", interval)


def shown(app: Top, part: str) -> str:
    return str(app.screen_stack[0].query_one(f"#{part}", Static).render())


def listed(app: Top) -> list[str]:
    table: DataTable[object] = app.screen_stack[0].query_one(DataTable)
    return [str(table.get_row_at(at)[0]) for at in range(table.row_count)]


async def until(pilot: Pilot[None], is_so: Callable[[], bool]) -> None:
    """Let the app go on until something is seen."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < end
        await pilot.pause(0.01)


async def test_keys() -> None:
    app = top(sample(1, b"b", b"[bold]a", b"c"))
    async with app.run_test(size=(80, 24)) as pilot:
        assert [line.split()[-1] for line in listed(app)] == ["b", "[bold]a", "c"]
        assert "3 running   every 3600 s   by age" in shown(app, "status")
        for order in ("rate", "time left", "client", "name"):
            await pilot.press("s")
            assert f"by {order}" in shown(app, "status")
        assert [line.split()[-1] for line in listed(app)] == ["[bold]a", "b", "c"]
        await pilot.press("p")
        assert "paused" in shown(app, "status")
        await pilot.press("p")
        assert "paused" not in shown(app, "status")
        await pilot.press("minus")
        assert f"every {INTERVALS[-2]:g} s" in shown(app, "status")
        await pilot.press("plus", "plus")
        assert f"every {INTERVALS[-1]:g} s" in shown(app, "status")
        await pilot.press("q")
    assert app.return_code == 0


async def test_a_filter_takes_effect_as_it_is_typed() -> None:
    app = top(sample(1, b"alpha", b"quit", b"c"))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("slash")
        await pilot.press("Q", "u")
        assert [line.split()[-1] for line in listed(app)] == ["quit"]
        await pilot.press("enter")
        assert "with 'Qu'" in shown(app, "status")
        assert len(listed(app)) == 1
        await pilot.press("escape")
        assert len(listed(app)) == 3
        await pilot.press("slash", "x")
        await pilot.press("x")
        assert listed(app) == []
        await pilot.press("escape")
        assert len(listed(app)) == 3


async def test_enter_shows_all_about_a_command() -> None:
    app = top(sample(1, b"alpha", b"\x1b[2J\xff" + b"x" * 200))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("down", "enter")
        assert isinstance(app.screen, Details)
        text = str(app.screen.query_one(Static).render())
        assert "\\x1b[2J\\xff" + "x" * 200 in text
        assert "10 B of 100 B" in text
        await pilot.press("escape")
        assert not isinstance(app.screen, Details)


async def test_the_cursor_stays_on_its_command() -> None:
    app = top(sample(1, b"a", b"b", b"c"), sample(2, b"a", b"b", b"c", bytes_in=1 << 20), interval=NEVER)
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("down", "down")
        for _ in ORDERS:
            await pilot.press("s")
        table: DataTable[object] = app.query_one(DataTable)
        assert listed(app)[table.cursor_row].endswith("c")


async def test_it_looks_again_and_again() -> None:
    app = top(sample(1, bytes_in=0), sample(2, b"new", bytes_in=3 << 20), interval=0.01)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: len(listed(app)) == 1)
        assert "3.0 MiB/s" in shown(app, "summary")


async def test_a_daemon_that_goes_away_is_waited_for() -> None:
    app = top(sample(1, b"a"), ConnectionLost("it went"), interval=0.01)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(pilot, lambda: "reconnecting: it went" in shown(app, "status"))
        assert len(listed(app)) == 1
        assert isinstance(app._watcher, Scripted)
        app._watcher.script = [sample(9, b"x", b"y")]
        await until(pilot, lambda: len(listed(app)) == 2)
        assert "reconnecting" not in shown(app, "status")


@pytest.mark.parametrize("size", [(80, 24), (40, 15), (20, 5), (200, 60)])
async def test_small_terminals(size: tuple[int, int]) -> None:
    app = top(sample(1, b"alpha" * 60, b"b"))
    async with app.run_test(size=size) as pilot:
        await pilot.resize_terminal(*size)
        assert all(len(line) <= size[0] for line in listed(app))
        assert len(listed(app)) == 2


# --- a real daemon ---


def test_a_watcher_lives_longer_than_its_daemon(idle_daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    daemon = idle_daemon
    daemon.start()

    async def watch() -> None:
        async with Watcher(partial(Client.connect, f"unix:{daemon.socket_path}")) as watcher:
            before = await watcher.look()
            daemon.freeze()
            with monkeypatch.context() as patch:
                patch.setattr("pfsd.top.watch.PATIENCE_SECONDS", 0.2)
                with pytest.raises(ConnectionLost, match=r"has not answered for 0\.2 seconds"):
                    await watcher.look()
            daemon.kill_all()
            for _ in range(2):
                with pytest.raises(ConnectionLost):
                    await watcher.look()
            daemon.start()
            after = await watcher.look()
        assert before.stats["pid"] != after.stats["pid"]
        assert len(after.workers) == 2

    asyncio.run(watch())


def environ(**more: str) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PFSD_")}
    return kept | {"PYTHONPATH": str(CLIENT.parent), **more}


def client(daemon: Daemon, *words: str) -> list[str]:
    return [sys.executable, str(CLIENT), "--server", f"127.0.0.1:{daemon.port}", *words]


def test_without_a_terminal_it_is_a_snapshot(shared_daemon: Daemon) -> None:
    command = client(shared_daemon, "top", "--interval", "0.1")
    ended = subprocess.run(
        command, env=environ(COLUMNS="80"), capture_output=True, stdin=subprocess.DEVNULL, timeout=30
    )
    assert ended.returncode == 0 and ended.stderr == b""
    lines = ended.stdout.decode().splitlines()
    assert lines[0].startswith(f"pfsd 0.1.0 at 127.0.0.1:{shared_daemon.port}  ready  up ")
    assert [line.split()[0] for line in lines[1:7]] == ["in", "out", "memory", "workers", "files", "health"]
    assert lines[-1] == "no command is running"


def test_json_goes_on_until_told_otherwise(shared_daemon: Daemon) -> None:
    command = client(shared_daemon, "top", "--json", "--interval", "0.1")
    with subprocess.Popen(command, env=environ(), stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        first, second = (json.loads(process.stdout.readline()) for _ in range(2))
        process.terminate()
        process.communicate(timeout=30)
    assert process.returncode == 143
    assert first["type"] == second["type"] == "top"
    assert first["rates"] is None and second["rates"]["commands"] > 0


async def test_json_tells_once_that_the_daemon_is_gone(capsys: pytest.CaptureFixture[str]) -> None:
    gone = ConnectionLost("it went")
    watcher, recorder = Scripted(gone, gone, gone, sample(2), asyncio.CancelledError()), Recorder()
    with pytest.raises(asyncio.CancelledError):
        await run._json_lines(watcher, recorder, recorder.add(sample(1)), 0)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["type"] for line in lines] == ["top", "error", "top"]
    assert (lines[1]["code"], lines[1]["message"]) == ("connection-lost", "it went")


@pytest.mark.parametrize("words", [["--interval", "0"], ["--interval", "soon"], ["--interval", "nan"], ["extra"]])
def test_bad_words(words: list[str]) -> None:
    from pfsd.cli import client_main

    assert client_main(["--server", "127.0.0.1:1", "top", *words]) == 2


def test_nobody_to_look_at(capsys: pytest.CaptureFixture[str]) -> None:
    from pfsd.cli import client_main

    assert client_main(["--server", "127.0.0.1:1", "top", "--once"]) == 5
    assert "cannot-connect" in capsys.readouterr().err


async def test_without_textual_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "find_spec", lambda name: None)
    monkeypatch.setattr(run, "_is_terminal", lambda: True)
    with pytest.raises(Exception, match=r"pip install 'pfsd\[tui\]'"):
        await run.run(partial(Client.connect, "unix:/nobody"), "x", interval=1, once=False, as_json=False)


class Terminal:
    """A program on a terminal of 80 by 24; what it drew is kept as text."""

    def __init__(self, command: list[str], **more: str) -> None:
        self._main, side = pty.openpty()
        fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._side = side
        self.before = termios.tcgetattr(side)
        self.drawn = ""
        env = environ(TERM="xterm-256color", **more)
        self.process = subprocess.Popen(command, env=env, stdin=side, stdout=side, stderr=side)

    def until(self, is_so: Callable[[str], bool]) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while not is_so(self.drawn):
            assert time.monotonic() < end, self.drawn[-3000:]
            if select.select([self._main], [], [], 0.1)[0]:
                self.drawn += os.read(self._main, 65536).decode("utf-8", "replace")

    def press(self, keys: bytes) -> None:
        os.write(self._main, keys)

    def end(self) -> int:
        """Its exit code; the terminal must be as it was."""
        while self.process.poll() is None:
            if select.select([self._main], [], [], 0.05)[0]:
                self.drawn += os.read(self._main, 65536).decode("utf-8", "replace")
        assert termios.tcgetattr(self._side) == self.before
        os.close(self._main)
        os.close(self._side)
        return self.process.returncode


@pytest.mark.parametrize("how", ["key", "signal"])
def test_a_put_advances_on_a_terminal(shared_daemon: Daemon, how: str) -> None:
    total, piece = 40 << 20, b"x" * (1 << 20)
    with shared_daemon.connect() as wire:
        wire.send(b"put - name=advancing-%b size=%d\n" % (how.encode(), total))
        wire.send(piece * 4)
        terminal = Terminal(client(shared_daemon, "top", "--interval", "0.1"), NO_COLOR="1")
        try:
            terminal.until(lambda drawn: f"advancing-{how}" in drawn and " 10 % " in drawn)
            wire.send(piece * 20)
            terminal.until(lambda drawn: " 60 % " in drawn)
            if how == "key":
                terminal.press(b"q")
            else:
                terminal.process.terminate()
            assert terminal.end() == (0 if how == "key" else 143)
        finally:
            if terminal.process.poll() is None:
                terminal.process.kill()
                terminal.process.wait()
    assert "\x1b[?1049l" in terminal.drawn
