"""``flowlet verify``: every history of a store, judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import click

from flowlet.cli.options import on_a_store
from flowlet.cli.output import Output, text_of
from flowlet.cli.place import Place
from flowlet.store import Store

if TYPE_CHECKING:
    from flowlet.runtime.verifying import Verdict


@click.command()
@click.argument("ids", nargs=-1, metavar="[ID]...")
@on_a_store
def verify(place: Place, output: Output, ids: tuple[str, ...]) -> int:
    """Judge every history in a store, or those with these ids: readable, complete, in order, and legal.

    With --app also against the definitions. Exit code 1 if something is wrong.

    JSON: a line for each problem (id, kind, problem), and at the end one with the sums.
    """

    async def read(store: Store) -> int:
        from flowlet.runtime.verifying import Verifier

        flow = place.flow
        find_machine = None if flow is None else flow.registry.find_machine
        verifier = Verifier(store, None if flow is None else place.find, find_machine)
        sums: Counter[str] = Counter()
        async for verdict in _verdicts(store, verifier, ids):
            _count(sums, verdict)
            for problem in verdict.problems:
                if output.json:
                    output.line({"id": verdict.head.id, "kind": verdict.head.kind, "problem": problem})
                else:
                    output.say(text_of(problem))
                output.flush()
        _sum_up(output, sums, place)
        return 1 if sums["problems"] else 0

    return place.read(read)


async def _verdicts(store: Store, verifier: Any, ids: tuple[str, ...]) -> AsyncIterator[Verdict]:
    if not ids:
        async for verdict in verifier.judge_all():
            yield verdict
        return
    from flowlet.cli.run_reading import not_found

    for id in ids:
        stored = await store.load(id, limit=0)
        if stored is None:
            raise await not_found(store, id, "run", None)
        yield await verifier.judge(stored.head)


def _count(sums: Counter[str], verdict: Verdict) -> None:
    sums[f"{verdict.head.kind}s"] += 1
    sums["entities"] += 1
    sums["records"] += verdict.records
    sums["problems"] += len(verdict.problems)
    sums["judged_by_code"] += verdict.is_coded


def _sum_up(output: Output, sums: Counter[str], place: Place) -> None:
    if output.json:
        output.line(dict(sums) | {"problems": sums["problems"]})
        return
    own = ("entities", "records", "problems", "judged_by_code")
    parts = ", ".join(f"{count} {name}" for name, count in sums.items() if name not in own) or "nothing"
    found = f"{sums['problems']} problems" if sums["problems"] else "no problems"
    output.say(f"{parts}; {sums['records']} records: {found}")
    if place.flow is None:
        output.note("judged without code; --app module:flow judges against the definitions as well")
    else:
        output.note(f"{sums['judged_by_code']} were judged against the definitions of --app as well")
