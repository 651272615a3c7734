"""The daemon's life: start, refusal to start, restart, crash, signals."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pfsd import config
from tests.harness import PART, Daemon, etag, free_port, noise
from tests.wire import Wire, code, fields


def put(daemon: Daemon, name: str, content: bytes) -> dict[str, str]:
    reply = daemon.ask(b"put - name=%s size=%d\n" % (name.encode(), len(content)) + content)[-1]
    assert code(reply) == "OK", reply
    return fields(reply)


# --- starting -----------------------------------------------------------------------------------


def test_ready_lines_name_the_addresses(daemon: Daemon) -> None:
    assert daemon.ready_lines == [f"pfsd ready on 127.0.0.1:{daemon.port}", f"pfsd ready on unix:{daemon.socket_path}"]


def test_the_store_is_private(daemon: Daemon) -> None:
    put(daemon, "a", b"abc")
    for path in [daemon.store, *daemon.store.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


@pytest.mark.promise("alone")
def test_a_second_daemon_on_the_store_does_not_start(daemon: Daemon, tmp_path: Path) -> None:
    put(daemon, "a", b"abc")
    link = tmp_path / "link"
    link.symlink_to(daemon.store)
    home = tmp_path / "second"
    home.mkdir()
    with Daemon(home) as second:
        for path in (daemon.store, link):
            second.config(path=str(path))
            exit_code, words = second.start_fails()
            assert exit_code == 73 and "Traceback" not in words and str(path) in words
    assert code(daemon.ask(b"verify\n")[-1]) == "OK"


def test_the_store_is_free_after_a_crash(daemon: Daemon) -> None:
    daemon.kill()
    daemon.start()
    assert daemon.ask(b"ping\n") == [b"OK ping"]


def test_a_taken_port_is_told(idle_daemon: Daemon) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        idle_daemon.config(listen=address)
        exit_code, words = idle_daemon.start_fails()
    assert exit_code == 71 and address in words and "Traceback" not in words


def test_an_address_of_another_machine_is_told(idle_daemon: Daemon) -> None:
    idle_daemon.config(listen="192.0.2.1:7373", token="long-enough")
    assert idle_daemon.start_fails()[0] == 71


def test_an_open_address_needs_a_token(idle_daemon: Daemon) -> None:
    idle_daemon.config(listen="0.0.0.0:0")
    assert idle_daemon.start_fails()[0] == 78
    idle_daemon.config(token="long-enough")
    idle_daemon.start()
    assert idle_daemon.ask(b"ping\n") == [b"OK ping"]


def test_a_stale_unix_socket_is_replaced(idle_daemon: Daemon) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(idle_daemon.socket_path))
    idle_daemon.start()
    with idle_daemon.connect(unix=True) as wire:
        assert wire.ask(b"ping\n") == [b"OK ping"]


def test_a_unix_socket_in_use_or_a_file_in_its_place_is_left_alone(idle_daemon: Daemon) -> None:
    idle_daemon.socket_path.write_bytes(b"precious")
    assert idle_daemon.start_fails()[0] == 71
    assert idle_daemon.socket_path.read_bytes() == b"precious"
    idle_daemon.socket_path.unlink()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(idle_daemon.socket_path))
        server.listen()
        assert idle_daemon.start_fails()[0] == 71
        assert idle_daemon.socket_path.exists()


@pytest.mark.parametrize(
    ("key", "value"),
    [("memory", "1KiB"), ("roots", ["missing"]), ("bogus", 1)],  # all others: tests/test_config.py
)
def test_a_bad_setting_is_told_in_one_line(idle_daemon: Daemon, key: str, value: object) -> None:
    idle_daemon.config(**{key: value})
    exit_code, words = idle_daemon.start_fails()
    assert exit_code == 78
    assert len(words.strip().splitlines()) == 1 and key in words and "config.yaml" in words


def test_the_environment_overrides_the_file(idle_daemon: Daemon) -> None:
    idle_daemon.environ = {"PFSD_TOKEN": "from-the-environment", "PFSD_PROCESSES": "1"}
    idle_daemon.start()
    with idle_daemon.connect() as wire:
        assert wire.ask(b"auth from-the-environment\n") == [b"OK auth"]
        assert b"STAT processes=1" in wire.ask(b"stats\n")


def test_a_store_that_cannot_be_made_is_told(idle_daemon: Daemon) -> None:
    (idle_daemon.home / "file").write_bytes(b"")
    idle_daemon.config(path="file/store")
    exit_code, words = idle_daemon.start_fails()
    assert exit_code == 73 and "Traceback" not in words


def test_a_damaged_registry_is_told_and_touched_no_further(daemon: Daemon) -> None:
    for at in range(3):
        put(daemon, f"f{at}", b"abc")
    daemon.stop()
    journal = daemon.store / "journal.jsonl"
    content = bytearray(journal.read_bytes())
    content[len(content) // 2] ^= 1
    journal.write_bytes(content)
    exit_code, words = daemon.start_fails()
    assert exit_code == 65 and "Traceback" not in words and "line" in words
    assert journal.read_bytes() == content and len(daemon.packs()) >= 1


def test_a_missing_registry_beside_packs_is_told(daemon: Daemon) -> None:
    put(daemon, "a", b"abc")
    daemon.stop()
    journal = daemon.store / "journal.jsonl"
    journal.unlink()
    assert daemon.start_fails()[0] == 65
    assert len(daemon.packs()) == 1


# --- restart and crash --------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_files_survive_a_restart(daemon: Daemon, how: str) -> None:
    contents = {"small": b"abc", "void": b"", "big": noise(40 * PART + 1)}
    for name, content in contents.items():
        put(daemon, name, content)
    before = daemon.ask(b"list\n")
    parts = daemon.ask(b"stat big parts=yes\n")
    for _ in range(1 if how == "stop" else 2):  # what the start after a crash has mended is whole, too
        daemon.stop() if how == "stop" else daemon.kill()
        daemon.start()
        assert daemon.ask(b"list\n") == before, "created and ids do not change either"
        assert daemon.ask(b"stat big parts=yes\n") == parts
        for name, content in contents.items():
            with daemon.connect() as wire:
                wire.send(b"get %s -\n" % name.encode())
                assert wire.frames()[0] == content


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_ids_are_never_used_again(daemon: Daemon, how: str) -> None:
    used = [int(put(daemon, "a", b"1")["id"])]
    for _ in range(2):
        daemon.ask(b"delete a\n")
        daemon.stop() if how == "stop" else daemon.kill()
        daemon.start()
        used.append(int(put(daemon, "a", b"2")["id"]))
    assert used == sorted(set(used))


def test_ids_of_puts_given_up_before_a_restart_are_not_used_again(daemon: Daemon) -> None:
    with daemon.connect() as wire:
        for _ in range(3):
            wire.ask(b"put - name=a size=chunked\nABORT\n")
    first = int(put(daemon, "a", b"1")["id"])
    daemon.ask(b"delete a\n")
    daemon.restart()
    assert int(put(daemon, "a", b"1")["id"]) > first


def test_a_crash_in_the_middle_of_puts_leaves_whole_files_only(daemon: Daemon) -> None:
    kept = {f"kept{at}": noise(at * PART, at) for at in range(4)}
    for name, content in kept.items():
        put(daemon, name, content)
    packs = daemon.packs()
    wires = [daemon.connect() for _ in range(3)]
    wires[0].send(b"put - name=half0 size=%d\n" % (60 * PART) + noise(50 * PART))
    wires[1].send(b"put - name=half1 size=chunked\n" + (b"DATA %d\n" % PART + bytes(PART)) * 40)
    wires[2].send(b"put - name=half2 size=5\nabc")
    daemon.wait_until("requests", "4")
    daemon.kill()
    daemon.start()
    rows = daemon.ask(b"list\n")
    assert [fields(row)["name"] for row in rows[:-1]] == list(kept)
    assert code(daemon.ask(b"verify\n")[-1]) == "OK"
    assert daemon.packs() == packs and daemon.staged() == []
    assert code(daemon.ask(b"put - name=half0 size=1\nx")[-1]) == "OK"
    for wire in wires:
        wire.close()


def test_answers_are_true_however_often_it_crashes(daemon: Daemon) -> None:
    """Whatever was answered OK is there after a crash right behind the answer."""
    expected: dict[str, bytes] = {}
    for turn in range(3):
        wires = [daemon.connect() for _ in range(6)]
        for at, wire in enumerate(wires):
            content = noise(at * 20_000, turn * 10 + at)
            wire.send(b"put - name=t%d-%d size=%d\n" % (turn, at, len(content)) + content)
        for at, wire in enumerate(wires[:4]):
            assert code(wire.line()) == "OK"
            expected[f"t{turn}-{at}"] = noise(at * 20_000, turn * 10 + at)
        daemon.kill()
        for wire in wires:
            wire.close()
        daemon.start()
        with daemon.connect() as wire:
            for name, content in expected.items():
                wire.send(b"get %s -\n" % name.encode())
                assert wire.frames()[0] == content, name
            assert code(wire.last(b"verify\n")) == "OK"


def test_settings_for_new_files_leave_old_ones_readable(daemon: Daemon) -> None:
    old, new = noise(5 * PART), noise(5 * PART, 1) + bytes(PART)
    put(daemon, "old", old)
    daemon.config(part_size="8KiB", codec="zlib")
    daemon.restart()
    assert put(daemon, "new", new)["etag"] == etag(new, 8 << 10)
    for name, content in (("old", old), ("new", new)):
        with daemon.connect() as wire:
            wire.send(b"get %s -\n" % name.encode())
            assert wire.frames()[0] == content


@pytest.mark.parametrize("part_size", [4 << 10, 64 << 10, 1 << 20])
@pytest.mark.promise("memory")
def test_the_least_memory_that_is_accepted_is_enough(idle_daemon: Daemon, part_size: int) -> None:
    least = config.least_memory(1, config.worker_overhead("zstd", 1, part_size), part_size)
    idle_daemon.config(memory=least - 1, part_size=part_size, processes=1)
    assert idle_daemon.start_fails()[0] == 78
    idle_daemon.config(memory=least)
    idle_daemon.start()
    content = noise(10 * part_size + 1)
    (idle_daemon.root / "b").write_bytes(content)
    with idle_daemon.connect() as wire:
        wire.send(b"@1 put b\n@2 put - name=a size=%d\n" % len(content) + content)
        assert [fields(wire.line())["etag"] for _ in range(2)] == [etag(content, part_size)] * 2
        wire.send(b"@1 get a c\n@2 verify\n@3 get b d\n")
        assert [code(wire.line()) for _ in range(3)] == ["OK"] * 3
        wire.send(b"get a -\n")
        assert wire.frames()[0] == (idle_daemon.root / "c").read_bytes() == content
    stats = idle_daemon.stats()
    assert int(stats["memory_peak"]) <= int(stats["memory_limit"]) and stats["memory_used"] == "0"


def test_packs_of_nobody_are_swept_at_the_start(daemon: Daemon) -> None:
    put(daemon, "a", b"abc")
    (pack,) = daemon.packs()
    daemon.stop()
    shutil.copy(pack, pack.with_name(f"{int(pack.stem, 16) + 5:016x}.pack"))
    daemon.start()
    assert daemon.packs() == [pack]
    assert code(daemon.ask(b"verify\n")[-1]) == "OK"


# --- signals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.promise("stop")
def test_a_signal_lets_running_requests_finish(daemon: Daemon, number: signal.Signals) -> None:
    with daemon.connect() as upload:
        upload.send(b"put - name=last size=6\nabc")
        daemon.wait_until("requests", "2")
        daemon.note_family()
        os.kill(daemon.pid, number)
        wait_until_refused(daemon)
        upload.send(b"def")
        assert code(upload.line()) == "OK"
        assert upload.at_eof()
    daemon.wait(0)
    daemon.start()
    assert fields(daemon.ask(b"list\n")[0])["name"] == "last"


def test_ctrl_c_for_the_whole_group_is_one_clean_stop(daemon: Daemon) -> None:
    put(daemon, "a", noise(PART))
    daemon.note_family()
    for process in [psutil.Process(daemon.pid), *psutil.Process(daemon.pid).children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # it has ended with the daemon, which got its signal first
            process.send_signal(signal.SIGINT)
    daemon.wait(0)
    assert "Traceback" not in daemon.log


def wait_until_refused(daemon: Daemon) -> None:
    """Wait until a stopping daemon has closed its door."""
    while True:
        try:
            daemon.connect().close()
        except (ConnectionRefusedError, ConnectionResetError):
            return


@pytest.mark.promise("stop")
def test_a_second_signal_does_not_wait(daemon: Daemon) -> None:
    with daemon.connect() as upload:
        upload.send(b"put - name=never size=6\nabc")
        daemon.wait_until("requests", "2")
        daemon.note_family()
        os.kill(daemon.pid, signal.SIGTERM)
        wait_until_refused(daemon)
        os.kill(daemon.pid, signal.SIGTERM)
        assert code(upload.line()) in ("cancelled", "stopping")
    daemon.wait(0)
    assert daemon.packs() == []


def test_an_idle_daemon_stops_without_a_trace(daemon: Daemon) -> None:
    daemon.restart()
    daemon.stop()
    assert "Traceback" not in daemon.log
    assert not (daemon.store / "tmp").exists() or daemon.staged() == []


@pytest.mark.promise("processes")
def test_workers_die_with_a_killed_daemon(daemon: Daemon) -> None:
    assert len(daemon.workers()) == 2
    daemon.kill()  # asserts that no child is left


def test_both_loops_serve_alike(idle_daemon: Daemon) -> None:
    content = noise(40 * PART + 3)
    for loop in ("asyncio", "uvloop"):
        idle_daemon.config(loop=loop)
        idle_daemon.start()
        assert put(idle_daemon, loop, content)["etag"] == etag(content)
        with idle_daemon.connect() as wire:
            for request in (b"get asyncio -\n", b"@t get asyncio -\n"):
                wire.send(request)
                assert wire.frames()[0] == content
            wire.send(b"cat asyncio\n")
            assert wire.rest() == content
        with idle_daemon.connect() as cut:
            cut.send(b"put - name=cut size=100\nabc")
            cut.half_close()
            assert code(cut.line()) == "usage"
        with idle_daemon.connect() as eof:
            eof.send(b"put - name=%s-eof size=eof\n" % loop.encode() + content)
            eof.half_close()
            assert fields(eof.line())["etag"] == etag(content)
        idle_daemon.stop()


def test_a_free_port_can_be_asked_for(idle_daemon: Daemon) -> None:
    port = free_port()
    idle_daemon.config(listen=f"127.0.0.1:{port}")
    idle_daemon.start()
    assert idle_daemon.ready_lines == [f"pfsd ready on 127.0.0.1:{port}"]
    with Wire(("127.0.0.1", port)) as wire:
        assert wire.ask(b"ping\n") == [b"OK ping"]


# --- exit and what stands in its way --------------------------------------------------------------


def test_requests_behind_an_exit_do_not_hold_it_up(idle_daemon: Daemon) -> None:
    idle_daemon.config(stop_timeout=3600)
    idle_daemon.start()
    with idle_daemon.connect() as wire:
        wire.send(b"exit\nping\nput - name=late size=3\nabc")
        assert wire.line() == b"OK exit"
        assert wire.line() == b"OK ping"
        assert code(wire.line()) == "stopping"
    idle_daemon.wait(0)


@pytest.mark.parametrize("second", [b"exit\n", b""])
@pytest.mark.promise("stop")
def test_an_exit_goes_on_without_its_client_and_beside_another(idle_daemon: Daemon, second: bytes) -> None:
    idle_daemon.config(stop_timeout=3600)
    idle_daemon.start()
    with idle_daemon.connect() as upload, idle_daemon.connect() as asking:
        upload.send(b"put - name=last size=6\nabc")
        idle_daemon.wait_until("requests", "2")
        idle_daemon.note_family()
        asking.send(second.replace(b"exit", b"@a exit") + b"@b exit\n")
        wait_until_refused(idle_daemon)
        asking.reset()
        upload.send(b"def")
        assert code(upload.line()) == "OK"
    idle_daemon.wait(0)


@pytest.mark.promise("stop")
def test_processes_that_hang_do_not_stop_the_exit(idle_daemon: Daemon) -> None:
    idle_daemon.config(stop_timeout=1)
    idle_daemon.start()
    (idle_daemon.root / "source").write_bytes(noise(PART))
    for worker in idle_daemon.workers():
        worker.suspend()
    with idle_daemon.connect() as put_, idle_daemon.connect() as asking:
        put_.send(b"put source\n")
        idle_daemon.wait_until("requests", "2")
        assert asking.last(b"exit\n") == b"OK exit"
        assert code(put_.line()) in ("cancelled", "stopping")
    idle_daemon.wait(0)
    idle_daemon.start()
    assert idle_daemon.packs() == []


def test_a_daemon_whose_store_is_gone_says_so(daemon: Daemon) -> None:
    shutil.rmtree(daemon.store)
    assert fields(daemon.ask(b"hello\n")[0])["state"] == "readonly"
    assert daemon.stats()["state"] == "readonly"
    with daemon.connect() as wire:
        assert code(wire.last(b"put - name=a size=3\nabc")) == "io"
    daemon.wait(74)  # the journal that answers would be written to is not where it would be looked for


def test_large_parts_of_old_files_need_no_more_memory_than_they_have(idle_daemon: Daemon) -> None:
    content = noise(20 << 20)
    idle_daemon.config(part_size="8MiB", memory="128MiB", processes=1)
    idle_daemon.start()
    put(idle_daemon, "large", content)
    idle_daemon.stop()
    idle_daemon.config(part_size=PART, memory="24MiB")
    idle_daemon.start()
    with idle_daemon.connect() as wire:
        wire.send(b"get large -\n")
        assert wire.frames()[0] == content


def test_a_start_without_processes_is_refused_in_one_line(idle_daemon: Daemon) -> None:
    idle_daemon.config(log_level="info")
    idle_daemon.prelude = """
from multiprocessing import forkserver
def refuse(self):
    raise OSError("no socket to be had")
forkserver.ForkServer.ensure_running = refuse
"""
    code, said = idle_daemon.start_fails()
    assert code == 70 and "the I/O processes cannot be started" in said
    assert "Traceback" not in said and said.count("\n") == 1
