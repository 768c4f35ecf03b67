"""What a `Flowlet` does with all that is in its store: deleting what is old, moving everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from flowlet.core.retry import Seconds
from flowlet.runtime.listing import count
from flowlet.runtime.pruning import prune
from flowlet.store import UNCHANGED, PayloadCodec, Store, Unchanged

if TYPE_CHECKING:
    from flowlet.runtime.copying import CopyProgress, CopyReport

from flowlet.app.arguments import as_coded, seconds_of, store_of
from flowlet.app.life import Life


class StoreSide(Life):
    """What a `Flowlet` does with its store."""

    async def prune(self, older_than: Seconds, *, limit: int | None = None) -> int:
        """Delete the runs and machines that ended longer ago than that, with all that is recorded of them.

        It goes in small batches with pauses between them, so that others write meanwhile; cancelled, it has
        deleted a part. What has not ended is never deleted: no waiting run, and none that needs an operator.
        A pruned id is as if it had never been: a start under it begins a new run. Prune no sooner than the runs that
        have started others ask for their results.

        Args:
            older_than: seconds (or a timedelta) since the end, by the store's clock.
            limit: at most so many; all by default.

        Returns:
            How many were deleted.

        Raises:
            ConfigError: an argument is not of its type, or negative.

        Example:
            >>> import anyio
            >>> from datetime import timedelta
            >>> from flowlet import Flowlet, step
            >>> flow = Flowlet()
            >>> @step
            ... async def double(n: int) -> int:
            ...     return 2 * n
            >>> twice = flow.saga("twice", double)
            >>> async def main() -> None:
            ...     async with flow:
            ...         await flow.execute(twice, 21, id="r-1")
            ...         print(await flow.prune(older_than=timedelta(days=30)))
            ...         print(await flow.prune(older_than=0))
            >>> anyio.run(main)
            0
            1
        """
        age, most = seconds_of(older_than, "older_than"), None if limit is None else count(limit, "limit")
        return await prune(self._open_store, age, most)

    async def copy_to(
        self,
        other: str | Store,
        /,
        *,
        codec: PayloadCodec | Unchanged | None = UNCHANGED,
        progress: Callable[[CopyProgress], object] | None = None,
    ) -> CopyReport:
        """Copy all history into another store, of whatever kind, and compare what is there with what is here.

        For moving: leave or drain every Flowlet on both stores first. Afterwards start on the other store; what had
        not ended goes on there. This one stays as it is: nobody may go on with it, or work is done twice.

        Interrupted, it may be called again: what is there is not copied again, and what is there in part is
        continued. Nothing is overwritten. Nothing falls due in the other store before all of it was compared.
        Call it outside of ``async with``, or after `drain`; definitions need not be included.

        Not copied, since stores set them themselves: when something was created, last changed and ended (it was now,
        also for `prune`); who owns it; and the message ids of signals that a run has already consumed.

        Args:
            other: a URL, or a store, which is left open. It may have other runs and machines.
            codec: encodes what is stored there. By default what is stored here is copied as it is, so that a
                Flowlet with the same codec reads it; another one encodes it anew, and None stores it plainly.
            progress: called again and again with how far it is.

        Returns:
            How much there is, and a digest of it.

        Raises:
            StoreInUse: a living worker owns a part of this store (``.owned``), or it was changed meanwhile.
            CopyMismatch: the other store has something else under an id (``.id``).
            ConfigError: it is no store, or this one.

        Example:
            >>> import anyio
            >>> from flowlet import Flowlet, step
            >>> from flowlet.stores import open_store
            >>> flow = Flowlet()
            >>> @step
            ... async def double(n: int) -> int:
            ...     return 2 * n
            >>> twice = flow.saga("twice", double)
            >>> async def main() -> None:
            ...     async with flow:
            ...         await flow.execute(twice, 21, id="r-1")
            ...     report = await flow.copy_to(open_store("memory://"))
            ...     print(report.runs, report.definitions, report.records)
            >>> anyio.run(main)
            1 1 4
        """
        from flowlet.runtime.copying import copy

        source, target = as_coded(self.store, store_of(other, "copy_to"), codec)
        try:
            return await copy(source, target, progress)
        finally:
            with anyio.CancelScope(shield=True):
                if isinstance(other, str):
                    await target.close()
                if not self._entered and self._changing is None:
                    await source.close()
