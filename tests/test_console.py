"""The client's commands for many files: patterns, directories, what is left out, and how few requests they take."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from pfsd import bulk, progress, protocol, syntax
from pfsd.client import Client, UnderWay
from pfsd.console.look import folders_of
from pfsd.console.output import Output
from pfsd.console.run import COMMANDS, cut_short
from pfsd.console.run import run as run_command
from pfsd.errors import UsageError
from tests.fake_daemon import Reader, Writer, fake_daemon, request
from tests.harness import Daemon
from tests.programs import Run, objects


@pytest.fixture
def stored(run: Run) -> Callable[[], list[str]]:
    """Some files in the store; gives the names of those that are there now."""
    for name in ("d/a.jpg", "d/e/b.jpg", "d/c.raw", "x[1].jpg", "x1.jpg", "7"):
        Path("source").write_text(name)
        assert run("put", "source", "--name", name, "--quiet")[0] == 0
    os.unlink("source")
    return lambda: [line.split("\t")[2] for line in run("list")[1].splitlines()]


def below(folder: str) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in Path(folder).rglob("*") if path.is_file()}


def test_every_command_has_something_to_do() -> None:
    assert syntax.add_commands(syntax.Parser(), []).choices.keys() - syntax.ALIASES.keys() == COMMANDS.keys()


# --- patterns -----------------------------------------------------------------------------------


def test_a_pattern_is_retrieved_to_a_directory(run: Run, stored: object) -> None:
    assert run("get", "d/*.jpg", "to") == (0, "2 files, 16 B written to to\n", "")
    assert below("to") == {"a.jpg": "d/a.jpg", "e/b.jpg": "d/e/b.jpg"}
    assert run("get", "*.raw", ".")[0] == 0 and Path("d/c.raw").exists()
    assert run("get", "*.none")[0] == 4
    assert run("get", "d/*", "-")[0] == run("get", "d/*", "x", "--offset", "1")[0] == 2


def test_a_file_that_is_called_like_a_pattern_goes_before(run: Run, stored: Callable[[], list[str]]) -> None:
    Path("source").write_text("literal")
    run("put", "source", "--name", "d/*")
    assert run("get", "d/*", "one")[0] == 0 and Path("one").read_text() == "literal"
    assert run("delete", "d/*")[0] == 0
    assert "d/a.jpg" in stored() and "d/*" not in stored()
    assert run("delete", "d/*", "--by-name")[0] == 4
    assert "d/a.jpg" in stored()


def test_brackets_alone_are_no_pattern(run: Run, stored: Callable[[], list[str]]) -> None:
    """Who deletes a name twice must not lose another file."""
    assert run("rm", "x[1].jpg")[0] == 0
    assert run("rm", "x[1].jpg")[0] == 4
    assert "x1.jpg" in stored()
    assert run("get", "x[1]*", "to")[1] == "1 file, 6 B written to to\n"


def test_delete_of_patterns_and_names_together(run: Run, stored: Callable[[], list[str]]) -> None:
    assert run("delete", "nothing", "d/*")[0] == 4
    assert len(stored()) == 6, "one is unknown, so none is deleted"
    assert run("delete", "none*")[0] == 4
    code, out, _ = run("delete", "d/*.jpg", "d/a*", "x1.jpg", "--json")
    *rows, total = objects(out)
    assert code == 0 and sorted(row["name"] for row in rows) == ["d/a.jpg", "d/e/b.jpg", "x1.jpg"]
    assert (total["type"], total["files"]) == ("delete", 3)


def test_stat_cat_and_verify_of_patterns(run: Run, stored: object) -> None:
    names = [each["name"] for each in objects(run("stat", "d/*", "x1.jpg", "--json")[1])]
    assert names == ["x1.jpg", "d/a.jpg", "d/e/b.jpg", "d/c.raw"]
    code, out, _ = run("stat", "d/*.jpg")
    assert code == 0 and out.count("name     d/") == 2 and out.count("\n\n") == 1
    assert run("cat", "x1.jpg", "d/*")[:2] == (0, "x1.jpgd/a.jpgd/c.rawd/e/b.jpg")
    assert run("cat", "none")[0] == 4
    assert run("verify", "d/*.jpg", "x1.jpg")[1].startswith("3 files, 3 parts, 22 B checked")


def test_what_a_list_shows_of_a_directory(run: Run, stored: object) -> None:
    assert [line.split("\t")[2] for line in run("ls", "d/")[1].splitlines()] == ["d/a.jpg", "d/e/b.jpg", "d/c.raw"]
    assert run("ls", "-l", "7")[1].split("\t")[4] == "ready"
    assert run("mv", "x1.jpg", "y")[0] == 0


# --- few requests -------------------------------------------------------------------------------


async def delete_pattern(home: Path, count: int, *words: str, missing: int | None = None) -> tuple[list[bytes], int]:
    """The requests that it takes to delete files by a pattern, and the exit code; `missing` is gone by then."""
    requests: list[bytes] = []

    async def script(reader: Reader, writer: Writer) -> None:
        while not reader.at_eof():
            tag, line = await request(reader)
            requests.append(line)
            verb, *ids = line.split()
            if verb == b"list":
                row = tag + b" FILE id=%d status=ready size=1 stored=1 parts=1 created=1 name=n%d\n"
                writer.write(b"".join(row % (100_000 + each, each) for each in range(count)))
                writer.write(tag + b" OK list files=1 size=1 stored=1\n")
            elif verb == b"stat":
                writer.write(tag + b' ERR not-found name=n message="no"\n')
            elif missing is not None and b"%d" % missing in ids:
                writer.write(tag + b' ERR not-found id=%d message="no"\n' % missing)
            else:
                writer.write(tag + b" OK delete files=%d parts=1 freed=1\n" % len(ids))

    async with fake_daemon(home, script) as where, await Client.connect(where) as client:
        arguments = syntax.client_parser().parse_args(["delete", "n*", *words])
        return requests, await run_command(client, arguments, Output(quiet=True), progress.unwatched)


async def test_ten_thousand_files_are_deleted_in_few_requests(tmp_path: Path) -> None:
    requests, code = await delete_pattern(tmp_path, 10_000)
    assert code == 0
    assert [line.split()[0] for line in requests] == [b"stat", b"list", b"delete", b"delete"]
    assert sum(len(line.split()) - 1 for line in requests[2:]) == 10_000
    assert max(map(len, requests)) < protocol.MAX_LINE


async def test_nothing_is_deleted_if_one_of_too_many_for_a_line_is_unknown(tmp_path: Path) -> None:
    requests, code = await delete_pattern(tmp_path, 10_000, "unknown")
    assert code == 4 and [line.split()[0] for line in requests] == [b"stat", b"list", b"stat"]


async def test_a_file_that_vanishes_does_not_keep_the_others(tmp_path: Path) -> None:
    requests, code = await delete_pattern(tmp_path, 3, missing=100_001)
    assert code == 0 and requests[-1] == b"delete 100000 100002"


COUNT = 1000


async def test_a_directory_is_stored_in_one_stream(tmp_path: Path, here: Path) -> None:
    """Nothing is answered before as many requests are there as may be: who waited for one would wait for ever."""
    for number in range(COUNT):
        (here / f"{number}").touch()
    seen = answered = 0

    async def script(reader: Reader, writer: Writer) -> None:
        nonlocal seen, answered
        tags: list[bytes] = []
        while answered < COUNT and not reader.at_eof():
            tag, line = await request(reader)
            if not line.startswith(b"put "):
                return
            seen += 1
            tags.append(tag)
            if len(tags) == bulk.WINDOW or seen == COUNT:
                cut = bulk.WINDOW - bulk.REFILL if seen < COUNT else len(tags)
                for tag in tags[:cut]:
                    writer.write(tag + b" OK put id=1 size=0 stored=0 parts=0 etag=e-0 name=n\n")
                answered += cut
                tags = tags[cut:]
        await reader.read()

    async with fake_daemon(tmp_path, script) as where, await Client.connect(where) as client:
        arguments = syntax.client_parser().parse_args(["put", "-r", str(here)])
        assert await run_command(client, arguments, Output(quiet=True), progress.unwatched) == 0
    assert (seen, answered) == (COUNT, COUNT)


async def test_a_directory_is_retrieved_in_one_stream(tmp_path: Path, here: Path) -> None:
    connections = 0
    verbs: list[bytes] = []

    async def script(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        tags: list[bytes] = []
        while not reader.at_eof():
            try:
                tag, line = await request(reader)
            except asyncio.IncompleteReadError:
                return
            verbs.append(line.split()[0])
            if verbs[-1] == b"list":
                row = tag + b" FILE id=%d status=ready size=0 stored=0 parts=0 created=1 name=d/%d\n"
                writer.write(b"".join(row % (each + 1, each) for each in range(COUNT)))
                writer.write(tag + b" OK list files=1 size=0 stored=0\n")
                continue
            tags.append(tag)
            if len(tags) == bulk.WINDOW or len(verbs) == COUNT + 1:
                cut = bulk.WINDOW - bulk.REFILL if len(verbs) < COUNT + 1 else len(tags)
                for tag in tags[:cut]:
                    writer.write(tag + b" OK get id=1 size=0 bytes=0 etag=e-0 name=n\n")
                tags = tags[cut:]

    async with fake_daemon(tmp_path, script) as where, await Client.connect(where) as client:
        arguments = syntax.client_parser().parse_args(["get", "-r", "d", "to"])
        assert await run_command(client, arguments, Output(quiet=True), progress.unwatched) == 0
    assert len(os.listdir("to")) == COUNT and connections == 2
    assert verbs == [b"list"] + [b"get"] * COUNT


# --- directories --------------------------------------------------------------------------------


@pytest.fixture
def tree(here: Path) -> Path:
    """A directory `t` of a few small files and a big one."""
    for name in ("a.c", "a.o", "b/c.o", "b/d.c", "tmp/x", "big"):
        path = Path("t", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name if name != "big" else "0123456789abcdef" * (5 << 16))
    return here


def test_what_is_left_out(run: Run, tree: Path) -> None:
    Path("patterns").write_text("# objects\n*.o\n")
    words = ("t", "--exclude-from", "patterns", "--exclude", "tmp/", "--exclude", "/big", "--exclude", "!b/c.o")
    assert run("put", "-r", *words)[1] == "3 files, 13 B stored, 13 B kept, 3 excluded\n"
    assert sorted(objects(run("stat", "t/*", "--json")[1])[at]["name"] for at in range(3)) == [
        "t/a.c",
        "t/b/c.o",
        "t/b/d.c",
    ]
    assert run("get", "-r", "t", "to", "--exclude", "b/")[1] == "1 file, 3 B written to to, 2 excluded\n"
    assert below("to") == {"a.c": "a.c"}
    assert run("put", "t/a.c", "--exclude", "x")[0] == run("get", "t/a.c", "--exclude", "x")[0] == 2
    assert run("put", "-r", "t", "--exclude-from", "none")[0] == 2


def test_dry_runs_change_nothing(run: Run, tree: Path, shared_daemon: Daemon) -> None:
    code, out, err = run("put", "-n", "-r", "t", "--exclude", "big")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "would put t/a.c as t/a.c (3 B)"
    assert out.splitlines()[-1] == "5 files, 21 B would be stored, 1 excluded"
    assert run("list")[1] == ""
    run("put", "-r", "t")
    code, out, _ = run("get", "-n", "-r", "t", "to", "--json")
    assert {each["target"] for each in objects(out)[:-1]} >= {"to/a.c", "to/b/c.o"}
    assert objects(out)[-1]["dry_run"] is True and not Path("to").exists()
    assert run("get", "t/a.c", "x", "-n")[1] == "would get t/a.c to x (3 B)\n" and not Path("x").exists()
    assert run("rm", "-n", "t/*.c")[1].splitlines()[-1] == "2 files, 8 B would be deleted"
    assert run("rm", "-n", "none")[0] == 4
    assert run("list")[1].count("\n") == 6


def test_a_directory_is_resumed(run: Run, tree: Path) -> None:
    run("put", "-r", "t", "--exclude", "b")
    Path("t/a.o").write_text("a.x")  # of the same size
    code, out, err = run("put", "-r", "t", "--resume")
    assert code == 3 and err.startswith("pfs: exists: t/a.o: ")
    assert out.startswith("2 files, ") and out.endswith(", 1 failed, 3 there already\n")
    assert run("put", "-r", "t", "--resume", "--replace")[1].startswith("1 file, 3 B stored, ")
    Path("to/b").mkdir(parents=True)
    Path("to/a.c").write_text("a.c")
    Path("to/a.o").write_text("mine")
    code, out, err = run("get", "-r", "t", "to", "--resume")
    assert code == 3 and "pfs: exists: to/a.o" in err
    assert out.endswith(" written to to, 1 failed, 1 there already\n")
    assert run("get", "-r", "t", "to", "--resume", "--replace")[1].startswith("1 file, 3 B written")
    assert below("to") == below("t")


def test_a_big_file_of_a_directory_is_resumed_below_the_target_only(run: Run, tree: Path, tmp_path: Path) -> None:
    run("put", "t/big", "--name", "d/e/big")
    run("put", "t/big", "--name", "d/../big")
    outside = tmp_path / "outside"
    outside.mkdir()
    Path("to").mkdir()
    Path("to/e").symlink_to(outside)
    code, _, err = run("get", "-r", "d", "to", "--resume")
    assert code == 1
    assert err.count("pfs: denied: ") == 2 and os.listdir(outside) == []
    Path("to/e").unlink()
    assert "1 file, 5.0 MiB written to to, 1 failed" in run("get", "-r", "d", "to", "--resume")[1]
    assert Path("to/e/big").read_bytes() == Path("t/big").read_bytes()


# --- du -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "prefix", "depth", "expected"),
    [
        (b"a/b/c", b"", 1, [b"a/"]),
        (b"a/b/c", b"", 9, [b"a/", b"a/b/"]),
        (b"a/b/c", b"a/", 1, [b"a/b/"]),
        (b"a/b/c", b"a/b/", 1, []),
        (b"a", b"", 1, []),
        (b"a/b/c", b"", 0, []),
    ],
)
def test_the_prefixes_of_a_name(name: bytes, prefix: bytes, depth: int, expected: list[bytes]) -> None:
    assert folders_of(name, prefix, depth) == expected


def test_usage(run: Run, stored: object) -> None:
    assert run("du") == (0, "21\t21\t3\td/\n36\t36\t6\t(all)\n", "") or run("du")[1].endswith("\t6\t(all)\n")
    *rows, total = objects(run("du", "--depth", "5", "--json")[1])
    assert [(row["type"], row["name"], row["files"]) for row in rows] == [("prefix", "d/", 3), ("prefix", "d/e/", 1)]
    assert (total["type"], total["files"]) == ("du", 6)
    assert objects(run("du", "d", "--json")[1])[-1]["size"] == 23
    assert objects(run("du", "d/*.raw", "--json")[1])[-1]["files"] == 1
    assert run("du", "--depth", "x")[0] == 2


# --- ps -----------------------------------------------------------------------------------------


def answer_to_ps(*rows: bytes) -> Callable[[Reader, Writer], asyncio.Future[None]]:
    async def script(reader: Reader, writer: Writer) -> None:
        tag, line = await request(reader)
        assert line == b"ps"
        writer.write(b"".join(tag + b" " + row + b"\n" for row in rows))
        if rows[-1].startswith(b"ERR"):
            tag, line = await request(reader)
            limits = b"max_line=1 max_frame=1 auth=none state=ready"
            writer.write(tag + b" OK hello proto=1 version=0.0.9 " + limits + b"\n")
        await reader.read()

    return script  # type: ignore[return-value]


RUNNING = (
    b'COMMAND id=3 verb=put client=127.0.0.1:4711 seconds=1.5 bytes=1048576 total=2097152 name="a b"',
    b"COMMAND id=4 verb=verify client=unix seconds=0.1",
    b"WORKER slot=0 pid=77 state=busy task=store",
    b"WORKER slot=1 pid=78 state=idle",
    b"OK ps commands=2 workers=2",
)


async def ps(home: Path, *rows: bytes, as_json: bool) -> int:
    async with fake_daemon(home, answer_to_ps(*rows)) as where, await Client.connect(where) as client:
        arguments = syntax.client_parser().parse_args(["ps"])
        return await run_command(client, arguments, Output(as_json=as_json), progress.unwatched)


async def test_what_the_daemon_is_running(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await ps(tmp_path, *RUNNING, as_json=False) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == [
        ["ID", "COMMAND", "CLIENT", "SECONDS", "DONE", "OF", "NAME"],
        ["3", "put", "127.0.0.1:4711", "1.5", "1.0", "MiB", "2.0", "MiB", "a", "b"],
        ["4", "verify", "unix", "0.1", "-", "-", "-"],
    ]
    assert lines[3:] == [["SLOT", "PID", "STATE", "TASK"], ["0", "77", "busy", "store"], ["1", "78", "idle", "-"]]
    assert await ps(tmp_path, b"WORKER slot=0 pid=1 state=idle", b"OK ps commands=0 workers=1", as_json=False) == 0
    assert capsys.readouterr().out.endswith("no command is running\n")


async def test_what_the_daemon_is_running_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await ps(tmp_path, *RUNNING, as_json=True) == 0
    first, second, worker, _, total = objects(capsys.readouterr().out)
    assert first == {
        "type": "command", "id": 3, "verb": "put", "client": "127.0.0.1:4711", "seconds": 1.5, "bytes": 1048576,
        "total": 2097152, "name": "a b",
    }  # fmt: skip
    assert "bytes" not in second and (worker["type"], worker["task"]) == ("worker", "store")
    assert total == {"type": "ps", "commands": 2, "workers": 2}


async def test_a_daemon_that_knows_no_ps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert await ps(tmp_path, b'ERR unknown-command message="no"', as_json=False) == 2
    told = capsys.readouterr().err
    assert told == "pfs: unknown-command: this daemon is pfsd 0.0.9, which cannot tell yet what it is running\n"


# --- progress -----------------------------------------------------------------------------------


def test_status_objects_on_request(run: Run, tree: Path) -> None:
    code, out, err = run("put", "-r", "t", "--json", "--progress")
    assert (code, err) == (0, "")
    told = [each for each in objects(out) if each["type"] == "status"]
    size = sum(path.stat().st_size for path in Path("t").rglob("*") if path.is_file())
    assert told[-1]["bytes"] == size and told[-1]["what"] == "6 files" and "seconds" in told[-1]
    assert [each["type"] for each in objects(run("get", "t/a.c", "x", "--json", "--progress")[1])][-1] == "status"
    assert run("put", "t/a.c", "--replace", "--progress")[0] == 2


def test_a_bar_for_the_whole_and_one_for_each_big_file() -> None:
    console = pytest.importorskip("rich.console")
    with open(os.devnull, "w") as nowhere:
        bars = progress.make_bars(console.Console(file=nowhere, force_terminal=True))
        shown = lambda: [task.description for task in bars._display.tasks]  # noqa: E731
        with bars, bars("3 files") as bar:
            bar(5 << 20, 9 << 20)
            bar.under_way([UnderWay("a\n", progress.BIG, None), UnderWay("small", 1, 2)])
            assert shown() == ["3 files", r"a\n"]
            bar.under_way([UnderWay(f"{number}", progress.BIG, None) for number in range(9)])
            assert shown() == ["3 files", "0", "1", "2", "3"]
            bar.under_way([])
            assert shown() == ["3 files"]
        assert shown() == []


@pytest.mark.parametrize("resume", [False, True])
async def test_the_big_file_that_is_under_way_is_told(
    shared_daemon: Daemon, tree: Path, monkeypatch: pytest.MonkeyPatch, resume: bool
) -> None:
    monkeypatch.setattr(bulk, "STEP_SECONDS", 0)
    sent: list[UnderWay] = []
    received: list[UnderWay] = []
    async with await Client.connect(f"127.0.0.1:{shared_daemon.port}") as client:
        async for _ in client.put_many([("t/big", "big")], replace=True, resume=resume, under_way=sent.extend):
            pass
        async for _ in client.get_many([("big", "big")], "t", replace=True, under_way=received.extend):
            pass
    size = 5 << 20
    assert sent and {(each.path, each.total) for each in sent} == {("t/big", size)}
    assert received and {(each.path, each.total) for each in received} == {("t/big", None)}
    assert all(0 < each.done <= size for each in sent + received)


# --- cut short ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["put", "a"], "stored whole or not at all"),
        (["put", "a", "--resume"], "put --resume goes on"),
        (["get", "a"], "no target is incomplete"),
        (["get", "a", "--resume"], "get --resume goes on"),
        (["rm", "a"], "deleted or is not"),
        (["mv", "a", "b"], "done or is not"),
        (["ls"], "^interrupted$"),
        ([], "^interrupted$"),
    ],
)
def test_what_is_told_to_who_interrupts(words: list[str], told: str) -> None:
    assert re.search(told, str(cut_short(syntax.client_parser().parse_args(words), "interrupted")))


# --- words --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("word", "meant"), [("lst", "list"), ("delte", "delete"), ("gte", "get"), ("verfy", "verify")])
def test_a_misspelt_command(word: str, meant: str) -> None:
    with pytest.raises(UsageError, match=f"there is no command {word}; did you mean {meant}"):
        syntax.client_parser().parse_args([word])
    with pytest.raises(UsageError, match="there is no command qqq; --help lists them"):
        syntax.client_parser().parse_args(["qqq"])


def test_errors_are_json_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for words, code, word in (
        (["lst"], 2, "usage"),
        (["put", "a", "--frob"], 2, "usage"),
        (["--token-file", "/none", "ping"], 2, "usage"),
        (["--server", "unix:/none", "ping"], 5, "cannot-connect"),
        (["stat", "none"], 4, "not-found"),
    ):
        got, out, err = run("--json", *words)
        (error,) = objects(out)
        assert (got, err, error["type"], error["code"]) == (code, "", "error", word) and error["message"]


def test_who_is_told_that_a_target_is_there_is_told_what_to_say(run: Run) -> None:
    Path("a").write_text("a")
    run("put", "a")
    assert "say --replace" in run("get", "a")[2]


def test_a_token_file_in_the_environment(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PFSD_TOKEN_FILE", "/none")
    code, _, err = run("ping")
    assert code == 2 and "/none" in err
    monkeypatch.setenv("PFSD_TOKEN_FILE", "null")
    assert run("ping")[0] == 0
