"""Sagas and pipelines keep their signatures; starters infer arguments and results from them."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import assert_type

from flowlet import Flowlet, Registry, Run, compensate, current_run, gather, provided, step
from flowlet.runtime.listing import RunSummary
from flowlet.store import PayloadCodec

flow = Flowlet()
registry = Registry()


class Receipt:
    label: str = ""


class Payment:
    id: int = 0


@step
async def reserve(order: str) -> None: ...


@step
async def charge(order: str, run: Run = provided) -> Payment:
    assert_type(run.idempotency_key, str)
    assert_type(run.attempt, int)
    assert_type(current_run(), Run)
    return Payment()


@compensate(charge)
async def refund(order: str, charge: Payment) -> None: ...


@step
async def ship(order: str, charge: Payment) -> Receipt: ...


@step
def count(order: str) -> int: ...


# ---------------------------------------------------------------- the three spellings
@flow.saga
async def checkout(order: str, copies: int) -> Receipt:
    await reserve(order)
    payment = await charge(order)
    await ship(order)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    return await ship(order, payment)


@flow.saga(name="other", version=2)
async def checkout_called(order: str, copies: int) -> Receipt: ...


@flow.saga
async def wrong_result(order: str) -> Receipt:
    return await charge(order)  # type: ignore[return-value]  # pyright: ignore[reportReturnType]


@registry.saga
class Checkout:
    @step
    async def reserve(self, order: str) -> int:
        return 1

    @compensate(reserve)
    async def release(self, order: str, reserve: int) -> None: ...

    async def __call__(self, order: str) -> Receipt:
        assert_type(await self.reserve(order), int)
        return Receipt()


assembled = flow.saga("assembled", reserve, charge, ship)
assembled_sync = flow.saga("assembled-sync", reserve, charge, count)


@flow.pipeline
async def etl(path: str) -> list[int]:
    return []


etl_assembled = flow.pipeline("etl", reserve, charge, ship)

flow.saga(reserve, charge)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def definitions_keep_their_signatures() -> None:
    assert_type(await checkout("o", 1), Receipt)
    assert_type(await checkout_called("o", copies=1), Receipt)
    assert_type(await etl("p"), list[int])
    assert_type(await assembled("o"), Receipt)
    assert_type(await assembled_sync("o"), int)
    assert_type(await etl_assembled("o"), Receipt)

    await checkout(1, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await checkout("o")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    wrong: str = await checkout("o", 1)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    assert_type(wrong, str)


# ---------------------------------------------------------------- starters
async def starters_infer() -> None:
    handle = await flow.start(checkout, "o", 1, id="o:checkout")
    assert_type(await handle.result(), Receipt)
    assert_type(handle.id, str)
    assert_type(await (await flow.start(Checkout, "o")).result(), Receipt)
    assert_type(await (await flow.start(etl, "p")).result(), list[int])
    assert_type(await (await flow.start(assembled, "o")).result(), Receipt)
    assert_type(await flow.execute(checkout, "o", 1, id="o:checkout"), Receipt)
    assert_type(await flow.execute(Checkout, "o"), Receipt)
    assert_type(flow.run(checkout, "o", 1, id="o:checkout"), Receipt)
    assert_type(flow.run(Checkout, "o"), Receipt)
    assert_type(await flow.handle("o:checkout", checkout).result(), Receipt)

    await flow.start(checkout, "o")  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await flow.start(checkout, 1, 1)  # type: ignore[arg-type, call-arg]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await flow.start(Checkout, 1)  # type: ignore[misc]  # pyright: ignore[reportCallIssue, reportArgumentType]
    await flow.execute(etl, 1)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    flow.run(checkout, "o", 1, name="x")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    wrong: str = flow.run(etl, "p")  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    assert_type(wrong, str)


async def gather_keeps_each_type() -> None:
    assert_type(await gather(charge("o")), tuple[Payment])
    assert_type(await gather(charge("o"), ship("o", Payment())), tuple[Payment, Receipt])
    assert_type(await gather(charge("o"), reserve("o"), etl("p")), tuple[Payment, None, list[int]])
    assert_type(await gather(*[charge(o) for o in ("a", "b")]), tuple[Payment, ...])
    label, payment = await gather(ship("o", Payment()), charge("o"))
    assert_type(label, Receipt)
    assert_type(payment, Payment)
    await gather(charge)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await gather(count("o"))  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType, reportCallIssue]


# ---------------------------------------------------------------- what is there
class Sealed:
    def encode(self, data: bytes) -> bytes:
        return data

    def decode(self, data: bytes) -> bytes:
        return data


class Half:
    def encode(self, data: bytes) -> bytes:
        return data


async def listings() -> None:
    assert_type(flow.runs(), AsyncIterator[RunSummary])
    flow.runs("checkout", status="failed", after=3, limit=10)
    flow.runs(status=["failed", "parked"])
    flow.runs(definition=checkout)
    flow.runs(Checkout)
    flow.runs(assembled)
    async for run in flow.runs(etl, status=("running", "waiting")):
        assert_type(run.id, str)
        assert_type(run.created, datetime)
        assert_type(run.closed, datetime | None)
        assert_type(run.owner, str | None)
        assert_type(run.order, int)
        again = [r async for r in flow.runs(status=run.status)]
        assert_type(again, list[RunSummary])
    flow.runs(status="done")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    flow.runs(status=["done"])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
    flow.runs(Receipt)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    flow.runs("checkout", "failed")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


async def pruning() -> None:
    assert_type(await flow.prune(older_than=timedelta(days=30)), int)
    assert_type(await flow.prune(86_400.0, limit=1000), int)
    await flow.prune()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await flow.prune("30 days")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def payloads() -> None:
    codec: PayloadCodec = Sealed()
    Flowlet(codec=codec, max_payload=1 << 20)
    Flowlet("sqlite:///orders.db", codec=Sealed())
    Flowlet(codec=Half())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Flowlet(codec=Sealed)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
