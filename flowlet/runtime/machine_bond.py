"""The bond between one live machine and its history in a store: commit, refresh, lease.

Law: a transition is committed by one append that expects the version the machine has seen; until the
store has acknowledged it the machine is not moved. Whatever leaves the outcome unknown makes the bond
*stale*: the machine reads what there is before it judges another event.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
import msgspec
from msgspec.structs import replace

from flowlet.core.chart import Landing, Plan
from flowlet.core.codec import encode, pack
from flowlet.core.configurations import Configuration
from flowlet.core.machine import MachineDefinition
from flowlet.core.machine_records import Created, Fold, Moved, Pending, Settled, Summary, Timer, read_record
from flowlet.core.sizes import check_size
from flowlet.errors import Conflict, DecodeError, EncodeError, HookFailed, RunNotFound, StoreUnavailable
from flowlet.runtime.machine_office import ACTIVE, FINAL, KIND, Busy, Office
from flowlet.runtime.machine_timers import Due, Running, after, begun, carried, next_due, pending, recorded, without
from flowlet.runtime.machine_works import INVOKE, REVOKE, entry, is_inside_run
from flowlet.runtime.turns import NO_ARGUMENTS, Raised, Turn
from flowlet.store import UNCHANGED, Claims, New, Stored, Unchanged, Write

if TYPE_CHECKING:
    from flowlet.runtime.outbox import Outbox

SLACK = 0.5
"""Seconds after which other processes look after a timer that has rung and was not handled."""


EVERY = 200
"""Records between two snapshots of a machine."""

PAGE = 200
"""Records that are read at once when a long history is walked through."""


class Bond:
    """What ties one object to one history.

    Attributes:
        version: of the last record this object knows.
        stale: that may not be the last one any more.
        values: the data of that record, by attribute; used when no value can change in place.
        data: the same, encoded.
        raised: what that record says is still to be handled.
        keys: trigger and encoded result of what runs have fired, by their key.
        conflict: the last conflict of an append of this bond.
        is_observed: it is an `ObservedBond`, which tells of transitions.
        at: the time of the last transition, in seconds of the store's clock.
        leased: this process owns the machine at the moment.
        fence: that must not have moved, if it is known.
        timers: those that run.
        snapshot_at: the version that the last snapshot stands for.
        keys_after: `keys` has those of records behind this version.
    """

    __slots__ = (
        "_flowlet_turn",
        "_stored_timers",
        "_unsure",
        "at",
        "conflict",
        "data",
        "definition",
        "fence",
        "id",
        "keys",
        "keys_after",
        "leased",
        "office",
        "raised",
        "snapshot_at",
        "stale",
        "timers",
        "values",
        "version",
    )

    is_observed: ClassVar[bool] = False

    definition: MachineDefinition
    id: str
    keys_after: int
    leased: bool
    office: Office
    snapshot_at: int
    stale: bool
    version: int

    def __init__(self, office: Office, definition: MachineDefinition, id: str) -> None:
        self.office, self.definition, self.id = office, definition, id
        self.version = self.snapshot_at = self.keys_after = 0
        self.values: tuple[Any, ...] = ()
        self.data: bytes = b""
        self.raised: tuple[Pending, ...] = ()
        self.keys: dict[str, tuple[str, bytes]] = {}
        self.stale = self.leased = self._unsure = False
        self.fence: int | None = None
        self.conflict: Conflict | None = None
        self.at: float = 0.0
        self.timers: Running = {}
        self._stored_timers: Running = self.timers
        self._flowlet_turn: Turn | None = None

    # What is deep-copied or pickled with a machine by code of its own is a machine without this.
    def __deepcopy__(self, memo: object) -> None:
        return None

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return type(None), ()

    # Told to callbacks --------------------------------------------------------------------------
    def stamp(self, *, committed: bool) -> tuple[int, datetime]:
        """Return version and time of the transition that is being made, or has just been."""
        if committed:
            return self.version, datetime.fromtimestamp(self.at, UTC)
        return self.version + 1, datetime.fromtimestamp(self.office.now(), UTC)

    # Writing ------------------------------------------------------------------------------------
    async def create(self, machine: Any) -> None:
        """Write record 1.

        Raises:
            Conflict: the id is taken.
        """
        definition, office = self.definition, self.office
        values = definition.data.values(machine)
        data = definition.data.encode(values)
        start = definition.start
        state = start.target
        self.at = office.now()
        self.timers = after({}, start, Turn(), self.at, lambda name: self._begun(machine, name))
        self.timers = {**self.timers, **carried(machine, self.at)}
        raised = _announced(start)
        timers = recorded(self.timers) if self.timers else None
        created = Created(state.state, self.at, office.token, definition.version, data, raised, timers)
        record = self.pack(created, "the creation")
        write = Write(
            id=self.id,
            expect=0,
            create=New(KIND, definition.name, str(definition.version)),
            records=(record,),
            status=FINAL if state.final else ACTIVE,
            state=state.state,
            wake=self._wake(created, self.timers),
            close=state.final,
            owner=office.worker() if raised or state.restless else UNCHANGED,
        )
        self.leased = isinstance(write.owner, str)
        try:
            await office.store.append((write,))
        except (Conflict, StoreUnavailable):
            if not await self._is_mine(record):
                raise
        self._stored_timers = self.timers
        self.advance(values, data, raised)
        if self.timers:
            self.arm()

    async def commit(
        self,
        machine: Any,
        turn: Turn,
        plan: Plan,
        landing: Landing,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        key: str | None,
        result: Any,
        box: Outbox | None = None,
    ) -> None:
        """Make a transition durable, together with what its callbacks have queued, and only then move the machine.

        Raises:
            Conflict: another process was faster; it is kept as `conflict`.
            EncodeError: the data, or the result of an event fired by a run, cannot be stored.
            PayloadTooLarge: these are more than may be stored.
            IdConflict, RunNotFound, RunFinished: what was queued cannot be stored.
        """
        office, target = self.office, landing.target
        values, data = self.changed(machine)
        at = max(self.at, office.now())
        timers = after(self.timers, landing, turn, at, lambda name: self._begun(machine, name))
        record = Moved(
            plan.event,
            plan.source.state,
            target.state,
            at,
            office.token,
            self.definition.version,
            data,
            plan.parameters.who(args, kwargs),
            None if key is None else (key, plan.method, self._encode_result(plan.method, result)),
            (*(() if not turn.raised else _pending(turn.raised)), *_announced(landing)),
            None if timers is self._stored_timers else recorded(timers),
            self._remembered(plan.source, target),
        )
        packed = self.pack(record, f"event {plan.event!r}")
        if target.final or self.leased or record.raised or record.timers is not None or target.restless:
            write = self._special_write(record, packed, target, timers)
        else:
            write = Write(id=self.id, expect=self.version, records=(packed,), state=target.state)
        if self.version - self.snapshot_at >= EVERY:
            write = self.with_snapshot(write, record, landing.target, timers)
        await self._append(write, box)
        machine._flowlet_state = target
        self.at = at
        turn.delayed = None
        if timers is not self._stored_timers:
            self.timers = self._stored_timers = timers
            self.arm()
        if record.key is not None:
            self.keys[record.key[0]] = record.key[1:]
        self.advance(values, self.data if data is None else data, record.raised)
        if box is not None:
            box.begin()
        if office.log.active:
            self.log_committed(record)

    def _remembered(self, source: Configuration, target: Configuration) -> dict[str, tuple[str, ...]] | None:
        """Return what histories remember, if that has changed."""
        if source.memory == target.memory:
            return None
        return self.definition.configurations.remembered(target.memory)

    def with_snapshot(self, write: Write, record: Moved, target: Configuration, timers: Running) -> Write:
        """Have a write also store what the history adds up to with it, so that loading stays quick."""
        summary = Summary(
            self.definition.version,
            target.state,
            record.at,
            self.data if record.data is None else record.data,
            record.raised,
            recorded(timers),
            self.definition.configurations.remembered(target.memory),
        )
        self.snapshot_at = self.version + 1  # if it is not stored, there is one the less
        packed = pack(summary)
        limit = self.office.max_payload
        return write if limit is not None and len(packed) > limit else replace(write, snapshot=packed)

    async def settle(self, machine: Any, turn: Turn) -> None:
        """Record what enter hooks have assigned and delayed, and that nothing is left to be handled.

        Raises:
            HookFailed: it cannot be; the transition itself has been committed.
        """
        try:
            values, data = self.changed(machine)
            at = max(self.at, self.office.now())
            timers = after(self.timers, None, turn, at)
            if data is None and not self.raised and timers is self._stored_timers:
                return
            state: str = machine._flowlet_state.state
            changed = None if timers is self._stored_timers else recorded(timers)
            record = Settled(state, at, self.office.token, self.definition.version, data, changed)
            packed = self.pack(record, "what its hooks have assigned")
            await self._append(self._special_write(record, packed, machine._flowlet_state, timers))
            turn.delayed = None
            if timers is not self._stored_timers:
                self.timers = self._stored_timers = timers
                self.arm()
        except Exception as error:
            self.stale = True
            text = f"what the hooks of {self.definition.name} {self.id!r} have assigned could not be recorded ({error})"
            raise HookFailed(f"{text}; the transition before has been committed", True) from error
        self.advance(values, self.data if data is None else data, ())

    def changed(self, machine: Any) -> tuple[tuple[Any, ...], bytes | None]:
        """Read the data; encode it unless it is what the last record has."""
        shape = self.definition.data
        values = shape.values(machine)
        if shape.immutable and values == self.values:
            return values, None
        data = shape.encode(values)
        return values, None if data == self.data else data

    def pack(self, record: Created | Moved | Settled, what: str) -> bytes:
        """Encode a record; ``what`` names it in the error.

        Raises:
            PayloadTooLarge: it has more bytes than may be stored.
        """
        packed = pack(record)
        self.check_size(packed, what)
        return packed

    def check_size(self, packed: bytes, what: str) -> None:
        """Judge the size of an encoded record."""
        where = f"{what} of {self.definition.name} {self.id!r}, with the machine's data,"
        check_size(packed, self.office.max_payload, where)

    def _wake(self, record: Created | Moved | Settled, timers: Running) -> float | Unchanged | None:
        """Return when somebody else should look after the machine, if this process does not."""
        raised = () if isinstance(record, Settled) else record.raised
        if record.timers is None and not raised and not self.raised:
            return UNCHANGED
        times = [at for at in (next_due(timers), record.at if raised else None) if at is not None]
        return min(times) + SLACK if times else None

    def _begun(self, machine: Any, state: str) -> Raised:
        """Describe the work that a state invokes; its run has an id of its own each time the state is entered."""
        return entry(machine, self.definition.works[state], f"{self.id}/{state}/{self.version + 1}", stored=True)

    async def begin_work(self, machine: Any, key: str) -> None:
        """Start the run of what a state invokes, or find it."""
        raised = self.timers[key].raised
        assert raised is not None
        assert raised.method is not None
        await self.office.start_work(self.definition, raised.method, self.id, raised.event, raised.kwargs)
        stored = await self.office.store.load(self.id, limit=0)
        if stored is not None and stored.head.version != self.version:
            # Who has left the state meanwhile found no run to be cancelled.
            await self.refresh(machine)
            due = self.timers.get(key)
            if due is None or due.raised is None or due.raised.event != raised.event:
                await self.office.cancel_work(raised.event)
                return
        timers = begun(self.timers, key)
        if self.timers is self._stored_timers:
            self._stored_timers = timers
        self.timers = timers

    async def forget_wake(self) -> None:
        """Tell the store that what was due is under way, and looks after itself."""
        at = next_due(self.timers)
        await self.office.store.append((Write(id=self.id, wake=None if at is None else at + SLACK),))

    async def revoke(self) -> None:
        """Cancel the runs of states that were left. What cannot be now is done when its timer rings."""
        for key, due in list(self.timers.items()):
            # A run that leaves its own state is to see the event to its end.
            if key.startswith(REVOKE) and due.raised is not None and not is_inside_run(due.raised.event):
                try:
                    await self.office.cancel_work(due.raised.event)
                except StoreUnavailable:
                    return
                self.timers = without(self.timers, key)

    @property
    def is_unrecorded(self) -> bool:
        """Whether timers have changed since the last record."""
        return self.timers is not self._stored_timers

    def arm(self, pause: float = 0.0) -> None:
        """Let the first timer ring in this process, but not before some seconds."""
        at = next_due(self.timers)
        self.office.alarm(
            self.id, self.definition, at if at is None or not pause else max(at, self.office.now() + pause)
        )

    def _special_write(self, record: Moved | Settled, packed: bytes, target: Configuration, timers: Running) -> Write:
        """Build a write that also ends the machine, or takes or gives back its lease, or sets its timers.

        While something raised is still to be handled the machine is owned, which tells other
        processes that this one is at it.
        """
        owner: Any = msgspec.UNSET
        waiting = isinstance(record, Moved) and (bool(record.raised) or target.restless)
        if waiting and not self.leased:
            owner = self.office.worker()
        elif self.leased and not waiting:
            owner = None
        return Write(
            id=self.id,
            expect=self.version,
            fence=self.fence,
            records=(packed,),
            state=target.state,
            status=FINAL if target.final else ACTIVE,
            close=target.final and not any(key.startswith(REVOKE) for key in timers),  # somebody is to see to these
            owner=owner,
            wake=self._wake(record, timers),
        )

    async def _append(self, write: Write, box: Outbox | None = None) -> None:
        """Append one record and what is queued, finding out what became of it where that is not clear."""
        takes = isinstance(write.owner, str)
        self.leased = self.leased or takes  # also if the append is cancelled and yet stored
        try:
            if box is not None:
                await box.append(write)
            else:
                await self.office.store.append((write,))
        except BaseException as error:
            if box is not None:
                box.doubt(error)
            if not await self.is_stored(error, write.records[0]):
                if takes and isinstance(error, Exception):
                    self.leased = False
                raise
        if write.owner is not msgspec.UNSET:
            self.leased, self.fence = takes, None

    async def is_stored(self, error: BaseException, record: bytes) -> bool:
        """Find out what became of an append that failed or was cancelled; note what is not clear.

        A conflict may be with one's own record, whose acknowledgement was lost and which the store tried
        again; a store that went away may have stored it before.
        """
        self.stale = True
        if isinstance(error, (Conflict, StoreUnavailable)):
            if await self._is_mine(record):
                self.stale = False
                return True
            if isinstance(error, Conflict):
                self.conflict = error
        elif not isinstance(error, Exception):
            self._unsure = True  # cancelled: the store completes what it has accepted
        return False

    async def _is_mine(self, record: bytes) -> bool:
        """Look whether the record that an append was refused for, or got no answer about, is there."""
        try:
            return await self.is_committed(record)
        except (StoreUnavailable, Conflict):
            return False

    async def is_committed(self, record: bytes) -> bool:
        """Look whether a record is there as the next one.

        Raises:
            Conflict: another one is.
        """
        stored = await self.office.store.load(self.id, after=self.version, limit=1)
        if stored is None or not stored.records:
            return False
        # The writer's token, the time and the content together are nobody else's.
        if stored.records[0] != record:
            raise Conflict(self.version, stored.head.version, self.id)
        return True

    def advance(self, values: tuple[Any, ...], data: bytes, raised: tuple[Pending, ...]) -> None:
        """Know that one more record is stored."""
        self.version += 1
        self.values, self.data, self.raised = values, data, raised

    def doubt(self) -> None:
        """Note that a transition has failed: what changed inside of its data must be read again."""
        if not self.definition.data.immutable:
            self.stale = True

    # Results of runs ----------------------------------------------------------------------------
    def _encode_result(self, method: str, result: Any) -> bytes:
        what = f"the result of {self.definition.name}.{method}"
        data = encode(result, what)
        codec = self.definition.results[method]
        if codec is not None:
            try:
                codec.decode(data, what)
            except DecodeError as error:
                raise EncodeError(f"{error}; return what the annotation says, since a run records it") from error
        return data

    async def knows(self, key: str) -> bool:
        """Say whether a run has fired something under a key; what lies before the snapshot is read if need be."""
        if key not in self.keys and self.keys_after:
            older: dict[str, tuple[str, bytes]] = {}
            for start in range(0, self.keys_after, PAGE):
                stored = await self.office.store.load(self.id, after=start, limit=min(PAGE, self.keys_after - start))
                for place, data in enumerate(() if stored is None else stored.records, start + 1):
                    record = read_record(data, place, self.id)
                    if isinstance(record, Moved) and record.key is not None:
                        older[record.key[0]] = record.key[1:]
            self.keys, self.keys_after = {**older, **self.keys}, 0
        return key in self.keys

    def recorded(self, key: str) -> Any:
        """Return the result that is recorded for a run's key."""
        method, data = self.keys[key]
        codec = self.definition.results.get(method)
        if codec is None:
            return msgspec.msgpack.decode(data)
        return codec.decode(data, f"the recorded result of {self.definition.name}.{method}")

    # Reading ------------------------------------------------------------------------------------
    async def refresh(self, machine: Any) -> None:
        """Bring the machine to what its history says now.

        Raises:
            RunNotFound: it has been pruned.
            HistoryMismatch: what others have written does not fit the definition.
            DecodeError: a record is damaged or missing.
        """
        if self._unsure:
            # Appends are stored in the order they were accepted: behind this one, the cancelled one is decided.
            await self.office.store.append((Write(id=self.id),))
            self._unsure = False
        stored = await self.office.store.load(self.id, after=self.version)
        if stored is None:
            raise RunNotFound(f"machine {self.id!r} is no longer in the store: it was pruned")
        self.adopt(machine, stored)

    def adopt(self, machine: Any, stored: Stored) -> None:
        """Fold records behind the known ones and give the machine what they add up to."""
        fold = Fold(self.definition, self.id)
        if self.version:
            fold.version, fold.data, fold.raised, fold.keys = self.version, self.data, self.raised, self.keys
            fold.at, fold.timers = self.at, recorded(self._stored_timers)
            fold.keys_after = self.keys_after
            fold.configuration = self._known(machine)
        fold.add(stored.records, stored.head.version)
        values = fold.values()
        for name, value in zip(self.definition.data.names, values, strict=True):
            setattr(machine, name, value)
        machine._flowlet_state = fold.configuration
        self.take(fold, values)

    def _known(self, machine: Any) -> Configuration:
        configuration: Configuration = machine._flowlet_state
        return configuration

    def take(self, fold: Fold, values: tuple[Any, ...]) -> None:
        """Know what a fold of the history knows."""
        self.version, self.data, self.raised, self.keys = fold.version, fold.data, fold.raised, fold.keys
        self.values, self.at, self.keys_after = values, fold.at, fold.keys_after
        timers = {t.key: self._due(t) for t in fold.timers}
        if timers or self._stored_timers:
            self.timers = self._stored_timers = timers
            self.arm()
        self.stale = False

    def recall_raised(self) -> Iterator[Raised]:
        """Decode what is still to be handled; arguments take the types that the trigger annotates."""
        return map(self._recall, self.raised)

    def _due(self, timer: Timer) -> Due:
        known = self.timers.get(timer.key)
        if timer.event is None:
            return Due(timer.due)
        work = None if known is None or not known.under_way else known.raised
        same = work is not None and work.event == timer.event.event
        if not timer.key.startswith((INVOKE, REVOKE)):
            return Due(timer.due, self._recall(timer.event))
        args, given = msgspec.msgpack.decode(timer.event.arguments)
        work = Raised(timer.event.event, timer.event.method, tuple(args), given, timer.event.arguments)
        return Due(timer.due, work, under_way=same)

    def _recall(self, pending: Pending) -> Raised:
        args, kwargs = msgspec.msgpack.decode(pending.arguments)
        methods = (pending.method,) if pending.method else self.definition.methods_of.get(pending.event, ())
        parameters = self.definition.parameters.get(methods[0]) if methods and methods[0] else None
        if parameters is not None:
            args, kwargs = parameters.convert(args, kwargs)
        return Raised(pending.event, pending.method, tuple(args), dict(kwargs), pending.arguments)

    # Leases -------------------------------------------------------------------------------------
    async def lease(self, machine: Any, *, patient: bool, interrupted: bool = False) -> None:
        """Own the machine, knowing all of its history.

        Args:
            patient: wait while another process owns it, instead of raising.
            interrupted: something is known to have been left unfinished.

        Raises:
            Busy: another live process owns it.
        """
        store, worker, pause = self.office.store, self.office.worker(), 0.005
        while True:
            before = await store.load(self.id, after=self.version)
            if before is None:
                raise RunNotFound(f"machine {self.id!r} is no longer in the store: it was pruned")
            if before.head.version != self.version:
                self.adopt(machine, before)
            if before.head.owner == worker:
                claims = Claims(heads=[before.head])  # left by an append of this process that was cancelled
                break
            try:
                claims = await store.claim(worker, ids=(self.id,))
            except BaseException as error:
                # Cancelled, it may own what it was not told of; giving back what is not ours changes nothing.
                self.leased = not isinstance(error, Exception)
                raise
            if claims.heads:
                break
            if before.head.closed is not None:
                return  # it has ended: the event will be refused for its state
            if not patient:
                raise Busy(self.version, before.head.version, self.id)
            await anyio.sleep(pause)
            pause = min(pause * 2, 0.25)
        head = claims.heads[0]
        self.leased, self.fence = True, head.fence
        if interrupted or (before.head.owner is not None and head.fence == before.head.fence + 1):
            self._log_interrupted(before.head.owner)
        if head.version != self.version:
            await self.refresh(machine)

    async def give_back(self) -> None:
        """Give the lease back, also when the caller is cancelled."""
        self.leased, self.fence = False, None
        with anyio.CancelScope(shield=True):
            try:
                await self.office.store.release(self.office.worker(), (self.id,))
            except Exception as error:
                # It runs out by itself when this process ends; until then others cannot take the machine.
                self.office.log.warning("machine.lease_kept", machine=self.id, error=repr(error))

    async def watch(self, machine: Any, plan: Plan, follow: Callable[[], Awaitable[Any]]) -> Any:
        """Make a transition and tell observers of it; see `ObservedBond`."""
        raise NotImplementedError

    # Logs ---------------------------------------------------------------------------------------
    def log_committed(self, record: Moved) -> None:
        """Tell of a transition that is stored."""
        self.office.log.info(
            "transition.committed",
            machine=self.id,
            definition=self.definition.name,
            trigger=record.event,
            source=record.source,
            target=record.target,
            version=self.version,
        )

    def _log_interrupted(self, owner: str | None) -> None:
        self.office.log.warning(
            "machine.interrupted", machine=self.id, definition=self.definition.name, owner=owner, version=self.version
        )

    def log_discarded(self, machine: Any, event: str) -> None:
        """Tell that a raised event found no transition."""
        if self.office.log.active:
            state = machine._flowlet_state.state
            self.office.log.debug("machine.event_discarded", machine=self.id, trigger=event, state=state)

    def log_timer_failed(self, key: str, error: Exception) -> None:
        """Tell that what was due has failed; there is no caller to raise it to."""
        self.office.log.error(
            "machine.timer_failed", machine=self.id, definition=self.definition.name, timer=key, error=str(error)
        )

    def log_failed(self, error: Exception) -> None:
        """Tell that an event of an interrupted turn has failed; there is no caller to raise it to."""
        self.office.log.error(
            "machine.raised_failed", machine=self.id, definition=self.definition.name, error=str(error)
        )


def _pending(raised: Sequence[Raised]) -> tuple[Pending, ...]:
    return tuple([pending(r) for r in raised])


def _announced(landing: Landing) -> tuple[Pending, ...]:
    """Return the events of what is done, which their hooks queue after the commit."""
    return tuple([Pending(event, None, NO_ARGUMENTS) for event in landing.done])
