"""Making a class do what its definition says: triggers in place of marked methods, room for the state.

Law: the user's class stays what it is, with its own ``__init__``; only a class without room for two more
attributes (``__slots__``) is replaced by a subclass of the same name. A machine that is not moved costs
two words.
"""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

from flowlet.core.machine import MachineDefinition
from flowlet.core.machine_members import overrides
from flowlet.core.states import DEFINITION
from flowlet.errors import MachineError
from flowlet.runtime.machine_trigger import make_trigger

STATE, TURN = "_flowlet_state", "_flowlet_turn"


def install_machine(definition: MachineDefinition) -> type:
    """Return the class whose objects are machines: the user's own, or a subclass if that is slotted."""
    cls = definition.cls if _has_room(definition.cls) else _with_slots(definition.cls)
    for method in definition.methods:
        setattr(cls, method, make_trigger(definition, method))
    setattr(cls, DEFINITION, definition)
    if not _has_slot(cls):
        setattr(cls, STATE, definition.initial)
        setattr(cls, TURN, None)
        _reserve(cls, definition)
    return cls


def definition_of(thing: Any) -> MachineDefinition:
    """Return the definition of an assembled class or of one of its objects.

    Raises:
        MachineError: it has not been assembled, or inherits from a machine, changes it, and has not.
    """
    cls = thing if isinstance(thing, type) else type(thing)
    definition: MachineDefinition | None = getattr(cls, DEFINITION, None)
    if definition is None:
        raise MachineError(f"{cls.__qualname__} is not a machine: put @flow.machine or @registry.machine on the class")
    if DEFINITION not in vars(cls):
        changed = overrides(cls)
        if changed is not None:
            raise MachineError(
                f"{cls.__qualname__} changes {changed!r} of the machine it inherits from, "
                f"but has not been assembled: put @flow.machine on it"
            )
    return definition


def _has_room(cls: type) -> bool:
    return cls.__dictoffset__ != 0 or _has_slot(cls)


def _has_slot(cls: type) -> bool:
    """Say whether the class inherits the slots of an assembled one."""
    return inspect.ismemberdescriptor(inspect.getattr_static(cls, STATE, None))


def _with_slots(cls: type) -> type:
    slots = (STATE, TURN) if cls.__weakrefoffset__ else (STATE, TURN, "__weakref__")
    body: dict[str, Any] = {
        "__slots__": slots,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__new__": _new_for(cls),
    }
    return type(cls)(cls.__name__, (cls,), body)


def _new_for(cls: type) -> Any:
    plain = inspect.getattr_static(cls, "__new__") is object.__dict__["__new__"]

    def __new__(kind: type, *args: Any, **kwargs: Any) -> Any:
        made = object.__new__(kind) if plain else cls.__new__(kind, *args, **kwargs)
        made._flowlet_state = getattr(kind, DEFINITION).initial
        made._flowlet_turn = None
        return made

    return __new__


def _reserve(cls: type, definition: MachineDefinition) -> None:
    """Have every object made with room for the two attributes.

    Objects of one class share the layout of their attributes; an attribute that joins it late costs an
    object a dict of its own (248 bytes on CPython 3.11), one that was there first costs a word.
    """
    with contextlib.suppress(Exception):
        first: Any = object.__new__(cls)
        setattr(first, STATE, definition.initial)
        setattr(first, TURN, None)
