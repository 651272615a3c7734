"""Clients that fight over names: every answer must fit one order of all that happened."""

from __future__ import annotations

import itertools
import os
import random
import threading
import time
from typing import NamedTuple

import pytest

from tests.faults.conftest import Count
from tests.harness import PART, Daemon, noise
from tests.wire import Wire, code, fields

NAMES = [b"a", b"b", b"c"]


class Write(NamedTuple):
    """A change of a name, between two moments, to a content; 0 is none."""

    begun: float
    ended: float
    content: int


class Read(NamedTuple):
    begun: float
    ended: float
    content: int


class History:
    """What happened to one name. Contents are numbers, each written once."""

    def __init__(self) -> None:
        self.writes = [Write(0.0, 0.0, 0)]
        self.reads: list[Read] = []

    def stale(self) -> list[Read]:
        """Reads of a content that cannot have been current at any moment of the read.

        It was written only later, or something else was surely written after it and before the read began.
        """
        return [read for read in self.reads if not any(self._may_be_current(write, read) for write in self._of(read))]

    def _of(self, read: Read) -> list[Write]:
        return [write for write in self.writes if write.content == read.content]

    def _may_be_current(self, write: Write, read: Read) -> bool:
        between = (other for other in self.writes if other.begun > write.ended and other.ended < read.begun)
        return write.begun < read.ended and not any(between)


@pytest.mark.promise("whole")
@pytest.mark.promise("unknown")
@pytest.mark.timeout(120)
def test_every_answer_fits_one_order(daemon: Daemon, count: Count) -> None:
    """8 clients put, replace, delete and get 3 names; who gets one, gets a whole version that was current then."""
    seed = int(os.environ.get("PFSD_TEST_SEED", random.randrange(1 << 30)))
    print(f"PFSD_TEST_SEED={seed}")
    histories = {name: History() for name in NAMES}
    numbers = itertools.count(1)
    until = time.monotonic() + count(1, 10)
    wrong: list[str] = []

    def client(number: int) -> None:
        chance = random.Random(seed + number)
        try:
            with daemon.connect() as wire:
                while time.monotonic() < until:
                    name = chance.choice(NAMES)
                    _one_step(wire, chance, name, histories[name], numbers)
        except Exception as error:
            wrong.append(f"client {number}: {error!r}")

    clients = [threading.Thread(target=client, args=[number]) for number in range(8)]
    for each in clients:
        each.start()
    for each in clients:
        each.join()
    assert not wrong
    assert not {name: history.stale() for name, history in histories.items() if history.stale()}
    assert all(len(history.reads) > 3 and len(history.writes) > 3 for history in histories.values())
    daemon.restart()
    with daemon.connect() as wire:
        for name, history in histories.items():
            history.reads = []
            _read(wire, name, history)
            assert not history.stale(), "the last change is what a restart finds"


def _one_step(wire: Wire, chance: random.Random, name: bytes, history: History, numbers: itertools.count[int]) -> None:
    kind = chance.choice(["put", "get", "get", "delete"])
    if kind == "get":
        _read(wire, name, history)
        return
    content = next(numbers) if kind == "put" else 0
    begun = time.monotonic()
    if kind == "put":
        data = _content(content)
        answer = wire.last(b"put - name=%s size=%d replace=yes\n" % (name, len(data)) + data)
    else:
        answer = wire.last(b"delete %s\n" % name)
    if code(answer) == "OK":
        history.writes.append(Write(begun, time.monotonic(), content))
    else:
        assert code(answer) in ("not-found", "not-ready", "exists"), answer


def _read(wire: Wire, name: bytes, history: History) -> None:
    begun = time.monotonic()
    wire.send(b"get %s -\n" % name)
    got, final = wire.frames()
    if code(final) == "OK":
        number = int.from_bytes(got[:8], "big")
        assert got == _content(number), "a mix of versions"
        assert fields(final)["size"] == str(len(got))
        history.reads.append(Read(begun, time.monotonic(), number))
    else:
        assert not got and code(final) in ("not-found", "not-ready"), final
        if code(final) == "not-found":
            history.reads.append(Read(begun, time.monotonic(), 0))


def _content(number: int) -> bytes:
    """A version: its number, then as much noise as the number says."""
    return number.to_bytes(8, "big") + noise((number % 5) * PART, number)


def test_the_check_finds_a_stale_read() -> None:
    history = History()
    history.writes += [Write(1, 2, 1), Write(3, 4, 2)]
    history.reads = [Read(5, 6, 2), Read(3.5, 6, 1), Read(2.5, 2.6, 1)]
    assert not history.stale()
    history.reads = [Read(5, 6, 1), Read(1.5, 2.5, 2), Read(5, 6, 0), Read(5, 6, 9)]
    assert history.stale() == history.reads
