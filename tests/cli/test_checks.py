"""``flowlet check``: all faults of all modules at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from flowlet.core.registry import BaseRegistry

if TYPE_CHECKING:
    from conftest import Cli

BROKEN = """
from flowlet import Registry, state, step, transition
registry = Registry()

@registry.saga
async def first(order): ...

@registry.machine
class Door:
    @state(initial=True)
    class Shut: ...
    @state
    class Stuck: ...
    @transition(Shut, "Opn")
    async def push(self) -> None: ...

@step
async def fine(n: int) -> int:
    return n

good = registry.saga("good", fine)
bad = registry.pipeline("bad", lambda x: x)
graph = registry.graph("graph", state=int)
"""


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Callable[[str, str], None]]:
    """Write modules into the current directory."""
    before, path = set(sys.modules), list(sys.path)

    def write_one(name: str, text: str) -> None:
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)

    yield write_one
    sys.path[:] = path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "") or "").startswith(str(tmp_path)):
            del sys.modules[name]


def test_no_problems(cli: Cli) -> None:
    done = cli("check", "cli_shop")
    assert done.code == 0
    assert done.out == "7 definitions in 1 module: no problems\n"


def test_all_problems_of_all_modules_are_reported(cli: Cli, write: Callable[[str, str], None]) -> None:
    write("shop/__init__.py", "")
    write("shop/broken.py", BROKEN)
    write("shop/worse.py", "import shop.broken\nraise RuntimeError('no configuration')\n")
    write("shop/wrong.py", "from flowlet import step\n@step(timeout='soon')\nasync def a() -> None: ...\n")
    write("shop/__main__.py", "raise SystemExit('this is the program')\n")
    methods = dict(vars(BaseRegistry))
    done = cli("check", "shop", "--json")
    assert done.code == 1
    found = done.document
    assert found["modules"] == ["shop", "shop.broken", "shop.worse", "shop.wrong"]
    text = [f"{each['module']}: {each['problem']}" for each in found["problems"]]
    assert [line.partition(":")[0] for line in text].count("shop.broken") >= 4
    for word in ("first", "Opn", "bad", "graph"):
        assert any(word in line for line in text), (word, text)
    assert "shop.worse: cannot be imported: RuntimeError: no configuration" in text
    assert any(line.startswith("shop.wrong: ") and "was not looked at" in line for line in text)
    assert dict(vars(BaseRegistry)) == methods  # as it was


def test_what_nothing_provides_is_reported_when_asked_for(cli: Cli, write: Callable[[str, str], None]) -> None:
    lines = "from flowlet import Flowlet, provided\nflow = Flowlet()\nclass Gateway: ...\n"
    lines += "async def charge(n: int, gateway: Gateway = provided) -> int:\n    return n\n"
    write("lacking.py", lines + "pay = flow.saga('pay', charge)\n")
    assert cli("check", "lacking").code == 0
    done = cli("check", "lacking", "--provided")
    assert done.code == 1
    assert "Gateway" in done.out
    assert cli("check", "cli_shop", "--provided").code == 0


def test_a_module_that_is_not_there(cli: Cli, write: Callable[[str, str], None]) -> None:
    assert cli("check", "no_such_module").code == 2
    assert "is no name of a module" in cli("check", "not-a-name.py").err
    write("needy.py", "import no_such_thing_at_all\n")
    assert "needs the module 'no_such_thing_at_all'" in cli("check", "needy").err


def test_an_application_with_faults_is_refused(cli: Cli, url: str, write: Callable[[str, str], None]) -> None:
    write("faulty.py", "from flowlet import Flowlet\nflow = Flowlet()\ngraph = flow.graph('graph', state=int)\n")
    done = cli("verify", "--store", url, "--app", "faulty:flow")
    assert done.code == 1
    assert "graph" in done.err
    assert "--app takes a flowlet.Flowlet" in cli("verify", "--store", url, "--app", "cli_shop:registry").err
