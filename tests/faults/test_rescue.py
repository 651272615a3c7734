"""Stores that are broken on purpose, and what check, repair and rebuild make of them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pfsd import config, disk, journal, packs
from pfsd.registry import Registry, Status
from pfsd.rescue import check, rebuild, repair
from pfsd.rescue.report import Report
from pfsd.rescue.rewrite import digest
from tests.faults.conftest import Count, in_full
from tests.harness import PART, SERVER, Daemon, etag, noise
from tests.wire import code, fields

NAMES = [b"plain", b'"two words"', b'"caf\\xe9"', b'"new\\nline"', b"empty", b"big"]
CONTENT = {b"plain": noise(100, 1), b"empty": b"", b"big": noise(40 * PART + 17, 2), b'"two words"': noise(PART, 3)}
CONTENT |= {b'"caf\\xe9"': noise(3 * PART + 5, 4), b'"new\\nline"': noise(10, 5)}

#: What is known of a file: name, size, etag.
Files = dict[int, tuple[bytes, int, str]]


@dataclass
class Store:
    """A copy of the store, to be broken."""

    home: Path
    files: Files  # as they were
    gone: set[int]  # deleted or replaced

    @property
    def path(self) -> Path:
        return self.home / "store"

    @property
    def journal(self) -> Path:
        return self.path / "journal.jsonl"

    def packs(self) -> list[Path]:
        return sorted((self.path / "packs").rglob("*.pack"))

    def settings(self) -> config.Config:
        return config.load(self.home / "config.yaml", {})

    def check(self, data: bool = False) -> tuple[int, list[dict[str, object]]]:
        said = Said()
        return check.check(self.settings(), said.report, data), said.objects()

    def rebuild(self, dry_run: bool = False) -> tuple[int, list[dict[str, object]]]:
        said = Said()
        return rebuild.rebuild(self.settings(), said.report, dry_run), said.objects()

    def repair(self, data: bool = False) -> tuple[int, list[dict[str, object]]]:
        said = Said()
        return repair.repair(self.settings(), said.report, data), said.objects()

    def registry(self) -> Registry:
        registry = Registry()
        verdict = journal.examine(self.journal, registry.replay)
        assert verdict.state == "sound", verdict
        return registry

    def now(self) -> Files:
        return readable(self.registry())

    def tree(self) -> dict[str, tuple[int, bytes]]:
        """All that is in the store but its lock: times and content."""
        return {
            str(path.relative_to(self.path)): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
            for path in sorted(self.path.rglob("*"))
            if path.name != "lock"
        }


class Said:
    """What a command says, as JSON."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.report = Report(True, self.lines.append, lambda command: f"server.py {command}".strip())

    def objects(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.lines]


def readable(registry: Registry) -> Files:
    return {
        file.id: (file.name, file.size, registry.etag(file.id))
        for file in registry.files_after(0, 10**6)
        if file.status in (Status.READY, Status.DAMAGED)
    }


def command_to_type(said: list[dict[str, object]]) -> object:
    assert said[-1]["type"] == "next"
    return said[-1]["command"]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with all kinds of files, which its daemon was killed on."""
    home = tmp_path_factory.mktemp("original")
    with Daemon(home) as daemon:
        daemon.start()
        with daemon.connect() as wire:
            for name in NAMES:
                content = CONTENT[name]
                assert code(wire.ask(b"put - name=%b size=%d\n" % (name, len(content)) + content)[-1]) == "OK"
            batch = b"".join(b"@%d put - name=s%d size=50\n" % (at, at) + noise(50, 100 + at) for at in range(40))
            wire.send(batch)
            assert all(b" OK put" in wire.line() for _ in range(40))
            for small in (22, 28, 36):  # not of the first, which may have a pack of their own
                assert code(wire.ask(b"delete s%d\n" % small)[-1]) == "OK"
            assert code(wire.ask(b"rename plain renamed\n")[-1]) == "OK"
            assert code(wire.ask(b"put - name=s7 size=7 replace=yes\nreplace")[-1]) == "OK"
            assert code(wire.ask(b"put - name=late size=3\nabc")[-1]) == "OK"
        with daemon.connect() as wire:
            wire.send(b"put - name=cut size=chunked resume=key\n")
            for at in range(150):
                wire.send(b"DATA %d\n" % PART + noise(PART, at))
            wire.half_close()
            wire.rest()
        daemon.wait_until_listed(45)
        daemon.stop()
    store = Store(home, {}, set())
    registry = store.registry()
    store.files = readable(registry)
    store.gone = set(range(1, registry.next_file)) - set(store.files) - {file.id for file in registry.interrupted()}
    assert len(store.files) == 44 and len(store.gone) >= 4 and registry.interrupted()
    assert any(registry.live_bytes_of(number(path)) < path.stat().st_size for path in store.packs()), "no shared pack"
    return store


def number(pack: Path) -> int:
    return int(pack.stem, 16)


@pytest.fixture
def store(original: Store, in_memory: Path) -> Store:
    shutil.copytree(original.home, in_memory / "s", ignore=shutil.ignore_patterns("socket"))
    return Store(in_memory / "s", original.files, original.gone)


def packs_of(store: Store, file: int) -> list[Path]:
    wanted = set(store.registry().packs_of(file))
    return [path for path in store.packs() if number(path) in wanted]


def named(store: Store, name: bytes) -> int:
    return next(file for file, (found, _, _) in store.files.items() if found == name)


# --- what is whole ---


@pytest.mark.promise("rebuilt")
def test_a_sound_store_agrees_and_nothing_changes_a_byte(store: Store) -> None:
    before = store.tree()
    for result, said in (
        store.check(),
        store.check(data=True),
        store.rebuild(dry_run=True),
        store.rebuild(),
        store.repair(),
    ):
        assert result == 0 and not [one for one in said if one["type"] in ("file", "pack", "gap")], said
        assert command_to_type(said) == "server.py"
    assert store.tree() == before


@pytest.mark.promise("rebuilt")
def test_the_registries_are_what_a_rebuild_makes_of_the_packs(store: Store) -> None:
    """But for what packs cannot know: renames, and what was deleted from packs that others need."""
    store.journal.unlink()
    result, said = store.rebuild()
    assert result == 0 and command_to_type(said) == "server.py check --data"
    now = store.now()
    same = {file: facts for file, facts in store.files.items() if facts[0] != b"renamed"}
    assert {file: now[file] for file in same} == same
    plain = named(store, b"renamed")
    assert now[plain] == (b"plain", *store.files[plain][1:])
    back = now.keys() - store.files.keys()
    assert back <= store.gone
    assert store.check(data=True)[0] == 0
    registry = store.registry()
    assert registry.next_file > max(now) and registry.next_pack > max(map(number, store.packs()))


@pytest.mark.promise("rebuilt")
def test_a_daemon_serves_every_byte_after_the_journal_was_lost(store: Store) -> None:
    store.journal.unlink()
    with Daemon(store.home) as daemon:
        result, words = daemon.start_fails()
        assert result == 65 and "server.py rebuild" in words
        ran = run_server(store, "rebuild")
        assert ran.returncode == 0, ran.stderr
        daemon.start()
        for name in NAMES:
            with daemon.connect() as wire:
                wire.send(b"get %b -\n" % name)
                content, last = wire.frames()
                assert content == CONTENT[name] and code(last) == "OK"
                assert fields(wire.last(b"stat %b\n" % name))["etag"] == etag(CONTENT[name])
        assert code(daemon.ask(b"put - name=more size=1\nx")[-1]) == "OK"
        assert code(daemon.ask(b"verify\n")[-1]) == "OK"


def run_server(store: Store, *words: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, str(SERVER), *words, "--config", str(store.home / "config.yaml")]
    return subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.promise("alone")
def test_while_a_daemon_runs_the_commands_keep_out(store: Store) -> None:
    fd = disk.lock_exclusive(store.path / "lock")
    try:
        for command in ("check", "rebuild", "repair"):
            ran = run_server(store, command)
            assert (ran.returncode, ran.stdout) == (73, "") and ran.stderr.count("\n") == 1 and "`verify`" in ran.stderr
    finally:
        os.close(fd)
    shutil.rmtree(store.path)
    ran = run_server(store, "check")
    assert ran.returncode == 73 and "there is no store" in ran.stderr and not store.path.exists()


# --- a journal that is damaged ---


@pytest.mark.promise("rebuilt")
@pytest.mark.promise("torn")
def test_a_journal_with_any_line_flipped_or_cut_off_gives_every_file_back(store: Store, count: Count) -> None:
    whole = store.journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    starts = [sum(map(len, lines[:at])) for at in range(len(lines))]
    seed = int(os.environ.get("PFSD_TEST_SEED", "1"))
    chance = random.Random(seed)
    print("PFSD_TEST_SEED", seed)
    for _ in range(count(12, 400)):
        at = chance.randrange(len(lines))
        place = starts[at] + chance.randrange(len(lines[at]))
        cut = chance.random() < 0.25
        damaged = (
            whole[:place]
            if cut
            else whole[:place] + bytes([whole[place] ^ 1 << chance.randrange(8)]) + whole[place + 1 :]
        )
        store.journal.write_bytes(damaged)
        result, _ = store.rebuild()
        assert result == 0
        now = store.now()
        for file, (name, size, tag) in store.files.items():
            assert now[file][1:] == (size, tag), (place, cut, file)
            hurt = lines[at].find(b'"rename"') >= 0 or cut
            assert now[file][0] == name or hurt or b"~rebuilt" in now[file][0], (place, cut, now[file], name)
        if not cut:
            back = now.keys() - store.files.keys()
            assert len(back) <= 1, (place, back)
        for left in store.path.glob("journal.damaged-*"):
            left.unlink()


def test_what_a_readable_record_deleted_does_not_come_back(store: Store) -> None:
    lines = store.journal.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b'"ready"', b'"reedy"', 1).replace(b'"put"', b'"pat"', 1)
    store.journal.write_bytes(b"".join(lines))
    assert store.check()[0] == 65
    assert store.rebuild()[0] == 0
    assert store.now() == store.files
    assert [file.name for file in store.registry().interrupted()] == [b"cut"], "what can be resumed stays so"


@pytest.mark.promise("rebuilt")
def test_an_old_copy_of_the_journal_and_the_packs_make_all_that_was_stored_since(store: Store) -> None:
    """And newer files have their names, where the pack of the older one is gone with its record."""
    lines = store.journal.read_bytes().splitlines(keepends=True)
    s7 = next(at for at, line in enumerate(lines) if b'"name":"s7"' in line)
    store.journal.write_bytes(b"".join(lines[: s7 + 1]))
    result, said = store.check()
    assert result == 65 and command_to_type(said) == "server.py rebuild"
    assert [(one["first"], one["last"]) for one in said if one["type"] == "gap"] == [(s7 + 1, None)]
    assert store.rebuild()[0] == 0
    now = store.now()
    assert {file: facts[1:] for file, facts in now.items() if file in store.files} == {
        file: facts[1:] for file, facts in store.files.items()
    }
    taken = named(store, b"s7")
    assert now[taken][0] in (b"s7", b"s7~rebuilt-%d" % taken)


def test_what_else_lies_in_the_store_is_told(store: Store) -> None:
    (store.path / "packs" / "00000" / "no\npack").write_bytes(b"")
    (store.path / "journal.torn-1").write_bytes(b"")
    (store.path / "tmp" / "old").mkdir()
    (store.path / "tmp" / "old" / "1.0").write_bytes(b"")
    (store.path / "other").mkdir()
    result, said = store.check()
    told = {str(one["path"]) for one in said if one["type"] == "leftover"}
    assert result == 0 and told == {"packs/00000/no\npack", "journal.torn-1", "tmp/old", "other"}
    assert run_server(store, "check").stdout.count('"packs/00000/no\\npack"') == 1, "on one line, escaped"


@pytest.mark.promise("rebuilt")
def test_repair_mends_a_journal_whose_files_are_all_known(store: Store) -> None:
    lines = store.journal.read_bytes().splitlines(keepends=True)
    at = next(at for at, line in enumerate(lines) if b'"removed"' in line)
    lines[at] = lines[at].replace(b"removed", b"rem\0ved")
    store.journal.write_bytes(b"".join(lines))
    assert command_to_type(store.check()[1]) == "server.py repair"
    result, said = store.repair()
    assert result == 0 and [one["type"] for one in said if one["type"] == "gap"] == ["gap"]
    assert store.now() == store.files
    (kept,) = store.path.glob("journal.damaged-*")
    assert kept.read_bytes() == b"".join(lines)
    assert [file.name for file in store.registry().interrupted()] == [b"cut"], "what can be resumed stays so"


@pytest.mark.promise("rebuilt")
def test_repair_leaves_to_rebuild_what_only_packs_know(store: Store) -> None:
    lines = store.journal.read_bytes().splitlines(keepends=True)
    store.journal.write_bytes(b"".join(lines[:1] + lines[2:]))
    before = store.tree()
    result, said = store.repair()
    assert result == 65 and command_to_type(said) == "server.py rebuild"
    assert store.tree() == before


def test_a_record_that_was_torn_can_be_had_back_before_the_next_start(store: Store) -> None:
    """As a power cut leaves it: nobody was answered."""
    lines = store.journal.read_bytes().splitlines(keepends=True)
    late = named(store, b"late")
    at = next(at for at, line in enumerate(lines) if b'"name":"late"' in line)
    store.journal.write_bytes(b"".join(lines[:at]) + lines[at][:50])
    store.journal.with_name("journal.mark").unlink()
    result, said = store.check()
    assert result == 0 and command_to_type(said) == "server.py rebuild"
    assert [one["id"] for one in said if one.get("state") == "recoverable"] == [late]
    assert store.rebuild()[0] == 0 and store.now() == store.files


# --- packs that are damaged ---


@pytest.mark.promise("checked")
def test_damaged_packs_are_named_part_by_part_and_marked(store: Store) -> None:
    big, words = named(store, b"big"), named(store, b"two words")
    first, second, *_ = packs_of(store, big)
    first.unlink()
    os.truncate(second, second.stat().st_size - 10)
    (rotten,) = packs_of(store, words)
    flip(rotten, rotten.stat().st_size - 5)
    result, said = store.check()
    assert result == 65 and command_to_type(said) == "server.py repair"
    parts = bad_parts(said)
    assert parts == {big: [*range(16), 31]}
    result, said = store.check(data=True)
    assert bad_parts(said) == parts | {words: [0]}
    assert command_to_type(said) == "server.py repair --data"
    assert store.repair(data=True)[0] == 0
    registry = store.registry()
    assert registry.bad_parts(big) == (*range(16), 31) and registry.bad_parts(words) == (0,)
    result, said = store.check(data=True)
    assert result == 65 and command_to_type(said) == "server.py", "nothing is left to do, and yet all is not well"


def bad_parts(said: list[dict[str, object]]) -> dict[object, list[int]]:
    return {
        one["id"]: [part["seq"] for part in one["parts"]]
        for one in said
        if one.get("state") == "damaged" and "id" in one
    }  # type: ignore[attr-defined]


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.promise("rebuilt")
def test_what_is_not_complete_is_moved_aside_and_a_start_removes_nothing_of_it(store: Store) -> None:
    big = named(store, b"big")
    first, *rest = packs_of(store, big)
    first.unlink()
    store.journal.unlink()
    result, said = store.rebuild()
    assert result == 0
    assert [one["id"] for one in said if one.get("state") == "incomplete" and one["name"] == "big"] == [big]
    assert {path.name for path in (store.path / "lost").iterdir()} >= {path.name for path in rest}
    assert big not in store.now()
    with Daemon(store.home) as daemon:
        daemon.start()
        assert {path.name for path in (store.path / "lost").iterdir()} >= {path.name for path in rest}


@pytest.mark.promise("rebuilt")
def test_small_files_behind_a_damaged_header_come_back(store: Store) -> None:
    """The lengths in the damaged header lead to the next part; where these are gone, too, it is told."""
    shared = packs_of(store, named(store, b"s20"))[0]
    store.journal.unlink()
    flip(shared, 30)
    _, said = store.rebuild()
    inside = store.now()
    assert len(store.files.keys() - inside.keys()) <= 1
    assert not [one for one in said if "behind damage" in str(one.get("notes"))]


def test_what_looks_like_parts_inside_content_is_not_taken_for_files(store: Store) -> None:
    """A pack stored as a file: its parts are content, also where the header before them is damaged."""
    copy = packs_of(store, named(store, b"late"))[0].read_bytes()
    with Daemon(store.home, codec="none") as daemon:  # so that what looks like a part is there as it is
        daemon.start()
        for name, content in ((b"copy", copy), (b"next", b"n" * 9)):
            assert code(daemon.ask(b"put - name=%b size=%d\n" % (name, len(content)) + content)[-1]) == "OK"
        assert code(daemon.ask(b"delete late\n")[-1]) == "OK"
        daemon.stop()
    registry = store.registry()
    holder = registry.find(b"copy")
    assert holder is not None and registry.find(b"late") is None
    for damage in (None, 30, 62):  # nothing; the file id; the payload's length
        first = packs_of(store, holder.id)[0]
        store.journal.rename(store.path / "aside")
        if damage is not None:
            flip(first, damage)
        store.rebuild()
        assert {name for name, _, _ in store.now().values()}.isdisjoint({b"late"})
        for moved in (store.path / "lost").glob("*"):
            moved.rename(store.path / "packs" / "00000" / moved.name)
        if damage is not None:
            flip(first, damage)
        (store.path / "aside").rename(store.journal)


def test_packs_of_another_store_are_left_alone(store: Store) -> None:
    target = store.path / "packs" / "00000" / f"{999:016x}.pack"
    origin = packs.Origin(b"x" * 16, 5, b"p" * 8, 1, PART, 3, b"alien")
    header = packs.PartHeader(origin, 0, 3, 3, "none", hashlib.md5(b"abc").digest())
    target.write_bytes(packs.pack_header(header) + b"abc")
    result, said = store.check()
    assert result == 0 and [one["pack"] for one in said if one.get("state") == "foreign"] == [999]
    store.journal.unlink()
    store.rebuild()
    assert b"alien" not in {name for name, _, _ in store.now().values()}
    assert (store.path / "lost" / target.name).exists(), "a start would remove it"


def test_a_part_that_lies_in_two_packs_is_taken_where_it_is_sound(store: Store) -> None:
    late = named(store, b"late")
    (old,) = packs_of(store, late)
    new = old.with_name(f"{998:016x}.pack")
    shutil.copyfile(old, new)
    old.unlink()
    result, said = store.check()
    assert result == 65 and command_to_type(said) == "server.py rebuild"
    assert store.rebuild()[0] == 0
    assert store.now() == store.files and store.registry().packs_of(late) == [998]
    assert store.check(data=True)[0] == 0


def test_of_two_files_with_one_name_the_newest_keeps_it(store: Store) -> None:
    """A replaced file of a shared pack is complete: without a record of its end both come back."""
    store.journal.unlink()
    result, said = store.rebuild()
    now = store.now()
    newest = named(store, b"s7")
    assert result == 0 and now[newest][0] == b"s7"
    others = [name for file, (name, _, _) in now.items() if name.startswith(b"s7~rebuilt-")]
    notes = [one["notes"] for one in said if one.get("state") == "recoverable" and "s7~" in str(one["name"])]
    assert len(others) == len(notes) <= 1 and all(f"s7 is file {newest} now" in str(note) for note in notes)


# --- crashes ---


class Crashed(Exception):
    """The command has ended in its middle."""


CHANGES = ("open_file", "write_all", "writev_all", "fdatasync", "fsync_dir", "rename", "link", "make_dir", "unlink")


def crash_at(command: Callable[[], object], number: int) -> bool:
    """Run a command in a process of its own that ends before its N-th change; whether it got that far."""
    child = os.fork()
    if not child:
        calls = 0
        for name in CHANGES:
            real = getattr(disk, name)

            def counted(*arguments: object, real: Callable[..., object] = real) -> object:
                nonlocal calls
                calls += 1
                if calls == number:
                    os._exit(9)
                return real(*arguments)

            setattr(disk, name, counted)
        try:
            command()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) in (0, 9)
    return os.waitstatus_to_exitcode(status) == 9


@pytest.mark.promise("rebuilt")
@pytest.mark.parametrize("what", ["rebuild", *in_full("repair")])
def test_a_crash_at_any_step_leaves_the_old_or_the_new_and_a_second_run_finishes(store: Store, what: str) -> None:
    lines = store.journal.read_bytes().splitlines(keepends=True)
    if what == "rebuild":
        packs_of(store, named(store, b"big"))[0].unlink()
        lines = [line for line in lines if b'"file":%d,' % named(store, b"big") not in line]
    else:
        lines = [line.replace(b'"removed"', b'"rem\0ved"') for line in lines]
    store.journal.write_bytes(b"".join(lines))
    broken = store.home / "broken"
    shutil.copytree(store.path, broken, copy_function=os.link)  # no file is written again
    packs_before = {path.name for path in store.packs()}
    assert getattr(store, what)()[0] == 0
    wanted = digest(store.registry())
    crashes = 0
    for at in steps():
        shutil.rmtree(store.path)
        shutil.copytree(broken, store.path, copy_function=os.link)
        crashed = crash_at(getattr(store, what), at)
        if store.journal.read_bytes() != b"".join(lines):
            assert digest(store.registry()) == wanted
        left = [*store.packs(), *(store.path / "lost").glob("*")]
        assert {path.name for path in left} == packs_before
        if crashed:
            assert getattr(store, what)()[0] == 0
        assert digest(store.registry()) == wanted and store.check()[0] == 0
        crashes += crashed
        if not crashed:
            break
    assert crashes >= 8


def steps() -> Iterator[int]:
    at = 1
    while True:
        yield at
        at += 1


@pytest.mark.promise("rebuilt")
@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_a_disk_that_fails_leaves_the_journal_as_it_was(
    store: Store, error: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno

    from pfsd.errors import StorageFailed

    lines = store.journal.read_bytes().splitlines(keepends=True)
    store.journal.write_bytes(b"".join(lines[:1] + lines[2:]))
    before = store.journal.read_bytes()

    def fails(*_: object) -> None:
        raise OSError(getattr(errno, error), os.strerror(getattr(errno, error)))

    for name in ("writev_all", "fdatasync", "link", "rename"):
        with monkeypatch.context() as patched:
            patched.setattr(disk, name, fails)
            with pytest.raises(StorageFailed):
                store.rebuild()
        assert store.journal.read_bytes() == before
    assert store.rebuild()[0] == 0 and store.now().keys() >= store.files.keys()


# --- many ---


@pytest.mark.promise("rebuilt")
def test_ten_thousand_files_come_back(in_memory: Path, count: Count) -> None:
    wanted = count(0, 10_000)
    if not wanted:
        pytest.skip("with --faults=full only: 10,000 files")
    with Daemon(in_memory) as daemon:
        daemon.start()
        with daemon.connect() as wire:
            for first in range(0, wanted, 500):
                wire.send(
                    b"".join(b"@%d put - name=f%d size=8\n%08d" % (at, at, at) for at in range(first, first + 500))
                )
                for _ in range(500):
                    assert b" OK put" in wire.line()
        daemon.stop()
        store = Store(in_memory, {}, set())
        before = store.now()
        assert len(before) == wanted
        store.journal.unlink()
        assert store.rebuild()[0] == 0
        assert store.now() == before


@pytest.mark.promise("rebuilt")
@pytest.mark.parametrize("damage", [False, True])
def test_repair_leaves_files_that_only_packs_know_to_rebuild_whatever_the_journal_is_like(
    store: Store, damage: bool
) -> None:
    before = store.now()
    lines = store.journal.read_bytes().splitlines(keepends=True)
    last = max(at for at, line in enumerate(lines) if b'"type":"ready"' in line)
    store.journal.write_bytes(b"".join(lines[:last]))  # an older copy, sound in itself
    (store.path / "journal.mark").unlink(missing_ok=True)
    assert len(store.now()) < len(before)
    if damage:
        pack = store.packs()[0]
        content = bytearray(pack.read_bytes())
        content[20] ^= 1
        pack.write_bytes(content)
    tree = store.tree()
    for said in (store.check()[1], store.repair()[1]):
        assert command_to_type(said) == "server.py rebuild"
    assert store.tree() == tree
    store.rebuild()
    assert before.keys() <= store.now().keys()


@pytest.mark.promise("unknown")
def test_ids_in_packs_that_were_moved_aside_are_not_given_out_again(store: Store) -> None:
    newest = max(file for file in store.now() if len(packs_of(store, file)) > 1)
    for path in store.packs():  # the file is the last one that packs tell of, and the first of its packs is gone
        if number(path) > max(map(number, packs_of(store, newest))):
            path.unlink()
    packs_of(store, newest)[0].unlink()
    store.journal.unlink()
    store.rebuild()
    first = store.registry()
    assert next((store.path / "lost").iterdir(), None) is not None
    store.journal.unlink()  # as it is if the crash came before the new one was put in its place
    store.rebuild()
    again = store.registry()
    assert (again.next_file, again.next_pack) == (first.next_file, first.next_pack)


@pytest.mark.promise("rebuilt")
def test_what_the_terminal_cannot_show_stops_no_rescue(store: Store) -> None:
    (store.path / "übrig").touch()
    command = [sys.executable, SERVER, "check", "--config", store.home / "config.yaml"]
    done = subprocess.run(command, env=os.environ | {"PYTHONIOENCODING": "ascii"}, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert rb"\xfcbrig" in done.stdout


def test_a_store_without_its_directory_of_packs_has_none(store: Store) -> None:
    shutil.rmtree(store.path / "packs")
    exit_code, said = store.check()
    assert exit_code == 65
    assert command_to_type(said) == "server.py repair"
    assert store.repair()[0] == 0


@pytest.mark.promise("rebuilt")
def test_an_older_copy_without_a_mark_keeps_packs_of_later_files_that_are_not_complete(store: Store) -> None:
    big = next(file for file, (name, *_) in store.now().items() if name == b"big")
    doomed, *others = packs_of(store, big)
    lines = store.journal.read_bytes().splitlines(keepends=True)
    first = min(at for at, line in enumerate(lines) if b'"file":%d,' % big in line)
    store.journal.write_bytes(b"".join(lines[:first]))
    (store.path / "journal.mark").unlink(missing_ok=True)
    assert others
    doomed.unlink()
    assert store.rebuild()[0] == 0
    for path in others:
        assert (store.path / "lost" / path.name).exists()
