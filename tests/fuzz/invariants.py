"""For each target a function of any bytes that raises nothing, unless pfsd does what it must never do."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from pfsd import config, hashing, packs, protocol, records
from pfsd.codecs import CODECS
from pfsd.errors import ConfigError, Corrupt, RegistryDamaged, TooLong, UsageError
from pfsd.journal import Journal
from pfsd.registry import Registry, RegistryError
from tests import specimens
from tests.specimens import OBJECTS, STORE

#: A part that claims to be longer is not decoded here: what it may be is for the registry to say.
LARGEST_PART = 1 << 20


# --- the protocol -------------------------------------------------------------------------------


def check_protocol(data: bytes) -> None:
    """Requests, replies and lines out of a stream."""
    _check_request(data)
    _check_reply(data)
    _check_value(data)
    _check_lines(data)


def _check_request(line: bytes) -> None:
    protocol.tag_of(line), protocol.looks_like_http(line), protocol.looks_like_http(line, cut=True)
    size = protocol.announced_size(line)
    assert size is None or size in (b"chunked", b"eof") or size.isdigit()
    try:
        request = protocol.parse_request(line)
    except UsageError as error:
        _is_clean(protocol.format_error(error, protocol.tag_of(line), protocol.LF))
        return
    if request.carries_content and "size" in request.options and not protocol.is_frame(line):
        wanted = request.options["size"].lower()
        if wanted in (b"chunked", b"eof") or (wanted.isdigit() and len(wanted) < 20):
            assert size == wanted, "content that would be taken for requests"
    with suppress(TooLong):
        again = protocol.format_request(request.verb, request.words, request.options, request.tag)
        assert again.endswith(protocol.LF) and again.count(protocol.LF) == 1
        back = protocol.parse_request(again[:-1])
        assert [word.value for word in back.words] == [word.value for word in request.words]
        assert (back.verb, back.options, back.tag) == (request.verb, request.options, request.tag)
        assert back.carries_content == request.carries_content


def _check_reply(line: bytes) -> None:
    try:
        reply = protocol.parse_reply(line)
    except UsageError:
        return
    if reply is not None and reply.word == "ERR":
        _is_clean(protocol.format_error(reply.error(), reply.tag, protocol.CRLF))


def _check_value(value: bytes) -> None:
    line = protocol.format_line("ROW", "x", {"key": value, "n": 7}, b"t", protocol.CRLF)
    _is_clean(line)
    assert protocol.parse_reply(line[:-2]) == protocol.Reply("ROW", "x", {"key": value, "n": b"7"}, b"t")
    _is_clean(protocol.show(value).encode() + b"\n")
    _is_clean(
        protocol.format_comment(
            value.decode("utf-8", "surrogateescape").encode("utf-8", "replace").decode(), None, b"\n"
        )
    )


def _is_clean(line: bytes) -> None:
    """A line is one line, and moves no terminal's cursor."""
    assert line.decode().rstrip("\r\n").isprintable() and line.count(b"\n") == 1, line


def _check_lines(data: bytes) -> None:
    """Lines are the same however the stream is cut, long ones and floods among them; the first byte says how."""
    stream = data[1:]
    step = data[0] % 32 + 1 if data else 1
    with _short_lines():
        whole = _events([stream])
        assert _events([stream[at : at + step] for at in range(0, len(stream), step)]) == whole
        assert _events([stream[at : at + 1] for at in range(len(stream))]) == whole
    for event in whole:
        if isinstance(event, protocol.Line):
            assert protocol.LF not in event.text and event.text in stream


@contextmanager
def _short_lines() -> Iterator[None]:
    """Limits that short inputs reach; more than the 64 bytes that are kept of a long line."""
    limits = protocol.MAX_LINE, protocol.MAX_UNTERMINATED
    protocol.MAX_LINE, protocol.MAX_UNTERMINATED = 70, 300
    try:
        yield
    finally:
        protocol.MAX_LINE, protocol.MAX_UNTERMINATED = limits


def _events(pieces: list[bytes]) -> list[protocol.Line | protocol.LongLine | protocol.Flood]:
    reader, events = protocol.LineReader(), []
    for piece in pieces:
        reader.feed(piece)
        while (event := reader.next_event()) is not None:
            events.append(event)
            if isinstance(event, protocol.Flood):
                return events
    return events


# --- the journal --------------------------------------------------------------------------------


def check_journal(data: bytes) -> None:
    """A record; a journal of these bytes; one of these lines with right checksums; a sound one that they damage."""
    how, data = data[:1], data[1:]
    if how < b"\x40":
        _check_record(data)
    elif how < b"\x80":
        _open_journal(data)
    elif how < b"\xc0":
        registry = _open_journal(specimens.chain([OBJECTS[0], *(line for line in data.split(b"\n") if len(line) > 1)]))
        if registry is not None:
            again = _replayed(specimens.state(registry))
            assert specimens.state(again) == specimens.state(registry)
    else:
        damaged = edited(specimens.JOURNAL, data)
        registry = _open_journal(damaged)
        if registry is not None:
            assert specimens.state(registry) in _states(), "a registry that never was"


def _check_record(data: bytes) -> None:
    try:
        record = records.decode(data)
    except records.RecordError:
        return
    try:
        encoded = records.encode(record)
    except records.RecordError:
        assert len(data) > records.MAX_RECORD // 2  # another spelling may be longer
        return
    assert records.decode(encoded) == record


def _open_journal(data: bytes) -> Registry | None:
    """The registry that a journal of these bytes makes; None when it is refused, as declared and in one line."""
    path = _scratch() / "journal.jsonl"
    path.write_bytes(data)
    registry = Registry()
    try:
        opened = Journal.open(path, registry.replay, sync=False)
    except (RegistryDamaged, ConfigError) as error:
        assert "\n" not in str(error) and path.read_bytes() == data
        return None
    finally:
        aside = list(path.parent.glob("journal.torn-*"))
        for torn in aside:
            torn.unlink()
    left = path.read_bytes()
    assert left == data or aside or len(data) - len(left) in (0, -1), "records were lost without a word"
    opened.close()
    return registry


def _replayed(lines: bytes) -> Registry:
    registry = Registry()
    for line in lines.split(b"\n"):
        try:
            registry.replay(line)
        except RegistryError as error:
            raise AssertionError(f"a compacted journal could not be read: {error}") from error
    return registry


@cache
def _states() -> frozenset[bytes]:
    return frozenset(specimens.states())


def edited(sound: bytes, edits: bytes) -> bytes:
    """Sound bytes, changed at up to four places and cut, then with something behind, as `edits` say."""
    damaged = bytearray(sound)
    count = edits[0] % 5 if edits else 0
    for at in range(1, 1 + 3 * count, 3):
        place, mask = int.from_bytes(edits[at : at + 2], "little"), edits[at + 2 : at + 3]
        if mask:
            damaged[place % len(damaged)] ^= mask[0]
    rest = edits[1 + 3 * count :]
    if rest:
        del damaged[len(damaged) - int.from_bytes(rest[:2], "little") % len(damaged) :]
        damaged += rest[2:]
    return bytes(damaged)


# --- packs --------------------------------------------------------------------------------------


def check_packs(data: bytes) -> None:
    """A pack of these bytes; one whose first header they make, with a right checksum; a sound one that they damage."""
    how, data = data[:1], data[1:]
    if how < b"\x55":
        _check_pack(data)
    elif how < b"\xaa":
        _check_pack(_sealed(data))
    else:
        damaged = edited(_pack().data, data)
        _check_pack(damaged)
        for piece in _pack().pieces:
            end = piece.row.offset + piece.row.head + piece.row.stored
            with suppress(Corrupt):
                _decoded(damaged[piece.row.offset : end], STORE, piece.file, piece.seq, piece.row, piece.content)


@cache
def _pack() -> specimens.Pack:
    return specimens.shared_pack()


def _sealed(data: bytes) -> bytes:
    """The first header with the checksum and lengths it needs to be looked at."""
    head = packs.MIN_HEADER_BYTES - 1 + data[88] if len(data) > packs.MIN_HEADER_BYTES else 0
    if not packs.MIN_HEADER_BYTES <= head <= len(data):
        return data
    start = packs.MAGIC + bytes([packs.VERSION, data[5] % len(CODECS)]) + head.to_bytes(2, "little")
    covered = start + data[8:89] + b"\0" + data[90 : head - 4]
    return covered + packs._CRC.pack(packs.zlib.crc32(covered)) + data[head:]


def _check_pack(data: bytes) -> None:
    """Every byte is of a part or of damage, headers are what would be written, and parts decode or are corrupt."""
    end = 0
    for found in packs.scan(lambda offset, length: data[offset : offset + length], len(data)):
        assert found.offset == end, "a byte of nobody"
        if isinstance(found, packs.Damage):
            assert found.length > 0
            end += found.length
            continue
        header, end = found.header, found.offset + found.head + found.header.stored
        assert packs.pack_header(header) == data[found.offset : found.offset + found.head]
        row = specimens.PartRow(found.offset, found.head, header.size, header.stored, header.codec, header.md5)
        if header.size <= LARGEST_PART:
            with suppress(Corrupt):
                origin = header.origin
                _decoded(data[found.offset : end], origin.store, origin.file, header.seq, row)
    assert end == len(data)


def _decoded(
    encoded: bytes, store: bytes, file: int, seq: int, row: specimens.PartRow, content: bytes | None = None
) -> None:
    decoded = packs.decode_part(encoded, store, file, seq, row)
    assert len(decoded) == row.size
    if content is not None and hashing.md5(decoded) == row.md5:
        assert bytes(decoded) == content, "wrong data"


# --- the configuration --------------------------------------------------------------------------


def check_config(data: bytes) -> None:
    """A configuration file of these bytes; behind a NUL, values of variables."""
    text, *values = data.split(b"\0")
    path = _scratch() / "config.yaml"
    path.write_bytes(text)
    keys = config.KEYS[len(text) % len(config.KEYS) :] + config.KEYS
    environ = {
        f"PFSD_{key.upper()}": value.decode("utf-8", "surrogateescape")
        for key, value in zip(keys, values, strict=False)
    }
    try:
        loaded = config.load(path, environ)
    except ConfigError as error:
        assert error.message.isprintable() and len(error.message) < 1000, error.message
        return
    assert loaded.slab_size >= 2 * loaded.part_size and loaded.processes >= 1 and loaded.run_parts >= 1


# --- all of them --------------------------------------------------------------------------------

TARGETS: dict[str, Callable[[bytes], None]] = {
    "protocol": check_protocol,
    "journal": check_journal,
    "packs": check_packs,
    "config": check_config,
}


@cache
def _scratch() -> Path:
    """A directory in memory, for what is only read from a file."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    _scratch_directory.append(tempfile.TemporaryDirectory(prefix="pfsd-fuzz-", dir=where))
    return Path(_scratch_directory[0].name)


_scratch_directory: list[tempfile.TemporaryDirectory[str]] = []
