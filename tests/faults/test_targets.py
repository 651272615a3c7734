"""Targets of gets that are taken, swapped or removed meanwhile, and daemons that die while they write one."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Count
from tests.harness import PART, Daemon, noise
from tests.test_wire_put import by_size
from tests.wire import code

CONTENT = noise(40 * PART + 7)


def remove_directory(place: Path) -> None:
    shutil.rmtree(place)


def take_the_name(place: Path) -> None:
    (place / "target").write_bytes(b"precious")


def take_it_with_a_symlink(place: Path) -> None:
    (place / "target").symlink_to("../elsewhere")


def take_it_with_a_directory(place: Path) -> None:
    (place / "target").mkdir()


@pytest.mark.promise("target")
@pytest.mark.parametrize("options", [b"", b" replace=yes", b" replace=yes sync=yes"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (remove_directory, ["not-found", "not-found"]),
        (take_the_name, ["exists", "OK"]),
        (take_it_with_a_symlink, ["exists", "denied"]),
        (take_it_with_a_directory, ["exists", "denied"]),
    ],
)
def test_what_happens_to_a_target_while_it_is_written(
    shared_daemon: Daemon, change: Callable[[Path], None], words: list[str], options: bytes
) -> None:
    shared_daemon.ask(by_size("big", CONTENT).replace(b" size", b" replace=yes size"))
    place = shared_daemon.root / "place"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    workers = shared_daemon.workers()
    with shared_daemon.connect() as wire:
        for worker in workers:
            worker.suspend()
        try:
            wire.send(b"get big place/target%b\n" % options)
            shared_daemon.wait_until("processes_busy", "2")
            change(place)
        finally:
            for worker in workers:
                worker.resume()
        assert code(wire.reply()[-1]) == words[bool(options)]
    if change is remove_directory:
        assert not place.exists()
        return
    assert os.listdir(place) == ["target"], "no temporary is left"
    assert not (shared_daemon.root / "elsewhere").exists()
    if change is take_the_name:
        assert (place / "target").read_bytes() == (CONTENT if options else b"precious")


@pytest.mark.promise("target")
def test_a_target_may_be_the_source_of_the_file(shared_daemon: Daemon) -> None:
    source = shared_daemon.root / "same"
    source.write_bytes(CONTENT)
    assert code(shared_daemon.ask(b"put same replace=yes\n")[-1]) == "OK"
    assert code(shared_daemon.ask(b"get same same\n")[-1]) == "exists"
    assert code(shared_daemon.ask(b"get same same replace=yes\n")[-1]) == "OK"
    assert source.read_bytes() == CONTENT


#: As protocol.md says how to remove what a killed daemon leaves.
STALE = ["-name", ".*.pfsd-????????????????"]


@pytest.mark.thorough
@pytest.mark.promise("target")
def test_a_target_is_whole_or_as_it_was_whenever_the_daemon_dies(idle_daemon: Daemon, count: Count) -> None:
    """Three targets at a time: a new one, one that is replaced, and one that is on the disk first."""
    seed = int(os.environ.get("PFSD_TEST_SEED", "0")) or random.randrange(1, 1 << 32)
    print(f"PFSD_TEST_SEED={seed}")
    randomness = random.Random(seed)
    root, cut = idle_daemon.root, 0
    idle_daemon.start()
    idle_daemon.ask(by_size("big", CONTENT))
    began = time.monotonic()
    assert code(idle_daemon.ask(b"get big warm sync=yes\n")[-1]) == "OK"
    longest = 2 * (time.monotonic() - began)
    for _ in range(count(1, 34)):
        for name in ("new", "synced"):
            (root / name).unlink(missing_ok=True)
        (root / "old").write_bytes(b"precious")
        wires = [idle_daemon.connect() for _ in range(3)]
        for wire, request in zip(wires, (b"new", b"old replace=yes", b"synced sync=yes"), strict=True):
            wire.send(b"get big %b\n" % request)
        time.sleep(randomness.uniform(0, longest))  # the moment is what is tried, nothing is waited for
        idle_daemon.kill()
        for wire in wires:
            wire.close()
        assert (root / "old").read_bytes() in (b"precious", CONTENT)
        for name in ("new", "synced"):
            assert not (root / name).exists() or (root / name).read_bytes() == CONTENT
            cut += not (root / name).exists()
        subprocess.run(["find", str(root), *STALE, "-delete"], check=True)
        assert {path.name for path in root.iterdir()} <= {"new", "old", "synced", "warm"}
        idle_daemon.start()
    assert cut or count(1, 0), "it was never killed in the middle"
