"""A disk that fails, lies or is slow: one clear error for everyone concerned, nothing lost, nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.conftest import in_full
from tests.faults.inject import fired, inject
from tests.harness import PART, Daemon, noise
from tests.wire import Wire, code

CONTENT = noise(2 * PART + 100)
JOURNAL = "*/journal.jsonl"
STAGED = "*/store/tmp/*"


@pytest.fixture
def used(idle_daemon: Daemon) -> Iterator[Daemon]:
    """A daemon that is not started, on a store that holds the file `kept`."""
    idle_daemon.start()
    assert code(idle_daemon.ask(_put(b"kept"))[-1]) == "OK"
    idle_daemon.stop()
    yield idle_daemon


def _put(name: bytes, tag: bytes = b"", content: bytes = CONTENT) -> bytes:
    return b"%bput - name=%b size=%d\n%b" % (tag, name, len(content), content)


def get(daemon: Daemon, name: bytes) -> bytes:
    with daemon.connect() as wire:
        wire.send(b"get %b -\n" % name)
        content, final = wire.frames()
        assert code(final) == "OK", final
        return content


def assert_nothing_left(daemon: Daemon) -> None:
    """No memory in use, nothing staged, no bug in the log."""
    daemon.wait_until("memory_used", "0")
    assert daemon.staged() == []
    assert "Traceback" not in daemon.log


# --- a sync of the journal ----------------------------------------------------------------------


@pytest.mark.promise("flush")
@pytest.mark.parametrize("fault", ["1:eio", "1+:eio"])
def test_after_a_failed_sync_nothing_is_ok_and_it_is_not_tried_again(used: Daemon, fault: str) -> None:
    # The first sync is that of the start.
    number, _, action = fault.partition(":")
    inject(used, f"fdatasync:{JOURNAL}:{int(number.rstrip('+')) + 1}{'+' if '+' in number else ''}:{action}")
    used.start()
    with used.connect() as wire, used.connect() as other:
        wire.send(_put(b"a", b"@1 ") + _put(b"b", b"@2 ") + b"@3 rename kept elsewhere\n")
        other.send(b"delete kept\n")
        replies = wire.rest().splitlines() + other.rest().splitlines()
    used.wait(74)
    assert {code(reply) for reply in replies if b"put" not in reply} <= {"io", "stopping", "not-ready"}
    assert not any(b"OK" in reply for reply in replies), replies
    assert len(fired(used)) == 1, "a failed sync must not be tried again"
    assert "Traceback" not in used.log
    inject(used)
    used.start()
    names = {row.split(b"name=")[1] for row in used.ask(b"list\n")[:-1]}
    assert names <= {b"kept", b"elsewhere", b"a", b"b"} and len(names & {b"kept", b"elsewhere"}) <= 1
    for name in names:
        assert get(used, name) == CONTENT
    assert used.ask(b"verify\n")[-1].startswith(b"OK verify ")


# --- everything else ----------------------------------------------------------------------------


#: What fails, and whether a put is refused by it.
STEPS = [
    f"daemon.write_all:{JOURNAL}",
    "daemon.rename:*/store/tmp/*",
    "daemon.fsync_dir:*/store/packs/00000",
    f"process.open_file:{STAGED}",
    f"process.writev_all:{STAGED}",
    f"process.fdatasync:{STAGED}",
]
#: What the system says, and what the client is told then.
EXPECTED = (
    dict.fromkeys(["enospc", "edquot"], "no-space")
    | dict.fromkeys(["emfile", "enomem"], "busy")
    | dict.fromkeys(["eio", "eintr", "eagain", "eacces", "erofs", "enametoolong", "exdev", "estale"], "io")
)
#: Tried in `make test` as well.
OFTEN = {(0, "eio"), (1, "enospc")}


@pytest.mark.promise("whole")
@pytest.mark.promise("full")
@pytest.mark.parametrize(
    ("step", "errno"),
    [
        pytest.param(step, errno, marks=[] if (STEPS.index(step), errno) in OFTEN else pytest.mark.thorough)
        for step in STEPS
        for errno in EXPECTED
    ],
)
def test_a_put_that_the_disk_refuses_leaves_nothing(used: Daemon, step: str, errno: str) -> None:
    expected = EXPECTED[errno]
    inject(used, f"{step}:1+:{errno}")
    used.start()
    packs = used.packs()
    small = noise(3000)
    with used.connect() as wire:
        wire.send(b"".join(_put(b"n%d" % at, b"@%d " % at, small) for at in range(3)) + _put(b"big", b"@big "))
        replies = [wire.reply()[-1] for _ in range(4)]
        assert {code(reply) for reply in replies} == {expected}, replies
    assert fired(used)
    assert used.ask(b"list\n")[-1].startswith(b"OK list files=1 ")
    assert get(used, b"kept") == CONTENT
    used.wait_until_packs(len(packs))
    assert_nothing_left(used)
    inject(used)
    used.restart()
    assert used.packs() == packs
    assert code(used.ask(_put(b"n0"))[-1]) == "OK"


@pytest.mark.promise("full")
@pytest.mark.parametrize("step", [f"daemon.write_all:{JOURNAL}", *in_full(f"daemon.writev_all:{JOURNAL}")])
def test_after_one_refused_write_puts_work_again(used: Daemon, step: str) -> None:
    inject(used, f"{step}:1:enospc")
    used.start()
    assert code(used.ask(_put(b"a"))[-1]) == "no-space"
    assert code(used.ask(_put(b"a"))[-1]) == "OK"
    used.restart()
    assert get(used, b"a") == CONTENT == get(used, b"kept")


@pytest.mark.promise("durable")
@pytest.mark.parametrize("fault", [*in_full(f"daemon.write_all:{JOURNAL}"), f"process.writev_all:{STAGED}"])
@pytest.mark.parametrize("lie", [*in_full("skip"), "half"])
def test_a_write_that_only_claims_success_is_not_ok(used: Daemon, fault: str, lie: str) -> None:
    inject(used, f"{fault}:1+:{lie}")
    used.start()
    reply = used.ask(_put(b"a"))[-1]
    assert fired(used)
    assert code(reply) == "io", reply
    assert get(used, b"kept") == CONTENT
    assert_nothing_left(used)
    inject(used)
    used.restart()
    assert code(used.ask(_put(b"a"))[-1]) == "OK"
    assert get(used, b"a") == CONTENT


@pytest.mark.promise("durable")
@pytest.mark.parametrize("errno", [*in_full("eio", "eacces"), "erofs"])
def test_packs_that_cannot_be_removed_hold_up_nobody(used: Daemon, errno: str) -> None:
    inject(used, f"unlink:*.pack:1+:{errno}")
    used.start()
    assert code(used.ask(b"delete kept\n")[-1]) == "OK"
    assert fired(used) and used.packs()
    assert used.ask(b"list\n")[-1].startswith(b"OK list files=0 ")
    assert_nothing_left(used)
    inject(used)
    used.restart()
    assert used.packs() == []


@pytest.mark.promise("checked")
@pytest.mark.parametrize("call", [*in_full("open_file:*.pack"), "read:*.pack"])
@pytest.mark.parametrize("errno", ["eio", *in_full("estale", "emfile")])
def test_a_pack_that_cannot_be_read_is_one_error(used: Daemon, call: str, errno: str) -> None:
    inject(used, f"process.{call}:1:{errno}")
    used.start()
    with used.connect() as wire:
        assert code(wire.last(b"get kept copy\n")) == "io"
        assert fired(used)
        assert list(used.root.iterdir()) == []
    assert_nothing_left(used)


# --- a slow disk --------------------------------------------------------------------------------


@pytest.mark.promise("memory")
@pytest.mark.parametrize("where", [JOURNAL, *in_full(STAGED)])
def test_a_slow_sync_holds_up_nobody_else(used: Daemon, where: str) -> None:
    inject(used, f"fdatasync:{where}:{2 if where == JOURNAL else '1+'}:sleep=2")
    used.start()
    with used.connect() as slow, used.connect() as quick:
        slow.send(_put(b"a"))
        while not fired(used):  # the sync has begun
            quick.ask(b"ping\n")
        quick.send(b"list\n" + b"get kept -\n")
        assert quick.reply()[-1].startswith(b"OK list files=1 ")
        content, _ = quick.frames()
        assert content == CONTENT
        assert _is_silent(slow), "it was over before the others were answered"
        assert code(slow.reply()[-1]) == "OK"


def _is_silent(wire: Wire) -> bool:
    wire.socket.setblocking(False)
    try:
        return not wire.socket.recv(1, 2)  # MSG_PEEK
    except BlockingIOError:
        return True
    finally:
        wire.socket.settimeout(30)
