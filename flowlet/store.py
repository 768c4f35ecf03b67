"""The store protocol: what flowlet asks of a place that keeps history.

Law: a store knows bytes, versions, fences, leases and wake times; it knows nothing of machines, sagas
or steps. Everything above it works with any object that has these methods, and a store imports
nothing of flowlet but this module and `flowlet.errors`.

A store of your own is any object with the methods of `Store`, or a subclass of `BasicStore`, which derives
all of them from three. `flowlet.testing.StoreConformance` proves either.

What is stored
    An *entity* is one run, one machine or one definition. It has an id (unique in the store), a
    `Head` of indexed facts, a journal of records numbered 1, 2, 3 ... without gap (the number of
    the last one is the entity's *version*), an inbox of signals, and possibly a snapshot. It is created
    with a record, so its version is never 0: that is the version of what does not exist.

Ownership
    An entity may be owned by a *worker*. A worker is alive while its last `heartbeat` is younger
    than the lease it asked for, in the store's own time. Each change of owner raises the
    entity's *fence*; a write that carries an older fence is refused with `LeaseLost`.

    There are two ways to own. `Store.claim` asks the leases: it takes only what nobody alive owns.
    `Write.owner` does not ask them: whoever writes it takes the entity, or gives it back, whoever has it,
    and only the write's ``expect`` and ``fence`` can refuse. So give a ``fence`` with it unless the
    entity is to be taken from anybody; a former owner learns of it by `LeaseLost` at its next fenced write.

Which bytes and words
    Payloads are any bytes, from none to `Capabilities.max_payload`. Ids, definitions, states and the like
    are any text that UTF-8 can encode; a store that cannot keep some of it (a NUL, say) refuses the
    append that brings it with a `StoreError`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, runtime_checkable

import msgspec

if TYPE_CHECKING:
    from flowlet.stores.basic import BasicStore, Change, Entity

__all__ = [
    "UNCHANGED",
    "BasicStore",
    "Capabilities",
    "Change",
    "Claims",
    "Entity",
    "Head",
    "New",
    "PayloadCodec",
    "Signal",
    "Store",
    "Stored",
    "Unchanged",
    "Work",
    "Write",
    "missing_members",
]

Unchanged: TypeAlias = msgspec.UnsetType
UNCHANGED: Final = msgspec.UNSET
"""The value of a `Write` field that leaves the stored one as it is."""

Work: TypeAlias = Callable[[Any], "Sequence[Write] | Awaitable[Sequence[Write]]"]
"""User code that runs inside a store's transaction: takes its connection, returns the writes to make.

May be a coroutine function where `Capabilities.async_work` says so.
"""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a store can do; asking for what it cannot is a `StoreError` that names the flag, never a silent loss.

    Attributes:
        durable: an acknowledged append survives the end of the process (and, as far as the
            store's documentation says, the loss of power).
        multi_process: several processes may work on it at once.
        transactional: `Store.append` accepts ``work=``.
        async_work: that may return an awaitable, which is awaited on the store's loop before anything is stored: its
            connection is used with ``await``.
        leases: `claim`, `heartbeat` and `release` work. Without them nothing can be run, but machines.
        signals: a `Write` may carry signals.
        max_payload: largest record, signal or snapshot in bytes, None for no limit.
    """

    durable: bool = False
    multi_process: bool = False
    transactional: bool = False
    async_work: bool = False
    leases: bool = True
    signals: bool = True
    max_payload: int | None = None


class New(msgspec.Struct, frozen=True):
    """The facts of an entity that never change after its creation.

    Attributes:
        kind: ``"run"``, ``"machine"``, ``"definition"``, ``"schedule"``, or ``"shard"`` for a part of a bulk operation.
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
        owner: a worker id takes the lease, whoever has it, and raises the fence by one; it is not counted
            as a claim. None gives it back, raising the fence if somebody had it. Give ``fence`` with it.
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
class PayloadCodec(Protocol):
    """What ``Flowlet(codec=...)`` takes: changes the bytes of payloads on their way into and out of a store.

    For compression or encryption. What a run or machine records, its signals and snapshots pass through
    it; ids, names, words for listings and times do not. It is called on the event loop, and for what a
    transactional step records in the store's own thread: it must be quick and do no I/O.

    ``decode(encode(data)) == data`` must hold in every process on the store, for as long as what was
    encoded is kept: put into the bytes how they were made, such as the id of a key.
    """

    def encode(self, data: bytes, /) -> bytes:
        """Return the bytes to store. May give others each time."""
        ...

    def decode(self, data: bytes, /) -> bytes:
        """Return what was encoded, or raise when these bytes are not, or not now, to be read."""
        ...


@runtime_checkable
class Store(Protocol):
    """A place that keeps history. See the module's text for the words used here.

    Opening is lazy: the first call opens, and a call after `close` opens again, also on another event
    loop; one loop at a time. All methods may be called by any number of tasks at once. Every method may
    raise `StoreUnavailable` (not reachable now; try again) and `StoreError` (refused for a reason that its
    message names); a driver's own exceptions never pass, they are the ``__cause__``.

    Each method is atomic: whoever reads sees all of a change or nothing of it. Whatever has been
    acknowledged is seen by every later call, in every process.
    """

    capabilities: Capabilities

    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        """Store all writes, or none of them, durably before returning.

        All writes are judged before the first is stored: each against the entity as it is before this
        append. Appends of different callers are independent: the failure of one never fails another,
        even when a store commits many together. A caller that is cancelled while it waits, or that gets
        `StoreUnavailable`, must treat the outcome as unknown: the store completes an append that it
        has accepted. Sending it again is safe: if it was stored, the version it expects is no longer
        there (`Conflict`), and a signal with a ``message_id`` is not received twice.

        An append of no writes, without ``work``, does nothing.

        Args:
            writes: at most one per id.
            work: runs inside the transaction (in whatever thread or task the store uses) with the
                store's connection; the writes it returns are stored in the same commit. If it
                raises, nothing is stored and its exception reaches the caller unchanged.

        Raises:
            Conflict: an entity is not at the expected version, or its inbox has moved.
            LeaseLost: an entity's fence is not the expected one. Judged before the version, since a writer
                that has lost its lease has usually missed records, too.
            RunNotFound: a write without ``create`` names an entity that does not exist.
            RunFinished: a signal was sent to a closed entity.
            PayloadTooLarge: see `Capabilities.max_payload`.
            StoreError: the writes contradict themselves (two with one id; ``create`` without
                ``expect=0`` or without a record; records without ``expect``), or ask for what
                `capabilities` deny.

        Of these, the first four carry the entity's ``id``.
        """
        ...

    async def load(self, id: str, /, *, after: int = 0, limit: int | None = None) -> Stored | None:
        """Read an entity, or None when there is none: records ``after + 1`` on, at most ``limit``.

        One consistent view: head, records, snapshot and signals are of the same moment. The head's version
        is that of the whole journal, also when fewer records were asked for.
        """
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

        Entities created while somebody pages appear at the end; none is shown twice, and none that was
        there all the time is left out. One page is of one moment; two pages need not be of the same.

        Args:
            kind, definition, state: as in the head; None for any.
            status: one of these words; none of them matches when it is empty, any when it is None.
            wake_before: ``wake`` is a time before this one, in seconds of the store's clock.
            after: the `Head.order` of the last one seen. It stays valid when that entity was pruned.
            limit: at most so many. Fewer than that many are the last page.
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

        Two workers that claim at once never take the same entity. A caller that is cancelled may own what
        it was not told of; its next claim of it by id, or its release, sets that right.

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

        Workers are on record until they are released, also after their lease ran out. A worker whose
        lease ran out may come back; what others took meanwhile is not given back.
        """
        ...

    async def release(self, worker: str, /, ids: Sequence[str] | None = None) -> None:
        """Give back the worker's leases on these ids, or all of them and its place on record.

        Each released entity's fence rises by one, so that a late write of the former owner is
        refused. May be called for a worker that is known to be dead, and again: what others own, and
        workers that are not on record, are left alone. Need not be atomic over all entities.
        """
        ...

    async def now(self) -> float:
        """Return the store's own time, in seconds since the epoch: the one that leases and wakes are judged by."""
        ...

    async def watch(self, seen: int, timeout: float, /) -> int:
        """Wait until the store's change counter differs from ``seen``, or ``timeout`` seconds; return it.

        The counter moves at least when an entity becomes due without an owner, a signal arrives
        or an entity closes, in any process. It may move for no reason. Start with ``seen=-1``,
        which returns at once.
        """
        ...

    async def prune(self, *, closed_before: float, limit: int = 1000) -> int:
        """Delete at most ``limit`` entities closed before this time, oldest first; return how many.

        An entity goes as a whole, with its journal and inbox, and its id may be created anew. Different
        entities may go at different moments, so that others can write in between.
        """
        ...

    async def close(self) -> None:
        """Finish what was accepted, free connections and threads. Closing twice is allowed."""
        ...


def missing_members(given: object) -> list[str]:
    """Return the names that an object lacks to be a `Store`; none of them when it is one.

    Example:
        >>> from flowlet.store import missing_members
        >>> from flowlet.stores.memory import MemoryStore
        >>> missing_members(MemoryStore())
        []
    """
    names = ["capabilities", *(name for name in vars(Store) if not name.startswith("_"))]
    return [name for name in names if not hasattr(given, name)]


def __getattr__(name: str) -> Any:
    # They are built on the values above, and most programs never need them: imported when asked for.
    if name in ("BasicStore", "Change", "Entity"):
        from flowlet.stores import basic

        return getattr(basic, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
