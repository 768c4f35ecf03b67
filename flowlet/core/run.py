"""What running code sees of its run: `Run`, and `current_run`, which finds it.

Law: whatever it answers or waits for is the same on every replay. What only a body may do, it does through the body's
`Program`; a step may only look, draw and publish.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, TypeVarTuple, Unpack

from flowlet.core.child import Child, start_child
from flowlet.core.codec import Codec, encode
from flowlet.core.current import run_context
from flowlet.core.engine import OURS, PATCHED, Engine
from flowlet.core.retry import Seconds, span
from flowlet.errors import RunError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from uuid import UUID

    from flowlet.core.program import Program

T = TypeVar("T")
R = TypeVar("R")
Ts = TypeVarTuple("Ts")


class Run:
    """The run that the code belongs to, as its body or one of its steps sees it.

    Take it with a parameter ``run: Run = provided`` or with `current_run`.

    Attributes:
        id: the run's id.
        idempotency_key: ``run id/step key`` in a step: constant over retries, crashes and processes;
            the run's id in its body.
        attempt: which attempt of the step this is, from 1; over all processes.

    Example:
        >>> from flowlet import Run, provided, step
        >>> @step
        ... async def charge(amount: int, run: Run = provided) -> str:
        ...     return f"{run.idempotency_key} attempt {run.attempt}"
    """

    __slots__ = ("_draws", "_engine", "_events", "_key", "_patches", "_program", "attempt", "id")

    def __init__(self, id: str, key: str, attempt: int, engine: Engine, program: Program | None = None) -> None:
        self.id: str = id
        self._program = program
        self._key = key
        self.attempt: int = attempt
        self._engine = engine
        self._draws = 0
        self._events: dict[str, int] | None = None
        self._patches: dict[str, bool] | None = None

    @property
    def idempotency_key(self) -> str:
        """Constant over retries, crashes and processes: give it to whatever the step talks to."""
        return f"{self.id}/{self._key}" if self._key else self.id

    def now(self) -> datetime:
        """Return the time (UTC) of the run's last record: the same on every replay.

        Example:
            >>> from flowlet import Flowlet, Run, provided
            >>> flow = Flowlet()
            >>> @flow.saga
            ... async def draw(run: Run = provided) -> str:
            ...     return f"{run.now():%Z} {run.uuid().version} {0 <= run.random() < 1}"
            >>> flow.run(draw)
            'UTC 4 True'
        """
        return datetime.fromtimestamp(self._engine.now(), UTC)

    def uuid(self) -> UUID:
        """Return an id that is the same on every replay and attempt, and different at every call.

        Example:
            >>> from flowlet import Flowlet, Run, provided
            >>> flow = Flowlet()
            >>> @flow.saga
            ... async def draw(run: Run = provided) -> bool:
            ...     return run.uuid() != run.uuid()
            >>> flow.run(draw)
            True
        """
        from uuid import UUID

        return UUID(bytes=self._draw(16), version=4)

    def random(self) -> float:
        """Return a number in [0, 1) that is the same on every replay and attempt, and different at every call.

        Example:
            >>> from flowlet import Flowlet, Run, provided
            >>> flow = Flowlet()
            >>> @flow.saga
            ... async def draw(run: Run = provided) -> bool:
            ...     return 0 <= run.random() < 1
            >>> flow.run(draw)
            True
        """
        return (int.from_bytes(self._draw(8), "big") >> 11) / (1 << 53)

    def patched(self, name: str, /) -> bool:
        """Tell whether the body takes its new path here: True in new runs, False in those that are past this place.

        The answer is recorded, so that it stays the same for this run. It lets unfinished runs end on the path
        that they began, without a new ``version=``.

        Args:
            name: of the change; one name has one answer in a run.

        Raises:
            RunError: it is asked in a step.

        Example:
            >>> from flowlet import Run, provided
            >>> async def checkout(order: str, run: Run = provided) -> None:      # the body of a saga
            ...     if run.patched("check-stock-first"):
            ...         ...  # the new step
        """
        if self._key:
            raise RunError("patched() is asked in the body of a run; a step may take either path")
        if not isinstance(name, str) or not name:
            raise RunError(f"patched() takes the name of a change, not {name!r}")
        if self._patches is None:
            self._patches = {}
        answer = self._patches.get(name)
        if answer is None:
            answer = self._patches[name] = self._engine.patch(PATCHED + name)
        return answer

    # -------------------------------------------------------------- waiting
    async def sleep(self, delay: Seconds, /) -> None:
        """Wait, in the body of a run, for a time that outlasts the process: days or months, if need be.

        The time at which the wait ends is stored when it begins. Meanwhile the run costs no task and no memory, unless
        it is less than about a second. A timeout around it would end with the process: it is an error, as far as
        flowlet can see it.

        Args:
            delay: seconds (or a timedelta).

        Raises:
            RunError: the delay is negative or no time, or this is not the body of a run.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, Run, provided
            >>> flow = Flowlet()
            >>> @flow.saga
            ... async def remind(run: Run = provided) -> str:
            ...     await run.sleep(0.01)
            ...     return "it is time"
            >>> flow.run(remind)
            'it is time'
        """
        program = self._body("sleep()")
        pending = program.engine.timer(program.waiting_key("sleep:timer"), delay=span(delay, "sleep()"))
        await program.wait(pending)

    async def sleep_until(self, at: datetime, /) -> None:
        """Wait, in the body of a run, until a time of the store's clock; not at all if that has come.

        Args:
            at: with a timezone.

        Raises:
            RunError: the time has no timezone, or this is not the body of a run.

        Example:
            >>> from datetime import timedelta
            >>> from flowlet import Flowlet, Run, provided
            >>> flow = Flowlet()
            >>> @flow.saga
            ... async def remind(run: Run = provided) -> str:
            ...     await run.sleep_until(run.now() + timedelta(milliseconds=10))
            ...     return "now"
            >>> flow.run(remind)
            'now'
        """
        program = self._body("sleep_until()")
        if not isinstance(at, datetime) or at.tzinfo is None:
            raise RunError(f"sleep_until() takes a datetime with a timezone, such as one with datetime.UTC, not {at!r}")
        await program.wait(program.engine.timer(program.waiting_key("sleep:timer"), at=at.timestamp()))

    async def receive(self, topic: str, /, *, type: type[T], timeout: Seconds | None = None) -> T:
        """Wait, in the body of a run, for a signal that is sent with `Handle.send`, from whatever process.

        Signals of one topic are received in the order in which they were sent, each once; also those that were sent
        before. Meanwhile the run costs no task and no memory. Limit it with ``timeout=`` and not with a timeout around
        it, which would end with the process.

        Args:
            topic: of the signal.
            type: of its payload.
            timeout: seconds (or a timedelta) from now, after which to wait no longer.

        Raises:
            SignalTimeout: none came within the timeout. A later one stays for the next `receive`.
            DecodeError: the payload is not of the type; the signal has been taken.
            RunError: the topic or the timeout is none, or this is not the body of a run.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, Run, provided
            >>> flow = Flowlet()
            >>> @flow.saga
            ... async def checkout(order: str, run: Run = provided) -> str:
            ...     paid = await run.receive("payment", type=int, timeout=3600)
            ...     return f"{order}: {paid} paid"
            >>> async def main() -> None:
            ...     async with flow:
            ...         handle = await flow.start(checkout, "o-1")
            ...         await handle.send("payment", 120)
            ...         print(await handle.result())
            >>> anyio.run(main)
            o-1: 120 paid
        """
        program = self._body("receive()")
        if not isinstance(topic, str) or not topic or topic.startswith(OURS):
            raise RunError(f"receive() takes a topic, a text that does not begin with {OURS!r}, not {topic!r}")
        limit = None if timeout is None else span(timeout, "receive(): timeout")
        key = program.waiting_key(f"{topic.replace('~', '_')}:receive")  # a ~ marks the way back
        payload = await program.wait(program.engine.signal(key, topic, timeout=limit))
        received: T = Codec(type).decode(payload, f"signal {topic!r} to run {self.id!r}")
        return received

    async def publish(self, key: str, value: object, /) -> None:
        """Let others see how far the run is, or anything else: `Handle.read` returns what was published last.

        Args:
            key: of the value.
            value: what msgspec can encode.

        Raises:
            EncodeError, PayloadTooLarge: it cannot be stored.
            RunError: the key is none.

        Example:
            >>> from flowlet import Flowlet, Run, provided
            >>> flow = Flowlet()
            >>> @flow.saga
            ... async def load(path: str, run: Run = provided) -> None:
            ...     await run.publish("progress", 0.5)
            >>> flow.run(load, "a.csv")
        """
        if not isinstance(key, str) or not key:
            raise RunError(f"publish() takes a key, a text, not {key!r}")
        data = encode(value, f"what run {self.id!r} publishes as {key!r}")
        self._engine.publish(key, data, in_step=self._program is None)

    async def start(
        self,
        definition: Callable[[Unpack[Ts]], Awaitable[R]],
        /,
        *args: *Ts,
        id: str | None = None,
        detached: bool = False,
    ) -> Child[R]:
        """Start another run, in the body of this one, and do not wait for it; a replay starts nothing twice.

        Args:
            definition: an assembled saga, pipeline or graph.
            args: its inputs.
            id: of the other run; by default one that derives from this run's. If somebody else has started it, it is
                not cancelled with this one.
            detached: it is on its own. Otherwise it belongs to this run: it is cancelled, and has ended, before this
                one is undone, and its result can be awaited.

        Raises:
            RunError: the definition is none, or this is not the body of a run.
            IdConflict: the id is taken by something else.

        Example:
            >>> from flowlet import Flowlet, Run, provided
            >>> flow = Flowlet()
            >>> @flow.saga
            ... async def pack(item: str) -> str:
            ...     return f"{item} is packed"
            >>> @flow.saga
            ... async def order(run: Run = provided) -> list[str]:
            ...     children = [await run.start(pack, item) for item in ("tea", "cups")]
            ...     return [await child.result() for child in children]
            >>> flow.run(order)
            ['tea is packed', 'cups is packed']
        """
        return await start_child(self._body("start()"), definition, args, id, detached=detached)

    def _body(self, what: str) -> Program:
        """Return the body's program.

        Raises:
            RunError: this is not the body of a run.
        """
        if self._program is None:
            self._refuse(what)
        return self._program

    def _refuse(self, what: str) -> NoReturn:
        raise RunError(
            f"{what} works in the body of a saga or pipeline, not in a step or a machine's callback: there, wait with "
            "anyio.sleep(), or let the body wait between two steps"
        )

    def _draw(self, size: int) -> bytes:
        """Derive bytes from the idempotency key and the number of draws before: no state to restore."""
        self._draws += 1
        seed = self.idempotency_key if self._key else self._engine.origin
        return hashlib.blake2b(f"{seed}/{self._draws}".encode(), digest_size=size).digest()

    def event_key(self, machine_id: str, event: str) -> str:
        """Return the key under which a machine remembers an event that this code fires, once per firing."""
        name = f"{machine_id}/{event}"
        if self._events is None:
            self._events = {}
        number = self._events[name] = self._events.get(name, 0) + 1
        return f"{self.idempotency_key}/{event}" if number == 1 else f"{self.idempotency_key}/{event}#{number}"

    def __repr__(self) -> str:
        return f"<Run {self.idempotency_key!r} attempt {self.attempt}>"


class InsideEvent:
    """The scope of a machine's callbacks when the body of a run has fired the event: like that of a step.

    The event is remembered under its key, so what the callbacks call is not journaled beside it.
    """

    __slots__ = ("_run",)
    inside: Any = True

    def __init__(self, run: Run, key: str) -> None:
        self._run = Run(run.id, key.removeprefix(f"{run.id}/"), 1, run._engine)

    def run(self) -> Run:
        """Return the run as the callbacks see it."""
        return self._run

    def event_key(self, machine_id: str, event: str) -> str:
        """See `Run.event_key`."""
        return self._run.event_key(machine_id, event)


def host_of(run: Run) -> Any:
    """Return what executes a run in this process, or None where its engine has no such thing."""
    return getattr(run._engine, "host", None)


def current_run() -> Run:
    """Return the run that this code is part of.

    Raises:
        RunError: the code runs outside of any run.

    Example:
        >>> from flowlet import current_run, step
        >>> @step
        ... async def charge(amount: int) -> str:
        ...     return current_run().idempotency_key
    """
    scope = run_context.get()
    if scope is None:
        raise RunError("current_run() was called outside of a run: only steps and bodies have one")
    return scope.run()
