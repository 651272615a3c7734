"""`server.py repair`: mend a damaged journal from itself, on a copy, step by step. Packs only tell what is bad."""

from __future__ import annotations

from pfsd.config import Config
from pfsd.errors import RegistryDamaged
from pfsd.records import Damage, Drop, Ids, Record
from pfsd.rescue import rewrite
from pfsd.rescue.check import look, store_id
from pfsd.rescue.directory import opened
from pfsd.rescue.report import Report, counted


def repair(config: Config, report: Report, data: bool) -> int:
    """Keep the records that can be trusted, mark the parts that are not sound, with `data` by content; the exit code.

    Where packs hold files that no record tells of it changes nothing and says so: only rebuild brings them back.
    StoreUnavailable, StorageFailed; the store is then as before, but for packs that were moved.
    """
    with opened(config.path) as directory:
        kept: list[Record] = []
        verdict, salvage = directory.read_journal(kept.append)
        if verdict.state == "missing" and not directory.has_packs():
            report.next(
                "There is nothing to repair: neither a journal nor packs. The daemon can begin in this store:", ""
            )
            return 0
        report.journal(directory, verdict, salvage)
        report.mended(salvage)
        report.say("step", "Comparing the records with the packs ...")
        found, plan = look(directory, verdict, salvage, config.processes, data)
        damaged = report.bad_files(salvage.registry, found.bad)
        sound = verdict.state in ("sound", "torn")
        if plan.needs_packs or not (sound or verdict.store):
            report.plan(plan, salvage, "can come back")
            can = f"rebuild can bring back {counted(len(plan.entered), 'file')} of which no record is left"
            why = f"{can}, and repair would lose them" if plan.entered else "only rebuild can use what the packs tell"
            report.next(f"Nothing was changed: {why}. Type:", "rebuild")
            return RegistryDamaged.exit_code
        marks = [record for record in plan.records if isinstance(record, Damage | Drop | Ids)]
        if sound and not plan.damaged:
            report.next(
                "There is nothing to repair: the journal is sound. Nothing was changed. The daemon can start:", ""
            )
            return 0
        report.plan(plan, salvage, "can come back")
        report.packs(directory, found, plan)
        report.cannot_tell(salvage, plan)
        for record in marks:
            salvage.registry.apply(record)
        content = salvage.registry.snapshot() if sound else [*kept, *marks]
        new = directory.path / "journal.jsonl.repair"
        report.say("step", f"Writing what can be trusted to {new.name}, with marks on {counted(damaged, 'file')} ...")
        rewrite.write(new, store_id(directory, verdict), verdict.next_generation, content, salvage.registry)
        report.say("step", "It was read again, and says the same. Putting it in place ...")
        directory.move_to_lost(plan.lost)
        report.say("step", rewrite.put_in_place(directory, new))
        facts = {"files": salvage.registry.files_ready, "damaged": damaged}
        report.say(
            "summary", f"{counted(salvage.registry.files_ready, 'file')}, {counted(damaged, 'file')} damaged", **facts
        )
        report.next("The daemon can start now. To read all content and compare it with its MD5 first:", "check --data")
        return 0
