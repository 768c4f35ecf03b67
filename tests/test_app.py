"""The facade: what it takes, when it is open, and how often and where it can be entered."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from flowlet import Flowlet, Registry, provided, step
from flowlet.errors import ConfigError, DefinitionError, FlowletError, StoreError
from flowlet.store import Capabilities, Store
from flowlet.stores.memory import MemoryStore


@step
async def double(n: int) -> int:
    return 2 * n


# ------------------------------------------------------------------ what it takes
def test_a_store_or_a_url() -> None:
    store = MemoryStore()
    assert Flowlet(store).store is store
    assert isinstance(Flowlet().store, MemoryStore)
    assert isinstance(Flowlet("memory://").store, MemoryStore)


@pytest.mark.parametrize(
    "url", ["", "orders.db", "mongodb://here", "sqlite://", "sqlite:///", "memory://x", "redis:/x"]
)
def test_urls_that_name_no_store(url: str) -> None:
    with pytest.raises(ConfigError):
        Flowlet(url)


@pytest.mark.parametrize("store", [3, b"memory://", object(), MemoryStore, Path("orders.db")])
def test_things_that_are_no_store(store: Any) -> None:
    with pytest.raises(ConfigError, match="Flowlet takes a URL or a store"):
        Flowlet(store)


@pytest.mark.parametrize("registry", [3, object(), Registry, []])
def test_things_that_are_no_registry(registry: Any) -> None:
    with pytest.raises(ConfigError, match=r"registry= takes a flowlet\.Registry"):
        Flowlet(registry=registry)


@pytest.mark.parametrize("name", ["lease", "grace"])
@pytest.mark.parametrize("value", [-1, "10", float("nan"), True])
def test_times_that_are_none(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"{name}: must be"):
        Flowlet(**{name: value})


def test_a_lease_of_no_time_is_refused() -> None:
    with pytest.raises(ConfigError, match="lease: must be more than 0"):
        Flowlet(lease=0)


def test_times_may_be_timedeltas() -> None:
    Flowlet(lease=timedelta(seconds=3), grace=timedelta(0))


def test_nothing_happens_before_it_is_entered(tmp_path: Path) -> None:
    before = threading.enumerate()
    flow = Flowlet(f"sqlite:///{tmp_path}/flow.db")
    flow.saga("twice", double)
    assert list(tmp_path.iterdir()) == []
    assert set(threading.enumerate()) <= set(before)


def test_the_registry_may_be_shared() -> None:
    registry = Registry()
    assert Flowlet(registry=registry).registry is registry
    assert Flowlet().registry is not Flowlet().registry


# ------------------------------------------------------------------ open and closed
@pytest.mark.anyio
async def test_using_it_before_and_after(flow: Flowlet) -> None:
    twice = flow.saga("twice", double)

    async def ask() -> None:
        for call in (
            lambda: flow.start(twice, 1),
            lambda: flow.execute(twice, 1),
            lambda: twice(1),
        ):
            with pytest.raises(FlowletError, match="not open: use it inside `async with flow:`"):
                await call()
        with pytest.raises(FlowletError, match="not open"):
            flow.handle("r")

    await ask()
    async with flow:
        handle = await flow.start(twice, 1, id="r")
        assert await handle.result() == 2
    await ask()


@pytest.mark.anyio
async def test_it_may_be_entered_again_and_nested(flow: Flowlet) -> None:
    twice = flow.saga("twice", double)
    for _ in range(2):
        async with flow as entered:
            assert entered is flow
            async with flow:
                assert await twice(1) == 2
            assert await flow.execute(twice, 2, id="r") == 4  # the inner exit has not closed it


@pytest.mark.anyio
async def test_entered_by_several_tasks_at_once(flow: Flowlet) -> None:
    twice = flow.saga("twice", double)
    results: list[int] = []
    inside = anyio.Event()

    async def use(n: int) -> None:
        async with flow:
            results.append(await flow.execute(twice, n, id=f"r{n}"))
            if n == 0:
                await inside.wait()  # the first in is not the last out

    async with anyio.create_task_group() as group:
        for n in range(8):
            group.start_soon(use, n)
        while len(results) < 8:
            await anyio.sleep(0.001)
        inside.set()
    assert sorted(results) == [2 * n for n in range(8)]
    with pytest.raises(FlowletError, match="not open"):
        flow.handle("r")


@pytest.mark.anyio
async def test_entered_while_another_task_leaves_it(new_store: Callable[[], Store]) -> None:
    flow = Flowlet(new_store(), grace=20)
    twice = flow.saga("twice", double)
    gate, here = anyio.Event(), anyio.Event()

    @step
    async def wait() -> int:
        here.set()
        await gate.wait()
        return 1

    @flow.saga
    async def slow() -> int:
        return await wait()

    async def leave() -> None:
        async with flow:
            await flow.start(slow, id="slow")
            await here.wait()

    async with anyio.create_task_group() as group:
        group.start_soon(leave)
        await here.wait()
        while not (flow._runs is None or flow._runs.closing):
            await anyio.sleep(0.001)
        group.start_soon(lambda: _set_soon(gate))
        with anyio.fail_after(20):
            async with flow:
                assert await flow.execute(twice, 1, id="r") == 2
                assert await flow.handle("slow", slow).result() == 1


async def _set_soon(event: anyio.Event) -> None:
    await anyio.wait_all_tasks_blocked()
    event.set()


@pytest.mark.anyio
async def test_entered_and_left_in_different_tasks(flow: Flowlet) -> None:
    twice = flow.saga("twice", double)
    async with anyio.create_task_group() as group:
        group.start_soon(flow.__aenter__)
    assert await twice(3) == 6
    async with anyio.create_task_group() as group:
        group.start_soon(flow.__aexit__, None, None, None)
    with pytest.raises(FlowletError, match="not open"):
        await twice(3)


def test_entered_again_on_another_loop_and_another_backend(new_store: Callable[[], Store]) -> None:
    flow = Flowlet(new_store())
    twice = flow.saga("twice", double)

    async def use(n: int) -> int:
        async with flow:
            first = await flow.execute(twice, 1, id="first")
            return first + await flow.execute(twice, n, id=f"r{n}")

    for n, backend in enumerate(["asyncio", "trio", "asyncio", "trio"]):
        assert anyio.run(use, n, backend=backend) == 2 + 2 * n


@pytest.mark.anyio
async def test_a_second_live_loop_is_refused(flow: Flowlet) -> None:
    heard: list[str] = []

    async def enter() -> None:
        try:
            async with flow:
                heard.append("entered")
        except FlowletError as error:
            heard.append(str(error))

    def elsewhere() -> None:
        anyio.run(enter, backend="asyncio")
        anyio.run(enter, backend="trio")

    twice = flow.saga("twice", double)
    async with flow:
        await anyio.to_thread.run_sync(elsewhere)
        assert await flow.execute(twice, 1) == 2
    assert heard == ["this Flowlet is live on another event loop; make one Flowlet per loop"] * 2


@pytest.mark.anyio
async def test_a_store_that_cannot_be_opened_leaves_it_closed(tmp_path: Path) -> None:
    place = tmp_path / "flow.db"
    place.write_text("this is a text file, not a database\n" * 100)
    flow = Flowlet(f"sqlite:///{place}")
    twice = flow.saga("twice", double)
    with pytest.raises(StoreError):
        async with flow:
            pytest.fail("entered")
    with pytest.raises(FlowletError, match="not open"):
        await twice(1)
    place.unlink()
    async with flow:
        assert await twice(1) == 2


@pytest.mark.anyio
async def test_leaving_with_an_error_or_a_cancellation_closes_it(flow: Flowlet) -> None:
    twice = flow.saga("twice", double)
    with pytest.raises(KeyError):
        async with flow:
            raise KeyError
    with anyio.CancelScope() as scope:
        async with flow:
            await twice(1)
            scope.cancel()
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    with pytest.raises(FlowletError, match="not open"):
        await twice(1)
    async with flow:
        assert await twice(1) == 2


@pytest.mark.anyio
async def test_leaving_ends_every_thread(tmp_path: Path) -> None:
    def threads() -> list[str]:
        return [t.name for t in threading.enumerate() if str(tmp_path) in t.name]

    flow = Flowlet(f"sqlite:///{tmp_path}/flow.db?durability=process")
    twice = flow.saga("twice", double)
    async with flow:
        await twice(1)
        assert len(threads()) == 1
    with anyio.fail_after(10):
        while threads():  # it ends by itself, right after it has said that it is done
            await anyio.sleep(0.001)


# ------------------------------------------------------------------ run
def test_run_is_for_scripts(new_store: Callable[[], Store]) -> None:
    flow = Flowlet(new_store())
    twice = flow.saga("twice", double)
    assert flow.run(twice, 21) == 42
    assert flow.run(twice, 21, id="r") == 42
    assert flow.run(twice, 21, id="r") == 42


@pytest.mark.anyio
async def test_run_inside_of_a_loop_names_execute(flow: Flowlet) -> None:
    twice = flow.saga("twice", double)
    with pytest.raises(FlowletError, match=r"an event loop is running here: write `await flow\.execute\(\.\.\.\)`"):
        flow.run(twice, 21)
    async with flow:
        assert await flow.execute(twice, 21) == 42


# ------------------------------------------------------------------ what can be run
@pytest.mark.anyio
@pytest.mark.parametrize("thing", [double, 3, "twice", print, Flowlet, None])
async def test_things_that_are_no_definition(flow: Flowlet, thing: Any) -> None:
    async with flow:
        for call in (lambda: flow.start(thing, 1), lambda: flow.execute(thing, 1)):
            with pytest.raises(FlowletError, match=r"pipeline, graph or approval chain: assemble it with @flow\.saga"):
                await call()
        if thing is not None:
            with pytest.raises(FlowletError, match="is no saga, pipeline, graph or approval chain"):
                flow.handle("r", thing)


@pytest.mark.anyio
async def test_a_definition_of_somewhere_else(flow: Flowlet) -> None:
    registry = Registry()
    twice = registry.saga("twice", double)
    async with flow:
        with pytest.raises(FlowletError, match=r"'twice' is not included here: flow.include"):
            await flow.start(twice, 1)
        flow.include(registry)
        assert await flow.execute(twice, 1) == 2


@pytest.mark.anyio
async def test_definitions_are_stored_as_json_beside_their_runs(new_store: Callable[[], Store]) -> None:
    flow = Flowlet(new_store())
    flow.saga("twice", double)
    flow.pipeline("also", double, version=2)
    for _ in range(2):
        async with flow:
            heads = await flow.store.scan(kind="definition")
            assert [(h.definition, h.definition_version, h.version) for h in heads] == [
                ("twice", "1", 1),
                ("also", "2", 1),
            ]
            stored = await flow.store.load("definition/saga/twice/1")
            assert stored is not None
            assert stored.snapshot is not None
            plain = msgspec.json.decode(stored.snapshot)
            assert (plain["kind"], plain["inputs"], plain["steps"][0]["name"]) == ("saga", ["n"], "double")
    changed = Flowlet(new_store())

    @changed.saga
    async def twice(n: int, m: int) -> int:
        return n

    async with changed:
        stored = await changed.store.load("definition/saga/twice/1")
        assert stored is not None
        assert stored.head.version == 2
        assert stored.snapshot is not None
        assert msgspec.json.decode(stored.snapshot)["inputs"] == ["n", "m"]


# ------------------------------------------------------------------ providing
class Gateway:
    def __init__(self, name: str = "visa") -> None:
        self.name = name


@pytest.mark.anyio
async def test_values_and_factories(flow: Flowlet) -> None:
    made: list[int] = []

    @flow.provide
    def make_gateway() -> Gateway:
        made.append(1)
        return Gateway()

    @flow.saga
    async def body(gateway: Gateway = provided) -> str:
        return gateway.name

    async with flow:
        assert await body() == "visa"
        assert await body() == "visa"
        assert made == [1]
        flow.provide(Gateway, Gateway("master"))
        assert await body() == "master"


@pytest.mark.anyio
async def test_a_class_makes_its_own_value(flow: Flowlet) -> None:
    assert flow.provide(Gateway) is Gateway

    @flow.saga
    async def body(gateway: Gateway = provided) -> str:
        return gateway.name

    async with flow:
        assert await body() == "visa"


def test_factories_that_do_not_say_what_they_make(flow: Flowlet) -> None:
    def make():  # type: ignore[no-untyped-def]
        return Gateway()

    def make_unknown() -> Unknown:  # type: ignore[name-defined]  # noqa: F821
        return Gateway()

    class Local: ...

    def make_local() -> Local:
        return Local()

    with pytest.raises(ConfigError, match=r"cannot be resolved \(name 'Unknown' is not defined\)"):
        flow.provide(make_unknown)
    assert flow.provide(make_local) is make_local
    with pytest.raises(ConfigError, match="make does not say what it provides: annotate what it returns"):
        flow.provide(make)


@pytest.mark.parametrize("arguments", [(), (3,), (Gateway, 1, 2), ("Gateway",)])
def test_calls_of_provide_that_make_no_sense(flow: Flowlet, arguments: tuple[Any, ...]) -> None:
    with pytest.raises((ConfigError, TypeError)):
        flow.provide(*arguments)


@pytest.mark.parametrize("thing", ["M", 3, len])
def test_a_machine_that_is_no_class(flow: Flowlet, thing: Any) -> None:
    with pytest.raises(DefinitionError, match=r"a machine is a class; put @flow\.machine on a class"):
        flow.machine(thing)


def test_a_faulty_definition_is_reported_where_it_is_assembled(flow: Flowlet) -> None:
    with pytest.raises(DefinitionError, match="takes the result of 'double', which comes later"):
        flow.saga("x", add_one, double)


async def add_one(double: int) -> int:
    return double + 1


class Half:
    """Meant as a store, and not finished."""

    capabilities = Capabilities()

    async def append(self) -> None: ...
    async def load(self) -> None: ...
    async def scan(self) -> None: ...


def test_what_is_no_store_is_told_what_it_lacks() -> None:
    with pytest.raises(ConfigError, match="it has no claim, heartbeat, release, now, watch, prune, close"):
        Flowlet(Half())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="that is a class: give it an object"):
        Flowlet(MemoryStore)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"not 3$"):
        Flowlet(3)  # type: ignore[arg-type]
    store = MemoryStore()
    store.capabilities = {}  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"not a flowlet\.store\.Capabilities"):
        Flowlet(store)
