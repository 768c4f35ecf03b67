"""Options that many commands have, and what they mean.

Law: the same thing has the same name everywhere. What changes a store has ``--yes``, and does nothing without it unless
somebody at a terminal says so.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from flowlet.cli.output import Output, lines_of
from flowlet.cli.place import Place

F = TypeVar("F", bound=Callable[..., Any])

STORE = "The store's URL, such as sqlite:///shop.db; by default that of --app, or the configured one."
APP = "module:name of a Flowlet, for what needs its code (a codec, types, rules). It is not entered."

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])")
_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def _one(name: str, before: Mapping[str, Any], given: str | None) -> str | None:
    """Return an option that may stand before the command or behind it."""
    first: str | None = before.get(name)
    if first is not None and given is not None and first != given:
        raise click.UsageError(f"--{name} is given twice, and not the same: {first!r} and {given!r}")
    return first if given is None else given


if TYPE_CHECKING:  # generic since click 8.2 or so
    _Kind = click.ParamType[Any]
else:
    _Kind = click.ParamType


class Duration(_Kind):
    """A number of seconds, such as ``90s``, ``15m``, ``12h``, ``30d`` or ``2w``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        found = _DURATION.fullmatch(str(value).strip())
        if found is None:
            self.fail(
                f"{value!r} is no duration; write a number and s, m, h, d or w, as in 90s, 12h or 30d", param, ctx
            )
        return float(found[1]) * _UNITS[found[2]]


def on_a_store(command: F) -> F:
    """Give a command ``place`` and ``output``."""

    @functools.wraps(command)
    def call(*args: Any, store: str | None, app: str | None, as_json: bool, **options: Any) -> Any:
        before = click.get_current_context().find_root().params  # what stands before the command's name
        place = Place(_one("store", before, store), _one("app", before, app))
        return command(*args, place=place, output=Output(as_json or bool(before.get("as_json"))), **options)

    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print JSON: one document, or a line for each thing."),
        click.option("--app", metavar="MODULE:NAME", help=APP),
        click.option("--store", metavar="URL", help=STORE),
    ):
        call = option(call)
    return call  # type: ignore[return-value]


def with_watch(command: F) -> F:
    """Give a command ``watch``: None, or how many seconds there are between two looks at the most."""

    @functools.wraps(command)
    def call(*args: Any, watch: bool, every: float, **options: Any) -> Any:
        return command(*args, watch=every if watch else None, **options)

    for option in (
        click.option(
            "--every", type=click.FloatRange(min=0.1), default=2.0, metavar="SECONDS", help="With --watch (2)."
        ),
        click.option("--watch", is_flag=True, help="Look again when something has changed, and every so often."),
    ):
        call = option(call)
    return call  # type: ignore[return-value]


def with_limit(command: F) -> F:
    """Give a command ``limit``."""
    return click.option("--limit", type=click.IntRange(min=0), help="At most so many; all by default.")(command)


def with_yes(command: F) -> F:
    """Give a command ``yes``."""
    return click.option("--yes", "-y", is_flag=True, help="Do not ask; needed where there is no terminal.")(command)


def ask(yes: bool, question: str) -> None:
    """Ask somebody at a terminal whether to go on.

    Raises:
        click.UsageError: there is nobody to ask.
        click.Abort: they say no.
    """
    if yes:
        return
    question = lines_of(question)
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError(f"{question} There is no terminal to ask at: say --yes. Nothing was done.")
    if not click.confirm(question, err=True):
        raise click.Abort
