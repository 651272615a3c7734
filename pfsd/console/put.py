"""`put`: files, directories and what comes from standard input."""

from __future__ import annotations

import os
import stat
from argparse import Namespace
from collections.abc import Callable, Collection, Iterator
from contextlib import aclosing
from pathlib import Path

from pfsd import excludes, producer, tree
from pfsd.client import Client, FileInfo, Source
from pfsd.console import same, totals
from pfsd.console.files import below, readable
from pfsd.console.output import Output, show_name, show_size
from pfsd.console.tally import Tally
from pfsd.errors import Denied, NotFound, RequestError, UsageError, from_os_error
from pfsd.progress import Watch
from pfsd.transfer import in_thread

#: A local path, and the name it is to have in the store.
Named = tuple[str, bytes]


async def put(client: Client, arguments: Namespace, out: Output, watch: Watch) -> int:
    """Store files."""
    paths: list[str] = arguments.files
    if arguments.from_command is not None:
        return await _put_output(client, arguments, out, watch)
    if not paths:
        raise UsageError("nothing to store: put FILE, put - --name NAME or put --from-command COMMAND --name NAME")
    if len(paths) > 1 and (arguments.name is not None or "-" in paths):
        raise UsageError("--name and - go with one FILE only")
    if arguments.resume and "-" in paths:
        raise UsageError("--resume is for files: it does not go with -")
    if (arguments.exclude or arguments.exclude_from) and not arguments.recursive:
        raise UsageError("--exclude is for directories: it goes with -r")
    if paths == ["-"] and arguments.name is None:
        raise UsageError("standard input has no name: put - --name NAME")
    names = [path_name(path) if arguments.name is None else os.fsencode(arguments.name) for path in paths]
    tally = Tally(out, arguments.recursive)
    regular: list[Named] = []
    for path, name in zip(paths, names, strict=True):
        if path == "-" or _is(path, _is_special):
            await _put_stream(client, path, name, arguments, tally, watch)
        elif not arguments.recursive and _is(path, stat.S_ISDIR):
            tally.failed(Denied(f"{path} is a directory; -r stores the files below it"), path)
        else:
            regular.append((path, name))
    did = "would be stored" if arguments.dry_run else "stored"
    if regular:
        with tally.told("put", did):
            await _put_regular(client, _Sources(regular, arguments, tally), arguments, tally, watch)
    if arguments.recursive and not (tally.files or tally.failures or tally.unchanged):
        raise NotFound(f"there is no regular file below {', '.join(paths)} to be stored; nothing was stored")
    return tally.end("put", did)


async def _put_output(client: Client, arguments: Namespace, out: Output, watch: Watch) -> int:
    """Store what a command prints, if it succeeds."""
    if arguments.files or arguments.recursive or arguments.resume or arguments.dry_run:
        raise UsageError("--from-command goes with no FILE, -r, --resume or --dry-run")
    if arguments.name is None:
        raise UsageError("what a command prints has no name: put --from-command COMMAND --name NAME")
    tally, name = Tally(out, whole=False), os.fsencode(arguments.name)
    async with aclosing(producer.output(arguments.from_command)) as source:
        with watch(show_name(name)) as progress:
            tally.stored(await client.put(source, name, replace=arguments.replace, progress=progress))
    return tally.end("put", "stored")


def _is(path: str, kind: Callable[[int], bool]) -> bool:
    """Whether there is something of this kind at a path."""
    try:
        return kind(os.stat(path).st_mode)
    except OSError:
        return False  # who opens it will hear of it


def _is_special(mode: int) -> bool:
    """Whether it is something like a FIFO, of which nobody knows how much will come."""
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


class _Sources:
    """The regular files that are to be stored: those named, and with -r those below directories.

    They are walked by threads, each time anew; what is noted meanwhile is told by `tell`.
    """

    def __init__(self, paths: list[Named], arguments: Namespace, tally: Tally) -> None:
        self.paths = paths
        self._recursive: bool = arguments.recursive
        self._excludes = excludes.read(arguments.exclude, arguments.exclude_from)
        self._tally = tally
        self._noted: list[tuple[str, str | RequestError]] = []
        self._excluded = 0
        self.single = len(paths) == 1 and not arguments.recursive

    def walk(self) -> Iterator[Named]:
        """The files. Only one such walk of all is to be told of."""
        return self._walk(self._note, self._leave_out)

    def walk_silently(self) -> Iterator[Named]:
        """The same files, and nothing is noted."""
        return self._walk(lambda *_: None, self._excludes.leaves_out)

    def _walk(self, note: tree.PassedOver, leave_out: Callable[[str, bool], bool]) -> Iterator[Named]:
        for path, name in self.paths:
            if self._recursive and _is(path, stat.S_ISDIR):
                yield from tree.walk(path, name, note, leave_out)
            else:
                yield path, name

    def _note(self, path: str, why: str | RequestError) -> None:
        self._noted.append((path, why))

    def _leave_out(self, path: str, is_folder: bool) -> bool:
        found = self._excludes.leaves_out(path, is_folder)
        self._excluded += found
        return found

    def tell(self) -> None:
        """Tell what the walk has noted since the last call."""
        while self._noted:
            self._tally.pass_over(*self._noted.pop(0))
        self._tally.excluded = self._excluded


async def _put_regular(client: Client, sources: _Sources, arguments: Namespace, tally: Tally, watch: Watch) -> None:
    there: Collection[bytes] = ()
    if arguments.resume and arguments.recursive:
        there = await _there_already(client, sources)
    files = (file for file in sources.walk() if not _passed(file, there, tally))
    if arguments.dry_run:
        for path, name, size in await in_thread(_sized, files):
            source, stored = os.fsencode(path), show_name(name)
            text = f"{show_name(source)} as {stored} ({show_size(size)})"
            tally.would("put", size, text, path=source, name=name)
        sources.tell()
        return
    with (
        watch(show_name(sources.paths[0][1]) if sources.single else tally.progress) as progress,
        totals.counted(sources.walk_silently, progress) as report,
    ):
        options = {"replace": arguments.replace, "resume": arguments.resume}
        under_way = None if progress is None or sources.single else progress.under_way
        async for outcome in client.put_many(files, progress=report, under_way=under_way, **options):
            sources.tell()
            if outcome.result is not None:
                tally.stored(outcome.result)
            elif outcome.error is not None:
                tally.failed(outcome.error, outcome.path)
        sources.tell()


def _passed(file: Named, there: Collection[bytes], tally: Tally) -> bool:
    if file[1] not in there:
        return False
    tally.unchanged += 1
    return True


def _sized(files: Iterator[Named]) -> list[tuple[str, bytes, int]]:
    return [(path, name, totals.size_of(path) or 0) for path, name in files]


async def _there_already(client: Client, sources: _Sources) -> set[bytes]:
    """The names under which the store has what is to be stored: content is compared, part by part.

    Of a file that is damaged the store has the MD5s, and not the content.
    """
    stored: dict[bytes, FileInfo] = {}
    for _, name in sources.paths:
        found = await readable(client, below(name))
        stored |= {file.name: file for file in found if file.status != "damaged"}

    def candidates() -> list[same.Pair]:
        found = [(path, stored[name]) for path, name in sources.walk_silently() if name in stored]
        return [(path, file) for path, file in found if totals.size_of(path) == file.size]

    return {file.name for _, file in await same.pairs(client, await in_thread(candidates))}


async def _put_stream(client: Client, path: str, name: bytes, arguments: Namespace, tally: Tally, watch: Watch) -> None:
    """Store what comes from standard input, a FIFO or a device."""
    if arguments.dry_run:
        source_name = os.fsencode(path)
        tally.would("put", 0, f"what comes from {show_name(source_name)} as {show_name(name)}", name=name)
        return
    try:
        source: Source = Path(path)
        size = None
        if path == "-":
            # Not sys.stdin: its lock would be held by a thread that hangs in a read.
            source = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115, ASYNC230
            size = _rest_of(source.fileno())
        with watch(show_name(name)) as progress:
            tally.stored(await client.put(source, name, replace=arguments.replace, size=size, progress=progress))
    except OSError as error:
        tally.failed(from_os_error(error, f"reading {path}"), path)
    except RequestError as error:
        tally.failed(error, path)


def _rest_of(descriptor: int) -> int | None:
    """Bytes left in a regular file."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return None
    return max(0, status.st_size - os.lseek(descriptor, 0, os.SEEK_CUR))


def path_name(path: str) -> bytes:
    """The last component of a path, which names what is stored. UsageError when there is none."""
    name = os.path.basename(path.rstrip("/"))
    if name in ("", ".", ".."):
        raise UsageError(f"{path} gives no name to store under; say --name NAME")
    return os.fsencode(name)
