"""Transitions against hand-written code doing the same work, measured in the same run.

Run ``python tests/benchmarks/bench_machines.py``. Every figure is the best of several rounds, in which the
two sides take turns, so that a noisy machine slows both. The limits are those of the design's section 6.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sqlite3
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from flowlet.core.faults import Faults
from flowlet.core.machine_builder import build_machine
from flowlet.core.marks import guard, state, transition
from flowlet.runtime.logs import Log
from flowlet.runtime.machine_install import install_machine
from flowlet.runtime.machines import Machines
from flowlet.stores.memory import MemoryStore

ROUNDS, LOOPS = 200, 1_000
Loop = Callable[[int], Awaitable[None]]


class ByHand:
    """A lamp that switches itself, as one would write it without a library."""

    def __init__(self) -> None:
        self.state = "off"
        self.power = 1
        self.switched = 0
        self._seen = 0

    async def can_switch(self) -> bool:
        return self.power > 0

    async def entered(self) -> None:
        self._seen += 1

    async def switch(self) -> int:
        if self.state not in ("off", "on"):
            raise RuntimeError(self.state)
        if not await self.can_switch():
            raise RuntimeError("power")
        self.switched += 1
        result = self.switched
        self.state = "on" if self.state == "off" else "off"
        await self.entered()
        return result

    async def act(self) -> int:
        self.switched += 1
        return self.switched

    async def switch_calling(self) -> int:
        """The same with the body in a coroutine of its own, as a library has to call it."""
        if self.state not in ("off", "on"):
            raise RuntimeError(self.state)
        if not await self.can_switch():
            raise RuntimeError("power")
        result = await self.act()
        self.state = "on" if self.state == "off" else "off"
        await self.entered()
        return result

    async def switch_by(self, by: str) -> int:
        if not await self.can_switch():
            raise RuntimeError("power")
        self.switched += 1
        result = self.switched
        self.state = "on" if self.state == "off" else "off"
        await self.entered()
        return result


def machine(cls: Any) -> Any:
    faults = Faults()
    definition = build_machine(cls, name=cls.__name__, namespace=globals(), faults=faults)
    faults.raise_if_any()
    assert definition is not None
    return install_machine(definition)


@machine
class Lamp:
    power: int
    switched: int

    def __init__(self) -> None:
        self.power = 1
        self.switched = 0
        self._seen = 0

    @state(initial=True)
    class Off: ...

    @state
    class On: ...

    @guard
    async def can_switch(self) -> bool:
        return self.power > 0

    @guard
    async def can_switch_by(self) -> bool:
        return self.power > 0

    @transition(Off, On)
    @transition(On, Off)
    async def switch(self) -> int:
        self.switched += 1
        return self.switched

    @transition(Off, On)
    @transition(On, Off)
    async def switch_by(self, by: str) -> int:
        self.switched += 1
        return self.switched

    async def on_enter_on(self) -> None:
        self._seen += 1

    async def on_enter_off(self) -> None:
        self._seen += 1


@machine
class Waiting:
    """The same with callbacks that await something, and so may be interrupted."""

    pause: ClassVar[bool] = False
    power: int
    switched: int

    def __init__(self) -> None:
        self.power = 1
        self.switched = 0
        self._seen = 0

    @state(initial=True)
    class Off: ...

    @state
    class On: ...

    @guard
    async def can_switch(self) -> bool:
        await nothing(self)
        return self.power > 0

    @transition(Off, On)
    @transition(On, Off)
    async def switch(self) -> int:
        await nothing(self)
        self.switched += 1
        return self.switched

    async def on_enter_on(self) -> None:
        await nothing(self)
        self._seen += 1

    async def on_enter_off(self) -> None:
        await nothing(self)
        self._seen += 1


async def nothing(one: Any) -> None:
    if one.pause:
        await asyncio.sleep(0)


class WaitingByHand(ByHand):
    pause: ClassVar[bool] = False

    async def can_switch(self) -> bool:
        await nothing(self)
        return self.power > 0

    async def entered(self) -> None:
        await nothing(self)
        self._seen += 1

    async def switch(self) -> int:
        if self.state not in ("off", "on"):
            raise RuntimeError(self.state)
        if not await self.can_switch():
            raise RuntimeError("power")
        await nothing(self)
        self.switched += 1
        result = self.switched
        self.state = "on" if self.state == "off" else "off"
        await self.entered()
        return result


class HandRecord(msgspec.Struct, frozen=True, array_like=True, tag="m"):
    event: str
    source: str
    target: str
    at: float
    token: int
    definition_version: int
    data: bytes | None = None
    actor: str | None = None
    key: tuple[str, str, bytes] | None = None
    raised: tuple[Any, ...] = ()


class HandData(msgspec.Struct):
    power: int
    switched: int


class RecordingByHand(ByHand):
    """By hand, with the record that flowlet writes, appended to a list."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[bytes] = []
        self.version = 0
        self.encode = msgspec.msgpack.Encoder().encode

    async def switch(self) -> int:
        source = self.state
        if source not in ("off", "on"):
            raise RuntimeError(source)
        if not await self.can_switch():
            raise RuntimeError("power")
        self.switched += 1
        result = self.switched
        target = "on" if source == "off" else "off"
        data = self.encode(HandData(self.power, self.switched))
        record = HandRecord("switch", source, target, time.time(), self.version, 1, data)
        self.records.append(self.encode(record))
        self.version += 1
        self.state = target
        await self.entered()
        return result


async def compare(name: str, limit: float, hand: Loop, ours: Loop, loops: int = LOOPS, rounds: int = ROUNDS) -> float:
    """Print how long one call takes on both sides, and their ratio."""
    best = [float("inf"), float("inf")]
    gc.collect()
    gc.disable()
    for _ in range(rounds):
        for side, loop in enumerate((hand, ours)):
            start = time.perf_counter()
            await loop(loops)
            best[side] = min(best[side], (time.perf_counter() - start) / loops)
    gc.enable()
    ratio = best[1] / best[0]
    verdict = "" if not limit else f"  limit {limit:.1f}x  {'ok' if ratio <= limit else 'TOO SLOW'}"
    print(f"{name:52s} by hand {best[0] * 1e6:8.3f} us   flowlet {best[1] * 1e6:8.3f} us   {ratio:5.2f}x{verdict}")
    return ratio


def calling(method: Callable[[], Awaitable[Any]]) -> Loop:
    async def loop(n: int) -> None:
        for _ in range(n):
            await method()

    return loop


def calling_by(method: Callable[..., Awaitable[Any]]) -> Loop:
    async def loop(n: int) -> None:
        for _ in range(n):
            await method(by="ann")

    return loop


def bytes_each(build: Callable[[], Any], use: Callable[[Any], Any] | None = None, count: int = 20_000) -> float:
    """Return the bytes that one object takes, all included."""
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    kept = [build() for _ in range(count)]
    if use is not None:
        for item in kept:
            use(item)
    gc.collect()
    after = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return (after - before) / len(kept)


def run_once(item: Any) -> None:
    """Drive one transition to its end without a loop; nothing in it waits."""
    try:
        item.switch().send(None)
    except StopIteration:
        return


def memory() -> None:
    plain = bytes_each(ByHand)
    print(f"{'bytes per object by hand':52s} {plain:8.0f}")
    for label, use in (("idle, never moved", None), ("idle, after a transition", run_once)):
        more = bytes_each(Lamp, use) - (bytes_each(ByHand, run_once if use else None))
        print(f"{'bytes more per machine, ' + label:52s} {more:8.0f}   limit 64  {'ok' if more <= 64 else 'TOO MUCH'}")


def raw_sqlite(path: Path) -> Loop:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("pragma journal_mode=wal")
    connection.execute("pragma synchronous=full")
    connection.execute("create table head (n integer primary key, id text unique, version int, state text)")
    connection.execute("create table record (n int, seq int, data blob, primary key (n, seq)) without rowid")
    connection.execute("insert into head values (1, 'a', 0, '')")
    lamp = RecordingByHand()

    async def loop(n: int) -> None:
        for _ in range(n):
            await lamp.switch()
            version = lamp.version
            connection.execute("begin immediate")
            connection.execute(
                "update head set version = ?, state = ? where id = ? and version = ?",
                (version, lamp.state, "a", version - 1),
            )
            connection.execute("insert into record values (1, ?, ?)", (version, lamp.records.pop()))
            connection.execute("commit")

    return loop


async def durable() -> None:
    try:
        from flowlet.stores.sqlite import SQLiteStore
    except ImportError:
        print("SQLite: no store yet")
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("FLOWLET_BENCH_DIR")) as folder:
        store = SQLiteStore(str(Path(folder) / "ours.db"))
        machines = Machines(store, now=time.time, worker="bench", log=Log())
        lamp = await machines.create(Lamp)
        raw = raw_sqlite(Path(folder) / "raw.db")
        await compare("SQLite FULL, one task", 1.5, raw, calling(lamp.switch), loops=200, rounds=8)
        await store.close()


async def main() -> None:
    await compare("storeless: guard, body, hook", 1.4, calling(ByHand().switch_calling), calling(Lamp().switch))
    await compare("the same, by hand with the body inlined", 0, calling(ByHand().switch), calling(Lamp().switch))
    await compare("storeless, with an argument", 0, calling_by(ByHand().switch_by), calling_by(Lamp().switch_by))
    await compare("storeless, callbacks that await", 0, calling(WaitingByHand().switch), calling(Waiting().switch))
    Waiting.pause = WaitingByHand.pause = True
    both = calling(WaitingByHand().switch), calling(Waiting().switch)
    await compare("storeless, callbacks that suspend", 2.0, *both, loops=200)
    machines = Machines(MemoryStore(), now=time.time, worker="bench", log=Log())
    stored = await machines.create(Lamp)
    await compare("MemoryStore, with its record", 1.7, calling(RecordingByHand().switch), calling(stored.switch))
    memory()
    await durable()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
