"""One client's session: request lines become commands, their results become reply lines.

The serving loop reads the connection in order; every request runs as a task of its own. Untagged requests wait
for the one before them, tagged ones for nobody. Content of uploads is read by the serving loop, because it
stands between the lines, and handed to the request's task through a `Feed`.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pfsd
from pfsd import protocol
from pfsd.commands import files, get, put, verify
from pfsd.commands.engine import Engine, FileRef, Progress
from pfsd.connection import Connection, ConnectionLost
from pfsd.errors import (
    AuthError,
    Busy,
    Cancelled,
    Denied,
    Internal,
    RequestError,
    Stopping,
    TooLong,
    UnknownCommand,
    UsageError,
)
from pfsd.fair import Flow
from pfsd.protocol import Request, Value, Word
from pfsd.registry import File
from pfsd.verbs import BEFORE_AUTH, VERBS, check

log = logging.getLogger(__name__)

#: Requests of one connection that run or wait for their turn; reading pauses above it.
MAX_REQUESTS = 64
#: Uploads in frames that one connection may have open: each holds memory while its client sends others.
MAX_OPEN_UPLOADS = 32
#: Uploads in frames, refused and failed ones too, whose end has not come; beyond it the connection ends.
MAX_FEEDS = 1024
#: A wrong token is answered after this long, so that guessing is slow.
WRONG_TOKEN_SECONDS = 1.0
#: What runs even while the daemon stops.
WHILE_STOPPING = frozenset({"hello", "help", "ping", "quit", "auth"})
#: Rows are sent in blocks of about this size.
ROW_BLOCK = 32 << 10


@dataclass
class Service:
    """What all sessions share. The daemon owns it."""

    engine: Engine
    token: str | None
    allow_exit: str
    idle_seconds: float
    line_seconds: float
    max_clients: int
    shut_down: Callable[[], Awaitable[None]]
    state: Callable[[], str]
    started: float = field(default_factory=time.monotonic)
    sessions: set[Session] = field(default_factory=set)
    #: Requests at work; those that wait for their turn are not among them.
    running: set[asyncio.Task[Any]] = field(default_factory=set)
    stopping: bool = False


class Answer:
    """Writes the reply to one request: its tag, its line ending."""

    def __init__(self, connection: Connection, tag: bytes | None, ending: bytes) -> None:
        self._connection = connection
        self._tag = tag
        self._ending = ending

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
        await self._connection.write(protocol.format_ok(verb, fields, self._tag, self._ending))

    async def error(self, error: RequestError) -> None:
        """Send the final line of a failure."""
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


class Session:
    """Serves one connection until its end."""

    def __init__(self, service: Service, connection: Connection, number: int) -> None:
        self._service = service
        self._engine = service.engine
        self._connection = connection
        self._number = number
        self._trusted = service.token is None
        self._tasks: set[asyncio.Task[None]] = set()
        self._tags: set[bytes] = set()
        self._last_untagged: asyncio.Task[None] | None = None
        self._feeds: dict[bytes | None, Feed] = {}
        self._room = asyncio.Event()
        self._seen_line = False
        self._leaving = False  # cat or quit was the last request: only frames of open uploads matter now

    # --- the serving loop ---

    async def serve(self) -> None:
        """Serve until the client leaves, says quit, or breaks the protocol; then let its requests finish."""
        try:
            with suppress(ConnectionLost):
                await self._read()
            for feed in self._feeds.values():
                feed.fail(UsageError("the content was cut short by the end of input; nothing was stored"))
            while self._tasks and not self._connection.lost:
                lost = asyncio.ensure_future(self._connection.wait_lost())
                await asyncio.wait({lost, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
                lost.cancel()
            with suppress(ConnectionLost):
                await self._connection.say_end()
        finally:
            await self._cancel_tasks()
            self._connection.close()

    def end(self) -> None:
        """Stop reading: what is queued is sent, then the connection closes."""
        self._connection.end_input()

    async def _cancel_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _read(self) -> None:
        try:
            async for event in self._connection.lines(self._on_idle):
                if isinstance(event, protocol.LongLine):
                    if await self._turn_away_http(event.head, cut=True):
                        return
                    error = TooLong(f"a line has at most {protocol.MAX_LINE} bytes; all of it was ignored")
                    self._refuse(error, protocol.tag_of(event.head), protocol.LF)
                elif not await self._handle(event.text, event.ending):
                    return
                if len(self._feeds) > MAX_FEEDS or (self._leaving and not self._open_uploads()):
                    return
                await self._wait_for_room()
        except UsageError as error:
            self._refuse(error, None, protocol.LF)

    def _open_uploads(self) -> dict[bytes | None, Feed]:
        """Uploads in frames that still want content, by tag."""
        return {tag: feed for tag, feed in self._feeds.items() if not feed.over()}

    def _on_idle(self) -> bool:
        """Whether a client that sends nothing waits for an answer. Uploads that wait for it are given up."""
        waits = bool(self._tasks)
        for feed in self._open_uploads().values():
            feed.fail(Cancelled(f"no content came for {self._service.idle_seconds:g} seconds; nothing was stored"))
        return waits

    async def _wait_for_room(self) -> None:
        while len(self._tasks) >= MAX_REQUESTS:
            if upload := self._open_uploads().get(None):
                # All the others may be waiting for it, and it for frames that are not read without room.
                upload.fail(Busy(f"{MAX_REQUESTS} requests of this connection wait, maybe for this upload to end"))
            self._room.clear()
            await self._room.wait()

    async def _handle(self, line: bytes, ending: bytes) -> bool:
        """Carry out one line; whether the connection can go on."""
        if not line.strip():
            return True
        if await self._turn_away_http(line):
            return False
        if line.startswith(b"#"):
            return True
        try:
            request = protocol.parse_request(line, ending)
            if request.verb in ("data", "abort"):
                await self._frame(request)
            elif not self._leaving:
                self._admit(request)
                await self._start(request)
        except ConnectionLost:
            raise
        except RequestError as error:
            tag = protocol.tag_of(line)
            if protocol.is_frame(line) and tag in self._feeds:
                self._feeds[tag].fail(error)  # the upload's answer, if it has none yet
            else:
                self._refuse(error, tag, ending)
            if isinstance(error, TooLong):
                return False
            await self._discard(protocol.announced_size(line), tag)
        return True

    async def _turn_away_http(self, line: bytes, cut: bool = False) -> bool:
        """Whether this is the first line and HTTP, which is then refused: no later line may run."""
        first, self._seen_line = not self._seen_line, True
        if not first or not protocol.looks_like_http(line, cut=cut):
            return False
        log.warning("client %d at %s speaks HTTP and is turned away", self._number, self._connection.peer)
        await self._connection.write(protocol.HTTP_REFUSAL)
        return True

    def _admit(self, request: Request) -> None:
        """Raise what is wrong with this request among the others of its connection."""
        check(request)
        if not self._tasks:  # else those before it may change what is allowed, and it is asked in its turn
            self._allow(request.verb)
        if request.tag is not None and request.tag in self._tags:
            raise UsageError(f"the tag {request.tag.decode()} is in use by a running request")
        if request.verb == "cat" and request.tag is not None:
            raise UsageError("cat takes no tag: its bytes have no place to carry one; use get FILE -")
        if request.carries_content:
            self._admit_upload(request)

    def _allow(self, verb: str) -> None:
        """Raise what forbids a command when its turn has come: by then the ones before it have had their effect."""
        if not self._trusted and verb not in BEFORE_AUTH:
            raise AuthError("this daemon wants its token first: auth TOKEN")
        if self._service.stopping and verb not in WHILE_STOPPING:
            raise Stopping("the daemon is shutting down")

    def _admit_upload(self, request: Request) -> None:
        _content_size(request)
        if "name" not in request.options:
            raise UsageError("content needs a name: put - name=NAME size=N|chunked|eof")
        protocol.check_name(request.options["name"])
        open_uploads = self._open_uploads()
        if request.tag is None and None in open_uploads:
            raise UsageError("the untagged upload before this one is not ended; end it with DATA 0, or use tags")
        if len(open_uploads) >= MAX_OPEN_UPLOADS:
            raise Busy(f"{MAX_OPEN_UPLOADS} uploads are open on this connection; end one first")

    async def _start(self, request: Request) -> None:
        if request.carries_content:
            await self._start_upload(request)
            return
        self._leaving = request.verb in ("cat", "quit")
        self._spawn(request, _COMMANDS[request.verb])

    # --- tasks ---

    def _spawn(self, request: Request, command: _Command, feed: Feed | None = None) -> None:
        before = {self._last_untagged} if request.tag is None and self._last_untagged else set()
        if self._leaving:
            # Raw bytes and the end of the session both come after everything else.
            before = set(self._tasks)
        task = asyncio.create_task(self._run(request, command, feed, before))
        if request.tag is None:
            self._last_untagged = task
        else:
            self._tags.add(request.tag)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._ended(task)
            if request.tag is not None:
                self._tags.discard(request.tag)
            if self._last_untagged is task:
                self._last_untagged = None
            if feed is not None and not feed.upload.done():
                feed.upload.set_result(None)
            if self._leaving and not self._tasks:
                self._connection.end_input()
            if not task.cancelled() and (error := task.exception()):
                log.error("client %d: a request ended badly", self._number, exc_info=error)

        task.add_done_callback(ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._service.running.discard(task)
        self._room.set()

    def _refuse(self, error: RequestError, tag: bytes | None, ending: bytes) -> None:
        """Answer with an error, in turn."""
        if self._leaving:
            return

        async def raise_error(session: Session, request: Request, answer: Answer, feed: Feed | None) -> None:
            raise error

        if tag is not None and tag in self._tags:
            # The tag belongs to another request, whose bookkeeping must not be touched.
            task = asyncio.create_task(self._answer_error(error, Answer(self._connection, tag, ending)))
            self._tasks.add(task)
            task.add_done_callback(self._ended)
            return
        self._spawn(Request("", tag=tag, ending=ending), raise_error)

    async def _run(
        self, request: Request, command: _Command, feed: Feed | None, before: set[asyncio.Task[None]]
    ) -> None:
        if before:
            await asyncio.wait(before)
        answer = Answer(self._connection, request.tag, request.ending)
        self._service.running.add(_current_task())
        try:
            if request.verb in VERBS:
                self._allow(request.verb)
            await command(self, request, answer, feed)
        except ConnectionLost:
            pass
        except RequestError as error:
            if isinstance(error, Internal):
                error = _internal(error, request)
            if feed is not None and not feed.upload.done():
                feed.upload.set_result(None)
            await self._answer_error(error, answer)
        except asyncio.CancelledError:
            if not self._connection.lost:
                with suppress(TimeoutError):
                    async with asyncio.timeout(1):
                        await self._answer_error(Cancelled("the daemon stopped before this was done"), answer)
            raise
        except Exception as error:
            await self._answer_error(_internal(error, request), answer)

    async def _answer_error(self, error: RequestError, answer: Answer) -> None:
        with suppress(ConnectionLost):
            await answer.error(error)

    # --- content ---

    async def _start_upload(self, request: Request) -> None:
        feed = Feed()
        size = request.options["size"].lower()
        framed = size == b"chunked"
        if framed:
            self._feeds[request.tag] = feed
        self._spawn(request, _put, feed)
        await feed.upload
        if not framed and await self._receive(feed, None if size == b"eof" else int(size)):
            feed.end()

    async def _receive(self, feed: Feed, count: int | None) -> bool:
        """Read `count` bytes of content (None: all there is) into the upload; whether all came, else it fails.

        When the upload fails the rest is thrown away, so that the connection stays in step.
        """
        whole = False
        try:
            whole = await self._fill(feed, await feed.upload, count)
        finally:
            if not whole:
                feed.fail(UsageError("the content was cut short; nothing was stored"))
        return whole

    async def _fill(self, feed: Feed, upload: put.Upload | None, count: int | None) -> bool:
        received = 0
        while count is None or received < count:
            if upload is None or feed.over():
                if count is None:
                    await self._connection.discard_all()
                    return True
                return await self._connection.discard(count - received)
            try:
                await upload.space()
            except Exception as error:
                feed.fail(error)
                continue
            view = upload.view if count is None else upload.view[: count - received]
            feed.filling = True
            try:
                got = await self._connection.fill(view)
            finally:
                feed.filling = False
            received += got
            if feed.over():
                continue
            upload.advance(got)
            if got < len(view):
                return count is None and self._connection.half_closed
        return True

    async def _frame(self, request: Request) -> None:
        """A DATA or ABORT line of an upload in frames."""
        feed = self._feeds.get(request.tag)
        if feed is None:
            raise UsageError("there is no upload that this line belongs to")
        if request.verb == "abort":
            feed.fail(Cancelled("the upload was given up by its client; nothing was stored"))
            del self._feeds[request.tag]
            return
        if len(request.words) != 1 or request.options:
            raise UsageError("a frame is: DATA <number of bytes>")
        size = protocol.parse_number("DATA", request.words[0].value)
        if size > protocol.MAX_FRAME:
            raise TooLong(f"a frame has at most {protocol.MAX_FRAME} bytes; the connection is closed")
        if not size:
            feed.end()
            del self._feeds[request.tag]
            return
        await self._receive(feed, size)

    async def _discard(self, size: bytes | None, tag: bytes | None) -> None:
        """Throw away the content that a refused `put -` line announced."""
        if size is None:
            return
        if size == b"eof":
            await self._connection.discard_all()
        elif size == b"chunked":
            if tag not in self._feeds:
                feed = self._feeds[tag] = Feed()
                feed.upload.set_result(None)
        else:
            await self._connection.discard(int(size))

    # --- commands ---

    @asynccontextmanager
    async def _progress(self, request: Request, answer: Answer) -> AsyncIterator[Progress]:
        """A progress, shown in rows while the body runs if the request wants them."""
        progress = Progress()
        seconds = request.number("progress")
        if seconds is None:
            yield progress
            return
        if not 1 <= seconds <= 3600:
            raise UsageError("progress= takes 1 to 3600 seconds")
        shower = asyncio.create_task(_show_progress(progress, request.verb, seconds, answer))
        try:
            yield progress
        finally:
            shower.cancel()
            with suppress(asyncio.CancelledError, ConnectionLost):
                await shower

    async def _put(self, request: Request, answer: Answer, feed: Feed | None) -> None:
        replace = request.flag("replace")
        name = request.options.get("name")
        async with self._progress(request, answer) as progress:
            if feed is not None:
                assert name is not None
                stored = await self._put_content(name, replace, _content_size(request), feed, progress)
            else:
                if "size" in request.options:
                    raise UsageError("size= goes with put -, whose content follows the line")
                stored = await put.put_path(self._engine, request.words[0].value, name, replace, progress, Flow())
        await answer.ok(
            "put",
            id=stored.id,
            size=stored.size,
            stored=stored.stored,
            parts=stored.parts,
            etag=stored.etag,
            name=stored.name,
        )

    async def _put_content(
        self, name: bytes, replace: bool, size: int | None, feed: Feed, progress: Progress
    ) -> put.Stored:
        try:
            async with put.Upload(self._engine, name, replace, size, progress, Flow()) as upload:
                feed.upload.set_result(upload)
                try:
                    await upload.complete(feed.complete)
                    return await upload.commit()
                finally:
                    # Before the upload gives its memory back: the connection may be receiving into it.
                    feed.fail(Cancelled("the upload is over"))
                    if feed.filling:
                        self._connection.stop_filling()
        finally:
            feed.fail(Cancelled("the upload is over"))

    async def _get(self, request: Request, answer: Answer, feed: Feed | None) -> None:
        on_error = request.options.get("on_error", b"fail")
        if on_error not in (b"fail", b"zero"):
            raise UsageError(f"on_error= is fail or zero, not {protocol.show(on_error)}")
        ref, target = _file_ref(request.words[0]), request.words[1]
        offset, length = request.number("offset"), request.number("length")
        async with self._progress(request, answer) as progress:
            if target == Word(b"-"):
                if "replace" in request.options:
                    raise UsageError("replace= goes with a TARGET path, not with -")
                fetched = await get.stream(
                    self._engine, ref, offset, length, answer.frame, on_error == b"zero", progress, Flow()
                )
            else:
                fetched = await get.get_path(
                    self._engine,
                    ref,
                    target.value,
                    offset,
                    length,
                    request.flag("replace"),
                    on_error == b"zero",
                    progress,
                    Flow(),
                )
        for lost in fetched.damage:
            await answer.row("DAMAGE", offset=lost.offset, length=lost.length, seq=lost.seq)
        if error := fetched.error():
            raise error
        await answer.ok(
            "get", id=fetched.id, size=fetched.size, bytes=fetched.bytes, etag=fetched.etag, name=fetched.name
        )

    async def _cat(self, request: Request, answer: Answer, feed: Feed | None) -> None:
        begun = False

        async def send(content: memoryview) -> None:
            nonlocal begun
            begun = True
            await self._connection.write_frame(b"", content)

        offset, length = request.number("offset"), request.number("length")
        try:
            await get.stream(self._engine, _file_ref(request.words[0]), offset, length, send, False, Progress(), Flow())
        except (Exception, asyncio.CancelledError):
            if not begun:
                raise
            log.warning("client %d: cat %s broke off", self._number, protocol.show(request.words[0].value))
            self._connection.abort()
            raise ConnectionLost("the content broke off") from None

    async def _list(self, request: Request, answer: Answer, feed: Feed | None) -> None:
        pattern = request.words[0].value if request.words else None
        count = size = stored = 0
        block = bytearray()
        for page in files.list_files(self._engine, pattern):
            for file in page:
                block += answer.line("FILE", **_file_fields(file))
                count, size, stored = count + 1, size + file.size, stored + file.stored
            if len(block) >= ROW_BLOCK:
                await answer.rows(bytes(block))
                block.clear()
            await asyncio.sleep(0)  # a long list must not keep the others waiting
        await answer.rows(bytes(block))
        await answer.ok("list", files=count, size=size, stored=stored)

    async def _stat(self, request: Request, answer: Answer, feed: Feed | None) -> None:
        with_parts = request.flag("parts")
        file = self._engine.lookup(_file_ref(request.words[0]))
        with self._engine.pinned(file):
            await answer.row("FILE", **_file_fields(file))
            if with_parts:
                await self._stat_parts(file, answer)
            await answer.ok("stat", id=file.id, etag=self._engine.registry.etag(file.id))

    async def _stat_parts(self, file: File, answer: Answer) -> None:
        block = bytearray()
        for part in self._engine.registry.parts(file.id):
            block += answer.line(
                "PART",
                id=part.id,
                seq=part.seq,
                offset=part.offset,
                size=part.size,
                stored=part.stored,
                codec=part.codec,
                md5=part.md5.hex(),
            )
            if len(block) >= ROW_BLOCK:
                await answer.rows(bytes(block))
                block.clear()
                await asyncio.sleep(0)
        await answer.rows(bytes(block))

    async def _delete(self, request: Request, answer: Answer, feed: Feed | None) -> None:
        deleted = await files.delete(self._engine, [_file_ref(word) for word in request.words])
        for file in deleted:
            await answer.row("DELETED", id=file.id, freed=file.freed, name=file.name)
        await answer.ok(
            "delete",
            files=len(deleted),
            parts=sum(file.parts for file in deleted),
            freed=sum(file.freed for file in deleted),
        )

    async def _rename(self, request: Request, answer: Answer, feed: Feed | None) -> None:
        name = request.words[1].value
        file = await files.rename(self._engine, _file_ref(request.words[0]), name, request.flag("replace"))
        await answer.ok("rename", id=file.id, name=name)

    async def _verify(self, request: Request, answer: Answer, feed: Feed | None) -> None:
        refs = [_file_ref(word) for word in request.words]

        async def report(bad: verify.BadRow) -> None:
            await answer.row("BAD", id=bad.id, seq=bad.seq, offset=bad.offset, code=bad.code, name=bad.name)

        async with self._progress(request, answer) as progress:
            done = await verify.verify(self._engine, refs, report, progress, Flow())
        if error := done.error():
            raise error
        await answer.ok("verify", files=done.files, parts=done.parts, bytes=done.bytes)

    async def _stats(self, request: Request, answer: Answer, feed: Feed | None) -> None:
        engine, registry = self._engine, self._engine.registry
        facts: dict[str, Value] = {
            "version": pfsd.__version__,
            "state": self._service.state(),
            "uptime": int(time.monotonic() - self._service.started),
            "files": registry.files_ready,
            "parts": registry.parts_ready,
            "size": registry.size,
            "stored": registry.stored,
            "memory_limit": engine.budget.limit,
            "memory_used": engine.budget.used,
            "memory_peak": engine.budget.peak,
            "processes": len(engine.workers),
            "processes_busy": engine.workers.busy,
            "processes_replaced": engine.workers.replaced,
            "clients": len(self._service.sessions),
            "max_clients": self._service.max_clients,
            "requests": len(self._service.running),
            "journal_bytes": engine.committer.journal_size,
            "journal_syncs": engine.committer.syncs,
            "journal_records": engine.committer.records,
            "pid": os.getpid(),
        }
        for key, value in facts.items():
            await answer.row("STAT", **{key: value})
        await answer.ok("stats")

    async def _ping(self, request: Request, answer: Answer, feed: Feed | None) -> None:
        await answer.ok("ping")

    async def _hello(self, request: Request, answer: Answer, feed: Feed | None) -> None:
        proto = request.number("proto")
        if proto not in (None, protocol.VERSION):
            raise UsageError(f"this daemon speaks proto={protocol.VERSION}, not {proto}", max=protocol.VERSION)
        await answer.ok(
            "hello",
            proto=protocol.VERSION,
            version=pfsd.__version__,
            max_line=protocol.MAX_LINE,
            max_frame=protocol.MAX_FRAME,
            auth="none" if self._service.token is None else "token",
            state=self._service.state(),
        )

    async def _auth(self, request: Request, answer: Answer, feed: Feed | None) -> None:
        token = self._service.token
        if token is not None:
            if not hmac.compare_digest(request.words[0].value, token.encode()):
                await asyncio.sleep(WRONG_TOKEN_SECONDS)
                log.warning("client %d at %s gave a wrong token", self._number, self._connection.peer)
                raise AuthError("this is not the token of this daemon")
            self._trusted = True
        await answer.ok("auth")

    async def _help(self, request: Request, answer: Answer, feed: Feed | None) -> None:
        if request.words:
            name = request.words[0].value.decode("utf-8", "replace").lower()
            if name not in VERBS:
                raise UnknownCommand(f"pfsd has no command {protocol.show(name.encode())}; try: help")
            verb = VERBS[name]
            for text in (verb.usage, f"    {verb.does}", f"    example: {verb.example}"):
                await answer.comment(text)
        else:
            for verb in VERBS.values():
                await answer.comment(f"{verb.usage}  -- {verb.does}")
            await answer.comment("FILE is an id (plain digits) or a name; quote names with spaces or of digits")
        await answer.ok("help")

    async def _quit(self, request: Request, answer: Answer, feed: Feed | None) -> None:
        await answer.ok("quit")

    async def _exit(self, request: Request, answer: Answer, feed: Feed | None) -> None:
        allow = self._service.allow_exit
        if allow == "nobody" or (allow == "local" and not self._connection.is_local):
            raise Denied("this daemon is not stopped from here (allow_exit); quit ends just this session")
        self._service.running.discard(_current_task())  # or the shutdown would wait for this
        await self._service.shut_down()
        await answer.ok("exit")


_Command = Callable[[Session, Request, Answer, Feed | None], Awaitable[None]]
_put: _Command = Session._put
_COMMANDS: dict[str, _Command] = {verb: getattr(Session, f"_{verb}") for verb in VERBS}


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


def _content_size(request: Request) -> int | None:
    """The size that a `put -` line announces; None when only the end of the content will tell."""
    size = request.options.get("size")
    if size is None:
        raise UsageError("content needs its size: put - name=NAME size=N|chunked|eof")
    if size.lower() in (b"chunked", b"eof"):
        return None
    return protocol.parse_number("size", size)


def _file_ref(word: Word) -> FileRef:
    """A bare word of digits is an id, anything else a name."""
    if word.value.isdigit() and not word.quoted:
        return protocol.parse_number("FILE", word.value)
    return protocol.check_name(word.value)


def _file_fields(file: File) -> dict[str, Value]:
    return {
        "id": file.id,
        "status": file.status.value,
        "size": file.size,
        "stored": file.stored,
        "parts": file.parts,
        "created": file.created // 1_000_000_000,
        "name": file.name,
    }


def _internal(error: Exception, request: Request) -> Internal:
    """A bug: people get a reference, the log gets the rest."""
    ref = os.urandom(4).hex()
    log.error("internal error ref=%s in %s", ref, request.verb, exc_info=error)
    return Internal(f"a bug in pfsd: {type(error).__name__}; the log has more under this ref", ref=ref)


async def _show_progress(progress: Progress, verb: str, seconds: int, answer: Answer) -> None:
    started = time.monotonic()
    while True:
        await asyncio.sleep(seconds)
        rate = int(progress.bytes / (time.monotonic() - started))
        known = progress.total is not None and rate > 0
        await answer.row(
            "PROGRESS",
            verb,
            bytes=progress.bytes,
            total="?" if progress.total is None else progress.total,
            parts=progress.parts,
            rate=rate,
            eta=-(-max(0, (progress.total or 0) - progress.bytes) // rate) if known else "?",
        )
