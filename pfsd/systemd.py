"""What a service manager such as systemd and the daemon tell each other: sd_notify, and sockets that were passed.

All of it is in the environment, and is taken out of it: it is meant for this process, and not for its children.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress

from pfsd.errors import ConfigError

#: The first descriptor that is passed, as SD_LISTEN_FDS_START.
FIRST_FD = 3
#: While the daemon starts it says so often how far it is, and asks for so much more time.
PROGRESS_SECONDS = 5.0
MORE_SECONDS = 60.0
#: A start that takes less than this much processor time in PROGRESS_SECONDS hangs, and gets no more time.
LEAST_CPU_SECONDS = 0.005
#: The manager takes messages at once; if it is stuck, the daemon does not wait for it.
SEND_SECONDS = 1.0


class Manager:
    """The service manager that has started this process; without one nobody listens."""

    def __init__(self, address: str | None = None, watchdog_seconds: float | None = None) -> None:
        """`address` is a path, or with @ in front the name of an abstract Unix socket."""
        self._address = address
        #: A daemon that has not been `alive` for so long is restarted; None is never.
        self.watchdog_seconds = watchdog_seconds
        self._status = ""

    @classmethod
    def taken_from(cls, environ: MutableMapping[str, str]) -> Manager:
        """The manager that variables tell of, which are removed."""
        address = environ.pop("NOTIFY_SOCKET", "")
        watchdog = _number(environ.pop("WATCHDOG_USEC", ""))
        pid = environ.pop("WATCHDOG_PID", "")
        if not address.startswith(("/", "@")):
            return cls()
        is_meant = pid in ("", str(os.getpid()))
        return cls(address, watchdog / 1e6 if watchdog and is_meant else None)

    @property
    def is_there(self) -> bool:
        """Whether there is one."""
        return self._address is not None

    def status(self, text: str) -> None:
        """Show people how the daemon is, in one line."""
        if text != self._status:
            self._tell(_status(text))
            self._status = text

    def ready(self, text: str) -> None:
        """The start is over, or a reload."""
        self._tell("READY=1", _status(text))
        self._status = text

    def reloading(self) -> None:
        """A reload has begun; `ready` ends it."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, text: str, seconds: float) -> None:
        """The daemon will have ended in so many seconds."""
        self._tell("STOPPING=1", _status(text), _more_time(seconds))

    def alive(self) -> None:
        """The event loop turns."""
        self._tell("WATCHDOG=1")

    @contextmanager
    def starting(self, text: Callable[[], str]) -> Iterator[None]:
        """Show how far the start is, and ask for more time, as long as it is at work. From a thread: it may block."""
        over = threading.Event()

        def keep_telling() -> None:
            used = time.process_time()
            while not over.wait(PROGRESS_SECONDS):
                before, used = used, time.process_time()
                if used - before >= LEAST_CPU_SECONDS:
                    self._tell(_status(text()), _more_time(MORE_SECONDS))

        thread = threading.Thread(target=keep_telling, daemon=True)
        if self.is_there:
            thread.start()
        try:
            yield
        finally:
            over.set()
            if self.is_there:
                thread.join()  # nothing of this may come behind READY=1

    def _tell(self, *lines: str) -> None:
        if self._address is None:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        # Also of the socket, for which there may be no descriptor: whoever tells something has more to do than that.
        with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.settimeout(SEND_SECONDS)
            sock.sendto("\n".join(lines).encode("utf-8", "backslashreplace"), address)


def passed_sockets(environ: MutableMapping[str, str]) -> list[socket.socket]:
    """The sockets that were opened for this process, now its own. The variables that tell of them are removed.

    ConfigError for a descriptor that is no socket.
    """
    pid, count = environ.pop("LISTEN_PID", ""), _number(environ.pop("LISTEN_FDS", ""))
    environ.pop("LISTEN_FDNAMES", None)
    if pid != str(os.getpid()):
        return []
    try:
        sockets = [socket.socket(fileno=fd) for fd in range(FIRST_FD, FIRST_FD + count)]
    except OSError:
        raise ConfigError("systemd passes something that is no socket: use ListenStream=") from None
    for sock in sockets:
        sock.set_inheritable(False)
    return sockets


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else 0


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.splitlines())}"


def _more_time(seconds: float) -> str:
    return f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}"
