"""A daemon and a dictionary are told the same, in orders that nobody has thought of, and have to agree."""

from __future__ import annotations

import sys
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from hashlib import md5

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.faults import offline, store
from tests.faults.conftest import Count, directory_in_memory
from tests.faults.inject import compact_above
from tests.harness import Daemon, etag, noise, wait_for
from tests.wire import code, fields

PART = 4 << 10
RUN = 16 * PART

NAMES = st.sampled_from(["a", "b", "c", "two words"])
SMALL = st.sampled_from([0, 1, PART - 1, PART])
SIZES = st.one_of(SMALL, st.sampled_from([PART + 1, RUN - 1, RUN, RUN + 1, 2 * RUN + PART + 1]))
PLACES = st.one_of(st.sampled_from([0, 1, PART - 1, PART, RUN - 1, RUN]), st.integers(0, 3 * RUN))
ANY = st.integers(0, 1 << 20)


@dataclass(frozen=True)
class Stored:
    """A file."""

    id: int
    data: bytes


@dataclass(frozen=True)
class Flip:
    """A bit that was turned over in a pack."""

    pack: int
    offset: int
    bit: int


class Machine(RuleBasedStateMachine):
    """`files` is what the daemon must hold; `flips` are the parts that are damaged, by file and sequence number.

    Which rules there are never depends on what the daemon did: who is killed may have done either.
    """

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, Stored] = {}
        self.flips: dict[tuple[int, int], Flip] = {}
        self.puts = 0
        self.last_id = 0
        with ExitStack() as stack:
            home = stack.enter_context(directory_in_memory())
            self.daemon = stack.enter_context(Daemon(home, part_size=PART, log_level="info"))
            compact_above(self.daemon, 4000)
            self.start()
            self.cleanup = stack.pop_all()

    def start(self) -> None:
        self.daemon.start()
        self.wire = self.daemon.connect()

    def end(self, kill: bool) -> None:
        self.wire.close()
        self.daemon.kill() if kill else self.daemon.stop()

    def teardown(self) -> None:
        with self.cleanup:
            if sys.exc_info()[0] is None:  # else it is over already
                self.all_is_there()
            self.wire.close()

    # --- put ---

    @rule(name=NAMES, size=SIZES, replace=st.booleans(), framed=st.booleans())
    def put(self, name: str, size: int, replace: bool, framed: bool) -> None:
        data = self.new_content(size)
        final = self.wire.last(self.request_to_put(name, data, replace, framed))
        if name in self.files and not replace:
            assert code(final) == "exists" and fields(final)["id"] == str(self.files[name].id), final
        else:
            self.is_stored(name, data, final)

    @initialize(sizes=st.dictionaries(NAMES, SIZES, min_size=2))
    def begin(self, sizes: dict[str, int]) -> None:
        self.put_side_by_side(sizes)

    @rule(sizes=st.dictionaries(NAMES, SMALL, min_size=2))
    def put_side_by_side(self, sizes: dict[str, int]) -> None:
        """They share packs, or they do not."""
        data = {name: self.new_content(size) for name, size in sizes.items()}
        tags = {f"@{at}".encode(): name for at, name in enumerate(data)}
        self.wire.send(b"".join(tag + b" " + self.request_to_put(name, data[name]) for tag, name in tags.items()))
        finals = [self.wire.reply()[-1] for _ in tags]
        for final in sorted(finals, key=lambda final: int(fields(final).get("id", 0))):
            name = tags[final.split()[0]]
            self.is_stored(name, data[name], final)

    @rule(name=NAMES, size=SIZES, sent=ANY, leave=st.sampled_from(["close", "reset", "half_close"]))
    def put_is_cut_off(self, name: str, size: int, sent: int, leave: str) -> None:
        data = self.new_content(size + 1)
        request = self.request_to_put(name, data)
        with self.daemon.connect() as wire:
            wire.send(request[: len(request) - 1 - sent % len(data)])
            getattr(wire, leave)()
            if leave == "half_close":
                assert code(wire.reply()[-1]) == "usage"
        wait_for(lambda: b"STAT clients=1" in self.wire.ask(b"stats\n"), lambda: "who has left is still there")

    def new_content(self, size: int) -> bytes:
        """Bytes that no codec makes smaller, so each of them matters."""
        self.puts += 1
        return noise(size, self.puts)

    def request_to_put(self, name: str, data: bytes, replace: bool = True, framed: bool = False) -> bytes:
        size = "chunked" if framed else len(data)
        line = f'put - name="{name}" size={size} replace={"yes" if replace else "no"}\n'.encode()
        if not framed:
            return line + data
        return line + b"".join([b"DATA %d\n%b" % (len(data), data)] if data else []) + b"DATA 0\n"

    def is_stored(self, name: str, data: bytes, final: bytes) -> None:
        facts = fields(final)
        assert code(final) == "OK" and (facts["size"], facts["etag"]) == (str(len(data)), etag(data, PART)), final
        self.files[name] = Stored(int(facts["id"]), data)
        self.id_is_new(self.files[name].id)

    def id_is_new(self, file_id: int) -> None:
        assert file_id > self.last_id, f"id {file_id} comes behind {self.last_id}"
        self.last_id = file_id

    # --- read ---

    @rule(name=NAMES, offset=PLACES, length=PLACES, whole=st.booleans(), by_id=st.booleans())
    def get(self, name: str, offset: int, length: int, whole: bool, by_id: bool) -> None:
        if whole:
            offset, length = 0, 3 * RUN
        self.wire.send(f"get {self.ref(name, by_id)} - offset={offset} length={length}\n".encode())
        got, final = self.wire.frames()
        if name not in self.files:
            assert code(final) == "not-found", final
            return
        wanted = self.files[name].data[offset : offset + length]
        if bad := self.bad_parts(name, offset, len(wanted)):
            assert code(final) == "corrupt" and int(fields(final)["part"]) in bad, final
            assert got == wanted[: len(got)] and offset + len(got) <= max(offset, bad[0] * PART)
        else:
            assert (code(final), got == wanted) == ("OK", True), final

    @rule(name=NAMES)
    def cat(self, name: str) -> None:
        with self.daemon.connect() as wire:
            wire.send(f'cat "{name}"\n'.encode())
            got = b""
            with suppress(ConnectionResetError):
                got = wire.rest()
        if name not in self.files:
            assert got.startswith(b"ERR not-found ")
        elif self.bad_parts(name):
            assert got.startswith(b"ERR corrupt ") or self.files[name].data[: len(got)] == got
        else:
            assert got == self.files[name].data

    @rule(name=NAMES, by_id=st.booleans())
    def stat(self, name: str, by_id: bool) -> None:
        *rows, final = self.wire.ask(f"stat {self.ref(name, by_id)} parts=yes\n".encode())
        if name not in self.files:
            assert code(final) == "not-found"
            return
        data = self.files[name].data
        md5s = [md5(data[at : at + PART]).hexdigest() for at in range(0, len(data), PART)]
        assert [fields(row)["md5"] for row in rows[1:]] == md5s
        assert fields(final) == {"id": str(self.files[name].id), "etag": etag(data, PART)}

    @rule(mended=st.booleans())
    def verify(self, mended: bool) -> None:
        if mended:
            for flip in self.flips.values():
                self.turn_over(flip)
            self.flips.clear()
        *rows, final = self.wire.ask(b"verify\n")
        found = {(int(bad["id"]), int(bad["seq"])): bad["code"] for bad in map(fields, rows)}
        assert found == dict.fromkeys(self.bad(), "corrupt")
        assert code(final) == ("corrupt" if found else "OK") and fields(final)["files"] == str(len(self.files)), final

    # --- change ---

    @rule(names=st.lists(NAMES, min_size=1, max_size=3), by_id=st.booleans())
    def delete(self, names: list[str], by_id: bool) -> None:
        refs = " ".join(self.ref(name, by_id) for name in names)
        final = self.wire.last(f"delete {refs}\n".encode())
        if self.files.keys() >= set(names):
            assert code(final) == "OK" and fields(final)["files"] == str(len(set(names))), final
            self.files = {name: file for name, file in self.files.items() if name not in names}
        else:
            assert code(final) == "not-found", final

    @rule(name=NAMES, onto=NAMES, replace=st.booleans(), by_id=st.booleans())
    def rename(self, name: str, onto: str, replace: bool, by_id: bool) -> None:
        option = "replace=yes" if replace else ""
        final = self.wire.last(f'rename {self.ref(name, by_id)} "{onto}" {option}\n'.encode())
        if name not in self.files:
            assert code(final) == "not-found", final
        elif name != onto and onto in self.files and not replace:
            assert code(final) == "exists" and fields(final)["id"] == str(self.files[onto].id), final
        else:
            assert code(final) == "OK", final
            self.files[onto] = self.files.pop(name)

    # --- bad days ---

    @rule(kill=st.booleans(), checked=st.booleans())
    def restart(self, kill: bool, checked: bool) -> None:
        self.end(kill)
        if checked:
            exit_code, said = offline.check(self.daemon)
            assert (exit_code, offline.damaged(said)) == (65 if self.bad() else 0, self.bad()), said
        self.start()

    @rule(verb=st.sampled_from(["put", "delete", "rename"]), name=NAMES, onto=NAMES, size=SIZES)
    def killed_before_it_answers(self, verb: str, name: str, onto: str, size: int) -> None:
        """All of it was done, or nothing."""
        after = dict(self.files)
        if verb == "put":
            after[name] = Stored(0, self.new_content(size))
            request = self.request_to_put(name, after[name].data)
        else:
            if gone := after.pop(name, None):
                after |= {onto: gone} if verb == "rename" else {}
            request = f'delete "{name}"\n'.encode() if verb == "delete" else self.request_to_rename(name, onto)
        self.wire.send(request)
        self.end(kill=True)
        self.start()
        there = {row["name"]: int(row["id"]) for row in self.rows()}
        if there == {name: file.id for name, file in self.files.items()}:
            return
        if verb == "put" and name in there:
            self.id_is_new(there[name])
            after[name] = Stored(there[name], after[name].data)
        assert there == {name: file.id for name, file in after.items()}
        self.files = after

    def request_to_rename(self, name: str, onto: str) -> bytes:
        return f'rename "{name}" "{onto}" replace=yes\n'.encode()

    @rule(which=ANY, at=ANY, bit=st.integers(0, 7))
    def damage(self, which: int, at: int, bit: int) -> None:
        """One bit of a part that a file needs; while no daemon runs, as one may be moving it."""
        sound = [
            (file.id, seq)
            for _, file in sorted(self.files.items())
            for seq in range(-(-len(file.data) // PART))
            if (file.id, seq) not in self.flips
        ]
        if not sound:
            return
        part = sound[which % len(sound)]
        self.end(kill=False)
        place = store.place_of(store.read_journal(self.daemon.store / "journal.jsonl"), *part)
        self.flips[part] = Flip(place.pack, place.offset + at % place.length, bit)
        self.turn_over(self.flips[part])
        self.start()

    def turn_over(self, flip: Flip) -> None:
        with suppress(FileNotFoundError), store.path_of(self.daemon.store, flip.pack).open("r+b") as pack:
            pack.seek(flip.offset)
            (byte,) = pack.read(1)
            pack.seek(flip.offset)
            pack.write(bytes([byte ^ 1 << flip.bit]))

    # --- what holds ---

    def ref(self, name: str, by_id: bool) -> str:
        return str(self.files[name].id) if by_id and name in self.files else f'"{name}"'

    def bad(self) -> set[tuple[int, int]]:
        """The damaged parts of files that are there."""
        there = {file.id for file in self.files.values()}
        return {(file_id, seq) for file_id, seq in self.flips if file_id in there}

    def bad_parts(self, name: str, offset: int = 0, length: int = 3 * RUN) -> list[int]:
        """The damaged parts that hold some of these bytes, in order."""
        end = min(offset + length, len(self.files[name].data))
        mine = sorted(seq for file_id, seq in self.bad() if file_id == self.files[name].id)
        return [seq for seq in mine if max(offset, seq * PART) < min(end, (seq + 1) * PART)]

    def rows(self) -> list[dict[str, str]]:
        """What is listed, when what was replaced is gone."""
        rows: list[dict[str, str]] = []

        def are_at_rest() -> bool:
            rows[:] = [fields(row) for row in self.wire.ask(b"list\n")[:-1]]
            return all(row["status"] in ("ready", "damaged") for row in rows)

        wait_for(are_at_rest, lambda: f"it never came to an end: {rows}")
        return rows

    @invariant()
    def it_lists_what_it_must_hold(self) -> None:
        rows = self.rows()
        listed = {row["name"]: (int(row["id"]), int(row["size"])) for row in rows}
        assert len(listed) == len(rows)
        assert listed == {name: (file.id, len(file.data)) for name, file in self.files.items()}
        marked = {int(row["id"]) for row in rows if row["status"] == "damaged"}
        assert marked <= {file_id for file_id, _ in self.bad()}, "marked as damaged, and sound"

    def all_is_there(self) -> None:
        for name in self.files:
            self.get(name, 0, 0, True, False)
            self.stat(name, False)
        self.verify(mended=False)
        self.verify(mended=True)
        wait_for(lambda: not self.daemon.staged(), lambda: f"staged, and nobody comes for it: {self.daemon.staged()}")


@pytest.mark.promise("durable")
@pytest.mark.promise("whole")
@pytest.mark.promise("checked")
@pytest.mark.timeout(900)  # what fails is made smaller first
def test_a_daemon_does_what_a_dictionary_would(count: Count) -> None:
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=count(3, 20),
            stateful_step_count=count(12, 40),
            deadline=None,
            print_blob=True,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
