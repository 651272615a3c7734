from __future__ import annotations

import pytest

from pfsd.errors import UnknownCommand, UsageError
from pfsd.protocol import parse_request
from pfsd.verbs import BEFORE_AUTH, VERBS, check

KNOWN = "put get cat list stat delete rename verify stats ps ping hello auth help quit exit"
COMMANDS = KNOWN.split(" ")


def test_the_table_has_every_command_of_the_protocol() -> None:
    assert list(VERBS) == COMMANDS
    assert set(VERBS) > BEFORE_AUTH


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_example_fits_its_own_entry(verb: str) -> None:
    entry = VERBS[verb]
    request = parse_request(entry.example.encode())
    assert request.verb == verb and check(request) is entry
    assert entry.usage.split()[0] == verb and entry.does


@pytest.mark.parametrize("verb", COMMANDS)
def test_usage_names_every_option(verb: str) -> None:
    assert all(f"{option}=" in VERBS[verb].usage for option in VERBS[verb].options)


@pytest.mark.parametrize(
    "line",
    [
        b"put a name=b replace=yes progress=1",
        b"put - name=b size=eof",
        b"get a b replace=yes offset=0 length=1 on_error=zero progress=1",
        b"cat a offset=1 length=2",
        b"list",
        b"list *",
        b"stat a parts=yes",
        b"delete a b c d",
        b"rename a b replace=yes",
        b"verify",
        b"verify a b c",
        b"hello proto=1",
        b"help",
        b"help put",
    ],
)
def test_requests_that_fit(line: bytes) -> None:
    check(parse_request(line))


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"put", "usage: put"),
        (b"put a b", "usage: put"),
        (b"get a", "usage: get"),
        (b"get a b c", "usage: get"),
        (b"cat", "usage: cat"),
        (b"list a b", "usage: list"),
        (b"stat", "usage: stat"),
        (b"delete", "usage: delete"),
        (b"rename a", "usage: rename"),
        (b"stats x", "usage: stats"),
        (b"ping x", "usage: ping"),
        (b"auth", "usage: auth"),
        (b"quit now", "usage: quit"),
        (b"exit now", "usage: exit"),
        (b"put a nmae=x", "it has: name= progress= replace= resume= size="),
        (b"ping x=y", "it has: none"),
        (b"put a=b", "quotes"),
    ],
)
def test_requests_that_do_not_fit_say_what_would(line: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        check(parse_request(line))


def test_an_unknown_command_lists_the_known_ones() -> None:
    with pytest.raises(UnknownCommand) as caught:
        check(parse_request(b"store x"))
    assert all(verb in caught.value.message for verb in COMMANDS)
