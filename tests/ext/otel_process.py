"""A process whose run is killed in its second step, or that goes on with it: prints a line of JSON for each span.

python tests/ext/otel_process.py URL die|go
"""

from __future__ import annotations

import json
import os
import sys

import anyio
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor

from flowlet import Flowlet, step
from flowlet.ext.otel import OpenTelemetry


def line(span: ReadableSpan) -> str:
    context, parent = span.context, span.parent
    assert context is not None
    shown = {
        "name": span.name,
        "trace": context.trace_id,
        "id": context.span_id,
        "parent": None if parent is None else parent.span_id,
        "links": [[link.context.trace_id, link.context.span_id] for link in span.links],
        "resumed": (span.attributes or {}).get("flowlet.run.resumed"),
    }
    return json.dumps(shown) + "\n"


url, order = sys.argv[1:]
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=line)))
flow = Flowlet(url, observers=(OpenTelemetry(provider),))


@step
async def charge(n: int) -> int:
    return n


@step
async def ship(charge: int) -> int:
    if order == "die":
        sys.stdout.flush()
        os._exit(9)
    return charge


checkout = flow.saga("checkout", charge, ship)


async def main() -> None:
    async with flow:
        if order == "die":
            with provider.get_tracer("web").start_as_current_span("request"):
                await flow.start(checkout, 1, id="c")
            await anyio.sleep(20)
        await flow.handle("c", checkout).result()


anyio.run(main)
