"""How a bulk operation is to be done, checked before it begins.

Law: an option that cannot be meant is a `ConfigError` that names it and says what it takes.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterable, Callable, Iterable, Sized
from typing import Any, Literal, Protocol, TypeAlias, TypedDict

import msgspec
from msgspec import UNSET

from flowlet.core.bulk import Progress
from flowlet.core.bulk_function import BulkFunction
from flowlet.core.definitions import RunDefinition
from flowlet.core.ids import check_id
from flowlet.core.registry import definition_of
from flowlet.core.retry import Retry, Seconds, policy_for, seconds
from flowlet.errors import ConfigError, DefinitionError

OnError: TypeAlias = Literal["collect", "stop"] | int | float
ShowProgress: TypeAlias = bool | Callable[[Progress], object] | None

BATCH = 100
"""Outcomes of a commit, unless ``batch_size=`` says otherwise."""


class Defaults(Protocol):
    """What goes for calls that say nothing of it; see `flowlet.config.BulkConfig`."""

    @property
    def batch_size(self) -> int: ...
    @property
    def max_concurrency(self) -> int: ...
    @property
    def timeout(self) -> Seconds | None: ...
    @property
    def retry_attempts(self) -> int: ...
    @property
    def retry_delay(self) -> Seconds: ...
    @property
    def enable_progress_tracking(self) -> bool: ...


class BulkOptions(TypedDict, total=False):
    """The options of `Flowlet.bulk`."""

    concurrency: int
    id: str | None
    batch_size: int | None
    retry: Retry | int | None
    timeout: Seconds | None
    total_timeout: Seconds | None
    rate: float | None
    ordered: bool
    on_error: OnError
    progress: ShowProgress


class BulkPlan(msgspec.Struct, frozen=True, eq=False):
    """What `Flowlet.bulk` was asked for; times are in seconds.

    Attributes:
        total: how many items there are, or None if they do not tell.
        list_size: items of a list, where the function takes lists.
        batch_size: outcomes of a commit.
        is_tracked: how far it is is logged.
    """

    function: BulkFunction
    items: Any
    total: int | None
    concurrency: int
    id: str | None
    batch: bool
    list_size: int
    batch_size: int
    retry: Retry | None
    timeout: float | None
    total_timeout: float | None
    rate: float | None
    ordered: bool
    on_error: OnError
    progress: ShowProgress
    is_tracked: bool

    @property
    def is_plain(self) -> bool:
        """Whether an item is nothing but a call of the user's async function, as long as that does not fail."""
        function = self.function
        return function.is_async and not (
            self.batch or function.providers or self.timeout is not None or self.rate is not None
        )


def make_plan(
    function: BulkFunction,
    items: Any,
    defaults: Defaults,
    *,
    batch: Any,
    concurrency: Any,
    id: Any,
    batch_size: Any,
    retry: Any,
    timeout: Any,
    total_timeout: Any,
    rate: Any,
    ordered: Any,
    on_error: Any,
    progress: Any,
) -> BulkPlan:
    """Check what `Flowlet.bulk` was asked for.

    Raises:
        ConfigError: an option cannot be meant.
        IdConflict: the id cannot be one.
    """
    if isinstance(items, (str, bytes)) or not isinstance(items, (Iterable, AsyncIterable)):
        raise ConfigError(f"items: bulk() takes an iterable or async iterable of items, not {items!r:.80}")
    if function.wants_run and id is None:
        raise ConfigError(f"{function.name} takes a Run: only the items of a bulk operation with id= have one")
    if progress is not None and not isinstance(progress, bool) and not callable(progress):
        raise ConfigError(f"progress= takes True for a bar, or a function that takes a Progress, not {progress!r:.80}")
    return BulkPlan(
        function=function,
        items=items,
        total=len(items) if isinstance(items, Sized) else None,
        concurrency=defaults.max_concurrency if concurrency is UNSET else _count(concurrency, "concurrency"),
        id=None if id is None else check_id(id),
        batch=bool(batch),
        list_size=defaults.batch_size if batch_size is None else _count(batch_size, "batch_size"),
        batch_size=BATCH if batch_size is None else _count(batch_size, "batch_size"),
        retry=_default_policy(function, defaults) if retry is UNSET else _policy(retry),
        timeout=function.timeout if timeout is None else _seconds(timeout, "timeout"),
        total_timeout=_total_timeout(defaults.timeout if total_timeout is UNSET else total_timeout),
        rate=None if rate is None else _rate(rate),
        ordered=bool(ordered),
        on_error=_on_error(on_error),
        progress=progress,
        is_tracked=defaults.enable_progress_tracking or bool(progress),
    )


def _default_policy(function: BulkFunction, defaults: Defaults) -> Retry | None:
    """Return how often an item is tried if the call does not say so: a run has retries of its own."""
    if function.retry is not None:
        return function.retry
    if defaults.retry_attempts == 1 or isinstance(definition_of(function.call), RunDefinition):
        return None
    return Retry(defaults.retry_attempts, defaults.retry_delay)


def _total_timeout(value: Any) -> float | None:
    return None if value is None else _seconds(value, "total_timeout")


def _count(value: Any, what: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigError(f"{what}= takes a whole number of at least 1, not {value!r:.80}")
    return value


def _seconds(value: Any, what: str) -> float:
    try:
        return seconds(value, f"{what}=")
    except DefinitionError as error:
        raise ConfigError(error.problems[0]) from None


def _policy(value: Any) -> Retry | None:
    try:
        return policy_for(value)
    except DefinitionError as error:
        raise ConfigError(error.problems[0]) from None


def _rate(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
        raise ConfigError(f"rate= takes a number of items per second above 0, not {value!r:.80}")
    return float(value)


def _on_error(value: Any) -> OnError:
    if isinstance(value, bool) or not (
        value in ("collect", "stop")
        or (isinstance(value, int) and value >= 1)
        or (isinstance(value, float) and 0 < value < 1)
    ):
        raise ConfigError(
            "on_error= takes 'collect', 'stop' after the first failure, a whole number of failures to stop after, or "
            f"a share of failures between 0 and 1 to stop beyond, not {value!r:.80}"
        )
    found: OnError = value
    return found
