"""`Registry`: the public registry, which joins definitions with the runtime that executes them.

Law: it puts callers and triggers in the place of the user's functions and classes. Which `Flowlet` a
direct call runs on is asked when the call is made; there is no default one.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from typing import TYPE_CHECKING, Any, cast

import msgspec

from flowlet.assembler import Assembler
from flowlet.core.annotations import Parameter
from flowlet.core.assembly import build_function
from flowlet.core.child import STARTS, Starts
from flowlet.core.definitions import ASSEMBLED, CHILD, RunDefinition
from flowlet.core.engine import StepCall
from flowlet.core.ids import fit_id
from flowlet.core.machine import MachineDefinition
from flowlet.core.program import make_caller
from flowlet.core.registry import BaseRegistry, definition_of
from flowlet.core.run import Run, host_of
from flowlet.core.steps import RESULT, CompensationDefinition, StepDefinition, make_plain_step
from flowlet.errors import DefinitionError, FlowletError, IdConflict
from flowlet.runtime.machine_install import install_machine
from flowlet.runtime.machine_works import make_body, options, run_name
from flowlet.runtime.runs import Runs

if TYPE_CHECKING:
    from flowlet.app import Flowlet


class Registry(BaseRegistry, Assembler):
    """Assembles marked functions and classes into definitions, and keeps them.

    Give it to a `Flowlet`, or let several include it. A module of definitions needs no `Flowlet`.

    Example:
        >>> from flowlet import Flowlet, Registry
        >>> registry = Registry()
        >>> flow = Flowlet(registry=registry)
    """

    def __init__(self) -> None:
        super().__init__()
        self._flowlets: list[weakref.ref[Flowlet]] = []

    @property
    def registry(self) -> Registry:
        """The registry itself."""
        return self

    def attach(self, flowlet: Flowlet) -> None:
        """Note that a `Flowlet` runs what is in this registry."""
        self._flowlets.append(weakref.ref(flowlet, self._flowlets.remove))

    def flowlets(self) -> list[Flowlet]:
        """Return the living ones that run what is in this registry."""
        return [f for f in (ref() for ref in self._flowlets) if f is not None]

    def only_flowlet(self) -> Flowlet | None:
        """Return the one that runs what is in this registry, or None when there is not just one."""
        return self._flowlets[0]() if len(self._flowlets) == 1 else None

    def find_run(self, name: str, version: str) -> RunDefinition | None:
        """Return the saga, pipeline ... of this name and version, if it is kept here."""
        found = self.definitions.get((name, version))
        return found if isinstance(found, RunDefinition) else None

    def runnable(self) -> list[tuple[str, str, str]]:
        """Return what this process can go on with, as (kind, name, version)."""
        found = list(self.definitions.values())
        runs = [("run", d.name, d.version) for d in found if isinstance(d, RunDefinition)]
        machines = [d for d in found if isinstance(d, MachineDefinition)]
        # The histories of older versions are read, too.
        return [*runs, *(("machine", d.name, str(v)) for d in machines for v in range(1, d.version + 1))]

    def find_machine(self, name: str) -> MachineDefinition | None:
        """Return the machine with this name."""
        found = (d for d in self.definitions.values() if isinstance(d, MachineDefinition) and d.name == name)
        return next(found, None)

    def _added(self, definition: Any) -> None:
        if isinstance(definition, MachineDefinition):
            self._add_works(definition)
        if isinstance(definition, RunDefinition) and all(home() is not self for home in definition.homes):
            definition.homes.append(weakref.ref(self, definition.homes.remove))

    def _add_works(self, definition: MachineDefinition) -> None:
        """Keep the definitions of the runs that do what a machine's states invoke."""
        for work in definition.works.values():
            name = run_name(definition, work)
            if name not in definition.runs:
                body = make_body(definition, work)
                definition.runs[name] = build_function("saga", body, name=name, options=options(), namespace={})
            self.add(definition.runs[name])

    def _bind_machine(self, definition: Any) -> type:
        cls = install_machine(definition)
        setattr(cls, ASSEMBLED, definition)
        return cls

    def _bind_run(self, definition: RunDefinition) -> Any:
        target = definition.target
        if isinstance(target, type):
            return _bind_class(target, definition)
        child = _child_step(definition)
        caller = make_caller(child, functools.partial(_run_directly, definition, None))
        if target is not None:
            functools.update_wrapper(caller, target)
        else:
            caller.__name__ = caller.__qualname__ = definition.name
            caller.__signature__ = definition.starter.signature  # type: ignore[attr-defined]
        setattr(caller, ASSEMBLED, definition)
        setattr(caller, CHILD, child)
        setattr(caller, STARTS, functools.cache(functools.partial(_starts, definition)))
        return caller


def describe(thing: Any, /) -> dict[str, Any]:
    """Return an assembled definition as plain data that JSON can hold: its states and transitions, or its steps.

    Args:
        thing: a machine's class or object, or an assembled saga, pipeline or graph.

    Raises:
        DefinitionError: it has not been assembled.

    Example:
        >>> from flowlet import Registry, describe, state, transition
        >>> registry = Registry()
        >>> @registry.machine
        ... class Parcel:
        ...     @state(initial=True)
        ...     class Packed: ...
        ...     @state(final=True)
        ...     class Sent: ...
        ...     @transition(Packed, Sent)
        ...     async def send(self) -> None: ...
        >>> [(t["event"], t["source"], t["targets"]) for t in describe(Parcel)["transitions"]]
        [('send', 'Packed', ['Sent'])]
    """
    found = definition_of(thing) or definition_of(type(thing))
    if found is None:
        raise DefinitionError(
            [f"{thing!r} is no machine, saga, pipeline or graph; assemble it with a Flowlet or a Registry"]
        )
    exported: dict[str, Any] = found.export()
    return exported


def _bind_class(cls: type, definition: RunDefinition) -> type:
    """Let ``await Checkout(...)(order)`` be a run; inside its own body, ``__call__`` stays the user's."""
    body = definition.starter.function
    step = _child_step(definition)

    @functools.wraps(body)
    async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await make_caller(step, functools.partial(_run_directly, definition, self))(*args, **kwargs)

    cls.__call__ = call  # type: ignore[method-assign]  # the class keeps everything else
    setattr(cls, ASSEMBLED, definition)
    setattr(cls, CHILD, step)
    setattr(cls, STARTS, functools.cache(functools.partial(_starts, definition)))
    return cls


async def _run_directly(
    definition: RunDefinition, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any], run: Run | None
) -> Any:
    inputs = definition.starter.bind(args, kwargs)
    # Runs and not the Flowlet: an exception's traceback would keep it alive.
    if run is None:
        runs = find_flowlet(definition)._open_runs
        return await runs.execute(definition, inputs, None, instance)
    # Called by a step: the same call finds the same run when the step is tried again.
    runs = _runs_for(run, definition)
    id = fit_id(run.event_key("run", definition.name))
    return await runs.children.execute(definition, inputs, id, instance)


def _runs_for(run: Run, definition: RunDefinition) -> Runs:
    """Return where a child of a run is executed: where its parent is, if the definition is known there."""
    runs = host_of(run)
    if isinstance(runs, Runs) and runs.find(definition.name, definition.version) is definition:
        return runs
    return find_flowlet(definition)._open_runs


def find_flowlet(definition: RunDefinition) -> Flowlet:
    """Return the one `Flowlet` that a direct call of the definition runs on.

    Raises:
        FlowletError: there is none, or more than one.
    """
    if len(definition.homes) == 1:  # the usual case, on the path of every direct call
        home = definition.homes[0]()
        flowlet = None if home is None else home.only_flowlet()
        if flowlet is not None:
            return cast("Flowlet", flowlet)
    found = {id(f): f for home in definition.homes if (registry := home()) for f in registry.flowlets()}
    if len(found) == 1:
        return cast("Flowlet", next(iter(found.values())))
    if not found:
        raise FlowletError(
            f"{definition.name!r} was called, but no Flowlet includes it: flow.include(registry), or "
            "Flowlet(registry=...)"
        )
    raise FlowletError(
        f"{definition.name!r} was called, but {len(found)} Flowlets include it: say which one with "
        f"flow.execute({definition.name}, ...)"
    )


def _child_step(definition: RunDefinition) -> StepDefinition:
    """Describe a definition as a step of a parent run: starting the child, or finding it, and waiting."""

    async def run_child(*args: Any, run: Run) -> Any:
        return await _runs_for(run, definition).children.execute_alone(definition, args, _child_id(run), run.id)

    async def halt_child(call: StepCall) -> None:
        run = call.run()
        await _runs_for(run, definition).children.halt(_child_id(run))

    run = Parameter("run", Run, inspect.Parameter.KEYWORD_ONLY, required=False, provided=True)
    return msgspec.structs.replace(
        definition.starter,
        name=definition.name,
        function=run_child,
        is_async=True,
        method=False,
        providers=(run,),
        positional=definition.starter.arity,
        keywords=(),
        retry=None,
        timeout=None,
        key=None,
        halt=halt_child,
    )


def _starts(definition: RunDefinition) -> Starts:
    """Describe how the body of a run starts one of a definition, waits for it and cancels it."""

    async def start_child(*args: Any, run: Run) -> str:
        return await begin(args, run, run.id)

    async def start_detached(*args: Any, run: Run) -> str:
        return await begin(args, run, None)

    async def begin(args: tuple[Any, ...], run: Run, parent: str | None) -> str:
        *inputs, id = args
        id = _child_id(run) if id is None else id
        runs = _runs_for(run, definition)
        if args[-1] is not None and await runs.children.is_ancestor(id, run.id):
            raise IdConflict(f"run {run.id!r} cannot start {id!r}, which is itself or has started it; use another id")
        await runs.start(definition, tuple(inputs), id, parent=parent)
        return str(id)

    async def await_child(id: str, *, run: Run) -> Any:
        return await _runs_for(run, definition).children.execute_alone(definition, None, id, run.id)

    async def cancel_child(id: str, *, run: Run) -> None:
        await _runs_for(run, definition).children.halt(id)

    async def undo_start(id: str, *, run: Run) -> None:
        await _runs_for(run, definition).children.halt_own(id, run.id)

    async def halt_start(call: StepCall) -> None:  # nobody knows whether it has started the run
        run, id = call.run(), call.args[-1]
        await undo_start(_child_id(run) if id is None else id, run=run)

    run = Parameter("run", Run, inspect.Parameter.KEYWORD_ONLY, required=False, provided=True)
    id = Parameter("id", str, inspect.Parameter.POSITIONAL_ONLY, required=True, provided=False)
    named = Parameter("id", str | None, inspect.Parameter.POSITIONAL_ONLY, required=True, provided=False)
    name = definition.name
    cancel = make_plain_step(f"{name}:cancel", cancel_child, (id,), (run,), type(None))
    inputs = (*definition.starter.inputs, named)
    attached = make_plain_step(f"{name}:start", start_child, inputs, (run,), str)
    undo = CompensationDefinition(
        step=make_plain_step(f"{name}:undo", undo_start, (id,), (run,), type(None)), sources=(RESULT,)
    )
    return Starts(
        starter=definition.starter,
        attached=msgspec.structs.replace(attached, compensation=undo, halt=halt_start),
        detached=make_plain_step(f"{name}:start", start_detached, inputs, (run,), str),
        result=make_plain_step(f"{name}:result", await_child, (id,), (run,), definition.starter.result.type),
        cancel=cancel,
    )


def _child_id(run: Run) -> str:
    """Return the id of the run that a step is."""
    # A child that has ended stays as it is: a parent that is to try again, behind its pivot, starts another one.
    return fit_id(run.idempotency_key if run.attempt == 1 else f"{run.idempotency_key}@{run.attempt}")
