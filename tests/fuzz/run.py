"""Let a fuzzer look for bytes that break an invariant: `python -m tests.fuzz.run SECONDS [TARGET ...]`.

Each target runs for so many seconds, from its seeds and its corpus on. What reached new code is then added to the
corpus, as few and as small inputs as reach all of it. Bytes that broke an invariant end the run, and stay as
`crash-...` in the directory it was started in: mend pfsd, and put them into the corpus.
"""

from __future__ import annotations

import importlib.util
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.fuzz.invariants import TARGETS
from tests.fuzz.seeds import seeds

CORPUS = Path(__file__).parent / "corpus"
#: `max_len`: longer inputs find nothing that shorter ones do not. One that takes more time or memory is a finding.
LIMITS = ("-max_len=4096", "-timeout=5", "-rss_limit_mb=512")


def main(arguments: list[str]) -> int:
    """Fuzz targets one after the other; the exit code of the first that found something."""
    wanted = arguments[1:] or list(TARGETS)
    if not arguments or not arguments[0].isdigit() or not set(wanted) <= TARGETS.keys():
        print(f"{__doc__}\nTargets: {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    if importlib.util.find_spec("atheris") is None:
        print("the fuzzer is missing: pip install -e '.[dev,fuzz]'", file=sys.stderr)
        return 1
    for target in wanted:
        if code := _run(target, arguments[0]):
            return code
    return 0


def _run(target: str, seconds: str) -> int:
    """Fuzz one target, then bring what was found into its corpus."""
    kept = CORPUS / target
    kept.mkdir(parents=True, exist_ok=True)
    known = set(seeds(target))
    with tempfile.TemporaryDirectory(prefix="pfsd-fuzz-") as scratch:
        found, smallest, program = (Path(scratch) / name for name in ("found", "smallest", "program"))
        found.mkdir()
        smallest.mkdir()
        for at, data in enumerate(sorted(known)):
            (found / f"seed-{at}").write_bytes(data)
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m tests.fuzz.one {target} "$0" "$@"\n')
        program.chmod(0o700)
        for step in (
            [f"-max_total_time={seconds}", "-print_final_stats=1", *LIMITS, found, kept],
            ["-set_cover_merge=1", *LIMITS, smallest, kept, found],
        ):
            if code := subprocess.run([program, *step]).returncode:
                return code
        for old in kept.iterdir():
            old.unlink()
        for new in smallest.iterdir():
            if (data := new.read_bytes()) not in known:
                (kept / new.name[:16]).write_bytes(data)
    print(f"{target}: {len(list(kept.iterdir()))} inputs in the corpus")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
