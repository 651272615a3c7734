"""What the FILEs of a command line mean: ids, names, and patterns over the names of stored files."""

from __future__ import annotations

import asyncio
import os
import re
from argparse import Namespace
from collections.abc import Sequence

from pfsd import protocol
from pfsd.client import Client, FileInfo, FileRef
from pfsd.console.output import show_name
from pfsd.errors import NotFound, NotReady

#: What makes a pattern of a word. A set in brackets does not by itself: names with brackets are common, and who says
#: `delete "a[1]"` twice must not find a1 gone.
_MAKES_PATTERN = re.compile(rb"[*?]")
_WILD = re.compile(rb"[*?\[]")
#: Of a request line, what is left to FILEs: it also holds a tag and a verb.
_LINE_BYTES = protocol.MAX_LINE - 100


def reference(word: str, arguments: Namespace) -> FileRef:
    """The id or the name that a word is."""
    if word.isascii() and word.isdigit() and not arguments.by_name:
        return protocol.parse_number("FILE", word.encode())
    return os.fsencode(word)


def is_pattern(word: str, arguments: Namespace) -> bool:
    """Whether a word may mean several files."""
    return not arguments.by_name and _MAKES_PATTERN.search(os.fsencode(word)) is not None


def below(prefix: bytes) -> bytes:
    """The pattern of all names that begin with a prefix."""
    return re.sub(rb"([*?\[])", rb"[\1]", prefix) + b"*"


def fixed_part(pattern: bytes) -> bytes:
    """What all names that match have in common, as far as the last / before the first wildcard."""
    found = _WILD.search(pattern)
    return pattern[: pattern.rfind(b"/", 0, found.start() if found else len(pattern)) + 1]


async def readable(client: Client, pattern: bytes | None) -> list[FileInfo]:
    """The files of which there is content, in the order in which they were stored. One request."""
    return [file async for file in client.list(pattern) if file.status in ("ready", "damaged")]


async def matching(client: Client, pattern: bytes) -> list[FileInfo]:
    """The file of exactly this name, or else those that match. NotFound when there are none. Two requests at once."""
    literal, found = await asyncio.gather(_named(client, pattern), readable(client, pattern))
    if literal is None and not found:
        raise NotFound(f"no stored file has a name like {show_name(pattern)}")
    return found if literal is None else [literal]


async def _named(client: Client, name: bytes) -> FileInfo | None:
    try:
        return (await client.stat(name)).file
    except (NotFound, NotReady):
        return None


async def expanded(client: Client, words: Sequence[str], arguments: Namespace) -> tuple[list[FileRef], list[FileInfo]]:
    """The single files among words, and all that their patterns match, each once."""
    single = [reference(word, arguments) for word in words if not is_pattern(word, arguments)]
    patterns = [os.fsencode(word) for word in words if is_pattern(word, arguments)]
    found = {file.id: file for files in [await matching(client, each) for each in patterns] for file in files}
    return single, list(found.values())


def in_lines(files: Sequence[FileRef]) -> list[list[FileRef]]:
    """Files in as few groups as there have to be requests: each fits one line."""
    groups: list[list[FileRef]] = []
    room = 0
    for file in files:
        size = 3 + len(protocol.quote(file).encode())
        if size > room:
            groups.append([])
            room = _LINE_BYTES
        groups[-1].append(file)
        room -= size
    return groups
