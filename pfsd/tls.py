"""TLS below a connection: a transport for the protocol above it, a protocol for the transport below it.

The event loops have TLS of their own. It throws away what is written once the client has ended its side, so that
requests sent ahead would get no answers, and what the socket does not take at once piles up below it, uncounted.
Here the plain bytes stay where they are until the socket has taken all before them: `write` keeps a view, and at most
PIECE bytes are encrypted and on their way. Paused and resumed, as by a plain transport with a high-water mark of 0,
the protocol above may reuse its memory when it is told to go on.

OpenSSL does the encryption; nothing here waits.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

log = logging.getLogger(__name__)

#: Encrypted bytes received at once. What of them nobody reads yet is kept, beside what the protocol above has.
RECEIVE = 64 << 10
#: Plain bytes encrypted before the socket is asked whether it takes more.
PIECE = 64 << 10
#: OpenSSL answers by itself, to requests for new keys say: a client that takes no answers gets no further than this.
MOST_UNTAKEN = 1 << 20
#: The first byte of TLS.
_HANDSHAKE = 0x16


class TlsTransport(asyncio.BufferedProtocol, asyncio.Transport):
    """The server's end of TLS on one connection. `above` is told of it when the handshake is done, if ever.

    The client's close_notify is its half-close: answers still go out behind it. An end without one is a loss, since
    anybody between could have made it.
    """

    #: Where encrypted bytes are received. One for all: the loops fill it and say so in one step.
    _buffer = memoryview(bytearray(RECEIVE))

    def __init__(
        self,
        context: ssl.SSLContext,
        above: asyncio.BufferedProtocol,
        seconds: float,
        refusal: bytes,
        settled: Callable[[TlsTransport], object],
    ) -> None:
        """`seconds` bounds the handshake. Who does not speak TLS gets `refusal`. `settled` is called once: when the
        handshake is done, and before `above` hears of it, or when there is none."""
        super().__init__()
        self._above = above
        self._seconds = seconds
        self._refusal = refusal
        self._settled: Callable[[TlsTransport], object] | None = settled
        self._received, self._to_send = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._received, self._to_send, server_side=True)
        self._below: asyncio.Transport
        self._timer: asyncio.TimerHandle | None = None
        self._begun = self._made = False  # a byte has come; the handshake is done
        self._reading = True
        self._reading_ended = False  # by the client, or nobody listens any more
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._room_below = True
        self._paused = False  # the protocol above
        self._writing_ended = self._closing = self._lost = False

    # --- the transport's side: encrypted bytes ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._below = cast(asyncio.Transport, transport)
        self._below.set_write_buffer_limits(high=0)
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._below.abort)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if not self._begun:
            self._begun = True
            if self._buffer[0] != _HANDSHAKE:
                self._reading_ended = True
                self._below.write(self._refusal)
                self._below.close()
                return
        if self._reading_ended or self._writing_ended:
            return  # nobody listens
        self._received.write(self._buffer[:nbytes])
        if self._made or self._shake_hands():
            self._deliver()

    def eof_received(self) -> bool:
        if not self._made or not (self._reading_ended or self._writing_ended):
            self._below.abort()  # cut, for all that is known
        elif self._writing_ended and not self._reading_ended:
            self._end_reading()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._settle()
        self._drop_unsent()
        if self._made:
            self._above.connection_lost(exc)

    def pause_writing(self) -> None:
        self._room_below = False

    def resume_writing(self) -> None:
        self._room_below = True
        self._encrypt()

    # --- the handshake ---

    def _shake_hands(self) -> bool:
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            self._send()
            return False
        except ssl.SSLError as error:
            log.debug("a TLS handshake failed: %s", error.reason)
            self._send()  # the alert, which tells the client why
            self._below.close()
            return False
        self._send()
        if self._lost:
            return False
        self._made = True
        self._settle()
        self._above.connection_made(self)
        return True

    def _settle(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        settled, self._settled = self._settled, None
        if settled is not None:
            settled(self)

    # --- reading ---

    def _deliver(self) -> None:
        """Hand on what has come, as long as it is wanted."""
        while self._reading and not (self._reading_ended or self._writing_ended or self._lost):
            view = cast(bytearray, self._above.get_buffer(-1))
            try:
                count = self._tls.read(len(view), view)
            except ssl.SSLWantReadError:
                break
            except ssl.SSLError as error:
                log.debug("a TLS connection broke: %s", error.reason)
                self._below.abort()
                return
            if not count:
                self._end_reading()  # close_notify
                break
            self._above.buffer_updated(cast(int, count))
        self._send()

    def _end_reading(self) -> None:
        self._reading_ended = True
        self._above.eof_received()

    def pause_reading(self) -> None:
        self._reading = False
        with suppress(RuntimeError):  # it is closed
            self._below.pause_reading()

    def resume_reading(self) -> None:
        self._reading = True
        with suppress(RuntimeError):
            self._below.resume_reading()
        if self._received.pending or self._tls.pending():
            asyncio.get_running_loop().call_soon(self._deliver)

    def is_reading(self) -> bool:
        return self._reading

    # --- writing ---

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        view = memoryview(data).cast("B")
        if self._lost or self._writing_ended or self._closing or not len(view):
            return
        self._unsent.append(view)
        self._unsent_bytes += len(view)
        self._encrypt()

    def _encrypt(self) -> None:
        """Send what the socket takes now, then tell the protocol above whether anything is left."""
        while self._unsent and self._room_below and not self._lost:
            view = self._unsent[0]
            try:
                count = self._tls.write(view[:PIECE])  # into memory: takes a record at least
            except ssl.SSLError:
                self._below.abort()
                return
            self._unsent_bytes -= count
            if count < len(view):
                self._unsent[0] = view[count:]
            else:
                self._unsent.popleft()
            if self._to_send.pending >= PIECE or not self._unsent:
                self._send()
        if self._closing and not self._unsent:
            self._finish()
        left = self.get_write_buffer_size() > 0
        if left != self._paused and self._made:
            self._paused = left
            (self._above.pause_writing if left else self._above.resume_writing)()

    def _send(self) -> None:
        if self._to_send.pending and not self._lost:
            self._below.write(self._to_send.read())
            if self._below.get_write_buffer_size() > MOST_UNTAKEN:
                self._below.abort()

    def _drop_unsent(self) -> None:
        self._unsent.clear()  # at once: the memory is not ours any more
        self._unsent_bytes = 0

    def write_eof(self) -> None:
        self._finish()

    def can_write_eof(self) -> bool:
        return True

    def _finish(self) -> None:
        """Say that no more will come, in TLS and below it; with `close`, close."""
        if self._writing_ended or self._lost:
            return
        self._writing_ended = True
        with suppress(ssl.SSLError):  # it would wait for the client's, which `say_end` does
            self._tls.unwrap()
        self._send()
        if self._closing:
            self._below.close()
        else:
            self._below.write_eof()

    # --- ending, and what is known ---

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._reading_ended = True
        if self._writing_ended:
            self._below.close()
        elif not self._unsent:
            self._finish()

    def abort(self) -> None:
        self._drop_unsent()
        self._below.abort()

    def is_closing(self) -> bool:
        return self._closing or self._below.is_closing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 0, "writers are paused by the first byte that has to wait"

    def get_write_buffer_size(self) -> int:
        return self._unsent_bytes + self._to_send.pending + self._below.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._below.get_extra_info(name, default)
