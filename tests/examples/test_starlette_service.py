"""A webhook is heard once, however often it is sent, and before or after the payment waits for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import starlette_service

from flowlet import Flowlet

pytestmark = pytest.mark.anyio

URL = "/payments/p-1"


@asynccontextmanager
async def running(url: str) -> AsyncIterator[httpx.AsyncClient]:
    """Be a server process: with a Flowlet of its own, on a database that others may have had."""
    app = starlette_service.make_app(Flowlet(url))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client,
    ):
        yield client


async def tell(client: httpx.AsyncClient, id: str, **news: Any) -> int:
    answer = await client.post(f"/webhooks{URL}", json=news, headers={"webhook-id": id})
    return answer.status_code


async def result(client: httpx.AsyncClient) -> Any:
    with anyio.fail_after(20):
        while (shown := (await client.get(URL)).json())["status"] != "completed":
            await anyio.sleep(0.005)
    return shown["result"]


async def test_over_a_restart(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/payments.db"
    async with running(url) as client:
        assert (await client.get(URL)).status_code == 404
        assert await tell(client, "m-0", status="paid") == 404
        assert (await client.post(URL, json={"amount": 40})).json()["result"] is None
        assert (await client.post(URL, json={"amount": 40})).status_code == 200  # the same payment
        assert (await client.post(URL, json={"amount": 41})).status_code == 409
        assert (await client.post(URL, content="{")).status_code == 400
        for _ in range(3):
            assert await tell(client, "m-1", status="pending") == 204
    async with running(url) as client:
        assert await tell(client, "m-2", status="paid", reference="77") == 204
        assert await result(client) == "receipt for 40, 77"
        for message in ("m-2", "m-3"):  # sent again, or too late
            assert await tell(client, message, status="paid") == 204


async def test_one_that_is_refused_and_one_that_nobody_hears_of(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running("memory://") as client:
        await client.post(URL, json={"amount": 40})
        await tell(client, "m-1", status="refused")
        assert await result(client) == "refused"
    monkeypatch.setattr(starlette_service, "PATIENCE", timedelta(seconds=0.01))
    async with running("memory://") as client:
        await client.post(URL, json={"amount": 40})
        assert await result(client) == "expired"
