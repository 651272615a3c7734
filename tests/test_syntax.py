"""The parsers, and what is made from them: manual pages, completions; where the daemon finds its configuration."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from pfsd import cli, completions, config, syntax
from pfsd.console import output
from pfsd.daemon import EXIT_STOP_TIMED_OUT
from pfsd.errors import ConfigError, FatalError, UsageError
from pfsd.verbs import BEFORE_AUTH
from tests.harness import PATIENCE_SECONDS, Daemon
from tests.programs import ROOT, Run, environ, objects

PAGES = ROOT / "docs" / "man"


# --- exit codes ---------------------------------------------------------------------------------


def test_the_exit_codes_are_those_of_the_code() -> None:
    of_errors = {kind.exit_code for kind in FatalError.__subclasses__()}
    assert syntax.SERVER_CODES.keys() == {0, 1, 130, cli.EX_USAGE, EXIT_STOP_TIMED_OUT} | of_errors
    names = ("DONE", "FAILED", "USAGE", "PARTIAL", "NOT_FOUND", "CANNOT_CONNECT", "INTERRUPTED")
    assert syntax.CLIENT_CODES.keys() == {143} | {getattr(output, name) for name in names}


# --- manual pages -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", PAGES / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_manual_pages_are_those_of_the_parsers(generate: ModuleType) -> None:
    pages = generate.pages()
    assert {path.name for path in PAGES.iterdir() if path.suffix in (".1", ".5")} == pages.keys()
    for name, page in pages.items():
        assert (PAGES / name).read_text("utf-8") == page, f"{name} is old: make man"


def test_the_manual_pages_name_everything(generate: ModuleType) -> None:
    pages = generate.pages()
    for parser, page in ((syntax.client_parser(), pages["pfs.1"]), (syntax.server_parser(), pages["pfsd.1"])):
        plain = page.replace("\\-", "-")
        for option in re.findall(r"--[a-z][a-z-]+", parser.format_help().replace("--help", "")):
            assert option in plain
        (commands,) = (action for action in parser._actions if action.dest == "==SUPPRESS==" and action.choices)
        for name in commands.choices or ():
            assert re.search(rf"^\.SS \".*\b{name}\b", plain, re.MULTILINE), name
    for key in config.KEYS:
        assert f'\n.B "{key}:' in pages["pfsd.yaml.5"].replace("\\-", "-")


@pytest.mark.parametrize("name", ["pfs.1", "pfsd.1", "pfsd.yaml.5"])
def test_the_manual_pages_render_without_warnings(name: str) -> None:
    if shutil.which("groff") is None:
        pytest.skip("there is no groff")
    done = subprocess.run(["groff", "-man", "-ww", "-Tutf8", str(PAGES / name)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "`" not in done.stdout


def test_text_is_nothing_that_roff_would_act_upon(generate: ModuleType) -> None:
    assert generate.text(".so /etc/passwd\n\\fBx 'a'") == "\\&.so /etc/passwd\n\\efBx \\(aqa\\(aq"


# --- completions --------------------------------------------------------------------------------


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A directory with `pfs` and `pfsd`, as an installation has them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, main in (("pfs", "client_main"), ("pfsd", "server_main")):
        script = folder / name
        script.write_text(f"#!{sys.executable}\nimport sys\nfrom pfsd.cli import {main}\nsys.exit({main}())\n")
        script.chmod(0o755)
    return folder


_TRY = """\
source <($1 completion bash) || exit 1
function=$(complete -p $1 | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=()
$function $1 "${@: -1}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["pfs", "put", "--re"], ["--recursive", "--replace", "--resume"]),
        (["pfs", "put", "loc"], ["local"]),
        (["pfs", "get", "photos/"], ["photos/1.jpg", "photos/2.jpg"]),
        (["pfs", "rm", "photos/1.jpg", "photos/2"], ["photos/2.jpg"]),
        (["pfsd", "re"], ["rebuild", "repair"]),
    ],
)
def test_bash_completes(run: Run, shared_daemon: Daemon, programs: Path, words: list[str], offered: list[str]) -> None:
    pytest.importorskip("shtab")
    Path("local").touch()
    for name in ("photos/1.jpg", "photos/2.jpg", "photos/with blank"):
        run("put", "local", "--name", name)
    path = f"{programs}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", _TRY, "bash", *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        env=environ(PATH=path, PYTHONPATH=str(ROOT), PFSD_SERVER=f"127.0.0.1:{shared_daemon.port}"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.split()) == offered


@pytest.mark.parametrize("shell", syntax.SHELLS)
def test_there_are_completions_for_each_shell(shell: str) -> None:
    pytest.importorskip("shtab")
    for parser in (syntax.client_parser(), syntax.server_parser()):
        assert f"{parser.prog}" in completions.script(parser, shell)


def test_completions_without_shtab(invoke: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    code, out, err = invoke("completion", "bash")
    assert (code, out) == (2, "") and "pip install 'pfsd[cli]'" in err
    assert invoke("completion", "ksh")[0] == 2
    with pytest.raises(UsageError):
        completions.script(syntax.server_parser(), "bash")


# --- where the configuration is -----------------------------------------------------------------


def test_the_first_configuration_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system, home = tmp_path / "etc" / "config.yaml", tmp_path / "home"
    monkeypatch.setattr(config, "SYSTEM_FILE", system)
    variables = {"HOME": str(home)}
    assert config.find(variables) is None
    system.parent.mkdir()
    system.touch()
    assert config.find(variables) == system
    users = home / ".config" / "pfsd" / "config.yaml"
    users.parent.mkdir(parents=True)
    users.touch()
    assert config.find(variables) == users
    assert config.find(variables | {"XDG_CONFIG_HOME": str(tmp_path)}) == system
    assert config.find(variables | {"XDG_CONFIG_HOME": "relative"}) == users
    assert config.find(variables | {"PFSD_CONFIG": "/named"}) == Path("/named")


def test_without_a_file_paths_count_from_the_data_of_the_user(tmp_path: Path) -> None:
    variables = {"HOME": str(tmp_path)}
    config.make_home(variables)
    home = tmp_path / ".local" / "share" / "pfsd"
    assert home.stat().st_mode & 0o777 == 0o700
    settings = config.load(None, variables | {"PFSD_MEMORY": "64MiB"})
    assert (settings.path, settings.roots, settings.memory) == (home / "store", (home,), 64 << 20)
    with pytest.raises(ConfigError, match="cannot be made for the store"):
        config.make_home({"XDG_DATA_HOME": "/dev/null"})
    with pytest.raises(ConfigError, match="PFSD_MEMORY"):
        config.load(None, variables | {"PFSD_MEMORY": "x"})


#: What a listener that is for puts allows.
ALLOWED = sorted({"put", *BEFORE_AUTH})

Pfsd = Callable[..., tuple[int, str, str]]


@pytest.fixture
def pfsd(here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Pfsd:
    """Run `pfsd` in this process: exit code, stdout, stderr. Keywords are variables of the environment."""

    def pfsd(*words: str, **variables: str) -> tuple[int, str, str]:
        capfd.readouterr()
        with monkeypatch.context() as patch:
            for key, value in {"HOME": str(here), **variables}.items():
                patch.setenv(key, value)
            return cli.server_main(words), *capfd.readouterr()

    return pfsd


def test_help_in_an_empty_environment_says_where_the_configuration_is(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "pfsd", "--help"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: python -m pfsd ") and "/etc/pfsd/config.yaml" in done.stdout
    assert all(f"\n  {code:<4} " in done.stdout for code in syntax.SERVER_CODES)


def test_the_names_that_the_programs_go_by(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cli.server_main(["--version"])
    assert capfd.readouterr().out.startswith("pfsd ")
    cli.server_main(["check", "--help"], program="python server.py")
    assert "\n  python server.py check --data " in capfd.readouterr().out
    cli.client_main(["put", "--help"], program="python client.py")
    assert capfd.readouterr().out.startswith("usage: python client.py put ")


def test_the_configuration_in_force_is_shown(pfsd: Pfsd, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("memory: 64MiB\ntoken: swordfish\nprocesses: 1\nlisten: [{address: 'unix:s', allow: [put]}]\n")
    file.chmod(0o644)
    variables = {"PFSD_LEVEL": "3", "PFSD_CONFIG": str(file)}
    code, out, err = pfsd("config", "show", **variables)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"# {file}"
    for line in ("memory: 64MiB  # file", "level: 3  # environment: PFSD_LEVEL", "codec: zstd  # default"):
        assert line in lines
    assert 'token: "(set)"  # file' in lines and "swordfish" not in out
    head, *settings = objects(pfsd("config", "show", "--json", **variables)[1])
    assert head == {"type": "config", "file": str(file)}
    assert [each["key"] for each in settings] == list(config.KEYS)
    found = {each["key"]: (each["value"], each["from"]) for each in settings}
    assert found["memory"] == (64 << 20, "file") and found["level"] == (3, "environment")
    assert found["listen"] == ([{"address": f"unix:{tmp_path}/s", "allow": ALLOWED}], "file")
    assert found["idle_timeout"] == (600, "default")


def test_what_is_shown_can_be_used_as_a_configuration(pfsd: Pfsd, here: Path) -> None:
    code, shown, _ = pfsd("config", "show")
    assert code == 0 and shown.startswith("# no file\n")
    (here / "again.yaml").write_text(shown)
    code, again, _ = pfsd("config", "show", "--config", "again.yaml")
    values = [line.partition("  # ")[0] for line in shown.splitlines()[1:]]
    assert [line.partition("  # ")[0] for line in again.splitlines()[1:]] == values


def test_a_configuration_is_checked(pfsd: Pfsd, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("token: swordfish\n")
    file.chmod(0o644)
    code, out, err = pfsd("config", "check", "--config", str(file))
    assert (code, err) == (0, "")
    assert out.startswith("warning: ") and out.endswith(f"{file}: can be used\n")
    told = objects(pfsd("config", "check", "--config", str(file), "--json")[1])
    assert [each["type"] for each in told] == ["warning", "config"]
    file.write_text("frob: 1\n")
    code, out, err = pfsd("config", "check", "--config", str(file))
    assert (code, out) == (78, "") and "frob" in err
    code, out, err = pfsd("config", "check", "--config", str(file), "--json")
    assert (code, err, json.loads(out)["exit_code"]) == (78, "", 78)
    code, out, err = pfsd("chek", "--json")
    assert (code, err) == (64, "") and "did you mean check" in json.loads(out)["message"]
    assert pfsd("config")[0] == 64
