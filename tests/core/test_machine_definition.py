"""What assembly makes of a sound class: names, plans, data, and what is known of its callbacks."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, ClassVar

import anyio
import msgspec
import pytest

from flowlet.core.annotations import provided
from flowlet.core.faults import Faults
from flowlet.core.guards import all_of, not_
from flowlet.core.hooks import may_wait
from flowlet.core.machine import MachineDefinition
from flowlet.core.machine_builder import build_machine
from flowlet.core.machine_data import Snapshot
from flowlet.core.machine_members import assigned_names, effects
from flowlet.core.marks import guard, state, transition
from flowlet.core.states import slug
from flowlet.errors import MachineError


def built(cls: Any, **settings: Any) -> MachineDefinition:
    faults = Faults()
    definition = build_machine(cls, name="thing", namespace={}, faults=faults, **settings)
    faults.raise_if_any()
    assert definition is not None
    return definition


@dataclass
class Order:
    total: int = 0
    lines: list[str] = field(default_factory=list)
    kinds: ClassVar[int] = 3
    gateway: object = provided
    _cache: int = 0

    @state(initial=True)
    class Draft: ...

    @state
    class InTransit: ...

    @state(final=True)
    class Done: ...

    @guard
    def can_send(self) -> bool:
        return True

    @guard
    def is_heavy(self) -> bool:
        return True

    @transition(Draft, InTransit, guard=all_of("is_heavy", not_(lambda machine: False)), exclusive=True)
    async def send(self) -> None: ...

    @transition("*", None)
    async def note(self) -> None: ...

    @transition(InTransit, Done, on_error=Draft)
    async def arrive(self) -> None: ...


def test_the_export_is_plain_data() -> None:
    exported = built(Order, version=4).export()
    assert json.loads(json.dumps(exported)) == exported
    assert exported["version"] == 4
    assert exported["initial"] == "Draft"
    assert exported["states"][2] == {
        "name": "Done",
        "parent": None,
        "type": "final",
        "initial": False,
        "default": [],
        "invoke": None,
    }
    assert exported["events"] == ["send", "arrive", "note"]
    assert exported["data"] == ["total", "lines"]
    assert exported["transitions"][0] == {
        "event": "send",
        "method": "send",
        "source": "Draft",
        "targets": ["InTransit"],
        "guards": ["can_send", "all_of(is_heavy, not_(<lambda>))"],
        "internal": False,
        "kind": "event",
        "after": None,
        "exclusive": True,
        "on_error": None,
    }
    assert [(t["source"], t["targets"]) for t in exported["transitions"] if t["event"] == "note"] == [
        ("Draft", []),
        ("InTransit", []),
    ]


def test_a_definition_is_immutable_and_answers_by_class_and_name() -> None:
    definition = built(Order)
    with pytest.raises(AttributeError):
        definition.version = 2  # type: ignore[misc]
    assert definition.state(Order.InTransit) is definition.state("InTransit")
    here, there = definition.configurations["InTransit"], definition.configurations["Draft"]
    assert definition.targets("arrive", here) == {"Done", "Draft"}
    assert definition.targets("arrive", there) == definition.targets("nothing", here) == set()
    with pytest.raises(MachineError, match="did you mean 'InTransit'"):
        definition.state("InTransitt")
    with pytest.raises(MachineError, match="has no event"):
        definition.event(3)


@pytest.mark.parametrize(
    ("name", "spelled"),
    [
        ("Draft", "draft"),
        ("InTransit", "in_transit"),
        ("IN_TRANSIT", "in_transit"),
        ("HTTPError", "http_error"),
        ("A2B", "a2_b"),
    ],
)
def test_slugs(name: str, spelled: str) -> None:
    assert slug(name) == spelled


class Methods:
    width = 3

    @property
    def area(self) -> int:
        return self._area

    @area.setter
    def area(self, value: int) -> None:
        self._area = value

    def plain(self) -> None:
        self.a = self.b = 1
        self.c, (self.d, x) = 1, (2, 3)
        self.e += x  # type: ignore[has-type]
        other = self
        other.f = 1
        for self.g in range(3):
            pass

    def outside(self, other: Any) -> None:
        other.h = 1

    def through_property(self) -> None:
        self.area = 1

    def calls(self) -> None:
        print(self)

    def subscripts(self) -> None:
        self.a[0] = 1  # type: ignore[index]

    def simple(self) -> int:
        self.a += self.b
        return self.a * 2

    def reads(self) -> int:
        return self.a

    async def awaits(self) -> None:
        await anyio.sleep(0)

    async def loops(self, things: Any) -> None:
        async for _ in things:
            pass

    async def enters(self, thing: Any) -> None:
        async with thing:
            pass

    async def nothing(self) -> None:
        self.a = 1


def test_what_a_class_assigns_on_its_objects() -> None:
    assert sorted(assigned_names(vars(Methods))) == ["_area", "a", "b", "c", "d", "e", "g"]


def test_what_a_simple_function_can_change() -> None:
    known = {name: effects(getattr(Methods, name), Methods) for name in ("simple", "reads", "nothing")}
    assert known == {"simple": frozenset({"a"}), "reads": frozenset(), "nothing": frozenset({"a"})}
    for name in ("plain", "outside", "through_property", "calls", "subscripts", "awaits"):
        assert effects(getattr(Methods, name), Methods) is None, name


def test_what_may_wait() -> None:
    waiting = [n for n in ("awaits", "loops", "enters", "nothing", "simple", "calls") if may_wait(getattr(Methods, n))]
    assert waiting == ["awaits", "loops", "enters"]


def test_a_snapshot_puts_back_and_takes_away() -> None:
    one = Methods()
    one.a = 1
    snapshot = Snapshot(("a", "b"))
    taken = snapshot.take(one)
    one.a, one.b = 5, 6
    snapshot.restore(one, taken)
    assert one.a == 1
    assert not hasattr(one, "b")
    Snapshot(()).restore(one, Snapshot(()).take(one))


def test_data_is_checked_against_its_annotations() -> None:
    shape = built(Order).data
    assert (shape.names, shape.immutable, shape.parameters) == (
        ("total", "lines"),
        False,
        ("total", "lines", "_cache")[:2],
    )
    assert [name for name, _ in shape.provided] == ["gateway"]
    data = shape.encode((3, ["a"]))
    assert msgspec.msgpack.decode(data) == {"total": 3, "lines": ["a"]}
    assert shape.decode(data, "x") == (3, ["a"])
    assert shape.decode(b"\x80", "x") == (0, [])
    assert shape.decode(b"\x80", "x")[1] is not shape.decode(b"\x80", "x")[1]
