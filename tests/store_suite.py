"""What every store must do. A store's own test subclasses `PackStoreTests` and says how one is made."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from pfsd.errors import Corrupt, Missing
from pfsd.stores import PackInfo, PackStore


class PackStoreTests:
    """`make_store` is the one thing a subclass must have."""

    @pytest.fixture
    def store(self, tmp_path) -> PackStore:
        return self.make_store(tmp_path)

    def make_store(self, tmp_path) -> PackStore:
        raise NotImplementedError

    def staged(self, store: PackStore) -> list[str]:
        """What lies aside, as the store itself keeps it."""
        raise NotImplementedError

    def put(self, store: PackStore, pack: int, content: bytes) -> None:
        store.stage(f"t{pack}", [content])
        store.publish([(f"t{pack}", pack)])
        store.sync_published([pack])

    def get(self, store: PackStore, pack: int, size: int) -> bytes:
        with store.open(pack) as reader:
            return reader.read(0, size)

    # --- writing and reading ---

    def test_pieces_of_every_kind_come_back_joined(self, store):
        pieces = [b"head", bytearray(b"er"), memoryview(b"-payload-")[1:-1], b"", b"end"]
        assert store.stage("t", pieces) == 16
        store.publish([("t", 5)])
        assert self.get(store, 5, 16) == b"headerpayloadend"

    def test_many_and_large_pieces(self, store):
        pieces = [bytes([at % 251]) * (at % 1000) for at in range(5000)] + [bytes(3 << 20), b"end"]
        content = b"".join(pieces)
        assert store.stage("t", iter(pieces)) == len(content)
        store.publish([("t", 1)])
        assert self.get(store, 1, len(content)) == content

    def test_an_empty_pack(self, store):
        assert store.stage("t", []) == 0
        store.publish([("t", 1)])
        assert list(store.list()) == [PackInfo(1, 0)]
        assert self.get(store, 1, 0) == b""

    def test_ranges(self, store):
        self.put(store, 1, b"0123456789")
        with store.open(1) as reader:
            assert reader.size == 10
            assert reader.read(3, 4) == b"3456"
            assert reader.read(10, 0) == b""
            room = bytearray(b"..........")
            assert reader.read_into(2, memoryview(room)[4:7]) == 3
            assert room == b"....234..."

    def test_reading_past_the_end_is_corrupt(self, store):
        self.put(store, 1, b"0123456789")
        with store.open(1) as reader:
            for offset, length in ((0, 11), (10, 1), (500, 1)):
                with pytest.raises(Corrupt, match="ends at 10"):
                    reader.read(offset, length)
                with pytest.raises(Corrupt, match="ends at 10"):
                    reader.read_into(offset, memoryview(bytearray(length)))

    def test_a_missing_pack_is_missing(self, store):
        self.put(store, 1, b"x")
        with pytest.raises(Missing) as caught:
            store.open(2)
        assert caught.value.fields == {"pack": 2}

    def test_an_open_pack_can_be_read_to_its_end_after_delete(self, store):
        self.put(store, 1, b"0123456789")
        with store.open(1) as reader:
            assert store.delete([1]) == 10
            assert reader.read(0, 10) == b"0123456789"

    # --- staging ---

    def test_staged_is_not_published(self, store):
        store.stage("t", [b"x"])
        assert list(store.list()) == []
        assert self.staged(store) == ["t"]
        with pytest.raises(Missing):
            store.open(1)

    def test_staging_that_fails_half_way_leaves_nothing(self, store):
        def pieces() -> Iterator[bytes]:
            yield bytes(3 << 20)
            raise RuntimeError("half way")

        with pytest.raises(RuntimeError, match="half way"):
            store.stage("t", pieces())
        assert self.staged(store) == []
        assert list(store.list()) == []
        assert store.stage("t", [b"again"]) == 5

    def test_a_token_is_used_once_and_its_content_is_safe(self, store):
        store.stage("t", [b"first"])
        with pytest.raises(FileExistsError):
            store.stage("t", [b"second"])
        store.publish([("t", 1)])
        assert self.get(store, 1, 5) == b"first"

    def test_discard(self, store):
        store.stage("a", [b"x"])
        store.stage("b", [b"y"])
        store.discard(["a", "never-staged"])
        assert self.staged(store) == ["b"]

    def test_a_published_token_is_staged_no_more(self, store):
        self.put(store, 1, b"x")
        assert self.staged(store) == []
        store.discard(["t1"])
        assert self.get(store, 1, 1) == b"x"

    # --- publishing ---

    def test_publish_never_replaces(self, store):
        self.put(store, 1, b"old")
        store.stage("t", [b"new!"])
        with pytest.raises(FileExistsError):
            store.publish([("t", 1)])
        assert self.get(store, 1, 3) == b"old"
        assert self.staged(store) == ["t"]

    def test_publishing_what_is_not_staged_fails(self, store):
        with pytest.raises(FileNotFoundError):
            store.publish([("t", 1)])
        assert list(store.list()) == []

    def test_several_at_once_and_far_apart(self, store):
        packs = [1, 4095, 4096, (1 << 32) + 1, (1 << 63) + 5]
        for pack in packs:
            store.stage(f"t{pack}", [b"%d" % pack])
        store.publish([(f"t{pack}", pack) for pack in packs])
        store.sync_published(packs)
        assert list(store.list()) == [PackInfo(pack, len(str(pack))) for pack in packs]
        assert [self.get(store, pack, len(str(pack))) for pack in packs] == [b"%d" % pack for pack in packs]

    # --- deleting and listing ---

    def test_delete_counts_what_it_frees_and_is_idempotent(self, store):
        self.put(store, 1, b"12345")
        self.put(store, 2, b"123")
        self.put(store, 3, b"1")
        assert store.delete([1, 2, 77_777]) == 8
        assert store.delete([1, 2]) == 0
        assert list(store.list()) == [PackInfo(3, 1)]

    def test_list_is_by_number_and_without_what_is_staged(self, store):
        for pack in (5000, 2, 4095, 1):
            self.put(store, pack, b"x" * pack)
        store.stage("t", [b"x"])
        assert list(store.list()) == [PackInfo(pack, pack) for pack in (1, 2, 4095, 5000)]

    def test_sweeping_leaves_what_this_epoch_staged(self, store):
        store.stage("t", [b"x"])
        assert store.sweep_staged() == 0
        assert self.staged(store) == ["t"]

    def test_threads_may_share_a_store(self, store):
        def work(base: int) -> None:
            for pack in range(base, base + 20):
                self.put(store, pack, b"%d" % pack)

        threads = [threading.Thread(target=work, args=(base * 4090,)) for base in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(list(store.list())) == 80
        assert self.get(store, 4090, 4) == b"4090"
