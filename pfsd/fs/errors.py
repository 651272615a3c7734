"""The errors of pfsd as those of Python's file systems, with the daemon's words in them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from pfsd.errors import (
    AuthError,
    Busy,
    Cancelled,
    Changed,
    Denied,
    Exists,
    NoSpace,
    NotFound,
    NotReady,
    PfsdError,
    Stopping,
    TooLong,
    UsageError,
)
from pfsd.exchange import CannotConnect, ConnectionLost, ConnectionTimedOut, ConnectTimedOut, TimedOut

#: The nearest class counts; everything else is EIO: damage, a disk that fails, a bug.
_NUMBERS: dict[type[PfsdError], int] = {
    NotFound: errno.ENOENT,
    NotReady: errno.ENOENT,  # it was never there to be read, or is not any more
    Exists: errno.EEXIST,
    Denied: errno.EACCES,
    AuthError: errno.EACCES,
    NoSpace: errno.ENOSPC,
    Busy: errno.EBUSY,
    Changed: errno.EBUSY,
    Cancelled: errno.ECANCELED,
    UsageError: errno.EINVAL,
    TooLong: errno.EINVAL,
    TimedOut: errno.ETIMEDOUT,
    ConnectionTimedOut: errno.ETIMEDOUT,
    ConnectTimedOut: errno.ETIMEDOUT,
    CannotConnect: errno.ECONNREFUSED,
    Stopping: errno.ECONNREFUSED,
    ConnectionLost: errno.ECONNRESET,
}


@contextmanager
def os_errors(path: str | None = None, **other: int) -> Iterator[None]:
    """Raise what pfsd raises as the OSError that stands for it: FileNotFoundError, PermissionError and so on.

    `other` numbers are for codes that mean something else here, such as `not_found=errno.ESTALE`.
    """
    try:
        yield
    except PfsdError as error:
        raise as_os_error(error, path, **other) from error


def as_os_error(error: PfsdError, path: str | None = None, **other: int) -> OSError:
    """The OSError that stands for an error, about a path if there is one."""
    kind = next((kind for kind in type(error).__mro__ if kind in _NUMBERS), None)
    number = _NUMBERS[kind] if kind is not None else errno.EIO
    number = other.get(getattr(error, "code", "").replace("-", "_"), number)
    return OSError(number, error.message, *([path] if path else []))
