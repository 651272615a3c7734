"""TLS: the same protocol on both loops, through the tools at hand; who is no friend is told so, or shut out."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pfsd.certificates import client_context, server_context
from pfsd.client import CannotConnect, Client
from pfsd.connection import Connection
from pfsd.errors import Changed, UsageError
from pfsd.link import Link
from pfsd.tls import PIECE, TlsTransport
from tests.certificates import make_certificate, needs_openssl
from tests.harness import SERVER, Daemon, noise
from tests.wire import Wire, code

pytestmark = needs_openssl

MIB = 1 << 20


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost, its key beside it."""
    return make_certificate(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(scope="module", params=["uvloop", "asyncio"])
def daemon(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, certificate: Path
) -> Iterator[Daemon]:
    """A daemon with a TLS listener, on either loop."""
    keys = {"tls_cert": str(certificate), "tls_key": str(certificate.with_name("key.pem"))}
    with Daemon(tmp_path_factory.mktemp("tls"), loop=request.param, **keys) as daemon:
        daemon.start()
        yield daemon
        assert "Traceback" not in daemon.log


class TlsWire(Wire):
    """A connection with TLS that can be half closed, which `ssl.SSLSocket` cannot."""

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext) -> None:
        super().__init__(address)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")
        try:
            self._until_done(self._tls.do_handshake)
        except BaseException:
            self.close()
            raise

    def send(self, data: bytes) -> None:
        for at in range(0, len(data), PIECE):
            self._tls_write(data[at : at + PIECE])

    def _tls_write(self, data: bytes) -> None:
        while data:
            data = data[self._tls.write(data) :]
        self.socket.sendall(self._out.read())

    def end(self) -> None:
        """Send close_notify."""
        with suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        self.socket.sendall(self._out.read())

    def _receive(self) -> bool:
        try:
            data = self._until_done(lambda: self._tls.read(1 << 18))
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return False
        self._buffer += data
        return bool(data)

    def _until_done(self, step: Callable[[], Any]) -> Any:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self.socket.sendall(self._out.read())
                received = self.socket.recv(1 << 18)
                if received:
                    self._in.write(received)
                else:
                    self._in.write_eof()
            finally:
                self.socket.sendall(self._out.read())


def tls(daemon: Daemon, certificate: Path, context: ssl.SSLContext | None = None) -> TlsWire:
    """A connection with TLS."""
    return TlsWire(daemon.address, context or client_context(certificate))


def s_client(daemon: Daemon, certificate: Path, requests: bytes) -> bytes:
    """What `openssl s_client` prints when requests are piped in."""
    verify = ["-verify_return_error", "-CAfile", str(certificate), "-verify_hostname", "localhost"]
    command = ["openssl", "s_client", "-quiet", "-connect", f"127.0.0.1:{daemon.port}", *verify]
    return subprocess.run(command, input=requests, stdout=subprocess.PIPE, timeout=50, check=True).stdout


# --- the protocol over it -----------------------------------------------------------------------


@pytest.mark.promise("local")
def test_requests_piped_into_openssl(daemon: Daemon, certificate: Path) -> None:
    content = noise(3 * MIB)
    said = s_client(daemon, certificate, b"put - name=piped size=%d\n" % len(content) + content + b"quit\n")
    assert re.fullmatch(rb"OK put id=\d+ size=3145728 .*\nOK quit\n", said), said
    assert s_client(daemon, certificate, b"cat piped\n") == content


@pytest.mark.promise("local")
def test_the_end_of_tls_is_a_half_close_and_everything_before_it_is_answered(daemon: Daemon, certificate: Path) -> None:
    content = noise(2 * MIB, 1)
    with tls(daemon, certificate) as wire:
        wire.send(b"ping\nput - name=to-the-end replace=yes size=eof\n" + content)
        wire.end()
        assert [code(line) for line in wire.rest().splitlines()] == ["OK", "OK"]
    with tls(daemon, certificate) as wire:
        wire.send(b"get to-the-end -\nlist\n")
        wire.end()
        assert wire.frames()[0] == content
        assert code(wire.reply()[-1]) == "OK"
        assert wire.at_eof()


@pytest.mark.promise("whole")
def test_an_end_that_anybody_could_have_made_stores_nothing(daemon: Daemon, certificate: Path) -> None:
    with tls(daemon, certificate) as wire:
        wire.send(b"put - name=cut size=eof\n" + noise(100_000))
        wire.half_close()  # below TLS
        with suppress(ConnectionResetError):
            while wire.socket.recv(1 << 16):
                pass
    with tls(daemon, certificate) as wire:
        assert wire.ask(b"list cut\n") == [b"OK list files=0 size=0 stored=0"]


async def test_the_library_moves_files(daemon: Daemon, certificate: Path, tmp_path: Path) -> None:
    sizes = {"empty": 0, "small": 5, "frames": 3 * MIB + 1, "big": 9 * MIB}
    for name, size in sizes.items():
        (tmp_path / name).write_bytes(noise(size, size))
    address = f"tls://localhost:{daemon.port}"
    async with await Client.connect(address, ca=certificate) as client:
        for name in sizes:
            await client.put(tmp_path / name, f"one-{name}", replace=True)
        many = [(tmp_path / name, f"many-{name}") for name in sizes]
        outcomes = [outcome async for outcome in client.put_many(many, replace=True, resume=True)]
        assert [outcome.error for outcome in outcomes] == [None] * len(many)
        stored = [(f"{how}-{name}", f"{how}/{name}") for how in ("one", "many") for name in sizes]
        back = [outcome async for outcome in client.get_many(stored, tmp_path)]
        assert [outcome.error for outcome in back] == [None] * len(stored)
        await client.get_to("one-big", tmp_path / "again")
    for _, path in stored:
        assert (tmp_path / path).read_bytes() == (tmp_path / Path(path).name).read_bytes()
    assert (tmp_path / "again").read_bytes() == (tmp_path / "big").read_bytes()


async def test_a_file_that_changes_on_its_way_costs_the_others_nothing(
    daemon: Daemon, certificate: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("before", "changing", "behind"):
        (tmp_path / name).write_bytes(noise(MIB if name != "changing" else 9 * MIB))
    send_file = Link.send_file

    def cut(link: Link, file: int, offset: int, *rest: Any) -> int:
        if offset:
            os.truncate(tmp_path / "changing", MIB)
        return send_file(link, file, offset, *rest)

    monkeypatch.setattr(Link, "send_file", cut)
    async with await Client.connect(f"tls://localhost:{daemon.port}", ca=certificate) as client:
        files = [(tmp_path / name, f"c-{name}") for name in ("before", "changing", "behind")]
        outcomes = [outcome async for outcome in client.put_many(files, replace=True)]
        stored = {file.name async for file in client.list("c-*") if file.status == "ready"}
    assert {os.path.basename(outcome.path): type(outcome.error) for outcome in outcomes} == {
        "before": type(None),
        "changing": Changed,
        "behind": type(None),
    }
    assert stored == {b"c-before", b"c-behind"}


def test_the_client_program(daemon: Daemon, certificate: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(noise(MIB, 5))
    server = f"tls://127.0.0.1:{daemon.port}"

    def run(*words: str, **environ: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SERVER.with_name("client.py")), "--server", server, *words]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | environ, cwd=tmp_path)

    assert run("--ca", str(certificate), "put", "file", "--replace").returncode == 0
    assert run("get", "file", "back", PFSD_CA=str(certificate)).returncode == 0
    assert (tmp_path / "back").read_bytes() == (tmp_path / "file").read_bytes()
    refused = run("ping")
    assert refused.returncode == 5
    assert refused.stderr.count("\n") == 1 and "its certificate is not trusted: self-signed" in refused.stderr
    assert run("--ca", "file", "ping").returncode == 2


@pytest.mark.promise("memory")
def test_a_client_that_does_not_read_gets_its_own_bytes_in_the_end(daemon: Daemon, certificate: Path) -> None:
    contents = [noise(4 * MIB, seed) for seed in (11, 12, 13)]
    for at, content in enumerate(contents):
        assert (
            code(ask(daemon, certificate, b"put - name=r%d replace=yes size=%d\n" % (at, len(content)) + content))
            == "OK"
        )
    slow = [tls(daemon, certificate) for _ in contents]
    for at, wire in enumerate(slow):
        wire.send(b"get r%d -\n" % at)
    for at, content in enumerate(contents):
        with tls(daemon, certificate) as wire:
            wire.send(b"get r%d -\n" % at)
            assert wire.frames()[0] == content
    for wire, content in zip(slow, contents, strict=True):
        assert wire.frames()[0] == content
        wire.close()


def ask(daemon: Daemon, certificate: Path, request: bytes) -> bytes:
    """The final line of the reply to one request on a connection of its own."""
    with tls(daemon, certificate) as wire:
        return wire.last(request)


# --- who is turned away -------------------------------------------------------------------------


@pytest.mark.promise("answered")
@pytest.mark.parametrize("said", [b"list\n", b"GET / HTTP/1.1\r\n\r\n", b"\n", b"\x80"])
def test_plain_text_where_tls_is_spoken_is_told(daemon: Daemon, said: bytes) -> None:
    with daemon.connect() as wire:
        wire.send(said)
        lines = wire.rest().splitlines()
    assert len(lines) == 1 and code(lines[0]) == "usage" and b"speaks TLS" in lines[0]


@pytest.mark.promise("answered")
def test_tls_where_plain_text_is_spoken_is_told_before_its_first_line_ends(shared_daemon: Daemon) -> None:
    with shared_daemon.connect() as wire:
        wire.send(b"\x16")
        wire.send(b"\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
        lines = wire.rest().splitlines()
    assert len(lines) == 1 and code(lines[0]) == "usage" and b"not TLS" in lines[0]
    with pytest.raises(ssl.SSLError), shared_daemon.connect() as wire:
        ssl.create_default_context().wrap_socket(wire.socket, server_hostname="localhost")


@pytest.mark.promise("answered")
def test_broken_tls_is_closed_and_harms_nobody(daemon: Daemon, certificate: Path) -> None:
    before = len(daemon.log)
    for rubbish in (b"\x16", b"\x16\x03\x01\xff\xff" + noise(1000), b"\x16" * 100_000, b"\x16\x03\x01\x00\x00"):
        with daemon.connect() as wire:
            wire.send(rubbish)
            with suppress(OSError):
                wire.half_close()
                wire.rest()
    with tls(daemon, certificate) as wire:
        assert wire.ask(b"ping\n") == [b"OK ping"]
        with suppress(OSError):
            wire.socket.sendall(b"\x17\x03\x03\x00\x20" + noise(32))
            assert wire.rest() == b""
    assert code(ask(daemon, certificate, b"ping\n")) == "OK"
    assert not re.search("WARNING|ERROR|CRITICAL", daemon.log[before:])


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1")
def test_versions_before_1_2_are_refused(daemon: Daemon, certificate: Path) -> None:
    context = client_context(certificate)
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        tls(daemon, certificate, context)
    context = client_context(certificate)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with tls(daemon, certificate, context) as wire:
        assert wire.ask(b"ping\n") == [b"OK ping"]


@pytest.mark.promise("answered")
def test_handshakes_that_do_not_end_are_bounded_in_time_and_number(idle_daemon: Daemon, certificate: Path) -> None:
    keys = {"tls_cert": str(certificate), "tls_key": str(certificate.with_name("key.pem"))}
    idle_daemon.config(**keys, max_clients=3, line_timeout=0.5)
    idle_daemon.start()
    waiting = [idle_daemon.connect() for _ in range(8)]
    assert sum(_is_closed_at_once(wire) for wire in waiting) == 5
    for wire in waiting:
        with suppress(ConnectionResetError):
            assert wire.rest() == b""
        wire.close()
    assert code(ask(idle_daemon, certificate, b"ping\n")) == "OK"
    assert not re.search("WARNING|ERROR|CRITICAL", idle_daemon.log)


def _is_closed_at_once(wire: Wire) -> bool:
    wire.socket.settimeout(0.1)
    try:
        return wire.at_eof()
    except TimeoutError:
        return False
    finally:
        wire.socket.settimeout(30)


def test_a_unix_socket_speaks_plain_text(daemon: Daemon) -> None:
    with daemon.connect(unix=True) as wire:
        assert wire.ask(b"ping\n") == [b"OK ping"]


async def test_the_certificate_must_be_trusted_and_for_this_name(
    daemon: Daemon, shared_daemon: Daemon, certificate: Path, tmp_path: Path
) -> None:
    other = make_certificate(tmp_path / "other")
    for ca in (None, other):
        with pytest.raises(CannotConnect, match="is not trusted: self-signed certificate; --ca FILE"):
            await Client.connect(f"tls://localhost:{daemon.port}", ca=ca)
    with pytest.raises(CannotConnect, match="does not speak TLS as it should"):
        await Client.connect(f"tls://127.0.0.1:{shared_daemon.port}", ca=certificate)
    with pytest.raises(UsageError, match="holds no certificate"):
        await Client.connect(f"tls://localhost:{daemon.port}", ca=certificate.with_name("key.pem"))
    with pytest.raises(UsageError, match="speaks TLS"):
        async with await Client.connect(f"127.0.0.1:{daemon.port}") as client:
            await client.ping()


async def test_the_name_of_the_host_is_checked(certificate: Path) -> None:
    """127.0.0.1 is in the certificate, 127.0.0.2 is not."""
    context = server_context(certificate, certificate.with_name("key.pem"))
    server = await asyncio.start_server(lambda *_: None, "127.0.0.2", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(CannotConnect, match="is for another name"):
            await Client.connect(f"tls://127.0.0.2:{port}", ca=certificate)


# --- the transport ------------------------------------------------------------------------------


@pytest.mark.promise("answered")
async def test_memory_may_change_when_a_frame_is_sent_and_little_of_it_is_copied_before(certificate: Path) -> None:
    content = bytearray(noise(6 * MIB))
    original = bytes(content)
    ours, theirs = socket.socketpair()
    made: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    class Made(Connection):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            made.set_result(None)

    connection = Made(0, 0)
    context = server_context(certificate, certificate.with_name("key.pem"))
    below = TlsTransport(context, connection, 10, b"", lambda _: None)
    await asyncio.get_running_loop().create_connection(lambda: below, sock=ours)
    reader, writer = await asyncio.open_connection(
        sock=theirs, ssl=client_context(certificate), server_hostname="localhost", limit=1 << 16
    )
    await made
    sending = asyncio.ensure_future(connection.write_frame(b"", memoryview(content)))
    await asyncio.sleep(0.01)
    assert not sending.done(), "the transport still holds the memory"
    assert below._below.get_write_buffer_size() + below._to_send.pending < PIECE + 4096, "encrypted ahead of its turn"
    received = bytearray()
    while not sending.done():
        received += await reader.read(1 << 16)
    content[:] = bytes(len(content))
    assert below.get_write_buffer_size() == 0
    while len(received) < len(original):
        received += await reader.read(1 << 16)
    assert received == original
    below.abort()
    writer.close()
