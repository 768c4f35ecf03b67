"""Waiting for a time: it is stored, it costs nothing meanwhile, and it is never over too early."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import pytest

from flowlet import Flowlet, Retry, Run, gather, provided, step
from flowlet.core.run_records import TimerFired, TimerSet
from flowlet.errors import RunCancelled, RunError, RunParked, RunTimeout
from flowlet.store import Store
from flowlet.testing import Clock

pytestmark = pytest.mark.anyio

MONTH = timedelta(days=30)


@pytest.fixture
def new_store(timed_store: Callable[[], Store]) -> Callable[[], Store]:
    """Let the `flow` of these tests go by a clock which is moved by hand."""
    return timed_store


class Log:
    """What steps have done, over several lives of a process."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def build(self, flow: Flowlet, *, delay: Any = MONTH, version: int = 1) -> Any:
        """Assemble a run that does something, sleeps, and does something else."""

        @step
        async def act(what: str) -> str:
            self.lines.append(what)
            return what

        @flow.saga(version=version)
        async def sleeper(run: Run = provided) -> str:
            await act("before")
            await run.sleep(delay)
            return await act("after")

        return sleeper


@pytest.fixture
def log() -> Log:
    return Log()


async def reaches(flow: Flowlet, id: str, status: str) -> None:
    """Wait until a run stands at a status."""
    with anyio.fail_after(20):
        while await flow.handle(id).status() != status:
            await anyio.sleep(0.001)


async def timers(flow: Flowlet, id: str) -> list[TimerSet]:
    return [r for r in await flow._open_runs.records(id) if isinstance(r, TimerSet)]


async def test_a_month_passes_in_a_moment(flow: Flowlet, clock: Clock, log: Log) -> None:
    sleeper = log.build(flow)
    async with flow:
        handle = await flow.start(sleeper, id="r")
        await reaches(flow, "r", "waiting")
        began = clock.time
        assert (await timers(flow, "r"))[0].due == began + MONTH.total_seconds()
        head = await flow._open_runs.head("r")
        assert (head.owner, head.wake) == (None, began + MONTH.total_seconds())
        with anyio.fail_after(20):
            while flow._open_runs.live:
                await anyio.sleep(0.001)
        await clock.advance(MONTH - timedelta(seconds=2))
        await anyio.sleep(0.05)
        assert await handle.status() == "waiting"
        await clock.advance(2)
        with anyio.fail_after(20):
            assert await handle.result() == "after"
        kinds = [record.kind async for record in handle.history()]
        assert kinds == ["started", "step_completed", "waiting", "time_over", "step_completed", "completed"]
    assert log.lines == ["before", "after"]


async def test_five_restarts_do_not_lengthen_or_shorten_it(
    new_store: Callable[[], Store], clock: Clock, log: Log
) -> None:
    began = clock.time
    for life in range(6):
        flow = Flowlet(new_store())
        sleeper = log.build(flow)
        async with flow:
            if life == 0:
                await flow.start(sleeper, id="r")
            await reaches(flow, "r", "waiting")
            assert [t.due for t in await timers(flow, "r")] == [began + MONTH.total_seconds()]
            await anyio.sleep(0.02)
        await clock.advance(timedelta(days=4))
    assert log.lines == ["before"]
    flow = Flowlet(new_store())
    log.build(flow)
    async with flow:
        await clock.advance(timedelta(days=6))
        with anyio.fail_after(20):
            assert await flow.handle("r").result() == "after"
    assert log.lines == ["before", "after"]


async def test_a_clock_that_is_set_back_does_not_wake_it_early(
    new_store: Callable[[], Store], clock: Clock, log: Log
) -> None:
    flow = Flowlet(new_store())
    sleeper = log.build(flow, delay=100.0)
    async with flow:
        await flow.start(sleeper, id="r")
        await reaches(flow, "r", "waiting")
        due = (await timers(flow, "r"))[0].due
        clock.time -= 50
        for _ in range(14):
            await clock.advance(10)
            await anyio.sleep(0.01)
        assert clock.time == due - 10
        assert await flow.handle("r").status() == "waiting"
        clock.time = due
        with anyio.fail_after(20):
            assert await flow.handle("r").result() == "after"


async def test_until_a_time(flow: Flowlet, clock: Clock) -> None:
    at = datetime.fromtimestamp(clock.time, UTC) + MONTH

    @flow.saga
    async def late(run: Run = provided) -> str:
        await run.sleep_until(at)
        await run.sleep_until(datetime.fromtimestamp(5, UTC))  # is over
        return "done"

    async with flow:
        handle = await flow.start(late)
        await reaches(flow, handle.id, "waiting")
        assert (await timers(flow, handle.id))[0].due == at.timestamp()
        await clock.advance(MONTH)
        with anyio.fail_after(20):
            assert await handle.result() == "done"


async def test_a_short_one_is_waited_for_in_place(new_store: Callable[[], Store], clock: Clock) -> None:
    flow = Flowlet(new_store())
    lives: list[object] = []

    @flow.saga
    async def brief(run: Run = provided) -> int:
        lives.append(object())
        await run.sleep(0.5)
        return 1

    async with flow:
        handle = await flow.start(brief, id="r")
        with anyio.fail_after(20):
            while not await timers(flow, "r"):
                await anyio.sleep(0.001)
        await anyio.sleep(0.02)
        assert list(flow._open_runs.live) == ["r"]
        assert await handle.status() == "running"
        await clock.advance(0.5)
        with anyio.fail_after(20):
            assert await handle.result() == 1
    assert len(lives) == 1


async def test_in_real_time() -> None:
    flow = Flowlet()

    @flow.saga
    async def brief(seconds: float, run: Run = provided) -> float:
        before = run.now()
        await run.sleep(seconds)
        return (run.now() - before).total_seconds()

    async with flow:
        with anyio.fail_after(20):
            for seconds in (0.0, 0.05, 1.2):  # the last one leaves
                assert seconds <= await flow.execute(brief, seconds) < seconds + 5


async def test_several_at_once_end_in_the_order_of_their_times(flow: Flowlet, clock: Clock, log: Log) -> None:
    @step
    async def act(n: float) -> None:
        log.lines.append(str(n))

    @flow.saga
    async def one(n: float, run: Run = provided) -> None:
        await run.sleep(n)
        await act(n)

    @flow.saga
    async def some(run: Run = provided) -> None:
        await gather(*(one(n) for n in (300.0, 100.0, 200.0)))
        await gather(run.sleep(30), run.sleep(20), act(1.0))

    async with flow:
        handle = await flow.start(some, id="r")
        for _ in range(3):
            await reaches(flow, "r", "waiting")
            await clock.advance(100)
            await anyio.sleep(0.1)
        with anyio.fail_after(20):
            while len(await timers(flow, "r")) < 2:  # those of its own
                await anyio.sleep(0.001)
        await reaches(flow, "r", "waiting")
        await clock.advance(31)
        with anyio.fail_after(20):
            await handle.result()
        fired = [r.key for r in await flow._open_runs.records("r") if isinstance(r, TimerFired)]
    assert log.lines == ["100.0", "200.0", "300.0", "1.0"]
    assert fired == ["sleep:timer#2", "sleep:timer"]


async def test_a_replay_keeps_the_time_though_the_code_now_says_another(
    new_store: Callable[[], Store], clock: Clock, log: Log
) -> None:
    flow = Flowlet(new_store())
    async with flow:
        await flow.start(log.build(flow, delay=100.0), id="r")
        await reaches(flow, "r", "waiting")
    flow = Flowlet(new_store())
    log.build(flow, delay=900.0)
    async with flow:
        await clock.advance(100)
        with anyio.fail_after(20):
            assert await flow.handle("r").result() == "after"


async def test_code_that_waits_for_something_else_parks(new_store: Callable[[], Store], clock: Clock, log: Log) -> None:
    flow = Flowlet(new_store())
    async with flow:
        await flow.start(log.build(flow, delay=100.0), id="r")
        await reaches(flow, "r", "waiting")
    flow = Flowlet(new_store())

    @step
    async def act(what: str) -> str:
        return what

    @flow.saga(name="sleeper")
    async def other(run: Run = provided) -> str:
        await act("before")
        return await run.receive("word", type=str)

    async with flow:
        await clock.advance(100)
        with (
            anyio.fail_after(20),
            pytest.raises(RunParked, match=r"a signal for 'word:receive'.*a time, 'sleep:timer'"),
        ):
            await flow.handle("r").result()


async def test_cancelled_while_it_waits(flow: Flowlet, clock: Clock, log: Log) -> None:
    sleeper = log.build(flow)
    async with flow:
        handle = await flow.start(sleeper, id="r")
        await reaches(flow, "r", "waiting")
        await handle.cancel()
        with anyio.fail_after(20), pytest.raises(RunCancelled):
            await handle.result()
        await clock.advance(2 * MONTH)
        await anyio.sleep(0.02)
    assert log.lines == ["before"]


async def test_a_deadline_that_comes_first(flow: Flowlet, clock: Clock, log: Log) -> None:
    sleeper = log.build(flow)
    async with flow:
        handle = await flow.start(sleeper, id="r", deadline=timedelta(days=10))
        await reaches(flow, "r", "waiting")
        await clock.advance(timedelta(days=10))
        with anyio.fail_after(20), pytest.raises(RunTimeout):
            await handle.result()
    assert log.lines == ["before"]


@pytest.mark.parametrize("seconds", [0.9, 900])
async def test_a_timeout_of_ones_own_around_it_is_an_error(flow: Flowlet, seconds: float) -> None:
    @flow.saga
    async def hasty(run: Run = provided) -> None:
        with anyio.move_on_after(0.01 if seconds < 1 else 5):
            await run.sleep(seconds)

    async with flow:
        handle = await flow.start(hasty)
        with anyio.fail_after(20), pytest.raises(RunError, match="cut off step 'sleep:timer'"):
            await handle.result()


async def test_the_pause_before_another_attempt_goes_by_the_same_clock(flow: Flowlet, clock: Clock, log: Log) -> None:
    @step(retry=Retry(attempts=2, wait=timedelta(hours=1), max_wait=timedelta(hours=2)))
    async def flaky() -> str:
        log.lines.append("try")
        if len(log.lines) == 1:
            raise OSError("not now")
        return "done"

    @flow.saga
    async def body() -> str:
        return await flaky()

    async with flow:
        handle = await flow.start(body)
        with anyio.fail_after(20):
            while not log.lines:
                await anyio.sleep(0.001)
        await anyio.sleep(0.05)
        assert log.lines == ["try"]
        await clock.advance(timedelta(hours=1))
        with anyio.fail_after(20):
            assert await handle.result() == "done"


@pytest.mark.parametrize("delay", [-1, float("nan"), float("inf"), "5", True, None, timedelta(days=-1)])
async def test_what_is_no_delay(flow: Flowlet, delay: Any) -> None:
    @flow.saga
    async def wrong(run: Run = provided) -> None:
        await run.sleep(delay)

    async with flow:
        with pytest.raises(RunError, match=r"sleep\(\): must be"):
            await flow.execute(wrong)


@pytest.mark.parametrize("at", [datetime(2030, 1, 1), 5, "tomorrow"])  # noqa: DTZ001 - that is what is wrong with it
async def test_what_is_no_time(flow: Flowlet, at: Any) -> None:
    @flow.saga
    async def wrong(run: Run = provided) -> None:
        await run.sleep_until(at)

    async with flow:
        with pytest.raises(RunError, match="takes a datetime with a timezone"):
            await flow.execute(wrong)


async def test_in_a_step_there_is_anyio(flow: Flowlet) -> None:
    @step
    async def act(run: Run = provided) -> None:
        await run.sleep(1)

    @flow.saga
    async def wrong() -> None:
        await act()

    async with flow:
        with pytest.raises(RunError, match=r"sleep\(\) works in the body"):
            await flow.execute(wrong)


async def test_from_another_task_it_is_refused(flow: Flowlet) -> None:
    @flow.saga
    async def wrong(run: Run = provided) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(run.sleep, 0.1)

    async with flow:
        with pytest.raises((RunError, ExceptionGroup)) as caught:
            await flow.execute(wrong)
        assert "from another task" in str(getattr(caught.value, "exceptions", [caught.value])[0])


async def test_a_fork_has_the_times_of_its_origin(flow: Flowlet, clock: Clock, log: Log) -> None:
    @step
    async def act(what: str) -> str:
        log.lines.append(what)
        return what

    @flow.saga
    async def naps(run: Run = provided) -> str:
        await run.sleep(100)
        await act("one")
        await run.sleep(100)
        return await act("two")

    async with flow:
        handle = await flow.start(naps, id="r")
        for count in (1, 2):
            with anyio.fail_after(20):
                while len(await timers(flow, "r")) < count:
                    await anyio.sleep(0.001)
            await reaches(flow, "r", "waiting")
            await clock.advance(100)
        with anyio.fail_after(20):
            await handle.result()
            fork = await handle.fork(from_step="act#2", id="f")
            assert await fork.result() == "two"
    assert log.lines == ["one", "two", "two"]
