"""Every state that a power cut may leave is recovered from: nothing acknowledged is lost, nothing half done is there.

Random commands run on a simulated disk, in several lives: some end with a power cut, some with the death of the
process, which leaves what nobody synced in the cache of the system. Prefixes of what was asked of the disk are then
turned into states of a real directory, which a daemon opens, twice.

And each sync in pfsd is needed: left out, some state shows it.
"""

from __future__ import annotations

import ast
import asyncio
import os
import random
import shutil
from collections.abc import Awaitable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import pfsd
from pfsd.config import Config
from pfsd.errors import PfsdError, RequestError
from tests.faults.conftest import Count
from tests.faults.in_process import PART, InProcess, at, configuration, small_limits
from tests.faults.simulated import (
    ALL_CAME,
    DIRECTORY,
    NOTHING_CAME,
    Mark,
    Names,
    OnlyOverwritten,
    Overwrite,
    PowerCut,
    Recorder,
    State,
    Sync,
    Trace,
    Write,
    put_there,
    state_after,
)

#: Where the store is, below what is recorded: neither directory is there at first.
STORE = "deep/store"
NAMES = [b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h"]
#: The first seed; each test takes those from here on.
SEED = int(os.environ.get("PFSD_TEST_SEED", "1"))

Files = dict[bytes, bytes | None]


class Begun(NamedTuple):
    """A command that makes of the files `before` the files `after`."""

    number: int
    before: Files
    after: Files


class Answered(NamedTuple):
    """The client knows what became of it; `id` is that of a new file."""

    number: int
    done: bool
    id: int = 0


class Seen(NamedTuple):
    """A daemon has started, and shows these files."""

    files: dict[bytes, bytes]


class Torn(NamedTuple):
    """A daemon has found these bytes at this place behind the end of the journal, and promises to keep them."""

    offset: int
    content: bytes


# --- what happens -------------------------------------------------------------------------------


class Life:
    """A daemon that runs random commands on a recorded store."""

    def __init__(self, daemon: InProcess, recorder: Recorder, chance: random.Random) -> None:
        self._daemon = daemon
        self._recorder = recorder
        self._chance = chance
        self._files: Files = dict(daemon.files())
        self._number = len(recorder.trace.operations)

    async def go_on(self, batches: int) -> None:
        """Run some commands beside each other, then some more."""
        for _ in range(batches):
            if self._chance.random() < 0.15:
                self._recorder.fail_write("journal.jsonl", self._chance.choice([0.0, 0.5, 1.0]))
            if self._chance.random() < 0.1:
                await self._compact()
            free = set(NAMES)
            commands = [self._command(free) for _ in range(self._chance.choice([1, 1, 2, 4]))]
            await asyncio.gather(*commands)
        await self._daemon.settle()

    async def _compact(self) -> None:
        await self._daemon.settle()
        await self._daemon._committer.compact()  # or not, if the disk is full

    async def _command(self, free: set[bytes]) -> None:
        """Run one command on names that no other has."""
        chance = self._chance
        names = chance.sample(sorted(free), 2)
        free -= set(names)
        here = [name for name in names if name in self._files]
        kind = chance.choice(["put", "put", "put", "big", "rename", "delete"])
        if kind == "rename" and here:
            old = here[0]
            new = next(name for name in names if name != old)
            await self._do([{old: None, new: self._files[old]}], self._daemon.rename(old, new, replace=True))
        elif kind == "delete" and here:
            await self._do([{name: None} for name in here], self._daemon.delete(*here))
        elif kind == "big":
            content = chance.randbytes(chance.randint(16 * PART + 1, 36 * PART))
            put = self._daemon.put(names[0], content, replace=True, resumable=chance.random() < 0.5)
            await self._do([{names[0]: content}], put)
        else:
            content = chance.randbytes(chance.choice([0, 1, 100, PART, 2 * PART + 1]))
            await self._do([{names[0]: content}], self._daemon.put(names[0], content, replace=True))

    async def _do(self, changes: Sequence[Files], command: Awaitable[object]) -> None:
        """Run a command that makes these changes, each of which is whole by itself."""
        begun = []
        for after in changes:
            self._number += 1
            begun.append(Begun(self._number, {name: self._files.get(name) for name in after}, after))
            self._recorder.mark(begun[-1])
        try:
            result = await command
        except RequestError:
            for change in begun:
                self._recorder.mark(Answered(change.number, done=False))
            return
        for change in begun:
            self._recorder.mark(Answered(change.number, done=True, id=getattr(result, "id", 0)))
            self._files |= change.after
        self._files = {name: content for name, content in self._files.items() if content is not None}


class Lives:
    """Makes traces of daemons that lived one after the other."""

    def __init__(self, home: Path, seed: int) -> None:
        home.mkdir(exist_ok=True)
        self._home = home
        self._settings = configuration(home)
        self._chance = random.Random(seed)
        self._count = 0

    async def first(self, batches: int) -> Trace:
        """A store is made and used."""
        return await self._live(Recorder(self._new_root()), batches)

    async def after_kill(self, trace: Trace, length: int, batches: int) -> Trace:
        """The process dies at some point of a trace, and another takes over what the system has in its cache."""
        root = self._new_root()
        recorder = Recorder.going_on(root, trace, length)
        return await self._live(recorder, batches)

    async def after_power_cut(self, trace: Trace, length: int, batches: int) -> Trace:
        """The power goes at some point of a trace, and a daemon starts on what came to the disk."""
        root = self._new_root()
        put_there(state_after(trace, length, PowerCut(self._chance, self._chance.choice([0.0, 0.5, 1.0]))), root)
        recorder = Recorder(root)
        # Only what the next daemon finds counts from here on, but ids stay used.
        recorder.trace.operations += [
            Mark(mark._replace(done=False))
            for mark in marks_of(trace, length)
            if isinstance(mark, Answered) and mark.id and mark.done
        ]
        return await self._live(recorder, batches)

    async def _live(self, recorder: Recorder, batches: int) -> Trace:
        store = recorder.root / STORE
        before = _read(store / "journal.jsonl")
        torn_before = set(store.glob("journal.torn-*"))
        is_durable = not any(isinstance(one, Sync) for one in recorder.trace.operations)
        with recorder.watching():
            async with InProcess(at(self._settings, store)) as daemon:
                for path in set(store.glob("journal.torn-*")) - torn_before:
                    torn = path.read_bytes()
                    # What was not on the disk before the opening may be lost in it, and not thereafter.
                    start = 0 if is_durable else len(recorder.trace.operations)
                    recorder.trace.operations.insert(start, Mark(Torn(len(before) - len(torn), torn)))
                recorder.mark(Seen(daemon.files()))
                if is_durable:  # all that was there at the start: nothing of it may be lost in the opening
                    recorder.trace.operations.insert(0, Mark(Seen(daemon.files())))
                await Life(daemon, recorder, self._chance).go_on(batches)
        return recorder.trace

    def _new_root(self) -> Path:
        self._count += 1
        root = self._home / f"life-{self._count}"
        root.mkdir()
        return root


def _end_of_a_life(trace: Trace, chance: random.Random) -> int:
    """After any operation, or after one that is worth more: something was changed that is not synced yet."""
    worth_more = [
        [at for at, one in enumerate(trace.operations, 1) if is_it(one)]
        for is_it in (_adds_records, _names_journal, _makes_directory)
    ]
    ends = chance.choice([list(range(1, len(trace.operations) + 1)), *filter(None, worth_more)])
    return chance.choice(ends)


def _adds_records(operation: object) -> bool:
    return isinstance(operation, Write) and operation.data.startswith(b'{"seq"')


def _names_journal(operation: object) -> bool:
    return isinstance(operation, Names) and any(path == f"{STORE}/journal.jsonl" for path, _ in operation.changes)


def _makes_directory(operation: object) -> bool:
    return isinstance(operation, Names) and any(number == DIRECTORY for _, number in operation.changes)


def marks_of(trace: Trace, length: int) -> list[object]:
    return [one.fact for one in trace.operations[:length] if isinstance(one, Mark)]


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


# --- what has to be there -----------------------------------------------------------------------


class Recovery:
    """Opens stores as a crash left them, and looks at what is there."""

    def __init__(self, home: Path) -> None:
        self._settings: Config = configuration(home)
        self._root = home / "recovered"

    async def check(self, trace: Trace, length: int, cut: PowerCut) -> None:
        """Fail unless all that was acknowledged is there after this crash, and all else is old or new."""
        state, marks = state_after(trace, length, cut), marks_of(trace, length)
        shutil.rmtree(self._root, ignore_errors=True)
        self._root.mkdir()
        put_there(state, self._root)
        _check_torn(state, marks)
        store = self._root / STORE
        async with InProcess(at(self._settings, store)) as daemon:
            daemon.check()
            files = daemon.files()
            _check_files(files, marks)
            assert daemon.ids[0] > max((mark.id for mark in marks if isinstance(mark, Answered)), default=0)
            ids = daemon.ids[:2]  # the first start has also stepped over the numbers of packs that it swept
        first = _contents(store)
        async with InProcess(at(self._settings, store)) as daemon:
            daemon.check()
            assert daemon.files() == files
            assert daemon.ids[:2] == ids
        assert _contents(store) == first, "the second start has changed something"


def _check_files(found: dict[bytes, bytes], marks: Sequence[object]) -> None:
    certain: Files = {}
    running: dict[int, Begun] = {}
    for mark in marks:
        if isinstance(mark, Seen):
            certain, running = dict(mark.files), {}
        elif isinstance(mark, Begun):
            running[mark.number] = mark
        elif isinstance(mark, Answered) and mark.number in running:
            begun = running.pop(mark.number)
            certain |= begun.after if mark.done else begun.before
    for begun in running.values():
        now = {name: found.get(name) for name in begun.after}
        assert now in (begun.before, begun.after), "half of a command has happened"
        certain |= now
    assert found == {name: content for name, content in certain.items() if content is not None}


def _check_torn(state: State, marks: Sequence[object]) -> None:
    journal = state.get(f"{STORE}/journal.jsonl") or b""
    aside = [content for path, content in state.items() if path.startswith(f"{STORE}/journal.torn-")]
    for mark in marks:
        if isinstance(mark, Torn):
            in_place = journal[mark.offset : mark.offset + len(mark.content)] == mark.content
            assert in_place or mark.content in aside, "torn bytes are lost"


def _contents(store: Path) -> dict[str, bytes]:
    """All files that count."""
    found = {str(path.relative_to(store)): path.read_bytes() for path in store.rglob("*") if path.is_file()}
    return {path: content for path, content in found.items() if path != "lock" and not path.startswith("tmp/")}


# --- all states ---------------------------------------------------------------------------------


def cuts(chance: random.Random) -> Iterator[PowerCut]:
    """Ways in which the power may go, without end."""
    while True:
        yield NOTHING_CAME
        yield ALL_CAME
        for share in (0.1, 0.5, 0.9):
            yield PowerCut(chance, share)


@pytest.fixture
def home(in_memory: Path) -> Iterator[Path]:
    with small_limits():
        yield in_memory


@pytest.mark.timeout(300)
@pytest.mark.promise("durable")
@pytest.mark.promise("unknown")
@pytest.mark.promise("whole")
@pytest.mark.promise("torn")
@pytest.mark.parametrize("workload", range(50))
def test_no_power_cut_loses_what_was_acknowledged(workload: int, home: Path, count: Count) -> None:
    if workload >= count(2, 50):
        pytest.skip("only 2 of 50 workloads unless --faults=full")
    print(f"PFSD_TEST_SEED={SEED}, workload {workload}")
    asyncio.run(_try_states(home, SEED + workload, count(60, 200)))


async def _try_states(home: Path, seed: int, states: int) -> None:
    chance = random.Random(seed)
    traces = await _some_lives(home, seed, chance)
    recovery = Recovery(home)
    for number, cut in zip(range(states), cuts(chance), strict=False):
        trace = traces[number % len(traces)]
        length = chance.randint(1, len(trace.operations))
        try:
            await recovery.check(trace, length, cut)
        except (AssertionError, PfsdError) as error:
            raise AssertionError(f"seed {seed}, state {number}: after {length} of {len(trace.operations)}") from error


async def _some_lives(home: Path, seed: int, chance: random.Random) -> list[Trace]:
    lives = Lives(home, seed)
    traces = [await lives.first(12)]
    for _ in range(3):
        length = _end_of_a_life(traces[-1], chance)
        another = chance.choice([lives.after_kill, lives.after_power_cut])
        traces.append(await another(traces[-1], length, 4))
    return traces


@pytest.mark.promise("durable")
@pytest.mark.promise("torn")
def test_the_mark_never_is_ahead_of_the_journal(home: Path, count: Count) -> None:
    """The power goes right after it was written: it came to the disk, and nothing else that was not synced."""
    print(f"PFSD_TEST_SEED={SEED}")
    asyncio.run(_try_marks(home, SEED, count(20, 1000)))


async def _try_marks(home: Path, seed: int, states: int) -> None:
    recovery, tried = Recovery(home), 0
    for trace in await _some_lives(home, seed, random.Random(seed)):
        written = [at for at, one in enumerate(trace.operations, 1) if isinstance(one, Overwrite)]
        for length in written[-states // 4 :]:
            await recovery.check(trace, length, OnlyOverwritten())
            tried += 1
    assert tried >= min(states, 20) // 2


# --- every sync is needed -----------------------------------------------------------------------

ROOT = Path(pfsd.__file__).parent
#: What makes something durable, and what is called to do so.
SYNCS = {"fdatasync", "fsync_dir", "_sync_or_fail", "sync_published"}
#: Modules whose syncs are not for the store: the client's files, and what measures a disk.
ELSEWHERE = {"measure.py", "paths.py", "transfer.py"}
#: What `rebuild` makes durable, which no daemon runs: these commands cannot show that it is needed.
OF_REBUILD = {
    ("journal.py", "write"),
    ("rescue/directory.py", "move_to_lost"),
    ("rescue/directory.py", "put_in_place"),
}
#: What another sync makes durable too, in every order of events: a store does not rely upon the journal beside it.
TWICE = {("stores/local.py", "disk.fsync_dir(self._path)")}


class Site(NamedTuple):
    """A call in pfsd that makes something durable."""

    module: str
    function: str
    call: str
    first: int  # line
    last: int

    def __str__(self) -> str:
        return f"{self.module}:{self.first}:{self.function}:{self.call}"


@cache
def sites() -> list[Site]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        module = str(path.relative_to(ROOT))
        if module in ELSEWHERE:
            continue
        for function in ast.walk(ast.parse(path.read_text())):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if (module, function.name) in OF_REBUILD:
                continue
            for node in ast.walk(function):
                if not isinstance(node, ast.Call):
                    continue
                name = ast.unparse(node.func)
                if name.rpartition(".")[2] in SYNCS and not name.startswith("os."):
                    call = f"{name}({', '.join(map(ast.unparse, node.args))})"
                    if (module, call) in TWICE:
                        continue
                    found.append(Site(module, function.name, call, node.lineno, node.end_lineno or node.lineno))
    return found


def test_what_makes_nothing_of_the_store_durable_is_known() -> None:
    for module in ELSEWHERE:
        assert "fdatasync" in (ROOT / module).read_text()
    assert len({str(site) for site in sites()}) == len(sites()) >= 12


@pytest.mark.timeout(300)
@pytest.mark.promise("durable")
@pytest.mark.parametrize("site", sites(), ids=str)
def test_a_sync_that_is_left_out_is_noticed(site: Site, home: Path, count: Count) -> None:
    if sites().index(site) % count(len(sites()), 1) != SEED % count(len(sites()), 1):
        pytest.skip("one sync of all unless --faults=full")
    print(f"PFSD_TEST_SEED={SEED}")
    asyncio.run(_expect_loss(site, home))


async def _expect_loss(site: Site, home: Path) -> None:
    tried = 0
    for seed in range(SEED, SEED + 20):
        chance = random.Random(seed)
        recovery = Recovery(home)
        for trace in await _some_lives(home / f"{seed}", seed, chance):
            without = trace.without((site.module, site.first), site.last)
            left_out = _left_out(trace, without)
            for _, cut in zip(range(60 if left_out else 0), cuts(chance), strict=False):
                tried += 1
                # What was to be synced here may be synced by something else before long.
                length = min(chance.choice(left_out) + chance.randint(1, 40), len(without.operations))
                try:
                    await recovery.check(without, length, cut)
                except (AssertionError, PfsdError):
                    return
    pytest.fail(f"{tried} crash states, and none shows that this sync is needed")


def _left_out(trace: Trace, without: Trace) -> list[int]:
    """Where in `without` the operations were that only `trace` has."""
    places: list[int] = []
    kept = iter(without.operations)
    expected = next(kept, None)
    for place, operation in enumerate(trace.operations):
        if operation is expected:
            expected = next(kept, None)
        else:
            places.append(place - len(places))
    return places
