"""Names with `/` in them, shown as files in directories.

A daemon has names and no directories: one is there as long as a name begins with it and a `/`. Paths are text, where
bytes that are not UTF-8 are surrogate escapes. A path is the name itself, apart from what paths cannot tell:

* A path's leading slashes do not count, so a name that begins with `/` has `./` in front: `.//etc/motd`.
* A path's trailing slashes do not count either: a name that ends in `/` is a directory, and no file.
* No directory has an empty name, so `a//b` is a file of `a`.

Knows names and paths, never the daemon.
"""

from __future__ import annotations

import re
from typing import Any

from pfsd.results import FileInfo

Info = dict[str, Any]

#: Statuses of files that can be read, at least in part.
READABLE = ("ready", "damaged")
_ROOTED_NAME = re.compile(rb"(\./)*/")
_ROOTED_PATH = re.compile(rb"(\./)+/")
_MAGIC = re.compile(rb"[*?[]")


def name_of(path: str) -> bytes:
    """The name that a path stands for."""
    name = path.encode("utf-8", "surrogateescape")
    return name[2:] if _ROOTED_PATH.match(name) else name


def path_of(name: bytes) -> str:
    """The path that stands for a name."""
    path = b"./" + name if _ROOTED_NAME.match(name) else name
    return path.decode("utf-8", "surrogateescape")


def pattern(folder: str, stem: str = "") -> bytes | None:
    """The daemon's pattern for all names in a directory, those that begin with `stem`; None stands for all."""
    prefix = _prefix(folder) + stem.encode("utf-8", "surrogateescape")
    return _MAGIC.sub(rb"[\g<0>]", prefix) + b"*" if prefix else None


def file_info(file: FileInfo, etag: str | None = None) -> Info:
    """A file as fsspec describes it. `created` and `mtime`, in seconds since 1970, are one: content never changes."""
    info = {
        "name": path_of(file.name),
        "type": "file",
        "size": file.size,
        "id": file.id,
        "status": file.status,
        "stored": file.stored,
        "created": file.created,
        "mtime": file.created,
    }
    return info if etag is None else info | {"etag": etag}


def folder_info(path: str) -> Info:
    """A directory as fsspec describes it."""
    return {"name": path, "type": "directory", "size": 0}


class Tree:
    """The files and directories below one, to a depth; made from names as they come."""

    def __init__(self, root: str, depth: int | None = None) -> None:
        self.root = root
        #: Directory -> path -> what is right in it.
        self.files: dict[str, dict[str, Info]] = {}
        self.folders: dict[str, dict[str, Info]] = {}
        self._markers: list[int] = []  # ids of files whose names end in `/`
        self._prefix = _prefix(root)
        self._depth = depth

    def __bool__(self) -> bool:
        """Whether the directory is there."""
        return bool(self.files or self.folders)

    def add(self, file: FileInfo) -> None:
        """Take in a file below the root, if it can be read."""
        if file.status not in READABLE:
            return
        folder, at, depth = self.root, len(self._prefix), 1
        while (slash := file.name.find(b"/", at)) > at:
            inner = path_of(file.name[:slash])
            self.folders.setdefault(folder, {})[inner] = folder_info(inner)
            if depth == self._depth:
                return
            folder, at, depth = inner, slash + 1, depth + 1
        inside = self.files.setdefault(folder, {})
        if file.name.endswith(b"/"):
            self._markers.append(file.id)
        else:
            info = file_info(file)
            inside[info["name"]] = info

    def entries(self, folder: str) -> list[Info]:
        """What is right in a directory, by name."""
        found = [*self.folders.get(folder, {}).values(), *self.files.get(folder, {}).values()]
        return sorted(found, key=lambda info: str(info["name"]))

    def ids(self) -> list[int]:
        """The ids of all that makes up the tree."""
        return [info["id"] for inside in self.files.values() for info in inside.values()] + self._markers

    def all(self, withdirs: bool) -> dict[str, Info]:
        """All files by path, with `withdirs` also directories. Where both have a path, it is the file's."""
        kinds = (self.folders, self.files) if withdirs else (self.files,)
        found = {path: info for kind in kinds for inside in kind.values() for path, info in inside.items()}
        return dict(sorted(found.items()))


def _prefix(folder: str) -> bytes:
    return name_of(folder) + b"/" if folder else b""
