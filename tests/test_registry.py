"""Which Flowlet a direct call runs on: the one that includes the definition, or an error that says so."""

from __future__ import annotations

import gc
import inspect
from typing import Any

import pytest

from flowlet import Flowlet, Registry, step
from flowlet.errors import DefinitionError, FlowletError

pytestmark = pytest.mark.anyio


@step
async def double(n: int) -> int:
    return 2 * n


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture(params=["steps", "function", "class"])
def call(request: pytest.FixtureRequest, registry: Registry) -> Any:
    """A definition of each spelling, as it is called."""
    if request.param == "steps":
        return registry.saga("twice", double)
    if request.param == "function":

        @registry.saga
        async def twice(n: int) -> int:
            return await double(n)

        return twice

    class Twice:
        @step
        async def own(self, n: int) -> int:
            return 2 * n

        async def __call__(self, n: int) -> int:
            return await self.own(n)

    return registry.saga(name="twice")(Twice)()


async def test_no_flowlet(call: Any) -> None:
    with pytest.raises(
        FlowletError, match=r"'twice' was called, but no Flowlet includes it: flow\.include\(registry\)"
    ):
        await call(1)


async def test_the_one_flowlet(registry: Registry, call: Any) -> None:
    async with Flowlet(registry=registry):
        assert await call(1) == 2


async def test_one_that_is_not_open(registry: Registry, call: Any) -> None:
    flow = Flowlet(registry=registry)
    with pytest.raises(FlowletError, match="not open"):
        await call(1)
    async with flow:
        assert await call(1) == 2


async def test_one_that_included_the_registry(registry: Registry, call: Any) -> None:
    flow = Flowlet()
    flow.include(registry)
    async with flow:
        assert await call(n=1) == 2


async def test_two_flowlets(registry: Registry, call: Any) -> None:
    one, two = Flowlet(registry=registry), Flowlet()
    two.include(registry)
    async with one, two:
        message = r"'twice' was called, but 2 Flowlets include it: say which one with flow\.execute\(twice, \.\.\.\)"
        with pytest.raises(FlowletError, match=message):
            await call(1)
        target = type(call) if not inspect.isfunction(call) else call
        assert await one.execute(target, 1, id="r") == 2
        with pytest.raises(FlowletError):
            await two.handle("r").result()  # each has its own store


async def test_a_flowlet_that_is_gone_does_not_count(registry: Registry, call: Any) -> None:
    one, two = Flowlet(registry=registry), Flowlet(registry=registry)
    del one
    gc.collect()
    async with two:
        assert await call(1) == 2


async def test_the_same_flowlet_by_two_ways_is_one(registry: Registry, call: Any) -> None:
    flow = Flowlet(registry=registry)
    middle = Registry()
    middle.include(registry)
    flow.include(middle)
    async with flow:
        assert await call(1) == 2


async def test_a_child_run_is_its_parents_flowlets_whoever_else_includes_it(registry: Registry, call: Any) -> None:
    """Two processes in one, as tests like them: a child is no direct call."""

    @registry.saga
    async def parent(n: int) -> int:
        return await call(n) + await through(n)

    @step
    async def through(n: int) -> int:
        return await call(n)  # type: ignore[no-any-return]

    one, two = Flowlet(registry=registry), Flowlet(registry=registry)
    async with one, two:
        assert await two.execute(parent, 1, id="p") == 4
        assert await two.handle("p/twice").result() == 2
        assert await two.handle("p/through/twice").result() == 2
        assert await one.store.scan(kind="run") == []


async def test_a_class_stays_the_users_class(registry: Registry) -> None:
    class Buy:
        @step
        async def own(self, n: int) -> int:
            return n + 1

        async def __call__(self, n: int) -> int:
            """Buy it."""
            return await self.own(n)

    made = registry.saga(Buy)
    assert made is Buy
    assert Buy.__call__.__doc__ == "Buy it."
    assert inspect.iscoroutinefunction(Buy.__call__)
    assert list(inspect.signature(Buy.__call__).parameters) == ["self", "n"]
    assert await Buy().own(1) == 2  # a step outside of a run
    async with Flowlet(registry=registry):
        assert await Buy()(1) == 2


async def test_what_is_assembled_already_is_not_assembled_again(registry: Registry, call: Any) -> None:
    target = call if inspect.isfunction(call) else type(call)
    with pytest.raises(DefinitionError, match="is assembled already; include its registry instead"):
        Registry().saga(target)
    with pytest.raises(DefinitionError, match="is assembled already; include its registry instead"):
        registry.pipeline(target)


async def test_a_flowlet_offers_the_same_assemblers() -> None:
    flow = Flowlet()

    @flow.saga(name="other", version=2)
    async def body(n: int) -> int:
        return n

    assert list(flow.registry.definitions) == [("other", "2")]
    whole = Registry()
    whole.include(flow)
    assert list(whole.definitions) == [("other", "2")]
