"""Definitions whose histories are kept in this folder, one file for each format of history there has been.

They stay as they are: what is kept was written by them. What a later format can record is added in definitions of its
own.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Any

from msgspec import Struct

from flowlet import Registry, Retry, Run, compensate, gather, level, provided, raise_event, state, step, transition

registry = Registry()
effects: list[str] = []
"""What has been done by this process."""

broken: set[str] = set()
"""What fails now."""

YEARS = timedelta(days=36_500)


def do(what: str) -> None:
    effects.append(what)
    if what in broken:
        raise RuntimeError(f"{what} is broken")


# ---------------------------------------------------------------- a machine with all that its records can say
@registry.machine
@dataclass
class Parcel:
    weight: int = 0
    remarks: list[str] | None = None

    @state(initial=True)
    class Packed: ...

    @state(parallel=True)
    class Travelling:
        @state
        class Goods:
            @state(initial=True)
            class Moving: ...

            @state(final=True)
            class Handed: ...

        @state
        class Papers:
            @state(initial=True)
            class Open: ...

            @state(final=True)
            class Signed: ...

        @state(history="deep")
        class Before: ...

    @state
    class Lost: ...

    @state(final=True)
    class Delivered: ...

    @transition(Packed, Travelling)
    async def send(self, by: str) -> str:
        self.weight += 1
        return f"sent by {by}"

    @transition(Travelling.Goods.Moving, Travelling.Goods.Handed)
    async def hand_over(self) -> None:
        raise_event(self.sign)

    @transition(Travelling.Papers.Open, Travelling.Papers.Signed)
    async def sign(self) -> None: ...

    @transition(Travelling, Delivered, done=True)
    async def arrive(self) -> None: ...

    @transition(Travelling, Lost, after=YEARS)
    async def give_up(self) -> None: ...

    @transition(Travelling, Lost)
    async def lose(self) -> None:
        self.remarks = ["lost"]

    @transition(Lost, Travelling.Before)
    async def find(self) -> None: ...

    async def on_enter_lost(self) -> None:
        self.weight += 10


# ---------------------------------------------------------------- sagas
class Item(Struct):
    name: str
    price: float


@step(retry=Retry(attempts=3, wait=0.01))
async def reserve(item: Item) -> str:
    do(f"reserve {item.name}")
    return f"place of {item.name}"


@compensate(reserve)
async def free(reserve: str) -> None:
    do(f"free {reserve}")


@step
async def charge(item: Item) -> float:
    do(f"charge {item.name}")
    return item.price


@compensate(charge)
async def refund(charge: float) -> None:
    do(f"refund {charge}")


@step
async def ship(place: str, price: float) -> str:
    do(f"ship from {place}")
    return f"shipped from {place} for {price}"


@registry.saga
async def order(item: Item) -> str:
    place, price = await gather(reserve(item), charge(item))
    return await ship(place, price)


@step(at_most_once=True)
async def announce(name: str) -> None:
    do(f"announce {name}")


@registry.saga
async def wait_for_payment(item: Item, run: Run = provided) -> str:
    await announce(item.name)
    place = await reserve(item)
    await run.publish("place", place)
    await run.sleep(0.01)
    paid = await run.receive("payment", type=float, timeout=YEARS)
    if paid < item.price:
        raise ValueError("too little")
    return await ship(place, paid)


@registry.saga
async def wait_for_child(item: Item) -> str:
    return "child: " + await wait_for_payment(item)


# ---------------------------------------------------------------- a pipeline, a graph, an approval chain
async def split(text: str) -> list[str]:
    return text.split()


async def measure(split: str) -> int:
    do(f"measure {split}")
    return len(split)


async def add(measure: list[int]) -> int:
    do("add")
    return sum(measure)


measured = registry.pipeline("measured", split, measure, add, each={measure: "split"}, on_error={measure: "skip"})


class Draft(Struct):
    text: str
    remarks: Annotated[list[str], operator.add] = []
    good: bool = False


class Verdict(Struct):
    good: bool
    remark: str


review = registry.graph("review", state=Draft)


@review.node
async def write(draft: Draft) -> dict[str, Any]:
    do(f"write {len(draft.remarks)}")
    return {"text": f"version {len(draft.remarks)}"}


@review.node
async def publish(text: str) -> None:
    do(f"publish {text}")


review.pause("editor", type=Verdict, merge=lambda s, v: {"remarks": [v.remark], "good": v.good})
review.entry(write)
review.edge(write, "editor")
review.edge("editor", write, when=lambda draft: not draft.good)
review.edge("editor", publish, otherwise=True)
review.final(publish)

expense = registry.approval(
    "expense",
    level("manager", role="manager", timeout=YEARS, escalate_to="director"),
    level("finance", role="finance", quorum=2),
    type=Item,
)


# ---------------------------------------------------------------- a schedule, a bulk operation
@registry.every(timedelta(days=36_500))
@registry.saga
async def clean() -> None:
    do("clean")


async def letter(number: int) -> int:
    do(f"letter {number}")
    return number * 2
