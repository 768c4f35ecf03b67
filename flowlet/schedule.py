"""``every``: putting a saga, pipeline, graph or approval chain on a schedule.

Law: here are the names that users type, with their types; what they mean is in `flowlet.core.schedule`. A schedule
belongs to a registry, as definitions do, and is put up in the store when a `Flowlet` with it is entered.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

from flowlet.core.definitions import RunDefinition
from flowlet.core.faults import describe
from flowlet.core.registry import definition_of
from flowlet.core.retry import Seconds
from flowlet.errors import DefinitionError

if TYPE_CHECKING:
    from flowlet.core.schedule import Missed, Overlap
    from flowlet.registry import Registry

T = TypeVar("T")


class Scheduler(ABC):
    """What a registry and a `Flowlet` can put on a schedule."""

    @property
    @abstractmethod
    def registry(self) -> Registry:
        """The registry that keeps what is assembled."""

    def every(
        self,
        when: Seconds | str,
        /,
        *,
        name: str | None = None,
        args: Sequence[Any] = (),
        zone: str | None = None,
        missed: Missed = "once",
        overlap: Overlap = "allow",
        start: datetime | None = None,
    ) -> Callable[[T], T]:
        """Put a saga, pipeline, graph or approval chain on a schedule: each tick starts one run among all processes.

        Put it outermost, above ``@flow.saga``, or call it with what is assembled: ``flow.every(60)(etl)``. It gives
        back what it was given. While the processes with this code are up, each tick starts one run, in one of
        them, under the id ``<name>@<tick in UTC>``; a process that dies has started it or has not. A parameter
        ``tick: datetime`` of the definition is filled with the tick's own time, in UTC, also when the run begins later.

        The schedule begins when a `Flowlet` with it is entered for the first time, and the store keeps it. Code that
        says something else under the same name changes it when it is entered: whoever was entered last is right,
        also for processes that run older code. What the old times had missed is not made up for then, and an interval
        is counted from the same beginning as before. A schedule that is no longer in the code stays as it is, and
        fires nothing; see `Flowlet.schedules`.

        Cron expressions go by the wall clocks of their zone. Where clocks are put forward, what is due at a fixed
        time within the gap is due right after it; where they are put back, it is due once, the first time. With ``*``
        for hours or minutes they go by real time.

        Args:
            when: seconds or a timedelta between ticks, counted from the schedule's beginning, so that they do not
                drift; or a cron expression of five fields, or ``"@daily"`` and the like (needs ``flowlet[cron]``).
            name: of the schedule; that of the definition by default.
            args: the inputs of each run, without ``tick``.
            zone: the time zone of a cron expression, such as ``"Europe/Berlin"``; UTC by default.
            missed: what becomes of ticks that came while no process was there. ``"once"`` starts one run, for the last
                of them; ``"all"`` starts one for each, in order; ``"skip"`` starts none, if the last one is more than
                a minute ago.
            overlap: ``"skip"`` leaves a tick out while an earlier run of the schedule has not ended, also while that
                one waits for an operator; ``"allow"`` starts it beside.
            start: the time of the first tick of an interval, with a timezone; for a cron expression, the time before
                which none is due.

        Raises:
            DefinitionError: with everything that is wrong with it: it is not assembled, the name is taken, an input is
                missing, there is no such time or zone.
            MissingExtra: cron expressions need what is not installed; the message says how to install it.

        Example:
            >>> from datetime import datetime, timedelta
            >>> from flowlet import Flowlet
            >>> flow = Flowlet()
            >>> @flow.every(timedelta(minutes=5), args=("eu",), missed="skip")
            ... @flow.every("0 2 * * *", name="nightly", args=("us",), zone="America/New_York")
            ... @flow.saga
            ... async def clean(region: str, tick: datetime) -> str:
            ...     return f"{region} at {tick}"
        """

        def put_up(target: T) -> T:
            # Loaded when there is a schedule: most programs have none.
            from flowlet.core.schedule import build_schedule

            found = definition_of(target)
            if not isinstance(found, RunDefinition):
                what = "a machine has no runs" if found is not None else "it is not assembled"
                raise DefinitionError(
                    [
                        f"{describe(target)}: {what}; a schedule takes a saga, pipeline, graph or approval chain: put "
                        "@flow.every(...) above @flow.saga"
                    ]
                )
            schedule = build_schedule(
                found, when, name=name, args=args, zone=zone, missed=missed, overlap=overlap, start=start
            )
            self.registry.add_schedule(schedule)
            return target

        return put_up
