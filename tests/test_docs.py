"""The documents say what is so: transcripts are replayed, tables and links are held against the code.

A transcript is a fenced block marked `transcript`; docs/protocol.md explains how it is written. A word after
that names a daemon of another kind. All blocks of one section share a store, each block is a connection. Documents
that show commands as well are pages: tests/test_pages.py.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path

import pytest
import yaml

from pfsd import cli, config, protocol, session
from pfsd.daemon import EXIT_STOP_TIMED_OUT
from pfsd.errors import BY_CODE, FatalError
from pfsd.verbs import VERBS
from tests.documents import DOCUMENTS, ROOT, Block, blocks, prose, sections, table, transcripts
from tests.harness import PATIENCE_SECONDS, Daemon
from tests.pages import is_page
from tests.replay import Replay
from tests.test_architecture import modules, project_imports

PROTOCOL = ROOT / "docs" / "protocol.md"
PART_SIZE = 4096
#: The kinds of daemon that transcripts talk to.
KINDS: dict[str, dict[str, object]] = {"": {}, "token": {"token": "correct-horse"}, "exit": {}}


# --- replaying ----------------------------------------------------------------------------------


def empty(daemon: Daemon, prelude: bytes) -> None:
    """Delete everything in the store, and wait until nothing is left of it."""
    with daemon.connect() as wire:
        if prelude:
            wire.ask(prelude)
        until = time.monotonic() + PATIENCE_SECONDS
        while rows := wire.ask(b"list\n")[:-1]:
            assert time.monotonic() < until, rows
            for row in rows:
                if b" status=ready " in row or b" status=damaged " in row:
                    assert wire.last(b"delete %b\n" % row.split(b" ")[1][3:]).startswith(b"OK delete ")
        while b"STAT processes_busy=0" not in wire.ask(b"stats\n"):  # packs are unlinked after the answer
            assert time.monotonic() < until


Start = Callable[[str, str], Daemon]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Gives the daemon of a document and a kind, started when it is first needed."""
    daemons: dict[str, Daemon] = {}

    def get(document: str, kind: str) -> Daemon:
        key = f"{document} {kind}"
        if key not in daemons:
            home = tmp_path_factory.mktemp("docs")
            daemon = daemons[key] = Daemon(home, part_size=PART_SIZE, memory="32MiB", **KINDS[kind])
            (daemon.root / "notes.txt").write_bytes(b"hello, world\n")
            daemon.start()
        return daemons[key]

    yield get
    for daemon in daemons.values():
        if daemon.process is not None:
            daemon.stop()


SECTIONS = [
    (f"{path.name}: {section}", list(group))
    for path in DOCUMENTS
    if not is_page(path)
    for section, group in groupby(transcripts(path), key=lambda block: block.section)
]


@pytest.mark.parametrize("section", [group for _, group in SECTIONS], ids=[name for name, _ in SECTIONS])
def test_transcripts_are_true(section: list[Block], start: Start) -> None:
    for mark, group in groupby(section, key=lambda block: block.mark):
        kind = mark.removeprefix("transcript").strip()
        daemon = start(section[0].path.name, kind)
        empty(daemon, b"auth correct-horse\n" if kind == "token" else b"")
        replay = Replay(daemon.connect, daemon.packs, {})
        for block in group:
            replay.play(block)
        if kind == "exit":
            daemon.wait(0)


def test_a_wrong_transcript_is_noticed(start: Start) -> None:
    daemon = start(PROTOCOL.name, "")
    replay = Replay(daemon.connect, daemon.packs, {})
    for lines in (
        ["> ping", "< OK pong"],
        ["> ping", "< OK ping …"],
        ["> ping"],
        ["> ping", "<< OK"],
        ["> ping", "< OK ping␍"],
        ["> ping", "> (end)", "< OK ping", "< OK ping"],
        ["> hello", "< OK hello proto=1 version=<same> max_line=<same> max_frame=… auth=none state=…"],
        ["> help list", "< OK help"],
        ["? ping"],
    ):
        with pytest.raises(AssertionError):
            replay.play(Block(PROTOCOL, 1, "", "transcript", lines))


@pytest.mark.parametrize("name", ["README.md", "docs/protocol.md"])
def test_there_are_transcripts(name: str) -> None:
    assert transcripts(ROOT / name)


# --- docs/protocol.md is complete ---------------------------------------------------------------


def exchanged(arrow: str) -> list[str]:
    """All lines that docs/protocol.md shows in one direction, without their tags."""
    lines = [line for block in transcripts(PROTOCOL) for line in block.lines]
    return [re.sub(r"^@\S+ ", "", line[2:]) for line in lines if line.startswith(f"{arrow} ")]


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_each_command_has_its_section(verb: str) -> None:
    text = sections(PROTOCOL)[verb]
    assert f"`{verb}" in text
    for option in VERBS[verb].options:
        assert f"`{option}=" in text or f"[{option}=" in text, f"{option}= is not explained"
    shown = [line for block in transcripts(PROTOCOL) if block.section == verb for line in block.lines]
    assert any(re.match(rf"> (@\S+ )?{verb}( |$)", line) for line in shown), "there is no transcript"


def test_the_error_words_are_all_there() -> None:
    rows = table(sections(PROTOCOL)["Errors"])[2:]
    assert {row[0].strip("`") for row in rows} == set(BY_CODE)
    assert all(all(row) for row in rows)


def test_every_row_is_shown_in_a_transcript() -> None:
    found = re.search(r"The rows are (.+?)\.", sections(PROTOCOL)["Replies"], re.DOTALL)
    assert found
    listed = re.findall(r"`([A-Z]+)`", found[1])
    assert len(listed) == 11
    shown = {line.split(" ")[0] for line in exchanged("<")}
    assert set(listed) <= shown


def test_limits_are_those_of_the_code() -> None:
    limits = {row[0]: row[1] for row in table(sections(PROTOCOL)["Limits"])[2:]}
    assert int(limits["bytes in a line, without its ending"]) == protocol.MAX_LINE
    assert int(limits["bytes without any LF"]) == protocol.MAX_UNTERMINATED
    assert int(limits["bytes in a `DATA` frame"]) == protocol.MAX_FRAME
    assert int(limits["bytes in a name"]) == protocol.MAX_NAME
    assert int(limits["requests of one connection that run or wait"]) == session.MAX_REQUESTS
    assert int(limits["uploads in frames open on one connection"]) == session.MAX_OPEN_UPLOADS
    defaults = config.load(ROOT / "config.yaml", {})
    for cell in limits.values():
        if found := re.fullmatch(r"`(\w+)`, (\d+)( s)?", cell):
            assert getattr(defaults, found[1]) == int(found[2]), cell


def test_exit_codes_are_those_of_the_code() -> None:
    rows = table(sections(PROTOCOL)["Starting a daemon"])[2:]
    of_errors = {kind.exit_code for kind in FatalError.__subclasses__()}
    assert {int(row[0]) for row in rows} == {0, cli.EX_USAGE, EXIT_STOP_TIMED_OUT} | of_errors


# --- the other documents ------------------------------------------------------------------------


def test_config_yaml_has_every_key_with_its_default(tmp_path: Path) -> None:
    text = (ROOT / "config.yaml").read_text("utf-8")
    assert set(yaml.safe_load(text)) == set(config.KEYS)
    beside, empty_file = tmp_path / "full.yaml", tmp_path / "empty.yaml"
    beside.write_text(text)
    empty_file.write_text("")
    assert config.load(beside, {}) == config.load(empty_file, {})


def test_every_key_is_in_the_table_of_reloads() -> None:
    rows = table(sections(ROOT / "docs" / "operations.md")["Changing settings"])[2:]
    told = {key: does for row in rows for key, does in [(key, row[1]) for key in re.findall(r"`(\w+)`", row[0])]}
    assert told.keys() == set(config.KEYS)
    assert {key for key, does in told.items() if does != "needs a restart"} == config.LIVE_KEYS


def test_the_configuration_of_the_service_is_one(tmp_path: Path) -> None:
    (block,) = [block for block in blocks(ROOT / "docs" / "operations.md") if block.mark == "yaml"]
    (tmp_path / "files").mkdir()
    path = tmp_path / "config.yaml"
    path.write_text("\n".join(block.lines).replace("/var/lib/pfsd", str(tmp_path)))
    settings = config.load(path, {})
    service = (ROOT / "contrib" / "systemd" / "pfsd.service").read_text()
    for name, setting in (("store", settings.path), ("files", settings.roots[0])):
        assert setting == tmp_path / name and f"pfsd/{name}" in service
    sockets = re.findall(r"^ListenStream=(.+)$", (ROOT / "contrib" / "systemd" / "pfsd.socket").read_text(), re.M)
    assert [str(each.address).removeprefix("unix:") for each in settings.listen] == sockets


def modules_in_design() -> list[str]:
    """The modules in the table of docs/design.md, from top to bottom."""
    rows = table(sections(ROOT / "docs" / "design.md")["What each file holds"])[2:]
    return [row[0].strip("`").removesuffix(".py").removesuffix("/__init__").replace("/", ".") for row in rows]


def test_design_names_every_module() -> None:
    assert sorted(modules_in_design()) == sorted(modules())


def test_imports_go_down_in_the_table_of_design() -> None:
    order = modules_in_design()
    for at, name in enumerate(order):
        upward = project_imports(modules()[name], at_import_time=True) & set(order[:at])
        assert not upward, f"{name} stands below {upward}"


def slug(heading: str) -> str:
    """The anchor of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{path.name} links to {link}"
        assert target.is_relative_to(ROOT), f"{path.name} links to {link}"
        if anchor:
            assert anchor in map(slug, sections(target)), f"{path.name} links to {link}"
