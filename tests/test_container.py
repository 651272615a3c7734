"""The Containerfile: what it names is there, and means what it is to mean."""

from __future__ import annotations

import configparser
import json
import re
from pathlib import Path

from pfsd import config, syntax

ROOT = Path(__file__).parent.parent
#: The instructions, each with its words, lines that go on joined.
INSTRUCTIONS = [
    line.split(" ", 1)
    for line in re.sub(r"\\\n\s*", "", (ROOT / "contrib" / "container" / "Containerfile").read_text()).splitlines()
    if line and not line.startswith("#")
]


def words(instruction: str) -> list[str]:
    """The words behind each instruction of a kind."""
    return [rest for name, rest in INSTRUCTIONS if name == instruction]


def environ() -> dict[str, str]:
    (pairs,) = words("ENV")
    return dict(pair.split("=", 1) for pair in pairs.split())


def test_what_is_copied_and_installed_is_there() -> None:
    for line in words("COPY"):
        if not line.startswith("--from"):
            assert all((ROOT / source).exists() for source in line.split()[:-1]), line
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    (extras,) = re.findall(r"'\.\[(.+)\]'", " ".join(words("RUN")))
    assert set(extras.split(",")) <= set(setup["options.extras_require"])
    scripts = re.findall(r"^(\w+) =", setup["options.entry_points"]["console_scripts"], re.MULTILINE)
    for line in [*words("CMD"), words("HEALTHCHECK")[0].partition("CMD ")[2]]:
        assert json.loads(line)[0] in scripts, "in the exec form, so that signals arrive"


def test_the_programs_understand_their_arguments() -> None:
    health = json.loads(words("HEALTHCHECK")[0].partition("CMD ")[2])
    arguments = syntax.client_parser().parse_args(health[1:])
    assert f"unix:{arguments.server.removeprefix('unix:')}" == environ()["PFSD_LISTEN"]
    (command,) = words("CMD")
    syntax.server_parser().parse_args(json.loads(command)[1:])


def test_it_runs_as_nobody_special_on_a_local_address(tmp_path: Path) -> None:
    assert words("USER") == ["10001:10001"] and words("STOPSIGNAL") == ["SIGTERM"]
    settings = {key: value for key, value in environ().items() if key.startswith("PFSD_")}
    assert {key.removeprefix("PFSD_").lower() for key in settings} <= set(config.KEYS)
    (tmp_path / "config.yaml").touch()
    loaded = config.load(tmp_path / "config.yaml", settings | {"PFSD_ROOTS": str(tmp_path)})
    assert all(listener.address.is_local for listener in loaded.listen)
    assert [str(loaded.path.parent)] == words("VOLUME")
