"""What the machines of one store share, and what the store calls them.

Law: everything here is given from above (store, clock, worker, log, providers); nothing is looked up.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from flowlet.core.machine import MachineDefinition
from flowlet.errors import Conflict, MachineError
from flowlet.runtime.logs import Log
from flowlet.store import Store

KIND = "machine"
ACTIVE, FINAL = "active", "final"


class Busy(Conflict):
    """Another process is in the middle of handling an event of this machine."""

    def __str__(self) -> str:
        return f"{self.id!r} is handling an event in another process, which holds its lease; try again when it is done"


async def _no_runs(*_: Any) -> None:
    raise MachineError("a state invokes something, and nothing here runs it; use a Flowlet")


class Office(msgspec.Struct, frozen=True, eq=False):
    """What the bonds of one `Machines` share.

    Attributes:
        now: the store's clock, in seconds since the epoch.
        worker: returns the worker id with a live heartbeat, which owns leases.
        token: a number that no other writer has.
        provide: returns what is provided for an annotation; None when nothing is.
        max_payload: bytes that a record may have, or None.
        start_work: starts the run of what a state invokes, given the machine's definition, the state, the machine's id,
            the run's id and the inputs.
        cancel_work: cancels such a run, durably.
        alarm: has the machine with an id, of a definition, looked after at a time; at none when it is None.
    """

    store: Store
    now: Callable[[], float]
    worker: Callable[[], str]
    token: int
    log: Log
    provide: Callable[[Any], Any] | None
    max_payload: int | None = None
    alarm: Callable[[str, MachineDefinition, float | None], None] = lambda id, definition, at: None
    start_work: Callable[..., Awaitable[None]] = _no_runs
    cancel_work: Callable[[str], Awaitable[None]] = _no_runs

    def provided(self, annotation: Any, what: str) -> Any:
        """Return what is provided for an annotation; ``what`` names who asks."""
        if self.provide is None:
            raise MachineError(f"{what} is to be provided, and nothing is; use flow.provide")
        return self.provide(annotation)
