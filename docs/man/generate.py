"""Writes the manual pages beside it, from the parsers of the programs and from config.yaml: `make man`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from pfsd import __version__, syntax

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent.parent / "config.yaml"


def pages() -> dict[str, str]:
    """Each page by the name of its file."""
    return {"pfs.1": _pfs(), "pfsd.1": _pfsd(), "pfsd.yaml.5": _config(CONFIG.read_text("utf-8"))}


# --- roff ---------------------------------------------------------------------------------------


def text(words: str) -> str:
    """Text as roff has it: nothing in it is a request or an escape; `code` is bold."""
    escaped = words.replace("\\", "\\e").replace("-", "\\-").replace("^", "\\(ha").replace("~", "\\(ti")
    escaped = re.sub(r"`([^`]+)`", r"\\fB\1\\fR", escaped).replace("'", "\\(aq").replace("`", "\\(ga")
    return "\n".join("\\&" + line if line.startswith(".") else line for line in escaped.splitlines())


def quoted(words: str) -> str:
    """An argument of a request."""
    return '"' + text(words).replace('"', "\\(dq") + '"'


def paragraphs(prose: str) -> str:
    """Paragraphs; lines that are indented stay as they are."""
    return "\n".join(_paragraph(lines) for lines in re.split(r"\n[ \t]*\n", prose.strip("\n")))


def _paragraph(block: str) -> str:
    pieces: list[str] = [".PP"]
    as_is = False
    for line in block.splitlines():
        if line.startswith("  ") != as_is:
            as_is = not as_is
            pieces.append(".RS 4\n.nf" if as_is else ".fi\n.RE")
        pieces.append(text(line.strip() if not as_is else line[2:]))
    return "\n".join([*pieces, ".fi\n.RE"] if as_is else pieces)


def tagged(term: str, words: str) -> str:
    """A term, and what it means."""
    return f".TP\n.B {quoted(term)}\n{text(words)}"


def _head(name: str, section: int, does: str) -> str:
    title = f'.TH {quoted(name.upper())} {section} "" {quoted(f"pfsd {__version__}")} "pfsd manual"'
    return f'.\\" Written by docs/man/generate.py; change that.\n{title}\n.SH NAME\n{text(name)} \\- {text(does)}'


# --- from parsers -------------------------------------------------------------------------------


def _options(parser: argparse.ArgumentParser, *, but: frozenset[str] = frozenset()) -> Iterator[str]:
    """The arguments and options of a parser that need words."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction | argparse._HelpAction) or action.dest in but:
            continue
        value = action.metavar or action.dest.upper()
        value = value if isinstance(value, str) else value[0]
        takes = "" if action.nargs == 0 else f" {value}"
        term = ", ".join(f"{option}{takes}" for option in action.option_strings) or value
        help = (action.help or "") % {**vars(action), "prog": parser.prog}
        yield tagged(term, help)


def _usage(parser: argparse.ArgumentParser) -> str:
    """A line of the synopsis. That of argparse is not the same in all versions."""
    options = [_option(action) for action in parser._actions if action.option_strings and action.dest != "help"]
    return " ".join([parser.prog, *options, *(_argument(each) for each in parser._actions if not each.option_strings)])


def _option(action: argparse.Action) -> str:
    value = "" if action.nargs == 0 else f" {action.metavar or action.dest.upper()}"
    return f"[{action.option_strings[0]}{value}]"


def _argument(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest)
    forms = {"+": f"{name} ...", "*": f"[{name} ...]", "?": f"[{name}]", argparse.PARSER: f"{name} ..."}
    return forms.get(str(action.nargs), name)


def _commands(parser: argparse.ArgumentParser, shared: frozenset[str]) -> Iterator[str]:
    """A subsection for each command. What is `shared` by all is explained elsewhere."""
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        aliases = {choice.dest: choice.metavar for choice in action._choices_actions}
        for name, command in action.choices.items():
            if name not in aliases:
                continue  # another name of one that was there
            if any(isinstance(inner, argparse._SubParsersAction) for inner in command._actions):
                yield from _commands(command, shared)
                continue
            words = command.prog.split(" ", 1)[1]
            shown = aliases[name] if words == name else words
            yield f".SS {quoted(str(shown))}\n.B {quoted(_usage(command))}"
            yield paragraphs((command.description or "").partition("\n")[0])
            yield from _options(command, but=shared)


def _table(mapping: Mapping[str, str] | Mapping[int, str]) -> str:
    return "\n".join(tagged(str(key), words) for key, words in mapping.items())


def _page(name: str, does: str, parser: argparse.ArgumentParser, sections: Mapping[str, str]) -> str:
    pieces = [_head(name, 1, does), f".SH SYNOPSIS\n.B {quoted(_usage(parser))}"]
    for heading, body in sections.items():
        pieces.append(f".SH {heading}\n{body}")
    return "\n".join(pieces) + "\n"


def _pfs() -> str:
    parser = syntax.client_parser()
    sections = {
        "DESCRIPTION": paragraphs(f"{syntax.CLIENT_ABOUT}\n\n{syntax.CLIENT_PROSE}"),
        "OPTIONS": "\n".join(_options(parser)),
        "COMMANDS": "\n".join(_commands(parser, frozenset({"json", "quiet"}))),
        "PATTERNS OF --exclude": paragraphs(syntax.EXCLUDE_PROSE),
        "ENVIRONMENT": _table(syntax.CLIENT_VARIABLES),
        "EXIT STATUS": _table(syntax.CLIENT_CODES),
        "EXAMPLES": "\n".join(tagged(line, words) for line, words in syntax.CLIENT_EXAMPLES.items()),
        "SEE ALSO": ".BR pfsd (1)",
    }
    return _page("pfs", "store and retrieve files with a pfsd", parser, sections)


def _pfsd() -> str:
    parser = syntax.server_parser()
    sections = {
        "DESCRIPTION": paragraphs(f"{syntax.SERVER_ABOUT}\n\n{syntax.SERVER_PROSE}"),
        "OPTIONS": "\n".join(_options(parser)),
        "COMMANDS": "\n".join(_commands(parser, frozenset({"config"}))),
        "ENVIRONMENT": _table(syntax.SERVER_VARIABLES),
        "EXIT STATUS": _table(syntax.SERVER_CODES),
        "SEE ALSO": ".BR pfs (1),\n.BR pfsd.yaml (5)",
    }
    return _page("pfsd", "a parallel file storage daemon", parser, sections)


# --- from config.yaml ---------------------------------------------------------------------------


def _config(source: str) -> str:
    pieces = [_head("pfsd.yaml", 5, "the configuration of pfsd")]
    places = "\n".join(f"  {number}. {place}" for number, place in enumerate(syntax.CONFIG_PLACES, 1))
    where = f"The file is the first of these; `pfsd config show` tells which, and what is in force:\n{places}"
    comment: list[str] = []
    keys: list[str] = []
    intro = ""
    for line in source.splitlines():
        if found := re.match(r"# --- (.*?) -+$", line):
            keys.append(f".SS {quoted(found[1].capitalize())}")
        elif line.startswith("#"):
            comment.append(line[1:].removeprefix(" "))
        elif line:
            keys.append(f".TP\n.B {quoted(line)}\n{_key(comment)}")
            comment = []
        elif comment:
            intro, comment = intro or "\n".join(comment), []
    pieces.append(f".SH DESCRIPTION\n{paragraphs(intro)}")
    pieces.append(f".SH FILES\n{paragraphs(where)}")
    pieces.append(".SH KEYS\nEach with its default.\n" + "\n".join(keys))
    pieces.append(".SH SEE ALSO\n.BR pfsd (1)")
    return "\n".join(pieces) + "\n"


def _key(comment: list[str]) -> str:
    words = paragraphs("\n".join(comment)).removeprefix(".PP\n")
    return words.replace(".RS 4", ".RS 11").replace(".fi\n.RE", ".fi\n.RE\n.IP").removesuffix("\n.IP")


if __name__ == "__main__":
    for name, page in pages().items():
        (HERE / name).write_text(page, "utf-8")
