"""What ``import flowlet`` costs: no extra, no logging or retry library, no second of waiting."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

LAZY = {"tenacity", "structlog"}
EXTRAS = {"svcs", "asyncpg", "click", "cronsim", "opentelemetry", "redis", "restate", "rich", "starlette", "yaml"}
LOOPS = {"trio"}  # the user's choice, made by running on it
DEVELOPMENT = {"attr", "attrs", "hypothesis", "pytest", "sybil"}

PROBE = """
import json, sys, time
began = time.perf_counter()
import flowlet
at_once = sorted(name for name in sys.modules if name.startswith("flowlet."))
from flowlet import *
seconds = time.perf_counter() - began
print(json.dumps({"at_once": at_once, "seconds": seconds, "modules": sorted(sys.modules), "names": flowlet.__all__}))
"""


def probe() -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", PROBE], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_import_loads_neither_extras_nor_what_is_needed_later() -> None:
    modules = probe()["modules"]
    assert isinstance(modules, list)
    loaded = {name.partition(".")[0] for name in modules}
    assert "flowlet" in loaded
    assert not loaded & (LAZY | EXTRAS | LOOPS | DEVELOPMENT)


def test_names_are_imported_when_somebody_asks_for_them() -> None:
    assert probe()["at_once"] == []


def test_type_checkers_see_the_names_where_they_are(root: Path) -> None:
    import flowlet

    tree = ast.parse((root / "flowlet/__init__.py").read_text(encoding="utf-8"))
    (seen,) = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    homes = {n.module: tuple(a.name for a in n.names) for n in seen.body if isinstance(n, ast.ImportFrom)}
    assert homes == flowlet._HOMES
    assert sorted(name for names in homes.values() for name in names) == sorted(flowlet.__all__)


def test_import_takes_no_noticeable_time() -> None:
    # A sanity bound for a loaded machine; tests/benchmarks is where time is measured.
    seconds = [probe()["seconds"] for _ in range(3)]
    assert min(s for s in seconds if isinstance(s, float)) < 2.0


def test_every_public_name_exists_and_nothing_else_is_promised() -> None:
    import flowlet

    assert len(set(flowlet.__all__)) == len(flowlet.__all__)
    missing = [name for name in flowlet.__all__ if not hasattr(flowlet, name)]
    assert missing == []


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the top-level packages that a module imports when it runs, at once or later."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]
        else:
            yield from imports(node)


def test_only_declared_packages_are_imported(root: Path) -> None:
    declared = {re.split(r"[^\w-]", line)[0].lower() for line in requires("flowlet") or () if "extra" not in line}
    assert declared == {"anyio", "msgspec", "structlog", "tenacity"}
    newer = {"annotationlib"}  # a part of Python since 3.14
    allowed = {"flowlet"} | declared | LOOPS | EXTRAS | sys.stdlib_module_names | newer
    undeclared = {
        (path.relative_to(root).as_posix(), name)
        for path in (root / "flowlet").rglob("*.py")
        for name in imports(ast.parse(path.read_text(encoding="utf-8")))
        if name not in allowed
    }
    # `flowlet.testing` is for the tests of those who write stores, and they have pytest.
    assert {
        found for found in undeclared if not (found[0].startswith("flowlet/testing/") and found[1] == "pytest")
    } == set()
