"""The daemon's log: one line for each event, whatever bytes of clients are in it."""

from __future__ import annotations

import logging

FORMAT = "%(asctime)s %(levelname)s %(message)s"
#: Before each further line of an event, such as those of a traceback.
INDENT = "    "


class Formatter(logging.Formatter):
    """Nothing that a client named can begin a line of its own, or reach the terminal of who reads the log.

    Control characters, and what else cannot be printed, are written as Python escapes them; the lines of a
    traceback stay lines, indented.
    """

    def __init__(self) -> None:
        super().__init__(FORMAT)

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        # What an I/O process tells of a bug.
        trace = getattr(record, "trace", "")
        return f"{text}\n{_indented(trace.rstrip())}" if trace else text

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = _escaped(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: object) -> str:
        return _indented(super().formatException(ei))  # type: ignore[arg-type]

    def formatStack(self, stack_info: str) -> str:
        return _indented(super().formatStack(stack_info))


def start(level: str) -> None:
    """Write all events from `level` on to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(Formatter())
    logging.captureWarnings(True)
    logging.root.addHandler(handler)
    logging.root.setLevel(level.upper())


def _indented(text: str) -> str:
    # Of a line break inside the text of an exception nobody can tell: its second line is indented too.
    return "\n".join(INDENT + _escaped(line) for line in text.split("\n"))


def _escaped(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
