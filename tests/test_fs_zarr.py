"""zarr's own suite for stores, on a real daemon."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest

pytest.importorskip("fsspec", reason="fsspec is not installed")
suite = pytest.importorskip("zarr.testing.store", reason="zarr 3 is not installed")

from zarr.core.buffer import Buffer, cpu  # noqa: E402
from zarr.storage import FsspecStore  # noqa: E402

from pfsd.fs import PfsFileSystem  # noqa: E402
from tests.harness import Daemon  # noqa: E402

NUMBERS = count()


@pytest.fixture(scope="module")
def hasty_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests, whose files need not be on the disk."""
    with Daemon(tmp_path_factory.mktemp("suite"), durability="none") as daemon:
        daemon.start()
        yield daemon


class TestStore(suite.StoreTests[FsspecStore, cpu.Buffer]):  # type: ignore[misc]
    store_cls = FsspecStore
    buffer_cls = cpu.Buffer

    @pytest.fixture
    def store_kwargs(self, hasty_daemon: Daemon) -> dict[str, Any]:
        fs = PfsFileSystem("127.0.0.1", hasty_daemon.port, asynchronous=True)
        return {"fs": fs, "path": f"store{next(NUMBERS)}"}

    @pytest.fixture
    def store(self, store_kwargs: dict[str, Any]) -> FsspecStore:
        return FsspecStore(**store_kwargs)

    async def get(self, store: FsspecStore, key: str) -> Buffer:
        content: bytes = await store.fs._cat_file(f"{store.path}/{key}")
        return cpu.Buffer.from_bytes(content)

    async def set(self, store: FsspecStore, key: str, value: Buffer) -> None:
        await store.fs._pipe_file(f"{store.path}/{key}", value.to_bytes())

    def test_store_repr(self, store: FsspecStore) -> None:
        assert "PfsFileSystem" in repr(store)

    def test_store_supports_writes(self, store: FsspecStore) -> None:
        assert store.supports_writes

    def test_store_supports_listing(self, store: FsspecStore) -> None:
        assert store.supports_listing
