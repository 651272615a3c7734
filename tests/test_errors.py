from __future__ import annotations

import errno
import pickle

import pytest

from pfsd import errors
from pfsd.errors import BY_CODE, FatalError, IoError, NoSpace, NotFound, PfsdError, RequestError, from_os_error

CODES = """
    usage unknown-command too-long auth denied not-found exists not-ready cancelled corrupt partial missing changed
    no-space io busy stopping internal
"""
EXIT_CODES = {
    "RegistryDamaged": 65,
    "CannotListen": 71,
    "StoreUnavailable": 73,
    "StorageFailed": 74,
    "ConfigError": 78,
}


def every(kind: type[PfsdError]) -> list[type[PfsdError]]:
    return [kind] + [deeper for child in kind.__subclasses__() for deeper in every(child)]


def test_every_word_of_the_protocol_has_its_class() -> None:
    assert sorted(BY_CODE) == sorted(CODES.split())
    assert all(kind.code == code for code, kind in BY_CODE.items())


def test_every_exit_code_of_the_protocol_has_its_class() -> None:
    assert {name: getattr(errors, name).exit_code for name in EXIT_CODES} == EXIT_CODES


@pytest.mark.parametrize("kind", every(PfsdError))
def test_errors_survive_pickling(kind: type[PfsdError]) -> None:
    error = kind("what was wrong", id=3, name=b"\xff")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert (back.message, back.fields, str(back)) == ("what was wrong", {"id": 3, "name": b"\xff"}, "what was wrong")


def test_the_two_families_have_nothing_in_common() -> None:
    assert not issubclass(RequestError, FatalError) and not issubclass(FatalError, RequestError)


def test_fields_may_have_any_key() -> None:
    assert PfsdError("x", self=1, message=2).fields == {"self": 1, "message": 2}


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ENOSPC, NoSpace),
        (errno.EDQUOT, NoSpace),
        (errno.ENOENT, NotFound),
        (errno.ENOTDIR, NotFound),
        (errno.EIO, IoError),
        (errno.EACCES, IoError),
        (errno.EROFS, IoError),
    ],
)
def test_what_the_system_said_is_kept(number: int, kind: type[RequestError]) -> None:
    error = from_os_error(OSError(number, "its words"), "reading x")
    assert type(error) is kind
    assert error.message.startswith("reading x: ") and error.fields == {"errno": errno.errorcode[number]}


def test_an_os_error_without_a_number_is_io() -> None:
    error = from_os_error(OSError("odd"), "reading x")
    assert type(error) is IoError and error.message == "reading x: odd"
