"""What a fuzzer once found of interest, tried again: the invariants hold for all of it."""

from __future__ import annotations

import importlib.util

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz import run
from tests.fuzz.invariants import TARGETS, edited
from tests.fuzz.run import CORPUS
from tests.fuzz.seeds import seeds


@pytest.mark.promise("answered")
@pytest.mark.parametrize("target", TARGETS)
def test_invariants_hold_for_all_that_was_found(target: str) -> None:
    found = sorted((CORPUS / target).iterdir())
    assert found
    for data in [b"", *seeds(target), *(path.read_bytes() for path in found)]:
        TARGETS[target](data)


@pytest.mark.promise("answered")
@pytest.mark.parametrize("target", TARGETS)
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_invariants_hold_for_edited_seeds(target: str, data: st.DataObject) -> None:
    seed = data.draw(st.sampled_from(seeds(target)))
    TARGETS[target](seed[:1] + edited(seed[1:] or b"x", data.draw(st.binary(max_size=40))))


def test_the_corpus_stays_small() -> None:
    sizes = [path.stat().st_size for path in CORPUS.rglob("*") if path.is_file()]
    assert len(sizes) < 300 and sum(sizes) < 300 << 10
    assert {path.name for path in CORPUS.iterdir()} == set(TARGETS)


def test_edits_damage_what_they_are_given() -> None:
    assert edited(b"sound", b"") == b"sound"
    assert edited(b"sound", b"\x01\x00\x00\x01") == b"round"
    assert edited(b"sound", b"\x00\x02\x00xy") == b"souxy"


def test_without_a_fuzzer_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert run.main(["1"]) == 1
    assert "pip install -e '.[dev,fuzz]'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["soon"], ["1", "everything"]])
def test_what_the_fuzzer_is_asked_for_is_checked(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(arguments) == 2
    assert "protocol, journal, packs, config" in capsys.readouterr().err
