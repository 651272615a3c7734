"""fsspec's own suite for file systems, on a real daemon: copy, get, put, open and pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.harness import Daemon

abstract = pytest.importorskip("fsspec.tests.abstract", reason="fsspec is not installed")

from pfsd.fs import PfsFileSystem  # noqa: E402


@pytest.fixture(scope="module")
def hasty_daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One daemon for all tests, which store some two thousand files that need not be on the disk."""
    with Daemon(tmp_path_factory.mktemp("suite"), durability="none") as daemon:
        daemon.start()
        yield daemon


class PfsFixtures(abstract.AbstractFixtures):  # type: ignore[misc]
    @pytest.fixture
    def fs(self, hasty_daemon: Daemon) -> PfsFileSystem:
        return PfsFileSystem("127.0.0.1", hasty_daemon.port)

    @pytest.fixture
    def fs_path(self) -> str:
        return "suite"

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return lambda *parts: "/".join(parts)

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return False


class TestCopy(abstract.AbstractCopyTests, PfsFixtures):  # type: ignore[misc]
    pass


class TestGet(abstract.AbstractGetTests, PfsFixtures):  # type: ignore[misc]
    pass


class TestPut(abstract.AbstractPutTests, PfsFixtures):  # type: ignore[misc]
    pass


class TestOpen(abstract.AbstractOpenTests, PfsFixtures):  # type: ignore[misc]
    pass


class TestPipe(abstract.AbstractPipeTests, PfsFixtures):  # type: ignore[misc]
    pass
