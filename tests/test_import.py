"""What ``import flowlet`` costs: no extra, no logging or retry library, no second of waiting."""

from __future__ import annotations

import json
import subprocess
import sys

LAZY = {"tenacity", "structlog"}
EXTRAS = {"asyncpg", "click", "opentelemetry", "redis", "restate", "rich", "starlette", "yaml"}
LOOPS = {"trio"}  # the user's choice, made by running on it
DEVELOPMENT = {"attr", "attrs", "hypothesis", "pytest", "sybil"}

PROBE = """
import json, sys, time
began = time.perf_counter()
import flowlet
print(json.dumps({"seconds": time.perf_counter() - began, "modules": sorted(sys.modules), "names": flowlet.__all__}))
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


def test_import_takes_no_noticeable_time() -> None:
    # A sanity bound for a loaded machine; tests/benchmarks is where time is measured.
    seconds = [probe()["seconds"] for _ in range(3)]
    assert min(s for s in seconds if isinstance(s, float)) < 1.0


def test_every_public_name_exists_and_nothing_else_is_promised() -> None:
    import flowlet

    assert len(set(flowlet.__all__)) == len(flowlet.__all__)
    missing = [name for name in flowlet.__all__ if not hasattr(flowlet, name)]
    assert missing == []
