"""`AsyncStore`: which connections it uses, what it repeats, what it says when they break."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

import pfsd
from pfsd import AsyncStore
from pfsd.asyncstore import PAUSES
from pfsd.protocol import MAX_FRAME
from tests.fake_daemon import Reader, Writer, fake_daemon, request
from tests.harness import PART, Daemon, free_port, noise, wait_for

MIB = 1 << 20


@pytest.fixture
async def store(shared_daemon: Daemon) -> AsyncIterator[AsyncStore]:
    async with AsyncStore(f"127.0.0.1:{shared_daemon.port}") as store:
        if files := [file.id async for file in store.list()]:
            await store.delete(*files)
        yield store


async def until_clients(daemon: Daemon, count: int) -> None:
    """Wait until so many connections are there besides the one that asks."""
    await asyncio.to_thread(daemon.wait_until, "clients", str(count + 1))


# --- put and get --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 5, MAX_FRAME, MAX_FRAME + 1, 3 * MIB + 7])
async def test_what_was_put_comes_back(store: AsyncStore, tmp_path: Path, size: int) -> None:
    content = noise(size)
    path = tmp_path / "disk.img"
    path.write_bytes(content)
    assert (await store.put(str(path))).name == b"disk.img"
    assert (await store.put(path, "as path")).size == size
    assert (await store.put(content, "as bytes")).size == size
    assert (await store.put(iter([content]), "as pieces", size=size)).size == size
    with path.open("rb") as file:
        await store.put(file, "as file")
    for name in ("disk.img", "as path", "as bytes", "as pieces", "as file"):
        assert await store.get(name) == content
    assert await store.get("disk.img", offset=2) == content[2:]
    assert await store.get("disk.img", offset=2, length=2 * MIB) == content[2:][: 2 * MIB]
    assert await store.get_ranges("disk.img", [(0, 3), (2, 2 * MIB), (size, 9)]) == [
        content[:3],
        content[2:][: 2 * MIB],
        b"",
    ]
    assert (await store.get_to("disk.img", str(tmp_path / "copy"))).size == size
    assert (tmp_path / "copy").read_bytes() == content
    await store.get_to("disk.img", tmp_path / "copy", offset=1, replace=True)
    assert (tmp_path / "copy").read_bytes() == content[1:]
    async with store.stream("disk.img") as pieces:
        assert await pieces.read() == content


async def test_progress_ends_with_all(store: AsyncStore, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(noise(3 * MIB))
    heard: list[tuple[int, int | None]] = []
    note = lambda done, total: heard.append((done, total))  # noqa: E731
    for step in (
        store.put(path, progress=note),
        store.get("file", progress=note),
        store.get_to("file", tmp_path / "copy", progress=note),
        store.put(path.read_bytes(), "bytes", progress=note),
    ):
        await step
        assert heard[-1] == (3 * MIB, 3 * MIB), heard
        heard.clear()


async def test_many_files(store: AsyncStore, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    outcomes = [outcome async for outcome in store.put_many([(tmp_path / "a", "a"), (tmp_path / "none", "b")])]
    assert {outcome.path: type(outcome.error) for outcome in outcomes} == {
        str(tmp_path / "a"): type(None),
        str(tmp_path / "none"): pfsd.NotFound,
    }
    (outcome,) = [outcome async for outcome in store.get_many([("a", "b/c")], tmp_path)]
    assert outcome.result is not None and (tmp_path / "b" / "c").read_bytes() == b"a"
    with pytest.raises(pfsd.NotFound, match="nowhere"):
        await anext(store.get_many([("a", "a")], tmp_path / "nowhere"))


async def test_what_local_paths_lack_is_a_pfsd_error(store: AsyncStore, tmp_path: Path) -> None:
    await store.put(b"1", "one")
    with pytest.raises(pfsd.NotFound, match=r"reading .*none: No such file"):
        await store.put(tmp_path / "none")
    with pytest.raises(pfsd.NotFound, match="No such file"):
        await store.get_to("one", tmp_path / "none" / "one")
    with pytest.raises(pfsd.NotFound, match="No such file"):
        await store.get_to("one", tmp_path / "none" / "one", offset=1)
    (tmp_path / "one").touch()
    with pytest.raises(pfsd.Exists):
        await store.get_to("one", tmp_path / "one")
    with pytest.raises(pfsd.UsageError, match="name"):
        await store.put(b"1")


async def test_a_file_that_is_replaced_while_it_is_got_is_one_of_the_two(store: AsyncStore) -> None:
    one, two = bytes(2 * MIB), noise(2 * MIB)
    await store.put(one, "name")

    async def replace() -> None:
        for content in (two, one) * 5:
            await store.put(content, "name", replace=True)

    replacing = asyncio.create_task(replace())
    while not replacing.done():
        with suppress(pfsd.Changed):  # each time that it was tried, somebody was faster
            assert await store.get("name") in (one, two)
    await replacing
    assert await store.get("name") == one


# --- connections --------------------------------------------------------------------------------


async def test_small_requests_share_a_connection(shared_daemon: Daemon, store: AsyncStore) -> None:
    await asyncio.gather(*(store.put(b"%d" % number, f"n{number}") for number in range(100)))
    contents = await asyncio.gather(*(store.get(f"n{number}") for number in range(100)))
    assert contents == [b"%d" % number for number in range(100)]
    await until_clients(shared_daemon, 1)


async def test_transfers_have_connections_of_their_own_but_not_too_many(
    shared_daemon: Daemon, store: AsyncStore
) -> None:
    started = 0
    go_on = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        nonlocal started
        started += 1
        yield noise(MIB)
        await go_on.wait()

    puts = [asyncio.create_task(store.put(slow(), f"slow{number}")) for number in range(6)]
    await until_clients(shared_daemon, 5)  # four, and the one that all share
    await store.put(b"small", "small")  # is not held up
    assert started == 4
    go_on.set()
    await asyncio.gather(*puts)
    await until_clients(shared_daemon, 5)  # kept
    async with store.stream("slow0") as pieces:
        await pieces.read()
    await until_clients(shared_daemon, 5)  # used again


async def test_a_slow_reader_stalls_nobody(store: AsyncStore) -> None:
    await store.put(noise(20 * MIB), "big")
    async with store.stream("big") as pieces:
        await anext(pieces)
        await asyncio.sleep(0)
        assert len(await store.get("big")) == 20 * MIB
        assert (await store.stat("big")).file.size == 20 * MIB


async def test_streams_and_writers_do_not_wait_for_each_other(shared_daemon: Daemon) -> None:
    async with AsyncStore(f"127.0.0.1:{shared_daemon.port}", connections=1, timeout=20) as store:
        await store.put(noise(3 * MIB), "source", replace=True)
        async with store.stream("source") as pieces, store.open("copy", "wb") as one, store.open("other", "wb") as two:
            async for piece in pieces:
                await one.write(piece)
                await two.write(piece)
        assert await store.get("copy") == await store.get("other") == await store.get("source")
        await store.delete("copy", "other")


async def test_a_pool_that_stands_still_is_told(shared_daemon: Daemon) -> None:
    async with AsyncStore(f"127.0.0.1:{shared_daemon.port}", connections=1, timeout=1) as store:
        begun = asyncio.Event()

        async def stuck() -> AsyncIterator[bytes]:
            begun.set()
            yield b"1"
            await asyncio.Event().wait()

        putting = asyncio.create_task(store.put(stuck(), "stuck"))
        await asyncio.wait({putting, asyncio.ensure_future(begun.wait())}, return_when=asyncio.FIRST_COMPLETED)
        assert not putting.done()
        with pytest.raises(pfsd.TimedOut, match="connections="):
            await store.put(iter([b"2"]), "waits")
        putting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await putting
        await store.put(iter([b"2"]), "waits", replace=True)  # its turn is free again
        await store.delete("waits")
        assert not await store.exists("stuck")


async def test_what_becomes_of_many_files_may_be_looked_at_on_the_way(
    shared_daemon: Daemon, store: AsyncStore, tmp_path: Path
) -> None:
    (tmp_path / "f").write_bytes(b"f")
    await store.put(bytes(3 * MIB), "big")
    async with asyncio.timeout(20), AsyncStore(store.address, connections=1) as one:
        async for outcome in one.put_many([(tmp_path / "f", "f")]):
            assert outcome.error is None
            assert len(await one.get("big")) == 3 * MIB
        async for got in one.get_many([("f", "copy")], tmp_path):
            assert got.error is None
            assert len(await one.get("big")) == 3 * MIB


async def test_what_waits_when_a_store_is_closed_does_not_begin(shared_daemon: Daemon) -> None:
    begun = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        begun.set()
        yield bytes(MIB)
        await asyncio.Event().wait()

    store = AsyncStore(f"127.0.0.1:{shared_daemon.port}", connections=1)
    steps = [asyncio.create_task(store.put(slow(), "closed 0"))]
    await begun.wait()
    steps += [asyncio.create_task(store.put(iter([b"late"]), f"closed {at}")) for at in (1, 2)]
    steps.append(asyncio.create_task(store.exists("closed 0")))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    await store.close()
    assert [type(each) for each in await asyncio.gather(*steps, return_exceptions=True)] == [pfsd.ConnectionLost] * 4
    async with AsyncStore(store.address) as other:
        assert [file.name async for file in other.list("closed *") if file.status == "ready"] == []
    await until_clients(shared_daemon, 0)  # it may have heard of nothing yet
    await asyncio.to_thread(wait_for, lambda: len(shared_daemon.ask(b'list "closed *"\n')) == 1)


async def test_leaving_a_stream_early_ends_its_connection(shared_daemon: Daemon, store: AsyncStore) -> None:
    await store.put(noise(30 * MIB), "big")
    async with store.stream("big") as pieces:
        await anext(pieces)
        await until_clients(shared_daemon, 2)
    await until_clients(shared_daemon, 1)
    await asyncio.to_thread(shared_daemon.wait_until, "requests", "1")


async def test_closing_and_dropping_end_all_connections(shared_daemon: Daemon) -> None:
    await until_clients(shared_daemon, 0)
    store = AsyncStore(f"127.0.0.1:{shared_daemon.port}")
    await store.put(iter([b"1"]), "one", replace=True)
    await until_clients(shared_daemon, 1)
    await store.ping()
    await until_clients(shared_daemon, 2)
    await store.close()
    await store.close()
    await until_clients(shared_daemon, 0)
    with pytest.raises(pfsd.UsageError, match="closed"):
        await store.ping()
    store = AsyncStore(f"127.0.0.1:{shared_daemon.port}")
    await store.ping()
    await until_clients(shared_daemon, 1)
    del store
    gc.collect()
    await until_clients(shared_daemon, 0)


def test_each_event_loop_needs_its_own(shared_daemon: Daemon) -> None:
    store = AsyncStore(f"127.0.0.1:{shared_daemon.port}")
    for _ in range(2):  # a loop that has ended is no obstacle
        asyncio.run(store.ping())
    with asyncio.Runner() as runner:
        runner.run(store.ping())
        with pytest.raises(pfsd.UsageError, match="loop"):
            asyncio.run(store.ping())
        runner.run(store.close())


def test_arguments_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PFSD_SERVER", raising=False)
    assert AsyncStore().address == "127.0.0.1:7373"
    monkeypatch.setenv("PFSD_SERVER", "unix:/a")
    assert AsyncStore().address == "unix:/a"
    assert AsyncStore("h:1").address == "h:1"
    for wrong in ({"address": "here"}, {"connections": 0}, {"timeout": 0}, {"connect_timeout": -1}):
        with pytest.raises(pfsd.UsageError):
            AsyncStore(**wrong)  # type: ignore[arg-type]


def test_pickled_it_has_its_arguments_and_no_connection(shared_daemon: Daemon) -> None:
    store = AsyncStore(f"127.0.0.1:{shared_daemon.port}", connections=2, timeout=7)

    async def use(store: AsyncStore) -> None:
        async with store:
            await store.ping()
            again = pickle.loads(pickle.dumps(store))
            assert again.__reduce__() == store.__reduce__()
            async with again:
                await again.ping()

    asyncio.run(use(store))


# --- connections that break ---------------------------------------------------------------------


async def test_a_daemon_that_is_restarted_between_requests(idle_daemon: Daemon) -> None:
    idle_daemon.config(listen=["127.0.0.1:0", "unix:socket"])
    idle_daemon.start()
    async with AsyncStore(f"unix:{idle_daemon.socket_path}") as store:
        await store.put(b"1", "one")
        await store.put(iter([b"1"]), "two")
        for change in (
            lambda: store.rename("one", "three"),
            lambda: store.put(iter([b"4"]), "four"),
        ):
            # Within one step of the loop, which cannot have heard of it.
            idle_daemon.restart()
            await change()
        assert {file.name async for file in store.list()} == {b"two", b"three", b"four"}


class Scripted:
    """A daemon that answers a request as `answers` say, one each; None breaks the connection."""

    def __init__(self, *answers: bytes | None) -> None:
        self.requests: list[bytes] = []
        self._answers = iter(answers)

    async def __call__(self, reader: Reader, writer: Writer) -> None:
        while True:
            tag, line = await request(reader)
            self.requests.append(line)
            answer = next(self._answers)
            if answer is None:
                return
            writer.write(tag + b" " + answer.replace(b"@", tag) + b"\n")


FILE = b"FILE id=5 status=ready size=3 stored=3 parts=1 created=1 name=n"


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pfsd.asyncstore.PAUSES", (0.0,) * len(PAUSES))


@pytest.mark.usefixtures("no_pauses")
async def test_what_reads_is_repeated(tmp_path: Path) -> None:
    daemon = Scripted(
        None, FILE + b"\n@ OK stat id=5 etag=e", None, b"DATA 3\nabc@ OK get id=5 size=3 bytes=3 etag=e name=n"
    )
    async with fake_daemon(tmp_path, daemon) as where, AsyncStore(where) as store:
        assert (await store.stat("n")).file.id == 5
        assert await store.get("n") == b"abc"
    assert daemon.requests == [b'stat "n"'] * 2 + [b'get "n" - length=1048576'] * 2


@pytest.mark.usefixtures("no_pauses")
async def test_half_a_reply_is_not_used(tmp_path: Path) -> None:
    cut = iter([True, False])

    async def script(reader: Reader, writer: Writer) -> None:
        tag, _ = await request(reader)
        if next(cut):
            writer.write(tag + b" DATA 3\nxy")
            return
        writer.write(tag + b" DATA 3\nabc" + tag + b" OK get id=5 size=3 bytes=3 etag=e name=n\n")
        await reader.read()

    async with fake_daemon(tmp_path, script) as where, AsyncStore(where) as store:
        assert await store.get("n") == b"abc"


@pytest.mark.usefixtures("no_pauses")
async def test_a_list_that_breaks_goes_on_behind_what_has_come(tmp_path: Path) -> None:
    row = b"FILE id=%d status=ready size=3 stored=3 parts=1 created=1 name=n%d\n"
    cut = iter([True, False])

    async def script(reader: Reader, writer: Writer) -> None:
        tag, _ = await request(reader)
        if next(cut):
            writer.write(b"".join(tag + b" " + row % (number, number) for number in (1, 2)))
            return
        writer.write(b"".join(tag + b" " + row % (number, number) for number in (1, 2, 3)))
        writer.write(tag + b" OK list files=3 size=9 stored=9\n")
        await reader.read()

    async with fake_daemon(tmp_path, script) as where, AsyncStore(where) as store:
        assert [file.id async for file in store.list()] == [1, 2, 3]


@pytest.mark.usefixtures("no_pauses")
async def test_reading_is_given_up_at_last(tmp_path: Path) -> None:
    daemon = Scripted(*[None] * 100)
    async with fake_daemon(tmp_path, daemon) as where, AsyncStore(where) as store:
        with pytest.raises(pfsd.ConnectionLost):
            await store.ping()
    assert len(daemon.requests) == len(PAUSES) + 1


async def test_what_changes_is_sent_once(tmp_path: Path) -> None:
    daemon = Scripted(*[None] * 10)
    async with fake_daemon(tmp_path, daemon) as where, AsyncStore(where) as store:
        for change in (store.delete("a"), store.rename("a", "b"), store.put_path("a"), store.exit()):
            with pytest.raises(pfsd.OutcomeUnknown, match="not known"):
                await change
    assert [line.split()[0] for line in daemon.requests] == [b"delete", b"rename", b"put", b"exit"]


async def test_a_put_that_breaks_says_what_is_known(tmp_path: Path) -> None:
    requests = 0

    async def script(reader: Reader, writer: Writer) -> None:
        nonlocal requests
        requests += 1
        _, line = await request(reader)
        if b"size=chunked" in line:
            await reader.readexactly(2 * MIB)
        else:
            await reader.readexactly(int(line.rpartition(b"=")[2]))

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield bytes(MIB)
            await asyncio.sleep(0)

    async with fake_daemon(tmp_path, script) as where, AsyncStore(where) as store:
        with pytest.raises(pfsd.OutcomeUnknown, match="not known"):
            await store.put(b"abc", "n")
        with pytest.raises(pfsd.ConnectionLost, match="nothing was stored") as caught:
            await store.put(endless(), "n")
        assert not isinstance(caught.value, pfsd.OutcomeUnknown)
        with pytest.raises(pfsd.OutcomeUnknown):
            await store.put(iter([bytes(2 * MIB)]), "n")
    assert requests == 3


async def test_nobody_there_is_said_at_once_and_to_all(tmp_path: Path) -> None:
    async with AsyncStore(f"127.0.0.1:{free_port()}") as store:
        with pytest.raises(pfsd.CannotConnect, match="no daemon answers"):
            await store.ping()
        with pytest.raises(pfsd.CannotConnect):
            await store.put(iter([b"1"]), "n")
        outcomes = await asyncio.gather(*(store.ping() for _ in range(100)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {pfsd.CannotConnect}


@pytest.fixture
def deaf() -> Iterator[str]:
    """The address of someone who takes no newcomers, since enough of them wait."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        where = server.getsockname()
        waiting = []
        for _ in range(4):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(where)
            waiting.append(one)
        yield f"127.0.0.1:{where[1]}"
        for one in waiting:
            one.close()


async def test_a_connection_that_is_not_made_in_time(deaf: str) -> None:
    async with AsyncStore(deaf, connect_timeout=0.1) as store:
        outcomes = await asyncio.gather(*(store.ping() for _ in range(20)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {pfsd.ConnectTimedOut}
    assert isinstance(outcomes[0], pfsd.TimedOut) and isinstance(outcomes[0], pfsd.CannotConnect)


async def _hung(reader: Reader, writer: Writer) -> None:
    while await reader.read(1 << 16):
        pass


async def test_a_hung_daemon_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(bytes(2 * MIB))
    async with fake_daemon(tmp_path, _hung) as where, AsyncStore(where, timeout=0.2) as store:
        for reading in (
            store.ping(),
            store.get("n"),
            store.get_to("n", tmp_path / "n"),
            anext(store.list()),
            store.verify(),
        ):
            with pytest.raises(pfsd.ConnectionTimedOut, match=r"0\.2 seconds"):
                await reading
        for change in (
            store.delete("n"),
            store.put(b"1", "n"),
            store.put(iter([bytes(2 * MIB)]), "n"),
            store.put(tmp_path / "big"),
        ):
            with pytest.raises(pfsd.OutcomeTimedOut):
                await change
    assert sorted(os.listdir(tmp_path)) == ["big"]


async def test_a_daemon_that_takes_long_is_waited_for(tmp_path: Path) -> None:
    pings = 0

    async def script(reader: Reader, writer: Writer) -> None:
        nonlocal pings
        first, _ = await request(reader)
        while pings < 4:  # each after half the time
            tag, line = await request(reader)
            assert line == b"ping"
            pings += 1
            writer.write(tag + b" OK ping\n")
        writer.write(first + b" OK verify files=1 parts=1 bytes=1\n")
        await reader.read()

    async with fake_daemon(tmp_path, script) as where, AsyncStore(where, timeout=0.4) as store:
        assert (await store.verify()).sound
    assert pings == 4


async def test_an_upload_whose_source_is_slow_is_waited_for(shared_daemon: Daemon) -> None:
    async with AsyncStore(f"127.0.0.1:{shared_daemon.port}", timeout=0.2) as store:

        async def slow() -> AsyncIterator[bytes]:
            yield b"1"
            await asyncio.sleep(0.5)  # the case itself: nothing moves for longer than the timeout
            yield b"2"

        assert (await store.put(slow(), "slow", replace=True)).size == 2


# --- what is cut short leaves nothing -------------------------------------------------------------


async def test_cancelled_transfers_leave_nothing_and_disturb_nobody(daemon: Daemon, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "big").write_bytes(noise(40 * MIB))
    async with AsyncStore(f"127.0.0.1:{daemon.port}") as store:
        begun = asyncio.Event()

        async def stuck() -> AsyncIterator[bytes]:
            yield noise(3 * MIB)
            begun.set()
            await asyncio.Event().wait()

        for start in (
            lambda: store.put(stuck(), "one"),
            lambda: store.put(home / "big", progress=lambda done, total: begun.set()),
        ):
            begun.clear()
            task = asyncio.create_task(start())
            await begun.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.to_thread(daemon.wait_until_listed, 0)
        await asyncio.to_thread(daemon.wait_until_packs, 0)
        assert daemon.staged() == []
        stored = await store.put(home / "big")
        for get in (lambda: store.get("big"), lambda: store.get_to("big", home / "copy")):
            task = asyncio.create_task(get())
            await asyncio.to_thread(daemon.wait_until, "requests", "2")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert sorted(os.listdir(home)) == ["big"]
        assert (await store.stat(stored.id)).file.status == "ready"
        await asyncio.to_thread(daemon.wait_until, "requests", "1")
    assert stored.parts == 40 * MIB // PART


async def test_a_killed_daemon_and_half_an_upload(daemon: Daemon) -> None:
    where = f"unix:{daemon.socket_path}"
    async with AsyncStore(where) as store:
        file = await store.open("half", "xb")
        await file.write(noise(5 * MIB))
        await store.ping()
        daemon.kill()
        with pytest.raises(pfsd.ConnectionLost, match="nothing was stored"):
            while True:
                await file.write(noise(MIB))
        daemon.start()
        assert [found async for found in store.list()] == []
    daemon.wait_until_packs(0)
    assert daemon.staged() == []
