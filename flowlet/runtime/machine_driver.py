"""Driving a machine through an event: turn, guards, exit hooks, action, commit, enter hooks, what was raised.

Law: the order of one transition is written down once, in `follow`. What fails or is
cancelled before the commit leaves the machine as it was; what fails after it leaves it committed. The
commit is an assignment, or, for a machine with a store, one append made by its `Bond`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from flowlet.core.chart import Landing, Plan, Plans
from flowlet.core.configurations import DEFINITION
from flowlet.core.current import run_context
from flowlet.core.guards import guard_failure
from flowlet.core.hooks import Callback, EventParameters, Transition, refuse_awaitable
from flowlet.core.machine import MachineDefinition
from flowlet.core.run import InsideEvent
from flowlet.core.statechart import Choice, Move
from flowlet.errors import Conflict, HookFailed, MachineError, TransitionNotAllowed
from flowlet.runtime.machine_bond import Bond
from flowlet.runtime.machine_timers import advance, end_works, leave_off, take_up
from flowlet.runtime.turns import BUSY, Raised, Turn, is_inside, leave, open_turn, wait

LONGEST = 10_000
"""Events that callbacks may raise in one turn before it is taken for an endless loop."""


class Happening:
    """What callbacks may ask about the transition they are part of; see `flowlet.core.hooks.Moment`."""

    __slots__ = ("_bond", "_committed", "_made", "_plan", "_who", "error", "target")

    def __init__(self, bond: Bond | None, plan: Plan | None, who: str | None = None) -> None:
        self._bond, self._plan, self._who = bond, plan, who
        self._made: Transition | None = None
        self._committed = False
        self.error: BaseException | None = None
        self.target = None if plan is None else plan.target

    def commit(self) -> None:
        """Have the transition described anew after the commit, with its version and time."""
        self._made = None
        self._committed = True

    def transition(self) -> Transition:
        if self._made is None:
            assert self._plan is not None
            assert self.target is not None
            bond = self._bond
            version, at = (0, datetime.now(UTC)) if bond is None else bond.stamp(committed=self._committed)
            self._made = Transition(
                self._plan.event, self._plan.source.state, self.target.state, version, at, self._who
            )
        return self._made

    def provide(self, annotation: Any, what: str) -> Any:
        if self._bond is None:
            raise MachineError(f"{what} is provided by a Flowlet, and this machine has none; use flow.create")
        return self._bond.office.provided(annotation, what)


# Choosing -------------------------------------------------------------------------------------------
async def choose(
    machine: Any, bond: Bond | None, plans: Sequence[Plan] | Choice, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Plan | str | None:
    """Find the first plan whose guards agree.

    Returns:
        The plan; or the name of the first guard that refused; or None when there are no plans.

    Raises:
        TypeError: the arguments do not fit the method whose guards would judge them.
        HookFailed: a guard raised.
    """
    if type(plans) is Choice:
        return await _choose_moves(machine, bond, plans, args, kwargs)
    refusal: str | None = None
    misfit: TypeError | None = None
    agreed: Any = None
    for plan in cast("Sequence[Plan]", plans):
        if plan.asks:
            try:
                plan.parameters.check(args, kwargs)
            except TypeError as error:
                misfit = misfit or error  # of several methods that serve the event, another may take them
                continue
        gate = plan.gate
        if gate is not None and gate.leaf.function is not agreed:  # type: ignore[union-attr]
            refused = await _ask(gate, machine, bond, args, kwargs)
            if refused is not None:
                refusal = refusal or refused
                continue
            agreed = gate.leaf.function  # type: ignore[union-attr]
        for check in plan.checks:
            refused = await _ask(check, machine, bond, args, kwargs)
            if refused is not None:
                refusal = refusal or refused
                break
        else:
            return plan
    if misfit is not None:
        raise misfit
    return refusal


async def _choose_moves(
    machine: Any, bond: Bond | None, choice: Choice, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Plan | str | None:
    """Find for each active region the first transition whose guards agree; each guard is asked once."""
    refusals: dict[Any, str | None] = {}
    enabled: list[Move] = []
    misfit: TypeError | None = None
    for level in choice.levels:
        for move in level:
            if move in enabled:
                break
            given = _given(move.parameters, kwargs) if move.candidate.automatic else kwargs
            if move.asks:
                try:
                    move.parameters.check(args, given)
                except TypeError as error:
                    misfit = misfit or error
                    continue
            if await _refusal(move, refusals, machine, bond, args, given) is None:
                enabled.append(move)
                break
    if enabled:
        return choice.plan(enabled)
    if misfit is not None:
        raise misfit
    return next((refused for refused in refusals.values() if refused is not None), None)


async def _refusal(
    move: Move,
    known: dict[Any, str | None],
    machine: Any,
    bond: Bond | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> str | None:
    """Ask the guards of a move that have not been asked yet."""
    gate = move.candidate.gate
    for check in (gate, move.candidate.check):
        if check is None:
            continue
        key: Any = check if check.leaf is None else (check.leaf.function, check is gate or check.leaf.event.method)
        if key not in known:
            known[key] = await _ask(check, machine, bond, args, kwargs)
        if known[key] is not None:
            return known[key]
    return None


def _given(parameters: EventParameters, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return of what could be given to a transition that happens by itself what it takes."""
    return {name: value for name, value in kwargs.items() if parameters.has(name)}


async def _ask(
    check: Any, machine: Any, bond: Bond | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> str | None:
    leaf = check.leaf
    if leaf is None or not leaf.alone:
        refusal: str | None = await check.refusal(machine, args, kwargs, Happening(bond, None))
        return refusal
    try:
        answer = leaf.function(machine)
        if leaf.is_async:
            answer = await answer
    except Exception as error:
        raise guard_failure(machine, check.name, error) from error
    if answer is not True and answer is not False and not leaf.is_async:
        refuse_awaitable(answer, f"guard {check.name!r}")
    return None if answer else check.name


def not_allowed(definition: MachineDefinition, event: str, state: str, chosen: str | None) -> TransitionNotAllowed:
    """Build the refusal that says which of the two it was."""
    if chosen is not None:
        return TransitionNotAllowed(event, state, "guard", chosen)
    sources = dict.fromkeys(c.state for c in definition.plans.get(event, ()))
    return TransitionNotAllowed(event, state, "no_transition", None, f"it leaves {', '.join(sources) or 'no state'}")


# Following a plan -----------------------------------------------------------------------------------
async def follow(
    machine: Any,
    bond: Bond | None,
    turn: Turn,
    plan: Plan,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    key: str | None = None,
) -> Any:
    """Make one transition: exit hooks, action, commit, enter hooks, ``on_transition``.

    Args:
        key: the idempotency key of the run that fires it.
    """
    if plan.automatic:
        kwargs = _given(plan.parameters, kwargs)
    happening = None if plan.plain else Happening(bond, plan, plan.parameters.who(args, kwargs))
    snapshot = getattr(type(machine), DEFINITION).snapshot
    taken = snapshot.take(machine)
    mark = _mark(turn)
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
            landing, result = rescue, None
            happening = happening or Happening(bond, plan)
            happening.error, happening.target = error, landing.target
            if landing.exits:
                await run_hooks(landing.exits, machine, args, kwargs, happening, committed=False)
        if bond is None:
            machine._flowlet_state = landing.target
            if landing.times or turn.delayed:
                advance(machine, turn, landing)
                if landing.ends:
                    await end_works(machine, landing.ends)
        else:
            await bond.commit(machine, turn, plan, landing, args, kwargs, key, result)
            if landing.ends:
                await bond.revoke()
    except BaseException:
        snapshot.restore(machine, taken)
        _cut(turn, mark)
        if bond is not None:
            bond.doubt()
        raise
    if landing.enters:
        if happening is not None:
            happening.commit()
        await _enter(machine, turn, landing, args, kwargs, happening)
    return result


async def _enter(
    machine: Any,
    turn: Turn,
    landing: Landing,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    happening: Happening | None,
) -> None:
    """Run enter hooks; one that fails does not keep back what is done by the transition, which is committed."""
    mark = _mark(turn)[0]
    try:
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
    bond = held if type(held) is Bond else None
    turn = held if bond is None else bond._flowlet_turn
    if turn is None or (turn is not BUSY and not is_inside(turn)):
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


async def drain(machine: Any, bond: Bond | None, turn: Turn, definition: MachineDefinition) -> None:
    """Go on until nothing is left to be done: transitions without an event, then what callbacks have raised.

    Each is a transition of its own. An event that finds no transition, or is refused, is discarded, as in a
    statechart. One that fails does not stop those behind it; the first failure is raised when all are handled.
    """
    failure: tuple[str, Exception] | None = None
    handled = 0
    eager = True
    while True:
        item = None
        try:
            if eager and machine._flowlet_state.restless and await _move_on(machine, bond, turn, definition):
                pass
            elif turn.raised and not (definition.chart is not None and machine._flowlet_state.final):
                item = turn.raised.popleft()
                await _handle_raised(machine, bond, turn, definition, item)
                eager = True
            else:
                if turn.raised:
                    turn.raised.clear()  # the machine has ended
                break
        except Exception as error:
            failure = failure or (item.event if item is not None else "(eventless)", error)
            eager = item is not None  # what is taken by itself is not tried again until something else has happened
            if bond is not None and bond.stale:
                if turn.raised:
                    turn.raised.clear()  # they are in the last record; the next event continues them
                break
        handled += 1
        if handled > LONGEST:
            if turn.raised:
                turn.raised.clear()
            text = f"more than {LONGEST} transitions followed one event by themselves: an endless loop"
            failure = (item.event if item is not None else "(eventless)", MachineError(text))
            break
    if bond is None and turn.delayed:
        advance(machine, turn, None)
    if failure is not None:
        event, cause = failure
        text = f"the raised event {event!r} failed ({cause!r}); the transition before it has been committed"
        raise HookFailed(text, True) from cause


async def _move_on(machine: Any, bond: Bond | None, turn: Turn, definition: MachineDefinition) -> bool:
    """Take the transitions without an event that are enabled now; tell whether there were any."""
    assert definition.chart is not None
    choice = definition.chart.eventless.get(machine._flowlet_state, None)
    if choice is None:
        return False
    plan = await choose(machine, bond, choice, (), {})
    if not isinstance(plan, Plan):
        return False
    await follow(machine, bond, turn, plan, (), {})
    return True


async def is_interrupted(machine: Any, bond: Bond) -> bool:
    """Say whether a machine that nobody is at should go on by itself."""
    if bond.raised:
        return True
    chart, here = bond.definition.chart, machine._flowlet_state
    choice = None if chart is None or not here.restless else chart.eventless.get(here, None)
    return choice is not None and isinstance(await choose(machine, bond, choice, (), {}), Plan)


async def begin(machine: Any, bond: Bond | None, turn: Turn, definition: MachineDefinition) -> None:
    """Start a machine: run the enter hooks of its initial states, and what follows by itself.

    Raises:
        HookFailed: a hook raised; the machine has started.
    """
    landing = definition.start
    machine._flowlet_state = landing.target
    if bond is None and landing.times:
        advance(machine, turn, landing)
    try:
        await _enter(machine, turn, landing, (), {}, Happening(bond, None))
    except HookFailed:
        await settle(machine, bond, turn, definition)
        raise
    await settle(machine, bond, turn, definition)


async def settle(machine: Any, bond: Bond | None, turn: Turn, definition: MachineDefinition) -> None:
    """See a transition to its end: what follows by itself, what was raised, what hooks have assigned."""
    if bond is not None:
        await finish(machine, bond, turn)
    elif is_unsettled(machine, turn):
        await drain(machine, None, turn, definition)


def is_unsettled(machine: Any, turn: Turn) -> bool:
    """Say whether something is to follow a transition by itself."""
    return bool(turn.raised) or turn.delayed is not None or machine._flowlet_state.restless


async def _handle_raised(
    machine: Any, bond: Bond | None, turn: Turn, definition: MachineDefinition, item: Raised
) -> None:
    tables = definition.plans if item.method is None else definition.method_plans
    plans = tables.get(item.method or item.event, {}).get(machine._flowlet_state, ())
    plan = await choose(machine, bond, plans, item.args, item.kwargs)
    if isinstance(plan, Plan):
        await follow(machine, bond, turn, plan, item.args, item.kwargs)
    elif bond is not None:
        bond.log_discarded(machine, item.event)


# Handling an event ----------------------------------------------------------------------------------
async def handle(
    machine: Any, definition: MachineDefinition, table: Plans, event: str, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Take the turn and handle one event, of a machine with or without a store.

    Raises:
        TransitionNotAllowed: no transition for the event leaves the state, or a guard refused.
        HookFailed: a hook raised.
        Conflict: another process was faster.
        MachineError: it was awaited inside a callback of the same machine.
    """
    held = machine._flowlet_turn
    if type(held) is Bond:
        return await _handle_stored(machine, held, definition, table, event, args, kwargs)
    if held is None:
        turn = open_turn(machine)
    else:
        waited = await wait(machine, held, event)
        if waited is None:
            return await handle(machine, definition, table, event, args, kwargs)
        turn = waited
    try:
        if machine._flowlet_state.fresh:
            await begin(machine, None, turn, definition)
        elif definition.chart is not None and take_up(machine, turn):
            await drain(machine, None, turn, definition)
        plan = await choose(machine, None, table.get(machine._flowlet_state, ()), args, kwargs)
        if not isinstance(plan, Plan):
            raise not_allowed(definition, event, machine._flowlet_state.state, plan)
        try:
            result = await follow(machine, None, turn, plan, args, kwargs)
        except HookFailed:
            await drain(machine, None, turn, definition)
            raise
        if is_unsettled(machine, turn):
            await drain(machine, None, turn, definition)
        return result
    except Exception:
        raise
    except BaseException:
        if definition.chart is not None:
            leave_off(machine, turn)
        raise
    finally:
        leave(machine, turn)


async def _handle_stored(
    machine: Any,
    bond: Bond,
    definition: MachineDefinition,
    table: Plans,
    event: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    held = bond._flowlet_turn
    if held is None:
        turn = open_turn(bond)
    else:
        waited = await wait(bond, held, event)
        assert waited is not None
        turn = waited
    try:
        was_stale = bond.stale
        if was_stale:
            await bond.refresh(machine)
        if bond.raised or (was_stale and await is_interrupted(machine, bond)):
            await continue_raised(machine, bond, turn)
        scope = run_context.get()
        if scope is None:
            return await _attempt(machine, bond, turn, table, event, args, kwargs, None)
        key = scope.event_key(bond.id, event)
        if await bond.knows(key):
            return bond.recorded(key)
        if scope.inside is not None:
            return await _attempt(machine, bond, turn, table, event, args, kwargs, key)
        # A replay is answered from the key, so that what callbacks call must not be in the run's journal.
        token = run_context.set(InsideEvent(scope.run(), key))
        try:
            return await _attempt(machine, bond, turn, table, event, args, kwargs, key)
        finally:
            run_context.reset(token)
    except Exception:
        raise
    except BaseException:
        bond.stale = True  # cancelled: what hooks have assigned or raised since the last record is not in the store
        raise
    finally:
        if bond.leased:
            await bond.give_back()
        leave(bond, turn)


async def _attempt(
    machine: Any,
    bond: Bond,
    turn: Turn,
    table: Plans,
    event: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    key: str | None,
) -> Any:
    """Make the transition; after a conflict, answer from the run's key or try again if it is to be."""
    definition = bond.definition
    while True:
        plans = table.get(machine._flowlet_state, ())
        if not bond.leased and any(p.exclusive for p in plans):
            await bond.lease(machine, patient=any(p.retry for p in plans))
            plans = table.get(machine._flowlet_state, ())
        plan = await choose(machine, bond, plans, args, kwargs)
        if not isinstance(plan, Plan):
            raise not_allowed(definition, event, machine._flowlet_state.state, plan)
        try:
            result = await follow(machine, bond, turn, plan, args, kwargs, key)
        except HookFailed as failure:
            if failure.committed:
                await finish(machine, bond, turn)
            raise
        except Conflict as conflict:
            if conflict is not bond.conflict or not (plan.retry or key is not None):
                raise
            await bond.refresh(machine)
            if key is not None and key in bond.keys:
                return bond.recorded(key)
            if not plan.retry:
                raise
            continue
        if plan.enters or is_unsettled(machine, turn):
            await finish(machine, bond, turn)
        return result


async def finish(machine: Any, bond: Bond, turn: Turn) -> None:
    """Handle what was raised, then record what the last hooks have assigned."""
    failure: HookFailed | None = None
    if is_unsettled(machine, turn):
        try:
            await drain(machine, bond, turn, bond.definition)
        except HookFailed as error:
            failure = error
    if not bond.stale:
        await bond.settle(machine, turn)
    if failure is not None:
        raise failure


async def continue_raised(machine: Any, bond: Bond, turn: Turn) -> None:
    """Handle what an interrupted turn, maybe of another process, has raised and not handled.

    It is no part of the run that happens to find it.
    """
    await bond.lease(machine, patient=False, interrupted=bool(bond.raised))
    token = run_context.set(None)
    try:
        turn.raised = deque(bond.recall_raised())
        await drain(machine, bond, turn, bond.definition)
    except HookFailed as failure:
        bond.log_failed(failure)
    finally:
        run_context.reset(token)
    if not bond.stale:
        await bond.settle(machine, turn)
