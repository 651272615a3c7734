"""From a command's name to what it does; what is left to say when it is cut short."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping

from pfsd.client import Client
from pfsd.console import change, look
from pfsd.console.get import cat, get
from pfsd.console.output import Output, exit_code
from pfsd.console.put import put
from pfsd.errors import Cancelled, PfsdError
from pfsd.progress import Watch

#: Returns an exit code.
Command = Callable[[Client, Namespace, Output, Watch], Awaitable[int]]

COMMANDS: Mapping[str, Command] = {
    "put": put,
    "get": get,
    "cat": cat,
    "list": look.list_files,
    "du": look.du,
    "stat": look.stat,
    "delete": change.delete,
    "rename": change.rename,
    "verify": change.verify,
    "ps": look.ps,
    "stats": look.stats,
    "ping": look.ping,
    "exit": change.exit,
}

#: What is known of a command whose user did not wait for its end.
_LEFT: Mapping[str, str] = {
    "put": "of what was under way each file is stored whole or not at all",
    "get": "no target is incomplete",
    "delete": "each of the files is deleted or is not; list tells",
    "rename": "it is done or is not; list tells",
    "exit": "the daemon stops when its commands are done",
}
_LEFT_TO_RESUME: Mapping[str, str] = {
    "put": "put --resume goes on from there",
    "get": "no target is incomplete; get --resume goes on from there",
}


async def run(client: Client, arguments: Namespace, out: Output, watch: Watch) -> int:
    """Run a parsed command; errors are shown. Returns an exit code; BrokenPipeError when stdout is closed."""
    try:
        return await COMMANDS[arguments.command](client, arguments, out, watch)
    except PfsdError as error:
        out.error(error)
        return exit_code(error)


def cut_short(arguments: Namespace | None, how: str) -> Cancelled:
    """What to tell a user who ended a command in its middle: `how`, and what became of things."""
    command = getattr(arguments, "command", "")
    resumed = getattr(arguments, "resume", False)
    left = (_LEFT_TO_RESUME if resumed else _LEFT).get(command)
    return Cancelled(f"{how}; {left}" if left else how)
