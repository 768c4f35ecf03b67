"""A graph knows the type of its state: of what it is called with and returns, and of what its functions take."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

import operator
from typing import Annotated, assert_type

from flowlet import Flowlet, Registry, gather, step
from flowlet.graph import Graph
from flowlet.traversal import CriticalPath, Digraph, digraph

flow = Flowlet()


class Draft:
    text: str = ""
    remarks: Annotated[list[str], operator.concat]


class Other:
    text: str = ""


class Remark:
    text: str = ""


review = flow.graph("review", state=Draft)
assert_type(review, Graph[Draft])
assert_type(Registry().graph("review", state=Draft, version=2, max_iterations=5, max_concurrency=3), Graph[Draft])
flow.graph("review")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
flow.graph("review", state=Draft())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# ---------------------------------------------------------------- writing it
@review.node
async def write(draft: Draft) -> dict[str, str]: ...


@review.node(name="look", retry=3, timeout=10, join="any")
@step
async def check(draft: Draft) -> None: ...


@review.node(join="some")  # type: ignore[call-overload, untyped-decorator]  # pyright: ignore[reportArgumentType]
async def wrong_join(draft: Draft) -> None: ...


@flow.saga
async def pay(text: str) -> int: ...


review.node(pay, merge=lambda draft, paid: {"text": draft.text})
review.node(flow.graph("inner", state=Draft), name="inner", join=2)
review.pause("editor", type=Remark, merge=lambda draft, remark: {"text": draft.text + remark.text})
review.pause("plain", type=Remark)
review.pause("wrong", type=Remark, merge=lambda draft: {})  # type: ignore[misc, arg-type]  # pyright: ignore[reportArgumentType]
review.pause("wrong", type=Remark, merge=lambda draft, remark: {"text": remark.txt})  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]

review.entry(write)
review.entry("editor")
review.edge(write, check, when=lambda draft: draft.text == "", label="empty", max_iterations=3)
review.edge(check, "editor", otherwise=True)
review.edge(write, check, when=lambda draft: draft.txt)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownLambdaType, reportUnknownMemberType]
review.edge(write)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
review.final(check, "editor")
review.build()


# ---------------------------------------------------------------- running it
async def running() -> None:
    assert_type(await write(Draft()), dict[str, str])
    assert_type(await review(Draft()), Draft)
    assert_type(await flow.execute(review, Draft(), id="r"), Draft)
    assert_type(flow.run(review, Draft()), Draft)
    handle = await flow.start(review, Draft())
    assert_type(await handle.result(), Draft)
    assert_type(await flow.handle("r", review).result(), Draft)
    assert_type(await gather(review(Draft()), review(Draft())), tuple[Draft, Draft])
    flow.runs(review)
    await review(Other())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await review()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await flow.execute(review, Other())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]


# ---------------------------------------------------------------- looking at it
def looking() -> None:
    assert_type(digraph(review), Digraph[str])
    assert_type(digraph(review).order(), list[str])
    numbers = Digraph({1: [2, 3], 2: [3]})
    assert_type(numbers, Digraph[int])
    assert_type(numbers.ancestors(3), set[int])
    assert_type(numbers.critical_path({1: 0.5}), CriticalPath[int])
    assert_type(next(numbers.paths(1, 3)), tuple[int, ...])
    numbers.ancestors("3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
