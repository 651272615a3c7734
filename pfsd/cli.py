"""The two programs: `server_main` runs the daemon, `client_main` one command of the client or the interactive one.

They turn what happened into an exit code and, at most, one line on stderr, or with --json one object on stdout. What
either needs is imported when it is needed, so that the client starts fast and the daemon loads nothing of the client.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import shlex
import signal
import sys
from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfsd import syntax
from pfsd.errors import FatalError, Internal, PfsdError, UsageError, from_os_error

if TYPE_CHECKING:
    from pfsd.client import Client
    from pfsd.config import Config
    from pfsd.console.output import Output
    from pfsd.progress import Watch

FAILED, INTERRUPTED = 1, 130
EX_USAGE = 64
_ANSWER_TO_SIGTERM = 128 + signal.SIGTERM


# --- the daemon ---------------------------------------------------------------------------------


def server_main(argv: Sequence[str] | None = None, *, program: str = "pfsd", config: Path | None = None) -> int:
    """Run the daemon until it is told to stop, or another command of `pfsd`; returns the exit code of the process.

    `program` is what people type to have this run; `config` the file to use if nobody names one, in place of those
    that are looked for.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    _hold_standard_streams()
    try:
        arguments = syntax.server_parser(program).parse_args(words)
        return _serve_command(_Server(arguments, program, config), arguments.command)
    except SystemExit as end:  # --help or --version was shown
        return EX_USAGE if end.code else 0
    except UsageError as error:
        return _server_failed(words, error.code, str(error), EX_USAGE)
    except FatalError as error:
        return _server_failed(words, "fatal", str(error), error.exit_code)
    except ModuleNotFoundError as error:
        return _server_failed(words, "internal", _not_installed(error), FAILED)
    except BrokenPipeError:
        _drop_output()  # whoever read it has seen enough
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def _server_failed(words: Sequence[str], code: str, message: str, exit_code: int) -> int:
    if "--json" in words:
        print(json.dumps({"type": "error", "code": code, "message": message, "exit_code": exit_code}))
    else:
        print(f"pfsd: {message}", file=sys.stderr)
    return exit_code


class _Server:
    """What the commands of `pfsd` work with: the words, and the configuration that they mean."""

    def __init__(self, arguments: argparse.Namespace, program: str, beside: Path | None) -> None:
        self.arguments = arguments
        self.program = program
        self._beside = beside

    @property
    def file(self) -> Path | None:
        """The configuration file in force."""
        return _config_file(self.arguments, self._beside)

    def settings(self) -> Config:
        """The configuration; without a file, the directory that its paths count from is made."""
        from pfsd import config

        if self.file is None:
            config.make_home(os.environ)
        return config.load(self.file, os.environ)

    def typed(self, command: str) -> str:
        """What to type for a command on the same configuration."""
        words = [*self.program.split(), *command.split()]
        if self.arguments.config is not None:
            words += ["--config", str(self.arguments.config)]
        return shlex.join(words)


def _config_file(arguments: argparse.Namespace, beside: Path | None) -> Path | None:
    from pfsd import config

    named: Path | None = arguments.config
    if named is not None:
        return named
    return beside if beside is not None and not os.environ.get("PFSD_CONFIG") else config.find(os.environ)


def _serve_command(server: _Server, command: str) -> int:
    match command:
        case "serve":
            return _serve(server)
        case "bench":
            return _bench(server)
        case "config show" | "config check":
            return _config(server, command)
        case "completion":
            return _completion(syntax.server_parser(), server.arguments.shell)
        case _:
            return _rescue(server, command)


def _serve(server: _Server) -> int:
    from pfsd import config, logs, systemd

    manager, passed = systemd.Manager.taken_from(os.environ), systemd.passed_sockets(os.environ)
    settings = server.settings()
    logs.start(settings.log_level, settings.log_format)
    from pfsd import daemon

    return daemon.main(settings, partial(config.reload, server.file, os.environ), manager, passed)


def _bench(server: _Server) -> int:
    from pfsd import advise, measure

    arguments = server.arguments
    settings = server.settings()
    if arguments.path is not None and not arguments.path.is_dir():
        raise UsageError(f"--path {arguments.path} must be a directory that exists")
    directory = arguments.path or measure.existing(settings.path)
    machine = measure.measure(settings, arguments.seconds, directory.absolute(), arguments.files)
    advice = advise.advise(machine, settings.part_size)
    if arguments.json:
        print(json.dumps(advise.as_json(machine, advice)))
    else:
        print(advise.report(machine, advice))
    return 0


def _config(server: _Server, command: str) -> int:
    from pfsd import effective

    settings = server.settings()
    _print_every_name()
    what = effective.show if command == "config show" else effective.check
    what(settings, server.file, server.arguments.json, print)
    sys.stdout.flush()
    return 0


def _rescue(server: _Server, command: str) -> int:
    from pfsd.rescue import check, rebuild, repair
    from pfsd.rescue.report import Report

    arguments = server.arguments
    settings = server.settings()
    _print_every_name()
    report = Report(arguments.json, print, server.typed)
    if command == "check":
        return check.check(settings, report, arguments.data)
    if command == "rebuild":
        return rebuild.rebuild(settings, report, arguments.dry_run)
    return repair.repair(settings, report, arguments.data)


def _print_every_name() -> None:
    """No name keeps a store from being mended, nor a path its configuration from being shown."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


# --- both ---------------------------------------------------------------------------------------


def _hold_standard_streams() -> None:
    """Fill the places of standard streams that are closed: the next file or socket would else be taken for one.

    What is written goes nowhere, as asked; reading fails, since nothing is not the same as an empty file.
    """
    for fd, flags in enumerate((os.O_WRONLY, os.O_RDWR, os.O_RDWR)):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)  # the lowest number that is free: `fd`
    sys.stdin = sys.stdin or open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.stdout or open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", closefd=False)  # noqa: SIM115


def _not_installed(error: ModuleNotFoundError) -> str:
    return f"this Python lacks the module {error.name}; `make run` sets up one that has it: .venv/bin/python"


def _completion(parser: syntax.Parser, shell: str) -> int:
    from pfsd import completions

    print(completions.script(parser, shell))
    sys.stdout.flush()
    return 0


def _drop_output() -> None:
    """Nothing more may be flushed to where it cannot go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# --- the client ---------------------------------------------------------------------------------


def client_main(argv: Sequence[str] | None = None, *, program: str = "pfs", config: Path | None = None) -> int:
    """Run one command, or the interactive command line; returns the exit code of the process.

    `program` and `config` are as with `server_main`; the configuration is that of a daemon to be started.
    """
    from pfsd.console import output
    from pfsd.console.run import cut_short

    words = sys.argv[1:] if argv is None else list(argv)
    _hold_standard_streams()
    out = output.Output(as_json="--json" in words, quiet="--quiet" in words)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # JSON is UTF-8 whatever the locale; a terminal is spared what it cannot show.
            stream.reconfigure(encoding="utf-8" if out.as_json else None, errors="backslashreplace")
    arguments: argparse.Namespace | None = None
    try:
        arguments = syntax.client_parser(program).parse_args(words)
        if getattr(arguments, "command", None) == "completion":
            return _completion(syntax.client_parser(), arguments.shell)
        _settle(arguments, os.environ)
        return _run(_client(arguments, config))
    except SystemExit as end:  # --help or --version was shown
        return int(end.code or 0)
    except PfsdError as error:
        return _client_failed(out, error, output.exit_code(error))
    except BrokenPipeError:
        _drop_output()  # whoever read it has seen enough
        return FAILED
    except OSError as error:  # commands and connections turn theirs into a PfsdError
        _drop_output()
        return _client_failed(out, from_os_error(error, "standard input or output"), FAILED)
    except ModuleNotFoundError as error:
        return _client_failed(out, Internal(_not_installed(error)), FAILED)
    except KeyboardInterrupt:
        return _client_failed(out, cut_short(arguments, "interrupted"), INTERRUPTED)
    except asyncio.CancelledError:
        return _client_failed(out, cut_short(arguments, "terminated"), _ANSWER_TO_SIGTERM)


def _client_failed(out: Output, error: PfsdError, exit_code: int) -> int:
    try:
        out.error(error)
    except OSError:  # there is nobody who could be told
        _drop_output()
    return exit_code


def _settle(arguments: argparse.Namespace, environ: Mapping[str, str]) -> None:
    """Take from the environment what the command line leaves open. UsageError for a token that cannot be read."""
    arguments.server = arguments.server or environ.get("PFSD_SERVER") or None
    if arguments.ca is None and environ.get("PFSD_CA"):
        arguments.ca = Path(environ["PFSD_CA"])
    arguments.token = _token(arguments.token_file, environ)


def _token(path: Path | None, environ: Mapping[str, str]) -> str | None:
    named = environ.get("PFSD_TOKEN_FILE")
    if path is None and named and named != "null":  # as the daemon's configuration has it
        path = Path(named)
    if path is None:
        return environ.get("PFSD_TOKEN") or None
    try:
        with open(path) as file:
            return file.readline().strip()
    except (OSError, UnicodeDecodeError) as error:
        words = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"the token cannot be read from {path}: {words}") from None


def _run(program: Coroutine[Any, Any, int]) -> int:
    factory = None
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        pass
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(program)


async def _client(arguments: argparse.Namespace, config: Path | None) -> int:
    from pfsd.client import DEFAULT_ADDRESS, Client
    from pfsd.console.output import Output

    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    address: str = arguments.server or DEFAULT_ADDRESS
    if arguments.spawn:
        from pfsd import spawn

        file = _config_file(arguments, config)
        address = await spawn.daemon(file, arguments.server, arguments.quiet, arguments.ca)
    connect = partial(Client.connect, address, arguments.token, ca=arguments.ca)
    if getattr(arguments, "command", None) == "top":
        from pfsd.top import run as top

        return await top.run(connect, address, interval=arguments.interval, once=arguments.once, as_json=arguments.json)
    async with await connect() as client:
        if hasattr(arguments, "command"):
            return await _command(client, arguments, Output(as_json=arguments.json, quiet=arguments.quiet))
    from pfsd import shell

    return await shell.run(connect, as_json=arguments.json, quiet=arguments.quiet)


async def _command(client: Client, arguments: argparse.Namespace, out: Output) -> int:
    from pfsd import progress
    from pfsd.console.run import run

    if getattr(arguments, "progress", False):
        return await run(client, arguments, out, _status(arguments, out))
    bars = None if arguments.quiet or arguments.command not in ("put", "get", "verify") else progress.bars()
    if bars is None:
        return await run(client, arguments, out, progress.unwatched)
    with bars:
        # On the terminal that shows the bars, lines have to go above them.
        if sys.stdout.isatty():
            out.print_with(bars.print, bars.print)
        else:
            out.print_with(None, bars.print)
        return await run(client, arguments, out, bars)


def _status(arguments: argparse.Namespace, out: Output) -> Watch:
    from pfsd import progress

    if not arguments.json:
        raise UsageError("--progress goes with --json; a terminal shows bars by itself")
    return progress.status(lambda facts: out.row("status", facts, ""))
