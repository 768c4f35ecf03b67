"""Statecharts over a store: what is recorded, what a load makes of it, and what others may do in between."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from flowlet import Flowlet, Registry, fire, in_state, raise_event, state, states_of, transition
from flowlet.core.codec import pack
from flowlet.core.machine_records import Created, Moved, read_record
from flowlet.errors import Conflict, DecodeError, HistoryMismatch, HookFailed, MachineError, StoreUnavailable
from flowlet.runtime.machine_install import definition_of
from flowlet.runtime.machine_questions import state_of
from flowlet.store import New, Store, Write
from flowlet.stores import open_store

pytestmark = pytest.mark.anyio

registry = Registry()
machine = registry.machine
Until = Callable[[Callable[[], Any]], Any]

said: list[str] = []
"""What callbacks have done, whatever became of their machine's data."""


class Gate:
    """Lets hooks wait."""

    def __init__(self) -> None:
        self.opened = anyio.Event()
        self.opened.set()

    def close(self) -> None:
        self.opened = anyio.Event()


gate: list[Gate] = []


@pytest.fixture(autouse=True)
def _silence() -> None:
    said.clear()
    gate[:] = [Gate()]


async def records_of(flow: Flowlet, id: str) -> list[Any]:
    stored = await flow.store.load(id)
    assert stored is not None
    return [read_record(data, n, id) for n, data in enumerate(stored.records, 1)]


@pytest.fixture
def two_stores(tmp_path: Path) -> Callable[[], Store]:
    return lambda: open_store(f"sqlite:///{tmp_path}/two.db?durability=process")


@machine(allow={"dead_end"})
class Plant:
    n: int = 0

    @state(initial=True)
    class Idle: ...

    @state
    class Run:
        @state(initial=True, parallel=True)
        class Both:
            @state
            class A:
                @state(initial=True)
                class A1: ...

                @state
                class A2: ...

                @state(final=True)
                class A3: ...

            @state
            class B:
                @state(initial=True)
                class B1: ...

                @state(final=True)
                class B2: ...

        @state(history="deep", default="Run.Both")
        class Past: ...

    @state(final=True)
    class End:
        pass

    @transition(Idle, Run)
    async def start(self) -> None: ...

    @transition(Idle, Run.Past)
    async def resume(self) -> None: ...

    @transition(Run, Idle)
    async def pause(self) -> None: ...

    @transition(Run.Both.A.A1, Run.Both.A.A2, event="go")
    async def go_a(self) -> None:
        self.n += 1

    @transition(Run.Both.A.A2, Run.Both.A.A3, event="go")
    async def end_a(self) -> None:
        raise_event(self.tap, "action")

    @transition(Run.Both.B.B1, Run.Both.B.B2)
    async def end_b(self) -> None:
        raise_event(self.tap, "action")

    @transition(Run.Both, End, done=True)
    async def stop(self) -> None:
        raise_event(self.tap, "in vain")

    @transition("*", None)
    async def tap(self, by: str) -> None:
        said.append(f"tap {by}")
        self.n += 100

    async def on_enter_a2(self) -> None:
        said.append("enter A2")
        await gate[0].opened.wait()
        self.n += 10

    async def on_enter_b2(self) -> None:
        await gate[0].opened.wait()


A1, A2 = "Run.Both.A.A1 + Run.Both.B.B1", "Run.Both.A.A2 + Run.Both.B.B1"


# Records --------------------------------------------------------------------------------------------------
async def test_a_life_in_records(new_store: Any) -> None:
    async with Flowlet(new_store(), registry=registry) as flow:
        plant = await flow.create(Plant, id="p")
        for event in ("start", "go", "pause", "resume", "go", "end_b"):
            await fire(plant, event)
        a3 = "Run.Both.A.A3 + Run.Both.B.B1"
        a3b2 = "Run.Both.A.A3 + Run.Both.B.B2"
        records = await records_of(flow, "p")
        moves = [(r.event, r.source, r.target) for r in records if isinstance(r, Moved)]
        assert moves == [
            ("start", "Idle", A1),
            ("go", A1, A2),
            ("pause", A2, "Idle"),
            ("resume", "Idle", A2),
            ("go", A2, a3),
            ("tap", a3, a3),
            ("end_b", a3, a3b2),
            ("tap", a3b2, a3b2),
            ("done.state.Run.Both", a3b2, "End"),
        ]
        assert [type(r).__name__ for r in records].count("Settled") == 3  # what A2's hook and End's have left
        remembered = [r.memory for r in records if isinstance(r, Moved) and r.memory is not None]
        assert remembered == [
            {"Run.Past": ("Run.Both.A.A2", "Run.Both.B.B1")},
            {"Run.Past": ("Run.Both.A.A3", "Run.Both.B.B2")},
        ]
        stored = await flow.store.load("p")
        assert stored is not None
        assert (stored.head.state, stored.head.status, stored.head.owner) == ("End", "final", None)
        assert stored.head.closed is not None
        assert said == ["enter A2", "enter A2", "tap action", "tap action"]
    async with Flowlet(new_store(), registry=registry) as flow:
        assert states_of(await flow.load(Plant, "p")) == ("End",)
        assert await flow.verify(Plant, "p") == len(records)


async def test_what_was_raised_is_recorded_in_the_order_it_is_handled_in(new_store: Any) -> None:
    async with Flowlet(new_store(), registry=registry) as flow:
        plant = await flow.create(Plant, id="p")
        for event in ("start", "go", "go", "end_b"):
            await fire(plant, event)
        ends = next(r for r in await records_of(flow, "p") if isinstance(r, Moved) and r.event == "end_b")
        assert [p.event for p in ends.raised] == ["tap", "done.state.Run.Both"]


async def test_an_interrupted_macrostep_goes_on_where_it_is_loaded(two_stores: Any, until: Until) -> None:
    async with Flowlet(two_stores(), registry=registry) as flow:
        plant = await flow.create(Plant, id="p")
        for event in ("start", "go", "go"):
            await fire(plant, event)
        gate[0].close()
        async with anyio.create_task_group() as group:
            group.start_soon(plant.end_b)
            await until(lambda: in_state(plant, "B2"))
            group.cancel_scope.cancel()  # in the hook of B2
    said.clear()
    async with Flowlet(two_stores(), registry=registry) as flow:
        again = await flow.load(Plant, "p")
        assert (states_of(again), said) == (("End",), ["tap action"])


@machine(allow={"dead_end"})
class Fresh:
    """Starting it takes a while, is done, and goes on by itself."""

    n: int = 0

    @state(initial=True)
    class P:
        @state(initial=True, final=True)
        class Done: ...

    @state
    class Q: ...

    @state
    class R: ...

    @transition(P, Q, done=True)
    async def on(self) -> None:
        said.append("on")
        self.n += 1

    @transition(Q, R, eventless=True)
    async def slip(self) -> None:
        said.append("slip")
        self.n += 1

    @transition(R, Q)
    async def back(self) -> str:
        return "back"

    async def on_enter_p(self) -> None:
        said.append("enter P")
        await gate[0].opened.wait()

    async def on_enter_q(self) -> None:
        said.append("enter Q")
        await gate[0].opened.wait()


async def test_a_machine_that_is_being_started_is_left_alone_by_other_processes(two_stores: Any, until: Until) -> None:
    gate[0].close()
    async with Flowlet(two_stores(), registry=registry) as one, Flowlet(two_stores(), registry=registry) as two:
        async with anyio.create_task_group() as group:
            made: list[Any] = []

            async def create() -> None:
                made.append(await one.create(Fresh, id="f"))

            group.start_soon(create)
            await until(lambda: "enter P" in said)
            seen = await two.load(Fresh, "f")
            assert state_of(seen) == "P.Done"
            assert said == ["enter P"]
            gate[0].opened.set()
        assert (state_of(made[0]), made[0].n) == ("R", 2)
        assert said == ["enter P", "on", "enter Q", "slip"]
        assert (await two.load(Fresh, "f")).n == 2


async def test_what_goes_on_by_itself_is_not_taken_away_by_who_loads_meanwhile(two_stores: Any, until: Until) -> None:
    async with Flowlet(two_stores(), registry=registry) as one, Flowlet(two_stores(), registry=registry) as two:
        fresh = await one.create(Fresh, id="f")
        said.clear()
        gate[0].close()
        async with anyio.create_task_group() as group:
            answers: list[str] = []

            async def back() -> None:
                answers.append(await fresh.back())

            group.start_soon(back)
            await until(lambda: "enter Q" in said)
            seen = await two.load(Fresh, "f")
            assert state_of(seen) == "Q"
            gate[0].opened.set()
        assert answers == ["back"]
        assert said == ["enter Q", "slip"]
        assert [t.event async for t in two.history("f")] == ["done.state.P", "slip", "back", "slip"]


async def test_a_creation_that_is_cancelled_in_a_hook_goes_on_where_it_is_loaded(new_store: Any, until: Until) -> None:
    gate[0].close()
    async with Flowlet(new_store(), registry=registry) as flow:
        async with anyio.create_task_group() as group:
            group.start_soon(partial(flow.create, Fresh, id="f"))
            await until(lambda: "enter P" in said)
            group.cancel_scope.cancel()
        gate[0].opened.set()
        fresh = await flow.load(Fresh, "f")
        assert (state_of(fresh), fresh.n) == ("R", 2)
        assert said == ["enter P", "on", "enter Q", "slip"]
        assert await flow.create(Fresh, id="f") is fresh


async def test_creating_it_again_does_not_start_it_again(new_store: Any) -> None:
    async with Flowlet(new_store(), registry=registry) as flow:
        await flow.create(Fresh, id="f")
    said.clear()
    async with Flowlet(new_store(), registry=registry) as flow:
        again = await flow.create(Fresh, id="f")
        assert (state_of(again), said) == ("R", [])


# Others ---------------------------------------------------------------------------------------------------
async def test_of_two_processes_one_commits_and_the_hooks_of_the_other_do_not_run(two_stores: Any) -> None:
    async with Flowlet(two_stores(), registry=registry) as one, Flowlet(two_stores(), registry=registry) as two:
        first = await one.create(Plant, id="p")
        await first.start()
        second = await two.load(Plant, "p")
        await first.go_a()
        with pytest.raises(Conflict) as lost:
            await second.go_a()
        assert (lost.value.expected, lost.value.actual) == (2, 4)
        assert said == ["enter A2"]
        await second.end_b()  # it has read what there is
        assert state_of(second) == "Run.Both.A.A2 + Run.Both.B.B2"
        assert (await one.load(Plant, "p")).n == 111


@machine(on_conflict="retry", allow={"dead_end"})
class Stubborn:
    n: int = 0

    @state(initial=True, parallel=True)
    class P:
        @state
        class A:
            @state(initial=True)
            class A1: ...

            @state
            class A2: ...

            @state
            class A3: ...

        @state
        class B:
            @state(initial=True)
            class B1: ...

            @state
            class B2: ...

    @transition(P.A.A1, P.A.A2)
    async def go(self) -> None:
        raise_event(self.next)

    @transition(P.A.A2, P.A.A3)
    async def next(self) -> None:
        said.append("next")

    @transition(P.B.B1, P.B.B2)
    async def step(self) -> None: ...

    async def on_enter_a2(self) -> None:
        said.append("entered")
        await gate[0].opened.wait()


async def test_who_tries_again_does_not_come_between_the_other_and_what_it_has_raised(
    two_stores: Any, until: Until
) -> None:
    async with Flowlet(two_stores(), registry=registry) as one, Flowlet(two_stores(), registry=registry) as two:
        first = await one.create(Stubborn, id="s")
        second = await two.load(Stubborn, "s")
        gate[0].close()
        ended: list[str] = []

        async def call(name: str, event: Any) -> None:
            try:
                await event()
            except Conflict:
                name = f"{name} in conflict"
            ended.append(name)

        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                group.start_soon(call, "go", first.go)
                await until(lambda: "entered" in said)
                group.start_soon(call, "step", second.step)
                with anyio.move_on_after(0.2):
                    await until(lambda: ended)
                gate[0].opened.set()
        assert "next" in said
        assert "go" in ended
        final = await one.load(Stubborn, "s")
        assert in_state(final, Stubborn.P.A.A3)
        assert in_state(final, Stubborn.P.B.B2) == ("step" in ended)
        events = [t.event async for t in one.history("s")]
        assert events.index("next") == events.index("go") + 1


# Listings and long histories --------------------------------------------------------------------------------
async def test_machines_are_listed_by_any_state_they_are_in(new_store: Any) -> None:
    async with Flowlet(new_store(), registry=registry) as flow:
        for id, events in {"p-1": "", "p-2": "start", "p-3": "start go", "p-4": "start pause", "p-5": "start"}.items():
            plant = await flow.create(Plant, id=id)
            for event in events.split():
                await fire(plant, event)

        async def listed(state: Any) -> list[str]:
            return [id async for id in flow.machines(Plant, state=state)]

        assert await listed(None) == ["p-1", "p-2", "p-3", "p-4", "p-5"]
        assert await listed(Plant.Run) == ["p-2", "p-3", "p-5"]
        assert await listed("Run.Both.B") == ["p-2", "p-3", "p-5"]
        assert await listed("A2") == ["p-3"]
        assert await listed(Plant.Run.Both.B.B1) == ["p-2", "p-3", "p-5"]
        assert await listed(Plant.Idle) == ["p-1", "p-4"]
        assert await listed(Plant.End) == []
        with pytest.raises(MachineError, match="does not exist"):
            await listed("A4")


class Counting:
    """Counts the records that are loaded at once."""

    def __init__(self, store: Store) -> None:
        self.store, self.capabilities = store, store.capabilities
        self.most = 0
        self.fail: list[int] = []  # of the next appends, which are lost

    async def load(self, id: str, /, **options: Any) -> Any:
        stored = await self.store.load(id, **options)
        self.most = max(self.most, 0 if stored is None else len(stored.records))
        return stored

    async def append(self, writes: Any, **options: Any) -> None:
        if self.fail and not self.fail.pop(0):
            raise StoreUnavailable("the write was lost")
        await self.store.append(writes, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


def moved(event: str, source: str, target: str, **more: Any) -> Moved:
    return Moved(event, source, target, 1.0, 1, more.pop("version", 1), **more)


async def write(store: Any, cls: Any, id: str, first: Created, *records: Moved) -> None:
    definition = definition_of(cls)
    data = [pack(first), *(pack(r) for r in records)]
    state = records[-1].target if records else first.state
    new = New("machine", definition.name, str(first.definition_version))
    await store.append((Write(id=id, expect=0, create=new, records=tuple(data), status="active", state=state),))


CREATED = Created("Idle", 1.0, 1, 1, b"\x81\xa1n\x00")


async def test_a_history_of_10_000_records_is_streamed(new_store: Any) -> None:
    store = Counting(new_store())
    flip = (moved("go", A1, A2), moved("pause", A2, "Idle"), moved("start", "Idle", A1))
    async with Flowlet(store, registry=registry) as flow:
        await write(store, Plant, "long", CREATED, moved("start", "Idle", A1), *flip * 3333)
        seen = 0
        async for t in flow.history("long"):
            assert t.version == seen + 2
            seen += 1
            if seen == 500:
                assert store.most <= 1000
        assert seen == 10_000
        assert t.target == A1
        assert store.most <= 1000
        plant = await flow.load(Plant, "long")
        assert state_of(plant) == A1
        await plant.pause()
        assert await flow.verify(Plant, "long") >= 10_002


@machine(allow={"dead_end"})
class Rich:
    """It has something of everything that is recorded."""

    n: int = 0

    @state(initial=True)
    class Off: ...

    @state
    class On:
        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @state(history="shallow")
        class Last: ...

    @transition(Off, On.Last)
    async def start(self) -> None:
        raise_event(self.count, 1)
        raise_event(self.count, 2, after=7200)

    @transition(On, Off)
    async def stop(self) -> None: ...

    @transition(On.A, On.B)
    @transition(On.B, On.A)
    async def turn(self) -> None:
        raise_event(self.count, 10)

    @transition(On.B, On.A, after=3600)
    async def tire(self) -> None: ...

    @transition("*", None)
    async def count(self, by: int) -> None:
        self.n += by

    async def on_enter_b(self) -> None:
        self.n += 100


@pytest.mark.parametrize("every", [1, 2, 3, 5])
async def test_a_load_from_a_snapshot_is_a_load_of_all_records(
    new_store: Any, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowlet.runtime.machine_bond.EVERY", every)
    async with Flowlet(new_store(), registry=registry) as flow:
        rich: Any = await flow.create(Rich, id="r")
        for event in ("start", "turn", "stop", "start", "turn", "turn", "stop", "stay"):
            if event != "stay":
                await fire(rich, event)
            async with Flowlet(new_store(), registry=registry) as other:
                again: Any = await other.load(Rich, "r")
                assert again is not rich
                assert again._flowlet_state is rich._flowlet_state  # with what histories remember
                assert again.n == rich.n
                timers = [{k: d.at for k, d in m._flowlet_turn.timers.items()} for m in (again, rich)]
                assert timers[0] == timers[1]
                assert await other.verify(Rich, "r") == rich._flowlet_turn.version
        assert (rich.n, len(timers[0])) == (332, 2)
        stored = await flow.store.load("r")
        assert stored is not None
        assert stored.snapshot is not None


# Histories that do not fit ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([moved("start", "Idle", "Run.Both.A.A1")], "expected event 'start'"),  # a region is missing
        ([moved("start", "Idle", "Idle + Run.Both.A.A1")], "start"),
        ([moved("start", "Idle", A2)], "expected event 'start' to lead from 'Idle'"),
        ([moved("start", "Idle", "Run.Gone")], "Run.Gone"),
        ([moved("start", A1, A2)], "expected a transition from 'Idle'"),
        ([moved("stroll", "Idle", A1)], "'stroll'"),
        ([moved("done.state.Run", "Idle", A1)], "done.state.Run"),
        ([moved("start", "Idle", A1), moved("pause", A1, "Idle", memory={"Run.Gone": ("Run.Both",)})], "Run.Gone"),
        ([moved("start", "Idle", A1), moved("pause", A1, "Idle", memory={"Run.Past": ("Run.Gone",)})], "Run.Gone"),
        ([moved("start", "Idle", A1), moved("pause", A1, "Idle", memory={"Run.Past": ("End",)})], "End"),
        ([moved("start", "Idle", A1), moved("pause", A1, "Idle", memory={"Run.Both": ("End",)})], "Run.Both"),
    ],
)
async def test_histories_that_do_not_fit(records: list[Moved], words: str) -> None:
    async with Flowlet(registry=registry) as flow:
        await write(flow.store, Plant, "odd", CREATED, *records)
        with pytest.raises(HistoryMismatch, match=words) as refused:
            await flow.load(Plant, "odd")
        assert f"record {len(records) + 1} of machine 'odd'" in str(refused.value)
        with pytest.raises(HistoryMismatch):
            await flow.verify(Plant, "odd")


async def test_a_creation_in_a_state_that_is_none() -> None:
    async with Flowlet(registry=registry) as flow:
        await write(flow.store, Plant, "odd", Created("Run.Both.A.A1", 1.0, 1, 1, b"\x81\xa1n\x00"))
        with pytest.raises((HistoryMismatch, DecodeError)):
            await flow.load(Plant, "odd")


def renamed(record: dict[str, Any]) -> dict[str, Any]:
    """Call the first state of the machine Rest instead of Idle, and Run what was Go."""
    plain: dict[str, Any] = json.loads(json.dumps(record).replace("Go.", "Run.").replace("@Go", "@Run"))
    return plain


async def test_older_records_pass_their_migration_with_what_they_remember(new_store: Any) -> None:
    old, new = Registry(), Registry()

    @old.machine(name="Moving", allow={"dead_end"})
    class Before:
        @state(initial=True)
        class Idle: ...

        @state
        class Go:
            @state(initial=True)
            class X: ...

            @state
            class Y: ...

            @state(history="deep")
            class H: ...

        @transition(Idle, Go.H)
        async def start(self) -> None: ...

        @transition(Go, Idle)
        async def stop(self) -> None: ...

        @transition(Go.X, Go.Y)
        async def turn(self) -> None: ...

        @transition(Go.Y, Go.X, after=3600)
        async def tire(self) -> None: ...

    @new.machine(name="Moving", version=2, migrate={1: renamed}, allow={"dead_end"})
    class After:
        @state(initial=True)
        class Idle: ...

        @state
        class Run:
            @state(initial=True)
            class X: ...

            @state
            class Y: ...

            @state(history="deep")
            class H: ...

        @transition(Idle, Run.H)
        async def start(self) -> None: ...

        @transition(Run, Idle)
        async def stop(self) -> None: ...

        @transition(Run.X, Run.Y)
        async def turn(self) -> None: ...

        @transition(Run.Y, Run.X, after=3600)
        async def tire(self) -> None: ...

    async with Flowlet(new_store(), registry=old) as flow:
        before: Any = await flow.create(Before, id="m")
        for event in ("start", "turn", "stop", "start"):
            await fire(before, event)
        due = before._flowlet_turn.timers["tire@Go.Y"].at
    async with Flowlet(new_store(), registry=new) as flow:
        after: Any = await flow.load(After, "m")
        assert state_of(after) == "Run.Y"
        assert {key: d.at for key, d in after._flowlet_turn.timers.items()} == {"tire@Run.Y": due}
        await after.stop()
        assert after._flowlet_turn.timers == {}
        await after.start()
        assert state_of(after) == "Run.Y"


# Failures ---------------------------------------------------------------------------------------------------
@machine
class Sore:
    """What it does by itself fails for ever."""

    @state(initial=True)
    class A: ...

    @state
    class B: ...

    @state
    class C: ...

    @transition(A, B)
    async def go(self) -> None: ...

    @transition(B, C, eventless=True)
    async def slide(self) -> None:
        raise ValueError("stuck")

    @transition((B, C), A)
    async def back(self) -> None: ...


async def test_a_machine_that_cannot_go_on_by_itself_can_be_loaded_and_led_away(
    new_store: Any, events: list[Any]
) -> None:
    async with Flowlet(new_store(), registry=registry) as flow:
        sore = await flow.create(Sore, id="s")
        with pytest.raises(HookFailed, match="stuck"):
            await sore.go()
    async with Flowlet(new_store(), registry=registry) as flow:
        again = await flow.load(Sore, "s")
        assert state_of(again) == "B"
        await again.back()
        assert state_of(await flow.load(Sore, "s")) == "A"
    assert any("stuck" in str(e) for e in events if e["log_level"] == "error")


@machine(allow={"dead_end"})
class Leaky:
    text: str = ""
    n: int = 0

    @state(initial=True)
    class A: ...

    @state
    class B: ...

    @transition(A, B)
    async def go(self) -> None: ...

    @transition(B, None)
    async def swell(self) -> None:
        self.text = "x" * 9000

    @transition(B, None)
    async def later(self) -> None:
        self.n += 1

    async def on_enter_b(self) -> None:
        raise_event(self.later, after=3600)
        raise_event(self.swell)


async def test_a_raised_event_that_cannot_be_stored_does_not_take_a_delayed_one_with_it(new_store: Any) -> None:
    async with Flowlet(new_store(), registry=registry, max_payload=4096) as flow:
        leaky: Any = await flow.create(Leaky, id="l")
        with pytest.raises(HookFailed) as failed:
            await leaky.go()
        assert failed.value.committed
        assert (state_of(leaky), leaky.text) == ("B", "")
        assert list(leaky._flowlet_turn.timers) == ["later~1"]
    async with Flowlet(new_store(), registry=registry) as flow:
        again: Any = await flow.load(Leaky, "l")
        assert list(again._flowlet_turn.timers) == ["later~1"]


@machine
class Steps:
    n: int = 0

    @state(initial=True)
    class A: ...

    @state
    class B:
        @state(initial=True)
        class B1: ...

        @state(final=True)
        class B2: ...

    @state
    class C: ...

    @transition(A, B)
    async def go(self) -> None:
        raise_event(self.on)

    @transition(B.B1, B.B2)
    async def on(self) -> None:
        self.n += 1

    @transition(B, C, done=True)
    async def done(self) -> None:
        self.n += 10

    @transition(C, A)
    async def back(self) -> None: ...

    @transition((A, B, C), None)
    async def look(self) -> int:
        return self.n


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_a_store_that_goes_away_in_the_middle(new_store: Any, place: int) -> None:
    store = Counting(new_store())
    async with Flowlet(store, registry=registry) as flow:
        steps = await flow.create(Steps, id="s")
        await steps.look()
        store.fail = [1] * place + [0]
        with pytest.raises((StoreUnavailable, HookFailed)) as failed:
            await steps.go()
        assert isinstance(failed.value, HookFailed) == (place > 0)
        store.fail = []
        assert await steps.look() == (0 if place == 0 else 11)  # what was left is handled before
        assert state_of(steps) == ("A" if place == 0 else "C")
        events = [t.event async for t in flow.history("s")]
        assert events == (["look", "look"] if place == 0 else ["look", "go", "on", "done.state.B", "look"])


# Tools ------------------------------------------------------------------------------------------------------
def test_a_definition_is_exported_as_json() -> None:
    export = definition_of(Plant).export()
    assert json.loads(json.dumps(export)) == export
    states = {s["name"]: s for s in export["states"]}
    assert list(states)[:4] == ["Idle", "Run", "Run.Both", "Run.Both.A"]
    assert (states["Run.Both"]["type"], states["Run.Both"]["parent"]) == ("parallel", "Run")
    assert (states["Run.Past"]["type"], states["Run.Past"]["default"]) == ("deep", ["Run.Both"])
    assert states["Run.Both.A.A3"]["type"] == "final"
    assert states["Run.Both.A.A1"]["initial"]
    assert not states["Run.Both.A"]["initial"]
    done = next(t for t in export["transitions"] if t["method"] == "stop")
    assert (done["event"], done["source"], done["targets"]) == ("done.state.Run.Both", "Run.Both", ["End"])
    tap = next(t for t in export["transitions"] if t["method"] == "tap")
    assert (tap["source"], tap["targets"]) == ("*", [])
