"""The programs of pfsd, run in this process or as processes of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CLIENT = ROOT / "client.py"

#: Runs the client on words: exit code, stdout, stderr.
Run = Callable[..., tuple[int, str, str]]


def environ(**more: str) -> dict[str, str]:
    """The environment without settings of pfsd, and with these."""
    return {key: value for key, value in os.environ.items() if not key.startswith("PFSD_")} | more


def objects(output: str) -> list[dict[str, Any]]:
    """The JSON objects of some lines."""
    return [json.loads(line) for line in output.splitlines()]


def start(*words: str, **options: Any) -> subprocess.Popen[bytes]:
    """Start the client as a process."""
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    options.setdefault("env", environ())
    return subprocess.Popen([sys.executable, str(CLIENT), *words], **options)
