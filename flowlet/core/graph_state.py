"""The state of a graph's run, and who has changed what of it.

Law: only this object changes the state. Nodes get copies, made of the state's own encoding, so that what they do to
theirs changes nothing. A field that has no reducer is changed by one branch at a time: by nodes of which each came
before the next.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import msgspec

from flowlet.core.codec import encode
from flowlet.core.faults import describe
from flowlet.core.graph_fields import StateType
from flowlet.core.graph_tokens import Firing
from flowlet.core.steps import UNENCODABLE, encode_input
from flowlet.errors import UpdateError, WriteConflict

_ONE = b"\x91"
"""The head of an encoded tuple of one."""

_STRANGER = 0
"""In the place of the bit of a writer that nothing which is still to come follows from."""


class GraphState:
    """The state of one run.

    Attributes:
        value: the state as it is now; what is asked of it must not change it.
    """

    __slots__ = ("_data", "_decode", "_input", "_type", "_writers", "value")

    def __init__(self, type: StateType, value: Any) -> None:
        self._type = type
        self._decode = type.whole.decode
        self._data: bytes | None = None
        self._input = b""
        self._writers: dict[str, tuple[int, str]] = {}
        self.value: Any = value
        self.value = self._decode(self.data, "the state")  # what the caller gave stays the caller's

    @property
    def data(self) -> bytes:
        """The state, encoded."""
        if self._data is None:
            try:
                self._data = encode_input(self.value)
            except UNENCODABLE:
                encode(self.value, "the state")  # which says what to do
                raise
            self._input = _ONE + self._data
            if self._type.is_fixed:
                self.value = self._decode(self._data, "the state")  # whatever the reducers have made
        return self._data

    def copy(self) -> Any:
        """Return the state, for somebody who may change the object."""
        return self.give()[0]

    def give(self) -> tuple[Any, bytes]:
        """Return the state, for a node that may change the object, and how it is encoded as a step's only input."""
        data = self._data
        if data is None:
            data = self.data
        return self.value if self._type.is_fixed else self._decode(data, "the state"), self._input

    def change(self, changes: Mapping[str, Any], firing: Firing, key: str) -> None:
        """Take over what an execution has changed.

        Raises:
            WriteConflict: another one has changed the same, and neither came before the other.
            UpdateError: a reducer has failed.
        """
        value = self.value = copy.copy(self.value)
        self._data = None
        for name, new in changes.items():
            reducer = self._type.fields[name].reducer
            if reducer is None:
                self._claim(name, firing, key)
            else:
                try:
                    new = reducer(getattr(value, name), new)
                except Exception as error:
                    raise UpdateError(
                        f"the reducer {describe(reducer)} of {name!r} failed with {type(error).__name__}: {error}, for "
                        f"what {key!r} returned",
                        key,
                        name,
                    ) from error
            _set(value, name, new)

    def _claim(self, name: str, firing: Firing, key: str) -> None:
        last = self._writers.get(name)
        if last is not None and not firing.past & last[0]:
            raise WriteConflict(
                f"{last[1]!r} and {key!r} have both changed {name!r}, and neither came before the other: give the "
                f"field a reducer, such as Annotated[list[str], operator.add], or join the branches first",
                name,
                (last[1], key),
            )
        self._writers[name] = (firing.own, key)

    def forget_past(self, past: int) -> None:
        """Take note that from here on everything follows from an execution, and so from those in its past."""
        if self._writers:
            self._writers = {
                name: (_STRANGER, key) for name, (writer, key) in self._writers.items() if not past & writer
            }


def _set(value: Any, name: str, new: Any) -> None:
    if isinstance(value, msgspec.Struct):
        msgspec.structs.force_setattr(value, name, new)
    else:
        object.__setattr__(value, name, new)  # a dataclass may be frozen
