"""Entering and leaving a `Flowlet`, and what it is given.

Law: no I/O before ``async with``; it may be entered again later, also on another event loop; nested entries count.
"""

from __future__ import annotations

from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Self, cast

import anyio
import msgspec
from msgspec import UNSET, UnsetType

from flowlet.assembler import Assembler
from flowlet.config.values import Config
from flowlet.core.definitions import RunDefinition
from flowlet.core.ids import RESERVED
from flowlet.core.retry import Seconds
from flowlet.errors import ConfigError, Conflict, Disabled, FlowletError, ProviderFailed
from flowlet.registry import Registry
from flowlet.runtime.logs import Log
from flowlet.runtime.machine_works import Messenger
from flowlet.runtime.machines import Machines
from flowlet.runtime.presence import check_name
from flowlet.runtime.providers import Providers
from flowlet.runtime.runs import Runs
from flowlet.runtime.signals import Guest, drain_on_sigterm
from flowlet.runtime.tasks import Latch, loop_token
from flowlet.runtime.timetable import Timetable
from flowlet.store import New, PayloadCodec, Store, Write

if TYPE_CHECKING:
    from flowlet.app.flowlet import Flowlet
    from flowlet.runtime.observing import Observers

from flowlet.app.arguments import (
    Authorize,
    coded,
    configured_store,
    graph_limits_of,
    lease_of,
    limits_of,
    seconds_of,
    settled,
    smaller,
    store_of,
)


class Life(Assembler):
    """A `Flowlet` that can be entered; its sides add what can be done with it."""

    def __init__(
        self,
        store: str | Store | None = None,
        /,
        *,
        config: Config | None = None,
        enabled: bool | None = None,
        registry: Registry | None = None,
        lease: Seconds | None = None,
        grace: Seconds | None = None,
        name: str | None = None,
        drain_on_sigterm: bool | None = None,
        codec: PayloadCodec | None = None,
        max_payload: int | None = None,
        pipeline_timeout: Seconds | UnsetType | None = UNSET,
        authorize: Authorize | None = None,
        observers: Observers = (),
    ) -> None:
        self._config = config = settled(
            config,
            store,
            pipeline_timeout,
            enabled=enabled,
            lease=None if lease is None else lease_of(lease),
            grace=None if grace is None else seconds_of(grace, "grace"),
            name=check_name(name),
            drain_on_sigterm=drain_on_sigterm,
            max_payload=smaller(max_payload, None),
        )
        self.store: Store = configured_store(config) if store is None else store_of(store, "Flowlet")
        if codec is not None:
            self.store = coded(self.store, codec)
        self._max_payload = smaller(config.max_payload, self.store.capabilities.max_payload)
        if registry is not None and not isinstance(registry, Registry):
            raise ConfigError(f"registry= takes a flowlet.Registry, not {registry!r}")
        self._registry = Registry() if registry is None else registry
        self._registry.attach(cast("Flowlet", self))
        self._lease, self._grace = seconds_of(config.lease, "lease"), seconds_of(config.grace, "grace")
        if authorize is not None and not callable(authorize):
            raise ConfigError(f"authorize= takes a function of a person's name, not {authorize!r}")
        self._authorize = authorize
        self._name, self._drain_on_sigterm = config.name, config.drain_on_sigterm
        self._guest: Guest | None = None
        self._log = Log()
        self._observers: Observers = ()
        if observers != ():
            from flowlet.runtime.observing import check_observers

            self._observers = check_observers(observers)
        self._providers = Providers(self._log)
        from flowlet.app.flowlet import Flowlet  # which is made of this

        self._providers.add_reference(Flowlet, self)
        self._entered = 0
        self._changing: Latch | None = None
        self._loop: object = None
        self._runs: Runs | None = None
        self._machines: Machines | None = None
        self._timetable: Timetable | None = None

    @property
    def registry(self) -> Registry:
        """The registry whose definitions run here."""
        return self._registry

    @property
    def config(self) -> Config:
        """What it goes by: the configuration it was given, with what its arguments say in its place.

        A store that was given as an object is in ``store``, and not here.
        """
        return self._config

    async def __aenter__(self) -> Self:
        token = loop_token()
        while self._entered or self._changing is not None:
            if token is not self._loop:
                raise FlowletError("this Flowlet is live on another event loop; make one Flowlet per loop")
            if self._changing is None:
                self._entered += 1
                return self
            await self._changing.wait()  # another task opens or closes it
        self._loop = token
        self._changing = Latch()
        try:
            await self._open()
        except BaseException:
            self._runs = self._machines = self._timetable = None
            await self._close()
            raise
        else:
            self._entered = 1
        finally:
            self._changed()
        return self

    async def __aexit__(
        self, t: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None, /
    ) -> None:
        self._entered -= 1
        if self._entered:
            return
        if self._runs is None:  # it is disabled
            return
        runs = self._open_runs
        self._changing = Latch()
        # The rest must happen even if this task is cancelled, or leases would outlive their owner.
        with anyio.CancelScope(shield=True):
            try:
                if self._timetable is not None:
                    await self._timetable.close()
                await self._open_machines.close()
                await runs.close(self._grace)
            finally:
                self._runs = self._machines = self._timetable = None
                if self._log.observing is not None:
                    self._log.observing.leave(self.store)
                try:
                    await self._close()
                except ProviderFailed:
                    if e is None:  # otherwise what the block has raised says more, and this is in the log
                        raise
                finally:
                    self._changed()
                    guest, self._guest = self._guest, None
                    if guest is not None:
                        guest.leave()

    async def _close(self) -> None:
        """Close what was made for parameters, and then the store."""
        try:
            await self._providers.close()
        finally:
            await self.store.close()

    def _changed(self) -> None:
        """Let the tasks go on that waited for this one to open or close."""
        assert self._changing is not None
        self._changing.set()
        self._changing = None

    async def _open(self) -> None:
        self._log.refresh(self._observers)
        if not self._config.enabled:
            self._log.warning("flowlet.disabled", by=self._disabled_by)
            return
        if self._log.observing is not None:
            self._log.observing.listen(self.store)
        self._registry.build_drafts()
        self._check_capabilities()
        self._providers.is_open = True
        # Nothing below holds this object: a Flowlet that is let go must not be found by direct calls.
        registry, provide = self._registry, self._providers.provide
        runs = self._runs_class()(
            self.store,
            registry.find_run,
            provide,
            self._log,
            self._lease,
            lambda: [*registry.runnable(), *timetable.kinds()],
            self._name,
        )
        timetable: Timetable = Timetable(self.store, runs, registry.schedules)
        runs.adopters["schedule"] = timetable.adopt
        machines = Machines(
            self.store,
            now=runs.now,
            worker=lambda: runs.worker.id,
            log=self._log,
            provide=provide,
            max_payload=self._max_payload,
            find=registry.find_machine,
        )
        runs.adopters["machine"], machines.runs = machines.adopt, runs
        runs.clock_moved.append(machines.look_at_clock)
        runs.further_times.append(machines.times)
        self._providers.add_reference(Messenger, machines.messenger)
        self._check_provided()
        runs.providers = machines.providers = machines.messenger.providers = self._providers
        runs.max_payload, runs.limits = self._max_payload, limits_of(self._config)
        runs.graph_limits = graph_limits_of(self._config)
        self._runs, self._machines, self._timetable = runs, machines, timetable
        await self._store_definitions()
        await timetable.open()
        await runs.open()
        # The signal's handler must not hold this object either, which may be let go without having been left.
        self._guest = drain_on_sigterm(partial(runs.drain, self._grace)) if self._drain_on_sigterm else None

    def _runs_class(self) -> type[Runs]:
        """Return what executes runs: it goes by a clock that is moved by hand, if the store has one."""
        if getattr(self.store, "clock", None) is None:
            return Runs
        from flowlet.runtime.hand_clock import HandRuns  # in tests

        return HandRuns

    def _check_capabilities(self) -> None:
        """Refuse definitions that need of the store what it cannot do.

        Raises:
            ConfigError: there are some.
        """
        if self.store.capabilities.transactional:
            return
        runs = [d for d in self._registry.definitions.values() if isinstance(d, RunDefinition)]
        steps = ", ".join(f"{s.name!r} of {d.name!r}" for d in runs for s in d.steps.values() if s.transactional)
        if steps:
            raise ConfigError(
                f"{type(self.store).__qualname__} takes part in nobody's transaction (its capabilities say "
                f"transactional=False), but these steps are transactional=True: {steps}; use a store that does, such "
                "as sqlite://, or at_most_once=True"
            )

    def _check_provided(self) -> None:
        """Refuse definitions with parameters that nothing fills.

        Raises:
            DefinitionError: there are some.
        """
        from flowlet.runtime.lacks import check_provided

        check_provided(list(self._registry.definitions.values()), self._providers)

    async def drain(self) -> None:
        """Begin no further step, let running ones end within the grace time, and give every run back.

        For a program that handles its signals itself; SIGTERM does it where nothing else handles it. Runs that are
        not in the middle of a step are given back at once, so that other processes go on with them. Nothing fails
        and nothing is compensated: who waits here for a run that has not ended gets a `RunError`. Afterwards this
        Flowlet still reads, but starts no run until it has been left and entered again. Calling it again is allowed.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet
            >>> flow = Flowlet()
            >>> async def main() -> None:
            ...     async with flow:
            ...         await flow.drain()
            >>> anyio.run(main)
        """
        if self._config.enabled:
            await self._open_runs.drain(self._grace)

    async def _store_definitions(self) -> None:
        """Keep each definition as JSON beside its runs, so that tools read a store without this code."""
        for definition in list(self._registry.definitions.values()):
            plain = definition.export()
            exported = msgspec.json.encode(plain, order="sorted")
            kind = plain.get("kind", "machine")
            id = f"{RESERVED}{kind}/{definition.name}/{definition.version}"
            stored = await self.store.load(id, limit=0)
            if stored is not None and stored.snapshot == exported:
                continue
            new = New("definition", definition.name, str(definition.version)) if stored is None else None
            expect = 0 if stored is None else stored.head.version
            try:
                await self.store.append(
                    (Write(id=id, expect=expect, create=new, records=(exported,), snapshot=exported),)
                )
            except Conflict:
                continue  # another process has just written it

    def _check_enabled(self) -> None:
        """Refuse to begin anything if nothing is to be.

        Raises:
            Disabled: it is so.
        """
        if not self._config.enabled:
            raise Disabled(self._disabled_by)

    def _not_open(self) -> FlowletError:
        """Return why nothing can be done here."""
        if not self._config.enabled:
            return Disabled(self._disabled_by)
        return FlowletError("this Flowlet is not open: use it inside `async with flow:`")

    @property
    def _disabled_by(self) -> str:
        return self._config.origin("enabled") or "enabled=False of this Flowlet or of its Config"

    @property
    def _open_runs(self) -> Runs:
        if self._runs is None:
            raise self._not_open()
        return self._runs

    @property
    def _open_machines(self) -> Machines:
        if self._machines is None:
            raise self._not_open()
        return self._machines

    @property
    def _open_store(self) -> Store:
        if self._runs is None:
            raise self._not_open()
        return self.store
