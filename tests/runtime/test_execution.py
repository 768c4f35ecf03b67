"""Who executes a run: the caller while it waits, else flowlet; and what a cancelled caller leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from flowlet import Flowlet, compensate, gather, step
from flowlet.core.failures import describe_failure
from flowlet.core.run_records import Attention, Ended
from flowlet.errors import CompensationFailed, RunError, RunParked
from flowlet.runtime.outcomes import asked_error, attach, ended_error
from flowlet.store import Store

pytestmark = pytest.mark.anyio


class Broken(Exception):
    pass


@dataclass
class Gate:
    """A place where a step waits until it is let through, and says that it is there."""

    name: str = ""
    log: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    here: anyio.Event = field(default_factory=anyio.Event)
    open: anyio.Event = field(default_factory=anyio.Event)

    async def act(self, name: str) -> None:
        if name == self.name:
            self.here.set()
            try:
                await self.open.wait()
            except BaseException:
                self.cut.append(name)
                raise
        self.log.append(name)


def program(flow: Flowlet, gate: Gate, *, fail: bool = False) -> Any:
    @step
    async def reserve(n: int) -> int:
        await gate.act(f"reserve {n}")
        return n

    @compensate(reserve)
    async def release(n: int) -> None:
        await gate.act(f"release {n}")

    @step
    async def ship() -> str:
        await gate.act("ship")
        if fail:
            raise Broken
        return "shipped"

    @flow.saga
    async def buy() -> str:
        await reserve(1)
        await gather(reserve(2), reserve(3))
        return await ship()

    return buy


@asynccontextmanager
async def cancelled_at(gate: Gate, call: Callable[[], Awaitable[Any]], how: str) -> AsyncIterator[list[Any]]:
    """Call in a task of its own and cancel it when the gate is reached."""
    outcome: list[Any] = []

    async def caller() -> None:
        try:
            outcome.append(await call())
        except Exception as error:
            outcome.append(error)

    if how == "native":
        task = asyncio.get_running_loop().create_task(caller())
        await gate.here.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        yield outcome
        return
    async with anyio.create_task_group() as group:
        group.start_soon(caller)
        await gate.here.wait()
        group.cancel_scope.cancel()
    yield outcome


def skip_native_on_trio(how: str, anyio_backend: str) -> None:
    if how == "native" and anyio_backend == "trio":
        pytest.skip("trio has scopes only")


PLACES = ["reserve 1", "reserve 2", "reserve 3", "ship"]
UNDONE = ["ship", "release 3", "release 2", "release 1"]


@pytest.mark.parametrize("how", ["scope", "native"])
@pytest.mark.parametrize("place", PLACES)
async def test_a_cancelled_caller_leaves_a_run_that_completes_by_itself(
    flow: Flowlet, place: str, how: str, anyio_backend: str
) -> None:
    skip_native_on_trio(how, anyio_backend)
    gate = Gate(place)
    buy = program(flow, gate)
    async with flow:
        with anyio.fail_after(20):
            async with cancelled_at(gate, lambda: flow.execute(buy, id="b"), how) as outcome:
                gate.open.set()
                assert await flow.handle("b", buy).result() == "shipped"
        steps = (await flow.handle("b").report()).steps
    assert outcome == []
    assert {s.status for s in steps.values()} == {"completed"}
    # What had ended was not done again; what was cut off was.
    assert sorted(gate.log) == sorted(PLACES)


@pytest.mark.parametrize("how", ["scope", "native"])
async def test_a_directly_called_saga_goes_on_too(flow: Flowlet, how: str, anyio_backend: str) -> None:
    skip_native_on_trio(how, anyio_backend)
    gate = Gate("ship")
    buy = program(flow, gate)
    async with flow:
        with anyio.fail_after(20):
            async with cancelled_at(gate, buy, how):
                (head,) = await flow.store.scan(kind="run")
                gate.open.set()
                assert await flow.handle(head.id, buy).result() == "shipped"


@pytest.mark.parametrize("how", ["scope", "native"])
@pytest.mark.parametrize("place", UNDONE)
async def test_a_caller_cancelled_during_compensation(flow: Flowlet, place: str, how: str, anyio_backend: str) -> None:
    skip_native_on_trio(how, anyio_backend)
    gate = Gate(place)
    buy = program(flow, gate, fail=True)
    async with flow:
        with anyio.fail_after(20):
            async with cancelled_at(gate, lambda: flow.execute(buy, id="b"), how) as outcome:
                gate.open.set()
                with pytest.raises(Broken):
                    await flow.handle("b", buy).result()
        assert await flow.handle("b").status() == "compensated"
    assert outcome == []
    assert gate.log[-4:] in (UNDONE, ["ship", "release 2", "release 3", "release 1"])
    assert len(gate.log) == 7
    assert gate.cut == [name for name in [place] if name == "ship"]  # compensations run in no caller's task


@pytest.mark.parametrize("how", ["scope", "native"])
async def test_a_caller_that_only_waits_can_be_cancelled_and_harms_nothing(
    flow: Flowlet, how: str, anyio_backend: str
) -> None:
    skip_native_on_trio(how, anyio_backend)
    gate = Gate("ship")
    buy = program(flow, gate)
    async with flow:
        handle = await flow.start(buy, id="b")
        with anyio.fail_after(20):
            async with cancelled_at(gate, handle.result, how):
                gate.open.set()
                assert await handle.result() == "shipped"
    assert len(gate.log) == 4


async def test_cancelled_at_every_await_the_run_always_completes_once(new_store: Callable[[], Store]) -> None:
    """The n-th suspension of the caller is interrupted, for each n until it gets through."""
    flow = Flowlet(new_store(), lease=1)  # a start that is cut off is taken up at the next heartbeat
    log: list[str] = []

    @step
    async def act(id: str, n: int) -> int:
        await anyio.lowlevel.checkpoint()
        log.append(f"{id} {n}")
        return n

    @flow.saga
    async def body(id: str) -> int:
        await act(id, 1)
        await anyio.lowlevel.checkpoint()
        await gather(act(id, 2), act(id, 3))
        return await act(id, 4)

    async with flow:
        for count in range(1, 60):
            id = f"r{count}"
            with anyio.CancelScope() as scope:
                watched = Watched(flow.execute(body, id, id=id), count, scope)
                await watched
            with anyio.fail_after(20):
                assert await flow.execute(body, id, id=id) == 4
            kinds = [r.kind async for r in flow.handle(id).history()]
            assert sorted(kinds) == ["completed", "started", *["step_completed"] * 4]
            if watched.left > 0:
                break
        else:
            pytest.fail("it never came through")
    assert count > 4


class Watched:
    """Await something and cancel a scope at its n-th suspension.

    Attributes:
        left: suspensions that are still to come until then.
    """

    def __init__(self, awaitable: Any, count: int, scope: anyio.CancelScope) -> None:
        self._awaitable = awaitable
        self._scope = scope
        self.left = count

    def __await__(self) -> Any:
        inner = self._awaitable.__await__()
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                waited = inner.send(value) if error is None else inner.throw(error)
            except StopIteration as stop:
                return stop.value
            value, error = None, None
            self.left -= 1
            if self.left == 0:
                self._scope.cancel()
            try:
                value = yield waited
            except BaseException as thrown:
                error = thrown


async def test_a_body_may_wait_for_other_things_and_its_records_are_saved_beside(
    flow: Flowlet, new_store: Callable[[], Store]
) -> None:
    gate = anyio.Event()
    done = anyio.Event()

    @step
    async def one() -> int:
        return 1

    @flow.saga
    async def body() -> int:
        found = await one()
        done.set()
        await gate.wait()
        with anyio.move_on_after(0):
            await anyio.sleep_forever()
        async with anyio.create_task_group() as group:
            group.start_soon(anyio.lowlevel.checkpoint)
        return found

    async with flow:
        handle = await flow.start(body, id="b")
        await done.wait()
        with anyio.fail_after(20):
            while len([r async for r in handle.history()]) < 2:
                await anyio.sleep(0.002)
        gate.set()
        assert await handle.result() == 1


async def test_two_waiters_get_the_same_outcome(flow: Flowlet) -> None:
    gate = Gate("ship")
    buy = program(flow, gate)
    results: list[str] = []

    async def wait() -> None:
        results.append(await flow.handle("b", buy).result())

    async with flow:
        await flow.start(buy, id="b")
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(wait)
            await gate.here.wait()
            gate.open.set()
    assert results == ["shipped"] * 3


async def test_leaving_lets_a_running_step_finish_within_its_grace_time(
    new_store: Callable[[], Store],
) -> None:
    gate = Gate("reserve 1")
    flow = Flowlet(new_store(), grace=20)
    buy = program(flow, gate)

    async def let_through() -> None:
        while not flow._open_runs.closing:
            await anyio.sleep(0.001)
        gate.open.set()

    async with anyio.create_task_group() as group, flow:
        handle = await flow.start(buy, id="b")
        await gate.here.wait()
        group.start_soon(let_through)
    assert gate.log == ["reserve 1"]  # it ended, and no other began
    async with flow:
        assert await flow.handle("b", buy).result() == "shipped"
    assert gate.log.count("reserve 1") == 1
    assert handle.id == "b"


@pytest.mark.parametrize("kind", ["saga", "pipeline"])
@pytest.mark.parametrize("how", ["start", "execute"])
async def test_nothing_of_a_run_is_left_when_its_flowlet_is(
    new_store: Callable[[], Store], kind: str, how: str
) -> None:
    flow = Flowlet(new_store(), grace=0)
    here = [anyio.Event(), anyio.Event()]
    cleaned: list[int] = []

    async def hang(n: int) -> int:
        here[n].set()
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.append(n)
        return n

    async def a() -> int:
        return await hang(0)

    async def b() -> int:
        return await hang(1)

    if kind == "pipeline":
        body = flow.pipeline("both", a, b)
    else:
        one, two = step(a), step(b)

        @flow.saga
        async def both() -> int:
            return sum(await gather(one(), two()))

        body = both

    async with anyio.create_task_group() as group:
        async with flow:
            if how == "start":
                await flow.start(body, id="b")
            else:
                group.start_soon(lambda: flow.execute(body, id="b"))
            for event in here:
                await event.wait()
            if how == "execute":
                group.cancel_scope.cancel()  # as a framework does when it stops
        assert sorted(cleaned) == [0, 1]


@pytest.mark.parametrize("parallel", [False, True])
async def test_what_a_step_raises_when_it_is_cut_off_is_no_failure(
    new_store: Callable[[], Store], parallel: bool
) -> None:
    log: list[str] = []

    def make(flow: Flowlet, *, hang: bool) -> tuple[Any, anyio.Event]:
        here = anyio.Event()

        @step
        async def charge() -> int:
            return 1

        @compensate(charge)
        async def refund() -> None:
            log.append("refund")

        @step(retry=3)
        async def ask() -> str:
            if hang:
                here.set()
                try:
                    await anyio.sleep_forever()
                except BaseException:
                    raise RuntimeError("the connection was closed") from None
            return "answer"

        @flow.saga
        async def body() -> str:
            await charge()
            return (await gather(ask(), charge()))[0] if parallel else await ask()

        return body, here

    flow = Flowlet(new_store(), grace=0)
    body, here = make(flow, hang=True)
    async with flow:
        await flow.start(body, id="b")
        await here.wait()
    flow = Flowlet(new_store())
    body, _ = make(flow, hang=False)
    async with flow:
        assert await flow.handle("b", body).result() == "answer"
        assert (await flow.handle("b").report()).steps["ask"].attempts == 1
    assert log == []


async def test_leaving_while_a_caller_executes_a_run_itself(new_store: Callable[[], Store]) -> None:
    gate = Gate("reserve 1")
    flow = Flowlet(new_store(), grace=0)
    buy = program(flow, gate)
    seen: list[BaseException] = []

    async def caller() -> None:
        try:
            await flow.execute(buy, id="b")
        except RunError as error:
            seen.append(error)

    async with anyio.create_task_group() as group:
        async with flow:
            group.start_soon(caller)
            await gate.here.wait()
        gate.open.set()  # the step goes on in the caller's task, but nothing after it
    assert "goes on when its Flowlet is entered again" in str(seen[0])
    assert gate.log == ["reserve 1"]
    async with flow:
        assert await flow.handle("b", buy).result() == "shipped"


async def test_a_body_whose_own_task_is_not_cancelled_may_raise_cancelled(flow: Flowlet, anyio_backend: str) -> None:
    if anyio_backend == "trio":
        pytest.skip("trio's Cancelled cannot be raised by hand")

    @step
    async def cut() -> None:
        raise asyncio.CancelledError

    @flow.saga
    async def body() -> None:
        await cut()

    async with flow:
        handle = await flow.start(body)
        with pytest.raises(RunError, match="awaited something that was cancelled"):
            await handle.result()
        assert await handle.status() == "failed"


# ------------------------------------------------------------------ errors
def test_failed_compensations_are_attached_below_the_last_cause_once() -> None:
    first, second = ValueError("first"), KeyError("second")
    second.__cause__ = first
    assert attach(second, (), ()) is second
    assert first.__cause__ is None
    assert attach(second, ("a",), (OSError("x"),)) is second
    assert isinstance(first.__cause__, CompensationFailed)


def test_causes_in_a_circle_do_not_hang() -> None:
    first, second = ValueError("first"), KeyError("second")
    first.__cause__, second.__cause__ = second, first
    assert attach(first, ("a",), (OSError("x"),)) is first
    assert isinstance(second.__cause__, CompensationFailed)


def test_the_error_of_a_recorded_end() -> None:
    failure = describe_failure(ValueError("no"))
    plain = ended_error(Ended("failed", 1.0, error=failure))
    assert isinstance(plain, ValueError)
    assert plain.__cause__ is None
    asked = Attention(
        "compensation_failed", 1.0, "why", steps=("charge",), errors=(describe_failure(KeyError("k")),), error=failure
    )
    group = asked_error(asked).__cause__
    assert isinstance(group, CompensationFailed)
    assert group.failed == ("charge",)
    parked = asked_error(Attention("needs_attention", 1.0, "why", steps=("charge",)))
    assert isinstance(parked, RunParked)
    assert parked.reason == "why"
    assert "ended as cancelled" in str(ended_error(Ended("cancelled", 1.0)))
