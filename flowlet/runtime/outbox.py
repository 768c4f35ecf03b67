"""The outbox of a transition: the runs that its callbacks start and the signals that they send.

Law: what the exit hooks and the action of a stored machine start or send is checked at once, and stored in the very
append that commits the transition. So there is all of it or nothing, whoever dies or was faster; what a lost attempt
has queued is dropped with it. The innermost machine decides: its enter hooks, which run after the commit, and a machine
without a store act at once, and so does a run that is executed inside of an action. A guard starts and sends nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import msgspec
from msgspec.structs import replace

from flowlet.core.current import machine_context, run_context
from flowlet.errors import Conflict, IdConflict, MachineError, RunError, RunFinished, RunNotFound, StoreUnavailable
from flowlet.store import UNCHANGED, Store, Write

if TYPE_CHECKING:
    from flowlet.core.definitions import RunDefinition
    from flowlet.runtime.creating import Prepared
    from flowlet.runtime.machine_bond import Bond
    from flowlet.runtime.turns import Turn

Deliver = Callable[[], Awaitable[None]]
"""Has a run look into its inbox, wherever it is executed."""


class OutboxHost(Protocol):
    """What an outbox needs of the runs that it creates."""

    closing: bool

    def prepare(
        self, definition: RunDefinition, inputs: tuple[Any, ...], id: str | None = None, deadline: float | None = None
    ) -> Prepared: ...
    async def check_same(self, prepared: Prepared) -> None: ...
    def doubt(self, id: str) -> None: ...


class Beginning(NamedTuple):
    """A run that begins with the commit.

    Attributes:
        is_named: the caller has chosen its id.
    """

    prepared: Prepared
    host: OutboxHost
    is_named: bool


class Outbox(msgspec.Struct, eq=False):
    """What one attempt at a transition starts and sends.

    Args:
        bond: of the machine.
    """

    bond: Bond
    _is_leaving: bool = False
    _beginnings: dict[str, Beginning] = {}
    _signals: dict[str, tuple[Write, Deliver]] = {}
    _made_up: dict[str, int] = {}

    # While the callbacks run --------------------------------------------------------------------
    def start(
        self,
        host: OutboxHost,
        definition: RunDefinition,
        inputs: tuple[Any, ...],
        id: str | None,
        deadline: float | None,
    ) -> str:
        """Queue the start of a run.

        Args:
            id: the run's; by default one that the same transition of the machine makes up again.

        Returns:
            Its id.

        Raises:
            EncodeError, DecodeError, PayloadTooLarge: an input cannot be stored, or is not of its type.
            IdConflict: the id is none, is the machine's, or is that of another run which begins with the transition.
        """
        run_id = self._make_id(definition) if id is None else id
        prepared = host.prepare(definition, inputs, run_id, deadline)
        if run_id == self.bond.id:
            raise IdConflict(f"{run_id!r} is the machine whose transition would start the run; use another id")
        before = self._beginnings.setdefault(run_id, Beginning(prepared, host, id is not None)).prepared
        if before.definition.name != definition.name or before.data != prepared.data:
            raise IdConflict(
                f"run {run_id!r} was started by the same transition as a {before.definition.name!r} with "
                f"{'another input' if before.definition.name == definition.name else 'its input'}; use another id"
            )
        return run_id

    def _make_id(self, definition: RunDefinition) -> str:
        """Make up an id out of what commits with the run: the machine and the version that it gets."""
        name = definition.name
        number = self._made_up[name] = self._made_up.get(name, 0) + 1
        id = f"{self.bond.id}@{self.bond.version + 1}/{name}"
        return id if number == 1 else f"{id}#{number}"

    def definition_of(self, id: str) -> RunDefinition | None:
        """Return the definition of a run that begins with the commit, None for another."""
        found = self._beginnings.get(id)
        return None if found is None else found.prepared.definition

    def send(self, write: Write, deliver: Deliver) -> None:
        """Queue the write that puts signals into the inbox of a run."""
        before = self._signals.get(write.id)
        if before is not None:
            write = replace(write, signals=(*before[0].signals, *write.signals))
        self._signals[write.id] = (write, deliver)

    # When they have run -------------------------------------------------------------------------
    async def append(self, write: Write) -> None:
        """Store the machine's write together with what is queued.

        Args:
            write: has the machine's record.

        Raises:
            Conflict: another process was faster.
            IdConflict: the id of a run is taken by something else.
            RunNotFound, RunFinished: a run that is sent a signal was pruned, or has ended.
            StoreUnavailable: the outcome is unknown.
        """
        while True:
            try:
                await self.bond.office.store.append((write, *self._writes()))
                return
            except (Conflict, RunFinished, RunNotFound) as error:
                if error.id not in (self._beginnings if isinstance(error, Conflict) else self._signals):
                    raise
                refusal = error
            # The store names one reason of several: perhaps it has done all this before, and its answer was lost.
            if await self.bond.is_committed(write.records[0]):
                return
            if not isinstance(refusal, Conflict):
                raise type(refusal)(f"{refusal}; the transition that sends it one was not made", refusal.id)
            await self._leave_out(self._beginnings[refusal.id])

    def _writes(self) -> list[Write]:
        """Return one write per run."""
        writes: list[Write] = []
        # While this process leaves its runs, those that it creates are anybody's.
        self._is_leaving = any(host.closing for _, host, _ in self._beginnings.values())
        for prepared, _, _ in self._beginnings.values():
            write = prepared.write
            signals = self._signals.get(write.id)
            if signals is not None:
                write = replace(write, signals=signals[0].signals, state=signals[0].state)
            writes.append(replace(write, owner=UNCHANGED) if self._is_leaving else write)
        writes += [write for write, _ in self._signals.values() if write.id not in self._beginnings]
        return writes

    async def _leave_out(self, found: Beginning) -> None:
        """Create no run that is there already, if it is the same one.

        Raises:
            IdConflict: it is another one.
        """
        id = found.prepared.id
        if not found.is_named:
            raise IdConflict(
                f"id {id!r} was to be that of a run which a transition starts, and is taken by what an earlier machine "
                "with the same id has started; the transition was not made: prune that run, or give the new one an id"
            )
        try:
            await found.host.check_same(found.prepared)
        except RunNotFound:
            return  # it has just been pruned, so its id is free
        except IdConflict as error:
            raise IdConflict(f"{error}; the transition that starts it was not made") from error
        del self._beginnings[id]

    def doubt(self, error: BaseException) -> None:
        """Note that the append has failed with this: it may have been stored, and then the runs are ours to execute."""
        if not isinstance(error, Exception) or isinstance(error, StoreUnavailable):
            for id, found in self._beginnings.items():
                found.host.doubt(id)

    def begin(self) -> None:
        """Execute here what the commit has created."""
        if not self._is_leaving:
            for found in self._beginnings.values():
                found.prepared.begin()

    async def deliver(self) -> None:
        """Have the runs that were sent signals look at them now; they are stored, and found even so."""
        for id, (_, deliver) in self._signals.items():
            try:
                await deliver()
            except Exception as error:
                self.bond.office.log.warning("run.not_woken", run_id=id, error=str(error))


JUDGING: Final = object()
"""What stands in the place of an outbox while a guard is asked, which is no part of any transition."""


def open_outbox(turn: Turn, bond: Bond) -> None:
    """Queue from now on what the callbacks of a machine start and send; see `close_outbox`."""
    turn.outbox = bond  # an outbox is made of it when there is something to be queued: mostly there is not


def close_outbox(turn: Turn) -> Outbox | None:
    """Return what was queued, None if nothing was; what is started or sent from now on acts at once."""
    held, turn.outbox = turn.outbox, None
    return held if type(held) is Outbox else None


def outbox_of(store: Store) -> Outbox | None:
    """Return where what is started or sent now waits for the commit of a transition; None when it acts at once.

    Raises:
        MachineError: a guard is being asked.
    """
    turn: Turn | None = machine_context.get()
    held = None if turn is None else turn.outbox
    if turn is None or held is None or run_context.get() is not turn.scope:
        return None
    if held is JUDGING:
        raise MachineError(
            "a guard was about to start a run or send a signal, but it only answers, whether or not a transition "
            "follows; do that in the action, where it is committed with the transition"
        )
    if type(held) is Outbox:
        return held if held.bond.office.store is store else None
    if held.office.store is not store:
        return None
    box = turn.outbox = Outbox(held)
    return box


def refuse_queued(id: str, store: Store) -> None:
    """Refuse to look at a run, or wait for it, that begins when the transition is committed which starts it.

    Raises:
        RunError: it is such a run.
    """
    turn: Turn | None = machine_context.get()
    if turn is None or type(turn.outbox) is not Outbox:
        return
    box = outbox_of(store)
    if box is not None and box.definition_of(id) is not None:
        raise RunError(
            f"run {id!r} begins when the transition is committed whose action has started it, so that the action "
            "cannot wait for it; wait for it after the event"
        )
