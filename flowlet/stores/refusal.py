"""Why a store refuses a write: the rules of `flowlet.store.Write`, judged in one place.

Law: a pure function of a write and of what is there. It knows no backend, so that all backends refuse
for the same reasons, in the same order and in the same words.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Sequence
from typing import Protocol

from flowlet.errors import Conflict, FlowletError, LeaseLost, PayloadTooLarge, RunFinished, RunNotFound, StoreError
from flowlet.store import UNCHANGED, Write

__all__ = ["Facts", "malformed", "refusal", "size_of", "worker_unknown", "written"]


class Facts(Protocol):
    """What must be known of an entity to judge a write to it."""

    @property
    def version(self) -> int: ...
    @property
    def fence(self) -> int: ...
    @property
    def inbox(self) -> int: ...
    @property
    def closed(self) -> float | None: ...


def refusal(write: Write, found: Facts | None) -> FlowletError | None:
    """Return the error that refuses this write to what was found, or None when it may be stored.

    The fence is judged before the version: a writer that lost its lease has usually missed records
    too, and must learn the first.
    """
    if write.create is not None:
        return None if found is None else Conflict(0, found.version, write.id)
    if found is None:
        text = f"nothing with the id {write.id!r} is in this store: it was never started, or was pruned"
        return RunNotFound(text, write.id)
    if write.fence is not None and write.fence != found.fence:
        text = f"the lease on {write.id!r} was lost (its fence is {found.fence}, not {write.fence})"
        return LeaseLost(f"{text}; leave it to its owner", write.id)
    if write.expect is not None and write.expect != found.version:
        return Conflict(write.expect, found.version, write.id)
    if write.inbox is not None and found.inbox > write.inbox:
        return _inbox_moved(write, found)
    if write.signals and found.closed is not None:
        return RunFinished(f"{write.id!r} has ended, so it takes no more signals", write.id)
    return None


def malformed(writes: Sequence[Write], largest: int | None = None) -> FlowletError | None:
    """Return the error that refuses writes which contradict themselves or are too large, or None.

    Args:
        writes: of one append.
        largest: see `flowlet.store.Capabilities.max_payload`, in bytes.
    """
    if len(writes) > 1 and len({write.id for write in writes}) < len(writes):
        return StoreError("an append has two writes with the same id; join them into one")
    for write in writes:
        if write.create is not None and write.expect != 0:
            return StoreError(f"the write to {write.id!r} creates it but expects version {write.expect!r}; expect 0")
        if write.create is not None and not write.records:
            return StoreError(f"the write to {write.id!r} creates it without a record; its versions begin at 1")
        if write.expect is None and write.records:
            return StoreError(f"the write to {write.id!r} has records but expects no version; say which it follows")
        if largest is not None and size_of(write) > largest and (size := _largest(write)) > largest:
            text = f"a value of {size:,} bytes for {write.id!r} is more than the {largest:,} that this store takes"
            return PayloadTooLarge(f"{text}; store it elsewhere and keep a reference", size, largest)
    return None


def size_of(write: Write) -> int:
    """Return how many bytes of values the write has."""
    size = 0
    for data in write.records:
        size += len(data)
    for signal in write.signals:
        size += len(signal.payload)
    return size if write.snapshot is UNCHANGED else size + len(write.snapshot)


def written(made: Sequence[Write] | Awaitable[Sequence[Write]]) -> Sequence[Write]:
    """Return the writes that work has made, for a store that awaits none.

    Raises:
        StoreError: it has to be awaited.
    """
    if isinstance(made, Awaitable):
        if inspect.iscoroutine(made):
            made.close()
        raise StoreError("the store has capabilities.async_work=False: `work` must return its writes, not an awaitable")
    return made


def worker_unknown(worker: str) -> LeaseLost:
    """Return the error of a claim by a worker without a live heartbeat."""
    return LeaseLost(f"worker {worker!r} has no live heartbeat, so it can own nothing; call heartbeat first")


def _inbox_moved(write: Write, found: Facts) -> Conflict:
    # The versions may be equal: what moved is the inbox. The note tells a reader of the traceback.
    error = Conflict(found.version, found.version, write.id)
    error.add_note(f"signal {found.inbox} has come in since this writer looked (it had seen {write.inbox})")
    return error


def _largest(write: Write) -> int:
    size = max(map(len, write.records), default=0)
    if write.snapshot is not UNCHANGED:
        size = max(size, len(write.snapshot))
    return max(size, max((len(signal.payload) for signal in write.signals), default=0))
