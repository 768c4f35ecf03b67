"""Every public name has an example that runs: `tests/test_readme.py` executes them, this looks whether there is one.

Public is what a public module exports, and the public methods of its classes. An example is a line with `>>>` in the
docstring; for a method, one in the docstring of its class that uses it will do, and for a class, one of its methods.

Excepted are errors, properties, values (Structs, whose docstrings list their fields), protocols (whoever writes a store
has an example of a whole one in `BasicStore`), the checks of `StoreConformance`, and what only other floors call.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from flowlet import Flowlet
from flowlet.app.blocking import BlockingHandle
from flowlet.runtime.handle import Handle
from flowlet.store import BasicStore, Store

MODULES = (
    "flowlet",
    "flowlet.config",
    "flowlet.diagram",
    "flowlet.ext.otel",
    "flowlet.ext.svcs",
    "flowlet.observing",
    "flowlet.store",
    "flowlet.testing",
    "flowlet.traversal",
)
RETURNED = (  # not exported: users are handed them
    "flowlet.app.blocking.Blocking",
    "flowlet.app.blocking.BlockingHandle",
    "flowlet.approval.Approval",
    "flowlet.core.bulk.BulkReport",
    "flowlet.graph.Graph",
    "flowlet.runtime.bulk.Bulk",
    "flowlet.runtime.handle.Handle",
    "flowlet.runtime.schedule_handle.Schedule",
)
BETWEEN_FLOORS = {
    "Approval": {"definition"},
    "Clock": {"about"},
    "Graph": {"build"},
    "OpenTelemetry": {"tell", "around", "trace"},  # an observer's
    "Registry": {"attach", "find_machine", "find_run", "flowlets", "only_flowlet", "runnable"},
    "Run": {"event_key"},
    "Services": {"open"},
    "StoreConformance": {"make_newer", "open_store", "pytest_generate_tests", "remove_store"},  # see its own example
}

SHOWN_BY: dict[type, type] = {BasicStore: Store, BlockingHandle: Handle}
"""Classes with the methods of another one, which is where it says what they do."""


def exported() -> Iterator[Any]:
    for name in MODULES:
        module = importlib.import_module(name)
        here = [n for n, v in vars(module).items() if not n.startswith("_") and getattr(v, "__module__", "") == name]
        yield from (getattr(module, each) for each in getattr(module, "__all__", here))
    for name in RETURNED:
        home, _, noun = name.rpartition(".")
        yield getattr(importlib.import_module(home), noun)


def examples(thing: Any) -> str:
    lines = (line.strip() for line in (thing.__doc__ or "").splitlines())
    return "\n".join(line for line in lines if line.startswith((">>>", "...")))


def methods(kind: type) -> Iterator[tuple[str, Any]]:
    for base in kind.__mro__:
        if base is not kind and not (kind is Flowlet and base.__module__.startswith("flowlet.app")):
            continue  # inherited; a Flowlet is put together of several sides
        for name, value in vars(base).items():
            function = getattr(value, "__func__", value)
            if name in vars(SHOWN_BY.get(kind, object)):
                continue
            if not name.startswith("_") and inspect.isfunction(function):
                yield name, function


def is_excepted(kind: type) -> bool:
    return issubclass(kind, (BaseException, msgspec.Struct)) or getattr(kind, "_is_protocol", False)


def without_example() -> Iterator[str]:
    for thing in exported():
        if inspect.isfunction(thing) and not examples(thing):
            yield thing.__qualname__
        if not inspect.isclass(thing) or is_excepted(thing) or not thing.__module__.startswith("flowlet"):
            continue
        if not examples(thing) and not any(examples(method) for _, method in methods(thing)):
            yield thing.__qualname__
        for name, method in methods(thing):
            own = name not in BETWEEN_FLOORS.get(thing.__name__, ()) and not name.startswith("test_")
            if own and not examples(method) and not re.search(rf"\b{name}\b", examples(thing)):
                yield f"{thing.__qualname__}.{name}"


def test_every_public_name_has_an_example() -> None:
    assert sorted(set(without_example())) == []
