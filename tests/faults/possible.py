"""What names may stand for, given what was sent to a daemon and what it answered.

Each operation takes effect at one instant between its beginning and its end; one that was never answered takes effect
at some instant before the daemon ends, or never. `Possible` follows all orders of such instants that explain the
answers so far. When none is left, an answer was wrong: something acknowledged was lost, something came back, or a read
saw what was never there. (The method is Wing and Gong's, one operation at a time as it is answered.)

Names that one operation can touch together form a group, and have one `Possible`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: What each name of a group stands for: the number of the put that its content is of. A name that is not there is free.
State = frozenset[tuple[str, int]]
EMPTY: State = frozenset()


class Impossible(AssertionError):
    """No order of the operations explains an answer."""


@dataclass(frozen=True, eq=False)
class Operation:
    """What was asked, and if it was answered, what that says.

    `value` is the put whose content was stored, seen, renamed or deleted. Of a read None means that nothing was there,
    of the others that it is not known. `onto` is the name that a rename gives. Without `replaces` the name that is
    given must have been free.
    """

    number: int
    verb: str  # put, delete, rename, read
    names: tuple[str, ...]
    value: int | None = None
    onto: str = ""
    replaces: bool = False

    @property
    def changes(self) -> bool:
        """Whether it leaves anything else than it found."""
        return self.verb != "read"

    def after(self, state: State) -> State | None:
        """What it makes of a state; None when it could not have been answered so in it."""
        files = dict(state)
        if self.verb == "read":
            return state if files.get(self.names[0]) == self.value else None
        if self.verb == "put":
            assert self.value is not None
            if not self.replaces and self.names[0] in files:
                return None
            files[self.names[0]] = self.value
        elif not all(name in files for name in self.names) or self.value not in (None, files[self.names[0]]):
            return None
        elif self.verb == "delete":
            for name in self.names:
                del files[name]
        else:
            if not self.replaces and self.onto in files:
                return None
            files[self.onto] = files.pop(self.names[0])
        return frozenset(files.items())

    def __str__(self) -> str:
        words = [f"#{self.number}", self.verb, *self.names]
        words += [f"-> {self.onto}"] if self.onto else []
        words += ["replacing"] if self.replaces else []
        return " ".join(words) + ("" if self.value is None else f" = #{self.value}")


#: A state, and which of the operations under way have taken effect in it.
_World = tuple[State, frozenset[Operation]]


class Possible:
    """What the names of a group may stand for at this point of the history that it was told."""

    def __init__(self, state: State = EMPTY) -> None:
        self._worlds: set[_World] = {(state, frozenset())}
        self._under_way: list[Operation] = []

    @property
    def states(self) -> set[State]:
        """All that is possible, if what is under way has had its effect or never will."""
        return {state for state, _ in self._reachable(None)}

    def begin(self, operation: Operation) -> None:
        """It was sent. Not to be told of operations that are known to have failed."""
        self._under_way.append(operation)
        self._worlds = {self._with_reads(world) for world in self._worlds}

    def end(self, operation: Operation) -> None:
        """It was answered, as `operation` says: it has taken effect by now. Impossible when it cannot have."""
        worlds = {(state, done - {operation}) for state, done in self._reachable(operation) if operation in done}
        if not worlds:
            raise Impossible(f"{operation} cannot have been answered so: {self._explain(operation)}")
        self._under_way.remove(operation)
        self._worlds = worlds

    def crash(self) -> None:
        """The daemon has ended: what is under way has taken effect, or never will."""
        self._worlds = {(state, frozenset()) for state in self.states}
        self._under_way = []

    def observe(self, state: State) -> None:
        """Nothing is under way, and this is what is there. Impossible when it should not be."""
        if (state, frozenset()) not in self._worlds:
            raise Impossible("; ".join(self._differences(state)))
        self._worlds = {(state, frozenset())}

    def _reachable(self, wanted: Operation | None) -> set[_World]:
        """Where operations under way can have led; not beyond where `wanted` has taken effect."""
        found = set(self._worlds)
        todo = list(found)
        while todo:
            state, done = todo.pop()
            if wanted is not None and wanted in done:
                continue
            for operation in self._under_way:
                if operation in done or not (operation.changes or operation is wanted):
                    continue
                after = operation.after(state)
                if after is None:
                    continue
                world = self._with_reads((after, done | {operation}))
                if world not in found:
                    found.add(world)
                    todo.append(world)
        return found

    def _with_reads(self, world: _World) -> _World:
        """Reads under way that saw this state may as well have done so now: they change nothing."""
        state, done = world
        reads = {one for one in self._under_way if not one.changes and one not in done and one.after(state) is not None}
        return (state, done | reads) if reads else world

    def _explain(self, operation: Operation) -> str:
        names = {*operation.names, operation.onto} - {""}
        seen = {tuple(sorted(pair for pair in state if pair[0] in names)) for state in self.states}
        beside = [str(one) for one in self._under_way if one is not operation]
        return f"possible were {sorted(seen)}, beside {beside}"

    def _differences(self, state: State) -> Iterable[str]:
        there = dict(state)
        possible = [dict(one) for one in self.states]
        nearest = min(possible, key=lambda one: len(one.items() ^ there.items()))
        for name in sorted(there.keys() | nearest.keys()):
            if there.get(name) == nearest.get(name):
                continue
            should = sorted({one.get(name) or 0 for one in possible})
            kind = "lost" if name not in there else "resurrected" if should == [0] else "wrong"
            yield f"{kind}: {name} is {_said(there.get(name))} and can be {' or '.join(map(_said, should))}"


def _said(value: int | None) -> str:
    return f"#{value}" if value else "absent"
