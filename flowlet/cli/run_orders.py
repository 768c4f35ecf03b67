"""Telling runs what to do: to end, to go on, to begin anew.

Law: it is asked first, done through `flowlet.runtime.handle.Handle` by a process that executes nothing, and said
afterwards what comes next.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click
import msgspec

from flowlet.cli.options import ask, on_a_store, with_yes
from flowlet.cli.output import Output, argument, text_of
from flowlet.cli.place import Place
from flowlet.cli.run_reading import not_found
from flowlet.errors import RunError
from flowlet.store import Head, Store

if TYPE_CHECKING:
    from flowlet.runtime.handle import Handle


def head_of(place: Place, id: str) -> Head:
    """Return a run's head.

    Raises:
        RunNotFound: there is no such run.
    """

    async def read(store: Store) -> Head:
        stored = await store.load(id, limit=0)
        if stored is None or stored.head.kind != "run":
            raise await not_found(store, id, "run", stored)
        return stored.head

    return place.read(read)


def give(place: Place, id: str, order: Callable[[Handle[Any]], Awaitable[Any]]) -> Any:
    """Give an order to a run; return what it gives back."""

    async def write(store: Store) -> Any:
        from flowlet.runtime.handle import Handle
        from flowlet.runtime.reading import Reader

        reader = Reader(store, place.find)
        await reader.set_clock()
        return await order(Handle(id, reader))

    return place.write(write)


def tell(output: Output, head: Head, order: str, done: str, **more: Any) -> None:
    """Say what was done, and what comes next."""
    if head.owner is not None:
        after = f"worker {head.owner} has the run, and sees it at once"
    else:
        after = f"whichever process has the code of {head.definition!r} goes on with it: one must be running"
    if output.json:
        output.document({"id": head.id, "order": order, "was": head.status, "done": done, "next": after} | more)
    else:
        output.say(f"{text_of(done)}\n{text_of(after)}")


@click.command()
@click.argument("id")
@with_yes
@on_a_store
def cancel(place: Place, output: Output, id: str, yes: bool) -> None:
    """Have a run undo what it has done, and end."""
    head = head_of(place, id)
    ask(yes, f"Cancel run {text_of(id)} of {head.definition}, which is {head.status}, and undo what it has done?")
    give(place, id, lambda handle: handle.cancel())
    tell(output, head, "cancel", f"run {id} was told to end and undo what it has done")


@click.command()
@click.argument("id")
@with_yes
@on_a_store
def resume(place: Place, output: Output, id: str, yes: bool) -> None:
    """Let a run go on that waits for somebody: the cause has been mended."""
    head = head_of(place, id)
    ask(yes, f"Let run {text_of(id)} of {head.definition}, which is {head.status}, go on?")
    give(place, id, lambda handle: handle.resume())
    tell(output, head, "resume", f"run {id} may go on")


@click.command()
@click.argument("id")
@with_yes
@on_a_store
def retry(place: Place, output: Output, id: str, yes: bool) -> None:
    """Try what has failed again: a step behind the pivot, or compensations."""
    head = head_of(place, id)
    if head.status not in ("needs_attention", "compensation_failed"):
        hint = (
            f"flowlet runs fork --from STEP {argument(id)} begins it anew there"
            if head.closed is not None
            else _other(head)
        )
        raise RunError(f"run {id!r} is {head.status!r}, and has no step to try again; {hint}")
    ask(yes, f"Try what has failed in run {text_of(id)} of {head.definition} again?")
    give(place, id, lambda handle: handle.resume())
    tell(output, head, "retry", f"run {id} tries again what has failed")


def _other(head: Head) -> str:
    if head.status == "parked":
        return f"flowlet runs resume {argument(head.id)} lets it go on"
    return "it goes on by itself"


@click.command()
@click.argument("id")
@click.argument("step")
@click.option("--result", metavar="JSON", help="What the step is to have returned; null by default.")
@with_yes
@on_a_store
def skip(place: Place, output: Output, id: str, step: str, result: str | None, yes: bool) -> None:
    """Let a run go on without STEP, because somebody has seen to it."""
    value, head = read_json(result, "--result"), head_of(place, id)
    ask(yes, f"Let run {text_of(id)} of {head.definition} go on as if step {text_of(step)} had been done?")
    give(place, id, lambda handle: handle.skip(step, value))
    tell(output, head, "skip", f"run {id} goes on without step {step}")


@click.command()
@click.argument("id")
@with_yes
@on_a_store
def compensate(place: Place, output: Output, id: str, yes: bool) -> None:
    """Have a run that waits for somebody undo what it has done, a pivot included."""
    head = head_of(place, id)
    ask(yes, f"Undo all that run {text_of(id)} of {head.definition}, which is {head.status}, has done?")
    give(place, id, lambda handle: handle.compensate())
    tell(output, head, "compensate", f"run {id} undoes what it has done")


@click.command()
@click.argument("id")
@click.argument("topic")
@click.argument("payload", default="null")
@click.option("--message-id", help="A second signal with the same one is dropped.")
@with_yes
@on_a_store
def signal(place: Place, output: Output, id: str, topic: str, payload: str, message_id: str | None, yes: bool) -> None:
    """Send a run a signal about TOPIC; PAYLOAD is JSON, or - for what is on the standard input.

    Without --app nobody looks whether the run takes this topic, and a payload of this type.
    """
    value, head = read_json(sys.stdin.read() if payload == "-" else payload, "PAYLOAD"), head_of(place, id)
    ask(yes, f"Send run {text_of(id)} of {head.definition} a signal about {text_of(topic)}?")
    give(place, id, lambda handle: handle.send(topic, value, message_id=message_id))
    tell(output, head, "signal", f"the signal about {topic} is in the inbox of run {id}", topic=topic)


@click.command()
@click.argument("id")
@click.option("--from", "from_step", required=True, metavar="STEP", help="The first step that is executed anew.")
@click.option("--id", "new_id", help="Of the new run; one is made up by default.")
@with_yes
@on_a_store
def fork(place: Place, output: Output, id: str, from_step: str, new_id: str | None, yes: bool) -> None:
    """Start a run that has done what this one had done before a step, and goes on from there."""
    head = head_of(place, id)
    ask(yes, f"Start a new run of {head.definition} with what run {text_of(id)} had done before {text_of(from_step)}?")
    made = give(place, id, lambda handle: handle.fork(from_step=from_step, id=new_id))
    new = msgspec.structs.replace(head, owner=None)
    tell(output, new, "fork", f"run {made.id} was started from step {from_step} of run {id}", new_id=made.id)


def read_json(text: str | None, what: str) -> Any:
    """Return what a user has given as JSON.

    Raises:
        click.UsageError: it is none.
    """
    try:
        return None if text is None else msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise click.UsageError(f"""{what} is no JSON: {error}; write a text in quotes, as in '"paid"'""") from None
