"""Telling observers: the one place through which they are called.

Law: an observer cannot break anything. What it raises is logged with its name, once for each of them, and what it is
around of goes on, and raises what it raises, as if it was not there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from inspect import iscoroutinefunction
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

from flowlet.core.faults import describe
from flowlet.errors import ConfigError
from flowlet.observing import AttemptBegan, Committed, Event, LeaseLost, Observer, Queued, Work
from flowlet.store import Store

if TYPE_CHECKING:
    from flowlet.runtime.logs import Log

Observers: TypeAlias = Sequence[Observer | Callable[[Event], object]]
"""What `Flowlet(observers=)` takes."""

_METHODS = ("tell", "around", "trace")

_MOST_COUNTED = 1000
"""Runs that are looked at to find out how many are due."""


def check_observers(observers: Any) -> tuple[Any, ...]:
    """Return what was given as ``observers=``, if it is that.

    Raises:
        ConfigError: it is something else.
    """
    if isinstance(observers, (str, bytes)) or not isinstance(observers, Sequence):
        raise ConfigError(f"observers= takes a tuple of observers, not {observers!r}; write observers=(observer,)")
    for observer in observers:
        if isinstance(observer, type) or not (callable(observer) or any(hasattr(observer, m) for m in _METHODS)):
            raise ConfigError(
                f"observers= takes objects of flowlet.observing.Observer, or functions of an event, not {observer!r}"
            )
        for name in (*_METHODS, "__call__"):
            if iscoroutinefunction(observer) or iscoroutinefunction(getattr(observer, name, None)):
                raise ConfigError(
                    f"an observer is told in the middle of things and cannot be awaited: {_name(observer)} must not be "
                    "async; let it put what takes long into a queue"
                )
    return tuple(observers)


_NOTHING: AbstractContextManager[None] = nullcontext()


class Observing:
    """The observers of one `Flowlet`, while it is entered.

    Attributes:
        of_machines: there is one that wants to hear of more than runs.
    """

    __slots__ = ("_around", "_failed", "_log", "_tell", "_trace", "of_machines")

    def __init__(self, observers: Sequence[Any], log: Log, *, of_machines: bool = True) -> None:
        self._log = log
        self._failed: set[int] = set()
        self.of_machines: bool = of_machines
        # Looked up once, and only what an observer has of its own.
        self._tell = [(o, m) for o in observers if (m := _own(o, "tell")) is not None]
        self._around = [(o, m) for o in observers if (m := _own(o, "around")) is not None]
        self._trace = [(o, m) for o in observers if (m := _own(o, "trace")) is not None]

    def tell(self, event: Event) -> None:
        """Tell all of them."""
        for observer, tell in self._tell:
            try:
                tell(event)
            except Exception as error:
                self.broke(observer, error)

    def around(self, work: Work) -> AbstractContextManager[None]:
        """Return what they all want to be around of user code."""
        return _Around(self, self._around, work) if self._around else _NOTHING

    def trace(self, run_id: str, definition: str) -> str | None:
        """Return what is to be stored with a run that is started now."""
        for observer, trace in self._trace:
            try:
                found = trace(run_id, definition)
            except Exception as error:
                self.broke(observer, error)
            else:
                if found is not None:
                    return str(found)
        return None

    def lapsed(self, worker: str) -> None:
        """Tell that this process was held up for longer than its lease."""
        self.tell(LeaseLost(kind="worker", id=worker))

    def listen(self, store: Any) -> None:
        """Have a store tell of its commits, if it commits in groups: then it has an attribute for that."""
        if self._tell and hasattr(inner := _innermost(store), "on_commit"):
            inner.on_commit = self._committed

    def leave(self, store: Any) -> None:
        """Let the store tell nothing more."""
        if getattr(inner := _innermost(store), "on_commit", None) == self._committed:
            inner.on_commit = None

    def _committed(self, appends: int) -> None:
        self.tell(Committed(appends=appends))

    async def count(self, store: Store, now: float, running: int) -> None:
        """Tell how much there is to do."""
        if not self._tell:
            return
        due = after = seen = 0
        while seen < _MOST_COUNTED and (heads := await store.scan(kind="run", wake_before=now, after=after)):
            after, seen = heads[-1].order, seen + len(heads)
            due += sum(head.owner is None for head in heads)
        self.tell(Queued(running=running, due=due))

    def broke(self, observer: Any, error: Exception) -> None:
        """Log that an observer has raised, the first time."""
        if id(observer) not in self._failed:
            self._failed.add(id(observer))
            self._log.error("observer.failed", observer=_name(observer), error=repr(error), exc_info=error)


class LogContext(Observer):
    """Lets structlog lines of a step's own code say where they come from.

    Used when structlog is configured with `structlog.contextvars.merge_contextvars`.
    """

    def __init__(self, structlog: Any) -> None:
        self._bound = structlog.contextvars.bound_contextvars

    def around(self, work: Work) -> AbstractContextManager[Any] | None:
        """Bind ``run_id``, ``definition``, ``step`` and ``attempt`` while an attempt lasts."""
        if not isinstance(work, AttemptBegan):
            return None
        bound: AbstractContextManager[Any] = self._bound(
            run_id=work.run_id, definition=work.definition, step=work.step, attempt=work.attempt
        )
        return bound


class _Around:
    """What several observers are around of."""

    __slots__ = ("_entered", "_makers", "_observing", "_work")

    def __init__(self, observing: Observing, makers: Sequence[tuple[Any, Any]], work: Work) -> None:
        self._observing, self._makers, self._work = observing, makers, work
        self._entered: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        for observer, make in self._makers:
            try:
                manager = make(self._work)
                if manager is not None:
                    manager.__enter__()
                    self._entered.append((observer, manager))
            except Exception as error:
                self._observing.broke(observer, error)

    def __exit__(
        self, t: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for observer, manager in reversed(self._entered):
            try:
                manager.__exit__(t, error, traceback)
            except Exception as problem:
                if problem is not error:
                    self._observing.broke(observer, problem)


def _innermost(store: Any) -> Any:
    """Return the store that commits, behind one that encodes."""
    while (inner := getattr(store, "inner", None)) is not None:
        store = inner
    return store


def _own(observer: Any, name: str) -> Any:
    """Return a method of an observer, unless it is the one that does nothing."""
    found = getattr(observer, name, None)
    if found is None:
        return observer if name == "tell" and callable(observer) else None
    return None if getattr(type(observer), name, None) is getattr(Observer, name) else found


def _name(observer: Any) -> str:
    return describe(observer if hasattr(observer, "__qualname__") else type(observer))
