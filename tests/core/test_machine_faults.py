"""Every fault of a machine's definition is found at assembly, named, and reported with the others."""

from __future__ import annotations

import enum
import functools
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field
from typing import Any, ClassVar

import attrs
import msgspec
import pytest

from flowlet.core.annotations import provided
from flowlet.core.faults import Faults
from flowlet.core.guards import all_of, any_of
from flowlet.core.hooks import Transition
from flowlet.core.machine_builder import build_machine
from flowlet.core.marks import compensate, guard, state, step, transition

Build = Callable[[], Any]
CASES: list[Any] = []


def faults_of(cls: Any, **settings: Any) -> list[str]:
    faults = Faults()
    name = getattr(cls, "__name__", "thing")
    definition = build_machine(cls, name=name, namespace={}, faults=faults, **settings)
    assert (definition is None) == bool(faults.problems)
    return faults.problems


def fault(*sentences: str, **settings: Any) -> Callable[[Build], Build]:
    """Register a class that must have exactly these faults."""

    def register(build: Build) -> Build:
        CASES.append(pytest.param(build, sentences, settings, id=build.__name__))
        return build

    return register


class Base:
    """A machine without fault, to be spoilt by subclasses."""

    total: int = 0

    @state(initial=True)
    class Draft: ...

    @state
    class Confirmed: ...

    @state(final=True)
    class Shipped: ...

    @guard
    def can_confirm(self) -> bool:
        return self.total > 0

    @transition(Draft, Confirmed)
    async def confirm(self, by: str) -> str:
        return by

    @transition(Confirmed, Shipped)
    async def ship(self) -> None: ...


def test_a_sound_machine_has_no_faults() -> None:
    assert faults_of(Base) == []


# States ----------------------------------------------------------------------------------------------
@fault(
    "no_states.<locals>.Case: it has no states; mark nested classes with @state, or use an Enum of state(...) values"
)
def no_states() -> type:
    class Case: ...

    return Case


@fault("Case: it has no initial state; write @state(initial=True) on one", allow=frozenset({"unreachable"}))
def no_initial() -> type:
    class Case:
        @state
        class A: ...

        @state(final=True)
        class B: ...

        @transition(A, B)
        async def go(self) -> None: ...

    return Case


@fault("Case: it has more than one initial state (A, B); keep initial=True on one")
def two_initial() -> type:
    class Case:
        @state(initial=True)
        class A: ...

        @state(initial=True, final=True)
        class B: ...

        @transition(A, B)
        async def go(self) -> None: ...

    return Case


@fault("Case.lose: target state 'Shiped' does not exist; did you mean 'Shipped'?")
def unknown_target() -> type:
    class Case(Base):
        @transition("Draft", "Shiped")
        async def lose(self) -> None: ...

    return Case


@fault("Case.lose: source state 'Drafft' does not exist; did you mean 'Draft'?")
def unknown_source() -> type:
    class Case(Base):
        @transition("Drafft", Base.Shipped)
        async def lose(self) -> None: ...

    return Case


@fault("Case.lose: on_error state 'Lost' does not exist")
def unknown_on_error() -> type:
    class Case(Base):
        @transition("Draft", "Shipped", on_error="Lost")
        async def lose(self) -> None: ...

    return Case


@fault("Case.lose: target state 'Case.Lost' does not exist here (put @state on the class)")
def unmarked_state() -> type:
    class Case(Base):
        class Lost: ...

        @transition(Base.Draft, Lost)
        async def lose(self) -> None: ...

    return Case


@fault('Case.lose: "*" can only be a source, not the target')
def star_as_target() -> type:
    class Case(Base):
        @transition(Base.Draft, "*")
        async def lose(self) -> None: ...

    return Case


@fault("Case.lose: it leaves the final state 'Shipped'; drop that source, or final=True")
def out_of_final() -> type:
    class Case(Base):
        @transition(Base.Shipped, Base.Draft)
        async def lose(self) -> None: ...

    return Case


@fault('Case.lose: the transition has no source state; give one, several, or "*"')
def no_source() -> type:
    class Case(Base):
        @transition((), Base.Draft)
        async def lose(self) -> None: ...

    return Case


@fault("Case: two states are called 'Same'; rename one")
def duplicate_state() -> type:
    @state
    class Same: ...

    other = state(type("Same", (), {}))

    class Case(Base):
        one = Same
        two = other

        @transition(Base.Draft, Same)
        async def lose(self) -> None: ...

        @transition(Same, Base.Shipped)
        async def find(self) -> None: ...

    return Case


@fault("Case: states 'Draft' and 'DRAFT' share the hooks on_enter_draft; rename one")
def same_slug() -> type:
    class Case(Base):
        @state(final=True)
        class DRAFT: ...

        @transition(Base.Draft, DRAFT)
        async def lose(self) -> None: ...

    return Case


@fault("Outer: a final state has no states inside", allow=frozenset({"dead_end"}))
def nested_in_final() -> type:
    @state(final=True)
    class Outer:
        @state(initial=True)
        class Inner: ...

    class Case(Base):
        outer = Outer

        @transition(Base.Draft, Outer)
        async def lose(self) -> None: ...

    return Case


class One(enum.Enum):
    A = state(initial=True)
    B = state(final=True)


class Two(enum.Enum):
    C = state(final=True)


@fault(
    "Case: its states are in more than one Enum (One and Two); put them into one",
    "Case.go: target state 'C' does not exist",
)
def two_enums() -> type:
    class Case:
        @transition(One.A, Two.C)
        async def go(self) -> None: ...

        @transition(One.A, One.B)
        async def end(self) -> None: ...

    return Case


@fault("Case: its states are partly nested classes and partly Enum members; use one of the two")
def mixed() -> type:
    class Case(Base):
        @transition(Base.Draft, Two.C)
        async def go(self) -> None: ...

    return Case


class Half(enum.Enum):
    A = state(initial=True)
    B = state(final=True)
    C = 3


@fault("Half: the value of 'C' is no state; write C = state()")
def half_enum() -> type:
    class Case:
        States = Half

        @transition(Half.A, Half.B)
        async def go(self) -> None: ...

    return Case


# The chart -------------------------------------------------------------------------------------------
@fault("""Case: state 'Lost' is unreachable: no transition leads to it; add one, or allow={"unreachable"}""")
def unreachable() -> type:
    class Case(Base):
        @state(final=True)
        class Lost: ...

    return Case


@fault(
    "Case: state 'Lost' is a dead end: no transition leaves it; write @state(final=True), add a transition, "
    """or allow={"dead_end"}"""
)
def dead_end() -> type:
    class Case(Base):
        @state
        class Lost: ...

        @transition("Draft", Lost)
        async def lose(self) -> None: ...

        @transition(Lost, None)
        async def stay(self) -> None: ...

    return Case


@fault(
    "Case: transition lose (Draft -> Confirmed) is never chosen: it is shadowed by lose (Draft -> Shipped), "
    """which has no guard; give that one a guard, put it last, or allow={"shadowed"}"""
)
def shadowed() -> type:
    class Case(Base):
        @transition("Draft", "Shipped")
        @transition("Draft", "Confirmed")
        async def lose(self) -> None: ...

    return Case


@fault(
    "Case: transition lose (Draft -> Shipped) is there twice: it is shadowed by lose (Draft -> Shipped), "
    """which has no guard; give that one a guard, put it last, or allow={"shadowed"}"""
)
def twice() -> type:
    class Case(Base):
        @transition(("Draft", "Draft"), "Shipped")
        async def lose(self) -> None: ...

    return Case


@fault(
    "Case: transition pay_card (Draft -> Shipped) is never chosen: it is shadowed by pay_cash (Draft -> Shipped), "
    """which has no guard; give that one a guard, put it last, or allow={"shadowed"}"""
)
def shadowed_by_other_method() -> type:
    class Case(Base):
        @transition("Draft", "Shipped", event="pay")
        async def pay_cash(self) -> None: ...

        @transition("Draft", "Shipped", event="pay")
        async def pay_card(self) -> None: ...

    return Case


@pytest.mark.parametrize("build", [unreachable, dead_end, shadowed, twice, shadowed_by_other_method])
def test_doubtful_charts_pass_when_allowed(build: Build) -> None:
    kind = {"unreachable": "unreachable", "dead_end": "dead_end"}.get(build.__name__, "shadowed")
    assert faults_of(build(), allow=frozenset({kind})) == []


def test_a_specific_transition_before_a_wildcard_is_no_shadow() -> None:
    class Case(Base):
        @transition("*", "Shipped")
        @transition("Draft", "Confirmed")
        async def skip(self) -> None: ...

    assert faults_of(Case) == []


# Guards ----------------------------------------------------------------------------------------------
@fault(
    "Case.can_confrim: this guard is never asked: there is no event 'confrim' that it could guard; "
    "did you mean 'can_confirm'?"
)
def guard_of_nothing() -> type:
    class Case(Base):
        @guard
        def can_confrim(self) -> bool:
            return True

    return Case


@fault("Case.is_paid: this guard is never asked: no transition names it in guard=")
def unused_guard() -> type:
    class Case(Base):
        @guard
        def is_paid(self) -> bool:
            return True

    return Case


@fault("Case.lose: guard='is_payed' names no guard of Case; did you mean 'is_paid'?")
def unknown_guard() -> type:
    class Case(Base):
        @guard
        def is_paid(self) -> bool:
            return True

        @transition("Draft", "Shipped", guard=all_of("is_paid", "is_payed"))
        async def lose(self) -> None: ...

    return Case


@fault("Case.lose: guard='is_paid' names no guard of Case; put @guard on that method")
def unmarked_guard() -> type:
    class Case(Base):
        def is_paid(self) -> bool:
            return True

        @transition("Draft", "Shipped", guard="is_paid")
        async def lose(self) -> None: ...

    return Case


@fault("Case.lose: guard=3 is no guard; give a function or a name")
def guard_is_a_number() -> type:
    class Case(Base):
        @transition("Draft", "Shipped", guard=3)  # type: ignore[arg-type]
        async def lose(self) -> None: ...

    return Case


@fault("Case.lose: any_of() needs at least one guard")
def empty_guard() -> type:
    class Case(Base):
        @transition("Draft", "Shipped", guard=any_of())
        async def lose(self) -> None: ...

    return Case


@fault(
    "Case.can_lose: can_lose: nothing provides its parameter 'hwo'; it guards 'lose', which has no such argument; "
    "did you mean 'how'?"
)
def guard_parameter() -> type:
    class Case(Base):
        @guard
        def can_lose(self, hwo: str) -> bool:
            return True

        @transition("Draft", "Shipped")
        async def lose(self, how: str) -> None: ...

    return Case


@fault("Case: two guards are called 'ok'; rename one")
def two_guards() -> type:
    class Case(Base):
        @guard(name="ok")
        def one(self) -> bool:
            return True

        @guard(name="ok")
        def two(self) -> bool:
            return True

        @transition("Draft", "Shipped", guard="ok")
        async def lose(self) -> None: ...

    return Case


# Triggers --------------------------------------------------------------------------------------------
@fault("Case.lose: a trigger must be a coroutine function: write `async def`")
def sync_trigger() -> type:
    class Case(Base):
        @transition("Draft", "Shipped")  # type: ignore[arg-type]
        def lose(self) -> None: ...

    return Case


@fault("Case.lose: a trigger is a method: give it `self` as its first parameter")
def trigger_without_self() -> type:
    class Case(Base):
        @transition("Draft", "Shipped")
        async def lose() -> None: ...  # type: ignore[misc]

    return Case


@fault("Case.ship: it overrides a trigger without @transition; put the mark on it, or rename it")
def override_without_mark() -> type:
    class Case(Base):
        async def ship(self) -> None: ...

    return Case


@fault("Case.can_confirm: it overrides a guard without @guard; put the mark on it, or rename it")
def override_guard_without_mark() -> type:
    class Case(Base):
        def can_confirm(self) -> bool:
            return True

    return Case


@fault("Case.lose: event='get lost' cannot be an event's name: use a word without spaces")
def event_with_space() -> type:
    class Case(Base):
        @transition("Draft", "Shipped", event="get lost")
        async def lose(self) -> None: ...

    return Case


@fault("Case.on_enter_draft: a trigger cannot have the name of a hook; rename it")
def trigger_like_a_hook() -> type:
    class Case(Base):
        @transition("Draft", "Shipped")
        async def on_enter_draft(self) -> None: ...

    return Case


@fault('Case.lose: on_conflict must be "raise" or "retry", not \'again\'')
def transition_on_conflict() -> type:
    class Case(Base):
        @transition("Draft", "Shipped", on_conflict="again")  # type: ignore[arg-type]
        async def lose(self) -> None: ...

    return Case


@fault("Case.lose: event=3 cannot be an event's name: use a word without spaces")
def transition_event_of_another_type() -> type:
    class Case(Base):
        @transition("Draft", "Shipped", event=3)  # type: ignore[arg-type]
        async def lose(self) -> None: ...

    return Case


@fault("Case.lose: event='' cannot be an event's name: use a word without spaces")
def transition_event_without_a_name() -> type:
    class Case(Base):
        @transition("Draft", "Shipped", event="")
        async def lose(self) -> None: ...

    return Case


@fault("Case.lose: exclusive must be True or False, not 'yes'")
def transition_exclusive() -> type:
    class Case(Base):
        @transition("Draft", "Shipped", exclusive="yes")  # type: ignore[arg-type]
        async def lose(self) -> None: ...

    return Case


@fault("Case.lose: a trigger is a plain async method that takes the machine; leave out @staticmethod")
def transition_static() -> type:
    class Case(Base):
        @staticmethod
        @transition("Draft", "Shipped")
        async def lose() -> None: ...

    return Case


@fault("Case.lose: a trigger is a plain async method that takes the machine; leave out @classmethod")
def transition_of_the_class() -> type:
    class Case(Base):
        @classmethod
        @transition("Draft", "Shipped")
        async def lose(cls) -> None: ...

    return Case


@fault("Case.lose: a trigger is a plain async method that takes the machine; leave out @property")
def transition_property() -> type:
    class Case(Base):
        @property
        @transition("Draft", "Shipped")
        async def lose(self) -> None: ...

    return Case


TWICE = "it is marked as a trigger and as a step, and can only be one; let the trigger call a step of its own"


@fault(f"Case.lose: {TWICE}", f"Case.find: {TWICE}")
def transition_and_step() -> type:
    class Case(Base):
        @step
        @transition("Draft", "Shipped")
        async def lose(self) -> None: ...

        @transition("Draft", "Shipped")
        @step
        async def find(self) -> None: ...

    return Case


@fault("Case.lose: it is marked as a trigger and as a compensation, and can only be one")
def transition_and_compensation() -> type:
    @step
    async def act() -> None: ...

    class Case(Base):
        @transition("Draft", "Shipped")
        @compensate(act)
        async def lose(self) -> None: ...

    return Case


@fault("Case.lose: a decorator above @transition would be lost; put it below, next to the function")
def transition_under_a_decorator() -> type:
    def logged(function: Any) -> Any:
        @functools.wraps(function)
        async def call(*args: Any) -> Any:
            return await function(*args)

        return call

    class Case(Base):
        @logged
        @transition("Draft", "Shipped")
        async def lose(self) -> None: ...

    return Case


@fault(
    "Case: 'lines' is a field of a class to be; @flow.machine must be the outermost decorator",
    "Case: 'notes' is a field of a class to be; @flow.machine must be the outermost decorator",
)
def data_of_a_class_to_be() -> type:
    class Case(Base):
        lines: list[str] = field(default_factory=list)
        notes: list[str] = attrs.field(factory=list)

    return Case


# Hooks -----------------------------------------------------------------------------------------------
@fault("Case.on_enter_Shipped: hooks are named in lower case; call it 'on_enter_shipped'")
def enter_in_upper_case() -> type:
    class Case(Base):
        async def on_enter_Shipped(self) -> None: ...

    return Case


@fault("Case.on_exit_InTransit: hooks are named in lower case; call it 'on_exit_in_transit'")
def exit_in_upper_case() -> type:
    class Case(Base):
        @state
        class InTransit: ...

        @transition(Base.Confirmed, InTransit)
        async def send(self) -> None: ...

        @transition(InTransit, Base.Shipped)
        async def arrive(self) -> None: ...

        async def on_exit_InTransit(self) -> None: ...

    return Case


@fault("Case.on_enter_shiped: it is the hook of no state; did you mean 'on_enter_shipped'?")
def enter_typo() -> type:
    class Case(Base):
        async def on_enter_shiped(self) -> None: ...

    return Case


@fault("Case.on_exit_confirm: it is the hook of no state; did you mean 'on_exit_confirmed'?")
def exit_typo() -> type:
    class Case(Base):
        def on_exit_confirm(self) -> None: ...

    return Case


@fault("Case.on_transitions: it looks like a hook and is none; did you mean 'on_transition'?")
def transition_typo() -> type:
    class Case(Base):
        def on_transitions(self) -> None: ...

    return Case


@fault("Case.on_enter: it looks like a hook and is none; hooks are called like 'on_transition'")
def bare_hook() -> type:
    class Case(Base):
        def on_enter(self) -> None: ...

    return Case


@fault(
    "Case.on_enter_confirmed: on_enter_confirmed: nothing provides its parameter 'reason'; it is caused by 'confirm', "
    "which has no such argument"
)
def hook_parameter() -> type:
    class Case(Base):
        def on_enter_confirmed(self, reason: str) -> None: ...

    return Case


@fault("Case.on_load: nothing provides its parameter 'store'; it takes none but those `= provided`")
def load_parameter() -> type:
    class Case(Base):
        def on_load(self, store: str) -> None: ...

    return Case


@fault("Case.on_enter_confirmed: a hook is a plain method that takes the machine; leave out the decorator")
def static_hook() -> type:
    class Case(Base):
        @staticmethod
        def on_enter_confirmed() -> None: ...

    return Case


def test_other_methods_that_start_with_on_are_no_hooks() -> None:
    class Case(Base):
        def on_timeout(self) -> None: ...
        def only(self) -> None: ...
        def on_enter_confirmed(self, by: str, t: Transition, tool: str = "x") -> None: ...
        def on_transition(self, *, error: Exception | None) -> None: ...

    assert faults_of(Case) == []


# Data ------------------------------------------------------------------------------------------------
@fault("Case: data attribute 'what' is annotated Any; name the type, so that a replay gives back the same one")
def data_any() -> type:
    class Case(Base):
        what: Any = None

    return Case


@fault(
    "Case: an annotation cannot be resolved (name 'Missing' is not defined); "
    "import the name where the function is defined"
)
def data_unresolved() -> type:
    class Case(Base):
        what: Missing  # type: ignore[name-defined]  # noqa: F821

    return Case


class Foreign: ...


@fault("Case: data attribute 'what' has a type that cannot be stored: Foreign; make it a Struct or a dataclass")
def data_foreign() -> type:
    class Case(Base):
        what: Foreign

    return Case


@fault("Case: 'Lost' is both a state and a data attribute; rename one")
def data_and_state() -> type:
    class Case(Base):
        Lost: int

        @state(final=True)
        class Lost: ...  # type: ignore[no-redef]

        @transition("Draft", Lost)
        async def lose(self) -> None: ...

    return Case


@fault("Case: 'ship' is both a method and a data attribute; rename one")
def data_and_trigger() -> type:
    class Case(Base):
        ship: int  # type: ignore[assignment]

    return Case


def test_what_is_not_data_is_left_alone() -> None:
    @dataclass
    class Case(Base):
        kinds: ClassVar[list[Any]] = []
        gateway: Foreign = provided
        note: InitVar[int] = 0
        _cache: Any = None

    assert faults_of(Case) == []


# The class and its settings --------------------------------------------------------------------------
@fault("Case: a msgspec.Struct cannot be a machine, since it has no room for a state; use a dataclass")
def a_struct() -> type:
    class Case(msgspec.Struct):
        total: int

    return Case


@fault("One: an Enum cannot be a machine; its members can be the states of one")
def an_enum() -> type:
    return One


@fault("Case: a subclass of tuple cannot be a machine; use a dataclass or a plain class")
def a_tuple() -> type:
    class Case(tuple[int, ...]): ...

    return Case


@fault("Case: a frozen class cannot be a machine, since its attributes are the machine's data; leave out frozen=True")
def a_frozen_dataclass() -> type:
    @dataclass(frozen=True)
    class Case:
        total: int = 0

    return Case


@fault("Case: a frozen class cannot be a machine, since its attributes are the machine's data; leave out frozen=True")
def a_frozen_attrs_class() -> type:
    @attrs.frozen
    class Case:
        total: int = 0

    return Case


@fault("a_function: a machine is a class; put @flow.machine on a class")
def a_function() -> Any:
    return a_function


@fault("Base: version must be a whole number of at least 1, not 0", version=0)
def version_zero() -> type:
    return Base


@fault("Base: version must be a whole number of at least 1, not True", version=True)
def version_bool() -> type:
    return Base


@fault('Base: on_conflict must be "raise" or "retry", not \'retyr\'', on_conflict="retyr")
def class_on_conflict() -> type:
    return Base


@fault(
    "Base: allow='dead-end' is not known; did you mean 'dead_end'?; there are "
    "['conflict', 'cycle', 'dead_end', 'no_final', 'no_initial', 'shadowed', 'unreachable']",
    allow=frozenset({"dead-end"}),
)
def allow_typo() -> type:
    return Base


@fault(
    "Base: migrate={2: ...} must name an older definition version from 1 to 1",
    version=2,
    migrate={2: lambda record: record},
)
def migrate_from_now() -> type:
    return Base


async def _migrate(record: dict[str, Any]) -> dict[str, Any]:
    return record


@fault("Base: migrate={1: ...} must be a plain function from dict to dict", version=2, migrate={1: _migrate})
def migrate_async() -> type:
    return Base


@pytest.mark.parametrize(("build", "sentences", "settings"), CASES)
def test_fault(build: Build, sentences: tuple[str, ...], settings: dict[str, Any]) -> None:
    found = [problem.removeprefix(f"{build.__name__}.<locals>.") for problem in faults_of(build(), **settings)]
    assert found == [sentence.removeprefix(f"{build.__name__}.<locals>.") for sentence in sentences]


def test_all_faults_are_reported_together() -> None:
    class Case:
        what: Any

        @state
        class A: ...

        @transition(A, "B")
        def go(self) -> None: ...  # type: ignore[misc]

        def on_enter_b(self) -> None: ...

    found = faults_of(Case, version=-1)
    assert len(found) == 7, found
    assert functools.reduce(lambda n, p: n + p.startswith("Case"), found, 0) == 7
