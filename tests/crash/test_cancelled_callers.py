"""Whoever waits for a run may be cancelled, and cancelled again: compensations do not notice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import anyio
import pytest
import structlog
import workloads
from evidence import Effect, check, read_effects
from killing import LEASE
from workloads import WORKLOADS, Refused, Slip, registries

from flowlet import Flowlet
from flowlet.store import Capabilities, Stored, Work, Write
from flowlet.stores.memory import MemoryStore
from flowlet.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.anyio

NAMES = ["three_failing", "retrying", "parallel_failing", "class"]

# So many turns of the event loop after the first cancellation comes the second; None: with the next effect.
GAPS = [0, 1, 2, 5, None]


class AtEffect:
    """Does something in the middle of the n-th effect, and something else that much later."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
        workloads.effects_file = str(path)
        path.unlink(missing_ok=True)
        self.n = 0
        self.first: Callable[[], object] = lambda: None
        self.again: Callable[[], object] = lambda: None
        self.gap: int | None = None
        self._seen = 0
        self._effect = workloads.effect
        monkeypatch.setattr(workloads, "effect", self)

    def __call__(self, given: object = "") -> Slip:
        slip = self._effect(given)
        self._seen += 1
        if self._seen == self.n:
            self.first()
            if self.gap == 0:
                self.again()
            elif self.gap is not None:
                self._later(self.gap)
        elif self._seen == self.n + 1 and self.gap is None:
            self.again()
        return slip

    def _later(self, turns: int) -> None:
        loop = asyncio.get_running_loop()
        loop.call_soon(self.again) if turns == 1 else loop.call_soon(self._later, turns - 1)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(processors=[drop])
    yield
    structlog.reset_defaults()


def drop(logger: Any, method: str, event: Any) -> Any:
    raise structlog.DropEvent


def new_flow(name: str, store: Any, **options: Any) -> Flowlet:
    flow = Flowlet(store, registry=registries[name], **options)
    flow.provide(workloads.Workshop, workloads.Workshop())
    return flow


async def undisturbed(name: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Effect]:
    """Return the effects of a run that nobody disturbs."""
    with monkeypatch.context() as patch:
        AtEffect(patch, path)
        async with new_flow(name, MemoryStore()) as flow:
            with pytest.raises(Refused):
                await flow.execute(WORKLOADS[name].definition, 7, id="o-1")
        return read_effects(path)


def is_undoing(effect: Effect) -> bool:
    return "~" in effect.key


async def result_of(flow: Flowlet, name: str) -> Any:
    with anyio.fail_after(20), pytest.raises(Refused):
        await flow.handle("o-1", WORKLOADS[name].definition).result()


async def load(store: Any) -> Stored:
    stored = await store.load("o-1")
    assert stored is not None
    return stored


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio has scopes only
@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("way", ["execute", "result"])
@pytest.mark.parametrize("name", NAMES)
async def test_a_caller_that_is_cancelled_twice(
    name: str, way: str, gap: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "effects"
    for n, effect in enumerate(await undisturbed(name, path, monkeypatch), 1):
        with monkeypatch.context() as patch:
            at = AtEffect(patch, path)
            at.n, at.gap = n, gap
            store = MemoryStore()
            async with new_flow(name, store) as flow:
                task = asyncio.create_task(wait_for_it(flow, name, way))  # type: ignore[arg-type]
                at.first = at.again = task.cancel
                with pytest.raises(asyncio.CancelledError):
                    await task
                await result_of(flow, name)
        # Only a step that was cut off is done again; a compensation is not.
        check(WORKLOADS[name], await load(store), read_effects(path), 0 if is_undoing(effect) or way == "result" else 2)


def wait_for_it(flow: Flowlet, name: str, way: str) -> Awaitable[Any]:
    definition = WORKLOADS[name].definition
    if way == "result":
        return start_and_wait(flow, definition)
    return flow.execute(definition, 7, id="o-1")


async def start_and_wait(flow: Flowlet, definition: Any) -> Any:
    return await (await flow.start(definition, 7, id="o-1")).result()


@pytest.mark.parametrize("way", ["execute", "result"])
@pytest.mark.parametrize("name", NAMES)
async def test_a_caller_whose_scope_is_cancelled(
    name: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "effects"
    for n, effect in enumerate(await undisturbed(name, path, monkeypatch), 1):
        with monkeypatch.context() as patch:
            at = AtEffect(patch, path)
            at.n = n
            store = MemoryStore()
            async with new_flow(name, store) as flow:
                with anyio.CancelScope() as outer, anyio.CancelScope() as inner:
                    at.first, at.again = inner.cancel, outer.cancel
                    await wait_for_it(flow, name, way)
                assert inner.cancelled_caught or outer.cancelled_caught
                await result_of(flow, name)
        check(WORKLOADS[name], await load(store), read_effects(path), 0 if is_undoing(effect) or way == "result" else 2)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])  # trio has scopes only
@pytest.mark.parametrize("gap", GAPS)
@pytest.mark.parametrize("name", ["three_failing", "retrying"])
async def test_a_program_that_is_cancelled_twice_goes_on_where_it_was(
    name: str, gap: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second cancellation meets the Flowlet while it is being left."""
    path = tmp_path / "effects"

    async def program(store: Any) -> None:
        async with new_flow(name, store, grace=0) as flow:
            await flow.execute(WORKLOADS[name].definition, 7, id="o-1")

    for n in range(1, len(await undisturbed(name, path, monkeypatch)) + 1):
        database = tmp_path / f"{n}.db"
        with monkeypatch.context() as patch:
            at = AtEffect(patch, path)
            at.n, at.gap = n, gap
            task = asyncio.create_task(program(SQLiteStore(database)))
            at.first = at.again = task.cancel
            with pytest.raises(asyncio.CancelledError):
                await task
            began = time.monotonic()
            async with new_flow(name, SQLiteStore(database)) as flow:
                await result_of(flow, name)
                stored = await load(flow.store)
            assert time.monotonic() - began < LEASE / 2, "its leases were not given back"
        check(WORKLOADS[name], stored, read_effects(path), crashes=1)


@pytest.mark.parametrize("name", ["three_failing", "retrying"])
async def test_a_program_whose_scope_is_cancelled_goes_on_where_it_was(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "effects"
    for n in range(1, len(await undisturbed(name, path, monkeypatch)) + 1):
        database = tmp_path / f"{n}.db"
        with monkeypatch.context() as patch:
            at = AtEffect(patch, path)
            at.n = n
            with anyio.CancelScope() as scope:
                at.first = scope.cancel
                async with new_flow(name, SQLiteStore(database), grace=0) as flow:
                    await flow.execute(WORKLOADS[name].definition, 7, id="o-1")
            assert scope.cancelled_caught
            began = time.monotonic()
            async with new_flow(name, SQLiteStore(database)) as flow:
                await result_of(flow, name)
                stored = await load(flow.store)
            assert time.monotonic() - began < LEASE / 2, "its leases were not given back"
        check(WORKLOADS[name], stored, read_effects(path), crashes=1)


class CuttingStore(MemoryStore):
    """Cancels whoever waits in the middle of the n-th append of a run, before it is stored or after."""

    def __init__(self, n: int, when: str) -> None:
        super().__init__()
        self.capabilities = Capabilities(durable=True)
        self.cut: Callable[[], object] = lambda: None
        self.appends = 0
        self._n, self._when = n, when

    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        self.appends += all(write.create is None or write.create.kind == "run" for write in writes)
        mine = self.appends == self._n
        if mine and self._when == "before":
            await self._interrupt()
        await super().append(writes, work=work)
        if mine and self._when == "after":
            await self._interrupt()

    async def _interrupt(self) -> None:
        self._n = 0
        self.cut()
        await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", [*NAMES, "parallel"])
async def test_a_caller_that_is_cancelled_while_something_is_recorded(
    name: str, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workload = WORKLOADS[name]
    for n in range(1, 100):
        with monkeypatch.context() as patch:
            AtEffect(patch, tmp_path / "effects")
            store = CuttingStore(n, when)
            async with new_flow(name, store) as flow:
                with anyio.CancelScope() as scope:
                    store.cut = scope.cancel
                    await outcome_of(flow.execute(workload.definition, 7, id="o-1"))
                if not scope.cancel_called:
                    return
                with anyio.fail_after(20):
                    await outcome_of(flow.execute(workload.definition, 7, id="o-1"))  # it may not have been stored
        effects = read_effects(tmp_path / "effects")
        # What was recorded is not done again, nor what had ended: only parallel steps were in the middle of something.
        check(workload, await load(store), effects, crashes=int(workload.width > 1))
    raise AssertionError("it never came to an end")


async def outcome_of(result: Awaitable[Any]) -> Any:
    try:
        return await result
    except Refused as error:
        return error
