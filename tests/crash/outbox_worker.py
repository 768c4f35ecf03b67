"""A machine whose actions start runs and send signals, killed at a chosen write, and what must be there with it.

Trials fork like those of `killing`: the parent has one thread and never opens a store. The machine's own data says what
its actions have queued, so that what is in the store can be held against it after each kill, and before anybody mends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import workloads
from chart_worker import all_closed, effects_of, wait_for
from evidence import read_effects
from killing import Kill, KillingStore, When, fork_aside
from workloads import effect

from flowlet import Flowlet, Registry, raise_event, state, step, transition
from flowlet.core.codec import encode
from flowlet.core.machine_records import Fold
from flowlet.core.run_records import RunRecord, SignalTaken, Started, run_record_codec
from flowlet.runtime.machine_install import definition_of
from flowlet.runtime.machine_questions import state_of
from flowlet.store import Stored
from flowlet.stores.sqlite import SQLiteStore

ABREAST = 4
"""Trials at once: much of their time is spent in waiting."""

registry = Registry()
here: list[Flowlet] = []
"""The Flowlet of this process."""


class Words(msgspec.Struct):
    text: str = ""


@step
async def work(n: int) -> int:
    effect(n)
    return n + 1


@registry.saga
async def job(n: int) -> int:
    return await work(n)


talk = registry.graph("talk", state=Words)
for name in "abcd":
    talk.pause(name, type=str, merge=lambda words, said: {"text": words.text + said})
talk.entry("a")
for source, target in zip("abc", "bcd", strict=True):
    talk.edge(source, target)
talk.final("d")


@registry.machine
@dataclass
class Order:
    """Starts a run and says a letter in each of its transitions, of which the first raises the next one."""

    runs: list[str] = field(default_factory=list)
    said: str = ""

    @state(initial=True)
    class New: ...

    @state
    class Paid: ...

    @state
    class Packed: ...

    @state(final=True)
    class Sent: ...

    async def _do(self, n: int, letter: str, id: str | None = None) -> None:
        (flow,) = here
        handle = await flow.start(job, n, id=id)
        await flow.handle("t").send(letter, letter)
        self.runs = [*self.runs, handle.id]
        self.said += letter

    @transition(New, Paid)
    async def pay(self) -> None:
        await self._do(2, "b")
        await self._do(3, "c", id="chosen")
        raise_event(self.pack)

    async def on_exit_new(self) -> None:
        await self._do(1, "a")

    @transition(Paid, Packed)
    async def pack(self) -> None:
        await self._do(4, "d")

    @transition(Packed, Sent, after=0.01)
    async def send(self) -> None:
        (flow,) = here
        handle = await flow.start(talk, Words("> "), id="last")
        self.runs = [*self.runs, handle.id]
        for letter in "abcd":
            await handle.send(letter, letter)


async def live(database: Path, kill: Kill | None) -> None:
    """Make the machine and the run that it talks to unless they are there, and see all to its end."""
    workloads.effects_file = str(effects_of(database))
    store = KillingStore(SQLiteStore(database), kill or Kill(0, "before"))
    flow = Flowlet(store, registry=registry)
    here[:] = [flow]
    async with flow:
        await flow.start(talk, Words(), id="t")
        order = await flow.create(Order(), id="m")
        if state_of(order) == "New":
            await order.pay()
        with anyio.fail_after(20):
            while not (await all_closed(store) and await store.load("last", limit=0)):
                await anyio.sleep(0.005)
        assert await flow.handle("t").result() == Words("abcd")
        assert await flow.handle("last").result() == Words("> abcd")
    database.with_suffix(".writes").write_text(str(store.writes))


async def judge(database: Path, crashes: int, is_over: bool) -> None:
    """Hold what is in the store against what the machine's history says has been queued."""
    store = SQLiteStore(database)
    runs = {head.id: head for head in await store.scan(kind="run")}
    machine = await store.load("m")
    queued, said = ([], "") if machine is None else _data(machine)
    assert runs.keys() - {"t"} == set(queued), f"there are {sorted(runs)}, and the machine has started {queued}"
    assert len(set(queued)) == len(queued), queued
    if "t" in runs:
        assert await _heard(store, "t") == said
    if "last" in runs:
        assert await _heard(store, "last") == "abcd"
    inputs = [await _input(store, id) for id in queued if id != "last"]
    assert inputs == [1, 2, 3, 4][: len(inputs)], inputs
    effects = Counter(e.given for e in read_effects(effects_of(database))) if effects_of(database).exists() else {}
    assert set(effects) <= {str(n) for n in inputs}, (effects, inputs)
    assert max(effects.values(), default=0) <= 1 + crashes, effects
    if is_over:
        assert queued == ["m@2/job", "m@2/job#2", "chosen", "m@3/job", "last"], queued
        assert all(head.status == "completed" for head in runs.values()), runs
        assert set(effects) == set("1234"), effects
        assert said == "abcd"
    await store.close()


def _data(stored: Stored) -> tuple[list[str], str]:
    fold = Fold(definition_of(Order), "m")
    fold.add(stored.records, stored.head.version)
    found = dict(zip(definition_of(Order).data.names, fold.values(), strict=True))
    return found["runs"], found["said"]


async def _heard(store: SQLiteStore, id: str) -> str:
    """Return what a run was sent, whether or not it has taken it."""
    stored = await store.load(id)
    assert stored is not None
    taken = [r for r in _journal(stored) if isinstance(r, SignalTaken)]
    numbers = [r.number for r in taken]
    assert numbers == list(range(1, len(numbers) + 1)), numbers
    heard = {r.number: r.payload for r in taken} | {s.number: s.payload for s in stored.signals}
    assert sorted(heard) == list(range(1, stored.head.inbox + 1)), heard
    return "".join(msgspec.msgpack.decode(heard[number]) for number in sorted(heard))


def _journal(stored: Stored) -> list[RunRecord]:
    return [run_record_codec.decode(data, "a record") for data in stored.records]


async def _input(store: SQLiteStore, id: str) -> int:
    stored = await store.load(id)
    assert stored is not None
    started = _journal(stored)[0]
    assert isinstance(started, Started)
    (n,) = [n for n in range(10) if started.input == encode((n,), "")]
    return n


# ---------------------------------------------------------------- trials
def trial(folder: Path, backend: str, label: str, kills: list[Kill]) -> int:
    """Let one process after the other be killed, and the last one see it to its end; return how many were."""
    database = folder / f"{label}.db"
    killed = 0
    for kill in [*kills, None]:
        code = wait_for(fork_aside(live, database, kill, backend=backend))
        is_over = code == 0
        if not is_over and (code != -signal.SIGKILL or kill is None):
            raise AssertionError(f"{backend}, {kills}: a process ended with {code}")
        killed += not is_over
        if database.exists() and wait_for(fork_aside(judge, database, killed, is_over)) != 0:
            raise AssertionError(f"{backend}, {kills}: what was left is wrong: see {database}")
        if is_over:
            break
    return killed


def main(folder: str, backend: str) -> None:
    """Kill a process before and after each append, then some twice; print what was done as JSON."""
    place = Path(folder)
    trial(place, backend, "calm", [])
    appends = int((place / "calm.writes").read_text())
    plans: list[list[Kill]] = []
    for n in range(1, appends + 1):
        whens: tuple[When, When] = ("before", "after")
        plans += [[Kill(n, when)] for when in whens]
        if n % 3 == 1:
            plans.append([Kill(n, whens[n % 2]), Kill(2, whens[n // 2 % 2]), Kill(1, "after")])
    kills = abreast([partial(trial, place, backend, str(n), plan) for n, plan in enumerate(plans)], place)
    print(json.dumps({"appends": appends, "kills": kills, "trials": len(plans) + 1}))


def abreast(trials: list[Any], folder: Path) -> int:
    """Make trials in processes of their own, a few at once; return how many kills there were."""
    running: set[int] = set()
    codes: list[int] = []
    for number, one in enumerate(trials):
        while len(running) >= ABREAST:
            pid, status = os.wait()
            running.discard(pid)
            codes.append(os.waitstatus_to_exitcode(status))
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                (folder / f"{number}.kills").write_text(str(one()))
                code = 0
            except AssertionError as error:
                print(error, file=sys.stderr, flush=True)
            finally:
                os._exit(code)
        running.add(pid)
    codes += [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in running]
    if any(codes):
        sys.exit(1)
    return sum(int(path.read_text()) for path in folder.glob("*.kills"))


if __name__ == "__main__":
    import asyncio  # noqa: F401 - imported before the first fork, as are these, so that a child starts at once
    import sqlite3  # noqa: F401

    import tenacity  # noqa: F401
    import trio  # noqa: F401

    main(*sys.argv[1:])
