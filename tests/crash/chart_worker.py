"""Machines with work inside their states, killed at a chosen append, and what must have come of them.

Trials fork like those of `killing`: the parent has one thread and never opens a store.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import workloads
from evidence import effects_by_run
from killing import Kill, KillingStore, When, fork_aside
from workloads import Refused, effect

from flowlet import Flowlet, Registry, compensate, guard, state, step, transition
from flowlet.stores.sqlite import SQLiteStore

registry = Registry()
ABREAST = 8
"""Trials at once: most of their time is spent in waiting."""


@step
async def reserve(order: int) -> int:
    effect(order)
    return order


@compensate(reserve)
async def unreserve(order: int) -> None:
    effect(order)


@step
async def charge(order: int) -> int:
    effect(order)
    if order < 0:
        raise Refused("no money")
    if order == 0:
        await anyio.sleep_forever()
    return order + 1


@registry.saga
async def buy(order: int) -> int:
    await reserve(order)
    return await charge(order)


async def pack(price: int) -> str:
    effect(price)
    await anyio.lowlevel.checkpoint()
    return f"parcel of {price}"


@registry.machine
class Order:
    """Buys by a saga, packs by a function; or is refused; or gives up while it is buying."""

    order: int = 1
    price: int = 0
    parcel: str = ""
    why: str = ""

    @state(initial=True, invoke=buy)
    class Buying: ...

    @state(invoke=pack)
    class Packing: ...

    @state(final=True)
    class Sent: ...

    @state(final=True)
    class Refused: ...

    @state(final=True)
    class Late: ...

    @transition(Buying, Packing, done=True)
    async def bought(self, result: int) -> None:
        self.price += result

    @transition(Buying, Refused, failed=True)
    async def refused(self, error: Exception) -> None:
        self.why += str(error)

    @transition(Buying, Late, after=0.05, guard="is_stuck")
    async def give_up(self) -> None:
        self.why += "late"

    @guard
    def is_stuck(self) -> bool:
        return self.order == 0

    @transition(Packing, Sent, done=True)
    async def packed(self, result: str) -> None:
        self.parcel += result


ORDERS = {"sent": 7, "refused": -7, "late": 0}


def effects_of(database: Path) -> Path:
    return database.with_suffix(".effects")


async def live(database: Path, order: int, kill: Kill | None) -> None:
    """Make the machine unless it is there, and be there until all has ended; never load it."""
    workloads.effects_file = str(effects_of(database))
    store = KillingStore(SQLiteStore(database), kill or Kill(0, "before"))
    flow = Flowlet(store, registry=registry)
    async with flow:
        if await store.load("m", limit=0) is None:
            await flow.create(_order(order), id="m")
        with anyio.fail_after(20):
            while not await all_closed(store):
                await anyio.sleep(0.01)
    database.with_suffix(".writes").write_text(str(store.writes))


def _order(order: int) -> Order:
    made = Order()
    made.order = order
    return made


async def all_closed(store: KillingStore) -> bool:
    heads = [*await store.scan(kind="machine"), *await store.scan(kind="run")]
    return bool(heads) and all(head.closed is not None for head in heads)


async def judge(name: str, database: Path, crashes: int) -> None:
    """Hold the history, the runs and the effects against what must have come of the machine."""
    store = SQLiteStore(database)
    async with Flowlet(store, registry=registry) as flow:
        events = [t.event async for t in flow.history("m")]
        machine = await flow.load(Order, "m")
        runs = {head.id: head for head in await store.scan(kind="run")}
        assert await flow.verify(Order, "m") >= len(events)
    seen = (machine.price, machine.parcel, machine.why)
    counts = {key: Counter(e.key for e in found) for key, found in effects_by_run(effects_of(database)).items()}
    total: Counter[str] = sum(counts.values(), Counter())
    assert all(head.closed is not None and head.owner is None for head in runs.values()), runs
    assert max(total.values(), default=0) <= 1 + crashes, total
    if name == "sent":
        assert events == ["done.invoke.Buying", "done.invoke.Packing"], events
        assert seen == (8, "parcel of 8", ""), seen
        assert "reserve~unreserve" not in total, total
        assert sum(total.values()) <= 3 + crashes, total
    elif name == "refused":
        assert events == ["error.invoke.Buying"], events
        assert seen == (0, "", "no money"), seen
        assert {"reserve", "charge", "reserve~unreserve"} <= set(total), total
        assert sum(total.values()) <= 3 + crashes, total
    else:
        assert len(events) == 1, events
        assert seen == (0, "", "late"), seen
        # What is recorded is undone; a reservation that is cut off before its record may or may not have been made.
        undone = {run for run, found in counts.items() if found["reserve~unreserve"]}
        made = {run for run, found in counts.items() if found["reserve"]}
        recorded = {run for run, found in counts.items() if found["charge"]}
        assert recorded <= undone <= made, counts


def wait_for(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Trials:
    """Trials of one kind of order.

    Attributes:
        kills: how many processes were killed.
    """

    def __init__(self, name: str, folder: Path, backend: str) -> None:
        self.name, self.folder, self.backend = name, folder, backend
        self.kills = 0

    def undisturbed(self) -> int:
        """Return how many appends an undisturbed process makes."""
        self.run([], "calm")
        return int((self.folder / "calm.writes").read_text())

    def run(self, kills: list[Kill], label: str) -> None:
        """Let one process after the other be killed, and the last one see it to its end."""
        database = self.folder / f"{label}.db"
        killed = 0
        for kill in [*kills, None]:
            code = wait_for(fork_aside(live, database, ORDERS[self.name], kill, backend=self.backend))
            if code == -signal.SIGKILL and kill is not None:
                killed += 1
                continue
            if code != 0:
                raise AssertionError(f"{self.name} on {self.backend}, {kills}: a process ended with {code}")
            break
        self.kills += killed
        code = wait_for(fork_aside(judge, self.name, database, killed, backend=self.backend))
        if code != 0:
            raise AssertionError(f"{self.name} on {self.backend}, {kills}: what was left is wrong: see {database}")


def main(name: str, folder: str, backend: str) -> None:
    """Kill a process before and after each append, then some twice; print what was done as JSON."""
    trials = Trials(name, Path(folder), backend)
    appends = trials.undisturbed()
    plans: list[list[Kill]] = []
    for n in range(1, appends + 1):
        whens: tuple[When, When] = ("before", "after")
        plans += [[Kill(n, when)] for when in whens]
        if n % 4 == 1:
            plans.append([Kill(n, whens[n // 4 % 2]), Kill(2, whens[n // 8 % 2])])
    todo = [partial(trials.run, plan, str(place)) for place, plan in enumerate(plans)]
    _abreast(todo, trials)
    print(json.dumps({"appends": appends, "kills": trials.kills, "trials": len(plans) + 1}))


def _abreast(todo: list[Any], trials: Trials) -> None:
    """Make trials in processes of their own, a few at once; each tells its kills by a file."""
    running: dict[int, int] = {}
    failed: list[int] = []
    for place, trial in enumerate(todo):
        while len(running) >= ABREAST:
            _reap(running, failed, trials)
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                trials.kills = 0
                trial()
                (trials.folder / f"{place}.kills").write_text(str(trials.kills))
                code = 0
            except AssertionError as error:
                print(error, file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        running[pid] = place
    while running:
        _reap(running, failed, trials)
    if failed:
        sys.exit(1)


def _reap(running: dict[int, int], failed: list[int], trials: Trials) -> None:
    pid, status = os.wait()
    place = running.pop(pid)
    if os.waitstatus_to_exitcode(status) != 0:
        failed.append(place)
    else:
        trials.kills += int((trials.folder / f"{place}.kills").read_text())


if __name__ == "__main__":
    import asyncio  # noqa: F401 - imported before the first fork, as are these, so that a child starts at once
    import sqlite3  # noqa: F401

    import tenacity  # noqa: F401
    import trio  # noqa: F401

    main(*sys.argv[1:])
