"""Imports go one way: a layer may use the ones below it, never its siblings or those above."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: From the bottom up; modules of one layer do not import each other.
LAYERS = [
    {"errors"},
    {"lanes"},
    {"codecs", "coding", "protocol", "disk", "hashing", "fair", "aio", "kinds", "tables", "stretches"}
    | {"certificates", "systemd", "excludes"},
    {"syntax"},
    {"completions"},
    {"packs", "records", "verbs", "paths", "spare", "mark", "logs"},
    {"config"},
    {"effective"},
    {"stores", "registry", "journal", "advise"},
    {"stores.local", "stores.memory"},
    {"work"},
    {"rescue"},
    {"rescue.salvage"},
    {"rescue.survey", "rescue.directory"},
    {"rescue.reconcile"},
    {"rescue.report", "rescue.rewrite"},
    {"rescue.check"},
    {"rescue.rebuild", "rescue.repair"},
    {"histogram"},
    {"workers", "budget", "committer", "gather", "measure"},
    {"commands"},
    {"commands.shared"},
    {"commands.engine"},
    {"commands.resume"},
    {"commands.put", "commands.get", "commands.files"},
    {"commands.verify", "commands.reclaim"},
    {"commands.scrub"},
    {"connection", "listening", "tls", "guesses", "activity"},
    {"audit"},
    {"calls"},
    {"facts"},
    {"web", "web.http", "web.history"},
    {"web.status"},
    {"web.metrics"},
    {"web.site"},
    {"web.server"},
    {"handlers"},
    {"session"},
    {"daemon"},
    {"exchange", "transfer", "tree", "background", "readahead", "producer"},
    {"results", "link", "watchdog"},
    {"bulk", "fileobjects"},
    {"client"},
    {"pool"},
    {"asyncstore"},
    {"blocking"},
    {"fs.folders", "fs.errors"},
    {"fs.files"},
    {"fs"},
    {"progress"},
    {"console"},
    {"console.output", "console.totals", "console.same"},
    {"console.tally", "console.files"},
    {"console.put", "console.get", "console.look", "console.change"},
    {"console.run"},
    {"shell", "spawn", "top"},
    {"top.model"},
    {"top.view", "top.watch"},
    {"top.app"},
    {"top.run"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
#: These stay usable from a worker process, a tool or a test without an event loop.
NO_ASYNCIO = {
    "errors", "codecs", "protocol", "disk", "hashing", "packs", "records", "verbs", "paths", "stores",
    "stores.local", "stores.memory", "registry", "journal", "work", "fair", "config", "kinds", "coding", "advise",
    "measure", "tables", "stretches", "spare", "mark", "certificates", "logs", "systemd", "rescue.salvage",
    "rescue.survey", "rescue.directory", "rescue.reconcile", "rescue.report", "rescue.rewrite", "rescue.check",
    "rescue.rebuild", "rescue.repair", "syntax", "completions", "effective", "excludes", "readahead",
}  # fmt: skip
#: The two ends of the wire share the protocol and the errors, nothing else.
CLIENT_MAY_IMPORT = {
    "protocol",
    "errors",
    "verbs",
    "config",
    "aio",
    "client",
    "progress",
    "shell",
    "exchange",
    "transfer",
    "console",
    "console.output",
    "console.run",
    "syntax",
    "results",
    "bulk",
    "link",
    "certificates",
    "tree",
    "watchdog",
    "background",
    "readahead",
    "fileobjects",
    "pool",
    "asyncstore",
    "blocking",
}


def modules() -> dict[str, Path]:
    found = {}
    for path in (ROOT / "pfsd").rglob("*.py"):
        parts = path.relative_to(ROOT / "pfsd").with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:
            found[name] = path
    return found


def imports(path: Path, *, at_import_time: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if at_import_time else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def project_imports(path: Path, **how: bool) -> set[str]:
    found = {name.removeprefix("pfsd.") for name in imports(path, **how) if name.startswith("pfsd.")}
    return found & modules().keys()


def test_every_module_has_a_layer() -> None:
    assert modules().keys() == LEVEL.keys()


@pytest.mark.parametrize("name", sorted(modules()))
def test_imports_go_down(name: str) -> None:
    wrong = {used for used in project_imports(modules()[name], at_import_time=True) if LEVEL[used] >= LEVEL[name]}
    assert not wrong, f"{name} imports {wrong} from its own layer or above"


@pytest.mark.parametrize("name", sorted(NO_ASYNCIO))
def test_the_core_knows_no_asyncio(name: str) -> None:
    assert not {used for used in imports(modules()[name]) if used.split(".")[0] in ("asyncio", "uvloop")}


@pytest.mark.parametrize("name", ["client", "progress", "shell", "blocking", "asyncstore", "fileobjects", "pool"])
def test_the_client_side_knows_only_the_wire(name: str) -> None:
    assert project_imports(modules()[name]) <= CLIENT_MAY_IMPORT


#: What these may take of `os`: nothing that touches the file system, which goes through `disk` to be made to fail.
HARMLESS = {"fspath", "strerror", "PathLike", "path", "isabs", "join", "dirname", "basename", "fsencode", "fsdecode"}


#: All that touches store and journal does it there.
ON_DISK = [
    "journal", "stores.local", "committer", "registry", "rescue.survey", "rescue.directory", "rescue.rewrite",
    "rescue.check", "rescue.rebuild", "rescue.repair", "rescue.report", "rescue.salvage", "rescue.reconcile",
]  # fmt: skip


@pytest.mark.parametrize("name", ON_DISK)
def test_store_and_journal_touch_the_disk_in_one_place(name: str) -> None:
    tree = ast.parse(modules()[name].read_text())
    used = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("os", "os.path", "shutil")
    }
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    methods = {call.rpartition(".")[2] for call in called if not call.startswith("disk.")}
    assert used <= HARMLESS
    assert not methods & {"mkdir", "iterdir", "read_bytes", "write_bytes", "read_text", "write_text", "rmdir", "touch"}


def test_what_a_worker_imports_stays_small() -> None:
    closure, todo = set(), {"work"}
    while todo:
        name = todo.pop()
        closure.add(name)
        todo |= project_imports(modules()[name]) - closure
    assert closure <= {
        "work", "packs", "codecs", "hashing", "stores", "stores.local", "stores.memory", "disk", "errors", "lanes",
        "coding",
    }  # fmt: skip
