"""`pfsd config`: the configuration as the daemon would use it, and where each value is from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pfsd import config, kinds
from pfsd.config import Config
from pfsd.kinds import Listener, printable

#: Sizes in bytes, which people write with a unit.
_SIZES = {"memory", "part_size"}


def show(settings: Config, file: Path | None, as_json: bool, say: Callable[[str], None]) -> None:
    """Each key, its value in force, and where that is from; secrets are only said to be set."""
    if as_json:
        say(json.dumps({"type": "config", "file": None if file is None else str(file.absolute())}))
    else:
        say(f"# {'no file' if file is None else printable(str(file.absolute()))}")
    for key in config.KEYS:
        value = _value(key, getattr(settings, key))
        source = settings.sources[key]
        if as_json:
            say(json.dumps({"type": "setting", "key": key, "value": value, "from": source}))
        else:
            say(f"{key}: {_yaml(key, value)}  # {_from(key, source)}")


def check(settings: Config, file: Path | None, as_json: bool, say: Callable[[str], None]) -> None:
    """That it can be used, and what of it is unwise."""
    name = "the defaults" if file is None else printable(str(file.absolute()))
    if as_json:
        for warning in settings.warnings:
            say(json.dumps({"type": "warning", "message": warning}))
        say(json.dumps({"type": "config", "file": None if file is None else str(file.absolute()), "usable": True}))
        return
    for warning in settings.warnings:
        say(f"warning: {warning}")
    say(f"{name}: can be used")


def _from(key: str, source: config.Source) -> str:
    return f"environment: {config.variable(key)}" if source == "environment" else source


def _value(key: str, value: Any) -> Any:
    """A value as JSON has it: bytes as numbers, paths as text."""
    if config.is_secret(key):
        return None if value is None else "(set)"
    if isinstance(value, Listener):
        return _listener(value)
    if isinstance(value, tuple):
        return [_value(key, item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return str(value) if isinstance(value, Path) else value


def _listener(listener: Listener) -> str | Mapping[str, Any]:
    address = str(listener.address)
    facts: dict[str, Any] = {"address": address}
    if listener.allow is not None:
        facts["allow"] = sorted(listener.allow)
    if listener.tls:
        facts["tls"] = True
    return facts if len(facts) > 1 else address


def _yaml(key: str, value: Any) -> str:
    """A value as the file would have it: JSON, which is YAML too, but for what needs no quotes."""
    if key in _SIZES and isinstance(value, int):
        return kinds.format_size(value).replace(" bytes", "")
    if isinstance(value, str) and value.replace("_", "").replace("-", "").isalnum() and not value.isdigit():
        return value
    return json.dumps(value, ensure_ascii=False)
