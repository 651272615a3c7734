"""Races with paths, other users, hostile names: nothing outside is touched, nobody else is served, no log is forged."""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pfsd.errors import Denied, NotFound
from pfsd.paths import Roots, TargetFile
from pfsd.verbs import VERBS
from tests.faults.conftest import Count
from tests.harness import PART, Daemon, noise
from tests.test_logs import assert_is_log
from tests.wire import Wire, code

SEED = int(os.environ.get("PFSD_TEST_SEED", "0")) or random.randrange(1 << 32)
SWAPPER = Path(__file__).with_name("swapper.py")


# --- paths --------------------------------------------------------------------------------------


class Tree:
    """A root with an inside, an outside, and symlinks to it that take the place of what is inside."""

    def __init__(self, top: Path, root: Path) -> None:
        self.root, self.outside = root, top / "outside"
        self._beside = top / "root-link"
        for directory in (
            self.root / "sub/deep",
            self.root / "links",
            self.outside / "sub/deep",
            self.outside / "links",
        ):
            directory.mkdir(parents=True)
        for directory, content in ((self.root, b"inside"), (self.outside, b"secret")):
            for name in ("file", "sub/file", "sub/deep/file"):
                (directory / name).write_bytes(content)
        (self.root / "links/sub").symlink_to(self.outside / "sub")
        (self.root / "links/deep").symlink_to("../../outside/sub/deep")
        (self.root / "links/file").symlink_to(self.outside / "file")
        (self.root / "links/sub-file").symlink_to(self.outside / "sub/file")
        self._beside.symlink_to(self.outside)
        self.before = self.seen()

    def seen(self) -> dict[str, bytes | None]:
        """All that is outside."""
        paths = sorted(self.outside.rglob("*"))
        return {str(path): path.read_bytes() if path.is_file() else None for path in paths}

    @contextmanager
    def racing(self, swap_root: bool) -> Iterator[None]:
        """Somebody exchanges files, directories and the root itself for their symlinks meanwhile."""
        pairs = [
            ("sub", "links/sub"),
            ("sub/deep", "links/deep"),
            ("file", "links/file"),
            ("sub/file", "links/sub-file"),
        ]
        names = [str(self.root / name) for pair in pairs for name in pair]
        if swap_root:
            names += [str(self.root), str(self._beside)]
        swapper = subprocess.Popen(
            [sys.executable, str(SWAPPER), *names], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert swapper.stdout is not None and swapper.stdout.readline() == "racing\n"
            yield
        finally:
            rounds, _ = swapper.communicate()
        assert swapper.returncode == 0 and int(rounds) > 0, "there was no race"
        assert self.seen() == self.before, "something was written outside"


SOURCES = [b"file", b"sub/file", b"sub/deep/file", b"sub/../file", b"sub/deep/../file", b"./sub//deep/../../sub/file"]
TARGETS = [b"new", b"file", b"sub/new", b"sub/deep/new", b"sub/deep/../new", b"sub/file"]


@pytest.mark.promise("local")
@pytest.mark.parametrize("swap_root", [False, True], ids=["below the root", "and the root"])
def test_paths_in_a_race_never_lead_outside(in_memory: Path, count: Count, swap_root: bool) -> None:
    print("PFSD_TEST_SEED =", SEED)
    chance = random.Random(SEED)
    tree = Tree(in_memory, in_memory / "root")
    roots = Roots([tree.root], forbidden=[])
    outcomes: Counter[str] = Counter()
    with tree.racing(swap_root):
        wanted = count(250, 5000)
        while sum(outcomes.values()) < wanted or not (
            outcomes["inside"] and outcomes["written"] and outcomes["denied"]
        ):
            try:
                if chance.random() < 0.5:
                    fd = roots.open_source(chance.choice(SOURCES))
                    outcomes[os.read(fd, 10).decode()] += 1
                    os.close(fd)
                else:
                    replace = chance.random() < 0.9
                    with TargetFile.create(
                        roots, chance.choice(TARGETS), replace, kept_as=b"k" if replace else None
                    ) as file:
                        os.pwrite(file.fd, b"inside", 0)
                        file.commit()
                    outcomes["written"] += 1
            except (Denied, NotFound) as error:
                outcomes[error.code] += 1
            except Exception as error:
                outcomes[type(error).__name__] += 1
    print(outcomes)
    assert "secret" not in outcomes
    assert set(outcomes) <= {"inside", "written", "denied", "not-found", "Exists", "IoError", ""}


@pytest.mark.promise("local")
def test_puts_and_gets_in_a_race_never_lead_outside(idle_daemon: Daemon, count: Count) -> None:
    print("PFSD_TEST_SEED =", SEED)
    chance = random.Random(SEED)
    tree = Tree(idle_daemon.home, idle_daemon.root)
    idle_daemon.start()
    outcomes: Counter[str] = Counter()
    with idle_daemon.connect() as wire:
        assert code(wire.last(b"put - name=given size=6\ninside")) == "OK"
        with tree.racing(swap_root=True):
            wanted = count(60, 1000)
            while sum(outcomes.values()) < wanted or not (outcomes["put OK"] and outcomes["get OK"]):
                if chance.random() < 0.5:
                    said = code(wire.last(b"put %b name=x replace=yes\n" % chance.choice(SOURCES)))
                    outcomes[f"put {said}"] += 1
                    if said == "OK":
                        wire.send(b"get x -\n")
                        assert wire.frames()[0] == b"inside"
                else:
                    said = code(wire.last(b"get given %b replace=yes\n" % chance.choice(TARGETS)))
                    outcomes[f"get {said}"] += 1
    print(outcomes)


# --- other users --------------------------------------------------------------------------------


def _as_nobody(path: Path) -> bytes:
    """What a process of another user is told on a Unix socket."""
    ours, theirs = os.pipe()
    if not (child := os.fork()):
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            with Wire(str(path)) as wire:
                os.write(theirs, wire.rest())
        except BaseException as error:
            os.write(theirs, repr(error).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    with open(ours, "rb") as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
@pytest.mark.promise("local")
def test_another_user_is_turned_away_even_from_a_socket_open_to_all(in_memory: Path) -> None:
    in_memory.chmod(0o755)
    with Daemon(in_memory) as daemon:
        daemon.start()
        assert b"PermissionError" in _as_nobody(daemon.socket_path)
        daemon.socket_path.chmod(0o777)
        said = _as_nobody(daemon.socket_path)
        assert code(said) == "denied" and said.count(b"\n") == 1
        with daemon.connect(unix=True) as wire:
            assert wire.ask(b"ping\n") == [b"OK ping"]


@pytest.mark.promise("local")
def test_whatever_the_umask_all_of_the_store_is_its_owners(idle_daemon: Daemon) -> None:
    before = os.umask(0)
    try:
        idle_daemon.start()
    finally:
        os.umask(before)
    with idle_daemon.connect() as wire:
        big = noise(20 * PART)
        assert code(wire.last(b"put - name=a size=1\nx")) == "OK"
        assert code(wire.last(b"put - name=b size=%d\n" % len(big) + big)) == "OK"
        wire.send(b"put - name=c size=chunked resume=key\nDATA %d\n" % len(big) + big)
        assert wire.line().startswith(b"RESUME")
    assert idle_daemon.socket_path.stat().st_mode & 0o777 == 0o600
    paths = [idle_daemon.store, *idle_daemon.store.rglob("*")]
    assert len(paths) > 6
    for path in paths:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


# --- logs ---------------------------------------------------------------------------------------

TOKEN = "correct-horse-battery"
HOSTILE = [
    b"x\nERROR fake", b"x\r\n2026-01-01 00:00:00,000 ERROR fake", b"\x1b[31mred\x1b[0m", b"\x1b]0;title\x07", b"\x9b2J",
    "\u2028line\u2029".encode(), "\x85\x0b\x0c".encode(), b"\xff\xfe", b"\xed\xa0\x80", b"\xc3", b"\xe2\x80\xaetxt",
    b"%s%n%(x)d", b"{0.__class__}", b"\x7f\x08\x08", b"-rf", b"--", b"..", b"/", b"$(id)", b"`id`", b"a b", b"\ttab",
    b'"quoted"', b"\\back", b"@tag", b"name=x", b"\xf0\x9f\x92\xa9", "e\u0301".encode(), "\u00e9".encode(), b"a" * 255,
    b"a" * 256, b"\x01", b"\xe2\x80", b"#", b"OK put", b"ERR auth", b"DATA 5", b"GET / HTTP/1.1", b"\x16\x03\x01",
]  # fmt: skip


def _quoted(raw: bytes) -> bytes:
    """A quoted word with every byte that may stand there as it is."""
    for byte, escape in ((b"\\", b"\\\\"), (b'"', b'\\"'), (b"\n", b"\\n"), (b"\r", b"\\r")):
        raw = raw.replace(byte, escape)
    return b'"' + raw + b'"'


@pytest.mark.promise("local")
@pytest.mark.promise("answered")
def test_hostile_names_forge_no_log_and_the_token_is_nowhere(idle_daemon: Daemon) -> None:
    idle_daemon.config(token=TOKEN)
    idle_daemon.start()
    with idle_daemon.connect(unix=True) as wire:
        assert code(wire.last(b"auth %b\n" % TOKEN.encode())) == "OK"
        replies = bytearray()
        for name in HOSTILE:
            word = _quoted(name)
            for verb in VERBS.keys() - {"auth", "quit", "exit", "cat"}:
                wire.send(verb.encode() + b" " + word + b"\n" + verb.encode() + b" %b %b x=%b\n" % (word, word, word))
                wire.send(b"@%b %b\n%b\n" % (name.partition(b"\n")[0][:20], verb.encode(), name.partition(b"\n")[0]))
            wire.send(b"put - name=%b size=1\nx" % word)
        wire.send(b"get nobody -\nping\n")
        while (line := wire.line()) != b"OK ping" or not replies.endswith(b"not-found"):
            replies[:] = b"not-found" if line.startswith(b"ERR not-found") else b""
            assert line.decode().isprintable()
            assert TOKEN.encode() not in line
    _break_off(idle_daemon)
    _guess(idle_daemon)
    idle_daemon.stop()
    assert_is_log(idle_daemon.log)
    assert "broke off" in idle_daemon.log and "wrong token" in idle_daemon.log, "what was to be logged"
    assert TOKEN not in idle_daemon.log


def _break_off(daemon: Daemon) -> None:
    """Have names of damaged files logged."""
    content = noise(40 * PART, 3)
    names = HOSTILE[:6]
    with daemon.connect(unix=True) as wire:
        wire.send(b"auth %b\n" % TOKEN.encode())
        assert code(wire.line()) == "OK"
        for name in names:
            request = b"put - replace=yes name=%b size=%d\n" % (_quoted(name + b"!"), len(content))
            assert code(wire.last(request + content)) == "OK"
    for pack in daemon.packs():
        if 8 * PART < pack.stat().st_size < 16 * PART:  # the last of its file
            with open(pack, "r+b") as file:
                file.seek(-100, os.SEEK_END)
                file.write(b"damage")
    for name in names:
        with daemon.connect(unix=True) as wire:
            wire.send(b"auth %b\ncat %b\n" % (TOKEN.encode(), _quoted(name + b"!")))
            try:
                wire.rest()
            except ConnectionResetError:
                continue


def _guess(daemon: Daemon) -> None:
    """Have it see the token, and things like it, in all the wrong places."""
    with daemon.connect() as wire:
        for line in (b"auth %b x", b'auth "%b', b"auth y=1 %b", b"auth x%b\x1b[31m", b"%b", b"@%b auth", b"auth %b"):
            assert TOKEN.encode() not in wire.last(line % TOKEN.encode() + b"\n") or line in (b"%b", b"@%b auth")
    for process in [psutil.Process(daemon.pid), *psutil.Process(daemon.pid).children(recursive=True)]:
        assert TOKEN not in " ".join(process.cmdline())
