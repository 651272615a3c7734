"""Starting a daemon in the background, for a client that finds none.

The daemon outlives the client, so it gets a log file instead of the client's terminal. Of several clients that
start one at the same time, one does and the others find it.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO

from pfsd import config
from pfsd.client import TLS, CannotConnect, Client
from pfsd.errors import AuthError, FatalError
from pfsd.kinds import Listener, TcpAddress
from pfsd.transfer import in_thread

#: The directory that this `pfsd` is imported from, installed or not.
HOME = Path(__file__).resolve().parent.parent
READY = b"pfsd ready on "
#: How often the log is looked at. It cannot be a pipe: the daemon would write into a broken one later.
LOOK_SECONDS = 0.02


async def daemon(config_file: Path | None, address: str | None, quiet: bool, ca: Path | None = None) -> str:
    """Start a daemon unless one answers; returns the address to use: `address`, or the first it is to listen on.

    CannotConnect with the daemon's last words when it cannot start.
    """
    try:
        if config_file is None:
            config.make_home(os.environ)
        settings = config.load(config_file, os.environ)
    except FatalError as error:
        raise CannotConnect(f"no daemon can be started: {error}") from None
    wanted = address or _connectable(settings.listen[0])
    if wanted and await _answers(wanted, ca):
        return wanted
    log = _open_log(settings.path)
    with log, open(log.name, "rb") as lock:  # noqa: ASYNC230
        # Not on `log`: the daemon inherits that, and would keep the lock.
        await in_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        if wanted and await _answers(wanted, ca):
            return wanted  # the one that another client has started
        begin = os.fstat(log.fileno()).st_size
        process = _start(config_file, log)
        if not quiet:
            print(f"starting a daemon; its log is {log.name}", file=sys.stderr, flush=True)
        listening = await _wait_ready(process, Path(log.name), begin)
    return address or _spelled(settings.listen[0], listening)


def _connectable(listener: Listener) -> str | None:
    """An address as clients use it; None when only the daemon knows its port."""
    address = listener.address
    return None if isinstance(address, TcpAddress) and address.port == 0 else _spelled(listener, str(address))


def _spelled(listener: Listener, address: str) -> str:
    return f"{TLS}{address}" if listener.tls else address


async def _answers(address: str, ca: Path | None) -> bool:
    try:
        async with await Client.connect(address, ca=ca) as client:
            await client.ping()
    except CannotConnect:
        return False
    except AuthError:
        return True
    return True


def _open_log(store: Path) -> BinaryIO:
    """The log beside the store, or in the directory for temporary files when that cannot be written."""
    name = f"{store.name}.log"
    user = Path(tempfile.gettempdir()) / f"pfsd-{os.getuid()}"
    for path in (store.with_name(name), user / name):
        try:
            if path.parent == user:
                user.mkdir(mode=0o700, exist_ok=True)
            return open(path, "ab", buffering=0, opener=_private)
        except OSError as error:
            failure = error
    raise CannotConnect(f"no daemon answers and none can be started: {failure.filename}: {failure.strerror}")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o600)


def _start(config_file: Path | None, log: BinaryIO) -> subprocess.Popen[bytes]:
    named = [] if config_file is None else ["--config", str(config_file.absolute())]
    path = [str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "pfsd", *named],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        cwd="/",
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        start_new_session=True,
    )


async def _wait_ready(process: subprocess.Popen[bytes], log: Path, begin: int) -> str:
    """Wait as long as it takes, a big journal may be read first; returns the first address in the log."""
    while True:
        ended = process.poll()
        lines = _lines(log, begin)
        for line in lines:
            if line.startswith(READY):
                return os.fsdecode(line.removeprefix(READY)).strip()
        if ended is not None:
            last = lines[-1].decode("utf-8", "replace").strip() if lines else "it said nothing"
            raise CannotConnect(f"the daemon ended with {ended}: {last} (log: {log})")
        await asyncio.sleep(LOOK_SECONDS)


def _lines(log: Path, begin: int) -> list[bytes]:
    """The complete lines behind a position."""
    with open(log, "rb") as file:
        file.seek(begin)
        return [line for line in file.read().splitlines(keepends=True) if line.endswith(b"\n")]
