"""The tables of a PostgreSQL store, in a schema of its own.

Law: a schema that is not ours, or that a newer flowlet made, is refused before anything is written to it.
Everything is made in one transaction, by whichever process comes first; the others wait for it.

Layout: everything is keyed by ``n``, a private number that rises with creation (`flowlet.store.Head.order`),
so that what is written together lies together in the indexes, and never by the caller's ids, which may be
random. What many entities share (kind, definition and its version) is in ``catalog``.

All SQL of this store is written with ``@`` for the schema; `in_schema` puts its quoted name there.
"""

from __future__ import annotations

import zlib
from contextlib import suppress

from flowlet.errors import StoreError
from flowlet.stores.postgres_address import Address
from flowlet.stores.postgres_driver import Connection
from flowlet.stores.postgres_errors import DRIVER_ERRORS
from flowlet.stores.postgres_functions import FUNCTIONS

__all__ = ["SCHEMA_VERSION", "in_schema", "is_made", "prepare"]

SCHEMA_VERSION = 1
"""In the table ``flowlet_version``, whose presence also says whose schema it is."""

_LOCK = 0x666C6F77
"""``flow`` in ASCII: the class of this store's advisory locks."""

_TABLES = """
    CREATE TABLE @.flowlet_version (version integer NOT NULL);
    CREATE TABLE @.counters (name text PRIMARY KEY, last bigint NOT NULL);
    INSERT INTO @.counters VALUES ('heads', 0);
    CREATE TABLE @.catalog (
        c integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        kind text COLLATE "C" NOT NULL,
        definition text COLLATE "C" NOT NULL,
        definition_version text COLLATE "C" NOT NULL,
        UNIQUE (kind, definition, definition_version)
    );
    -- Room on each page: an update that changes no index then stays on its page and leaves the indexes alone.
    CREATE TABLE @.heads (
        n bigint PRIMARY KEY,
        id text COLLATE "C" NOT NULL UNIQUE,
        c integer NOT NULL,
        version bigint NOT NULL,
        status text COLLATE "C" NOT NULL,
        state text COLLATE "C" NOT NULL,
        wake double precision,
        owner text COLLATE "C",
        fence bigint NOT NULL,
        claims bigint NOT NULL,
        inbox bigint NOT NULL,
        created double precision NOT NULL,
        updated double precision NOT NULL,
        closed double precision
    ) WITH (fillfactor = 80);
    CREATE TABLE @.records (n bigint, seq bigint, data bytea NOT NULL, PRIMARY KEY (n, seq));
    CREATE TABLE @.snapshots (n bigint PRIMARY KEY, version bigint NOT NULL, data bytea NOT NULL);
    CREATE TABLE @.signals (
        n bigint, number bigint, topic text COLLATE "C" NOT NULL, payload bytea NOT NULL, message_id text COLLATE "C",
        PRIMARY KEY (n, number)
    );
    -- Outlives the signal: a message that was consumed and is sent again must still be known.
    CREATE TABLE @.message_ids (n bigint, message_id text COLLATE "C", PRIMARY KEY (n, message_id));
    CREATE TABLE @.workers (worker text COLLATE "C" PRIMARY KEY, expires double precision NOT NULL);

    -- Those for listings end in n, so that a page is read in the order of creation.
    CREATE INDEX heads_catalog ON @.heads (c, n);
    CREATE INDEX heads_status ON @.heads (c, status, n);
    CREATE INDEX heads_state ON @.heads (c, state, n) WHERE state <> '';
    -- Closed entities have no wake and usually no owner: a claim or a release never meets them.
    CREATE INDEX heads_due ON @.heads (c, owner, wake, n) WHERE wake IS NOT NULL;
    CREATE INDEX heads_owner ON @.heads (owner) WHERE owner IS NOT NULL;
    CREATE INDEX heads_closed ON @.heads (closed, n) WHERE closed IS NOT NULL;
"""

_LOOK = """
    SELECT n.oid, pg_get_userbyid(n.nspowner) AS owner, current_user AS me,
        has_schema_privilege(n.oid, 'USAGE') AS may_use, has_schema_privilege(n.oid, 'CREATE') AS may_create,
        (SELECT count(*) FROM pg_class r WHERE r.relnamespace = n.oid) AS relations,
        v.oid IS NOT NULL AS is_ours,
        v.oid IS NOT NULL AND has_table_privilege(v.oid, 'SELECT') AS may_read
    FROM pg_namespace n
    LEFT JOIN pg_class v ON v.relnamespace = n.oid AND v.relname = 'flowlet_version' AND v.relkind = 'r'
    WHERE n.nspname = $1
"""


def in_schema(text: str, schema: str) -> str:
    """Return the SQL with the schema's name; it was checked to be an identifier, see `Address`."""
    return text.replace("@", f'"{schema}"')


async def prepare(connection: Connection, address: Address) -> None:
    """See that the schema is there and ours; make it if it is not there.

    Raises:
        StoreError: it is somebody else's, newer than this code, or this user may not make it.
    """
    if await is_made(connection, address):
        return
    transaction = connection.transaction(isolation="read_committed")
    await transaction.start()
    try:
        await _make(connection, address)
    except BaseException:
        with suppress(*DRIVER_ERRORS):  # the connection may be what was lost
            await transaction.rollback()
        raise
    await transaction.commit()


async def _make(connection: Connection, address: Address) -> None:
    # Whoever comes first makes it; the others wait here, then find it.
    lock = zlib.crc32(address.schema.encode()) >> 1
    await connection.execute("SELECT pg_advisory_xact_lock($1, $2)", _LOCK, lock)
    if await is_made(connection, address):
        return
    if await connection.fetchval("SELECT to_regnamespace($1) IS NULL", f'"{address.schema}"'):
        await connection.execute(in_schema("CREATE SCHEMA @", address.schema))
    for text in (_TABLES, *FUNCTIONS):
        await connection.execute(in_schema(text, address.schema))
    await connection.execute(in_schema("INSERT INTO @.flowlet_version VALUES ($1)", address.schema), SCHEMA_VERSION)


async def is_made(connection: Connection, address: Address) -> bool:
    """Return whether the tables are there; refuse what is not ours. Writes nothing."""
    found = await connection.fetchrow(_LOOK, address.schema)
    if found is None:
        return False
    whose = f"{address.shown}: the schema {address.schema!r} belongs to {found['owner']!r}"
    if not found["may_use"] or (found["is_ours"] and not found["may_read"]):
        raise StoreError(f"{whose}, and {found['me']!r} may not use it; be granted its use, or name another schema")
    if not found["is_ours"]:
        if found["relations"]:
            text = "has tables that are not flowlet's; give flowlet a schema of its own, nothing was written"
            raise StoreError(f"{whose} and {text}")
        if not found["may_create"]:
            raise StoreError(f"{whose}, and {found['me']!r} may make no tables in it; name another schema")
        return False
    version = await connection.fetchval(in_schema("SELECT max(version) FROM @.flowlet_version", address.schema))
    if version != SCHEMA_VERSION:
        text = f"{address.shown}: the schema has version {version}; this flowlet knows version {SCHEMA_VERSION}"
        raise StoreError(f"{text}. Update flowlet, or name another schema; nothing was written")
    return True
