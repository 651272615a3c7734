"""put: from a path and over the connection, in all three framings; refused, cut short, given up."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import PART, Daemon, etag, noise
from tests.wire import Wire, code, fields

SIZES = [0, 1, PART - 1, PART, PART + 1, 16 * PART - 1, 16 * PART, 16 * PART + 1, 40 * PART + 7]


def by_size(name: str, content: bytes) -> bytes:
    return b"put - name=%s size=%d\n" % (name.encode(), len(content)) + content


def by_frames(name: str, content: bytes, frame: int = 100_001) -> bytes:
    frames = [content[at : at + frame] for at in range(0, len(content), frame)]
    framed = b"".join(b"DATA %d\n" % len(piece) + piece for piece in frames)
    return b"put - name=%s size=chunked\n" % name.encode() + framed + b"DATA 0\n"


def fetched(daemon: Daemon, name: str) -> bytes:
    with daemon.connect() as wire:
        wire.send(b"get %s -\n" % name.encode())
        content, final = wire.frames()
    assert code(final) == "OK", final
    return content


def assert_nothing_stored(daemon: Daemon, but: int = 0) -> None:
    """No file, no pack, no memory is left of what was given up."""
    daemon.wait_until("memory_used", "0")
    daemon.wait_until("requests", "1")
    daemon.wait_until_listed(but)
    daemon.wait_until_packs(but)
    assert daemon.staged() == []


# --- all framings, all sizes --------------------------------------------------------------------


@pytest.mark.promise("whole")
@pytest.mark.parametrize("framing", ["size", "chunked", "eof", "path"])
@pytest.mark.parametrize("size", SIZES)
def test_content_comes_back_byte_by_byte(shared_daemon: Daemon, framing: str, size: int) -> None:
    name, content = f"{framing}-{size}", noise(size, seed=size)
    with shared_daemon.connect() as wire:
        if framing == "size":
            wire.send(by_size(name, content))
        elif framing == "chunked":
            wire.send(by_frames(name, content))
        elif framing == "eof":
            wire.send(b"put - name=%s size=eof\n" % name.encode() + content)
            wire.half_close()
        else:
            (shared_daemon.root / name).write_bytes(content)
            wire.send(b"put %s\n" % name.encode())
        stored = fields(wire.reply()[-1])
    assert stored["name"] == name and int(stored["id"]) > 0
    assert (int(stored["size"]), int(stored["parts"])) == (size, -(-size // PART))
    assert stored["etag"] == etag(content)
    assert fetched(shared_daemon, name) == content


def test_auto_stores_content_that_does_not_shrink_raw_and_notices_when_it_changes(idle_daemon: Daemon) -> None:
    idle_daemon.config(codec="auto", processes=1)
    idle_daemon.start()
    assert idle_daemon.stats().items() >= {"codec": "auto", "level": "1", "bottleneck": "unknown"}.items()
    content = noise(128 * PART) + bytes(128 * PART)
    (idle_daemon.root / "x").write_bytes(content)
    stored = fields(idle_daemon.ask(b"put x\n")[-1])
    assert stored["etag"] == etag(content)
    assert fetched(idle_daemon, "x") == content
    codecs = [fields(row)["codec"] for row in idle_daemon.ask(b"stat x parts=yes\n")[1:-1]]
    assert codecs[:128] == ["none"] * 128
    # One part in 16 is a sample; what was on its way when the first one shrank is still raw: a window of runs.
    assert codecs[128:144] == ["zstd"] + 15 * ["none"]
    assert set(codecs[192:]) == {"zstd"}


@pytest.mark.parametrize("codec", ["auto", "none", "zlib", "zstd"])
def test_every_codec_gives_the_same_content_back(idle_daemon: Daemon, codec: str) -> None:
    idle_daemon.config(codec=codec)
    idle_daemon.start()
    content = noise(PART) + bytes(3 * PART) + b"text " * 20_000
    stored = fields(idle_daemon.ask(by_size("x", content))[-1])
    assert stored["etag"] == etag(content)
    assert (int(stored["stored"]) < len(content)) == (codec != "none")
    assert fetched(idle_daemon, "x") == content
    codecs = {fields(row)["codec"] for row in idle_daemon.ask(b"stat x parts=yes\n")[1:-1]}
    coded = {"auto": {"zstd"}, "none": set()}.get(codec, {codec})
    assert codecs == {"none"} | coded, "what does not shrink is stored as it is"


def test_content_may_look_like_requests(wire: Wire) -> None:
    wire.ask(b"put - name=spared size=0\n")
    content = b"delete spared\nABORT\nDATA 0\nquit\n"
    assert code(wire.last(by_size("a1", content))) == "OK"
    assert code(wire.last(by_frames("a2", content, frame=5))) == "OK"
    wire.send(b"get a2 -\n")
    assert wire.frames()[0] == content
    assert code(wire.last(b"stat spared\n")) == "OK"


@pytest.mark.parametrize("frame", [1, 1048576])
def test_frames_may_be_small_and_large(wire: Wire, frame: int) -> None:
    content = noise(min(3000 * frame, 3 * 1048576))
    stored = wire.last(by_frames(f"frames{frame}", content, frame))
    assert fields(stored)["etag"] == etag(content)


def test_frames_with_crlf(wire: Wire) -> None:
    wire.send(b"put - name=crlf size=chunked\r\nDATA 2\r\n\r\nDATA 1\r\nxDATA 0\r\n")
    assert wire.raw_line().startswith(b"OK put ")
    wire.send(b"get crlf -\n")
    assert wire.frames()[0] == b"\r\nx"


def test_announced_content_stops_where_it_was_announced(wire: Wire) -> None:
    wire.send(b"put - name=exact size=3\nabcping\n")
    assert code(wire.reply()[-1]) == "OK"
    assert wire.line() == b"OK ping"


def test_sizes_may_be_upper_case_and_tagged(wire: Wire) -> None:
    wire.send(b"@t PUT - NAME=upper SIZE=CHUNKED\n@t data 3\nabc@t data 0\n")
    assert wire.line().startswith(b"@t OK put ")


@pytest.mark.promise("memory")
def test_more_than_the_memory_goes_through(emptied: Daemon) -> None:
    size = 2 * int(emptied.stats()["memory_limit"])
    content = noise(1 << 20) * (size >> 20)
    assert fields(emptied.ask(by_size("big", content))[-1])["etag"] == etag(content)
    stats = emptied.stats()
    assert int(stats["memory_peak"]) <= int(stats["memory_limit"]) and stats["memory_used"] == "0"
    with emptied.connect() as wire:
        wire.send(b"get big -\n")
        assert wire.frames()[0] == content


# --- names --------------------------------------------------------------------------------------

NAMES: list[tuple[bytes, bytes]] = [
    (b"plain", b"plain"),
    (b'"with space"', b'"with space"'),
    (rb'"new\nline\r\t"', rb'"new\nline\r\t"'),
    (rb'"qu\"ote\\"', rb'"qu\"ote\\"'),
    (b"\xff\xfe", rb'"\xff\xfe"'),
    (rb'"\xff"', rb'"\xff"'),
    (rb'"\x1b[2J"', rb'"\x1b[2J"'),
    ("größe-😀".encode(), "größe-😀".encode()),
    ("\u202egnp".encode(), rb'"\xe2\x80\xaegnp"'),
    (b'"123"', b"123"),
    (b'"-"', b"-"),
    (b"..", b".."),
    (b"-rf", b"-rf"),
    (b"a/b/../c", b"a/b/../c"),
    (b"@x", b"@x"),
    (b"#x", b"#x"),
    (b"n" * 1024, b"n" * 1024),
    ("e\u0301".encode(), "e\u0301".encode()),
    ("é".encode(), "é".encode()),
]


@pytest.mark.parametrize(("given", "shown"), NAMES, ids=lambda value: ascii(value)[:30])
def test_names_are_any_bytes_and_come_back_quoted(shared_daemon: Daemon, given: bytes, shown: bytes) -> None:
    with shared_daemon.connect() as wire:
        stored = wire.last(b"put - name=%s size=3\nabc" % given)
        assert stored.startswith(b"OK put ") and stored.endswith(b" name=" + shown)
        row, final = wire.ask(b"stat %s\n" % (shown if shown.startswith(b'"') else b'"%s"' % shown))
        assert row.endswith(b" name=" + shown) and code(final) == "OK"
        assert sum(line.endswith(b" name=" + shown) for line in wire.ask(b"list\n")) == 1


@pytest.mark.promise("answered")
@pytest.mark.parametrize("name", [b"", b'""', b"n" * 1025, rb'"a\x00b"'])
def test_names_out_of_bounds_are_refused_and_the_content_thrown_away(wire: Wire, name: bytes) -> None:
    wire.send(b"put - name=%s size=5\nquit\nping\n" % name)
    assert code(wire.line()) == "usage"
    assert wire.line() == b"OK ping"


def test_a_name_cannot_forge_log_lines(daemon: Daemon) -> None:
    daemon.ask(b'put - name="x\\nERROR fake" size=1\na')
    daemon.ask(b'get "x\\nERROR fake" /nowhere\n')
    daemon.stop()
    assert not any(line.startswith("ERROR fake") for line in daemon.log.splitlines())


# --- from a path --------------------------------------------------------------------------------


def test_a_path_gives_the_name_unless_there_is_one(emptied: Daemon) -> None:
    (emptied.root / "sub").mkdir()
    (emptied.root / "sub" / "a b").write_bytes(b"x")
    with emptied.connect() as wire:
        assert fields(wire.last(b'put "sub/a b"\n'))["name"] == "a b"
        assert fields(wire.last(b'put "sub/a b" name=other\n'))["name"] == "other"
        assert (
            fields(wire.last(b'put "%s" name=third\n' % os.fsencode(emptied.root / "sub" / "a b")))["name"] == "third"
        )


def test_a_path_may_be_any_bytes(emptied: Daemon) -> None:
    Path(os.fsdecode(os.fsencode(emptied.root) + b"/\xff\n")).write_bytes(b"x")
    assert emptied.ask(b'put "\\xff\\n"\n')[-1].endswith(rb' name="\xff\n"')


@pytest.mark.promise("answered")
@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("missing", "not-found"),
        ("missing/deeper", "not-found"),
        ("file/deeper", "not-found"),
        ("directory", "denied"),
        ("directory/", "denied"),
        (".", "denied"),
        ("fifo", "denied"),
        ("socket", "denied"),
        ("/dev/zero", "denied"),
        ("/dev/null", "denied"),
        ("/etc/passwd", "denied"),
        ("../config.yaml", "denied"),
        ("directory/../../config.yaml", "denied"),
        ("link-out", "denied"),
        ("link-dir/config.yaml", "denied"),
        ("../store/journal.jsonl", "denied"),
        ("link-store/journal.jsonl", "denied"),
        ("/proc/self/environ", "denied"),
        ("n" * 300, "io"),
        ("a/" * 3000, "io"),
    ],
    ids=lambda value: value[:30],
)
def test_sources_that_cannot_be_stored(odd_daemon: Daemon, source: str, word: str) -> None:
    (reply,) = odd_daemon.ask(b'put "%s" name=odd\n' % source.encode())
    assert code(reply) == word
    assert odd_daemon.ask(b"list\n") == [b"OK list files=0 size=0 stored=0"]


@pytest.fixture(scope="module")
def odd_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose root holds every kind of thing that is no file."""
    with Daemon(tmp_path_factory.mktemp("odd")) as daemon:
        root = daemon.root
        (root / "file").write_bytes(b"x")
        (root / "directory").mkdir()
        os.mkfifo(root / "fifo")
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(root / "socket"))
        (root / "link-out").symlink_to("/etc/passwd")
        (root / "link-dir").symlink_to(daemon.home)
        (root / "link-store").symlink_to(daemon.store)
        daemon.start()
        yield daemon


def test_a_symlink_that_stays_inside_is_followed(emptied: Daemon) -> None:
    (emptied.root / "real").write_bytes(b"content")
    (emptied.root / "link").symlink_to("real")
    assert fields(emptied.ask(b"put link\n")[-1])["name"] == "link"
    assert fetched(emptied, "link") == b"content"


def test_the_store_inside_a_root_is_out_of_bounds(idle_daemon: Daemon) -> None:
    idle_daemon.config(roots=["."])
    idle_daemon.start()
    assert code(idle_daemon.ask(b"put store/journal.jsonl\n")[-1]) == "denied"
    assert code(idle_daemon.ask(b"put config.yaml\n")[-1]) == "OK"


def test_an_unreadable_source_is_an_error(emptied: Daemon) -> None:
    secret = emptied.root / "secret"
    secret.write_bytes(b"x")
    secret.chmod(0)
    word = code(emptied.ask(b"put secret\n")[-1])
    assert word == ("OK" if os.geteuid() == 0 else "io")


def test_a_sparse_source_is_stored_in_full(emptied: Daemon) -> None:
    with (emptied.root / "sparse").open("wb") as file:
        file.truncate(100 * PART + 1)
    assert fields(emptied.ask(b"put sparse\n")[-1])["etag"] == etag(bytes(100 * PART + 1))


@pytest.mark.promise("whole")
@pytest.mark.parametrize("change", ["shrink", "rewrite", "touch"])
def test_a_source_that_changes_while_it_is_read_is_not_stored(daemon: Daemon, change: str) -> None:
    source = daemon.root / "source"
    source.write_bytes(noise(64 << 20))
    workers = daemon.workers()
    for worker in workers:
        worker.suspend()
    try:
        with daemon.connect() as wire:
            wire.send(b"put source\n")
            daemon.wait_until("requests", "2")
            daemon.wait_until("processes_busy", "2")
            with source.open("r+b") as file:
                if change == "shrink":
                    file.truncate(100 * PART)
                elif change == "rewrite":
                    file.seek(50 << 20)
                    file.write(b"other")
            if change == "touch":
                os.utime(source)
            for worker in workers:
                worker.resume()
            assert code(wire.reply()[-1]) == "changed"
    finally:
        for worker in workers:
            worker.resume()
    assert_nothing_stored(daemon)


@pytest.mark.promise("whole")
def test_a_source_that_grows_is_stored_as_it_was_or_not_at_all(emptied: Daemon) -> None:
    source = emptied.root / "log"
    source.write_bytes(noise(1000))
    with source.open("ab") as log:
        for at in range(50):
            log.write(b"x")
            log.flush()
            with emptied.connect() as wire:
                wire.send(b"put log name=log%d\n" % at)
                log.write(b"y")
                log.flush()
                reply = wire.reply()[-1]
            assert code(reply) in ("OK", "changed")
            if code(reply) == "OK":
                size = int(fields(reply)["size"])
                assert fetched(emptied, f"log{at}") == source.read_bytes()[:size]


# --- refused ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        b"name=taken size=%d",
        b"name=x bogus=1 size=%d",
        b"name=x replace=maybe size=%d",
        b"name=x progress=0 size=%d",
        b"name=x progress=soon size=%d",
        b"size=%d",
        b"name= size=%d",
        b"extra name=x size=%d",
        b"name=x name=y size=%d",
        b'size=%d name="open',
        b"name=a\0b size=%d",
    ],
)
def test_content_of_a_refused_put_is_thrown_away(wire: Wire, options: bytes) -> None:
    wire.send(b"put - name=taken size=0 replace=yes\n")
    wire.reply()
    content = b"quit\ndelete taken\n"
    wire.send(b"put - " + options % len(content) + b"\n" + content + b"ping\n")
    assert code(wire.line()) in ("usage", "exists")
    assert wire.line() == b"OK ping"
    wire.send(b"put - " + options.replace(b"%d", b"chunked") + b"\nDATA 5\nquit\nDATA 5\nquit\nDATA 0\nping\n")
    assert code(wire.line()) in ("usage", "exists")
    assert wire.line() == b"OK ping"
    wire.send(b"@t put - " + options.replace(b"%d", b"chunked") + b"\n@t DATA 5\nquit\n@t ABORT\nping\n")
    assert {wire.line()[:6], wire.line()[:6]} in ({b"@t ERR", b"OK pin"},)
    wire.send(b"put - " + options.replace(b"%d", b"eof") + b"\nquit\nping\n")
    wire.half_close()
    assert code(wire.line()) in ("usage", "exists")
    assert wire.at_eof()


def test_a_refused_upload_is_answered_before_its_content_comes(wire: Wire) -> None:
    wire.ask(b"put - name=held size=0\n")
    wire.send(b"put - name=held size=1000000\n")
    assert code(wire.line()) == "exists"
    wire.send(bytes(1_000_000) + b"ping\n")
    assert wire.line() == b"OK ping"


def test_a_taken_name_is_refused_and_replaced_on_demand(emptied: Daemon) -> None:
    with emptied.connect() as wire:
        first = fields(wire.last(by_size("a", b"old")))
        assert code(wire.last(by_size("a", b"new"))) == "exists"
        assert fetched(emptied, "a") == b"old"
        second = fields(wire.last(b"put - name=a replace=yes size=3\nnew"))
        assert int(second["id"]) > int(first["id"])
        assert fetched(emptied, "a") == b"new"
        old = wire.ask(b"stat %s\n" % first["id"].encode())
        assert code(old[-1]) == "not-found" or fields(old[0])["status"] == "deleting"
    emptied.wait_until_listed(1)
    emptied.wait_until_packs(1)


def test_a_taken_name_is_refused_from_a_path_too(emptied: Daemon) -> None:
    (emptied.root / "a").write_bytes(b"1")
    assert [code(emptied.ask(b"put a\n")[-1]) for _ in range(2)] == ["OK", "exists"]
    assert code(emptied.ask(b"put a replace=yes\n")[-1]) == "OK"


@pytest.mark.promise("whole")
def test_of_two_puts_of_one_name_one_is_stored(emptied: Daemon) -> None:
    with emptied.connect() as first, emptied.connect() as second:
        first.send(b"put - name=same size=3\na")
        emptied.wait_until("requests", "2")
        assert code(emptied.ask(b"get same -\n")[-1]) in ("not-ready", "not-found")
        second.send(by_size("same", b"other"))
        assert code(second.line()) == "exists"
        first.send(b"bc")
        assert code(first.line()) == "OK"
    assert fetched(emptied, "same") == b"abc"


def test_many_puts_of_one_name_store_one(emptied: Daemon) -> None:
    wires = [emptied.connect() for _ in range(20)]
    for at, wire in enumerate(wires):
        wire.send(by_size("race", b"%02d" % at))
    replies = [wire.line() for wire in wires]
    assert sorted(map(code, replies)) == ["OK"] + ["exists"] * 19
    winner = next(at for at, reply in enumerate(replies) if code(reply) == "OK")
    assert fetched(emptied, "race") == b"%02d" % winner
    for wire in wires:
        wire.close()


# --- cut short ----------------------------------------------------------------------------------

CUT: list[bytes] = [
    b"put - name=cut size=%d\n" % (40 * PART) + bytes(39 * PART),
    b"put - name=cut size=5\nabc",
    b"put - name=cut size=5\n",
    b"put - name=cut size=chunked\n",
    b"put - name=cut size=chunked\nDATA 5\nabc",
    b"put - name=cut size=chunked\nDATA 3\nabc",
    b"put - name=cut size=chunked\n" + (b"DATA 65536\n" + bytes(65536)) * 40,
    b"@t put - name=cut size=5\nabc",
    b"@t put - name=cut size=chunked\n@t DATA 3\nabc",
]


@pytest.mark.promise("whole")
@pytest.mark.parametrize("sent", CUT, ids=lambda sent: repr(sent[:50]))
def test_content_cut_short_gets_one_error_and_stores_nothing(emptied: Daemon, sent: bytes) -> None:
    with emptied.connect() as wire:
        wire.send(sent)
        wire.half_close()
        reply = wire.line()
        assert code(reply) in ("usage", "cancelled")
        assert wire.at_eof()
    assert_nothing_stored(emptied)


@pytest.mark.promise("whole")
@pytest.mark.parametrize(
    "sent", [*CUT, b"put - name=cut size=eof\nabc", b"put - name=cut size=eof\n" + bytes(40 * PART)]
)
def test_a_client_that_breaks_off_leaves_nothing(emptied: Daemon, sent: bytes) -> None:
    wire = emptied.connect()
    wire.send(sent)
    emptied.wait_until("requests", "2")
    wire.reset()
    emptied.wait_until("clients", "1")
    assert_nothing_stored(emptied)
    assert code(emptied.ask(by_size("cut", b"again"))[-1]) == "OK"


@pytest.mark.promise("whole")
@pytest.mark.parametrize("frames", [b"", b"DATA 3\nabc", (b"DATA 65536\n" + bytes(65536)) * 40])
def test_abort_gives_an_upload_up(emptied: Daemon, frames: bytes) -> None:
    with emptied.connect() as wire:
        wire.send(b"put - name=given size=chunked\n" + frames + b"ABORT\n")
        assert code(wire.line()) == "cancelled"
        assert wire.last(b"list\n") == b"OK list files=0 size=0 stored=0"
        assert_nothing_stored(emptied)
        assert code(wire.last(by_frames("given", b"again"))) == "OK"


def test_a_frame_over_the_limit_is_an_error(emptied: Daemon) -> None:
    with emptied.connect() as wire:
        wire.send(b"put - name=huge size=chunked\nDATA 1048577\n")
        assert code(wire.line()) in ("too-long", "usage")
    assert_nothing_stored(emptied)


@pytest.mark.promise("whole")
@pytest.mark.parametrize("line", [b"DATA", b"DATA x", b"DATA -1", b"DATA 1 2", b"DATA 1 a=b", b"nonsense"])
def test_a_broken_frame_header_does_not_store_half_a_file(emptied: Daemon, line: bytes) -> None:
    with emptied.connect() as wire:
        wire.send(b"put - name=broken size=chunked\nDATA 3\nabc" + line + b"\n")
        wire.half_close()
        assert "OK" not in [code(reply) for reply in wire.rest().splitlines()]
    assert_nothing_stored(emptied)


def test_stored_files_survive_what_is_given_up_beside_them(emptied: Daemon) -> None:
    emptied.ask(by_size("kept", b"abc"))
    with emptied.connect() as wire:
        wire.send(b"put - name=cut size=10\nabc")
        wire.half_close()
        wire.rest()
    assert_nothing_stored(emptied, but=1)
    emptied.restart()
    assert fetched(emptied, "kept") == b"abc"


# --- progress -----------------------------------------------------------------------------------


def test_progress_comes_when_asked_for(emptied: Daemon) -> None:
    with emptied.connect() as wire:
        wire.send(b"put - name=slow progress=1 size=%d\n" % (3 * PART) + bytes(PART))
        row = wire.line()
        assert row.startswith(b"PROGRESS put ")
        told = fields(row)
        assert set(told) >= {"bytes", "total", "parts", "rate", "eta"}
        assert told["total"] == str(3 * PART)
        wire.send(bytes(2 * PART))
        assert code(wire.reply()[-1]) == "OK"


def test_no_progress_comes_unasked(wire: Wire) -> None:
    content = noise(5 << 20)
    assert len(wire.ask(by_size("silent", content))) == 1


# --- a full disk --------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An own file system of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("needs root to mount a small file system")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.promise("full")
@pytest.mark.root
def test_a_full_store_refuses_and_leaves_nothing_behind(small_disk: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    content = noise(8 << 20)
    with Daemon(home, path=str(small_disk / "store")) as daemon:
        daemon.store = small_disk / "store"
        daemon.start()
        assert code(daemon.ask(by_size("kept", content[: PART * 4]))[-1]) == "OK"
        (daemon.root / "big").write_bytes(content)
        for request in (by_size("big", content), by_frames("big", content), b"put big\n"):
            assert code(daemon.ask(request)[-1]) == "no-space"
            assert_nothing_stored(daemon, but=1)
        assert fetched(daemon, "kept") == content[: PART * 4]
        assert code(daemon.ask(b"delete kept\n")[-1]) == "OK"
        assert code(daemon.ask(by_size("fits", content[: PART * 4]))[-1]) == "OK"


@pytest.mark.promise("full")
@pytest.mark.root
def test_deleting_works_when_not_a_byte_is_left(small_disk: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with Daemon(home, path=str(small_disk / "store")) as daemon:
        daemon.store = small_disk / "store"
        daemon.start()
        daemon.ask(by_size("a", noise(PART)))
        with (small_disk / "filler").open("wb", buffering=0) as filler, pytest.raises(OSError):
            while True:
                filler.write(bytes(4096))
        assert fields(daemon.ask(b"hello\n")[-1])["state"] == "full"
        assert code(daemon.ask(b"put - name=b size=%d\n" % PART + noise(PART))[-1]) == "no-space"
        assert code(daemon.ask(b"delete a\n")[-1]) == "OK"
        daemon.restart()
        assert daemon.ask(b"list\n")[-1].startswith(b"OK list files=0 ")
