"""The promises of the README, by the words that tests are marked with: `@pytest.mark.promise("durable")`.

A promise without a test, a test for a promise that nobody made, and a promise that the README words differently
all fail in `tests/test_promises.py`.
"""

PROMISES = {
    "durable": "`OK` is durable.",
    "unknown": "No answer means unknown.",
    "whole": "All or nothing.",
    "target": "No partial target.",
    "checked": "Checked on every read.",
    "verified": "Read before it is needed.",
    "torn": "A torn journal end is repaired, a damaged middle is refused.",
    "rebuilt": "The registries can be rebuilt.",
    "memory": "Memory is bounded.",
    "alone": "One store, one daemon.",
    "full": "A full disk is an error, not damage.",
    "flush": "A disk that fails to flush stops the daemon.",
    "processes": "Processes may die.",
    "answered": "Bad input is answered.",
    "local": "Local by default.",
    "stop": "Stopping is bounded.",
}
