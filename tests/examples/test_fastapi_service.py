"""The service is killed in the middle of an order, started again, and the order is completed."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest


class Service:
    """One database and one file of effects, in a directory of their own."""

    def __init__(self, folder: Path, script: Path) -> None:
        self.command = [sys.executable, str(script), "--port", "0"]
        self.command += ["--store", f"sqlite:///{folder}/orders.db", "--effects", str(folder / "effects")]
        self.file = folder / "effects"

    @contextmanager
    def running(self, *options: str) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
        """Run the server on a free port, which it says when it listens."""
        server = subprocess.Popen([*self.command, *options], stderr=subprocess.PIPE, text=True)
        assert server.stderr is not None
        said: list[str] = []
        try:
            for line in server.stderr:
                said.append(line)
                found = re.search(r"running on (http://\S+)", line)
                if found:
                    break
            else:
                pytest.fail("".join(said))
            with httpx.Client(base_url=found[1], timeout=20) as client:
                yield client, server
        finally:
            server.kill()
            server.communicate()

    @property
    def effects(self) -> list[str]:
        return [line.partition("\t")[2] for line in self.file.read_text().splitlines()]


@pytest.fixture
def service(tmp_path: Path, root: Path) -> Service:
    return Service(tmp_path, root / "examples" / "fastapi_service.py")


def order(id: str, total: int) -> dict[str, Any]:
    return {"id": id, "customer": "ann", "sku": "LAMP", "total": total}


def wait_for(client: httpx.Client, id: str, **wanted: Any) -> dict[str, Any]:
    """Ask for an order until it is as wanted."""
    until = time.monotonic() + 20
    while True:
        shown: dict[str, Any] = client.get(f"/orders/{id}").raise_for_status().json()
        if wanted.items() <= shown.items():
            return shown
        assert time.monotonic() < until, shown
        time.sleep(0.01)


def test_killed_and_started_again_it_completes_the_order(service: Service) -> None:
    with service.running("--crash-at", "2") as (client, server):
        assert client.post("/orders", json=order("o-1", 40)).status_code == 201
        with suppress(httpx.TransportError):  # it dies behind the charge, perhaps before it has answered
            client.post("/orders/o-1/confirm")
        assert server.wait(20) == -signal.SIGKILL
    assert service.effects == ["reserve LAMP", "charge 40"]
    with service.running() as (client, server):
        shown = wait_for(client, "o-1", fulfilment="completed")
        assert shown["state"] == "Shipped"
        assert shown["label"] == "label-o-1"
        again = client.post("/orders/o-1/confirm")
        assert again.status_code == 409
        assert "'confirm'" in again.json()["error"]
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) in (0, -signal.SIGTERM)
    assert service.effects == ["reserve LAMP", "charge 40", "send LAMP"]


def test_a_large_order_waits_for_a_manager_over_restarts(service: Service) -> None:
    with service.running() as (client, _):
        for id in ("o-1", "o-2"):
            client.post("/orders", json=order(id, 5_000)).raise_for_status()
            assert client.post(f"/orders/{id}/confirm").status_code == 202
            wait_for(client, id, done=["reserve"])
        assert client.get("/orders/o-9").status_code == 404
        assert client.post("/orders", json=order("a/b", 40)).status_code == 422
    with service.running() as (client, _):
        with_wrong_role = client.post("/orders/o-1/approve", json={"by": "dan"})
        assert with_wrong_role.status_code == 409
        assert client.post("/orders/o-1/approve", json={"by": "bob"}).status_code == 202
        assert client.post("/orders/o-2/reject", json={"by": "eve", "comment": "too much"}).status_code == 202
        wait_for(client, "o-1", state="Shipped")
        wait_for(client, "o-2", state="Cancelled", fulfilment="compensated")
    assert sorted(service.effects) == sorted(["reserve LAMP"] * 2 + ["charge 5000", "send LAMP", "put back LAMP"])
