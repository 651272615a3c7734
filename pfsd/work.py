"""What an I/O process runs: store a batch, load a batch, delete packs.

Tasks know packs, stores and the shared slab; never the registries, the protocol or asyncio. Arguments and
results are small tuples: file content is only ever in the slab, in files and in the store. A task that fails
returns a `Failure` instead of raising, so that no exception has to survive a process border.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from itertools import groupby
from multiprocessing import connection, forkserver, parent_process
from typing import Any, NamedTuple, Protocol, TypeVar

from pfsd import codecs, disk, hashing, packs, stores
from pfsd.coding import Measured
from pfsd.errors import BY_CODE, Changed, Corrupt, FieldValue, IoError, Missing, NotFound, RequestError, from_os_error

Result = TypeVar("Result", covariant=True)
Argument = TypeVar("Argument")
Outcome = TypeVar("Outcome")


#: A task is given to this many processes before its request fails.
ATTEMPTS = 3


# --- what travels -------------------------------------------------------------------------------


class Setup(NamedTuple):
    """What a process needs once."""

    slab: str  # a path under /proc that leads to the daemon's memfd
    slab_size: int  # bytes
    store_url: str
    epoch: str
    durable: bool
    lanes: bool  # hash in SIMD lanes, if numba is there


class PartIn(NamedTuple):
    """A part to store: its bytes are, or are to be read to, `size` bytes of the slab at `at`.

    Size 0 stands for the end marker: the statement that the file has `seq` parts.
    """

    origin: packs.Origin
    seq: int
    at: int
    size: int


class Read(NamedTuple):
    """The parts of a batch from `first` to before `end` are to be read from a file, one after the other."""

    path: str
    offset: int
    first: int
    end: int


class StoreBatch(NamedTuple):
    """Parts that go into one pack, in this order: a run of one file, or some small files whole."""

    token: str
    parts: tuple[PartIn, ...]
    codec: str
    level: int
    reads: tuple[Read, ...] = ()
    every: int = 1  # code the parts whose seq is a multiple of it, store the others as they are


def staging_tokens(batch: StoreBatch | CopyBatch) -> set[str]:
    """The tokens that attempts at a batch stage their pack under."""
    return {_token(batch, attempt) for attempt in range(ATTEMPTS)}


def _token(batch: StoreBatch | CopyBatch, attempt: int) -> str:
    return f"{batch.token}.{attempt}"


class PartRow(NamedTuple):
    """Where a stored part lies in its pack."""

    offset: int
    head: int
    size: int
    stored: int
    codec: str
    md5: bytes


class StoredBatch(NamedTuple):
    """A staged pack and a row for each part of its batch.

    Parts that could not be read have their failure instead. When that is all of them nothing is staged.
    """

    token: str
    parts: tuple[PartRow | Failure, ...]
    measured: Measured


class PartOut(NamedTuple):
    """A part to load into the slab at `at`, and what the registry knows of it."""

    store: bytes
    file: int
    seq: int
    at: int
    row: PartRow


class LoadBatch(NamedTuple):
    """Parts of one pack to load and check; with a target, their joined bytes are written there as well."""

    pack: int
    parts: tuple[PartOut, ...]
    target: str | None = None
    target_offset: int = 0
    skip: int = 0  # of the joined bytes, this many at the front are not wanted in the target
    length: int = 0  # and then this many are
    sync: bool = False  # the target will be synced
    resume: bool = False  # parts that the target holds already are neither loaded nor written


class CopyBatch(NamedTuple):
    """Parts of a pack that go into another: file, sequence number, and where they lie now."""

    token: str
    store: bytes
    pack: int
    parts: tuple[tuple[int, int, PartRow], ...]


class BadPart(NamedTuple):
    """A part that could not be loaded; its place in the slab is filled with zeros."""

    seq: int
    code: str
    message: str


class LoadedBatch(NamedTuple):
    """What came of a LoadBatch: the parts that could not be loaded; how many bytes the target had already."""

    bad: tuple[BadPart, ...] = ()
    resumed: int = 0


class Failure(NamedTuple):
    """A task failed."""

    code: str
    message: str
    fields: dict[str, FieldValue]
    trace: str = ""

    def error(self) -> RequestError:
        """The error to raise in the daemon."""
        return BY_CODE[self.code](self.message, **self.fields)


class Task(Protocol[Result]):
    """A function that a process can run. `attempt` counts from 0."""

    __name__: str

    def __call__(self, task: Any, attempt: int) -> Result | Failure: ...


#: From malloc.h. The bytes are glibc's own upper limit for the first; a process never has that much to free.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEEP_BYTES = 32 << 20
#: From sys/prctl.h.
_PR_SET_PDEATHSIG = 1


# --- the process --------------------------------------------------------------------------------


#: Targets are written in pieces of this size: from 2 MiB on Linux takes huge pages for its cache, which are dear to
#: come by. One write of 10 MiB to ext4 was found to take five times as long as twenty of these.
WRITE_BYTES = 512 << 10


class _Process:
    """What `set_up` made of this process."""

    slab: memoryview
    store: stores.PackStore


def set_up(setup: Setup) -> None:
    """Initialise the process that this runs in."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the daemon decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.umask(0o077)
    keep_freed_memory()
    be_the_first_to_go()
    end_with_forkserver()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    slab = os.open(setup.slab, os.O_RDWR | os.O_CLOEXEC)
    _Process.slab = memoryview(mmap.mmap(slab, setup.slab_size))
    os.close(slab)
    if setup.lanes:
        hashing.use_lanes()
    _Process.store = stores.open_store(setup.store_url, sync=setup.durable, epoch=setup.epoch)


def keep_freed_memory() -> None:
    """Let malloc keep the memory of one part for the next: page by page, taking it anew costs a third of a fetch."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc; others have no such habit
        libc.mallopt(_M_MMAP_THRESHOLD, _KEEP_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEEP_BYTES)


def be_the_first_to_go() -> None:
    """When the system runs out of memory it shall end this process, whose run is tried again, and not the daemon."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "r+") as score:
        likely = min(int(score.read()) + 500, 1000)
        score.seek(0)
        score.write(str(likely))


def end_with_forkserver() -> None:
    """Have the system kill this process when the forkserver ends, which is when the daemon does.

    Even one that is stopped: it could not look for itself, as `_end_with_parent` does. The forkserver lives as long
    as the pipe to it is open somewhere, and each process it makes is given an end that it has no use for.
    """
    held = getattr(forkserver._forkserver, "_forkserver_alive_fd", None)
    if held is not None:
        os.close(held)
        forkserver._forkserver._forkserver_alive_fd = None  # type: ignore[attr-defined]
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
    os._exit(3)


def ready() -> int:
    """A task that does nothing: its result says that the process runs."""
    return os.getpid()


def _task(function: Callable[[Argument, int], Outcome]) -> Task[Outcome]:
    """Make exceptions values."""

    @functools.wraps(function)
    def run(task: Argument, attempt: int) -> Outcome | Failure:
        try:
            return function(task, attempt)
        except RequestError as error:
            return _failure(error)
        except OSError as error:
            translated = from_os_error(error, function.__name__.replace("_", " "))
            if isinstance(translated, NotFound):  # the store's directory is gone: nothing that a client named
                translated = IoError(translated.message, **translated.fields)
            return _failure(translated)
        except MemoryError:
            return Failure("busy", "an I/O process found no memory; try again, or give the daemon more", {})
        except Exception as error:
            return Failure("internal", f"{type(error).__name__} in an I/O process", {}, traceback.format_exc())

    return run


def _failure(error: RequestError) -> Failure:
    return Failure(error.code, error.message, error.fields)


# --- tasks --------------------------------------------------------------------------------------


@_task
def store_batch(task: StoreBatch, attempt: int) -> StoredBatch:
    """Hash, compress and stage parts as one pack. NoSpace or IoError from the store."""
    rows: dict[int, PartRow | Failure] = {}
    for read in task.reads:
        failure = _read_parts(read, task.parts)
        if failure is not None:
            rows |= dict.fromkeys(range(read.first, read.end), failure)
    wanted = [at for at in range(len(task.parts)) if at not in rows]
    token = _token(task, attempt)
    _Process.store.discard(_token(task, earlier) for earlier in range(attempt))  # what dead processes left
    coded: list[tuple[int, int, float]] = []
    began = time.perf_counter()
    if wanted:
        md5s = hashing.md5_many(_Process.slab, [(task.parts[at].at, task.parts[at].size) for at in wanted])
        began = time.perf_counter()
        _Process.store.stage(token, _pieces(task, wanted, md5s, rows, coded))
    measured = _measured(coded, time.perf_counter() - began)
    return StoredBatch(token, tuple(rows[at] for at in range(len(task.parts))), measured)


def _measured(coded: Sequence[tuple[int, int, float]], staging: float) -> Measured:
    coding = sum(seconds for _, _, seconds in coded)
    return Measured(sum(size for size, _, _ in coded), sum(stored for _, stored, _ in coded), coding, staging - coding)


def _pieces(
    task: StoreBatch,
    wanted: Sequence[int],
    md5s: Sequence[bytes],
    rows: dict[int, PartRow | Failure],
    coded: list[tuple[int, int, float]],
) -> Iterator[codecs.Buffer]:
    """The bytes of the pack; notes in `rows` where each part went, in `coded` what coding made of it and took."""
    offset = 0
    for at, md5 in zip(wanted, md5s, strict=True):
        part = task.parts[at]
        wanted_codec = "none" if part.seq % task.every else task.codec
        began = time.perf_counter()
        header, payload, codec = packs.encode_part(part.origin, part.seq, _view(part), md5, wanted_codec, task.level)
        if wanted_codec != "none":
            coded.append((part.size, len(payload), time.perf_counter() - began))
        rows[at] = PartRow(offset, len(header), part.size, len(payload), codec, md5)
        offset += len(header) + len(payload)
        yield header
        yield payload


def _view(part: PartIn) -> memoryview:
    return _Process.slab[part.at : part.at + part.size]


def _read_parts(read: Read, parts: Sequence[PartIn]) -> Failure | None:
    """Fill parts from their file; why that failed. Other files in the batch do not care."""
    try:
        _read_source(read.path, read.offset, [_view(part) for part in parts[read.first : read.end]])
    except RequestError as error:
        return _failure(error)
    except OSError as error:
        return _failure(from_os_error(error, "reading the source"))
    return None


def _read_source(path: str, offset: int, views: list[memoryview]) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        left = list(views)
        while left:
            count = os.preadv(fd, left, offset)
            if not count:
                raise Changed("the source became shorter while it was read; nothing was stored")
            offset += count
            left = _behind(left, count)
    finally:
        os.close(fd)


def _behind(views: Sequence[memoryview], count: int) -> list[memoryview]:
    """What is left of these views behind their first `count` bytes."""
    for at, view in enumerate(views):
        if count < len(view):
            return [view[count:], *views[at + 1 :]]
        count -= len(view)
    return []


@_task
def load_batches(tasks: tuple[LoadBatch, ...], attempt: int) -> tuple[LoadedBatch | Failure, ...]:
    """Read, decode and check parts into the slab, and on into their targets; a result for each batch.

    Parts that are missing or fail their checks are returned, with zeros in their place. A batch whose target
    cannot be written has a failure of its own.
    """
    held = [_held_by_target(task) if task.resume else frozenset() for task in tasks]
    with _OpenPacks() as opened:
        bad = [_read_batch(opened, task, there) for task, there in zip(tasks, held, strict=True)]
    _check_md5s(tasks, held, bad)
    return tuple(_deliver(*batch) for batch in zip(tasks, held, bad, strict=True))


def _held_by_target(task: LoadBatch) -> frozenset[int]:
    """Places of the parts that the target holds already, byte for byte; never of one that it is to hold a piece of."""
    whole: list[int] = []
    start = -task.skip  # of a part, among the bytes that the target gets
    fd = os.open(task.target or "", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for at, part in enumerate(task.parts):
            inside = start >= 0 and start + part.row.size <= task.length
            if inside and _read_whole(fd, _place(part), task.target_offset + start):
                whole.append(at)
            start += part.row.size
    finally:
        os.close(fd)
    md5s = hashing.md5_many(_Process.slab, [(task.parts[at].at, task.parts[at].row.size) for at in whole])
    return frozenset(at for at, md5 in zip(whole, md5s, strict=True) if md5 == task.parts[at].row.md5)


def _read_whole(fd: int, view: memoryview, offset: int) -> bool:
    """Fill a view from a file; whether the file went that far. What cannot be read is not there."""
    try:
        while len(view) and (count := os.preadv(fd, [view], offset)):
            view, offset = view[count:], offset + count
    except OSError:
        return False
    return not len(view)


class _OpenPacks(ExitStack):
    """Packs, each opened once: small files that are read together often lie in one."""

    def __init__(self) -> None:
        super().__init__()
        self._readers: dict[int, stores.PackReader] = {}

    def reader(self, pack: int) -> stores.PackReader:
        """An open pack; raises as `PackStore.open`."""
        if pack not in self._readers:
            self._readers[pack] = self.enter_context(_Process.store.open(pack))
        return self._readers[pack]


def _read_batch(opened: _OpenPacks, task: LoadBatch, held: frozenset[int]) -> dict[int, BadPart]:
    """Decode the parts of a batch that are not held into the slab; those that failed, by their place in the batch."""
    wanted = [(at, part) for at, part in enumerate(task.parts) if at not in held]
    bad: dict[int, BadPart] = {}
    if not wanted:
        return bad
    try:
        pack = opened.reader(task.pack)
    except (Corrupt, Missing, OSError) as error:
        return {at: _bad_part(part, error) for at, part in wanted}
    for at, part in wanted:
        try:
            _read_part(pack, part)
        except (Corrupt, Missing, OSError) as error:
            bad[at] = _bad_part(part, error)
    return bad


def _read_part(pack: stores.PackReader, part: PartOut) -> None:
    row = part.row
    if row.codec == "none":  # read to where it belongs
        packs.check_header(pack.read(row.offset, row.head), part.store, part.file, part.seq, row)
        pack.read_into(row.offset + row.head, _place(part))
        return
    encoded = pack.read(row.offset, row.head + row.stored)
    _place(part)[:] = packs.decode_part(encoded, part.store, part.file, part.seq, row)


def _place(part: PartOut) -> memoryview:
    return _Process.slab[part.at : part.at + part.row.size]


def _bad_part(part: PartOut, error: RequestError | OSError) -> BadPart:
    if isinstance(error, RequestError):
        return BadPart(part.seq, error.code, error.message)
    return BadPart(part.seq, "io", os.strerror(error.errno or 0))


def _check_md5s(tasks: Sequence[LoadBatch], held: Sequence[frozenset[int]], bad: Sequence[dict[int, BadPart]]) -> None:
    """Hash the parts of all batches together, and add to the bad ones those that are not what they were."""
    parts = [
        (found, at, part)
        for task, there, found in zip(tasks, held, bad, strict=True)
        for at, part in enumerate(task.parts)
        if at not in there
    ]
    md5s = hashing.md5_many(_Process.slab, [(part.at, part.row.size) for _, _, part in parts])
    for (found, at, part), md5 in zip(parts, md5s, strict=True):
        if at not in found and md5 != part.row.md5:
            found[at] = BadPart(part.seq, "corrupt", "the MD5 of its content is wrong")


def _deliver(task: LoadBatch, held: frozenset[int], bad: dict[int, BadPart]) -> LoadedBatch | Failure:
    """Zeros for what is bad, and the content on into the target, if there is one."""
    for at in bad:
        _place(task.parts[at])[:] = bytes(task.parts[at].row.size)
    if task.target is not None:
        try:
            _write_target(task, held)
        except OSError as error:
            return _failure(from_os_error(error, "writing the target"))
    return LoadedBatch(tuple(bad.values()), sum(task.parts[at].row.size for at in held))


def _write_target(task: LoadBatch, held: frozenset[int]) -> None:
    fd = os.open(task.target or "", os.O_WRONLY | os.O_CLOEXEC)
    try:
        start = 0  # of a part, in the joined bytes
        for skipped, group in groupby(range(len(task.parts)), key=held.__contains__):
            stretch = [_place(task.parts[at]) for at in group]
            end = start + sum(map(len, stretch))
            if not skipped:
                first, last = max(start, task.skip), min(end, task.skip + task.length)
                wanted = _at_most(_behind(stretch, first - start), last - first)
                _write_stretch(fd, wanted, task.target_offset + first - task.skip)
            start = end
        if task.sync:
            disk.start_writeback(fd, task.target_offset, task.length)
    finally:
        os.close(fd)


def _write_stretch(fd: int, left: list[memoryview], offset: int) -> None:
    while left:
        count = os.pwritev(fd, _at_most(left, WRITE_BYTES), offset)
        offset += count
        left = _behind(left, count)


def _at_most(views: Sequence[memoryview], length: int) -> list[memoryview]:
    """The first `length` bytes of these views."""
    wanted = []
    for view in views:
        if length <= 0:
            break
        wanted.append(view[:length])
        length -= len(view)
    return wanted


@_task
def list_pack(pack: int, attempt: int) -> tuple[packs.Found, ...]:
    """The parts in a pack, end markers among them. Missing; Corrupt when some stretch of it is no part."""
    with _Process.store.open(pack) as reader:
        found = tuple(packs.scan(reader.read, reader.size))
    if damage := [part for part in found if isinstance(part, packs.Damage)]:
        raise Corrupt(f"pack {pack:016x} has {damage[0].length} unreadable bytes at {damage[0].offset}")
    return tuple(part for part in found if isinstance(part, packs.Found))


@_task
def copy_parts(task: CopyBatch, attempt: int) -> StoredBatch:
    """Check parts of a pack and stage another with them alone, as they are. Missing, Corrupt, NoSpace."""
    token = _token(task, attempt)
    _Process.store.discard(_token(task, earlier) for earlier in range(attempt))
    rows: list[PartRow] = []
    with _Process.store.open(task.pack) as pack:
        _Process.store.stage(token, _copies(pack, task, rows))
    return StoredBatch(token, tuple(rows), Measured(0, 0, 0.0, 0.0))


def _copies(pack: stores.PackReader, task: CopyBatch, rows: list[PartRow]) -> Iterator[codecs.Buffer]:
    offset = 0
    for file, seq, row in task.parts:
        encoded = pack.read(row.offset, row.head + row.stored)
        content = packs.decode_part(encoded, task.store, file, seq, row)
        if row.size and hashing.md5(content) != row.md5:
            raise Corrupt(f"part {seq} of file {file} in pack {task.pack:016x} is not what it was")
        rows.append(row._replace(offset=offset))
        offset += len(encoded)
        yield encoded


@_task
def delete_packs(task: tuple[int, ...], attempt: int) -> int:
    """Unlink packs; returns the bytes freed. Packs that are gone already count nothing."""
    return _Process.store.delete(task)
