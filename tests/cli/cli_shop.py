"""An application for the tests of the command line: what ``--app cli_shop:flow`` names."""

from __future__ import annotations

import contextlib
import zlib
from datetime import timedelta
from typing import Annotated, Any

import anyio
from msgspec import Struct

from flowlet import Flowlet, Registry, Retry, Run, Secret, compensate, level, provided, state, step, transition
from flowlet.core.codec import pack
from flowlet.core.run_records import Parked
from flowlet.store import Write
from flowlet.stores import open_store

registry = Registry()

mended = False
"""Whether what fails the first time works now."""


class Card(Struct):
    holder: str
    number: Annotated[str, Secret]


@step
async def reserve(order: str, card: Card) -> Card:
    return card


@compensate(reserve)
async def release(order: str) -> None:
    if order == "stuck" and not mended:
        raise OSError("the shelf is locked")


@step(retry=Retry(attempts=2, wait=0.001))
async def charge(order: str) -> str:
    if order != "good":
        raise ValueError("no money")
    return f"paid {order}"


@registry.saga
async def checkout(order: str, card: Card) -> str:
    await reserve(order, card)
    return await charge(order)


@step(pivot=True)
async def pay(order: str) -> None: ...


@step
async def ship(order: str) -> str:
    if not mended:
        raise OSError("no van")
    return f"label of {order}"


deliver = registry.saga("deliver", pay, ship)


class Scan(Struct):
    name: str
    pages: list[bytes]


@step
async def scan(name: str) -> Scan:
    return Scan(name, [b"4111-1111"])


@registry.saga
async def archive(name: str) -> str:
    methods = Methods()
    await scan(name)
    return await methods.look(name)


class Methods:
    @step
    async def look(self, name: str) -> str:
        return "4111-1111"


@registry.saga
async def wait(order: str, run: Run = provided) -> str:
    amount = await run.receive("payment", type=int)
    return f"{amount} for {order}"


@registry.machine
class Order:
    total: int = 0
    code: Annotated[str, Secret] = "0000"

    @state(initial=True)
    class Open: ...

    @state(final=True)
    class Paid: ...

    @transition(Open, Paid)
    async def pay(self, by: str) -> None:
        self.total += 1


expense = registry.approval("expense", level("manager", role="manager"), type=str)


@registry.every(timedelta(days=1))
@registry.saga
async def clean() -> str:
    return "clean"


async def send(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number


class Squeeze:
    """A codec whose bytes nobody reads without it."""

    def encode(self, data: bytes, /) -> bytes:
        return zlib.compress(data)

    def decode(self, data: bytes, /) -> bytes:
        return zlib.decompress(data)


flow = Flowlet(registry=registry)
squeezed = Flowlet(registry=registry, codec=Squeeze())
"""The same with payloads that need its codec."""


async def write_history(url: str, **options: Any) -> None:
    """Have a Flowlet write some of everything."""
    global mended  # noqa: PLW0603 - what fails and what does not is the test's choice
    mended = False
    async with Flowlet(url, registry=registry, drain_on_sigterm=False, **options) as flow:
        for order in ("good", "bad", "stuck"):
            with contextlib.suppress(Exception):
                await flow.execute(checkout, order, Card("ann", "4111-1111"), id=order)
        with contextlib.suppress(Exception):
            with anyio.move_on_after(5):
                await flow.execute(deliver, "o-7", id="pivot")
        for number in (1, 2):
            await flow.start(wait, f"w-{number}", id=f"wait-{number}")
        order = await flow.create(Order(), id="m-1")
        await order.pay("ann")
        await flow.create(Order(), id="m-2")
        await flow.start(expense, "two chairs", id="chairs", requester="ann")
        await flow.bulk(send, range(5), id="june", retry=1)
        with anyio.fail_after(10):
            while [r.id async for r in flow.runs(status="waiting")] != ["wait-1", "wait-2", "chairs"]:
                await anyio.sleep(0.01)
    store = open_store(url)
    if "codec" not in options:
        stored = await store.load("wait-2", limit=0)
        assert stored is not None
        parked = pack(Parked("step 'a' was expected and 'b' was found", stored.head.updated))
        write = Write(id="wait-2", expect=stored.head.version, records=(parked,), status="parked", wake=None)
        await store.append((write,))
    await store.close()
