"""The kinds of values that settings have: one function for each, which takes a value as YAML has it.

Knows what a value may be by itself; never which key it is for, where it came from, or what goes with what. It
touches nothing but to ask whether a directory exists.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Callable, Collection
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

KIB = 1 << 10
MIB = 1 << 20
TIB = 1 << 40

#: Linux keeps 108 bytes for the address of a Unix socket, the last one a NUL.
MAX_UNIX_PATH = 107
LEVELS = {"auto": (1, 19), "zstd": (1, 19), "zlib": (1, 9)}
MAX_PROCESSES = 256
#: About a second, which is for tests; and a hundred years.
LEAST_DAYS, MOST_DAYS = 0.00001, 36_500
MIN_TOKEN_CHARS = 8
#: A token travels in one line of the protocol, quoted byte by byte at worst; this leaves ample room.
MAX_TOKEN_CHARS = 1024


# --- addresses ----------------------------------------------------------------------------------


class TcpAddress(NamedTuple):
    """Host without brackets, and port; port 0 stands for any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect. A host name is not local, whatever it resolves to today."""
        if self.host.lower() == "localhost":
            return True
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return bool((mapped or address).is_loopback)


class UnixAddress(NamedTuple):
    """Absolute path of a Unix socket."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"

    @property
    def is_local(self) -> bool:
        return True


Address = TcpAddress | UnixAddress


class Listener(NamedTuple):
    """Where to listen, and for whom: the verbs that work there (None: all), and whether TLS is spoken.

    `tls` is None until `config` has settled it.
    """

    address: Address
    allow: frozenset[str] | None = None
    tls: bool | None = None


_TCP = re.compile(r"(?:\[(?P<six>[^\[\]]+)\]|(?P<host>[A-Za-z0-9._-]+)):(?P<port>[0-9]{1,5})")
_ADDRESS_RULE = "must be HOST:PORT, [IPV6]:PORT (port 0 to 65535) or unix:PATH"


def parse_address(text: str, base: Path) -> Address:
    """The address `text` stands for; a relative Unix path counts from `base`.

    Raises ValueError, with the rule as its text.
    """
    if text.startswith("unix:"):
        socket = path(text.removeprefix("unix:"), base)
        if len(os.fsencode(socket)) > MAX_UNIX_PATH:
            raise ValueError(f"the absolute path of a Unix socket must have 1 to {MAX_UNIX_PATH} bytes")
        return UnixAddress(socket)
    match = _TCP.fullmatch(text)
    if not match or int(match["port"]) > 65535 or (match["six"] and not _is_ipv6(match["six"])):
        raise ValueError(_ADDRESS_RULE)
    return TcpAddress(match["six"] or match["host"], int(match["port"]))


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return text.isprintable()  # a scope after % may hold anything


# --- sizes --------------------------------------------------------------------------------------

_POWERS = "BKMGT"
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?(?:(B)|([KMGT])(|i|iB|B))", re.IGNORECASE)
_SIZE_RULE = "bytes, or a number with B, K M G T or KiB MiB GiB TiB (powers of 1024), or KB MB GB TB (powers of 1000)"


def parse_size(value: object) -> int:
    """Bytes in a size such as 4096, "64K", "1.5GiB" or "10MB".

    Raises ValueError if it is none, or comes to a fraction of a byte.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError(f"is not a size: {_SIZE_RULE}")
    number, single, letter, suffix = match.groups()
    unit = 1000 if suffix and suffix.upper() == "B" else 1024
    size = Fraction(number) * unit ** _POWERS.index((single or letter).upper())
    if size.denominator != 1:
        raise ValueError("is not a whole number of bytes")
    return int(size)


def format_size(size: int) -> str:
    """`size` bytes in the largest unit that says it exactly: 1048576 is 1MiB, 1048577 is 1048577 bytes."""
    for power, unit in reversed(list(enumerate(("KiB", "MiB", "GiB", "TiB"), start=1))):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{unit}"
    return f"{size} bytes"


# --- one function for each kind of value --------------------------------------------------------
# Each takes the value as the file has it and the directory that relative paths count from, and returns it
# typed or raises ValueError with the words that follow "got VALUE; ".

Parser = Callable[[object, Path], Any]


def optional_address(value: object, base: Path) -> Address | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{_ADDRESS_RULE}, or null")
    try:
        return parse_address(value, base)
    except ValueError as error:
        raise ValueError(f"{error}, or null") from None


def listeners(verbs: Collection[str], always: Collection[str]) -> Parser:
    """Addresses, and mappings of one with what is allowed there: some `verbs`, beside those that `always` are."""

    def parse(value: object, base: Path) -> tuple[Listener, ...]:
        entries = value if isinstance(value, list) else [value]
        if not entries or not all(isinstance(entry, str | dict) for entry in entries):
            raise ValueError(f"{_ADDRESS_RULE}, or a list of one or more of them")
        return tuple(_each(lambda entry: listener(entry, base), entries))

    def listener(entry: str | dict[str, object], base: Path) -> Listener:
        if isinstance(entry, str):
            return Listener(parse_address(entry, base))
        if stray := [key for key in entry if key not in Listener._fields]:
            raise ValueError(f"has the key {show(stray[0])}; its keys are {', '.join(Listener._fields)}")
        address = entry.get("address")
        if not isinstance(address, str):
            raise ValueError(f"its address {_ADDRESS_RULE}")
        try:
            where = parse_address(address, base)
        except ValueError as error:
            raise ValueError(f"its address {error}") from None
        return Listener(where, allowed(entry.get("allow")), _yes_or_no("tls", entry.get("tls")))

    def allowed(value: object) -> frozenset[str] | None:
        if value is None:
            return None
        words = value if isinstance(value, list) else [value]
        for word in words:
            if not isinstance(word, str) or word not in verbs:
                raise ValueError(f"its allow must be a list of commands, and {show(word)} is none: {', '.join(verbs)}")
        return frozenset(words) | frozenset(always)

    return parse


def _yes_or_no(key: str, value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    if value not in ("yes", "no"):  # to YAML 1.2, of which this is, they are words
        raise ValueError(f"its {key} must be yes or no")
    return value == "yes"


def directories(value: object, base: Path) -> tuple[Path, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError("must be a list of one or more existing directories")
    return tuple(_each(lambda text: _directory(text, base), value))


def _each(parse: Callable[[Any], Any], values: list[object]) -> list[Any]:
    """All `values` parsed; the error names the one that is wrong."""
    parsed = []
    for value in values:
        try:
            parsed.append(parse(value))
        except ValueError as error:
            raise ValueError(f"{show(value)} {error}" if len(values) > 1 else str(error)) from None
    return parsed


def _directory(value: object, base: Path) -> Path:
    found = path(value, base)
    if not found.is_dir():
        raise ValueError("must be an existing directory")
    return found


def path(value: object, base: Path) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("must be a path: text, not empty, without NUL")
    if value.startswith("~"):
        raise ValueError("must be a path written out: ~ does not stand for a home directory here")
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise ValueError("must be a path that the file system can encode") from None
    return base / value


def optional_path(value: object, base: Path) -> Path | None:
    return None if value is None else path(value, base)


def size(low: int, high: int) -> Parser:
    limits = f"must be {format_size(low)} to {format_size(high)}"

    def parse(value: object, base: Path) -> int:
        try:
            size = parse_size(value)
        except ValueError as error:
            raise ValueError(f"{limits}, but it {error}") from None
        if not low <= size <= high:
            raise ValueError(limits)
        return size

    return parse


def integer(low: int, high: int) -> Parser:
    def parse(value: object, base: Path) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"must be a whole number from {low} to {high}")
        return value

    return parse


def processes(value: object, base: Path) -> int | str:
    try:
        return "auto" if value == "auto" else int(integer(1, MAX_PROCESSES)(value, base))
    except ValueError as error:
        raise ValueError(f"{error}, or auto") from None


def level(value: object, base: Path) -> int:
    """Any whole number: what range holds depends on the codec, see `config`."""
    if not isinstance(value, int) or isinstance(value, bool):
        ranges = ", ".join(f"{low} to {high} for {codec}" for codec, (low, high) in LEVELS.items())
        raise ValueError(f"must be a whole number, {ranges}")
    return value


def seconds(low: float, high: float) -> Parser:
    def parse(value: object, base: Path) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError(f"must be {low:g} to {high} seconds")
        return float(value)

    return parse


def days_or_never(value: object, base: Path) -> float:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else -1
    if number != 0 and not LEAST_DAYS <= number <= MOST_DAYS:
        raise ValueError(f"must be {LEAST_DAYS:f} to {MOST_DAYS} days, or 0 for never")
    return float(number)


def choice(*words: str) -> Parser:
    def parse(value: object, base: Path) -> str:
        if not isinstance(value, str) or value not in words:
            raise ValueError(f"must be {', '.join(words[:-1])} or {words[-1]}")
        return value

    return parse


def token(value: object, base: Path) -> str | None:
    return None if value is None else check_token(value)


def check_token(value: object) -> str:
    """`value` if it may be a token, else ValueError with the rule and never the value."""
    fits = isinstance(value, str) and MIN_TOKEN_CHARS <= len(value) <= MAX_TOKEN_CHARS
    if not fits or any(char.isspace() or not char.isprintable() for char in str(value)):
        raise ValueError(
            f"must be {MIN_TOKEN_CHARS} to {MAX_TOKEN_CHARS} characters, none of them whitespace or control"
        )
    return str(value)


# --- showing ------------------------------------------------------------------------------------


def show(value: object, limit: int = 80) -> str:
    """A value in one line, as YAML would have it."""
    match value:
        case None:
            shown = "null"
        case bool():
            shown = str(value).lower()
        case str():
            shown = f"'{value}'" if value.isprintable() else ascii(value)
        case list():
            shown = f"[{', '.join(show(item) for item in value[:limit])}]"
        case dict():
            shown = "a mapping"
        case _:
            shown = str(value)
    return shown if len(shown) <= limit else f"{shown[:limit]}..."


def printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)
