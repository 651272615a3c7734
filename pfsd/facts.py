"""What the daemon says of itself, as plain fields: for `stats`, `ps`, and the status page.

Everything here is a look at numbers that are kept anyway; nothing walks through files.
"""

from __future__ import annotations

import os
import time

import pfsd
from pfsd.activity import Command
from pfsd.calls import Service
from pfsd.protocol import Value
from pfsd.registry import Registry
from pfsd.workers import SlotState


def stats(service: Service) -> dict[str, Value]:
    """The counters of `stats`: sizes in bytes, times in seconds."""
    engine, registry, activity = service.engine, service.engine.registry, service.activity
    return {
        "version": pfsd.__version__,
        "state": service.state(),
        "uptime": int(time.monotonic() - service.started),
        "files": registry.files_ready,
        "parts": registry.parts_ready,
        "size": registry.size,
        "stored": registry.stored,
        "waste": service.reclaimer.waste,
        "packs_copied": service.reclaimer.copied,
        "reclaimed": service.reclaimer.freed,
        "verify_every": f"{service.scrubber.every / 86_400:g}",
        "verified_oldest": service.scrubber.oldest,
        "verified_parts": service.scrubber.parts,
        "bad_parts": registry.known_bad,
        "memory_limit": engine.budget.limit,
        "memory_used": engine.budget.used,
        "memory_peak": engine.budget.peak,
        **engine.coding.facts,
        "processes": len(engine.workers),
        "processes_busy": engine.workers.busy,
        "processes_replaced": engine.workers.replaced,
        "clients": len(service.sessions),
        "max_clients": service.max_clients,
        "requests": len(service.running),
        "bytes_in": activity.bytes_in,
        "bytes_out": activity.bytes_out,
        "commands_total": activity.commands,
        "errors_total": activity.errors,
        "journal_bytes": engine.committer.journal_size,
        "journal_syncs": engine.committer.syncs,
        "journal_records": engine.committer.records,
        "pid": os.getpid(),
    }


def command(command: Command, registry: Registry, now: float) -> dict[str, Value]:
    """A command at work, without what is not known; `now` is a time of `time.monotonic`."""
    facts: dict[str, Value | None] = {
        "id": command.id,
        "verb": command.verb,
        "client": command.client,
        "tag": command.request.tag,
        "seconds": f"{now - command.since:.1f}",
        "bytes": command.progress.bytes if command.moves_content else None,
        "total": command.progress.total,
        "name": command.name(registry),
    }
    return _known(facts)


def slot(slot: SlotState, now: float) -> dict[str, Value]:
    """What an I/O process is doing, without what is not known; `now` is a time of `time.monotonic`."""
    facts: dict[str, Value | None] = {
        "slot": slot.number,
        "pid": slot.pid,
        "state": slot.state,
        "task": slot.task,
        "seconds": None if slot.since is None else f"{now - slot.since:.1f}",
        "done": slot.done,
        "restarts": slot.restarts,
    }
    return _known(facts)


def _known(facts: dict[str, Value | None]) -> dict[str, Value]:
    return {key: value for key, value in facts.items() if value is not None}
