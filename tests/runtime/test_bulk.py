"""Bulk operations without an id: every item once, failures by name, nothing read ahead, nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import operator
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import anyio
import pytest

from flowlet import Flowlet, Retry, Run, current_run, provided, step
from flowlet.config import BulkConfig, Config
from flowlet.core.bulk import Progress
from flowlet.errors import BulkFailed, ConfigError, DefinitionError, RunCancelled, RunError, RunTimeout, StepTimeout

pytestmark = pytest.mark.anyio

ONCE = Config(bulk=BulkConfig(retry_attempts=1))
"""What fails here fails at once, unless a test says otherwise."""

flow = Flowlet(config=ONCE)
Until = Callable[[Callable[[], Any]], Any]


async def double(n: int) -> int:
    return 2 * n


async def odd_ones_fail(n: int) -> int:
    await anyio.lowlevel.checkpoint()
    if n % 2:
        raise ValueError(f"{n} is odd")
    return n


async def count_to(n: int) -> AsyncIterator[int]:
    for number in range(n):
        yield number


class Gauge:
    """How many are inside at once."""

    def __init__(self) -> None:
        self.now = self.most = self.begun = 0

    async def __call__(self, n: int) -> None:
        self.begun += 1
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await anyio.sleep(0.001)
        finally:
            self.now -= 1


# ---------------------------------------------------------------- the report
@pytest.mark.parametrize("concurrency", [1, 5, 64])
@pytest.mark.parametrize("items", [range(0), range(1), range(100)], ids=len)
async def test_every_item_is_done_once(items: range, concurrency: int) -> None:
    seen: list[int] = []

    async def note(n: int) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(n)

    report = await flow.bulk(note, items, concurrency=concurrency)
    assert sorted(seen) == list(items)
    assert (report.status, report.total, report.succeeded, report.failed) == ("completed", len(items), len(items), 0)
    assert (report.errors, report.left) == ((), 0)


async def test_a_failure_names_index_and_item_and_fails_nothing_else() -> None:
    report = await flow.bulk(odd_ones_fail, range(10, 20), concurrency=3)
    assert (report.status, report.succeeded, report.failed) == ("completed", 5, 5)
    assert [(e.index, e.item, str(e.error)) for e in report.errors] == [
        (i, i + 10, f"{i + 10} is odd") for i in (1, 3, 5, 7, 9)
    ]


async def test_so_many_at_once_and_no_more() -> None:
    gauge = Gauge()
    await flow.bulk(gauge, range(50), concurrency=7)
    assert (gauge.most, gauge.begun) == (7, 50)


async def test_the_report_tells_times_and_says_all_that_in_its_text() -> None:
    async def slow_at_times(n: int) -> None:
        if n == 7:
            raise KeyError("seven")
        if n >= 90:
            await anyio.sleep(0.05)

    report = await flow.bulk(slow_at_times, range(100), concurrency=10)
    assert report.p50 < 0.01
    assert 0.045 < report.p99 < 1
    assert report.seconds >= 0.05
    assert report.rate == pytest.approx(100 / report.seconds)
    text = str(report)
    assert text.startswith("completed: 100 of 100 items in ")
    assert "1 failed" in text
    assert "p99" in text
    assert "item 7 (7): KeyError: 'seven'" in text


async def test_a_report_of_many_errors_shows_some_of_them() -> None:
    text = str(await flow.bulk(odd_ones_fail, range(100)))
    assert "... and 40 more" in text


# ---------------------------------------------------------------- what items may be
async def test_items_come_from_an_async_iterator_always_pulled_by_one_task() -> None:
    tasks = set()

    async def tell() -> AsyncIterator[int]:
        for number in range(20):
            tasks.add(anyio.get_current_task().id)
            await anyio.lowlevel.checkpoint()
            yield number

    report = await flow.bulk(double, tell(), concurrency=4)
    assert (report.total, report.succeeded) == (20, 20)
    assert len(tasks) == 1


async def test_items_may_be_endless_if_one_leaves() -> None:
    def endless() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    found = []
    async with flow.bulk(double, endless()) as outcomes:
        async for outcome in outcomes:
            found.append(outcome.index)
            if len(found) == 30:
                break
    assert len(set(found)) == 30


@pytest.mark.parametrize("as_async", [False, True])
async def test_an_item_is_pulled_only_when_a_worker_is_free(as_async: bool, until: Until) -> None:
    pulled = 0
    gate = anyio.Event()

    def tell() -> Iterator[int]:
        nonlocal pulled
        for number in range(100):
            pulled += 1
            yield number

    async def tell_async() -> AsyncIterator[int]:
        for number in tell():
            yield number

    begun = 0

    async def wait(n: int) -> None:
        nonlocal begun
        begun += 1
        await gate.wait()

    async with anyio.create_task_group() as group:
        bulk = flow.bulk(wait, tell_async() if as_async else tell(), concurrency=6)
        group.start_soon(bulk._finish)
        await until(lambda: begun == 6)
        await anyio.wait_all_tasks_blocked()
        assert pulled == 6
        gate.set()
    assert pulled == begun == 100


@pytest.mark.parametrize("ordered", [False, True])
async def test_a_slow_consumer_holds_the_items_up(ordered: bool) -> None:
    pulled = 0

    def tell() -> Iterator[int]:
        nonlocal pulled
        for number in range(1000):
            pulled += 1
            yield number

    taken = 0
    async with flow.bulk(double, tell(), concurrency=4, ordered=ordered) as outcomes:
        async for _ in outcomes:
            taken += 1
            await anyio.wait_all_tasks_blocked()
            assert pulled <= taken + 2 * 4
            if taken == 50:
                break


@pytest.mark.parametrize("as_async", [False, True])
async def test_broken_items_break_the_bulk_after_what_was_begun_has_ended(as_async: bool) -> None:
    ended = []

    def tell() -> Iterator[int]:
        yield from range(5)
        raise OSError("the file is damaged")

    async def tell_async() -> AsyncIterator[int]:
        for number in tell():
            yield number

    async def slow(n: int) -> None:
        await anyio.sleep(0.01)
        ended.append(n)

    with pytest.raises(OSError, match="the file is damaged"):
        await flow.bulk(slow, tell_async() if as_async else tell(), concurrency=3)
    assert sorted(ended) == list(range(5))


async def test_an_async_generator_is_closed_when_one_leaves() -> None:
    closed = []

    async def tell() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.append(True)

    async with flow.bulk(double, tell()) as outcomes:
        async for _ in outcomes:
            break
    assert closed == [True]


# ---------------------------------------------------------------- outcomes
async def test_outcomes_come_as_items_end() -> None:
    async def wait(seconds: float) -> float:
        await anyio.sleep(seconds)
        return seconds

    found = [o.index async for o in flow.bulk(wait, [0.05, 0.0, 0.02])]
    assert found == [1, 2, 0]


async def test_outcomes_in_the_order_of_the_items() -> None:
    async def wait(n: int) -> int:
        await anyio.sleep(0.001 * (n * 7 % 5))
        return n

    found = [o.value async for o in flow.bulk(wait, range(50), ordered=True, concurrency=8)]
    assert found == list(range(50))


async def test_an_outcome_raises_its_items_error_when_asked_for_the_value() -> None:
    outcomes = {o.index: o async for o in flow.bulk(odd_ones_fail, range(4))}
    assert outcomes[2].value == outcomes[2].item == 2
    assert outcomes[2].error is None
    assert isinstance(outcomes[3].error, ValueError)
    with pytest.raises(ValueError, match="3 is odd"):
        _ = outcomes[3].value


async def test_the_report_can_be_had_after_the_outcomes() -> None:
    async with flow.bulk(odd_ones_fail, range(10)) as outcomes:
        found = [o async for o in outcomes]
    report = await outcomes
    assert (len(found), report.failed, report.status) == (10, 5, "completed")
    assert await outcomes is report


async def test_awaiting_a_bulk_that_is_iterated_over_does_the_rest() -> None:
    bulk = flow.bulk(double, range(100), concurrency=2)
    async for _ in bulk:
        break
    assert (await bulk).succeeded == 100


async def test_an_awaited_bulk_has_no_outcomes_to_iterate_over() -> None:
    bulk = flow.bulk(double, range(3))
    await bulk
    with pytest.raises(RunError, match="was awaited"):
        async for _ in bulk:
            pass


# ---------------------------------------------------------------- leaving, and being cancelled
async def test_leaving_early_sees_what_is_under_way_end() -> None:
    gauge = Gauge()
    async with flow.bulk(gauge, range(1000), concurrency=5) as outcomes:
        async for _ in outcomes:
            break
    assert gauge.now == 0
    report = await outcomes
    assert report.status == "cancelled"
    assert 1 <= report.succeeded < 20


async def test_dropping_the_iterator_cancels_what_is_under_way(until: Until) -> None:
    gauge = Gauge()
    async for _ in flow.bulk(gauge, range(1000), concurrency=5):
        break
    gc.collect()
    await until(lambda: gauge.now == 0)
    begun = gauge.begun
    await anyio.sleep(0.01)
    assert gauge.begun == begun < 20


@pytest.mark.parametrize("id", [None, "june"])
async def test_cancelling_it_gives_a_report_of_what_was_done(id: str | None, until: Until) -> None:
    done = []

    async def hang_after_ten(n: int) -> int:
        if n >= 10:
            await anyio.sleep_forever()
        done.append(n)
        return n

    reports = []
    async with Flowlet(config=ONCE) as mine:
        bulk = mine.bulk(hang_after_ten, range(100), id=id)
        with pytest.raises(RunError, match="has not begun"):
            bulk.cancel()

        async def wait() -> None:
            reports.append(await bulk)

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await until(lambda: len(done) == 10)
            bulk.cancel()
        assert (reports[0].status, reports[0].succeeded, reports[0].left) == ("cancelled", 10, 90)
        bulk.cancel()
        assert await bulk is reports[0]
        if id is not None:
            assert await mine.handle(id).status() == "cancelled"


@pytest.mark.parametrize("id", [None, "june"])
@pytest.mark.parametrize("as_async", [False, True])
async def test_cancelling_it_before_the_first_item(id: str | None, as_async: bool) -> None:
    begun = []

    async def note(n: int) -> int:
        begun.append(n)
        return n

    async with Flowlet(config=ONCE) as mine, mine.bulk(note, count_to(9) if as_async else range(9), id=id) as bulk:
        bulk.cancel()
        assert (await bulk).status == "cancelled"
    assert begun == []


@pytest.mark.parametrize("as_outcomes", [False, True])
async def test_nothing_outlives_a_cancelled_caller(as_outcomes: bool) -> None:
    gauge = Gauge()

    async def forever(n: int) -> None:
        await gauge(n)
        await anyio.sleep_forever()

    async def tell() -> AsyncIterator[int]:
        for number in range(1000):
            yield number

    gauge.now = 0
    with anyio.move_on_after(0.05):
        if as_outcomes:
            async for _ in flow.bulk(forever, tell(), concurrency=5):
                pass
        else:
            await flow.bulk(forever, range(1000), concurrency=5)
    assert (gauge.now, gauge.begun) == (0, 5)


async def test_what_the_user_has_in_context_is_there_for_the_items() -> None:
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
    tenant.set("ann")

    async def ask(n: int) -> str:
        return tenant.get()

    assert await flow.bulk(ask, range(3)).values() == ["ann"] * 3


async def test_an_interrupt_is_no_failure_of_an_item() -> None:
    async def interrupt(n: int) -> None:
        await anyio.lowlevel.checkpoint()
        if n == 3:
            raise KeyboardInterrupt
        await anyio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        await flow.bulk(interrupt, range(100))


async def test_an_item_that_is_cancelled_from_inside_is_one_failure(anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("in trio, a cancellation stays in its scope")

    async def await_cancelled(n: int) -> int:
        if n == 2:
            task = asyncio.ensure_future(asyncio.sleep(10))
            await asyncio.sleep(0)
            task.cancel()
            await task
        return n

    report = await flow.bulk(await_cancelled, range(5))
    assert (report.succeeded, report.failed) == (4, 1)
    assert isinstance(report.errors[0].error, RunError)
    assert "item 2 was cancelled" in str(report.errors[0].error)


async def test_items_that_never_wait_let_others_run() -> None:
    turns = 0

    async def tick() -> None:
        nonlocal turns
        while True:
            await anyio.sleep(0)
            turns += 1

    async def busy(n: int) -> None:
        sum(range(1000))

    async with anyio.create_task_group() as group:
        group.start_soon(tick)
        await flow.bulk(busy, range(5000))
        group.cancel_scope.cancel()
    assert turns >= 3


# ---------------------------------------------------------------- time
async def test_a_timeout_is_an_items_failure() -> None:
    async def hang_at_one(n: int) -> int:
        if n == 1:
            await anyio.sleep_forever()
        return n

    report = await flow.bulk(hang_at_one, range(3), timeout=0.01)
    assert (report.succeeded, report.failed) == (2, 1)
    assert isinstance(report.errors[0].error, StepTimeout)


async def test_total_timeout_keeps_what_is_done() -> None:
    async def wait(n: int) -> None:
        await (anyio.sleep_forever() if n >= 10 else anyio.sleep(0))

    report = await flow.bulk(wait, range(100), concurrency=5, total_timeout=0.05)
    assert (report.status, report.succeeded, report.failed, report.left) == ("timed_out", 10, 0, 90)
    with pytest.raises(RunTimeout, match="90 of 100"):
        report.raise_errors()


async def test_total_timeout_is_felt_by_items_that_never_wait() -> None:
    async def busy(n: int) -> None:
        sum(range(100))

    report = await flow.bulk(busy, range(10**9), total_timeout=0.05)
    assert report.status == "timed_out"
    assert 0 < report.succeeded < 10**7


async def test_total_timeout_of_a_source_that_hangs() -> None:
    async def hang() -> AsyncIterator[int]:
        yield 1
        await anyio.sleep_forever()

    report = await flow.bulk(double, hang(), total_timeout=0.05)
    assert (report.status, report.succeeded) == ("timed_out", 1)


async def test_rate_spreads_the_items() -> None:
    begun: list[float] = []

    async def note(n: int) -> None:
        begun.append(anyio.current_time())

    await flow.bulk(note, range(10), rate=200, concurrency=10)
    for number, moment in enumerate(begun):
        assert moment - begun[0] >= number / 200 - 0.02, "ahead of its time"


# ---------------------------------------------------------------- trying again
async def test_retry_tries_an_item_so_often() -> None:
    tried: dict[int, int] = {}

    async def third_time(n: int) -> int:
        tried[n] = tried.get(n, 0) + 1
        if tried[n] < 3 or n == 4:
            raise ConnectionError(n)
        return n

    outcomes = [o async for o in flow.bulk(third_time, range(5), retry=Retry(attempts=3, wait=0), ordered=True)]
    assert [o.attempts for o in outcomes] == [3] * 5
    assert [o.error is None for o in outcomes] == [True] * 4 + [False]
    assert tried == dict.fromkeys(range(5), 3)


async def test_a_step_brings_its_retry_and_timeout() -> None:
    tried = []

    @step(retry=Retry(attempts=2, wait=0), timeout=0.02)
    async def hang_once(n: int) -> int:
        tried.append(n)
        if tried.count(n) == 1:
            await anyio.sleep_forever()
        return n

    report = await flow.bulk(hang_once, range(3))
    assert (report.succeeded, len(tried)) == (3, 6)


async def test_a_broken_policy_is_the_items_failure() -> None:
    def broken(state: object) -> float:
        raise LookupError("no such policy")

    report = await flow.bulk(odd_ones_fail, range(2), retry=Retry(wait=broken))
    assert (report.succeeded, str(report.errors[0].error)) == (1, "no such policy")


# ---------------------------------------------------------------- stopping
@pytest.mark.parametrize(("on_error", "failed"), [("stop", 1), (3, 3), ("collect", 50)])
async def test_stopping_after_failures(on_error: Any, failed: int) -> None:
    report = await flow.bulk(odd_ones_fail, range(100), concurrency=1, on_error=on_error)
    assert (report.failed, report.status) == (failed, "completed" if failed == 50 else "failed")
    assert report.left == 100 - (2 * failed)


async def test_stopping_at_a_share_of_failures() -> None:
    async def fail_late(n: int) -> None:
        if n >= 50:
            raise ValueError(n)

    report = await flow.bulk(fail_late, range(1000), concurrency=1, on_error=0.2)
    assert (report.status, report.failed) == ("failed", 13)  # 13 of 63 is the first beyond a fifth
    early = await flow.bulk(odd_ones_fail, range(4), on_error=0.2)
    assert early.status == "completed", "judged by the first items alone"


async def test_no_item_begins_after_it_stops() -> None:
    begun = []

    async def fail_at_once(n: int) -> None:
        begun.append(n)
        raise ValueError

    await flow.bulk(fail_at_once, range(100), concurrency=10, on_error="stop")
    assert begun == [0]


async def test_what_is_under_way_ends_when_it_stops() -> None:
    ended = []

    async def first_fails(n: int) -> None:
        await anyio.sleep(0.01 if n else 0.005)
        if n == 0:
            raise ValueError
        ended.append(n)

    report = await flow.bulk(first_fails, range(100), concurrency=4, on_error="stop")
    assert sorted(ended) == [1, 2, 3]
    assert (report.succeeded, report.failed) == (3, 1)


# ---------------------------------------------------------------- lists
async def test_a_function_of_lists() -> None:
    given: list[list[int]] = []

    async def double_all(numbers: list[int]) -> list[int]:
        given.append(numbers)
        return [2 * n for n in numbers]

    bulk = flow.bulk(double_all, range(10), batch=True, batch_size=4)
    assert await bulk.values() == [2 * n for n in range(10)]
    assert sorted(map(len, given)) == [2, 4, 4]
    report = await flow.bulk(double_all, count_to(10), batch=True, batch_size=4)
    assert (report.total, report.succeeded) == (10, 10)


async def test_a_list_that_fails_is_tried_item_by_item() -> None:
    given: list[list[int]] = []

    async def refuse_seven(numbers: list[int]) -> None:
        given.append(numbers)
        if 7 in numbers:
            raise ValueError("seven")

    report = await flow.bulk(refuse_seven, range(10), batch=True, batch_size=5)
    assert (report.succeeded, [(e.index, e.item) for e in report.errors]) == (9, [(7, 7)])
    assert [5] in given


async def test_a_list_must_have_a_result_for_each_item() -> None:
    async def lose_one(numbers: list[int]) -> list[int]:
        return numbers[1:]

    report = await flow.bulk(lose_one, range(3), batch=True)
    assert report.failed == 3
    assert "returned 2 results" in str(report.errors[0].error)


# ---------------------------------------------------------------- which functions
async def test_plain_functions_are_called_in_threads() -> None:
    import threading

    here = threading.get_ident()

    def where(n: int) -> bool:
        return threading.get_ident() == here

    assert await flow.bulk(where, range(3)).values() == [False] * 3


async def test_what_only_makes_a_coroutine_is_awaited() -> None:
    async def add(n: int, m: int) -> int:
        return n + m

    assert await flow.bulk(lambda n: add(n, 1), range(3)).values() == [1, 2, 3]
    assert await flow.bulk(partial(add, m=1), range(3)).values() == [1, 2, 3]


async def test_methods_and_provided_parameters() -> None:
    class Gateway:
        def __init__(self, rate: int) -> None:
            self.rate = rate

        async def convert(self, n: int) -> int:
            return n * self.rate

    async def convert(n: int, gateway: Gateway = provided) -> int:
        return await gateway.convert(n)

    mine = Flowlet(config=ONCE)
    mine.provide(Gateway, Gateway(3))
    assert await mine.bulk(convert, range(3)).values() == [0, 3, 6]
    assert await mine.bulk(Gateway(5).convert, range(3)).values() == [0, 5, 10]
    with pytest.raises(ConfigError, match=r"nothing provides .*Gateway"):
        await flow.bulk(convert, range(3))


async def test_an_assembled_saga_is_a_run_for_each_item() -> None:
    @step
    async def twice(n: int) -> int:
        return 2 * n

    mine = Flowlet(config=ONCE)
    saga = mine.saga("doubling", twice)
    async with mine:
        assert await mine.bulk(saga, range(3)).values() == [0, 2, 4]
        assert len([run async for run in mine.runs("doubling")]) == 3


async def test_in_a_step_items_belong_to_it() -> None:
    async def ask(n: int) -> str:
        return current_run().idempotency_key

    @step
    async def work(n: int) -> list[str]:
        return await mine.bulk(ask, range(n)).values()

    mine = Flowlet(config=ONCE)
    saga = mine.saga("asking", work)
    async with mine:
        assert await mine.execute(saga, 2, id="r-1") == ["r-1/work"] * 2


async def test_in_the_body_of_a_run_it_is_refused() -> None:
    mine = Flowlet(config=ONCE)

    @mine.saga
    async def body(n: int) -> int:
        return (await mine.bulk(double, range(n))).succeeded

    async with mine:
        with pytest.raises(RunError, match="begin it in a step"):
            await mine.execute(body, 2, id="r-1")


def not_a_function() -> None: ...


async def two(n: int, m: int) -> None: ...


async def with_run(n: int, run: Run = provided) -> None: ...


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"concurrency": 0}, ConfigError, "concurrency= takes a whole number"),
        ({"concurrency": True}, ConfigError, "concurrency="),
        ({"batch_size": 0}, ConfigError, "batch_size="),
        ({"timeout": -1}, ConfigError, "timeout="),
        ({"total_timeout": "soon"}, ConfigError, "total_timeout="),
        ({"rate": 0}, ConfigError, "rate="),
        ({"retry": "often"}, ConfigError, "retry="),
        ({"on_error": "ignore"}, ConfigError, "on_error="),
        ({"on_error": 0}, ConfigError, "on_error="),
        ({"on_error": 1.5}, ConfigError, "on_error="),
        ({"on_error": True}, ConfigError, "on_error="),
        ({"progress": 3}, ConfigError, "progress="),
        ({"items": 3}, ConfigError, "takes an iterable"),
        ({"items": "abc"}, ConfigError, "takes an iterable"),
        ({"fn": 3}, DefinitionError, "is no function"),
        ({"fn": int}, DefinitionError, "is no function"),
        ({"fn": not_a_function}, DefinitionError, "takes no argument"),
        ({"fn": two}, DefinitionError, "takes m beside"),
        ({"fn": with_run}, ConfigError, "only the items of a bulk operation with id="),
    ],
)
async def test_what_cannot_be_meant_is_refused_at_once(change: Any, error: type[Exception], says: str) -> None:
    options = {"fn": double, "items": range(3), **change}
    with pytest.raises(error, match=says):
        flow.bulk(options.pop("fn"), options.pop("items"), **options)


async def test_a_forgotten_await_is_told() -> None:
    bulk = flow.bulk(double, range(3))
    with pytest.warns(RuntimeWarning, match="never begun"):
        del bulk


# ---------------------------------------------------------------- combinators
async def test_values_filter_and_reduce() -> None:
    async def wait(n: int) -> int:
        await anyio.sleep(0.001 * (n % 3))
        return n

    async def is_even(n: int) -> bool:
        return n % 2 == 0

    async def join(text: str, n: int) -> str:
        return f"{text}{n}"

    assert await flow.bulk(wait, range(20)).values() == list(range(20))
    assert await flow.bulk(is_even, range(6)).filter() == [0, 2, 4]
    assert await flow.bulk(wait, range(6)).reduce(operator.add, 0) == 15
    assert await flow.bulk(wait, range(6)).reduce(join, "") == "012345"


async def test_values_raise_what_failed_together() -> None:
    with pytest.raises(BulkFailed) as caught:
        await flow.bulk(odd_ones_fail, range(6)).values()
    assert caught.value.failed == (1, 3, 5)
    assert [str(e) for e in caught.value.exceptions] == ["1 is odd", "3 is odd", "5 is odd"]
    assert caught.value.exceptions[0].__notes__ == ["item 1: 1"]


async def test_values_of_a_bulk_that_was_left_are_not_there() -> None:
    async with flow.bulk(double, range(1000)) as outcomes:
        async for _ in outcomes:
            break
    with pytest.raises(RunCancelled):
        (await outcomes).raise_errors()


# ---------------------------------------------------------------- progress
async def test_progress_is_told_while_it_goes_on_and_at_the_end() -> None:
    told: list[Progress] = []

    async def wait(n: int) -> None:
        await anyio.sleep(0.01)
        if n == 5:
            raise ValueError

    await flow.bulk(wait, range(60), concurrency=2, progress=told.append)
    assert [p.done for p in told] == sorted(p.done for p in told)
    assert len(told) >= 3
    assert (told[-1].done, told[-1].failed, told[-1].total, told[-1].eta) == (60, 1, 60, 0)
    middle = told[len(told) // 2]
    assert middle.eta is not None
    assert middle.eta == pytest.approx((60 - middle.done) / middle.rate)


async def test_progress_without_a_known_number() -> None:
    told: list[Progress] = []
    await flow.bulk(double, count_to(5), progress=told.append)
    assert (told[-1].done, told[-1].total, told[-1].eta) == (5, None, None)


async def test_what_a_progress_function_raises_ends_the_bulk() -> None:
    def broken(progress: Progress) -> None:
        raise LookupError("no terminal")

    with pytest.raises(LookupError, match="no terminal"):
        await flow.bulk(double, range(10), progress=broken)


async def test_the_log_tells_of_it(events: list[Any]) -> None:
    mine = Flowlet(config=ONCE)
    await mine.bulk(odd_ones_fail, range(4))
    assert [(e["event"], e["function"]) for e in events] == [
        ("bulk.started", "odd_ones_fail"),
        ("bulk.ended", "odd_ones_fail"),
    ]
    assert (events[1]["done"], events[1]["failed"], events[1]["status"]) == (4, 2, "completed")


# ---------------------------------------------------------------- memory
async def test_it_is_no_work_for_the_garbage_collector() -> None:
    async def once() -> None:
        await flow.bulk(odd_ones_fail, range(5))
        await flow.bulk(double, range(5)).values()
        await anyio.sleep(0)

    await once()
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            await once()
        assert gc.collect() < 20  # the loop's own, at most
    finally:
        gc.enable()


async def test_memory_does_not_grow_with_the_items() -> None:
    await flow.bulk(double, range(100), concurrency=16)
    tracemalloc.start()
    await flow.bulk(double, range(60_000), concurrency=16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60_000 * 4, "a pointer for each item would be twice that"
