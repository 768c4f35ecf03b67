"""The local engine: starts and waits of an interpreter, retries and timeouts of steps, replay of a journal."""

from __future__ import annotations

import asyncio
import enum
import threading
from typing import Any

import anyio
import pytest
import tenacity

from flowlet import Flowlet, Retry, Run, gather, provided, step
from flowlet.errors import ConfigError, EncodeError, PayloadTooLarge, RunError, StepTimeout

pytestmark = pytest.mark.anyio


class Broken(Exception):
    pass


class Other(Exception):
    pass


def failing(times: int, **options: Any) -> tuple[Any, list[int]]:
    """Return a step that fails so often, and the attempts it has seen."""
    seen: list[int] = []

    @step(**options)
    async def flaky(run: Run = provided) -> int:
        seen.append(run.attempt)
        if len(seen) <= times:
            raise Broken(f"attempt {run.attempt}")
        return run.attempt

    return flaky, seen


# ------------------------------------------------------------------ retries
@pytest.mark.parametrize("parallel", [False, True])
async def test_failed_attempts_are_on_record_and_counted(flow: Flowlet, parallel: bool) -> None:
    flaky, seen = failing(2, retry=Retry(attempts=5, wait=0))

    @step
    async def other() -> int:
        return 0

    @flow.saga
    async def body() -> int:
        if parallel:
            return sum(await gather(flaky(), other()))
        return await flaky()  # type: ignore[no-any-return]

    async with flow:
        handle = await flow.start(body)
        assert await handle.result() == 3
        records = [(r.kind, r.attempt, r.error) async for r in handle.history() if r.step == "flaky"]
    assert seen == [1, 2, 3]
    assert records == [
        ("attempt_failed", 1, "Broken: attempt 1"),
        ("attempt_failed", 2, "Broken: attempt 2"),
        ("step_completed", 3, None),
    ]


@pytest.mark.parametrize("parallel", [False, True])
async def test_a_policy_of_so_many_attempts_is_so_many_in_total(flow: Flowlet, parallel: bool) -> None:
    flaky, seen = failing(99, retry=Retry(attempts=4, wait=0))
    steady, _ = failing(0, name="steady")

    @flow.saga
    async def body() -> None:
        await (gather(flaky(), steady()) if parallel else flaky())

    async with flow:
        handle = await flow.start(body)
        with pytest.raises(Broken, match="attempt 4"):
            await handle.result()
        report = await handle.report()
    assert seen == [1, 2, 3, 4]
    assert (report.steps["flaky"].status, report.steps["flaky"].attempts) == ("failed", 4)


async def test_only_named_exceptions_are_retried(flow: Flowlet) -> None:
    flaky, seen = failing(99, retry=Retry(attempts=4, wait=0, on=Other))

    @flow.saga
    async def body() -> None:
        await flaky()

    async with flow:
        with pytest.raises(Broken):
            await body()
    assert seen == [1]


async def test_a_number_stands_for_so_many_attempts(flow: Flowlet) -> None:
    flaky, seen = failing(1, retry=2)

    @flow.saga
    async def body() -> int:
        return await flaky()  # type: ignore[no-any-return]

    async with flow:
        assert await body() == 2
    assert seen == [1, 2]


async def test_tenacitys_own_objects_decide(flow: Flowlet) -> None:
    waits: list[int] = []

    def wait(state: tenacity.RetryCallState) -> float:
        waits.append(state.attempt_number)
        return 0.0

    stop = tenacity.stop_after_attempt(3)
    retry = tenacity.retry_if_exception_type(Broken)
    flaky, seen = failing(99, retry=Retry(wait=wait, stop=stop, retry=retry))  # type: ignore[arg-type]

    @flow.saga
    async def body() -> None:
        await flaky()

    async with flow:
        with pytest.raises(Broken, match="attempt 3"):
            await body()
    assert seen == [1, 2, 3]
    assert waits == [1, 2, 3]


@pytest.mark.parametrize("parallel", [False, True])
async def test_a_policy_that_raises_fails_the_step_with_what_it_raised(flow: Flowlet, parallel: bool) -> None:
    def wait(state: object) -> float:
        raise ZeroDivisionError("in wait")

    flaky, seen = failing(99, retry=Retry(wait=wait))  # type: ignore[arg-type]
    steady, _ = failing(0, name="steady")

    @flow.saga
    async def body() -> None:
        await (gather(flaky(), steady()) if parallel else flaky())

    async with flow:
        handle = await flow.start(body)
        with anyio.fail_after(20), pytest.raises(ZeroDivisionError, match="in wait") as caught:
            await handle.result()
        assert (await handle.report()).steps["flaky"].status == "failed"
    assert isinstance(caught.value.__context__, Broken)
    assert seen == [1]


async def test_the_drawn_delay_is_on_record(flow: Flowlet) -> None:
    flaky, _ = failing(1, retry=Retry(attempts=2, wait=0.02, jitter=0.01))

    @flow.saga
    async def body() -> int:
        return await flaky()  # type: ignore[no-any-return]

    async with flow:
        handle = await flow.start(body)
        await handle.result()
        failed = [r async for r in flow._open_runs.stream(handle.id)][1][1]
        ended = [r async for r in flow._open_runs.stream(handle.id)][2][1]
    delay = failed.delay  # type: ignore[union-attr]
    assert 0.02 <= delay <= 0.03
    assert ended.at - failed.at >= delay - 0.005


# ------------------------------------------------------------------ timeouts
@pytest.mark.parametrize("parallel", [False, True])
async def test_a_step_that_takes_too_long_is_cancelled(flow: Flowlet, parallel: bool) -> None:
    cleaned: list[int] = []

    @step(timeout=0.01)
    async def slow() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.append(1)

    steady, _ = failing(0, name="steady")

    @flow.saga
    async def body() -> None:
        await (gather(slow(), steady()) if parallel else slow())

    async with flow:
        handle = await flow.start(body)
        with pytest.raises(StepTimeout, match=r"step 'slow' did not end within 0\.01 s") as caught:
            await handle.result()
        assert (await handle.report()).steps["slow"].status == "failed"
    assert isinstance(caught.value, TimeoutError)
    assert cleaned == [1]


async def test_each_attempt_has_the_whole_time_and_a_timeout_is_retried_like_any_error(flow: Flowlet) -> None:
    seen: list[int] = []

    @step(timeout=0.01, retry=Retry(attempts=3, wait=0, on=TimeoutError))
    async def slow(run: Run = provided) -> int:
        seen.append(run.attempt)
        if run.attempt < 3:
            await anyio.sleep_forever()
        return run.attempt

    @flow.saga
    async def body() -> int:
        return await slow()

    async with flow:
        assert await body() == 3
    assert seen == [1, 2, 3]


async def test_a_timeout_of_the_steps_own_is_not_flowlets(flow: Flowlet) -> None:
    @step(timeout=20)
    async def own() -> None:
        with anyio.fail_after(0):
            await anyio.sleep_forever()

    @flow.saga
    async def body() -> str:
        try:
            await own()
        except StepTimeout:
            return "flowlet's"
        except TimeoutError:
            return "its own"
        return "none"

    async with flow:
        assert await body() == "its own"


async def test_a_plain_function_that_takes_too_long_is_left_behind_in_its_thread(flow: Flowlet) -> None:
    release = threading.Event()

    @step(timeout=0.01)
    def slow(n: int) -> int:
        release.wait(20)
        return n

    body = flow.saga("body", slow)
    try:
        async with flow:
            with pytest.raises(StepTimeout):
                await body(1)
    finally:
        release.set()


# ------------------------------------------------------------------ what steps are given and give
async def test_provided_values_are_made_once_and_only_when_needed(flow: Flowlet) -> None:
    made: list[int] = []

    class Gateway: ...

    def make_gateway() -> Gateway:
        made.append(1)
        return Gateway()

    make_gateway.__annotations__["return"] = Gateway
    assert flow.provide(make_gateway) is make_gateway
    seen: list[Gateway] = []

    @step
    async def use(gateway: Gateway = provided) -> None:
        seen.append(gateway)

    @flow.saga
    async def body() -> None:
        await use()
        await gather(use(), use())

    async with flow:
        assert made == []
        await body()
        await body()
    assert made == [1]
    assert len({id(g) for g in seen}) == 1
    assert len(seen) == 6


async def test_a_value_that_nothing_provides(flow: Flowlet) -> None:
    class Gateway: ...

    @step
    async def use(gateway: Gateway = provided) -> None: ...

    async with flow:

        @flow.saga  # too late to be found on entering
        async def body() -> None:
            await use()

        with pytest.raises(ConfigError, match=r"nothing provides .*Gateway: call flow\.provide"):
            await body()


async def test_a_result_that_is_too_large_for_the_store(flow: Flowlet) -> None:
    @step(retry=5)
    async def large(n: int) -> bytes:
        seen.append(n)
        return bytes(n)

    seen: list[int] = []

    @flow.saga
    async def body(n: int) -> int:
        return len(await large(n))

    async with flow:
        flow._open_runs.max_payload = 1000
        assert await body(900) == 900
        with pytest.raises(
            PayloadTooLarge, match=r"the result of step 'large' takes 1,[0-9]{3} bytes to store, and 1,000 are allowed"
        ):
            await body(1024)
    assert seen == [900, 1024]


async def test_the_outcome_of_a_step_is_what_a_replay_would_give(flow: Flowlet) -> None:
    class Number(enum.IntEnum):
        THREE = 3

    @step
    async def number() -> int:
        return Number.THREE

    @step
    async def pair() -> tuple[int, list[int]]:
        return (1, (2, 3))  # type: ignore[return-value]

    @step
    async def flag() -> int:
        return True

    kinds: list[Any] = []

    @flow.saga
    async def body() -> str:
        kinds.append(type(await number()))
        kinds.append(await pair())
        try:
            await flag()
        except Exception as error:
            return type(error).__name__
        return "none"

    async with flow:
        assert await body() == "DecodeError"
    assert kinds == [int, (1, [2, 3])]


async def test_times_of_records_never_go_backwards(flow: Flowlet) -> None:
    steady, _ = failing(0, name="steady")

    @flow.saga
    async def body() -> None:
        for _ in range(5):
            await steady()
        await gather(*[steady() for _ in range(5)])

    async with flow:
        before = await flow.store.now()
        handle = await flow.start(body)
        await handle.result()
        times = [r.at async for r in handle.history()]
        after = await flow.store.now()
    assert times == sorted(times)
    assert before - 0.1 <= times[0]
    assert times[-1] <= after + 0.1


# ------------------------------------------------------------------ the tasks of parallel steps
async def test_a_step_that_is_cancelled_before_its_task_has_begun(faulty_store: Any) -> None:
    # `good` and `bad` end in the same turn of the loop, so `late` is started and cancelled before it can begin.
    async def good(number: int) -> int:
        await anyio.lowlevel.checkpoint()
        return number

    async def bad(number: int) -> int:
        await anyio.lowlevel.checkpoint()
        raise Broken("at once")

    async def late(good: int) -> int:
        return good

    async def last(bad: int, late: int) -> int:
        return late

    flow = Flowlet(faulty_store)
    pipeline = flow.pipeline("pipeline", good, bad, late, last)
    async with flow:
        with anyio.fail_after(5), pytest.raises(Broken):
            await flow.execute(pipeline, 1)


async def test_a_parallel_step_that_awaits_what_was_cancelled_elsewhere(flow: Flowlet, anyio_backend: str) -> None:
    if anyio_backend == "trio":
        pytest.skip("trio's Cancelled cannot be raised by hand")

    @step
    async def awaits_a_cancelled_future() -> int:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        future.cancel()
        return await future

    @step
    async def other() -> int:
        return 1

    @flow.saga
    async def body() -> int:
        return sum(await gather(other(), awaits_a_cancelled_future()))

    async with flow:
        handle = await flow.start(body)
        with anyio.fail_after(5), pytest.raises(RunError, match="cancelled elsewhere"):
            await handle.result()
        assert (await handle.report()).steps["awaits_a_cancelled_future"].status == "failed"


async def test_an_argument_that_cannot_be_stored_stops_the_whole_gather(flow: Flowlet) -> None:
    done: list[str] = []

    @step
    async def act(things: list[int]) -> str:
        done.append("act")
        return "done"

    @step
    async def after() -> str:
        return "after"

    @flow.saga
    async def body() -> str:
        try:
            await gather(act([1]), act([object()]), act([2]))  # type: ignore[list-item]
        except EncodeError:
            return await after()
        raise AssertionError

    async with flow:
        handle = await flow.start(body)
        assert await handle.result() == "after"
        steps = (await handle.report()).steps
    assert done == []
    assert {key: report.status for key, report in steps.items()} == {"act": "cancelled", "after": "completed"}
