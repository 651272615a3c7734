"""Run the tests with every Python that is supported and found: `python -m tests.matrix VERSIONS [PYTEST ARGUMENT ...]`.

VERSIONS are some of those that the classifiers in setup.cfg name, as "3.12 3.14"; "" is all of them. An interpreter is
looked for in PATH and among those of pyenv. Each gets a virtual environment of its own, made by the Makefile, and runs
all tests; those of what an event loop decides run once more with daemons on asyncio. What came of it is a table at the
end. The exit code is 1 when something failed or no Python was found: one that is not there is only told.
"""

from __future__ import annotations

import configparser
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
CLASSIFIER = "Programming Language :: Python :: "
#: What a daemon does with sockets, signals and its end.
OF_THE_LOOP = [
    "tests/test_daemon.py",
    "tests/test_resume.py",
    "tests/faults/test_network.py",
    "tests/faults/test_memory.py",
]
RUNS = {
    "uvloop": ["--loop=uvloop"],
    "asyncio": [
        "--loop=asyncio",
        *OF_THE_LOOP,
        *sorted(f"tests/{path.name}" for path in ROOT.glob("tests/test_wire_*")),
    ],
}


class Outcome(NamedTuple):
    """What one run of pytest came to."""

    passed: bool
    summary: str


def main(arguments: list[str]) -> int:
    """Run the tests with each version; 1 when any failed, or none was found."""
    supported = supported_versions()
    versions = arguments[0].split() if arguments else []
    if unknown := set(versions) - set(supported):
        print(f"not supported: {', '.join(sorted(unknown))}; versions are {', '.join(supported)}", file=sys.stderr)
        return 2
    rows = [("Python", *RUNS)]
    outcomes: list[Outcome] = []
    for version in versions or supported:
        interpreter = find(version)
        if interpreter is None:
            rows.append((version, *["not found: neither in PATH nor in pyenv"] * len(RUNS)))
            continue
        ran = [run(version, interpreter, [*options, *arguments[1:]]) for options in RUNS.values()]
        rows.append((full_version(interpreter) or version, *(outcome.summary for outcome in ran)))
        outcomes += ran
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print()
    for row in rows:
        print("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0 if outcomes and all(outcome.passed for outcome in outcomes) else 1


def supported_versions() -> list[str]:
    """The versions that setup.cfg names, as `3.11`."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    classifiers = setup["metadata"]["classifiers"].split("\n")
    return [line[len(CLASSIFIER) :] for line in classifiers if re.fullmatch(re.escape(CLASSIFIER) + r"3\.\d+", line)]


def find(version: str) -> str | None:
    """The path of an interpreter of this version. What is found must run: the shims of pyenv often do not."""
    directories = [Path(entry) for entry in os.environ.get("PATH", "").split(os.pathsep) if entry]
    pyenv = Path(os.environ.get("PYENV_ROOT", "~/.pyenv")).expanduser()
    directories += sorted(pyenv.glob(f"versions/{version}.*/bin"), reverse=True)
    for directory in directories:
        interpreter = str(directory / f"python{version}")
        if (full_version(interpreter) or "").startswith(f"{version}."):
            return interpreter
    return None


def full_version(interpreter: str) -> str | None:
    """The version with its patch level; None if it does not run."""
    try:
        asked = subprocess.run(
            [interpreter, "-c", "import platform; print(platform.python_version())"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return asked.stdout.strip()


def run(version: str, interpreter: str, arguments: list[str]) -> Outcome:
    """Run pytest in the virtual environment of a version, which is made if need be."""
    print(f"\n=== Python {version} ({interpreter}): pytest {' '.join(arguments)}", flush=True)
    make = ["make", "--no-print-directory", "pytest", f"VENV=.venv-{version}", f"PYTHON={interpreter}"]
    last = ""
    with subprocess.Popen(
        [*make, f"ARGS={shlex.join(arguments)}"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as pytest:
        assert pytest.stdout is not None
        for line in pytest.stdout:
            print(line, end="", flush=True)
            last = line.strip() or last
    passed = pytest.returncode == 0
    return Outcome(passed, last if " in " in last else "passed" if passed else f"failed: {last or 'see above'}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
