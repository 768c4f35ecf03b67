"""Calls under way: started in order, so many at once, none dropped, and the same again on a strict engine."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strict_engine import StrictRun

from flowlet import Registry, step
from flowlet.core.codec import Codec, encode
from flowlet.core.definitions import Context, RunDefinition, Undone
from flowlet.core.engine import StepCall
from flowlet.core.flights import Flights
from flowlet.core.program import exchange_call
from flowlet.core.registry import definition_of

pytestmark = pytest.mark.anyio


@step
async def work(name: str) -> str:
    if name.startswith("bad"):
        raise ValueError(name)
    return name.upper()


class Flying:
    """Adds calls, and two more for each that lands, until there are enough; waits for signals beside them."""

    def __init__(self, context: Context, limit: int | None, names: list[str], topics: list[str], stop_at: int) -> None:
        self.engine = context.engine
        self.flights = Flights(context.engine, limit)
        self.names = names
        self.topics = topics
        self.stop_at = stop_at

    undoes = False

    def call(self, name: str) -> StepCall:
        definition = STEP.steps["work"]
        return StepCall(self.engine, definition, name, (name,), exchange_call(definition, (name,))[0])

    async def forward(self) -> bytes:
        names, got = list(self.names), []
        for topic in self.topics:
            self.flights.watch(self.engine.signal(topic, topic), topic)
        for name in names[:2]:
            self.flights.add(self.call(name), name)
        del names[:2]
        while self.flights and len(got) < self.stop_at:
            landed = await self.flights.land()
            assert landed
            for one in landed:
                value: Any = Codec(str).decode(one.value, "a payload") if one.call is None else None
                if one.call is not None:
                    value = repr(one.error) if one.error else one.result
                got.append(f"{one.purpose}={value}")
                for name in names[:2]:
                    self.flights.add(self.call(name), name)
                del names[:2]
        await self.flights.stop()
        assert not self.flights
        assert len(self.flights) == 0
        assert not await self.flights.land()
        return encode(got, "the result")

    async def backward(self, error: Exception) -> Undone:
        return Undone()


def _definition() -> RunDefinition:
    @Registry().saga
    async def base() -> list[str]:
        await work("never")
        return []

    found: RunDefinition = definition_of(base)
    return found


STEP = _definition()


def flying(limit: int | None, names: list[str], topics: list[str], stop_at: int = 1000) -> Any:
    definition = msgspec.structs.replace(
        STEP,
        interpret=lambda context, _: Flying(context, limit, names, topics, stop_at),  # type: ignore[arg-type,return-value]
    )
    made = type("Made", (), {})
    made.__flowlet_definition__ = definition  # type: ignore[attr-defined]
    return made


def expected(names: list[str], topics: list[str]) -> list[str]:
    ends = [f"{n}={ValueError(n)!r}" if n.startswith("bad") else f"{n}={n.upper()}" for n in names]
    return sorted(ends + [f"{t}=sent {t}" for t in topics])


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@settings(max_examples=60, deadline=None)
@given(
    limit=st.sampled_from([None, 1, 2, 3]),
    names=st.lists(st.sampled_from(["a", "b", "bad", "c"]), min_size=1, max_size=8),
    topics=st.lists(st.sampled_from(["x", "y"]), unique=True),
    seed=st.integers(0, 1000),
)
async def test_all_of_them_land(limit: int | None, names: list[str], topics: list[str], seed: int) -> None:
    names = [f"{name}{n}" for n, name in enumerate(names)]
    signals = {topic: [encode(f"sent {topic}", "a payload")] for topic in topics}
    run = StrictRun(flying(limit, names, topics), dice=random.Random(seed), signals=signals)
    assert sorted(await run.result()) == expected(names, topics)
    # As many at once as there is room for, and never more.
    if limit is not None:
        for place, what in enumerate(run.journal.started):
            if what[0] == "wait":
                steps = {n + 1 for n, w in enumerate(run.journal.started[:place]) if w[0] == "step"}
                assert len(steps & {*what[1:]}) <= limit


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@settings(max_examples=60, deadline=None)
@given(stop_at=st.integers(0, 6), seed=st.integers(0, 1000), limit=st.sampled_from([None, 1, 2]))
async def test_stopping_sees_all_of_them_end(stop_at: int, seed: int, limit: int | None) -> None:
    names = [f"n{n}" for n in range(5)]
    run = StrictRun(
        flying(limit, names, ["x"], stop_at), dice=random.Random(seed), signals={"x": [encode("sent x", "")]}
    )
    got = await run.result()
    assert stop_at <= len(got) <= 6
    steps = {n + 1 for n, what in enumerate(run.journal.started) if what[0] in ("step", "signal")}
    assert steps == run.journal.outcomes.keys()  # nothing is left under way
