"""What is done whatever happened: after success, failure, cancellation and in time, in order, each once."""

from __future__ import annotations

import threading
from datetime import timedelta
from typing import Any, cast

import anyio
import pytest

from flowlet import Flowlet, Registry, Retry, compensate, current_run, step
from flowlet.core.codec import pack
from flowlet.core.definitions import Context
from flowlet.core.engine import Decided, StepCall
from flowlet.core.failures import Failure, describe_failure
from flowlet.errors import DefinitionError, RunCancelled, RunFinished, RunTimeout
from flowlet.runtime.handle import Handle

pytestmark = pytest.mark.anyio


class Broken(Exception):
    pass


class World:
    """What was done, in order."""

    def __init__(self) -> None:
        self.done: list[Any] = []


@pytest.fixture
def world() -> World:
    return World()


async def connect(n: int) -> str:
    return f"connection {n}"


async def fill(connect: str, n: int) -> int:
    if n < 0:
        raise Broken(f"fill {n}")
    return n


def closers(world: World) -> list[Any]:
    async def close(connect: str | None) -> None:
        world.done.append(("close", connect))

    async def tell(fill: int | None, n: int, error: Exception | None) -> str:
        world.done.append(("tell", fill, n, repr(error)))
        return f"told {n}"

    return [close, tell]


async def kinds(handle: Handle[Any]) -> list[tuple[str, str | None]]:
    return [(r.kind, r.step) async for r in handle.history()]


# ------------------------------------------------------------------ every way to end
async def test_after_success(flow: Flowlet, world: World) -> None:
    pipe = flow.pipeline("p", connect, fill, finally_=closers(world))
    async with flow:
        handle = await flow.start(pipe, 1, id="r")
        assert await handle.result() == 1
        assert world.done == [("close", "connection 1"), ("tell", 1, 1, "None")]
        report = await handle.report()
        assert report.status == "completed"
        assert [(s.name, s.value, s.status) for s in report.steps.values()] == [
            ("connect", "connection 1", "completed"),
            ("fill", 1, "completed"),
            ("close", None, "completed"),
            ("tell", "told 1", "completed"),
        ]
        assert await pipe(2) == 2


async def test_after_a_failure(flow: Flowlet, world: World) -> None:
    pipe = flow.pipeline("p", connect, fill, finally_=closers(world))
    async with flow:
        handle = await flow.start(pipe, -1)
        with pytest.raises(Broken, match="fill -1"):
            await handle.result()
        assert world.done == [("close", "connection -1"), ("tell", None, -1, "Broken('fill -1')")]
        assert await handle.status() == "failed"
        assert [kind for kind in await kinds(handle) if kind[0] != "step_completed"] == [
            ("started", None),
            ("step_failed", "fill"),
            ("compensating", "compensating"),
            ("failed", None),
        ]
        with pytest.raises(Broken):
            await pipe(-2)


@pytest.mark.parametrize("reason", ["cancel", "deadline", "timeout"])
async def test_after_a_cancellation_and_when_time_is_over(flow: Flowlet, world: World, reason: str) -> None:
    working = anyio.Event()

    async def work(connect: str) -> int:
        working.set()
        await anyio.sleep_forever()
        return 1

    limits: dict[str, Any] = {} if reason == "cancel" else {reason: timedelta(seconds=0.2)}
    pipe = flow.pipeline("p", connect, work, finally_=closers_of(world), **limits)
    async with flow:
        handle = await flow.start(pipe, 1)
        with anyio.fail_after(10):
            await working.wait()
            if reason == "cancel":
                await handle.cancel()
            with pytest.raises(RunCancelled if reason == "cancel" else RunTimeout):
                await handle.result()
        assert world.done == [("close", "connection 1", "RunCancelled" if reason == "cancel" else "RunTimeout")]
        assert await handle.status() == ("cancelled" if reason == "cancel" else "failed")
        report = (await handle.report()).steps
        assert (report["work"].status, report["close"].status) == ("cancelled", "completed")


def closers_of(world: World) -> Any:
    async def close(connect: str | None, error: Exception | None) -> None:
        world.done.append(("close", connect, type(error).__name__))

    return close


async def test_the_result_of_a_step_that_ended_as_the_run_was_told_is_known(flow: Flowlet, world: World) -> None:
    working, go = threading.Event(), threading.Event()

    def connect(n: int) -> str:  # in a thread, which cannot be cut off
        working.set()
        go.wait(10)
        return f"connection {n}"

    async def fill(connect: str) -> int:
        return 1

    alone = flow.pipeline("alone", connect, fill, finally_=closers_of(world))

    async def other(n: int) -> int:
        await anyio.sleep_forever()
        return n

    beside = flow.pipeline("beside", other, connect, fill, finally_=closers_of(world))
    async with flow:
        for pipe in (alone, beside):
            working.clear()
            go.clear()
            handle = await flow.start(pipe, 1)
            await anyio.to_thread.run_sync(working.wait)
            await handle.cancel()  # the run is told, and waits for the thread
            go.set()
            with pytest.raises(RunCancelled):
                await handle.result()
    assert world.done == [("close", "connection 1", "RunCancelled")] * 2


async def test_the_result_of_a_step_that_ended_as_another_failed_is_known(flow: Flowlet, world: World) -> None:
    working, go = threading.Event(), threading.Event()

    def connect(n: int) -> str:
        working.set()
        go.wait(10)
        return f"connection {n}"

    async def bad(n: int) -> int:
        await anyio.to_thread.run_sync(working.wait)
        threading.Timer(0.05, go.set).start()
        raise Broken

    pipe = flow.pipeline("p", connect, bad, finally_=closers_of(world))
    async with flow:
        with pytest.raises(Broken):
            await pipe(1)
    assert world.done == [("close", "connection 1", "Broken")]


async def test_after_a_condition_that_raises(flow: Flowlet, world: World) -> None:
    pipe = flow.pipeline("p", connect, fill, when={fill: lambda n: 1 / n > 0}, finally_=closers_of(world))
    async with flow:
        with pytest.raises(ZeroDivisionError):
            await pipe(0)
    assert world.done == [("close", "connection 0", "ZeroDivisionError")]


async def test_a_result_that_cannot_be_had_is_none(flow: Flowlet, world: World) -> None:
    pipe = flow.pipeline("p", connect, fill, when={connect: lambda n: n > 5}, finally_=closers(world))
    async with flow:
        assert await pipe(1) is None
    assert world.done == [("close", None), ("tell", None, 1, "None")]


async def test_the_list_of_results_for_each_item(flow: Flowlet, world: World) -> None:
    async def numbers(n: int) -> list[int]:
        return list(range(n))

    async def half(numbers: int) -> int:
        if numbers == 3:
            raise Broken
        return numbers

    async def close(half: list[int] | None, numbers: list[int] | None) -> None:
        world.done.append((half, numbers))

    pipe = flow.pipeline("p", numbers, half, each={half: "numbers"}, finally_=close)
    async with flow:
        assert await pipe(2) == [0, 1]
        with pytest.raises(Broken):
            await pipe(4)
    assert world.done == [([0, 1], [0, 1]), (None, [0, 1, 2, 3])]


async def test_definitions_are_run_too(flow: Flowlet, world: World) -> None:
    @step
    async def note(n: int, fill: int | None) -> None:
        world.done.append((n, fill))

    closing = flow.pipeline("closing", note)
    pipe = flow.pipeline("p", connect, fill, finally_=[closing])
    async with flow:
        assert await flow.execute(pipe, 3, id="r") == 3
        assert await flow.handle("r/~closing").status() == "completed"
        with pytest.raises(Broken):
            await pipe(-3)
    assert world.done == [(3, 3), (-3, None)]


# ------------------------------------------------------------------ failures among them
def failing(world: World) -> list[Any]:
    async def one(n: int) -> None:
        world.done.append("one")
        raise KeyError("one")

    def two(n: int) -> None:
        world.done.append("two")

    async def three(n: int) -> None:
        world.done.append("three")
        raise ValueError("three")

    return [one, two, three]


async def test_one_that_fails_does_not_stop_the_others_and_fails_the_pipeline(flow: Flowlet, world: World) -> None:
    pipe = flow.pipeline("p", connect, finally_=failing(world))
    async with flow:
        handle = await flow.start(pipe, 1)
        with pytest.raises(KeyError, match="one") as caught:
            await handle.result()
        assert caught.value.__notes__ == ["finally_ step 'three' failed with ValueError: three"]
        assert world.done == ["one", "two", "three"]
        assert await handle.status() == "failed"
        assert {name: s.status for name, s in (await handle.report()).steps.items()} == {
            "connect": "completed",
            "one": "failed",
            "two": "completed",
            "three": "failed",
        }


async def test_what_the_pipeline_failed_with_stands(flow: Flowlet, world: World) -> None:
    pipe = flow.pipeline("p", connect, fill, finally_=failing(world))
    async with flow:
        handle = await flow.start(pipe, -1, id="r")
        for waiting in (handle, flow.handle("r")):
            with pytest.raises(Broken) as caught:
                await waiting.result()
            assert caught.value.__notes__ == [
                "finally_ step 'one' failed with KeyError: 'one'",
                "finally_ step 'three' failed with ValueError: three",
            ]
        assert world.done == ["one", "two", "three"]


async def test_they_have_attempts_and_timeouts_of_their_own(flow: Flowlet, world: World) -> None:
    @step(retry=Retry(attempts=3, wait=0))
    async def flaky(n: int) -> None:
        world.done.append(current_run().attempt)
        if current_run().attempt < 3:
            raise Broken

    @step(timeout=0.01)
    async def slow(n: int) -> None:
        await anyio.sleep_forever()

    pipe = flow.pipeline("p", connect, finally_=[flaky, slow])
    async with flow:
        with pytest.raises(TimeoutError):
            await pipe(1)
    assert world.done == [1, 2, 3]


# ------------------------------------------------------------------ orders meanwhile
@pytest.mark.parametrize("n", [1, -1])
async def test_a_run_that_is_told_to_end_while_they_are_done_does_them_all(flow: Flowlet, world: World, n: int) -> None:
    closing, go = anyio.Event(), anyio.Event()

    async def slow(connect: str | None) -> None:
        closing.set()
        await go.wait()
        world.done.append("slow")

    async def last(n: int) -> None:
        world.done.append("last")

    pipe = flow.pipeline("p", connect, fill, finally_=[slow, last])
    async with flow:
        handle = await flow.start(pipe, n)
        with anyio.fail_after(10):
            await closing.wait()
            await handle.cancel()
            go.set()
            if n > 0:
                assert await handle.result() == 1
            else:
                with pytest.raises(Broken):
                    await handle.result()
        assert world.done == ["slow", "last"]
        with pytest.raises(RunFinished):
            await handle.cancel()


async def test_the_caller_that_goes_away_leaves_it_to_the_flowlet(flow: Flowlet, world: World) -> None:
    closing, go = anyio.Event(), anyio.Event()

    async def slow(connect: str | None) -> None:
        closing.set()
        await go.wait()
        world.done.append("slow")

    pipe = flow.pipeline("p", connect, finally_=slow)
    async with flow:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: flow.execute(pipe, 1, id="r"))
            await closing.wait()
            group.cancel_scope.cancel()
        go.set()
        assert await flow.handle("r").result() == "connection 1"
    assert world.done == ["slow"]


class Engine:
    """As much of an engine as closing steps need; an operator has the run undone while one of them is under way."""

    committed = False

    def __init__(self, cut_at: str) -> None:
        self.cut_at = cut_at
        self.done: list[str] = []

    def obey(self) -> None: ...

    def note(self, key: str, value: bytes) -> bytes:
        self.done.append(key)
        return value

    def describe(self, error: Exception) -> Failure:
        return describe_failure(error)

    async def perform(self, call: StepCall) -> bytes:
        if call.key == self.cut_at:
            self.cut_at = ""
            raise Decided(Broken("an operator says so"))
        self.done.append(call.key)
        return pack(None)


async def test_what_was_done_on_the_way_forward_is_not_done_again_on_the_way_back() -> None:
    async def only(n: int) -> None: ...
    async def one(n: int) -> None: ...
    async def two(n: int) -> None: ...
    async def three(n: int) -> None: ...

    registry = Registry()
    registry.pipeline("p", only, finally_=[one, two, three])
    engine = Engine("~two")
    context = Context(cast(Any, engine), lambda: None)
    interpretation = registry.definitions["p", "1"].interpret(context, (1,))
    with pytest.raises(Decided) as decision:
        await interpretation.forward()
    assert interpretation.undoes
    await interpretation.backward(decision.value.error)
    assert engine.done == ["only", "~one", "compensating", "~two", "~three"]
    assert not interpretation.undoes


# ------------------------------------------------------------------ faults
def faults(flow: Flowlet, *finally_: Any) -> list[str]:
    with pytest.raises(DefinitionError) as caught:
        flow.pipeline("p", connect, fill, finally_=finally_)
    return list(caught.value.problems)


async def test_parameters_that_cannot_be_given(flow: Flowlet) -> None:
    async def close(conect: str | None, fill: int, error: Exception, n: str) -> None: ...

    async def tell(fill: str | None, extra: int = 3) -> None: ...

    assert faults(flow, close, tell) == [
        "p: finally_= step 'close': parameter 'conect' is provided by nothing; did you mean 'connect'?; it may take n, "
        "connect, fill, error",
        "p: finally_= step 'close': parameter 'fill' must take None as well, when step 'fill' has no result: "
        "`int | None`",
        "p: finally_= step 'close': parameter 'error' must take None as well, when nothing failed: `Exception | None`",
        "p: finally_= step 'close': takes n: str, but 'n' is int",
        "p: finally_= step 'tell': takes fill: str | None, but 'fill' is int",
    ]


async def test_what_cannot_be_done_in_any_case(flow: Flowlet) -> None:
    @step(at_most_once=True)
    async def once(n: int) -> None: ...

    @step
    async def made(n: int) -> int:
        return n

    @compensate(made)
    async def unmade(made: int) -> None: ...

    def wild(*n: int) -> None: ...

    text = "must be a function, or a step that may be repeated and has no compensation"
    assert faults(flow, once, made, wild, 3, fill) == [
        f"p: finally_= step 'once': {text}",
        f"p: finally_= step 'made': {text}",
        "p: finally_= step 'wild': takes *args or **kwargs; name what it takes",
        "p: finally_= has 3, which is no function",
        "p: finally_= step 'fill': parameter 'connect' must take None as well, when step 'connect' has no result: "
        "`str | None`",
        "p: has two steps named 'fill', one of them in finally_=; rename one",
    ]
