"""What follows an event by itself in a statechart: done events, raised ones, eventless transitions; and who waits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from flowlet import Flowlet, Registry, Transition, fire, guard, in_state, raise_event, state, transition
from flowlet.errors import HookFailed, MachineError, TransitionNotAllowed
from flowlet.runtime.machine_driver import LONGEST
from flowlet.runtime.machine_install import definition_of
from flowlet.runtime.machine_questions import state_of
from flowlet.stores import open_store

pytestmark = pytest.mark.anyio

registry = Registry()
machine = registry.machine

said: list[str] = []
"""What callbacks have done, whatever became of their machine's data."""


@pytest.fixture(autouse=True)
def _silence() -> None:
    said.clear()


class Slow:
    """A store whose appends suspend before and after they are done, as one over a network does."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self.capabilities = store.capabilities

    async def append(self, writes: Any, **options: Any) -> None:
        await anyio.lowlevel.checkpoint()
        await self.store.append(writes, **options)
        await anyio.lowlevel.checkpoint()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


class Home:
    """Makes machines with or without a store."""

    def __init__(self, flow: Flowlet | None) -> None:
        self.flow = flow

    async def __call__(self, cls: Any) -> Any:
        return cls() if self.flow is None else await self.flow.create(cls)

    async def history(self, thing: Any) -> list[Transition]:
        assert self.flow is not None
        return [t async for t in self.flow.history(thing._flowlet_turn.id)]


@pytest.fixture(scope="module", params=["none", "memory", "sqlite"])
async def home(
    anyio_backend: Any, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Home]:
    if request.param == "none":
        yield Home(None)
        return
    memory = Slow(open_store("memory://"))
    store: Any = (
        memory
        if request.param == "memory"
        else open_store(f"sqlite:///{tmp_path_factory.mktemp('home')}/flow.db?durability=process")
    )
    async with Flowlet(store, registry=registry) as flow:
        yield Home(flow)


# Done ---------------------------------------------------------------------------------------------------
@machine
class Form:
    """Two pages are filled in; the second has a compound inside."""

    @state(initial=True, parallel=True)
    class Filling:
        @state
        class Name:
            @state(initial=True)
            class Empty: ...

            @state(final=True)
            class Full: ...

        @state
        class Address:
            @state(initial=True)
            class Street:
                @state(initial=True)
                class Typing: ...

                @state(final=True)
                class Typed: ...

            @state(final=True)
            class Complete: ...

    @state
    class Sent:
        @state(initial=True)
        class Waiting: ...

        @state(final=True)
        class Answered: ...

    @state(final=True)
    class Archived: ...

    @transition(Filling.Name.Empty, Filling.Name.Full)
    async def name(self) -> None:
        said.append("name")
        raise_event(self.seen, "action")

    @transition(Filling.Address.Street.Typing, Filling.Address.Street.Typed)
    async def street(self) -> None:
        said.append("street")

    @transition(Filling.Name.Empty, Filling.Name.Full, event="all")
    async def all_name(self) -> None: ...

    @transition(Filling.Address.Street.Typing, Filling.Address.Complete, event="all")
    async def all_address(self) -> None: ...

    @transition(Filling.Address.Street, Filling.Address.Complete, done=True)
    async def on_street(self) -> None:
        said.append("done Street")

    @transition((Filling.Name, Filling.Address), None, done=True)
    async def on_page(self) -> None:
        said.append("done page")

    @transition(Filling, Sent, done=True)
    async def send(self) -> None:
        said.append("done Filling")

    @transition(Sent, Archived, done=True)
    async def archive(self) -> None:
        said.append("done Sent")

    @transition(Sent.Waiting, Sent.Answered)
    async def answer(self) -> None: ...

    @transition("*", None)
    async def seen(self, by: str) -> None:
        said.append(f"seen {by}")

    async def on_enter_full(self) -> None:
        said.append("enter Full")
        raise_event(self.seen, "Full")

    async def on_enter_complete(self) -> None:
        said.append("enter Complete")
        raise_event(self.seen, "Complete")

    async def on_transition(self, t: Transition) -> None:
        if t.event in ("name", "all"):
            raise_event(self.seen, "on_transition")


async def test_a_done_event_comes_behind_what_the_action_and_the_final_states_hook_have_raised(home: Home) -> None:
    form = await home(Form)
    await form.name()
    assert said == ["name", "enter Full", "seen action", "seen Full", "done page", "seen on_transition"]
    said.clear()
    await form.street()
    # Street is done, which completes the address, which is done, and with it all of the form.
    assert said == ["street", "done Street", "enter Complete", "seen Complete", "done page", "done Filling"]
    assert state_of(form) == "Sent.Waiting"
    await form.answer()
    assert said[-1] == "done Sent"
    assert state_of(form) == "Archived"


async def test_regions_that_end_together(home: Home) -> None:
    form = await home(Form)
    await fire(form, "all")
    assert said == [
        "enter Full",
        "enter Complete",
        "seen Full",
        "done page",
        "seen Complete",
        "done page",
        "done Filling",
        "seen on_transition",
    ]
    assert in_state(form, Form.Sent)


async def test_histories_name_what_happened_by_itself(home: Home) -> None:
    if home.flow is None:
        pytest.skip("it has no history")
    form = await home(Form)
    await form.street()
    moves = [(t.event, t.source, t.target) for t in await home.history(form)]
    empty = "Filling.Name.Empty + Filling.Address"
    assert moves == [
        ("street", f"{empty}.Street.Typing", f"{empty}.Street.Typed"),
        ("done.state.Filling.Address.Street", f"{empty}.Street.Typed", f"{empty}.Complete"),
        ("seen", f"{empty}.Complete", f"{empty}.Complete"),
        ("done.state.Filling.Address", f"{empty}.Complete", f"{empty}.Complete"),
    ]


async def test_a_done_event_can_be_raised_and_fired_by_its_name_and_goes_to_nobody_by_method(home: Home) -> None:
    form = await home(Form)
    with pytest.raises(MachineError, match="happens by itself"):
        await form.send()
    await fire(form, "done.state.Filling")
    assert state_of(form) == "Sent.Waiting"
    with pytest.raises(TransitionNotAllowed):
        await fire(form, "done.state.Filling")


@machine
class Born:
    """It is done with its first state when it starts."""

    @state(initial=True)
    class P:
        @state(initial=True, final=True)
        class Done: ...

    @state
    class Q:
        @state(initial=True)
        class A: ...

        @state
        class B: ...

    @transition(P, Q, done=True)
    async def on(self) -> None:
        said.append("on")

    @transition(Q.A, Q.B, eventless=True)
    async def slip(self) -> None:
        said.append("slip")

    @transition(Q, None)
    async def look(self) -> None: ...

    @transition(Q.B, Q.A, internal=True)
    async def back(self) -> None: ...


async def test_what_is_done_from_the_start(home: Home) -> None:
    born = await home(Born)
    await born.look()
    assert said == ["on", "slip"]
    assert state_of(born) == "Q.B"
    await born.back()  # and forth again at once
    assert said == ["on", "slip", "slip"]
    assert state_of(born) == "Q.B"


# Without an event -----------------------------------------------------------------------------------------
@machine(allow={"cycle"})
class Chain:
    n: int = 0
    limit: int = 3

    @state(initial=True)
    class Idle: ...

    @state
    class Work:
        @state(initial=True)
        class Count: ...

        @state
        class Check: ...

    @state
    class Ended: ...

    @guard
    def goes_on(self) -> bool:
        return self.n < self.limit

    @transition(Idle, Work)
    async def start(self) -> None:
        raise_event(self.note)

    @transition(Work.Count, Work.Check, eventless=True)
    async def count(self) -> None:
        self.n += 1

    @transition(Work.Check, Work.Count, eventless=True, guard=goes_on)
    async def again(self) -> None: ...

    @transition(Work.Check, Ended, eventless=True)
    async def end(self) -> None:
        said.append(f"end {self.n}")

    @transition((Work, Ended), None)
    async def note(self) -> None:
        said.append(f"note in {state_of(self)}")

    @transition(Ended, Idle)
    async def rewind(self) -> None:
        self.n = 0


async def test_a_chain_is_taken_to_its_end_before_what_was_raised(home: Home) -> None:
    chain = await home(Chain)
    await chain.start()
    assert said == ["end 3", "note in Ended"]
    assert (state_of(chain), chain.n) == ("Ended", 3)
    if home.flow is not None:
        events = [t.event for t in await home.history(chain)]
        assert events == ["start", *["count", "again"] * 2, "count", "end", "note"]


class Endless:
    n: int = 0

    @state(initial=True)
    class Idle: ...

    @state
    class A: ...

    @state
    class B: ...

    @guard
    def is_on(self) -> bool:
        return self.n >= 0

    @transition(Idle, A)
    async def start(self) -> None: ...

    @transition(A, B, eventless=True, guard=is_on)
    async def there(self) -> None:
        self.n += 1

    @transition(B, A, eventless=True, guard=is_on)
    async def back(self) -> None: ...

    @transition("*", Idle)
    async def stop(self) -> None: ...

    @transition("*", None)
    async def rest(self) -> None:
        self.n = -1


machine(Endless)


async def test_an_endless_cycle_raises_and_stays_where_it_was_last(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    if home.flow is not None:
        monkeypatch.setattr("flowlet.runtime.machine_driver.LONGEST", 50)
    endless = await home(Endless)
    with pytest.raises(HookFailed, match="an endless loop") as failed:
        await endless.start()
    assert failed.value.committed
    here, n = state_of(endless), endless.n
    assert here in ("A", "B")
    if home.flow is None:
        assert n in (LONGEST // 2, LONGEST // 2 + 1)
    else:
        moves = await home.history(endless)
        assert moves[-1].target == here
        assert len(moves) in (51, 52)
    await endless.rest()  # whose guard says no from now on
    assert state_of(endless) == here
    assert endless.n == -1
    await endless.stop()
    assert state_of(endless) == "Idle"


@machine
class Faulty:
    fail: bool = True

    @state(initial=True)
    class Idle: ...

    @state
    class A: ...

    @state
    class B: ...

    @transition(Idle, A)
    async def start(self) -> None:
        raise_event(self.note)

    @transition(A, B, eventless=True)
    async def slide(self) -> None:
        if self.fail:
            raise ValueError("stuck")

    @transition("*", None)
    async def note(self) -> None:
        said.append(f"note in {state_of(self)}")

    @transition("*", None)
    async def mend(self) -> None:
        self.fail = False

    @transition(B, Idle)
    async def back(self) -> None: ...


async def test_an_eventless_transition_that_fails_leaves_the_last_committed_state(home: Home) -> None:
    faulty = await home(Faulty)
    with pytest.raises(HookFailed, match="stuck") as failed:
        await faulty.start()
    assert failed.value.committed
    assert isinstance(failed.value.__cause__, ValueError)
    assert said == ["note in A"]  # what was raised is handled even so
    assert state_of(faulty) == "A"
    await faulty.mend()
    assert state_of(faulty) == "B"


# Raised ---------------------------------------------------------------------------------------------------
@machine
class Caller:
    @state(initial=True, parallel=True)
    class P:
        @state
        class A:
            @state(initial=True)
            class A1: ...

            @state
            class A2: ...

        @state
        class B:
            @state(initial=True)
            class B1: ...

            @state
            class B2: ...

    @transition(P.A.A1, P.A.A2, event="flip")
    @transition(P.A.A2, P.A.A1, event="flip")
    async def flip_a(self, n: int = 0) -> None:
        said.append(f"a {n}")

    @transition(P.B.B1, P.B.B2, event="flip")
    @transition(P.B.B2, P.B.B1, event="flip")
    async def flip_b(self, n: int = 0) -> None:
        said.append(f"b {n}")

    @transition(P, None)
    async def by_name(self) -> None:
        raise_event(self, "flip", 1)
        raise_event(self, "flip", n=2)

    @transition(P, None)
    async def by_method(self) -> None:
        raise_event(self.flip_b, 3)

    @transition(P, None)
    async def wrongly(self) -> None:
        raise_event(self, "flop")

    @transition(P.A.A2, P.A.A1)
    async def only_a2(self) -> None:
        said.append("only_a2")

    @transition(P, None)
    async def in_vain(self) -> str:
        raise_event(self.only_a2)
        raise_event(self.flip_a, 4)
        return "fine"


async def test_raising_by_name_and_by_method(home: Home) -> None:
    caller = await home(Caller)
    await caller.by_name()
    assert said == ["a 1", "b 1", "a 2", "b 2"]
    said.clear()
    await caller.by_method()
    assert said == ["b 3"]
    assert state_of(caller) == "P.A.A1 + P.B.B2"


async def test_what_is_raised_in_vain_is_discarded(home: Home) -> None:
    caller = await home(Caller)
    assert await caller.in_vain() == "fine"
    assert said == ["a 4"]


async def test_raising_what_there_is_not_or_outside_of_callbacks(home: Home) -> None:
    caller = await home(Caller)
    with pytest.raises(MachineError, match="has no event 'flop'; did you mean 'flip'"):
        await caller.wrongly()
    with pytest.raises(MachineError, match="outside of the machine's hooks and actions"):
        raise_event(caller.flip_a)
    with pytest.raises(MachineError, match="outside of the machine's hooks and actions"):
        raise_event(caller, "flip")
    with pytest.raises(MachineError, match="outside of the machine's hooks and actions"):
        raise_event(caller, "flip", after=0.01)
    assert state_of(caller) == "P.A.A1 + P.B.B1"


# Many callers ----------------------------------------------------------------------------------------------
@machine
class Busy:
    """Every callback lets others run; the data would tell of two events that are handled at once."""

    n: int = 0
    inside: int = 0

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

    async def _work(self) -> None:
        assert self.inside == 0
        self.inside = 1
        before = self.n
        try:
            await anyio.lowlevel.checkpoint()
            self.n = before + 1
        finally:
            self.inside = 0

    @guard
    async def can_turn(self) -> bool:
        await anyio.lowlevel.checkpoint()
        return True

    @transition(P.A.A1, P.A.A2, event="turn")
    async def turn_a(self, who: int) -> int:
        await self._work()
        return who

    @transition(P.A.A2, P.A.A3, eventless=True)
    async def on(self) -> None:
        await self._work()

    @transition(P.A.A3, P.A.A1)
    async def close(self) -> None:
        await self._work()

    @transition(P.B.B1, P.B.B2, event="turn")
    @transition(P.B.B2, P.B.B1, event="turn")
    async def turn_b(self, who: int) -> int:
        await self._work()
        return who

    async def on_exit_a1(self) -> None:
        await self._work()

    async def on_enter_a3(self) -> None:
        await self._work()
        raise_event(self.close)


EACH = 6  # exit A1, turn_a, turn_b, on, enter A3, close


async def test_callers_take_turns_for_all_of_what_follows(home: Home) -> None:
    busy = await home(Busy)
    answers: list[int] = []

    async def call(who: int) -> None:
        answers.append(await fire(busy, "turn", who))

    async with anyio.create_task_group() as group:
        for who in range(20):
            group.start_soon(call, who)
    assert sorted(answers) == list(range(20))
    assert (busy.n, busy.inside) == (20 * EACH, 0)
    assert state_of(busy) == "P.A.A1 + P.B.B1"


async def cancelled_at(place: int, busy: Any) -> bool:
    """Fire an event and cancel it when the loop has turned so often; tell whether it came to its end before."""
    ended = False

    async def call() -> None:
        nonlocal ended
        await fire(busy, "turn", 1)
        ended = True

    async with anyio.create_task_group() as group:
        group.start_soon(call)
        for _ in range(place):
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    return ended


START, END = "P.A.A1 + P.B.B1", "P.A.A1 + P.B.B2"
BETWEEN = ("P.A.A2 + P.B.B2", "P.A.A3 + P.B.B2")


async def test_a_caller_cancelled_at_any_await_leaves_a_legal_configuration_and_its_turn(home: Home) -> None:
    seen: set[str] = set()
    for place in range(400):
        busy = await home(Busy)
        if await cancelled_at(place, busy):
            break
        if home.flow is not None:
            assert await home.flow.load(Busy, busy._flowlet_turn.id) is busy  # and go on with what is left
            moves = await home.history(busy)
            assert state_of(busy) == (moves[-1].target if moves else START)
            assert state_of(busy) != BETWEEN[0]
        seen.add(state_of(busy))
        assert definition_of(busy).states.tree.is_legal(busy._flowlet_state.active)
        assert busy.inside == 0
        if state_of(busy) == START:
            assert busy.n == 0
        with anyio.fail_after(10):
            assert await fire(busy, "turn", 2) == 2
        assert definition_of(busy).states.tree.is_legal(busy._flowlet_state.active)
    else:
        pytest.fail("it never came to its end")
    assert (state_of(busy), busy.n) == (END, EACH)
    assert seen <= {START, *BETWEEN, END}
    assert {START, BETWEEN[1]} <= seen


async def test_a_waiting_caller_that_is_cancelled_is_gone_and_the_others_are_not(home: Home) -> None:
    busy = await home(Busy)
    answers: list[int] = []

    async def call(who: int) -> None:
        answers.append(await fire(busy, "turn", who))

    async with anyio.create_task_group() as group:
        group.start_soon(call, 1)
        await anyio.lowlevel.checkpoint()
        async with anyio.create_task_group() as doomed:
            doomed.start_soon(call, 2)
            await anyio.lowlevel.checkpoint()
            group.start_soon(call, 3)
            await anyio.lowlevel.checkpoint()
            doomed.cancel_scope.cancel()
    assert answers == [1, 3]
    assert busy.n == 2 * EACH


async def test_a_thousand_machines_do_not_mix(home: Home) -> None:
    if home.flow is not None:
        pytest.skip("that takes longer, and has been seen with callers of one machine")
    crowd = [await home(Busy) for _ in range(1000)]

    async def call(busy: Any, times: int) -> None:
        for _ in range(times):
            await fire(busy, "turn", times)

    async with anyio.create_task_group() as group:
        for place, busy in enumerate(crowd):
            group.start_soon(call, busy, place % 3)
    assert [busy.n for busy in crowd] == [place % 3 * EACH for place in range(1000)]
    assert [state_of(busy) for busy in crowd] == [END if place % 3 == 1 else START for place in range(1000)]
