"""What `Flowlet.provide` takes and gives back."""

# mypy: disable-error-code="empty-body"

from __future__ import annotations

import functools
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from typing import Annotated, Protocol, assert_type

from flowlet import Flowlet, provided

flow = Flowlet()


class Gateway:
    name: str = ""


class Sends(Protocol):
    def send(self) -> None: ...


class Mail:
    def send(self) -> None: ...


def make() -> Gateway: ...


async def make_async(mail: Mail = provided) -> Gateway: ...


def make_yielding() -> Iterator[Gateway]:
    yield Gateway()


async def make_async_yielding() -> AsyncIterator[Gateway]:
    yield Gateway()


@contextmanager
def make_managed() -> Generator[Gateway]:
    yield Gateway()


@asynccontextmanager
async def make_async_managed() -> AsyncGenerator[Gateway]:
    yield Gateway()


def make_manager() -> AbstractAsyncContextManager[Gateway]: ...


flow.provide(Gateway, Gateway())
flow.provide(Gateway, Gateway)
flow.provide(Gateway, make)
flow.provide(Gateway, make_async)
flow.provide(Gateway, make_yielding)
flow.provide(Gateway, make_async_yielding)
flow.provide(Gateway, make_managed)
flow.provide(Gateway, make_async_managed)
flow.provide(Gateway, make_manager)
flow.provide(Gateway, functools.partial(make))
flow.provide(Sends, Mail())
flow.provide(Annotated[Gateway, "eu"], Gateway())
flow.provide(Callable[[int], int], abs)

# Alone, it gives back what it was given, so that it may stand as a decorator.
assert_type(flow.provide(Gateway), type[Gateway])
assert_type(flow.provide(make)(), Gateway)


@flow.provide
async def make_decorated() -> AsyncIterator[Gateway]:
    yield Gateway()


assert_type(make_decorated(), AsyncIterator[Gateway])

flow.provide()  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
flow.provide(3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
# To pyright an int is as good here, since T may be wider than the key; when it runs, it is an error all the same.
flow.provide(Gateway, 3)  # type: ignore[arg-type]
flow.provide(Gateway, make, make)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]


class Fake:
    calls: int = 0


# What replaces a value in tests need only look like it, and is given back as what it is.
with flow.override(Gateway, Fake()) as fake:
    assert_type(fake, Fake)


async def overridden() -> None:
    async with flow.override(Gateway, Fake()) as fake:
        assert_type(fake.calls, int)


flow.override(3, Fake())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
flow.override(Gateway)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
