"""A simulated disk: what was asked of a real directory is recorded, and every state that a power cut may leave is made.

The model is weaker than any file system in use, and as strong as POSIX promises:

* bytes of a file are durable up to the last fdatasync of that file; of what was written since, some first bytes may
  have come, in whole sectors or not, and zeros may follow where the file had grown already;
* of what was written over other bytes since the last fdatasync, each piece may have come or not, or its first bytes;
* a change of a directory (a file made, renamed, removed) is durable by an fsync of that directory, and until then it
  may have come or not, whatever became of changes before and after it, and of the bytes in the file;
* a rename within one directory comes whole; between two, each directory has its half.
"""

from __future__ import annotations

import errno
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import pfsd
from pfsd import disk

_PFSD = os.path.dirname(pfsd.__file__)
#: Stands for a directory where a file would have its number.
DIRECTORY = -1

#: A place in pfsd: a path from its directory on, and a line.
Place = tuple[str, int]
#: What a power cut left: the bytes of each file, None for a directory, by path.
State = dict[str, bytes | None]


# --- what was asked of the disk -----------------------------------------------------------------


class Names(NamedTuple):
    """These paths stand for these files now (None: for nothing)."""

    changes: tuple[tuple[str, int | None], ...]


class Write(NamedTuple):
    """Bytes were added to the end of a file."""

    file: int
    data: bytes


class Overwrite(NamedTuple):
    """Bytes were written over others."""

    file: int
    offset: int
    data: bytes


class Cut(NamedTuple):
    """A file has this many bytes now."""

    file: int
    length: int


class Sync(NamedTuple):
    """A file's bytes are durable; `places` is who asked for that, and who called them."""

    file: int
    places: frozenset[Place]


class SyncDirectory(NamedTuple):
    """The names in a directory are durable."""

    path: str
    places: frozenset[Place]


class Mark(NamedTuple):
    """Something that the outside world saw."""

    fact: object


Operation = Names | Write | Overwrite | Cut | Sync | SyncDirectory | Mark


@dataclass
class Trace:
    """All that happened to a directory, and what was in it before."""

    names: dict[str, int] = field(default_factory=dict)
    contents: dict[int, bytes] = field(default_factory=dict)
    operations: list[Operation] = field(default_factory=list)

    def without(self, first: Place, last_line: int) -> Trace:
        """The same, as if no sync had been asked for from these lines of pfsd."""
        path, line = first

        def is_meant(operation: Operation) -> bool:
            return isinstance(operation, (Sync, SyncDirectory)) and any(
                where == path and line <= number <= last_line for where, number in operation.places
            )

        return Trace(self.names, self.contents, [one for one in self.operations if not is_meant(one)])


class Recorder:
    """Watches the calls of `pfsd.disk` below a directory, and lets them happen."""

    def __init__(self, root: Path) -> None:
        self.trace = Trace()
        self.root = root
        self._lock = threading.RLock()  # the order of the trace is that of the calls
        self._numbers: dict[int, int] = {}  # by inode
        self._next = 0
        self._write_failures: list[tuple[str, float]] = []
        for path, _, files in os.walk(root):
            self.trace.names[self._relative(path)] = DIRECTORY
            for name in files:
                status = os.stat(os.path.join(path, name))
                number = self._number(status.st_ino)
                self.trace.names[self._relative(os.path.join(path, name))] = number
                self.trace.contents[number] = Path(path, name).read_bytes()

    @classmethod
    def going_on(cls, root: Path, trace: Trace, length: int) -> Recorder:
        """Put what the system shows after some operations of a trace to `root`, and record what follows upon them."""
        put_there(state_after(trace, length, ALL_CAME), root)
        recorder = cls(root)
        recorder.trace = Trace(trace.names, trace.contents, trace.operations[:length])
        names = _names_after(trace, trace.operations[:length], ALL_CAME)
        inodes = {os.stat(root / path).st_ino: number for path, number in names.items() if number != DIRECTORY}
        recorder._numbers = inodes
        recorder._next = max(recorder._next, *names.values(), *(_numbers_in(trace)), 0)
        return recorder

    def mark(self, fact: object) -> None:
        """Note what the outside world sees now."""
        with self._lock:
            self.trace.operations.append(Mark(fact))

    def fail_write(self, suffix: str, share: float) -> None:
        """Let the next write to a path that ends so write only this share of its bytes, and then find the disk full."""
        self._write_failures.append((suffix, share))

    @contextmanager
    def watching(self) -> Iterator[Recorder]:
        """Record what happens meanwhile."""
        watched = [name for name in dir(self) if hasattr(disk, name) and not name.startswith("_")]
        with mock.patch.multiple(disk, **{name: self._locked(getattr(self, name)) for name in watched}):
            yield self

    def _locked(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def locked(*arguments: Any) -> Any:
            with self._lock:
                return call(*arguments)

        return locked

    # --- the calls of `pfsd.disk` ---

    def open_file(self, path: disk.AnyPath, flags: int) -> int:
        known = os.path.lexists(path)
        fd = _REAL["open_file"](path, flags)
        if not known:
            self._note_names((path, self._new(os.fstat(fd).st_ino)))
        return fd

    def writev_all(self, fd: int, pieces: Sequence[disk.Buffer]) -> None:
        data = b"".join(bytes(piece) for piece in pieces)
        path = os.readlink(f"/proc/self/fd/{fd}")
        failing = next((one for one in self._write_failures if path.endswith(one[0])), None)
        if failing is not None:
            self._write_failures.remove(failing)
            data = data[: int(len(data) * failing[1])]
        _REAL["writev_all"](fd, [data])
        self._note(Write(self._file(fd), data))
        if failing is not None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_at(self, fd: int, data: disk.Buffer, offset: int) -> None:
        _REAL["write_at"](fd, data, offset)
        self._note(Overwrite(self._file(fd), offset, bytes(data)))

    def truncate(self, fd: int, length: int) -> None:
        _REAL["truncate"](fd, length)
        self._note(Cut(self._file(fd), length))

    def fdatasync(self, fd: int) -> None:
        self._note(Sync(self._file(fd), _places()))

    def fsync_dir(self, path: disk.AnyPath) -> None:
        self._note(SyncDirectory(self._relative(path), _places()))

    def rename(self, old: disk.AnyPath, new: disk.AnyPath) -> None:
        number = self._number(os.stat(old).st_ino)
        _REAL["rename"](old, new)
        self._note_names((old, None), (new, number))

    def unlink(self, path: disk.AnyPath) -> None:
        _REAL["unlink"](path)
        self._note_names((path, None))

    def make_dir(self, path: disk.AnyPath) -> None:
        known = os.path.isdir(path)
        _REAL["make_dir"](path)
        if not known:
            self._note_names((path, DIRECTORY))

    def preallocate(self, path: disk.AnyPath, nbytes: int) -> None:
        known = os.path.lexists(path)
        _REAL["preallocate"](path, nbytes)
        if not known:
            self._note_names((path, self._new(os.stat(path).st_ino)))

    def remove_tree(self, path: disk.AnyPath) -> None:
        doomed = [os.path.join(where, name) for where, _, names in os.walk(path, topdown=False) for name in names]
        _REAL["remove_tree"](path)
        for name in [*doomed, path]:
            self._note_names((name, None))

    # --- helpers ---

    def _note(self, operation: Operation) -> None:
        self.trace.operations.append(operation)

    def _note_names(self, *changes: tuple[disk.AnyPath, int | None]) -> None:
        self._note(Names(tuple((self._relative(path), number) for path, number in changes)))

    def _relative(self, path: disk.AnyPath) -> str:
        return os.path.relpath(path, self.root)

    def _file(self, fd: int) -> int:
        return self._number(os.fstat(fd).st_ino)

    def _number(self, inode: int) -> int:
        return self._numbers[inode] if inode in self._numbers else self._new(inode)

    def _new(self, inode: int) -> int:
        self._next += 1
        self._numbers[inode] = self._next
        return self._next


def _numbers_in(trace: Trace) -> list[int]:
    changes = [change for one in trace.operations if isinstance(one, Names) for change in one.changes]
    return [number for _, number in changes if number is not None]


_REAL = {name: getattr(disk, name) for name in dir(disk)}


def _places() -> frozenset[Place]:
    """The lines of pfsd that are being executed, from the innermost call outward."""
    frame, found = sys._getframe(1), set()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code.co_filename.startswith(_PFSD):
            found.add((os.path.relpath(frame.f_code.co_filename, _PFSD), frame.f_lineno))
    return frozenset(found)


# --- what a power cut may leave -----------------------------------------------------------------


class PowerCut:
    """How the disk decides about what was not synced: nothing comes, all comes, or as chance will have it."""

    def __init__(self, chance: random.Random | None, share: float = 0.0) -> None:
        """Without `chance` the share is 0 or 1; with it, changes of names come with this likelihood."""
        self._chance = chance
        self._share = share

    def comes(self) -> bool:
        """Whether a change of names that nobody synced came to the disk."""
        return self._share == 1 if self._chance is None else self._chance.random() < self._share

    def bytes_that_came(self, durable: int, pending: int) -> tuple[int, int]:
        """Of bytes that nobody synced: how many came, and how many zeros follow in the file."""
        if self._chance is None:
            return (pending if self._share == 1 else 0), 0
        unit = self._chance.choice([1, 1, 512, 4096])
        came = self._chance.choice([0, pending, self._chance.randint(0, pending)])
        if came != pending:
            came = max(0, (durable + came) // unit * unit - durable)
        zeros = self._chance.choice([0, 0, self._chance.randint(0, pending - came)])
        return came, zeros

    def overwritten(self, offset: int, pending: int) -> int:
        """Of bytes that were written over others, and have come at all: how many."""
        return self.bytes_that_came(offset, pending)[0]


class OnlyOverwritten(PowerCut):
    """Names came, and what was written over other bytes, but nothing that was added to a file."""

    def __init__(self) -> None:
        super().__init__(None, 1)

    def bytes_that_came(self, durable: int, pending: int) -> tuple[int, int]:
        return 0, 0

    def overwritten(self, offset: int, pending: int) -> int:
        return pending


NOTHING_CAME = PowerCut(None, 0)
ALL_CAME = PowerCut(None, 1)


def state_after(trace: Trace, length: int, cut: PowerCut) -> State:
    """What is on the disk when the power goes after the first `length` operations of a trace."""
    operations = trace.operations[:length]
    names = _names_after(trace, operations, cut)
    state: State = {}
    for path in sorted(names):
        number = names[path]
        if path != "." and os.path.dirname(path) not in ("", *state):
            continue  # its directory is not there
        state[path] = None if number == DIRECTORY else _content_after(trace, operations, number, cut)
    return state


def _names_after(trace: Trace, operations: Sequence[Operation], cut: PowerCut) -> dict[str, int]:
    synced: dict[str, int] = {}  # directory -> its last sync
    for at, operation in enumerate(operations):
        if isinstance(operation, SyncDirectory):
            synced[operation.path] = at
    names = dict(trace.names)
    for at, operation in enumerate(operations):
        if not isinstance(operation, Names):
            continue
        halves: dict[str, list[tuple[str, int | None]]] = {}
        for path, number in operation.changes:
            halves.setdefault(os.path.dirname(path) or ".", []).append((path, number))
        for directory, changes in halves.items():
            if at < synced.get(directory, -1) or cut.comes():
                for path, number in changes:
                    if number is None:
                        names.pop(path, None)
                    else:
                        names[path] = number
    return names


def _content_after(trace: Trace, operations: Sequence[Operation], number: int, cut: PowerCut) -> bytes:
    content = bytearray(trace.contents.get(number, b""))
    last = max((at for at, one in enumerate(operations) if isinstance(one, Sync) and one.file == number), default=-1)
    pending = []
    for at, operation in enumerate(operations):
        if isinstance(operation, (Write, Overwrite, Cut)) and operation.file == number:
            if at < last:
                _apply(content, operation)
            else:
                pending.append(operation)
    for at, operation in enumerate(pending):
        if isinstance(operation, Cut):
            if not cut.comes():
                break
            _apply(content, operation)
            continue
        if isinstance(operation, Overwrite):
            if cut.comes():
                came = cut.overwritten(operation.offset, len(operation.data))
                _apply(content, operation._replace(data=operation.data[:came]))
            continue
        # Zeros stand for all that the file had grown by until the power went.
        grown = sum(len(one.data) for one in pending[at:] if isinstance(one, Write))
        came, zeros = cut.bytes_that_came(len(content), len(operation.data))
        content += operation.data[:came]
        if came < len(operation.data):
            content += bytes(min(zeros, grown - came))
            break
    return bytes(content)


def _apply(content: bytearray, operation: Write | Overwrite | Cut) -> None:
    if isinstance(operation, Write):
        content += operation.data
    elif isinstance(operation, Overwrite):
        content[operation.offset : operation.offset + len(operation.data)] = operation.data
    else:
        del content[operation.length :]


def put_there(state: State, root: Path) -> None:
    """Make a directory that holds a state."""
    for path, content in state.items():
        where = root / path
        if content is None:
            where.mkdir(mode=0o700, exist_ok=True)
        else:
            where.write_bytes(content)
