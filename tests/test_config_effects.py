"""What is configured happens: a Flowlet for each setting, and one that is switched off."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from msgspec import Struct

from flowlet import Flowlet, Registry, Retry, state, step, transition
from flowlet.config import BulkConfig, Config, GraphConfig
from flowlet.core.bulk import Progress
from flowlet.errors import ConfigError, Disabled, IterationLimit, PayloadTooLarge, RunTimeout, StepTimeout
from flowlet.store import Store
from flowlet.stores.memory import MemoryStore
from flowlet.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.anyio


@step
async def double(n: int) -> int:
    return 2 * n


# ---------------------------------------------------------------- the Flowlet itself
async def test_store_name_lease_and_grace(tmp_path: Path) -> None:
    config = Config(store=f"sqlite:///{tmp_path}/x.db", name="web-1", lease=33, grace=0.05)
    flow = Flowlet(config=config)
    assert isinstance(flow.store, SQLiteStore)

    @step
    async def hang() -> None:
        await anyio.sleep(60)

    hanging = flow.saga("hanging", hang)
    with anyio.fail_after(10):
        async with flow:
            assert "-web-1-" in flow._open_runs.worker.id
            assert flow._open_runs._lease == 33.0
            await flow.start(hanging, id="r-1")
            await anyio.sleep(0.05)  # in the step, which has 0.05 s from here and not five


async def test_arguments_win_over_the_configuration() -> None:
    config = Config(store="sqlite:///none/x.db", name="a", lease=1, grace=1, max_payload=5000, enabled=False)
    flow = Flowlet("memory://", config=config, name="b", lease=2, grace=3, max_payload=6000, enabled=True)
    assert isinstance(flow.store, MemoryStore)
    assert flow.config == Config(name="b", lease=2, grace=3, max_payload=6000, enabled=True)
    async with flow:
        assert flow._open_runs.max_payload == 6000
    pipeline = Config(bulk=BulkConfig(pipeline_timeout=7))
    assert Flowlet(config=pipeline).config.bulk.pipeline_timeout == 7
    assert Flowlet(config=pipeline, pipeline_timeout=8).config.bulk.pipeline_timeout == 8
    assert Flowlet(config=pipeline, pipeline_timeout=None).config.bulk.pipeline_timeout is None


async def test_max_payload() -> None:
    flow = Flowlet(config=Config(max_payload=4096))

    @step
    async def much() -> str:
        return "x" * 5000

    with pytest.raises(PayloadTooLarge):
        async with flow:
            await flow.execute(flow.saga("much", much))


@pytest.mark.parametrize("drains", [True, False])
async def test_drain_on_sigterm(drains: bool) -> None:
    async with Flowlet(config=Config(drain_on_sigterm=drains)):
        assert (signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL) is drains


def test_what_is_no_config_and_where_a_wrong_store_stands() -> None:
    wrong: Any = {"lease": 3}
    with pytest.raises(ConfigError, match=r"config= takes a flowlet\.config\.Config"):
        Flowlet(config=wrong)
    with pytest.raises(ConfigError, match=r"^FLOWLET_STORE: no store has the URL 'sqlit:///x'"):
        Flowlet(config=Config.load(environ={"FLOWLET_STORE": "sqlit:///x"}))


# ---------------------------------------------------------------- bulk operations
def bulk(**fields: Any) -> Flowlet:
    return Flowlet(config=Config(bulk=BulkConfig(**fields)))


class Failing:
    """Fails so many times for each item."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.calls: list[int] = []

    async def __call__(self, n: int) -> int:
        self.calls.append(n)
        if self.calls.count(n) <= self.times:
            raise OSError(n)
        return n


async def test_batch_size_and_that_of_a_commit_stays() -> None:
    sizes: list[int] = []

    async def note(items: list[int]) -> None:
        sizes.append(len(items))

    await bulk(batch_size=4).bulk(note, range(10), batch=True)
    await bulk(batch_size=4).bulk(note, range(10), batch=True, batch_size=6)
    await Flowlet().bulk(note, range(21), batch=True)
    assert sizes == [4, 4, 2, 6, 4, 10, 10, 1]


async def test_max_concurrency() -> None:
    now = most = 0

    async def gauge(n: int) -> None:
        nonlocal now, most
        now += 1
        most = max(now, most)
        await anyio.sleep(0.001)
        now -= 1

    for flow, options, expected in [(bulk(max_concurrency=3), {}, 3), (bulk(), {}, 5), (bulk(), {"concurrency": 2}, 2)]:
        most = 0
        await flow.bulk(gauge, range(20), **options)
        assert most == expected


async def test_timeout_of_a_whole_operation() -> None:
    async def hang(n: int) -> None:
        await anyio.sleep(n)

    assert (await bulk(timeout=0.05).bulk(hang, [60])).status == "timed_out"
    assert (await bulk(timeout=0.05).bulk(hang, [0.1], total_timeout=None)).status == "completed"
    assert (await bulk(timeout=0).bulk(hang, [0.1])).status == "completed"
    assert (await bulk().bulk(hang, [60], total_timeout=0.05)).status == "timed_out"


@pytest.mark.parametrize("way", ["plain", "outcomes", "recorded", "lists"])
async def test_retries(way: str) -> None:
    """Each way of doing items has the same attempts, and the first one counts."""

    async def run(flow: Flowlet, fails: Failing, **options: Any) -> Any:
        async def each(n: int) -> int:
            return await fails(n)

        async def many(items: list[int]) -> list[int]:
            return [await fails(n) for n in items]

        async with flow:
            if way == "outcomes":
                async with flow.bulk(each, [7], **options) as outcomes:
                    async for _ in outcomes:
                        pass
                return await outcomes
            if way == "lists":
                return await flow.bulk(many, [7], batch=True, **options)
            return await flow.bulk(each, [7], id="b" if way == "recorded" else None, **options)

    for fields, options, times, succeeds, calls in [
        ({}, {}, 2, True, 3),
        ({}, {}, 9, False, 3),
        ({"retry_attempts": 1}, {}, 9, False, 1),
        ({"retry_attempts": 5}, {"retry": 2}, 9, False, 2),
        ({}, {"retry": None}, 9, False, 1),
        ({}, {"retry": Retry(4, 0)}, 9, False, 4),
    ]:
        fails = Failing(times)
        report = await run(bulk(retry_delay=0, **fields), fails, **options)
        assert (len(fails.calls), report.succeeded) == (calls, int(succeeds)), (fields, options)
        assert [error.attempts for error in report.errors] == ([] if succeeds else [calls])


async def test_retry_delay_doubles() -> None:
    fails = Failing(2)
    report = await bulk(retry_delay=0.05).bulk(fails, [1])
    assert report.succeeded == 1
    assert 0.15 <= report.seconds < 5


async def test_a_step_and_a_saga_have_retries_of_their_own() -> None:
    flow, fails = bulk(retry_delay=0), Failing(9)

    @step(retry=2)
    async def twice(n: int) -> int:
        return await fails(n)

    @step
    async def once(n: int) -> int:
        return await fails(n)

    saga = flow.saga("once", once)
    async with flow:
        await flow.bulk(twice, [1])
        await flow.bulk(once, [2])
        await flow.bulk(saga, [3])
    assert [fails.calls.count(n) for n in (1, 2, 3)] == [2, 3, 1]


@pytest.mark.parametrize("tracked", [True, False])
async def test_progress_tracking(tracked: bool, events: list[dict[str, Any]]) -> None:
    shown: list[Progress] = []
    flow = bulk(enable_progress_tracking=tracked)
    async with flow:
        await flow.bulk(double, range(3))
        told = [event["event"] for event in events if event["event"].startswith("bulk.")]
        assert told == (["bulk.started", "bulk.ended"] if tracked else [])
        await flow.bulk(double, range(3), progress=shown.append)
    assert shown[-1].done == 3
    assert [event["event"] for event in events].count("bulk.ended") == 1 + tracked


async def test_pipeline_timeout() -> None:
    flow = bulk(pipeline_timeout=0.05)

    async def hang(n: int) -> None:
        await anyio.sleep(60)

    async with flow:
        with pytest.raises(RunTimeout):
            await flow.execute(flow.pipeline("hanging", hang), 1)


# ---------------------------------------------------------------- graphs
class Count(Struct):
    n: int = 0
    until: int = 10**6


class Go(Struct):
    n: int


def looping(flow: Flowlet | Registry, name: str = "loop", **options: Any) -> Any:
    graph = flow.graph(name, state=Count, **options)

    @graph.node
    async def more(count: Count) -> dict[str, int]:
        return {"n": count.n + 1}

    @graph.node
    async def end(count: Count) -> None: ...

    graph.entry(more)
    graph.edge(more, more, when=lambda c: c.n < c.until)
    graph.edge(more, end, otherwise=True)
    graph.final(end)
    return graph


@pytest.mark.parametrize(("configured", "said", "limit"), [(7, None, 7), (7, 4, 4), (100, None, 100), (250, None, 250)])
async def test_max_iterations(configured: int, said: int | None, limit: int) -> None:
    flow = Flowlet(config=Config(graph=GraphConfig(max_iterations=configured)))
    graph = looping(flow, **({} if said is None else {"max_iterations": said}))
    async with flow:
        assert (await graph(Count(until=limit))).n == limit
        with pytest.raises(IterationLimit, match=f"more than {limit} times"):
            await graph(Count(until=limit + 1))


async def test_max_iterations_of_a_graph_within_a_cycle() -> None:
    """Its own limit goes for each round of the outer one: both are the configured one."""
    flow = Flowlet(config=Config(graph=GraphConfig(max_iterations=3)))
    inner = looping(flow, "inner")
    outer = flow.graph("outer", state=Count)
    outer.node(inner)

    @outer.node
    async def again(count: Count) -> None: ...

    @outer.node
    async def never(count: Count) -> None: ...

    outer.entry(inner)
    outer.edge(inner, again)
    outer.edge(again, inner, when=lambda c: True)
    outer.edge(again, never, otherwise=True)
    outer.final(never)
    async with flow:
        with pytest.raises(IterationLimit, match="more than 3 times"):
            await outer(Count(until=1))


async def test_node_timeout_and_that_of_the_node() -> None:
    flow = Flowlet(config=Config(graph=GraphConfig(node_timeout=0.05)))
    graph = flow.graph("slow", state=Count)
    attempts: list[int] = []

    @graph.node(timeout=30)
    async def patient(count: Count) -> None:
        await anyio.sleep(0.1)

    @graph.node(retry=2)
    async def slow(count: Count) -> None:
        attempts.append(1)
        await anyio.sleep(60)

    graph.entry(patient)
    graph.edge(patient, slow)
    graph.final(slow)
    async with flow:
        with pytest.raises(StepTimeout, match=r"did not end within 0\.05 s"):
            await graph(Count())
    assert len(attempts) == 2  # of an attempt


async def test_total_timeout_of_graphs() -> None:
    flow = Flowlet(config=Config(graph=GraphConfig(total_timeout=0.05)))

    def hanging(name: str, **options: Any) -> Any:
        graph = flow.graph(name, state=Count, **options)

        @graph.node
        async def hang(count: Count) -> None:
            await anyio.sleep(0.15)

        graph.entry(hang)
        graph.final(hang)
        return graph

    async with flow:
        with pytest.raises(RunTimeout):
            await hanging("a")(Count())
        await hanging("b", timeout=None)(Count())
        await hanging("c", timeout=30)(Count())


async def branches(configured: int | None, expected: int, **options: Any) -> int:
    """Return how many of six branches execute at once, if as many as expected do."""
    flow = Flowlet(config=Config(graph=GraphConfig(max_parallel_branches=configured)))
    graph, now, most, all_there = flow.graph("wide", state=Count, **options), 0, 0, anyio.Event()

    async def work(count: Count) -> None:
        nonlocal now, most
        now += 1
        most = max(now, most)
        if now == expected:
            all_there.set()
        with anyio.fail_after(10):
            await all_there.wait()
        await anyio.sleep(0.005)
        now -= 1

    for n in range(6):
        graph.node(work, name=f"work{n}")
        graph.entry(f"work{n}")
        graph.final(f"work{n}")
    async with flow:
        await graph(Count())
    return most


async def test_max_parallel_branches() -> None:
    assert await branches(None, 6) == 6
    assert await branches(2, 2) == 2
    assert await branches(2, 3, max_concurrency=3) == 3
    assert await branches(2, 6, max_concurrency=None) == 6


@pytest.mark.parametrize("before", [GraphConfig(), GraphConfig(max_iterations=9, max_parallel_branches=1)])
@pytest.mark.parametrize("after", [GraphConfig(), GraphConfig(max_iterations=2, max_parallel_branches=2)])
async def test_a_graph_keeps_to_what_it_began_with(
    new_store: Callable[[], Store], before: GraphConfig, after: GraphConfig
) -> None:
    """A process with other limits goes on with it, and neither parks it nor judges what was done before."""
    registry = Registry()
    graph = registry.graph("patient", state=Count)

    async def more(count: Count) -> dict[str, int]:
        return {"n": count.n + 1}

    async def beside(n: int) -> None: ...

    async def aside(n: int) -> None: ...

    graph.node(more)
    graph.node(beside)
    graph.node(aside)
    graph.pause("go", type=Go)

    async def end(n: int) -> None: ...

    graph.node(end)
    graph.entry(more)
    graph.edge(more, more, when=lambda c: c.n < 5)
    for name in ("beside", "aside", "go"):
        graph.edge(more, name, when=lambda c: c.n >= 5)
        graph.edge(name, "end")
    graph.final("end")
    async with Flowlet(new_store(), registry=registry, config=Config(graph=before)) as flow:
        handle = await flow.start(graph, Count(), id="g-1")
        with anyio.fail_after(10):
            while await handle.status() != "waiting":
                await anyio.sleep(0.002)
        notes = [r.kind for r in [r async for r in handle.history()]].count("graph/limits")
        assert notes == (before != GraphConfig())
    async with Flowlet(new_store(), registry=registry, config=Config(graph=after)) as flow:
        await flow.handle("g-1").send("go", Go(7))
        with anyio.fail_after(10):
            assert (await flow.handle("g-1", graph).result()).n == 7


# ---------------------------------------------------------------- switched off
@pytest.mark.parametrize("by", ["FLOWLET_ENABLED", "flowlet.toml:1", "Config", "Flowlet"])
async def test_disabled(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    if by == "flowlet.toml:1":
        Path("flowlet.toml").write_text("enabled = false\n", encoding="utf-8")
    environ = {"FLOWLET_ENABLED": "0"} if by == "FLOWLET_ENABLED" else {}
    config = Config(enabled=False) if by == "Config" else Config.load(environ=environ)
    flow = Flowlet(f"sqlite:///{tmp_path}/x.db", config=config, enabled=False if by == "Flowlet" else None)

    @flow.machine
    class Order:
        @state(initial=True)
        class Open: ...

        @state(final=True)
        class Paid: ...

        @transition(Open, Paid)
        async def pay(self) -> str:
            return "paid"

    twice = flow.saga("twice", double)
    named = by if by not in ("Config", "Flowlet") else "enabled=False of this Flowlet"
    async with flow, flow:
        for ask in (
            lambda: twice(1),
            lambda: flow.start(twice, 1),
            lambda: flow.execute(twice, 1),
            lambda: flow.create(Order(), id="o-1"),
            lambda: flow.load(Order, "o-1"),
            lambda: flow.prune(0),
            lambda: flow.approve("a", by="ann"),
        ):
            with pytest.raises(Disabled, match=named):
                await ask()
        for begin in (
            lambda: flow.handle("r-1"),
            flow.runs,
            lambda: flow.bulk(double, [1]),
            lambda: flow.history("o-1"),
            flow.schedules,
        ):
            with pytest.raises(Disabled, match="set it to true to use it"):
                begin()
        assert await double(2) == 4  # a step is a function,
        assert await Order().pay() == "paid"  # and a machine without a store an object
        await flow.drain()
    assert not (tmp_path / "x.db").exists()
    said = capsys.readouterr().err
    assert said.count("flowlet.disabled") == 1
    assert named in said
    async with flow:  # and again
        pass


def test_disabled_in_a_script() -> None:
    flow = Flowlet(enabled=False)
    with pytest.raises(Disabled) as caught:
        flow.run(flow.saga("twice", double), 1)
    assert caught.value.by == "enabled=False of this Flowlet or of its Config"
