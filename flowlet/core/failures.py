"""Exceptions as data: what a journal keeps of them, and how they come back.

Law: a stored exception is its type's name, its message and its data. It comes back as its own class
only if that class is already imported, and without running its constructor; otherwise as
`StepFailed`. Nothing is imported, unpickled or evaluated to rebuild one.
"""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from flowlet.core.codec import pack
from flowlet.errors import DecodeError, EncodeError, PayloadTooLarge, StepFailed

NEVER_RETRIED = (EncodeError, DecodeError, PayloadTooLarge)


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """An exception as it is stored.

    Attributes:
        type: ``module:qualified name`` of its class.
        args: its ``args``, encoded, or None when they have no encoding.
        state: its attributes, encoded, or None when they have no encoding.
        retryable: whether another attempt could have helped.
        step: the key of the step that failed with it, if one did, after so many ``attempts``.
    """

    type: str
    message: str
    args: bytes | None = None
    state: bytes | None = None
    retryable: bool = True
    step: str = ""
    attempts: int = 1


def describe_failure(error: BaseException, step: str = "", attempts: int = 1) -> Failure:
    """Turn an exception, of a step if one is named, into what is stored of it."""
    kind = type(error)
    return Failure(
        type=f"{kind.__module__}:{kind.__qualname__}",
        message=_message(error),
        args=_pack_or_none(list(error.args)),
        state=_pack_or_none(getattr(error, "__dict__", None) or None),
        retryable=not isinstance(error, NEVER_RETRIED),
        step=step,
        attempts=attempts,
    )


def rebuild_failure(failure: Failure) -> Exception:
    """Turn what was stored back into an exception."""
    kind = _find_class(failure.type)
    if kind is not None and failure.args is not None:
        try:
            return _rebuild(kind, failure)
        except Exception:  # a class whose instances cannot be made from args alone: fall through
            pass
    name = failure.type.partition(":")[2]
    where = f"step {failure.step!r} failed" if failure.step else "it failed"
    return StepFailed(f"{where} with {name}: {failure.message}", failure.step, failure.attempts, failure.type)


def _rebuild(kind: type[Exception], failure: Failure) -> Exception:
    args = msgspec.msgpack.decode(failure.args or b"\x90")
    builtin = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    error = builtin.__new__(kind, *args)
    # The interpreter's own part of it, which a UnicodeDecodeError is empty without.
    builtin.__init__(error, *args)  # type: ignore[misc]  # the class that made it
    error.args = tuple(args)
    if failure.state is not None:
        error.__dict__.update(msgspec.msgpack.decode(failure.state))
    str(error)
    return error


def _find_class(type_name: str) -> type[Exception] | None:
    module, _, qualname = type_name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, Exception) else None


def _pack_or_none(value: Any) -> bytes | None:
    if value is None:
        return None
    try:
        return pack(value)
    except Exception:  # no encoding: the message is what remains
        return None


def _message(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # an exception whose __str__ raises still has to be recorded
        return f"<{type(error).__name__} without a readable message>"
    return text.encode(errors="backslashreplace").decode()  # a lone surrogate has no encoding
