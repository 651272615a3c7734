"""One client's session: when requests run, and in which order; content goes to the upload it belongs to.

The serving loop reads the connection in order; every request runs as a task of its own. Untagged requests wait
for the one before them, tagged ones for nobody. Content of uploads is read by the serving loop, because it
stands between the lines, and handed to the request's task through a `Feed`.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from pfsd import logs, protocol
from pfsd.activity import Command
from pfsd.calls import Access, Answer, Call, Content, Feed, Handler, Service, current_task
from pfsd.commands import put
from pfsd.connection import Connection, ConnectionLost
from pfsd.errors import AuthError, Busy, Cancelled, Denied, Internal, RequestError, Stopping, TooLong, UsageError
from pfsd.handlers import HANDLERS, content_size
from pfsd.protocol import Request
from pfsd.verbs import BEFORE_AUTH, VERBS, check

log = logging.getLogger(__name__)

#: Requests of one connection that run or wait for their turn; reading pauses above it.
MAX_REQUESTS = 256
#: Uploads in frames that one connection may have open: each holds memory while its client sends others.
MAX_OPEN_UPLOADS = 32
#: Uploads in frames, refused and failed ones too, whose end has not come; beyond it the connection ends.
MAX_FEEDS = 1024
#: What runs even while the daemon stops.
WHILE_STOPPING = frozenset({"hello", "help", "ping", "quit", "auth"})


class Session:
    """Serves one connection until its end."""

    def __init__(
        self, service: Service, connection: Connection, number: int, allow: frozenset[str] | None = None
    ) -> None:
        """`allow` are the verbs that work where the client came in; None is all."""
        self._service = service
        self._connection = connection
        self._number = number
        self._peer = connection.peer
        self._access = Access(allow, trusted=not service.tokens.needed)
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
                feed.fail(UsageError("the content was cut short by the end of input; the file was not stored"))
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
            seconds = self._connection.idle_seconds
            feed.fail(Cancelled(f"no content came for {seconds:g} seconds; the file was not stored"))
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
        log.warning("client %d at %s speaks HTTP and is turned away", self._number, self._peer)
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
        if not self._access.trusted and verb not in BEFORE_AUTH:
            raise AuthError("this daemon wants its token first: auth TOKEN")
        if self._access.allow is not None and verb not in self._access.allow:
            raise Denied(f"{verb} is not allowed on this listener (allow); try: help")
        if self._service.stopping and verb not in WHILE_STOPPING:
            raise Stopping("the daemon is shutting down")

    def _admit_upload(self, request: Request) -> None:
        content_size(request)
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
        self._spawn(request, HANDLERS[request.verb])

    # --- tasks ---

    def _spawn(
        self, request: Request, handler: Handler, feed: Feed | None = None, content: Content | None = None
    ) -> None:
        before = {self._last_untagged} if request.tag is None and self._last_untagged else set()
        if self._leaving:
            # Raw bytes and the end of the session both come after everything else.
            before = set(self._tasks)
        task = asyncio.create_task(self._run(request, handler, feed, content, before))
        if request.tag is None:
            self._last_untagged = task
        else:
            self._tags.add(request.tag)
        self._tasks.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._ended(task)
            if content is not None:
                content.free()
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

        async def raise_error(call: Call) -> None:
            raise error

        if tag is not None and tag in self._tags:
            # The tag belongs to another request, whose bookkeeping must not be touched.
            refused = Request("", tag=tag, ending=ending)
            task = asyncio.create_task(self._run(refused, raise_error, None, None, set()))
            self._tasks.add(task)
            task.add_done_callback(self._ended)
            return
        self._spawn(Request("", tag=tag, ending=ending), raise_error)

    async def _run(
        self,
        request: Request,
        handler: Handler,
        feed: Feed | None,
        content: Content | None,
        before: set[asyncio.Task[None]],
    ) -> None:
        if before:
            await asyncio.wait(before)
        answer = Answer(self._connection, request.tag, request.ending)
        command = self._service.activity.begin(request, self._peer)
        about = logs.About(self._number, self._peer, request.verb, command.id)
        logs.about.set(about)
        self._service.running.add(current_task())
        try:
            if request.verb in VERBS:
                self._allow(request.verb)
            await handler(self._call(request, answer, feed, content, command))
        except ConnectionLost:
            pass
        except RequestError as error:
            if isinstance(error, Internal):
                error = _internal(error, about)
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
            await self._answer_error(_internal(error, about), answer)
        finally:
            seconds = self._service.activity.end(command, answer.outcome)
            self._service.audit.note(about, request, answer.outcome, seconds, trusted=self._access.trusted)

    def _call(
        self, request: Request, answer: Answer, feed: Feed | None, content: Content | None, command: Command
    ) -> Call:
        return Call(self._service, self._connection, request, answer, feed, content, self._access, command)

    async def _answer_error(self, error: RequestError, answer: Answer) -> None:
        with suppress(ConnectionLost):
            await answer.error(error)

    # --- content ---

    async def _start_upload(self, request: Request) -> None:
        size = request.options["size"].lower()
        waits = request.tag is None and self._last_untagged is not None
        # One that has to wait leaves its content where it is, lest it keeps memory from others.
        if size.isdigit() and not waits and (content := self._take_content(int(size))) is not None:
            self._spawn(request, HANDLERS["put"], content=content)
            return
        feed = Feed()
        framed = size == b"chunked"
        if framed:
            self._feeds[request.tag] = feed
        self._spawn(request, HANDLERS["put"], feed)
        if not framed and await self._receive(feed, None if size == b"eof" else int(size)):
            feed.end()

    def _take_content(self, size: int) -> Content | None:
        """The content of a small upload, if all of it has come with its line and there is memory for it."""
        engine = self._service.engine
        if size > min(self._connection.buffered, engine.settings.small_bytes):
            return None
        content = Content(engine.budget, [])
        for part in put.part_sizes(size, engine.settings.part_size):
            extent = engine.budget.try_take(part)
            if extent is None:
                content.free()
                return None
            content.extents.append(extent)
        for extent in content.extents:
            self._connection.take(engine.budget.view(extent))
        return content

    async def _receive(self, feed: Feed, count: int | None) -> bool:
        """Read `count` bytes of content (None: all there is) into the upload; whether all came, else it fails.

        When the upload fails the rest is thrown away, so that the connection stays in step.
        """
        whole = False
        try:
            whole = await self._fill(feed, await feed.upload, count)
        finally:
            if not whole:
                feed.fail(UsageError("the content was cut short; the file was not stored"))
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
            feed.aborted = True
            feed.fail(Cancelled("the upload was given up by its client; the file was not stored"))
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


def _internal(error: Exception, about: logs.About) -> Internal:
    """A bug: people get a reference, the log gets the rest."""
    log.error("internal error", exc_info=error)
    return Internal(f"a bug in pfsd: {type(error).__name__}; the log has more under this ref", ref=about.ref)
