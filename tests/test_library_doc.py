"""The examples of docs/library.md do what they say, one after the other, each in a program of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pfsd
from tests.harness import Daemon, noise
from tests.test_docs import ROOT, blocks, sections

LIBRARY = ROOT / "docs" / "library.md"


def test_the_examples_run(shared_daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(noise(3 << 20))
    environ = os.environ | {"PYTHONPATH": str(ROOT), "PFSD_SERVER": f"127.0.0.1:{shared_daemon.port}"}
    examples = [block for block in blocks(LIBRARY) if block.mark == "python"]
    assert len(examples) >= 6
    for example in examples:
        program = [sys.executable, "-c", "\n".join(example.lines)]
        ended = subprocess.run(program, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=30)
        assert (ended.returncode, ended.stderr) == (0, ""), example.place


def test_it_names_every_method_and_connection_error() -> None:
    text = LIBRARY.read_text("utf-8")
    for name in vars(pfsd.Store):
        assert name.startswith("_") or name in ("asynchronous", "address") or f"`{name}" in text, name
    listed = sections(LIBRARY)["Errors"]
    for name in pfsd.__all__:
        kind = getattr(pfsd, name)
        if isinstance(kind, type) and issubclass(kind, pfsd.ConnectionLost | pfsd.TimedOut):
            assert f"| `{name}` |" in listed, name
