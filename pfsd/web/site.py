"""What there is to see under which path, and who may see it."""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from http import HTTPStatus
from importlib.resources import files as resources
from typing import TYPE_CHECKING, Any

from pfsd.calls import Service
from pfsd.connection import Connection
from pfsd.kinds import Address, TcpAddress
from pfsd.web import status
from pfsd.web.history import STEP_SECONDS, History, Look
from pfsd.web.http import Refused, Request, Response

if TYPE_CHECKING:
    from pfsd.web.metrics import Metrics

NO_METRICS = "/metrics needs the package prometheus_client, which is not installed: pip install 'pfsd[metrics]'"

_WANTED = {"WWW-Authenticate": 'Basic realm="pfsd, any user name, and the token as password", charset="UTF-8"'}
#: The page, by path: file and type of its pieces.
_PIECES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}


class Site:
    """The pages of one daemon, which listens for HTTP on `address`."""

    def __init__(self, service: Service, address: Address) -> None:
        self._service = service
        self._names = {"localhost"} | ({address.host.lower()} if isinstance(address, TcpAddress) else set())
        self._any_name = not isinstance(address, TcpAddress)  # no browser comes through a Unix socket by itself
        self._history = History()
        self._metrics: Metrics | None = None
        self._turn = asyncio.Lock()
        self._pages: dict[str, Callable[[Request], Awaitable[Response]]] = {
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/metrics": self._metrics_page,
            "/status.json": self._status,
            "/files.json": self._files,
            **dict.fromkeys(_PIECES, self._piece),
        }

    async def watch(self) -> None:
        """Keep the last minutes in mind, for ever."""
        service = self._service
        while True:
            activity, memory = service.activity, service.engine.budget.used
            self._history.note(Look(time.monotonic(), activity.bytes_in, activity.bytes_out, memory))
            await asyncio.sleep(STEP_SECONDS)

    async def answer(self, request: Request, connection: Connection) -> Response:
        """The response to a request. Refused, if it may not be asked here or not by this client."""
        if request.path != "/livez":
            await self._admit(request, connection.host)
        page = self._pages.get(request.path)
        if page is None:
            words = f"there is no such page; there are: {' '.join(self._pages)}"
            raise Refused(HTTPStatus.NOT_FOUND, words, ends=False)
        async with self._turn:  # one at a time: many requests must not keep the daemon from its work
            response = await page(request)
            await asyncio.sleep(0)
        return response

    # --- who may see it ---

    async def _admit(self, request: Request, host: str) -> None:
        if not self._service.tokens.needed:
            self._check_host(request.fields.get("host"))
            return
        token = _token(request.fields.get("authorization", ""))
        if token is None or not await self._service.tokens.is_right(token, host):
            raise Refused(HTTPStatus.UNAUTHORIZED, "this daemon wants its token", _WANTED, ends=False)

    def _check_host(self, host: str | None) -> None:
        """Refuse names that anybody may let point here: their web pages would see this one (DNS rebinding)."""
        if host is None or self._any_name:
            return
        name = host_name(host)
        if name not in self._names and not _is_ip(name):
            words = "this is no name of this daemon; ask for its IP address or localhost, or configure a token"
            raise Refused(HTTPStatus.MISDIRECTED_REQUEST, words)

    # --- pages ---

    async def _livez(self, request: Request) -> Response:
        return Response(HTTPStatus.OK, b"ok\n")

    async def _readyz(self, request: Request) -> Response:
        checks = status.checks(self._service)
        ready = all(checks.values())
        return _json({"ready": ready, "checks": checks}, HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE)

    async def _metrics_page(self, request: Request) -> Response:
        if self._metrics is None:
            try:
                from pfsd.web.metrics import Metrics
            except ImportError:
                raise Refused(HTTPStatus.NOT_IMPLEMENTED, NO_METRICS, ends=False) from None
            self._metrics = Metrics(self._service)
        text, kind = self._metrics.as_text()
        return Response(HTTPStatus.OK, text, kind)

    async def _status(self, request: Request) -> Response:
        return _json(status.status(self._service, self._history))

    async def _files(self, request: Request) -> Response:
        after, most = _number(request, "after", 0, 1 << 63), _number(request, "limit", 100, status.MOST_FILES)
        return _json(await status.files(self._service, after, most, request.query.get("name", "")))

    async def _piece(self, request: Request) -> Response:
        name, kind = _PIECES[request.path]
        return Response(HTTPStatus.OK, resources("pfsd.web").joinpath(name).read_bytes(), kind)


def host_name(host: str) -> str:
    """The name or address in a Host field, in lower case and without port and brackets."""
    name = host.lower()
    if name.startswith("["):
        return name[1:].partition("]")[0]
    return name.partition(":")[0].removesuffix(".")


def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _token(authorization: str) -> bytes | None:
    """The token in an Authorization field: of Bearer, or the password of Basic; None if there is none."""
    scheme, _, value = authorization.partition(" ")
    token = b""
    if scheme.lower() == "bearer":
        token = value.strip().encode("latin-1")  # the bytes that came
    elif scheme.lower() == "basic":
        with suppress(binascii.Error, ValueError):
            token = base64.b64decode(value.strip(), validate=True).partition(b":")[2]
    return token or None  # an empty one is no guess, for which others would be kept waiting


def _number(request: Request, key: str, default: int, most: int) -> int:
    value = request.query.get(key, "")
    if not value:
        return default
    if not (value.isascii() and value.isdigit() and len(value) < 20 and int(value) <= most):
        raise Refused(HTTPStatus.BAD_REQUEST, f"{key} must be a number from 0 to {most}", ends=False)
    return int(value)


def _json(value: dict[str, Any], code: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(code, json.dumps(value).encode() + b"\n", "application/json")
