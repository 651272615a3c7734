"""The clients in examples/ as their users run them, against a real daemon that wants a token."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Daemon, free_port, noise

EXAMPLES = Path(__file__).parent.parent / "examples"
TOKEN = 'correct-"horse\\'
#: A name with all that quoting is for; `size=` in it is no key of a reply.
ODD = 'a "b"\\ c\n\té à size=5 id=7'
BIG = noise(3_000_000) + b"ERR no\n"

RUNNERS = {
    "node": ["node", str(EXAMPLES / "pfs.js")],
    "dash": ["dash", str(EXAMPLES / "pfs.sh")],
    "busybox": ["busybox", "sh", str(EXAMPLES / "pfs.sh")],
}


class Example:
    """One of the clients, in a directory of its own."""

    def __init__(self, runner: list[str], server: str, home: Path) -> None:
        self._runner = runner
        self.is_node = runner[0] == "node"
        self.home = home
        # By its path: a BusyBox that is also `nc` would take its own.
        self.environ = {**os.environ, "PFSD_SERVER": server, "PFSD_TOKEN": TOKEN, "PFSD_NC": f"{shutil.which('nc')} -N"}

    def run(self, *words: str | bytes, code: int = 0, token: str = TOKEN) -> tuple[str, str]:
        """What it says on stdout and stderr; it must end with this exit code, and leave nothing else."""
        before = set(os.listdir(self.home))
        environ = self.environ | {"PFSD_TOKEN": token}
        ended = subprocess.run([*self._runner, *words], env=environ, cwd=self.home, capture_output=True, timeout=50)
        out, error = ended.stdout.decode(), ended.stderr.decode()
        assert ended.returncode == code, f"{words}: {out}{error}"
        assert bool(error) == bool(code)
        new = set(os.listdir(self.home)) - before
        assert new == ({words[2]} if words[:1] == ("get",) and code == 0 else set())
        return out, error

    def file(self, name: str, content: bytes) -> bytes:
        """Make a local file; its SHA-256."""
        (self.home / name).write_bytes(content)
        return hashlib.sha256(content).digest()

    def digest(self, name: str) -> bytes:
        """The SHA-256 of a local file."""
        return hashlib.sha256((self.home / name).read_bytes()).digest()


@pytest.fixture(scope="module")
def token_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("examples"), token=TOKEN) as daemon:
        daemon.start()
        yield daemon


@pytest.fixture(params=RUNNERS)
def example(request: pytest.FixtureRequest, token_daemon: Daemon, tmp_path: Path) -> Iterator[Example]:
    """Each of the clients; the store is empty before and after."""
    kind: str = request.param
    for tool in (kind,) if kind == "node" else (kind, "nc"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    yield Example(RUNNERS[kind], f"127.0.0.1:{token_daemon.port}", tmp_path)
    with token_daemon.connect() as wire:
        rows = wire.ask(b'auth "correct-\\"horse\\\\"\n') + wire.ask(b"list\n")
        for row in rows[1:-1]:
            wire.ask(b"delete %b\n" % row.split(b" ")[1][3:])


@pytest.fixture
def node(token_daemon: Daemon, tmp_path: Path) -> Example:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    return Example(RUNNERS["node"], f"unix:{token_daemon.socket_path}", tmp_path)


@pytest.mark.parametrize("name", ["pfs.js", "pfs.sh"])
def test_it_is_short(name: str) -> None:
    lines = (EXAMPLES / name).read_text("utf-8").splitlines()
    assert len(lines) < 100
    assert max(map(len, lines)) <= 120


def test_what_was_put_comes_back(example: Example) -> None:
    big, empty = example.file("big", BIG), example.file("-empty", b"")
    assert example.run("put", "big", ODD)[0].startswith("OK put id=")
    example.run("put", "-empty", "2024")
    example.run("get", ODD, "copy")
    example.run("put", "big", "plain")
    example.run("rename", "plain", "2025")
    assert "ERR" not in example.run("verify")[0]
    listed = example.run("list", "20*")[0].splitlines()
    assert [line.split(" ")[-1] for line in listed[:-1]] == ["name=2024", "name=2025"]
    ids = [line.split(" ")[1][3:] for line in listed[:-1]]
    example.run("get", ids[0], "empty-copy")
    assert f"id={ids[1]} " in example.run("stat", ids[1])[0]
    assert example.digest("copy") == big
    assert example.digest("empty-copy") == empty
    example.run("delete", ODD, *ids)
    assert example.run("list")[0] == "OK list files=0 size=0 stored=0\n"


def test_errors_are_the_words_of_the_daemon(example: Example) -> None:
    mine = example.file("mine", b"mine")
    example.run("put", "mine", "mine")
    for code, word, *words in (
        (4, "not-found", "stat", "nothing"),
        (4, "not-found", "get", "nothing", "copy"),
        (4, "not-found", "delete", "mine", "nothing"),
        (4, "", "put", "nothing", "x"),
        (1, "exists", "put", "mine", "mine"),
        (1, "", "get", "mine", "mine"),
        (2, "usage", "rename", "mine", ""),
        (2, "usage", "put", "mine"),
        (2, "usage"),
    ):
        assert word in example.run(*words, code=code)[1]
    assert example.digest("mine") == mine
    example.file("mine", b"other")
    example.run("put", "mine", "mine", "replace=yes")
    example.run("get", "mine", "copy")
    assert (example.home / "copy").read_bytes() == b"other"


def test_without_a_daemon_or_its_token(example: Example) -> None:
    example.file("mine", b"mine")
    for token in ("", "wrong-horse"):
        assert "auth" in example.run("put", "mine", "mine", code=1, token=token)[1]
        assert "auth" in example.run("get", "mine", "copy", code=1, token=token)[1]
    example.environ["PFSD_SERVER"] = f"127.0.0.1:{free_port()}"
    assert "cannot-connect" in example.run("list", code=5)[1]


def test_damage_is_an_error_and_leaves_no_target(example: Example, token_daemon: Daemon) -> None:
    example.file("big", BIG)
    example.run("put", "big", "big")
    pack = token_daemon.packs()[0]
    content = bytearray(pack.read_bytes())
    content[-1] ^= 0xFF
    pack.write_bytes(content)
    example.run("get", "big", "copy", code=1)
    assert "BAD " in example.run("verify", code=1)[0]


def test_names_that_are_no_text(example: Example) -> None:
    if example.is_node:
        pytest.skip("Node.js takes its arguments for UTF-8")
    digest = example.file("big", BIG)
    example.run("put", "big", b"caf\xe9 \xff")
    assert r"caf\xe9 \xff" in example.run("list")[0]
    example.run("get", b"caf\xe9 \xff", "copy")
    assert example.digest("copy") == digest


def test_many_puts_side_by_side(node: Example) -> None:
    digests = {f"f{at}": node.file(f"f{at}", noise(at * 10_000, at)) for at in range(40)}
    assert node.run("put-all", *digests)[0].count("OK put ") == 40
    for name, digest in digests.items():
        if int(name[1:]) % 13 == 0:
            node.run("get", name, f"{name}.copy")
            assert node.digest(f"{name}.copy") == digest
    node.run("delete", *digests)
