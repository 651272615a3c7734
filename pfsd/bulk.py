"""Many files, or big ones, over a connection of their own, by blocking calls of one thread.

`Uploads` and `Downloads` are generators: each step works for a moment and gives the outcomes since the last. One
thread that reads files and talks to the socket by turns costs a fraction of tasks, queues and a thread for each
file, and memory stays at a few buffers: small files are gathered into one write, big ones go from file to socket
inside the kernel, and what is received is written to its file from the buffer it came in.

Knows the protocol and files, never the event loop; `abort` may come from any thread.
"""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from pfsd import protocol, results
from pfsd.errors import Changed, Denied, PfsdError, RequestError, from_os_error
from pfsd.exchange import ConnectionLost
from pfsd.link import Link, nonsense
from pfsd.protocol import MAX_FRAME, Reply, Word
from pfsd.results import Outcome, Retrieved, StoredFile, UnderWay
from pfsd.transfer import Draft, KeptDraft
from pfsd.tree import Folders, local_path

#: Requests on their way. The daemon works on 64 of a connection at once; the next ones should be there already.
WINDOW = 256
#: Requests are sent again when so few are left: in groups, as each write has its price.
REFILL = 192
#: Bytes of small files gathered before they are sent. More would not stay in a core's cache.
BATCH = 256 << 10
#: Files up to this size are gathered; from here on a call to the system for each costs less than a copy.
SMALL = 128 << 10
#: Bytes of a big file sent before answers are looked for; a smaller file is not worth being resumed.
CHUNK = 4 << 20
#: What is sent of a big file only when all before is out and the file is seen not to have changed.
TAIL = 64 << 10
#: Outcomes are handed out at least so often, for those who watch, and at most in such groups.
STEP_SECONDS = 0.1
STEP_FILES = 256

Result = TypeVar("Result")


# --- both directions ----------------------------------------------------------------------------


class _Transfers(Generic[Result]):
    """What uploads and downloads share: a link, tags, and outcomes that wait to be handed out.

    `files` and `bytes` count what is done.
    """

    def __init__(self, connect: Callable[[], Link]) -> None:
        self._connect = connect
        self._link: Link | None = None
        self._aborted = False
        self._count = 0
        self._outcomes: list[Outcome[Result]] = []
        self._stepped = time.monotonic()
        self.files = 0
        self.bytes = 0

    def abort(self) -> None:
        """Give up, from any thread: the step that runs ends with ConnectionLost."""
        self._aborted = True
        if self._link is not None:
            self._link.abort()

    def _open(self) -> Link:
        self._link = self._connect()
        if self._aborted:
            self._link.abort()
        return self._link

    def _next_tag(self) -> bytes:
        self._count += 1
        return b"%d" % self._count

    def _end_one(self, outcome: Outcome[Result]) -> None:
        self._outcomes.append(outcome)
        self.files += 1

    def _due(self) -> bool:
        return len(self._outcomes) >= STEP_FILES or time.monotonic() - self._stepped >= STEP_SECONDS

    def _taken(self) -> list[Outcome[Result]]:
        taken, self._outcomes = self._outcomes, []
        self._stepped = time.monotonic()
        return taken


def _final(reply: Reply) -> Reply:
    """A final line that has a tag; ConnectionLost with what one without says, which is about the connection."""
    if reply.tag is None:
        if reply.word == "ERR":
            raise ConnectionLost(f"the daemon ended the connection: {reply.error().message}")
        raise nonsense()
    return reply


def _refusal(error: PfsdError | OSError, doing: str) -> RequestError:
    """The error of one file; one of the connection goes on."""
    if isinstance(error, OSError):
        return from_os_error(error, doing)
    if not isinstance(error, RequestError):
        raise error
    return error


# --- uploads ------------------------------------------------------------------------------------


class Uploads(_Transfers[StoredFile]):
    """Stores files. Content goes with its size announced: an upload can be given up only with its connection."""

    def __init__(self, connect: Callable[[], Link], *, replace: bool, resume: bool = False) -> None:
        """With `resume` big files go in frames, and what was stored of one is kept when the connection breaks."""
        super().__init__(connect)
        self._options = b" replace=yes" if replace else b""
        self._resume = resume
        self._offsets: dict[bytes, int] = {}  # tag -> where to go on, once the daemon has said so
        self._waiting: dict[bytes, str] = {}  # tag -> path
        self._sending: UnderWay | None = None
        self._batch = memoryview(bytearray(BATCH + SMALL + protocol.MAX_LINE))
        self._used = 0  # of the batch

    def under_way(self) -> list[UnderWay]:
        """The big file that is being sent, for who looks between two steps."""
        return [] if self._sending is None else [self._sending]

    def run(self, files: Iterable[tuple[str, bytes]]) -> Iterator[list[Outcome[StoredFile]]]:
        """Store regular files under names. ConnectionLost ends it; every other error is an outcome."""
        link = self._open()
        try:
            for path, name in files:
                try:
                    yield from self._store(path, name)
                except (PfsdError, OSError) as error:
                    self._end_one(Outcome(path, error=_refusal(error, f"reading {path}")))
                if len(self._waiting) >= WINDOW:
                    self._flush()
                    while len(self._waiting) > REFILL:
                        self._receive()
                if self._due():
                    yield self._taken()
            self._flush()
            while self._waiting:
                self._receive()
                if self._due():
                    yield self._taken()
            yield self._taken()
        except ConnectionLost:
            yield self._taken()
            raise
        finally:
            link = self._link or link
            link.close()

    def _store(self, path: str, name: bytes) -> Iterator[list[Outcome[StoredFile]]]:
        protocol.check_name(name)
        # A FIFO must not make this wait for its other end.
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise Denied(f"{path} is no regular file")
            if status.st_size <= SMALL:
                self._gather(path, name, file, status)
            elif self._resume and status.st_size > CHUNK:
                yield from self._send_resumed(path, name, file, status)
            else:
                yield from self._send(path, name, file, status)
        finally:
            self._sending = None
            os.close(file)

    def _request(self, name: bytes, size: bytes, tag: bytes) -> bytes:
        return b"@%b put - name=%b size=%b%b\n" % (tag, protocol.quote(name).encode(), size, self._options)

    def _gather(self, path: str, name: bytes, file: int, status: os.stat_result) -> None:
        """Add a small file to the batch, all or nothing of it."""
        tag = self._next_tag()
        line = self._request(name, b"%d" % status.st_size, tag)
        begin = self._used + len(line)
        end = begin + status.st_size
        _read(file, self._batch[begin:end], status)
        if not status.st_size and os.pread(file, 1, 0):
            raise Denied(f"{path} holds more than the 0 bytes it tells of; pipe it in: put - --name NAME")
        self._batch[self._used : begin] = line
        self._used = end
        self._waiting[tag] = path
        self.bytes += status.st_size
        if end >= BATCH:
            self._flush()

    def _flush(self) -> None:
        used, self._used = self._used, 0
        if used and self._link is not None:
            self._link.send(self._batch[:used], self._take)

    def _send(self, path: str, name: bytes, file: int, status: os.stat_result) -> Iterator[list[Outcome[StoredFile]]]:
        """Send a big file; after an error in its middle the connection is a new one."""
        assert self._link is not None
        self._flush()
        tag, before = self._next_tag(), self.bytes
        self._waiting[tag] = path
        self._link.send(self._request(name, b"%d" % status.st_size, tag), self._take)
        try:
            at, most = 0, status.st_size - TAIL
            while at < most and tag in self._waiting:
                sent = self._link.send_file(file, at, min(CHUNK, most - at), self._take)
                if not sent:
                    raise _changed()
                at += sent
                self.bytes += sent
                self._sending = UnderWay(path, at, status.st_size)
                self._receive(wait=False)
                if self._due():
                    yield self._taken()
            if tag in self._waiting:
                os.lseek(file, at, os.SEEK_SET)
                _read(file, self._batch[:TAIL], status)
                self._link.send(self._batch[:TAIL], self._take)
                self.bytes += TAIL
                return
        except (PfsdError, OSError) as error:
            refusal = _refusal(error, f"reading {path}")
            if self._waiting.pop(tag, None) is not None:
                self._end_one(Outcome(path, error=refusal))
        self.bytes = before
        self._start_again()

    def _send_resumed(
        self, path: str, name: bytes, file: int, status: os.stat_result
    ) -> Iterator[list[Outcome[StoredFile]]]:
        """Send in frames what the daemon has not stored yet of a big file."""
        assert self._link is not None
        self._flush()
        tag, before = self._next_tag(), self.bytes
        self._waiting[tag] = path
        key = resume_key(path, status)
        size = b"chunked resume=%b" % key.encode()
        self._link.send(self._request(name, size, tag), self._take)
        while tag in self._waiting and tag not in self._offsets:
            self._receive()
        at = self._offsets.pop(tag, 0)
        self.bytes += at
        try:
            if at > status.st_size:
                raise _changed()
            while at < status.st_size and tag in self._waiting:
                count = min(MAX_FRAME, status.st_size - at)
                self._link.send(protocol.format_frame(count, tag, protocol.LF), self._take)
                sent = self._send_frame(file, at, count)
                if sent < count:
                    raise _changed()
                at += sent
                self.bytes += sent
                self._sending = UnderWay(path, at, status.st_size)
                self._receive(wait=False)
                if self._due():
                    yield self._taken()
            if tag in self._waiting:
                _read(file, self._batch[:0], status)
                self._link.send(protocol.format_frame(0, tag, protocol.LF), self._take)
                return
        except (PfsdError, OSError) as error:
            refusal = _refusal(error, f"reading {path}")
            if self._waiting.pop(tag, None) is not None:
                self._end_one(Outcome(path, error=refusal))
        self.bytes = before
        self._link.send(b"@%b ABORT\n" % tag, self._take)

    def _send_frame(self, file: int, offset: int, count: int) -> int:
        """Send the content of a frame, which zeros fill up if the file has no more; returns the bytes of the file."""
        assert self._link is not None
        sent = 0
        try:
            sent = self._link.send_file(file, offset, count, self._take)
        finally:
            # After the error of a file, too, the frame must be whole: an ABORT follows. Lost in a lost connection.
            if sent < count:
                with suppress(ConnectionLost):
                    self._link.send(bytes(count - sent), self._take)
        return sent

    def _start_again(self) -> None:
        """Leave an upload unfinished: the end of the connection is the end of it, after all others are answered."""
        assert self._link is not None
        if self._link.end():
            with suppress(ConnectionLost):
                while True:
                    self._receive()
        else:
            while self._waiting:
                self._receive()
        if self._waiting:
            raise ConnectionLost("the daemon closed the connection")
        self._link.close()
        self._open()

    # --- answers ---

    def _receive(self, wait: bool = True) -> None:
        assert self._link is not None
        if self._link.fill(wait):
            self._take()

    def _take(self) -> None:
        assert self._link is not None
        while (line := self._link.line()) is not None:
            reply = protocol.parse_reply(line)
            if reply is not None and reply.final:
                self._answered(_final(reply))
            elif reply is not None and reply.word == "RESUME" and reply.tag in self._waiting:
                self._offsets[reply.tag] = results.Fields(reply).number("offset")

    def _answered(self, reply: Reply) -> None:
        path = self._waiting.pop(reply.tag or b"", None)
        if path is None:
            return
        if reply.word == "OK":
            self._end_one(Outcome(path, results.stored_file(reply)))
        else:
            self._end_one(Outcome(path, error=reply.error()))


def resume_key(path: str, status: os.stat_result) -> str:
    """Stands for the content of a file of this machine, as far as its path and state tell it: 64 hexadecimal digits."""
    facts = [status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino, socket.gethostname()]
    text = "\0".join([os.path.realpath(path), *map(str, facts)])
    return hashlib.sha256(os.fsencode(text)).hexdigest()


def _read(file: int, view: memoryview, status: os.stat_result) -> None:
    """Fill the view with the rest of a file. Raises Changed when it is not what it was when `status` was taken."""
    filled = 0
    while filled < len(view) and (count := os.readv(file, [view[filled:]])):
        filled += count
    now = os.fstat(file)
    if filled < len(view) or now.st_size != status.st_size or now.st_mtime_ns != status.st_mtime_ns:
        raise _changed()


def _changed() -> Changed:
    return Changed("the source changed while it was read; nothing was stored")


# --- downloads ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Download:
    path: str
    draft: Draft
    offset: int = 0
    received: int = 0
    error: RequestError | None = None


#: Makes the draft of a path, or raises what forbids it.
Prepare = Callable[[bytes], _Download]


class Downloads(_Transfers[Retrieved]):
    """Retrieves files; each appears whole or not at all below `folder`, whose missing directories are made."""

    def __init__(self, connect: Callable[[], Link], folder: str, *, replace: bool, sync: bool) -> None:
        super().__init__(connect)
        self._folder = folder
        self._replace = replace
        self._sync = sync
        self._exhausted = False
        self._waiting: dict[bytes, _Download] = {}
        self._left = 0  # of the frame being received
        self._receiver: _Download | None = None  # of that frame; None throws it away

    def under_way(self) -> list[UnderWay]:
        """The files of which something has come, for who looks between two steps."""
        downloads = [each for each in self._waiting.values() if each.received]
        return [UnderWay(self._shown(each.path), each.offset + each.received, None) for each in downloads]

    def run(self, files: Iterable[tuple[Word, bytes]]) -> Iterator[list[Outcome[Retrieved]]]:
        """Retrieve files to relative paths. ConnectionLost ends it; every other error is an outcome.

        A path must not be absolute nor have empty, . or .. components. Raises OSError when there is no folder.
        """
        folders = Folders(self._folder)
        try:
            yield from self._run(iter(files), partial(self._prepared, folders))
        finally:
            folders.close()

    def resume(
        self, file: Word, path: str, key: str, parts: Iterable[tuple[int, str]]
    ) -> Iterator[list[Outcome[Retrieved]]]:
        """Retrieve one file, going on with what is there of it; what comes is kept even if not all does.

        `key` stands for the content, whose parts have these sizes and MD5s. Without a folder any path will do. Else as
        `run`.
        """

        def prepare(_: bytes) -> _Download:
            draft = KeptDraft(path, self._replace, key)
            return _Download(path, draft, draft.resume(parts))

        def prepare_below(name: bytes) -> _Download:
            return self._kept(folders, name, key, parts)

        if not self._folder:
            yield from self._run(iter([(file, os.fsencode(path))]), prepare)
            return
        folders = Folders(self._folder)
        try:
            yield from self._run(iter([(file, os.fsencode(path))]), prepare_below)
        finally:
            folders.close()

    def _kept(self, folders: Folders, name: bytes, key: str, parts: Iterable[tuple[int, str]]) -> _Download:
        path = local_path(name)
        folder, _, last = path.rpartition("/")
        descriptor = partial(folders.descriptor, folder)
        draft = KeptDraft(last, self._replace, key, folder=descriptor, shown=self._shown(path))
        return _Download(path, draft, draft.resume(parts))

    def _run(self, todo: Iterator[tuple[Word, bytes]], prepare: Prepare) -> Iterator[list[Outcome[Retrieved]]]:
        link = self._open()
        try:
            while not self._exhausted or self._waiting:
                self._ask(link, todo, prepare)
                if self._waiting:
                    link.fill()
                    self._take(link)
                if self._due():
                    yield self._taken()
            yield self._taken()
        except ConnectionLost:
            yield self._taken()
            raise
        finally:
            for download in self._waiting.values():
                with suppress(PfsdError, OSError):
                    download.draft.discard()
            link.close()

    def _ask(self, link: Link, todo: Iterator[tuple[Word, bytes]], prepare: Prepare) -> None:
        """Send requests if few are on their way."""
        if self._exhausted or len(self._waiting) > REFILL:
            return
        lines: list[bytes] = []
        while len(self._waiting) < WINDOW and len(self._outcomes) < STEP_FILES:
            if (found := next(todo, None)) is None:
                self._exhausted = True
                break
            file, path = found
            try:
                lines.append(self._begin(file, prepare(path)))
            except (PfsdError, OSError) as error:
                shown = os.fsdecode(path)
                self._end_one(Outcome(shown, error=_refusal(error, f"writing {self._shown(shown)}")))
        link.send(b"".join(lines), partial(self._take, link))

    def _prepared(self, folders: Folders, name: bytes) -> _Download:
        path = local_path(name)
        folder, _, last = path.rpartition("/")
        draft = Draft(last, self._replace, folder=partial(folders.descriptor, folder), shown=self._shown(path))
        draft.check()
        return _Download(path, draft)

    def _shown(self, path: str) -> str:
        """A path as people know it."""
        return path if self._folder in ("", ".") else os.path.join(self._folder, path)

    def _begin(self, file: Word, download: _Download) -> bytes:
        tag = self._next_tag()
        self._waiting[tag] = download
        self.bytes += download.offset
        options = {"offset": download.offset} if download.offset else None
        return protocol.format_request("get", (file, Word(b"-")), options, tag)

    # --- answers ---

    def _take(self, link: Link) -> None:
        while True:
            if self._left:
                content = link.content(self._left)
                if not len(content):
                    return
                self._left -= len(content)
                if self._receiver is not None:
                    self._write(self._receiver, content)
            elif (line := link.line()) is not None:
                self._line(line)
            else:
                return

    def _line(self, line: bytes) -> None:
        tag, rest = protocol.split_tag(line)
        if rest.startswith(b"DATA "):
            if not rest[5:].isdigit() or int(rest[5:]) > MAX_FRAME:
                raise nonsense()
            self._left = int(rest[5:])
            self._receiver = self._waiting.get(tag or b"")
            return
        reply = protocol.parse_reply(line)
        if reply is not None and reply.final and (download := self._waiting.pop(_final(reply).tag or b"", None)):
            self._end(download, reply)

    def _write(self, download: _Download, content: memoryview) -> None:
        if download.error is not None:
            return
        try:
            if not download.draft.is_open:
                download.draft.open()
            download.draft.write(content)
            download.received += len(content)
            self.bytes += len(content)
        except (PfsdError, OSError) as error:
            download.error = _refusal(error, f"writing {self._shown(download.path)}")

    def _end(self, download: _Download, reply: Reply) -> None:
        try:
            self._end_one(Outcome(download.path, self._complete(download, reply)))
        except (PfsdError, OSError) as error:
            self.bytes -= download.offset + download.received
            self._end_one(Outcome(download.path, error=_refusal(error, f"writing {self._shown(download.path)}")))
        finally:
            with suppress(PfsdError, OSError):
                download.draft.discard()

    def _complete(self, download: _Download, reply: Reply) -> Retrieved:
        if download.error is not None:
            raise download.error
        if reply.word != "OK":
            raise reply.error()
        retrieved = results.retrieved(reply)
        if retrieved.transferred != download.received:
            count = f"{download.received} instead of {retrieved.transferred}"
            raise ConnectionLost(f"{count} bytes came, so this daemon and this client misunderstand each other")
        if not download.draft.is_open:
            download.draft.open()  # an empty file has no frames
        download.draft.commit(self._sync)
        return retrieved
