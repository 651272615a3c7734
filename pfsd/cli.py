"""The two programs: `server_main` runs the daemon, `client_main` one command of the client or the interactive one.

They turn what happened into an exit code and, at most, one line on stderr. What either needs is imported when it
is needed, so that the client starts fast and the daemon loads nothing of the client.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import signal
import sys
from collections.abc import Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pfsd.errors import FatalError, PfsdError, UsageError, from_os_error

if TYPE_CHECKING:
    from pfsd import console
    from pfsd.client import Client

EX_USAGE = 64
DEFAULT_CONFIG = Path(__file__).resolve().parent.parent / "config.yaml"


def server_main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon until it is told to stop, or `bench`; returns the exit code of the process."""
    _hold_standard_streams()
    try:
        arguments = _server_parser().parse_args(argv)
    except SystemExit as end:
        return EX_USAGE if end.code else 0
    try:
        return int(arguments.run(arguments))
    except UsageError as error:
        print(f"pfsd: {error}", file=sys.stderr)
        return EX_USAGE
    except FatalError as error:
        print(f"pfsd: {error}", file=sys.stderr)
        return error.exit_code
    except ModuleNotFoundError as error:
        print(_not_installed(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _server_parser() -> argparse.ArgumentParser:
    from pfsd import __version__

    parser = argparse.ArgumentParser(
        prog="pfsd",
        description="A parallel file storage daemon driven by lines of text over a socket.",
        epilog="Exit codes: 0 stopped; 64 bad command line; 65 registry damaged; 70 no I/O processes; "
        "71 cannot listen; 73 store in use or not creatable; 74 storage failed while running; 75 stop timed out; "
        "78 bad configuration.",
    )
    parser.add_argument("--config", metavar="FILE", type=Path, default=DEFAULT_CONFIG, help="(%(default)s)")
    parser.add_argument("--version", action="version", version=f"pfsd {__version__}")
    parser.set_defaults(run=_serve)
    commands = parser.add_subparsers(title="instead of the daemon", metavar="")
    bench = commands.add_parser(
        "bench",
        help="measure which settings suit this machine",
        description="Measure hashing, coding, the store's disk and processes beside each other, and advise settings. "
        "Needs no daemon and leaves nothing behind.",
    )
    bench.add_argument("--config", metavar="FILE", type=Path, default=argparse.SUPPRESS, help=f"({DEFAULT_CONFIG})")
    bench.add_argument("--seconds", metavar="N", type=_seconds, default=12.0, help="for about so long (%(default)g)")
    bench.add_argument("--path", metavar="DIR", type=Path, help="try the disk there (the store's directory)")
    bench.add_argument("--json", action="store_true", help="print JSON")
    bench.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        type=Path,
        help="content to sample, also directories (what is under the roots)",
    )
    bench.set_defaults(run=_bench)
    _add_rescue(commands)
    return parser


_RESCUE = """\
For a store that no daemon uses; while one runs, its clients' `verify` reads and checks content. The last line of output
is what to type next. docs/recovery.md explains all three.
"""
_RESCUE_CODES = """
examples:
  python server.py check                 is all well? headers and journal; seconds
  python server.py check --data          the same, and reads every byte
  python server.py rebuild --dry-run     what would come back; changes nothing
  python server.py rebuild               make the registries anew from packs and journal
  python server.py repair                mend a journal that is damaged in its middle, mark damaged parts

Exit codes: 0 all agrees, or done; 65 something is damaged, or only rebuild can help; 73 no store, or a daemon has it;
74 the disk failed; 78 bad configuration.
"""


def _add_rescue(commands: Any) -> None:
    """The commands for bad days."""
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--config", metavar="FILE", type=Path, default=argparse.SUPPRESS, help=f"({DEFAULT_CONFIG})")
    options.add_argument("--json", action="store_true", help="print JSON Lines")
    for name, what, more in (
        ("check", "say what of a store is damaged", "Changes nothing."),
        ("rebuild", "make the registries anew from the packs", "Keeps the old journal, and removes nothing."),
        ("repair", "mend a damaged journal", "Keeps the old journal, and removes nothing."),
    ):
        command = commands.add_parser(
            name,
            help=what,
            description=f"{what.capitalize()}. {more}\n{_RESCUE}",
            epilog=_RESCUE_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[options],
        )
        if name in ("check", "repair"):
            command.add_argument("--data", action="store_true", help="read all content and compare it with its MD5")
        elif name == "rebuild":
            command.add_argument("--dry-run", action="store_true", help="only say what would be done")
        command.set_defaults(run=_rescue, command=name)


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0.01 <= seconds <= 3600:
        raise argparse.ArgumentTypeError("must be 0.01 to 3600 seconds")
    return seconds


def _serve(arguments: argparse.Namespace) -> int:
    from pfsd import config, logs, systemd

    manager, passed = systemd.Manager.taken_from(os.environ), systemd.passed_sockets(os.environ)
    settings = config.load(arguments.config, os.environ)
    logs.start(settings.log_level, settings.log_format)
    from pfsd import daemon

    return daemon.main(settings, partial(config.reload, arguments.config, os.environ), manager, passed)


def _bench(arguments: argparse.Namespace) -> int:
    import json

    from pfsd import advise, config, measure

    settings = config.load(arguments.config, os.environ)
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


def _rescue(arguments: argparse.Namespace) -> int:
    import shlex

    from pfsd import config
    from pfsd.rescue import check, rebuild, repair
    from pfsd.rescue.report import Report

    def typed(command: str) -> str:
        words = ["python", "server.py", *command.split()]
        if arguments.config != DEFAULT_CONFIG:
            words += ["--config", str(arguments.config)]
        return shlex.join(words)

    settings = config.load(arguments.config, os.environ)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # no name keeps a store from being mended
    report = Report(arguments.json, print, typed)
    try:
        if arguments.command == "check":
            return check.check(settings, report, arguments.data)
        if arguments.command == "rebuild":
            return rebuild.rebuild(settings, report, arguments.dry_run)
        return repair.repair(settings, report, arguments.data)
    except BrokenPipeError:
        _drop_output()  # whoever read it has seen enough
        return 1


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
    return f"pfsd: this Python lacks the module {error.name}; `make run` sets up one that has it: .venv/bin/python"


# --- the client ---------------------------------------------------------------------------------

_EPILOG = """\
Without a command it is interactive; commands can also be piped in, one a line. FILE is a stored file: plain digits are
its id, anything else (or anything, with --by-name) its name. Local paths are on this side of the connection.

--json prints one JSON object a line for every result, row and error ({"type": "error", "code": ..., "message": ...}).
A name that is not UTF-8 is spelt readably in "name" and byte by byte in "name_hex". With get FILE - they go to stderr.

PFSD_SERVER, PFSD_CA and PFSD_TOKEN in the environment stand for --server, --ca and the token.
Exit codes: 0 done, 1 failed, 2 usage, 3 partial, 4 not found, 5 cannot connect, 130 interrupted,
143 terminated.
"""
_ANSWER_TO_SIGTERM = 128 + signal.SIGTERM


def client_main(argv: Sequence[str] | None = None) -> int:
    """Run one command, or the interactive command line; returns the exit code of the process."""
    from pfsd import console

    words = sys.argv[1:] if argv is None else list(argv)
    _hold_standard_streams()
    out = console.Output(as_json="--json" in words)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # JSON is UTF-8 whatever the locale; a terminal is spared what it cannot show.
            stream.reconfigure(encoding="utf-8" if out.as_json else None, errors="backslashreplace")
    try:
        arguments = _client_parser().parse_args(words)
        token = _token(arguments.token_file)
        return _run(_client(arguments, token))
    except SystemExit as end:  # --help or --version was shown
        return int(end.code or 0)
    except PfsdError as error:
        out.error(error)
        return console.exit_code(error)
    except BrokenPipeError:
        _drop_output()  # whoever read it has seen enough
        return console.FAILED
    except OSError as error:  # commands and connections turn theirs into a PfsdError
        _drop_output()
        refusal = from_os_error(error, "standard input or output")
        print(f"pfsd: {refusal.code}: {refusal}", file=sys.stderr)
        return console.FAILED
    except ModuleNotFoundError as error:
        print(_not_installed(error), file=sys.stderr)
        return console.FAILED
    except KeyboardInterrupt:
        return console.INTERRUPTED
    except asyncio.CancelledError:
        return _ANSWER_TO_SIGTERM


def _drop_output() -> None:
    """Nothing more may be flushed to where it cannot go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _client_parser() -> argparse.ArgumentParser:
    from pfsd import __version__, console
    from pfsd.client import DEFAULT_ADDRESS

    def shared(default: object) -> console.Parser:
        """Options that may stand before the command or after it."""
        options = console.Parser(add_help=False, argument_default=default)
        options.add_argument("--json", action="store_true", default=default, help="print JSON Lines")
        options.add_argument("--quiet", action="store_true", default=default, help="show no bars and confirmations")
        return options

    parser = console.Parser(
        prog="client.py",
        description="The client of pfsd, a parallel file storage daemon.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[shared(False)],
    )
    server = os.environ.get("PFSD_SERVER") or None
    forms = "HOST:PORT, tls://HOST:PORT or unix:PATH"
    parser.add_argument(
        "--server",
        metavar="ADDRESS",
        default=server,
        help=f"{forms} ({DEFAULT_ADDRESS})",
    )
    ca = os.environ.get("PFSD_CA") or None
    parser.add_argument(
        "--ca", metavar="FILE", default=ca, type=Path, help="who vouches for the daemon's certificate, as PEM"
    )
    parser.add_argument("--token-file", metavar="FILE", type=Path, help="its first line is the daemon's token")
    parser.add_argument("--spawn", action="store_true", help="start a daemon if none answers")
    parser.add_argument("--config", metavar="FILE", type=Path, default=DEFAULT_CONFIG, help="its configuration")
    parser.add_argument("--version", action="version", version=f"pfsd {__version__}")
    console.add_commands(parser, [shared(argparse.SUPPRESS)])
    return parser


def _token(path: Path | None) -> str | None:
    if path is None:
        return os.environ.get("PFSD_TOKEN") or None
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


async def _client(arguments: argparse.Namespace, token: str | None) -> int:
    from pfsd import console
    from pfsd.client import DEFAULT_ADDRESS, Client

    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    address: str = arguments.server or DEFAULT_ADDRESS
    if arguments.spawn:
        from pfsd import spawn

        address = await spawn.daemon(arguments.config, arguments.server, arguments.quiet, arguments.ca)
    connect = partial(Client.connect, address, token, ca=arguments.ca)
    async with await connect() as client:
        if hasattr(arguments, "run"):
            return await _command(client, arguments, console.Output(as_json=arguments.json, quiet=arguments.quiet))
    from pfsd import shell

    return await shell.run(connect, as_json=arguments.json, quiet=arguments.quiet)


async def _command(client: Client, arguments: argparse.Namespace, out: console.Output) -> int:
    from pfsd import console, progress

    display = None if arguments.quiet or arguments.command not in ("put", "get", "verify") else progress.bars()
    if display is None:
        return await console.run(client, arguments, out, progress.unwatched)
    with display:
        # On the terminal that shows the bars, lines have to go above them.
        if sys.stdout.isatty():
            out.print_with(display.print, display.print)
        else:
            out.print_with(None, display.print)
        return await console.run(client, arguments, out, display)
