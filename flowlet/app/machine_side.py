"""The machines of a `Flowlet`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, TypeVar, overload

from flowlet.app.life import Life
from flowlet.core.machine import Transition
from flowlet.errors import MachineError

M = TypeVar("M")


class MachineSide(Life):
    """What a `Flowlet` does with machines."""

    @overload
    async def create(self, machine: type[M], /, *, id: str | None = None, **data: Any) -> M: ...
    @overload
    async def create(self, machine: M, /, *, id: str | None = None) -> M: ...
    async def create(self, machine: Any, /, *, id: str | None = None, **data: Any) -> Any:
        """Make a machine durable: from now on each transition is committed to the store.

        The same id with equal data gives the machine as it is.

        Args:
            machine: an object of an assembled class, or the class and the object's data.
            id: unique in the store; one is made up when it is not given.

        Raises:
            IdConflict: the id is taken by another definition or was created with other data.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, state, transition
            >>> flow = Flowlet()
            >>> @flow.machine
            ... class Parcel:
            ...     @state(initial=True)
            ...     class Packed: ...
            ...     @state(final=True)
            ...     class Sent: ...
            ...     @transition(Packed, Sent)
            ...     async def send(self) -> str:
            ...         return "on its way"
            >>> async def main() -> None:
            ...     async with flow:
            ...         parcel = await flow.create(Parcel(), id="p-1")
            ...         print(await parcel.send())
            >>> anyio.run(main)
            on its way
        """
        if data and not isinstance(machine, type):
            raise MachineError(
                f"create() takes the data {', '.join(data)} with a class; set it on the object, or pass the class"
            )
        return await self._open_machines.create(machine, id=id, data=data)

    async def load(self, machine: type[M], id: str, /) -> M:
        """Return the machine with this id, as its history says.

        Raises:
            RunNotFound: there is none.
            IdConflict: the id belongs to another definition.
            HistoryMismatch: its history does not fit the definition.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, in_state, state, transition
            >>> flow = Flowlet()
            >>> @flow.machine
            ... class Parcel:
            ...     @state(initial=True)
            ...     class Packed: ...
            ...     @state(final=True)
            ...     class Sent: ...
            ...     @transition(Packed, Sent)
            ...     async def send(self) -> None: ...
            >>> async def main() -> None:
            ...     async with flow:
            ...         await (await flow.create(Parcel(), id="p-1")).send()
            ...         print(in_state(await flow.load(Parcel, "p-1"), Parcel.Sent))
            >>> anyio.run(main)
            True
        """
        return await self._open_machines.load(machine, id)

    def history(self, id: str, /) -> AsyncIterator[Transition]:
        """Yield a machine's transitions in order, without loading them all.

        Raises:
            RunNotFound: there is no such machine.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, state, transition
            >>> flow = Flowlet()
            >>> @flow.machine
            ... class Parcel:
            ...     @state(initial=True)
            ...     class Packed: ...
            ...     @state(final=True)
            ...     class Sent: ...
            ...     @transition(Packed, Sent)
            ...     async def send(self) -> None: ...
            >>> async def main() -> None:
            ...     async with flow:
            ...         await (await flow.create(Parcel(), id="p-1")).send()
            ...         print([(t.version, t.event, t.target) async for t in flow.history("p-1")])
            >>> anyio.run(main)
            [(2, 'send', 'Sent')]
        """
        return self._open_machines.history(id)

    async def verify(self, machine: type[Any], id: str, /) -> int:
        """Judge every record of a machine; `load` judges those behind the last snapshot.

        Returns:
            How many records there are.

        Raises:
            RunNotFound: there is no such machine.
            HistoryMismatch: a record does not fit the definition, or the snapshot does not fit the records.
            DecodeError: a record is damaged or missing.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, state, transition
            >>> flow = Flowlet()
            >>> @flow.machine
            ... class Parcel:
            ...     @state(initial=True)
            ...     class Packed: ...
            ...     @state(final=True)
            ...     class Sent: ...
            ...     @transition(Packed, Sent)
            ...     async def send(self) -> None: ...
            >>> async def main() -> None:
            ...     async with flow:
            ...         await (await flow.create(Parcel(), id="p-1")).send()
            ...         print(await flow.verify(Parcel, "p-1"))
            >>> anyio.run(main)
            2
        """
        return await self._open_machines.verify(machine, id)

    def machines(self, machine: type[Any], /, *, state: Any = None) -> AsyncIterator[str]:
        """Yield the ids of the machines of a class, in the order of their creation.

        Args:
            state: only those that are in this state.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, state, transition
            >>> flow = Flowlet()
            >>> @flow.machine
            ... class Parcel:
            ...     @state(initial=True)
            ...     class Packed: ...
            ...     @state(final=True)
            ...     class Sent: ...
            ...     @transition(Packed, Sent)
            ...     async def send(self) -> None: ...
            >>> async def main() -> None:
            ...     async with flow:
            ...         await (await flow.create(Parcel(), id="p-1")).send()
            ...         print([id async for id in flow.machines(Parcel, state=Parcel.Sent)])
            >>> anyio.run(main)
            ['p-1']
        """
        return self._open_machines.machines(machine, state=state)
