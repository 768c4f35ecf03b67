"""The schedules of one `Flowlet`: putting them up in the store, and starting their runs.

Law: the runs of a tick and the schedule's next time are one append, under the lease and the version that were seen.
So each tick is fired once, whatever dies when and however many processes there are. Every write to a schedule gives
its lease back: who changes one takes it from whoever is about to fire it, and that one then changes nothing.

A schedule's journal has what people and code have done to it, and does not grow with its ticks: those are in its
snapshot, and in the runs that they have started.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import anyio
import msgspec
from msgspec.structs import replace

from flowlet.core.codec import pack
from flowlet.core.schedule import (
    KIND,
    PREFIX,
    Plan,
    ScheduleDefinition,
    ScheduleEvent,
    ScheduleState,
    begin,
    change,
    find_due,
    inputs_at,
    run_id,
    state_codec,
)
from flowlet.core.schedule_ticks import text_of, tick_of
from flowlet.errors import Conflict, FlowletError, IdConflict, LeaseLost, StoreUnavailable
from flowlet.runtime.creating import Prepared
from flowlet.runtime.runs import Runs
from flowlet.runtime.tasks import Task, spawn
from flowlet.store import Head, New, Store, Stored, Write

_VERSION = "1"
"""The version under which schedules are claimed: what a schedule is at the moment is in its state."""

_ASIDE = 60.0
"""Seconds for which a schedule that cannot be fired here is left to others."""

MOVED = (Conflict, LeaseLost)
"""What a write meets when somebody else has written to the schedule, or taken it."""


class Schedules:
    """Puts up the schedules of a registry, and fires those that are due.

    Args:
        definitions: what the registry has, by name; there may come more.
    """

    def __init__(self, store: Store, runs: Runs, definitions: Mapping[str, ScheduleDefinition]) -> None:
        self._store, self._runs, self._definitions = store, runs, definitions
        self._known: set[str] = set()
        self._aside: dict[str, _Aside] = {}
        self._tasks: set[Task] = set()
        self._closing = False

    # -------------------------------------------------------------- putting up
    async def open(self) -> None:
        """Put up what the registry has."""
        for definition in list(self._definitions.values()):
            await self._put_up(definition)

    async def _put_up(self, definition: ScheduleDefinition) -> None:
        """Create a schedule, or bring it up to date with the code.

        Raises:
            IdConflict: something else has its id.
        """
        self._known.add(definition.name)
        while True:
            stored = await self._store.load(PREFIX + definition.name, limit=0)
            state = None if stored is None else read_state(stored)
            if state is not None and state.plan == definition.plan and not state.removed:
                return
            now = await self._store.now()
            if stored is None or state is None:
                write = _creation(definition, now)
            else:
                after = change(state, definition.plan, tick_of(now))
                write = write_state(stored.head, after, ScheduleEvent("changed", now, definition.plan))
                self._tell("schedule.changed", stored.head)
            try:
                await self._store.append((write,))
            except MOVED:
                continue  # another process does the same, or fires it
            if isinstance(write.wake, float):
                self._runs.worker.expect(write.wake)
            return

    # -------------------------------------------------------------- for the worker
    def kinds(self) -> list[tuple[str, str, str]]:
        """Return what this process can fire, as (kind, name, version); put up what has come to the registry since."""
        if len(self._known) < len(self._definitions):
            for name in self._definitions.keys() - self._known:
                self._known.add(name)
                self._spawn(partial(self._patiently, partial(self._put_up, self._definitions[name])))
        return [(KIND, name, _VERSION) for name in self._known if self._may_fire(name)]

    def _may_fire(self, name: str) -> bool:
        aside = self._aside.get(name)
        if aside is None or perf_counter() > aside.until:
            return True
        return aside.wanted is not None and self._runs.find(*aside.wanted) is not None  # it has been included since

    def adopt(self, head: Head) -> None:
        """Fire a schedule that this process has just claimed."""
        self._spawn(partial(self._patiently, partial(self._fire, head)))

    async def close(self) -> None:
        """Fire nothing more."""
        self._closing = True
        for task in list(self._tasks):
            task.cancel()
            await task.done.wait()

    def _spawn(self, main: Callable[[], Awaitable[None]]) -> None:
        if not self._closing:
            self._tasks.add(spawn(main, self._broke, self._tasks.discard))

    def _broke(self, error: BaseException) -> None:
        self._runs.log.error("schedule.broken", error=repr(error))

    async def _patiently(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do something, again and again while the store is down."""
        pause = 0.1
        while True:
            try:
                return await work()
            except StoreUnavailable as error:
                self._runs.log.warning("store.unavailable", error=str(error))
            await anyio.sleep(pause)
            pause = min(2 * pause, 10.0)

    # -------------------------------------------------------------- firing
    async def _fire(self, head: Head) -> None:
        """Start the runs of what is due, and give the schedule back."""
        stored = await self._store.load(head.id, limit=0)
        if stored is None or stored.head.fence != head.fence:
            return  # somebody has changed it since, and has given it back
        if self._runs.closing:
            await self._give_back(head)
            return
        try:
            await self._start_due(stored)
            self._aside.pop(head.definition, None)
        except StoreUnavailable:
            raise
        except MOVED:
            return  # the same, a moment later
        except FlowletError as error:
            await self._put_aside(head, error)

    async def _start_due(self, stored: Stored) -> None:
        head, state = stored.head, read_state(stored)
        run = self._runs.find(state.plan.definition, state.plan.version)
        if run is None:
            raise _NotIncluded(state.plan)
        # The store's own time: this process's idea of it is behind after a machine has slept.
        due = find_due(state, max(tick_of(await self._store.now()), tick_of(head.wake or 0.0)))
        if due.dropped is not None:
            self._tell("schedule.missed", head, since=text_of(due.dropped), fired=len(due.ticks))
        state = replace(state, next=due.next, open=await self._still_open(state.open))
        ticks = due.ticks
        if ticks and state.open:
            self._tell("schedule.overlapped", head, tick=text_of(ticks[0]), open=state.open[0])
            ticks = ()
        prepared = {
            tick: self._runs.prepare(run, inputs_at(run, state.plan, tick), run_id(head.definition, tick))
            for tick in ticks
        }
        await self._commit(head, state, prepared)

    async def _still_open(self, ids: Sequence[str]) -> tuple[str, ...]:
        stored = [await self._store.load(id, limit=0) for id in ids]
        return tuple(s.head.id for s in stored if s is not None and s.head.closed is None)

    async def _commit(self, head: Head, state: ScheduleState, prepared: Mapping[int, Prepared]) -> None:
        """Start these runs and let the schedule go on, both or neither.

        Raises:
            Conflict, LeaseLost: it is not as it was any more.
        """
        runs, after = dict(prepared), fired(state, {tick: p.id for tick, p in prepared.items()})
        while True:
            try:
                await append_with(self._runs, self._store, write_state(head, after), list(runs.values()))
                break
            except Conflict as error:
                taken = next((tick for tick, p in runs.items() if p.id == error.id), None)
                if taken is None:
                    raise
                await self._leave_out(head, runs.pop(taken))
        for tick, one in runs.items():
            self._tell("schedule.fired", head, tick=text_of(tick), run_id=one.id)
        if after.wake is not None:
            self._runs.worker.expect(after.wake)

    async def _leave_out(self, head: Head, prepared: Prepared) -> None:
        """Take note that a tick's run is there already: it was started by hand, or by an earlier schedule."""
        try:
            await self._runs.check_same(prepared)
        except FlowletError as error:
            self._runs.log.warning("schedule.id_taken", schedule=head.definition, run_id=prepared.id, reason=str(error))

    async def _put_aside(self, head: Head, error: FlowletError) -> None:
        """Leave a schedule for a while to processes that can fire it."""
        name, reason = head.definition, str(error)
        before = self._aside.get(name)
        wanted = error.wanted if isinstance(error, _NotIncluded) else None
        self._aside[name] = _Aside(reason, wanted, perf_counter() + _ASIDE)
        if before is None or before.reason != reason:
            self._runs.log.warning("schedule.not_fired_here", schedule=name, reason=reason)
        await self._give_back(head)

    async def _give_back(self, head: Head) -> None:
        await self._store.release(self._runs.worker.id, (head.id,))

    def _tell(self, event: str, head: Head, **fields: Any) -> None:
        if self._runs.log.active:
            self._runs.log.info(event, schedule=head.definition, **fields)


class _Aside(msgspec.Struct, frozen=True):
    """A schedule that cannot be fired here.

    Attributes:
        wanted: the definition and version that is missing, if that is why.
        until: the local time at which it is tried again: others may have changed it meanwhile.
    """

    reason: str
    wanted: tuple[str, str] | None
    until: float


class _NotIncluded(FlowletError):
    """The runs of a schedule are of something that this process does not have."""

    def __init__(self, plan: Plan) -> None:
        self.wanted = (plan.definition, plan.version)
        super().__init__(f"its runs are of {plan.definition!r} version {plan.version}, which is not included here")


def _creation(definition: ScheduleDefinition, now: float) -> Write:
    state = begin(definition.plan, tick_of(now))
    return Write(
        id=PREFIX + definition.name,
        expect=0,
        create=New(KIND, definition.name, _VERSION),
        records=(pack(ScheduleEvent("created", now, definition.plan)),),
        status=state.status,
        wake=state.wake,
        snapshot=pack(state),
    )


def fired(state: ScheduleState, runs: Mapping[int, str]) -> ScheduleState:
    """Return how a schedule stands when ticks have started these runs."""
    if not runs:
        return state
    last = max(runs)
    opened = tuple(runs.values()) if state.plan.overlap == "skip" else ()
    return replace(state, last=last, run=runs[last], open=(*state.open, *opened))


def read_state(stored: Stored) -> ScheduleState:
    """Return how a schedule stands.

    Raises:
        IdConflict: it is none.
        DecodeError: its state is damaged, or was written by a later release.
    """
    if stored.head.kind != KIND:
        raise IdConflict(f"id {stored.head.id!r} belongs to a {stored.head.kind}, so that no schedule can have it")
    return state_codec.decode(stored.snapshot or b"", f"the state of schedule {stored.head.definition!r}")


def write_state(head: Head, state: ScheduleState, event: ScheduleEvent | None = None) -> Write:
    """Return the write that changes a schedule as it was seen, and gives it back."""
    return Write(
        id=head.id,
        expect=head.version,
        fence=head.fence,
        owner=None,
        records=() if event is None else (pack(event),),
        status=state.status,
        wake=state.wake,
        snapshot=pack(state),
    )


async def append_with(runs: Runs, store: Store, write: Write, prepared: Sequence[Prepared]) -> None:
    """Append a write to a schedule together with the runs that it starts, and begin these."""
    try:
        await store.append((write, *(p.write for p in prepared)))
    except MOVED:
        raise
    except BaseException:
        # Nobody knows whether it was stored; if so these runs are this process's, which comes to see that.
        for run in prepared:
            runs.doubt(run.id)
        raise
    if runs.closing:
        await store.release(runs.worker.id, [p.id for p in prepared])
        return
    for one in prepared:
        one.begin()
