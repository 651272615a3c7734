"""How check, repair and rebuild say what they find: a line for people, or a JSON object, for each thing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from pfsd import protocol
from pfsd.journal import Verdict
from pfsd.registry import Registry
from pfsd.rescue.directory import Directory
from pfsd.rescue.reconcile import Plan
from pfsd.rescue.salvage import Salvage
from pfsd.rescue.survey import Survey

#: Parts, or stretches of them, of one file that a line for people names.
SHOWN = 4


class Report:
    """Says things as they are found."""

    def __init__(self, as_json: bool, show: Callable[[str], None], command: Callable[[str], str]) -> None:
        self._as_json = as_json
        self._show = show
        self._command = command  # `check` -> what to type for it

    def say(self, kind: str, message: str, **facts: object) -> None:
        """One thing; bytes among the facts are names."""
        if not self._as_json:
            self._show(message)
            return
        found: dict[str, Any] = {"type": kind}
        for key, value in facts.items():
            if isinstance(value, bytes):
                found[key] = protocol.escape(value)
                if not _is_text(value):
                    found[f"{key}_hex"] = value.hex()
            else:
                found[key] = value
        self._show(json.dumps(found | {"message": message}))

    # --- the journal ---

    def journal(self, directory: Directory, verdict: Verdict, salvage: Salvage) -> None:
        """What the journal is like."""
        path = directory.journal
        facts = {"state": verdict.state, "records": salvage.records}
        if verdict.state == "sound":
            self.say("journal", f"{path}: sound, {salvage.records} records", **facts)
        elif verdict.state == "torn":
            message = (
                f"{path}: sound but for its end, {verdict.reason} at byte {verdict.offset}: the next start cuts it off"
            )
            self.say("journal", message, offset=verdict.offset, line=verdict.line, **facts)
        elif verdict.state == "missing":
            self.say("journal", f"{path}: there is no journal", **facts)
        else:
            message = (
                f"{path}: damaged in line {verdict.line} at byte {verdict.offset}: {verdict.reason}. "
                f"{verdict.good} good records are before it; of all, {salvage.records} can be trusted"
            )
            self.say("journal", message, line=verdict.line, offset=verdict.offset, good=verdict.good, **facts)
            for gap in salvage.gaps:
                which = f"record {gap.first}" if gap.last is not None else f"record {gap.first} and what is behind it"
                if gap.last is not None and gap.last > gap.first:
                    which = f"records {gap.first} to {gap.last}"
                self.say("gap", f"lost: {which}", first=gap.first, last=gap.last)

    def mended(self, salvage: Salvage) -> None:
        """Records that do not fit those before the gap."""
        for seq, file, what in salvage.mended:
            self.say("record", f"record {seq}, of file {file}: {what}", seq=seq, file=file)

    # --- files ---

    def bad_files(self, registry: Registry, bad: Mapping[int, Mapping[int, str]]) -> int:
        """A line for each readable file with bad parts, known before or not; returns their number."""
        count = 0
        for file_id in sorted({*bad, *_marked(registry)}):
            file = registry.file(file_id)
            if file is None or file.status.value not in ("ready", "damaged"):
                continue
            why = dict.fromkeys(registry.bad_parts(file_id), "found by an earlier check") | dict(bad.get(file_id, {}))
            parts = [
                {"seq": seq, "offset": seq * file.part_size, "why": why[seq]}
                | {"size": min(file.part_size, file.size - seq * file.part_size)}
                for seq in sorted(why)
            ]
            stretches = [_stretch(same) for same in _alike(parts)]
            shown = "; ".join(stretches[:SHOWN])
            more = f"; and {len(stretches) - SHOWN} more such stretches" if len(stretches) > SHOWN else ""
            message = f"{called(file_id, file.name)}: {len(parts)} of {file.parts} parts are damaged; {shown}{more}"
            self.say("file", message, id=file_id, name=file.name, state="damaged", parts=parts)
            count += 1
        return count

    def plan(self, plan: Plan, salvage: Salvage, comes_back: str) -> None:
        """What rebuild does, or could do, file by file."""
        for file, name, size, parts, bad, notes in plan.entered:
            hurt = [f"parts {_numbers(bad)} are damaged"] if bad else []
            rest = "".join(f"; {note}" for note in [*hurt, *notes])
            much = f"{counted(size, 'byte')} in {counted(parts, 'part')}"
            message = f"{called(file, name)}: {comes_back} from its packs, {much}{rest}"
            self.say("file", message, id=file, name=name, state="recoverable", size=size, bad=bad, notes=notes)
        for file, count in plan.relocated.items():
            known = salvage.registry.file(file)
            name = known.name if known else b"?"
            message = f"{called(file, name)}: a sound copy of {count} of its parts is in another pack and is used"
            self.say("file", message, id=file, name=name, state="relocated", parts=count)
        for file, name in plan.renamed.items():
            message = f"{called(file, name)}: is called so now, since a newer file has its name"
            self.say("file", message, id=file, name=name, state="renamed")
        for file, name, have, wanted in plan.incomplete:
            of = f"of {wanted} parts" if wanted is not None else "parts, and nothing says of how many"
            message = f"{called(file, name)}: cannot come back, the packs hold {have} {of}"
            self.say("file", message, id=file, name=name, state="incomplete", have=have, parts=wanted)

    # --- packs and the rest ---

    def packs(self, directory: Directory, survey: Survey, plan: Plan) -> None:
        """Packs that are not as they should be."""
        for pack, why in sorted(survey.missing.items()):
            why = why.removeprefix(f"pack {pack:016x} ")
            aside = f"; it is in {directory.lost}" if directory.is_lost(pack) else ""
            self.say("pack", f"pack {pack:016x} {why}{aside}", pack=pack, state="missing")
        for pack, seen in survey.packs.items():
            for damage in seen.damage:
                message = f"pack {pack:016x}: {damage.length} bytes at {damage.offset} are no part"
                self.say("pack", message, pack=pack, state="damaged", offset=damage.offset, length=damage.length)
            if seen.unreadable:
                self.say("pack", f"pack {pack:016x}: {seen.unreadable}", pack=pack, state="unreadable")
            if seen.strangers:
                message = f"pack {pack:016x}: holds {seen.strangers} parts of another store, which are left alone"
                self.say("pack", message, pack=pack, state="foreign")
        for why in sorted(set(plan.lost.values())):
            moved = [pack for pack, because in plan.lost.items() if because == why]
            named = ", ".join(f"{pack:016x}" for pack in moved[:SHOWN])
            more = f" and {len(moved) - SHOWN} more" if len(moved) > SHOWN else ""
            message = f"{counted(len(moved), 'pack')} of no file, to be kept in lost/, since {why}: {named}{more}"
            self.say("pack", message, packs=moved, state="lost", why=why)

    def leftovers(self, found: Iterable[tuple[str, str]]) -> None:
        """Files that are neither journal nor packs."""
        for path, what in found:
            self.say("leftover", f"{protocol.quote(path)}: {what}", path=path)

    def cannot_tell(self, salvage: Salvage, plan: Plan) -> None:
        """What was lost with the records, and can show in what comes back."""
        if salvage.whole or not (plan.entered or salvage.gaps):
            return
        self.say(
            "note",
            "What only lost records said cannot be known: a file may have an older name, one that was deleted may be "
            "back, and ids of parts may be new.",
        )

    def next(self, message: str, command: str) -> None:
        """The last lines: what to do, and what to type for it; "" starts the daemon."""
        typed = self._command(command)
        self.say("next", message if self._as_json else f"{message}\n\n    {typed}", command=typed)


def called(file: int, name: bytes) -> str:
    """A file by id and name, fit to print."""
    return f"file {file} {protocol.quote(name)}"


def counted(number: int, what: str) -> str:
    """`1 file`, `2 files`."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _alike(parts: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Consecutive parts of which the same is said."""
    alike: list[dict[str, Any]] = []
    for part in parts:
        if alike and (part["seq"], part["why"]) != (alike[-1]["seq"] + 1, alike[-1]["why"]):
            yield alike
            alike = []
        alike.append(part)
    if alike:
        yield alike


def _stretch(parts: Sequence[dict[str, Any]]) -> str:
    first, last = parts[0], parts[-1]
    which = f"part {first['seq']}" if first is last else f"parts {first['seq']} to {last['seq']}"
    return f"{which}, bytes {first['offset']} to {last['offset'] + last['size'] - 1}, {first['why']}"


def _marked(registry: Registry) -> list[int]:
    return [file.id for file in registry.damaged()]


def _numbers(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:SHOWN]))
    return shown + (f" and {len(numbers) - SHOWN} more" if len(numbers) > SHOWN else "")


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
