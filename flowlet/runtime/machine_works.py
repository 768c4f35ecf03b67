"""Work inside a state: what a state invokes while it is active.

Law: the work is a timer that is due at once, so that it is committed, recovered and dropped like one; it is under way
from when that has rung until the state is left or the work has ended. A machine without a store does it in a task. One
with a store does it in a run of its own, whose last step tells the machine, so that neither a crash of the one nor of
the other loses it. The work that a transition ends is cancelled and awaited before the enter hooks run.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import msgspec

from flowlet.core.annotations import provided
from flowlet.core.assembly import Options
from flowlet.core.codec import encode
from flowlet.core.current import run_context
from flowlet.core.machine import MachineDefinition
from flowlet.core.machine_works import Work
from flowlet.core.marks import step
from flowlet.core.run import Run, current_run
from flowlet.core.secrets import Secret, secrets_of_fields
from flowlet.errors import MachineError
from flowlet.runtime.providers import Providers
from flowlet.runtime.tasks import Task, spawn
from flowlet.runtime.turns import Raised, leave, take

if TYPE_CHECKING:
    pass

INVOKE, REVOKE = "invoke@", "revoke@"
"""What the keys of such timers begin with: work to be begun, and a run to be cancelled."""

_inside: ContextVar[object] = ContextVar("flowlet_work", default=None)
"""The task of a machine without a store that this code is part of."""

Outcome: TypeAlias = tuple[str, dict[str, Any]]
"""The event that work ends with, and what its transition is given."""


def entry(machine: Any, work: Work, id: str, *, stored: bool) -> Raised:
    """Describe work as what its timer has raised: the id it goes by, and what it is given."""
    given = work.given(machine)
    arguments = encode(((), given), f"what state {work.state!r} invokes") if stored else b""
    return Raised(id, work.state, (), given, arguments)


# Without a store --------------------------------------------------------------------------------------
class LooseWork:
    """The work of one state of a machine without a store.

    Args:
        tell: handles how it has ended, in the machine's turn.
    """

    def __init__(self, machine: Any, work: Work, given: dict[str, Any], tell: Callable[..., Any]) -> None:
        self._machine, self._work, self._given, self._tell = machine, work, given, tell
        self._left = False
        self._task: Task = spawn(self._main, self._broke)

    async def _main(self) -> None:
        _inside.set(self)
        outcome = await outcome_of(self._work, self._machine, self._given)
        if not self._left:  # whoever leaves the state has the machine's turn, and waits for this task
            await self._tell(self._machine, self, outcome)

    def _broke(self, error: BaseException) -> None:
        from flowlet.runtime.logs import Log

        Log().error("machine.work_failed", state=self._work.state, error=repr(error))

    async def end(self) -> None:
        """Cancel it and wait for its end. If that is what runs here, it is cancelled when the event is over."""
        self._left = True
        if _inside.get() is self:
            spawn(self._end_later, self._broke)
            return
        self._task.cancel()
        await self._task.done.wait()

    async def _end_later(self) -> None:
        turn = await take(self._machine, "the end of its work")
        if turn is not None:
            leave(self._machine, turn)
        self._task.cancel()


async def outcome_of(work: Work, machine: Any, given: dict[str, Any]) -> Outcome:
    """Do the work; return the event that it ends with."""
    try:
        for need in work.provided:
            what = f"parameter {need.name!r} of {need.where}"
            raise MachineError(f"{what} is provided by a Flowlet, and this machine has none; use flow.create")
        value = await (work.function(machine, **given) if work.method else work.function(**given))
    except Exception as error:
        return work.failed, {"error": error}
    return work.done, {"result": value}


# With a store -----------------------------------------------------------------------------------------
class Messenger:
    """Tells machines how the work that they invoked has ended.

    Args:
        tell: called with the machine's definition and id, the id of the work, and its outcome.
        find: returns the live machine, or loads it.
    """

    tell: Callable[..., Any]
    find: Callable[..., Any]

    def __init__(self, tell: Callable[..., Any], find: Callable[..., Any]) -> None:
        self.tell, self.find = tell, find
        self.providers: Providers | None = None
        self.outcomes: dict[str, Outcome] = {}

    async def given(self, work: Work) -> dict[str, Any]:
        """Return what fills the parameters of work that flowlet fills."""
        assert self.providers is not None
        await self.providers.make(need.annotation for need in work.provided)
        provide = self.providers.provide
        return {n.name: current_run() if n.annotation is Run else provide(n.annotation) for n in work.provided}


def run_name(definition: MachineDefinition, work: Work) -> str:
    """Name the definition whose runs do a state's work."""
    return f"{definition.name}.{work.state}"


def options() -> Options:
    """Return how such a definition is assembled."""
    return Options()


def make_body(definition: MachineDefinition, work: Work) -> Callable[..., Any]:
    """Make the body of the run that does a state's work and tells the machine."""

    async def do(machine: str, given: bytes, messenger: Messenger = provided) -> Any:
        named = _typed(work, given)
        if work.provided:
            named |= await messenger.given(work)
        if work.method:
            return await work.function(await messenger.find(definition, machine), **named)
        return await work.function(**named)

    # Encoded in one piece, what is given has nothing in it that could be masked by itself.
    sealed = bytes if secrets_of_fields(work.annotations) is None else Annotated[bytes, Secret]
    do.__annotations__ = {
        "machine": str, "given": sealed, "messenger": Messenger,
        "return": msgspec.Raw if work.result is None else work.result,
    }  # fmt: skip
    done = step(name="work")(do)

    @step(name="tell")
    async def tell(machine: str, run: Run = provided, messenger: Messenger = provided) -> None:
        id = run.id
        await messenger.tell(definition, machine, id, messenger.outcomes[id])

    tell.__annotations__.update({"machine": str, "run": Run, "messenger": Messenger, "return": None})

    async def body(machine: str, given: bytes, run: Run = provided, messenger: Messenger = provided) -> None:
        try:
            value = await (work.function(**_typed(work, given)) if work.in_run else done(machine, given))
        except Exception as error:
            outcome: Outcome = (work.failed, {"error": error})
        else:
            outcome = (work.done, {"result": value})
        messenger.outcomes[run.id] = outcome
        try:
            await tell(machine)
        finally:
            messenger.outcomes.pop(run.id, None)

    body.__annotations__ = {"machine": str, "given": sealed, "run": Run, "messenger": Messenger, "return": None}
    return body


def _typed(work: Work, given: bytes) -> dict[str, Any]:
    named = msgspec.msgpack.decode(given)
    return {name: msgspec.convert(value, work.annotations[name]) for name, value in named.items()}


def is_inside_run(id: str) -> bool:
    """Say whether this code is part of a run, or of a child of it."""
    scope = run_context.get()
    return scope is not None and f"{scope.run().id}/".startswith(f"{id}/")
