"""Whatever flowlet lets users iterate over can be left half read, and no event loop complains."""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest

from flowlet import Flowlet, Registry, level, state, step, transition
from flowlet.runtime.iterating import readable

pytestmark = pytest.mark.anyio

registry = Registry()


@step
async def double(n: int) -> int:
    return 2 * n


twice = registry.saga("twice", double)
expense = registry.approval("expense", level("manager", role="manager"), type=str)


@registry.machine
class Lamp:
    @state(initial=True)
    class Off: ...

    @state
    class On: ...

    @transition(Off, On)
    async def press(self) -> None: ...

    @transition(On, Off)
    async def release(self) -> None: ...


async def read_one(items: AsyncIterator[Any]) -> Any:
    async for item in items:
        return item
    raise AssertionError("there was nothing")


async def test_every_listing_can_be_left() -> None:
    async with Flowlet(registry=registry) as flow:
        for id in ("r-1", "r-2"):
            await flow.execute(twice, 1, id=id)
            await (await flow.create(Lamp, id=f"lamp-{id}")).press()
            await flow.start(expense, "chairs", id=f"e-{id}", requester="ann")
        listings = [
            flow.runs(),
            flow.handle("r-1").history(),
            flow.handle("r-1").events(),
            flow.history("lamp-r-1"),
            flow.machines(Lamp),
            flow.inbox(),
            flow.audit("e-r-1"),
            flow.schedules(),
        ]
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            for listing in listings[:-1]:
                assert await read_one(listing) is not None
            del listing, listings
            gc.collect()
        assert [str(warning.message) for warning in heard] == []


async def test_what_is_read_is_what_the_generator_yields_and_raises() -> None:
    @readable
    async def count(upto: int) -> AsyncGenerator[int, None]:
        for n in range(upto):
            yield n
        raise LookupError(upto)

    found = []

    async def read_all() -> None:
        async for n in count(3):
            found.append(n)

    with pytest.raises(LookupError, match="3"):
        await read_all()
    assert found == [0, 1, 2]


async def test_the_hooks_of_the_event_loop_are_as_they_were() -> None:
    @readable
    async def one() -> AsyncGenerator[int, None]:
        yield 1

    before = sys.get_asyncgen_hooks()
    await read_one(one())
    assert sys.get_asyncgen_hooks() == before
