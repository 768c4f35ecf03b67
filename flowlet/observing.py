"""What happens in a `Flowlet`, for those who want to be told: observers and the events that they are given.

Law: an observer is told after the fact or around it and has no say: what it raises is logged once and changes
nothing. Events are values. Without an observer none is made. Nothing here knows how things are executed.

Times are in seconds; ``error`` is the exception itself, which an observer must not keep.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Literal, TypeAlias

import msgspec


class RunBegan(msgspec.Struct, frozen=True, kw_only=True):
    """This process begins to work on a run: a new one, or one that it takes up.

    Attributes:
        kind: ``"saga"``, ``"pipeline"``, ``"graph"`` or ``"approval"``.
        resumed: it was begun before, here or in another process.
        records: how many records it had.
        parent: the id of the run that waits for it, if any.
        trace: what `Observer.trace` returned when it was started.
    """

    run_id: str
    definition: str
    version: str
    kind: str
    resumed: bool
    records: int
    parent: str | None = None
    trace: str | None = None


class RunLeft(msgspec.Struct, frozen=True, kw_only=True):
    """This process no longer works on a run. A run that cannot even begin here is left without `RunBegan`.

    Attributes:
        status: ``"completed"``, ``"failed"``, ``"cancelled"`` or ``"compensated"`` when it has ended; ``"waiting"`` for
            time, a signal or another run; ``"parked"``, ``"needs_attention"`` or ``"compensation_failed"`` when an
            operator is needed; ``"left"`` when it goes on elsewhere or later.
        ended: it has ended.
        seconds: since `RunBegan`.
    """

    run_id: str
    definition: str
    kind: str
    status: str
    ended: bool
    seconds: float
    error: BaseException | None = None


class StepBegan(msgspec.Struct, frozen=True, kw_only=True):
    """A step, or a compensation, begins to be executed. What is on record already is not executed, and not told.

    Attributes:
        step: its key: the name, and from the second call on a number.
        name: of the step.
    """

    run_id: str
    definition: str
    step: str
    name: str


class StepEnded(msgspec.Struct, frozen=True, kw_only=True):
    """A step is no longer executed.

    Attributes:
        outcome: ``"completed"``; ``"failed"`` for good; ``"waiting"`` for a late next attempt; ``"stopped"`` when it
            was cut off.
        attempts: the number of the last one, over all processes.
        seconds: since `StepBegan`, pauses included.
    """

    run_id: str
    definition: str
    step: str
    name: str
    outcome: Literal["completed", "failed", "waiting", "stopped"]
    attempts: int
    seconds: float
    error: BaseException | None = None


class AttemptBegan(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt of a step begins: your function is about to be called. ``attempt`` counts from 1."""

    run_id: str
    definition: str
    step: str
    name: str
    attempt: int


class AttemptEnded(msgspec.Struct, frozen=True, kw_only=True):
    """Your function has returned, or raised ``error``."""

    run_id: str
    definition: str
    step: str
    name: str
    attempt: int
    seconds: float
    error: BaseException | None = None


class TransitionBegan(msgspec.Struct, frozen=True, kw_only=True):
    """A machine in a store is about to make a transition; its guards have agreed."""

    machine: str
    definition: str
    event: str
    source: str


class TransitionEnded(msgspec.Struct, frozen=True, kw_only=True):
    """A transition was made, or failed.

    Attributes:
        committed: it was made; ``error`` is then that of a hook.
        target: the state that the machine is in.
        version: of the machine.
    """

    machine: str
    definition: str
    event: str
    source: str
    target: str
    version: int
    committed: bool
    seconds: float
    error: BaseException | None = None


class BulkBegan(msgspec.Struct, frozen=True, kw_only=True):
    """A bulk operation begins, in a Flowlet that is entered.

    Attributes:
        run_id: its id, if it has one.
        total: how many items there are, or None if they do not tell.
    """

    function: str
    run_id: str | None
    total: int | None


class BulkEnded(msgspec.Struct, frozen=True, kw_only=True):
    """A bulk operation is over.

    Attributes:
        began: what was told of its beginning.
        status: that of its report; ``"broken"`` when there is none, because of ``error``.
        succeeded, failed: items, those of earlier calls and other processes included.
    """

    began: BulkBegan
    status: str
    succeeded: int
    failed: int
    seconds: float
    error: BaseException | None = None


class LeaseLost(msgspec.Struct, frozen=True, kw_only=True):
    """What this process owned was, or may have been, taken by another one.

    Attributes:
        kind: ``"run"``, or ``"worker"``: this process itself was held up for longer than its lease.
        id: of the run or the worker.
    """

    kind: Literal["run", "worker"]
    id: str


class Committed(msgspec.Struct, frozen=True, kw_only=True):
    """A store that commits in groups has made one commit of so many appends."""

    appends: int


class Queued(msgspec.Struct, frozen=True, kw_only=True):
    """How much there is to do, told with each heartbeat.

    Attributes:
        running: runs that this process works on.
        due: runs in the store that nobody works on though they could go on; 1,000 stands for that or more.
    """

    running: int
    due: int


Event: TypeAlias = (
    RunBegan
    | RunLeft
    | StepBegan
    | StepEnded
    | AttemptBegan
    | AttemptEnded
    | TransitionBegan
    | TransitionEnded
    | BulkBegan
    | BulkEnded
    | LeaseLost
    | Committed
    | Queued
)
"""Everything that an observer is told. More kinds may come: ignore what you do not know."""

Work: TypeAlias = RunBegan | AttemptBegan | TransitionBegan | BulkBegan
"""What an observer can be around of."""


class Observer:
    """Is told what happens in a `Flowlet`: subclass it and define the methods that you need.

    A plain function of an event will do as well. Methods are called on the event loop and must not block. Steps of a
    Flowlet that has observers take some 6 microseconds more.

    Example:
        >>> from flowlet import Flowlet, step
        >>> from flowlet.observing import Event, Observer, StepEnded
        >>> class Slow(Observer):
        ...     def tell(self, event: Event) -> None:
        ...         if isinstance(event, StepEnded) and event.seconds < 60:
        ...             print(event.definition, event.step, event.outcome)
        >>> flow = Flowlet(observers=(Slow(),))
        >>> @step
        ... async def charge(amount: int) -> int:
        ...     return amount
        >>> checkout = flow.saga("checkout", charge)
        >>> flow.run(checkout, 120)
        checkout charge completed
        120
    """

    def tell(self, event: Event) -> None:
        """Take note of something."""

    def around(self, work: Work) -> AbstractContextManager[Any] | None:
        """Return a context manager to be around code of the user's, in the same task and the same context variables.

        It is entered after `tell` was called with ``work``. What it is around of is a run's body, one attempt of a
        step, one transition with its hooks, or all items of a bulk operation. None: nothing is to be around it.

        Example:
            >>> from contextlib import contextmanager
            >>> from flowlet import Flowlet, step
            >>> from flowlet.observing import AttemptBegan, Observer
            >>> class Around(Observer):
            ...     @contextmanager
            ...     def around(self, work):
            ...         if isinstance(work, AttemptBegan):
            ...             print("before", work.step)
            ...         yield
            >>> flow = Flowlet(observers=(Around(),))
            >>> @step
            ... async def charge(amount: int) -> int:
            ...     return amount
            >>> flow.run(flow.saga("checkout", charge), 120)
            before charge
            120
        """
        return None

    def trace(self, run_id: str, definition: str) -> str | None:
        """Return what is to be stored with a run that is started now, so that whoever takes it up knows of the trace.

        It is called where the run is started, in the context variables there; `RunBegan.trace` gives it back. The
        first observer that returns something has its say.

        Returns:
            A W3C ``traceparent``, or whatever this observer understands, up to some hundred characters; or None.

        Example:
            >>> from flowlet import Flowlet
            >>> from flowlet.observing import Observer, RunBegan
            >>> class Request(Observer):
            ...     def trace(self, run_id: str, definition: str) -> str | None:
            ...         return "request 7"
            ...     def tell(self, event) -> None:
            ...         if isinstance(event, RunBegan):
            ...             print(event.definition, "comes from", event.trace)
            >>> flow = Flowlet(observers=(Request(),))
            >>> @flow.saga
            ... async def checkout(amount: int) -> int:
            ...     return amount
            >>> flow.run(checkout, 120)
            checkout comes from request 7
            120
        """
        return None
