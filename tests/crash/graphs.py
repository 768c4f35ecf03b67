"""Sweeps over graphs: each process is killed at a chosen write or effect, and others go on.

As ``SCENE FOLDER BACKEND`` it lets a process work on one run, kills it behind its n-th write or its n-th effect, and
before its n-th write, for every n there is, and lets another one finish.
"""

from __future__ import annotations

import contextlib
import json
import operator
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import anyio
from evidence import read_journal
from killing import Kill, KillingStore
from msgspec import Struct
from once import RUN, Place, Sweep, effect, read_effects

from flowlet import Flowlet, Registry, current_run
from flowlet.core.codec import Codec
from flowlet.core.run_records import Ended, RunRecord, SignalTaken, StepEnded
from flowlet.errors import RunFinished
from flowlet.graph import Graph
from flowlet.stores.sqlite import SQLiteStore

registry = Registry()


class Trail(Struct):
    """Which nodes were executed, and how often the loop went round."""

    path: Annotated[list[str], operator.add] = []
    rounds: int = 0
    remark: str = ""


async def visit(state: Trail) -> dict[str, Any]:
    """Leave a name, after the others had a chance to run."""
    name = current_run().idempotency_key.partition("/")[2]
    await anyio.sleep(0.001 if name.startswith("long") else 0)
    effect(str(len(state.path)))
    return {"path": [name]}


def draw(name: str, nodes: str, edges: str) -> Graph[Trail]:
    """Make a graph of words; an edge is written ``from>to``."""
    graph: Graph[Trail] = registry.graph(name, state=Trail)
    for node in nodes.split():
        graph.node(visit, name=node)
    for edge in edges.split():
        source, _, target = edge.partition(">")
        graph.edge(source, target)
    return graph


# ---------------------------------------------------------------- a diamond with unequal branches
diamond = draw("diamond", "begin short long1 long2 long3 join", "begin>short begin>long1 long1>long2 long2>long3")
diamond.edge("short", "join")
diamond.edge("long3", "join")
diamond.entry("begin")
diamond.final("join")

# ---------------------------------------------------------------- a loop beside a branch, within a graph
turns = draw("turns", "leave", "")


@turns.node
async def turn(state: Trail) -> dict[str, Any]:
    effect(str(state.rounds))
    return {"rounds": state.rounds + 1, "path": [f"turn {state.rounds}"]}


turns.entry(turn)
turns.edge(turn, turn, when=lambda s: s.rounds < 3)
turns.edge(turn, "leave", otherwise=True)
turns.final("leave")

looping = draw("looping", "begin beside late end", "begin>beside begin>late")
looping.node(turns)
looping.edge("begin", turns)
looping.edge(turns, "end")
looping.edge("beside", "end")
looping.edge("late", "end")
looping.entry("begin")
looping.final("end")

# ---------------------------------------------------------------- a pause
reviewed = draw("reviewed", "write publish", "")
reviewed.pause("editor", type=str, merge=lambda state, text: {"remark": text, "path": [text]})
reviewed.edge("write", "editor")
reviewed.edge("editor", "write", when=lambda s: s.remark == "again")
reviewed.edge("editor", "publish", otherwise=True)
reviewed.entry("write")
reviewed.final("publish")


@dataclass
class Scene:
    """What is killed, and what must have come of it.

    Attributes:
        signals: what is sent to it, in order.
        path: the nodes that must have been executed, whatever their order, by their keys.
        orders: of each of these pairs, the first comes before the second.
    """

    definition: Graph[Trail]
    path: Sequence[str]
    orders: Sequence[tuple[str, str]]
    signals: Sequence[str] = ()


SCENES = {
    "diamond": Scene(
        diamond,
        ("begin", "short", "long1", "long2", "long3", "join"),
        (("begin", "short"), ("begin", "long1"), ("long1", "long2"), ("long3", "join"), ("short", "join")),
    ),
    "looping": Scene(
        looping,
        ("begin", "beside", "late", "turns.turn", "turns.turn#2", "turns.turn#3", "turns.leave", "end"),
        (("turns.turn", "turns.turn#2"), ("turns.turn#3", "turns.leave"), ("turns.leave", "end"), ("late", "end")),
    ),
    "reviewed": Scene(
        reviewed, ("write", "write#2", "publish"), (("write", "write#2"), ("write#2", "publish")), ("again", "good")
    ),
}


async def work_on(name: str, database: Path, kill: Kill | None, last: int) -> None:
    """Enter a Flowlet, start the run or find it, send what it waits for, and see it to its end."""
    scene = SCENES[name]
    Place.last = last
    async with Flowlet(KillingStore(SQLiteStore(database), kill), registry=registry) as flow:
        handle = await flow.start(scene.definition, Trail(), id=RUN)
        for number, text in enumerate(scene.signals):
            with contextlib.suppress(RunFinished):
                await handle.send("editor", text, message_id=f"m{number}")
        await handle.result()


async def look_at(name: str, database: Path, kills: int) -> None:
    """Judge what the processes have left behind: each node has one record, and only what was cut off was repeated."""
    scene = SCENES[name]
    store = SQLiteStore(database)
    try:
        stored = await store.load(RUN)
    finally:
        await store.close()
    assert stored is not None
    assert stored.head.status == "completed", stored.head.status
    records = read_journal(stored)
    keys = [r.key for r in records if isinstance(r, StepEnded)]
    assert sorted(keys) == sorted(scene.path), keys
    for first, second in scene.orders:
        assert keys.index(first) < keys.index(second), keys
    assert len([r for r in records if isinstance(r, SignalTaken)]) == len(scene.signals)
    check_effects(keys, kills)
    check_state(name, records, keys)


def check_effects(keys: Sequence[str], kills: int) -> None:
    """Every execution of a node had the same state before it, in whatever process it was."""
    done: dict[str, list[str]] = {}
    for key, attempt, note in read_effects():
        assert attempt == 1
        done.setdefault(key, []).append(note)
    assert sorted(done) == sorted(keys)
    assert all(len(set(notes)) == 1 for notes in done.values()), done
    counts = Counter(len(notes) for notes in done.values())
    assert max(counts) <= 1 + kills, done
    assert sum((count - 1) * number for count, number in counts.items()) <= 3 * kills, done


def check_state(name: str, records: Sequence[RunRecord], keys: Sequence[str]) -> None:
    """The final state is what the records say, in their order."""
    last = records[-1]
    assert isinstance(last, Ended)
    state = Codec(Trail).decode(last.value or b"", "the state")
    if name == "reviewed":
        assert state.path == ["write", "again", "write#2", "good", "publish"], state
    elif name == "diamond":
        assert state.path == list(keys), state
    else:
        turned = [part for part in state.path if part.startswith("turn ")]
        assert turned == ["turn 0", "turn 1", "turn 2"], state
        assert [p for p in state.path if p not in turned] == [k for k in keys if "turns.turn" not in k], state


class GraphSweep(Sweep):
    """Trials of one scene."""

    work_on = staticmethod(work_on)
    look_at = staticmethod(look_at)

    def all(self) -> None:
        """Kill a process at every place there is."""
        for kind in ("before", "after", "effect"):
            self._sweep([], kind)

    def twice(self) -> None:
        """Kill a second process behind each of its writes wherever the first one was killed."""
        for n in range(1, 1000):
            if not self._sweep([(Kill(n, "after"), 0)], "after"):
                return


def main(name: str, folder: str, backend: str, kind: str) -> None:
    sweep = GraphSweep(name, Path(folder), backend)
    make: Callable[[], None] = getattr(sweep, kind)
    make()
    print(json.dumps({"trials": sweep.trials, "kills": sweep.kills}))


if __name__ == "__main__":
    import asyncio  # noqa: F401 - imported before the first fork, as are these, so that a child starts at once

    import tenacity  # noqa: F401
    import trio  # noqa: F401

    main(*sys.argv[1:])
