"""Driving a body, to notice when it waits for something that is not flowlet's.

Law: a record may wait for the next one, so that both are one commit, but not while the body is
elsewhere: as soon as it suspends with a record unsaved, the record is saved beside it.
"""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any, Generic, TypeVar

import msgspec

from flowlet.runtime.engine import LocalEngine
from flowlet.runtime.tasks import Breaker

T = TypeVar("T")


async def drive(coroutine: Coroutine[Any, Any, T], engine: LocalEngine) -> T:
    """Run a coroutine to its end in the running task and watch its suspensions; see `Drive`."""
    try:
        waited = coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]  # a coroutine of T
    return await Drive(coroutine, waited, engine)


class Drive(msgspec.Struct, Generic[T], eq=False):
    """Awaitable that runs a coroutine in the awaiting task and watches its suspensions.

    Args:
        waited: what the coroutine, which has begun, waits for.
        breaker: cuts it short if it waits although the run is to unwind.
    """

    _coroutine: Coroutine[Any, Any, T]
    _waited: Any
    _engine: LocalEngine
    _breaker: Breaker | None = None

    def __await__(self) -> Generator[Any, Any, T]:
        coroutine, engine, waited = self._coroutine, self._engine, self._waited
        try:
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
