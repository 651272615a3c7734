"""What requests came to, for the log: a line for each.

Beside a small put a line is not cheap. So what ends in one turn of the loop is only noted then, and written together
when the turn is over.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import NamedTuple

from pfsd import logs, protocol
from pfsd.activity import Outcome
from pfsd.errors import RequestError
from pfsd.protocol import Request
from pfsd.verbs import BEFORE_AUTH, CHANGES, VERBS

log = logging.getLogger(__name__)

#: Of a request with many words, or long ones, the log shows so many, and so much of each.
MAX_LOGGED_WORDS, MAX_LOGGED_WORD = 32, 256

#: Requests that may be shown: others may hold a token, mistyped or misplaced.
_SHOWN = VERBS.keys() - BEFORE_AUTH


class _End(NamedTuple):
    moment: float
    level: str
    about: logs.About
    request: Request
    outcome: Outcome
    seconds: float
    trusted: bool


class Audit:
    """Takes notes of how requests ended; what changes nothing is only for debugging."""

    def __init__(self) -> None:
        self._ends: list[_End] = []

    def note(self, about: logs.About, request: Request, outcome: Outcome, seconds: float, *, trusted: bool) -> None:
        """A request is over; `trusted` if its client had shown the token, or needed none."""
        level = logging.INFO if trusted and request.verb in CHANGES else logging.DEBUG
        if not log.isEnabledFor(level):
            return
        if not self._ends:
            asyncio.get_running_loop().call_soon(self._write)
        self._ends.append(_End(time.time(), logging.getLevelName(level), about, request, outcome, seconds, trusted))

    def _write(self) -> None:
        ends, self._ends = self._ends, []
        logs.write([_event(end) for end in ends])


def _event(end: _End) -> logs.Event:
    request, outcome = end.request, end.outcome
    if isinstance(outcome, RequestError):
        why = f": {outcome.message}" if request.verb else ""  # which may quote what was not understood
        message, fields = f"ERR {outcome.code}{why}", outcome.fields
    elif outcome is None:
        message, fields = "the client has gone before the answer", {}
    else:
        message, fields = f"OK {request.verb}", outcome
    told: dict[str, str] = {}
    # Of content that is stored the answer says all.
    if end.trusted and request.verb in _SHOWN and not (outcome is fields and request.carries_content):
        told = {"request": _shown(request)}
    return logs.Event(end.moment, end.level, message, {**fields, "seconds": end.seconds, **told, **end.about.facts})


def _shown(request: Request) -> str:
    """A request, cut short if it is long."""
    words = [protocol.show(word.value, MAX_LOGGED_WORD) for word in request.words[:MAX_LOGGED_WORDS]]
    more = ["..."] if len(request.words) > MAX_LOGGED_WORDS else []
    options = [f"{key}={protocol.show(value, MAX_LOGGED_WORD)}" for key, value in request.options.items()]
    return " ".join([request.verb, *words, *more, *options])
