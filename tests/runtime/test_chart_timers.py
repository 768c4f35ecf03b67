"""Delayed transitions and events of statecharts: in a process, over a store, late, once, and with others about."""

from __future__ import annotations

import copy
import enum
import gc
import pickle
import time
import weakref
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from flowlet import Flowlet, Registry, fire, guard, in_state, raise_event, state, transition
from flowlet.core.machine_records import read_record
from flowlet.errors import Conflict, DefinitionError, MachineError, TransitionNotAllowed
from flowlet.runtime.logs import Log
from flowlet.runtime.machine_questions import state_of
from flowlet.runtime.machines import Machines
from flowlet.store import Store
from flowlet.stores import open_store

pytestmark = pytest.mark.anyio

registry = Registry()
machine = registry.machine
Until = Callable[[Callable[[], Any]], Any]

said: list[str] = []
"""What callbacks have done, whatever became of their machine's data."""


@pytest.fixture(autouse=True)
def _silence() -> None:
    said.clear()


class Home:
    """Makes machines with or without a store."""

    def __init__(self, flow: Flowlet | None) -> None:
        self.flow = flow

    async def __call__(self, cls: Any, **data: Any) -> Any:
        made = cls()
        for name, value in data.items():
            setattr(made, name, value)
        return made if self.flow is None else await self.flow.create(made)

    def due(self, thing: Any) -> dict[str, float]:
        """Return when the timers of a machine ring."""
        timers = thing._flowlet_turn.timers if self.flow is not None else thing._flowlet_timers.running
        return {key: due.at for key, due in timers.items()}


@pytest.fixture(scope="module", params=["none", "memory", "sqlite"])
async def home(
    anyio_backend: Any, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Home]:
    if request.param == "none":
        yield Home(None)
        return
    path = (
        "memory://"
        if request.param == "memory"
        else f"sqlite:///{tmp_path_factory.mktemp('home')}/flow.db?durability=process"
    )
    async with Flowlet(path, registry=registry) as flow:
        yield Home(flow)


async def made_before(store: Store, seconds: float, cls: Any, *ids: str) -> None:
    """Create machines so long ago, by a process that has gone since."""
    machines = Machines(store, now=lambda: time.time() - seconds, worker="long gone", log=Log())
    for id in ids:
        await machines.create(cls, id=id)
    await machines.close()
    await store.close()


# The usual ------------------------------------------------------------------------------------------------
@machine(allow={"dead_end"})
class Lamp:
    """It dims and goes out by itself, and has a blinking region beside."""

    n: int = 0
    wanted: bool = True

    @state(initial=True)
    class Off: ...

    @state(parallel=True)
    class On:
        @state
        class Light:
            @state(initial=True)
            class Bright: ...

            @state
            class Dim: ...

        @state
        class Dot:
            @state(initial=True)
            class Dark: ...

            @state
            class Lit: ...

    @state
    class Kept: ...

    @guard
    def is_wanted(self) -> bool:
        said.append("wanted?")
        return self.wanted

    @transition(Off, On)
    async def press(self) -> None: ...

    @transition((On, Kept), Off)
    async def release(self) -> None: ...

    @transition(On.Light.Bright, On.Light.Dim, after=0.04)
    async def dim(self) -> None:
        said.append("dim")
        self.n += 1

    @transition(On, Off, after=timedelta(milliseconds=80), guard=is_wanted)
    async def expire(self) -> None:
        said.append("expire")
        self.n += 10

    @transition(On.Dot.Dark, On.Dot.Lit)
    @transition(On.Dot.Dark, On.Dot.Lit, after=0.06)
    async def blink(self) -> None:
        said.append("blink")
        self.n += 100

    @transition(On, None)
    async def touch(self) -> None: ...

    @transition("*", Kept)
    async def keep(self) -> None: ...


async def test_timers_ring_in_the_order_of_their_times(home: Home, until: Until) -> None:
    lamp = await home(Lamp)
    await lamp.press()
    assert sorted(home.due(lamp)) == ["blink@On.Dot.Dark", "dim@On.Light.Bright", "expire@On"]
    await until(lambda: in_state(lamp, Lamp.Off))
    assert said == ["dim", "blink", "wanted?", "expire"]
    assert lamp.n == 111
    assert home.due(lamp) == {}
    if home.flow is not None:
        assert [t.event async for t in home.flow.history(lamp._flowlet_turn.id)] == ["press", "dim", "blink", "expire"]


async def test_one_body_is_fired_by_its_event_and_by_its_timer(home: Home, until: Until) -> None:
    lamp = await home(Lamp)
    await lamp.press()
    await lamp.blink()
    assert "blink@On.Dot.Dark" not in home.due(lamp)
    await until(lambda: in_state(lamp, Lamp.Off))
    assert said.count("blink") == 1


async def test_a_refused_timer_is_gone(home: Home, until: Until) -> None:
    lamp = await home(Lamp, wanted=False)
    await lamp.press()
    await until(lambda: "wanted?" in said and home.due(lamp) == {})
    assert in_state(lamp, Lamp.On)
    lamp.wanted = True
    await lamp.touch()
    assert home.due(lamp) == {}  # what stays inside does not start it again
    assert said.count("wanted?") == 1


async def test_what_happens_by_itself_is_not_fired_by_callers(home: Home) -> None:
    lamp = await home(Lamp)
    await lamp.press()
    with pytest.raises(MachineError, match="dim happens by itself"):
        await lamp.dim()
    with pytest.raises(MachineError, match="has no event 'dim'"):
        await fire(lamp, "dim")
    await lamp.release()


@machine(allow={"dead_end"})
class Hour:
    """Timers that do not ring while a test runs."""

    @state(initial=True)
    class P:
        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @state
        class C: ...

    @state
    class Q: ...

    @transition(P, Q, after=3600)
    async def outer(self) -> None: ...

    @transition(P.A, P.B, after=1800)
    async def inner(self) -> None: ...

    @transition(P.A, P.B, internal=True)
    @transition(P.B, P.A, internal=True)
    async def flip(self) -> None: ...

    @transition(P, P.A, internal=True)
    async def to_a(self) -> None: ...

    @transition(P, P)
    async def anew(self) -> None: ...

    @transition(P.A, None)
    async def stay(self) -> None: ...

    @transition((P, Q), P.C)
    async def pass_by(self) -> None:
        raise_event(self.flit)

    @transition(P.C, Q)
    async def flit(self) -> None: ...

    @transition("*", None)
    async def later(self) -> None:
        raise_event(self.stay, after=7200)
        raise_event(self, "stay", after=timedelta(hours=1))


async def test_timers_are_cancelled_restarted_and_left_alone(home: Home) -> None:
    hour = await home(Hour)
    await hour.stay()
    first = home.due(hour)
    assert first.keys() == {"outer@P", "inner@P.A"}
    assert first["outer@P"] - first["inner@P.A"] == pytest.approx(1800)
    await hour.stay()
    assert home.due(hour) == first
    await hour.flip()
    assert home.due(hour) == {"outer@P": first["outer@P"]}
    await hour.flip()
    second = home.due(hour)
    assert second["outer@P"] == first["outer@P"]
    assert second["inner@P.A"] > first["inner@P.A"]
    await hour.to_a()
    assert home.due(hour)["outer@P"] == first["outer@P"]
    assert home.due(hour)["inner@P.A"] > second["inner@P.A"]
    await hour.anew()
    third = home.due(hour)
    assert third["outer@P"] > first["outer@P"]
    assert third["inner@P.A"] > second["inner@P.A"]
    await hour.pass_by()  # through P.C to Q in one macrostep
    assert in_state(hour, Hour.Q)
    assert home.due(hour) == {}


async def test_delayed_events_are_timers_of_their_own_and_outlive_the_state(home: Home) -> None:
    hour = await home(Hour)
    await hour.later()
    assert home.due(hour).keys() == {"outer@P", "inner@P.A", "stay~1", "stay~2"}
    assert home.due(hour)["stay~1"] - home.due(hour)["stay~2"] == pytest.approx(3600)
    await hour.pass_by()
    assert home.due(hour).keys() == {"stay~1", "stay~2"}


async def test_what_is_never_committed_starts_and_stops_no_timer(home: Home) -> None:
    @Registry().machine(allow={"dead_end"}, name=f"Wrong{id(home)}")
    class Wrong(Hour):
        @transition("P", "Q")
        async def fail(self) -> None:
            raise_event(self.stay, after=1)
            raise ValueError("no")

    wrong = await home(Wrong)
    await wrong.stay()
    before = home.due(wrong)
    with pytest.raises(ValueError, match="no"):
        await wrong.fail()
    assert home.due(wrong) == before
    await wrong.stay()
    assert home.due(wrong) == before


# Delayed events -------------------------------------------------------------------------------------------
@machine
class Post:
    @state(initial=True)
    class A: ...

    @state
    class B: ...

    @transition("*", None)
    async def write(self, to: str, delay: float, count: int = 1) -> None:
        for n in range(count):
            raise_event(self.send, to, n=n, after=delay)
        raise_event(self, "note", "now")
        said.append("written")

    @transition((A, B), None)
    async def send(self, to: str, *, n: int) -> None:
        said.append(f"sent {to} {n}")

    @transition("*", None)
    async def note(self, what: str) -> None:
        said.append(f"note {what}")

    @transition(A, B)
    @transition(B, A)
    async def flip(self) -> None: ...

    @transition(A, None)
    async def only_a(self) -> None:
        said.append("only_a")

    @transition("*", None)
    async def in_vain(self) -> None:
        raise_event(self.only_a, after=0.01)
        raise_event(self.note, "after it", after=0.02)


async def test_delayed_events_keep_their_arguments_and_their_order(home: Home, until: Until) -> None:
    post = await home(Post)
    await post.write("ann", 0, count=3)
    assert said[:2] == ["written", "note now"]  # even without a delay it comes behind this macrostep
    await post.write("bob", 0.03)
    await post.flip()
    await until(lambda: "sent bob 0" in said)
    assert [word for word in said if word.startswith("sent")] == [
        "sent ann 0",
        "sent ann 1",
        "sent ann 2",
        "sent bob 0",
    ]


async def test_a_delayed_event_that_finds_no_transition_is_discarded(home: Home, until: Until) -> None:
    post = await home(Post)
    await post.flip()
    await post.in_vain()
    await until(lambda: "note after it" in said)
    assert "only_a" not in said
    assert home.due(post) == {}


@pytest.mark.parametrize("delay", [-1, timedelta(seconds=-1), "soon", float("nan"), float("inf")])
async def test_a_delay_is_a_time(home: Home, delay: Any) -> None:
    post = await home(Post)
    with pytest.raises((MachineError, DefinitionError, TypeError, ValueError)):
        await post.write("ann", delay)
    assert said == []
    await post.note("fine")


# Failures and callers -------------------------------------------------------------------------------------
@machine
class Clumsy:
    n: int = 0

    @state(initial=True)
    class A: ...

    @state
    class B: ...

    @transition(A, B)
    async def go(self) -> None: ...

    @transition(B, A, after=0.01)
    async def fall(self) -> None:
        self.n += 1
        said.append("fall")
        raise ValueError("ouch")

    @transition(B, A)
    async def back(self) -> None: ...

    @transition(B, None, after=0.02)
    async def hold(self) -> None:
        said.append("hold")
        await release[0].wait()
        self.n += 10
        said.append("held")

    @transition("*", None)
    async def ask(self) -> int:
        said.append("ask")
        return self.n


release: list[anyio.Event] = []
"""Lets a callback go on."""


async def test_a_timer_that_fails_is_logged_and_does_not_keep_others_from_ringing(
    home: Home, until: Until, events: list[Any]
) -> None:
    release[:] = [anyio.Event()]
    clumsy = await home(Clumsy)
    await clumsy.go()
    await until(lambda: "hold" in said)
    answers: list[int] = []

    async def ask() -> None:
        answers.append(await clumsy.ask())

    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        assert answers == []
        release[0].set()
    assert answers == [10, 10]  # what the failed one assigned is gone
    assert said == ["fall", "hold", "held", "ask", "ask"]
    assert state_of(clumsy) == "B"
    errors = [e for e in events if e["event"] == "machine.timer_failed"]
    assert len(errors) == 1
    assert "ouch" in str(errors[0])
    await clumsy.back()
    assert in_state(clumsy, Clumsy.A)


# In records ----------------------------------------------------------------------------------------------
async def test_times_are_stored_as_such(new_store: Any) -> None:
    async with Flowlet(new_store(), registry=registry) as flow:
        hour: Any = await flow.create(Hour, id="h")
        await hour.stay()
        await hour.flip()
        await hour.later()
        stored = await flow.store.load("h")
        assert stored is not None
        records: list[Any] = [read_record(data, n, "h") for n, data in enumerate(stored.records, 1)]
        assert [[t.key for t in r.timers] if r.timers is not None else None for r in records] == [
            ["outer@P", "inner@P.A"],
            None,
            ["outer@P"],
            ["outer@P", "stay~1", "stay~2"],
        ]
        assert [t.due for t in records[0].timers] == [records[0].at + 3600, records[0].at + 1800]
        assert [t.due for t in records[3].timers] == [records[0].at + 3600, records[3].at + 7200, records[3].at + 3600]
        assert stored.head.wake is not None
        assert records[0].at + 3600 <= stored.head.wake <= records[0].at + 3605
        before = hour._flowlet_turn.timers
    async with Flowlet(new_store(), registry=registry) as flow:
        again: Any = await flow.load(Hour, "h")
        assert again is not hour
        assert {k: d.at for k, d in again._flowlet_turn.timers.items()} == {k: d.at for k, d in before.items()}
        await again.pass_by()
        assert again._flowlet_turn.timers.keys() == {"stay~1", "stay~2"}


@machine
class Egg:
    n: int = 0

    @state(initial=True)
    class Soft: ...

    @state
    class Hard:
        @state(initial=True)
        class Warm: ...

        @state(final=True)
        class Cold: ...

    @state(final=True)
    class Eaten: ...

    @transition(Soft, Hard, after=1800)
    async def boil(self) -> None:
        said.append("boil")
        self.n += 1
        raise_event(self.count, after=0)

    @transition(Hard.Warm, Hard.Cold, after=0.02)
    async def cool(self) -> None:
        self.n += 10

    @transition(Hard, Eaten, done=True)
    async def eat(self) -> None:
        said.append("eat")

    @transition("*", None)
    async def count(self) -> None:
        said.append("count")
        self.n += 100


IDS = ("e-1", "e-2", "e-3")
LIFE = ["boil", "count", "cool", "done.state.Hard"]


async def ended(flow: Flowlet, *ids: str) -> bool:
    return {id async for id in flow.machines(Egg, state=Egg.Eaten)} >= set(ids)


async def judge(flow: Flowlet, *ids: str) -> None:
    for id in ids:
        egg = await flow.load(Egg, id)
        assert (state_of(egg), egg.n) == ("Eaten", 111)
        assert [t.event async for t in flow.history(id)] == LIFE


async def test_what_is_overdue_of_machines_that_nobody_loads_happens_once_and_late(new_store: Any) -> None:
    await made_before(new_store(), 3600, Egg, *IDS)
    async with Flowlet(new_store(), registry=registry) as flow:
        with anyio.fail_after(8):
            while not await ended(flow, *IDS):
                await anyio.sleep(0.005)
        await judge(flow, *IDS)
        assert said.count("boil") == 3


async def test_a_flowlet_that_is_entered_again_goes_on_with_its_timers(new_store: Any) -> None:
    flow = Flowlet(new_store(), registry=registry)
    await made_before(new_store(), 1799.8, Egg, "e")  # due in a moment
    async with flow:
        egg = await flow.load(Egg, "e")
    async with flow:
        with anyio.fail_after(8):
            while not await ended(flow, "e"):
                await anyio.sleep(0.005)
        await judge(flow, "e")
        assert await flow.load(Egg, "e") is not egg


async def test_loading_an_overdue_machine_does_not_take_it_twice(new_store: Any) -> None:
    await made_before(new_store(), 3600, Egg, *IDS)
    async with Flowlet(new_store(), registry=registry) as flow:
        eggs = [await flow.load(Egg, id) for id in IDS]
        for egg in eggs:
            with pytest.raises((MachineError, TransitionNotAllowed)):
                await egg.boil()
        with anyio.fail_after(8):
            while not await ended(flow, *IDS):
                await anyio.sleep(0.005)
        await judge(flow, *IDS)


async def test_two_flowlets_with_the_same_machines_fire_each_timer_once(tmp_path: Path, events: list[Any]) -> None:
    def new_store() -> Store:
        return open_store(f"sqlite:///{tmp_path}/two.db?durability=process")

    ids = [f"e-{n}" for n in range(8)]
    await made_before(new_store(), 1799.9, Egg, *ids)
    async with Flowlet(new_store(), registry=registry) as one, Flowlet(new_store(), registry=registry) as two:
        kept = [await flow.load(Egg, id) for id in ids for flow in (one, two)]
        with anyio.fail_after(8):
            while not await ended(one, *ids):
                await anyio.sleep(0.005)
        await judge(two, *ids)
        await judge(one, *ids)
        assert len(kept) == 16
    assert [e for e in events if e["log_level"] == "error"] == []


@machine
class Alone:
    """Its delayed transition wants the machine for itself."""

    n: int = 0

    @state(initial=True)
    class A: ...

    @state
    class B: ...

    @transition(A, B, after=60, exclusive=True)
    async def move(self) -> None:
        said.append("move")
        await anyio.sleep(0.05)
        self.n += 1

    @transition(B, A)
    async def back(self) -> None: ...


async def test_an_exclusive_timer_runs_its_body_in_one_process_only(tmp_path: Path, until: Until) -> None:
    def new_store() -> Store:
        return open_store(f"sqlite:///{tmp_path}/two.db?durability=process")

    await made_before(new_store(), 59.9, Alone, "a")
    async with Flowlet(new_store(), registry=registry) as one, Flowlet(new_store(), registry=registry) as two:
        first, second = await one.load(Alone, "a"), await two.load(Alone, "a")
        await until(lambda: first.n + second.n)
        with anyio.fail_after(8):
            while (await one.load(Alone, "a")).n + (await two.load(Alone, "a")).n < 2:
                await anyio.sleep(0.005)
        assert (first.n, second.n, said) == (1, 1, ["move"])
        assert [t.event async for t in one.history("a")] == ["move"]


@machine(allow={"dead_end"})
class Crossed:
    """One region handles an event slowly while the timer of the other is due."""

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
    async def go(self) -> str:
        raise_event(self.next)
        return "gone"

    @transition(P.A.A2, P.A.A3)
    async def next(self) -> None:
        said.append("next")

    @transition(P.B.B1, P.B.B2, after=60)
    async def ring(self) -> None:
        said.append("ring")

    async def on_enter_a2(self) -> None:
        said.append("entered")
        await release[0].wait()


async def test_a_timer_does_not_come_between_another_process_and_what_it_has_raised(
    tmp_path: Path, until: Until
) -> None:
    release[:] = [anyio.Event()]

    def new_store() -> Store:
        return open_store(f"sqlite:///{tmp_path}/two.db?durability=process")

    await made_before(new_store(), 58.5, Crossed, "c")
    two = Flowlet(new_store(), registry=registry)
    store = new_store()
    # The process that is at it has a clock that is late, so that the timer rings in the other one only.
    await store.heartbeat("slow", 60.0)
    one = Machines(store, now=lambda: time.time() - 30, worker="slow", log=Log())
    async with two:
        second: Any = await two.load(Crossed, "c")
        first = await one.load(Crossed, "c")
        due = second._flowlet_turn.timers["ring@P.B.B1"].at
        async with anyio.create_task_group() as group:
            answers: list[str] = []

            async def go() -> None:
                answers.append(await first.go())

            group.start_soon(go)
            await until(lambda: "entered" in said)
            await until(lambda: time.time() > due + 0.1)  # it is due, and the first is not through
            release[0].set()
        assert answers == ["gone"]
        with anyio.fail_after(8):
            while state_of(await two.load(Crossed, "c")) != "P.A.A3 + P.B.B2":
                await anyio.sleep(0.005)
        events = [t.event async for t in two.history("c")]
        assert sorted(events) == ["go", "next", "ring"]
        assert events.index("next") == events.index("go") + 1
    await one.close()
    await store.close()


# Without a store ------------------------------------------------------------------------------------------
async def test_nothing_rings_after_its_flowlet_was_left(until: Until) -> None:
    flow = Flowlet(registry=registry)
    async with flow:
        lamp = await flow.create(Lamp)
        await lamp.press()
    other = Lamp()
    await other.press()
    await until(lambda: in_state(other, Lamp.Off))
    assert in_state(lamp, Lamp.On)
    assert said.count("dim") == 1


async def test_timers_of_a_machine_that_is_used_in_one_loop_after_the_other(anyio_backend_name: str) -> None:
    lamp = Lamp()

    async def press() -> None:
        await lamp.press()

    async def look() -> None:
        await lamp.touch()
        with anyio.fail_after(5):
            while not in_state(lamp, Lamp.Off):
                await anyio.sleep(0.002)

    for each in (press, look):  # each in a loop of its own, in another thread
        await anyio.to_thread.run_sync(partial(anyio.run, each, backend=anyio_backend_name))
    assert said[-1] == "expire"


class Copied:
    """Its copies share all that the object has."""

    n: int = 0

    @state(initial=True)
    class A: ...

    @state
    class B: ...

    @transition(A, B)
    async def go(self) -> None: ...

    @transition(B, A, after=0.03)
    async def back(self) -> None:
        self.n += 1

    @transition(B, A)
    async def now(self) -> None: ...

    def __copy__(self) -> Any:
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin


machine(Copied)


async def test_a_copy_has_no_timers_of_the_original(until: Until) -> None:
    one = Copied()
    await one.go()
    twins = [copy.copy(one), copy.deepcopy(one)]
    for twin in twins:
        await twin.now()  # which would stop the timer of the original
    await until(lambda: one.n == 1)
    assert [twin.n for twin in twins] == [0, 0]
    assert state_of(one) == "A"


@machine
class Slotted:
    __slots__ = ("n",)

    @state(initial=True)
    class A: ...

    @state
    class B: ...

    @transition(A, B)
    async def go(self) -> None: ...

    @transition(B, A, after=0.01)
    async def back(self) -> None: ...


@machine
class Tight:
    __slots__ = ("n",)

    @state(initial=True)
    class A: ...

    @state
    class B: ...

    @transition(A, B)
    @transition(B, A)
    async def go(self) -> None: ...

    @transition(A, None)
    async def later(self) -> None:
        raise_event(self.go, after=0.01)


async def test_slots_have_room_for_timers_where_the_definition_has_some(until: Until) -> None:
    slotted = Slotted()
    await slotted.go()
    await until(lambda: in_state(slotted, Slotted.A))
    tight = Tight()
    with pytest.raises(MachineError, match="no room for timers"):
        await tight.later()
    await tight.go()
    assert state_of(tight) == "B"


async def test_a_machine_whose_timers_have_rung_can_be_forgotten(until: Until) -> None:
    async def use() -> weakref.ref[Any]:
        lamp = Lamp()
        await lamp.press()
        await until(lambda: in_state(lamp, Lamp.Off))
        return weakref.ref(lamp)

    gone = await use()
    with anyio.fail_after(5):
        while gone() is not None:
            gc.collect()
            await anyio.sleep(0.001)


async def test_a_machine_gets_its_store_while_an_event_is_delayed(until: Until, events: list[Any]) -> None:
    post = Post()
    await post.write("ann", 0.03)
    async with Flowlet(registry=registry) as flow:
        stored = await flow.create(post, id="p")
        await stored.write("bob", 0.06)
        await until(lambda: "sent bob 0" in said)
    assert [e for e in events if e["log_level"] == "error"] == []


# Together -------------------------------------------------------------------------------------------------
@machine
class Ticking:
    n: int = 0

    @state(initial=True)
    class P:
        @state(initial=True)
        class A: ...

        @state
        class B: ...

    @transition(P, P, after=0.01)
    async def tick(self) -> None:
        self.n += 1

    @transition(P.A, P.B, internal=True)
    @transition(P.B, P.A, internal=True)
    async def flip(self) -> None:
        self.n += 1000


async def test_callers_and_timers_of_two_processes_lose_and_double_nothing(tmp_path: Path) -> None:
    def new_store() -> Store:
        return open_store(f"sqlite:///{tmp_path}/two.db?durability=process")

    async with Flowlet(new_store(), registry=registry) as one, Flowlet(new_store(), registry=registry) as two:
        both = [await one.create(Ticking, id="t"), await two.load(Ticking, "t")]
        flips = conflicts = 0
        with anyio.fail_after(20):
            while flips < 20 or both[0].n % 1000 < 8:
                for each in both:
                    try:
                        await each.flip()
                        flips += 1
                    except Conflict:
                        conflicts += 1
                    await anyio.sleep(0.003)
        events = [t.event async for t in one.history("t")]
        ticking = await one.load(Ticking, "t")
        done = [t.event async for t in one.history("t")]
        assert events.count("flip") == flips
        assert done[: len(events)] == events
        assert ticking.n // 1000 == flips
        assert events.count("tick") <= ticking.n % 1000 <= done.count("tick")


class Timed(enum.Enum):
    OFF = state(initial=True)
    ON = state()


@machine
class Pickled:
    n: int = 0
    States = Timed

    @transition(Timed.OFF, Timed.ON)
    async def press(self) -> None: ...

    @transition(Timed.ON, Timed.OFF, after=0.01)
    async def expire(self) -> None:
        self.n += 1

    @transition(Timed.ON, Timed.OFF)
    async def release(self) -> None: ...


async def test_members_of_an_enum_have_timers_and_pickles_have_none(until: Until) -> None:
    one = Pickled()
    await one.press()
    other = pickle.loads(pickle.dumps(one))  # noqa: S301 - its own
    await until(lambda: in_state(one, Timed.OFF))
    assert (state_of(other), one.n, other.n) == ("ON", 1, 0)
    await other.release()
    await other.press()
    await until(lambda: in_state(other, Timed.OFF))
    assert other.n == 1
