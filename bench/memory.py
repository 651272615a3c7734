"""Holds the daemon to its memory: everything it can be asked, all at once, while its memory is watched.

A daemon on a fresh store gets every way of storing and retrieving a file, first one after the other, then beside each
other. All the while the memory of the daemon and of all processes below it is summed up every 20 ms, and the highest
sum less the one at rest must stay below `memory`. Every byte that comes back is compared; at the end no pack and no
process may be left.

Memory is PSS, the proportional set size: a page that several processes share counts once, however they share it. The
pages of programs and libraries are shared with the rest of the machine as well, and what others start or end moves
the sum either way; so the sum without them has to stay below `memory` too.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import suite
from daemon import PIECE_BYTES, ROOT, Daemon, Failed, fields, parse_size, quote, require_same
from figures import MIB, Row

SAMPLE_SECONDS = 0.02
SWITCH_SECONDS = 0.0005
#: How long processes may take to end once the daemon has.
END_SECONDS = 10
#: Size of each file that is made up when none is named; with more memory half of it, so that two fill it.
MADE_UP_BYTES = 256 * MIB
QUICK_BYTES = 32 * MIB
PART_BYTES = MIB


# --- memory -------------------------------------------------------------------------------------


class Usage(NamedTuple):
    """The memory of one process in bytes, by what backs it; `shared` is the slab, `file` programs and libraries."""

    role: str
    private: int
    shared: int
    file: int

    @property
    def data(self) -> int:
        """Without programs and libraries."""
        return self.private + self.shared

    @property
    def total(self) -> int:
        return self.data + self.file


Sample = dict[int, Usage]  # by process id


def total(sample: Sample) -> int:
    """Bytes of all processes of a sample."""
    return sum(usage.total for usage in sample.values())


def data(sample: Sample) -> int:
    """Bytes of all processes of a sample without programs and libraries."""
    return sum(usage.data for usage in sample.values())


_ROLLUP = re.compile(r"^(Pss_Anon|Pss_Shmem|Pss_File|SwapPss): +(\d+) kB", re.MULTILINE)


def usage_of(pid: int, depth: int) -> Usage:
    """The memory of a process; OSError when it is gone. `depth` counts from the daemon."""
    kib = dict.fromkeys(("Pss_Anon", "Pss_Shmem", "Pss_File", "SwapPss"), 0)
    kib |= {key: int(value) for key, value in _ROLLUP.findall(Path(f"/proc/{pid}/smaps_rollup").read_text())}
    return Usage(
        role=role_of(pid, depth),
        private=1024 * (kib["Pss_Anon"] + kib["SwapPss"]),
        shared=1024 * kib["Pss_Shmem"],
        file=1024 * kib["Pss_File"],
    )


def role_of(pid: int, depth: int) -> str:
    """What a process below the daemon is there for."""
    if depth != 1:
        return "I/O process" if depth else "daemon"
    return "forkserver" if b"forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes() else "resource tracker"


def family(pid: int, depth: int = 0) -> list[tuple[int, int]]:
    """A process and all below it, with their depths."""
    found = [(pid, depth)]
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            pids = children.read_text().split()
        except OSError:  # the thread is gone
            continue
        for child in pids:
            found += family(int(child), depth + 1)
    return found


def sample(pid: int) -> Sample:
    """The memory of a process and all below it, now."""
    found = {}
    for each, depth in family(pid):
        try:
            found[each] = usage_of(each, depth)
        except OSError:  # ended meanwhile
            continue
    return found


@dataclass
class Phase:
    """Something that was done."""

    name: str
    highest: int = 0


class Sampler(threading.Thread):
    """Samples a process and all below it until it is told to stop, and keeps the highest sum."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._pid = pid
        self._stopped = threading.Event()
        self.count = 0
        self.idle = self.peak = self.peak_data = sample(pid)
        #: What was done, and the highest sum of data meanwhile.
        self.phases: list[Phase] = []

    def run(self) -> None:
        while not self._stopped.wait(SAMPLE_SECONDS):
            self._look()

    def phase(self, name: str) -> None:
        """From now on this is done."""
        self.phases.append(Phase(name))

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self.join()

    def _look(self) -> None:
        now = sample(self._pid)
        self.count += 1
        self.peak = max(self.peak, now, key=total)
        self.peak_data = max(self.peak_data, now, key=data)
        for phase in self.phases[-1:]:
            phase.highest = max(phase.highest, data(now))


# --- what has to come back ----------------------------------------------------------------------


class Expected:
    """Compares bytes that arrive with a stretch of a file, by default all of it; Failed at the first that differs."""

    def __init__(self, file: Path, offset: int = 0, length: int | None = None) -> None:
        self._file = file.open("rb", buffering=0)
        self._at = offset
        size = file.stat().st_size
        self._end = size if length is None else min(size, offset + length)

    def take(self, data: bytes) -> None:
        """The next bytes have arrived."""
        if len(data) > self._end - self._at or os.pread(self._file.fileno(), len(data), self._at) != data:
            raise Failed(f"wrong bytes came back for {self._file.name} from {self._at}")
        self._at += len(data)

    def close(self) -> None:
        """No more will come."""
        self._file.close()
        if self._at != self._end:
            raise Failed(f"{self._file.name} ended at {self._at} in place of {self._end}")


@dataclass
class Request:
    """A request line; what its DATA frames must hold; and what is to be done when it is answered."""

    line: str
    content: Expected | None = None
    after: Callable[[], None] = lambda: None


def ask_at_once(daemon: Daemon, requests: Sequence[Request]) -> None:
    """Send all requests tagged over one connection and take their replies as they come."""
    waiting = {f"@{number}".encode(): request for number, request in enumerate(requests)}
    with daemon.connect() as sock, sock.makefile("rb", PIECE_BYTES) as replies:
        for tag, request in waiting.items():
            sock.sendall(tag + b" " + os.fsencode(request.line) + b"\n")
        while waiting:
            tag, word, rest = next(replies, b"- ERR closed").split(maxsplit=2)
            if word == b"ERR":
                raise Failed(f"{tag.decode()} {word.decode()} {rest.decode().strip()}")
            request = waiting[tag]
            if word == b"DATA" and request.content:
                request.content.take(replies.read(int(rest)))
            elif word == b"OK":
                del waiting[tag]
                finish(request)


def finish(request: Request) -> None:
    """A request is answered: check that all came back."""
    if request.content:
        request.content.close()
    request.after()


# --- the workload -------------------------------------------------------------------------------


@dataclass
class Workload:
    """One after the other, and at once, on all files."""

    daemon: Daemon
    files: Sequence[Path]
    out: Path
    sampler: Sampler
    names: list[str] = field(default_factory=list)

    def run(self) -> None:
        """All of it; the store is empty in the end."""
        for number, file in enumerate(self.files):
            self._one_by_one(file, f"{number}")
        for number, file in enumerate(self.files):
            self._at_once(file, self.files[number - 1], f"{number}")
        self._inspect()
        self._phase("delete")
        self.daemon.ask("delete " + " ".join(self.names))

    def _one_by_one(self, file: Path, key: str) -> None:
        path, client, upload = f"path-{key}", f"client-{key}", f"upload-{key}"
        self._phase(f"put by path, {file.name}")
        self._put_path(file, path)
        self._phase("put from the standard input of client.py")
        self._put_client(file, client)
        self._phase("put of announced size")
        self._put_socket(file, upload)
        self._phase("get by path")
        self._get_path(file, path)
        self._phase("get over the connection")
        self._get_socket(file, client)
        self._phase("cat")
        self._cat(file, upload)
        self._phase("ranges")
        self._ranges(file, path)

    def _at_once(self, file: Path, other: Path, key: str) -> None:
        """Seven at once: four on a connection with tags, three on connections of their own."""
        self._phase(f"seven at once, {file.name}")
        both, upload = f"both-{key}", f"together-{key}"
        target = self.out / both
        tagged = [
            Request(f"put {quote(file)} name={both}"),
            Request(f"get path-{key} {quote(target)}", after=lambda: require_same(file, target)),
            Request(f"get client-{key} -", Expected(file)),
            Request(f"get upload-{key} - offset={PART_BYTES // 2}", Expected(file, PART_BYTES // 2)),
        ]
        other_key = f"{self.files.index(other)}"
        self._together(
            partial(ask_at_once, self.daemon, tagged),
            partial(self._put_socket, file, upload),
            partial(self._cat, other, f"client-{other_key}"),
            partial(self._get_socket, other, f"path-{other_key}"),
        )
        target.unlink()
        self.names.append(both)
        self._phase("four at once, of what was just stored")
        self._together(
            partial(self._cat, file, both),
            partial(self._get_path, file, upload),
            partial(self._ranges, file, both),
            partial(self._get_socket, file, upload),
        )

    def _together(self, *steps: Callable[[], None]) -> None:
        with ThreadPoolExecutor(len(steps)) as pool:
            for future in [pool.submit(step) for step in steps]:
                future.result()

    def _inspect(self) -> None:
        """What is listed is what was stored, and all of it is sound."""
        self._phase("list, stat, verify")
        *rows, end = self.daemon.ask("list")
        if sorted(fields(row)["name"] for row in rows) != sorted(self.names):
            raise Failed(f"listed are {rows}")
        for number, file in enumerate(self.files):
            parts = -(-file.stat().st_size // PART_BYTES)
            *rows, _ = self.daemon.ask(f"stat path-{number} parts=yes")
            if len(rows) != parts + 1:
                raise Failed(f"{file} has {len(rows) - 1} parts in place of {parts}")
        verified = fields(self.daemon.ask("verify")[-1])
        if (verified["files"], verified["bytes"]) != (f"{len(self.names)}", fields(end)["size"]):
            raise Failed(f"verified are {verified}, listed {end!r}")

    # --- steps ---

    def _put_path(self, file: Path, name: str) -> None:
        self.daemon.ask(f"put {quote(file)} name={name}")
        self.names.append(name)

    def _put_client(self, file: Path, name: str) -> None:
        host, port = self.daemon.address
        command = [sys.executable, str(ROOT / "client.py"), "--server", f"{host}:{port}", "--quiet"]
        with file.open("rb") as content:
            subprocess.run([*command, "put", "-", "--name", name], stdin=content, check=True)
        self.names.append(name)

    def _put_socket(self, file: Path, name: str) -> None:
        with self.daemon.connect() as sock, file.open("rb", buffering=0) as content:
            sock.sendall(f"put - name={name} size={file.stat().st_size}\n".encode())
            sock.sendfile(content)
            reply = sock.makefile("rb").readline()
        if not reply.startswith(b"OK"):
            raise Failed(f"put -: {reply.decode().strip()}")
        self.names.append(name)

    def _get_path(self, file: Path, name: str) -> None:
        target = self.out / name
        self.daemon.ask(f"get {name} {quote(target)}")
        require_same(file, target)
        target.unlink()

    def _get_socket(self, file: Path, name: str) -> None:
        ask_at_once(self.daemon, [Request(f"get {name} -", Expected(file))])

    def _cat(self, file: Path, name: str, offset: int = 0, length: int | None = None) -> None:
        expected = Expected(file, offset, length)
        limit = "" if length is None else f" length={length}"
        with self.daemon.connect() as sock:
            sock.sendall(f"cat {name} offset={offset}{limit}\n".encode())
            sock.shutdown(socket.SHUT_WR)
            while piece := sock.recv(PIECE_BYTES):
                expected.take(piece)
        expected.close()

    def _ranges(self, file: Path, name: str) -> None:
        """Inside a part, over a border, over many runs, and past the end, each in two ways."""
        size = file.stat().st_size
        spans = [(7, 100), (PART_BYTES - 1, 2), (size // 3, size // 3), (max(0, size - 1000), PART_BYTES)]
        for offset, length in spans:
            self._cat(file, name, offset, length)
        ranges = [
            Request(f"get {name} - offset={offset} length={length}", Expected(file, offset, length))
            for offset, length in spans
        ]
        ask_at_once(self.daemon, ranges)

    def _phase(self, name: str) -> None:
        self.sampler.phase(name)


def end(daemon: Daemon) -> None:
    """Shut the daemon down; Failed if it leaves a pack or a process."""
    if packs := list(daemon.store.rglob("*.pack")):
        raise Failed(f"{len(packs)} packs are left of an empty store")
    handles = {pid: os.pidfd_open(pid) for pid, _ in family(daemon.process.pid)}
    daemon.exit()
    for pid, handle in handles.items():
        if not select.select([handle], [], [], END_SECONDS)[0]:
            raise Failed(f"process {pid} outlives the daemon")
        os.close(handle)


# --- from arguments to exit code ----------------------------------------------------------------


def made_up(where: Path, size: int) -> list[Path]:
    """A file that shrinks to a quarter and one that does not shrink."""
    files = [where / "repetitive", where / "random"]
    for file, times in zip(files, (4, 1), strict=True):
        generator = random.Random(times)
        with file.open("wb") as content:
            for _ in range(size // PIECE_BYTES):
                content.write(generator.randbytes(PIECE_BYTES // times) * times)
    return files


def describe(sampler: Sampler) -> None:
    """Say where the memory was, at rest and at the peak, and what was going on when."""
    print(f"{'MiB':18} {'idle':>7} {'peak':>7}    grown: {'private':>7} {'slab':>7} {'programs':>9}")
    for pid, peak in sorted(sampler.peak.items()):
        idle = sampler.idle.get(pid, Usage(peak.role, 0, 0, 0))
        print(
            f"{peak.role:18} {idle.total / MIB:7.1f} {peak.total / MIB:7.1f} {'':10} "
            f"{(peak.private - idle.private) / MIB:7.1f} {(peak.shared - idle.shared) / MIB:7.1f} "
            f"{(peak.file - idle.file) / MIB:9.1f}"
        )
    print("data over idle, MiB:")
    for phase in filter(lambda phase: phase.highest, sampler.phases):  # some end between two samples
        print(f"{(phase.highest - data(sampler.idle)) / MIB:8.1f}  {phase.name}")


def measure(memory: int, arguments: argparse.Namespace) -> Row:
    """Run the workload on a daemon with this setting and say what it took; Failed if something else is wrong."""
    with suite.scratch_directory(arguments.dir) as home:
        out = home / "out"
        out.mkdir()
        if arguments.file:
            files = [file.resolve(strict=True) for file in arguments.file]
        else:
            files = made_up(out, QUICK_BYTES if arguments.quick else max(MADE_UP_BYTES, memory // 2))
        settings = {"memory": memory, "processes": arguments.processes, "part_size": PART_BYTES}
        with Daemon(home, [out, *{file.parent for file in files}], **settings) as daemon:
            sampler = Sampler(daemon.process.pid)
            sampler.start()
            try:
                Workload(daemon, files, out, sampler).run()
            finally:
                sampler.stop()
            end(daemon)
    describe(sampler)
    idle, peak = total(sampler.idle), total(sampler.peak)
    grown, grown_data = peak - idle, data(sampler.peak_data) - data(sampler.idle)
    print(
        f"idle {idle / MIB:.1f} MiB, peak {peak / MIB:.1f} MiB, peak less idle {grown / MIB:.1f} MiB, without programs "
        f"and libraries {grown_data / MIB:.1f} MiB; memory {memory / MIB:.1f} MiB ({sampler.count} samples)",
        flush=True,
    )
    return Row(
        name=f"peak over idle, memory {memory / MIB:g} MiB",
        value=max(grown, grown_data) / memory,
        samples=[grown / memory, grown_data / memory],
        unit="of it",
        details={"idle_bytes": idle, "grown_bytes": grown, "grown_data_bytes": grown_data, "memory": memory},
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = suite.options("Hold the daemon to its memory.", pairs=False)
    parser.add_argument(
        "--memory",
        nargs="+",
        default=["32MiB", "256MiB", "2GiB"],
        metavar="SIZE",
        help="the daemon's setting, one run for each (%(default)s)",
    )
    parser.add_argument("--processes", type=int, metavar="N", help="the daemon's setting (as many as cores)")
    parser.add_argument("--file", type=Path, action="append", metavar="PATH", help="repeatable (two made up files)")
    arguments = suite.parse(parser)
    arguments.processes = arguments.processes or arguments.cores
    return arguments


def main() -> int:
    """Run the workload with each setting; 1 if the daemon took too much or something else is wrong."""
    arguments = parse()
    # Else the sampler, which needs the interpreter many times for a sample, waits behind the comparing threads.
    sys.setswitchinterval(SWITCH_SECONDS)
    result = suite.Result("memory", "all", arguments, {"processes": arguments.processes, "part_size": PART_BYTES})
    for text in arguments.memory:
        suite.say(f"memory {text}")
        try:
            row = measure(parse_size(text), arguments)
            result.rows.append(row)
            if row.value >= 1:
                raise Failed("the daemon took more than its memory")
        except (Failed, subprocess.CalledProcessError) as error:
            result.failed(f"memory {text}", error)
    return result.report()


if __name__ == "__main__":
    suite.run(main)
