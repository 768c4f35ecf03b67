"""A process that shares its database with others; the tests start several and kill or pause some.

As ``share DATABASE EFFECTS FIRST STRIDE COUNT KILL_AT`` it starts runs and waits for all of them; as ``pause
DATABASE EFFECTS BACKEND`` it starts runs and stops itself in the middle of them; as ``rescue DATABASE EFFECTS
BACKEND`` it starts nothing and waits until all runs have ended.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import structlog
import workloads
from killing import Kill, KillingStore
from workloads import WORKLOADS, Flaky, Refused, Slip, effect, registries

from flowlet import Flowlet, Registry, Retry, compensate, gather, step
from flowlet.stores.sqlite import SQLiteStore

T = TypeVar("T")
SHORT_LEASE = 1.0


# ---------------------------------------------------------------- sharing many runs
async def start_one(flow: Flowlet, number: int) -> None:
    await flow.start(WORKLOADS["failing"].definition, 7, id=f"o-{number}")


async def share(database: Path, first: int, stride: int, count: int, kill_at: int) -> None:
    """Start every ``stride``-th run, and wait for the end of all ``count``, whoever has started them.

    Args:
        kill_at: once all are started, die after so many writes; 0 for never.
    """
    store = KillingStore(SQLiteStore(database), None)
    flow = Flowlet(store, registry=registries["failing"])
    failing = WORKLOADS["failing"].definition
    refused = 0
    async with flow:
        async with anyio.create_task_group() as group:
            for number in range(first, count, stride):
                group.start_soon(start_one, flow, number)
        store.kill = Kill(kill_at, "after") if kill_at else None
        while len(await flow.store.scan(kind="run", limit=count)) < count:
            await anyio.sleep(0.01)
        for number in range(count):
            try:
                await flow.handle(f"o-{number}", failing).result()
            except Refused:
                refused += 1
        print(json.dumps({"refused": refused}), flush=True)


# ---------------------------------------------------------------- being paused
class Pause:
    """Where the steps of a process that is going to be paused wait for that."""

    here = False
    waiting = 0
    over: anyio.Event

    @classmethod
    async def now(cls) -> None:
        """Wait, in the process that is paused; in the others, give it time to come back before anything is recorded."""
        if cls.here:
            cls.waiting += 1
            await cls.over.wait()
        else:
            await anyio.sleep(0.3)


@step
async def open_box(order: int) -> Slip:
    return effect(order)


@compensate(open_box)
async def close_box(order: int, open_box: Slip) -> None:
    effect(order)
    if order == 1:
        await Pause.now()


@step
async def fail(order: int) -> Slip:
    effect(order)
    if order == 0:
        await Pause.now()
    raise Refused("no")


@step(retry=Retry(attempts=2, wait=2.5))
async def ask(order: int) -> Slip:
    effect(order)
    if Pause.here:
        Pause.waiting += 1  # in a moment it waits for its second attempt
        raise Flaky("later")
    raise Refused("never")


@step
async def hold(order: int) -> Slip:
    slip = effect(order)
    await Pause.now()
    return slip


paused = Registry()


@paused.saga
async def failing_after_the_pause(order: int) -> Slip:
    await open_box(order)
    return await fail(order)


@paused.saga
async def retrying_after_the_pause(order: int) -> Slip:
    await open_box(order)
    return await ask(order)


@paused.saga
async def gathering_over_the_pause(order: int) -> Slip:
    await open_box(order)
    slips = await gather(hold(order), hold(order))
    return slips[0]


@paused.saga
async def failing_while_gathering(order: int) -> Slip:
    await open_box(order)
    slips = await gather(hold(order), fail(0), hold(order))
    return slips[0]


RUNS: dict[str, tuple[Callable[[int], Awaitable[Slip]], int]] = {
    "fails": (failing_after_the_pause, 0),
    "compensates": (failing_after_the_pause, 1),
    "retries": (retrying_after_the_pause, 2),
    "gathers": (gathering_over_the_pause, 3),
    "gathers and fails": (failing_while_gathering, 4),
}
WAITING = 1 + 1 + 1 + 2 + 3  # steps that are held when the process is stopped


class BusyStore(KillingStore):
    """Knows whether a write is under way: a process that is stopped with the file's lock would stop all."""

    busy = 0

    async def _write(self, method: Callable[[], Awaitable[T]], is_append: bool = False) -> T:
        self.busy += 1
        try:
            return await method()
        finally:
            self.busy -= 1


async def pause(database: Path) -> None:
    """Start runs, stop this process when all are in the middle of something, and go on when it is told to."""
    Pause.here, Pause.over = True, anyio.Event()
    store = BusyStore(SQLiteStore(database), None)
    flow = Flowlet(store, registry=paused, lease=SHORT_LEASE)
    async with flow:
        handles = {id: await flow.start(saga, order, id=id) for id, (saga, order) in RUNS.items()}
        while Pause.waiting < WAITING or store.busy:
            await anyio.sleep(0.002)
        print("stopping", flush=True)
        while store.busy:
            await anyio.sleep(0)
        os.kill(os.getpid(), signal.SIGSTOP)
        Pause.over.set()
        ends = {id: await outcome(handle.result()) for id, handle in handles.items()}
        await anyio.sleep(SHORT_LEASE * 1.5)  # whatever else it wants to do, now it could
    print(json.dumps({"ends": ends, "log": log}), flush=True)


log: list[tuple[str, str | None]] = []
"""What the process has to say that is more than information: event and run."""


def keep_log(logger: Any, method: str, event: Any) -> Any:
    if method in ("warning", "error", "critical"):
        log.append((event["event"], event.get("run_id")))
    raise structlog.DropEvent


async def rescue(database: Path) -> None:
    """Wait for the end of all runs."""
    async with Flowlet(SQLiteStore(database), registry=paused, lease=SHORT_LEASE) as flow:
        print(json.dumps({id: await outcome(flow.handle(id).result()) for id in RUNS}), flush=True)


async def outcome(result: Awaitable[Any]) -> str:
    try:
        return type(await result).__name__
    except Exception as error:
        return repr(error)


def main(command: str, database: str, effects: str, *options: str) -> None:
    if command == "pause":
        structlog.configure(processors=[keep_log])
    else:
        structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    workloads.effects_file = effects
    if command == "share":
        anyio.run(share, Path(database), *map(int, options))
    else:
        anyio.run({"pause": pause, "rescue": rescue}[command], Path(database), backend=options[0])


if __name__ == "__main__":
    main(*sys.argv[1:])
