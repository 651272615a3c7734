"""The daemon, or an I/O process, dies at every call that changes something on the disk; the next start loses nothing.

One short workload comes to all that changes a store: a big file, small ones in one pack, replacing, renaming, deleting,
a mostly dead pack that is copied, a compaction, a restart. It is cut off before each call, and after it, and what was
answered is compared with what is there.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from pfsd.registry import Registry
from tests.faults.conftest import Count, in_full
from tests.faults.inject import compact_above, fired, inject
from tests.harness import PART, Daemon, noise
from tests.wire import Wire, code, fields

#: Which of the calls `make test` tries.
SEED = int(os.environ.get("PFSD_TEST_SEED", "1"))
SMALL = {f"s{at}".encode(): noise(3000 + at, at) for at in range(4)}
Files = dict[bytes, bytes]


class Step(NamedTuple):
    """A request, and the files that it makes (or None) if it is done."""

    request: bytes
    does: dict[bytes, bytes | None]


def put(name: bytes, content: bytes, replace: bool = False) -> Step:
    line = b"put - name=%b size=%d%b\n" % (name, len(content), b" replace=yes" if replace else b"")
    return Step(line + content, {name: content})


def delete(name: bytes) -> Step:
    return Step(b"delete %b\n" % name, {name: None})


BIG, OTHER = noise(2 * PART + 100, 50), noise(5000, 51)
WORKLOAD = [
    put(b"big", BIG),
    *(put(name, content) for name, content in SMALL.items()),
    put(b"big", OTHER, replace=True),
    put(b"new", BIG),
    Step(b"rename new big replace=yes\n", {b"new": None, b"big": BIG}),
    *(delete(name) for name in list(SMALL)[:3]),
    put(b"last", OTHER),
    delete(b"last"),
]
#: These are sent at one go, with tags: they share a pack.
TOGETHER = slice(1, 1 + len(SMALL))


class Client:
    """Sends the workload, and knows what has to be there then, and what may be one thing or another."""

    def __init__(self) -> None:
        self.certain: Files = {}
        self.unknown: list[Step] = []
        self.last_id = 0

    def run(self, daemon: Daemon) -> None:
        """Send everything, or until the daemon is gone."""
        with daemon.connect() as wire:
            before, together, after = WORKLOAD[: TOGETHER.start], WORKLOAD[TOGETHER], WORKLOAD[TOGETHER.stop :]
            for steps in ([step] for step in before), [together], ([step] for step in after):
                for batch in steps:
                    if not self._send(wire, batch):
                        return
            try:
                while wire.ask(b"stats\n") and not _is_calm(daemon):
                    pass
            except (AssertionError, OSError):
                return

    def _send(self, wire: Wire, batch: list[Step]) -> bool:
        """Send requests at one go; False when the daemon dies over them."""
        waiting = {b"@%d" % at: step for at, step in enumerate(batch)}
        try:
            wire.send(b"".join(b"%b %b" % (tag, step.request) for tag, step in waiting.items()))
            while waiting:
                reply = wire.reply()[-1]
                step = waiting.pop(reply.split(b" ")[0])
                if code(reply) == "OK":
                    self.certain = {name: content for name, content in (self.certain | step.does).items() if content}
                    self.last_id = max(self.last_id, int(fields(reply).get("id", 0)))
        except (AssertionError, OSError):
            self.unknown = list(waiting.values())
            return False
        return True

    def check(self, daemon: Daemon) -> None:
        """On a daemon that runs: every file is what it has to be."""
        with daemon.connect() as wire:
            found = _files(wire)
            expected: dict[bytes, bytes | None] = dict(self.certain)
            for step in self.unknown:
                now = {name: found.get(name) for name in step.does}
                assert now in ({name: self.certain.get(name) for name in step.does}, step.does), step.request[:60]
                expected |= now
            assert found == {name: content for name, content in expected.items() if content is not None}
            assert wire.last(b"verify\n").startswith(b"OK verify files=%d " % len(found))
            assert int(fields(wire.last(b"put - name=another size=1\nx"))["id"]) > self.last_id
            wire.ask(b"delete another\n")


def _is_calm(daemon: Daemon) -> bool:
    """Whether nothing goes on behind the answers: no pack is left to be copied, but one whose copying was given up."""
    stats = daemon.stats()
    return stats["processes_busy"] == "0" and (stats["waste"] == "0" or "stays as it is" in daemon.log)


def _files(wire: Wire) -> Files:
    found = {}
    for row in wire.ask(b"list\n")[:-1]:
        name = fields(row)["name"].encode()
        wire.send(b"get %b -\n" % name)
        found[name], final = wire.frames()
        assert code(final) == "OK", final
    return found


def start_or_die(daemon: Daemon) -> bool:
    """Start a daemon that may be killed before it is ready; whether it was not."""
    try:
        daemon.start()
    except AssertionError:
        assert fired(daemon), daemon.log
        return False
    return True


def stop_or_die(daemon: Daemon) -> None:
    """Stop a daemon that may be killed over that."""
    try:
        daemon.stop()
    except AssertionError:
        assert fired(daemon), daemon.log


def check_after_crash(daemon: Daemon, client: Client) -> None:
    """Start again: all is there, and then there is nothing left to do."""
    inject(daemon)
    daemon.start()
    client.check(daemon)
    daemon.restart()
    daemon.stop()
    first = contents(daemon)
    assert {int(path.stem, 16) for path in daemon.packs()} == live_packs(daemon)
    daemon.start()
    assert [path.name for path in (daemon.store / "tmp").iterdir()] != []
    assert len(list((daemon.store / "tmp").iterdir())) == 1, "what an earlier daemon staged is still there"
    daemon.stop()
    assert contents(daemon) == first


def contents(daemon: Daemon) -> Files:
    """What counts of a store, by path."""
    paths = [daemon.store / "journal.jsonl", *daemon.packs()]
    return {os.fsencode(path): path.read_bytes() for path in paths}


def live_packs(daemon: Daemon) -> set[int]:
    registry = Registry()
    for line in (daemon.store / "journal.jsonl").read_bytes().splitlines()[1:]:
        registry.replay(line)
    return registry.live_packs()


# --- every call ---------------------------------------------------------------------------------

#: Calls are shared out among so many tests, for several processors.
SHARES = 12


def points(share: int, count: Count) -> Iterator[int]:
    """The numbers of the calls that are to be the last: all of this share, or one of it."""
    if count(0, 1):
        yield from itertools.count(share + 1, SHARES)
    elif share == SEED % SHARES:
        yield share + 1 + SHARES * (SEED // SHARES % 4)


def crash_at(number: int, fault: str, home: Path) -> bool:
    """Let a daemon run the workload with this fault at its N-th call, and check; False when there is no such call."""
    home.mkdir()
    with Daemon(home, processes=1) as daemon:
        compact_above(daemon, 1000)
        inject(daemon, fault.format(number))
        client = Client()
        if start_or_die(daemon):
            client.run(daemon)
            if fault.startswith("daemon") and fired(daemon):
                daemon.wait(-signal.SIGKILL)
            else:
                stop_or_die(daemon)
        hit = bool(fired(daemon))
        check_after_crash(daemon, client)
    shutil.rmtree(home)
    return hit


@pytest.mark.timeout(600)
@pytest.mark.promise("durable")
@pytest.mark.promise("unknown")
@pytest.mark.promise("whole")
@pytest.mark.parametrize("action", ["kill", "after-kill"])
@pytest.mark.parametrize("share", range(SHARES))
def test_the_daemon_dies_at_every_call(share: int, action: str, in_memory: Path, count: Count) -> None:
    tried = points(share, count)
    for number in tried:
        if not crash_at(number, f"daemon.*:*/store*:{{}}:{action}", in_memory / str(number)):
            assert number > 40, "there are more calls than that"
            return
    if not count(0, 1) and share != SEED % SHARES:
        pytest.skip("one call of all unless --faults=full")


@pytest.mark.timeout(600)
@pytest.mark.promise("processes")
@pytest.mark.promise("whole")
@pytest.mark.parametrize("action", ["kill", *in_full("after-kill")])
def test_an_io_process_dies_at_every_call(action: str, in_memory: Path, count: Count) -> None:
    for number in range(1, count(2, 1000)):
        if not crash_at(number, f"process.*:*/store*:{{}}:{action}", in_memory / str(number)):
            assert number > 5, "there are more calls than that"
            return


@pytest.mark.timeout(600)
@pytest.mark.promise("torn")
@pytest.mark.promise("durable")
@pytest.mark.parametrize("action", [*in_full("kill"), "after-kill"])
def test_the_start_after_a_crash_dies_at_every_call(action: str, in_memory: Path, count: Count) -> None:
    client, used = Client(), in_memory / "used"
    used.mkdir()
    with Daemon(used) as daemon:
        daemon.start()
        client.run(daemon)
        daemon.kill()
        litter(daemon)
    for number in itertools.count(1 if count(0, 1) else 1 + SEED % 8):
        home = in_memory / str(number)
        shutil.copytree(used, home, ignore=shutil.ignore_patterns("socket"))
        with Daemon(home) as daemon:
            compact_above(daemon, 1000)
            inject(daemon, f"daemon.*:*/store*:{number}:{action}")
            if start_or_die(daemon):
                stop_or_die(daemon)
            hit = bool(fired(daemon))
            check_after_crash(daemon, client)
        shutil.rmtree(home)
        if not hit or not count(0, 1):
            assert number > 10 or hit, "there are more calls than that"
            return


def litter(daemon: Daemon) -> None:
    """What crashes leave: a torn end, a pack of nobody, one that was staged, a compaction cut short."""
    with (daemon.store / "journal.jsonl").open("ab") as journal:
        journal.write(b'{"seq":99,"type":"del')
    (pack, *_) = daemon.packs()
    shutil.copy(pack, pack.with_name(f"{500:016x}.pack"))
    (daemon.store / "tmp" / "dead").mkdir()
    (daemon.store / "tmp" / "dead" / "1.0").write_bytes(b"x")
    (daemon.store / "journal.jsonl.new").write_bytes(b"x")
