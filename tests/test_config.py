"""The configuration: what is accepted, what is refused, and that each refusal is one useful line."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pfsd.config import (
    DAEMON_RESERVE,
    KEYS,
    SLAB_UNIT,
    Config,
    Reloaded,
    auto_processes,
    least_memory,
    load,
    reload,
    worker_overhead,
)
from pfsd.errors import ConfigError
from pfsd.kinds import KIB, MIB, Address, Listener, TcpAddress, UnixAddress, format_size, parse_address, parse_size
from pfsd.verbs import BEFORE_AUTH
from tests.certificates import make_certificate, needs_openssl

SHIPPED = Path(__file__).resolve().parent.parent / "config.yaml"
SECRET = "correct-horse-battery"

Loader = Callable[..., Config]


def plain(*addresses: Address) -> tuple[Listener, ...]:
    """Listeners for everybody and without TLS."""
    return tuple(Listener(address, None, False) for address in addresses)


@pytest.fixture
def loaded(tmp_path: Path) -> Loader:
    """Load a configuration of this text, with these variables, from an empty directory."""

    def load_text(text: str | bytes = "", **environ: str) -> Config:
        file = tmp_path / "config.yaml"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return load(file, environ)

    return load_text


def refusal(loaded: Loader, text: str | bytes = "", **environ: str) -> str:
    """The message this configuration is refused with; one printable line, whatever was given."""
    with pytest.raises(ConfigError) as caught:
        loaded(text, **environ)
    message = caught.value.message
    assert message.isprintable(), message
    assert len(message) < 700
    assert caught.value.exit_code == 78
    return message


# --- defaults and the shipped file --------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n", "null", "{}", b"\xef\xbb\xbf"])
def test_an_empty_file_is_all_defaults(loaded: Loader, tmp_path: Path, text: str | bytes) -> None:
    config = loaded(text)
    assert config.listen == plain(TcpAddress("127.0.0.1", 7373))
    assert config.path == tmp_path / "store"
    assert config.roots == (tmp_path,)
    assert 1 <= config.processes <= len(os.sched_getaffinity(0))
    assert (config.memory, config.part_size, config.codec, config.level) == (256 * MIB, MIB, "zstd", 1)
    assert (config.token, config.token_file) == (None, None)
    assert (config.allow_exit, config.durability, config.loop) == ("local", "always", "uvloop")
    assert (config.max_clients, config.log_level) == (1000, "info")
    assert (config.idle_timeout, config.line_timeout, config.stop_timeout) == (600, 30, 30)


def test_the_shipped_file_is_exactly_the_defaults(loaded: Loader) -> None:
    assert loaded(SHIPPED.read_bytes()) == loaded("")


def test_the_shipped_file_has_every_key_with_a_comment() -> None:
    text = SHIPPED.read_text()
    worked_out = {"slab_size", "warnings", "sources"}
    assert set(yaml.safe_load(text)) == set(KEYS) == {field.name for field in dataclasses.fields(Config)} - worked_out
    for key in KEYS:
        assert re.search(rf"(?m)^# .*\n{key}: ", text), f"{key} has no comment right above it"


def test_a_config_cannot_be_changed(loaded: Loader) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded().memory = 1  # type: ignore[misc]


# --- good values --------------------------------------------------------------------------------

GOOD: list[tuple[str, str, object]] = [
    ("listen: localhost:0", "listen", plain(TcpAddress("localhost", 0))),
    ("listen: '[::1]:65535'", "listen", plain(TcpAddress("::1", 65535))),
    (
        "listen: ['127.9.9.9:1', '[::ffff:127.0.0.1]:2']",
        "listen",
        plain(TcpAddress("127.9.9.9", 1), TcpAddress("::ffff:127.0.0.1", 2)),
    ),
    ("listen: unix:/run/pfsd.sock", "listen", plain(UnixAddress(Path("/run/pfsd.sock")))),
    ("path: /srv/pfsd", "path", Path("/srv/pfsd")),
    ("path: '2024'", "path", Path("2024")),
    ("roots: [/, .]", "roots", (Path("/"), Path("."))),
    ("processes: 1", "processes", 1),
    ("{processes: 256, memory: 1TiB}", "processes", 256),
    ("memory: 1073741824", "memory", 1 << 30),
    ("memory: 1.5GiB", "memory", 3 << 29),
    ("memory: 400 MB", "memory", 400_000_000),
    ("part_size: 4096", "part_size", 4 * KIB),
    ("{part_size: 64M, memory: 4G}", "part_size", 64 * MIB),
    ("{codec: zstd, level: 19, memory: 64GiB}", "level", 19),
    ("{codec: zlib, level: 9}", "level", 9),
    ("{codec: auto, level: 19, memory: 64GiB}", "level", 19),
    ("{codec: none, level: 99}", "codec", "none"),
    ("level: 010", "level", 10),
    (f"token: {SECRET}", "token", SECRET),
    ("token: 0012345678", "token", "0012345678"),
    ("token: 'null-null'", "token", "null-null"),
    ("token: pässwörter", "token", "pässwörter"),
    (f"{{token: {SECRET}, listen: '0.0.0.0:7373'}}", "listen", plain(TcpAddress("0.0.0.0", 7373))),
    (
        "listen: {address: '127.0.0.1:1', allow: [put, exit], tls: no}",
        "listen",
        (Listener(TcpAddress("127.0.0.1", 1), frozenset({"put", "exit"}) | BEFORE_AUTH, False),),
    ),
    (
        "listen: ['127.0.0.1:1', {address: 'unix:/s', allow: list}]",
        "listen",
        (
            Listener(TcpAddress("127.0.0.1", 1), None, False),
            Listener(UnixAddress(Path("/s")), frozenset({"list"}) | BEFORE_AUTH, False),
        ),
    ),
    (
        "listen: {address: '127.0.0.1:1', allow: []}",
        "listen",
        (Listener(TcpAddress("127.0.0.1", 1), BEFORE_AUTH, False),),
    ),
    ("listen: {address: '127.0.0.1:1', allow: null, tls: null}", "listen", plain(TcpAddress("127.0.0.1", 1))),
    ("allow_exit: nobody", "allow_exit", "nobody"),
    ("durability: none", "durability", "none"),
    ("loop: asyncio", "loop", "asyncio"),
    ("max_clients: 1", "max_clients", 1),
    ("idle_timeout: 0", "idle_timeout", 0.0),
    ("line_timeout: 0.25", "line_timeout", 0.25),
    ("stop_timeout: 3600", "stop_timeout", 3600.0),
    ("verify_every: 0", "verify_every", 0.0),
    ("verify_every: 0.00001", "verify_every", 0.00001),
    ("verify_every: 36500", "verify_every", 36500.0),
    ("log_level: debug", "log_level", "debug"),
    ("'log_level': \"debug\"", "log_level", "debug"),
]


@pytest.mark.parametrize(("text", "key", "expected"), GOOD, ids=[text for text, _, _ in GOOD])
def test_good(loaded: Loader, tmp_path: Path, text: str, key: str, expected: object) -> None:
    if key == "path":
        expected = tmp_path / str(expected)
    if key == "roots" and isinstance(expected, tuple):
        expected = tuple(tmp_path / path for path in expected)
    assert getattr(loaded(text), key) == expected


# --- bad files ----------------------------------------------------------------------------------

BOMB = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"

BAD: list[tuple[str | bytes, str]] = [
    # no configuration at all
    (b"\x7fELF\x02\x01\x01\x00\xff\xfe", "UTF-8"),
    ("path: é".encode("utf-16"), "UTF-8"),
    ("path: \x00", "control characters"),
    ("path: \x1b[31m", "control characters"),
    ("just some words", "key: value"),
    ("- listen", "key: value"),
    ("42", "key: value"),
    ("# big\n" * 100_000, "256KiB"),
    # no YAML
    ("listen: [", "line 1: is not YAML"),
    ("path: a\n\tmemory: 1", "line 2: is not YAML"),
    ("path: a: b", "is not YAML"),
    ("path: %a", "is not YAML"),
    ("a: 1\n---\nb: 2\n", "is not YAML"),
    ('path: "\\UFFFFFFFF"', "config.yaml: "),
    # YAML that is cleverer than settings need
    (BOMB, "line 1: anchors"),
    ("path: *store", "anchors"),
    ("path: !!python/object/apply:os.system [id]", "tags"),
    ("path: !here", "tags"),
    ("roots: " + "[" * 50_000, "lists within lists"),
    ("roots: " + "[" * 9 + "]" * 9, "lists within lists"),
    # keys
    ("memroy: 1GiB", "line 1: 'memroy' is no key; the keys are listen, http, path, "),
    ("Memory: 1GiB", "'Memory' is no key"),
    ("path: a\n1: 2", "line 2: '1' is no key"),
    ("? [path]\n: a", "['path'] is no key"),
    ("<<: {path: a}", "'<<' is no key"),
    ("path: a\npath: b", "line 2: path: is given twice"),
    # listen
    ("listen: 7373", "listen: got 7373; must be HOST:PORT"),
    ("listen: null", "listen: got null; must be HOST:PORT"),
    ("listen: []", "list of one or more"),
    ("listen: ['127.0.0.1:1', 2]", "list of one or more"),
    ("listen: {host: a}", "listen: got a mapping; has the key 'host'; its keys are address, allow, tls"),
    ("listen: {}", "its address must be HOST:PORT"),
    ("listen: [{allow: [list]}]", "its address must be HOST:PORT"),
    ("listen: {address: 7373}", "its address must be HOST:PORT"),
    ("listen: {address: '*:1'}", "its address must be HOST:PORT"),
    ("listen: {address: '127.0.0.1:1', 1: 2}", "has the key '1'"),
    ("listen: {address: '127.0.0.1:1', address: '127.0.0.1:1'}", "line 1: 'address': is given twice"),
    ("listen: ['127.0.0.1:1', {address: '127.0.0.1:2', port: 3}]", "has the key 'port'"),
    ("listen: {address: '127.0.0.1:1', ? [a] : 1}", "has the key"),
    # what is allowed there
    (
        "listen: {address: '127.0.0.1:1', allow: [put, lst]}",
        "its allow must be a list of commands, and 'lst' is none: put",
    ),
    ("listen: {address: '127.0.0.1:1', allow: all}", "and 'all' is none: put, get"),
    ("listen: {address: '127.0.0.1:1', allow: 7}", "and 7 is none"),
    ("listen: {address: '127.0.0.1:1', allow: [[put]]}", "and ['put'] is none"),
    ("listen: {address: '127.0.0.1:1', allow: [{}]}", "and a mapping is none"),
    ("listen: {address: '127.0.0.1:1', allow: [PUT]}", "and 'PUT' is none"),
    ("listen: {address: '0.0.0.0:1', allow: [ping]}", "0.0.0.0:1 can be reached"),
    # TLS
    ("listen: {address: '127.0.0.1:1', tls: maybe}", "its tls must be yes or no"),
    ("listen: {address: '127.0.0.1:1', tls: 1}", "its tls must be yes or no"),
    ("listen: {address: '127.0.0.1:1', tls: yes}", "127.0.0.1:1 is to speak TLS: tls_cert and tls_key must be set"),
    ("listen: {address: 'unix:s', tls: true}", "is a Unix socket, which speaks no TLS"),
    ("tls_cert: cert.pem", "tls_cert: got 'cert.pem'; goes with tls_key, which must be set too"),
    ("tls_key: key.pem", "tls_key: got 'key.pem'; goes with tls_cert, which must be set too"),
    ("tls_cert: true", "tls_cert: got true; must be a path"),
    ("{tls_cert: '', tls_key: a}", "tls_cert: got ''; must be a path"),
    ("{tls_cert: missing, tls_key: config.yaml}", "tls_cert: got 'missing'; must be a readable file: No such file"),
    ("{tls_cert: config.yaml, tls_key: .}", "tls_key: got '.'; must be a readable file: Is a directory"),
    ("listen: ['127.0.0.1:1', 'x']", "'x' must be HOST:PORT"),
    ("listen: ':7373'", "must be HOST:PORT"),
    ("listen: '*:7373'", "must be HOST:PORT"),
    ("listen: '::1:7373'", "must be HOST:PORT"),
    ("listen: '[::g]:7373'", "must be HOST:PORT"),
    ("listen: 127.0.0.1", "must be HOST:PORT"),
    ("listen: 127.0.0.1:65536", "port 0 to 65535"),
    ("listen: 127.0.0.1:-1", "port 0 to 65535"),
    ("listen: 127.0.0.1:٣", "port 0 to 65535"),
    ("listen: 'unix:'", "must be a path"),
    ("listen: unix:/" + "a" * 107, "1 to 107 bytes"),
    # addresses that others can reach
    ("listen: 0.0.0.0:7373", "0.0.0.0:7373 can be reached from other machines: set token or token_file"),
    ("listen: '[::]:7373'", "[::]:7373 can be reached"),
    ("listen: ['127.0.0.1:7373', '192.168.1.2:7373']", "192.168.1.2:7373 can be reached"),
    ("listen: example.org:7373", "can be reached"),
    ("listen: '[::ffff:10.0.0.1]:7373'", "can be reached"),
    ("listen: 127.1:7373", "can be reached"),
    ("listen: localhost.evil.example:7373", "can be reached"),
    ("http: 0.0.0.0:7374", "http: got '0.0.0.0:7374'; 0.0.0.0:7374 can be reached from other machines: set token or"),
    ("http: store.example:7374", "store.example:7374 can be reached"),
    ("http: 7374", "http: got 7374; must be HOST:PORT, [IPV6]:PORT (port 0 to 65535) or unix:PATH, or null"),
    ("http: http://127.0.0.1:7374/", "must be HOST:PORT, [IPV6]:PORT (port 0 to 65535) or unix:PATH, or null"),
    ("http: [127.0.0.1:7374]", "or null"),
    ("http: true", "or null"),
    # paths
    ("path: 2024", "path: got 2024; must be a path"),
    ("path: ''", "path: got ''; must be a path"),
    ("path:", "path: got null; must be a path"),
    ("path: [a]", "path: got ['a']; must be a path"),
    ('path: "a\\0b"', "must be a path"),
    ('path: "\\ud800"', "can encode"),
    ("path: ~/store", "~ does not stand for a home directory"),
    ("roots: []", "one or more existing directories"),
    ("roots: .", "must be a list"),
    ("roots: null", "must be a list"),
    ("roots: [., missing]", "'missing' must be an existing directory"),
    ("roots: [config.yaml]", "must be an existing directory"),
    ("roots: [1]", "must be a path"),
    ("roots: [[.]]", "must be a path"),
    # numbers
    ("processes: 0", "processes: got 0; must be a whole number from 1 to 256, or auto"),
    ("processes: 257", "from 1 to 256"),
    ("processes: true", "processes: got true; must be a whole number from 1 to 256"),
    ("processes: '4'", "from 1 to 256"),
    ("processes: 2.5", "from 1 to 256"),
    ("processes: many", "from 1 to 256"),
    ("max_clients: 0", "from 1 to 100000"),
    ("max_clients: 100001", "from 1 to 100000"),
    ("max_clients: " + "9" * 5000, "from 1 to 100000"),
    ("idle_timeout: -1", "must be 0 to 31536000 seconds"),
    ("idle_timeout: 10:00", "must be 0 to 31536000 seconds"),
    ("idle_timeout: .nan", "must be 0 to 31536000 seconds"),
    ("idle_timeout: .inf", "must be 0 to 31536000 seconds"),
    ("idle_timeout: false", "must be 0 to 31536000 seconds"),
    ("line_timeout: 0", "must be 0.01 to 3600 seconds"),
    ("stop_timeout: 30s", "must be 0 to 3600 seconds"),
    ("verify_every: -1", "verify_every: got -1; must be 0.000010 to 36500 days, or 0 for never"),
    ("verify_every: 0.000009", "must be 0.000010 to 36500 days, or 0 for never"),
    ("verify_every: 36501", "must be 0.000010 to 36500 days, or 0 for never"),
    ("verify_every: never", "must be 0.000010 to 36500 days, or 0 for never"),
    ("verify_every: false", "must be 0.000010 to 36500 days, or 0 for never"),
    ("verify_every: .nan", "must be 0.000010 to 36500 days, or 0 for never"),
    ("verify_every: null", "must be 0.000010 to 36500 days, or 0 for never"),
    ("level: 0", "from 1 to 19 with codec zstd"),
    ("level: 20", "from 1 to 19 with codec zstd"),
    ("{level: 20, codec: auto}", "from 1 to 19 with codec auto"),
    ("{level: 10, codec: zlib}", "from 1 to 9 with codec zlib"),
    ("level: fast", "1 to 19 for zstd, 1 to 9 for zlib"),
    ("{level: fast, codec: none}", "1 to 19 for zstd"),
    # sizes
    (
        "memory: 12XB",
        "memory: got '12XB'; must be 1MiB to 16TiB, but it is not a size: bytes, or a number with",
    ),
    ("memory: true", "is not a size"),
    ("memory: -5", "is not a size"),
    ("memory: -5M", "is not a size"),
    ("memory: 1e9", "is not a size"),
    ("memory: null", "is not a size"),
    ("memory: 1,5G", "is not a size"),
    ("memory: 17T", "must be 1MiB to 16TiB"),
    ("memory: 0", "must be 1MiB to 16TiB"),
    ("memory: 0.3KiB", "whole number of bytes"),
    ("memory: 2MiB", "must be at least "),
    ("part_size: 4095", "part_size: got 4095; must be 4KiB to 64MiB"),
    ("part_size: 65MiB", "must be 4KiB to 64MiB"),
    ("part_size: 64MiB", "memory: got '256MiB' (the default); must be at least "),
    ("processes: 256", "fewer processes or smaller parts"),
    # words
    ("codec: lz4", "codec: got 'lz4'; must be auto, zstd, zlib or none"),
    ("codec: null", "must be auto, zstd, zlib or none"),
    ("codec: [zstd]", "must be auto, zstd, zlib or none"),
    ("codec: ZSTD", "must be auto, zstd, zlib or none"),
    ("durability: sometimes", "must be always or none"),
    ("allow_exit: true", "must be local, anyone or nobody"),
    ("loop: trio", "must be uvloop or asyncio"),
    ("log_format: xml", "must be plain or json"),
    ("log_level: trace", "must be debug, info, warning or error"),
    ('log_level: "in\\nfo"', "must be debug, info, warning or error"),
    # tokens
    ("token: short12", "token: got a value; must be 8 to 1024 characters"),
    ("token: ''", "must be 8 to 1024 characters"),
    ("token: two words", "none of them whitespace"),
    ('token: "ring\\athe-bell"', "whitespace or control"),
    ("token: [abcdefgh]", "must be 8 to 1024 characters"),
    ("token: {abcdefgh: abcdefgh}", "must be 8 to 1024 characters"),
    ("token: " + "x" * 1025, "8 to 1024"),
    ("token_file: missing", "token_file: got 'missing'; must be a readable file: No such file"),
    ("token_file: .", "Is a directory"),
    ("token_file: 7", "must be a path"),
    (f"{{token: {SECRET}, token_file: x}}", "must be null when token is set"),
]


@pytest.mark.parametrize(("text", "expected"), BAD, ids=[str(text[:40]) for text, _ in BAD])
def test_bad(loaded: Loader, tmp_path: Path, text: str | bytes, expected: str) -> None:
    message = refusal(loaded, text)
    assert message.startswith(f"{tmp_path}/config.yaml: ")
    assert expected in message


def test_the_file_is_named_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a\nb.yaml").write_text("codec: lz4")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^'a\\nb.yaml': codec: "):
        load(Path("a\nb.yaml"), {})


def test_a_missing_file_tells_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=f"^{tmp_path}/none.yaml: no such configuration file; .*--config FILE$"):
        load(Path("none.yaml"), {})


@pytest.mark.parametrize("name", [".", "nul\0"])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: .*--config FILE$") as caught:
        load(tmp_path / name, {})
    assert caught.value.message.isprintable()


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(st.sampled_from("abc:-[]{}\"'\\&*!|>%@#?, \n\t0x"), max_size=60).map(str.encode),
        st.builds("{}: {}".format, st.sampled_from(KEYS), st.text(max_size=30)).map(
            lambda text: text.encode(errors="replace")
        ),
    )
)
def test_whatever_the_file_holds_it_is_a_config_or_one_line(loaded: Loader, raw: bytes) -> None:
    try:
        loaded(raw)
    except ConfigError as error:
        assert error.message.isprintable()


# --- sizes and addresses ------------------------------------------------------------------------

SIZES = [
    (0, 0),
    (4096, 4096),
    ("7B", 7),
    ("1K", 1024),
    ("1k", 1024),
    ("1Ki", 1024),
    ("1KiB", 1024),
    ("1kib", 1024),
    ("1KB", 1000),
    ("1 MB", 10**6),
    ("2M", 2 << 20),
    ("3GB", 3 * 10**9),
    ("3G", 3 << 30),
    ("1TiB", 1 << 40),
    ("1TB", 10**12),
    ("1.5GiB", 3 << 29),
    ("0.001KB", 1),
    ("0.1MB", 100_000),
]


@pytest.mark.parametrize(("text", "size"), SIZES)
def test_sizes(text: object, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "K", "1 ", "1  K", "1Bi", "1KBi", "1P", "+1K", "1.K", ".5K", "1e3K", "٣K", 1.5, True]
)
def test_no_sizes(text: object) -> None:
    with pytest.raises(ValueError, match=r"powers of 1024.*powers of 1000"):
        parse_size(text)


@pytest.mark.parametrize("text", ["0.1K", "0.5B", "1.0001KB"])
def test_fractions_of_a_byte(text: str) -> None:
    with pytest.raises(ValueError, match="whole number of bytes"):
        parse_size(text)


@given(st.integers(min_value=0, max_value=10**18 - 1))
def test_a_formatted_size_reads_back(size: int) -> None:
    assert parse_size(format_size(size).replace("bytes", "B")) == size


@pytest.mark.parametrize("text", ["127.0.0.1:7373", "[::1]:0", "[fe80::1%eth0]:1", "host.example:80", "unix:/run/p"])
def test_an_address_is_shown_as_it_is_written(text: str) -> None:
    assert str(parse_address(text, Path("/"))) == text


# --- relative paths -----------------------------------------------------------------------------


def test_relative_paths_count_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    (home / "in").mkdir(parents=True)
    elsewhere.mkdir()
    (home / "c.yaml").write_text("{path: s, roots: [in], listen: unix:p.sock, token_file: secret}")
    (home / "secret").write_text(SECRET)
    (home / "secret").chmod(0o600)
    monkeypatch.chdir(elsewhere)
    config = load(Path("../home/c.yaml"), {})
    base = elsewhere / "../home"
    assert config.path == base / "s"
    assert config.roots == (base / "in",)
    assert config.listen == plain(UnixAddress(base / "p.sock"))
    assert config.token_file == base / "secret"


def test_relative_paths_from_the_environment_count_from_the_file(
    loaded: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.chdir("/")
    config = loaded(PFSD_PATH="s", PFSD_ROOTS="in,/", PFSD_LISTEN="unix:a,localhost:1")
    assert config.path == tmp_path / "s"
    assert config.roots == (tmp_path / "in", Path("/"))
    assert config.listen == plain(UnixAddress(tmp_path / "a"), TcpAddress("localhost", 1))


# --- environment --------------------------------------------------------------------------------

OVERRIDES: dict[str, tuple[str, object]] = {
    "listen": ("127.0.0.1:1, [::1]:2", plain(TcpAddress("127.0.0.1", 1), TcpAddress("::1", 2))),
    "http": ("[::1]:7374", TcpAddress("::1", 7374)),
    "path": ("/elsewhere", Path("/elsewhere")),
    "processes": ("3", 3),
    "memory": (" 512MiB ", 512 * MIB),
    "part_size": ("65536", 64 * KIB),
    "codec": ("zlib", "zlib"),
    "level": ("5", 5),
    "roots": ("/", (Path("/"),)),
    "token": ("1234567890", "1234567890"),
    "token_file": ("null", None),
    "tls_cert": ("null", None),
    "tls_key": ("~", None),
    "allow_exit": ("anyone", "anyone"),
    "durability": ("none", "none"),
    "md5": ("hashlib", "hashlib"),
    "verify_every": ("0.5", 0.5),
    "loop": ("asyncio", "asyncio"),
    "max_clients": ("5", 5),
    "idle_timeout": ("0", 0.0),
    "line_timeout": ("1.5", 1.5),
    "stop_timeout": ("1", 1.0),
    "log_level": ("error", "error"),
    "log_format": ("json", "json"),
}


@pytest.mark.parametrize("key", KEYS)
def test_every_key_can_be_overridden(loaded: Loader, key: str) -> None:
    text, expected = OVERRIDES[key]
    in_file = "codec: [broken]" if key == "codec" else ""
    assert getattr(loaded(in_file, **{f"PFSD_{key.upper()}": text}), key) == expected


def test_the_environment_can_point_away_from_the_token_file(loaded: Loader) -> None:
    config = loaded("token_file: missing", PFSD_TOKEN_FILE="~", PFSD_TOKEN=SECRET)
    assert (config.token, config.token_file) == (SECRET, None)


def test_other_variables_are_ignored(loaded: Loader) -> None:
    assert loaded(PFSD_MEMROY="1", PFSD_="2", PFSD_CONFIG="3", pfsd_memory="4", MEMORY="5") == loaded()


BAD_VARIABLES = [
    ("PFSD_MEMORY", "lots", "memory: got 'lots'; must be 1MiB to 16TiB"),
    ("PFSD_MEMORY", "", "memory: got null; must be 1MiB to 16TiB"),
    ("PFSD_PROCESSES", "0", "processes: got 0; must be a whole number from 1 to 256"),
    ("PFSD_LISTEN", "", "listen: got ['']; must be HOST:PORT"),
    ("PFSD_LISTEN", "127.0.0.1:1,", "listen: got ['127.0.0.1:1', '']; '' must be HOST:PORT"),
    ("PFSD_LISTEN", "0.0.0.0:1", "listen: got ['0.0.0.0:1']; 0.0.0.0:1 can be reached"),
    ("PFSD_LISTEN", "{address: 127.0.0.1:1}", "listen: got ['{address: 127.0.0.1:1}']; must be HOST:PORT"),
    ("PFSD_TLS_CERT", "x", "tls_cert: got 'x'; goes with tls_key"),
    ("PFSD_ROOTS", "", "roots: got ['']; must be a path"),
    ("PFSD_PATH", "a\nb\0", "path: got 'a\\nb\\x00'; must be a path"),
    ("PFSD_CODEC", "\udcff\x1b[0m", "codec: got '\\udcff\\x1b[0m'; must be auto, zstd"),
    ("PFSD_LEVEL", "x" * 5000, "level: got '" + "x" * 79 + "...; must be"),
    ("PFSD_TOKEN", "", "token: got a value; must be 8 to 1024"),
    ("PFSD_TOKEN", "null", "token: got a value; must be 8 to 1024"),
    ("PFSD_TOKEN", "bytes-\udcff\udcfe", "token: got a value; must be 8 to 1024"),
    ("PFSD_TOKEN_FILE", "/nowhere", "token_file: got '/nowhere'; must be a readable file"),
]


@pytest.mark.parametrize(("name", "text", "expected"), BAD_VARIABLES)
def test_bad_variables(loaded: Loader, name: str, text: str, expected: str) -> None:
    message = refusal(loaded, "codec: zstd", **{name: text})
    assert message.startswith(f"environment variable {name}: {expected}")


# --- token --------------------------------------------------------------------------------------


def token_file(tmp_path: Path, content: bytes, mode: int = 0o600) -> Path:
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("content", [b"%s", b"%s\n", b"  %s\r\n", b"%s\nsecond line\n"])
def test_the_token_is_the_first_line_of_its_file(loaded: Loader, tmp_path: Path, content: bytes) -> None:
    token_file(tmp_path, content % SECRET.encode())
    config = loaded("{token_file: token, listen: '0.0.0.0:7373'}")
    assert (config.token, config.token_file) == (SECRET, tmp_path / "token")


@pytest.mark.parametrize("content", [b"", b"\n", b"\n" + SECRET.encode(), b"short", b"two words\n", b"\xff" * 9])
def test_a_bad_token_file_is_refused_unseen(loaded: Loader, tmp_path: Path, content: bytes) -> None:
    token_file(tmp_path, content)
    message = refusal(loaded, "token_file: token")
    assert "config.yaml: token_file: got 'token'; " in message
    assert "must " in message
    for line in content.decode(errors="replace").split():
        assert line not in message


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o602, 0o620])
def test_a_token_file_that_others_can_open_is_refused(loaded: Loader, tmp_path: Path, mode: int) -> None:
    token_file(tmp_path, SECRET.encode(), mode)
    message = refusal(loaded, "token_file: token")
    assert "chmod 600" in message
    assert f"{mode:04o}" in message


@pytest.mark.parametrize("mode", [0o400, 0o600, 0o700])
def test_a_private_token_file_will_do(loaded: Loader, tmp_path: Path, mode: int) -> None:
    token_file(tmp_path, SECRET.encode(), mode)
    assert loaded("token_file: token").token == SECRET


def test_a_fifo_is_no_token_file(loaded: Loader, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "token", 0o600)
    assert "must be a regular file" in refusal(loaded, "token_file: token")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_token_file(loaded: Loader, tmp_path: Path) -> None:
    token_file(tmp_path, SECRET.encode(), 0)
    assert "Permission denied" in refusal(loaded, "token_file: token")


def test_a_file_that_holds_the_token_and_is_open_to_others_is_warned_of(loaded: Loader, tmp_path: Path) -> None:
    assert any("chmod 600" in warning for warning in loaded(f"token: {SECRET}").warnings)
    assert loaded(PFSD_TOKEN=SECRET).warnings == (), "the file does not hold it"
    (tmp_path / "config.yaml").chmod(0o600)
    config = loaded(f"token: {SECRET}")
    assert config.warnings == ()


# --- TLS ----------------------------------------------------------------------------------------


@pytest.fixture
def certificate(tmp_path: Path) -> None:
    """cert.pem and key.pem beside the configuration."""
    make_certificate(tmp_path)


TLS = "tls_cert: cert.pem, tls_key: key.pem"


@needs_openssl
@pytest.mark.usefixtures("certificate")
def test_tcp_speaks_tls_unless_it_says_no_and_unix_sockets_never_do(loaded: Loader) -> None:
    listen = "['127.0.0.1:1', {address: '127.0.0.1:2', tls: no}, {address: '127.0.0.1:3', tls: yes}, 'unix:s']"
    config = loaded(f"{{{TLS}, listen: {listen}}}")
    assert [listener.tls for listener in config.listen] == [True, False, True, False]


@needs_openssl
@pytest.mark.usefixtures("certificate")
def test_an_open_address_with_a_token_and_no_tls_is_warned_of(loaded: Loader, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch(mode=0o600)
    open_ = f"token: {SECRET}, listen: ['0.0.0.0:7373', '127.0.0.1:1']"
    (warning,) = loaded(f"{{{open_}}}").warnings
    assert warning.startswith("0.0.0.0:7373 can be reached from other machines") and SECRET not in warning
    assert loaded(f"{{{open_}, {TLS}}}").warnings == ()


@needs_openssl
def test_http_takes_the_token_and_the_certificate(loaded: Loader, tmp_path: Path) -> None:
    make_certificate(tmp_path)
    open_ = "http: '0.0.0.0:7374'"
    (warning,) = loaded(open_, PFSD_TOKEN=SECRET).warnings
    assert warning.startswith("0.0.0.0:7374 can be reached from other machines")
    config = loaded(f"{{{open_}, {TLS}}}", PFSD_TOKEN=SECRET)
    assert config.warnings == () and config.http_tls
    assert not loaded(open_, PFSD_TOKEN=SECRET).http_tls
    config = loaded(f"{{http: 'unix:web', {TLS}}}")
    assert config.http == UnixAddress(tmp_path / "web") and not config.http_tls


@needs_openssl
@pytest.mark.parametrize(
    ("cert", "key", "expected"),
    [
        ("cert.pem", "other/key.pem", "tls_key: got 'other/key.pem'; must be the key of tls_cert in PEM form"),
        ("key.pem", "key.pem", "tls_cert: got 'key.pem'; must be a certificate in PEM form, but it holds no"),
        ("cert.pem", "cert.pem", "is open to others"),
        ("cert.pem", "nonsense", "but it holds no key without password"),
        ("cert.pem", "locked", "but it holds no key without password"),
        ("nonsense", "key.pem", "but it holds no certificate"),
        ("empty", "key.pem", "but it holds no certificate"),
        ("missing", "key.pem", "tls_cert: got 'missing'; must be a readable file: No such"),
        (".", "key.pem", "must be a readable file: Is a directory"),
        ("old/cert.pem", "old/key.pem", "but it has expired"),
        ("cert.pem", "fifo", "tls_key: got 'fifo'; must be a regular file"),
        ("fifo", "key.pem", "tls_cert: got 'fifo'; must be a regular file"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("certificate")
def test_bad_certificates(loaded: Loader, tmp_path: Path, cert: str, key: str, expected: str) -> None:
    make_certificate(tmp_path / "other")
    make_certificate(tmp_path / "old", expired=True)
    for name, content in (("nonsense", b"\xff\x00nonsense"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
    make_certificate(tmp_path / "locked-away", password="secret")
    (tmp_path / "locked-away/key.pem").rename(tmp_path / "locked")
    os.mkfifo(tmp_path / "fifo", 0o600)
    assert expected in refusal(loaded, f"{{tls_cert: {cert}, tls_key: {key}}}")


@needs_openssl
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
@pytest.mark.usefixtures("certificate")
def test_a_key_that_others_can_open_is_refused(loaded: Loader, tmp_path: Path, mode: int) -> None:
    (tmp_path / "key.pem").chmod(mode)
    assert f"tls_key: got 'key.pem'; is open to others (mode {mode:04o})" in refusal(loaded, f"{{{TLS}}}")


# --- secrets ------------------------------------------------------------------------------------


def test_the_token_is_shown_nowhere(loaded: Loader) -> None:
    config = loaded(f"token: {SECRET}")
    assert SECRET not in repr(config)
    assert SECRET not in str(config)
    assert "processes=" in repr(config)
    for text in (f"token: {SECRET} x", f"token: [{SECRET}]", f"token: {{{SECRET}: 1}}", f"token: *{SECRET}"):
        assert SECRET not in refusal(loaded, text)
    for text in (f"token: !{SECRET}", f"token: &{SECRET}", f"tokn: {SECRET}", SECRET):
        assert SECRET not in refusal(loaded, text)
    assert SECRET not in refusal(loaded, "", PFSD_TOKEN=f"{SECRET} ")


# --- memory -------------------------------------------------------------------------------------


@pytest.fixture
def four_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})


def test_a_worker_holds_three_parts_and_its_coder() -> None:
    for part_size in (4 * KIB, MIB, 64 * MIB):
        without, with_zstd = (worker_overhead(codec, 1, part_size) for codec in ("none", "zstd"))
        assert 3 * part_size <= without <= with_zstd


@pytest.mark.usefixtures("four_cpus")
@pytest.mark.parametrize("memory", ["64MiB", "100MB", "256MiB", "4GiB"])
@pytest.mark.parametrize("part_size", ["4KiB", "5000", "1MiB"])
@pytest.mark.parametrize("codec", ["zstd", "zlib", "none"])
def test_the_slab_is_what_the_others_leave(loaded: Loader, memory: str, part_size: str, codec: str) -> None:
    config = loaded(f"{{memory: {memory}, part_size: {part_size}, codec: {codec}}}")
    others = config.processes * worker_overhead(codec, 1, config.part_size) + DAEMON_RESERVE
    assert 0 <= config.memory - others - config.slab_size < SLAB_UNIT
    assert config.slab_size % SLAB_UNIT == 0
    assert config.slab_size >= 2 * config.part_size
    assert 1 <= config.run_parts <= 16


@pytest.mark.usefixtures("four_cpus")
@pytest.mark.parametrize("processes", ["1", "2", "7", "256", "auto"])
@pytest.mark.parametrize("part_size", ["5000", "1MiB", "33MB", "64MiB"])
def test_the_least_memory_it_names_works(loaded: Loader, processes: str, part_size: str) -> None:
    text = f"{{processes: {processes}, part_size: {part_size}, memory: %s}}"
    message = refusal(loaded, text % "1MiB")
    found = re.search(r"must be at least (\w+) with processes (\d+) and part_size ", message)
    assert found is not None
    assert found[2] == processes.replace("auto", "1")
    config = loaded(text % found[1])
    assert config.slab_size >= 2 * config.part_size
    refusal(loaded, text % (parse_size(found[1]) - MIB))


def test_least_memory_is_exact(loaded: Loader) -> None:
    for part_size in (5000, MIB, 33_000_000):
        least = least_memory(2, worker_overhead("zstd", 1, part_size), part_size)
        text = f"{{processes: 2, part_size: {part_size}, memory: %d}}"
        assert loaded(text % least).slab_size >= 2 * part_size
        refusal(loaded, text % (least - 1))


def test_auto_leaves_half_of_the_memory() -> None:
    overhead = 5 * MIB
    assert auto_processes(4, 256 * MIB, overhead) == 4
    assert auto_processes(64, 256 * MIB, overhead) == 24
    assert auto_processes(4, 46 * MIB, overhead) == 3
    assert auto_processes(4, 46 * MIB - 2, overhead) == 2
    assert auto_processes(4, 16 * MIB, overhead) == 1
    assert auto_processes(1000, 1 << 40, overhead) == 256


@pytest.mark.usefixtures("four_cpus")
def test_auto_counts_the_cores_of_this_process(loaded: Loader) -> None:
    assert loaded("memory: 4GiB").processes == 4
    assert loaded("memory: 4GiB", PFSD_PROCESSES="auto").processes == 4


def test_runs_leave_room_for_two_for_each_worker(loaded: Loader) -> None:
    assert loaded("{processes: 1, memory: 4GiB}").run_parts == 16
    config = loaded("{processes: 4, memory: 256MiB, part_size: 4MiB, codec: none}")
    assert config.run_parts == config.slab_size // config.part_size // 8 > 1
    least = least_memory(4, worker_overhead("none", 1, MIB), MIB)
    assert loaded(f"{{processes: 4, memory: {least}, codec: none}}").run_parts == 1


# --- reloading ----------------------------------------------------------------------------------


@pytest.fixture
def reloaded(loaded: Loader, tmp_path: Path) -> Callable[[str, str], Reloaded]:
    """What a daemon that was started with one text does with another."""

    def from_to(before: str, after: str) -> Reloaded:
        running = loaded(before)
        (tmp_path / "config.yaml").write_text(after)
        return reload(tmp_path / "config.yaml", {}, running)

    return from_to


def test_a_reload_takes_what_is_live_and_names_the_rest(reloaded: Callable[[str, str], Reloaded]) -> None:
    config, changed, waiting = reloaded("{processes: 1}", "{processes: 2, memory: 512MiB, log_level: debug}")
    assert (config.processes, config.memory, config.log_level) == (1, 256 * MIB, "debug")
    assert (changed, waiting) == (("log_level",), ("processes", "memory"))
    assert reloaded("", "").changed == reloaded("", "").waiting == ()


def test_stronger_coding_is_live_as_long_as_its_memory_was_there(reloaded: Callable[[str, str], Reloaded]) -> None:
    for before, after, waits in (
        ("level: 3", "level: 1", ()),
        ("level: 3", "level: 4", ()),
        ("level: 3", "level: 9", ("level",)),
        ("codec: zlib", "{codec: zstd, level: 19}", ("codec", "level")),
        ("codec: auto", "{codec: zstd, level: 6}", ()),
    ):
        config, _, waiting = reloaded(before, after)
        assert waiting == waits, (before, after)
        overhead = worker_overhead(config.codec, config.level, config.part_size)
        assert config.slab_size + config.processes * overhead + DAEMON_RESERVE <= config.memory


def test_what_was_weakened_may_be_strengthened_again(loaded: Loader, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    running = loaded("level: 9")
    for level in (1, 9):
        file.write_text(f"level: {level}")
        running, _, waiting = reload(file, {}, running)
        assert running.level == level and not waiting


def test_addresses_need_a_restart_and_what_is_allowed_there_does_not(
    reloaded: Callable[[str, str], Reloaded],
) -> None:
    config, changed, waiting = reloaded("listen: 127.0.0.1:1", "listen: {address: '127.0.0.1:1', allow: list}")
    assert config.listen[0].allow == {"list"} | BEFORE_AUTH
    assert (changed, waiting) == (("listen",), ())
    config, changed, waiting = reloaded("listen: 127.0.0.1:1", "listen: [127.0.0.1:1, 127.0.0.1:2]")
    assert len(config.listen) == 1
    assert (changed, waiting) == ((), ("listen",))


@pytest.mark.promise("local")
def test_an_open_address_does_not_lose_its_token_while_it_waits(reloaded: Callable[[str, str], Reloaded]) -> None:
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0:1 is open until a restart, and needs a token"):
        reloaded(f"{{listen: 0.0.0.0:1, token: {SECRET}}}", "listen: 127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"http: 0\.0\.0\.0:1 is open until a restart, and needs a token"):
        reloaded(f"{{http: 0.0.0.0:1, token: {SECRET}}}", "http: 127.0.0.1:1")


@pytest.mark.promise("local")
@needs_openssl
def test_an_address_with_tls_does_not_lose_its_certificate_while_it_waits(
    reloaded: Callable[[str, str], Reloaded], tmp_path: Path
) -> None:
    make_certificate(tmp_path)
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:1 is open until a restart, and needs tls_cert"):
        reloaded("{listen: 127.0.0.1:1, tls_cert: cert.pem, tls_key: key.pem}", "listen: 127.0.0.1:2")


@pytest.mark.promise("local")
@pytest.mark.parametrize(
    ("mode", "fits"), [(0o440, True), (0o400, True), (0o460, False), (0o444, False), (0o404, False)]
)
def test_what_root_lends_this_user_may_be_for_its_group(
    loaded: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, fits: bool
) -> None:
    """As credentials of systemd are."""
    path = tmp_path / "token"
    path.write_text(SECRET)
    path.chmod(mode)
    fstat = os.fstat
    monkeypatch.setattr(os, "fstat", lambda fd: _of(fstat(fd), uid=0))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    if fits:
        assert loaded("token_file: token").token == SECRET
    else:
        assert "must be private" in refusal(loaded, "token_file: token")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    if mode & 0o077:
        assert "must be private" in refusal(loaded, "token_file: token")


def _of(found: os.stat_result, uid: int) -> os.stat_result:
    return os.stat_result([*found[:4], uid, *found[5:]])
