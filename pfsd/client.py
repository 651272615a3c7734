"""The client library: a connection to a daemon, with a method for each command.

    async with await Client.connect("127.0.0.1:7373") as client:
        stored = await client.put(Path("disk.img"), "disk.img")
        async for file in client.list("*.img"):
            print(file.id, file.name, file.size)

Any number of requests may run at once on one connection. They share its stream of bytes: a download that nobody
reads stops, once 4 MiB of it wait, everything on its connection, so give slow consumers a connection of their own.

A FILE is an id (int) or a name (str or bytes). Names are bytes; str stands for its UTF-8, with surrogate escapes.

Each command raises the class of `pfsd.errors` that belongs to the daemon's error code, and `ConnectionLost` when
the connection breaks. What a daemon of a later version says beyond what is known here is ignored. The standard
library, the protocol and the errors are all this needs; it never touches the store or the configuration.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from pfsd import protocol, results
from pfsd.aio import finish
from pfsd.errors import Corrupt, Partial, PfsdError, UsageError
from pfsd.exchange import (
    CLOSE_SECONDS,
    Buffer,
    CannotConnect,
    ConnectionLost,
    ConnectTimedOut,
    Exchange,
    Multiplexer,
)
from pfsd.protocol import MAX_FRAME, Reply, Value, Word
from pfsd.results import (
    BadPart,
    Damage,
    DamagedCopy,
    Deleted,
    DeleteReport,
    FileInfo,
    FileStat,
    Hello,
    Outcome,
    PartInfo,
    Renamed,
    Retrieved,
    StoredFile,
    UnderWay,
    VerifyReport,
)
from pfsd.transfer import Source, Target, Writable, frames, in_thread, size_of, write_all
from pfsd.watchdog import Watchdog

if TYPE_CHECKING:
    from pfsd import bulk
    from pfsd.link import Link

__all__ = [
    "BadPart",
    "CannotConnect",
    "Client",
    "ConnectionLost",
    "Damage",
    "DamagedCopy",
    "DeleteReport",
    "Deleted",
    "Download",
    "FileInfo",
    "FileRef",
    "FileStat",
    "Hello",
    "Outcome",
    "PartInfo",
    "Progress",
    "Renamed",
    "Retrieved",
    "Source",
    "StoredFile",
    "UnderWay",
    "VerifyReport",
    "Writable",
    "parse_address",
]  # fmt: skip

FileRef = int | str | bytes
Name = str | bytes
Words: TypeAlias = Sequence[Word]
Rows: TypeAlias = list[Reply]  # named, because inside `Client` the word list is a command
Result = TypeVar("Result")
#: Called with the bytes done so far and the total, None while that is unknown.
Progress = Callable[[int, int | None], None]
#: Called with the files of many that are being transferred.
Report = Callable[[Sequence[UnderWay]], None]

DEFAULT_ADDRESS = protocol.DEFAULT_ADDRESS
#: What the addresses begin with at which TLS is spoken.
TLS = "tls://"
#: A connection to a machine that is up takes milliseconds.
CONNECT_SECONDS = 10.0


# --- the connection -----------------------------------------------------------------------------


class Client:
    """A connection to a daemon; an async context manager that closes it."""

    def __init__(
        self,
        line: Multiplexer,
        address: str,
        token: str | None,
        tls: ssl.SSLContext | None,
        timeout: float | None = None,
    ) -> None:
        self._timeout = timeout
        self._line = line
        self._address = address
        self._token = token
        self._tls = tls

    @classmethod
    async def connect(
        cls,
        address: str = DEFAULT_ADDRESS,
        token: str | None = None,
        *,
        ca: str | os.PathLike[str] | None = None,
        connect_timeout: float = CONNECT_SECONDS,
        timeout: float | None = None,
    ) -> Client:
        """Connect to HOST:PORT, [IPV6]:PORT, unix:PATH, or tls://HOST:PORT, and show the token if there is one.

        With tls:// the daemon must have a certificate for HOST. `ca` is a PEM file with the certificates that vouch
        for it, which may be its own; without, those this machine trusts do.

        With a `timeout` everything that runs ends in ConnectionTimedOut when the daemon owes answers and not a byte
        has moved for so many seconds, not even the answer to a ping: what takes long is no reason.

        Raises UsageError for an address of another form or a `ca` that is none, CannotConnect when nobody answers
        (ConnectTimedOut within `connect_timeout` seconds) or the certificate is not trusted, AuthError.
        """
        tls = _tls_context(ca) if address.startswith(TLS) else None
        line = await _open(address, tls, connect_timeout)
        if timeout is not None:
            Watchdog(line, timeout)
        client = cls(line, address, token, tls, timeout)
        try:
            if token is not None:
                await client._ask("auth", [Word(_bytes(token), quoted=True)])
        except BaseException:
            await client.close()
            raise
        return client

    @property
    def alive(self) -> bool:
        """Whether the connection works, as far as that can be told without asking the daemon."""
        return self._line.alive

    @property
    def idle(self) -> bool:
        """Whether it works, and nothing runs on it."""
        return self._line.alive and not self._line.running

    @property
    def moved(self) -> int:
        """Bytes of content that have come and gone so far."""
        return self._line.content

    async def close(self) -> None:
        """Close the connection; what still runs on it fails with ConnectionLost, uploads store nothing."""
        await self._line.close()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    # --- the daemon ---

    async def ping(self) -> None:
        """Return when the daemon has answered."""
        await self._ask("ping")

    async def hello(self) -> Hello:
        """Ask for version, limits and state; UsageError when the daemon does not speak this protocol."""
        fields = results.Fields(await self._ask("hello", options={"proto": protocol.VERSION}))
        return Hello(
            proto=fields.number("proto"),
            version=fields.text("version"),
            max_line=fields.number("max_line"),
            max_frame=fields.number("max_frame"),
            auth=fields.text("auth"),
            state=fields.text("state"),
        )

    async def stats(self) -> dict[str, int | str]:
        """The daemon's counters; sizes are bytes, `uptime` is seconds."""
        _, rows = await self.request("stats")
        facts: dict[str, int | str] = {}
        for row in rows:
            if row.word == "STAT":
                facts |= {key: results.plain(value) for key, value in row.fields.items()}
        return facts

    async def exit(self) -> None:
        """Shut the daemon down; returns when its running commands are done. Denied, if not allowed from here."""
        await self._ask("exit")

    # --- store ---

    async def put(
        self,
        source: Source,
        name: Name,
        *,
        replace: bool = False,
        size: int | None = None,
        progress: Progress | None = None,
    ) -> StoredFile:
        """Store bytes, a path (os.PathLike), an open binary file, or an iterable of bytes, async or not.

        Paths and files are read in a thread; an iterable runs in the event loop. `size` announces the bytes of a
        source that does not tell them itself. Up to 1 MiB of known size is sent at once; everything else goes in
        frames, which can be given up on the way: an error of the source, or a cancellation, leaves nothing stored.

        Raises Exists without `replace`, Changed when a source is not what was announced, errors of the source.
        """
        size = size_of(source) if size is None else size
        options: dict[str, Value] = {"name": _name(name)}
        if replace:
            options["replace"] = "yes"
        async with aclosing(_reported(frames(source, size), size, progress)) as content:
            if size is not None and size <= MAX_FRAME:
                whole = b"".join([bytes(piece) async for piece in content])
                exchange = self._line.start("put", (Word(b"-"),), options | {"size": size}, whole)
                final = await exchange.answer()
            else:
                exchange = self._line.start("put", (Word(b"-"),), options | {"size": "chunked"})
                final = await _upload(exchange, content)
        return results.stored_file(final)

    async def put_path(
        self,
        path: Name | os.PathLike[str],
        name: Name | None = None,
        *,
        replace: bool = False,
        progress: Progress | None = None,
    ) -> StoredFile:
        """Store a file of the daemon's machine; `name` defaults to the last component of its path."""
        options: dict[str, Value] = {}
        if name is not None:
            options["name"] = _name(name)
        if replace:
            options["replace"] = "yes"
        words = [Word(os.fsencode(path), quoted=True)]
        return results.stored_file(await self._watched("put", words, options, [], progress))

    async def put_many(
        self,
        files: Iterable[tuple[str | os.PathLike[str], Name]],
        *,
        replace: bool = False,
        resume: bool = False,
        progress: Progress | None = None,
        under_way: Report | None = None,
    ) -> AsyncGenerator[Outcome[StoredFile], None]:
        """Store regular files, pairs of a path and a name, and yield what became of each as it is known.

        For many files or big ones: they travel over a connection of their own, a multiple as fast as by `put`, and
        memory does not grow with their number or size. `files` is iterated in a thread, and no further than what is
        sent. The error of one file is an outcome; only ConnectionLost is raised. Whoever leaves early, with
        `aclose`, gives up what is on its way: of each file all is stored, or nothing.

        With `resume` the daemon keeps what it has of a big file when this is cut short, and the next put of the
        file, if it has not changed, goes on from there. `under_way` hears ten times a second which big file is being
        sent.
        """
        from pfsd import bulk

        uploads = bulk.Uploads(self._link(), replace=replace, resume=resume)
        steps = uploads.run((os.fspath(path), _bytes(name)) for path, name in files)
        async with aclosing(_stepwise(uploads, steps, progress, under_way)) as outcomes:
            async for outcome in outcomes:
                yield outcome

    # --- retrieve ---

    async def get_many(
        self,
        files: Iterable[tuple[FileRef, Name]],
        folder: str | os.PathLike[str],
        *,
        replace: bool = False,
        sync: bool = False,
        progress: Progress | None = None,
        under_way: Report | None = None,
    ) -> AsyncGenerator[Outcome[Retrieved], None]:
        """Write files to paths below a directory, and yield what became of each as it is known.

        `files` are pairs of a file and a relative path. Directories are made where they are missing; each file
        appears whole or not at all. An absolute path, or one with empty, `.` or `..` components, is Denied, and
        no symlink below `folder` is followed. All else is as with `put_many`. OSError when there is no `folder`.
        """
        from pfsd import bulk

        downloads = bulk.Downloads(self._link(), os.fspath(folder), replace=replace, sync=sync)
        steps = downloads.run((_file(file), _bytes(path)) for file, path in files)
        async with aclosing(_stepwise(downloads, steps, progress, under_way)) as outcomes:
            async for outcome in outcomes:
                yield outcome

    async def get_resumed(
        self,
        file: FileRef,
        path: str | os.PathLike[str],
        *,
        folder: str | os.PathLike[str] | None = None,
        replace: bool = False,
        sync: bool = False,
        progress: Progress | None = None,
    ) -> Retrieved:
        """Write a file to a path, and keep what has come when this is cut short, for the next call to go on from.

        That is in `.NAME.KEY.pfsd-partial` beside it, where KEY stands for the content; it is checked, part by part,
        against the MD5s that the daemon knows, and gone when the file is whole. With `folder` the path is below it,
        under the rules of `get_many`. Raises as `get_to`, and Busy when another program is at it.
        """
        from pfsd import bulk

        found = await self.stat(file, parts=True)
        downloads = bulk.Downloads(self._link(), os.fspath(folder or ""), replace=replace, sync=sync)
        key = hashlib.sha256(f"{found.file.id} {found.etag}".encode()).hexdigest()[:16]
        parts = [(part.size, part.md5) for part in found.parts]
        steps = downloads.resume(_file(found.file.id), os.fspath(path), key, parts)
        async with aclosing(_stepwise(downloads, steps, progress)) as outcomes:
            async for outcome in outcomes:
                if outcome.result is None:
                    assert outcome.error is not None
                    raise outcome.error
                result = outcome.result
        return result

    def _link(self) -> Callable[[], Link]:
        """Opens a further connection like this one, for a thread."""
        from pfsd.link import Link

        token = None if self._token is None else _bytes(self._token)
        return partial(Link, parse_address(self._address), token, self._tls, self._timeout)

    def get(self, file: FileRef, *, offset: int = 0, length: int | None = None, zero_damage: bool = False) -> Download:
        """The content of a file, or of a range of it, which is cut short where the file ends.

        With `zero_damage` ranges that cannot be read come as zeros, and the end is a DamagedCopy that names them.
        """
        options = _get_options(offset, length, zero_damage)
        return Download(self._line.start("get", (_file(file), Word(b"-")), options))

    async def get_to(
        self,
        file: FileRef,
        target: os.PathLike[str] | Writable,
        *,
        offset: int = 0,
        length: int | None = None,
        replace: bool = False,
        zero_damage: bool = False,
        sync: bool = False,
        progress: Progress | None = None,
    ) -> Retrieved:
        """Write content to a path, where it appears whole or not at all, or to an open binary file.

        With `sync` it is on the disk before it appears, so that a loss of power cannot cut it short.
        With `zero_damage` ranges that cannot be read become zeros, the target is kept and DamagedCopy says which.
        With `progress` the daemon is asked first how much will come. Raises Exists without `replace`, Denied for
        a target that is no regular file, OSError.
        """
        total = await self._range(file, offset, length) if progress else None
        start = partial(self.get, file, offset=offset, length=length, zero_damage=zero_damage)
        if not isinstance(target, os.PathLike):
            return await _drain(start(), partial(in_thread, write_all, target), total, progress)
        async with Target(Path(target), replace, sync) as sink:
            try:
                retrieved = await _drain(start(), sink.write, total, progress)
            except DamagedCopy:
                await sink.commit()
                raise
            await sink.commit()
            return retrieved

    async def get_path(
        self,
        file: FileRef,
        target: Name | os.PathLike[str],
        *,
        offset: int = 0,
        length: int | None = None,
        replace: bool = False,
        zero_damage: bool = False,
        sync: bool = False,
        progress: Progress | None = None,
    ) -> Retrieved:
        """Write content to a path of the daemon's machine; with `sync` it is on the disk before it appears.

        With `zero_damage` ranges that cannot be read become zeros, the target is kept and DamagedCopy says which.
        """
        options = _get_options(offset, length, zero_damage)
        if replace:
            options["replace"] = "yes"
        if sync:
            options["sync"] = "yes"
        words = [_file(file), Word(os.fsencode(target), quoted=True)]
        rows: Rows = []
        try:
            return results.retrieved(await self._watched("get", words, options, rows, progress))
        except Partial as error:
            raise results.damaged_copy(error, rows) from None

    async def _range(self, file: FileRef, offset: int, length: int | None) -> int:
        size = (await self.stat(file)).file.size
        left = max(0, size - offset)
        return left if length is None else min(left, length)

    # --- look and change ---

    async def list(self, pattern: Name | None = None) -> AsyncGenerator[FileInfo, None]:
        """The files whose names match a glob, or all, by id."""
        words = () if pattern is None else (Word(_bytes(pattern), quoted=True),)
        exchange = self._line.start("list", words)
        try:
            while row := await exchange.next():
                if isinstance(row, Reply) and row.word == "FILE":
                    yield results.file_info(results.Fields(row))
        finally:
            exchange.drop()

    async def stat(self, file: FileRef, *, parts: bool = False) -> FileStat:
        """All about one file, with its parts if asked for. NotFound."""
        final, rows = await self.request("stat", [_file(file)], {"parts": "yes"} if parts else None)
        infos = [results.file_info(results.Fields(row)) for row in rows if row.word == "FILE"]
        if not infos:
            raise ConnectionLost("the daemon's answer to stat has no FILE row")
        found = tuple(results.part_info(results.Fields(row)) for row in rows if row.word == "PART")
        return FileStat(infos[0], results.Fields(final).text("etag"), found)

    async def delete(self, *files: FileRef) -> DeleteReport:
        """Delete files for good; none of them if one is NotFound."""
        final, rows = await self.request("delete", [_file(file) for file in files])
        fields = results.Fields(final)
        deleted = tuple(results.deleted(results.Fields(row)) for row in rows if row.word == "DELETED")
        return DeleteReport(fields.number("files"), fields.number("parts"), fields.number("freed"), deleted)

    async def rename(self, file: FileRef, name: Name, *, replace: bool = False) -> Renamed:
        """Give a file another name, atomically. Raises Exists without `replace`."""
        options = {"replace": "yes"} if replace else None
        fields = results.Fields(await self._ask("rename", [_file(file), Word(_name(name), quoted=True)], options))
        return Renamed(fields.number("id"), fields.name())

    async def verify(self, *files: FileRef, progress: Progress | None = None) -> VerifyReport:
        """Have every part of these files, or of all, read and checked. Bad parts are reported, not raised."""
        rows: Rows = []
        try:
            facts = (await self._watched("verify", [_file(file) for file in files], {}, rows, progress)).fields
        except Corrupt as error:
            facts = {key: str(value).encode() for key, value in error.fields.items()}
            if not any(row.word == "BAD" for row in rows):
                raise
        bad = tuple(results.bad_part(results.Fields(row)) for row in rows if row.word == "BAD")
        get = results.Fields(Reply("OK", "verify", facts))
        return VerifyReport(get.number("files"), get.number("parts"), get.number("bytes"), bad)

    # --- requests ---

    async def request(
        self, verb: str, words: Words = (), options: Mapping[str, Value] | None = None
    ) -> tuple[Reply, Rows]:
        """Any request without content: its OK line and the rows before it, as they are."""
        rows: Rows = []
        return await self._watched(verb, words, options or {}, rows), rows

    async def _ask(self, verb: str, words: Words = (), options: Mapping[str, Value] | None = None) -> Reply:
        return await self._line.start(verb, tuple(words), options).answer()

    async def _watched(
        self,
        verb: str,
        words: Words,
        options: Mapping[str, Value],
        rows: Rows,
        progress: Progress | None = None,
    ) -> Reply:
        """A request whose `rows` are of use even when it fails; `progress` hears how far it is every second."""
        if progress is not None:
            options = {**options, "progress": 1}
        exchange = self._line.start(verb, tuple(words), options)
        try:
            while row := await exchange.next():
                if isinstance(row, Reply) and row.word != "PROGRESS":
                    rows.append(row)
                elif isinstance(row, Reply) and progress is not None:
                    total = results.plain(row.fields.get("total", b"?"))
                    progress(results.Fields(row).number("bytes"), total if isinstance(total, int) else None)
            return exchange.result()
        finally:
            exchange.drop()


class Download:
    """Content on its way: an async iterator of bytearrays. After its end `retrieved` says what it was.

    Leave it early with `aclose`, or by `async with`; the rest is thrown away as it comes, which takes as long as
    reading it would. Closing the connection is quicker.
    """

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._received = 0
        self._rows: Rows = []
        self._retrieved: Retrieved | None = None

    def __aiter__(self) -> Download:
        return self

    async def __anext__(self) -> bytearray:
        try:
            while (piece := await self._exchange.next()) is not None:
                if isinstance(piece, bytearray):
                    self._received += len(piece)
                    return piece
                self._rows.append(piece)
        except Partial as error:
            raise results.damaged_copy(error, self._rows) from None
        self._end()
        raise StopAsyncIteration

    async def pieces(self) -> list[Buffer]:
        """Wait for content and take all that is there; empty at the end."""
        pieces: list[Buffer] = []
        async for piece in self:
            pieces.append(piece)
            if not self._exchange.content_ready:
                break
        return pieces

    @property
    def retrieved(self) -> Retrieved:
        """What was read; ValueError before the end."""
        if self._retrieved is None:
            raise ValueError("the content has not been read to its end")
        return self._retrieved

    @property
    def size(self) -> int:
        """The size of the file in bytes; ValueError before the end."""
        return self.retrieved.size

    @property
    def etag(self) -> str:
        """The etag of the file; ValueError before the end."""
        return self.retrieved.etag

    async def read(self) -> bytes:
        """All of the content that has not been taken yet."""
        content = io.BytesIO()  # in which pieces go as they come; a list would hold all of them beside the result
        async for piece in self:
            content.write(piece)
        return content.getvalue()

    async def aclose(self) -> None:
        """Take no more."""
        self._exchange.drop()

    async def __aenter__(self) -> Download:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def _end(self) -> None:
        if self._retrieved is None:
            self._retrieved = results.retrieved(self._exchange.result())
            if self._retrieved.transferred != self._received:
                count = f"{self._received} instead of {self._retrieved.transferred}"
                raise ConnectionLost(f"{count} bytes came, so this daemon and this client misunderstand each other")


# --- content ------------------------------------------------------------------------------------


async def _upload(exchange: Exchange, content: AsyncIterator[Buffer]) -> Reply:
    """Send frames until the end, or until the daemon has answered: with an error, since nothing was complete."""

    async def send() -> None:
        async for piece in content:
            await exchange.send_frame(piece)
        exchange.end_content()

    sending = asyncio.create_task(send())
    try:
        waited: set[asyncio.Future[Any]] = {sending, exchange.final}
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
    finally:
        complete = await _stop(sending)
        if not complete:
            exchange.abort_content()  # if the daemon has given up before, this ends what it throws away
    if sending.cancelled() or (error := sending.exception()) is None:
        return await exchange.answer()
    with suppress(PfsdError):
        await exchange.answer()  # until then the name is taken
    raise error


async def _stop(task: asyncio.Task[None]) -> bool:
    """Cancel a task if it still runs and wait for its end; whether it had succeeded before."""
    task.cancel()
    await finish(asyncio.ensure_future(asyncio.wait({task})))
    return not task.cancelled() and task.exception() is None


async def _reported(
    pieces: AsyncIterator[Buffer], total: int | None, progress: Progress | None
) -> AsyncGenerator[Buffer, None]:
    """The pieces as they are; `progress` hears of each one when the next is wanted."""
    done = 0
    if progress is not None:
        progress(0, total)
    async for piece in pieces:
        yield piece
        done += len(piece)
        if progress is not None:
            progress(done, total)


async def _drain(
    download: Download,
    write: Callable[[list[Buffer]], Awaitable[None]],
    total: int | None,
    progress: Progress | None,
) -> Retrieved:
    """Write a download to its end."""
    done = 0
    if progress is not None:
        progress(done, total)
    async with download:
        while pieces := await download.pieces():
            await write(pieces)
            done += sum(len(piece) for piece in pieces)
            if progress is not None:
                progress(done, total)
        return download.retrieved


async def _stepwise(
    transfers: bulk.Uploads | bulk.Downloads,
    steps: Iterator[list[Outcome[Result]]],
    progress: Progress | None,
    under_way: Report | None = None,
) -> AsyncGenerator[Outcome[Result], None]:
    """What transfers yield, step by step in a thread; whoever leaves early aborts them."""
    step: asyncio.Future[list[Outcome[Result]] | None] | None = None
    try:
        while True:
            step = asyncio.ensure_future(in_thread(next, steps, None))
            await asyncio.wait({step})
            outcomes = step.result()
            if progress is not None:
                progress(transfers.bytes, None)
            if under_way is not None:
                under_way(transfers.under_way())
            if outcomes is None:
                return
            for outcome in outcomes:
                yield outcome
    finally:
        if step is not None and not step.done():
            transfers.abort()
            # A thread that hangs in a read is left behind.
            await finish(asyncio.ensure_future(asyncio.wait({step}, timeout=CLOSE_SECONDS)))
        if step is not None and step.done():
            step.exception()  # seen
            steps.close()  # type: ignore[attr-defined]


# --- addresses, words and fields ----------------------------------------------------------------

_TCP = re.compile(r"(?:\[(?P<six>[^\[\]]+)\]|(?P<host>[^\[\]:/\s]+)):(?P<port>[0-9]{1,5})")


def parse_address(address: str) -> Path | tuple[str, int]:
    """The path of a Unix socket, or host and port, also behind tls://. UsageError for another form."""
    if address.startswith("unix:") and len(address) > 5:
        return Path(address[5:])
    found = _TCP.fullmatch(address.removeprefix(TLS))
    if not found or not 0 < int(found["port"]) < 65536:
        forms = "HOST:PORT, [IPV6]:PORT, tls://HOST:PORT or unix:PATH"
        raise UsageError(f"an address is {forms}, not {protocol.show(_bytes(address))}")
    return found["six"] or found["host"], int(found["port"])


def _tls_context(ca: str | os.PathLike[str] | None) -> ssl.SSLContext:
    from pfsd import certificates

    try:
        return certificates.client_context(None if ca is None else Path(ca))
    except certificates.BadCertificate as error:
        raise UsageError(f"{ca} must hold the certificates to trust, but it {error}") from None


async def _open(address: str, tls: ssl.SSLContext | None, seconds: float) -> Multiplexer:
    where = parse_address(address)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(seconds):
            if isinstance(where, Path):
                _, line = await loop.create_unix_connection(Multiplexer, str(where))
            else:
                host = where[0] if tls is not None else None
                _, line = await loop.create_connection(Multiplexer, *where, ssl=tls, server_hostname=host)
    except TimeoutError:
        raise ConnectTimedOut(f"{address} does not answer within {seconds:g} seconds") from None
    except UnicodeError:  # of the codec for names of hosts
        raise UsageError(f"{protocol.show(_bytes(address))} has no name of a host") from None
    except OSError as error:
        if tls is not None and (refusal := _refusal(error)):
            raise CannotConnect(f"{address}: {refusal}") from None
        words = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        raise CannotConnect(f"no daemon answers at {address}: {words}") from None
    return line


def _refusal(error: OSError) -> str | None:
    """Why a TLS handshake failed, as far as that can be told."""
    from pfsd import certificates

    if isinstance(error, ssl.SSLCertVerificationError):
        return certificates.untrusted(error)
    if isinstance(error, ssl.SSLError):
        return f"what answers there does not speak TLS as it should: {error.reason or error}"
    if isinstance(error, ConnectionResetError | ConnectionAbortedError):
        return "the connection was closed before the TLS handshake was done"
    return None


def _bytes(text: Name) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


def _name(name: Name) -> bytes:
    return protocol.check_name(_bytes(name))


def _file(file: FileRef) -> Word:
    """A FILE argument; names are quoted, so that digits stay a name."""
    return Word(str(file).encode()) if isinstance(file, int) else Word(_name(file), quoted=True)


def _get_options(offset: int, length: int | None, zero_damage: bool) -> dict[str, Value]:
    options: dict[str, Value] = {"offset": offset} if offset else {}
    if length is not None:
        options["length"] = length
    if zero_damage:
        options["on_error"] = "zero"
    return options
