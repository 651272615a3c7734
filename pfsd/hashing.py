"""MD5 of parts, and what is made of them. Knows views of bytes only.

MD5 finds accidents, such as rot on a disk; it does not decide that two pieces of content are the same.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def md5_many(views: Sequence[memoryview]) -> list[bytes]:
    """The binary MD5 of each view, in their order."""
    return [hashlib.md5(view, usedforsecurity=False).digest() for view in views]


def etag(md5s: Sequence[bytes]) -> str:
    """The tag of a file's content: MD5 of the joined binary MD5s of its parts, a dash, and their number."""
    return f"{hashlib.md5(b''.join(md5s), usedforsecurity=False).hexdigest()}-{len(md5s)}"
