"""Runs the pages of the documents as their readers would: from top to bottom, in a directory like a fresh clone.

What is run are the blocks marked

- `sh`: a script; each command in it has to succeed,
- `console`: commands behind `$ `, going on behind `> `, and all they print; each has to succeed, unless an
  `echo $?` behind it tells the exit code,
- `python`: code, or statements behind `>>> ` and what they print,
- `transcript`: a conversation through `nc`, as docs/protocol.md explains it,

and the commands in comments `<!-- given ... -->`: they make what the page takes for granted. A page keeps one shell,
one Python and one store from its beginning to its end. A daemon runs already, unless the page starts one itself; one
that is typed as in a terminal of its own stays, and what follows waits until it is ready.

In output, `…` stands for anything within a line, a line of its own for any lines, and `<name>` for a word, the same one
wherever the name comes again. Of addresses only the port is what the reader types: each page has a loopback address of
its own, so pages run side by side and beside whatever else listens on this machine.
"""

from __future__ import annotations

import configparser
import doctest
import itertools
import json
import os
import random
import re
import select
import shutil
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import psutil

from tests.documents import GIVEN, ROOT, Block, blocks
from tests.replay import Replay
from tests.wire import Wire

PATIENCE_SECONDS = 30.0
PORT = 7373
COMMANDS = ("sh", "console", "python", GIVEN)
RUN = (*COMMANDS, "transcript")
#: Marks of what nobody types.
SHOWN = ("", "text", "yaml", "json", "jsonl", "hexdump", "ini", "toml", "html", "http", "promql", "js", "javascript")

_NEVER_COPIED = shutil.ignore_patterns(".*", "store", "build", "dist", "*.egg-info", "tests", "bench")
_SETTING = r"(?:\w+=\S+ )*"
_DAEMON = re.compile(rf"^({_SETTING})((?:pfsd|python server\.py)(?: --config \S+)?(?: serve)?)\s*&?\s*(#.*)?$", re.M)
_SPAWN = re.compile(r"\bpfs\b.* --spawn\b|\bclient\.py\b.* --spawn\b")
#: What would change the machine of who runs the tests, maybe as root: users, services, packages, files of the system.
_ON_THE_MACHINE = re.compile(
    r"(^|[;&|(]|\$)\s*(sudo|useradd|systemctl|apt|apt-get|docker|install)\s|>\s*/(etc|opt|usr|var|srv)/|\s/opt/"
)
_SPECIAL = re.compile(r"…|<(\w+)>")
#: What an installer of packages makes of an entry point.
_PROGRAM = """\
import sys
from {0} import {1}
if __name__ == "__main__":
    sys.exit({1}())
"""
#: In the place of the daemon's command: it goes on in the background, and what it says before it is ready is shown.
_SHELL = r"""
_daemon() {
    local line log=$_home/daemon-$((++_daemons)).log
    exec 8< <(exec env "$@" 2>"$log")
    while IFS= read -r -u 8 line; do
        printf '%s\n' "$line"
        [[ $line != 'pfsd ready on '* ]] || ((--_addresses)) || return 0
    done
    cat "$log" >&2
    wait $!
}
_note() {
    local code=$?
    [[ $BASH_COMMAND == _* || $BASH_COMMAND == source* || $code == 141 ]] || _failed+="exit code $code: $BASH_COMMAND; "
}
_as_before() { return "$_status"; }
_status=0
trap _note ERR
while IFS= read -r -u 9 _script; do
    _failed=
    _as_before
    source "$_script" </dev/null
    _status=$?
    printf '\n%s %s %s\n' "$_end" "$_status" "${_failed//$'\n'/ }"
done
"""


def is_page(path: Path) -> bool:
    """Whether a document shows commands, so that it is run as a page."""
    return any(block.mark in COMMANDS and not block.not_run for block in blocks(path))


class Done(NamedTuple):
    """What became of a command: its output, its exit code, and which commands in it failed."""

    output: str
    code: int
    failed: str


class Shell:
    """A bash that lives as long as its page: directory, variables and functions stay from script to script."""

    def __init__(self, home: Path, directory: Path, environ: dict[str, str]) -> None:
        self._home = home
        self._end = f"end-{random.getrandbits(64):x}"
        self._scripts, ours = os.pipe()
        self._numbers = itertools.count(1)
        start = f"exec 9<&{self._scripts}; _end={self._end}; _home={home}{_SHELL}"
        self._output, terminal = _terminal()
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-c", start],
            stdin=subprocess.DEVNULL,
            stdout=terminal,
            stderr=terminal,
            cwd=directory,
            env=environ,
            pass_fds=[self._scripts],
            start_new_session=True,
        )
        os.close(self._scripts)
        os.close(terminal)
        self._to_run = os.fdopen(ours, "w")

    @property
    def directory(self) -> str:
        """Where it is."""
        return os.readlink(f"/proc/{self._process.pid}/cwd")

    def run(self, script: str, addresses: int = 1) -> Done:
        """Run a script to its end; a daemon in it stays, once it has told so many addresses."""
        path = self._home / f"script-{next(self._numbers)}"
        script = _DAEMON.sub(lambda found: f"_addresses={addresses} _daemon {found[1]}{found[2]}", script)
        path.write_text(script + "\n")
        print(path, file=self._to_run, flush=True)
        return self._received(script)

    def _received(self, script: str) -> Done:
        received = b""
        until = time.monotonic() + PATIENCE_SECONDS
        while not (end := re.search(rb"\n%b (\d+) (.*)\n" % self._end.encode(), received)):
            ready, _, _ = select.select([self._output], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"this does not end: {script}\n{received.decode('utf-8', 'replace')}"
            try:
                received += os.read(self._output, 1 << 16)
            except OSError:  # nobody has the terminal any more
                raise AssertionError(f"the shell has ended: {script}\n{received.decode('utf-8', 'replace')}") from None
        return Done(received[: end.start()].decode("utf-8", "replace"), int(end[1]), end[2].decode())

    def close(self) -> None:
        """End it; what it started in the background stays."""
        self._to_run.close()
        self._process.kill()
        self._process.wait()
        os.close(self._output)


class Python:
    """A Python that lives as long as its page."""

    def __init__(self, home: Path, directory: Path, environ: dict[str, str]) -> None:
        with (home / "python.log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("page_python.py")],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=directory,
                env=environ,
                text=True,
                start_new_session=True,
            )

    def run(self, code: str, place: str, mode: str, directory: str) -> Done:
        """Run code as a whole (mode `exec`) or as a statement at the prompt (`single`)."""
        assert self._process.stdin is not None and self._process.stdout is not None
        request = {"code": code, "place": place, "mode": mode, "directory": directory}
        print(json.dumps(request), file=self._process.stdin, flush=True)
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE_SECONDS)
        assert ready, f"{place}: this does not end:\n{code}"
        answer = json.loads(self._process.stdout.readline())
        return Done(answer["printed"], int(answer["failed"]), code if answer["failed"] else "")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


class Page:
    """Runs the blocks of a page below `home`. Leaves no process behind."""

    def __init__(self, path: Path, home: Path) -> None:
        self._blocks = [block for block in blocks(path) if block.mark.split(" ")[0] in RUN and not block.not_run]
        home.mkdir(exist_ok=True)
        self._home = home
        self._clone = home / "pfsd"
        self._address = _own_address()
        self._values: dict[str, str] = {}
        shutil.copytree(ROOT, self._clone, ignore=_NEVER_COPIED)
        settings = self._clone / "config.yaml"
        settings.write_text(self._here(settings.read_text("utf-8")))
        self._environ = self._surroundings()
        self._shell = Shell(home, self._clone, self._environ)
        self._python: Python | None = None

    def _surroundings(self) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PFSD_", "XDG_"))}
        folder = self._home / "bin"
        _write_programs(folder)
        (self._home / "home").mkdir()
        found = kept | {
            "PATH": f"{folder}:{kept.get('PATH', os.defpath)}",
            "TERM": "dumb",
            "HOME": str(self._home / "home"),
            "PYTHONPATH": str(self._clone),
            "PFSD_SERVER": f"{self._address}:{PORT}",
            "PFSD_MD5": "hashlib",  # loading the compiler would double the time that a daemon takes to start
            "PFSD_PROCESSES": "2",
            "PFSD_TESTED_PAGE": str(self._home),
        }
        if not any(re.search(r"\blisten:", line) for block in self._blocks for line in block.lines):
            found["PFSD_LISTEN"] = found["PFSD_SERVER"]
        return found

    def __enter__(self) -> Page:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._shell.close()
        if self._python is not None:
            self._python.close()
        left = _stopped(str(self._home))
        words = "".join(log.read_text("utf-8", "replace") for log in sorted(self._home.glob("daemon-*.log")))
        if error is not None:
            print(words)
            return
        assert not left, f"these do not end by SIGTERM: {left}"
        assert "Traceback" not in words, words

    # --- running ---

    def run(self) -> None:
        """Do all that the page says, in its order."""
        if not any(_starts_daemon(block) for block in self._blocks):
            self._check(self._shell.run("pfsd --config config.yaml"), "the daemon that is given")
        for block in self._blocks:
            self.play(block)

    def play(self, block: Block) -> None:
        """Do what one block says."""
        for line in block.lines:
            assert not _ON_THE_MACHINE.search(line), f"{block.place} changes the machine, so it must not be run: {line}"
        if block.mark in ("sh", GIVEN):
            done = self._shell.run("set -o pipefail\n" + self._typed(block.lines))
            self._shell.run("set +o pipefail")
            self._check(done, block.place)
        elif block.mark == "console":
            self._run_console(block)
        elif block.mark == "python":
            self._run_python(block)
        else:
            Replay(self._connect, self._packs, self._values).play(block)

    def _run_console(self, block: Block) -> None:
        code = 0
        for place, command, expected in _exchanges(block):
            tells_code = command == "echo $?"
            assert not code or tells_code, f"{place}: the command before this one failed with {code}, which no one sees"
            count = sum(line.startswith("pfsd ready on ") for line in expected)
            done = self._shell.run(self._typed([command]), max(count, 1))
            code = done.code
            self._compare(expected, done.output, f"{place}: {command}")
        assert not code, f"{block.place}: the last command failed with {code}, which no one sees"

    def _run_python(self, block: Block) -> None:
        self._python = self._python or Python(self._home, self._clone, self._environ)
        if not any(line.startswith(">>> ") for line in block.lines):
            code = self._typed(block.lines) + "\n"
            self._check(self._python.run(code, block.place, "exec", self._shell.directory), block.place)
            return
        for example in doctest.DocTestParser().get_examples("\n".join(block.lines) + "\n"):
            place = f"{block.path.name}:{block.number + example.lineno + 1}"
            done = self._python.run(self._typed([example.source]), place, "single", self._shell.directory)
            expected = re.sub(r"^Traceback .*\n(?:  .*\n|…\n)*", "…\n", example.want)
            self._compare(expected.splitlines(), done.output, f"{place}: {example.source}")

    def _check(self, done: Done, place: str) -> None:
        assert not done.failed and not done.code, f"{place}: {done.failed or done.code}\n{done.output}"

    def _compare(self, expected: Sequence[str], output: str, place: str) -> None:
        shown = output.replace(self._address, "127.0.0.1").rstrip("\n")
        found = re.fullmatch(self._pattern(expected), shown + "\n" if shown else "")
        wanted = "\n".join(expected)
        assert found, f"{place}\n--- the page says\n{wanted}\n--- what came\n{shown}"
        self._values.update(found.groupdict())

    def _pattern(self, expected: Sequence[str]) -> str:
        pattern, seen = "", set(self._values)
        for line in expected:
            if line in ("…", "..."):
                pattern += "(?:.*\n)*?"
                continue
            at = 0
            for special in _SPECIAL.finditer(line):
                pattern += re.escape(line[at : special.start()])
                at = special.end()
                name = special[1]
                if name is None:
                    pattern += ".*?"
                elif name in self._values:
                    pattern += re.escape(self._values[name])
                else:
                    pattern += f"(?P={name})" if name in seen else f"(?P<{name}>\\S+)"
                    seen.add(name)
            pattern += re.escape(line[at:]) + "\n"
        return pattern

    # --- what the reader's machine has ---

    def _typed(self, lines: Sequence[str]) -> str:
        known = re.sub(r"<(\w+)>", lambda found: self._values.get(found[1], found[0]), "\n".join(lines))
        return self._here(known)

    def _here(self, text: str) -> str:
        """With the addresses that are this page's."""
        text = text.replace("DNS:store.example", f"IP:{self._address}")
        return re.sub(r"127\.0\.0\.1\b|\b0\.0\.0\.0\b|\blocalhost\b|\bstore\.example\b", self._address, text)

    def _connect(self) -> Wire:
        return Wire((self._address, PORT))

    def _packs(self) -> list[Path]:
        return sorted(self._home.rglob("*.pack"))


def _terminal() -> tuple[int, int]:
    """Both ends of a terminal that shows no more than lines: programs print what they would for a person."""
    ours, theirs = os.openpty()
    settings = termios.tcgetattr(theirs)
    settings[1] &= ~termios.OPOST  # LF stays LF
    termios.tcsetattr(theirs, termios.TCSANOW, settings)
    termios.tcsetwinsize(theirs, (50, 120))
    return ours, theirs


def _starts_daemon(block: Block) -> bool:
    lines = "\n".join(line.removeprefix("$ ") for line in block.lines)
    return block.mark != "transcript" and bool(_DAEMON.search(lines) or _SPAWN.search(lines))


def _exchanges(block: Block) -> Iterator[tuple[str, str, list[str]]]:
    """The commands of a console with their places and all they print."""
    command, expected, at = "", [], 0
    assert block.lines and block.lines[0].startswith("$ "), f"{block.place}: a console begins with a command"
    for number, line in enumerate(block.lines, block.number + 1):
        if line.startswith("$ "):
            if at:
                yield f"{block.path.name}:{at}", command, expected
            command, expected, at = line[2:], [], number
        elif line.startswith("> ") and not expected:
            command += "\n" + line[2:]
        else:
            expected.append(line)
    yield f"{block.path.name}:{at}", command, expected


def _own_address() -> str:
    """A loopback address on which nobody listens at pfsd's port."""
    for _ in range(100):
        address = "127." + ".".join(str(random.randint(1, 254)) for _ in range(3))
        with socket.socket() as candidate:
            try:
                candidate.bind((address, PORT))
            except OSError:
                continue
            return address
    raise AssertionError(f"some program has port {PORT} on all addresses")


def _write_programs(folder: Path) -> None:
    """`python` and the commands that an installed pfsd brings, which run the pfsd that is found first."""
    folder.mkdir()
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    entry_points = setup["options.entry_points"]["console_scripts"].split("\n")
    for name, module, function in (re.split(r" = |:", line) for line in entry_points if line):
        program = folder / name
        program.write_text(f"#!{sys.executable}\n{_PROGRAM.format(module, function)}")
        program.chmod(0o755)
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    program.chmod(0o755)


def _stopped(mark: str) -> list[psutil.Process]:
    """End the processes that a page has left; returns those that did not obey."""
    left = [process for process in psutil.process_iter() if _is_of(process, mark)]
    for process in left:
        if process.is_running():
            process.terminate()
    _, stubborn = psutil.wait_procs(left, PATIENCE_SECONDS)
    for process in stubborn:
        process.kill()
    return stubborn


def _is_of(process: psutil.Process, mark: str) -> bool:
    try:
        return process.environ().get("PFSD_TESTED_PAGE") == mark
    except (psutil.AccessDenied, psutil.NoSuchProcess):
        return False
