"""A process that is asked to end, killed or stopped while it works on runs; the tests start several of these.

As ``serve`` it starts runs and goes on until it is ended; as ``finish`` it starts nothing and waits until all runs
have ended; as ``watch`` it starts nothing and goes on until it is ended; as ``freeze`` it stops itself in the middle
of a run. Warnings and errors go to stderr, a line of JSON for each.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

import anyio
import structlog
import workloads
from peers import BusyStore
from workloads import Refused, Slip, Workload, effect

from flowlet import Flowlet, Registry, compensate, step
from flowlet.errors import RunError
from flowlet.stores.sqlite import SQLiteStore

registry = Registry()


class Pace:
    """How long steps take in this process, in seconds."""

    short = 0.02
    long = 1.0
    frozen: anyio.Event | None = None


# ---------------------------------------------------------------- definitions
@step
async def take(order: int) -> Slip:
    slip = effect(order)
    await anyio.sleep(Pace.short)
    return slip


@compensate(take)
async def put_back(take: Slip) -> None:
    effect(take.pid)


@step
async def make(order: int) -> Slip:
    slip = effect(order)
    if order < 0:
        print("long", flush=True)
        await anyio.sleep(Pace.long)
    else:
        await anyio.sleep(Pace.short)
    return slip


@step
async def send(order: int) -> Slip:
    slip = effect(order)
    await anyio.sleep(Pace.short)
    return slip


@step
async def refuse(order: int) -> Slip:
    effect(order)
    if Pace.frozen is not None:
        print("holding", flush=True)
        await Pace.frozen.wait()
    raise Refused("no")


@registry.saga
async def serving(order: int) -> Slip:
    await take(order)
    await make(order)
    return await send(order)


@registry.saga
async def refusing(order: int) -> Slip:
    await take(order)
    return await refuse(order)


SERVED = Workload(serving, "completed", {"take": "s", "make": "s", "send": "s"})
REFUSED = Workload(refusing, "compensated", {"take": "s", "refuse": "e"}, {"take": "take~put_back"}, failing="refuse")


# ---------------------------------------------------------------- processes
async def serve(flow: Flowlet, first: int, count: int) -> None:
    """Start runs, as many as told to and one with a long step, and go on until the process is ended."""
    async with flow:
        await flow.start(serving, -1 - first, id=f"long-{first}")
        for number in range(first, first + count):
            await flow.start(serving, number, id=f"o-{number}")
        print("ready", flush=True)
        await anyio.sleep_forever()


async def watch(flow: Flowlet, first: int, count: int) -> None:
    """Call nothing."""
    async with flow:
        print("ready", flush=True)
        await anyio.sleep_forever()


async def finish(flow: Flowlet, first: int, count: int) -> None:
    """Wait until there is no run that has not ended."""
    async with flow:
        while await flow.store.scan(kind="run", status=("running", "compensating"), limit=1):
            await anyio.sleep(0.02)


async def freeze(flow: Flowlet, first: int, count: int) -> None:
    """Stop this process in the middle of a run, and see what it does when it is let go on."""
    Pace.frozen = anyio.Event()
    store = flow.store
    assert isinstance(store, BusyStore)
    async with flow:
        handle = await flow.start(refusing, 1, id="o-1")
        async with anyio.create_task_group() as group:
            group.start_soon(_freeze, store, Pace.frozen)
            try:
                await handle.result()
            except (Refused, RunError) as error:
                print(type(error).__name__, flush=True)
        await anyio.sleep(1.2)  # whatever else it wants to do, now it could


async def _freeze(store: BusyStore, frozen: anyio.Event) -> None:
    await anyio.sleep(0.1)
    while store.busy:
        await anyio.sleep(0)
    os.kill(os.getpid(), signal.SIGSTOP)
    frozen.set()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve", "watch", "finish", "freeze"])
    parser.add_argument("database", type=Path)
    parser.add_argument("effects")
    parser.add_argument("--backend", default="asyncio")
    parser.add_argument("--name")
    parser.add_argument("--grace", type=float, default=10.0)
    parser.add_argument("--lease", type=float, default=10.0)
    parser.add_argument("--long", type=float, default=1.0)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=0)
    options = parser.parse_args()
    structlog.configure(
        processors=[structlog.processors.add_log_level, structlog.processors.JSONRenderer(default=repr)],
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    workloads.effects_file = options.effects
    Pace.long = options.long
    flow = Flowlet(
        BusyStore(SQLiteStore(options.database), None),
        registry=registry,
        name=options.name,
        grace=options.grace,
        lease=options.lease,
    )
    command = {"serve": serve, "watch": watch, "finish": finish, "freeze": freeze}[options.command]
    anyio.run(command, flow, options.first, options.count, backend=options.backend)


if __name__ == "__main__":
    main()
