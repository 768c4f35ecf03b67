"""Write the file of the format that flowlet has now: ``python tests/formats/make.py tests/formats/<format>.db``.

Only when the format is new: a file that is there is never written again.
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import suppress
from pathlib import Path

import anyio
import warehouse
from warehouse import Draft, Item, Parcel, Verdict, broken

from flowlet import Flowlet
from flowlet.errors import FlowletError


async def parked(flow: Flowlet, id: str, *statuses: str) -> None:
    with anyio.fail_after(20):
        while await flow.handle(id).status() not in statuses:
            await anyio.sleep(0.01)


async def fill(flow: Flowlet) -> None:
    """Bring about whatever a history can say."""
    parcel = await flow.create(Parcel(weight=1), id="parcel-lost")
    await parcel.send(by="ann")
    await parcel.hand_over()
    parcel = await flow.create(Parcel(weight=2), id="parcel-found")
    await parcel.send(by="bob")
    await parcel.lose()
    await flow.create(Parcel(), id="parcel-new")

    hat, tie = Item("hat", 20.0), Item("tie", 9.5)
    await flow.execute(warehouse.order, hat, id="order-done")
    broken.add("ship from place of tie")
    with suppress(RuntimeError):
        await flow.execute(warehouse.order, tie, id="order-undone")
    broken.add("free place of tie")
    with suppress(Exception):
        await flow.execute(warehouse.order, tie, id="order-half-undone")
    broken.clear()
    broken.add("reserve hat")
    with suppress(RuntimeError):
        await flow.execute(warehouse.order, hat, id="order-retried")
    broken.clear()

    await flow.start(warehouse.wait_for_payment, hat, id="waiting")
    await flow.start(warehouse.wait_for_child, tie, id="parent")
    await flow.start(warehouse.wait_for_payment, tie, id="cancelled")
    for id in ("waiting", "parent", "cancelled"):
        await parked(flow, id, "waiting")
    with suppress(FlowletError):
        await flow.handle("cancelled").cancel()
        await flow.handle("cancelled").result()

    broken.add("measure bb")
    await flow.execute(warehouse.measured, "a bb ccc", id="measured")
    broken.clear()
    for id in ("review-open", "review-done"):
        await flow.start(warehouse.review, Draft(""), id=id)
        await parked(flow, id, "waiting")
    handle = flow.handle("review-done")
    await handle.send("editor", Verdict(False, "shorter"))
    await handle.send("editor", Verdict(True, ""))
    await handle.result()

    await flow.start(warehouse.expense, hat, id="expense-open", requester="ann")
    await flow.start(warehouse.expense, hat, id="expense-rejected", requester="ann")
    await flow.approve("expense-open", by="bob", roles={"manager"}, comment="yes")
    await flow.reject("expense-rejected", by="bob", roles={"manager"})
    await flow.handle("expense-rejected").result()

    broken.add("letter 7")
    await flow.bulk(warehouse.letter, range(10), id="letters", on_error="stop", concurrency=1, retry=1)
    broken.clear()
    await flow.schedule("clean").trigger()
    await parked(flow, "waiting", "waiting")


async def main(path: Path) -> None:
    flow = Flowlet(f"sqlite:///{path.resolve()}", registry=warehouse.registry, name="maker")
    async with flow:
        await fill(flow)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    if target.exists():
        sys.exit(f"{target} is there already, and stays as it is")
    anyio.run(main, target)
    with sqlite3.connect(target) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("VACUUM")
