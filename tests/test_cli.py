"""The two programs as people and scripts see them: output, exit codes, signals, pipes."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pfsd import cli, progress
from tests.fake_daemon import Reader, Writer, fake_daemon, request
from tests.harness import PART, PATIENCE_SECONDS, Daemon, free_port, has_ended, wait_for
from tests.programs import CLIENT, ROOT, Run, environ, objects, start

# --- commands -----------------------------------------------------------------------------------


def test_a_file_goes_there_and_back(run: Run) -> None:
    content = os.urandom(200_000)
    Path("source").write_bytes(content)
    code, out, err = run("put", "source")
    assert (code, err) == (0, "")
    id = out.removeprefix("source: stored as ").partition(",")[0]
    assert out.startswith(f"source: stored as {id}, 195.3 KiB, ")
    assert run("get", "source", "copy") == (0, "source: 195.3 KiB written to copy\n", "")
    assert Path("copy").read_bytes() == content
    assert run("get", id, "range", "--offset", "5", "--length", "3")[0] == 0
    assert Path("range").read_bytes() == content[5:8]


def test_existing_targets_and_names_are_kept_unless_told(run: Run) -> None:
    Path("a").write_text("new")
    assert run("put", "a")[0] == 0
    code, out, err = run("put", "a")
    assert (code, out) == (1, "")
    assert err.startswith("pfs: exists: a: ") and err.count("\n") == 1
    assert "--replace" in err and "replace=yes" not in err
    assert run("put", "a", "--replace")[0] == 0
    Path("target").write_text("old")
    code, _, err = run("get", "a", "target")
    assert code == 1 and err.startswith("pfs: exists: ")
    assert Path("target").read_text() == "old"
    assert run("get", "a", "target", "--replace")[0] == 0
    assert Path("target").read_text() == "new"
    Path("link").symlink_to("target")
    assert run("get", "a", "link", "--replace")[0] == 1
    Path("folder").mkdir()
    assert run("get", "a", "folder", "--replace")[0] == 1
    os.mkfifo("fifo")
    assert run("get", "a", "fifo", "--replace")[0] == 1
    assert sorted(os.listdir()) == ["a", "fifo", "folder", "link", "target"]


def test_several_files_and_what_fails_among_them(run: Run) -> None:
    for name in "abc":
        Path(name).write_text(name)
    assert run("put", "a", "b")[0] == 0
    code, out, err = run("put", "a", "c", "none")
    assert code == 3
    assert out.startswith("c: stored as ") and out.count("\n") == 1
    assert sorted(line.split(":")[1] for line in err.splitlines()) == [" exists", " not-found"]
    assert run("put", "none", "nil")[0] == 4
    assert run("put", "a", "b", "--name", "x")[0] == 2
    assert run("put", "a", ".")[0] == 2


def test_many_files_at_once(run: Run) -> None:
    names = [f"file{number}" for number in range(40)]
    for name in names:
        Path(name).write_text(name)
    code, out, _ = run("put", *names, "--json")
    assert code == 0
    assert sorted(each["name"] for each in objects(out)) == sorted(names)
    assert len({each["id"] for each in objects(out)}) == 40


def test_the_default_target_is_the_last_component_of_the_name(run: Run) -> None:
    Path("a").write_text("a")
    run("put", "a", "--name", "x/y/z")
    assert run("get", "x/y/z")[0] == 0
    assert Path("z").read_text() == "a"
    for name in ("..", "x/..", "x/", "-"):
        run("put", "a", "--name", name)
        code, _, err = run("get", name)
        assert code == 2 and "TARGET" in err
    assert sorted(os.listdir()) == ["a", "z"]


def test_digits_are_an_id_unless_told(run: Run) -> None:
    Path("7").write_text("seven")
    (stored,) = objects(run("put", "7", "--name", "777777", "--json")[1])
    assert run("get", "777777", "x")[0] == 4
    assert run("get", "777777", "x", "--by-name")[0] == 0
    assert run("get", str(stored["id"]), "y")[0] == 0
    assert run("rename", "777777", "888888", "--by-name")[0] == 0
    assert run("delete", "888888")[0] == 4
    assert run("delete", "888888", "--by-name")[0] == 0


def test_list_stat_rename_delete_verify_stats_ping(run: Run) -> None:
    Path("a").write_text("hello")
    (stored,) = objects(run("put", "a", "--json")[1])
    id = str(stored["id"])
    assert run("list") == (0, f"{id}\t5\ta\n", "")
    assert run("list", "b*") == (0, "", "")
    code, out, _ = run("list", "-l", "a*")
    assert code == 0 and out.split("\t")[:5] == [id, "5", "5", "1", "ready"]
    code, out, _ = run("stat", "a", "--parts")
    assert code == 0
    assert "etag     " in out
    assert "md5 5d41402abc4b2a76b9719d911017c592" in out
    assert run("rename", "a", "b") == (0, f"{id}: renamed to b\n", "")
    assert run("verify") == (0, "1 file, 1 part, 5 B checked: all are sound\n", "")
    code, out, _ = run("stats")
    assert code == 0 and "files " in out
    code, out, _ = run("ping")
    assert code == 0 and "ready" in out
    code, out, _ = run("delete", "b")
    assert code == 0 and out.startswith("b: deleted, ")
    code, out, err = run("delete", "b")
    assert (code, out, err) == (4, "", "pfs: not-found: b: no file has this name\n")


def test_bad_parts_are_named_and_exit_stops_the_daemon(
    invoke: Run, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = invoke
    monkeypatch.setenv("PFSD_SERVER", f"127.0.0.1:{daemon.port}")
    content = os.urandom(1000)
    Path("a").write_bytes(content)
    run("put", "a")
    (pack,) = daemon.packs()
    raw = pack.read_bytes()
    pack.write_bytes(raw.replace(content[:10], bytes(10)))
    code, out, err = run("verify", "a")
    assert (code, err) == (1, "pfs: corrupt: 1 part failed their checks\n")
    assert out == "a: part 0 at 0 is bad: corrupt\n1 file, 1 part, 1000 B checked: 1 part bad\n"
    code, out, _ = run("verify", "--json")
    assert code == 1
    assert [each["type"] for each in objects(out)] == ["bad", "verify", "error"]
    Path("d").mkdir()
    Path("d/a").write_bytes(content)
    assert run("rename", "a", "d/a")[0] == 0
    assert run("put", "-r", "d", "--resume")[0] == 1, "what is damaged is not there already"
    assert run("rename", "d/a", "a")[0] == 0
    assert run("get", "a", "copy")[0] == 1
    assert not Path("copy").exists()
    code, out, err = run("get", "a", "copy", "--zero-damage")
    assert (code, out) == (3, "a: 1000 bytes at 0 are zeros\n") and err.startswith("pfs: partial: ")
    assert Path("copy").read_bytes() == bytes(1000)
    assert run("exit") == (0, "the daemon has stopped\n", "")
    daemon.wait()
    assert run("list")[0] == 5
    daemon.start()


def test_json(run: Run) -> None:
    Path("a").write_text("hello")
    code, out, err = run("--json", "put", "a")
    (stored,) = objects(out)
    assert (code, err) == (0, "")
    assert (stored["type"], stored["size"], stored["parts"], stored["name"]) == ("put", 5, 1, "a")
    file, total = objects(run("list", "--json")[1])
    assert (file["type"], file["status"], file["name"], "name_hex" in file) == ("file", "ready", "a", False)
    assert total == {"type": "list", "files": 1, "size": 5, "stored": 5}
    file, part = objects(run("stat", "a", "--parts", "--json")[1])
    assert (file["etag"], part["type"], part["md5"]) == (stored["etag"], "part", "5d41402abc4b2a76b9719d911017c592")
    (got,) = objects(run("get", "a", "x", "--json")[1])
    assert (got["type"], got["transferred"], got["target"]) == ("get", 5, "x")
    code, out, err = run("get", "none", "--json")
    (error,) = objects(out)
    assert (code, err, error["type"], error["code"]) == (4, "", "error", "not-found")
    (error,) = objects(run("put", "a", "--json")[1])
    assert (error["code"], error["id"], error["about"]) == ("exists", stored["id"], "a")
    (error,) = objects(run("--json", "frob")[1])
    assert error["code"] == "usage"
    deleted, total = objects(run("delete", "a", "--json")[1])
    assert (deleted["type"], total["files"]) == ("deleted", 1)
    (stats,) = objects(run("stats", "--json")[1])
    assert stats["files"] == 0
    (answer,) = objects(run("ping", "--json")[1])
    assert answer["state"] == "ready"


def test_names_that_are_not_utf8(run: Run, capfd: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"a\xff\n")
    Path(name).write_text("x")
    code, out, _ = run("put", name)
    assert code == 0 and out.startswith(r"a\xff\n: stored")
    (file, _) = objects(run("list", "--json")[1])
    assert (file["name"], bytes.fromhex(file["name_hex"])) == (r"a\xff\n", b"a\xff\n")
    assert run("get", name, "copy")[0] == 0
    code, _, err = run("get", name + "x")
    assert code == 4 and err.count("\n") == 1


def test_quiet(run: Run) -> None:
    Path("a").write_text("hello")
    assert run("put", "a", "--quiet") == (0, "", "")
    assert run("--quiet", "get", "a", "b") == (0, "", "")
    assert run("list", "--quiet")[1].endswith("\t5\ta\n")
    assert run("delete", "b", "--quiet")[2] != ""


@pytest.mark.parametrize(
    "words",
    [
        ["frob"],
        ["put"],
        ["put", "-"],
        ["put", "-", "a", "--name", "x"],
        ["get"],
        ["get", "a", "b", "c"],
        ["get", "a", "--offset", "-1"],
        ["get", "a", "--length", "1k"],
        ["list", "--frob"],
        ["--server", "nonsense", "ping"],
        ["--token-file", "/none", "ping"],
        ["stat", "9" * 30],
    ],
)
def test_wrong_usage(run: Run, words: list[str]) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err.startswith("pfs: usage: ") and err.count("\n") == 1


def test_help_and_version(run: Run) -> None:
    code, out, _ = run("--help")
    assert code == 0 and "exit codes:\n  0    done\n" in out
    code, out, _ = run("get", "--help")
    assert code == 0 and "--offset" in out
    assert run("--version")[1].startswith("pfs ")


def test_nobody_answers(run: Run) -> None:
    code, out, err = run("--server", f"127.0.0.1:{free_port()}", "list")
    assert (code, out) == (5, "")
    assert err.startswith("pfs: cannot-connect: ") and err.count("\n") == 1
    assert run("--server", "unix:/none", "--json", "list")[0] == 5


def test_tokens(idle_daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idle_daemon.config(token="secret-token")
    idle_daemon.start()
    monkeypatch.setenv("PFSD_SERVER", f"unix:{idle_daemon.socket_path}")
    monkeypatch.delenv("PFSD_TOKEN", raising=False)
    assert cli.client_main(["list"]) == 1
    (tmp_path / "token").write_text("secret-token\n")
    assert cli.client_main(["--token-file", str(tmp_path / "token"), "list"]) == 0
    monkeypatch.setenv("PFSD_TOKEN", "secret-token")
    assert cli.client_main(["list"]) == 0


def test_what_is_imported_stays_small() -> None:
    """A command must not pay for what it does not use."""
    code = "import sys, pfsd.cli, pfsd.console.run, pfsd.shell; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    heavy = {"rich", "prompt_toolkit", "uvloop", "yaml", "msgspec", "pfsd.config", "pfsd.daemon", "pfsd.spawn"}
    assert not heavy & set(loaded.split())


# --- directories --------------------------------------------------------------------------------


@pytest.fixture
def photos(here: Path) -> dict[str, bytes]:
    """A directory `photos` of some files, and their contents by the path from there."""
    contents = {f"{year}/{number}.raw": os.urandom(number * 1000) for year in ("2023", "2024") for number in range(20)}
    contents["big [1].raw"] = os.urandom(3 << 20)
    for name, content in contents.items():
        path = Path("photos", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    Path("photos/empty").mkdir()
    return contents


def everything(folder: str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def test_a_directory_goes_there_and_back(run: Run, photos: dict[str, bytes]) -> None:
    code, out, err = run("put", "-r", "photos/")
    assert (code, err) == (0, "")
    assert out.startswith("41 files, 3.4 MiB stored, 3.4 MiB kept") and out.count("\n") == 1
    assert run("list")[1].count("\tphotos/") == 41
    code, out, err = run("get", "-r", "photos", "copy/of")
    assert (code, out, err) == (0, "41 files, 3.4 MiB written to copy/of\n", "")
    assert everything("copy/of") == photos
    assert not Path("copy/of/empty").exists()


def test_a_prefix_of_ones_own_and_the_default_target(run: Run, photos: dict[str, bytes]) -> None:
    assert run("put", "--recursive", "photos", "--name", "a/b[*]")[0] == 0
    assert run("put", "-r", "photos", "--name", "a/bx")[0] == 0
    assert run("get", "--recursive", "a/b[*]/")[0] == 0
    assert everything("b[*]") == photos


def test_json_of_a_directory_has_an_object_for_each_file_and_one_for_all(run: Run, photos: dict[str, bytes]) -> None:
    *files, summary = objects(run("put", "-r", "photos", "--json")[1])
    assert {(file["type"], file["name"]) for file in files} == {("put", f"photos/{name}") for name in photos}
    size = sum(map(len, photos.values()))
    expected = {"type": "summary", "command": "put", "files": 41, "size": size, "failed": 0, "skipped": 0}
    expected |= {"excluded": 0, "unchanged": 0}
    assert expected.items() <= summary.items() and summary["stored"] <= size
    *files, summary = objects(run("get", "-r", "photos", "copy", "--json")[1])
    assert {(file["type"], file["target"]) for file in files} == {("get", f"copy/{name}") for name in photos}
    assert summary == expected | {"command": "get"}


def test_what_is_no_file_is_skipped_in_a_line_each(run: Run) -> None:
    Path("d/e").mkdir(parents=True)
    Path("d/link").symlink_to("e")
    os.mkfifo("d/e/pipe")
    code, out, err = run("put", "-r", "d")
    assert (code, out) == (4, "")
    assert sorted(err.splitlines())[:2] == ["pfs: d/e/pipe is a FIFO: skipped", "pfs: d/link is a symlink: skipped"]
    assert "nothing was stored" in err
    Path("d/file").touch()
    code, out, err = run("put", "-r", "d")
    assert (code, out) == (0, "1 file, 0 B stored, 0 B kept, 2 skipped\n")
    assert err.count("\n") == 2
    (skipped, _) = [
        each for each in objects(run("put", "-r", "d", "--replace", "--json")[1]) if each["type"] == "skipped"
    ]
    assert skipped["is"] in ("a FIFO", "a symlink")


def test_what_fails_in_a_directory_is_told_and_the_rest_is_done(run: Run, photos: dict[str, bytes]) -> None:
    run("put", "photos/2023/1.raw", "--name", "photos/2023/1.raw")
    code, out, err = run("put", "-r", "photos", "none")
    assert code == 3
    assert out.startswith("40 files, ") and out.endswith(", 2 failed\n")
    assert sorted(line.split(": ")[1] for line in err.splitlines()) == ["exists", "not-found"]
    Path("copy/2024").mkdir(parents=True)
    Path("copy/2024/3.raw").write_text("mine")
    Path("copy/2023").symlink_to("2024")
    code, out, err = run("get", "-r", "photos", "copy")
    assert code == 3
    assert out == "20 files, 3.2 MiB written to copy, 21 failed\n"
    assert sorted({line.split(": ")[1] for line in err.splitlines()}) == ["denied", "exists"]
    assert Path("copy/2024/3.raw").read_text() == "mine"
    Path("copy/2023").unlink()
    assert run("get", "-r", "photos", "copy", "--replace")[0] == 0
    assert everything("copy") == photos


async def test_a_directory_whose_daemon_goes_away(tmp_path: Path, photos: dict[str, bytes]) -> None:
    connections = 0

    async def script(reader: Reader, writer: Writer) -> None:
        nonlocal connections
        connections += 1
        if connections == 1:  # the one for commands; the other one stores
            await reader.read()
            return
        tag, _ = await request(reader)
        writer.write(tag + b" OK put id=1 size=7 stored=5 parts=1 etag=e-1 name=a\n")

    async with fake_daemon(tmp_path, script) as where:
        process = await asyncio.create_subprocess_exec(
            sys.executable, CLIENT, "--server", where, "put", "-r", "photos", stdout=-1, stderr=-1, env=environ()
        )
        out, err = await process.communicate()
    assert process.returncode == 1
    assert out == b"1 file, 7 B stored, 5 B kept\n"
    assert err.startswith(b"pfs: connection-lost: ") and err.count(b"\n") == 1


def test_a_directory_of_stored_names_never_leads_out_of_the_target(run: Run) -> None:
    Path("a").write_text("a")
    names = ["d/../out", "d//out", "d/./out", "d/x/", "d/ok", "dd/out", "/d/out"]
    for name in names:
        assert run("put", "a", "--name", name)[0] == 0
    code, out, err = run("get", "-r", "d", "target")
    assert code == 3 and out.startswith("1 file, ")
    assert err.count("pfs: denied: ") == err.count("\n") == 4
    assert everything(".") == {"a": b"a", "target/ok": b"a"}
    assert run("get", "-r", "d", "other", "--quiet")[1] == ""


def test_a_get_is_resumed(run: Run) -> None:
    content = os.urandom(5 << 20)
    Path("source").write_bytes(content)
    run("put", "source")
    (found, *parts) = objects(run("stat", "source", "--parts", "--json")[1])
    key = hashlib.sha256(f"{found['id']} {found['etag']}".encode()).hexdigest()[:16]
    Path(f".copy.{key}.pfsd-partial").write_bytes(content[:1_000_000])
    (got,) = objects(run("get", "source", "copy", "--resume", "--json")[1])
    assert got["transferred"] == len(content) - 1_000_000 // PART * PART
    assert everything(".") == {"source": content, "copy": content}
    assert run("get", "source", "copy", "--resume")[0] == 1
    assert run("get", "source", "copy", "--resume", "--replace")[0] == 0
    assert len(parts) == 80


def test_wrong_use_of_resume(run: Run) -> None:
    Path("d").mkdir()
    for words in (["put", "-", "--name", "x"], ["get", "x", "-"]):
        code, _, err = run(*words, "--resume")
        assert code == 2 and "--resume" in err
    assert run("get", "x", "y", "--offset", "1", "--resume")[0] == 2
    assert run("get", "x", "--resume")[0] == 4


def test_wrong_use_of_directories(run: Run, photos: dict[str, bytes]) -> None:
    code, _, err = run("put", "photos")
    assert code == 1 and "-r stores the files below it" in err
    assert run("get", "-r", "nothing")[0] == 4
    assert run("get", "-r", "photos", "-")[0] == 2
    assert run("get", "-r", "photos", "x", "--offset", "1")[0] == 2
    assert run("put", "-r", ".")[0] == 2
    run("put", "-r", "photos", "--name", "..")
    assert run("get", "-r", "..")[0] == 2
    Path("file").touch()
    code, _, err = run("get", "-r", "..", "file")
    assert code == 1 and err.startswith("pfs: io: making file: ")


# --- pipes and signals --------------------------------------------------------------------------


def test_what_a_command_prints_is_stored(run: Run) -> None:
    code, out, err = run("put", "--from-command", "echo a; echo b", "--name", "printed")
    assert (code, err) == (0, "") and out.startswith("printed: stored as ")
    assert run("get", "printed", "-")[1] == "a\nb\n"


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("echo half; exit 3", "failed with exit code 3"),
        ("echo half; kill -KILL $$", "was ended by SIGKILL"),
        ("no-such-program", "failed with exit code 127"),
    ],
)
def test_what_a_failing_command_prints_is_not(command: str, says: str, run: Run) -> None:
    assert run("put", "--from-command", "echo old", "--name", "printed")[0] == 0
    code, out, err = run("put", "--replace", "--from-command", command, "--name", "printed")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == f"pfs: io: the command {says}, so nothing was stored: {command}"
    assert run("get", "printed", "-")[1] == "old\n"
    assert len(run("list")[1].splitlines()) == 1


def test_a_command_is_ended_when_nobody_wants_its_output(shared_daemon: Daemon, run: Run, here: Path) -> None:
    waits = "echo $$ >pid.new; mv pid.new pid; exec sleep 1000"
    client = start(f"--server=127.0.0.1:{shared_daemon.port}", "put", "--from-command", waits, "--name", "x")
    wait_for((here / "pid").exists)
    client.terminate()
    client.communicate(timeout=PATIENCE_SECONDS)
    assert client.returncode == 143
    assert has_ended(int((here / "pid").read_text()))


@pytest.mark.parametrize(
    "words",
    [
        ["put"],
        ["put", "--from-command", "true"],
        ["put", "--from-command", "true", "--name", "x", "file"],
        ["put", "--from-command", "true", "--name", "x", "-r"],
        ["put", "--from-command", "true", "--name", "x", "--resume"],
    ],
)
def test_wrong_use_of_commands_is_told(words: list[str], run: Run) -> None:
    assert run(*words)[0] == 2


def test_standard_input_and_output(shared_daemon: Daemon, tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    server = f"--server=unix:{shared_daemon.socket_path}"
    put = start(server, "put", "-", "--name", "piped", "--json", stdin=subprocess.PIPE)
    out, err = put.communicate(content, PATIENCE_SECONDS)
    assert (put.returncode, err) == (0, b"")
    assert json.loads(out)["size"] == len(content)
    get = start(server, "get", "piped", "-", "--json")
    out, err = get.communicate(timeout=PATIENCE_SECONDS)
    assert get.returncode == 0 and out == content
    assert json.loads(err)["transferred"] == len(content)
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as file:
        file.seek(7)
        again = start(server, "put", "-", "--name", "from file", stdin=file)
        again.communicate(timeout=PATIENCE_SECONDS)
    assert again.returncode == 0
    assert b"size=2999993 " in shared_daemon.ask(b'stat "from file"\n')[0]


@pytest.mark.parametrize("command", [["list"], ["get", "big", "-"]])
def test_a_closed_pipe_ends_quietly(shared_daemon: Daemon, command: list[str]) -> None:
    with shared_daemon.connect() as wire:
        wire.ask(b"put - name=big replace=yes size=3000000\n" + bytes(3_000_000))
        # Their names alone are more than a pipe holds.
        names = [b"n" * 1000 + b"%d" % number for number in range(100)]
        wire.send(b"".join(b"@%s put - replace=yes name=%s size=0\n" % (name[-20:], name) for name in names))
        for _ in names:
            wire.reply()
    client = start(f"--server=127.0.0.1:{shared_daemon.port}", *command)
    assert client.stdout is not None and client.stderr is not None
    assert client.stdout.read(10)
    client.stdout.close()
    assert client.wait(PATIENCE_SECONDS) == 1
    assert client.stderr.read() == b""
    client.stderr.close()


def test_json_is_utf8_in_every_locale(shared_daemon: Daemon) -> None:
    shared_daemon.ask("put - name=né replace=yes size=0\n".encode())
    words = (f"--server=127.0.0.1:{shared_daemon.port}", "--json", "list", "né")
    out, _ = start(*words, env=environ(PYTHONIOENCODING="latin-1")).communicate(timeout=PATIENCE_SECONDS)
    assert [each["name"] for each in objects(out.decode()) if each["type"] == "file"] == ["né"]


@pytest.mark.parametrize("typed", [None, b"list\n"])
def test_output_that_cannot_be_written_is_an_error(shared_daemon: Daemon, typed: bytes | None) -> None:
    shared_daemon.ask(b"put - name=a replace=yes size=0\n")
    with open("/dev/full", "wb") as full:
        words = ["list"] if typed is None else []
        client = start(f"--server=127.0.0.1:{shared_daemon.port}", *words, stdin=subprocess.PIPE, stdout=full)
        _, err = client.communicate(typed, PATIENCE_SECONDS)
    assert client.returncode == 1
    assert err == b"pfs: no-space: standard input or output: No space left on device\n"


@pytest.mark.parametrize(
    ("closed", "command", "code"),
    [(0, "ping", 0), (0, "put - --name a", 1), (0, "", 1), (1, "ping", 0), (2, "ping", 0), (2, "stat nobody", 4)],
)
def test_closed_standard_streams(shared_daemon: Daemon, closed: int, command: str, code: int) -> None:
    words = [sys.executable, str(CLIENT), f"--server=127.0.0.1:{shared_daemon.port}", *command.split()]
    script = f'exec "$@" {closed}>&-'
    done = subprocess.run(["sh", "-c", script, "sh", *words], capture_output=True, env=environ(), timeout=30)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr
    assert (done.stdout == b"") == (command != "ping" or closed == 1)


def test_settings_that_are_not_utf8(shared_daemon: Daemon) -> None:
    server = os.fsencode(f"127.0.0.1:{shared_daemon.port}")
    rule = b"an address is HOST:PORT, [IPV6]:PORT, tls://HOST:PORT or unix:PATH, not"
    for settings, code, said in (
        ({"PFSD_SERVER": server, "PFSD_TOKEN": b"\xff"}, 0, b""),  # this daemon takes any
        ({"PFSD_SERVER": b"\xff:1"}, 2, b'pfs: usage: "\\xff:1" has no name of a host\n'),
        ({"PFSD_SERVER": b"\xff"}, 2, b'pfs: usage: %b "\\xff"\n' % rule),
    ):
        client = start("ping", env=environ(**{key: os.fsdecode(value) for key, value in settings.items()}))
        _, err = client.communicate(timeout=PATIENCE_SECONDS)
        assert (client.returncode, err) == (code, said)


#: What ended a command, in the words of the client.
HOW = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_put_stores_nothing(shared_daemon: Daemon, number: signal.Signals, code: int) -> None:
    daemon = shared_daemon
    client = start(f"--server=127.0.0.1:{daemon.port}", "put", "-", "--name", "half", stdin=subprocess.PIPE)
    assert client.stdin is not None
    client.stdin.write(bytes(2_000_000))
    client.stdin.flush()
    daemon.wait_until("requests", "2")
    client.send_signal(number)
    assert client.wait(PATIENCE_SECONDS) == code
    word = HOW[number]
    told = f"pfs: cancelled: {word}; of what was under way each file is stored whole or not at all\n"
    assert client.communicate() == (b"", told.encode())
    daemon.wait_until("requests", "1")
    assert daemon.ask(b"list half\n") == [b"OK list files=0 size=0 stored=0"]


@contextmanager
def stalled_daemon(path: Path) -> Iterator[threading.Event]:
    """A daemon that sends a little of a file and then nothing; the event says when."""
    stalled = threading.Event()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        asking, _ = listener.accept()
        with asking, asking.makefile("rb") as lines:
            file = b"id=1 status=ready size=9 stored=9 parts=1 created=1 name=n"
            tag = lines.readline().split()[0]
            asking.sendall(tag + b" FILE " + file + b"\n" + tag + b" OK stat id=1 etag=e-1\n")
            fetching, _ = listener.accept()
        with fetching, fetching.makefile("rb") as lines:
            tag = lines.readline().split()[0]
            fetching.sendall(tag + b" DATA 3\nabc")
            stalled.set()
            lines.read()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield stalled
    finally:
        listener.close()
        thread.join()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_get_leaves_no_file(tmp_path: Path, number: signal.Signals, code: int) -> None:
    here = tmp_path / "here"
    here.mkdir()
    with stalled_daemon(tmp_path / "socket") as stalled:
        client = start(f"--server=unix:{tmp_path}/socket", "get", "n", cwd=here)
        assert stalled.wait(PATIENCE_SECONDS)
        wait_for(lambda: bool(os.listdir(here)))  # what was sent is still on its way into the temporary
        assert [name.startswith(".n.") for name in os.listdir(here)] == [True]
        client.send_signal(number)
        assert client.wait(PATIENCE_SECONDS) == code
    assert client.communicate() == (b"", f"pfs: cancelled: {HOW[number]}; no target is incomplete\n".encode())
    assert os.listdir(here) == []


# --- starting a daemon --------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    address = f"127.0.0.1:{free_port()}"
    path.write_text(f"listen: {address}\npath: store\nroots: ['.']\nmemory: 64MiB\nprocesses: 1\nmd5: hashlib\n")
    return path


def test_spawn(config: Path) -> None:
    words = ("--spawn", "--config", str(config))
    clients = [start(*words, "ping") for _ in range(3)]
    results = [(client.communicate(timeout=PATIENCE_SECONDS), client.returncode) for client in clients]
    try:
        assert [code for _, code in results] == [0, 0, 0], results
        log = config.parent / "store.log"
        said = [err.decode() for (_, err), _ in results if err]
        assert said == [f"starting a daemon; its log is {log}\n"]
        assert log.stat().st_mode & 0o077 == 0
        assert log.read_text().count("pfsd ready on") == 1
    finally:
        address = config.read_text().splitlines()[0].removeprefix("listen: ")
        stop = start("--server", address, "exit")
        assert stop.wait(PATIENCE_SECONDS) == 0
        stop.communicate()


def test_spawn_looks_where_the_configuration_says(
    shared_daemon: Daemon, invoke: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pfsd.client.DEFAULT_ADDRESS", f"127.0.0.1:{shared_daemon.port}")
    words = ("--spawn", "--config", str(config))
    try:
        assert invoke(*words, "ping")[2].startswith("starting a daemon")
        assert invoke(*words, "ping")[2] == ""
    finally:
        assert invoke(*words, "--quiet", "exit")[0] == 0
    assert shared_daemon.ask(b"ping\n") == [b"OK ping"]


def test_spawn_of_a_daemon_that_cannot_start(config: Path) -> None:
    (config.parent / "store").write_text("in the way")
    client = start("--spawn", "--config", str(config), "ping")
    out, err = client.communicate(timeout=PATIENCE_SECONDS)
    assert (client.returncode, out) == (5, b"")
    assert b"cannot be created" in err.splitlines()[-1]
    config.write_text("frob: 1\n")
    client = start("--spawn", "--config", str(config), "ping")
    out, err = client.communicate(timeout=PATIENCE_SECONDS)
    assert (client.returncode, out) == (5, b"")
    assert err.count(b"\n") == 1 and b"frob" in err


# --- the server's program -----------------------------------------------------------------------


def test_a_python_without_the_modules_is_told_what_to_do(here: Path) -> None:
    (here / "yaml.py").write_text("raise ModuleNotFoundError('no', name='yaml')")
    for program in (["server.py"], ["client.py", "--server=127.0.0.1:1", "--spawn", "ping"]):
        done = subprocess.run(
            [sys.executable, str(ROOT / program[0]), *program[1:]],
            capture_output=True,
            env=environ(PYTHONPATH=str(here)),
            timeout=PATIENCE_SECONDS,
        )
        assert (done.returncode, done.stdout) == (1, b"")
        told = re.sub(rb"^pfsd?: (internal: )?", b"", done.stderr)
        assert told.startswith(b"this Python lacks the module yaml; `make run` ")
        assert done.stderr.count(b"\n") == 1


def serve(*words: str) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, str(ROOT / "server.py"), *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        env=environ(),
    )
    return done.returncode, done.stdout, done.stderr


def test_wrong_use_of_the_server(tmp_path: Path) -> None:
    assert serve("--frob")[0] == 64
    assert serve("extra")[0] == 64
    code, out, err = serve("--config", str(tmp_path / "none"))
    assert (code, out) == (78, "")
    assert err.startswith("pfsd: ") and err.count("\n") == 1
    code, out, _ = serve("--help")
    assert code == 0 and "64   bad command line" in out


def test_the_programs_do_nothing_when_imported() -> None:
    code = "import sys, server, client; print([name for name in sys.modules if name.startswith('pfsd')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# --- bars ---------------------------------------------------------------------------------------


def drawn(total: int | None) -> str:
    """What a bar at 5 MiB looks like."""
    console = pytest.importorskip("rich.console")
    paper = io.StringIO()
    bars = progress.make_bars(console.Console(file=paper, force_terminal=True, width=200))
    with bars, bars("some [file]") as show:
        assert show is not None
        show(5 << 20, total)
        paper.truncate(0)
        bars.refresh()
        return paper.getvalue()


def test_a_bar_shows_rate_and_share() -> None:
    text = drawn(10 << 20)
    for piece in ("some [file]", "50%", "5.0/10.0 MiB"):
        assert piece in text


def test_a_bar_of_unknown_length_shows_no_percentage() -> None:
    text = drawn(None)
    assert "5.0/? MiB" in text and "%" not in text


def test_no_bars_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert progress.bars() is None
