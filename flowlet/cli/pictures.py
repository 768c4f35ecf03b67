"""``flowlet diagram``: a definition as text or as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flowlet.cli.options import STORE
from flowlet.cli.place import Place, load_thing
from flowlet.cli.program import unknown
from flowlet.errors import FlowletError

if TYPE_CHECKING:
    from flowlet.store import Store

_FORMATS = ("mermaid", "dot", "svg")


@click.command()
@click.argument("what", metavar="MODULE:NAME")
@click.option("--format", "form", type=click.Choice(_FORMATS), help="mermaid by default, or what --output ends with.")
@click.option("--active", multiple=True, metavar="NAME", help="A state, step or node to highlight.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), help="Write to this file.")
@click.option("--store", metavar="URL", help=f"Draw the definition NAME, or NAME:VERSION, that is stored. {STORE}")
def diagram(what: str, form: str | None, active: tuple[str, ...], output: Path | None, store: str | None) -> None:
    """Draw an assembled class, function or graph; with --store, a stored definition, without its code.

    SVG needs Graphviz (the program dot).
    """
    from flowlet.diagram import diagram as draw

    thing = (
        load_thing(what, "diagram") if store is None and ":" in what else stored_definition(Place(store, None), what)
    )
    picture = draw(thing, active=list(active) or None)
    if form is None:
        form = {".dot": "dot", ".gv": "dot", ".svg": "svg"}.get("" if output is None else output.suffix, "mermaid")
    text = picture.svg() if form == "svg" else getattr(picture, form)
    if output is None:
        click.echo(text, nl=not text.endswith("\n"))
        return
    try:
        output.write_text(text, encoding="utf-8")
    except OSError as error:
        raise click.FileError(str(output), str(error)) from error
    click.echo(f"{output}: {form} of {picture.name}", err=True)


def stored_definition(place: Place, what: str) -> dict[str, Any]:
    """Return a definition that a store keeps, the latest version if none is named.

    Raises:
        FlowletError: there is none.
    """
    from flowlet.runtime.exports import Exports

    name, _, version = what.partition(":")

    async def read(store: Store) -> dict[str, Any]:
        versions: list[str] = []
        names: dict[str, None] = {}
        after = 0
        while heads := await store.scan(kind="definition", after=after):
            names |= {head.definition: None for head in heads}
            versions += [h.definition_version for h in heads if h.definition == name]
            after = heads[-1].order
        if not versions:
            raise FlowletError(f"{place.shown}: {unknown('definition', name, list(names))}" if names else _none(place))
        if version and version not in versions:
            raise FlowletError(f"{name!r} has no version {version} here; there are {', '.join(versions)}")
        found = await Exports(store).find(name, version or max(versions, key=_order))
        assert found is not None
        return found

    return place.read(read)


def _none(place: Place) -> str:
    return f"{place.shown} has no definitions: no Flowlet that has some has been entered on it"


def _order(version: str) -> tuple[int, str]:
    return (int(version) if version.isdecimal() else 0, version)
