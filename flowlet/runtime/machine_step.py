"""Making one transition: exit hooks, actions, commit, enter hooks, ``on_transition``.

Law: the order of one transition is written down once, in `follow`. What fails or is
cancelled before the commit leaves the machine as it was; what fails after it leaves it committed. The
commit is an assignment, or, for a machine with a store, one append made by its `Bond`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from flowlet.core.chart import Landing, Plan
from flowlet.core.configurations import DEFINITION
from flowlet.core.hooks import Callback, EventParameters, refuse_awaitable
from flowlet.core.machine import MachineDefinition
from flowlet.errors import HookFailed, MachineError
from flowlet.runtime.machine_bond import Bond
from flowlet.runtime.machine_choice import Happening, taken_of
from flowlet.runtime.machine_timers import advance, end_works
from flowlet.runtime.outbox import close_outbox, open_outbox
from flowlet.runtime.turns import BUSY, Turn, is_inside


async def follow(
    machine: Any,
    bond: Bond | None,
    turn: Turn,
    plan: Plan,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    key: str | None = None,
    *,
    is_watched: bool = False,
) -> Any:
    """Make one transition: exit hooks, action, commit, enter hooks, ``on_transition``.

    Args:
        key: the idempotency key of the run that fires it.
        is_watched: observers have been told of it.
    """
    if bond is not None and bond.is_observed and not is_watched:
        watched = partial(follow, machine, bond, turn, plan, args, kwargs, key, is_watched=True)
        return await bond.watch(machine, plan, watched)
    if plan.automatic:
        kwargs = taken_of(plan.parameters, kwargs)
    happening = None if plan.plain else Happening(bond, plan, plan.parameters.who(args, kwargs))
    snapshot = getattr(type(machine), DEFINITION).snapshot
    taken = snapshot.take(machine)
    mark = _mark(turn)
    box = None
    if bond is not None and plan.waits:  # what waits for nothing cannot start or send anything either
        open_outbox(turn, bond)
    landing, result, acting = plan.landing, None, 0
    try:
        if plan.exits:
            plan.parameters.check(args, kwargs)
            await run_hooks(plan.exits, machine, args, kwargs, happening, committed=False)
        try:
            result = await _act(plan.action.function, plan.parameters, machine, args, kwargs, happening)
            for act in plan.more:
                acting += 1
                await _act(act.action.function, act.parameters, machine, args, kwargs, happening)
        except Exception as error:
            rescue = plan.more[acting - 1].rescue if acting else plan.rescue
            if rescue is None:
                raise
            snapshot.restore(machine, taken)
            _cut(turn, mark)
            if bond is not None:
                open_outbox(turn, bond)  # anew
            landing, result = rescue, None
            happening = happening or Happening(bond, plan)
            happening.error, happening.target = error, landing.target
            if landing.exits:
                await run_hooks(landing.exits, machine, args, kwargs, happening, committed=False)
        if bond is None:
            if landing.times or turn.delayed:
                advance(machine, turn, landing)
            machine._flowlet_state = landing.target
        else:
            box = close_outbox(turn)
            await bond.commit(machine, turn, plan, landing, args, kwargs, key, result, box)
    except BaseException:
        turn.outbox = None
        snapshot.restore(machine, taken)
        _cut(turn, mark)
        if bond is not None:
            bond.doubt()
        raise
    if box is not None:
        await box.deliver()
    if landing.enters or landing.ends:
        if happening is not None:
            happening.commit()
        await run_enter_hooks(machine, bond, turn, landing, args, kwargs, happening)
    return result


async def run_enter_hooks(
    machine: Any,
    bond: Bond | None,
    turn: Turn,
    landing: Landing,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    happening: Happening | None,
) -> None:
    """End the work of states that were left, and run enter hooks.

    One that fails does not keep back what is done by the transition, which is committed.
    """
    mark = _mark(turn)[0]
    try:
        if landing.ends:
            await (end_works(machine, landing.ends) if bond is None else bond.revoke())
        await run_hooks(landing.enters, machine, args, kwargs, happening, committed=True)
    except BaseException:
        said = [item.event for item in list(turn.raised or ())[mark:]]
        for event in landing.done:
            if event not in said:
                turn.queue(event)
        raise


async def _act(
    action: Any,
    parameters: EventParameters,
    machine: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    happening: Happening | None,
) -> Any:
    if not parameters.provided:
        return await action(machine, *args, **kwargs)
    assert happening is not None
    return await _act_provided(action, parameters, machine, args, kwargs, happening)


async def _act_provided(
    action: Any,
    parameters: EventParameters,
    machine: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    happening: Happening,
) -> Any:
    """Run an action that takes provided parameters; they and what is given go by name."""
    parameters.check(args, kwargs)
    named = {**dict(zip(parameters.names, args, strict=False)), **kwargs}
    for name, annotation in parameters.provided:
        if name not in named:
            named[name] = happening.provide(annotation, f"parameter {name!r} of {parameters.method}")
    return await action(machine, **named)


async def act_for_heir(
    machine: Any,
    held: Any,
    definition: MachineDefinition,
    method: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """Run the body of a trigger for a machine of a derived class, whose own trigger calls ``super().go()``.

    Args:
        held: the turn or bond that the machine holds.
        definition: of the base class, which has nothing to say about the machine.
    """
    bond = held if isinstance(held, Bond) else None
    turn = held if bond is None else bond._flowlet_turn
    if turn is None or (turn is not BUSY and not is_inside(turn)):  # pyright: ignore[reportArgumentType] - no bond
        heir = type(machine).__qualname__
        raise MachineError(
            f"{definition.name}.{method} was called on a {heir}, which has a definition of its own; fire the event "
            f"with .{method}(...), and call super().{method}(...) only in the body that overrides it"
        )
    action, parameters = definition.methods[method].action, definition.parameters[method]
    if parameters.provided:
        return await _act_provided(action, parameters, machine, args, kwargs, Happening(bond, None))
    return await action(machine, *args, **kwargs)


async def run_hooks(
    hooks: Sequence[Callback],
    machine: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    happening: Happening | None,
    *,
    committed: bool,
) -> None:
    """Run hooks one after the other; the first that raises is the last that runs."""
    for hook in hooks:
        try:
            if hook.alone:
                outcome = hook.function(machine)
            else:
                outcome = hook.call(machine, args, kwargs, happening)  # type: ignore[arg-type]
            if hook.is_async:
                await outcome
            elif outcome is not None:
                refuse_awaitable(outcome, f"hook {hook.name!r}")
        except Exception as error:
            raise hook_failure(machine, hook.name, error, committed=committed) from error


def hook_failure(machine: Any, hook: str, error: BaseException, *, committed: bool) -> BaseException:
    """Build what a hook's exception surfaces as; a cancellation stays what it is."""
    if not isinstance(error, Exception):
        return error
    state = "has been committed" if committed else "was not made"
    text = f"hook {hook!r} of {type(machine).__name__} failed ({error!r}); the transition {state}"
    return HookFailed(text, committed)


def _mark(turn: Turn) -> tuple[int, int]:
    """Note how much has been raised."""
    return len(turn.raised or ()), len(turn.delayed or ())


def _cut(turn: Turn, mark: tuple[int, int]) -> None:
    """Forget what a transition that did not happen has raised."""
    if turn.raised is not None:
        while len(turn.raised) > mark[0]:
            turn.raised.pop()
    if turn.delayed is not None:
        del turn.delayed[mark[1] :]
