"""Certificates of the tests' own, each for localhost and vouching for itself, made with the `openssl` program."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl program")

#: `openssl req` makes none that has expired; `openssl ca` does, and wants all this.
_AUTHORITY = """
[ca]
default_ca = here
[here]
database = index
new_certs_dir = .
rand_serial = yes
default_md = sha256
policy = any
[any]
commonName = supplied
"""


def make_certificate(directory: Path, expired: bool = False, password: str = "") -> Path:
    """Make `cert.pem`, for localhost and 127.0.0.1, and `key.pem` in a directory; returns the certificate's path."""
    directory.mkdir(exist_ok=True)
    locked = ["-passout", f"pass:{password}"] if password else ["-nodes"]
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", *locked, "-keyout", "key.pem"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    if expired:
        (directory / "authority").write_text(_AUTHORITY)
        (directory / "index").touch()
        _openssl(directory, "req", "-new", *key, *names, "-out", "request")
        dates = ["-startdate", "20200101000000Z", "-enddate", "20200102000000Z"]
        own = ["-batch", "-config", "authority", "-selfsign", "-keyfile", "key.pem", "-in", "request"]
        _openssl(directory, "ca", *own, *dates, "-notext", "-out", "cert.pem")
    else:
        _openssl(directory, "req", "-x509", *key, *names, "-days", "2", "-out", "cert.pem")
    (directory / "key.pem").chmod(0o600)
    return directory / "cert.pem"


def _openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=directory)
