"""An order service with FastAPI: orders are machines, a saga follows their confirmation, large ones need an approval.

    pip install fastapi uvicorn
    python examples/fastapi_service.py           # on http://127.0.0.1:8000; try it with the page /docs

Kill it with ``kill -9`` whenever you like and start it again: entering the `Flowlet` in the lifespan of the app takes
up what was under way. No request waits for what takes long: it starts that, and ``GET /orders/{id}`` tells of it.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import uvicorn
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from msgspec import Struct
from pydantic import BaseModel, Field

from flowlet import Flowlet, Registry, Run, compensate, in_state, level, provided, state, step, transition
from flowlet.errors import ApprovalError, FlowletError, IdConflict, RunNotFound, TransitionNotAllowed

NEEDS_APPROVAL = 1_000
"""Euros from which a manager has to agree."""

MANAGERS = {"bob", "eve"}

registry = Registry()


class World:
    """What the service does outside of itself: each effect is a line of a file, made once for its key.

    Args:
        crash_at: kills the process behind so many effects, before anybody knows of the last one; 0 for never.
    """

    def __init__(self, path: Path, crash_at: int = 0) -> None:
        self._path, self._left = path, crash_at

    def do(self, key: str, what: str) -> None:
        known = self._path.read_text().splitlines() if self._path.exists() else []
        if any(line.split("\t")[0] == key for line in known):
            return  # what a payment service does with an idempotency key that it has seen
        with self._path.open("a") as file:
            file.write(f"{key}\t{what}\n")
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


# ---------------------------------------------------------------- the order
@registry.machine
@dataclass
class Order:
    id: str
    customer: str
    sku: str
    total: int
    label: str = ""

    @state(initial=True)
    class Draft: ...

    @state
    class Confirmed: ...

    @state(final=True)
    class Shipped: ...

    @state(final=True)
    class Cancelled: ...

    @transition(Draft, Confirmed)
    async def confirm(self, flow: Flowlet = provided) -> None:
        # Started in an action, the saga begins with the commit of the transition: never one without the other.
        await flow.start(fulfil, Wanted(self.id, self.customer, self.sku, self.total), id=run_of(self.id))

    @transition(Confirmed, Shipped)
    async def ship(self, label: str) -> None:
        self.label = label

    @transition((Draft, Confirmed), Cancelled)
    async def cancel(self) -> None: ...

    @property
    def status(self) -> str:
        return next(s.__name__ for s in (self.Draft, self.Confirmed, self.Shipped, self.Cancelled) if in_state(self, s))


# ---------------------------------------------------------------- what follows its confirmation
class Wanted(Struct, frozen=True):
    order: str
    customer: str
    sku: str
    total: int


class Refused(Exception):
    """A manager does not agree."""


agreement = registry.approval("agreement", level("manager", role="manager"), type=Wanted)


@step
async def reserve(wanted: Wanted, run: Run = provided, world: World = provided) -> None:
    world.do(run.idempotency_key, f"reserve {wanted.sku}")


@compensate(reserve)
async def put_back(wanted: Wanted, run: Run = provided, world: World = provided) -> None:
    world.do(run.idempotency_key, f"put back {wanted.sku}")


@step(retry=3, timeout=10)
async def charge(wanted: Wanted, run: Run = provided, world: World = provided) -> None:
    world.do(run.idempotency_key, f"charge {wanted.total}")


@step
async def send(wanted: Wanted, run: Run = provided, world: World = provided) -> str:
    world.do(run.idempotency_key, f"send {wanted.sku}")
    return f"label-{wanted.order}"


@step
async def ship_order(order: str, label: str, flow: Flowlet = provided) -> None:
    await (await flow.load(Order, order)).ship(label)


@step
async def cancel_order(order: str, flow: Flowlet = provided) -> None:
    await (await flow.load(Order, order)).cancel()


@registry.saga
async def fulfil(wanted: Wanted) -> str:
    await reserve(wanted)
    if wanted.total >= NEEDS_APPROVAL:
        outcome = await agreement(wanted, requester=wanted.customer)
        if not outcome.approved:
            await cancel_order(wanted.order)
            raise Refused(outcome.reason)  # what was reserved is put back
    await charge(wanted)
    label = await send(wanted)
    await ship_order(wanted.order, label)
    return label


def run_of(order: str) -> str:
    return f"{order}:fulfil"


def agreement_of(order: str) -> str:
    return f"{run_of(order)}/agreement"


# ---------------------------------------------------------------- the web
class NewOrder(BaseModel):
    id: str = Field(pattern=r"^[\w-]{1,64}$")  # it stands in addresses and in the ids of runs
    customer: str
    sku: str
    total: int = Field(ge=0)


class Decision(BaseModel):
    by: str
    comment: str = ""


class Shown(BaseModel):
    id: str
    state: str
    label: str
    fulfilment: str | None
    done: list[str]


router = APIRouter(prefix="/orders")


def the_flow(request: Request) -> Flowlet:
    flow: Flowlet = request.app.state.flow
    return flow


Live = Annotated[Flowlet, Depends(the_flow)]


@router.post("", status_code=201)
async def create(order: NewOrder, flow: Live) -> Shown:
    await flow.create(Order(**order.model_dump()), id=order.id)  # again with the same data: the order as it is
    return await show(order.id, flow)


@router.post("/{id}/confirm", status_code=202)
async def confirm(id: str, flow: Live) -> Shown:
    await (await flow.load(Order, id)).confirm()
    return await show(id, flow)


@router.post("/{id}/approve", status_code=202)
async def approve(id: str, decision: Decision, flow: Live) -> Shown:
    await flow.approve(agreement_of(id), by=decision.by, comment=decision.comment)
    return await show(id, flow)


@router.post("/{id}/reject", status_code=202)
async def reject(id: str, decision: Decision, flow: Live) -> Shown:
    await flow.reject(agreement_of(id), by=decision.by, comment=decision.comment)
    return await show(id, flow)


@router.get("/{id}")
async def show(id: str, flow: Live) -> Shown:
    order = await flow.load(Order, id)
    try:
        handle = flow.handle(run_of(id))
        status: str | None = await handle.status()
        done = [name for name, part in (await handle.report()).steps.items() if part.status == "completed"]
    except RunNotFound:  # it was not confirmed yet
        status, done = None, []
    return Shown(id=id, state=order.status, label=order.label, fulfilment=status, done=done)


async def explain(request: Request, error: Exception) -> JSONResponse:
    """Answer with what flowlet says: its messages are meant to be read."""
    conflicts = (TransitionNotAllowed, IdConflict, ApprovalError)
    code = 404 if isinstance(error, RunNotFound) else 409 if isinstance(error, conflicts) else 500
    return JSONResponse({"error": str(error)}, code)


def make_app(flow: Flowlet) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with flow:  # takes up what was under way when the last process died
            app.state.flow = flow
            yield

    app = FastAPI(title="orders", lifespan=lifespan)
    app.include_router(router)
    app.add_exception_handler(FlowletError, explain)
    return app


def make_flow(url: str, world: World) -> Flowlet:
    flow = Flowlet(url, registry=registry, authorize=lambda person: {"manager"} if person in MANAGERS else set())
    flow.provide(World, world)
    return flow


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--store", default="sqlite:///orders.db")
    parser.add_argument("--effects", type=Path, default=Path("orders.effects"))
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free")
    parser.add_argument("--crash-at", type=int, default=0, help="kill the server behind so many effects")
    options = parser.parse_args()
    flow = make_flow(options.store, World(options.effects, options.crash_at))
    uvicorn.run(make_app(flow), port=options.port)


if __name__ == "__main__":
    main()
