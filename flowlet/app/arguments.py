"""What users give to a `Flowlet`, checked.

Law: what cannot be used is a `ConfigError` that says what can.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import Any, Protocol, TypeAlias, TypeVar, TypeVarTuple, cast

from msgspec import UNSET
from msgspec.structs import replace

from flowlet.config.values import Config
from flowlet.core.definitions import GraphLimits
from flowlet.core.ids import RESERVED
from flowlet.core.retry import Seconds, seconds
from flowlet.core.sizes import LEAST
from flowlet.errors import ConfigError, DefinitionError
from flowlet.store import UNCHANGED, Capabilities, PayloadCodec, Store, missing_members
from flowlet.stores import open_store

R_co = TypeVar("R_co", covariant=True)
Ts = TypeVarTuple("Ts")


Deadline: TypeAlias = Seconds | datetime | None
"""When a run must have ended: seconds from now, or a datetime with a timezone."""

Authorize: TypeAlias = Callable[[str], Iterable[str] | Awaitable[Iterable[str] | None] | None]
"""Tells the roles of a person; None for somebody it does not know."""


class SagaClass(Protocol[*Ts, R_co]):
    """A class that is a saga or pipeline, as type checkers see it."""

    def __call__(self, *args: *Ts) -> Awaitable[R_co]: ...


def seconds_of(value: Any, what: str) -> float:
    try:
        return seconds(value, what)
    except DefinitionError as error:
        raise ConfigError(error.problems[0]) from None


def lease_of(value: Any) -> float:
    found = seconds_of(value, "lease")
    if found == 0:
        raise ConfigError("lease: must be more than 0 seconds")
    return found


def settled(config: Any, store: Any, pipeline_timeout: Any, **others: Any) -> Config:
    """Return the configuration with what the arguments of a Flowlet say in its place; None says nothing."""
    if config is None:
        config = Config()
    elif not isinstance(config, Config):
        raise ConfigError(f"config= takes a flowlet.config.Config, such as Config.load(), not {config!r}")
    changes = {name: value for name, value in others.items() if value is not None}
    if isinstance(store, str):
        changes["store"] = store
    if pipeline_timeout is not UNSET:
        limit = None if pipeline_timeout is None else seconds_of(pipeline_timeout, "pipeline_timeout")
        changes["bulk"] = replace(config.bulk, pipeline_timeout=limit)
    if not changes:
        return cast(Config, config)
    origins = {name: origin for name, origin in config._origins.items() if name not in changes}
    return cast(Config, replace(config, _origins=origins, **changes))


def limits_of(config: Config) -> dict[str, float | None]:
    """Return how long a process may spend on a run that says nothing of it, by the kind of its definition."""
    given = {"pipeline": config.bulk.pipeline_timeout, "graph": config.graph.total_timeout}
    return {kind: None if limit is None else seconds_of(limit, kind) for kind, limit in given.items()}


def graph_limits_of(config: Config) -> GraphLimits:
    graph = config.graph
    timeout = None if graph.node_timeout is None else seconds_of(graph.node_timeout, "node_timeout")
    return GraphLimits(graph.max_iterations, graph.max_parallel_branches, timeout)


def configured_store(config: Config) -> Store:
    try:
        return open_store(config.store)
    except ConfigError as error:
        origin = config.origin("store")
        raise error if origin is None else ConfigError(f"{origin}: {error}") from None


def store_of(given: Any, who: str) -> Store:
    if isinstance(given, str):
        return open_store(given)
    # Not `isinstance(given, Store)`: since Python 3.12 that does not see what an object hands on with __getattr__.
    if not missing_members(given) and isinstance(given.capabilities, Capabilities) and not isinstance(given, type):
        return cast("Store", given)
    raise ConfigError(_not_a_store(given, who))


def _not_a_store(given: object, who: str) -> str:
    text = f"{who} takes a URL or a store (see flowlet.store.Store), not {given!r}"
    missing = missing_members(given)
    if isinstance(given, type):
        return f"{text}; that is a class: give it an object"
    if not missing:
        return f"{text}; its capabilities are not a flowlet.store.Capabilities"
    if not (hasattr(given, "load") or hasattr(given, "scan")):
        return text  # it was never meant to be one
    return f"{text}; it has no {', '.join(missing)} (flowlet.store.BasicStore derives most of them)"


def as_coded(source: Store, target: Store, codec: Any) -> tuple[Store, Store]:
    """Return the two stores as a copy must see them, so that the payloads in the second are of this codec."""
    from flowlet.stores.coded import CodedStore

    bare = [store.inner if isinstance(store, CodedStore) else store for store in (source, target)]
    if bare[0] is bare[1]:
        raise ConfigError("copy_to takes another store than the one that this Flowlet works on")
    if codec is UNCHANGED and isinstance(source, CodedStore) and not isinstance(target, CodedStore):
        return source.inner, target
    return source, target if codec is UNCHANGED or codec is None else coded(target, codec)


def coded(store: Store, codec: Any) -> Store:
    if not isinstance(codec, PayloadCodec) or isinstance(codec, type):
        raise ConfigError(
            f"codec= takes an object with encode and decode (see flowlet.store.PayloadCodec), not {codec!r}"
        )
    from flowlet.stores.coded import CodedStore

    return CodedStore(store, codec, plain=RESERVED)


def smaller(wanted: Any, possible: int | None) -> int | None:
    if wanted is None:
        return possible
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < LEAST:
        raise ConfigError(f"max_payload: must be a whole number of at least {LEAST} bytes, not {wanted!r}")
    return wanted if possible is None else min(wanted, possible)
