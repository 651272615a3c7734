"""What is left out of a directory: patterns as in .gitignore."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pfsd import excludes
from pfsd.errors import UsageError
from pfsd.excludes import Excludes


@pytest.mark.parametrize(
    ("pattern", "out", "kept"),
    [
        ("*.tmp", ["a.tmp", "d/a.tmp", ".tmp"], ["a.tmpx", "tmp"]),
        ("a?c", ["abc", "d/axc"], ["a/c", "ac"]),
        ("[ab]x", ["ax", "d/bx"], ["cx", "abx"]),
        ("[!ab]x", ["cx"], ["ax", "/x"]),
        ("[z-a]", [], ["z", "[z-a]"]),
        ("/top", ["top", "top/x"], ["d/top"]),
        ("d/x", ["d/x", "d/x/y"], ["e/d/x", "dx"]),
        ("d/*.c", ["d/a.c"], ["d/e/a.c"]),
        ("**/x", ["x", "a/x", "a/b/x"], ["ax"]),
        ("d/**", ["d/a", "d/a/b"], ["d"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["ab"]),
        ("build/", ["build/x", "a/build/x"], ["build", "a/build"]),
        (r"\*", ["*"], ["a"]),
        ("[", ["["], ["a"]),
        ("a b", ["a b"], ["ab"]),
        ("line\nbreak", ["line\nbreak"], ["line"]),
    ],
)
def test_what_a_pattern_leaves_out(pattern: str, out: list[str], kept: list[str]) -> None:
    found = Excludes([pattern])
    assert [path for path in [*out, *kept] if found.leaves_out_file(path)] == out


def test_the_last_pattern_that_fits_decides() -> None:
    found = Excludes(["*.log", "!keep.log", "/old/"])
    assert found.leaves_out_file("a.log") and not found.leaves_out_file("keep.log")
    assert found.leaves_out_file("old/keep.log"), "its directory is left out"
    assert Excludes(["!keep.log", "*.log"]).leaves_out_file("keep.log")


@pytest.mark.parametrize("pattern", ["", "/", "!", "!/", "  "])
def test_a_pattern_that_could_never_fit(pattern: str) -> None:
    with pytest.raises(UsageError, match="holds no name"):
        Excludes([pattern])


def test_files_of_patterns(tmp_path: Path) -> None:
    path = tmp_path / "patterns"
    path.write_text("# comment\n\n*.o\n")
    found = excludes.read(["!b.o"], [path])
    assert [found.leaves_out_file(name) for name in ("a.o", "b.o", "# comment")] == [True, False, False]
    assert not excludes.read([], [])
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        excludes.read([], [tmp_path / "none"])


_COMPONENT = st.text(alphabet="ab*?.", min_size=1, max_size=3)
_PATTERNS = st.lists(
    st.builds(
        lambda begin, pieces, end: begin + "/".join(pieces) + end,
        st.sampled_from(["", "/", "!"]),
        st.lists(_COMPONENT | st.just("**"), min_size=1, max_size=3),
        st.sampled_from(["", "/"]),
    ),
    min_size=1,
    max_size=3,
)
PATHS = ["a", "b", "ab", "a.b", "a/b", "b/a", "a/a", "aa/b", "a/b/a", "b/b/a", "ab/a.b", "a/ab/b", ".a", "b/.b"]


@settings(max_examples=40, deadline=None)
@given(_PATTERNS)
def test_git_says_the_same(tmp_path_factory: pytest.TempPathFactory, patterns: list[str]) -> None:
    home = tmp_path_factory.getbasetemp() / "git"
    if not home.exists():
        subprocess.run(["git", "init", "-q", str(home)], check=True)
    (home / ".gitignore").write_text("".join(f"{pattern}\n" for pattern in patterns))
    done = subprocess.run(
        ["git", "-C", str(home), "check-ignore", "--no-index", "--stdin"],
        input="\n".join(PATHS),
        capture_output=True,
        text=True,
    )
    found = Excludes(patterns)
    assert [path for path in PATHS if found.leaves_out_file(path)] == done.stdout.split(), patterns
