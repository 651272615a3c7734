"""Every part is read and checked again in time, without anyone asking: damage is known before someone needs the file.

Pass follows pass, each through all parts in order of file and sequence number, a run at a time. A pass is spread
evenly over most of `verify_every`: before a run it waits as long as the run's share of what is left is of the time that
is left. A part that was not checked for so long does not wait, so that nothing is late when the store has
grown, shrunk, or been off. Time that nobody can set paces it; the time of day only tells how old the checks are.

Now and then it journals which stretch was read since when: that is where it goes on after a restart. What could not be
read for reasons of the daemon's own, or is still being stored, is left out of that, so it counts as not checked.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from contextlib import suppress
from dataclasses import dataclass

from pfsd import records
from pfsd.commands.engine import Engine
from pfsd.commands.get import Range, plan_runs
from pfsd.commands.verify import PAGE, check_run
from pfsd.errors import IoError, RequestError
from pfsd.fair import Flow
from pfsd.registry import File, Part, Status
from pfsd.stretches import START, Position

log = logging.getLogger(__name__)

#: How much of `verify_every` a pass takes. The rest is for what comes up: a stop, a busy disk, a put that took days.
PASS_SHARE = 0.75
#: What others want too, it gets an eighth of.
PATIENCE = 8
#: It is idle so many times as long as it took over a run, and as long as that when it is late.
REST, LATE_REST = 3, 1
#: Bytes read at one go: a process is busy with it for some milliseconds.
RUN_BYTES = 4 << 20
#: What a part or a file costs beside its bytes, so that many small ones are spread evenly too.
PART_COST = 16 << 10
#: A pass is journaled in at most so many stretches, but for gaps.
STRETCHES = 256
#: A long wait is cut into pieces of at most so many seconds, to see what has changed.
LOOK_SECONDS = 60.0


@dataclass
class Pace:
    """When the runs of a pass are due; in seconds of a clock that is never set."""

    period: float  # what a pass is to take
    began: float  # the pass
    last: float  # a run; or when there was none, the pass
    before: float = -math.inf  # when the pass before this one began, if it was this daemon's

    def due(self, now: float, cost: int, left: int, age: float) -> float:
        """When to read a run that costs so much of what is left, and was last read `age` ago as the time of day has it.

        Whatever that says, it was read in the pass before if that was this daemon's.
        """
        even = self.last + max(0.0, self.began + self.period - self.last) * cost / max(cost, left)
        return min(even, now + self.period - self._true_age(now, age))

    def is_late(self, now: float, age: float) -> bool:
        """Whether the pass, or a run that was last read `age` ago, should be over."""
        return now > self.began + self.period or self._true_age(now, age) > self.period

    def next_pass(self, now: float) -> Pace:
        """For a pass that begins now."""
        return Pace(self.period, now, now, self.began)

    def _true_age(self, now: float, age: float) -> float:
        return min(max(0.0, age), now - self.before)


class Clock:
    """The time of day, which may jump, and time as it goes by."""

    def wall(self) -> int:
        """In ns since the epoch, as far as anyone knows."""
        return time.time_ns()

    def moment(self) -> float:
        """In seconds of a clock that nobody sets, and that goes on while the machine sleeps."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    async def sleep(self, seconds: float) -> None:
        """Let so much time go by."""
        await asyncio.sleep(seconds)


class Scrubber:
    """Checks all parts within `every` seconds, over and over; never if that is 0."""

    def __init__(self, engine: Engine, every: float, clock: Clock | None = None) -> None:
        self.every = every
        #: Parts read since the start.
        self.parts = 0
        self._engine = engine
        self._clock = clock or Clock()
        self._flow = Flow(PATIENCE)
        self._work: asyncio.Task[None] | None = None
        self._at = engine.registry.to_verify
        self._claims: list[records.Verified] = []  # not journaled yet
        self._from = self._at  # where the stretch begins that is being read
        self._since = 0  # when its first part was read
        self._unclaimed = 0  # what was read since the journal was told
        self._left = 0  # what there was to be read in this pass, when all files came to so much:
        self._all = 0

    def start(self) -> None:
        """Begin, in the background."""
        if self.every:
            self._work = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Stop when the run under way is over, and journal how far it came."""
        if self._work is None:
            return
        self._work.cancel()
        await asyncio.wait({self._work})
        self._work = None
        self._end_stretch()
        await self._journal()

    async def change(self, every: float) -> None:
        """Go on with another time."""
        await self.stop()
        self.every = every
        self.start()

    @property
    def oldest(self) -> int:
        """Seconds since the part was checked, or written, of which that is the longest ago; 0 without files."""
        oldest = self._engine.registry.oldest_verified_at()
        return 0 if oldest is None else int(self._age(oldest))

    def _age(self, moment_ns: int) -> float:
        return max(0, self._clock.wall() - moment_ns) / 1e9

    # --- passes ---

    async def _run(self) -> None:
        try:
            await self._pass_after_pass()
        except Exception:
            log.exception("files are not verified any more until the next start")

    async def _pass_after_pass(self) -> None:
        registry = self._engine.registry
        period = PASS_SHARE * self.every
        began = registry.first_verified_at() if self._at > START else None
        now = self._clock.moment()
        pace = Pace(period, now - (0.0 if began is None else self._age(began)), now)
        await self._look_ahead()
        while True:
            found = registry.readable_from(self._at)
            if found is None:
                pace = await self._next_pass(pace)
                continue
            file, seq = found
            run = self._run_from(file, seq)
            cost = _cost_of_run(run)
            age = self._age(registry.verified_at(file, seq))
            now = self._clock.moment()
            wait = pace.due(now, cost, self._left_now(), age) - now
            if wait > 0:
                await self._clock.sleep(min(wait, LOOK_SECONDS))
                continue
            pace.last = now
            cost = _cost_of_run(await self._check(file, seq, run))
            self._left -= cost
            self._unclaimed += cost
            if self._unclaimed * STRETCHES > self._all:
                self._end_stretch()
                await self._journal()
                await self._look_ahead()
            rest = LATE_REST if pace.is_late(now, age) else REST
            await self._clock.sleep(rest * (self._clock.moment() - now))

    async def _next_pass(self, pace: Pace) -> Pace:
        """All were read: begin again, when there is something."""
        self._end_stretch()
        await self._journal()
        if self._at == START:
            await self._clock.sleep(min(pace.period / 16, LOOK_SECONDS))
        self._at = self._from = START
        await self._look_ahead()
        return pace.next_pass(self._clock.moment())

    async def _look_ahead(self) -> None:
        """Add up what is left to be read, in small steps: everyone waits for the event loop."""
        registry = self._engine.registry
        left, (last, seq) = 0, self._at
        file = registry.file(last)
        if file is not None and file.status in (Status.READY, Status.DAMAGED):
            left = _cost_of(file.parts - seq, file.size - seq * file.part_size)
        while page := registry.files_after(last, PAGE):
            last = page[-1].id
            left += sum(
                _cost_of(file.parts, file.size) for file in page if file.status in (Status.READY, Status.DAMAGED)
            )
            await asyncio.sleep(0)
        self._left, self._all = left, self._cost_of_all()

    def _left_now(self) -> int:
        """What is left, if all that came and went since was ahead, as what is new is."""
        return self._left + self._cost_of_all() - self._all

    def _cost_of_all(self) -> int:
        registry = self._engine.registry
        return PART_COST * (registry.files_ready + registry.parts_ready) + registry.size

    # --- runs ---

    def _run_from(self, file: File, seq: int) -> list[Part]:
        """The parts to be read at one go; none of an empty file."""
        run = next(plan_runs(self._engine, file, Range(seq * file.part_size, file.size)), [])
        return run[: max(1, RUN_BYTES // file.part_size)]

    async def _check(self, file: File, seq: int, run: list[Part]) -> list[Part]:
        """Read a run, or as much of it as there is memory for, and go behind it; returns what that is."""
        self._pass_over((file.id, seq))
        error: RequestError | None = None
        with self._engine.pinned(file):
            try:
                run = await self._read(run) if run else run
            except RequestError as failure:
                error = failure
        end = seq + len(run)
        behind = (file.id, end) if end < file.parts else (file.id + 1, 0)
        if error is not None:
            log.warning("file %d: parts that could not be verified wait for the next pass: %s", file.id, error)
            self._end_stretch()
            self._from = behind
        self._at = behind
        return run

    async def _read(self, run: list[Part]) -> list[Part]:
        engine = self._engine
        extents = await engine.budget.take([part.size for part in run], self._flow)
        try:
            run = run[: len(extents)]
            bad = await check_run(engine, run, extents, self._flow)
        finally:
            engine.budget.give(extents)
        if not {part.seq for part in bad} <= set(engine.registry.bad_parts(run[0].file)):
            raise IoError("the journal could not be told what is damaged")
        self.parts += len(run)
        return run

    # --- what was read ---

    def _pass_over(self, position: Position) -> None:
        """Go there, where reading goes on. Files on the way that are still being stored do not count as read."""
        if any(self._at <= (file.id, 0) < position for file in self._engine.registry.interrupted()):
            self._end_stretch()
            self._from = self._at = position
        if self._at == self._from:
            self._since = self._clock.wall()
        self._at = position

    def _end_stretch(self) -> None:
        if self._from < self._at:
            # Earlier, if the clock was set back meanwhile.
            since = min(self._since, self._clock.wall())
            self._claims.append(records.Verified(self._from, self._at, since))
        self._from = self._at

    async def _journal(self) -> None:
        """Tell the journal what was read; if that fails, it is told later."""
        claims, self._unclaimed = self._claims, 0
        with suppress(RequestError):
            await self._engine.committer.commit(claims)
            self._claims = []


def _cost_of_run(run: list[Part]) -> int:
    return _cost_of(len(run), sum(part.size for part in run))


def _cost_of(parts: int, size: int) -> int:
    return PART_COST * (1 + parts) + size
