"""What is installed: a wheel that is built from the source distribution, in an environment that has nothing else."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from importlib import import_module, metadata
from pathlib import Path, PurePosixPath

import pytest

from tests.harness import lines_of

pytest.importorskip("build")
pytest.importorskip("setuptools", minversion="77")

ROOT = Path(__file__).parent.parent
#: What no source distribution is made from.
NOT_SOURCE = shutil.ignore_patterns(".*", "*.egg-info", "build", "dist", "store", "__pycache__", "*.nbi", "*.nbc")


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a source distribution and of the wheel that was built from it."""
    home = tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, home / "source", ignore=NOT_SOURCE)
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(home / "dist"), str(home / "source")]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return home / "dist"


@pytest.fixture(scope="module")
def wheel(dist: Path) -> Path:
    """The wheel."""
    (path,) = dist.glob("*.whl")
    return path


def installed(wheel: Path, home: Path) -> Path:
    """A virtual environment with the wheel, and without anything that it needs."""
    venv.create(home)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "--no-compile", "--no-deps", "--no-index", str(wheel)], check=True)
    return home


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment in which there is nothing but the wheel."""
    return installed(wheel, tmp_path_factory.mktemp("bare"))


@pytest.fixture(scope="module")
def core(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with what every installation has, and nothing of any extra."""
    home = installed(wheel, tmp_path_factory.mktemp("core"))
    (site,) = home.glob("lib/python3*/site-packages")
    for requirement in metadata.requires("pfsd") or []:
        if "extra ==" not in requirement:
            for module in modules_of(requirement):
                (site / module.name).symlink_to(module)
    return home


def modules_of(requirement: str) -> Iterator[Path]:
    """What of a distribution that is installed here lies in site-packages; nothing if it is not needed here."""
    name = requirement.split(";")[0].split(">")[0].strip()
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        assert "python_version" in requirement, requirement
        return
    for top in {path.parts[0] for path in found.files or []} - {".."}:
        yield Path(str(found.locate_file(top)))


def run(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a program of an environment, away from the sources."""
    return subprocess.run(
        [str(home / "bin" / words[0]), *words[1:]],
        cwd=home,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_has_the_package_and_nothing_else(wheel: Path) -> None:
    names = [PurePosixPath(name) for name in zipfile.ZipFile(wheel).namelist()]
    tops = {name.parts[0] for name in names}
    assert {top for top in tops if not top.endswith((".dist-info", ".data"))} == {"pfsd"}
    below_share = [name for name in names if name.parts[0].endswith(".data")]
    assert all(name.parts[1:3] == ("data", "share") for name in below_share), below_share
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "pfsd").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {str(name) for name in names if name.parts[0] == "pfsd"} == sources


def test_the_source_distribution_has_all_that_its_tests_need(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in archive.getnames()}
    wanted = ["Makefile", "config.yaml", "server.py", "client.py", "CHANGELOG.md", "LICENSE", "README.md", "setup.cfg"]
    wanted += [
        path.relative_to(ROOT).as_posix()
        for folder in ("bench", "contrib", "docs", "examples", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix not in (".pyc", ".nbi", ".nbc") and "results" not in path.parts
    ]
    assert set(wanted) <= names


def test_every_entry_point_is_there() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = "\n".join(setup["options.entry_points"].values()).split("\n")
    targets = [line.split(" = ")[1] for line in lines if line]
    assert targets
    for target in targets:
        module, _, name = target.partition(":")
        assert getattr(import_module(module), name)


@pytest.mark.parametrize("program", ["pfs", "pfsd"])
def test_help_needs_nothing(bare: Path, program: str) -> None:
    for option in ("--help", "--version"):
        ran = run(bare, program, option)
        assert (ran.returncode, ran.stderr) == (0, ""), ran
        assert program in ran.stdout


def test_what_is_missing_is_told_in_one_line(bare: Path) -> None:
    (bare / "config.yaml").write_text("path: store\n")
    ran = run(bare, "pfsd", "--config", "config.yaml")
    assert ran.returncode == 1 and ran.stderr.count("\n") == 1 and "yaml" in ran.stderr, ran


def test_without_any_extra_a_daemon_serves_and_the_client_stores(core: Path) -> None:
    (core / "config.yaml").write_text("listen: 'unix:socket'\npath: store\nroots: ['.']\nmemory: 64MiB\nprocesses: 1\n")
    (core / "file").write_bytes(b"content")
    command = [str(core / "bin" / "pfsd"), "--config", "config.yaml"]
    server = f"--server=unix:{core}/socket"
    with subprocess.Popen(command, cwd=core, env={}, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        try:
            assert lines_of(daemon.stdout, 1)[0].startswith("pfsd ready on ")
            assert run(core, "pfs", server, "put", "file", "--name", "f").returncode == 0
            assert run(core, "pfs", server, "get", "f", "copy").returncode == 0
        finally:
            daemon.terminate()
    assert daemon.returncode == 0
    assert (core / "copy").read_bytes() == b"content"
