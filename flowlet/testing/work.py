"""User code inside the store's transaction: in the same commit, or not at all."""

from __future__ import annotations

from functools import partial

import pytest

from flowlet.errors import Conflict, RunNotFound, StoreError
from flowlet.store import Store, Write
from flowlet.testing.calls import RUN, create, needs, versions

__all__ = ["WorkChecks"]


class WorkChecks:
    """User code inside the store's transaction: in the same commit, or not at all."""

    async def test_work_adds_writes_to_the_same_append(self, store: Store) -> None:
        needs(store.capabilities, "transactional")
        await create(store, "a")

        def work(connection: object) -> list[Write]:
            assert connection is not None
            return [Write(id="b", expect=0, create=RUN, records=[b"from work"])]

        await store.append([Write(id="a", expect=1, records=[b"2"])], work=work)
        await store.append([], work=lambda connection: [Write(id="b", expect=1, records=[b"2"])])
        assert await versions(store, "a", "b") == [2, 2]

    async def test_an_exception_in_work_reaches_the_caller_and_nothing_is_stored(self, store: Store) -> None:
        needs(store.capabilities, "transactional")
        await create(store, "a")
        problem = ZeroDivisionError("mine")

        def work(connection: object) -> list[Write]:
            raise problem

        with pytest.raises(ZeroDivisionError) as caught:
            await store.append([Write(id="a", expect=1, records=[b"2"])], work=work)
        assert caught.value is problem
        assert await versions(store, "a") == [1]

    async def test_writes_of_work_are_judged_like_others(self, store: Store) -> None:
        needs(store.capabilities, "transactional")
        await create(store, "a", "b")
        first = Write(id="a", expect=1, records=[b"2"])
        for write, error in (
            (Write(id="b", expect=7, records=[b""]), Conflict),
            (Write(id="a", expect=1, records=[b""]), StoreError),
            (Write(id="nobody", expect=1, records=[b""]), RunNotFound),
        ):
            with pytest.raises(error):
                await store.append([first], work=partial(_hand_over, [write]))
        assert await versions(store, "a", "b") == [1, 1]

    async def test_work_is_not_done_for_an_append_that_is_refused(self, store: Store) -> None:
        needs(store.capabilities, "transactional")
        await create(store, "a")
        done: list[int] = []

        def work(connection: object) -> list[Write]:
            done.append(1)
            return []

        with pytest.raises(Conflict):
            await store.append([Write(id="a", expect=2, records=[b""])], work=work)
        assert done == []


def _hand_over(writes: list[Write], connection: object) -> list[Write]:
    return writes
