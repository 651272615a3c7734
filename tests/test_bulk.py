"""Many files over a connection of their own: against a real daemon, and one that does what the real one never does."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, suppress
from pathlib import Path

import pytest

from pfsd import bulk
from pfsd.client import Client, ConnectionLost, Outcome, StoredFile
from pfsd.errors import AuthError, Busy, Changed, Denied, Exists, IoError, NotFound, PfsdError, UsageError
from pfsd.transfer import KeptDraft
from tests.fake_daemon import Reader, Writer, fake_daemon, request
from tests.harness import PART, Daemon, etag

MIB = 1 << 20


@pytest.fixture
async def client(shared_daemon: Daemon) -> AsyncIterator[Client]:
    """A connection to the shared daemon, over TCP; its store is empty."""
    async with await Client.connect(f"127.0.0.1:{shared_daemon.port}") as client:
        # One that the test before was still reading goes by itself.
        if files := [file.id async for file in client.list() if file.status != "deleting"]:
            await client.delete(*files)
        yield client


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    home.mkdir()
    return home


def made(home: Path, contents: dict[str, bytes]) -> list[tuple[Path, str]]:
    for name, content in contents.items():
        (home / name).write_bytes(content)
    return [(home / name, name) for name in contents]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def still_open(home: Path) -> list[str]:
    """What is open of a directory, or below it."""
    links = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):
            links.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return [link for link in links if link.startswith(str(home))]


# --- there and back -----------------------------------------------------------------------------


SIZES = [0, 1, bulk.TAIL, bulk.SMALL - 1, bulk.SMALL, bulk.SMALL + 1, bulk.BATCH, bulk.CHUNK + bulk.TAIL + 1, 9 * MIB]


@pytest.mark.parametrize("unix", [False, True])
async def test_files_of_all_sizes_go_there_and_back(
    shared_daemon: Daemon, client: Client, home: Path, unix: bool
) -> None:
    contents = {f"{number}": os.urandom(size) for number, size in enumerate(SIZES)}
    address = f"unix:{shared_daemon.socket_path}" if unix else f"127.0.0.1:{shared_daemon.port}"
    async with await Client.connect(address) as other:
        heard: list[int] = []
        stored = [
            outcome.result
            async for outcome in other.put_many(made(home, contents), progress=lambda done, _: heard.append(done))
        ]
        assert {file.name.decode(): file.etag for file in stored if file} == {
            name: etag(content) for name, content in contents.items()
        }
        assert heard[-1] == sum(SIZES)
        target = home / "target"
        target.mkdir()
        files = [(file.id, b"some/where/" + file.name) for file in stored if file]
        got = [outcome async for outcome in other.get_many(files, target, progress=lambda done, _: heard.append(done))]
    assert heard[-1] == sum(SIZES)
    assert all(outcome.error is None for outcome in got)
    assert everything(target) == {f"some/where/{name}": content for name, content in contents.items()}
    assert still_open(home) == []


async def test_more_files_than_are_on_their_way_at_once(client: Client, home: Path) -> None:
    count = 2 * bulk.WINDOW + 7
    contents = {f"{number}": b"%d" % number * (number % 50) for number in range(count)}
    stored = [outcome.result async for outcome in client.put_many(made(home, contents))]
    assert len({file.id for file in stored if file}) == count
    target = home / "target"
    target.mkdir()
    files = [(name, name) for name in contents]
    assert [o.error async for o in client.get_many(files, target)] == [None] * count
    assert everything(target) == contents
    again = [type(o.error) async for o in client.get_many(files, target)]
    assert again == [Exists] * count
    assert [o.error async for o in client.get_many(files, target, replace=True)] == [None] * count


async def test_the_iterable_is_taken_no_further_than_what_is_sent(client: Client, home: Path) -> None:
    path = home / "source"
    path.write_bytes(b"x")
    taken = 0

    def endless() -> Iterator[tuple[Path, str]]:
        nonlocal taken
        while True:
            taken += 1
            yield path, f"endless{taken}"

    async with aclosing(client.put_many(endless())) as outcomes:
        async for outcome in outcomes:
            assert outcome.result is not None
            break
    assert taken <= 2 * bulk.WINDOW + bulk.STEP_FILES


# --- errors of single files ---------------------------------------------------------------------


async def test_what_fails_among_many_keeps_nobody_from_being_stored(client: Client, home: Path) -> None:
    await client.put(b"", "taken")
    os.mkfifo(home / "fifo")
    files = made(home, {"a": b"a", "taken": b"b", "z": b"z"})
    more = [
        (home / "none", "none"),
        (home / "fifo", "fifo"),
        (home, "folder"),
        (home / "a", "x" * 1025),
        (home / "a", ""),
    ]
    outcomes = {o.path: o async for o in client.put_many([*files[:2], *more[:3], files[2]])}
    kinds = {os.path.basename(path): type(o.error or o.result) for path, o in outcomes.items()}
    assert kinds == {
        "a": StoredFile,
        "taken": Exists,
        "none": NotFound,
        "fifo": Denied,
        "home": Denied,
        "z": StoredFile,
    }
    assert [type(o.error) async for o in client.put_many(more[3:])] == [UsageError] * 2


@pytest.mark.parametrize("where", ["first", "last"])
async def test_a_big_file_that_is_refused_is_not_sent_to_its_end(client: Client, home: Path, where: str) -> None:
    await client.put(b"", "big")
    files = made(home, {"big": b"", "a": b"a", "b": b"b"})
    os.truncate(home / "big", 1 << 40)
    if where == "last":
        files.append(files.pop(0))
    outcomes = {os.path.basename(o.path): type(o.error or o.result) async for o in client.put_many(files)}
    assert outcomes == {"big": Exists, "a": StoredFile, "b": StoredFile}


@pytest.mark.parametrize("size", [5, 3 * MIB])
async def test_a_file_that_changes_is_not_stored_and_all_others_are(
    client: Client, home: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = made(home, {"a": b"a", "changing": bytes(size), "b": b"b"})
    fstat, seen = os.fstat, [0]

    def changing(file: int) -> os.stat_result:
        if os.readlink(f"/proc/self/fd/{file}") == str(home / "changing"):
            seen[0] += 1
            os.utime(home / "changing", ns=(seen[0], seen[0]))
        return fstat(file)

    monkeypatch.setattr(os, "fstat", changing)
    outcomes = {os.path.basename(o.path): type(o.error or o.result) async for o in client.put_many(files)}
    assert outcomes == {"a": StoredFile, "changing": Changed, "b": StoredFile}
    assert {file.name async for file in client.list()} == {b"a", b"b"}


@pytest.mark.parametrize("size", [5, 3 * MIB])
async def test_a_file_that_shrinks_is_not_stored(
    client: Client, home: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = made(home, {"shrinking": bytes(size), "a": b"a"})
    fstat = os.fstat

    def shrinking(file: int) -> os.stat_result:
        status = fstat(file)
        if os.readlink(f"/proc/self/fd/{file}") == str(home / "shrinking"):
            os.truncate(home / "shrinking", 1)
        return status

    monkeypatch.setattr(os, "fstat", shrinking)
    outcomes = {os.path.basename(o.path): type(o.error or o.result) async for o in client.put_many(files)}
    assert outcomes == {"shrinking": Changed, "a": StoredFile}
    assert {file.name async for file in client.list()} == {b"a"}


async def test_a_file_that_does_not_tell_its_size_is_not_stored_as_an_empty_one(client: Client) -> None:
    (outcome,) = [outcome async for outcome in client.put_many([("/proc/self/status", "status")])]
    assert isinstance(outcome.error, Denied) and "more than the 0 bytes" in outcome.error.message
    assert [file async for file in client.list("status")] == []


async def test_names_that_lead_out_of_the_folder_are_refused(client: Client, home: Path, tmp_path: Path) -> None:
    stored = await client.put(b"content", "x")
    (home / "link").symlink_to(tmp_path)
    (home / "file-link").symlink_to(tmp_path / "through")
    (home / "file").write_bytes(b"mine")
    names = ["../out", "/tmp/out", "a//b", "", "link/out", "file-link", "file/below", "good", "deep/good"]
    outcomes = [o async for o in client.get_many([(stored.id, name) for name in names], home, replace=True)]
    assert {o.path: type(o.error) for o in outcomes} == dict.fromkeys(names[:-2], Denied) | {
        "good": type(None),
        "deep/good": type(None),
    }
    assert sorted(os.listdir(tmp_path)) == ["home"]
    assert everything(home) == {"file": b"mine", "good": b"content", "deep/good": b"content"}


async def test_downloads_that_fail_leave_nothing(tmp_path: Path, home: Path) -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        tags = [(await request(reader))[0] for _ in range(3)]
        writer.write(tags[0] + b" DATA 3\nabc" + tags[1] + b" DATA 1\nx@9 DATA 2\n\n\n# hello\n" + tags[0] + b" NEWS\n")
        writer.write(tags[0] + b' ERR corrupt id=1 message="bad part"\n' + tags[2] + b' ERR not-found message="no"\n')
        writer.write(tags[1] + b" DATA 2\nyz" + tags[1] + b" OK get id=2 size=3 bytes=3 etag=e-1 name=n\n")
        await reader.read()

    async with fake_daemon(tmp_path, script) as where, await Client.connect(where) as client:
        files = [(number, f"{number}") for number in (1, 2, 3)]
        outcomes = {o.path: o.error and o.error.code async for o in client.get_many(files, home)}
    assert outcomes == {"1": "corrupt", "2": None, "3": "not-found"}
    assert everything(home) == {"2": b"xyz"}


# --- the connection -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "error", "words"),
    [
        (b"", ConnectionLost, "closed"),
        (b"@1 DATA 1048577\n", ConnectionLost, "protocol"),
        (b"@1 DATA x\n", ConnectionLost, "protocol"),
        (b"@1 DATA 3\nab", ConnectionLost, "closed"),
        (b"@1 DATA 3\nabc@1 OK get id=1 size=4 bytes=4 etag=e-1 name=n\n", ConnectionLost, "3 instead of 4"),
        (b"@1 OK get id=1 size=0\n", ConnectionLost, "lacks"),
        (b'ERR busy message="too many clients"\n', ConnectionLost, "too many"),
        (b"OK get\n", ConnectionLost, "protocol"),
        (b"x" * (4 * MIB), ConnectionLost, "protocol"),
    ],
    ids=lambda value: repr(value)[:20],
)
async def test_a_connection_that_breaks_leaves_no_file(
    tmp_path: Path, home: Path, said: bytes, error: type[PfsdError], words: str
) -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        await request(reader)
        writer.write(said)
        await writer.drain()

    async with fake_daemon(tmp_path, script) as where, await Client.connect(where) as client:
        with pytest.raises(error, match=words):
            _ = [o async for o in client.get_many([(1, "one"), (2, "two")], home)]
    assert os.listdir(home) == []
    assert still_open(home) == []


async def test_uploads_end_with_the_connection(tmp_path: Path, home: Path) -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        tag, _ = await request(reader)
        await reader.readexactly(1)
        writer.write(tag + b" OK put id=1 size=1 stored=1 parts=1 etag=e-1 name=a\n")
        await request(reader)

    outcomes: list[Outcome[StoredFile]] = []
    async with fake_daemon(tmp_path, script) as where, await Client.connect(where) as client:
        with pytest.raises(ConnectionLost):
            async for outcome in client.put_many(made(home, {"a": b"a", "b": b"b", "c": bytes(9 * MIB)})):
                outcomes.append(outcome)
    assert [outcome.result.name for outcome in outcomes if outcome.result] == [b"a"]


@pytest.mark.parametrize("size", [1, 9 * MIB])
async def test_uploads_end_with_what_the_daemon_said_last(tmp_path: Path, home: Path, size: int) -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        writer.write(b'ERR busy message="too many clients"\n')

    async with fake_daemon(tmp_path, script) as where, await Client.connect(where) as client:
        for _ in range(10):  # before the daemon closes, or behind
            with pytest.raises(ConnectionLost, match="too many"):
                _ = [o async for o in client.put_many(made(home, {"a": bytes(size)}))]


async def test_answers_are_taken_while_the_daemon_reads_no_more(tmp_path: Path, home: Path) -> None:
    """Neither side reads until the other does: the client must take megabytes of rows to get its content out."""

    async def script(reader: Reader, writer: Writer) -> None:
        tag, _ = await request(reader)
        writer.write((tag + b" # " + b"x" * 1000 + b"\n") * 20_000)
        await writer.drain()
        await reader.readexactly(30 * MIB)
        writer.write(tag + b" OK put id=1 size=1 stored=1 parts=1 etag=e-1 name=a\n")
        await reader.read()

    async with fake_daemon(tmp_path, script) as where, await Client.connect(where) as client:
        (outcome,) = [o async for o in client.put_many(made(home, {"a": bytes(30 * MIB)}))]
    assert outcome.result is not None


async def test_the_token_is_shown(idle_daemon: Daemon, home: Path) -> None:
    idle_daemon.config(token="correct-battery")
    idle_daemon.start()
    where = f"127.0.0.1:{idle_daemon.port}"
    async with await Client.connect(where, token="correct-battery") as client:
        (outcome,) = [o async for o in client.put_many(made(home, {"a": b"a"}))]
        assert outcome.result is not None
    async with await Client.connect(where) as client:
        (outcome,) = [o async for o in client.put_many(made(home, {"a": b"a"}))]
        assert isinstance(outcome.error, AuthError)


async def test_a_cancellation_gives_up_what_is_on_its_way(tmp_path: Path, home: Path) -> None:
    stalled, gone = asyncio.Event(), asyncio.Event()

    async def script(reader: Reader, writer: Writer) -> None:
        tag, _ = await request(reader)
        writer.write(tag + b" DATA 3\nab")
        stalled.set()
        await reader.read()
        gone.set()

    async def fetch(client: Client) -> list[PfsdError | None]:
        return [outcome.error async for outcome in client.get_many([(1, "one"), (2, "two")], home)]

    async with fake_daemon(tmp_path, script) as where, await Client.connect(where) as client:
        task = asyncio.create_task(fetch(client))
        await stalled.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gone.wait()
    assert os.listdir(home) == []
    assert still_open(home) == []


# --- going on -----------------------------------------------------------------------------------


class Receiver:
    """A daemon that keeps what it got of an upload, and closes the connection after `most` bytes."""

    def __init__(self, most: int, part: int = 1 << 20) -> None:
        self.most = most
        self.part = part
        self.kept: dict[bytes, bytes] = {}
        self.lines: list[bytes] = []

    async def __call__(self, reader: Reader, writer: Writer) -> None:
        tag, line = await request(reader)
        self.lines.append(line)
        key = line.rpartition(b"resume=")[2].split()[0]
        content = self.kept.get(key, b"")
        content = content[: len(content) // self.part * self.part]
        writer.write(tag + b" RESUME offset=%d\n" % len(content))
        received = 0
        while (line := await reader.readuntil(b"\n")) != tag + b" DATA 0\n":
            if line == tag + b" ABORT\n":
                writer.write(tag + b' ERR cancelled message="given up"\n')
                self.kept.pop(key, None)
                return
            piece = await reader.readexactly(int(line.removeprefix(tag + b" DATA ")))
            content += piece
            self.kept[key] = content
            received += len(piece)
            if received >= self.most:
                return
        size = len(content)
        writer.write(tag + b" OK put id=1 size=%d stored=%d parts=1 etag=e-1 resumed=0 name=n\n" % (size, size))


@pytest.fixture
def big(home: Path) -> Path:
    """A file that is worth going on with."""
    path = home / "big"
    path.write_bytes(os.urandom(bulk.CHUNK + 3 * MIB + 7))
    return path


def read(path: Path) -> bytes:
    return path.read_bytes()


async def put_resumed(where: str, path: Path) -> Outcome[StoredFile]:
    async with await Client.connect(where) as client:
        (outcome,) = [o async for o in client.put_many([(path, "n")], resume=True)]
    return outcome


async def test_a_put_goes_on_where_it_was_cut_short(tmp_path: Path, big: Path) -> None:
    daemon = Receiver(most=3 * MIB)
    async with fake_daemon(tmp_path, daemon) as where:
        for _ in range(2):
            with pytest.raises(ConnectionLost):
                await put_resumed(where, big)
        daemon.most = 1 << 40
        heard: list[int] = []
        async with await Client.connect(where) as client:
            (outcome,) = [
                o async for o in client.put_many([(big, "n")], resume=True, progress=lambda done, _: heard.append(done))
            ]
        assert outcome.result is not None and outcome.result.size == len(read(big))
        assert heard[-1] == len(read(big))
    assert list(daemon.kept.values()) == [read(big)]
    assert len(set(daemon.lines)) == 1
    key = daemon.lines[0].removeprefix(b"put - name=n size=chunked resume=")
    assert re.fullmatch(rb"[0-9a-f]{64}", key)


async def test_a_file_that_has_changed_is_sent_under_another_key(tmp_path: Path, big: Path) -> None:
    daemon = Receiver(most=3 * MIB)
    async with fake_daemon(tmp_path, daemon) as where:
        with pytest.raises(ConnectionLost):
            await put_resumed(where, big)
        os.truncate(big, len(read(big)) - 1)
        daemon.most = 1 << 40
        assert (await put_resumed(where, big)).result is not None
    assert list(daemon.kept.values())[1:] == [read(big)]
    assert len(set(daemon.lines)) == 2


@pytest.mark.parametrize("how", ["touched", "shrunk"])
async def test_a_resumed_put_of_a_file_that_changes_is_given_up(
    tmp_path: Path, big: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = bulk.Uploads._send_frame

    def changing(self: bulk.Uploads, *arguments: int) -> int:
        sent = frame(self, *arguments)
        os.utime(big, ns=(1, 1)) if how == "touched" else os.truncate(big, MIB + 5)
        return sent

    monkeypatch.setattr(bulk.Uploads, "_send_frame", changing)
    daemon = Receiver(most=1 << 40)
    async with fake_daemon(tmp_path, daemon) as where:
        outcome = await put_resumed(where, big)
    assert isinstance(outcome.error, Changed)


async def test_a_resumed_put_that_is_refused(tmp_path: Path, big: Path) -> None:
    said: list[bytes] = []

    async def script(reader: Reader, writer: Writer) -> None:
        tag, _ = await request(reader)
        writer.write(tag + b' ERR exists message="taken"\n')
        said.append(await reader.readuntil(b"\n"))

    async with fake_daemon(tmp_path, script) as where:
        assert isinstance((await put_resumed(where, big)).error, Exists)
    assert said == [b"@1 ABORT\n"]


async def test_small_files_are_stored_in_one_go(client: Client, home: Path) -> None:
    (home / "small").write_bytes(bytes(bulk.CHUNK))
    (outcome,) = [o async for o in client.put_many([(home / "small", "small")], resume=True)]
    assert outcome.result is not None


async def cut_short(client: Client, id: int, path: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Retrieve with a draft that breaks once it has so many bytes; returns what it leaves behind."""
    write = KeptDraft.write

    def failing(self: KeptDraft, content: bytes) -> None:
        write(self, content)
        if os.fstat(self._fd).st_size >= after:
            raise OSError(5, "broken")

    with monkeypatch.context() as patch:
        patch.setattr(KeptDraft, "write", failing)
        with pytest.raises(IoError):
            await client.get_resumed(id, path)
    (left,) = path.parent.glob(".*")
    return left


@pytest.mark.parametrize("damage", ["none", "flipped", "longer", "empty", "gone"])
async def test_a_get_goes_on_with_what_is_sound(
    client: Client, home: Path, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(20 * PART + 5)
    stored = await client.put(content, "x")
    left = await cut_short(client, stored.id, home / "target", 9 * PART + 3, monkeypatch)
    assert left.name.startswith(".target.") and left.name.endswith(".pfsd-partial")
    kept = left.read_bytes()
    assert kept == content[: len(kept)] and len(kept) >= 9 * PART + 3
    sound = len(kept) // PART * PART
    if damage == "flipped":
        left.write_bytes(kept[: 2 * PART + 9] + bytes([kept[2 * PART + 9] ^ 1]) + kept[2 * PART + 10 :])
        sound = 2 * PART
    elif damage == "longer":
        left.write_bytes(content + b"more")
        sound = len(content)
    elif damage == "empty":
        left.write_bytes(b"")
        sound = 0
    elif damage == "gone":
        left.unlink()
        sound = 0
    heard: list[int] = []
    got = await client.get_resumed(stored.id, home / "target", progress=lambda done, _: heard.append(done))
    assert got.transferred == len(content) - sound
    assert heard[-1] == len(content)
    assert everything(home) == {"target": content}


async def test_a_partial_of_other_content_is_not_touched(
    client: Client, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await client.put(bytes(3 * PART), "x")
    left = await cut_short(client, one.id, home / "target", PART, monkeypatch)
    before = left.read_bytes()
    await client.put(b"other", "x", replace=True)
    assert (await client.get_resumed("x", home / "target")).transferred == 5
    assert everything(home) == {"target": b"other", left.name: before}


async def test_two_at_one_partial_do_not_mix(client: Client, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = await client.put(bytes(3 * PART), "x")
    left = await cut_short(client, stored.id, home / "target", PART, monkeypatch)
    with left.open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(Busy, match="another program"):
            await client.get_resumed(stored.id, home / "target")
    assert (await client.get_resumed(stored.id, home / "target")).size == 3 * PART


async def test_a_partial_that_is_a_finished_target_too_is_not_written_to(
    client: Client, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a client that was killed leaves it, when it had linked the target and not yet removed the partial."""
    stored = await client.put(bytes(3 * PART), "x")
    left = await cut_short(client, stored.id, home / "target", PART, monkeypatch)
    left.rename(home / "target")
    os.link(home / "target", left)
    os.link(home / "target", home / "witness")
    before = left.read_bytes()
    got = await client.get_resumed(stored.id, home / "target", replace=True)
    assert got.transferred == 3 * PART
    assert everything(home) == {"target": bytes(3 * PART), "witness": before}


@pytest.mark.parametrize("kind", ["link", "fifo"])
async def test_a_partial_that_is_no_file_is_left_alone(
    client: Client, home: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = await client.put(bytes(3 * PART), "x")
    left = await cut_short(client, stored.id, home / "target", PART, monkeypatch)
    left.unlink()
    if kind == "link":
        (home / "other").write_bytes(b"other")
        left.symlink_to(home / "other")
    else:
        os.mkfifo(left)
    with pytest.raises(Denied, match="no regular file"):
        await client.get_resumed(stored.id, home / "target")
    if kind == "link":
        assert (home / "other").read_bytes() == b"other"
    assert still_open(home) == []


async def test_a_resumed_get_minds_the_target(client: Client, home: Path) -> None:
    stored = await client.put(b"", "x")
    (home / "target").write_bytes(b"mine")
    with pytest.raises(Exists):
        await client.get_resumed(stored.id, home / "target")
    assert everything(home) == {"target": b"mine"}
    await client.get_resumed(stored.id, home / "target", replace=True)
    assert everything(home) == {"target": b""}
    with pytest.raises(NotFound):
        await client.get_resumed("none", home / "other")
