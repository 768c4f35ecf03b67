"""Step definitions: binding, calling, encoding, and what a compensation is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from flowlet import Retry, Run, compensate, provided, step
from flowlet.core.faults import Faults
from flowlet.core.marks import step_mark
from flowlet.core.steps import ERROR, RESULT, StepDefinition, build_step, digest, plain_mark
from flowlet.errors import DecodeError, EncodeError


class Order(msgspec.Struct):
    id: str
    total: int = 0


def build(function: Callable[..., Any], *, method: bool = False) -> StepDefinition:
    faults = Faults()
    found = build_step(plain_mark(function), {}, faults, method=method)
    assert faults.problems == []
    assert found is not None
    return found


def problems(function: Callable[..., Any], *, method: bool = False) -> list[str]:
    faults = Faults()
    assert build_step(plain_mark(function), {}, faults, method=method) is None
    return faults.problems


async def ship(order: Order, fast: bool = False, *, to: str = "home") -> str:
    return f"{order.id} {fast} {to}"


def test_binding_fills_in_defaults_in_the_order_of_the_parameters() -> None:
    definition = build(ship)
    order = Order("o")
    assert definition.bind((order,), {}) == (order, False, "home")
    assert definition.bind((), {"to": "work", "order": order}) == (order, False, "work")
    assert definition.bind((order, True), {"to": "work"}) == (order, True, "work")


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2, 3), {}), ((1,), {"order": 2}), ((1,), {"too": "work"})])
def test_binding_complains_as_python_does(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        build(ship).bind(args, kwargs)


@pytest.mark.anyio
async def test_calling_passes_inputs_and_provided_values_where_they_belong() -> None:
    async def mixed(a: int, run: Run = provided, b: int = 2, *, c: int) -> list[Any]:
        return [a, run, b, c]

    definition = build(mixed)
    assert [p.name for p in definition.inputs] == ["a", "b", "c"]
    assert await definition.call(None, (1, 20, 3), {"run": "the run"}) == [1, "the run", 20, 3]
    assert await build(ship).call(None, (Order("o"), True, "work"), None) == "o True work"


@pytest.mark.anyio
async def test_calling_a_method_passes_the_owner_first() -> None:
    class Shop:
        async def sell(self, sku: str) -> str:
            return f"{type(self).__name__} {sku}"

    assert await build(Shop.sell, method=True).call(Shop(), ("pen",), None) == "Shop pen"


def test_equal_inputs_have_equal_bytes() -> None:
    async def take(d: dict[str, int], s: set[int]) -> None: ...

    definition = build(take)
    one = definition.exchange_input(({"a": 1, "b": 2}, {1, 2, 300}))[0]
    assert one == definition.exchange_input(({"b": 2, "a": 1}, {300, 2, 1}))[0]
    assert definition.input.decode(one, "it") == ({"a": 1, "b": 2}, {1, 2, 300})


def test_an_argument_that_cannot_be_stored_names_the_step() -> None:
    with pytest.raises(EncodeError, match=r"an argument of 'ship' cannot be stored.*`provided`"):
        build(ship).exchange_input((object(), False, "home"))


def test_a_result_of_another_shape_names_the_step() -> None:
    async def count() -> int:
        return 1

    async def nothing() -> None: ...

    assert build(count).decode(b"\x01") == 1
    assert build(nothing).decode(b"\xc0") is None
    with pytest.raises(DecodeError, match="the result of step 'count' does not decode to int"):
        build(count).decode(b"\xc0")
    with pytest.raises(DecodeError, match="the result of step 'nothing'"):
        build(nothing).decode(b"\x01")


def test_a_digest_is_the_input_itself_while_it_is_short() -> None:
    assert digest(b"short") == b"short"
    long = digest(b"x" * 1000)
    assert len(long) == 16
    assert long != digest(b"x" * 1001)
    assert digest(b"x" * 32) == b"x" * 32
    assert len(digest(b"x" * 33)) == 16


def test_what_the_mark_said_is_taken_over() -> None:
    policy = Retry(attempts=4)

    @step(name="other", retry=policy, timeout=2, key=str)
    async def one(n: int) -> int:
        return n

    definition = build(one)
    assert (definition.name, definition.retry, definition.timeout) == ("other", policy, 2.0)
    assert definition.key is not None
    assert definition.key(3) == "3"
    assert not definition.plain  # a timeout is more than awaiting the function


@pytest.mark.parametrize("plain", [True, False])
def test_only_the_simplest_step_is_plain(plain: bool) -> None:
    async def simple(n: int) -> int:
        return n

    async def with_run(n: int, run: Run = provided) -> int:
        return n

    async def with_keyword(*, n: int) -> int:
        return n

    def sync(n: int) -> int:
        return n

    if plain:
        assert build(simple).plain
    else:
        assert not any(build(f).plain for f in (with_run, with_keyword, sync))


# ------------------------------------------------------------------ compensations
@step
async def charge(order: Order, amount: int) -> str:
    return "payment"


@compensate(charge, retry=2, timeout=3)
async def refund(error: Exception, charge: str, amount: int, run: Run = provided, note: str = "sorry") -> None: ...


def test_a_compensation_is_given_arguments_the_result_and_the_error_by_name() -> None:
    compensation = build(charge).compensation
    assert compensation is not None
    assert compensation.sources == (ERROR, RESULT, 1)
    assert [p.name for p in compensation.step.inputs] == ["error", "charge", "amount"]
    assert [p.name for p in compensation.step.providers] == ["run"]
    assert (compensation.step.name, compensation.step.timeout) == ("refund", 3.0)
    assert compensation.step.retry is not None
    assert compensation.step.retry.attempts == 2


def test_a_renamed_step_is_known_to_its_compensation_by_both_names() -> None:
    @step(name="pay")
    async def charge() -> str:
        return ""

    @compensate(charge)
    async def by_name(pay: str) -> None: ...

    @step(name="pay")
    async def charge2() -> str:
        return ""

    @compensate(charge2)
    async def by_function(charge2: str) -> None: ...

    for function in (charge, charge2):
        compensation = build(function).compensation
        assert compensation is not None
        assert compensation.sources == (RESULT,)


def test_a_parameter_that_nothing_provides_is_a_fault_with_the_nearest_name() -> None:
    @step
    async def reserve(order: Order) -> int:
        return 1

    @compensate(reserve)
    async def release(oder: Order) -> None: ...

    assert problems(reserve) == [
        "release: parameter 'oder' is provided by nothing; a compensation of 'reserve' may take order, reserve, error; "
        "did you mean 'order'?"
    ]


def test_two_compensations_of_one_step_are_a_fault() -> None:
    @step
    async def reserve() -> int:
        return 1

    @compensate(reserve)
    async def release() -> None: ...

    @compensate(reserve)
    async def drop() -> None: ...

    assert problems(reserve) == ["reserve: has 2 compensations (release, drop); keep one"]


def test_faults_of_a_step_are_reported_together() -> None:
    def loose(a, b: Any, c: object = None, *more: int):  # type: ignore[no-untyped-def]
        return a

    found = problems(loose)
    assert found[0] == "loose: a step takes *args or **kwargs; name its parameters, so that they can be recorded"
    assert found[1].startswith("loose: its result has no annotation")
    assert found[2].startswith("loose: parameter 'a' has no annotation")
    assert found[3].startswith("loose: parameter 'b' is annotated Any")


def test_a_provided_parameter_without_annotation_is_a_fault() -> None:
    async def loose(gateway=provided) -> None: ...  # type: ignore[no-untyped-def]

    assert problems(loose) == [
        "loose: provided parameter 'gateway' has no annotation to choose its value by",
    ]


def test_a_generator_is_no_step() -> None:
    async def many() -> list[int]:  # type: ignore[misc]
        yield 1

    def few() -> list[int]:  # type: ignore[misc]
        yield 1

    for function in (many, few):
        assert problems(function) == [f"{function.__name__}: is a generator; a step returns one value, such as a list"]


def test_an_unmarked_function_gets_the_mark_of_a_bare_step() -> None:
    mark = plain_mark(ship)
    assert (mark.name, mark.function, mark.is_async, mark.retry) == ("ship", ship, True, None)
    assert plain_mark(charge) is step_mark(charge)
