"""A machine's class stays the user's class; its events keep their arguments and results."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import assert_type

from flowlet import (
    Flowlet,
    Registry,
    Transition,
    all_of,
    any_of,
    can,
    fire,
    guard,
    in_state,
    not_,
    raise_event,
    state,
    states_of,
    transition,
)

flow = Flowlet("memory://")
registry = Registry()


@flow.machine
@dataclass
class Order:
    total: int = 0

    @state(initial=True)
    class Draft: ...

    @state
    class Confirmed: ...

    @state(final=True)
    class Shipped: ...

    @guard
    async def can_confirm(self) -> bool:
        return self.total > 0

    @guard
    def is_large(self) -> bool:
        return self.total > 100

    @transition(Draft, Confirmed)
    async def confirm(self, by: str) -> str:
        raise_event(self.ship)
        raise_event(self.confirm, by="ann")
        raise_event(self.confirm, by="ann", after=1.5)
        raise_event(self, "confirm", by="ann")
        raise_event(self, "confirm", by="ann", after=timedelta(days=1))
        raise_event(self, 3)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
        raise_event(self.confirm, by=1)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
        return by

    @transition(Confirmed, Shipped, guard=all_of("is_large", any_of(is_large, not_(lambda order: order.total > 9))))
    async def ship(self) -> int:
        return 1

    async def on_transition(self, t: Transition) -> None:
        assert_type(t.event, str)
        assert_type(t.version, int)
        assert_type(t.actor, str | None)


@registry.machine(name="lamp", version=2, on_conflict="retry")
class Lamp:
    @state(initial=True)
    class Off: ...

    @state
    class On: ...

    @transition(Off, On)
    async def press(self, finger: int) -> None: ...

    @transition(On, Off)
    async def release(self) -> None: ...


async def events_keep_their_signatures(order: Order, lamp: Lamp) -> None:
    assert_type(Order(total=1), Order)
    assert_type(order.total, int)
    assert_type(await order.confirm(by="ann"), str)
    assert_type(await order.confirm("ann"), str)
    assert_type(await order.ship(), int)
    await lamp.press(1)

    Order(total="1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await order.confirm(by=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await order.confirm()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await order.ship(1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await lamp.press("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await order.confirmed()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]


async def questions_are_typed(order: Order) -> None:
    assert_type(await can(order.confirm, by="bob"), bool)
    assert_type(await can(order.ship), bool)
    assert_type(in_state(order, Order.Draft, "Confirmed"), bool)
    await fire(order, "confirm", by="bob")

    await can(order.confirm, by=1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await can(order.confirm)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await can(order.is_large)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    in_state(order, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def machines_on_a_store() -> None:
    async with flow as entered:
        assert_type(entered, Flowlet)
        assert_type(await flow.create(Order(total=120), id="o-1"), Order)
        assert_type(await flow.create(Order, id="o-2", total=3), Order)
        assert_type(await flow.load(Order, "o-1"), Order)
        async for t in flow.history("o-1"):
            assert_type(t, Transition)
        await flow.load(Order, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        await flow.load("Order", "o-1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@flow.machine(initial="Off")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportUntypedClassDecorator]
class Unknown: ...


@flow.machine(allow={"dead_end"})
class Player:
    @state(initial=True)
    class Off: ...

    @state(parallel=True)
    class On:
        @state(default="On.Sound.Loud")
        class Sound:
            @state(history="deep")
            class Last: ...

            @state
            class Loud: ...

        @state(invoke="watch")
        class Picture: ...

    async def watch(self) -> int:
        return 1

    @transition(Off, [On.Sound.Loud, On.Picture])
    async def on(self) -> None: ...

    @transition(On, Off, after=timedelta(hours=3))
    @transition(On.Picture, Off, done=True)
    async def off(self) -> None: ...

    @transition(On, On.Sound.Last, internal=True)
    async def again(self) -> None: ...


async def states(player: Player) -> None:
    assert_type(states_of(player), tuple[str, ...])
    assert_type(await flow.verify(Player, "p-1"), int)
