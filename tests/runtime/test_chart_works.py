"""Work inside a state: functions, steps and sagas that a state invokes, without a store, in memory and on SQLite."""

from __future__ import annotations

import copy
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from flowlet import (
    Flowlet,
    Registry,
    Retry,
    Transition,
    compensate,
    current_run,
    fire,
    raise_event,
    state,
    states_of,
    step,
    transition,
)
from flowlet.errors import DefinitionError, StoreUnavailable, TransitionNotAllowed
from flowlet.runtime.machine_questions import state_of
from flowlet.store import Store, Work, Write
from flowlet.stores import open_store

pytestmark = pytest.mark.anyio

registry = Registry()
machine: Any = registry.machine(allow={"dead_end"})

said: list[str] = []
"""What callbacks and works have done, in order."""

gates: dict[str, anyio.Event] = {}
"""What works wait for, until a test lets them go on."""

stores: list[Store] = []
"""The store of the running test, for hooks that look into it."""


@pytest.fixture(autouse=True)
def _silence() -> None:
    said.clear()
    gates.clear()
    stores.clear()


@pytest.fixture(autouse=True)
def _no_test_hangs() -> Iterator[None]:
    """End a test that works for ever, also one that gives no other task a turn."""

    def stop(*_: object) -> None:
        raise TimeoutError("the test hangs")

    former = signal.signal(signal.SIGALRM, stop)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)


def gate(name: str) -> anyio.Event:
    return gates.setdefault(name, anyio.Event())


def say(what: str) -> None:
    said.append(what)


async def until(condition: Callable[[], Any]) -> None:
    """Wait for what has no event of its own; never a way to see that something does not happen."""
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.001)


async def work_at(name: str) -> None:
    """Work until the gate opens; say how it begins and ends."""
    say(f"{name} begins")
    try:
        await gate(name).wait()
    except BaseException:
        say(f"{name} is cancelled")
        raise
    say(f"{name} ends")


class Home:
    """Makes machines in one of the ways there are."""

    def __init__(self, new_store: Callable[[], Store] | None) -> None:
        self.new_store = new_store
        self.flow = None if new_store is None else Flowlet(new_store(), registry=registry, grace=0.01)

    async def __call__(self, cls: Any, **data: Any) -> Any:
        if self.flow is not None:
            return await self.flow.create(cls, **data)
        made = make(cls, data)
        if made._flowlet_state.fresh:
            await fire(made)
        return made

    async def events(self, thing: Any) -> list[str]:
        """Return the events that a machine's history has; none without a store."""
        if self.flow is None:
            return []
        return [t.event async for t in self.flow.history(thing._flowlet_turn.id)]

    async def runs(self, status: str | None = None) -> list[str]:
        """Return the ids of runs, by default those that are not closed."""
        if self.flow is None:
            return []
        heads = await self.flow.store.scan(kind="run")
        return [h.id for h in heads if (h.closed is None if status is None else h.status == status)]

    async def settled(self) -> None:
        """Wait until no run is at work."""
        with anyio.fail_after(10):
            while await self.runs():
                await anyio.sleep(0.001)


def make(cls: Any, data: dict[str, Any]) -> Any:
    """Make an object of a class whose ``__init__`` may take none of its data."""
    if "__init__" in vars(cls):
        return cls(**data)
    made = cls()
    for name, value in data.items():
        setattr(made, name, value)
    return made


async def entered(home: Home) -> AsyncIterator[Home]:
    if home.flow is None:
        yield home
        return
    async with home.flow:
        stores.append(home.flow.store)
        yield home
        for opened in gates.values():
            opened.set()  # leaving waits for steps that are at work


def maker(kind: str, tmp_path: Path) -> Callable[[], Store] | None:
    if kind == "none":
        return None
    memory = open_store("memory://")
    path = f"sqlite:///{tmp_path}/flow.db?durability=process"
    return (lambda: memory) if kind == "memory" else (lambda: open_store(path))


@pytest.fixture(params=["none", "memory", "sqlite"])
async def home(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Home]:
    async for made in entered(Home(maker(request.param, tmp_path))):
        yield made


@pytest.fixture(params=["memory", "sqlite"])
async def durable(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Home]:
    async for made in entered(Home(maker(request.param, tmp_path))):
        yield made


@pytest.fixture
async def loose() -> Home:
    return Home(None)


class Declined(Exception):
    """What failing work raises."""


# Result and error ---------------------------------------------------------------------------------------
@machine
class Payment:
    total: int = 0
    paid: int = 0
    why: str = ""

    @state(initial=True)
    class Idle: ...

    @state(invoke="charge")
    class Paying: ...

    @state
    class Paid: ...

    @state
    class Refused: ...

    @transition((Idle, Paid, Refused), Paying)
    async def pay(self, total: int) -> None:
        self.total = total

    @transition(Paying, Idle)
    async def stop(self) -> None: ...

    async def charge(self, total: int) -> int:
        await work_at(f"charge {total}")
        if total > 100:
            raise Declined(f"{total} is too much", total)
        return total * 2

    @transition(Paying, Paid, done=True)
    async def charged(self, result: int) -> None:
        say(f"charged {result!r}")
        self.paid += result

    @transition(Paying, Refused, failed=True)
    async def declined(self, error: Exception) -> None:
        say(f"declined {error!r}")
        self.why = str(error.args[0])

    async def on_enter_paying(self) -> None:
        say("enter paying")

    async def on_exit_paying(self) -> None:
        say("exit paying")

    async def on_enter_paid(self) -> None:
        say("enter paid")

    async def on_transition(self, t: Transition) -> None:
        say(f"{t.event}: {t.source} -> {t.target}")


async def test_a_result_is_an_event_once(home: Home) -> None:
    payment = await home(Payment)
    await payment.pay(21)
    await until(lambda: "charge 21 begins" in said)
    assert states_of(payment) == ("Paying",)
    gate("charge 21").set()
    await until(lambda: state_of(payment) == "Paid")
    await home.settled()
    assert payment.paid == 42
    assert said.index("enter paying") < said.index("charge 21 begins")
    assert said[said.index("charge 21 ends") :] == [
        "charge 21 ends",
        "exit paying",
        "charged 42",
        "enter paid",
        "done.invoke.Paying: Paying -> Paid",
    ]
    if home.flow is not None:
        assert await home.events(payment) == ["pay", "done.invoke.Paying"]
    await payment.pay(1)
    await until(lambda: "charge 1 begins" in said)
    gate("charge 1").set()
    await until(lambda: state_of(payment) == "Paid")
    assert payment.paid == 44


async def test_an_error_is_an_event_once(home: Home) -> None:
    payment = await home(Payment)
    gate("charge 101").set()
    await payment.pay(101)
    await until(lambda: state_of(payment) == "Refused")
    await home.settled()
    assert payment.why == "101 is too much"
    assert [line for line in said if line.startswith("declined")] == ["declined Declined('101 is too much', 101)"]
    if home.flow is not None:
        assert await home.events(payment) == ["pay", "error.invoke.Paying"]


@machine
class Silent:
    """Work for whose result and error there is no transition."""

    fails: bool = False

    @state(initial=True)
    class Idle: ...

    @state(invoke="labour")
    class Busy: ...

    @transition(Idle, Busy)
    async def go(self) -> None: ...

    @transition(Busy, Idle)
    async def rest(self) -> None: ...

    async def labour(self, fails: bool) -> None:
        say("labour")
        if fails:
            raise Declined("no strength left")


async def test_an_error_that_nothing_waits_for_is_logged_and_the_machine_stays(events: list[Any], home: Home) -> None:
    silent = await home(Silent, fails=True)
    await silent.go()
    await until(lambda: any(e["log_level"] == "error" for e in events))
    await home.settled()
    errors = [e for e in events if e["log_level"] == "error"]
    assert len(errors) == 1
    assert "no strength left" in str(errors[0])
    assert state_of(silent) == "Busy"
    await silent.rest()
    assert state_of(silent) == "Idle"
    assert said == ["labour"]


async def test_a_result_that_nothing_waits_for_is_nothing(events: list[Any], home: Home) -> None:
    silent = await home(Silent)
    await silent.go()
    await until(lambda: said)
    await home.settled()
    await silent.rest()
    await silent.go()
    await until(lambda: len(said) == 2)
    assert state_of(silent) == "Busy"
    assert not [e for e in events if e["log_level"] in ("error", "warning")]


@machine
class Nothing:
    got: str = ""

    @state(initial=True, invoke="nothing")
    class Waiting: ...

    @state
    class Over: ...

    async def nothing(self) -> None: ...

    @transition(Waiting, Over, done=True)
    async def over(self, result: None) -> None:
        self.got = repr(result)


async def test_work_of_the_initial_state_begins_with_the_machine_and_its_result_may_be_none(home: Home) -> None:
    nothing = await home(Nothing)
    await until(lambda: state_of(nothing) == "Over")
    assert nothing.got == "None"


# Leaving ------------------------------------------------------------------------------------------------
@machine
class Careful:
    """Work that takes time to end, and a hook that looks whether it has."""

    @state(initial=True)
    class Idle: ...

    @state(invoke="labour")
    class Busy: ...

    @transition(Idle, Busy)
    async def go(self) -> None: ...

    @transition(Busy, Idle)
    async def stop(self) -> None:
        say("stop")

    @transition(Busy, Idle, done=True)
    async def ready(self) -> None:
        say("ready")

    async def labour(self) -> None:
        say("labour begins")
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
                say("labour is tidied up")

    async def on_enter_idle(self) -> None:
        say("enter idle")
        for store in stores:
            for head in await store.scan(kind="run"):
                orders = (await store.load(head.id, limit=0)).signals  # type: ignore[union-attr]
                say("ordered" if orders or head.closed is not None else "not ordered")


async def test_leaving_cancels_before_the_enter_hooks(home: Home) -> None:
    careful = await home(Careful)
    said.clear()
    await careful.go()
    await until(lambda: "labour begins" in said)
    await careful.stop()
    await home.settled()
    await until(lambda: "labour is tidied up" in said)
    if home.flow is None:
        assert said == ["labour begins", "stop", "labour is tidied up", "enter idle"]
    else:
        assert [line for line in said if line != "labour is tidied up"] == [
            "labour begins", "stop", "enter idle", "ordered",
        ]  # fmt: skip
        assert len(await home.runs("cancelled")) == 1
    assert state_of(careful) == "Idle"


async def test_leaving_again_and_again_leaves_nothing_behind(home: Home) -> None:
    careful = await home(Careful)
    for n in range(1, 6):
        await careful.go()
        await until(lambda n=n: said.count("labour begins") == n)  # type: ignore[misc]
        await careful.stop()
    await home.settled()
    await until(lambda: said.count("labour is tidied up") == 5)
    assert "ready" not in said


@machine
class Clumsy:
    """Work whose tidying up fails."""

    @state(initial=True)
    class Idle: ...

    @state(invoke="labour")
    class Busy: ...

    @transition(Idle, Busy)
    async def go(self) -> None: ...

    @transition(Busy, Idle)
    async def stop(self) -> None: ...

    @transition(Busy, Idle, failed=True)
    async def broken(self, error: Exception) -> None:
        say("broken")

    async def labour(self) -> None:
        say("labour begins")
        try:
            await anyio.sleep_forever()
        finally:
            raise Declined("cannot tidy up")


async def test_work_that_fails_when_it_is_cancelled_keeps_nobody_waiting(home: Home) -> None:
    clumsy = await home(Clumsy)
    await clumsy.go()
    await until(lambda: said)
    with anyio.fail_after(5):
        await clumsy.stop()
        await home.settled()
    assert state_of(clumsy) == "Idle"
    await clumsy.go()
    await until(lambda: len(said) == 2)
    assert said == ["labour begins", "labour begins"]


@machine
class Slow:
    """Work that a cancelled caller has to wait for."""

    moves: int = 0
    entered: int = 0

    @state(initial=True)
    class Idle: ...

    @state(invoke="labour")
    class Busy: ...

    @transition(Idle, Busy)
    async def go(self) -> None: ...

    @transition(Busy, Idle)
    async def stop(self) -> None:
        self.moves += 1

    async def on_exit_busy(self) -> None:
        say("exit busy")

    async def on_enter_idle(self) -> None:
        self.entered += 1

    async def labour(self) -> None:
        say("labour begins")
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                say("labour tidies up")
                await gate("tidy").wait()


async def test_a_caller_cancelled_while_work_ends_leaves_a_state_and_its_data(loose: Home) -> None:
    slow = await loose(Slow)
    await slow.go()
    await until(lambda: said)
    async with anyio.create_task_group() as group:
        group.start_soon(slow.stop)
        await until(lambda: "labour tidies up" in said)
        group.cancel_scope.cancel()
        gate("tidy").set()
    assert (state_of(slow), slow.moves) in (("Idle", 1), ("Busy", 0))
    if state_of(slow) == "Busy":
        await slow.stop()
    await slow.go()
    assert state_of(slow) == "Busy"


@machine
class Cat:
    """Work that fires events of its own machine, which end it."""

    hooked: int = 0

    @state(initial=True)
    class Asleep: ...

    @state(invoke="hunt")
    class Hunting: ...

    @state
    class Eating: ...

    @transition(Asleep, Hunting)
    async def wake(self) -> None: ...

    @transition(Hunting, Eating)
    async def catch(self) -> str:
        await anyio.lowlevel.checkpoint()
        say("catch")
        return "mouse"

    @transition(Eating, Asleep)
    async def sleep(self) -> None: ...

    async def on_enter_eating(self) -> None:
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        self.hooked += 1
        say("eating")

    async def hunt(self) -> None:
        say("hunt")
        try:
            await self.catch()
        except TransitionNotAllowed:
            say("refused")


async def test_work_that_leaves_its_own_state_neither_waits_for_itself_nor_hurts_the_hooks(home: Home) -> None:
    cat = await home(Cat)
    with anyio.fail_after(10):
        for n in (1, 2):
            await cat.wake()
            await until(lambda n=n: cat.hooked == n)  # type: ignore[misc]
            await home.settled()
            assert state_of(cat) == "Eating"
            await cat.sleep()
    assert said == ["hunt", "catch", "eating"] * 2
    if home.flow is not None:
        assert await home.events(cat) == ["wake", "catch", "sleep"] * 2


@machine
class Again:
    count: int = 0
    results: int = 0

    @state(initial=True)
    class Idle: ...

    @state(invoke="labour")
    class Busy: ...

    @transition(Idle, Busy)
    async def go(self) -> None: ...

    @transition(Busy, Busy)
    async def restart(self) -> None:
        self.count += 1

    @transition(Busy, None)
    async def tick(self) -> None:
        self.count += 100

    async def labour(self, count: int) -> int:
        await work_at(f"labour {count}")
        return count

    @transition(Busy, Idle, done=True)
    async def ready(self, result: int) -> None:
        say(f"ready {result}")
        self.results += 1


async def test_a_self_transition_restarts_and_one_without_a_target_does_not(home: Home) -> None:
    again = await home(Again)
    await again.go()
    await until(lambda: "labour 0 begins" in said)
    await again.tick()
    await again.restart()
    await until(lambda: "labour 101 begins" in said)
    await until(lambda: "labour 0 is cancelled" in said)
    gate("labour 0").set()
    gate("labour 101").set()
    await until(lambda: state_of(again) == "Idle")
    await home.settled()
    assert [line for line in said if line.startswith("ready")] == ["ready 101"]
    assert again.results == 1


@machine
class Passing:
    """States that are left in the macrostep that enters them."""

    @state(initial=True)
    class Idle: ...

    @state(invoke="labour")
    class Eager: ...

    @state(invoke="labour")
    class Hooked: ...

    @state
    class Over: ...

    @transition(Idle, Eager)
    async def go(self) -> None: ...

    @transition(Eager, Over, eventless=True)
    async def on(self) -> None: ...

    @transition(Idle, Hooked)
    async def hook(self) -> None: ...

    async def on_enter_hooked(self) -> None:
        await anyio.lowlevel.checkpoint()
        raise_event(self.off)

    @transition(Hooked, Over)
    async def off(self) -> None: ...

    @transition(Over, Idle)
    async def back(self) -> None: ...

    async def labour(self) -> None:
        say("labour")


async def test_entering_and_leaving_in_one_macrostep_starts_nothing(home: Home) -> None:
    passing = await home(Passing)
    for _ in range(3):
        await passing.go()
        assert state_of(passing) == "Over"
        await passing.back()
        await passing.hook()
        assert state_of(passing) == "Over"
        await passing.back()
    await anyio.wait_all_tasks_blocked()
    assert said == []
    assert await home.runs() == []
    if home.flow is not None:
        assert await home.flow.store.scan(kind="run") == []


# In charts ----------------------------------------------------------------------------------------------
@machine
class Kitchen:
    """Two regions with a work each, around one that has its own, and children that move."""

    water: int = 3
    done: int = 0

    @state(initial=True)
    class Closed: ...

    @state(parallel=True, invoke="listen")
    class Open:
        @state
        class Soup:
            @state(initial=True, invoke="boil")
            class Boiling: ...

            @state(final=True)
            class Ready: ...

        @state(invoke="heat")
        class Oven:
            @state(initial=True)
            class Low: ...

            @state
            class High: ...

            @state(final=True)
            class Off: ...

    @state(final=True)
    class Served: ...

    @transition(Closed, Open)
    async def open(self) -> None: ...

    @transition(Open, Closed)
    async def close(self) -> None: ...

    @transition(Open.Oven.Low, Open.Oven.High)
    async def hotter(self) -> None: ...

    @transition(Open.Oven.High, Open.Oven.Low)
    async def colder(self) -> None: ...

    @transition(Open.Soup.Boiling, Open.Soup.Ready, done=True)
    async def boiled(self, result: int) -> None:
        self.done += result

    @transition(Open.Oven, Open.Oven.Off, done=True, internal=True)
    async def heated(self, result: int) -> None:
        self.done += result

    @transition(Open, Served, done=True)
    async def heard(self, result: str) -> None:
        say(f"heard {result}")

    async def listen(self) -> str:
        await work_at("listen")
        return "guests"

    async def boil(self, water: int) -> int:
        await work_at("boil")
        return water

    async def heat(self) -> int:
        await work_at("heat")
        return 10


async def test_regions_work_side_by_side_while_children_move(home: Home) -> None:
    kitchen = await home(Kitchen)
    await kitchen.open()
    await until(lambda: {"listen begins", "boil begins", "heat begins"} <= set(said))
    await kitchen.hotter()
    await kitchen.colder()
    await kitchen.hotter()
    assert len(said) == 3
    gate("heat").set()
    await until(lambda: "Open.Oven.Off" in states_of(kitchen))
    assert states_of(kitchen) == ("Open", "Open.Soup", "Open.Soup.Boiling", "Open.Oven", "Open.Oven.Off")
    gate("boil").set()
    await until(lambda: "Open.Soup.Ready" in states_of(kitchen))
    assert kitchen.done == 13
    gate("listen").set()
    await until(lambda: state_of(kitchen) == "Served")
    await home.settled()
    assert not any("cancelled" in line for line in said)


async def test_leaving_what_is_around_ends_all_work_inside(home: Home) -> None:
    kitchen = await home(Kitchen)
    await kitchen.open()
    await until(lambda: len(said) == 3)
    await kitchen.close()
    await home.settled()
    await until(lambda: len(said) == 6)
    assert set(said[3:]) == {"listen is cancelled", "boil is cancelled", "heat is cancelled"}
    await kitchen.open()
    await until(lambda: len(said) == 9)


async def test_a_machine_that_has_ended_has_no_work_left(home: Home) -> None:
    kitchen = await home(Kitchen)
    await kitchen.open()
    await until(lambda: len(said) == 3)
    gate("listen").set()
    await until(lambda: state_of(kitchen) == "Served")
    await home.settled()
    await until(lambda: "boil is cancelled" in said and "heat is cancelled" in said)


@machine
class Rescued:
    """Where a failing action leads, something is invoked; and it fails again in leaving that."""

    @state(initial=True)
    class Idle: ...

    @state(invoke="repair")
    class Broken: ...

    @state
    class Scrap: ...

    @transition(Idle, Idle, on_error=Broken)
    async def use(self) -> None:
        raise Declined("worn out")

    @transition(Broken, Idle, on_error=Scrap)
    async def force(self) -> None:
        raise Declined("stuck")

    async def repair(self) -> None:
        await work_at("repair")


async def test_work_begins_and_ends_with_rescues(home: Home) -> None:
    rescued = await home(Rescued)
    await rescued.use()
    await until(lambda: said == ["repair begins"])
    await rescued.force()
    assert state_of(rescued) == "Scrap"
    await home.settled()
    await until(lambda: said == ["repair begins", "repair is cancelled"])


@machine
class Stuck:
    """An action that fails when it is told the result; its data can change in place."""

    notes: list[str]

    def __init__(self, notes: list[str] | None = None) -> None:
        self.notes = notes or []

    @state(initial=True)
    class Idle: ...

    @state(invoke="labour")
    class Busy: ...

    @transition(Idle, Busy)
    async def go(self) -> None: ...

    @transition(Busy, Idle)
    async def rest(self) -> None: ...

    @transition(Busy, Idle, done=True)
    async def ready(self) -> None:
        self.notes = [*self.notes, "ready"]
        say("ready")
        await anyio.lowlevel.checkpoint()
        raise Declined("cannot be")

    async def labour(self) -> None: ...


async def test_an_action_that_fails_on_a_result_is_logged_and_not_tried_again(events: list[Any], home: Home) -> None:
    stuck = await home(Stuck)
    await stuck.go()
    await until(lambda: any("cannot be" in str(e) for e in events))
    await home.settled()
    assert said == ["ready"]
    await stuck.rest()
    assert (state_of(stuck), stuck.notes) == ("Idle", [])
    assert [e["log_level"] for e in events if "cannot be" in str(e)] == ["error"]


# What is given, and what is returned --------------------------------------------------------------------
@dataclass
class Parcel:
    """Data of a kind of its own."""

    weight: int
    sent: datetime


calls: list[int] = []


@step(retry=Retry(attempts=3, wait=0))
async def weigh(parcel: Parcel, tags: set[str]) -> Parcel:
    calls.append(parcel.weight)
    if len(calls) < 3:
        raise Declined("not yet")
    say(f"{sorted(tags)} {parcel.sent.tzinfo}")
    return Parcel(parcel.weight + 1, parcel.sent)


async def scale(parcel: Parcel, spare: int = 7) -> Parcel:
    await gate("scale").wait()
    return Parcel(parcel.weight * 10 + spare, parcel.sent)


@machine
class Post:
    tags: set[str]
    parcel: Parcel
    got: Parcel | None = None

    def __init__(self, parcel: Parcel, tags: set[str], got: Parcel | None = None) -> None:
        self.parcel, self.tags, self.got = parcel, tags, got

    @state(initial=True)
    class Here: ...

    @state(invoke=scale)
    class Scaling: ...

    @state(invoke=weigh)
    class Weighing: ...

    @state
    class Weighed: ...

    @transition(Here, Scaling)
    async def send(self) -> None:
        self.parcel = Parcel(self.parcel.weight + 1, self.parcel.sent)

    async def on_enter_scaling(self) -> None:
        self.parcel = Parcel(1000, self.parcel.sent)  # behind the entry: not what is weighed

    @transition(Scaling, None)
    async def swap(self) -> None:
        self.parcel = Parcel(2000, self.parcel.sent)

    @transition(Scaling, Weighing, done=True)
    async def scaled(self, result: Parcel) -> None:
        self.parcel = result

    @transition(Weighing, Weighed, done=True)
    async def weighed(self, result: Parcel) -> None:
        self.got = result


async def test_what_is_given_is_the_data_as_it_was_on_entry_and_typed(home: Home) -> None:
    calls.clear()
    sent = datetime(2024, 5, 6, tzinfo=UTC)
    post = await home(Post, parcel=Parcel(4, sent), tags={"b", "a"})
    await post.send()
    await post.swap()
    gate("scale").set()
    await until(lambda: state_of(post) not in ("Scaling", "Here"))
    if home.flow is None:  # a retry is the business of runs
        await until(lambda: len(calls) == 1)
        return
    await until(lambda: state_of(post) == "Weighed")
    await home.settled()
    assert post.got == Parcel(58, sent)
    assert calls == [57, 57, 57]
    assert said == ["['a', 'b'] UTC"]


class Opaque:
    """A thing that nothing can be made of but itself."""


async def test_what_a_machine_without_a_store_is_given_stays_in_memory(loose: Home) -> None:
    @Registry().machine(allow={"dead_end"})
    class Holder:
        things: list[str]

        def __init__(self) -> None:
            self.things = []

        @state(initial=True)
        class Idle: ...

        @state(invoke="hold")
        class Holding: ...

        @transition(Idle, Holding)
        async def go(self) -> None:
            self.things = [Opaque()]  # type: ignore[list-item]

        async def hold(self, things: list[str]) -> None:
            say("hold")

    holder: Any = Holder()
    try:
        await holder.go()
    except Exception:
        # If it has to be refused, then before the transition is made.
        assert (state_of(holder), holder.things) == ("Idle", [])
    else:
        await until(lambda: said == ["hold"])


class Stage(Enum):
    idle = state(initial=True)
    send = state(invoke="post")
    sent = state()


@machine
class Letter:
    """A state that has work and is named like a trigger, which is raised with an argument and a delay."""

    to: str = ""
    States = Stage

    @transition(Stage.idle, Stage.send)
    async def go(self) -> None:
        raise_event(self.send, "ann", after=0)

    @transition(Stage.send, Stage.sent)
    async def send(self, to: str) -> None:
        self.to = to

    async def post(self) -> None:
        await work_at("post")


async def test_a_state_may_be_named_like_a_method(home: Home) -> None:
    letter = await home(Letter)
    await letter.go()
    await until(lambda: state_of(letter) == "sent")
    assert letter.to == "ann"
    await home.settled()
    assert "post ends" not in said


# Sagas --------------------------------------------------------------------------------------------------
@step
async def reserve(order: int) -> int:
    say(f"reserve {order}")
    return order


@compensate(reserve)
async def unreserve(order: int) -> None:
    say("unreserve")


@step
async def charge(order: int) -> int:
    await work_at("charge")
    if order < 0:
        raise Declined("no money")
    return order * 2


@registry.saga
async def checkout(order: int) -> int:
    await reserve(order)
    return await charge(order)


@machine
class Order:
    order: int = 1
    receipt: int = 0

    @state(initial=True, invoke=checkout)
    class Buying: ...

    @state(final=True)
    class Bought: ...

    @state(final=True)
    class Dropped: ...

    @transition(Buying, Bought, done=True)
    async def bought(self, result: int) -> None:
        self.receipt = result

    @transition(Buying, Dropped, failed=True)
    async def failed(self, error: Exception) -> None:
        say(f"failed {type(error).__name__}")

    @transition(Buying, Dropped)
    async def drop(self) -> None: ...


async def test_a_saga_is_done(durable: Home) -> None:
    order = await durable(Order, order=21)
    gate("charge").set()
    await until(lambda: state_of(order) == "Bought")
    await durable.settled()
    assert order.receipt == 42
    assert said == ["reserve 21", "charge begins", "charge ends"]
    assert await durable.events(order) == ["done.invoke.Buying"]


async def test_a_saga_that_fails_has_undone_what_it_did_before_the_machine_hears_of_it(durable: Home) -> None:
    gate("charge").set()
    order = await durable(Order, order=-1)
    await until(lambda: state_of(order) == "Dropped")
    await durable.settled()
    assert said == ["reserve -1", "charge begins", "charge ends", "unreserve", "failed Declined"]


async def test_a_saga_that_is_left_undoes_what_it_did(durable: Home) -> None:
    order = await durable(Order)
    await until(lambda: "charge begins" in said)
    await order.drop()
    assert state_of(order) == "Dropped"
    await durable.settled()
    assert said == ["reserve 1", "charge begins", "charge is cancelled", "unreserve"]
    assert set(await durable.runs("completed")) == set()


@registry.saga
async def order_goods(order: int) -> int:
    run = current_run()
    assert durable_flow
    made = await make_order(order)
    say(f"made by {run.id == made}")
    return order


durable_flow: list[Flowlet] = []


@step
async def make_order(order: int) -> str:
    await durable_flow[0].create(Order, order=order, id="inner")
    return "inner"


async def test_a_machine_made_by_a_run_works_for_itself(durable: Home) -> None:
    assert durable.flow is not None
    durable_flow[:] = [durable.flow]
    handle = await durable.flow.start(order_goods, 3, id="outer")
    assert await handle.result() == 3
    order = await durable.flow.load(Order, "inner")
    gate("charge").set()
    await until(lambda: state_of(order) == "Bought")
    await durable.settled()
    assert order.receipt == 6
    durable_flow.clear()


# Late, and elsewhere ------------------------------------------------------------------------------------
@machine
class Late:
    """Work that does not let itself be cancelled."""

    round: int = 0
    got: int = -1

    @state(initial=True)
    class Idle: ...

    @state(invoke="labour")
    class Busy: ...

    @transition((Idle, Busy), Busy)
    async def go(self) -> None:
        self.round += 1

    @transition(Busy, Idle)
    async def stop(self) -> None: ...

    @transition(Busy, Idle, done=True)
    async def ready(self, result: int) -> None:
        say(f"ready {result}")
        self.got = result

    async def labour(self, round: int) -> int:
        with anyio.CancelScope(shield=True):
            await work_at(f"labour {round}")
        return round


async def test_work_that_ends_after_its_state_was_entered_again_does_not_count(durable: Home) -> None:
    late = await durable(Late)
    await late.go()
    await until(lambda: "labour 1 begins" in said)
    await late.stop()
    await late.go()
    await until(lambda: "labour 2 begins" in said)
    gate("labour 1").set()
    await until(lambda: any(line in said for line in ("labour 1 ends", "labour 1 is cancelled")))
    with anyio.fail_after(10):
        while len(await durable.runs()) > 1:
            await anyio.sleep(0.001)
    assert state_of(late) == "Busy"
    gate("labour 2").set()
    await until(lambda: state_of(late) == "Idle")
    assert [line for line in said if line.startswith("ready")] == ["ready 2"]
    assert await durable.events(late) == ["go", "stop", "go", "done.invoke.Busy"]


@pytest.fixture(params=["memory", "sqlite"])
def new_home(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Home]:
    """Make Flowlets over one store, each as if it were a process."""
    new_store = maker(request.param, tmp_path)
    return lambda: Home(new_store)


def flow_of(home: Home) -> Flowlet:
    assert home.flow is not None
    return home.flow


async def test_work_goes_on_elsewhere_and_nobody_loads_the_machine(new_home: Callable[[], Home]) -> None:
    async with flow_of(new_home()) as first:
        await first.create(Order, order=4, id="o")
        await until(lambda: "charge begins" in said)
    gate("charge").set()
    async with flow_of(new_home()) as second:
        with anyio.fail_after(20):
            while not await second.store.scan(kind="machine", status="final") and not [
                h for h in await second.store.scan(kind="machine") if h.closed is not None
            ]:
                await anyio.sleep(0.005)
        order = await second.load(Order, "o")
        assert (state_of(order), order.receipt) == ("Bought", 8)
        assert [t.event async for t in second.history("o")] == ["done.invoke.Buying"]
        with anyio.fail_after(10):
            while [h for h in await second.store.scan(kind="run") if h.closed is None]:
                await anyio.sleep(0.005)
    assert said.count("reserve 4") == 1


async def test_another_flowlet_leaves_the_state(new_home: Callable[[], Home]) -> None:
    async with flow_of(new_home()) as first, flow_of(new_home()) as second:
        await first.create(Order, id="o")
        await until(lambda: "charge begins" in said)
        order = await second.load(Order, "o")
        await order.drop()
        await until(lambda: "unreserve" in said)
        with anyio.fail_after(10):
            while [h for h in await first.store.scan(kind="run") if h.closed is None]:
                await anyio.sleep(0.005)
        assert said == ["reserve 1", "charge begins", "charge is cancelled", "unreserve"]
        assert [t.event async for t in second.history("o")] == ["drop"]


class Gated:
    """A store of one process, whose creations of runs wait until a test lets them go on."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self.capabilities = inner.capabilities

    async def append(self, writes: Any, *, work: Work | None = None) -> None:
        items: list[Write] = list(writes)
        if any(w.create is not None and w.create.kind == "run" for w in items):
            say("a run is to be made")
            await gate("make runs").wait()
        await self._inner.append(items, work=work)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


async def test_a_state_left_elsewhere_while_its_work_is_being_started(new_home: Callable[[], Home]) -> None:
    """The run is made when nobody wants it any more; then it is cancelled all the same."""
    home = new_home()
    assert home.new_store is not None
    async with Flowlet(Gated(home.new_store()), registry=registry) as first, flow_of(home) as second:
        await first.create(Order, id="o")
        await until(lambda: "a run is to be made" in said)
        order = await second.load(Order, "o")
        await order.drop()
        gate("make runs").set()
        with anyio.fail_after(5):
            while [h for h in await second.store.scan(kind="run") if h.closed is None]:
                await anyio.sleep(0.005)
        assert [t.event async for t in second.history("o")] == ["drop"]
        assert "charge ends" not in said


class Shaky:
    """A store that is away for some appends to one machine."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self.capabilities = inner.capabilities
        self.faults = 0

    async def append(self, writes: Any, *, work: Work | None = None) -> None:
        items: list[Write] = list(writes)
        if self.faults and any(w.id == "p" and w.records for w in items):
            self.faults -= 1
            say("away")
            raise StoreUnavailable("the store is away")
        await self._inner.append(items, work=work)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


async def test_a_machine_is_told_when_the_store_is_back(new_home: Callable[[], Home]) -> None:
    home = new_home()
    assert home.new_store is not None
    store = Shaky(home.new_store())
    async with Flowlet(store, registry=registry) as flow:
        payment = await flow.create(Payment, id="p")
        await payment.pay(4)
        await until(lambda: "charge 4 begins" in said)
        store.faults = 3
        gate("charge 4").set()
        await until(lambda: state_of(payment) == "Paid")
        assert payment.paid == 8
        assert [t.event async for t in flow.history("p")] == ["pay", "done.invoke.Paying"]
    assert said.count("away") == 3
    assert said.count("charge 4 begins") == 1


@machine
class Courier:
    """An event raised by a hook is still to be handled while the result of the work comes from elsewhere."""

    handled: int = 0
    got: int = 0

    @state(parallel=True, initial=True)
    class On:
        @state
        class Work:
            @state(initial=True, invoke="labour")
            class Busy: ...

            @state
            class Ready: ...

        @state
        class Door:
            @state(initial=True)
            class Shut: ...

            @state
            class Ajar: ...

            @state
            class Open: ...

    @transition(On.Door.Shut, On.Door.Ajar)
    async def push(self) -> None:
        raise_event(self.swing)

    async def on_enter_ajar(self) -> None:
        say("ajar")
        await gate("ajar").wait()

    @transition(On.Door.Ajar, On.Door.Open)
    async def swing(self) -> None:
        self.handled += 1

    @transition(On.Work.Busy, On.Work.Ready, done=True)
    async def ready(self, result: int) -> None:
        self.got += result

    async def labour(self) -> int:
        await work_at("labour")
        return 5


async def test_a_result_does_not_come_between_an_event_and_what_it_raised_elsewhere(
    new_home: Callable[[], Home],
) -> None:
    async with flow_of(new_home()) as first, flow_of(new_home()) as second:
        await first.create(Courier, id="c")
        await until(lambda: "labour begins" in said)
        other = await second.load(Courier, "c")
        async with anyio.create_task_group() as group:
            group.start_soon(other.push)
            await until(lambda: "ajar" in said)
            gate("labour").set()
            await until(lambda: "labour ends" in said)
            await anyio.wait_all_tasks_blocked()
            gate("ajar").set()
        mine = await first.load(Courier, "c")
        with anyio.fail_after(10):
            # What a body assigns is seen before its transition is committed.
            while (mine.handled, mine.got, state_of(mine)) != (1, 5, "On.Work.Ready + On.Door.Open"):
                await anyio.sleep(0.005)
                mine = await first.load(Courier, "c")
        assert state_of(mine) == "On.Work.Ready + On.Door.Open"
        assert [t.event async for t in first.history("c")].count("done.invoke.On.Work.Busy") == 1


async def test_a_copy_of_a_machine_without_a_store_has_no_work_of_its_own(loose: Home) -> None:
    payment = await loose(Payment)
    await payment.pay(5)
    await until(lambda: "charge 5 begins" in said)
    twin = copy.deepcopy(payment)
    gate("charge 5").set()
    await until(lambda: state_of(payment) == "Paid")
    assert state_of(twin) == "Paying"
    await twin.stop()
    assert (state_of(twin), state_of(payment)) == ("Idle", "Paid")


# At assembly --------------------------------------------------------------------------------------------
async def labour(total: int) -> int:
    return total


async def unannotated(total: int):  # type: ignore[no-untyped-def]
    return total


def plain(total: int) -> int:
    return total


async def stranger(totl: int) -> int:
    return totl


def _problems(build: Callable[[Registry], Any]) -> str:
    with pytest.raises(DefinitionError) as caught:
        build(Registry())
    return "\n".join(caught.value.problems)


def _with(**options: Any) -> Callable[[Registry], Any]:
    """Assemble a machine with one state that is marked so."""

    def build(registry: Registry) -> Any:
        class Machine:
            total: int = 0

            @state(initial=True)
            class Idle: ...

            Busy = state(**options)(type("Busy", (), {}))

            @transition(Idle, Busy)
            async def go(self) -> None: ...

            @transition(Busy, Idle)
            async def back(self) -> None: ...

            async def labour(self, total: int) -> int:
                return total

        return registry.machine(Machine)

    return build


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"invoke": "labor"}, ("names no method", "labour")),
        ({"invoke": stranger}, ("totl", "total")),
        ({"invoke": unannotated}, ("returns",)),
        ({"invoke": plain}, ("async",)),
        ({"invoke": 7}, ("async",)),
    ],
)
def test_what_cannot_be_invoked(given: dict[str, Any], words: tuple[str, ...]) -> None:
    problems = _problems(_with(**given))
    assert all(word in problems for word in words), problems


def test_what_can_be() -> None:
    _with(invoke=labour)(Registry())
    _with(invoke="labour")(Registry())


def test_a_final_state_invokes_nothing() -> None:
    def build(registry: Registry) -> Any:
        class Machine:
            @state(initial=True)
            class Idle: ...

            @state(final=True, invoke="labour")
            class Over: ...

            @transition(Idle, Over)
            async def go(self) -> None: ...

            async def labour(self) -> None: ...

        return registry.machine(Machine)

    assert "invoke" in _problems(build)


def test_a_history_invokes_nothing() -> None:
    def build(registry: Registry) -> Any:
        class Machine:
            @state(initial=True)
            class Idle: ...

            @state
            class Around:
                @state(initial=True)
                class One: ...

                @state
                class Two: ...

                @state(history="shallow", invoke="labour")
                class Past: ...

            @transition(Idle, Around.Past)
            async def go(self) -> None: ...

            @transition(Around.One, Around.Two)
            @transition(Around.Two, Around.One)
            async def swap(self) -> None: ...

            @transition(Around, Idle)
            async def back(self) -> None: ...

            async def labour(self) -> None: ...

        return registry.machine(Machine)

    assert "invoke" in _problems(build)


@pytest.mark.parametrize(("mark", "word"), [("failed", "fail"), ("done", "done")])
def test_an_outcome_of_nothing(mark: str, word: str) -> None:
    options: dict[str, Any] = {mark: True}

    def build(registry: Registry) -> Any:
        class Machine:
            @state(initial=True)
            class Idle: ...

            @state
            class Over: ...

            @transition(Idle, Over, **options)
            async def go(self) -> None: ...

            @transition((Idle, Over), Idle)
            async def back(self) -> None: ...

        return registry.machine(Machine)

    problems = _problems(build)
    assert "invoke" in problems
    assert word in problems


def test_all_faults_are_reported_together() -> None:
    def build(registry: Registry) -> Any:
        class Machine:
            @state(initial=True, invoke="one")
            class Idle: ...

            @state(invoke="two")
            class Over: ...

            @transition(Idle, Over)
            @transition(Over, Idle)
            async def go(self) -> None: ...

        return registry.machine(Machine)

    problems = _problems(build)
    assert "'one'" in problems
    assert "'two'" in problems
