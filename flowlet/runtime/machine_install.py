"""Making a class do what its definition says: triggers in place of marked methods, room for the state.

Law: the user's class stays what it is, with its own ``__init__``; only a class without room for two more
attributes (``__slots__``) is replaced by a subclass of the same name. Both attributes are set when an object
is made: an attribute that joins an object later costs it a dict of its own (248 bytes on CPython 3.11), and
one that has a default on the class is three times as slow to read, since it is looked for in two places.
"""

from __future__ import annotations

import inspect
from typing import Any

from flowlet.core.configurations import DEFINITION
from flowlet.core.faults import describe
from flowlet.core.machine import MachineDefinition
from flowlet.core.machine_members import overrides
from flowlet.errors import DefinitionError, MachineError
from flowlet.runtime.machine_copies import install_copying
from flowlet.runtime.machine_timers import TIMERS
from flowlet.runtime.machine_trigger import make_trigger

STATE, TURN = "_flowlet_state", "_flowlet_turn"
MADE_HERE = "__flowlet_new__"
ASSEMBLED = "__flowlet_assembled__"
"""The attribute of an assembled class that holds the class itself and its ``__init__``, as they were then."""


def install_machine(definition: MachineDefinition) -> type:
    """Return the class whose objects are machines: the user's own, or a subclass if that is slotted."""
    cls = (
        definition.cls if _has_room(definition.cls) else _with_slots(definition.cls, timed=definition.chart is not None)
    )
    for method in definition.methods:
        setattr(cls, method, make_trigger(definition, method))
    setattr(cls, DEFINITION, definition)
    if cls is definition.cls:
        cls.__new__ = _new_for(cls)  # type: ignore[method-assign]
    install_copying(cls)
    setattr(cls, ASSEMBLED, (cls, inspect.getattr_static(cls, "__init__")))
    return cls


def definition_of(thing: Any) -> MachineDefinition:
    """Return the definition of an assembled class or of one of its objects.

    Raises:
        MachineError: it has not been assembled, or inherits from a machine, changes it, and has not.
        DefinitionError: another decorator has changed the class since.
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
    _check_outermost(cls)
    return definition


def _check_outermost(cls: type) -> None:
    """Raise if a class is not the one that was assembled, or is built in another way."""
    home = next(base for base in cls.__mro__ if DEFINITION in vars(base))
    made, init = vars(home).get(ASSEMBLED, (None, None))
    # The plain look-up costs a tenth of the other, and finds the same as long as nothing has changed.
    if made is not home or (home.__init__ is not init and inspect.getattr_static(home, "__init__") is not init):
        raise DefinitionError(
            [
                f"{describe(cls)}: a decorator has changed the class since its assembly; "
                "@flow.machine must be the outermost decorator, above @dataclass and @attrs.define"
            ]
        )


def _has_room(cls: type) -> bool:
    inherited = inspect.ismemberdescriptor(inspect.getattr_static(cls, STATE, None))
    return cls.__dictoffset__ != 0 or inherited


def has_room_for_timers(machine: Any) -> bool:
    """Say whether a machine without a store can have timers."""
    cls = type(machine)
    return cls.__dictoffset__ != 0 or inspect.ismemberdescriptor(inspect.getattr_static(cls, TIMERS, None))


def _with_slots(cls: type, *, timed: bool) -> type:
    slots = (STATE, TURN, *((TIMERS,) if timed else ()), *(() if cls.__weakrefoffset__ else ("__weakref__",)))
    body: dict[str, Any] = {
        "__slots__": slots,
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "__new__": _new_for(cls),
    }
    return type(cls)(cls.__name__, (cls,), body)


def _new_for(cls: type) -> Any:
    """Build the ``__new__`` that puts objects into their initial state, around the class's own if it has one."""
    own = inspect.getattr_static(cls, "__new__")
    if isinstance(own, staticmethod):
        own = own.__func__
    if getattr(own, MADE_HERE, False):
        return own  # inherited from an assembled class
    make = object.__new__
    plain = own is vars(object)["__new__"]

    def __new__(kind: type, *args: Any, **kwargs: Any) -> Any:
        if not plain:
            made = own(kind, *args, **kwargs)
            if hasattr(made, STATE) or not isinstance(made, kind):
                return made  # one that was made before
        elif (args or kwargs) and kind.__init__ is object.__init__:  # type: ignore[misc]
            raise TypeError(f"{kind.__name__}() takes no arguments")
        else:
            made = make(kind)
        try:
            made._flowlet_state = getattr(kind, DEFINITION).initial
            made._flowlet_turn = None
        except (AttributeError, TypeError):
            _check_outermost(kind)
            raise
        return made

    setattr(__new__, MADE_HERE, True)
    # What `inspect.signature` shows of the class.
    __new__.__wrapped__ = inspect.getattr_static(cls, "__init__") if plain else own  # type: ignore[attr-defined]
    return __new__
