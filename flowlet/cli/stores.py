"""``flowlet store``: counting, copying, pruning and preparing a store.

Law: what writes asks first, and says beforehand how much it is about.
"""

from __future__ import annotations

import os
from typing import Any

import click

from flowlet.cli.listing import pages
from flowlet.cli.options import Duration, ask, on_a_store, with_limit, with_yes
from flowlet.cli.output import Column, Output, Table, text_of, time_of, time_text
from flowlet.cli.place import Place, hide_password
from flowlet.cli.program import Group
from flowlet.errors import StoreNotFound
from flowlet.store import Head, Store

_COLUMNS = (
    Column("kind"),
    Column("definition", shrinks=True),
    Column("status"),
    Column("count"),
    Column("records"),
    Column("oldest", leaves=True, show=time_text),
    Column("newest", leaves=True, show=time_text),
)


@click.group(cls=Group)
def store() -> None:
    """Count, copy, prune or prepare a store."""


@store.command()
@on_a_store
def stats(place: Place, output: Output) -> None:
    """Count what a store keeps.

    JSON: one document with store, size, schema_version (of a file), and counts: kind, definition, status (the state of
    machines), count, records, oldest, newest.
    """

    async def read(found: Store) -> tuple[list[dict[str, Any]], int | None]:
        rows: dict[tuple[str, str, str], dict[str, Any]] = {}
        async for heads in pages(found, None):
            for head in heads:
                _count(rows, head)
        version: Any = getattr(found, "schema_version", None)
        return [rows[key] for key in sorted(rows)], None if version is None else await version()

    rows, version = place.read(read)
    size = _size(place)
    for row in rows:
        row["oldest"], row["newest"] = time_of(row["oldest"]), time_of(row["newest"])
    if output.json:
        output.document({"store": place.shown, "size": size, "schema_version": version, "counts": rows})
        return
    output.facts([("store", place.shown), ("size", _bytes(size)), ("schema version", version)])
    if rows:
        output.say()
        Table(output, _COLUMNS).add(rows)
    else:
        output.say("it is empty")


def _count(rows: dict[tuple[str, str, str], dict[str, Any]], head: Head) -> None:
    key = (head.kind, head.definition, head.state if head.kind == "machine" else head.status)
    row = rows.get(key)
    if row is None:
        row = rows[key] = {
            "kind": key[0],
            "definition": key[1],
            "status": key[2],
            "count": 0,
            "records": 0,
            "oldest": head.created,
            "newest": head.created,
        }
    row["count"] += 1
    row["records"] += head.version
    row["oldest"], row["newest"] = min(row["oldest"], head.created), max(row["newest"], head.created)


def _size(place: Place) -> int | None:
    """Return the bytes of a file and its log."""
    from flowlet.stores import sqlite_place

    if place.url is None or not place.url.startswith("sqlite:"):
        return None
    path = sqlite_place(place.url)[0]
    return sum(os.path.getsize(name) for name in (path, f"{path}-wal") if os.path.exists(name))


def _bytes(size: int | None) -> str | None:
    if size is None:
        return None
    return f"{size:,} bytes"


@store.command()
@with_yes
@on_a_store
def migrate(place: Place, output: Output, yes: bool) -> None:
    """Make the tables of a store, or bring those of an older flowlet up to date.

    A Flowlet does so by itself when it is entered; this is for deployments in which another user has the right to.
    """
    before = _version(place)
    ask(yes, f"Make the tables of {place.shown}, or bring them up to date?")
    import anyio

    async def write() -> None:
        bare = place.bare()
        try:
            await bare.load("flowlet/", limit=0)  # opens it, which makes what is not there
        finally:
            await bare.close()

    anyio.run(write)
    after = _version(place)
    was_made = before == "nothing"
    done = "made" if was_made else "as they should be" if before == after else f"brought from {before} to {after}"
    if output.json:
        output.document({"store": place.shown, "before": before, "after": after, "done": f"the tables are {done}"})
    else:
        output.say(f"{place.shown}: the tables are {done}")


def _version(place: Place) -> str:
    """Return the version of the tables, as far as the store tells."""

    async def read(found: Store) -> str:
        version: Any = getattr(found, "schema_version", None)
        if version is not None:
            return f"version {await version()}"
        await found.scan(limit=1)
        return "the current version"

    try:
        return place.read(read)
    except StoreNotFound:
        return "nothing"


@store.command()
@click.option("--older-than", required=True, type=Duration(), metavar="AGE", help="Since its end, such as 30d or 12h.")
@with_limit
@with_yes
@on_a_store
def prune(place: Place, output: Output, older_than: float, limit: int | None, yes: bool) -> None:
    """Delete runs and machines that ended longer ago than that, with all that is recorded of them."""

    async def read(found: Store) -> int:
        before = await found.now() - older_than
        return sum([h.closed is not None and h.closed < before async for page in pages(found, None) for h in page])

    count = place.read(read)
    expected = count if limit is None else min(count, limit)
    if expected:
        ask(yes, f"Delete {expected} of what has ended in {place.shown}, for good?")

    async def write(found: Store) -> int:
        from flowlet.runtime.pruning import prune as prune_it

        return await prune_it(found, older_than, limit)

    pruned = place.write(write) if expected else 0
    if output.json:
        output.document({"store": place.shown, "pruned": pruned, "left": count - pruned})
    else:
        output.say(f"{pruned} deleted from {place.shown}")


@store.command("copy")
@click.argument("target", metavar="URL")
@with_yes
@on_a_store
def copy_(place: Place, output: Output, target: str, yes: bool) -> None:
    """Copy all history into another store, and compare it. Stop every Flowlet on both stores first.

    Cut off in the middle, it goes on where it was when it is called again.
    """
    place.read(_touch)
    shown = hide_password(target)
    if target.startswith("memory:"):
        raise click.UsageError("a store in memory is gone with this process; name one that stays")
    if _same_file(place, target) or target == place.url:
        raise click.UsageError(f"{shown} is the store itself; name another one")
    ask(yes, f"Copy all of {place.shown} to {text_of(shown)}?")
    import anyio

    from flowlet.app import Flowlet

    # As it is stored, whatever codec it was encoded with: a copy needs no key.
    flow = Flowlet(place.bare())

    async def main() -> Any:
        from flowlet.cli.progress import Progress

        with Progress(output) as progress:
            return await flow.copy_to(target, progress=progress.tell)

    report = anyio.run(main)
    if output.json:
        from msgspec.structs import asdict

        output.document({"from": place.shown, "to": shown} | asdict(report))
        return
    what = f"{report.runs} runs, {report.machines} machines and {report.definitions} definitions"
    output.say(f"{what} with {report.records} records are in both stores; {report.copied} were copied now")
    output.say(f"start on {shown} next; do not go on with {place.shown}")


def _same_file(place: Place, target: str) -> bool:
    """Tell whether a target is the file that is to be copied."""
    from flowlet.stores import sqlite_place

    own = getattr(place.bare(), "path", None)
    return (
        own is not None
        and target.startswith("sqlite:")
        and os.path.realpath(own) == os.path.realpath(sqlite_place(target)[0])
    )


async def _touch(found: Store) -> None:
    await found.scan(limit=1)
