"""The assemblers as users type them: ``machine saga pipeline graph approval every include``, with their types.

Law: `Registry` and `Flowlet` offer the same assemblers, because they inherit them from here; what they
do is in `flowlet.core.registry`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, overload

from msgspec import UNSET, UnsetType

from flowlet.core.annotations import caller_namespace
from flowlet.core.assembly import Options, PipelineOptions
from flowlet.core.pipeline_failures import OnError
from flowlet.core.retry import Seconds
from flowlet.core.wiring import StepRef
from flowlet.errors import DefinitionError
from flowlet.schedule import Scheduler

if TYPE_CHECKING:
    from flowlet.approval import Approval
    from flowlet.core.approval_levels import Level
    from flowlet.graph import Graph

C = TypeVar("C", bound=type[Any])
F = TypeVar("F", bound=Callable[..., Any])
AF = TypeVar("AF", bound=Callable[..., Coroutine[Any, Any, Any]])
R = TypeVar("R")
S = TypeVar("S")

AnyStep: TypeAlias = Callable[..., Any]
Migrations: TypeAlias = Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]]


class Assembler(Scheduler):
    """What a registry and a `Flowlet` can assemble."""

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
            _check_name("saga", args[0], name)
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
        timeout: Seconds | UnsetType | None = UNSET,
        max_concurrency: int | None = None,
        needs: Mapping[StepRef, StepRef | Sequence[StepRef]] | None = None,
        when: Mapping[StepRef, Callable[..., bool]] | None = None,
        on_error: OnError | Mapping[StepRef, OnError] = "stop",
        each: Mapping[StepRef, StepRef] | None = None,
        finally_: Sequence[AnyStep] | AnyStep = (),
    ) -> Callable[..., Coroutine[Any, Any, R]]: ...
    @overload
    def pipeline(
        self,
        name: str,
        /,
        *steps: *tuple[*tuple[AnyStep, ...], Callable[..., R]],
        version: int = 1,
        deadline: Seconds | None = None,
        timeout: Seconds | UnsetType | None = UNSET,
        max_concurrency: int | None = None,
        needs: Mapping[StepRef, StepRef | Sequence[StepRef]] | None = None,
        when: Mapping[StepRef, Callable[..., bool]] | None = None,
        on_error: OnError | Mapping[StepRef, OnError] = "stop",
        each: Mapping[StepRef, StepRef] | None = None,
        finally_: Sequence[AnyStep] | AnyStep = (),
    ) -> Callable[..., Coroutine[Any, Any, R]]: ...
    @overload
    def pipeline(
        self,
        /,
        *,
        name: str | None = None,
        version: int = 1,
        deadline: Seconds | None = None,
        timeout: Seconds | UnsetType | None = UNSET,
    ) -> Callable[[F], F]: ...
    def pipeline(
        self,
        *args: object,
        name: str | None = None,
        version: int = 1,
        deadline: Seconds | None = None,
        timeout: Seconds | UnsetType | None = UNSET,
        max_concurrency: int | None = None,
        needs: Mapping[StepRef, StepRef | Sequence[StepRef]] | None = None,
        when: Mapping[StepRef, Callable[..., bool]] | None = None,
        on_error: OnError | Mapping[StepRef, OnError] = "stop",
        each: Mapping[StepRef, StepRef] | None = None,
        finally_: Sequence[AnyStep] | AnyStep = (),
    ) -> Any:
        """Assemble a pipeline: an async function, a class with ``__call__``, or a name and steps.

        Made of steps, a parameter named like another step takes its result, and independent steps run
        in parallel. The value is that of the last step listed, None if it was skipped. An assembled saga or
        pipeline is a step, too: a run of its own. Steps are named by their functions, or by their names.

        Args:
            version, deadline: as of a saga.
            timeout: seconds that a process may spend on a run, counted anew by one that takes it over. The
                `Flowlet` says what goes for pipelines that say nothing; None is no limit.
            max_concurrency: so many steps run at once at most, items of ``each`` included; None for all that can.
            needs: steps that come after others without taking their results: ``{load: [audit]}``.
            when: conditions by step: plain functions of inputs and earlier results. A step whose
                condition is false is skipped, and so is what needs it.
            on_error: ``"stop"`` (the pipeline fails), ``"skip"`` (what needs the step is skipped), a function
                of the exception whose value takes the place of the result, or such a value itself (for a text, a
                function that returns it); one for all steps, or a mapping by step, ``"*"`` for those not named. A
                function may take, besides ``error``, inputs and earlier results by their names.
            each: steps that are done once for each item: ``{clean: "extract"}`` says that the parameter
                ``extract`` of ``clean`` takes one item of that list at a time. Its value is the list of the
                results, in the order of the items; ``on_error`` goes for each item, and ``"skip"`` leaves it out. For
                more than some thousand items use a bulk operation. To a type checker, the value of a pipeline whose
                last step is done for each item is that of one item.
            finally_: what is done at the end whatever happened (success, failure, cancellation, deadline), each
                once, in this order, the next even if one fails. They may take inputs, results (None where
                there is none) and ``error`` (None after success). One that fails after success fails the pipeline.

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

            >>> async def clean(extract: int) -> int:
            ...     return extract * 10
            >>> async def tell(clean: list[int] | None, error: Exception | None) -> None:
            ...     print("failed" if error else clean)
            >>> cleaning = registry.pipeline("cleaning", extract, clean, each={clean: "extract"}, finally_=tell)
        """
        space = caller_namespace(1)
        options = Options(version=version, deadline=deadline, timeout=timeout)
        pipeline = PipelineOptions(
            max_concurrency=max_concurrency,
            needs=needs or {},
            when=when or {},
            on_error=on_error,
            each=each or {},
            finally_=finally_,
        )
        if args and isinstance(args[0], str):
            _check_name("pipeline", args[0], name)
            return self.registry.assemble_pipeline(
                args[0], args[1:], options=options, namespace=space, pipeline=pipeline
            )
        if pipeline != PipelineOptions() or not (needs is when is each is None):
            names = "max_concurrency=, needs=, when=, on_error=, each= and finally_="
            raise DefinitionError([f"{names} go with a pipeline made of a name and steps"])
        return self._assemble_body("pipeline", args, name, options, space)

    def graph(
        self,
        name: str,
        /,
        *,
        state: type[S],
        version: int = 1,
        max_iterations: int | UnsetType = UNSET,
        max_concurrency: int | UnsetType | None = UNSET,
        timeout: Seconds | UnsetType | None = UNSET,
        deadline: Seconds | None = None,
    ) -> Graph[S]:
        """Begin a graph: nodes joined by edges, where the state decides the way and cycles are allowed.

        Its nodes and edges are then added, see `flowlet.graph.Graph`.

        Args:
            state: a Struct or a dataclass, which the nodes share. ``Annotated[list[str], operator.add]`` gives a field
                a reducer, which makes the new value of the present one and of what a node returns for it.
            version: as of a saga.
            max_iterations: how often a node may be executed in one run, if it lies in a cycle. The Flowlet's
                ``config.graph`` says it by default, as it does with the next two: 100.
            max_concurrency: so many nodes execute at once; None for all that can, which is the default.
            timeout: seconds (or a timedelta) that a process may spend on a run, from taking it up; None for no limit,
                which is the default.
            deadline: as of a saga.

        Raises:
            DefinitionError: the name is taken.

        Example:
            >>> from msgspec import Struct
            >>> from flowlet import Registry
            >>> class Draft(Struct):
            ...     text: str
            >>> review = Registry().graph("review", state=Draft)
        """
        # Loaded when the first graph is made: programs without one need not wait for it.
        from flowlet.core.graph_checks import GraphOptions
        from flowlet.graph import Graph

        options = GraphOptions(
            version=version,
            max_iterations=max_iterations,
            max_concurrency=max_concurrency,
            timeout=timeout,
            deadline=deadline,
        )
        registry = self.registry
        graph: Graph[S] = Graph(name, state, options, caller_namespace(1), registry._bind_run)
        registry.add_draft(graph)
        return graph

    def approval(
        self,
        name: str,
        /,
        *levels: Level[S],
        type: type[S],
        parallel: bool = False,
        distinct: bool = False,
        approve_when_empty: bool = False,
        self_approval: bool = False,
        notify: Callable[..., Any] | None = None,
        version: int = 1,
        deadline: Seconds | None = None,
        timeout: Seconds | None = None,
    ) -> Approval[S]:
        """Assemble an approval chain: levels on which people decide; see `flowlet.level`.

        A chain is approved when all levels that apply have approved it. It is an ordinary run: it has a history, is
        gone on with after a restart, can be cancelled and have a deadline, and can be a step of something else.

        Args:
            levels: in their order.
            type: of what is decided on: data that can be stored.
            parallel: all levels are open at once, instead of one after the other.
            distinct: nobody may decide on two levels.
            approve_when_empty: a chain of which no level applies is approved. By default it is rejected: nobody has
                approved it.
            self_approval: who has requested it may decide on it.
            notify: a function, async or not, that is told what happens: it takes a `flowlet.approval.ApprovalNotice`.
                Each call is a step, which may retry; one that fails for good holds nobody up.
            version: as of a saga.
            deadline: seconds (or a timedelta) after its start in which the chain must have ended; if not, the run fails
                with `RunTimeout`.
            timeout: seconds (or a timedelta) that a process may spend on a run, from taking it up.

        Raises:
            DefinitionError: with everything that is wrong with it.

        Example:
            >>> from datetime import timedelta
            >>> from msgspec import Struct
            >>> from flowlet import Registry, level
            >>> class Expense(Struct):
            ...     amount: int
            >>> expense = Registry().approval(
            ...     "expense",
            ...     level("manager", role="manager", timeout=timedelta(days=3), escalate_to="director"),
            ...     level("finance", role="finance", quorum=2, when=lambda e: e.amount > 10_000),
            ...     type=Expense,
            ... )
        """
        # Loaded when the first chain is made: programs without one need not wait for it.
        from flowlet.approval import Approval
        from flowlet.core.approval_builder import ApprovalOptions, build_approval

        options = ApprovalOptions(
            version=version,
            parallel=parallel,
            distinct=distinct,
            approve_when_empty=approve_when_empty,
            self_approval=self_approval,
            notify=notify,
            deadline=deadline,
            timeout=timeout,
        )
        definition = build_approval(name, levels, type, options, caller_namespace(1))
        self.registry.add(definition)
        return Approval(definition, self.registry._bind_run(definition))

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


def _check_name(kind: str, first: str, name: str | None) -> None:
    if name is not None:
        raise DefinitionError(
            [f"{kind} {first!r}: a {kind} made of steps has its name in front; leave name={name!r} out"]
        )
