"""Waits give what their types say; child runs infer arguments and results from their definitions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from flowlet import Flowlet, Run, gather, provided
from flowlet.core.child import Child

flow = Flowlet()


class Payment:
    amount: int = 0


@flow.saga
async def child(name: str, copies: int = 1) -> Payment:
    return Payment()


@flow.saga
async def parent(run: Run = provided) -> None:
    assert_type(await run.receive("paid", type=Payment), Payment)
    assert_type(await run.receive("paid", type=int, timeout=timedelta(days=1)), int)
    await run.receive("paid")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await run.sleep(5)
    await run.sleep(timedelta(days=3))
    await run.sleep("5")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await run.sleep_until(datetime.now(UTC))
    await run.publish("progress", 0.5)
    made = await run.start(child, "a", 2, detached=True)
    assert_type(made, Child[Payment])
    assert_type(await made.result(), Payment)
    assert_type(made.id, str)
    await run.start(child, 5, 2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    paid, _, other = await gather(run.receive("paid", type=int), run.sleep(1), made.result())
    assert_type(paid, int)
    assert_type(other, Payment)


async def outside() -> None:
    handle = await flow.start(parent, id="p")
    await handle.send("paid", Payment(), message_id="m-1")
    assert_type(await handle.read("progress"), Any)
    assert_type(await handle.read("progress", type=float), float | None)
