"""Ids: which there may be, and which flowlet gives to what is started inside of a run."""

from __future__ import annotations

import anyio
import pytest

from flowlet import Flowlet, Registry, Retry, provided, state, step, transition
from flowlet.errors import DecodeError, IdConflict, MachineError, RunError

pytestmark = pytest.mark.anyio

registry = Registry()
log: list[str] = []
tries: list[int] = []


@registry.machine
class Lamp:
    watts: int = 40

    @state(initial=True)
    class Off: ...

    @state(final=True)
    class On: ...

    @transition(Off, On)
    async def press(self) -> None: ...


@step
async def note(n: int) -> int:
    log.append(f"note {n}")
    return n


@registry.saga
async def child(n: int) -> int:
    return await note(n)


@step
async def hold(n: int) -> int:
    tries.append(n)
    if len(tries) == 1:
        await anyio.sleep(30)
    return n


@registry.saga
async def parent(n: int, flow: Flowlet = provided) -> int:
    await flow.execute(child, 7)
    await (await flow.start(child, 8)).result()
    await flow.execute(child, 9)
    return await hold(n)


@step(retry=Retry(attempts=3, wait=0))
async def busy(n: int, flow: Flowlet = provided) -> int:
    await flow.execute(child, n)
    await flow.create(Lamp())
    tries.append(n)
    if len(tries) < 3:
        raise ValueError(n)
    return n


@registry.saga
async def retries(n: int) -> int:
    return await busy(n)


@pytest.fixture(autouse=True)
def _clean() -> None:
    log.clear()
    tries.clear()


async def test_runs_started_in_a_body_are_the_same_on_a_replay() -> None:
    flow = Flowlet(registry=registry, grace=0)
    async with flow:
        await flow.start(parent, 1, id="p")
        while not tries:
            await anyio.sleep(0.001)
    async with flow:
        assert await flow.handle("p", parent).result() == 1
    assert log == ["note 7", "note 8", "note 9"]


async def test_what_a_step_starts_is_the_same_in_its_next_attempt() -> None:
    async with Flowlet(registry=registry) as flow:
        assert await flow.execute(retries, 4, id="r") == 4
        assert len([id async for id in flow.machines(Lamp)]) == 1
    assert tries == [4, 4, 4]
    assert log == ["note 4"]


@pytest.mark.parametrize("id", ["", "a\x00b", "x" * 501, "\ud800", "definition/saga/child/1", 3])
async def test_ids_that_cannot_be(id: str) -> None:
    async with Flowlet(registry=registry) as flow:
        with pytest.raises(IdConflict):
            await flow.start(child, 1, id=id)
        with pytest.raises(IdConflict):
            await flow.create(Lamp(), id=id)


async def test_data_beside_an_object_is_refused() -> None:
    async with Flowlet(registry=registry) as flow:
        with pytest.raises(MachineError, match="watts with a class"):
            await flow.create(Lamp(), id="l", watts=60)  # type: ignore[call-overload]


async def test_a_missing_record_is_noticed() -> None:
    flow = Flowlet(registry=registry)
    async with flow:
        await flow.execute(child, 1, id="r")
        entity = flow.store._entities["r"]  # type: ignore[attr-defined]
        stored = await flow.store.load("r")
        assert stored is not None

        async def load(id: str, /, *, after: int = 0, limit: int | None = None) -> object:
            found = await type(flow.store).load(flow.store, id, after=after, limit=limit)  # type: ignore[arg-type]
            if id != "r" or found is None or limit is not None:
                return found
            import msgspec

            return msgspec.structs.replace(found, records=found.records[:-1])

        flow.store.load = load  # type: ignore[method-assign,assignment]
        with pytest.raises((DecodeError, RunError)):
            await flow.handle("r", child).result()
        assert entity.records == list(stored.records)
