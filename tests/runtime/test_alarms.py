"""`Alarms`: each rings once, when the clock says so, whatever happens to the others."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from flowlet.runtime import alarms as module
from flowlet.runtime.alarms import Alarms

pytestmark = pytest.mark.anyio

Until = Callable[[Callable[[], Any]], Awaitable[None]]


class Clock:
    """A clock that runs as the event loop's does, can be set, and keeps what has rung."""

    def __init__(self) -> None:
        self.ahead = 0.0
        self.rung: list[str] = []
        self.broken: list[BaseException] = []
        self.alarms = Alarms(self.now, self.ring, self.broken.append)

    def now(self) -> float:
        return anyio.current_time() + self.ahead

    def ring(self, id: str) -> None:
        self.rung.append(id)

    def set(self, id: str, seconds: float) -> None:
        self.alarms.set(id, self.now() + seconds)


async def test_they_ring_in_the_order_of_their_times(until: Until) -> None:
    clock = Clock()
    before = clock.now()
    for id, seconds in {"c": 0.03, "a": 0.01, "d": 0.04, "b": 0.02, "past": -5.0, "now": 0.0}.items():
        clock.alarms.set(id, before + seconds)
    await until(lambda: len(clock.rung) == 6)
    assert clock.rung == ["past", "now", "a", "b", "c", "d"]
    assert clock.now() - before >= 0.04


async def test_none_rings_early(until: Until) -> None:
    clock = Clock()
    times: dict[str, float] = {}
    due = {f"{n}": clock.now() + n / 100 for n in range(8)}
    clock.alarms = Alarms(clock.now, lambda id: times.__setitem__(id, clock.now()), clock.broken.append)
    for id, at in reversed(due.items()):
        clock.alarms.set(id, at)
    await until(lambda: len(times) == len(due))
    assert all(times[id] >= at for id, at in due.items())


async def test_the_last_time_that_was_set_counts(until: Until) -> None:
    clock = Clock()
    before = clock.now()
    clock.alarms.set("later", before + 0.01)
    clock.alarms.set("later", before + 0.05)
    clock.alarms.set("sooner", before + 30)
    await anyio.sleep(0)
    clock.alarms.set("sooner", before + 0.02)
    clock.alarms.set("mark", before + 0.03)
    await until(lambda: len(clock.rung) == 3)
    await anyio.sleep(0.02)
    assert clock.rung == ["sooner", "mark", "later"]


async def test_a_dropped_one_does_not_ring(until: Until) -> None:
    clock = Clock()
    clock.set("dropped", 0.01)
    clock.set("kept", 0.02)
    clock.alarms.drop("dropped")
    clock.alarms.drop("unknown")
    await until(lambda: clock.rung)
    assert clock.rung == ["kept"]
    clock.set("dropped", 0.0)  # set once more, it does
    await until(lambda: len(clock.rung) == 2)


async def test_many_that_were_dropped_take_no_room() -> None:
    clock = Clock()
    clock.set("kept", 1000)
    for n in range(1000):
        clock.set(f"{n}", 1000 + n)
        clock.alarms.drop(f"{n}")
    assert len(clock.alarms._heap) < 2 * module._FEW
    assert clock.alarms._times.keys() == {"kept"}
    for _ in range(1000):
        clock.set("kept", 1000)
    assert len(clock.alarms._heap) < 2 * module._FEW
    clock.alarms.stop()


async def test_one_that_is_kept_rings_although_a_thousand_others_were_dropped(until: Until) -> None:
    clock = Clock()
    clock.set("last", 0.05)
    for n in range(1000):
        clock.set(f"{n}", 0.01)
        clock.alarms.drop(f"{n}")
    await until(lambda: clock.rung)
    assert clock.rung == ["last"]


async def test_the_task_ends_when_none_is_left_and_begins_again(until: Until) -> None:
    clock = Clock()
    for n in range(3):
        clock.set(f"{n}", 0.0)
        await until(lambda: len(clock.rung) == n + 1)  # noqa: B023 - awaited at once
        await until(lambda: clock.alarms._task is None)
        assert clock.alarms._heap == []


async def test_after_a_stop_nothing_rings_until_it_is_set_again(until: Until) -> None:
    clock = Clock()
    clock.alarms.stop()
    clock.set("a", 0.01)
    await anyio.sleep(0)
    clock.alarms.stop()
    clock.alarms.stop()
    await anyio.sleep(0.03)
    assert clock.rung == []
    clock.set("b", 0.01)
    await until(lambda: clock.rung)
    assert clock.rung == ["b"]


async def test_one_that_raises_keeps_no_other_from_ringing(until: Until) -> None:
    clock = Clock()

    def ring(id: str) -> None:
        clock.ring(id)
        if id == "bad":
            raise LookupError("no")

    clock.alarms = Alarms(clock.now, ring, clock.broken.append)
    clock.set("bad", 0.0)
    clock.set("good", 0.01)
    await until(lambda: len(clock.rung) == 2)
    assert [type(error) for error in clock.broken] == [LookupError]
    clock.set("later", 0.0)
    await until(lambda: len(clock.rung) == 3)


async def test_what_is_called_may_set_and_drop_others(until: Until) -> None:
    clock = Clock()

    def ring(id: str) -> None:
        clock.ring(id)
        if id == "first":
            clock.alarms.drop("second")
            clock.set("third", 0.0)
            clock.set("first again", 0.01)

    clock.alarms = Alarms(clock.now, ring, clock.broken.append)
    clock.set("first", 0.0)
    clock.set("second", 0.0)
    await until(lambda: "first again" in clock.rung)
    assert clock.rung == ["first", "third", "first again"]


async def test_a_clock_that_was_set_is_asked_again(until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LONGEST", 0.01)
    clock = Clock()
    clock.set("far", 3600)
    clock.set("farther", 1e300)
    await anyio.sleep(0.03)
    assert clock.rung == []
    clock.ahead = 3600
    await until(lambda: clock.rung)
    assert clock.rung == ["far"]
    clock.alarms.stop()
