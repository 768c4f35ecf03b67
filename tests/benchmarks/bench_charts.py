"""Transitions of nested states against flat ones, and both against other libraries, measured in the same run.

Run ``python tests/benchmarks/bench_charts.py``. Every figure is the best of several rounds, in which all sides take
turns, so that a noisy machine slows all of them. The peers are measured if they are installed:
``pip install transitions python-statemachine automat sismic``. Each does what its users would write for the same
machine: a lamp that is switched, and a studio of two regions with two more levels in each, of which one moves.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import sys
import time
import warnings
from collections.abc import Awaitable, Callable
from typing import Any

from bench_machines import ByHand, Lamp, bytes_each, calling, compare, run_once

from flowlet import Registry, fire, state, transition
from flowlet.runtime.logs import Log
from flowlet.runtime.machines import Machines
from flowlet.store import New, Write
from flowlet.stores.memory import MemoryStore

ROUNDS, LOOPS = 100, 500
Loop = Callable[[int], Awaitable[None]]

machine: Any = Registry().machine


@machine
class Switch:
    """The flat one: a body and an enter hook."""

    switched: int

    def __init__(self) -> None:
        self.switched = 0
        self._seen = 0

    @state(initial=True)
    class Off: ...

    @state
    class On: ...

    @transition(Off, On)
    @transition(On, Off)
    async def switch(self) -> int:
        self.switched += 1
        return self.switched

    async def on_enter_on(self) -> None:
        self._seen += 1

    async def on_enter_off(self) -> None:
        self._seen += 1


@machine
class Studio:
    """The same three levels down, in one of two regions."""

    switched: int

    def __init__(self) -> None:
        self.switched = 0
        self._seen = 0

    @state(parallel=True, initial=True)
    class Up:
        @state
        class Sound:
            @state(initial=True)
            class Low:
                @state(initial=True)
                class Off: ...

                @state
                class On: ...

            @state
            class High: ...

        @state
        class Picture:
            @state(initial=True)
            class Grey:
                @state(initial=True)
                class Dim: ...

                @state
                class Clear: ...

            @state
            class Bright: ...

    @state
    class Down: ...

    @transition(Up.Sound.Low.Off, Up.Sound.Low.On)
    @transition(Up.Sound.Low.On, Up.Sound.Low.Off)
    async def switch(self) -> int:
        self.switched += 1
        return self.switched

    @transition(Up.Sound.Low.Off, Up.Sound.Low.On)
    @transition(Up.Sound.Low.On, Up.Sound.Low.Off)
    @transition(Up.Picture.Grey.Dim, Up.Picture.Grey.Clear)
    @transition(Up.Picture.Grey.Clear, Up.Picture.Grey.Dim)
    async def both(self) -> None:
        self.switched += 1

    @transition(Up.Sound.Low, Up.Sound.High)
    @transition(Up.Sound.High, Up.Sound.Low)
    async def level(self) -> None:
        self.switched += 1

    @transition(Up.Picture.Grey, Up.Picture.Bright)
    @transition(Up.Picture.Bright, Up.Picture.Grey)
    async def shine(self) -> None:
        self.switched += 1

    @transition(Up, Down)
    @transition(Down, Up)
    async def around(self) -> None:
        self.switched += 1

    async def on_enter_on(self) -> None:
        self._seen += 1

    async def on_enter_off(self) -> None:
        self._seen += 1


# Flowlet against itself ---------------------------------------------------------------------------------
async def best_of(loops: dict[str, Loop], n: int = LOOPS, rounds: int = ROUNDS) -> dict[str, float]:
    """Return the seconds of one call of each, taking turns."""
    best = dict.fromkeys(loops, float("inf"))
    for loop in loops.values():
        await loop(3)
    gc.collect()
    gc.disable()
    for _ in range(rounds):
        for name, loop in loops.items():
            start = time.perf_counter()
            await loop(n)
            best[name] = min(best[name], (time.perf_counter() - start) / n)
    gc.enable()
    return best


def firing(machine: Any, event: str) -> Loop:
    """Call all methods that serve an event."""

    async def loop(n: int) -> None:
        for _ in range(n):
            await fire(machine, event)

    return loop


async def chart_against_flat() -> None:
    loops = {
        "flat": calling(Switch().switch),
        "3 levels, 2 regions, one moves": calling(Studio().switch),
        "the same, both move": calling(Studio().both),
        "the same, a compound is left and entered": calling(Studio().level),
        "the same, all is left and entered": calling(Studio().around),
    }
    against("storeless", await best_of(loops), 10)
    by_name = {"flat": firing(Switch(), "switch"), "3 levels, 2 regions, one moves": firing(Studio(), "switch")}
    against("storeless, fired by name", await best_of(by_name), 10)
    machines = Machines(MemoryStore(), now=time.time, worker="bench", log=Log())
    flat, chart, other = [await machines.create(cls) for cls in (Switch, Studio, Studio)]
    loops = {
        "flat": calling(flat.switch),
        "3 levels, 2 regions, one moves": calling(chart.switch),
        "the same, both move": calling(chart.both),
        "the same, all is left and entered": calling(other.around),
    }
    against("MemoryStore", await best_of(loops, 100, 50), 10)


def against(where: str, best: dict[str, float], limit: float = 0.0) -> None:
    """Print figures and how they compare with the first of them."""
    first = next(iter(best.values()))
    for place, (name, seconds) in enumerate(best.items()):
        ratio = seconds / first
        verdict = ""
        if limit and place:
            verdict = f"  limit {limit:.0f}x  {'ok' if ratio <= limit else 'TOO SLOW'}"
        print(f"{where + ': ' + name:64s} {seconds * 1e6:9.3f} us {ratio:8.2f}x{verdict}")


# Memory, assembly, loading ------------------------------------------------------------------------------
def memory() -> None:
    by_hand = {use: bytes_each(ByHand, use) for use in (None, run_once)}
    for kind, cls in (("flat", Lamp), ("chart", Studio)):
        for label, use in (("idle, never moved", None), ("idle, after a transition", run_once)):
            more = bytes_each(cls, use) - by_hand[use]
            verdict = f"   limit 64  {'ok' if more <= 64 else 'TOO MUCH'}" if kind == "flat" else ""
            print(f"{f'bytes more per {kind} machine than by hand, {label}':64s} {more:9.0f}{verdict}")


def chart_of(states: int) -> type:
    """Make a class of two regions with this many atomic states and a transition out of each."""
    regions = []
    members: dict[str, Any] = {}
    for r in range(2):
        names = [f"S{r}x{n}" for n in range(states // 2)]
        inner = {name: state(initial=not n)(type(name, (), {})) for n, name in enumerate(names)}
        regions.append((f"Region{r}", state(type(f"Region{r}", (), inner))))
        for n, name in enumerate(names):

            async def go(self: Any) -> None: ...

            go.__name__ = go.__qualname__ = f"go{r}x{n}"
            target = names[(n + 1) % len(names)]
            members[f"go{r}x{n}"] = transition(inner[name], inner[target], event=f"next{r}")(go)
    members["Around"] = state(parallel=True, initial=True)(type("Around", (), dict(regions)))
    return type("Large", (), members)


def assembly() -> None:
    best = float("inf")
    for _ in range(7):
        cls = chart_of(50)
        start = time.perf_counter()
        Registry().machine(cls)
        best = min(best, time.perf_counter() - start)
    print(f"{'assembling a chart of 2 regions with 25 states each':64s} {best * 1e3:9.2f} ms")


async def loading() -> None:
    """Load machines with few and with many records, from their snapshots; and the latter without."""
    for cls in (Switch, Studio):
        store = MemoryStore()
        writer = Machines(store, now=time.time, worker="writer", log=Log())
        for id, count in (("few", 800), ("many", 9_999)):
            made = await writer.create(cls, id=id)
            for _ in range(count):
                await made.switch()
        head = await store.load("many", limit=0)
        assert head is not None
        records = head.head.version

        def load(id: str, cls: Any = cls, store: MemoryStore = store) -> Loop:
            async def loop(n: int) -> None:
                for _ in range(n):
                    await Machines(store, now=time.time, worker="reader", log=Log()).load(cls, id)

            return loop

        best = await best_of({"few": load("few"), "many": load("many")}, 1, 15)
        name = f"load of a {cls.__name__} with {records} records and a snapshot"
        ratio = best["many"] / best["few"]
        print(f"{name:64s} {best['many'] * 1e3:9.2f} ms {ratio:8.2f}x of one with 800")
        stored = await store.load("many")
        assert stored is not None
        bare = MemoryStore()
        await copy_records(bare, stored)
        best = await best_of({"bare": load("many", cls, bare)}, 1, 3)
        print(f"{'the same without a snapshot':64s} {best['bare'] * 1e3:9.2f} ms")


async def copy_records(store: MemoryStore, stored: Any) -> None:
    """Put the records of a machine, and nothing else, into another store."""
    head = stored.head
    new = New(head.kind, head.definition, head.definition_version)
    await store.append(
        (Write(id=head.id, expect=0, create=new, records=tuple(stored.records), status=head.status, state=head.state),)
    )


# Peers --------------------------------------------------------------------------------------------------
def repeating(call: Callable[[], Any]) -> Loop:
    """Call a plain function."""

    async def loop(n: int) -> None:
        for _ in range(n):
            call()

    return loop


class Counting:
    """What the peers' callbacks count on."""

    switched = 0
    seen = 0

    def act(self, *_: Any, **__: Any) -> None:
        self.switched += 1

    def enter(self, *_: Any, **__: Any) -> None:
        self.seen += 1


def peer_transitions() -> tuple[Loop, Loop]:
    from transitions.extensions.asyncio import AsyncMachine, HierarchicalAsyncMachine

    class Model(Counting):
        async def aact(self) -> None:
            self.switched += 1

        async def aenter(self) -> None:
            self.seen += 1

    flat = Model()
    AsyncMachine(
        flat,
        states=[{"name": "off", "on_enter": "aenter"}, {"name": "on", "on_enter": "aenter"}],
        transitions=[["switch", "off", "on", None, None, "aact"], ["switch", "on", "off", None, None, "aact"]],
        initial="off",
    )
    deep = Model()

    def region(name: str, low: str, one: str, two: str, high: str) -> dict[str, Any]:
        leaves = [{"name": one, "on_enter": "aenter"}, {"name": two, "on_enter": "aenter"}]
        return {"name": name, "initial": low, "children": [{"name": low, "initial": one, "children": leaves}, high]}

    sound, picture = region("sound", "low", "off", "on", "high"), region("picture", "grey", "dim", "clear", "bright")
    HierarchicalAsyncMachine(
        deep,
        states=[{"name": "up", "parallel": [sound, picture]}, "down"],
        transitions=[
            ["switch", "up_sound_low_off", "up_sound_low_on", None, None, "aact"],
            ["switch", "up_sound_low_on", "up_sound_low_off", None, None, "aact"],
        ],
        initial="up",
    )
    flat_model: Any = flat
    deep_model: Any = deep
    return calling(flat_model.switch), calling(deep_model.switch)


def peer_transitions_sync() -> tuple[Loop, Loop]:
    from transitions import Machine
    from transitions.extensions import HierarchicalMachine

    flat: Any = Counting()
    pair = [{"name": "off", "on_enter": "enter"}, {"name": "on", "on_enter": "enter"}]
    moves = [{"trigger": "switch", "source": a, "dest": b, "before": "act"} for a, b in (("off", "on"), ("on", "off"))]
    Machine(flat, states=pair, transitions=moves, initial="off")
    deep: Any = Counting()
    low = {"name": "low", "initial": "off", "children": pair}
    grey = {"name": "grey", "initial": "dim", "children": ["dim", "clear"]}
    regions = [
        {"name": "sound", "initial": "low", "children": [low, "high"]},
        {"name": "picture", "initial": "grey", "children": [grey, "bright"]},
    ]
    at = "up_sound_low_"
    HierarchicalMachine(
        deep,
        states=[{"name": "up", "parallel": regions}, "down"],
        transitions=[{**move, "source": at + move["source"], "dest": at + move["dest"]} for move in moves],
        initial="up",
    )
    return repeating(flat.switch), repeating(deep.switch)


def peer_statemachine() -> tuple[Loop, Loop]:
    from statemachine import State, StateChart

    class Flat(StateChart):
        off = State(initial=True)
        on = State()
        switch = off.to(on) | on.to(off)
        switched = 0
        seen = 0

        def on_switch(self) -> None:
            self.switched += 1

        def on_enter_on(self) -> None:
            self.seen += 1

        def on_enter_off(self) -> None:
            self.seen += 1

    class Deep(StateChart):
        class up(State.Parallel):
            class sound(State.Compound):
                class low(State.Compound):
                    off = State(initial=True)
                    on = State()
                    switch = off.to(on) | on.to(off)

                high = State()
                raising = low.to(high) | high.to(low)

            class picture(State.Compound):
                class grey(State.Compound):
                    dim = State(initial=True)
                    clear = State()
                    swap = dim.to(clear) | clear.to(dim)

                bright = State()
                shining = grey.to(bright) | bright.to(grey)

        switched = 0
        seen = 0

        def on_switch(self) -> None:
            self.switched += 1

        def on_enter_on(self) -> None:
            self.seen += 1

        def on_enter_off(self) -> None:
            self.seen += 1

    flat, deep = Flat(), Deep()
    return repeating(lambda: flat.send("switch")), repeating(lambda: deep.send("switch"))


def peer_automat() -> tuple[Loop, Loop | None]:
    from automat import MethodicalMachine

    class Flat(Counting):
        _machine: Any = MethodicalMachine()

        @_machine.state(initial=True)
        def off(self) -> None: ...

        @_machine.state()
        def on(self) -> None: ...

        @_machine.input()
        def switch(self) -> None: ...

        @_machine.output()
        def act_and_enter(self) -> None:
            self.switched += 1
            self.seen += 1

        off.upon(switch, enter=on, outputs=[act_and_enter])
        on.upon(switch, enter=off, outputs=[act_and_enter])

    return repeating(Flat().switch), None


SISMIC_FLAT = """
statechart:
  name: lamp
  preamble: |
    switched = 0
    seen = 0
  root state:
    name: root
    initial: "off"
    states:
      - name: "off"
        on entry: seen += 1
        transitions: [{event: switch, target: "on", action: switched += 1}]
      - name: "on"
        on entry: seen += 1
        transitions: [{event: switch, target: "off", action: switched += 1}]
"""

SISMIC_DEEP = """
statechart:
  name: studio
  preamble: |
    switched = 0
    seen = 0
  root state:
    name: root
    parallel states:
      - name: sound
        initial: low
        states:
          - name: low
            initial: "off"
            states:
              - name: "off"
                on entry: seen += 1
                transitions: [{event: switch, target: "on", action: switched += 1}]
              - name: "on"
                on entry: seen += 1
                transitions: [{event: switch, target: "off", action: switched += 1}]
          - name: high
      - name: picture
        initial: grey
        states:
          - name: grey
            initial: dim
            states: [{name: dim}, {name: clear}]
          - name: bright
"""


def peer_sismic() -> tuple[Loop, Loop]:
    from sismic.interpreter import Interpreter
    from sismic.io import import_from_yaml

    def sending(text: str) -> Loop:
        interpreter = Interpreter(import_from_yaml(text))
        interpreter.execute()

        def send() -> None:
            interpreter.queue("switch")
            interpreter.execute()

        return repeating(send)

    return sending(SISMIC_FLAT), sending(SISMIC_DEEP)


PEERS: dict[str, tuple[str, Callable[[], tuple[Loop, Loop | None]]]] = {
    "transitions": ("transitions", peer_transitions_sync),
    "transitions, async": ("transitions", peer_transitions),
    "python-statemachine": ("python-statemachine", peer_statemachine),
    "automat": ("automat", peer_automat),
    "sismic": ("sismic", peer_sismic),
}


async def peers() -> None:
    """Measure what is installed, and say what is not."""
    flat: dict[str, Loop] = {"flowlet": calling(Switch().switch)}
    deep: dict[str, Loop] = {"flowlet": calling(Studio().switch)}
    for name, (package, make) in PEERS.items():
        try:
            version = importlib.metadata.version(package)
            one, two = make()
            await one(2)
            if two is not None:
                await two(2)
        except (ImportError, importlib.metadata.PackageNotFoundError):
            print(f"{name}: not installed")
            continue
        flat[f"{name} {version}"] = one
        if two is not None:
            deep[f"{name} {version}"] = two
    against("flat", await best_of(flat, 50, 20))
    against("3 levels, 2 regions", await best_of(deep, 50, 20))


async def main() -> None:
    warnings.simplefilter("ignore")
    await compare("a flat transition by hand", 1.4, calling(ByHand().switch_calling), calling(Lamp().switch), 500, 100)
    await chart_against_flat()
    memory()
    assembly()
    await loading()
    await peers()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
