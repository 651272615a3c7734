"""Looks at a daemon again and again, over one connection that is made anew when it is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

from pfsd.client import Client, ConnectionLost
from pfsd.errors import PfsdError, UnknownCommand
from pfsd.top import model

Connect = Callable[[], Awaitable[Client]]

#: A daemon that does not answer for so long is as good as gone.
PATIENCE_SECONDS = 5.0


class Watcher:
    """An async context manager. Its first look tells whether there is a daemon that can be looked at."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._client: Client | None = None

    async def look(self) -> model.Sample:
        """What the daemon says now.

        Raises PfsdError: ConnectionLost when it is gone or stands still, or what it refused with. The next look
        connects again.
        """
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                return await self._look()
        except TimeoutError:
            await self.close()
            raise ConnectionLost(f"the daemon has not answered for {PATIENCE_SECONDS:g} seconds") from None
        except PfsdError:
            await self.close()
            raise

    async def _look(self) -> model.Sample:
        if self._client is None:
            self._client = await self._connect()
        stats = await self._client.stats()
        try:
            _, rows = await self._client.request("ps")
        except UnknownCommand:
            raise UnknownCommand("this daemon is too old for top: it has no command ps") from None
        return model.sample(time.monotonic(), stats, rows)

    async def close(self) -> None:
        """Leave the daemon."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def __aenter__(self) -> Watcher:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
