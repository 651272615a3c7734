"""What the daemon takes: under a hard limit of memory, and after very many requests."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.faults.conftest import Count
from tests.harness import Daemon, noise
from tests.wire import Wire, code

MIB = 1 << 20
#: What docs/design.md advises for a machine of 256 MiB.
MEMORY = "64MiB"
LIMIT = 256 * MIB
FILE_BYTES = 2 << 30


@pytest.fixture
def memory_cgroup() -> Iterator[Path]:
    """A memory cgroup (version 1) with a limit, removed when its processes are gone."""
    path = Path(f"/sys/fs/cgroup/memory/pfsd-test-{os.getpid()}")
    if os.geteuid() or not (path.parent / "memory.limit_in_bytes").exists():
        pytest.skip("needs root and a memory cgroup v1")
    path.mkdir()
    (path / "memory.limit_in_bytes").write_text(str(LIMIT))
    yield path
    path.rmdir()


@pytest.mark.root
@pytest.mark.promise("memory")
@pytest.mark.timeout(400)
def test_eight_big_files_at_once_fit_a_small_machine(
    memory_cgroup: Path, idle_daemon: Daemon, pytestconfig: pytest.Config
) -> None:
    """Half of them nothing but zeros, from sparse files; half made up on the fly, and smaller in no way."""
    if pytestconfig.getoption("--faults") != "full":
        pytest.skip("takes a minute, and 8 GiB on the disk: with --faults=full only")
    idle_daemon.config(memory=MEMORY, part_size="1MiB", processes=2, durability="none", log_level="info")
    idle_daemon.starter = ["sh", "-c", f'echo $$ > {memory_cgroup}/cgroup.procs && exec "$@"', "sh"]
    for at in range(4):
        with (idle_daemon.root / f"zeros{at}").open("wb") as file:
            file.truncate(FILE_BYTES)
    idle_daemon.start()
    answers: dict[str, str] = {}
    clients = [threading.Thread(target=_put_zeros, args=[idle_daemon, at, answers]) for at in range(4)]
    clients += [threading.Thread(target=_put_noise, args=[idle_daemon, at, answers]) for at in range(4)]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    assert set(answers.values()) == {"OK"} and len(answers) == 8
    idle_daemon.wait_until("memory_used", "0")
    stats = idle_daemon.stats()
    assert int(stats["memory_peak"]) <= int(stats["memory_limit"])
    assert "oom_kill 0" in (memory_cgroup / "memory.oom_control").read_text()
    print(
        "peak", (memory_cgroup / "memory.max_usage_in_bytes").read_text(), (memory_cgroup / "memory.stat").read_text()
    )
    assert stats["processes_replaced"] == "0"
    idle_daemon.ask(b"delete %b\n" % b" ".join(name.encode() for name in answers))
    idle_daemon.wait_until_packs(0)
    idle_daemon.stop()


def _put_zeros(daemon: Daemon, at: int, answers: dict[str, str]) -> None:
    with daemon.connect() as wire:
        wire.socket.settimeout(300)
        answers[f"zeros{at}"] = code(wire.last(b"put zeros%d\n" % at))


def _put_noise(daemon: Daemon, at: int, answers: dict[str, str]) -> None:
    piece = noise(MIB, at)
    with daemon.connect() as wire:
        wire.socket.settimeout(300)
        wire.send(b"put - name=noise%d size=%d\n" % (at, FILE_BYTES))
        for _ in range(FILE_BYTES // MIB):
            wire.send(piece)
        answers[f"noise{at}"] = code(wire.line())


# --- leaks ----------------------------------------------------------------------------------------

OPERATIONS = [
    b"put - name=%s size=100 replace=yes\n" + bytes(100),
    b"get %s -\n",
    b"stat %s\n",
    b"rename %s x%s\n",
    b"delete %s\n",
    b"put - name=%s size=chunked replace=yes\nDATA 3\nabcDATA 0\n",
    b"list nobody\n",
    b"frobnicate\n",
]


def _work(daemon: Daemon, chance: random.Random, operations: int) -> None:
    """So many requests of every kind, pipelined on connections that come and go; some leave without an answer."""
    while operations > 0:
        with daemon.connect() as wire:
            for _ in range(10):
                sent = [chance.choice(OPERATIONS).replace(b"%s", b"n%d" % chance.randrange(50)) for _ in range(50)]
                operations -= len(sent)
                wire.send(b"".join(b"@%d " % at + one if b"DATA" not in one else one for at, one in enumerate(sent)))
                _read_finals(wire, len(sent))
            if chance.random() < 0.2:
                wire.send(b"get n1 -\nput - name=n1 size=10\nabc")
                wire.reset()
    daemon.wait_until("clients", "1")


def _read_finals(wire: Wire, wanted: int) -> None:
    while wanted:
        line = wire.line()
        words = line.split(b" ")
        word = words[1] if line.startswith(b"@") else words[0]
        if word == b"DATA":
            wire.exactly(int(words[-1]))
        wanted -= word in (b"OK", b"ERR")


def _held(daemon: Daemon) -> tuple[list[int], dict[str, int]]:
    """The memory of the daemon and of each process in bytes, and what else it holds."""
    family = [psutil.Process(daemon.pid), *daemon.workers()]
    return [process.memory_full_info().uss for process in family], {
        "descriptors": sum(process.num_fds() for process in family),
        "threads": sum(process.num_threads() for process in family),
        "staged": len(daemon.staged()),
        "shared memory": sum("pfsd-slab" in part.path for process in family for part in process.memory_maps()),
    }


@pytest.mark.promise("memory")
@pytest.mark.timeout(400)
def test_very_many_requests_leave_nothing(idle_daemon: Daemon, count: Count) -> None:
    idle_daemon.config(durability="none", log_level="info")
    idle_daemon.start()
    chance = random.Random(0)
    _work(idle_daemon, chance, count(1_500, 20_000))
    memory, others = _held(idle_daemon)
    began = time.monotonic()
    total = int(os.environ.get("PFSD_TEST_REQUESTS", count(1_000, 30_000)))
    _work(idle_daemon, chance, total)
    print(f"{total / (time.monotonic() - began):.0f} requests a second")
    idle_daemon.wait_until("memory_used", "0")
    memory_after, others_after = _held(idle_daemon)
    print("bytes more in each process:", [after - before for before, after in zip(memory, memory_after, strict=True)])
    # The event loop's pool makes threads when they are wanted, up to its own limit.
    assert others_after.pop("threads") - others.pop("threads") <= min(32, (os.cpu_count() or 1) + 4)
    assert others_after == others
    assert all(after - before < 2 * MIB for before, after in zip(memory, memory_after, strict=True))
