"""What is marked `Secret` is found in every kind of type, and masked in every kind of value."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, NotRequired, TypedDict, TypeVar

import anyio
import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flowlet import Flowlet, Run, Secret, compensate, describe, level, provided, state, step, transition
from flowlet.core.codec import Codec
from flowlet.core.definitions import RunDefinition
from flowlet.core.secrets import MASK, Tree, redact, secret_tree, secrets_of_fields, secrets_of_items
from flowlet.errors import DecodeError

T = TypeVar("T")
Text = Annotated[str, Secret]
Pin = NewType("Pin", Text)


class Card(msgspec.Struct):
    holder: str
    number: Text


class Renamed(msgspec.Struct, rename="camel"):
    card_number: Text


class Tagged(msgspec.Struct, array_like=True, tag="t"):
    holder: str
    number: Text


class Box(msgspec.Struct, Generic[T]):
    item: T


class Heir(Box[Text]):
    size: int = 0


class Middle(Box[list[T]], Generic[T]):
    size: int = 0


class Other(Box[Text], Generic[T]):
    more: T


class Cell(TypedDict, Generic[T]):
    cell: T


class OtherRow(Cell[Text]):
    pin: Text
    size: int


B = TypeVar("B", bound=Card)
C = TypeVar("C", int, Text)


class Bound(msgspec.Struct, Generic[B, C]):
    b: B
    c: C


class Mixed(msgspec.Struct):
    secret: Text
    others: Mixed | list[Mixed] | None = None


class Node(msgspec.Struct):
    secret: Text
    children: list[Node] = []
    next: Node | None = None


class Plain(msgspec.Struct):
    names: list[str] = []
    inner: Plain | None = None


class Outer(msgspec.Struct):
    inner: Inner | None = None


class Inner(msgspec.Struct):
    outer: Outer | None = None
    pin: Annotated[int, Secret] = 0


@dataclass
class Account:
    card: Card | None
    cards: dict[str, Card]


@attrs.define
class Sealed:
    seal: Text
    size: int


class Row(TypedDict, total=False):
    pin: NotRequired[Text]
    size: int


class Pair(NamedTuple):
    name: str
    pin: Text


@pytest.mark.parametrize(
    ("annotation", "tree"),
    [
        (Text, True),
        (Annotated[str, Secret()], True),
        (Annotated[Annotated[str, Secret], "more"], True),
        (Pin, True),
        (Text | None, True),
        (list[Text], {"*": True}),
        (set[Text] | None, {"*": True}),
        (tuple[int, Text], {"1": True}),
        (tuple[Text, ...], {"*": True}),
        (dict[str, Text], {"*": True}),
        (dict[Text, int], True),
        (Card, {"number": True}),
        (Renamed, {"cardNumber": True}),
        (Tagged, {"2": True}),
        (Pair, {"1": True}),
        (Sealed, {"seal": True}),
        (Row, {"pin": True}),
        (Account, {"card": {"number": True}, "cards": {"*": {"number": True}}}),
        (int | Card | list[Card], {"number": True, "*": {"number": True}}),
        (Box[Text], {"item": True}),
        (Box[Box[Text]], {"item": {"item": True}}),
        (Box[list[Card]], {"item": {"*": {"number": True}}}),
        (Box[int], None),
        (Heir, {"item": True}),
        (Middle[Text], {"item": {"*": True}}),
        (Other[int], {"item": True}),
        (Other[Text], {"item": True, "more": True}),
        (OtherRow, {"cell": True, "pin": True}),
        (Box[Annotated[Text, {"not": "hashable"}]], {"item": True}),
        (Bound, {"b": {"number": True}, "c": True}),
        (Mixed, {"secret": True, "others": True}),
        (Node, {"secret": True, "children": {"*": {"^": 2}}, "next": {"^": 1}}),
        (Outer, {"inner": {"outer": {"^": 2}, "pin": True}}),
        (Plain, None),
        (Literal["a"], None),
        (Any, None),
        (int, None),
    ],
)
def test_finds_secrets(annotation: Any, tree: Tree | None) -> None:
    assert secret_tree(annotation) == tree
    assert json.loads(json.dumps(tree)) == tree


def test_masks_a_tree_of_objects() -> None:
    value = Node("1", [Node("2", [], Node("3"))], Node("4", [Node("5")]))
    shown = redact(value, secret_tree(Node))
    assert not any(digit in json.dumps(shown) for digit in "12345")
    assert shown["next"]["children"][0] == {"secret": MASK, "children": [], "next": None}
    assert value.secret == "1"


def test_masks_what_is_behind_a_mutual_recursion() -> None:
    value = {"inner": {"outer": {"inner": {"outer": None, "pin": 7}}, "pin": 8}}
    shown = redact(value, secret_tree(Outer))
    assert shown == {"inner": {"outer": {"inner": {"outer": None, "pin": MASK}}, "pin": MASK}}


def test_masks_objects_that_cannot_be_looked_into() -> None:
    assert redact([object(), 3, None, "text"], {"*": {"number": True}}) == [MASK, 3, None, "text"]


def test_a_tree_cut_out_of_a_recursive_one_masks_all() -> None:
    assert redact({"a": {"b": 1}}, {"a": {"^": 5}}) == {"a": MASK}


def test_a_type_that_is_very_deep_is_masked() -> None:
    annotation: Any = Text
    for _ in range(100):
        annotation = Box[annotation]  # type: ignore[valid-type]
    tree = secret_tree(annotation)
    value: Any = "4111"
    for _ in range(100):
        value = {"item": value}
    assert "4111" not in repr(redact(value, tree))


def test_an_annotation_that_cannot_be_resolved_is_judged_by_its_words() -> None:
    @dataclass
    class Local: ...

    Local.__annotations__ = {"pin": "Annotated[Nowhere, Secret]", "size": "int", "other": "Elsewhere", "card": "Card"}
    assert secret_tree(Local) == {"pin": True, "card": {"number": True}}


def test_aliases_that_are_statements() -> None:
    extensions = pytest.importorskip("typing_extensions")
    Rows = extensions.TypeAliasType("Rows", list[T], type_params=(T,))
    assert secret_tree(Rows[Text]) == {"*": True}
    assert secret_tree(Rows[int]) is None
    assert secret_tree(extensions.TypeAliasType("Plain", tuple[int, Text])) == {"1": True}


def test_a_type_of_another_kind_is_masked_as_a_whole() -> None:
    class Foreign(Generic[T]): ...

    assert secret_tree(Foreign[Text]) is True
    assert secret_tree(Foreign[int]) is None


def test_the_inputs_of_a_call() -> None:
    assert secrets_of_items([int, Text, Card]) == {"1": True, "2": {"number": True}}
    assert secrets_of_fields({"a": int, "b": Text}) == {"b": True}
    assert secrets_of_items([int]) is None


# A type, a value of it, and what may be shown of that: the model.
Sample = tuple[Any, Any, Any]
_leaves = st.one_of(
    st.integers(-100, 100).map(lambda n: (int, n, n)),
    st.text(max_size=3).map(lambda t: (str, t, t)),
    st.integers(-100, 100).map(lambda n: (Annotated[int, Secret], n, MASK)),
)


def _grown(inner: st.SearchStrategy[Sample]) -> st.SearchStrategy[Sample]:
    def listed(sample: Sample, size: int) -> Sample:
        annotation, value, shown = sample
        return list[annotation], [value] * size, [shown] * size  # type: ignore[valid-type]

    def mapped(sample: Sample) -> Sample:
        annotation, value, shown = sample
        return dict[str, annotation], {"k": value}, {"k": shown}  # type: ignore[valid-type]

    def paired(one: Sample, other: Sample) -> Sample:
        return tuple[one[0], other[0]], (one[1], other[1]), [one[2], other[2]]  # type: ignore[name-defined]

    def structured(one: Sample, other: Sample) -> Sample:
        cls = msgspec.defstruct("Made", [("a", one[0]), ("b", other[0])])
        return cls, cls(one[1], other[1]), {"a": one[2], "b": other[2]}

    return st.one_of(
        st.builds(listed, inner, st.integers(0, 2)),
        st.builds(mapped, inner),
        st.builds(paired, inner, inner),
        st.builds(structured, inner, inner),
    )


@given(st.recursive(_leaves, _grown, max_leaves=8))
def test_shows_what_the_model_shows(sample: Sample) -> None:
    annotation, value, expected = sample
    tree = secret_tree(annotation)
    plain = msgspec.msgpack.decode(msgspec.msgpack.encode(value))
    assert json.loads(msgspec.json.encode(redact(value, tree))) == expected
    assert redact(plain, json.loads(json.dumps(tree))) == expected
    assert msgspec.convert(plain, annotation) == value  # the mark changes nothing of what is stored


# Definitions ---------------------------------------------------------------------------------------
@step
async def charge(card: Card, amount: int) -> Text:
    return card.number


@compensate(charge)
async def refund(card: Card, charge: Text) -> None: ...


@step
async def book(amount: int) -> int:
    return amount


def test_a_saga_exports_where_its_secrets_are() -> None:
    flow = Flowlet()

    @flow.saga
    async def checkout(card: Card, amount: int) -> list[Text]:
        return [await charge(card, await book(amount))]

    assert describe(checkout)["secrets"] == {
        "input": {"0": {"number": True}},
        "result": {"*": True},
        "steps": {"charge": {"input": {"0": {"number": True}}, "result": True}},
    }
    assert flow.run(checkout, Card("ann", "4111"), 3) == ["4111"]
    assert "secrets" not in describe(flow.saga("plain", book))


def test_graphs_signals_and_machines_export_theirs() -> None:
    flow = Flowlet()
    graph = flow.graph("review", state=Card)

    @graph.node
    async def write(holder: str) -> dict[str, str]:
        return {"holder": holder}

    graph.pause("editor", type=Card, merge=lambda old, new: {"number": new.number})
    graph.entry(write)
    graph.edge(write, "editor")
    graph.final("editor")
    secrets = describe(graph)["secrets"]
    assert secrets["input"] == {"0": {"number": True}}
    assert secrets["result"] == secrets["signals"]["editor"] == {"number": True}

    @flow.machine
    class Lock:
        pin: Text = ""

        @state(initial=True)
        class Open: ...

        @state(final=True)
        class Shut: ...

        @transition(Open, Shut)
        async def shut(self, pin: Text, *, twice: bool = False) -> Text:
            self.pin = pin
            return pin

    exported = describe(Lock)["secrets"]
    assert exported == {
        "data": {"pin": True},
        "events": {"shut": {"0": {"0": True}, "1": {"pin": True}}},
        "results": {"shut": True},
    }
    assert redact([["4711"], {"twice": True}], exported["events"]["shut"]) == [[MASK], {"twice": True}]


def test_what_a_state_invokes_hides_what_it_is_given() -> None:
    flow = Flowlet()

    @flow.machine
    class Vault:
        pin: Text = ""

        @state(initial=True)
        class Shut: ...

        @state(invoke="check", final=False)
        class Checking: ...

        @state(final=True)
        class Open: ...

        async def check(self, pin: Text) -> Text:
            return pin

        @transition(Shut, Checking)
        async def ask(self) -> None: ...

        @transition(Checking, Open, done=True)
        async def let_in(self) -> None: ...

    (found,) = [d for d in flow.registry.definitions.values() if isinstance(d, RunDefinition)]
    assert found.secrets() == {"input": {"1": True}, "steps": {"work": {"input": {"1": True}, "result": True}}}


# What flowlet says -----------------------------------------------------------------------------------
class Kind(msgspec.Struct):
    kind: Annotated[Literal["visa"], Secret]


class Open(msgspec.Struct):
    kind: Literal["visa"]


def test_an_error_of_decoding_shows_no_secret() -> None:
    data = msgspec.msgpack.encode({"kind": "4111"})
    with pytest.raises(DecodeError, match="4111"):
        Codec(Open).decode(data, "the input")
    with pytest.raises(DecodeError, match=r"the input does not decode to Kind: .*\*\*\* - at `\$\.kind`") as caught:
        Codec(Kind).decode(data, "the input")
    assert "4111" not in repr(caught.value.__cause__)
    assert isinstance(caught.value.__cause__, msgspec.ValidationError)


def test_a_failed_item_shows_no_secret() -> None:
    flow = Flowlet()

    async def pay(card: Card) -> None:
        raise ValueError("refused")

    async def try_pin(pin: Text) -> None:
        raise ValueError("wrong")

    async def try_pins(pins: list[Text]) -> None:
        raise ValueError("wrong")

    async def main() -> list[str]:
        reports = [
            await flow.bulk(pay, [Card("ann", "4111")], retry=1),
            await flow.bulk(try_pin, ["4111"], retry=1),
            await flow.bulk(try_pins, ["4111"], batch=True, retry=1),
        ]
        for report in reports:
            with pytest.raises(ExceptionGroup) as caught:
                report.raise_errors()
            assert "4111" not in str(caught.value.exceptions[0].__notes__)
            assert "4111" not in str(report) + repr(report)
        return [str(report.errors[0]) for report in reports]

    assert anyio.run(main)[0] == "item 0 ({'holder': 'ann', 'number': '***'}): ValueError: refused"


def test_the_text_of_a_report_shows_no_secret() -> None:
    flow = Flowlet()

    @step
    async def ask(n: int) -> Text:
        return f"4111-{n}"

    saga = flow.saga("s", ask)

    async def main() -> Any:
        async with flow:
            await flow.execute(saga, 1, id="r")
            return await flow.handle("r", saga).report()

    report = anyio.run(main)
    assert report.steps["ask"].value == "4111-1"
    assert "name='ask', value='***', status='completed', attempts=1" in repr(report)


def test_marked_types_work_wherever_types_are_stored() -> None:
    flow = Flowlet(authorize={"bob": {"boss"}}.get)

    async def cards(n: int) -> list[Card]:
        return [Card("ann", str(m)) for m in range(n)]

    async def number(cards: Card) -> Text:
        return cards.number

    async def join(number: list[str]) -> Text:
        return "".join(number)

    joined = flow.pipeline("joined", cards, number, join, each={number: "cards"})
    graph = flow.graph("seal", state=Card)

    @graph.node
    async def seal(number: str) -> dict[str, str]:
        return {"number": number + "!"}

    graph.entry(seal)
    graph.final(seal)
    chain = flow.approval("chain", level("boss", role="boss"), type=Card)

    @flow.saga
    async def wait(n: int, run: Run = provided) -> Text:
        card = await run.receive("card", type=Annotated[Card, Secret])
        return card.number

    @flow.machine
    class Lock:
        card: Card | None = None

        @state(initial=True)
        class Open: ...

        @state(final=True)
        class Shut: ...

        @transition(Open, Shut)
        async def shut(self, card: Annotated[Card, Secret]) -> Text:
            self.card = card
            return card.number

    async def pay(pin: Text) -> Text:
        return pin

    async def main() -> None:
        async with flow:
            assert await joined(3) == "012"
            assert await graph(Card("ann", "7")) == Card("ann", "7!")
            request = await flow.start(chain, Card("ann", "8"), requester="ann")
            await flow.approve(request.id, by="bob")
            assert (await request.result()).subject == Card("ann", "8")
            waiting = await flow.start(wait, 1)
            await waiting.send("card", Card("ann", "9"))
            assert await waiting.result() == "9"
            lock = await flow.create(Lock(), id="l")
            assert await lock.shut(Card("ann", "10")) == "10"
            assert (await flow.load(Lock, "l")).card == Card("ann", "10")
            assert await flow.bulk(pay, ["11"], id="b").values() == ["11"]

    anyio.run(main)
    assert describe(chain)["secrets"]["input"] == {"0": {"number": True}}
    assert describe(chain)["secrets"]["result"] == {"subject": {"number": True}}
