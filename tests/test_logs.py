"""logs: whatever is in an event, it is one line and cannot be taken for another; a traceback is indented below it."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import time
from pathlib import Path

import pytest

from pfsd import logs
from tests.harness import Daemon, wait_for
from tests.wire import code, fields

#: How every event begins.
HEAD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (DEBUG|INFO|WARNING|ERROR|CRITICAL) ")


def assert_is_log(text: str) -> None:
    """Every line begins an event or is indented below one, and holds nothing that a terminal obeys."""
    assert not text or text.endswith("\n")
    for line in text.split("\n")[:-1]:
        assert HEAD.match(line) or line.startswith(logs.INDENT), line
        assert line.isprintable(), line


class Log(logging.Logger):
    """A log of one's own, and what is written to it."""

    def __init__(self, formatter: logging.Formatter | None = None) -> None:
        super().__init__("a log")
        self.stream = io.StringIO()
        handler = logging.StreamHandler(self.stream)
        handler.setFormatter(formatter or logs.Formatter())
        self.addHandler(handler)

    @property
    def text(self) -> str:
        return self.stream.getvalue()


HOSTILE = [
    "x\nERROR fake",
    "\r\x1b[2Jx",
    "\u2028\u2029\x85\x0b\x0c",
    "\udcff",
    "\u202egpj.exe",
    "\0",
]


@pytest.mark.promise("local")
@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_an_event_is_one_line(text: str) -> None:
    log = Log()
    log.warning("client %d said %s", 1, text)
    assert_is_log(log.text)
    assert log.text.count("\n") == 1


@pytest.mark.promise("local")
@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_a_traceback_is_indented(text: str) -> None:
    log = Log()
    try:
        raise ValueError(text)
    except ValueError as error:
        log.exception("%s", text)
        log.error("in an I/O process", extra={"trace": f"Traceback\n{error}\n"}, stack_info=True)
    assert_is_log(log.text)
    assert len(HEAD.findall(log.text)) == 2
    assert f"{logs.INDENT}Traceback" in log.text


def test_what_can_be_read_stays_as_it_is() -> None:
    log = Log()
    log.info("größer: %s", "50 % 日本")
    assert log.text.endswith(" INFO größer: 50 % 日本\n")


def test_facts_are_words_behind_the_message() -> None:
    log = Log()
    about = logs.About(3, "127.0.0.1:4", "put", 7)
    token = logs.about.set(about)
    log.info("OK", extra={"facts": {"id": 7, "name": b"a b\xff\n", "seconds": 0.5}})
    logs.about.reset(token)
    where = f"client=3 peer=127.0.0.1:4 verb=put ref={about.ref}"
    assert log.text.endswith(rf' INFO OK id=7 name="a b\xff\n" seconds=0.500 {where}' + "\n")


def test_a_ref_leads_from_ps_and_from_an_error_to_the_log(idle_daemon: Daemon) -> None:
    idle_daemon.prelude = (
        "from pfsd import handlers\n"
        "async def broken(call): raise RuntimeError('broken')\n"
        "handlers.HANDLERS['stats'] = broken\n"
    )
    idle_daemon.start()
    with idle_daemon.connect() as wire:
        wire.send(b"@up put - name=half size=chunked\n@see ps\n")
        rows = [fields(row) for row in iter(wire.line, b"@see OK ps commands=2 workers=2")]
        shown = {row["verb"]: row["id"] for row in rows if "verb" in row}
        wire.send(b"@up DATA 3\nabc\n@up DATA 0\n")
        assert code(wire.line()) == "OK"
        told = fields(wire.last(b"stats\n"))["ref"]
        assert code(wire.last(b"delete nothing\n")) == "not-found"

    def lines(ref: str) -> list[str]:
        return [" ".join(line.split()[2:5]) for line in idle_daemon.log.splitlines() if f"ref={ref}" in line.split()]

    for ref, expected in (
        (shown["put"], ["INFO OK put"]),
        (shown["ps"], ["DEBUG OK ps"]),
        (told, ["ERROR internal error", "DEBUG ERR internal:"]),
        (str(int(told) + 1), ["INFO ERR not-found:"]),
    ):
        wait_for(lambda ref=ref, expected=expected: lines(ref) == expected, lambda: idle_daemon.log)


@pytest.mark.promise("local")
@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_json_is_one_object_in_a_line(text: str) -> None:
    log = Log(logs.JsonFormatter())
    try:
        raise ValueError(text)
    except ValueError:
        log.exception("%s", text, extra={"facts": {"name": text.encode("utf-8", "surrogateescape")}, "trace": text})
    assert log.text.count("\n") == 1 and log.text.isascii() and log.text[:-1].isprintable()
    event = json.loads(log.text)
    assert event["message"].encode() and event["name"].encode(), "valid Unicode"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", event["time"])
    assert event["level"] == "error" and "Traceback" in event["trace"]


def test_time_in_json_is_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    record = logging.makeLogRecord({"created": 1_000_000_000.25, "msecs": 250.0, "levelname": "INFO", "msg": "x"})
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert json.loads(logs.JsonFormatter().format(record))["time"] == "2001-09-09T01:46:40.250Z"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_the_journal_is_told_the_level_of_each_line(tmp_path: Path) -> None:
    with (tmp_path / "stream").open("w") as stream:
        found = os.fstat(stream.fileno())
        assert logs.is_journal(stream.fileno(), {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"})
        assert not logs.is_journal(stream.fileno(), {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino + 1}"})
        assert not logs.is_journal(stream.fileno(), {})
    log = Log(logs.formatter("plain", in_journal=True))
    log.warning("one")
    log.error("two", extra={"trace": "three\nfour"})
    assert log.text == f"<4>one\n<3>two\n<3>{logs.INDENT}three\n<3>{logs.INDENT}four\n"
    log = Log(logs.formatter("json", in_journal=True))
    log.info("one")
    assert log.text.startswith('<6>{"time"')
