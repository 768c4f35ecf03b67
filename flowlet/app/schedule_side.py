"""The schedules of a `Flowlet`: looking at them, and ordering something of one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from flowlet.app.life import Life
from flowlet.errors import ConfigError

if TYPE_CHECKING:
    from flowlet.runtime.schedule_handle import Schedule, ScheduleInfo


class ScheduleSide(Life):
    """What a `Flowlet` does with schedules; `every` makes them."""

    def schedules(self) -> AsyncIterator[ScheduleInfo]:
        """Yield the schedules in the store, in the order in which they were put up.

        Also those that this code does not have (``included`` says so): other processes may fire them; what no
        process has any more fires nothing, until `Schedule.remove` takes it off the list.

        Example:
            >>> import anyio
            >>> from datetime import timedelta
            >>> from flowlet import Flowlet
            >>> flow = Flowlet()
            >>> @flow.every(timedelta(hours=1))
            ... @flow.saga
            ... async def clean() -> None: ...
            >>> async def main() -> None:
            ...     async with flow:
            ...         async for schedule in flow.schedules():
            ...             print(schedule.name, schedule.when, schedule.last_run)
            >>> anyio.run(main)
            clean every hour None
        """
        # Loaded when somebody asks: most programs have no schedule.
        from flowlet.runtime.schedule_handle import ScheduleListing

        return ScheduleListing(self._open_store, self._registry.schedules.__contains__)

    def schedule(self, name: str, /) -> Schedule:
        """Return the handle of a schedule; that there is one is found out when it is asked something.

        Raises:
            ConfigError: the name is not a text.

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
            ...         schedule = flow.schedule("clean")
            ...         await schedule.pause()
            ...         print((await schedule.info()).paused)
            >>> anyio.run(main)
            True
        """
        from flowlet.runtime.schedule_handle import Schedule

        if not isinstance(name, str):
            raise ConfigError(f"schedule() takes the name of a schedule, not {name!r:.80}")
        return Schedule(name, self._open_store, self._open_runs, self._registry.schedules.__contains__)
