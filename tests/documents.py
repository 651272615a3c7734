"""The project's documents: their fenced blocks, sections and tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
#: Directories that are no part of the project, besides those with a dot in front.
NOT_OURS = {"__pycache__", "build", "dist", "store"}
#: The mark of what stands in a comment and is done before what follows: the state that a page takes for granted.
GIVEN = "given"

_NOT_RUN = re.compile(r"<!-- not run: (.+) -->")


def our_files() -> list[Path]:
    """Every file of the project."""

    def ours(path: Path) -> bool:
        parts = path.relative_to(ROOT).parts
        hidden = any(part.startswith(".") for part in parts if part not in (".ci", ".gitignore"))
        return path.is_file() and not hidden and not any(part in NOT_OURS or ".egg-info" in part for part in parts)

    return sorted(filter(ours, ROOT.rglob("*")))


DOCUMENTS = [path for path in our_files() if path.suffix == ".md"]


class Block(NamedTuple):
    """A fenced block: where it stands, what it is marked with, its lines, and why it is not run, if it says so."""

    path: Path
    number: int
    section: str
    mark: str
    lines: list[str]
    not_run: str = ""

    @property
    def place(self) -> str:
        return f"{self.path.name}:{self.number}"


def blocks(path: Path) -> Iterator[Block]:
    """The fenced blocks of a document, and what is given in comments."""
    section, fence, number, not_run = "", None, 0, ""
    lines: list[str] = []
    for at, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if fence is None and (line.startswith("```") or line == f"<!-- {GIVEN}"):
            fence, number, lines = line[3:].strip() if line.startswith("`") else GIVEN, at, []
        elif fence is not None and line == ("-->" if fence == GIVEN else "```"):
            yield Block(path, number, section, fence, lines, not_run)
            fence, not_run = None, ""
        elif fence is not None:
            lines.append(line)
        elif found := _NOT_RUN.fullmatch(line):
            not_run = found[1]
        elif line:
            assert not not_run, f"{path.name}:{at}: 'not run' stands right before a block"
            section = line.lstrip("#").strip() if line.startswith("#") else section
    assert fence is None, f"{path.name}:{number}: a block that is not closed"


def transcripts(path: Path) -> list[Block]:
    """The transcripts of a document."""
    return [block for block in blocks(path) if block.mark.split()[:1] == ["transcript"]]


def prose(path: Path) -> str:
    """A document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def sections(path: Path) -> dict[str, str]:
    """Heading -> the text below it, up to the next heading."""
    pieces = re.split(r"^#+ (.+)$", prose(path), flags=re.MULTILINE)
    return dict(zip(pieces[1::2], pieces[2::2], strict=True))


def table(text: str) -> list[list[str]]:
    """The rows of the Markdown tables in a text, as cells."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]
