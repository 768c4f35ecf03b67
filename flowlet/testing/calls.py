"""What many checks do to a store: create, load, and make calls together.

Law: functions of a store and of values; no check, and nothing that depends on one kind of store.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import anyio
import pytest

from flowlet.errors import FlowletError
from flowlet.store import Capabilities, New, Store, Stored, Write

__all__ = ["CHECKOUTS", "MACHINE", "RUN", "create", "found", "needs", "outcome_of", "together", "versions"]

RUN = New("run", "checkout", "1")
MACHINE = New("machine", "Order", "1")
CHECKOUTS = (("run", "checkout", "1"),)


def needs(capabilities: Capabilities, *flags: str) -> None:
    """Skip the check when the store says that it cannot do this; the reason names the flag."""
    for flag in flags:
        if not getattr(capabilities, flag):
            pytest.skip(f"the store has capabilities.{flag}=False")


async def create(store: Store, *ids: str, new: New = RUN, **facts: Any) -> None:
    """Create entities with one record, in this order."""
    await store.append([Write(id=id, expect=0, create=new, records=[b"first"], **facts) for id in ids])


async def found(store: Store, id: str, **question: Any) -> Stored:
    """Load an entity that must be there."""
    stored = await store.load(id, **question)
    assert stored is not None, f"{id!r} is not in the store"
    return stored


async def versions(store: Store, *ids: str) -> list[int | None]:
    """Return the version of each entity, None for one that is not there."""
    entities = [await store.load(id) for id in ids]
    return [None if stored is None else stored.head.version for stored in entities]


async def outcome_of(call: Awaitable[object]) -> FlowletError | None:
    """Return the error of a call, or None."""
    try:
        await call
    except FlowletError as error:
        return error
    return None


async def together(calls: Sequence[Callable[[], Awaitable[object]]]) -> list[FlowletError | None]:
    """Make all calls at once; return the error of each, or None."""
    outcomes: list[FlowletError | None] = [None] * len(calls)

    async def one(index: int) -> None:
        outcomes[index] = await outcome_of(calls[index]())

    async with anyio.create_task_group() as group:
        for index in range(len(calls)):
            group.start_soon(one, index)
    return outcomes
