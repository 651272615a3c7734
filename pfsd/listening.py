"""Listening sockets, whose newcomers are taken one by one: who is one too many is told so, and costs one descriptor.

Left to the event loops, all that wait are taken before anybody can look at them. When descriptors run out, uvloop then
closes newcomers without a word, and asyncio tries again without end.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from pfsd.errors import ConfigError, RequestError
from pfsd.kinds import Address, TcpAddress, UnixAddress
from pfsd.protocol import LF, format_error

log = logging.getLogger(__name__)

BACKLOG = 512
#: So many are taken in one turn of the loop.
AT_ONCE = 32
#: After this many seconds it is tried again to take somebody, when descriptors or memory had run out.
REST_SECONDS = 0.1
#: What a newcomer that is turned away has sent already is read up to here: unread, it would become a reset.
UNREAD_BYTES = 64 << 10

_GONE_AGAIN = {errno.ECONNABORTED, errno.EPROTO, errno.EPERM, errno.ENETDOWN, errno.EHOSTUNREACH, errno.ENETUNREACH}


def in_a_line(error: RequestError) -> bytes:
    """An error as the line protocol says it."""
    return format_error(error, None, LF)


class Acceptor:
    """One listening socket. `refusal` looks at a newcomer and says why it cannot stay; others get a protocol each.
    Who cannot stay is told in the words that `tell` makes of it, if any.

    The `connection_lost` of a protocol is called even if its connection never came to be made.
    """

    def __init__(
        self,
        sock: socket.socket,
        refusal: Callable[[socket.socket], RequestError | None],
        make_protocol: Callable[[], asyncio.BufferedProtocol],
        *,
        tell: Callable[[RequestError], bytes] = in_a_line,
    ) -> None:
        self._sock = sock
        self._tell = tell
        self._refusal = refusal
        self._make_protocol = make_protocol
        self._welcomes: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        self._begin()

    def close(self) -> None:
        """Listen no more; who has been taken stays."""
        if self._timer is not None:
            self._timer.cancel()
        if self._sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sock)
            self._sock.close()

    def _begin(self) -> None:
        self._timer = None
        asyncio.get_running_loop().add_reader(self._sock, self._take)

    def _take(self) -> None:
        for _ in range(AT_ONCE):
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in _GONE_AGAIN:
                    continue
                self._rest(error)
                return
            if refusal := self._refusal(sock):
                _turn_away(sock, self._tell(refusal))
                continue
            task = asyncio.create_task(_welcome(sock, self._make_protocol()))
            self._welcomes.add(task)
            task.add_done_callback(self._welcomes.discard)

    def _rest(self, error: OSError) -> None:
        """Those who wait would wake the loop again at once, and again."""
        log.warning("no client can be taken for a moment: %s", error)
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._sock)
        self._timer = loop.call_later(REST_SECONDS, self._begin)


async def _welcome(sock: socket.socket, protocol: asyncio.BufferedProtocol) -> None:
    try:
        await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, sock)
    except OSError as error:
        log.debug("a client was gone before it was welcome: %s", error)
        sock.close()
        protocol.connection_lost(error)


def _turn_away(sock: socket.socket, last_words: bytes) -> None:
    with sock, suppress(OSError):
        sock.setblocking(False)
        sock.send(last_words)
        sock.shutdown(socket.SHUT_WR)
        sock.recv(UNREAD_BYTES)


async def open_sockets(address: Address, passed: Passed | None = None) -> list[socket.socket]:
    """Sockets that listen on an address: a host name may stand for several. OSError.

    Those that were passed by whoever started the daemon are taken, the others are made.
    """
    passed = passed or Passed([])
    if isinstance(address, TcpAddress):
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        places = dict.fromkeys((socket.AddressFamily(family), where) for family, _, _, _, where in found)
        return [sock for family, where in places for sock in passed.take(family, where) or [_listen(family, where)]]
    where = str(address.path)
    if taken := passed.take(socket.AF_UNIX, where):
        return taken
    umask = os.umask(0o177)  # the socket is born private, not made so a moment later
    try:
        return [_listen(socket.AF_UNIX, where)]
    finally:
        os.umask(umask)


class Passed:
    """Listening sockets that a service manager has opened, to be taken by their addresses."""

    def __init__(self, sockets: Sequence[socket.socket]) -> None:
        """ConfigError for one that does not listen for streams."""
        for sock in sockets:
            is_stream = sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
            if not is_stream or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                raise ConfigError("systemd passes a socket that does not listen: use ListenStream= and Accept=no")
        self._left = list(sockets)

    def has(self, address: UnixAddress) -> bool:
        """Whether one listens there."""
        return any(_place(sock.getsockname()) == _place(str(address.path)) for sock in self._left)

    def take(self, family: socket.AddressFamily, where: object) -> list[socket.socket]:
        """Those that listen there."""
        taken = [sock for sock in self._left if (sock.family, _place(sock.getsockname())) == (family, _place(where))]
        self._left = [sock for sock in self._left if sock not in taken]
        return taken

    def check_all_taken(self) -> None:
        """ConfigError for a socket on which nobody would be served."""
        for sock in self._left:
            where = _place(sock.getsockname())
            shown = TcpAddress(*where) if isinstance(where, tuple) else f"unix:{where}"
            raise ConfigError(f"systemd passes a socket on {shown}, which is in neither listen nor http: put it there")


def _place(name: Any) -> tuple[str, int] | str:
    """A socket's own name, however it is written: host and port, or the real path of a Unix socket.

    Of an abstract one, which has no path, it is what systemd writes: its name behind an @.
    """
    if isinstance(name, tuple):
        return name[0], name[1]
    return f"@{os.fsdecode(name[1:])}" if isinstance(name, bytes) else os.path.realpath(name)


def _listen(family: socket.AddressFamily, where: object) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        if family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(where)  # type: ignore[arg-type]
        sock.listen(BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
