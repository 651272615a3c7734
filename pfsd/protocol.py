"""The line protocol, version 1: bytes <-> requests and replies. Both ends of the wire use this module.

It knows bytes and words, never files, sockets or asyncio: bytes go in, values come out, so that each rule can
be tested as a table.

    request = [ "@" tag SP ] verb *( SP word ) ( LF | CRLF )
    word    = bare | quoted | key "=" ( bare | quoted )
    quoted  = DQUOTE ... DQUOTE        with \\" \\\\ \\n \\r \\t \\xNN

    reply   = [ "@" tag SP ] ( ROW | "OK" verb | "ERR" code ) *( SP key "=" value )
            | [ "@" tag SP ] "DATA" SP n LF <n raw bytes>
            | "#" text
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pfsd.errors import BY_CODE, Internal, RequestError, TooLong, UsageError

VERSION = 1
#: Where a daemon listens unless configured otherwise.
DEFAULT_ADDRESS = "127.0.0.1:7373"
#: Longest line without its ending. Four times PATH_MAX fits, quoted byte by byte.
MAX_LINE = 65536
#: Without an LF for this long the peer does not speak this protocol; the connection is closed.
MAX_UNTERMINATED = 1 << 20
#: Most content bytes in one DATA frame, both directions.
MAX_FRAME = 1 << 20
#: Names are up to this many bytes.
MAX_NAME = 1024

LF = b"\n"
CRLF = b"\r\n"

Value = int | str | bytes

_TAG = re.compile(rb"[A-Za-z0-9._-]{1,32}")
_KEY = re.compile(rb"([A-Za-z][A-Za-z0-9_-]*)=")
_BLANK = b" \t"
_HTTP_HEAD = re.compile(rb"(GET|HEAD|POST|PUT|DELETE|OPTIONS|CONNECT|PATCH|TRACE|PRI) [^ ]")
_HTTP = re.compile(
    _HTTP_HEAD.pattern
    + rb".*\bHTTP/\d"
    + rb"|(?i:get|head|post|put|delete|options|connect|patch|trace) [^ ]+ (?i:http)/\d(\.\d)?$"
    + rb"|(?i:host):"
)
HTTP_REFUSAL = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\nContent-Length: 63\r\n\r\n"
    b"This is pfsd, a file store with a line protocol, and not HTTP.\n"
)


# --- requests -----------------------------------------------------------------------------------


class Word(NamedTuple):
    """A positional word. `quoted` keeps "12" (a name) apart from 12 (an id), and "-" from -."""

    value: bytes
    quoted: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One parsed request line."""

    verb: str
    words: tuple[Word, ...] = ()
    options: Mapping[str, bytes] = field(default_factory=dict)
    tag: bytes | None = None
    ending: bytes = LF

    @property
    def carries_content(self) -> bool:
        """Whether content follows the line on the same connection."""
        return self.verb == "put" and bool(self.words) and self.words[0] == Word(b"-")

    def flag(self, key: str) -> bool:
        """A yes/no option; no when absent."""
        value = self.options.get(key, b"no").lower()
        if value not in (b"yes", b"no"):
            raise UsageError(f"{key}= is yes or no, not {show(value)}")
        return value == b"yes"

    def number(self, key: str) -> int | None:
        """A number of plain digits; None when the option is absent."""
        value = self.options.get(key)
        return None if value is None else parse_number(key, value)


def parse_number(key: str, value: bytes) -> int:
    """Plain digits to a number below 2**63; UsageError for anything else."""
    if not value.isdigit() or len(value) > 19 or int(value) >= 1 << 63:
        raise UsageError(f"{key}= takes a number of plain digits below 2^63, not {show(value)}")
    return int(value)


def parse_request(line: bytes, ending: bytes = LF) -> Request:
    """Parse one line (without its ending). UsageError says what was wrong and what would be right."""
    if b"\0" in line:
        raise UsageError("a request line cannot hold a NUL byte")
    tag, rest = split_tag(line)
    verb = re.split(rb"[ \t]", rest, maxsplit=1)[0]
    rest = rest[len(verb) :]
    if not re.fullmatch(rb"[A-Za-z-]+", verb):
        raise UsageError(f"expected a command, got {show(verb)}; try: help")
    words: list[Word] = []
    options: dict[str, bytes] = {}
    try:
        for key, word in _words(rest):
            if key is None:
                if options:
                    raise UsageError(
                        f"{show(word.value)} stands after an option; positional words come first, "
                        "and words with spaces need double quotes"
                    )
                words.append(word)
            elif key in options:
                raise UsageError(f"option {key}= is given twice")
            else:
                options[key] = word.value
    except UsageError:
        if verb.lower() != b"auth":
            raise
        # A token is not quoted back, however it was mistyped.
        raise UsageError('auth takes one word, the token; one with " or = in it needs double quotes') from None
    return Request(verb.decode().lower(), tuple(words), options, tag, ending)


def split_tag(line: bytes) -> tuple[bytes | None, bytes]:
    """Take a leading `@tag ` off; UsageError when it is malformed."""
    line = line.lstrip(_BLANK)
    if not line.startswith(b"@"):
        return None, line
    tag, _, rest = line[1:].partition(b" ")
    if not _TAG.fullmatch(tag):
        raise UsageError("a tag is @ and 1 to 32 characters of A-Z a-z 0-9 - _ .")
    return tag, rest.lstrip(_BLANK)


def tag_of(line: bytes) -> bytes | None:
    """The tag that an answer to a broken line should carry, if one can be made out."""
    try:
        return split_tag(line)[0]
    except UsageError:
        return None


_TOKEN = re.compile(rb"""[ \t]*((?:"(?:\\.|[^"\\])*(?:"|$)|[^ \t"])+)""", re.DOTALL)
_FRAME = re.compile(rb"[ \t]*(?:@[^ \t]*[ \t]+)?DATA(?![^ \t])", re.IGNORECASE)
_FRAME_SIZE = re.compile(_FRAME.pattern + rb"[ \t]+([0-9]{1,19})(?![^ \t])", re.IGNORECASE)
_SIZE = re.compile(rb'size="?([0-9]{1,19}|chunked|eof)"?', re.IGNORECASE)


def is_frame(line: bytes) -> bool:
    """Whether a line, however broken, is the header of a DATA frame."""
    return _FRAME.match(line) is not None


def announced_size(line: bytes) -> bytes | None:
    """What a `put -` or DATA line, however broken, says of the content that follows it: digits, chunked, eof or None.

    Content that is not recognised as such would be taken for requests, so this reads more than `parse_request`.
    """
    if is_frame(line):
        size = _FRAME_SIZE.match(line)
        return size and size[1]
    tokens = [found[1] for found in _TOKEN.finditer(line)]
    if tokens and tokens[0].startswith(b"@"):
        tokens = tokens[1:]
    if not tokens or tokens[0].lower() != b"put" or b"-" not in tokens:
        return None
    sizes = [found[1].lower() for token in tokens[1:] if (found := _SIZE.fullmatch(token))]
    return sizes[-1] if sizes else None


def _words(text: bytes) -> Iterator[tuple[str | None, Word]]:
    at, end = 0, len(text)
    while True:
        while at < end and text[at] in _BLANK:
            at += 1
        if at == end:
            return
        key = None
        if found := _KEY.match(text, at):
            key = found[1].decode().lower()
            at = found.end()
        if text[at : at + 1] == b'"':
            value, at = _unquote(text, at + 1)
            yield key, Word(value, quoted=True)
            continue
        stop = at
        while stop < end and text[stop] not in _BLANK:
            stop += 1
        if b'"' in text[at:stop]:
            raise UsageError(f'{show(text[at:stop])} has a " inside a bare word; quote the whole word')
        yield key, Word(text[at:stop])
        at = stop


_ESCAPES = {ord('"'): b'"', ord("\\"): b"\\", ord("n"): b"\n", ord("r"): b"\r", ord("t"): b"\t"}
_PLAIN = re.compile(rb'[^"\\]*')


def _unquote(text: bytes, at: int) -> tuple[bytes, int]:
    """Read from behind an opening quote; returns the value and the position behind the closing one."""
    value = bytearray()
    while True:
        plain = _PLAIN.match(text, at)
        assert plain is not None  # it matches the empty string
        value += plain[0]
        at = plain.end()
        if at >= len(text):
            raise UsageError('a quote is not closed: " expected before the end of the line')
        if text[at] == ord('"'):
            if at + 1 < len(text) and text[at + 1] not in _BLANK:
                raise UsageError("a closing quote must be followed by a space or the end of the line")
            return bytes(value), at + 1
        escape = text[at + 1] if at + 1 < len(text) else 0
        if escape == ord("x"):
            digits = text[at + 2 : at + 4]
            if not re.fullmatch(rb"[0-9A-Fa-f]{2}", digits):
                raise UsageError(r"\x needs two hexadecimal digits")
            value.append(int(digits, 16))
            at += 4
        elif escape in _ESCAPES:
            value += _ESCAPES[escape]
            at += 2
        else:
            raise UsageError(r"inside quotes a backslash starts one of \" \\ \n \r \t \xNN")


def check_name(name: bytes) -> bytes:
    """A stored file's name, or UsageError."""
    if not 1 <= len(name) <= MAX_NAME:
        raise UsageError(f"a name has 1 to {MAX_NAME} bytes, this one has {len(name)}")
    if b"\0" in name:
        raise UsageError("a name cannot hold a NUL byte")
    return name


def looks_like_http(line: bytes, cut: bool = False) -> bool:
    """Browsers can be made to send to any port of this machine; nothing they send may run.

    Of an over-long line only the head is there (`cut`); a method and a path are enough then.
    """
    return (_HTTP_HEAD if cut else _HTTP).match(line) is not None


# --- lines out of a stream ----------------------------------------------------------------------


class Line(NamedTuple):
    """A complete line without its ending."""

    text: bytes
    ending: bytes


class LongLine(NamedTuple):
    """A line over the limit; its rest is thrown away. `head` is its beginning, for the tag."""

    head: bytes


class Flood(NamedTuple):
    """More than MAX_UNTERMINATED bytes without an LF."""


class Tls(NamedTuple):
    """The stream begins with a TLS handshake: there are no lines in it."""


#: How every TLS handshake begins.
_TLS = b"\x16\x03"


class LineReader:
    """Cuts a byte stream into lines; content between lines is taken out with `take`.

    Feed bytes in any pieces, call `next_event` until it returns None.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._scanned = 0  # no LF before this position
        self._dropped = 0  # bytes thrown away of the over-long line we are inside
        self._begun = False  # the first line has been handed out

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Add bytes received."""
        self._buffer += data

    @property
    def pending(self) -> int:
        """Bytes buffered and not yet handed out."""
        return len(self._buffer)

    @property
    def unterminated(self) -> bool:
        """Whether a line has begun and not ended."""
        return bool(self._buffer) or bool(self._dropped)

    def take(self, view: memoryview) -> int:
        """Fill a view with buffered bytes as content, not lines; returns how many there were."""
        with memoryview(self._buffer) as buffer:
            count = min(len(view), len(buffer))
            view[:count] = buffer[:count]
        self._cut(count)
        return count

    def next_event(self) -> Line | LongLine | Flood | Tls | None:
        """The next line or trouble; None when more bytes are needed."""
        if not self._begun:
            if self._buffer.startswith(_TLS):
                return Tls()
            self._begun = len(self._buffer) >= len(_TLS)
        while True:
            end = self._buffer.find(LF, self._scanned)
            if end < 0 or self._dropped + end > MAX_UNTERMINATED:
                return self._unfinished(end if end >= 0 else len(self._buffer))
            text = bytes(self._buffer[:end])
            self._cut(end + 1)
            if self._dropped:
                self._dropped = 0
                continue
            ending = LF
            if text.endswith(b"\r"):
                text, ending = text[:-1], CRLF
            if len(text) > MAX_LINE:
                return LongLine(text[:64])
            return Line(strip_telnet(text), ending)

    def _unfinished(self, size: int) -> LongLine | Flood | None:
        self._scanned = size
        if self._dropped:
            self._dropped += size
            self._cut(size)
            return Flood() if self._dropped > MAX_UNTERMINATED else None
        # One byte more may be the CR of the ending.
        if size <= MAX_LINE or (size == MAX_LINE + 1 and self._buffer.endswith(b"\r")):
            return None
        head = bytes(self._buffer[:64])
        self._dropped = size
        self._cut(size)
        return LongLine(head)

    def _cut(self, size: int) -> None:
        del self._buffer[:size]
        self._scanned = 0


_TELNET = re.compile(rb"(?:\xff(?:[\xfb-\xfe].|\xfa.*?\xff\xf0|[^\xfa-\xfe\xff]))+", re.DOTALL)


def strip_telnet(line: bytes) -> bytes:
    """Drop telnet's option negotiation (0xFF ...) at the start of a line."""
    found = _TELNET.match(line) if line.startswith(b"\xff") else None
    return line[found.end() :] if found else line


# --- replies ------------------------------------------------------------------------------------


class Reply(NamedTuple):
    """One reply line. `word` is OK, ERR, DATA or a row's name; `name` the verb, the code or the frame's size."""

    word: str
    name: str
    fields: Mapping[str, bytes]
    tag: bytes | None = None

    @property
    def final(self) -> bool:
        """Whether this line ends the reply."""
        return self.word in ("OK", "ERR")

    def error(self) -> RequestError:
        """The error an ERR line stands for."""
        kind = BY_CODE.get(self.name, Internal)
        fields = dict(self.fields)
        message = fields.pop("message", b"").decode("utf-8", "replace")
        return kind(message, **{key: value.decode("utf-8", "replace") for key, value in fields.items()})


def format_line(
    word: str,
    name: str = "",
    fields: Mapping[str, Value] | None = None,
    tag: bytes | None = None,
    ending: bytes = LF,
) -> bytes:
    """One reply line with its ending; always valid UTF-8 without raw control characters."""
    pieces = [f"@{tag.decode()}"] if tag is not None else []
    pieces.append(word)
    if name:
        pieces.append(name)
    if fields:
        pieces += [f"{key}={quote(value)}" for key, value in fields.items()]
    return " ".join(pieces).encode() + ending


def format_ok(verb: str, fields: Mapping[str, Value], tag: bytes | None, ending: bytes) -> bytes:
    """The final line of a request that succeeded."""
    return format_line("OK", verb, fields, tag, ending)


def format_error(error: RequestError, tag: bytes | None, ending: bytes) -> bytes:
    """The final line of a request that failed."""
    return format_line("ERR", error.code, {**error.fields, "message": error.message}, tag, ending)


def format_frame(size: int, tag: bytes | None, ending: bytes) -> bytes:
    """The header line of a DATA frame."""
    return (b"" if tag is None else b"@%b " % tag) + b"DATA %d" % size + ending


def format_comment(text: str, tag: bytes | None, ending: bytes) -> bytes:
    """A line for people."""
    return (b"" if tag is None else b"@%b " % tag) + b"# " + escape(text.encode(), spaces=True).encode() + ending


def format_request(
    verb: str,
    words: tuple[Word, ...] = (),
    options: Mapping[str, Value] | None = None,
    tag: bytes | None = None,
) -> bytes:
    """A request line with its ending, for clients. A `quoted` word is always quoted."""
    pieces = [f"@{tag.decode()}"] if tag is not None else []
    pieces.append(verb)
    for word in words:
        text = quote(word.value)
        bare_is_wrong = word.quoted or _KEY.match(word.value)
        pieces.append(f'"{text}"' if bare_is_wrong and not text.startswith('"') else text)
    pieces += [f"{key}={quote(value)}" for key, value in (options or {}).items()]
    line = " ".join(pieces).encode()
    if len(line) > MAX_LINE:
        raise TooLong(f"the request line would have {len(line)} bytes, at most {MAX_LINE} are allowed")
    return line + LF


def parse_reply(line: bytes) -> Reply | None:
    """Parse a reply line without its ending; None for comments and empty lines."""
    tag, rest = split_tag(line)
    if not rest or rest.startswith(b"#"):
        return None
    word, _, rest = rest.partition(b" ")
    name = ""
    fields: dict[str, bytes] = {}
    if b'"' not in rest and b"\t" not in rest:  # most lines by far, and they come by the thousand
        for piece in rest.split(b" "):
            if found := _KEY.match(piece):
                fields[found[1].decode().lower()] = piece[found.end() :]
            elif piece:
                name = name or piece.decode("utf-8", "replace")
        return Reply(word.decode("utf-8", "replace"), name, fields, tag)
    for key, value in _words(rest):
        if key is None:
            name = name or value.value.decode("utf-8", "replace")
        else:
            fields[key] = value.value
    return Reply(word.decode("utf-8", "replace"), name, fields, tag)


#: What stands in a line as it is, as nearly everything does: printable ASCII but blank, quote and backslash.
_BARE = re.compile(rb"[!#-\[\]-~]+").fullmatch
_BARE_TEXT = re.compile(r"[!#-\[\]-~]+").fullmatch


def quote(value: Value) -> str:
    """A value as it stands in a line: bare where possible, else in double quotes."""
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        if _BARE_TEXT(value):
            return value
        raw = value.encode("utf-8", "surrogateescape")
    elif _BARE(value):
        return value.decode()
    else:
        raw = value
    text = escape(raw)
    if text and text.isprintable() and "\\" not in text and " " not in text and '"' not in text:
        return text
    return f'"{text}"'


def show(value: bytes, limit: int = 80) -> str:
    """A value a peer sent, fit to be quoted back to people in a message."""
    shown = quote(value[:limit])
    return shown + ("..." if len(value) > limit else "")


_ESCAPED = {"\n": r"\n", "\r": r"\r", "\t": r"\t", '"': r"\"", "\\": r"\\"}


def escape(raw: bytes, spaces: bool = False) -> str:
    """Bytes as printable text: what is not valid, printable UTF-8 becomes \\xNN.

    With `spaces` (comments) quotes and backslashes stay as they are.
    """
    text = raw.decode("utf-8", "surrogateescape")
    if text.isprintable() and (spaces or ('"' not in text and "\\" not in text)):
        return text
    return "".join(_escape_char(char, spaces) for char in text)


def _escape_char(char: str, spaces: bool) -> str:
    if char in _ESCAPED and not (spaces and char in '"\\'):
        return _ESCAPED[char]
    if char.isprintable():
        return char
    return "".join(f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape"))
