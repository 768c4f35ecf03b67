"""``flowlet approvals``: what waits for decisions, and deciding.

Law: an approval chain's rules are code, so ``--app`` is needed. Who somebody is and what roles they have is for whoever
calls this to say, within what ``Flowlet(authorize=...)`` allows.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flowlet.cli.options import ask, on_a_store, with_watch, with_yes
from flowlet.cli.output import Column, Output, Table, text_of, time_text
from flowlet.cli.place import Place
from flowlet.cli.program import Group
from flowlet.cli.run_orders import head_of, read_json
from flowlet.cli.watching import Picture
from flowlet.cli.watching import watch as watch_it
from flowlet.store import Store

if TYPE_CHECKING:
    from flowlet.app.desk import Desk

F = TypeVar("F", bound=Callable[..., Any])

_COLUMNS = (
    Column("id"),
    Column("definition", shrinks=True),
    Column("level"),
    Column("roles", show=lambda names: ", ".join(names) or "-"),
    Column("people", shrinks=True, show=lambda names: ", ".join(names) or "-"),
    Column("requester"),
    Column("due", show=time_text),
    Column("subject", shrinks=True),
)
_ENTRY_COLUMNS = (
    Column("at", show=time_text),
    Column("what"),
    Column("level"),
    Column("by"),
    Column("comment", shrinks=True),
)


@click.group(cls=Group)
def approvals() -> None:
    """Decide what waits for decisions. Needs --app, since rules are code."""


def _desk(place: Place, work: Callable[[Desk], Awaitable[Any]], *, writes: bool) -> Any:
    if place.flow is None:
        raise click.UsageError("the rules of approval chains are code: say where it is, with --app module:flow")

    async def main(store: Store) -> Any:
        from flowlet.app.desk import Desk

        desk = Desk(store, place.flow)
        await desk.open()
        return await work(desk)

    return place.write(main) if writes else place.read(main)


@approvals.command()
@click.option("--role", help="Only what those with this role may decide.")
@click.option("--person", help="Only what this person can decide now.")
@with_watch
@on_a_store
def inbox(place: Place, output: Output, role: str | None, person: str | None, watch: float | None) -> None:
    """List what waits for decisions.

    JSON: a line for each, with id, definition, level, roles, people, requester, subject, since, due, escalated,
    required, decisions.
    """

    async def look(desk: Desk) -> Picture:
        import msgspec

        rows: list[dict[str, Any]] = []
        async for item in desk.inbox(role=role, person=person):
            row = msgspec.to_builtins(item, builtin_types=(bytes,))
            rows.append(row | {"subject": _shown(place, item.definition, row["subject"])})
        lines = Table(output, _COLUMNS).lines(rows) if rows else [f"nothing waits for a decision in {place.shown}"]
        return Picture({f"{row['id']} {row['level']}": row for row in rows}, lines)

    if watch is not None:
        _desk(place, lambda desk: watch_it(desk.store, output, watch, lambda: look(desk)), writes=False)
        return
    picture = _desk(place, look, writes=False)
    if output.json:
        for row in picture.things.values():
            output.line(row)
    elif picture.things:
        output.say("\n".join(picture.lines))
    else:
        output.note(picture.lines[0])


def _shown(place: Place, name: str, subject: Any) -> Any:
    """Return what is to be decided on, the first input of its chain, without what any version calls a secret."""
    from flowlet.core.secrets import redact
    from flowlet.runtime.opaque import hide_bytes

    assert place.flow is not None
    for (known, _), definition in place.flow.registry.definitions.items():
        tree = (definition.export().get("secrets") or {}).get("input") if known == name else None
        subject = redact([subject], tree)[0] if isinstance(tree, dict) else redact(subject, tree)
    return hide_bytes(subject)


def _deciding(command: F) -> F:
    """Give a command what a decision is made with."""
    for option in (
        click.option("--on-behalf-of", metavar="PERSON", help="Whose vote it is, if that is not their own."),
        click.option("--comment", default="", help="Kept with the decision."),
        click.option("--level", help="Not needed if there is just one on which they may decide."),
        click.option("--role", "roles", multiple=True, help="A role that they have; may be given several times."),
        click.option("--by", required=True, metavar="PERSON", help="Who decides."),
        click.argument("id"),
    ):
        command = option(command)
    return command


def _decide(place: Place, output: Output, id: str, yes: bool, word: str, options: dict[str, Any]) -> None:
    head = head_of(place, id)
    roles = options.pop("roles") or None
    ask(yes, f"{word.capitalize()} {text_of(id)} of {head.definition} as {text_of(options['by'])}?")

    async def work(desk: Desk) -> Any:
        return await getattr(desk, word)(id, roles=roles, **options)

    decision = _desk(place, work, writes=True)
    level = getattr(decision, "level", options["level"])
    _told(output, id, word, f"{options['by']} has decided: {word} {id}, level {level}", level=level, by=options["by"])


def _told(output: Output, id: str, word: str, done: str, **more: Any) -> None:
    after = "whichever process has its code goes on with it: one must be running"
    if output.json:
        output.document({"id": id, "order": word, "done": done, "next": after} | more)
    else:
        output.say(f"{text_of(done)}\n{after}")


@approvals.command()
@_deciding
@with_yes
@on_a_store
def approve(place: Place, output: Output, id: str, yes: bool, **options: Any) -> None:
    """Approve a level of an approval chain."""
    _decide(place, output, id, yes, "approve", options)


@approvals.command()
@_deciding
@with_yes
@on_a_store
def reject(place: Place, output: Output, id: str, yes: bool, **options: Any) -> None:
    """Reject a level of an approval chain."""
    _decide(place, output, id, yes, "reject", options)


@approvals.command()
@click.option("--to", required=True, metavar="PERSON", help="Who is to decide.")
@_deciding
@with_yes
@on_a_store
def delegate(place: Place, output: Output, id: str, yes: bool, **options: Any) -> None:
    """Have somebody else cast a vote."""
    _decide(place, output, id, yes, "delegate", options)


@approvals.command()
@click.argument("id")
@click.option("--by", required=True, metavar="PERSON", help="The requester.")
@click.option("--comment", default="", help="Kept with it.")
@with_yes
@on_a_store
def withdraw(place: Place, output: Output, id: str, by: str, comment: str, yes: bool) -> None:
    """Take a request back."""
    head = head_of(place, id)
    ask(yes, f"Withdraw {text_of(id)} of {head.definition} as {text_of(by)}?")
    _desk(place, functools.partial(_withdraw, id=id, by=by, comment=comment), writes=True)
    _told(output, id, "withdraw", f"{by} has withdrawn {id}", by=by)


async def _withdraw(desk: Desk, *, id: str, by: str, comment: str) -> None:
    await desk.withdraw(id, by=by, comment=comment)


@approvals.command()
@click.argument("id")
@click.argument("subject", metavar="JSON")
@click.option("--by", required=True, metavar="PERSON", help="The requester.")
@click.option("--comment", default="", help="Kept with it.")
@with_yes
@on_a_store
def resubmit(place: Place, output: Output, id: str, subject: str, by: str, comment: str, yes: bool) -> None:
    """Change what is to be decided on; the chain begins anew."""
    value, head = read_json(subject, "JSON"), head_of(place, id)
    ask(yes, f"Change what is to be decided on in {text_of(id)} of {head.definition} as {text_of(by)}?")

    async def work(desk: Desk) -> None:
        await desk.resubmit(id, value, by=by, comment=comment)

    _desk(place, work, writes=True)
    _told(output, id, "resubmit", f"{by} has resubmitted {id}", by=by)


@approvals.command()
@click.argument("id")
@on_a_store
def audit(place: Place, output: Output, id: str) -> None:
    """Print what has happened in an approval chain.

    JSON: a line for each entry, with the fields of flowlet.approval.AuditEntry.
    """
    head_of(place, id)

    async def work(desk: Desk) -> None:
        import msgspec

        rows = [msgspec.to_builtins(entry, builtin_types=()) async for entry in desk.audit(id)]
        if output.json:
            for row in rows:
                output.line(row)
        else:
            Table(output, _ENTRY_COLUMNS).add(rows)

    _desk(place, work, writes=False)
