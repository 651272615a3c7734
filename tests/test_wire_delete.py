"""delete: for good, all or none; what is freed; beside others."""

from __future__ import annotations

import pytest

from tests.harness import PART, Daemon, noise
from tests.wire import Wire, code, fields


def put(wire: Wire, name: bytes, content: bytes = b"abc") -> int:
    reply = wire.last(b"put - name=%s size=%d\n" % (name, len(content)) + content)
    assert code(reply) == "OK", reply
    return int(fields(reply)["id"])


def test_delete_frees_the_packs(emptied: Daemon) -> None:
    with emptied.connect() as wire:
        first, second = put(wire, b"a", noise(20 * PART)), put(wire, b"b", noise(PART))
        on_disk = sum(pack.stat().st_size for pack in emptied.packs())
        rows = wire.ask(b"delete a %d\n" % second)
        assert [row[:11] for row in rows[:-1]] == [b"DELETED id="] * 2
        told = [fields(row) for row in rows[:-1]]
        assert [(row["id"], row["name"]) for row in told] == [(str(first), "a"), (str(second), "b")]
        freed = [int(row["freed"]) for row in told]
        assert rows[-1] == b"OK delete files=2 parts=21 freed=%d" % sum(freed)
        assert sum(freed) == on_disk and emptied.packs() == []
        assert wire.ask(b"list\n") == [b"OK list files=0 size=0 stored=0"]


def test_deleting_an_empty_file(emptied: Daemon) -> None:
    with emptied.connect() as wire:
        put(wire, b"void", b"")
        assert fields(wire.last(b"delete void\n"))["parts"] == "0"
        assert wire.ask(b"list\n") == [b"OK list files=0 size=0 stored=0"]


def test_deleting_twice(emptied: Daemon) -> None:
    with emptied.connect() as wire:
        file_id = put(wire, b"a")
        assert code(wire.last(b"delete a\n")) == "OK"
        assert code(wire.last(b"delete a\n")) == "not-found"
        assert code(wire.last(b"delete %d\n" % file_id)) == "not-found"


@pytest.mark.parametrize(
    "request_", [b"delete a nobody b\n", b"delete nobody a b\n", b"delete a 999 b\n", b'delete a "" b\n']
)
def test_one_unknown_name_and_nothing_is_deleted(emptied: Daemon, request_: bytes) -> None:
    with emptied.connect() as wire:
        put(wire, b"a")
        put(wire, b"b")
        assert [code(line) for line in wire.ask(request_)] in (["not-found"], ["usage"])
        assert wire.last(b"list\n").startswith(b"OK list files=2 ")
        assert len(emptied.packs()) == 2


def test_a_file_named_twice_is_deleted_once(emptied: Daemon) -> None:
    with emptied.connect() as wire:
        file_id = put(wire, b"a")
        rows = wire.ask(b"delete a a %d\n" % file_id)
        assert len(rows) == 2 and rows[-1].startswith(b"OK delete files=1 ")


def test_of_many_deletes_one_has_it(emptied: Daemon) -> None:
    with emptied.connect() as wire:
        put(wire, b"a")
    wires = [emptied.connect() for _ in range(10)]
    for wire in wires:
        wire.send(b"delete a\n")
    codes = sorted(code(wire.reply()[-1]) for wire in wires)
    assert codes[0] == "OK" and set(codes[1:]) <= {"not-found", "not-ready"} and codes.count("OK") == 1
    for wire in wires:
        wire.close()


def test_the_name_is_free_at_once_and_the_id_is_not(emptied: Daemon) -> None:
    with emptied.connect() as wire:
        first = put(wire, b"a", b"old")
        wire.ask(b"delete a\n")
        second = put(wire, b"a", b"new")
        assert second > first
        wire.send(b"get a -\n")
        assert wire.frames()[0] == b"new"


def test_a_deleted_file_stays_deleted_after_a_crash(emptied: Daemon) -> None:
    with emptied.connect() as wire:
        first = put(wire, b"a", noise(3 * PART))
        put(wire, b"kept")
        wire.ask(b"delete a\n")
    emptied.kill()
    emptied.start()
    with emptied.connect() as wire:
        rows = wire.ask(b"list\n")
        assert [fields(row)["name"] for row in rows[:-1]] == ["kept"]
        assert code(wire.last(b"stat %d\n" % first)) == "not-found"
        assert len(emptied.packs()) == 1


def test_files_stored_together_can_be_deleted_apart(emptied: Daemon) -> None:
    """However small files share packs, deleting some leaves the others whole."""
    count = 60
    with emptied.connect() as wire:
        wire.send(b"".join(b"@%d put - name=f%d size=3\n%03d" % (at, at, at) for at in range(count)))
        assert {code(wire.line()) for _ in range(count)} == {"OK"}
        wire.ask(b"delete " + b" ".join(b"f%d" % at for at in range(0, count, 2)) + b"\n")
        assert wire.last(b"verify\n").startswith(b"OK verify files=%d parts=%d " % (count // 2, count // 2))
        for at in range(1, count, 2):
            wire.send(b"get f%d -\n" % at)
            assert wire.frames()[0] == b"%03d" % at
        wire.ask(b"delete " + b" ".join(b"f%d" % at for at in range(1, count, 2)) + b"\n")
    assert emptied.packs() == []


def test_put_get_and_delete_of_one_name_race_and_nothing_is_torn(emptied: Daemon) -> None:
    versions = [noise(2 * PART, seed) for seed in range(4)]
    wires = [emptied.connect() for _ in range(4)]
    for turn in range(15):
        for at, wire in enumerate(wires):
            wire.send(b"put - name=x replace=yes size=%d\n" % (2 * PART) + versions[at])
            wire.send(b"get x -\n" + (b"delete x\n" if at == turn % 4 else b""))
        for at, wire in enumerate(wires):
            assert code(wire.reply()[-1]) in ("OK", "exists")
            content, final = wire.frames()
            assert content in versions if code(final) == "OK" else code(final) in ("not-found", "not-ready")
            if at == turn % 4:
                assert code(wire.reply()[-1]) in ("OK", "not-found", "not-ready")
    # What was replaced goes in the background.
    emptied.wait_until_listed(1 if code(emptied.ask(b"stat x\n")[-1]) == "OK" else 0)
    for wire in wires:
        wire.close()


def test_a_client_that_leaves_during_its_delete_changes_nothing_for_others(daemon: Daemon) -> None:
    names = [f"file{number}" for number in range(30)]
    with daemon.connect() as wire:
        for name in names:
            put(wire, name.encode(), b"content")
    for name in names:
        with daemon.connect() as other:
            leaving = daemon.connect()
            request = f"delete {name}\n".encode()
            leaving.send(request)
            other.send(request)
            leaving.reset()
            assert code(other.reply()[-1]) in ("OK", "not-ready", "not-found")
    for name in names:
        daemon.ask(f"delete {name}\n".encode())
    daemon.wait_until_listed(0)
    daemon.kill()
    daemon.start()  # the journal says nothing twice
    assert daemon.packs() == []
