"""Directories on the client's side: the files below one, and the places of files below another.

Knows paths and what may be in them, never content or the connection.
"""

from __future__ import annotations

import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator

from pfsd import protocol
from pfsd.errors import Denied, RequestError, from_os_error

#: Directories held open: files come in the order they were stored in, so most are where the last one was.
MOST_OPEN = 64
_OPEN_FOLDER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

#: Called with a path that is passed over, and why: a word for its type, or the error.
PassedOver = Callable[[str, "str | RequestError"], None]
#: Called with a path relative to the directory, and whether it is a directory: whether to leave it out.
LeaveOut = Callable[[str, bool], bool]


def walk(
    folder: str, prefix: bytes, passed_over: PassedOver, leave_out: LeaveOut = lambda *_: False
) -> Iterator[tuple[str, bytes]]:
    """Each regular file below a directory, in the order of names: its path, and `prefix`/its path from there.

    Symlinks are not followed. What is no regular file, or cannot be read, is reported and passed over; what is left
    out is not even that.
    """
    # Not recursive: directories may be nested deeper than Python's calls.
    inside = [_entries(folder, passed_over)]
    prefixes = [prefix]
    while inside:
        entry = next(inside[-1], None)
        if entry is None:
            inside.pop()
            prefixes.pop()
            continue
        name = prefixes[-1] + b"/" + os.fsencode(entry.name)
        try:
            if leave_out(os.fsdecode(name[len(prefix) + 1 :]), entry.is_dir(follow_symlinks=False)):
                continue
            if entry.is_file(follow_symlinks=False):
                yield entry.path, name
            elif entry.is_dir(follow_symlinks=False):
                inside.append(_entries(entry.path, passed_over))
                prefixes.append(name)
            else:
                passed_over(entry.path, _type_of(entry))
        except OSError as error:
            passed_over(entry.path, from_os_error(error, f"reading {entry.path}"))


def _entries(folder: str, passed_over: PassedOver) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return iter(sorted(found, key=lambda entry: entry.name))
    except OSError as error:
        passed_over(folder, from_os_error(error, f"reading {folder}"))
        return iter(())


def _type_of(entry: os.DirEntry[str]) -> str:
    mode = entry.stat(follow_symlinks=False).st_mode
    if stat.S_ISLNK(mode):
        return "a symlink"
    return "a socket" if stat.S_ISSOCK(mode) else "a FIFO" if stat.S_ISFIFO(mode) else "a device"


def local_path(name: bytes) -> str:
    """The relative path that the name of a stored file makes; Denied when it would lead elsewhere, or nowhere."""
    if any(component in (b"", b".", b"..") for component in name.split(b"/")):
        raise Denied(f"{protocol.show(name)} makes no path below a directory: empty, . and .. are no names of files")
    return os.fsdecode(name)


class Folders:
    """Directories below a root, made when they are not there. No symlink below the root is ever followed."""

    def __init__(self, root: str) -> None:
        self._root = os.open(root, _OPEN_FOLDER)
        self._open: OrderedDict[str, int] = OrderedDict()  # the one used last stands last

    def descriptor(self, path: str) -> int:
        """A directory's descriptor, for use before the next call; "" is the root.

        Raises Denied when a component is no directory, OSError.
        """
        if not path:
            return self._root
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        parent, _, name = path.rpartition("/")
        found = self._enter(self.descriptor(parent), name, path)
        if len(self._open) >= MOST_OPEN:
            os.close(self._open.popitem(last=False)[1])
        self._open[path] = found
        return found

    def _enter(self, parent: int, name: str, path: str) -> int:
        try:
            return os.open(name, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=parent)
        except FileNotFoundError:
            os.mkdir(name, dir_fd=parent)
            return os.open(name, _OPEN_FOLDER | os.O_NOFOLLOW, dir_fd=parent)
        except NotADirectoryError:
            raise Denied(f"{path} is no directory (a symlink is not followed) and is left alone") from None

    def close(self) -> None:
        """Close all."""
        for descriptor in (self._root, *self._open.values()):
            os.close(descriptor)
        self._open.clear()
