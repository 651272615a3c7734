"""A disk that is read-only, belongs to somebody else, or is gone: clear errors, and nothing acknowledged is lost."""

from __future__ import annotations

import os
import random
import shutil
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest

from tests.faults.conftest import Count
from tests.faults.disks import immutable, read_only, small_ext4
from tests.faults.inject import fired, inject
from tests.harness import PART, Daemon, noise
from tests.test_wire_put import by_frames, by_size, fetched
from tests.wire import code, fields

CONTENT = noise(3 * PART)

# --- read-only ----------------------------------------------------------------------------------


def assert_can_be_read(daemon: Daemon) -> None:
    assert daemon.ask(b"list\n")[-1].startswith(b"OK list files=1 ")
    assert fetched(daemon, "old") == CONTENT
    assert daemon.ask(b"verify\n")[-1].startswith(b"OK verify files=1 ")


def assert_puts_fail_with(daemon: Daemon, errno: str) -> None:
    before = daemon.packs()
    (daemon.root / "source").write_bytes(noise(40 * PART))
    for put in (by_size("small", b"x"), by_frames("big", noise(40 * PART)), b"put source\n"):
        with daemon.connect() as wire:
            wire.send(put + b"ping\n")
            refusal = wire.line()
            assert wire.line() == b"OK ping"
        assert code(refusal) == "io" and fields(refusal)["errno"] == errno
    daemon.wait_until("memory_used", "0")
    assert daemon.staged() == [] and daemon.packs() == before


@pytest.mark.root
@pytest.mark.promise("whole")
def test_where_nothing_can_be_staged_all_that_is_there_can_be_read(daemon: Daemon) -> None:
    daemon.ask(by_size("old", CONTENT))
    with read_only(daemon.store / "tmp"):
        assert_puts_fail_with(daemon, "EROFS")
        assert_can_be_read(daemon)
    assert code(daemon.ask(by_size("new", CONTENT))[-1]) == "OK"


@pytest.mark.thorough
@pytest.mark.root
@pytest.mark.promise("whole")
def test_where_no_pack_can_be_made_or_removed_all_that_is_there_can_be_read(daemon: Daemon) -> None:
    daemon.ask(by_size("old", CONTENT))
    with immutable(daemon.store / "packs" / "00000"):
        assert_puts_fail_with(daemon, "EPERM")
        assert_can_be_read(daemon)
        assert code(daemon.ask(b"delete old\n")[-1]) == "OK"
        assert len(daemon.packs()) == 1
    daemon.restart()
    assert daemon.packs() == []


@pytest.mark.thorough
@pytest.mark.promise("whole")
def test_a_journal_that_takes_nothing_refuses_and_goes_on(idle_daemon: Daemon) -> None:
    idle_daemon.start()
    idle_daemon.ask(by_size("old", CONTENT))
    idle_daemon.stop()
    inject(idle_daemon, "writev_all:*/journal.jsonl:1+:erofs")
    idle_daemon.start()
    assert_puts_fail_with(idle_daemon, "EROFS")
    for request in (b"rename old new\n", b"delete old\n"):
        assert fields(idle_daemon.ask(request)[-1])["errno"] == "EROFS"
    assert_can_be_read(idle_daemon)
    assert fired(idle_daemon)
    inject(idle_daemon)
    idle_daemon.restart()
    assert_can_be_read(idle_daemon)


@pytest.mark.thorough
@pytest.mark.root
@pytest.mark.promise("whole")
@pytest.mark.parametrize("torn", [False, True])
def test_a_read_only_store_is_refused_in_one_line(daemon: Daemon, torn: bool) -> None:
    daemon.ask(by_size("old", CONTENT))
    daemon.stop()
    journal = daemon.store / "journal.jsonl"
    sound = journal.read_bytes()
    if torn:
        journal.write_bytes(sound + b'{"seq":9')
    before = journal.read_bytes()
    with read_only(daemon.store):
        status, said = daemon.start_fails()
        assert status == 73 and len(said.splitlines()) == 1 and "Read-only" in said
        assert journal.read_bytes() == before
    daemon.start()
    assert journal.read_bytes().startswith(sound)
    assert_can_be_read(daemon)


@pytest.mark.thorough
@pytest.mark.root
@pytest.mark.promise("target")
@pytest.mark.parametrize(("how", "errno"), [(read_only, "EROFS"), (immutable, "EPERM")])
def test_a_target_directory_that_takes_nothing_stays_as_it_was(
    daemon: Daemon, how: Callable[[Path], AbstractContextManager[None]], errno: str
) -> None:
    daemon.ask(by_size("old", CONTENT))
    place = daemon.root / "place"
    place.mkdir()
    (place / "target").write_bytes(b"precious")
    with how(place):
        for options in (b"place/target replace=yes", b"place/new", b"place/new sync=yes", b"place/new resume=yes"):
            refusal = daemon.ask(b"get old %b\n" % options)[-1]
            assert code(refusal) == "io" and fields(refusal)["errno"] == errno
        assert os.listdir(place) == ["target"] and (place / "target").read_bytes() == b"precious"


@pytest.fixture
def powerless(idle_daemon: Daemon) -> Daemon:
    """A daemon that may not do more than others with what is not its own, even as root."""
    if os.geteuid() or not shutil.which("setpriv"):
        pytest.skip("needs root, and setpriv to be less than that")
    caps = "-dac_override,-dac_read_search"
    idle_daemon.starter = ["setpriv", f"--bounding-set={caps}", f"--inh-caps={caps}"]
    return idle_daemon


def take_from_root(path: Path, mode: int) -> None:
    """Make it the property of nobody."""
    path.chmod(mode)
    os.chown(path, 65534, 65534)


@pytest.mark.thorough
@pytest.mark.root
@pytest.mark.promise("target")
@pytest.mark.promise("whole")
def test_what_the_daemon_may_not_read_or_write_is_an_error_with_its_reason(powerless: Daemon) -> None:
    powerless.start()
    powerless.ask(by_size("old", CONTENT))
    (powerless.root / "secret").write_bytes(b"x")
    take_from_root(powerless.root / "secret", 0o600)
    theirs = powerless.root / "theirs"
    theirs.mkdir()
    (theirs / "target").write_bytes(b"precious")
    take_from_root(theirs, 0o755)
    for request in (b"put secret\n", b"get old theirs/new\n", b"get old theirs/target replace=yes\n"):
        refusal = powerless.ask(request)[-1]
        assert code(refusal) == "io" and fields(refusal)["errno"] == "EACCES", refusal
    assert os.listdir(theirs) == ["target"] and (theirs / "target").read_bytes() == b"precious"
    (epoch,) = (powerless.store / "tmp").iterdir()
    take_from_root(epoch, 0o755)
    assert_puts_fail_with(powerless, "EACCES")
    assert_can_be_read(powerless)
    powerless.stop()
    take_from_root(powerless.store / "journal.jsonl", 0o600)
    status, said = powerless.start_fails()
    assert status == 73 and len(said.splitlines()) == 1 and "Permission denied" in said


# --- gone ---------------------------------------------------------------------------------------


class Client(threading.Thread):
    """Puts, renames and deletes files of its own until it is refused for good; knows what was acknowledged.

    An answer that came while the disk was being torn away proves nothing: in that moment a sync of ext4 may answer
    that all is well, when another one has ended its transaction in vain.
    """

    def __init__(self, daemon: Daemon, number: int, torn: threading.Event) -> None:
        super().__init__()
        self.torn = torn
        self.wire = daemon.connect()
        self.number = number
        self.files: dict[str, bytes] = {}
        self.unknown: set[str] = set()  # of these names nothing is known
        self.answers = 0
        self.hung = False
        self.enough = threading.Event()

    def run(self) -> None:
        """One request at a time."""
        randomness = random.Random(self.number)
        try:
            with suppress(ConnectionError, AssertionError):  # the daemon ends
                for at in range(1_000_000):
                    self.step(f"c{self.number}-{at}", randomness)
                    self.answers += 1
                    if self.answers == 12:
                        self.enough.set()
        except TimeoutError:
            self.hung = True
        finally:
            self.enough.set()

    def step(self, name: str, randomness: random.Random) -> None:
        """One change of what is stored."""
        old = randomness.choice(sorted(self.files)) if self.files else None
        kind = randomness.choice(["small", "big", "rename", "delete", "get"])
        self.unknown.add(name)
        if kind == "get" and old:
            self.wire.send(b"get %b -\n" % old.encode())
            self.wire.frames()
        elif kind == "rename" and old:
            self.unknown.add(old)
            if self.acknowledged(f"rename {old} {name}\n".encode()):
                self.files[name] = self.files.pop(old)
                self.unknown -= {old, name}
        elif kind == "delete" and old:
            self.unknown.add(old)
            if self.acknowledged(f"delete {old}\n".encode()):
                del self.files[old]
                self.unknown.discard(old)
        else:
            content = noise(5000 if kind == "small" else 3 * PART, self.number)
            if self.acknowledged(by_size(name, content)):
                self.files[name] = content
                self.unknown.discard(name)

    def acknowledged(self, request: bytes) -> bool:
        """Whether the answer is OK, for certain."""
        return code(self.wire.last(request)) == "OK" and not self.torn.is_set()


@pytest.mark.root
@pytest.mark.promise("flush")
@pytest.mark.promise("durable")
@pytest.mark.promise("unknown")
def test_a_file_system_that_vanishes_under_load_takes_nothing_with_it(tmp_path: Path, count: Count) -> None:
    if not count(0, 1):
        pytest.skip("with --faults=full only")
    for round_ in range(count(0, 10)):
        home = tmp_path / str(round_)
        home.mkdir()
        with small_ext4(home / "disk") as disk, Daemon(home, path=str(disk.top / "store")) as daemon:
            daemon.start()
            torn = threading.Event()
            clients = [Client(daemon, round_ * 10 + at, torn) for at in range(6)]
            for client in clients:
                client.start()
            for client in clients:
                client.enough.wait()
            torn.set()
            disk.tear_away()
            daemon.wait(74)
            for client in clients:
                client.join()
                client.wire.close()
            assert not any(client.hung for client in clients)
            disk.mount_again()
            daemon.start()
            listed = {fields(row)["name"] for row in daemon.ask(b"list\n")[:-1]}
            acknowledged = {name: content for client in clients for name, content in client.files.items()}
            unknown = set().union(*(client.unknown for client in clients))
            assert acknowledged.keys() - unknown <= listed
            assert listed <= acknowledged.keys() | unknown
            for name, content in acknowledged.items():
                assert name in unknown or fetched(daemon, name) == content
            assert daemon.ask(b"verify\n")[-1].startswith(b"OK ")
            daemon.stop()


@pytest.mark.root
@pytest.mark.promise("durable")
@pytest.mark.parametrize("store", [".", "store"])
@pytest.mark.parametrize("request_", [by_size("new", CONTENT), b"delete old\n", b"rename old new\n"])
def test_nothing_is_acknowledged_in_a_store_that_was_unmounted(
    tmp_path: Path, count: Count, store: str, request_: bytes
) -> None:
    """Not even if something else can be written where it was."""
    if not count(0, 1):
        pytest.skip("with --faults=full only")
    with small_ext4(tmp_path / "disk") as disk, Daemon(tmp_path, path=str(disk.top / store)) as daemon:
        daemon.start()
        daemon.ask(by_size("old", CONTENT))
        with daemon.connect() as wire:
            disk.detach()
            assert code(wire.last(request_)) == "io"
        daemon.wait(74)
        assert list(disk.top.iterdir()) == []
        disk.mount_again()
        daemon.start()
        assert_can_be_read(daemon)
        daemon.stop()


@pytest.mark.thorough
@pytest.mark.promise("durable")
@pytest.mark.parametrize("what", ["removed", "replaced", "moved", "store removed"])
def test_nothing_is_acknowledged_when_the_journal_is_not_where_it_was(daemon: Daemon, what: str) -> None:
    daemon.ask(by_size("old", CONTENT))
    journal = daemon.store / "journal.jsonl"
    if what == "removed":
        journal.unlink()
    elif what == "replaced":
        shutil.copy(journal, daemon.home / "copy")
        (daemon.home / "copy").rename(journal)
    elif what == "moved":
        journal.rename(daemon.home / "aside")
    else:
        shutil.rmtree(daemon.store)
    with daemon.connect() as wire:
        assert code(wire.last(b"rename old new\n")) == "io"
    daemon.wait(74)
    assert "journal" in daemon.log
