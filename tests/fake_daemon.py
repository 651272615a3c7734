"""A daemon that says what a test tells it to, for what the real one never does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter
Script = Callable[[Reader, Writer], Awaitable[None]]


@asynccontextmanager
async def fake_daemon(home: Path, script: Script) -> AsyncIterator[str]:
    """Serve every connection with the script, on a Unix socket below `home`; yields its address."""
    failures: list[Exception] = []

    async def serve(reader: Reader, writer: Writer) -> None:
        try:
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except Exception as error:
            failures.append(error)
        finally:
            writer.close()

    path = home / "fake"
    server = await asyncio.start_unix_server(serve, str(path), limit=1 << 21)
    async with server:
        yield f"unix:{path}"
        server.close()
    path.unlink(missing_ok=True)
    assert not failures, failures


async def request(reader: Reader) -> tuple[bytes, bytes]:
    """The tag and the rest of the next request line."""
    line = await reader.readuntil(b"\n")
    tag, _, rest = line[:-1].partition(b" ")
    assert tag.startswith(b"@")
    return tag, rest
