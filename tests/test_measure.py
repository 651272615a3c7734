"""Measuring, with tiny budgets: what is measured and of what, never how fast it was."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from pfsd import cli, config, hashing, measure
from pfsd.errors import StoreUnavailable, UsageError
from tests.harness import noise

MIB = 1 << 20


def settings(home: Path, **more: object) -> config.Config:
    (home / "root").mkdir(exist_ok=True)
    path = home / "config.yaml"
    path.write_text(json.dumps({"roots": ["root"], "path": "root/store", "part_size": 4096, **more}))
    return config.load(path, {})


# --- samples ------------------------------------------------------------------------------------


def test_files_given_are_sampled_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "big").write_bytes(b"b" * 3 * MIB)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "small").write_bytes(b"s" * 100)
    (tmp_path / "other").write_bytes(b"o" * 3 * MIB)
    pieces, origin = measure.sample(settings(tmp_path), [tmp_path / "big", tmp_path / "folder"], 40_960)
    assert origin == "the files given"
    assert 40_960 <= sum(map(len, pieces)) < 40_960 + 4096
    assert set(b"".join(pieces)) <= set(b"bs")
    pieces, _ = measure.sample(settings(tmp_path), [tmp_path / "folder"], 40_960)
    assert pieces == [b"s" * 100]


def test_a_part_is_sampled_once_and_the_same_ones_each_time(tmp_path: Path) -> None:
    content = b"".join(bytes([number]) * 4096 for number in range(100))
    (tmp_path / "file").write_bytes(content)
    pieces, _ = measure.sample(settings(tmp_path), [tmp_path / "file"], 10 * MIB)
    assert len(pieces) == len(set(pieces)) == 100
    assert pieces == measure.sample(settings(tmp_path), [tmp_path / "file"], 10 * MIB)[0]
    assert pieces != sorted(pieces), "any number of the first is to be a fair share"


def test_the_roots_are_sampled_without_the_store_and_links(tmp_path: Path) -> None:
    made = settings(tmp_path)
    made.path.mkdir()
    (made.path / "pack").write_bytes(b"p" * 8 * MIB)
    (tmp_path / "outside").write_bytes(b"o" * 8 * MIB)
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "root" / "file").write_bytes(b"f" * 8 * MIB)
    pieces, origin = measure.sample(made, [], 5 * MIB)
    assert origin == "files under the roots" and set(b"".join(pieces)) == set(b"f")


def test_without_content_the_sources_of_python_do(tmp_path: Path) -> None:
    pieces, origin = measure.sample(settings(tmp_path), [], 5 * MIB)
    assert origin.startswith("the sources of Python's library")
    assert sum(map(len, pieces)) == 5 * MIB and b"import " in b"".join(pieces)


def test_files_that_are_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="none cannot be read: No such file"):
        measure.sample(settings(tmp_path), [tmp_path / "none"], MIB)
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="nothing to measure"):
        measure.sample(settings(tmp_path), [tmp_path / "empty", tmp_path / "fifo"], MIB)


# --- measuring ----------------------------------------------------------------------------------


def test_a_codec_is_measured_by_what_it_makes_of_the_pieces() -> None:
    pieces = [bytes(MIB), noise(MIB)]
    coded = measure.code("zstd", 1, pieces, seconds=60)
    assert (coded.codec, coded.level) == ("zstd", 1)
    assert 1.9 < coded.ratio <= 2  # what does not shrink is counted as it is stored: raw
    assert coded.encode > 0 and coded.decode > 0
    assert measure.code("zstd", 1, pieces, seconds=0).ratio > 100, "the first piece is always coded"


@pytest.mark.parametrize(
    ("cpus", "counts"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (8, [1, 2, 4, 8]), (12, [1, 2, 4, 8, 12])]
)
def test_processes_double_up_to_the_cores(cpus: int, counts: list[int]) -> None:
    assert measure.process_counts(cpus) == counts


def test_processes_code_beside_each_other() -> None:
    assert measure.scale(2, [bytes(4096)], seconds=0.01) > 0


def test_the_disk_is_tried_where_it_is_said_and_nothing_stays(tmp_path: Path) -> None:
    disk = measure.try_disk(tmp_path, seconds=0)
    assert disk.path == str(tmp_path) and disk.write > 0 and disk.sync > 0
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(StoreUnavailable, match="none cannot be written to: No such file"):
        measure.try_disk(tmp_path / "none", seconds=0)


def test_a_store_that_is_not_there_yet_is_tried_above_it(tmp_path: Path) -> None:
    assert measure.existing(tmp_path / "a" / "b") == tmp_path
    assert measure.existing(tmp_path) == tmp_path


# --- the command --------------------------------------------------------------------------------


@pytest.fixture
def no_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading the compiler takes seconds, and lanes would stay in use for all tests after this one."""
    monkeypatch.setattr(hashing, "use_lanes", lambda: False)


@pytest.mark.usefixtures("no_lanes")
def test_the_bench_prints_measurements_and_advice(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings(tmp_path)
    (tmp_path / "content").write_bytes(b"some text " * 10_000)
    words = ["bench", "--config", f"{tmp_path}/config.yaml", "--seconds", "0.05", f"{tmp_path}/content"]
    assert cli.server_main([*words, "--json"]) == 0
    out, err = capfd.readouterr()
    found = json.loads(out)
    machine = found["machine"]
    assert err == ""
    assert [(row["codec"], row["level"]) for row in machine["coded"]] == list(measure.CANDIDATES)
    assert machine["sample"]["bytes"] == 100_000 and machine["sample"]["raw_share"] == 0
    assert machine["disk"]["path"] == str(tmp_path / "root")
    assert list(machine["scaling"]) == [str(count) for count in measure.process_counts(machine["cpus"])]
    assert [row["key"] for row in found["advice"]] == ["processes", "memory", "codec", "level", "md5"]
    assert cli.server_main([*words, "--path", str(tmp_path)]) == 0
    out, _ = capfd.readouterr()
    assert f"in {tmp_path}\n" in out and "\nlevel: " in out
    assert sorted(os.listdir(tmp_path)) == ["config.yaml", "content", "root"]
    assert os.listdir(tmp_path / "root") == []


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--seconds", "0"], 64, "0.01 to 3600"),
        (["--seconds", "x"], 64, "--seconds"),
        (["--path", "/none"], 64, "--path /none must be a directory that exists"),
        (["/none"], 64, "/none cannot be read: No such file or directory"),
        (["--config", "/none"], 78, "no such configuration file"),
        (["--path", "/proc"], 73, "/proc cannot be written to"),
        (["--what"], 64, "--what"),
    ],
)
@pytest.mark.usefixtures("no_lanes")
def test_what_cannot_be_measured_is_refused_in_a_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], code: int, said: str
) -> None:
    settings(tmp_path)
    (tmp_path / "content").write_bytes(b"some text")
    before = ["bench", "--config", f"{tmp_path}/config.yaml", "--seconds", "0.01"]
    assert cli.server_main([*before, *words, *([] if "/none" in words[-1:] else [f"{tmp_path}/content"])]) == code
    out, err = capfd.readouterr()
    assert out == "" and said in err.splitlines()[-1]


def test_the_configuration_may_be_named_before_the_word(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.server_main(["--config", "/none", "bench"]) == 78
    assert cli.server_main(["--config", "/none"]) == 78
    assert cli.server_main(["what"]) == 64
    assert "there is no command what" in capfd.readouterr().err
