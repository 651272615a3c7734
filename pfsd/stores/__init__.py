"""Where packs are kept: the contract that every store fulfils, and how one is opened.

A store knows packs by their number and as opaque bytes; never what is in them, nor which of them are in use.
All methods block, and may be called from several threads and processes at once. What the operating system
says comes out as OSError; a pack that is not there is `Missing`, one that is not what it should be `Corrupt`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from types import TracebackType
from typing import NamedTuple, Protocol

from pfsd.codecs import Buffer
from pfsd.errors import StoreUnavailable, from_os_error

#: Scheme of a store's URL -> the module that has its `open_store(path, *, sync, epoch)`.
SCHEMES = {"file": "pfsd.stores.local", "memory": "pfsd.stores.memory"}


class PackInfo(NamedTuple):
    """A published pack and its size in bytes."""

    pack: int
    size: int


class PackReader(Protocol):
    """An open pack. It can be read to its end even if it is deleted meanwhile."""

    size: int

    def read(self, offset: int, length: int) -> bytes:
        """Exactly these bytes; Corrupt when the pack ends before."""
        ...

    def read_into(self, offset: int, view: memoryview) -> int:
        """Fill `view` from `offset` on and return its length; Corrupt when the pack ends before."""
        ...

    def __enter__(self) -> PackReader: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class PackStore(Protocol):
    """A store of packs, which are written once and never changed."""

    def stage(self, token: str, pieces: Iterable[Buffer]) -> int:
        """Write a pack aside, durably, for `publish` to give it its number; returns its size in bytes.

        For I/O processes. `token` must be new for each attempt. A failure leaves nothing behind, also when
        `pieces` raises.
        """
        ...

    def publish(self, staged: Sequence[tuple[str, int]]) -> None:
        """Give staged packs, by token, their numbers: from here on they exist. Only the daemon does this.

        Never replaces a pack: FileExistsError. Those published before a failure stay published.
        """
        ...

    def sync_published(self, packs: Iterable[int]) -> None:
        """Return when it is durable that these packs are published."""
        ...

    def discard(self, tokens: Iterable[str]) -> None:
        """Throw away what was staged and not published; unknown tokens are no error."""
        ...

    def open(self, pack: int) -> PackReader:
        """Open a pack for reading. Missing when there is none, Corrupt when it is no file."""
        ...

    def delete(self, packs: Iterable[int]) -> int:
        """Remove packs and return the bytes freed; those that are gone already count nothing.

        When some cannot be removed the others are, then the first OSError is raised.
        """
        ...

    def list(self) -> Iterator[PackInfo]:
        """All published packs by number; nothing staged, and nothing that others put there."""
        ...

    def sweep_staged(self) -> int:
        """Remove what other daemons than this one's epoch staged; returns how many packs that were."""
        ...


def publish_durably(store: PackStore, staged: Sequence[tuple[str, int]]) -> None:
    """Give staged packs, by token, their numbers, and return when that is durable. NoSpace, IoError."""
    try:
        store.publish(staged)
        store.sync_published([pack for _, pack in staged])
    except OSError as error:
        raise from_os_error(error, "publishing packs") from error


def open_store(url: str, *, sync: bool, epoch: str) -> PackStore:
    """Open the store that `url` names (`file:/absolute/path`, `memory:`), making it if there is none.

    `epoch` is a name for one life of the daemon: what is staged in it is litter to every other. Without
    `sync` nothing waits for the disk, and a power cut may lose packs.
    """
    scheme, _, path = url.partition(":")
    module = SCHEMES.get(scheme)
    if module is None:
        raise StoreUnavailable(f"no kind of store is called {scheme!r}; there are {', '.join(sorted(SCHEMES))}")
    store: PackStore = import_module(module).open_store(path, sync=sync, epoch=epoch)
    return store
