"""Transactional steps: what they write and the record of it are one commit, on SQLite; so it happens exactly once."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from msgspec.structs import replace

from flowlet import Flowlet, Retry, Run, compensate, current_run, gather, provided, step
from flowlet.errors import (
    ConfigError,
    DefinitionError,
    EncodeError,
    FlowletError,
    PayloadTooLarge,
    RunCancelled,
    RunError,
    StoreError,
    StoreUnavailable,
)
from flowlet.store import Store, Work, Write
from flowlet.stores import open_store
from flowlet.stores.memory import MemoryStore

pytestmark = pytest.mark.anyio

Until = Callable[[Callable[[], Any]], Awaitable[None]]
Connection = sqlite3.Connection


class Broken(Exception):
    pass


class Ledger:
    """Something else that is provided."""

    made = 0

    def __init__(self) -> None:
        Ledger.made += 1
        self.thread = threading.current_thread()


async def open_once(path: Path) -> None:
    async with Flowlet(f"sqlite:///{path}?durability=process"):
        pass


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "flow.db"
    anyio.run(open_once, path)  # flowlet begins a file; whoever wants tables of their own in it adds them
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE entries (key TEXT, attempt INTEGER, note TEXT)")
        connection.execute("CREATE TABLE names (name TEXT PRIMARY KEY)")
    connection.close()
    return path


@pytest.fixture
def store(path: Path) -> Store:
    return open_store(f"sqlite:///{path}?durability=process")


@pytest.fixture
def flow(store: Store) -> Flowlet:
    return Flowlet(store)


def rows(path: Path) -> list[Any]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute("SELECT key, attempt, note FROM entries ORDER BY rowid").fetchall()
    finally:
        connection.close()


def enter(connection: Connection, note: str = "") -> None:
    run = current_run()
    connection.execute("INSERT INTO entries VALUES (?, ?, ?)", (run.idempotency_key, run.attempt, note))


async def result_of(awaitable: Awaitable[Any]) -> Any:
    with anyio.fail_after(20):
        try:
            return await awaitable
        except Exception as error:
            return error


# ---------------------------------------------------------------- how it is called
async def test_a_plain_def_in_an_assembled_saga(flow: Flowlet, path: Path) -> None:
    threads: list[threading.Thread] = []

    @step(transactional=True)
    def book(n: int, connection: Connection = provided, run: Run = provided, ledger: Ledger = provided) -> int:
        threads.append(threading.current_thread())
        assert current_run() is run
        enter(connection, f"{n} {type(ledger).__name__}")
        return n + 1

    @step
    async def show(book: int) -> str:
        return f"booked {book}"

    flow.provide(Ledger)
    async with flow:
        assert await flow.execute(flow.saga("booking", book, show), 1, id="b") == "booked 2"
        report = await flow.handle("b").report()
    assert rows(path) == [("b/book", 1, "1 Ledger")]
    assert threads[0] is not threading.main_thread()
    assert report.steps["book"].value == 2


async def test_what_is_provided_is_made_on_the_event_loop(flow: Flowlet) -> None:
    made: list[Ledger] = []

    @flow.provide
    def ledger() -> Ledger:
        made.append(Ledger())
        return made[-1]

    @step(transactional=True)
    def book(connection: Connection = provided, ledger: Ledger = provided) -> None: ...

    async with flow:
        await flow.execute(flow.saga("booking", book))
    assert [m.thread for m in made] == [threading.main_thread()]


async def test_an_async_def_in_a_body_and_in_a_class(flow: Flowlet, path: Path) -> None:
    @step(transactional=True)
    async def book(n: int, *, connection: Connection = provided) -> int:
        enter(connection, str(n))
        return n + 1

    @flow.saga
    async def body(n: int) -> int:
        return await book(await book(n))

    @flow.saga
    class Body:
        @step(transactional=True)
        async def note(self, n: int, connection: Connection = provided) -> int:
            enter(connection, f"note {n}")
            return n + 1

        async def __call__(self, n: int) -> int:
            return await self.note(n)

    async with flow:
        assert await flow.execute(body, 1, id="b") == 3
        assert await flow.execute(Body, 5, id="c") == 6
    assert rows(path) == [("b/book", 1, "1"), ("b/book#2", 1, "2"), ("c/note", 1, "note 5")]


async def test_outside_of_a_run_it_is_just_the_function() -> None:
    @step(transactional=True)
    def book(n: int, connection: Connection = provided) -> int:
        return n + 1 if isinstance(connection, sqlite3.Connection) else 0

    connection = sqlite3.connect(":memory:")
    assert book(1, connection) == 2
    connection.close()


async def test_on_the_memory_store_the_connection_is_the_store() -> None:
    seen: list[Any] = []

    @step(transactional=True)
    async def book(store: MemoryStore = provided) -> int:
        seen.append(store)
        return 1

    async with Flowlet() as flow:

        @flow.saga
        async def body() -> int:
            return sum(await gather(book(), book())) + await book()

        assert await flow.execute(body) == 3
        assert seen == [flow.store] * 3


# ---------------------------------------------------------------- one commit
@pytest.mark.parametrize("parallel", [False, True])
async def test_rows_and_record_are_one_commit(flow: Flowlet, path: Path, parallel: bool) -> None:
    """Whoever looks from outside sees both or neither."""
    inside: list[tuple[int, int]] = []

    def count() -> tuple[int, int]:
        connection = sqlite3.connect(path)
        try:
            (steps,) = connection.execute("SELECT version FROM heads WHERE id = 'b'").fetchone()
            return len(rows(path)), steps
        finally:
            connection.close()

    @step(transactional=True)
    async def book(connection: Connection = provided) -> None:
        enter(connection)
        inside.append(count())

    @step
    async def look() -> None: ...

    @flow.saga
    async def body() -> None:
        if parallel:
            await gather(book(), book())
        else:
            await book()
            await book()

    async with flow:
        await flow.execute(body, id="b")
    assert inside == [(0, 1), (1, 2)]
    assert len(rows(path)) == 2


async def test_many_at_once(flow: Flowlet, path: Path) -> None:
    @step(transactional=True)
    async def book(n: int, connection: Connection = provided) -> int:
        enter(connection, str(n))
        return n

    @flow.saga
    async def body(first: int) -> int:
        return sum(await gather(*(book(first + n) for n in range(5))))

    async with flow:
        handles = [await flow.start(body, 10 * n, id=f"b{n}") for n in range(8)]
        assert [await result_of(h.result()) for h in handles] == [50 * n + 10 for n in range(8)]
    assert sorted(int(note) for _, _, note in rows(path)) == [10 * a + b for a in range(8) for b in range(5)]


# ---------------------------------------------------------------- what fails leaves nothing
@pytest.mark.parametrize("parallel", [False, True])
async def test_a_failed_attempt_leaves_no_rows(flow: Flowlet, path: Path, parallel: bool) -> None:
    draws: list[Any] = []

    @step(transactional=True, retry=Retry(attempts=3, wait=0))
    async def book(run: Run = provided, connection: Connection = provided) -> int:
        enter(connection)
        draws.append(run.uuid())
        if run.attempt < 3:
            raise Broken
        return run.attempt

    @step
    async def other() -> int:
        return 0

    @flow.saga
    async def body() -> int:
        return sum(await gather(book(), other())) if parallel else await book()

    async with flow:
        assert await flow.execute(body, id="b") == 3
        kinds = [r.kind async for r in flow.handle("b").history() if r.step == "book"]
    assert rows(path) == [("b/book", 3, "")]
    assert kinds == ["attempt_failed", "attempt_failed", "step_completed"]
    assert len(draws) == 3
    assert len(set(draws)) == 1


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize(
    ("result", "error"), [(object(), EncodeError), ("x" * 5000, PayloadTooLarge)], ids=["unencodable", "too large"]
)
async def test_a_result_that_cannot_be_stored_leaves_no_rows(
    store: Store, path: Path, result: Any, error: type[Exception], parallel: bool
) -> None:
    flow = Flowlet(store, max_payload=4096)
    calls: list[int] = []

    @step(transactional=True, retry=3)
    async def book(connection: Connection = provided) -> str:
        calls.append(1)
        enter(connection)
        return result  # type: ignore[no-any-return]

    @step
    async def other() -> str:
        return ""

    @flow.saga
    async def body() -> str:
        return (await gather(book(), other()))[0] if parallel else await book()

    async with flow:
        assert isinstance(await result_of(flow.execute(body, id="b")), error)
        assert await flow.handle("b").status() == "failed"
    assert (rows(path), calls) == ([], [1])


async def test_the_databases_own_errors_are_the_steps(flow: Flowlet, path: Path) -> None:
    @step(transactional=True)
    async def book(connection: Connection = provided) -> None:
        enter(connection)
        connection.execute("INSERT INTO names VALUES ('ann')")
        connection.execute("INSERT INTO names VALUES ('ann')")

    @flow.saga
    async def body() -> None:
        await book()

    async with flow:
        error = await result_of(flow.execute(body, id="b"))
        assert isinstance(error, sqlite3.IntegrityError)
        again = await result_of(flow.handle("b").result())
        assert "UNIQUE" in str(again)
    assert rows(path) == []


async def test_a_step_that_ends_the_transaction_itself_fails_alone(flow: Flowlet, path: Path) -> None:
    """SQLite rolls all of it back on such a conflict; the others in the same commit must not suffer."""

    @step(transactional=True, retry=2)
    async def book(n: int, connection: Connection = provided) -> int:
        enter(connection, str(n))
        if n == 2:
            connection.execute("INSERT INTO names VALUES ('ann')")
            connection.execute("INSERT OR ROLLBACK INTO names VALUES ('ann')")
        return n

    @flow.saga
    async def body(n: int) -> int:
        return await book(n)

    async with flow:
        handles = [await flow.start(body, n, id=f"b{n}") for n in range(5)]
        outcomes = [await result_of(h.result()) for h in handles]
    assert isinstance(outcomes[2], Exception)
    assert outcomes[:2] + outcomes[3:] == [0, 1, 3, 4]
    assert sorted(note for _, _, note in rows(path)) == ["0", "1", "3", "4"]


@pytest.mark.parametrize("statement", ["COMMIT", "BEGIN", "ROLLBACK", "commit()", "rollback()", "with"])
async def test_the_transaction_is_not_the_steps_to_end(flow: Flowlet, path: Path, statement: str) -> None:
    @step(transactional=True)
    async def book(connection: Connection = provided) -> None:
        enter(connection)
        if statement == "with":
            with connection:
                enter(connection)
        elif statement.endswith("()"):
            getattr(connection, statement[:-2])()
        else:
            connection.execute(statement)

    @step(transactional=True)
    async def again(connection: Connection = provided) -> None:
        enter(connection, "again")

    @flow.saga
    async def body() -> None:
        await book()

    @flow.saga
    async def other() -> None:
        await again()

    async with flow:
        error = await result_of(flow.execute(body, id="b"))
        assert isinstance(error, StoreError)
        assert "commits the transaction" in str(error)
        assert isinstance(error.__cause__, sqlite3.DatabaseError)
        assert str(await result_of(flow.handle("b").result())) == str(error)
        assert await flow.execute(other) is None
    assert [note for _, _, note in rows(path)] == ["again"]


async def test_how_the_step_likes_its_rows_stays_with_the_step(flow: Flowlet, path: Path) -> None:
    """The connection is the store's own; what is set on it must not reach the store."""
    seen: list[Any] = []

    @step(transactional=True)
    async def book(connection: Connection = provided) -> None:
        connection.row_factory = lambda cursor, row: {"row": row}
        connection.text_factory = bytes
        enter(connection)
        seen.append(connection.execute("SELECT note FROM entries").fetchone())

    @step
    async def show() -> str:
        return "shown"

    @flow.saga
    async def body() -> str:
        await book()
        await book()
        return await show()

    async with flow:
        assert await result_of(flow.execute(body, id="b")) == "shown"
        assert await result_of(flow.execute(body, id="c")) == "shown"
    assert len(seen) == 4
    assert seen[0] == {"row": (b"",)}


WAITS: dict[str, Callable[[], Awaitable[Any]]] = {
    "checkpoint": anyio.lowlevel.checkpoint,
    "anyio": lambda: anyio.sleep(0.01),
    "asyncio": lambda: asyncio.sleep(0.01),
    "asyncio 0": lambda: asyncio.sleep(0),
    "event": lambda: anyio.Event().wait(),
}


@pytest.mark.parametrize("kind", ["sqlite", "memory"])
@pytest.mark.parametrize("wait", WAITS)
async def test_a_step_may_not_wait(flow: Flowlet, path: Path, wait: str, kind: str, anyio_backend: str) -> None:
    if kind == "memory":
        if "asyncio" in wait and anyio_backend == "trio":
            pytest.skip("asyncio's own waits do not work on trio at all")
        flow = Flowlet()

    @step(transactional=True)
    async def book(connection: Connection = provided) -> None:
        enter(connection)
        await WAITS[wait]()

    @step(transactional=True)
    async def book_in_memory(connection: MemoryStore = provided) -> None:
        await WAITS[wait]()

    @flow.saga
    async def body() -> None:
        await (book() if kind == "sqlite" else book_in_memory())

    async with flow:
        error = await result_of(flow.execute(body, id="b"))
        assert isinstance(error, RunError), error
        assert "waits for something" in str(error)
        assert await flow.handle("b").status() == "failed"
    assert rows(path) == []


async def test_an_error_of_the_steps_own_is_no_wait(flow: Flowlet) -> None:
    @step(transactional=True)
    async def book(connection: Connection = provided) -> None:
        raise RuntimeError("mine")

    @flow.saga
    async def body() -> None:
        await book()

    async with flow:
        error = await result_of(flow.execute(body))
    assert type(error) is RuntimeError


# ---------------------------------------------------------------- annotations and capabilities
async def test_another_kind_of_connection_is_refused(path: Path) -> None:
    class Other: ...

    @step(transactional=True)
    async def book(connection: Connection = provided) -> None: ...

    @step(transactional=True)
    async def other(connection: Other = provided, ledger: Ledger = provided) -> None: ...

    for store in ("memory://", f"sqlite:///{path}?durability=process"):
        flow = Flowlet(store)
        flow.provide(Other, Other())
        flow.provide(Ledger, Ledger())

        @flow.saga
        async def body() -> None:
            await other()

        @flow.saga
        async def books() -> None:
            await book()

        async with flow:
            error = await result_of(flow.execute(body, id=f"{store} o"))
            assert isinstance(error, ConfigError)
            assert "'other'" in str(error)
            assert ("MemoryStore" if store == "memory://" else "sqlite3.Connection") in str(error)
            if store == "memory://":
                error = await result_of(flow.execute(books, id="b"))
                assert isinstance(error, ConfigError)
                assert "MemoryStore" in str(error)


async def test_what_nothing_provides_is_said(flow: Flowlet, path: Path) -> None:
    @step(transactional=True)
    async def book(connection: Connection = provided, ledger: Ledger = provided) -> None:
        enter(connection)

    @flow.saga
    async def body() -> None:
        await book()

    with pytest.raises(DefinitionError) as raised:
        async with flow:
            pass
    assert raised.value.problems == (
        "book: nothing provides Ledger for parameter 'ledger'; write `flow.provide(Ledger, ...)` before entering the "
        "Flowlet",
    )
    assert rows(path) == []
    async with Flowlet(flow.store) as late:
        error = await result_of(late.execute(late.saga(name="late")(lone_body(book))))
    assert isinstance(error, ConfigError)
    assert "nothing provides Ledger" in str(error)
    assert rows(path) == []


def lone_body(book: Any) -> Any:
    async def body() -> None:
        await book()

    return body


class Plain:
    """A store without transactions of others."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self.capabilities = replace(inner.capabilities, transactional=False)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def append(self, writes: Any, *, work: Any = None) -> None:
        assert work is None
        await self._inner.append(writes)

    async def load(self, id: str, /, **options: Any) -> Any:
        return await self._inner.load(id, **options)

    async def scan(self, **options: Any) -> Any:
        return await self._inner.scan(**options)

    async def claim(self, worker: str, /, **options: Any) -> Any:
        return await self._inner.claim(worker, **options)

    async def heartbeat(self, worker: str, lease: float, /) -> Any:
        return await self._inner.heartbeat(worker, lease)

    async def release(self, worker: str, /, ids: Any = None) -> None:
        await self._inner.release(worker, ids)

    async def now(self) -> float:
        return await self._inner.now()

    async def watch(self, seen: int, timeout: float, /) -> int:
        return await self._inner.watch(seen, timeout)

    async def prune(self, **options: Any) -> int:
        return await self._inner.prune(**options)

    async def close(self) -> None:
        await self._inner.close()


async def test_a_store_that_cannot_is_refused_when_the_flowlet_opens() -> None:
    @step(transactional=True)
    async def book(connection: Connection = provided) -> None: ...

    @step
    async def other() -> None: ...

    flow = Flowlet(Plain(MemoryStore()))
    flow.saga("others", other)
    async with flow:
        pass

    @flow.saga
    async def body() -> None:
        await book()

    flow.pipeline("line", book)
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"'book' of 'body', 'book' of 'line'"):
            await flow.__aenter__()
    with pytest.raises(FlowletError, match="not open"):
        await flow.start(body)


def test_at_assembly() -> None:
    flow = Flowlet()

    @step(transactional=True)
    async def without() -> None: ...

    @step(transactional=True)
    async def with_run_only(run: Run = provided) -> None: ...

    @step(transactional=True)
    async def unannotated(connection=provided) -> None: ...  # type: ignore[no-untyped-def]

    @step(transactional=True, timeout=1)
    async def timed(connection: Connection = provided) -> None: ...

    @step(transactional=True)
    def plain(connection: Connection = provided) -> None: ...

    with pytest.raises(DefinitionError) as raised:

        @flow.saga
        async def body() -> None:
            await without()
            await with_run_only()
            await unannotated()
            await timed()
            plain()

    problems = "\n".join(raised.value.problems)
    assert problems.count("needs a parameter for the store's connection") == 3
    assert "has no annotation" in problems
    assert "excludes timeout=" in problems
    assert "is a plain def" in problems


# ---------------------------------------------------------------- compensation
async def test_it_is_undone_like_any_other(flow: Flowlet, path: Path) -> None:
    undone: list[int] = []

    @step(transactional=True)
    async def book(n: int, connection: Connection = provided) -> int:
        enter(connection, str(n))
        return 10 * n

    @compensate(book)
    async def unbook(n: int, book: int) -> None:
        undone.extend((n, book))

    @step
    async def fail() -> None:
        raise Broken

    @flow.saga
    async def body() -> None:
        await book(1)
        await gather(book(2), book(3))
        await fail()

    async with flow:
        assert isinstance(await result_of(flow.execute(body, id="b")), Broken)
        assert await flow.handle("b").status() == "compensated"
    assert sorted(undone[:4]) == [2, 3, 20, 30]
    assert undone[4:] == [1, 10]


# ---------------------------------------------------------------- lost replies
async def test_a_store_may_do_it_again(faulty: Faulty, path: Path) -> None:
    """As when the transaction was lost to another step's fault; what the step draws is the same again."""
    flow = Flowlet(faulty)
    draws: list[Any] = []

    @step(transactional=True)
    async def book(run: Run = provided, connection: Connection = provided) -> float:
        enter(connection)
        draws.append((run.uuid(), current_run().random()))
        return draws[-1][1]  # type: ignore[no-any-return]

    @flow.saga
    async def body() -> float:
        return await book()

    async with flow:
        faulty.faults = ["twice"]
        assert await flow.execute(body, id="b") == draws[0][1]
    assert draws[0] == draws[1]
    assert (len(draws), len(rows(path))) == (2, 1)


@pytest.fixture
def faulty(store: Store) -> Faulty:
    return Faulty(store)


def twice(work: Work) -> Work:
    """Have a store do it, roll that back, and do it again."""

    def work_twice(connection: Connection) -> Any:
        connection.execute("SAVEPOINT once")
        work(connection)
        connection.execute("ROLLBACK TO once")
        return work(connection)

    return work_twice


class Faulty(Plain):
    """Loses appends that carry work, or the replies to them."""

    def __init__(self, inner: Store) -> None:
        super().__init__(inner)
        self.capabilities = inner.capabilities
        self.faults: list[str] = []
        self.held: anyio.Event | None = None

    async def append(self, writes: Any, *, work: Work | None = None) -> None:
        fault = self.faults.pop(0) if work is not None and self.faults else ""
        if fault == "lost":
            raise StoreUnavailable("the write was lost")
        if fault == "stolen":
            (head,) = await self._inner.scan(kind="run")
            await self._inner.heartbeat("thief", 30.0)
            await self._inner.append([Write(id=head.id, expect=head.version, fence=head.fence, owner="thief")])
        await self._inner.append(writes, work=twice(work) if fault == "twice" and work is not None else work)
        if fault == "reply":
            raise StoreUnavailable("the reply was lost")
        if fault == "hang":
            assert self.held is not None
            self.held.set()
            await anyio.sleep_forever()


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("faults", [["reply"], ["lost"], ["lost", "reply"], ["reply", "reply"], ["lost"] * 4])
async def test_a_lost_reply_is_recognised(
    faulty: Faulty, path: Path, faults: list[str], parallel: bool, no_pauses: int, events: list[Any]
) -> None:
    flow = Flowlet(faulty)

    @step(transactional=True)
    async def book(n: int, connection: Connection = provided) -> int:
        enter(connection, str(n))
        return n

    @flow.saga
    async def body() -> list[int]:
        first = list(await gather(book(1), book(2))) if parallel else [await book(1), await book(2)]
        return [*first, await book(3)]

    async with flow:
        faulty.faults = list(faults)
        assert await result_of(flow.execute(body, id="b")) == [1, 2, 3]
        kinds = [r.kind async for r in flow.handle("b").history()]
    assert [entry["event"] for entry in events] == [
        "run.started",
        "run.completed",
    ]
    assert sorted(note for _, _, note in rows(path)) == ["1", "2", "3"]
    assert kinds == ["started", *["step_completed"] * 3, "completed"]


@pytest.mark.parametrize("last", ["reply", "lost"])
async def test_a_store_that_stays_down_fails_nothing(faulty: Faulty, path: Path, last: str, no_pauses: int) -> None:
    flow = Flowlet(faulty, lease=1)

    @step(transactional=True)
    async def book(connection: Connection = provided) -> int:
        enter(connection)
        return 1

    @flow.saga
    async def body() -> int:
        return await book()

    async with flow:
        faulty.faults = ["lost"] * no_pauses + [last]
        assert isinstance(await result_of(flow.execute(body, id="b")), StoreUnavailable)
        assert await result_of(flow.handle("b", body).result()) == 1  # taken up again as soon as the store is there
    assert len(rows(path)) == 1


# ---------------------------------------------------------------- cancellation in the middle
@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("how", ["caller", "cancel", "body"])
async def test_cut_off_while_it_is_being_committed(faulty: Faulty, path: Path, how: str, parallel: bool) -> None:
    """Whatever cuts the wait off, what is stored counts, once."""
    flow = Flowlet(faulty)
    undone: list[int] = []

    @step(transactional=True)
    async def book(n: int, connection: Connection = provided) -> int:
        enter(connection, str(n))
        return n

    @compensate(book)
    async def unbook(book: int) -> None:
        undone.append(book)

    @flow.saga
    async def body() -> int:
        await book(0)
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await (gather(book(1), book(2)) if parallel else book(1))
        return await book(3)

    scopes: list[anyio.CancelScope] = []
    faulty.held = anyio.Event()
    async with flow:
        faulty.faults = ["", "hang"]
        handle: Any = flow.handle("b", body)
        if how == "caller":
            async with anyio.create_task_group() as group:

                async def call() -> None:
                    await flow.execute(body, id="b")

                group.start_soon(call)
                await faulty.held.wait()
                group.cancel_scope.cancel()
        else:
            handle = await flow.start(body, id="b")
            await faulty.held.wait()
            if how == "cancel":
                await handle.cancel()
            else:
                scopes[0].cancel()
        with anyio.fail_after(2):  # at once, and not when the next heartbeat looks for what was left
            outcome = await result_of(handle.result())
        kinds = [r.kind async for r in handle.history()]
    notes = [note for _, _, note in rows(path)]
    assert len(notes) == len(set(notes))
    if how == "cancel":
        assert isinstance(outcome, RunCancelled)
        assert sorted(undone) == sorted(int(note) for note in notes)
        assert "1" in notes or "2" in notes
    else:
        assert outcome == 3
        assert sorted(notes) == (["0", "1", "2", "3"] if parallel else ["0", "1", "3"])
        assert kinds.count("step_completed") == len(notes)


@pytest.mark.parametrize("moment", ["queued", "committed"])
async def test_a_sibling_that_fails_beside_it(flow: Flowlet, path: Path, moment: str, anyio_backend: str) -> None:
    """Stopped before its commit it has not happened; after it, it has: never both."""
    undone: list[int] = []

    @step(transactional=True)
    async def book(n: int, connection: Connection = provided) -> int:
        enter(connection, str(n))
        return n

    @compensate(book)
    async def unbook(book: int) -> None:
        undone.append(book)

    @step
    async def fail() -> None:
        raise Broken

    @flow.saga
    async def body() -> None:
        calls = [fail(), book(1), book(2)] if moment == "queued" else [book(1), fail(), book(2)]
        await gather(*calls)

    async with flow:
        for n in range(10):
            handle = await flow.start(body, id=f"b{n}")
            assert isinstance(await result_of(handle.result()), Broken)
            report = await handle.report()
            done = [row for row in rows(path) if row[0].startswith(f"b{n}/")]
            completed = [k for k, s in report.steps.items() if s.status == "completed" and "~" not in k]
            assert sorted(key for key, _, _ in done) == sorted(f"b{n}/{k}" for k in completed)
            assert sorted(undone) == sorted(int(note) for _, _, note in done)
            if moment == "queued" and anyio_backend == "asyncio":  # on trio, any of them may begin first
                assert done == []
            starts = [r async for r in handle.history() if r.step in ("book", "book#2") and "~" not in (r.step or "")]
            assert len(starts) <= 2
            undone.clear()


# ---------------------------------------------------------------- zombies
async def test_a_zombies_rows_are_rolled_back(faulty: Faulty, path: Path) -> None:
    """Somebody else takes the run before the step is committed: its rows and its record are refused together."""
    flow = Flowlet(faulty)
    entered: list[str] = []

    @step(transactional=True)
    async def book(connection: Connection = provided) -> int:
        enter(connection)
        entered.append("")
        return 1

    @flow.saga
    async def body() -> int:
        return await book()

    async with flow:
        faulty.faults = ["stolen"]
        handle = await flow.start(body, id="b")
        with anyio.fail_after(20):
            while not entered:
                await anyio.sleep(0.001)
        with anyio.move_on_after(0.2):
            await handle.result()
        stored = await faulty.load("b")
        assert (rows(path), len(stored.records), stored.head.owner) == ([], 1, "thief")
        await faulty.release("thief")
        assert await result_of(handle.result()) == 1
    assert (len(rows(path)), len(entered)) == (1, 2)
