"""Opening, closing and opening again: what was acknowledged is there, and what cannot be done is said."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest

from flowlet.errors import Conflict, StoreError
from flowlet.store import Signal, Store, Write
from flowlet.testing.calls import CHECKOUTS, MACHINE, create, found, needs, outcome_of, together, versions
from flowlet.testing.clocks import Clock
from flowlet.testing.fixtures import StoreFixtures

__all__ = ["OpeningChecks"]


class OpeningChecks(StoreFixtures):
    """Opening, closing and opening again: what was acknowledged is there, and what cannot be done is said."""

    async def test_it_opens_again_after_close(self, store: Store) -> None:
        await store.close()
        await create(store, "a")
        await store.close()
        await store.close()
        assert await versions(store, "a") == [1]
        await store.append([Write(id="a", expect=1, records=[b"2"])])
        await store.close()
        assert await versions(store, "a") == [2]

    async def test_its_time_is_its_clocks(self, store: Store, clock: Clock) -> None:
        before = await store.now()
        assert before == clock.about(clock())
        await clock.advance(1)
        assert await store.now() == clock.about(before + clock.unit)
        assert await store.now() > before

    async def test_what_was_stored_is_there_when_it_is_opened_again(
        self, store: Store, place: Path, clock: Clock
    ) -> None:
        needs(store.capabilities, "durable")
        await create(store, "a", status="s", state="t", wake=7.5, owner="w", snapshot=b"\xff")
        await create(store, "b", new=MACHINE, close=True)
        await store.append([Write(id="a", expect=1, records=[b"\x00", b"3"], status="u")])
        if store.capabilities.signals:
            await store.append([Write(id="a", signals=[Signal("t", b"1", "m"), Signal("t", b"\xfe")])])
            await store.append([Write(id="a", consumed=1)])
        before = [await found(store, id) for id in "ab"]
        heads = list(await store.scan())
        await store.close()
        again = self.open_store(place, clock)
        try:
            for id, old in zip("ab", before, strict=True):
                new = await found(again, id)
                assert (new.head, list(new.records), list(new.signals)) == (
                    old.head,
                    list(old.records),
                    list(old.signals),
                )
                assert (new.snapshot, new.snapshot_version) == (old.snapshot, old.snapshot_version)
            assert list(await again.scan()) == heads
            if store.capabilities.signals:
                await again.append([Write(id="a", signals=[Signal("t", b"1", "m")])])
                assert (await found(again, "a")).head.inbox == 2, "it still knows which messages it has received"
            await again.append([Write(id="a", expect=3, fence=1, records=[b"4"])])
            await clock.advance(1)
            await create(again, "c")
            assert await again.prune(closed_before=await again.now()) == 1
            assert [head.id for head in await again.scan(after=heads[-1].order)] == ["c"]
        finally:
            await again.close()

    async def test_two_stores_on_the_same_data_see_each_other(self, store: Store, place: Path, clock: Clock) -> None:
        needs(store.capabilities, "multi_process")
        other = self.open_store(place, clock)
        try:
            await create(store, "a", wake=0.0)
            await other.append([Write(id="a", expect=1, records=[b"2"], status="theirs")])
            assert (await found(store, "a")).head.status == "theirs"
            with pytest.raises(Conflict):
                await store.append([Write(id="a", expect=1, records=[b"2"])])
            assert [head.id for head in await other.scan(status=["theirs"])] == ["a"]
            await create(other, "b")
            assert [head.id for head in await store.scan()] == ["a", "b"]
            if store.capabilities.leases:
                await store.heartbeat("w1", 100)
                assert list(await other.heartbeat("w2", 100)) == ["w1"]
                assert len((await store.claim("w1", definitions=CHECKOUTS)).heads) == 1
                assert not (await other.claim("w2", ids=["a"])).heads
        finally:
            await other.close()

    async def test_two_stores_on_the_same_data_race_for_each_version(
        self, store: Store, place: Path, clock: Clock
    ) -> None:
        needs(store.capabilities, "multi_process")
        other = self.open_store(place, clock)

        def append(to: Store, version: int, record: bytes) -> Callable[[], Awaitable[None]]:
            return lambda: to.append([Write(id="a", expect=version, records=[record])])

        winners = [b"first"]
        try:
            await create(store, "a")
            for version in range(1, 11):
                outcomes = await together([append(store, version, b"mine"), append(other, version, b"theirs")])
                assert {type(outcome) for outcome in outcomes} == {type(None), Conflict}
                winners.append((b"mine", b"theirs")[outcomes.index(None)])
            assert list((await found(store, "a")).records) == list((await found(other, "a")).records) == winners
        finally:
            await other.close()

    async def test_who_watches_hears_what_another_store_has_done(self, store: Store, place: Path, clock: Clock) -> None:
        needs(store.capabilities, "multi_process")
        other = self.open_store(place, clock)
        try:
            await create(store, "a", wake=None)
            with anyio.fail_after(self.patience):
                for n in range(3):
                    seen = await store.watch(-1, 60)
                    async with anyio.create_task_group() as group:
                        group.start_soon(store.watch, seen, 60)
                        await create(other, f"b{n}", wake=0.0)
        finally:
            await other.close()

    async def test_data_of_a_newer_version_is_refused(self, store: Store, place: Path, clock: Clock) -> None:
        await create(store, "a")
        await store.close()
        if not self.make_newer(place):
            pytest.skip("the test class defines no make_newer")
        again = self.open_store(place, clock)
        try:
            for call in (lambda: again.load("a"), lambda: create(again, "b"), again.scan):
                error = await outcome_of(call())
                assert isinstance(error, StoreError), f"{error!r} instead of a StoreError"
                assert "version" in str(error)
        finally:
            await again.close()

    async def test_what_the_store_cannot_do_is_said_when_it_is_asked_for(self, store: Store) -> None:
        """A flag that is False names itself in the error; nothing is silently left undone."""
        can, asked = store.capabilities, 0
        await create(store, "a")
        if not can.leases:
            asked += 1
            for call in (
                lambda: store.claim("w", ids=["a"]),
                lambda: store.heartbeat("w", 10),
                lambda: store.release("w"),
            ):
                with pytest.raises(StoreError, match="leases"):
                    await call()
        if not can.signals:
            asked += 1
            with pytest.raises(StoreError, match="signals"):
                await store.append([Write(id="a", signals=[Signal("t", b"")])])
        if not can.transactional:
            asked += 1
            with pytest.raises(StoreError, match="transactional"):
                await store.append([Write(id="a", expect=1, records=[b"2"])], work=lambda connection: [])
            assert await versions(store, "a") == [1]
        if not asked:
            pytest.skip("the store can do all of leases, signals and transactional")
