"""One target in the hands of the fuzzer, which takes this process over: `python -m tests.fuzz.one TARGET PROGRAM ...`.

PROGRAM is what the fuzzer starts when it wants more such processes; behind it come its own arguments.
"""

from __future__ import annotations

import logging
import sys

import atheris

with atheris.instrument_imports(include=["pfsd"]):  # before anything else imports it
    from tests.fuzz.invariants import TARGETS

if __name__ == "__main__":
    logging.disable()
    _, target, *arguments = sys.argv
    atheris.Setup(arguments, TARGETS[target])
    atheris.Fuzz()
