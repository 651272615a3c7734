"""`AsyncStore`: a daemon's files for programs with an event loop, over as many connections as it takes.

    async with AsyncStore("127.0.0.1:7373") as store:
        await store.put("disk.img")
        content = await store.get("disk.img")

It connects when it has to, and anew when a connection has broken; `Client` is one connection, this decides which one a
request takes. What only reads is repeated when its connection breaks. What changes something is sent once, over a
connection that is seen to be open, and ends in OutcomeUnknown if that breaks before the answer.
"""

from __future__ import annotations

import asyncio
import io
import os
import stat
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar, overload

from pfsd import protocol
from pfsd.client import (
    CONNECT_SECONDS,
    DEFAULT_ADDRESS,
    Client,
    Download,
    FileRef,
    Name,
    Progress,
    Rows,
    Words,
    parse_address,
)
from pfsd.errors import Changed, Exists, NotFound, NotReady, UsageError, from_os_error
from pfsd.exchange import Buffer, CannotConnect, ConnectionLost, ConnectionTimedOut, TimedOut
from pfsd.fileobjects import AsyncReader, AsyncWriter, FetchRange, Opening
from pfsd.pool import Pool
from pfsd.protocol import MAX_FRAME, Reply, Value
from pfsd.results import (
    DeleteReport,
    FileInfo,
    FileStat,
    Hello,
    Outcome,
    Renamed,
    Retrieved,
    StoredFile,
    VerifyReport,
)
from pfsd.transfer import Source, Writable, frames, size_of

Result = TypeVar("Result")
Opened = TypeVar("Opened")

#: What is not longer travels over the connection that small requests share.
SMALL = MAX_FRAME
#: A file that is replaced between two requests is read anew so often.
CHANGES = 5
#: What can be read.
READABLE = ("ready", "damaged")
#: Pauses before a request that reads is repeated, in seconds: a daemon that is restarted is back within a few.
PAUSES = (0.0, 0.1, 0.3, 1.0, 2.0)


class OutcomeUnknown(ConnectionLost):
    """The connection broke before the answer came: the request was carried out completely, or not at all."""

    code = "outcome-unknown"


class OutcomeTimedOut(OutcomeUnknown, ConnectionTimedOut):
    """As OutcomeUnknown, because nothing moved any more."""

    code = "timed-out"


class AsyncStore:
    """A daemon, over a pool of connections. An async context manager that closes them.

    Belongs to the event loop it is used in first; each loop needs one of its own. It survives pickling and forking,
    with its arguments and without its connections.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        token: str | None = None,
        ca: str | os.PathLike[str] | None = None,
        connections: int = 4,
        connect_timeout: float = CONNECT_SECONDS,
        timeout: float | None = 60.0,
    ) -> None:
        """Nothing is connected yet. `address`, `token` and `ca` are those of `Client.connect`; where they are left out,
        PFSD_SERVER, PFSD_TOKEN and PFSD_CA in the environment count, and at last 127.0.0.1:7373 without a token.

        Up to `connections` transfers run at once, more wait; besides, there is one connection for small requests, and
        one for each `put_many`, `get_many`, `stream`, and file that is open for writing. A new connection gets
        `connect_timeout` seconds. What runs ends in a TimedOut when nothing has moved for `timeout` seconds, None
        waits for ever; that something takes long is no reason. Raises UsageError for an address that is none.
        """
        if connections < 1:
            raise UsageError(f"connections must be 1 or more, not {connections}")
        for name, seconds in (("connect_timeout", connect_timeout), ("timeout", timeout)):
            if seconds is not None and not seconds > 0:
                raise UsageError(f"{name} must be more than 0 seconds, not {seconds}")
        self._arguments: dict[str, Any] = {
            "address": address,
            "token": token,
            "ca": None if ca is None else os.fspath(ca),
            "connections": connections,
            "connect_timeout": connect_timeout,
            "timeout": timeout,
        }
        parse_address(self.address)
        self._pool: Pool | None = None
        self._closed = False

    @property
    def address(self) -> str:
        """Where the daemon is looked for."""
        return _address(self._arguments["address"])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.address!r})"

    def __reduce__(self) -> tuple[object, ...]:
        return _revived, (type(self), self._arguments)

    # --- connections ---

    async def close(self) -> None:
        """Close all connections. What still runs fails with ConnectionLost, and uploads store nothing."""
        pool, self._pool, self._closed = self._pool, None, True
        if pool is not None and pool.is_here():
            await pool.close()

    aclose = close

    async def __aenter__(self) -> AsyncStore:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _here(self) -> Pool:
        """The pool of this event loop."""
        if self._closed:
            raise UsageError("this store was closed; make a new one")
        pool = self._pool
        if pool is not None:
            if pool.is_here():
                return pool
            if pool.is_in_use():
                raise UsageError("this store belongs to another event loop, which still runs; make one for each loop")
        # The pool does not know this store, so that dropping the store can be the end of the pool.
        connect = partial(_connect, **self._arguments)
        self._pool = pool = Pool(connect, self._arguments["connections"], self._arguments["timeout"])
        weakref.finalize(self, Pool.close_soon, pool).atexit = False
        return pool

    async def _reading(self, request: Callable[[Client], Awaitable[Result]], *, own: bool = False) -> Result:
        """Make a request that changes nothing; again, if its connection breaks."""
        pool = self._here()
        pauses = iter(PAUSES)
        broken = False
        while True:
            try:
                if not own:
                    return await request(await pool.shared())
                async with pool.own() as client:
                    return await request(client)
            except ConnectionLost as error:
                # That nobody answers is news to wait for only behind a connection that has worked.
                if isinstance(error, TimedOut) or (isinstance(error, CannotConnect) and not broken):
                    raise
                broken = True
                if self._closed or (pause := next(pauses, None)) is None:
                    raise
                await asyncio.sleep(pause)

    async def _changing(self, request: Callable[[Client], Awaitable[Result]]) -> Result:
        """Make a request that changes something; once."""
        client = await self._here().shared()
        with _unknown():
            return await request(client)

    # --- the daemon ---

    async def ping(self) -> None:
        """Return when the daemon has answered."""
        await self._reading(Client.ping)

    async def hello(self) -> Hello:
        """Ask for version, limits and state; UsageError when the daemon does not speak this protocol."""
        return await self._reading(Client.hello)

    async def stats(self) -> dict[str, int | str]:
        """The daemon's counters; sizes are bytes, `uptime` is seconds."""
        return await self._reading(Client.stats)

    async def exit(self) -> None:
        """Shut the daemon down; returns when its running commands are done. Denied, if not allowed from here."""
        await self._changing(Client.exit)

    # --- store ---

    async def put(
        self,
        source: Source | str,
        name: Name | None = None,
        *,
        replace: bool = False,
        size: int | None = None,
        progress: Progress | None = None,
    ) -> StoredFile:
        """Store a file by its path (str or os.PathLike), bytes, an open binary file, or an iterable of bytes.

        `name` is needed unless it can be the last component of a path. Paths and files are read in a thread, an
        iterable, async or not, runs in the event loop. `size` announces the bytes of a source that does not tell them
        itself. Whatever ends it before its end, an error of the source or a cancellation, leaves nothing stored.

        Raises Exists without `replace`; Changed when a source is not what was announced or changed meanwhile; for
        paths what the system says as NotFound, Denied or IoError, and else the source's own errors. OutcomeUnknown
        when all was sent and the connection broke before the answer, ConnectionLost when it broke before: then
        nothing was stored.
        """
        if isinstance(source, str):
            source = Path(source)
        if not isinstance(source, os.PathLike):
            if name is None:
                raise UsageError("a name is needed for what is stored: put(source, name)")
            return await self._put(source, name, replace, size, progress)
        path = Path(source)
        try:
            status = await asyncio.to_thread(os.stat, path)
            if stat.S_ISREG(status.st_mode) and status.st_size > SMALL and size in (None, status.st_size):
                return await self._put_file(path, name or path.name, replace, status.st_size, progress)
            return await self._put(path, name or path.name, replace, size, progress)
        except OSError as error:
            raise from_os_error(error, f"reading {path}") from None

    async def _put(
        self, source: Source, name: Name, replace: bool, size: int | None, progress: Progress | None
    ) -> StoredFile:
        pool = self._here()
        size = size_of(source) if size is None else size
        if size is not None and size <= SMALL:
            return await self._changing(
                lambda client: client.put(source, name, replace=replace, size=size, progress=progress)
            )
        async with pool.own() as client:
            return await _upload(client, frames(source, size), name, replace, size, progress)

    async def _put_file(
        self, path: Path, name: Name, replace: bool, size: int, progress: Progress | None
    ) -> StoredFile:
        """Store a regular file the fast way: by a thread that has a connection for itself."""
        outcomes = self.put_many([(path, name)], replace=replace, progress=_with_total(progress, size))
        return await self._only(outcomes)

    async def put_many(
        self,
        files: Iterable[tuple[str | os.PathLike[str], Name]],
        *,
        replace: bool = False,
        resume: bool = False,
        progress: Progress | None = None,
    ) -> AsyncGenerator[Outcome[StoredFile], None]:
        """Store regular files, pairs of a path and a name, and yield what became of each as it is known.

        For many files: they travel over a connection of their own, a multiple as fast as by `put`, and memory does
        not grow with their number or size. `files` is iterated in a thread, and no further than what is sent. The
        error of one file is an outcome; only ConnectionLost is raised, and what became of files without an outcome
        is not known then. Whoever leaves early gives up what is on its way: of each file all is stored, or nothing.

        With `resume` the daemon keeps what it has of a big file when this is cut short, and the next put of the
        file, if it has not changed, goes on from there.
        """
        # It takes no turn: who iterates this decides when it ends, and may wait for others meanwhile.
        client = await self._here().shared()
        with _unknown():
            async with aclosing(client.put_many(files, replace=replace, resume=resume, progress=progress)) as outcomes:
                async for outcome in outcomes:
                    yield outcome

    async def put_path(
        self,
        path: Name | os.PathLike[str],
        name: Name | None = None,
        *,
        replace: bool = False,
        progress: Progress | None = None,
    ) -> StoredFile:
        """Store a file of the daemon's machine; `name` defaults to the last component of its path."""
        return await self._changing(lambda client: client.put_path(path, name, replace=replace, progress=progress))

    # --- retrieve ---

    async def get(
        self,
        file: FileRef,
        *,
        offset: int = 0,
        length: int | None = None,
        progress: Progress | None = None,
    ) -> bytes:
        """The content of a file, or of a range of it, which is cut short where the file ends; all in memory.

        For more than fits into memory there are `get_to`, `stream` and `open`.
        """
        first = SMALL if length is None else min(length, SMALL)
        for _ in range(CHANGES):
            content, found = await self._reading(partial(_read, file, offset, first))
            left = found.size - offset if length is None else min(found.size - offset, length)
            if left <= len(content):
                if progress is not None:
                    progress(len(content), len(content))
                return content
            try:
                content, _ = await self._reading(
                    partial(_read, found.id, offset, left, progress=progress, total=left), own=True
                )
                return content
            except (NotFound, NotReady):
                continue  # replaced just now
        raise Changed(f"{file!r} is replaced again and again while it is read")

    async def get_ranges(self, file: FileRef, ranges: Iterable[tuple[int, int]]) -> list[bytes]:
        """Several ranges of a file, pairs of an offset and a length, side by side; all of the same content.

        Each is cut short where the file ends. Changed when the file is gone before all is read.
        """
        found = await self.stat(file)
        tasks = [asyncio.ensure_future(self._range(found.file, offset, length)) for offset, length in ranges]
        try:
            return list(await asyncio.gather(*tasks))
        finally:
            for task in tasks:
                task.cancel()

    async def _range(self, file: FileInfo, offset: int, length: int) -> bytes:
        """A range of a file whose id is known."""
        try:
            own = length > SMALL
            content, _ = await self._reading(partial(_read, file.id, offset, length), own=own)
        except (NotFound, NotReady):
            name = os.fsdecode(file.name)
            words = f"{name} (id {file.id}) was deleted or replaced since it was opened"
            raise Changed(f"{words}; open it again for what it is now", id=file.id) from None
        return content

    @asynccontextmanager
    async def stream(
        self, file: FileRef, *, offset: int = 0, length: int | None = None, zero_damage: bool = False
    ) -> AsyncIterator[Download]:
        """The content of a file, or of a range of it, as it comes: `async with store.stream(name) as pieces`.

        It has a connection of its own, so nobody minds how slowly it is read; leaving early ends that. All comes
        from one file, which is kept until then whatever becomes of it. Not repeated when the connection breaks.
        """
        # Not closed when it is left early: its rest would then be waited for, not given up with the connection.
        async with self._here().own(beyond=True) as client:
            yield client.get(file, offset=offset, length=length, zero_damage=zero_damage)

    async def get_to(
        self,
        file: FileRef,
        target: str | os.PathLike[str] | Writable,
        *,
        offset: int = 0,
        length: int | None = None,
        replace: bool = False,
        sync: bool = False,
        zero_damage: bool = False,
        progress: Progress | None = None,
    ) -> Retrieved:
        """Write content to a path (str or os.PathLike), or to an open binary file.

        A path appears when all has come and was checked, or is as it was; `sync` has it on the disk before that. With
        `zero_damage` ranges that cannot be read become zeros, the target is kept and DamagedCopy says which.

        Raises Exists without `replace`, Denied for what is no regular file, and what the system says as NoSpace,
        NotFound or IoError; for an open file its own errors.
        """
        path = Path(target) if isinstance(target, str | os.PathLike) else None
        try:
            if path is not None and not offset and length is None and not zero_damage:
                return await self._get_file(file, path, replace, sync, progress)
            async with self._here().own() as client:
                return await client.get_to(
                    file,
                    target if path is None else path,  # type: ignore[arg-type]
                    offset=offset,
                    length=length,
                    replace=replace,
                    sync=sync,
                    zero_damage=zero_damage,
                    progress=progress,
                )
        except OSError as error:
            if path is None:
                raise
            raise from_os_error(error, f"writing {path}") from None

    async def _get_file(
        self, file: FileRef, path: Path, replace: bool, sync: bool, progress: Progress | None
    ) -> Retrieved:
        """Write a whole file the fast way: by a thread that has a connection for itself."""
        total = (await self.stat(file)).file.size if progress is not None else None
        pairs = [(file, os.fsencode(path.name))]
        report = _with_total(progress, total)
        return await self._only(self.get_many(pairs, path.parent, replace=replace, sync=sync, progress=report))

    async def _only(self, outcomes: AsyncGenerator[Outcome[Result], None]) -> Result:
        """What became of the one file that is transferred, in its turn."""
        async with self._here().turn(), aclosing(outcomes):
            async for outcome in outcomes:
                if outcome.error is not None:
                    raise outcome.error
                assert outcome.result is not None
                return outcome.result
        raise ConnectionLost("the daemon did not say what became of the file")

    async def get_many(
        self,
        files: Iterable[tuple[FileRef, Name]],
        folder: str | os.PathLike[str],
        *,
        replace: bool = False,
        sync: bool = False,
        progress: Progress | None = None,
    ) -> AsyncGenerator[Outcome[Retrieved], None]:
        """Write files to paths below a directory, and yield what became of each as it is known.

        `files` are pairs of a file and a relative path. Directories are made where they are missing; each file
        appears whole or not at all. An absolute path, or one with empty, `.` or `..` components, is Denied, and
        no symlink below `folder` is followed. All else is as with `put_many`. NotFound when there is no `folder`.
        """
        client = await self._here().shared()  # and no turn, as in `put_many`
        try:
            async with aclosing(
                client.get_many(files, folder, replace=replace, sync=sync, progress=progress)
            ) as outcomes:
                async for outcome in outcomes:
                    yield outcome
        except OSError as error:
            raise from_os_error(error, f"writing to {os.fspath(folder)}") from None

    async def get_resumed(
        self,
        file: FileRef,
        path: str | os.PathLike[str],
        *,
        replace: bool = False,
        sync: bool = False,
        progress: Progress | None = None,
    ) -> Retrieved:
        """Write a file to a path, and keep what has come when this is cut short, for the next call to go on from.

        That is in `.NAME.KEY.pfsd-partial` beside it, where KEY stands for the content; it is checked, part by part,
        against the MD5s that the daemon knows, and gone when the file is whole. Raises as `get_to`, and Busy when
        another program is at it.
        """
        pool = self._here()
        async with pool.turn():
            client = await pool.shared()
            return await client.get_resumed(file, path, replace=replace, sync=sync, progress=progress)

    async def get_path(
        self,
        file: FileRef,
        target: Name | os.PathLike[str],
        *,
        offset: int = 0,
        length: int | None = None,
        replace: bool = False,
        sync: bool = False,
        zero_damage: bool = False,
        progress: Progress | None = None,
    ) -> Retrieved:
        """Write content to a path of the daemon's machine; with `sync` it is on the disk before it appears.

        With `zero_damage` ranges that cannot be read become zeros, the target is kept and DamagedCopy says which.
        """
        return await self._changing(
            lambda client: client.get_path(
                file,
                target,
                offset=offset,
                length=length,
                replace=replace,
                sync=sync,
                zero_damage=zero_damage,
                progress=progress,
            )
        )

    # --- open ---

    @overload
    def open(self, file: FileRef, mode: Literal["rb"] = "rb") -> Opening[AsyncReader]: ...

    @overload
    def open(self, file: Name, mode: Literal["wb", "xb"]) -> Opening[AsyncWriter]: ...

    def open(
        self, file: FileRef, mode: Literal["rb", "wb", "xb"] = "rb"
    ) -> Opening[AsyncReader] | Opening[AsyncWriter]:
        """A file to be read ("rb"), or written: "wb" replaces the one of that name, "xb" raises Exists.

        `async with store.open(name) as file`, or `file = await store.open(name)`. What is written exists when it is
        closed; an exception inside `async with`, `abort()`, and dropping it leave nothing behind. Raises NotFound.
        """
        if mode == "rb":
            return Opening(self.open_reader(file, AsyncReader))
        if isinstance(file, int):
            raise UsageError(f"a file is written under a name, not under an id ({file})")
        if mode not in ("wb", "xb"):
            raise UsageError(f'the mode is "rb", "wb" or "xb", not {mode!r}; text is for Store.open')
        return Opening(self.open_writer(file, replace=mode == "wb"))

    async def open_reader(self, file: FileRef, make: Callable[[FileInfo, str, FetchRange], Opened]) -> Opened:
        """What `make` makes of a file: its row, its etag, and a function that fetches a range."""
        found = await self.stat(file)
        if found.file.status not in READABLE:
            raise NotReady(
                f"{os.fsdecode(found.file.name)} is {found.file.status} and cannot be read", id=found.file.id
            )
        return make(found.file, found.etag, partial(self._range, found.file))

    async def open_writer(self, name: Name, *, replace: bool) -> AsyncWriter:
        """A file to be written under a name; Exists at once if it is there already and not to be replaced."""
        name = protocol.check_name(_bytes(name))
        if not replace:
            with suppress(NotFound, NotReady):
                found = await self.stat(name)
                shown = protocol.show(name)
                raise Exists(f'{shown} exists already (id {found.file.id}); "wb" replaces it', id=found.file.id)
        pool = self._here()

        async def store(content: AsyncIterator[Buffer]) -> StoredFile:
            async with pool.own(beyond=True) as client:
                return await _upload(client, content, name, replace, None, None)

        return AsyncWriter(os.fsdecode(name), store)

    # --- look and change ---

    async def list(self, pattern: Name | None = None) -> AsyncGenerator[FileInfo, None]:
        """The files whose names match a glob, or all, by id. Repeated if its connection breaks before the first."""
        pauses = iter(PAUSES)
        after = 0
        while True:
            try:
                client = await self._here().shared()
                async with aclosing(client.list(pattern)) as files:
                    async for file in files:
                        if file.id > after:
                            after = file.id
                            yield file
                return
            except ConnectionLost as error:
                if isinstance(error, TimedOut | CannotConnect) or (pause := next(pauses, None)) is None:
                    raise
                await asyncio.sleep(pause)

    async def stat(self, file: FileRef, *, parts: bool = False) -> FileStat:
        """All about one file, with its parts if asked for. NotFound."""
        return await self._reading(lambda client: client.stat(file, parts=parts))

    async def exists(self, file: FileRef) -> bool:
        """Whether there is a file that can be read."""
        try:
            found = await self.stat(file)
        except (NotFound, NotReady):
            return False
        return found.file.status in READABLE

    async def delete(self, *files: FileRef) -> DeleteReport:
        """Delete files for good; none of them if one is NotFound."""
        return await self._changing(lambda client: client.delete(*files))

    async def rename(self, file: FileRef, name: Name, *, replace: bool = False) -> Renamed:
        """Give a file another name, atomically. Raises Exists without `replace`."""
        return await self._changing(lambda client: client.rename(file, name, replace=replace))

    async def verify(self, *files: FileRef, progress: Progress | None = None) -> VerifyReport:
        """Have every part of these files, or of all, read and checked. Bad parts are reported, not raised."""
        return await self._reading(lambda client: client.verify(*files, progress=progress))

    async def request(
        self, verb: str, words: Words = (), options: Mapping[str, Value] | None = None
    ) -> tuple[Reply, Rows]:
        """Any request without content: its OK line and the rows before it, as they are. It is sent once."""
        return await self._changing(lambda client: client.request(verb, words, options))


def _address(address: str | None) -> str:
    return address or os.environ.get("PFSD_SERVER") or DEFAULT_ADDRESS


async def _connect(
    *,
    address: str | None,
    token: str | None,
    ca: str | None,
    connections: int,
    connect_timeout: float,
    timeout: float | None,
) -> Client:
    """A connection as the arguments of a store say, and the environment where they say nothing."""
    return await Client.connect(
        _address(address),
        token or os.environ.get("PFSD_TOKEN") or None,
        ca=ca or os.environ.get("PFSD_CA") or None,
        connect_timeout=connect_timeout,
        timeout=timeout,
    )


def _revived(kind: type[Any], arguments: dict[str, Any]) -> Any:
    return kind(**arguments)


@contextmanager
def _unknown() -> Iterator[None]:
    """What breaks from here on leaves open what has happened."""
    try:
        yield
    except CannotConnect:
        raise
    except ConnectionLost as error:
        kind = OutcomeTimedOut if isinstance(error, TimedOut) else OutcomeUnknown
        words = "whether the request was carried out is not known, though not in part; stat tells"
        raise kind(f"{error.message}: {words}") from error


async def _upload(
    client: Client,
    content: AsyncIterator[Buffer],
    name: Name,
    replace: bool,
    size: int | None,
    progress: Progress | None,
) -> StoredFile:
    """Store content that goes in frames, so that it is known whether all was sent."""
    complete = False

    async def noted() -> AsyncIterator[Buffer]:
        nonlocal complete
        async for piece in content:
            yield piece
        complete = True

    try:
        return await client.put(noted(), name, replace=replace, size=size, progress=progress)
    except ConnectionLost as error:
        if complete:
            with _unknown():
                raise
        raise type(error)(f"{error.message}: nothing was stored, as not all had been sent") from error


async def _read(
    file: FileRef,
    offset: int,
    length: int,
    client: Client,
    *,
    progress: Progress | None = None,
    total: int | None = None,
) -> tuple[bytes, Retrieved]:
    """A range of a file, and what it is from."""
    out = io.BytesIO()
    download = client.get(file, offset=offset, length=length)
    async for piece in download:
        out.write(piece)
        if progress is not None:
            progress(out.tell(), total)
    return out.getvalue(), download.retrieved


def _with_total(progress: Progress | None, total: int | None) -> Progress | None:
    """Tell a progress of bytes their total, which many files do not have."""
    if progress is None:
        return None
    return lambda done, _: progress(done, total)


def _bytes(text: Name) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
