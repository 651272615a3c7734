"""Runs every measuring script, then prints all goals in one table and draws them. This is `make bench`.

Each script is a process of its own: one that fails is reported, and the rest goes on.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time

import goals
import suite
from daemon import ROOT
from peers import PEERS, installed
from plot import plot

#: In this order, with what each measures.
SCRIPTS = {
    "compare": "put and get by path next to borg, restic, zstd, pigz and cp",
    "tree": "a tree of small files through the client next to borg and restic",
    "tcp": "through the client over TCP next to by path",
    "processes": "two I/O processes next to one",
    "limit": "by path next to the limit of its own steps",
    "small": "small durable puts next to Redis",
    "latency": "small requests beside big puts",
    "registry": "a million files: the start, memory, and who waits",
    "memory": "the peak of memory next to the setting",
}
#: Those that compare pairs.
WITH_PAIRS = {"compare", "tree", "tcp", "processes", "limit", "small"}


def command(script: str, arguments: argparse.Namespace) -> list[str]:
    """The command line of a script, with what is common to all."""
    words = [sys.executable, str(ROOT / "bench" / f"{script}.py")]
    for option in ("cores", "cache", "dir", "results"):
        words += [f"--{option}", str(getattr(arguments, option))]
    if script in WITH_PAIRS:
        words += ["--pairs", str(arguments.pairs)]
    if script != "memory":  # which has settings of its own
        words += ["--memory", arguments.memory]
    if script not in ("memory", "limit") and arguments.codec:
        words += ["--codec", arguments.codec]
    return words + ["--quick"] * arguments.quick + ["--keep-memory"] * arguments.keep_memory


def run_script(words: list[str]) -> int:
    """The exit code of a script. If this process is to end, the script gets the time to remove what it made."""
    with subprocess.Popen(words) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


def parse() -> argparse.Namespace:
    """The command line."""
    parser = suite.options("Measure everything, print all goals next to what was reached, and draw it.")
    suite.daemon_options(parser)
    lines = "; ".join(f"{name}: {what}" for name, what in SCRIPTS.items())
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=list(SCRIPTS), metavar="SCRIPT", help=lines)
    arguments = suite.parse(parser)
    if arguments.results.name == time.strftime("%Y-%m-%d"):  # every run keeps its own
        arguments.results = arguments.results.with_name(time.strftime("%Y-%m-%dT%H%M%S"))
    return arguments


def main() -> int:
    """Run them all; 1 if one failed."""
    arguments = parse()
    installed(PEERS)  # says at the start what is missing
    failed = []
    for script in arguments.only:
        begin = time.monotonic()
        suite.say(f"--- {script}: {SCRIPTS[script]}")
        if run_script(command(script, arguments)):
            failed.append(script)
        suite.say(f"--- {script}: {time.monotonic() - begin:.0f} s")
    print(f"\n{goals.summary(arguments.results)}\n", flush=True)
    plot(arguments.results)
    if failed:
        suite.say(f"not all went well: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    suite.run(main)
