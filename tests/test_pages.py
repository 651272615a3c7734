"""What the documents tell people to type does what they say. tests/pages.py explains how a page is written."""

from __future__ import annotations

import shutil
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.documents import DOCUMENTS, ROOT, blocks
from tests.pages import RUN, SHOWN, Page, is_page

PAGES = [path for path in DOCUMENTS if is_page(path)]
#: All that the documents show and no test runs: document, reason -> how many blocks.
NOT_RUN = {
    ("README.md", "docs/howto/put-it-behind-tls.md is"): 1,
    ("README.md", "measures for half a minute"): 1,
    ("bench/README.md", "takes minutes; tests/test_bench.py runs the programs"): 2,
    ("docs/howto/move-the-store.md", "needs a second machine"): 1,
    ("docs/howto/put-it-behind-tls.md", "needs a second machine"): 1,
    ("docs/howto/recover-from-a-broken-disk.md", "needs a broken disk"): 1,
    ("docs/operations.md", "installs a service on the machine"): 2,
    ("docs/operations.md", "needs docker"): 2,
    ("docs/tutorial.md", "downloads packages"): 1,
}
#: What pages may use of other programs: without, the page is not run.
LIBRARIES = ("pandas", "pyarrow", "dask", "zarr", "fsspec")
TOOLS = ("curl", "nc", "node", "openssl")


@pytest.mark.timeout(180)  # dozens of programs, one after the other
@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_page_says_is_so(path: Path, tmp_path: Path) -> None:
    lines = [line for block in blocks(path) if block.mark.split(" ")[0] in RUN for line in block.lines]
    missing = [tool for tool in TOOLS if not shutil.which(tool) and any(f"{tool} " in line for line in lines)]
    missing += [name for name in LIBRARIES if not find_spec(name) and any(f"import {name}" in line for line in lines)]
    if missing:
        pytest.skip(f"the page needs {', '.join(missing)}")
    with Page(path, tmp_path) as page:
        page.run()


def test_there_are_pages() -> None:
    assert {"README.md", "docs/tutorial.md"} <= {str(path.relative_to(ROOT)) for path in PAGES}


def test_what_is_not_run_is_listed_here() -> None:
    found = Counter((str(b.path.relative_to(ROOT)), b.not_run) for path in DOCUMENTS for b in blocks(path) if b.not_run)
    assert found == NOT_RUN


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_are_marked_as_such(path: Path) -> None:
    for block in blocks(path):
        mark = block.mark.split(" ")[0]
        assert mark in RUN or mark in SHOWN, f"{block.place}: nobody knows how to run {mark}"
        if mark in SHOWN and not block.not_run:
            commands = [line for line in block.lines if line.startswith(("$ ", ">>> ", "pfs ", "python "))]
            assert not commands, f"{block.place}: {commands[0]}: mark it as sh, console or python, so that it is run"


WRONG = {
    "a command fails": "```sh\nfalse\ntrue\n```",
    "a command in a pipe fails": "```sh\nfalse | cat\n```",
    "no command": "```sh\n'\n```",
    "another output": "```console\n$ echo a\nb\n```",
    "less output": "```console\n$ printf 'a\\nb\\n'\na\n```",
    "more output": "```console\n$ echo a\na\nb\n```",
    "output that is not told": "```console\n$ echo a\n```",
    "a failure that is not told": "```console\n$ false\n$ true\n```",
    "a failure at the end": "```console\n$ false\n```",
    "another exit code": "```console\n$ false\n$ echo $?\n0\n```",
    "another word": "```console\n$ echo a b\n<one> <one>\n```",
    "another word later": "```console\n$ echo a\n<one>\n$ echo b\n<one>\n```",
    "code fails": "```python\n1 / 0\n```",
    "code prints something else": "```python\n>>> 1\n2\n```",
    "code prints more": "```python\n>>> 1\n```",
    "code fails at the prompt": "```python\n>>> 1 / 0\n```",
}
RIGHT = """
<!-- given
mkdir photos
# an end of its own
cd photos
-->
```sh
echo one >a      # with a comment
variable=kept
```
```console
$ echo $variable; pwd
kept
…/photos
$ ls nowhere
ls: cannot access …
$ echo $?
2
$ cat <<X
> two words
> X
<first> <second>
$ echo <second>
<second>
$ seq 9
1
…
9
$ pfs put a
a: stored as 1, …
```
```python
import os
content = open("a").read()
```
```python
>>> content
'one\\n'
>>> import asyncio
>>> await asyncio.sleep(0, content[0])
'o'
>>> 1 / 0
Traceback (most recent call last):
  …
ZeroDivisionError: division by zero
```
```transcript
$ nc 127.0.0.1 7373
> ping
< OK ping
```
"""


def test_what_is_so_passes(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(RIGHT)
    with Page(path, tmp_path / "home") as page:
        page.run()


def test_what_is_not_so_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("\n".join(WRONG.values()))
    wrong = list(blocks(path))
    assert len(wrong) == len(WRONG)
    with Page(path, tmp_path / "home") as page:
        for block in wrong:
            with pytest.raises(AssertionError):
                page.play(block)
