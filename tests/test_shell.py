"""The interactive command line: commands side by side, piped in, completed, and on a real terminal."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from pfsd.client import Client
from pfsd.shell import Job, Shell, history_path, local_paths, split_unfinished
from tests.fake_daemon import Reader, Writer, fake_daemon, request
from tests.harness import PATIENCE_SECONDS, Daemon

CLIENT = Path(__file__).parent.parent / "client.py"


def address(daemon: Daemon) -> str:
    return f"127.0.0.1:{daemon.port}"


def touch(*names: str) -> None:
    """Make empty files, below the current directory."""
    for name in names:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).touch()


@pytest.fixture
async def shell(shared_daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shell]:
    """A shell in an empty directory, on an empty store."""
    monkeypatch.chdir(tmp_path)
    async with await Client.connect(address(shared_daemon)) as client:
        if files := [file.id async for file in client.list()]:
            await client.delete(*files)
    yield Shell(partial(Client.connect, address(shared_daemon)))


# --- commands -----------------------------------------------------------------------------------


async def test_commands_run_and_say_so(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    touch("a b")
    assert await shell.handle("  put 'a b' --name c")
    assert await shell.wait()
    out, err = capsys.readouterr()
    assert re.fullmatch(r"\[1\] started: put 'a b' --name c\nc: stored as \d+, 0 B, 0 B kept\n\[1\] done: .*\n", out)
    assert err == "" and shell.jobs == []


async def test_commands_run_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = asyncio.Barrier(2)

    async def script(reader: Reader, writer: Writer) -> None:
        tag, _ = await request(reader)
        await both.wait()  # reached only if both are under way
        writer.write(tag + b" STAT one=1\n" + tag + b" STAT two=2\n" + tag + b" OK stats\n")

    async with fake_daemon(tmp_path, script) as where:
        shell = Shell(partial(Client.connect, where))
        await shell.handle("stats")
        await shell.handle("stats")
        assert [job.number for job in shell.jobs] == [1, 2]
        await shell.handle("wait")
        assert shell.jobs == [] and not shell.failed
    out = capsys.readouterr().out
    assert out.startswith("[1] started: stats\n[2] started: stats\n")
    assert out.count("one  1\ntwo  2\n[") == 2  # in one block


async def test_failures_are_shown_and_remembered(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    await shell.handle("stat nothing")
    await shell.wait()
    out, err = capsys.readouterr()
    assert out == "[1] started: stat nothing\n[1] failed: stat nothing\n"
    assert err == "pfs: not-found: nothing: no file has this name\n"
    assert shell.failed


@pytest.mark.parametrize(
    "line",
    [
        "frob",
        "put -",
        "put - --name x",
        "get a -",
        "list 'open",
        "cancel",
        "cancel 1",
        "wait x",
        "jobs 1",
        "help x",
    ],
)
async def test_wrong_lines(shell: Shell, capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert await shell.handle(line)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("pfs: usage: ") and err.count("\n") == 1
    assert shell.failed and shell.jobs == []


@pytest.mark.parametrize("line", ["", "   ", "# comment", "  # list"])
async def test_empty_lines_and_comments(shell: Shell, capsys: pytest.CaptureFixture[str], line: str) -> None:
    assert await shell.handle(line)
    assert capsys.readouterr() == ("", "") and not shell.failed


async def test_help(shell: Shell, capsys: pytest.CaptureFixture[str]) -> None:
    await shell.handle("help")
    out = capsys.readouterr().out
    assert all(f"\n{word} " in f"\n{out}" for word in ("put", "get", "exit", "jobs", "cancel", "wait", "quit"))
    await shell.handle("help put")
    assert "--replace" in capsys.readouterr().out
    await shell.handle("put --help")
    assert "--replace" in capsys.readouterr().out
    await shell.handle("help cancel")
    assert "cancel N" in capsys.readouterr().out
    assert not shell.failed and shell.jobs == []


async def stalled_download(reader: Reader, writer: Writer, sent: asyncio.Event) -> None:
    while line := await reader.readline():
        tag, verb = line.split()[:2]
        if verb == b"stat":
            file = b"id=1 status=ready size=9 stored=9 parts=1 created=1 name=n"
            writer.write(tag + b" FILE " + file + b"\n" + tag + b" OK stat id=1 etag=e-1\n")
        else:
            writer.write(tag + b" DATA 3\nabc")
            sent.set()


async def test_jobs_and_cancel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sent = asyncio.Event()
    home = tmp_path / "home"
    home.mkdir()
    async with fake_daemon(tmp_path, partial(stalled_download, sent=sent)) as where:
        shell = Shell(partial(Client.connect, where))
        await shell.handle(f"get n {home}/target")
        await sent.wait()
        capsys.readouterr()
        await shell.handle("jobs")
        assert capsys.readouterr().out.startswith(f"[1] running: get n {home}/target")
        await shell.handle("cancel 1")
        await shell.wait()
        assert capsys.readouterr().out == f"[1] cancelled: get n {home}/target\n"
    assert os.listdir(home) == [] and shell.failed


def test_how_far_a_job_is() -> None:
    job = Job(1, "put a b")
    assert job.progress() == ""
    with job.watch("a") as one, job.watch("b") as two:
        one(3, 9)
        two(2048, None)
        assert job.progress() == "3 B of 9 B (33 %), 2.0 KiB"
        one(9, 9)
        assert job.progress() == "9 B of 9 B (100 %), 2.0 KiB"
    assert job.progress() == ""


async def test_wait_for_one(tmp_path: Path) -> None:
    sent = asyncio.Event()
    async with fake_daemon(tmp_path, partial(stalled_download, sent=sent)) as where:
        shell = Shell(partial(Client.connect, where))
        await shell.handle(f"get n {tmp_path}/target")
        await sent.wait()
        await shell.handle("stat n")
        await shell.handle("wait 2")
        assert [job.number for job in shell.jobs] == [1]
        await shell.give_up()
        assert shell.jobs == []


async def test_quit_leaves_and_exit_stops_the_daemon(daemon: Daemon, capsys: pytest.CaptureFixture[str]) -> None:
    shell = Shell(partial(Client.connect, address(daemon)))
    assert not await shell.handle("quit")
    assert not await shell.handle("exit")
    await asyncio.to_thread(daemon.wait)
    assert capsys.readouterr().out == "[1] started: exit\nthe daemon has stopped\n[1] done: exit\n"
    assert await shell.handle("exit")  # fails: one may go on
    assert "cannot-connect" in capsys.readouterr().err
    await asyncio.to_thread(daemon.start)


async def test_exit_waits_for_commands_that_have_requests_to_come(daemon: Daemon, tmp_path: Path) -> None:
    shell = Shell(partial(Client.connect, address(daemon)))
    paths = [tmp_path / f"{number}" for number in range(100)]
    for path in paths:
        path.touch()
    await shell.handle(f"put {' '.join(map(str, paths))}")
    assert not await shell.handle("exit")
    assert not shell.failed
    await asyncio.to_thread(daemon.wait)
    await asyncio.to_thread(daemon.start)
    assert daemon.ask(b"list\n")[-1].startswith(b"OK list files=100 ")


async def test_output_of_a_command_that_cannot_be_written_ends_the_shell(
    shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    await shell.handle("list")
    full = open("/dev/full", "w")  # noqa: SIM115, ASYNC230
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        await shell.wait()
        with pytest.raises(OSError, match="No space left"):
            await shell.handle("# the next line")
    os.dup2(os.open(os.devnull, os.O_WRONLY), full.fileno())
    full.close()


async def test_exit_asks_when_commands_are_running(tmp_path: Path) -> None:
    sent = asyncio.Event()
    questions = []

    async def no(question: str) -> str:
        questions.append(question)
        return "n"

    async with fake_daemon(tmp_path, partial(stalled_download, sent=sent)) as where:
        shell = Shell(partial(Client.connect, where), ask=no)
        await shell.handle(f"get n {tmp_path}/target")
        await sent.wait()
        assert await shell.handle("exit")
        assert len(questions) == 1 and len(shell.jobs) == 1
        await shell.give_up()


# --- completion ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ([], 0, "")),
        ("ge", ([], 0, "ge")),
        ("get ", (["get"], 4, "")),
        ("get  a", (["get"], 5, "a")),
        ("get 'a b", (["get"], 4, "a b")),
        ("get 'a b' c", (["get", "a b"], 10, "c")),
        (r"get a\ b", (["get"], 4, "a b")),
        ("get \"it's", (["get"], 4, "it's")),
        ("get a\\", (["get"], 4, "a")),
    ],
)
def test_a_line_being_typed(text: str, expected: object) -> None:
    assert split_unfinished(text) == expected


async def test_completion(shell: Shell, shared_daemon: Daemon) -> None:
    async with await Client.connect(address(shared_daemon)) as client:
        for name in ("stored one", "stored*", "other"):
            await client.put(b"", name)
    touch("local/file", "lost", ".hidden")

    async def words(text: str) -> list[str]:
        return (await shell.complete(text))[1]

    assert await words("st") == ["stat", "stats"]
    assert await words("ca") == ["cancel"]
    assert await words("help de") == ["delete"]
    assert await words("put --r") == ["--replace", "--resume"]
    assert await words("rm x oth") == ["other"]
    assert await words("get --o") == ["--offset"]
    assert await words("put l") == ["local/", "lost"]
    assert await words("put local/") == ["local/file"]
    assert await words("put ") == ["local/", "lost"]
    assert await words("put .h") == [".hidden"]
    assert await shell.complete("get sto") == (4, ["'stored one'", "'stored*'"])
    assert await words("get 'stored*") == ["'stored*'"]  # a star is itself
    assert await words("get other l") == ["local/", "lost"]
    assert await words("delete x oth") == ["other"]
    assert await words("list x") == []
    assert await words("frob x") == []
    assert local_paths("none/") == set()


async def test_completion_without_a_daemon(tmp_path: Path) -> None:
    shell = Shell(partial(Client.connect, f"unix:{tmp_path}/none"))
    assert await shell.complete("get x") == (4, [])


def test_the_history_is_private(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = history_path()
    assert path == tmp_path / "state" / "pfsd" / "history"
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    monkeypatch.setenv("XDG_STATE_HOME", "/dev/null")
    assert history_path() is None


# --- lines from a pipe --------------------------------------------------------------------------


def piped(daemon: Daemon, lines: str, *options: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, str(CLIENT), "--server", address(daemon), *options],
        input=lines,
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        cwd=daemon.home,
    )
    return done.returncode, done.stdout, done.stderr


def test_lines_from_a_pipe(shared_daemon: Daemon) -> None:
    (shared_daemon.home / "piped").write_text("x" * 5000)
    code, out, err = piped(shared_daemon, "put piped\nwait\nget piped back\nlist piped\nquit\nfrob\n")
    assert (code, err) == (0, "")
    assert (shared_daemon.home / "back").read_text() == "x" * 5000
    blocks = re.findall(r"^\[(\d)\] (started|done)", out, re.MULTILINE)
    assert blocks[:2] == [("1", "started"), ("1", "done")]
    assert sorted(blocks[2:]) == [("2", "done"), ("2", "started"), ("3", "done"), ("3", "started")]
    assert re.search(r"^\d+\t5000\tpiped\n\[3\] done: list piped$", out, re.MULTILINE)


def test_a_failure_in_a_pipe_shows_in_the_exit_code(shared_daemon: Daemon) -> None:
    assert piped(shared_daemon, "ping\nfrob\n")[0] == 1
    assert piped(shared_daemon, "stat none\nping")[0] == 1  # the last line needs no end
    assert piped(shared_daemon, "")[0] == 0


def test_json_lines_from_a_pipe(shared_daemon: Daemon) -> None:
    code, out, err = piped(shared_daemon, "stat none\nquit\n", "--json")
    assert (code, err) == (1, "")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [(line["type"], line["job"]) for line in lines] == [("started", 1), ("error", 1), ("failed", 1)]


def test_quiet_lines_from_a_pipe(shared_daemon: Daemon) -> None:
    assert piped(shared_daemon, "ping\nlist none\nquit\n", "--quiet") == (0, "", "")


# --- a terminal ---------------------------------------------------------------------------------


class Terminal:
    """The client on a pseudo-terminal."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self._master = master
        self.process = process
        self.screen = b""

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def expect(self, text: str) -> None:
        """Wait until this is on the screen, after what was expected before."""
        until = time.monotonic() + PATIENCE_SECONDS
        while (found := self.screen.find(text.encode())) < 0:
            ready, _, _ = select.select([self._master], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"{text!r} never came: {self.screen!r}"
            try:
                data = os.read(self._master, 4096)
            except OSError:
                data = b""
            assert data, f"the client ended before {text!r}: {self.screen!r}"
            if b"\x1b[6n" in data:  # asked where the cursor is
                os.write(self._master, b"\x1b[1;1R")
            self.screen += data
        self.screen = self.screen[found + len(text) :]


@contextmanager
def terminal(daemon: Daemon, *options: str) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    environ = {key: value for key, value in os.environ.items() if not key.startswith("PFSD_")}
    process = subprocess.Popen(
        [sys.executable, str(CLIENT), "--server", address(daemon), *options],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=daemon.home,
        start_new_session=True,
        env=environ | {"XDG_STATE_HOME": str(daemon.home / "state"), "TERM": "xterm"},
    )
    os.close(slave)
    try:
        yield Terminal(master, process)
        assert process.wait(PATIENCE_SECONDS) is not None
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_a_terminal(shared_daemon: Daemon) -> None:
    pytest.importorskip("prompt_toolkit")
    with terminal(shared_daemon) as client:
        client.expect("pfsd>")
        client.type("ping\r")
        client.expect("[1] done: ping")
        client.expect("pfsd>")  # keys pressed between two prompts may be lost
        client.type("thrown away")
        client.expect("away")
        client.type("\x03")  # Ctrl-C
        client.expect("pfsd>")
        client.type("pi\t")  # Tab completes
        client.expect("ng")
        client.type("\r")
        client.expect("[2] done: ping")
        client.expect("pfsd>")
        client.type("frob\r")
        client.expect("there is no command frob")
        client.expect("pfsd>")
        client.type("\x04")  # Ctrl-D
        assert client.process.wait(PATIENCE_SECONDS) == 0
    history = shared_daemon.home / "state" / "pfsd" / "history"
    assert [line for line in history.read_text().splitlines() if line.startswith("+")] == ["+ping", "+frob"]
    assert history.stat().st_mode & 0o777 == 0o600


def test_ctrl_c_gives_up_what_quit_waits_for(shared_daemon: Daemon) -> None:
    pytest.importorskip("prompt_toolkit")
    os.mkfifo(shared_daemon.home / "fifo")
    with terminal(shared_daemon) as client:
        client.expect("pfsd>")
        client.type("put fifo\r")
        client.expect("[1] started")
        client.expect("pfsd>")
        client.type("quit\r")
        client.expect("waiting for 1 commands")
        client.process.send_signal(signal.SIGINT)
        client.expect("[1] cancelled: put fifo")
        assert client.process.wait(PATIENCE_SECONDS) == 130
    shared_daemon.wait_until("requests", "1")
    assert shared_daemon.ask(b"list fifo\n") == [b"OK list files=0 size=0 stored=0"]
