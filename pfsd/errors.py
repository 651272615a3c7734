"""Every error pfsd knows, in one tree.

Two families with nothing in common but the base:

* `RequestError`: one request failed. `code` is its stable word on the wire, `fields` are facts for
  machines (`id=`, `offset=`, ...), the message is a sentence for people: what was wrong and what
  would be right.
* `FatalError`: the daemon cannot start or cannot go on. `exit_code` is the status of the process.

All of them survive pickling, since some are raised in worker processes. This module imports nothing
of the project, and never the protocol: errors do not know how they are printed.
"""

from __future__ import annotations

import errno
import os

FieldValue = int | str | bytes


class PfsdError(Exception):
    """Base of everything pfsd raises on purpose. Anything else that escapes is a bug."""

    def __init__(self, message: str, /, **fields: FieldValue) -> None:
        super().__init__(message)
        self.message = message
        self.fields = fields

    def __reduce__(self) -> tuple[object, ...]:
        return _revive, (type(self), self.message, self.fields)


def _revive(kind: type[PfsdError], message: str, fields: dict[str, FieldValue]) -> PfsdError:
    return kind(message, **fields)


# --- a request failed ---------------------------------------------------------------------------


class RequestError(PfsdError):
    """One request failed; the daemon and all other requests go on."""

    code = "internal"


class UsageError(RequestError):
    """Malformed request."""

    code = "usage"


class UnknownCommand(RequestError):
    """No such verb."""

    code = "unknown-command"


class TooLong(RequestError):
    """A line or frame over its limit."""

    code = "too-long"


class AuthError(RequestError):
    """A token is needed, or the one given is wrong."""

    code = "auth"


class Denied(RequestError):
    """Outside the roots, not a regular file, or not allowed for this peer."""

    code = "denied"


class NotFound(RequestError):
    """No such stored file, or no such path."""

    code = "not-found"


class Exists(RequestError):
    """The name or the target is taken."""

    code = "exists"


class NotReady(RequestError):
    """The file is being stored or deleted."""

    code = "not-ready"


class Cancelled(RequestError):
    """Given up by its client."""

    code = "cancelled"


class Corrupt(RequestError):
    """Stored bytes fail their checks."""

    code = "corrupt"


class Partial(RequestError):
    """Done as far as possible."""

    code = "partial"


class Missing(RequestError):
    """Stored bytes are not where they should be."""

    code = "missing"


class Changed(RequestError):
    """The source changed while it was read."""

    code = "changed"


class NoSpace(RequestError):
    """Store or target is full."""

    code = "no-space"


class IoError(RequestError):
    """The operating system said no."""

    code = "io"


class Busy(RequestError):
    """A limit on clients, requests or memory is reached."""

    code = "busy"


class Stopping(RequestError):
    """The daemon is shutting down."""

    code = "stopping"


class Internal(RequestError):
    """A bug; `ref` is found in the log."""

    code = "internal"


def _request_errors(kind: type[RequestError]) -> list[type[RequestError]]:
    return [kind] + [deeper for child in kind.__subclasses__() for deeper in _request_errors(child)]


#: Wire word -> class, for the end of the wire that reads errors.
BY_CODE: dict[str, type[RequestError]] = {kind.code: kind for kind in _request_errors(RequestError)}

_FULL = {errno.ENOSPC, errno.EDQUOT}
_ABSENT = {errno.ENOENT, errno.ENOTDIR}
_SCARCE = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def from_os_error(error: OSError, doing: str) -> RequestError:
    """Translate what the operating system said while `doing` (a phrase such as "reading x")."""
    words = os.strerror(error.errno) if error.errno else str(error)
    name = errno.errorcode.get(error.errno or 0, "EIO")
    if error.errno in _FULL:
        return NoSpace(f"{doing}: {words}", errno=name)
    if error.errno in _ABSENT:
        return NotFound(f"{doing}: {words}", errno=name)
    if error.errno in _SCARCE:
        return Busy(f"{doing}: {words}", errno=name)
    return IoError(f"{doing}: {words}", errno=name)


# --- the daemon cannot go on --------------------------------------------------------------------


class FatalError(PfsdError):
    """The daemon cannot start, or must stop."""

    exit_code = 70


class RegistryDamaged(FatalError):
    """The journal holds damage that is not the trace of an interrupted write."""

    exit_code = 65


class ProcessesUnavailable(FatalError):
    """The I/O processes cannot be started."""

    exit_code = 70


class CannotListen(FatalError):
    """A listening address cannot be used."""

    exit_code = 71


class StoreUnavailable(FatalError):
    """The store is in use by another daemon, or cannot be created."""

    exit_code = 73


class StorageFailed(FatalError):
    """The storage below the registries failed while running."""

    exit_code = 74


class ConfigError(FatalError):
    """The configuration cannot be used."""

    exit_code = 78
