"""A daemon of the tests' own: the real `server.py` as a process, in a directory of its own."""

from __future__ import annotations

import hashlib
import os
import random
import re
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

import psutil
import yaml

from tests.wire import Wire, code, fields

SERVER = Path(__file__).parent.parent / "server.py"
#: A condition is looked at this often: what is waited for needs the processor, too.
POLL_SECONDS = 0.005
#: Far more than a start or a stop takes; a test that needs it has failed.
PATIENCE_SECONDS = 30.0
PART = 64 << 10

DEFAULTS: dict[str, object] = {
    "listen": ["127.0.0.1:0", "unix:socket"],
    "path": "store",
    "roots": ["root"],
    "processes": 2,
    "memory": "64MiB",
    "part_size": PART,
    "md5": "hashlib",  # loading the compiler would double the time that a daemon takes to start
    "log_level": "debug",
}


class Daemon:
    """A daemon below `home`: `root` is the directory it may read and write, `store` is its store.

    As a context manager it leaves no process behind: neither itself nor a child, which is asserted.
    """

    def __init__(self, home: Path, **overrides: object) -> None:
        self.home = home
        self.root = home / "root"
        self.store = home / "store"
        self.socket_path = home / "socket"
        self.root.mkdir(exist_ok=True)
        self.port = 0
        self.http_port = 0
        self.ready_lines: list[str] = []
        self.process: subprocess.Popen[bytes] | None = None
        self.environ: dict[str, str] = {}
        #: A program that starts the daemon in its own place, such as prlimit or setpriv, with its arguments.
        self.starter: list[str] = []
        #: Python that runs in the daemon before anything else, to change what no setting does.
        self.prelude = ""
        self._family: list[psutil.Process] = []
        self._settings = dict(DEFAULTS)
        self.config(**overrides)

    # --- configuration ---

    def config(self, **overrides: object) -> Path:
        """Change settings for the next start; returns the path of the file. None removes a key."""
        self._settings.update(overrides)
        path = self.home / "config.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in self._settings.items() if value is not None}))
        return path

    # --- lifetime ---

    @property
    def pid(self) -> int:
        """The process id of the running daemon."""
        assert self.process is not None
        return self.process.pid

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens on TCP."""
        return "127.0.0.1", self.port

    @property
    def log(self) -> str:
        """All that every start so far wrote to standard error."""
        path = self.home / "stderr"
        return path.read_text("utf-8", "replace") if path.exists() else ""

    def spawn(self) -> subprocess.Popen[bytes]:
        """Start the process and do not wait."""
        with (self.home / "stderr").open("ab") as log:
            self.process = subprocess.Popen(
                [*self.starter, sys.executable, *self._program(), "--config", str(self.home / "config.yaml")],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                cwd=self.home,
                env=_environ() | self.environ,
            )
        return self.process

    def _program(self) -> list[str]:
        if not self.prelude:
            return [str(SERVER)]
        run = "from pfsd.cli import server_main; sys.exit(server_main())"
        return ["-c", f"import sys; sys.path[0] = {str(SERVER.parent)!r}\n{self.prelude}\n{run}"]

    def start(self) -> None:
        """Start it and wait until it is ready."""
        process = self.spawn()
        assert process.stdout is not None
        addresses = self._settings["listen"]
        count = (len(addresses) if isinstance(addresses, list) else 1) + bool(self._settings.get("http"))
        self.ready_lines = lines_of(process.stdout, count)
        if len(self.ready_lines) != count:
            self.process = None  # nobody needs to stop it, and that it could not be stopped would hide why
            process.kill()
            process.communicate()
            raise AssertionError(f"not ready: {self.ready_lines}\n{self.log}")
        for line in self.ready_lines:
            if found := re.fullmatch(r"pfsd ready on .*:(\d+)", line):
                self.port = int(found[1])
            elif found := re.fullmatch(r"pfsd http on .*:(\d+)", line):
                self.http_port = int(found[1])
        self._family = []
        self.note_family()

    def start_fails(self) -> tuple[int, str]:
        """Start it and wait for its end: the exit code, and what it said on standard error."""
        before = len(self.log)
        process = self.spawn()
        out, _ = process.communicate(timeout=PATIENCE_SECONDS)
        assert out == b"", "a daemon that cannot start is not ready"
        self.process = None
        return process.returncode, self.log[before:]

    def stop(self, code: int = 0) -> None:
        """End it with SIGTERM and check its exit code."""
        assert self.process is not None
        self.note_family()
        self.process.send_signal(signal.SIGTERM)
        self.wait(code)

    def wait(self, code: int = 0) -> None:
        """Wait until it has ended by itself, and check its exit code and that no child is left."""
        assert self.process is not None
        process, self.process = self.process, None
        assert process.wait(PATIENCE_SECONDS) == code, self.log
        if process.stdout is not None:
            process.stdout.close()
        self._assert_gone()

    def kill(self) -> None:
        """End it as a crash would."""
        assert self.process is not None
        self.note_family()
        self.process.kill()
        self.wait(-signal.SIGKILL)

    def kill_all(self) -> None:
        """End it and all of its processes, as `kill -9` of its group or a crash of the machine would."""
        assert self.process is not None
        self.note_family()
        self._signal_all(signal.SIGKILL)
        self.wait(-signal.SIGKILL)

    def kill_alone(self) -> list[psutil.Process]:
        """End it as a crash would, and do not wait for its processes: they are the caller's now."""
        assert self.process is not None
        self.note_family()
        orphans = [process for process in self._family if process.pid != self.pid]
        self._family = []
        self.process.kill()
        self.wait(-signal.SIGKILL)
        return orphans

    def freeze(self) -> None:
        """Let it and all of its processes stand still, no call of the system under way; `kill_all` works on them."""
        self.note_family()
        self._signal_all(signal.SIGSTOP)
        wait_for(
            lambda: all(stands_still(process.pid) for process in self._family),
            lambda: f"these do not stop: {self._family}",
        )

    def thaw(self) -> None:
        """Let them go on."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        for process in self._family:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def restart(self) -> None:
        """Stop and start it."""
        self.stop()
        self.start()

    def note_family(self) -> None:
        """Take note of the processes that have to be gone when the daemon is."""
        if self.process is not None and psutil.pid_exists(self.process.pid):
            known = {process.pid for process in self._family}
            daemon = psutil.Process(self.process.pid)
            family = [daemon, *daemon.children(recursive=True)]
            self._family += [process for process in family if process.pid not in known]

    def _assert_gone(self) -> None:
        left = [process for process in self._family if not has_ended(process.pid)]
        for process in left:
            process.kill()
        self._family = []
        assert not left, f"processes outlive the daemon: {left}\n{self.log}"

    def workers(self) -> list[psutil.Process]:
        """The I/O processes: those below the daemon that have its slab mapped."""
        found = []
        for child in psutil.Process(self.pid).children(recursive=True):
            try:
                if any("pfsd-slab" in region.path for region in child.memory_maps()):
                    found.append(child)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def resources(self) -> dict[str, int]:
        """How many processes it has, and what they hold together."""
        family = [psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)]
        return {
            "processes": len(family),
            "descriptors": sum(process.num_fds() for process in family),
            "threads": sum(process.num_threads() for process in family),
        }

    def __enter__(self) -> Daemon:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.log)
        if self.process is None:
            return
        crashed = self.process.poll()
        try:
            if crashed is None:
                self.stop()
        finally:
            if self.process is not None:
                self.process.kill()
                self.process.wait()
            if error is None and "Traceback" in self.log:
                print(self.log)
        assert crashed is None, f"the daemon ended by itself with {crashed}:\n{self.log}"

    # --- clients ---

    def connect(self, unix: bool = False) -> Wire:
        """A new connection."""
        return Wire(str(self.socket_path) if unix else self.address)

    def ask(self, request: bytes) -> list[bytes]:
        """The reply lines to one request on a connection of its own."""
        with self.connect() as wire:
            return wire.ask(request)

    def stats(self) -> dict[str, str]:
        """What `stats` says."""
        rows = self.ask(b"stats\n")
        assert rows[-1] == b"OK stats"
        return dict(row.decode().removeprefix("STAT ").split("=", 1) for row in rows[:-1])

    def wait_until(self, key: str, value: str) -> None:
        """Ask `stats` until `key` has this value: for what the daemon does after its answer, or without one."""
        self._poll(b"stats\n", lambda rows: f"STAT {key}={value}".encode() in rows)

    def wait_until_listed(self, files: int) -> None:
        """Ask `list` until it has so many rows."""
        self._poll(b"list\n", lambda rows: len(rows) == files + 1)

    def wait_until_packs(self, count: int) -> None:
        """Ask for anything until there are so many packs: those of what is gone go after the answer."""
        self._poll(b"ping\n", lambda rows: len(self.packs()) == count)

    def _poll(self, request: bytes, is_so: Callable[[list[bytes]], bool]) -> None:
        with self.connect() as wire:
            wait_for(lambda: is_so(wire.ask(request)), lambda: f"it never came to this: {wire.ask(request)}")

    def empty(self) -> None:
        """Wait until nobody else is connected, delete all files, and remove whatever is below the root."""
        self.wait_until("clients", "1")
        with self.connect() as wire:

            def is_empty() -> bool:  # one that is being given up, or read to its end, goes by itself
                rows = [fields(row) for row in wire.ask(b"list\n")[:-1]]
                for row in rows:
                    if row["status"] != "deleting":
                        assert code(wire.last(b"delete %b\n" % row["id"].encode())) in ("OK", "not-ready", "not-found")
                return not rows

            wait_for(is_empty)
        self.wait_until_packs(0)
        shutil.rmtree(self.root)
        self.root.mkdir()

    def packs(self) -> list[Path]:
        """The pack files in the store."""
        return sorted((self.store / "packs").rglob("*.pack"))

    def staged(self) -> list[Path]:
        """Files in the store that wait to become packs."""
        return [path for path in (self.store / "tmp").rglob("*") if path.is_file()]


def wait_for(is_so: Callable[[], bool], otherwise: Callable[[], str] = lambda: "it never came to this") -> None:
    """Look until it is so: for what tells nobody when it happens."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert time.monotonic() < until, otherwise()
        time.sleep(POLL_SECONDS)


def _environ() -> dict[str, str]:
    """Without settings of whoever runs the tests; I/O processes are to import this pfsd, not one that is installed."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PFSD_")}
    return kept | {"PYTHONPATH": str(SERVER.parent)}


def lines_of(stream: IO[bytes], count: int) -> list[str]:
    """`count` lines from a pipe, fewer when it ends or PATIENCE_SECONDS pass."""
    until = time.monotonic() + PATIENCE_SECONDS
    received = b""
    with selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        while received.count(b"\n") < count and selector.select(max(0.0, until - time.monotonic())):
            piece = os.read(stream.fileno(), 4096)
            if not piece:
                break
            received += piece
    return received.decode().splitlines()


def noise(size: int, seed: int = 0) -> bytes:
    """`size` bytes that no codec makes smaller; the same for the same seed."""
    return random.Random(seed).randbytes(size)


def etag(content: bytes, part_size: int = PART) -> str:
    """A file's etag as the protocol defines it, worked out from its content alone."""
    parts = [content[at : at + part_size] for at in range(0, len(content), part_size)]
    md5s = b"".join(hashlib.md5(part).digest() for part in parts)
    return f"{hashlib.md5(md5s).hexdigest()}-{len(parts)}"


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def stands_still(pid: int) -> bool:
    """Whether all threads of a process are stopped, or it has ended."""
    try:
        stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
    except (FileNotFoundError, ProcessLookupError):
        return not psutil.pid_exists(pid)
    return all(stat.rpartition(")")[2].split()[0] in "TZX" for stat in stats)


def has_ended(pid: int, patience: float = PATIENCE_SECONDS) -> bool:
    """Wait for the end of a process that is not ours; one that nobody has reaped yet has ended too."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([fd], [], [], patience)[0])
    finally:
        os.close(fd)
