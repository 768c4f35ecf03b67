"""Child runs: what a step of one run starts, waits for, and has undone.

Law: a child has the id that its parent's step gives it, so that a replay finds it and starts nothing twice. What only
holds a child up holds up the step that waits for it, and fails nothing. A step that is nothing but a child lets go of
its run while the child waits: the child's end is told to the parent in the same append that ends it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol

from flowlet.core.current import run_context
from flowlet.core.definitions import RunDefinition
from flowlet.core.engine import StepCall, StepWaits, Suspended
from flowlet.core.run_records import RunRecord, Started
from flowlet.errors import IdConflict, RunError, RunNotFound, StoreUnavailable
from flowlet.runtime.orders import ORDERED, cancelled
from flowlet.store import Signal, Store, Stored, Write

if TYPE_CHECKING:
    from flowlet.runtime.execution import Execution
    from flowlet.runtime.orders import Orders

CHILD: Final = "flowlet/child"
"""The topic of the signal that tells a run of a child's end; its payload is the child's id."""


_PAUSE = 0.1
"""Seconds between two questions to a store that is down."""


def _pruned(id: str) -> RunError:
    return RunError(
        f"run {id!r}, which this run has started, has ended and was pruned before its result was asked for: await the "
        "result earlier, or prune later"
    )


def end_of_child(parent: str, id: str) -> Write:
    """Return what tells a run that a child has ended."""
    return Write(id=parent, signals=(Signal(CHILD, id.encode(), f"{CHILD}/{id}"),), state=ORDERED)


class ChildrenHost(Protocol):
    """What child runs need of the process they are in."""

    closing: bool
    orders: Orders

    @property
    def live(self) -> Mapping[str, Execution]: ...
    async def execute(
        self,
        definition: RunDefinition,
        inputs: tuple[Any, ...],
        id: str | None,
        instance: Any = None,
        deadline: float | None = None,
        parent: str | None = None,
        *,
        is_patient: bool = True,
    ) -> Any: ...
    async def settled(self, id: str, definition: RunDefinition, *, is_patient: bool) -> Any: ...
    async def load(self, id: str, *, after: int = 0, limit: int | None = None) -> Stored: ...
    async def look(self, execution: Execution) -> None: ...
    def decode(self, id: str, number: int, data: bytes) -> RunRecord: ...
    async def pause(self, seconds: float) -> None: ...


class Children:
    """The child runs that steps of this process wait for."""

    def __init__(self, store: Store, host: ChildrenHost) -> None:
        self._store = store
        self._host = host
        self._above: dict[str, str] = {}
        self._under: dict[str, set[str]] = {}

    async def execute(
        self,
        definition: RunDefinition,
        inputs: tuple[Any, ...],
        id: str,
        instance: Any = None,
        deadline: float | None = None,
    ) -> Any:
        """Execute a run for a step that does other things, too, or for a body that asks its Flowlet.

        Raises:
            Suspended: this process stops before the child has ended.
        """
        seen = -1
        scope = run_context.get()
        parent = key = None
        if scope is not None:
            parent, key = scope.run().id, scope.run().idempotency_key
            self._above[id] = parent
            self._under.setdefault(key, set()).add(id)
        try:
            if isinstance(scope, StepCall):
                await self._note(scope, id)
            while True:
                try:
                    value = await self._host.execute(definition, inputs, id, instance, deadline)
                    self._forget_under(key, id)
                    return value
                except IdConflict:
                    self._forget_under(key, id)
                    raise
                except Exception as error:
                    if not await self.is_open(id):
                        self._forget_under(key, id)
                        raise
                    if self._host.closing:
                        raise Suspended from error
                seen = await self._store.watch(seen, 1.0)
        finally:
            self._above.pop(id, None)

    async def _note(self, call: StepCall, id: str) -> None:
        """Put it on record that a step has called a run: whoever has the step stopped has to know of that."""
        record: Callable[[str, str], Awaitable[None]] | None = getattr(call.engine, "record_child", None)
        if record is not None:
            await record(call.key, id)

    def _forget_under(self, key: str | None, id: str) -> None:
        """Forget a run that a step, or a body, has called and that has ended."""
        found = None if key is None else self._under.get(key)
        if key is not None and found is not None:
            found.discard(id)
            if not found:
                del self._under[key]

    def has_under(self, key: str) -> bool:
        """Tell whether what a step calls, or a body, may have runs under way that are to end with it."""
        return key in self._under

    async def halt_under(self, key: str, recorded: Collection[str] = ()) -> None:
        """Cancel the runs that a step, or a body, has called, and wait until they have ended."""
        for id in sorted({*self._under.pop(key, ()), *recorded}):
            await self.halt(id)

    async def execute_alone(
        self, definition: RunDefinition, inputs: tuple[Any, ...] | None, id: str, parent: str
    ) -> Any:
        """Execute a run for a step that is nothing else, or wait for one that is there.

        Args:
            inputs: None for a run that was started before.

        Raises:
            StepWaits: it goes on elsewhere, or later; the parent hears of its end.
            Suspended: this process stops before the child has ended.
        """
        is_patient = not self._store.capabilities.signals
        while True:
            self._above[id] = parent
            try:
                if inputs is None:
                    return await self._host.settled(id, definition, is_patient=is_patient)
                return await self._host.execute(definition, inputs, id, parent=parent, is_patient=is_patient)
            except IdConflict:
                raise
            except RunNotFound as error:
                if inputs is None and error.id in ("", id):
                    raise _pruned(id) from error
                raise
            except Exception as error:
                if not await self.is_open(id):
                    raise
                if self._host.closing:
                    raise Suspended from error
            except StepWaits:
                pass
            finally:
                self._above.pop(id, None)
            if not is_patient:
                is_patient = not await self._leaves(id, parent)

    async def _leaves(self, id: str, parent: str) -> bool:
        """Let a parent be told of the end of its child; False if it has to wait here, or look again.

        Raises:
            StepWaits: it will be told.
            Suspended: this process stops.
        """
        try:
            # In this order: the end of the child that is not seen here changes the inbox that was looked at before.
            execution = self._host.live.get(parent)
            if execution is not None:
                await self._host.look(execution)
            if not await self.is_open(id):
                return True
            if await self._tells(id, parent):
                raise StepWaits(id)
        except StoreUnavailable as error:
            await self._pause(error)
            return True
        return False

    async def _pause(self, error: StoreUnavailable) -> None:
        """Ask a store again that is down, but not once this process stops."""
        if self._host.closing:
            raise Suspended from error
        await self._host.pause(_PAUSE)

    async def _tells(self, id: str, parent: str) -> bool:
        """Tell whether a run tells this parent of its end: one that somebody else has started does not."""
        return (await self._started(id)).parent == parent

    async def _started(self, id: str) -> Started:
        """Return the first record of a run.

        Raises:
            RunNotFound: there is none.
        """
        stored = await self._host.load(id, limit=1)
        started = self._host.decode(id, 1, stored.records[0])
        if not isinstance(started, Started):
            raise RunNotFound(f"{id!r} is a {stored.head.kind}, not a run", id)
        return started

    def is_awaited(self, id: str) -> bool:
        """Tell whether somebody waits for a run in this process, and needs not be told of its end."""
        return id in self._above

    def order_from_above(self, id: str) -> Exception | None:
        """Return what a run is about to be told, if one that waits for it here is being undone."""
        above = self._above.get(id)
        while above is not None:
            execution = self._host.live.get(above)
            if execution is not None and execution.is_told:
                return cancelled(id)
            above = self._above.get(above)
        return None

    async def halt(self, id: str) -> None:
        """Have a child run undo what it has done, if it has not ended, and wait for its end.

        Raises:
            Suspended: this process stops before that.
        """
        execution, is_told, seen = self._host.live.get(id), False, -1
        if execution is not None:
            execution.tell(cancelled(id))  # at once: what was cut off with its parent is not to begin anew
        while await self.is_open(id):
            if self._host.closing:
                raise Suspended
            try:
                if not is_told:
                    await self._host.orders.cancel(id)
                    is_told = True
                seen = await self._store.watch(seen, 1.0)
            except StoreUnavailable as error:
                await self._pause(error)
            except RunError:  # it has ended, or waits for its operator, and so does its parent
                is_told = True

    async def is_ancestor(self, id: str, run: str) -> bool:
        """Tell whether a run is another one, or waits for it, itself or through others."""
        above: str | None = run
        while above is not None and above != id:
            try:
                above = (await self._started(above)).parent
            except RunNotFound:  # it has ended and was pruned, so that it waits for nothing
                return False
        return above is not None

    async def halt_own(self, id: str, parent: str) -> None:
        """Do the same with a run, unless another one has started it, such as that which this was forked from."""
        while await self.is_open(id):
            try:
                if await self._tells(id, parent):
                    await self.halt(id)
                return
            except StoreUnavailable as error:
                await self._pause(error)

    async def is_open(self, id: str) -> bool:
        """Tell whether a run exists and has not ended, as far as can be told."""
        try:
            stored = await self._store.load(id, limit=0)
        except StoreUnavailable:
            return True
        return stored is not None and stored.head.closed is None
