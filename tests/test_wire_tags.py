"""Tags: requests side by side on one connection, and untagged ones in their order."""

from __future__ import annotations

import re

import pytest

from tests.harness import PART, Daemon, etag, noise
from tests.wire import Wire, code, fields


def tagged(lines: list[bytes]) -> dict[bytes, bytes]:
    """Final lines by tag."""
    return {line.split()[0]: line for line in lines}


def test_every_line_of_a_reply_carries_the_tag(wire: Wire) -> None:
    for request in (b"help", b"stats", b"hello", b"nonsense", b"list", b"put - name=t size=1\nx", b"stat t parts=yes"):
        separator = b"" if request.endswith(b"x") else b"\n"
        lines = wire.ask(b"@a.B-9_ " + request + separator)
        assert all(line.startswith(b"@a.B-9_ ") for line in lines), request


def test_many_tagged_requests_are_all_answered(wire: Wire) -> None:
    wire.send(b"".join(b"@%d ping\n" % at for at in range(1000)))
    answers = [wire.line() for _ in range(1000)]
    assert sorted(answers) == sorted(b"@%d OK ping" % at for at in range(1000))


def test_tagged_requests_do_not_wait_for_each_other(emptied: Daemon) -> None:
    with emptied.connect() as wire:
        wire.send(b"@slow put - name=s size=chunked\n@fast ping\nping\n")
        assert {wire.line(), wire.line()} == {b"@fast OK ping", b"OK ping"}
        wire.send(b"@slow DATA 0\n")
        assert wire.line().startswith(b"@slow OK put ")


def test_untagged_requests_wait_for_each_other(wire: Wire) -> None:
    for at in range(20):
        wire.send(b"put - name=w%d size=3\nabcrename w%d v%d\ndelete v%d\n" % (at, at, at, at))
        assert [code(wire.line()), code(wire.line()), code(wire.reply()[-1])] == ["OK"] * 3


def test_interleaved_uploads_keep_apart(emptied: Daemon) -> None:
    contents = {tag: noise(3 * PART + number, number) for number, tag in enumerate([b"a", b"b", b"c", b"d"])}
    frame = 30_000
    with emptied.connect() as wire:
        for tag in contents:
            wire.send(b"@%b put - name=%b size=chunked\n" % (tag, tag))
        for at in range(0, 3 * PART + 4, frame):
            for tag, content in contents.items():
                if piece := content[at : at + frame]:
                    wire.send(b"@%b DATA %d\n" % (tag, len(piece)) + piece)
        wire.send(b"".join(b"@%b DATA 0\n" % tag for tag in contents))
        finals = tagged([wire.line() for _ in contents])
        for tag, content in contents.items():
            assert fields(finals[b"@" + tag])["etag"] == etag(content)


def test_interleaved_uploads_and_downloads(emptied: Daemon) -> None:
    old, new = noise(40 * PART, 1), noise(40 * PART, 2)
    with emptied.connect() as wire:
        wire.ask(b"put - name=old size=%d\n" % len(old) + old)
        wire.send(b"@d get old -\n@u put - name=new size=chunked\n")
        wire.send(b"".join(b"@u DATA %d\n" % PART + new[at : at + PART] for at in range(0, len(new), PART)))
        wire.send(b"@u DATA 0\n")
        got, finals = bytearray(), []
        while len(finals) < 2:
            line = wire.line()
            if frame := re.fullmatch(rb"@d DATA (\d+)", line):
                got += wire.exactly(int(frame[1]))
            else:
                finals.append(line)
    assert got == old
    assert fields(tagged(finals)[b"@u"])["etag"] == etag(new)
    assert code(tagged(finals)[b"@d"]) == "OK"


def test_one_upload_of_several_given_up(emptied: Daemon) -> None:
    with emptied.connect() as wire:
        wire.send(b"@a put - name=a size=chunked\n@b put - name=b size=chunked\n@a DATA 1\nx@b DATA 1\ny@a ABORT\n")
        assert wire.line().startswith(b"@a ERR cancelled ")
        wire.send(b"@b DATA 0\n")
        assert wire.line().startswith(b"@b OK put ")
        rows = wire.ask(b"list\n")
    assert [fields(row)["name"] for row in rows[:-1]] == ["b"]


def test_a_refused_upload_beside_a_good_one(wire: Wire) -> None:
    wire.ask(b"put - name=taken size=0\n")
    wire.send(b"@bad put - name=taken size=chunked\n@good put - name=good size=chunked\n")
    wire.send(b"@bad DATA 5\nquit\n@good DATA 2\nok@bad DATA 5\nquit\n@bad DATA 0\n@good DATA 0\n")
    finals = tagged([wire.line(), wire.line()])
    assert (code(finals[b"@bad"]), code(finals[b"@good"])) == ("exists", "OK")
    assert wire.ask(b"@bad ping\n") == [b"@bad OK ping"]
    assert wire.ask(b"ping\n") == [b"OK ping"]


@pytest.mark.parametrize("line", [b"@ghost DATA 3\nabc", b"@ghost DATA 0\n", b"@ghost ABORT\n"])
def test_frames_of_no_upload_are_refused_and_their_content_thrown_away(wire: Wire, line: bytes) -> None:
    wire.send(line + b"ping\n")
    answers = [wire.line(), wire.line()]
    assert b"OK ping" in answers
    assert sorted(code(answer) for answer in answers) == ["OK", "usage"]


def test_a_tag_in_use_is_refused(emptied: Daemon) -> None:
    with emptied.connect() as wire:
        wire.send(b"@t put - name=t size=chunked\n@t DATA 3\nabc@t ping\n")
        assert wire.line().startswith(b"@t ERR usage ")
        wire.send(b"@t DATA 0\n")
        assert wire.line().startswith(b"@t OK put ")
        assert wire.ask(b"@t ping\n") == [b"@t OK ping"]


def test_a_second_upload_under_a_tag_in_use_leaves_the_first_alone(emptied: Daemon) -> None:
    with emptied.connect() as wire:
        wire.send(b"@t put - name=t size=chunked\n@t DATA 3\nabc@t put - name=u size=4\nquit")
        assert wire.line().startswith(b"@t ERR usage ")
        wire.send(b"@t DATA 3\ndef@t DATA 0\n")
        stored = wire.line()
        assert stored.startswith(b"@t OK put ") and fields(stored)["etag"] == etag(b"abcdef")
        assert wire.ask(b"ping\n") == [b"OK ping"]


def test_a_tag_is_free_again_after_its_answer(wire: Wire) -> None:
    for _ in range(50):
        assert wire.ask(b"@same ping\n") == [b"@same OK ping"]


@pytest.mark.parametrize("tag", [b"@", b"@a/b", b"@" + b"x" * 33, b"@\xc3\xa4", b"@a@b", b"@a=b"])
def test_a_malformed_tag_is_refused(wire: Wire, tag: bytes) -> None:
    wire.send(tag + b" ping\nping\n")
    assert wire.line().startswith(b"ERR usage ")
    assert wire.line() == b"OK ping"


def test_content_behind_a_malformed_tag_is_thrown_away(wire: Wire) -> None:
    wire.send(b"@a/b put - name=x size=5\nquit\nping\n")
    assert [code(wire.line()), wire.line()] == ["usage", b"OK ping"]


def test_cat_takes_no_tag(wire: Wire) -> None:
    assert code(wire.last(b"@t cat x\n")) == "usage"
    assert wire.ask(b"ping\n") == [b"OK ping"]


def test_a_broken_tagged_request_answers_with_its_tag(wire: Wire) -> None:
    assert wire.last(b'@t list "open\n').startswith(b"@t ERR usage ")
    assert wire.last(b"@t frobnicate\n").startswith(b"@t ERR unknown-command ")


def test_half_close_waits_for_tagged_requests(emptied: Daemon) -> None:
    content = noise(10 << 20)
    with emptied.connect() as wire:
        wire.send(b"@1 put - name=a size=%d\n" % len(content) + content + b"@2 verify\n@3 list\n")
        wire.half_close()
        finals = [line for line in wire.rest().splitlines() if b" OK " in line]
    assert sorted(line[:2] for line in finals) == [b"@1", b"@2", b"@3"]


def test_the_disconnection_of_one_client_cancels_only_its_own(emptied: Daemon) -> None:
    with emptied.connect() as stays:
        stays.send(b"@u put - name=stays size=chunked\n@u DATA 3\nabc")
        leaves = emptied.connect()
        leaves.send(b"@u put - name=leaves size=chunked\n@u DATA 3\nabc")
        emptied.wait_until("requests", "3")
        leaves.reset()
        emptied.wait_until("requests", "2")
        stays.send(b"@u DATA 0\n")
        assert stays.line().startswith(b"@u OK put ")
        emptied.wait_until_listed(1)


# --- broken frames ------------------------------------------------------------------------------


def test_frames_behind_a_malformed_tag_are_thrown_away(wire: Wire) -> None:
    wire.send(b"@a/b put - name=x size=chunked\n@a/b DATA 5\nquit\nping\n")
    assert [code(wire.line()), wire.line()] == ["usage", b"OK ping"]


@pytest.mark.parametrize("frame", [b"DATA 5 more\nquit\n", b'DATA 5 "open\nquit\n', b"DATA x\n", b"DATA\n"])
@pytest.mark.parametrize("tag", [b"", b"@u "])
def test_a_broken_frame_is_the_one_answer_of_its_upload(wire: Wire, frame: bytes, tag: bytes) -> None:
    wire.send(tag + b"put - name=broken size=chunked\n" + tag + frame)
    assert wire.line().startswith(tag + b"ERR usage ")
    wire.send(tag + b"DATA 3\nabc" + tag + b"DATA 0\n")
    assert wire.ask(b"ping\n") == [b"OK ping"]
    assert code(wire.last(b"stat broken\n")) == "not-found"


# --- more requests than may wait ----------------------------------------------------------------


def test_many_refusals_beside_an_open_upload_do_not_block_it(wire: Wire) -> None:
    wire.send(b"@u put - name=many size=chunked\n" + b"@u ping\n" * 300 + b"@u DATA 3\nabc@u DATA 0\n")
    assert [code(wire.line()) for _ in range(301)] == ["usage"] * 300 + ["OK"]


def test_an_upload_that_too_many_requests_wait_for_is_given_up(wire: Wire) -> None:
    wire.send(b"put - name=many2 size=chunked\n" + b"ping\n" * 300 + b"DATA 3\nabcDATA 0\n")
    assert [code(wire.line()) for _ in range(301)] == ["busy"] + ["OK"] * 300


def test_uploads_that_never_end_do_not_gather_without_bound(shared_daemon: Daemon) -> None:
    with shared_daemon.connect() as wire:
        wire.send(b"".join(b"@%d put - size=chunked\n" % at for at in range(2000)))
        assert len(wire.rest().splitlines()) < 1100
