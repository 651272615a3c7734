"""verify: read and check every part, of some files or of all, beside normal work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from pfsd import work
from pfsd.aio import Window
from pfsd.budget import Extent
from pfsd.commands.engine import Engine, FileRef, Progress
from pfsd.commands.get import Range, plan_runs
from pfsd.errors import Corrupt
from pfsd.fair import Flow
from pfsd.registry import File, Part, Status

#: Files looked up at once while all are verified.
PAGE = 256


@dataclass(frozen=True)
class BadRow:
    """A part that failed its checks."""

    id: int
    seq: int
    offset: int
    code: str
    name: bytes


@dataclass
class Verified:
    """What a verify looked at; filled while it runs."""

    files: int = 0
    parts: int = 0
    bytes: int = 0
    bad: int = 0

    def error(self) -> Corrupt | None:
        """Corrupt when any part was bad."""
        if not self.bad:
            return None
        return Corrupt(
            f"{self.bad} parts failed their checks; the rows name them (get with on_error=zero saves the rest)",
            bad=self.bad,
            files=self.files,
            parts=self.parts,
            bytes=self.bytes,
        )


Report = Callable[[BadRow], Awaitable[None]]


async def verify(engine: Engine, refs: Sequence[FileRef], report: Report, progress: Progress, flow: Flow) -> Verified:
    """Check these files, or every readable one, several side by side; bad parts are reported as they are found.

    All names are looked up before the first part is read.
    """
    done = Verified()
    files = list(map(engine.ready, refs)) if refs else _all_files(engine)
    progress.total = sum(file.size for file in files) if isinstance(files, list) else engine.registry.size
    async with Window(len(engine.workers) + 1) as window:
        for file in files:
            await window.start(_verify_file(engine, file, report, done, progress, flow))
    return done


def _all_files(engine: Engine) -> Iterator[File]:
    last = 0
    while page := engine.registry.files_after(last, PAGE):
        last = page[-1].id
        yield from page


async def _verify_file(
    engine: Engine, file: File, report: Report, done: Verified, progress: Progress, flow: Flow
) -> None:
    if engine.registry.file(file.id) is not file or file.status not in (Status.READY, Status.DAMAGED):
        return  # deleted since it was listed, or not there yet

    async def check(run: Sequence[Part], extents: Sequence[Extent]) -> None:
        bad = await check_run(engine, run, extents, flow)
        done.parts += len(run)
        done.bytes += sum(part.size for part in run)
        progress.bytes, progress.parts = done.bytes, done.parts
        for part in bad:
            done.bad += 1
            await report(BadRow(file.id, part.seq, part.seq * file.part_size, part.code, file.name))

    with engine.pinned(file):
        async with Window(len(engine.workers) + 1) as window:
            for run in plan_runs(engine, file, Range(0, file.size)):
                while run:
                    await window.room()
                    extents = await engine.take([part.size for part in run], flow)
                    window.start_now(check(run[: len(extents)], extents), partial(engine.budget.give, extents))
                    run = run[len(extents) :]
    done.files += 1


async def check_run(
    engine: Engine, run: Sequence[Part], extents: Sequence[Extent], flow: Flow
) -> tuple[work.BadPart, ...]:
    """Read and check parts of one pack; what is bad, and what no longer is, goes into the registry.

    The store may give back what was bad before, say after a cable was put back.
    """
    bad = (await engine.load(run, extents, flow)).bad
    sound = {part.seq for part in run} - {part.seq for part in bad}
    if not sound.isdisjoint(engine.registry.bad_parts(run[0].file)):
        await engine.note_checked(run[0].file, sound=sound)
    return bad
