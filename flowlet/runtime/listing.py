"""Listing the runs of a store, page by page.

Law: it reads heads and nothing else, so that a list costs the same whatever the runs have recorded, and
needs neither their code nor the key to their payloads. It writes nothing and holds nothing between two
pages.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Self, cast, get_args

import msgspec

from flowlet.core.definitions import RunDefinition
from flowlet.core.faults import nearest
from flowlet.core.registry import definition_of
from flowlet.errors import ConfigError
from flowlet.runtime.handle import Status
from flowlet.store import Head, Store

_PAGE = 200
_STATUSES: tuple[str, ...] = get_args(Status)


class RunSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One run, as far as a list tells of it; ``flow.handle(id)`` tells the rest.

    Attributes:
        id: the run's id.
        definition: the name of its definition.
        version: of the definition, to which the run is pinned.
        status: where it stands.
        created, updated: when it was started, and last written to, by the store's clock, in UTC.
        closed: when it ended, in UTC; None while it has not.
        owner: the worker that executes it now, if one does.
        order: rises from run to run in the order in which they were started; the cursor of ``flow.runs(after=...)``.
    """

    id: str
    definition: str
    version: str
    status: Status
    created: datetime
    updated: datetime
    closed: datetime | None
    owner: str | None
    order: int


class Listing:
    """Iterates over runs in the order in which they were started.

    An object and not an async generator: who leaves it half read has nothing to close.

    Args:
        store: where they are.
        definition: only runs of this name.
        status: only runs that stand at one of these.
        after: only runs behind this `RunSummary.order`.
        limit: at most so many.
    """

    def __init__(
        self, store: Store, definition: str | None, status: tuple[str, ...] | None, after: int, limit: int | None
    ) -> None:
        self._store, self._definition, self._status = store, definition, status
        self._after, self._left = after, limit
        self._page: deque[Head] = deque()
        self._is_last = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> RunSummary:
        while not self._page:
            if self._is_last or self._left == 0:
                raise StopAsyncIteration
            await self._turn()
        return _summary(self._page.popleft())

    async def _turn(self) -> None:
        size = _PAGE if self._left is None else min(self._left, _PAGE)
        heads = await self._store.scan(
            kind="run", definition=self._definition, status=self._status, after=self._after, limit=size
        )
        self._page.extend(heads)
        self._is_last = len(heads) < size
        if self._left is not None:
            self._left -= len(heads)
        if heads:
            self._after = heads[-1].order


def list_runs(store: Store, definition: Any, status: Any, after: Any, limit: Any) -> Listing:
    """Judge the arguments of ``flow.runs`` and return what it returns.

    Raises:
        ConfigError: one is not of its type, or a status that no run can have.
    """
    return Listing(
        store,
        _name(definition),
        None if status is None else _statuses(status),
        count(after, "after"),
        None if limit is None else count(limit, "limit"),
    )


def _name(definition: Any) -> str | None:
    if definition is None or isinstance(definition, str):
        return definition
    found = definition_of(definition)
    if isinstance(found, RunDefinition):
        return found.name
    if found is not None:
        raise ConfigError(f"{found.name!r} is a machine and has no runs; list its machines with flow.machines(...)")
    raise ConfigError(
        f"definition= takes an assembled saga, pipeline or graph, or the name of one, not {definition!r:.80}"
    )


def _statuses(status: Any) -> tuple[str, ...]:
    words = (status,) if isinstance(status, str) else status
    if not isinstance(words, (Sequence, set, frozenset)) or isinstance(words, (bytes, bytearray)):
        raise ConfigError(f"status= takes a status or several, not {status!r:.80}; {_allowed()}")
    for word in words:
        if word not in _STATUSES:
            hint = nearest(word, _STATUSES) if isinstance(word, str) else ""
            raise ConfigError(f"no run has the status {word!r:.80}{hint}; {_allowed()}")
    return tuple(dict.fromkeys(words))


def _allowed() -> str:
    return f"allowed are {', '.join(map(repr, _STATUSES))}"


def count(value: Any, what: str) -> int:
    """Return a number of things; ``what`` names it in the error.

    Raises:
        ConfigError: it is no whole number, or negative.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ConfigError(f"{what}= takes a whole number of at least 0, not {value!r:.80}")
    return value


def _summary(head: Head) -> RunSummary:
    return RunSummary(
        id=head.id,
        definition=head.definition,
        version=head.definition_version,
        status=cast(Status, head.status),
        created=_time(head.created),
        updated=_time(head.updated),
        closed=None if head.closed is None else _time(head.closed),
        owner=head.owner,
        order=head.order,
    )


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
