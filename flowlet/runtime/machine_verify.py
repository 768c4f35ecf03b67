"""Judging every record of a machine against its definition, and its snapshot against its records.

Law: it reads, page by page, and changes nothing.
"""

from __future__ import annotations

from flowlet.core.machine import MachineDefinition
from flowlet.core.machine_records import Fold
from flowlet.errors import HistoryMismatch
from flowlet.store import Store, Stored


async def judge_machine(store: Store, definition: MachineDefinition, stored: Stored, page: int = 200) -> Fold:
    """Fold all records of a machine.

    Args:
        stored: its head and snapshot.
        page: so many records are read at once.

    Returns:
        What they add up to.

    Raises:
        HistoryMismatch: a record does not fit the definition, or the snapshot does not fit the records.
        DecodeError: a record is damaged or missing.
    """
    id, version = stored.head.id, stored.head.version
    fold, resumed = Fold(definition, id), Fold(definition, id)
    known = stored.snapshot is not None and resumed.resume(stored.snapshot, stored.snapshot_version)
    while fold.version < version:
        upto = min(fold.version + page, version)
        if known and fold.version < resumed.version:
            upto = min(upto, resumed.version)
        more = await store.load(id, after=fold.version, limit=upto - fold.version)
        fold.add(() if more is None else more.records, upto)
        if known and fold.version == resumed.version and not fold.equals(resumed):
            raise HistoryMismatch(
                f"the snapshot of machine {id!r} at version {fold.version} is not what its records add up to; "
                "the records are right, and a later snapshot replaces it"
            )
    fold.values()
    return fold
