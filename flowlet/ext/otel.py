"""Spans and metrics of OpenTelemetry, as an observer: ``pip install 'flowlet[otel]'``.

Law: it needs the API alone, and speaks to whatever providers the program has set up; without any, it does nothing. No
input, result or data of a machine is shown; what an exception says is.

The context of a run's first span is stored in the run's history, as a W3C ``traceparent``. Whoever takes the run up
makes a further span in the same trace, a child of the first one and linked to it: a span cannot stay open while no
process is there.

Spans: ``run <definition>``, ``step <name>``, ``attempt <name>``, ``transition <machine>.<event>`` and
``bulk <function>``. Those of attempts, transitions and bulk operations and, in a run's body, that of the run are
current while your own code runs, so that what it calls is below them. Attributes:

======================================================  ===============================================================
on all of a run                                         ``flowlet.run.id``, ``flowlet.definition.name``
on runs                                                 ``flowlet.definition.version``, ``flowlet.run.kind``,
                                                        ``flowlet.run.status``, ``flowlet.run.resumed``,
                                                        ``flowlet.run.parent_id``
on steps and attempts                                   ``flowlet.step.name``, ``flowlet.step.key``,
                                                        ``flowlet.step.outcome``, ``flowlet.step.attempts``,
                                                        ``flowlet.step.attempt``
on transitions                                          ``flowlet.definition.name``, ``flowlet.machine.id``,
                                                        ``flowlet.machine.event``, ``flowlet.machine.source``,
                                                        ``flowlet.machine.target``, ``flowlet.machine.version``
on bulk operations                                      ``flowlet.bulk.function``, ``flowlet.run.id``,
                                                        ``flowlet.bulk.status``, ``flowlet.bulk.succeeded``,
                                                        ``flowlet.bulk.failed``
on what has failed                                      ``error.type``
======================================================  ===============================================================

Metrics: ``flowlet.runs`` (a count, by definition, kind and status), ``flowlet.runs.active`` and ``flowlet.runs.due``
(runs that this process works on, and that nobody works on though they could go on), ``flowlet.step.duration`` (in
seconds, by definition, step and outcome), ``flowlet.transition.duration`` (by machine and event),
``flowlet.bulk.items`` (a count, by function and outcome), ``flowlet.lease.losses`` (a count, by kind) and
``flowlet.commit.size`` (appends in a commit of the store).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

from flowlet.errors import MissingExtra
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

try:
    from opentelemetry import metrics, trace
    from opentelemetry.context import Context
    from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
    from opentelemetry.trace import Link, Span, Status, StatusCode, TracerProvider
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as _problem:
    raise MissingExtra(
        "flowlet.ext.otel needs opentelemetry-api; install it with: pip install 'flowlet[otel]'"
    ) from _problem

_FIELD: Final = "traceparent"
_FAILED: Final = ("failed", "compensated", "compensation_failed", "parked", "needs_attention")
_MOST_BEGUN: Final = 1_000
"""Spans of runs that have been made and whose runs have not begun here; most of those were not to be."""

_propagator: Final = TraceContextTextMapPropagator()


class OpenTelemetry(Observer):
    """Makes spans and metrics of what a `Flowlet` does; use one object for each Flowlet.

    Args:
        tracer_provider: makes the tracer; the global one by default.
        meter_provider: makes the meter; the global one by default.

    Raises:
        MissingExtra: opentelemetry-api is not installed (when this module is imported).

    Example:
        >>> from opentelemetry.sdk.trace import TracerProvider
        >>> from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        >>> from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        >>> from flowlet import Flowlet, step
        >>> from flowlet.ext.otel import OpenTelemetry
        >>> spans = InMemorySpanExporter()
        >>> provider = TracerProvider()
        >>> provider.add_span_processor(SimpleSpanProcessor(spans))
        >>> flow = Flowlet(observers=(OpenTelemetry(provider),))
        >>> @step
        ... async def charge(amount: int) -> int:
        ...     return amount
        >>> checkout = flow.saga("checkout", charge)
        >>> flow.run(checkout, 120)
        120
        >>> [span.name for span in spans.get_finished_spans()]
        ['attempt charge', 'step charge', 'run checkout']
    """

    def __init__(
        self, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        self._tracer = trace.get_tracer("flowlet", tracer_provider=tracer_provider)
        meter = metrics.get_meter("flowlet", meter_provider=meter_provider)
        self._count_runs = meter.create_counter("flowlet.runs", "{run}", "Runs that have been left, by their status.")
        self._count_losses = meter.create_counter("flowlet.lease.losses", "{lease}", "Leases that were lost.")
        self._time_steps = meter.create_histogram("flowlet.step.duration", "s", "Time of a step, pauses included.")
        self._time_transitions = meter.create_histogram("flowlet.transition.duration", "s", "Time of a transition.")
        self._count_items = meter.create_counter("flowlet.bulk.items", "{item}", "Items of bulk operations.")
        self._size_commits = meter.create_histogram("flowlet.commit.size", "{append}", "Appends in a commit.")
        meter.create_observable_gauge("flowlet.runs.active", [self._see_active], "{run}", "Runs under way here.")
        meter.create_observable_gauge("flowlet.runs.due", [self._see_due], "{run}", "Runs that nobody works on.")
        self._due: int | None = None
        self._begun: OrderedDict[str, Span] = OrderedDict()
        self._runs: dict[str, Span] = {}
        self._steps: dict[tuple[str, str], Span] = {}
        self._attempts: dict[tuple[str, str], Span] = {}
        self._transitions: dict[str, Span] = {}
        self._bulks: dict[int, Span] = {}
        self._takers: dict[type, Any] = {
            RunBegan: self._begin_run,
            RunLeft: self._leave_run,
            StepBegan: self._begin_step,
            StepEnded: self._end_step,
            AttemptBegan: self._begin_attempt,
            AttemptEnded: self._end_attempt,
            TransitionBegan: self._begin_transition,
            TransitionEnded: self._end_transition,
            BulkBegan: self._begin_bulk,
            BulkEnded: self._end_bulk,
            LeaseLost: lambda event: self._count_losses.add(1, {"flowlet.lease.kind": event.kind}),
            Committed: lambda event: self._size_commits.record(event.appends),
            Queued: self._note_queue,
        }

    def tell(self, event: Event) -> None:
        """Make or end a span, or count."""
        take = self._takers.get(type(event))
        if take is not None:
            take(event)

    def around(self, work: Work) -> AbstractContextManager[Any] | None:
        """Have the span of the work be the current one, so that spans of the user's own are below it."""
        if isinstance(work, RunBegan):
            span = self._runs.get(work.run_id)
        elif isinstance(work, AttemptBegan):
            span = self._attempts.get((work.run_id, work.step))
        elif isinstance(work, BulkBegan):
            span = self._bulks.get(id(work))
        else:
            span = self._transitions.get(work.machine)
        if span is None:
            return None
        return trace.use_span(span, record_exception=False, set_status_on_exception=False)

    def trace(self, run_id: str, definition: str) -> str | None:
        """Begin the span of a run, below what is current where it is started; return its ``traceparent``."""
        span = self._tracer.start_span(f"run {definition}", attributes=_of_run(run_id, definition))
        parent = _traceparent(span)
        if parent is not None:
            self._begun[run_id] = span
            if len(self._begun) > _MOST_BEGUN:  # of runs that were there already, or were not stored
                self._begun.popitem(last=False)
        return parent

    # Runs -----------------------------------------------------------------------------------------
    def _begin_run(self, event: RunBegan) -> None:
        span = self._begun.pop(event.run_id, None)
        if span is None or event.trace is None or _traceparent(span) != event.trace:
            span = self._go_on(event)
        span.set_attribute("flowlet.definition.version", event.version)
        span.set_attribute("flowlet.run.kind", event.kind)
        span.set_attribute("flowlet.run.resumed", event.resumed)
        if event.parent is not None:
            span.set_attribute("flowlet.run.parent_id", event.parent)
        self._runs[event.run_id] = span

    def _go_on(self, event: RunBegan) -> Span:
        """Make a span of a run whose first one is elsewhere, or long past."""
        context: Context | None = None
        links: list[Link] = []
        if event.trace is not None:
            context = _propagator.extract({_FIELD: event.trace}, Context())
            links = [Link(trace.get_current_span(context).get_span_context())]
        attributes = _of_run(event.run_id, event.definition)
        return self._tracer.start_span(f"run {event.definition}", context, attributes=attributes, links=links)

    def _leave_run(self, event: RunLeft) -> None:
        kind = {"flowlet.definition.name": event.definition, "flowlet.run.kind": event.kind}
        self._count_runs.add(1, {**kind, "flowlet.run.status": event.status})
        span = self._runs.pop(event.run_id, None)
        if span is not None:
            span.set_attribute("flowlet.run.status", event.status)
            if event.status in _FAILED:
                _fail(span, event.error, event.status, is_news=True)
            span.end()

    # Steps ----------------------------------------------------------------------------------------
    def _begin_step(self, event: StepBegan) -> None:
        attributes = {**_of_run(event.run_id, event.definition), **_of_step(event)}
        context = _below(self._runs.get(event.run_id))
        self._steps[event.run_id, event.step] = self._tracer.start_span(
            f"step {event.name}", context, attributes=attributes
        )

    def _end_step(self, event: StepEnded) -> None:
        measured = {
            "flowlet.definition.name": event.definition,
            "flowlet.step.name": event.name,
            "flowlet.step.outcome": event.outcome,
        }
        self._time_steps.record(event.seconds, measured)
        span = self._steps.pop((event.run_id, event.step), None)
        if span is not None:
            span.set_attribute("flowlet.step.outcome", event.outcome)
            span.set_attribute("flowlet.step.attempts", event.attempts)
            if event.outcome == "failed":
                _fail(span, event.error, event.outcome, is_news=False)
            span.end()

    def _begin_attempt(self, event: AttemptBegan) -> None:
        key = event.run_id, event.step
        attributes: dict[str, Any] = {**_of_run(event.run_id, event.definition), **_of_step(event)}
        attributes["flowlet.step.attempt"] = event.attempt
        self._attempts[key] = self._tracer.start_span(
            f"attempt {event.name}", _below(self._steps.get(key)), attributes=attributes
        )

    def _end_attempt(self, event: AttemptEnded) -> None:
        span = self._attempts.pop((event.run_id, event.step), None)
        if span is not None:
            if isinstance(event.error, Exception):
                _fail(span, event.error, "failed", is_news=True)
            span.end()

    # Machines -------------------------------------------------------------------------------------
    def _begin_transition(self, event: TransitionBegan) -> None:
        self._transitions[event.machine] = self._tracer.start_span(
            f"transition {event.definition}.{event.event}",
            attributes={
                "flowlet.definition.name": event.definition,
                "flowlet.machine.id": event.machine,
                "flowlet.machine.event": event.event,
                "flowlet.machine.source": event.source,
            },
        )

    def _end_transition(self, event: TransitionEnded) -> None:
        measured = {"flowlet.definition.name": event.definition, "flowlet.machine.event": event.event}
        self._time_transitions.record(event.seconds, measured)
        span = self._transitions.pop(event.machine, None)
        if span is not None:
            if event.committed:
                span.set_attribute("flowlet.machine.target", event.target)
                span.set_attribute("flowlet.machine.version", event.version)
            if isinstance(event.error, Exception):
                _fail(span, event.error, "failed", is_news=True)
            span.end()

    # Bulk operations ------------------------------------------------------------------------------
    def _begin_bulk(self, event: BulkBegan) -> None:
        attributes = {"flowlet.bulk.function": event.function}
        if event.run_id is not None:
            attributes["flowlet.run.id"] = event.run_id
        self._bulks[id(event)] = self._tracer.start_span(f"bulk {event.function}", attributes=attributes)

    def _end_bulk(self, event: BulkEnded) -> None:
        function = {"flowlet.bulk.function": event.began.function}
        self._count_items.add(event.succeeded, {**function, "flowlet.bulk.outcome": "succeeded"})
        self._count_items.add(event.failed, {**function, "flowlet.bulk.outcome": "failed"})
        span = self._bulks.pop(id(event.began), None)
        if span is not None:
            span.set_attribute("flowlet.bulk.status", event.status)
            span.set_attribute("flowlet.bulk.succeeded", event.succeeded)
            span.set_attribute("flowlet.bulk.failed", event.failed)
            if event.status in ("failed", "timed_out", "broken"):
                _fail(span, event.error, event.status, is_news=True)
            span.end()

    # How much there is to do ----------------------------------------------------------------------
    def _note_queue(self, event: Queued) -> None:
        self._due = event.due

    def _see_active(self, _: CallbackOptions) -> Iterable[Observation]:
        return [Observation(len(self._runs))]

    def _see_due(self, _: CallbackOptions) -> Iterable[Observation]:
        return [] if self._due is None else [Observation(self._due)]


def _of_run(run_id: str, definition: str) -> dict[str, str]:
    return {"flowlet.run.id": run_id, "flowlet.definition.name": definition}


def _of_step(event: StepBegan | AttemptBegan) -> dict[str, str]:
    return {"flowlet.step.name": event.name, "flowlet.step.key": event.step}


def _below(span: Span | None) -> Context | None:
    """Return the context in which another span is a child of this one."""
    return None if span is None else trace.set_span_in_context(span)


def _traceparent(span: Span) -> str | None:
    """Return how a span is named in other processes; None when it is none."""
    carrier: dict[str, str] = {}
    _propagator.inject(carrier, _below(span))
    found: Mapping[str, str] = carrier
    return found.get(_FIELD)


def _fail(span: Span, error: BaseException | None, status: str, *, is_news: bool) -> None:
    """Say of a span that it has failed.

    Args:
        is_news: no span below it has the exception.
    """
    if error is None:
        span.set_status(Status(StatusCode.ERROR, status))
        return
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    span.set_attribute("error.type", name)
    span.set_status(Status(StatusCode.ERROR, f"{kind.__qualname__}: {error}"))
    if is_news:
        span.record_exception(error)
