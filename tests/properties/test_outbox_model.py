"""Transitions that start runs and send signals, of two processes on one machine, against a model in plain code."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import anyio
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flowlet import Flowlet, Registry, state, step, transition
from flowlet.errors import Conflict, HookFailed, IdConflict, RunNotFound
from flowlet.stores.memory import MemoryStore

registry = Registry()


class Op(NamedTuple):
    """Start a job with a number under an id, or a made-up one; or send a run a number."""

    kind: Literal["start", "send"]
    id: str
    n: int


class Move(NamedTuple):
    """An event that one of two processes fires, and what the callbacks do."""

    who: int
    event: Literal["move", "insist", "risk"]
    leaving: tuple[Op, ...]
    acting: tuple[Op, ...]
    entering: tuple[Op, ...]
    fails: Literal["", "exit", "action", "enter"]


class Broken(Exception):
    pass


class Words(msgspec.Struct):
    text: str = ""


@step
async def work(n: int) -> int:
    return n


@registry.saga
async def job(n: int) -> int:
    return await work(n)


# It waits for the first topic for ever, so that what it is sent under the other one stays in its inbox.
talk = registry.graph("talk", state=Words)
talk.pause("first", type=str, merge=lambda words, said: {"text": said})
talk.pause("second", type=int, merge=lambda words, said: {"text": str(said)})
talk.entry("first")
talk.edge("first", "second")
talk.final("second")


@registry.machine(allow={"dead_end"})
class Box:
    n: int = 0

    def __init__(self) -> None:
        self._flow: Any = None
        self._move = Move(0, "move", (), (), (), "")

    @state(initial=True)
    class A: ...

    async def _do(self, ops: tuple[Op, ...], place: str) -> None:
        for kind, id, n in ops:
            if kind == "start":
                await self._flow.start(job, n, id=id or None)
            else:
                await self._flow.handle(id).send("second", n)
        if self._move.fails == place:
            raise Broken

    async def _act(self) -> int:
        self.n += 1
        await self._do(self._move.acting, "action")
        return self.n

    @transition(A, A)
    async def move(self) -> int:
        return await self._act()

    @transition(A, A, on_conflict="retry")
    async def insist(self) -> int:
        return await self._act()

    @transition(A, A, on_error=A)
    async def risk(self) -> int:
        return await self._act()

    async def on_exit_a(self) -> None:
        await self._do(self._move.leaving, "exit")

    async def on_enter_a(self) -> None:
        if self._flow is not None:  # it is being created
            await self._do(self._move.entering, "enter")


class Model:
    """What must be in the store, and what each process believes."""

    def __init__(self) -> None:
        self.runs: dict[str, int] = {}
        self.heard: dict[str, list[int]] = {"t-1": [], "t-2": []}
        self.version, self.n = 1, 0
        self.known, self.stale = [1, 1], [False, False]

    def fire(self, move: Move) -> Any:
        """Return the result, or the class of the error."""
        who = move.who
        if self.stale[who]:
            self.known[who], self.stale[who] = self.version, False
        answer = self._attempt(move)
        if answer is Conflict and move.event == "insist":
            self.known[who], self.stale[who] = self.version, False
            answer = self._attempt(move)
        if isinstance(answer, type):
            return answer
        for op in move.entering:
            if self._refusal(op, self.runs):  # at once
                return HookFailed
            self._apply(op)
        return HookFailed if move.fails == "enter" else answer

    def _attempt(self, move: Move) -> Any:
        who, queue = move.who, [*move.leaving]
        begun: dict[str, int] = {}
        if self._fails(move.leaving, begun) or move.fails == "exit":
            return HookFailed
        error = self._fails(move.acting, begun) or (Broken if move.fails == "action" else None)
        if error is not None and move.event != "risk":
            return error
        queue = [] if error else [*queue, *move.acting]  # a rescue commits nothing of what has failed
        if self.known[who] != self.version:
            self.stale[who] = True
            return Conflict
        named = [op for op in queue if op.kind == "start" and op.id]
        if any(self.runs.get(op.id, op.n) != op.n for op in named):
            self.stale[who] = True
            return IdConflict
        self.version += 1
        made_up = 0
        for op in queue:
            if op.kind == "start" and not op.id:
                made_up += 1
                op = op._replace(id=f"b@{self.version}/job" + (f"#{made_up}" if made_up > 1 else ""))
            self._apply(op)
        self.known[who] = self.version
        self.n += not error
        return None if error else self.n

    def _fails(self, ops: tuple[Op, ...], begun: dict[str, int]) -> type[Exception] | None:
        """Return what callbacks raise by themselves."""
        for op in ops:
            error = self._refusal(op, begun)
            if error is not None:
                return error
            if op.kind == "start" and op.id:
                begun[op.id] = op.n
        return None

    def _refusal(self, op: Op, begun: dict[str, int]) -> type[Exception] | None:
        if op.kind == "send":
            return None if op.id in self.heard else RunNotFound
        return IdConflict if begun.get(op.id, op.n) != op.n else None

    def _apply(self, op: Op) -> None:
        if op.kind == "start":
            self.runs[op.id] = op.n
        else:
            self.heard[op.id].append(op.n)


starts = st.builds(Op, st.just("start"), st.sampled_from(["", "", "r-1", "r-2", "r-3"]), st.integers(1, 2))
named = st.builds(Op, st.just("start"), st.sampled_from(["r-1", "r-2", "r-3"]), st.integers(1, 2))
sends = st.builds(Op, st.just("send"), st.sampled_from(["t-1", "t-1", "t-2", "nobody"]), st.integers(1, 9))
moves = st.lists(
    st.builds(
        Move,
        st.integers(0, 1),
        st.sampled_from(["move", "move", "insist", "risk"]),
        st.lists(starts | sends, max_size=1).map(tuple),
        st.lists(starts | sends, max_size=3).map(tuple),
        st.lists(named | sends, max_size=1).map(tuple),
        st.sampled_from(["", "", "", "", "exit", "action", "enter"]),
    ),
    max_size=14,
)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@settings(max_examples=70, deadline=None, derandomize=True)
@given(moves=moves)
def test_there_is_what_was_committed_and_nothing_else(backend: str, moves: list[Move]) -> None:
    anyio.run(follow, moves, backend=backend)


async def follow(moves: list[Move]) -> None:
    store, model = MemoryStore(), Model()
    async with Flowlet(store, registry=registry) as a, Flowlet(store, registry=registry) as b:
        for id in model.heard:
            await a.start(talk, Words(), id=id)
        boxes: list[Any] = [await a.create(Box(), id="b"), await b.load(Box, "b")]
        boxes[0]._flow, boxes[1]._flow = a, b
        for move in moves:
            box = boxes[move.who]
            box._move = move
            expected = model.fire(move)
            try:
                got: Any = await getattr(box, move.event)()
            except (Broken, Conflict, HookFailed, IdConflict, RunNotFound) as error:
                got = type(error)
            assert got == expected, (move, got, expected)
        started = {run.id async for run in a.runs(job)}
        assert started == set(model.runs)
        with anyio.fail_after(10):
            assert {id: await b.handle(id, job).result() for id in started} == model.runs
        for id, heard in model.heard.items():
            stored = await store.load(id)
            assert stored is not None
            assert [msgspec.msgpack.decode(signal.payload) for signal in stored.signals] == heard
