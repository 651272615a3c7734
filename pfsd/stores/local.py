"""Packs as files of a local directory. Knows no formats; all its writes go through `pfsd.disk`.

    <store>/packs/<number / 4096, 5 hex digits>/<number, 16 hex digits>.pack
    <store>/tmp/<epoch>/<token>

Packs are written under `tmp` and renamed, by the daemon only. An I/O process that outlives its daemon can
thus litter the directory of a dead epoch and nothing else. Files in `packs` with other names are not touched.
"""

from __future__ import annotations

import builtins
import errno
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from pfsd import disk
from pfsd.codecs import Buffer
from pfsd.errors import Corrupt, Missing, StoreUnavailable
from pfsd.stores import PackInfo

#: Pieces are gathered to about this many bytes for one writev.
BATCH_BYTES = 1 << 20
#: log2 of the packs in one directory.
FANOUT_BITS = 12

#: open() answers so when a pack's name belongs to a symlink, a socket or a device without driver.
_NO_FILE = {errno.ELOOP, errno.ENXIO, errno.ENODEV}

_PACK_NAME = re.compile(r"([0-9a-f]{16})\.pack")
_SAFE_NAME = re.compile(r"[0-9A-Za-z_-][0-9A-Za-z._-]{0,200}")


def open_store(path: str, *, sync: bool, epoch: str) -> LocalStore:
    """Open the store in the directory `path`, an absolute path. StoreUnavailable when it cannot be used."""
    if not os.path.isabs(path):
        raise StoreUnavailable(f"the path of a store must be absolute, not {path!r}")
    store = LocalStore(Path(path), sync, epoch)
    try:
        store.make_directories()
    except OSError as error:
        raise StoreUnavailable(f"the store {path} cannot be used: {error.strerror}") from error
    return store


def open_for_reading(path: Path) -> LocalStore:
    """Open what there is of a store without making anything; only `open` and `list` can be used."""
    return LocalStore(path, sync=False, epoch="none")


class LocalStore:
    """A store in a directory; `pfsd.stores.PackStore` says what the methods promise."""

    def __init__(self, path: Path, sync: bool, epoch: str) -> None:
        self._path = path
        self._packs = path / "packs"
        self._tmp = path / "tmp"
        self._own_tmp = self._tmp / _safe(epoch)
        self._sync = sync
        #: Directories of packs whose own entry is known to be durable. Not those that were found: the daemon
        #: that made them may have died before it synced their parent.
        self._durable_dirs: set[Path] = set()

    def make_directories(self) -> None:
        """Make what a store needs of directories, unless it is there. OSError."""
        for directory in (self._path, self._packs, self._tmp):
            disk.make_dir(directory)
        self._make_own_tmp()

    # --- writing ---

    def stage(self, token: str, pieces: Iterable[Buffer]) -> int:
        path = self._own_tmp / _safe(token)
        fd = disk.open_file(path, disk.CREATE)
        try:
            try:
                size = _write_pieces(fd, pieces, self._sync)
                if disk.size(fd) != size:
                    raise OSError(errno.EIO, "the pack has not as many bytes as were written to it", str(path))
                if self._sync:
                    disk.fdatasync(fd)
            finally:
                disk.close(fd)
        except BaseException:
            with suppress(OSError):
                disk.unlink(path)
            raise
        return size

    def _make_own_tmp(self) -> None:
        """A full disk must not keep a daemon from starting, to delete: what others staged goes, and makes room."""
        try:
            disk.make_dir(self._own_tmp)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.sweep_staged()
            disk.make_dir(self._own_tmp)

    def publish(self, staged: Sequence[tuple[str, int]]) -> None:
        for token, pack in staged:
            target = self.path_of(pack)
            disk.make_dir(target.parent)
            if disk.exists(target):  # no race: one daemon holds the lock, and it counts packs up
                raise FileExistsError(errno.EEXIST, "a pack is never replaced", str(target))
            disk.rename(self._own_tmp / _safe(token), target)

    def sync_published(self, packs: Iterable[int]) -> None:
        if not self._sync:
            return
        parents = {self.path_of(pack).parent for pack in packs}
        for parent in parents:
            disk.fsync_dir(parent)
        if not parents <= self._durable_dirs:
            disk.fsync_dir(self._packs)
            disk.fsync_dir(self._path)
            self._durable_dirs |= parents

    def discard(self, tokens: Iterable[str]) -> None:
        for token in tokens:
            with suppress(FileNotFoundError):
                disk.unlink(self._own_tmp / _safe(token))

    def delete(self, packs: Iterable[int]) -> int:
        freed = 0
        failure: OSError | None = None
        for pack in packs:
            try:
                freed += _remove(self.path_of(pack))
            except (FileNotFoundError, NotADirectoryError):
                pass
            except OSError as error:
                failure = failure or error
        if failure:
            raise failure
        return freed

    def sweep_staged(self) -> int:
        swept = 0
        for entry in disk.entries(self._tmp):
            path = self._tmp / entry.name
            if path == self._own_tmp:
                continue
            if entry.is_dir:
                swept += sum(1 for _ in disk.entries(path))
                # A process that outlived its daemon may still add a file: that waits for the next start.
                disk.remove_tree(path)
            else:
                disk.unlink(path)
                swept += 1
        return swept

    # --- reading ---

    def open(self, pack: int) -> LocalReader:
        path = self.path_of(pack)
        try:
            fd = disk.open_file(path, disk.READ)
        except (FileNotFoundError, NotADirectoryError):
            raise Missing(f"pack {pack:016x} is not in the store", pack=pack) from None
        except OSError as error:
            # Of a directory that leads in circles the same is said, but that is no fault of the pack.
            if error.errno in _NO_FILE and disk.exists(path):
                raise _not_a_file(pack) from error
            raise
        if not disk.is_regular(fd):
            disk.close(fd)
            raise _not_a_file(pack)
        return LocalReader(fd, pack, disk.size(fd))

    def list(self) -> Iterator[PackInfo]:
        if not disk.exists(self._packs):  # the daemon makes it; who only reads finds no pack
            return
        for directory in disk.entries(self._packs):
            if not directory.is_dir:
                continue
            for entry in disk.entries(self._packs / directory.name):
                match = _PACK_NAME.fullmatch(entry.name)
                pack = int(match[1], 16) if match else -1
                if match and entry.is_file and self.path_of(pack).parent.name == directory.name:
                    yield PackInfo(pack, entry.size)

    def path_of(self, pack: int) -> Path:
        """Where a pack is, or would be."""
        return self._packs / f"{pack >> FANOUT_BITS:05x}" / f"{pack:016x}.pack"


class LocalReader:
    """An open pack file."""

    def __init__(self, fd: int, pack: int, size: int) -> None:
        self._fd = fd
        self._pack = pack
        self.size = size

    def read(self, offset: int, length: int) -> bytes:
        data = disk.read(self._fd, length, offset)
        while len(data) < length:
            more = disk.read(self._fd, length - len(data), offset + len(data))
            if not more:
                raise self._short(offset + length)
            data += more
        return data

    def read_into(self, offset: int, view: memoryview) -> int:
        filled = 0
        while filled < len(view):
            count = disk.read_into(self._fd, view[filled:], offset + filled)
            if not count:
                raise self._short(offset + len(view))
            filled += count
        return filled

    def _short(self, needed: int) -> Corrupt:
        return Corrupt(f"pack {self._pack:016x} ends at {self.size} bytes, before {needed}", pack=self._pack)

    def __enter__(self) -> LocalReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        disk.close(self._fd)


def _safe(name: str) -> str:
    """A name that stays in its directory."""
    if not _SAFE_NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot be the name of a staged pack or an epoch")
    return name


def _write_pieces(fd: int, pieces: Iterable[Buffer], sync: bool) -> int:
    """Write pieces in batches; the disk begins with each while the next is compressed."""
    size = gathered = 0
    batch: builtins.list[Buffer] = []
    for piece in pieces:
        batch.append(piece)
        gathered += len(piece)
        if gathered >= BATCH_BYTES:
            disk.writev_all(fd, batch)
            if sync:
                disk.start_writeback(fd, size, gathered)
            size += gathered
            gathered, batch = 0, []
    if batch:
        disk.writev_all(fd, batch)
    return size + gathered


def _remove(path: Path) -> int:
    size = disk.file_size(path)
    disk.unlink(path)
    return size


def _not_a_file(pack: int) -> Corrupt:
    return Corrupt(f"pack {pack:016x} is not a regular file", pack=pack)
