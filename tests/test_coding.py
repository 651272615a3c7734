"""`codec: auto` against simulated machines: what it measures is computed here, no clock is read."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from pfsd import codecs, coding
from pfsd.coding import SAMPLE_EVERY, WINDOW_BYTES, Auto, Choice, Chooser, Fixed, Measured
from pfsd.config import worker_overhead

MIB = 1 << 20
RUN = 16 * MIB

#: How much source shrinks at the levels of zstd; other content is given as a factor to it.
RATIOS = {1: 5.94, 3: 6.52, 5: 7.05, 6: 7.32}


@dataclass
class Machine:
    """I/O processes that code and write in turn, and a disk that works in the background.

    A run takes an I/O process the longer of two times: what it does itself, and the process's share of the disk.
    """

    disk: float  # bytes a second
    sync: float = 0.0  # seconds that nothing hides
    coder: float = 600 * MIB  # bytes a second of one process at level 1
    hasher: float = 2000 * MIB
    processes: int = 2
    seconds: float = 0.0
    stored: int = 0
    levels: list[int] = field(default_factory=list)

    def store(self, chooser: Chooser, runs: int, ratio: float = 1.0, size: int = RUN) -> None:
        """Store runs that shrink to `ratio` of what source does; ratio 0 does not shrink at all."""
        for _ in range(runs):
            choice = chooser.choose()
            chooser.tell(choice, self.run(choice, ratio, size))

    def run(self, choice: Choice, ratio: float = 1.0, size: int = RUN) -> Measured:
        coded = 0 if choice.codec == "none" else max(size // choice.every, MIB)
        shrunk = coded if not ratio else int(coded / (1 + (RATIOS[choice.level] - 1) * ratio))
        stored = size - coded + shrunk
        coding_seconds = coded / self.coder * (coding.COSTS[choice.level] if ratio else 0.1)
        busy = size / self.hasher + coding_seconds
        writing = self.sync + stored / (2000 * MIB) + max(0.0, self.processes * stored / self.disk - busy)
        self.seconds += busy + writing
        self.stored += stored
        self.levels.append(choice.level if choice.every == 1 else 0)
        return Measured(coded, shrunk, coding_seconds, writing)

    @property
    def changes(self) -> int:
        return sum(one != other for one, other in zip(self.levels, self.levels[1:], strict=False))


RAM = 8000 * MIB
SLOW = 15 * MIB


# --- content ------------------------------------------------------------------------------------


def test_content_that_does_not_shrink_is_raw_after_its_first_run() -> None:
    file = Auto(1).file()
    first = file.choose()
    assert first == Choice("zstd", 1)
    file.tell(first, Measured(RUN, RUN + 100, 0.01, 0.02))
    assert file.choose() == Choice("zstd", 1, SAMPLE_EVERY)


@pytest.mark.parametrize(("kept", "every"), [(31 / 32, 1), (31 / 32 + 0.001, SAMPLE_EVERY)])
def test_a_small_gain_is_no_gain(kept: float, every: int) -> None:
    file = Auto(1).file()
    file.tell(file.choose(), Measured(RUN, int(kept * RUN), 0.01, 0.02))
    assert file.choose().every == every


def test_a_change_in_the_middle_of_a_file_is_seen_in_the_next_sample() -> None:
    machine, file = Machine(RAM), Auto(1).file()
    machine.store(file, 20, ratio=0)
    assert machine.levels == [1] + 19 * [0]
    machine.store(file, 10)
    assert machine.levels[20:] == [0] + 9 * [1]
    machine.store(file, 10, ratio=0)
    assert machine.levels[30:] == [1] + 9 * [0]


def test_a_run_without_a_sample_changes_nothing() -> None:
    file = Auto(1).file()
    file.tell(file.choose(), Measured(MIB, MIB, 0.01, 0.02))
    file.tell(file.choose(), Measured(0, 0, 0.0, 0.02))
    assert file.choose().every == SAMPLE_EVERY


def test_files_are_judged_one_by_one() -> None:
    auto = Auto(1)
    one, other = auto.file(), auto.file()
    one.tell(one.choose(), Measured(RUN, RUN, 0.01, 0.02))
    assert (one.choose().every, other.choose().every, auto.choose().every) == (SAMPLE_EVERY, 1, 1)


# --- CPU or disk --------------------------------------------------------------------------------


def test_a_busy_cpu_keeps_the_fast_level() -> None:
    machine, auto = Machine(RAM), Auto(1)
    machine.store(auto.file(), 1000)
    assert set(machine.levels) == {1}
    assert auto.facts == {"codec": "auto", "level": 1, "bottleneck": "cpu"}


def test_a_slow_disk_gets_stronger_coding_and_becomes_faster_by_it() -> None:
    machine, auto = Machine(SLOW), Auto(1)
    fast = Machine(SLOW)
    machine.store(auto.file(), 100)
    fast.store(Fixed("zstd", 1), 100)
    assert machine.levels[-1] == 6
    assert sorted(set(machine.levels)) == [1, 3, 5, 6]
    assert machine.changes == 3
    assert machine.stored < 0.87 * fast.stored
    assert machine.seconds < 0.92 * fast.seconds


@pytest.mark.parametrize("disk", [MIB * speed for speed in (10, 30, 50, 70, 100, 120, 150, 175, 200, 300, 500, 4000)])
@pytest.mark.parametrize("ratio", [1.0, 0.3, 0.1])
def test_whatever_the_disk_it_settles_and_is_not_slower_than_the_fast_level(disk: float, ratio: float) -> None:
    machine, auto, fast = Machine(disk), Auto(1), Machine(disk)
    machine.store(auto.file(), 2000, ratio)
    fast.store(Fixed("zstd", 1), 2000, ratio)
    assert machine.seconds < 1.01 * fast.seconds
    assert machine.stored <= fast.stored
    assert machine.changes <= 12
    assert len(set(machine.levels[-1000:])) <= 2


def test_it_steps_down_again_when_the_disk_becomes_fast() -> None:
    machine, auto = Machine(SLOW), Auto(1)
    machine.store(auto, 100)
    assert auto.level == 6
    machine.disk = RAM
    machine.store(auto, 3 * WINDOW_BYTES // RUN)
    assert auto.level == 1


def test_waiting_that_coding_does_not_shorten_is_noticed() -> None:
    """Small runs wait for the answer of the disk, not for its bandwidth: a step is tried, found slower, taken back."""
    machine, auto, fast = Machine(RAM, sync=0.01), Auto(1), Machine(RAM, sync=0.01)
    machine.store(auto, 10_000, size=4 * MIB)
    fast.store(Fixed("zstd", 1), 10_000, size=4 * MIB)
    assert auto.facts["bottleneck"] == "disk"
    assert 2 <= machine.changes <= 30
    assert machine.seconds < 1.02 * fast.seconds


def test_a_single_hiccup_changes_nothing() -> None:
    machine, auto = Machine(RAM), Auto(1)
    for _ in range(50):
        machine.store(auto, 7)
        auto.tell(auto.choose(), machine.run(auto.choose())._replace(writing=1.0))
    # Its window speaks for more, the next one does not.
    assert set(machine.levels) == {1}


def test_changes_become_rarer_when_the_load_comes_and_goes() -> None:
    machine, auto = Machine(SLOW), Auto(1)
    changes = []
    for _ in range(20):
        before = machine.changes
        for disk in (SLOW, RAM):
            machine.disk = disk
            machine.store(auto, 12)
        changes.append(machine.changes - before)
    assert changes[0] > 0 and sum(changes[10:]) == 0


# --- what counts --------------------------------------------------------------------------------


def test_content_that_does_not_shrink_says_nothing_of_the_level() -> None:
    machine, auto = Machine(SLOW), Auto(1)
    for _ in range(100):
        machine.store(auto.file(), 2, ratio=0)
    assert auto.facts == {"codec": "auto", "level": 1, "bottleneck": "unknown"}


def test_runs_that_began_at_another_level_say_nothing_of_this_one() -> None:
    machine, auto = Machine(SLOW), Auto(1)
    machine.store(auto, coding.FIRST_PATIENCE * WINDOW_BYTES // RUN)
    assert auto.level == 3
    for _ in range(100):
        auto.tell(Choice("zstd", 1), machine.run(Choice("zstd", 1)))
    assert auto.level == 3


def test_batches_of_small_files_steer_the_level_and_follow_it() -> None:
    machine, auto = Machine(SLOW), Auto(1)
    machine.store(auto, 1000, size=MIB)
    assert auto.level > 1
    assert auto.choose() == auto.file().choose()
    machine.store(auto, 1, ratio=0, size=MIB)  # each part stays raw by itself; the next batch may hold others
    assert auto.choose().every == 1


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("level", "highest"), [(1, 6), (2, 6), (4, 6), (5, 6), (6, 6), (7, 7), (19, 19)])
def test_the_level_of_the_configuration_is_the_fast_one(level: int, highest: int) -> None:
    auto = Auto(level)
    assert auto.choose() == Choice("zstd", level)
    for _ in range(1000):
        auto.tell(auto.choose(), Measured(RUN, RUN // 6, 0.001, 60.0))
    assert auto.level == highest
    assert coding.strongest("auto", level) == ("zstd", highest)


def test_every_level_that_may_be_left_has_its_cost() -> None:
    assert set(coding.COSTS) == set(range(1, coding.STEPS[-1] + 1))
    costs = [coding.COSTS[level] for level in sorted(coding.COSTS)]
    assert costs == sorted(costs)


@pytest.mark.parametrize(("codec", "level"), [("zstd", 3), ("zlib", 6), ("none", 1)])
def test_other_codecs_are_as_configured(codec: str, level: int) -> None:
    policy = coding.policy(codec, level)
    file = policy.file()
    for _ in range(100):
        assert policy.choose() == file.choose() == Choice(codec, level)
        file.tell(file.choose(), Measured(RUN, RUN, 0.01, 60.0))
    assert policy.facts == {"codec": codec, "level": level}
    assert coding.strongest(codec, level) == (codec, level)


@pytest.mark.parametrize("part_size", [4096, MIB, 64 * MIB])
def test_memory_is_counted_for_the_strongest_level(part_size: int) -> None:
    assert worker_overhead("auto", 1, part_size) == worker_overhead("zstd", 6, part_size)
    assert worker_overhead("auto", 12, part_size) == worker_overhead("zstd", 12, part_size)
    assert codecs.workspace("zstd", 6, part_size) >= codecs.workspace("zstd", 1, part_size)
