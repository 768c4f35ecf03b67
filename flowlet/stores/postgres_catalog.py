"""The numbers of definitions: what many entities share is stored once.

Law: a number is never taken back, and is committed before anything refers to it, so that it may be remembered.
"""

from __future__ import annotations

from collections.abc import Sequence

from flowlet.store import New, Write
from flowlet.stores.postgres_driver import Connection
from flowlet.stores.postgres_link import Pool
from flowlet.stores.postgres_schema import in_schema

__all__ = ["Catalog"]

_FIND = "SELECT c FROM @.catalog WHERE kind = $1 AND definition = $2 AND definition_version = $3"
_MAKE = "INSERT INTO @.catalog (kind, definition, definition_version) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING"


class Catalog:
    """Knows the numbers of definitions, and makes new ones.

    Attributes:
        numbers: those that are known.
    """

    def __init__(self, pool: Pool, schema: str) -> None:
        self.numbers: dict[New, int] = {}
        self._pool = pool
        self._find, self._make = in_schema(_FIND, schema), in_schema(_MAKE, schema)

    async def learn(self, writes: Sequence[Write]) -> None:
        """Know the numbers of what these writes create.

        Raises:
            FlowletError: the words cannot be stored, or the database cannot be reached.
        """
        for write in writes:
            new = write.create
            if new is not None and new not in self.numbers:
                self.numbers[new] = await self._number(new)

    async def _number(self, new: New) -> int:
        facts = (new.kind, new.definition, new.definition_version)

        async def look(connection: Connection) -> int:
            found: int | None = await connection.fetchval(self._find, *facts)
            if found is None:
                await connection.execute(self._make, *facts)
                found = await connection.fetchval(self._find, *facts)
            assert found is not None
            return found

        return await self._pool.use(look, repeatable=True)
