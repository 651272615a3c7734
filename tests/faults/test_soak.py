"""A soak that finds something after hours leaves all that tells why."""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import soak
from tests.harness import Daemon


def _breaks_the_journal(daemon: Daemon) -> None:
    daemon.stop()
    (daemon.store / "journal.jsonl").write_bytes(b"broken\n")


def _breaks_a_pack(daemon: Daemon) -> None:
    daemon.ask(b"put - name=c0-a size=5\nhello")
    daemon.stop()
    (pack,) = daemon.packs()
    pack.write_bytes(b"broken")


@pytest.mark.parametrize(
    ("broken", "why"), [(_breaks_the_journal, "not ready"), (_breaks_a_pack, "check ends with 65")]
)
def test_store_and_log_are_kept(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    broken: Callable[[Daemon], None],
    why: str,
) -> None:
    def one_round(running: soak.Soak) -> None:
        broken(running._daemon)
        running.start()
        running.rounds += 1

    monkeypatch.setattr(soak.Soak, "round", one_round)
    monkeypatch.setattr(sys, "argv", ["soak", "--rounds", "1", "--only", "kill", "--seed", "7"])
    assert soak.main() == 1
    said = capsys.readouterr().err
    found = re.search(r"store and log are kept in (\S+)", said)
    assert found, said
    kept = Path(found[1])
    try:
        assert why in said
        assert "again: python -m tests.faults.soak --seed 7 --only kill " in said
        assert all((kept / name).is_file() for name in ("oracle.log", "stderr", "config.yaml", "store/journal.jsonl"))
    finally:
        shutil.rmtree(kept)
