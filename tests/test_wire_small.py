"""Small files, which are stored together and share packs."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.harness import PART, Daemon, noise
from tests.wire import Wire, code, fields

COUNT = 200


def contents(count: int = COUNT, size: int = 100) -> dict[str, bytes]:
    """Files of different sizes, an empty one among them."""
    return {f"f{at}": noise(at * size, at) for at in range(count)}


def put_all(wire: Wire, files: Mapping[str, bytes]) -> list[bytes]:
    """Put files, tagged, all at once; returns the answers in the order in which they come."""
    lines = b"".join(
        b"@%b put - name=%b size=%d\n%b" % (name.encode(), name.encode(), len(content), content)
        for name, content in files.items()
    )
    sender = threading.Thread(target=wire.send, args=(lines,))
    sender.start()
    answers = [wire.line() for _ in files]
    sender.join()
    return answers


def get_all(wire: Wire, names: Iterator[str] | list[str]) -> dict[str, str]:
    """The MD5 of each file, got one after the other."""
    digests = {}
    for name in names:
        wire.send(b"get %b -\n" % name.encode())
        content, final = wire.frames()
        assert code(final) == "OK", final
        digests[name] = hashlib.md5(content).hexdigest()
    return digests


def digests_of(files: Mapping[str, bytes]) -> dict[str, str]:
    return {name: hashlib.md5(content).hexdigest() for name, content in files.items()}


def test_files_that_arrive_together_share_packs_and_syncs(daemon: Daemon) -> None:
    files = contents()
    with daemon.connect() as wire:
        before = int(daemon.stats()["journal_syncs"])
        answers = put_all(wire, files)
        assert {code(answer) for answer in answers} == {"OK"}
        assert len(daemon.packs()) < COUNT / 4
        assert int(daemon.stats()["journal_syncs"]) - before < COUNT / 4
        assert get_all(wire, list(files)) == digests_of(files)
        daemon.restart()
    with daemon.connect() as wire:
        assert get_all(wire, list(files)) == digests_of(files)
        assert wire.last(b"verify\n").startswith(b"OK verify files=%d " % COUNT)


def test_files_of_many_clients_share_packs(emptied: Daemon) -> None:
    clients = [emptied.connect() for _ in range(20)]
    for round_ in range(5):
        for at, client in enumerate(clients):
            client.send(b"put - name=c%d-%d size=4\nabcd" % (at, round_))
        assert {code(client.line()) for client in clients} == {"OK"}
    for client in clients:
        client.close()
    assert len(emptied.packs()) < 50


def test_small_files_of_the_daemons_machine_share_packs(emptied: Daemon) -> None:
    files = contents()
    for name, content in files.items():
        (emptied.root / name).write_bytes(content)
    with emptied.connect() as wire:
        wire.send(b"".join(b"@%b put %b\n" % (name.encode(), name.encode()) for name in files))
        assert {code(wire.line()) for _ in files} == {"OK"}
        assert len(emptied.packs()) < COUNT / 2
        assert get_all(wire, list(files)) == digests_of(files)


def test_a_shared_pack_goes_with_its_last_file(emptied: Daemon) -> None:
    files = contents(50)
    with emptied.connect() as wire:
        put_all(wire, files)
        names = list(files)
        for name in names[:-1]:
            assert code(wire.last(b"delete %b\n" % name.encode())) == "OK"
        assert get_all(wire, names[-1:]) == digests_of({names[-1]: files[names[-1]]})
        emptied.wait_until("waste", "0")
        (left,) = emptied.packs()
        size = left.stat().st_size
        assert int(fields(wire.last(b"delete %b\n" % names[-1].encode()))["freed"]) == size
        assert emptied.packs() == []


def test_a_shared_pack_stays_for_the_reader_of_a_deleted_file(daemon: Daemon) -> None:
    """Two files of one pack are deleted at once, one of them is being read by someone slow."""
    big = noise(PART * 15)
    with daemon.connect() as wire:
        assert {code(answer) for answer in put_all(wire, {"a": big, "b": b"b"})} == {"OK"}
        assert len(daemon.packs()) == 1
        with Wire(daemon.address, receive_buffer=4096) as slow:
            slow.send(b"get a -\n" * 30)  # more than the system's buffers take: one of them is under way
            slow.peek(10)
            wire.last(b"delete a b\n")
            assert len(daemon.packs()) == 1
            read = [slow.frames() for _ in range(30)]
        whole = [content == big for content, final in read if code(final) == "OK"]
        assert whole and all(whole) and len(whole) < 30
        assert {code(final) for _, final in read} <= {"OK", "not-found", "not-ready"}
        daemon.stop()
        assert daemon.packs() == []


def test_a_name_that_is_taken_fails_alone_and_its_bytes_are_given_back(emptied: Daemon) -> None:
    with emptied.connect() as wire:
        wire.ask(b"put - name=taken size=1\nx")
        answers = put_all(wire, {"a": b"1", "taken": b"2", "b": b"3"})
        assert sorted(code(answer) for answer in answers) == ["OK", "OK", "exists"]
        wire.ask(b"delete a b taken\n")
        assert emptied.packs() == []
        assert emptied.stats()["memory_used"] == "0"


def test_a_process_that_dies_over_a_batch_costs_nothing(daemon: Daemon) -> None:
    files = contents(400, 200)
    with daemon.connect() as wire:
        lines = [
            b"@%b put - name=%b size=%d\n%b" % (name.encode(), name.encode(), len(content), content)
            for name, content in files.items()
        ]
        sender = threading.Thread(target=wire.send, args=(b"".join(lines),))
        sender.start()
        answers = [wire.line() for _ in range(20)]
        for process in daemon.workers():
            process.kill()
        answers += [wire.line() for _ in range(len(files) - 20)]
        sender.join()
        assert {code(answer) for answer in answers} == {"OK"}
        assert get_all(wire, list(files)) == digests_of(files)
    assert daemon.staged() == []


def test_nothing_is_mixed_up_when_memory_is_short(tmp_path: Path) -> None:
    """Uploads that are almost complete are asked for their memory while they are handed over."""
    files = {f"f{at}": noise(1 + at * 7919 % (PART * 14), at) for at in range(150)}
    with Daemon(tmp_path, memory="16MiB") as daemon:
        daemon.start()
        clients = [daemon.connect() for _ in range(6)]
        names = list(files)
        shares = [{name: files[name] for name in names[at::6]} for at in range(6)]
        threads = [threading.Thread(target=put_all, args=pair) for pair in zip(clients, shares, strict=True)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert get_all(clients[0], names) == digests_of(files)
        for client in clients:
            client.close()


@pytest.mark.parametrize("size", [0, 1, PART - 1, PART, PART + 1, 16 * PART - 1, 16 * PART, 16 * PART + 1])
def test_any_size_around_what_is_small(wire: Wire, size: int) -> None:
    content = noise(size, size)
    for line, ending in (
        (b"put - name=s size=%d replace=yes\n" % size, b""),
        (b"@t put - name=s size=chunked replace=yes\n", b"@t DATA 0\n"),
    ):
        wire.send(line)
        for at in range(0, size, 1 << 20):
            piece = content[at : at + (1 << 20)]
            wire.send((b"@t DATA %d\n" % len(piece) if ending else b"") + piece)
        wire.send(ending)
        assert fields(wire.line())["parts"] == str(-(-size // PART))
        assert get_all(wire, ["s"]) == digests_of({"s": content})


def test_an_upload_that_is_refused_does_not_disturb_the_line(wire: Wire) -> None:
    wire.send(
        b"put - name=ok1 size=3\nabcput - size=4\nquitput - name=ok2 size=3 what=1\nquiput - name=ok3 size=3\nxyz"
    )
    assert [code(wire.line()) for _ in range(4)] == ["OK", "usage", "usage", "OK"]
