"""The small tools for asyncio."""

from __future__ import annotations

import asyncio
import threading

import pytest

from pfsd.aio import Window, opened


async def test_a_window_raises_the_first_failure_when_all_tasks_end_at_once() -> None:
    started = asyncio.Event()

    async def wait() -> None:
        started.set()
        await asyncio.Event().wait()

    async def fail() -> None:
        await started.wait()
        raise KeyError("first")

    with pytest.raises(KeyError, match="first"):
        async with Window(2) as window:
            await window.start(wait())
            await window.start(fail())
            await window.start(wait())


async def test_what_is_opened_is_closed_even_if_the_user_was_cancelled_meanwhile() -> None:
    may_open, closed = threading.Event(), []

    def open() -> str:
        may_open.wait()
        return "file"

    async def use() -> None:
        async with opened(open, closed.append):
            pytest.fail("a cancelled user gets nothing")

    user = asyncio.create_task(use())
    await asyncio.sleep(0)
    user.cancel()
    await asyncio.sleep(0)
    may_open.set()
    with pytest.raises(asyncio.CancelledError):
        await user
    assert closed == ["file"]


async def test_what_could_not_be_opened_is_not_closed() -> None:
    def open() -> str:
        raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        async with opened(open, lambda _: pytest.fail("there is nothing to close")):
            pass
