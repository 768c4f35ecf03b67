"""Driving a body, to notice when it waits for something that is not flowlet's.

Law: a record may wait for the next one, so that both are one commit, but not while the body is
elsewhere: as soon as it suspends with a record unsaved, the record is saved beside it.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

from flowlet.runtime.engine import LocalEngine
from flowlet.runtime.tasks import Breaker

T = TypeVar("T")


class Drive(Generic[T]):
    """Awaitable that runs a coroutine in the awaiting task and watches its suspensions.

    Args:
        breaker: cuts it short if it waits although the run is to unwind.
    """

    __slots__ = ("_breaker", "_coroutine", "_engine")

    def __init__(self, coroutine: Coroutine[Any, Any, T], engine: LocalEngine, breaker: Breaker | None = None) -> None:
        self._coroutine = coroutine
        self._engine = engine
        self._breaker = breaker

    def __await__(self) -> Generator[Any, Any, T]:
        coroutine, engine = self._coroutine, self._engine
        try:
            waited = coroutine.send(None)
            while True:
                if engine.journal.pending:
                    engine.save_soon()
                if self._breaker is not None and engine.is_due:
                    self._breaker.cut()
                try:
                    value = yield waited
                except GeneratorExit:
                    coroutine.close()
                    raise
                except BaseException as error:
                    waited = coroutine.throw(error)
                else:
                    waited = coroutine.send(value)
        except StopIteration as stop:
            return stop.value  # type: ignore[no-any-return]  # a coroutine of T
