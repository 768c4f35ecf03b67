"""What nothing provides: found on entering a `Flowlet`, all of it, before anything runs.

Law: one sentence for each parameter, with the line to write; nothing is made here.
"""

from __future__ import annotations

import typing
from collections.abc import Collection, Iterable, Iterator
from typing import Any

from flowlet.core.annotations import MISSING
from flowlet.core.definitions import RunDefinition
from flowlet.core.faults import nearest
from flowlet.core.needs import Need, needs_of_run
from flowlet.core.run import Run
from flowlet.errors import DefinitionError
from flowlet.runtime.factories import type_title
from flowlet.runtime.providers import Providers, find_cycle

_CONNECTIONS = ("sqlite3", "asyncpg")
"""Modules whose classes a transactional step takes as the store's connection."""


def check_provided(definitions: Iterable[Any], providers: Providers) -> None:
    """Look whether there is something for each parameter of definitions, and of what makes it.

    Raises:
        DefinitionError: for one there is nothing, or what makes it needs itself.
    """
    problems: dict[str, None] = {}
    wanted: dict[Any, None] = {}
    for definition in definitions:
        is_run = isinstance(definition, RunDefinition)
        needs = list(needs_of_run(definition) if is_run else definition.provided)
        for need in _without_connections(needs, providers):
            if providers.has(need.annotation):
                wanted[need.annotation] = None
            elif not (need.annotation is Run and need.in_run):
                problems[_sentence(need, providers)] = None
    for need in _made_of(wanted, providers):
        if not providers.has(need.annotation):
            problems[_sentence(need, providers)] = None
    if not problems:
        cycles = (find_cycle(providers.sources, annotation) for annotation in wanted)
        problems = dict.fromkeys(cycle for cycle in cycles if cycle is not None)
    if problems:
        raise DefinitionError(list(problems))


def _without_connections(needs: list[Need], providers: Providers) -> Iterator[Need]:
    """Leave out the store's connection: of a transactional step, the one parameter that nothing else fills."""
    open_: dict[str, list[Need]] = {}
    for need in needs:
        if need.in_transaction and need.annotation is not Run and not providers.has(need.annotation):
            open_.setdefault(need.where, []).append(need)
    for need in needs:
        rivals = open_.get(need.where, [])
        if need not in rivals or not _may_be_connection(need, rivals):
            yield need


def _may_be_connection(need: Need, rivals: Collection[Need]) -> bool:
    """Say whether it may be the connection: any may, if none is known to be one."""
    known = [r for r in rivals if _is_connection(r.annotation)]
    return need in known if known else True


def _is_connection(annotation: Any) -> bool:
    return str(getattr(annotation, "__module__", "")).partition(".")[0] in _CONNECTIONS


def _made_of(wanted: Iterable[Any], providers: Providers) -> Iterator[Need]:
    """List what the factories take that make these types, and those that make that, and so on."""
    seen, left = set(wanted), list(wanted)
    while left:
        factory = providers.factory(left.pop())
        for parameter in () if factory is None else factory.parameters:
            yield Need(factory.name if factory else "", parameter.name, parameter.annotation)
            if providers.has(parameter.annotation) and parameter.annotation not in seen:
                seen.add(parameter.annotation)
                left.append(parameter.annotation)


def _sentence(need: Need, providers: Providers) -> str:
    annotation, name = need.annotation, need.name
    if annotation is MISSING:
        return f"{need.where}: parameter {name!r} has no annotation to choose its value by"
    if annotation is Run:
        return f"{need.where}: parameter {name!r}: only steps and bodies are given a Run; call current_run()"
    title = type_title(annotation)
    shown, hint = title, ""
    keys = [key for key in providers.keys if key is not annotation]
    namesakes = [key for key in keys if type_title(key) == title]
    kinds = [key for key in keys if _is_kind(key, annotation)]
    inside = [key for key in keys if key in typing.get_args(annotation) and type(None) in typing.get_args(annotation)]
    if namesakes:
        shown = f"{annotation.__module__}.{title}"
        hint = f"; what is provided is another class of that name, {namesakes[0].__module__}.{title}"
    elif inside:
        hint = f"; {type_title(inside[0])} is provided: annotate it so, without None"
    elif kinds:
        kind = type_title(kinds[0])
        hint = f"; {kind} is provided, which is one, but only its very annotation fills a parameter: provide it as both"
    else:
        hint = nearest(title, [type_title(key) for key in keys])
    return (
        f"{need.where}: nothing provides {shown} for parameter {name!r}; write `flow.provide({title}, ...)` before "
        f"entering the Flowlet{hint}"
    )


def _is_kind(key: Any, annotation: Any) -> bool:
    try:
        return isinstance(key, type) and issubclass(key, annotation)
    except TypeError:
        return False
