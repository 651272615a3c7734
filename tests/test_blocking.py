"""`Store`: the library for programs without an event loop, in threads, forks, signals and at the end of programs."""

from __future__ import annotations

import gc
import inspect
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import pfsd
from pfsd import AsyncStore, Store, background
from tests.harness import Daemon, noise

MIB = 1 << 20
ROOT = Path(__file__).parent.parent


@pytest.fixture
def store(shared_daemon: Daemon) -> Iterator[Store]:
    with Store(f"127.0.0.1:{shared_daemon.port}") as store:
        if files := [file.id for file in store.list()]:
            store.delete(*files)
        yield store


def test_a_first_script(shared_daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("disk.img").write_bytes(noise(MIB))
    with pfsd.Store(f"127.0.0.1:{shared_daemon.port}") as store:
        store.put("disk.img")
        assert b"disk.img" in [file.name for file in store.list()]
        store.delete("disk.img")


def test_every_method(store: Store, tmp_path: Path) -> None:
    content = noise(2 * MIB + 5)
    store.ping()
    assert store.hello().proto == 1
    path = tmp_path / "disk.img"
    path.write_bytes(content)
    stored = store.put(path)
    assert store.get("disk.img") == content
    assert store.get_ranges(stored.id, [(1, 2), (3, 4)]) == [content[1:3], content[3:7]]
    assert store.get_to("disk.img", tmp_path / "copy").etag == stored.etag
    assert (tmp_path / "copy").read_bytes() == content
    with store.stream("disk.img") as pieces:
        assert b"".join(pieces) == content
    assert [outcome.error for outcome in store.put_many([(path, "a"), (path, "b")])] == [None, None]
    assert [outcome.error for outcome in store.get_many([("a", "a/1"), ("b", "a/2")], tmp_path)] == [None, None]
    assert (tmp_path / "a" / "2").read_bytes() == content
    assert store.rename("a", "c").name == b"c"
    assert (store.exists("a"), store.exists("c")) == (False, True)
    assert store.stat("c").file.size == len(content)
    assert store.verify("c").sound
    assert store.stats()["files"] == 3
    assert [file.name for file in store.list("?")] == [b"c", b"b"]
    assert store.delete("b", "c").files == 2
    with pytest.raises(pfsd.NotFound):
        store.get("b")


def test_its_methods_are_those_of_the_asynchronous_one() -> None:
    own = {name for name in vars(Store) if not name.startswith("_")}
    other = {name for name in vars(AsyncStore) if not name.startswith("_")}
    assert own - {"asynchronous"} == other - {"aclose", "open_reader", "open_writer"}
    for name in own & other - {"open", "stream", "address"}:
        signatures = [inspect.signature(getattr(kind, name)) for kind in (Store, AsyncStore)]
        assert signatures[0].parameters.keys() == signatures[1].parameters.keys(), name


def test_an_iterable_may_use_the_store_itself(store: Store) -> None:
    store.put(b"abc", "source")
    assert store.put((store.get("source") for _ in range(3)), "thrice").size == 9
    assert store.get("thrice") == b"abcabcabc"

    def broken() -> Iterator[bytes]:
        yield b"1"
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store.put(broken(), "broken")
    assert not store.exists("broken")


def test_a_callback_that_uses_the_store_is_told(store: Store) -> None:
    with pytest.raises(pfsd.UsageError, match="calls back"):
        store.put(b"1", "one", progress=lambda done, total: store.ping())
    store.ping()


def test_threads_share_a_store(store: Store) -> None:
    contents = {f"t{number}": noise(number * 100_000, number) for number in range(24)}
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda name: store.put(contents[name], name), contents))
        assert list(threads.map(store.get, contents)) == list(contents.values())


def test_a_list_can_be_left(store: Store) -> None:
    for number in range(5):
        store.put(b"", f"n{number}")
    files = store.list()
    assert next(files).name == b"n0"
    files.close()  # type: ignore[attr-defined]
    for file in store.list():
        store.stat(file.id)
        store.delete(file.id)
    assert list(store.list()) == []


def _use(store: Store) -> list[bytes]:
    return [file.name for file in store.list()]


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_other_processes_use_connections_of_their_own(store: Store, how: str) -> None:
    store.put(b"1", "one")
    with multiprocessing.get_context(how).Pool(1) as pool:
        assert pool.apply(_use, (store,)) == [b"one"]
    assert _use(store) == [b"one"]


def test_a_fork_in_the_middle_of_everything(store: Store) -> None:
    store.put(noise(3 * MIB), "big")
    with store.open("big") as file, store.open("half", "wb") as half:
        assert len(file.read(10)) == 10
        half.write(noise(2 * MIB))
        child = os.fork()
        if not child:
            code = 1
            try:
                code = 0 if store.get("big") == noise(3 * MIB) else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert file.read() == noise(3 * MIB)[10:]
    assert store.get("half") == noise(2 * MIB)


def test_a_forked_child_reads_on(store: Store) -> None:
    """What is fetched ahead while the process forks comes to the parent alone."""
    content = noise(40 * MIB)
    store.put(content, "ahead")
    with store.open("ahead") as file:
        for _ in range(6):  # in a row: much is on its way now
            assert file.raw.read(MIB)
        begin = file.raw.tell()
        child = os.fork()
        if not child:
            signal.alarm(5)
            code = 1
            try:
                code = 0 if file.raw.readall() == content[begin:] else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert file.raw.readall() == content[begin:]


def test_dropped_stores_close_their_connections(shared_daemon: Daemon) -> None:
    shared_daemon.wait_until("clients", "1")
    store = Store(f"127.0.0.1:{shared_daemon.port}")
    store.ping()
    shared_daemon.wait_until("clients", "2")
    again = pickle.loads(pickle.dumps(store))
    again.ping()
    shared_daemon.wait_until("clients", "3")
    del store, again
    gc.collect()
    shared_daemon.wait_until("clients", "1")


# --- whole programs -------------------------------------------------------------------------------


def program(text: str, daemon: Daemon) -> subprocess.Popen[str]:
    environ = os.environ | {"PYTHONPATH": str(ROOT), "PFSD_SERVER": f"127.0.0.1:{daemon.port}"}
    return subprocess.Popen(
        [sys.executable, "-c", text],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(
    "end",
    [
        "",
        "import os; files = store.list(); next(files)",
        "half = store.open('half', 'wb'); half.write(bytes(3 << 20))",
        "text = store.open('half', 'w'); text.write('half')",
        "import threading; endless = iter(lambda: bytes(9), 0)\n"
        "threading.Thread(target=store.put, args=(endless, 'half'), daemon=True).start()",
        "raise SystemExit(0)",
        "import atexit; atexit.register(store.ping)",
    ],
)
def test_programs_end_without_a_word_and_leave_nothing_behind(shared_daemon: Daemon, store: Store, end: str) -> None:
    store.put(b"1", "one")
    started = program(f"import pfsd\nstore = pfsd.Store()\nstore.ping()\n{end}", shared_daemon)
    assert started.communicate(timeout=30) == ("", "")
    assert started.returncode == 0
    shared_daemon.wait_until_listed(1)


def test_an_interrupt_gives_the_request_up(shared_daemon: Daemon, store: Store) -> None:
    text = """
import os, pfsd, signal, threading
store = pfsd.Store()

def source():
    yield bytes(2 << 20)
    os.kill(os.getpid(), signal.SIGINT)
    threading.Event().wait()

try:
    store.put(source(), "interrupted")
except KeyboardInterrupt:
    print(store.exists("interrupted"))
"""
    started = program(text, shared_daemon)
    assert started.communicate(timeout=30) == ("False\n", "")


def test_a_program_that_imports_pfsd_loads_nothing_else(shared_daemon: Daemon) -> None:
    text = "import sys, pfsd; print([name for name in sys.modules if name.startswith(('pfsd', 'asyncio'))])"
    assert program(text, shared_daemon).communicate(timeout=30)[0] == "['pfsd']\n"


def test_all_names_of_the_package_are_there() -> None:
    for name in pfsd.__all__:
        assert getattr(pfsd, name) is not None
    assert set(pfsd.__all__) <= set(dir(pfsd))
    with pytest.raises(AttributeError, match="no attribute 'store'"):
        _ = pfsd.nothing if hasattr(pfsd, "nothing") else pfsd.__getattr__("store")


# --- the thread -----------------------------------------------------------------------------------


async def _exits() -> None:
    raise SystemExit


def test_what_would_end_a_program_ends_no_thread() -> None:
    with pytest.raises(SystemExit):
        background.run(_exits())
    with pytest.raises(SystemExit):
        background.run(_exits())


def test_iterating_is_bounded() -> None:
    made = 0

    async def endless():  # type: ignore[no-untyped-def]
        nonlocal made
        while True:
            made += 1
            yield made

    taken: Callable[[], Iterator[int]] = lambda: background.iterate(endless)  # noqa: E731
    for number in taken():
        if number == 5000:
            break
    assert made < 5000 + 3 * background.AHEAD
    assert threading.active_count() < 20
