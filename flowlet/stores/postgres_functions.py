"""The functions that a PostgreSQL store keeps in its schema: the time, and the appends of a batch.

Law: `append` judges a write as `flowlet.stores.refusal` does, and changes what `flowlet.stores.entity` changes;
`flowlet.stores.postgres_batch` makes its arguments and reads its answer. All its row locks are taken in the order
of ids, so that two batches cannot wait for each other in a circle.

Why functions: a batch is one round trip, and each of their statements sees what was committed while the one
before it waited for a lock. A statement with many parts would see the past.
"""

from __future__ import annotations

__all__ = ["FUNCTIONS"]

_NOW = """
CREATE FUNCTION @.now() RETURNS double precision LANGUAGE sql VOLATILE AS $$
    SELECT extract(epoch FROM clock_timestamp())::double precision
$$
"""

# The arrays up to `snapshots` have an element for each write; a NULL instead of an array is one of NULLs. `parts` tells
# which writes belong together, NULL that none do. `flags`: 1 for a wake, 2 for an owner, 4 for the end. `places` and
# `sent_by` count from 1 and name the write of a record or signal; `places` and `counts` are NULL when each
# write has one record.
# An id comes once: what is to follow an append to the same id is in the next batch.
_APPEND = """
CREATE FUNCTION @.append(
    parts integer[], ids text[], catalogs integer[], expects bigint[], fences bigint[], inboxes bigint[],
    sends boolean[], counts integer[], flags integer[], statuses text[], states text[], wakes double precision[],
    owners text[], consumes bigint[], snapshots bytea[],
    places integer[], seqs bigint[], datas bytea[],
    sent_by integer[], topics text[], payloads bytea[], message_keys text[],
    OUT notable boolean, OUT refused integer[], OUT found_versions bigint[], OUT found_fences bigint[],
    OUT found_inboxes bigint[], OUT found_ends double precision[]
) LANGUAGE plpgsql
-- With the plan of few rows, whatever the planner has heard of the tables so far.
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
AS $$
DECLARE
    moment double precision := @.now();
    last_n bigint := 0;
    ns bigint[];
    versions bigint[];
    seen bigint[];
    arrived bigint[];
    notable_new boolean;
BEGIN
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    IF catalogs IS NOT NULL THEN
        -- Held until the commit: numbers become visible in their order, and no reader's cursor passes one by.
        SELECT last INTO STRICT last_n FROM @.counters WHERE name = 'heads' FOR UPDATE;
    END IF;

    WITH judged AS (
        SELECT w.o, w.c, h.n, h.version, h.fence, h.inbox, h.closed, bool_and(
            CASE WHEN w.c IS NOT NULL THEN h.n IS NULL
            ELSE h.n IS NOT NULL AND (w.fence IS NULL OR w.fence = h.fence)
                AND (w.expect IS NULL OR w.expect = h.version) AND (w.inbox IS NULL OR w.inbox >= h.inbox)
                AND (h.closed IS NULL OR w.sends IS NOT TRUE)
            END) OVER (PARTITION BY coalesce(w.part, w.o)) AS ok
        FROM (
            SELECT * FROM unnest(parts, ids, catalogs, expects, fences, inboxes, sends)
                WITH ORDINALITY AS w (part, id, c, expect, fence, inbox, sends, o) ORDER BY w.id COLLATE "C"
        ) AS w
        LEFT JOIN LATERAL (
            SELECT h.n, h.version, h.fence, h.inbox, h.closed FROM @.heads h WHERE h.id = w.id FOR UPDATE
        ) AS h ON true
    ), numbered AS (
        SELECT j.*, count(*) FILTER (WHERE j.ok AND j.c IS NOT NULL) OVER (ORDER BY j.o) AS rank FROM judged j
    )
    SELECT array_agg(CASE WHEN ok THEN coalesce(n, last_n + rank) END ORDER BY o),
        array_agg(version ORDER BY o), array_agg(coalesce(inbox, 0) ORDER BY o),
        array_agg(o::integer ORDER BY o) FILTER (WHERE NOT ok), array_agg(version ORDER BY o) FILTER (WHERE NOT ok),
        array_agg(fence ORDER BY o) FILTER (WHERE NOT ok), array_agg(inbox ORDER BY o) FILTER (WHERE NOT ok),
        array_agg(closed ORDER BY o) FILTER (WHERE NOT ok)
    INTO ns, versions, seen, refused, found_versions, found_fences, found_inboxes, found_ends FROM numbered;

    IF consumes IS NOT NULL THEN
        DELETE FROM @.signals s USING unnest(ns, consumes) AS w (n, consumed)
        WHERE s.n = w.n AND s.number <= w.consumed;
    END IF;

    IF sent_by IS NOT NULL THEN
        WITH sent AS (
            SELECT s.w, s.o, s.topic, s.payload, s.message_id, ns[s.w] AS n,
                s.message_id IS NULL OR row_number() OVER (PARTITION BY s.w, s.message_id ORDER BY s.o) = 1 AS is_first
            FROM unnest(sent_by, topics, payloads, message_keys) WITH ORDINALITY AS s (w, topic, payload, message_id, o)
            WHERE ns[s.w] IS NOT NULL
        ), kept AS (
            SELECT s.*, seen[s.w] + row_number() OVER (PARTITION BY s.w ORDER BY s.o) AS number FROM sent s
            WHERE s.is_first AND (s.message_id IS NULL OR NOT EXISTS (
                SELECT FROM @.message_ids m WHERE m.n = s.n AND m.message_id = s.message_id))
        ), known AS (
            INSERT INTO @.message_ids SELECT k.n, k.message_id FROM kept k WHERE k.message_id IS NOT NULL
        ), received AS (
            INSERT INTO @.signals SELECT k.n, k.number, k.topic, k.payload, k.message_id FROM kept k
        )
        SELECT array_agg(coalesce(k.count, 0) ORDER BY g.w) INTO arrived FROM generate_subscripts(ns, 1) AS g (w)
        LEFT JOIN (SELECT w, count(*) FROM kept GROUP BY w) AS k ON k.w = g.w;
    END IF;

    WITH changed AS (
        UPDATE @.heads h SET
            version = h.version + coalesce(w.count, 1),
            claims = CASE WHEN w.count = 0 THEN h.claims ELSE 0 END,
            status = coalesce(w.status, h.status),
            state = coalesce(w.state, h.state),
            inbox = h.inbox + coalesce(w.arrived, 0),
            owner = CASE WHEN w.flags & 2 > 0 THEN w.owner ELSE h.owner END,
            fence = CASE WHEN w.flags & 2 > 0 AND (w.owner IS NOT NULL OR h.owner IS NOT NULL) THEN h.fence + 1
                ELSE h.fence END,
            closed = CASE WHEN w.flags & 4 > 0 THEN coalesce(h.closed, moment) ELSE h.closed END,
            wake = CASE WHEN h.closed IS NOT NULL OR w.flags & 4 > 0 THEN NULL WHEN w.arrived > 0 THEN 0
                WHEN w.flags & 1 > 0 THEN w.wake ELSE h.wake END,
            updated = moment
        FROM unnest(ns, catalogs, counts, flags, statuses, states, wakes, owners, arrived)
            AS w (n, c, count, flags, status, state, wake, owner, arrived)
        WHERE h.n = w.n AND w.c IS NULL
        RETURNING (w.flags > 0 OR w.arrived > 0)
            AND (w.arrived > 0 OR h.closed = moment OR h.wake IS NOT NULL AND h.owner IS NULL) AS is_news
    )
    SELECT coalesce(bool_or(is_news), false) INTO notable FROM changed;

    IF catalogs IS NOT NULL THEN
        WITH made AS (
            INSERT INTO @.heads AS h
            SELECT w.n, w.id, w.c, coalesce(w.count, 1), coalesce(w.status, ''), coalesce(w.state, ''),
                CASE WHEN w.flags & 4 > 0 THEN NULL WHEN w.arrived > 0 THEN 0
                    WHEN w.flags & 1 > 0 THEN w.wake END,
                w.owner, (w.owner IS NOT NULL)::integer, 0, coalesce(w.arrived, 0), moment, moment,
                CASE WHEN w.flags & 4 > 0 THEN moment END
            FROM unnest(ns, ids, catalogs, counts, flags, statuses, states, wakes, owners, arrived)
                AS w (n, id, c, count, flags, status, state, wake, owner, arrived)
            WHERE w.n IS NOT NULL AND w.c IS NOT NULL
            RETURNING h.n, h.closed IS NOT NULL OR h.wake IS NOT NULL AND h.owner IS NULL AS is_news
        ), counted AS (
            UPDATE @.counters k SET last = m.last FROM (SELECT max(n) AS last FROM made) AS m
            WHERE k.name = 'heads' AND m.last IS NOT NULL
        )
        SELECT coalesce(bool_or(is_news), false) INTO notable_new FROM made;
        notable := notable OR notable_new;
    END IF;

    IF datas IS NOT NULL THEN
        INSERT INTO @.records SELECT ns[coalesce(r.w, r.o)], r.seq, r.data
        FROM unnest(places, seqs, datas) WITH ORDINALITY AS r (w, seq, data, o)
        WHERE ns[coalesce(r.w, r.o)] IS NOT NULL;
    END IF;

    IF snapshots IS NOT NULL THEN
        INSERT INTO @.snapshots AS s
        SELECT w.n, coalesce(w.version, 0) + coalesce(w.count, 1), w.data FROM unnest(ns, versions, counts, snapshots)
            AS w (n, version, count, data)
        WHERE w.n IS NOT NULL AND w.data IS NOT NULL
        ON CONFLICT (n) DO UPDATE SET version = excluded.version, data = excluded.data;
    END IF;
END
$$
"""

FUNCTIONS = (_NOW, _APPEND)
"""SQL that makes them, in an order in which it can."""
