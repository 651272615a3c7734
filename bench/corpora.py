"""What is stored and retrieved: big files and a tree of small ones, made once and kept in a directory.

A slice of each, for a quick run, is an entry of its own in that directory.
"""

from __future__ import annotations

import lzma
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from daemon import PIECE_BYTES, Failed
from figures import MIB
from suite import say

LINUX_SOURCE = Path("/usr/src/linux-source-6.1.tar.xz")
USR_BYTES = 1 << 30
RANDOM_BYTES = 500 * MIB
#: The directory of the Linux source that is the tree.
TREE = "drivers/gpu"

QUICK_BYTES = 32 * MIB
#: A quick tree is the first files of this directory, which stands at the front of the tar.
QUICK_TREE = "Documentation"
QUICK_FILES = 300


def corpus(name: str, cache: Path, quick: bool = False) -> Path:
    """The file or tree of a corpus, or a slice of it, made if it is not in the cache; Failed if it cannot be."""
    path = cache / (f"{name}-quick" if quick else name)
    if not path.exists():
        say(f"making {path}")
        cache.mkdir(parents=True, exist_ok=True)
        half = path.with_name(f"{path.name}.tmp")
        remove(half)  # of a run that was killed
        try:
            CORPORA[name](half, quick)
            half.rename(path)
        finally:
            remove(half)
    return path.resolve()


def copy_some(source: IO[bytes], path: Path, most: int) -> None:
    """Write the first `most` bytes of a stream to a file."""
    with path.open("wb") as file:
        while (left := most - file.tell()) and (piece := source.read(min(left, PIECE_BYTES))):
            file.write(piece)


@contextmanager
def linux_source() -> Iterator[IO[bytes]]:
    """The tar of Linux 6.1 as Debian packs it."""
    if not LINUX_SOURCE.exists():
        raise Failed("corpora linux and tree are left out: on Debian, apt-get install linux-source-6.1")
    with lzma.open(LINUX_SOURCE) as unpacked:
        yield unpacked


def make_linux(path: Path, quick: bool) -> None:
    """The source of Linux 6.1 in one tar: text, shrinks to a sixth."""
    with linux_source() as source:
        copy_some(source, path, QUICK_BYTES if quick else LINUX_SOURCE.stat().st_size * 100)


def make_usr(path: Path, quick: bool) -> None:
    """The first GiB of a tar of /usr/lib: programs and libraries."""
    with subprocess.Popen(["tar", "-C", "/usr", "-cf", "-", "lib"], stdout=subprocess.PIPE) as tar:
        assert tar.stdout is not None
        copy_some(tar.stdout, path, QUICK_BYTES if quick else USR_BYTES)
        tar.kill()


def make_random(path: Path, quick: bool) -> None:
    """Bytes that nothing makes smaller."""
    with Path("/dev/urandom").open("rb") as source:
        copy_some(source, path, QUICK_BYTES if quick else RANDOM_BYTES)


def make_tree(path: Path, quick: bool) -> None:
    """The regular files of a directory of the Linux source, as small files are."""
    wanted, most = (QUICK_TREE, QUICK_FILES) if quick else (TREE, None)
    count = 0
    with linux_source() as source, tarfile.open(fileobj=source, mode="r|") as tar:
        for member in tar:
            _, _, name = member.name.partition("/")
            if not name.startswith(f"{wanted}/"):
                if count:  # a directory stands in one piece
                    break
                continue
            if not member.isfile():
                continue
            content = tar.extractfile(member)
            assert content is not None
            target = path / name.removeprefix(f"{wanted}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                shutil.copyfileobj(content, file)
            count += 1
            if count == most:
                break


#: Name -> what makes it, whole or a slice.
CORPORA: dict[str, Callable[[Path, bool], None]] = {
    "linux": make_linux,
    "usr": make_usr,
    "random": make_random,
    "tree": make_tree,
}
#: Those that are one file.
FILES = ("linux", "usr", "random")


# --- files and trees alike ----------------------------------------------------------------------


def files_of(path: Path) -> list[Path]:
    """All regular files below a directory, sorted; a file is its only one."""
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def bytes_of(path: Path) -> int:
    """The sizes of all files below a directory, or of the file."""
    return sum(file.stat().st_size for file in files_of(path))


def remove(path: Path) -> None:
    """Remove a file or a tree, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def warm(path: Path) -> None:
    """Have all of it in the page cache."""
    for file in files_of(path):
        with file.open("rb", buffering=0) as content:
            while content.read(PIECE_BYTES):
                pass
    os.sync()
