"""``flowlet check``: all faults of all definitions in modules, at once.

Law: modules are imported, as a program would do it, and nothing is entered or run. A definition that has faults is
noted and stands in for itself, so that those behind it are looked at as well.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import click

from flowlet.cli.output import Output, text_of
from flowlet.cli.place import load_module
from flowlet.errors import ConfigError, DefinitionError

_ASSEMBLING = ("assemble_machine", "assemble_body", "assemble_saga", "assemble_pipeline", "add_draft", "add_schedule")


@click.command()
@click.argument("modules", nargs=-1, required=True, metavar="MODULE...")
@click.option(
    "--provided", is_flag=True, help="Also report parameters for which a Flowlet has nothing once modules are imported."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def check(modules: tuple[str, ...], provided: bool, as_json: bool) -> int:
    """Report all faults of all definitions in modules; a package stands for all modules in it.

    Exit code 1 if there are any. JSON: modules, definitions (how many), problems (module, problem).
    """
    output = Output(as_json)
    problems: list[tuple[str, str]] = []
    seen: dict[str, Any] = {}
    for name in modules:
        _look_at(name.partition(":")[0], seen, problems)
    count = _count(seen, problems)
    if provided:
        problems += [(name, problem) for name, module in seen.items() for problem in _lacks(module)]
    problems = list(dict.fromkeys(problems))
    if output.json:
        listed = [{"module": module, "problem": problem} for module, problem in problems]
        output.document({"modules": list(seen), "definitions": count, "problems": listed})
    else:
        for module, problem in problems:
            output.say(f"{module}: {text_of(problem)}")
        what = f"{_many(count, 'definition')} in {_many(len(seen), 'module')}"
        found = _many(len(problems), "problem") if problems else "no problems"
        output.say(f"{what}: {found}")
    return 1 if problems else 0


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _look_at(name: str, seen: dict[str, Any], problems: list[tuple[str, str]]) -> None:
    """Import a module, and those in it if it is a package."""
    module = _imported(name, problems)
    if module is None:
        seen.setdefault(name, None)
        return
    seen[name] = module
    for found in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{name}.", onerror=lambda _: None):
        if found.name not in seen and not found.name.endswith(".__main__"):
            seen[found.name] = _imported(found.name, problems)


def _imported(name: str, problems: list[tuple[str, str]]) -> Any:
    faults: list[str] = []
    module = None
    try:
        with noting(faults):
            module = load_module(name)
    except DefinitionError as error:
        rest = "what stands behind it in the module was not looked at"
        faults += [*error.problems[:-1], f"{error.problems[-1]}; {rest}"]
    except click.UsageError:
        raise
    except Exception as error:  # whatever a user's module does when it is imported
        faults.append(f"cannot be imported: {type(error).__name__}: {error}")
    problems += [(name, fault) for fault in faults]
    return module


@contextmanager
def noting(problems: list[str]) -> Generator[None]:
    """Have assembling note what is wrong, and go on with what it was given."""
    from flowlet.core.registry import BaseRegistry

    before = {name: getattr(BaseRegistry, name) for name in _ASSEMBLING}
    for name, method in before.items():
        setattr(BaseRegistry, name, _noting(method, problems))
    try:
        yield
    finally:
        for name, method in before.items():
            setattr(BaseRegistry, name, method)


def _noting(method: Callable[..., Any], problems: list[str]) -> Callable[..., Any]:
    def assemble(registry: Any, *given: Any, **options: Any) -> Any:
        try:
            return method(registry, *given, **options)
        except DefinitionError as error:
            problems.extend(error.problems)
            return next((thing for thing in given if callable(thing)), _stand_in)

    return assemble


async def _stand_in(*given: object) -> None:
    """Take the place of a definition that has faults."""


def _lacks(module: Any) -> Iterator[str]:
    """Yield what the Flowlets of a module do not provide; each is said once, where it stands first."""
    from flowlet.app import Flowlet
    from flowlet.runtime.machine_works import Messenger

    for flow in {id(thing): thing for thing in vars(module or object).values() if isinstance(thing, Flowlet)}.values():
        flow._providers.add_reference(Messenger, Messenger)  # which it has when it is entered
        try:
            flow._check_capabilities()
            flow._check_provided()
        except DefinitionError as error:
            yield from error.problems
        except ConfigError as error:
            yield str(error)


def _count(seen: dict[str, Any], problems: list[tuple[str, str]]) -> int:
    """Build what was not built yet in the registries of modules; return how many definitions there are."""
    from flowlet.core.definitions import Draft
    from flowlet.core.registry import BaseRegistry, definition_of

    found: dict[int, Any] = {}
    for name, module in seen.items():
        for thing in [] if module is None else list(vars(module).values()):
            registry = getattr(thing, "registry", None) if not isinstance(thing, type) else None
            try:
                if isinstance(registry, BaseRegistry):
                    registry.build_drafts()
                    found |= {id(each): each for each in registry.definitions.values()}
                elif isinstance(thing, (type, Draft)) or callable(thing):
                    definition = definition_of(thing)
                    found |= {} if definition is None else {id(definition): definition}
            except DefinitionError as error:
                problems += [(name, problem) for problem in error.problems]
    return len(found)
