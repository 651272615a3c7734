"""Two daemons and one store, and a store that is taken away from under its daemon."""

from __future__ import annotations

import hashlib
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import Count, often_enough
from tests.harness import PATIENCE_SECONDS, Daemon
from tests.wire import code, fields

#: The store is looked at more often than in life.
OFTEN = "import pfsd.daemon; pfsd.daemon.LOOK_SECONDS = 0.05"
#: The journal is compacted sooner.
SMALL = "import pfsd.committer; pfsd.committer.Committer.__init__.__kwdefaults__['compact_above'] = 1000"


def tree_hash(path: Path) -> str:
    """All names, modes, times of change and contents below a directory."""
    found = hashlib.md5()
    for each in sorted(path.rglob("*")):
        status = each.lstat()
        found.update(repr((str(each.relative_to(path)), status.st_mode, status.st_mtime_ns, status.st_ino)).encode())
        found.update(each.read_bytes() if each.is_file() else b"")
    return found.hexdigest()


@pytest.fixture
def bound(tmp_path: Path) -> Iterator[Path]:
    """Another path to tmp_path/store: a bind mount where that is possible, else the same path."""
    path = tmp_path / "bound"
    path.mkdir()
    (tmp_path / "store").mkdir(mode=0o700)
    tried = subprocess.run(["mount", "--bind", tmp_path / "store", path], capture_output=True, check=False)
    yield path if tried.returncode == 0 else tmp_path / "store"
    if tried.returncode == 0:
        subprocess.run(["umount", path], check=True)


@pytest.mark.promise("alone")
@pytest.mark.timeout(300)
def test_of_daemons_that_race_for_a_store_one_lives(tmp_path: Path, bound: Path, count: Count) -> None:
    """Both are started at once, by different paths to one store; then a third finds it taken."""
    (tmp_path / "link").symlink_to(tmp_path / "store")
    chance = random.Random(0)
    for turn in range(count(1, 30)):
        homes = [tmp_path / f"{turn}-{at}" for at in range(3)]
        for home in homes:
            home.mkdir()
        paths = chance.sample([tmp_path / "store", tmp_path / "link", bound], 3)
        racers = [Daemon(home, path=str(path), processes=1) for home, path in zip(homes, paths, strict=True)]
        third = racers.pop()
        for racer in racers:
            racer.spawn()
        winner, loser = _winner_and_loser(racers)
        assert loser.process is not None and loser.process.wait(PATIENCE_SECONDS) == 73
        with winner:
            before = tree_hash(tmp_path / "store")
            exit_code, words = third.start_fails()
            assert exit_code == 73 and f"pid {winner.pid}" in words and "Traceback" not in words
            assert tree_hash(tmp_path / "store") == before
        for home in homes:
            shutil.rmtree(home)


def _winner_and_loser(racers: list[Daemon]) -> tuple[Daemon, Daemon]:
    """Wait until one of two is ready: the other one must end."""
    for racer in racers:
        assert racer.process is not None and racer.process.stdout is not None
        if racer.process.stdout.readline().startswith(b"pfsd ready"):
            return racer, racers[1 - racers.index(racer)]
    raise AssertionError("neither is ready: " + racers[0].log + racers[1].log)


def _remove_lock(store: Path) -> None:
    (store / "lock").unlink()


def _replace_lock(store: Path) -> None:
    (store / "lock").unlink()
    (store / "lock").write_bytes(b"")


def _rename_store(store: Path) -> None:
    store.rename(store.with_name("elsewhere"))


def _another_in_its_place(store: Path) -> None:
    _rename_store(store)
    shutil.copytree(store.with_name("elsewhere"), store)


def _remove_journal(store: Path) -> None:
    (store / "journal.jsonl").unlink()


@pytest.mark.promise("alone")
@pytest.mark.parametrize(
    "harm",
    [_remove_lock, _replace_lock, _rename_store, _another_in_its_place, _remove_journal, shutil.rmtree],
    ids=lambda harm: harm.__name__.strip("_"),
)
def test_a_store_that_is_taken_away_stops_the_daemon(
    idle_daemon: Daemon, harm: Callable[[Path], None], count: Count
) -> None:
    if harm not in (_remove_lock, _rename_store):
        often_enough(count)
    idle_daemon.prelude = OFTEN
    idle_daemon.start()
    assert code(idle_daemon.ask(b"put - name=a size=1\nx")[-1]) == "OK"
    idle_daemon.note_family()
    harm(idle_daemon.store)
    idle_daemon.wait(74)
    assert "moved, removed or replaced" in idle_daemon.log and "Traceback" not in idle_daemon.log


@pytest.mark.promise("alone")
def test_a_store_that_is_in_its_place_is_left_alone(idle_daemon: Daemon) -> None:
    """By a symlink that comes to lead there too, and over compactions, which replace the journal."""
    idle_daemon.prelude = f"{OFTEN}; {SMALL}"
    idle_daemon.start()
    journal = (idle_daemon.store / "journal.jsonl").stat().st_ino
    with idle_daemon.connect() as wire:
        for _ in range(3):
            while (idle_daemon.store / "journal.jsonl").stat().st_ino == journal:
                assert code(wire.last(b"put - name=a size=1 replace=yes\nx")) == "OK"
            journal = (idle_daemon.store / "journal.jsonl").stat().st_ino
        idle_daemon.freeze()  # while it is away, a record that is written would be lost, and the daemon stop rightly
        idle_daemon.store.rename(idle_daemon.home / "moved")
        (idle_daemon.home / "moved").rename(idle_daemon.store)
        idle_daemon.thaw()
        assert code(wire.last(b"put - name=b size=1\nx")) == "OK"


# --- a clock that jumps ---------------------------------------------------------------------------

HOUR, YEAR = 3600, 366 * 86400


@pytest.mark.thorough
@pytest.mark.parametrize("jump", [-HOUR, 10 * YEAR, None], ids=["back", "far-ahead", "1970"])
def test_a_clock_that_jumps_changes_no_order(idle_daemon: Daemon, jump: int | None) -> None:
    """What came last counts, whatever time it was, and no timeout ends early or never."""
    idle_daemon.start()
    for content in (b"1", b"22"):
        assert code(idle_daemon.ask(b"put - name=a replace=yes size=%d\n%b" % (len(content), content))[-1]) == "OK"
    with idle_daemon.connect() as wire:
        wire.send(b"put - name=r size=chunked resume=key\n")
        wire.line()
        wire.send(b"DATA 1000000\n" + bytes(1_000_000) + b"DATA 9\n")
        idle_daemon.wait_until("requests", "2")
    idle_daemon.wait_until("clients", "1")
    idle_daemon.stop()
    now = f"real() + {jump} * 10**9" if jump is not None else "5 * 10**9"
    idle_daemon.prelude = (
        f"import time; real = time.time_ns; time.time_ns = lambda: {now}; time.time = lambda: time.time_ns() / 1e9"
    )
    idle_daemon.config(line_timeout=0.5)
    idle_daemon.start()
    try:
        assert code(idle_daemon.ask(b"put - name=a replace=yes size=3\n333")[-1]) == "OK"
        assert code(idle_daemon.ask(b"put - name=b size=1\n4")[-1]) == "OK"
        with idle_daemon.connect() as slow, idle_daemon.connect() as wire:
            slow.send(b"pin")
            assert wire.ask(b"ping\n") == [b"OK ping"]
            assert code(slow.line()) == "usage", "the line's time is up"
        assert int(idle_daemon.stats()["uptime"]) < HOUR
        rows = idle_daemon.ask(b"list\n")
        kept = [fields(row) for row in rows[:-1]]
        assert {row["name"] for row in kept if row["status"] == "ready"} == {"a", "b"}
        assert all(int(row["created"]) >= 0 for row in kept)
        assert [row["status"] for row in kept].count("storing") == (0 if jump == 10 * YEAR else 1)
    finally:
        idle_daemon.prelude = ""
    idle_daemon.restart()
    assert fields(idle_daemon.ask(b"stat a\n")[0])["size"] == "3"
    ids = [int(fields(idle_daemon.ask(b"stat %s\n" % name)[0])["id"]) for name in (b"a", b"b")]
    assert int(fields(idle_daemon.ask(b"put - name=c size=0\n")[-1])["id"]) > max(ids)
