"""The file system `pfs://` for fsspec, and so for pandas, pyarrow, dask, zarr and whatever else opens files through it.

    pandas.read_parquet("pfs://127.0.0.1:7373/sales/2026.parquet")

A name with `/` in it is shown as a file in directories. Directories are not stored: one is there as long as a file is
in it. Nothing that was listed is remembered, so nobody is told what is not so any more.

Errors are those of Python's file systems (FileNotFoundError, PermissionError, ...), in the daemon's words; the error
of pfsd is their `__cause__`.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from functools import partial
from glob import has_magic
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, TypeVar

try:
    from fsspec.asyn import AsyncFileSystem, sync, sync_wrapper
    from fsspec.callbacks import DEFAULT_CALLBACK, Callback, NoOpCallback
    from fsspec.utils import isfilelike, tokenize
except ModuleNotFoundError as missing:
    raise ModuleNotFoundError("pfs:// needs fsspec: pip install 'pfsd[fsspec]'", name=missing.name) from missing

from pfsd.asyncstore import AsyncStore
from pfsd.client import FileRef, Progress, Source
from pfsd.errors import Exists, NotFound, NotReady
from pfsd.fileobjects import AsyncWriter
from pfsd.fs.errors import os_errors
from pfsd.fs.files import PINNED, Opened, PfsFile, PfsTextFile
from pfsd.fs.folders import READABLE, Info, Tree, file_info, folder_info, name_of, pattern
from pfsd.results import StoredFile

__all__ = ["PfsFileSystem"]

Result = TypeVar("Result")

DEFAULT_HOST = "127.0.0.1"
DEFAULT_PORT = 7373
#: Requests of one call that are under way at once: enough to share syncs, fewer than a daemon takes.
AT_ONCE = 32
#: Ranges of a file that are this near to each other are read as one, up to this size; in bytes. A daemon reads and
#: checks whole parts anyway.
NEAR = 64 << 10
RANGE_LIMIT = 8 << 20
#: Seconds between tries to replace a file that somebody else is just replacing.
PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
#: What the names in one request may take of its line, in bytes; and the ids, in number.
NAMES_AT_ONCE = 60_000
IDS_AT_ONCE = 2000


class PfsFileSystem(AsyncFileSystem):
    """The files of one daemon.

    `host` and `port` are part of the URL, `pfs://HOST:PORT/NAME`; without them it is the daemon that `address` names
    as all of pfsd writes it (`tls://HOST:PORT`, `unix:PATH`), or PFSD_SERVER in the environment, or 127.0.0.1:7373.
    `socket` is the path of a Unix socket. `token`, or the first line of `token_file`, is shown to the daemon. `tls`
    turns TLS on, and so does `ca`, a PEM file with the certificates to trust. PFSD_TOKEN and PFSD_CA stand for them.

    Nothing is connected, read or looked up before the first request. Instances are cached, and can be pickled: what
    travels is these options, so prefer `token_file` to `token`.
    """

    protocol = "pfs"
    root_marker = ""

    def __init__(
        self,
        host: str | None = None,
        port: int | None = None,
        *,
        socket: str | None = None,
        token: str | None = None,
        token_file: str | None = None,
        tls: bool = False,
        ca: str | None = None,
        batch_size: int | None = AT_ONCE,
        **options: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **options)
        self.host = host
        self.port = port
        self.socket = socket
        self._token = token
        self._token_file = token_file
        self._tls = tls
        self._ca = ca
        #: A store belongs to an event loop. Usually there is one loop, that of fsspec.
        self._stores: dict[asyncio.AbstractEventLoop, AsyncStore] = {}

    # --- the daemon ---

    @property
    def address(self) -> str:
        """Where the daemon is asked, as the rest of pfsd writes it."""
        if self.socket:
            return f"unix:{self.socket}"
        if not self.host and not self.port and (server := os.environ.get("PFSD_SERVER")):
            return server
        host = self.host or DEFAULT_HOST
        where = f"{f'[{host}]' if ':' in host else host}:{self.port or DEFAULT_PORT}"
        return f"tls://{where}" if self._tls or self._ca else where

    @property
    def fsid(self) -> str:
        """Which daemon this is."""
        return f"pfs://{self.address}"

    def _store(self) -> AsyncStore:
        """The daemon, for the event loop that runs."""
        loop = asyncio.get_running_loop()
        if loop not in self._stores:
            for closed in [other for other in self._stores if other.is_closed()]:
                del self._stores[closed]
            self._stores[loop] = AsyncStore(self.address, token=self._find_token(), ca=self._ca)
        return self._stores[loop]

    async def close(self) -> None:
        """Close the connections of this event loop; the next request connects anew. Nobody has to."""
        if store := self._stores.pop(asyncio.get_running_loop(), None):
            await store.close()

    def _find_token(self) -> str | None:
        if self._token_file is None:
            return self._token
        with open(self._token_file) as file:
            return file.readline().strip()

    # --- URLs ---

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        """The path in a URL or path; slashes at both ends do not count."""
        if isinstance(path, list):
            return [cls._strip_protocol(one) for one in path]
        path = os.fspath(path).removeprefix("pfs::")
        if path.startswith("pfs://"):
            path = path.removeprefix("pfs://").partition("/")[2]
        return path.strip("/")

    @staticmethod
    def _get_kwargs_from_urls(path: str) -> dict[str, Any]:
        if not path.startswith("pfs://"):
            return {}
        where = path.removeprefix("pfs://").partition("/")[0]
        host, colon, port = where.rpartition(":")
        if not colon or port.endswith("]"):
            host, port = where, ""
        if port and not port.isdigit():
            raise ValueError(f"a URL is pfs://HOST:PORT/NAME or pfs:///NAME, not {path}")
        options: dict[str, Any] = {"host": host.removeprefix("[").removesuffix("]")} if host else {}
        return options | ({"port": int(port)} if port else {})

    def unstrip_protocol(self, name: str) -> str:
        """The URL of a path."""
        host = f"[{self.host}]" if self.host and ":" in self.host else self.host or ""
        port = f":{self.port}" if self.port else ""
        return f"pfs://{host}{port}/{self._strip_protocol(name)}"

    # --- look ---

    async def _info(self, path: str, **_: Any) -> Info:
        path = self._strip_protocol(path)
        if path:
            try:
                return await self._file(path)
            except FileNotFoundError:
                if not await self._is_folder(path):
                    raise
        return folder_info(path)

    async def _file(self, path: str, file_id: int | None = None) -> Info:
        """All about a file, or about that with an id."""
        missing = {} if file_id is None else {"not_found": errno.ESTALE}
        with os_errors(path, **missing):
            found = await self._store().stat(_name(path) if file_id is None else file_id)
        return file_info(found.file) | {"name": path, "etag": found.etag}

    async def _is_folder(self, path: str) -> bool:
        with os_errors(path):
            async with aclosing(self._store().list(pattern(path))) as files:
                async for file in files:
                    if file.status in READABLE:
                        return True
        return not path

    async def _isfile(self, path: str) -> bool:
        path = self._strip_protocol(path)
        try:
            return bool(path and await self._file(path))
        except FileNotFoundError:
            return False

    async def _isdir(self, path: str) -> bool:
        try:
            return bool((await self._info(path))["type"] == "directory")
        except FileNotFoundError:
            return False

    async def _tree(self, path: str, depth: int | None, stem: str = "") -> Tree:
        if depth is not None and depth < 1:
            raise ValueError("maxdepth must be at least 1")
        tree = Tree(path, depth)
        with os_errors(path):
            async with aclosing(self._store().list(pattern(path, stem))) as files:
                async for file in files:
                    tree.add(file)
        return tree

    async def _ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        tree = await self._tree(path, 1)
        entries = tree.entries(path) if tree or not path else [await self._file(path)]
        return entries if detail else [info["name"] for info in entries]

    async def _expand_path(
        self, path: Any, recursive: bool = False, maxdepth: int | None = None, assume_literal: bool = False
    ) -> list[str]:
        """What paths mean. That of a file is no pattern: `a[1]` would stand for a1, and have that removed."""
        paths = [self._strip_protocol(one) for one in ([path] if isinstance(path, str) else path)]
        files = [one for one in paths if not assume_literal and has_magic(one) and await self._isfile(one)]
        others = [one for one in paths if one not in files]
        found = await super()._expand_path(others, recursive, maxdepth, assume_literal) if others or not files else []
        return sorted({*found, *files})

    async def _find(
        self, path: str, maxdepth: int | None = None, withdirs: bool = False, **kwargs: Any
    ) -> list[str] | dict[str, Info]:
        path = self._strip_protocol(path)
        stem = kwargs.get("prefix", "")
        tree = await self._tree(path, maxdepth, stem)
        found = tree.all(withdirs)
        if tree and withdirs and path:
            found = {path: folder_info(path)} | found
        elif not tree and path and not stem and await self._isfile(path):
            found = {path: await self._file(path)}
        return found if kwargs.get("detail") else list(found)

    async def _walk(
        self, path: str, maxdepth: int | None = None, topdown: bool = True, on_error: Any = "omit", **kwargs: Any
    ) -> AsyncIterator[tuple[str, Any, Any]]:
        path = self._strip_protocol(path)
        tree = await self._tree(path, maxdepth)
        if not tree and path:
            error = NotADirectoryError if await self._isfile(path) else FileNotFoundError
            if on_error == "raise":
                raise error(path)
            if callable(on_error):
                on_error(error(path))
        for step in _steps(tree, path, maxdepth, topdown, bool(kwargs.get("detail"))):
            yield step

    async def _du(self, path: str, total: bool = True, maxdepth: int | None = None, **kwargs: Any) -> Any:
        withdirs = bool(kwargs.get("withdirs"))
        found = await self._find(path, maxdepth=maxdepth, withdirs=withdirs, detail=True)
        assert isinstance(found, dict)
        sizes = {name: info["size"] for name, info in found.items()}
        return sum(sizes.values()) if total else sizes

    def created(self, path: str) -> datetime:
        """When a file was stored."""
        info = self.info(path)
        if info["type"] != "file":
            raise IsADirectoryError(errno.EISDIR, "directories are not stored, so nobody knows since when", path)
        return datetime.fromtimestamp(info["created"], UTC)

    def modified(self, path: str) -> datetime:
        """When a file was stored: content never changes, it is replaced."""
        return self.created(path)

    def checksum(self, path: str) -> int:
        """A number that stands for a file's content, made from its etag."""
        return int(str(self.ukey(path)).partition("-")[0], 16)

    def ukey(self, path: str) -> str:
        """The etag of a file: it changes when the content does."""
        info = self.info(path)
        return str(info.get("etag") or tokenize(info))

    # --- read ---

    async def _cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        path = self._strip_protocol(path)
        with os_errors(path):
            return await self._read(_name(path), start, end)

    async def _read(self, file: FileRef, start: int | None = None, end: int | None = None) -> bytes:
        """A range as of a slice: numbers below 0 count from the end."""
        store = self._store()
        if (start is not None and start < 0) or (end is not None and end < 0):
            found = (await store.stat(file)).file
            first, last, _ = slice(start, end).indices(found.size)
            try:
                return await self._read(found.id, first, last)
            except (NotFound, NotReady):
                return await self._read(file, start, end)  # it was replaced in between, or is gone
        start = start or 0
        return await store.get(file, offset=start, length=None if end is None else max(0, end - start))

    async def _cat_ranges(
        self,
        paths: list[str],
        starts: Any,
        ends: Any,
        max_gap: int | None = None,
        batch_size: int | None = None,
        on_error: str = "return",
        **kwargs: Any,
    ) -> list[bytes | Exception]:
        if not isinstance(paths, list):
            raise TypeError("paths must be a list")
        starts = list(starts) if isinstance(starts, Iterable) else [starts] * len(paths)
        ends = list(ends) if isinstance(ends, Iterable) else [ends] * len(paths)
        if not len(paths) == len(starts) == len(ends):
            raise ValueError("there must be as many starts and ends as paths")
        merged = list(_merged(paths, starts, ends, NEAR if max_gap is None else max_gap))
        found: list[bytes | Exception] = [b""] * len(paths)
        read = await super()._cat_ranges(
            [path for path, _, _, _ in merged],
            [start for _, start, _, _ in merged],
            [end for _, _, end, _ in merged],
            batch_size=batch_size,
            on_error=on_error,
        )
        for (_, first, _, ranges), content in zip(merged, read, strict=True):
            for at in ranges:
                whole = len(ranges) == 1 or isinstance(content, Exception)
                found[at] = content if whole else content[starts[at] - first : ends[at] - first]
        return found

    async def _get_file(self, rpath: str, lpath: Any, callback: Callback = DEFAULT_CALLBACK, **_: Any) -> None:
        rpath = self._strip_protocol(rpath)
        if not isfilelike(lpath):
            if await self._isdir(rpath):
                os.makedirs(lpath, exist_ok=True)
                return
            lpath = Path(lpath)
            lpath.parent.mkdir(parents=True, exist_ok=True)
        with os_errors(rpath):
            await self._store().get_to(_name(rpath), lpath, replace=True, progress=_progress(callback))

    # --- write ---

    async def _pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        path = self._strip_protocol(path)
        with os_errors(path):
            await self._store_content(value, path, mode)

    async def _put_file(
        self, lpath: Any, rpath: str, mode: str = "overwrite", callback: Callback = DEFAULT_CALLBACK, **_: Any
    ) -> None:
        rpath = self._strip_protocol(rpath)
        if os.path.isdir(lpath):  # noqa: ASYNC240 - a local one
            return  # it is there when something is put into it
        with os_errors(rpath):
            await self._store_content(Path(lpath), rpath, mode, _progress(callback))

    async def _store_content(self, source: Source, path: str, mode: str, progress: Progress | None = None) -> None:
        name, replace = _name(path), mode in ("overwrite", "wb")
        store = self._store()

        async def put() -> StoredFile:
            if isinstance(source, SpooledTemporaryFile):
                source.seek(0)
            return await store.put(source, name, replace=replace, progress=progress)

        await _in_turn(put)

    async def _begin_upload(self, path: str, mode: str) -> AsyncWriter:
        return await self._store().open_writer(_name(path), replace=mode == "wb")

    async def _cp_file(self, path1: str, path2: str, *, rename: bool = False, **_: Any) -> None:
        path1, path2 = self._strip_protocol(path1), self._strip_protocol(path2)
        source, target = name_of(path1), _name(path2)
        store = self._store()

        async def copy() -> None:
            async with store.stream(source) as content:
                await store.put((piece async for piece in content), target, replace=True)

        try:
            with os_errors(path1):
                await _in_turn(lambda: store.rename(source, target, replace=True) if rename else copy())
        except FileNotFoundError:
            if not await self._is_folder(path1):
                raise

    async def _mv_file(self, path1: str, path2: str) -> None:
        await self._cp_file(path1, path2, rename=True)

    async def _mv(self, path1: Any, path2: Any, recursive: bool = False, maxdepth: int | None = None) -> None:
        """Give files other names: each in an instant, a directory file by file. What has the new name is replaced."""
        if path1 == path2:
            return
        if isinstance(path1, str) and not recursive and not has_magic(path1) and await self._isdir(path1):
            raise _is_folder_error(self._strip_protocol(path1))
        # Directories come among the files of a tree, and are gone when their last file is.
        on_error = "ignore" if recursive else "raise"
        await self._copy(path1, path2, recursive=recursive, maxdepth=maxdepth, on_error=on_error, rename=True)

    mv = sync_wrapper(_mv)

    async def _mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """Directories are not stored; this only refuses to have one where a file is."""
        await self._makedirs(path, exist_ok=True)

    async def _makedirs(self, path: str, exist_ok: bool = False) -> None:
        if await self._isfile(path):
            raise FileExistsError(errno.EEXIST, "a file has this name", self._strip_protocol(path))

    async def _rmdir(self, path: str) -> None:
        """Directories are not stored; this only refuses when something is in one."""
        if await self._isdir(path):
            raise OSError(errno.ENOTEMPTY, "something is in this directory", self._strip_protocol(path))

    rmdir = sync_wrapper(_rmdir)

    # --- remove ---

    async def _rm_file(self, path: str, **_: Any) -> None:
        path = self._strip_protocol(path)
        await self._delete([path])

    async def _rm(
        self, path: Any, recursive: bool = False, batch_size: int | None = None, maxdepth: int | None = None, **_: Any
    ) -> None:
        paths = await self._expand_path(path)
        if not recursive:
            await self._delete(paths)
            return
        for one in paths:
            ids = (await self._tree(one, maxdepth)).ids()
            if one and await self._isfile(one):
                ids.append((await self._file(one))["id"])
            if not ids:
                raise FileNotFoundError(errno.ENOENT, "no file has this name or is below it", one)
            with os_errors(one):
                await self._delete_ids(ids)

    async def _delete(self, paths: Sequence[str]) -> None:
        """Delete files by name: of those that fit into one request, all or none."""
        store = self._store()
        for batch in _batches(paths):
            try:
                with os_errors(batch[0] if len(batch) == 1 else None):
                    await store.delete(*map(_name, batch))
            except FileNotFoundError:
                for path in batch:
                    if await self._isdir(path):
                        raise _is_folder_error(path) from None
                raise

    async def _delete_ids(self, ids: Sequence[int]) -> None:
        """Delete files, whether they are there or not."""
        store = self._store()
        for at in range(0, len(ids), IDS_AT_ONCE):
            left = set(ids[at : at + IDS_AT_ONCE])
            while left:
                try:
                    await store.delete(*left)
                    break
                except (NotFound, NotReady) as gone:
                    left.remove(int(gone.fields["id"]))

    # --- open ---

    def open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        cache_options: dict[str, Any] | None = None,
        compression: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Open a file: `rb`, `wb` or `xb`, or with `t` for text. See `PfsFile`."""
        how = {"block_size": block_size, "cache_options": cache_options, "compression": compression}
        if "b" in mode or compression is not None:
            return super().open(path, mode, **how, **kwargs)
        text = {key: kwargs.pop(key) for key in ("encoding", "errors", "newline") if key in kwargs}
        return PfsTextFile(super().open(path, mode.replace("t", "") + "b", **how, **kwargs), **text)

    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: dict[str, Any] | None = None,
        id: int | None = None,
        **kwargs: Any,
    ) -> PfsFile:
        if mode == "ab":
            words = "a stored file cannot be appended to; read it, and store it anew with what is added"
            raise io.UnsupportedOperation(errno.EOPNOTSUPP, words, path)
        opened = sync(self.loop, self._check_open, path, mode, id)
        kwargs |= {"block_size": block_size, "autocommit": autocommit, "cache_options": cache_options}
        return PfsFile(self, path, mode, opened, **kwargs)

    async def _check_open(self, path: str, mode: str, file_id: int | None) -> Opened | None:
        """A file to be read, or nothing when it is to be written; raises why it cannot be opened."""
        name = _name(path)
        if mode == "rb":
            try:
                with os_errors(path, **(PINNED if file_id else {})):
                    return await self._store().open_reader(file_id or name, partial(Opened, path))
            except FileNotFoundError:
                if await self._is_folder(path):
                    raise _is_folder_error(path) from None
                raise
        if mode == "xb" and await self._isfile(path):
            raise FileExistsError(errno.EEXIST, "a file has this name", path)
        return None


# --- helpers ------------------------------------------------------------------------------------


def _name(path: str) -> bytes:
    """The name of a file; IsADirectoryError when the path is that of all of them."""
    if not path:
        raise _is_folder_error(path)
    return name_of(path)


def _is_folder_error(path: str) -> IsADirectoryError:
    return IsADirectoryError(errno.EISDIR, "this is a directory; recursive=True means all that is in it", path)


async def _in_turn(put: Callable[[], Awaitable[Result]]) -> Result:
    """Put or rename; while somebody else is at the same name, try again."""
    for pause in PAUSES:
        try:
            return await put()
        except Exists as error:
            if "id" in error.fields:  # the name is taken for good
                raise
        await asyncio.sleep(pause)
    return await put()


def _progress(callback: Callback) -> Progress | None:
    if isinstance(callback, NoOpCallback):
        return None

    def report(done: int, total: int | None) -> None:
        if callback.size != total:
            callback.set_size(total)
        callback.absolute_update(done)

    return report


def _batches(paths: Iterable[str]) -> Iterator[list[str]]:
    """Paths whose names fit into one request, however they are quoted there."""
    batch: list[str] = []
    room = NAMES_AT_ONCE
    for path in paths:
        takes = 4 * len(name_of(path)) + 3
        if takes > room and batch:
            yield batch
            batch, room = [], NAMES_AT_ONCE
        batch.append(path)
        room -= takes
    if batch:
        yield batch


def _merged(
    paths: Sequence[str], starts: Sequence[int | None], ends: Sequence[int | None], near: int
) -> Iterator[tuple[str, int | None, int | None, list[int]]]:
    """Ranges to read in place of those that were asked for: path, start, end, and which of those are in it."""
    plain: list[tuple[str, int, int, int]] = []
    for at, (path, start, end) in enumerate(zip(paths, starts, ends, strict=True)):
        if start is not None and end is not None and 0 <= start <= end:
            plain.append((path, start, end, at))
        else:
            yield path, start, end, [at]
    group: tuple[str, int, int, list[int]] | None = None
    for path, start, end, at in sorted(plain):
        if group and group[0] == path and start - group[2] <= near and max(end, group[2]) - group[1] <= RANGE_LIMIT:
            group = path, group[1], max(end, group[2]), [*group[3], at]
            continue
        if group:
            yield group
        group = path, start, end, [at]
    if group:
        yield group


def _steps(tree: Tree, folder: str, depth: int | None, topdown: bool, detail: bool) -> Iterator[tuple[str, Any, Any]]:
    """The steps of a walk; who takes directories out of what it was given keeps it from going there."""
    start = len(folder) + 1 if folder else 0
    kinds = (tree.folders.get(folder, {}), tree.files.get(folder, {}))
    folders, files = ({path[start:]: inside[path] for path in sorted(inside)} for inside in kinds)
    step = (folder, folders, files) if detail else (folder, list(folders), list(files))
    if topdown:
        yield step
    if depth is None or depth > 1:
        for name in list(step[1]):
            yield from _steps(tree, f"{folder}/{name}" if folder else name, depth and depth - 1, topdown, detail)
    if not topdown:
        yield step
