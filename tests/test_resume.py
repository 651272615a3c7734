"""get and put that go on where they were cut short: what is there is checked, used, and not moved again."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from pfsd import packs
from pfsd.commands import put, resume
from pfsd.journal import Journal
from pfsd.records import decode, encode
from pfsd.registry import Registry
from tests.faults.inject import inject
from tests.harness import PART, Daemon, etag, noise, wait_for
from tests.wire import Wire, code, fields

RUN = 16 * PART
SIZE = 2 * RUN + 8 * PART + 17
CONTENT = noise(SIZE, seed=5)


# --- get ----------------------------------------------------------------------------------------


def stock(daemon: Daemon) -> Daemon:
    """Store a file `f` of three packs."""
    assert code(daemon.ask(b"put - name=f size=%d\n" % SIZE + CONTENT)[-1]) == "OK"
    assert len(daemon.packs()) == 3
    return daemon


@pytest.fixture
def stocked(emptied: Daemon) -> Daemon:
    """A daemon with the file `f`."""
    return stock(emptied)


def partials(daemon: Daemon) -> list[Path]:
    """What interrupted gets have left in the root."""
    return [daemon.root / name for name in sorted(os.listdir(daemon.root)) if name.startswith(".")]


def cut_short(daemon: Daemon, request: bytes = b"get f out resume=yes\n") -> Path:
    """Let a get fail at the last part of the file, which is mended again; the partial file."""
    pack = daemon.packs()[2]
    sound = pack.read_bytes()
    pack.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    assert code(daemon.ask(request)[-1]) == "corrupt"
    pack.write_bytes(sound)
    assert not (daemon.root / "out").exists()
    (partial,) = partials(daemon)
    return partial


def resumed(daemon: Daemon, request: bytes = b"get f out resume=yes\n", content: bytes = CONTENT) -> int:
    """Carry a get through and check what came of it; how many bytes it found."""
    final = daemon.ask(request)[-1]
    assert code(final) == "OK", final
    assert (daemon.root / "out").read_bytes() == content
    assert partials(daemon) == []
    return int(fields(final)["resumed"])


def test_what_a_failed_get_has_written_is_not_read_from_the_store_again(stocked: Daemon) -> None:
    partial = cut_short(stocked)
    assert partial.stat().st_mode & 0o777 == 0o600
    for pack in stocked.packs()[:2]:
        pack.unlink()
    assert resumed(stocked) == SIZE - SIZE % PART
    assert (stocked.root / "out").stat().st_mode & 0o777 != 0o600
    assert code(stocked.ask(b"get f out2\n")[-1]) == "missing", "so these packs were needed otherwise"


def test_a_fresh_one_finds_nothing_and_a_plain_one_does_not_say(stocked: Daemon) -> None:
    assert resumed(stocked) == 0
    assert "resumed" not in fields(stocked.ask(b"get f out replace=yes resume=no\n")[-1])


@pytest.mark.promise("target")
@pytest.mark.promise("checked")
def test_bytes_that_rotted_in_the_partial_are_repaired(stocked: Daemon) -> None:
    partial = cut_short(stocked)
    with partial.open("r+b") as file:
        for at in (0, 17 * PART + 100):
            file.seek(at)
            file.write(bytes([CONTENT[at] ^ 1]))
    assert resumed(stocked) == SIZE - SIZE % PART - 2 * PART


def test_a_partial_is_cut_filled_up_and_never_trusted(stocked: Daemon) -> None:
    partial = cut_short(stocked)
    partial.write_bytes(CONTENT + b"more")
    assert resumed(stocked) == SIZE
    (stocked.root / "out").unlink()
    partial = cut_short(stocked)
    partial.write_bytes(CONTENT[: 3 * PART + 5])
    assert resumed(stocked) == 3 * PART
    (stocked.root / "out").unlink()
    partial = cut_short(stocked)
    partial.write_bytes(noise(SIZE, seed=6))
    assert resumed(stocked) == 0


def test_of_a_range_the_parts_that_are_whole_count(stocked: Daemon) -> None:
    options = b" offset=100 length=%d" % SIZE
    cut_short(stocked, b"get f out resume=yes" + options + b"\n")
    assert resumed(stocked, b"get f out resume=yes" + options + b"\n", CONTENT[100:]) == SIZE - SIZE % PART - PART


def test_a_partial_is_of_one_file_one_content_one_range_and_one_target(stocked: Daemon) -> None:
    first = cut_short(stocked)
    stocked.ask(b"put - name=twin size=%d\n" % SIZE + CONTENT)
    for request in (b"get f out offset=0 length=%d", b"get f out length=%d", b"get twin out length=%d", b"get f o2 "):
        length = SIZE if b"twin" in request else SIZE - 17
        line = (request % length if b"%d" in request else request) + b" resume=yes replace=yes\n"
        assert fields(stocked.ask(line)[-1])["resumed"] == "0", line
        assert partials(stocked) == [first]
    assert fields(stocked.ask(b"get f out length=%d offset=0 replace=yes resume=yes\n" % SIZE)[-1])["resumed"] != "0"


def test_a_plain_get_leaves_the_partials_of_others(stocked: Daemon) -> None:
    partial = cut_short(stocked)
    before = partial.stat()
    assert code(stocked.ask(b"get f out\n")[-1]) == "OK"
    assert partials(stocked) == [partial] and partial.stat().st_mtime_ns == before.st_mtime_ns
    assert code(stocked.ask(b"get f out resume=yes\n")[-1]) == "exists"
    assert resumed(stocked, b"get f out resume=yes replace=yes\n") == SIZE - SIZE % PART


def suspended(daemon: Daemon, request: bytes) -> Wire:
    """A get whose I/O processes stand still."""
    for worker in daemon.workers():
        worker.suspend()
    wire = daemon.connect()
    wire.send(request)
    daemon.wait_until("processes_busy", "2")
    return wire


def test_of_two_at_once_one_is_told_that_the_target_is_busy(stocked: Daemon) -> None:
    workers = stocked.workers()
    try:
        first = suspended(stocked, b"get f out resume=yes\n")
        assert code(stocked.ask(b"get f out resume=yes\n")[-1]) == "busy"
        assert len(partials(stocked)) == 1
    finally:
        for worker in workers:
            worker.resume()
    assert fields(first.reply()[-1])["resumed"] == "0"
    assert (stocked.root / "out").read_bytes() == CONTENT and partials(stocked) == []


@pytest.mark.parametrize("end", ["leaves", "stops", "dies"])
def test_a_get_goes_on_whatever_ended_it(idle_daemon: Daemon, end: str) -> None:
    idle_daemon.config(stop_timeout=1)
    idle_daemon.start()
    stocked = stock(idle_daemon)
    workers = stocked.workers()
    wire = suspended(stocked, b"get f out resume=yes\n")
    if end == "leaves":
        wire.reset()
    elif end == "dies":
        stocked.note_family()
        os.kill(stocked.pid, signal.SIGKILL)
    else:
        stocked.stop()
        stocked.start()
        assert code(wire.line()) == "cancelled"
    for worker in workers:
        if worker.is_running():
            worker.resume()
    if end == "dies":
        stocked.wait(-signal.SIGKILL)
        stocked.start()
    stocked.wait_until("clients", "1")
    stocked.wait_until("memory_used", "0")
    (partial,) = partials(stocked)
    partial.write_bytes(CONTENT[: 5 * PART])  # how far it came is chance
    assert resumed(stocked) == 5 * PART
    assert resumed(stocked, b"get f out resume=yes replace=yes\n") == 0


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "link"])
def test_only_a_file_of_ours_is_gone_on_with(stocked: Daemon, kind: str) -> None:
    partial = cut_short(stocked)
    partial.unlink()
    precious = stocked.root / "precious"
    precious.write_bytes(b"precious")
    if kind == "symlink":
        partial.symlink_to("precious")
    elif kind == "fifo":
        os.mkfifo(partial)
    elif kind == "directory":
        partial.mkdir()
    else:
        os.link(precious, partial)
    if kind == "link":
        assert resumed(stocked) == 0, "its other name is not written to"
    else:
        before = os.lstat(partial)
        assert code(stocked.ask(b"get f out resume=yes\n")[-1]) == "denied"
        assert os.lstat(partial).st_ino == before.st_ino and not (stocked.root / "out").exists()
    assert precious.read_bytes() == b"precious"


def test_the_longest_name_has_room_for_its_partial(stocked: Daemon) -> None:
    name = "ä" * 127 + "x"
    request = b'get f "%s" resume=yes\n' % name.encode()
    partial = cut_short(stocked, request)
    assert len(os.fsencode(partial.name)) <= 255
    assert fields(stocked.ask(request)[-1])["resumed"] == str(SIZE - SIZE % PART)
    assert (stocked.root / name).read_bytes() == CONTENT and partials(stocked) == []


def test_zeros_that_stand_for_damage_are_tried_again(stocked: Daemon) -> None:
    partial = cut_short(stocked)
    with partial.open("r+b") as file:
        file.seek(SIZE - SIZE % PART)
        assert file.read() == bytes(SIZE % PART)
    pack = stocked.packs()[2]
    pack.rename(pack.with_suffix(".away"))
    rows = stocked.ask(b"get f out resume=yes on_error=zero\n")
    assert [fields(row).get("seq") for row in rows] == [str(SIZE // PART), None], "the parts before it are there"
    assert code(rows[-1]) == "partial"
    assert (stocked.root / "out").read_bytes() == CONTENT[: SIZE - SIZE % PART] + bytes(SIZE % PART)


def test_resume_goes_with_a_path(stocked: Daemon) -> None:
    for request in (b"get f - resume=yes\n", b"get f out resume=maybe\n", b"cat f resume=yes\n"):
        assert code(stocked.ask(request)[-1]) == "usage", request
    assert etag(CONTENT) == fields(stocked.ask(b"get f out\n")[-1])["etag"]


# --- put ----------------------------------------------------------------------------------------

#: Less than in earnest, as nothing is to be seen at more of it.
CHECKPOINT = 8 << 20
CHECKPOINT_RUNS = CHECKPOINT // RUN
#: Enough for a checkpoint, and a bit; every part is another one.
BIG = CHECKPOINT + RUN
BIG_PUT = b"put big resume=yes\n"


def written(daemon: Daemon, size: int = BIG) -> bytes:
    """The source `big`: content that compresses well and has no two equal parts."""
    content = b"".join(b"%08d" % at * (PART // 8) for at in range(-(-size // PART)))[:size]
    (daemon.root / "big").write_bytes(content)
    return content


def journal(daemon: Daemon, kind: str) -> list[dict[str, Any]]:
    """The records of a kind in the journal."""
    lines = (daemon.store / "journal.jsonl").read_bytes().rpartition(b"\n")[0].splitlines()
    return [record for record in map(json.loads, lines) if record["type"] == kind]


def inodes(daemon: Daemon) -> set[int]:
    """Which packs there are."""
    return {pack.stat().st_ino for pack in daemon.packs()}


def is_whole(daemon: Daemon, content: bytes, name: bytes = b"big") -> bool:
    """Whether a file has this content, is sound, and nothing else is in the store."""
    with daemon.connect() as wire:
        wire.send(b"get %s -\n" % name)
        fetched, final = wire.frames()
        assert code(final) == "OK" and fields(final)["etag"] == etag(content)
        assert code(wire.last(b"verify\n")) == "OK"
        assert fields(wire.last(b"list\n"))["files"] == "1"
    runs = [run["pack"] for kind in ("parts", "ready") for record in journal(daemon, kind) for run in runs_of(record)]
    assert daemon.staged() == [] and {int(pack.stem, 16) for pack in daemon.packs()} <= set(runs)
    return fetched == content


def runs_of(record: dict[str, Any]) -> list[dict[str, Any]]:
    return [record["run"]] if "run" in record else record.get("runs", [])


@pytest.fixture
def careful(idle_daemon: Daemon) -> Daemon:
    """A daemon, not started yet, that makes what it stores durable every CHECKPOINT bytes."""
    idle_daemon.prelude = f"from pfsd.commands import put; put.CHECKPOINT_BYTES = {CHECKPOINT}"
    return idle_daemon


def held_up(daemon: Daemon) -> tuple[Wire, bytes]:
    """Start a daemon whose I/O processes stand still in a put when something is durable, and much is left; the content.

    Each stops behind its 12th pack: 8 make a checkpoint, and the content fills 36.
    """
    inject(daemon, "process.writev_all:*/store/tmp/*:12:stop")
    daemon.start()
    inject(daemon)
    content = written(daemon) + bytes(3 * BIG)
    os.truncate(daemon.root / "big", len(content))
    wire = daemon.connect()
    wire.send(BIG_PUT)
    wait_for(lambda: len(journal(daemon, "parts")) >= CHECKPOINT_RUNS)
    return wire, content


def cut_off(daemon: Daemon) -> bytes:
    """A put whose client has left when some runs were stored, so that they are kept; the content."""
    content = written(daemon, 24 * RUN)
    for _ in range(20):
        wire = daemon.connect()
        wire.send(BIG_PUT)
        wait_for(lambda: len(daemon.staged()) >= 6 or b" status=ready " in daemon.ask(b"list\n")[0])
        workers = daemon.workers()
        for worker in workers:
            worker.suspend()
        wire.reset()
        for worker in workers:
            worker.resume()
        daemon.wait_until("requests", "1")
        if [fields(row)["status"] for row in daemon.ask(b"list\n")[:-1]] == ["storing"]:
            return content
        daemon.ask(b"delete big\n")  # it was faster
    raise AssertionError("no put could be cut off")


def kept(daemon: Daemon) -> dict[str, str]:
    """The row of the one file there is, which waits to be gone on with."""
    (row, _) = daemon.ask(b"list\n")
    assert fields(row)["status"] == "storing"
    return fields(row)


def read_by(daemon: Daemon) -> int:
    """Bytes that the I/O processes have read from anywhere."""
    return sum(worker.io_counters().read_chars for worker in daemon.workers())


def test_a_put_goes_on_after_the_daemon_was_killed(careful: Daemon) -> None:
    daemon = careful
    wire, content = held_up(daemon)
    daemon.kill()
    wire.close()
    daemon.start()
    row, before, rows = kept(daemon), inodes(daemon), len(journal(daemon, "parts"))
    assert int(row["size"]) >= CHECKPOINT and len(before) == rows, "what was not in the journal is swept"
    read = read_by(daemon)
    final = daemon.ask(BIG_PUT)[-1]
    assert code(final) == "OK"
    assert fields(final)["resumed"] == row["size"] and fields(final)["id"] == row["id"]
    assert len(content) - int(row["size"]) <= read_by(daemon) - read < len(content) - int(row["size"]) + (4 << 20)
    assert before < inodes(daemon)
    assert is_whole(daemon, content)
    assert len({header.origin.put for header in headers(daemon)}) == 1, "one put, as its packs tell it"
    daemon.restart()
    assert is_whole(daemon, content)


def headers(daemon: Daemon) -> list[packs.PartHeader]:
    """The header of the first part of each pack."""
    return [packs.read_header(pack.read_bytes())[0] for pack in daemon.packs()]


def test_what_may_be_lost_of_a_put_is_what_the_protocol_says() -> None:
    assert put.CHECKPOINT_BYTES == 64 << 20


def test_a_put_goes_on_after_its_client_has_left(emptied: Daemon) -> None:
    content = cut_off(emptied)
    size, before = kept(emptied)["size"], inodes(emptied)
    assert emptied.staged() == [] and len(before) * RUN == int(size)
    assert fields(emptied.ask(BIG_PUT)[-1])["resumed"] == size
    assert before < inodes(emptied) and len(inodes(emptied)) == 24
    assert is_whole(emptied, content)


def test_a_put_goes_on_after_the_daemon_was_stopped(careful: Daemon) -> None:
    daemon = careful
    daemon.config(stop_timeout=1)
    wire, content = held_up(daemon)
    daemon.stop()
    assert code(wire.line()) == "cancelled"
    daemon.start()
    row = kept(daemon)
    assert int(row["size"]) >= CHECKPOINT and daemon.staged() == []
    assert fields(daemon.ask(BIG_PUT)[-1])["resumed"] == row["size"]
    assert is_whole(daemon, content)


@pytest.mark.promise("whole")
@pytest.mark.parametrize("request_", [b"put big\n", b"put big resume=no\n"])
def test_without_resume_nothing_is_left(daemon: Daemon, request_: bytes) -> None:
    written(daemon)
    os.truncate(daemon.root / "big", 256 << 20)  # it will not be done before
    wire = daemon.connect()
    wire.send(request_)
    daemon.wait_until_listed(1)
    wire.reset()
    daemon.wait_until_listed(0)
    daemon.wait_until_packs(0)
    assert daemon.staged() == []
    assert "source" not in journal(daemon, "put")[0]


@pytest.mark.parametrize("change", ["content", "touch", "move", "other"])
def test_a_changed_source_is_stored_anew(emptied: Daemon, change: str) -> None:
    content = bytearray(cut_off(emptied))
    old, before, source = kept(emptied), set(emptied.packs()), emptied.root / "big"
    if change == "content":
        status = source.stat()
        with source.open("r+b") as file:
            file.write(b"changed!")
        os.utime(source, ns=(status.st_atime_ns, status.st_mtime_ns))
        content[:8] = b"changed!"
    elif change == "touch":
        source.touch()
    elif change == "move":
        source.rename(emptied.root / "moved")
        (emptied.root / "moved").rename(source)
    else:
        source.rename(emptied.root / "other")
        source.write_bytes(content)
    final = emptied.ask(BIG_PUT)[-1]
    assert fields(final)["resumed"] == "0" and fields(final)["id"] != old["id"]
    assert not before & set(emptied.packs())
    assert is_whole(emptied, bytes(content))


def test_a_plain_put_of_the_name_drops_what_is_kept(emptied: Daemon) -> None:
    cut_off(emptied)
    for request in (b"put - name=big size=3\nabc", b"put big replace=yes\n"):
        assert code(emptied.ask(request)[-1]) == "OK"
        emptied.wait_until_listed(1)
        (row, _) = emptied.ask(b"list\n")
        assert fields(row)["status"] == "ready"
        if request.endswith(b"abc"):
            assert len(emptied.packs()) == 1
            assert code(emptied.ask(BIG_PUT)[-1]) == "exists"


def test_of_two_at_once_one_goes_on(emptied: Daemon) -> None:
    content = cut_off(emptied)
    size = kept(emptied)["size"]
    with emptied.connect() as first, emptied.connect() as second:
        first.send(BIG_PUT)
        emptied.wait_until("requests", "2")
        assert code(second.last(BIG_PUT)) == "exists"
        assert code(second.last(b"delete %s\n" % fields(second.ask(b"list\n")[0])["id"].encode())) == "not-ready"
        assert fields(first.line())["resumed"] == size
    assert is_whole(emptied, content)


@pytest.mark.promise("checked")
@pytest.mark.parametrize("damaged", ["first", "last", "header", "all"])
def test_what_has_rotted_of_what_is_kept_is_stored_again(daemon: Daemon, damaged: str) -> None:
    """The source is at hand for the last time: an OK must not be for a file that is damaged from its start."""
    content = cut_off(daemon)
    size, there = int(kept(daemon)["size"]), daemon.packs()
    for pack in {"first": there[:1], "last": there[-1:], "header": there[1:2], "all": there}[damaged]:
        data = bytearray(pack.read_bytes())
        data[40 if damaged == "header" else len(data) // 2] ^= 4
        pack.write_bytes(data)
    final = daemon.ask(BIG_PUT)[-1]
    assert fields(final)["resumed"] == str(0 if damaged == "all" else size - RUN)
    assert is_whole(daemon, content)
    assert "are damaged: stored anew" in daemon.log
    daemon.restart()
    assert is_whole(daemon, content)


@pytest.mark.parametrize("lost", ["first", "last", "short", "all"])
def test_packs_that_the_disk_has_lost_are_stored_again(emptied: Daemon, lost: str) -> None:
    content = cut_off(emptied)
    size, there = int(kept(emptied)["size"]), emptied.packs()
    if lost == "short":
        os.truncate(there[1], there[1].stat().st_size - 1)
    for pack in {"first": there[:1], "last": there[-1:], "all": there}.get(lost, []):
        pack.unlink()
    final = emptied.ask(BIG_PUT)[-1]
    assert fields(final)["resumed"] == str(0 if lost == "all" else size - RUN)
    assert is_whole(emptied, content)
    emptied.restart()
    assert is_whole(emptied, content)


def test_what_is_kept_can_be_deleted_and_is_not_ready_before(emptied: Daemon) -> None:
    cut_off(emptied)
    file_id = kept(emptied)["id"].encode()
    stored = sum(pack.stat().st_size for pack in emptied.packs())
    with emptied.connect() as wire:
        for request in (b"get %s out", b"get big out", b"verify %s", b"rename %s x", b"delete big", b"stat big"):
            assert code(wire.last((request.replace(b"%s", file_id)) + b"\n")) == "not-ready", request
        assert fields(wire.ask(b"stat %s\n" % file_id)[0])["status"] == "storing"
        assert code(wire.last(b"put - name=x size=1\nx")) == "OK"
        assert code(wire.last(b"delete %s nothing\n" % file_id)) == "not-found"
        assert fields(wire.last(b"list\n"))["files"] == "2"
        rows = wire.ask(b"delete %s x\n" % file_id)
    assert (fields(rows[0])["id"], fields(rows[0])["name"]) == (file_id.decode(), "big")
    assert fields(rows[0])["freed"] == str(stored)
    assert emptied.packs() == [] and emptied.ask(b"list\n") == [b"OK list files=0 size=0 stored=0"]
    emptied.restart()
    assert fields(emptied.ask(BIG_PUT)[-1])["resumed"] == "0"


def test_a_rename_takes_the_name_of_what_is_kept_only_on_demand(emptied: Daemon) -> None:
    cut_off(emptied)
    file_id = kept(emptied)["id"]
    with emptied.connect() as wire:
        assert code(wire.last(b"put - name=x size=1\nx")) == "OK"
        refusal = wire.last(b"rename x big\n")
        assert (code(refusal), fields(refusal)["id"]) == ("exists", file_id)
        assert code(wire.last(b"rename x big replace=yes\n")) == "OK"
        assert fields(wire.last(b"list\n"))["files"] == "1"
    assert len(emptied.packs()) == 1


def test_what_is_kept_survives_a_compaction_and_grows_old(daemon: Daemon) -> None:
    content = cut_off(daemon)
    row = kept(daemon)
    registry = Registry()
    store = daemon.store / "journal.jsonl"
    daemon.stop()
    opened = Journal.open(store, registry.replay, sync=False)
    twin = Registry()
    for record in registry.snapshot():
        twin.apply(decode(encode(record)))
    (file,) = twin.interrupted()
    assert twin.source(file.id) == registry.source(file.id) is not None
    assert twin.stored_runs(file.id) == registry.stored_runs(file.id)
    week = 7 * 24 * 3600 * 10**9
    assert resume.is_worth_keeping(twin, file, file.created + week - 1)
    assert not resume.is_worth_keeping(twin, file, file.created + week)
    opened.close()
    daemon.start()
    assert fields(daemon.ask(BIG_PUT)[-1])["resumed"] == row["size"]
    assert is_whole(daemon, content)


def test_a_file_of_one_run_has_nothing_to_go_on_from(daemon: Daemon) -> None:
    (daemon.root / "small").write_bytes(CONTENT[:RUN])
    assert fields(daemon.ask(b"put small resume=yes\n")[-1])["resumed"] == "0"
    assert journal(daemon, "put") == []


@pytest.mark.promise("whole")
def test_a_source_that_changes_under_a_put_leaves_nothing(careful: Daemon) -> None:
    daemon = careful
    wire, _ = held_up(daemon)
    os.truncate(daemon.root / "big", BIG)
    for worker in daemon.workers():
        worker.resume()
    assert code(wire.line()) == "changed"
    assert daemon.packs() == daemon.staged() == []
    assert daemon.ask(b"list\n") == [b"OK list files=0 size=0 stored=0"]


# --- uploads ------------------------------------------------------------------------------------

UPLOAD = b"put - name=up size=chunked resume=v1\n"


def frames(content: bytes) -> bytes:
    """Content as frames, and their end."""
    pieces = [content[at : at + 300_000] for at in range(0, len(content), 300_000)]
    return b"".join(b"DATA %d\n" % len(piece) + piece for piece in pieces)


def begun(wire: Wire, request: bytes = UPLOAD) -> int:
    """Begin an upload; where it is to begin."""
    line = wire_line(wire, request)
    assert line.startswith(b"RESUME "), line
    return int(fields(line)["offset"])


def wire_line(wire: Wire, request: bytes) -> bytes:
    wire.send(request)
    return wire.line()


def broken_off(daemon: Daemon, count: int) -> None:
    """Break an upload off behind so many bytes."""
    wire = daemon.connect()
    assert begun(wire) == 0
    wire.send(frames(CONTENT[:count]))
    wire.half_close()
    assert code(wire.line()) == "usage"
    wire.close()


def test_an_upload_goes_on_behind_the_last_full_part(emptied: Daemon) -> None:
    broken_off(emptied, RUN + 3 * PART + 5)
    before = inodes(emptied)
    with emptied.connect() as wire:
        offset = begun(wire)
        assert offset == RUN + 3 * PART
        wire.send(frames(CONTENT[offset:]) + b"DATA 0\n")
        final = wire.line()
    assert code(final) == "OK" and fields(final)["resumed"] == str(offset) and fields(final)["size"] == str(SIZE)
    assert before < inodes(emptied)
    assert is_whole(emptied, CONTENT, b"up")


@pytest.mark.parametrize("count", [0, 5, PART - 1])
def test_an_upload_without_a_full_part_leaves_nothing(emptied: Daemon, count: int) -> None:
    broken_off(emptied, count)
    assert emptied.ask(b"list\n") == [b"OK list files=0 size=0 stored=0"]
    assert emptied.packs() == emptied.staged() == []


def test_an_upload_whose_client_vanishes_goes_on_tagged(emptied: Daemon) -> None:
    wire = emptied.connect()
    begun(wire)
    wire.send(frames(CONTENT[: 2 * RUN]))
    emptied.wait_until_listed(1)
    wire.reset()
    emptied.wait_until("requests", "1")
    with emptied.connect() as wire:
        wire.send(b"@t " + UPLOAD)
        line = wire.line()
        assert line.startswith(b"@t RESUME offset=")
        offset = int(fields(line)["offset"])
        assert offset % PART == 0
        for at in range(offset, SIZE, PART):
            piece = CONTENT[at : at + PART]
            wire.send(b"@t DATA %d\n" % len(piece) + piece)
        wire.send(b"@t DATA 0\n")
        assert fields(wire.line())["resumed"] == str(offset)
    assert is_whole(emptied, CONTENT, b"up")


def test_an_upload_goes_on_after_the_daemon_was_killed_and_a_gap_is_sent_again(careful: Daemon) -> None:
    daemon = careful
    daemon.start()
    content = written(daemon)
    wire = daemon.connect()
    begun(wire)
    for at in range(0, BIG, 1 << 20):
        wire.send(b"DATA %d\n" % (1 << 20) + content[at : at + (1 << 20)])
    wait_for(lambda: len(journal(daemon, "parts")) >= CHECKPOINT_RUNS)
    daemon.kill()
    daemon.start()
    assert int(kept(daemon)["size"]) >= CHECKPOINT
    third = daemon.packs()[2]
    seq = packs.read_header(third.read_bytes())[0].seq
    third.unlink()
    with daemon.connect() as wire:
        assert begun(wire) == seq * PART
        for at in range(seq * PART, BIG, 1 << 20):
            wire.send(b"DATA %d\n" % (1 << 20) + content[at : at + (1 << 20)])
        wire.send(b"DATA 0\n")
        assert fields(wire.line())["resumed"] == str(seq * PART)
    assert is_whole(daemon, content, b"up")


@pytest.mark.promise("checked")
def test_an_upload_goes_on_before_what_has_rotted(emptied: Daemon) -> None:
    broken_off(emptied, 2 * RUN + PART)
    pack = emptied.packs()[1]
    data = bytearray(pack.read_bytes())
    data[-7] ^= 1
    pack.write_bytes(data)
    with emptied.connect() as wire:
        assert begun(wire) == RUN
        wire.send(frames(CONTENT[RUN:]) + b"DATA 0\n")
        assert fields(wire.line())["resumed"] == str(RUN)
    assert is_whole(emptied, CONTENT, b"up")


def test_all_of_it_may_be_there(emptied: Daemon) -> None:
    broken_off(emptied, 2 * RUN)
    with emptied.connect() as wire:
        assert begun(wire) == 2 * RUN
        assert fields(wire_line(wire, b"DATA 0\n"))["size"] == str(2 * RUN)
    assert is_whole(emptied, CONTENT[: 2 * RUN], b"up")


def test_abort_drops_what_is_kept(emptied: Daemon) -> None:
    for sent in (b"", frames(CONTENT[:RUN])):
        broken_off(emptied, RUN)
        with emptied.connect() as wire:
            assert begun(wire) == RUN
            wire.send(sent + b"ABORT\n")
            assert code(wire.line()) == "cancelled"
        assert emptied.ask(b"list\n") == [b"OK list files=0 size=0 stored=0"]
        assert emptied.packs() == emptied.staged() == []


def test_another_key_begins_anew(emptied: Daemon) -> None:
    broken_off(emptied, RUN)
    with emptied.connect() as wire:
        assert begun(wire, UPLOAD.replace(b"v1", b"v2")) == 0
        assert fields(wire.last(frames(b"abc") + b"DATA 0\n"))["resumed"] == "0"
    assert is_whole(emptied, b"abc", b"up")


def test_another_part_size_begins_anew(daemon: Daemon) -> None:
    broken_off(daemon, RUN)
    daemon.config(part_size=2 * PART)
    daemon.restart()
    with daemon.connect() as wire:
        assert begun(wire) == 0
        wire.send(b"ABORT\n")
        assert code(wire.line()) == "cancelled"


@pytest.mark.parametrize("key", [b"yes", b"No-", b"YES", b'""', b'"a b"', b"x" * 65, b"a/b", b"\xc3\xa9"])
def test_keys(emptied: Daemon, key: bytes) -> None:
    with emptied.connect() as wire:
        wire.send(b"put - name=k size=chunked resume=%s\n" % key)
        line = wire.line()
        if key == b"No-":
            assert line == b"RESUME offset=0"
        else:
            assert code(line) == "usage"
        wire.send(b"ABORT\nping\n")
        assert b"OK ping" in (wire.line(), wire.line() if key == b"No-" else b"")


@pytest.mark.parametrize("size", [b"3", b"eof"])
def test_a_key_goes_with_frames_only(emptied: Daemon, size: bytes) -> None:
    with emptied.connect() as wire:
        wire.send(b"put - name=k resume=v1 size=%s\nabc" % size)
        wire.half_close()
        assert code(wire.line()) == "usage"
        assert wire.at_eof()
    assert code(emptied.ask(b"put big resume=v1\n")[-1]) == "usage", "a path needs no key"


def test_the_key_of_a_source_is_that_of_the_size_that_is_stored(tmp_path: Path) -> None:
    source = tmp_path / "growing"
    source.write_bytes(b"at first")
    with source.open("rb") as opened:
        before = os.fstat(opened.fileno())
        key = resume.key_of_path(opened.fileno(), before, PART)
        source.write_bytes(b"and then more")
        assert resume.key_of_path(opened.fileno(), before, PART) == key, (
            "what grew meanwhile is stored at its first size"
        )
        assert resume.key_of_path(opened.fileno(), os.fstat(opened.fileno()), PART) != key
