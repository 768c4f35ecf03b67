"""What a user is told who gets something wrong: each message says what to do."""

from __future__ import annotations

import re

import pytest

from flowlet import Flowlet, Registry, state, step, transition
from flowlet.errors import DecodeError, DefinitionError, FlowletError, RunError

pytestmark = pytest.mark.anyio

registry = Registry()


@step
async def double(number: int) -> int:
    return 2 * number


@registry.saga
async def twice(number: int) -> int:
    return await double(number)


@registry.saga
class Twice:
    async def __call__(self, number: int) -> int:
        return await double(number)


async def test_a_run_of_a_version_that_nobody_has_is_not_waited_for() -> None:
    old, new = Registry(), Registry()

    @old.saga(name="job")
    async def first(number: int) -> int:
        return await double(number)

    @new.saga(name="job", version=2)
    async def second(number: int) -> int:
        return await double(number)

    viewer = Flowlet(registry=old)
    store = viewer.store
    async with viewer:
        await viewer.execute(first, 1, id="j")
    entity = store._entities["j"]  # type: ignore[attr-defined]
    del entity.records[1:]  # as if the process had died at once
    entity.closed, entity.status, entity.wake, entity.owner = None, "running", 0.0, None
    async with Flowlet(store, registry=new, lease=0.1) as flow:
        with pytest.raises(RunError, match="'job' version 1, which is not included here"):
            await flow.execute(second, 1, id="j")


async def test_the_argument_that_is_wrong_is_named() -> None:
    async with Flowlet(registry=registry) as flow:
        with pytest.raises(DecodeError, match="argument 'number' of 'twice' does not decode to int"):
            await flow.execute(twice, "x")  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=re.escape("twice(number: 'int'): missing a required argument")):
            await twice()  # type: ignore[call-arg]


async def test_passing_a_call_instead_of_the_definition() -> None:
    async with Flowlet(registry=registry) as flow:
        with pytest.raises(FlowletError, match="twice was called: pass it and its arguments"):
            await flow.execute(twice(1))  # type: ignore[call-overload]
        with pytest.raises(FlowletError, match="an object of Twice was passed: pass the class"):
            await flow.execute(Twice(), 1)


def test_one_annotation_that_cannot_be_resolved_is_one_problem() -> None:
    @step
    async def take(thing: Unknown) -> int:  # type: ignore[name-defined]  # noqa: F821
        return 1

    with pytest.raises(DefinitionError) as caught:
        Registry().saga("s", take)
    assert len(caught.value.problems) == 1
    assert "'Unknown' is not defined" in caught.value.problems[0]


def test_a_guard_without_its_mark_is_a_fault() -> None:
    with pytest.raises(DefinitionError, match=r"Door\.can_open: is named like the guard of 'open'; put @guard on it"):

        @registry.machine
        class Door:
            @state(initial=True)
            class Closed: ...

            @state(final=True)
            class Opened: ...

            @transition(Closed, Opened)
            async def open(self) -> None: ...

            async def can_open(self) -> bool:
                return False
