"""What this machine can do: hashing, coding, the store's disk, processes beside each other. For `server.py bench`.

It needs no daemon and disturbs none: the store is not opened, and the file it writes beside it has no name, so that
nothing is left whatever ends it. Rates of one core are taken in CPU time, which other programs disturb least.
"""

from __future__ import annotations

import mmap
import multiprocessing
import os
import random
import signal
import stat
import sysconfig
import tempfile
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from multiprocessing.connection import Connection
from pathlib import Path

from pfsd import codecs, disk, hashing, work
from pfsd.advise import Coded, Disk, Machine, Sample
from pfsd.coding import RAW_ABOVE
from pfsd.config import MAX_RUN_PARTS, Config
from pfsd.errors import ProcessesUnavailable, StoreUnavailable, UsageError
from pfsd.kinds import MIB

#: What is tried. The levels of zstd are those that `codec: auto` uses, and one above.
CANDIDATES = (("zstd", 1), ("zstd", 3), ("zstd", 5), ("zstd", 6), ("zstd", 9), ("zlib", 1), ("zlib", 6))
#: Shares of the time for coding, processes, disk; the little that hashing takes comes on top.
CODING_SHARE, SCALING_SHARE, DISK_SHARE = 0.5, 0.3, 0.2
#: The best of so many counts.
SCALING_ROUNDS = 3
#: Content that is sampled for each second of the whole, so that every candidate gets through all of it.
SAMPLE_BYTES_PER_SECOND = 3 * MIB
MIN_SAMPLE_BYTES = 4 * MIB
#: Files that are looked at below the roots.
MAX_FILES = 20_000
#: As much as a run of parts that does not shrink.
PACK_BYTES = 16 * MIB
#: For small appends, each synced.
SMALL_BYTES, SMALL_SYNCS = 4096, 50


def measure(settings: Config, seconds: float, directory: Path, files: Sequence[Path]) -> Machine:
    """Measure for about `seconds`; `directory` is where the disk is tried, `files` are sampled (none: the roots).

    UsageError when a file cannot be read, StoreUnavailable when the disk cannot be tried.
    """
    work.keep_freed_memory()  # as the I/O processes do
    pieces, origin = sample(settings, files, max(MIN_SAMPLE_BYTES, int(seconds * SAMPLE_BYTES_PER_SECOND)))
    share = seconds * CODING_SHARE / len(CANDIDATES)
    code(*CANDIDATES[0], pieces, share / 4)  # the first pays for memory that the others find
    coded = tuple(code(codec, level, pieces, share) for codec, level in CANDIDATES)
    cpus = len(os.sched_getaffinity(0))
    counts = process_counts(cpus)
    slice_seconds = seconds * SCALING_SHARE / len(counts) / SCALING_ROUNDS
    return Machine(
        cpus=cpus,
        memory=_free_memory(),
        sample=Sample(origin, sum(map(len, pieces)), len(pieces), _raw_share(pieces)),
        md5=hash_rate(settings.part_size),
        md5_lanes=hash_rate(settings.part_size) if hashing.use_lanes() else None,
        coded=coded,
        disk=try_disk(directory, seconds * DISK_SHARE),
        scaling={count: max(scale(count, pieces, slice_seconds) for _ in range(SCALING_ROUNDS)) for count in counts},
    )


# --- content ------------------------------------------------------------------------------------


def sample(settings: Config, files: Sequence[Path], size: int) -> tuple[list[bytes], str]:
    """About `size` bytes, in pieces as they would be parts, and where they are from, in words."""
    if files:
        pieces = _pieces(_found(files, settings.path, strict=True), settings.part_size, size)
        if not pieces:
            raise UsageError("the files given hold nothing to measure with")
        return pieces, "the files given"
    pieces = _pieces(_found(settings.roots, settings.path, strict=False), settings.part_size, size)
    if sum(map(len, pieces)) >= MIN_SAMPLE_BYTES:
        return pieces, "files under the roots"
    library = Path(sysconfig.get_path("stdlib"))
    sources = (path for path in sorted(library.rglob("*.py")) if "site-packages" not in path.parts)
    text = b"".join(path.read_bytes() for path in sources)[:size]
    return _split(text, settings.part_size), "the sources of Python's library, joined (there is little under the roots)"


def _found(paths: Iterable[Path], store: Path, strict: bool) -> list[tuple[Path, int]]:
    """Regular files with content, at these paths and below them, and their sizes; not those of the store."""
    found: list[tuple[Path, int]] = []
    for path in _walk(paths, store):
        try:
            status = os.stat(path) if strict else os.lstat(path)
            if strict and not os.access(path, os.R_OK):
                raise PermissionError(13, "Permission denied")
        except OSError as error:
            if strict:
                raise UsageError(f"{path} cannot be read: {error.strerror}") from None
            continue
        if stat.S_ISREG(status.st_mode) and status.st_size:
            found.append((path, status.st_size))
        if len(found) >= MAX_FILES:
            break
    return found


def _walk(paths: Iterable[Path], store: Path) -> Iterator[Path]:
    for top in paths:
        if not top.is_dir():
            yield top
        for folder, folders, names in os.walk(top):
            folders[:] = sorted(name for name in folders if Path(folder, name) != store)
            yield from (Path(folder, name) for name in sorted(names) if not Path(folder, name).is_symlink())


def _pieces(files: list[tuple[Path, int]], part_size: int, size: int) -> list[bytes]:
    """Parts from random places, every byte as likely as any other: any number of the first is a fair share."""
    if not files:
        return []
    ends = list(accumulate(length for _, length in files))
    rng = random.Random(0)  # the same sample each time
    pieces: dict[tuple[Path, int], bytes] = {}
    gathered = 0
    for _ in range(MAX_FILES):
        place = rng.randrange(ends[-1])
        path, length = files[number := bisect_right(ends, place)]
        at = (place - (ends[number] - length)) // part_size * part_size
        if (path, at) not in pieces:
            pieces[path, at] = _read(path, at, part_size)
            gathered += len(pieces[path, at])
        if gathered >= size:
            break
    return [piece for piece in pieces.values() if piece]


def _read(path: Path, at: int, length: int) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(at)
            return file.read(length) or b""
    except OSError:  # gone meanwhile, or not for us
        return b""


def _split(content: bytes, part_size: int) -> list[bytes]:
    return [content[at : at + part_size] for at in range(0, len(content), part_size)]


def _raw_share(pieces: Sequence[bytes]) -> float:
    raw = sum(len(codecs.encode("zstd", 1, piece)) > RAW_ABOVE * len(piece) for piece in pieces)
    return raw / len(pieces)


# --- cores --------------------------------------------------------------------------------------


def code(codec: str, level: int, pieces: Sequence[bytes], seconds: float) -> Coded:
    """Encode pieces for about so many seconds of CPU, or all, at least one; and decode them."""
    coded: list[codecs.Buffer] = []
    began = time.process_time()
    for piece in pieces:
        coded.append(codecs.encode(codec, level, piece))
        if time.process_time() - began >= seconds:
            break
    encoding = time.process_time() - began
    done = pieces[: len(coded)]
    decoding = min(_decode(codec, done, coded) for _ in range(2))
    size = sum(map(len, done))
    stored = sum(min(len(piece), len(encoded)) for piece, encoded in zip(done, coded, strict=True))
    return Coded(codec, level, _rate(size, encoding), _rate(size, decoding), size / stored)


def _decode(codec: str, pieces: Sequence[bytes], coded: Sequence[codecs.Buffer]) -> float:
    """Seconds of CPU that decoding takes."""
    began = time.process_time()
    for piece, encoded in zip(pieces, coded, strict=True):
        codecs.decode(codec, encoded, len(piece))
    return time.process_time() - began


def hash_rate(part_size: int) -> float:
    """Bytes a second that one core hashes as the daemon would, a run of parts at a time."""
    part_size = min(part_size, MIB)
    with mmap.mmap(-1, MAX_RUN_PARTS * part_size) as memory, memoryview(memory) as view:
        places = [(at * part_size, part_size) for at in range(MAX_RUN_PARTS)]
        hashing.md5_many(view, places)  # touches the pages
        began = time.process_time()
        hashing.md5_many(view, places)
        return _rate(MAX_RUN_PARTS * part_size, time.process_time() - began)


def process_counts(cpus: int) -> list[int]:
    """The numbers of processes to try: doubling up to one for each core."""
    return sorted({1 << power for power in range(cpus.bit_length())} | {cpus})


def scale(count: int, pieces: Sequence[bytes], seconds: float) -> float:
    """Bytes a second that `count` processes code side by side with zstd 1, tried for so many seconds of the clock.

    The rates are of CPU time and added up: what counts is how far processes are in each other's way, in caches
    and on threads of one core, not how busy the machine happens to be.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pfsd.measure"])
    ends: list[Connection] = []  # pipes and no barrier: its semaphores have names, which a kill leaves behind
    processes = []
    for _ in range(count):
        ours, theirs = context.Pipe()
        ends.append(ours)
        processes.append(context.Process(target=_code_for, args=(theirs, pieces[:MAX_RUN_PARTS], seconds), daemon=True))
        processes[-1].start()
        theirs.close()  # so that the end of the process is seen
    try:
        for end in ends:
            end.recv()
        for end in ends:
            end.send(None)
        return sum(float(end.recv()) for end in ends)
    except (EOFError, BrokenPipeError):
        raise ProcessesUnavailable("the processes that were to code beside each other have died") from None
    finally:
        for end in ends:
            end.close()
        for process in processes:
            process.join()


def _code_for(end: Connection, pieces: Sequence[bytes], seconds: float) -> None:
    """Say that this process is there, wait for the others, code, and tell the rate."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the bench ends its processes itself
    work.keep_freed_memory()
    codecs.encode("zstd", 1, pieces[0])
    end.send(None)
    end.recv()
    done, began, cpu_began = 0, time.perf_counter(), time.process_time()
    while True:
        for piece in pieces:
            codecs.encode("zstd", 1, piece)
            done += len(piece)
            if time.perf_counter() - began >= seconds:
                end.send(_rate(done, time.process_time() - cpu_began))
                return


def _rate(size: int, seconds: float) -> float:
    return size / max(seconds, 1e-6)


def _free_memory() -> int:
    """Bytes that programs can still have, caches given up."""
    with open("/proc/meminfo") as lines:
        kib = next((line.split()[1] for line in lines if line.startswith("MemAvailable:")), None)
    return int(kib) * 1024 if kib else os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


# --- disk ---------------------------------------------------------------------------------------


def existing(path: Path) -> Path:
    """The nearest directory that exists at or above `path`: where a store that is not there yet will be."""
    return next(each for each in (path, *path.parents) if each.is_dir())


def try_disk(directory: Path, seconds: float) -> Disk:
    """Write packs of noise and sync each, then small appends, in a file without a name."""
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            return Disk(str(directory), _pack_rate(file.fileno(), seconds), _sync_seconds(file.fileno(), seconds))
    except OSError as error:
        raise StoreUnavailable(f"{directory} cannot be written to: {error.strerror}") from error


def _pack_rate(fd: int, seconds: float) -> float:
    noise = random.Random(0).randbytes(MIB)
    written, began = 0, time.perf_counter()
    while True:
        _write_pack(fd, noise)
        written += PACK_BYTES
        spent = time.perf_counter() - began
        if spent >= seconds:
            return _rate(written, spent)
        os.ftruncate(fd, 0)


def _sync_seconds(fd: int, seconds: float) -> float:
    syncs, began = 0, time.perf_counter()
    while syncs < SMALL_SYNCS and (not syncs or time.perf_counter() - began < seconds):
        disk.write_all(fd, bytes(SMALL_BYTES))
        disk.fdatasync(fd)
        syncs += 1
    return (time.perf_counter() - began) / syncs


def _write_pack(fd: int, noise: bytes) -> None:
    """Write and sync as the store does."""
    os.lseek(fd, 0, os.SEEK_SET)
    for at in range(0, PACK_BYTES, len(noise)):
        disk.write_all(fd, noise)
        disk.start_writeback(fd, at, len(noise))
    disk.fdatasync(fd)
