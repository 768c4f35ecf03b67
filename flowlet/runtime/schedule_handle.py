"""What people and programs ask of schedules, and order of them.

Law: an order is in the store before the call returns, whichever process fires the schedule, or none; all of them keep
to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import datetime
from typing import Any, Self

import msgspec
from msgspec.structs import replace

from flowlet.core.current import run_context
from flowlet.core.ids import check_id
from flowlet.core.run_records import Started
from flowlet.core.schedule import (
    KIND,
    PREFIX,
    Missed,
    Overlap,
    Plan,
    ScheduleEvent,
    ScheduleState,
    inputs_at,
    resume,
)
from flowlet.core.schedule_ticks import micros, moment, tick_of
from flowlet.errors import ConfigError, Conflict, FlowletError, RunError, RunNotFound
from flowlet.runtime.creating import Prepared
from flowlet.runtime.handle import Handle
from flowlet.runtime.runs import Runs
from flowlet.runtime.schedules import MOVED, append_with, read_state, write_state
from flowlet.store import Head, Store, Stored

_PAGE = 100
_LISTED = ("active", "paused")


class ScheduleInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One schedule, as it stands. All times are in UTC.

    Attributes:
        name: the schedule's name.
        definition, version: what its runs are of.
        when: its times, for people: ``"every 5 minutes"``, ``"0 2 * * * (Europe/Berlin)"``.
        next: the tick that comes next; None while it is paused.
        last: the tick that has started a run last, or None.
        last_run: the id of the run that was started last, by a tick or by `Schedule.trigger`, or None.
        paused: no tick is fired.
        missed, overlap: its policies, see `Flowlet.every`.
        included: the code that is here has it, or it goes on only elsewhere, if at all.
    """

    name: str
    definition: str
    version: str
    when: str
    next: datetime | None
    last: datetime | None
    last_run: str | None
    paused: bool
    missed: Missed
    overlap: Overlap
    included: bool


class Schedule:
    """One schedule of a store, by its name; made by ``flow.schedule(name)``.

    Example:
        >>> import anyio
        >>> from datetime import timedelta
        >>> from flowlet import Flowlet
        >>> flow = Flowlet()
        >>> @flow.every(timedelta(days=1))
        ... @flow.saga
        ... async def clean() -> str:
        ...     return "clean"
        >>> async def main() -> None:
        ...     async with flow:
        ...         schedule = flow.schedule("clean")
        ...         await schedule.pause()
        ...         handle = await schedule.trigger()
        ...         print(await handle.result(), (await schedule.info()).paused)
        ...         await schedule.resume()
        >>> anyio.run(main)
        clean True
    """

    def __init__(self, name: str, store: Store, runs: Runs, has: Callable[[str], bool]) -> None:
        self.name = name
        self._store, self._runs, self._has = store, runs, has

    def __repr__(self) -> str:
        return f"<Schedule {self.name!r}>"

    async def info(self) -> ScheduleInfo:
        """Return how it stands.

        Raises:
            RunNotFound: there is no such schedule.
        """
        stored = await self._load()
        return info_of(stored.head, read_state(stored), included=self._has(self.name))

    async def ticks(self, count: int = 5) -> list[datetime]:
        """Return the next ticks, in UTC, if nothing is changed until then; none while it is paused.

        Args:
            count: so many at most.

        Raises:
            RunNotFound: there is no such schedule.

        Example:
            >>> import anyio
            >>> from datetime import datetime, timedelta, timezone
            >>> from flowlet import Flowlet
            >>> flow = Flowlet()
            >>> noon = datetime(2999, 1, 1, 12, tzinfo=timezone.utc)
            >>> @flow.every(timedelta(days=1), start=noon)
            ... @flow.saga
            ... async def clean() -> None: ...
            >>> async def main() -> None:
            ...     async with flow:
            ...         print(*(f"{tick:%d.%m. %H:%M}" for tick in await flow.schedule("clean").ticks(2)))
            >>> anyio.run(main)
            01.01. 12:00 02.01. 12:00
        """
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ConfigError(f"ticks() takes a whole number of at least 0, not {count!r}")
        state = read_state(await self._load())
        return [] if state.paused else [moment(tick) for tick in state.ticks(count)]

    async def pause(self) -> None:
        """Fire no tick until `resume`; whatever is under way goes on. What is paused stays so, also when code changes.

        Raises:
            RunNotFound: there is no such schedule.
        """
        await self._order("paused", lambda state, now: replace(state, paused=True))

    async def resume(self) -> None:
        """Go on with the first tick from now; those that came while it was paused are not made up for.

        Raises:
            RunNotFound: there is no such schedule.
        """
        await self._order("resumed", lambda state, now: resume(state, now) if state.paused else state)

    async def remove(self) -> None:
        """Take it off the list; it fires nothing any more. For what is no longer in the code of any process.

        It comes back, and counts from then, when a `Flowlet` whose code has it is entered.

        Raises:
            RunNotFound: there is no such schedule.

        Example:
            >>> import anyio
            >>> from datetime import timedelta
            >>> from flowlet import Flowlet
            >>> flow = Flowlet()
            >>> @flow.every(timedelta(days=1))
            ... @flow.saga
            ... async def clean() -> None: ...
            >>> async def main() -> None:
            ...     async with flow:
            ...         await flow.schedule("clean").remove()
            ...         print([schedule.name async for schedule in flow.schedules()])
            >>> anyio.run(main)
            []
        """
        await self._order("removed", lambda state, now: replace(state, removed=True))

    async def trigger(self, *, id: str | None = None) -> Handle[Any]:
        """Start a run now, beside the ticks, which stay as they are; also while it is paused.

        With ``overlap="skip"``, ticks are left out while this run has not ended. The run's ``tick`` is the present.
        In the action of a machine it acts at once, whatever becomes of the transition.

        Args:
            id: of the run; one is made up when not given. With an id, calling it again starts nothing more.

        Returns:
            The run's handle.

        Raises:
            RunNotFound: there is no such schedule.
            IdConflict: the id is taken by something else.
            RunError: the body of a run calls it without an id.
            FlowletError: what its runs are of is not included here.
        """
        self._runs.check_open()
        scope = run_context.get()
        if id is None and scope is not None and scope.inside is None:
            raise RunError("trigger() in the body of a run needs id=, or each replay would start another run")
        run_id = f"{self.name}@{self._runs.new_id()}" if id is None else check_id(id)
        while True:
            stored = await self._load()
            plan, now = read_state(stored).plan, await self._store.now()
            prepared = self._prepare(plan, run_id, tick_of(now))
            try:
                await self._start(stored, prepared, now)
            except Conflict as error:
                if error.id != run_id:
                    continue
                await self._check_same(plan, prepared)
            except MOVED:
                continue
            return Handle(run_id, self._runs, prepared.definition)

    async def _check_same(self, plan: Plan, prepared: Prepared) -> None:
        """See whether the run that has the id was triggered here, at whatever time.

        Raises:
            IdConflict: it was not.
        """
        stored = await self._runs.load(prepared.id, limit=1)
        first = self._runs.decode(prepared.id, 1, stored.records[0]) if stored.head.kind == "run" else None
        if plan.tick is not None and isinstance(first, Started) and first.definition == plan.definition:
            when = prepared.definition.starter.input.decode(first.input, f"the input of run {prepared.id!r}")[plan.tick]
            prepared = self._prepare(plan, prepared.id, micros(when))
        await self._runs.check_same(prepared)

    def _prepare(self, plan: Plan, run_id: str, tick: int) -> Prepared:
        found = self._runs.find(plan.definition, plan.version)
        if found is None:
            raise FlowletError(
                f"schedule {self.name!r} starts runs of {plan.definition!r} version {plan.version}, which is not "
                "included here: trigger it where its code is"
            )
        return self._runs.prepare(found, inputs_at(found, plan, tick), run_id)

    async def _start(self, stored: Stored, prepared: Prepared, now: float) -> None:
        state = read_state(stored)
        opened = (*state.open, prepared.id) if state.plan.overlap == "skip" else ()
        after = replace(state, run=prepared.id, open=opened)
        write = write_state(stored.head, after, ScheduleEvent("triggered", now))
        await append_with(self._runs, self._store, write, [prepared])

    async def _order(self, what: Any, change: Callable[[ScheduleState, int], ScheduleState]) -> None:
        while True:
            stored = await self._load()
            state, now = read_state(stored), await self._store.now()
            after = change(state, tick_of(now))
            if after == state:
                return
            try:
                await self._store.append((write_state(stored.head, after, ScheduleEvent(what, now)),))
            except MOVED:
                continue  # it was fired meanwhile, or somebody else has ordered something
            if after.wake is not None:
                self._runs.worker.expect(after.wake)
            return

    async def _load(self) -> Stored:
        stored = await self._store.load(PREFIX + self.name, limit=0)
        if stored is None or (stored.head.kind == KIND and stored.head.status not in _LISTED):
            raise RunNotFound(
                f"there is no schedule {self.name!r} in this store; flow.schedules() lists those there are", self.name
            )
        return stored


class ScheduleListing:
    """Iterates over schedules in the order in which they were put up; an object and not a generator, as of runs."""

    def __init__(self, store: Store, has: Callable[[str], bool]) -> None:
        self._store, self._has = store, has
        self._page: deque[Head] = deque()
        self._after: int | None = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ScheduleInfo:
        while True:
            while not self._page:
                await self._turn()
            stored = await self._store.load(self._page.popleft().id, limit=0)
            if stored is not None and stored.head.status in _LISTED:
                return info_of(stored.head, read_state(stored), included=self._has(stored.head.definition))

    async def _turn(self) -> None:
        if self._after is None:
            raise StopAsyncIteration
        heads = await self._store.scan(kind=KIND, status=_LISTED, after=self._after, limit=_PAGE)
        self._page.extend(heads)
        self._after = heads[-1].order if len(heads) == _PAGE else None


def info_of(head: Head, state: ScheduleState, *, included: bool) -> ScheduleInfo:
    """Return what is told of a schedule."""
    plan = state.plan
    return ScheduleInfo(
        name=head.definition,
        definition=plan.definition,
        version=plan.version,
        when=plan.cadence.describe(),
        next=None if state.next is None or state.paused else moment(state.next),
        last=None if state.last is None else moment(state.last),
        last_run=state.run,
        paused=state.paused,
        missed=plan.missed,
        overlap=plan.overlap,
        included=included,
    )
