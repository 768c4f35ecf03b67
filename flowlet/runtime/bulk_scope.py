"""What an item of a bulk operation with an id is called within: a `Run` with a key of its own.

Law: the key is the operation's id and the item's place, and nothing else, so that it is the same in every process.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextvars import Token
from typing import Any, Protocol

import msgspec

from flowlet.core.current import run_context
from flowlet.core.run import Run


class ItemHost(Protocol):
    """What items need of the process they are in."""

    def now(self) -> float: ...


class _ItemEngine:
    """Stands for the engine that a step has, as far as `Run` asks it.

    Attributes:
        host: what executes runs here; see `flowlet.core.run.host_of`.
    """

    def __init__(self, id: str, host: ItemHost) -> None:
        self.run_id = self.origin = id
        self.host = host

    def now(self) -> float:
        return self.host.now()


class _ItemScope(msgspec.Struct, eq=False):
    """One attempt of an item, while it executes.

    Attributes:
        inside: not None: like in a step, a step that is called here is just its function.
    """

    _id: str
    _index: int
    _attempt: int
    _engine: Any
    _run: Run | None = None
    inside: Any = True

    def run(self) -> Run:
        if self._run is None:
            self._run = Run(self._id, str(self._index), self._attempt, self._engine)
        return self._run

    def event_key(self, machine_id: str, event: str) -> str:
        return self.run().event_key(machine_id, event)


class ItemRuns:
    """Makes the scopes of items.

    Args:
        id: of the bulk operation.
        names: parameters that are to be the `Run`.
        check: raises, or waits, when an item may not begin.
    """

    def __init__(self, id: str, host: ItemHost, names: Sequence[str], check: Callable[[int], Awaitable[None]]) -> None:
        self._id = id
        self._engine = _ItemEngine(id, host)
        self._names = names
        self.check = check

    def enter(self, index: int, attempt: int) -> Token[Any]:
        """Begin an attempt of an item."""
        scope: Any = _ItemScope(self._id, index, attempt, self._engine)
        return run_context.set(scope)

    def leave(self, token: Token[Any]) -> None:
        """End it."""
        run_context.reset(token)

    def provided(self) -> dict[str, Any]:
        """Return the arguments that are the `Run`."""
        scope = run_context.get()
        return {} if scope is None or not self._names else dict.fromkeys(self._names, scope.run())
