"""The assemblers as users type them: ``machine saga pipeline include``, with their types.

Law: `Registry` and `Flowlet` offer the same assemblers, because they inherit them from here; what they
do is in `flowlet.core.registry`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, overload

from flowlet.core.annotations import caller_namespace
from flowlet.core.assembly import Options
from flowlet.core.pipeline import OnError, StepRef
from flowlet.core.retry import Seconds
from flowlet.errors import DefinitionError

if TYPE_CHECKING:
    from flowlet.registry import Registry

C = TypeVar("C", bound=type[Any])
F = TypeVar("F", bound=Callable[..., Any])
AF = TypeVar("AF", bound=Callable[..., Coroutine[Any, Any, Any]])
R = TypeVar("R")

AnyStep: TypeAlias = Callable[..., Any]
Migrations: TypeAlias = Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]


class Assembler(ABC):
    """What a registry and a `Flowlet` can assemble."""

    @property
    @abstractmethod
    def registry(self) -> Registry:
        """The registry that keeps what is assembled."""

    @overload
    def machine(self, cls: C, /) -> C: ...
    @overload
    def machine(
        self,
        /,
        *,
        name: str | None = None,
        version: int = 1,
        on_conflict: Literal["raise", "retry"] = "raise",
        allow: Collection[str] = (),
        migrate: Migrations | None = None,
    ) -> Callable[[C], C]: ...
    def machine(
        self,
        cls: Any = None,
        /,
        *,
        name: str | None = None,
        version: int = 1,
        on_conflict: Literal["raise", "retry"] = "raise",
        allow: Collection[str] = (),
        migrate: Migrations | None = None,
    ) -> Any:
        """Assemble a class into a state machine; put it outermost, above ``@dataclass``.

        Methods found by their names, all optional, async or not: ``on_enter_<state>`` and
        ``on_exit_<state>`` with the state's name in lower case and underscores, ``on_transition``,
        which takes a `Transition`, and ``on_load``.

        Args:
            name: the definition's name, the class's own by default.
            version: of the definition; recorded histories say which one wrote them.
            on_conflict: what a transition does when another process was faster; see `transition`.
            allow: doubtful charts to let pass: ``"dead_end"``, ``"unreachable"``, ``"shadowed"``, ``"conflict"`` (two
                regions want to leave their common state on one event), ``"cycle"`` (transitions without event and guard
                lead back to where they come from), ``"no_initial"`` (a state's first child is its initial one),
                ``"no_final"`` (no path to a final state).
            migrate: ``{1: fn}`` turns the data of records of version 1 into that of version 2.

        Raises:
            DefinitionError: with everything that is wrong with the class.

        Example:
            >>> from flowlet import Registry, state, transition
            >>> registry = Registry()
            >>> @registry.machine
            ... class Parcel:
            ...     @state(initial=True)
            ...     class Packed: ...
            ...     @state(final=True)
            ...     class Sent: ...
            ...     @transition(Packed, Sent)
            ...     async def send(self) -> None: ...
        """
        namespace = caller_namespace(1)

        def assemble(cls: type) -> type:
            return self.registry.assemble_machine(
                cls,
                name=name,
                version=version,
                on_conflict=on_conflict,
                allow=allow,
                migrate=migrate,
                namespace=namespace,
            )

        return assemble if cls is None else assemble(cls)

    @overload
    def saga(self, definition: C, /) -> C: ...
    @overload
    def saga(self, definition: AF, /) -> AF: ...
    @overload
    def saga(
        self,
        name: str,
        /,
        *steps: *tuple[*tuple[AnyStep, ...], Callable[..., Awaitable[R]]],
        version: int = 1,
        deadline: Seconds | None = None,
        parallel_compensation: bool = False,
    ) -> Callable[..., Coroutine[Any, Any, R]]: ...
    @overload
    def saga(
        self,
        name: str,
        /,
        *steps: *tuple[*tuple[AnyStep, ...], Callable[..., R]],
        version: int = 1,
        deadline: Seconds | None = None,
        parallel_compensation: bool = False,
    ) -> Callable[..., Coroutine[Any, Any, R]]: ...
    @overload
    def saga(
        self,
        /,
        *,
        name: str | None = None,
        version: int = 1,
        deadline: Seconds | None = None,
        parallel_compensation: bool = False,
    ) -> Callable[[F], F]: ...
    def saga(
        self,
        *args: object,
        name: str | None = None,
        version: int = 1,
        deadline: Seconds | None = None,
        parallel_compensation: bool = False,
    ) -> Any:
        """Assemble a saga: an async function, a class with ``__call__``, or a name and steps in order.

        A step that fails for good makes the completed ones be compensated in reverse order.

        Args:
            name: the definition's name, the function's or class's own by default.
            version: of the definition. Unfinished runs go on with the code of their own version.
            deadline: seconds (or a timedelta) after its start in which a run must have ended; if not, it is
                undone and fails with `RunTimeout`.
            parallel_compensation: compensate for all steps at once instead of one after another.

        Raises:
            DefinitionError: with everything that is wrong with it.

        Example:
            >>> from flowlet import Registry, step
            >>> registry = Registry()
            >>> @step
            ... async def reserve(sku: str) -> int:
            ...     return 1
            >>> @registry.saga
            ... async def buy(sku: str) -> int:
            ...     return await reserve(sku)
        """
        space = caller_namespace(1)
        options = Options(version=version, deadline=deadline, together=parallel_compensation)
        if args and isinstance(args[0], str):
            return self.registry.assemble_saga(args[0], args[1:], options=options, namespace=space)
        return self._assemble_body("saga", args, name, options, space)

    @overload
    def pipeline(self, definition: C, /) -> C: ...
    @overload
    def pipeline(self, definition: AF, /) -> AF: ...
    @overload
    def pipeline(
        self,
        name: str,
        /,
        *steps: *tuple[*tuple[AnyStep, ...], Callable[..., Awaitable[R]]],
        version: int = 1,
        deadline: Seconds | None = None,
        when: Mapping[StepRef, Callable[..., bool]] | None = None,
        on_error: OnError | Mapping[StepRef, OnError] = "stop",
    ) -> Callable[..., Coroutine[Any, Any, R]]: ...
    @overload
    def pipeline(
        self,
        name: str,
        /,
        *steps: *tuple[*tuple[AnyStep, ...], Callable[..., R]],
        version: int = 1,
        deadline: Seconds | None = None,
        when: Mapping[StepRef, Callable[..., bool]] | None = None,
        on_error: OnError | Mapping[StepRef, OnError] = "stop",
    ) -> Callable[..., Coroutine[Any, Any, R]]: ...
    @overload
    def pipeline(
        self, /, *, name: str | None = None, version: int = 1, deadline: Seconds | None = None
    ) -> Callable[[F], F]: ...
    def pipeline(
        self,
        *args: object,
        name: str | None = None,
        version: int = 1,
        deadline: Seconds | None = None,
        when: Mapping[StepRef, Callable[..., bool]] | None = None,
        on_error: OnError | Mapping[StepRef, OnError] = "stop",
    ) -> Any:
        """Assemble a pipeline: an async function, a class with ``__call__``, or a name and steps.

        Made of steps, a parameter named like another step takes its result, and independent steps run
        in parallel. The value is that of the last step listed, None if it was skipped.

        Args:
            version, deadline: as of a saga.
            when: conditions by step: plain functions of inputs and earlier results. A step whose
                condition is false is skipped, and so is what needs it.
            on_error: ``"stop"`` (the pipeline fails), ``"skip"`` (what needs the step is skipped), or
                a function of the exception whose value takes the place of the result; one for all
                steps, or a mapping by step.

        Raises:
            DefinitionError: with everything that is wrong with it.

        Example:
            >>> from flowlet import Registry, step
            >>> registry = Registry()
            >>> @step
            ... async def extract(path: str) -> list[int]:
            ...     return [1, 2]
            >>> @step
            ... async def total(extract: list[int]) -> int:
            ...     return sum(extract)
            >>> etl = registry.pipeline("etl", extract, total)
        """
        space = caller_namespace(1)
        options = Options(version=version, deadline=deadline)
        if args and isinstance(args[0], str):
            return self.registry.assemble_pipeline(
                args[0], args[1:], options=options, namespace=space, when=when or {}, on_error=on_error
            )
        if when is not None or on_error != "stop":
            raise DefinitionError(["when= and on_error= go with a pipeline made of a name and steps"])
        return self._assemble_body("pipeline", args, name, options, space)

    def _assemble_body(
        self, kind: str, args: tuple[object, ...], name: str | None, options: Options, space: dict[str, Any]
    ) -> Any:
        def assemble(target: Any) -> Any:
            return self.registry.assemble_body(kind, target, name=name, options=options, namespace=space)

        if len(args) > 1:
            raise DefinitionError([f'a {kind} made of steps starts with its name: {kind}("name", first, second)'])
        return assemble(args[0]) if args else assemble

    def include(self, *sources: ModuleType | Assembler) -> None:
        """Merge the definitions of registries, and of the registries and assembled objects in modules.

        Raises:
            DefinitionError: a name is taken by another definition, or a source is neither.

        Example:
            >>> from flowlet import Flowlet, Registry
            >>> orders = Registry()
            >>> flow = Flowlet()
            >>> flow.include(orders)
        """
        self.registry.merge(*(s.registry if isinstance(s, Assembler) else s for s in sources))
