"""Sources of puts that change, vanish, lie about their size or are endless: stored as they once were, or not."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.conftest import Count
from tests.harness import PART, Daemon, noise
from tests.test_wire_put import assert_nothing_stored, fetched
from tests.wire import code, fields

OLD, NEW = noise(40 * PART + 7, 1), noise(40 * PART + 7, 2)


def rename_over(source: Path) -> None:
    source.with_name("new").write_bytes(NEW)
    source.with_name("new").rename(source)


def swap_to_symlink(source: Path) -> None:
    source.with_name("new").write_bytes(NEW)
    source.unlink()
    source.symlink_to("new")


def append(source: Path) -> None:
    with source.open("ab") as file:
        file.write(b"more")


def cut_and_write_again(source: Path) -> None:
    source.write_bytes(NEW)


def rewrite_and_set_times_back(source: Path) -> None:
    before = source.stat()
    with source.open("r+b") as file:
        file.seek(39 * PART)
        file.write(b"new")
    os.utime(source, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.promise("whole")
@pytest.mark.parametrize(
    "change", [rename_over, Path.unlink, swap_to_symlink, append, cut_and_write_again, rewrite_and_set_times_back]
)
def test_a_source_that_changes_under_the_put_is_stored_as_it_was_or_not(
    shared_daemon: Daemon, change: Callable[[Path], None]
) -> None:
    source = shared_daemon.root / "source"
    source.unlink(missing_ok=True)
    source.write_bytes(OLD)
    workers = shared_daemon.workers()
    with shared_daemon.connect() as wire:
        for worker in workers:
            worker.suspend()
        try:
            wire.send(b"put source name=x\n")
            shared_daemon.wait_until("processes_busy", "2")
            change(source)
        finally:
            for worker in workers:
                worker.resume()
        word = code(wire.reply()[-1])
    assert word in ("OK", "changed")
    if word == "OK":
        assert fetched(shared_daemon, "x") == OLD
        shared_daemon.ask(b"delete x\n")
    assert_nothing_stored(shared_daemon)


@pytest.mark.promise("whole")
def test_a_source_that_is_replaced_all_the_time_is_stored_as_one_of_its_versions(
    shared_daemon: Daemon, count: Count
) -> None:
    versions = [noise(3 * PART, at) for at in range(4)]
    source, done = shared_daemon.root / "busy", threading.Event()
    source.write_bytes(versions[0])

    def replace() -> None:
        at = 0
        while not done.is_set():
            at += 1
            new = source.with_name("busy.new")
            new.write_bytes(versions[at % 4])
            if at % 3:
                new.rename(source)
            else:
                source.unlink()
                source.symlink_to("busy.new")

    replacing = threading.Thread(target=replace)
    replacing.start()
    words: list[str] = []
    try:
        with shared_daemon.connect() as wire:
            for _ in range(count(40, 1000)):
                reply = wire.last(b"put busy name=x replace=yes\n")
                words.append(code(reply))
                if words[-1] == "OK" and int(fields(reply)["size"]) == 3 * PART:
                    assert fetched(shared_daemon, "x") in versions
    finally:
        done.set()
        replacing.join()
    assert set(words) <= {"OK", "changed", "not-found", "denied"} and "OK" in words
    shared_daemon.ask(b"delete x\n")


@pytest.mark.thorough
@pytest.mark.promise("whole")
@pytest.mark.promise("memory")
def test_a_source_of_a_tebibyte_can_be_given_up(shared_daemon: Daemon) -> None:
    source = shared_daemon.root / "sparse"
    source.touch()
    os.truncate(source, 1 << 40)
    with shared_daemon.connect() as wire:
        wire.send(b"put sparse name=huge progress=1\n")
        assert int(fields(wire.line())["bytes"]) < 1 << 40
    source.unlink()
    assert_nothing_stored(shared_daemon)
    stats = shared_daemon.stats()
    assert int(stats["memory_peak"]) <= int(stats["memory_limit"])


@pytest.mark.promise("whole")
def test_content_of_every_size_around_parts_and_runs_comes_back(shared_daemon: Daemon) -> None:
    for size in (33 << 10, 2 * PART - 1, 2 * PART, 2 * PART + 1, 1_080_033, 1 << 20, (1 << 20) + 1):
        content = noise(size, size)
        (shared_daemon.root / "sized").write_bytes(content)
        assert code(shared_daemon.ask(b"put sized name=x replace=yes\n")[-1]) == "OK"
        assert fetched(shared_daemon, "x") == content
    shared_daemon.ask(b"delete x\n")


@pytest.mark.promise("whole")
def test_a_file_that_claims_to_be_empty_and_is_not_is_refused(idle_daemon: Daemon) -> None:
    idle_daemon.config(roots=["root", "/proc/self"])
    idle_daemon.start()
    assert code(idle_daemon.ask(b"put /proc/%d/status\n" % idle_daemon.pid)[-1]) == "denied"
    (idle_daemon.root / "empty").touch()
    assert code(idle_daemon.ask(b"put empty\n")[-1]) == "OK"
