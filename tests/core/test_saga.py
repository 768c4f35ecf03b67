"""Sagas in their three spellings: results, retries' failures, and what is undone with what."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
import msgspec
import pytest

from flowlet import Flowlet, Retry, Run, compensate, gather, provided, step
from flowlet.errors import CompensationFailed, DecodeError, EncodeError, RunError, StepTimeout
from flowlet.store import Store

pytestmark = pytest.mark.anyio


class Order(msgspec.Struct):
    sku: str
    count: int = 1


class Payment(msgspec.Struct):
    id: str
    amounts: list[int] = []


class Declined(Exception):
    pass


@dataclass
class Shop:
    """What the steps of these tests did, in order."""

    log: list[Any] = field(default_factory=list)
    fail: set[str] = field(default_factory=set)

    def do(self, *what: Any) -> None:
        self.log.append(what[0] if len(what) == 1 else what)
        if what[0] in self.fail:
            raise Declined(what[0])


@pytest.fixture
def shop() -> Shop:
    return Shop()


# ------------------------------------------------------------------ three spellings
@pytest.fixture(params=["function", "class", "steps"])
def checkout(request: pytest.FixtureRequest, flow: Flowlet, shop: Shop) -> Any:
    """The same saga, spelled in three ways; its result is the last step's."""
    if request.param == "class":

        @flow.saga
        class Checkout:
            @step
            async def reserve(self, order: Order) -> int:
                shop.do("reserve", order.sku)
                return 7

            @compensate(reserve)
            async def release(self, order: Order, reserve: int) -> None:
                shop.do("release", order.sku, reserve)

            @step
            async def charge(self, order: Order, reserve: int) -> Payment:
                shop.do("charge", reserve)
                return Payment("p", [reserve])

            @compensate(charge)
            async def refund(self, charge: Payment, error: Exception) -> None:
                shop.do("refund", charge.id, str(error))

            @step
            async def ship(self, charge: Payment) -> str:
                shop.do("ship")
                return f"shipped for {charge.id}"

            async def __call__(self, order: Order) -> str:
                return await self.ship(await self.charge(order, await self.reserve(order)))

        return Checkout

    @step
    async def reserve(order: Order) -> int:
        shop.do("reserve", order.sku)
        return 7

    @compensate(reserve)
    async def release(order: Order, reserve: int) -> None:
        shop.do("release", order.sku, reserve)

    @step
    async def charge(order: Order, reserve: int) -> Payment:
        shop.do("charge", reserve)
        return Payment("p", [reserve])

    @compensate(charge)
    async def refund(charge: Payment, error: Exception) -> None:
        shop.do("refund", charge.id, str(error))

    @step
    async def ship(charge: Payment) -> str:
        shop.do("ship")
        return f"shipped for {charge.id}"

    if request.param == "steps":
        return flow.saga("checkout", reserve, charge, ship)

    @flow.saga
    async def checkout(order: Order) -> str:
        return await ship(await charge(order, await reserve(order)))

    return checkout


async def test_it_completes(flow: Flowlet, checkout: Any, shop: Shop) -> None:
    async with flow:
        handle = await flow.start(checkout, Order("pen"), id="c")
        assert await handle.result() == "shipped for p"
        assert await handle.status() == "completed"
        report = await handle.report()
        assert [(s.name, s.value, s.status) for s in report.steps.values()] == [
            ("reserve", 7, "completed"),
            ("charge", Payment("p", [7]), "completed"),
            ("ship", "shipped for p", "completed"),
        ]
    assert shop.log == [("reserve", "pen"), ("charge", 7), "ship"]


async def test_a_failing_step_undoes_the_completed_ones_in_reverse_order(
    flow: Flowlet, checkout: Any, shop: Shop
) -> None:
    shop.fail = {"ship"}
    async with flow:
        handle = await flow.start(checkout, Order("pen"), id="c")
        with pytest.raises(Declined, match="ship") as caught:
            await handle.result()
        assert caught.value.__cause__ is None
        assert await handle.status() == "compensated"
        report = await handle.report()
        assert [(s.name, s.status) for s in report.steps.values()] == [
            ("reserve", "completed"),
            ("charge", "completed"),
            ("ship", "failed"),
            ("charge~refund", "completed"),
            ("reserve~release", "completed"),
        ]
        assert report.steps["ship"].error == "Declined: ship"
        kinds = [r.kind async for r in handle.history()]
    assert shop.log == [("reserve", "pen"), ("charge", 7), "ship", ("refund", "p", "ship"), ("release", "pen", 7)]
    # The decision is a record of its own, before the first compensation.
    assert kinds == [
        "started",
        "step_completed",
        "step_completed",
        "step_failed",
        "compensating",
        "step_completed",
        "step_completed",
        "compensated",
    ]


async def test_nothing_to_undo_is_failed(flow: Flowlet, checkout: Any, shop: Shop) -> None:
    shop.fail = {"reserve"}
    async with flow:
        handle = await flow.start(checkout, Order("pen"))
        with pytest.raises(Declined):
            await handle.result()
        assert await handle.status() == "failed"
        assert [r.kind async for r in handle.history()] == ["started", "step_failed", "failed"]
    assert shop.log == [("reserve", "pen")]


async def test_a_failing_compensation_does_not_stop_the_others(flow: Flowlet, checkout: Any, shop: Shop) -> None:
    shop.fail = {"ship", "refund"}
    async with flow:
        handle = await flow.start(checkout, Order("pen"))
        with pytest.raises(Declined, match="ship") as caught:
            await handle.result()
        assert await handle.status() == "compensation_failed"
    assert shop.log[-2:] == [("refund", "p", "ship"), ("release", "pen", 7)]
    group = caught.value.__cause__
    assert isinstance(group, CompensationFailed)
    assert group.failed == ("charge",)
    assert [str(e) for e in group.exceptions] == ["refund"]


async def test_executed_and_called_directly(flow: Flowlet, checkout: Any, shop: Shop) -> None:
    async with flow:
        assert await flow.execute(checkout, Order("pen")) == "shipped for p"
        call = checkout() if isinstance(checkout, type) else checkout
        assert await call(Order("pen")) == "shipped for p"
        shop.fail = {"ship"}
        with pytest.raises(Declined):
            await call(Order("pen"))
    assert shop.log.count(("refund", "p", "ship")) == 1


def test_run_from_a_plain_script(flow: Flowlet, checkout: Any) -> None:
    assert flow.run(checkout, Order("pen"), id="c") == "shipped for p"
    assert flow.run(checkout, Order("pen"), id="c") == "shipped for p"  # the same run


# ------------------------------------------------------------------ recorded values
async def test_compensations_are_given_the_recorded_values(flow: Flowlet) -> None:
    seen: list[Any] = []

    @step
    async def charge(order: Order) -> Payment:
        return Payment("p", [1])

    @compensate(charge)
    async def refund(order: Order, charge: Payment) -> None:
        seen.append((order, charge))

    @flow.saga
    async def buy(order: Order) -> None:
        payment = await charge(order)
        order.sku = "another"
        order.count = 99
        payment.amounts.append(2)
        raise Declined

    async with flow:
        with pytest.raises(Declined):
            await buy(Order("pen"))
    assert seen == [(Order("pen"), Payment("p", [1]))]


async def test_a_step_does_not_see_what_its_argument_becomes_and_the_caller_not_what_the_step_keeps(
    flow: Flowlet,
) -> None:
    kept: list[Payment] = []

    @step
    async def charge() -> Payment:
        kept.append(Payment("p"))
        return kept[0]

    @flow.saga
    async def buy() -> bool:
        payment = await charge()
        return payment is kept[0]

    async with flow:
        assert await buy() is False  # what a replay would give: a value decoded from the record


async def test_the_error_of_a_compensation_is_the_original_exception(flow: Flowlet) -> None:
    seen: list[BaseException] = []
    original = Declined("no", 51)

    @step
    async def charge() -> int:
        return 1

    @compensate(charge)
    async def refund(error: Declined) -> None:
        seen.append(error)

    @flow.saga
    async def buy() -> None:
        await charge()
        raise original

    async with flow:
        with pytest.raises(Declined) as caught:
            await buy()
    assert caught.value is original
    assert seen == [original]


async def test_failed_compensations_hang_below_the_last_cause(flow: Flowlet) -> None:
    @step
    async def charge() -> int:
        return 1

    @compensate(charge)
    async def refund() -> None:
        raise ValueError("no refund")

    @flow.saga
    async def buy() -> None:
        await charge()
        try:
            raise KeyError("first")
        except KeyError as error:
            raise Declined("second") from error

    async with flow:
        handle = await flow.start(buy, id="b")
        with pytest.raises(Declined) as caught:
            await handle.result()
        first = caught.value.__cause__
        assert isinstance(first, KeyError)
        assert isinstance(first.__cause__, CompensationFailed)
        with pytest.raises(Declined) as later:  # rebuilt from the record
            await flow.handle("b", buy).result()
    group = later.value
    while group.__cause__ is not None:
        group = group.__cause__  # type: ignore[assignment]
    assert isinstance(group, CompensationFailed)
    assert [str(e) for e in group.exceptions] == ["no refund"]


# ------------------------------------------------------------------ order
async def test_steps_of_a_gather_are_undone_in_reverse_order_of_completion(flow: Flowlet) -> None:
    undone: list[str] = []
    first_done, second_done = anyio.Event(), anyio.Event()

    @step
    async def book(name: str, after: str = "") -> str:
        if name == "b":
            await first_done.wait()
            second_done.set()
        elif name == "c":
            first_done.set()
        else:
            await second_done.wait()
        return name

    @compensate(book)
    async def cancel(book: str) -> None:
        undone.append(book)

    @flow.saga
    async def trip() -> None:
        booked = await gather(book("a"), book("b"), book("c"))
        assert booked == ("a", "b", "c")
        raise Declined

    async with flow:
        with pytest.raises(Declined):
            await trip()
    assert undone == ["a", "b", "c"]  # they completed as c, b, a


async def test_a_step_in_a_loop_is_undone_once_per_call_with_its_own_values(flow: Flowlet) -> None:
    undone: list[tuple[int, int]] = []

    @step
    async def take(n: int) -> int:
        return n * 10

    @compensate(take)
    async def give(n: int, take: int) -> None:
        undone.append((n, take))

    @flow.saga
    async def many() -> None:
        for n in range(3):
            await take(n)
        raise Declined

    async with flow:
        handle = await flow.start(many)
        with pytest.raises(Declined):
            await handle.result()
        steps = (await handle.report()).steps
    assert undone == [(2, 20), (1, 10), (0, 0)]
    assert list(steps) == ["take", "take#2", "take#3", "take#3~give", "take#2~give", "take~give"]


async def test_a_caught_failure_undoes_nothing(flow: Flowlet, shop: Shop) -> None:
    @step
    async def charge() -> int:
        return 1

    @compensate(charge)
    async def refund() -> None:
        shop.do("refund")

    @step
    async def ship() -> None:
        raise Declined

    @flow.saga
    async def buy() -> str:
        await charge()
        try:
            await ship()
        except Declined:
            return "kept"
        return "shipped"

    async with flow:
        assert await buy() == "kept"
    assert shop.log == []


async def test_sync_compensations_and_provided_parameters(flow: Flowlet, shop: Shop) -> None:
    flow.provide(Shop, shop)

    @step
    async def charge(amount: int) -> int:
        return 1

    @compensate(charge)
    def refund(amount: int, shop: Shop = provided, run: Run = provided) -> None:
        shop.do("refund", amount, run.idempotency_key)

    @flow.saga
    async def buy() -> None:
        await charge(5)
        raise Declined

    async with flow:
        with pytest.raises(Declined):
            await flow.execute(buy, id="b")
    assert shop.log == [("refund", 5, "b/charge~refund")]


async def test_a_compensation_is_retried_under_its_own_policy(flow: Flowlet, shop: Shop) -> None:
    @step
    async def charge() -> int:
        return 1

    @compensate(charge, retry=Retry(attempts=3, wait=0))
    async def refund(run: Run = provided) -> None:
        shop.do("refund", run.attempt)
        if run.attempt < 3:
            raise OSError("busy")

    @flow.saga
    async def buy() -> None:
        await charge()
        raise Declined

    async with flow:
        handle = await flow.start(buy)
        with pytest.raises(Declined) as caught:
            await handle.result()
        assert await handle.status() == "compensated"
    assert caught.value.__cause__ is None
    assert shop.log == [("refund", 1), ("refund", 2), ("refund", 3)]


async def test_a_compensation_that_takes_too_long_has_failed(flow: Flowlet) -> None:
    @step
    async def charge() -> int:
        return 1

    @compensate(charge, timeout=0)
    async def refund() -> None:
        await anyio.sleep_forever()

    @flow.saga
    async def buy() -> None:
        await charge()
        raise Declined

    async with flow:
        with pytest.raises(Declined) as caught:
            await buy()
    group = caught.value.__cause__
    assert isinstance(group, CompensationFailed)
    assert isinstance(group.exceptions[0], StepTimeout)


async def test_what_a_compensation_returns_does_not_matter(flow: Flowlet) -> None:
    @step
    async def charge() -> int:
        return 1

    @compensate(charge)
    async def refund() -> object:
        return object()

    @flow.saga
    async def buy() -> None:
        await charge()
        raise Declined

    async with flow:
        handle = await flow.start(buy)
        with pytest.raises(Declined) as caught:
            await handle.result()
        assert await handle.status() == "compensated"
    assert caught.value.__cause__ is None


# ------------------------------------------------------------------ bad data
async def test_a_result_that_cannot_be_stored_fails_the_step_without_another_attempt(flow: Flowlet, shop: Shop) -> None:
    @step(retry=5)
    async def charge() -> int:
        shop.do("charge")
        return object()  # type: ignore[return-value]

    @flow.saga
    async def buy() -> int:
        return await charge()

    async with flow:
        handle = await flow.start(buy)
        with pytest.raises(EncodeError, match="the result of step 'charge' cannot be stored"):
            await handle.result()
        assert await handle.status() == "failed"
    assert shop.log == ["charge"]


async def test_a_result_of_another_type_than_annotated_is_a_decode_error_and_what_was_done_is_undone(
    flow: Flowlet, shop: Shop
) -> None:
    @step(retry=5)
    async def charge(amount: int) -> int:
        shop.do("charge")
        return "1"  # type: ignore[return-value]

    @compensate(charge)
    async def refund(amount: int) -> None:
        shop.do("refund", amount)

    @flow.saga
    async def buy() -> int:
        return await charge(3)

    async with flow:
        with pytest.raises(DecodeError, match="the result of step 'charge' does not decode to int"):
            await flow.execute(buy, id="b")
        report = await flow.handle("b").report()
        assert report.status == "compensated"
        assert report.steps["charge"].value == "1"  # what is on record, to see what was wrong with it
    assert shop.log == ["charge", ("refund", 3)]


async def test_an_argument_that_cannot_be_stored_is_an_error_where_the_step_is_called(
    flow: Flowlet, shop: Shop
) -> None:
    @step
    async def charge(what: int) -> int:
        shop.do("charge")
        return 1

    @flow.saga
    async def buy() -> str:
        with pytest.raises(EncodeError, match="an argument of 'charge' cannot be stored"):
            await charge(object())  # type: ignore[arg-type]
        return "went on"

    async with flow:
        assert await buy() == "went on"
    assert shop.log == []


async def test_a_body_whose_result_cannot_be_stored_is_undone(flow: Flowlet, shop: Shop) -> None:
    @step
    async def charge() -> int:
        return 1

    @compensate(charge)
    async def refund() -> None:
        shop.do("refund")

    @flow.saga
    async def buy() -> int:
        await charge()
        return object()  # type: ignore[return-value]

    async with flow:
        with pytest.raises(EncodeError, match="the result of 'buy' cannot be stored"):
            await buy()
    assert shop.log == ["refund"]


async def test_a_body_whose_result_is_of_another_type_is_undone(flow: Flowlet, shop: Shop) -> None:
    @step
    async def charge() -> int:
        return 1

    @compensate(charge)
    async def refund() -> None:
        shop.do("refund")

    @flow.saga
    async def buy() -> int:
        await charge()
        return "receipt"  # type: ignore[return-value]

    async with flow:
        handle = await flow.start(buy)
        with pytest.raises(DecodeError, match="the result of 'buy' does not decode to int"):
            await handle.result()
        assert await handle.status() == "compensated"
    assert shop.log == ["refund"]


async def test_a_call_that_python_would_refuse(flow: Flowlet) -> None:
    @step
    async def charge(amount: int, *, note: str = "") -> int:
        return amount

    @flow.saga
    async def buy() -> int:
        for call in (charge, lambda: charge(1, "x"), lambda: charge(1, nte="x")):  # type: ignore[call-arg, misc]
            with pytest.raises(TypeError):
                await call()
        return await charge(1, note="x") + await charge(amount=2)

    async with flow:
        assert await buy() == 3


# ------------------------------------------------------------------ classes
async def test_a_class_is_built_through_its_providers(flow: Flowlet, shop: Shop) -> None:
    flow.provide(Shop, shop)

    @flow.saga
    class Buy:
        def __init__(self, shop: Shop = provided, note: str = "hi") -> None:
            self.shop = shop
            self.note = note

        @step
        async def charge(self, amount: int) -> int:
            self.shop.do("charge", amount, self.note)
            return amount

        async def __call__(self, amount: int) -> int:
            return await self.charge(amount)

    async with flow:
        handle = await flow.start(Buy, 5)
        assert await handle.result() == 5
        assert await Buy(shop, "yo")(6) == 6  # one's own object is used as it is
    assert shop.log == [("charge", 5, "hi"), ("charge", 6, "yo")]


async def test_providers_of_a_class_may_be_named_by_types_that_only_the_assembling_function_knows(
    flow: Flowlet,
) -> None:
    class Gateway:
        name = "visa"

    flow.provide(Gateway, Gateway())

    @flow.saga
    class Buy:
        def __init__(self, gateway: Gateway = provided) -> None:
            self.gateway = gateway

        async def __call__(self) -> str:
            return self.gateway.name

    async with flow:
        assert await flow.execute(Buy) == "visa"


async def test_a_dataclass_is_a_saga_too(flow: Flowlet, shop: Shop) -> None:
    flow.provide(Shop, shop)

    @flow.saga
    @dataclass
    class Buy:
        shop: Shop = provided

        @step
        async def charge(self, amount: int, run: Run = provided) -> int:
            self.shop.do("charge", run.idempotency_key)
            return amount

        async def __call__(self, amount: int) -> int:
            return await self.charge(amount=amount)

    async with flow:
        assert await flow.execute(Buy, 5, id="b") == 5
    assert shop.log == [("charge", "b/charge")]


async def test_the_body_can_take_the_run_and_provided_values(flow: Flowlet, shop: Shop) -> None:
    flow.provide(Shop, shop)

    @flow.saga
    async def buy(amount: int, run: Run = provided, shop: Shop = provided) -> str:
        shop.do("body", amount)
        return run.idempotency_key

    @flow.saga
    class Sell:
        async def __call__(self, amount: int, run: Run = provided, shop: Shop = provided) -> str:
            shop.do("body", amount)
            return run.id

    async with flow:
        assert await flow.execute(buy, 1, id="b") == "b"
        assert await (await flow.start(Sell, 2, id="s")).result() == "s"
    assert shop.log == [("body", 1), ("body", 2)]


async def test_steps_keep_their_own_keys(flow: Flowlet) -> None:
    @step(key=lambda sku, count: f"{sku}-{count}")
    async def take(sku: str, count: int = 1) -> str:
        return sku

    @flow.saga
    async def buy() -> None:
        await take("pen")
        await take("ink", 2)
        with pytest.raises(RunError, match="step key 'take:pen-1' was used twice"):
            await take("pen")

    async with flow:
        handle = await flow.start(buy)
        await handle.result()
        assert list((await handle.report()).steps) == ["take:pen-1", "take:ink-2"]


async def test_a_saga_of_steps_hands_on_results_by_parameter_name(new_store: Callable[[], Store]) -> None:
    flow = Flowlet(new_store())

    def reserve(sku: str, count: int) -> list[str]:  # plain functions run in a worker thread
        return [sku] * count

    async def price(reserve: list[str], each: float = 1.5) -> float:
        return each * len(reserve)

    @step(name="label")
    async def make_label(price: float, reserve: list[str]) -> str:
        return f"{len(reserve)} for {price}"

    buy = flow.saga("buy", reserve, price, make_label)
    async with flow:
        assert await buy("pen", 2) == "2 for 3.0"
        assert await buy(count=3, sku="pen", each=2.0) == "3 for 6.0"
        with pytest.raises(TypeError):
            await buy("pen")
