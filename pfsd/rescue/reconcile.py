"""What follows from the trusted records and from the packs: records that put the registries right. Pure.

What only packs know becomes a file; what records know and packs do not have is marked as damaged. What neither can tell
is told to people and never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

from pfsd.protocol import quote
from pfsd.records import (
    MAX_RUN_PARTS,
    Damage,
    Delete,
    Drop,
    Ids,
    PartRow,
    Parts,
    Put,
    Ready,
    Record,
    Removed,
    Rename,
    Run,
)
from pfsd.registry import File, Registry, Status
from pfsd.rescue.salvage import Salvage, spare_name
from pfsd.rescue.survey import Seen, Sighting, Survey, all_files


class Entered(NamedTuple):
    """A file that comes back from its packs."""

    file: int
    name: bytes
    size: int
    parts: int
    bad: list[int]
    notes: list[str]


class Incomplete(NamedTuple):
    """A file of which packs hold some parts, but not all."""

    file: int
    name: bytes
    have: int
    parts: int | None  # None: nothing tells


@dataclass
class Plan:
    """What to do, and what to tell."""

    #: To be applied to the salvaged registries, in this order.
    records: list[Record] = field(default_factory=list)
    entered: list[Entered] = field(default_factory=list)
    #: Files, with parts of which a sound copy was found in another pack -> how many.
    relocated: dict[int, int] = field(default_factory=dict)
    #: Files -> their parts that are not sound and were not known to be.
    damaged: dict[int, list[int]] = field(default_factory=dict)
    #: Known files that an entered one takes the name of -> the name they have now.
    renamed: dict[int, bytes] = field(default_factory=dict)
    incomplete: list[Incomplete] = field(default_factory=list)
    #: Packs that no file needs, but that hold what may be missed -> why.
    lost: dict[int, str] = field(default_factory=dict)
    #: Packs that no file needs, of files that are gone or never were: the next start removes them.
    litter: list[int] = field(default_factory=list)

    @property
    def needs_packs(self) -> bool:
        """Whether it does more than to mark parts as bad."""
        return bool(self.entered or self.relocated)


class _Row(NamedTuple):
    """Where a part lies; `id` 0: it gets a new one."""

    seq: int
    pack: int
    offset: int
    head: int
    size: int
    stored: int
    codec: str
    md5: str
    id: int
    sound: bool


@dataclass
class _Candidate:
    """A file that packs tell of, complete."""

    file: int
    name: bytes
    size: int
    part_size: int
    created: int
    rows: list[_Row]
    end: Sighting | None
    certain: bool
    storing: File | None
    notes: list[str]


def candidates(salvage: Salvage, survey: Survey) -> list[int]:
    """Files of which packs hold what no record tells: those whose loose parts decide something."""
    return [file for file in survey.loose if not _is_gone(salvage, file) and _is_open(salvage.registry, survey, file)]


def reconcile(salvage: Salvage, survey: Survey) -> Plan:
    """The plan; `survey` has the content of the loose parts of all `candidates` checked."""
    plan, registry = Plan(), salvage.registry
    known = Ids(
        max(registry.next_file, survey.last_file + 1),
        registry.next_part,
        max(registry.next_pack, survey.last_pack + 1),
    )
    part_ids = count(registry.next_part)
    found = list(_complete_files(salvage, survey, plan))
    repaired = dict(_repaired_files(salvage, survey, plan))
    _settle_names(found, salvage, survey, plan)
    dropped = _dropped(salvage, found, plan)
    paused = _paused(registry, found, repaired, dropped)

    plan.records += [Drop(file) for file in sorted(dropped | set(paused))]
    plan.records += [Rename(file, name) for file, name in plan.renamed.items()]
    for file_id, rows in repaired.items():
        plan.records += _stored_anew(registry, file_id, plan.renamed.get(file_id), rows, part_ids)
    for one in found:
        plan.records += _entered(one, part_ids)
        bad = [row.seq for row in one.rows if not row.sound]
        plan.entered.append(Entered(one.file, one.name, one.size, len(one.rows), bad, one.notes))
    for file_id, bad in plan.damaged.items():
        plan.records.append(Damage(file_id, sorted({*registry.bad_parts(file_id), *bad})))
    for records in paused.values():
        plan.records += records
    if plan.records:
        plan.records.insert(0, known)
    _sort_packs(salvage, survey, plan, repaired)
    return plan


def _is_gone(salvage: Salvage, file: int) -> bool:
    """Whether a record says so, or all there are would say otherwise."""
    unnamed = salvage.whole and file < salvage.known_below and salvage.registry.file(file) is None
    return file in salvage.dead or unnamed


def _is_open(registry: Registry, survey: Survey, file_id: int) -> bool:
    file = registry.file(file_id)
    return (
        file is None or file.status is Status.STORING or (file.status is not Status.DELETING and file_id in survey.bad)
    )


# --- files that packs tell of -------------------------------------------------------------------


def _complete_files(salvage: Salvage, survey: Survey, plan: Plan) -> Iterator[_Candidate]:
    for file_id in sorted({*survey.loose, *_unfinished(salvage)}):
        if _is_gone(salvage, file_id):
            continue
        file = salvage.registry.file(file_id)
        resumable = file is not None and salvage.whole and salvage.registry.source(file_id) is not None
        if file is not None and (file.status is not Status.STORING or resumable):
            continue  # known; or an interrupted put, as it should be
        groups = _groups(survey.loose.get(file_id, []))
        made = [found for group in groups or [[]] if (found := _complete(salvage, survey, file_id, file, group))]
        told = (
            file is not None or file_id in salvage.unfinished or any(one.certain for group in groups for one in group)
        )
        if made:
            yield max(made, key=lambda one: (one.certain, one.created))
        elif told and not salvage.whole and salvage.registry.source(file_id) is None:
            plan.incomplete.append(_incomplete(salvage, file_id, file, max(groups, key=len, default=[])))


def _unfinished(salvage: Salvage) -> set[int]:
    """Files that records begin with, but that are not entered, where records are lost."""
    kept = {file.id for file in salvage.registry.interrupted() if salvage.registry.source(file.id) is None}
    return kept | set(salvage.unfinished)


def _groups(sightings: Sequence[Sighting]) -> list[list[Sighting]]:
    """Parts that belong to one put."""
    groups: dict[tuple[bytes, int, int, bytes], list[Sighting]] = {}
    for one in sightings:
        origin = one.origin
        groups.setdefault((origin.put, origin.created, origin.part_size, origin.name), []).append(one)
    return list(groups.values())


def _complete(
    salvage: Salvage, survey: Survey, file_id: int, file: File | None, group: list[Sighting]
) -> _Candidate | None:
    """The file, if all its parts are there."""
    ready = salvage.unfinished.get(file_id)
    told = file or ready
    if group:
        origin = group[0].origin
        first = (origin.part_size, origin.created, origin.name)
    elif told:
        first = (told.part_size, told.created, told.name)
    else:
        return None
    part_size, created, stored_as = first
    if told is not None and (told.part_size, told.created) != (part_size, created):
        return None
    ids = salvage.part_ids.get(file_id, {})
    by_seq: dict[int, _Row] = {}
    for one in sorted(group, key=lambda one: (not _is_sound(survey, one), not one.certain, -one.pack)):
        if one.size:
            row = (one.seq, one.pack, one.offset, one.head, one.size, one.stored, one.codec, one.md5.hex())
            by_seq.setdefault(one.seq, _Row(*row, ids.get(one.seq, 0), _is_sound(survey, one)))
    if file is not None:
        by_seq |= {row.seq: row for row in _known_rows(salvage.registry, survey, file_id)}
    sizes = {one.origin.file_size for one in group if one.origin.file_size is not None} | survey.sizes.get(
        file_id, set()
    )
    for size in [ready.size] if ready else sorted(sizes, reverse=True):
        parts = -(-size // part_size)
        rows = [by_seq[seq] for seq in range(parts) if seq in by_seq]
        last = size - (parts - 1) * part_size
        fits = len(rows) == parts and all(row.size == (last if row.seq == parts - 1 else part_size) for row in rows)
        end = next((one for one in group if not one.size and one.seq == parts), None)
        if fits and (rows or end):
            name = ready.name if ready else salvage.names.get(file_id, stored_as)
            certain = any(one.certain for one in group) or told is not None
            notes = [] if certain else ["it lies behind damage, so it may be content of another file, or deleted"]
            if name != stored_as:
                notes.append(f"it was stored as {quote(stored_as)} and renamed")
            return _Candidate(file_id, name, size, part_size, created, rows, end, certain, file, notes)
    return None


def _is_sound(survey: Survey, one: Sighting) -> bool:
    return (one.pack, one.offset) not in survey.unsound


def _known_rows(registry: Registry, survey: Survey, file_id: int) -> Iterator[_Row]:
    """The parts that records name, where these place them, if they are there."""
    bad = survey.bad.get(file_id, {})
    for part in registry.parts(file_id):
        if part.seq not in bad:
            place = (part.seq, part.pack, part.pack_offset, part.head, part.size, part.stored, part.codec)
            yield _Row(*place, part.md5.hex(), part.id, True)


def _incomplete(salvage: Salvage, file_id: int, file: File | None, group: Sequence[Sighting]) -> Incomplete:
    ready = salvage.unfinished.get(file_id)
    sizes = [one.origin.file_size for one in group if one.origin.file_size is not None]
    size = ready.size if ready else max(sizes, default=None)
    part_size = ready.part_size if ready else group[0].origin.part_size if group else 0
    fallback = file.name if file else group[0].origin.name if group else b"?"
    name = ready.name if ready else salvage.names.get(file_id, fallback)
    have = len({one.seq for one in group if one.size}) + (file.parts if file else 0)
    return Incomplete(file_id, name, have, -(-size // part_size) if size is not None and part_size else None)


# --- files that records tell of -----------------------------------------------------------------


def _repaired_files(salvage: Salvage, survey: Survey, plan: Plan) -> Iterator[tuple[int, list[_Row]]]:
    """Readable files with bad parts that lie somewhere else as well; all bad parts are noted in the plan."""
    registry = salvage.registry
    for file_id, bad in survey.bad.items():
        file = registry.file(file_id)
        if file is None or file.status is Status.STORING:
            continue
        copies = {one.seq: one for one in survey.loose.get(file_id, ()) if one.size and _is_sound(survey, one)}
        rows = []
        for part in registry.parts(file_id):
            place = (part.pack, part.pack_offset, part.head)
            copy = copies.get(part.seq) if part.seq in bad else None
            sound = part.seq not in bad and part.seq not in registry.bad_parts(file_id)
            what = (part.size, part.stored, part.codec, part.md5)
            if copy is not None and (copy.size, copy.stored, copy.codec, copy.md5) == what:
                place, sound = (copy.pack, copy.offset, copy.head), True
                plan.relocated[file_id] = plan.relocated.get(file_id, 0) + 1
            elif part.seq in bad and part.seq not in registry.bad_parts(file_id):
                plan.damaged.setdefault(file_id, []).append(part.seq)
            row = (part.seq, *place, part.size, part.stored, part.codec, part.md5.hex())
            rows.append(_Row(*row, part.id, sound))
        if file_id in plan.relocated:
            yield file_id, rows


def _stored_anew(
    registry: Registry, file_id: int, name: bytes | None, rows: list[_Row], part_ids: Iterator[int]
) -> Iterator[Record]:
    """The same file, its parts where they lie now."""
    file = registry.file(file_id)
    assert file is not None
    ends = [run for run in registry.stored_runs(file_id) if not run.parts]
    runs = [*_runs(rows, part_ids), *ends]
    bad = [row.seq for row in rows if not row.sound]
    yield Delete(file_id)
    yield Removed(file_id)
    yield Ready(file_id, name or file.name, file.size, file.part_size, file.created, runs)
    if bad:
        yield Damage(file_id, bad)


# --- names, and what is being stored ------------------------------------------------------------


def _settle_names(found: list[_Candidate], salvage: Salvage, survey: Survey, plan: Plan) -> None:
    """Of files with one name, the newest keeps it; but what was perhaps never answered takes none from a sound file."""
    registry = salvage.registry
    taken: dict[bytes, _Candidate] = {}
    for one in sorted(found, key=lambda one: (one.certain, one.created, one.file), reverse=True):
        holder = registry.find(one.name)
        if one.name in taken:
            _give_spare_name(one, taken[one.name].file, registry, taken)
        elif holder is not None and not _gives_way(holder, one, salvage.whole and holder.id not in survey.bad):
            _give_spare_name(one, holder.id, registry, taken)
        elif holder is not None:
            spare = spare_name(one.name, holder.id, lambda name: registry.name_taken(name) or name in taken)
            plan.renamed[holder.id] = spare
        taken[one.name] = one


def _gives_way(holder: File, one: _Candidate, holder_is_sound: bool) -> bool:
    newer = (one.created, one.file) > (holder.created, holder.id)
    return newer and one.certain and not holder_is_sound


def _give_spare_name(one: _Candidate, other: int, registry: Registry, taken: dict[bytes, _Candidate]) -> None:
    name = one.name
    one.name = spare_name(name, one.file, lambda name: registry.name_taken(name) or name in taken)
    one.notes.append(f"{quote(name)} is file {other} now, so this one was replaced, renamed or deleted")


def _dropped(salvage: Salvage, found: list[_Candidate], plan: Plan) -> set[int]:
    """Puts that are over: their file is entered, or cannot be completed and no put can go on with it."""
    over = {one.file for one in found if one.storing} | {one.file for one in plan.incomplete}
    return {file.id for file in salvage.registry.interrupted() if file.id in over}


def _paused(
    registry: Registry, found: list[_Candidate], repaired: dict[int, list[_Row]], dropped: set[int]
) -> dict[int, list[Record]]:
    """Interrupted puts under names that files get -> records that announce them again afterwards."""
    names = {one.name for one in found} | {file.name for file in map(registry.file, repaired) if file}
    paused: dict[int, list[Record]] = {}
    for file in registry.interrupted():
        if file.name in names and file.id not in dropped:
            source = registry.source(file.id)
            key, put = (source.key, source.put.hex()) if source else ("", "")
            runs = [Parts(file.id, run) for run in registry.stored_runs(file.id)]
            paused[file.id] = [Put(file.id, file.name, file.part_size, file.created, key, put), *runs]
    return paused


# --- records ------------------------------------------------------------------------------------


def _entered(one: _Candidate, part_ids: Iterator[int]) -> Iterator[Record]:
    runs = list(_runs(one.rows, part_ids))
    if one.end is not None:
        runs.append(Run(one.end.pack, len(one.rows), 0, one.end.head, []))
    yield Ready(one.file, one.name, one.size, one.part_size, one.created, runs)
    if bad := [row.seq for row in one.rows if not row.sound]:
        yield Damage(one.file, bad)


def _runs(rows: Sequence[_Row], part_ids: Iterator[int]) -> Iterator[Run]:
    """Parts, in order, as runs: consecutive ones, behind each other in one pack, with consecutive ids."""
    run: list[_Row] = []
    for row in rows:
        row = row._replace(id=row.id or next(part_ids))
        if run and not _goes_on(run, row):
            yield _run(run)
            run = []
        run.append(row)
    if run:
        yield _run(run)


def _goes_on(run: list[_Row], row: _Row) -> bool:
    last = run[-1]
    together = (last.pack, last.head, last.seq + 1, last.id + 1) == (row.pack, row.head, row.seq, row.id)
    return together and last.offset + last.head + last.stored <= row.offset and len(run) < MAX_RUN_PARTS


def _run(rows: list[_Row]) -> Run:
    parts: list[PartRow] = [(row.offset, row.size, row.stored, row.codec, row.md5) for row in rows]
    return Run(rows[0].pack, rows[0].seq, rows[0].id, rows[0].head, parts)


# --- packs of nobody ----------------------------------------------------------------------------


def _sort_packs(salvage: Salvage, survey: Survey, plan: Plan, repaired: dict[int, list[_Row]]) -> None:
    """Which packs no file needs, once the plan is carried out, and which of them may be missed."""
    needed = {run.pack for record in plan.records if isinstance(record, Ready) for run in record.runs}
    over = {record.file for record in plan.records if isinstance(record, Drop)}
    again = {record.file for record in plan.records if isinstance(record, Put)}
    for file in all_files(salvage.registry):
        if file.id not in repaired and (file.id not in over or file.id in again):
            needed.update(salvage.registry.packs_of(file.id))
    open_files = {one.file for one in plan.incomplete} | {file.id for file in salvage.registry.interrupted()}
    # Where packs tell of whole files that no record does, the journal may be an older copy.
    open_files |= {file for file in survey.loose if not _is_gone(salvage, file) and salvage.registry.file(file) is None}
    of_dropped = {pack for file in over & open_files for pack in salvage.registry.packs_of(file)}
    for pack, seen in survey.packs.items():
        if pack in needed:
            continue
        has_parts = pack in of_dropped or not seen.files.isdisjoint(open_files)
        if (salvage.whole and not plan.entered) or not (has_parts or seen.strangers or seen.damage or seen.unreadable):
            plan.litter.append(pack)
        else:
            plan.lost[pack] = _why_lost(seen, has_parts)


def _why_lost(seen: Seen, has_parts: bool) -> str:
    if seen.unreadable:
        return seen.unreadable
    if has_parts:
        return "what they hold are parts of a file that is not complete"
    if seen.strangers:
        return "what they hold are parts of another store"
    return "they are damaged, and nobody can tell what was there"
