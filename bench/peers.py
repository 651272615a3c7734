"""The programs that pfsd is compared with, as lines for sh. Nothing is installed; what is missing is left out."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

from suite import first_line, say


@dataclass(frozen=True)
class Peer:
    """A program to compare with, as lines for sh.

    `put` stores $FILE below $STORE, a directory that is empty but for what `prepare`, which is not timed, made there.
    `get` brings it into the current directory, an empty one. $THREADS is how many cores may be used.
    """

    name: str
    program: str
    version: str
    put: str
    get: str
    prepare: str = ":"
    #: What pfsd's `get` is told, so that both promise the same.
    get_options: str = ""


def borg(codec: str) -> Peer:
    """borg without encryption, which pfsd has not either."""
    return Peer(
        name=f"borg-{codec.partition(',')[0]}",
        program="borg",
        version="borg --version",
        prepare='borg init -e none "$STORE"',
        put=f'borg create -C {codec} "$STORE::a" "$FILE"',
        get='borg extract "$STORE::a"',
    )


def restic(compression: str) -> Peer:
    """restic, which always encrypts."""
    return Peer(
        name=f"restic-{compression}",
        program="restic",
        version="restic version",
        prepare='restic -q -r "$STORE" init',
        put=f'restic -q -r "$STORE" backup --compression {compression} "$FILE"',
        get='restic -q -r "$STORE" restore latest --target .',
    )


BORG_ZSTD, BORG_LZ4 = borg("zstd,1"), borg("lz4")
RESTIC_AUTO, RESTIC_OFF = restic("auto"), restic("off")
ZSTD = Peer(
    name="zstd",
    program="zstd",
    version="zstd --version",
    put='zstd -q -1 -T"$THREADS" "$FILE" -o "$STORE/file.zst"',
    get='zstd -q -d "$STORE/file.zst" -o file',
)
PIGZ = Peer(
    name="pigz",
    program="pigz",
    version="pigz --version 2>&1",
    put='pigz -1 -p "$THREADS" -c "$FILE" > "$STORE/file.gz"',
    get='pigz -d -p "$THREADS" -c "$STORE/file.gz" > file',
)
CP = Peer(
    name="cp",
    program="cp",
    version="cp --version",
    put='cp "$FILE" "$STORE/file"',
    get='cp "$STORE/file" file',
)
CP_SYNC = Peer(
    name="cp-sync",
    program="cp",
    version="cp --version",
    put='cp "$FILE" "$STORE/file" && sync "$STORE/file"',
    get='cp "$STORE/file" file && sync file',
    get_options="sync=yes",
)

PEERS = [BORG_ZSTD, BORG_LZ4, RESTIC_AUTO, RESTIC_OFF, ZSTD, PIGZ, CP, CP_SYNC]
_COMPRESSING = [BORG_ZSTD, RESTIC_AUTO, ZSTD, PIGZ, CP, CP_SYNC]
#: Who is compared on which corpus unless the command line says otherwise.
USUAL = {
    "linux": _COMPRESSING,
    "usr": _COMPRESSING,
    "random": [BORG_LZ4, RESTIC_OFF, ZSTD, CP, CP_SYNC],
    "tree": [BORG_ZSTD, RESTIC_AUTO],
}


def chosen(names: Sequence[str], subject: str) -> list[Peer]:
    """The peers of these names or programs, without names the usual ones of the corpus."""
    if not names:
        return USUAL.get(subject, _COMPRESSING)
    return [peer for peer in PEERS if peer.name in names or peer.program in names]


def installed(peers: Sequence[Peer]) -> list[Peer]:
    """Those that are installed; says how to get the others."""
    missing = sorted({peer.program for peer in peers if not shutil.which(peer.program)})
    if missing:
        say(f"left out, not installed: on Debian, apt-get install {' '.join(missing)}")
    return [peer for peer in peers if peer.program not in missing]


def versions_of(peers: Sequence[Peer]) -> dict[str, str]:
    """The version of each program."""
    return {peer.program: first_line(peer.version) for peer in peers}
