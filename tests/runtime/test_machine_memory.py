"""Machines without a store: order, guards, hooks, failures, and what may be asked."""

from __future__ import annotations

import copy
import enum
import gc
import inspect
import pickle
import sys
import warnings
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, ClassVar

import attrs
import pytest

from flowlet.core.annotations import provided
from flowlet.core.faults import Faults
from flowlet.core.guards import all_of, any_of, not_
from flowlet.core.hooks import Transition
from flowlet.core.machine_builder import build_machine
from flowlet.core.marks import guard, state, transition
from flowlet.errors import HookFailed, MachineError, TransitionNotAllowed
from flowlet.runtime.machine_install import definition_of, install_machine
from flowlet.runtime.machine_questions import available_events, can, fire, in_state, raise_event, state_of

pytestmark = pytest.mark.anyio


def machine(cls: Any, **settings: Any) -> Any:
    faults = Faults()
    definition = build_machine(cls, name=cls.__name__, namespace={}, faults=faults, **settings)
    faults.raise_if_any()
    assert definition is not None
    return install_machine(definition)


async def pause() -> None:
    import anyio

    await anyio.sleep(0)


# ------------------------------------------------------------------------------------ the usual machine
@machine
@dataclass
class Order:
    total: int = 0
    log: list[str] = field(default_factory=list)

    @state(initial=True)
    class Draft: ...

    @state
    class Confirmed: ...

    @state(final=True)
    class Shipped: ...

    @state(final=True)
    class Cancelled: ...

    @guard
    async def can_confirm(self) -> bool:
        self.log.append("guard")
        return self.total > 0

    @transition(Draft, Confirmed)
    async def confirm(self, by: str) -> str:
        self.log.append(f"action in {state_of(self)}")
        return f"confirmed by {by}"

    @transition(Confirmed, Shipped)
    async def ship(self) -> None: ...

    @transition((Draft, Confirmed), Cancelled)
    async def cancel(self, reason: str) -> None: ...

    async def on_enter_confirmed(self) -> None:
        self.log.append(f"enter in {state_of(self)}")

    async def on_exit_draft(self) -> None:
        self.log.append(f"exit in {state_of(self)}")

    async def on_transition(self, t: Transition) -> None:
        self.log.append(f"{t.event}: {t.source} -> {t.target} by {t.actor}")


async def test_the_order_of_one_transition() -> None:
    order = Order(total=1)
    assert await order.confirm(by="ann") == "confirmed by ann"
    assert order.log == [
        "guard",
        "exit in Draft",
        "action in Draft",
        "enter in Confirmed",
        "confirm: Draft -> Confirmed by ann",
    ]


async def test_a_refusal_says_which_of_the_two_it_was() -> None:
    order = Order()
    with pytest.raises(TransitionNotAllowed) as refused:
        await order.confirm("ann")
    assert (refused.value.event, refused.value.state) == ("confirm", "Draft")
    assert (refused.value.reason, refused.value.guard) == ("guard", "can_confirm")
    with pytest.raises(TransitionNotAllowed) as missing:
        await order.ship()
    assert (missing.value.reason, missing.value.guard) == ("no_transition", None)
    assert "it leaves Confirmed" in str(missing.value)
    assert order.log == ["guard"]


async def test_wrong_arguments_are_found_before_anything_happens() -> None:
    order = Order(total=1)
    for args, kwargs, said in (
        ((), {}, "missing a required argument: 'by'"),
        (("ann", "bob"), {}, "takes 1 positional arguments but 2 were given"),
        ((), {"bye": "ann"}, "unexpected keyword argument 'bye'"),
        (("ann",), {"by": "bob"}, "multiple values for argument 'by'"),
    ):
        with pytest.raises(TypeError, match=said):
            await order.confirm(*args, **kwargs)
    assert order.log == ["guard"] * 4
    assert state_of(order) == "Draft"


async def test_questions() -> None:
    order = Order(total=1)
    assert in_state(order, Order.Draft)
    assert in_state(order, Order.Shipped, "Draft")
    assert not in_state(order, Order.Shipped)
    assert not in_state(order)
    assert available_events(order) == ["confirm", "cancel"]
    assert await can(order.confirm, by="ann") is True
    assert await can(order.ship) is False
    order.total = 0
    assert await can(order.confirm, by="ann") is False
    await order.cancel(reason="no")
    assert available_events(order) == []


async def test_an_answer_refuses_to_be_a_truth_value_and_leaks_no_coroutine() -> None:
    order = Order(total=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = can(order.confirm, by="ann")
        with pytest.raises(TypeError, match="await can"):
            bool(answer)
        del answer
        gc.collect()
    assert order.log == []


async def test_bad_questions_are_typed_errors() -> None:
    order = Order(total=1)
    with pytest.raises(MachineError, match="state 'Draftt' does not exist; did you mean 'Draft'"):
        in_state(order, "Draftt")
    with pytest.raises(MachineError, match="no event 'confrim'; did you mean 'confirm'"):
        await fire(order, "confrim")
    with pytest.raises(MachineError, match="is not a machine"):
        state_of(object())
    with pytest.raises(MachineError, match="takes a trigger of a machine"):
        can(print)
    with pytest.raises(MachineError, match="without calling it"):
        can(order.confirm("ann"))
    with pytest.raises(MachineError, match="outside of the machine's hooks and actions"):
        raise_event(order.confirm, "ann")


async def test_an_unassembled_class_says_so() -> None:
    class Raw:
        @state(initial=True)
        class A: ...

        @transition(A, A)
        async def go(self) -> None: ...

    with pytest.raises(MachineError, match="has not been assembled"):
        await Raw().go()
    with pytest.raises(MachineError, match="takes a trigger of a machine"):
        can(Raw().go)


async def test_triggers_stay_what_they_look_like() -> None:
    assert inspect.iscoroutinefunction(Order.confirm)
    assert list(inspect.signature(Order.confirm).parameters) == ["self", "by"]
    assert Order.confirm.__name__ == "confirm"
    assert Order.confirm.__qualname__ == "Order.confirm"


# --------------------------------------------------------------------------------------------- failures
class Broken(Exception):
    pass


def fragile(awaiting: bool) -> Any:
    """A machine whose callbacks fail on request, once with callbacks that wait and once without."""

    async def maybe(self: Any, where: str) -> None:
        if awaiting:
            await pause()
        self.seen = [*self.seen, where]
        self.last = where
        if self.failing == where:
            raise Broken(where)

    class Fragile:
        failing: str = ""
        last: str = ""
        seen: list[str] = []  # noqa: RUF012 - replaced, never changed

        @state(initial=True)
        class A: ...

        @state
        class B: ...

        if awaiting:

            @guard
            async def can_go(self) -> bool:
                if self.failing == "guard":
                    raise Broken("guard")
                await pause()
                return True

            async def on_exit_a(self) -> None:
                await maybe(self, "exit")

            @transition(A, B)
            async def go(self) -> str:
                self.extra = 1
                await maybe(self, "action")
                return "done"

            async def on_enter_b(self) -> None:
                await maybe(self, "enter")

            async def on_transition(self) -> None:
                await maybe(self, "transition")

        else:

            @guard
            async def can_go(self) -> bool:
                if self.failing == "guard":
                    raise Broken("guard")
                return True

            @transition(A, B)
            async def go(self) -> str:
                self.extra = 1
                self.last = "action"
                if self.failing == "action":
                    raise Broken("action")
                return "done"

            async def on_enter_b(self) -> None:
                self.last = "enter"
                if self.failing == "enter":
                    raise Broken("enter")

        @transition(B, A)
        async def back(self) -> None: ...

    return machine(Fragile)


@pytest.mark.parametrize("awaiting", [False, True])
@pytest.mark.parametrize("failing", ["guard", "action"])
async def test_what_fails_before_the_commit_changes_nothing(awaiting: bool, failing: str) -> None:
    one = fragile(awaiting)()
    one.failing = failing
    with pytest.raises(HookFailed if failing == "guard" else Broken, match=failing):
        await one.go()
    assert state_of(one) == "A"
    assert (one.last, list(one.seen)) == ("", [])
    assert not hasattr(one, "extra")
    one.failing = ""
    assert await one.go() == "done"
    assert one.extra == 1


async def test_an_exit_hook_that_fails_is_not_committed() -> None:
    one = fragile(True)()
    one.failing = "exit"
    with pytest.raises(HookFailed) as failed:
        await one.go()
    assert not failed.value.committed
    assert isinstance(failed.value.__cause__, Broken)
    assert (state_of(one), one.last) == ("A", "")


@pytest.mark.parametrize(("awaiting", "failing"), [(False, "enter"), (True, "enter"), (True, "transition")])
async def test_a_hook_that_fails_after_the_commit(awaiting: bool, failing: str) -> None:
    one = fragile(awaiting)()
    one.failing = failing
    with pytest.raises(HookFailed, match="has been committed") as failed:
        await one.go()
    assert failed.value.committed
    assert isinstance(failed.value.__cause__, Broken)
    assert (state_of(one), one.last, one.extra) == ("B", failing, 1)
    one.failing = ""
    await one.back()
    assert state_of(one) == "A"


# ------------------------------------------------------------------------------------------------ guards
async def test_guard_expressions_stop_as_soon_as_the_answer_is_known() -> None:
    asked: list[str] = []

    def says(name: str, answer: bool) -> Any:
        def sync(machine: Any) -> bool:
            asked.append(name)
            return answer

        sync.__name__ = name
        return sync

    async def slow(machine: Any) -> bool:
        await pause()
        asked.append("slow")
        return True

    yes, no = says("yes", True), says("no", False)
    table: list[tuple[Any, str | None, list[str]]] = [
        (all_of(yes, no, slow), "no", ["yes", "no"]),
        (all_of(yes, slow), None, ["yes", "slow"]),
        (any_of(no, slow, yes), None, ["no", "slow"]),
        (any_of(no, not_(yes)), "any_of(no, not_(yes))", ["no", "yes"]),
        (not_(slow), "not_(slow)", ["slow"]),
        (not_(no), None, ["no"]),
        (all_of(yes, any_of(no, no)), "any_of(no, no)", ["yes", "no", "no"]),
        (yes, None, ["yes"]),
        (no, "no", ["no"]),
    ]
    for expression, refusing, order in table:
        asked.clear()

        class Case:
            @state(initial=True)
            class A: ...

            @state(final=True)
            class B: ...

            @transition(A, B, guard=expression)
            async def go(self) -> None: ...

        one = machine(Case)()
        if refusing is None:
            await one.go()
        else:
            with pytest.raises(TransitionNotAllowed) as refused:
                await one.go()
            assert refused.value.guard == refusing
        assert asked == order


@pytest.mark.parametrize("plain", [True, False])
async def test_a_sync_guard_that_returns_a_coroutine_is_refused(plain: bool) -> None:
    async def later() -> bool:
        return False

    class Case:
        @state(initial=True)
        class A: ...

        @state(final=True)
        class B: ...

        if plain:

            @guard
            def can_go(self) -> Any:
                return later()

            @transition(A, B)
            async def go(self) -> None: ...

        else:

            @transition(A, B, guard=lambda machine: later())
            async def go(self) -> None:
                await pause()

    one = machine(Case)()
    with pytest.raises(MachineError, match="plain function that returned something to await"):
        await one.go()
    with pytest.raises(MachineError, match="plain function"):
        await can(one.go)
    assert state_of(one) == "A"


async def test_guards_take_the_arguments_of_the_event_by_name() -> None:
    seen: list[Any] = []

    class Case:
        @state(initial=True)
        class A: ...

        @state(final=True)
        class B: ...

        @guard
        async def can_go(self, *, by: str, note: str = "guard's own") -> bool:
            seen.append((by, note))
            return by != "eve"

        @guard
        def fits(self, amount: int, by: str, *, note: str = "none", loud: bool = False) -> bool:
            seen.append((amount, by, note, loud))
            return amount < 10

        @transition(A, B, guard=all_of("fits", lambda machine, amount: amount >= 0))
        async def go(self, amount: int, by: str, *, note: str = "none", loud: bool = False) -> int:
            return amount

    one = machine(Case)()
    with pytest.raises(TransitionNotAllowed) as refused:
        await one.go(3, "eve")
    assert refused.value.guard == "can_go"
    assert seen == [("eve", "none")]
    with pytest.raises(TransitionNotAllowed) as refused:
        await one.go(30, by="ann", note="x")
    assert refused.value.guard == "fits"
    assert seen[1:] == [("ann", "x"), (30, "ann", "x", False)]
    assert not await can(one.go, amount=-1, by="ann")
    with pytest.raises(TypeError, match="missing a required argument: 'by'"):
        await one.go(3)
    assert await one.go(amount=3, by="ann", loud=True) == 3


async def test_an_event_guard_is_asked_once_for_all_candidates() -> None:
    asked: list[str] = []

    class Case:
        @state(initial=True)
        class A: ...

        @state(final=True)
        class B: ...

        @state(final=True)
        class C: ...

        @guard
        def can_go(self) -> bool:
            asked.append("can_go")
            return True

        @transition(A, B, guard=lambda machine: False)
        @transition(A, C)
        async def go(self) -> None: ...

    one = machine(Case)()
    await one.go()
    assert state_of(one) == "C"
    assert asked == ["can_go"]


# ------------------------------------------------------------------------------- kinds of transitions
class Door(enum.Enum):
    CLOSED = state(initial=True)
    OPEN = state()
    BROKEN_DOWN = state(final=True)


@machine
class Gate:
    def __init__(self) -> None:
        self.log: list[str] = []

    @transition(Door.CLOSED, Door.OPEN)
    async def open(self) -> None: ...

    @transition(Door.OPEN, Door.CLOSED)
    async def close(self) -> None: ...

    @transition("*", None)
    async def knock(self) -> str:
        return "who is there?"

    @transition(Door.OPEN, Door.OPEN)
    async def reopen(self) -> None: ...

    @transition("*", Door.BROKEN_DOWN)
    async def kick(self) -> None: ...

    def on_enter_open(self) -> None:
        self.log.append("enter open")

    def on_exit_open(self) -> None:
        self.log.append("exit open")

    def on_enter_broken_down(self) -> None:
        self.log.append("enter broken_down")

    def on_transition(self, t: Transition) -> None:
        self.log.append(t.event)


async def test_enum_states_internal_and_self_transitions_and_wildcards() -> None:
    gate = Gate()
    assert in_state(gate, Door.CLOSED)
    await gate.open()
    assert await gate.knock() == "who is there?"
    await gate.reopen()
    await gate.kick()
    assert in_state(gate, Door.BROKEN_DOWN, Door.OPEN)
    assert gate.log == [
        "enter open",
        "open",
        "knock",
        "exit open",
        "enter open",
        "reopen",
        "exit open",
        "enter broken_down",
        "kick",
    ]
    for event in (gate.knock, gate.kick):
        with pytest.raises(TransitionNotAllowed):
            await event()


async def test_an_enum_nested_in_the_class() -> None:
    class Case:
        class Light(enum.Enum):
            OFF = state(initial=True)
            ON = state(value={"watts": 5})

        @transition(Light.OFF, Light.ON)
        async def press(self) -> None: ...

        @transition("ON", "OFF")
        async def release(self) -> None: ...

    case = machine(Case)
    one = case()
    await one.press()
    assert in_state(one, case.Light.ON)
    assert definition_of(one).state("ON").value == {"watts": 5}
    await one.release()
    assert state_of(one) == "OFF"


async def test_candidates_are_tried_in_order_and_specific_ones_first() -> None:
    class Case:
        kind: str = ""

        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @state
        class C: ...

        @state(final=True)
        class D: ...

        @transition("*", D)
        @transition(A, B, guard=lambda machine: machine.kind == "b")
        @transition(A, C, guard=lambda machine: machine.kind in "bc")
        async def go(self) -> None: ...

    built = machine(Case, allow=frozenset())
    for kind, reached in (("b", "B"), ("c", "C"), ("x", "D")):
        one = built()
        one.kind = kind
        await one.go()
        assert state_of(one) == reached


async def test_methods_that_share_an_event() -> None:
    class Case:
        @state(initial=True)
        class A: ...

        @state(final=True)
        class Paid: ...

        @transition(A, Paid, event="pay", guard=lambda machine, amount: amount < 10)
        async def pay_cash(self, amount: int) -> str:
            return "cash"

        @transition(A, Paid, event="pay")
        async def pay_card(self, amount: int) -> str:
            return "card"

    built = machine(Case)
    assert await fire(built(), "pay", 3) == "cash"
    assert await fire(built(), "pay", amount=30) == "card"
    assert await built().pay_card(3) == "card"
    assert available_events(built()) == ["pay"]
    with pytest.raises(TransitionNotAllowed) as refused:
        await built().pay_cash(30)
    assert refused.value.event == "pay"


@pytest.mark.parametrize("awaiting", [False, True])
async def test_on_error_leads_to_its_state_and_the_event_counts_as_handled(awaiting: bool) -> None:
    class Case:
        n: int = 0

        @state(initial=True)
        class A: ...

        @state(final=True)
        class B: ...

        @state(final=True)
        class Lost: ...

        @transition(A, B, on_error=Lost)
        async def go(self, reason: str) -> str:
            self.n = 7
            if awaiting:
                await pause()
            raise Broken(reason)

        async def on_enter_lost(self, error: Exception, reason: str, t: Transition) -> None:
            self.why = (type(error), str(error), reason, t.target)

    one = machine(Case)()
    assert await one.go("bad") is None
    assert (state_of(one), one.n) == ("Lost", 0)
    assert one.why == (Broken, "bad", "bad", "Lost")


async def test_the_transition_that_hooks_are_told() -> None:
    told: list[Any] = []

    class Case:
        @state(initial=True)
        class A: ...

        @state(final=True)
        class B: ...

        @transition(A, B)
        async def go(self, note: str, actor: object = None) -> None: ...

        def on_exit_a(self, t: Transition) -> None:
            told.append(t)

        def on_enter_b(self, change: Transition, note: str) -> None:
            told.append((change, note))

    before = datetime.now(UTC)
    await machine(Case)().go("x", actor="ann")
    left, (entered, note) = told
    assert (left.event, left.source, left.target, left.version, left.actor) == ("go", "A", "B", 0, "ann")
    assert before <= left.at <= entered.at <= datetime.now(UTC)
    assert note == "x"
    told.clear()
    await machine(Case)().go("x", 5)
    assert told[0].actor is None


# ------------------------------------------------------------------------------------------ raise_event
@pytest.mark.parametrize("awaiting", [False, True])
async def test_raised_events_are_handled_after_the_transition_in_order(awaiting: bool) -> None:
    class Case:
        def __init__(self) -> None:
            self.log: list[str] = []

        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @state
        class C: ...

        @state(final=True)
        class D: ...

        @transition(A, B)
        async def go(self) -> str:
            raise_event(self.more, 1)
            if awaiting:
                await pause()
            return "gone"

        @transition(B, C)
        async def more(self, n: int) -> None:
            self.log.append(f"more {n}")

        @transition(C, D)
        async def end(self, *, word: str) -> None:
            self.log.append(word)

        async def on_enter_b(self) -> None:
            self.log.append("b")
            raise_event(self.end, word="end")
            raise_event(self.go)  # nothing leads from D: discarded

        def on_enter_d(self) -> None:
            self.log.append("d")

    one = machine(Case)()
    assert await one.go() == "gone"
    assert one.log == ["b", "more 1", "end", "d"]
    assert state_of(one) == "D"


@pytest.mark.parametrize("awaiting", [False, True])
async def test_what_a_failed_transition_raised_is_forgotten(awaiting: bool) -> None:
    class Case:
        fail: bool = True

        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @transition(A, None)
        async def go(self) -> None:
            raise_event(self.move)
            if awaiting:
                await pause()
            if self.fail:
                raise Broken

        @transition(A, B)
        async def move(self) -> None: ...

        @transition(B, A)
        async def back(self) -> None: ...

    one = machine(Case)()
    with pytest.raises(Broken):
        await one.go()
    assert state_of(one) == "A"
    one.fail = False
    await one.go()
    assert state_of(one) == "B"


@pytest.mark.parametrize("awaiting", [False, True])
async def test_a_raised_event_that_fails_does_not_stop_those_behind_it(awaiting: bool) -> None:
    class Case:
        n: int = 0

        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @transition(A, B)
        async def go(self) -> None:
            if awaiting:
                await pause()

        @transition(B, None)
        async def bad(self) -> None:
            self.n += 10
            raise Broken("bad")

        @transition(B, None)
        async def good(self) -> None:
            self.n += 1

        @transition(B, A)
        async def back(self) -> None: ...

        def on_enter_b(self) -> None:
            raise_event(self.bad)
            raise_event(self.good)
            if self.n > 0:
                raise Broken("enter")

    one = machine(Case)()
    with pytest.raises(HookFailed, match="raised event 'bad'") as failed:
        await one.go()
    assert failed.value.committed
    assert isinstance(failed.value.__cause__, Broken)
    assert (state_of(one), one.n) == ("B", 1)
    await one.back()
    with pytest.raises(HookFailed):
        await one.go()
    assert one.n == 2


async def test_events_raised_without_end_are_noticed() -> None:
    class Case:
        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @transition(A, B)
        async def there(self) -> None:
            raise_event(self.back)

        @transition(B, A)
        async def back(self) -> None:
            raise_event(self.there)

    with pytest.raises(HookFailed, match="endless loop"):
        await machine(Case)().there()


# ------------------------------------------------------------------------------------- kinds of classes
def with_states(decorate: Any, **members: Any) -> Any:
    class Counter:
        total: int = 1
        note: str = "x"

        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @transition(A, B)
        async def go(self, by: int) -> int:
            self.total += by
            return self.total

        @transition(B, A)
        async def back(self) -> None:
            self.total = 99
            raise Broken

    return machine(decorate(Counter))


class Slotted:
    __slots__ = ("note", "total")
    total: int
    note: str

    def __init__(self, total: int = 1) -> None:
        self.total = total

    @state(initial=True)
    class A: ...

    @state
    class B: ...

    @transition(A, B)
    async def go(self, by: int) -> int:
        self.total += by
        self.note = "gone"
        return self.total

    @transition(B, A)
    async def back(self) -> None:
        self.total = 99
        raise Broken


Slotted = machine(Slotted)  # type: ignore[misc]

KINDS = {
    "plain": lambda: with_states(lambda cls: cls),
    "dataclass": lambda: with_states(dataclass),
    "dataclass with slots": lambda: with_states(dataclass(slots=True)),
    "attrs": lambda: with_states(attrs.define),
    "attrs without slots": lambda: with_states(attrs.define(slots=False)),
    "slots": lambda: Slotted,
}


@pytest.mark.parametrize("kind", KINDS)
async def test_kinds_of_classes(kind: str) -> None:
    cls = KINDS[kind]()
    assert cls.__name__ in ("Counter", "Slotted")
    one, other = cls(), cls()
    assert await one.go(2) == 3
    assert (state_of(one), state_of(other), one.total, other.total) == ("B", "A", 3, 1)
    with pytest.raises(Broken):
        await one.back()
    assert (state_of(one), one.total) == ("B", 3)
    if "dataclass" in kind or "attrs" in kind:
        assert one == cls(total=3)
        assert "Counter(total=3" in repr(one)
        assert cls(total=5, note="y").total == 5


async def test_a_slotted_machine_has_no_dict_and_can_be_weakly_referenced() -> None:
    import weakref

    one = Slotted()
    assert not hasattr(one, "__dict__")
    assert weakref.ref(one)() is one
    assert Slotted.__module__ == __name__

    class ByHand:
        __slots__ = ("__weakref__", "note", "state", "total", "turn")

    assert sys.getsizeof(one) == sys.getsizeof(ByHand())


async def test_construction_stays_what_it_was() -> None:
    assert str(inspect.signature(Order)) == "(total: 'int' = 0, log: 'list[str]' = <factory>) -> None"
    assert str(inspect.signature(Slotted)) == "(total: 'int' = 1) -> 'None'"
    assert str(inspect.signature(Gate)) == "() -> 'None'"
    with pytest.raises(TypeError, match="unexpected keyword argument 'totl'"):
        Order(totl=3)

    class Bare:
        @state(initial=True)
        class A: ...

        @state(final=True)
        class B: ...

        @transition(A, B)
        async def go(self) -> None: ...

    with pytest.raises(TypeError, match=r"Bare\(\) takes no arguments"):
        machine(Bare)(3)

    class Single:
        made: ClassVar[list[Any]] = []

        def __new__(cls) -> Any:
            if not cls.made:
                cls.made.append(object.__new__(cls))
            return cls.made[0]

        @state(initial=True)
        class A: ...

        @state(final=True)
        class B: ...

        @transition(A, B)
        async def go(self) -> None: ...

    single = machine(Single)
    await single().go()
    assert state_of(single()) == "B"


class Guarded:
    """Machines whose guards fail, one for each way that guards are asked."""

    broken: bool = True

    @state(initial=True)
    class A: ...

    @state
    class B: ...

    @guard
    def can_quick(self) -> bool:
        return self._answer()

    @guard
    def can_quick_with(self) -> bool:
        return self._answer()

    @guard
    async def can_wait(self) -> bool:
        await pause()
        return self._answer()

    @guard
    def can_take(self, n: int) -> bool:
        return self._answer()

    @guard
    def part(self) -> bool:
        return self._answer()

    def _answer(self) -> bool:
        if self.broken:
            raise Broken("guard")
        return True

    @transition(A, B)
    async def quick(self) -> None: ...

    @transition(A, B)
    async def quick_with(self, n: int) -> None: ...

    @transition(A, B)
    async def wait(self) -> None: ...

    @transition(A, B)
    async def take(self, n: int) -> None: ...

    @transition(A, B, guard=not_(all_of(part, part)))
    async def combine(self) -> None: ...

    @transition(A, B, guard=part)
    @transition(A, None)
    async def choose(self) -> None: ...

    @transition(B, A)
    async def back(self) -> None: ...


Guarded = machine(Guarded)


@pytest.mark.parametrize(
    ("event", "args", "name"),
    [
        ("quick", (), "can_quick"),
        ("quick_with", (1,), "can_quick_with"),
        ("wait", (), "can_wait"),
        ("take", (1,), "can_take"),
        ("combine", (), "part"),
        ("choose", (), "part"),
    ],
)
async def test_a_guard_that_raises_is_a_typed_error(event: str, args: tuple[Any, ...], name: str) -> None:
    one = Guarded()
    trigger = getattr(one, event)
    for ask in (trigger, lambda *args: can(trigger, *args), lambda *args: fire(one, event, *args)):
        with pytest.raises(HookFailed, match=f"guard '{name}' of Guarded failed .*Broken.*was not made") as failed:
            await ask(*args)
        assert not failed.value.committed
        assert isinstance(failed.value.__cause__, Broken)
        assert state_of(one) == "A"
    one.broken = False
    if event != "combine":
        await trigger(*args)
        assert (event == "choose") or state_of(one) == "B"


async def test_wrong_arguments_are_the_triggers_error_and_not_its_guards() -> None:
    @machine
    class Two:
        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @guard
        def can_ab(self, n: int, by: str) -> bool:
            return True

        @guard
        def many(self, n: int) -> bool:
            return n > 1

        @transition(A, B)
        async def ab(self, n: int, by: str) -> None: ...

        @transition(B, A, event="back", guard=many)
        async def back_many(self, n: int) -> str:
            return "many"

        @transition(B, A, event="back", guard=all_of("many"))
        async def back_by(self, n: int, by: str) -> str:
            return by

    one = Two()
    for ask in (one.ab, lambda *args: can(one.ab, *args), lambda *args: fire(one, "ab", *args)):
        with pytest.raises(TypeError, match=r"^ab\(\) missing a required argument: 'by'"):
            await ask(1)
        with pytest.raises(TypeError, match=r"^ab\(\) takes 2 positional arguments but 3 were given"):
            await ask(1, 2, 3)
    await one.ab(1, by="ann")
    assert await fire(one, "back", 2, by="bob") == "bob"  # the first of the two does not take it
    await one.ab(1, "ann")
    with pytest.raises(TypeError, match=r"^back_many\(\) missing a required argument: 'n'"):
        await fire(one, "back")


async def test_copies_and_pickles_keep_the_state() -> None:
    for one in (Order(total=1), Slotted()):
        await (one.confirm("x") if isinstance(one, Order) else one.go(1))
        for twin in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):  # noqa: S301
            assert state_of(twin) == state_of(one)
            assert twin.total == one.total


@pytest.mark.parametrize("awaiting", [False, True])
@pytest.mark.parametrize("assembled", [False, True])
async def test_super_runs_the_body_that_is_overridden(assembled: bool, awaiting: bool) -> None:
    class Parent:
        total: int = 0

        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @transition(A, B)
        async def go(self) -> str:
            self.last = "parent"
            return "parent"

        @transition(A, B)
        async def take(self, n: int, by: str = provided) -> int:
            self.parents = n
            return n

        @transition(B, A)
        async def back(self) -> None: ...

    base = machine(Parent) if assembled else Parent

    class Child(base):  # type: ignore[misc, valid-type]
        fails: bool = False

        @transition(base.A, base.B)
        async def go(self) -> str:
            if awaiting:
                await pause()
            said = await super().go()
            self.total += 1
            if self.fails:
                raise Broken("child")
            return f"child of {said}"

        @transition(base.A, base.B)
        async def take(self, n: int, by: str = provided) -> int:
            return 10 * await super().take(n, by="the child")

    child = machine(Child)()
    assert await child.go() == "child of parent"
    assert (state_of(child), child.total, child.last) == ("B", 1, "parent")
    await child.back()
    assert await child.take(2, by="me") == 20
    await child.back()
    child.fails, child.last = True, "before"
    del child.parents
    with pytest.raises(Broken):
        await child.go()
    assert (state_of(child), child.total, child.last) == ("A", 1, "before")
    with pytest.raises(MachineError, match="no transition" if assembled else r"is overridden in .*super\(\).go"):
        await base.go(child)
    assert state_of(child) == "A"


async def test_subclasses_inherit_and_replace() -> None:
    log: list[str] = []

    class Plain:
        @state(initial=True)
        class A: ...

        @state(final=True)
        class B: ...

        @guard
        def can_go(self) -> bool:
            log.append("base guard")
            return True

        @transition(A, B)
        async def go(self) -> str:
            return "base"

        def on_enter_b(self) -> None:
            log.append("base enter")

    base = machine(Plain)

    class Special(base):  # type: ignore[misc, valid-type]
        @guard
        def can_go(self) -> bool:
            log.append("special guard")
            return True

        @transition(base.A, base.B)
        async def go(self) -> str:
            return "special"

        def on_enter_b(self) -> None:
            log.append("special enter")

    with pytest.raises(MachineError, match=r"Special changes '\w+' .* has not been assembled"):
        state_of(Special())
    special = machine(Special)
    assert await special().go() == "special"
    assert await base().go() == "base"
    assert log == ["special guard", "special enter", "base guard", "base enter"]

    class Same(base):  # type: ignore[misc, valid-type]
        def helper(self) -> int:
            return 3

    same = Same()
    await same.go()
    assert in_state(same, base.B)


async def test_assembled_subclass_of_a_slotted_machine() -> None:
    class More(Slotted):
        @state
        class C: ...

        @transition("B", C)
        async def on(self) -> None: ...

        @transition(C, "A")
        async def off(self) -> None: ...

    more = machine(More)
    one = more()
    await one.go(1)
    await one.on()
    assert state_of(one) == "C"
    assert state_of(Slotted()) == "A"


# ----------------------------------------------------------------------------------- provided, reentrancy
async def test_provided_parameters_need_a_flowlet_or_a_value() -> None:
    class Case:
        @state(initial=True)
        class A: ...

        @state(final=True)
        class B: ...

        @transition(A, B)
        async def go(self, by: str, tool: str = provided) -> str:
            return f"{by} with {tool}"

    built = machine(Case)
    with pytest.raises(MachineError, match="parameter 'tool' of go is provided by a Flowlet"):
        await built().go("ann")
    assert await built().go("ann", tool="hammer") == "ann with hammer"


@pytest.mark.parametrize("where", ["guard", "exit", "action", "enter", "transition", "child"])
async def test_awaiting_an_event_of_the_same_machine_is_an_error(where: str) -> None:
    import anyio

    class Case:
        @state(initial=True)
        class A: ...

        @state
        class B: ...

        async def nest(self, here: str) -> None:
            if here == where:
                await self.back()

        @guard
        async def can_go(self) -> bool:
            await self.nest("guard")
            return True

        async def on_exit_a(self) -> None:
            await self.nest("exit")

        @transition(A, B)
        async def go(self) -> None:
            await self.nest("action")

        async def on_enter_b(self) -> None:
            await self.nest("enter")

        async def on_transition(self) -> None:
            await self.nest("transition")
            if where == "child":
                async with anyio.create_task_group() as group:
                    group.start_soon(self.back)

        @transition("*", A)
        async def back(self) -> None: ...

    one = machine(Case)()
    with pytest.raises(MachineError) as failed:
        await one.go()
    error: Any = failed.value
    while not str(error).startswith("event 'back'"):
        error = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__
    assert "raise_event(self.back)" in str(error)
    assert state_of(one) == ("A" if where in ("guard", "exit", "action") else "B")


async def test_machines_that_call_each_other_in_a_circle_get_an_error() -> None:
    class Link:
        other: Any

        @state(initial=True)
        class A: ...

        @state
        class B: ...

        @transition("*", B)
        async def go(self) -> None:
            await self.other.go()

        @transition(B, A)
        async def back(self) -> None: ...

    del Link.__annotations__["other"]
    built = machine(Link)
    one, two = built(), built()
    one.other, two.other = two, one
    with pytest.raises(MachineError, match="awaited inside a callback of the same machine"):
        await one.go()
    assert (state_of(one), state_of(two)) == ("A", "A")
    two.other = Order(total=1)
    two.other.go = two.other.confirm
    two.other.go = lambda: two.other.confirm("x")
    await one.go()
    assert (state_of(one), state_of(two), state_of(two.other)) == ("B", "B", "Confirmed")
