"""What a listener allows, and tokens that are guessed."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from pfsd.handlers import MAX_WRONG_TOKENS
from tests.harness import Daemon
from tests.wire import Wire, code

TOKEN = b"correct-horse-battery"


# --- listeners ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that allows everything on its Unix socket, and little on TCP."""
    with Daemon(tmp_path_factory.mktemp("narrow")) as daemon:
        daemon.config(listen=["unix:socket", {"address": "127.0.0.1:0", "allow": ["list", "cat"]}])
        daemon.start()
        yield daemon


@pytest.mark.promise("local")
def test_what_is_not_allowed_is_denied_and_the_connection_stays_in_step(narrow: Daemon) -> None:
    with narrow.connect() as wire:
        for size in (b"6\nlist\nx", b"100000\n" + bytes(100_000), b"chunked\nDATA 5\nlist\nDATA 0\n"):
            wire.send(b"put - name=x size=" + size)
            assert code(wire.reply()[-1]) == "denied"
            wire.send(b"put - name=x size=y\nput x size=1\n@t put - name=x size=3\nabc")  # whatever else is wrong
            assert {code(wire.reply()[-1]) for _ in range(3)} <= {"usage", "denied"}
        for line in (
            b"get x -",
            b"get x y",
            b"stat x",
            b"delete x",
            b"rename x y",
            b"verify",
            b"stats",
            b"exit",
            b"PUT x",
        ):
            assert code(wire.last(line + b"\n")) == "denied", line
        assert wire.last(b"list\n") == b"OK list files=0 size=0 stored=0"
        for line in (b"ping", b"hello", b"help put", b"auth x"):
            assert code(wire.last(line + b"\n")) == "OK", line
        assert code(wire.last(b"cat x\n")) == "not-found"
    assert code(narrow.ask(b"ping\n")[-1]) == "OK"


@pytest.mark.promise("local")
def test_what_waits_behind_other_requests_is_denied_too(narrow: Daemon) -> None:
    with narrow.connect() as wire:
        wire.send(b"list\n" * 50 + b"put - name=x size=eof\nlist\n")
        wire.half_close()
        replies = [code(line) for line in wire.rest().splitlines()]
    assert replies == ["OK"] * 50 + ["denied"]


def test_help_lists_what_works_there(narrow: Daemon) -> None:
    def verbs(wire: Wire) -> set[bytes]:
        return {line.split()[1] for line in wire.ask(b"help\n")[:-2]}

    with narrow.connect() as tcp, narrow.connect(unix=True) as local:
        assert verbs(tcp) == {b"list", b"cat", b"ping", b"hello", b"auth", b"help", b"quit"}
        assert verbs(local) > verbs(tcp) | {b"put", b"exit"}
        assert code(local.last(b"stats\n")) == "OK"


@pytest.mark.parametrize(
    ("allow", "allow_exit", "answer"),
    [(["exit"], "nobody", "denied"), (["list"], "anyone", "denied"), (["exit"], "local", "OK")],
)
def test_exit_needs_the_listener_and_allow_exit(
    idle_daemon: Daemon, allow: list[str], allow_exit: str, answer: str
) -> None:
    idle_daemon.config(listen=[{"address": "127.0.0.1:0", "allow": allow}], allow_exit=allow_exit)
    idle_daemon.start()
    assert code(idle_daemon.ask(b"exit\n")[-1]) == answer
    if answer == "OK":
        idle_daemon.wait()
    else:
        assert idle_daemon.ask(b"ping\n") == [b"OK ping"]


@pytest.mark.promise("local")
def test_exit_from_another_machine_is_denied(idle_daemon: Daemon) -> None:
    """The peer comes from an address of this machine that is not its loopback's, as all others do."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no address but those of its loopback")
        host = probe.getsockname()[0]
    idle_daemon.config(listen=[f"{host}:0"], token=TOKEN.decode())
    idle_daemon.start()
    assert f"{host}:0 can be reached from other machines, and token and files go there in plain text" in idle_daemon.log
    with Wire((host, idle_daemon.port)) as wire:
        assert code(wire.last(b"exit\n")) == "auth"
        assert code(wire.last(b"auth %b\n" % TOKEN)) == "OK"
        assert code(wire.last(b"exit\n")) == "denied"
        assert wire.last(b"ping\n") == b"OK ping"


# --- tokens -------------------------------------------------------------------------------------


@pytest.fixture
def guarded(idle_daemon: Daemon) -> Daemon:
    """A daemon with a token."""
    idle_daemon.config(token=TOKEN.decode())
    idle_daemon.start()
    return idle_daemon


@pytest.mark.promise("local")
def test_nothing_behind_a_wrong_token_runs_and_a_few_end_the_connection(guarded: Daemon) -> None:
    with guarded.connect() as wire:
        wire.send(b"auth wrong\n" * MAX_WRONG_TOKENS + b"put - name=x size=1\nxexit\nauth %b\nlist\n" % TOKEN)
        replies = wire.rest().splitlines()
        assert set(map(code, replies)) == {"auth"}
        assert b"the connection is closed" in b"".join(replies)
    with guarded.connect(unix=True) as wire:
        assert code(wire.last(b"auth %b\n" % TOKEN)) == "OK"
        assert wire.last(b"list\n") == b"OK list files=0 size=0 stored=0"
    assert guarded.log.count("gave a wrong token") == MAX_WRONG_TOKENS


@pytest.mark.promise("local")
def test_a_connection_makes_one_guess_at_a_time(guarded: Daemon) -> None:
    with guarded.connect() as wire:
        wire.send(b"".join(b"@%d auth wrong-%d\n" % (at, at) for at in range(200)))
        replies = [code(wire.reply()[-1]) for _ in range(200)]
    assert replies.count("busy") >= 200 - MAX_WRONG_TOKENS
    assert set(replies) == {"busy", "auth"}


@pytest.mark.promise("local")
def test_guesses_of_one_peer_do_not_lock_out_another(guarded: Daemon) -> None:
    guessing = [guarded.connect() for _ in range(50)]
    for wire in guessing:
        wire.send(b"auth wrong\n")
    with guarded.connect(unix=True) as other:
        assert code(other.last(b"auth %b\n" % TOKEN)) == "OK"
        assert guarded.log.count("gave a wrong token") < 50, "they were not waited for"
    for wire in guessing:
        wire.close()


@pytest.mark.promise("local")
@pytest.mark.parametrize("piece", [1, 7])
def test_a_token_may_come_in_pieces(guarded: Daemon, piece: int) -> None:
    with guarded.connect() as wire:
        line = b"auth %b\nlist\n" % TOKEN
        for at in range(0, len(line), piece):
            wire.send(line[at : at + piece])
        assert [code(wire.reply()[-1]) for _ in range(2)] == ["OK", "OK"]


@pytest.mark.parametrize(
    "line", [b'auth "%b', b'auth %b"x', b"auth x=1 %b", b"auth x %b", b'auth "%b"x', b"auth %b x=1"]
)
def test_a_mistyped_token_is_not_quoted_back(guarded: Daemon, line: bytes) -> None:
    with guarded.connect() as wire:
        reply = wire.last(line % TOKEN + b"\n")
        assert code(reply) == "usage" and TOKEN not in reply
    assert TOKEN.decode() not in guarded.log
