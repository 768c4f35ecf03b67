"""The Redis store gives the answers that the store in memory gives, to the same questions and at the same times."""

from __future__ import annotations

import os
from typing import Any

import anyio
import redis_server
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_same_answers import STEPS, Clock, answer, everything

from flowlet.errors import FlowletError
from flowlet.store import Store
from flowlet.stores.memory import MemoryStore
from flowlet.stores.redis import RedisStore

PREFIX = f"flowlet-test-{os.getpid()}"


async def compare(url: str, steps: list[Any]) -> None:
    clock = Clock()
    redis = RedisStore(f"{url}?prefix={PREFIX}", clock=clock)
    stores: list[Store] = [MemoryStore(clock=clock), redis]
    try:
        for step in steps:
            if step[0] == "pass":
                clock.time += step[1]
                continue
            outcomes: list[object] = []
            for store in stores:
                try:
                    outcomes.append(await answer(store, step))
                except FlowletError as error:
                    outcomes.append((type(error), str(error), getattr(error, "id", None)))
            assert outcomes[0] == outcomes[1], step
        seen = [await everything(store) for store in stores]
        assert seen[0] == seen[1]
    finally:
        await redis.close()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.lists(STEPS, min_size=8, max_size=40))
def test_it_answers_as_the_store_in_memory_does(steps: list[Any]) -> None:
    url = redis_server.shared()
    redis_server.remove(url, PREFIX)
    try:
        anyio.run(compare, url, steps)
    finally:
        redis_server.remove(url, PREFIX)
