"""Names of any bytes go through put, list, stat, rename, the journal and delete, and come back as they were."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.harness import Daemon
from tests.wire import Wire, code

_SOME = [
    *(bytes([byte]) for byte in b"\n\r\t\x1b\"\\ =@#'`$&|;<>*?~!\x7f\x01\x1f\x80\xff"),
    b"a\nb", b"a\r\nb", b"\r\n", b"\x1b[2J", b"\x1b]0;title\x07", b'"quoted"', b'"', b'\\"', b"\\n", b"\\x00", b"\\",
    b"-rf", b"--", b"-", b"*", b"..", b".", b"/", b"//", b"../../etc/passwd", b"a/../b", b"0", b"1", b"007",
    b"18446744073709551616", b"a=b", b"size=5", b"name=", b"@x",
    b"@x ping", b"#x", b"OK", b"ERR io", b"x\nERROR fake", b"DATA 5",
    b"%s%n%d",
    b"${HOME}", b"\xff\xfe", b"caf\xe9", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", "größe-😀".encode(),
    "👩‍👩‍👧".encode(),
    "\u202egnp.exe".encode(), "\u200b".encode(), "\ufeff".encode(), "\u2028".encode(), "\u0085".encode(),
    "é".encode(), "e\u0301".encode(), b" leading", b"trailing ",
    b"n" * 255, b"n" * 256, b"n" * 1024, b"\n" * 1024, b"\xff" * 1024,
]  # fmt: skip
NASTY = list(dict.fromkeys(_SOME))


def quoted(name: bytes) -> bytes:
    """Each byte as an escape."""
    return b'"' + b"".join(b"\\x%02x" % byte for byte in name) + b'"'


def unquoted(line: bytes) -> bytes:
    """The name at the end of a reply line, which is its last word."""
    value = line[line.index(b" name=") + 6 :]
    if not value.startswith(b'"'):
        return value
    out, at, inner = bytearray(), 0, value[1:-1]
    while at < len(inner):
        if inner[at : at + 1] != b"\\":
            out.append(inner[at])
            at += 1
        elif inner[at + 1 : at + 2] == b"x":
            out.append(int(inner[at + 2 : at + 4], 16))
            at += 4
        else:
            out += {b"n": b"\n", b"r": b"\r", b"t": b"\t"}.get(inner[at + 1 : at + 2], inner[at + 1 : at + 2])
            at += 2
    return bytes(out)


def listed(daemon: Daemon) -> list[bytes]:
    return [unquoted(row) for row in daemon.ask(b"list\n")[:-1]]


@pytest.mark.promise("durable")
@pytest.mark.promise("answered")
def test_nasty_names_are_kept_to_the_byte(daemon: Daemon) -> None:
    assert len(NASTY) > 80
    with daemon.connect() as wire:
        wire.send(b"".join(b"put - name=%b size=0\n" % quoted(name) for name in NASTY))
        assert [unquoted(wire.line()) for _ in NASTY] == NASTY
        for name in NASTY:
            row, final = wire.ask(b"stat %b\n" % quoted(name))
            assert unquoted(row) == name and code(final) == "OK"
    assert sorted(listed(daemon)) == sorted(NASTY)
    daemon.kill()
    daemon.start()
    assert sorted(listed(daemon)) == sorted(NASTY)
    with daemon.connect() as wire:
        for at, name in enumerate(NASTY):  # to and fro, so that the new name is a nasty one too
            assert code(wire.last(b"rename %b plain%d\n" % (quoted(name), at))) == "OK"
            renamed = wire.last(b"rename plain%d %b\n" % (at, quoted(name)))
            assert code(renamed) == "OK" and unquoted(renamed) == name
    daemon.restart()
    assert sorted(listed(daemon)) == sorted(NASTY)
    with daemon.connect() as wire:
        for name in NASTY:
            row, final = wire.ask(b"delete %b\n" % quoted(name))
            assert unquoted(row) == name and code(final) == "OK"
    assert listed(daemon) == []
    assert not any(line.startswith("ERROR fake") for line in daemon.log.splitlines())


@pytest.mark.promise("answered")
def test_what_is_no_name_is_refused_everywhere(wire: Wire) -> None:
    wire.ask(b"put - name=x size=0 replace=yes\n")
    for bad in (b'""', rb'"\x00"', rb'"a\x00b"', b"n" * 1025, quoted(b"\xff" * 1025)):
        for request in (
            b"put - name=%b size=0\n" % bad,
            b"rename x %b\n" % bad,
            b"stat %b\n" % bad,
            b"delete %b\n" % bad,
        ):
            assert code(wire.last(request)) == "usage", request[:60]
    assert wire.last(b"list\n").startswith(b"OK list files=1 ")
    wire.ask(b"delete x\n")


@pytest.mark.promise("answered")
@settings(max_examples=50, deadline=None)
@given(name=st.binary(min_size=1, max_size=1024).map(lambda raw: raw.replace(b"\0", b"0")))
def test_any_bytes_are_a_name(shared_daemon: Daemon, name: bytes) -> None:
    with shared_daemon.connect() as wire:
        assert unquoted(wire.last(b"put - name=%b size=0\n" % quoted(name))) == name
        assert [unquoted(row) for row in wire.ask(b"list\n")[:-1]] == [name]
        assert code(wire.last(b"delete %b\n" % quoted(name))) == "OK"
