"""Records: numbered without gap, stored together or not at all."""

from __future__ import annotations

import pytest

from flowlet.errors import Conflict, RunNotFound, StoreError
from flowlet.store import New, Store, Write, missing_members
from flowlet.testing.calls import RUN, create, found, outcome_of, versions
from flowlet.testing.clocks import Clock

__all__ = ["RecordChecks"]


class RecordChecks:
    """Records: numbered without gap, stored together or not at all."""

    async def test_it_is_a_store(self, store: Store) -> None:
        assert missing_members(store) == []

    async def test_what_was_created_can_be_loaded(self, store: Store, clock: Clock) -> None:
        now = await store.now()
        await create(store, "a", new=New("machine", "Order", "7"), status="open", state="Draft", wake=1234.5)
        stored = await found(store, "a")
        head = stored.head
        assert (head.id, head.kind, head.definition, head.definition_version) == ("a", "machine", "Order", "7")
        assert (head.version, head.status, head.state, head.wake) == (1, "open", "Draft", 1234.5)
        assert (head.owner, head.fence, head.claims, head.inbox) == (None, 0, 0, 0)
        assert (head.created, head.updated, head.closed) == (clock.about(now), clock.about(now), None)
        assert (list(stored.records), stored.snapshot, stored.snapshot_version) == ([b"first"], None, 0)
        assert list(stored.signals) == []

    async def test_an_unknown_id_loads_as_none(self, store: Store) -> None:
        assert await store.load("nobody") is None

    async def test_records_are_numbered_without_gap(self, store: Store) -> None:
        await create(store, "a")
        for version in range(1, 20, 2):
            await store.append([Write(id="a", expect=version, records=[b"%d" % (version + 1), b"%d" % (version + 2)])])
        stored = await found(store, "a")
        assert stored.head.version == 21
        assert list(stored.records) == [b"first", *(b"%d" % n for n in range(2, 22))]

    async def test_load_from_a_version_on(self, store: Store) -> None:
        await create(store, "a")
        await store.append([Write(id="a", expect=1, records=[b"%d" % n for n in range(2, 11)])])
        for after, limit, expected in (
            (0, 2, [b"first", b"2"]),
            (8, None, [b"9", b"10"]),
            (3, 3, [b"4", b"5", b"6"]),
            (10, None, []),
            (99, None, []),
            (4, 0, []),
        ):
            stored = await found(store, "a", after=after, limit=limit)
            assert list(stored.records) == expected
            assert stored.head.version == 10

    async def test_a_stale_version_is_refused_and_nothing_stored(self, store: Store) -> None:
        await create(store, "a")
        await store.append([Write(id="a", expect=1, records=[b"second"], status="two")])
        with pytest.raises(Conflict) as caught:
            await store.append([Write(id="a", expect=1, records=[b"other"], status="other", consumed=9)])
        assert (caught.value.expected, caught.value.actual, caught.value.id) == (1, 2, "a")
        stored = await found(store, "a")
        assert (list(stored.records), stored.head.status) == ([b"first", b"second"], "two")

    async def test_an_append_that_was_stored_is_not_stored_again(self, store: Store) -> None:
        """The reply was lost, the writer tries again: it learns that somebody, itself, was first."""
        await create(store, "a")
        write = Write(id="a", expect=1, records=[b"second"])
        await store.append([write])
        with pytest.raises(Conflict):
            await store.append([write])
        with pytest.raises(Conflict) as caught:
            await create(store, "a")
        assert (caught.value.expected, caught.value.actual) == (0, 2)
        assert await versions(store, "a") == [2]

    async def test_a_write_to_nothing_is_refused(self, store: Store) -> None:
        for write in (
            Write(id="nobody", expect=1, records=[b""]),
            Write(id="nobody", expect=0, records=[b""]),
            Write(id="nobody", consumed=1),
            Write(id="nobody", owner=None),
        ):
            with pytest.raises(RunNotFound, match="nobody") as caught:
                await store.append([write])
            assert caught.value.id == "nobody"
        assert await store.load("nobody") is None

    async def test_writes_that_contradict_themselves_are_refused(self, store: Store) -> None:
        await create(store, "a")
        for writes, reason in (
            ([Write(id="a", expect=1, records=[b""]), Write(id="a", expect=2, records=[b""])], "same id"),
            ([Write(id="a", records=[b""])], "expects no version"),
            ([Write(id="b", expect=1, create=RUN, records=[b""])], "expect 0"),
            ([Write(id="b", create=RUN, records=[b""])], "expect 0"),
            ([Write(id="b", expect=0, create=RUN)], "without a record"),
        ):
            with pytest.raises(StoreError, match=reason):
                await store.append(writes)
        assert await versions(store, "a", "b") == [1, None]

    async def test_facts_that_a_write_does_not_name_stay(self, store: Store, clock: Clock) -> None:
        await create(store, "a", status="running", state="s", wake=5.0)
        created = (await found(store, "a")).head.created
        await clock.advance(1)
        await store.append([Write(id="a", expect=1, records=[b"second"])])
        stored = await found(store, "a")
        head = stored.head
        assert (head.status, head.state, head.wake, head.created) == ("running", "s", 5.0, created)
        assert head.updated == clock.about(created + clock.unit)
        assert head.updated > created
        await store.append([Write(id="a", expect=2, records=[b"third"], status="", wake=None, state="t")])
        stored = await found(store, "a")
        assert (stored.head.status, stored.head.state, stored.head.wake) == ("", "t", None)

    async def test_several_ids_are_written_together_or_not_at_all(self, store: Store) -> None:
        await create(store, "a", "b")
        good = [
            Write(id="a", expect=1, records=[b"second"], status="changed"),
            Write(id="new", expect=0, create=RUN, records=[b"first"]),
        ]
        for bad in (
            Write(id="b", expect=7, records=[b"second"]),
            Write(id="nobody", status="changed"),
            Write(id="b", expect=1, fence=3, records=[b"second"]),
        ):
            for writes in ([*good, bad], [bad, *good]):
                assert await outcome_of(store.append(writes)) is not None
                assert await versions(store, "a", "b", "new") == [1, 1, None]
        await store.append([*good, Write(id="b", status="changed")])
        assert await versions(store, "a", "b", "new") == [2, 1, 1]
        assert [(await found(store, id)).head.status for id in ("a", "b", "new")] == ["changed", "changed", ""]

    async def test_expecting_nothing_is_not_expecting_the_first_version(self, store: Store) -> None:
        await create(store, "a")
        with pytest.raises(Conflict) as caught:
            await store.append([Write(id="a", expect=0, records=[b"second"])])
        assert (caught.value.expected, caught.value.actual) == (0, 1)

    async def test_an_append_of_nothing_does_nothing(self, store: Store) -> None:
        await store.append([])
        assert list(await store.scan()) == []
