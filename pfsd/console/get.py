"""`get` and `cat`: to paths, to directories and to standard output."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from pfsd import excludes, tree
from pfsd.client import Client, DamagedCopy, FileInfo, FileRef, Progress, Retrieved
from pfsd.console import same
from pfsd.console.files import below, expanded, fixed_part, is_pattern, matching, readable, reference
from pfsd.console.output import DONE, Output, show_name, show_size
from pfsd.console.tally import Tally
from pfsd.console.totals import of_total, size_of
from pfsd.errors import Denied, NotFound, RequestError, UsageError, from_os_error
from pfsd.progress import Meter, Watch
from pfsd.transfer import in_thread

#: With --resume bigger files are kept when they are cut short; smaller ones are not worth it.
KEPT = 4 << 20


class _Planned(NamedTuple):
    """A file, and the path below the target that it is to have."""

    file: FileInfo
    path: bytes


async def get(client: Client, arguments: Namespace, out: Output, watch: Watch) -> int:
    """Retrieve a file, or all that a prefix or a pattern means."""
    ranged = bool(arguments.offset or arguments.length is not None or arguments.zero_damage)
    streamed = arguments.target == "-" or ranged
    if arguments.recursive or is_pattern(arguments.file, arguments):
        if arguments.recursive and streamed:
            raise UsageError("-r retrieves whole files to a directory: no -, --offset, --length, --zero-damage")
        plan = await _planned(client, arguments)
        if plan is not None:
            if streamed:
                raise UsageError("a pattern retrieves whole files to a directory: no -, --offset and the like; or cat")
            return await _get_all(client, plan, arguments, out, watch)
    if arguments.exclude or arguments.exclude_from:
        raise UsageError("--exclude is for many files: it goes with -r and patterns")
    if arguments.resume and streamed:
        raise UsageError("--resume is for whole files: no -, --offset, --length, --zero-damage")
    if arguments.target == "-":
        out.to_stderr()
    file = (await client.stat(reference(arguments.file, arguments))).file
    target = arguments.target or _local_name(file.name, file.name)
    if arguments.dry_run:
        _would_get(Tally(out, whole=False), file, target)
        return DONE
    if streamed:
        return await _get_stream(client, file, target, arguments, out, watch)
    return await _get_one(client, file, target, arguments, out, watch)


async def cat(client: Client, arguments: Namespace, out: Output, watch: Watch) -> int:
    """Write content to standard output, one file after the other."""
    out.to_stderr()
    single, found = await expanded(client, arguments.files, arguments)
    infos = [(await client.stat(file)).file for file in single]
    for file in [*infos, *sorted(found, key=lambda file: file.name)]:
        out.done("get", asdict(await _get_content(client, file, "-", arguments, None)))
    return DONE


# --- one file -----------------------------------------------------------------------------------


async def _get_one(client: Client, file: FileInfo, target: str, arguments: Namespace, out: Output, watch: Watch) -> int:
    tally = Tally(out, whole=False)
    folder, name = os.path.split(target)
    if name in ("", ".", ".."):
        raise Denied(f"{target} does not name a file")
    with watch(show_name(file.name)) as progress:
        if arguments.resume:
            tally.retrieved(await _resumed(client, file, target, None, arguments, progress), target)
        else:
            report = None if progress is None else of_total(progress, file.size)
            await _get_regular(client, [(file.id, name)], folder, arguments, tally, report)
    return tally.end("get", "written")


async def _resumed(
    client: Client, file: FileInfo, path: str, folder: str | None, arguments: Namespace, progress: Progress | None
) -> Retrieved:
    report = None if progress is None else of_total(progress, file.size)
    options = {"replace": arguments.replace, "sync": arguments.sync}
    return await client.get_resumed(file.id, path, folder=folder, progress=report, **options)


async def _get_regular(
    client: Client,
    files: Sequence[tuple[FileRef, str | bytes]],
    folder: str,
    arguments: Namespace,
    tally: Tally,
    report: Progress | None,
    progress: Meter | None = None,
) -> None:
    """Write whole files to below a folder."""
    options = {"replace": arguments.replace, "sync": arguments.sync}
    under_way = None if progress is None else progress.under_way
    try:
        async for outcome in client.get_many(files, folder or ".", progress=report, under_way=under_way, **options):
            target = os.path.join(folder, outcome.path)
            if outcome.result is not None:
                tally.retrieved(outcome.result, target)
            elif outcome.error is not None:
                tally.failed(outcome.error, target)
    except OSError as error:
        raise from_os_error(error, f"writing below {folder}") from None


async def _get_stream(
    client: Client, file: FileInfo, target: str, arguments: Namespace, out: Output, watch: Watch
) -> int:
    """Retrieve a range, or to standard output, or what is left of a damaged file."""
    tally = Tally(out, whole=False)
    try:
        with watch(show_name(file.name)) as progress:
            retrieved = await _get_content(client, file, target, arguments, progress)
    except DamagedCopy as error:
        for lost in error.damage:
            out.row("damage", asdict(lost), f"{show_name(file.name)}: {lost.length} bytes at {lost.offset} are zeros")
        raise
    if target == "-":
        out.done("get", asdict(retrieved))
    else:
        tally.retrieved(retrieved, target)
    return DONE


async def _get_content(
    client: Client, file: FileInfo, target: str, arguments: Namespace, progress: Progress | None
) -> Retrieved:
    sink = open(1, "wb", buffering=0, closefd=False) if target == "-" else Path(target)  # noqa: SIM115, ASYNC230
    asked = vars(arguments)
    try:
        return await client.get_to(
            file.id,
            sink,
            offset=asked.get("offset", 0),
            length=asked.get("length"),
            replace=asked.get("replace", False),
            zero_damage=asked.get("zero_damage", False),
            sync=asked.get("sync", False),
            progress=progress,
        )
    except BrokenPipeError:
        raise
    except OSError as error:
        raise from_os_error(error, f"writing {target}") from None


def _local_name(path: bytes, shown: bytes) -> str:
    """The last component of a stored name, as a local name."""
    name = os.fsdecode(path.rpartition(b"/")[2])
    if name in ("", ".", "..", "-"):
        raise UsageError(f"{show_name(shown)} makes no local file name; name a TARGET")
    return name


def _would_get(tally: Tally, file: FileInfo, target: str) -> None:
    path = os.fsencode(target)
    text = f"{show_name(file.name)} to {show_name(path)} ({show_size(file.size)})"
    tally.would("get", file.size, text, name=file.name, target=path)


# --- all of a prefix or pattern -----------------------------------------------------------------


async def _planned(client: Client, arguments: Namespace) -> list[_Planned] | None:
    """The files that -r or a pattern means; None if it is one file that is called like a pattern."""
    word = os.fsencode(arguments.file)
    if arguments.recursive:
        prefix = word.rstrip(b"/") + b"/"
        found = await readable(client, below(prefix))
        if not found:
            raise NotFound(f"no stored file has a name that begins with {show_name(prefix)}")
    else:
        prefix = fixed_part(word)
        found = await matching(client, word)
        if [file.name for file in found] == [word]:
            return None
    return [_Planned(file, file.name[len(prefix) :]) for file in found]


async def _get_all(client: Client, plan: list[_Planned], arguments: Namespace, out: Output, watch: Watch) -> int:
    tally = Tally(out, whole=True)
    left_out = excludes.read(arguments.exclude, arguments.exclude_from)
    kept = [planned for planned in plan if not left_out.leaves_out_file(os.fsdecode(planned.path))]
    tally.excluded = len(plan) - len(kept)
    word = os.fsencode(arguments.file).rstrip(b"/")
    folder = arguments.target or (_local_name(word, word + b"/") if arguments.recursive else ".")
    did = f"written to {show_name(os.fsencode(folder))}"
    if arguments.dry_run:
        for file, path in kept:
            _would_get(tally, file, os.path.join(folder, os.fsdecode(path)))
        return tally.end("get", f"would be {did}")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, f"making {folder}") from None
    with tally.told("get", did), watch(tally.progress) as progress:
        await _get_planned(client, kept, folder, arguments, tally, progress)
    return tally.end("get", did)


async def _get_planned(
    client: Client, plan: list[_Planned], folder: str, arguments: Namespace, tally: Tally, progress: Meter | None
) -> None:
    if arguments.resume:
        plan = await _without_those_there(client, plan, folder, tally)
    small = [planned for planned in plan if not arguments.resume or planned.file.size <= KEPT]
    big = [planned for planned in plan if arguments.resume and planned.file.size > KEPT]
    total = sum(planned.file.size for planned in plan)
    report = None if progress is None else of_total(progress, total)
    files: list[tuple[FileRef, str | bytes]] = [(file.id, path) for file, path in small]
    if files:
        await _get_regular(client, files, folder, arguments, tally, report, progress)
    for file, path in big:
        target = os.path.join(folder, os.fsdecode(path))
        with_rest = None if progress is None else _behind(progress, tally.size, total)
        try:
            tally.retrieved(await _resumed(client, file, os.fsdecode(path), folder, arguments, with_rest), target)
        except RequestError as error:
            tally.failed(error, target)
        except OSError as error:
            tally.failed(from_os_error(error, f"writing {target}"), target)


def _behind(progress: Progress, before: int, total: int) -> Progress:
    """Tells `progress` of one file of many, after those before."""

    def report(done: int, _: int | None) -> None:
        progress(before + done, total)

    return report


async def _without_those_there(client: Client, plan: list[_Planned], folder: str, tally: Tally) -> list[_Planned]:
    """The files that are not below the folder yet; content is compared, part by part."""

    def candidates() -> list[same.Pair]:
        found = []
        for file, name in plan:
            try:
                path = os.path.join(folder, tree.local_path(name))
            except Denied:
                continue  # who retrieves it will hear of it
            if size_of(path) == file.size:
                found.append((path, file))
        return found

    there = {file.id for _, file in await same.pairs(client, await in_thread(candidates))}
    tally.unchanged = len(there)
    return [planned for planned in plan if planned.file.id not in there]
