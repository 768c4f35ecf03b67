"""A webhook with Starlette: a payment waits for what its provider says, for days if need be.

    pip install starlette uvicorn
    python examples/starlette_service.py                                     # on http://127.0.0.1:8000
    curl -X POST localhost:8000/payments/p-1 -d '{"amount": 40}'
    curl -X POST localhost:8000/webhooks/payments/p-1 -H 'webhook-id: m-1' -d '{"status": "paid", "reference": "77"}'
    curl localhost:8000/payments/p-1

A provider sends a webhook again until it is answered, perhaps in the middle of a restart: a signal is durable, ordered,
and taken once for its message id. While it waits, the payment costs no task and no memory.
"""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Literal

import msgspec
import uvicorn
from msgspec import Struct
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from flowlet import Flowlet, Registry, Run, provided, step
from flowlet.errors import IdConflict, RunFinished, RunNotFound, SignalTimeout

PATIENCE = timedelta(days=3)

registry = Registry()


class Order(Struct, frozen=True):
    amount: int


class News(Struct, frozen=True):
    """What the payment provider tells."""

    status: Literal["pending", "paid", "refused"]
    reference: str = ""


@step
async def send_receipt(amount: int, reference: str) -> str:
    return f"receipt for {amount}, {reference}"


@registry.saga
async def payment(order: Order, run: Run = provided) -> str:
    while True:
        try:
            news = await run.receive("news", type=News, timeout=PATIENCE)
        except SignalTimeout:
            return "expired"
        if news.status == "paid":
            return await send_receipt(order.amount, news.reference)
        if news.status == "refused":
            return "refused"


async def begin(request: Request) -> Response:
    order = msgspec.json.decode(await request.body(), type=Order)
    await request.app.state.flow.start(payment, order, id=request.path_params["id"])
    return await show(request)


async def hear(request: Request) -> Response:
    news = msgspec.json.decode(await request.body(), type=News)
    message_id = request.headers.get("webhook-id")
    with suppress(RunFinished):  # sent again, or too late: an error would have the provider send it once more
        await request.app.state.flow.handle(request.path_params["id"]).send("news", news, message_id=message_id)
    return Response(status_code=204)


async def show(request: Request) -> Response:
    handle = request.app.state.flow.handle(request.path_params["id"], payment)
    status = await handle.status()
    result = await handle.result() if status == "completed" else None
    return JSONResponse({"status": status, "result": result})


def make_app(flow: Flowlet) -> Starlette:
    flow.include(registry)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with flow:
            app.state.flow = flow
            yield

    def answer(code: int) -> Callable[[Request, Exception], Awaitable[Response]]:
        async def explain(request: Request, error: Exception) -> Response:
            return JSONResponse({"error": str(error)}, code)

        return explain

    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/payments/{id}", begin, methods=["POST"]),
            Route("/payments/{id}", show),
            Route("/webhooks/payments/{id}", hear, methods=["POST"]),
        ],
        exception_handlers={
            RunNotFound: answer(404),
            IdConflict: answer(409),
            msgspec.DecodeError: answer(400),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--store", default="sqlite:///payments.db")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    uvicorn.run(make_app(Flowlet(options.store)), port=options.port)


if __name__ == "__main__":
    main()
