"""Every interpreter on an engine that suspends at every wait and compares starts by position."""

from __future__ import annotations

import importlib
import random
from collections import Counter
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct
from strict_engine import NotTheSame, StrictRun

from flowlet import Flowlet, Registry, Retry, Run, compensate, current_run, gather, in_state, provided, step

pytestmark = pytest.mark.anyio

SEEDS = range(12)


class Slip(Struct):
    step: str
    number: int


class Refused(Exception):
    """What failing steps raise."""


class World:
    """What the steps did, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def do(self, number: int = 0) -> Slip:
        key = current_run().idempotency_key.partition("/")[2]
        self.done.append(key)
        return Slip(key, number)


registry = Registry()


# ---------------------------------------------------------------- steps
@step
async def first(number: int, world: World = provided) -> Slip:
    return world.do(number)


@compensate(first)
async def undo_first(first: Slip, error: Exception, world: World = provided) -> None:
    assert isinstance(error, Refused)
    world.do(first.number)


@step
async def second(number: int, first: Slip, run: Run = provided, world: World = provided) -> Slip:
    assert run.idempotency_key.endswith("/" + first.step.replace("first", "second"))
    return world.do(number + first.number)


@compensate(second)
async def undo_second(number: int, world: World = provided) -> None:
    world.do(number)
    raise LookupError("cannot be undone")


@step(retry=Retry(attempts=4, wait=0))
async def third(number: int, second: Slip, world: World = provided) -> Slip:
    slip = world.do(number)
    if current_run().attempt < 3:
        raise Refused("not yet")
    return slip


@compensate(third, retry=Retry(attempts=2, wait=0))
async def undo_third(number: int, world: World = provided) -> None:
    world.do(number)
    if current_run().attempt < 2:
        raise Refused("not yet")


@step
async def refuse(number: int, world: World = provided) -> Slip:
    world.do(number)
    raise Refused("no", number)


@step
async def side(number: int, world: World = provided) -> Slip:
    return world.do(number)


@compensate(side)
async def undo_side(number: int, side: Slip, world: World = provided) -> None:
    assert side.number == number
    world.do(number)


@step(key=lambda name: name)
async def named(name: str, world: World = provided) -> str:
    world.do()
    return name


# ---------------------------------------------------------------- definitions
@registry.saga
async def sequence(number: int, run: Run = provided) -> Slip:
    slip = await first(number)
    slip = await second(slip.number, slip)
    if run.random() < 2:
        slip = await third(number, slip)
    for _ in range(3):
        slip = await side(slip.number + 1)
    return slip


@registry.saga
async def failing(number: int) -> Slip:
    slip = await first(number)
    slip = await second(number, slip)
    await third(number, slip)
    await side(1)
    return await refuse(number)


@registry.saga
async def catching(number: int) -> list[str]:
    names = [(await side(number)).step]
    try:
        await refuse(number)
    except Refused as error:
        names.append(str(error.args[1]))
    try:
        await gather(side(1), refuse(2), side(3))
    except Refused:
        names.append(await named("caught"))
    return names


@registry.saga
async def gathering(number: int) -> list[str]:
    await first(number)
    slips = await gather(side(1), side(2), first(3), named("x"), named("y"))
    more = await gather(*(side(n) for n in range(4)))
    return [str(slip) for slip in (*slips, *more)]


@registry.saga
async def failing_in_gather(number: int) -> Slip:
    await first(number)
    await gather(side(1), side(2))
    slips = await gather(side(3), refuse(4), side(5), first(6))
    return slips[0]


@registry.saga
async def failing_by_itself(number: int) -> Slip:
    await first(number)
    await gather(side(1), side(2))
    raise Refused("the body has seen enough")


@registry.saga
class Classy:
    def __init__(self, world: World = provided) -> None:
        self.world = world
        self.steps = 0

    @step
    async def cut(self, number: int) -> Slip:
        return self.world.do(number)

    @compensate(cut)
    async def burn(self, cut: Slip) -> None:
        self.world.do(cut.number)

    @step
    async def sew(self, number: int) -> Slip:
        return self.world.do(number)

    @compensate(sew)
    async def rip(self, number: int) -> None:
        self.world.do(number)

    async def __call__(self, number: int) -> Slip:
        self.steps += 1
        await self.cut(number)
        self.steps += 1
        slips = await gather(self.sew(number), self.sew(2), side(3))
        assert self.steps == 2
        if number > 5:
            await refuse(number)
        return slips[1]


assembled = registry.saga("assembled", first, second, third)
assembled_failing = registry.saga("assembled_failing", first, second, third, refuse)


def count(first: Slip) -> int:  # a plain def, called in a worker thread where there is one
    return first.number


async def left(count: int, world: World = provided) -> Slip:
    return world.do(count)


async def right(first: Slip, world: World = provided) -> Slip:
    return world.do(first.number)


async def guess(first: Slip, world: World = provided) -> Slip:
    world.do()
    raise Refused("no idea")


async def guess_instead(error: Exception) -> Slip:
    assert isinstance(error, Refused)
    return Slip("instead", 0)


async def extra(count: int, world: World = provided) -> Slip:
    return world.do()


async def after_extra(extra: Slip, world: World = provided) -> Slip:
    return world.do()


async def join(left: Slip, right: Slip, guess: Slip, world: World = provided) -> Slip:
    assert guess.step in ("instead", "guess")
    return world.do(left.number + right.number)


def plain_first(number: int, world: World = provided) -> Slip:
    return world.do(number)


plain_first.__name__ = "first"
PARTS = (plain_first, count, left, right, guess, extra, after_extra, join)
pipeline = registry.pipeline(
    "pipeline", *PARTS, when={"extra": lambda count: count > 100}, on_error={"guess": guess_instead}
)
pipeline_with_all = registry.pipeline(
    "pipeline_with_all", *PARTS, when={"extra": lambda number: True}, on_error={"guess": guess_instead}
)
pipeline_skipping = registry.pipeline("pipeline_skipping", *PARTS, on_error="skip")
pipeline_stopping = registry.pipeline("pipeline_stopping", *PARTS)

Undo = dict[str, str]
UNDO = {"first": "undo_first", "second": "undo_second", "third": "undo_third", "side": "undo_side"}
UNDO_CLASSY = {"cut": "burn", "sew": "rip", **UNDO}


def expect_undone(world: World, run: StrictRun, undo: Undo) -> None:
    """Each step that ended and can be undone was undone once, after all others, in reverse of the answers."""
    journal = run.journal
    keys = [start[1] if start[0] == "step" else None for start in journal.started]
    ended = [keys[start - 1] for start in journal.answers if journal.outcomes[start][0] == "ok"]
    forward = [key for key in ended if key is not None and "~" not in key]
    expected = [f"{k}~{undo[name]}" for k in reversed(forward) if (name := k.partition("#")[0]) in undo]
    done = list(dict.fromkeys(key for key in world.done if "~" in key))
    assert done == expected
    assert not any("~" not in key for key in world.done[world.done.index(done[0]) :])
    assert sorted(run.undone.steps + run.undone.failed) == sorted(key.partition("~")[0] for key in done)


CASES: list[tuple[Callable[..., Any], int, Undo | None]] = [
    (sequence, 1, None),
    (failing, 1, UNDO),
    (catching, 1, None),
    (gathering, 1, None),
    (failing_in_gather, 1, UNDO),
    (failing_by_itself, 1, UNDO),
    (Classy, 1, None),
    (Classy, 9, UNDO_CLASSY),
    (assembled, 1, None),
    (assembled_failing, 1, UNDO),
    (pipeline, 7, None),
    (pipeline_with_all, 7, None),
    (pipeline_skipping, 7, None),
    (pipeline_stopping, 7, {}),
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("definition", "number", "undo"), CASES, ids=lambda v: getattr(v, "__name__", None))
async def test_every_interpreter_replays_from_every_wait(
    definition: Callable[..., Any], number: int, undo: Undo | None, seed: int
) -> None:
    world = World()
    run = StrictRun(definition, number, dice=random.Random(seed), provide=lambda annotation: {World: world}[annotation])
    strict = await outcome_of(run.result())
    journal = run.journal
    assert journal.replays == len(journal.answers) + 1, "it did not suspend at every wait"
    assert (undo is None) == (not isinstance(strict, Exception))
    if undo:
        expect_undone(world, run, undo)
    done = world.done.copy()
    again = await outcome_of(run.result())  # once more, all of it from the journal
    assert (repr(again), world.done) == (repr(strict), done), "a replay made an effect, or came to another end"
    # The local engine, which does not suspend, comes to the same end; what it cancelled may differ.
    world.done.clear()
    local = await run_locally(definition, number, world)
    assert (type(local), str(local)) == (type(strict), str(strict))
    stopped = {start[1] for start in journal.started if start[0] == "step"} - set(done)
    if not stopped and "cancel" not in {start[0] for start in journal.started}:
        assert Counter(world.done) == Counter(done)


async def run_locally(definition: Callable[..., Any], number: int, world: World) -> Any:
    async with Flowlet(registry=registry) as flow:
        flow.provide(World, world)
        return await outcome_of(flow.execute(definition, number))


async def outcome_of(result: Any) -> Any:
    try:
        return await result
    except Refused as error:
        return error


@pytest.fixture(scope="module")
def orders(root: Path) -> Iterator[Any]:
    """The example, as a module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(root / "examples")
        yield importlib.import_module("orders")


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("card", "sku"), [("tok-1", "LAMP-01"), ("tok-0002", "LAMP-01"), ("tok-1", "SOFA-99")])
async def test_the_example(orders: Any, card: str, sku: str, seed: int, tmp_path: Path) -> None:
    line = orders.Line("o-1", "ann@example.org", sku, 2, Decimal("9.90"), "EUR", card)
    purchase = orders.Purchase("o-1", line.customer, line.currency, card, [line])
    world = orders.World(tmp_path / "effects")
    async with Flowlet(registry=orders.registry) as flow:
        values = {Flowlet: flow, orders.World: world}
        run = StrictRun(orders.checkout, purchase, dice=random.Random(seed), provide=values.__getitem__)
        good = (card, sku) == ("tok-1", "LAMP-01")
        if good:
            assert await run.result() == "label-o-1"
        else:
            with pytest.raises(orders.Refused):
                await run.result()
        order = await flow.load(orders.Order, "o-1")
        assert in_state(order, orders.Order.Shipped if good else orders.Order.Cancelled)
    assert run.journal.replays == len(run.journal.answers) + 1
    assert max(Counter(world.keys()).values()) == 1


# ---------------------------------------------------------------- what does not replay is refused
drifting = {"calls": 0}


@registry.saga
async def drifts(number: int) -> None:
    drifting["calls"] += 1
    await first(number)
    await side(drifting["calls"])


@registry.saga
async def forgets(number: int) -> None:
    drifting["calls"] += 1
    await first(number)
    if drifting["calls"] < 3:
        await side(1)
    await side(2)


@registry.saga
async def reorders(number: int) -> None:
    drifting["calls"] += 1
    calls = [1, 2] if drifting["calls"] % 2 else [2, 1]
    await gather(*(side(n) for n in calls))


@pytest.mark.parametrize("definition", [drifts, forgets, reorders])
async def test_a_body_that_is_not_the_same_is_refused(definition: Callable[..., Any]) -> None:
    drifting["calls"] = 0
    world = World()
    run = StrictRun(definition, 1, dice=random.Random(1), provide=lambda annotation: world)
    with pytest.raises(NotTheSame, match=r"was|ended"):
        await run.result()
