"""get and cat: to a path, as frames, as raw bytes; ranges; targets that are refused; damaged packs."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.harness import PART, Daemon, etag, noise
from tests.wire import Wire, code, fields

SIZE = 3 * PART + 17
CONTENT = noise(SIZE, seed=3)


@pytest.fixture(scope="module")
def stocked(shared_daemon: Daemon) -> Daemon:
    """The shared daemon with a file `f` of three and a bit parts, and an empty one, `void`."""
    assert code(shared_daemon.ask(b"put - name=f size=%d\n" % SIZE + CONTENT)[-1]) == "OK"
    assert code(shared_daemon.ask(b"put - name=void size=0\n")[-1]) == "OK"
    return shared_daemon


def temporaries(directory: Path) -> list[str]:
    """What a get may have forgotten in the directory of its target."""
    return [name for name in os.listdir(directory) if "pfsd" in name]


# --- content ------------------------------------------------------------------------------------

RANGES = [
    (None, None),
    (0, SIZE),
    (0, 0),
    (0, 1),
    (1, 1),
    (PART - 1, 2),
    (PART, PART),
    (PART, None),
    (2 * PART - 1, PART + 2),
    (SIZE - 1, None),
    (SIZE - 1, 100),
    (SIZE, None),
    (SIZE + 5, 5),
    (0, 10**18),
    (2**62, 2**62),
]


@pytest.mark.parametrize(("offset", "length"), RANGES)
@pytest.mark.parametrize("way", ["frames", "cat", "path"])
def test_ranges_are_cut_to_the_file(stocked: Daemon, offset: int | None, length: int | None, way: str) -> None:
    start = offset or 0
    expected = CONTENT[start:] if length is None else CONTENT[start : start + length]
    options = (b"" if offset is None else b" offset=%d" % offset) + (b"" if length is None else b" length=%d" % length)
    with stocked.connect() as wire:
        if way == "cat":
            wire.send(b"cat f" + options + b"\n")
            assert wire.rest() == expected
            return
        if way == "frames":
            wire.send(b"get f -" + options + b"\n")
            content, final = wire.frames()
        else:
            final = wire.last(b"get f out replace=yes" + options + b"\n")
            content = (stocked.root / "out").read_bytes()
    assert content == expected
    told = fields(final)
    assert (told["size"], told["bytes"]) == (str(SIZE), str(len(expected)))
    assert (told["name"], told["etag"]) == ("f", etag(CONTENT))


def test_files_are_found_by_name_and_by_id(stocked: Daemon) -> None:
    with stocked.connect() as wire:
        file_id = fields(wire.ask(b"stat f\n")[0])["id"].encode()
        for ref in (b"f", b'"f"', file_id):
            wire.send(b"get %s - length=3\n" % ref)
            assert wire.frames()[0] == CONTENT[:3]
        assert code(wire.last(b'get "%s" -\n' % file_id)) == "not-found", "quoted digits are a name"


def test_an_empty_file_has_no_frames(stocked: Daemon) -> None:
    with stocked.connect() as wire:
        (final,) = wire.ask(b"get void -\n")
        assert fields(final)["etag"] == etag(b"") and fields(final)["bytes"] == "0"
        assert code(wire.last(b"get void void-out\n")) == "OK"
        assert (stocked.root / "void-out").read_bytes() == b""
        wire.send(b"cat void\n")
        assert wire.at_eof()


def test_no_frame_is_over_the_limit(idle_daemon: Daemon) -> None:
    idle_daemon.config(part_size="3MiB", memory="128MiB")
    idle_daemon.start()
    content = noise(7 << 20)
    with idle_daemon.connect() as wire:
        wire.ask(b"put - name=big size=%d\n" % len(content) + content)
        wire.send(b"get big -\n")
        assert wire.frames()[0] == content


def test_frames_are_tagged_like_every_line_of_their_reply(stocked: Daemon) -> None:
    with stocked.connect() as wire:
        wire.send(b"@g get f - length=5\r\n")
        assert wire.raw_line() == b"@g DATA 5\r\n"
        assert wire.exactly(5) == CONTENT[:5]
        assert wire.raw_line().startswith(b"@g OK get ")


@pytest.mark.parametrize("request_", [b"cat nobody", b"cat f offset=x"])
def test_cat_says_what_is_wrong_before_the_first_byte(stocked: Daemon, request_: bytes) -> None:
    with stocked.connect() as wire:
        wire.send(request_ + b"\n")
        assert code(wire.line()) in ("not-found", "usage")


def test_cat_waits_for_the_requests_before_it_and_nothing_comes_after(stocked: Daemon) -> None:
    with stocked.connect() as wire:
        wire.send(b"ping\n@t ping\ncat f length=4\nping\n")
        answer = wire.rest()
    assert answer.endswith(CONTENT[:4])
    assert sorted(answer[:-4].splitlines()) == [b"@t OK ping", b"OK ping"]


def test_getting_needs_a_length_of_plain_digits(stocked: Daemon) -> None:
    for option in (b"offset=-1", b"length=1k", b"offset=", b"length=0x10", b"on_error=maybe", b"replace=perhaps"):
        assert code(stocked.ask(b"get f out2 " + option + b"\n")[-1]) == "usage", option
    assert not (stocked.root / "out2").exists()


# --- targets ------------------------------------------------------------------------------------


def test_a_target_is_written_whole_and_readable(stocked: Daemon) -> None:
    (stocked.root / "deep").mkdir(exist_ok=True)
    assert code(stocked.ask(b"get f deep/target\n")[-1]) == "OK"
    target = stocked.root / "deep" / "target"
    assert target.read_bytes() == CONTENT
    assert os.listdir(stocked.root / "deep") == ["target"]
    assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask() -> int:
    umask = os.umask(0o022)
    os.umask(umask)
    return umask


@pytest.mark.promise("target")
def test_an_existing_target_is_replaced_only_on_demand(stocked: Daemon) -> None:
    target = stocked.root / "existing"
    target.write_bytes(b"precious")
    assert code(stocked.ask(b"get f existing\n")[-1]) == "exists"
    assert target.read_bytes() == b"precious"
    assert code(stocked.ask(b"get f existing replace=yes\n")[-1]) == "OK"
    assert target.read_bytes() == CONTENT


def test_an_absolute_target_inside_the_roots_is_fine(stocked: Daemon) -> None:
    target = stocked.root / "absolute"
    assert code(stocked.ask(b'get f "%s"\n' % os.fsencode(target))[-1]) == "OK"
    assert target.read_bytes() == CONTENT


@pytest.mark.promise("target")
@pytest.mark.parametrize("replace", [b"", b" replace=yes"])
@pytest.mark.parametrize("kind", ["directory", "symlink", "dangling", "fifo", "link-out"])
def test_a_target_that_is_no_file_is_neither_written_through_nor_replaced(
    stocked: Daemon, kind: str, replace: bytes
) -> None:
    target, precious = stocked.root / f"odd-{kind}", stocked.root / "precious"
    precious.write_bytes(b"precious")
    outside = stocked.home / "outside"
    outside.write_bytes(b"outside")
    if not os.path.lexists(target):
        if kind == "directory":
            target.mkdir()
        elif kind == "fifo":
            os.mkfifo(target)
        else:
            target.symlink_to({"symlink": "precious", "dangling": "nothing", "link-out": str(outside)}[kind])
    before = os.lstat(target)
    assert code(stocked.ask(b"get f odd-%s%s\n" % (kind.encode(), replace))[-1]) in ("denied", "exists")
    assert os.lstat(target).st_ino == before.st_ino and os.lstat(target).st_mode == before.st_mode
    assert (precious.read_bytes(), outside.read_bytes()) == (b"precious", b"outside")
    assert not (stocked.root / "nothing").exists()
    assert temporaries(stocked.root) == []


@pytest.mark.promise("target")
@pytest.mark.parametrize(
    ("target", "word"),
    [
        ("/tmp/pfsd-must-not-be-here", "denied"),
        ("../escaped", "denied"),
        ("nowhere/../../escaped", "denied not-found"),
        ("up/escaped", "denied"),
        ("../store/packs/x", "denied"),
        ("missing/target", "not-found"),
        ("f-file/target", "not-found"),
        (".", "denied"),
        ("..", "denied"),
        ("trailing/", "denied"),
        ("/", "denied"),
        ("n" * 256, "io"),
        (r"a\x00b", "usage"),
        ("", "usage"),
        ("/dev/null", "denied"),
    ],
)
def test_targets_that_cannot_be_written(stocked: Daemon, target: str, word: str) -> None:
    (stocked.root / "f-file").write_bytes(b"")
    if not (stocked.root / "up").is_symlink():
        (stocked.root / "up").symlink_to("..")
    assert code(stocked.ask(b'get f "%s" replace=yes\n' % target.encode())[-1]) in word.split()
    assert not (stocked.home / "escaped").exists()
    assert not Path("/tmp/pfsd-must-not-be-here").exists()
    assert temporaries(stocked.root) == temporaries(stocked.home) == []


@pytest.mark.promise("target")
def test_a_client_that_breaks_off_leaves_no_target(daemon: Daemon) -> None:
    size = 16 << 20
    daemon.ask(b"put - name=big size=%d\n" % size + bytes(size))
    workers = daemon.workers()
    for worker in workers:
        worker.suspend()
    try:
        wire = daemon.connect()
        wire.send(b"get big target\n")
        daemon.wait_until("processes_busy", "2")
        assert len(temporaries(daemon.root)) == 1
        wire.reset()
    finally:
        for worker in workers:
            worker.resume()
    daemon.wait_until("clients", "1")
    daemon.wait_until("memory_used", "0")
    assert os.listdir(daemon.root) == []


@pytest.mark.parametrize("way", [b"get big -", b"cat big"])
def test_a_reader_that_breaks_off_gives_its_memory_back(emptied: Daemon, way: bytes) -> None:
    size = 16 << 20
    emptied.ask(b"put - name=big size=%d\n" % size + bytes(size))
    wire = Wire(emptied.address, receive_buffer=4096)
    wire.send(way + b"\n")
    wire.exactly(5)
    wire.reset()
    emptied.wait_until("clients", "1")
    emptied.wait_until("memory_used", "0")
    assert code(emptied.ask(b"delete big\n")[-1]) == "OK"
    assert emptied.packs() == []


# --- damage -------------------------------------------------------------------------------------


def damaged(daemon: Daemon, how: str) -> None:
    """Do something to the pack of the file `a` of four parts; `flip` hits the second part only."""
    packs = daemon.packs()
    (pack,) = [pack for pack in packs if pack.stat().st_size > 2 * PART]
    if how == "missing":
        pack.unlink()
    elif how == "truncated":
        os.truncate(pack, pack.stat().st_size - PART // 2)
    elif how == "emptied":
        os.truncate(pack, 0)
    elif how == "flip":
        content = bytearray(pack.read_bytes())
        at = bytes(content).index(CONTENT[PART + 100 : PART + 200])
        content[at] ^= 1
        pack.write_bytes(content)
    elif how == "swapped":
        (other,) = [each for each in packs if each != pack]
        pack.write_bytes(other.read_bytes() + pack.read_bytes()[other.stat().st_size :])


FIRST_BAD = {"missing": 0, "truncated": 2, "emptied": 0, "flip": 1, "swapped": 0}


@pytest.fixture
def two_files(daemon: Daemon) -> Daemon:
    """A daemon with `a`, four parts, and `b`, a small file of its own pack."""
    daemon.ask(b"put - name=a size=%d\n" % SIZE + CONTENT)
    daemon.ask(b"put - name=b size=5\nother")
    assert len(daemon.packs()) == 2
    return daemon


@pytest.mark.promise("checked")
@pytest.mark.promise("target")
@pytest.mark.parametrize("how", FIRST_BAD)
def test_damage_is_an_error_that_names_the_part(two_files: Daemon, how: str) -> None:
    damaged(two_files, how)
    target = two_files.root / "target"
    target.write_bytes(b"old")
    for request in (b"get a target replace=yes\n", b"get a new\n", b"get a - offset=%d\n" % SIZE):
        reply = two_files.ask(request)[-1]
        if request.endswith(b"offset=%d\n" % SIZE):
            assert code(reply) == "OK", "no part of an empty range is read"
            continue
        assert code(reply) in ({"missing"} if how == "missing" else {"corrupt", "missing"})
        told = fields(reply)
        assert int(told["part"]) == FIRST_BAD[how] and int(told["offset"]) == FIRST_BAD[how] * PART
        assert told["name"] == "a"
    assert target.read_bytes() == b"old"
    assert os.listdir(two_files.root) == ["target"]
    assert fields(two_files.ask(b"list a\n")[0])["status"] == "damaged"
    assert fields(two_files.ask(b"list b\n")[0])["status"] == "ready"


@pytest.mark.promise("checked")
@pytest.mark.parametrize("how", FIRST_BAD)
def test_frames_never_carry_bad_bytes(two_files: Daemon, how: str) -> None:
    damaged(two_files, how)
    with two_files.connect() as wire:
        wire.send(b"get a -\n")
        content, final = wire.frames()
        assert code(final) in ("corrupt", "missing")
        assert content == CONTENT[: len(content)] and len(content) <= FIRST_BAD[how] * PART
        assert wire.ask(b"ping\n") == [b"OK ping"]


@pytest.mark.promise("checked")
def test_cat_of_damage_before_the_first_byte_is_an_error_line(two_files: Daemon) -> None:
    damaged(two_files, "missing")
    with two_files.connect() as wire:
        wire.send(b"cat a\n")
        assert code(wire.line()) == "missing"
        assert wire.at_eof()


@pytest.mark.promise("checked")
def test_cat_of_damage_after_the_first_byte_resets_the_connection(emptied: Daemon) -> None:
    content = noise(40 * PART)
    emptied.ask(b"put - name=long size=%d\n" % len(content) + content)
    last = emptied.packs()[-1]
    last.unlink()
    with emptied.connect() as wire, pytest.raises(ConnectionResetError):
        wire.send(b"cat long\n")
        wire.rest()


@pytest.mark.promise("checked")
@pytest.mark.parametrize("way", ["path", "frames"])
def test_on_error_zero_saves_the_rest(two_files: Daemon, way: str) -> None:
    damaged(two_files, "flip")
    expected = CONTENT[:PART] + bytes(PART) + CONTENT[2 * PART :]
    with two_files.connect() as wire:
        if way == "path":
            rows = wire.ask(b"get a target on_error=zero\n")
            content = (two_files.root / "target").read_bytes()
        else:
            wire.send(b"get a - on_error=zero\n")
            content, rows = b"", []
            while not rows:
                line = wire.line()
                if line.startswith(b"DATA "):
                    content += wire.exactly(int(line.split()[1]))
                else:
                    rows = [line, *wire.reply()]
    assert content == expected
    assert rows[:-1] == [b"DAMAGE offset=%d length=%d seq=1" % (PART, PART)]
    assert code(rows[-1]) == "partial"


def test_on_error_zero_of_a_sound_file_is_ok(two_files: Daemon) -> None:
    assert code(two_files.ask(b"get a target on_error=zero\n")[-1]) == "OK"
    assert (two_files.root / "target").read_bytes() == CONTENT


def test_damage_outside_the_range_is_no_matter(two_files: Daemon) -> None:
    damaged(two_files, "flip")
    with two_files.connect() as wire:
        wire.send(b"get a - offset=%d\n" % (2 * PART))
        content, final = wire.frames()
    assert content == CONTENT[2 * PART :] and code(final) == "OK"


@pytest.mark.promise("checked")
def test_verify_names_every_bad_part(two_files: Daemon) -> None:
    with two_files.connect() as wire:
        assert wire.ask(b"verify\n") == [b"OK verify files=2 parts=5 bytes=%d" % (SIZE + 5)]
        damaged(two_files, "flip")
        for request in (b"verify\n", b"verify a\n", b"verify b a\n"):
            bad, final = wire.ask(request)
            told = fields(bad)
            assert bad.startswith(b"BAD ")
            assert (told["seq"], told["offset"], told["code"], told["name"]) == ("1", str(PART), "corrupt", "a")
            assert code(final) == "corrupt" and fields(final)["bad"] == "1"
        assert code(wire.last(b"verify b\n")) == "OK"
        assert fields(wire.ask(b"list a\n")[0])["status"] == "damaged"


def test_verify_of_an_unknown_file_reads_nothing(two_files: Daemon) -> None:
    (reply,) = two_files.ask(b"verify a nobody\n")
    assert code(reply) == "not-found"


@pytest.mark.promise("checked")
def test_damage_is_remembered_and_forgotten_when_the_bytes_are_back(two_files: Daemon) -> None:
    (pack,) = [pack for pack in two_files.packs() if pack.stat().st_size > PART]
    aside = two_files.home / "aside"
    pack.rename(aside)
    assert code(two_files.ask(b"verify a\n")[-1]) == "corrupt"
    two_files.restart()
    assert fields(two_files.ask(b"list a\n")[0])["status"] == "damaged"
    aside.rename(pack)
    assert code(two_files.ask(b"verify a\n")[-1]) == "OK"
    assert fields(two_files.ask(b"list a\n")[0])["status"] == "ready"


def test_a_damaged_file_can_be_deleted(two_files: Daemon) -> None:
    damaged(two_files, "missing")
    two_files.ask(b"verify\n")
    assert code(two_files.ask(b"delete a\n")[-1]) == "OK"
    assert code(two_files.ask(b"verify\n")[-1]) == "OK"


# --- beside others ------------------------------------------------------------------------------


def test_a_file_deleted_while_it_is_read_is_read_to_its_end(daemon: Daemon) -> None:
    content = noise(24 << 20)
    daemon.ask(b"put - name=big size=%d\n" % len(content) + content)
    with Wire(daemon.address, receive_buffer=4096) as reader:
        reader.send(b"get big -\n")
        assert reader.peek(5) == b"DATA "
        assert code(daemon.ask(b"delete big\n")[-1]) == "OK"
        assert code(daemon.ask(b"get big -\n")[-1]) in ("not-found", "not-ready")
        got, final = reader.frames()
    assert got == content and code(final) == "OK"
    daemon.stop()  # it is forgotten before its packs go
    assert daemon.packs() == []


@pytest.mark.promise("whole")
def test_a_file_replaced_while_it_is_read_is_one_whole_version(emptied: Daemon) -> None:
    old, new = noise(24 << 20, 1), noise(1000, 2)
    emptied.ask(b"put - name=v size=%d\n" % len(old) + old)
    with Wire(emptied.address, receive_buffer=4096) as reader:
        reader.send(b"get v -\n")
        assert reader.peek(5) == b"DATA "
        assert code(emptied.ask(b"put - name=v replace=yes size=1000\n" + new)[-1]) == "OK"
        assert reader.frames()[0] == old
        reader.send(b"get v -\n")
        assert reader.frames()[0] == new


def test_readers_share_the_memory_ceiling(emptied: Daemon) -> None:
    content = noise(24 << 20)
    emptied.ask(b"put - name=big size=%d\n" % len(content) + content)
    wires = [emptied.connect() for _ in range(8)]
    for wire in wires:
        wire.send(b"get big -\n")
    for wire in wires:
        got, final = wire.frames()
        assert got == content and code(final) == "OK"
        wire.close()
    stats = emptied.stats()
    assert int(stats["memory_peak"]) <= int(stats["memory_limit"]) and stats["memory_used"] == "0"


@pytest.mark.parametrize("at", [0, 1])
def test_a_dead_worker_is_replaced_and_nobody_notices(daemon: Daemon, at: int) -> None:
    content = noise(24 << 20)
    workers = daemon.workers()
    assert len(workers) == 2
    with daemon.connect() as wire:
        wire.send(b"put - name=big size=%d\n" % len(content) + content[: len(content) // 2])
        os.kill(workers[at].pid, signal.SIGKILL)
        wire.send(content[len(content) // 2 :])
        assert fields(wire.reply()[-1])["etag"] == etag(content)
        daemon.wait_until("processes_replaced", "1")
        wire.send(b"get big -\n")
        assert wire.frames()[0] == content
    assert len(daemon.workers()) == 2
    assert daemon.staged() == []


def test_a_worker_ended_by_sigterm_does_not_stop_the_daemon(daemon: Daemon) -> None:
    for worker in daemon.workers():
        worker.terminate()
        worker.wait(30)
    assert code(daemon.ask(b"put - name=a size=%d\n" % SIZE + CONTENT)[-1]) == "OK"
    assert code(daemon.ask(b"verify\n")[-1]) == "OK"


def test_packs_that_cannot_be_opened_are_bad_parts(emptied: Daemon) -> None:
    (emptied.root / "a").write_bytes(noise(3 * PART))
    assert code(emptied.ask(b"put a\n")[-1]) == "OK"
    directory = emptied.packs()[0].parent
    directory.rename(directory.with_name("away"))
    directory.symlink_to(directory.name)  # a symlink to itself: ELOOP
    rows = emptied.ask(b"verify\n")
    assert [fields(row)["code"] for row in rows[:-1]] == ["io"] * 3
    assert code(rows[-1]) == "corrupt"
