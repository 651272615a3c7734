"""Completions for shells, made from the parsers; they ask the daemon for the names of stored files."""

from __future__ import annotations

from pfsd.errors import UsageError
from pfsd.syntax import Parser

#: Names offered when completing; more would not be read.
MOST_NAMES = 200
#: Names of stored files that begin with a word, one a line. Those with blanks would be taken apart by shells.
_NAMES = f"pfs --quiet list \"$1*\" 2>/dev/null | cut -f 3- | grep -v '[[:space:]]' | head -n {MOST_NAMES}"
_FISH_NAMES = _NAMES.replace('"$1*"', '(commandline -ct)"*"')

_PREAMBLE = {
    "bash": f"_pfs_stored() {{ {_NAMES}; }}\n",
    "zsh": '_pfs_stored() { local -a names; names=(${(f)"$(_pfs_names "$PREFIX")"}); compadd -a names; }\n'
    f"_pfs_names() {{ {_NAMES}; }}\n",
    "fish": f"function __pfs_stored; {_FISH_NAMES}; end\n",
}


def script(parser: Parser, shell: str) -> str:
    """What a shell is to load. UsageError without shtab."""
    try:
        import shtab
    except ImportError:
        raise UsageError("completions need the module shtab: pip install 'pfsd[cli]'") from None
    return str(shtab.complete(parser, shell=shell, preamble=_PREAMBLE.get(shell, "")))
