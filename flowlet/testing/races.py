"""Many who write at once: independent of each other, and one winner where they are not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from flowlet.errors import Conflict
from flowlet.store import Store, Write
from flowlet.testing.calls import RUN, create, found, together, versions

__all__ = ["RaceChecks"]


class RaceChecks:
    """Many who write at once: independent of each other, and one winner where they are not."""

    async def test_appends_of_different_callers_are_independent(self, store: Store) -> None:
        ids = [f"id-{n}" for n in range(50)]
        await create(store, *ids)

        def append(n: int) -> Callable[[], Awaitable[None]]:
            expect = 1 if n % 3 else 9
            return lambda: store.append([Write(id=ids[n], expect=expect, records=[b"second"])])

        outcomes = await together([append(n) for n in range(50)])
        assert [type(outcome) for outcome in outcomes] == [type(None) if n % 3 else Conflict for n in range(50)]
        assert await versions(store, *ids) == [2 if n % 3 else 1 for n in range(50)]

    async def test_a_hundred_create_one_id_and_one_succeeds(self, store: Store) -> None:
        def creation(n: int) -> Callable[[], Awaitable[None]]:
            return lambda: store.append([Write(id="a", expect=0, create=RUN, records=[b"%d" % n])])

        outcomes = await together([creation(n) for n in range(100)])
        winners = [n for n, outcome in enumerate(outcomes) if outcome is None]
        assert len(winners) == 1
        assert all(isinstance(outcome, Conflict) for outcome in outcomes if outcome is not None)
        stored = await found(store, "a")
        assert list(stored.records) == [b"%d" % winners[0]]

    async def test_of_those_who_follow_one_version_one_succeeds(self, store: Store) -> None:
        await create(store, "a")

        def append(expect: int, n: int) -> Callable[[], Awaitable[None]]:
            return lambda: store.append([Write(id="a", expect=expect, records=[b"%d" % n])])

        winners: list[int] = []
        for expect in range(1, 6):
            outcomes = await together([append(expect, n) for n in range(20)])
            assert sum(isinstance(outcome, Conflict) for outcome in outcomes) == 19
            winners.append(outcomes.index(None))
        stored = await found(store, "a")
        assert list(stored.records) == [b"first", *(b"%d" % n for n in winners)]

    async def test_a_cancelled_append_is_whole_or_not_there(self, store: Store) -> None:
        await create(store, "a", "b")
        for version in range(1, 11):
            with anyio.CancelScope() as scope:
                scope.cancel()
                await store.append(
                    [Write(id="a", expect=version, records=[b"x"]), Write(id="b", expect=version, records=[b"x"])]
                )
            a, b = await versions(store, "a", "b")
            assert a == b
            assert a in (version, version + 1)
            if a == version:
                await store.append(
                    [Write(id="a", expect=version, records=[b"x"]), Write(id="b", expect=version, records=[b"x"])]
                )
        assert await versions(store, "a", "b") == [11, 11]
