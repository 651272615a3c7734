"""The oracle's judgement, judged: it accepts every order that explains the answers, and nothing else."""

from __future__ import annotations

import pytest

from tests.faults.possible import EMPTY, Impossible, Operation, Possible


def put(number: int, name: str = "a", replaces: bool = True) -> Operation:
    return Operation(number, "put", (name,), number, replaces=replaces)


def read(number: int, value: int | None, name: str = "a") -> Operation:
    return Operation(number, "read", (name,), value)


def delete(number: int, *names: str) -> Operation:
    return Operation(number, "delete", names or ("a",))


def done(possible: Possible, *operations: Operation) -> None:
    """One after the other."""
    for operation in operations:
        possible.begin(operation)
        possible.end(operation)


def together(possible: Possible, *operations: Operation) -> None:
    """All begun before the first ends."""
    for operation in operations:
        possible.begin(operation)
    for operation in operations:
        possible.end(operation)


def state(**files: int) -> frozenset[tuple[str, int]]:
    return frozenset(files.items())


def test_what_was_acknowledged_is_there() -> None:
    possible = Possible()
    done(possible, put(1))
    possible.crash()
    with pytest.raises(Impossible, match="lost: a is absent and can be #1"):
        possible.observe(EMPTY)
    possible.observe(state(a=1))


def test_what_was_deleted_is_gone() -> None:
    possible = Possible()
    done(possible, put(1), delete(2))
    with pytest.raises(Impossible, match="resurrected: a is #1"):
        possible.observe(state(a=1))
    possible.observe(EMPTY)


def test_what_was_replaced_does_not_come_back() -> None:
    possible = Possible()
    done(possible, put(1), put(2))
    with pytest.raises(Impossible, match="wrong: a is #1 and can be #2"):
        possible.observe(state(a=1))


@pytest.mark.parametrize("seen", [1, 2])
def test_an_operation_without_an_answer_is_old_or_new(seen: int) -> None:
    possible = Possible()
    done(possible, put(1))
    possible.begin(put(2))
    possible.crash()
    with pytest.raises(Impossible):
        possible.observe(EMPTY)
    possible.observe(state(a=seen))


def test_after_a_crash_it_stays_what_it_was_found_to_be() -> None:
    possible = Possible()
    done(possible, put(1))
    possible.begin(put(2))
    possible.crash()
    possible.observe(state(a=1))
    with pytest.raises(Impossible):
        possible.observe(state(a=2))


def test_several_are_deleted_together_or_not_at_all() -> None:
    possible = Possible()
    done(possible, put(1, "a"), put(2, "b"))
    possible.begin(delete(3, "a", "b"))
    possible.crash()
    with pytest.raises(Impossible):
        possible.observe(state(b=2))
    possible.observe(EMPTY)


@pytest.mark.parametrize("seen", [1, 2])
def test_either_of_two_puts_at_once_may_be_last(seen: int) -> None:
    possible = Possible()
    together(possible, put(1), put(2))
    possible.observe(state(a=seen))


def test_a_read_sees_what_was_there_at_some_instant_of_it() -> None:
    possible = Possible()
    done(possible, put(1))
    together(possible, put(2), read(3, 1))
    together(possible, read(4, 2), put(5))
    with pytest.raises(Impossible, match="#6 read a = #1"):
        done(possible, read(6, 1))


def test_reads_do_not_go_back_in_time() -> None:
    possible = Possible()
    done(possible, put(1))
    possible.begin(put(2))
    done(possible, read(3, 2))
    with pytest.raises(Impossible):
        done(possible, read(4, 1))


def test_of_two_puts_at_once_that_want_a_free_name_one_is_stored() -> None:
    possible = Possible()
    with pytest.raises(Impossible):
        together(possible, put(1, replaces=False), put(2, replaces=False))
    possible = Possible()
    together(possible, put(1, replaces=False), delete(3), put(2, replaces=False))
    possible.observe(state(a=2))


def test_a_rename_moves_what_is_there_in_one_instant() -> None:
    possible = Possible()
    done(possible, put(1, "a"), put(2, "b"))
    possible.begin(Operation(3, "rename", ("a",), onto="b", replaces=True))
    done(possible, read(4, None, "a"))
    with pytest.raises(Impossible):
        done(possible, read(5, 2, "b"))
    possible.crash()
    possible.observe(state(b=1))
