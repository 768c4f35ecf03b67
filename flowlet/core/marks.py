"""The five marks: ``@state @transition @guard @step @compensate``.

Law: a mark annotates and registers nothing. ``@state``, ``@guard`` and ``@compensate`` return what
they were given; ``@transition`` and ``@step`` return a wrapper of the same signature that is still a
coroutine function. What the marks mean is decided when a registry assembles them.
"""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, cast, overload

import msgspec

from flowlet.core.current import run_context
from flowlet.core.faults import describe
from flowlet.core.guards import GuardLike
from flowlet.core.retry import Retry, Seconds, policy_for, seconds
from flowlet.errors import DefinitionError, MachineError, RunError

if TYPE_CHECKING:
    from types import CodeType

C = TypeVar("C", bound=type[Any])
F = TypeVar("F", bound=Callable[..., Any])
AF = TypeVar("AF", bound=Callable[..., Coroutine[Any, Any, Any]])

StateRef: TypeAlias = type[Any] | enum.Enum | str

MACHINE = "__flowlet_machine__"
"""The attribute of an assembled class that holds its definition."""
STATE = "__flowlet_state__"
TRANSITIONS = "__flowlet_transitions__"
TRIGGER = "__flowlet_trigger__"
"""Holds the trigger method itself, which a decorator that copies attributes does not become."""
GUARD = "__flowlet_guard__"
STEP = "__flowlet_step__"
COMPENSATES = "__flowlet_compensates__"


# ------------------------------------------------------------------ states
class StateMark:
    """What ``state(...)`` returns: decorates a class, or is the value of an Enum member.

    Equality is identity, so that two members with equal options do not become aliases.

    Attributes:
        initial: the machine (or its parent state) starts here.
        final: nothing leaves it.
        parallel: its children are regions that are active together.
        history: entering it enters what its parent was left in.
        default: where entering it leads by itself.
        invoke: what is done while it is active.
        value: anything the user wants to find again at the state.
    """

    __slots__ = ("default", "final", "history", "initial", "invoke", "parallel", "value")

    default: StateRef | Sequence[StateRef] | None
    final: bool
    initial: bool
    invoke: Callable[..., Any] | str | None
    parallel: bool
    value: object

    def __init__(
        self,
        *,
        initial: bool = False,
        final: bool = False,
        parallel: bool = False,
        history: Literal["shallow", "deep"] | None = None,
        default: StateRef | Sequence[StateRef] | None = None,
        invoke: Callable[..., Any] | str | None = None,
        value: object = None,
    ) -> None:
        self.initial, self.final, self.parallel, self.value = initial, final, parallel, value
        self.history, self.default, self.invoke = history, default, invoke

    def __call__(self, cls: C, /) -> C:
        if not isinstance(cls, type):
            raise DefinitionError([f"{describe(cls)}: @state marks a class nested in the machine's class"])
        setattr(cls, STATE, self)
        return cls


@overload
def state(cls: C, /) -> C: ...
@overload
def state(
    *,
    initial: bool = False,
    final: bool = False,
    parallel: bool = False,
    history: Literal["shallow", "deep"] | None = None,
    default: StateRef | Sequence[StateRef] | None = None,
    invoke: Callable[..., Any] | str | None = None,
    value: object = None,
) -> StateMark: ...
def state(cls: Any = None, /, **options: Any) -> Any:
    """Mark a nested class as a state of the machine, or make the value of an Enum member that is one.

    A state class may hold further ones: while it is active, exactly one of them is, or each of them if it is
    ``parallel``. States are called by their path, such as ``"Playing.Loud"``.

    Args:
        initial: the machine, or the state it is in, starts here; exactly one says so.
        final: nothing leaves it. Reaching it inside of another state, that one is done.
        parallel: its children are regions that are active together.
        history: no state to be in: entering it enters what its parent was left in, its child (``"shallow"``) or all
            that was active below (``"deep"``).
        default: where entering it leads by itself: of a state with children, instead of the initial one (any state
            below, also a history, or several in different regions); of a history, when it remembers nothing yet.
        invoke: an async function or a saga that is at work while the state is active; leaving the state cancels it.
            Its result fires the transitions marked ``done=True``, its error those marked ``failed=True``.
        value: anything you want to find again at the state.

    Source: W3C SCXML, sections 3.3 to 3.10 (https://www.w3.org/TR/scxml/).

    Example:
        >>> from enum import Enum
        >>> from flowlet import state
        >>> class Door(Enum):
        ...     CLOSED = state(initial=True)
        ...     OPEN = state()
    """
    mark = StateMark(**options)
    return mark if cls is None else mark(cls)


# ------------------------------------------------------------------ transitions and guards
class TransitionMark(msgspec.Struct, frozen=True, eq=False):
    """One ``@transition`` line, as written.

    Attributes:
        sources: where it may start; ``"*"`` stands for every state that is not final.
        target: where it leads; None, or several states in different regions.
        event: None for the method's own name.
        after: seconds for which the source must have been active.
    """

    sources: tuple[StateRef, ...]
    target: StateRef | tuple[StateRef, ...] | None
    event: str | None
    guard: GuardLike | None
    exclusive: bool
    on_conflict: Literal["raise", "retry"]
    on_error: StateRef | None
    internal: bool = False
    eventless: bool = False
    done: bool = False
    failed: bool = False
    after: float | None = None

    @property
    def targets(self) -> tuple[StateRef, ...]:
        """The states it leads to."""
        if self.target is None:
            return ()
        return self.target if isinstance(self.target, tuple) else (self.target,)


def is_automatic(mark: TransitionMark) -> bool:
    """Tell whether a transition happens by itself, so that nobody gives it arguments."""
    return mark.eventless or mark.done or mark.failed or mark.after is not None


class Trigger(msgspec.Struct, frozen=True, eq=False):
    """What hangs on a trigger method: the user's function and its transitions, top line first."""

    action: Callable[..., Any]
    transitions: tuple[TransitionMark, ...]


def transition(
    source: StateRef | Sequence[StateRef],
    target: StateRef | Sequence[StateRef] | None,
    /,
    *,
    event: str | None = None,
    guard: GuardLike | None = None,
    exclusive: bool = False,
    on_conflict: Literal["raise", "retry"] = "raise",
    on_error: StateRef | None = None,
    internal: bool = False,
    eventless: bool = False,
    done: bool = False,
    failed: bool = False,
    after: Seconds | None = None,
) -> Callable[[AF], AF]:
    """Mark an async method as the action of a transition; calling the method fires its event.

    Args:
        source: a state, several, or ``"*"`` for all that are not final. A transition of a state is one of all states
            inside of it, which come first with their own.
        target: the state it leads to, several in different regions, or None to stay without running exit and entry
            hooks.
        event: the event's name, the method's own by default. Several methods may serve one event.
        guard: must agree before anything happens; ``can_<event>`` guards by its name alone.
        exclusive: take a lease on the machine first, so that of several processes only one runs the body.
        on_conflict: ``"retry"`` loads and tries again when another process was faster.
        on_error: the state to enter when the body raises.
        internal: leads inside of its source, which is not left and entered again.
        eventless: is taken by itself as soon as its guard agrees.
        done: is taken when its source is done: one of its final states was reached, or what it invokes has returned,
            which the method gets in a parameter called ``result``.
        failed: is taken when what its source invokes has raised, which the method gets in a parameter ``error``.
        after: seconds (or a timedelta) for which its source must have been active; then it is taken by itself.
            Leaving the source cancels it. A durable machine keeps the time, and takes it late rather than never.

    Source: W3C SCXML, section 3.5 and appendix D (https://www.w3.org/TR/scxml/).

    Example:
        >>> from flowlet import Registry, state, transition
        >>> registry = Registry()
        >>> @registry.machine
        ... class Lamp:
        ...     @state(initial=True)
        ...     class Off: ...
        ...     @state
        ...     class On: ...
        ...     @transition(Off, On)
        ...     async def press(self) -> str:
        ...         return "light"
        ...     @transition(On, Off)
        ...     async def release(self) -> None: ...
    """
    sources = tuple(source) if isinstance(source, (tuple, list, set, frozenset)) else (source,)
    mark = TransitionMark(
        cast("tuple[StateRef, ...]", sources),
        cast("StateRef | None", tuple(target) if isinstance(target, (list, set, frozenset)) else target),
        event,
        guard,
        exclusive,
        on_conflict,
        on_error,
        internal,
        eventless,
        done,
        failed,
        None if after is None else seconds(after, "after"),
    )

    def annotate(function: AF) -> AF:
        trigger: Trigger | None = getattr(function, TRANSITIONS, None)
        action, below = (trigger.action, trigger.transitions) if trigger is not None else (function, ())

        @functools.wraps(action)
        async def unassembled(self: object, *args: Any, **kwargs: Any) -> Any:
            name = type(self).__qualname__
            if not hasattr(type(self), MACHINE):
                raise MachineError(
                    f"{name} has not been assembled: put @flow.machine or @registry.machine on the class"
                )
            if not _is_in_turn(self):
                raise MachineError(
                    f"{action.__qualname__} is overridden in {name}: fire the event with .{action.__name__}(...); "
                    f"the overriding body may call super().{action.__name__}(...)"
                )
            return await action(self, *args, **kwargs)  # super().go() in the body that overrides it

        setattr(unassembled, TRANSITIONS, Trigger(action, (mark, *below)))
        setattr(unassembled, TRIGGER, unassembled)
        return cast(AF, unassembled)

    return annotate


def _is_in_turn(machine: Any) -> bool:
    """Tell whether a machine is handling an event; with a store, its bond knows."""
    held = getattr(machine, "_flowlet_turn", None)
    return getattr(held, "_flowlet_turn", held) is not None


@overload
def guard(fn: F, /) -> F: ...
@overload
def guard(*, name: str | None = None) -> Callable[[F], F]: ...
def guard(fn: Any = None, /, *, name: str | None = None) -> Any:
    """Mark a method as a guard: it answers whether a transition may happen, and changes nothing.

    ``can_<event>`` guards its event by its name; other guards are named in ``guard=`` of a transition.

    Args:
        name: the name to use instead of the method's.

    Example:
        >>> from flowlet import guard
        >>> class Order:
        ...     total = 0
        ...     @guard
        ...     async def can_confirm(self) -> bool:
        ...         return self.total > 0
    """

    def annotate(function: F) -> F:
        setattr(function, GUARD, name or getattr(function, "__name__", str(function)))
        return function

    return annotate if fn is None else annotate(fn)


# ------------------------------------------------------------------ steps
class StepMark(msgspec.Struct, frozen=True, eq=False):
    """One ``@step``, as written. ``timeout`` is in seconds.

    Attributes:
        function: the user's function.
        method: it is written in a class and takes ``self``.
        compensation: set by ``@compensate``: the marked functions, in the order of marking.
    """

    function: Callable[..., Any]
    name: str
    retry: Retry | None
    timeout: float | None
    key: Callable[..., str] | None
    pivot: bool
    at_most_once: bool
    compensate_unknown: bool
    transactional: bool
    is_async: bool
    method: bool
    compensations: list[CompensationMark]


class CompensationMark(msgspec.Struct, frozen=True, eq=False):
    """One ``@compensate``, as written. ``timeout`` is in seconds."""

    function: Callable[..., Any]
    step: Callable[..., Any]
    retry: Retry | None
    timeout: float | None


def step_mark(thing: Any) -> StepMark | None:
    """Return what ``@step`` noted on a function or method, or None."""
    return getattr(thing, STEP, None)


@overload
def step(fn: F, /) -> F: ...
@overload
def step(
    *,
    name: str | None = None,
    retry: Retry | int | None = None,
    timeout: Seconds | None = None,
    key: Callable[..., str] | None = None,
    pivot: bool = False,
    at_most_once: bool = False,
    compensate_unknown: bool = False,
    transactional: bool = False,
) -> Callable[[F], F]: ...
def step(
    fn: Any = None,
    /,
    *,
    name: str | None = None,
    retry: Retry | int | None = None,
    timeout: Seconds | None = None,
    key: Callable[..., str] | None = None,
    pivot: bool = False,
    at_most_once: bool = False,
    compensate_unknown: bool = False,
    transactional: bool = False,
) -> Any:
    """Mark a function as a step: inside a run its result is recorded and it is not executed again.

    Outside a run, and inside another step, the function is just the function. In a run it is given its arguments as
    they are on record, so what it changes in them nobody else sees.

    Args:
        name: the step's name, the function's own by default.
        retry: how to try again after an error; a number is that many attempts in total.
        timeout: seconds (or a timedelta) that one attempt may take, then it is `StepTimeout`.
        key: computes the key of a call from its arguments, instead of the name and a counter.
        pivot: once it has returned, the saga only goes forward: a later step that fails for good is not
            compensated for but leaves the run ``needs_attention``, until somebody has it `Handle.resume`,
            `Handle.skip` the step or `Handle.compensate`.
        at_most_once: write the intent before the effect begins, and never repeat an attempt whose outcome is
            unknown: such a run is parked, and somebody must say what became of it. Excludes ``retry``.
        compensate_unknown: compensate also when it was cut off without a record, so that nobody knows whether
            it did anything. The compensation then gets None for the step's result.
        transactional: it receives the store's connection in a parameter ``= provided`` (``connection:
            sqlite3.Connection = provided``), and what it writes there is committed together with its record: its
            effect happens exactly once. On SQLite it runs in the store's thread and may not wait for anything.

    Raises:
        DefinitionError: it marks no function, or an argument is out of its bounds.

    Example:
        >>> from flowlet import Retry, step
        >>> @step(retry=Retry(attempts=5, wait=0.2), timeout=10)
        ... async def charge(amount: int) -> str:
        ...     return f"charged {amount}"
    """

    def annotate(function: F) -> F:
        if isinstance(function, type) or not inspect.isroutine(function):
            raise DefinitionError([f"{describe(function)}: @step marks a function; put @staticmethod above it"])
        if at_most_once and retry is not None:
            raise DefinitionError([f"{describe(function)}: at_most_once=True excludes retry=; leave one out"])
        if at_most_once and transactional:
            raise DefinitionError(
                [f"{describe(function)}: transactional=True is exactly once already; leave at_most_once out"]
            )
        is_async = inspect.iscoroutinefunction(function)
        mark = StepMark(
            function=function,
            name=_step_name(function.__name__ if name is None else name, function),
            retry=policy_for(retry),
            timeout=None if timeout is None else seconds(timeout, "timeout"),
            key=key,
            pivot=pivot,
            at_most_once=at_most_once,
            compensate_unknown=compensate_unknown,
            transactional=transactional,
            is_async=is_async,
            method=is_method(function),
            compensations=[],
        )
        wrapper = _async_step(function, mark) if is_async else _sync_step(function, mark)
        setattr(wrapper, STEP, mark)
        return cast(F, wrapper)

    return annotate if fn is None else annotate(fn)


def is_method(function: Any) -> bool:
    """Tell whether a function is written in a class and takes ``self``."""
    place = getattr(function, "__qualname__", "").rpartition("<locals>.")[2]
    if "." not in place or inspect.ismethod(function):
        return False
    return next(iter(inspect.signature(function).parameters), None) == "self"


def _step_name(name: object, function: object) -> str:
    """Check a step's name: keys are built from it with ``#``, ``:``, ``~`` and ``/``."""
    if not isinstance(name, str) or not name or any(c in name for c in "#:~/"):
        raise DefinitionError([f"{describe(function)}: a step's name is a text without # : ~ or /, not {name!r}"])
    return name


def _async_step(function: Callable[..., Any], mark: StepMark) -> Callable[..., Any]:
    @functools.wraps(function)
    async def call_step(*args: Any, **kwargs: Any) -> Any:
        program: Any = run_context.get()  # a Program wherever `inside` is None; asking costs every step
        if program is None or program.inside is not None:
            return await function(*args, **kwargs)
        # One coroutine less than a method that awaits for both: every step pays for each.
        call = program.begin(mark, args, kwargs)
        if program.unusual:
            value = await program.perform_unusually(call)
        else:
            value = await program.engine.perform(call)
        return program.end(call, value)

    return call_step


def _sync_step(function: Callable[..., Any], mark: StepMark) -> Callable[..., Any]:
    @functools.wraps(function)
    def call_step(*args: Any, **kwargs: Any) -> Any:
        scope = run_context.get()
        if scope is not None and scope.inside is None:
            raise RunError(
                f"{mark.name} is a plain def, so a run's body cannot await it: make it async, or assemble it with "
                'flow.saga("name", ...) or flow.pipeline("name", ...), where flowlet calls it in a worker thread'
            )
        return function(*args, **kwargs)

    return call_step


STEP_CODE: CodeType = cast("Any", _async_step(lambda: None, cast(Any, None))).__code__
"""The code of every wrapper made by ``@step``, by which `gather` knows a step call."""


def compensate(
    step: Callable[..., Any],
    /,
    *,
    retry: Retry | int | None = None,
    timeout: Seconds | None = None,
) -> Callable[[F], F]:
    """Mark a function as the compensation of a step: it undoes what the step did.

    Its parameters are filled by name: the step's arguments, the step's result under the step's
    name, and ``error`` for what started the rollback.

    Args:
        step: the step, as marked with ``@step``.
        retry: how to try again after an error; a number is that many attempts in total.
        timeout: seconds (or a timedelta) that one attempt may take.

    Example:
        >>> from flowlet import compensate, step
        >>> @step
        ... async def charge(amount: int) -> str:
        ...     return "payment-1"
        >>> @compensate(charge)
        ... async def refund(amount: int, charge: str) -> None: ...
    """
    policy = policy_for(retry)
    limit = None if timeout is None else seconds(timeout, "timeout")

    def annotate(function: F) -> F:
        mark = CompensationMark(function, step, policy, limit)
        setattr(function, COMPENSATES, mark)
        undone = step_mark(step)
        if undone is not None:
            undone.compensations.append(mark)
        return function

    return annotate
