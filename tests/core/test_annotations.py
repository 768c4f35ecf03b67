"""What parameters and results are is read once; what cannot be known is a fault that names its place."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import pytest

from flowlet import Run, provided
from flowlet.core.annotations import MISSING, UNRESOLVED, caller_namespace, codec_for, read_signature, resolve_hints
from flowlet.core.faults import Faults

if TYPE_CHECKING:
    from decimal import Decimal


class Order(msgspec.Struct):
    id: str


class Shop:
    class Line(msgspec.Struct):
        sku: str

    async def pick(self, line: Line, note: str = "") -> Line:
        return line


def read(function: Callable[..., Any], *, method: bool = False, **names: Any) -> Any:
    faults = Faults()
    signature = read_signature(function, names, faults, method=method)
    assert faults.problems == []
    return signature


def test_inputs_and_provided_parameters_are_told_apart() -> None:
    async def charge(order: Order, amount: int = 3, *, run: Run = provided) -> str:
        return ""

    signature = read(charge)
    assert [(p.name, p.annotation, p.required) for p in signature.inputs] == [
        ("order", Order, True),
        ("amount", int, False),
    ]
    assert [(p.name, p.annotation) for p in signature.providers] == [("run", Run)]
    assert signature.inputs[1].default == 3
    assert signature.result is str
    assert not signature.variadic


def test_self_is_left_out_of_a_method_and_nested_classes_are_found() -> None:
    signature = read(Shop.pick, method=True)
    assert [(p.name, p.annotation) for p in signature.inputs] == [("line", Shop.Line), ("note", str)]
    assert signature.result is Shop.Line


def test_locals_of_whoever_assembles_are_found() -> None:
    @dataclass
    class Local:
        x: int

    async def use(local: Local) -> list[Local]:
        return [local]

    signature = read(use, **locals())
    assert signature.inputs[0].annotation is Local
    assert signature.result == list[Local]


def test_closures_are_found() -> None:
    def make() -> Callable[..., Any]:
        class Hidden(msgspec.Struct):
            x: int

        async def use(hidden: Hidden) -> None:
            Hidden(1)

        return use

    assert read(make()).inputs[0].annotation.__name__ == "Hidden"


def test_a_name_of_the_functions_own_module_wins_over_a_local_of_whoever_assembles() -> None:
    class Order: ...  # the same name, another thing

    assert read(use_order, Order=Order).inputs[0].annotation is globals()["Order"]


async def use_order(order: Order) -> None: ...


def test_star_arguments_are_noted() -> None:
    def many(*args: int, **kwargs: int) -> None: ...

    assert read(many).variadic
    assert read(many).parameters == ()


def test_missing_annotations_are_missing() -> None:
    def bare(a, b: int):  # type: ignore[no-untyped-def]
        return a

    signature = read(bare)
    assert [p.annotation for p in signature.inputs] == [MISSING, int]
    assert signature.result is MISSING


def test_what_cannot_be_resolved_is_a_fault_that_names_it() -> None:
    def pay(amount: Decimal) -> None: ...

    faults = Faults()
    assert resolve_hints(pay, {}, faults) == {"amount": UNRESOLVED, "return": UNRESOLVED}
    assert len(faults.problems) == 1
    assert faults.problems[0].startswith("pay: an annotation cannot be resolved (name 'Decimal' is not defined)")


def test_extras_of_annotated_are_kept() -> None:
    def take(n: Annotated[int, msgspec.Meta(ge=1)]) -> None: ...

    faults = Faults()
    codec = codec_for(read(take).inputs[0].annotation, take, "n", faults)
    assert codec is not None
    with pytest.raises(Exception, match="`int` >= 1"):
        codec.decode(b"\x00", "n")


def test_the_namespace_of_the_caller_is_a_copy() -> None:
    mine = 1
    found = caller_namespace(0)
    assert found["mine"] == mine
    found["mine"] = 2
    assert mine == 1


class Foreign: ...


@pytest.mark.parametrize(
    ("annotation", "sentence"),
    [
        (MISSING, "it has no annotation; annotate it, so that a replay gives back the same type"),
        (Any, "it is annotated Any; name the type, so that a replay gives back the same one"),
        (Foreign, "it has a type that cannot be stored: Foreign; make it a Struct or a dataclass"),
        (list[Foreign], "it has a type that cannot be stored: Foreign; make it a Struct or a dataclass"),
        (dict[str, Foreign] | None, "it has a type that cannot be stored: Foreign; make it a Struct or a dataclass"),
        (complex, "it has a type that cannot be stored: complex; make it a Struct or a dataclass"),
        (Callable[[], int], "it has a type that cannot be stored"),
    ],
)
def test_types_that_cannot_be_stored(annotation: Any, sentence: str) -> None:
    faults = Faults()
    assert codec_for(annotation, "charge", "it", faults) is None
    assert len(faults.problems) == 1
    assert faults.problems[0].startswith(f"charge: {sentence}")


def test_a_union_of_two_structs_without_tags_is_ambiguous() -> None:
    faults = Faults()
    assert codec_for(Order | Shop.Line, "charge", "its result", faults) is None
    assert "its result has a type that cannot be stored or is ambiguous" in faults.problems[0]


class Node(msgspec.Struct):
    children: list[Node] = []
    what: Foreign | None = None


class Tree(msgspec.Struct):
    children: list[Tree] = []


def test_recursive_types() -> None:
    faults = Faults()
    assert codec_for(Tree, "x", "it", faults) is not None
    assert codec_for(Node, "x", "it", faults) is None
    assert "Foreign" in faults.problems[0]


def test_a_function_of_a_module_that_is_gone() -> None:
    module = types.ModuleType("gone_module")
    exec("class Item: ...\ndef take(item: 'Item') -> None: ...", module.__dict__)
    assert "gone_module" not in sys.modules
    assert read(module.take).inputs[0].annotation is module.Item
