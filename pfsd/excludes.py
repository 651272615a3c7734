"""What is left out of a directory: patterns as in .gitignore, over paths relative to it.

* A pattern without a slash, but for one at its end, fits the last component of any path; one with a slash fits
  whole paths from the directory on, whether or not it begins with the slash.
* `*` is any characters but a slash, `?` is one of them, `[a-z]` and `[!a-z]` are one of a set. `**` between slashes,
  at the beginning or at the end is any number of components. A backslash takes its meaning from what follows it.
* A slash at the end has it fit directories alone. What is below a directory that is left out is left out, too.
* `!` in front takes back what a pattern before has left out. The last one that fits decides.

In files, empty lines and those that begin with `#` mean nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from pfsd.errors import UsageError


class _Rule(NamedTuple):
    fits: re.Pattern[str]
    folders_only: bool
    leaves_out: bool


class Excludes:
    """Patterns, in the order they were given. False when there are none."""

    def __init__(self, patterns: Iterable[str]) -> None:
        """UsageError for a pattern that could never fit."""
        self._rules = [_rule(pattern) for pattern in patterns]

    def __bool__(self) -> bool:
        return bool(self._rules)

    def leaves_out(self, path: str, is_folder: bool) -> bool:
        """Whether a path whose directories are not left out is; without slashes at its ends."""
        for rule in reversed(self._rules):
            if (is_folder or not rule.folders_only) and rule.fits.fullmatch(path):
                return rule.leaves_out
        return False

    def leaves_out_file(self, path: str) -> bool:
        """Whether the file at a path is left out, or a directory that it is in."""
        folders = [path[:at] for at, char in enumerate(path) if char == "/"]
        return any(self.leaves_out(folder, True) for folder in folders) or self.leaves_out(path, False)


def read(patterns: Iterable[str], files: Iterable[Path]) -> Excludes:
    """The lines of files, and then single patterns, which so have the last word. UsageError for an unreadable file."""
    found: list[str] = []
    for path in files:
        try:
            lines = path.read_text("utf-8", "surrogateescape").splitlines()
        except OSError as error:
            raise UsageError(f"--exclude-from {path} cannot be read: {error.strerror}") from None
        found += [line for line in lines if line.strip() and not line.startswith("#")]
    return Excludes([*found, *patterns])


def _rule(pattern: str) -> _Rule:
    text = pattern.rstrip()
    leaves_out = not text.startswith("!")
    text = text.removeprefix("!")
    folders_only = text.endswith("/")
    text = text.rstrip("/")
    if not text:
        raise UsageError(f"the pattern {pattern!r} leaves nothing out: it holds no name")
    anchored = "/" in text
    body = _regex(text.lstrip("/"))
    return _Rule(re.compile(body if anchored else f"(?:.*/)?{body}", re.DOTALL), folders_only, leaves_out)


def _regex(text: str) -> str:
    components = text.split("/")
    pieces: list[str] = []
    for at, component in enumerate(components):
        last = at == len(components) - 1
        if component == "**":
            pieces.append(".+" if last else "(?:.*/)?")
        else:
            pieces.append(_component(component) + ("" if last else "/"))
    return "".join(pieces)


_TOKEN = re.compile(
    r"\\(?P<literal>.)|(?P<star>\*+)|(?P<one>\?)|\[(?P<not>[!^]?)(?P<set>\]?[^\]]*)\]|(?P<char>.)", re.DOTALL
)


def _component(text: str) -> str:
    pieces: list[str] = []
    for token in _TOKEN.finditer(text):
        if token["star"]:
            pieces.append("[^/]*")
        elif token["one"]:
            pieces.append("[^/]")
        elif token["set"]:
            pieces.append(_set(token["set"], bool(token["not"])))
        else:
            pieces.append(re.escape(token["literal"] or token[0]))
    return "".join(pieces)


def _set(members: str, inverted: bool) -> str:
    """A set of characters; what does not read as one fits nothing."""
    body = re.sub(r"([\\\[\]^&~|])", r"\\\1", members)
    text = f"[^/{body}]" if inverted else f"(?!/)[{body}]"
    try:
        re.compile(text)
    except re.error:  # such as the range z-a
        return "(?!)"
    return text
