"""The file system `pfs://` on a real daemon: names as paths, reads of one version, writes that are whole or nothing."""

from __future__ import annotations

import asyncio
import errno
import gc
import io
import pickle
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed")

from pfsd.asyncstore import AsyncStore  # noqa: E402
from pfsd.errors import Busy, Corrupt, Denied, Internal, NoSpace, PfsdError, UsageError  # noqa: E402
from pfsd.exchange import CannotConnect, ConnectionLost, ConnectionTimedOut, TimedOut  # noqa: E402
from pfsd.fs import IDS_AT_ONCE, PfsFileSystem  # noqa: E402
from pfsd.fs.errors import as_os_error  # noqa: E402
from pfsd.fs.folders import name_of, path_of  # noqa: E402
from tests.harness import PATIENCE_SECONDS, Daemon, free_port, noise  # noqa: E402

MIB = 1 << 20


@pytest.fixture
def fs(shared_daemon: Daemon) -> Iterator[PfsFileSystem]:
    """The file system of the shared daemon; its store is empty."""
    fs = PfsFileSystem("127.0.0.1", shared_daemon.port)
    if ids := [row.split()[1].removeprefix(b"id=") for row in shared_daemon.ask(b"list\n")[:-1]]:
        shared_daemon.ask(b"delete %b\n" % b" ".join(ids))
    yield fs


def put(daemon: Daemon, name: bytes, content: bytes = b"x") -> None:
    """Store a file without the file system; a name as it stands on the wire."""
    row = daemon.ask(b'put - name="%b" size=%d\n%b' % (name, len(content), content))[-1]
    assert row.startswith(b"OK put "), row


def listed(daemon: Daemon) -> int:
    return len(daemon.ask(b"list\n")) - 1


@pytest.fixture
def patterns(monkeypatch: pytest.MonkeyPatch) -> list[bytes | None]:
    """What the daemon is asked to list."""
    asked: list[bytes | None] = []
    original = AsyncStore.list

    def spy(self: AsyncStore, pattern: Any = None) -> Any:
        asked.append(pattern)
        return original(self, pattern)

    monkeypatch.setattr(AsyncStore, "list", spy)
    return asked


# --- URLs and instances -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "path", "options"),
    [
        ("pfs://store.example:7400/a/b.csv", "a/b.csv", {"host": "store.example", "port": 7400}),
        ("pfs://store.example/a", "a", {"host": "store.example"}),
        ("pfs://[::1]:7400/a", "a", {"host": "::1", "port": 7400}),
        ("pfs://[::1]/a", "a", {"host": "::1"}),
        ("pfs:///a/b", "a/b", {}),
        ("pfs://store.example:7400", "", {"host": "store.example", "port": 7400}),
        ("pfs:///what?#%20/", "what?#%20", {}),
        ("/a/", "a", {}),
        ("a//b", "a//b", {}),
    ],
)
def test_urls(url: str, path: str, options: dict[str, Any]) -> None:
    assert PfsFileSystem._strip_protocol(url) == path
    assert PfsFileSystem._strip_protocol(path) == path
    assert PfsFileSystem._get_kwargs_from_urls(url) == options
    if url.startswith("pfs://"):
        again = PfsFileSystem(**options).unstrip_protocol(path)
        assert PfsFileSystem._strip_protocol(again) == path
        assert PfsFileSystem._get_kwargs_from_urls(again) == options


def test_a_url_with_a_port_that_is_none() -> None:
    with pytest.raises(ValueError, match="pfs://HOST:PORT/NAME"):
        fsspec.open("pfs://host:http/x")


@pytest.mark.parametrize(
    ("options", "address"),
    [
        ({}, "127.0.0.1:7373"),
        ({"host": "a"}, "a:7373"),
        ({"port": 1}, "127.0.0.1:1"),
        ({"host": "::1", "port": 7400}, "[::1]:7400"),
        ({"host": "a", "tls": True}, "tls://a:7373"),
        ({"host": "a", "ca": "cert.pem"}, "tls://a:7373"),
        ({"socket": "/run/pfsd/socket"}, "unix:/run/pfsd/socket"),
    ],
)
def test_addresses(options: dict[str, Any], address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PFSD_SERVER", raising=False)
    assert PfsFileSystem(**options).address == address


def test_the_environment_names_the_daemon_where_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFSD_SERVER", "tls://b:1")
    assert PfsFileSystem(skip_instance_cache=True).address == "tls://b:1"
    assert PfsFileSystem("a", 2, skip_instance_cache=True).address == "a:2"


def test_an_instance_connects_to_nobody_and_is_kept() -> None:
    port = free_port()
    fs = fsspec.filesystem("pfs", host="127.0.0.1", port=port)
    assert isinstance(fs, PfsFileSystem)
    assert fs is fsspec.url_to_fs(f"pfs://127.0.0.1:{port}/x")[0]
    assert fs is pickle.loads(pickle.dumps(fs))
    with pytest.raises(ConnectionRefusedError, match=str(port)) as raised:
        fs.ls("")
    assert isinstance(raised.value.__cause__, CannotConnect)
    with pytest.raises(ConnectionRefusedError):
        fs.isfile("x")  # which a daemon that is down must not answer with no


def test_a_unix_socket_and_a_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("correct-horse\n")
    with Daemon(tmp_path, token="correct-horse") as daemon:
        daemon.start()
        options = {"socket": str(daemon.socket_path), "token_file": str(tmp_path / "token")}
        with fsspec.open("pfs:///a", "wb", **options) as file:
            file.write(b"hello")
        fs = fsspec.filesystem("pfs", **options)
        assert fs.cat("a") == b"hello"
        assert b"correct-horse" not in pickle.dumps(fs)
        with pytest.raises(PermissionError, match="token"):
            fsspec.filesystem("pfs", socket=str(daemon.socket_path), token="wrong").cat("a")
        with pytest.raises(PermissionError, match="token"):
            fsspec.filesystem("pfs", socket=str(daemon.socket_path)).ls("")
        daemon.restart()
        assert fs.cat("a") == b"hello", "it connects anew"


# --- names --------------------------------------------------------------------------------------

ODD_NAMES = [
    b"a*b", b"a?b", b"a[b]c", b"[", b"]", b"a b", b"\xff\xfe", "käse".encode(), b'"', b"back\\slash", b"new\nline",
    b"..", b"../up", b"d/../e", b"./here", b".//there", b"/abs/olute", b"//two", b"d//e", b"d//", b"100%25", b"x::y",
    b"?q#f", b"a" * 1024,
]  # fmt: skip


@pytest.mark.parametrize("name", ODD_NAMES)
def test_any_name_makes_a_path_and_back(name: bytes) -> None:
    assert name_of(path_of(name)) == name
    if not name.endswith(b"/"):
        assert PfsFileSystem._strip_protocol(path_of(name)) == path_of(name)


def test_names_of_all_kinds_are_found_and_read(fs: PfsFileSystem, shared_daemon: Daemon) -> None:
    for name in ODD_NAMES:
        put(shared_daemon, b"".join(b"\\x%02x" % byte for byte in name), name)
    files = [name for name in ODD_NAMES if not name.endswith(b"/")]
    assert sorted(fs.find("")) == sorted(map(path_of, files))
    for path in fs.find(""):
        assert fs.cat_file(path) == name_of(path)
        assert fs.info(path)["name"] == path
        if "//" not in path:
            assert path in fs.ls(path.rpartition("/")[0], detail=False)
    walked = [f"{folder}/{name}" if folder else name for folder, _, names in fs.walk("") for name in names]
    assert sorted(walked) == sorted(map(path_of, files))
    fs.rm("", recursive=True)
    assert listed(shared_daemon) == 0, "also what ends in a slash"


def test_a_pattern_means_only_what_is_meant(fs: PfsFileSystem) -> None:
    fs.pipe({"a[1]/x": b"1", "a1/x": b"2", "a*/y": b"3", "ab/y": b"4"})
    assert fs.ls("a[1]", detail=False) == ["a[1]/x"]
    assert fs.find("a*") == ["a*/y"]
    assert fs.glob("a?/*") == ["a*/y", "a1/x", "ab/y"]


def test_the_path_of_a_file_is_no_pattern(fs: PfsFileSystem, tmp_path: Path) -> None:
    fs.pipe_file("a[1]", b"brackets")
    fs.pipe_file("a1", b"one")
    assert fs.cat("a[1]") == b"brackets" and fs.cat("a[12]") == {"a1": b"one"}
    fs.get("a[1]", str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == b"brackets"
    fs.rm(["a[1]"])
    assert fs.find("") == ["a1"]
    fs.rm("a[1]", recursive=True)  # a pattern, where there is no such file
    assert fs.find("") == []


# --- directories --------------------------------------------------------------------------------


@pytest.fixture
def tree(fs: PfsFileSystem) -> PfsFileSystem:
    fs.pipe({"top": b"1", "d/one": b"22", "d/sub/two": b"333", "d/sub/deep/three": b"4444", "dd/other": b"5"})
    return fs


def test_looking(tree: PfsFileSystem) -> None:
    assert tree.ls("", detail=False) == ["d", "dd", "top"] == tree.ls("/", detail=False)
    assert tree.ls("d", detail=False) == ["d/one", "d/sub"] == tree.ls("/d/", detail=False)
    assert tree.ls("top", detail=False) == ["top"]
    assert [info["type"] for info in tree.ls("d")] == ["file", "directory"]
    assert tree.find("d") == ["d/one", "d/sub/deep/three", "d/sub/two"]
    assert tree.find("d", maxdepth=1) == ["d/one"]
    assert tree.find("d", maxdepth=2, withdirs=True) == ["d", "d/one", "d/sub", "d/sub/deep", "d/sub/two"]
    assert tree.find("top") == ["top"] and tree.find("nothing") == []
    assert tree.glob("d/*") == ["d/one", "d/sub"]
    assert tree.glob("**/t*") == ["d/sub/deep/three", "d/sub/two", "top"]
    assert tree.du("d") == 9 and tree.du("d", total=False)["d/one"] == 2
    assert tree.exists("d/sub") and tree.isdir("d/sub") and not tree.isfile("d/sub")
    assert tree.isfile("top") and not tree.isdir("top") and not tree.exists("d/su")
    assert tree.info("d") == {"name": "d", "type": "directory", "size": 0}
    for look in (tree.info, tree.ls, tree.cat_file, tree.open, tree.created, tree.rm, tree.ukey):
        with pytest.raises(FileNotFoundError):
            look("d/su")


def test_walking(tree: PfsFileSystem) -> None:
    steps = [
        ("d", ["sub"], ["one"]),
        ("d/sub", ["deep"], ["two"]),
        ("d/sub/deep", [], ["three"]),
    ]
    assert list(tree.walk("d")) == steps
    assert list(tree.walk("d", topdown=False)) == steps[::-1]
    assert list(tree.walk("d", maxdepth=2)) == steps[:2]
    pruned = []
    for folder, folders, _ in tree.walk("d"):
        pruned.append(folder)
        folders[:] = [name for name in folders if name != "deep"]
    assert pruned == ["d", "d/sub"]
    detailed = next(iter(tree.walk("d", detail=True)))
    assert detailed[1]["sub"]["type"] == "directory" and detailed[2]["one"]["size"] == 2
    with pytest.raises(FileNotFoundError):
        list(tree.walk("nothing", on_error="raise"))


def test_the_daemon_lists_no_more_than_what_is_below(tree: PfsFileSystem, patterns: list[bytes | None]) -> None:
    tree.ls("d/sub")
    tree.find("a[b")
    tree.glob("d/o*")
    assert patterns == [b"d/sub/*", b"a[[]b/*", b"d/o*"]
    del patterns[:]
    tree.exists("top"), tree.isfile("nothing"), tree.cat_file("top"), tree.isdir("top")
    with pytest.raises(FileNotFoundError):
        tree.cat_file("nothing")  # as zarr does for every chunk that is not there
    assert patterns == []


def test_a_file_may_have_the_name_of_a_directory(fs: PfsFileSystem, shared_daemon: Daemon) -> None:
    fs.pipe({"a": b"file", "a/b": b"inside"})
    assert fs.info("a")["type"] == "file" and fs.cat_file("a") == b"file"
    assert fs.ls("a", detail=False) == ["a/b"]
    assert fs.find("") == ["a", "a/b"]
    fs.rm("a", recursive=True)
    assert listed(shared_daemon) == 0


def test_directories_are_there_while_something_is_in_them(fs: PfsFileSystem) -> None:
    fs.mkdir("new")
    fs.makedirs("new/deeper", exist_ok=True)
    assert not fs.exists("new")
    fs.touch("new/deeper/file")
    assert fs.isdir("new") and fs.isdir("new/deeper")
    with pytest.raises(OSError) as raised:
        fs.rmdir("new")
    assert raised.value.errno == errno.ENOTEMPTY
    fs.rm("new/deeper/file")
    fs.rmdir("new")
    assert not fs.exists("new")
    fs.touch("file")
    with pytest.raises(FileExistsError):
        fs.mkdir("file")


def test_nothing_is_remembered(fs: PfsFileSystem, shared_daemon: Daemon) -> None:
    assert fs.ls("") == [] and not fs.exists("late")
    put(shared_daemon, b"late")
    assert fs.ls("", detail=False) == ["late"] and fs.exists("late")


# --- what is known of a file --------------------------------------------------------------------


def test_info(fs: PfsFileSystem) -> None:
    fs.pipe_file("a", b"hello")
    info = fs.info("a")
    assert info.keys() >= {"name", "size", "type", "id", "etag", "status", "created", "mtime"}
    assert (info["name"], info["size"], info["type"], info["status"]) == ("a", 5, "file", "ready")
    assert fs.created("a") == fs.modified("a") and fs.created("a").timestamp() == info["created"]
    assert fs.created("a").tzinfo is not None
    before = fs.ukey("a"), fs.checksum("a")
    assert before == (info["etag"], int(info["etag"].partition("-")[0], 16))
    fs.pipe_file("a", b"hellO")
    assert fs.ukey("a") != before[0] and fs.checksum("a") != before[1]


# --- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (None, None),
        (0, 5),
        (3, None),
        (None, 7),
        (-4, None),
        (None, -4),
        (-8, -2),
        (5, 5),
        (8, 2),
        (90, 200),
        (200, 300),
    ],
)
def test_ranges_are_those_of_slices(fs: PfsFileSystem, start: int | None, end: int | None) -> None:
    content = bytes(range(100))
    fs.pipe_file("a", content)
    assert fs.cat_file("a", start, end) == content[start:end]
    assert fs.cat_ranges(["a", "a"], [start, 1], [end, 3]) == [content[start:end], content[1:3]]


def test_near_ranges_are_read_as_one(fs: PfsFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    content = noise(3 * MIB)
    fs.pipe({"a": content, "b": content[::-1]})
    asked = []
    original = PfsFileSystem._cat_file

    async def spy(self: PfsFileSystem, path: str, start: Any = None, end: Any = None, **kwargs: Any) -> bytes:
        asked.append((path, start, end))
        return await original(self, path, start, end, **kwargs)

    monkeypatch.setattr(PfsFileSystem, "_cat_file", spy)
    starts = [2 * MIB, 0, 100, 50, MIB, 0]
    ends = [2 * MIB + 7, 10, 200, 150, MIB + 1, 4]
    paths = ["a", "a", "a", "a", "a", "b"]
    contents = {"a": content, "b": content[::-1]}
    expected = [contents[path][start:end] for path, start, end in zip(paths, starts, ends, strict=True)]
    assert fs.cat_ranges(paths, starts, ends) == expected
    assert sorted(asked) == [("a", 0, 200), ("a", MIB, MIB + 1), ("a", 2 * MIB, 2 * MIB + 7), ("b", 0, 4)]
    del asked[:]
    assert fs.cat_ranges(paths, starts, ends, max_gap=2 * MIB) == expected
    assert sorted(asked) == [("a", 0, 2 * MIB + 7), ("b", 0, 4)]


def test_an_error_stands_in_the_place_of_its_ranges(fs: PfsFileSystem) -> None:
    fs.pipe_file("a", b"hello")
    first, second, third = fs.cat_ranges(["none", "a", "none"], [0, 0, 1], [1, 2, 2])
    assert isinstance(first, FileNotFoundError) and second == b"he" and isinstance(third, FileNotFoundError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(["none", "a"], [0, 0], [1, 2], on_error="raise")


def test_an_open_file_is_the_one_that_was_opened(fs: PfsFileSystem) -> None:
    old, new = noise(MIB, 1), noise(MIB, 2)
    fs.pipe_file("a", old)
    with fs.open("a", block_size=1000) as file:
        assert file.read(10) == old[:10]
        assert file.seek(-5, 2) == MIB - 5 and file.read() == old[-5:]
        pickled = pickle.dumps(file)
        assert pickle.loads(pickled).read() == b"" and pickle.loads(pickled).seek(0) == 0
        fs.pipe_file("a", new)
        file.seek(MIB // 2)
        with pytest.raises(OSError) as raised:
            file.read(10)
        assert raised.value.errno == errno.ESTALE and raised.value.filename == "a"
    with pytest.raises(OSError) as raised:
        pickle.loads(pickled)
    assert raised.value.errno == errno.ESTALE
    assert fs.open("a").read(10) == new[:10]


def test_text_lines_and_compression(fs: PfsFileSystem) -> None:
    with fs.open("t", "w", encoding="latin-1", newline="\n") as file:
        file.write("eins\nzwölf\n")
    with fs.open("t", "rt", encoding="latin-1") as file:
        assert list(file) == ["eins\n", "zwölf\n"]
    with fs.open("t.gz", "wb", compression="gzip") as file:
        file.write(b"hello")
    assert fs.cat_file("t.gz")[:2] == b"\x1f\x8b"
    with fs.open("t.gz", "rt", compression="infer") as file:
        assert file.read() == "hello"


def test_get_file_writes_whole_files_and_tells_how_far_it_is(fs: PfsFileSystem, tmp_path: Path) -> None:
    content = noise(3 * MIB)
    heard = []
    callback = fsspec.callbacks.Callback(hooks={"note": lambda size, value, **_: heard.append((value, size))})
    fs.put_file(_file(tmp_path / "source", content), "a", callback=callback)
    assert heard[-1] == (3 * MIB, 3 * MIB)
    del heard[:]
    (tmp_path / "target").write_bytes(b"old")
    fs.get_file("a", tmp_path / "target", callback=callback)
    assert heard[-1] == (3 * MIB, 3 * MIB)
    assert (tmp_path / "target").read_bytes() == content
    fs.get_file("a", tmp_path / "new" / "folder" / "target")
    with (tmp_path / "open").open("wb") as file:
        fs.get_file("a", file)
    assert (tmp_path / "open").read_bytes() == content
    with pytest.raises(FileNotFoundError):
        fs.get_file("none", tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with pytest.raises(FileNotFoundError):
        fs.put_file(tmp_path / "none", "none")
    assert not fs.exists("none")


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


# --- writing ------------------------------------------------------------------------------------


def test_nothing_shows_before_close(fs: PfsFileSystem, shared_daemon: Daemon) -> None:
    content = noise(3 * MIB)
    fs.pipe_file("a", b"old")
    with fs.open("a", "wb", block_size=100_000) as file:
        for at in range(0, len(content), 99_999):
            file.write(content[at : at + 99_999])
        shared_daemon.wait_until_listed(2)  # the new one is on its way
        assert fs.cat_file("a") == b"old" and fs.ls("")[0]["size"] == 3
    assert fs.cat_file("a") == content
    assert file.closed


@pytest.mark.parametrize("mode", ["wb", "xb", "w"])
@pytest.mark.parametrize("size", [10, 300_000])
def test_an_exception_leaves_nothing_behind(fs: PfsFileSystem, shared_daemon: Daemon, mode: str, size: int) -> None:
    content: Any = "x" * size if mode == "w" else b"x" * size
    with pytest.raises(ZeroDivisionError), fs.open("a", mode, block_size=65536) as file:
        file.write(content)
        1 / 0  # noqa: B018
    assert file.closed
    shared_daemon.wait_until_listed(0)
    with fs.open("a", mode) as file:
        file.write(content)
    assert fs.size("a") == size


def test_what_is_dropped_is_closed(fs: PfsFileSystem) -> None:
    fs.open("a", "w").write("hello")
    gc.collect()
    assert fs.cat_file("a") == b"hello"


def test_exclusive_creation(fs: PfsFileSystem) -> None:
    with fs.open("a", "xb") as file:
        file.write(b"first")
        fs.pipe_file("b", b"meanwhile")
    for refused in (lambda: fs.open("a", "xb"), lambda: fs.pipe_file("a", b"x", mode="create")):
        with pytest.raises(FileExistsError):
            refused()
    late = fs.open("c", "xb")
    fs.pipe_file("c", b"meanwhile")
    late.write(b"x")
    with pytest.raises(FileExistsError):
        late.close()
    assert fs.cat(["a", "b", "c"]) == {"a": b"first", "b": b"meanwhile", "c": b"meanwhile"}


def test_appending_is_refused(fs: PfsFileSystem) -> None:
    fs.pipe_file("a", b"x")
    with pytest.raises(OSError, match="cannot be appended to"):
        fs.open("a", "ab")
    assert fs.cat_file("a") == b"x"


def test_transactions(fs: PfsFileSystem, shared_daemon: Daemon) -> None:
    fs.pipe_file("a", b"old")
    with fs.transaction:
        for name in ("a", "b"):
            with fs.open(name, "wb", block_size=65536) as file:
                file.write(noise(300_000))
        unclosed = fs.open("c", "wb")
        unclosed.write(b"hello")
        assert fs.cat_file("a") == b"old" and listed(shared_daemon) == 1
    assert fs.cat_file("a") == fs.cat_file("b") == noise(300_000)
    assert fs.cat_file("c") == b"hello"
    with pytest.raises(ZeroDivisionError), fs.transaction:
        with fs.open("a", "wb") as file:
            file.write(b"new")
        1 / 0  # noqa: B018
    assert fs.cat_file("a") == noise(300_000)
    fs.pipe_file("a", b"behind it")
    with fs.open("a", "wb") as file:
        file.write(b"as usual")
    assert fs.cat_file("a") == b"as usual"


def test_all_who_replace_a_file_at_once_succeed(fs: PfsFileSystem) -> None:
    fs.cat_ranges([], [], [])
    contents = [noise(2 * MIB, seed) for seed in range(4)]

    async def all_at_once() -> None:
        await asyncio.gather(*(fs._pipe_file("a", content) for content in contents))

    fsspec.asyn.sync(fs.loop, all_at_once)
    assert fs.cat_file("a") in contents


# --- copy, move, remove -------------------------------------------------------------------------


def test_copies_are_other_files(fs: PfsFileSystem) -> None:
    content = noise(3 * MIB)
    fs.pipe({"a": content, "b": b"old"})
    fs.copy("a", "b")
    fs.cp_file("a", "a")
    assert fs.cat_file("b") == fs.cat_file("a") == content
    assert fs.info("b")["id"] != fs.info("a")["id"]
    with pytest.raises(FileNotFoundError):
        fs.cp_file("none", "c")


def test_moving_is_renaming(tree: PfsFileSystem) -> None:
    number = tree.info("top")["id"]
    tree.pipe_file("taken", b"old")
    tree.mv("top", "taken")
    assert tree.info("taken")["id"] == number and not tree.exists("top")
    before = {path.removeprefix("d/"): info["id"] for path, info in tree.find("d", detail=True).items()}
    with pytest.raises(IsADirectoryError):
        tree.mv("d", "e")
    tree.mv("d", "e", recursive=True)
    assert {path.removeprefix("e/"): info["id"] for path, info in tree.find("e", detail=True).items()} == before
    assert not tree.exists("d")
    tree.mv("taken", "taken")
    with pytest.raises(FileNotFoundError):
        tree.mv("none", "other")
    assert tree.exists("taken")


def test_removing(tree: PfsFileSystem, shared_daemon: Daemon) -> None:
    with pytest.raises(IsADirectoryError, match="recursive"):
        tree.rm("d")
    with pytest.raises(FileNotFoundError):
        tree.rm(["top", "nothing"])
    with pytest.raises(FileNotFoundError):
        tree.rm("nothing", recursive=True)
    assert listed(shared_daemon) == 5
    tree.rm("d", recursive=True, maxdepth=1)
    assert tree.find("d") == ["d/sub/deep/three", "d/sub/two"]
    tree.rm("d", recursive=True)
    assert tree.find("") == ["dd/other", "top"]
    tree.rm_file("top")
    tree.rm("d*/o*")
    assert listed(shared_daemon) == 0


def test_many_files_are_removed_by_few_requests(
    fs: PfsFileSystem, shared_daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"many/{number:03}" + "x" * 900 for number in range(50)]
    fs.pipe(dict.fromkeys(names, b"x"))
    sizes = []
    original = AsyncStore.delete

    async def spy(self: AsyncStore, *files: Any) -> Any:
        sizes.append(len(files))
        if len(sizes) == 1:
            await original(self, files[0])  # somebody else is quicker
        return await original(self, *files)

    monkeypatch.setattr(AsyncStore, "delete", spy)
    fs.rm("many", recursive=True)
    assert sizes == [50, 49] and IDS_AT_ONCE >= 50
    fs.pipe(dict.fromkeys(names, b"x"))
    del sizes[:]
    sizes.append(0)
    fs.rm(names)
    assert len(sizes) == 5 and listed(shared_daemon) == 0


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "kind", "number"),
    [
        (Denied("w"), PermissionError, errno.EACCES),
        (NoSpace("w"), OSError, errno.ENOSPC),
        (Busy("w"), OSError, errno.EBUSY),
        (Corrupt("w"), OSError, errno.EIO),
        (Internal("w"), OSError, errno.EIO),
        (UsageError("w"), OSError, errno.EINVAL),
        (TimedOut("w"), TimeoutError, errno.ETIMEDOUT),
        (ConnectionTimedOut("w"), TimeoutError, errno.ETIMEDOUT),
        (CannotConnect("w"), ConnectionRefusedError, errno.ECONNREFUSED),
        (ConnectionLost("w"), ConnectionResetError, errno.ECONNRESET),
    ],
)
def test_errors_are_those_of_file_systems(error: PfsdError, kind: type[OSError], number: int) -> None:
    raised = as_os_error(error, "a")
    assert type(raised) is kind and raised.errno == number
    assert (raised.strerror, raised.filename) == ("w", "a")


def test_the_words_are_the_daemons(fs: PfsFileSystem, shared_daemon: Daemon) -> None:
    words = shared_daemon.ask(b"stat none\n")[-1].decode().partition('message="')[2].rstrip('"')
    with pytest.raises(FileNotFoundError) as raised:
        fs.info("none")
    assert raised.value.strerror == words and raised.value.filename == "none"
    assert isinstance(raised.value.__cause__, PfsdError)
    for refused in (lambda: fs.pipe_file("x" * 1025, b""), lambda: fs.open("x" * 1025)):
        with pytest.raises(OSError, match="1024") as long:
            refused()
        assert long.value.errno == errno.EINVAL
    for refused in (lambda: fs.open("", "wb"), lambda: fs.cat_file("/"), lambda: fs.pipe_file("", b"")):
        with pytest.raises(IsADirectoryError):
            refused()
    fs.pipe_file("d/a", b"x")
    with pytest.raises(IsADirectoryError):
        fs.open("d")


def test_damage_is_an_error(fs: PfsFileSystem, shared_daemon: Daemon) -> None:
    before = set(shared_daemon.packs())
    fs.pipe_file("a", noise(MIB))
    (pack,) = set(shared_daemon.packs()) - before
    content = bytearray(pack.read_bytes())
    content[-1] ^= 1
    pack.chmod(stat.S_IRUSR | stat.S_IWUSR)
    pack.write_bytes(content)
    with pytest.raises(OSError, match="part") as raised:
        fs.cat_file("a")
    assert raised.value.errno == errno.EIO
    assert fs.cat_file("a", 0, 10) == noise(MIB)[:10]
    assert fs.info("a")["status"] == "damaged"


# --- URLs in URLs, other event loops ------------------------------------------------------------


def test_urls_in_urls(fs: PfsFileSystem, shared_daemon: Daemon, tmp_path: Path) -> None:
    url = f"pfs://127.0.0.1:{shared_daemon.port}"
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("inner.txt", "hello")
    fs.pipe_file("outer.zip", archive.getvalue())
    with fsspec.open(f"zip://inner.txt::{url}/outer.zip") as file:
        assert file.read() == b"hello"
    cached = f"simplecache::{url}/a"
    fs.pipe_file("a", b"once")
    for _ in range(2):
        with fsspec.open(cached, simplecache={"cache_storage": str(tmp_path)}) as file:
            assert file.read() == b"once"
        fs.pipe_file("a", b"changed")
    checked = {"cache_storage": str(tmp_path / "checked"), "check_files": True}
    for content in (b"changed", b"again"):
        fs.pipe_file("a", content)
        with fsspec.open(f"filecache::{url}/a", filecache=checked) as file:
            assert file.read() == content
    assert [str(one) for one in fsspec.open_files(f"{url}/*.zip")] == ["<OpenFile 'outer.zip'>"]
    mapper = fsspec.get_mapper(f"{url}/map")
    mapper["k"] = b"v"
    assert dict(mapper) == {"k": b"v"}


def test_each_event_loop_has_its_own_connections(shared_daemon: Daemon) -> None:
    fs = PfsFileSystem("127.0.0.1", shared_daemon.port, asynchronous=True)

    async def use() -> bytes:
        await fs._pipe_file("async", b"hello")
        content: bytes = await fs._cat_file("async")
        await fs.close()
        return content

    assert asyncio.run(use()) == asyncio.run(use()) == b"hello"


FORKS = """
import os, sys, fsspec
fs, path = fsspec.url_to_fs(sys.argv[1])
assert fs.cat(path) == b"hello"
pid = os.fork()
if pid == 0:
    os._exit(0 if fsspec.open(sys.argv[1]).open().read() == b"hello" else 1)
assert os.waitpid(pid, 0)[1] == 0
assert fs.cat(path) == b"hello"
"""


def test_a_forked_child_has_its_own_connections(fs: PfsFileSystem, shared_daemon: Daemon) -> None:
    fs.pipe_file("a", b"hello")
    command = [sys.executable, "-c", FORKS, f"pfs://127.0.0.1:{shared_daemon.port}/a"]
    subprocess.run(command, check=True, timeout=PATIENCE_SECONDS)


ENDS_EARLY = """
import sys, fsspec
files = [fsspec.open(sys.argv[1] + mode, mode).open() for mode in ("wb", "w")]
files[0].write(b"x" * 6_000_000)
files[1].write("x")
"""


def test_a_program_may_end_with_files_open(fs: PfsFileSystem, shared_daemon: Daemon) -> None:
    command = [sys.executable, "-c", ENDS_EARLY, f"pfs://127.0.0.1:{shared_daemon.port}/a"]
    subprocess.run(command, check=True, timeout=PATIENCE_SECONDS)
    shared_daemon.wait_until_listed(0)
