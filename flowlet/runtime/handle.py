"""Handles: looking at a run, waiting for it, and what is reported of it.

Law: a handle holds an id and asks the store; whether the run is executed in this process, in another
one or in none changes only how soon the answer comes.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, Generic, Literal, Protocol, TypeAlias, TypeVar, cast, overload

import msgspec

from flowlet.core.approval_values import ApprovalOutcome
from flowlet.core.codec import Codec
from flowlet.core.definitions import RunDefinition
from flowlet.core.pipeline import SKIPPED
from flowlet.core.run_records import (
    Attention,
    Ended,
    Interrupted,
    Noted,
    Parked,
    Resolved,
    RunRecord,
)
from flowlet.errors import ApprovalRejected
from flowlet.runtime.iterating import readable
from flowlet.runtime.orders import Orders
from flowlet.runtime.report import RunReport, build_report, name_failure
from flowlet.store import Head

R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")

Status: TypeAlias = Literal[
    "pending",
    "running",
    "waiting",
    "completed",
    "failed",
    "cancelled",
    "compensating",
    "compensated",
    "compensation_failed",
    "needs_attention",
    "parked",
]


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One record of a run's journal, for people and tools.

    Attributes:
        seq: its number, from 1 without gap.
        kind: what it says, such as ``"started"``, ``"step_completed"`` or ``"completed"``.
        at: seconds of the store's clock.
        step: the step's key, where it speaks of one.
        error: type and message, where it speaks of an error.
    """

    seq: int
    kind: str
    at: float
    step: str | None = None
    attempt: int | None = None
    seconds: float | None = None
    error: str | None = None


class HandleSource(Protocol):
    """What a handle needs of the process it is in."""

    orders: Orders

    async def head(self, id: str) -> Head: ...
    async def records(self, id: str) -> Sequence[RunRecord]: ...
    async def published(self, id: str, key: str) -> bytes | None: ...
    def stream(self, id: str) -> AsyncIterator[tuple[int, RunRecord]]: ...
    def follow(self, id: str) -> AsyncIterator[tuple[int, RunRecord]]: ...
    async def result(self, id: str, definition: RunDefinition | None) -> Any: ...
    def definition_of(self, head: Head) -> RunDefinition | None: ...


class Handle(Generic[R_co]):
    """A run, by its id.

    Attributes:
        id: the run's id, which is its idempotency key.

    Example:
        >>> import anyio
        >>> from flowlet import Flowlet, step
        >>> flow = Flowlet()
        >>> @step(pivot=True)
        ... async def pay(order: str) -> str:
        ...     return f"{order} is paid"
        >>> @step
        ... async def ship(pay: str) -> str:
        ...     raise OSError("no lorry")
        >>> buy = flow.saga("buy", pay, ship)
        >>> async def main() -> None:
        ...     async with flow:
        ...         handle = await flow.start(buy, "o-1", id="o-1:buy")
        ...         while await handle.status() != "needs_attention":
        ...             await anyio.sleep(0.01)
        ...         print([record.kind async for record in handle.history()])
        ...         print((await handle.report()).steps["pay"].status)
        ...         await handle.skip("ship", "fetched by the customer")  # or resume(), or compensate()
        ...         print(await handle.result())
        >>> anyio.run(main)
        ['started', 'step_completed', 'step_failed', 'needs_attention']
        completed
        fetched by the customer
    """

    __slots__ = ("_definition", "_source", "id")

    def __init__(self, id: str, source: HandleSource, definition: RunDefinition | None = None) -> None:
        self.id: str = id
        self._source = source
        self._definition = definition

    async def result(self, *, raise_on_reject: bool = False) -> R_co:
        """Wait for the end of the run and return its result; of a bulk operation, a `BulkReport` without its errors.

        Args:
            raise_on_reject: raise what an approval chain has come to if that is no approval.

        Raises:
            ApprovalRejected: it is none, and that was asked for; ``.outcome`` says what it is.
            Exception: what the run failed with, its failed compensations attached as the last cause.
            RunParked: it needs an operator.
            RunNotFound: there is no such run.
        """
        value = await self._source.result(self.id, self._definition)
        if raise_on_reject and isinstance(value, ApprovalOutcome) and not value.approved:
            raise ApprovalRejected(f"{self.id!r} was not approved: {value.reason}", value)
        return cast(R_co, value)

    async def status(self) -> Status:
        """Return where the run stands.

        Raises:
            RunNotFound: there is no such run.
        """
        return cast(Status, (await self._source.head(self.id)).status)

    async def report(self) -> RunReport:
        """Return every step's value, status, attempts and seconds, as recorded so far.

        Raises:
            RunNotFound: there is no such run.
        """
        head = await self._source.head(self.id)
        definition = self._definition or self._source.definition_of(head)
        return build_report(head, await self._source.records(self.id), definition)

    async def cancel(self) -> None:
        """Have the run end and undo what it has done, whichever process executes it, or none.

        Returns when that is certain to happen; `result` then raises `RunCancelled`. It makes no difference to a
        run that is being undone already, or was cancelled before. A saga that is past its pivot completes. A step
        that is under way is cut off; a plain function in its thread cannot be, so that it is awaited and its result
        counts. A child run that is under way is cancelled as well, and has ended before its parent is undone.

        Raises:
            RunFinished: it has ended.
            RunError: it waits for an operator, past its pivot or because its compensations have failed.
            RunNotFound: there is no such run.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, Run, provided
            >>> from flowlet.errors import RunCancelled
            >>> flow = Flowlet()
            >>> @flow.saga
            ... async def wait(run: Run = provided) -> None:
            ...     await run.sleep(3600)
            >>> async def main() -> None:
            ...     async with flow:
            ...         handle = await flow.start(wait)
            ...         await handle.cancel()
            ...         try:
            ...             await handle.result()
            ...         except RunCancelled:
            ...             print([record.kind async for record in handle.history()][-1], await handle.status())
            >>> anyio.run(main)
            cancelled cancelled
        """
        await self._source.orders.cancel(self.id)

    async def resume(self) -> None:
        """Let a run go on that waits for its operator: the cause has been mended.

        A parked run goes on where its records end. One that ``needs_attention`` tries the step again that failed
        behind its pivot. One whose compensations failed tries just those again. Any other run goes on anyway.

        Raises:
            RunFinished: it has ended.
            RunError: somebody else has just told it how to go on.
            RunNotFound: there is no such run.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, step
            >>> from flowlet.errors import RunParked
            >>> flow = Flowlet()
            >>> there = False
            >>> @step(pivot=True)
            ... async def pay(order: str) -> str:
            ...     return f"{order} paid"
            >>> @step
            ... async def ship(pay: str) -> str:
            ...     if not there:
            ...         raise OSError("no lorry")
            ...     return f"{pay}, shipped"
            >>> buy = flow.saga("buy", pay, ship)
            >>> async def main() -> None:
            ...     global there
            ...     async with flow:
            ...         handle = await flow.start(buy, "o-1")
            ...         try:
            ...             await handle.result()
            ...         except RunParked:
            ...             there = True  # a lorry has come
            ...         await handle.resume()
            ...         print(await handle.result())
            >>> anyio.run(main)
            o-1 paid, shipped
        """
        await self._source.orders.resume(self.id)

    async def skip(self, step: str, result: object = None) -> None:
        """Let a run go on without a step that holds it up, because somebody has seen to it.

        Args:
            step: its key: one that failed behind the pivot, that runs at most once and was cut off, or whose
                compensation failed.
            result: what the step is to have returned; of no meaning for a compensation.

        Raises:
            RunError: the run is not held up by that step.
            EncodeError, DecodeError, PayloadTooLarge: the result is not what the step returns, or too large.
            RunFinished: it has ended.
            RunNotFound: there is no such run.
        """
        await self._source.orders.skip(self.id, step, result)

    async def compensate(self) -> None:
        """Have a run that is parked or ``needs_attention`` undo what it has done, a pivot included, and end.

        What a parked run's code no longer leads to is undone as its records say.

        Raises:
            RunError: it does not wait for an operator.
            RunFinished: it has ended.
            RunNotFound: there is no such run.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, compensate, step
            >>> from flowlet.errors import RunParked
            >>> flow = Flowlet()
            >>> @step(pivot=True)
            ... async def pay(order: str) -> str:
            ...     return f"{order} paid"
            >>> @compensate(pay)
            ... async def refund(pay: str) -> None:
            ...     print("refund of", pay)
            >>> @step
            ... async def ship(pay: str) -> str:
            ...     raise OSError("no lorry")
            >>> buy = flow.saga("buy", pay, ship)
            >>> async def main() -> None:
            ...     async with flow:
            ...         handle = await flow.start(buy, "o-1")
            ...         try:
            ...             await handle.result()
            ...         except RunParked:
            ...             await handle.compensate()
            ...         while await handle.status() != "compensated":
            ...             await anyio.sleep(0.01)
            >>> anyio.run(main)
            refund of o-1 paid
        """
        await self._source.orders.compensate(self.id)

    async def fork(self, *, from_step: str, id: str | None = None) -> Handle[R_co]:
        """Start a new run that has done what this one had done before a step, and goes on from there by itself.

        Args:
            from_step: the key of the step that is the first to be executed anew; see `report`.
            id: of the new run; one is made up when not given. Its steps have idempotency keys of their own.

        Raises:
            RunError: this run has no record of that step on its way forward.
            IdConflict: the id is taken.
            RunNotFound: there is no such run.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, step
            >>> flow = Flowlet()
            >>> @step
            ... async def fetch(page: str) -> str:
            ...     print("fetching", page)
            ...     return page.upper()
            >>> @step
            ... async def show(fetch: str) -> str:
            ...     return f"<{fetch}>"
            >>> report = flow.saga("report", fetch, show)
            >>> async def main() -> None:
            ...     async with flow:
            ...         handle = await flow.start(report, "news")
            ...         await handle.result()
            ...         again = await handle.fork(from_step="show")
            ...         print(await again.result())
            >>> anyio.run(main)
            fetching news
            <NEWS>
        """
        made = await self._source.orders.fork(self.id, from_step, id, self._definition)
        return Handle(made, self._source, self._definition)

    @readable
    async def history(self) -> AsyncGenerator[Record, None]:
        """Yield the run's records in order, without loading them all."""
        async for seq, record in self._source.stream(self.id):
            yield _show(seq, record)

    @readable
    async def events(self) -> AsyncGenerator[Record, None]:
        """Yield the run's records as they are stored, from its first one until it has ended, wherever it is executed.

        Raises:
            RunNotFound: there is no such run.

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
            ...         handle = await flow.start(twice, 21)
            ...         print([event.kind async for event in handle.events()])
            >>> anyio.run(main)
            ['started', 'step_completed', 'completed']
        """
        async for seq, record in self._source.follow(self.id):
            yield _show(seq, record)

    @overload
    async def read(self, key: str, /, *, type: type[T], default: T | None = None) -> T | None: ...
    @overload
    async def read(self, key: str, /, *, default: Any = None) -> Any: ...
    async def read(self, key: str, /, *, type: Any = Any, default: Any = None) -> Any:
        """Return what the run, or one of its steps, has last let others see with `Run.publish`.

        Args:
            key: of the value.
            type: what to decode it to; by default to what msgpack says: dicts, lists, texts and numbers.
            default: what to return if nothing was published under the key.

        Raises:
            DecodeError: the value is not of the type.
            RunNotFound: there is no such run.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, Run, provided
            >>> flow = Flowlet()
            >>> @flow.saga
            ... async def load(path: str, run: Run = provided) -> None:
            ...     await run.publish("progress", 0.5)
            >>> async def main() -> None:
            ...     async with flow:
            ...         await flow.execute(load, "a.csv", id="l-1")
            ...         print(await flow.handle("l-1").read("progress", type=float))
            >>> anyio.run(main)
            0.5
        """
        found = await self._source.published(self.id, key)
        return default if found is None else Codec(type).decode(found, f"what run {self.id!r} published as {key!r}")

    async def send(self, topic: str, payload: object, /, *, message_id: str | None = None) -> None:
        """Send the run a signal: whatever waits for the topic goes on with it, now or when the run comes to it.

        Returns when the signal is stored. Signals of one topic are taken in the order in which they were sent. In the
        action of a stored machine, or in an exit hook, the signal is checked at once and stored with the transition.

        Args:
            topic: of the signal, such as the name of a graph's pause.
            payload: data of the type that the run takes there.
            message_id: a second signal with the same one is dropped, so that sending can be repeated. In a run there is
                one by default: what its body sends is sent once, however often it is replayed, and so is what a step
                sends, however often it is tried.

        Raises:
            RunError: the run takes no signal of this topic.
            EncodeError, DecodeError, PayloadTooLarge: the payload is not of that type, or cannot be stored.
            RunFinished: it has ended.
            RunNotFound: there is no such run.
            MachineError: a guard would send it.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, Run, provided
            >>> flow = Flowlet()
            >>> @flow.saga
            ... async def order(run: Run = provided) -> str:
            ...     return "paid by " + await run.receive("payment", type=str)
            >>> async def main() -> None:
            ...     async with flow:
            ...         handle = await flow.start(order)
            ...         await handle.send("payment", "ann", message_id="transfer-7")
            ...         print(await handle.result())
            >>> anyio.run(main)
            paid by ann
        """
        await self._source.orders.send(self.id, topic, payload, message_id)

    def __repr__(self) -> str:
        return f"<Handle of run {self.id!r}>"


_KINDS = {
    "Started": "started",
    "AttemptBegan": "attempt_began",
    "StepEnded": "step_completed",
    "StepErred": "step_failed",
    "StepStopped": "step_cancelled",
    "AttemptErred": "attempt_failed",
    "SignalTaken": "signal",
    "TimerSet": "waiting",
    "TimerFired": "time_over",
    "Published": "published",
    "ChildCalled": "child_called",
    "Parked": "parked",
}


def _show(seq: int, record: RunRecord) -> Record:
    kind = _KINDS.get(type(record).__name__, "")
    error = getattr(record, "error", None)
    if isinstance(record, Noted):
        kind = "skipped" if record.key.startswith(SKIPPED) else record.key
    elif isinstance(record, (Ended, Attention)):
        kind = record.status
    elif isinstance(record, Interrupted):
        kind = "interrupted"
    elif isinstance(record, Resolved):
        kind = {"retry": "resumed", "skip": "step_skipped", "compensate": "compensating"}[record.action]
    return Record(
        seq=seq,
        kind=kind,
        at=record.at,
        step=_step_of(record),
        attempt=getattr(record, "attempt", None),
        seconds=getattr(record, "seconds", None),
        error=_reason(record) if error is None else name_failure(error),
    )


def _reason(record: RunRecord) -> str | None:
    return record.reason if isinstance(record, (Parked, Attention)) else None


def _step_of(record: RunRecord) -> str | None:
    if isinstance(record, Noted):
        return record.key.removeprefix(SKIPPED)
    if isinstance(record, Attention):
        return ", ".join(record.steps)
    return record.step if isinstance(record, Resolved) else getattr(record, "key", None)
