"""Observers are functions of an event, or objects that say what they want to be told."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, assert_type

from msgspec import Struct

from flowlet import Flowlet, Secret, step
from flowlet.observing import AttemptBegan, Event, Observer, StepEnded, Work


class Watching(Observer):
    def tell(self, event: Event) -> None:
        match event:
            case StepEnded():
                assert_type(event.seconds, float)
                assert_type(event.step, str)
            case _:
                pass

    def around(self, work: Work) -> AbstractContextManager[None] | None:
        return nullcontext() if isinstance(work, AttemptBegan) else None


def note(event: Event) -> None: ...


def misled(event: int) -> None: ...


Flowlet(observers=(Watching(), note, print))
Flowlet(observers=[Observer()])
Flowlet(observers=note)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
Flowlet(observers=(misled,))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class Card(Struct):
    number: Annotated[str, Secret]


@step
async def charge(card: Card, pin: Annotated[str, Secret]) -> Annotated[str, Secret]:
    assert_type(card.number, str)
    return pin


async def main() -> None:
    assert_type(await charge(Card("4111"), "0000"), str)
