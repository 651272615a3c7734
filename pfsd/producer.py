"""What a command prints, as the content of a file that is stored only if the command succeeds.

A pipe cannot tell that: who reads it sees the same end of the content whether its writer was done or has failed.
"""

from __future__ import annotations

import asyncio
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncGenerator

from pfsd.errors import IoError

PIECE = 1 << 20
#: How long a command that is no longer needed gets to end by itself.
GRACE_SECONDS = 5.0


async def output(command: str) -> AsyncGenerator[bytes, None]:
    """Run a command of the shell, `sh`, and yield what it prints; its standard error stays where ours is.

    Raises IoError at the end if the command failed. Whoever leaves early ends the command.
    """
    process = await asyncio.create_subprocess_shell(command, stdin=DEVNULL, stdout=PIPE, limit=PIECE)
    assert process.stdout is not None
    try:
        while piece := await process.stdout.read(PIECE):
            yield piece
        code = await process.wait()
    finally:
        await _end(process)
    if code:
        raise IoError(f"the command {_told(code)}, so nothing was stored: {command}")


def _told(code: int) -> str:
    return f"failed with exit code {code}" if code > 0 else f"was ended by {signal.Signals(-code).name}"


async def _end(process: Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        await asyncio.wait_for(process.wait(), GRACE_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()
