"""What all tests share: every async test runs on uvloop and on asyncio, and a daemon of one's own is a fixture."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, settings

from pfsd import cli
from tests.harness import DEFAULTS, Daemon
from tests.programs import Run
from tests.wire import Wire

# Daemons are started by the hundred, and would compile all of pfsd each time.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A shell lets what it starts in the background ignore Ctrl-C, and so would all that is started from here.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes is the machine's affair: it may have much else to do.
settings.register_profile("pfsd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("pfsd")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--loop", choices=["uvloop", "asyncio"], default="uvloop", help="the event loop of daemons")
    parser.addoption("--faults", choices=["quick", "full"], default="quick", help="how often faults are tried")


def pytest_configure(config: pytest.Config) -> None:
    DEFAULTS["loop"] = config.getoption("loop")


def pytest_asyncio_loop_factories(config: Any, item: Any) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The event loops that `loop:` in the configuration offers."""
    return {"uvloop": uvloop.new_event_loop, "asyncio": asyncio.new_event_loop}


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A running daemon with small parts; the test may stop, kill and reconfigure it."""
    with Daemon(tmp_path) as daemon:
        daemon.start()
        yield daemon


@pytest.fixture
def idle_daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that is not started yet."""
    with Daemon(tmp_path) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def shared_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One running daemon for all tests of a module, which must not mind each other's files."""
    with Daemon(tmp_path_factory.mktemp("shared")) as daemon:
        daemon.start()
        yield daemon


@pytest.fixture
def emptied(shared_daemon: Daemon) -> Daemon:
    """The shared daemon with nothing in it; the test must leave it running, and as it is set."""
    shared_daemon.empty()
    return shared_daemon


@pytest.fixture
def wire(shared_daemon: Daemon) -> Iterator[Wire]:
    """A connection to the shared daemon."""
    with shared_daemon.connect() as wire:
        yield wire


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, empty; no settings in the environment."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    for key in ("PFSD_SERVER", "PFSD_TOKEN", "PFSD_TOKEN_FILE", "PFSD_CA", "PFSD_CONFIG"):
        monkeypatch.delenv(key, raising=False)
    return here


@pytest.fixture
def invoke(here: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the client in this process: exit code, stdout, stderr."""

    def invoke(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.client_main(words)
        return code, *capfd.readouterr()

    return invoke


@pytest.fixture
def run(emptied: Daemon, invoke: Run, monkeypatch: pytest.MonkeyPatch) -> Run:
    """As `invoke`, with the shared daemon, whose store is empty."""
    monkeypatch.setenv("PFSD_SERVER", f"127.0.0.1:{emptied.port}")
    return invoke
