"""The command line over PostgreSQL and Redis."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import anyio
import cli_shop
import postgres_server
import pytest
import redis_server

from flowlet import Flowlet

if TYPE_CHECKING:
    from conftest import Cli


@pytest.fixture(params=["postgres", "redis"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the URL of a server, with a place for this test that nobody has used."""
    if request.param == "postgres":
        with postgres_server.new_database(postgres_server.database_url()) as database:
            yield database
    else:
        server, prefix = redis_server.best(), f"flowlet-cli-{os.getpid()}"
        yield f"{server}&prefix={prefix}"
        redis_server.remove(server, prefix)


def test_all_of_it(cli: Cli, url: str) -> None:
    for command in ("runs list", "runs show x", "verify", "runs cancel x -y", "store prune --older-than 1d -y"):
        missing = cli(*command.split(), "--store", url)
        assert missing.code == 3, command
        assert "nothing was created" in missing.err
    assert cli("store", "migrate", "-y", "--store", url).code == 0
    assert cli("runs", "list", "--store", url).code == 0
    anyio.run(cli_shop.write_history, url)
    rows = cli("runs", "list", "--store", url, "--json").lines
    assert [row["status"] for row in rows] == [
        *("completed", "compensated", "compensation_failed", "needs_attention", "waiting", "parked", "waiting"),
        "completed",
    ]
    assert cli("runs", "show", "good", "--store", url, "--json").document["input"]["card"]["number"] == "***"
    assert cli("verify", "--store", url, "--app", "cli_shop:flow").code == 0
    assert cli("runs", "signal", "wait-1", "payment", "7", "-y", "--store", url).code == 0

    async def execute() -> None:
        async with Flowlet(url, registry=cli_shop.registry, drain_on_sigterm=False) as flow:
            with anyio.fail_after(20):
                assert await flow.handle("wait-1").result() == "7 for w-1"

    anyio.run(execute)
    found = {finding["check"]: finding for finding in cli("doctor", "--store", url, "--json").document}
    assert found["store"]["status"] == "ok"
    assert found["runs"]["status"] == "problem"
    assert cli("store", "prune", "--older-than", "0s", "-y", "--store", url).out.startswith("6 deleted")
