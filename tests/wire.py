"""One connection to a daemon, seen as a person with `nc` sees it: literal lines and raw bytes."""

from __future__ import annotations

import re
import socket
import struct
from types import TracebackType

#: A reply that takes longer is a failure.
PATIENCE_SECONDS = 30.0

_FINAL = re.compile(rb"(@\S+ )?(OK|ERR)( |$)")
_FRAME = re.compile(rb"(?:@(\S+) )?DATA (\d+)")


class Wire:
    """A blocking connection to `(host, port)` or the path of a Unix socket."""

    def __init__(self, address: tuple[str, int] | str, receive_buffer: int | None = None) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE_SECONDS)
        self.socket.connect(address)
        self._buffer = bytearray()

    # --- sending ---

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def half_close(self) -> None:
        """Say that no more bytes will come, as `nc -N` does."""
        self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Leave without a word."""
        self.socket.close()

    def reset(self) -> None:
        """Leave with a reset instead of an end."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    # --- receiving ---

    def raw_line(self) -> bytes:
        """The next line with its ending; empty at the end."""
        while b"\n" not in self._buffer:
            if not self._receive():
                rest = bytes(self._buffer)
                self._buffer.clear()
                return rest
        end = self._buffer.index(b"\n") + 1
        return self._take(end)

    def line(self) -> bytes:
        """The next line without its ending; the connection must not end before it."""
        line = self.raw_line()
        assert line.endswith(b"\n"), f"the connection ended after {line!r}"
        return line[:-1].removesuffix(b"\r")

    def reply(self) -> list[bytes]:
        """All lines of a reply, the last one is its OK or ERR."""
        lines = [self.line()]
        while not _FINAL.match(lines[-1]):
            lines.append(self.line())
        return lines

    def ask(self, request: bytes) -> list[bytes]:
        """Send a request and read its reply."""
        self.send(request)
        return self.reply()

    def last(self, request: bytes) -> bytes:
        """Send a request and return the final line of its reply."""
        return self.ask(request)[-1]

    def exactly(self, count: int) -> bytes:
        """The next `count` raw bytes."""
        while len(self._buffer) < count:
            assert self._receive(), f"the connection ended {count - len(self._buffer)} bytes too early"
        return self._take(count)

    def peek(self, count: int) -> bytes:
        """The next `count` raw bytes, which stay to be read."""
        taken = self.exactly(count)
        self._buffer[:0] = taken
        return taken

    def frames(self) -> tuple[bytes, bytes]:
        """The content of a reply in DATA frames, and its final line."""
        content = bytearray()
        while found := _FRAME.fullmatch(line := self.line()):
            assert 0 < int(found[2]) <= 1048576
            content += self.exactly(int(found[2]))
        assert _FINAL.match(line), line
        return bytes(content), line

    def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        while self._receive():
            pass
        return self._take(len(self._buffer))

    def at_eof(self) -> bool:
        """Whether the daemon closes without another byte; waits for either."""
        return not self._buffer and not self._receive()

    def _receive(self) -> bool:
        data = self.socket.recv(1 << 18)
        self._buffer += data
        return bool(data)

    def _take(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def __enter__(self) -> Wire:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def fields(line: bytes) -> dict[str, str]:
    """The key=value words of a reply line. Written apart from the daemon's own parser, which it checks."""
    found = re.findall(r'(?:^| )([A-Za-z_][\w-]*)=(?:"((?:[^"\\]|\\.)*)"|(\S*))', line.decode())
    return {key: _unescaped(quoted) if quoted else bare for key, quoted, bare in found}


_ESCAPE = re.compile(r"\\(x[0-9a-f]{2}|.)")
_NAMED = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\"}


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda found: _NAMED.get(found[1]) or chr(int(found[1][1:], 16)), text)


def code(line: bytes) -> str:
    """The error word of an ERR line, or OK."""
    words = line.decode().split(" ")
    words = words[1:] if words[0].startswith("@") else words
    return "OK" if words[0] == "OK" else words[1]
