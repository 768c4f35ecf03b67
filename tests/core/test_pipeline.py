"""Pipelines: parallel where nothing joins the steps, conditions, what a failure stops, what is skipped."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import anyio
import pytest

from flowlet import Flowlet, Run, gather, provided, step
from flowlet.errors import DecodeError, EncodeError, RunError
from flowlet.runtime.handle import Handle

pytestmark = pytest.mark.anyio


class Broken(Exception):
    pass


async def statuses(handle: Handle[Any]) -> dict[str, str]:
    return {name: s.status for name, s in (await handle.report()).steps.items()}


async def skips(handle: Handle[Any]) -> dict[str, str | None]:
    return {name: s.error for name, s in (await handle.report()).steps.items() if s.status == "skipped"}


# ------------------------------------------------------------------ three spellings
async def extract(path: str) -> list[int]:
    return [len(path), 2]


async def transform(extract: list[int]) -> list[int]:
    return [n * 10 for n in extract]


async def load(transform: list[int], scale: int = 1) -> int:
    return sum(transform) * scale


async def test_of_steps(flow: Flowlet) -> None:
    etl = flow.pipeline("etl", extract, transform, load)
    async with flow:
        assert await etl("abc") == 50
        assert await etl(scale=2, path="abc") == 100
        handle = await flow.start(etl, "abc", id="e")
        assert await handle.result() == 50
        report = await handle.report()
    assert report.status == "completed"
    assert [(s.name, s.value, s.attempts, s.status) for s in report.steps.values()] == [
        ("extract", [3, 2], 1, "completed"),
        ("transform", [30, 20], 1, "completed"),
        ("load", 50, 1, "completed"),
    ]
    assert all(s.seconds >= 0 for s in report.steps.values())


async def test_of_a_function(flow: Flowlet) -> None:
    first, second = step(extract), step(transform)

    @flow.pipeline
    async def etl(path: str, run: Run = provided) -> list[int]:
        found = await first(path)
        one, two = await gather(second(found), second(found[:1]))
        return [*one, *two, len(run.id)]

    async with flow:
        assert await flow.execute(etl, "abc", id="four") == [30, 20, 30, 4]


async def test_of_a_class(flow: Flowlet) -> None:
    @flow.pipeline
    class Etl:
        @step
        async def extract(self, path: str) -> int:
            return len(path)

        async def __call__(self, path: str) -> int:
            return await self.extract(path) + 1

    async with flow:
        assert await flow.execute(Etl, "abc") == 4
        assert await Etl()("ab") == 3


async def test_a_failing_body_is_failed_and_nothing_is_undone(flow: Flowlet) -> None:
    first = step(extract)

    @flow.pipeline
    async def etl(path: str) -> int:
        await first(path)
        raise Broken

    async with flow:
        handle = await flow.start(etl, "abc")
        with pytest.raises(Broken):
            await handle.result()
        assert await handle.status() == "failed"


# ------------------------------------------------------------------ order
async def test_steps_that_need_nothing_of_each_other_run_at_the_same_time(flow: Flowlet) -> None:
    here = {name: anyio.Event() for name in ("a", "b")}

    async def meet(me: str, other: str) -> str:
        here[me].set()
        await here[other].wait()  # would wait for ever if they ran one after the other
        return me

    async def a() -> str:
        return await meet("a", "b")

    async def b() -> str:
        return await meet("b", "a")

    async def join(a: str, b: str) -> str:
        return a + b

    both = flow.pipeline("both", a, b, join)
    async with flow:
        with anyio.fail_after(10):
            assert await both() == "ab"


async def test_a_step_starts_as_soon_as_what_it_needs_has_ended(flow: Flowlet) -> None:
    fast_done = anyio.Event()

    async def slow() -> int:
        await fast_done.wait()
        return 1

    async def quick() -> int:
        return 2

    async def after_quick(quick: int) -> int:
        fast_done.set()  # lets the slow one go on: it must not have been waited for
        return quick

    async def end(slow: int, after_quick: int) -> int:
        return slow + after_quick

    both = flow.pipeline("both", slow, quick, after_quick, end)
    async with flow:
        with anyio.fail_after(10):
            assert await both() == 3


async def test_steps_in_any_order_and_the_value_of_the_last_listed(flow: Flowlet) -> None:
    etl = flow.pipeline("etl", load, transform, extract)
    async with flow:
        assert await etl(path="abc") == [3, 2]


async def test_plain_functions_run_in_threads(flow: Flowlet) -> None:
    threads: list[int] = []
    barrier = threading.Barrier(2, timeout=10)

    def a(n: int) -> int:
        threads.append(threading.get_ident())
        barrier.wait()  # two of them at the same time
        return n + 1

    def b(n: int) -> int:
        threads.append(threading.get_ident())
        barrier.wait()
        return n + 2

    async def join(a: int, b: int) -> int:
        return a * b

    both = flow.pipeline("both", a, b, join)
    async with flow:
        assert await both(1) == 6
    assert len({*threads, threading.get_ident()}) == 3


async def test_a_single_plain_function_runs_in_a_thread_and_knows_its_run(flow: Flowlet) -> None:
    seen: list[Any] = []

    def one(n: int, run: Run = provided) -> int:
        seen.append((threading.get_ident() == here, run.idempotency_key))
        return n

    here = threading.get_ident()
    pipe = flow.pipeline("one", one)
    async with flow:
        assert await flow.execute(pipe, 1, id="p") == 1
    assert seen == [(False, "p/one")]


async def test_many_steps(flow: Flowlet) -> None:
    def make(index: int) -> Callable[..., Any]:
        async def first(n: int) -> int:
            return n

        async def add(n: int) -> int:
            return n + 1

        if index == 0:
            return step(name="s0")(first)
        names: dict[str, Any] = {}
        source = f"async def f(s{index - 1}: int, s{index // 2}: int) -> int: return s{index - 1} + 1"
        if index - 1 == index // 2:
            source = f"async def f(s{index - 1}: int) -> int: return s{index - 1} + 1"
        exec(source, names)
        return step(name=f"s{index}")(names["f"])

    chain = flow.pipeline("chain", *[make(i) for i in range(60)])
    async with flow:
        assert await chain(5) == 64


# ------------------------------------------------------------------ failures
async def bad(n: int) -> int:
    raise Broken("bad")


async def good(n: int) -> int:
    return n


async def after_bad(bad: int) -> int:
    return bad + 1


async def after_that(after_bad: int) -> int:
    return after_bad + 1


async def test_stop_is_the_default(flow: Flowlet) -> None:
    pipe = flow.pipeline("p", good, bad, after_bad)
    async with flow:
        handle = await flow.start(pipe, 1)
        with pytest.raises(Broken, match="bad"):
            await handle.result()
        assert await handle.status() == "failed"
        assert (await statuses(handle))["bad"] == "failed"
        assert "after_bad" not in await statuses(handle)


@pytest.mark.parametrize("reason", ["step", "condition"])
async def test_a_failure_cancels_and_awaits_what_still_runs(flow: Flowlet, reason: str) -> None:
    running, cleaned = anyio.Event(), []

    async def slow(n: int) -> int:
        running.set()
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.append("slow")
        return n

    async def fails(n: int) -> int:
        await running.wait()
        if reason == "step":
            raise Broken
        return n

    async def after(fails: int) -> int:
        return fails

    def condition(fails: int) -> bool:
        raise Broken

    pipe = flow.pipeline("p", slow, fails, after, when={after: condition} if reason == "condition" else None)
    async with flow:
        handle = await flow.start(pipe, 1)
        with pytest.raises(Broken):
            await handle.result()
        assert cleaned == ["slow"]  # before the result is known, not some time later
        assert (await statuses(handle))["slow"] == "cancelled"
        assert await handle.status() == "failed"


async def test_skip_lets_the_rest_go_on_without_what_needs_the_failed_one(flow: Flowlet) -> None:
    pipe = flow.pipeline("p", bad, after_bad, after_that, good, on_error="skip")
    async with flow:
        handle = await flow.start(pipe, 7)
        assert await handle.result() == 7
        assert await statuses(handle) == {
            "bad": "failed",
            "good": "completed",
            "after_bad": "skipped",
            "after_that": "skipped",
        }
        assert await skips(handle) == {"after_bad": "bad failed", "after_that": "after_bad was skipped"}


async def test_a_policy_per_step(flow: Flowlet) -> None:
    async def worse(n: int) -> int:
        raise Broken("worse")

    lenient = flow.pipeline("lenient", bad, good, on_error={"bad": "skip"})
    strict = flow.pipeline("strict", bad, worse, on_error={bad: "skip"})
    async with flow:
        assert await lenient(3) == 3
        with pytest.raises(Broken, match="worse"):
            await strict(3)


@pytest.mark.parametrize("kind", ["async", "sync", "lambda"])
async def test_the_value_of_a_handler_takes_the_place_of_the_result(flow: Flowlet, kind: str) -> None:
    seen: list[str] = []

    async def mend(error: Exception) -> int:
        seen.append(str(error))
        return 40

    def mend_sync(error: Exception) -> int:
        seen.append(str(error))
        return 40

    handlers: dict[str, Callable[..., Any]] = {
        "async": mend,
        "sync": mend_sync,
        "lambda": lambda e: seen.append(str(e)) or 40,  # type: ignore[func-returns-value]
    }
    pipe = flow.pipeline("p", bad, after_bad, on_error={bad: handlers[kind]})
    async with flow:
        handle = await flow.start(pipe, 1)
        assert await handle.result() == 41
        report = await statuses(handle)
    assert seen == ["bad"]
    assert report["bad"] == "failed"
    assert report["after_bad"] == "completed"


async def test_a_handler_for_all_steps(flow: Flowlet) -> None:
    pipe = flow.pipeline("p", bad, after_bad, on_error=lambda error: 1)
    async with flow:
        assert await pipe(1) == 2


async def test_a_handler_that_fails(flow: Flowlet) -> None:
    def worse(error: Exception) -> int:
        raise KeyError("handler") from error

    pipe = flow.pipeline("p", bad, after_bad, on_error=worse)
    async with flow:
        handle = await flow.start(pipe, 1)
        with pytest.raises(KeyError, match="handler"):
            await handle.result()
        assert await handle.status() == "failed"


async def test_a_handler_whose_value_is_of_another_type(flow: Flowlet) -> None:
    pipe = flow.pipeline("p", bad, after_bad, on_error=lambda error: "forty")
    async with flow:
        with pytest.raises(DecodeError):
            await pipe(1)


async def test_others_go_on_while_a_handler_works(flow: Flowlet) -> None:
    handling, others = anyio.Event(), anyio.Event()

    async def mend(error: Exception) -> int:
        handling.set()
        await others.wait()
        return 1

    async def other(n: int) -> int:
        await handling.wait()
        others.set()
        return 10

    async def join(bad: int, other: int) -> int:
        return bad + other

    pipe = flow.pipeline("p", bad, other, join, on_error={bad: mend})
    async with flow:
        with anyio.fail_after(10):
            assert await pipe(1) == 11


async def test_a_result_that_cannot_be_stored_is_a_failure_like_any_other(flow: Flowlet) -> None:
    async def odd(n: int) -> int:
        return object()  # type: ignore[return-value]

    async def wrong(n: int) -> int:
        return "1"  # type: ignore[return-value]

    stop = flow.pipeline("stop", odd)
    skip = flow.pipeline("skip", odd, wrong, good, on_error="skip")
    async with flow:
        with pytest.raises(EncodeError):
            await stop(1)
        assert await skip(3) == 3


# ------------------------------------------------------------------ conditions
async def test_a_step_whose_condition_is_false_is_skipped_with_what_needs_it(flow: Flowlet) -> None:
    calls: list[str] = []

    async def source(n: int) -> int:
        return n

    async def big(source: int) -> int:
        calls.append("big")
        return source * 100

    async def report(big: int) -> int:
        calls.append("report")
        return big

    async def always(source: int) -> int:
        return source + 1

    pipe = flow.pipeline("p", source, big, report, always, when={big: lambda source, n: source > 10 and n > 0})
    async with flow:
        handle = await flow.start(pipe, 1, id="small")
        assert await handle.result() == 2
        assert calls == []
        assert await skips(handle) == {"big": "its condition was false", "report": "big was skipped"}
        kinds = [(r.kind, r.step) async for r in handle.history()]
        assert kinds == [
            ("started", None),
            ("step_completed", "source"),
            ("skipped", "big"),
            ("skipped", "report"),
            ("step_completed", "always"),
            ("completed", None),
        ]
        assert await pipe(11) == 12
        assert calls == ["big", "report"]


async def test_a_condition_waits_for_what_it_asks_about(flow: Flowlet) -> None:
    order: list[str] = []

    async def check(n: int) -> bool:
        await anyio.lowlevel.checkpoint()
        order.append("check")
        return n > 0

    async def act(n: int) -> int:
        order.append("act")
        return n

    pipe = flow.pipeline("p", check, act, when={"act": lambda check: check})
    async with flow:
        assert await pipe(1) == 1
        assert order == ["check", "act"]
        assert await pipe(0) is None
        assert order == ["check", "act", "check"]


async def test_a_condition_about_a_skipped_step_skips(flow: Flowlet) -> None:
    pipe = flow.pipeline("p", bad, good, on_error="skip", when={good: lambda bad: True})
    async with flow:
        handle = await flow.start(pipe, 1)
        assert await handle.result() is None
        assert await skips(handle) == {"good": "bad failed"}


@pytest.mark.parametrize("policy", ["skip", "when"])
async def test_a_pipeline_whose_last_step_is_skipped_has_no_value(flow: Flowlet, policy: str) -> None:
    if policy == "skip":
        pipe = flow.pipeline("p", good, bad, on_error="skip")
    else:
        pipe = flow.pipeline("p", good, bad, when={bad: lambda n: False})
    async with flow:
        assert await pipe(1) is None
        handle = await flow.start(pipe, 1)
        assert await handle.result() is None
        assert await handle.status() == "completed"


async def test_every_step_skipped(flow: Flowlet) -> None:
    pipe = flow.pipeline("p", bad, after_bad, when={bad: lambda n: False})
    async with flow:
        handle = await flow.start(pipe, 1)
        assert await handle.result() is None
        assert await statuses(handle) == {"bad": "skipped", "after_bad": "skipped"}


async def test_a_condition_that_raises_fails_the_pipeline(flow: Flowlet) -> None:
    pipe = flow.pipeline("p", good, after_good, when={after_good: lambda good: 1 / 0 > 1})
    async with flow:
        handle = await flow.start(pipe, 1)
        with pytest.raises(ZeroDivisionError):
            await handle.result()
        assert await handle.status() == "failed"


async def after_good(good: int) -> int:
    return good


async def test_a_condition_with_defaults_and_names(flow: Flowlet) -> None:
    def is_more(than: int = 5, *, good: int) -> bool:
        return good > than

    pipe = flow.pipeline("p", good, after_good, when={after_good: is_more})
    async with flow:
        assert await pipe(6) == 6
        assert await pipe(5) is None


async def test_a_condition_that_is_a_coroutine_is_refused(flow: Flowlet) -> None:
    class Asking:
        async def __call__(self, good: int) -> bool:
            return False

    asking: Any = Asking()
    pipe = flow.pipeline("p", good, after_good, when={after_good: asking})
    async with flow:
        with pytest.raises(RunError, match=r"when= of step 'after_good' returned a coroutine, which is always true"):
            await pipe(1)


async def test_a_pipeline_in_a_body_is_a_child_run(flow: Flowlet) -> None:
    pipe = flow.pipeline("etl", extract, transform, load)

    @flow.saga
    async def outer(path: str) -> int:
        return await pipe(path) + 1

    async with flow:
        assert await flow.execute(outer, "abc", id="o") == 51
        assert await flow.handle("o/etl").status() == "completed"
