"""Observers are told what happens, are around user code, and cannot break anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import msgspec
import pytest
import structlog

from flowlet import Flowlet, Retry, Run, compensate, gather, guard, provided, raise_event, state, step, transition
from flowlet.core.run_records import Started, run_record_codec
from flowlet.errors import ConfigError, HookFailed, RunCancelled, RunParked, TransitionNotAllowed
from flowlet.observing import (
    AttemptBegan,
    AttemptEnded,
    BulkBegan,
    BulkEnded,
    Committed,
    Event,
    LeaseLost,
    Observer,
    Queued,
    RunBegan,
    RunLeft,
    StepBegan,
    StepEnded,
    TransitionBegan,
    TransitionEnded,
    Work,
)
from flowlet.runtime.execution import Execution
from flowlet.store import Store
from flowlet.stores import open_store
from flowlet.stores.memory import MemoryStore
from flowlet.testing import Clock

pytestmark = pytest.mark.anyio

inside: ContextVar[str] = ContextVar("inside", default="")


class Broken(Exception):
    pass


class Recorder(Observer):
    """Keeps what it is told, and says in a context variable what it is around of."""

    def __init__(self) -> None:
        self.told: list[Event] = []

    def tell(self, event: Event) -> None:
        if not isinstance(event, (Committed, Queued)):
            self.told.append(event)

    def around(self, work: Work) -> AbstractContextManager[Any]:
        return self._mark(work)

    @contextmanager
    def _mark(self, work: Work) -> Iterator[None]:
        match work:
            case AttemptBegan():
                name = f"{work.step} {work.attempt}"
            case RunBegan():
                name = work.definition
            case TransitionBegan():
                name = work.event
            case BulkBegan():
                name = work.function
        token = inside.set(f"{inside.get()}/{name}")
        try:
            yield
        finally:
            inside.reset(token)

    def trace(self, run_id: str, definition: str) -> str | None:
        return f"{inside.get()} -> {run_id}"

    @property
    def kinds(self) -> list[str]:
        return [type(event).__name__ for event in self.told]

    def all(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.told if isinstance(event, kind)]


@pytest.fixture
def seen() -> Recorder:
    return Recorder()


@step(retry=Retry(attempts=3, wait=0))
async def charge(n: int, run: Run = provided) -> str:
    if run.attempt == 1:
        raise Broken("busy")
    return inside.get()


@compensate(charge)
async def refund() -> None: ...


@step
async def book(n: int) -> str:
    await anyio.lowlevel.checkpoint()
    return inside.get()


async def test_a_run_and_its_steps(seen: Recorder) -> None:
    flow = Flowlet(observers=(seen,))

    @flow.saga
    async def checkout(n: int) -> list[str]:
        return [inside.get(), await charge(n), *await gather(book(1), book(2))]

    async with flow:
        value = await flow.execute(checkout, 1, id="c")
    assert value == ["/checkout", "/checkout/charge 2", "/checkout/book 1", "/checkout/book#2 1"]
    assert seen.kinds[:8] == [
        "RunBegan",
        "StepBegan",
        "AttemptBegan",
        "AttemptEnded",
        "AttemptBegan",
        "AttemptEnded",
        "StepEnded",
        "StepBegan",
    ]
    began, left = seen.told[0], seen.told[-1]
    assert began == RunBegan(
        run_id="c", definition="checkout", version="1", kind="saga", resumed=False, records=1, trace=" -> c"
    )
    assert isinstance(left, RunLeft)
    assert (left.status, left.ended, left.error) == ("completed", True, None)
    first, second = seen.all(AttemptEnded)[:2]
    assert (repr(first.error), first.attempt, second.error, second.attempt) == ("Broken('busy')", 1, None, 2)
    ends = seen.all(StepEnded)
    assert [(e.step, e.name, e.outcome, e.attempts) for e in ends] == [
        ("charge", "charge", "completed", 2),
        ("book", "book", "completed", 1),
        ("book#2", "book", "completed", 1),
    ]
    assert 0 < ends[0].seconds <= left.seconds < 10
    assert inside.get() == ""


async def test_a_plain_step_runs_in_a_thread_with_the_same_context(seen: Recorder) -> None:
    flow = Flowlet(observers=(seen,))

    def plain(n: int) -> str:
        return inside.get()

    saga = flow.saga("s", plain)
    async with flow:
        assert await flow.execute(saga, 1) == "/s/plain 1"


async def test_a_run_that_is_undone(seen: Recorder) -> None:
    flow = Flowlet(observers=(seen,))

    @step
    async def ship(n: int) -> None:
        raise Broken("no stock")

    @flow.saga
    async def checkout(n: int) -> None:
        await charge(n)
        await ship(n)

    async with flow:
        with pytest.raises(Broken):
            await flow.execute(checkout, 1)
    assert [(e.step, e.outcome, repr(e.error)) for e in seen.all(StepEnded)] == [
        ("charge", "completed", "None"),
        ("ship", "failed", "Broken('no stock')"),
        ("charge~refund", "completed", "None"),
    ]
    (left,) = seen.all(RunLeft)
    assert (left.status, left.ended, repr(left.error)) == ("compensated", True, "Broken('no stock')")


async def test_a_run_that_waits_is_taken_up_again_and_not_told_twice(
    seen: Recorder, new_store: Callable[[], Store]
) -> None:
    other = Recorder()

    def make(observer: Recorder) -> tuple[Flowlet, Any]:
        flow = Flowlet(new_store(), observers=(observer,))

        @flow.saga
        async def order(n: int, run: Run = provided) -> int:
            await book(n)
            return await run.receive("payment", type=int)

        return flow, order

    flow, order = make(seen)
    async with flow:
        await flow.start(order, 1, id="o")
        with anyio.fail_after(20):
            while not seen.all(RunLeft):
                await anyio.sleep(0.002)
    (left,) = seen.all(RunLeft)
    assert (left.status, left.ended) == ("waiting", False)
    again, order = make(other)
    async with again:
        await again.handle("o", order).send("payment", 5)
        assert await again.handle("o", order).result() == 5
    (began,) = other.all(RunBegan)
    assert (began.resumed, began.trace, began.records > 1) == (True, " -> o", True)
    assert other.all(StepBegan) == []  # it is on record
    assert other.all(RunLeft)[0].status == "completed"


async def test_a_step_that_waits_for_long_and_one_that_is_stopped(seen: Recorder, clock: Clock) -> None:
    flow = Flowlet(MemoryStore(clock=clock), observers=(seen,))

    @step(retry=Retry(attempts=2, wait=3600))
    async def call(n: int, run: Run = provided) -> int:
        if run.attempt == 1:
            raise Broken
        await anyio.sleep_forever()
        return n

    saga = flow.saga("s", call)
    async with flow:
        handle = await flow.start(saga, 1, id="r")
        with anyio.fail_after(20):
            while not seen.all(RunLeft):
                await anyio.sleep(0.002)
            await clock.advance(3600)
            while len(seen.all(AttemptBegan)) < 2:
                await anyio.sleep(0.002)
        await handle.cancel()
        with pytest.raises(RunCancelled):
            await handle.result()
    assert [(e.outcome, e.attempts) for e in seen.all(StepEnded)] == [("waiting", 1), ("stopped", 2)]
    assert [e.status for e in seen.all(RunLeft)] == ["waiting", "cancelled"]


async def test_a_run_that_was_parked(seen: Recorder) -> None:
    flow = Flowlet(observers=(seen,))

    @step(at_most_once=True, timeout=0.01)
    async def call(n: int) -> int:
        await anyio.sleep(1)
        return n

    saga = flow.saga("s", call)
    async with flow:
        handle = await flow.start(saga, 1, id="r")
        with pytest.raises(RunParked):
            await handle.result()
        assert [(e.status, e.ended) for e in seen.all(RunLeft)] == [("parked", False)]
        await handle.skip("call", 5)
        assert await handle.result() == 5
    assert [e.status for e in seen.all(RunLeft)] == ["parked", "completed"]
    assert [e.resumed for e in seen.all(RunBegan)] == [False, True]


async def test_what_is_stored_of_a_trace(seen: Recorder) -> None:
    store = MemoryStore()
    for observers, trace in (((), None), ((seen,), " -> {}")):
        flow = Flowlet(store, observers=observers)
        saga = flow.saga("s", book)
        async with flow:
            id = f"r{len(observers)}"
            await flow.execute(saga, 1, id=id)
            stored = await flow.store.load(id)
            assert stored is not None
            started = run_record_codec.decode(stored.records[0], "")
            assert isinstance(started, Started)
            assert started.trace == (trace and trace.format(id))
            copy = await flow.handle(id, saga).fork(from_step="book")
            await copy.result()
            stored = await flow.store.load(copy.id)
            assert stored is not None
            forked = run_record_codec.decode(stored.records[0], "")
            assert isinstance(forked, Started)
            assert forked.trace == started.trace


async def test_a_run_without_observers_is_executed_as_ever() -> None:
    flow = Flowlet()
    assert flow._log.observing is None
    async with flow:
        assert flow._open_runs._execution_class is Execution


# Machines ------------------------------------------------------------------------------------------------
def machine(flow: Flowlet, run: Any = None) -> Any:
    @flow.machine(allow={"dead_end"})
    class Order:
        total: int = 0
        log: str = ""

        @state(initial=True)
        class Draft: ...

        @state
        class Confirmed: ...

        @state
        class Shipped: ...

        @guard
        async def can_confirm(self, n: int) -> bool:
            return n > 0

        @transition(Draft, Confirmed)
        async def confirm(self, n: int) -> str:
            if n == 13:
                raise Broken("unlucky")
            self.total = n
            raise_event(self.ship)
            if run is not None:
                await flow.start(run, n)
            return inside.get()

        @transition(Confirmed, Shipped)
        async def ship(self) -> None: ...

        @transition(Draft, Draft)
        async def touch(self) -> None: ...

        async def on_enter_shipped(self) -> None:
            if self.total == 7:
                raise Broken("late")

    return Order


async def test_transitions(seen: Recorder, new_store: Callable[[], Store]) -> None:
    flow = Flowlet(new_store(), observers=(seen,))
    Order = machine(flow)
    async with flow:
        order = await flow.create(Order(), id="o")
        await order.touch()
        with pytest.raises(TransitionNotAllowed):
            await order.confirm(0)
        with pytest.raises(Broken):
            await order.confirm(13)
        assert await order.confirm(1) == "/confirm"
    told = [(e.event, e.source, e.target, e.version, e.committed, repr(e.error)) for e in seen.all(TransitionEnded)]
    assert told == [
        ("touch", "Draft", "Draft", 2, True, "None"),
        ("confirm", "Draft", "Draft", 2, False, "Broken('unlucky')"),
        ("confirm", "Draft", "Confirmed", 3, True, "None"),
        ("ship", "Confirmed", "Shipped", 4, True, "None"),
    ]
    assert all((e.machine, e.definition) == ("o", "Order") for e in seen.told if not isinstance(e, Committed))
    assert seen.kinds == ["TransitionBegan", "TransitionEnded"] * 4


async def test_a_hook_that_fails_behind_the_commit(seen: Recorder) -> None:
    flow = Flowlet(observers=(seen,))
    Order = machine(flow)
    async with flow:
        order = await flow.create(Order(), id="o")
        with pytest.raises(HookFailed):
            await order.confirm(7)
    last = seen.all(TransitionEnded)[-1]
    assert (last.event, last.target, last.committed, type(last.error)) == ("ship", "Shipped", True, HookFailed)


async def test_what_an_action_starts_belongs_to_its_trace(seen: Recorder) -> None:
    flow = Flowlet(observers=(seen,))
    saga = flow.saga("s", book)
    Order = machine(flow, saga)
    async with flow:
        order = await flow.create(Order(), id="o")
        await order.confirm(1)
        (began,) = seen.all(RunBegan) or [None]
        with anyio.fail_after(20):
            while not seen.all(RunLeft):
                await anyio.sleep(0.002)
    (began,) = seen.all(RunBegan)
    assert began.trace == f"/confirm -> {began.run_id}"


async def test_a_machine_without_a_store_tells_nobody(seen: Recorder) -> None:
    flow = Flowlet(observers=(seen,))
    order = machine(flow)()
    await order.confirm(1)
    assert seen.told == []


# Bulk operations -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("id", [None, "b"])
async def test_a_bulk_operation(seen: Recorder, id: str | None) -> None:
    flow = Flowlet(observers=(seen,))

    async def send(n: int) -> str:
        if n == 2:
            raise Broken
        return inside.get()

    async with flow:
        report = await flow.bulk(send, [1, 2, 3], id=id, retry=1)
        assert report.failed == 1
        assert await flow.bulk(send, [1]).values() == ["/send"]
        with pytest.raises(ZeroDivisionError):
            await flow.bulk(send, (1 // n for n in [0]))
    began = seen.all(BulkBegan)
    assert (began[0].function, began[0].run_id, began[0].total) == ("send", id, 3)
    ended = seen.all(BulkEnded)
    assert [(e.status, e.succeeded, e.failed, repr(e.error)) for e in ended[:2]] == [
        ("completed", 2, 1, "None"),
        ("completed", 1, 0, "None"),
    ]
    assert (ended[2].status, type(ended[2].error)) == ("broken", ZeroDivisionError)
    assert [e.began for e in ended] == began


# Trouble -------------------------------------------------------------------------------------------------
class Faulty(Observer):
    def __init__(self, where: str) -> None:
        self.where = where
        self.calls = 0

    def _fail(self, where: str) -> None:
        if self.where == where:
            self.calls += 1
            raise Broken(f"in {where}")

    def tell(self, event: Event) -> None:
        self._fail("tell")

    def around(self, work: Work) -> AbstractContextManager[Any]:
        self._fail("around")
        return self._context()

    @contextmanager
    def _context(self) -> Iterator[None]:
        self._fail("enter")
        yield
        self._fail("exit")

    def trace(self, run_id: str, definition: str) -> str | None:
        self._fail("trace")
        return None


@pytest.mark.parametrize("where", ["tell", "around", "enter", "exit", "trace"])
async def test_an_observer_that_raises_breaks_nothing(where: str, events: list[Any], seen: Recorder) -> None:
    faulty = Faulty(where)
    flow = Flowlet(observers=(faulty, seen))
    saga = flow.saga("s", charge)
    Order = machine(flow)
    async with flow:
        for n in range(2):
            assert await flow.execute(saga, n) == "/s/charge 2"
        order = await flow.create(Order(), id="o")
        assert await order.confirm(1) == "/confirm"
    assert faulty.calls > 1
    (failed,) = [e for e in events if e["event"] == "observer.failed"]
    assert (failed["observer"], failed["log_level"]) == ("Faulty", "error")
    assert f"in {where}" in failed["error"]
    assert len(seen.all(RunLeft)) == 2


async def test_an_error_of_the_user_stays_what_it_is(events: list[Any]) -> None:
    class Converting(Observer):
        def around(self, work: Work) -> AbstractContextManager[Any]:
            return self._context()

        @contextmanager
        def _context(self) -> Iterator[None]:
            try:
                yield
            except Broken as error:
                raise RuntimeError("converted") from error

    flow = Flowlet(observers=(Converting(),))

    @step
    async def fail(n: int) -> int:
        raise Broken("mine")

    saga = flow.saga("s", fail)
    async with flow:
        with pytest.raises(Broken, match="mine"):
            await flow.execute(saga, 1)
    assert [e["observer"] for e in events if e["event"] == "observer.failed"] == ["Converting"]


async def test_a_run_that_was_taken_over(seen: Recorder) -> None:
    store = open_store("memory://")
    flow = Flowlet(store, observers=(seen,))

    @step
    async def lose(n: int, run: Run = provided) -> int:
        (owner,) = [head.owner for head in await store.scan(kind="run")]
        assert owner is not None
        await store.release(owner, (run.id,))
        await store.heartbeat("thief", 60)
        assert (await store.claim("thief", ids=(run.id,))).heads
        return n

    @flow.saga
    async def s(n: int) -> int:
        return await lose(n)

    async with flow:
        await flow.start(s, 1, id="r")
        with anyio.fail_after(20):
            while not seen.all(RunLeft):
                await anyio.sleep(0.002)
    assert LeaseLost(kind="run", id="r") in seen.told
    assert seen.all(RunLeft)[0].status == "left"


# What there is to do ---------------------------------------------------------------------------------------
async def test_commits_and_work_that_waits(tmp_path: Any) -> None:
    told: list[Event] = []
    url = f"sqlite:///{tmp_path}/flow.db?durability=process"
    abandoned = Flowlet(url)
    stranger = abandoned.saga("stranger", book)
    async with abandoned:
        prepared = abandoned._open_runs.prepare(stranger.__flowlet_definition__, (1,), "due")
        await abandoned.store.append((msgspec.structs.replace(prepared.write, owner=None),))
    flow = Flowlet(url, lease=0.3, observers=(told.append,))
    saga = flow.saga("s", book)
    async with flow:
        async with anyio.create_task_group() as tasks:
            for n in range(40):
                tasks.start_soon(flow.execute, saga, n)
        with anyio.fail_after(20):
            while not any(isinstance(e, Queued) and not e.running for e in told):
                await anyio.sleep(0.01)
        store: Any = flow.store
    sizes = [e.appends for e in told if isinstance(e, Committed)]
    assert sum(sizes) >= 80
    assert max(sizes) > 1
    assert [e.due for e in told if isinstance(e, Queued)][-1] == 1
    assert store.on_commit is None


async def test_several_observers_and_a_function() -> None:
    names: list[str] = []

    class Deaf:
        def around(self, work: Work) -> None:
            names.append(f"around {type(work).__name__}")

    flow = Flowlet(observers=[lambda event: names.append(type(event).__name__), Deaf()])  # type: ignore[list-item]
    saga = flow.saga("s", book)
    async with flow:
        await flow.execute(saga, 1)
    assert names[:3] == ["RunBegan", "around RunBegan", "StepBegan"]


@pytest.mark.parametrize("given", [print, "print", (3,), (Recorder,), {"tell": print}])
def test_what_is_no_observer(given: Any) -> None:
    with pytest.raises(ConfigError, match="observers="):
        Flowlet(observers=given)


def test_an_observer_that_would_have_to_be_awaited() -> None:
    class Late(Observer):
        async def tell(self, event: Event) -> None:  # type: ignore[override]
            """Take note of something."""

    for observer in (Late(), Late().tell):
        with pytest.raises(ConfigError, match="must not be async"):
            Flowlet(observers=(observer,))


# structlog -------------------------------------------------------------------------------------------------
async def test_lines_of_a_step_say_where_they_come_from() -> None:
    capture = structlog.testing.LogCapture()

    @step(retry=Retry(attempts=2, wait=0))
    async def talk(n: int, run: Run = provided) -> None:
        structlog.get_logger().info("mine")
        if run.attempt == 1:
            raise Broken

    async def run(*processors: Any) -> tuple[Flowlet, list[Any]]:
        capture.entries.clear()
        structlog.configure(processors=[*processors, capture])
        try:
            flow = Flowlet()
            saga = flow.saga("s", talk)
            async with flow:
                await flow.execute(saga, 1, id="r")
                structlog.get_logger().info("after")
                return flow, [e for e in capture.entries if e["event"] in ("mine", "after")]
        finally:
            structlog.reset_defaults()

    flow, lines = await run(structlog.contextvars.merge_contextvars)
    assert [{k: v for k, v in line.items() if k not in ("event", "log_level")} for line in lines] == [
        {"run_id": "r", "definition": "s", "step": "talk", "attempt": 1},
        {"run_id": "r", "definition": "s", "step": "talk", "attempt": 2},
        {},
    ]
    flow, lines = await run()  # nobody would see it, so it is not done
    assert flow._log.observing is None
    assert len(lines) == 3
