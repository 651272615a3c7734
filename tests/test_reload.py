"""SIGHUP: what a running daemon takes from a changed configuration, and what it leaves for a restart."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import psutil
import pytest

from pfsd.config import LIVE_KEYS
from tests.certificates import make_certificate
from tests.harness import DEFAULTS, PART, PATIENCE_SECONDS, Daemon, wait_for
from tests.test_systemd import Notices
from tests.wire import code, fields

TOKEN = "correct-horse-battery"
#: What the daemon of these tests begins with and comes back to.
BEFORE: dict[str, object] = {
    "listen": [{"address": "127.0.0.1:0"}, "unix:socket"],
    "http": "127.0.0.1:0",
    "processes": 1,
    "level": 2,
    "verify_every": 0,
}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("reload"), **BEFORE) as daemon:
        (daemon.home / "other").mkdir()
        (daemon.home / "other" / "file").write_bytes(b"abc")
        daemon.start()
        yield daemon


def reload(daemon: Daemon, word: str = "reloaded", **changes: object) -> str:
    """Let the daemon read a changed configuration; returns what it logs of that."""
    daemon.config(**changes)
    before = len(daemon.log)
    os.kill(daemon.pid, signal.SIGHUP)
    until = time.monotonic() + PATIENCE_SECONDS
    while word not in (said := daemon.log[before:]):
        assert time.monotonic() < until, said
    with daemon.connect(unix=True) as wire:  # what is logged behind that word is logged in the same turn of the loop
        assert wire.ask(b"ping\n") == [b"OK ping"]
    return daemon.log[before:]


def http_status(daemon: Daemon, **fields: str) -> int:
    """What HTTP answers, which takes its settings from where the lines do."""
    with closing(http.client.HTTPConnection("127.0.0.1", daemon.http_port, timeout=PATIENCE_SECONDS)) as connection:
        connection.request("GET", "/status.json", headers=fields)
        return connection.getresponse().status


# --- keys that are in force at once -------------------------------------------------------------

Check = Callable[[Daemon], None]
CHECKS: dict[str, Check] = {}


def live(*keys: str) -> Callable[[Check], Check]:
    """The test of these keys."""

    def enter(check: Check) -> Check:
        CHECKS.update(dict.fromkeys(keys, check))
        return check

    return enter


@live("listen")
def allow(daemon: Daemon) -> None:
    with daemon.connect() as old:
        reload(daemon, listen=[{"address": "127.0.0.1:0", "allow": ["list"]}, "unix:socket"])
        assert code(daemon.ask(b"stats\n")[-1]) == "denied"
        assert code(old.last(b"stats\n")) == "OK", "who is there already keeps what it may do"
        with daemon.connect(unix=True) as local:
            assert code(local.last(b"stats\n")) == "OK"


@live("codec")
def codec(daemon: Daemon) -> None:
    reload(daemon, codec="none")
    assert daemon.stats()["codec"] == "none"
    for name, size in ((b"small", 1000), (b"big", 2 << 20)):
        reply = daemon.ask(b"put - name=%b size=%d\n" % (name, size) + bytes(size))[-1]
        assert int(fields(reply)["stored"]) >= size


@live("level")
def level(daemon: Daemon) -> None:
    assert "changed: level" in reload(daemon, level=1)
    assert daemon.stats()["level"] == "1"
    assert "changed: level" in reload(daemon, level=2)
    assert daemon.stats()["level"] == "2", "what it began with needs no restart"


@live("roots")
def roots(daemon: Daemon) -> None:
    line = b"put %b/other/file replace=yes\n" % str(daemon.home).encode()
    assert code(daemon.ask(line)[-1]) == "denied"
    reload(daemon, roots=["root", "other"])
    assert code(daemon.ask(line)[-1]) == "OK"


@live("token")
def token(daemon: Daemon) -> None:
    with daemon.connect() as old:
        reload(daemon, token=TOKEN)
        assert TOKEN not in daemon.log
        assert code(daemon.ask(b"list\n")[-1]) == "auth"
        assert code(old.last(b"list\n")) == "OK", "who is there already keeps what it may do"
    with daemon.connect() as new:
        assert code(new.last(b"auth %b\n" % TOKEN.encode())) == "OK"
    assert http_status(daemon) == 401
    assert http_status(daemon, Authorization=f"Bearer {TOKEN}") == 200


@live("token_file")
def token_file(daemon: Daemon) -> None:
    path = daemon.home / "token"
    for secret, other in ((b"first-of-two", b"second-of-two"), (b"second-of-two", b"first-of-two")):
        path.write_bytes(secret)
        path.chmod(0o600)
        assert "changed: token" in reload(daemon, token_file="token")
        with daemon.connect(unix=True) as wire:
            assert code(wire.last(b"auth %b\n" % secret)) == "OK"
            assert code(wire.last(b"auth %b\n" % other)) == "auth"


@live("tls_cert", "tls_key")
def certificates(daemon: Daemon) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl program")
    seen = set()
    for _ in range(2):
        certificate = make_certificate(daemon.home)
        reload(daemon, tls_cert="cert.pem", tls_key="key.pem")
        context = ssl.create_default_context(cafile=certificate)
        with (
            socket.create_connection(daemon.address) as sock,
            context.wrap_socket(sock, server_hostname="localhost") as tls,
        ):
            tls.sendall(b"ping\n")
            assert tls.recv(100) == b"OK ping\n"
            seen.add(tls.getpeercert(binary_form=True))
        page = http.client.HTTPSConnection("localhost", daemon.http_port, context=context, timeout=PATIENCE_SECONDS)
        with closing(page):
            page.request("GET", "/livez")  # HTTP has the same
            assert page.getresponse().read() == b"ok\n"
    assert len(seen) == 2, "a renewed certificate is used, though its path is the same"


@live("allow_exit")
def allow_exit(daemon: Daemon) -> None:
    reload(daemon, allow_exit="nobody")
    assert code(daemon.ask(b"exit\n")[-1]) == "denied"


@live("verify_every")
def verify_every(daemon: Daemon) -> None:
    size = 16 * PART  # so a part is due each half second
    assert code(daemon.ask(b"put - name=verified size=%d\n" % size + bytes(size))[-1]) == "OK"
    before = daemon.stats()["verified_parts"]
    reload(daemon, verify_every=0.0001)
    until = time.monotonic() + PATIENCE_SECONDS
    while daemon.stats()["verified_parts"] == before:
        assert time.monotonic() < until
    reload(daemon, verify_every=0)
    assert daemon.stats()["verify_every"] == "0"


@live("max_clients")
def max_clients(daemon: Daemon) -> None:
    reload(daemon, max_clients=2)
    with daemon.connect() as one:
        until = time.monotonic() + PATIENCE_SECONDS
        while b"STAT clients=1" not in one.ask(b"stats\n"):  # those of before are going
            assert time.monotonic() < until
        with daemon.connect() as two, daemon.connect() as three:
            assert two.ask(b"ping\n") == [b"OK ping"]
            assert code(three.line()) == "busy"


@live("idle_timeout")
def idle_timeout(daemon: Daemon) -> None:
    with daemon.connect() as old:
        assert old.ask(b"ping\n") == [b"OK ping"]
        reload(daemon, idle_timeout=0.5)
        with daemon.connect() as new:
            assert new.rest() == b""
        assert old.ask(b"ping\n") == [b"OK ping"]


@live("line_timeout")
def line_timeout(daemon: Daemon) -> None:
    reload(daemon, line_timeout=0.05)
    with daemon.connect() as wire:
        wire.send(b"pin")
        assert b"did not end within 0.05 seconds" in wire.line()


@live("log_level")
def log_level(daemon: Daemon) -> None:
    daemon.config(log_level="error")
    os.kill(daemon.pid, signal.SIGHUP)
    until = time.monotonic() + PATIENCE_SECONDS
    before = ""
    while before != daemon.log:  # that it is in force is the last thing that it does not tell
        assert time.monotonic() < until
        before = daemon.log
        daemon.ask(b"delete nothing\n")
        daemon.ask(b"ping\n")  # by then it is written
    reload(daemon, log_level="info")
    before = len(daemon.log)
    daemon.ask(b"list\n")
    daemon.ask(b"delete nothing\n")
    wait_for(lambda: "ERR not-found" in daemon.log[before:])
    assert "OK list" not in daemon.log[before:]


@live("log_format")
def log_format(daemon: Daemon) -> None:
    for line in reload(daemon, log_format="json").splitlines():
        assert json.loads(line)["level"] in ("info", "debug")


@live("stop_timeout")
def stop_timeout(daemon: Daemon) -> None:
    """It is said to the service manager: see `test_stop_timeout_and_all_that_does_not_stop_a_daemon`."""


def test_every_live_key_is_tried() -> None:
    assert CHECKS.keys() == LIVE_KEYS


@pytest.mark.parametrize("check", dict.fromkeys(CHECKS.values()), ids=lambda check: check.__name__)
def test_a_live_key(check: Check, running: Daemon) -> None:
    try:
        check(running)
    finally:
        reload(running, **dict.fromkeys(LIVE_KEYS) | DEFAULTS | BEFORE)


# --- the rest -----------------------------------------------------------------------------------


def test_what_needs_a_restart_is_named_and_stays(running: Daemon) -> None:
    before = running.stats()
    kept = {"memory": "80MiB", "processes": 2, "part_size": "128KiB", "level": 19, "path": "elsewhere"}
    kept |= {"durability": "none", "http": None, "md5": "auto", "loop": "asyncio", "listen": ["127.0.0.1:0"]}
    try:
        said = reload(running, **kept, allow_exit="nobody")
        for key in kept:
            assert f"WARNING {key} has changed in the configuration, which needs a restart" in said
        assert "changed: allow_exit\n" in said
        after = running.stats()
        assert [after[key] for key in ("memory_limit", "processes", "level")] == [
            before[key] for key in ("memory_limit", "processes", "level")
        ]
        assert code(running.ask(b"exit\n")[-1]) == "denied"
    finally:
        said = reload(running, **dict.fromkeys(kept) | DEFAULTS | BEFORE, allow_exit=None)
        assert "restart" not in said


def test_a_bad_configuration_is_refused_as_a_whole(running: Daemon) -> None:
    try:
        said = reload(running, "refused", max_clients=0, allow_exit="nobody", token=TOKEN)
        assert "the old one stays in force" in said and "max_clients: got 0; must be" in said
        assert said.count("\n") == 1 + said.count("DEBUG") and TOKEN not in said
        assert code(running.ask(b"list\n")[-1]) == "OK", "no token is needed"
    finally:
        reload(running, max_clients=None, allow_exit=None, token=None)


def test_a_running_put_ends_as_it_began(running: Daemon) -> None:
    content = bytes(1 << 20)
    with running.connect() as wire:
        wire.send(b"put - name=begun size=%d\n" % len(content) + content[: 1 << 19])
        running.wait_until("requests", "2")
        try:
            reload(running, codec="none")
            wire.send(content[1 << 19 :])
            assert int(fields(wire.reply()[-1])["stored"]) < len(content)
        finally:
            reload(running, codec=None)
    assert code(running.ask(b"verify begun\n")[-1]) == "OK"


def test_a_reload_for_which_no_thread_can_be_made_is_not_the_last(idle_daemon: Daemon) -> None:
    idle_daemon.prelude = (
        "import asyncio\n"
        "to_thread = asyncio.to_thread\n"
        "async def fail_once(job, *arguments):\n"
        "    if 'reload' in repr(job):\n"
        "        asyncio.to_thread = to_thread\n"
        '        raise RuntimeError("can\'t start new thread")\n'
        "    return await to_thread(job, *arguments)\n"
        "asyncio.to_thread = fail_once\n"
    )
    idle_daemon.start()
    assert "can't start new thread" in reload(idle_daemon, "refused")
    assert "changed: max_clients" in reload(idle_daemon, max_clients=5)


def test_a_reload_waits_for_the_start_to_be_over(idle_daemon: Daemon) -> None:
    manager = Notices(str(idle_daemon.home / "notify"))
    idle_daemon.environ = {"NOTIFY_SOCKET": str(idle_daemon.home / "notify")}
    idle_daemon.prelude = (
        "import asyncio, os, signal\n"
        "from pfsd.daemon import Daemon\n"
        "listen = Daemon._listen\n"
        "async def hang_up_first(self):\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
        "    await asyncio.wait({self._reloads}, timeout=0.3)\n"
        "    await listen(self)\n"
        "Daemon._listen = hang_up_first\n"
    )
    with closing(manager.socket):
        idle_daemon.start()
        assert [next(iter(manager.next())) for _ in range(3)] == ["READY", "RELOADING", "READY"]


def test_stop_timeout_and_all_that_does_not_stop_a_daemon(idle_daemon: Daemon) -> None:
    manager = Notices(str(idle_daemon.home / "notify"))
    idle_daemon.environ = {"NOTIFY_SOCKET": str(idle_daemon.home / "notify")}
    idle_daemon.prelude = (
        "import os, signal\nfrom pfsd import daemon\nopened = daemon.Daemon._open_store\n"
        "def open_store(self):\n    os.kill(os.getpid(), signal.SIGHUP)\n    opened(self)\n"
        "daemon.Daemon._open_store = open_store\n"
    )
    idle_daemon.start()  # a SIGHUP meanwhile does no harm
    workers = {process.pid for process in idle_daemon.workers()}
    for process in psutil.Process(idle_daemon.pid).children(recursive=True):
        process.send_signal(signal.SIGHUP)
    reload(idle_daemon, stop_timeout=100)
    assert {process.pid for process in idle_daemon.workers()} == workers
    idle_daemon.stop()
    while "STOPPING" not in (message := manager.next()):
        pass
    assert int(message["EXTEND_TIMEOUT_USEC"]) > 105e6
    manager.socket.close()


#: Becomes a daemon whose terminal is the one that the first argument names.
IN_TERMINAL = """
import os, sys
os.setsid()
os.dup2(os.open(sys.argv[1], os.O_RDWR), 0)
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_a_daemon_whose_terminal_is_closed_stops(idle_daemon: Daemon) -> None:
    ours, its = os.openpty()
    idle_daemon.starter = [sys.executable, "-c", IN_TERMINAL, os.ttyname(its)]
    idle_daemon.start()
    os.close(its)
    reload(idle_daemon)  # as long as it is open, it is nothing but a signal
    idle_daemon.note_family()
    os.close(ours)
    idle_daemon.wait(0)
