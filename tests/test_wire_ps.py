"""`ps`, and the counters of `stats` that only go up."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pfsd.activity import Command
from pfsd.handlers import HANDLERS
from pfsd.protocol import LF, Request, Word, format_line
from pfsd.registry import Registry
from tests.harness import PART, Daemon, has_ended, noise, wait_for
from tests.wire import Wire, code, fields


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("ps"), listen=["127.0.0.1:0", {"address": "unix:socket"}]) as daemon:
        daemon.start()
        yield daemon


def commands(rows: list[bytes]) -> dict[str, dict[str, str]]:
    """The COMMAND rows, by verb."""
    return {fields(row)["verb"]: fields(row) for row in rows if b"COMMAND " in row}


def counters(daemon: Daemon) -> dict[str, int]:
    stats = daemon.stats()
    return {key: int(stats[key]) for key in ("bytes_in", "bytes_out", "commands_total", "errors_total")}


def upload_begins(wire: Wire, name: bytes, content: bytes) -> None:
    """An upload that has come so far, and that the daemon has heard of."""
    wire.send(b"@up put - name=%b size=chunked\n@up DATA %d\n%b@p ping\n" % (name, len(content), content))
    assert wire.line() == b"@p OK ping"


def test_a_running_upload_is_seen_by_others_until_it_ends(daemon: Daemon) -> None:
    with daemon.connect() as sender, daemon.connect(unix=True) as looker:
        upload_begins(sender, b'"two words"', b"hello\n")
        seen = commands(looker.ask(b"ps\n"))["put"]
        host, port = sender.socket.getsockname()
        assert seen["client"] == f"{host}:{port}" and seen["tag"] == "up" and seen["name"] == "two words"
        assert "total" not in seen and float(seen["seconds"]) >= 0
        sender.send(b"@up ABORT\n")
        assert sender.reply()[-1].startswith(b"@up ERR cancelled")
        assert set(commands(looker.ask(b"ps\n"))) == {"ps"}


def test_the_looker_itself_comes_last(daemon: Daemon) -> None:
    with daemon.connect() as sender, daemon.connect(unix=True) as looker:
        upload_begins(sender, b"x", b"hello\n")
        rows = [row for row in looker.ask(b"ps\n") if row.startswith(b"COMMAND ")]
        assert [fields(row)["verb"] for row in rows] == ["put", "ps"]
        assert fields(rows[-1]).keys() == {"id", "verb", "client", "seconds"}
        assert fields(rows[-1])["client"] == "unix"


def test_bytes_and_total_of_a_get_that_its_client_does_not_take(daemon: Daemon) -> None:
    content = noise(64 * PART)
    (daemon.root / "big").write_bytes(content)
    stored = fields(daemon.ask(b"put big name=2024\n")[-1])
    with Wire(daemon.address, receive_buffer=4096) as reader, daemon.connect() as looker:
        reader.send(b"get %b -\n" % stored["id"].encode())
        reader.peek(1)
        before = counters(daemon)["bytes_out"]
        seen = commands(looker.ask(b"ps\n"))["get"]
        assert seen["name"] == "2024", "an id is shown as its name"
        assert int(seen["total"]) == len(content)
        received, last = reader.frames()
        assert received == content and code(last) == "OK"
        assert counters(daemon)["bytes_out"] - before >= len(content) - int(seen["bytes"]) - 4 * PART
    assert b"delete" in daemon.ask(b'delete "2024"\n')[-1]


def test_a_number_that_is_no_id_stops_nobody_from_looking(daemon: Daemon) -> None:
    command = Command(1, Request("get", (Word(b"9" * 5000), Word(b"-"))), "unix", 0.0)
    assert command.name(Registry()) is None


def test_counters_count_content_and_outcomes(daemon: Daemon) -> None:
    before = counters(daemon)
    with daemon.connect() as wire:
        wire.ask(b"put - name=zeros size=100000\n" + bytes(100_000))
        wire.ask(b"put - name=zeros size=5\nhello")
        wire.send(b"get zeros - length=1000\n")
        wire.frames()
        wire.ask(b"nonsense\n")
        wire.ask(b"delete zeros\n")
    after = counters(daemon)
    assert after["bytes_in"] - before["bytes_in"] == 100_000, "not what was left after compression"
    assert after["bytes_out"] - before["bytes_out"] == 1000
    # Five, and the `stats` that was asked before.
    assert after["commands_total"] - before["commands_total"] == 6
    assert after["errors_total"] - before["errors_total"] == 2


async def test_many_commands_do_not_keep_others_waiting() -> None:
    at_work = [Command(number, Request("list"), "unix", 0.0) for number in range(5000)]
    turns, written = 0, []

    async def rows(lines: bytes) -> None:
        written.append((turns, lines.count(b"COMMAND ")))

    async def ok(verb: str, commands: int, workers: int) -> None:
        assert (verb, commands, workers) == ("ps", 5000, 0)

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    call: Any = SimpleNamespace(
        service=SimpleNamespace(activity=SimpleNamespace(running=lambda: iter(at_work))),
        engine=SimpleNamespace(workers=SimpleNamespace(slots=list), registry=Registry()),
        answer=SimpleNamespace(
            line=lambda word, **fields: format_line(word, "", fields, None, LF),
            rows=rows,
            ok=ok,
        ),
    )
    counting = asyncio.create_task(count_turns())
    await HANDLERS["ps"](call)
    counting.cancel()
    assert sum(count for _, count in written) == 5000
    assert len({turn for turn, _ in written}) == len(written) and max(count for _, count in written) < 1000


def test_a_tag_in_use_is_an_error_that_counts(daemon: Daemon) -> None:
    with daemon.connect() as sender:
        upload_begins(sender, b"tagged", b"hello\n")
        before = counters(daemon)
        sender.send(b"@up list\n")
        assert sender.line().startswith(b"@up ERR usage ")
        after = counters(daemon)
        sender.send(b"@up ABORT\n")
        assert sender.reply()[-1].startswith(b"@up ERR cancelled")
    assert after["errors_total"] == before["errors_total"] + 1
    assert after["commands_total"] == before["commands_total"] + 2, "with the stats before"


def test_a_token_is_never_shown(tmp_path: Path) -> None:
    with Daemon(tmp_path, token="correct-horse", allow_exit="nobody") as daemon:
        daemon.start()
        with daemon.connect() as guesser, daemon.connect() as looker:
            assert code(looker.last(b"ps\n")) == "auth"
            assert looker.last(b"auth correct-horse\n") == b"OK auth"
            guesser.send(b"auth wrong-horse\n@p ping\n")  # takes a second
            assert guesser.line() == b"@p OK ping"
            rows = looker.ask(b"ps\n")
            assert "auth" in commands(rows) and b"horse" not in b"".join(rows)


def test_a_process_that_dies_is_down_or_another_one(daemon: Daemon) -> None:
    def workers() -> list[dict[str, str]]:
        return [fields(row) for row in daemon.ask(b"ps\n") if row.startswith(b"WORKER ")]

    before = workers()
    assert [row["slot"] for row in before] == ["0", "1"] and {row["state"] for row in before} == {"idle"}
    assert {int(row["pid"]) for row in before} == {process.pid for process in daemon.workers()}
    for row in before:
        os.kill(int(row["pid"]), signal.SIGKILL)
        assert has_ended(int(row["pid"]))
    wait_for(lambda: [row["state"] for row in workers()] == ["down", "down"])  # the one that forked them hears it later
    assert code(daemon.ask(b"put - name=after size=5\nhello")[-1]) == "OK"
    after = workers()
    assert sum(int(row["restarts"]) for row in after) >= 1
    replaced = next(row for row in after if row["restarts"] != "0")
    assert replaced["state"] == "idle" and int(replaced["done"]) > 0
    assert daemon.stats()["processes_replaced"] == str(sum(int(row["restarts"]) for row in after))
