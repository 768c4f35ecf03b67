"""Looking at runs: what runs there are, where one stands, and its records.

Law: a list reads heads and nothing else; nothing here changes anything.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import click

from flowlet.cli.listing import list_heads, pages
from flowlet.cli.options import on_a_store, with_limit, with_watch
from flowlet.cli.output import Column, Output, Table, argument, seconds_text, time_of, time_text
from flowlet.cli.place import Place
from flowlet.cli.program import unknown
from flowlet.cli.watching import Picture
from flowlet.cli.watching import watch as watch_it
from flowlet.errors import RunNotFound
from flowlet.store import Head, Store, Stored

if TYPE_CHECKING:
    from flowlet.runtime.run_view import RunView

_OPEN = ("pending", "running", "waiting", "compensating", "needs_attention", "compensation_failed", "parked")
STATUSES = (*_OPEN, "completed", "failed", "cancelled", "compensated")

_TOGETHER = 200
"""Records that are shown in columns of one width."""

_MOST_LOOKED_THROUGH = 20_000
"""Heads among which an id is looked for that is nearly the one asked for."""

COLUMNS = (
    Column("id"),
    Column("definition", shrinks=True),
    Column("version", leaves=True),
    Column("status"),
    Column("created", leaves=True, show=time_text),
    Column("updated", leaves=True, show=time_text),
    Column("owner", shrinks=True, leaves=True),
)


def row_of(head: Head) -> dict[str, Any]:
    """Return a run of a list."""
    return {
        "id": head.id,
        "definition": head.definition,
        "version": head.definition_version,
        "status": head.status,
        "created": time_of(head.created),
        "updated": time_of(head.updated),
        "closed": time_of(head.closed),
        "wake": time_of(head.wake) if head.wake else None,
        "owner": head.owner,
        "records": head.version,
    }


def check_statuses(context: click.Context, parameter: click.Parameter, words: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse a status that no run can have."""
    found = tuple(word for several in words for word in several.split(","))
    for word in found:
        if word not in STATUSES:
            raise click.BadParameter(unknown("status", word, STATUSES))
    return found


@click.command("list")
@click.option("--definition", help="Only runs of the definition of this name.")
@click.option(
    "--status",
    multiple=True,
    callback=check_statuses,
    help="Only runs that stand at this status; may be given several times, or as a,b.",
)
@click.option("--open", "only_open", is_flag=True, help="Only runs that have not ended.")
@with_limit
@with_watch
@on_a_store
def list_runs(
    place: Place,
    output: Output,
    definition: str | None,
    status: tuple[str, ...],
    only_open: bool,
    limit: int | None,
    watch: float | None,
) -> None:
    """List runs in the order in which they were started.

    With --watch: those that have not ended, unless --status says otherwise.

    JSON: a line for each run, with id, definition, version, status, created, updated, closed, wake, owner, records.
    """
    if only_open or (watch is not None and not status):
        status = tuple(word for word in _OPEN if not status or word in status)
    condition = {"kind": "run", "definition": definition, "status": status or None}

    list_heads(
        place,
        output,
        condition,
        limit=limit,
        watch=watch,
        columns=COLUMNS,
        row_of=row_of,
        why_none=lambda store: _why_none(store, place, definition, bool(status)),
    )


async def _why_none(store: Store, place: Place, definition: str | None, has_status: bool) -> str:
    """Say why a list has nothing in it, and what to do."""
    if limit_to := [w for w, given in (("of this definition", definition), ("with this status", has_status)) if given]:
        names = {h.definition async for page in pages(store, _MOST_LOOKED_THROUGH, kind="run") for h in page}
        text = f"no run {' and '.join(limit_to)} in {place.shown}"
        if definition and definition not in names and names:
            return f"{text}; {unknown('definition', definition, sorted(names))}"
        return text
    return f"no run in {place.shown}; start one with `await flow.start(...)` on this store, or look at the URL"


@click.command()
@click.argument("id")
@with_watch
@on_a_store
def show(place: Place, output: Output, id: str, watch: float | None) -> None:
    """Show where a run stands: its input, steps, signals, result, and what it waits for.

    JSON: one document, the list's fields and parent, deadline, forked_from, input, result, error, reason, asked,
    steps (name, status, attempts, seconds, value, error), signals (number, topic, message_id, bytes).
    With --watch it ends when the run has ended.
    """

    async def read(store: Store) -> None:
        async def look() -> Picture:
            view = await find_run(store, id)
            lines = describe(output, view)
            return Picture({id: document_of(view)}, lines, view.head.closed is not None)

        if watch is not None:
            await watch_it(store, output, watch, look)
            return
        picture = await look()
        if output.json:
            output.document(picture.things[id])
        else:
            output.say("\n".join(picture.lines))

    place.read(read)


async def find_run(store: Store, id: str) -> RunView:
    """Read a run.

    Raises:
        RunNotFound: there is none; the message has ids like it.
    """
    from flowlet.runtime.exports import Exports
    from flowlet.runtime.reading import Reader
    from flowlet.runtime.run_view import view_run

    reader = Reader(store)
    stored = await store.load(id, limit=0)
    if stored is None or stored.head.kind != "run":
        raise await not_found(store, id, "run", stored)
    stored = await reader.load(id)
    records = [reader.decode(id, number, data) for number, data in enumerate(stored.records, 1)]
    exported = await Exports(store).find(stored.head.definition, stored.head.definition_version)
    return view_run(stored, records, exported)


async def not_found(store: Store, id: str, kind: str, other: Stored | None) -> RunNotFound:
    """Return the error of an id that nothing of this kind has, but perhaps something else."""
    if other is not None:
        head = other.head
        group = {"run": "runs", "machine": "machines", "schedule": "schedules"}.get(head.kind)
        where = f"; see `flowlet {group}`" if group else ""
        return RunNotFound(f"{id!r} is a {head.kind} of {head.definition!r}, not a {kind}{where}", id)
    ids = [h.id async for page in pages(store, _MOST_LOOKED_THROUGH, kind=kind) for h in page]
    if not ids:
        return RunNotFound(f"there is no {kind} {id!r}: this store has no {kind}s at all", id)
    near = [*(known for known in ids if known.startswith(id)), *difflib.get_close_matches(id, ids, n=3, cutoff=0.5)]
    near = list(dict.fromkeys(near))[:5]
    hint = f"nearest are {', '.join(map(repr, near))}" if near else f"`flowlet {kind}s list` lists those there are"
    return RunNotFound(f"there is no {kind} {id!r} in this store; {hint}", id)


def document_of(view: RunView) -> dict[str, Any]:
    """Return a run as ``--json`` has it."""
    from msgspec.structs import asdict

    return row_of(view.head) | {
        "parent": view.parent,
        "deadline": time_of(view.deadline),
        "forked_from": list(view.forked_from),
        "input": view.input,
        "result": view.result,
        "error": view.error,
        "reason": view.reason,
        "asked": list(view.asked),
        "steps": [asdict(step) for step in view.steps],
        "signals": [asdict(signal) for signal in view.signals],
    }


_STEP_COLUMNS = (
    Column("name"),
    Column("status"),
    Column("attempts", leaves=True),
    Column("seconds", show=seconds_text),
    Column("value", shrinks=True),
    Column("error", shrinks=True),
)


def describe(output: Output, view: RunView) -> list[str]:
    """Return a run as lines for people."""
    from msgspec.structs import asdict

    from flowlet.cli.output import paint, text_of

    head = view.head
    facts = [
        ("run", head.id),
        ("definition", f"{head.definition} version {head.definition_version}"),
        ("status", head.status),
        ("created", time_text(time_of(head.created))),
        ("updated", time_text(time_of(head.updated))),
        ("ended", None if head.closed is None else time_text(time_of(head.closed))),
        ("waits until", time_text(time_of(head.wake)) if head.wake else None),
        ("deadline", None if view.deadline is None else time_text(time_of(view.deadline))),
        ("executed by", head.owner),
        ("parent", view.parent),
        ("forked from", ", ".join(view.forked_from) or None),
        ("input", view.input),
        ("result", view.result),
        ("error", view.error),
        ("reason", view.reason),
    ]
    lines = [f"{name.ljust(12)}{paint(text_of(value))}" for name, value in facts if value is not None]
    if view.steps:
        used = [c for c in _STEP_COLUMNS if c.key != "error" or any(step.error for step in view.steps)]
        lines += ["", *Table(output, used).lines([asdict(step) for step in view.steps])]
    if view.signals:
        lines += ["", *(f"signal {s.number} about {text_of(s.topic)} has not been taken yet" for s in view.signals)]
    if not view.is_known:
        lines += ["", "its definition is not in this store, so that nobody can tell what is secret: values are masked"]
    advice = advise(view)
    return [*lines, "", advice] if advice else lines


def advise(view: RunView) -> str | None:
    """Say what somebody can do about a run, if it needs somebody."""
    id, step = argument(view.head.id), argument(view.asked[0]) if view.asked else "STEP"
    match view.head.status:
        case "parked":
            return f"mend the cause, then: flowlet runs resume {id}   (or undo it: flowlet runs compensate {id})"
        case "needs_attention":
            return (
                f"flowlet runs retry {id} tries the step again; flowlet runs skip {id} {step} goes on without it; "
                f"flowlet runs compensate {id} undoes the run"
            )
        case "compensation_failed":
            return f"flowlet runs retry {id} tries it again; flowlet runs skip {id} {step} says it was undone by hand"
        case _:
            return None


_RECORD_COLUMNS = (
    Column("seq"),
    Column("at", leaves=True, show=time_text),
    Column("kind"),
    Column("step"),
    Column("attempt", leaves=True),
    Column("seconds", leaves=True, show=seconds_text),
    Column("error", shrinks=True),
)


@click.command()
@click.argument("id")
@click.option("--after", type=click.IntRange(min=0), default=0, help="Only records behind this number.")
@with_limit
@click.option("--watch", is_flag=True, help="Go on as records are stored, until the run has ended.")
@on_a_store
def history(place: Place, output: Output, id: str, after: int, limit: int | None, watch: bool) -> None:
    """Print a run's records in order.

    JSON: a line for each, with seq, at, kind, step, attempt, seconds, error.
    """

    async def read(store: Store) -> None:
        from msgspec.structs import asdict

        from flowlet.runtime.handle import Handle
        from flowlet.runtime.reading import Reader

        stored = await store.load(id, limit=0)
        if stored is None or stored.head.kind != "run":
            raise await not_found(store, id, "run", stored)
        handle: Handle[Any] = Handle(id, Reader(store))
        table, left = Table(output, _RECORD_COLUMNS), limit
        rows: list[dict[str, Any]] = []
        upto = stored.head.version
        async for record in handle.events() if watch else handle.history():
            if left == 0:
                break
            if record.seq <= after:
                continue
            left = None if left is None else left - 1
            row = asdict(record) | {"at": time_of(record.at)}
            if output.json:
                output.line(row)
                output.flush()
                continue
            rows.append(row)
            if len(rows) == _TOGETHER or record.seq >= upto:
                table.add(rows)
                rows.clear()
        if rows:
            table.add(rows)

    place.read(read)
