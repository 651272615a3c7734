"""A daemon verifies what it stores without being asked: damage is found, and a crash costs little."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.harness import PART, Daemon, noise
from tests.wire import code, fields

#: About one second, and sixty, in days; as the environment has them, for YAML would want an exponent.
ONE_SECOND, SIXTY_SECONDS = "0.0000116", "0.0007"
#: Files of so many parts, each more than what is read at one go.
FILES, PARTS = 2, 4


@pytest.fixture
def scrubbed(idle_daemon: Daemon) -> Daemon:
    """A daemon that reads everything in a second, with two files."""
    idle_daemon.environ["PFSD_VERIFY_EVERY"] = ONE_SECOND
    idle_daemon.start()
    for at in range(FILES):
        content = noise(PARTS * PART, at)
        assert code(idle_daemon.ask(b"put - name=f%d size=%d\n" % (at, len(content)) + content)[-1]) == "OK"
    return idle_daemon


def flip(pack: Path, at: int) -> None:
    content = bytearray(pack.read_bytes())
    content[at] ^= 1
    pack.write_bytes(content)


def wait_for_parts(daemon: Daemon, count: int) -> None:
    """Until so many more parts were read than now."""
    before = int(daemon.stats()["verified_parts"])
    daemon._poll(
        b"stats\n",
        lambda rows: any(
            row.startswith(b"STAT verified_parts=") and int(row.partition(b"=")[2]) >= before + count for row in rows
        ),
    )


def statuses(daemon: Daemon) -> list[str]:
    return [fields(row)["status"] for row in daemon.ask(b"list\n")[:-1]]


@pytest.mark.promise("verified")
def test_damage_is_found_without_anyone_asking_and_gone_when_the_bytes_are_back(scrubbed: Daemon) -> None:
    scrubbed.wait_until("bad_parts", "0")
    pack = scrubbed.packs()[0]
    flip(pack, 1000)
    scrubbed.wait_until("bad_parts", "1")
    assert statuses(scrubbed) == ["damaged", "ready"]
    assert "f0, has damaged parts: [0]" in scrubbed.log
    scrubbed.restart()
    assert statuses(scrubbed) == ["damaged", "ready"]
    flip(pack, 1000)
    scrubbed.wait_until("bad_parts", "0")
    assert statuses(scrubbed) == ["ready", "ready"]


@pytest.mark.promise("verified")
def test_a_store_that_is_gone_is_marked_once_and_does_not_make_it_spin(scrubbed: Daemon) -> None:
    directory = scrubbed.packs()[0].parent
    directory.rename(directory.with_name("away"))
    scrubbed.wait_until("bad_parts", str(FILES * PARTS))
    before = int(scrubbed.stats()["journal_records"])
    wait_for_parts(scrubbed, 4 * FILES * PARTS)
    told = int(scrubbed.stats()["journal_records"]) - before
    assert told <= 6 * (FILES * PARTS + 1), "where it is, a few times a pass; what is bad is known"
    assert scrubbed.log.count("has damaged parts") <= FILES * PARTS
    directory.with_name("away").rename(directory)
    scrubbed.wait_until("bad_parts", "0")


@pytest.mark.promise("verified")
def test_files_come_go_and_are_replaced_meanwhile(scrubbed: Daemon) -> None:
    with scrubbed.connect() as wire:
        for at in range(60):
            content = noise(PART + at, at)
            assert code(wire.last(b"put - name=v replace=yes size=%d\n" % len(content) + content)) == "OK"
            assert code(wire.last(b"rename v w replace=yes\n")) == "OK"
            if at % 7 == 0:
                assert code(wire.last(b"delete w\n")) == "OK"
        wait_for_parts(scrubbed, 3 * FILES * PARTS)
        assert code(wire.last(b"verify\n")) == "OK"
    assert scrubbed.stats()["bad_parts"] == "0"
    assert "Traceback" not in scrubbed.log and "could not be verified" not in scrubbed.log
    scrubbed.stop()
    assert len(scrubbed.packs()) == len({*scrubbed.packs()}) <= FILES + 1


@pytest.mark.promise("verified")
def test_a_pass_goes_on_where_a_crash_cut_it_off(idle_daemon: Daemon) -> None:
    idle_daemon.environ["PFSD_VERIFY_EVERY"] = SIXTY_SECONDS
    idle_daemon.start()
    with idle_daemon.connect() as wire:
        wire.send(b"".join(b"put - name=f%d size=1\nx" % at for at in range(400)))
        assert {code(wire.line()) for _ in range(400)} == {"OK"}
    wait_for_parts(idle_daemon, 5)
    idle_daemon.kill()
    idle_daemon.start()
    wait_for_parts(idle_daemon, 5)
    idle_daemon.kill()
    journal = (idle_daemon.store / "journal.jsonl").read_text()
    ends = [int(end) for end in re.findall(r'"type":"verified",.*"end":\[(\d+),', journal)]
    assert len(ends) >= 4 and ends == sorted(set(ends)), "it went on, and did not begin again"


@pytest.mark.promise("verified")
def test_zero_is_never(idle_daemon: Daemon) -> None:
    idle_daemon.config(verify_every=0)
    idle_daemon.start()
    idle_daemon.ask(b"put - name=a size=1\nx")
    stats = idle_daemon.stats()
    assert (stats["verify_every"], stats["verified_parts"]) == ("0", "0")
    idle_daemon.stop()
    assert '"verified"' not in (idle_daemon.store / "journal.jsonl").read_text()


@pytest.mark.promise("verified")
def test_what_it_knows_survives_a_restart(scrubbed: Daemon) -> None:
    wait_for_parts(scrubbed, 2 * FILES * PARTS)
    scrubbed.stop()
    scrubbed.environ["PFSD_VERIFY_EVERY"] = "36500"
    scrubbed.start()
    stats = scrubbed.stats()
    assert (stats["verify_every"], stats["verified_parts"]) == ("36500", "0")
    assert '"verified"' in (scrubbed.store / "journal.jsonl").read_text()
