"""The configuration: one YAML file, overridden key by key from the environment, checked as a whole.

`load` is the only way in, and `reload` while a daemon runs; what they return is complete, typed and fits together, so
nothing else in the daemon checks a setting again. Each key is one line of `Config`: its type, its default as one would
write it in the file, the function of `kinds` that reads it, and whether a running daemon can change it (`live`).
`config.yaml` explains the keys to people.

This module never opens a socket, starts a process or touches the store. It reads the configuration file, the
token file and those of TLS, and asks whether the roots are directories.

A plain YAML word is null (``null``, ``~`` or nothing), ``true``, ``false``, a decimal number, or text. These
are the rules of YAML 1.2, not those of PyYAML, which would read ``idle_timeout: 10:00`` as 600 and
``level: 010`` as 8. An environment variable is read as a plain YAML word, but for three things: lists are
separated by commas, the token is always text, and nothing is quoted. `PFSD_` variables that name no key are
ignored.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from pfsd import codecs, coding, kinds
from pfsd.errors import ConfigError
from pfsd.kinds import KIB, MIB, TIB, Address, Listener, UnixAddress, format_size, printable, show
from pfsd.verbs import BEFORE_AUTH, VERBS

#: Where a value is from.
Source = Literal["file", "environment", "default"]
#: What a configuration is called in the directory of its user.
FILE_NAME = "config.yaml"
#: The configuration of a machine.
SYSTEM_FILE = Path("/etc/pfsd/config.yaml")

#: Bytes of `memory` kept for what the daemon holds besides the slab: socket buffers and journal batches.
DAEMON_RESERVE = 8 * MIB
#: The slab is a whole number of these many bytes, a multiple of every page size in use.
SLAB_UNIT = 64 * KIB
#: Most parts in one run. Longer ones save few journal bytes more, but delay the first byte of a get.
MAX_RUN_PARTS = 16

#: Of the mode of a file that holds a secret, what it must not have.
_OPEN = stat.S_IRGRP | stat.S_IWGRP | stat.S_IROTH | stat.S_IWOTH
#: A configuration is a page of text; anything bigger is some other file, and YAML is slow.
MAX_FILE_BYTES = 256 * KIB
#: A list in a mapping in a list is all the nesting there is; a little more lets the error name the key.
_MAX_DEPTH = 8


# --- the keys -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Key:
    default: object  # as it would stand in the file
    parse: kinds.Parser
    is_list: bool = False  # separated by commas in the environment
    is_secret: bool = False  # always text, and shown nowhere
    live: bool = False  # a reload can change it


def _key(
    default: object, parse: kinds.Parser, *, is_list: bool = False, is_secret: bool = False, live: bool = False
) -> Any:
    return field(metadata={"key": _Key(default, parse, is_list, is_secret, live)}, repr=not is_secret)


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings, checked. Paths are absolute, sizes are bytes, times are seconds."""

    listen: tuple[Listener, ...] = _key("127.0.0.1:7373", kinds.listeners(VERBS, BEFORE_AUTH), is_list=True, live=True)
    #: None is nowhere.
    http: Address | None = _key(None, kinds.optional_address)
    path: Path = _key("store", kinds.path)
    #: `auto` is already worked out.
    processes: int = _key("auto", kinds.processes)
    memory: int = _key("256MiB", kinds.size(1 * MIB, 16 * TIB))
    part_size: int = _key("1MiB", kinds.size(4 * KIB, 64 * MIB))
    codec: Literal["auto", "zstd", "zlib", "none"] = _key(
        "zstd", kinds.choice("auto", "zstd", "zlib", "none"), live=True
    )
    level: int = _key(1, kinds.level, live=True)
    roots: tuple[Path, ...] = _key(["."], kinds.directories, is_list=True, live=True)
    #: The token in force, from wherever it came; None if none is needed.
    token: str | None = _key(None, kinds.token, is_secret=True, live=True)
    token_file: Path | None = _key(None, kinds.optional_path, live=True)
    #: Both or none.
    tls_cert: Path | None = _key(None, kinds.optional_path, live=True)
    tls_key: Path | None = _key(None, kinds.optional_path, live=True)
    allow_exit: Literal["local", "anyone", "nobody"] = _key(
        "local", kinds.choice("local", "anyone", "nobody"), live=True
    )
    durability: Literal["always", "none"] = _key("always", kinds.choice("always", "none"))
    md5: Literal["auto", "hashlib"] = _key("auto", kinds.choice("auto", "hashlib"))
    #: In days; 0 is never.
    verify_every: float = _key(30, kinds.days_or_never, live=True)
    loop: Literal["uvloop", "asyncio"] = _key("uvloop", kinds.choice("uvloop", "asyncio"))
    max_clients: int = _key(1000, kinds.integer(1, 100_000), live=True)
    #: 0 is never.
    idle_timeout: float = _key(600, kinds.seconds(0, 31_536_000), live=True)
    line_timeout: float = _key(30, kinds.seconds(0.01, 3600), live=True)
    stop_timeout: float = _key(30, kinds.seconds(0, 3600), live=True)
    log_level: Literal["debug", "info", "warning", "error"] = _key(
        "info", kinds.choice("debug", "info", "warning", "error"), live=True
    )
    log_format: Literal["plain", "json"] = _key("plain", kinds.choice("plain", "json"), live=True)
    #: Bytes of the shared slab, the file data in flight: `memory` less what workers and daemon need.
    slab_size: int
    #: What can be used and is unwise, a sentence each: for the log.
    warnings: tuple[str, ...] = ()
    #: Where each key's value is from.
    sources: Mapping[str, Source] = field(default_factory=dict, compare=False, repr=False)

    @property
    def http_tls(self) -> bool:
        """Whether TLS is spoken where HTTP is."""
        return self.tls_cert is not None and not isinstance(self.http, UnixAddress)

    @property
    def run_parts(self) -> int:
        """Most parts in one run: few enough for two runs of each worker in the slab, one of them waiting."""
        return min(MAX_RUN_PARTS, max(1, self.slab_size // self.part_size // (2 * self.processes)))


_KEYS: dict[str, _Key] = {each.name: each.metadata["key"] for each in fields(Config) if each.metadata}
#: All keys, in the order of `Config`.
KEYS: tuple[str, ...] = tuple(_KEYS)
#: Those that a reload can change.
LIVE_KEYS = frozenset(key for key in KEYS if _KEYS[key].live)


# --- memory -------------------------------------------------------------------------------------


def worker_overhead(codec: str, level: int, part_size: int) -> int:
    """Bytes one I/O process may use beyond the shared slab.

    Three parts (one as it comes from the disk, one coded, one decoded) and what the coder itself works in, with
    codec auto at the strongest level it may choose.
    """
    return 3 * part_size + codecs.workspace(*coding.strongest(codec, level), part_size)


def auto_processes(cpus: int, memory: int, overhead: int) -> int:
    """One process for each of `cpus`, or as many as leave half of `memory` to the slab; at least one."""
    affordable = (memory // 2 - DAEMON_RESERVE) // overhead
    return max(1, min(cpus, affordable, kinds.MAX_PROCESSES))


def least_memory(processes: int, overhead: int, part_size: int) -> int:
    """Smallest `memory` that works: a slab of two parts, so that one is filled while the other is emptied."""
    slab = -(-2 * part_size // SLAB_UNIT) * SLAB_UNIT
    return processes * overhead + DAEMON_RESERVE + slab


# --- loading ------------------------------------------------------------------------------------


def find(environ: Mapping[str, str]) -> Path | None:
    """The configuration of who names none: $PFSD_CONFIG, the user's, or the system's; None if there is none."""
    if named := environ.get("PFSD_CONFIG"):
        return Path(named)
    places = (_user_folder(environ, "XDG_CONFIG_HOME", ".config") / FILE_NAME, SYSTEM_FILE)
    return next((path for path in places if path.exists()), None)


def home(environ: Mapping[str, str]) -> Path:
    """The directory that relative paths count from when there is no configuration file."""
    return _user_folder(environ, "XDG_DATA_HOME", ".local/share")


def make_home(environ: Mapping[str, str]) -> None:
    """Make `home`, for who goes without a file. ConfigError when that cannot be."""
    folder = home(environ)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        words = f"there is no configuration file, and {printable(str(folder))} cannot be made for the store"
        raise ConfigError(f"{words}: {error.strerror}; name a file with --config FILE") from None


def _user_folder(environ: Mapping[str, str], variable: str, default: str) -> Path:
    given = environ.get(variable, "")
    # A relative path in these means nothing, says their specification.
    base = Path(given) if os.path.isabs(given) else Path(environ.get("HOME") or os.path.expanduser("~"), default)
    return base / "pfsd"


def load(path: Path | None, environ: Mapping[str, str]) -> Config:
    """The configuration in the file at `path`, with each key that `environ` has as PFSD_<KEY> replaced.

    Relative paths, also those from the environment, count from the directory of `path`, or from `home` without a
    file. Raises ConfigError with one line that names the file or variable, the key, what was given, and what would be
    right.
    """
    base = home(environ) if path is None else path.absolute().parent
    in_file = {} if path is None else _read_file(path)
    asked = _Asked(_called(path), in_file, _read_environ(environ))
    values = {key: asked.parse(key, base) for key in KEYS}
    _check_level(asked, values)
    _settle_token(asked, values)
    _check_exposure(asked, values)
    _settle_tls(asked, values)
    _settle_processes(asked, values)
    return Config(
        **values,
        slab_size=_slab_size(values),
        warnings=tuple(_warnings(path, asked, values)),
        sources={key: asked.source(key) for key in KEYS},
    )


def _called(path: Path | None) -> str:
    return "no file" if path is None else printable(str(path))


class Reloaded(NamedTuple):
    """What is in force after a reload: keys that have another value now, and keys whose new value needs a restart."""

    config: Config
    changed: tuple[str, ...]
    waiting: tuple[str, ...]


def reload(path: Path | None, environ: Mapping[str, str], running: Config) -> Reloaded:
    """As `load`, for a daemon that runs with another configuration, of which it keeps what only a restart changes.

    ConfigError if the new one could not be started with, or does not go with what is kept.
    """
    wanted = load(path, environ)
    waiting = tuple(key for key in _differing(wanted, running) if _waits(key, wanted, running))
    kept: dict[str, Any] = {key: getattr(running, key) for key in waiting}
    sources = {**wanted.sources, **{key: running.sources[key] for key in waiting}}
    config = replace(wanted, **kept, slab_size=running.slab_size, sources=sources)
    if not {"listen", "http"}.isdisjoint(waiting):
        _check_kept_addresses(_called(path), config)
    return Reloaded(config, tuple(_differing(config, running)), waiting)


def _differing(one: Config, other: Config) -> list[str]:
    return [key for key in KEYS if getattr(one, key) != getattr(other, key)]


def _waits(key: str, wanted: Config, running: Config) -> bool:
    """Whether the new value of a key needs a restart."""
    if key == "listen":
        return [each.address for each in wanted.listen] != [each.address for each in running.listen]
    if key in ("codec", "level"):
        granted = (running.memory - DAEMON_RESERVE - running.slab_size) // running.processes
        return worker_overhead(wanted.codec, wanted.level, running.part_size) > granted
    return not _KEYS[key].live


def _check_kept_addresses(file: str, config: Config) -> None:
    """Addresses that stay open until a restart must not be left without what guards them."""
    kept = [("listen", listener.address, listener.tls) for listener in config.listen]
    if config.http is not None:
        kept.append(("http", config.http, False))  # TLS is spoken there if it can be
    for key, address, tls in kept:
        lost = None
        if config.token is None and not address.is_local:
            lost = "a token"
        elif tls and config.tls_cert is None:
            lost = "tls_cert"
        if lost:
            raise ConfigError(f"{file}: {key}: {address} is open until a restart, and needs {lost} until then")


class _Asked:
    """What was asked for, key by key, and where: in the environment, in the file, or by default."""

    def __init__(self, file: str, in_file: dict[str, object], in_environ: dict[str, object]) -> None:
        self._file = file
        self._environ = in_environ
        self._given = in_file.keys() | in_environ.keys()
        self._values = {key: _KEYS[key].default for key in KEYS} | in_file | in_environ

    def parse(self, key: str, base: Path) -> Any:
        try:
            return _KEYS[key].parse(self._values[key], base)
        except ValueError as error:
            raise self.refuse(key, str(error)) from None

    def source(self, key: str) -> Source:
        """Where the value in force is from."""
        if key in self._environ:
            return "environment"
        return "file" if key in self._given else "default"

    def refuse(self, key: str, reason: str) -> ConfigError:
        where = f"environment variable {variable(key)}" if key in self._environ else self._file
        shown = "a value" if _KEYS[key].is_secret else show(self._values[key])
        default = "" if key in self._given else " (the default)"
        return ConfigError(f"{where}: {key}: got {shown}{default}; {reason}")


def _check_level(asked: _Asked, values: dict[str, Any]) -> None:
    codec, level = values["codec"], values["level"]
    if codec not in kinds.LEVELS:
        return
    low, high = kinds.LEVELS[codec]
    if not low <= level <= high:
        raise asked.refuse("level", f"must be a whole number from {low} to {high} with codec {codec}")


def _settle_token(asked: _Asked, values: dict[str, Any]) -> None:
    if values["token_file"] is None:
        return
    if values["token"] is not None:
        raise asked.refuse("token_file", "must be null when token is set; give one of the two")
    try:
        values["token"] = _read_token(values["token_file"])
    except OSError as error:
        raise asked.refuse("token_file", f"must be a readable file: {os.strerror(error.errno or 0)}") from None
    except ValueError as error:
        raise asked.refuse("token_file", str(error)) from None


def _check_exposure(asked: _Asked, values: dict[str, Any]) -> None:
    """An address that other machines can reach needs a token."""
    if values["token"] is not None:
        return
    for listener in values["listen"]:
        if not listener.address.is_local:
            raise asked.refuse(
                "listen",
                f"{listener.address} can be reached from other machines: set token or token_file, "
                "or listen on 127.0.0.1, [::1], localhost or unix:PATH",
            )
    if values["http"] is not None and not values["http"].is_local:
        raise asked.refuse(
            "http",
            f"{values['http']} can be reached from other machines: set token or token_file, "
            "or take 127.0.0.1, [::1], localhost or unix:PATH",
        )


def _settle_tls(asked: _Asked, values: dict[str, Any]) -> None:
    """With a certificate every TCP address speaks TLS that does not say no; Unix sockets never do."""
    certificate, key = values["tls_cert"], values["tls_key"]
    for given, other in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        if values[given] is not None and values[other] is None:
            raise asked.refuse(given, f"goes with {other}, which must be set too")
    if certificate is not None:
        _check_certificate(asked, certificate, key)
    settled = []
    for listener in values["listen"]:
        is_tcp = not isinstance(listener.address, UnixAddress)
        if listener.tls and not is_tcp:
            raise asked.refuse("listen", f"{listener.address} is a Unix socket, which speaks no TLS; tls must be no")
        if listener.tls and certificate is None:
            raise asked.refuse("listen", f"{listener.address} is to speak TLS: tls_cert and tls_key must be set")
        speaks = is_tcp and certificate is not None and listener.tls is not False
        settled.append(listener._replace(tls=speaks))
    values["listen"] = tuple(settled)


def _check_certificate(asked: _Asked, certificate: Path, key: Path) -> None:
    from pfsd import certificates  # of those who have one

    for name, path, check in (("tls_cert", certificate, _check_regular), ("tls_key", key, _check_private)):
        try:
            with open(path, "rb", opener=_open_at_once) as file:
                check(os.fstat(file.fileno()))
        except OSError as error:
            raise asked.refuse(name, f"must be a readable file: {os.strerror(error.errno or 0)}") from None
        except ValueError as error:
            raise asked.refuse(name, str(error)) from None
    try:
        certificates.server_context(certificate, key)
    except certificates.BadCertificate as error:
        raise asked.refuse("tls_cert", f"must be a certificate in PEM form, but it {error}") from None
    except certificates.BadKey as error:
        raise asked.refuse("tls_key", f"must be the key of tls_cert in PEM form, but it {error}") from None


def _warnings(path: Path | None, asked: _Asked, values: dict[str, Any]) -> Iterator[str]:
    mode = 0 if path is None else stat.S_IMODE(os.stat(path).st_mode)
    if asked.source("token") == "file" and values["token"] is not None and mode & _OPEN:
        yield f"{printable(str(path))} holds the token and is open to others (mode {mode:04o}): chmod 600 the file"
    exposed = [listener.address for listener in values["listen"] if not listener.address.is_local and not listener.tls]
    if values["http"] is not None and not values["http"].is_local and values["tls_cert"] is None:
        exposed.append(values["http"])
    for address in exposed:
        yield (
            f"{address} can be reached from other machines, and token and files go there in plain text: "
            "set tls_cert and tls_key, or use a tunnel"
        )


def _settle_processes(asked: _Asked, values: dict[str, Any]) -> None:
    memory, part_size = values["memory"], values["part_size"]
    overhead = worker_overhead(values["codec"], values["level"], part_size)
    if values["processes"] == "auto":
        values["processes"] = auto_processes(len(os.sched_getaffinity(0)), memory, overhead)
    least = least_memory(values["processes"], overhead, part_size)
    if memory < least:
        raise asked.refuse(
            "memory",
            f"must be at least {format_size(-(-least // MIB) * MIB)} with processes {values['processes']} "
            f"and part_size {format_size(part_size)}; fewer processes or smaller parts need less",
        )


def _slab_size(values: dict[str, Any]) -> int:
    overhead = worker_overhead(values["codec"], values["level"], values["part_size"])
    left: int = values["memory"] - values["processes"] * overhead - DAEMON_RESERVE
    return left // SLAB_UNIT * SLAB_UNIT


def _open_at_once(path: str, flags: int) -> int:
    """An opener that does not wait for somebody to write into a FIFO."""
    return os.open(path, flags | os.O_NONBLOCK)


def _check_regular(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("must be a regular file")


def _check_private(found: os.stat_result) -> None:
    """ValueError for anything but a regular file that only its owner can open.

    What root has given this user to read may show so in its group bits, as credentials of systemd do.
    """
    _check_regular(found)
    is_lent = found.st_uid == 0 and os.geteuid() != 0
    mode = stat.S_IMODE(found.st_mode)
    if mode & (_OPEN & ~stat.S_IRGRP if is_lent else _OPEN):
        raise ValueError(f"is open to others (mode {mode:04o}) and must be private: chmod 600 the file")


def _read_token(path: Path) -> str:
    """First line of the token file, stripped. Raises OSError, or ValueError that never shows the content."""
    with open(path, "rb", opener=_open_at_once) as file:
        _check_private(os.fstat(file.fileno()))
        line = file.readline(MAX_FILE_BYTES)
    try:
        return kinds.check_token(line.decode().strip())
    except UnicodeDecodeError:
        raise ValueError("must hold the token as UTF-8 text in its first line") from None
    except ValueError as error:
        raise ValueError(f"its first line {error}") from None


# --- reading the file and the environment -------------------------------------------------------


def variable(key: str) -> str:
    """The environment variable that replaces a key."""
    return f"PFSD_{key.upper()}"


def is_secret(key: str) -> bool:
    """Whether a key's value is to be shown nowhere."""
    return _KEYS[key].is_secret


def _read_environ(environ: Mapping[str, str]) -> dict[str, object]:
    """The keys that `environ` sets."""
    return {key: _from_variable(_KEYS[key], environ[variable(key)]) for key in KEYS if variable(key) in environ}


def _from_variable(key: _Key, text: str) -> object:
    if key.is_secret:
        return text
    if key.is_list:
        return [item.strip() for item in text.split(",")]
    return _plain(text.strip())


def _read_file(path: Path) -> dict[str, object]:
    """The keys that the file sets, in no way checked but for being keys."""
    name = printable(str(path))
    try:
        with open(path, "rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        looked = printable(str(path.absolute()))
        raise ConfigError(f"{looked}: no such configuration file; name another one with --config FILE") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        words = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise ConfigError(f"{name}: cannot be read: {words}; name another file with --config FILE") from None
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"{name}: is no configuration file: over {format_size(MAX_FILE_BYTES)}")
    try:
        return _parse_yaml(raw.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{name}: must be UTF-8 text; byte {error.start} is not") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ConfigError(f"{name}: {_line(mark)}is not YAML: {printable(error.problem or 'syntax error')}") from None
    except yaml.YAMLError:
        raise ConfigError(f"{name}: is not YAML: it holds control characters") from None
    # PyYAML lets these two through for "\UFFFFFFFF".
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{name}: {printable(str(error))}") from None


def _parse_yaml(text: str) -> dict[str, object]:
    """The top mapping of a YAML document; ValueError or YAMLError if there is no such thing."""
    _refuse_indirections(text)
    top = yaml.compose(text, Loader=yaml.SafeLoader)
    if top is None or (isinstance(top, yaml.ScalarNode) and _value(top) is None):
        return {}
    if not isinstance(top, yaml.MappingNode):
        raise ValueError("must be lines of the form 'key: value'")
    values: dict[str, object] = {}
    for name, node in top.value:
        key = name.value if isinstance(name, yaml.ScalarNode) else None
        line = _line(name.start_mark)
        if key not in _KEYS:
            raise ValueError(f"{line}{show(key or _value(name))} is no key; the keys are {', '.join(KEYS)}")
        if key in values:
            raise ValueError(f"{line}{key}: is given twice; must be given once")
        values[key] = _secret(node) if _KEYS[key].is_secret else _value(node)
    return values


def _line(mark: Any) -> str:
    """Where a PyYAML mark is, to begin a message with."""
    return f"line {mark.line + 1}: " if mark else ""


def _refuse_indirections(text: str) -> None:
    """Refuse anchors and tags, which no setting needs, before a few lines of them grow into gigabytes."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = _line(event.start_mark)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError(f"{line}anchors (& and *) are not used here; quote text that begins with one")
        if getattr(event, "tag", None):
            raise ValueError(f"{line}tags (!) are not used here; quote text that begins with one")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"{line}lists within lists; no key needs more than one list")


def _value(node: yaml.Node) -> object:
    """What a node stands for: a scalar, a list, or a mapping, whose keys are text."""
    if isinstance(node, yaml.ScalarNode):
        return node.value if node.style else _plain(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_value(item) for item in node.value]
    values: dict[str, object] = {}
    for name, item in node.value:
        key = str(name.value) if isinstance(name, yaml.ScalarNode) else show(_value(name))
        if key in values:
            raise ValueError(f"{_line(name.start_mark)}{show(key)}: is given twice; must be given once")
        values[key] = _value(item)
    return values


def _secret(node: yaml.Node) -> object:
    """As `_value`, but 0012345678 is text and keeps its zeros."""
    value = _value(node)
    return node.value if isinstance(node, yaml.ScalarNode) and value is not None else value


_WORDS: dict[str, object] = {"": None, "~": None} | {
    form: meaning
    for word, meaning in {"null": None, "true": True, "false": False}.items()
    for form in (word, word.capitalize(), word.upper())
}
# No setting has more digits, and int() refuses thousands of them with an error of its own.
_INTEGER = re.compile(r"[-+]?[0-9]{1,18}")
_DECIMAL = re.compile(r"[-+]?[0-9]{1,18}\.[0-9]{1,18}")


def _plain(text: str) -> object:
    """What a word without quotes stands for."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _DECIMAL.fullmatch(text) else text
