"""``flowlet runs``."""

from __future__ import annotations

from flowlet.cli import run_orders, run_reading
from flowlet.cli.program import Group

runs: Group = Group(
    "runs", help="Look at runs, and tell them what to do.", short_help="Look at runs, and give them orders."
)
for _command in (
    run_reading.list_runs,
    run_reading.show,
    run_reading.history,
    run_orders.cancel,
    run_orders.resume,
    run_orders.retry,
    run_orders.skip,
    run_orders.compensate,
    run_orders.signal,
    run_orders.fork,
):
    runs.add_command(_command)
