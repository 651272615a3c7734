"""TLS contexts, from certificates in PEM files: the daemon's end and the client's.

Knows files and `ssl`, never sockets. What makes a connection of them is the event loop, `link` and `tls`.
"""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path

#: OpenSSL's words for a certificate whose time is over, or has not come.
_UNTIMELY = {9: "is not valid yet", 10: "has expired"}

#: OpenSSL's reasons for refusing a certificate at its security level.
_TOO_WEAK = {"EE_KEY_TOO_SMALL", "CA_KEY_TOO_SMALL", "CA_MD_TOO_WEAK"}


class BadCertificate(Exception):
    """A certificate cannot be used; the text follows "must be ..., but it"."""


class BadKey(Exception):
    """A key cannot be used; as BadCertificate."""


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """The daemon's end, with Python's defaults: TLS 1.2 and later, no certificate asked of clients.

    `certificate` may hold the chain behind it. Raises BadCertificate, BadKey.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.options |= ssl.OP_NO_RENEGOTIATION  # a write never has to wait for the client's bytes
    _look_at(certificate)
    try:
        with open(key, "rb") as file:
            file.read(1)
    except OSError as error:
        raise BadKey(f"cannot be read: {error.strerror}") from None
    try:
        # Without a password at hand OpenSSL would ask on the terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason in _TOO_WEAK:
            raise BadCertificate("is too weak for OpenSSL here") from None
        words = (
            "is of another certificate" if error.reason == "KEY_VALUES_MISMATCH" else "holds no key without password"
        )
        raise BadKey(words) from None
    except OSError as error:
        raise BadKey(f"cannot be read: {error.strerror}") from None
    _check_time(context, certificate)
    return context


def client_context(ca: Path | None) -> ssl.SSLContext:
    """The client's end: the daemon must show a certificate for the name it is called by, which `ca` vouches for.

    Without `ca` that is whom this machine trusts. A self-signed certificate vouches for itself. BadCertificate.
    """
    if ca is None:
        return ssl.create_default_context()
    _look_at(ca)
    return ssl.create_default_context(cafile=ca)


def _look_at(certificate: Path) -> None:
    """Raise BadCertificate when a file holds none."""
    try:
        with open(certificate, "rb") as file:
            file.read(1)
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(certificate)
    except ssl.SSLError:
        raise BadCertificate("holds no certificate in PEM form") from None
    except OSError as error:
        raise BadCertificate(f"cannot be read: {error.strerror}") from None


def _check_time(server: ssl.SSLContext, certificate: Path) -> None:
    """Raise BadCertificate when no client would take it today. `ssl` tells only in a handshake: this is one."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    client.load_verify_locations(certificate)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True)]
    for end in (*ends, *ends):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            if error.verify_code in _UNTIMELY:
                raise BadCertificate(_UNTIMELY[error.verify_code]) from None
            return
        except ssl.SSLError:
            return  # who connects will tell


def untrusted(error: ssl.SSLCertVerificationError) -> str:
    """Why a client does not take a daemon's certificate, and what would help."""
    with suppress(AttributeError):
        if error.verify_code == 62 or "ostname" in error.verify_message or "IP address" in error.verify_message:
            return f"its certificate is for another name: {error.verify_message}"
    return f"its certificate is not trusted: {error.verify_message}; --ca FILE names who vouches for it"
