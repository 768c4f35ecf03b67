"""`Graph`: nodes joined by edges, where the state decides the way, and cycles are allowed.

Law: here are the names that users type, with their types; what they mean is in `flowlet.core`. A graph is written, then
built by `build`, by its first use or when its Flowlet is entered, and does not change after that.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Generic, Literal, TypeAlias, TypeVar, overload

from flowlet.core.annotations import caller_namespace
from flowlet.core.definitions import ASSEMBLED, CHILD
from flowlet.core.graph_builder import EdgeDraft
from flowlet.core.graph_draft import GraphDraft
from flowlet.core.graph_nodes import NodeDraft
from flowlet.core.marks import step_mark
from flowlet.core.retry import Retry, Seconds

S = TypeVar("S")
T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

NodeRef: TypeAlias = Callable[..., Any] | str
Join: TypeAlias = Literal["all", "any"] | int


class Graph(GraphDraft, Generic[S]):
    """Nodes joined by edges, made by ``flow.graph(name, state=...)``; calling it runs it.

    Every edge that is taken carries a token to its target. A node executes when it has a token and, unless its
    ``join=`` says otherwise, nothing under way can still bring it another one; that one execution takes all its tokens.
    The run ends when no token is left.

    Example:
        >>> import anyio
        >>> from msgspec import Struct
        >>> from flowlet import Flowlet
        >>> class Draft(Struct):
        ...     text: str = ""
        ...     rounds: int = 0
        >>> flow = Flowlet()
        >>> review = flow.graph("review", state=Draft)
        >>> @review.node
        ... async def write(draft: Draft) -> dict[str, str]:
        ...     return {"text": f"{draft.text}!"}
        >>> @review.node
        ... async def check(rounds: int) -> dict[str, int]:
        ...     return {"rounds": rounds + 1}
        >>> @review.node
        ... async def publish(draft: Draft) -> None: ...
        >>> review.entry(write)
        >>> review.edge(write, check)
        >>> review.edge(check, write, when=lambda draft: not draft.text.endswith("!!"))
        >>> review.edge(check, publish, otherwise=True)
        >>> review.final(publish)
        >>> async def main() -> None:
        ...     async with flow:
        ...         print(await review(Draft("hello")))
        >>> anyio.run(main)
        Draft(text='hello!!', rounds=2)
    """

    # -------------------------------------------------------------- writing it
    @overload
    def node(self, fn: F, /) -> F: ...
    @overload
    def node(
        self,
        fn: F,
        /,
        *,
        name: str | None = None,
        retry: Retry | int | None = None,
        timeout: Seconds | None = None,
        join: Join = "all",
        merge: Callable[[S, Any], Mapping[str, Any] | None] | None = None,
    ) -> F: ...
    @overload
    def node(
        self,
        /,
        *,
        name: str | None = None,
        retry: Retry | int | None = None,
        timeout: Seconds | None = None,
        join: Join = "all",
        merge: Callable[[S, Any], Mapping[str, Any] | None] | None = None,
    ) -> Callable[[F], F]: ...
    def node(
        self,
        fn: Any = None,
        /,
        *,
        name: str | None = None,
        retry: Retry | int | None = None,
        timeout: Seconds | None = None,
        join: Join = "all",
        merge: Callable[[S, Any], Mapping[str, Any] | None] | None = None,
    ) -> Any:
        """Add a node, or mark a function as one; return what was given.

        A function takes the state, or fields of it in parameters of their names, beside parameters ``= provided``. It
        returns a dict of the fields it changes, or None. The state that it takes is its own: to change that object
        changes nothing else.

        Args:
            fn: a function, async or not; a saga or pipeline, which then is a run of its own; or another graph with the
                same state, whose nodes take its place as ``name.node``.
            name: the node's name, the function's own by default.
            retry, timeout: as of `step`, instead of what its mark says.
            join: which tokens it waits for: ``"all"`` that can still come, ``"any"``, the first, or how many. What was
                on its way when it did not wait any longer ends here when it comes.
            merge: makes the dict of changed fields of the state and of what ``fn`` returns, if that is something else.
        """
        namespace = caller_namespace(1)

        def add(thing: F) -> F:
            title = _name_of(thing) if name is None else name
            self.add_node(
                NodeDraft(
                    name=title,
                    thing=thing,
                    retry=retry,
                    timeout=timeout,
                    join=join,
                    merge=merge,
                    namespace={**self._parts.namespace, **namespace},
                )
            )
            return thing

        return add if fn is None else add(fn)

    def pause(
        self,
        name: str,
        /,
        *,
        type: type[T],
        merge: Callable[[S, T], Mapping[str, Any] | None] | None = None,
        join: Join = "all",
    ) -> None:
        """Add a node that waits for somebody to ``send`` something to the run.

        A run that waits for nothing else is ``"waiting"`` in the store, and any process goes on with it when the signal
        has come.

        Args:
            name: the node's name, and the topic of the signal.
            type: what is sent.
            merge: makes the dict of changed fields of the state and of what was sent; not needed for a Struct
                that has the fields themselves.
            join: as of `node`.

        Example:
            >>> from msgspec import Struct
            >>> from flowlet import Registry
            >>> class Draft(Struct):
            ...     text: str
            ...     approved: bool = False
            >>> review = Registry().graph("review", state=Draft)
            >>> review.pause("editor", type=bool, merge=lambda draft, yes: {"approved": yes})

            Then, in any process: ``await flow.handle(id).send("editor", True)``.
        """
        self.add_node(NodeDraft(name=name, type=type, join=join, merge=merge))

    def edge(
        self,
        source: NodeRef,
        target: NodeRef,
        /,
        *,
        when: Callable[[S], bool] | None = None,
        otherwise: bool = False,
        label: str | None = None,
        max_iterations: int | None = None,
    ) -> None:
        """Add an edge between two nodes, which may be added later.

        All edges of a node are taken whose condition is met, and all that have none.

        Args:
            source, target: nodes, as they were added or by their names.
            when: the condition, a plain function of the state, which must not change it.
            otherwise: it is taken if no edge of the node that has a condition is.
            label: what pictures show.
            max_iterations: how often it may be taken in one run, if it lies in a cycle; once more is `IterationLimit`.
        """
        self.add_edge(EdgeDraft(source, target, when, otherwise, label, max_iterations))

    def entry(self, node: NodeRef, /) -> None:
        """Have a run begin with a node; called for several, it begins with all of them."""
        self.add_entry(node)

    def final(self, *nodes: NodeRef) -> None:
        """Say which nodes a run may end with. No edge leads on from them, and one of them must have been executed."""
        self.add_finals(nodes)

    def build(self) -> None:
        """Check the graph and let it be what it is; its first use does so by itself.

        Raises:
            DefinitionError: with everything that is wrong with it.
        """
        self.definition()

    # -------------------------------------------------------------- running it
    def __call__(self, state: S, /) -> Coroutine[Any, Any, S]:
        """Run the graph and return the final state; in a body it is a child run.

        Raises:
            GraphError: it did not come to an end: see `flowlet.errors`.
            Exception: what a node has failed with.
        """
        call: Coroutine[Any, Any, S] = self.caller()(state)
        return call

    def __repr__(self) -> str:
        return f"<Graph {self.name!r}>"

    def __getattr__(self, name: str) -> Any:
        # As of every assembled function: what it is, and what it is as a step of something else.
        if name == ASSEMBLED:
            return self.definition()
        if name == CHILD:
            return getattr(self.caller(), CHILD)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _name_of(thing: Any) -> str:
    """Return what a node is called that was added without ``name=``."""
    mark = step_mark(thing) if not isinstance(thing, GraphDraft) else None
    if mark is not None:
        return mark.name
    name = thing.name if isinstance(thing, GraphDraft) else getattr(thing, "__name__", repr(thing))
    return str(name)
