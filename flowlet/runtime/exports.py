"""The definitions that a store keeps beside its runs, as plain data.

Law: it reads what `Flowlet` has stored on entering, and needs no user code.
"""

from __future__ import annotations

from typing import Any

import msgspec

from flowlet.errors import DecodeError
from flowlet.store import Store


class Exports:
    """Finds exported definitions in a store, each read once.

    Args:
        store: where they are.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._found: dict[tuple[str, str], dict[str, Any] | None] = {}

    async def find(self, name: str, version: str) -> dict[str, Any] | None:
        """Return what a definition has exported; None if nobody has stored it.

        Raises:
            DecodeError: what is stored is no JSON.
        """
        key = (name, version)
        if key not in self._found:
            self._found[key] = await self._read(name, version)
        return self._found[key]

    async def all_of(self, name: str) -> list[dict[str, Any]]:
        """Return all versions of a definition that there are."""
        found: list[dict[str, Any] | None] = []
        after = 0
        while heads := await self._store.scan(kind="definition", definition=name, after=after):
            found += [await self.find(name, head.definition_version) for head in heads]
            after = heads[-1].order
        return [exported for exported in found if exported is not None]

    async def _read(self, name: str, version: str) -> dict[str, Any] | None:
        after = 0
        while heads := await self._store.scan(kind="definition", definition=name, after=after):
            for head in heads:
                if head.definition_version == version:
                    stored = await self._store.load(head.id, after=head.version - 1)
                    data = None if stored is None else stored.snapshot or stored.records[-1]
                    return None if data is None else read_export(data, head.id)
            after = heads[-1].order
        return None


def read_export(data: bytes, id: str) -> dict[str, Any]:
    """Return an exported definition.

    Raises:
        DecodeError: the bytes are none.
    """
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DecodeError(f"the definition {id!r} cannot be read: {error}") from error
