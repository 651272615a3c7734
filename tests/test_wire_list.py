"""list, stat and rename: what is stored, in rows."""

from __future__ import annotations

import hashlib
import time

import pytest

from tests.harness import PART, Daemon, etag, noise
from tests.wire import Wire, code, fields


def put(wire: Wire, name: bytes, content: bytes = b"abc") -> dict[str, str]:
    reply = wire.last(b"put - name=%s size=%d\n" % (name, len(content)) + content)
    assert code(reply) == "OK", reply
    return fields(reply)


def names(rows: list[bytes]) -> list[str]:
    return [fields(row)["name"] for row in rows[:-1]]


@pytest.fixture
def fresh(daemon: Daemon) -> Wire:
    """A connection to an empty daemon of its own."""
    return daemon.connect()


def test_an_empty_store_lists_nothing(fresh: Wire) -> None:
    assert fresh.ask(b"list\n") == [b"OK list files=0 size=0 stored=0"]


def test_a_row_says_all_about_a_file(fresh: Wire) -> None:
    before = int(time.time())
    stored = put(fresh, b"a", noise(PART + 1))
    row, final = fresh.ask(b"list\n")
    told = fields(row)
    created = int(told.pop("created"))
    assert row.startswith(b"FILE id=") and before <= created <= time.time()
    assert told == {
        "id": stored["id"],
        "status": "ready",
        "size": str(PART + 1),
        "stored": stored["stored"],
        "parts": "2",
        "name": "a",
    }
    assert final == b"OK list files=1 size=%d stored=%s" % (PART + 1, stored["stored"].encode())


def test_rows_come_by_id(fresh: Wire) -> None:
    for name in (b"c", b"a", b"b"):
        put(fresh, name)
    rows = fresh.ask(b"list\n")
    assert names(rows) == ["c", "a", "b"]
    ids = [int(fields(row)["id"]) for row in rows[:-1]]
    assert ids == sorted(ids) and len(set(ids)) == 3
    assert rows[-1].startswith(b"OK list files=3 size=9 ")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (b"*", ["a.tar", "b.tar", "dir/c.tar", "[x]", "new\nline", "A.TAR"]),
        (b"*.tar", ["a.tar", "b.tar", "dir/c.tar"]),
        (b"?.tar", ["a.tar", "b.tar"]),
        (b"[ab].tar", ["a.tar", "b.tar"]),
        (b"[!a].tar", ["b.tar"]),
        (b"a.tar", ["a.tar"]),
        (b"dir/*", ["dir/c.tar"]),
        (b"[[]x]", ["[x]"]),
        (rb'"new\nline"', ["new\nline"]),
        (b'"new*line"', ["new\nline"]),
        (b"a", []),
        (b'""', []),
        (b"[", []),
        (b"*.TAR", ["A.TAR"]),
        (b"a.tar\xff", []),
    ],
)
def test_patterns_are_globs_over_names(shared_daemon: Daemon, pattern: bytes, expected: list[str]) -> None:
    with shared_daemon.connect() as wire:
        if not wire.last(b"list\n").startswith(b"OK list files=6 "):
            for name in (b"a.tar", b"b.tar", b"dir/c.tar", b'"[x]"', rb'"new\nline"', b"A.TAR"):
                put(wire, name)
        rows = wire.ask(b"list " + pattern + b"\n")
        assert names(rows) == expected
        assert fields(rows[-1])["files"] == str(len(expected))


def test_a_pattern_that_would_take_for_ever_does_not(emptied: Daemon) -> None:
    with emptied.connect() as wire, emptied.connect() as other:
        put(wire, b"a" * 1000)
        wire.send(b"list " + b"*a" * 40 + b"*b\n")
        assert other.ask(b"ping\n") == [b"OK ping"]
        assert wire.reply()[-1].startswith(b"OK list files=0 ")


def test_a_long_list_is_complete(emptied: Daemon) -> None:
    with emptied.connect() as wire:
        wire.send(b"".join(b"@%d put - name=f%d size=2\nab" % (at, at) for at in range(1000)))
        assert {code(wire.line()) for _ in range(1000)} == {"OK"}
        rows = wire.ask(b"list\n")
    assert sorted(names(rows)) == sorted(f"f{at}" for at in range(1000))
    assert rows[-1].startswith(b"OK list files=1000 size=2000 ")


def test_a_file_being_stored_is_listed_as_such_or_not_at_all(emptied: Daemon) -> None:
    with emptied.connect() as wire:
        wire.send(b"put - name=slow size=chunked\nDATA 3\nabc")
        emptied.wait_until("requests", "2")
        rows = emptied.ask(b"list\n")
        assert [fields(row)["status"] for row in rows[:-1]] in ([], ["storing"])
        for request in (b"get slow -\n", b"get slow x\n", b"delete slow\n", b"rename slow x\n", b"verify slow\n"):
            assert code(emptied.ask(request)[-1]) in ("not-ready", "not-found"), request
        wire.send(b"DATA 0\n")
        assert code(wire.line()) == "OK"


# --- stat ---------------------------------------------------------------------------------------


def test_stat_shows_the_row_and_the_parts(fresh: Wire) -> None:
    content = noise(2 * PART) + bytes(PART) + b"end"
    stored = put(fresh, b"a", content)
    row, final = fresh.ask(b"stat a\n")
    assert row == fresh.ask(b"list\n")[0]
    assert final.startswith(b"OK stat id=" + stored["id"].encode()) and code(final) == "OK"
    row_again, *parts, final = fresh.ask(b"stat a parts=yes\n")
    assert row_again == row and len(parts) == 4
    ids = set()
    for seq, line in enumerate(parts):
        told = fields(line)
        piece = content[seq * PART : (seq + 1) * PART]
        assert line.startswith(b"PART id=")
        assert (told["seq"], told["offset"], told["size"]) == (str(seq), str(seq * PART), str(len(piece)))
        assert told["md5"] == hashlib.md5(piece).hexdigest()
        assert 0 < int(told["stored"]) <= len(piece) and told["codec"] in ("none", "zstd")
        ids.add(told["id"])
    assert len(ids) == 4
    assert sum(int(fields(line)["stored"]) for line in parts) == int(stored["stored"])


def test_stat_of_an_empty_file_has_no_parts(fresh: Wire) -> None:
    assert put(fresh, b"void", b"")["etag"] == etag(b"")
    row, final = fresh.ask(b"stat void parts=yes\n")
    assert (fields(row)["size"], fields(row)["parts"], code(final)) == ("0", "0", "OK")


def test_stat_with_a_bad_option_shows_no_row(fresh: Wire) -> None:
    put(fresh, b"a")
    (reply,) = fresh.ask(b"stat a parts=maybe\n")
    assert code(reply) == "usage"


# --- rename -------------------------------------------------------------------------------------


def test_rename_moves_the_name_and_nothing_else(fresh: Wire) -> None:
    before = fields(fresh.ask(b"list\n")[0]) if put(fresh, b"a") else {}
    final = fresh.last(b'rename a "b c"\n')
    assert (fields(final)["id"], fields(final)["name"]) == (before["id"], "b c")
    assert code(fresh.last(b"stat a\n")) == "not-found"
    assert fields(fresh.ask(b'stat "b c"\n')[0]) == before | {"name": "b c"}
    assert code(fresh.last(b"rename %s a\n" % before["id"].encode())) == "OK", "by id too"


def test_rename_to_a_taken_name(fresh: Wire) -> None:
    first, second = put(fresh, b"a", b"first"), put(fresh, b"b", b"second")
    assert code(fresh.last(b"rename a b\n")) == "exists"
    assert code(fresh.last(b"rename a b replace=yes\n")) == "OK"
    fresh.send(b"get b -\n")
    assert fresh.frames()[0] == b"first"
    assert code(fresh.last(b"stat %s\n" % second["id"].encode())) in ("not-found", "OK")
    assert fields(fresh.ask(b"stat b\n")[0])["id"] == first["id"]


def test_rename_to_its_own_name(fresh: Wire) -> None:
    put(fresh, b"a")
    assert code(fresh.last(b"rename a a\n")) == "OK"
    assert code(fresh.last(b"rename a a replace=yes\n")) == "OK"
    assert fresh.last(b"list\n").startswith(b"OK list files=1 ")


@pytest.mark.parametrize("name", [b'""', b"n" * 1025, rb'"\x00"'])
def test_rename_refuses_what_is_no_name(fresh: Wire, name: bytes) -> None:
    put(fresh, b"a")
    assert code(fresh.last(b"rename a %s\n" % name)) == "usage"
    assert code(fresh.last(b"stat a\n")) == "OK"


def test_rename_survives_a_crash(emptied: Daemon) -> None:
    with emptied.connect() as wire:
        put(wire, b"a")
        assert code(wire.last(b"rename a b\n")) == "OK"
    emptied.kill()
    emptied.start()
    assert names(emptied.ask(b"list\n")) == ["b"]
