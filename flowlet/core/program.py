"""The running body of one run, and how the calls it makes become starts and waits of the engine.

Law: a body is one task. It performs steps one by one through `Program.begin`, or several through
`gather`, which starts them in argument order and hands results out in the order of the journal. Keys
are the step's name plus an ordinal in the order first awaited, so they are the same on every replay.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from flowlet.core.current import run_context
from flowlet.core.engine import (
    CurrentTask,
    Engine,
    Parked,
    Pending,
    Question,
    StepCall,
    StepCancelled,
    cut_off,
)
from flowlet.core.marks import StepMark
from flowlet.core.run import Run
from flowlet.core.steps import UNENCODABLE, StepDefinition, encode_input
from flowlet.errors import RunError

if TYPE_CHECKING:
    from flowlet.core.bodies import StepBook


class Program(msgspec.Struct, eq=False):
    """The running body of one run: it turns step calls into starts and waits of the engine.

    Attributes:
        engine: the run's engine.
        inside: None: the code that runs is a body's.
        gathering: step calls are being collected, and must not wait.
        pivoted: a pivot has returned, so that from here on there is only forward.
        unusual: one of these two; steps take the longer way then.
    """

    engine: Engine
    _book: StepBook
    _current_task: CurrentTask
    _task: object
    _owner: object | None = None
    inside: None = None
    gathering: bool = False
    pivoted: bool = False
    unusual: bool = False
    _counts: dict[str, int] = {}
    _gathered: dict[Pending, StepCall] = {}
    _run: Run | None = None

    def run(self) -> Run:
        """Return the run as its body sees it."""
        if self._run is None:
            self._run = Run(self.engine.run_id, "", 1, self.engine, self)
        return self._run

    def event_key(self, machine_id: str, event: str) -> str:
        """See `Run.event_key`."""
        return self.run().event_key(machine_id, event)

    def begin(self, mark: StepMark, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepCall:
        """Make the call of a step that the body awaits.

        Raises:
            RunError: the body's task is not the one that runs.
            EncodeError: an argument cannot be stored.
        """
        owner, instance = None, self._owner
        if (mark.method or instance is not None) and args and (mark.method or args[0] is instance):
            owner, args = args[0], args[1:]
        definition = self._book.by_mark.get(mark)
        if definition is None or definition.method is (owner is None):
            definition = self._book.define(mark, owner is not None)
        return self.prepare(definition, args, kwargs, owner)

    def prepare(
        self,
        definition: StepDefinition,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        owner: object | None = None,
    ) -> StepCall:
        """Make the call of a step that is known; without ``kwargs``, ``args`` are bound already."""
        current_task = self._current_task
        if current_task() is not self._task:
            raise _from_elsewhere(f"step {definition.name!r}")
        if kwargs or (len(args) != definition.arity and kwargs is not None):
            args = definition.bind(args, kwargs)
        data, given = exchange_call(definition, args)
        key = definition.name
        if definition.key is None and key not in self._counts:
            self._counts[key] = 1
        else:
            key = self._next_key(definition, args)
        return StepCall(self.engine, definition, key, given, data, owner, self)

    @property
    def is_current(self) -> bool:
        """Whether the body's own task is the one that runs."""
        return self._current_task() is self._task

    def waiting_key(self, name: str) -> str:
        """Return the key of a wait that the body begins.

        Raises:
            RunError: the body's task is not the one that runs.
        """
        if not self.is_current:
            raise _from_elsewhere(f"wait {name!r}")
        count = self._counts[name] = self._counts.get(name, 0) + 1
        return name if count == 1 else f"{name}#{count}"

    async def wait(self, pending: Pending) -> bytes:
        """Wait for something that is no step; return its value."""
        if self.gathering:
            return await Parked(pending)
        await self.engine.first((pending,))
        try:
            return await self.engine.value(pending)
        except StepCancelled:  # nobody here has stopped it: on replay, that is where a body cut it off
            raise cut_off(pending.key) from None

    def end(self, call: StepCall, value: bytes) -> Any:
        """Give the body the result of a call, as a replay would."""
        definition = call.definition
        if definition.pivot:
            self.pivoted = self.unusual = self.engine.committed = True
        if type(call.result) is definition.scalar:
            return call.result  # an int, a str ... is what its encoding decodes to
        return definition.decode(value)

    async def perform(self, definition: StepDefinition, args: tuple[Any, ...], owner: object | None) -> Any:
        """Perform a step that is known, with bound arguments."""
        call = self.prepare(definition, args, None, owner)
        if self.unusual:
            return self.end(call, await self.perform_unusually(call))
        return self.end(call, await self.engine.perform(call))

    async def perform_unusually(self, call: StepCall) -> bytes:
        """Perform a call that is gathered, or comes after a pivot; return its encoded result."""
        if self.gathering:
            pending = self.engine.step(call)
            self._gathered[pending] = call
            return await Parked(pending)
        return await self._insist(call)

    async def _insist(self, call: StepCall, error: Exception | None = None) -> bytes:
        """Perform a call until it succeeds or an operator says how to go on: there is no way back.

        Args:
            error: what it has failed with already, if it has.
        """
        while True:
            if error is None:
                try:
                    return await self.engine.perform(call)
                except Exception as failure:
                    error = failure
            name = type(error).__name__
            question = Question(
                status="needs_attention",
                reason=f"step {call.key!r} has failed for good behind the pivot, with {name}: {error}; "
                "resume() tries it again, skip() goes on without it, compensate() undoes the run",
                steps=(call.key,),
                errors=(error,),
            )
            verdict = await self.engine.attend(question)
            if verdict.action == "skip":
                return _NOTHING if verdict.value is None else verdict.value
            error, call = None, call.anew()

    def _next_key(self, definition: StepDefinition, inputs: tuple[Any, ...]) -> str:
        """Return the step's own choice of a key, or its name and ordinal."""
        name = definition.name
        if definition.key is not None:
            chosen = definition.key(*inputs)
            if not isinstance(chosen, str) or not chosen or "~" in chosen:
                raise RunError(f"key= of step {name!r} must return a text without ~, not {chosen!r}")
            name = f"{name}:{chosen}"
        count = self._counts[name] = self._counts.get(name, 0) + 1
        if count == 1:
            return name
        if definition.key is not None:
            raise RunError(f"step key {name!r} was used twice in one run: make key= unique among its calls")
        return f"{name}#{count}"

    async def gather(self, calls: Sequence[Coroutine[Any, Any, Any]]) -> tuple[Any, ...]:
        """Start step calls in order, wait for all, hand out results in the order of the journal."""
        parked: dict[Pending, tuple[int, Coroutine[Any, Any, Any]]] = {}
        results: list[Any] = [None] * len(calls)
        failure: Exception | None = None
        self.gathering = self.unusual = True
        try:
            for index, call in enumerate(calls):
                try:
                    parked[call.send(None)] = (index, call)
                except Exception as error:  # an argument that cannot be stored, a key that is taken
                    failure = error
                    for pending in parked:
                        self.engine.cancel(pending)
                    break
            failure = await self._collect(parked, results, failure)
        finally:
            # A run that is suspended here tells the engine nothing: what was started is going on, or will.
            self.gathering = False
            self.unusual = self.pivoted
            self._gathered.clear()
            for call in calls:
                call.close()
        if failure is not None:
            raise failure
        return tuple(results)

    async def _collect(
        self,
        parked: dict[Pending, tuple[int, Coroutine[Any, Any, Any]]],
        results: list[Any],
        failure: Exception | None,
    ) -> Exception | None:
        """Wait for all; return why they failed together. Behind a pivot, also one among them, they do not.

        Args:
            failure: why the rest was not even started, if it was not.
        """
        first = failure
        left: list[tuple[Pending, int, Coroutine[Any, Any, Any], Exception | None]] = []
        while parked:
            for pending in await self.engine.first(parked):
                index, call = parked.pop(pending)
                try:
                    value = await self.engine.value(pending)
                except StepCancelled:
                    if first is None:  # nobody here has stopped it: on replay, that is where a body cut it off
                        first = failure = cut_off(pending.key)
                    left.append((pending, index, call, None))
                    continue
                except Exception as error:
                    problem = error
                    left.append((pending, index, call, error))
                else:
                    try:
                        results[index] = _hand_over(call, value)
                    except Exception as error:  # it does not decode to its type
                        problem = failure = error
                    else:
                        continue
                if first is None:
                    first = problem
                    if not self.pivoted:
                        for other in parked:
                            self.engine.cancel(other)
        if failure is not None or not self.pivoted:
            return first
        for pending, index, call, reason in left:
            gathered = self._gathered.get(pending)
            if gathered is None:  # a wait that is over: what follows from that is the body's to say
                return first
            # The pivot may have returned after another had been stopped.
            value = await self._insist(gathered.anew() if reason is None else gathered, reason)
            results[index] = _hand_over(call, value)
        return None


def _from_elsewhere(what: str) -> RunError:
    return RunError(
        f"{what} was called from another task than its run's; for parallel steps write "
        "`a, b = await gather(f(x), g(y))` with flowlet's gather"
    )


def exchange_call(definition: StepDefinition, args: tuple[Any, ...]) -> tuple[bytes, tuple[Any, ...]]:
    """Do as `StepDefinition.exchange_input`; values that are what their encoding decodes to are not decoded."""
    kinds = definition.kinds
    if len(args) == 1 == len(kinds):  # most steps take one value, which takes a third of the time by itself
        is_known = type(args[0]) is kinds[0]
    else:
        is_known = tuple(map(type, args)) == kinds
    if is_known:
        try:
            return encode_input(args), args
        except UNENCODABLE:
            pass  # such as a number that is too large: the definition says which argument it is
    return definition.exchange_input(args)


_NOTHING = b"\xc0"
"""None, encoded."""


def _hand_over(call: Coroutine[Any, Any, Any], value: bytes) -> Any:
    """Give a parked call its outcome, with which it ends; return what it made of it."""
    try:
        call.send(value)
    except StopIteration as stop:
        return stop.value
    raise RunError("gather takes step calls only")  # pragma: no cover - a step call parks once


Direct = Callable[[tuple[Any, ...], dict[str, Any], "Run | None"], Coroutine[Any, Any, Any]]
"""Runs a definition for a direct call; the `Run` is that of the step which makes the call, if any."""


def make_caller(child: StepDefinition, direct: Direct) -> Callable[..., Coroutine[Any, Any, Any]]:
    """Return the coroutine function that stands for a definition: a child run in a body, else a run."""

    async def call_run(*args: Any, **kwargs: Any) -> Any:
        program = run_context.get()
        if program is None or program.inside is not None:
            return await direct(args, kwargs, None if program is None else program.run())
        assert isinstance(program, Program)
        call = program.prepare(child, args, kwargs)
        if program.unusual:
            value = await program.perform_unusually(call)
        else:
            value = await program.engine.perform(call)
        return program.end(call, value)

    return call_run
