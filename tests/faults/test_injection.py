"""The faults that these tests inject do happen: in the daemon, in its I/O processes, and only where they are aimed."""

from __future__ import annotations

import signal

from tests.faults.inject import fired, inject
from tests.harness import Daemon, noise
from tests.wire import code


def test_nothing_happens_unless_it_is_asked_for(idle_daemon: Daemon) -> None:
    inject(idle_daemon)
    idle_daemon.start()
    assert code(idle_daemon.ask(b"put - name=a size=1\nx")[-1]) == "OK"
    assert fired(idle_daemon) == []


def test_a_call_of_the_daemon_is_its_last(idle_daemon: Daemon) -> None:
    inject(idle_daemon, "fdatasync:*/journal.jsonl:1:kill")
    idle_daemon.start()
    with idle_daemon.connect() as wire:
        wire.send(b"put - name=a size=1\nx")
        assert wire.at_eof()
    idle_daemon.wait(-signal.SIGKILL)
    assert [line.split()[1:] for line in fired(idle_daemon)] == [["fdatasync", "1", "kill"]]


def test_a_call_of_an_io_process_fails(idle_daemon: Daemon) -> None:
    inject(idle_daemon, "fdatasync:*/store/tmp/*:1+:enospc")
    idle_daemon.start()
    reply = idle_daemon.ask(b"put - name=a size=100000\n" + noise(100_000))[-1]
    assert code(reply) == "no-space"
    assert str(idle_daemon.pid) not in {line.split()[0] for line in fired(idle_daemon)}
    assert idle_daemon.ask(b"list\n")[-1].startswith(b"OK list files=0")
