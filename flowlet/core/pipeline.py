"""Pipelines: steps joined by their parameters, independent ones in parallel, nothing undone.

Law: one task. A step starts when all it needs has ended, in the order of the list; the interpreter waits in the
engine only. A step that is skipped, or that failed and was let go, has no value, and whatever needs it is skipped too
and noted as such. What stands in ``finally_=`` is done once in any case, and nothing of the steps is under way by then.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, TypeAlias, cast

from msgspec import UNSET

from flowlet.core.codec import encode, pack
from flowlet.core.definitions import Context, Undone
from flowlet.core.engine import COMPENSATING, StepCall
from flowlet.core.flights import Flights, Landed
from flowlet.core.pipeline_closings import Closing
from flowlet.core.pipeline_failures import Handler, StandIn
from flowlet.core.pipeline_plan import Plan
from flowlet.core.program import exchange_call
from flowlet.core.side_steps import Source
from flowlet.core.wiring import Wired
from flowlet.errors import RunError

_ABSENT: Any = object()
SKIPPED = "skip:"
"""Prefix of the key under which a skipped step is noted; the note's value is the encoded reason."""

Purpose: TypeAlias = tuple[int, int, Exception | None]
"""What a call is made for: the step's index, its item's (-1 for none), and the error that it handles, if it does."""


def item_key(name: str, item: int) -> str:
    """Return the key of what is done for an item, counted from 0."""
    return f"{name}[{item}]"


def closing_name(key: str) -> str | None:
    """Return the name of the ``finally_=`` step that a key is of, or None."""
    return key[1:] if key.startswith("~") else None


class PipelineInterpretation:
    """One run of an assembled pipeline."""

    __slots__ = ("_alone", "_closed", "_engine", "_flights", "_items", "_left", "_plan", "_ready", "_values")

    def __init__(self, plan: Plan, inputs: tuple[Any, ...], context: Context) -> None:
        self._plan = plan
        self._engine = context.engine
        # The inputs stand behind the steps' values, the last one first: source -1 is the first input; see `Wired`.
        self._values: list[Any] = [*([_ABSENT] * len(plan.needs)), *reversed(inputs)]
        self._left: list[int] = []
        self._ready: deque[int] = deque()
        self._flights: Flights | None = None
        self._alone: tuple[StepCall, Purpose] | None = None  # the one call to make, as long as there is just one
        self._items: dict[int, tuple[list[Any], list[int]]] = {}  # results of items, and how many are missing
        self._closed = 0

    @property
    def undoes(self) -> bool:
        """Whether there is anything left to do in any case."""
        return self._closed < len(self._plan.closings)

    async def forward(self) -> bytes:
        """Run every step whose needs are met; return the last step's encoded value."""
        if self._plan.chain:
            return await self._run_chain()
        try:
            await self._run_steps()
        except Exception:
            if self._flights is not None:
                self._keep(await self._flights.stop())
            raise
        last = self._values[len(self._plan.needs) - 1]
        value = encode(None if last is _ABSENT else last, f"the result of {self._plan.wiring.name!r}")
        if self._plan.closings:
            await self._close_after_success()
        return value

    async def backward(self, error: Exception) -> Undone:
        """Do what is to be done in any case, as far as it has not been done."""
        if self.undoes:
            self._engine.note(COMPENSATING, pack(self._engine.describe(error)))
            await self._keep_unseen()
            for closing, failure in await self._close(error):
                error.add_note(_describe(closing, failure))
        return Undone()

    # -------------------------------------------------------------- forward
    async def _run_chain(self) -> bytes:
        """Run steps of which each needs the one before it, and of which nothing else is said."""
        engine, values, data = self._engine, self._values, b""
        for index, wired in self._plan.chain:
            step, args = wired.step, tuple(map(values.__getitem__, wired.sources))
            data, given = exchange_call(step, args)
            call = StepCall(engine, step, step.name, given, data, wired.owner)
            data = await engine.perform(call)
            values[index] = call.result if type(call.result) is step.scalar else step.decode(data)
        return data

    async def _run_steps(self) -> None:
        self._left = list(self._plan.needs)
        self._ready.extend(self._plan.entries)
        self._begin_ready()
        while True:
            if self._alone is not None:
                await self._perform_alone(*self._alone)
                self._begin_ready()
            elif self._flights:
                self._receive(await self._flights.land())
            else:
                return

    async def _perform_alone(self, call: StepCall, purpose: Purpose) -> None:
        """Make the only call there is to make, which costs least."""
        try:
            value = await self._engine.perform(call)
            definition = call.definition
            # An int, a str ... is what its encoding decodes to.
            result = call.result if type(call.result) is definition.scalar else definition.decode(value)
        except Exception as error:
            self._alone = None
            self._failed(purpose, error)
        else:
            self._alone = None
            self._ended(purpose, result)

    def _receive(self, landed: Sequence[Landed]) -> None:
        """Take what has landed, and begin what follows from each before looking at the next: so a replay does."""
        for place, one in enumerate(landed):
            try:
                self._take(one)
                if self._ready:
                    self._begin_ready()
            except Exception:
                self._keep(landed[place + 1 :])
                raise

    def _take(self, landed: Landed) -> None:
        try:
            result = landed.result
        except Exception as error:
            self._failed(landed.purpose, error)
        else:
            self._ended(landed.purpose, result)

    def _begin_ready(self) -> None:
        """Have every step begin whose needs are met."""
        ready = self._ready
        while ready:
            index = ready.popleft()
            if self._is_wanted(index):
                wired = self._plan.wiring.steps[index]
                args = tuple(map(self._values.__getitem__, wired.sources))
                if wired.each is None:
                    self._launch(self._make_call(wired, wired.step.name, args), (index, -1, None))
                else:
                    self._spread(index, wired, args, wired.each)

    def _is_wanted(self, index: int) -> bool:
        """Ask the condition of a step, and skip the step if it says so."""
        condition = self._plan.conditions[index]
        if condition is None:
            return True
        wanted = condition.function(*map(self._values.__getitem__, condition.sources))
        name = self._plan.wiring.steps[index].step.name
        if inspect.iscoroutine(wanted):
            wanted.close()
            raise RunError(f"when= of step {name!r} returned a coroutine, which is always true; do slow work in a step")
        if wanted:
            return True
        self._engine.note(SKIPPED + name, pack("its condition was false"))
        self._skip_dependents(index, f"{name} was skipped")
        return False

    def _spread(self, index: int, wired: Wired, args: tuple[Any, ...], each: int) -> None:
        """Begin a step for each item of what one of its parameters is given."""
        items, name = args[each], wired.step.name
        if not isinstance(items, (list, tuple)):
            raise RunError(
                f"each= of step {name!r} takes the items of {wired.step.inputs[each].name!r}, which is no list but "
                f"{type(items).__name__}"
            )
        if not items:
            self._done(index, [])
            return
        self._items[index] = [_ABSENT] * len(items), [len(items)]
        before, after = args[:each], args[each + 1 :]
        for number, item in enumerate(items):
            call = self._make_call(wired, item_key(name, number), (*before, item, *after))
            self._launch(call, (index, number, None))

    def _make_call(self, wired: Wired, key: str, args: tuple[Any, ...]) -> StepCall:
        data, given = exchange_call(wired.step, args)
        return StepCall(self._engine, wired.step, key, given, data, wired.owner)

    def _launch(self, call: StepCall, purpose: Purpose) -> None:
        """Have a call made, in the order of launches."""
        flights = self._flights
        if self._alone is None and not flights:
            self._alone = call, purpose
            return
        if flights is None:
            flights = self._flights = Flights(self._engine, self._plan.limit)
        if self._alone is not None:
            flights.add(*self._alone)
            self._alone = None
        flights.add(call, purpose)

    # -------------------------------------------------------------- what came of it
    def _ended(self, purpose: Purpose, value: Any) -> None:
        index, item, _ = purpose
        if item < 0:
            self._done(index, value)
        else:
            self._item_done(index, item, value)

    def _item_done(self, index: int, item: int, value: Any) -> None:
        results, missing = self._items[index]
        results[item] = value
        missing[0] -= 1
        if missing[0] == 0:
            self._done(index, [r for r in results if r is not _ABSENT])

    def _done(self, index: int, value: Any) -> None:
        self._values[index] = value
        left = self._left
        for dependent in self._plan.dependents[index]:
            if left[dependent] > 0:
                left[dependent] -= 1
                if left[dependent] == 0:
                    self._ready.append(dependent)

    def _failed(self, purpose: Purpose, error: Exception) -> None:
        """Do what ``on_error=`` says about the failure of a step, or of an item.

        Raises:
            Exception: the error, if the pipeline is to stop.
        """
        index, item, cause = purpose
        if cause is not None:  # the handler itself has failed
            raise error from cause
        policy, wired = self._plan.policies[index], self._plan.wiring.steps[index]
        if isinstance(policy, Handler):
            key = wired.step.name if item < 0 else item_key(wired.step.name, item)
            args = tuple(self._pick(source, error, wired, item) for source in policy.sources)
            call = StepCall(self._engine, policy.step, f"{key}:{policy.step.name}", args, pack(key))
            self._launch(call, (index, item, error))
        elif isinstance(policy, StandIn):
            self._ended(purpose, wired.step.decode(policy.value))
        elif policy == "stop":
            raise error
        elif item < 0:
            self._skip_dependents(index, f"{wired.step.name} failed")
        else:
            self._item_done(index, item, _ABSENT)

    def _pick(self, source: Source, error: Exception | None, wired: Wired | None = None, item: int = -1) -> Any:
        """Return an argument of a handler or closing step; None for a result that there is not.

        It is a copy, because who takes up the run later does not see what this call makes of it.
        """
        if source == "error":
            return error
        if source == "item":
            assert wired is not None
            assert wired.each is not None
            return deepcopy(self._values[wired.sources[wired.each]][item])
        value = self._values[source]
        return None if value is _ABSENT else deepcopy(value)

    def _skip_dependents(self, index: int, reason: str) -> None:
        for dependent in self._plan.dependents[index]:
            if self._left[dependent] > 0:
                self._left[dependent] = -1
                name = self._plan.wiring.steps[dependent].step.name
                self._engine.note(SKIPPED + name, pack(reason))
                self._skip_dependents(dependent, f"{name} was skipped")

    # -------------------------------------------------------------- in any case
    async def _close_after_success(self) -> None:
        """Do what is to be done in any case; from here on the run is not told to unwind any more.

        Raises:
            Exception: what the first of them failed with.
        """
        self._engine.obey()
        self._engine.committed = True
        failures = await self._close(None)
        if failures:
            self._engine.committed = False
            (_, error), *others = failures
            for closing, failure in others:
                error.add_note(_describe(closing, failure))
            raise error

    async def _close(self, error: Exception | None) -> list[tuple[Closing, Exception]]:
        """Do what is left of it, one after the other; return what has failed."""
        failures: list[tuple[Closing, Exception]] = []
        for closing in self._plan.closings[self._closed :]:
            args = tuple(self._pick(source, error) for source in closing.sources)
            call = StepCall(self._engine, closing.step, closing.key, args, pack(closing.key))
            try:
                await self._engine.perform(call)
            except Exception as failure:
                failures.append((closing, failure))
            self._closed += 1
        return failures

    async def _keep_unseen(self) -> None:
        """Keep the results of steps that had ended when the way forward was cut off."""
        if self._flights is not None:
            self._keep(await self._flights.remains())
        if self._alone is not None:
            call, purpose = self._alone
            if call.result is not UNSET:
                self._keep([Landed(purpose, call, pack(call.result), None)])

    def _keep(self, landed: Sequence[Landed]) -> None:
        """Keep the results of steps for what is done in any case; nothing else follows from them."""
        for one in landed:
            try:
                self._ended(cast(Purpose, one.purpose), one.result)
            except Exception:  # without a result there is nothing to keep
                continue


def _describe(closing: Closing, failure: Exception) -> str:
    return f"finally_ step {closing.step.name!r} failed with {type(failure).__name__}: {failure}"
