"""The schedules of one `Flowlet`, as far as they are looked after: not at all, while there are none.

Law: what fires schedules is loaded when there is the first one, since most programs have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flowlet.store import Head, Store

if TYPE_CHECKING:
    from flowlet.core.schedule import ScheduleDefinition
    from flowlet.runtime.runs import Runs
    from flowlet.runtime.schedules import Schedules


class Timetable:
    """Fires the schedules of a registry.

    Args:
        definitions: what the registry has, by name; there may come more.
    """

    def __init__(self, store: Store, runs: Runs, definitions: Mapping[str, ScheduleDefinition]) -> None:
        self._given: tuple[Any, ...] = (store, runs, definitions)
        self._definitions = definitions
        self._schedules: Schedules | None = None

    def _load(self) -> Schedules:
        if self._schedules is None:
            from flowlet.runtime.schedules import Schedules

            self._schedules = Schedules(*self._given)
        return self._schedules

    async def open(self) -> None:
        """Put up what the registry has."""
        if self._definitions:
            await self._load().open()

    def kinds(self) -> list[tuple[str, str, str]]:
        """Return what this process can fire, as (kind, name, version)."""
        return self._load().kinds() if self._definitions else []

    def adopt(self, head: Head) -> None:
        """Fire a schedule that this process has just claimed."""
        self._load().adopt(head)

    async def close(self) -> None:
        """Fire nothing more."""
        if self._schedules is not None:
            await self._schedules.close()
