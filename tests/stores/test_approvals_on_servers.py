"""Approval chains on PostgreSQL and Redis: decided by two processes' worth of Flowlets, of which one is the last."""

from __future__ import annotations

import os
from collections.abc import Iterator

import anyio
import postgres_server
import pytest
import redis_server

from flowlet import Flowlet, Registry, level
from flowlet.approval import ApprovalNotice
from flowlet.errors import AlreadyDecided

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("anyio_backend", ["asyncio"])]  # what the drivers run on


@pytest.fixture(params=["postgres", "redis"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the URL of a server, with a place for this test."""
    if request.param == "postgres":
        with postgres_server.new_database(postgres_server.database_url()) as database:
            yield database
    else:
        server, prefix = redis_server.best(), f"flowlet-approvals-{os.getpid()}"
        yield f"{server}&prefix={prefix}"
        redis_server.remove(server, prefix)


registry = Registry()
told: list[str] = []


def tell(notice: ApprovalNotice[int]) -> None:
    told.append(f"{notice.what} {notice.level}")


order = registry.approval(
    "order",
    level("manager", role="manager", timeout=0.3, escalate_to="director"),
    level("finance", approvers=lambda amount: ["fay", "fin", "ann"], quorum="all"),
    type=int,
    notify=tell,
)


async def test_decided_by_two_and_escalated_by_time(url: str) -> None:
    told.clear()
    async with Flowlet(url, registry=registry) as flow:
        await flow.start(order, 5, id="o", requester="ann")
        with anyio.fail_after(20):
            while "escalated manager" not in told:
                await anyio.sleep(0.01)
    async with Flowlet(url, registry=registry) as one, Flowlet(url, registry=registry) as other:
        assert [item.level async for item in one.inbox(role="director")] == ["manager"]
        ends: list[str] = []

        async def approve(flow: Flowlet, by: str) -> None:
            try:
                await flow.approve("o", by=by, roles={"director"}, level="manager")
            except AlreadyDecided:
                ends.append("too late")

        async with anyio.create_task_group() as group:
            for number in range(6):
                group.start_soon(approve, (one, other)[number % 2], f"director {number}")
        assert ends == 5 * ["too late"]
        await one.approve("o", by="fay")
        await other.delegate("o", by="fin", to="flo")
        await one.approve("o", by="flo")
        outcome = await other.handle("o", order).result(raise_on_reject=True)
        assert [d.by for d in outcome.decisions][1:] == ["fay", "flo"]
        refused = [entry async for entry in one.audit("o") if entry.what == "refused"]
        assert len(refused) == 5
    assert told[-1] == "ended None"
