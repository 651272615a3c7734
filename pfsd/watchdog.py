"""Tells a daemon that takes long from one that stands still, or that the network has swallowed."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from pfsd.errors import PfsdError
from pfsd.exchange import Multiplexer, standstill

#: How often is looked, in a span of silence that is too long.
LOOKS = 8


class Watchdog:
    """Gives a connection up when answers are due and not a byte has moved for so many seconds.

    Half of them gone, it asks with a ping, which a daemon answers beside all that runs. It looks only while
    something runs. A silence that this process has slept through, stopped or suspended, does not count.
    """

    def __init__(self, line: Multiplexer, seconds: float) -> None:
        self._line = line
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._before = (0, 0, 0)
        line.on_request = self._wake

    def _wake(self) -> None:
        if self._timer is None:
            self._has_moved()
            self._begin_silence()
            self._arm()

    def _begin_silence(self) -> None:
        self._since = self._loop.time()
        self._asked = False

    def _arm(self) -> None:
        self._looked = self._loop.time()
        self._timer = self._loop.call_later(self._seconds / LOOKS, self._look)

    def _look(self) -> None:
        if not self._line.running:
            self._timer = None
            return
        now = self._loop.time()
        slept = now - self._looked > 2 * self._seconds / LOOKS
        if self._has_moved() or slept or self._line.held_up:
            self._begin_silence()
        elif now - self._since >= self._seconds:
            self._timer = None
            self._line.give_up(standstill(self._seconds))
            return
        elif not self._asked and now - self._since >= self._seconds / 2:
            self._asked = True
            with suppress(PfsdError):  # the connection has ended
                self._line.start("ping").drop()
        self._arm()

    def _has_moved(self) -> bool:
        """Whether anything has, since this was last asked.

        What leaves counts only if it had to wait: the system takes some for a daemon that does not.
        """
        line = self._line
        now = (line.received, line.sent, line.queued)
        (received, sent, queued), self._before = self._before, now
        return line.received != received or (queued > 0 and line.sent != sent)
