"""Spans and metrics, as the SDK of OpenTelemetry gets them; also of a run that two processes have worked on."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

import flowlet
from flowlet import Flowlet, Retry, Run, Secret, compensate, gather, provided, state, step, transition
from flowlet.ext.otel import OpenTelemetry
from flowlet.observing import Committed, LeaseLost
from flowlet.testing import Clock

pytestmark = pytest.mark.anyio

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(flowlet.__file__).parent.parent)}


class Broken(Exception):
    pass


class Telemetry:
    """Providers of the SDK that keep what they get."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("user")
        self.reader = InMemoryMetricReader()
        self.observer = OpenTelemetry(self.provider, MeterProvider([self.reader]))

    @property
    def spans(self) -> list[ReadableSpan]:
        return list(self.exporter.get_finished_spans())

    def one(self, name: str, number: int = 0) -> ReadableSpan:
        return [span for span in self.spans if span.name == name][number]

    def metrics(self) -> dict[str, list[Any]]:
        data = self.reader.get_metrics_data()
        assert data is not None
        return {
            metric.name: list(metric.data.data_points)
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
        }


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


def is_below(span: ReadableSpan, parent: ReadableSpan) -> bool:
    assert span.context is not None
    assert parent.context is not None
    same = span.parent is not None and span.parent.span_id == parent.context.span_id
    return same and span.context.trace_id == parent.context.trace_id


async def test_the_spans_of_a_run(telemetry: Telemetry) -> None:
    flow = Flowlet(observers=(telemetry.observer,))

    @step(retry=Retry(attempts=2, wait=0))
    async def charge(n: int, run: Run = provided) -> int:
        with telemetry.tracer.start_as_current_span("mine"):
            if run.attempt == 1:
                raise Broken("busy")
        return n

    @step
    async def book(n: int) -> int:
        return n

    @flow.saga(version=3)
    async def checkout(n: int) -> int:
        with telemetry.tracer.start_as_current_span("body"):
            await charge(n)
        await gather(book(1), book(2))
        return n

    with telemetry.tracer.start_as_current_span("request"):
        async with flow:
            await flow.execute(checkout, 1, id="c")
    run, request = telemetry.one("run checkout"), telemetry.one("request")
    assert is_below(run, request)
    assert dict(run.attributes or {}) == {
        "flowlet.run.id": "c",
        "flowlet.definition.name": "checkout",
        "flowlet.definition.version": "3",
        "flowlet.run.kind": "saga",
        "flowlet.run.resumed": False,
        "flowlet.run.status": "completed",
    }
    assert run.status.status_code is StatusCode.UNSET
    assert is_below(telemetry.one("body"), run)
    first = telemetry.one("step charge")
    assert is_below(first, run)
    assert is_below(telemetry.one("step book"), run)
    assert is_below(telemetry.one("step book", 1), run)
    assert (first.attributes or {})["flowlet.step.attempts"] == 2
    assert (first.attributes or {})["flowlet.step.outcome"] == "completed"
    attempts = [span for span in telemetry.spans if span.name == "attempt charge"]
    assert [(span.attributes or {})["flowlet.step.attempt"] for span in attempts] == [1, 2]
    for number, attempt in enumerate(attempts):
        assert is_below(attempt, first)
        assert is_below(telemetry.one("mine", number), attempt)
    failed = attempts[0]
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, "Broken: busy")
    assert (failed.attributes or {})["error.type"] == f"{__name__}.Broken"
    assert [event.name for event in failed.events] == ["exception"]
    assert first.status.status_code is StatusCode.UNSET


async def test_a_run_that_is_undone(telemetry: Telemetry) -> None:
    flow = Flowlet(observers=(telemetry.observer,))

    @step
    async def charge(n: int) -> int:
        return n

    @compensate(charge)
    async def refund() -> None: ...

    @flow.saga
    async def checkout(n: int) -> None:
        await charge(n)
        raise Broken("no stock")

    async with flow:
        with pytest.raises(Broken):
            await flow.execute(checkout, 1)
    run = telemetry.one("run checkout")
    assert (run.status.status_code, run.status.description) == (StatusCode.ERROR, "Broken: no stock")
    assert (run.attributes or {})["flowlet.run.status"] == "compensated"
    assert is_below(telemetry.one("step refund"), run)


async def test_child_runs_and_runs_that_an_action_starts(telemetry: Telemetry) -> None:
    flow = Flowlet(observers=(telemetry.observer,))

    @step
    async def pack(n: int) -> int:
        return n

    child = flow.saga("child", pack)

    @flow.saga
    async def parent(n: int) -> int:
        return await child(n)

    @flow.machine
    class Order:
        @state(initial=True)
        class Draft: ...

        @state(final=True)
        class Confirmed: ...

        @transition(Draft, Confirmed)
        async def confirm(self) -> str:
            return (await flow.start(parent, 1)).id

    async with flow:
        order = await flow.create(Order(), id="o")
        await flow.handle(await order.confirm(), parent).result()
    move = telemetry.one("transition Order.confirm")
    assert dict(move.attributes or {}) == {
        "flowlet.definition.name": "Order",
        "flowlet.machine.id": "o",
        "flowlet.machine.event": "confirm",
        "flowlet.machine.source": "Draft",
        "flowlet.machine.target": "Confirmed",
        "flowlet.machine.version": 2,
    }
    outer, inner = telemetry.one("run parent"), telemetry.one("run child")
    assert is_below(outer, move)
    assert is_below(inner, telemetry.one("attempt child"))
    traces = {span.context.trace_id for span in telemetry.spans if span.context is not None}
    assert len(traces) == 1


async def test_a_schedule_begins_a_trace_with_each_run(telemetry: Telemetry) -> None:
    from flowlet.stores.memory import MemoryStore

    clock = Clock()
    flow = Flowlet(MemoryStore(clock=clock), observers=(telemetry.observer,))

    @step
    async def report(n: int) -> int:
        return n

    @flow.every(60, args=(1,))
    @flow.saga
    async def daily(n: int) -> int:
        return await report(n)

    async with flow:
        for count in (1, 2):
            await clock.advance(60)
            with anyio.fail_after(20):
                while len([span for span in telemetry.spans if span.name == "run daily"]) < count:
                    await anyio.sleep(0.002)
    one, other = telemetry.one("run daily"), telemetry.one("run daily", 1)
    assert one.parent is other.parent is None
    assert one.context is not None
    assert other.context is not None
    assert one.context.trace_id != other.context.trace_id


async def test_a_run_that_waited_is_linked_to_its_past(telemetry: Telemetry) -> None:
    flow = Flowlet(observers=(telemetry.observer,))

    @flow.saga
    async def order(n: int, run: Run = provided) -> int:
        return await run.receive("payment", type=int)

    async with flow:
        handle = await flow.start(order, 1, id="o")
        with anyio.fail_after(20):
            while not telemetry.spans:
                await anyio.sleep(0.002)
        with telemetry.tracer.start_as_current_span("elsewhere"):
            await handle.send("payment", 3)
        assert await handle.result() == 3
    first, second = telemetry.one("run order"), telemetry.one("run order", 1)
    assert (first.attributes or {})["flowlet.run.status"] == "waiting"
    assert is_below(second, first)
    assert first.context is not None
    assert [link.context.span_id for link in second.links] == [first.context.span_id]
    assert (second.attributes or {})["flowlet.run.resumed"] is True


def test_a_killed_process_and_the_one_that_goes_on(tmp_path: Path) -> None:
    script, url = str(Path(__file__).with_name("otel_process.py")), f"sqlite:///{tmp_path}/flow.db"

    def run(order: str) -> tuple[int, list[dict[str, Any]]]:
        command = [sys.executable, script, url, order]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=ENVIRONMENT)
        assert done.returncode in (0, 9), done.stderr
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]

    code, before = run("die")
    assert code == 9
    assert {span["name"] for span in before} == {"request", "attempt charge", "step charge"}
    (request,) = [span for span in before if span["name"] == "request"]
    (step_before,) = [span for span in before if span["name"] == "step charge"]
    code, after = run("go")
    assert code == 0
    assert [span["name"] for span in after] == ["attempt ship", "step ship", "run checkout"]
    resumed = after[-1]
    assert {span["trace"] for span in [*before, *after]} == {request["trace"]}
    assert resumed["resumed"] is True
    # The first process could not export the span of its run, but the span of its step says which one it was.
    assert resumed["links"] == [[request["trace"], step_before["parent"]]]
    assert resumed["parent"] == step_before["parent"]


async def test_a_transition_that_fails(telemetry: Telemetry) -> None:
    flow = Flowlet(observers=(telemetry.observer,))

    @flow.machine
    class Order:
        @state(initial=True)
        class Draft: ...

        @state(final=True)
        class Confirmed: ...

        @transition(Draft, Confirmed)
        async def confirm(self) -> None:
            raise Broken("no stock")

    async with flow:
        order = await flow.create(Order(), id="o")
        with pytest.raises(Broken):
            await order.confirm()
    move = telemetry.one("transition Order.confirm")
    assert move.status.description == "Broken: no stock"
    assert "flowlet.machine.target" not in (move.attributes or {})


async def test_metrics(telemetry: Telemetry, tmp_path: Path) -> None:
    flow = Flowlet(f"sqlite:///{tmp_path}/f.db?durability=process", observers=(telemetry.observer,), lease=0.3)

    @step
    async def charge(n: int) -> int:
        if n == 0:
            raise Broken
        return n

    saga = flow.saga("s", charge)

    @flow.machine
    class Order:
        @state(initial=True)
        class Draft: ...

        @state(final=True)
        class Confirmed: ...

        @transition(Draft, Confirmed)
        async def confirm(self) -> None: ...

    async with flow:
        for n in (1, 2, 0):
            with contextlib.suppress(Broken):
                await flow.execute(saga, n)
        await (await flow.create(Order(), id="o")).confirm()
        telemetry.observer.tell(LeaseLost(kind="run", id="r"))
        with anyio.fail_after(20):
            while "flowlet.runs.due" not in (metrics := telemetry.metrics()):
                await anyio.sleep(0.01)
    runs = {point.attributes["flowlet.run.status"]: point.value for point in metrics["flowlet.runs"]}
    assert runs == {"completed": 2, "failed": 1}
    times = {p.attributes["flowlet.step.outcome"]: (p.count, p.sum) for p in metrics["flowlet.step.duration"]}
    assert {outcome: count for outcome, (count, _) in times.items()} == {"completed": 2, "failed": 1}
    assert all(0 < seconds < 10 for _, seconds in times.values())
    (moved,) = metrics["flowlet.transition.duration"]
    assert (moved.count, moved.attributes["flowlet.machine.event"]) == (1, "confirm")
    assert metrics["flowlet.commit.size"][0].sum >= 9
    assert [point.value for point in metrics["flowlet.lease.losses"]] == [1]
    assert [point.value for point in metrics["flowlet.runs.active"]] == [0]
    assert [point.value for point in metrics["flowlet.runs.due"]] == [0]


async def test_a_bulk_operation(telemetry: Telemetry) -> None:
    flow = Flowlet(observers=(telemetry.observer,))

    async def send(n: int) -> int:
        with telemetry.tracer.start_as_current_span("mine"):
            if n == 2:
                raise Broken
        return n

    async with flow:
        with telemetry.tracer.start_as_current_span("request"):
            await flow.bulk(send, [1, 2, 3], id="b", retry=1)
    bulk = telemetry.one("bulk send")
    assert is_below(bulk, telemetry.one("request"))
    assert all(is_below(telemetry.one("mine", number), bulk) for number in range(3))
    assert dict(bulk.attributes or {}) == {
        "flowlet.bulk.function": "send",
        "flowlet.run.id": "b",
        "flowlet.bulk.status": "completed",
        "flowlet.bulk.succeeded": 2,
        "flowlet.bulk.failed": 1,
    }
    items = {p.attributes["flowlet.bulk.outcome"]: p.value for p in telemetry.metrics()["flowlet.bulk.items"]}
    assert items == {"succeeded": 2, "failed": 1}


async def test_nothing_of_inputs_and_results_is_shown(telemetry: Telemetry) -> None:
    from typing import Annotated

    flow = Flowlet(observers=(telemetry.observer,))

    @step
    async def charge(card: Annotated[str, Secret]) -> Annotated[str, Secret]:
        return card + "0000"

    charged = flow.saga("s", charge)
    async with flow:
        await flow.execute(charged, "4111")
    assert "4111" not in "".join(span.to_json() for span in telemetry.spans)


async def test_without_a_provider_nothing_is_made_or_stored() -> None:
    observer = OpenTelemetry()
    assert observer.trace("r", "s") is None
    observer.tell(Committed(appends=1))
    flow = Flowlet(observers=(observer,))

    @step
    async def charge(n: int) -> int:
        return n

    saga = flow.saga("s", charge)
    async with flow:
        assert await flow.execute(saga, 1) == 1


async def test_spans_of_runs_that_never_begin_are_let_go(telemetry: Telemetry) -> None:
    for number in range(1_200):
        telemetry.observer.trace(f"r{number}", "s")
    assert len(telemetry.observer._begun) == 1_000


def test_the_extra_is_named_when_it_is_missing() -> None:
    code = (
        "import sys; sys.modules['opentelemetry'] = None\n"
        "from flowlet.errors import MissingExtra\n"
        "try:\n    import flowlet.ext.otel\n"
        "except MissingExtra as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert "pip install 'flowlet[otel]'" in done.stdout
