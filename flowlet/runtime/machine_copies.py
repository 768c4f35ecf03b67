"""Copies and pickles of machines: ordinary objects without a store, with the data and the state of the first.

Law: one history belongs to one object, so what ties them (`Bond`, `Turn`) never goes into a copy. What a
class says about its own copying is done as it says; only the state is added to it, and the tie left out.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import msgspec

from flowlet.core.configurations import Configuration

MADE_HERE = "__flowlet_made_here__"
TURN, TIMERS = "_flowlet_turn", "_flowlet_timers"


class Kept(msgspec.Struct, frozen=True):
    """What is kept of a machine whose class says itself what there is to keep, or how it is put back.

    Attributes:
        state: the state that the machine is in.
        rest: what the class says.
    """

    state: Configuration
    rest: Any


def install_copying(cls: type) -> None:
    """Let copies and pickles of the objects of a class be machines of their own."""
    own_get, own_set = _own(cls, "__getstate__"), _own(cls, "__setstate__")
    if own_get is vars(object)["__getstate__"] and own_set is None:
        _install(cls, "__getstate__", _plain_state)
    else:
        _install(cls, "__getstate__", _kept_state)
        _install(cls, "__setstate__", _setter, own_set or _set_plainly)
    for name in ("__copy__", "__deepcopy__"):
        if _own(cls, name) is not None:
            _install(cls, name, _parting)
    if any(_own(cls, name) is not vars(object)[name] for name in ("__reduce__", "__reduce_ex__")):
        _install(cls, "__reduce_ex__", _parting_reduction)


def _own(cls: type, name: str) -> Any:
    return inspect.getattr_static(cls, name, None)


def _install(cls: type, name: str, make: Callable[[Any], Any], own: Any = None) -> None:
    """Put a method around the class's own, unless that has been made here, for a class it inherits from."""
    own = own or _own(cls, name)
    if not getattr(own, MADE_HERE, False):
        made = functools.update_wrapper(make(own), own)
        setattr(made, MADE_HERE, True)
        setattr(cls, name, made)


def _plain_state(own: Any) -> Any:
    def __getstate__(self: Any) -> Any:
        return _untied(own(self))

    return __getstate__


def _kept_state(own: Any) -> Any:
    def __getstate__(self: Any) -> Any:
        return Kept(self._flowlet_state, _untied(own(self)))

    return __getstate__


def _setter(own: Any) -> Any:
    def __setstate__(self: Any, kept: Any) -> None:
        if not isinstance(kept, Kept):
            own(self, kept)
            return
        if kept.rest is not None:
            own(self, kept.rest)
        self._flowlet_state, self._flowlet_turn = kept.state, None

    return __setstate__


def _set_plainly(self: Any, state: Any) -> None:
    """Do what `copy` and `pickle` do for a class without ``__setstate__``."""
    attributes, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    for name, value in {**(attributes or {}), **(slots or {})}.items():  # pyright: ignore[reportGeneralTypeIssues]
        setattr(self, name, value)


def _parting(own: Any) -> Any:
    def parting_copy(self: Any, *args: Any) -> Any:
        twin = own(self, *args)
        if twin is not self and getattr(twin, TURN, None) is not None:
            twin._flowlet_turn = None
        if twin is not self and getattr(twin, TIMERS, None) is not None:
            delattr(twin, TIMERS)
        return twin

    return parting_copy


def _parting_reduction(own: Any) -> Any:
    def __reduce_ex__(self: Any, protocol: Any) -> Any:
        reduced = own(self, protocol)
        if isinstance(reduced, tuple) and len(reduced) > 2:
            reduced = (*reduced[:2], _untied(reduced[2]), *reduced[3:])
        return reduced

    return __reduce_ex__


def _untied(state: Any) -> Any:
    """Return what is kept of an object, without its turn."""
    if isinstance(state, dict):
        kept = {**state, TURN: None} if TURN in state else state
        return {n: v for n, v in kept.items() if n != TIMERS} if TIMERS in kept else kept
    if isinstance(state, tuple):
        return tuple([_untied(part) for part in state])
    return state
