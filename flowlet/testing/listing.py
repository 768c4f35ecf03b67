"""Listing and pruning: pages that stay in order, and no more taken away than asked."""

from __future__ import annotations

from typing import Any

import pytest

from flowlet.errors import RunNotFound
from flowlet.store import New, Signal, Store, Write
from flowlet.testing.calls import MACHINE, create, found
from flowlet.testing.clocks import Clock

__all__ = ["ListingChecks"]


class ListingChecks:
    """Listing and pruning: pages that stay in order, and no more taken away than asked."""

    async def test_scan_by_everything(self, store: Store) -> None:
        await create(store, "r1", status="running", wake=5.0)
        await create(store, "m1", new=MACHINE, state="Draft", status="open")
        await create(store, "r2", status="failed")
        await create(store, "m2", new=MACHINE, state="Sent", status="open")
        await create(store, "r3", new=New("run", "etl", "1"), status="running", wake=50.0)
        await create(store, "m3", new=New("machine", "Order", "2"), state="Draft", status="held")
        await store.append([Write(id="r2", close=True, wake=1.0)])

        async def ids(**question: Any) -> list[str]:
            return [head.id for head in await store.scan(**question)]

        assert await ids() == ["r1", "m1", "r2", "m2", "r3", "m3"]
        assert await ids(kind="run") == ["r1", "r2", "r3"]
        assert await ids(definition="Order") == ["m1", "m2", "m3"]
        assert await ids(kind="run", definition="checkout") == ["r1", "r2"]
        assert await ids(status=["running"]) == ["r1", "r3"]
        assert await ids(status=["failed", "running", "failed"]) == ["r1", "r2", "r3"]
        assert await ids(status=[]) == []
        assert await ids(state="Draft") == ["m1", "m3"]
        assert await ids(state="") == ["r1", "r2", "r3"]
        assert await ids(state="", status=["running"]) == ["r1", "r3"]
        assert await ids(kind="machine", definition="Order", state="Draft", status=["open"]) == ["m1"]
        assert await ids(wake_before=10.0) == ["r1"]
        assert await ids(wake_before=5.0) == []
        assert await ids(wake_before=51.0, kind="run", status=["running", "open"]) == ["r1", "r3"]
        assert await ids(wake_before=51.0, definition="etl", state="") == ["r3"]
        assert await ids(kind="nothing") == []
        assert await ids(limit=2) == ["r1", "m1"]
        assert await ids(status=["running", "open"], limit=3) == ["r1", "m1", "m2"]
        cursor = (await store.scan(status=["running", "open"], limit=3))[-1].order
        assert await ids(status=["running", "open"], after=cursor) == ["r3"]
        assert await ids(wake_before=51.0, limit=1) == ["r1"]

    async def test_pages_are_stable_while_others_write(self, store: Store, clock: Clock) -> None:
        await create(store, *(f"id-{n:03}" for n in range(100)), status="s")
        seen: list[str] = []
        cursor, created = 0, 0
        while page := await store.scan(kind="run", status=["s"], after=cursor, limit=7):
            assert len(page) <= 7
            seen += [head.id for head in page]
            cursor = page[-1].order
            if created < 5:
                await create(store, f"new-{created}", status="s")
                await store.append([Write(id=page[0].id, expect=1, records=[b"2"])])
                created += 1
        assert seen == [f"id-{n:03}" for n in range(100)] + [f"new-{n}" for n in range(5)]

    async def test_a_cursor_stays_valid_when_the_last_was_pruned(self, store: Store, clock: Clock) -> None:
        await create(store, "a", "b", close=True)
        cursor = (await store.scan())[-1].order
        await clock.advance(1)
        assert await store.prune(closed_before=await store.now()) == 2
        await create(store, "c")
        assert [head.id for head in await store.scan(after=cursor)] == ["c"]

    async def test_prune_deletes_the_oldest_and_no_more_than_asked(self, store: Store, clock: Clock) -> None:
        for n in (3, 1, 4, 2, 5):
            await create(store, f"id-{n}")
        await create(store, "open", wake=0.0)
        for n in range(1, 6):
            await clock.advance(1)
            await store.append([Write(id=f"id-{n}", expect=1, records=[b"end"], close=True)])
        first, last = [(await found(store, id)).head.closed for id in ("id-1", "id-5")]
        assert first is not None
        assert last is not None
        assert await store.prune(closed_before=first) == 0
        assert await store.prune(closed_before=last, limit=3) == 3
        assert sorted(head.id for head in await store.scan()) == ["id-4", "id-5", "open"]
        assert await store.prune(closed_before=last, limit=3) == 1
        assert await store.prune(closed_before=last, limit=3) == 0
        assert sorted(head.id for head in await store.scan()) == ["id-5", "open"]

    async def test_prune_in_many_steps(self, store: Store, clock: Clock) -> None:
        await create(store, *(f"id-{n}" for n in range(350)), close=True)
        await clock.advance(1)
        assert await store.prune(closed_before=await store.now(), limit=320) == 320
        assert len(await store.scan(limit=1000)) == 30

    async def test_a_pruned_id_starts_anew(self, store: Store, clock: Clock) -> None:
        signals = [Signal("t", b"1", "m"), Signal("t", b"2", "m")] if store.capabilities.signals else []
        await create(store, "a", signals=signals[:1], snapshot=b"old", owner="w")
        await store.append([Write(id="a", expect=1, records=[b"end"], close=True)])
        await clock.advance(1)
        assert await store.prune(closed_before=await store.now()) == 1
        assert await store.load("a") is None
        with pytest.raises(RunNotFound):
            await store.append([Write(id="a", expect=2, records=[b"late"])])
        await store.append([Write(id="a", expect=0, create=MACHINE, records=[b"anew"])])
        await store.append([Write(id="a", signals=signals[1:])])
        stored = await found(store, "a")
        head = stored.head
        assert (head.kind, head.version, head.owner, head.fence, head.closed, head.inbox) == (
            "machine",
            1,
            None,
            0,
            None,
            len(signals[1:]),
        )
        assert (list(stored.records), stored.snapshot, [s.payload for s in stored.signals]) == (
            [b"anew"],
            None,
            [s.payload for s in signals[1:]],
        )
