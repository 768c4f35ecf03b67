"""Telling observers of bulk operations, as a whole: an item costs less than telling of it would.

Law: nothing is decided here; what the operation raises is raised.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import TYPE_CHECKING

from flowlet.observing import BulkBegan, BulkEnded
from flowlet.runtime.observing import Observing

if TYPE_CHECKING:
    from flowlet.runtime.bulk_operation import Operation


async def watch(observing: Observing, operation: Operation, main: Callable[[], Awaitable[None]]) -> None:
    """Do a bulk operation, and tell of it.

    Args:
        main: does it, and leaves its report or its error with the operation.
    """
    plan = operation.plan
    work = BulkBegan(function=plan.function.name, run_id=plan.id, total=plan.total)
    observing.tell(work)
    began = perf_counter()
    try:
        with observing.around(work):
            await main()
    finally:
        report, tally = operation.report, operation.tally
        observing.tell(
            BulkEnded(
                began=work,
                status="broken" if report is None else report.status,
                succeeded=tally.done - tally.failed,
                failed=tally.failed,
                seconds=perf_counter() - began,
                error=operation.error,
            )
        )
