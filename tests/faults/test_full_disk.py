"""A full disk is an error, not damage: of the store, in bytes and in files; of its journal; of the target of a get."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from pfsd.journal import Journal
from pfsd.records import Rename, encode
from pfsd.spare import RESERVE_BYTES, SPARE_BYTES, SPARE_FILES
from tests.faults.conftest import Count
from tests.faults.disks import Disk, small_ext4, small_tmpfs
from tests.faults.inject import fired, inject
from tests.harness import PART, Daemon, noise
from tests.test_wire_put import by_frames, by_size, fetched
from tests.test_wire_reclaim import FILES, put_in_one_pack
from tests.wire import Wire, code, fields

KINDS = {"tmpfs": small_tmpfs, "ext4": small_ext4}
SMALL, BIG = noise(5000, 1), noise(8 << 20, 2)

pytestmark = pytest.mark.root


@pytest.fixture
def disk(request: pytest.FixtureRequest, tmp_path: Path, count: Count) -> Iterator[Disk]:
    """A file system of 16 MiB and 64 files; of the kind that the test is given, else in memory."""
    kind = getattr(request, "param", "tmpfs")
    if kind != "tmpfs" and count(1, 0):
        pytest.skip("on other file systems with --faults=full")
    with KINDS[kind](tmp_path / "disk") as disk:
        yield disk


@pytest.fixture
def small(disk: Disk, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon with its store on that disk, which holds the files `old` and `other`; its root is elsewhere."""
    (tmp_path / "home").mkdir()
    with Daemon(tmp_path / "home", path=str(disk.top / "store")) as daemon:
        daemon.store = disk.top / "store"
        (daemon.root / "small").write_bytes(SMALL)
        (daemon.root / "big").write_bytes(BIG)
        daemon.start()
        for name in ("old", "other"):
            assert code(daemon.ask(by_size(name, noise(3 * PART)))[-1]) == "OK"
        yield daemon


def fill(disk: Disk, what: str, but: int = 0) -> None:
    """Take all bytes, or all files, but so many."""
    disk.fill_bytes(but) if what == "bytes" else disk.fill_files(but)


SMALL_PUTS = {
    "path": b"put small\n",
    "announced": by_size("new", SMALL),
    "announced over a file": by_size("old", SMALL).replace(b" size", b" replace=yes size"),
    "frames": by_frames("new", SMALL),
    "empty": by_size("new", b""),
}
BIG_PUTS = {
    "path": b"put big\n",
    "path over a file": b"put big name=old replace=yes\n",
    "announced": by_size("new", BIG),
    "frames": by_frames("new", BIG),
    "frames over a file": by_frames("old", BIG).replace(b"chunked", b"chunked replace=yes"),
}
RESUMED_PUTS = {
    "path": b"put big resume=yes\n",
    "frames": by_frames("new", BIG).replace(b"chunked", b"chunked resume=key"),
}


def answer(daemon: Daemon, put: bytes) -> bytes:
    """The answer to a put with a ping behind it: the connection is in step."""
    with daemon.connect() as wire:
        wire.send(put + b"ping\n")
        reply = wire.reply()
        assert wire.line() == b"OK ping", reply
    return reply[-1]


def trace(daemon: Daemon, disk: Disk) -> object:
    """What the store holds, and what that takes of the disk, when all is quiet; the journal's last block aside."""
    daemon.wait_until("memory_used", "0")
    daemon.wait_until("requests", "1")
    used, files = disk.used()
    return daemon.ask(b"list\n"), daemon.packs(), daemon.staged(), used >> 16, files


# --- the store ----------------------------------------------------------------------------------


@pytest.mark.promise("full")
@pytest.mark.parametrize(
    ("disk", "what"),
    [("tmpfs", "bytes"), ("tmpfs", "files"), ("ext4", "bytes"), ("ext4", "files")],
    indirect=["disk"],
)
def test_nothing_is_stored_on_a_full_disk_and_all_else_goes_on(small: Daemon, disk: Disk, what: str) -> None:
    fill(disk, what)
    before = trace(small, disk)
    for request in (*SMALL_PUTS.values(), *BIG_PUTS.values(), *RESUMED_PUTS.values()):
        assert code(answer(small, request)) == "no-space", request[:60]
    assert trace(small, disk) == before
    assert small.stats()["state"] == fields(small.ask(b"hello\n")[-1])["state"] == "full"

    small.restart()  # not a byte, or not a file, more than before: and yet it starts
    assert trace(small, disk) == before
    assert small.stats()["state"] == "full"
    assert fetched(small, "old") == noise(3 * PART)
    assert code(small.ask(b"get old copy replace=yes\n")[-1]) == "OK"
    assert small.ask(b"verify\n")[-1].startswith(b"OK verify files=2 ")
    assert code(small.ask(b"rename other another\n")[-1]) == "OK"
    assert fields(small.ask(b"delete another\n")[-1])["freed"] != "0"
    assert code(small.ask(b"delete old\n")[-1]) == "OK"

    disk.make_room()
    assert small.stats()["state"] == "ready"
    assert code(answer(small, BIG_PUTS["frames"])) == "OK"
    assert fetched(small, "new") == BIG


@pytest.mark.promise("full")
@pytest.mark.promise("whole")
@pytest.mark.parametrize("disk", KINDS, indirect=True)
def test_a_put_that_the_disk_turns_out_too_small_for_leaves_nothing(small: Daemon, disk: Disk) -> None:
    """How far content shrinks is not known beforehand: it is tried, and taken back."""
    disk.fill_bytes(but=SPARE_BYTES + (2 << 20))
    before = trace(small, disk)
    for request in BIG_PUTS.values():
        assert code(answer(small, request)) == "no-space", request[:60]
        assert trace(small, disk) == before, request[:60]
    assert fetched(small, "old") == noise(3 * PART)
    assert code(small.ask(by_size("zeros", bytes(30 << 20)))[-1]) == "OK", "this shrinks, and fits"


@pytest.mark.thorough
@pytest.mark.promise("full")
def test_a_put_that_runs_out_of_files_leaves_nothing(small: Daemon, disk: Disk) -> None:
    disk.fill_files(but=SPARE_FILES)
    before = trace(small, disk)
    for request in (by_size("new", bytes(30 << 20)), by_frames("new", bytes(30 << 20))):
        assert code(answer(small, request)) == "no-space"
        assert trace(small, disk) == before


@pytest.mark.thorough
@pytest.mark.promise("full")
def test_what_is_stored_raw_and_cannot_fit_is_refused_before_it_comes(small: Daemon, disk: Disk) -> None:
    small.config(codec="none")
    small.restart()
    disk.fill_bytes(but=SPARE_BYTES + (4 << 20))
    before = trace(small, disk)
    with small.connect() as wire:
        assert code(wire.last(b"put - name=new size=%d\n" % len(BIG))) == "no-space"  # and not a byte of it was sent
    assert trace(small, disk) == before
    assert code(answer(small, b"put big\n")) == "no-space"
    assert trace(small, disk) == before
    assert code(answer(small, by_size("new", BIG[: 3 << 20]))) == "OK"


@pytest.mark.thorough
@pytest.mark.promise("full")
def test_what_is_kept_of_a_put_that_filled_the_disk_is_gone_on_with(small: Daemon, disk: Disk) -> None:
    disk.fill_bytes(but=SPARE_BYTES + (4 << 20))
    assert code(small.ask(b"put big resume=yes\n")[-1]) == "no-space"
    disk.make_room()
    stored = small.ask(b"put big resume=yes\n")[-1]
    assert code(stored) == "OK" and int(fields(stored)["resumed"]) > 0
    assert fetched(small, "big") == BIG


@pytest.mark.thorough
@pytest.mark.promise("full")
@pytest.mark.promise("durable")
def test_every_client_of_many_that_fill_the_disk_is_answered(small: Daemon, disk: Disk, count: Count) -> None:
    for round_ in range(count(1, 10)):
        disk.fill_bytes(but=SPARE_BYTES + (4 << 20))
        names = [f"n{round_}-{at}" for at in range(24)]
        contents = {name: noise(300_000 + 40_000 * at, at) for at, name in enumerate(names)}
        wires = {name: small.connect() for name in names}
        for name, wire in wires.items():
            wire.send(by_size(name, contents[name]) if len(name) % 2 else by_frames(name, contents[name]))
        words = {name: code(wire.reply()[-1]) for name, wire in wires.items()}
        assert set(words.values()) == {"OK", "no-space"}, words
        for wire in wires.values():
            assert wire.ask(b"ping\n") == [b"OK ping"]
            wire.close()
        small.kill()
        small.start()
        stored = [name for name, word in words.items() if word == "OK"]
        small.wait_until_listed(len(stored) + 2)
        for name in stored:
            assert fetched(small, name) == contents[name]
        assert small.staged() == []
        small.ask(b"delete %b\n" % " ".join(stored).encode())
        small.wait_until_packs(2)
        disk.make_room()


# --- the journal --------------------------------------------------------------------------------


def rename_until_refused(wire: Wire, name: bytes) -> bytes:
    """Let the journal grow until there is no room for it; the name that the file has then."""
    for length in (900, 1):  # the last block is used up to its last bytes
        for at in range(10_000):
            new = b"%d%b" % (at % 2, b"n" * length)
            word = code(wire.last(b'rename "%b" "%b"\n' % (name, new)))
            if word != "OK":
                assert word == "no-space"
                break
            name = new
    return name


@pytest.mark.promise("full")
@pytest.mark.parametrize("disk", KINDS, indirect=True)
def test_deletes_have_a_reserve_that_comes_back(small: Daemon, disk: Disk) -> None:
    reserve = small.store / "reserve"
    assert reserve.stat().st_size == RESERVE_BYTES
    with small.connect() as wire:
        wire.ask(by_size("a", SMALL) + by_size("b", SMALL) + by_size("c", SMALL))
        wire.reply(), wire.reply()
        disk.fill_bytes()
        name = rename_until_refused(wire, b"a")
        assert reserve.exists()
        assert code(wire.last(b'delete "%b"\n' % name)) == "OK"
        assert not reserve.exists()

        disk.fill_bytes()  # now the reserve is used up as well
        name = rename_until_refused(wire, b"b")
        small.restart()
    with small.connect() as wire:
        assert [code(line) for line in wire.ask(b'delete "%b"\n' % name)] == ["no-space"]
        assert wire.ask(b"list\n")[-1].startswith(b"OK list files=4 ")
        disk.make_room()
        assert code(wire.last(b'delete "%b"\n' % name)) == "OK"
        assert code(wire.last(by_size("d", SMALL))) == "OK"
        assert reserve.stat().st_size == RESERVE_BYTES
        assert wire.ask(b"list\n")[-1].startswith(b"OK list files=4 ")


@pytest.mark.thorough
@pytest.mark.promise("full")
@pytest.mark.promise("durable")
@pytest.mark.parametrize("reserve", ["reserve", "no reserve"])
def test_the_journal_is_compacted_on_a_full_disk_or_stays_as_it_is(small: Daemon, disk: Disk, reserve: str) -> None:
    journal = small.store / "journal.jsonl"
    with small.connect() as wire:
        for at in range(25):  # what is alive takes more than the room that will be left
            assert code(wire.last(by_size(f"{at}{'n' * 1000}", b""))) == "OK"
    small.stop()
    let_die(journal)
    disk.fill_bytes(but=12_000)
    if reserve == "no reserve":
        (small.store / "reserve").unlink()
        disk.fill_bytes(but=12_000)
    small.start()
    assert code(small.ask(b"rename other another\n")[-1]) == "OK"  # the commit that sets it going
    before = small.ask(b"list\n")
    if reserve == "reserve":
        wait_until_logged(small, "journal compacted")
        assert journal.stat().st_size < 100_000
    else:
        wait_until_logged(small, "could not be compacted")
        assert journal.stat().st_size > 1 << 20
    small.kill()
    assert not journal.with_name("journal.jsonl.new").exists()
    small.start()
    assert small.ask(b"list\n") == before
    disk.make_room()
    assert code(small.ask(b"rename another other\n")[-1]) == "OK"
    wait_until_logged(small, "journal compacted")
    small.restart()
    assert journal.stat().st_size < 100_000
    assert fetched(small, "old") == fetched(small, "other") == noise(3 * PART)


def let_die(journal: Path) -> None:
    """Add more than a MiB that nobody needs: one file renamed to and fro."""
    names = [b"x" * 1000, b"old"]
    with closing(Journal.open(journal, lambda line: None)) as opened:
        opened.append([encode(Rename(1, names[at % 2])) for at in range(2400)])


def wait_until_logged(daemon: Daemon, words: str) -> None:
    """What the daemon does beside its answers, and that no answer tells."""
    daemon._poll(b"ping\n", lambda rows: words in daemon.log)


@pytest.mark.thorough
@pytest.mark.promise("full")
@pytest.mark.promise("torn")
@pytest.mark.parametrize("what", ["bytes", "files"])
def test_a_torn_end_is_not_cut_off_while_it_cannot_be_kept(small: Daemon, disk: Disk, what: str) -> None:
    small.kill()
    journal = small.store / "journal.jsonl"
    with journal.open("ab") as file:
        file.write(b'{"seq":99,"type":"put","na')
    torn = journal.read_bytes()
    fill(disk, what)
    status, said = small.start_fails()
    assert status == 74 and len(said.splitlines()) == 1 and "No space left" in said
    assert journal.read_bytes() == torn
    assert list(small.store.glob("journal.torn-*")) == []
    disk.make_room()
    small.start()
    assert small.ask(b"list\n")[-1].startswith(b"OK list files=2 ")
    assert [kept.read_bytes() for kept in small.store.glob("journal.torn-*")] == [b'{"seq":99,"type":"put","na']


@pytest.mark.thorough
@pytest.mark.promise("full")
@pytest.mark.parametrize("what", ["bytes", "files"])
def test_a_new_store_on_a_full_disk_is_refused_in_one_line(disk: Disk, tmp_path: Path, what: str) -> None:
    (tmp_path / "home").mkdir()
    fill(disk, what)
    with Daemon(tmp_path / "home", path=str(disk.top / "store")) as daemon:
        status, said = daemon.start_fails()
        assert status == 73 and len(said.splitlines()) == 1 and "No space left" in said
        disk.make_room()
        daemon.start()


@pytest.mark.thorough
@pytest.mark.promise("full")
def test_a_pack_that_is_mostly_dead_waits_for_room(small: Daemon, disk: Disk) -> None:
    small.ask(b"delete old other\n")
    small.wait_until_packs(0)
    with small.connect() as wire:
        pack = put_in_one_pack(small, wire, FILES)
        assert code(wire.last(by_size("apart", BIG[: 2 << 20]))) == "OK"
        apart = set(small.packs()) - {pack}
        disk.fill_bytes()
        doomed = ["two-parts", *(f"f{at}" for at in range(29))]
        assert code(wire.last(b"delete %b\n" % " ".join(doomed).encode())) == "OK"
        wait_until_logged(small, "waits for room")
        assert set(small.packs()) == {pack} | apart
        assert wire.last(b"verify\n").startswith(b"OK verify files=%d " % (len(FILES) - 29))
        disk.make_room()
        assert code(wire.last(b"delete apart\n")) == "OK"  # something else comes free
        small.wait_until("packs_copied", "1")
        small.wait_until("waste", "0")
        assert wire.last(b"verify\n").startswith(b"OK verify files=%d " % (len(FILES) - 30))


@pytest.mark.thorough
@pytest.mark.promise("full")
def test_a_quota_is_as_good_as_a_full_disk(idle_daemon: Daemon) -> None:
    inject(idle_daemon, "writev_all:*/store/tmp/*:1+:edquot")
    idle_daemon.start()
    assert code(answer(idle_daemon, by_size("new", SMALL))) == "no-space"
    assert code(answer(idle_daemon, by_frames("new", BIG))) == "no-space"
    assert fired(idle_daemon)
    assert idle_daemon.packs() == idle_daemon.staged() == []


# --- the target ---------------------------------------------------------------------------------


@pytest.fixture
def getter(disk: Disk, tmp_path: Path) -> Iterator[Daemon]:
    """A daemon with the file `big`, whose root, not its store, is on a small disk; the target `old` is there."""
    (tmp_path / "home").mkdir()
    with Daemon(tmp_path / "home", roots=[str(disk.top)]) as daemon:
        daemon.root = disk.top
        daemon.start()
        daemon.ask(by_size("big", BIG))
        (daemon.root / "old").write_bytes(b"precious")
        yield daemon


@pytest.mark.thorough
@pytest.mark.promise("target")
@pytest.mark.promise("full")
@pytest.mark.parametrize("disk", KINDS, indirect=True)
@pytest.mark.parametrize("what", ["bytes", "files"])
def test_a_get_to_a_full_disk_leaves_the_target_as_it_was(getter: Daemon, disk: Disk, what: str) -> None:
    fill(disk, what)
    before = sorted(os.listdir(disk.top))
    for options in (b"old replace=yes", b"new", b"new sync=yes", b"new resume=yes"):
        assert code(getter.ask(b"get big %b\n" % options)[-1]) == "no-space"
    assert sorted(os.listdir(disk.top)) == before
    assert (disk.top / "old").read_bytes() == b"precious"
    disk.make_room()
    assert code(getter.ask(b"get big old replace=yes\n")[-1]) == "OK"
    assert (disk.top / "old").read_bytes() == BIG


@pytest.mark.thorough
@pytest.mark.promise("target")
@pytest.mark.promise("full")
@pytest.mark.parametrize("disk", KINDS, indirect=True)
def test_gets_that_fill_the_disk_together_leave_whole_targets_or_none(getter: Daemon, disk: Disk) -> None:
    """Each of them fits, all of them do not: which that is turns out in the middle."""
    wires = [getter.connect() for _ in range(4)]
    for at, wire in enumerate(wires):
        wire.send(b"get big target%d replace=yes\n" % at)
    words = [code(wire.reply()[-1]) for wire in wires]
    for wire in wires:
        wire.close()
    assert "no-space" in words and set(words) <= {"OK", "no-space"}
    targets = sorted(path.name for path in disk.top.iterdir() if path.is_file())
    assert targets == sorted(["old", *(f"target{at}" for at, word in enumerate(words) if word == "OK")])
    assert all((disk.top / name).read_bytes() == BIG for name in targets if name != "old")
