"""What is peculiar to the store in memory."""

from __future__ import annotations

import anyio
import pytest

from flowlet.store import New, Write
from flowlet.stores.memory import MemoryStore

RUN = New("run", "test")


def test_an_append_does_not_suspend() -> None:
    store = MemoryStore()
    append = store.append([Write(id="a", expect=0, create=RUN, records=[b"1"])])
    with pytest.raises(StopIteration):
        append.send(None)


def test_the_data_outlives_close_and_the_loop() -> None:
    store = MemoryStore()

    async def append(expect: int) -> None:
        seen = await store.watch(-1, 0)
        write = Write(id="a", expect=expect, create=RUN if expect == 0 else None, records=[b"x"], wake=0.0)
        await store.append([write])
        assert await store.watch(seen, 60) != seen
        assert await store.watch(seen + 1, 0.01) == seen + 1
        await store.close()

    for expect, backend in enumerate(("asyncio", "trio", "asyncio")):
        anyio.run(append, expect, backend=backend)
    stored = anyio.run(store.load, "a")
    assert stored is not None
    assert stored.head.version == 3


@pytest.mark.anyio
async def test_who_reads_cannot_change_what_is_stored() -> None:
    store, records = MemoryStore(), [b"1"]
    await store.append([Write(id="a", expect=0, create=RUN, records=records)])
    before = await store.load("a")
    records.append(b"2")
    await store.append([Write(id="a", expect=1, records=[b"x"], status="changed")])
    assert before is not None
    assert (list(before.records), before.head.version, before.head.status) == ([b"1"], 1, "")


@pytest.mark.anyio
async def test_a_record_of_its_own_wakes_nobody() -> None:
    store = MemoryStore()
    await store.append([Write(id="a", expect=0, create=RUN, records=[b"1"])])
    seen = await store.watch(-1, 0)
    await store.append([Write(id="a", expect=1, records=[b"2"], status="s")])
    assert await store.watch(seen, 0) == seen


@pytest.mark.anyio
async def test_work_gets_the_store() -> None:
    store, given = MemoryStore(), list[object]()

    def work(connection: object) -> list[Write]:
        given.append(connection)
        return []

    await store.append([], work=work)
    assert given == [store]


@pytest.mark.anyio
async def test_close_wakes_who_watches() -> None:
    store = MemoryStore()
    seen = await store.watch(-1, 0)
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(store.watch, seen, 60)
            await anyio.wait_all_tasks_blocked()
            await store.close()


@pytest.mark.anyio
async def test_a_long_scan_lets_others_run() -> None:
    store, turns = MemoryStore(), 0
    await store.append([Write(id=f"{n}", expect=0, create=RUN, records=[b""]) for n in range(50_000)])

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.sleep(0)

    async with anyio.create_task_group() as group:
        group.start_soon(count)
        assert await store.scan(kind="none") == []
        group.cancel_scope.cancel()
    assert turns >= 4
