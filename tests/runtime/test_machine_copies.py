"""Copies of machines: the data and the state of the first, and nothing of its store."""

from __future__ import annotations

import copy
import pickle
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import attrs
import pytest

from flowlet.core.faults import Faults
from flowlet.core.machine_builder import build_machine
from flowlet.core.marks import state, transition
from flowlet.runtime.logs import Log
from flowlet.runtime.machine_install import install_machine
from flowlet.runtime.machine_questions import raise_event, state_of
from flowlet.runtime.machines import Machines
from flowlet.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio


def machine(cls: Any) -> Any:
    faults = Faults()
    definition = build_machine(cls, name=cls.__name__, namespace={}, faults=faults)
    faults.raise_if_any()
    assert definition is not None
    return install_machine(definition)


class Chart:
    """The chart of all machines here; their data differs."""

    __slots__ = ()

    @state(initial=True)
    class A: ...

    @state
    class B: ...

    @transition(A, B)
    async def go(self) -> None:
        self.total += 1
        self.tags.append("go")

    @transition(B, A)
    async def back(self) -> None:
        self.total += 10

    @transition("*", None)
    async def copied(self) -> Any:
        return copy.copy(self), copy.deepcopy(self)

    @transition(A, None)
    async def raising(self) -> Any:
        raise_event(self.go)
        return copy.copy(self), copy.deepcopy(self)


@machine
@dataclass
class Plain(Chart):
    total: int = 0
    tags: list[str] = field(default_factory=list)


@machine
@dataclass(slots=True)
class Slotted(Chart):
    total: int = 0
    tags: list[str] = field(default_factory=list)


@machine
@attrs.define
class Attrs(Chart):
    total: int = 0
    tags: list[str] = attrs.field(factory=list)


@machine
@attrs.define(slots=False)
class AttrsPlain(Chart):
    total: int = 0
    tags: list[str] = attrs.field(factory=list)


@machine
@dataclass
class OwnState(Chart):
    """Says what there is to keep of it."""

    total: int = 0
    tags: list[str] = field(default_factory=list)

    def __getstate__(self) -> Any:
        return {"total": self.total, "tags": self.tags}


@machine
@dataclass
class OwnStates(Chart):
    """Says what there is to keep of it, and puts it back."""

    total: int = 0
    tags: list[str] = field(default_factory=list)
    _put_back: bool = False

    def __getstate__(self) -> Any:
        return (self.total, self.tags)

    def __setstate__(self, kept: Any) -> None:
        self.total, self.tags = kept
        self._put_back = True


@machine
@dataclass
class OwnSetter(Chart):
    total: int = 0
    tags: list[str] = field(default_factory=list)

    def __setstate__(self, kept: Any) -> None:
        self.total, self.tags = kept["total"], kept["tags"]


@machine
@dataclass
class OwnCopy(Chart):
    total: int = 0
    tags: list[str] = field(default_factory=list)

    def __copy__(self) -> Any:
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: Any) -> Any:
        twin = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin


@machine
@dataclass
class OwnReduction(Chart):
    total: int = 0
    tags: list[str] = field(default_factory=list)

    def __reduce__(self) -> Any:
        return type(self), (), self.__dict__


@machine
class Heir(Attrs):
    """Inherits the copying of an assembled class."""

    @transition(Chart.B, Chart.A)
    async def back(self) -> None:
        self.total += 20


def again(one: Any) -> Any:
    return pickle.loads(pickle.dumps(one))  # noqa: S301


KINDS = [Plain, Slotted, Attrs, AttrsPlain, OwnState, OwnStates, OwnSetter, OwnCopy, OwnReduction, Heir]


@pytest.fixture
async def machines() -> AsyncIterator[Machines]:
    store = MemoryStore()
    await store.heartbeat("me", 60.0)
    yield Machines(store, now=time.time, worker="me", log=Log())
    await store.close()


@pytest.mark.parametrize("twin_of", [copy.copy, copy.deepcopy, again])
@pytest.mark.parametrize("cls", KINDS)
async def test_a_copy_is_a_machine_of_its_own(cls: Any, twin_of: Callable[[Any], Any], machines: Machines) -> None:
    one = await machines.create(cls(total=1), id="o")
    await one.go()
    twin = twin_of(one)
    assert type(twin) is cls
    assert (state_of(twin), twin.total, twin.tags) == ("B", 2, ["go"])
    assert (twin.tags is one.tags) == (twin_of is copy.copy)
    assert twin._flowlet_turn is None
    before = twin.total
    await twin.back()
    assert (state_of(twin), twin.total > before) == ("A", True)
    assert (state_of(one), one.total) == ("B", 2)
    await one.back()
    assert [t.event async for t in machines.history("o")] == ["go", "back"]
    assert twin_of(twin).total == twin.total
    if cls is OwnStates:
        assert twin._put_back


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize("cls", KINDS)
async def test_a_copy_made_inside_a_callback_is_idle(cls: Any, stored: bool, machines: Machines) -> None:
    one = await machines.create(cls(total=1), id="o") if stored else cls(total=1)
    for trigger in (one.copied, one.raising):
        for twin in await trigger():
            assert twin._flowlet_turn is None
            await twin.go()
            assert state_of(twin) == "B"
    assert state_of(one) == "B"


async def test_copies_of_what_holds_a_machine(machines: Machines) -> None:
    one = await machines.create(Plain(total=1), id="o")
    both = copy.deepcopy({"one": one, "same": one})
    assert both["one"] is both["same"]
    assert both["one"]._flowlet_turn is None
    await machines.create(both["one"], id="another")
    assert [id async for id in machines.machines(Plain)] == ["o", "another"]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("cls", [Plain, OwnStates])
async def test_every_protocol_of_pickle(cls: Any, protocol: int, machines: Machines) -> None:
    one = await machines.create(cls(total=1), id="o")
    await one.go()
    twin = pickle.loads(pickle.dumps(one, protocol))  # noqa: S301
    await twin.back()
    assert (state_of(twin), twin.total) == ("A", 12)
