"""Shared packs that are mostly dead are written again, and nothing in them is lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.harness import PART, Daemon, noise
from tests.test_wire_small import digests_of, get_all
from tests.wire import Wire, code, fields

FILES = {"two-parts": noise(PART + 1), "empty": b""} | {
    f"f{at}": noise(2000 + at, at) for at in range(40)
}  # less than is worth sharing out


def put_in_one_pack(daemon: Daemon, wire: Wire, files: dict[str, bytes]) -> Path:
    """Stop the processes until all files have arrived, so that they make one batch."""
    wire.ask(b"put - name=first size=1\nx")
    wire.ask(b"delete first\n")
    workers = daemon.workers()
    for process in workers:
        process.send_signal(signal.SIGSTOP)
    busy = [daemon.connect() for _ in workers]
    for at, other in enumerate(busy):  # each takes one process
        other.send(b"put - name=busy%d size=1\nx" % at)
        daemon.wait_until("processes_busy", str(at + 1))
    lines = [
        b"@%b put - name=%b size=%d\n%b" % (name.encode(), name.encode(), len(content), content)
        for name, content in files.items()
    ]
    wire.send(b"".join(lines))
    daemon.wait_until("requests", str(len(files) + len(busy) + 1))
    for process in workers:
        process.send_signal(signal.SIGCONT)
    assert {code(wire.line()) for _ in files} == {"OK"}
    for other in busy:
        assert code(other.line()) == "OK"
        other.close()
    for at in range(len(busy)):
        wire.ask(b"delete busy%d\n" % at)
    (pack,) = daemon.packs()
    return pack


def test_a_mostly_dead_pack_is_copied_and_goes(emptied: Daemon) -> None:
    files = dict(FILES)
    with emptied.connect() as wire:
        pack = put_in_one_pack(emptied, wire, files)
        size = pack.stat().st_size
        for at in range(4):
            assert fields(wire.last(b"delete f%d\n" % at))["freed"] == "0"
            del files[f"f{at}"]
        emptied.wait_until("waste", str(sum(len(FILES[f"f{at}"]) + 94 + 2 for at in range(4))))
        assert emptied.packs() == [pack], "not worth it yet"
        doomed = ["two-parts", *(f"f{at}" for at in range(4, 20))]
        wire.last(b"delete %b\n" % " ".join(doomed).encode())
        for name in doomed:
            del files[name]
        emptied.wait_until("packs_copied", "1")
        emptied.wait_until("waste", "0")
        emptied.wait_until("reclaimed", str(size))
        (copy,) = emptied.packs()
        assert copy != pack and copy.stat().st_size < size / 2
        assert get_all(wire, list(files)) == digests_of(files)
        assert wire.last(b"verify\n").startswith(b"OK verify files=%d " % len(files))
        before = wire.ask(b"stat f30 parts=yes\n")
        emptied.kill()
    emptied.start()
    with emptied.connect() as wire:
        assert wire.ask(b"stat f30 parts=yes\n") == before
        assert get_all(wire, list(files)) == digests_of(files)
        assert wire.last(b"verify\n").startswith(b"OK verify files=%d " % len(files))
        wire.ask(b"delete %b\n" % b" ".join(name.encode() for name in files))
        assert emptied.packs() == []


def test_what_was_mostly_dead_at_the_start_is_copied(emptied: Daemon) -> None:
    files = dict(FILES)
    with emptied.connect() as wire:
        put_in_one_pack(emptied, wire, files)
        doomed = [f"f{at}" for at in range(38)]
        wire.send(b"delete %b\n" % " ".join(doomed).encode())
        wire.reply()
        emptied.kill()  # before it has come to the copying, or in the middle of it, or after
    for name in doomed:
        del files[name]
    emptied.start()
    emptied.wait_until("waste", "0")
    assert len(emptied.packs()) == 1
    with emptied.connect() as wire:
        assert get_all(wire, list(files)) == digests_of(files)


def test_copies_made_at_the_start_are_not_taken_for_packs_of_nobody(daemon: Daemon) -> None:
    files = dict(FILES)
    doomed = [b"f%d" % at for at in range(38)]
    with daemon.connect() as wire:
        pack = put_in_one_pack(daemon, wire, files)
        workers = daemon.workers()
        for process in workers:
            process.send_signal(signal.SIGSTOP)
        with daemon.connect() as reader:  # so that all of them are still to be removed when the daemon dies
            reader.send(b"".join(b"@%b get %b -\n" % (name, name) for name in doomed))
            daemon.wait_until("requests", str(len(doomed) + 1))
            assert code(wire.last(b"delete %b\n" % b" ".join(doomed))) == "OK"
            daemon.note_family()
            os.kill(daemon.pid, signal.SIGKILL)
            for process in workers:
                process.kill()
            daemon.kill()
    for name in doomed:
        del files[name.decode()]
    for at in range(1, 3000):  # published, but never committed; it takes a while to unlink so many
        pack.with_name(f"{int(pack.stem, 16) + at:016x}.pack").write_bytes(b"of nobody")
    daemon.start()
    daemon.wait_until("packs_copied", "1")
    daemon.wait_until_packs(1)
    assert "stays as it is" not in daemon.log, "no copy gets the id of another pack"
    with daemon.connect() as wire:
        assert get_all(wire, list(files)) == digests_of(files)


def test_readers_do_not_notice(daemon: Daemon) -> None:
    big = noise(PART * 6)
    files = {"big": big} | {f"f{at}": noise(PART * 7 // 8) for at in range(8)}  # less than what is shared out
    with daemon.connect() as wire:
        pack = put_in_one_pack(daemon, wire, files)
        with Wire(daemon.address, receive_buffer=4096) as slow:
            slow.send(b"get big -\n" * 40)  # more than the system's buffers take
            slow.peek(10)
            wire.last(b"delete %b\n" % b" ".join(b"f%d" % at for at in range(8)))
            daemon.wait_until("packs_copied", "1")
            for _ in range(40):
                content, final = slow.frames()
                assert content == big and code(final) == "OK"
        daemon.stop()
        assert not pack.exists() and len(daemon.packs()) == 1


@pytest.mark.promise("checked")
def test_a_damaged_pack_stays_as_it_is(daemon: Daemon) -> None:
    files = {f"f{at}": noise(3000, at) for at in range(20)}
    with daemon.connect() as wire:
        pack = put_in_one_pack(daemon, wire, files)
        content = bytearray(pack.read_bytes())
        content[-1] ^= 1
        pack.write_bytes(content)
        wire.last(b"delete %b\n" % b" ".join(b"f%d" % at for at in range(15)))
        wire.last(b"verify f16\n")
        daemon.stop()
        assert daemon.packs() == [pack] and "stays as it is" in daemon.log
        daemon.start()
    with daemon.connect() as wire:
        names = [f"f{at}" for at in range(15, 20)]
        codes = [code(wire.last(b"verify %b\n" % name.encode())) for name in names]
        assert sorted(codes) == ["OK"] * 4 + ["corrupt"]
