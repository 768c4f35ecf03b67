"""The SQLite store and the event loop: groups, cancellation, locks, and a loop that is never held up."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

import anyio
import pytest
from stillness import watched

from flowlet.errors import Conflict, StoreUnavailable
from flowlet.store import New, Signal, Write
from flowlet.stores import sqlite_turn
from flowlet.stores.sqlite import SQLiteStore
from flowlet.stores.sqlite_pace import Pace

Start: TypeAlias = Callable[..., "subprocess.Popen[str]"]

pytestmark = pytest.mark.anyio

RUN = New("run", "test")
STALL = 0.25
"""Seconds a tick of 10 ms may take here; the promise is 100 ms, on a machine that does nothing else."""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SQLiteStore]:
    made = SQLiteStore(tmp_path / "s.db", synchronous="NORMAL", busy_timeout=20)
    await made.append([Write(id="a", expect=0, create=RUN, records=[b"1"])])
    yield made
    await made.close()


@pytest.fixture(params=["inline", "thread"])
def place(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where commits are made: in the loop's thread when possible, or always in the writer's."""
    if request.param == "thread":
        monkeypatch.setattr(Pace, "is_short", lambda self, now: False)
    name: str = request.param
    return name


def lock(store: SQLiteStore) -> sqlite3.Connection:
    """Hold the write lock as another process would; closing the connection gives it up."""
    connection = sqlite3.connect(store.path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return connection


async def version(store: SQLiteStore, id: str = "a") -> int:
    stored = await store.load(id)
    assert stored is not None
    return stored.head.version


# Where and how commits are made -------------------------------------------------------------------
async def test_appends_of_many_tasks_are_committed_together(store: SQLiteStore, place: str) -> None:
    tasks, steps = 64, 10
    await store.append([Write(id=f"id-{n}", expect=0, create=RUN, records=[b"1"]) for n in range(tasks)])
    before = store.commits

    async def one(n: int) -> None:
        for expect in range(1, steps + 1):
            await store.append([Write(id=f"id-{n}", expect=expect, records=[b"x"])])

    async with anyio.create_task_group() as group:
        for n in range(tasks):
            group.start_soon(one, n)
    assert {await version(store, f"id-{n}") for n in range(tasks)} == {steps + 1}
    assert steps <= store.commits - before <= tasks * steps // 8


async def test_a_lone_append_is_committed_in_the_loops_thread_when_that_is_short(store: SQLiteStore) -> None:
    for expect in range(1, 51):
        await store.append([Write(id="a", expect=expect, records=[b"x"])])
    assert store.inline_commits > 25


async def test_a_large_append_and_work_are_left_to_the_writers_thread(store: SQLiteStore) -> None:
    for expect in range(1, 11):
        await store.append([Write(id="a", expect=expect, records=[b"x"])])
    before, threads = store.inline_commits, set[int]()
    await store.append([Write(id="a", expect=11, records=[bytes(4 << 20)])])

    def work(connection: sqlite3.Connection) -> list[Write]:
        threads.add(threading.get_ident())
        return []

    await store.append([], work=work)
    assert store.inline_commits == before
    assert len(threads) == 1
    assert threading.get_ident() not in threads
    await store.append([Write(id="a", expect=12, records=[b"x"])])
    assert store.inline_commits == before + 1


async def test_more_appends_than_fit_wait_their_turn(
    store: SQLiteStore, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_turn, "_BOUND", 16)
    accepted = []
    accept = sqlite_turn.Turn._accept

    def count(self: sqlite_turn.Turn, request: object) -> None:
        accepted.append(self._accepted)
        accept(self, request)  # type: ignore[arg-type]

    monkeypatch.setattr(sqlite_turn.Turn, "_accept", count)
    async with anyio.create_task_group() as group:
        for n in range(200):
            group.start_soon(store.append, [Write(id=f"id-{n}", expect=0, create=RUN, records=[b"1"])])
    assert len(await store.scan(limit=500)) == 201
    assert len(accepted) >= 200
    assert max(accepted) == 15


async def test_one_refused_append_of_a_group_does_not_disturb_the_others(store: SQLiteStore, place: str) -> None:
    """Also one that only the database itself can refuse, in the middle of the transaction."""
    outcomes: dict[str, BaseException | None] = {}

    async def one(name: str, write: Write) -> None:
        outcomes[name] = None
        try:
            await store.append([write])
        except Exception as error:
            outcomes[name] = error

    async with anyio.create_task_group() as group:
        for n in range(20):
            group.start_soon(one, f"good-{n}", Write(id=f"good-{n}", expect=0, create=RUN, records=[b"1"]))
            group.start_soon(one, f"stale-{n}", Write(id="a", expect=7, records=[b"1"]))
        group.start_soon(one, "bad", Write(id="bad", expect=0, create=RUN, records=[b"1"], status="\ud800"))
    assert [type(outcomes[f"good-{n}"]) for n in range(20)] == [type(None)] * 20
    assert [type(outcomes[f"stale-{n}"]) for n in range(20)] == [Conflict] * 20
    assert type(outcomes["bad"]).__name__ == "EncodeError"
    assert len(await store.scan()) == 21


async def test_appends_of_one_turn_see_each_other(store: SQLiteStore, place: str) -> None:
    """A signal, a record and what consumes the signal, to one entity, in one transaction."""
    before = store.commits
    async with anyio.create_task_group() as group:
        for n in range(5):
            group.start_soon(store.append, [Write(id="a", signals=[Signal("t", b"%d" % n, f"m{n % 3}")])])
        group.start_soon(store.append, [Write(id="a", expect=1, records=[b"2"], status="s")])
        group.start_soon(store.append, [Write(id="a", state="t", consumed=99)])
    stored = await store.load("a")
    assert stored is not None
    assert (stored.head.version, stored.head.inbox, stored.head.status, stored.head.state) == (2, 3, "s", "t")
    assert all(signal.number <= 3 for signal in stored.signals)
    assert store.commits - before <= 4


async def test_a_read_sees_what_was_acknowledged(store: SQLiteStore, place: str) -> None:
    for expect in range(1, 100):
        await store.append([Write(id="a", expect=expect, records=[b"x"], status=str(expect))])
        assert await version(store) == expect + 1
        if expect % 10 == 0:
            assert [head.version for head in await store.scan(status=[str(expect)])] == [expect + 1]


async def test_another_connections_commit_is_seen_by_the_next_append(store: SQLiteStore, place: str) -> None:
    """What is remembered from batch to batch is forgotten when somebody else has written."""
    other = SQLiteStore(store.path, synchronous="NORMAL")
    for expect in range(1, 21, 2):
        await store.append([Write(id="a", expect=expect, records=[b"x"])])
        await other.append([Write(id="a", expect=expect + 1, records=[b"x"])])
        with pytest.raises(Conflict) as caught:
            await store.append([Write(id="a", expect=expect + 1, records=[b"late"])])
        assert caught.value.actual == expect + 2
    await other.close()


# Cancellation -------------------------------------------------------------------------------------
async def test_a_cancelled_append_has_its_outcome_when_the_cancellation_is_raised(
    store: SQLiteStore, place: str
) -> None:
    ended = []

    async def append() -> None:
        try:
            await store.append([Write(id="a", expect=1, records=[b"2"])])
        finally:
            ended.append(holder.in_transaction)

    with closing(lock(store)) as holder:
        async with anyio.create_task_group() as group:
            group.start_soon(append)
            await anyio.sleep(0.05)
            group.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.1)
                assert ended == [], "it waits for the outcome"
                holder.execute("ROLLBACK")
    assert ended == [False]
    assert await version(store) == 2


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_task_cancelled_again_and_again(store: SQLiteStore, place: str) -> None:
    with closing(lock(store)) as holder:
        task = asyncio.ensure_future(store.append([Write(id="a", expect=1, records=[b"2"])]))
        await asyncio.sleep(0.05)
        for _ in range(5):
            task.cancel()
            await asyncio.sleep(0.02)
        assert not task.done()
        holder.execute("ROLLBACK")
        with pytest.raises(asyncio.CancelledError):
            await task
    assert task.cancelled()
    assert await version(store) == 2


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_timeout_of_asyncio(store: SQLiteStore) -> None:
    with closing(lock(store)) as holder:
        asyncio.get_running_loop().call_later(0.2, holder.execute, "ROLLBACK")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await store.append([Write(id="a", expect=1, records=[b"2"])])
    assert await version(store) == 2


async def test_waiting_under_a_cancelled_scope_does_not_spin(store: SQLiteStore) -> None:
    """anyio cancels a task again in every turn of the asyncio loop, as long as it does not leave the scope."""
    with closing(lock(store)) as holder:

        async def unlock() -> None:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.5)
                holder.execute("ROLLBACK")

        before = time.process_time()
        with anyio.move_on_after(0.02) as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(unlock)
                await store.append([Write(id="a", expect=1, records=[b"2"])])
        assert scope.cancelled_caught
        assert time.process_time() - before < 0.3
    assert await version(store) == 2


# Locks --------------------------------------------------------------------------------------------
async def test_a_lock_of_another_process_is_waited_for_and_the_loop_goes_on(store: SQLiteStore, start: Start) -> None:
    for expect in range(1, 11):  # commits are known to be short: the next would be made in the loop's thread
        await store.append([Write(id="a", expect=expect, records=[b"x"])])
    process = start("lock", store.path, 3)
    assert process.stdout is not None
    assert await anyio.to_thread.run_sync(process.stdout.readline) == "locked\n"
    began = time.monotonic()
    async with watched() as spans, anyio.create_task_group() as group:
        for n in range(5):
            group.start_soon(store.append, [Write(id=f"id-{n}", expect=0, create=RUN, records=[b"1"])])
        await anyio.sleep(0.5)
        assert await version(store) == 11, "reads go on"
        assert await store.load("id-0") is None
    assert time.monotonic() - began > 2
    assert len(spans.all) > 100
    assert spans.longest() < STALL
    assert len(await store.scan()) == 6


async def test_a_lock_that_is_kept_too_long_is_unavailable_and_then_works(tmp_path: Path, place: str) -> None:
    store = SQLiteStore(tmp_path / "s.db", busy_timeout=0.2)
    await store.append([Write(id="a", expect=0, create=RUN, records=[b"1"])])
    with closing(lock(store)):
        for call in (
            store.append([Write(id="a", expect=1, records=[b"2"])]),
            store.heartbeat("w", 10),
            store.append([], work=lambda connection: [Write(id="a", expect=1, records=[b"2"])]),
        ):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable, match=r"lock.*0\.2 s"):
                await call
            assert time.monotonic() - began >= 0.19
    assert await version(store) == 1
    await store.append([Write(id="a", expect=1, records=[b"2"])])
    assert await version(store) == 2
    await store.close()


async def test_commits_come_back_to_the_loop_after_a_lock(store: SQLiteStore) -> None:
    for expect in range(1, 11):
        await store.append([Write(id="a", expect=expect, records=[b"x"])])
    with closing(lock(store)) as holder:
        async with anyio.create_task_group() as group:
            group.start_soon(store.append, [Write(id="a", expect=11, records=[b"x"])])
            await anyio.sleep(0.05)
            inline = store.inline_commits
            holder.execute("ROLLBACK")
    assert store.inline_commits == inline
    for expect in range(12, 32):
        await store.append([Write(id="a", expect=expect, records=[b"x"])])
    assert store.inline_commits > inline


async def test_a_loop_with_large_values_and_many_appends_goes_on(store: SQLiteStore) -> None:
    async with watched() as spans:
        async with anyio.create_task_group() as group:
            for n in range(300):
                group.start_soon(store.append, [Write(id=f"id-{n}", expect=0, create=RUN, records=[b"x" * 100] * 5)])
            for n in range(3):
                await store.append([Write(id="a", expect=n + 1, records=[bytes(16 << 20)])])
                await store.load("a", after=n + 1)
        await store.scan(limit=1000)
    assert spans.longest() < STALL


async def test_the_writers_thread_does_not_starve_beside_a_busy_loop(store: SQLiteStore, place: str) -> None:
    stop = False

    async def compute() -> None:
        while not stop:
            until = time.perf_counter() + 0.0005
            while time.perf_counter() < until:
                pass
            await anyio.sleep(0)

    waits = []
    async with anyio.create_task_group() as group:
        group.start_soon(compute)
        for expect in range(1, 31):
            began = time.perf_counter()
            await store.append([Write(id="a", expect=expect, records=[b"x"])])
            waits.append(time.perf_counter() - began)
        stop = True
    assert sorted(waits)[15] < 0.1, "15 ms on a quiet machine; seconds without the watchdog"


async def test_the_write_ahead_log_begins_again_from_the_front(store: SQLiteStore) -> None:
    for expect in range(1, 3001):
        await store.append([Write(id="a", expect=expect, records=[b"x" * 100])])
    assert store.inline_commits > 1000
    assert 0 < Path(store.path + "-wal").stat().st_size < 12 << 20, "a thousand pages have 4 MB; all of these have 30"


# Watching -----------------------------------------------------------------------------------------
async def test_a_record_of_its_own_wakes_nobody(store: SQLiteStore, place: str) -> None:
    await store.append([Write(id="a", expect=1, records=[b"x"])])
    seen = await store.watch(-1, 0)
    await store.append([Write(id="a", expect=2, records=[b"x"], status="s", state="t")])
    assert await store.watch(seen, 0.12) == seen


@pytest.mark.parametrize("already_watching", [True, False])
async def test_a_signal_from_another_process_is_noticed(store: SQLiteStore, already_watching: bool) -> None:
    other = SQLiteStore(store.path)
    await other.load("a")
    seen = await store.watch(-1, 0)

    async def send() -> None:
        await other.append([Write(id="a", signals=[Signal("t", b"1")])])

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            if already_watching:
                group.start_soon(send)
            else:
                await send()
            assert await store.watch(seen, 60) != seen
    stored = await store.load("a")
    assert stored is not None
    assert len(stored.signals) == 1
    await other.close()


async def test_another_process_is_heard_while_this_one_writes_all_the_time(store: SQLiteStore, place: str) -> None:
    other = SQLiteStore(store.path, synchronous="NORMAL")
    await other.append([Write(id="b", expect=0, create=RUN, records=[b"1"])])
    stop = False

    async def write() -> None:
        expect = 1
        while not stop:
            await store.append([Write(id="a", expect=expect, records=[b"x"])])
            expect += 1

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(write)
            for n in range(5):
                seen = await store.watch(-1, 0)
                await other.append([Write(id="b", signals=[Signal("t", b"%d" % n)])])
                while True:
                    seen = await store.watch(seen, 60)
                    stored = await store.load("b")
                    assert stored is not None
                    if len(stored.signals) == n + 1:
                        break
            stop = True
    await other.close()


async def test_who_watches_is_woken_by_close(store: SQLiteStore) -> None:
    seen = await store.watch(-1, 0)
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(store.watch, seen, 60)
            await anyio.sleep(0.02)
            await store.close()


# Opening and closing ------------------------------------------------------------------------------
async def test_close_finishes_what_was_accepted(store: SQLiteStore, place: str) -> None:
    async with anyio.create_task_group() as group:
        for n in range(100):
            group.start_soon(store.append, [Write(id=f"id-{n}", expect=0, create=RUN, records=[b"1"])])
        await anyio.sleep(0)
        await store.close()
    assert len(await store.scan(limit=500)) == 101


async def test_close_ends_the_thread_and_an_append_meanwhile_opens_again(store: SQLiteStore) -> None:
    def writers() -> list[threading.Thread]:
        return [thread for thread in threading.enumerate() if store.path in thread.name]

    assert len(writers()) == 1
    async with anyio.create_task_group() as group:
        group.start_soon(store.close)
        for expect in range(1, 20):
            await store.append([Write(id="a", expect=expect, records=[b"x"])])
    await store.close()
    for thread in writers():
        await anyio.to_thread.run_sync(thread.join, 5)
    assert writers() == []
    assert await version(store) == 20


def test_it_moves_from_loop_to_loop(tmp_path: Path) -> None:
    store = SQLiteStore(tmp_path / "s.db", synchronous="NORMAL")

    async def use(expect: int, close: bool) -> None:
        seen = await store.watch(-1, 0)
        create = RUN if expect == 0 else None
        for step in range(5):
            write = Write(id="a", expect=expect + step, create=create if step == 0 else None, records=[b"x"], wake=0.0)
            await store.append([write])
        assert await store.watch(seen, 60) != seen
        assert await version(store) == expect + 5
        if close:
            await store.close()

    backends = ["asyncio", "trio", "trio", "asyncio", "asyncio", "trio"]
    for index, backend in enumerate(backends):
        anyio.run(use, index * 5, index % 2 == 1, backend=backend)
