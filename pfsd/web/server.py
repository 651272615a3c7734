"""The connections that HTTP comes through: how many there may be, and what those hear that are too many."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus

from pfsd.connection import Accepted, Connection
from pfsd.errors import Busy, RequestError
from pfsd.web import http
from pfsd.web.site import Site

log = logging.getLogger(__name__)

#: Connections at once: some browsers with a page each, and a scraper or two.
MAX_CONNECTIONS = 64
#: What who does not speak TLS is told where that is spoken.
PLAIN_ON_TLS = http.format_response(
    http.Refused(HTTPStatus.BAD_REQUEST, "this listener speaks TLS: ask https://").response, False, False
)


class Server:
    """Serves a site to connections."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._arriving: set[asyncio.BufferedProtocol] = set()
        self._serving: set[asyncio.Task[None]] = set()
        self._watching = asyncio.create_task(site.watch())

    def refusal(self) -> RequestError | None:
        """Why one more cannot be served, if it cannot."""
        if len(self._arriving) + len(self._serving) >= MAX_CONNECTIONS:
            return Busy(f"{MAX_CONNECTIONS} connections are open already; try again later")
        return None

    def make_connection(self) -> Accepted:
        """For a newcomer. Until it is made it is an arriving one, which `settled` ends if it never will be."""
        return Accepted(http.IDLE_SECONDS, http.HEAD_SECONDS, self._arriving, self._serve)

    def settled(self, connection: Accepted) -> None:
        """A connection is made, or never will be."""
        self._arriving.discard(connection)

    async def close(self) -> None:
        """End all connections, whatever they do."""
        tasks = {*self._serving, self._watching}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    def _serve(self, connection: Connection) -> None:
        task = asyncio.create_task(http.serve(connection, self._site.answer))
        self._serving.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._serving.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("an HTTP connection ended badly", exc_info=error)


def in_http(error: RequestError) -> bytes:
    """An error as a response to whatever will be asked."""
    code = HTTPStatus.SERVICE_UNAVAILABLE if isinstance(error, Busy) else HTTPStatus.FORBIDDEN
    return http.format_response(http.Refused(code, error.message).response, False, False)
