"""The program: its commands by name, and what becomes of their errors.

Law: a command's module is imported when the command is called, so that ``--help`` costs what is in this file. Every
error of flowlet's becomes one line and an exit code here; only a bug shows a traceback.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

import click

from flowlet.errors import (
    ConfigError,
    DecodeError,
    FlowletError,
    MissingExtra,
    StoreNotFound,
    StoreUnavailable,
)

OK: Final = 0
PROBLEM: Final = 1
USAGE: Final = 2
UNREACHABLE: Final = 3
INTERRUPTED: Final = 130
UNREAD: Final = 141

_COMMANDS: Final = {
    "runs": ("flowlet.cli.runs:runs", "Look at runs, and tell them what to do."),
    "machines": ("flowlet.cli.machines:machines", "Look at machines and their histories."),
    "approvals": ("flowlet.cli.approvals:approvals", "Decide what waits for decisions."),
    "schedules": ("flowlet.cli.schedules:schedules", "Look at schedules; pause, resume or trigger them."),
    "diagram": ("flowlet.cli.pictures:diagram", "Draw a definition as Mermaid, DOT or SVG."),
    "check": ("flowlet.cli.checks:check", "Report all faults of all definitions in modules."),
    "verify": ("flowlet.cli.verifying:verify", "Judge every history in a store."),
    "store": ("flowlet.cli.stores:store", "Count, copy, prune or prepare a store."),
    "doctor": ("flowlet.cli.doctor:doctor", "Say what is in order here, and what to do about the rest."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called.

    Args:
        commands_at: ``module:name`` and one line of help for each command.
    """

    def __init__(self, *args: Any, commands_at: Mapping[str, tuple[str, str]], **options: Any) -> None:
        super().__init__(*args, **options)
        self._at = commands_at

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._at)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._at:
            return None
        module, _, name = self._at[cmd_name][0].partition(":")
        found: click.Command = getattr(import_module(module), name)
        return found

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self._at and not args[0].startswith("-"):
            raise click.UsageError(unknown("command", args[0], list(self._at)), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._at.items()])


class Group(click.Group):
    """A group that keeps its commands in the order in which they are written, and knows what was nearly meant."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise click.UsageError(unknown("command", args[0], list(self.commands)), ctx)
        return super().resolve_command(ctx, args)


def unknown(what: str, word: str, known: Sequence[str]) -> str:
    """Say that there is no such thing, and what there is."""
    from flowlet.core.faults import nearest

    return f"no such {what} {word!r}{nearest(word, known)}; there are {', '.join(known)}"


def own_version() -> str:
    """Return flowlet's version."""
    found: str = sys.modules["flowlet"].__version__  # which is there, as this is a part of it
    return found


def _show_version(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        click.echo(f"flowlet {own_version()}")
        context.exit()


@click.group(
    cls=LazyGroup,
    commands_at=_COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="The store is --store URL, or the one of --app, or the configured one (FLOWLET_STORE, flowlet.toml). "
    "Exit codes: 0 done, 1 a problem was found or something was refused, 2 wrong usage, 3 the store is not there or "
    "does not answer.",
)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Say which.")
@click.option("--json", "as_json", is_flag=True, hidden=True)  # which may stand here as well as behind the command
@click.option("--app", hidden=True)
@click.option("--store", hidden=True)
def program(**options: Any) -> None:
    """Look after what flowlet keeps in a store."""


def run(arguments: list[str]) -> int:
    """Run a command; return its exit code."""
    if "_FLOWLET_COMPLETE" in os.environ:  # asked by a shell
        program.main(arguments, "flowlet")
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows little shows what it can
    try:
        code = _invoke(arguments)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _let_go_of_output()
        return UNREAD
    except OSError as error:  # such as a full disk behind what is printed
        _let_go_of_output()
        _complain(str(error))
        return PROBLEM


def _invoke(arguments: list[str]) -> int:
    try:
        with program.make_context("flowlet", arguments) as context:
            return program.invoke(context) or OK
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.Abort as error:
        if isinstance(error.__cause__ or error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        _complain("nothing was done")
        return PROBLEM
    except click.ClickException as error:
        error.message = _harmless(error.message)  # type: ignore[misc]  # Final only in its types
        error.show()
        return USAGE if isinstance(error, click.UsageError) else error.exit_code
    except (FlowletError, ImportError) as error:
        return _report(error, arguments)
    except BaseExceptionGroup as group:  # of a task group that a driver has
        errors, others = group.split((FlowletError, KeyboardInterrupt))
        if errors is None or others is not None:
            raise
        first = _first(errors)
        if isinstance(first, FlowletError):
            return _report(first, arguments)
        raise KeyboardInterrupt from None


def _first(group: BaseExceptionGroup[Any]) -> BaseException:
    first: BaseException = group
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return first


def _report(error: Exception, arguments: Sequence[str]) -> int:
    """Say what went wrong; return the exit code that it stands for."""
    if isinstance(error, ImportError) and not isinstance(error, MissingExtra):
        raise error
    text = str(error)
    has_app = any(word.partition("=")[0] == "--app" for word in arguments)
    if isinstance(error, DecodeError) and not has_app and "definition" not in text:
        text += "\nif it was written through Flowlet(codec=...), give --app module:flow, which has the key"
    _complain(text)
    if isinstance(error, (StoreUnavailable, StoreNotFound)):
        return UNREACHABLE
    if isinstance(error, (ConfigError, MissingExtra)):
        return USAGE
    return PROBLEM


def _complain(text: str) -> None:
    click.echo(click.style("error: ", fg="red") + _harmless(text), err=True)


def _harmless(text: str) -> str:
    from flowlet.cli.output import lines_of  # which a program that has no error to tell of need not have

    return lines_of(text)


def _open_what_is_closed() -> None:
    """Have streams, also where whoever started this has closed them."""
    sys.stdin = sys.stdin or open(os.devnull)  # noqa: SIM115 - for as long as the process lives
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115 - for as long as the process lives


def _let_go_of_output() -> None:
    """Have nothing written any more: Python would complain when it flushes at its end."""
    with open(os.devnull, "wb") as nothing, suppress(OSError):  # it may be none of the system's
        os.dup2(nothing.fileno(), sys.stdout.fileno())
