from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfsd import protocol
from pfsd.errors import BY_CODE, Internal, NotFound, RequestError, TooLong, UsageError
from pfsd.protocol import (
    CRLF,
    LF,
    MAX_LINE,
    MAX_UNTERMINATED,
    Flood,
    Line,
    LineReader,
    LongLine,
    Reply,
    Request,
    Word,
    announced_size,
    check_name,
    format_comment,
    format_error,
    format_frame,
    format_line,
    format_request,
    looks_like_http,
    parse_reply,
    parse_request,
    quote,
    show,
    strip_telnet,
)

# --- requests -----------------------------------------------------------------------------------

REQUESTS = [
    (b"ping", Request("ping")),
    (b"PiNG", Request("ping")),
    (b"  ping\t ", Request("ping")),
    (b"list\t*.tar", Request("list", (Word(b"*.tar"),))),
    (b"get 12 out", Request("get", (Word(b"12"), Word(b"out")))),
    (b'get "12" "-"', Request("get", (Word(b"12", True), Word(b"-", True)))),
    (b'put "a b" NAME=x', Request("put", (Word(b"a b", True),), {"name": b"x"})),
    (b'put a name="x y" replace=yes', Request("put", (Word(b"a"),), {"name": b"x y", "replace": b"yes"})),
    (b'put "name=x"', Request("put", (Word(b"name=x", True),))),
    (b"put /a=b", Request("put", (Word(b"/a=b"),))),
    (b"put a name=", Request("put", (Word(b"a"),), {"name": b""})),
    (b'put a name=""', Request("put", (Word(b"a"),), {"name": b""})),
    (b"put a name=b=c", Request("put", (Word(b"a"),), {"name": b"b=c"})),
    (b"put a name=@b#c", Request("put", (Word(b"a"),), {"name": b"@b#c"})),
    (rb'put "\"\\\n\r\t\x00\xfF"', Request("put", (Word(b'"\\\n\r\t\x00\xff', True),))),
    (b"put \xff\xc3\xa4", Request("put", (Word(b"\xff\xc3\xa4"),))),
    (rb"put a\b", Request("put", (Word(rb"a\b"),))),
    (b"@1 ping", Request("ping", tag=b"1")),
    (b"@A-Z._9   ping", Request("ping", tag=b"A-Z._9")),
    (b"@" + b"t" * 32 + b" ping", Request("ping", tag=b"t" * 32)),
    (b"a\rb".replace(b"\r", b" "), Request("a", (Word(b"b"),))),
    (b"no-such-verb", Request("no-such-verb")),
]


@pytest.mark.parametrize(("line", "request_"), REQUESTS)
def test_requests_are_parsed(line: bytes, request_: Request) -> None:
    assert parse_request(line) == request_


BROKEN = [
    (b"", "command"),
    (b"12", "command"),
    (b"\xff\xfeping", "command"),
    (b"p\xc3\xa4ng", "command"),
    (b"pi\0ng", "NUL"),
    (b"put a\0b", "NUL"),
    (b"@", "tag"),
    (b"@ ping", "tag"),
    (b"@a/b ping", "tag"),
    (b"@\xc3\xa4 ping", "tag"),
    (b"@" + b"t" * 33 + b" ping", "tag"),
    (b"@1", "command"),
    (b"@1 @2 ping", "command"),
    (b'"ping"', "command"),
    (b"put name=x a", "option"),
    (b'put name=x "a"', "option"),
    (b"put a name=x name=y", "twice"),
    (b"put a name=x NAME=y", "twice"),
    (b'put "a', "closed"),
    (b'put "a\\"', "closed"),
    (b'put "a\\', "backslash"),
    (b'put a name="', "closed"),
    (b'put "a"b', "space"),
    (b'put "a""b"', "space"),
    (b'put a"b', "inside"),
    (b'put a name=b"c"', "inside"),
    (rb'put "\a"', "backslash"),
    (rb'put "\x"', "hexadecimal"),
    (rb'put "\x1"', "hexadecimal"),
    (rb'put "\xg0"', "hexadecimal"),
    (rb'put "\x+1"', "hexadecimal"),
]


@pytest.mark.parametrize(("line", "words"), BROKEN)
def test_broken_requests_say_what_is_wrong(line: bytes, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_request(line)


_ALPHABET = [
    b"put",
    b"@",
    b"a",
    b" ",
    b"\t",
    b'"',
    b"\\",
    b"x",
    b"0",
    b"=",
    b"name=",
    b"-",
    b"\0",
    b"\r",
    b"\xff",
    b"\xc3\xa4",
]
lines = st.binary(max_size=60) | st.lists(st.sampled_from(_ALPHABET), max_size=25).map(b"".join)


@given(lines)
def test_any_bytes_are_a_request_or_a_usage_error(line: bytes) -> None:
    try:
        request = parse_request(line)
    except UsageError as error:
        assert error.message
    else:
        assert re.fullmatch("[a-z-]+", request.verb)
        assert all(b"\0" not in word.value or word.quoted for word in request.words)


@given(lines)
def test_any_bytes_are_a_reply_or_a_usage_error(line: bytes) -> None:
    try:
        reply = parse_reply(line)
    except UsageError:
        return
    assert reply is None or isinstance(reply, Reply)


@given(lines)
def test_helpers_for_broken_lines_raise_nothing(line: bytes) -> None:
    protocol.tag_of(line)
    looks_like_http(line)
    size = announced_size(line)
    assert size is None or size in (b"chunked", b"eof") or size.isdigit()


@given(lines)
def test_the_size_of_a_sound_upload_is_always_seen(line: bytes) -> None:
    try:
        request = parse_request(b"put - " + line + b" size=7")
    except UsageError:
        return
    assert announced_size(b"put - " + line + b" size=7") == request.options["size"]


def test_tag_of_survives_whatever_follows_the_tag() -> None:
    assert protocol.tag_of(b'@t1 put "') == b"t1"
    assert protocol.tag_of(b"@bad/tag ping") is None
    assert protocol.tag_of(b"ping") is None


SIZES = [
    (b"put - name=x size=5", b"5"),
    (b"@t1 put - name=x size=5", b"5"),
    (b"@bad/tag put - name=x size=5", b"5"),
    (b" PUT\t-\tSIZE=CHUNKED name=x", b"chunked"),
    (b"put - size=eof", b"eof"),
    (b'put - size="12" name=x', b"12"),
    (b'put - bogus=1 name="x y" size=3', b"3"),
    (b'put - size=3 name="never closed', b"3"),
    (b'put - size=3 name="x size=9 "', b"3"),
    (b'put - size=3 name="x\\" size=9 "', b"3"),
    (b"put - name=a\0b size=3", b"3"),
    (b"put - extra words size=3", b"3"),
    (b"put name=x size=3 -", b"3"),
    (b"put - name= size=0", b"0"),
    (b"put - name=x", None),
    (b"put - name=x size=", None),
    (b"put - name=x size=abc", None),
    (b"put - name=x size=-5", None),
    (b"put - name=x size=1e3", None),
    (b'put "-" name=x size=5', None),
    (b"put a name=x size=5", None),
    (b"put-size=5", None),
    (b"get - size=5", None),
    (b"@t1", None),
    (b"", None),
    (b"DATA 5", b"5"),
    (b"@t data 5 more", b"5"),
    (b'@a/b DATA\t5 "', b"5"),
    (b"DATA 5x", None),
    (b"DATA", None),
    (b"DATA5", None),
]


@pytest.mark.parametrize(("line", "size"), SIZES)
def test_announced_size_is_read_from_broken_lines_too(line: bytes, size: bytes | None) -> None:
    assert announced_size(line) == size


def test_only_a_bare_dash_carries_content() -> None:
    assert parse_request(b"put - name=a size=1").carries_content
    assert not parse_request(b'put "-"').carries_content
    assert not parse_request(b"put").carries_content
    assert not parse_request(b"get - a").carries_content


@pytest.mark.parametrize("value", [b"0", b"7", b"007", b"9223372036854775807"])
def test_numbers_are_plain_digits(value: bytes) -> None:
    assert Request("x", options={"n": value}).number("n") == int(value)


@pytest.mark.parametrize(
    "value", [b"", b"-1", b"+1", b" 1", b"1e3", b"0x1", b"1_0", b"9223372036854775808", b"1" * 20, "٣".encode()]
)
def test_everything_else_is_no_number(value: bytes) -> None:
    with pytest.raises(UsageError, match="n= takes a number"):
        Request("x", options={"n": value}).number("n")


def test_absent_options_have_defaults() -> None:
    assert Request("x").number("n") is None
    assert Request("x").flag("f") is False


def test_flags_are_yes_or_no() -> None:
    assert Request("x", options={"f": b"YES"}).flag("f") is True
    assert Request("x", options={"f": b"no"}).flag("f") is False
    for value in (b"", b"true", b"1"):
        with pytest.raises(UsageError, match="yes or no"):
            Request("x", options={"f": value}).flag("f")


@pytest.mark.parametrize("name", [b"a", b"\xff", b"\n", b" ", b"a" * 1024, b"..", b"/"])
def test_names_are_any_bytes_but_nul(name: bytes) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", [b"", b"a" * 1025, b"a\0"])
def test_names_out_of_bounds_are_refused(name: bytes) -> None:
    with pytest.raises(UsageError):
        check_name(name)


# --- HTTP ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"CONNECT", b"PATCH"])
def test_http_is_recognised(method: bytes) -> None:
    assert looks_like_http(method + b" /x HTTP/1.1")
    assert looks_like_http(method + b" /" + b"a" * 60, cut=True)
    assert looks_like_http(method.lower() + b" /x http/1.1") and looks_like_http(b"Host: localhost")


@pytest.mark.parametrize("line", [b"get a b", b"put HTTP/1.1", b"GET big.tar -", b"list", b"", b"GETX / HTTP/1.1"])
def test_requests_are_not_taken_for_http(line: bytes) -> None:
    assert not looks_like_http(line)


def test_the_answer_to_http_is_well_formed() -> None:
    head, body = protocol.HTTP_REFUSAL.split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert f"Content-Length: {len(body)}".encode() in head


# --- lines out of a stream ----------------------------------------------------------------------

Event = Line | LongLine | Flood


def events_of(pieces: list[bytes]) -> list[Event]:
    """All events of a stream, each read as soon as it is there."""
    reader, events = LineReader(), []
    for piece in pieces:
        reader.feed(piece)
        while (event := reader.next_event()) is not None:
            events.append(event)
            if isinstance(event, Flood):
                return events
    return events


LONG = b"x" * (MAX_LINE + 1)

STREAMS: list[tuple[bytes, list[Event]]] = [
    (b"", []),
    (b"\n", [Line(b"", LF)]),
    (b"\r\n", [Line(b"", CRLF)]),
    (b"ping\n", [Line(b"ping", LF)]),
    (b"ping\r\n", [Line(b"ping", CRLF)]),
    (b"ping\r\r\n", [Line(b"ping\r", CRLF)]),
    (b"a\rb\n", [Line(b"a\rb", LF)]),
    (b"a\nb\r\nc", [Line(b"a", LF), Line(b"b", CRLF)]),
    (b"a" * (MAX_LINE - 1) + b"\n", [Line(b"a" * (MAX_LINE - 1), LF)]),
    (b"a" * MAX_LINE + b"\n", [Line(b"a" * MAX_LINE, LF)]),
    (b"a" * MAX_LINE + b"\r\n", [Line(b"a" * MAX_LINE, CRLF)]),
    (LONG + b"\nping\n", [LongLine(b"x" * 64), Line(b"ping", LF)]),
    (LONG + b"\r\nping\r\n", [LongLine(b"x" * 64), Line(b"ping", CRLF)]),
    (b"x" * MAX_LINE + b"\ry\nping\n", [LongLine(b"x" * 64), Line(b"ping", LF)]),
    (LONG + b" delete victim\nlist\n", [LongLine(b"x" * 64), Line(b"list", LF)]),
    (LONG + b"\n" + LONG + b"\nping\n", [LongLine(b"x" * 64), LongLine(b"x" * 64), Line(b"ping", LF)]),
    (b"x" * MAX_UNTERMINATED + b"\nping\n", [LongLine(b"x" * 64), Line(b"ping", LF)]),
    (b"x" * (MAX_UNTERMINATED + 1), [LongLine(b"x" * 64), Flood()]),
    (b"x" * (MAX_UNTERMINATED + 1) + b"\nping\n", [LongLine(b"x" * 64), Flood()]),
    (b"\xff\xfd\x06ping\n", [Line(b"ping", LF)]),
]


@pytest.mark.parametrize(("stream", "events"), STREAMS, ids=lambda value: repr(value)[:24])
def test_lines_are_the_same_however_the_bytes_arrive(stream: bytes, events: list[Event]) -> None:
    assert events_of([stream]) == events
    head, tail = stream[:1000], stream[-1000:] if len(stream) > 1000 else b""
    middle = stream[1000 : len(stream) - len(tail)]
    bytewise = [bytes([byte]) for byte in head] + [middle] + [bytes([byte]) for byte in tail]
    assert events_of(bytewise) == events
    for size in (7, 4096, 65536, 65537):
        assert events_of([stream[at : at + size] for at in range(0, len(stream), size)]) == events


@given(st.lists(st.sampled_from([b"\n", b"\r\n", b"\r", b"a", b"put x", b"\xff\xfb\x01", b"y" * 70000])), st.data())
def test_cuts_between_pieces_change_nothing(chunks: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(chunks)
    cut = data.draw(st.integers(0, len(stream)))
    assert events_of([stream[:cut], stream[cut:]]) == events_of([stream])


def test_the_tail_of_an_over_long_line_is_never_a_request() -> None:
    pieces = [b"put " + b"A" * 200_000, b" x\rdelete victim", b"\nlist\n"]
    assert events_of(pieces) == [LongLine(b"put " + b"A" * 60), Line(b"list", LF)]


def taken(reader: LineReader, size: int) -> bytes:
    """What fills `size` bytes, or as many as there are."""
    view = memoryview(bytearray(size))
    return bytes(view[: reader.take(view)])


def test_content_is_taken_from_between_lines() -> None:
    reader = LineReader()
    reader.feed(b"put\nab\ncping\n")
    assert reader.next_event() == Line(b"put", LF)
    assert taken(reader, 4) == b"ab\nc"
    assert reader.pending == 5
    assert reader.next_event() == Line(b"ping", LF)
    assert taken(reader, 4) == b""


def test_content_may_be_taken_after_a_look_for_a_line() -> None:
    reader = LineReader()
    reader.feed(b"abc")
    assert reader.next_event() is None
    assert taken(reader, 2) == b"ab"
    reader.feed(b"\n")
    assert reader.next_event() == Line(b"c", LF)


def test_an_unfinished_line_is_known() -> None:
    reader = LineReader()
    assert not reader.unterminated
    reader.feed(b"pi")
    assert reader.unterminated
    reader.feed(b"ng\n")
    reader.next_event()
    assert not reader.unterminated
    reader.feed(LONG)
    reader.next_event()
    assert reader.unterminated


TELNET = [
    (b"ping", b"ping"),
    (b"\xff\xfd\x06ping", b"ping"),
    (b"\xff\xfb\x18\xff\xfb\x1fping", b"ping"),
    (b"\xff\xfa\x18\x00xterm\xff\xf0ping", b"ping"),
    (b"\xff\xf1ping", b"ping"),
    (b"\xff\xf4\xff\xfd\x06", b""),
    (b"\xff\xffping", b"\xff\xffping"),
    (b"ping \xff\xfd\x06", b"ping \xff\xfd\x06"),
    (b"\xff", b"\xff"),
]


@pytest.mark.parametrize(("line", "rest"), TELNET)
def test_telnet_negotiation_is_dropped_at_the_start_of_a_line(line: bytes, rest: bytes) -> None:
    assert strip_telnet(line) == rest


# --- replies ------------------------------------------------------------------------------------


def is_clean(line: bytes) -> bool:
    """Valid UTF-8 and nothing that moves a terminal's cursor."""
    return line.decode("utf-8").isprintable()


values = st.integers() | st.text() | st.binary(max_size=40)
tags = st.none() | st.from_regex(rb"[A-Za-z0-9._-]{1,32}", fullmatch=True)
endings = st.sampled_from([LF, CRLF])


@given(st.binary(max_size=80))
def test_quoted_values_come_back_as_they_were(value: bytes) -> None:
    quoted = quote(value)
    assert is_clean(quoted.encode())
    reply = parse_reply(b"ROW name=" + quoted.encode())
    assert reply is not None and reply.fields == {"name": value}
    assert parse_request(b"put a name=" + quoted.encode()).options == {"name": value}


@given(st.dictionaries(st.sampled_from(["id", "name", "on_error"]), values), tags, endings)
def test_reply_lines_are_clean_and_come_back(
    given: dict[str, protocol.Value], tag: bytes | None, ending: bytes
) -> None:
    line = format_line("ROW", "x", given, tag, ending)
    text = line.removesuffix(ending)
    assert len(line) - len(text) == len(ending) and is_clean(text)
    raw = {
        key: str(v).encode() if isinstance(v, int) else v.encode() if isinstance(v, str) else v
        for key, v in given.items()
    }
    assert parse_reply(text) == Reply("ROW", "x", raw, tag)


@given(st.text(), tags, endings)
def test_comments_are_clean(text: str, tag: bytes | None, ending: bytes) -> None:
    line = format_comment(text, tag, ending)
    assert is_clean(line.removesuffix(ending))
    assert parse_reply(line.removesuffix(ending)) is None


@given(st.text(), st.dictionaries(st.sampled_from(["id", "ref", "self", "message_"]), values), tags, endings)
def test_errors_come_back_with_code_message_and_fields(
    message: str, given: dict[str, protocol.Value], tag: bytes | None, ending: bytes
) -> None:
    error = NotFound(message)
    error.fields = given
    line = format_error(error, tag, ending)
    text = line.removesuffix(ending)
    assert is_clean(text)
    reply = parse_reply(text)
    assert reply is not None and reply.final and reply.tag == tag
    back = reply.error()
    assert type(back) is NotFound and back.message == message and set(back.fields) == set(given)


def test_an_unknown_error_code_is_internal() -> None:
    reply = parse_reply(b'ERR from-the-future message="x"')
    assert reply is not None and type(reply.error()) is Internal


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5, "5"),
        (b"abc", "abc"),
        ("größe", "größe"),
        (b"", '""'),
        (b"a b", '"a b"'),
        (b'a"b', r'"a\"b"'),
        (b"a\\b", r'"a\\b"'),
        (b"a\nb\r\tc", r'"a\nb\r\tc"'),
        (b"\xff", r'"\xff"'),
        (b"\x1b[2J", r'"\x1b[2J"'),
        ("\u2028".encode(), r'"\xe2\x80\xa8"'),
        ("\u202e".encode(), r'"\xe2\x80\xae"'),
        (b"a=b", "a=b"),
    ],
)
def test_values_are_bare_where_possible(value: protocol.Value, text: str) -> None:
    assert quote(value) == text


def test_frames_have_a_header_line() -> None:
    assert format_frame(5, None, LF) == b"DATA 5\n"
    assert format_frame(1048576, b"t", CRLF) == b"@t DATA 1048576\r\n"
    reply = parse_reply(b"@t DATA 17")
    assert reply is not None and (reply.word, reply.name, reply.tag, reply.final) == ("DATA", "17", b"t", False)


def test_what_a_peer_sent_is_shown_short_and_clean() -> None:
    assert show(b"abc") == "abc"
    assert show(b"a\n") == r'"a\n"'
    assert show(b"a" * 100, limit=10) == "a" * 10 + "..."


words_ = st.builds(Word, st.binary(max_size=20).filter(lambda value: b"\0" not in value), st.booleans())


@given(st.lists(words_, max_size=4), st.dictionaries(st.sampled_from(["name", "size"]), st.binary(max_size=20)), tags)
def test_requests_that_clients_format_are_parsed_as_meant(
    words: list[Word], options: dict[str, bytes], tag: bytes | None
) -> None:
    request = parse_request(format_request("put", tuple(words), options, tag).removesuffix(LF))
    assert [word.value for word in request.words] == [word.value for word in words]
    assert all(there.quoted for there, word in zip(request.words, words, strict=True) if word.quoted)
    assert (request.options, request.tag) == (options, tag)


def test_a_request_too_long_is_not_formatted() -> None:
    assert len(format_request("list", (Word(b"a" * (MAX_LINE - 5)),))) == MAX_LINE + 1
    with pytest.raises(TooLong):
        format_request("list", (Word(b"a" * (MAX_LINE - 4)),))


def test_every_error_has_a_clean_line() -> None:
    for code, kind in BY_CODE.items():
        line = format_error(kind("what\nwas wrong", offset=3), None, LF)
        assert line == f'ERR {code} offset=3 message="what\\nwas wrong"\n'.encode()
        assert issubclass(kind, RequestError)
