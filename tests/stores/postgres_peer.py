"""A process that works on a PostgreSQL store beside others; the tests start several and kill some.

As ``share URL EFFECTS FIRST STRIDE COUNT KILL_AT SHIFT`` it starts runs and waits for all of them, its clock being
so many seconds fast; as ``book URL WHEN`` it sees one run with a transactional step to its end, or dies at a chosen
moment around the commit.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

import anyio
import asyncpg
import structlog
import workloads
from killing import Kill, KillingStore, die
from workloads import WORKLOADS, Refused, registries

from flowlet import Flowlet, Registry, provided, step
from flowlet.stores import postgres_work
from flowlet.stores.postgres import PostgresStore

LEASE = 2.0


async def share(url: str, effects: str, first: str, stride: str, count: str, kill_at: str, shift: str) -> None:
    """Start every ``stride``-th run, and wait for the end of all ``count``, whoever has started them."""
    workloads.effects_file = effects
    real, seconds = time.time, float(shift)
    time.time = lambda: real() + seconds
    store = KillingStore(PostgresStore(url), None)  # type: ignore[arg-type]
    flow = Flowlet(store, registry=registries["failing"], lease=LEASE)
    failing, refused = WORKLOADS["failing"].definition, 0
    async with flow:
        async with anyio.create_task_group() as group:
            for number in range(int(first), int(count), int(stride)):
                group.start_soon(_start, flow, failing, number)
        store.kill = Kill(int(kill_at), "after") if int(kill_at) else None
        while len(await flow.store.scan(kind="run", limit=int(count))) < int(count):
            await anyio.sleep(0.01)
        for number in range(int(count)):
            try:
                await flow.handle(f"o-{number}", failing).result()
            except Refused:
                refused += 1
    print(json.dumps({"refused": refused}), flush=True)


async def _start(flow: Flowlet, definition: Any, number: int) -> None:
    await flow.start(definition, 7, id=f"o-{number}")


# ---------------------------------------------------------------- a transactional step
booking = Registry()
moment = ""


@step(transactional=True)
async def book(order: int, connection: asyncpg.Connection = provided) -> int:
    if moment == "before":
        die()
    count: int = await connection.fetchval("INSERT INTO public.booked VALUES ($1) RETURNING name", order)
    if moment == "within":
        die()
    return count


@step
async def tell(order: int) -> int:
    return order + 1


@booking.saga
async def journey(order: int) -> int:
    first = await book(order)
    return await tell(first)


async def see_through(url: str, when: str) -> None:
    """Start the run, or find it, and print its result."""
    global moment  # noqa: PLW0603 - one process, one moment
    moment = when
    commit = postgres_work._commit

    async def killed(transaction: Any) -> None:
        if when == "uncommitted":
            die()
        await commit(transaction)
        if when == "committed":
            die()

    postgres_work._commit = killed
    async with Flowlet(PostgresStore(url), registry=booking, lease=LEASE) as flow:
        handle = await flow.start(journey, 7, id="trip")
        print(json.dumps({"result": await handle.result()}), flush=True)


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    anyio.run({"share": share, "book": see_through}[sys.argv[1]], *sys.argv[2:])
