"""The journal: an append-only file of JSON lines, each checksummed and chained to the one before.

    {"seq":0,"type":"header","format":1,"min_reader":1,"store":"<32 hex>",
     "generation":3,"checksum":"crc32","crc":"xxxxxxxx"}        (all on one line)
    {"seq":1,"type":"put","file":7,...,"crc":"xxxxxxxx"}
    {"seq":2,...,"crc":"xxxxxxxx"}

* One line is one JSON object and ends in LF; it has at most 1 MiB. `seq` is its first key and counts
  up by one.
* `crc` is its last key: eight lower-case hex digits, the CRC-32 of the line's bytes before `,"crc":`, started
  with the crc of the line before (the header: with 0). So a line that was changed, lost, doubled, swapped, or
  left over from elsewhere does not fit.
* What is appended is on the disk when `append` returns. A crash can leave one torn end, which the next start
  cuts off and keeps; anything else that does not fit is damage, and the start is refused. So is an end before the
  place that the mark beside the journal says it had reached.

The journal must never know what a record means: it takes and gives JSON objects. It knows no asyncio and no
threads; the caller lets only one of `append`, `begin_compaction` and `Compaction.finish` run at a time.
"""

from __future__ import annotations

import errno
import gc
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import islice, pairwise
from typing import Annotated, Literal, NamedTuple
from zlib import crc32

import msgspec

from pfsd import disk, mark
from pfsd.errors import ConfigError, RegistryDamaged, StorageFailed, StoreUnavailable
from pfsd.kinds import printable
from pfsd.mark import NOTHING, Mark, Reached

log = logging.getLogger(__name__)

#: Version of the line format that this module writes, and the oldest reader that understands it.
FORMAT = 1
MIN_READER = 1
#: Longest line with its LF, in bytes: what a reader may have to hold.
MAX_LINE = 1 << 20
#: Most that a crash can leave behind, in bytes. A longer broken end is damage, unless it is all zeros (a file
#: system may have made room for data that never came).
MAX_TORN = 1 << 20
#: What a power cut writes or does not write, in bytes.
SECTOR = 512
#: Read at once, in bytes.
CHUNK = 1 << 20
#: Records that a compaction adds at once of what it missed.
CATCH_UP = 256
#: How far behind damage to look for records that still fit, in bytes.
LOOK_BEHIND = 16 << 20

#: `,"crc":"xxxxxxxx"}`
TAIL_BYTES = 18
_TAIL = re.compile(rb',"crc":"([0-9a-f]{8})"}')

Path = str | os.PathLike[str]

_WHAT_NOW = (
    "Nothing was changed. `python server.py check`, with the same --config, says what is affected and what to do next."
)


class _Header(msgspec.Struct, tag_field="type", tag="header"):
    format: Annotated[int, msgspec.Meta(ge=1)]
    min_reader: Annotated[int, msgspec.Meta(ge=1)]
    store: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    generation: Annotated[int, msgspec.Meta(ge=1)]
    checksum: Literal["crc32"]


class _Version(msgspec.Struct, tag_field="type", tag="header"):
    """What a header of any format has."""

    format: int
    min_reader: int
    checksum: str


class _Numbered(msgspec.Struct):
    seq: int


class Verdict(NamedTuple):
    """What reading a journal has shown. A torn one is sound but for an end that the next start cuts off."""

    state: Literal["sound", "torn", "damaged", "missing"]
    reason: str = ""
    #: The first line that does not fit, from 1, and the byte that it begins at.
    line: int = 0
    offset: int = 0
    #: Good records before it, and lines behind it that look like records.
    good: int = 0
    plausible: int = 0
    #: From the header: the store's name in hex, and the generation. Empty and 0 when there is no valid header.
    store: str = ""
    generation: int = 0
    #: How far the journal had come.
    mark: Reached = NOTHING

    @property
    def next_generation(self) -> int:
        """Of a journal that replaces this one."""
        return max(self.generation, self.mark.generation) + 1


class _Log:
    """A journal file that is open for appending, and the state of its chain."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.seq = 0  # of the next line
        self.crc = 0  # of the last line
        self.size = 0  # bytes up to here are good

    def write(self, objects: Iterable[bytes]) -> None:
        """Append one line for each JSON object, not synced. OSError; the file is then longer than `size`."""
        seq, crc, lines = self.seq, self.crc, []
        for encoded in objects:
            if encoded[:2] != b'{"' or encoded[-1:] != b"}" or b"\n" in encoded:
                raise ValueError(f"not a JSON object on one line: {encoded[:80]!r}")
            body = b'{"seq":%d,%b' % (seq, encoded[1:-1])
            crc = crc32(body, crc)
            seq += 1
            lines.append(b'%b,"crc":"%08x"}\n' % (body, crc))
            if len(lines[-1]) > MAX_LINE:
                raise ValueError(f"a record of {len(lines[-1])} bytes; {MAX_LINE} can be")
        data = b"".join(lines)
        disk.write_all(self.fd, data)
        if disk.size(self.fd) != self.size + len(data):
            raise OSError(errno.EIO, "the journal has not grown by what was written to it")
        self.seq, self.crc, self.size = seq, crc, self.size + len(data)


class Journal:
    """The live journal of a store."""

    def __init__(self, path: str, log_file: _Log, store: str, generation: int, sync: bool) -> None:
        """Use `create` or `open`."""
        self.path = path
        self._store = store
        #: Counts up with each compaction.
        self.generation = generation
        #: How often the journal was synced.
        self.syncs = 0
        self._log = log_file
        self._sync = sync
        self._mark = Mark(path) if sync else None
        self._failure = ""
        self._compaction: Compaction | None = None
        self._advance_mark()

    @classmethod
    def create(cls, path: Path, *, sync: bool = True) -> Journal:
        """Make the journal of a new store. OSError; FileExistsError when there is one."""
        path = os.fspath(path)
        if disk.exists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        store = secrets.token_hex(16)
        generation = mark.read(path).generation + 1  # who took the journal away may have left its mark
        log_file = _start_file(_new_path(path), store, generation)
        try:
            if sync:
                disk.fdatasync(log_file.fd)
            disk.rename(_new_path(path), path)
            if sync:
                disk.fsync_dir(os.path.dirname(path) or ".")
        except BaseException:
            disk.close(log_file.fd)
            raise
        return cls(path, log_file, store, generation, sync)

    @classmethod
    def open(cls, path: Path, visit: Callable[[bytes], object], *, sync: bool = True) -> Journal:
        """Open a journal, and call `visit` with each JSON object in order, `seq` and `crc` still in it.

        A torn end is set aside in `journal.torn-<time>` beside it. RegistryDamaged when anything else does
        not fit, when `visit` raises ValueError, when the journal had come further than its end, and when there is
        none; nothing is changed then. ConfigError for a newer format,
        StoreUnavailable when the journal cannot be opened, StorageFailed when it cannot be read or repaired.
        """
        path = os.fspath(path)
        fd = _open_regular(path)
        try:
            with _no_garbage_collection():
                reader = _Reader(path, fd, visit)
                reader.run()
            reader.settle_end(sync)
            if sync:
                # Who wrote the last lines, or put this file in its place, may have died before he synced that; from
                # here on it counts.
                disk.fdatasync(fd)
                disk.fsync_dir(os.path.dirname(path) or ".")
            with suppress(FileNotFoundError):
                disk.unlink(_new_path(path))  # of a compaction that was interrupted
        except OSError as error:
            disk.close(fd)
            raise StorageFailed(f"{path}: {os.strerror(error.errno or errno.EIO)}") from error
        except BaseException:
            disk.close(fd)
            raise
        assert reader.header is not None
        return cls(path, reader.log, reader.header.store, reader.header.generation, sync)

    @property
    def store_id(self) -> bytes:
        """16 bytes that name the store."""
        return bytes.fromhex(self._store)

    @property
    def size(self) -> int:
        """Bytes in the journal."""
        return self._log.size

    @property
    def records(self) -> int:
        """Records in the journal, the header not counted."""
        return self._log.seq - 1

    @property
    def failed(self) -> bool:
        """Whether it is not known what of the file is on the disk: nothing is appended any more."""
        return bool(self._failure)

    def append(self, objects: Sequence[bytes]) -> None:
        """Write JSON objects, one line each, and sync once; they are all durable when this returns.

        OSError: none was appended and the journal can be used. StorageFailed: unknown how many were, and
        nothing ever will be again. ValueError: not an object, or too long; nothing was written.
        """
        self._check()
        self._check_place()
        try:
            self._log.write(objects)
        except OSError:
            self._roll_back()
            raise
        self._sync_or_fail()
        if self._compaction is not None:
            self._compaction.missed.extend(objects)

    def begin_compaction(self) -> Compaction:
        """Start a new generation. From here on it is told what is appended. OSError."""
        self._check()
        if self._compaction is not None:
            raise RuntimeError("a compaction is under way")
        self._compaction = Compaction(self, _start_file(_new_path(self.path), self._store, self.generation + 1))
        return self._compaction

    def is_in_place(self) -> bool:
        """Whether the next start would find what is written here."""
        return disk.is_at(self._log.fd, self.path)

    def close(self) -> None:
        """Close the file. Everything is on the disk already."""
        if self._compaction is not None:
            self._compaction.abort()
        disk.close(self._log.fd)
        if self._mark is not None:
            self._mark.close()

    def _check(self) -> None:
        if self._failure:
            raise StorageFailed(self._failure)

    def _check_place(self) -> None:
        # Removed, replaced, or its file system taken away: what is written now would not be found at the next start.
        if not self.is_in_place():
            self._fail("finding", OSError(errno.ESTALE, ""))

    def _sync_or_fail(self) -> None:
        # A failed sync must never be tried again: the kernel has marked the pages clean, and the next sync
        # would answer that all is well.
        if not self._sync:
            return
        self.syncs += 1
        try:
            disk.fdatasync(self._log.fd)
        except OSError as error:
            self._fail("syncing", error)
        self._advance_mark()

    def _advance_mark(self) -> None:
        """All that was written is durable now, unless nothing is."""
        if self._mark is not None:
            self._mark.advance(Reached(self.generation, self.records))

    def _roll_back(self) -> None:
        try:
            disk.truncate(self._log.fd, self._log.size)
        except OSError as error:
            self._fail("taking back a failed write to", error)
        self._sync_or_fail()

    def _fail(self, doing: str, error: OSError) -> None:
        self._failure = f"{doing} the journal {self.path}: {os.strerror(error.errno or errno.EIO)}"
        raise StorageFailed(self._failure) from error

    # --- the end of a compaction ---

    def _adopt(self, compaction: Compaction, log_file: _Log) -> None:
        self._check()
        self._check_place()
        disk.rename(_new_path(self.path), self.path)
        old, self._log = self._log, log_file
        self.generation += 1
        self._compaction = None
        with suppress(OSError):  # nobody needs what it held
            disk.close(old.fd)
        if not self._sync:
            return
        try:
            disk.fsync_dir(os.path.dirname(self.path) or ".")
        except OSError as error:
            # After a crash the old file may be back: what is appended to the new one would be lost.
            self._fail("renaming", error)
        self._advance_mark()

    def _forget(self, compaction: Compaction) -> None:
        if self._compaction is compaction:
            self._compaction = None


class Compaction:
    """A new generation of the journal in the making, beside the live one: `write` all, `sync`, `finish`.

    `write` and `sync` may run in another thread than the journal's appends; `finish` and `abort` may not.
    Until `finish` has renamed the file nothing has happened: a crash, or `abort`, leaves the old generation.
    """

    def __init__(self, journal: Journal, log_file: _Log) -> None:
        """Use `Journal.begin_compaction`."""
        #: What was appended to the old generation since the compaction began.
        self.missed: list[bytes] = []
        self._journal = journal
        self._log = log_file

    def write(self, objects: Iterable[bytes]) -> None:
        """Write JSON objects of the state at the time the compaction began. OSError: `abort` it."""
        self._log.write(objects)

    @property
    def missed_many(self) -> bool:
        """Whether `finish` would have so much to add that `catch_up` should go before it."""
        return len(self.missed) > CATCH_UP

    def catch_up(self) -> None:
        """Add some of what was missed; like `write`, it may run beside an append. OSError: `abort` this."""
        some = self.missed[:CATCH_UP]
        self.write(some)
        del self.missed[: len(some)]  # what was appended meanwhile is behind it

    def sync(self) -> None:
        """Bring what is written so far to the disk, so that `finish` has little left to do. OSError."""
        if self._journal._sync:
            disk.fdatasync(self._log.fd)

    def finish(self) -> None:
        """Add what was missed and put the new generation in place of the old one.

        OSError: the old one still counts; `abort` this. StorageFailed: the journal failed for ever.
        """
        self.write(self.missed)
        self.sync()
        self._journal._adopt(self, self._log)

    def abort(self) -> None:
        """Give it up, whatever state it is in; after `finish` has renamed it does nothing."""
        if self._journal._compaction is not self:
            return
        self._journal._forget(self)
        with suppress(OSError):
            disk.close(self._log.fd)
        with suppress(OSError):
            disk.unlink(_new_path(self._journal.path))


def _new_path(path: str) -> str:
    return path + ".new"


def _start_file(path: str, store: str, generation: int) -> _Log:
    """A new file with only a header, not synced. OSError."""
    with suppress(FileNotFoundError):
        disk.unlink(path)
    log_file = _Log(disk.open_file(path, disk.CREATE_APPEND))
    try:
        log_file.write([msgspec.json.encode(_Header(FORMAT, MIN_READER, store, generation, "crc32"))])
    except BaseException:
        disk.close(log_file.fd)
        disk.unlink(path)
        raise
    return log_file


def _open_regular(path: str, flags: int = disk.APPEND) -> int:
    try:
        fd = disk.open_file(path, flags)
    except FileNotFoundError as error:
        raise RegistryDamaged(f"{path}: the journal is missing. {_WHAT_NOW}", path=path) from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise RegistryDamaged(f"{path}: not a regular file. {_WHAT_NOW}", path=path) from error
        raise StoreUnavailable(f"{path}: {os.strerror(error.errno or errno.EIO)}", path=path) from error
    if not disk.is_regular(fd):
        disk.close(fd)
        raise RegistryDamaged(f"{path}: not a regular file. {_WHAT_NOW}", path=path)
    return fd


# --- without a daemon ---------------------------------------------------------------------------


def examine(path: Path, visit: Callable[[bytes], object]) -> Verdict:
    """Read a journal as `Journal.open` does, and change nothing. ConfigError, StoreUnavailable, StorageFailed."""
    path = os.fspath(path)
    if not disk.exists(path):
        return Verdict("missing", "there is no journal", mark=mark.read(path))
    try:
        fd = _open_regular(path, disk.READ)
    except RegistryDamaged:
        return Verdict("damaged", "it is not a regular file", mark=mark.read(path))
    try:
        with _no_garbage_collection():
            return _Reader(path, fd, visit).verdict()
    except OSError as error:
        raise StorageFailed(f"{path}: {os.strerror(error.errno or errno.EIO)}") from error
    finally:
        disk.close(fd)


def raw_lines(path: Path) -> Iterator[bytes]:
    """What is between the LFs of a journal file, fit or not; of what is far too long for a line, the end. OSError."""
    fd = _open_regular(os.fspath(path), disk.READ)
    try:
        rest = b""
        read = 0
        while chunk := disk.read(fd, CHUNK, read):
            read += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            yield from lines
            rest = rest[-2 * MAX_LINE :]
        yield rest
    finally:
        disk.close(fd)


def write(path: Path, store: str, generation: int, objects: Iterable[bytes]) -> None:
    """Write a whole journal, header first, to a file of its own, and sync it. OSError; there is no file then."""
    log_file = _start_file(os.fspath(path), store, generation)
    try:
        waiting = iter(objects)
        while some := list(islice(waiting, CATCH_UP)):
            log_file.write(some)
        disk.fdatasync(log_file.fd)
    except BaseException:
        disk.unlink(path)
        raise
    finally:
        disk.close(log_file.fd)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """All that a replay makes stays; the collector would only walk through it again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


# --- reading ------------------------------------------------------------------------------------


class _Reader:
    """One pass over a journal file: `run` visits the good lines, `settle_end` judges what follows them."""

    def __init__(self, path: str, fd: int, visit: Callable[[bytes], object]) -> None:
        self.path = path
        self.log = _Log(fd)
        self.file_size = disk.size(fd)
        self.visit = visit
        self.header: _Header | None = None
        self.mark = mark.read(path)

    def run(self) -> None:
        """Visit lines until the end of the file or the first one that does not fit."""
        rest = b""
        read = 0
        while chunk := disk.read(self.log.fd, CHUNK, read):
            read += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            if self.log.seq == 0 and lines:
                _refuse_foreign_checksum(self.path, lines[0])
            if not self._take(lines) or len(rest) >= MAX_LINE:
                break
        if self.log.seq == 0:
            raise self._damaged("it has no valid header")

    def _take(self, lines: list[bytes]) -> bool:
        """Visit lines; False at the first that does not fit."""
        try:
            return self._visit(lines)
        except ValueError as error:
            raise self._damaged(str(error)) from error

    def _visit(self, lines: list[bytes]) -> bool:
        """`_take`, but ValueError for what is refused; `log` is then behind the last line that was not."""
        log_file, visit = self.log, self.visit
        seq, crc, size = log_file.seq, log_file.crc, log_file.size
        try:
            for line in lines:
                own = crc32(line[:-TAIL_BYTES], crc)
                # Bytes are compared, not values: any other spelling of the same number is a flipped bit.
                if line[-TAIL_BYTES:] != b',"crc":"%08x"}' % own or not line.startswith(b'{"seq":%d,' % seq):
                    return False
                if seq:
                    visit(line)
                else:
                    self.header = self._read_header(line)
                crc = own
                size += len(line) + 1
                seq += 1
            return True
        finally:
            log_file.seq, log_file.crc, log_file.size = seq, crc, size

    def _read_header(self, line: bytes) -> _Header:
        version = msgspec.json.decode(line, type=_Version)
        if version.min_reader > FORMAT or version.format > FORMAT:
            raise _too_new(self.path, version.format)
        return msgspec.json.decode(line, type=_Header)

    def settle_end(self, sync: bool) -> None:
        """Mend what follows the last good line if a crash explains it, else RegistryDamaged.

        What is cut off is safe before; that it is cut off, the caller makes durable.
        """
        end, rest = self._judge_end()
        if end == "no LF":
            disk.write_all(self.log.fd, b"\n")  # the only byte that is missing
        elif end == "wrong LF":
            self._mend_lf(rest[-1])
        elif end == "torn":
            self._cut_off(rest[:MAX_TORN], self.file_size - self.log.size, sync)

    def _judge_end(self) -> tuple[Literal["whole", "no LF", "wrong LF", "torn"], bytes]:
        """What follows the last good line, and how it looks; a last line that is whole is visited. RegistryDamaged."""
        start, length = self.log.size, self.file_size - self.log.size
        rest = _read(self.log.fd, start, min(length, LOOK_BEHIND))
        if rest and (reason := _why_damage(rest, length, self.log, self._zeros(start))):
            raise self._damaged(reason, plausible=_count_plausible(rest, self.log.seq))
        end: Literal["whole", "no LF", "wrong LF", "torn"] = "torn"
        if not rest:
            end = "whole"
        elif b"\n" not in rest and self._take([rest]):
            end = "no LF"
        elif b"\n" not in rest and self._take([rest[:-1]]):
            end = "wrong LF"
        self._refuse_lost_end()
        return end, rest

    def _refuse_lost_end(self) -> None:
        """RegistryDamaged when more than the good lines was durable once."""
        assert self.header is not None
        last, was = Reached(self.header.generation, self.log.seq - 1), self.mark
        if last < was:
            raise self._damaged(
                f"the journal ends with record {last.seq} of generation {last.generation}, but had reached record "
                f"{was.seq} of generation {was.generation}: it was cut short, or is an older copy",
                plausible=0,
            )

    def _mend_lf(self, wrong: int) -> None:
        """Put the LF back in place of the one wrong byte behind the last line: the line is whole, and was answered."""
        at = self.log.size - 1
        disk.truncate(self.log.fd, at)  # dying here leaves a line that only lacks its LF
        disk.write_all(self.log.fd, b"\n")
        log.warning(
            "%s: the byte at %d was 0x%02x instead of the LF of line %d; it is mended, and no record is lost",
            self.path,
            at,
            wrong,
            self.log.seq,
        )

    def verdict(self) -> Verdict:
        """`run`, and judge what follows, without a change to the file."""
        try:
            self.run()
            end, _ = self._judge_end()
            if end == "torn":
                return self._verdict("torn", f"{self.file_size - self.log.size} bytes of an interrupted write")
            return self._verdict("sound")  # at most its last LF is to be mended
        except RegistryDamaged as damage:
            return self._verdict("damaged", str(damage.fields["reason"]), int(damage.fields["plausible"]))

    def _verdict(self, state: Literal["sound", "torn", "damaged"], reason: str = "", plausible: int = 0) -> Verdict:
        at, header = self.log, self.header
        store, generation = (header.store, header.generation) if header else ("", 0)
        good = max(0, at.seq - 1)
        return Verdict(state, reason, at.seq + 1, at.size, good, plausible, store, generation, self.mark)

    def _cut_off(self, torn: bytes, length: int, sync: bool) -> None:
        aside = aside_path(self.path, "torn")
        fd = disk.open_file(aside, disk.CREATE)
        try:
            disk.write_all(fd, torn)
            if sync:
                disk.fdatasync(fd)
        except BaseException:
            disk.unlink(aside)
            raise
        finally:
            disk.close(fd)
        if sync:
            disk.fsync_dir(os.path.dirname(self.path) or ".")
        disk.truncate(self.log.fd, self.log.size)
        log.warning(
            "%s: the last write was interrupted; %d bytes after %d records were cut off and kept in %s",
            self.path,
            length,
            self.log.seq - 1,
            aside,
        )

    def _zeros(self, start: int) -> bool:
        """Whether the file is all zeros from here on."""
        while chunk := disk.read(self.log.fd, CHUNK, start):
            if chunk.count(0) != len(chunk):
                return False
            start += len(chunk)
        return True

    def _damaged(self, reason: str, plausible: int | None = None) -> RegistryDamaged:
        if plausible is None:
            rest = _read(self.log.fd, self.log.size, min(self.file_size - self.log.size, LOOK_BEHIND))
            plausible = _count_plausible(rest, self.log.seq)
        return RegistryDamaged(
            f"{self.path}: damaged in line {self.log.seq + 1} at byte {self.log.size}: {printable(reason)}. "
            f"{max(0, self.log.seq - 1)} good records are before it, {plausible} plausible ones after it. " + _WHAT_NOW,
            path=self.path,
            line=self.log.seq + 1,
            offset=self.log.size,
            reason=printable(reason),
            plausible=plausible,
        )


def _too_new(path: str, version: int) -> ConfigError:
    return ConfigError(f"{path}: journal format {version} is newer than this pfsd, which knows {FORMAT}", path=path)


def _refuse_foreign_checksum(path: str, line: bytes) -> None:
    """A newer format may check its lines in another way, which must not look like damage."""
    try:
        version = msgspec.json.decode(line, type=_Version)
    except (ValueError, RecursionError):
        return
    if version.format > FORMAT and version.checksum != "crc32":
        raise _too_new(path, version.format)


def _read(fd: int, start: int, length: int) -> bytes:
    pieces = []
    while length > 0 and (piece := disk.read(fd, length, start)):
        pieces.append(piece)
        start, length = start + len(piece), length - len(piece)
    return b"".join(pieces)


def aside_path(path: str, what: str) -> str:
    """A new name beside a journal for what is kept of it: "torn" or "damaged"."""
    now = time.time_ns()
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now // 10**9))
    return os.path.join(os.path.dirname(path), f"journal.{what}-{stamp}.{now % 10**9:09d}")


# --- torn or damaged? ---------------------------------------------------------------------------
# `rest` is what lies behind the last good line, and begins with the first line that does not fit. An
# interrupted append explains it only if nothing behind looks like a record and the line itself is unfinished.


def _why_damage(rest: bytes, length: int, good: _Log, zeros: bool) -> str:
    """Why this cannot be the trace of an interrupted append; empty when it can."""
    if zeros:
        return ""
    if _count_plausible(rest, good.seq):
        return "the line does not fit, but lines after it are records"
    if length > MAX_TORN:
        return f"{length} bytes do not fit, more than a crash can leave"
    line, ended, _ = rest.partition(b"\n")
    if ended and not _has_lost_sector(line + ended, good.size):
        return "the line is complete, but does not fit"
    return ""


def _count_plausible(rest: bytes, next_seq: int) -> int:
    """Lines behind the first that follow upon their predecessor, or at least carry a number still to come."""
    *ended, last = rest.split(b"\n")
    count = 0
    for before, line in pairwise(ended):
        count += _follows(before, line) or number_of(line) >= next_seq
    if ended and _follows(ended[-1], last):
        count += 1
    return count


def split_checksum(line: bytes) -> tuple[bytes, int | None]:
    """What the checksum of a line is of, and the checksum that stands there; None when there is none."""
    found = _TAIL.fullmatch(line[-TAIL_BYTES:])
    return line[:-TAIL_BYTES], int(found[1], 16) if found else None


def ends_of_lines(text: bytes) -> Iterator[int]:
    """Where lines end in a stretch without LF: one place, unless an LF is lost."""
    return (found.end() for found in _TAIL.finditer(text))


def _follows(before: bytes, line: bytes) -> bool:
    """Whether a line's checksum continues the one that stands on the line before."""
    (_, seed), (body, own) = split_checksum(before), split_checksum(line)
    return seed is not None and crc32(body, seed) == own


def number_of(line: bytes) -> int:
    """The `seq` of a line; -1 when it has none."""
    try:
        return msgspec.json.decode(line, type=_Numbered).seq
    except (ValueError, RecursionError):
        return -1


def _has_lost_sector(line: bytes, offset: int) -> bool:
    """Whether a piece of the line, LF and all, that lies in one disk sector is zeros: it never reached the disk."""
    first = SECTOR - offset % SECTOR
    edges = [0, *range(first, len(line), SECTOR), len(line)]
    return any(start < end and not any(line[start:end]) for start, end in pairwise(edges))
