"""Records: what goes out comes back, and nothing else comes in."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfsd import records
from pfsd.records import (
    Damage,
    Delete,
    Drop,
    Ids,
    Moved,
    Parts,
    Put,
    Ready,
    Record,
    RecordError,
    Removed,
    Rename,
    Run,
    Verified,
    decode,
    encode,
)

MD5 = "79054025255fb1a26e4bc422aef54eb4"
RUN = Run(pack=3, seq=16, part=31, head=96, parts=[(0, 100, 90, "zstd", MD5), (186, 7, 7, "none", MD5)])
EVERY_TYPE: list[Record] = [
    Put(file=7, name=b"movie", part_size=100, created=5),
    Parts(file=7, run=RUN),
    Ready(file=7, name=b"movie", size=107, part_size=100, created=5, runs=[RUN], replaces=3),
    Ready(file=8, name=b"empty", size=0, part_size=1, created=0, runs=[]),
    Drop(file=7),
    Delete(file=7),
    Removed(file=7),
    Rename(file=7, name=b"film", replaces=2),
    Damage(file=7, parts=[0, 4]),
    Moved(file=7, run=RUN),
    Verified(first=(1, 0), end=(7, 4), time=5),
    Ids(file=8, part=36, pack=13),
]

ids = st.integers(1, 2**63 - 1)
counts = st.integers(0, 2**63 - 1)
small = st.integers(0, 2**32 - 1)
names = st.binary(min_size=1, max_size=1024).filter(lambda name: b"\0" not in name)
rows = st.tuples(counts, small, small, st.text(min_size=1, max_size=16), st.just(MD5))
runs = st.builds(Run, ids, small, counts, small, st.lists(rows, max_size=3))
any_record = st.one_of(
    st.builds(Put, ids, names, ids, counts),
    st.builds(Parts, ids, runs),
    st.builds(Ready, ids, names, counts, ids, counts, st.lists(runs, max_size=3), counts),
    st.builds(Rename, ids, names, counts),
    st.builds(Damage, ids, st.lists(small)),
    st.builds(Verified, st.tuples(ids, small), st.tuples(ids, small), counts),
    st.builds(Ids, ids, ids, ids),
)


@pytest.mark.parametrize("record", EVERY_TYPE, ids=repr)
def test_every_type_comes_back(record: Record) -> None:
    assert decode(encode(record)) == record


@given(any_record)
def test_any_record_comes_back_from_one_line_of_json(record: Record) -> None:
    encoded = encode(record)
    assert b"\n" not in encoded
    assert next(iter(json.loads(encoded))) == "type"
    assert decode(encoded) == record


def test_a_name_is_text_when_it_is_utf8_and_hex_otherwise() -> None:
    assert json.loads(encode(Rename(1, "grün\u2028".encode())))["name"] == "grün\u2028"
    hexed = json.loads(encode(Rename(1, b"\xff\xfe")))
    assert (hexed["name_hex"], "name" in hexed) == ("fffe", False)


def test_unknown_fields_are_ignored() -> None:
    assert decode(b'{"seq":9,"type":"drop","new":{"a":[1]},"file":7,"crc":"00000000"}') == Drop(7)


REFUSED = {
    "not json": b"{",
    "no object": b"[]",
    "no type": b'{"file":1}',
    "unknown type": b'{"type":"become","file":1}',
    "two types": b'{"type":"drop","type":"delete","file":1}',
    "field missing": b'{"type":"drop"}',
    "zero id": b'{"type":"drop","file":0}',
    "negative": b'{"type":"drop","file":-1}',
    "bool": b'{"type":"drop","file":true}',
    "float": b'{"type":"drop","file":1.0}',
    "text": b'{"type":"drop","file":"1"}',
    "null": b'{"type":"drop","file":null}',
    "NaN": b'{"type":"drop","file":NaN}',
    "infinite": b'{"type":"drop","file":1e999}',
    "over 63 bits": b'{"type":"drop","file":9223372036854775808}',
    "5000 digits": b'{"type":"drop","file":' + b"9" * 5000 + b"}",
    "deep": b'{"type":"drop","file":1,"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "lone surrogate": b'{"type":"rename","file":1,"name":"\\udc80"}',
    "not utf-8": b'{"type":"rename","file":1,"name":"\xff"}',
    "no name": b'{"type":"rename","file":1}',
    "empty name": b'{"type":"rename","file":1,"name":""}',
    "long name": b'{"type":"rename","file":1,"name":"' + b"n" * 1025 + b'"}',
    "NUL in name": b'{"type":"rename","file":1,"name":"a\\u0000"}',
    "two names": b'{"type":"rename","file":1,"name":"a","name_hex":"ff"}',
    "odd hex": b'{"type":"rename","file":1,"name_hex":"fff"}',
    "short row": b'{"type":"parts","file":1,"run":{"pack":1,"seq":0,"part":1,"head":1,"parts":[[0,1,1,"n"]]}}',
    "short md5": b'{"type":"parts","file":1,"run":{"pack":1,"seq":0,"part":1,"head":1,"parts":[[0,1,1,"n","ab"]]}}',
    "negative size": b'{"type":"parts","file":1,"run":{"pack":1,"seq":0,"part":1,"head":1,"parts":[[0,-1,1,"n","'
    + MD5.encode()
    + b'"]]}}',
    "no part size": b'{"type":"put","file":1,"name":"a","part_size":0,"created":1}',
}


@pytest.mark.parametrize("line", REFUSED.values(), ids=REFUSED.keys())
def test_refused(line: bytes) -> None:
    with pytest.raises(RecordError):
        decode(line)


@pytest.mark.parametrize(
    "record",
    [
        Drop(file=0),
        Drop(file=True),
        Rename(file=1, name=b""),
        Rename(file=1, name=b"a\0b"),
        Rename(file=1, name=b"n" * 1025),
        Put(file=1, name=b"a", part_size=2**64, created=0),
        Damage(file=1, parts=[-1]),
        Parts(file=1, run=Run(1, 0, 1, 1, [(0, 1, 1, "", MD5)])),
        Parts(file=1, run=Run(1, 0, 1, 1, [(0, 1, 1, "none", MD5)] * (records.MAX_RUN_PARTS + 1))),
    ],
    ids=repr,
)
def test_what_could_not_be_read_is_not_written(record: Record) -> None:
    with pytest.raises(RecordError):
        encode(record)


def test_a_record_longer_than_a_line_is_not_written() -> None:
    runs = [Run(1, 0, 1, 1, [(0, 1, 1, "none", MD5)] * 4096) for _ in range(6)]
    with pytest.raises(RecordError, match="bytes"):
        encode(Ready(file=1, name=b"a", size=1, part_size=1, created=0, runs=runs))


@given(st.binary())
def test_garbage_is_refused_and_nothing_else_is_raised(garbage: bytes) -> None:
    with pytest.raises(RecordError):
        decode(garbage)


def test_a_put_that_can_be_resumed_says_what_of_and_has_its_put_id():
    plain = Put(file=1, name=b"a", part_size=4096, created=5)
    assert b"source" not in encode(plain) and decode(encode(plain)) == plain
    resumable = Put(file=1, name=b"a", part_size=4096, created=5, source="upload:k", put="00ff" * 4)
    assert decode(encode(resumable)) == resumable
    for source, put in (("upload:k", ""), ("", "00ff" * 4), ("upload:k", "00ff"), ("upload:k", "x" * 16)):
        with pytest.raises(RecordError):
            encode(Put(file=1, name=b"a", part_size=4096, created=5, source=source, put=put))
    with pytest.raises(RecordError):
        encode(Put(file=1, name=b"a", part_size=4096, created=5, source="k" * 129, put="00ff" * 4))
