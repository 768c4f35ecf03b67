"""Random statecharts and events: flowlet against the algorithm of the SCXML recommendation.

A chart is made once, as the loader of SCXML files would have read it, and written down twice: in flowlet's marks and
for the model. Its data are a count, a fuel that what may repeat itself uses up, and a log of all that has run.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Literal, TypeVar

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from scxml_chart import Arrow, Block, Chart, Node, Session, read_chart
from scxml_loader import PROBE, Machine, build_machine, build_model
from scxml_model import Interpreter, is_legal

from flowlet import Flowlet, fire, states_of
from flowlet.errors import TransitionNotAllowed
from flowlet.stores import open_store

T = TypeVar("T")
Draw = Callable[[st.SearchStrategy[Any]], Any]

OUTSIDE = ("e1", "e2", "e3")
RAISED = ("r1", "r2")
SENT = ("s1", "s2")
DEPTH = 3
HISTORIES = ("shallow", "deep")
PATIENCE = 2.0
"""Seconds in which what was sent must have been handled."""
quick = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


# ------------------------------------------------------------------ content
def write(kind: str, name: str) -> Block:
    """Note in the log what runs."""

    def block(session: Session) -> None:
        session.vars = {**session.vars, "log": [*session.vars["log"], f"{kind} {name}"]}

    return block


def count(session: Session) -> None:
    """Count one up."""
    session.vars = {**session.vars, "n": session.vars["n"] + 1}


def refuel(session: Session) -> None:
    """Allow some more of what may repeat itself."""
    session.vars = {**session.vars, "fuel": session.vars["fuel"] + 2}


def burn(session: Session) -> None:
    """Use up some of what is allowed."""
    session.vars = {**session.vars, "fuel": session.vars["fuel"] - 1}


def raising(event: str, *, sent: bool) -> Block:
    """Raise an event, or send it, as long as there is fuel."""

    def block(session: Session) -> None:
        if session.vars["fuel"] > 0:
            burn(session)
            if sent:
                session.send(event, 0, None)
            else:
                session.raise_event(event, None)

    return block


def fill(session: Session) -> None:
    """Give the data their first values."""
    session.vars = {"n": 0, "fuel": 4, "log": []}


def together(*blocks: Block) -> Block:
    def block(session: Session) -> None:
        for each in blocks:
            each(session)

    return block


def has_fuel(session: Session) -> bool:
    return bool(session.vars["fuel"] > 0)


def counts(remainder: int) -> Callable[[Session], bool]:
    return lambda session: session.vars["n"] % 2 == remainder


# ------------------------------------------------------------------ charts
class Maker:
    """Draws one chart.

    Args:
        sends: its content also sends events, which are handled at a time of their own.
    """

    def __init__(self, draw: Draw, *, sends: bool = True) -> None:
        self._draw, self._sends = draw, sends
        self.chart = Chart("drawn", Path(), {}, start=[fill])
        self._made = 0

    def _choose(self, *options: T) -> T:
        chosen: T = self._draw(st.sampled_from(options))
        return chosen

    def _chance(self, one_in: int) -> bool:
        """Say yes sometimes; what shrinks says no."""
        return bool(self._draw(st.integers(0, one_in - 1)) == one_in - 1)

    def make(self) -> Chart:
        """Draw states, then where they lead, then transitions."""
        self._grow(self.chart.root, 0)
        for node in self.chart.nodes:
            self._lead(node)
            self._hook(node)
        ends = [n for n in self.chart.nodes if n.kind == "parallel" or any(c.kind == "final" for c in n.children)]
        self.chart.events = [*OUTSIDE, *RAISED, *SENT, *(f"done.state.{n.id}" for n in ends)]
        sources = [n for n in self.chart.nodes if n.kind not in ("final", *HISTORIES)]
        for _ in range(self._draw(st.integers(5, 14))):
            self._arrow(self.chart.root if self._chance(8) else self._choose(*sources))
        for end in ends:
            if self._chance(2):
                self._arrow(self._choose(end, self.chart.root), f"done.state.{end.id}")
        for event in SENT:  # so that each of them is seen to have come
            self.chart.root.arrows.append(Arrow(self.chart.root, [event], [], False, None, count))
        for name, arrow in self.chart.named_arrows():
            arrow.content = together(write("take", name), arrow.content)
        return self.chart

    # States
    def _grow(self, parent: Node, depth: int) -> None:
        wanted = 2 if parent.kind == "parallel" else self._choose(2, 2, 3)
        for place in range(wanted):
            node = self._add(parent, self._kind(parent, depth, place))
            if node.kind in ("compound", "parallel"):
                self._grow(node, depth + 1)
        if parent.kind != "root" and self._chance(2):
            self._add(parent, self._choose(*HISTORIES))

    def _kind(self, parent: Node, depth: int, place: int) -> str:
        kinds = ["atomic"]
        if depth < DEPTH - 1 and self._made < 14:
            kinds += ["compound", "parallel", "compound"]
        if place and parent.kind != "parallel":
            kinds += ["final"] if parent.kind == "root" else ["final", "final"]
        return self._choose(*kinds)

    def _add(self, parent: Node, kind: str) -> Node:
        self._made += 1
        node = Node(f"{kind[0]}{self._made}", kind, parent)
        parent.children.append(node)
        return node

    def _below(self, node: Node) -> list[Node]:
        return [n for n in node.walk() if n is not node]

    def _lead(self, node: Node) -> None:
        """Draw where a history leads, and sometimes another way into a compound."""
        if node.kind in HISTORIES:
            assert node.parent is not None
            node.default = [self._choose(*[n.id for n in self._below(node.parent) if n.kind not in HISTORIES])]
        elif node.kind == "compound" and self._chance(4):
            node.default = self._targets(self._below(node), histories_of=node)

    def _targets(self, among: list[Node], histories_of: Node | None = None) -> list[str]:
        """Draw one target or two in different regions of a parallel state.

        Args:
            histories_of: the only one whose histories may be among them; any, by default.
        """
        fit = [n for n in among if n.kind not in HISTORIES or histories_of in (None, n.parent)]
        histories = [n for n in fit if n.kind in HISTORIES]
        if histories and self._chance(3):
            return [self._choose(*histories).id]
        splits = [n for n in fit if n.kind == "parallel"]
        if not splits or not self._chance(3):
            return [self._choose(*fit).id]
        regions = [c for c in self._choose(*splits).children if c.kind not in HISTORIES]
        return [self._choose(*[n.id for n in r.walk() if histories_of is None or n in fit]) for r in regions]

    def _hook(self, node: Node) -> None:
        if node.kind in HISTORIES:
            return
        node.on_entry = [write("enter", node.id), *self._extras(6)]
        node.on_exit = [write("exit", node.id), *self._extras(6)]

    def _extras(self, one_in: int) -> list[Block]:
        """Draw what else a callback does."""
        found: list[Block] = []
        if self._chance(one_in):
            sent = self._sends and self._chance(3)
            found.append(raising(self._choose(*(SENT if sent else RAISED)), sent=sent))
        return [*found, count] if self._chance(one_in) else found

    # Transitions
    def _arrow(self, source: Node, event: str | None = None) -> None:
        eventless = event is None and self._chance(6)
        event = event or self._choose(*OUTSIDE, *OUTSIDE, *self.chart.events)
        targets = [] if self._chance(6) else self._targets(self._near(source))
        repeats = eventless or event.startswith("done")
        extra = burn if repeats else refuel if event in OUTSIDE else count
        source.arrows.append(
            Arrow(
                source=source,
                descriptors=None if eventless else [event],
                targets=targets,
                internal=self._chance(3),
                cond=has_fuel if repeats else self._condition(),
                content=together(extra, *self._extras(3)),
            )
        )

    def _near(self, source: Node) -> list[Node]:
        """Return all states, or those below or around the source."""
        around = self._choose("all", "below", "beside")
        home = {"all": self.chart.root, "below": source, "beside": source.parent}[around]
        return self._below(home or self.chart.root) or self._below(self.chart.root)

    def _condition(self) -> Callable[[Session], bool] | None:
        which = self._choose("none", "none", "none", "even", "odd", "in")
        if which == "in":
            id = self._choose(*[n.id for n in self.chart.nodes if n.kind not in HISTORIES])
            return lambda session: session.is_in(id)
        return {"even": counts(0), "odd": counts(1)}.get(which)


@st.composite
def charts(draw: Draw, *, sends: bool = True) -> Chart:
    """Draw charts with states three deep."""
    return Maker(draw, sends=sends).make()


events = st.lists(st.sampled_from(OUTSIDE), min_size=4, max_size=24)


def describe(chart: Chart) -> str:
    """Show a chart, a state or transition to a line."""
    lines: list[str] = []
    for node in chart.root.walk():
        above = node.parent
        depth = 0
        while above is not None:
            above, depth = above.parent, depth + 1
        lines.append(f"{'  ' * depth}{node.kind} {node.id}{'' if node.default is None else f' default {node.default}'}")
        for arrow in node.arrows:
            what = f"on {arrow.descriptors} -> {arrow.targets}{' internal' if arrow.internal else ''}"
            lines.append(f"{'  ' * depth}  {what}{'' if arrow.cond is None else ' guarded'}")
    return "\n".join(lines)


# ------------------------------------------------------------------ the same in flowlet
async def took(machine: Machine, it: Any, event: str) -> bool:
    """Fire an event; return whether it found a transition."""
    if event not in machine.events:
        return False
    try:
        await fire(it, event)
    except TransitionNotAllowed:
        return False
    return True


def active(machine: Machine, it: Any) -> list[str]:
    return [machine.ids[name] for name in states_of(it)]


async def agree(model: Interpreter, machine: Machine, it: Any) -> None:
    """Compare states, their order, and all that has run; what was sent is handled by itself, after a moment."""
    with anyio.move_on_after(PATIENCE if model.sent else 0):
        while it.vars != model.data:
            await anyio.sleep(0.001)
    assert active(machine, it) == model.active
    assert it.vars["log"] == model.data["log"]
    assert it.vars == model.data


async def in_memory(chart: Chart, sequence: list[str]) -> None:
    model, machine = build_model(chart), build_machine(chart)
    model.start()
    it = machine.cls()
    assert not await took(machine, it, PROBE)
    await agree(model, machine, it)
    for event in sequence:
        expected = model.send_now(event)
        assert await took(machine, it, event) == expected
        await agree(model, machine, it)
    assert model.data["log"] == model.trace


async def durably(chart: Chart, sequence: list[str]) -> None:
    """Load the machine anew before each event."""
    model, machine = build_model(chart), build_machine(chart)
    model.start()
    store = open_store("memory://")
    async with Flowlet(store, registry=machine.registry) as flow:
        await agree(model, machine, await flow.create(machine.cls(), id="it"))
    for event in sequence:
        async with Flowlet(store, registry=machine.registry) as flow:
            it = await flow.load(machine.cls, "it")
            await agree(model, machine, it)
            expected = model.send_now(event)
            assert await took(machine, it, event) == expected
            await agree(model, machine, it)


@quick
@given(charts(), events)
def test_a_chart_does_what_the_algorithm_says(chart: Chart, sequence: list[str]) -> None:
    note(describe(chart))
    anyio.run(in_memory, chart, sequence)


@settings(quick, max_examples=40)
@given(charts(), events)
def test_a_stored_chart_does_the_same(chart: Chart, sequence: list[str]) -> None:
    note(describe(chart))
    anyio.run(durably, chart, sequence)


# ------------------------------------------------------------------ many machines
PLAYER = """
<scxml xmlns="http://www.w3.org/2005/07/scxml" initial="off">
  <datamodel><data id="n" expr="0"/><data id="log" expr="''"/></datamodel>
  <state id="off">
    <transition event="power" target="recent"/>
    <transition event="louder" target="place"/>
  </state>
  <parallel id="on">
    <onentry><script>log += 'on ';</script></onentry>
    <history id="recent" type="deep"><transition target="tune"/></history>
    <transition event="power" target="off"/>
    <transition event="done.state.on" target="off"><script>log += 'over ';</script></transition>
    <state id="tune">
      <history id="place" type="shallow"><transition target="quiet"/></history>
      <state id="quiet"><transition event="louder" target="loud"/></state>
      <state id="loud">
        <onentry><assign location="n" expr="n + 1"/><raise event="tick"/></onentry>
        <onexit><script>log += 'hush ';</script></onexit>
        <transition event="louder" target="loud" cond="n % 3 !== 0"/>
        <transition event="softer" target="quiet"/>
        <transition event="crack" target="broken"/>
        <state id="clear"><transition event="crack" target="noisy"/></state>
        <state id="noisy"/>
      </state>
      <final id="broken"/>
      <transition event="done.state.tune"><script>log += 'pop ';</script></transition>
    </state>
    <state id="light">
      <state id="green"><transition event="tick" target="amber"/></state>
      <state id="amber"><transition event="tick" target="red"/></state>
      <state id="red">
        <transition cond="n % 2 === 0" target="green"/>
        <transition event="crack" target="dark"/>
      </state>
      <final id="dark"><onentry><script>log += 'dark ';</script></onentry></final>
    </state>
  </parallel>
</scxml>
"""


@pytest.fixture(scope="module")
def player(tmp_path_factory: pytest.TempPathFactory) -> Chart:
    """A chart whose content all machines of a test share."""
    path = tmp_path_factory.mktemp("charts") / "player.scxml"
    path.write_text(PLAYER)
    return read_chart(path, ["power", "louder", "softer", "crack"])


@pytest.mark.parametrize("stored", [False, True], ids=["in memory", "stored"])
def test_a_thousand_machines_do_not_mix(player: Chart, stored: bool) -> None:
    dice = random.Random(5)
    likely = ["power", "louder", "louder", "louder", "softer", "crack", "crack"]
    sequences = [["power", *dice.choices(likely, k=24)] for _ in range(50)]
    models: list[Interpreter] = []
    for sequence in sequences:
        models.append(build_model(player))
        models[-1].start()
        for event in sequence:
            models[-1].send_now(event)
    assert len({str(model.data) for model in models}) > 40
    assert any("over" in model.data["log"] for model in models)
    machine = build_machine(player, pause=anyio.lowlevel.checkpoint)

    async def drive(flow: Flowlet, number: int) -> None:
        it = await flow.create(machine.cls()) if stored else machine.cls()
        for event in sequences[number % 50]:
            await took(machine, it, event)
        await agree(models[number % 50], machine, it)

    async def main() -> None:
        async with Flowlet("memory://", registry=machine.registry) as flow, anyio.create_task_group() as group:
            for number in range(1000):
                group.start_soon(drive, flow, number)

    anyio.run(main)


# ------------------------------------------------------------------ cancelled callers
Way = Literal["native", "asyncio", "trio"]


async def cut_off(way: Way, call: Callable[[], Coroutine[Any, Any, object]], turns: int) -> None:
    """Cancel a call after some turns of the loop."""
    if way == "native":
        task = asyncio.ensure_future(call())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return
    async with anyio.create_task_group() as group:
        group.start_soon(call)
        for _ in range(turns):
            await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()


async def cancelled(way: Way, chart: Chart, sequence: list[str], turns: int, stored: bool) -> None:
    """Cancel the last event of a sequence: the machine is where a microstep ends, and goes on at its next event."""
    model, machine = build_model(chart), build_machine(chart, pause=anyio.lowlevel.checkpoint)
    ids = {node.id: node for node in model.root.walk()}
    model.start()
    store = open_store("memory://")
    async with Flowlet(store, registry=machine.registry) as flow:
        it = machine.cls()
        if stored:
            it = await flow.create(it, id="it")
        else:
            await took(machine, it, PROBE)
        for event in sequence[:-1]:
            model.send_now(event)
            await took(machine, it, event)
        model.stops = [model.active]
        model.send_now(sequence[-1])
        await cut_off(way, lambda: took(machine, it, sequence[-1]), turns)
        assert active(machine, it) in model.stops
        for event in (PROBE, *OUTSIDE):
            await took(machine, it, event)
            model.configuration, model.data = {ids[id] for id in active(machine, it)}, it.vars
            assert is_legal(model.configuration, model.root)
            assert model.is_stable
    if stored:
        async with Flowlet(store, registry=machine.registry) as flow:
            assert active(machine, await flow.load(machine.cls, "it")) == active(machine, it)


@pytest.mark.parametrize("stored", [False, True], ids=["in memory", "stored"])
@pytest.mark.parametrize("way", ["native", "asyncio", "trio"])
def test_a_cancelled_caller_leaves_a_legal_configuration(way: Way, stored: bool) -> None:
    @settings(quick, max_examples=20)
    @given(charts(sends=False), events, st.integers(0, 12))
    def judge(chart: Chart, sequence: list[str], turns: int) -> None:
        note(describe(chart))
        anyio.run(cancelled, way, chart, sequence, turns, stored, backend=way.replace("native", "asyncio"))

    judge()
