"""Sessions: lines and their endings, hello, help, auth, quit, exit, and the end of input."""

from __future__ import annotations

import socket

import pytest

from pfsd.verbs import VERBS
from tests.harness import Daemon, etag
from tests.wire import Wire, code, fields


def test_nothing_is_said_before_the_first_request(wire: Wire) -> None:
    wire.half_close()
    assert wire.at_eof()


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
def test_replies_end_as_their_request_did(wire: Wire, ending: bytes) -> None:
    wire.send(b"ping" + ending)
    assert wire.raw_line() == b"OK ping" + ending
    wire.send(b"nonsense" + ending)
    assert wire.raw_line().endswith(b'"' + ending)
    wire.send(b"help ping" + ending)
    assert [wire.raw_line().endswith(ending) for _ in range(4)] == [True] * 4
    wire.send(b"put - name=ending%d size=3" % len(ending) + ending + b"abc")
    assert wire.raw_line().endswith(ending)
    wire.send(b"get ending%d -" % len(ending) + ending)
    assert wire.raw_line() == b"DATA 3" + ending
    assert wire.exactly(3) == b"abc"
    assert wire.raw_line().endswith(ending)


def test_endings_may_be_mixed(wire: Wire) -> None:
    wire.send(b"ping\r\nping\nping\r\n")
    assert [wire.raw_line() for _ in range(3)] == [b"OK ping\r\n", b"OK ping\n", b"OK ping\r\n"]


def test_verbs_and_keys_are_case_insensitive(wire: Wire) -> None:
    assert wire.ask(b"PING\n") == [b"OK ping"]
    assert wire.last(b"Hello PROTO=1\n").startswith(b"OK hello proto=1 ")


def test_empty_lines_and_comments_are_ignored(wire: Wire) -> None:
    wire.send(b"\n\r\n   \n# a comment\n#\nping\n")
    assert wire.line() == b"OK ping"


def test_telnet_negotiation_is_dropped(wire: Wire) -> None:
    wire.send(b"\xff\xfd\x06\xff\xfb\x18ping\r\n\xff\xfb\x1f\r\nping\r\n")
    assert [wire.line(), wire.line()] == [b"OK ping"] * 2


def test_bytes_may_come_one_by_one(wire: Wire) -> None:
    wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in b"ping\r\n":
        wire.send(bytes([byte]))
    assert wire.line() == b"OK ping"


def test_a_thousand_requests_at_once_are_answered_in_order(wire: Wire) -> None:
    wire.send(b"".join(b"nonsense%c\nping\n" % (97 + at % 26) for at in range(500)))
    for at in range(500):
        assert b"nonsense%c" % (97 + at % 26) in wire.line()
        assert wire.line() == b"OK ping"


def test_half_close_lets_everything_finish(wire: Wire) -> None:
    wire.send(b"put - name=half size=3\nabclist half\nping\n")
    wire.half_close()
    replies = wire.rest().splitlines()
    assert [code(replies[0]), replies[2][:7], replies[3]] == ["OK", b"OK list", b"OK ping"]
    assert len(replies) == 4


@pytest.mark.promise("answered")
def test_a_line_cut_off_by_the_end_of_input_is_not_executed(shared_daemon: Daemon) -> None:
    shared_daemon.ask(b"put - name=survivor size=0\n")
    with shared_daemon.connect() as wire:
        wire.send(b"ping\ndelete survivor")
        wire.half_close()
        assert wire.line() == b"OK ping"
        assert code(wire.line()) == "usage"
        assert wire.at_eof()
    assert shared_daemon.ask(b"list survivor\n")[-1].startswith(b"OK list files=1 ")


def test_both_kinds_of_socket_speak_the_same(shared_daemon: Daemon) -> None:
    with shared_daemon.connect(unix=True) as wire:
        assert wire.ask(b"ping\n") == [b"OK ping"]
    assert shared_daemon.socket_path.stat().st_mode & 0o777 == 0o600


def test_connections_run_beside_each_other(shared_daemon: Daemon) -> None:
    with shared_daemon.connect() as first, shared_daemon.connect() as second:
        first.send(b"put - name=slowly size=4\nab")
        assert second.ask(b"ping\n") == [b"OK ping"]
        first.send(b"cd")
        assert code(first.reply()[-1]) == "OK"


# --- hello, help, stats -------------------------------------------------------------------------


def test_hello_tells_limits_and_state(wire: Wire) -> None:
    told = fields(wire.last(b"hello proto=1\n"))
    assert told.pop("version")
    assert told == {"proto": "1", "max_line": "65536", "max_frame": "1048576", "auth": "none", "state": "ready"}
    assert code(wire.last(b"hello\n")) == "OK"


@pytest.mark.parametrize("request_", [b"hello proto=2\n", b"hello proto=x\n", b"hello proto=\n", b"hello 1\n"])
def test_hello_refuses_what_it_does_not_speak(wire: Wire, request_: bytes) -> None:
    assert code(wire.last(request_)) == "usage"
    assert wire.ask(b"ping\n") == [b"OK ping"]


def test_help_names_every_command(wire: Wire) -> None:
    lines = wire.ask(b"help\n")
    assert lines[-1] == b"OK help"
    assert all(line.startswith(b"# ") for line in lines[:-1])
    for verb in VERBS.values():
        assert any(verb.usage.encode() in line for line in lines)


@pytest.mark.parametrize("verb", VERBS)
def test_help_for_one_command_has_an_example(wire: Wire, verb: str) -> None:
    lines = wire.ask(f"help {verb}\n".encode())
    assert lines[-1] == b"OK help"
    assert any(VERBS[verb].example.encode() in line for line in lines)


def test_help_on_nothing_known(wire: Wire) -> None:
    assert code(wire.last(b"help me\n")) == "unknown-command"


def test_stats_count_what_is_stored(emptied: Daemon) -> None:
    before = emptied.stats()
    assert before["processes"] == "2" and before["files"] == "0" and before["memory_used"] == "0"
    emptied.ask(b"put - name=a size=100000\n" + bytes(100000))
    after = emptied.stats()
    assert (after["files"], after["parts"], after["size"]) == ("1", "2", "100000")
    assert 0 < int(after["stored"]) < 100000, "zeros are compressed"
    assert 0 < int(after["memory_peak"]) <= int(after["memory_limit"])
    assert (after["memory_used"], after["clients"]) == ("0", "1")


# --- quit and exit ------------------------------------------------------------------------------


def test_quit_ends_the_session_and_nothing_behind_it_runs(shared_daemon: Daemon) -> None:
    shared_daemon.ask(b"put - name=behind size=0\n")
    with shared_daemon.connect() as wire:
        wire.send(b"ping\nquit\ndelete behind\n")
        assert wire.rest() == b"OK ping\nOK quit\n"
    assert code(shared_daemon.ask(b"stat behind\n")[-1]) == "OK"


def test_quit_waits_for_what_is_running(emptied: Daemon) -> None:
    size = 20 << 20
    with emptied.connect() as wire:
        wire.send(b"@up put - name=a size=%d\n" % size + bytes(size) + b"@v verify\n@q quit\n")
        replies = wire.rest().splitlines()
    assert replies[-1] == b"@q OK quit"
    assert sorted(reply[:6] for reply in replies[:-1]) == [b"@up OK", b"@v OK "]


@pytest.mark.parametrize("unix", [False, True])
def test_exit_shuts_the_daemon_down(daemon: Daemon, unix: bool) -> None:
    daemon.note_family()
    with daemon.connect(unix) as wire, daemon.connect() as idle:
        wire.send(b"exit\n")
        assert wire.line() == b"OK exit"
        assert wire.at_eof() and idle.at_eof()
    daemon.wait(0)
    assert not daemon.socket_path.exists()


@pytest.mark.promise("stop")
def test_exit_lets_running_requests_finish_and_takes_no_new_ones(daemon: Daemon) -> None:
    with daemon.connect() as upload, daemon.connect() as other, daemon.connect() as leaver:
        upload.send(b"put - name=last size=chunked\nDATA 3\nabc")
        daemon.wait_until("requests", "2")
        leaver.send(b"exit\n")
        while fields(other.last(b"hello\n"))["state"] != "stopping":
            pass
        assert code(other.last(b"list\n")) == "stopping"
        upload.send(b"DATA 3\ndefDATA 0\n")
        assert code(upload.reply()[-1]) == "OK"
        assert leaver.reply() == [b"OK exit"]
    daemon.wait(0)
    daemon.start()
    assert fields(daemon.ask(b"stat last\n")[0])["size"] == "6"


@pytest.mark.promise("stop")
def test_exit_gives_up_what_does_not_finish_in_time(idle_daemon: Daemon) -> None:
    idle_daemon.config(stop_timeout=1)
    idle_daemon.start()
    with idle_daemon.connect() as upload:
        upload.send(b"put - name=never size=10\nabc")
        idle_daemon.wait_until("requests", "2")
        assert idle_daemon.ask(b"exit\n") == [b"OK exit"]
        assert code(upload.reply()[-1]) in ("cancelled", "stopping")
    idle_daemon.wait(0)
    idle_daemon.start()
    assert idle_daemon.ask(b"list\n")[-1] == b"OK list files=0 size=0 stored=0"
    assert idle_daemon.packs() == []


@pytest.mark.parametrize("unix", [False, True])
def test_exit_may_be_left_to_signals(idle_daemon: Daemon, unix: bool) -> None:
    idle_daemon.config(allow_exit="nobody")
    idle_daemon.start()
    with idle_daemon.connect(unix) as wire:
        assert code(wire.last(b"exit\n")) == "denied"
        assert wire.ask(b"ping\n") == [b"OK ping"]


# --- token --------------------------------------------------------------------------------------

TOKEN = "correct-horse"


@pytest.fixture
def guarded(idle_daemon: Daemon) -> Daemon:
    """A daemon that wants a token."""
    idle_daemon.config(token=TOKEN)
    idle_daemon.start()
    return idle_daemon


@pytest.mark.parametrize("unix", [False, True])
def test_without_the_token_little_works(guarded: Daemon, unix: bool) -> None:
    with guarded.connect(unix) as wire:
        assert fields(wire.last(b"hello\n"))["auth"] == "token"
        assert wire.ask(b"ping\n") == [b"OK ping"]
        assert wire.last(b"help\n") == b"OK help"
        for request in (
            "list",
            "stats",
            "exit",
            "put a",
            "get a b",
            "cat a",
            "stat a",
            "delete a",
            "rename a b",
            "verify",
        ):
            assert code(wire.last(request.encode() + b"\n")) == "auth", request
        assert wire.ask(b"quit\n") == [b"OK quit"]


def test_the_token_opens_the_session_and_only_this_one(guarded: Daemon) -> None:
    with guarded.connect() as wire, guarded.connect() as other:
        assert wire.ask(b"auth " + TOKEN.encode() + b"\n") == [b"OK auth"]
        assert code(wire.last(b"list\n")) == "OK"
        assert code(other.last(b"list\n")) == "auth"


@pytest.mark.parametrize("token", [b"wrong-horse", b'""', b"correct-horse2", b"correct", b"\xff"])
def test_a_wrong_token_is_refused_and_the_right_one_may_follow(guarded: Daemon, token: bytes) -> None:
    with guarded.connect() as wire:
        assert code(wire.last(b"auth " + token + b"\n")) == "auth"
        assert code(wire.last(b"list\n")) == "auth"
        assert wire.ask(b"auth " + TOKEN.encode() + b"\n") == [b"OK auth"]
        assert code(wire.last(b"list\n")) == "OK"


def test_content_sent_without_the_token_is_thrown_away(guarded: Daemon) -> None:
    with guarded.connect() as wire:
        assert code(wire.last(b"put - name=a size=5\nquit\n")) == "auth"
        assert code(wire.last(b"put - name=a size=chunked\nDATA 5\nquit\nDATA 0\n")) == "auth"
        assert wire.ask(b"ping\n") == [b"OK ping"]
        wire.send(b"put - name=a size=eof\nquit\nping\n")
        wire.half_close()
        assert code(wire.line()) == "auth"
        assert wire.at_eof()


def test_auth_without_a_token_to_show_is_ok(wire: Wire) -> None:
    assert wire.ask(b"auth anything\n") == [b"OK auth"]


def test_the_token_never_reaches_the_log(guarded: Daemon) -> None:
    guarded.ask(b"auth " + TOKEN.encode() + b"\n")
    guarded.ask(b"auth wrong-" + TOKEN.encode() + b"\n")
    guarded.stop()
    assert TOKEN not in guarded.log


def test_requests_right_behind_the_token_are_trusted(guarded: Daemon) -> None:
    with guarded.connect() as wire:
        wire.send(b"auth " + TOKEN.encode() + b"\nput - name=a size=2\nhilist\ncat a\n")
        assert [code(wire.reply()[-1]) for _ in range(3)] == ["OK"] * 3
        assert wire.rest() == b"hi"


# --- the last request ---------------------------------------------------------------------------


@pytest.mark.parametrize(("last", "answer"), [(b"quit", b"OK quit\n"), (b"cat small", b"abc")])
def test_the_last_request_waits_for_uploads_whose_frames_still_come(
    shared_daemon: Daemon, last: bytes, answer: bytes
) -> None:
    shared_daemon.ask(b"put - name=small replace=yes size=3\nabc")
    with shared_daemon.connect() as wire:
        wire.send(b"@u put - name=late replace=yes size=chunked\n@u DATA 3\nabc" + last + b"\nping\n")
        wire.send(b"@u DATA 3\ndef@u DATA 0\nping\n")
        assert fields(wire.line())["etag"] == etag(b"abcdef")
        assert wire.rest() == answer, "what follows the last request is not executed"


def test_a_client_that_says_quit_and_leaves_takes_its_upload_with_it(emptied: Daemon) -> None:
    with emptied.connect() as wire:
        wire.send(b"@u put - name=x size=chunked\n@u DATA 3\nabcquit\n")
        emptied.wait_until("requests", "2")
        wire.reset()
    emptied.wait_until("clients", "1")
    emptied.wait_until("memory_used", "0")
    assert code(emptied.ask(b"put - name=x size=1\nx")[-1]) == "OK"


def test_the_last_answer_outlives_input_that_nobody_read(shared_daemon: Daemon) -> None:
    with shared_daemon.connect() as wire:
        wire.send(b"x" * (5 << 20))
        assert code(wire.line()) == "too-long"
        assert wire.at_eof()


# --- clients that stand still -------------------------------------------------------------------


@pytest.mark.parametrize("size", [b"100", b"eof"])
def test_content_that_stops_coming_is_given_up(idle_daemon: Daemon, size: bytes) -> None:
    idle_daemon.config(idle_timeout=0.2)
    idle_daemon.start()
    with idle_daemon.connect() as wire:
        wire.send(b"put - name=x size=" + size + b"\nabc")
        assert code(wire.line()) == "usage"
        assert wire.at_eof()
    assert idle_daemon.stats()["memory_used"] == "0"
    assert idle_daemon.ask(b"list\n") == [b"OK list files=0 size=0 stored=0"]


def test_frames_that_stop_coming_end_their_upload_and_not_the_connection(idle_daemon: Daemon) -> None:
    idle_daemon.config(idle_timeout=0.5)
    idle_daemon.start()
    with idle_daemon.connect() as wire:
        wire.send(b"@u put - name=x size=chunked\n@u DATA 3\nabc")
        assert wire.line().startswith(b"@u ERR cancelled ")
        wire.send(b"@u DATA 5\nquit\n@u DATA 0\n")
        assert wire.ask(b"ping\n") == [b"OK ping"]
    assert idle_daemon.stats()["memory_used"] == "0"
