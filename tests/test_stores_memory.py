"""The store in memory."""

from __future__ import annotations

from pfsd.stores import open_store
from tests.store_suite import PackStoreTests


class TestMemoryStore(PackStoreTests):
    def make_store(self, tmp_path):
        return open_store("memory:", sync=True, epoch="e1")

    def staged(self, store):
        return sorted(store._staged)


def test_every_one_is_new():
    first = open_store("memory:", sync=False, epoch="e1")
    first.stage("t", [b"x"])
    first.publish([("t", 1)])
    assert list(open_store("memory:", sync=False, epoch="e1").list()) == []
