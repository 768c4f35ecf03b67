"""A registry keeps definitions by name and version, merges others, and registers nothing by itself."""

from __future__ import annotations

import sys
import types
from typing import Any, cast

import msgspec
import pytest

from flowlet import Registry, step
from flowlet.core.registry import definition_of
from flowlet.errors import DefinitionError


@step
async def double(n: int) -> int:
    return 2 * n


def make(name: str) -> tuple[Registry, Any]:
    registry = Registry()
    return registry, registry.saga(name, double)


def test_what_is_assembled_is_kept_and_found_again() -> None:
    registry, caller = make("twice")
    assert registry.definitions == {("twice", "1"): definition_of(caller)}


def test_marks_alone_register_nothing() -> None:
    @step
    async def other(n: int) -> int:
        return n

    assert Registry().definitions == {}
    assert definition_of(other) is None


def test_a_subclass_of_an_assembled_class_is_not_assembled() -> None:
    registry = Registry()

    @registry.saga
    class Buy:
        async def __call__(self) -> None: ...

    class Other(Buy): ...

    assert definition_of(Buy) is not None
    assert definition_of(Other) is None


def test_merging_registries_keeps_the_same_definitions() -> None:
    one, caller = make("a")
    two, other = make("b")
    whole = Registry()
    whole.include(one, two)
    whole.include(one)  # again: nothing changes
    assert set(whole.definitions.values()) == {definition_of(caller), definition_of(other)}
    assert set(one.definitions) == {("a", "1")}


def test_merging_a_module_finds_registries_and_assembled_objects() -> None:
    module = types.ModuleType("shop")
    first, caller = make("a")
    second, _ = make("b")
    third = Registry()

    @third.saga
    class Buy:
        async def __call__(self) -> None: ...

    module.caller, module.others, module.Buy = caller, second, Buy  # type: ignore[attr-defined]
    module.unrelated, module.double = 3, double  # type: ignore[attr-defined]
    whole = Registry()
    whole.include(module)
    assert sorted(name for name, _ in whole.definitions) == ["Buy", "a", "b"]
    assert first.definitions.items() <= whole.definitions.items()


def test_a_name_taken_by_another_definition_names_all_of_them_and_keeps_the_rest() -> None:
    one, _ = make("a")
    two, _ = make("a")
    two.saga("b", double)
    one.include(two.__class__())
    with pytest.raises(DefinitionError) as caught:
        one.include(two)
    assert caught.value.problems == ("a: the name is taken by another definition of version 1; give name= or version=",)


@pytest.mark.parametrize("source", [3, "shop", None, double])
def test_only_modules_and_registries_are_included(source: Any) -> None:
    with pytest.raises(DefinitionError, match="include: takes modules and registries, not "):
        Registry().include(source)


def test_a_caller_looks_like_the_function_it_stands_for() -> None:
    registry = Registry()

    async def buy(sku: str) -> int:
        """Buy one."""
        return await double(1)

    caller = registry.saga(buy)
    assert caller.__name__ == "buy"
    assert caller.__doc__ == "Buy one."
    assembled = cast(Any, registry.saga("twice", double))
    assert assembled.__name__ == "twice"
    assert list(assembled.__signature__.parameters) == ["n"]


def test_what_is_typed_again_at_a_prompt_takes_the_place_of_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    registry = Registry()
    cell = "@registry.saga\nasync def twice(n: int) -> int:\n    return n * {}\n"
    chart = "review = registry.graph('review', state=Draft)\nreview.node({0})\nreview.entry({0})\nreview.final({0})\n"

    async def write(text: str) -> dict[str, str]:
        return {"text": text}

    names = {"registry": registry, "__name__": "__main__", "Draft": Draft, "write": write}
    for factor in (2, 3):
        exec(cell.format(factor) + chart.format("write"), names)
        assert registry.definitions["twice", "1"].target.__code__.co_consts[-1] == factor
    with pytest.raises(DefinitionError, match="the name is taken"):
        exec(cell.format(4), {"registry": registry, "__name__": "elsewhere"})
    monkeypatch.delattr(sys, "ps1")
    with pytest.raises(DefinitionError, match="the name is taken"):
        exec(cell.format(4), names)


class Draft(msgspec.Struct):
    text: str = ""
