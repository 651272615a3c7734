"""Packs in the memory of one process, for tests and for trying things out. Nothing outlives the process."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType

from pfsd.codecs import Buffer
from pfsd.errors import Corrupt, Missing
from pfsd.stores import PackInfo


def open_store(path: str, *, sync: bool, epoch: str) -> MemoryStore:
    """A new, empty store; `path`, `sync` and `epoch` make no difference."""
    return MemoryStore()


class MemoryStore:
    """A store in two dicts; `pfsd.stores.PackStore` says what the methods promise."""

    def __init__(self) -> None:
        self._staged: dict[str, bytes] = {}
        self._packs: dict[int, bytes] = {}

    def stage(self, token: str, pieces: Iterable[Buffer]) -> int:
        if token in self._staged:
            raise FileExistsError(errno.EEXIST, "a token is used once", token)
        content = b"".join(pieces)
        self._staged[token] = content
        return len(content)

    def publish(self, staged: Sequence[tuple[str, int]]) -> None:
        for token, pack in staged:
            if pack in self._packs:
                raise FileExistsError(errno.EEXIST, "a pack is never replaced", str(pack))
            if token not in self._staged:
                raise FileNotFoundError(errno.ENOENT, "nothing is staged as", token)
            self._packs[pack] = self._staged.pop(token)

    def sync_published(self, packs: Iterable[int]) -> None:
        pass  # memory is as durable as it gets

    def discard(self, tokens: Iterable[str]) -> None:
        for token in tokens:
            self._staged.pop(token, None)

    def open(self, pack: int) -> MemoryReader:
        content = self._packs.get(pack)
        if content is None:
            raise Missing(f"pack {pack:016x} is not in the store", pack=pack)
        return MemoryReader(content, pack)

    def delete(self, packs: Iterable[int]) -> int:
        return sum(len(self._packs.pop(pack, b"")) for pack in packs)

    def list(self) -> Iterator[PackInfo]:
        for pack, content in sorted(self._packs.items()):
            yield PackInfo(pack, len(content))

    def sweep_staged(self) -> int:
        return 0  # there were no earlier daemons


class MemoryReader:
    """An open pack."""

    def __init__(self, content: bytes, pack: int) -> None:
        self._content = content
        self._pack = pack
        self.size = len(content)

    def read(self, offset: int, length: int) -> bytes:
        if offset + length > self.size:
            raise Corrupt(
                f"pack {self._pack:016x} ends at {self.size} bytes, before {offset + length}", pack=self._pack
            )
        return self._content[offset : offset + length]

    def read_into(self, offset: int, view: memoryview) -> int:
        view[:] = self.read(offset, len(view))
        return len(view)

    def __enter__(self) -> MemoryReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
