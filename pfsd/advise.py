"""From what `measure` saw of a machine to settings that suit it, each with its reason, and how that is printed.

Pure: numbers in, words out. It reads no file and no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pfsd import config
from pfsd.coding import RAW_ABOVE
from pfsd.kinds import MIB, format_size

#: A weaker setting is as good as a stronger one when it has this share of its speed.
AS_FAST = 0.9
#: Lanes have to be faster than hashlib by this factor, for the memory they take.
LANES_GAIN = 1.2
#: Below this share of pieces that do not shrink, content is taken for uniform.
MIXED_FROM = 0.1
#: With less than this as a sample, what is around the coding counts as much as the coding.
LITTLE_BYTES = 1 * MIB
#: Memory is advised for so many full runs for each process: two commands, each with one at work and one waiting.
RUNS_FOR_EACH = 4
#: and at most this share of what the machine has free.
MEMORY_SHARE = 0.25


# --- what was measured --------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """The content that was coded."""

    origin: str  # in words
    bytes: int
    pieces: int
    raw_share: float  # of the pieces do not shrink


@dataclass(frozen=True)
class Coded:
    """One codec and level: bytes of content for each second of one core, and size before by size after."""

    codec: str
    level: int
    encode: float
    decode: float
    ratio: float


@dataclass(frozen=True)
class Disk:
    """The file system of the store: bytes a second, written and synced in packs; seconds of one small sync."""

    path: str
    write: float
    sync: float


@dataclass(frozen=True)
class Machine:
    """Everything measured. Rates are bytes a second, of one core unless said otherwise."""

    cpus: int
    memory: int  # bytes free
    sample: Sample
    md5: float  # hashlib
    md5_lanes: float | None  # None where numba is not installed
    coded: tuple[Coded, ...]
    disk: Disk
    scaling: dict[int, float]  # processes -> bytes a second that all of them code together

    @property
    def best_md5(self) -> float:
        return max(self.md5, self.md5_lanes or 0.0)

    def put_rate(self, coded: Coded) -> float:
        """Estimated bytes a second of a big put with all processes: as fast as cores or disk allow."""
        cores = max(self.scaling.values()) / self.scaling[1]
        return min(cores / (1 / self.best_md5 + 1 / coded.encode), self.disk.write * coded.ratio)


# --- advice -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Advice:
    """A line for the configuration, and why."""

    key: str
    value: str
    reason: str


def advise(machine: Machine, part_size: int) -> list[Advice]:
    """Settings for this machine, for parts of `part_size` bytes. Each pair of key and value fits the configuration."""
    processes = _processes(machine)
    codec = _codec(machine)
    level = _level(machine, codec.value)
    count = machine.cpus if processes.value == "auto" else int(processes.value)
    memory = _memory(machine, count, codec.value, int(level.value), part_size)
    return [processes, memory, codec, level, _md5(machine)]


def _processes(machine: Machine) -> Advice:
    best = max(machine.scaling.values())
    enough = min(count for count, rate in machine.scaling.items() if rate >= AS_FAST * best)
    gain = machine.scaling[enough] / machine.scaling[1]
    if enough >= machine.cpus:
        reason = f"{enough} code {gain:.1f} times as fast as one" if enough > 1 else "there is one core"
        return Advice("processes", "auto", reason)
    return Advice("processes", str(enough), f"more are hardly faster than {enough} ({gain:.1f} times as fast as one)")


def _memory(machine: Machine, processes: int, codec: str, level: int, part_size: int) -> Advice:
    overhead = config.worker_overhead(codec, level, part_size)
    least = config.least_memory(processes, overhead, part_size)
    runs = RUNS_FOR_EACH * processes * config.MAX_RUN_PARTS * part_size
    wanted = processes * overhead + config.DAEMON_RESERVE + runs
    share = int(MEMORY_SHARE * machine.memory)
    chosen = max(least, min(wanted, share))
    reason = f"full runs in {processes} process{'es' if processes > 1 else ''}, for two commands at once"
    if chosen < wanted:
        reason = f"{'the least that works' if chosen == least else 'a quarter of what is free'}; "
        reason += f"{format_size(_whole(wanted))} would allow two commands full runs at once"
    return Advice("memory", format_size(_whole(chosen)), reason)


def _whole(size: int) -> int:
    """A size people would write: rounded up to 16 MiB."""
    return -(-size // (16 * MIB)) * 16 * MIB


def _codec(machine: Machine) -> Advice:
    fast = _zstd(machine)[0]
    raw = machine.sample.raw_share
    if fast.ratio < 1 / RAW_ABOVE:
        return Advice("codec", "none", f"the sample does not shrink: ratio {fast.ratio:.2f}")
    if raw >= MIXED_FROM:
        return Advice(
            "codec", "auto", f"{raw:.0%} of the sample does not shrink, the rest does: ratio {fast.ratio:.2f}"
        )
    if machine.disk.write * fast.ratio <= machine.put_rate(fast):
        return Advice("codec", "auto", "the disk is slower than the cores: stronger coding is free")
    return Advice("codec", "zstd", f"the sample shrinks, ratio {fast.ratio:.2f}, and the disk keeps up with the cores")


def _level(machine: Machine, codec: str) -> Advice:
    if codec == "none":
        return Advice("level", "1", "for when the codec is changed: none has no levels")
    levels = _zstd(machine)
    best = max(machine.put_rate(each) for each in levels)
    fits = [each for each in levels if machine.put_rate(each) >= AS_FAST * best]
    chosen = max(fits, key=lambda each: each.ratio)
    reason = f"about {_mib(machine.put_rate(chosen))} MiB/s for a big put"
    stronger = next((each for each in levels if each.level > chosen.level), None)
    if stronger is not None:
        saved = 1 - chosen.ratio / stronger.ratio
        reason += f"; level {stronger.level}: {_mib(machine.put_rate(stronger))} MiB/s, {max(0.0, saved):.0%} smaller"
    return Advice("level", str(chosen.level), reason)


def _md5(machine: Machine) -> Advice:
    if machine.md5_lanes is None:
        return Advice("md5", "auto", "numba is not installed; with it hashing is often several times as fast")
    gain = machine.md5_lanes / machine.md5
    if gain < LANES_GAIN:
        return Advice("md5", "hashlib", f"lanes are {gain:.1f} times as fast here and take 40 MiB for each process")
    return Advice("md5", "auto", f"lanes are {gain:.1f} times as fast as hashlib")


def _zstd(machine: Machine) -> list[Coded]:
    """What was measured of zstd, by level."""
    return sorted((each for each in machine.coded if each.codec == "zstd"), key=lambda each: each.level)


# --- showing ------------------------------------------------------------------------------------


def as_json(machine: Machine, advice: Sequence[Advice]) -> dict[str, Any]:
    """Everything, as JSON can say it."""
    return {"machine": asdict(machine), "advice": [asdict(each) for each in advice]}


def report(machine: Machine, advice: Sequence[Advice]) -> str:
    """The measurements as tables and the advice as lines for the configuration."""
    sample, disk = machine.sample, machine.disk
    lanes = "not installed" if machine.md5_lanes is None else _mib(machine.md5_lanes)
    rows = [
        f"{machine.cpus} cores, {format_size(machine.memory // MIB * MIB)} of memory free; rates are MiB/s",
        f"sample: {sample.bytes / MIB:.1f} MiB, pieces: {sample.pieces}, of {sample.origin}; "
        f"{sample.raw_share:.0%} of them do not shrink",
        *(["that is little: the rates below say not much"] if sample.bytes < LITTLE_BYTES else []),
        "",
        f"{'coding':10}{'encode':>8}{'decode':>8}{'ratio':>8}{'put':>8}",
        *(
            f"{each.codec + ' ' + str(each.level):10}{_mib(each.encode):>8}{_mib(each.decode):>8}"
            f"{each.ratio:8.2f}{_mib(machine.put_rate(each)):>8}"
            for each in machine.coded
        ),
        "encode and decode: one core; put: estimated for a big file with all cores and this disk",
        "",
        f"md5: hashlib {_mib(machine.md5)}, lanes {lanes} (one core)",
        f"disk: {_mib(disk.write)} written and synced, {disk.sync * 1000:.2f} ms for a small sync, in {disk.path}",
        "processes: " + ", ".join(f"{count}: {_mib(rate)}" for count, rate in machine.scaling.items()),
        "",
        "# for config.yaml",
        *snippet(advice),
    ]
    return "\n".join(rows)


def snippet(advice: Sequence[Advice]) -> list[str]:
    """Lines to paste into the configuration."""
    return [f"{each.key + ': ' + each.value:20} # {each.reason}" for each in advice]


def _mib(rate: float) -> str:
    """A rate in MiB/s, with a digit behind the point when it is small."""
    mib = rate / MIB
    return f"{mib:.0f}" if mib >= 10 else f"{mib:.1f}"
