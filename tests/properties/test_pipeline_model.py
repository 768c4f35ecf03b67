"""Random pipelines with all that can be said of one, interrupted at random, against a model too simple to be wrong.

Order without values, items, conditions, what stands in for failures, limits, cancellation and what is done in any
case: the model does the steps one after another, and says what must be on record in the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interrupted import Crash, Lives, drop_event
from msgspec import Struct
from test_saga_model import check_effects, outcomes, pause, read

from flowlet import Flowlet, Registry, current_run, provided
from flowlet.core.pipeline import SKIPPED
from flowlet.core.run_records import Interrupted, Noted, StepEnded, StepErred, StepStopped
from flowlet.errors import RunCancelled

Policy = Literal["stop", "skip", "handle", "value"]
CLOSINGS = ("~tidy", "~tell")
STAND_IN = 7


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(processors=[drop_event])
    yield
    structlog.reset_defaults()


class Refused(Exception):
    """What failing steps raise; its argument says which."""


class Node(Struct, frozen=True):
    """A step of a random pipeline. Its value is a list of so many numbers, or one for each item of its first need.

    Attributes:
        needs: it takes the values of these; ``after`` are those that it only comes after.
        each: it is done for each item of its first need.
        fails: it fails, or does so for items that are odd.
        cancels: it has its own run cancelled.
    """

    number: int
    needs: list[int]
    after: list[int]
    each: bool
    width: int
    fails: bool
    policy: Policy
    condition: bool | None
    cancels: bool
    pauses: int

    @property
    def name(self) -> str:
        return f"n{self.number}"


class Plan(Struct, frozen=True):
    nodes: list[Node]
    limit: int | None
    closing_fails: bool


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    nodes = []
    cancels = draw(st.integers(0, 40))
    for number in range(draw(st.integers(1, 7))):
        before = st.lists(st.sampled_from(range(number)), unique=True, max_size=2) if number else st.just([])
        needs = draw(before)
        nodes.append(
            Node(
                number,
                needs,
                draw(before),
                bool(needs) and draw(st.booleans()),
                draw(st.integers(0, 3)),
                draw(st.integers(0, 3)) == 0,
                draw(st.sampled_from(["stop", "skip", "handle", "value"])),
                draw(st.sampled_from([None, None, None, True, False])),
                number == cancels,
                draw(st.integers(0, 2)),
            )
        )
    limit = draw(st.sampled_from([None, 1, 2, 3]))
    return Plan(draw(st.permutations(nodes)), limit, draw(st.integers(0, 4)) == 0)


# ---------------------------------------------------------------- the pipeline
class World:
    """Where the steps find what they act on.

    Attributes:
        running: the steps under way in each incarnation, and ``most`` of them ever.
    """

    lives: Lives
    running: dict[int, int]
    most: int


def act() -> int:
    run, lives = current_run(), World.lives
    lives.effects.append((lives.number, run.idempotency_key.partition("/")[2], run.attempt))
    return lives.number


async def work_at(node: Node, given: list[Any], flow: Flowlet) -> Any:
    life = act()
    World.running[life] = World.running.get(life, 0) + 1
    World.most = max(World.most, World.running[life])
    try:
        await pause(node.pauses)
        if node.cancels:
            await flow.handle("r").cancel()
        await pause(node.pauses)
        if node.fails and (not node.each or given[0] % 2):
            raise Refused(node.name)
    finally:
        World.running[life] -= 1
    value = node.number + sum(sum(g) if isinstance(g, list) else g for g in given)
    return value if node.each else [value + i for i in range(node.width)]


async def mend(error: Exception, x: int) -> int:
    act()
    await pause(1)
    return -x


async def mend_list(error: Exception) -> list[int]:
    act()
    return [-1]


def build(plan: Plan) -> tuple[Registry, Any]:
    """Make a pipeline out of functions whose parameters are named like the steps that they need."""
    registry = Registry()
    functions = []
    for node in plan.nodes:
        kinds = ["int" if node.each and i == 0 else "list[int]" for i in range(len(node.needs))]
        names = [f"n{need}" for need in node.needs]
        taken = "".join(f"{n}: {k}, " for n, k in zip(names, kinds, strict=True))
        kind = "int" if node.each else "list[int]"
        source = f"async def {node.name}({taken}x: int, flow: Flowlet = provided) -> {kind}:\n"
        source += f"    return await work_at(node, [{', '.join(names)}], flow)\n"
        space: dict[str, Any] = {"work_at": work_at, "node": node, "Flowlet": Flowlet, "provided": provided}
        exec(source, space)
        functions.append(space[node.name])

    async def tidy(x: int) -> None:
        act()
        await pause(1)
        if plan.closing_fails:
            raise Refused("tidy")

    async def tell(x: int, error: Exception | None) -> str:
        act()
        return repr(error)

    return registry, registry.pipeline(
        "random",
        *functions,
        needs={n.name: [f"n{other}" for other in n.after] for n in plan.nodes},
        each={n.name: f"n{n.needs[0]}" for n in plan.nodes if n.each},
        when={n.name: says_yes if n.condition else says_no for n in plan.nodes if n.condition is not None},
        on_error={n.name: policy_of(n) for n in plan.nodes},
        finally_=[tidy, tell],
        max_concurrency=plan.limit,
    )


def policy_of(node: Node) -> Any:
    if node.policy == "handle":
        return mend if node.each else mend_list
    if node.policy == "value":
        return STAND_IN if node.each else [STAND_IN]
    return node.policy


def says_yes(x: int) -> bool:
    return x == 1


def says_no(x: int) -> bool:
    return x != 1


# ---------------------------------------------------------------- the model
class Model:
    """What must come of a pipeline that nothing stops: its steps one after another.

    Attributes:
        values: by step, of those that have one.
        keys: outcomes by key, ``s`` or ``e``.
        skipped: steps that are noted as skipped.
        stopping: names of the steps of which one stops the pipeline.
    """

    def __init__(self, plan: Plan) -> None:
        self.values: dict[int, list[int]] = {}
        self.keys: dict[str, str] = {}
        self.skipped: set[str] = set()
        self.stopping: set[str] = set()
        for node in sorted(plan.nodes, key=lambda n: n.number):  # a step needs smaller numbers only
            before = [*node.needs, *node.after]
            if node.condition is False or any(need not in self.values for need in before):
                self.skipped.add(node.name)
                continue
            given = [self.values[need] for need in node.needs]
            if node.each:
                self.values[node.number] = [
                    value
                    for place, item in enumerate(given[0])
                    for value in self._do(node, f"{node.name}[{place}]", item, given[1:])
                ]
            elif done := self._do(node, node.name, 0, given):
                self.values[node.number] = done[0]
        self.result = self.values.get(plan.nodes[-1].number)

    def _do(self, node: Node, key: str, item: int, given: list[list[int]]) -> list[Any]:
        """Do a step, or that for one item; return its value in a list, or nothing if it has none."""
        fails = node.fails and (not node.each or bool(item % 2))
        self.keys[key] = "e" if fails else "s"
        value = node.number + item + sum(map(sum, given))
        if not fails:
            return [value if node.each else [value + i for i in range(node.width)]]
        if node.policy == "stop":
            self.stopping.add(node.name)
        if node.policy == "handle":
            self.keys[f"{key}:{'mend' if node.each else 'mend_list'}"] = "s"
            return [-1 if node.each else [-1]]
        if node.policy == "value":
            return [STAND_IN if node.each else [STAND_IN]]
        return []


crashes = st.lists(st.builds(Crash, st.integers(1, 6), st.booleans()), max_size=5)


@pytest.mark.parametrize(("backend", "examples"), [("asyncio", 300), ("trio", 80)])
def test_random_pipelines_come_to_the_end_that_the_model_says(backend: str, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(plan=plans(), crashes=crashes, way=st.sampled_from(["execute", "start"]))
    def check(plan: Plan, crashes: list[Crash], way: Any) -> None:
        lives = World.lives = Lives(backend)
        World.running, World.most = {}, 0
        registry, definition = build(plan)
        result, stored = lives.run(registry, definition, [1], crashes, way)
        records = read(stored)
        ended = dict(outcomes(records))
        assert World.most <= (plan.limit or 1000)
        forward = {key: outcome for key, outcome in ended.items() if key not in CLOSINGS}
        skipped = [r.key.removeprefix(SKIPPED) for r in records if isinstance(r, Noted) and r.key.startswith(SKIPPED)]
        assert len(set(skipped)) == len(skipped)
        model = Model(plan)
        cut_short = False
        if any(isinstance(r, Interrupted) for r in records):
            assert stored.head.status == "cancelled"
            assert isinstance(result, RunCancelled)
            cut_short = True
        elif model.stopping:
            assert stored.head.status == "failed"
            assert isinstance(result, Refused)
            assert str(result) in model.stopping
            cut_short = True
        elif plan.closing_fails:
            assert stored.head.status == "failed"
            assert str(result) == "tidy"
        else:
            assert stored.head.status == "completed"
            assert result == model.result
        if cut_short:
            assert {key: o for key, o in forward.items() if o != "c"}.items() <= model.keys.items()
            assert forward.keys() <= model.keys.keys()
            assert set(skipped) <= model.skipped
        else:
            assert forward == model.keys
            assert set(skipped) == model.skipped
        check_closings(plan, records)
        check_effects(records, {key: (outcome, 1) for key, outcome in ended.items()}, lives)
        interrupted.append(lives.crashes)
        ends.add(stored.head.status)

    interrupted: list[int] = []
    ends: set[str] = set()
    check()
    assert sum(interrupted) > examples / 2, "it was hardly ever interrupted"
    assert ends == {"completed", "failed", "cancelled"}


def check_closings(plan: Plan, records: list[Any]) -> None:
    """What is done in any case is done once, in its order, behind everything else, and is told why."""
    outcome = [r for r in records if isinstance(r, (StepEnded, StepErred, StepStopped))]
    closings = [(r.key, type(r)) for r in outcome[-2:]]
    assert closings == [("~tidy", StepErred if plan.closing_fails else StepEnded), ("~tell", StepEnded)]
    assert [r.key for r in outcome if r.key in CLOSINGS] == list(CLOSINGS)
    went_back = any(isinstance(r, Noted) and r.key == "compensating" for r in records)
    assert isinstance(outcome[-1], StepEnded)
    assert (outcome[-1].value == b"\xa4None") is not went_back
