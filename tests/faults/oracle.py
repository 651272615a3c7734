"""Clients that do everything at once to a daemon, and know what it must hold when it has died and come back.

    oracle = Oracle(home, seed)
    with oracle.load(daemon):                       8 clients put, get, delete, rename, list, verify
        ...
        oracle.fault()                              from here on connections may end
        daemon.kill()
    daemon.start()
    oracle.check(daemon)                            AssertionError, with all that is needed to find out why

Each operation is logged before it is sent and when it has ended: ok, failed with a code, or unknown. Every content is
made of the number of its put, so bytes that are read tell which put they are from, and a mixture is seen. Most names
belong to one client, and what they stand for is known exactly; the rest is shared by all, so that clients collide.
"""

from __future__ import annotations

import copy
import os
import random
import re
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.faults import store
from tests.faults.possible import Impossible, Operation, Possible
from tests.harness import Daemon
from tests.wire import Wire, code, fields

CLIENTS = 8
#: Every so many bytes a content says whose it is.
BLOCK = 4096
#: Shortest content that says so.
LEAST = 48
#: Files that a client keeps beside those whose names it uses again and again.
KEEP = 6
#: What a daemon that works may refuse: somebody else was first.
REFUSALS = {"exists", "not-found", "not-ready", "busy"}
#: A store may take this much more than what it holds.
SLACK_BYTES = 64 << 20
PATIENCE_SECONDS = 10.0
#: About as much of the log is kept.
LOG_BYTES = 16 << 20

_TAG = re.compile(rb"<put (\d+) of (\d+) at (\d+)>")


def seed_of_run() -> int:
    """PFSD_SEED, or one that nobody has chosen."""
    return int(os.environ.get("PFSD_SEED") or random.SystemRandom().randrange(1 << 32))


def content(seed: int, number: int, size: int) -> bytes:
    """What put `number` stores: every second of these shrinks."""
    noise = random.Random(f"{seed}/{number}")
    data = bytearray(noise.randbytes(size) if number % 2 else (noise.randbytes(BLOCK) * (size // BLOCK + 1))[:size])
    for at in range(0, size, BLOCK):
        tag = b"<put %d of %d at %d>" % (number, size, at)
        data[at : at + len(tag)] = tag[: size - at]
    return bytes(data)


class ConnectionLost(Exception):
    """The daemon is gone, or has closed."""


class _Wire(Wire):
    """A connection whose end is told apart from a wrong answer."""

    def _receive(self) -> bool:
        try:
            if super()._receive():
                return True
        except OSError as error:
            raise ConnectionLost from error
        raise ConnectionLost

    def send(self, data: bytes) -> None:
        try:
            super().send(data)
        except OSError as error:
            raise ConnectionLost from error


@dataclass
class _Event:
    """An operation has begun, or ended with `outcome`; `seen` is the id of the file that was seen."""

    operation: Operation
    outcome: str = ""
    seen: int = 0


class Oracle:
    """All that is known of a store: what was sent, what was answered, and what may be there."""

    def __init__(self, home: Path, seed: int, *, rerun: str = "", clients: int = CLIENTS) -> None:
        """Logs to `home`/oracle.log; `rerun` is the command line that does the same again."""
        self.seed = seed
        self.rerun = rerun
        self.outcomes: Counter[str] = Counter()
        #: What else is to hold for a daemon that has started: each raises AssertionError.
        self.more_checks: list[Callable[[Daemon], None]] = []
        home.mkdir(exist_ok=True)
        self._log_path = home / "oracle.log"
        self._log = self._log_path.open("a", buffering=1)
        self._home = home
        self._lock = threading.Lock()
        self._numbers = 0
        self._round = 0
        self._events: list[_Event] = []
        self._groups: dict[str, Possible] = {}
        self._ids: dict[int, int] = {}  # of files, and the put each is of
        self._known_ids: set[int] = set()
        self._greatest_id = 0  # of all that were seen before the daemon was started
        self._packs: set[int] = set()  # in use at the last check
        self._greatest_pack = 0  # of all that were seen before the daemon was started
        self._killed_with: set[int] = set()
        self._live_bytes = 0
        self._faulted = threading.Event()
        self._stop = threading.Event()
        self._wrong: list[str] = []
        self._state: dict[str, int] = {}
        self._clients = [_Client(self, number) for number in range(clients)]
        self._baseline: dict[str, int] = {}

    def __enter__(self) -> Oracle:
        return self

    def __exit__(self, *reason: object) -> None:
        self._log.close()

    # --- the run ---

    @contextmanager
    def load(self, daemon: Daemon) -> Iterator[None]:
        """Clients work meanwhile. Ends when they have, which without `fault` is when their last answer has come."""
        self._round += 1
        self._faulted.clear()
        self._stop.clear()
        if self._log.tell() > LOG_BYTES:  # what was long ago explains nothing
            self._log.close()
            self._log_path.replace(self._log_path.with_suffix(".log.old"))
            self._log = self._log_path.open("a", buffering=1)
        self._note(f"round {self._round}")
        threads = [threading.Thread(target=client.work, args=[daemon]) for client in self._clients]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()
            self._note("all clients have ended")
        self._fail_if(self._wrong)

    def fault(self) -> None:
        """From here on any connection may end, and anything may be answered with an error."""
        self._note("fault")
        self._faulted.set()

    def note_packs(self, daemon: Daemon) -> None:
        """The daemon was killed and is not started yet: whatever pack is there has a number that stays used."""
        self._killed_with = store.packs_there(daemon.store)

    def wait(self, seconds: float) -> None:
        """Let the clients work for so long; a shorter time when they have found something wrong."""
        self._stop.wait(seconds)

    def as_of_now(self, home: Path) -> Oracle:
        """Another one that knows what this one does, to check a copy of the store that is made now."""
        twin = Oracle(home, self.seed, rerun=self.rerun, clients=0)
        with self._lock:
            twin._groups, twin._events, twin._ids = copy.deepcopy((self._groups, self._events, self._ids))
        return twin

    def check(self, daemon: Daemon, *, crashed: bool = True) -> None:
        """The daemon is there again, and nobody works: everything is as it must be."""
        try:
            self._settle(crashed)
            rows = self._listed(daemon)
            self._check_ids(rows)
            self._state = self._contents(daemon, rows)
            self._check_states()
            self._check_store(daemon, rows)
            for check in self.more_checks:
                check(daemon)
        except AssertionError as error:
            self._fail_if([str(error)])

    def check_twice(self, daemon: Daemon) -> None:
        """A start writes nothing that the one before it has not."""
        journal = daemon.store / "journal.jsonl"
        listed, before = daemon.ask(b"list\n"), journal.read_bytes()
        daemon.restart()
        try:
            assert daemon.ask(b"list\n") == listed, "a second start lists other files"
            assert journal.read_bytes() == before, "a second start writes to the journal"
        except AssertionError as error:
            self._fail_if([str(error)])

    def check_resources(self, daemon: Daemon) -> None:
        """An idle daemon holds what it held at the first call, and threads that start when they are needed."""
        until = time.monotonic() + PATIENCE_SECONDS
        while self._leaks(now := daemon.resources()) and time.monotonic() < until:
            daemon.ask(b"ping\n")
        self._fail_if([f"the daemon holds {now}, and held {self._baseline}"] if self._leaks(now) else [])
        self._baseline = self._baseline or now

    def _leaks(self, now: dict[str, int]) -> bool:
        before = self._baseline or now
        late = (os.cpu_count() or 1) + 6  # those of asyncio, and two for the journal
        return now["threads"] > before["threads"] + late or any(
            now[key] != before[key] for key in ("processes", "descriptors")
        )

    @property
    def live_bytes(self) -> int:
        """Content of all files that are there."""
        return self._live_bytes

    # --- what clients report ---

    def begin(self, operation: Operation, words: str = "") -> None:
        """It is about to be sent."""
        with self._lock:
            self._events.append(_Event(operation))
            self._note(f"{operation} sent {words}")

    def end(self, operation: Operation, outcome: str, seen: int = 0) -> None:
        """It has ended: ok, as `operation` says, or failed with a code, or unknown."""
        with self._lock:
            self._events.append(_Event(operation, outcome, seen))
            self.outcomes[outcome if outcome in ("ok", "unknown") else "failed"] += 1
            self._note(f"#{operation.number} {outcome}" + (f" id={seen}" if seen else ""))
            if seen:
                self._known_ids.add(seen)

    def number(self) -> int:
        """Of a new operation."""
        with self._lock:
            self._numbers += 1
            return self._numbers

    def belongs(self, file_id: int, value: int) -> None:
        """A file with this id has the content of this put."""
        with self._lock:
            if self._ids.setdefault(file_id, value) != value:
                self._wrong.append(f"id {file_id} is used twice: for put #{self._ids[file_id]} and put #{value}")

    def check_new_id(self, file_id: int) -> None:
        """A put has got this id."""
        if file_id <= self._greatest_id:
            self.wrong(f"id {file_id} is given to a put, and {self._greatest_id} was in use before the start")

    def wrong(self, what: str) -> None:
        """Something is as it must not be: the run is over."""
        with self._lock:
            self._note(f"WRONG {what}")
            self._wrong.append(what)
            self._stop.set()

    @property
    def is_over(self) -> bool:
        """Whether clients are to end."""
        return self._stop.is_set()

    @property
    def is_faulted(self) -> bool:
        """Whether errors are to be expected."""
        return self._faulted.is_set()

    @property
    def round(self) -> int:
        """How many loads there were."""
        return self._round

    # --- judging ---

    def _settle(self, crashed: bool) -> None:
        """Follow what has happened since the last check."""
        events, self._events = self._events, []
        ended = {event.operation.number: event for event in events if event.outcome}
        told: dict[int, Operation] = {}
        for event in events:
            number = event.operation.number
            if not event.outcome:
                operation = self._as_answered(ended.get(number, replace(event, outcome="unknown")))
                if operation is not None:
                    told[number] = operation
                    self._group(operation.names[0]).begin(operation)
            elif event.outcome != "unknown" and number in told:
                self._group(event.operation.names[0]).end(told[number])
        unknown = [event.operation for event in ended.values() if event.outcome == "unknown"]
        assert crashed or not unknown, f"never answered: {', '.join(map(str, unknown))}"
        if crashed:
            for group in self._groups.values():
                group.crash()

    def _as_answered(self, event: _Event) -> Operation | None:
        """The operation with all that is known now; None when it says nothing."""
        operation = event.operation
        # With an id it is about a file that had the name a moment before.
        if event.outcome == "not-found" and operation.verb != "put" and len(operation.names) == 1 and not event.seen:
            return replace(operation, verb="read", value=None)
        if event.outcome not in ("ok", "unknown"):
            return None
        if operation.verb == "put":
            return operation
        if event.outcome == "unknown":
            return operation if operation.changes else None
        if event.seen:
            operation = replace(operation, value=self._ids.get(event.seen, operation.value))
        return None if operation.verb == "read" and operation.value is None else operation

    def _group(self, name: str) -> Possible:
        return self._groups.setdefault(group_of(name), Possible())

    def _check_states(self) -> None:
        by_group: dict[str, set[tuple[str, int]]] = {group: set() for group in self._groups}
        for name, value in self._state.items():
            by_group.setdefault(group_of(name), set()).add((name, value))
        wrong = []
        for group, pairs in by_group.items():
            try:
                self._groups.setdefault(group, Possible()).observe(frozenset(pairs))
            except Impossible as error:
                wrong.append(str(error))
        assert not wrong, "; ".join(wrong)
        for client in self._clients:
            client.files = {name: value for name, value in self._state.items() if group_of(name) == client.group}

    def _listed(self, daemon: Daemon) -> dict[int, dict[str, str]]:
        until = time.monotonic() + PATIENCE_SECONDS
        while b" status=deleting " in b"".join(listed := daemon.ask(b"list\n")) and time.monotonic() < until:
            pass  # who reads it last is just leaving
        rows = [fields(row) for row in listed if row.startswith(b"FILE ")]
        names = Counter(row["name"] for row in rows if row["status"] != "storing")
        twice = [name for name, times in names.items() if times > 1]
        assert not twice, f"listed more than once: {twice}"
        return {int(row["id"]): row for row in rows}

    def _check_ids(self, rows: dict[int, dict[str, str]]) -> None:
        self._known_ids |= rows.keys()
        self._greatest_id = max([self._greatest_id, *self._known_ids])
        self._known_ids = set()

    def _contents(self, daemon: Daemon, rows: dict[int, dict[str, str]]) -> dict[str, int]:
        """Read every file: the put that each name stands for."""
        ready = {file_id: row for file_id, row in rows.items() if row["status"] == "ready"}
        assert len(ready) == sum(row["status"] != "storing" for row in rows.values()), f"not all is sound: {rows}"
        state = {}
        self._live_bytes = 0
        with daemon.connect() as wire:
            ids = list(ready)
            for first in range(0, len(ids), 32):  # each asked for before the one before it was answered
                some = ids[first : first + 32]
                wire.send(b"".join(b"get %d -\n" % file_id for file_id in some))
                for file_id in some:
                    name = ready[file_id]["name"]
                    data, final = wire.frames()
                    assert code(final) == "OK", f"{name}: {final!r}"
                    assert int(ready[file_id]["size"]) == len(data), f"{name} is listed with a wrong size"
                    state[name] = self.put_of(data, name)
                    self.belongs(file_id, state[name])
                    self._live_bytes += len(data)
            final = wire.last(b"verify\n")
            assert code(final) == "OK", final
        return state

    def put_of(self, data: bytes, name: str) -> int:
        """The put that has stored exactly these bytes. AssertionError when none has."""
        tag = _TAG.match(data)
        assert tag and data == content(self.seed, int(tag[1]), int(tag[2])), (
            f"{name} holds {len(data)} bytes that no put has sent, of {sorted(set(_TAG.findall(data)))[:6]}"
        )
        return int(tag[1])

    def _check_store(self, daemon: Daemon, rows: dict[int, dict[str, str]]) -> None:
        epochs = os.listdir(daemon.store / "tmp")
        assert len(epochs) == 1, f"old epochs are left: {epochs}"
        until = time.monotonic() + PATIENCE_SECONDS
        while True:  # packs are copied, and the journal compacted, in the background
            records = store.read_journal(daemon.store / "journal.jsonl")
            files = store.replay(records)
            there, used = store.packs_there(daemon.store), store.packs_of(files)
            if there == used or time.monotonic() > until:
                break
            daemon.ask(b"ping\n")
        assert used <= there, f"packs that files use are not there: {sorted(used - there)}"
        assert there <= used, f"packs of nobody are left: {sorted(there - used)}"
        known = {file_id: (file.name, file.status) for file_id, file in files.items()}
        assert known == {file_id: (row["name"], row["status"]) for file_id, row in rows.items()}, (
            "what the journal tells is not what is listed"
        )
        again = sorted(pack for pack in there - self._packs if pack <= self._greatest_pack)
        assert not again, f"packs {again} are used again: {self._greatest_pack} was in use before"
        self._packs, self._greatest_pack = there, max([self._greatest_pack, *there, *self._killed_with])
        taken = store.bytes_there(daemon.store)
        assert taken <= self._live_bytes * 1.2 + SLACK_BYTES, f"{taken} bytes for {self._live_bytes}"

    # --- telling ---

    def _note(self, line: str) -> None:
        self._log.write(f"{time.monotonic():.6f} {line}\n")

    def _fail_if(self, wrong: list[str]) -> None:
        if not wrong:
            return
        self._note(f"WRONG {wrong}")
        kept = Path(tempfile.mkdtemp(prefix="pfsd-oracle-", dir="/tmp"))
        shutil.copy(self._log_path, kept)
        for name in ("stderr", "config.yaml", "faults"):
            if (self._home / name).exists():
                shutil.copy(self._home / name, kept)
        raise AssertionError("\n".join([*wrong, f"log: {kept}", f"seed: {self.seed}", f"again: {self.rerun}"]))


def group_of(name: str) -> str:
    """The names that one operation may touch together."""
    return name.partition("-")[0]


#: What clients do, and how often.
_SHARE = {
    "put_small": 30,
    "put_chunked": 10,
    "put_big": 1,
    "put_path": 4,
    "put_resumed": 2,
    "get": 18,
    "get_range": 6,
    "stat": 6,
    "list": 3,
    "verify": 2,
    "delete": 12,
    "delete_several": 4,
    "rename": 8,
}


class _Client:
    """One of those who work at once: a thread with a connection."""

    def __init__(self, oracle: Oracle, number: int) -> None:
        self.group = f"c{number}"
        self.files: dict[str, int] = {}  # of this client alone, as far as it knows
        self._oracle = oracle
        self._number = number
        self._unfinished: Operation | None = None  # a put that is to be resumed
        self._sizes: dict[int, int] = {}
        self._wire: _Wire

    def work(self, daemon: Daemon) -> None:
        """Do one thing after the other until it is over, or the daemon is gone."""
        self._random = random.Random(f"{self._oracle.seed}/{self._oracle.round}/{self._number}")
        self._daemon = daemon
        try:
            self._wire = _Wire(daemon.address)
        except OSError:
            if not self._oracle.is_faulted:
                self._oracle.wrong("a connection is refused")
            return
        try:
            while not self._oracle.is_over:
                (verb,) = self._random.choices(list(_SHARE), list(_SHARE.values()))
                getattr(self, "_" + verb)()
        except ConnectionLost:
            if not self._oracle.is_faulted:
                self._oracle.wrong(f"client {self._number} has lost its connection")
        except AssertionError as error:
            self._oracle.wrong(f"client {self._number}: {error}")
        finally:
            self._wire.close()

    # --- what it does ---

    def _put_small(self) -> None:
        size = self._random.randrange(LEAST, self._random.choice([1_000, 5_000, 70_000]))
        operation = self._new_put()
        self._put(operation, "-", f"size={size}", content(self._oracle.seed, operation.number, size))

    def _put_big(self) -> None:
        size = self._random.randrange(1 << 20, 5 << 19)
        operation = self._new_put()
        self._put(operation, "-", f"size={size}", content(self._oracle.seed, operation.number, size))

    def _put_chunked(self) -> None:
        operation = self._new_put()
        size = self._random.randrange(LEAST, 200_000)
        self._put(operation, "-", "size=chunked", self._framed(content(self._oracle.seed, operation.number, size)))

    def _put_path(self) -> None:
        operation = self._new_put()
        size = self._random.randrange(LEAST, self._random.choice([5_000, 70_000, 3 << 20]))
        (self._daemon.root / self.group).write_bytes(content(self._oracle.seed, operation.number, size))
        self._put(operation, self.group, "", b"")

    def _put_resumed(self) -> None:
        """Leave in the middle of an upload, and go on with it; after a crash with the next one."""
        if self._unfinished is None:
            self._unfinished = replace(self._new_put(), names=(self._own_name(),), replaces=True)
            self._sizes[self._unfinished.number] = self._random.randrange(LEAST, 600_000)
            self._upload(self._unfinished, to_its_end=False)
        again = replace(self._unfinished, number=self._oracle.number(), replaces=True)
        self._upload(again, to_its_end=True)
        self._unfinished = None

    def _upload(self, operation: Operation, to_its_end: bool) -> None:
        value = operation.value
        assert value is not None
        data = content(self._oracle.seed, value, self._sizes[value])
        request = f'put - name="{operation.names[0]}" size=chunked resume=k{value} replace=yes\n'.encode()
        self._oracle.begin(operation, request.decode().strip())
        with self._sending(operation, "unknown" if to_its_end else "left"):
            self._wire.send(request)
            line = self._wire.line()
            while not line.startswith((b"RESUME ", b"ERR ")):
                line = self._wire.line()
            if line.startswith(b"ERR "):
                self._ended(operation, line)
                return
            offset = int(fields(line)["offset"])
            assert offset <= len(data), f"to be resumed at {offset} of {len(data)}"
            if to_its_end:
                final = self._wire.last(self._framed(data[offset:]))
                self._ended(operation, final)
                return
            self._wire.send(self._framed(data[offset : self._random.randrange(offset, len(data)) + 1], ended=False))
            self._wire.half_close()
            self._wire.line()  # an error: its content is not complete
            self._oracle.end(operation, "left")
        self._wire.close()
        try:
            self._wire = _Wire(self._daemon.address)
        except OSError as error:
            raise ConnectionLost from error

    def _get(self) -> None:
        name = self._some_name()
        operation = Operation(self._oracle.number(), "read", (name,))
        data, final = self._ask(operation, f'get "{name}" -')
        value = self._oracle.put_of(data, name) if code(final) == "OK" else None
        self._ended(replace(operation, value=value), final)

    def _get_range(self) -> None:
        name = self._some_name()
        offset = self._random.randrange(0, 40) * BLOCK
        length = self._random.randrange(LEAST, 100_000)
        operation = Operation(self._oracle.number(), "read", (name,))
        data, final = self._ask(operation, f'get "{name}" - offset={offset} length={length}')
        value = None
        if code(final) == "OK" and (tag := _TAG.match(data)):
            value = int(tag[1])
            whole = content(self._oracle.seed, value, int(tag[2]))
            assert data == whole[offset : offset + length], f"bytes of {name} from {offset} on are of no put"
        self._ended(replace(operation, value=value), final)

    def _stat(self) -> None:
        name = self._some_name()
        operation = Operation(self._oracle.number(), "read", (name,))
        self._ended(operation, self._ask(operation, f'stat "{name}"')[1])

    def _list(self) -> None:
        """Nobody else touches this client's files: it must see exactly what it has."""
        operation = Operation(self._oracle.number(), "read", (f"{self.group}-*",))
        self._oracle.begin(operation)
        with self._sending(operation):
            *lines, final = self._wire.ask(f"list {self.group}-*\n".encode())
        if code(final) == "OK":
            rows = [fields(line) for line in lines]
            listed = {row["name"] for row in rows if row["status"] == "ready"}
            assert listed == self.files.keys(), f"{self.group} lists {sorted(listed)} and has {sorted(self.files)}"
        elif not self._oracle.is_faulted:
            self._oracle.wrong(f"list is answered {final!r}")
        self._oracle.end(operation, "listed")

    def _verify(self) -> None:
        name = self._some_name()
        operation = Operation(self._oracle.number(), "read", (name,))
        self._ended(operation, self._ask(operation, f'verify "{name}"')[1])

    def _delete(self) -> None:
        name = self._some_name()
        operation = Operation(self._oracle.number(), "delete", (name,))
        final = self._ended(operation, self._ask(operation, f'delete "{name}"')[1])
        if final == "OK":
            self.files.pop(name, None)

    def _delete_several(self) -> None:
        names = tuple(self._random.sample(sorted(self.files), min(3, len(self.files))))
        if len(names) < 2:
            return
        operation = Operation(self._oracle.number(), "delete", names)
        final = self._ended(operation, self._ask(operation, "delete " + " ".join(f'"{name}"' for name in names))[1])
        assert final == "OK" or self._oracle.is_faulted, f"{names} cannot be deleted: {final}"
        if final == "OK":
            for name in names:
                del self.files[name]

    def _rename(self) -> None:
        name = self._some_name()
        onto = self._own_name() if group_of(name) == self.group else f"{group_of(name)}-{self._random.choice('ab')}"
        if name == onto:
            return
        operation = Operation(self._oracle.number(), "rename", (name,), onto=onto, replaces=self._random.random() < 0.7)
        option = " replace=yes" if operation.replaces else ""
        final = self._ended(operation, self._ask(operation, f'rename "{name}" "{onto}"{option}')[1])
        if final == "OK" and name in self.files:
            self.files[onto] = self.files.pop(name)

    # --- how ---

    def _some_name(self) -> str:
        """Most often this client's own, else one that all share."""
        if self._random.random() < 0.25:
            return self._random.choice(["s0-a", "s0-b", "s1-a", "s2-a"])
        return self._own_name()

    def _own_name(self) -> str:
        """Most often one that is there, else one of eight, or one that was never used before."""
        if self.files and (self._random.random() < 0.6 or len(self.files) > 8 + KEEP):
            return self._random.choice(sorted(self.files))
        if self._random.random() < 0.5:
            return f"{self.group}-{self._random.randrange(8)}"
        return f"{self.group}-new-{self._oracle.round}-{self._random.randrange(1 << 30)}"

    def _new_put(self) -> Operation:
        number = self._oracle.number()
        return Operation(number, "put", (self._some_name(),), number, replaces=self._random.random() < 0.8)

    def _put(self, operation: Operation, source: str, size: str, body: bytes) -> None:
        option = " replace=yes" if operation.replaces else ""
        final = self._ask(operation, f'put {source} name="{operation.names[0]}" {size}{option}', body)[1]
        self._ended(operation, final)

    def _framed(self, data: bytes, ended: bool = True) -> bytes:
        frames, at = [], 0
        while at < len(data):
            size = self._random.randrange(1, 60_000)
            piece = data[at : at + size]
            frames.append(b"DATA %d\n%b" % (len(piece), piece))
            at += size
        return b"".join([*frames, b"DATA 0\n"] if ended else frames)

    def _ask(self, operation: Operation, request: str, body: bytes = b"") -> tuple[bytes, bytes]:
        """Content and final line of a reply; rows are passed over."""
        line = request.encode() + b"\n"
        self._oracle.begin(operation, request)
        with self._sending(operation):
            self._wire.send(line + body)
            data, final = self._wire.frames() if request.startswith("get") else (b"", self._wire.reply()[-1])
        return data, final

    @contextmanager
    def _sending(self, operation: Operation, if_lost: str = "unknown") -> Iterator[None]:
        try:
            yield
        except ConnectionLost:
            self._oracle.end(operation, if_lost)
            raise

    def _ended(self, operation: Operation, final: bytes) -> str:
        """Report how it ended; returns OK or the error."""
        outcome, facts = code(final), fields(final)
        seen = int(facts.get("id", 0))
        if outcome != "OK":
            if outcome not in REFUSALS and not self._oracle.is_faulted:
                self._oracle.wrong(f"{operation} is answered {final!r}")
            certain = outcome in REFUSALS or outcome in ("no-space", "stopping")
            self._oracle.end(operation, outcome if certain else "unknown", seen)
            return outcome
        if operation.verb == "put":
            assert operation.value is not None
            if "resumed" not in facts or facts["resumed"] == "0":
                self._oracle.check_new_id(seen)
            self._oracle.belongs(seen, operation.value)
            if group_of(operation.names[0]) == self.group:
                self.files[operation.names[0]] = operation.value
        self._oracle.end(operation, "ok", seen)
        return outcome
