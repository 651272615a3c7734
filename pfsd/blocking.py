"""`Store`: a daemon's files for programs without an event loop.

    with Store("127.0.0.1:7373") as store:
        store.put("disk.img")
        content = store.get("disk.img")

Each method is that of `AsyncStore`, run in the background while its caller waits. Any number of threads may use one.
"""

from __future__ import annotations

import io
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from functools import wraps
from types import TracebackType
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, overload

from pfsd.asyncstore import AsyncStore
from pfsd.background import iterate, run
from pfsd.client import CONNECT_SECONDS, Download, FileRef, Name, Progress
from pfsd.errors import UsageError
from pfsd.exchange import Buffer
from pfsd.fileobjects import RawReader, Reader, TextWriter, Writer
from pfsd.results import StoredFile
from pfsd.transfer import Source

P = ParamSpec("P")
Result = TypeVar("Result")
AsyncMethod = Callable[Concatenate[AsyncStore, P], Coroutine[Any, Any, Result]]
AsyncGenerator = Callable[Concatenate[AsyncStore, P], AsyncIterator[Result]]


def _waiting(method: AsyncMethod[P, Result]) -> Callable[Concatenate[Store, P], Result]:
    """The same method for a caller that waits."""

    @wraps(method)
    def waiting(self: Store, /, *arguments: P.args, **options: P.kwargs) -> Result:
        return run(method(self.asynchronous, *arguments, **options))

    return waiting


def _iterating(method: AsyncGenerator[P, Result]) -> Callable[Concatenate[Store, P], Iterator[Result]]:
    """The same generator for a caller that waits for each item."""

    @wraps(method)
    def iterating(self: Store, /, *arguments: P.args, **options: P.kwargs) -> Iterator[Result]:
        return iterate(lambda: method(self.asynchronous, *arguments, **options))

    return iterating


class Store:
    """A daemon, over a pool of connections. A context manager that closes them.

    Any number of threads may use it at once; callbacks (`progress`) come in a thread of pfsd and must not use it. It
    survives pickling and forking, with its arguments and without its connections.
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
        """Nothing is connected yet. The arguments are those of `AsyncStore`."""
        #: The same daemon for coroutines that `pfsd.background` runs.
        self.asynchronous = AsyncStore(
            address,
            token=token,
            ca=ca,
            connections=connections,
            connect_timeout=connect_timeout,
            timeout=timeout,
        )

    @property
    def address(self) -> str:
        """Where the daemon is looked for."""
        return self.asynchronous.address

    def __repr__(self) -> str:
        return f"Store({self.address!r})"

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    close = _waiting(AsyncStore.close)

    ping = _waiting(AsyncStore.ping)
    hello = _waiting(AsyncStore.hello)
    stats = _waiting(AsyncStore.stats)
    exit = _waiting(AsyncStore.exit)

    def put(
        self,
        source: Source | str,
        name: Name | None = None,
        *,
        replace: bool = False,
        size: int | None = None,
        progress: Progress | None = None,
    ) -> StoredFile:
        """Store a file by its path (str or os.PathLike), bytes, an open binary file, or an iterable of bytes.

        An iterable is iterated in a thread of its own, where it may use this store. All else is as `AsyncStore.put`
        has it.
        """
        source = _in_thread(source)
        return run(self.asynchronous.put(source, name, replace=replace, size=size, progress=progress))

    put_many = _iterating(AsyncStore.put_many)
    put_path = _waiting(AsyncStore.put_path)

    get = _waiting(AsyncStore.get)
    get_ranges = _waiting(AsyncStore.get_ranges)
    get_to = _waiting(AsyncStore.get_to)
    get_many = _iterating(AsyncStore.get_many)
    get_resumed = _waiting(AsyncStore.get_resumed)
    get_path = _waiting(AsyncStore.get_path)

    @contextmanager
    def stream(
        self, file: FileRef, *, offset: int = 0, length: int | None = None, zero_damage: bool = False
    ) -> Iterator[Iterator[Buffer]]:
        """The content of a file, or of a range of it, as it comes: `with store.stream(name) as pieces`.

        It has a connection of its own, so nobody minds how slowly it is read; leaving early ends that. All comes
        from one file, which is kept until then whatever becomes of it. Not repeated when the connection breaks.
        """
        streaming = self.asynchronous.stream(file, offset=offset, length=length, zero_damage=zero_damage)
        download = run(streaming.__aenter__())
        try:
            yield _pieces(download)
        finally:
            run(streaming.__aexit__(None, None, None))

    @overload
    def open(self, file: FileRef, mode: Literal["rb"] = "rb") -> Reader: ...

    @overload
    def open(self, file: Name, mode: Literal["wb", "xb"]) -> Writer: ...

    @overload
    def open(
        self,
        file: FileRef,
        mode: Literal["r", "rt"],
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> io.TextIOWrapper: ...

    @overload
    def open(
        self,
        file: Name,
        mode: Literal["w", "wt", "x", "xt"],
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> TextWriter: ...

    def open(
        self,
        file: FileRef,
        mode: Literal["rb", "wb", "xb", "r", "rt", "w", "wt", "x", "xt"] = "rb",
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Reader | Writer | io.TextIOWrapper:
        """A file object to read ("rb", the default) or to write with: "wb" replaces, "xb" raises Exists.

        "r", "w" and "x" are for text: UTF-8, unless `encoding` says otherwise. What is written exists when it is
        closed; an exception inside `with`, `abort()`, and dropping it without `close` leave nothing behind. What is
        read is the file that has the name now, to its end, whatever becomes of the name. Raises NotFound.
        """
        direction, kind = mode[:1], mode[1:]
        if direction not in ("r", "w", "x") or kind not in ("", "b", "t"):
            raise UsageError(f'the mode is one of "rb", "wb", "xb", "r", "w" and "x", not {mode!r}')
        if kind == "b" and (encoding, errors, newline) != (None, None, None):
            raise UsageError("encoding, errors and newline are for text, not for a mode with b")
        if direction == "r":
            reader = Reader(run(self.asynchronous.open_reader(file, RawReader)))
            return reader if kind == "b" else io.TextIOWrapper(reader, encoding or "utf-8", errors, newline)
        if isinstance(file, int):
            raise UsageError(f"a file is written under a name, not under an id ({file})")
        writer = Writer(run(self.asynchronous.open_writer(file, replace=direction == "w")))
        return writer if kind == "b" else TextWriter(writer, encoding, errors, newline)

    list = _iterating(AsyncStore.list)
    stat = _waiting(AsyncStore.stat)
    exists = _waiting(AsyncStore.exists)
    delete = _waiting(AsyncStore.delete)
    rename = _waiting(AsyncStore.rename)
    verify = _waiting(AsyncStore.verify)
    request = _waiting(AsyncStore.request)


def _pieces(download: Download) -> Iterator[Buffer]:
    while pieces := run(download.pieces()):
        yield from pieces


def _in_thread(source: Source | str) -> Source | str:
    """An iterable as something that is read in a thread; all else as it is."""
    known = (str, bytes, bytearray, memoryview, os.PathLike, AsyncIterable)
    if isinstance(source, known) or hasattr(source, "read") or not isinstance(source, Iterable):
        return source
    return _Iterated(source)


class _Iterated:
    """An iterable of bytes that is read like a file, a piece at a time."""

    def __init__(self, pieces: Iterable[Buffer]) -> None:
        self._pieces = iter(pieces)

    def read(self, size: int, /) -> bytes:
        for piece in self._pieces:
            if len(piece):
                return piece if isinstance(piece, bytes) else bytes(piece)
        return b""
