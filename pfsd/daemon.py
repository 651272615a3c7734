"""The daemon's life: open the store, start the processes, listen, serve, drain, stop.

Each phase is a method of `Daemon`, in the order in which they run; `main` is the whole life. It waits on events
only and owns everything that has to be closed.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import resource
import signal
import socket
import ssl
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import NamedTuple

from pfsd import certificates, coding, disk, records, stores, work
from pfsd.budget import MemoryBudget
from pfsd.calls import Service
from pfsd.commands import resume
from pfsd.commands.engine import Engine, Settings
from pfsd.commands.reclaim import Reclaimer
from pfsd.commands.scrub import Scrubber
from pfsd.committer import Committer
from pfsd.config import Config
from pfsd.connection import Accepted, Connection
from pfsd.errors import (
    Busy,
    CannotListen,
    ConfigError,
    Denied,
    ProcessesUnavailable,
    RegistryDamaged,
    RequestError,
    StorageFailed,
    StoreUnavailable,
    UsageError,
)
from pfsd.guesses import Tokens
from pfsd.journal import Journal
from pfsd.kinds import Address, Listener, TcpAddress, UnixAddress
from pfsd.listening import Acceptor, in_a_line, in_silence, open_sockets
from pfsd.paths import Roots
from pfsd.protocol import LF, format_error
from pfsd.registry import File, Registry
from pfsd.session import Session
from pfsd.spare import Spare
from pfsd.tls import TlsTransport
from pfsd.web.server import MAX_CONNECTIONS, Server, in_http
from pfsd.web.server import PLAIN_ON_TLS as HTTP_ON_TLS
from pfsd.web.site import Site
from pfsd.workers import Workers

log = logging.getLogger(__name__)

#: Descriptors kept for what is neither a client nor a file of one: listening sockets, a newcomer that is turned away, a
#: compaction, an I/O process that is being replaced.
SPARE_DESCRIPTORS = 16
#: Clients get this long to take the last replies when the daemon stops.
CLOSE_SECONDS = 1.0
EXIT_STOP_TIMED_OUT = 75
#: How often it is seen whether lock and journal are where they were: the next start would miss what is elsewhere.
LOOK_SECONDS = 10.0
#: What a client hears that sends plain text where TLS is spoken.
PLAIN_ON_TLS = format_error(UsageError("this listener speaks TLS, not plain text; the connection is closed"), None, LF)


def main(config: Config) -> int:
    """Run a daemon until it is told to stop; returns the exit code. FatalError when it cannot start."""
    with asyncio.Runner(loop_factory=_loop_factory(config.loop)) as runner:
        return runner.run(Daemon(config).run())


class _Way(NamedTuple):
    """A way in: what is said of it when it is open, who cannot stay, what is made of others."""

    word: str
    address: Address
    refusal: Callable[[socket.socket], RequestError | None]
    make: Callable[[], asyncio.BufferedProtocol]
    tell: Callable[[RequestError], bytes]


def _loop_factory(loop: str) -> Callable[[], asyncio.AbstractEventLoop]:
    if loop == "asyncio":
        return asyncio.new_event_loop
    try:
        import uvloop
    except ImportError as error:
        raise ConfigError(f"loop: uvloop cannot be imported ({error}); `loop: asyncio` needs nothing") from error
    return uvloop.new_event_loop


class Daemon:
    """One daemon on one store."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._stopped = asyncio.Event()
        self._hurry = asyncio.Event()
        self._stop_task: asyncio.Task[None] | None = None
        self._exit_code = 0
        self._acceptors: list[Acceptor] = []
        self._web: Server | None = None
        self._web_acceptors: list[Acceptor] = []  # open until the end: they tell that the daemon stops
        self._arriving: set[asyncio.BufferedProtocol] = set()  # taken, but not made yet
        self._connections: set[asyncio.Task[None]] = set()
        self._numbers = count(1)
        self._lock_fd = -1

    async def run(self) -> int:
        """The whole life; returns the exit code."""
        for warning in self._config.warnings:
            log.warning("%s", warning)
        self._open_store()
        await self._start_workers()
        try:
            self._make_service()
            await self._tidy()
            self._handle_signals()  # before anyone is told that it is ready, and may stop it
            await self._listen()
            watching = asyncio.create_task(self._watch_store())
            self._scrubber.start()
            await self._stopped.wait()
            watching.cancel()
        except BaseException:
            self._workers.kill()
            raise
        await self._close()
        return self._exit_code

    # --- opening ---

    def _open_store(self) -> None:
        """Take the store for this daemon and read its registries."""
        path = self._config.path
        self._durable = self._config.durability == "always"
        try:
            disk.make_dirs(path, sync=self._durable)
        except OSError as error:
            raise StoreUnavailable(f"the store {path} cannot be created: {error.strerror}") from error
        self._lock_fd = disk.lock_exclusive(path / "lock")
        self._spare = Spare(path)
        self._epoch = f"{os.getpid():x}-{time.time_ns():x}"
        self._store_url = f"file:{path}"
        self._store = stores.open_store(self._store_url, sync=self._durable, epoch=self._epoch)
        self._registry = Registry()
        self._journal = self._open_journal(path / "journal.jsonl")
        gc.freeze()  # the registries stay: the collector need not walk through them, while everyone waits

    def _open_journal(self, path: Path) -> Journal:
        if not disk.exists(path):
            if next(iter(self._store.list()), None) is not None:
                raise RegistryDamaged(
                    f"{path} is missing, but the store holds packs: `python server.py rebuild`, with its --config, "
                    "makes it anew from them"
                )
            try:
                return Journal.create(path, sync=self._durable)
            except OSError as error:
                raise StoreUnavailable(f"{path} cannot be made: {error.strerror}") from error
        return Journal.open(path, self._registry.replay, sync=self._durable)

    async def _start_workers(self) -> None:
        """Start the processes before any socket is open."""
        self._budget = MemoryBudget(self._config.slab_size)
        setup = work.Setup(
            slab=f"/proc/{os.getpid()}/fd/{self._budget.fd}",
            slab_size=self._budget.limit,
            store_url=self._store_url,
            epoch=self._epoch,
            durable=self._durable,
            lanes=self._config.md5 == "auto",
        )
        self._workers = Workers(self._config.processes, setup)
        try:
            await self._workers.start()
        except BaseException as error:
            self._workers.kill()
            if isinstance(error, (BrokenExecutor, OSError, EOFError)):
                raise ProcessesUnavailable(f"the I/O processes cannot be started: {error}") from error
            raise

    def _make_service(self) -> None:
        config = self._config
        self._committer = Committer(
            self._journal,
            self._registry,
            on_failure=self._storage_failed,
            on_full=self._disk_is_full,
            is_ours=lambda: disk.is_at(self._lock_fd, self._config.path / "lock"),
        )
        self._engine = Engine(
            store_id=self._journal.store_id,
            registry=self._registry,
            committer=self._committer,
            store=self._store,
            budget=self._budget,
            workers=self._workers,
            roots=Roots(config.roots, forbidden=[config.path]),
            settings=Settings(config.part_size, config.run_parts),
            coding=coding.policy(config.codec, config.level),
            check_room=self._spare.check,
        )
        self._reclaimer = Reclaimer(self._engine)
        self._scrubber = Scrubber(self._engine, config.verify_every * 86_400)
        self._service = Service(
            engine=self._engine,
            reclaimer=self._reclaimer,
            scrubber=self._scrubber,
            tokens=Tokens(config.token),
            allow_exit=config.allow_exit,
            idle_seconds=config.idle_timeout,
            line_seconds=config.line_timeout,
            max_clients=_descriptor_limit(config.max_clients, MAX_CONNECTIONS if config.http else 0),
            shut_down=self.shut_down,
            state=self._state,
            free=self._spare.free,
        )

    async def _tidy(self) -> None:
        """Finish what the last daemon left: interrupted puts, deletes without unlink, packs of nobody."""
        swept = self._store.sweep_staged()  # first of all: on a full disk the rest needs the room
        self._spare.keep()
        interrupted, now = self._registry.interrupted(), time.time_ns()
        dropped = [file for file in interrupted if not resume.is_worth_keeping(self._registry, file, now)]
        if interrupted:
            await self._drop(dropped)
            log.info("of %d interrupted puts %d are dropped", len(interrupted), len(dropped))
        orphans = []
        for pack, size in self._store.list():
            if self._registry.is_used(pack):
                self._reclaimer.note_size(pack, size)
            else:
                orphans.append(pack)
        # Before the first file is removed: that may start the copying of a pack, which takes a new id.
        self._registry.skip_packs(orphans)
        freed = await asyncio.to_thread(self._store.delete, orphans)
        for file in self._registry.deleting():
            await self._engine.remove(file)
        self._reclaimer.note([])
        if swept or orphans:
            log.info("swept %d unfinished and %d unused packs, %d bytes", swept, len(orphans), freed)

    async def _drop(self, interrupted: Sequence[File]) -> None:
        try:
            await self._committer.commit([records.Drop(file=file.id) for file in interrupted])
        except RequestError as error:
            log.warning("interrupted puts are dropped only at the next start: %s", error)

    # --- listening ---

    async def _listen(self) -> None:
        opened = []
        for way in self._ways():
            if isinstance(way.address, UnixAddress):
                _remove_stale_socket(way.address.path)
            try:
                opened.append((way, await open_sockets(way.address)))
            except OSError as error:
                words = error.strerror or str(error)
                raise CannotListen(f"cannot listen on {way.address}: {words}") from error
        for way, sockets in opened:
            for sock in sockets:
                acceptor = Acceptor(sock, way.refusal, way.make, tell=way.tell)
                (self._acceptors if way.word == "ready" else self._web_acceptors).append(acceptor)
                print(f"pfsd {way.word} on {_listens_on(sock, way.address)}", flush=True)

    def _ways(self) -> Iterator[_Way]:
        """HTTP first: who has read that the daemon is ready knows all of it."""
        if self._config.http is not None:
            yield self._web_way(self._config.http)
        for listener in self._config.listen:
            make = partial(self._make_connection, listener)
            if listener.tls:
                make_tls = partial(self._make_tls, make, self._arriving.discard, self._tls_context(), PLAIN_ON_TLS)
                yield _Way("ready", listener.address, self._refusal, make_tls, in_silence)
            else:
                yield _Way("ready", listener.address, self._refusal, make, in_a_line)

    def _web_way(self, address: Address) -> _Way:
        web = self._web = Server(Site(self._service, address))

        def refusal(sock: socket.socket) -> RequestError | None:
            return web.refusal() or _refuse_others(sock)

        if self._config.http_tls:
            make = partial(self._make_tls, web.make_connection, web.settled, self._tls_context(), HTTP_ON_TLS)
            return _Way("http", address, refusal, make, in_silence)
        return _Way("http", address, refusal, web.make_connection, in_http)

    def _refusal(self, sock: socket.socket) -> RequestError | None:
        """Why a newcomer cannot stay, if it cannot."""
        service = self._service
        if len(service.sessions) + len(self._arriving) >= service.max_clients:
            return Busy(f"{service.max_clients} clients are connected already; try again later")
        return _refuse_others(sock)

    def _tls_context(self) -> ssl.SSLContext:
        certificate, key = self._config.tls_cert, self._config.tls_key
        assert certificate is not None and key is not None
        try:
            return certificates.server_context(certificate, key)
        except (certificates.BadCertificate, certificates.BadKey) as error:  # changed since they were checked
            raise ConfigError(f"tls_cert {certificate} or its key {error}") from None

    def _make_connection(self, listener: Listener) -> Accepted:
        config = self._config
        return Accepted(config.idle_timeout, config.line_timeout, self._arriving, partial(self._serve, listener))

    def _make_tls(
        self,
        make: Callable[[], Accepted],
        settle: Callable[[Accepted], object],
        context: ssl.SSLContext,
        refusal: bytes,
    ) -> asyncio.BufferedProtocol:
        """A connection with TLS below; until its handshake is done, or given up, a client is arriving."""
        above = make()
        return TlsTransport(context, above, self._config.line_timeout, refusal, settled=lambda _: settle(above))

    def _serve(self, listener: Listener, connection: Connection) -> None:
        """A client has connected."""
        service = self._service
        session = Session(service, connection, next(self._numbers), listener.allow)
        service.sessions.add(session)
        task = asyncio.create_task(session.serve())
        self._connections.add(task)

        def ended(task: asyncio.Task[None]) -> None:
            self._connections.discard(task)
            service.sessions.discard(session)
            if not task.cancelled() and (error := task.exception()):
                log.error("a session ended badly", exc_info=error)

        task.add_done_callback(ended)

    # --- full disk and broken disk ---

    def _state(self) -> str:
        if self._service.stopping:
            return "stopping"
        if self._committer.failed:
            return "readonly"
        return self._spare.state()

    def _disk_is_full(self) -> bool:
        """Give the reserve to the journal; whether there was one."""
        if not self._spare.give_up():
            return False
        log.warning("the disk is full: the reserve goes to the journal, so that deletes still work")
        return True

    def _storage_failed(self, error: BaseException) -> None:
        log.critical("the journal cannot be written safely any more, stopping: %s", error)
        self._exit_code = StorageFailed.exit_code
        self._begin_stop()

    async def _watch_store(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self._committer.look()

    # --- stopping ---

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)

    def _on_signal(self, number: int) -> None:
        log.info("%s: stopping", signal.Signals(number).name)
        if self._stop_task is not None:
            self._hurry.set()
        self._begin_stop()

    def _begin_stop(self) -> asyncio.Task[None]:
        if self._stop_task is None:
            self._service.stopping = True
            self._stop_task = asyncio.create_task(self._stop())
        return self._stop_task

    async def shut_down(self) -> None:
        """Stop, or join the stop under way; it goes on when who asked for it is gone."""
        await asyncio.shield(self._begin_stop())

    async def _stop(self) -> None:
        """No new requests; running ones finish or are given up; then the processes end."""
        service = self._service
        log.info("stopping: %d requests are running", len(service.running))
        threading.Thread(target=self._watch_stop, daemon=True).start()
        for acceptor in self._acceptors:
            acceptor.close()
        patience = self._config.stop_timeout
        done = asyncio.ensure_future(self._all_done())
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait({done, hurry}, timeout=patience / 2, return_when=asyncio.FIRST_COMPLETED)
        for task in service.running:
            task.cancel()
        await asyncio.wait({done}, timeout=max(CLOSE_SECONDS, patience / 4))
        await self._workers.stop()  # who is not done yet waits for a process that hangs
        await asyncio.wait({done}, timeout=max(CLOSE_SECONDS, patience / 4))
        for waiting in (done, hurry):
            waiting.cancel()
        await self._committer.close()
        self._stopped.set()

    async def _all_done(self) -> None:
        await self._scrubber.stop()
        while self._service.running:
            await asyncio.wait(self._service.running)
        await self._reclaimer.stop()
        await self._engine.settle()

    def _watch_stop(self) -> None:
        """A stop that hangs, say in a dead disk, still ends."""
        time.sleep(self._config.stop_timeout + 5)
        os._exit(EXIT_STOP_TIMED_OUT)

    async def _close(self) -> None:
        for session in list(self._service.sessions):
            session.end()
        if self._connections:
            await asyncio.wait(self._connections, timeout=CLOSE_SECONDS)
        for task in self._connections:
            task.cancel()
        for acceptor in self._web_acceptors:
            acceptor.close()
        if self._web is not None:
            await self._web.close()
        for address in [self._config.http, *(listener.address for listener in self._config.listen)]:
            if isinstance(address, UnixAddress):
                with suppress(OSError):
                    address.path.unlink()
        self._budget.close()
        os.close(self._lock_fd)


def _descriptor_limit(max_clients: int, others: int) -> int:
    """Raise the soft limit of open files and return how many clients fit below it, each with a file of its own, beside
    `others` that have none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = len(os.listdir("/proc/self/fd")) + SPARE_DESCRIPTORS + others
    wanted = taken + 2 * max_clients
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    fit = max(1, (soft - taken) // 2)
    if fit < max_clients:
        log.warning("the limit of %d open files allows %d clients, not %d", soft, fit, max_clients)
    return min(max_clients, fit)


def _listens_on(sock: socket.socket, address: Address) -> Address:
    """Where a socket listens; a port that was 0 is known now."""
    return address if isinstance(address, UnixAddress) else TcpAddress(*sock.getsockname()[:2])


def _remove_stale_socket(path: Path) -> None:
    """Remove a socket that no daemon listens on; the lock on the store says that it is not ours."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise CannotListen(f"cannot listen on unix:{path}: something else is there")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise CannotListen(f"cannot listen on unix:{path}: another program does")


def _refuse_others(sock: socket.socket) -> RequestError | None:
    return None if _same_user(sock) else Denied("this socket is for processes of its own user only")


def _same_user(sock: socket.socket) -> bool:
    """Whether the peer of a Unix socket runs as this user, or as root; peers over TCP pass."""
    if sock.family != socket.AF_UNIX:
        return True
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    uid = int.from_bytes(credentials[4:8], "little")
    return uid in (0, os.geteuid())
