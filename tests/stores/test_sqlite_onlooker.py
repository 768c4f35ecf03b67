"""`flowlet.stores.sqlite_onlooker`: the same answers as the store, and no trace of having been there."""

from __future__ import annotations

from pathlib import Path

import pytest

from flowlet.errors import StoreError, StoreNotFound
from flowlet.store import New, Signal, Store, Write, missing_members
from flowlet.stores import open_store
from flowlet.stores.onlooker import look_at, open_onlooker
from flowlet.stores.sqlite_onlooker import SQLiteOnlooker

pytestmark = pytest.mark.anyio


async def fill(store: Store) -> None:
    new = New("run", "checkout")
    for number in range(5):
        write = Write(id=f"r-{number}", expect=0, create=new, records=[b"a", b"b"], status="waiting", wake=None)
        await store.append([write])
    await store.append([Write(id="r-1", signals=[Signal("t", b"x")], snapshot=b"s")])


async def test_it_answers_as_the_store_does_while_that_is_open_and_after(tmp_path: Path) -> None:
    store = open_store(f"sqlite:///{tmp_path}/a.db")
    await fill(store)
    onlooker = await open_onlooker(f"sqlite:///{tmp_path}/a.db")
    assert isinstance(onlooker, SQLiteOnlooker)
    for questions in range(2):
        assert await onlooker.scan() == await store.scan()
        assert await onlooker.scan(kind="run", status=["waiting"], after=2, limit=1) == await store.scan(
            after=2, limit=1
        )
        assert await onlooker.load("r-1") == await store.load("r-1")
        assert await onlooker.load("r-9") is None
        if not questions:
            seen = await onlooker.watch(-1, 0)
            await store.append([Write(id="r-2", expect=2, records=[b"c"])])
            assert await onlooker.watch(seen, 5.0) != seen
    await onlooker.close()
    await store.close()
    again = SQLiteOnlooker(tmp_path / "a.db")
    assert len(await again.scan()) == 5
    await again.close()
    assert [path.name for path in tmp_path.iterdir()] == ["a.db"]


async def test_it_makes_nothing(tmp_path: Path) -> None:
    onlooker = SQLiteOnlooker(tmp_path / "none.db")
    with pytest.raises(StoreNotFound, match="nothing was created"):
        await onlooker.scan()
    assert list(tmp_path.iterdir()) == []


async def test_it_refuses_to_write(tmp_path: Path) -> None:
    onlooker = SQLiteOnlooker(tmp_path / "none.db")
    assert missing_members(onlooker) == []
    with pytest.raises(StoreError, match="only looked at"):
        await onlooker.append([])
    with pytest.raises(StoreError, match="only looked at"):
        await onlooker.heartbeat("w", 1.0)


async def test_a_store_of_ones_own_is_taken_as_it_is(tmp_path: Path) -> None:
    class Shared(SQLiteOnlooker):
        """Knows nothing of onlookers."""

    own = Shared(tmp_path / "none.db")
    assert await look_at(own) is own
