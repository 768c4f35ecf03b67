"""Finding the hooks of a class, and the methods that look like hooks and are none.

Law: ``on_enter_<state>``, ``on_exit_<state>``, ``on_transition`` and ``on_load`` are the hooks; a method
that is nearly one of them is a fault, since it would silently never run.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec

from flowlet.core.chart import Candidate, Hooks
from flowlet.core.chart_checks import arrows_of, entered_by, exited_by, names_of
from flowlet.core.faults import Faults, describe, nearest
from flowlet.core.hooks import Callback, EventParameters, bind, event_parameters
from flowlet.core.marks import TRANSITIONS
from flowlet.core.states import WITHIN, States
from flowlet.core.tree import Tree

ENTER, EXIT, TRANSITION, LOAD = "on_enter_", "on_exit_", "on_transition", "on_load"


class HookFunctions(msgspec.Struct, frozen=True, eq=False):
    """The hooks of a class before their parameters are bound, by the state's name."""

    enter: Mapping[str, Any]
    exit: Mapping[str, Any]
    transition: Any


def collect_hooks(cls: type, members: Mapping[str, Any], states: States, faults: Faults) -> HookFunctions:
    """Find the hooks of a class, noting those that name no state."""
    slugs = states.slugs()
    names = {n.rpartition(WITHIN)[2]: word for word, n in slugs.items()}
    names.update({n: word for word, n in slugs.items()})
    enter: dict[str, Any] = {}
    exits: dict[str, Any] = {}
    known = [TRANSITION, LOAD, *(p + s for p in (ENTER, EXIT) for s in slugs)]
    for name, member in members.items():
        if not callable(member) or isinstance(member, type) or name in (TRANSITION, LOAD):
            continue
        if getattr(member, TRANSITIONS, None) is not None:
            continue
        prefix = next((p for p in (ENTER, EXIT) if name.startswith(p)), None)
        if prefix is None:
            _check_near(cls, name, known, faults)
        elif name[len(prefix) :] in slugs:
            found = enter if prefix == ENTER else exits
            state = slugs[name[len(prefix) :]]
            if state in found:
                faults.add(f"{describe(cls)}.{name}", f"state {state!r} has this hook already, under another name")
            found[state] = member
        elif name.lower() in known or name[len(prefix) :] in names:
            right = prefix + (names[n] if (n := name[len(prefix) :]) in names else n.lower())
            faults.add(f"{describe(cls)}.{name}", f"hooks are named in lower case; call it {right!r}")
        else:
            faults.add(f"{describe(cls)}.{name}", f"it is the hook of no state{nearest(name, known)}")
    _check_load(cls, members.get(LOAD), faults)
    return HookFunctions(enter, exits, members.get(TRANSITION))


def _check_load(cls: type, function: Any, faults: Faults) -> None:
    if not inspect.isfunction(function):
        return
    for parameter in list(inspect.signature(function).parameters.values())[1:]:
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL:
            faults.add(
                f"{describe(cls)}.{LOAD}",
                f"nothing provides its parameter {parameter.name!r}; it takes none but those `= provided`",
            )


def _check_near(cls: type, name: str, known: Iterable[str], faults: Faults) -> None:
    """Note a method such as ``on_transitions``, ``onenter_paid`` or a bare ``on_enter``."""
    if not name.startswith("on"):
        return
    bare = name in ("on_enter", "on_exit", "on_enter_", "on_exit_")
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.88)
    if bare or found:
        near = f"; did you mean {found[0]!r}?" if found else f"; hooks are called like {next(iter(known))!r}"
        faults.add(f"{describe(cls)}.{name}", f"it looks like a hook and is none{near}")


def bind_hooks(
    cls: type,
    functions: HookFunctions,
    method: str,
    parameters: EventParameters,
    candidates: Iterable[Candidate],
    tree: Tree,
    namespace: Mapping[str, Any],
    faults: Faults,
) -> Hooks:
    """Bind the hooks that the candidates of one trigger can run to what that trigger is given."""
    cause = f"; it is caused by {method!r}, which has no such argument"
    mine = arrows_of([c for c in candidates if c.method == method])
    arrows = [arrow for some in mine.values() for arrow in some]
    entered = {name for arrow in arrows for name in names_of(tree, entered_by(tree, arrow))}
    left = {name for arrow in arrows for name in names_of(tree, exited_by(tree, arrow))}
    for some in mine.values():
        if len(some) > 1:  # what was left when the body failed, and stays active, is entered again
            entered |= names_of(tree, exited_by(tree, some[0]))

    def bound(name: str, function: Any) -> Callback:
        where = f"{describe(cls)}.{name}"
        if not inspect.isfunction(function):
            faults.add(where, "a hook is a plain method that takes the machine; leave out the decorator")
        return bind(
            name, function, parameters, namespace, faults,
            where=where, extras=("transition", "error"), cause=cause,
        )  # fmt: skip

    return Hooks(
        enter={s: bound(f.__name__, f) for s, f in functions.enter.items() if s in entered},
        exit={s: bound(f.__name__, f) for s, f in functions.exit.items() if s in left},
        transition=None if functions.transition is None else bound(TRANSITION, functions.transition),
    )


def bind_start(
    cls: type, functions: HookFunctions, tree: Tree, namespace: Mapping[str, Any], faults: Faults
) -> dict[str, Callback]:
    """Bind the enter hooks that run when a machine starts, when no event gives them anything."""
    nothing = event_parameters(_start, namespace, faults)
    found: dict[str, Callback] = {}
    for name in names_of(tree, sum(1 << n for n in tree.start().enters)):
        function = functions.enter.get(name)
        if inspect.isfunction(function):
            found[name] = bind(
                function.__name__, function, nothing, namespace, faults,
                where=f"{describe(cls)}.{function.__name__}", extras=("error",),
                cause="; it also runs when the machine starts, where there is no event: give it a default",
            )  # fmt: skip
    return found


def _start(self: Any) -> None:
    """Stand for the event that a machine starts with."""


def announcement(event: str) -> Callback:
    """Make the hook that queues an event which says that something is done."""

    def announce(machine: Any) -> None:
        seat = machine._flowlet_turn
        turn = getattr(seat, "_flowlet_turn", seat)
        turn.queue(event)

    nothing = event_parameters(_start, {}, Faults())
    return Callback(f"announcing {event!r}", announce, False, False, False, (), nothing, True)
