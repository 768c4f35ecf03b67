"""What running code sees of its run: step calls, gather, current_run, and values that a replay repeats."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import anyio
import pytest

from flowlet import Flowlet, Run, compensate, current_run, gather, provided, step
from flowlet.errors import RunError
from flowlet.store import Store

pytestmark = pytest.mark.anyio


class Broken(Exception):
    pass


@step
async def double(n: int) -> int:
    return 2 * n


# ------------------------------------------------------------------ gather
async def test_gather_runs_steps_at_the_same_time_and_keeps_the_order_of_its_arguments(flow: Flowlet) -> None:
    events = [anyio.Event() for _ in range(3)]
    done: list[int] = []

    @step
    async def wait(n: int) -> int:
        if n < 2:
            await events[n + 1].wait()  # each waits for the next one: they complete backwards
        events[n].set()
        done.append(n)
        return n

    @flow.saga
    async def body() -> list[int]:
        return list(await gather(wait(0), wait(1), wait(2)))

    async with flow:
        with anyio.fail_after(10):
            handle = await flow.start(body)
            assert await handle.result() == [0, 1, 2]
        assert done == [2, 1, 0]
        # keys follow the arguments, records the completion
        assert list((await handle.report()).steps) == ["wait#3", "wait#2", "wait"]


async def test_gather_of_nothing_and_of_one(flow: Flowlet) -> None:
    @flow.saga
    async def body() -> list[Any]:
        return [await gather(), await gather(double(2))]

    async with flow:
        assert await body() == [[], [4]]


async def test_gather_of_many(flow: Flowlet) -> None:
    @flow.saga
    async def body() -> int:
        return sum(await gather(*[double(n) for n in range(100)]))

    async with flow:
        assert await body() == 9900


async def test_gather_takes_methods_and_child_runs(flow: Flowlet) -> None:
    @flow.saga
    async def child(n: int) -> int:
        return await double(n)

    @flow.saga
    class Body:
        @step
        async def own(self, n: int) -> int:
            return n + 1

        async def __call__(self) -> list[int]:
            return list(await gather(self.own(1), child(2), double(3)))

    async with flow:
        assert await flow.execute(Body, id="b") == [2, 4, 6]
        assert await flow.handle("b/child").status() == "completed"


async def test_a_failing_step_cancels_and_awaits_its_siblings_and_undoes_what_is_done(flow: Flowlet) -> None:
    log: list[str] = []
    waiting = anyio.Event()

    @step
    async def book(name: str) -> str:
        return name

    @compensate(book)
    async def cancel(book: str) -> None:
        log.append(f"cancel {book}")

    @step
    async def endless() -> None:
        try:
            waiting.set()
            await anyio.sleep_forever()
        finally:
            log.append("cleaned up")

    @step
    async def fail() -> None:
        await waiting.wait()
        raise Broken

    @flow.saga
    async def trip() -> None:
        try:
            await gather(book("flight"), endless(), fail())
        finally:
            log.append("after gather")

    async with flow:
        handle = await flow.start(trip)
        with pytest.raises(Broken):
            await handle.result()
        assert log == ["cleaned up", "after gather", "cancel flight"]
        steps = {s.name: s.status for s in (await handle.report()).steps.values()}
        assert steps == {"book": "completed", "fail": "failed", "endless": "cancelled", "book~cancel": "completed"}


async def test_a_sibling_that_completes_although_cancelled_is_undone_too(flow: Flowlet) -> None:
    undone: list[str] = []
    waiting = anyio.Event()

    @step
    async def stubborn() -> str:
        try:
            waiting.set()
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            return "done"

    @compensate(stubborn)
    async def undo(stubborn: str) -> None:
        undone.append(stubborn)

    @step
    async def fail() -> None:
        await waiting.wait()
        raise Broken

    @flow.saga
    async def body() -> None:
        await gather(stubborn(), fail())

    async with flow:
        with pytest.raises(Broken):
            await body()
    assert undone == ["done"]


async def test_the_first_failure_counts(flow: Flowlet) -> None:
    first = anyio.Event()

    @step
    async def one() -> None:
        first.set()
        raise Broken("one")

    @step
    async def two() -> None:
        try:
            await first.wait()
            await anyio.sleep_forever()
        finally:
            raise KeyError("two")

    @flow.saga
    async def body() -> None:
        await gather(one(), two())

    async with flow:
        with pytest.raises(Broken, match="one"):
            await body()


async def test_a_body_may_catch_the_failure_of_a_gather_and_go_on(flow: Flowlet) -> None:
    @step
    async def fail() -> int:
        raise Broken

    @flow.saga
    async def body() -> int:
        try:
            await gather(double(1), fail())
        except Broken:
            return await double(5)
        return 0

    async with flow:
        assert await body() == 10


async def test_an_argument_that_cannot_be_stored_starts_none_of_them(flow: Flowlet) -> None:
    started: list[int] = []

    @step
    async def note(n: int) -> int:
        started.append(n)
        return n

    @flow.saga
    async def body() -> int:
        with pytest.raises(Exception, match="an argument of 'note' cannot be stored"):
            await gather(note(1), note(object()), note(3))  # type: ignore[arg-type]
        return await note(4)

    async with flow:
        handle = await flow.start(body)
        assert await handle.result() == 4
        assert started == [4]
        steps = {s.name: s.status for s in (await handle.report()).steps.values()}
        assert steps == {"note": "cancelled", "note#2": "completed"}


async def some_coroutine() -> int:
    return 1


@pytest.mark.parametrize(
    "make", [some_coroutine, lambda: anyio.sleep(0), lambda: 3], ids=["coroutine", "other", "value"]
)
async def test_only_step_calls_are_gathered_and_the_others_are_closed(flow: Flowlet, make: Callable[[], Any]) -> None:
    @flow.saga
    async def body() -> None:
        with pytest.raises(RunError, match=r"gather takes step calls, .* only, not .*: mark the function with @step"):
            await gather(double(1), make())

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "coroutine ... was never awaited"
        async with flow:
            await body()


async def test_gather_outside_of_a_run(flow: Flowlet) -> None:
    @step
    async def inside() -> None:
        with pytest.raises(RunError, match="gather works in the body of a run"):
            await gather(double(1), double(2))

    @flow.saga
    async def body() -> None:
        await inside()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RunError, match=r"anyio task group or asyncio\.gather"):
            await gather(double(1), double(2))
        async with flow:
            await body()


# ------------------------------------------------------------------ where step calls are what
async def test_a_step_inside_a_step_is_a_plain_call(flow: Flowlet) -> None:
    @step
    async def outer(n: int) -> int:
        inner = await double(n)
        async with anyio.create_task_group() as group:
            group.start_soon(double, 3)
        return inner + plain(1)

    @step
    def plain(n: int) -> int:
        return n

    @flow.saga
    async def body() -> list[int]:
        return [await outer(2), *await gather(outer(3), outer(4))]

    async with flow:
        handle = await flow.start(body)
        assert await handle.result() == [5, 7, 9]
        assert sorted((await handle.report()).steps) == ["outer", "outer#2", "outer#3"]


async def test_a_step_called_from_another_task_than_its_runs_names_gather(flow: Flowlet) -> None:
    @flow.saga
    async def body() -> str:
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(double, 1)
                group.start_soon(double, 2)
        except BaseExceptionGroup as group_error:
            kinds = {type(e) for e in group_error.exceptions}
            assert kinds == {RunError}
            return str(group_error.exceptions[0])
        return "no error"

    async with flow:
        handle = await flow.start(body)
        assert "step 'double' was called from another task than its run's" in await handle.result()
        assert "gather(f(x), g(y))" in await handle.result()
        assert list((await handle.report()).steps) == []


async def test_a_step_of_another_runs_body_in_the_same_task_belongs_to_that_run(flow: Flowlet) -> None:
    @flow.saga
    async def inner(n: int) -> int:
        return await double(n)

    @step
    async def through(n: int) -> int:
        return await inner(n) + await double(n)

    @flow.saga
    async def outer() -> int:
        return await through(1) + await double(10)

    async with flow:
        assert await flow.execute(outer, id="o") == 24
        outer_steps = list((await flow.handle("o").report()).steps)
        inner_steps = list((await flow.handle("o/through/inner").report()).steps)
    assert outer_steps == ["through", "double"]
    assert inner_steps == ["double"]


async def test_a_plain_step_in_a_body_says_how_to_call_it(flow: Flowlet) -> None:
    @step
    def plain(n: int) -> int:
        return n

    tools = {"plain": plain}  # where assembly cannot see it

    @flow.saga
    async def body() -> None:
        tools["plain"](1)

    async with flow:
        with pytest.raises(RunError, match="plain is a plain def, so a run's body cannot await it"):
            await body()


async def test_a_step_that_assembly_could_not_see_is_journaled_all_the_same(flow: Flowlet) -> None:
    @step
    async def hidden(n: int) -> int:
        return n

    @step
    async def loose(n: Any) -> int:
        return 1

    tools: dict[str, Any] = {"hidden": hidden, "loose": loose}

    @flow.saga
    async def body() -> int:
        with pytest.raises(Exception, match="parameter 'n' is annotated Any"):
            await tools["loose"](1)
        return await tools["hidden"](3)  # type: ignore[no-any-return]

    async with flow:
        handle = await flow.start(body)
        assert await handle.result() == 3
        assert list((await handle.report()).steps) == ["hidden"]


# ------------------------------------------------------------------ Run
async def test_current_run_outside_of_a_run() -> None:
    with pytest.raises(RunError, match="outside of a run"):
        current_run()


async def test_the_run_in_a_body_and_in_a_step(flow: Flowlet) -> None:
    seen: list[Any] = []

    @step
    async def look(run: Run = provided) -> None:
        here = current_run()
        seen.append((run.id, run.idempotency_key, run.attempt, here.idempotency_key, repr(run)))

    @flow.saga
    async def body() -> None:
        run = current_run()
        seen.append((run.id, run.idempotency_key, run.attempt))
        await look()
        await gather(look(), look())
        assert current_run() is run

    async with flow:
        await flow.execute(body, id="r")
    assert seen[0] == ("r", "r", 1)
    assert seen[1] == ("r", "r/look", 1, "r/look", "<Run 'r/look' attempt 1>")
    assert sorted(s[3] for s in seen[2:]) == ["r/look#2", "r/look#3"]
    with pytest.raises(RunError):
        current_run()


async def test_the_idempotency_key_is_the_same_in_each_attempt(flow: Flowlet) -> None:
    seen: list[Any] = []

    from flowlet import Retry

    @step(retry=Retry(attempts=3, wait=0))
    async def look(run: Run = provided) -> UUID:
        seen.append((run.idempotency_key, run.attempt, run.uuid(), run.random()))
        if run.attempt < 3:
            raise Broken
        return run.uuid()

    @flow.saga
    async def body() -> UUID:
        return await look()

    async with flow:
        second_draw = await flow.execute(body, id="r")
    assert [s[:2] for s in seen] == [("r/look", 1), ("r/look", 2), ("r/look", 3)]
    assert len({s[2:] for s in seen}) == 1  # the same draws in each attempt
    assert second_draw != seen[0][2]


async def test_draws_differ_at_every_call_in_every_step_and_run(flow: Flowlet) -> None:
    draws: list[UUID] = []
    numbers: list[float] = []

    @step
    async def draw(run: Run = provided) -> None:
        draws.extend([run.uuid(), run.uuid()])
        numbers.append(run.random())

    @flow.saga
    async def body() -> None:
        run = current_run()
        draws.extend([run.uuid(), run.uuid()])
        numbers.append(run.random())
        await draw()
        await draw()

    async with flow:
        await body()
        await body()
    assert len(set(draws)) == len(draws) == 12
    assert all(d.version == 4 for d in draws)
    assert len(set(numbers)) == 6
    assert all(0 <= n < 1 for n in numbers)


async def test_now_uuid_and_random_of_a_body_are_the_same_on_replay(new_store: Callable[[], Store]) -> None:
    seen: list[list[Any]] = []
    hang = anyio.Event()

    def program(flow: Flowlet, *, stop: bool) -> Any:
        @step
        async def first() -> int:
            return 1

        @step
        async def second() -> int:
            if stop:
                hang.set()
                await anyio.sleep_forever()
            return 2

        @flow.saga
        async def body(run: Run = provided) -> list[Any]:
            drawn: list[Any] = [run.uuid(), run.random(), run.now()]
            await first()
            drawn += [run.uuid(), run.random(), run.now()]
            seen.append(drawn)
            await second()
            return [run.now()]

        return body

    flow = Flowlet(new_store(), grace=0)
    body = program(flow, stop=True)
    async with flow:
        await flow.start(body, id="r")
        await hang.wait()
    flow = Flowlet(new_store())
    body = program(flow, stop=False)
    async with flow:
        (end,) = await flow.handle("r", body).result()
    assert seen[0] == seen[1]
    began, later = seen[0][2], seen[0][5]
    assert isinstance(began, datetime)
    assert began.tzinfo is UTC
    assert began <= later <= end
