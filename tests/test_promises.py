"""The README promises what tests hold, and nothing else."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import pytest

from tests.promises import PROMISES

ROOT = Path(__file__).parent.parent


@cache
def held_by() -> dict[str, set[str]]:
    """Word -> the tests marked with it, as `file.py::name`."""
    found = defaultdict(set)
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                continue
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.promise":
                    words = [ast.literal_eval(word) for word in mark.args]
                    assert words, f"{path.name}::{node.name} holds no promise"
                    for word in words:
                        found[word].add(f"{path.relative_to(ROOT / 'tests')}::{node.name}")
    return found


def section(title: str, path: str = "README.md") -> str:
    text = (ROOT / path).read_text()
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_readme_makes_these_promises_and_no_others() -> None:
    made = re.findall(r"^\d+\. \*\*(.+?)\*\*", section("Promises"), re.MULTILINE)
    assert made == list(PROMISES.values())


@pytest.mark.parametrize("word", PROMISES)
def test_the_page_names_the_tests_that_hold_a_promise(word: str) -> None:
    named = set(re.findall(r"\]\(\.\./tests/(\S+?)\)", section(PROMISES[word], "docs/promises.md")))
    assert named == {test.partition("::")[0] for test in held_by()[word]} != set()


def test_every_marked_test_holds_a_promise_that_was_made() -> None:
    assert held_by().keys() <= PROMISES.keys()
