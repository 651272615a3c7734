"""Directories on the client's side: what is found below one, and that nothing lands outside another."""

from __future__ import annotations

import inspect
import os
import socket
import sys
from pathlib import Path

import pytest

from pfsd import tree
from pfsd.errors import Denied, IoError, NotFound, RequestError
from pfsd.tree import Folders, local_path, walk

Passed = list[tuple[str, str | RequestError]]


def walked(folder: Path) -> tuple[list[tuple[str, bytes]], Passed]:
    passed: Passed = []
    return list(walk(str(folder), b"top", lambda *what: passed.append(what))), passed


def test_every_regular_file_is_found_in_order(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a", "c/d/e", "\udcff"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "empty").mkdir()
    found, passed = walked(tmp_path)
    assert [name for _, name in found] == [b"top/a", b"top/b/1", b"top/b/2", b"top/c/d/e", b"top/\xff"]
    assert [path for path, _ in found] == [str(tmp_path / name) for name in ("a", "b/1", "b/2", "c/d/e", "\udcff")]
    assert passed == []


def test_directories_may_be_deeper_than_calls(tmp_path: Path) -> None:
    deep = 200
    (tmp_path / ("d/" * deep)).mkdir(parents=True)
    (tmp_path / ("d/" * deep) / "file").touch()
    calls = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + deep // 2)
    try:
        found, passed = walked(tmp_path)
    finally:
        sys.setrecursionlimit(calls)
    assert [name for _, name in found] == [b"top/" + b"d/" * deep + b"file"]
    assert passed == []


def test_what_is_no_regular_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "loop").symlink_to(".")
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    found, passed = walked(tmp_path)
    assert [name for _, name in found] == [b"top/file"]
    assert [(os.path.basename(path), what) for path, what in passed] == [
        ("link", "a symlink"),
        ("loop", "a symlink"),
        ("pipe", "a FIFO"),
        ("socket", "a socket"),
    ]


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    found, passed = walked(tmp_path / "none")
    assert found == []
    ((path, error),) = passed
    assert path == str(tmp_path / "none") and isinstance(error, NotFound)


@pytest.mark.parametrize("name", [b"a", b"a/b", b"a b/c\xff", b"...", b"-"])
def test_names_that_are_paths(name: bytes) -> None:
    assert os.fsencode(local_path(name)) == name


@pytest.mark.parametrize("name", [b"", b"/a", b"a/", b"a//b", b".", b"..", b"a/../b", b"../a", b"a/.", b"/"])
def test_names_that_lead_elsewhere(name: bytes) -> None:
    with pytest.raises(Denied, match="below a directory"):
        local_path(name)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_folders_are_made_and_few_are_open(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MOST_OPEN", 3)
    before = descriptors()
    folders = Folders(str(root))
    for round in range(2):
        for number in range(10):
            where = folders.descriptor(f"{number}/deep/deeper")
            with open(os.open(f"file{round}", os.O_CREAT | os.O_WRONLY, dir_fd=where), "w") as file:
                file.write(str(number))
    assert descriptors() - before == 4
    assert (root / "7/deep/deeper/file1").read_text() == "7"
    assert os.fstat(folders.descriptor("")).st_ino == root.stat().st_ino
    folders.close()
    assert descriptors() == before


def test_no_symlink_below_the_root_is_followed(root: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / "link").symlink_to(elsewhere)
    (root / "real").mkdir()
    (root / "real/link").symlink_to("../real")
    (root / "file").touch()
    folders = Folders(str(root))
    for path in ("link", "link/deeper", "real/link", "file", "file/deeper"):
        with pytest.raises(Denied, match="left alone"):
            folders.descriptor(path)
    folders.close()
    assert list(elsewhere.iterdir()) == []


def test_a_root_may_be_a_symlink_but_must_be_there(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    folders = Folders(str(tmp_path / "link"))
    folders.descriptor("made")
    folders.close()
    assert (root / "made").is_dir()
    with pytest.raises(FileNotFoundError):
        Folders(str(tmp_path / "none"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_cannot_be_read_is_an_error(root: Path) -> None:
    (root / "closed").mkdir(mode=0)
    found, passed = walked(root)
    assert found == []
    ((_, error),) = passed
    assert isinstance(error, IoError)
