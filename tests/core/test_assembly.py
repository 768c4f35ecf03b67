"""Every fault of a saga or pipeline is found at assembly, named, and reported with the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import pytest

from flowlet import Registry, Run, compensate, provided, step
from flowlet.core.definitions import RunDefinition
from flowlet.core.registry import definition_of
from flowlet.errors import DefinitionError

if TYPE_CHECKING:
    from decimal import Decimal


class Gateway: ...


@step
async def reserve(sku: str) -> int:
    return 1


@compensate(reserve)
async def release(sku: str) -> None: ...


@step
async def charge(reserve: int) -> str:
    return "payment"


@step
def count(reserve: int) -> int:
    return reserve


def definition(thing: Any) -> RunDefinition:
    found = definition_of(thing)
    assert isinstance(found, RunDefinition)
    return found


def problems(assemble: Callable[[], Any]) -> tuple[str, ...]:
    with pytest.raises(DefinitionError) as caught:
        assemble()
    assert all(p in str(caught.value) for p in caught.value.problems)
    return caught.value.problems


@pytest.fixture
def registry() -> Registry:
    return Registry()


# ------------------------------------------------------------------ what is built
def test_a_function(registry: Registry) -> None:
    @registry.saga(version=3)
    async def buy(sku: str, count: int = 1, run: Run = provided) -> str:
        return await charge(await reserve(sku))

    found = definition(buy)
    assert (found.kind, found.name, found.version) == ("saga", "buy", "3")
    assert sorted(found.steps) == ["charge", "reserve"]
    assert found.export() == {
        "kind": "saga",
        "name": "buy",
        "version": 3,
        "deadline": None,
        "inputs": ["sku", "count"],
        "steps": [
            {
                "name": "charge",
                "inputs": ["reserve"],
                "needs": [],
                "attempts": 1,
                "timeout": None,
                "compensation": None,
                "pivot": False,
            },
            {
                "name": "reserve",
                "inputs": ["sku"],
                "needs": [],
                "attempts": 1,
                "timeout": None,
                "compensation": "release",
                "pivot": False,
            },
        ],
    }


def test_a_class(registry: Registry) -> None:
    @registry.saga(name="purchase")
    class Buy:
        def __init__(self, gateway: Gateway = provided) -> None:
            self.gateway = gateway

        @step(retry=4, timeout=2.5)
        async def pay(self, sku: str) -> str:
            return sku

        @compensate(pay)
        async def refund(self, pay: str) -> None: ...

        async def __call__(self, sku: str) -> str:
            await reserve(sku)
            return await self.pay(sku)

    found = definition(Buy)
    assert (found.name, found.target) == ("purchase", Buy)
    assert sorted(found.steps) == ["pay", "reserve"]
    exported = {s["name"]: s for s in found.export()["steps"]}
    assert exported["pay"] == {
        "name": "pay",
        "inputs": ["sku"],
        "needs": [],
        "attempts": 4,
        "timeout": 2.5,
        "compensation": "refund",
        "pivot": False,
    }


def test_steps(registry: Registry) -> None:
    found = definition(registry.pipeline("etl", charge, count, cast(Any, undecorated)))
    assert found.kind == "pipeline"
    assert found.export()["inputs"] == ["reserve", "x"]
    found = definition(registry.saga("buy", reserve, charge, count))
    assert found.export()["inputs"] == ["sku"]
    assert [(s["name"], s["needs"]) for s in found.export()["steps"]] == [
        ("reserve", []),
        ("charge", ["reserve"]),
        ("count", ["reserve"]),
    ]


async def undecorated(x: float) -> float:
    return x


def test_a_step_that_assembly_cannot_see_is_found_behind_a_comprehension_and_a_nested_function(
    registry: Registry,
) -> None:
    @registry.saga
    async def buy(sku: str) -> int:
        async def inner() -> int:
            return await reserve(sku)

        return sum([int(await charge(n)) for n in range(2)]) + await inner()

    assert sorted(definition(buy).steps) == ["charge", "reserve"]


def test_an_attribute_named_like_a_step_of_the_module_is_no_use_of_it(registry: Registry) -> None:
    @registry.saga
    class Buy:
        @step(name="own")
        async def reserve(self, sku: str) -> int:
            return 1

        @step
        async def count(self, own: int) -> int:
            return own

        async def __call__(self, sku: str) -> int:
            return await self.count(await self.reserve(sku))

    assert sorted(definition(Buy).steps) == ["count", "own"]


def test_a_subclass_inherits_steps_and_compensations(registry: Registry) -> None:
    class Base:
        @step
        async def pay(self, sku: str) -> str:
            return sku

        @compensate(pay)
        async def refund(self, pay: str) -> None: ...

    @registry.saga
    class Buy(Base):
        async def __call__(self, sku: str) -> str:
            return await self.pay(sku)

    assert definition(Buy).steps["pay"].compensation is not None


# ------------------------------------------------------------------ bodies
def test_a_body_that_is_not_async(registry: Registry) -> None:
    def buy(sku: str) -> str:
        return sku

    assert problems(lambda: registry.saga(buy)) == ("buy: the body of a saga must be an async def",)
    assert problems(lambda: registry.pipeline(buy)) == ("buy: the body of a pipeline must be an async def",)


def test_a_body_that_yields(registry: Registry) -> None:
    async def buy(sku: str) -> str:  # type: ignore[misc]
        yield sku

    assert problems(lambda: registry.saga(buy)) == ("buy: the body of a saga must be an async def",)


def test_a_class_without_a_body(registry: Registry) -> None:
    class Empty: ...

    class Sync:
        def __call__(self) -> None: ...

    assert problems(lambda: registry.saga(Empty)) == (
        "Empty: needs `async def __call__(self, ...)`, the body of the saga",
    )
    assert problems(lambda: registry.saga(Sync)) == (
        "Sync: needs `async def __call__(self, ...)`, the body of the saga",
    )


def test_a_constructor_argument_that_nothing_provides(registry: Registry) -> None:
    class Buy:
        def __init__(self, gateway: Gateway) -> None: ...

        async def __call__(self) -> None: ...

    assert problems(lambda: registry.saga(Buy)) == (
        "Buy: __init__ parameter 'gateway' is provided by nothing; give it `= provided`",
    )


def test_a_compensation_of_something_else_in_a_class(registry: Registry) -> None:
    class Buy:
        async def pay(self) -> str:
            return ""

        @compensate(pay)
        async def refund(self) -> None: ...

        @compensate(reserve)
        async def give_back(self) -> None: ...

        async def __call__(self) -> None: ...

    # undo the note on the module's own step, which other tests use
    mark = cast(Any, reserve).__flowlet_step__
    mark.compensations.pop()
    assert sorted(problems(lambda: registry.saga(Buy))) == [
        "Buy.give_back: compensates reserve, which is no step of the class",
        "Buy.refund: compensates Buy.pay, which is no step of the class",
    ]


def test_a_compensation_of_a_function_that_is_no_step(registry: Registry) -> None:
    def assemble() -> None:
        async def pay(sku: str) -> str:
            return sku

        @compensate(pay)
        async def refund(pay: str) -> None: ...

        @registry.saga
        async def buy(sku: str) -> str:
            return await pay(sku)

    assert problems(assemble) == ("refund: compensates pay, which is no step; mark it with @step",)


def test_a_plain_step_that_a_body_would_have_to_await(registry: Registry) -> None:
    async def buy(sku: str) -> int:
        return count(await reserve(sku))

    class Buy:
        @step
        def count(self) -> int:
            return 1

        async def __call__(self) -> int:
            return self.count()

    text = "is a plain def, which a body cannot await; make it async, or assemble steps under a name"
    assert problems(lambda: registry.saga(buy)) == (f"count: {text}",)
    assert problems(lambda: registry.saga(Buy)) == (f"Buy.count: {text}",)


def test_two_steps_of_one_name_in_a_body(registry: Registry) -> None:
    @step(name="reserve")
    async def book(sku: str) -> int:
        return 1

    async def buy(sku: str) -> int:
        return await reserve(sku) + await book(sku)

    assert problems(lambda: registry.saga(buy)) == (
        "buy: has two steps named 'reserve'; rename one with @step(name=...)",
    )


def test_one_step_under_two_names_of_a_module_is_one_step(registry: Registry) -> None:
    book = reserve

    @registry.saga
    async def buy(sku: str) -> int:
        return await reserve(sku) + await book(sku)

    assert sorted(definition(buy).steps) == ["reserve"]


def test_faults_of_the_body_and_of_its_steps_are_reported_together(registry: Registry) -> None:
    @step
    async def pay(amount: Decimal) -> str:
        return ""

    @step
    async def ship(order: Any) -> str:
        return ""

    async def buy(sku, *more: int) -> str:  # type: ignore[no-untyped-def]
        await pay(sku)
        return await ship(sku)

    found = problems(lambda: registry.saga(buy, version=0))  # type: ignore[call-overload]
    assert found[0] == "buy: version must be a whole number of at least 1, not 0"
    assert any(p.startswith("pay: an annotation cannot be resolved (name 'Decimal'") for p in found)
    assert any(p.startswith("ship: parameter 'order' is annotated Any") for p in found)
    assert any(p.startswith("buy: a step takes *args or **kwargs") for p in found)
    assert any(p.startswith("buy: parameter 'sku' has no annotation") for p in found)


@pytest.mark.parametrize("version", [0, -1, True, "1", 1.0, None])
def test_versions_are_whole_numbers(version: Any, registry: Registry) -> None:
    async def body() -> None: ...

    class Body:
        async def __call__(self) -> None: ...

    sentence = f"version must be a whole number of at least 1, not {version!r}"
    assert problems(lambda: registry.saga(version=version)(body)) == (f"body: {sentence}",)
    assert problems(lambda: registry.saga(version=version)(Body)) == (f"Body: {sentence}",)
    assert problems(lambda: registry.pipeline("p", reserve_plain, version=version)) == (f"p: {sentence}",)
    assert problems(lambda: cast(Any, registry).saga("s", reserve, version=version)) == (f"s: {sentence}",)


async def reserve_plain(sku: str) -> int:
    return 1


def test_a_body_without_result_annotation(registry: Registry) -> None:
    async def body(sku: str):  # type: ignore[no-untyped-def]
        return 1

    assert problems(lambda: registry.saga(body)) == (
        "body: its result has no annotation; annotate it, so that a replay gives back the same type",
    )


@pytest.mark.parametrize("thing", [3, None, object()])
def test_things_that_cannot_be_assembled(thing: Any, registry: Registry) -> None:
    assert problems(lambda: registry.saga(thing)) == (
        f"{thing!r} cannot be a saga: give an async function, a class, or a name and steps",
    )


def test_steps_without_a_name(registry: Registry) -> None:
    assert problems(lambda: cast(Any, registry).saga(reserve, charge)) == (
        'a saga made of steps starts with its name: saga("name", first, second)',
    )
    assert problems(lambda: cast(Any, registry).pipeline(count, charge)) == (
        'a pipeline made of steps starts with its name: pipeline("name", first, second)',
    )


def test_a_name_twice(registry: Registry) -> None:
    registry.saga("buy", reserve)
    sentence = "buy: the name is taken by another definition of version 1; give name= or version="
    assert problems(lambda: registry.saga("buy", reserve)) == (sentence,)
    assert problems(lambda: registry.pipeline("buy", reserve_plain)) == (sentence,)

    async def buy() -> None: ...

    assert problems(lambda: registry.saga(buy)) == (sentence,)
    registry.saga(version=2)(buy)
    registry.saga(name="other")(buy)
    assert [(n, v) for n, v in registry.definitions] == [("buy", "1"), ("buy", "2"), ("other", "1")]


def test_a_faulty_definition_is_not_kept(registry: Registry) -> None:
    problems(lambda: registry.saga("buy", charge, reserve))
    assert registry.definitions == {}


# ------------------------------------------------------------------ pipelines
def test_a_pipeline_undoes_nothing(registry: Registry) -> None:
    sentence = "step 'reserve' has a compensation, but a pipeline undoes nothing; make it a saga"

    async def body(sku: str) -> int:
        return await reserve(sku)

    assert problems(lambda: registry.pipeline("etl", reserve)) == (f"etl: {sentence}",)
    assert problems(lambda: registry.pipeline(body)) == (f"body: {sentence}",)


async def extract(path: str) -> list[int]:
    return []


async def transform(extract: list[int]) -> list[int]:
    return extract


async def load(transform: list[int]) -> int:
    return 0


def etl(registry: Registry, **options: Any) -> Callable[[], Any]:
    return lambda: registry.pipeline("etl", extract, transform, load, **options)


def test_a_condition_for_a_step_that_is_not_there(registry: Registry) -> None:
    assert problems(etl(registry, when={"transfrom": lambda: True})) == (
        "etl: when= names 'transfrom', which is no step of it; did you mean 'transform'?",
    )
    assert problems(etl(registry, when={reserve: lambda: True})) == (
        "etl: when= names 'reserve', which is no step of it",
    )


def test_a_condition_that_takes_what_nothing_provides(registry: Registry) -> None:
    assert problems(etl(registry, when={load: lambda extrct: True})) == (
        "etl: when= of 'load': parameter 'extrct' is provided by nothing; did you mean 'extract'?",
    )


def test_a_condition_that_takes_a_later_result(registry: Registry) -> None:
    sentence = "which does not come before it"
    assert problems(etl(registry, when={extract: lambda load: True})) == (
        f"etl: when= of 'extract': needs the result of 'load', {sentence}",
    )
    assert problems(etl(registry, when={load: lambda load: True})) == (
        f"etl: when= of 'load': needs the result of 'load', {sentence}",
    )


def test_conditions_that_make_a_cycle_together(registry: Registry) -> None:
    async def a(x: int) -> int:
        return x

    async def b(x: int) -> int:
        return x

    found = problems(lambda: registry.pipeline("p", a, b, when={a: lambda b: True, b: lambda a: True}))
    assert found == ("p: steps and their when= wait for each other in a cycle: a -> b -> a",)


def test_a_condition_that_is_no_plain_function(registry: Registry) -> None:
    async def slow() -> bool:
        return True

    sentence = "must be a plain function of inputs and earlier results; do slow work in a step"
    assert problems(etl(registry, when={load: slow})) == (f"etl: when= of 'load': {sentence}",)
    assert problems(etl(registry, when={"load": True})) == (f"etl: when= of 'load': {sentence}",)


def test_error_policies(registry: Registry) -> None:
    assert problems(etl(registry, on_error="ignore")) == (
        'etl: on_error= is "stop", "skip", a function or a value, not the text \'ignore\'; a text that stands in wants '
        "a function: lambda error: 'ignore'",
    )
    assert problems(etl(registry, on_error={"extrat": "skip"})) == (
        "etl: on_error= names 'extrat', which is no step of it; did you mean 'extract'?",
    )
    assert problems(etl(registry, on_error={load: lambda: 0})) == (
        "etl: on_error= <lambda>: must take one argument, the exception",
    )
    rest = (
        "it must take one argument, the exception, or `error` and, by name, inputs and results that step 'load' comes "
        "after"
    )
    assert problems(etl(registry, on_error={load: lambda error, pth: 0})) == (
        f"etl: on_error= <lambda>: parameter 'pth' is provided by nothing; did you mean 'path'?; {rest}",
    )
    assert problems(etl(registry, on_error={load: lambda error, load: 0})) == (
        f"etl: on_error= <lambda>: parameter 'load' comes not before it; {rest}",
    )
    assert problems(etl(registry, on_error={load: 2.5})) == (
        "etl: on_error= 2.5 is not what step 'load' returns: the value that stands in for step 'load' does not decode "
        "to int: Expected `int`, got `float`",
    )


def test_faults_of_conditions_and_policies_are_reported_together(registry: Registry) -> None:
    found = problems(etl(registry, when={"lod": bool}, on_error={"etract": "skip", load: "3"}))
    assert len(found) == 3


def test_conditions_and_policies_go_with_steps(registry: Registry) -> None:
    async def body() -> None: ...

    sentence = "max_concurrency=, needs=, when=, on_error=, each= and finally_= go with a pipeline made of a name and "
    sentence += "steps"
    assert problems(lambda: cast(Any, registry).pipeline(body, when={})) == (sentence,)
    assert problems(lambda: cast(Any, registry).pipeline(body, on_error="skip")) == (sentence,)
