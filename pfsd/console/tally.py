"""What became of the files of one command that transfers many."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict

from pfsd.client import ConnectionLost, Retrieved, StoredFile
from pfsd.console.output import DONE, PARTIAL, Output, exit_code, show_count, show_name, show_size
from pfsd.errors import RequestError


class Tally:
    """Of single files (not `whole`) each is told, of a directory or pattern the sum."""

    def __init__(self, out: Output, whole: bool) -> None:
        self._out = out
        self._whole = whole
        self._dry = False
        self._codes: list[int] = []  # of those that failed
        self.files = self.size = self.kept = self.skipped = self.excluded = self.unchanged = 0

    @property
    def failures(self) -> int:
        """How many could not be transferred."""
        return len(self._codes)

    def progress(self) -> str:
        """How many are done, for people."""
        return show_count(self.files + self.failures + self.unchanged, "file")

    def stored(self, file: StoredFile) -> None:
        """A file was stored."""
        self.files, self.size, self.kept = self.files + 1, self.size + file.size, self.kept + file.stored
        if self._out.as_json:
            self._out.done("put", asdict(file))
        elif not self._whole:
            size, kept = show_size(file.size), show_size(file.stored)
            self._out.done("put", {}, f"{show_name(file.name)}: stored as {file.id}, {size}, {kept} kept")

    def retrieved(self, file: Retrieved, target: str) -> None:
        """A file was written to a local path."""
        self.files, self.size = self.files + 1, self.size + file.transferred
        path = os.fsencode(target)
        if self._out.as_json:
            self._out.done("get", asdict(file) | {"target": path})
        elif not self._whole:
            self._out.done(
                "get", {}, f"{show_name(file.name)}: {show_size(file.transferred)} written to {show_name(path)}"
            )

    def would(self, command: str, size: int, text: str, **paths: bytes) -> None:
        """A file would be transferred, if this were no dry run."""
        self._dry = True
        self.files, self.size = self.files + 1, self.size + size
        self._out.row("would", {"command": command, "size": size, **paths}, f"would {command} {text}")

    def failed(self, error: RequestError, about: str) -> None:
        """A file could not be transferred."""
        self._out.error(error, about)
        self._codes.append(exit_code(error))

    def pass_over(self, path: str, why: str | RequestError) -> None:
        """Something in a directory is no regular file, or cannot be read."""
        if isinstance(why, RequestError):
            self.failed(why, path)
            return
        self.skipped += 1
        self._out.note(
            "skipped", {"about": os.fsencode(path), "is": why}, f"{show_name(os.fsencode(path))} is {why}: skipped"
        )

    def end(self, command: str, did: str) -> int:
        """Show the sum, if each file was not told; the exit code."""
        if self._whole:
            facts = {"command": command, "files": self.files, "size": self.size}
            facts |= {"failed": self.failures, "skipped": self.skipped}
            facts |= {"excluded": self.excluded, "unchanged": self.unchanged}
            if self._dry:
                facts |= {"dry_run": True}
            text = f"{show_count(self.files, 'file')}, {show_size(self.size)} {did}"
            if command == "put" and not self._dry:
                facts, text = facts | {"stored": self.kept}, f"{text}, {show_size(self.kept)} kept"
            self._out.done("summary", facts, text + self._rest())
        if not self._codes:
            return DONE
        return PARTIAL if self.files or self.unchanged else self._codes[0]

    def _rest(self) -> str:
        counts = {
            "failed": self.failures,
            "skipped": self.skipped,
            "excluded": self.excluded,
            "there already": self.unchanged,
        }
        return "".join(f", {count} {what}" for what, count in counts.items() if count)

    @contextmanager
    def told(self, command: str, did: str) -> Iterator[None]:
        """Show the sum also when the connection breaks, or the user does not want to wait."""
        try:
            yield
        except (ConnectionLost, asyncio.CancelledError):
            self.end(command, did)
            raise
