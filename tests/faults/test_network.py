"""Lines that break anywhere, clients that stand still, come in floods, or speak something else."""

from __future__ import annotations

import os
import random
import resource
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import psutil
import pytest

from tests.faults.conftest import Count
from tests.faults.proxy import Proxy, Way
from tests.harness import PART, Daemon, etag, noise
from tests.wire import Wire, code, fields


def put(wire: Wire, name: bytes, content: bytes) -> bytes:
    return wire.last(b"put - name=%s size=%d replace=yes\n" % (name, len(content)) + content)


@pytest.fixture(scope="module")
def busy_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("network"), durability="none") as daemon:
        daemon.start()
        yield daemon
        assert "Traceback" not in daemon.log


# --- a line that breaks ---------------------------------------------------------------------------


@pytest.mark.promise("unknown")
@pytest.mark.promise("whole")
@pytest.mark.timeout(300)
def test_a_connection_that_is_cut_anywhere_leaves_the_old_or_the_new(busy_daemon: Daemon, count: Count) -> None:
    """Uploads, downloads and deletes end after a random byte, in every way a connection can end."""
    seed = int(os.environ.get("PFSD_TEST_SEED", random.randrange(1 << 30)))
    print(f"PFSD_TEST_SEED={seed}")
    chance = random.Random(seed)
    old = noise(3 * PART, seed)
    names = [b"victim%d" % at for at in range(8)]
    with busy_daemon.connect() as wire:
        for _ in range(count(1, 25)):
            news = [noise(chance.choice([0, 100, PART, 40 * PART]), chance.randrange(100)) for _ in names]
            for name in names:
                assert code(put(wire, name, old)) == "OK"
            cuts = [
                threading.Thread(target=_cut_short, args=[busy_daemon, random.Random(chance.random()), name, new])
                for name, new in zip(names, news, strict=True)
            ]
            for cut in cuts:
                cut.start()
            for cut in cuts:
                cut.join()
            busy_daemon.wait_until("clients", "2")
            busy_daemon.wait_until("memory_used", "0")
            for name, new in zip(names, news, strict=True):
                found = wire.last(b"stat %s\n" % name)
                assert code(found) == "not-found" or fields(found)["etag"] in (etag(old), etag(new))
                assert code(put(wire, name, b"again")) == "OK", "the name is not claimed any more"
                assert code(wire.last(b"delete %s\n" % name)) == "OK", "nor is the file locked or pinned"
        assert wire.last(b"list victim*\n").startswith(b"OK list files=0")
    assert busy_daemon.staged() == []


def _cut_short(daemon: Daemon, chance: random.Random, name: bytes, new: bytes) -> None:
    pieces = [new[at : at + 50_000] for at in range(0, len(new), 50_000)]
    frames = b"".join(b"DATA %d\n" % len(piece) + piece for piece in pieces)
    request = chance.choice(
        [
            b"put - name=%s replace=yes size=%d\n" % (name, len(new)) + new,
            b"put - name=%s replace=yes size=chunked\n" % name + frames + b"DATA 0\n",
            b"get %s -\n" % name,
            b"@a get %s -\n@b verify\n@c list\n" % name,
            b"cat %s\n" % name,
            b"delete %s\n" % name,
        ]
    )
    end = chance.choice(["reset", "close", "half", "hole"])
    if request.startswith(b"put") and chance.random() < 0.7:
        up, down = Way(chance.randrange(len(request) + 1), end), Way()
    else:
        up, down = Way(), Way(chance.randrange(chance.choice([100, 3 * PART])), end)
    with Proxy(daemon.address, up, down) as proxy, Wire(proxy.address) as client:
        client.socket.settimeout(0.2)  # a hole says nothing
        with suppress(OSError, AssertionError):
            client.send(request)
            if chance.random() < 0.3:
                client.half_close()
            client.rest()


@pytest.mark.promise("answered")
def test_requests_in_single_bytes_are_answered_in_order(busy_daemon: Daemon, count: Count) -> None:
    total = count(300, 1000)
    lines = [b"ping\n", b"ping\r\n", b"\n\r\n  ping\n", b"stat nobody\r\n"]
    sent = b"".join(lines[at % 4] for at in range(total))
    with Proxy(busy_daemon.address, up=Way(piece=1)) as proxy, Wire(proxy.address) as slow:
        slow.send(sent)
        replies = [slow.line() for _ in range(total)]
    assert [reply.split()[0] for reply in replies] == [b"ERR" if at % 4 == 3 else b"OK" for at in range(total)]


# --- clients that stand still ---------------------------------------------------------------------


@pytest.mark.promise("memory")
def test_clients_that_do_not_read_hold_up_nobody_and_cost_little(busy_daemon: Daemon, count: Count) -> None:
    content = noise(200 * PART)
    with busy_daemon.connect() as wire, ExitStack() as stack:
        assert code(put(wire, b"big", content)) == "OK"
        process = psutil.Process(busy_daemon.pid)
        before = process.memory_full_info().uss
        lazy = [stack.enter_context(Wire(busy_daemon.address, receive_buffer=2048)) for _ in range(count(30, 100))]
        for client in lazy:
            client.send(b"get big -\n" * 10 + b"list\n" * 10)
        for client in lazy:
            assert client.exactly(5) == b"DATA "
        for _ in range(3):
            wire.send(b"get big -\n")
            assert wire.frames()[0] == content
            assert code(put(wire, b"beside", content[: 20 * PART])) == "OK"
        stats = busy_daemon.stats()
        assert int(stats["memory_peak"]) <= int(stats["memory_limit"])
        assert process.memory_full_info().uss - before < len(lazy) * (256 << 10) + (16 << 20)
        for client in lazy:
            assert len(client.exactly(1024)) == 1024, "it is served when it reads"
            client.reset()
    busy_daemon.wait_until("memory_used", "0")


@pytest.mark.promise("answered")
def test_bytes_that_come_now_and_then_keep_no_line_open(idle_daemon: Daemon, count: Count) -> None:
    idle_daemon.config(line_timeout=1, max_clients=2000)
    idle_daemon.start()
    with ExitStack() as stack:
        slow = [stack.enter_context(idle_daemon.connect()) for _ in range(count(100, 1000))]
        wire = stack.enter_context(idle_daemon.connect())
        until = time.monotonic() + 10
        waiting = set(slow)
        while waiting:
            assert time.monotonic() < until, f"{len(waiting)} are still connected"
            for client in list(waiting):
                client.socket.settimeout(0)
                try:
                    client.send(b"x")
                    if client.socket.recv(1000).startswith(b"ERR usage "):
                        waiting.discard(client)
                except BlockingIOError:
                    pass
            assert wire.ask(b"ping\n") == [b"OK ping"]


@pytest.mark.timeout(180)
@pytest.mark.promise("memory")
def test_idle_clients_cost_little_memory_and_no_time(idle_daemon: Daemon, count: Count) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    many = min(count(500, 10_000), (hard - 200) // 2)  # each may have a file as well
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    idle_daemon.config(max_clients=many, log_level="info")
    idle_daemon.start()
    assert idle_daemon.stats()["max_clients"] == str(many)
    process = psutil.Process(idle_daemon.pid)
    before = process.memory_full_info().uss
    with ExitStack() as stack:
        clients = [stack.enter_context(idle_daemon.connect()) for _ in range(many - 1)]
        clients[-1].ask(b"ping\n")
        used = process.memory_full_info().uss - before
        print(f"{used / many:.0f} bytes for each of {many} clients")
        assert used < many * (12 << 10) + (2 << 20)
        switches, spent = process.num_ctx_switches().voluntary, sum(process.cpu_times()[:2])
        time.sleep(1)  # this is the rest that is measured
        assert process.num_ctx_switches().voluntary - switches < 50
        assert sum(process.cpu_times()[:2]) - spent < 0.1
        with idle_daemon.connect() as last:
            assert last.ask(b"ping\n") == [b"OK ping"]
            with idle_daemon.connect() as refused:
                assert code(refused.line()) == "busy" and refused.at_eof()


# --- floods ---------------------------------------------------------------------------------------


@pytest.mark.promise("answered")
@pytest.mark.parametrize("loop", ["uvloop", "asyncio"])
def test_with_few_descriptors_every_client_is_answered_or_told(idle_daemon: Daemon, loop: str) -> None:
    idle_daemon.starter = ["prlimit", "--nofile=64"]
    idle_daemon.config(loop=loop, log_level="info")
    idle_daemon.start()
    room = int(idle_daemon.stats()["max_clients"])
    idle_daemon.wait_until("clients", "1")
    content = noise(30 * PART)
    (idle_daemon.root / "file").write_bytes(content)
    with ExitStack() as stack:
        clients = [stack.enter_context(idle_daemon.connect()) for _ in range(120)]
        answers = Counter(_word(client, b"ping\n") for client in clients)
        assert answers == {"OK": room, "busy": 120 - room}
        welcome = clients[:room]
        for at, client in enumerate(welcome):
            client.send(b"put file name=f%d\nget f%d copy%d\n" % (at, at, at))
        assert [code(client.line()) for client in welcome for _ in range(2)] == ["OK"] * 2 * room
    assert all((idle_daemon.root / f"copy{at}").read_bytes() == content for at in range(room))
    while _word(client := idle_daemon.connect(), b"ping\n") != "OK":
        client.close()
    client.close()
    idle_daemon.wait_until("memory_used", "0")
    assert "Traceback" not in idle_daemon.log


def _word(client: Wire, request: bytes) -> str:
    with suppress(ConnectionError):
        client.send(request)
    return code(client.line())


@pytest.mark.promise("answered")
def test_a_flood_of_connections_leaves_nothing(busy_daemon: Daemon, count: Count) -> None:
    process = psutil.Process(busy_daemon.pid)
    busy_daemon.wait_until("clients", "1")
    before = process.num_fds()
    for at in range(count(300, 5000)):
        client = busy_daemon.connect()
        if at % 3 == 0:
            client.send(b"put - name=x size=10\nabc" if at % 2 else b"\x16\x03\x01")
        client.reset() if at % 2 else client.close()
    busy_daemon.wait_until("clients", "1")
    busy_daemon.wait_until("memory_used", "0")
    assert process.num_fds() <= before + 1, "but for the connection that asked"


# --- other protocols ------------------------------------------------------------------------------

HTTP = [
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"get / http/1.1\r\nhost: localhost\r\n\r\n",
    b"GET http://localhost:7373/ HTTP/1.1\r\n\r\n",
    b"POST / HTTP/1.0\nContent-Length: 100\n\n",
    b"PUT /x HTTP/1.1\r\n\r\n",
    b"DELETE /x HTTP/1.1\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"Host: localhost\r\n\r\n",
    b"host: localhost:7373\r\n",
]
OTHERS = [
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(11, 200)),
    b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
    b"*1\r\n$4\r\nINFO\r\n*2\r\n$3\r\nGET\r\n$4\r\nprey\r\n",
    b"\x00\x00\x00\x45\xffSMB\x72" + bytes(60),
    b"\x05\x01\x00",
    b"EHLO localhost\r\nMAIL FROM:<a@b>\r\n",
    b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
    b"\xff\xfd\x18\xff\xfd\x20",
]


@pytest.mark.promise("answered")
@pytest.mark.parametrize("hello", HTTP, ids=repr)
def test_nothing_that_a_browser_sends_is_executed(busy_daemon: Daemon, hello: bytes) -> None:
    with busy_daemon.connect() as wire:
        assert code(put(wire, b"prey", b"")) == "OK"
        with busy_daemon.connect() as browser:
            browser.send(hello + b"delete prey\r\n")
            answer = browser.rest()
        assert b"\nOK" not in answer and not answer.startswith(b"OK")
        assert code(wire.last(b"stat prey\n")) == "OK"


@pytest.mark.promise("answered")
@pytest.mark.parametrize("hello", OTHERS, ids=lambda hello: repr(hello)[:30])
def test_other_protocols_are_told_or_closed(busy_daemon: Daemon, hello: bytes) -> None:
    with busy_daemon.connect() as wire:
        wire.send(hello)
        wire.half_close()
        replies = wire.rest().splitlines()
    assert all(code(reply) in ("usage", "unknown-command", "too-long") for reply in replies)
    assert busy_daemon.ask(b"ping\n") == [b"OK ping"]


@pytest.mark.promise("answered")
def test_noise_is_answered_with_errors_only(busy_daemon: Daemon, count: Count) -> None:
    for seed in range(count(10, 100)):
        with busy_daemon.connect() as wire:
            with suppress(ConnectionError):
                wire.send(noise(64 << 10, seed))
                wire.half_close()
            with suppress(ConnectionError):
                assert all(code(line) not in ("OK", "internal") for line in wire.rest().splitlines())
    assert busy_daemon.ask(b"ping\n") == [b"OK ping"]


# --- many beside each other -----------------------------------------------------------------------


@pytest.mark.promise("answered")
@pytest.mark.timeout(120)
def test_nobody_gets_bytes_of_another(busy_daemon: Daemon, count: Count) -> None:
    """Clients with content of their own store and load it, read slowly, break off and come back."""
    until = time.monotonic() + count(1, 10)
    wrong: list[str] = []

    def client(number: int) -> None:
        chance = random.Random(number)
        name = b"own%d" % number
        try:
            while time.monotonic() < until:
                content = bytes([number + 1]) * chance.choice([1, 5000, PART, 9 * PART + 7])
                with Wire(busy_daemon.address, receive_buffer=chance.choice([None, 4096])) as wire:
                    assert code(put(wire, name, content)) == "OK"
                    _leave_in_the_middle(busy_daemon, chance, name)
                    wire.send(b"@a get %s -\n" % name)
                    got, final = wire.frames()
                    assert got == content and fields(final)["etag"] == etag(content), (
                        f"client {number} got others' bytes"
                    )
                    wire.send(b"cat %s\n" % name)
                    assert wire.rest() == content
        except Exception as error:
            wrong.append(f"{number}: {error!r}")

    threads = [threading.Thread(target=client, args=[number]) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    busy_daemon.wait_until("memory_used", "0")


def _leave_in_the_middle(daemon: Daemon, chance: random.Random, name: bytes) -> None:
    with daemon.connect() as wire:
        wire.send(chance.choice([b"get %s -\n", b"put - name=%s-half size=900000\nabc", b"cat %s\n"]) % name)
        if chance.random() < 0.5:
            wire.reset()
