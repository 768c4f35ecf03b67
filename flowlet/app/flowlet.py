"""`Flowlet`: the facade that joins registry, store, runs and machines.

Law: it wires the floors below together and decides nothing itself.
"""

from __future__ import annotations

from flowlet.app.approval_side import ApprovalSide
from flowlet.app.blocking_side import BlockingSide
from flowlet.app.bulk_side import BulkSide
from flowlet.app.machine_side import MachineSide
from flowlet.app.provide_side import ProvideSide
from flowlet.app.run_side import RunSide
from flowlet.app.schedule_side import ScheduleSide
from flowlet.app.store_side import StoreSide


class Flowlet(RunSide, ApprovalSide, BulkSide, BlockingSide, MachineSide, ProvideSide, ScheduleSide, StoreSide):
    """Assembles definitions and runs them over one store.

    Args:
        store: a URL (``"memory://"``, ``"sqlite:///relative.db"``, ``"sqlite:////absolute.db"``) or
            any object with the methods of `flowlet.store.Store`. What is left out, here and below, is taken from
            ``config``.
        config: a `flowlet.config.Config`; its defaults by default, which read neither the environment nor a file.
            ``Config.load()`` reads both.
        enabled: False: entering it only says so in the log. It opens no store and recovers nothing, and whatever would
            start something or ask the store raises `flowlet.errors.Disabled`.
        registry: the definitions to run; one of its own by default.
        lease: seconds (or a timedelta) within which other processes notice that this one is dead.
        grace: seconds (or a timedelta) that running steps get when the Flowlet is left or drained.
        name: what this process is called where owners and workers are named, up to 64 of the letters a-z and
            A-Z, digits, ``.``, ``_`` and ``-``. Any number of processes may have the same.
        drain_on_sigterm: while this is entered on the main thread and nothing else handles SIGTERM, that signal
            makes it `drain` before it ends the process; a second one ends it at once.
        codec: encodes what is stored of runs and machines, see `flowlet.store.PayloadCodec`; every
            process on the store needs it.
        max_payload: bytes that one record, signal or snapshot may have, at least 4,096; by default, and
            at most, what the store takes. They are counted before the codec.
        pipeline_timeout: seconds (or a timedelta) that a process may spend on a pipeline which says nothing of it
            with ``timeout=``; None for no limit. 300 unless the ``config`` says otherwise.
        authorize: a function, async or not, that tells the roles of who decides in an approval chain, by name; None
            for somebody it does not know, who can decide nothing.
        observers: are told what happens here, see `flowlet.observing`.

    Raises:
        ConfigError: the URL is not understood, or an option is not of its type.

    Example:
        >>> from flowlet import Flowlet
        >>> flow = Flowlet("memory://")
    """
