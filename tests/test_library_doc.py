"""docs/library.md names all that there is; tests/test_pages.py runs its examples."""

from __future__ import annotations

import pfsd
from tests.documents import ROOT, sections

LIBRARY = ROOT / "docs" / "library.md"


def test_it_names_every_method_and_connection_error() -> None:
    text = LIBRARY.read_text("utf-8")
    for name in vars(pfsd.Store):
        assert name.startswith("_") or name in ("asynchronous", "address") or f"`{name}" in text, name
    listed = sections(LIBRARY)["Errors"]
    for name in pfsd.__all__:
        kind = getattr(pfsd, name)
        if isinstance(kind, type) and issubclass(kind, pfsd.ConnectionLost | pfsd.TimedOut):
            assert f"| `{name}` |" in listed, name
