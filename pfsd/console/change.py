"""Commands that change or check what is stored: `delete`, `rename`, `verify`, `exit`."""

from __future__ import annotations

import asyncio
import os
from argparse import Namespace
from collections.abc import Collection
from dataclasses import asdict

from pfsd.client import Client, DeleteReport, FileInfo, FileRef, Progress, VerifyReport
from pfsd.console.files import expanded, in_lines, reference
from pfsd.console.output import DONE, Output, show_count, show_name, show_size
from pfsd.console.tally import Tally
from pfsd.errors import Corrupt, NotFound, NotReady
from pfsd.progress import Watch


async def delete(client: Client, arguments: Namespace, out: Output, watch: Watch) -> int:
    """Delete files, in as few requests as their names fit into."""
    single, matched = await expanded(client, arguments.files, arguments)
    groups = in_lines([*single, *(file.id for file in matched)])
    if arguments.dry_run:
        return _would_delete([*await _looked_up(client, single), *matched], out)
    if len(groups) > 1:
        await _looked_up(client, single)  # a request looks up its own only, and one unknown is to keep all
    vanishing = {file.id for file in matched}
    files = parts = freed = 0
    for group in groups:
        report = await _delete(client, group, vanishing)
        for file in report.deleted:
            out.done("deleted", asdict(file), f"{show_name(file.name)}: deleted, {show_size(file.freed)} freed")
        files, parts, freed = files + report.files, parts + report.parts, freed + report.freed
    out.done("delete", {"files": files, "parts": parts, "freed": freed})
    return DONE


async def _looked_up(client: Client, files: list[FileRef]) -> list[FileInfo]:
    """All about files, asked for at once. NotFound for the first one that is not there."""
    return [found.file for found in await asyncio.gather(*(client.stat(file) for file in files))]


async def _delete(client: Client, group: list[FileRef], vanishing: Collection[int]) -> DeleteReport:
    """Delete a group of files; those that a pattern matched may be gone by now."""
    while group:
        try:
            return await client.delete(*group)
        except (NotFound, NotReady) as error:
            id = int(error.fields.get("id", -1))
            if id not in vanishing or id not in group:
                raise
            group = [file for file in group if file != id]
    return DeleteReport(0, 0, 0, ())


def _would_delete(files: list[FileInfo], out: Output) -> int:
    tally = Tally(out, whole=True)
    for file in files:
        tally.would("delete", file.size, f"{show_name(file.name)} ({show_size(file.size)})", name=file.name)
    return tally.end("delete", "would be deleted")


async def rename(client: Client, arguments: Namespace, out: Output, watch: Watch) -> int:
    """Give a file another name."""
    file = reference(arguments.file, arguments)
    renamed = await client.rename(file, os.fsencode(arguments.name), replace=arguments.replace)
    out.done("rename", asdict(renamed), f"{renamed.id}: renamed to {show_name(renamed.name)}")
    return DONE


async def verify(client: Client, arguments: Namespace, out: Output, watch: Watch) -> int:
    """Have parts read and checked."""
    single, matched = await expanded(client, arguments.files, arguments)
    with watch("verify") as progress:
        report = await _verify(client, [*single, *(file.id for file in matched)], progress)
    for bad in report.bad:
        text = f"{show_name(bad.name)}: part {bad.seq} at {bad.offset} is bad: {bad.code}"
        out.row("bad", asdict(bad), text)
    facts = {"files": report.files, "parts": report.parts, "bytes": report.bytes, "bad": len(report.bad)}
    text = (
        f"{show_count(report.files, 'file')}, {show_count(report.parts, 'part')}, {show_size(report.bytes)} checked: "
    )
    out.done("verify", facts, text + (f"{show_count(len(report.bad), 'part')} bad" if report.bad else "all are sound"))
    if report.bad:
        raise Corrupt(f"{show_count(len(report.bad), 'part')} failed their checks", bad=len(report.bad))
    return DONE


async def _verify(client: Client, files: list[FileRef], progress: Progress | None) -> VerifyReport:
    """Of as many requests as it takes, what they found together; all, if no file is named."""
    reports = [await client.verify(*group, progress=progress) for group in in_lines(files) or [[]]]
    return VerifyReport(
        sum(report.files for report in reports),
        sum(report.parts for report in reports),
        sum(report.bytes for report in reports),
        tuple(bad for report in reports for bad in report.bad),
    )


async def exit(client: Client, arguments: Namespace, out: Output, watch: Watch) -> int:
    """Shut the daemon down."""
    await client.exit()
    out.done("exit", {}, "the daemon has stopped")
    return DONE
