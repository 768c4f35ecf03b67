"""Runs, whose every step waits until hypothesis lets it go on, against a model that is too simple to be wrong.

Whatever hypothesis does to the runs (starting, failing, crashing, leaving, asking, resuming, cancelling),
after each of its moves they must come to what the model says: which steps wait and how often each was
begun, where each run stands, and what whoever asked for it is told.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Literal, NamedTuple, TypeVar

import pytest
import structlog
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from interrupted import Silent, drop_event

from flowlet import Flowlet, Registry, Retry, compensate, current_run, gather, step
from flowlet.core.run_records import Ended, StepEnded, StepErred, StepStopped, run_record_codec
from flowlet.errors import CompensationFailed, IdConflict, RunCancelled, RunError, RunFinished, RunNotFound
from flowlet.runtime.handle import Handle
from flowlet.stores.memory import MemoryStore

T = TypeVar("T")
Way = Literal["start", "execute"]
CrashAt = Literal["before", "after"]

Plan = tuple[str, int]


class Refused(Exception):
    """What failing steps raise; its argument is the step's key."""


# ---------------------------------------------------------------- what runs
class Gates:
    """Where the steps wait.

    Attributes:
        open: by idempotency key and attempt, what decides whether it works.
        begun: how often each was.
    """

    open: dict[tuple[str, int], asyncio.Future[bool]]
    begun: Counter[tuple[str, int]]


async def act() -> None:
    run = current_run()
    at = (run.idempotency_key, run.attempt)
    Gates.begun[at] += 1
    gate = Gates.open[at] = asyncio.get_running_loop().create_future()
    try:
        works = await gate
    finally:
        if Gates.open.get(at) is gate:
            del Gates.open[at]
    if not works:
        raise Refused(run.idempotency_key.partition("/")[2])


sagas = Registry()


@step(key=str, retry=Retry(attempts=2, wait=0))
async def do(number: int) -> int:
    await act()
    return number * 10


@compensate(do, retry=Retry(attempts=2, wait=0))
async def undo(number: int, do: int, error: Exception) -> None:
    assert do == number * 10
    assert isinstance(error, (Refused, RunCancelled))
    await act()


@step(key=str)
async def look(number: int) -> int:
    await act()
    return number * 10


@sagas.saga
async def line(length: int) -> int:
    return sum([await do(number) for number in range(length)])


@sagas.saga
async def fan(width: int) -> int:
    first = await do(0)
    branches = await gather(*[do(number) for number in range(1, width + 1)], look(8))
    return first + sum(branches) + await look(9)


@sagas.saga
async def daring(length: int) -> int:
    try:
        first = await look(7)
    except Refused:
        first = -1
    return first + sum([await do(number) for number in range(length)])


SAGAS: dict[str, Callable[[int], Coroutine[Any, Any, int]]] = {"line": line, "fan": fan, "daring": daring}


# ---------------------------------------------------------------- what must come of it
CANCELLED = "cancelled"
"""Stands for a key where it was nobody's failure."""


def blocks_of(saga: str, size: int) -> list[list[str]]:
    """Return the keys of a saga's steps; those in one list are performed together."""
    dos = [f"do:{number}" for number in range(size + 1)]
    if saga == "fan":
        return [dos[:1], [*dos[1:], "look:8"], ["look:9"]]
    return [*([["look:7"]] if saga == "daring" else []), *([key] for key in dos[:size])]


class RunModel:
    """One run, as it should be.

    Attributes:
        waiting: the attempts that are under way, by step key.
        begun: how often each attempt has begun.
        log: the outcomes of steps in their order: ended, failed, cancelled.
        here: it is executed in the task of whoever called it, so that it is cut off with that task.
    """

    def __init__(self, saga: str, size: int, here: bool) -> None:
        self.saga, self.size, self.here = saga, size, here
        self.status = "running"
        self.waiting: dict[str, int] = {}
        self.begun: Counter[tuple[str, int]] = Counter()
        self.log: list[tuple[str, str]] = []
        self.result = 0
        self.error = ""
        self.stuck: list[str] = []
        self._blocks = blocks_of(saga, size)
        self._undoing: list[str] = []
        self._spent: dict[str, int] = {}  # attempts that an operator's decision left behind
        self._go_on()

    @property
    def is_over(self) -> bool:
        return self.status not in ("running", "compensating")

    @property
    def has_ended(self) -> bool:
        return self.is_over and self.status != "compensation_failed"

    def _begin(self, key: str, attempt: int = 1) -> None:
        self.waiting[key] = attempt
        self.begun[key, attempt] += 1

    def again(self) -> None:
        """Whatever was under way was cut off, and begins again."""
        self.here = False
        for key, attempt in self.waiting.items():
            self._begin(key, attempt)

    def _go_on(self) -> None:
        if not self._blocks:
            self.status = "completed"
        else:
            for key in self._blocks.pop(0):
                self._begin(key)

    def advance(self, key: str, works: bool) -> None:
        """Let an attempt end."""
        attempt = self.waiting.pop(key)
        if not works and attempt % 2 and key.startswith("do:"):  # two attempts are its policy, also its compensation's
            self._begin(key, attempt + 1)
            return
        self.log.append((key, "s" if works else "e"))
        if self.status == "compensating":
            if not works:
                self.stuck.append(key.partition("~")[0])
                self._spent[key] = attempt
            self._undo_next()
        elif works or (self.saga == "daring" and key == "look:7"):
            self.result += int(key.partition(":")[2]) * 10 if works else -1
            if not self.waiting:
                self._go_on()
        else:
            self._fail(key)

    def _fail(self, error: str) -> None:
        self.log += [(key, "c") for key in self.waiting]
        self.waiting.clear()
        self.error = error
        self._undoing = [key for key, outcome in reversed(self.log) if key.startswith("do:") and outcome == "s"]
        if self._undoing:
            self.status, self.here = "compensating", False
            self._undo_next()
        else:
            self.status = "cancelled" if error == CANCELLED else "failed"

    def _undo_next(self) -> None:
        if self._undoing:
            key = self._undoing.pop(0) + "~undo"
            self._begin(key, self._spent.get(key, 0) + 1)
        elif self.stuck:
            self.status = "compensation_failed"
        else:
            self.status = "cancelled" if self.error == CANCELLED else "compensated"

    def resume(self) -> None:
        """Try the failed compensations again."""
        self._undoing, self.stuck, self.status = self.stuck, [], "compensating"
        self._undo_next()

    def cancel(self) -> None:
        """Undo it, if it is not being undone."""
        if self.status == "running":
            self._fail(CANCELLED)


# ---------------------------------------------------------------- both
class Caller(NamedTuple):
    """Somebody who waits for a run, or executes it."""

    id: str
    task: asyncio.Task[Any]
    executes: bool


class Picture(NamedTuple):
    """What is to be seen of all runs."""

    begun: Counter[tuple[str, int]]
    waiting: set[tuple[str, int]]
    statuses: dict[str, str]


ids = st.sampled_from(["r1", "r2", "r3"])
plans = st.tuples(st.sampled_from(["line", "fan", "fan", "daring"]), st.sampled_from([2, 3]))
choices = st.integers(0, 11)


class RunMachine(RuleBasedStateMachine):
    """Moves, and what they must lead to.

    Attributes:
        patience: seconds in which it must come to what the model says; few while hypothesis looks for the
            shortest way to a failure that it has found.
    """

    patience = 5.0

    def __init__(self) -> None:
        super().__init__()
        Gates.open, Gates.begun = {}, Counter()
        self.runner = asyncio.Runner()
        self.lives = 0
        self.store = MemoryStore(clock=lambda: time.time() + 60 * self.lives)
        self.runs: dict[str, RunModel] = {}
        self.callers: list[Caller] = []
        self.do(self.open())

    def do(self, main: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(asyncio.wait_for(main, 4 * self.patience))

    # -------------------------------------------------------------- a process's life
    async def open(self) -> None:
        self.lives += 1
        self.silent = Silent(self.store, None)
        self.flow = Flowlet(self.silent, registry=sagas, grace=0)
        await self.flow.__aenter__()

    async def die(self) -> None:
        """Lose the store, so that nothing of this process reaches it any more, and begin a new one."""
        self.silent.lost.set()
        callers, self.callers = self.callers, []
        for caller in callers:
            caller.task.cancel()
        await asyncio.gather(*(caller.task for caller in callers), return_exceptions=True)
        await self.flow.__aexit__(None, None, None)
        assert not Gates.open
        for run in self.runs.values():
            run.again()
        await self.open()

    # -------------------------------------------------------------- coming to what the model says
    async def see(self) -> Picture:
        heads = await self.store.scan(kind="run")
        return Picture(Counter(Gates.begun), set(Gates.open), {head.id: head.status for head in heads})

    def expected(self) -> Picture:
        begun: Counter[tuple[str, int]] = Counter()
        waiting: set[tuple[str, int]] = set()
        for id, run in self.runs.items():
            begun.update({(f"{id}/{key}", attempt): n for (key, attempt), n in run.begun.items()})
            waiting.update((f"{id}/{key}", attempt) for key, attempt in run.waiting.items())
        return Picture(begun, waiting, {id: run.status for id, run in self.runs.items()})

    async def settle(self) -> None:
        expected, end = self.expected(), time.monotonic() + self.patience
        while await self.see() != expected and time.monotonic() < end:
            await asyncio.sleep(0)
        for _ in range(5):  # and there it stays
            await asyncio.sleep(0)
        found = await self.see()
        if found != expected:
            RunMachine.patience = 0.5
        assert found == expected
        for caller in [c for c in self.callers if self.runs[c.id].is_over]:
            self.callers.remove(caller)
            async with asyncio.timeout(self.patience):
                await self.check_outcome(self.runs[caller.id], caller.task)
        assert not any(caller.task.done() for caller in self.callers)

    async def check_outcome(self, run: RunModel, asked: Any) -> None:
        result, error = None, None
        try:
            result = await asked
        except (Refused, RunCancelled) as failure:
            error = failure
        if run.status == "completed":
            assert result == run.result
            return
        assert error is not None
        assert isinstance(error, RunCancelled) if run.error == CANCELLED else str(error) == run.error
        failed = error.__cause__.failed if isinstance(error.__cause__, CompensationFailed) else ()
        assert list(failed) == run.stuck

    # -------------------------------------------------------------- moves
    @initialize(first=plans, second=plans)
    def begin(self, first: Plan, second: Plan) -> None:
        self.start("r1", first, "start")
        self.start("r2", second, "execute")

    @rule(id=ids, plan=plans, way=st.sampled_from(["start", "execute"]))
    def start(self, id: str, plan: Plan, way: Way) -> None:
        saga, size = plan

        async def main() -> None:
            known = self.runs.get(id)
            if known is not None and (known.saga, known.size) != (saga, size):
                with pytest.raises(IdConflict):
                    await getattr(self.flow, way)(SAGAS[saga], size, id=id)
                return
            if known is None:
                self.runs[id] = RunModel(saga, size, here=way == "execute")
            if way == "start":
                waits: Any = (await self.flow.start(SAGAS[saga], size, id=id)).result()
            else:
                waits = self.flow.execute(SAGAS[saga], size, id=id)
            executes = way == "execute" and known is None
            self.callers.append(Caller(id, asyncio.create_task(waits), executes))
            await self.settle()

        self.do(main())

    def steps_wait(self) -> bool:
        return any(run.waiting for run in self.runs.values())

    @precondition(steps_wait)
    @rule(numbers=st.lists(choices, min_size=1, max_size=5))
    def advance(self, numbers: list[int]) -> None:
        """Have one step after another return."""
        for number in numbers:
            if self.steps_wait():
                self.do(self.let(*self.choose(number), works=True))

    def choose(self, number: int) -> tuple[str, str]:
        """Return a step that waits, for low numbers one of the run that has come farthest."""
        waiting = [(-len(run.log), id, key) for id, run in self.runs.items() for key in run.waiting]
        _, id, key = sorted(waiting)[number % len(waiting)]
        return id, key

    async def let(self, id: str, key: str, works: bool) -> None:
        run = self.runs[id]
        Gates.open[f"{id}/{key}", run.waiting[key]].set_result(works)
        run.advance(key, works)
        await self.settle()

    @precondition(steps_wait)
    @rule(number=st.integers(0, 2), times=st.sampled_from([1, 2, 2]))
    def fail(self, number: int, times: int) -> None:
        """Have a step fail so many times, or until it has failed for good."""
        id, key = self.choose(number)
        for _ in range(times):
            if key in self.runs[id].waiting:
                self.do(self.let(id, key, False))

    def may_die(self) -> bool:
        return self.lives < 10  # so often in vain that it is parked is another test's subject

    @precondition(may_die)
    @rule()
    def crash(self) -> None:
        async def main() -> None:
            await self.die()
            await self.settle()

        self.do(main())

    @precondition(lambda self: self.may_die() and self.steps_wait())
    @rule(number=choices, works=st.booleans(), when=st.sampled_from(["before", "after"]))
    def crash_at_the_record(self, number: int, works: bool, when: CrashAt) -> None:
        """Die when the end of an attempt is to be stored, or has just been."""

        async def main() -> None:
            id, key = self.choose(number)
            run = self.runs[id]
            self.silent.lose_next(before=when == "before")
            Gates.open[f"{id}/{key}", run.waiting[key]].set_result(works)
            async with asyncio.timeout(self.patience):
                await self.silent.lost.wait()
            if when == "after":
                before = Counter(run.begun)
                run.advance(key, works)
                run.begun = before  # what follows has not begun, and does so in the next life
            await self.die()
            await self.settle()

        self.do(main())

    @precondition(lambda self: self.callers)
    @rule(number=st.integers(0, 2), times=st.integers(1, 2))
    def leave(self, number: int, times: int) -> None:
        """Cancel somebody who waits: the run goes on without."""

        async def main() -> None:
            self.callers.sort(key=lambda caller: not caller.executes)  # those first to whom it matters
            caller = self.callers.pop(number % len(self.callers))
            for _ in range(times):
                caller.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller.task
            run = self.runs[caller.id]
            if caller.executes and run.here:
                run.again()
            await self.settle()

        self.do(main())

    @rule(id=ids)
    def resume(self, id: str) -> None:
        async def main() -> None:
            run, handle = self.runs.get(id), self.flow.handle(id)
            if run is None:
                with pytest.raises(RunNotFound):
                    await handle.resume()
            elif run.has_ended:
                with pytest.raises(RunFinished):
                    await handle.resume()
            else:
                await handle.resume()
                if run.status == "compensation_failed":
                    run.resume()
            await self.settle()

        self.do(main())

    @rule(id=ids)
    def cancel(self, id: str) -> None:
        async def main() -> None:
            run, handle = self.runs.get(id), self.flow.handle(id)
            if run is None:
                with pytest.raises(RunNotFound):
                    await handle.cancel()
            elif run.has_ended and run.error != CANCELLED:
                with pytest.raises(RunFinished):
                    await handle.cancel()
            elif run.status == "compensation_failed":
                with pytest.raises(RunError, match="being undone already"):
                    await handle.cancel()
            else:
                await handle.cancel()
                run.cancel()
            await self.settle()

        self.do(main())

    @rule(id=ids)
    def ask(self, id: str) -> None:
        async def main() -> None:
            run, handle = self.runs.get(id), self.flow.handle(id)
            if run is None:
                for question in (handle.result, handle.status, handle.report):
                    with pytest.raises(RunNotFound):
                        await question()
                return
            assert await handle.status() == run.status
            await self.check_report(run, handle)
            if not run.is_over:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.001):
                        await handle.result()
            else:
                await self.check_outcome(run, handle.result())

        self.do(main())

    async def check_report(self, run: RunModel, handle: Handle[Any]) -> None:
        report = await handle.report()
        assert report.status == run.status
        words = {"s": "completed", "e": "failed", "c": "cancelled"}
        expected = {key: words[outcome] for key, outcome in run.log}
        expected.update({key: "retrying" for key, attempt in run.waiting.items() if attempt % 2 == 0})
        found = {key: step.status for key, step in report.steps.items()}
        again = run.waiting.keys() - expected.keys()
        assert {key: status for key, status in found.items() if key not in again} == expected
        numbers = [record.seq async for record in handle.history()]
        assert numbers == list(range(1, len(numbers) + 1))

    # -------------------------------------------------------------- the journals
    @invariant()
    def journals_are_as_they_must_be(self) -> None:
        for id, run in self.runs.items():
            stored = self.do(self.store.load(id))
            assert stored is not None
            records = [run_record_codec.decode(data, "a record") for data in stored.records]
            assert len(records) == stored.head.version
            assert [isinstance(r, Ended) for r in records].count(True) == int(stored.head.closed is not None)
            assert (stored.head.closed is not None) == run.has_ended
            assert stored.head.owner is None or not run.is_over
            outcomes = [(r.key, TAGS[type(r)]) for r in records if isinstance(r, tuple(TAGS))]
            assert [o for o in outcomes if o[1] != "c"] == [o for o in run.log if o[1] != "c"]
            assert Counter(outcomes) == Counter(run.log)

    def teardown(self) -> None:
        try:
            while self.steps_wait() and self.do(self.see()) == self.expected():  # or it has failed already
                self.do(self.let(*self.choose(0), works=True))
            self.journals_are_as_they_must_be()
            self.do(self.flow.__aexit__(None, None, None))
        finally:
            self.runner.close()


TAGS = {StepEnded: "s", StepErred: "e", StepStopped: "c"}


@pytest.fixture
def _quiet() -> Iterator[None]:
    structlog.configure(processors=[drop_event])
    yield
    structlog.reset_defaults()


@pytest.mark.usefixtures("_quiet")
def test_runs_behave_like_their_model() -> None:
    run_state_machine_as_test(
        RunMachine, settings=settings(max_examples=120, stateful_step_count=40, deadline=None, derandomize=True)
    )
