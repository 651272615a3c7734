"""Python runs this first in every process whose PYTHONPATH names this directory: the daemon and its I/O processes.

PFSD_TEST_FAULT makes one call of `pfsd.disk` fail: `FUNCTION:PATTERN:N:ACTION`. The N-th call (N+: every call from
there on) in each process of that function, on a path that the glob PATTERN matches, does ACTION:

    kill        the process ends there and then, before the call
    after-kill  the call is made, then the process ends
    stop        the process stands still after the call, until it gets SIGCONT
    eio enospc  the call is not made, and fails with this error (any name of `errno`)
    skip        the call is not made, and nobody is told
    sleep=S     the call is made after S seconds

Each fault that fires adds a line to the file that PFSD_TEST_FAULT_LOG names: a test without one proves nothing.
"""

from __future__ import annotations

import errno
import fnmatch
import importlib.abc
import importlib.machinery
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any


class Fault:
    """One entry of PFSD_TEST_FAULT."""

    def __init__(self, spec: str) -> None:
        self.function, self.pattern, number, self.action = spec.split(":")
        self.for_ever = number.endswith("+")
        self.number = int(number.removesuffix("+"))
        self.calls = 0

    def is_due(self, arguments: Sequence[Any]) -> bool:
        if not any(fnmatch.fnmatch(_path(argument), self.pattern) for argument in arguments[:2]):
            return False
        self.calls += 1
        return self.calls == self.number or (self.for_ever and self.calls > self.number)

    def fire(self, call: Callable[[], Any]) -> Any:
        with open(os.environ["PFSD_TEST_FAULT_LOG"], "a") as log:
            log.write(f"{os.getpid()} {self.function} {self.calls} {self.action}\n")
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action == "skip":
            return None
        elif self.action.startswith("sleep="):
            time.sleep(float(self.action.partition("=")[2]))
        elif hasattr(errno, self.action.upper()):
            number = getattr(errno, self.action.upper())
            raise OSError(number, os.strerror(number))
        result = call()
        if self.action == "after-kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        return result


def _path(argument: object) -> str:
    """The path that an argument stands for; of a file descriptor, the one it was opened by."""
    if isinstance(argument, int):
        try:
            return os.readlink(f"/proc/self/fd/{argument}")
        except OSError:
            return ""
    return os.fsdecode(argument) if isinstance(argument, (str, bytes, os.PathLike)) else ""


def _install(disk: ModuleType, faults: list[Fault]) -> None:
    for name in {fault.function for fault in faults}:
        setattr(disk, name, _wrapped(getattr(disk, name), [fault for fault in faults if fault.function == name]))


def _wrapped(real: Callable[..., Any], faults: list[Fault]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        for fault in faults:
            if fault.is_due(arguments):
                return fault.fire(lambda: real(*arguments))
        return real(*arguments)

    return call


class _Finder(importlib.abc.MetaPathFinder):
    """Finds `pfsd.disk` as everyone does, and changes it once it is loaded."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "pfsd.disk":
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def load_and_change(module: ModuleType) -> None:
            load(module)
            _install(module, [Fault(one) for one in os.environ["PFSD_TEST_FAULT"].split(",")])

        spec.loader.exec_module = load_and_change  # type: ignore[method-assign]
        return spec


if os.environ.get("PFSD_TEST_FAULT"):
    sys.meta_path.insert(0, _Finder())
