"""One bulk operation while it goes on: a main task, its workers, and what ends it.

Law: it runs in tasks of its own, so that whoever waits for it or iterates over it may come and go in any task; it
is over when none of them is left. What it has come to is on it before anyone is told.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Iterator, Sequence
from time import perf_counter
from typing import Any, Protocol

import anyio

from flowlet.core.bulk import BulkReport, BulkStatus, Outcome
from flowlet.core.bulk_function import BulkFunction
from flowlet.core.current import run_context
from flowlet.core.run import Run
from flowlet.errors import RunError
from flowlet.runtime.bulk_items import Accept, ItemWork, Pace, Surroundings, within_scopes
from flowlet.runtime.bulk_options import BulkPlan
from flowlet.runtime.crew import Crew, Pair
from flowlet.runtime.feed import Feed, in_lists, in_lists_async, number
from flowlet.runtime.logs import Log
from flowlet.runtime.outlet import Outlet
from flowlet.runtime.progress import Reporter
from flowlet.runtime.providers import Providers
from flowlet.runtime.tally import Tally, judge
from flowlet.runtime.tasks import Task, spawn


class Recorder(Protocol):
    """What keeps the outcomes of a bulk operation with an id.

    Attributes:
        surroundings: what its items are called within.
        seconds: how long the operation took, over all calls.
    """

    seconds: float

    @property
    def surroundings(self) -> Surroundings: ...

    async def see_through(self, operation: Operation) -> BulkStatus:
        """Have the items done that are not on record; return how it stands when that has ended."""
        ...


class Operation:
    """A bulk operation that goes on.

    Args:
        plan: what was asked for.
        providers: give the values for provided parameters.
        outlet: takes the outcomes, if somebody wants them.
        recorder: keeps them, if it has an id.

    Attributes:
        error: what broke it.
        report: what has become of it, once it has ended otherwise.
    """

    def __init__(
        self, plan: BulkPlan, providers: Providers, log: Log, outlet: Outlet | None, recorder: Recorder | None
    ) -> None:
        scope = run_context.get()
        if scope is not None and scope.inside is None:
            raise RunError(
                "a bulk operation was begun in the body of a run, which a replay would do again: begin it in a step"
            )
        self.plan = plan
        self.outlet = outlet
        self.tally: Tally = Tally(plan.total, plan.function.secrets)
        self._providers = providers
        self._provided: dict[str, Any] = {}
        self._scoped: BulkFunction | None = None
        self._recorder = recorder
        self._is_too_much = judge(plan.on_error)
        self._status: BulkStatus = "completed"
        self._reporter = Reporter(self.tally, log, plan.function.name, plan.id, plan.progress, plan.is_tracked)
        self.crew: Crew = Crew(plan.concurrency, self._reporter.glance)
        self._observing = log.observing
        self.error: BaseException | None = None
        self.report: BulkReport[Any] | None = None
        self.task: Task

    def begin(self) -> None:
        """Begin with the items."""
        main = self._main if self._observing is None else self._watched
        self.task = spawn(main, self._broke, inherits=True)

    async def finish(self) -> BulkReport[Any]:
        """Wait for its end; cancelled, have it end before that is raised.

        Raises:
            BaseException: what broke it.
        """
        try:
            await self.task.done.wait()
        except BaseException:
            await self.leave()
            raise
        if self.error is not None:
            raise self.error
        assert self.report is not None
        return self.report

    async def leave(self) -> None:
        """Cut it off, and see it end."""
        self.task.cancel()
        with anyio.CancelScope(shield=True):
            await self.task.done.wait()

    # -------------------------------------------------------------- for the main task
    async def _watched(self) -> None:
        from flowlet.runtime.observed_bulk import watch

        assert self._observing is not None
        await watch(self._observing, self, self._main)

    async def _main(self) -> None:
        try:
            self._reporter.begin()
            await self._make_provided()
            if self._recorder is None:
                self.begin_items(None, self.accept, self.wait_for_room)
                status = await self.see_items_through()
            else:
                status = await self._recorder.see_through(self)
            seconds = None if self._recorder is None else self._recorder.seconds
            self._reporter.end(status)
            self.report = self.tally.report(status, seconds)
        except BaseException as error:
            if isinstance(error, anyio.get_cancelled_exc_class()):
                self.report = self.tally.report("cancelled")
                raise
            self.error = error  # and not left to the task: some of these end the event loop
        finally:
            self._reporter.close()
            if self.outlet is not None:
                self.outlet.end()

    def _broke(self, error: BaseException) -> None:
        self.error = error

    async def _make_provided(self) -> None:
        """Have made what every item is given; what is taken from a container is taken for each item."""
        function = self.plan.function
        wanted = [p for p in function.providers if p.annotation is not Run]
        if not wanted:
            return
        mine = [p for p in wanted if not self._providers.is_service(p.annotation)]
        await self._providers.make(p.annotation for p in mine)
        self._provided = {p.name: self._providers.provide(p.annotation) for p in mine}
        if len(mine) < len(wanted):
            taken = [p for p in wanted if p not in mine]
            self._scoped = within_scopes(function, taken, self._providers, lambda: self.crew.is_cut)

    def begin_items(self, pairs: Any, accept: Accept, room: Callable[[], Awaitable[None]]) -> None:
        """Have the items done.

        Args:
            pairs: an async iterator of numbered items, in place of those of the plan.
            accept, room: see `ItemWork`.
        """
        plan, source = self.plan, self._source(pairs)
        work = ItemWork(
            self.crew,
            plan.function if self._scoped is None else self._scoped,
            plan.retry,
            plan.timeout,
            None if plan.rate is None else Pace(plan.rate),
            self._provided,
            accept,
            room,
            None if self._recorder is None else self._recorder.surroundings,
        )
        if self._recorder is None and self.outlet is None and plan.is_plain and not isinstance(source, Feed):
            again = None if plan.retry is None else work.do_again
            self.crew.begin_plainly(source, plan.function.call, self.tally, self.judge, again)
            return
        self.crew.begin(source, work.do_list if plan.batch else work.do)

    def _source(self, pairs: Any) -> Iterator[Any] | Feed:
        plan = self.plan
        if pairs is None and isinstance(plan.items, AsyncIterable):
            pairs = number(plan.items)
        if pairs is None:
            numbered: Iterator[Pair] = enumerate(plan.items)  # pyright: ignore[reportArgumentType] - it is Any
            return in_lists(numbered, plan.list_size) if plan.batch else numbered
        return Feed(in_lists_async(pairs, plan.list_size) if plan.batch else pairs)

    async def see_items_through(self) -> BulkStatus:
        """Wait until the items are done, or time is over; return how it stands.

        Raises:
            Exception: what broke it.
        """
        crew, limit = self.crew, self.plan.total_timeout
        try:
            with anyio.move_on_after(None if limit is None else self.tally.began + limit - perf_counter()):
                await crew.done.wait()
            if not crew.done.is_set:
                self.cut("timed_out")
                await crew.done.wait()
        except BaseException:
            crew.cut()
            with anyio.CancelScope(shield=True):
                await crew.done.wait()
            raise
        if crew.error is not None:
            raise crew.error
        return self._status

    def cut(self, status: BulkStatus) -> None:
        """Cancel what is under way, for a reason."""
        if not self.crew.stopped:
            self._status = status
        self.crew.cut()

    def accept(self, outcome: Outcome[Any, Any]) -> bool:
        """Count an outcome and hand it out; tell whether the next one is to wait for room."""
        self.tally.note(outcome)
        if outcome.error is not None:
            self.judge()
        if self.outlet is not None:
            self.outlet.put(outcome)
        return self.is_full

    @property
    def is_full(self) -> bool:
        """Whether outcomes wait for who iterates over them, so that no item should begin."""
        return self.outlet is not None and self.outlet.is_full

    async def wait_for_room(self) -> None:
        """Wait until an outcome can be taken on."""
        if self.outlet is not None:
            await self.outlet.wait_for_room()

    def judge(self, ahead: Sequence[Outcome[Any, Any]] = ()) -> None:
        """Stop if too much has failed.

        Args:
            ahead: outcomes that are not counted yet, since they are not on record.
        """
        failed = self.tally.failed + sum(outcome.error is not None for outcome in ahead)
        if not self.crew.stopped and self._is_too_much(failed, self.tally.done + len(ahead)):
            self._status = "failed"
            self.crew.stop()
