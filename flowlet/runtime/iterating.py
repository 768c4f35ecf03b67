"""Iterators that may be left half read.

Law: what is iterated over here reads pages and holds nothing between them, so that nothing needs to be closed.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from functools import wraps
from typing import Any, Generic, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def readable(function: Callable[P, AsyncGenerator[T, None]]) -> Callable[P, AsyncIterator[T]]:
    """Let what an async generator function yields be left with ``break``: no event loop hears of the generator.

    A loop would close it later and complain (asyncio in debug mode, trio always). Only for functions that neither hold
    anything nor wait for anything when they are closed.
    """

    @wraps(function)
    def read(*args: P.args, **kwargs: P.kwargs) -> AsyncIterator[T]:
        return _Reading(function(*args, **kwargs))

    return read


class _Reading(Generic[T]):
    """Iterates over a generator without introducing it to the event loop, which happens when it is first asked."""

    __slots__ = ("_generator", "_is_begun")

    def __init__(self, generator: AsyncGenerator[T, None]) -> None:
        self._generator = generator
        self._is_begun = False

    def __aiter__(self) -> Self:
        return self

    def __anext__(self) -> Coroutine[Any, Any, T]:
        if self._is_begun:
            return self._generator.__anext__()
        self._is_begun = True
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(None, None)
        try:
            return self._generator.__anext__()
        finally:
            sys.set_asyncgen_hooks(*hooks)
