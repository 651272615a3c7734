"""What people, broken programs and browsers send: an error, and the connection or at least the daemon goes on."""

from __future__ import annotations

import socket

import pytest

from tests.harness import Daemon
from tests.wire import Wire, code, fields

MAX_LINE = 65536


@pytest.mark.parametrize(
    ("line", "word"),
    [
        (b"frobnicate", "unknown-command"),
        (b"put-", "unknown-command"),
        (b"12", "usage"),
        (b"pi\0ng", "usage"),
        (b"list \0", "usage"),
        (b"p\xffng", "usage"),
        (b'"ping"', "usage"),
        (b'list "open', "usage"),
        (b'list "a"b', "usage"),
        (b'list a"b', "usage"),
        (rb'list "\q"', "usage"),
        (rb'list "\x1"', "usage"),
        (b"ping pong", "usage"),
        (b"ping a=b", "usage"),
        (b"stats all", "usage"),
        (b"list a b", "usage"),
        (b"list glob=a", "usage"),
        (b"stat", "usage"),
        (b"stat x parts=yes parts=yes", "usage"),
        (b"stat parts=yes x", "usage"),
        (b'stat ""', "usage"),
        (b"stat " + b"n" * 1025, "usage"),
        (rb'stat "a\x00"', "usage"),
        (b"stat 99999999999999999999", "usage"),
        (b"stat 0", "not-found"),
        (b"stat 99", "not-found"),
        (b"stat nobody", "not-found"),
        (b"stat \xff\xfe", "not-found"),
        (b"get nobody", "usage"),
        (b"get nobody - offset=-1", "usage"),
        (b"get nobody - length=1k", "usage"),
        (b"get nobody - offset=", "usage"),
        (b"get nobody - on_error=maybe", "usage"),
        (b"get nobody -", "not-found"),
        (b"@t cat nobody", "usage"),
        (b"delete", "usage"),
        (b"delete nobody", "not-found"),
        (b"rename nobody", "usage"),
        (b'rename nobody ""', "usage"),
        (b"rename nobody x", "not-found"),
        (b"verify nobody", "not-found"),
        (b"put", "usage"),
        (b"put a b", "usage"),
        (b'put ""', "usage"),
        (b"put name=x a", "usage"),
        (b"put a size=5", "usage"),
        (b"put a replace=1", "usage"),
        (b"put a progress=x", "usage"),
        (b"put a nmae=x", "usage"),
        (b"put -", "usage"),
        (b"put - name=x", "usage"),
        (b"put - size=", "usage"),
        (b"put - name=x size=many", "usage"),
        (b"put - name=x size=-5", "usage"),
        (b"hello world", "usage"),
        (b"quit now", "usage"),
        (b"exit now", "usage"),
        (b"auth", "usage"),
        (b"@bad/tag ping", "usage"),
        (b"@ ping", "usage"),
        (b"@" + b"t" * 33 + b" ping", "usage"),
        (b"@t", "usage"),
        (b"DATA 0", "usage"),
        (b"ABORT", "usage"),
        (b"DATA", "usage"),
        (b"DATA x", "usage"),
    ],
    ids=lambda value: repr(value)[:40],
)
@pytest.mark.promise("answered")
def test_wrong_requests_get_one_error_and_the_connection_goes_on(wire: Wire, line: bytes, word: str) -> None:
    wire.send(line + b"\nping\n")
    (reply,) = wire.reply()
    assert code(reply) == word
    assert fields(reply)["message"]
    reply.decode("ascii")  # what was sent comes back escaped
    assert wire.reply() == [b"OK ping"]


def test_an_unknown_option_names_the_valid_ones(wire: Wire) -> None:
    message = fields(wire.last(b"put a nmae=x\n"))["message"]
    assert all(option in message for option in ("name=", "size=", "replace=", "progress="))


def test_an_unknown_command_names_the_known_ones(wire: Wire) -> None:
    message = fields(wire.last(b"store a\n"))["message"]
    assert all(verb in message for verb in ("put", "get", "cat", "list", "stat", "exit"))


# --- long lines ---------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
@pytest.mark.promise("answered")
def test_the_limit_of_a_line_is_exact(wire: Wire, ending: bytes) -> None:
    for size, word in ((MAX_LINE - 1, "OK"), (MAX_LINE, "OK"), (MAX_LINE + 1, "too-long")):
        wire.send(b"list " + b"a" * (size - 5) + ending)
        assert code(wire.reply()[-1]) == word, size
        assert wire.ask(b"ping" + ending) == [b"OK ping"]


@pytest.mark.promise("answered")
def test_the_tail_of_an_over_long_line_is_not_executed(shared_daemon: Daemon) -> None:
    shared_daemon.ask(b"put - name=victim size=0\n")
    with shared_daemon.connect() as wire:
        wire.send(b"put " + b"A" * 200_000)
        assert code(wire.line()) == "too-long", "answered before the line has ended"
        wire.send(b" delete victim")
        wire.send(b"\nlist victim\n")
        assert wire.reply()[-1].startswith(b"OK list files=1 ")


def test_an_over_long_line_answers_with_its_tag(wire: Wire) -> None:
    assert wire.last(b"@t1 list " + b"a" * MAX_LINE + b"\n").startswith(b"@t1 ERR too-long ")
    assert wire.ask(b"@t1 ping\n") == [b"@t1 OK ping"]


@pytest.mark.promise("answered")
def test_a_flood_without_an_ending_closes_the_connection(shared_daemon: Daemon) -> None:
    with shared_daemon.connect() as wire:
        wire.send(b"x" * (1 << 20) + b"x")
        assert code(wire.line()) == "too-long"
        assert wire.at_eof()
    assert shared_daemon.ask(b"ping\n") == [b"OK ping"]


@pytest.mark.promise("answered")
def test_an_over_long_line_cut_off_by_the_end_of_input(wire: Wire) -> None:
    wire.send(b"list " + b"a" * 100_000)
    wire.half_close()
    assert code(wire.line()) == "too-long"
    rest = wire.rest().splitlines()
    assert len(rest) <= 1 and all(code(line) == "usage" for line in rest)


@pytest.mark.promise("answered")
def test_a_line_that_does_not_end_in_time_closes_the_connection(idle_daemon: Daemon) -> None:
    idle_daemon.config(line_timeout=0.2)
    idle_daemon.start()
    with idle_daemon.connect() as wire, idle_daemon.connect() as idle:
        wire.send(b"pin")
        assert code(wire.line()) == "usage"
        assert wire.at_eof()
        assert idle.ask(b"ping\n") == [b"OK ping"], "between lines it may take its time"


def test_an_idle_connection_is_closed(idle_daemon: Daemon) -> None:
    idle_daemon.config(idle_timeout=0.2)
    idle_daemon.start()
    with idle_daemon.connect() as wire:
        assert wire.ask(b"ping\n") == [b"OK ping"]
        assert wire.at_eof()


# --- other protocols ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "first", [b"GET / HTTP/1.1", b"POST /x HTTP/1.1", b"OPTIONS * HTTP/1.0", b"CONNECT a:1 HTTP/1.1"]
)
@pytest.mark.promise("answered")
def test_http_is_turned_away_and_nothing_of_it_runs(shared_daemon: Daemon, first: bytes) -> None:
    shared_daemon.ask(b"put - name=prey size=0\n")
    with shared_daemon.connect() as wire:
        wire.send(first + b"\r\nHost: localhost:7373\r\n\r\ndelete prey\r\n")
        answer = wire.rest()
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n") and b"OK" not in answer
    assert code(shared_daemon.ask(b"stat prey\n")[-1]) == "OK"


@pytest.mark.promise("answered")
def test_http_with_an_over_long_first_line_is_turned_away_too(shared_daemon: Daemon) -> None:
    shared_daemon.ask(b"put - name=prey2 size=0\n")
    with shared_daemon.connect() as wire:
        wire.send(b"POST /" + b"a" * 70_000 + b" HTTP/1.1\r\nHost: localhost:7373\r\n\r\ndelete prey2\r\n")
        assert b"OK" not in wire.rest()
    assert code(shared_daemon.ask(b"stat prey2\n")[-1]) == "OK"


@pytest.mark.parametrize(
    "hello",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(11, 200)) + b"\n",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"*1\r\n$4\r\nINFO\r\n",
        b"\x00" * 5000 + b"\n",
        b"EHLO localhost\r\n",
    ],
)
@pytest.mark.promise("answered")
def test_other_protocols_get_errors_and_harm_nobody(shared_daemon: Daemon, hello: bytes) -> None:
    with shared_daemon.connect() as wire:
        wire.send(hello)
        wire.half_close()
        replies = wire.rest().splitlines()
    assert replies and all(code(reply) in ("usage", "unknown-command") for reply in replies)
    assert shared_daemon.ask(b"ping\n") == [b"OK ping"]


# --- too many -----------------------------------------------------------------------------------


@pytest.mark.promise("answered")
def test_one_client_too_many_is_told_so(idle_daemon: Daemon) -> None:
    idle_daemon.config(max_clients=3)
    idle_daemon.start()
    wires = [idle_daemon.connect() for _ in range(3)]
    assert [wire.ask(b"ping\n") for wire in wires] == [[b"OK ping"]] * 3
    with idle_daemon.connect() as refused:
        assert code(refused.line()) == "busy"
        assert refused.at_eof()
    wires[0].ask(b"quit\n")
    assert wires[0].at_eof()
    while code((retry := idle_daemon.connect()).last(b"ping\n")) == "busy":
        retry.close()
    for wire in [retry, *wires]:
        wire.close()


def test_clients_that_come_and_go_at_once_harm_nobody(shared_daemon: Daemon) -> None:
    for at in range(100):
        with shared_daemon.connect() as wire:
            if at % 2:
                wire.send(b"list\nstats\nput - name=half size=100\nabc")
            if at % 3 == 0:
                wire.reset()
    shared_daemon.wait_until("clients", "1")
    assert shared_daemon.stats()["memory_used"] == "0"
    assert code(shared_daemon.ask(b"stat half\n")[-1]) == "not-found"


@pytest.mark.promise("memory")
def test_a_client_that_never_reads_does_not_stop_the_others(emptied: Daemon) -> None:
    size = 8 << 20
    emptied.ask(b"put - name=big size=%d\n" % size + bytes(size))
    with Wire(emptied.address, receive_buffer=4096) as lazy:
        lazy.send(b"get big -\n")
        assert lazy.exactly(10) == b"DATA 65536"
        with emptied.connect() as wire:
            for _ in range(3):
                wire.send(b"get big -\n")
                content, final = wire.frames()
                assert len(content) == size and code(final) == "OK"


@pytest.mark.promise("memory")
def test_rows_for_a_client_that_does_not_read_are_not_gathered_in_memory(shared_daemon: Daemon) -> None:
    with Wire(shared_daemon.address, receive_buffer=4096) as lazy:
        lazy.socket.setblocking(False)
        sent = 0
        with pytest.raises(BlockingIOError):
            while sent < 64 << 20:
                sent += lazy.socket.send(b"help\n" * 10_000)
        lazy.socket.settimeout(30)
        assert shared_daemon.ask(b"ping\n") == [b"OK ping"]
        lazy.socket.shutdown(socket.SHUT_RDWR)
