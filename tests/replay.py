"""Replays the transcripts of the documents: what a person types into `nc`, and what the daemon answers.

docs/protocol.md explains how a transcript is written.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path

import pytest

from tests.documents import Block
from tests.wire import Wire

_SPECIAL = re.compile(r'"…"|…|<(\w+)>|\{(\d+) bytes\}')


class Replay:
    """Plays blocks that share a store; values that the server made are kept in `values`."""

    def __init__(self, connect: Callable[[], Wire], packs: Callable[[], list[Path]], values: dict[str, str]) -> None:
        self._connect = connect
        self._packs = packs
        self._values = values

    def play(self, block: Block) -> None:
        """Talk to the daemon as the block says; it must say no more and no less than stands there."""
        with self._connect() as wire:
            for kind, lines in groupby(block.lines, key=lambda line: line.split(" ")[0].rstrip("␍")):
                self._step(kind, [line[len(kind) + 1 :] for line in lines], wire, block)
            if "< (end)" not in block.lines:
                if "> (end)" not in block.lines:
                    wire.half_close()
                assert wire.rest() == b"", f"{block.place}: the daemon says more than the document"

    def _step(self, kind: str, lines: list[str], wire: Wire, block: Block) -> None:
        if kind in (">", ">>"):
            # In one piece, as from a pipe.
            content = [line for line in lines if line != "(end)"]
            wire.send(b"".join(self._sent(line) + (b"\n" if kind == ">" else b"") for line in content))
            if len(content) < len(lines):
                wire.half_close()
            return
        for line in lines:
            if kind == "$":
                assert line == "nc 127.0.0.1 7373", f"{block.place}: nobody knows how to do this: {line}"
            elif kind == "!":
                self._happens(line)
            elif kind == "<<":
                expected = self._sent(line)
                assert wire.exactly(len(expected)) == expected, f"{block.place}: {line}"
            elif line == "(end)":
                assert wire.rest() == b"", f"{block.place}: the daemon says more than the document"
            else:
                assert kind == "<", f"{block.place}: what is {kind}?"
                self._receive(line, wire, block)

    def _receive(self, expected: str, wire: Wire, block: Block) -> None:
        received = wire.raw_line()
        while b"PROGRESS" not in expected.encode() and re.match(rb"(@\S+ )?PROGRESS ", received):
            received = wire.raw_line()  # may come more often on a slow machine
        found = re.fullmatch(self._pattern(expected) + "\n", received.decode())
        assert found, f"{block.place}: expected {expected!r}, got {received!r}"
        self._values.update(found.groupdict())

    def _sent(self, line: str) -> bytes:
        def fill(special: re.Match[str]) -> str:
            assert "…" not in special[0], f"nobody knows what to send for {line!r}"
            return "x" * int(special[2]) if special[2] else self._values[special[1]]

        return _SPECIAL.sub(fill, line).replace("␍", "\r").encode()

    def _pattern(self, line: str) -> str:
        seen: set[str] = set()
        pattern, at = "", 0
        for special in _SPECIAL.finditer(line):
            pattern += re.escape(line[at : special.start()])
            at = special.end()
            name = special[1]
            if special[0] == '"…"':
                pattern += r'"(?:[^"\\]|\\.)+"'
            elif special[0] == "…":
                pattern += "[^ ]+"
            elif name is None:
                pattern += "x" * int(special[2])
            elif name in self._values:
                pattern += re.escape(self._values[name])
            else:
                pattern += f"(?P={name})" if name in seen else f"(?P<{name}>[^ ]+)"
                seen.add(name)
        return pattern + re.escape(line[at:]).replace("␍", "\r")

    def _happens(self, what: str) -> None:
        (pack,) = self._packs()
        if re.fullmatch(r"the last byte of the pack of \w+ changes on the disk", what):
            content = bytearray(pack.read_bytes())
            content[-1] ^= 0xFF
            pack.write_bytes(content)
        elif re.fullmatch(r"the pack of \w+ is removed from the disk", what):
            pack.unlink()
        else:
            pytest.fail(f"nobody knows how to do this: {what}")
