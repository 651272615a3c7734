"""The tables agree with a dict, whatever comes and goes, and stay in small pieces."""

from __future__ import annotations

from array import array
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pfsd import tables
from pfsd.tables import PAGE, IdTable, NameTable

ids = st.integers(1, 40) | st.integers(1, 2**64 - 1)
steps = st.lists(st.tuples(st.sampled_from(["set", "delete"]), ids, st.integers(0, 2**64 - 1)), max_size=120)


@given(steps)
def test_an_id_table_is_a_dict_in_order(changes: list[tuple[str, int, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "PAGE", 4)
        table: IdTable[int] = IdTable(partial(array, "Q"))
        model: dict[int, int] = {}
        for what, id, row in changes:
            if what == "set":
                table[id] = model[id] = row
            elif id in model:
                del table[id], model[id]
            else:
                with pytest.raises(KeyError):
                    del table[id]
            assert list(table) == sorted(model) and len(table) == len(model)
            assert all(len(page) <= 4 for page in table._ids)
            for known in {*model, id}:
                assert table.get(known) == model.get(known) and (known in table) == (known in model)
                above = [model[other] for other in sorted(model) if other > known]
                assert table.after(known, 3) == above[:3] and table.after(known, 99) == above


def test_ids_that_come_in_order_fill_their_pages() -> None:
    table: IdTable[str] = IdTable()
    for id in range(1, 10 * PAGE + 1):
        table[id * 3] = "x"
    assert {len(page) for page in table._ids} == {PAGE}


def test_a_place_is_where_the_row_can_be_changed() -> None:
    table: IdTable[int] = IdTable(partial(array, "Q"))
    table[7] = 1
    place = table.place(7)
    assert place is not None and table.place(6) is None and table.place(8) is None
    column, at = place
    column[at] += 4
    assert table.get(7) == 5


def test_a_name_table_is_a_dict_in_parts() -> None:
    names = [b"name %d" % number for number in range(20_000)]
    table: NameTable[int] = NameTable()
    for number, name in enumerate(names):
        table[name] = number
    assert [table.get(name) for name in names] == list(range(20_000)) and table.get(b"other") is None
    assert max(map(len, table._shards)) < 200, "none of them is big"
    for name in names[::2]:
        del table[name]
    assert len(table) == 10_000 and table.get(names[0]) is None and table.get(names[1]) == 1
    with pytest.raises(KeyError):
        del table[names[0]]
