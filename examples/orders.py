"""An order service on SQLite that survives ``kill -9``.

    python examples/orders.py                    # does all the work and prints a summary
    python examples/orders.py --crash-at 137     # kills itself after 137 recorded steps; run it again without

It reads order lines from a CSV file and drives each order, an `Order` machine, through a `checkout` saga. Each thing
that a step does to the world is a line in an append-only file, so that it can be counted afterwards what was done,
and how often. Ids are idempotency keys: running it a third time changes nothing.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Literal

import anyio
import msgspec
from msgspec import Meta, Struct

from flowlet import Flowlet, Registry, Retry, compensate, current_run, gather, provided, state, step, transition
from flowlet.core.run_records import StepEnded, StepErred, run_record_codec
from flowlet.errors import RunNotFound
from flowlet.store import Work, Write
from flowlet.stores.sqlite import SQLiteStore

SOLD = {"CHAIR-03", "CLOCK-07", "DESK-02", "LAMP-01", "MIRROR-08", "RUG-05", "SHELF-04", "VASE-06"}
MOST_OF_ONE, MOST_IN_PARCEL = 40, 30  # pieces

registry = Registry()


# ---------------------------------------------------------------- what comes in
class Line(Struct, frozen=True, forbid_unknown_fields=True):
    """A line of the file; msgspec checks it."""

    order: Annotated[str, Meta(pattern=r"^o-\d+$")]
    customer: Annotated[str, Meta(pattern=r"^[\w.+-]+@[\w.-]+$")]
    sku: Annotated[str, Meta(pattern=r"^[A-Z]+-\d\d$")]
    quantity: Annotated[int, Meta(ge=1)]
    price: Decimal
    currency: Literal["EUR", "GBP", "USD"]
    card: Annotated[str, Meta(pattern=r"^tok-[\w-]+$")]

    def __post_init__(self) -> None:
        if not (self.price.is_finite() and self.price > 0):
            raise ValueError(f"the price is {self.price}")


class Purchase(Struct, frozen=True):
    id: str
    customer: str
    currency: str
    card: str
    lines: list[Line]

    @property
    def pieces(self) -> int:
        return sum(line.quantity for line in self.lines)

    @property
    def total(self) -> Decimal:
        return sum((line.quantity * line.price for line in self.lines), Decimal())


def read(path: Path) -> tuple[list[Purchase], list[str]]:
    """Return the orders of a file, and what is wrong with each line that has to be left out."""
    orders: dict[str, Purchase] = {}
    rejected: list[str] = []
    with path.open(newline="", encoding="utf-8", errors="backslashreplace") as file:
        rows = csv.DictReader(file, restkey="surplus")
        for row in rows:
            try:
                line = msgspec.convert(row, Line, strict=False)
                new = Purchase(line.order, line.customer, line.currency, line.card, [])
                order = orders.get(new.id, new)
                if (order.customer, order.currency, order.card) != (new.customer, new.currency, new.card):
                    raise ValueError(f"customer, currency or card differ from those of {new.id} above")
            except (ValueError, msgspec.ValidationError) as error:
                rejected.append(f"line {rows.line_num}: {error}")
            else:
                orders.setdefault(new.id, new).lines.append(line)
    return list(orders.values()), rejected


# ---------------------------------------------------------------- the machine
@registry.machine
@dataclass
class Order:
    total: Decimal

    @state(initial=True)
    class Draft: ...

    @state
    class Confirmed: ...

    @state(final=True)
    class Shipped: ...

    @state(final=True)
    class Cancelled: ...

    @transition(Draft, Confirmed)
    async def confirm(self) -> None: ...

    @transition(Confirmed, Shipped)
    async def ship(self) -> None: ...

    @transition((Draft, Confirmed), Cancelled)
    async def cancel(self) -> None: ...


# ---------------------------------------------------------------- the saga
class Refused(Exception):
    """The order cannot be done, for the reason given first; what was done of it is undone."""


class World(Struct, frozen=True):
    """The outside world: an append-only file with a line for each thing done to it, under its idempotency key."""

    path: Path

    def do(self, what: str) -> None:
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, f"{current_run().idempotency_key}\t{what}\n".encode())
        os.close(file)

    def keys(self) -> list[str]:
        return [line.partition("\t")[0] for line in self.path.read_text().splitlines()] if self.path.exists() else []


@step
async def place(order: Purchase, flow: Flowlet = provided, world: World = provided) -> None:
    await flow.create(Order(order.total), id=order.id)
    world.do("place")


@compensate(place)
async def cancel(order: Purchase, flow: Flowlet = provided, world: World = provided) -> None:
    await (await flow.load(Order, order.id)).cancel()
    world.do("cancel")


@step
async def reserve(order: Purchase, world: World = provided) -> str:
    for line in order.lines:
        if line.sku not in SOLD or line.quantity > MOST_OF_ONE:
            raise Refused("out of stock", f"{line.quantity} of {line.sku}")
    world.do(f"reserve {order.pieces} pieces")
    return f"reservation-{order.id}"


@compensate(reserve)
async def release(reserve: str, world: World = provided) -> None:  # the step's name is its recorded result
    world.do(f"release {reserve}")


@step(retry=Retry(attempts=3, wait=0.1, on=ConnectionError), timeout=10)
async def charge(order: Purchase, flow: Flowlet = provided, world: World = provided) -> str:
    if order.card.endswith("0002"):
        raise Refused("card declined", order.card)
    world.do(f"charge {order.total} {order.currency}")
    await (await flow.load(Order, order.id)).confirm()
    return f"payment-{order.id}"


@compensate(charge)
async def refund(charge: str, world: World = provided) -> None:
    world.do(f"refund {charge}")


@step
async def ship(order: Purchase, flow: Flowlet = provided, world: World = provided) -> str:
    if order.pieces > MOST_IN_PARCEL:
        raise Refused("parcel too large", f"{order.pieces} pieces")
    world.do("ship")
    await (await flow.load(Order, order.id)).ship()
    return f"label-{order.id}"


@step
async def notify(whom: str, label: str, world: World = provided) -> None:
    world.do(f"tell {whom} of {label}")


@registry.saga
async def checkout(order: Purchase) -> str:
    await place(order)
    await reserve(order)
    await charge(order)
    label = await ship(order)
    await gather(notify(order.customer, label), notify("the bookkeeper", label))
    return label


# ---------------------------------------------------------------- the service
class CrashingStore(SQLiteStore):
    """A store that kills the process, without a goodbye, as soon as so many steps have a durable record."""

    def __init__(self, path: str, steps: int) -> None:
        super().__init__(path)
        self.steps = steps

    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        await super().append(writes, work=work)
        for write in writes:
            if write.id.endswith(":checkout"):
                records = [run_record_codec.decode(record, write.id) for record in write.records]
                self.steps -= sum(isinstance(record, (StepEnded, StepErred)) for record in records)
        if self.steps <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


async def recorded_steps(store: str, orders: Sequence[Purchase]) -> set[str]:
    """Return the idempotency keys of the steps on record. A `Flowlet` without definitions only looks."""
    keys: set[str] = set()
    async with Flowlet(store) as viewer:
        for run in (viewer.handle(f"{order.id}:checkout") for order in orders):
            with suppress(RunNotFound):
                steps = (await run.report()).steps.items()
                keys |= {f"{run.id}/{key}" for key, step in steps if step.status != "retrying"}
    return keys


async def check_out_all(flow: Flowlet, orders: Sequence[Purchase], concurrency: int) -> Counter[str]:
    """Run all orders, so many at a time, and count how they end."""
    ends: Counter[str] = Counter()

    async def work(waiting: Iterator[Purchase]) -> None:
        for order in waiting:
            try:
                await flow.execute(checkout, order, id=f"{order.id}:checkout")
                ends["confirmed"] += 1
            except Refused as refusal:
                ends[refusal.args[0]] += 1
            show_progress(ends.total(), len(orders))

    shared = iter(orders)
    async with anyio.create_task_group() as tasks:
        for _ in range(concurrency):
            tasks.start_soon(work, shared)
    return ends


def show_progress(done: int, total: int) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} orders", end="\n" if done == total else "", file=sys.stderr, flush=True)
    elif done % 50 == 0 or done == total:
        print(f"{done} of {total} orders", file=sys.stderr)


async def serve(options: argparse.Namespace) -> None:
    began = time.perf_counter()
    orders, rejected = read(options.csv)
    for complaint in rejected:
        print(complaint, file=sys.stderr)
    url, world = f"sqlite:///{options.db}", World(options.effects)
    recorded, done = await recorded_steps(url, orders), world.keys()

    flow = Flowlet(CrashingStore(options.db, options.crash_at) if options.crash_at else url, registry=registry)
    flow.provide(World, world)
    async with flow:
        ends = await check_out_all(flow, orders, options.concurrency)
        shipped = [id async for id in flow.machines(Order, state=Order.Shipped)]
        history = [t for order in orders[:1] async for t in flow.history(order.id)]
    new = await recorded_steps(url, orders) - recorded
    done_now = set(world.keys()[len(done) :])

    confirmed = ends.pop("confirmed", 0)
    print(f"orders       {len(orders)}")
    print(f"confirmed    {confirmed}, and {len(shipped)} machines are in the state Shipped")
    print(f"rolled back  {ends.total()}:", ", ".join(f"{count} {reason}" for reason, count in sorted(ends.items())))
    print(f"rejected     {len(rejected)} lines")
    print(f"recovered    {len(recorded)} steps of earlier runs; executed again of these: {len(recorded & done_now)}")
    print(f"executed     {len(new)} steps; repeated because a crash hit them: {len(done_now.intersection(done))}")
    print(f"seconds      {time.perf_counter() - began:.2f}")
    print("the first:  ", ", ".join(f"{t.event} ({t.source} -> {t.target})" for t in history))


def main() -> None:
    parser = argparse.ArgumentParser(description="Check out the orders of a CSV file, once each, whatever happens.")
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_name("orders.csv"), help="the order lines")
    parser.add_argument("--db", default="orders.db", help="the SQLite file that keeps the work")
    parser.add_argument("--effects", type=Path, default=Path("orders.effects"), help="the file that the steps write to")
    parser.add_argument("--concurrency", type=int, default=8, help="how many orders are in work at a time")
    parser.add_argument("--crash-at", type=int, metavar="N", help="SIGKILL this process once N steps are recorded")
    anyio.run(serve, parser.parse_args())


if __name__ == "__main__":
    main()
