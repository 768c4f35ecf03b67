"""Leases: one owner at a time, fenced off when it was one too long."""

from __future__ import annotations

import anyio
import pytest

from flowlet.errors import LeaseLost
from flowlet.store import New, Store, Write
from flowlet.testing.calls import CHECKOUTS, MACHINE, create, found, needs, versions
from flowlet.testing.clocks import Clock

__all__ = ["LeaseChecks"]


class LeaseChecks:
    """Leases: one owner at a time, fenced off when it was one too long."""

    async def test_an_owner_by_write(self, store: Store) -> None:
        await create(store, "a", owner="me")
        facts = []
        for version, write in enumerate(
            (
                Write(id="a", expect=1, fence=1, records=[b"2"]),
                Write(id="a", expect=2, fence=1, owner="you", records=[b"3"]),
                Write(id="a", expect=3, fence=2, owner=None, records=[b"4"]),
                Write(id="a", expect=4, fence=3, owner=None, records=[b"5"]),
            ),
            2,
        ):
            await store.append([write])
            stored = await found(store, "a")
            assert stored.head.version == version
            facts.append((stored.head.owner, stored.head.fence))
        assert facts == [("me", 1), ("you", 2), (None, 3), (None, 3)]

    async def test_a_write_takes_the_lease_whoever_has_it(self, store: Store) -> None:
        """``owner=`` is not a claim: without ``fence=`` only the version guards it; the former owner is fenced off."""
        await create(store, "a", owner="me")
        await store.append([Write(id="a", owner="you")])
        with pytest.raises(LeaseLost) as caught:
            await store.append([Write(id="a", expect=1, fence=1, records=[b"late"])])
        assert caught.value.id == "a"
        with pytest.raises(LeaseLost):
            await store.append([Write(id="a", fence=1, owner="me")])
        head = (await found(store, "a")).head
        assert (head.owner, head.fence, head.version, head.claims) == ("you", 2, 1, 0)

    async def test_a_stale_fence_is_refused_before_the_version(self, store: Store) -> None:
        await create(store, "a", owner="me")
        await store.append([Write(id="a", expect=1, fence=1, owner="you", records=[b"2"])])
        with pytest.raises(LeaseLost, match="a") as caught:
            await store.append([Write(id="a", expect=1, fence=1, records=[b"late"])])
        assert caught.value.id == "a"
        assert await versions(store, "a") == [2]

    async def test_only_a_live_worker_may_claim(self, store: Store, clock: Clock) -> None:
        needs(store.capabilities, "leases")
        await create(store, "a", wake=0.0)
        with pytest.raises(LeaseLost, match="w1"):
            await store.claim("w1", definitions=CHECKOUTS)
        await store.heartbeat("w1", 10 * clock.unit)
        await clock.advance(10)
        with pytest.raises(LeaseLost):
            await store.claim("w1", definitions=CHECKOUTS)
        with pytest.raises(LeaseLost):
            await store.claim("w1", ids=["a"])
        await store.heartbeat("w1", 10 * clock.unit)
        assert [head.id for head in (await store.claim("w1", definitions=CHECKOUTS)).heads] == ["a"]

    async def test_a_claim_takes_what_is_due(self, store: Store, clock: Clock) -> None:
        needs(store.capabilities, "leases")
        now = await store.now()
        later = now + 10 * clock.unit
        await create(store, "later", wake=later)
        await create(store, "due", wake=now)
        await create(store, "sleeping")
        await create(store, "at once", wake=0.0)
        await create(store, "closed", wake=0.0, close=True)
        await create(store, "other", new=New("run", "other", "1"), wake=0.0)
        await create(store, "version 2", new=New("run", "checkout", "2"), wake=0.0)
        await create(store, "machine", new=New("machine", "checkout", "1"), wake=0.0)
        await store.heartbeat("w", 100)
        claims = await store.claim("w", definitions=CHECKOUTS)
        assert [(head.id, head.owner, head.fence, head.claims) for head in claims.heads] == [
            ("at once", "w", 1, 1),
            ("due", "w", 1, 1),
        ]
        assert claims.wake == later
        claims = await store.claim("w", definitions=CHECKOUTS)
        assert (list(claims.heads), claims.wake) == ([], later)
        await clock.advance(10)
        claims = await store.claim("w", definitions=[("run", "other", "1"), *CHECKOUTS, ("no", "such", "thing")])
        assert ([head.id for head in claims.heads], claims.wake) == (["other", "later"], None)
        assert not (await store.claim("w")).heads

    async def test_a_claim_takes_no_more_than_asked(self, store: Store) -> None:
        needs(store.capabilities, "leases")
        await create(store, "c", wake=3.0)
        await create(store, "a", wake=1.0)
        await create(store, "b", wake=2.0)
        await store.heartbeat("w", 100)
        claims = await store.claim("w", definitions=CHECKOUTS, limit=2)
        assert ([head.id for head in claims.heads], claims.wake) == (["a", "b"], 3.0)

    async def test_a_claim_of_ids_does_not_ask_for_the_time(self, store: Store) -> None:
        needs(store.capabilities, "leases")
        await create(store, "sleeping", "closed", "mine", "theirs")
        await create(store, "later", new=MACHINE, wake=await store.now() + 9999)
        await store.append([Write(id="closed", close=True)])
        await store.heartbeat("w", 100)
        await store.heartbeat("other", 100)
        assert len((await store.claim("other", ids=["theirs"])).heads) == 1
        assert len((await store.claim("w", ids=["mine"])).heads) == 1
        ids = ["sleeping", "closed", "mine", "theirs", "nobody", "later", "later"]
        claims = await store.claim("w", ids=ids)
        assert sorted(head.id for head in claims.heads) == ["later", "sleeping"]
        assert all((head.owner, head.fence) == ("w", 1) for head in claims.heads)

    async def test_entities_of_a_worker_that_fell_silent_can_be_claimed(self, store: Store, clock: Clock) -> None:
        needs(store.capabilities, "leases")
        await create(store, "a", wake=0.0)
        await store.heartbeat("w1", 10 * clock.unit)
        await store.heartbeat("w2", 100 * clock.unit)
        assert [head.fence for head in (await store.claim("w1", definitions=CHECKOUTS)).heads] == [1]
        await clock.advance(6)
        claims = await store.claim("w2", definitions=CHECKOUTS)
        assert (list(claims.heads), claims.wake) == ([], None)
        assert not (await store.claim("w2", ids=["a"])).heads
        await store.heartbeat("w1", 10 * clock.unit)
        await clock.advance(6)
        assert not (await store.claim("w2", definitions=CHECKOUTS)).heads, "the second heartbeat prolonged the lease"
        await clock.advance(4)
        claimed = (await store.claim("w2", definitions=CHECKOUTS)).heads
        assert [(head.owner, head.fence, head.claims) for head in claimed] == [("w2", 2, 2)]
        with pytest.raises(LeaseLost):
            await store.append([Write(id="a", expect=1, fence=1, records=[b"late"])])

    async def test_claims_are_counted_until_there_is_progress(self, store: Store) -> None:
        needs(store.capabilities, "leases")
        await create(store, "a", wake=0.0)
        await store.heartbeat("w", 100)
        for count in (1, 2, 3):
            assert [head.claims for head in (await store.claim("w", ids=["a"])).heads] == [count]
            await store.release("w", ["a"])
        await store.append([Write(id="a", status="no progress")])
        assert [head.claims for head in (await store.claim("w", ids=["a"])).heads] == [4]
        await store.append([Write(id="a", expect=1, records=[b"progress"], owner=None)])
        assert [head.claims for head in (await store.claim("w", ids=["a"])).heads] == [1]

    async def test_release_gives_back_and_fences_off(self, store: Store) -> None:
        needs(store.capabilities, "leases")
        await create(store, "a", "b", "c", wake=0.0)
        await store.heartbeat("w", 100)
        await store.heartbeat("other", 100)
        await store.claim("w", ids=["a", "b"])
        await store.claim("other", ids=["c"])
        await store.release("w", ["a", "c", "nobody"])
        with pytest.raises(LeaseLost):
            await store.append([Write(id="a", expect=1, fence=1, records=[b"late"])])
        await store.append([Write(id="b", expect=1, fence=1, records=[b"2"])])
        await store.append([Write(id="c", expect=1, fence=1, records=[b"2"])])
        claimed = (await store.claim("other", definitions=CHECKOUTS)).heads
        assert [(head.id, head.fence) for head in claimed] == [("a", 3)]

    async def test_workers_are_on_record_until_they_are_released(self, store: Store, clock: Clock) -> None:
        needs(store.capabilities, "leases")
        await create(store, "a", "b", wake=0.0)
        assert list(await store.heartbeat("w1", 10 * clock.unit)) == []
        assert list(await store.heartbeat("w2", 100)) == ["w1"]
        await store.claim("w1", ids=["a", "b"])
        await clock.advance(11)
        assert list(await store.heartbeat("w2", 100)) == ["w1"], "also when its lease ran out"
        await store.release("w1")
        assert list(await store.heartbeat("w2", 100)) == []
        assert sorted(head.id for head in (await store.claim("w2", definitions=CHECKOUTS)).heads) == ["a", "b"]
        await store.release("w1")

    async def test_release_of_a_dead_worker_frees_before_its_lease_ends(self, store: Store) -> None:
        needs(store.capabilities, "leases")
        await create(store, "a", wake=0.0)
        await store.heartbeat("dead", 1000)
        await store.heartbeat("w", 1000)
        await store.claim("dead", definitions=CHECKOUTS)
        assert not (await store.claim("w", definitions=CHECKOUTS)).heads
        await store.release("dead")
        assert [head.fence for head in (await store.claim("w", definitions=CHECKOUTS)).heads] == [3]

    async def test_no_two_workers_claim_the_same(self, store: Store) -> None:
        needs(store.capabilities, "leases")
        ids = [f"id-{n:03}" for n in range(100)]
        await create(store, *ids, wake=0.0)
        workers = [f"w{n}" for n in range(10)]
        claimed: list[tuple[str, str]] = []

        async def claim(worker: str) -> None:
            await store.heartbeat(worker, 100)
            while heads := (await store.claim(worker, definitions=CHECKOUTS, limit=3)).heads:
                claimed.extend((head.id, worker) for head in heads)
                assert len(claimed) <= len(ids), "something was claimed twice"

        with anyio.fail_after(30):
            async with anyio.create_task_group() as group:
                for worker in workers:
                    group.start_soon(claim, worker)
        assert sorted(id for id, _ in claimed) == ids
        for id, worker in claimed:
            stored = await found(store, id)
            assert stored.head.owner == worker

    async def test_a_claim_wakes_at_the_next_time(self, store: Store, clock: Clock) -> None:
        """What is owned by somebody alive, or waits for no time, does not shorten the wait."""
        needs(store.capabilities, "leases")
        now = await store.now()
        await create(store, "theirs", wake=now + 5 * clock.unit, owner="other")
        await create(store, "never")
        await create(store, "later", wake=now + 50 * clock.unit)
        await create(store, "sooner", wake=now + 40 * clock.unit)
        await store.heartbeat("other", 100)
        await store.heartbeat("w", 100)
        claims = await store.claim("w", definitions=CHECKOUTS)
        assert (list(claims.heads), claims.wake) == ([], now + 40 * clock.unit)

    async def test_leases_do_not_show_in_listings(self, store: Store) -> None:
        """However a store keeps its workers: they are no entities of the user's."""
        needs(store.capabilities, "leases")
        await store.heartbeat("w", 100)
        assert list(await store.scan()) == []
        await create(store, "a", wake=0.0)
        await store.claim("w", ids=["a"])
        await store.heartbeat("w", 100)
        assert [head.id for head in await store.scan()] == ["a"]
