"""`Flowlet`: the facade that joins registry, store, runs and machines.

Law: it wires the floors below together and decides nothing itself. No I/O before ``async with``; it
may be entered again later, also on another event loop; nested entries count.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar, TypeVarTuple, Unpack, cast, overload

import anyio
import msgspec

from flowlet.assembler import Assembler
from flowlet.core.current import run_context
from flowlet.core.definitions import RunDefinition
from flowlet.core.ids import RESERVED
from flowlet.core.machine import Transition
from flowlet.core.registry import definition_of
from flowlet.core.retry import Seconds, seconds
from flowlet.errors import ConfigError, Conflict, DefinitionError, FlowletError, MachineError
from flowlet.registry import Registry
from flowlet.runtime.handle import Handle
from flowlet.runtime.logs import Log
from flowlet.runtime.machines import Machines
from flowlet.runtime.providers import Providers
from flowlet.runtime.runs import Runs
from flowlet.runtime.tasks import Latch, is_loop_running, loop_token
from flowlet.store import New, Store, Write
from flowlet.stores import open_store

if TYPE_CHECKING:
    from typing_extensions import TypeForm

T = TypeVar("T")
M = TypeVar("M")
F = TypeVar("F", bound=Callable[..., Any])
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Ts = TypeVarTuple("Ts")


class _SagaClass(Protocol[*Ts, R_co]):
    def __call__(self, *args: *Ts) -> Awaitable[R_co]: ...


class Flowlet(Assembler):
    """Assembles definitions and runs them over one store.

    Args:
        store: a URL (``"memory://"``, ``"sqlite:///relative.db"``, ``"sqlite:////absolute.db"``) or
            any object with the methods of `flowlet.store.Store`.
        registry: the definitions to run; one of its own by default.
        lease: seconds (or a timedelta) for which this process owns its runs after each heartbeat.
        grace: seconds (or a timedelta) that running steps get when the Flowlet is left.

    Raises:
        ConfigError: the URL is not understood.

    Example:
        >>> from flowlet import Flowlet
        >>> flow = Flowlet("memory://")
    """

    def __init__(
        self,
        store: str | Store = "memory://",
        /,
        *,
        registry: Registry | None = None,
        lease: Seconds = 10.0,
        grace: Seconds = 5.0,
    ) -> None:
        if isinstance(store, str):
            self.store = open_store(store)
        elif isinstance(store, Store) and not isinstance(store, type):
            self.store = store
        else:
            raise ConfigError(f"Flowlet takes a URL or a store (see flowlet.store.Store), not {store!r}")
        if registry is not None and not isinstance(registry, Registry):
            raise ConfigError(f"registry= takes a flowlet.Registry, not {registry!r}")
        self._registry = Registry() if registry is None else registry
        self._registry.attach(self)
        self._lease, self._grace = _seconds(lease, "lease"), _seconds(grace, "grace")
        if self._lease == 0:
            raise ConfigError("lease: must be more than 0 seconds")
        self._log = Log()
        self._providers = Providers()
        self._providers.add_reference(Flowlet, self)
        self._entered = 0
        self._changing: Latch | None = None
        self._loop: object = None
        self._runs: Runs | None = None
        self._machines: Machines | None = None

    @property
    def registry(self) -> Registry:
        """The registry whose definitions run here."""
        return self._registry

    # -------------------------------------------------------------- lifecycle
    async def __aenter__(self) -> Self:
        token = loop_token()
        while self._entered or self._changing is not None:
            if token is not self._loop:
                raise FlowletError("this Flowlet is live on another event loop; make one Flowlet per loop")
            if self._changing is None:
                self._entered += 1
                return self
            await self._changing.wait()  # another task opens or closes it
        self._loop = token
        self._changing = Latch()
        try:
            await self._open()
        except BaseException:
            self._runs = self._machines = None
            await self.store.close()
            raise
        else:
            self._entered = 1
        finally:
            self._changed()
        return self

    async def __aexit__(
        self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /
    ) -> None:
        self._entered -= 1
        if self._entered:
            return
        runs = self.runs
        self._changing = Latch()
        # The rest must happen even if this task is cancelled, or leases would outlive their owner.
        with anyio.CancelScope(shield=True):
            try:
                await runs.close(self._grace)
            finally:
                self._runs = self._machines = None
                try:
                    await self.store.close()
                finally:
                    self._changed()

    def _changed(self) -> None:
        """Let the tasks go on that waited for this one to open or close."""
        assert self._changing is not None
        self._changing.set()
        self._changing = None

    async def _open(self) -> None:
        self._log.refresh()
        # Nothing below holds this object: a Flowlet that is let go must not be found by direct calls.
        registry, provide = self._registry, self._providers.provide
        runs = Runs(self.store, registry.find_run, provide, self._log, self._lease, registry.runnable)
        machines = Machines(self.store, now=runs.now, worker=lambda: runs.worker.id, log=self._log, provide=provide)
        self._runs, self._machines = runs, machines
        await self._store_definitions()
        await runs.open()

    async def _store_definitions(self) -> None:
        """Keep each definition as JSON beside its runs, so that tools read a store without this code."""
        for definition in list(self._registry.definitions.values()):
            exported = msgspec.json.encode(definition.export(), order="sorted")
            kind = definition.export().get("kind", "machine")
            id = f"{RESERVED}{kind}/{definition.name}/{definition.version}"
            stored = await self.store.load(id, limit=0)
            if stored is not None and stored.snapshot == exported:
                continue
            new = New("definition", definition.name, str(definition.version)) if stored is None else None
            expect = 0 if stored is None else stored.head.version
            try:
                await self.store.append(
                    (Write(id=id, expect=expect, create=new, records=(exported,), snapshot=exported),)
                )
            except Conflict:
                continue  # another process has just written it

    @property
    def runs(self) -> Runs:
        """The runs of this Flowlet, while it is entered."""
        if self._runs is None:
            raise FlowletError("this Flowlet is not open: use it inside `async with flow:`")
        return self._runs

    @property
    def _open_machines(self) -> Machines:
        if self._machines is None:
            raise FlowletError("this Flowlet is not open: use it inside `async with flow:`")
        return self._machines

    # -------------------------------------------------------------- machines
    @overload
    async def create(self, machine: type[M], /, *, id: str | None = None, **data: Any) -> M: ...
    @overload
    async def create(self, machine: M, /, *, id: str | None = None) -> M: ...
    async def create(self, machine: Any, /, *, id: str | None = None, **data: Any) -> Any:
        """Make a machine durable: from now on each transition is committed to the store.

        The same id with equal data gives the machine as it is.

        Args:
            machine: an object of an assembled class, or the class and the object's data.
            id: unique in the store; one is made up when it is not given.

        Raises:
            IdConflict: the id is taken by another definition or was created with other data.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, state, transition
            >>> flow = Flowlet()
            >>> @flow.machine
            ... class Parcel:
            ...     @state(initial=True)
            ...     class Packed: ...
            ...     @state(final=True)
            ...     class Sent: ...
            ...     @transition(Packed, Sent)
            ...     async def send(self) -> str:
            ...         return "on its way"
            >>> async def main() -> None:
            ...     async with flow:
            ...         parcel = await flow.create(Parcel(), id="p-1")
            ...         print(await parcel.send())
            >>> anyio.run(main)
            on its way
        """
        if data and not isinstance(machine, type):
            raise MachineError(
                f"create() takes the data {', '.join(data)} with a class; set it on the object, or pass the class"
            )
        return await self._open_machines.create(machine, id=id, data=data)

    async def load(self, machine: type[M], id: str, /) -> M:
        """Return the machine with this id, as its history says.

        Raises:
            RunNotFound: there is none.
            IdConflict: the id belongs to another definition.
            HistoryMismatch: its history does not fit the definition.
        """
        return cast(M, await self._open_machines.load(machine, id))

    def history(self, id: str, /) -> AsyncIterator[Transition]:
        """Yield a machine's transitions in order, without loading them all.

        Raises:
            RunNotFound: there is no such machine.
        """
        return self._open_machines.history(id)

    def machines(self, machine: type[Any], /, *, state: Any = None) -> AsyncIterator[str]:
        """Yield the ids of the machines of a class, in the order of their creation.

        Args:
            state: only those that are in this state.
        """
        return self._open_machines.machines(machine, state=state)

    # -------------------------------------------------------------- runs
    @overload
    async def start(self, definition: type[_SagaClass[*Ts, R]], /, *args: *Ts, id: str | None = None) -> Handle[R]: ...
    @overload
    async def start(
        self, definition: Callable[[Unpack[Ts]], Awaitable[R]], /, *args: *Ts, id: str | None = None
    ) -> Handle[R]: ...
    async def start(self, definition: Any, /, *args: object, id: str | None = None) -> Any:
        """Start a run and return when its input is durable; it goes on by itself.

        Args:
            definition: an assembled saga or pipeline.
            args: its inputs.
            id: the run's id and idempotency key, unique in the store; one is made up when not given.

        Returns:
            A handle; with an id that is taken by the same definition and input, that run's.

        Raises:
            IdConflict: the id is taken by something else.
            EncodeError: an input cannot be stored.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, step
            >>> flow = Flowlet()
            >>> @step
            ... async def double(n: int) -> int:
            ...     return 2 * n
            >>> twice = flow.saga("twice", double)
            >>> async def main() -> None:
            ...     async with flow:
            ...         handle = await flow.start(twice, 21, id="r-1")
            ...         print(await handle.result())
            >>> anyio.run(main)
            42
        """
        found = self._run_definition(definition)
        return await self.runs.start(found, found.starter.bind(args, {}), id)

    @overload
    async def execute(self, definition: type[_SagaClass[*Ts, R]], /, *args: *Ts, id: str | None = None) -> R: ...
    @overload
    async def execute(
        self, definition: Callable[[Unpack[Ts]], Awaitable[R]], /, *args: *Ts, id: str | None = None
    ) -> R: ...
    async def execute(self, definition: Any, /, *args: object, id: str | None = None) -> Any:
        """Run a definition and return its result; like calling it, with an id and on this Flowlet.

        Raises:
            Exception: what the run failed with.
            IdConflict: the id is taken by something else.
        """
        found = self._run_definition(definition)
        inputs = found.starter.bind(args, {})
        inner = id if id is not None else self.runs.derived_id(found)
        if inner is not None and run_context.get() is not None:
            return await self.runs.execute_child(found, inputs, inner)
        return await self.runs.execute(found, inputs, id)

    @overload
    def run(self, definition: type[_SagaClass[*Ts, R]], /, *args: *Ts, id: str | None = None) -> R: ...
    @overload
    def run(self, definition: Callable[[Unpack[Ts]], Awaitable[R]], /, *args: *Ts, id: str | None = None) -> R: ...
    def run(self, definition: Any, /, *args: object, id: str | None = None) -> Any:
        """Enter this Flowlet, run a definition and leave again: for plain scripts.

        Raises:
            FlowletError: an event loop is running here; await `execute` there.

        Example:
            >>> from flowlet import Flowlet, step
            >>> flow = Flowlet()
            >>> @step
            ... async def double(n: int) -> int:
            ...     return 2 * n
            >>> flow.run(flow.saga("twice", double), 21)
            42
        """
        if is_loop_running():
            raise FlowletError(
                "an event loop is running here: write `await flow.execute(...)` instead of flow.run(...)"
            )

        async def main() -> Any:
            async with self:
                return await self.execute(definition, *args, id=id)

        return anyio.run(main)

    @overload
    def handle(self, id: str, /) -> Handle[Any]: ...
    @overload
    def handle(self, id: str, definition: Callable[..., Awaitable[R]], /) -> Handle[R]: ...
    def handle(self, id: str, definition: Any = None, /) -> Any:
        """Return the handle of a run; that there is one is found out when it is asked something."""
        return Handle(id, self.runs, None if definition is None else self._run_definition(definition))

    def _run_definition(self, thing: Any) -> RunDefinition:
        found = definition_of(thing)
        if inspect.iscoroutine(thing):
            thing.close()
            raise FlowletError(f"{thing.__qualname__} was called: pass it and its arguments, as in flow.run(saga, 1)")
        if isinstance(definition_of(type(thing)), RunDefinition):
            raise FlowletError(
                f"an object of {type(thing).__qualname__} was passed: pass the class, or call the object"
            )
        if not isinstance(found, RunDefinition):
            name = getattr(thing, "__qualname__", repr(thing))
            raise FlowletError(f"{name} is no saga or pipeline: assemble it with @flow.saga or @flow.pipeline")
        if self._registry.definitions.get((found.name, found.version)) is not found:
            raise FlowletError(f"{found.name!r} is not included here: flow.include(the registry or module it is in)")
        return cast(RunDefinition, found)

    # -------------------------------------------------------------- injection
    @overload
    def provide(self, factory: F, /) -> F: ...
    @overload
    def provide(self, key: TypeForm[T], value: T, /) -> None: ...
    def provide(self, *args: Any) -> Any:
        """Give the value for parameters ``= provided`` of a type, or mark a function that makes it once.

        Example:
            >>> from flowlet import Flowlet
            >>> flow = Flowlet()
            >>> class Gateway: ...
            >>> flow.provide(Gateway, Gateway())
        """
        if len(args) == 2:
            self._providers.add_value(*args)
            return None
        if len(args) != 1:
            raise TypeError("provide() takes a type and its value, or a function that makes the value")
        self._providers.add_factory(args[0])
        return args[0]


def _seconds(value: Any, what: str) -> float:
    try:
        return seconds(value, what)
    except DefinitionError as error:
        raise ConfigError(error.problems[0]) from None
