"""Services of svcs, for parameters ``= provided``."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from typing import Any

import anyio
import pytest
import svcs

from flowlet import Flowlet, guard, provided, state, step, transition
from flowlet.errors import DefinitionError, MissingExtra, ProviderFailed, RunParked
from flowlet.ext.svcs import Services

pytestmark = pytest.mark.anyio


class Session:
    """What must not be shared."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.is_open = True


class Gateway:
    name = "visa"


class Sessions:
    """Counts those that are made and closed."""

    def __init__(self) -> None:
        self.made: list[Session] = []

    async def make(self) -> AsyncIterator[Session]:
        await anyio.lowlevel.checkpoint()
        session = Session(len(self.made))
        self.made.append(session)
        yield session
        await anyio.lowlevel.checkpoint()
        session.is_open = False


@pytest.fixture
def sessions() -> Sessions:
    return Sessions()


@pytest.fixture
def flow(sessions: Sessions) -> Flowlet:
    registry = svcs.Registry()
    registry.register_factory(Session, sessions.make)
    registry.register_factory(Gateway, Gateway)
    flow = Flowlet()
    flow.provide_from(Services(registry))
    return flow


@step
async def number_of(session: Session = provided, gateway: Gateway = provided) -> int:
    assert session.is_open
    return session.number


async def test_each_attempt_has_a_container_that_is_closed_with_it(flow: Flowlet, sessions: Sessions) -> None:
    @step(retry=2)
    async def stumble(session: Session = provided, again: Session = provided) -> int:
        assert session is again
        if session.number == 0:
            raise OSError("once")
        return session.number

    @step(timeout=5)
    def in_thread(session: Session = provided) -> int:
        assert session.is_open
        return session.number

    @step
    async def third(stumble: int, number_of: int, in_thread: int) -> list[int]:
        return [stumble, number_of, in_thread]

    saga = flow.saga("saga", stumble, number_of, in_thread, third)
    async with flow:
        assert await saga() == [1, 2, 3]
        assert [s.is_open for s in sessions.made] == [False] * 4


async def test_a_cancelled_attempt_closes_its_container(flow: Flowlet, sessions: Sessions) -> None:
    @step(timeout=0.3)
    async def hang(session: Session = provided) -> None:
        await anyio.sleep_forever()

    saga = flow.saga("saga", hang)
    async with flow:
        with pytest.raises(TimeoutError):
            await saga()
        assert [s.is_open for s in sessions.made] == [False]


async def test_all_else_shares_one_until_the_end(flow: Flowlet, sessions: Sessions) -> None:
    @flow.machine
    class Case:
        @state(initial=True)
        class A: ...

        @state(final=True)
        class B: ...

        @guard
        def can_go(self, session: Session = provided) -> bool:
            return session.is_open

        @transition(A, B)
        async def go(self, session: Session = provided, gateway: Gateway = provided) -> int:
            return session.number

    @flow.saga
    async def body(session: Session = provided) -> int:
        return session.number

    for number in (0, 1):  # anew each time it is entered
        async with flow:
            assert await (await flow.create(Case, id=f"c{number}")).go() == number
            assert await body() == number
            assert sessions.made[number].is_open
        assert not sessions.made[number].is_open
    assert len(sessions.made) == 2


async def test_what_is_shared_is_made_once(flow: Flowlet, sessions: Sessions) -> None:
    @flow.saga
    async def number(session: Session = provided) -> int:
        return session.number

    async with flow, anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(number)
    assert len(sessions.made) == 1


async def test_a_container_that_is_given_later() -> None:
    flow, one, other = Flowlet(), svcs.Registry(), svcs.Registry()
    one.register_value(Gateway, Gateway())
    other.register_value(Session, Session(7))
    flow.provide_from(Services(one))

    @flow.saga
    async def name(gateway: Gateway = provided) -> str:
        return gateway.name

    async with flow:
        assert await name() == "visa"
        flow.provide_from(Services(other))

        @flow.saga
        async def number(session: Session = provided) -> int:
            return session.number

        assert await number() == 7


async def test_a_container_that_could_not_be_opened_is_tried_again() -> None:
    class Flaky(Services):
        is_down = True

        def open(self) -> Any:
            if self.is_down:
                raise OSError("down")
            return super().open()

    registry = svcs.Registry()
    registry.register_value(Gateway, Gateway())
    services = Flaky(registry)
    flow = Flowlet()
    flow.provide_from(services)

    @flow.saga
    async def name(gateway: Gateway = provided) -> str:
        return gateway.name

    async with flow:
        with pytest.raises(RunParked, match="down"):
            await name()
        services.is_down = False
        assert await name() == "visa"


async def test_each_item_has_its_own(flow: Flowlet, sessions: Sessions) -> None:
    async def one(n: int, session: Session = provided) -> int:
        await anyio.lowlevel.checkpoint()
        assert session.is_open
        return session.number

    def plainly(n: int, session: Session = provided) -> int:
        return session.number

    async with flow:
        assert sorted(await flow.bulk(one, range(4)).values()) == [0, 1, 2, 3]
        assert sorted(await flow.bulk(plainly, range(2)).values()) == [4, 5]
        assert (await flow.bulk(one, range(2), id="durable")).succeeded == 2
        assert not any(s.is_open for s in sessions.made)


async def test_what_is_provided_wins_and_what_is_missing_is_found(flow: Flowlet) -> None:
    class Other: ...

    flow.provide(Gateway, Gateway())
    saga = flow.saga("saga", number_of)
    async with flow:
        with flow.override(Session, Session(7)):
            assert await saga() == 7

    @step
    async def use(other: Other = provided) -> None: ...

    flow.saga("lacking", use)
    with pytest.raises(DefinitionError, match="nothing provides Other"):
        await flow.__aenter__()


async def test_a_factory_may_take_a_service(flow: Flowlet, sessions: Sessions) -> None:
    class Books:
        def __init__(self, session: Session = provided) -> None:
            self.session = session

    flow.provide(Books)

    @step
    async def use(books: Books = provided) -> int:
        return books.session.number

    saga = flow.saga("saga", use)
    async with flow:
        assert await saga() == 0
        assert await saga() == 0


async def test_a_service_that_cannot_be_made(flow: Flowlet) -> None:
    registry = svcs.Registry()

    async def fail() -> Any:
        raise OSError("down")

    registry.register_factory(Session, fail)
    flow = Flowlet()
    flow.provide_from(Services(registry))

    @step
    async def use(session: Session = provided) -> int:
        return session.number

    saga = flow.saga("saga", use)
    async with flow:
        with pytest.raises(ProviderFailed, match="there is no Session: taking it from its container failed: OSError"):
            await saga()


@pytest.fixture
def without_svcs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "svcs", None)
    monkeypatch.delitem(sys.modules, "flowlet.ext.svcs")


@pytest.mark.usefixtures("without_svcs")
async def test_without_svcs() -> None:
    with pytest.raises(MissingExtra, match="pip install svcs"):
        import flowlet.ext.svcs  # noqa: F401
