"""Random sagas and pipelines, interrupted at random, against models that are too simple to be wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
import structlog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interrupted import Crash, Lives, drop_event
from msgspec import Struct

from flowlet import Registry, Retry, compensate, current_run, gather, step
from flowlet.core.pipeline import SKIPPED
from flowlet.core.run_records import (
    AttemptErred,
    Attention,
    Ended,
    Noted,
    RunRecord,
    Started,
    StepEnded,
    StepErred,
    StepStopped,
    run_record_codec,
)
from flowlet.errors import CompensationFailed
from flowlet.store import Stored

POLICIES = (1, 2, 3)
UNDO_POLICIES = (0, 1, 2)  # 0: no compensation


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    structlog.configure(processors=[drop_event])
    yield
    structlog.reset_defaults()


class Refused(Exception):
    """What failing steps raise; its argument says which."""


# ---------------------------------------------------------------- the sagas
class Part(Struct, frozen=True):
    """A step of a random saga.

    Attributes:
        attempts: of its policy; ``fails`` of them fail, so that it fails for good if that is not fewer.
        undo: attempts of its compensation's policy, 0 for none; ``undo_fails`` of them fail.
        pauses: so often it lets others run before it ends.
    """

    number: int
    attempts: int
    fails: int
    undo: int
    undo_fails: int
    pauses: int

    @property
    def works(self) -> bool:
        return self.fails < self.attempts

    @property
    def can_be_undone(self) -> bool:
        return self.undo_fails < self.undo


class Block(Struct, frozen=True):
    """Steps that run together; the body goes on after a failure if it is ``caught``."""

    parts: list[Part]
    caught: bool


class Plan(Struct, frozen=True):
    """A random saga; the body itself fails at its end if it ``fails``."""

    blocks: list[Block]
    fails: bool


class World:
    """Where the steps of a definition find what they act on."""

    lives: Lives


def act(fails: int, what: object) -> None:
    run, lives = current_run(), World.lives
    lives.effects.append((lives.number, run.idempotency_key.partition("/")[2], run.attempt))
    if run.attempt <= fails:
        raise Refused(str(what))


async def pause(times: int) -> None:
    for _ in range(times):
        await anyio.lowlevel.checkpoint()


def make_step(attempts: int, undo: int) -> Callable[..., Any]:
    @step(name=f"do_{attempts}_{undo}", key=lambda part: str(part.number), retry=Retry(attempts=attempts, wait=0))
    async def do(part: Part) -> int:
        await pause(part.pauses)
        act(part.fails, part.number)
        await pause(part.pauses)
        return part.number * 10

    if undo:

        @compensate(do, retry=Retry(attempts=undo, wait=0))
        async def undo_it(part: Part, do: int, error: Exception) -> None:
            assert do == part.number * 10
            assert isinstance(error, Refused)
            await pause(part.pauses)
            act(part.undo_fails, f"undo {part.number}")

    return do


STEPS = {(attempts, undo): make_step(attempts, undo) for attempts in POLICIES for undo in UNDO_POLICIES}
sagas = Registry()


@sagas.saga
async def random_saga(plan: Plan) -> list[int]:
    values: list[int] = []
    for block in plan.blocks:
        calls = [STEPS[part.attempts, part.undo](part) for part in block.parts]
        try:
            values += await gather(*calls) if len(calls) > 1 else [await calls[0]]
        except Refused:
            if not block.caught:
                raise
            values.append(-1)
    if plan.fails:
        raise Refused("the body")
    return values


def parts() -> st.SearchStrategy[Part]:
    few = st.integers(0, 3)
    return st.builds(
        Part,
        number=st.just(0),
        attempts=st.sampled_from(POLICIES),
        fails=st.one_of(st.just(0), st.just(0), few),
        undo=st.sampled_from(UNDO_POLICIES),
        undo_fails=st.one_of(st.just(0), st.just(0), few),
        pauses=st.integers(0, 2),
    )


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    block = st.builds(Block, st.lists(parts(), min_size=1, max_size=4), st.booleans())
    blocks = draw(st.lists(block, min_size=1, max_size=5))
    number = 0
    numbered = []
    for block in blocks:
        new = []
        for part in block.parts:
            number += 1
            new.append(Part(number, part.attempts, part.fails, part.undo, part.undo_fails, part.pauses))
        numbered.append(Block(new, block.caught))
    return Plan(numbered, draw(st.integers(0, 3)) == 0)


crashes = st.lists(st.builds(Crash, st.integers(1, 5), st.booleans()), min_size=2, max_size=6)


class SagaModel:
    """What must come of a plan, given what the journal says about the races inside of its gathers.

    Attributes:
        values: what the body returns, or None if it fails with ``error``.
        undone: keys of compensations in their order; ``failed``: those of the steps that cannot be undone.
    """

    def __init__(self, plan: Plan, ended: list[tuple[str, str]]) -> None:
        self.values: list[int] | None = []
        self.error = ""
        self.status = "completed"
        self.records: dict[str, tuple[str, int]] = {}  # by key: outcome, recorded attempts (0: not known)
        self._ended = ended
        self._completed: list[Part] = []
        for block in plan.blocks:
            error = self._do(block)
            if error and not block.caught:
                break
            if error:
                self.values.append(-1)
            else:
                self.values += [part.number * 10 for part in block.parts]
        else:
            error = "the body" if plan.fails else ""
        if error:
            self.values, self.error = None, error
        self._undo()

    def _do(self, block: Block) -> str:
        """Take the block's steps in the order they ended; return whose failure came first."""
        by_key = {key_of(part): part for part in block.parts}
        first = ""
        order = [(key, outcome) for key, outcome in self._ended if key in by_key]
        assert {key for key, _ in order} == by_key.keys(), "not all steps of a block have come to an end"
        for key, outcome in order:
            part = by_key[key]
            if outcome == "c":
                assert first, "a step was cancelled, but none has failed before it"
                self.records[key] = ("c", 0)
                continue
            assert outcome == ("s" if part.works else "e")
            self.records[key] = (outcome, min(part.fails + 1, part.attempts))
            if part.works:
                self._completed.append(part)
            elif not first:
                first = str(part.number)
        return first

    def _undo(self) -> None:
        undo = [part for part in reversed(self._completed) if part.undo] if self.error else []
        self.undone = [f"{key_of(part)}~undo_it" for part in undo]
        self.failed = tuple(key_of(part) for part in undo if not part.can_be_undone)
        for part in undo:
            outcome = "s" if part.can_be_undone else "e"
            self.records[f"{key_of(part)}~undo_it"] = (outcome, min(part.undo_fails + 1, part.undo))
        if self.error:
            good = len(undo) > len(self.failed)
            self.status = "compensation_failed" if self.failed else "compensated" if good else "failed"


def key_of(part: Part) -> str:
    return f"do_{part.attempts}_{part.undo}:{part.number}"


TAGS = {StepEnded: "s", StepErred: "e", StepStopped: "c"}


def read(stored: Stored) -> list[RunRecord]:
    records = [run_record_codec.decode(data, "a record") for data in stored.records]
    assert len(records) == stored.head.version
    assert [isinstance(r, Started) for r in records] == [True] + [False] * (len(records) - 1)
    last = Attention if stored.head.status == "compensation_failed" else Ended
    assert [isinstance(r, (Ended, Attention)) for r in records] == [False] * (len(records) - 1) + [True]
    assert isinstance(records[-1], last)
    assert (stored.head.closed is not None) == (last is Ended)
    assert stored.head.owner is None
    return records


def outcomes(records: list[RunRecord]) -> list[tuple[str, str]]:
    found = [(r.key, TAGS[type(r)]) for r in records if isinstance(r, (StepEnded, StepErred, StepStopped))]
    assert len(dict(found)) == len(found), "a step has two outcomes"
    return found


def check_effects(records: list[RunRecord], expected: dict[str, tuple[str, int]], lives: Lives) -> None:
    """Effects are the recorded attempts, and once more at most for each incarnation that was lost."""
    assert max(Counter(lives.effects).values(), default=1) == 1, "an incarnation made an attempt twice"
    recorded: dict[str, list[int]] = {}
    for record in records:
        if isinstance(record, (AttemptErred, StepEnded, StepErred)):
            recorded.setdefault(record.key, []).append(record.attempt)
    done: dict[str, set[int]] = {}
    for _, key, attempt in lives.effects:
        done.setdefault(key, set()).add(attempt)
    for key, (outcome, attempts) in expected.items():
        if outcome != "c":
            assert recorded[key] == list(range(1, attempts + 1))
            assert done[key] == set(recorded[key])
            extra = sum(1 for _, k, _ in lives.effects if k == key) - attempts
            assert 0 <= extra <= lives.crashes
    assert done.keys() <= expected.keys()


@pytest.mark.parametrize(("backend", "examples"), [("asyncio", 250), ("trio", 60)])
def test_random_sagas_come_to_the_end_that_the_model_says(backend: str, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(plan=plans(), crashes=crashes, way=st.sampled_from(["execute", "start"]))
    def check(plan: Plan, crashes: list[Crash], way: Any) -> None:
        lives = World.lives = Lives(backend)
        result, stored = lives.run(sagas, random_saga, [plan], crashes, way)
        records = read(stored)
        ended = outcomes(records)
        model = SagaModel(plan, [(key, outcome) for key, outcome in ended if "~" not in key])
        assert dict(ended) == {key: outcome for key, (outcome, _) in model.records.items()}
        assert [key for key, _ in ended if "~" in key] == model.undone
        assert stored.head.status == model.status
        if model.values is not None:
            assert result == model.values
        else:
            assert isinstance(result, Refused)
            assert str(result) == model.error
            cause = result.__cause__
            assert (cause.failed if isinstance(cause, CompensationFailed) else ()) == model.failed
        decisions = [n for n, r in enumerate(records) if isinstance(r, Noted)]
        assert len(decisions) == bool(model.undone)
        check_effects(records, model.records, lives)
        interrupted.append(lives.crashes)

    interrupted: list[int] = []
    check()
    assert sum(interrupted) > examples, "it was hardly ever interrupted"


# ---------------------------------------------------------------- the pipelines
class Node(Struct, frozen=True):
    """A step of a random pipeline, which takes the results of ``needs`` and adds its number.

    Attributes:
        policy: what follows when it fails: ``stop``, ``skip`` or ``handle``.
        condition: None, or whether its ``when=`` says yes.
    """

    number: int
    needs: list[int]
    fails: bool
    policy: str
    condition: bool | None
    pauses: int


@st.composite
def pipelines(draw: st.DrawFn) -> list[Node]:
    nodes = []
    for number in range(draw(st.integers(2, 9))):
        needs = draw(st.lists(st.sampled_from(range(number)), unique=True, max_size=3)) if number else []
        fails = draw(st.integers(0, 3)) == 0
        policy = draw(st.sampled_from(["stop", "skip", "handle"]))
        condition = draw(st.sampled_from([None, None, None, True, False]))
        nodes.append(Node(number, needs, fails, policy, condition, draw(st.integers(0, 2))))
    return draw(st.permutations(nodes))


async def work_at(node: Node, given: list[int]) -> int:
    await pause(node.pauses)
    act(node.fails, node.number)
    await pause(node.pauses)
    return node.number + sum(given)


async def handler(error: Exception) -> int:
    act(0, "")
    return -int(str(error))


def says_yes(x: int) -> bool:
    return x == 1


def says_no(x: int) -> bool:
    return x != 1


def build(nodes: list[Node]) -> tuple[Registry, Any]:
    """Make a pipeline out of functions whose parameters are named like the steps that they need."""
    registry = Registry()
    functions = []
    for node in nodes:
        names = [f"n{need}" for need in node.needs]
        source = f"async def n{node.number}({', '.join(f'{n}: int' for n in (*names, 'x'))}) -> int | None:\n"
        source += f"    return await work_at(node, [{', '.join(names)}])\n"
        space: dict[str, Any] = {"work_at": work_at, "node": node}
        exec(source, space)
        functions.append(space[f"n{node.number}"])
    when = {f"n{n.number}": says_yes if n.condition else says_no for n in nodes if n.condition is not None}
    policies = {f"n{n.number}": handler if n.policy == "handle" else n.policy for n in nodes}
    return registry, registry.pipeline("random", *functions, when=when, on_error=policies)


class PipelineModel:
    """What must come of a pipeline: its steps one after another, in an order that their needs allow.

    Attributes:
        values: by step, of those that have one.
        runs, skipped, handled: keys of steps that run, are noted as skipped, and of handlers.
        stopping: numbers of the steps of which one stops the pipeline.
    """

    def __init__(self, nodes: list[Node]) -> None:
        self.values: dict[int, int] = {}
        self.runs: set[str] = set()
        self.skipped: set[str] = set()
        self.handled: set[str] = set()
        self.stopping: set[str] = set()
        for node in sorted(nodes, key=lambda n: n.number):  # a step needs smaller numbers only
            name = f"n{node.number}"
            if node.condition is False or not all(need in self.values for need in node.needs):
                self.skipped.add(name)
                continue
            self.runs.add(name)
            if not node.fails:
                self.values[node.number] = node.number + sum(self.values[need] for need in node.needs)
            elif node.policy == "handle":
                self.handled.add(f"{name}:handler")
                self.values[node.number] = -node.number
            elif node.policy == "stop":
                self.stopping.add(str(node.number))
        self.result = self.values.get(nodes[-1].number)


@pytest.mark.parametrize(("backend", "examples"), [("asyncio", 250), ("trio", 60)])
def test_random_pipelines_come_to_the_end_that_the_model_says(backend: str, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
    @given(nodes=pipelines(), crashes=crashes, way=st.sampled_from(["execute", "start"]))
    def check(nodes: list[Node], crashes: list[Crash], way: Any) -> None:
        lives = World.lives = Lives(backend)
        registry, definition = build(nodes)
        result, stored = lives.run(registry, definition, [1], crashes, way)
        model = PipelineModel(nodes)
        records = read(stored)
        ended = dict(outcomes(records))
        skipped = [r.key.removeprefix(SKIPPED) for r in records if isinstance(r, Noted)]
        assert len(set(skipped)) == len(skipped)
        if model.stopping:
            assert stored.head.status == "failed"
            assert isinstance(result, Refused)
            assert str(result) in model.stopping
            assert ended.keys() <= model.runs | model.handled
            assert set(skipped) <= model.skipped
        else:
            assert stored.head.status == "completed"
            assert result == model.result
            assert ended.keys() == model.runs | model.handled
            assert set(skipped) == model.skipped
        check_effects(records, {key: (outcome, 1) for key, outcome in ended.items()}, lives)
        check_order(nodes, records)
        interrupted.append(lives.crashes)

    interrupted: list[int] = []
    check()
    assert sum(interrupted) > examples, "it was hardly ever interrupted"


def check_order(nodes: list[Node], records: list[RunRecord]) -> None:
    """A step ends only after all that it needs has a value."""
    seen: set[str] = set()
    for record in records:
        if isinstance(record, (StepEnded, StepErred)):
            name = record.key.partition(":")[0]
            if ":" not in record.key:
                needs = {f"n{need}" for need in nodes_by_name(nodes)[name].needs}
                assert needs <= seen
            if isinstance(record, StepEnded):
                seen.add(name)


def nodes_by_name(nodes: list[Node]) -> dict[str, Node]:
    return {f"n{node.number}": node for node in nodes}
