"""What is used without an event loop keeps its types, and so does what tests use."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

from datetime import timedelta
from typing import assert_type

from flowlet import Flowlet, level, step
from flowlet.app.blocking import BlockingHandle
from flowlet.approval import ApprovalOutcome
from flowlet.config import BulkConfig, Config
from flowlet.testing import Stub, stub

flow = Flowlet(config=Config(lease=timedelta(seconds=3), bulk=BulkConfig(timeout=None)), pipeline_timeout=None)


@step
async def charge(order: str, total: int) -> bytes: ...


@flow.saga
async def checkout(order: str, total: int) -> bytes: ...


class Expense:
    amount: int = 0


class Order:
    async def pay(self, by: str) -> float: ...


expense = flow.approval("expense", level("lead", role="lead"), type=Expense)


def script(order: Order) -> None:
    with flow.blocking(backend="trio") as b:
        assert_type(b.start(checkout, "o-1", 3, id="x"), BlockingHandle[bytes])
        assert_type(b.start(checkout, "o-1", 3).result(timeout=3), bytes)
        assert_type(b.execute(checkout, "o-1", 3), bytes)
        assert_type(b.handle("x", checkout).result(), bytes)
        assert_type(b.execute(expense, Expense(), requester="ann"), ApprovalOutcome[Expense])
        assert_type(b.call(order.pay, by="ann"), float)
        assert_type(b.create(Order(), id="o-1"), Order)
        assert_type(b.load(Order, "o-1"), Order)
        assert_type([run.id for run in b.runs(status="parked")], list[str])
        b.start(checkout, "o-1", "3")  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportArgumentType, reportCallIssue]
        b.call(order.pay, who="ann")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        b.start(checkout, "o-1", 3).result(timeout="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        b.load(Order, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        b.handle("x", checkout).reslt()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
        text: str = b.execute(checkout, "o-1", 3)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
        print(text)


async def check() -> None:
    async with stub(flow.registry, provide={Order: Order()}) as stubbed:
        assert_type(stubbed, Stub)
        assert_type(await stubbed.execute(checkout, "o-1", 3), bytes)
        await stubbed.clock.advance(timedelta(days=3), hours=2)
        await stubbed.clock.advance(days="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await stubbed.execute(checkout, "o-1", "3")  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportArgumentType, reportCallIssue]
        late: str = await stubbed.execute(checkout, "o-1", 3)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportAssignmentType]
        print(late)


stub(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
stub(provide=[Order()])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Config(leese=3.0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Config(lease="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Config(bulk=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
BulkConfig(batch_size="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Flowlet(config=3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
