"""Crash, fault and abuse: what the promises of the README are held to.

`make test` runs these with small counts; `make test-faults` with full ones, as root.
"""
