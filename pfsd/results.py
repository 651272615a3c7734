"""What the client library's commands return, and how it is read from reply lines.

Knows reply lines and plain values, never connections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pfsd import protocol
from pfsd.errors import Partial, RequestError
from pfsd.exchange import ConnectionLost
from pfsd.protocol import Reply

# --- results ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Hello:
    """What a daemon says of itself."""

    proto: int
    version: str
    max_line: int
    max_frame: int
    auth: str
    state: str


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file just stored; `stored` is its size after compression. Sizes are bytes."""

    id: int
    size: int
    stored: int
    parts: int
    etag: str
    name: bytes


@dataclass(frozen=True, slots=True)
class Retrieved:
    """A file, or a range of it, just read: `size` is the file's, `transferred` what was read of it."""

    id: int
    size: int
    transferred: int
    etag: str
    name: bytes


@dataclass(frozen=True, slots=True)
class FileInfo:
    """A file in the store. `status` is storing, ready, deleting or damaged; `created` is in seconds since 1970."""

    id: int
    status: str
    size: int
    stored: int
    parts: int
    created: int
    name: bytes


@dataclass(frozen=True, slots=True)
class PartInfo:
    """A part of a file. `offset` is its place in the file; `md5` is over its uncompressed bytes."""

    id: int
    seq: int
    offset: int
    size: int
    stored: int
    codec: str
    md5: str


@dataclass(frozen=True, slots=True)
class FileStat:
    """All about one file; `parts` is empty unless asked for."""

    file: FileInfo
    etag: str
    parts: tuple[PartInfo, ...]


@dataclass(frozen=True, slots=True)
class Deleted:
    """A file just deleted; `freed` bytes of the store."""

    id: int
    freed: int
    name: bytes


@dataclass(frozen=True, slots=True)
class DeleteReport:
    """What `delete` did."""

    files: int
    parts: int
    freed: int
    deleted: tuple[Deleted, ...]


@dataclass(frozen=True, slots=True)
class Renamed:
    """The new name of a file."""

    id: int
    name: bytes


@dataclass(frozen=True, slots=True)
class BadPart:
    """A part that fails its checks; `id` and `name` are the file's, `code` is the error word."""

    id: int
    seq: int
    offset: int
    code: str
    name: bytes


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What `verify` found; sound when no part is bad."""

    files: int
    parts: int
    bytes: int
    bad: tuple[BadPart, ...]

    @property
    def sound(self) -> bool:
        """Whether every part passed its checks."""
        return not self.bad


@dataclass(frozen=True, slots=True)
class Damage:
    """A range of a copy that was filled with zeros."""

    offset: int
    length: int
    seq: int


Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Result]):
    """What became of one file of many: its local path, and either a result or an error."""

    path: str
    result: Result | None = None
    error: RequestError | None = None


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A file of many that is being transferred: its path, the bytes done, and all there are, if that is known."""

    path: str
    done: int
    total: int | None


class DamagedCopy(Partial):
    """A copy was made as far as possible; `damage` says what is lost."""

    damage: tuple[Damage, ...] = ()


# --- from reply lines -----------------------------------------------------------------------------


def plain(value: bytes) -> int | str:
    """A field whose type is not known: a number if it looks like one."""
    return int(value) if value.isdigit() else value.decode("utf-8", "replace")


class Fields:
    """The fields of a reply line, typed. ConnectionLost when one that has to be there is not."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply

    def raw(self, key: str) -> bytes:
        """The bytes of a value."""
        try:
            return self._reply.fields[key]
        except KeyError:
            words = f"{self._reply.word} {self._reply.name}".strip()
            raise ConnectionLost(f"the daemon's answer {words} lacks {key}=") from None

    def number(self, key: str) -> int:
        """A value of plain digits."""
        value = self.raw(key)
        if not value.isdigit():
            raise ConnectionLost(f"the daemon's answer has {key}={protocol.show(value)}, which is no number")
        return int(value)

    def text(self, key: str) -> str:
        """A value as text."""
        return self.raw(key).decode("utf-8", "replace")

    def name(self) -> bytes:
        """The name of a file."""
        return self.raw("name")


def stored_file(reply: Reply) -> StoredFile:
    """What `OK put` says."""
    get = Fields(reply)
    return StoredFile(
        get.number("id"),
        get.number("size"),
        get.number("stored"),
        get.number("parts"),
        get.text("etag"),
        get.name(),
    )


def retrieved(reply: Reply) -> Retrieved:
    """What `OK get` says."""
    get = Fields(reply)
    return Retrieved(get.number("id"), get.number("size"), get.number("bytes"), get.text("etag"), get.name())


def file_info(get: Fields) -> FileInfo:
    """What a FILE row says."""
    return FileInfo(
        id=get.number("id"),
        status=get.text("status"),
        size=get.number("size"),
        stored=get.number("stored"),
        parts=get.number("parts"),
        created=get.number("created"),
        name=get.name(),
    )


def part_info(get: Fields) -> PartInfo:
    """What a PART row says."""
    return PartInfo(
        id=get.number("id"),
        seq=get.number("seq"),
        offset=get.number("offset"),
        size=get.number("size"),
        stored=get.number("stored"),
        codec=get.text("codec"),
        md5=get.text("md5"),
    )


def deleted(get: Fields) -> Deleted:
    """What a DELETED row says."""
    return Deleted(get.number("id"), get.number("freed"), get.name())


def damaged_copy(error: Partial, rows: Sequence[Reply]) -> DamagedCopy:
    """The error of a copy with zeros in it, with what its DAMAGE rows say."""
    copy = DamagedCopy(error.message, **error.fields)
    copy.damage = tuple(_damage(Fields(row)) for row in rows if row.word == "DAMAGE")
    return copy


def _damage(get: Fields) -> Damage:
    return Damage(get.number("offset"), get.number("length"), get.number("seq"))


def bad_part(get: Fields) -> BadPart:
    """What a BAD row says."""
    return BadPart(get.number("id"), get.number("seq"), get.number("offset"), get.text("code"), get.name())
