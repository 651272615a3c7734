"""`server.py rebuild`: make the registries anew, from what can be read of the journal and from the packs."""

from __future__ import annotations

from pfsd.config import Config
from pfsd.journal import Verdict
from pfsd.rescue import rewrite
from pfsd.rescue.check import look, store_id
from pfsd.rescue.directory import Directory, opened
from pfsd.rescue.reconcile import Plan
from pfsd.rescue.report import Report, counted
from pfsd.rescue.salvage import Salvage


def rebuild(config: Config, report: Report, dry_run: bool) -> int:
    """Bring back all that journal and packs tell of; with `dry_run` only say what that is. The exit code.

    Nothing is removed: the old journal is kept beside the new one, and packs that may be missed are moved to lost/.
    StoreUnavailable, StorageFailed; the store is then as before, but for packs that were moved.
    """
    with opened(config.path) as directory:
        verdict, salvage = directory.read_journal()
        if verdict.state == "missing" and not directory.has_packs():
            report.next(
                "There is nothing to rebuild: neither a journal nor packs. The daemon can begin in this store:", ""
            )
            return 0
        found, plan = look(directory, verdict, salvage, config.processes)
        report.journal(directory, verdict, salvage)
        report.mended(salvage)
        sound = verdict.state in ("sound", "torn")
        if sound and not plan.records:
            report.next(
                "There is nothing to rebuild: journal and packs agree. Nothing was changed. The daemon can start:", ""
            )
            return 0
        damaged = report.bad_files(salvage.registry, found.bad)
        report.plan(plan, salvage, "can come back" if dry_run else "comes back")
        report.packs(directory, found, plan)
        report.cannot_tell(salvage, plan)
        for record in plan.records:
            salvage.registry.apply(record)
        if not dry_run:
            _write(directory, report, verdict, salvage, plan)
        _sum_up(report, salvage, plan, damaged, dry_run)
        return 0


def _write(directory: Directory, report: Report, verdict: Verdict, salvage: Salvage, plan: Plan) -> None:
    new = directory.path / "journal.jsonl.rebuild"
    snapshot = salvage.registry.snapshot()
    rewrite.write(new, store_id(directory, verdict), verdict.next_generation, snapshot, salvage.registry)
    # First the packs: a start on the new journal would remove them.
    directory.move_to_lost(plan.lost)
    report.say("step", rewrite.put_in_place(directory, new))


def _sum_up(report: Report, salvage: Salvage, plan: Plan, damaged: int, dry_run: bool) -> None:
    registry = salvage.registry
    back = counted(len(plan.entered), "file")
    message = f"{counted(registry.files_ready, 'file')}: {back} from packs alone, {counted(damaged, 'file')} damaged"
    if plan.incomplete:
        message += f"; {counted(len(plan.incomplete), 'file')} could not come back"
    facts = {"files": registry.files_ready, "entered": len(plan.entered), "damaged": damaged}
    report.say("summary", message, **facts, incomplete=len(plan.incomplete), lost_packs=len(plan.lost))
    if plan.incomplete:
        report.say(
            "note",
            "If packs that are missing turn up: put them and those in lost/ into packs/ again, the old journal in "
            "place of the new one, and type rebuild again.",
        )
    if dry_run:
        report.next("Nothing was changed. To do all this:", "rebuild")
    else:
        report.next("The daemon can start now. To read all content and compare it with its MD5 first:", "check --data")
