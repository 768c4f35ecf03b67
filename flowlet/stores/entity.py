"""An entity as a value, and what a write makes of it: the whole of `append` without the storing.

Law: pure functions of values. A write is judged by `flowlet.stores.refusal`, as in every store; nothing is
changed before all writes of an append are judged, and what was given is never changed in place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec.structs import replace

from flowlet.errors import Conflict, FlowletError, RunFinished
from flowlet.store import UNCHANGED, Head, New, Signal, Stored, Write
from flowlet.stores.refusal import malformed, refusal

__all__ = ["WORKERS", "Change", "Entity", "applied"]

WORKERS = "flowlet/workers"
"""The id of the entity in which a `flowlet.store.BasicStore` keeps who is alive. Its order is 0: no scan meets it."""


class Entity(Stored, frozen=True, kw_only=True):
    """All that a store keeps under one id.

    Attributes:
        records: all of them, from the first.
        message_ids: of all signals that it ever received, so that none is received twice.
    """

    message_ids: frozenset[str] = frozenset()


class Change(Write, frozen=True, kw_only=True):
    """A write, and what only the derived methods of a `flowlet.store.BasicStore` ask of its ``append``.

    A store that logs writes logs and reads them as this type; flowlet's own writes have the defaults.

    Attributes:
        lease: the write is a claim or a release: it leaves ``updated`` as it is, and a claim is counted.
        deletes: the `Head.order` of the closed entity to delete; 0 deletes nothing.
    """

    lease: bool = False
    deletes: int = 0


def applied(
    writes: Sequence[Write], entities: Mapping[str, Entity], *, now: float, last: int, largest: int | None = None
) -> dict[str, Entity | None]:
    """Return what the entities of these writes are after them, or raise why the writes are refused.

    Args:
        writes: of one append.
        entities: at least those that the writes name, as they are now; one that is missing does not exist.
        now: the store's time, in seconds.
        last: the highest `flowlet.store.Head.order` that was ever given; new entities get the next ones.
        largest: see `flowlet.store.Capabilities.max_payload`, in bytes.

    Returns:
        For each id the whole entity, to be stored in the place of the old one; None for one to be deleted.

    Raises:
        FlowletError: as `flowlet.store.Store.append`; nothing may be stored then.
    """
    error = malformed(writes, largest)
    if error is not None:
        raise error
    for write in writes:
        error = _refusal(write, entities.get(write.id))
        if error is not None:
            raise error
    changed: dict[str, Entity | None] = {}
    for write in writes:
        entity = entities.get(write.id)
        if entity is None:
            assert write.create is not None  # or it would have been refused
            last += write.id != WORKERS
            entity = _created(write.id, write.create, 0 if write.id == WORKERS else last, now)
        changed[write.id] = _after(write, entity, now)
    return changed


def _refusal(write: Write, entity: Entity | None) -> FlowletError | None:
    error = refusal(write, None if entity is None else entity.head)
    if error is None and isinstance(write, Change) and entity is not None:
        head = entity.head
        if write.lease and write.owner is not None and head.closed is not None:
            return RunFinished(f"{head.id!r} has ended, so it is not claimed", head.id)
        if write.deletes and (head.closed is None or head.order != write.deletes):
            return Conflict(head.version, head.version, head.id)
    return error


def _created(id: str, new: New, order: int, now: float) -> Entity:
    facts = (new.kind, new.definition, new.definition_version)
    return Entity(
        head=Head(
            id=id,
            kind=facts[0],
            definition=facts[1],
            definition_version=facts[2],
            order=order,
            version=0,
            created=now,
            updated=now,
        )
    )


def _after(write: Write, entity: Entity, now: float) -> Entity | None:
    head, is_lease = entity.head, isinstance(write, Change) and write.lease
    if isinstance(write, Change) and write.deletes:
        return None
    entity = _received(write, entity)
    changes_owner = write.owner is not UNCHANGED and (write.owner is not None or head.owner is not None)
    claims = 0 if write.records else head.claims
    closed = now if write.close and head.closed is None else head.closed
    arrived = entity.head.inbox > head.inbox
    wake = 0.0 if arrived else head.wake if write.wake is UNCHANGED else write.wake
    head = replace(
        entity.head,
        version=head.version + len(write.records),
        status=head.status if write.status is UNCHANGED else write.status,
        state=head.state if write.state is UNCHANGED else write.state,
        wake=None if closed is not None else wake,
        owner=head.owner if write.owner is UNCHANGED else write.owner,
        fence=head.fence + changes_owner,
        claims=claims + (is_lease and write.owner is not None),
        updated=head.updated if is_lease else now,
        closed=closed,
    )
    keeps_snapshot = write.snapshot is UNCHANGED
    return replace(
        entity,
        head=head,
        records=(*entity.records, *write.records) if write.records else entity.records,
        snapshot=entity.snapshot if keeps_snapshot else write.snapshot,
        snapshot_version=entity.snapshot_version if keeps_snapshot else head.version,
    )


def _received(write: Write, entity: Entity) -> Entity:
    """Return the entity without the signals that the write has consumed, and with those that it sends."""
    if not write.signals and not (write.consumed and entity.signals):
        return entity
    kept = [signal for signal in entity.signals if signal.number > write.consumed]
    inbox, known = entity.head.inbox, set(entity.message_ids)
    for signal in write.signals:
        if signal.message_id is not None and signal.message_id in known:
            continue
        if signal.message_id is not None:
            known.add(signal.message_id)
        inbox += 1
        kept.append(Signal(signal.topic, signal.payload, signal.message_id, inbox))
    return replace(entity, head=replace(entity.head, inbox=inbox), signals=tuple(kept), message_ids=frozenset(known))
