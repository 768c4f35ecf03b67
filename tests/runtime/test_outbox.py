"""Runs and signals that the callbacks of a stored machine queue: stored with the transition, or not at all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any, Literal

import anyio
import msgspec
import pytest

from flowlet import Flowlet, Registry, Retry, Run, guard, provided, raise_event, state, step, transition
from flowlet.errors import (
    Conflict,
    DecodeError,
    EncodeError,
    HookFailed,
    IdConflict,
    MachineError,
    PayloadTooLarge,
    RunError,
    RunFinished,
    RunNotFound,
    StoreUnavailable,
    TransitionNotAllowed,
)
from flowlet.runtime.handle import Handle
from flowlet.runtime.machine_questions import can, state_of
from flowlet.runtime.tasks import spawn
from flowlet.store import Store, Work, Write
from flowlet.stores import open_store
from flowlet.stores.memory import MemoryStore
from flowlet.testing import Clock

pytestmark = pytest.mark.anyio

Act = Callable[[Any], Coroutine[Any, Any, Any]]
Until = Callable[[Callable[[], Any]], Any]

registry = Registry()
ran: list[int] = []
"""The inputs of the runs whose step was executed."""


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    ran.clear()


class Spy:
    """A store that keeps what was appended, and fails or loses its replies when told to.

    Attributes:
        appended: the ids of each append that was stored.
        faults: what becomes of the next appends of several writes: nothing, the append is lost, or its reply is.
    """

    def __init__(self, store: Store) -> None:
        self.store, self.capabilities = store, store.capabilities
        self.appended: list[tuple[str, ...]] = []
        self.faults: deque[Literal["", "lost", "reply"]] = deque()
        self.before: Act | None = None
        self.down = False

    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        self._check()
        if len(writes) > 1 and self.before is not None:
            before, self.before = self.before, None
            await before(writes)
        fault = self.faults.popleft() if self.faults and len(writes) > 1 else ""
        if fault == "lost":
            raise StoreUnavailable("the append was lost")
        await self.store.append(writes, work=work)
        self.appended.append(tuple(write.id for write in writes))
        if fault == "reply":
            raise StoreUnavailable("the reply was lost")

    async def load(self, id: str, **options: Any) -> Any:
        self._check()
        return await self.store.load(id, **options)

    def _check(self) -> None:
        if self.down:
            raise StoreUnavailable("the store is down")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)

    @property
    def together(self) -> list[tuple[str, ...]]:
        """The appends of several writes."""
        return [ids for ids in self.appended if len(ids) > 1]


class Words(msgspec.Struct):
    text: str = ""


@step
async def work(n: int) -> int:
    ran.append(n)
    return n + 1


@registry.saga
async def job(n: int) -> int:
    return await work(n)


@registry.saga(name="other")
async def other_job(n: int) -> int:
    return await work(n)


talk = registry.graph("talk", state=Words)
talk.pause("say", type=str, merge=lambda words, said: {"text": words.text + said})
talk.pause("end", type=str, merge=lambda words, said: {"text": words.text + said})
talk.entry("say")
talk.edge("say", "end")
talk.final("end")


async def _nothing(_: Any) -> None:
    await anyio.lowlevel.checkpoint()


class Calls:
    """What the callbacks of a machine do is told to the object."""

    _act: Act = staticmethod(_nothing)
    _leave: Act = staticmethod(_nothing)
    _enter: Act = staticmethod(_nothing)
    _seen: Act = staticmethod(_nothing)
    _judge: Act | None = None


@registry.machine
class Desk(Calls):
    n: int = 0

    @state(initial=True)
    class A: ...

    @state
    class B: ...

    @state(final=True)
    class Failed: ...

    @guard
    async def may_go(self) -> bool:
        if self._judge is not None:
            await self._judge(self)
        return True

    @transition(A, B, guard="may_go")
    async def go(self) -> Any:
        self.n += 1
        return await self._act(self)

    @transition(A, B, on_conflict="retry", event="try")
    async def again(self) -> Any:
        self.n += 1
        return await self._act(self)

    @transition(A, B, exclusive=True)
    async def alone(self) -> Any:
        return await self._act(self)

    @transition((A, B), A)
    async def back(self) -> None: ...

    @transition(A, B, on_error=Failed)
    async def risk(self) -> Any:
        return await self._act(self)

    @transition(A, None)
    async def stay(self) -> Any:
        return await self._act(self)

    async def on_exit_a(self) -> None:
        await self._leave(self)

    async def on_enter_b(self) -> None:
        await self._enter(self)

    async def on_transition(self) -> None:
        await self._seen(self)


@pytest.fixture
def spy(new_store: Callable[[], Store]) -> Spy:
    return Spy(new_store())


@pytest.fixture
def flow(spy: Spy) -> Flowlet:
    flow = Flowlet(spy)
    flow.include(registry)
    return flow


async def desk(flow: Flowlet, act: Act = _nothing, *, id: str = "d", **callbacks: Any) -> Any:
    """Make a desk with these callbacks."""
    made: Any = await flow.create(Desk(), id=id)
    made._act = act
    for name, callback in callbacks.items():
        setattr(made, name, callback)
    return made


def starts(flow: Flowlet, *ns: int, id: str | None = None) -> Act:
    """Return a callback that starts a run for each of these inputs, and returns the last handle."""

    async def act(_: Any) -> Any:
        for n in ns:
            handle = await flow.start(job, n, id=id)
        return handle

    return act


async def runs_of(flow: Flowlet) -> list[str]:
    return [run.id async for run in flow.runs()]


async def end_of(handle: Handle[Any]) -> Any:
    """Return a run's result, which has to come soon."""
    with anyio.fail_after(10):
        return await handle.result()


# ------------------------------------------------------------------------------------- committed together
async def test_a_run_begins_with_the_transition(flow: Flowlet, spy: Spy) -> None:
    async with flow:
        one = await desk(flow, starts(flow, 7))
        spy.appended.clear()
        handle = await one.go()
        assert handle.id == "d@2/job"
        assert await end_of(handle) == 8
        assert await end_of(flow.handle("d@2/job", job)) == 8
        assert spy.together == [("d", "d@2/job")]
    assert ran == [7]


async def test_it_begins_at_once_and_here(flow: Flowlet) -> None:
    """Without being claimed: the run is live when the trigger returns."""
    async with flow:
        one = await desk(flow, starts(flow, 7, id="r"))
        await one.go()
        head = (await flow.store.load("r", limit=0)).head  # type: ignore[union-attr]
        assert head.claims == 0
        assert await end_of(flow.handle("r")) == 8


@pytest.mark.parametrize("fails", ["_act", "_leave"])
async def test_nothing_is_there_when_the_transition_fails(flow: Flowlet, spy: Spy, fails: str) -> None:
    async def fail(one: Any) -> None:
        await flow.start(job, 1, id="r")
        await flow.handle("t").send("say", "no")
        raise ValueError("no")

    async with flow:
        await flow.start(talk, Words(), id="t")
        one = await desk(flow, **{fails: fail})
        with pytest.raises((ValueError, HookFailed)):
            await one.go()
        assert (state_of(one), one.n, spy.together) == ("A", 0, [])
        assert await runs_of(flow) == ["t"]
        assert (await flow.store.load("t")).signals == ()  # type: ignore[union-attr]
        setattr(one, fails, _nothing)
        await one.go()
        assert (await runs_of(flow), spy.together, ran) == (["t"], [], [])


async def test_nothing_is_there_when_the_data_cannot_be_stored(flow: Flowlet) -> None:
    async def act(one: Any) -> None:
        await flow.start(job, 1, id="r")
        one.n = "no number"

    async with flow:
        one = await desk(flow, act)
        with pytest.raises(EncodeError):
            await one.go()
        assert await runs_of(flow) == []


async def test_hooks_and_actions_of_one_transition_share_an_append(flow: Flowlet, spy: Spy) -> None:
    async with flow:
        one = await desk(flow, starts(flow, 2, 3), _leave=starts(flow, 1, id="first"))
        await one.go()
        ids = ["first", "d@2/job", "d@2/job#2"]
        assert spy.together == [("d", *ids)]
        assert [await end_of(flow.handle(id, job)) for id in ids] == [2, 3, 4]


async def test_the_same_start_twice_is_one(flow: Flowlet, spy: Spy) -> None:
    async with flow:
        one = await desk(flow, starts(flow, 5, 5, id="r"))
        assert (await one.go()).id == "r"
        assert spy.together == [("d", "r")]
        assert await end_of(flow.handle("r")) == 6


async def test_two_different_starts_under_one_id_are_refused(flow: Flowlet) -> None:
    async def both(_: Any) -> None:
        await flow.start(job, 5, id="r")
        await flow.start(other_job, 5, id="r")

    async with flow:
        one = await desk(flow, starts(flow, 5, 6, id="r"))
        with pytest.raises(IdConflict, match="with another input"):
            await one.go()
        one._act = both
        with pytest.raises(IdConflict, match="as a 'job' with its input"):
            await one.go()
        assert await runs_of(flow) == []


@pytest.mark.parametrize(
    ("args", "options", "error"),
    [
        (("x",), {}, DecodeError),
        ((object(),), {}, EncodeError),
        ((1,), {"id": "d"}, IdConflict),
        ((1,), {"id": ""}, IdConflict),
        ((1, 2), {}, TypeError),
    ],
)
async def test_what_cannot_be_started_is_refused_in_the_action(
    flow: Flowlet, args: tuple[Any, ...], options: dict[str, Any], error: type[Exception]
) -> None:
    caught: list[Exception] = []

    async def act(_: Any) -> None:
        with pytest.raises(error) as raised:
            await flow.start(job, *args, **options)
        caught.append(raised.value)

    async with flow:
        one = await desk(flow, act)
        await one.go()
        assert (len(caught), state_of(one), await runs_of(flow)) == (1, "B", [])


async def test_a_payload_that_is_too_large_is_refused_in_the_action(spy: Spy) -> None:
    flow = Flowlet(spy, registry=registry, max_payload=5000)

    async def act(_: Any) -> None:
        with pytest.raises(PayloadTooLarge):
            await flow.start(talk, Words("x" * 6000))
        with pytest.raises(PayloadTooLarge):
            await flow.handle("t").send("say", "x" * 6000)

    async with flow:
        await flow.start(talk, Words(), id="t")
        one = await desk(flow, act)
        await one.go()
        assert await runs_of(flow) == ["t"]


async def test_a_deadline_is_kept(flow: Flowlet) -> None:
    async def act(_: Any) -> None:
        await flow.start(talk, Words(), id="t", deadline=0.05)

    async with flow:
        await (await desk(flow, act)).go()
        with anyio.fail_after(10), pytest.raises(TimeoutError):
            await end_of(flow.handle("t"))


# ------------------------------------------------------------------------------------- taken ids
async def test_a_run_that_is_there_already_is_left_out(flow: Flowlet, spy: Spy) -> None:
    async with flow:
        assert await flow.execute(job, 5, id="r") == 6
        one = await desk(flow, starts(flow, 5, id="r"))
        handle = await one.go()
        assert state_of(one) == "B"
        assert await end_of(handle) == 6
        two = await desk(flow, id="e")

        async def act(_: Any) -> None:
            await flow.start(job, 5, id="r")
            await flow.start(job, 6, id="s")

        two._act = act
        await two.go()
        assert spy.together == [("e", "s")]
        assert await end_of(flow.handle("s")) == 7
    assert ran == [5, 6]


@pytest.mark.parametrize("taken", ["input", "definition", "machine"])
async def test_an_id_of_something_else_refuses_the_transition(flow: Flowlet, taken: str) -> None:
    async with flow:
        if taken == "machine":
            await flow.create(Desk(), id="r")
        else:
            await flow.execute(job if taken == "input" else other_job, 5, id="r")
        one = await desk(flow, starts(flow, 6, id="r"))
        with pytest.raises(IdConflict, match="the transition that starts it was not made"):
            await one.go()
        assert (state_of(one), one.n) == ("A", 0)
        one._act = starts(flow, 6)
        await one.go()
        assert (state_of(one), one.n) == ("B", 1)


async def test_a_run_that_is_pruned_while_it_is_looked_at_is_started(flow: Flowlet, spy: Spy) -> None:
    async def prune(_: Any) -> None:
        flow.store.load, load = gone, flow.store.load  # type: ignore[method-assign]
        loads.append(load)

    async def gone(id: str, **options: Any) -> Any:
        if id == "r":
            flow.store.load = loads[0]  # type: ignore[method-assign]
            assert await flow.prune(0) == 1
        return await loads[0](id, **options)

    loads: list[Any] = []
    async with flow:
        await flow.execute(job, 5, id="r")
        await anyio.sleep(0.002)
        one = await desk(flow, starts(flow, 5, id="r"))
        spy.before = prune
        handle = await one.go()
        assert await end_of(handle) == 6
    assert ran == [5, 5]


async def test_an_id_that_was_made_up_for_an_earlier_machine_is_not_joined(flow: Flowlet) -> None:
    """Of a machine that was pruned before the run that it has started, and made again."""
    async with flow:
        await flow.start(talk, Words(), id="d@2/talk")

        async def act(_: Any) -> None:
            await flow.start(talk, Words())

        one = await desk(flow, act)
        with pytest.raises(IdConflict, match="an earlier machine"):
            await one.go()
        assert state_of(one) == "A"


# ------------------------------------------------------------------------------------- signals
async def test_a_signal_arrives_with_the_transition(flow: Flowlet, spy: Spy) -> None:
    async def act(_: Any) -> None:
        await flow.handle("t").send("say", "a")
        await flow.handle("t").send("end", "b")
        assert (await flow.store.load("t")).signals == ()  # type: ignore[union-attr]

    async with flow:
        handle = await flow.start(talk, Words(), id="t")
        one = await desk(flow, act)
        await one.go()
        assert await end_of(handle) == Words("ab")
        assert spy.together == [("d", "t")]


async def test_a_run_is_started_with_its_signals(flow: Flowlet, spy: Spy) -> None:
    async def act(_: Any) -> None:
        handle = await flow.start(talk, Words(">"), id="t")
        await handle.send("say", "a")
        await handle.send("end", "b")
        with pytest.raises(DecodeError):
            await handle.send("end", 7)
        with pytest.raises(RunError, match="takes no signal 'sai'"):
            await handle.send("sai", "a")

    async with flow:
        one = await desk(flow, act)
        await one.go()
        assert await end_of(flow.handle("t")) == Words(">ab")
        assert spy.together == [("d", "t")]


async def test_signals_to_a_run_that_was_there_already(flow: Flowlet) -> None:
    async def act(_: Any) -> None:
        handle = await flow.start(talk, Words(">"), id="t")
        await handle.send("say", "a")
        await handle.send("end", "b", message_id="m")
        await handle.send("end", "b", message_id="m")

    async with flow:
        await flow.start(talk, Words(">"), id="t")
        await (await desk(flow, act)).go()
        assert await end_of(flow.handle("t")) == Words(">ab")
        two = await desk(flow, act, id="e")
        with pytest.raises(RunFinished, match="the transition that sends it one was not made") as refused:
            await two.go()
        assert (refused.value.id, state_of(two)) == ("t", "A")


async def test_a_run_that_takes_no_signal_refuses_it_in_the_action(flow: Flowlet) -> None:
    refused: list[RunError] = []

    async def act(_: Any) -> None:
        for id, topic in (("nobody", "say"), ("r", "say"), ("t", ""), ("t", "flowlet/cancel"), ("t", "other")):
            with pytest.raises(RunError) as error:
                await flow.handle(id).send(topic, "a")
            refused.append(error.value)

    async with flow:
        await flow.execute(job, 1, id="r")
        await flow.start(talk, Words(), id="t")
        await (await desk(flow, act)).go()
        assert [type(error) for error in refused] == [RunNotFound, RunFinished, RunError, RunError, RunError]


@pytest.mark.parametrize("is_pruned", [False, True])
async def test_a_run_that_ends_before_the_commit_refuses_the_transition(
    flow: Flowlet, spy: Spy, is_pruned: bool
) -> None:
    async def end(_: Any) -> None:
        await handle.send("say", "1")
        await handle.send("end", "2")
        await end_of(handle)
        if is_pruned:
            await anyio.sleep(0.002)
            assert await flow.prune(0) == 1

    async def act(_: Any) -> None:
        await flow.start(job, 1, id="r")
        await flow.handle("t").send("say", "a")

    async with flow:
        handle = await flow.start(talk, Words(), id="t")
        one = await desk(flow, act)
        spy.before = end
        with pytest.raises(RunNotFound if is_pruned else RunFinished, match="was not made") as refused:
            await one.go()
        assert (refused.value.id, state_of(one)) == ("t", "A")
        assert await runs_of(flow) == ([] if is_pruned else ["t"])
        one._act = _nothing
        await one.go()
        assert state_of(one) == "B"


async def test_a_run_elsewhere_hears_of_its_signal(new_store: Callable[[], Store]) -> None:
    async with Flowlet(new_store(), registry=registry) as here, Flowlet(new_store(), registry=registry) as there:
        await there.start(talk, Words(), id="t")

        async def act(_: Any) -> None:
            await here.handle("t").send("say", "a")
            await here.handle("t").send("end", "b")

        await (await desk(here, act)).go()
        assert await end_of(there.handle("t")) == Words("ab")


# ------------------------------------------------------------------------------------- what cannot be waited for
async def test_an_action_cannot_wait_for_what_begins_with_its_commit(flow: Flowlet) -> None:
    async def act(_: Any) -> Any:
        handle = await flow.start(job, 1, id="r")
        for wait in (
            handle.result,
            handle.status,
            handle.cancel,
            handle.report,
            flow.handle("r").result,
            lambda: flow.execute(job, 1, id="r"),
        ):
            with pytest.raises(RunError, match="wait for it after the event"):
                await wait()
        return handle

    async with flow:
        handle = await (await desk(flow, act)).go()
        assert await end_of(handle) == 2
        assert await flow.execute(job, 1, id="r") == 2
    assert ran == [1]


async def test_what_is_executed_in_an_action_is_executed_at_once(flow: Flowlet, spy: Spy) -> None:
    """A direct call or `execute` is no part of the transition, and neither is what its steps start."""

    @step
    async def start_more() -> None:
        await flow.start(job, 2, id="inner")
        await flow.handle("t").send("say", "s")

    @flow.saga(name="deeper")
    async def deeper() -> int:
        await start_more()
        return 3

    async def act(_: Any) -> None:
        assert await flow.execute(job, 1, id="r") == 2
        assert await deeper() == 3
        assert await end_of(flow.handle("inner")) == 3
        raise ValueError("no")

    async with flow:
        await flow.start(talk, Words(), id="t")
        one = await desk(flow, act)
        with pytest.raises(ValueError, match="no"):
            await one.go()
        assert {"r", "inner"} <= set(await runs_of(flow))
        assert spy.together == []
    assert sorted(ran) == [1, 2]


# ------------------------------------------------------------------------------------- at once
@pytest.mark.parametrize("hook", ["_enter", "_seen"])
async def test_behind_the_commit_everything_is_at_once(flow: Flowlet, spy: Spy, hook: str) -> None:
    async def act(_: Any) -> None:
        assert await (await flow.start(job, 1, id="r")).result() == 2
        raise ValueError("no")

    async with flow:
        one = await desk(flow, **{hook: act})
        with pytest.raises(HookFailed) as failed:
            await one.go()
        assert failed.value.committed
        assert (await runs_of(flow), spy.together) == (["r"], [])


async def test_an_enter_hook_may_wait_for_what_the_action_has_started(flow: Flowlet, spy: Spy) -> None:
    handles: list[Handle[int]] = []

    async def act(_: Any) -> None:
        handles.append(await flow.start(job, 1))

    async def enter(one: Any) -> None:
        one.n = await end_of(handles[0])

    async with flow:
        one = await desk(flow, act, _enter=enter)
        await one.go()
        assert (one.n, spy.together) == (2, [("d", "d@2/job")])


async def test_a_guard_starts_and_sends_nothing(flow: Flowlet) -> None:
    async def judge(_: Any) -> None:
        for attempt in (lambda: flow.start(job, 1), lambda: flow.handle("t").send("say", "a")):
            with pytest.raises(MachineError, match="a guard was about to"):
                await attempt()
        refused.append(1)

    async def ask(_: Any) -> None:
        await flow.start(job, 1, id="r")
        assert await can(other.go)
        await flow.start(job, 2, id="s")

    refused: list[int] = []
    async with flow:
        await flow.start(talk, Words(), id="t")
        one = await desk(flow, ask, _judge=judge)
        other = await desk(flow, id="e", _judge=judge)
        assert await can(one.go)
        assert await runs_of(flow) == ["t"]
        await one.go()
        assert (len(refused), await runs_of(flow)) == (3, ["t", "r", "s"])


async def test_a_guard_that_fails_for_it_makes_no_transition(flow: Flowlet) -> None:
    async with flow:
        one = await desk(flow, _judge=starts(flow, 1))
        with pytest.raises(HookFailed, match="guard 'may_go'"):
            await one.go()
        assert (state_of(one), await runs_of(flow)) == ("A", [])


async def test_a_machine_without_a_store_starts_at_once(flow: Flowlet) -> None:
    async def act(_: Any) -> None:
        await flow.start(job, 1, id="r")
        assert await end_of(flow.handle("r")) == 2
        raise ValueError("no")

    async def through(_: Any) -> None:
        await flow.start(job, 2, id="queued")
        with pytest.raises(ValueError, match="no"):
            await loose.go()

    async with flow:
        loose: Any = Desk()
        loose._act = act
        with pytest.raises(ValueError, match="no"):
            await loose.go()
        assert await runs_of(flow) == ["r"]
        loose._judge = starts(flow, 1, id="r")
        await (await desk(flow, through)).go()
        assert set(await runs_of(flow)) == {"r", "queued"}


async def test_another_flowlet_starts_at_once(flow: Flowlet, new_store: Callable[[], Store]) -> None:
    async with flow, Flowlet(open_store("memory://"), registry=registry) as elsewhere:
        one = await desk(flow, starts(elsewhere, 1, id="r"))
        handle = await one.go()
        assert await end_of(handle) == 2
        assert (await runs_of(elsewhere), await runs_of(flow)) == (["r"], [])


async def test_a_task_that_outlives_the_action_starts_at_once(flow: Flowlet, spy: Spy) -> None:
    gate, done = anyio.Event(), anyio.Event()

    async def later() -> None:
        await gate.wait()
        await flow.start(job, 1, id="r")
        done.set()

    async def act(_: Any) -> None:
        spawn(later, lambda error: None, inherits=True)
        spy.before = open_gate
        await flow.start(job, 2, id="s")

    async def open_gate(_: Any) -> None:
        gate.set()
        await done.wait()

    async with flow:
        await (await desk(flow, act)).go()
        assert spy.together == [("d", "s")]
        assert await runs_of(flow) == ["r", "s"]


async def test_a_task_that_outlives_a_failed_action_starts_at_once(flow: Flowlet, until: Until) -> None:
    gate = anyio.Event()

    async def later() -> None:
        await gate.wait()
        await flow.start(job, 1, id="r")

    async def act(_: Any) -> None:
        spawn(later, lambda error: None, inherits=True)
        raise ValueError("no")

    async with flow:
        one = await desk(flow, act)
        with pytest.raises(ValueError, match="no"):
            await one.go()
        gate.set()
        await until(lambda: ran == [1])
        assert await runs_of(flow) == ["r"]


async def test_a_task_of_the_action_queues(flow: Flowlet, spy: Spy) -> None:
    async def act(_: Any) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(starts(flow, 1, id="r"), None)
            group.start_soon(starts(flow, 2, id="s"), None)

    async with flow:
        await (await desk(flow, act)).go()
        (together,) = spy.together
        assert together[0] == "d"
        assert set(together[1:]) == {"r", "s"}


# ------------------------------------------------------------------------------------- several machines
async def test_each_machine_commits_what_its_own_callbacks_queue(flow: Flowlet, spy: Spy) -> None:
    async def outer_act(_: Any) -> None:
        await flow.start(job, 1, id="outer")
        await inner.go()
        assert set(await runs_of(flow)) == {"inner", "entered"}
        await flow.start(job, 4, id="outer-2")
        if fails:
            raise ValueError("no")

    fails = [True]
    async with flow:
        inner = await desk(flow, starts(flow, 2, id="inner"), id="i", _enter=starts(flow, 3, id="entered"))
        outer = await desk(flow, outer_act, id="o")
        with pytest.raises(ValueError, match="no"):
            await outer.go()
        assert set(await runs_of(flow)) == {"inner", "entered"}
        fails.clear()
        await inner.back()
        await outer.go()
        assert spy.together == [("i", "inner"), ("o", "outer", "outer-2")]


# ------------------------------------------------------------------------------------- conflicts
async def test_who_loses_a_race_starts_nothing(new_store: Callable[[], Store]) -> None:
    async with Flowlet(new_store(), registry=registry) as a, Flowlet(new_store(), registry=registry) as b:
        one: Any = await desk(a, starts(a, 1))
        two: Any = await b.load(Desk, "d")
        two._act = starts(b, 2)
        await one.go()
        with pytest.raises(Conflict):
            await two.go()
        assert await runs_of(a) == ["d@2/job"]
        assert await end_of(a.handle("d@2/job")) == 2


async def test_a_retry_queues_anew(new_store: Callable[[], Store]) -> None:
    async with Flowlet(new_store(), registry=registry) as a, Flowlet(new_store(), registry=registry) as b:
        one: Any = await desk(a)
        two: Any = await b.load(Desk, "d")
        tries: list[int] = []

        async def act(machine: Any) -> str:
            tries.append(machine.n)
            await b.start(job, len(tries), id=f"r-{len(tries)}")
            made = await b.start(job, 10)
            return made.id

        two._act = act
        await one.stay()
        id = await two.again()
        assert (tries, id) == ([1, 1], "d@3/job")
        assert set(await runs_of(a)) == {"r-2", "d@3/job"}
        assert await end_of(a.handle(id)) == 11


async def test_an_exclusive_transition_commits_its_runs(flow: Flowlet, spy: Spy) -> None:
    async with flow:
        one = await desk(flow, starts(flow, 1, id="r"))
        await one.alone()
        assert spy.together == [("d", "r")]
        assert await end_of(flow.handle("r")) == 2
        assert (await flow.store.load("d", limit=0)).head.owner is None  # type: ignore[union-attr]


# ------------------------------------------------------------------------------------- other ways to a transition
async def test_what_a_failed_action_has_queued_is_not_committed_with_its_rescue(flow: Flowlet, spy: Spy) -> None:
    async def act(_: Any) -> None:
        await flow.start(job, 1, id="r")
        raise ValueError("no")

    async with flow:
        one = await desk(flow, act)
        await one.risk()
        assert (state_of(one), await runs_of(flow), spy.together) == ("Failed", [], [])


@registry.machine(allow={"dead_end"})
class Chain(Calls):
    """Moves by itself: by an event that was raised, one without an event, a timer, and work that has ended."""

    n: int = 0

    @state(initial=True)
    class First: ...

    @state
    class Raised: ...

    @state
    class Eventless: ...

    @state(invoke=job)
    class Working: ...

    @state
    class Late: ...

    @transition(First, Raised)
    async def go(self) -> None:
        raise_event(self.on)
        await self._act("go")

    @transition(Raised, Eventless)
    async def on(self) -> None:
        await self._act("on")

    @transition(Eventless, Working, eventless=True)
    async def slide(self) -> None:
        await self._act("slide")

    @transition(Working, Late, done=True)
    async def finish(self, result: int) -> None:
        await self._act("finish")

    @transition(Late, None, after=0.02)
    async def ring(self) -> None:
        await self._act("ring")


async def test_every_microstep_commits_its_own(flow: Flowlet, spy: Spy, until: Until) -> None:
    async def act(what: str) -> None:
        said.append(what)
        await flow.start(other_job, len(said), id=what)

    said: list[str] = []
    async with flow:
        chain: Any = await flow.create(Chain(), id="c")
        chain._act = act
        await chain.go()
        await until(lambda: len(spy.together) >= 5)
        mine = [ids for ids in spy.together if ids[0] == "c" and len(ids) == 2]
        assert mine == [("c", what) for what in ("go", "on", "slide", "finish", "ring")]
        assert [await end_of(flow.handle(what)) for what in said] == [2, 3, 4, 5, 6]


@registry.machine
class Invoice:
    """Starts what reminds of it when it has not been paid for a month."""

    _flow: Any = None

    @state(initial=True)
    class Sent: ...

    @state(final=True)
    class Due: ...

    @transition(Sent, Due, after=timedelta(days=30))
    async def remind(self) -> None:
        await self._flow.start(job, 30)


async def test_a_timer_of_days(until: Until) -> None:
    clock = Clock()
    async with Flowlet(MemoryStore(clock=clock), registry=registry) as flow:
        invoice: Any = await flow.create(Invoice(), id="i")
        invoice._flow = flow
        await clock.advance(timedelta(days=29))
        assert await runs_of(flow) == []
        await clock.advance(timedelta(days=1))
        await until(lambda: state_of(invoice) == "Due")
        assert await end_of(flow.handle("i@2/job")) == 31


# ------------------------------------------------------------------------------------- inside of runs
async def test_an_event_that_a_run_fires_starts_its_runs_once(flow: Flowlet, spy: Spy) -> None:
    async def act(_: Any) -> str:
        return (await flow.start(job, 1)).id

    @step(retry=Retry(attempts=2, wait=0))
    async def push(run: Run = provided) -> str:
        answer: str = await one.stay()
        if run.attempt == 1:
            raise RuntimeError("died behind the event")
        return answer

    @flow.saga
    async def pushing() -> list[str]:
        return [await one.stay(), await push()]

    async with flow:
        one = await desk(flow, act)
        ids = await flow.execute(pushing, id="p")
        assert ids == ["d@2/job", "d@3/job"]
        assert await runs_of(flow) == ["p", *ids]
        assert [await end_of(flow.handle(id)) for id in ids] == [2, 2]
        assert spy.together == [("d", id) for id in ids]


@registry.machine
class Eager:
    """Moves on by itself as soon as it is there."""

    _flow: Any = None

    @state(initial=True)
    class New: ...

    @state(final=True)
    class Ready: ...

    @transition(New, Ready, eventless=True)
    async def slide(self) -> None:
        await self._flow.start(job, 1)


@pytest.mark.parametrize("place", ["outside", "body", "step"])
async def test_a_machine_that_moves_on_as_it_is_made(flow: Flowlet, spy: Spy, place: str) -> None:
    async def make() -> None:
        eager = Eager()
        eager._flow = flow
        await flow.create(eager, id="e")

    @flow.saga
    async def making() -> None:
        await (step(make)() if place == "step" else make())

    async with flow:
        await (make() if place == "outside" else flow.execute(making, id="p"))
        assert spy.together == [("e", "e@2/job")]
        assert await end_of(flow.handle("e@2/job")) == 2


@registry.machine(allow={"dead_end"})
class Relay:
    """Its first event raises another one."""

    _act: Act = staticmethod(_nothing)

    @state(initial=True)
    class A: ...

    @state
    class B: ...

    @state
    class C: ...

    @transition(A, B)
    async def go(self) -> None:
        raise_event(self.on)

    @transition(B, C)
    async def on(self) -> None:
        await self._act(self)

    @transition((A, C), None, on_conflict="retry")
    async def note(self) -> int:
        await anyio.lowlevel.checkpoint()
        return 1


async def test_what_another_process_has_left_to_be_done_is_committed_with_its_runs(
    new_store: Callable[[], Store],
) -> None:
    """Found by a run, whose own event has lost a race against it."""
    spy = Spy(new_store())
    b = Flowlet(spy)
    b.include(registry)

    @b.saga
    async def noting() -> int:
        return int(await two.note())

    async def for_ever(_: Any) -> None:
        await anyio.sleep_forever()

    async with Flowlet(new_store(), registry=registry) as a, b:
        one: Any = await a.create(Relay(), id="m")
        two: Any = await b.load(Relay, "m")
        two._act = starts(b, 1)
        one._act = for_ever
        with anyio.move_on_after(0.05):
            await one.go()
        assert await b.execute(noting, id="p") == 1
        assert spy.together == [("m", "m@3/job")]
        assert [t.event async for t in b.history("m")] == ["go", "on", "note"]
        assert await end_of(b.handle("m@3/job", job)) == 2


# ------------------------------------------------------------------------------------- trouble with the store
async def test_a_lost_reply_is_no_failure(flow: Flowlet, spy: Spy) -> None:
    async with flow:
        one = await desk(flow, starts(flow, 1, id="r"))
        spy.faults.append("reply")
        await one.go()
        assert await end_of(flow.handle("r")) == 2
    assert ran == [1]


async def test_an_append_that_the_store_repeats_is_no_conflict(flow: Flowlet, spy: Spy) -> None:
    """The store has lost the reply itself, tried again, and tells of the run that it has just created."""

    async def twice(writes: Sequence[Write]) -> None:
        await spy.store.append(writes)
        raise Conflict(0, 1, writes[1].id)

    async with flow:
        for id in ("r", None):
            one = await desk(flow, starts(flow, 1, id=id), id=f"d-{id}")
            spy.before = twice
            handle = await one.go()
            assert (state_of(one), await end_of(handle)) == ("B", 2)
    assert ran == [1, 1]


async def test_a_signal_that_has_ended_its_run_before_the_append_is_repeated_is_no_failure(
    flow: Flowlet, spy: Spy
) -> None:
    async def act(_: Any) -> None:
        await flow.handle("t").send("say", "a")
        await flow.handle("t").send("end", "b")

    async def twice(writes: Sequence[Write]) -> None:
        await spy.store.append(writes)
        await flow._open_runs.take_up("t")
        await flow._open_runs.look(flow._open_runs.live["t"])
        await end_of(handle)
        raise RunFinished("it has ended", "t")

    async with flow:
        handle = await flow.start(talk, Words(), id="t")
        one = await desk(flow, act)
        spy.before = twice
        await one.go()
        assert (state_of(one), await end_of(handle)) == ("B", Words("ab"))


async def test_a_lost_race_is_a_conflict_whichever_id_the_store_names(new_store: Callable[[], Store]) -> None:
    """Both start a run under one id, with inputs of their own: the loser's machine has moved, that is all."""
    spy = Spy(new_store())

    async def name_the_run(writes: Sequence[Write]) -> None:
        raise Conflict(0, 1, writes[1].id)

    async with Flowlet(new_store(), registry=registry) as a, Flowlet(spy, registry=registry) as b:
        one: Any = await desk(a, starts(a, 1, id="r"))
        two: Any = await b.load(Desk, "d")
        two._act = starts(b, 2, id="r")
        await one.go()
        spy.before = name_the_run
        with pytest.raises(Conflict) as lost:
            await two.go()
        assert (lost.value.id, lost.value.expected) == ("d", 1)
        assert await end_of(a.handle("r")) == 2


async def test_an_append_that_is_lost_starts_nothing(flow: Flowlet, spy: Spy) -> None:
    async with flow:
        one = await desk(flow, starts(flow, 1, id="r"))
        spy.faults.append("lost")
        with pytest.raises(StoreUnavailable):
            await one.go()
        assert (state_of(one), await runs_of(flow)) == ("A", [])
        await one.go()
        assert await end_of(flow.handle("r")) == 2
    assert ran == [1]


async def test_a_commit_that_nobody_heard_of_is_gone_on_with(spy: Spy) -> None:
    async def down(writes: Sequence[Write]) -> None:
        await spy.store.append(writes)
        spy.down = True
        raise StoreUnavailable("gone")

    async with Flowlet(spy, registry=registry, lease=0.6) as flow:
        one = await desk(flow, starts(flow, 1, id="r"))
        spy.before = down
        with pytest.raises(StoreUnavailable):
            await one.go()
        spy.down = False
        assert await end_of(flow.handle("r")) == 2
        with pytest.raises(TransitionNotAllowed):
            await one.go()
        assert (state_of(one), one.n) == ("B", 1)
    assert ran == [1]


async def test_a_caller_cancelled_in_the_commit_leaves_both_or_neither(spy: Spy) -> None:
    async def slow(writes: Sequence[Write]) -> None:
        scope.cancel()
        with anyio.CancelScope(shield=True):  # what a store has accepted it completes
            await spy.store.append(writes)
        await anyio.lowlevel.checkpoint()

    async with Flowlet(spy, registry=registry, lease=0.6) as flow:
        one = await desk(flow, starts(flow, 1, id="r"))
        spy.before = slow
        with anyio.CancelScope() as scope:
            await one.go()
        assert scope.cancelled_caught
        assert await end_of(flow.handle("r")) == 2
        await flow.load(Desk, "d")
        assert (state_of(one), one.n) == ("B", 1)
    assert ran == [1]


async def test_a_signal_that_cannot_be_delivered_now_is_delivered(flow: Flowlet, spy: Spy, events: list[Any]) -> None:
    async def act(_: Any) -> None:
        await flow.handle("t").send("say", "a")
        await flow.handle("t").send("end", "b")

    async def down(writes: Sequence[Write]) -> None:
        spy.down = False

    async with flow:
        handle = await flow.start(talk, Words(), id="t")
        one = await desk(flow, act)
        look = flow._open_runs.look

        async def fail(execution: Any) -> None:
            flow._open_runs.look = look  # type: ignore[method-assign]
            raise StoreUnavailable("just now")

        flow._open_runs.look = fail  # type: ignore[method-assign]
        flow._open_runs.take_up, take_up = fail, flow._open_runs.take_up
        await one.go()
        flow._open_runs.take_up = take_up  # type: ignore[method-assign]
        assert state_of(one) == "B"
        assert await end_of(handle) == Words("ab")
    assert [e["run_id"] for e in events if e["event"] == "run.not_woken"] == ["t"]


async def test_a_process_that_drains_leaves_the_runs_to_others(new_store: Callable[[], Store]) -> None:
    async with Flowlet(new_store(), registry=registry) as flow:
        one = await desk(flow, starts(flow, 1, id="r"))
        await flow.drain()
        await one.go()
        head = (await flow.store.load("r", limit=0)).head  # type: ignore[union-attr]
        assert (head.owner, head.status, ran) == (None, "running", [])
        async with Flowlet(new_store(), registry=registry) as other:
            with anyio.fail_after(10):
                assert await end_of(other.handle("r")) == 2
    assert ran == [1]
