"""fsspec's own suite for file systems, on a real daemon: copy, get, put, open and pipe."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness import Daemon

abstract = pytest.importorskip("fsspec.tests.abstract", reason="fsspec is not installed")

from pfsd.fs import PfsFileSystem  # noqa: E402


class PfsFixtures(abstract.AbstractFixtures):  # type: ignore[misc]
    @pytest.fixture
    def fs(self, shared_daemon: Daemon) -> PfsFileSystem:
        return PfsFileSystem("127.0.0.1", shared_daemon.port)

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
