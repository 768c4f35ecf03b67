"""Many callers of one machine, and callers that are cancelled: on no store, in memory and on SQLite."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from flowlet.core.faults import Faults
from flowlet.core.machine_builder import build_machine
from flowlet.core.marks import guard, state, transition
from flowlet.errors import MachineError, TransitionNotAllowed
from flowlet.runtime.logs import Log
from flowlet.runtime.machine_install import install_machine
from flowlet.runtime.machine_questions import can, raise_event, state_of
from flowlet.runtime.machines import Machines
from flowlet.store import Store
from flowlet.stores.memory import MemoryStore
from flowlet.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.anyio

STORES = ["none", "memory", "sqlite"]


def machine(cls: Any, **settings: Any) -> Any:
    faults = Faults()
    definition = build_machine(cls, name=cls.__name__, namespace={}, faults=faults, **settings)
    faults.raise_if_any()
    assert definition is not None
    return install_machine(definition)


class Slow:
    """A store whose appends also suspend before and after they are done, as one over a network does."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.capabilities = store.capabilities

    async def append(self, writes: Any, **options: Any) -> None:
        await anyio.lowlevel.checkpoint()
        await self.store.append(writes, **options)
        await anyio.lowlevel.checkpoint()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.store, name)


@asynccontextmanager
async def machines_on(kind: str, path: Path) -> AsyncIterator[Machines | None]:
    if kind == "none":
        yield None
        return
    store: Store = Slow(MemoryStore()) if kind == "memory" else SQLiteStore(path / "machines.db", synchronous="NORMAL")
    await store.heartbeat("me", 60.0)
    try:
        yield Machines(store, now=time.time, worker="me", log=Log())
    finally:
        await store.close()


async def made(machines: Machines | None, cls: Any) -> Any:
    return cls() if machines is None else await machines.create(cls)


@machine
class Quick:
    """Callbacks that wait for nothing."""

    done: int = 0

    @state(initial=True)
    class Open: ...

    @state(final=True)
    class Taken: ...

    @guard
    async def can_take(self) -> bool:
        return True

    @transition(Open, Taken)
    async def take(self, who: int) -> int:
        self.done += 1
        return who

    @transition(Open, None)
    async def count(self, who: int) -> int:
        self.done += 1
        return who


@machine
class Waiting:
    """The same, but every callback lets others run."""

    done: int = 0

    @state(initial=True)
    class Open: ...

    @state(final=True)
    class Taken: ...

    @guard
    async def can_take(self) -> bool:
        await anyio.sleep(0)
        return True

    async def on_exit_open(self) -> None:
        await anyio.sleep(0)

    @transition(Open, Taken)
    async def take(self, who: int) -> int:
        before = self.done
        await anyio.sleep(0)
        self.done = before + 1
        return who

    @transition(Open, None)
    async def count(self, who: int) -> int:
        before = self.done
        await anyio.sleep(0)
        self.done = before + 1
        return who

    async def on_enter_taken(self) -> None:
        await anyio.sleep(0)


@pytest.mark.parametrize("cls", [Quick, Waiting])
@pytest.mark.parametrize("kind", STORES)
async def test_100_tasks_fire_one_single_shot_transition(kind: str, cls: Any, tmp_path: Path) -> None:
    async with machines_on(kind, tmp_path) as machines:
        one = await made(machines, cls)
        outcomes: dict[int, Any] = {}

        async def attempt(who: int) -> None:
            try:
                outcomes[who] = await one.take(who)
            except TransitionNotAllowed as error:
                outcomes[who] = error

        async with anyio.create_task_group() as group:
            for who in range(100):
                group.start_soon(attempt, who)
        won = [who for who, outcome in outcomes.items() if outcome == who]
        refused = [e for e in outcomes.values() if isinstance(e, TransitionNotAllowed)]
        assert (len(won), len(refused), one.done) == (1, 99, 1)
        assert {(e.reason, e.state) for e in refused} == {("no_transition", "Taken")}
        assert len({id(e) for e in refused}) == 99


@pytest.mark.parametrize("cls", [Quick, Waiting])
@pytest.mark.parametrize("kind", STORES)
async def test_nobody_is_dropped_and_everybody_comes_in_order(kind: str, cls: Any, tmp_path: Path) -> None:
    async with machines_on(kind, tmp_path) as machines:
        one = await made(machines, cls)
        order: list[int] = []

        async def attempt(who: int) -> None:
            assert await one.count(who) == who
            order.append(who)

        async with anyio.create_task_group() as group:
            for who in range(50):
                group.start_soon(attempt, who)
        assert one.done == 50
        assert sorted(order) == list(range(50))
        if machines is not None:
            versions = [t.version async for t in machines.history(one._flowlet_turn.id)]
            assert versions == list(range(2, 52))


async def test_a_queued_caller_gets_its_own_error() -> None:
    class Case:
        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @transition(A, B)
        async def go(self, fail: str) -> None:
            await anyio.sleep(0)
            if fail:
                raise ValueError(fail)

        @transition("*", A)
        async def hold(self) -> None:
            await release.wait()

    release = anyio.Event()
    one = machine(Case)()
    errors: list[str] = []

    async def attempt(fail: str) -> None:
        try:
            await one.go(fail)
        except (ValueError, TransitionNotAllowed) as error:
            errors.append(f"{fail}: {type(error).__name__}")

    async with anyio.create_task_group() as group:
        group.start_soon(one.hold)
        for fail in ("x", "y", "", "z"):
            await anyio.wait_all_tasks_blocked()
            group.start_soon(attempt, fail)
        await anyio.wait_all_tasks_blocked()
        release.set()
    assert sorted(errors) == ["x: ValueError", "y: ValueError", "z: TransitionNotAllowed"]


# ------------------------------------------------------------------------------------------ cancellation
async def cancelled_at(n: int, call: Callable[[], Awaitable[Any]]) -> bool:
    """Run a call in a task whose scope is cancelled when the call suspends for the nth time.

    Returns:
        Whether it was cancelled; False when it was over before.
    """
    suspended = 0

    class Counting:
        def __await__(self) -> Any:
            nonlocal suspended
            inner = call().__await__()
            value: Any = None
            error: BaseException | None = None
            while True:
                try:
                    asked = inner.send(value) if error is None else inner.throw(error)
                except StopIteration as done:
                    return done.value
                suspended += 1
                if suspended == n:
                    scope.cancel()
                try:
                    value, error = (yield asked), None
                except BaseException as thrown:  # the loop cancels by throwing
                    value, error = None, thrown

    with anyio.CancelScope() as scope:
        await Counting()
    return scope.cancelled_caught


@machine
class Chain:
    """A transition with everything: guard, exit hook, action, enter hook, and a raised event."""

    n: int = 0
    note: str = ""

    @state(initial=True)
    class A: ...

    @state
    class B: ...

    @state
    class C: ...

    @guard
    async def can_go(self) -> bool:
        await anyio.sleep(0)
        return True

    async def on_exit_a(self) -> None:
        await anyio.sleep(0)
        self.note = "exited"

    @transition(A, B)
    async def go(self) -> str:
        self.n += 1
        await anyio.sleep(0)
        raise_event(self.on)
        self.n += 1
        return "gone"

    async def on_enter_b(self) -> None:
        await anyio.sleep(0)
        self.note = "entered"

    @transition(B, C)
    async def on(self) -> None:
        self.n += 10
        await anyio.sleep(0)

    async def on_transition(self) -> None:
        await anyio.sleep(0)

    @transition("*", A)
    async def reset(self) -> None:
        self.n = 0
        self.note = ""


@pytest.mark.parametrize("kind", STORES)
async def test_cancelled_at_every_await_a_machine_is_in_the_old_or_the_new_state(kind: str, tmp_path: Path) -> None:
    legal = {("A", 0), ("B", 2), ("C", 12)}
    async with machines_on(kind, tmp_path) as machines:
        seen: set[tuple[str, int]] = set()
        for n in range(1, 200):
            one = await made(machines, Chain)
            cancelled = await cancelled_at(n, one.go)
            if machines is None:
                assert (state_of(one), one.n) in legal
                seen.add((state_of(one), one.n))
            else:
                seen.add(await stored(machines, one))
            # The next event works, and is judged by what was committed, whatever the object showed.
            if machines is None or await can(one.reset):
                await one.reset()
            assert (state_of(one), one.n) == ("A", 0)
            assert await one.go() == "gone"
            assert (state_of(one), one.n) == ("C", 12)
            if machines is not None:
                assert await stored(machines, one) == ("C", 12)
            if not cancelled:
                break
        else:
            raise AssertionError("it never came to an end")
        assert seen <= legal
        assert {("A", 0), ("C", 12)} <= seen
        assert n > 5


async def stored(machines: Machines, one: Any) -> tuple[str, int]:
    """Load a machine as another process would."""
    await anyio.sleep(0.002)  # what a cancelled append has handed over may still be on its way
    other = Machines(machines._office.store, now=time.time, worker="other", log=Log())
    await machines._office.store.heartbeat("other", 60.0)
    loaded = await other.load(type(one), one._flowlet_turn.id)
    return state_of(loaded), loaded.n


@pytest.mark.parametrize("cls", [Quick, Waiting])
@pytest.mark.parametrize("kind", STORES)
async def test_a_queued_caller_that_is_cancelled_leaves_the_queue(kind: str, cls: Any, tmp_path: Path) -> None:
    async with machines_on(kind, tmp_path) as machines:
        for n in range(1, 40):
            one = await made(machines, cls)
            counted: list[int] = []

            async def attempt(who: int, one: Any = one, counted: list[int] = counted) -> None:
                counted.append(await one.count(who))

            ended = False

            async def victim(n: int = n, one: Any = one) -> None:
                nonlocal ended
                ended = not await cancelled_at(n, lambda: one.count(99))

            with anyio.fail_after(10):
                async with anyio.create_task_group() as group:
                    group.start_soon(attempt, 1)
                    group.start_soon(attempt, 2)
                    group.start_soon(victim)
                    group.start_soon(attempt, 3)
                    group.start_soon(attempt, 4)
            assert sorted(counted) == [1, 2, 3, 4]
            assert await one.count(5) == 5
            assert one.done in (5, 6)
            if ended:
                assert one.done == 6
                break
        else:
            raise AssertionError("it never came to an end")


async def test_a_turn_that_was_given_to_a_cancelled_caller_is_handed_on() -> None:
    one = Waiting()
    release = anyio.Event()

    class Case:
        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @transition("*", None)
        async def hold(self) -> None:
            await release.wait()

        @transition(A, B)
        async def go(self) -> None: ...

        @transition(B, A)
        async def back(self) -> None: ...

    one = machine(Case)()
    scopes: list[anyio.CancelScope] = []

    async def queue(event: Any) -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await event()

    async with anyio.create_task_group() as group:
        group.start_soon(queue, one.hold)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(queue, one.go)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(queue, one.go)
        await anyio.wait_all_tasks_blocked()
        release.set()
        scopes[1].cancel()
    assert state_of(one) == "B"


async def test_a_machine_may_be_given_a_store_while_others_queue() -> None:
    release = anyio.Event()

    class Case:
        n: int = 0

        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @transition("*", None)
        async def hold(self) -> None:
            await release.wait()

        @transition(A, B)
        async def go(self) -> None:
            self.n += 1

        @transition(B, A)
        async def back(self) -> None: ...

    one = machine(Case)()
    machines = Machines(MemoryStore(), now=time.time, worker="me", log=Log())
    async with anyio.create_task_group() as group:
        group.start_soon(one.hold)
        await anyio.wait_all_tasks_blocked()
        group.start_soon(lambda: machines.create(one, id="x"))
        await anyio.wait_all_tasks_blocked()
        group.start_soon(one.go)
        await anyio.wait_all_tasks_blocked()
        release.set()
    assert [t.event async for t in machines.history("x")] == ["go"]


async def test_one_machine_in_callbacks_of_another_is_fine() -> None:
    class Inner:
        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @transition(A, B)
        async def go(self) -> None:
            await anyio.sleep(0)

        @transition(B, A)
        async def back(self) -> None: ...

    inner = machine(Inner)

    class Outer:
        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @transition(A, B)
        async def go(self) -> None:
            self._inner = inner()
            await self._inner.go()
            await self._inner.back()
            async with anyio.create_task_group() as group:
                group.start_soon(self._inner.go)
            raise_event(self.back)

        @transition(B, A)
        async def back(self) -> None: ...

    one = machine(Outer)()
    await one.go()
    assert (state_of(one), state_of(one._inner)) == ("A", "B")
    with pytest.raises(MachineError, match="outside"):
        raise_event(one.back)


async def test_a_task_that_a_hook_leaves_behind_waits_for_its_turn(anyio_backend_name: str) -> None:
    class Case:
        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @transition(A, B)
        async def go(self) -> None:
            group.start_soon(self.back)

        @transition(B, A)
        async def back(self) -> None: ...

    one = machine(Case)()
    async with anyio.create_task_group() as group:
        await one.go()
        assert state_of(one) == "B"
    assert state_of(one) == "A"


# ------------------------------------------------------------------------------- a store that takes its time
class Queueing(Slow):
    """A store that accepts appends into a queue and stores them later, also those of cancelled callers."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.accept, self.accepted = anyio.create_memory_object_stream[Any](100)

    async def append(self, writes: Any, **options: Any) -> None:
        done, errors = anyio.Event(), []
        self.accept.send_nowait((writes, done, errors))
        await done.wait()
        for error in errors:
            raise error

    async def work(self, seconds: float) -> None:
        async for writes, done, errors in self.accepted:
            await anyio.sleep(seconds)
            try:
                await self.store.append(writes)
            except Exception as error:
                errors.append(error)
            done.set()


@asynccontextmanager
async def queueing(seconds: float) -> AsyncIterator[Machines]:
    store = Queueing(MemoryStore())
    await store.heartbeat("me", 60.0)
    async with anyio.create_task_group() as group:
        group.start_soon(store.work, seconds)
        yield Machines(store, now=time.time, worker="me", log=Log())
        group.cancel_scope.cancel()
    store.accept.close()
    store.accepted.close()


@pytest.mark.parametrize("cls", [Quick, Waiting])
async def test_an_append_that_is_stored_after_its_caller_was_cancelled(cls: Any) -> None:
    async with queueing(0.02) as machines:
        one = await machines.create(cls, id="x")
        with anyio.move_on_after(0.01):
            await one.count(1)
        assert one.done == 0
        # The next event knows what became of it, and meets no conflict with itself.
        await one.count(2)
        assert one.done == 2
        assert [t.version async for t in machines.history("x")] == [2, 3]


async def test_a_lease_taken_by_a_cancelled_append_is_still_ones_own() -> None:
    async with queueing(0.02) as machines:
        one = await machines.create(Chain, id="x")
        with anyio.move_on_after(0.01):
            await one.go()
        await one.reset()
        assert [t.event async for t in machines.history("x")] == ["go", "on", "reset"]
        assert (await machines._office.store.load("x")).head.owner is None  # type: ignore[union-attr]


async def test_what_a_cancelled_hook_assigned_is_not_recorded_by_the_next_event() -> None:
    class Case:
        note: str = ""

        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @transition(A, B)
        async def go(self) -> None: ...

        @transition(B, A)
        async def back(self) -> None: ...

        async def on_enter_b(self) -> None:
            self.note = "entered"
            await anyio.sleep(10)

    machines = Machines(MemoryStore(), now=time.time, worker="me", log=Log())
    one = await machines.create(machine(Case), id="x")
    with anyio.move_on_after(0.01):
        await one.go()
    assert state_of(one) == "B"
    await one.back()
    assert one.note == ""


async def test_a_hook_raises_an_event_while_somebody_queues() -> None:
    class Case:
        n: int = 0

        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @transition(A, B)
        async def go(self) -> None:
            self.n += 1

        @transition("*", None)
        async def count(self) -> None:
            self.n += 10

        @transition(B, A)
        async def back(self) -> None: ...

        def on_enter_b(self) -> None:
            raise_event(self.count)

    async with queueing(0.005) as machines:
        one = await machines.create(machine(Case), id="x")
        async with anyio.create_task_group() as group:
            group.start_soon(one.go)
            await anyio.wait_all_tasks_blocked()
            group.start_soon(one.back)
        assert (one.n, state_of(one)) == (11, "A")
        assert [t.event async for t in machines.history("x")] == ["go", "count", "back"]
