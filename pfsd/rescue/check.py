"""`server.py check`: say what of a store is damaged, and change nothing."""

from __future__ import annotations

from pfsd.config import Config
from pfsd.errors import RegistryDamaged
from pfsd.journal import Verdict
from pfsd.rescue import survey as surveys
from pfsd.rescue.directory import Directory, opened, translated
from pfsd.rescue.reconcile import Plan, candidates, reconcile
from pfsd.rescue.report import Report, counted
from pfsd.rescue.salvage import Salvage
from pfsd.rescue.survey import Survey

DAMAGED = RegistryDamaged.exit_code


def check(config: Config, report: Report, data: bool) -> int:
    """Hold journal and packs against each other, with `data` also all content against its MD5; the exit code.

    StoreUnavailable when there is no store or a daemon has it.
    """
    with opened(config.path) as directory:
        verdict, salvage = directory.read_journal()
        if verdict.state == "missing" and not directory.has_packs():
            report.next("The store is empty: neither a journal nor packs. The daemon can begin in it:", "")
            return 0
        found, plan = look(directory, verdict, salvage, config.processes, data)
        report.journal(directory, verdict, salvage)
        report.mended(salvage)
        damaged = report.bad_files(salvage.registry, found.bad)
        report.plan(plan, salvage, "can come back")
        report.packs(directory, found, plan)
        with translated(directory.path):
            report.leftovers(list(directory.leftovers()))
        _sum_up(report, salvage, found, plan, data)
        return _advise(report, verdict, damaged, plan, data)


def look(
    directory: Directory, verdict: Verdict, salvage: Salvage, processes: int, data: bool = False
) -> tuple[Survey, Plan]:
    """Read the packs, with `data` all their content, and work out what follows. StorageFailed."""
    store = store_id(directory, verdict)
    with translated(directory.path):
        found = surveys.survey(directory.store, salvage.registry, store)
        surveys.note_lost(found, directory.lost_packs(), store)
        if data:
            surveys.prove_known(found, salvage.registry, directory.path, store, processes)
        surveys.prove_loose(found, directory.path, store, candidates(salvage, found), processes)
    return found, reconcile(salvage, found)


def store_id(directory: Directory, verdict: Verdict) -> bytes:
    """16 bytes that name the store: of the journal's header, else of most packs."""
    if verdict.store:
        return bytes.fromhex(verdict.store)
    return surveys.store_of_packs(directory.store) or bytes(16)


def _sum_up(report: Report, salvage: Salvage, found: Survey, plan: Plan, data: bool) -> None:
    registry = salvage.registry
    kept = len(registry.interrupted())
    how = "read and compared with its MD5" if data else "headers only; --data reads all content"
    message = (
        f"{counted(registry.files_ready, 'file')}, {counted(registry.parts_ready, 'part')} in "
        f"{counted(len(found.packs), 'pack')} ({how})"
    )
    if kept:
        message += f"; {counted(kept, 'interrupted put')}"
    if plan.litter:
        message += f"; {counted(len(plan.litter), 'pack')} of no file, which the next start removes"
    if plan.entered:
        message += f"; {counted(len(plan.entered), 'file')} recoverable with rebuild"
    facts = {"files": registry.files_ready, "parts": registry.parts_ready, "packs": len(found.packs)}
    report.say("summary", message, **facts, unused=len(plan.litter), recoverable=len(plan.entered), data=data)


def _advise(report: Report, verdict: Verdict, damaged: int, plan: Plan, data: bool) -> int:
    """The next command; the exit code."""
    if verdict.state in ("damaged", "missing"):
        if plan.needs_packs or not verdict.store:
            report.next("The daemon does not start like this. Make the registries anew from the packs with:", "rebuild")
        else:
            report.next("The daemon does not start like this. Mend the journal with:", "repair")
        return DAMAGED
    if damaged:
        if plan.needs_packs:
            report.next("Some of what is damaged, or of what no record tells, is in the packs. Use it with:", "rebuild")
        elif plan.damaged:
            report.next(
                "Mark the damaged parts, so that `list` shows them, with:", "repair --data" if data else "repair"
            )
        else:
            report.next(
                "The damaged parts are marked. With a daemon, `get ... on_error=zero` saves the rest of these files, "
                "and storing them again with replace=yes mends them:",
                "",
            )
        return DAMAGED
    if plan.entered:
        report.next(
            "All agrees, but for files whose put was not answered, or whose record was cut off at the journal's end. "
            "The next start of the daemon removes their packs. To keep them, before that:",
            "rebuild",
        )
        return 0
    report.next("All agrees. The daemon can start:", "")
    return 0
