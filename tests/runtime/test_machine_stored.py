"""Machines with a store: what is written, what a load makes of it, and what happens when others write too."""

from __future__ import annotations

import enum
import gc
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import anyio
import attrs
import msgspec
import pytest

from flowlet.core.annotations import provided
from flowlet.core.codec import pack
from flowlet.core.current import run_context
from flowlet.core.faults import Faults
from flowlet.core.hooks import Transition
from flowlet.core.machine_builder import build_machine
from flowlet.core.machine_records import Moved, Settled, read_record
from flowlet.core.marks import guard, state, transition
from flowlet.errors import (
    Conflict,
    DecodeError,
    DefinitionError,
    EncodeError,
    HistoryMismatch,
    HookFailed,
    IdConflict,
    LeaseLost,
    MachineError,
    RunNotFound,
    StoreUnavailable,
    TransitionNotAllowed,
)
from flowlet.runtime.logs import Log
from flowlet.runtime.machine_install import install_machine
from flowlet.runtime.machine_questions import can, raise_event, state_of
from flowlet.runtime.machines import Machines
from flowlet.store import New, Store, Write
from flowlet.stores.memory import MemoryStore
from flowlet.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.anyio


def machine(cls: Any, name: str | None = None, **settings: Any) -> Any:
    faults = Faults()
    definition = build_machine(cls, name=name or cls.__name__, namespace={}, faults=faults, **settings)
    faults.raise_if_any()
    assert definition is not None
    return install_machine(definition)


class Notes(Log):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.active = True
        self.said: list[tuple[str, dict[str, Any]]] = []

    def _note(self, event: str, **fields: Any) -> None:
        self.said.append((event, fields))

    debug = info = warning = error = _note

    @property
    def events(self) -> list[str]:
        return [event for event, _ in self.said]


class Flaky:
    """A store that fails, or loses its replies, when told to."""

    def __init__(self, store: Store) -> None:
        self.store, self.capabilities = store, store.capabilities
        self.before: list[Exception] = []
        self.after: list[Exception] = []
        self.appends = 0

    async def append(self, writes: Any, **options: Any) -> None:
        self.appends += 1
        if self.before:
            raise self.before.pop(0)
        await self.store.append(writes, **options)
        if self.after:
            raise self.after.pop(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


@pytest.fixture(params=["memory", "sqlite"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
async def store(kind: str, tmp_path: Path) -> AsyncIterator[Flaky]:
    inner: Store = MemoryStore() if kind == "memory" else SQLiteStore(tmp_path / "m.db", synchronous="NORMAL")
    yield Flaky(inner)
    await inner.close()


Open = Callable[..., Machines]


@pytest.fixture
async def opened(store: Flaky) -> Callable[..., Any]:
    """Open the store as another process would, with a worker of its own."""
    names = iter(range(100))

    async def open(provide: Any = None, log: Any = None, lease: float = 60.0) -> Machines:
        worker = f"worker-{next(names)}"
        await store.heartbeat(worker, lease)
        return Machines(store, now=time.time, worker=worker, log=log or Log(), provide=provide)

    return open


@machine
@dataclass
class Order:
    total: int = 0
    by: str = ""
    entered: int = 0

    @state(initial=True)
    class Draft: ...

    @state
    class Confirmed: ...

    @state(final=True)
    class Shipped: ...

    @guard
    def can_confirm(self) -> bool:
        return self.total > 0

    @transition(Draft, Confirmed)
    async def confirm(self, by: str, fail: bool = False) -> str:
        self.by = by
        if fail:
            raise ValueError("no")
        return f"confirmed by {by}"

    @transition(Confirmed, None)
    async def add(self, amount: int) -> int:
        self.total += amount
        return self.total

    @transition(Confirmed, Shipped)
    async def ship(self) -> None: ...

    async def on_enter_confirmed(self) -> None:
        self.entered += 1


async def records_of(store: Any, id: str) -> list[Any]:
    stored = await store.load(id)
    return [read_record(data, n, id) for n, data in enumerate(stored.records, 1)]


# ------------------------------------------------------------------------------------------ the usual life
async def test_a_life(store: Flaky, opened: Any) -> None:
    machines = await opened()
    order = await machines.create(Order(total=120), id="o-1")
    assert await order.confirm(by="ann") == "confirmed by ann"
    assert await order.add(3) == 123
    other = await (await opened()).load(Order, "o-1")
    assert other is not order
    assert (state_of(other), other.total, other.by, other.entered) == ("Confirmed", 123, "ann", 1)
    await other.ship()
    history = [t async for t in machines.history("o-1")]
    assert [(t.event, t.source, t.target, t.version, t.actor) for t in history] == [
        ("confirm", "Draft", "Confirmed", 2, "ann"),
        ("add", "Confirmed", "Confirmed", 4, None),
        ("ship", "Confirmed", "Shipped", 5, None),
    ]
    assert all(isinstance(t, Transition) and t.at.tzinfo is UTC for t in history)
    head = (await store.load("o-1")).head
    assert (head.kind, head.definition, head.state, head.status) == ("machine", "Order", "Shipped", "final")
    assert head.closed is not None


async def test_what_an_enter_hook_assigns_is_recorded_before_the_trigger_returns(store: Flaky, opened: Any) -> None:
    order = await (await opened()).create(Order(total=1), id="o")
    await order.confirm("ann")
    kinds = [type(r).__name__ for r in await records_of(store, "o")]
    assert kinds == ["Created", "Moved", "Settled"]
    await order.add(0)  # nothing changed: the record has no data, and none follows
    last = (await records_of(store, "o"))[-1]
    assert isinstance(last, Moved)
    assert last.data is None


async def test_one_live_object_per_id(opened: Any) -> None:
    machines = await opened()
    order = await machines.create(Order(total=1), id="o")
    assert await machines.load(Order, "o") is order
    assert await machines.create(Order(total=1), id="o") is order
    assert await machines.create(order) is order
    assert await machines.create(order, id="o") is order
    found: list[Any] = []

    async def fetch(machines: Machines) -> None:
        found.append(await machines.load(Order, "o"))

    other = await opened()
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(fetch, other)
    assert len({id(o) for o in found}) == 1
    found.clear()
    assert not other._doors

    async def make() -> None:
        found.append(await other.create(Order(total=5), id="new"))

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(make)
    assert len({id(o) for o in found}) == 1
    gone = id(found[0])
    found.clear()
    gc.collect()
    assert gone
    assert list(other._live) == ["o"] or not list(other._live)


async def test_create_again_with_equal_data_gives_the_machine_as_it_is(opened: Any) -> None:
    machines = await opened()
    await (await machines.create(Order(total=5), id="o")).confirm("ann")
    again = await (await opened()).create(Order(total=5), id="o")
    assert (state_of(again), again.by) == ("Confirmed", "ann")
    by_class = await (await opened()).create(Order, id="o", data={"total": 5})
    assert state_of(by_class) == "Confirmed"
    with pytest.raises(IdConflict, match="created with other data"):
        await (await opened()).create(Order(total=6), id="o")


async def test_ids_are_made_in_order(opened: Any) -> None:
    machines = await opened()
    ids = [(await machines.create(Order))._flowlet_turn.id for _ in range(3)]
    assert ids == sorted(ids)
    assert len(set(ids)) == 3


async def test_listing_by_state(opened: Any) -> None:
    machines = await opened()
    for n in range(5):
        order = await machines.create(Order(total=1), id=f"o-{n}")
        if n % 2:
            await order.confirm("ann")
    assert [id async for id in machines.machines(Order)] == [f"o-{n}" for n in range(5)]
    for ref in (Order.Confirmed, "Confirmed"):
        assert [id async for id in machines.machines(Order, state=ref)] == ["o-1", "o-3"]
    with pytest.raises(MachineError, match="did you mean 'Confirmed'"):
        [id async for id in machines.machines(Order, state="Confirmd")]


async def test_pages(opened: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowlet.runtime.machines.PAGE", 3)
    machines = await opened()
    order = await machines.create(Order(total=1), id="o")
    await order.confirm("ann")
    for _ in range(10):
        await order.add(1)
    assert [t.version async for t in machines.history("o")] == [2, *range(4, 14)]
    for n in range(7):
        await machines.create(Order, id=f"p{n}")
    assert len([id async for id in machines.machines(Order)]) == 8


# ------------------------------------------------------------------------------------------------ loading
class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Address(msgspec.Struct):
    street: str
    tags: list[str] = []


async def test_kinds_of_data_come_back_as_they_were(opened: Any) -> None:
    @machine
    @dataclass
    class Kinds:
        id: UUID
        when: datetime
        colour: Colour
        address: Address
        parts: dict[str, list[int]] = field(default_factory=dict)
        maybe: int | None = None
        pair: tuple[int, str] = (0, "")

        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @transition(A, B)
        async def go(self) -> None:
            self.parts["x"] = [1, 2]
            self.address.tags.append("moved")

        @transition(B, A)
        async def fail(self) -> None:
            self.parts["x"].append(3)
            raise ValueError("no")

    id, when = uuid4(), datetime(2024, 1, 2, tzinfo=UTC)
    one = await (await opened()).create(Kinds(id, when, Colour.BLUE, Address("here")), id="k")
    await one.go()
    twin = await (await opened()).load(Kinds, "k")
    assert twin == one
    assert twin.address == Address("here", ["moved"])
    with pytest.raises(ValueError, match="no"):
        await twin.fail()
    assert await can(twin.go) is False  # asking reads what the failed action has changed inside of a list again
    assert twin.parts == {"x": [1, 2]}


async def test_load_builds_through_init_and_then_on_load(opened: Any) -> None:
    log: list[str] = []

    class Gateway: ...

    def assembled() -> Any:
        class Case:
            total: int
            note: str = "none"

            def __init__(self, total: int, gateway: Gateway = provided) -> None:
                log.append(f"init {total} {type(gateway).__name__}")
                self.total, self.gateway = total, gateway

            @state(initial=True)
            class A: ...

            @state
            class B: ...

            @transition(A, B)
            async def go(self, gateway: Gateway = provided) -> str:
                self.note = "gone"
                return type(gateway).__name__

            @transition(B, A)
            async def back(self) -> None: ...

            async def on_enter_b(self, gateway: Gateway = provided) -> None:
                log.append(f"enter {type(gateway).__name__}")

            async def on_load(self) -> None:
                log.append(f"load {self.total} {self.note} {state_of(self)}")

        faults = Faults()
        definition = build_machine(Case, name="Case", namespace={"Gateway": Gateway}, faults=faults)
        faults.raise_if_any()
        assert definition is not None
        return install_machine(definition)

    cls = assembled()
    machines = await opened(provide=lambda annotation: annotation())
    one = await machines.create(cls, id="c", data={"total": 3})
    assert await one.go() == "Gateway"
    assert log == ["init 3 Gateway", "enter Gateway"]
    log.clear()
    twin = await (await opened(provide=lambda annotation: annotation())).load(cls, "c")
    assert log == ["init 3 Gateway", "load 3 gone B"]
    assert isinstance(twin.gateway, Gateway)
    with pytest.raises(MachineError, match="is to be provided, and nothing is"):
        await (await opened()).load(cls, "c")


@pytest.mark.parametrize("decorate", [dataclass(slots=True), attrs.define, attrs.define(slots=False)])
async def test_slotted_and_attrs_machines_are_loaded_too(opened: Any, decorate: Any) -> None:
    class Case:
        total: int = 1

        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @transition(A, B)
        async def go(self) -> None:
            self.total = 7

        @transition(B, A)
        async def back(self) -> None: ...

    cls = machine(decorate(Case))
    await (await (await opened()).create(cls(total=2), id="c")).go()
    one = await (await opened()).load(cls, "c")
    assert (type(one), one.total, state_of(one)) == (cls, 7, "B")


@pytest.mark.parametrize(
    "decorate",
    [dataclass, dataclass(slots=True), attrs.define, attrs.define(slots=False), dataclass(eq=False)],
    ids=["dataclass", "slots", "attrs", "attrs-dict", "without-eq"],
)
@pytest.mark.parametrize("bare", [False, True])
async def test_a_decorator_outside_of_the_machines_is_refused(opened: Any, decorate: Any, bare: bool) -> None:
    class Inside:
        total: int

        @state(initial=True)
        class A: ...

        @state(final=True)
        class B: ...

        @transition(A, B)
        async def go(self) -> None: ...

    if not bare:  # a class with a __dict__ of its own, whatever the decorator does
        Inside = type("Inside", (type("Roomy", (), {}),), dict(Inside.__dict__))  # type: ignore[misc]
    cls = decorate(machine(Inside))
    machines = await opened()
    said = "must be the outermost decorator"
    with pytest.raises(DefinitionError, match=said):
        await machines.create(cls(total=1), id="i")
    with pytest.raises(DefinitionError, match=said):
        await machines.create(cls, id="i", data={"total": 1})
    with pytest.raises(DefinitionError, match=said):
        await machines.load(cls, "i")
    with pytest.raises(DefinitionError, match=said):
        state_of(cls(total=1))


async def test_super_in_a_stored_machine(opened: Any, store: Flaky) -> None:
    @machine
    class Parent:
        total: int = 0

        @state(initial=True)
        class A: ...

        @state(final=True)
        class B: ...

        @transition(A, B)
        async def go(self) -> int:
            self.total += 1
            return 1

    @machine
    class Child(Parent):
        @transition(Parent.A, Parent.B)
        async def go(self) -> int:
            return 1 + await super().go()

    child = await (await opened()).create(Child(), id="c")
    with pytest.raises(MachineError, match=r"Parent.go was called on a .*Child.*; fire the event with .go\(...\)"):
        await Parent.go(child)
    assert await child.go() == 2
    assert (state_of(child), child.total) == ("B", 1)
    assert len(await records_of(store, "c")) == 2


async def test_what_cannot_be_built_again_is_refused_at_creation(store: Flaky, opened: Any) -> None:
    @machine
    class Case:
        total: int

        def __init__(self, amount: int) -> None:
            self.total = amount

        @state(initial=True)
        class A: ...

        @state(final=True)
        class B: ...

        @transition(A, B)
        async def go(self) -> None: ...

    await Case(3).go()  # without a store it is fine
    machines = await opened()
    with pytest.raises(DefinitionError, match="parameter 'amount' is neither data nor provided"):
        await machines.create(Case(3), id="c")
    with pytest.raises(DefinitionError, match="amount"):
        await machines.load(Case, "c")
    assert store.appends == 0


async def test_unknown_and_foreign_ids(store: Flaky, opened: Any) -> None:
    @machine
    class Other:
        @state(initial=True)
        class A: ...

        @state(final=True)
        class B: ...

        @transition(A, B)
        async def go(self) -> None: ...

    machines = await opened()
    order = await machines.create(Order(total=1), id="o")
    await store.append([Write(id="run", expect=0, create=New("run", "checkout"), records=[b"x"])])
    with pytest.raises(RunNotFound, match=r"no machine 'nope' .* flow.create\(Order"):
        await machines.load(Order, "nope")
    with pytest.raises(RunNotFound):
        [t async for t in machines.history("nope")]
    for other in (machines, await opened()):
        with pytest.raises(IdConflict, match="belongs to the definition 'Order', not to 'Other'"):
            await other.load(Other, "o")
        with pytest.raises(IdConflict):
            await other.create(Other(), id="o")
        with pytest.raises(IdConflict, match="is a run, not a machine"):
            await other.load(Order, "run")
        with pytest.raises(IdConflict, match="is a run"):
            await other.create(Order(), id="run")
        with pytest.raises(IdConflict, match="is a run"):
            [t async for t in other.history("run")]
    for bad in ("", None, 3, b"o", "x" * 501, "a\0b", "\ud800", "definition/machine/Order/1"):
        said = "kept for definitions" if str(bad).startswith("definition/") else "1 to 500 characters"
        with pytest.raises(IdConflict, match=said):
            await machines.load(Order, bad)
        if bad is not None:
            with pytest.raises(IdConflict, match=said):
                await machines.create(Order(total=1), id=bad)
        with pytest.raises(IdConflict, match=said):
            [t async for t in machines.history(bad)]
    assert state_of(await machines.create(Order(total=1), id="x" * 500)) == "Draft"
    with pytest.raises(MachineError, match="stored already, as 'o'"):
        await (await opened()).create(order, id="o-2")
    with pytest.raises(MachineError, match="has no data attribute 'totl'; did you mean 'total'"):
        await machines.create(Order, data={"totl": 1})
    with pytest.raises(MachineError, match="is not a machine"):
        await machines.create(object())


async def test_an_object_that_has_moved_cannot_be_created(opened: Any) -> None:
    order = Order(total=1)
    await order.confirm("ann")
    machines = await opened()
    with pytest.raises(MachineError, match="already left its initial state"):
        await machines.create(order, id="o")
    await order.ship()


# --------------------------------------------------------------------------------- histories that do not fit
async def write(store: Any, id: str, *records: Any) -> None:
    """Write a history by hand."""
    new = New("machine", "Order")
    await store.append(
        [Write(id=id, expect=0, create=new, records=[r if isinstance(r, bytes) else pack(r) for r in records])]
    )


def created(data: dict[str, Any] | None = None, at: str = "Draft", version: int = 1) -> Any:
    return ("c", at, 1.0, 1, version, pack(data or {"total": 1, "by": "", "entered": 0}))


def moved(event: str, source: str, target: str, data: Any = None, version: int = 1) -> Any:
    return ("m", event, source, target, 1.0, 1, version, None if data is None else pack(data))


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([moved("confirm", "Draft", "Confirmed")], "record 1 .* expected the creation, found Moved"),
        ([created(), created()], "record 2 .* expected a transition, found Created"),
        ([created(at="Nowhere")], r"record 1 .* expected one of the states \[.*\], found 'Nowhere'"),
        (
            [created(), moved("ship", "Confirmed", "Shipped")],
            "record 2 .* a transition from 'Draft', found one from 'Conf",
        ),
        ([created(), moved("vanish", "Draft", "Shipped")], "record 2 .* one of the events .*, found 'vanish'"),
        ([created(), moved("confirm", "Draft", "Shipped")], r"'Draft' to \['Confirmed'\], found to 'Shipped'"),
        ([created(), moved("ship", "Draft", "Shipped")], "nowhere: no such transition, found to 'Shipped'"),
        ([created(), ("s", "Confirmed", 1.0, 1, 1, None)], "record 2 .* expected state 'Draft', found 'Confirmed'"),
        ([created({"total": 1, "price": 3})], "unknown field `price`"),
        ([created({"total": "one"})], "Expected `int`, got `str`"),
        ([created(version=2)], "written by version 2 of 'Order', and this is version 1"),
    ],
)
async def test_a_history_that_does_not_fit_is_an_error(store: Flaky, opened: Any, records: Any, said: str) -> None:
    await write(store, "o", *records)
    with pytest.raises(HistoryMismatch, match=said):
        await (await opened()).load(Order, "o")


@pytest.mark.parametrize("damaged", [b"", b"\xc1", b"hello", pack(("z", 1)), pack(("m", 1, 2, 3)), pack({"a": 1})])
async def test_damaged_records_are_an_error(store: Flaky, opened: Any, damaged: bytes) -> None:
    await write(store, "o", created(), damaged)
    machines = await opened()
    with pytest.raises(DecodeError, match="record 2 of machine 'o'"):
        await machines.load(Order, "o")
    with pytest.raises(DecodeError, match="record 2"):
        [t async for t in machines.history("o")]


class Holey:
    """A store whose records have been deleted behind its back."""

    def __init__(self, store: Any, *gone: int) -> None:
        self.store, self.gone = store, gone

    async def load(self, id: str, *, after: int = 0, limit: int | None = None) -> Any:
        stored = await self.store.load(id, after=after, limit=limit)
        kept = [r for n, r in enumerate(stored.records, after + 1) if n not in self.gone]
        return msgspec.structs.replace(stored, records=kept)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


def over(store: Any) -> Machines:
    return Machines(store, now=time.time, worker="another", log=Log())


@pytest.mark.parametrize("gone", [(1,), (2,), (3,), (2, 3), (1, 2, 3)])
async def test_a_record_that_is_missing_is_noticed(store: Flaky, gone: tuple[int, ...]) -> None:
    await write(store, "o", created(), moved("confirm", "Draft", "Confirmed"), moved("ship", "Confirmed", "Shipped"))
    machines = over(Holey(store, *gone))
    said = f"history of machine 'o' has a gap: records 1 to 3 should be 3, and {3 - len(gone)} are there"
    with pytest.raises(DecodeError, match=said):
        await machines.load(Order, "o")
    with pytest.raises(DecodeError, match=said):
        [t async for t in machines.history("o")]


async def test_a_record_that_is_missing_is_noticed_by_a_live_object(store: Flaky) -> None:
    mine = over(Holey(store, 2))
    order = await mine.create(Order(total=1), id="o")
    await store.append([Write(id="o", expect=1, records=[pack(moved("confirm", "Draft", "Confirmed"))])])
    for _ in range(2):
        with pytest.raises(DecodeError, match="records 2 to 2 should be 1, and 0 are there"):
            await mine.load(Order, "o")
        with pytest.raises(DecodeError, match="has a gap"):
            await order.confirm(by="ann")
    assert (state_of(order), order.total) == ("Draft", 1)


async def test_a_deleted_row_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "deleted.db"
    store = SQLiteStore(path)
    order = await over(store).create(Order(total=1), id="o")
    await order.confirm(by="ann")
    await store.close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM records WHERE seq = 2")
    store = SQLiteStore(path)
    with pytest.raises(DecodeError, match="records 1 to"):
        await over(store).load(Order, "o")
    await store.close()


async def test_attributes_added_later_take_their_defaults(store: Flaky, opened: Any) -> None:
    await write(store, "o", created({"total": 5}))
    order = await (await opened()).load(Order, "o")
    assert (order.total, order.by, order.entered) == (5, "", 0)


async def test_older_versions_pass_their_migrations(store: Flaky, opened: Any) -> None:
    def one_to_two(record: dict[str, Any]) -> dict[str, Any]:
        if record["event"] == "confirm":
            record["event"] = "accept"
        for key in ("source", "target"):
            if record.get(key) == "Confirmed":
                record[key] = "Accepted"
        if record["data"] is not None:
            record["data"]["price"] = record["data"].pop("total")
        return record

    class Newer:
        price: int = 0
        by: str = ""
        entered: int = 0

        @state(initial=True)
        class Draft: ...

        @state
        class Accepted: ...

        @transition(Draft, Accepted)
        async def accept(self) -> None: ...

        @transition(Accepted, None)
        async def add(self) -> None:
            self.price += 1

        @transition(Accepted, Draft)
        async def back(self) -> None: ...

    old = await (await opened()).create(Order(total=5), id="o")
    await old.confirm("ann")
    with pytest.raises(HistoryMismatch, match=r"record 2.* expected one of the events .*; raise version= .* migrate="):
        await (await opened()).load(machine(Newer, "Order", version=2), "o")
    cls = machine(Newer, "Order", version=3, migrate={1: one_to_two})
    order = await (await opened()).load(cls, "o")
    assert (state_of(order), order.price, order.by) == ("Accepted", 5, "ann")
    await order.add()
    again = await (await opened()).load(cls, "o")
    assert again.price == 6
    assert (await records_of(store, "o"))[-1].definition_version == 3
    broken = machine(Newer, "Order", version=3, migrate={1: lambda record: {"event": 3}})
    with pytest.raises(HistoryMismatch, match="what migrate= made of record 1"):
        await (await opened()).load(broken, "o")


# ------------------------------------------------------------------------------------------- others write
async def test_of_two_that_race_one_commits_and_the_other_gets_a_conflict(store: Flaky, opened: Any) -> None:
    first = await (await opened()).create(Order(total=1), id="o")
    second = await (await opened()).load(Order, "o")
    await first.confirm("ann")
    with pytest.raises(Conflict) as lost:
        await second.confirm("bob")
    assert (lost.value.expected, lost.value.actual, lost.value.id) == (1, 3, "o")
    assert (second.by, second.entered) == ("", 0)  # its enter hook did not run
    with pytest.raises(TransitionNotAllowed) as refused:
        await second.confirm("bob")
    assert refused.value.state == "Confirmed"
    assert (second.by, second.entered) == ("ann", 1)
    await second.ship()
    assert [t.version async for t in (await opened()).history("o")] == [2, 4]


async def test_on_conflict_retry_judges_again_and_tries_again(opened: Any) -> None:
    class Counter:
        n: int = 0

        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @guard
        def can_count(self) -> bool:
            return self.n < 3

        @transition(A, None)
        async def count(self) -> int:
            self.n += 1
            return self.n

        @transition(A, B)
        async def end(self) -> None: ...

        @transition(B, A)
        async def again(self) -> None: ...

    cls = machine(Counter, on_conflict="retry")
    first = await (await opened()).create(cls, id="c")
    second = await (await opened()).load(cls, "c")
    assert await first.count() == 1
    assert await second.count() == 2
    assert await first.count() == 3
    with pytest.raises(TransitionNotAllowed) as refused:
        await second.count()
    assert refused.value.guard == "can_count"
    await first.end()
    with pytest.raises(TransitionNotAllowed) as refused:
        await second.end()
    assert refused.value.reason == "no_transition"


async def test_load_brings_a_live_object_up_to_date(opened: Any) -> None:
    machines = await opened()
    first = await machines.create(Order(total=1), id="o")
    second = await (await opened()).load(Order, "o")
    await second.confirm("bob")
    assert state_of(first) == "Draft"
    assert await machines.load(Order, "o") is first
    assert (state_of(first), first.by) == ("Confirmed", "bob")


@pytest.fixture
def exclusive_class() -> Any:
    class Case:
        n: int = 0

        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @transition(A, B, exclusive=True)
        async def go(self) -> None:
            self.n += 1
            ran.append(id(self))
            await anyio.sleep(0.02)
            if self.n > 5:
                raise ValueError("no")

        @transition(B, A)
        async def back(self) -> None: ...

        @transition(A, B, exclusive=True, on_conflict="retry")
        async def wait(self) -> None:
            ran.append(id(self))
            await anyio.sleep(0.02)

    ran: list[int] = []
    Case.ran = ran  # type: ignore[attr-defined]
    return machine(Case)


async def test_an_exclusive_transition_keeps_others_from_running_the_body(opened: Any, exclusive_class: Any) -> None:
    cls = exclusive_class
    one = await (await opened()).create(cls, id="c")
    two = await (await opened()).load(cls, "c")
    outcomes: list[str] = []

    async def attempt(machine: Any) -> None:
        try:
            await machine.go()
            outcomes.append("done")
        except Conflict as error:
            outcomes.append("holds its lease" if "holds its lease" in str(error) else str(error))

    async with anyio.create_task_group() as group:
        group.start_soon(attempt, one)
        group.start_soon(attempt, two)
    assert sorted(outcomes) == ["done", "holds its lease"]
    assert len(cls.ran) == 1
    await two.back() if state_of(two) == "B" else await one.back()


async def test_an_exclusive_transition_that_retries_waits_for_the_other(opened: Any, exclusive_class: Any) -> None:
    cls = exclusive_class
    one = await (await opened()).create(cls, id="c")
    two = await (await opened()).load(cls, "c")
    refused: list[str] = []

    async def attempt(machine: Any) -> None:
        try:
            await machine.wait()
        except TransitionNotAllowed as error:
            refused.append(error.state)

    async with anyio.create_task_group() as group:
        group.start_soon(attempt, one)
        group.start_soon(attempt, two)
    assert refused == ["B"]
    assert len(cls.ran) == 1


async def test_a_lease_is_given_back_whatever_happens(store: Flaky, opened: Any, exclusive_class: Any) -> None:
    one = await (await opened()).create(exclusive_class, id="c")
    one.n = 10
    with pytest.raises(ValueError, match="no"):
        await one.go()
    assert (await store.load("c")).head.owner is None
    one.n = 0
    with anyio.move_on_after(0.005):
        await one.go()
    assert (await store.load("c")).head.owner is None
    await one.go()
    assert (await store.load("c")).head.owner is None
    with pytest.raises(TransitionNotAllowed):
        await one.go()


async def test_a_lease_left_by_a_crash_is_taken_over_and_logged(
    store: Flaky, opened: Any, exclusive_class: Any
) -> None:
    log = Notes()
    one = await (await opened(log=log)).create(exclusive_class, id="c")
    await store.heartbeat("dead", 0.4)
    assert (await store.claim("dead", ids=["c"])).heads
    with pytest.raises(Conflict, match="holds its lease"):
        await one.go()
    assert "machine.interrupted" not in log.events
    await anyio.sleep(0.45)
    await one.go()
    (fields,) = [f for e, f in log.said if e == "machine.interrupted"]
    assert (fields["owner"], fields["machine"]) == ("dead", "c")


async def test_a_lost_lease_refuses_the_write(store: Flaky, opened: Any) -> None:
    thieves = ["somebody"]

    @machine
    class Case:
        n: int = 0

        @state(initial=True)
        class A: ...

        @state(final=True)
        class B: ...

        @transition(A, B, exclusive=True)
        async def go(self) -> None:
            self.n += 1
            if thieves:
                thieves.pop()
                await store.release("worker-0", ["c"])

    one = await (await opened()).create(Case, id="c")
    with pytest.raises(LeaseLost):
        await one.go()
    assert (one.n, state_of(one)) == (0, "A")
    await one.go()


# --------------------------------------------------------------------------------------------- stores fail
async def test_a_failed_transition_writes_nothing(store: Flaky, opened: Any) -> None:
    order = await (await opened()).create(Order(total=1), id="o")
    appends = store.appends
    with pytest.raises(ValueError, match="no"):
        await order.confirm("ann", fail=True)
    assert (order.by, state_of(order), store.appends) == ("", "Draft", appends)


async def test_a_store_that_is_down_leaves_the_machine_as_it_was(store: Flaky, opened: Any) -> None:
    order = await (await opened()).create(Order(total=1), id="o")
    store.before = [StoreUnavailable("down")]
    with pytest.raises(StoreUnavailable):
        await order.confirm("ann")
    assert (order.by, state_of(order)) == ("", "Draft")
    await order.confirm("bob")
    assert [t.actor async for t in (await opened()).history("o")] == ["bob"]


async def test_a_commit_whose_reply_is_lost_is_recognised(store: Flaky, opened: Any) -> None:
    machines = await opened()
    store.after = [StoreUnavailable("lost")]
    order = await machines.create(Order(total=1), id="o")
    store.after = [StoreUnavailable("lost")]
    assert await order.confirm("ann") == "confirmed by ann"
    assert order.entered == 1
    # A store that tried again by itself meets its own record:
    store.after = [Conflict(3, 4, "o")]
    assert await order.add(2) == 3
    await order.ship()
    assert [t.event async for t in machines.history("o")] == ["confirm", "add", "ship"]


async def test_hooks_assignments_that_cannot_be_recorded_are_a_failed_hook(store: Flaky, opened: Any) -> None:
    order = await (await opened()).create(Order(total=1), id="o")

    real = store.append

    async def second_fails(writes: Any, **options: Any) -> None:
        await real(writes, **options)
        store.before = [StoreUnavailable("down")]

    store.append = second_fails  # type: ignore[method-assign]
    with pytest.raises(HookFailed, match="could not be recorded") as failed:
        await order.confirm("ann")
    assert failed.value.committed
    store.append, store.before = real, []  # type: ignore[method-assign]
    assert await can(order.add, 1)
    assert (state_of(order), order.entered) == ("Confirmed", 0)  # read again: the store is right
    await order.add(1)


async def test_data_that_cannot_be_stored_is_an_error_before_the_commit(store: Flaky, opened: Any) -> None:
    machines = await opened()
    with pytest.raises(EncodeError, match="does not fit its annotations"):
        await machines.create(Order(total="many"), id="bad")  # type: ignore[arg-type]
    assert await store.load("bad") is None
    order = await machines.create(Order(total=1), id="o")
    with pytest.raises(EncodeError, match=r"does not fit its annotations.* at `\$.by`"):
        await order.confirm(by=5)  # type: ignore[arg-type]
    assert (order.by, state_of(order)) == ("", "Draft")
    await order.confirm("ann")
    with pytest.raises(EncodeError, match="cannot be stored"):
        await order.add(2**80)
    assert order.total == 1


async def test_an_attribute_without_a_value_is_an_error(opened: Any) -> None:
    @machine
    class Case:
        total: int

        @state(initial=True)
        class A: ...

        @state(final=True)
        class B: ...

        @transition(A, B)
        async def go(self) -> None: ...

    with pytest.raises(EncodeError, match="give the attribute a default"):
        await (await opened()).create(Case(), id="c")


async def test_a_pruned_machine_says_so(store: Flaky, opened: Any) -> None:
    machines = await opened()
    order = await machines.create(Order(total=1), id="o")
    await order.confirm("ann")
    await order.ship()
    assert await store.prune(closed_before=time.time() + 10) == 1
    with pytest.raises(RunNotFound):
        await machines.load(Order, "o")


async def test_a_hook_that_fails_is_committed_and_what_it_assigned_is_recorded(opened: Any) -> None:
    class Case:
        n: int = 0

        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @transition(A, B)
        async def go(self) -> None: ...

        @transition(B, A)
        async def back(self) -> None: ...

        async def on_enter_b(self) -> None:
            self.n = 5
            raise ValueError("hook")

    cls = machine(Case)
    one = await (await opened()).create(cls, id="c")
    with pytest.raises(HookFailed, match="has been committed") as failed:
        await one.go()
    assert failed.value.committed
    assert isinstance(failed.value.__cause__, ValueError)
    twin = await (await opened()).load(cls, "c")
    assert (state_of(twin), twin.n) == ("B", 5)
    await one.back()


# ------------------------------------------------------------------------------------------- raised events
@pytest.fixture
def raising_class() -> Any:
    class Case:
        log: list[str] = []  # noqa: RUF012 - replaced, never changed
        when: datetime | None = None

        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @state
        class C: ...

        @transition(A, B)
        async def go(self, at: datetime) -> None:
            raise_event(self.note, at, word="one")
            raise_event(self.on)

        @transition("*", None)
        async def note(self, at: datetime, *, word: str) -> None:
            await hold()
            self.when = at
            self.log = [*self.log, word]

        @transition(B, C)
        async def on(self) -> None: ...

        @transition(C, A)
        async def back(self) -> None: ...

        async def on_enter_b(self) -> None:
            raise_event(self.note, datetime(2020, 1, 1, tzinfo=UTC), word="hook")

    async def nothing() -> None: ...

    hold: Any = nothing

    def holding(new: Any) -> None:
        nonlocal hold
        hold = new

    Case.holding = holding  # type: ignore[attr-defined]
    return machine(Case)


async def test_raised_events_are_transitions_of_their_own(store: Flaky, opened: Any, raising_class: Any) -> None:
    machines = await opened()
    one = await machines.create(raising_class, id="c")
    when = datetime(2024, 5, 6, tzinfo=UTC)
    await one.go(when)
    assert (state_of(one), one.log) == ("C", ["one", "hook"])
    assert [t.event async for t in machines.history("c")] == ["go", "note", "on", "note"]
    waiting = [len(r.raised) for r in await records_of(store, "c") if isinstance(r, Moved)]
    assert waiting == [2, 2, 1, 0]
    assert (await store.load("c")).head.owner is None


async def test_load_continues_what_a_crash_interrupted(store: Flaky, opened: Any, raising_class: Any) -> None:
    log = Notes()
    one = await (await opened(lease=0.5)).create(raising_class, id="c")
    when = datetime(2024, 5, 6, tzinfo=UTC)

    async def for_ever() -> None:
        raise GeneratorExit  # the process ends here, with the lease in its hands

    raising_class.holding(for_ever)
    real = store.store.release

    async def never(*_: Any) -> None: ...

    store.release = never  # type: ignore[attr-defined]
    with pytest.raises(GeneratorExit):
        await one.go(when)
    store.release = real  # type: ignore[attr-defined]
    assert (await store.load("c")).head.owner == "worker-0"

    async def nothing() -> None: ...

    raising_class.holding(nothing)
    machines = await opened(log=log)
    early = await machines.load(raising_class, "c")
    assert state_of(early) == "B"  # its owner seems to be at it
    with pytest.raises(Conflict, match="holds its lease"):
        await early.note(when, word="x")
    await anyio.sleep(0.55)
    late = await machines.load(raising_class, "c")
    assert (state_of(late), late.log, late.when) == ("C", ["one"], when)
    assert "machine.interrupted" in log.events
    assert [t.event async for t in machines.history("c")] == ["go", "note", "on"]


async def test_the_next_event_continues_what_a_cancellation_interrupted(
    store: Flaky, opened: Any, raising_class: Any
) -> None:
    one = await (await opened()).create(raising_class, id="c")
    when = datetime(2024, 5, 6, tzinfo=UTC)

    async def for_ever() -> None:
        await anyio.sleep(60)

    async def nothing() -> None: ...

    raising_class.holding(for_ever)
    with anyio.move_on_after(0.05):
        await one.go(when)
    assert (await store.load("c")).head.owner is None
    raising_class.holding(nothing)
    await one.back()
    assert (state_of(one), one.log) == ("A", ["one"])


async def test_an_argument_that_cannot_be_stored_is_refused_where_it_is_raised(opened: Any) -> None:
    class Case:
        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @transition(A, B)
        async def go(self) -> None:
            raise_event(self.back, object())

        @transition(B, A)
        async def back(self, what: object) -> None: ...

    one = await (await opened()).create(machine(Case), id="c")
    with pytest.raises(EncodeError, match="argument of the raised event 'back'"):
        await one.go()
    assert state_of(one) == "A"


# --------------------------------------------------------------------------------------------- inside runs
class Receipt(msgspec.Struct):
    number: int


class FakeRun:
    """What a machine asks of a run."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, str], int] = {}

    inside: Any = True

    def event_key(self, machine: str, event: str) -> str:
        n = self.counts[machine, event] = self.counts.get((machine, event), 0) + 1
        return f"run-1/{machine}/{event}:{n}"


@pytest.fixture
def till_class() -> Any:
    class Till:
        n: int = 0

        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @transition(A, B)
        async def pay(self) -> Receipt:
            bodies.append("pay")
            self.n += 1
            return Receipt(self.n)

        @transition("*", None)
        async def count(self) -> int:
            self.n += 1
            return self.n

        @transition(B, A)
        async def back(self) -> int:
            return "not a number"  # type: ignore[return-value]

    bodies: list[str] = []
    Till.bodies = bodies  # type: ignore[attr-defined]
    return machine(Till)


async def test_an_event_fired_again_by_a_replay_returns_its_recorded_result(opened: Any, till_class: Any) -> None:
    async def body(till: Any) -> list[Any]:
        token = run_context.set(FakeRun())
        try:
            return [await till.pay(), await till.count(), await till.count()]
        finally:
            run_context.reset(token)

    till = await (await opened()).create(till_class, id="t")
    first = await body(till)
    assert first == [Receipt(1), 2, 3]
    assert await body(till) == first
    replayed = await body(await (await opened()).load(till_class, "t"))
    assert replayed == first
    assert isinstance(replayed[0], Receipt)
    assert till_class.bodies == ["pay"]
    with pytest.raises(TransitionNotAllowed):
        await till.pay()


async def test_a_replay_in_another_process_learns_of_the_key_through_its_conflict(opened: Any, till_class: Any) -> None:
    till = await (await opened()).create(till_class, id="t")
    behind = await (await opened()).load(till_class, "t")
    results = []
    for one in (till, behind):
        token = run_context.set(FakeRun())
        results.append(await one.pay())
        run_context.reset(token)
    assert results == [Receipt(1), Receipt(1)]
    assert behind.n == 1


async def test_a_result_that_does_not_fit_its_annotation_is_refused_inside_a_run(opened: Any, till_class: Any) -> None:
    till = await (await opened()).create(till_class, id="t")
    await till.pay()
    token = run_context.set(FakeRun())
    with pytest.raises(EncodeError, match=r"result of Till.back does not decode to int"):
        await till.back()
    run_context.reset(token)
    assert state_of(till) == "B"
    assert await till.back() == "not a number"


# -------------------------------------------------------------------------------------------------- logs
async def test_transitions_are_logged_when_somebody_listens(opened: Any) -> None:
    log = Notes()
    order = await (await opened(log=log)).create(Order(total=1), id="o")
    await order.confirm("ann")
    (fields,) = [f for e, f in log.said if e == "transition.committed"]
    assert fields == {
        "machine": "o",
        "definition": "Order",
        "trigger": "confirm",
        "source": "Draft",
        "target": "Confirmed",
        "version": 2,
    }


def test_the_settled_record_is_not_a_transition() -> None:
    assert not issubclass(Settled, Moved)
