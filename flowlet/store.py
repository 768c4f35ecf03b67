"""The store protocol: what flowlet asks of a place that keeps history.

Law: a store knows bytes, versions, fences, leases and wake times; it knows nothing of machines, sagas
or steps. Everything above it works with any object that has these methods, and a store imports
nothing of flowlet but this module and `flowlet.errors`.

What is stored
    An *entity* is one run, one machine or one definition. It has an id (unique in the store), a
    `Head` of indexed facts, a journal of records numbered 1, 2, 3 ... without gap (the number of
    the last one is the entity's *version*), an inbox of signals, and possibly a snapshot.

Ownership
    An entity may be owned by a *worker*. A worker is alive while its last `heartbeat` is younger
    than the lease it asked for, in the store's own time. Each change of owner raises the
    entity's *fence*; a write that carries an older fence is refused with `LeaseLost`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

import msgspec

__all__ = [
    "UNCHANGED",
    "Capabilities",
    "Claims",
    "Head",
    "New",
    "Signal",
    "Store",
    "Stored",
    "Unchanged",
    "Work",
    "Write",
]

Unchanged: TypeAlias = msgspec.UnsetType
UNCHANGED: Final = msgspec.UNSET
"""The value of a `Write` field that leaves the stored one as it is."""

Work: TypeAlias = Callable[[Any], "Sequence[Write]"]
"""User code that runs inside a store's transaction: takes its connection, returns the writes to make."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a store can do; asking for what it cannot is a clear error, never a silent loss.

    Attributes:
        durable: an acknowledged append survives the end of the process (and, as far as the
            store's documentation says, the loss of power).
        multi_process: several processes may work on it at once.
        transactional: `Store.append` accepts ``work=``.
        leases: `claim`, `heartbeat` and `release` work.
        signals: a `Write` may carry signals.
        max_payload: largest record, signal or snapshot in bytes, None for no limit.
    """

    durable: bool = False
    multi_process: bool = False
    transactional: bool = False
    leases: bool = True
    signals: bool = True
    max_payload: int | None = None


class New(msgspec.Struct, frozen=True):
    """The facts of an entity that never change after its creation.

    Attributes:
        kind: ``"run"``, ``"machine"`` or ``"definition"``.
        definition: the definition's name.
        definition_version: the version of the code that the entity is pinned to.
    """

    kind: str
    definition: str
    definition_version: str = "1"


class Signal(msgspec.Struct, frozen=True):
    """A message in the inbox of an entity.

    Attributes:
        topic: what it is about.
        payload: its encoded content.
        message_id: a second signal with the same id to the same entity is dropped silently,
            also after the first was consumed.
        number: its place in the inbox, from 1, given by the store.
    """

    topic: str
    payload: bytes
    message_id: str | None = None
    number: int = 0


class Write(msgspec.Struct, frozen=True, kw_only=True):
    """One entity's part of an append.

    Attributes:
        id: the entity.
        expect: the version it must have now: 0 means that it must not exist. None asks for any
            version of an existing entity and goes with no records (signals, leases).
        create: its unchanging facts; given if, and only if, ``expect`` is 0.
        fence: the fence it must have now; None does not check (machines without a lease).
        inbox: refuse when the inbox has ever received a signal with a number above this one;
            None does not check. It is how "nothing came in while I looked" is said.
        records: appended as versions ``expect + 1``, ``expect + 2`` ...
        status: a word for listings; new entities without one have ``""``.
        state: a second word for listings (a machine's state).
        wake: when a worker should look at the entity, in seconds of the store's clock; 0.0 for
            at once, None for not before a signal arrives.
        close: the entity has ended: it is never claimed again, refuses signals, may be pruned.
        owner: a worker id takes the lease and raises the fence by one; None gives it back.
        snapshot: replaces the entity's snapshot, which then stands for all records up to and
            including those of this write.
        signals: put into its inbox; each arrival sets ``wake`` to 0.0.
        consumed: signals up to this number are removed from the inbox.
    """

    id: str
    expect: int | None = None
    create: New | None = None
    fence: int | None = None
    inbox: int | None = None
    records: Sequence[bytes] = ()
    status: str | Unchanged = UNCHANGED
    state: str | Unchanged = UNCHANGED
    wake: float | Unchanged | None = UNCHANGED
    close: bool = False
    owner: str | Unchanged | None = UNCHANGED
    snapshot: bytes | Unchanged = UNCHANGED
    signals: Sequence[Signal] = ()
    consumed: int = 0


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The indexed facts of an entity.

    Attributes:
        order: a number that rises with creation; the cursor of `Store.scan`.
        claims: how often it was claimed since its last record.
        inbox: the number of the last signal it ever received.
        created, updated, closed: seconds of the store's clock; ``closed`` is None while it lives.
    """

    id: str
    kind: str
    definition: str
    definition_version: str
    order: int
    version: int
    status: str = ""
    state: str = ""
    wake: float | None = None
    owner: str | None = None
    fence: int = 0
    claims: int = 0
    inbox: int = 0
    created: float = 0.0
    updated: float = 0.0
    closed: float | None = None


class Stored(msgspec.Struct, frozen=True, kw_only=True):
    """What `Store.load` returns: one consistent view of an entity.

    Attributes:
        records: those after the version asked for, in order.
        snapshot: the newest snapshot, or None.
        snapshot_version: the version the snapshot stands for, 0 without one.
        signals: the inbox, in order of arrival, without what was consumed.
    """

    head: Head
    records: Sequence[bytes] = ()
    snapshot: bytes | None = None
    snapshot_version: int = 0
    signals: Sequence[Signal] = ()


class Claims(msgspec.Struct, frozen=True, kw_only=True):
    """What `Store.claim` returns.

    Attributes:
        heads: the entities now owned by the worker, with their new fence, earliest wake first.
        wake: when the next entity that matches falls due, or None when none waits for a time.
    """

    heads: Sequence[Head] = ()
    wake: float | None = None


@runtime_checkable
class Store(Protocol):
    """A place that keeps history. See the module's text for the words used here.

    Opening is lazy: the first call opens, and a call after `close` opens again. Every method may
    raise `StoreUnavailable` (not reachable now; nothing is known to have been stored by a failed
    append) and `StoreError` (refused for a reason that its message names).
    """

    capabilities: Capabilities

    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        """Store all writes, or none of them, durably before returning.

        Appends of different callers are independent: the failure of one never fails another,
        even when a store commits many together. A caller that is cancelled while it waits must
        treat the outcome as unknown: the store completes an append that it has accepted.

        Args:
            writes: at most one per id.
            work: runs inside the transaction (in whatever thread or task the store uses) with the
                store's connection; the writes it returns are stored in the same commit. If it
                raises, nothing is stored and its exception reaches the caller unchanged.

        Raises:
            Conflict: an entity is not at the expected version, or its inbox has moved.
            LeaseLost: an entity's fence is not the expected one.
            RunNotFound: a write without ``create`` names an entity that does not exist.
            RunFinished: a signal was sent to a closed entity.
            PayloadTooLarge: see `Capabilities.max_payload`.
        """
        ...

    async def load(self, id: str, /, *, after: int = 0, limit: int | None = None) -> Stored | None:
        """Read an entity, or None when there is none: records ``after + 1`` on, at most ``limit``."""
        ...

    async def scan(
        self,
        *,
        kind: str | None = None,
        definition: str | None = None,
        status: Sequence[str] | None = None,
        state: str | None = None,
        wake_before: float | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> Sequence[Head]:
        """List heads in the order of creation, starting behind the cursor ``after`` (a `Head.order`).

        Entities created while somebody pages appear at the end; none is shown twice.
        """
        ...

    async def claim(
        self,
        worker: str,
        /,
        *,
        definitions: Sequence[tuple[str, str, str]] = (),
        ids: Sequence[str] = (),
        limit: int = 100,
    ) -> Claims:
        """Take entities that nobody alive owns; each gets a fence one higher.

        Args:
            worker: must have a live heartbeat.
            definitions: (kind, definition, definition version) of what the worker can run; taken
                are open entities whose ``wake`` has come.
            ids: take just these open entities, whatever their ``wake``; owned ones are left out.
            limit: at most so many.

        Raises:
            LeaseLost: the worker has no live heartbeat.
        """
        ...

    async def heartbeat(self, worker: str, lease: float, /) -> Sequence[str]:
        """Say that the worker lives for ``lease`` more seconds; return the other workers on record.

        Workers are on record until they are released, also after their lease ran out.
        """
        ...

    async def release(self, worker: str, /, ids: Sequence[str] | None = None) -> None:
        """Give back the worker's leases on these ids, or all of them and its place on record.

        Each released entity's fence rises by one, so that a late write of the former owner is
        refused. May be called for a worker that is known to be dead.
        """
        ...

    async def now(self) -> float:
        """Return the store's own time, in seconds since the epoch."""
        ...

    async def watch(self, seen: int, timeout: float, /) -> int:
        """Wait until the store's change counter differs from ``seen``, or ``timeout`` seconds; return it.

        The counter moves at least when an entity becomes due without an owner, a signal arrives
        or an entity closes, in any process. It may move for no reason. Start with ``seen=-1``,
        which returns at once.
        """
        ...

    async def prune(self, *, closed_before: float, limit: int = 1000) -> int:
        """Delete at most ``limit`` entities closed before this time, oldest first; return how many."""
        ...

    async def close(self) -> None:
        """Finish what was accepted, free connections and threads. Closing twice is allowed."""
        ...
