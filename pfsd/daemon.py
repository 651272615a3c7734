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

from pfsd import certificates, coding, disk, logs, records, stores, work
from pfsd.budget import MemoryBudget
from pfsd.calls import Service
from pfsd.commands import resume
from pfsd.commands.engine import Engine, Settings
from pfsd.commands.reclaim import Reclaimer
from pfsd.commands.scrub import Scrubber
from pfsd.committer import Committer
from pfsd.config import Config, Reloaded
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
from pfsd.listening import Acceptor, Passed, in_a_line, open_sockets
from pfsd.paths import Roots
from pfsd.protocol import LF, format_error
from pfsd.registry import File, Registry
from pfsd.session import Session
from pfsd.spare import Spare
from pfsd.systemd import Manager
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
#: A stop that takes so much longer than `stop_timeout` is cut short.
STOP_GRACE_SECONDS = 5.0
EXIT_STOP_TIMED_OUT = 75
#: How often it is seen whether lock and journal are where they were: the next start would miss what is elsewhere.
LOOK_SECONDS = 10.0
#: How often the service manager is shown how the daemon is.
STATUS_SECONDS = 10.0
#: What a client hears that sends plain text where TLS is spoken.
PLAIN_ON_TLS = format_error(UsageError("this listener speaks TLS, not plain text; the connection is closed"), None, LF)


def main(
    config: Config, reread: Callable[[Config], Reloaded], manager: Manager, passed: Sequence[socket.socket] = ()
) -> int:
    """Run a daemon until it is told to stop; returns the exit code. FatalError when it cannot start.

    `reread` is asked for what holds instead of a configuration when a reload is wanted. The service `manager` hears how
    the daemon is, and may have `passed` listening sockets.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # too early for a reload; and for good in the I/O processes
    with asyncio.Runner(loop_factory=_loop_factory(config.loop)) as runner:
        return runner.run(Daemon(config, reread, manager, Passed(passed)).run())


class _Way(NamedTuple):
    """A way in: what is said of it when it is open, who cannot stay, what is made of others.

    `make` and `speaks_tls` look at the configuration as it is when somebody comes: a reload may have changed it.
    """

    word: str
    address: Address
    why_not: Callable[[socket.socket], RequestError | None]
    make: Callable[[], Accepted]
    #: A newcomer's handshake is done, or will never be.
    settle: Callable[[Accepted], object]
    speaks_tls: Callable[[], bool]
    say: Callable[[RequestError], bytes]
    plain_on_tls: bytes


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

    def __init__(self, config: Config, reread: Callable[[Config], Reloaded], manager: Manager, passed: Passed) -> None:
        self._config = config
        self._reread = reread
        self._manager = manager
        self._passed = passed
        self._registry = Registry()
        self._is_up = asyncio.Event()
        self._reload_wanted = asyncio.Event()
        self._refusal = ""  # why the last reload came to nothing
        self._has_terminal = os.isatty(0)
        self._own_sockets: list[Path] = []  # Unix sockets to be removed in the end
        self._stopped = asyncio.Event()
        self._stop_begun = threading.Event()
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
        with self._manager.starting(self._progress):
            self._open_store()
            await self._start_workers()
        try:
            with self._manager.starting(self._progress):
                self._make_service()
                await self._tidy()
                threading.Thread(target=self._watch_stop, daemon=True).start()  # then there may be none to be had
                self._handle_signals()  # before anyone is told that it is ready, and may stop it
                await self._listen()
            await self._serve_until_stopped()
        except BaseException:
            self._workers.kill()
            raise
        await self._close()
        return self._exit_code

    async def _serve_until_stopped(self) -> None:
        jobs = [self._watch_store(), self._show_status(), self._show_life()]
        background = [asyncio.create_task(job) for job in jobs]
        self._scrubber.start()
        self._manager.ready(self._status())
        self._is_up.set()
        await self._stopped.wait()
        for task in background:
            task.cancel()

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
            roots=_roots(config),
            settings=Settings(config.part_size, config.run_parts),
            coding=coding.policy(config.codec, config.level),
            check_room=self._spare.check,
        )
        self._reclaimer = Reclaimer(self._engine)
        self._scrubber = Scrubber(self._engine, _seconds_to_verify(config))
        self._tls = _tls_context(config)
        # Those that are no client's. Each of HTTP takes one.
        self._descriptors = len(os.listdir("/proc/self/fd")) + (MAX_CONNECTIONS if config.http else 0)
        self._service = Service(
            engine=self._engine,
            reclaimer=self._reclaimer,
            scrubber=self._scrubber,
            tokens=Tokens(config.token),
            allow_exit=config.allow_exit,
            max_clients=_descriptor_limit(config.max_clients, self._descriptors),
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
        opened, refused = [], None
        for way in self._ways():
            try:
                opened.append((way, await self._sockets_of(way.address)))
            except CannotListen as error:
                refused = refused or error
        self._passed.check_all_taken()  # first: one that is left over may be in the way
        if refused is not None:
            raise refused
        for way, sockets in opened:
            for sock in sockets:
                make, tell = partial(self._make_protocol, way), partial(_last_words, way)
                acceptor = Acceptor(sock, way.why_not, make, tell=tell)
                (self._acceptors if way.word == "ready" else self._web_acceptors).append(acceptor)
                print(f"pfsd {way.word} on {_listens_on(sock, way.address)}", flush=True)

    def _ways(self) -> Iterator[_Way]:
        """HTTP first: who has read that the daemon is ready knows all of it."""
        if self._config.http is not None:
            web = self._web = Server(Site(self._service, self._config.http))
            yield _Way(
                word="http",
                address=self._config.http,
                why_not=lambda sock: web.refusal() or _refuse_others(sock),
                make=web.make_connection,
                settle=web.settled,
                speaks_tls=lambda: self._config.http_tls,
                say=in_http,
                plain_on_tls=HTTP_ON_TLS,
            )
        for at, listener in enumerate(self._config.listen):
            yield _Way(
                word="ready",
                address=listener.address,
                why_not=self._why_not,
                make=partial(self._make_connection, at),
                settle=self._arriving.discard,
                speaks_tls=partial(self._speaks_tls, at),
                say=in_a_line,
                plain_on_tls=PLAIN_ON_TLS,
            )

    async def _sockets_of(self, address: Address) -> list[socket.socket]:
        if isinstance(address, UnixAddress) and not self._passed.has(address):
            _remove_stale_socket(address.path)
            self._own_sockets.append(address.path)
        try:
            return await open_sockets(address, self._passed)
        except OSError as error:
            raise CannotListen(f"cannot listen on {address}: {error.strerror or error}") from error

    def _speaks_tls(self, at: int) -> bool:
        return bool(self._config.listen[at].tls)

    def _why_not(self, sock: socket.socket) -> RequestError | None:
        """Why a newcomer cannot stay, if it cannot."""
        service = self._service
        if len(service.sessions) + len(self._arriving) >= service.max_clients:
            return Busy(f"{service.max_clients} clients are connected already; try again later")
        return _refuse_others(sock)

    def _make_connection(self, at: int) -> Accepted:
        """For a client that has come to a listener, as that is configured now."""
        config = self._config
        serve = partial(self._serve, config.listen[at])
        return Accepted(config.idle_timeout, config.line_timeout, self._arriving, serve)

    def _make_protocol(self, way: _Way) -> asyncio.BufferedProtocol:
        """For a newcomer; with TLS below, it is an arriving one until its handshake is done, or given up."""
        above = way.make()
        if not way.speaks_tls():
            return above
        assert self._tls is not None
        return TlsTransport(
            self._tls, above, self._config.line_timeout, way.plain_on_tls, settled=lambda _: way.settle(above)
        )

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

    # --- reloading ---

    def _on_hangup(self) -> None:
        if self._has_terminal and not os.isatty(0):
            self._on_signal(signal.SIGHUP)  # the terminal that the daemon ran in was closed
        else:
            self._reload_wanted.set()

    async def _reload_when_wanted(self) -> None:
        await self._is_up.wait()  # what ends a reload would say that the start is over
        while True:
            await self._reload_wanted.wait()
            self._reload_wanted.clear()
            self._manager.reloading()
            await self._reload()
            self._manager.ready(self._status())

    async def _reload(self) -> None:
        """Go on with what the configuration says now, as far as that needs no restart; with all of it or nothing."""
        try:
            found = await asyncio.to_thread(self._reread, self._config)
            tls = _tls_context(found.config)
        except (ConfigError, OSError, RuntimeError) as error:  # RuntimeError: no thread can be made
            self._refusal = f"the new configuration is refused, the old one stays in force: {error}"
            log.error("%s", self._refusal)
            return
        self._refusal = ""
        for warning in set(found.config.warnings) - set(self._config.warnings):
            log.warning("%s", warning)
        self._tls = tls
        await self._use(found)
        log.info("configuration reloaded; changed: %s", ", ".join(found.changed) or "nothing")
        for key in found.waiting:
            log.warning("%s has changed in the configuration, which needs a restart; the old value stays in force", key)

    async def _use(self, reloaded: Reloaded) -> None:
        """Put a configuration in force. Whatever reads it when it needs it, such as new connections, is not here."""
        config, changed, service = reloaded.config, reloaded.changed, self._service
        self._config = config
        logs.use(config.log_level, config.log_format)
        service.allow_exit = config.allow_exit
        service.max_clients = _descriptor_limit(config.max_clients, self._descriptors)
        service.tokens.change(config.token)
        self._engine.roots = _roots(config)
        if "codec" in changed or "level" in changed:  # what `auto` has learned is kept otherwise
            self._engine.code_with(coding.policy(config.codec, config.level))
        if "verify_every" in changed:
            await self._scrubber.change(_seconds_to_verify(config))

    # --- what the service manager is told ---

    def _progress(self) -> str:
        return f"starting: {self._registry.files_ready} files found so far"

    def _status(self) -> str:
        registry, service = self._registry, self._service
        told = f"{registry.files_ready} files, {len(service.sessions)} clients, {len(service.running)} requests"
        return "; ".join(filter(None, [f"{self._state()}: {told}", self._refusal]))

    async def _show_status(self) -> None:
        while self._manager.is_there:
            await asyncio.sleep(STATUS_SECONDS)
            status = await asyncio.to_thread(self._status)  # it asks the disk
            if not self._service.stopping:
                self._manager.status(status)

    async def _show_life(self) -> None:
        while self._manager.watchdog_seconds is not None:
            self._manager.alive()
            await asyncio.sleep(self._manager.watchdog_seconds / 2)

    async def _watch_store(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self._committer.look()

    # --- stopping ---

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        self._reloads = asyncio.create_task(self._reload_when_wanted())

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
        told = f"stopping: {len(service.running)} requests are running"
        log.info("%s", told)
        self._manager.stopping(told, self._config.stop_timeout + 2 * STOP_GRACE_SECONDS)
        self._stop_begun.set()
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
        self._reloads.cancel()
        await asyncio.wait({self._reloads})
        await self._scrubber.stop()
        while self._service.running:
            await asyncio.wait(self._service.running)
        await self._reclaimer.stop()
        await self._engine.settle()

    def _watch_stop(self) -> None:
        """A stop that hangs, say in a dead disk or for want of threads, still ends."""
        self._stop_begun.wait()
        time.sleep(self._config.stop_timeout + STOP_GRACE_SECONDS)
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
        for path in self._own_sockets:
            with suppress(OSError):
                path.unlink()
        self._budget.close()
        os.close(self._lock_fd)


def _last_words(way: _Way, error: RequestError) -> bytes:
    """For who cannot stay; none to who would not understand plain text."""
    return b"" if way.speaks_tls() else way.say(error)


def _roots(config: Config) -> Roots:
    return Roots(config.roots, forbidden=[config.path])


def _seconds_to_verify(config: Config) -> float:
    return config.verify_every * 86_400


def _tls_context(config: Config) -> ssl.SSLContext | None:
    """What the configured certificate and key make, read again; None if there are none."""
    if config.tls_cert is None or config.tls_key is None:
        return None
    try:
        return certificates.server_context(config.tls_cert, config.tls_key)
    except (certificates.BadCertificate, certificates.BadKey) as error:  # changed since they were checked
        raise ConfigError(f"tls_cert {config.tls_cert} or its key {error}") from None


def _descriptor_limit(max_clients: int, others: int) -> int:
    """Raise the soft limit of open files and return how many clients fit below it, each with a file of its own.

    `others` are descriptors that are taken for other things.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = others + SPARE_DESCRIPTORS
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
