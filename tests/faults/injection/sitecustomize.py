"""Python runs this first in every process whose PYTHONPATH names this directory: the daemon and its I/O processes.

PFSD_TEST_FAULT makes one call of `pfsd.disk` fail: `FUNCTION:PATTERN:N:ACTION`. The N-th call (N+: every call from
there on) in each process of that function, on a path that the glob PATTERN matches, does ACTION. The function `*` is
all that change something on the disk; `daemon.FUNCTION` and `process.FUNCTION` are those of the daemon and of its I/O
processes alone. The actions:

    kill        the process ends there and then, before the call
    after-kill  the call is made, then the process ends
    stop        the process stands still after the call, until it gets SIGCONT
    eio enospc  the call is not made, and fails with this error (any name of `errno`)
    skip        the call is not made, and nobody is told
    half        of what is to be written only the first half is, and nobody is told
    note        the call is made, and that is all
    sleep=S     the call is made after S seconds

Each fault that fires adds a line to the file that PFSD_TEST_FAULT_LOG names: a test without one proves nothing.

PFSD_TEST_COMPACT_ABOVE is the size in bytes from which on a journal that is mostly dead is compacted.
"""

from __future__ import annotations

import errno
import fnmatch
import importlib.abc
import importlib.machinery
import importlib.util
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

#: What changes something on the disk. `write_all` does it by `writev_all`.
CHANGING = {
    *("open_file", "writev_all", "write_at", "truncate", "fdatasync", "fsync_dir", "rename", "unlink"),
    *("make_dir", "preallocate", "remove_tree"),
}


class Fault:
    """One entry of PFSD_TEST_FAULT."""

    def __init__(self, spec: str) -> None:
        self.function, self.pattern, number, self.action = spec.split(":")
        self.where, _, name = self.function.rpartition(".")
        self.functions = CHANGING if name == "*" else {name}
        self.is_any = name == "*"
        self.for_ever = number.endswith("+")
        self.number = int(number.removesuffix("+"))
        self.calls = 0

    def is_due(self, function: str, arguments: Sequence[Any]) -> bool:
        if self.where and (self.where == "daemon") != (multiprocessing.parent_process() is None):
            return False
        if self.is_any and _changes_nothing(function, arguments):
            return False
        if not any(fnmatch.fnmatch(_path(argument), self.pattern) for argument in arguments[:2]):
            return False
        self.calls += 1
        return self.calls == self.number or (self.for_ever and self.calls > self.number)

    def fire(self, function: str, call: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        with open(os.environ["PFSD_TEST_FAULT_LOG"], "a") as log:
            log.write(f"{os.getpid()} {function} {self.calls} {self.action}\n")
        if self.action == "half":
            data = b"".join(arguments[1]) if function == "writev_all" else bytes(arguments[1])
            os.write(arguments[0], data[: len(data) // 2])
            return None
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action == "skip":
            return None
        elif self.action.startswith("sleep="):
            time.sleep(float(self.action.partition("=")[2]))
        elif hasattr(errno, self.action.upper()):
            number = getattr(errno, self.action.upper())
            raise OSError(number, os.strerror(number))
        try:
            return call(*arguments)
        finally:  # also after a call that found nothing to do, and says so
            if self.action == "after-kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif self.action == "stop":
                os.kill(os.getpid(), signal.SIGSTOP)


def _changes_nothing(function: str, arguments: Sequence[Any]) -> bool:
    if function == "open_file":
        return not arguments[1] & os.O_CREAT
    return function == "make_dir" and os.path.isdir(arguments[0])


def _path(argument: object) -> str:
    """The path that an argument stands for; of a file descriptor, the one it was opened by."""
    if isinstance(argument, int):
        try:
            return os.readlink(f"/proc/self/fd/{argument}")
        except OSError:
            return ""
    return os.fsdecode(argument) if isinstance(argument, (str, bytes, os.PathLike)) else ""


def _install(disk: ModuleType, faults: list[Fault]) -> None:
    for name in {name for fault in faults for name in fault.functions}:
        setattr(disk, name, _wrapped(name, getattr(disk, name), [fault for fault in faults if name in fault.functions]))


def _wrapped(name: str, real: Callable[..., Any], faults: list[Fault]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        for fault in faults:
            if fault.is_due(name, arguments):
                return fault.fire(name, real, arguments)
        return real(*arguments)

    return call


def _change_disk(module: ModuleType) -> None:
    _install(module, [Fault(one) for one in os.environ["PFSD_TEST_FAULT"].split(",")])


def _change_committer(module: ModuleType) -> None:
    module.Committer.__init__.__kwdefaults__["compact_above"] = int(os.environ["PFSD_TEST_COMPACT_ABOVE"])


class _Finder(importlib.abc.MetaPathFinder):
    """Finds modules as everyone does, and changes these once they are loaded."""

    def __init__(self, changes: dict[str, Callable[[ModuleType], None]]) -> None:
        self._changes = changes

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        change = self._changes.get(name)
        if change is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            change(module)

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec


_CHANGES = {
    "PFSD_TEST_FAULT": ("pfsd.disk", _change_disk),
    "PFSD_TEST_COMPACT_ABOVE": ("pfsd.committer", _change_committer),
}

if wanted := dict(change for key, change in _CHANGES.items() if os.environ.get(key)):
    sys.meta_path.insert(0, _Finder(wanted))
