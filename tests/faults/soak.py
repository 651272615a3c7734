"""Crash one store again and again, for hours: `python -m tests.faults.soak --hours 1`.

Each round starts the daemon with another configuration, lets clients work, and ends it with `kill -9`, with a kill of
all of its processes, with a power cut, or cleanly; then everything must be as the oracle knows it. The first violation
ends the run with exit code 1, and says where the store, the log and the seed are.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from tests.faults import power
from tests.faults.oracle import Oracle, seed_of_run
from tests.faults.power import Disk
from tests.harness import Daemon

KINDS = ("kill", "group", "power", "stop")
#: Seconds that clients get before the end of a round.
MOMENTS = 0.005, 0.7
LINE_EACH = 50


class Soak:
    """A store, a daemon that is ended in many ways, and the count of what happened."""

    def __init__(self, daemon: Daemon, disk: Disk | None, oracle: Oracle, kinds: list[str]) -> None:
        """Without a `disk` power cannot be cut."""
        self._daemon = daemon
        self._disk = disk
        self._oracle = oracle
        self._kinds = kinds
        self._random = random.Random(oracle.seed)
        self._table: dict[str, Counter[str]] = {kind: Counter() for kind in kinds}
        self.rounds = 0

    def start(self) -> None:
        """Start the daemon with a configuration of its own."""
        choose = self._random.choice
        self._daemon.config(
            part_size=choose([4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20]),
            processes=choose([1, 2, 3]),
            codec=choose(["auto", "zstd", "zlib", "none"]),
            level=choose([1, 3, 6]),
            memory=choose(["48MiB", "96MiB"]),
        )
        self._daemon.start()

    def round(self) -> None:
        """Work, end, start, check. AssertionError for what is wrong."""
        kind = self._random.choice(self._kinds)
        before = Counter(self._oracle.outcomes)
        with self._oracle.load(self._daemon):
            self._oracle.wait(self._random.uniform(*MOMENTS))
            if kind != "stop":
                self._oracle.fault()
                self._end(kind)
        if kind == "stop":
            self._daemon.stop()
        if kind in ("kill", "group"):
            self._oracle.note_packs(self._daemon)
        self.start()
        self._oracle.check(self._daemon, crashed=kind != "stop")
        self.rounds += 1
        self._table[kind]["rounds"] += 1
        self._table[kind].update(self._oracle.outcomes - before)

    def _end(self, kind: str) -> None:
        if kind == "kill":
            self._daemon.kill()
        elif kind == "group":
            self._daemon.kill_all()
        else:
            assert self._disk is not None
            self._disk.cut(self._daemon)

    def table(self) -> str:
        """What happened. That nothing was lost or came back is what the last check has said."""
        rows = [f"{'kind':8}{'rounds':>8}{'acked':>10}{'unknown':>10}{'lost':>8}{'resurrected':>13}"]
        for kind, counts in self._table.items():
            rows.append(f"{kind:8}{counts['rounds']:8}{counts['ok']:10}{counts['unknown']:10}{0:8}{0:13}")
        return "\n".join([*rows, f"seed {self._oracle.seed}"])


def main() -> int:
    """Run it as the command line says; returns the exit code."""
    arguments = _arguments()
    kinds = arguments.only
    if "power" in kinds and (reason := power.why_not()):
        print(f"power cannot be cut here: {reason}", file=sys.stderr)
        return 2
    until = time.monotonic() + arguments.hours * 3600
    home = Path(tempfile.mkdtemp(prefix="pfsd-soak-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    rerun = f"python -m tests.faults.soak --seed {arguments.seed} --only {','.join(kinds)} --rounds 1000000"
    print(rerun, flush=True)
    try:
        with ExitStack() as stack:
            disk = stack.enter_context(Disk(home)) if "power" in kinds else None
            daemon = stack.enter_context(disk.daemon() if disk else Daemon(home, log_level="info"))
            oracle = stack.enter_context(Oracle(home, arguments.seed, rerun=rerun))
            soak = Soak(daemon, disk, oracle, kinds)
            soak.start()
            while soak.rounds < arguments.rounds and time.monotonic() < until:
                try:
                    soak.round()
                except AssertionError:
                    kept = Path(tempfile.mkdtemp(prefix="pfsd-soak-", dir="/tmp"))
                    shutil.copytree(daemon.store, kept / "store")
                    print(f"round {soak.rounds + 1} has failed; the store is kept in {kept}", file=sys.stderr)
                    raise
                if soak.rounds % LINE_EACH == 0:
                    print(f"{soak.rounds} rounds, {dict(oracle.outcomes)}, {oracle.live_bytes} bytes", flush=True)
    except AssertionError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(home, ignore_errors=True)
    print(soak.table())
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description="crash one store again and again")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--hours", type=float, default=0.0, help="how long, a fraction is fine")
    length.add_argument("--kills", type=int, metavar="N", help="N times kill -9 of the daemon, nothing else")
    length.add_argument("--cuts", type=int, metavar="N", help="N power cuts, nothing else")
    length.add_argument("--rounds", type=int, metavar="N", help="N rounds")
    parser.add_argument("--seed", type=int, default=None, help="of all random choices")
    parser.add_argument(
        "--only", default="mixed", help=f"some of {','.join(KINDS)}, or mixed: all that can be done here"
    )
    arguments = parser.parse_args()
    if arguments.seed is None:
        arguments.seed = seed_of_run()
    if arguments.kills is not None:
        arguments.only, arguments.rounds = "kill", arguments.kills
    elif arguments.cuts is not None:
        arguments.only, arguments.rounds = "power", arguments.cuts
    can = [kind for kind in KINDS if kind != "power" or not power.why_not()]
    arguments.only = can if arguments.only == "mixed" else arguments.only.split(",")
    if unknown := set(arguments.only) - set(KINDS):
        parser.error(f"{', '.join(sorted(unknown))}: not one of {', '.join(KINDS)}, mixed")
    if arguments.rounds is None and not arguments.hours:
        parser.error("how long? --hours, --kills, --cuts or --rounds")
    if arguments.rounds is None:
        arguments.rounds = sys.maxsize
    else:
        arguments.hours = float("inf")
    return arguments


if __name__ == "__main__":
    sys.exit(main())
