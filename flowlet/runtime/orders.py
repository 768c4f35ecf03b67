"""What people and other programs may order of a run from outside: to end, to go on, to begin anew.

Law: an order is in the store before the call returns, whichever process executes the run, or none. A
cancellation is a signal that the owner finds; an answer to a question, and what makes a parked run go on, is a
record, written by whoever gives it while nobody owns the run.
"""

from __future__ import annotations

import inspect
import re
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol

import anyio
from msgspec.structs import replace

from flowlet.core.annotations import Parameter
from flowlet.core.codec import encode, pack
from flowlet.core.current import run_context
from flowlet.core.definitions import RunDefinition
from flowlet.core.engine import COMPENSATING, OURS
from flowlet.core.faults import nearest
from flowlet.core.ids import check_id
from flowlet.core.program import Program
from flowlet.core.run import Run
from flowlet.core.run_records import (
    Action,
    AttemptBegan,
    AttemptErred,
    Attention,
    Ended,
    Interrupted,
    Noted,
    Parked,
    Resolved,
    RunRecord,
    SignalTaken,
    Started,
    StepEnded,
    StepErred,
    StepStopped,
    TimerFired,
    TimerSet,
    run_record_codec,
)
from flowlet.core.sizes import FRAME, check_size
from flowlet.core.steps import StepDefinition, make_plain_step
from flowlet.errors import Conflict, DecodeError, IdConflict, RunCancelled, RunError, RunFinished
from flowlet.runtime.outbox import outbox_of
from flowlet.store import Head, New, Signal, Store, Stored, Write

if TYPE_CHECKING:
    from flowlet.runtime.execution import Execution

CANCEL: Final = "flowlet/cancel"
"""The topic of the signal that cancels a run."""

ORDERED: Final = "ordered"
"""The `Head.state` of a run that was sent an order which nobody has seen yet."""

STUCK: Final = frozenset({"parked", "needs_attention", "compensation_failed"})
"""Statuses of runs that wait for an operator."""

_MOMENT = 5.0
"""Seconds in which a run that somebody executes comes to see an answer."""

_KEPT = (StepEnded, StepErred, StepStopped, SignalTaken, TimerSet, TimerFired, Noted, Attention)
"""Records that a fork copies from the way up to where it leaves."""

_STEP_RECORDS = (AttemptBegan, AttemptErred, StepEnded, StepErred, StepStopped)


class OrdersHost(Protocol):
    """What orders need of the process they are given in."""

    live: dict[str, Execution]
    max_payload: int | None

    def now(self) -> float: ...
    def new_id(self) -> str: ...
    def definition_of(self, head: Head) -> RunDefinition | None: ...
    async def head(self, id: str) -> Head: ...
    async def load(self, id: str, *, after: int = 0, limit: int | None = None) -> Stored: ...
    async def take_up(self, id: str) -> None: ...
    async def look(self, execution: Execution) -> None: ...


class Orders:
    """Gives orders to the runs of a store."""

    def __init__(self, store: Store, host: OrdersHost) -> None:
        self._store = store
        self._host = host
        self._sends: dict[str, StepDefinition] = {}

    async def cancel(self, id: str) -> None:
        """Have a run undo what it has done and end; see `Handle.cancel`."""
        head = await self._host.head(id)
        if head.status == "needs_attention":
            raise RunError(
                f"run {id!r} is past its pivot, so it cannot be cancelled: resume() it, skip() the step that failed, "
                "or say compensate() if it is to be undone even so"
            )
        if head.status == "compensation_failed":
            raise RunError(
                f"run {id!r} is being undone already: resume() tries what has failed again, skip() says that one was "
                "undone by hand"
            )
        try:
            self._check_open(head)
            write = Write(id=id, signals=(Signal(CANCEL, b"", CANCEL),), state=ORDERED)
            await self._store.append((write,))
        except RunFinished:
            if (await self._host.head(id)).status == "cancelled":
                return
            raise
        execution = self._host.live.get(id)
        if execution is not None:
            execution.journal.marked = True
            execution.tell(cancelled(id))
        elif head.owner is None:
            await self._host.take_up(id)

    async def send(self, id: str, topic: str, payload: object, message_id: str | None) -> None:
        """Put a signal into a run's inbox; see `Handle.send`."""
        if not isinstance(topic, str) or not topic or topic.startswith(OURS):
            raise RunError(f"send() takes a topic, a text that does not begin with {OURS!r}, not {topic!r}")
        if message_id is not None and (not isinstance(message_id, str) or message_id.startswith(OURS)):
            raise RunError(f"message_id: takes a text that does not begin with {OURS!r}, not {message_id!r}")
        what = f"the payload of signal {topic!r}"
        data = encode(payload, what)
        check_size(data, self._host.max_payload, what, FRAME + 2 * len(topic))
        scope = run_context.get()
        if scope is None:
            await self._put(id, topic, data, message_id)
        elif isinstance(scope, Program):
            if scope.is_current:  # as a step of its own, which a replay does not repeat
                await scope.perform(self._sending(topic), (id, data, message_id), None)
            else:  # a task that the body has begun, of which a replay knows nothing
                await self._put(id, topic, data, message_id)
        else:
            # Another attempt sends nothing twice.
            key = f"{scope.event_key(id, 'send')} {topic}" if message_id is None else message_id
            await self._put(id, topic, data, key)

    def _sending(self, topic: str) -> StepDefinition:
        """Return the step by which a body sends a signal."""
        known = self._sends.get(topic)
        if known is None:

            async def send(id: str, data: bytes, message_id: str | None, *, run: Run) -> None:
                await self._put(id, topic, data, message_id or run.idempotency_key)

            known = self._sends[topic] = make_plain_step(
                f"{topic.replace('~', '_')}:send",
                send,
                tuple(
                    Parameter(name, annotation, inspect.Parameter.POSITIONAL_ONLY, required=True, provided=False)
                    for name, annotation in (("id", str), ("data", bytes), ("message_id", str | None))
                ),
                (Parameter("run", Run, inspect.Parameter.KEYWORD_ONLY, required=False, provided=True),),
                type(None),
            )
        return known

    async def _put(self, id: str, topic: str, data: bytes, message_id: str | None) -> None:
        """Put an encoded signal into a run's inbox, if that takes it."""
        box = outbox_of(self._store)
        definition = None if box is None else box.definition_of(id)
        if definition is None:
            head = await self._host.head(id)
            self._check_open(head)
            definition = self._host.definition_of(head)
        if definition is not None and definition.signals is not None:
            codec = definition.signals.get(topic)
            if codec is None:
                raise RunError(
                    f"run {id!r} of {definition.name!r} takes no signal {topic!r}{nearest(topic, definition.signals)}"
                )
            codec.decode(data, f"the payload of signal {topic!r}")
        write = Write(id=id, signals=(Signal(topic, data, message_id),), state=ORDERED)
        box = outbox_of(self._store)  # of a task that outlives the action, it may have been closed meanwhile
        if box is not None:
            box.send(write, partial(self._deliver, id))
            return
        await self._store.append((write,))
        await self._deliver(id)

    async def _deliver(self, id: str) -> None:
        """Have a run look into its inbox."""
        execution = self._host.live.get(id)
        if execution is not None:
            await self._host.look(execution)
        else:
            await self._host.take_up(id)

    async def resume(self, id: str) -> None:
        """Let a run go on that waits for its operator; see `Handle.resume`."""
        head = await self._host.head(id)
        self._check_open(head)
        if head.status in STUCK and head.owner is None:
            await self._answer(head, await self._last(head), "retry")

    async def skip(self, id: str, step: str, result: Any) -> None:
        """Let a run go on without one of the steps that hold it up; see `Handle.skip`."""
        head, last = await self._after_skip(id)
        asked = last.steps if isinstance(last, Attention) and head.owner is None else ()
        if step not in asked:
            waits = f"it waits for an answer about {', '.join(map(repr, asked))}" if asked else "it is held up by none"
            raise RunError(f"run {id!r} is not held up by step {step!r}: {waits}")
        value = None
        if head.status != "compensation_failed":
            what = f"the result of step {step!r}"
            value = encode(result, what)
            check_size(value, self._host.max_payload, what, FRAME + len(step))
            definition = self._host.definition_of(head)
            found = None if definition is None else definition.steps.get(re.split(r"[#:[]", step, maxsplit=1)[0])
            if found is not None:
                found.decode(value)
        await self._answer(head, last, "skip", step, value)

    async def compensate(self, id: str) -> None:
        """Have a run that waits for its operator undo what it has done; see `Handle.compensate`."""
        head = await self._host.head(id)
        self._check_open(head)
        if head.status == "compensation_failed":
            raise RunError(f"run {id!r} is being undone already: resume() tries what has failed again")
        if head.status not in STUCK or head.owner is not None:
            raise RunError(f"run {id!r} is {head.status!r} and waits for no operator: cancel() it")
        await self._answer(head, await self._last(head), "compensate")

    async def fork(self, id: str, from_step: str, new_id: str | None, definition: RunDefinition | None) -> str:
        """Start a run with the recorded beginning of another one; see `Handle.fork`."""
        stored = await self._host.load(id)
        records = [
            run_record_codec.decode(data, f"record {n} of run {id!r}") for n, data in enumerate(stored.records, 1)
        ]
        started = records[0]
        assert isinstance(started, Started)
        copied = _prefix(id, records, from_step)
        origins = [(other, sum(n < upto for n in copied) + 1) for other, upto in started.origins]
        found = definition or self._host.definition_of(stored.head)
        new_id = self._host.new_id() if new_id is None else check_id(new_id)
        limit = None if found is None else found.deadline
        beginning = Started(
            started.definition,
            started.version if found is None else found.version,
            started.input,
            started.at,
            deadline=None if limit is None else self._host.now() + limit,
            origins=(*origins, (id, len(copied) + 1)),
            trace=started.trace,
        )
        write = Write(
            id=new_id,
            expect=0,
            create=New("run", beginning.definition, beginning.version),
            status="running",
            wake=0.0,
            records=(pack(beginning), *(_copy(stored.records[n], records[n]) for n in copied)),
        )
        try:
            await self._store.append((write,))
        except Conflict as error:
            raise IdConflict(f"id {new_id!r} is taken, so it cannot be a fork of {id!r}; use another id") from error
        await self._host.take_up(new_id)
        return new_id

    def _check_open(self, head: Head) -> None:
        if head.closed is not None:
            raise RunFinished(f"run {head.id!r} has ended as {head.status!r}; start a new one under another id")

    async def _after_skip(self, id: str) -> tuple[Head, RunRecord | None]:
        """Return an open run and its last record; if that is a step skipped just now, let the run see it first."""
        end = self._host.now() + _MOMENT
        while True:
            head = await self._host.head(id)
            self._check_open(head)
            last = await self._last(head)
            if not (isinstance(last, Resolved) and last.action == "skip") or self._host.now() > end:
                return head, last
            await anyio.sleep(0.01)

    async def _last(self, head: Head) -> RunRecord | None:
        """Return the last record, or None when it cannot be read here."""
        stored = await self._host.load(head.id, after=head.version - 1)
        try:
            return run_record_codec.decode(stored.records[-1], f"record {head.version} of run {head.id!r}")
        except DecodeError:
            return None

    async def _answer(
        self, head: Head, last: RunRecord | None, action: Action, step: str | None = None, value: bytes | None = None
    ) -> None:
        # A run that was set aside because it could not be read has no question on record, so no answer goes there.
        asked = last if isinstance(last, (Parked, Attention)) else None
        if asked is None and action != "retry":
            raise RunError(f"the history of run {head.id!r} cannot be read here; mend that and resume() first")
        forward = action != "compensate" and head.status != "compensation_failed"
        write = Write(
            id=head.id,
            expect=head.version,
            records=() if asked is None else (pack(Resolved(action, max(asked.at, self._host.now()), step, value)),),
            status="running" if forward else COMPENSATING,
            wake=0.0,
        )
        try:
            await self._store.append((write,))
        except Conflict as error:
            raise RunError(f"somebody else has just told run {head.id!r} how to go on; look at it again") from error
        await self._host.take_up(head.id)


def cancelled(id: str) -> RunCancelled:
    """Return what who waits for a cancelled run is told."""
    return RunCancelled(f"run {id!r} was cancelled; what has a compensation was undone")


def _copy(data: bytes, record: RunRecord) -> bytes:
    """Return a record as a fork has it: the signals that it has taken are not in its own inbox."""
    return pack(replace(record, number=0)) if isinstance(record, SignalTaken) else data


def _prefix(id: str, records: list[RunRecord], from_step: str) -> list[int]:
    """Return the places of the records that a fork copies: the outcomes before the first record of a step."""
    places: list[int] = []
    keys: dict[str, None] = {}
    for place, record in enumerate(records[1:], 1):
        if isinstance(record, (Interrupted, Ended)) or (isinstance(record, Noted) and record.key == COMPENSATING):
            break  # from here on the run has gone back
        if isinstance(record, _STEP_RECORDS):
            if record.key == from_step:
                return places
            keys[record.key] = None
        if isinstance(record, _KEPT) or (isinstance(record, Resolved) and isinstance(records[place - 1], Attention)):
            places.append(place)
    steps = ", ".join(map(repr, keys))
    raise RunError(
        f"run {id!r} has no record of a step {from_step!r} on its way forward, from which it could be forked; "
        f"it has records of {steps or 'no step'}"
    )
