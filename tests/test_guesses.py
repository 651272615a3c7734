"""guesses: wrong tokens of one peer are looked at one by one, and cost nobody else a moment."""

from __future__ import annotations

import asyncio
import hmac
from typing import Any

import pytest

from pfsd.guesses import Tokens

TOKEN = "correct-hörse"
PAUSE = 0.05
#: The clock of uvloop counts milliseconds.
TICK = 0.002


def at_once(tokens: Tokens, token: str, host: str) -> bool:
    """Whether a token is right; it must be told without any wait."""
    looking: Any = tokens.is_right(token.encode(), host)
    with pytest.raises(StopIteration) as answer:
        looking.send(None)
    return bool(answer.value.value)


async def guess(tokens: Tokens, host: str) -> asyncio.Task[bool]:
    """Begin to guess."""
    task = asyncio.create_task(tokens.is_right(b"wrong", host))
    await asyncio.sleep(0)
    assert not task.done()
    return task


async def test_the_right_token_is_told_at_once_and_a_wrong_one_after_a_pause() -> None:
    tokens, loop = Tokens(TOKEN, PAUSE), asyncio.get_running_loop()
    assert at_once(tokens, TOKEN, "10.0.0.1")
    before = loop.time()
    assert not await tokens.is_right(b"wrong", "10.0.0.1")
    assert loop.time() - before >= PAUSE - TICK
    await asyncio.sleep(PAUSE)
    assert at_once(tokens, TOKEN, "10.0.0.1"), "forgiven"


async def test_without_a_token_everything_is_right() -> None:
    tokens = Tokens(None)
    assert not tokens.needed
    assert at_once(tokens, "", "10.0.0.1")


@pytest.mark.promise("local")
async def test_guesses_of_a_peer_are_looked_at_one_by_one_and_hold_up_nobody_else() -> None:
    tokens, loop = Tokens(TOKEN, PAUSE), asyncio.get_running_loop()
    before = loop.time()
    guesses = [await guess(tokens, "10.0.0.1") for _ in range(10)]
    right = asyncio.create_task(tokens.is_right(TOKEN.encode(), "10.0.0.1"))
    assert at_once(tokens, TOKEN, "10.0.0.2")
    assert await right
    assert loop.time() - before >= 10 * (PAUSE - TICK), "its haste would tell it from the others"
    assert all(task.done() for task in guesses), "and it does have a turn"
    assert not any(task.result() for task in guesses)


@pytest.mark.promise("local")
async def test_who_hangs_up_on_a_wrong_guess_waits_all_the_same() -> None:
    tokens, loop = Tokens(TOKEN, PAUSE), asyncio.get_running_loop()
    before = loop.time()
    for _ in range(4):
        task = asyncio.create_task(tokens.is_right(b"wrong", "10.0.0.1"))
        await asyncio.sleep(PAUSE / 50)
        task.cancel()
        await asyncio.wait({task})
    assert await tokens.is_right(TOKEN.encode(), "10.0.0.1")
    assert loop.time() - before >= PAUSE - TICK


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("unix", "unix", True),
        ("unix", "127.0.0.1", False),
    ],
)
async def test_who_is_one_peer(one: str, other: str, same: bool) -> None:
    tokens = Tokens(TOKEN, PAUSE)
    task = await guess(tokens, one)
    if same:
        await guess(tokens, other)
    else:
        assert at_once(tokens, TOKEN, other)
    task.cancel()


async def test_suspects_are_forgotten() -> None:
    tokens = Tokens(TOKEN, PAUSE)
    await asyncio.gather(*(tokens.is_right(b"wrong", f"10.0.0.{host}") for host in range(100)))
    while tokens._suspects:  # noqa: ASYNC110
        await asyncio.sleep(PAUSE)


@pytest.mark.parametrize("token", ["", "c", TOKEN, TOKEN + "x", "x" * 60_000, "ö", "\udcff"])
def test_a_comparison_tells_nothing_by_its_time(monkeypatch: pytest.MonkeyPatch, token: str) -> None:
    compared: list[tuple[bytes, bytes]] = []
    monkeypatch.setattr(hmac, "compare_digest", lambda one, other: compared.append((one, other)) or one == other)
    tokens = Tokens(TOKEN)
    assert tokens._equals(token.encode("utf-8", "surrogateescape")) == (token == TOKEN)
    ((given, wanted),) = compared
    assert len(given) == len(wanted) == 32
