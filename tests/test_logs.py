"""logs: whatever is in an event, it is one line and cannot be taken for another; a traceback is indented below it."""

from __future__ import annotations

import io
import logging
import re

import pytest

from pfsd import logs

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

    def __init__(self) -> None:
        super().__init__("a log")
        self.stream = io.StringIO()
        handler = logging.StreamHandler(self.stream)
        handler.setFormatter(logs.Formatter())
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
