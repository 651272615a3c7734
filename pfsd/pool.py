"""Connections to one daemon, kept and lent out: one that small requests share, and some for a transfer each.

Knows connections and whether they still work, never what is asked over them. Lives in one event loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from pfsd.aio import finish
from pfsd.client import Client
from pfsd.errors import PfsdError
from pfsd.exchange import ConnectionLost, TimedOut

Connect = Callable[[], Awaitable[Client]]


class Pool:
    """Connections made by `connect`: at most `most` lent out at once, as many kept for the next.

    Who waits for one is told TimedOut when for `patience` seconds no content has moved on those that others have: a
    daemon that answers pings is there, and their transfers may stand still all the same.
    """

    def __init__(self, connect: Connect, most: int, patience: float | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.pid = os.getpid()
        self._connect = connect
        self._most = most
        self._patience = patience
        self._turns = asyncio.Semaphore(most)
        self._elsewhere = 0
        self._idle: list[Client] = []
        self._lent: set[Client] = set()
        self._shared: Client | None = None
        self._sharing: asyncio.Task[Client] | None = None
        self._closed = False
        self._closing: set[asyncio.Task[None]] = set()

    # --- the shared one ---

    async def shared(self) -> Client:
        """The connection for requests without content, or with little; it may be in use by any number of them."""
        if self._shared is not None and self._shared.alive:
            return self._shared
        self._check_open()
        if self._sharing is None:
            # All that come while it is made wait for this one, and hear alike that nobody answers.
            self._sharing = asyncio.ensure_future(self._share())
            self._sharing.add_done_callback(_seen)
        sharing = self._sharing
        await asyncio.wait({sharing})
        self._check_open()
        return sharing.result()

    async def _share(self) -> Client:
        try:
            if self._shared is not None:
                self._close_soon(self._shared)
                self._shared = None
            self._shared = await self._connect()
            return self._shared
        finally:
            self._sharing = None

    # --- those for one transfer ---

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """For a transfer that has its connection elsewhere, and sees to it that it comes to an end."""
        await self._wait_for_turn()
        self._elsewhere += 1
        try:
            yield
        finally:
            self._elsewhere -= 1
            self._turns.release()

    @asynccontextmanager
    async def own(self, *, beyond: bool = False) -> AsyncIterator[Client]:
        """A connection for one transfer; what has not come to its end by then is given up with its connection.

        `beyond` is for one whose end is up to the program that uses this, which may wait for others: it takes no turn.
        """
        if not beyond:
            await self._wait_for_turn()
        try:
            client = self._take_idle() or await self._connect()
            if self._closed:
                self._close_soon(client)
            self._check_open()
            self._lent.add(client)
            try:
                yield client
            finally:
                self._lent.discard(client)
                if client.idle and len(self._idle) < self._most and not self._closed:
                    self._idle.append(client)
                else:
                    self._close_soon(client)
        finally:
            if not beyond:
                self._turns.release()

    def _take_idle(self) -> Client | None:
        while self._idle:
            client = self._idle.pop()
            if client.idle:
                return client
            self._close_soon(client)
        return None

    async def _wait_for_turn(self) -> None:
        await self._acquire_turn()
        if self._closed:
            self._turns.release()
        self._check_open()

    async def _acquire_turn(self) -> None:
        if self._patience is None:
            await self._turns.acquire()
            return
        while True:
            before = self._moved()
            try:
                async with asyncio.timeout(self._patience):
                    await self._turns.acquire()
                return
            except TimeoutError:
                if self._moved() == before and not self._elsewhere:
                    words = (
                        f"all {self._most} connections are in use and have stood still for {self._patience:g} seconds"
                    )
                    raise TimedOut(f"{words}; let more be used at once (connections=), or end what uses them") from None

    def _moved(self) -> dict[Client, int]:
        return {client: client.moved for client in self._lent}

    # --- the end ---

    def _check_open(self) -> None:
        """Whoever has waited across the end has come too late: nothing begins then."""
        if self._closed:
            raise ConnectionLost("the store was closed")

    def is_here(self) -> bool:
        """Whether it belongs to the loop that runs here, and was not inherited from a parent process."""
        return self.loop is asyncio.get_running_loop() and self.pid == os.getpid()

    def is_in_use(self) -> bool:
        """Whether its loop may still run, in this process."""
        return self.pid == os.getpid() and not self.loop.is_closed()

    def close_soon(self) -> None:
        """Close all connections, from any thread and without waiting."""
        if self.is_in_use():
            with suppress(RuntimeError):  # the loop has just ended
                self.loop.call_soon_threadsafe(lambda: asyncio.ensure_future(self.close()))

    def _close_soon(self, client: Client) -> None:
        # By a task of its own: nobody should wait for a daemon that does not react.
        task = asyncio.ensure_future(_closed(client))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close all connections; what runs on them fails with ConnectionLost."""
        self._closed = True
        if self._sharing is not None:
            self._sharing.cancel()
        clients = {*self._idle, *self._lent} | ({self._shared} if self._shared is not None else set())
        self._idle.clear()
        self._shared = None
        for client in clients:
            self._close_soon(client)
        while self._closing:
            await finish(asyncio.wait(set(self._closing)))


def _seen(task: asyncio.Task[Client]) -> None:
    if not task.cancelled():
        task.exception()


async def _closed(client: Client) -> None:
    with suppress(PfsdError):
        await client.close()
