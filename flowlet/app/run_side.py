"""The runs of a `Flowlet`: starting them, finding them, listing them."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, Unpack, cast, overload

import anyio

from flowlet.app.arguments import Deadline, SagaClass, seconds_of
from flowlet.app.life import Life
from flowlet.core.current import run_context
from flowlet.core.definitions import RunDefinition
from flowlet.core.registry import definition_of
from flowlet.errors import ConfigError, FlowletError
from flowlet.runtime.handle import Handle, Status
from flowlet.runtime.listing import RunSummary, list_runs
from flowlet.runtime.outbox import refuse_queued
from flowlet.runtime.tasks import is_loop_running

if TYPE_CHECKING:
    from flowlet.approval import Approval, ApprovalOutcome

R = TypeVar("R")
S = TypeVar("S")
Ts = TypeVarTuple("Ts")


def _named(requester: str | None) -> dict[str, Any]:
    """Return what is passed by its name to a definition."""
    return {} if requester is None else {"requester": requester}


class RunSide(Life):
    """What a `Flowlet` does with runs."""

    @overload
    async def start(
        self,
        definition: Approval[S],
        subject: S,
        /,
        *,
        requester: str,
        id: str | None = None,
        deadline: Deadline = None,
    ) -> Handle[ApprovalOutcome[S]]: ...
    @overload
    async def start(
        self, definition: type[SagaClass[*Ts, R]], /, *args: *Ts, id: str | None = None, deadline: Deadline = None
    ) -> Handle[R]: ...
    @overload
    async def start(
        self,
        definition: Callable[[Unpack[Ts]], Awaitable[R]],
        /,
        *args: *Ts,
        id: str | None = None,
        deadline: Deadline = None,
    ) -> Handle[R]: ...
    async def start(
        self,
        definition: Any,
        /,
        *args: object,
        id: str | None = None,
        deadline: Deadline = None,
        requester: str | None = None,
    ) -> Any:
        """Start a run and return when its input is durable; it goes on by itself.

        In the action of a stored machine, or in an exit hook, it begins with the transition: the run is created in the
        append that commits it, so that there are both or neither. What cannot be started is refused at once; the
        transition is refused if the id turns out to be taken by something else. Enter hooks run after the commit, so
        there it is started at once, as it is by a machine without a store. Guards start nothing.

        In the body of a run, prefer `Run.start`, which is recorded: here a replay finds the run that is there, but if
        that was pruned it begins a new one.

        Args:
            definition: an assembled saga, pipeline, graph or approval chain.
            args: its inputs; of an approval chain, what is to be decided on.
            id: the run's id and idempotency key, unique in the store; one is made up when not given.
            deadline: when the run must have ended: seconds (or a timedelta) from now, or a datetime with a
                timezone. If it has not, whether or not a process ran it, it is undone and fails with `RunTimeout`;
                one that waits for its operator, as soon as that one has answered.
            requester: of an approval chain, who asks for it.

        Returns:
            A handle; with an id that is taken by the same definition and input, that run's. In an action, what it
            stands for can be sent signals, and waited for after the event.

        Raises:
            IdConflict: the id is taken by something else.
            EncodeError: an input cannot be stored.
            MachineError: a guard would start it.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, step
            >>> flow = Flowlet()
            >>> @step
            ... async def double(n: int) -> int:
            ...     return 2 * n
            >>> twice = flow.saga("twice", double)
            >>> async def main() -> None:
            ...     async with flow:
            ...         handle = await flow.start(twice, 21, id="r-1")
            ...         print(await handle.result())
            >>> anyio.run(main)
            42
        """
        found = self._run_definition(definition)
        inputs = found.starter.bind(args, _named(requester))
        return await self._open_runs.start(found, inputs, id, self._absolute(deadline))

    @overload
    async def execute(
        self,
        definition: Approval[S],
        subject: S,
        /,
        *,
        requester: str,
        id: str | None = None,
        deadline: Deadline = None,
    ) -> ApprovalOutcome[S]: ...
    @overload
    async def execute(
        self, definition: type[SagaClass[*Ts, R]], /, *args: *Ts, id: str | None = None, deadline: Deadline = None
    ) -> R: ...
    @overload
    async def execute(
        self,
        definition: Callable[[Unpack[Ts]], Awaitable[R]],
        /,
        *args: *Ts,
        id: str | None = None,
        deadline: Deadline = None,
    ) -> R: ...
    async def execute(
        self,
        definition: Any,
        /,
        *args: object,
        id: str | None = None,
        deadline: Deadline = None,
        requester: str | None = None,
    ) -> Any:
        """Run a definition and return its result; like calling it, with an id and on this Flowlet.

        Raises:
            Exception: what the run failed with.
            IdConflict: the id is taken by something else.
            RunError: the run begins with the transition whose action asks for its result.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet
            >>> flow = Flowlet()
            >>> @flow.saga
            ... async def double(n: int) -> int:
            ...     return 2 * n
            >>> async def main() -> None:
            ...     async with flow:
            ...         print(await flow.execute(double, 21, id="d-1"))
            >>> anyio.run(main)
            42
        """
        found = self._run_definition(definition)
        if id is not None:
            refuse_queued(id, self.store)
        inputs = found.starter.bind(args, _named(requester))
        inner = id if id is not None else self._open_runs.derived_id(found)
        if inner is not None and run_context.get() is not None:
            return await self._open_runs.children.execute(found, inputs, inner, deadline=self._absolute(deadline))
        return await self._open_runs.execute(found, inputs, id, deadline=self._absolute(deadline))

    @overload
    def run(
        self, definition: type[SagaClass[*Ts, R]], /, *args: *Ts, id: str | None = None, deadline: Deadline = None
    ) -> R: ...
    @overload
    def run(
        self,
        definition: Callable[[Unpack[Ts]], Awaitable[R]],
        /,
        *args: *Ts,
        id: str | None = None,
        deadline: Deadline = None,
    ) -> R: ...
    def run(self, definition: Any, /, *args: object, id: str | None = None, deadline: Deadline = None) -> Any:
        """Enter this Flowlet, run a definition and leave again: for plain scripts.

        Raises:
            FlowletError: an event loop is running here; await `execute` there.

        Example:
            >>> from flowlet import Flowlet, step
            >>> flow = Flowlet()
            >>> @step
            ... async def double(n: int) -> int:
            ...     return 2 * n
            >>> flow.run(flow.saga("twice", double), 21)
            42
        """
        if is_loop_running():
            raise FlowletError(
                "an event loop is running here: write `await flow.execute(...)` instead of flow.run(...)"
            )

        async def main() -> Any:
            async with self:
                return await self.execute(definition, *args, id=id, deadline=deadline)

        return anyio.run(main)

    @overload
    def handle(self, id: str, /) -> Handle[Any]: ...
    @overload
    def handle(self, id: str, definition: Callable[..., Awaitable[R]], /) -> Handle[R]: ...
    def handle(self, id: str, definition: Any = None, /) -> Any:
        """Return the handle of a run; that there is one is found out when it is asked something.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet
            >>> flow = Flowlet()
            >>> @flow.saga
            ... async def double(n: int) -> int:
            ...     return 2 * n
            >>> async def main() -> None:
            ...     async with flow:
            ...         await flow.start(double, 21, id="d-1")
            ...         print(await flow.handle("d-1", double).result())
            >>> anyio.run(main)
            42
        """
        return Handle(id, self._open_runs, None if definition is None else self._run_definition(definition))

    def runs(
        self,
        definition: str | Callable[..., Awaitable[Any]] | type[SagaClass[*tuple[Any, ...], Any]] | None = None,
        *,
        status: Status | Sequence[Status] | None = None,
        after: int = 0,
        limit: int | None = None,
    ) -> AsyncIterator[RunSummary]:
        """Yield the runs there are, in the order in which they were started, without loading them all.

        Args:
            definition: only those of this saga, pipeline or graph, or of this name; of every version.
            status: only those that stand at this status, or at one of these.
            after: only those behind the one whose `RunSummary.order` this is, to go on where a page ended.
            limit: at most so many; all by default.

        Raises:
            ConfigError: a status that no run can have, or an argument of another type.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, step
            >>> flow = Flowlet()
            >>> @step
            ... async def double(n: int) -> int:
            ...     return 2 * n
            >>> twice = flow.saga("twice", double)
            >>> async def main() -> None:
            ...     async with flow:
            ...         for n in range(3):
            ...             await flow.execute(twice, n, id=f"r-{n}")
            ...         page = [run async for run in flow.runs(twice, status="completed", limit=2)]
            ...         print([run.id for run in page])
            ...         print([run.id async for run in flow.runs(after=page[-1].order)])
            >>> anyio.run(main)
            ['r-0', 'r-1']
            ['r-2']
        """
        return list_runs(self._open_store, definition, status, after, limit)

    def _absolute(self, deadline: Deadline) -> float | None:
        """Return a deadline in seconds of the store's clock."""
        if deadline is None:
            return None
        if not isinstance(deadline, datetime):
            return self._open_runs.now() + seconds_of(deadline, "deadline")
        if deadline.tzinfo is None:
            raise ConfigError(f"deadline: {deadline!r} has no timezone; give it one, such as datetime.UTC")
        return deadline.timestamp()

    def _run_definition(self, thing: Any) -> RunDefinition:
        found = definition_of(thing)
        if inspect.iscoroutine(thing):
            thing.close()
            raise FlowletError(f"{thing.__qualname__} was called: pass it and its arguments, as in flow.run(saga, 1)")
        if isinstance(definition_of(type(thing)), RunDefinition):
            raise FlowletError(
                f"an object of {type(thing).__qualname__} was passed: pass the class, or call the object"
            )
        if not isinstance(found, RunDefinition):
            name = getattr(thing, "__qualname__", repr(thing))
            raise FlowletError(
                f"{name} is no saga, pipeline, graph or approval chain: assemble it with @flow.saga, @flow.pipeline, "
                "flow.graph() or flow.approval()"
            )
        if self._registry.definitions.get((found.name, found.version)) is not found:
            raise FlowletError(f"{found.name!r} is not included here: flow.include(the registry or module it is in)")
        return cast(RunDefinition, found)  # pyright: ignore[reportUnnecessaryCast] - mypy needs it
