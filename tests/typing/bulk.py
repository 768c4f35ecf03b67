"""Bulk operations keep the types of items and results."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import timedelta
from typing import Literal, assert_type

from flowlet import Flowlet, Retry, Run, provided, step
from flowlet.core.bulk import BulkError, BulkReport, Outcome, Progress
from flowlet.runtime.bulk import Bulk

flow = Flowlet()


class Invoice:
    number: int = 0


class Receipt:
    text: str = ""


async def send(invoice: Invoice, run: Run = provided) -> Receipt: ...


@step(retry=3)
async def send_step(invoice: Invoice) -> Receipt: ...


def check(invoice: Invoice) -> bool: ...


async def send_all(invoices: list[Invoice]) -> list[Receipt]: ...


async def drop_all(invoices: list[Invoice]) -> None: ...


async def stream() -> AsyncIterator[Invoice]:
    yield Invoice()


def generate() -> Iterator[Invoice]:
    yield Invoice()


def tell(progress: Progress) -> None:
    assert_type(progress.eta, float | None)


async def main(invoices: list[Invoice]) -> None:
    bulk: Bulk[Invoice, Receipt]
    bulk = flow.bulk(send, invoices, concurrency=64, id="june", retry=Retry(attempts=3), timeout=timedelta(seconds=3))
    report = await bulk
    assert_type(report, BulkReport[Invoice])
    assert_type(report.status, Literal["completed", "failed", "timed_out", "cancelled"])
    assert_type(report.errors, Sequence[BulkError[Invoice]])
    assert_type(report.errors[0].item, Invoice)
    assert_type(report.errors[0].error, Exception)
    assert_type(report.total + report.succeeded + report.failed + report.left, int)
    async with flow.bulk(send, generate(), on_error="stop", progress=tell) as outcomes:
        async for outcome in outcomes:
            assert_type(outcome, Outcome[Invoice, Receipt])
            assert_type(outcome.value, Receipt)
            assert_type(outcome.item, Invoice)
            assert_type(outcome.error, Exception | None)
    async for one in flow.bulk(send_step, stream(), on_error=0.1, ordered=True, rate=10):
        assert_type(one.value, Receipt)
    assert_type(await flow.bulk(send, invoices).values(), list[Receipt])
    assert_type(await flow.bulk(check, invoices, progress=True).filter(), list[Invoice])
    assert_type(await flow.bulk(send, invoices).reduce(lambda count, _: count + 1, 0), int)
    assert_type(await flow.bulk(send_all, invoices, batch=True, batch_size=50).values(), list[Receipt])
    assert_type(await flow.bulk(drop_all, invoices, batch=True).values(), list[None])
    await flow.bulk(send, ["a"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await flow.bulk(send, invoices, concurency=3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
