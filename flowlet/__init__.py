"""flowlet: workflows that do not lose their place.

Mark the async functions and classes you have, let a registry assemble them into state machines, sagas
and pipelines, and run them over a store that keeps every step.

Law: a name is imported when somebody asks for it, so that the command line, and whoever needs no more than
`flowlet.errors`, does not wait for the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from flowlet.app import Flowlet
    from flowlet.core.annotations import provided
    from flowlet.core.approval_levels import level
    from flowlet.core.approval_values import Decision
    from flowlet.core.gathering import gather
    from flowlet.core.guards import all_of, any_of, not_
    from flowlet.core.machine import Transition
    from flowlet.core.marks import compensate, guard, state, step, transition
    from flowlet.core.retry import Retry
    from flowlet.core.run import Run, current_run
    from flowlet.core.secrets import Secret
    from flowlet.registry import Registry, describe
    from flowlet.runtime.machine_questions import available_events, can, fire, in_state, raise_event, states_of

__version__ = "0.1.0"

__all__ = [
    "Decision",
    "Flowlet",
    "Registry",
    "Retry",
    "Run",
    "Secret",
    "Transition",
    "all_of",
    "any_of",
    "available_events",
    "can",
    "compensate",
    "current_run",
    "describe",
    "fire",
    "gather",
    "guard",
    "in_state",
    "level",
    "not_",
    "provided",
    "raise_event",
    "state",
    "states_of",
    "step",
    "transition",
]

_HOMES: Final = {
    "flowlet.app": ("Flowlet",),
    "flowlet.core.annotations": ("provided",),
    "flowlet.core.approval_levels": ("level",),
    "flowlet.core.approval_values": ("Decision",),
    "flowlet.core.gathering": ("gather",),
    "flowlet.core.guards": ("all_of", "any_of", "not_"),
    "flowlet.core.machine": ("Transition",),
    "flowlet.core.marks": ("compensate", "guard", "state", "step", "transition"),
    "flowlet.core.retry": ("Retry",),
    "flowlet.core.run": ("Run", "current_run"),
    "flowlet.core.secrets": ("Secret",),
    "flowlet.registry": ("Registry", "describe"),
    "flowlet.runtime.machine_questions": (
        "available_events",
        "can",
        "fire",
        "in_state",
        "raise_event",
        "states_of",
    ),
}
"""Where the public names are; the same as above, where type checkers see them (tests/test_import.py compares)."""

_MODULES: Final = ("approval", "core", "errors", "registry", "runtime", "schedule", "store", "stores")
"""What `import flowlet` has always made an attribute of it."""


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f"flowlet.{name}")
    if name in __all__:
        # Together, as one import of all of it would: what is found here later costs no call.
        for home, names in _HOMES.items():
            module = import_module(home)
            globals().update({each: getattr(module, each) for each in names})
        return globals()[name]
    raise AttributeError(f"module 'flowlet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
