from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pfsd.fair import FairQueue, Flow


def drained(queue: FairQueue[str]) -> str:
    return "".join(queue.pop() for _ in range(len(queue)))


def test_one_flow_is_served_in_order() -> None:
    queue, flow = FairQueue[str](), Flow()
    for item in "abc":
        queue.push(flow, 10, item)
    assert len(queue) == 3 and queue.peek() == "a"
    assert drained(queue) == "abc"


def test_equal_flows_take_turns() -> None:
    queue = FairQueue[str]()
    for item, flow in (("aaaa", Flow()), ("bbbb", Flow()), ("cccc", Flow())):
        for letter in item:
            queue.push(flow, 10, letter)
    assert drained(queue) == "abcabcabcabc"


def test_a_flow_of_small_items_gets_as_many_bytes_not_as_many_items() -> None:
    queue, big, small = FairQueue[str](), Flow(), Flow()
    for _ in range(2):
        queue.push(big, 40, "B")
    for _ in range(8):
        queue.push(small, 10, "s")
    assert drained(queue) == "sssBssssBs"


def test_a_new_flow_goes_ahead_of_the_backlog_of_an_old_one() -> None:
    queue, old = FairQueue[str](), Flow()
    for _ in range(100):
        queue.push(old, 1 << 30, "o")
    for _ in range(10):
        queue.pop()
    queue.push(Flow(), 1, "n")
    assert queue.pop() == "n"


def test_an_idle_flow_saves_up_nothing() -> None:
    queue, idle, busy = FairQueue[str](), Flow(), Flow()
    queue.push(idle, 10, "i")
    for _ in range(100):
        queue.push(busy, 10, "b")
    for _ in range(50):
        queue.pop()
    for _ in range(5):
        queue.push(idle, 10, "i")
    order = drained(queue)
    assert order[:10].count("i") == 5 and "iii" not in order, "it takes turns from now on"


def test_queues_keep_their_own_account_of_a_flow() -> None:
    memory, processes, flow = FairQueue[str](), FairQueue[str](), Flow()
    memory.push(flow, 1000, "x")
    processes.push(flow, 1, "a")
    processes.push(Flow(), 1, "b")
    assert drained(processes) == "ab"


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 100)), max_size=60))
def test_every_item_is_served_once_and_each_flow_in_order(pushes: list[tuple[int, int]]) -> None:
    queue, flows = FairQueue[tuple[int, int]](), [Flow() for _ in range(5)]
    for number, (flow, cost) in enumerate(pushes):
        queue.push(flows[flow], cost, (flow, number))
    served = [queue.pop() for _ in range(len(queue))]
    assert sorted(number for _, number in served) == list(range(len(pushes)))
    for flow in range(5):
        numbers = [number for which, number in served if which == flow]
        assert numbers == sorted(numbers)


@given(st.lists(st.integers(1, 100), min_size=1, max_size=40), st.integers(1, 100))
def test_nobody_waits_longer_than_for_what_others_may_have_first(costs: list[int], cost: int) -> None:
    """A waiting flow is passed by no more bytes of a rival than it asks for itself, however much that pushes later."""
    queue, rival, waiting = FairQueue[int](), Flow(), Flow()
    queue.push(waiting, cost, 0)
    served = []
    for each in costs:
        queue.push(rival, each, each)
        served.append(queue.pop())
    assert sum(served[: served.index(0)] if 0 in served else served) <= cost


def test_many_small_new_flows_do_not_keep_a_big_item_waiting_for_ever() -> None:
    queue: FairQueue[str] = FairQueue()
    queue.push(Flow(), 1000, "big")
    served = []
    for _ in range(300):
        queue.push(Flow(), 10, "small")
        served.append(queue.pop())
    assert 50 < served.index("big") < 250


def test_a_small_item_goes_before_equals() -> None:
    queue: FairQueue[str] = FairQueue()
    for name in ("a", "b", "c"):
        queue.push(Flow(), 16, name)
    assert queue.pop() == "a"
    queue.push(Flow(), 1, "small")
    assert [queue.pop() for _ in range(3)] == ["small", "b", "c"]


def test_a_patient_flow_gets_the_less_of_what_others_want() -> None:
    queue, patient, busy = FairQueue[str](), Flow(patience=8), Flow()
    for _ in range(10):
        queue.push(patient, 10, "p")
    for _ in range(90):
        queue.push(busy, 10, "b")
    order = drained(queue)
    assert order[:81].count("p") == 9 and "pp" not in order[:81]


def test_a_patient_flow_has_everything_that_nobody_else_wants() -> None:
    queue, patient = FairQueue[str](), Flow(patience=8)
    for item in "abc":
        queue.push(patient, 10, item)
    assert drained(queue) == "abc"


def test_an_item_of_a_patient_flow_moves_the_clock_by_what_it_costs() -> None:
    """Or who comes next would stand behind those who came later: it is in debt, nobody else is."""
    queue, patient, other = FairQueue[str](), Flow(patience=8), Flow()
    queue.count(patient, 100)
    queue.push(other, 100, "o")
    queue.push(patient, 1, "p")
    queue.push(Flow(), 700, "n")
    assert drained(queue) == "onp"


def test_a_small_get_beside_a_verify_of_everything_waits_for_no_more_than_beside_big_puts() -> None:
    """Small loads count as one flow, which goes ahead of all runs that wait, each time."""
    run, small = 16 << 20, 20 << 10
    for rivals in ([Flow()], [Flow() for _ in range(8)]):  # a verify has one flow, eight puts have one each
        queue, gets = FairQueue[str](), Flow()
        for _ in range(9):
            for rival in rivals:
                queue.push(rival, run, "r")
        turns = []
        for _ in range(100):
            queue.pop()  # the run that a process is just free for
            queue.push(rivals[0], run, "r")
            queue.push(gets, small, "g")
            turns.append(drained_to(queue, "g"))
        assert max(turns) == 1, "no run goes before it"


def drained_to(queue: FairQueue[str], item: str) -> int:
    """How many turns it takes to come to an item."""
    turns = 1
    while queue.pop() != item:
        turns += 1
    return turns
