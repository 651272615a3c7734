"""HTTP/1.1 as far as a read-only page needs it: heads of requests in, responses out, over a `Connection`.

No bodies, no ranges, no compression. Whoever sends what is too long, too slow or not HTTP gets one answer and the end.
A request is answered while no other is, and then everybody else gets a turn: requests cannot keep the daemon from
its work, however many come at once.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from pfsd.connection import Connection, ConnectionLost
from pfsd.errors import UsageError
from pfsd.protocol import Line, LongLine

log = logging.getLogger(__name__)

#: A head has at most so many bytes, and so many fields.
MAX_HEAD = 16 << 10
MAX_FIELDS = 64
#: A head gets so long from its first line to its end, a line so long from its first byte.
HEAD_SECONDS = 10.0
#: A connection that asks nothing for so long is closed: more than a browser's page or a scrape leaves between two.
IDLE_SECONDS = 75.0

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_REQUEST_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (\S+) HTTP/(\d)\.(\d)")


class Request(NamedTuple):
    """What was asked. Names of fields are in lower case; `query` has the first value of each key."""

    method: str
    path: str
    query: Mapping[str, str]
    fields: Mapping[str, str]
    keeps: bool  # the connection is to be used again


@dataclass(frozen=True)
class Response:
    """An answer; `ends` the connection where what follows cannot be told apart from a body."""

    status: HTTPStatus
    body: bytes
    kind: str = "text/plain; charset=utf-8"
    fields: Mapping[str, str] = field(default_factory=dict)
    ends: bool = False


class Refused(Exception):
    """A request that gets no other answer than this one."""

    def __init__(self, status: HTTPStatus, words: str, fields: Mapping[str, str] | None = None, ends: bool = True):
        super().__init__(words)
        self.response = Response(status, f"{words}\n".encode(), fields=fields or {}, ends=ends)


#: What a page may do in a browser: nothing but show itself, and ask where it came from. A test holds it strict.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FIELDS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Answer = Callable[[Request, Connection], Awaitable[Response]]


async def serve(connection: Connection, answer: Answer) -> None:
    """Answer the requests of a connection one by one, until it ends."""
    try:
        with suppress(ConnectionLost):
            await _serve(connection, connection.lines(lambda: False), answer)
            await connection.say_end()
    finally:
        connection.close()


async def _serve(connection: Connection, lines: AsyncIterator[Line | LongLine], answer: Answer) -> None:
    keeps = True
    while keeps:
        method = ""
        try:
            head = await _head(lines)
            if head is None:
                return
            request = parse_head(head)
            method, keeps = request.method, request.keeps
            response = await answer(request, connection)
        except Refused as refused:
            response = refused.response
        except UsageError as error:  # of the lines
            response = Refused(HTTPStatus.BAD_REQUEST, error.message).response
        except ConnectionLost:
            raise
        except Exception:
            log.exception("a bug in pfsd: an HTTP request failed")
            words = "a bug in pfsd; its log has more"
            response = Refused(HTTPStatus.INTERNAL_SERVER_ERROR, words, ends=False).response
        keeps = keeps and not response.ends
        await connection.write(format_response(response, method == "HEAD", keeps))
        await connection.flushed()
        await asyncio.sleep(0)  # refusals, too, which can be sent for by the thousand, leave the others their turn


async def _head(lines: AsyncIterator[Line | LongLine]) -> list[str] | None:
    """The lines of a head without the empty one at its end; None when there is no further request."""
    head: list[str] = []
    size = 0
    first = await anext(lines, None)
    if isinstance(first, Line) and not first.text:  # some send one too many behind a request
        first = await anext(lines, None)
    try:
        async with asyncio.timeout(HEAD_SECONDS):
            line = first
            while line is not None:
                if isinstance(line, LongLine) or (size := size + len(line.text)) > MAX_HEAD or len(head) > MAX_FIELDS:
                    raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"a head has at most {MAX_HEAD} bytes")
                if not line.text:
                    break
                head.append(line.text.decode("latin-1"))
                line = await anext(lines, None)
    except TimeoutError:
        raise Refused(HTTPStatus.REQUEST_TIMEOUT, f"a head has to come within {HEAD_SECONDS:g} seconds") from None
    if first is None or line is None:
        return None
    return head


def parse_head(head: list[str]) -> Request:
    """A request from the lines of its head. Refused, if it is none that can be answered."""
    found = _REQUEST_LINE.fullmatch(head[0]) if head else None
    if found is None:
        raise Refused(HTTPStatus.BAD_REQUEST, "this is no HTTP request")
    method, target, major, minor = found.groups()
    if major != "1":
        raise Refused(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.1 is spoken here")
    fields = _parse_fields(head[1:])
    if minor != "0" and "host" not in fields:
        raise Refused(HTTPStatus.BAD_REQUEST, "a request needs a Host field")
    if method not in ("GET", "HEAD"):
        raise Refused(
            HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD: nothing can be changed here", {"Allow": "GET, HEAD"}
        )
    if fields.get("content-length", "0") != "0" or "transfer-encoding" in fields:
        raise Refused(HTTPStatus.BAD_REQUEST, "a request takes no body here")
    path, query = _parse_target(target)
    closes = "close" in re.split(r"[ \t,]+", fields.get("connection", "").lower())
    return Request(method, path, query, fields, keeps=minor != "0" and not closes)


def _parse_fields(lines: list[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not _TOKEN.fullmatch(name):
            raise Refused(HTTPStatus.BAD_REQUEST, "a line of the head is no field")
        key = name.lower()
        if key in fields and key in ("host", "authorization", "content-length"):
            raise Refused(HTTPStatus.BAD_REQUEST, f"there is more than one {key} field")
        fields[key] = f"{fields[key]}, {value.strip()}" if key in fields else value.strip()
    return fields


def _parse_target(target: str) -> tuple[str, dict[str, str]]:
    try:
        if not target.startswith("/") or target.startswith("//"):
            raise ValueError
        parts = urlsplit(target)
        pairs = parse_qsl(parts.query, keep_blank_values=True, max_num_fields=16)
    except ValueError:
        raise Refused(HTTPStatus.BAD_REQUEST, "this is no path that can be asked for") from None
    return unquote(parts.path), dict(reversed(pairs))


def format_response(response: Response, only_head: bool, keeps: bool) -> bytes:
    """The bytes of a response."""
    fields = {
        "Content-Type": response.kind,
        "Content-Length": str(len(response.body)),
        **_FIELDS,
        **response.fields,
        "Connection": "keep-alive" if keeps else "close",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    line = f"HTTP/1.1 {response.status.value} {response.status.phrase}\r\n"
    return f"{line}{head}\r\n".encode("latin-1") + (b"" if only_head else response.body)
