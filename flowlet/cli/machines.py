"""``flowlet machines``: what machines there are, how one stands, and its history.

Law: it reads and changes nothing; an event is a matter of the machine's code.
"""

from __future__ import annotations

from typing import Any

import click

from flowlet.cli.listing import list_heads, pages
from flowlet.cli.options import on_a_store, with_limit, with_watch
from flowlet.cli.output import Column, Output, Table, text_of, time_of, time_text
from flowlet.cli.place import Place
from flowlet.cli.program import Group, unknown
from flowlet.cli.run_reading import not_found
from flowlet.cli.watching import Picture
from flowlet.cli.watching import watch as watch_it
from flowlet.store import Head, Store

_COLUMNS = (
    Column("id"),
    Column("definition", shrinks=True),
    Column("state", shrinks=True),
    Column("records", leaves=True),
    Column("created", leaves=True, show=time_text),
    Column("updated", leaves=True, show=time_text),
)
_RECORD_COLUMNS = (
    Column("seq"),
    Column("at", show=time_text),
    Column("kind"),
    Column("event"),
    Column("source", shrinks=True),
    Column("target", shrinks=True),
    Column("actor", shrinks=True, leaves=True),
    Column("key", shrinks=True, leaves=True),
)


@click.group(cls=Group)
def machines() -> None:
    """Look at machines and their histories."""


def row_of(head: Head) -> dict[str, Any]:
    """Return a machine of a list."""
    return {
        "id": head.id,
        "definition": head.definition,
        "version": head.definition_version,
        "state": head.state,
        "created": time_of(head.created),
        "updated": time_of(head.updated),
        "closed": time_of(head.closed),
        "wake": time_of(head.wake) if head.wake else None,
        "owner": head.owner,
        "records": head.version,
    }


@machines.command("list")
@click.option("--definition", help="Only machines of the class of this name.")
@click.option("--state", help="Only machines that are in this state.")
@with_limit
@with_watch
@on_a_store
def list_machines(
    place: Place, output: Output, definition: str | None, state: str | None, limit: int | None, watch: float | None
) -> None:
    """List machines in the order of their creation.

    JSON: a line for each, with id, definition, version, state, created, updated, closed, wake, owner, records.
    """
    condition = {"kind": "machine", "definition": definition, "state": state}

    list_heads(
        place,
        output,
        condition,
        limit=limit,
        watch=watch,
        columns=_COLUMNS,
        row_of=row_of,
        why_none=lambda store: _why_none(store, place, condition),
    )


async def _why_none(store: Store, place: Place, condition: dict[str, Any]) -> str:
    heads = [head async for page in pages(store, 20_000, kind="machine") for head in page]
    name, state = condition["definition"], condition["state"]
    names = sorted({head.definition for head in heads})
    if name is not None and names and name not in names:
        return unknown("definition", name, names)
    states = sorted({head.state for head in heads if name in (None, head.definition)})
    if state is not None and states:
        return f"no machine is in this state; {unknown('state', state, states)}"
    return f"no machine in {place.shown}; make one with `await flow.create(...)` on this store, or look at the URL"


async def find_head(store: Store, id: str) -> Head:
    """Return a machine's head.

    Raises:
        RunNotFound: there is none; the message has ids like it.
    """
    stored = await store.load(id, limit=0)
    if stored is None or stored.head.kind != "machine":
        raise await not_found(store, id, "machine", stored)
    return stored.head


@machines.command()
@click.argument("id")
@with_watch
@on_a_store
def show(place: Place, output: Output, id: str, watch: float | None) -> None:
    """Show how a machine stands: its state, data and timers.

    JSON: one document, the list's fields and data, timers (key, due), raised.
    """

    async def read(store: Store) -> None:
        from flowlet.runtime.exports import Exports
        from flowlet.runtime.machine_view import view_machine

        exports = Exports(store)

        async def look() -> Picture:
            await find_head(store, id)
            stored = await store.load(id, limit=0)
            assert stored is not None
            head = stored.head
            view = await view_machine(store, stored, await exports.all_of(head.definition))
            timers = [{"key": timer.key, "due": time_of(timer.due)} for timer in view.timers]
            thing = row_of(head) | {"data": view.data, "timers": timers, "raised": list(view.raised)}
            facts = [
                ("machine", id),
                ("definition", f"{head.definition} version {head.definition_version}"),
                ("state", head.state),
                ("records", str(head.version)),
                ("created", time_text(thing["created"])),
                ("updated", time_text(thing["updated"])),
                ("ended", None if head.closed is None else time_text(thing["closed"])),
                ("to be handled", ", ".join(view.raised) or None),
                *((f"data {name}", value) for name, value in view.data.items()),
                *(("timer", f"{timer['key']} at {time_text(timer['due'])}") for timer in timers),
            ]
            shown = [(name, text_of(value)) for name, value in facts if value is not None or name.startswith("data ")]
            wide = max(len(name) for name, _ in shown)
            lines = [f"{text_of(name).ljust(wide)}  {value}" for name, value in shown]
            if not view.is_known:
                lines.append("its definition is not in this store: nobody can tell what is secret, so data is masked")
            return Picture({id: thing}, lines, head.closed is not None)

        if watch is not None:
            await watch_it(store, output, watch, look)
            return
        picture = await look()
        if output.json:
            output.document(picture.things[id])
        else:
            output.say("\n".join(picture.lines))

    place.read(read)


@machines.command()
@click.argument("id")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Only records behind this number.")
@with_limit
@on_a_store
def history(place: Place, output: Output, id: str, after: int, limit: int | None) -> None:
    """Print what has happened to a machine, in order.

    JSON: a line for each record, with seq, at, kind (created, transition, settled), event, source, target, actor, key.
    """

    async def read(store: Store) -> None:
        from msgspec.structs import asdict

        from flowlet.runtime.machine_view import machine_records, view_record

        head = await find_head(store, id)
        table = Table(output, _RECORD_COLUMNS)
        rows: list[dict[str, Any]] = []
        upto = head.version if limit is None else min(head.version, after + limit)
        async for seq, record in machine_records(store, head, after):
            if seq > upto:
                break
            row = asdict(view_record(seq, record)) | {"at": time_of(record.at)}
            if output.json:
                output.line(row)
                continue
            rows.append(row)
            if len(rows) == 200:
                table.add(rows)
                rows.clear()
        if rows:
            table.add(rows)

    place.read(read)
