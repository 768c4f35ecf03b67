"""`Flowlet.prune`: what it deletes, what it leaves, and how long others wait for it."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import pytest
from stillness import watched

from flowlet import Flowlet, current_run, state, step, transition
from flowlet.errors import ConfigError, RunNotFound
from flowlet.runtime import pruning
from flowlet.store import New, Store, Write
from flowlet.stores.memory import MemoryStore
from flowlet.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.anyio

RUN = New("run", "twice")


@step
async def double(n: int) -> int:
    calls.append(current_run().idempotency_key)
    return 2 * n


calls: list[str] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


async def fill(store: Store, count: int, **facts: Any) -> None:
    for first in range(0, count, 500):
        ids = [f"old-{n}" for n in range(first, min(count, first + 500))]
        await store.append(
            [Write(id=id, expect=0, create=RUN, records=[os.urandom(100)] * 6, close=True, **facts) for id in ids]
        )


# ------------------------------------------------------------------ what it deletes
async def test_only_what_ended_longer_ago() -> None:
    clock = [1000.0]
    flow = Flowlet(MemoryStore(clock=lambda: clock[0]))
    twice = flow.saga("twice", double)
    async with flow:
        for n in range(3):
            clock[0] = 1000.0 + 100 * n
            await flow.execute(twice, n, id=f"r-{n}")
        clock[0] = 1250.0
        assert await flow.prune(older_than=timedelta(seconds=250)) == 0  # exactly as old is not older
        assert await flow.prune(older_than=149) == 2
        assert [run.id async for run in flow.runs()] == ["r-2"]


async def test_a_pruned_id_starts_anew(flow: Flowlet) -> None:
    twice = flow.saga("twice", double)
    async with flow:
        assert await flow.execute(twice, 1, id="r") == 2
        assert await flow.execute(twice, 1, id="r") == 2
        assert calls == ["r/double"]
        assert await flow.prune(older_than=0) == 1
        with pytest.raises(RunNotFound):
            await flow.handle("r").status()
        assert await flow.execute(twice, 2, id="r") == 4  # with another input, which would be a conflict
        assert calls == ["r/double", "r/double"]


async def test_what_has_not_ended_is_never_pruned(flow: Flowlet) -> None:
    release = anyio.Event()

    @flow.saga
    async def long() -> int:
        await release.wait()
        return await double(1)

    @flow.machine
    class Parcel:
        @state(initial=True)
        class Packed: ...

        @state(final=True)
        class Sent: ...

        @transition(Packed, Sent)
        async def send(self) -> None: ...

    async with flow:
        handle = await flow.start(long, id="open")
        await flow.store.append([Write(id="stuck", expect=0, create=RUN, records=[b"x"], status="parked")])
        sent, packed = await flow.create(Parcel(), id="sent"), await flow.create(Parcel(), id="packed")
        await sent.send()
        assert await flow.prune(older_than=0) == 1
        assert [run.id async for run in flow.runs()] == ["open", "stuck"]
        assert [id async for id in flow.machines(Parcel)] == ["packed"]
        await packed.send()
        release.set()
        assert await handle.result() == 2
        assert await flow.prune(older_than=0) == 2
        # The definitions that tools read are no runs that ended.
        assert {head.kind for head in await flow.store.scan()} == {"definition", "run"}


async def test_no_more_than_asked_for(flow: Flowlet) -> None:
    async with flow:
        await fill(flow.store, 60)
        assert await flow.prune(older_than=0, limit=0) == 0
        assert await flow.prune(older_than=0, limit=25) == 25
        assert [head.id for head in await flow.store.scan(kind="run", limit=1)] == ["old-25"]
        assert await flow.prune(older_than=0, limit=100) == 35


@pytest.mark.parametrize("older_than", ["30", None, float("nan"), True])
async def test_ages_that_are_none(flow: Flowlet, older_than: Any) -> None:
    async with flow:
        with pytest.raises(ConfigError, match="older_than: must be"):
            await flow.prune(older_than=older_than)


@pytest.mark.parametrize("limit", [-1, 1.0, "3", False])
async def test_limits_that_are_none(flow: Flowlet, limit: Any) -> None:
    async with flow:
        with pytest.raises(ConfigError, match="limit= takes a whole number"):
            await flow.prune(older_than=0, limit=limit)


# ------------------------------------------------------------------ beside others
class SlowStore(MemoryStore):
    """Takes a millisecond for each entity it deletes, and notes how many it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    async def prune(self, *, closed_before: float, limit: int = 1000) -> int:
        self.asked.append(limit)
        count = await super().prune(closed_before=closed_before, limit=limit)
        await anyio.sleep(0.002 * count)
        return count


async def test_batches_become_as_short_as_they_should_be() -> None:
    store = SlowStore()
    await fill(store, 120)
    assert await pruning.prune(store, 0, None) == 120
    assert store.asked[0] == 20
    assert max(store.asked[1:]) <= 15  # 20 ms are ten of them, and half as many again to try
    assert store.asked[-1] >= 1


async def test_batches_grow_on_a_fast_store() -> None:
    store = MemoryStore()
    asked: list[int] = []
    whole = store.prune

    async def prune(*, closed_before: float, limit: int = 1000) -> int:
        asked.append(limit)
        return await whole(closed_before=closed_before, limit=limit)

    store.prune = prune  # type: ignore[method-assign]
    await fill(store, 3000)
    assert await pruning.prune(store, 0, None) == 3000
    assert asked[1] == 30
    assert len(asked) < 25


async def test_a_store_may_delete_less_than_it_was_asked_for() -> None:
    store = MemoryStore()
    whole = store.prune

    async def prune(*, closed_before: float, limit: int = 1000) -> int:
        return await whole(closed_before=closed_before, limit=min(limit, 3))

    store.prune = prune  # type: ignore[method-assign]
    await fill(store, 100)
    assert await pruning.prune(store, 0, None) == 100


@pytest.mark.parametrize("synchronous", ["FULL", "NORMAL"])
async def test_a_writer_beside_a_prune_waits_for_a_moment_only(tmp_path: Path, synchronous: str) -> None:
    store = SQLiteStore(tmp_path / "flow.db", synchronous=synchronous)
    await fill(store, 5000)
    flow = Flowlet(store)
    async with flow, watched(tick=False) as waits:
        await store.append([Write(id="w", expect=0, create=RUN, records=[b"x"])])

        async def write() -> None:
            version = 1
            while True:
                began = monotonic()
                await store.append([Write(id="w", expect=version, records=[b"x" * 200])])
                waits.all.append((began, monotonic()))
                version += 1
                await anyio.sleep(0.001)

        async with anyio.create_task_group() as group:
            group.start_soon(write)
            assert await flow.prune(older_than=0) == 5000
            group.cancel_scope.cancel()
        assert [run.id async for run in flow.runs()] == ["w"]
    assert len(waits.all) > 50
    # Promised are 100 ms. What the disk itself does to a commit now and then is no fault of the prune.
    assert sorted(waits.lengths())[int(len(waits.all) * 0.98)] < 0.1
    assert waits.longest() < 0.5


async def test_cancelled_it_has_deleted_a_part(new_store: Callable[[], Store]) -> None:
    store = new_store()
    flow = Flowlet(store)
    async with flow:
        await fill(store, 500)
        whole, batches = store.prune, 0

        async def prune(*, closed_before: float, limit: int = 1000) -> int:
            nonlocal batches
            batches += 1
            if batches == 3:
                scope.cancel()  # while the batch is under way
            return await whole(closed_before=closed_before, limit=limit)

        store.prune = prune  # type: ignore[method-assign]
        with anyio.CancelScope() as scope:
            await flow.prune(older_than=0)
        assert scope.cancelled_caught
        store.prune = whole  # type: ignore[method-assign]
        left = [run.id async for run in flow.runs()]
        assert 0 < len(left) < 500
        assert left == [f"old-{n}" for n in range(500 - len(left), 500)]
        for id in left[:3]:  # what is left is whole
            stored = await store.load(id)
            assert stored is not None
            assert len(stored.records) == 6
        assert await flow.prune(older_than=0) == len(left)
        assert [run async for run in flow.runs()] == []
