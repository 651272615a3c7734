"""A request at work: what its handler is given, how it answers, where the content of its upload comes from.

Shared by the session, which decides when requests run, and by the handlers, which know what they mean.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from pfsd import protocol
from pfsd.activity import Activity, Command, Outcome
from pfsd.audit import Audit
from pfsd.budget import Extent, MemoryBudget
from pfsd.commands import put
from pfsd.commands.engine import Engine
from pfsd.commands.reclaim import Reclaimer
from pfsd.commands.scrub import Scrubber
from pfsd.connection import Connection
from pfsd.errors import RequestError
from pfsd.guesses import Tokens
from pfsd.protocol import Request, Value


@dataclass
class Service:
    """What all sessions share. The daemon owns it."""

    engine: Engine
    reclaimer: Reclaimer
    scrubber: Scrubber
    tokens: Tokens
    allow_exit: str
    max_clients: int
    shut_down: Callable[[], Awaitable[None]]
    state: Callable[[], str]
    #: Bytes that the disk of the store has left, if that is known.
    free: Callable[[], int | None]
    activity: Activity = field(default_factory=Activity)
    audit: Audit = field(default_factory=Audit)
    started: float = field(default_factory=time.monotonic)
    sessions: set[Any] = field(default_factory=set)
    #: Requests at work; those that wait for their turn are not among them.
    running: set[asyncio.Task[Any]] = field(default_factory=set)
    stopping: bool = False


@dataclass
class Access:
    """What one client may do."""

    #: The verbs that work on the listener it came through; None is all.
    allow: frozenset[str] | None
    #: It has shown the token, or there is none.
    trusted: bool
    #: A token of it is being looked at.
    asking: bool = False
    wrong_tokens: int = 0


class Answer:
    """Writes the reply to one request: its tag, its line ending."""

    def __init__(self, connection: Connection, tag: bytes | None, ending: bytes) -> None:
        self._connection = connection
        self._tag = tag
        self._ending = ending
        self.outcome: Outcome = None

    def line(self, word: str, verb: str = "", /, **fields: Value) -> bytes:
        """A row, not sent yet."""
        return protocol.format_line(word, verb, fields, self._tag, self._ending)

    async def row(self, word: str, verb: str = "", /, **fields: Value) -> None:
        """Send a row."""
        await self._connection.write(self.line(word, verb, **fields))

    async def rows(self, lines: bytes) -> None:
        """Send rows made with `line`."""
        await self._connection.write(lines)

    async def ok(self, verb: str, /, **fields: Value) -> None:
        """Send the final line of a success."""
        self.outcome = fields
        await self._connection.write(protocol.format_ok(verb, fields, self._tag, self._ending))

    async def error(self, error: RequestError) -> None:
        """Send the final line of a failure."""
        self.outcome = error
        await self._connection.write(protocol.format_error(error, self._tag, self._ending))

    async def comment(self, text: str) -> None:
        """Send a line for people."""
        await self._connection.write(protocol.format_comment(text, self._tag, self._ending))

    async def frame(self, content: memoryview) -> None:
        """Send content as one DATA frame."""
        header = protocol.format_frame(len(content), self._tag, self._ending)
        await self._connection.write_frame(header, content)


class Feed:
    """Joins the serving loop, which reads an upload's content, and the task that stores it."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        #: The upload, once the task wants content; None when it failed before.
        self.upload: asyncio.Future[put.Upload | None] = loop.create_future()
        #: Resolved by the serving loop: the content is complete, or why it is not.
        self.complete: asyncio.Future[None] = loop.create_future()
        #: Whether the connection is just receiving into the upload's memory.
        self.filling = False
        #: Whether the client has said that it does not want the upload any more.
        self.aborted = False

    def end(self) -> None:
        """All content is there."""
        if not self.complete.done():
            self.complete.set_result(None)

    def fail(self, error: Exception) -> None:
        """There will be no more content."""
        if not self.complete.done():
            self.complete.set_exception(error)
            self.complete.exception()  # seen, should the task be gone

    def over(self) -> bool:
        """Whether nobody wants content any more."""
        return self.complete.done() or (self.upload.done() and self.upload.result() is None)


class Content:
    """What has come of a small upload, all of it, in memory that whoever is done with it frees."""

    def __init__(self, budget: MemoryBudget, extents: list[Extent]) -> None:
        self._budget = budget
        self.extents = extents

    def free(self) -> None:
        """Give the memory back, once."""
        extents, self.extents = self.extents, []
        self._budget.give(extents)


@dataclass(frozen=True)
class Call:
    """One request at work."""

    service: Service
    connection: Connection
    request: Request
    answer: Answer
    feed: Feed | None  # of an upload
    content: Content | None  # of a small upload that had come whole
    access: Access
    command: Command

    @property
    def engine(self) -> Engine:
        """What commands work on."""
        return self.service.engine


Handler = Callable[[Call], Awaitable[None]]


def current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task
