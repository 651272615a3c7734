"""Tokens that clients show, and how fast wrong ones can be tried.

A peer that has guessed wrong is looked at again only a moment later, one token at a time whatever it opens and
closes meanwhile; everybody else is looked at at once. So a right token waits for the guesses of its own peer at most,
of which each connection has one under way. A comparison takes the same time whatever is compared.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
from dataclasses import dataclass, field

#: Between two looks at tokens of a peer of which one was wrong.
PAUSE_SECONDS = 1.0


@dataclass
class _Suspect:
    """A peer that guesses."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    due: float = 0.0  # when the next token may be looked at
    waiting: int = 0


class Tokens:
    """Compares tokens with the right one; with none, every token is right."""

    def __init__(self, token: str | None, pause: float = PAUSE_SECONDS) -> None:
        self.change(token)
        self._pause = pause
        self._suspects: dict[str, _Suspect] = {}

    def change(self, token: str | None) -> None:
        """Another token is the right one from now on."""
        self._digest = None if token is None else _digest(token.encode())

    @property
    def needed(self) -> bool:
        """Whether there is one to be shown."""
        return self._digest is not None

    async def is_right(self, token: bytes, host: str) -> bool:
        """Whether this is the token; a wrong one of `host` is told after a pause, and keeps its next ones waiting."""
        peer = _peer(host)
        suspect = self._suspects.get(peer)
        if suspect is None:
            if self._equals(token):
                return True
            suspect = self._suspects[peer] = _Suspect()
            suspect.due = asyncio.get_running_loop().time() + self._pause
            wrong = True
        else:
            wrong = False
        suspect.waiting += 1
        try:
            async with suspect.turn:
                return await self._look(suspect, token, wrong)
        finally:
            suspect.waiting -= 1
            self._forgive(peer)

    async def _look(self, suspect: _Suspect, token: bytes, wrong: bool) -> bool:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(suspect.due - loop.time())
        if not wrong:
            if self._equals(token):
                return True
            # Before the wait, which a client that leaves cuts short.
            suspect.due = loop.time() + self._pause
            await asyncio.sleep(self._pause)
        return False

    def _equals(self, token: bytes) -> bool:
        # Digests, since the comparison would tell the length of what differs.
        return self._digest is None or hmac.compare_digest(_digest(token), self._digest)

    def _forgive(self, peer: str) -> None:
        """Forget a suspect when its time is over and none of its tokens waits."""
        suspect = self._suspects.get(peer)
        if suspect is None or suspect.waiting:
            return
        loop = asyncio.get_running_loop()
        if suspect.due <= loop.time():
            del self._suspects[peer]
        else:
            loop.call_at(suspect.due, self._forgive, peer)


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def _peer(host: str) -> str:
    """Who answers for an address: itself, or with IPv6 its network, of which anyone has 2^64 addresses."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.IPv6Network((address, 64), strict=False))
    return str(address)
