"""pfsd: a parallel file storage daemon driven by lines of text over a socket.

For programs that use one:

    import pfsd

    with pfsd.Store("127.0.0.1:7373") as store:
        store.put("disk.img")
        print([file.name for file in store.list()])

`Store` waits, `AsyncStore` is for programs with an event loop. Every error is a `PfsdError`. docs/library.md tells all.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from pfsd.asyncstore import AsyncStore, OutcomeTimedOut, OutcomeUnknown
    from pfsd.blocking import Store
    from pfsd.client import Client, Download, FileRef, Progress
    from pfsd.errors import (
        AuthError,
        Busy,
        Cancelled,
        Changed,
        Corrupt,
        Denied,
        Exists,
        Internal,
        IoError,
        Missing,
        NoSpace,
        NotFound,
        NotReady,
        Partial,
        PfsdError,
        RequestError,
        Stopping,
        TooLong,
        UnknownCommand,
        UsageError,
    )
    from pfsd.exchange import CannotConnect, ConnectionLost, ConnectionTimedOut, ConnectTimedOut, TimedOut
    from pfsd.fileobjects import AsyncReader, AsyncWriter, Reader, TextWriter, Writer
    from pfsd.results import (
        BadPart,
        Damage,
        DamagedCopy,
        Deleted,
        DeleteReport,
        FileInfo,
        FileStat,
        Hello,
        Outcome,
        PartInfo,
        Renamed,
        Retrieved,
        StoredFile,
        VerifyReport,
    )
    from pfsd.transfer import Source, Writable

__all__ = [
    "AsyncReader",
    "AsyncStore",
    "AsyncWriter",
    "AuthError",
    "BadPart",
    "Busy",
    "Cancelled",
    "CannotConnect",
    "Changed",
    "Client",
    "ConnectTimedOut",
    "ConnectionLost",
    "ConnectionTimedOut",
    "Corrupt",
    "Damage",
    "DamagedCopy",
    "DeleteReport",
    "Deleted",
    "Denied",
    "Download",
    "Exists",
    "FileInfo",
    "FileRef",
    "FileStat",
    "Hello",
    "Internal",
    "IoError",
    "Missing",
    "NoSpace",
    "NotFound",
    "NotReady",
    "Outcome",
    "OutcomeTimedOut",
    "OutcomeUnknown",
    "PartInfo",
    "Partial",
    "PfsdError",
    "Progress",
    "Reader",
    "Renamed",
    "RequestError",
    "Retrieved",
    "Source",
    "Stopping",
    "Store",
    "StoredFile",
    "TextWriter",
    "TimedOut",
    "TooLong",
    "UnknownCommand",
    "UsageError",
    "VerifyReport",
    "Writable",
    "Writer",
    "__version__",
]

#: Where these names are; from the bottom up, so that none is found where it is only used.
_MODULES = ("errors", "exchange", "results", "transfer", "client", "fileobjects", "asyncstore", "blocking")


def __getattr__(name: str) -> Any:
    # Imported when first used: the daemon imports this package too, and needs none of them.
    if name in __all__:
        for module in _MODULES:
            found = vars(import_module(f"pfsd.{module}"))
            if name in found:
                return globals().setdefault(name, found[name])
    raise AttributeError(f"module 'pfsd' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
