"""Exchanges two names as fast as it can, again and again, until its standard input ends: the other side of a race.

    python swapper.py NAME OTHER [NAME OTHER ...]

It says when it begins. It ends with all names in their places, and prints how often it was round.
"""

from __future__ import annotations

import ctypes
import os
import random
import select
import sys

AT_FDCWD = -100
RENAME_EXCHANGE = 2
_libc = ctypes.CDLL(None, use_errno=True)


def exchange(one: str, other: str) -> None:
    if _libc.renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), one)


def main() -> None:
    names = sys.argv[1:]
    pairs = list(zip(names[::2], names[1::2], strict=True))
    rounds = 0
    print("racing", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        one, other = random.choice(pairs)
        exchange(one, other)
        for _ in range(random.randrange(2000)):  # as short as a system call, or longer than a whole request
            pass
        exchange(one, other)
        rounds += 1
    print(rounds)


if __name__ == "__main__":
    main()
