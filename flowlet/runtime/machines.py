"""The machines of one store: making them, loading them, listing them, reading their histories.

Law: there is one live object per id; whoever asks for it gets that one. Making and loading one id are
done one after the other, so that two tasks never build two objects for it.
"""

from __future__ import annotations

import inspect
import itertools
import secrets
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import anyio

from flowlet.core.codec import encode
from flowlet.core.current import run_context
from flowlet.core.faults import describe
from flowlet.core.ids import check_id
from flowlet.core.machine import MachineDefinition, Transition
from flowlet.core.machine_data import DataShape, unknown_data
from flowlet.core.machine_records import Fold, Moved, check_complete, read_record, transition_of
from flowlet.errors import (
    Conflict,
    DefinitionError,
    IdConflict,
    MachineError,
    RunError,
    RunNotFound,
    StoreUnavailable,
)
from flowlet.runtime.alarms import Alarms
from flowlet.runtime.iterating import readable
from flowlet.runtime.logs import Log
from flowlet.runtime.machine_bond import EVERY, PAGE, Bond
from flowlet.runtime.machine_driver import continue_raised, is_interrupted
from flowlet.runtime.machine_firing import fire_stored, start_stored, tell_stored
from flowlet.runtime.machine_install import definition_of
from flowlet.runtime.machine_office import KIND, Busy, Office
from flowlet.runtime.machine_works import Messenger, Outcome, run_name
from flowlet.runtime.providers import Providers
from flowlet.runtime.runs import Runs
from flowlet.runtime.tasks import Task, spawn
from flowlet.runtime.turns import Turn, depart, leave, move, take
from flowlet.store import Head, Store, Stored

M = TypeVar("M")


_PAUSE = 0.2
"""Seconds between two tries to tell a machine something while the store is down."""


class Machines:
    """The durable machines of one `Flowlet`.

    Args:
        store: keeps the histories.
        now: the store's clock, in seconds since the epoch.
        worker: the id of a worker with a live heartbeat, or what returns it; owns leases.
        provide: returns what is provided for an annotation.
        max_payload: bytes that a record may have, or None.
        find: returns the definition with a name, for machines that are due and that nobody has loaded.
    """

    def __init__(
        self,
        store: Store,
        *,
        now: Callable[[], float],
        worker: str | Callable[[], str],
        log: Log,
        provide: Callable[[Any], Any] | None = None,
        max_payload: int | None = None,
        find: Callable[[str], MachineDefinition | None] | None = None,
    ) -> None:
        self._find = find
        self.messenger: Messenger = Messenger(self._tell, lambda definition, id: self.load(definition.cls, id))
        owner = worker if callable(worker) else (lambda: worker)
        self._office = Office(
            store, now, owner, secrets.randbits(62), log, provide, max_payload, self._alarm, self._begin, self._halt
        )
        self._bond_class = Bond
        if log.observing is not None and log.observing.of_machines:
            from flowlet.runtime.observed_machines import ObservedBond

            self._bond_class = ObservedBond
        self.runs: Runs | None = None
        self.providers: Providers | None = None
        self._alarms = Alarms(now, self._ring, self._broke)
        self._closing = False
        self._timed: dict[str, MachineDefinition] = {}
        self._tasks: set[Task] = set()
        self._prefix = secrets.token_hex(4)
        self._numbers = itertools.count(1)
        self._live: WeakValueDictionary[str, Any] = WeakValueDictionary()
        self._doors: dict[str, _Door] = {}

    # Making -------------------------------------------------------------------------------------
    async def create(self, machine: M | type[M], /, *, id: str | None = None, data: Mapping[str, Any] = {}) -> M:
        """Make a machine durable, in its initial state.

        Args:
            machine: an object that has not been used as a machine yet, or its class.
            id: unique in the store; a new one by default, which inside of a run is the same on every replay.
            data: the data attributes, when a class is given.

        Returns:
            The machine. If the id is there with equal data, the machine as it is now, which is not
            the object that was given.

        Raises:
            IdConflict: the id is taken by something else, was created with other data, or is no id.
            EncodeError: the data cannot be stored.
            DefinitionError: the class cannot be built again from its data.
            MachineError: the object has left its initial state, or has another id.
        """
        definition = definition_of(machine)
        _check_buildable(definition)
        if id is not None:
            check_id(id)
        if definition.provided:
            await self._make_provided(definition)
        made: Any = self._build(definition, machine, data) if isinstance(machine, type) else machine
        bond = made._flowlet_turn
        if isinstance(bond, Bond) and bond.office is self._office and id in (None, bond.id):
            return made  # type: ignore[no-any-return]
        return await self._create(definition, made, id or self._make_id(definition))  # type: ignore[no-any-return]

    async def _create(self, definition: MachineDefinition, machine: Any, id: str) -> Any:
        async with _Door(self._doors, id):
            if id not in self._live and await self._write(definition, machine, id):
                await start_stored(machine)
                return machine
            await self._check_same(definition, machine, id)
            return await self._open(definition, type(machine), id)

    async def _write(self, definition: MachineDefinition, machine: Any, id: str) -> bool:
        """Store a new machine and bind the object to it; return False when the id is there."""
        turn = None if isinstance(machine._flowlet_turn, Bond) else await take(machine, "create")
        if turn is None:
            other = machine._flowlet_turn.id
            raise MachineError(f"this {definition.name} is stored already, as {other!r}; create another")
        bond = self._bond_class(self._office, definition, id)
        try:
            if machine._flowlet_state is not definition.initial:
                raise MachineError(
                    f"this {definition.name} has already left its initial state; create it before its first transition"
                )
            await bond.create(machine)
        except BaseException as error:
            leave(machine, turn)
            if isinstance(error, Conflict):
                return False
            raise
        machine._flowlet_turn = bond
        self._live[id] = machine
        depart(turn)
        move(turn)
        return True

    async def _check_same(self, definition: MachineDefinition, machine: Any, id: str) -> None:
        """An id may be created again by the same definition with the same data."""
        stored = await self._office.store.load(id, limit=1)
        if stored is None:
            raise RunNotFound(f"machine {id!r} was pruned while it was created; create it again")
        _check_head(definition, stored.head)
        fold = Fold(definition, id)
        fold.add(stored.records, min(1, stored.head.version))
        if definition.data.encode(fold.values()) != definition.data.encode(definition.data.values(machine)):
            raise IdConflict(
                f"machine {id!r} was created with other data; load it with flow.load, or give this one another id"
            )

    def _build(self, definition: MachineDefinition, cls: type, data: Mapping[str, Any]) -> Any:
        """Call a class with data by name, and with what is provided."""
        shape = definition.data
        unknown = unknown_data(shape, data)
        if unknown is not None:
            raise MachineError(unknown)
        given = {name: data[name] for name in shape.parameters if name in data}
        for name, annotation in shape.provided:
            what = f"parameter {name!r} of {describe(cls)}.__init__"
            given[name] = self._office.provided(annotation, what)
        try:
            made = cls(**given)
        except TypeError as error:
            raise MachineError(f"{describe(cls)} cannot be built from its data {sorted(given)}: {error}") from error
        for name, value in data.items():
            if name not in given:
                setattr(made, name, value)
        return made

    def _make_id(self, definition: MachineDefinition) -> str:
        scope = run_context.get()
        if scope is not None:
            return scope.event_key("machine", f"{definition.name}()")  # the same on every replay
        # A prefix and a counter: ids that are made together are neighbours in an index.
        return f"{definition.name}-{self._prefix}-{next(self._numbers):06d}"

    # Loading ------------------------------------------------------------------------------------
    async def load(self, cls: type[M], id: str, /) -> M:
        """Return the machine with this id as its history says now; no enter hook runs.

        What an interrupted process has raised and not handled is handled first.

        Raises:
            RunNotFound: there is no such machine.
            IdConflict: the id belongs to something else.
            HistoryMismatch: the history does not fit the definition.
            DecodeError: a record is damaged.
        """
        definition = definition_of(cls)
        check_id(id)
        _check_buildable(definition)
        if definition.provided:
            await self._make_provided(definition)
        async with _Door(self._doors, id):
            machine: M = await self._open(definition, cls, id)
            return machine

    async def _open(self, definition: MachineDefinition, cls: type, id: str) -> Any:
        live = self._live.get(id)
        if live is not None:
            if definition_of(live) is not definition:
                raise IdConflict(_taken(id, definition_of(live).name, definition.name))
            await self._refresh(live)
            return live
        stored = await self._office.store.load(id, limit=2 * EVERY)
        if stored is None:
            advice = f"create it with flow.create({describe(cls)}(...), id={id!r})"
            raise RunNotFound(f"there is no machine {id!r} in this store; {advice}")
        machine = await self._revive(definition, cls, id, stored)
        self._live[id] = machine
        bond: Bond = machine._flowlet_turn
        if bond.raised or machine._flowlet_state.restless:
            await self._refresh(machine)
        return machine

    async def _revive(self, definition: MachineDefinition, cls: type, id: str, stored: Stored) -> Any:
        _check_head(definition, stored.head)
        fold = await self._fold(definition, id, stored)
        values = fold.values()
        machine = self._build(definition, cls, dict(zip(definition.data.names, values, strict=True)))
        # __init__ may have changed what it was given: the history is right.
        for name, value in zip(definition.data.names, values, strict=True):
            setattr(machine, name, value)
        bond = self._bond_class(self._office, definition, id)
        bond.snapshot_at = stored.snapshot_version
        bond.take(fold, values)
        machine._flowlet_state = fold.configuration
        machine._flowlet_turn = bond
        on_load = getattr(machine, "on_load", None)
        if on_load is not None:
            token = run_context.set(None)  # whether it runs depends on what is live: no part of the run that loads
            try:
                outcome = on_load(**self._given_to_load(definition))
                if inspect.isawaitable(outcome):
                    await outcome
            finally:
                run_context.reset(token)
        return machine

    def _given_to_load(self, definition: MachineDefinition) -> dict[str, Any]:
        return {
            need.name: self._office.provided(need.annotation, f"parameter {need.name!r} of {need.where}")
            for need in definition.load
        }

    async def _make_provided(self, definition: MachineDefinition) -> None:
        """Have everything made that its callbacks take, none of which waits for that."""
        if self.providers is not None:
            await self.providers.make(need.annotation for need in definition.provided)

    async def _fold(self, definition: MachineDefinition, id: str, stored: Stored) -> Fold:
        """Add up a history, of a long one from its snapshot on."""
        fold = Fold(definition, id)
        if stored.head.version > len(stored.records) and stored.snapshot is not None:
            fold.resume(stored.snapshot, stored.snapshot_version)
        if not fold.version:
            fold.add(stored.records, min(2 * EVERY, stored.head.version))
        while fold.version < stored.head.version:
            more = await self._office.store.load(id, after=fold.version, limit=2 * EVERY)
            if more is None:
                raise RunNotFound(f"machine {id!r} is no longer in the store: it was pruned")
            fold.add(more.records, min(fold.version + 2 * EVERY, more.head.version))
        return fold

    async def verify(self, cls: type, id: str, /) -> int:
        """Judge every record of a machine against its definition, and the snapshot against the records.

        Returns:
            How many records there are.

        Raises:
            RunNotFound: there is no such machine.
            IdConflict: the id belongs to something else.
            HistoryMismatch: a record does not fit the definition, or the snapshot does not fit the records.
            DecodeError: a record is damaged or missing.
        """
        definition = definition_of(cls)
        stored = await self._office.store.load(check_id(id), limit=0)
        if stored is None:
            raise RunNotFound(f"there is no machine {id!r} in this store")
        _check_head(definition, stored.head)
        from flowlet.runtime.machine_verify import judge_machine  # rarely asked for

        return (await judge_machine(self._office.store, definition, stored, PAGE)).version

    async def _refresh(self, machine: Any) -> None:
        """Bring a live object up to date and finish what was interrupted, unless it is handling an event."""
        bond: Bond = machine._flowlet_turn
        if bond._flowlet_turn is not None:
            return
        turn = await take(bond, None)
        assert turn is not None
        try:
            await bond.refresh(machine)
            if await is_interrupted(machine, bond):
                await continue_raised(machine, bond, turn)
        except Busy:
            pass  # another process is at it
        except BaseException:
            bond.stale = True
            raise
        finally:
            if bond.leased:
                await bond.give_back()
            leave(bond, turn)

    # What is due --------------------------------------------------------------------------------
    def _alarm(self, id: str, definition: MachineDefinition, at: float | None) -> None:
        if at is None or self._closing:
            self._timed.pop(id, None)
            self._alarms.drop(id)
        else:
            self._timed[id] = definition
            self._alarms.set(id, at)

    def times(self) -> Mapping[str, float]:
        """Return when timers of machines are to ring here, by the machines' ids."""
        return self._alarms.times()

    def look_at_clock(self) -> None:
        """See what is due now that the clock has been moved."""
        self._alarms.look()

    def _ring(self, id: str) -> None:
        definition = self._timed.pop(id, None)
        if definition is not None and not self._closing:
            self._spawn(partial(self.look_after, definition, id))

    def _spawn(self, main: Callable[[], Awaitable[None]]) -> None:
        self._tasks.add(spawn(main, self._broke, self._tasks.discard))

    def adopt(self, head: Head) -> None:
        """Handle what is due of a machine that this process has just claimed."""
        definition = None if self._find is None or self._closing else self._find(head.definition)
        if definition is not None:
            self._spawn(partial(self.look_after, definition, head.id, claimed=True))

    async def look_after(self, definition: MachineDefinition, id: str, *, claimed: bool = False) -> None:
        """Handle what is due of a machine, live or not.

        Args:
            claimed: this process owns it for that. If it cannot be read here it stays claimed, or the next look would
                find it again; another process may do better when this one has ended.
        """
        pause = 0.1
        while True:
            try:
                await fire_stored(await self.load(definition.cls, id), claimed=claimed)
                return
            except (RunNotFound, Busy):
                return  # it was pruned meanwhile, or another process is at it
            except StoreUnavailable as error:
                self._office.log.warning("store.unavailable", error=str(error))
            await anyio.sleep(pause)
            pause = min(2 * pause, 10.0)

    # Work inside a state ------------------------------------------------------------------------
    async def _begin(
        self, definition: MachineDefinition, state: str, machine: str, id: str, given: dict[str, Any]
    ) -> None:
        work = definition.works[state]
        if self.runs is None:
            raise MachineError(f"{definition.name}.{state} invokes something, and nothing here runs it")
        inputs = (machine, encode(given, f"what state {state!r} invokes"))
        await self.runs.start(definition.runs[run_name(definition, work)], inputs, id)

    async def _halt(self, id: str) -> None:
        """Have what a state invoked cancelled; whether it has ended or not even begun does not matter."""
        assert self.runs is not None
        try:
            await self.runs.orders.cancel(id)
        except RunError as error:
            self._office.log.debug("machine.work_ended", run_id=id, reason=str(error))

    async def _tell(self, definition: MachineDefinition, machine: str, id: str, outcome: Outcome) -> None:
        while True:
            try:
                await tell_stored(await self.load(definition.cls, machine), id, outcome)
                return
            except RunNotFound:
                return  # the machine was pruned
            except StoreUnavailable as error:  # which is no failure of the run
                self._office.log.warning("store.unavailable", error=str(error))
            await anyio.sleep(_PAUSE)

    def _broke(self, error: BaseException) -> None:
        self._office.log.error("machine.timer_failed", error=repr(error))

    async def close(self) -> None:
        """Handle nothing more that is due: it waits for whoever comes next."""
        self._closing = True
        self._alarms.stop()
        for task in list(self._tasks):
            task.cancel()
            await task.done.wait()

    # Reading ------------------------------------------------------------------------------------
    @readable
    async def history(self, id: str, /) -> AsyncGenerator[Transition, None]:
        """Iterate over the transitions a machine has made, oldest first, as they were written.

        Raises:
            RunNotFound: there is no such machine.
            IdConflict: the id is no machine's.
            DecodeError: a record is damaged.
        """
        check_id(id)
        version = 0
        while True:
            stored = await self._office.store.load(id, after=version, limit=PAGE)
            if stored is None:
                raise RunNotFound(f"there is no machine {id!r} in this store")
            if stored.head.kind != KIND:
                raise IdConflict(f"{id!r} is a {stored.head.kind}, not a machine")
            check_complete(id, version, len(stored.records), min(version + PAGE, stored.head.version))
            for data in stored.records:
                version += 1
                record = read_record(data, version, id)
                if isinstance(record, Moved):
                    yield transition_of(record, version)
            if len(stored.records) < PAGE:
                return

    @readable
    async def machines(self, cls: type | MachineDefinition, /, *, state: Any = None) -> AsyncGenerator[str, None]:
        """Iterate over the ids of a definition's machines, oldest first.

        Args:
            state: only those in this state.

        Raises:
            MachineError: it is no state of the machine.
        """
        definition = cls if isinstance(cls, MachineDefinition) else definition_of(cls)
        wanted = None if state is None else definition.state(state)
        # Of nested states a head has the atomic ones, so that the others are picked out here.
        name = None if wanted is None or definition.states.nested else wanted.name
        cursor = 0
        while True:
            heads = await self._office.store.scan(
                kind=KIND, definition=definition.name, state=name, after=cursor, limit=PAGE
            )
            for head in heads:
                if wanted is None or name is not None or definition.covers(head.state, wanted):
                    yield head.id
            if len(heads) < PAGE:
                return
            cursor = heads[-1].order


class _Door:
    """Lets one task at a time make or load the machine with one id."""

    __slots__ = ("_doors", "_flowlet_turn", "_id", "_seat", "_turn", "_users")

    def __init__(self, doors: dict[str, _Door], id: str) -> None:
        self._doors, self._id = doors, id
        self._flowlet_turn: Turn | None = None
        self._users = 0
        self._turn: Turn | None = None
        self._seat = doors.setdefault(id, self)
        self._seat._users += 1

    async def __aenter__(self) -> None:
        try:
            self._turn = await take(self._seat, None)
        except BaseException:
            self._forget()
            raise

    async def __aexit__(self, *_: object) -> None:
        assert self._turn is not None
        leave(self._seat, self._turn)
        self._forget()

    def _forget(self) -> None:
        self._seat._users -= 1
        if not self._seat._users:
            del self._doors[self._id]


def _check_buildable(definition: MachineDefinition) -> None:
    shape: DataShape = definition.data
    if shape.unfilled:
        raise DefinitionError(
            [
                f"{shape.owner}.__init__: parameter {name!r} is neither data nor provided, so that a machine cannot be "
                f"loaded again; name it like the annotated attribute it sets, give it a default, or `= provided`"
                for name in shape.unfilled
            ]
        )


def _check_head(definition: MachineDefinition, head: Head) -> None:
    if head.kind != KIND:
        raise IdConflict(f"{head.id!r} is a {head.kind}, not a machine; use another id")
    if head.definition != definition.name:
        raise IdConflict(_taken(head.id, head.definition, definition.name))


def _taken(id: str, owner: str, asked: str) -> str:
    return f"machine {id!r} belongs to the definition {owner!r}, not to {asked!r}; load it as that, or use another id"
