"""What may be typed: the parsers of the two programs, with all their commands, options and exit codes.

The programs, the interactive command line, the completions of shells and the manual pages are made from these. They
only read words: what a command does is elsewhere, and loading this costs next to nothing.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from pfsd import __version__, protocol
from pfsd.errors import UsageError

#: The short names that people type, and those they stand for.
ALIASES = {"ls": "list", "rm": "delete", "mv": "rename"}
#: Those that completions can be printed for.
SHELLS = ("bash", "zsh", "fish", "tcsh")

#: What the exit codes of `pfs` mean.
CLIENT_CODES: Mapping[int, str] = {
    0: "done",
    1: "failed",
    2: "wrong usage",
    3: "done in part: of several files some failed, or what could not be read was filled with zeros",
    4: "no such file",
    5: "cannot connect",
    130: "interrupted (Ctrl-C)",
    143: "terminated (SIGTERM)",
}
#: What the exit codes of `pfsd` mean.
SERVER_CODES: Mapping[int, str] = {
    0: "stopped by `exit` or a signal; all is well, or done",
    1: "a module or file of pfsd is not there, or nobody reads the output",
    64: "bad command line",
    65: "the journal is damaged or has lost records; `check` says more",
    70: "the I/O processes cannot be started",
    71: "an address cannot be listened on",
    73: "the store is in use by another daemon, is not there, or cannot be made",
    74: "the disk failed, or the store was moved, removed or replaced",
    75: "stopping took longer than `stop_timeout`",
    78: "the configuration cannot be used",
    130: "interrupted (Ctrl-C)",
}
#: The environment variables of `pfs`; an option on the command line goes before its variable.
CLIENT_VARIABLES: Mapping[str, str] = {
    "PFSD_SERVER": "stands for --server",
    "PFSD_CA": "stands for --ca",
    "PFSD_TOKEN": "the daemon's token",
    "PFSD_TOKEN_FILE": "stands for --token-file, and goes before PFSD_TOKEN",
    "PFSD_CONFIG": "stands for --config",
    "NO_COLOR": "if set to anything, bars have no colors",
}
#: Those of `pfsd`.
SERVER_VARIABLES: Mapping[str, str] = {
    "PFSD_CONFIG": "stands for --config",
    "PFSD_KEY": "replaces a key of the configuration, for each KEY of it: PFSD_MEMORY=1GiB",
    "XDG_CONFIG_HOME": "where pfsd/config.yaml is looked for (~/.config)",
    "XDG_DATA_HOME": "where pfsd/store is without any configuration (~/.local/share)",
}
#: Where the configuration is: the first of these that is there.
CONFIG_PLACES = (
    "--config FILE",
    "$PFSD_CONFIG",
    "the config.yaml beside server.py or client.py, if that was started",
    "$XDG_CONFIG_HOME/pfsd/config.yaml, which is ~/.config/pfsd/config.yaml unless that is set",
    "/etc/pfsd/config.yaml",
    "none: every key has its default, and paths count from $XDG_DATA_HOME/pfsd, else ~/.local/share/pfsd",
)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} ({' '.join(self.format_usage().split())})")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """For a command that does not exist, name the one that may be meant, not all of them."""
        if action.choices is None or value in action.choices:
            return
        names = [str(choice) for choice in action.choices]
        if isinstance(action, argparse._SubParsersAction):
            hint = nearest(str(value), names, "--help lists them")
            raise UsageError(f"there is no command {value}; {hint}")
        raise UsageError(f"{value} is none of {', '.join(names)}")


def nearest(word: str, names: Sequence[str], otherwise: str) -> str:
    """What to say to who misspelt a command: the one that may be meant, or something else."""
    near = difflib.get_close_matches(word, names, 1)
    return f"did you mean {near[0]}?" if near else otherwise


def _text(mapping: Mapping[int, str]) -> str:
    return "\n".join(f"  {code:<4} {what}" for code, what in mapping.items())


def _variables(mapping: Mapping[str, str]) -> str:
    return "\n".join(f"  {name:<16} {what}" for name, what in mapping.items())


# --- pfs ----------------------------------------------------------------------------------------

CLIENT_ABOUT = "The client of pfsd, a parallel file storage daemon."
CLIENT_PROSE = """\
Without a command it is interactive; commands can also be piped in, one a line. Local paths are on this side of the
connection.

FILE is a stored file: plain digits are its id, anything else its name. Where several files make sense, a FILE with * or
? is a pattern over names: * is any bytes, / too, ? is one byte, and beside them [abc] is one of these. A file of just
that name goes before. With --by-name it is a name as it stands, no id and no pattern: what scripts should say.

--json prints one JSON object a line, with a "type", for every result, row and error ({"type": "error", "code": ...,
"message": ...}), on stdout; with content on stdout (cat, get FILE -) on stderr. A name that is not UTF-8 is spelt
readably in "name" and byte by byte in "name_hex".
"""
EXCLUDE_PROSE = """\
As in .gitignore. A pattern without a slash, but for one at its end, fits a name at any depth; one with a slash fits
paths from the directory on. `*` is any characters but a slash, `?` one of them, `[a-z]` one of a set, `**` any number
of directories; a backslash takes its meaning from what follows. A slash at the end has it fit directories alone; what
is below a directory that is left out is left out, too. `!` in front takes back what a pattern before has left out:
the last one that fits decides, those of files being before those of the command line.
"""
CLIENT_EXAMPLES: Mapping[str, str] = {
    "pfs put -r photos --exclude '*.tmp'": "store all files below a directory, as photos/...",
    "pfs put -r photos --resume": "go on with that where it was cut short",
    "pfs get 'photos/2024/*.jpg' restored": "retrieve some of them, to below restored",
    "tar c src | pfs put - --name src.tar": "store what a command prints",
    "pfs cat src.tar | tar t": "look into it",
    "pfs du --depth 2": "how much is stored where",
    "pfs rm -n 'tmp/*'": "see what would be deleted",
    "pfs --json list | jq .name": "names, for programs",
}


def client_parser(program: str = "pfs") -> Parser:
    """The parser of `pfs`."""

    def shared(default: object) -> Parser:
        """Options that may stand before the command or after it."""
        options = Parser(add_help=False, argument_default=default)
        options.add_argument("--json", action="store_true", default=default, help="print JSON Lines")
        options.add_argument("--quiet", action="store_true", default=default, help="show no bars and confirmations")
        return options

    parser = Parser(
        prog=program,
        description=CLIENT_ABOUT,
        epilog=f"{CLIENT_PROSE}\nenvironment:\n{_variables(CLIENT_VARIABLES)}\n\nexit codes:\n{_text(CLIENT_CODES)}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[shared(False)],
    )
    forms = "HOST:PORT, tls://HOST:PORT or unix:PATH"
    parser.add_argument("--server", metavar="ADDRESS", help=f"{forms} ({protocol.DEFAULT_ADDRESS})")
    _path(parser, "--ca", help="who vouches for the daemon's certificate, as PEM")
    _path(parser, "--token-file", help="its first line is the daemon's token")
    parser.add_argument("--spawn", action="store_true", help="start a daemon if none answers")
    _path(parser, "--config", help="the configuration of that daemon")
    parser.add_argument("--version", action="version", version=f"pfs {__version__}")
    commands = add_commands(parser, [shared(argparse.SUPPRESS)])
    top = commands.add_parser(
        "top",
        help="watch the daemon work",
        description="Watch the daemon work, live on a terminal (extra pfsd[tui]); otherwise once, as text.",
        parents=[shared(argparse.SUPPRESS)],
    )
    top.add_argument("--once", action="store_true", help="print one snapshot")
    top.add_argument("--interval", type=_interval, default=1.0, metavar="SECONDS", help="between looks (%(default)g)")
    top.set_defaults(command="top")
    _add_completion(commands, [shared(argparse.SUPPRESS)])
    return parser


def _interval(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError("must be 0.1 to 3600 seconds")
    return seconds


def _path(parser: Any, *names: str, help: str, default: object = None) -> None:
    action = parser.add_argument(*names, metavar="FILE", type=Path, default=default, help=help)
    _complete(action, "file")


def _complete(action: Any, what: str) -> None:
    """Say what completions of a shell offer for an argument."""
    if what == "file":
        action.complete = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f", "fish": "__fish_complete_path"}
    else:
        action.complete = {"bash": "_pfs_stored", "zsh": "_pfs_stored", "fish": "__pfs_stored"}


def _add_completion(commands: Any, parents: list[Parser]) -> None:
    words = "print completions for a shell"
    example = f"Try it with: source <({{}} completion {SHELLS[0]})"
    completion = commands.add_parser("completion", help=words, description=f"{words.capitalize()}.", parents=parents)
    completion.epilog = example.format(completion.prog.rpartition(" ")[0].split(" [")[0])
    completion.add_argument("shell", choices=SHELLS, metavar="SHELL", help=f"one of {', '.join(SHELLS)}")
    completion.set_defaults(command="completion")


def add_commands(parser: argparse.ArgumentParser, shared: list[Parser]) -> Any:
    """Add a subparser for each command; each also takes the options of the `shared` parsers."""
    commands = parser.add_subparsers(metavar="COMMAND", title="commands", parser_class=Parser)

    def add(name: str, does: str, more: str = "") -> argparse.ArgumentParser:
        aliases = [short for short, long in ALIASES.items() if long == name]
        command: argparse.ArgumentParser = commands.add_parser(
            name, aliases=aliases, help=does, description=f"{does[0].upper()}{does[1:]}. {more}".strip(), parents=shared
        )
        command.set_defaults(command=name)
        return command

    put = add("put", "store files; several are sent side by side")
    _complete(put.add_argument("files", nargs="*", metavar="FILE", help="a local path; - is standard input"), "file")
    put.add_argument(
        "--from-command", metavar="COMMAND", help="store what a shell command prints, only if it succeeds; needs --name"
    )
    put.add_argument(
        "--name", help="its name in the store, or the beginning of all names below it (default: last component)"
    )
    put.add_argument("--replace", action="store_true", help="replace a stored file of that name")
    put.add_argument("-r", "--recursive", action="store_true", help="of a directory, store every regular file below it")
    _add_excludes(put, "of a directory")
    put.add_argument(
        "--resume",
        action="store_true",
        help="go on where the last one was cut short, if FILE is the same; with -r pass over what is there already",
    )
    _add_dry_run(put)
    _add_progress(put)

    get = add(
        "get",
        "retrieve a file; it appears whole or not at all",
        "With a pattern, all files whose names match go to below the directory TARGET, under their names from the "
        "last / before the first wildcard on.",
    )
    _add_file(get, nargs=None)
    target = get.add_argument(
        "target", nargs="?", metavar="TARGET", help="a local path (default: its name); - is stdout"
    )
    _complete(target, "file")
    get.add_argument("--replace", action="store_true", help="replace a regular file at TARGET")
    get.add_argument("-r", "--recursive", action="store_true", help="all files FILE/..., to below the directory TARGET")
    _add_excludes(get, "of many")
    get.add_argument("--offset", type=_number, default=0, metavar="BYTES", help="begin here")
    get.add_argument("--length", type=_number, metavar="BYTES", help="retrieve this many bytes")
    get.add_argument("--sync", action="store_true", help="have it on the disk before it appears, power loss or not")
    get.add_argument("--zero-damage", action="store_true", help="fill what cannot be read with zeros; exit code 3")
    get.add_argument(
        "--resume",
        action="store_true",
        help="go on where the last one was cut short; with -r and patterns pass over what is there already",
    )
    _add_dry_run(get)
    _add_progress(get)

    _add_file(add("cat", "write the content of files to standard output"), nargs="+")

    listing = add("list", "list the stored files")
    listing.add_argument(
        "pattern", nargs="?", metavar="PATTERN", help="a glob over names, such as '*.tar'; what ends in / is all below"
    )
    listing.add_argument("-l", "--long", action="store_true", help="show status, stored size, parts and time too")

    usage = add("du", "show how much is stored below each prefix that ends in /")
    usage.add_argument("prefix", nargs="?", metavar="PREFIX", help="only files PREFIX/..., or those a pattern matches")
    usage.add_argument("--depth", type=_depth, default=1, metavar="N", help="so many levels below PREFIX (%(default)d)")
    usage.add_argument("--by-name", action="store_true", help="PREFIX is no pattern")

    status = add("stat", "show all about files")
    _add_file(status, nargs="+")
    status.add_argument("--parts", action="store_true", help="and about each of its parts")

    delete = add("delete", "delete files for good; none, if one of them is unknown")
    _add_file(delete, nargs="+")
    _add_dry_run(delete)

    rename = add("rename", "give a file another name")
    _add_file(rename, nargs=None)
    rename.add_argument("name", metavar="NAME", help="its new name")
    rename.add_argument("--replace", action="store_true", help="replace a stored file of that name")

    verify = add("verify", "have every part of these files, or of all, read and checked")
    _add_file(verify, nargs="*")
    _add_progress(verify)
    add("ps", "show the commands that the daemon is running, and its I/O processes")
    add("stats", "show the daemon's counters")
    add("ping", "see whether the daemon answers")
    add("exit", "shut the daemon down: running commands finish first")
    return commands


def _add_file(parser: argparse.ArgumentParser, nargs: str | None) -> None:
    one, many = ("file", "FILE"), ("files", "FILE")
    dest, metavar = one if nargs is None else many
    patterns = ", * or ? make a pattern" if nargs is not None or parser.prog.endswith(" get") else ""
    file = parser.add_argument(dest, nargs=nargs, metavar=metavar, help=f"a name; plain digits are an id{patterns}")
    _complete(file, "stored")
    parser.add_argument(
        "--by-name", action="store_true", help=f"digits are a name too{patterns and ', and so is what has * or ?'}"
    )


def _add_excludes(parser: argparse.ArgumentParser, of: str) -> None:
    parser.add_argument(
        "--exclude",
        metavar="PATTERN",
        action="append",
        default=[],
        help=f"{of}, leave out what matches, as a line of .gitignore would; may be given more than once",
    )
    action = parser.add_argument(
        "--exclude-from",
        metavar="FILE",
        action="append",
        default=[],
        type=Path,
        help="the same with each line of a file",
    )
    _complete(action, "file")


def _add_dry_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-n", "--dry-run", action="store_true", help="only show what would be done")


def _add_progress(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--progress", action="store_true", help="with --json, print a status object every second")


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 19):
        raise argparse.ArgumentTypeError(f"not a number of bytes: {text!r}")
    return int(text)


def _depth(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 5):
        raise argparse.ArgumentTypeError(f"not a number of levels: {text!r}")
    return int(text)


# --- pfsd ---------------------------------------------------------------------------------------

SERVER_ABOUT = "A parallel file storage daemon driven by lines of text over a socket."
_PLACES = "\n".join(f"  {number}. {place}" for number, place in enumerate(CONFIG_PLACES, 1))
SERVER_PROSE = f"""\
The configuration is the first of these; `config show` tells which:
{_PLACES}

Once it can be used, the daemon writes a line "pfsd ready on ADDRESS" to standard output for each address it listens on;
its log goes to standard error. SIGTERM and SIGINT stop it when running commands have finished.
"""

_RESCUE = """\
For a store that no daemon uses; while one runs, its clients' `verify` reads and checks content. The last line of output
is what to type next. docs/recovery.md explains all three.
"""
_RESCUE_CODES = """
examples:
  {program} check                 is all well? headers and journal; seconds
  {program} check --data          the same, and reads every byte
  {program} rebuild --dry-run     what would come back; changes nothing
  {program} rebuild               make the registries anew from packs and journal
  {program} repair                mend a journal that is damaged in its middle, mark damaged parts

Exit codes: 0 all agrees, or done; 65 something is damaged, or only rebuild can help; 73 no store, or a daemon has it;
74 the disk failed; 78 bad configuration.
"""


def server_parser(program: str = "pfsd") -> Parser:
    """The parser of `pfsd`."""
    parser = Parser(
        prog=program,
        description=SERVER_ABOUT,
        epilog=f"{SERVER_PROSE}\nenvironment:\n{_variables(SERVER_VARIABLES)}\n\nexit codes:\n{_text(SERVER_CODES)}\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _path(parser, "--config", help="the configuration; see below for where it is otherwise")
    parser.add_argument("--version", action="version", version=f"pfsd {__version__}")
    parser.set_defaults(command="serve")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=Parser)
    config = Parser(add_help=False)
    _path(config, "--config", help="the configuration", default=argparse.SUPPRESS)
    commands.add_parser(
        "serve", help="run the daemon; so it does without a command", parents=[config], description="Run the daemon."
    ).set_defaults(command="serve")
    bench = commands.add_parser(
        "bench",
        help="measure which settings suit this machine",
        description="Measure hashing, coding, the store's disk and processes beside each other, and advise settings. "
        "Needs no daemon and leaves nothing behind.",
        parents=[config],
    )
    bench.add_argument("--seconds", metavar="N", type=_seconds, default=12.0, help="for about so long (%(default)g)")
    where = bench.add_argument("--path", metavar="DIR", type=Path, help="try the disk there (the store's directory)")
    _complete(where, "file")
    bench.add_argument("--json", action="store_true", help="print JSON")
    files = bench.add_argument(
        "files",
        metavar="FILE",
        nargs="*",
        type=Path,
        help="content to sample, also directories (what is under the roots)",
    )
    _complete(files, "file")
    bench.set_defaults(command="bench")
    _add_rescue(commands, program, config)
    _add_config(commands, config)
    _add_completion(commands, [])
    return parser


def _add_rescue(commands: Any, program: str, config: Parser) -> None:
    """The commands for bad days."""
    for name, what, more in (
        ("check", "say what of a store is damaged", "Changes nothing."),
        ("rebuild", "make the registries anew from the packs", "Keeps the old journal, and removes nothing."),
        ("repair", "mend a damaged journal", "Keeps the old journal, and removes nothing."),
    ):
        command = commands.add_parser(
            name,
            help=what,
            description=f"{what.capitalize()}. {more}\n{_RESCUE}",
            epilog=_RESCUE_CODES.format(program=program),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[config],
        )
        command.add_argument("--json", action="store_true", help="print JSON Lines")
        if name in ("check", "repair"):
            command.add_argument("--data", action="store_true", help="read all content and compare it with its MD5")
        elif name == "rebuild":
            command.add_argument("--dry-run", action="store_true", help="only say what would be done")
        command.set_defaults(command=name)


def _add_config(commands: Any, config: Parser) -> None:
    command = commands.add_parser(
        "config",
        help="show or check the configuration",
        description="Show or check the configuration the daemon would use: file, environment and defaults together.",
    )
    actions = command.add_subparsers(title="commands", metavar="ACTION", required=True, parser_class=Parser)
    for name, what in (
        ("show", "print each key, its value, and where that is from; secrets are not shown"),
        ("check", "say whether the daemon could use it"),
    ):
        action = actions.add_parser(name, help=what, description=f"{what.capitalize()}.", parents=[config])
        action.add_argument("--json", action="store_true", help="print JSON Lines")
        action.set_defaults(command=f"config {name}")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.01 <= seconds <= 3600:
        raise argparse.ArgumentTypeError("must be 0.01 to 3600 seconds")
    return seconds
