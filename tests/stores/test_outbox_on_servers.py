"""Transitions that start runs and send signals on PostgreSQL and Redis: all or nothing, and one winner of a race."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import anyio
import msgspec
import postgres_server
import pytest
import redis_server

from flowlet import Flowlet, Registry, state, step, transition
from flowlet.errors import Conflict, IdConflict, RunFinished
from flowlet.runtime.machine_questions import state_of

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]  # what the drivers run on

registry = Registry()


@pytest.fixture(params=["postgres", "redis"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the URL of a server, with a place for this test."""
    if request.param == "postgres":
        with postgres_server.new_database(postgres_server.database_url()) as database:
            yield database
    else:
        server, prefix = redis_server.best(), f"flowlet-outbox-{os.getpid()}"
        yield f"{server}&prefix={prefix}"
        redis_server.remove(server, prefix)


class Words(msgspec.Struct):
    text: str = ""


@step
async def work(n: int) -> int:
    return n + 1


@registry.saga
async def job(n: int) -> int:
    return await work(n)


talk = registry.graph("talk", state=Words)
talk.pause("say", type=str, merge=lambda words, said: {"text": words.text + said})
talk.pause("end", type=str, merge=lambda words, said: {"text": words.text + said})
talk.entry("say")
talk.edge("say", "end")
talk.final("end")


@registry.machine
class Desk:
    _act: Any = None

    @state(initial=True)
    class Open: ...

    @state(final=True)
    class Done: ...

    @transition(Open, Done)
    async def go(self) -> None:
        await self._act()


async def test_all_or_nothing(url: str) -> None:
    async with Flowlet(url, registry=registry) as flow:

        async def act() -> None:
            await flow.start(job, 5, id="r")
            made = await flow.start(talk, Words(">"))
            for handle in (made, flow.handle("t")):
                await handle.send("say", "a")
                await handle.send("end", "b")
            if fails:
                raise ValueError("no")

        fails = [True]
        await flow.start(talk, Words(), id="t")
        desk = await flow.create(Desk(), id="d")
        desk._act = act
        with pytest.raises(ValueError, match="no"):
            await desk.go()
        assert [run.id async for run in flow.runs()] == ["t"]
        fails.clear()
        await flow.execute(job, 6, id="r")
        with pytest.raises(IdConflict):
            await desk.go()
        assert (state_of(desk), [run.id async for run in flow.runs()]) == ("Open", ["t", "r"])
        assert (await flow.store.load("t", limit=0)).head.inbox == 0  # type: ignore[union-attr]
        await flow.prune(0)
        await desk.go()
        with anyio.fail_after(20):
            assert await flow.handle("d@2/talk").result() == Words(">ab")
            assert await flow.handle("t").result() == Words("ab")
            assert await flow.handle("r", job).result() == 6
        again = await flow.create(Desk(), id="e")

        async def join() -> None:
            await flow.start(job, 5, id="r")

        async def late() -> None:
            await flow.start(talk, Words(">"), id="d@2/talk")
            await flow.handle("d@2/talk").send("say", "late")

        again._act = late
        with pytest.raises(RunFinished):
            await again.go()
        again._act = join
        await again.go()
        assert state_of(again) == "Done"


async def test_one_winner(url: str) -> None:
    async with Flowlet(url, registry=registry) as a, Flowlet(url, registry=registry) as b:
        for n in range(20):
            one, two = await a.create(Desk(), id=f"d-{n}"), await b.load(Desk, f"d-{n}")
            won: list[int] = []
            lost: list[str] = []

            async def race(
                desk: Any, flow: Flowlet, who: int, n: int = n, won: list[int] = won, lost: list[str] = lost
            ) -> None:
                async def act() -> None:
                    await flow.start(job, who, id=f"r-{n}" if n % 2 else None)

                desk._act = act
                try:
                    await desk.go()
                    won.append(who)
                except Conflict as error:
                    lost.append(error.id)

            async with anyio.create_task_group() as group:
                group.start_soon(race, one, a, 1)
                group.start_soon(race, two, b, 2)
            assert (len(won), lost) == (1, [f"d-{n}"])
            with anyio.fail_after(20):
                assert await b.handle(f"r-{n}" if n % 2 else f"d-{n}@2/job", job).result() == won[0] + 1
        assert len([run async for run in a.runs()]) == 20
