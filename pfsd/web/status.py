"""What the status page shows, as JSON: the daemon as a whole, and its files page by page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from itertools import islice
from typing import Any

from pfsd import facts
from pfsd.calls import Service
from pfsd.protocol import Value
from pfsd.registry import File
from pfsd.web.history import History

#: Rows of commands and of damaged files; there may be more, which are only counted.
MOST_COMMANDS = 100
MOST_DAMAGED = 100
#: Files in one answer, and how many are looked at for it: a search goes on where that ended.
MOST_FILES = 500
LOOKED_AT = 20_000
#: Files looked at before everybody else gets a turn.
PAGE = 500


def status(service: Service, history: History) -> dict[str, Any]:
    """The daemon now: what `stats` and `ps` say, the last minutes, and what is damaged."""
    registry, now = service.engine.registry, time.monotonic()
    return {
        "stats": _as_json(facts.stats(service)) | {"verify_every": service.scrubber.every / 86_400},
        "disk_free": service.free(),
        "commands": [
            _as_json(facts.command(command, registry, now))
            for command in islice(service.activity.running(), MOST_COMMANDS)
        ],
        "workers": [_as_json(facts.slot(slot, now)) for slot in service.engine.workers.slots()],
        "history": history.as_json(now),
        "damaged_files": registry.files_damaged,
        "damaged": [
            _file_as_json(file) | {"bad": len(registry.bad_parts(file.id))} for file in registry.damaged(MOST_DAMAGED)
        ],
    }


async def files(service: Service, after: int, most: int, part_of_name: str) -> dict[str, Any]:
    """Up to `most` files with ids above `after` whose names hold this text, in whatever case.

    `next` is the id to go on after, None at the end. There may be fewer files than asked for, even none, and more to
    come.
    """
    wanted = part_of_name.casefold()
    found: list[File] = []
    last, looked_at = after, 0
    while len(found) < most and looked_at < LOOKED_AT:
        page = service.engine.registry.files_after(last, PAGE)
        if not page:
            return {"files": [_file_as_json(file) for file in found], "next": None}
        for file in page:
            last = file.id
            looked_at += 1
            if wanted in text(file.name).casefold():
                found.append(file)
                if len(found) == most:
                    break
        await asyncio.sleep(0)
    more = service.engine.registry.files_after(last, 1)
    return {"files": [_file_as_json(file) for file in found], "next": last if more else None}


def checks(service: Service) -> dict[str, bool]:
    """What has to hold for a daemon that can be used, and whether it does."""
    state = service.state()
    return {
        "journal": not service.engine.committer.failed and state != "readonly",
        "processes": any(slot.state != "down" for slot in service.engine.workers.slots()),
        "room": state != "full",
        "serving": state != "stopping",
    }


def text(name: bytes) -> str:
    """A name to show, with \\xNN for bytes that are no UTF-8."""
    return name.decode("utf-8", "backslashreplace")


def _file_as_json(file: File) -> dict[str, Any]:
    return {
        "id": file.id,
        "status": file.status.value,
        "size": file.size,
        "stored": file.stored,
        "parts": file.parts,
        "created": file.created // 1_000_000_000,
        "name": text(file.name),
    }


#: What facts have with decimals, for which the line protocol has only text.
_DECIMALS = frozenset({"seconds"})


def _as_json(fields: Mapping[str, Value]) -> dict[str, Any]:
    return {
        key: float(value) if key in _DECIMALS else text(value) if isinstance(value, bytes) else value
        for key, value in fields.items()
    }
