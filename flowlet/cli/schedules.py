"""``flowlet schedules``: looking at schedules, and ordering something of one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click

from flowlet.cli.options import ask, on_a_store, with_watch, with_yes
from flowlet.cli.output import Column, Output, Table, paint, text_of, time_text
from flowlet.cli.place import Place
from flowlet.cli.program import Group
from flowlet.cli.watching import Picture
from flowlet.cli.watching import watch as watch_it
from flowlet.errors import RunNotFound
from flowlet.store import Store

if TYPE_CHECKING:
    from flowlet.app.desk import Desk
    from flowlet.runtime.schedule_handle import Schedule

_COLUMNS = (
    Column("name"),
    Column("status"),
    Column("definition", shrinks=True),
    Column("when", shrinks=True),
    Column("next", show=time_text),
    Column("last", leaves=True, show=time_text),
    Column("last_run", shrinks=True, leaves=True),
)


@click.group(cls=Group)
def schedules() -> None:
    """Look at schedules; pause, resume or trigger them."""


def _desk(place: Place, work: Callable[[Desk], Awaitable[Any]], *, writes: bool = False) -> Any:
    async def main(store: Store) -> Any:
        from flowlet.app.desk import Desk

        desk = Desk(store, place.flow)
        await desk.open()
        return await work(desk)

    return place.write(main) if writes else place.read(main)


async def _rows(desk: Desk) -> list[dict[str, Any]]:
    import msgspec

    rows: list[dict[str, Any]] = []
    async for schedule in desk.schedules():
        row = msgspec.to_builtins(schedule)
        del row["included"]  # of this process, which has no code
        rows.append(row | {"status": "paused" if schedule.paused else "active"})
    return rows


@schedules.command("list")
@with_watch
@on_a_store
def list_schedules(place: Place, output: Output, watch: float | None) -> None:
    """List schedules in the order in which they were put up.

    JSON: a line for each, with name, status, definition, version, when, next, last, last_run, paused, missed, overlap.
    """

    async def look(desk: Desk) -> Picture:
        rows = await _rows(desk)
        lines = Table(output, _COLUMNS).lines(rows) if rows else ["no schedules"]
        return Picture({row["name"]: row for row in rows}, lines)

    if watch is not None:
        _desk(place, lambda desk: watch_it(desk.store, output, watch, lambda: look(desk)))
        return
    picture = _desk(place, look)
    if output.json:
        for row in picture.things.values():
            output.line(row)
    elif picture.things:
        output.say("\n".join(picture.lines))
    else:
        output.note(f"no schedule in {place.shown}; @flow.every(...) makes one when its Flowlet is entered")


@schedules.command()
@click.argument("name")
@click.option("--count", type=click.IntRange(min=1), default=5, help="So many of the next ticks (5).")
@with_watch
@on_a_store
def show(place: Place, output: Output, name: str, count: int, watch: float | None) -> None:
    """Show how a schedule stands, and its next ticks.

    JSON: one document, the list's fields and ticks.
    """

    async def look(desk: Desk) -> Picture:
        import msgspec

        row = await _find(desk, name)
        row["ticks"] = msgspec.to_builtins(await desk.schedule(name).ticks(count))
        facts = [(key, time_text(row[key]) if key in ("next", "last") else row[key]) for key in row]
        lines = [f"{key.ljust(12)}{paint(text_of(value))}" for key, value in facts if key not in ("paused", "ticks")]
        return Picture({name: row}, [*lines, *(f"{'tick'.ljust(12)}{time_text(tick)}" for tick in row["ticks"])])

    if watch is not None:
        _desk(place, lambda desk: watch_it(desk.store, output, watch, lambda: look(desk)))
        return
    picture = _desk(place, look)
    if output.json:
        output.document(picture.things[name])
    else:
        output.say("\n".join(picture.lines))


async def _find(desk: Desk, name: str) -> dict[str, Any]:
    from flowlet.core.faults import nearest

    rows = {row["name"]: row for row in await _rows(desk)}
    if name not in rows:
        known = f"there are {', '.join(rows)}" if rows else "there are none"
        raise RunNotFound(f"there is no schedule {name!r} in this store{nearest(name, rows)}; {known}", name)
    return rows[name]


def _order(
    place: Place,
    output: Output,
    name: str,
    yes: bool,
    word: str,
    after: str,
    order: Callable[[Schedule], Awaitable[Any]],
) -> None:
    _desk(place, lambda desk: _find(desk, name))
    ask(yes, f"{word.capitalize()} schedule {text_of(name)}?")
    given = _desk(place, lambda desk: order(desk.schedule(name)), writes=True)
    run = getattr(given, "id", None)
    done = f"schedule {name}: {word}"
    if output.json:
        output.document({"name": name, "order": word, "done": done, "next": after, "run": run})
    else:
        output.say(f"{text_of(done)}{'' if run is None else f', run {run}'}\n{after}")


@schedules.command()
@click.argument("name")
@with_yes
@on_a_store
def pause(place: Place, output: Output, name: str, yes: bool) -> None:
    """Fire no tick until it is resumed."""
    _order(place, output, name, yes, "pause", "no tick is fired until it is resumed", lambda s: s.pause())


@schedules.command()
@click.argument("name")
@with_yes
@on_a_store
def resume(place: Place, output: Output, name: str, yes: bool) -> None:
    """Go on with the first tick from now."""
    _order(place, output, name, yes, "resume", "it goes on with the first tick from now", lambda s: s.resume())


@schedules.command()
@click.argument("name")
@with_yes
@on_a_store
def remove(place: Place, output: Output, name: str, yes: bool) -> None:
    """Take a schedule off the list that is in no code any more."""
    after = "it comes back when a Flowlet whose code has it is entered"
    _order(place, output, name, yes, "remove", after, lambda s: s.remove())


@schedules.command()
@click.argument("name")
@click.option("--id", "run_id", help="Of the run; one is made up by default.")
@with_yes
@on_a_store
def trigger(place: Place, output: Output, name: str, run_id: str | None, yes: bool) -> None:
    """Start a run now, beside the ticks. Needs --app, for the inputs."""
    if place.flow is None:
        raise click.UsageError("what a schedule starts is code: say where it is, with --app module:flow")
    after = "whichever process has its code executes the run: one must be running"
    _order(place, output, name, yes, "trigger", after, lambda s: s.trigger(id=run_id))
