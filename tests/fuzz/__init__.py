"""What must hold whatever bytes come, as code: `run.py` lets a fuzzer look for bytes for which it does not.

What it has found of interest is in `corpus`, and is tried again by every `make test`, without a fuzzer.
"""
