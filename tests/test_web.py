"""The HTTP listener: what it shows, whom, and that nobody can keep the daemon from its work through it."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, suppress
from http import HTTPStatus
from importlib.resources import files as resources
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pfsd.kinds import TcpAddress, UnixAddress
from pfsd.protocol import Line
from pfsd.web import history, server, site, status
from pfsd.web import http as web_http
from tests.certificates import make_certificate, needs_openssl
from tests.harness import Daemon, noise
from tests.wire import PATIENCE_SECONDS, Wire

ROOT = Path(__file__).parent.parent
PAGES = ["/", "/page.css", "/page.js", "/icon.svg", "/status.json", "/files.json", "/metrics", "/readyz", "/livez"]
TOKEN = "correct-horse"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("web"), http="127.0.0.1:0") as daemon:
        daemon.start()
        yield daemon


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One with a token, that other machines could reach."""
    with Daemon(tmp_path_factory.mktemp("guarded"), http="0.0.0.0:0", token=TOKEN) as daemon:
        daemon.start()
        yield daemon


class Answer(SimpleNamespace):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def ask(daemon: Daemon, path: str, method: str = "GET", **fields: str) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", daemon.http_port, timeout=PATIENCE_SECONDS)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in fields.items()})
        response = connection.getresponse()
        return Answer(status=response.status, headers=response.headers, body=response.read())
    finally:
        connection.close()


def raw(daemon: Daemon) -> Wire:
    """A connection for literal bytes."""
    return Wire(("127.0.0.1", daemon.http_port))


def put(daemon: Daemon, name: bytes, content: bytes = b"") -> None:
    assert daemon.ask(b"put - name=%b size=%d\n%b" % (name, len(content), content))[-1].startswith(b"OK put ")


# --- what it shows --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PAGES)
def test_every_page_is_there_and_says_what_a_browser_may_do(daemon: Daemon, path: str) -> None:
    answer = ask(daemon, path)
    assert answer.status == 200 and answer.body
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Cache-Control"] == "no-store"
    assert "Access-Control-Allow-Origin" not in answer.headers
    policy = dict(rule.split(" ", 1) for rule in answer.headers["Content-Security-Policy"].split("; "))
    assert policy.pop("default-src") == "'none'"
    assert set(policy.values()) <= {"'self'", "'none'"}, "nothing from elsewhere, nothing inline, no eval"
    head = ask(daemon, path, "HEAD")
    assert head.status == 200 and not head.body and head.headers["Content-Type"] == answer.headers["Content-Type"]


@pytest.mark.parametrize("name", ["page.html", "page.css", "page.js"])
def test_the_page_takes_nothing_from_elsewhere_and_makes_no_markup(name: str) -> None:
    text = resources("pfsd.web").joinpath(name).read_text("utf-8")
    without_names = text.replace('"http://www.w3.org/2000/svg"', "")  # a namespace, which nobody asks for
    assert not re.search(r"""https?:|["'(=]//|@import|\burl\(""", without_names)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|style=|onclick=", text)


def test_the_page_says_something_without_javascript() -> None:
    page = resources("pfsd.web").joinpath("page.html").read_text("utf-8")
    assert re.search(r"<noscript>.*JavaScript.*/status\.json.*</noscript>", page, re.DOTALL)


def test_status_says_what_stats_and_ps_say(daemon: Daemon) -> None:
    put(daemon, b"status-1", b"hello\n")
    with daemon.connect() as sender:
        sender.send(b"@up put - name=half size=chunked\n@up DATA 6\nhello\n@p ping\n")
        assert sender.line() == b"@p OK ping"
        shown = ask(daemon, "/status.json").json()
    (command,) = shown["commands"]
    assert (command["verb"], command["name"], command["tag"]) == ("put", "half", "up")
    assert [worker["slot"] for worker in shown["workers"]] == [0, 1]
    stats = daemon.stats()
    for key in ("files", "parts", "size", "stored", "bytes_in", "memory_limit", "max_clients", "pid"):
        assert shown["stats"][key] == int(stats[key]), key
    assert set(stats) == set(shown["stats"])
    assert shown["disk_free"] > 0 and shown["damaged_files"] == 0 and shown["damaged"] == []


def test_only_so_many_commands_are_shown(daemon: Daemon) -> None:
    count, each = status.MOST_COMMANDS + 20, 30
    with ExitStack() as connections:
        for sender in range(count // each):
            wire = connections.enter_context(daemon.connect())
            for at in range(each):
                wire.send(b"@%d put - name=%d-%d size=chunked\n" % (at, sender, at))
            assert wire.last(b"ping\n") == b"OK ping"
        shown = ask(daemon, "/status.json").json()
        assert len(shown["commands"]) == status.MOST_COMMANDS and shown["stats"]["requests"] == count
    daemon.wait_until("requests", "1")


def test_files_come_page_by_page(daemon: Daemon) -> None:
    for at in range(7):
        put(daemon, b"paged-%d" % at, b"x" * at)
    names, after, answers = [], 0, 0
    while after is not None:
        page = ask(daemon, f"/files.json?after={after}&limit=3&name=PAGED").json()
        names += [file["name"] for file in page["files"]]
        after, answers = page["next"], answers + 1
        assert len(page["files"]) <= 3
    assert names == [f"paged-{at}" for at in range(7)] and answers >= 3
    (file,) = ask(daemon, "/files.json?name=paged-6").json()["files"]
    assert (file["size"], file["parts"], file["status"]) == (6, 1, "ready") and file["stored"] > 0


def test_any_name_can_be_shown(daemon: Daemon) -> None:
    put(daemon, rb'"odd <script>\xff\n\""')
    (file,) = ask(daemon, "/files.json?name=odd").json()["files"]
    assert file["name"] == 'odd <script>\\xff\n"'


def test_a_search_looks_at_so_many_files_at_a_time() -> None:
    asked = []

    class Registry:
        def files_after(self, last: int, count: int) -> list[Any]:
            asked.append(count)
            return [SimpleNamespace(id=last + at, name=b"x") for at in range(1, count + 1)]

    service: Any = SimpleNamespace(engine=SimpleNamespace(registry=Registry()))
    page = asyncio.run(status.files(service, 0, 10, "never"))
    assert page == {"files": [], "next": status.LOOKED_AT}
    assert sum(asked) == status.LOOKED_AT + 1 and max(asked) <= status.PAGE


@pytest.mark.parametrize("query", ["after=x", "after=-1", "limit=501", "limit=1e3", "after=99999999999999999999"])
def test_numbers_that_are_none_are_refused(daemon: Daemon, query: str) -> None:
    answer = ask(daemon, f"/files.json?{query}")
    assert answer.status == 400 and b"must be a number from 0 to" in answer.body


# --- checks ---------------------------------------------------------------------------------------


def test_ready_and_alive(daemon: Daemon) -> None:
    assert ask(daemon, "/livez").body == b"ok\n"
    answer = ask(daemon, "/readyz")
    assert answer.status == 200
    assert answer.json() == {
        "ready": True,
        "checks": {"journal": True, "processes": True, "room": True, "serving": True},
    }


@pytest.mark.parametrize(
    ("state", "failed", "slots", "false"),
    [
        ("ready", False, ["down", "down"], "processes"),
        ("ready", True, ["idle", "busy"], "journal"),
        ("readonly", False, ["idle", "down"], "journal"),
        ("full", False, ["idle"], "room"),
        ("stopping", False, ["idle"], "serving"),
    ],
)
def test_what_makes_a_daemon_unready(state: str, failed: bool, slots: list[str], false: str) -> None:
    workers = SimpleNamespace(slots=lambda: [SimpleNamespace(state=state) for state in slots])
    engine = SimpleNamespace(committer=SimpleNamespace(failed=failed), workers=workers)
    service: Any = SimpleNamespace(state=lambda: state, engine=engine)
    assert [name for name, holds in status.checks(service).items() if not holds] == [false]


def test_a_daemon_that_stops_says_so_until_the_end(tmp_path: Path) -> None:
    with Daemon(tmp_path, http="127.0.0.1:0", stop_timeout=20) as daemon:
        daemon.start()
        with daemon.connect() as sender:
            sender.send(b"put - name=half size=10\nhello")  # keeps it from stopping
            daemon.wait_until("requests", "2")
            with daemon.connect() as other:
                other.send(b"@x exit\n@p ping\n")
                assert other.line() == b"@p OK ping"
            answer = ask(daemon, "/readyz")
            assert answer.status == 503 and answer.json()["checks"]["serving"] is False
            assert ask(daemon, "/livez").status == 200
            sender.send(b"world")
            assert sender.reply()[-1].startswith(b"OK put")
        daemon.wait(0)


# --- metrics --------------------------------------------------------------------------------------


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_agree_with_stats_and_only_go_up(daemon: Daemon) -> None:
    answer = ask(daemon, "/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    before = samples(answer.body.decode())
    put(daemon, b"counted", b"x" * 1000)
    daemon.ask(b"stat nobody\n")
    after = samples(ask(daemon, "/metrics").body.decode())

    def more(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after[key] - before.get(key, 0)

    assert more("pfsd_content_bytes_total", direction="in") == 1000
    assert more("pfsd_commands_total", verb="put", outcome="ok") == 1
    assert more("pfsd_commands_total", verb="stat", outcome="not-found") == 1
    assert more("pfsd_files") == 1 and more("pfsd_content_stored_bytes") == 1000
    assert more("pfsd_commit_seconds_count") >= 1 and more("pfsd_commit_seconds_sum") > 0
    stats = daemon.stats()
    for name, key in (
        ("pfsd_files", "files"),
        ("pfsd_stored_bytes", "stored"),
        ("pfsd_journal_bytes", "journal_bytes"),
    ):
        assert after[name, ()] == int(stats[key])
    assert sum(after["pfsd_workers", (("state", state),)] for state in ("idle", "busy", "down")) == 2
    assert ("process_resident_memory_bytes", ()) in after


def test_metrics_follow_the_conventions(daemon: Daemon) -> None:
    for family in text_string_to_metric_families(ask(daemon, "/metrics").body.decode()):
        assert family.documentation, family.name
        assert family.type in ("counter", "gauge", "histogram"), family.name
        assert re.fullmatch(r"(pfsd|process|python)_[a-z_]+", family.name)
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)


def test_verbs_that_are_none_make_no_metric_of_their_own(daemon: Daemon) -> None:
    daemon.ask(b"nonsense\n")
    text = ask(daemon, "/metrics").body.decode()
    assert 'verb="invalid"' in text and "nonsense" not in text


def test_without_the_package_metrics_name_the_extra(tmp_path: Path) -> None:
    with Daemon(tmp_path, http="127.0.0.1:0") as daemon:
        daemon.prelude = "sys.modules['prometheus_client'] = None"
        daemon.start()
        answer = ask(daemon, "/metrics")
        assert answer.status == 501 and b"pip install 'pfsd[metrics]'" in answer.body
        assert ask(daemon, "/").status == 200


def test_no_look_but_at_files_walks_through_them(tmp_path: Path) -> None:
    with Daemon(tmp_path, http="127.0.0.1:0", verify_every=0) as daemon:
        walks = " = ".join(f"r.Registry.{name}" for name in ("files_after", "parts", "runs"))
        daemon.prelude = f"import pfsd.registry as r\n{walks} = None"
        daemon.start()
        put(daemon, b"one", b"x")
        for path in ("/metrics", "/status.json", "/readyz"):
            assert ask(daemon, path).status == 200
        assert ask(daemon, "/files.json").status == 500, "this one does"


def test_the_dashboard_asks_for_metrics_that_there_are(daemon: Daemon) -> None:
    put(daemon, b"for-the-dashboard", b"x")
    there = {name for name, _ in samples(ask(daemon, "/metrics").body.decode())}
    dashboard = json.loads((ROOT / "contrib" / "grafana" / "pfsd.json").read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    queries += [found["query"]["query"] for found in dashboard["templating"]["list"] if found["type"] == "query"]
    named = {name for query in queries for name in re.findall(r"\b(?:pfsd|process)_\w+", query)}
    assert len(queries) > 10 and named <= there, named - there


def test_each_metric_is_documented_and_none_else(daemon: Daemon) -> None:
    text = ask(daemon, "/metrics").body.decode()
    there = {name.removesuffix("_total") for name in re.findall(r"^# TYPE (pfsd_\w+)", text, re.MULTILINE)}
    documented = re.findall(r"`(pfsd_\w+)`", (ROOT / "docs" / "status.md").read_text())
    assert {name.removesuffix("_total") for name in documented} == there


# --- who may see it -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:7374", "127.0.0.1.evil.example", "localhost.evil.example", ""]
)
def test_other_names_for_this_machine_are_refused(daemon: Daemon, host: str) -> None:
    for path in PAGES[:-1]:
        answer = ask(daemon, path, Host=host)
        assert answer.status == 421 and b"no name of this daemon" in answer.body


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:1", "127.0.0.1:7374", "[::1]:7374", "192.0.2.7", "localhost."]
)
def test_names_that_nobody_else_can_point_here_are_fine(daemon: Daemon, host: str) -> None:
    assert ask(daemon, "/status.json", Host=host).status == 200


def test_the_configured_name_is_fine_and_a_unix_socket_has_none() -> None:
    service: Any = SimpleNamespace()
    named = site.Site(service, TcpAddress("Store.example", 7374))
    named._check_host("store.example:7374")
    with pytest.raises(web_http.Refused):
        named._check_host("other.example")
    site.Site(service, UnixAddress(Path("/x")))._check_host("whatever.example")


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"anybody:{password}".encode()).decode()


def test_with_a_token_everything_but_livez_wants_it(guarded: Daemon) -> None:
    for path in [*PAGES[:-1], "/nowhere"]:
        answer = ask(guarded, path)
        assert answer.status == 401 and answer.headers["WWW-Authenticate"].startswith("Basic "), path
    assert ask(guarded, "/livez").status == 200
    for right in (f"Bearer {TOKEN}", f"bearer {TOKEN}", basic(TOKEN)):
        assert ask(guarded, "/status.json", Authorization=right).status == 200
    assert ask(guarded, "/status.json", Authorization=basic(TOKEN), Host="any.example").status == 200
    for none in ("", "Bearer", "Basic", "Basic !!!", "Basic YQ", f"Token {TOKEN}", f"{TOKEN}"):
        assert ask(guarded, "/status.json", Authorization=none).status == 401, none


def test_guesses_are_slowed_down_for_all_ways_in(guarded: Daemon) -> None:
    began = time.monotonic()
    assert ask(guarded, "/status.json", Authorization="Bearer wrong").status == 401
    with guarded.connect() as wire:  # the same peer waits for its turn
        assert wire.last(b"auth wrong-too\n").startswith(b"ERR auth")
    assert time.monotonic() - began >= 1.5


@needs_openssl
def test_with_a_certificate_http_is_https(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path)
    with Daemon(tmp_path, http="127.0.0.1:0", tls_cert=str(certificate), tls_key=str(tmp_path / "key.pem")) as daemon:
        daemon.start()
        context = ssl.create_default_context(cafile=str(certificate))
        connection = http.client.HTTPSConnection("127.0.0.1", daemon.http_port, context=context)
        connection.request("GET", "/readyz")
        assert connection.getresponse().read().startswith(b'{"ready": true')
        connection.close()
        with raw(daemon) as wire:
            wire.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"https://" in wire.rest()


def test_over_a_unix_socket(tmp_path: Path) -> None:
    with Daemon(tmp_path, http="unix:web") as daemon:
        daemon.start()
        assert daemon.ready_lines[0] == f"pfsd http on unix:{tmp_path / 'web'}"
        with Wire(str(tmp_path / "web")) as wire:
            wire.send(b"GET /livez HTTP/1.0\r\n\r\n")
            assert wire.rest().endswith(b"\r\n\r\nok\n")
        assert (tmp_path / "web").stat().st_mode & 0o777 == 0o600
        daemon.stop()
        assert not (tmp_path / "web").exists()


def test_off_unless_it_is_configured(shared_daemon: Daemon) -> None:
    assert not any("http" in line for line in shared_daemon.ready_lines)


# --- HTTP, and who abuses it ----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PATCH", "get"])
def test_nothing_but_looking(daemon: Daemon, method: str) -> None:
    answer = ask(daemon, "/status.json", method)
    assert answer.status == 405 and answer.headers["Allow"] == "GET, HEAD" and answer.headers["Connection"] == "close"


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"ping\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n folded: x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET //evil.example HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (b"GET /../../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /%2e%2e/page.py HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /files.json?" + b"&".join(b"a%d=1" % at for at in range(50)) + b" HTTP/1.0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 100 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nx: " + b"y" * 20_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\nHost: local", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32), 400),
        (b"\x00\xff\xfe\r\n\r\n", 400),
    ],
)
def test_what_is_no_request_gets_one_answer_and_the_end(daemon: Daemon, sent: bytes, code: int) -> None:
    with raw(daemon) as wire:
        wire.send(sent)
        wire.half_close()
        answer = wire.rest()
    assert answer.startswith(b"HTTP/1.1 %d " % code), answer
    assert answer.count(b"\r\n\r\n") == 1
    assert ask(daemon, "/livez").status == 200


def test_a_line_without_end_is_cut_off(daemon: Daemon) -> None:
    with raw(daemon) as wire, pytest.raises(ConnectionError):  # a reset, since it sends on
        while True:
            wire.send(b"x" * (1 << 20))
    assert ask(daemon, "/livez").status == 200


def test_connections_are_kept_and_requests_can_be_sent_ahead(daemon: Daemon) -> None:
    request = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with raw(daemon) as wire:
        wire.send(request * 3 + b"\r\n" + request[:-2] + b"Connection: close\r\n\r\n" + request)
        answer = wire.rest()
    assert answer.count(b"HTTP/1.1 200 OK") == 4 and answer.count(b"Connection: close") == 1


def test_one_who_sends_slowly_is_told_so_and_others_do_not_wait(tmp_path: Path) -> None:
    with Daemon(tmp_path, http="127.0.0.1:0") as daemon:
        daemon.prelude = "import pfsd.web.http as h; h.HEAD_SECONDS = 0.5"
        daemon.start()
        with raw(daemon) as slow:
            slow.send(b"GET / HTTP/1.1\r\n")
            assert ask(daemon, "/livez").status == 200
            assert slow.rest().startswith(b"HTTP/1.1 408 ")
        with raw(daemon) as slower:
            slower.send(b"GET")
            assert slower.rest().startswith(b"HTTP/1.1 400 ")


def test_a_thousand_connections_leave_the_daemon_alone(daemon: Daemon) -> None:
    connections = []
    try:
        for _ in range(1000):
            connections.append(socket.create_connection(("127.0.0.1", daemon.http_port), PATIENCE_SECONDS))
        assert daemon.ask(b"ping\n") == [b"OK ping"]
        connections[-1].settimeout(PATIENCE_SECONDS)
        answer = b""
        while piece := connections[-1].recv(4096):
            answer += piece
        assert answer.startswith(b"HTTP/1.1 503 ") and b"64 connections" in answer
        assert server.MAX_CONNECTIONS == 64
    finally:
        for connection in connections:
            connection.close()
    until = time.monotonic() + PATIENCE_SECONDS
    while ask(daemon, "/livez").status != 200:
        assert time.monotonic() < until


def test_many_requests_sent_ahead_do_not_keep_others_waiting(daemon: Daemon) -> None:
    """A client that asks without end, and another that takes no answers: the line protocol goes on."""
    request = b"GET /status.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
    stop = threading.Event()

    def flood() -> None:
        with raw(daemon) as wire:
            wire.socket.settimeout(0.05)
            while not stop.is_set():
                with suppress(TimeoutError):
                    wire.socket.send(request * 200)

    floods = [threading.Thread(target=flood) for _ in range(4)]
    for thread in floods:
        thread.start()
    try:
        for _ in range(50):
            assert daemon.ask(b"ping\n") == [b"OK ping"]
        put(daemon, b"beside", noise(1 << 20))
    finally:
        stop.set()
        for thread in floods:
            thread.join()
    assert ask(daemon, "/livez").status == 200


async def test_answers_are_given_one_at_a_time_and_others_get_a_turn_between() -> None:
    service: Any = SimpleNamespace(tokens=SimpleNamespace(needed=False))
    asked, connection = web_http.parse_head(["GET /livez HTTP/1.0"]), SimpleNamespace()
    shown = site.Site(service, TcpAddress("127.0.0.1", 7374))
    turns = 0

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def ask_on_and_on() -> None:
        for _ in range(10):
            await shown.answer(asked, connection)

    counting = asyncio.create_task(count_turns())
    await asyncio.gather(*(ask_on_and_on() for _ in range(5)))
    counting.cancel()
    assert turns >= 50


async def test_others_get_a_turn_between_refusals_too() -> None:
    """Who has no token can ask for thousands of them in one piece."""
    turns, written = 0, []

    async def heads() -> AsyncIterator[Line]:
        for _ in range(10):
            yield Line(b"GET / HTTP/1.1", b"\n")
            yield Line(b"Host: localhost", b"\n")
            yield Line(b"", b"\n")

    async def refuse(request: web_http.Request, connection: Any) -> web_http.Response:
        raise web_http.Refused(HTTPStatus.UNAUTHORIZED, "no", ends=False)

    async def write(data: bytes) -> None:
        written.append(turns)

    async def at_once() -> None:
        pass

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_turns())
    connection: Any = SimpleNamespace(write=write, flushed=at_once)
    await web_http._serve(connection, heads(), refuse)
    counting.cancel()
    assert len(written) == len(set(written)) == 10


def test_a_bug_is_told_and_logged_and_ends_nothing(tmp_path: Path) -> None:
    with Daemon(tmp_path, http="127.0.0.1:0") as daemon:
        daemon.prelude = "import pfsd.web.status as s; s.status = None"
        daemon.start()
        answer = ask(daemon, "/status.json")
        assert answer.status == 500 and b"Traceback" not in answer.body
        assert "an HTTP request failed" in daemon.log
        assert ask(daemon, "/livez").status == 200


# --- the last minutes -----------------------------------------------------------------------------


def test_history_forgets_and_tells_rates() -> None:
    kept = history.History()
    for at in range(history.LOOKS + 50):
        kept.note(history.Look(at * 2.0, at * 1000, 0, 7))
    told = kept.as_json((history.LOOKS + 49) * 2.0 + 1)
    assert len(told["ago"]) == history.LOOKS
    assert told["ago"][-1] == 1 and told["ago"][0] == 1 + 2 * (history.LOOKS - 1)
    assert set(told["in"]) == {500} and set(told["out"]) == {0} and set(told["memory"]) == {7}


def test_a_fresh_history_has_nothing() -> None:
    kept = history.History()
    kept.note(history.Look(0, 0, 0, 0))
    assert kept.as_json(1) == {"ago": [], "in": [], "out": [], "memory": []}
