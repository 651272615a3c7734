"""Advice from made-up machines: each piece of it for the reason it gives, and all of it fit for the configuration."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pfsd import config
from pfsd.advise import Advice, Coded, Disk, Machine, Sample, advise, as_json, report, snippet

MIB = 1 << 20
GIB = 1 << 30

CODED = (
    Coded("zstd", 1, 600 * MIB, 1200 * MIB, 5.9),
    Coded("zstd", 3, 450 * MIB, 1200 * MIB, 6.5),
    Coded("zstd", 6, 150 * MIB, 1200 * MIB, 7.3),
    Coded("zlib", 1, 200 * MIB, 500 * MIB, 5.0),
)
MACHINE = Machine(
    cpus=4,
    memory=16 * GIB,
    sample=Sample("the files given", 32 * MIB, 32, 0.0),
    md5=700 * MIB,
    md5_lanes=3500 * MIB,
    coded=CODED,
    disk=Disk("/store", 1000 * MIB, 0.0004),
    scaling={1: 500 * MIB, 2: 1000 * MIB, 4: 1900 * MIB},
)


def advised(machine: Machine, part_size: int = MIB) -> dict[str, Advice]:
    return {each.key: each for each in advise(machine, part_size)}


def values(machine: Machine, part_size: int = MIB) -> dict[str, str]:
    return {key: each.value for key, each in advised(machine, part_size).items()}


def shrinking_by(ratio: float) -> tuple[Coded, ...]:
    return tuple(replace(each, ratio=ratio) for each in CODED)


SLOW_DISK = replace(MACHINE, disk=Disk("/store", 20 * MIB, 0.01))


def test_a_fast_machine_keeps_the_fast_level() -> None:
    assert values(MACHINE) == {"processes": "auto", "memory": "304MiB", "codec": "zstd", "level": "1", "md5": "auto"}
    assert "level 3: 1515 MiB/s, 9% smaller" in advised(MACHINE)["level"].reason


def test_a_put_is_as_fast_as_cores_or_disk_allow() -> None:
    assert MACHINE.put_rate(CODED[0]) == pytest.approx(3.8 / (1 / (3500 * MIB) + 1 / (600 * MIB)))
    assert SLOW_DISK.put_rate(CODED[0]) == 20 * MIB * 5.9


def test_a_slow_disk_gets_stronger_coding_by_measurement() -> None:
    advice = advised(SLOW_DISK)
    assert (advice["codec"].value, advice["level"].value) == ("auto", "6")
    assert "slower than the cores" in advice["codec"].reason


@pytest.mark.parametrize(
    ("ratio", "raw", "codec"),
    [(1.0, 1.0, "none"), (1.02, 0.9, "none"), (1.5, 0.5, "auto"), (1.5, 0.1, "auto"), (1.5, 0.05, "zstd")],
)
def test_the_codec_is_for_the_content(ratio: float, raw: float, codec: str) -> None:
    sample = replace(MACHINE.sample, raw_share=raw)
    machine = replace(MACHINE, sample=sample, coded=shrinking_by(ratio), disk=Disk("/store", 8 * GIB, 0.0))
    assert values(machine)["codec"] == codec


@pytest.mark.parametrize(
    ("scaling", "value"),
    [
        ({1: 500.0, 2: 990.0, 4: 1900.0}, "auto"),
        ({1: 500.0, 2: 990.0, 4: 1050.0}, "2"),
        ({1: 500.0, 2: 490.0, 4: 480.0}, "1"),
    ],
)
def test_processes_that_bring_nothing_are_not_advised(scaling: dict[int, float], value: str) -> None:
    assert values(replace(MACHINE, scaling=scaling))["processes"] == value


@pytest.mark.parametrize(("lanes", "value"), [(None, "auto"), (3500 * MIB, "auto"), (750 * MIB, "hashlib")])
def test_lanes_have_to_be_worth_their_memory(lanes: float | None, value: str) -> None:
    advice = advised(replace(MACHINE, md5_lanes=lanes))["md5"]
    assert advice.value == value
    assert ("numba" in advice.reason) == (lanes is None)


@pytest.mark.parametrize(("free", "memory"), [(16 * GIB, "304MiB"), (GIB, "256MiB"), (100 * MIB, "48MiB")])
def test_memory_is_for_full_runs_or_what_there_is(free: int, memory: str) -> None:
    advice = advised(replace(MACHINE, memory=free))["memory"]
    assert advice.value == memory
    assert ("would allow" in advice.reason) == (free <= GIB)


@pytest.mark.parametrize("part_size", [4096, MIB, 64 * MIB])
@pytest.mark.parametrize("free", [MIB, GIB, 1024 * GIB])
@pytest.mark.parametrize("machine", [MACHINE, SLOW_DISK, replace(MACHINE, cpus=1, scaling={1: 500.0})])
def test_what_is_advised_is_a_configuration(tmp_path: Path, machine: Machine, free: int, part_size: int) -> None:
    advice = advise(replace(machine, memory=free), part_size)
    lines = [*snippet(advice), f"part_size: {part_size}"]
    if advice[0].value == "auto":  # as many as the made-up machine has
        lines[0] = f"processes: {machine.cpus}"
    path = tmp_path / "config.yaml"
    path.write_text("\n".join(lines))
    settings = config.load(path, {})
    assert (settings.codec, settings.level) == (advice[2].value, int(advice[3].value))
    assert settings.slab_size >= 2 * part_size


def test_the_report_holds_every_number_and_the_lines_to_paste() -> None:
    advice = advise(MACHINE, MIB)
    text = report(MACHINE, advice)
    for words in (
        "4 cores, 16GiB of memory free",
        "32.0 MiB, pieces: 32, of the files given; 0% of them do not shrink",
        "zstd 3         450    1200    6.50    1515",
        "md5: hashlib 700, lanes 3500",
        "1000 written and synced, 0.40 ms for a small sync, in /store",
        "processes: 1: 500, 2: 1000, 4: 1900",
        *snippet(advice),
    ):
        assert words in text
    assert "that is little" not in text
    little = replace(MACHINE, sample=replace(MACHINE.sample, bytes=MIB - 1))
    assert "that is little" in report(little, advice)
    assert "lanes not installed" in report(replace(MACHINE, md5_lanes=None), advice)


def test_json_has_everything() -> None:
    advice = advise(MACHINE, MIB)
    machine = json.loads(json.dumps(as_json(MACHINE, advice)))
    assert machine["machine"]["scaling"] == {"1": 500 * MIB, "2": 1000 * MIB, "4": 1900 * MIB}
    assert [row["level"] for row in machine["machine"]["coded"]] == [1, 3, 6, 1]
    assert machine["advice"][0] == {"key": "processes", "value": "auto", "reason": advice[0].reason}
