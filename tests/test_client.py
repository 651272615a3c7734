"""The client library against a real daemon, and against one that does what the real one never does."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pfsd.client import CannotConnect, Client, ConnectionLost, DamagedCopy, parse_address
from pfsd.errors import (
    AuthError,
    Busy,
    Corrupt,
    Denied,
    Exists,
    Internal,
    NotFound,
    Partial,
    PfsdError,
    TooLong,
    UsageError,
)
from pfsd.protocol import MAX_FRAME, Word
from tests.fake_daemon import Reader, Writer, fake_daemon, request
from tests.harness import PART, Daemon

MIB = 1 << 20


def address(daemon: Daemon) -> str:
    return f"127.0.0.1:{daemon.port}"


def etag(content: bytes) -> str:
    digests = [hashlib.md5(content[at : at + PART]).digest() for at in range(0, len(content), PART)]
    return f"{hashlib.md5(b''.join(digests)).hexdigest()}-{len(digests)}"


def entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.fixture
async def client(shared_daemon: Daemon) -> AsyncIterator[Client]:
    """A connection to the shared daemon, over TCP; its store is empty."""
    async with await Client.connect(address(shared_daemon)) as client:
        if files := [file.id async for file in client.list()]:
            await client.delete(*files)
        yield client


# --- put and get --------------------------------------------------------------------------------


async def _later(content: bytes) -> AsyncIterator[bytes]:
    for at in range(0, len(content), 10_000):
        yield content[at : at + 10_000]
        await asyncio.sleep(0)


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


SOURCES: dict[str, Callable[[bytes, Path], Any]] = {
    "bytes": lambda content, path: content,
    "bytearray": lambda content, path: bytearray(content),
    "view": lambda content, path: memoryview(content),
    "path": lambda content, path: _file(path, content),
    "file": lambda content, path: io.BytesIO(content),
    "iterable": lambda content, path: [content[:7], content[7:]],
    "async iterable": lambda content, path: _later(content),
}


@pytest.mark.parametrize("size", [0, 1, PART, MIB, MIB + 1, 3 * MIB + 7])
@pytest.mark.parametrize("kind", SOURCES)
async def test_what_was_put_comes_back(client: Client, tmp_path: Path, kind: str, size: int) -> None:
    content = os.urandom(size)
    heard: list[tuple[int, int | None]] = []
    stored = await client.put(
        SOURCES[kind](content, tmp_path / "source"),
        "round",
        replace=True,
        progress=lambda done, total: heard.append((done, total)),
    )
    assert (stored.size, stored.parts, stored.name) == (size, -(-size // PART), b"round")
    assert stored.etag == etag(content)
    known = kind in ("bytes", "bytearray", "view", "path")
    assert {total for _, total in heard} == {size if known else None}
    assert heard[0][0] == 0 and heard[-1][0] == size
    download = client.get("round")
    assert await download.read() == content
    assert (download.size, download.etag, download.retrieved.transferred) == (size, stored.etag, size)


@pytest.mark.parametrize(
    ("offset", "length"), [(0, 0), (0, 5), (PART - 1, 2), (100, None), (300_000, None), (299_999, 9), (400_000, 1)]
)
async def test_ranges(client: Client, offset: int, length: int | None) -> None:
    content = os.urandom(300_000)
    stored = await client.put(content, "range", replace=True)
    expected = content[offset:][:length]
    download = client.get(stored.id, offset=offset, length=length)
    assert await download.read() == expected
    assert download.retrieved.transferred == len(expected)
    heard: list[tuple[int, int | None]] = []
    into = io.BytesIO()
    await client.get_to(
        stored.id, into, offset=offset, length=length, progress=lambda done, total: heard.append((done, total))
    )
    assert into.getvalue() == expected
    assert heard[0] == (0, len(expected)) and heard[-1] == (len(expected), len(expected))


async def test_many_transfers_share_a_connection(client: Client) -> None:
    contents = {f"many{number}": os.urandom(number * 150_000) for number in range(20)}
    await asyncio.gather(*(client.put(_later(content), name) for name, content in contents.items()))
    back = await asyncio.gather(*(client.get(name).read() for name in contents))
    assert back == list(contents.values())


async def test_requests_inside_a_loop_over_a_list(client: Client) -> None:
    names = {b"loop%d" % number for number in range(30)}
    for name in names:
        await client.put(name, name)
    seen = {(file.name, (await client.stat(file.id)).file.name) async for file in client.list("loop*")}
    assert seen == {(name, name) for name in names}


async def test_how_content_travels(tmp_path: Path) -> None:
    requests: list[tuple[bytes, bytes]] = []

    async def script(reader: Reader, writer: Writer) -> None:
        for _ in range(3):
            tag, line = await request(reader)
            if b"size=chunked" in line:
                content = b""
                while count := int((await reader.readuntil(b"\n")).removeprefix(tag + b" DATA ")):
                    assert count <= MAX_FRAME
                    content += await reader.readexactly(count)
            else:
                content = await reader.readexactly(int(line.rpartition(b"=")[2]))
            requests.append((line, content))
            writer.write(tag + b" OK put id=1 size=1 stored=1 parts=1 etag=e-1 name=n\n")

    big = os.urandom(MIB + 1)
    async with fake_daemon(tmp_path, script) as where, await Client.connect(where) as client:
        await client.put(big[:MIB], "12")
        await client.put(big, "n", replace=True)
        await client.put(iter([b"a"]), b"a\xff\n b")
    assert requests == [
        (b"put - name=12 size=1048576", big[:MIB]),
        (b"put - name=n replace=yes size=chunked", big),
        (rb'put - name="a\xff\n b" size=chunked', b"a"),
    ]


async def test_a_file_is_named_by_id_or_by_name(client: Client) -> None:
    one = await client.put(b"one", "x", replace=True)
    two = await client.put(b"two", str(one.id), replace=True)
    assert await client.get(one.id).read() == b"one"
    assert await client.get(str(one.id)).read() == b"two"
    assert await client.get(str(one.id).encode()).read() == b"two"
    await client.delete(one.id, two.id)


async def test_names_are_any_bytes(client: Client) -> None:
    name = bytes(range(1, 256))
    stored = await client.put(b"", name)
    assert stored.name == name
    assert [file.name async for file in client.list(b"\x01*")] == [name]
    other = (name + name[::-1]) * 2
    assert (await client.rename(name, other)).name == other
    (deleted,) = (await client.delete(other)).deleted
    assert deleted.name == other
    for wrong in (b"", b"a\0b", bytes(1025)):
        with pytest.raises(UsageError):
            await client.put(b"", wrong)


# --- uploads that end early ---------------------------------------------------------------------


async def test_the_error_of_a_source_is_raised_and_nothing_is_stored(client: Client) -> None:
    def broken() -> Iterator[bytes]:
        yield bytes(3 * MIB)
        raise ZeroDivisionError

    for _ in range(2):  # the name is free at once
        with pytest.raises(ZeroDivisionError):
            await client.put(broken(), "broken")
    with pytest.raises(NotFound):
        await client.stat("broken")
    await client.put(b"whole", "broken")


async def test_a_source_that_is_not_there_sends_nothing(client: Client, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await client.put(tmp_path / "none", "none")
    with pytest.raises(TypeError):
        await client.put("text", "none")  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        await client.stat("none")


@pytest.mark.parametrize("size", [1, 10 * MIB])
async def test_a_source_of_another_size_than_announced_stores_nothing(client: Client, size: int) -> None:
    with pytest.raises(PfsdError, match="announced"):
        await client.put(iter([bytes(2 * MIB)]), "short", size=size)
    with pytest.raises(NotFound):
        await client.stat("short")


async def test_a_refused_upload_stops_at_once(client: Client) -> None:
    await client.put(b"", "taken")
    taken = 0
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        try:
            while True:
                taken += 1
                yield bytes(MIB)
        finally:
            closed.set()

    with pytest.raises(Exists):
        await client.put(endless(), "taken")
    await closed.wait()
    assert taken < 200  # it ends, and long before a disk is full
    await client.ping()  # the connection is in step
    assert await client.get("taken").read() == b""


async def test_a_refusal_is_heard_while_the_source_keeps_silent(client: Client) -> None:
    await client.put(b"", "silent")

    async def silent() -> AsyncIterator[bytes]:
        yield bytes(MIB)
        await asyncio.Event().wait()

    with pytest.raises(Exists):
        await client.put(silent(), "silent")


async def test_a_daemon_that_refuses_and_reads_no_more_is_heard(tmp_path: Path) -> None:
    released = asyncio.Event()

    async def script(reader: Reader, writer: Writer) -> None:
        tag, _ = await request(reader)
        writer.write(tag + b' ERR no-space message="full"\n')
        await released.wait()

    async with fake_daemon(tmp_path, script) as where, await Client.connect(where) as client:
        with pytest.raises(PfsdError, match="full"):
            await client.put((bytes(MIB) for _ in range(10_000)), "name")
        released.set()


async def test_a_cancelled_upload_stores_nothing(shared_daemon: Daemon, client: Client) -> None:
    begun = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield bytes(3 * MIB)
        begun.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(client.put(stuck(), "cancelled"))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(shared_daemon.wait_until, "requests", "1")
    with pytest.raises(NotFound):
        await client.stat("cancelled")
    await client.put(b"", "cancelled")


async def test_closing_gives_uploads_up(shared_daemon: Daemon) -> None:
    begun = asyncio.Event()

    async def stuck() -> AsyncIterator[bytes]:
        yield bytes(3 * MIB)
        begun.set()
        await asyncio.Event().wait()

    async with await Client.connect(address(shared_daemon)) as client:
        task = asyncio.create_task(client.put(stuck(), "closed"))
        await begun.wait()
    with pytest.raises(ConnectionLost):
        await task
    await asyncio.to_thread(shared_daemon.wait_until, "requests", "1")
    assert b"ERR not-found" in shared_daemon.ask(b"stat closed\n")[-1]


# --- downloads to files -------------------------------------------------------------------------


async def test_get_to_a_path(client: Client, tmp_path: Path) -> None:
    content = os.urandom(5 * MIB + 1)
    stored = await client.put(content, "to-path", replace=True)
    path = tmp_path / "target"
    assert (await client.get_to(stored.id, path)).etag == stored.etag
    assert path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()
    with pytest.raises(Exists):
        await client.get_to(stored.id, path)
    await client.get_to(stored.id, path, length=3, replace=True)
    assert path.read_bytes() == content[:3]
    assert entries(tmp_path) == [path]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


async def test_get_to_a_path_never_writes_through_a_link(client: Client, tmp_path: Path) -> None:
    await client.put(b"content", "link", replace=True)
    other = _file(tmp_path / "other", b"other")
    (tmp_path / "target").symlink_to(other)
    for replace in (False, True):
        with pytest.raises(Denied):
            await client.get_to("link", tmp_path / "target", replace=replace)
    assert other.read_bytes() == b"other"


async def test_a_download_that_fails_leaves_no_file(tmp_path: Path) -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        tag, _ = await request(reader)
        assert len(entries(home)) == 1  # the temporary
        writer.write(tag + b" DATA 3\nabc" + tag + b' ERR corrupt id=1 message="bad part"\n')

    home = tmp_path / "home"
    home.mkdir()
    async with fake_daemon(tmp_path, script) as where, await Client.connect(where) as client:
        with pytest.raises(Corrupt, match="bad part"):
            await client.get_to(1, home / "target")
    assert entries(home) == []


async def test_a_cancelled_download_leaves_no_file(tmp_path: Path) -> None:
    sent = asyncio.Event()

    async def script(reader: Reader, writer: Writer) -> None:
        tag, _ = await request(reader)
        writer.write(tag + b" DATA 3\nabc")
        sent.set()
        await reader.read()

    home = tmp_path / "home"
    home.mkdir()
    async with fake_daemon(tmp_path, script) as where, await Client.connect(where) as client:
        task = asyncio.create_task(client.get_to(1, home / "target"))
        await sent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert entries(home) == []


async def test_content_that_is_not_all_there_is_no_success(tmp_path: Path) -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        tag, _ = await request(reader)
        writer.write(tag + b" DATA 3\nabc" + tag + b" OK get id=1 size=4 bytes=4 etag=e-1 name=n\n")

    async with fake_daemon(tmp_path, script) as where, await Client.connect(where) as client:
        with pytest.raises(ConnectionLost, match="3 instead of 4"):
            await client.get_to(1, tmp_path / "target")
    assert entries(tmp_path) == []


async def test_a_download_can_be_left(client: Client) -> None:
    await client.put(bytes(20 * MIB), "left", replace=True)
    async with client.get("left") as download:
        async for piece in download:
            assert piece.count(0) == len(piece)
            break
    with pytest.raises(ValueError, match="end"):
        _ = download.etag
    await client.ping()


# --- other commands -----------------------------------------------------------------------------


async def test_hello_ping_and_stats(client: Client) -> None:
    hello = await client.hello()
    assert (hello.proto, hello.auth, hello.state, hello.max_frame) == (1, "none", "ready", MAX_FRAME)
    await client.ping()
    before = await client.stats()
    await client.put(b"counted", "counted")
    after = await client.stats()
    for key, more in (("files", 1), ("parts", 1), ("size", 7)):
        count, was = after[key], before[key]
        assert isinstance(count, int) and isinstance(was, int)
        assert count - was == more


async def test_stat_and_its_parts(client: Client) -> None:
    content = os.urandom(2 * PART + 5)
    stored = await client.put(content, "parts", replace=True)
    found = await client.stat("parts", parts=True)
    assert (found.file.id, found.file.size, found.file.status, found.etag) == (
        stored.id,
        len(content),
        "ready",
        stored.etag,
    )
    assert [(part.seq, part.offset, part.size) for part in found.parts] == [
        (0, 0, PART),
        (1, PART, PART),
        (2, 2 * PART, 5),
    ]
    assert [part.md5 for part in found.parts] == [
        hashlib.md5(content[at : at + PART]).hexdigest() for at in (0, PART, 2 * PART)
    ]
    assert (await client.stat("parts")).parts == ()


async def test_delete_and_rename(client: Client) -> None:
    one = await client.put(bytes(PART + 1), "d1")
    await client.put(b"2", "d2")
    with pytest.raises(NotFound):
        await client.delete("d1", "no-such-file")
    with pytest.raises(Exists):
        await client.rename("d1", "d2")
    assert (await client.rename("d1", "d2", replace=True)).id == one.id
    report = await client.delete("d2")
    assert (report.files, report.parts, [file.id for file in report.deleted]) == (1, 2, [one.id])
    assert report.freed == sum(file.freed for file in report.deleted) > 0


async def test_a_long_list_of_words_is_refused_here(client: Client) -> None:
    with pytest.raises(TooLong):
        await client.delete(*("x" * 1000 for _ in range(70)))
    await client.ping()


async def test_paths_of_the_daemon(shared_daemon: Daemon, client: Client) -> None:
    content = os.urandom(PART + 1)
    (shared_daemon.root / "12").write_bytes(content)
    (shared_daemon.root / "copy").unlink(missing_ok=True)
    stored = await client.put_path("12")
    assert (stored.name, stored.etag) == (b"12", etag(content))
    with pytest.raises(Exists):
        await client.put_path(Path("12"))
    assert (await client.put_path(Path("12"), "other", replace=True)).name == b"other"
    await client.get_path("12", "copy", offset=1)
    assert (shared_daemon.root / "copy").read_bytes() == content[1:]
    with pytest.raises(Exists):
        await client.get_path("12", "copy")
    await client.get_path("12", b"copy", length=2, replace=True)
    assert (shared_daemon.root / "copy").read_bytes() == content[:2]
    with pytest.raises(Denied):
        await client.put_path("/etc/passwd", "passwd")


async def test_progress_of_what_the_daemon_does(tmp_path: Path) -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        tag, line = await request(reader)
        assert line == b"verify progress=1"
        for progress in (b"bytes=1 total=? parts=1 rate=1 eta=?", b"bytes=5 total=9 parts=1 rate=1 eta=4"):
            writer.write(tag + b" PROGRESS verify " + progress + b"\n")
        writer.write(tag + b" OK verify files=1 parts=1 bytes=9\n")

    heard: list[tuple[int, int | None]] = []
    async with fake_daemon(tmp_path, script) as where, await Client.connect(where) as client:
        await client.verify(progress=lambda done, total: heard.append((done, total)))
    assert heard == [(1, None), (5, 9)]


async def test_damage_is_reported(daemon: Daemon) -> None:
    content = os.urandom(3 * PART)
    async with await Client.connect(address(daemon)) as client:
        stored = await client.put(content, "damaged")
        whole = await client.verify("damaged")
        assert (whole.files, whole.parts, whole.bytes, whole.sound) == (1, 3, len(content), True)
        (pack,) = daemon.packs()
        raw = bytearray(pack.read_bytes())
        raw[raw.index(content[PART : PART + 100])] ^= 1
        pack.write_bytes(raw)
        report = await client.verify()
        assert [(bad.id, bad.seq, bad.offset, bad.code, bad.name) for bad in report.bad] == [
            (stored.id, 1, PART, "corrupt", b"damaged")
        ]
        assert (report.files, report.parts, report.sound) == (1, 3, False)
        with pytest.raises(Corrupt):
            await client.get("damaged").read()
        with pytest.raises(DamagedCopy) as caught:
            await client.get_path("damaged", "saved", zero_damage=True)
        assert [(damage.offset, damage.length, damage.seq) for damage in caught.value.damage] == [(PART, PART, 1)]
        assert isinstance(caught.value, Partial)
        with pytest.raises(DamagedCopy) as again:
            await client.get_to("damaged", daemon.home / "saved", zero_damage=True, offset=1)
        assert [(damage.offset, damage.length) for damage in again.value.damage] == [(PART, PART)]
        assert (daemon.home / "saved").read_bytes() == content[1:PART] + bytes(PART) + content[2 * PART :]
        assert (daemon.root / "saved").read_bytes() == content[:PART] + bytes(PART) + content[2 * PART :]


async def test_raw_requests(client: Client) -> None:
    await client.put(b"raw", "raw", replace=True)
    final, rows = await client.request("list", [Word(b"raw")])
    assert (final.name, final.fields["files"]) == ("list", b"1")
    assert [(row.word, row.fields["name"]) for row in rows] == [("FILE", b"raw")]
    with pytest.raises(UsageError, match="no option"):
        await client.request("ping", [], {"loud": "yes"})


async def test_exit(daemon: Daemon) -> None:
    async with await Client.connect(address(daemon)) as client:
        await client.exit()
    await asyncio.to_thread(daemon.wait)
    with pytest.raises(CannotConnect):
        await Client.connect(address(daemon))


# --- connecting and losing the connection -------------------------------------------------------


async def test_a_unix_socket(shared_daemon: Daemon) -> None:
    async with await Client.connect(f"unix:{shared_daemon.socket_path}") as client:
        await client.ping()


async def test_a_token(idle_daemon: Daemon) -> None:
    idle_daemon.config(token="correct-battery")
    idle_daemon.start()
    where = address(idle_daemon)
    async with await Client.connect(where) as client:
        assert (await client.hello()).auth == "token"
        with pytest.raises(AuthError):
            await client.stats()
    with pytest.raises(AuthError):
        await Client.connect(where, token="wrong-token")
    async with await Client.connect(where, token="correct-battery") as client:
        await client.stats()


async def test_nobody_there(tmp_path: Path) -> None:
    for where in (f"unix:{tmp_path}/none", f"unix:{tmp_path}/{'x' * 200}", "127.0.0.1:1", "no-such-host.invalid:7373"):
        with pytest.raises(CannotConnect):
            await Client.connect(where)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("127.0.0.1:7373", ("127.0.0.1", 7373)),
        ("[::1]:1", ("::1", 1)),
        ("host.name:65535", ("host.name", 65535)),
        ("unix:/a b", Path("/a b")),
        ("unix:relative", Path("relative")),
    ],
)
def test_addresses(text: str, expected: object) -> None:
    assert parse_address(text) == expected


@pytest.mark.parametrize("text", ["", "7373", "host", "host:", ":1", "host:0", "host:65536", "::1:1", "unix:", "a b:1"])
def test_wrong_addresses(text: str) -> None:
    with pytest.raises(UsageError, match="HOST:PORT"):
        parse_address(text)


async def test_a_killed_daemon_ends_everything(daemon: Daemon) -> None:
    async def stuck() -> AsyncIterator[bytes]:
        yield bytes(2 * MIB)
        begun.set()
        await asyncio.Event().wait()

    begun = asyncio.Event()
    async with await Client.connect(address(daemon)) as client:
        task = asyncio.create_task(client.put(stuck(), "killed"))
        await begun.wait()
        daemon.kill()
        with pytest.raises(ConnectionLost):
            await task
        with pytest.raises(ConnectionLost):
            await client.ping()


@pytest.mark.parametrize(
    "said",
    [b"", b"@1", b"@1 DATA 100\nabc", b"HTTP/1.1 400 Bad Request\r\n\r\nhello", b"@1 OK", b"OK ping\n"],
)
async def test_a_daemon_that_breaks_off(tmp_path: Path, said: bytes) -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        await request(reader)
        writer.write(said)

    async with fake_daemon(tmp_path, script) as where, await Client.connect(where) as client:
        with pytest.raises(ConnectionLost):
            await client.ping()


async def test_a_full_daemon(tmp_path: Path) -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        await request(reader)
        writer.write(b'ERR busy message="too many clients"\n')

    async with fake_daemon(tmp_path, script) as where, await Client.connect(where) as client:
        with pytest.raises(Busy, match="too many"):
            await client.ping()


async def test_what_a_later_daemon_adds_is_ignored(tmp_path: Path) -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        tag, _ = await request(reader)
        rows = [
            b"# a comment",
            b"NEWS of=today",
            b"FILE id=1 status=odd size=2 stored=1 parts=1 created=5 name=n new=1",
        ]
        writer.write(b"".join(tag + b" " + row + b"\n" for row in rows))
        writer.write(b"@7 FILE id=9\n# comment\n\n" + tag + b" OK list files=1 more=yes\n")
        tag, _ = await request(reader)
        writer.write(tag + b' ERR brand-new x=1 message="what is this"\n')

    async with fake_daemon(tmp_path, script) as where, await Client.connect(where) as client:
        (file,) = [file async for file in client.list()]
        assert (file.id, file.status, file.created, file.name) == (1, "odd", 5, b"n")
        with pytest.raises(Internal, match="what is this"):
            await client.ping()


@pytest.mark.parametrize("said", [b"OK put id=1", b"OK put id=x size=1 stored=1 parts=1 etag=e name=n"])
async def test_an_answer_that_lacks_something_is_no_answer(tmp_path: Path, said: bytes) -> None:
    async def script(reader: Reader, writer: Writer) -> None:
        tag, _ = await request(reader)
        await reader.readexactly(1)
        writer.write(tag + b" " + said + b"\n")

    async with fake_daemon(tmp_path, script) as where, await Client.connect(where) as client:
        with pytest.raises(ConnectionLost, match="answer"):
            await client.put(b"a", "n")
