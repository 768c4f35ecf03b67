"""The server and the management command are processes of their own, over one store."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

ORDER = {"sku": "LAMP", "quantity": 2}

PLAINLY = """
import json, sys
import shop.wsgi
from django.test import Client

for id in sys.argv[1:]:
    order = {"sku": "LAMP", "quantity": 2}
    answer = Client().post(f"/plain/orders/{id}", json.dumps(order), content_type="application/json")
    print(json.dumps([id, answer.status_code, answer.json()]))
"""


class Shop:
    """The project, with a store of its own."""

    def __init__(self, project: Path, folder: Path) -> None:
        paths = os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")])
        self.options: dict[str, Any] = {
            "cwd": folder,
            "env": os.environ | {"SHOP_STORE": f"sqlite:///{folder}/shop.db", "PYTHONPATH": paths},
            "text": True,
        }
        self.project = project

    @contextmanager
    def serving(self) -> Iterator[httpx.Client]:
        command = [sys.executable, "-m", "uvicorn", "shop.asgi:application", "--port", "0"]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, **self.options)
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
                yield client
        finally:
            server.kill()
            server.communicate()

    def plainly(self, *ids: str) -> list[tuple[str, int, Any]]:
        """Have a process with the entry point of WSGI begin orders, in views that are plain functions."""
        done = subprocess.run([sys.executable, "-c", PLAINLY, *ids], capture_output=True, timeout=60, **self.options)
        assert done.returncode == 0, done.stderr
        return [tuple(json.loads(line)) for line in done.stdout.splitlines()]

    def manage(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(self.project / "manage.py"), *arguments]
        return subprocess.run(command, capture_output=True, timeout=60, **self.options)


@pytest.fixture
def shop(root: Path, tmp_path: Path) -> Shop:
    return Shop(root / "examples" / "django_shop", tmp_path)


def test_the_command_and_the_server_work_on_the_same_orders(shop: Shop) -> None:
    with shop.serving() as client:
        for id in ("o-1", "o-2"):
            assert client.post(f"/orders/{id}", json=ORDER).json()["result"] is None
        assert client.post("/orders/o-1", json={**ORDER, "quantity": 3}).status_code == 409
        assert client.post("/orders/o-3", content="{").status_code == 400
        assert client.get("/orders/o-3").status_code == 404
        done = shop.manage("mark_paid", "o-1")
        assert done.stdout == "o-1: sent 2 x LAMP\n", done.stderr
        assert client.get("/orders/o-1").json() == {"status": "completed", "result": "sent 2 x LAMP"}
    done = shop.manage("mark_paid", "o-2")  # no server: the command takes it up itself
    assert done.stdout == "o-2: sent 2 x LAMP\n", done.stderr
    ended, begun = shop.plainly("o-2", "o-4")
    assert ended == ("o-2", 200, {"status": "completed", "result": "sent 2 x LAMP"})
    assert begun[:2] == ("o-4", 200)
    assert begun[2]["status"] in ("running", "waiting")
    done = shop.manage("mark_paid", "o-9")
    assert done.returncode == 1
    assert "CommandError" in done.stderr
    assert "o-9" in done.stderr
