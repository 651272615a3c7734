from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from pfsd.commands import put
from pfsd.commands.engine import Progress
from pfsd.errors import NoSpace
from pfsd.session import Feed, Session


async def test_a_failed_upload_gets_its_memory_back_only_when_the_connection_has_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    happened = []

    class Upload:
        def __init__(self, *_: object) -> None: ...

        async def __aenter__(self) -> Upload:
            return self

        async def __aexit__(self, *_: object) -> None:
            happened.append("memory given back")

        async def complete(self, _: asyncio.Future[None]) -> None:
            raise NoSpace("full")

    monkeypatch.setattr(put, "Upload", Upload)
    connection: Any = SimpleNamespace(stop_filling=lambda: happened.append("let go"))
    service: Any = SimpleNamespace(engine=None, token=None)
    session, feed = Session(service, connection, 1), Feed()
    feed.filling = True
    with pytest.raises(NoSpace):
        await session._put_content(b"name", False, 3, feed, Progress())
    assert happened == ["let go", "memory given back"]
