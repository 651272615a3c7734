"""The commands of the protocol as a table: syntax, options, help. Data only; both ends read it.

`check` holds a parsed request against the table, so that no command has to look for stray words itself.
"""

from __future__ import annotations

from typing import NamedTuple

from pfsd.errors import UnknownCommand, UsageError
from pfsd.protocol import Request


class Verb(NamedTuple):
    """One command: how many positional words it takes, which options, and what `help` says of it."""

    usage: str
    least: int
    most: int | None
    options: frozenset[str]
    does: str
    example: str


def _verb(usage: str, least: int, most: int | None, options: str, does: str, example: str) -> Verb:
    return Verb(usage, least, most, frozenset(options.split()), does, example)


VERBS: dict[str, Verb] = {
    "put": _verb(
        "put SOURCE|- [name=NAME] [size=N|chunked|eof] [replace=yes] [resume=yes|KEY] [progress=SECONDS]",
        1,
        1,
        "name size replace resume progress",
        "store a file of the daemon's machine, or (-) the content that follows the line",
        "put photos/big.tar name=big.tar",
    ),
    "get": _verb(
        "get FILE TARGET|- [replace=yes] [offset=N] [length=N] [on_error=fail|zero] [sync=yes] [resume=yes] "
        "[progress=SECONDS]",
        2,
        2,
        "replace offset length on_error sync resume progress",
        "write a stored file to a path of the daemon's machine, or (-) send it as DATA frames",
        "get big.tar restored/big.tar",
    ),
    "cat": _verb(
        "cat FILE [offset=N] [length=N]",
        1,
        1,
        "offset length",
        "send the raw bytes, then close the connection",
        "cat big.tar",
    ),
    "list": _verb("list [PATTERN]", 0, 1, "", "the stored files; PATTERN is a glob over names", "list *.tar"),
    "stat": _verb("stat FILE [parts=yes]", 1, 1, "parts", "one file, and its parts", "stat big.tar parts=yes"),
    "delete": _verb(
        "delete FILE ...",
        1,
        None,
        "",
        "remove files for good; an unknown name among them removes none",
        "delete big.tar",
    ),
    "rename": _verb(
        "rename FILE NAME [replace=yes]",
        2,
        2,
        "replace",
        "give a file another name",
        "rename big.tar old.tar",
    ),
    "verify": _verb(
        "verify [FILE ...] [progress=SECONDS]",
        0,
        None,
        "progress",
        "read and check every part of these files, or of all",
        "verify big.tar",
    ),
    "stats": _verb("stats", 0, 0, "", "counters: files, sizes, memory, processes, clients", "stats"),
    "ps": _verb("ps", 0, 0, "", "the commands that are running, and the I/O processes", "ps"),
    "ping": _verb("ping", 0, 0, "", "answers OK", "ping"),
    "hello": _verb("hello [proto=1]", 0, 0, "proto", "version, limits and state of this daemon", "hello proto=1"),
    "auth": _verb("auth TOKEN", 1, 1, "", "show the token of this daemon", "auth correct-horse"),
    "help": _verb("help [VERB]", 0, 1, "", "this list, or one command", "help put"),
    "quit": _verb("quit", 0, 0, "", "end the session; the daemon goes on", "quit"),
    "exit": _verb("exit", 0, 0, "", "shut the daemon down: running commands finish first", "exit"),
}

#: What changes the store, or ends the daemon: for the log.
CHANGES = frozenset({"put", "delete", "rename", "exit"})
#: What a client may say before it has shown the token.
BEFORE_AUTH = frozenset({"hello", "help", "auth", "ping", "quit"})


def check(request: Request) -> Verb:
    """The table's entry for a request; UnknownCommand or UsageError when they do not fit."""
    verb = VERBS.get(request.verb)
    if verb is None:
        raise UnknownCommand(f"pfsd has no command {request.verb}; it knows: {' '.join(VERBS)}")
    for key in request.options:
        if key not in verb.options:
            known = " ".join(f"{option}=" for option in sorted(verb.options)) or "none"
            raise UsageError(f"{request.verb} has no option {key}= (a word with = in it needs quotes); it has: {known}")
    count = len(request.words)
    if count < verb.least or (verb.most is not None and count > verb.most):
        raise UsageError(f"{request.verb} got {count} words; usage: {verb.usage} (quote words with spaces)")
    return verb
