"""What handlers owe the connection."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from pfsd.activity import Activity
from pfsd.calls import Access, Call, Feed
from pfsd.commands import put
from pfsd.errors import NoSpace
from pfsd.handlers import HANDLERS
from pfsd.protocol import parse_request


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
    unused: Any = SimpleNamespace(engine=None)
    feed = Feed()
    feed.filling = True
    request = parse_request(b"put - name=name size=3")
    command = Activity().begin(request, "unix")
    with pytest.raises(NoSpace):
        await HANDLERS["put"](Call(unused, connection, request, unused, feed, None, Access(None, True), command))
    assert happened == ["let go", "memory given back"]
