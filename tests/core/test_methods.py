"""Steps that are methods: of a saga's own class, and of any other object."""

from __future__ import annotations

import pytest

from flowlet import Flowlet, Registry, compensate, provided, step
from flowlet.errors import DecodeError, DefinitionError, RunError

pytestmark = pytest.mark.anyio


class Gateway:
    """An existing service, marked where it stands."""

    def __init__(self) -> None:
        self.log: list[str] = []

    @step
    async def charge(self, amount: int) -> str:
        self.log.append(f"charge {amount}")
        return f"payment of {amount}"

    @compensate(charge)
    async def refund(self, amount: int, charge: str) -> None:
        self.log.append(f"refund {charge}")

    @step
    async def ship(self, charge: str) -> str:
        if "13" in charge:
            raise RuntimeError(charge)
        return f"label for {charge}"


async def test_a_body_calls_the_marked_methods_of_another_object() -> None:
    registry, gateway = Registry(), Gateway()

    @registry.saga
    async def buy(amount: int, service: Gateway = provided) -> str:
        return await service.ship(await service.charge(amount))

    flow = Flowlet(registry=registry)
    flow.provide(Gateway, gateway)
    async with flow:
        assert await flow.execute(buy, 5, id="r") == "label for payment of 5"
        assert list((await flow.handle("r").report()).steps) == ["charge", "ship"]
        with pytest.raises(RuntimeError):
            await flow.execute(buy, 13)
    assert gateway.log == ["charge 5", "charge 13", "refund payment of 13"]


async def test_marked_methods_of_an_object_can_be_assembled() -> None:
    registry, gateway = Registry(), Gateway()
    buy = registry.saga("buy", gateway.charge, gateway.ship)
    walk = registry.pipeline("walk", gateway.ship)
    async with Flowlet(registry=registry) as flow:
        assert await buy(5) == "label for payment of 5"
        assert await walk("x") == "label for x"
        with pytest.raises(RuntimeError):
            await flow.execute(buy, 13)
    assert gateway.log[-1] == "refund payment of 13"


def test_a_method_without_its_object_is_a_fault() -> None:
    with pytest.raises(DefinitionError, match=r"step 'charge' is a method; list it as that of an object"):
        Registry().saga("buy", Gateway.charge, Gateway.ship)


def test_overriding_a_step_without_the_mark_is_a_fault() -> None:
    class Buy:
        @step
        async def charge(self, amount: int) -> int:
            return amount

        async def __call__(self, amount: int) -> int:
            return await self.charge(amount)

    class Better(Buy):
        async def charge(self, amount: int) -> int:
            return amount + 1

    with pytest.raises(DefinitionError, match=r"Better\.charge: overrides a step without @step"):
        Registry().saga(Better)


@pytest.mark.parametrize("name", ["", "a#2", "a:b", "a~b", "a/b", 3])
def test_a_step_may_not_be_named_like_a_key(name: str) -> None:
    with pytest.raises(DefinitionError, match="a step's name is a text without"):

        @step(name=name)
        async def charge(amount: int) -> int:
            return amount


@pytest.mark.parametrize("wrong", [3, "", "a~b"])
async def test_a_key_must_be_a_text(wrong: object) -> None:
    registry = Registry()

    @step(key=lambda amount: wrong)  # type: ignore[arg-type,return-value]
    async def charge(amount: int) -> int:
        return amount

    @registry.saga
    async def buy(amount: int) -> int:
        return await charge(amount)

    async with Flowlet(registry=registry) as flow:
        with pytest.raises(RunError, match="key= of step 'charge' must return a text"):
            await flow.execute(buy, 1)


async def test_an_argument_of_another_type_is_refused_before_the_effect() -> None:
    registry, log = Registry(), []

    @step
    async def charge(amount: int) -> str:
        log.append(amount)
        return "paid"

    @registry.saga
    async def buy(amount: float) -> str:
        return await charge(amount)  # type: ignore[arg-type]  # the mistake

    async with Flowlet(registry=registry) as flow:
        with pytest.raises(DecodeError, match="argument 'amount' of 'charge'"):
            await flow.execute(buy, 5.5, id="r")
        assert await flow.handle("r").status() == "failed"
    assert log == []
