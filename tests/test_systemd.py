"""systemd: what the service manager is told, and listening sockets that it passes; the unit files are sound."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from pfsd import systemd
from pfsd.errors import ConfigError, FatalError
from pfsd.listening import Passed
from tests.harness import PATIENCE_SECONDS, Daemon, free_port
from tests.wire import Wire, code

UNITS = Path(__file__).parent.parent / "contrib" / "systemd"
TOKEN = "correct-horse-battery"


class Notices:
    """A service manager that listens; each message is a dict of its lines."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.settimeout(PATIENCE_SECONDS)

    def next(self) -> dict[str, str]:
        """The next message that is no sign of life."""
        while "WATCHDOG" in (message := self.any()):
            pass
        return message

    def any(self) -> dict[str, str]:
        """The next message."""
        lines = self.socket.recv(8192).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def manager(idle_daemon: Daemon) -> Iterator[Notices]:
    """The manager of a daemon that is not started yet."""
    address = str(idle_daemon.home / "notify")
    idle_daemon.environ = {"NOTIFY_SOCKET": address}
    listening = Notices(address)
    yield listening
    listening.socket.close()


# --- messages -----------------------------------------------------------------------------------


def test_a_daemon_tells_its_life_in_order(idle_daemon: Daemon, manager: Notices) -> None:
    # The start is made to look long; its first message cannot be missed.
    idle_daemon.prelude = (
        "import time\nfrom pfsd import daemon, systemd\nsystemd.PROGRESS_SECONDS = 0.01\n"
        "opened = daemon.Daemon._open_store\n"
        "def open_store(self):\n"
        "    until = time.process_time() + 0.2\n"
        "    while time.process_time() < until: pass\n"
        "    opened(self)\n"
        "daemon.Daemon._open_store = open_store\n"
    )
    idle_daemon.config(stop_timeout=7)
    idle_daemon.start()
    message = manager.next()
    assert message["STATUS"].startswith("starting: 0 files")
    assert int(message["EXTEND_TIMEOUT_USEC"]) == systemd.MORE_SECONDS * 1e6
    while "READY" not in message:
        message = manager.next()
    assert message["STATUS"] == "ready: 0 files, 0 clients, 0 requests"

    before = time.monotonic_ns() // 1000
    idle_daemon.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
    message = manager.next()
    assert message.keys() == {"RELOADING", "MONOTONIC_USEC"}
    assert before <= int(message["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert manager.next()["READY"] == "1"

    idle_daemon.config(bogus=1)
    idle_daemon.process.send_signal(signal.SIGHUP)  # type: ignore[union-attr]
    assert "RELOADING" in manager.next()
    message = manager.next()
    assert message["READY"] == "1" and "refused" in message["STATUS"] and "bogus" in message["STATUS"]

    idle_daemon.stop()
    message = manager.next()
    assert message["STOPPING"] == "1" and "stopping" in message["STATUS"]
    assert int(message["EXTEND_TIMEOUT_USEC"]) >= 12e6


def test_status_follows_and_a_daemon_that_stands_still_gives_no_sign_of_life(
    idle_daemon: Daemon, manager: Notices
) -> None:
    idle_daemon.prelude = "from pfsd import daemon\ndaemon.STATUS_SECONDS = 0.01\n"
    idle_daemon.environ["WATCHDOG_USEC"] = "200000"
    idle_daemon.start()
    assert "READY" in manager.next()
    with idle_daemon.connect() as wire:
        assert code(wire.last(b"put - name=a size=1\nx")) == "OK"
        while manager.next()["STATUS"] != "ready: 1 files, 1 clients, 0 requests":
            pass
    while manager.next()["STATUS"] != "ready: 1 files, 0 clients, 0 requests":
        pass
    for _ in range(3):
        assert manager.any() == {"WATCHDOG": "1"}
    idle_daemon.freeze()
    manager.socket.settimeout(0.5)
    with pytest.raises(TimeoutError):
        for _ in range(3):  # those sent before it stood still
            manager.any()
    manager.socket.settimeout(PATIENCE_SECONDS)
    idle_daemon.thaw()
    assert manager.any() == {"WATCHDOG": "1"}
    for process in psutil.Process(idle_daemon.pid).children(recursive=True):
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC"} & process.environ().keys()


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000"}, 3.0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "soon"}, None),
        ({"NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "3000000"}, None),
        ({"NOTIFY_SOCKET": "vsock:2:1", "WATCHDOG_USEC": "3000000"}, None),
    ],
)
def test_the_watchdog_is_that_of_this_process(environ: dict[str, str], seconds: float | None) -> None:
    manager = systemd.Manager.taken_from(environ)
    assert manager.watchdog_seconds == seconds
    assert environ == {}


def test_the_address_may_be_abstract() -> None:
    notices = Notices(f"@pfsd-test-{os.getpid()}")
    systemd.Manager(f"@pfsd-test-{os.getpid()}").ready("two\nlines")
    assert notices.any() == {"READY": "1", "STATUS": "two lines"}
    notices.socket.close()


def test_a_manager_that_is_gone_does_not_matter(tmp_path: Path) -> None:
    manager = systemd.Manager(str(tmp_path / "nobody"))
    manager.ready("all is well")
    systemd.Manager().alive()


def test_want_of_descriptors_fails_nobody_who_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socket", refuse)
    systemd.Manager(str(tmp_path / "notify")).alive()


def test_a_start_that_hangs_gets_no_more_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemd, "PROGRESS_SECONDS", 0.01)
    monkeypatch.setattr(systemd, "LEAST_CPU_SECONDS", 1.0)
    notices = Notices(str(tmp_path / "notify"))
    notices.socket.settimeout(0.2)
    with systemd.Manager(str(tmp_path / "notify")).starting(lambda: "starting"), pytest.raises(TimeoutError):
        notices.any()
    notices.socket.close()


# --- passed sockets -----------------------------------------------------------------------------

#: Opens the sockets that its first argument names, hands them over as systemd does, and becomes the rest.
LAUNCHER = """
import os, socket, sys
sockets = []
for word in sys.argv[1].split():
    if word.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX); sock.bind(word[5:])
    else:
        host, _, port = word.rpartition(":")
        sock = socket.socket(); sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); sock.bind((host, int(port)))
    sock.listen()
    sockets.append(os.dup2(sock.fileno(), 100 + len(sockets)))
for at, fd in enumerate(sockets):
    os.dup2(fd, 3 + at)
os.environ.update(LISTEN_FDS=str(len(sockets)), LISTEN_PID=str(os.getpid()), LISTEN_FDNAMES="pfsd")
os.execv(sys.argv[2], sys.argv[2:])
"""


def hand_over(daemon: Daemon, *addresses: str) -> None:
    """Let the daemon be started with sockets on these addresses."""
    daemon.starter = [sys.executable, "-c", LAUNCHER, " ".join(addresses)]


def test_passed_sockets_serve_as_their_listeners_say(idle_daemon: Daemon) -> None:
    port, http_port = free_port(), free_port()
    idle_daemon.config(
        listen=[{"address": f"localhost:{port}", "allow": ["list"]}, "unix:link/socket", "unix:own"],
        http=f"127.0.0.1:{http_port}",
        token=TOKEN,
    )
    (idle_daemon.home / "link").symlink_to(idle_daemon.home)
    hand_over(idle_daemon, f"unix:{idle_daemon.socket_path}", f"127.0.0.1:{port}", f"127.0.0.1:{http_port}")
    idle_daemon.spawn()
    process = idle_daemon.process
    assert process is not None and process.stdout is not None
    said = {process.stdout.readline() for _ in range(4)}
    assert said >= {b"pfsd ready on 127.0.0.1:%d\n" % port, b"pfsd http on 127.0.0.1:%d\n" % http_port}
    inode = idle_daemon.socket_path.stat().st_ino
    with Wire(("127.0.0.1", port)) as tcp, Wire(str(idle_daemon.socket_path)) as local:
        assert code(tcp.last(b"list\n")) == "auth"
        assert code(tcp.last(b"auth %b\n" % TOKEN.encode())) == "OK"
        assert code(tcp.last(b"list\n")) == "OK"
        assert code(tcp.last(b"stats\n")) == "denied"
        assert code(local.last(b"auth %b\n" % TOKEN.encode())) == "OK"
        assert code(local.last(b"stats\n")) == "OK"
    with Wire(("127.0.0.1", http_port)) as browser:
        browser.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert browser.line().startswith(b"HTTP/1.1 200 ")
    for child in psutil.Process(idle_daemon.pid).children(recursive=True):
        assert not {"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES"} & child.environ().keys()
        assert not [each for each in child.net_connections() if each.status == psutil.CONN_LISTEN]
    idle_daemon.stop()
    assert idle_daemon.socket_path.stat().st_ino == inode, "it is systemd's"
    assert not (idle_daemon.home / "own").exists()


def test_sockets_that_listen_does_not_name_are_refused(idle_daemon: Daemon) -> None:
    port = free_port()
    idle_daemon.config(listen=f"127.0.0.1:{port}")
    hand_over(idle_daemon, f"0.0.0.0:{port}")  # which is in the way of the other
    exit_code, words = idle_daemon.start_fails()
    assert exit_code == 78 and f"passes a socket on 0.0.0.0:{port}," in words and "Traceback" not in words


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_what_nobody_took_is_named(family: socket.AddressFamily, tmp_path: Path) -> None:
    with socket.socket(family) as sock:
        sock.bind(str(tmp_path / "sock") if family == socket.AF_UNIX else ("", 0))
        sock.listen()
        passed = Passed([sock])
        assert passed.take(socket.AF_INET, ("127.0.0.1", 1)) == []
        with pytest.raises(ConfigError) as caught:
            passed.check_all_taken()
        where = {socket.AF_INET: "0.0.0.0:", socket.AF_INET6: "[::]:", socket.AF_UNIX: f"unix:{tmp_path}/sock,"}
        assert f"on {where[family]}" in caught.value.message


def test_what_nobody_took_is_named_if_it_has_no_path_too() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(f"\0pfsd-{os.getpid()}")
        sock.listen()
        passed = Passed([sock])
        assert passed.take(socket.AF_UNIX, "/pfsd") == []
        with pytest.raises(ConfigError, match=f"on unix:@pfsd-{os.getpid()}, which is in neither"):
            passed.check_all_taken()


@pytest.mark.promise("local")
def test_an_open_socket_needs_a_token_too(idle_daemon: Daemon) -> None:
    port = free_port()
    idle_daemon.config(listen=f"0.0.0.0:{port}")
    hand_over(idle_daemon, f"0.0.0.0:{port}")
    exit_code, words = idle_daemon.start_fails()
    assert exit_code == 78 and "token" in words


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_what_does_not_listen_is_refused(kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(ConfigError, match="Accept=no"):
            Passed([sock])


def test_what_is_no_socket_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        monkeypatch.setattr(systemd, "FIRST_FD", file.fileno())
        with pytest.raises(ConfigError):
            systemd.passed_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"})


def test_sockets_of_another_process_are_left_alone() -> None:
    environ = {"LISTEN_PID": "1", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "x"}
    assert systemd.passed_sockets(environ) == [] and environ == {}


@pytest.mark.skipif(shutil.which("systemd-socket-activate") is None, reason="needs systemd-socket-activate")
def test_socket_activation_by_systemd(idle_daemon: Daemon) -> None:
    port = free_port()
    idle_daemon.config(listen=f"127.0.0.1:{port}")
    home = Path(__file__).parent.parent
    idle_daemon.starter = ["systemd-socket-activate", "-E", f"PYTHONPATH={home}", "-l", f"127.0.0.1:{port}"]
    idle_daemon.spawn()
    until = time.monotonic() + PATIENCE_SECONDS
    while "Listening" not in idle_daemon.log:
        assert time.monotonic() < until, idle_daemon.log
    with Wire(("127.0.0.1", port)) as wire:  # who waits for the start is served
        assert wire.ask(b"ping\n") == [b"OK ping"]
    idle_daemon.stop()


# --- unit files ---------------------------------------------------------------------------------


def unit(name: str) -> dict[str, dict[str, list[str]]]:
    """Section -> key -> values of a unit file."""
    sections: dict[str, dict[str, list[str]]] = {}
    for line in (UNITS / name).read_text().replace("\\\n", "").splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return sections


def test_the_service_fits_the_daemon() -> None:
    service = unit("pfsd.service")["Service"]
    prevented = set(map(int, service["RestartPreventExitStatus"][0].split()))
    known = {64} | {kind.exit_code for kind in FatalError.__subclasses__()}
    assert prevented < known
    assert service["Type"] == ["notify"] and service["ExecReload"] == ["/bin/kill -HUP $MAINPID"]
    words = service["ExecStart"][0].split()
    assert words[1:] == ["--config", "/etc/pfsd/config.yaml"]
    assert f"{Path(words[0]).name} = pfsd.cli:server_main" in (UNITS.parent.parent / "setup.cfg").read_text()


@pytest.fixture
def installed(tmp_path: Path) -> list[str]:
    """The unit files, with programs that exist here."""
    paths = []
    for name in ("pfsd.service", "pfsd.socket"):
        path = tmp_path / name
        path.write_text(re.sub(r"/opt/pfsd/bin/\w+", sys.executable, (UNITS / name).read_text()))
        paths.append(str(path))
    return paths


needs_analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


@needs_analyze
def test_systemd_understands_the_units(installed: list[str]) -> None:
    done = subprocess.run(["systemd-analyze", "verify", "--man=no", *installed], capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "pfsd" in line]
    assert not ours and done.returncode == 0, done.stderr


@needs_analyze
def test_the_service_is_hardened(installed: list[str]) -> None:
    words = ["systemd-analyze", "security", "--offline=true", "--threshold=25", installed[0]]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-500:] + done.stderr
