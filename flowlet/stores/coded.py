"""A store whose payloads pass through a codec on their way: compressed, encrypted, or both.

Law: it stands between everything else and another store, and changes bytes only: records, snapshots and
the payloads of signals. Heads stay as they are, since stores search them; so does what tools read without
a key, the exported definitions. Whatever is compared with what was stored is compared decoded, so a codec
may give other bytes each time. It never writes because something could not be decoded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from msgspec.structs import replace

from flowlet.errors import DecodeError, EncodeError
from flowlet.store import UNCHANGED, Capabilities, Claims, Head, PayloadCodec, Signal, Store, Stored, Work, Write

__all__ = ["CodedStore"]


class CodedStore:
    """Keep payloads in another store, encoded.

    Args:
        inner: keeps them.
        codec: encodes and decodes them.
        plain: entities whose ids begin with this are kept as they are.
    """

    def __init__(self, inner: Store, codec: PayloadCodec, *, plain: str = "definition/") -> None:
        self.capabilities: Capabilities = inner.capabilities
        self.inner = inner
        self._codec, self._plain = codec, plain

    # What passes through the codec ----------------------------------------------------------------
    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        """Store all writes or none of them, encoded; see `flowlet.store.Store.append`.

        Raises:
            EncodeError: the codec has failed; nothing was stored.
        """
        coded = [self._encoded(write) for write in writes]
        await self.inner.append(coded, work=None if work is None else self._encoding(work))

    def _encoding(self, work: Work) -> Work:
        def encoding_work(connection: Any) -> Sequence[Write] | Awaitable[Sequence[Write]]:
            made = work(connection)
            return encoded_later(made) if isinstance(made, Awaitable) else [self._encoded(write) for write in made]

        async def encoded_later(made: Awaitable[Sequence[Write]]) -> Sequence[Write]:
            return [self._encoded(write) for write in await made]

        return encoding_work

    def _encoded(self, write: Write) -> Write:
        if write.id.startswith(self._plain) or not (write.records or write.signals or write.snapshot is not UNCHANGED):
            return write
        what, expect = repr(write.id), write.expect or 0
        records = [self._encode(data, f"record {n} of {what}") for n, data in enumerate(write.records, expect + 1)]
        signals = [
            replace(s, payload=self._encode(s.payload, f"a signal about {s.topic!r} to {what}")) for s in write.signals
        ]
        snapshot = write.snapshot
        if snapshot is not UNCHANGED:
            snapshot = self._encode(snapshot, f"the snapshot of {what}")
        return replace(write, records=records, signals=signals, snapshot=snapshot)

    async def load(self, id: str, /, *, after: int = 0, limit: int | None = None) -> Stored | None:
        """Read an entity and decode it; see `flowlet.store.Store.load`.

        Raises:
            DecodeError: the codec has failed; what is stored stays as it is.
        """
        stored = await self.inner.load(id, after=after, limit=limit)
        if stored is None or id.startswith(self._plain):
            return stored
        records = [self._decode(data, f"record {n} of {id!r}") for n, data in enumerate(stored.records, after + 1)]
        signals = tuple(self._received(signal, id) for signal in stored.signals)
        snapshot = stored.snapshot
        if snapshot is not None:
            snapshot = self._decode(snapshot, f"the snapshot of {id!r}")
        return replace(stored, records=tuple(records), signals=signals, snapshot=snapshot)

    def _received(self, signal: Signal, id: str) -> Signal:
        return replace(signal, payload=self._decode(signal.payload, f"signal {signal.number} of {id!r}"))

    def _encode(self, data: bytes, what: str) -> bytes:
        try:
            return _bytes(self._codec.encode, data)
        except Exception as error:
            text = f"{what} was not stored, because {self._codec!r} did not encode it: {error!r}"
            raise EncodeError(f"{text}; mend the codec and try again") from error

    def _decode(self, data: bytes, what: str) -> bytes:
        try:
            return _bytes(self._codec.decode, data)
        except Exception as error:
            text = f"{what} cannot be read, because {self._codec!r} did not decode it: {error!r}"
            raise DecodeError(
                f"{text}; give Flowlet(codec=...) the key or the format it was written with, nothing is lost"
            ) from error

    # What does not --------------------------------------------------------------------------------
    @property
    def clock(self) -> Callable[[], float] | None:
        """The clock that the other store was given, if time does not pass by itself in it."""
        found: Callable[[], float] | None = getattr(self.inner, "clock", None)
        return found

    async def scan(
        self,
        *,
        kind: str | None = None,
        definition: str | None = None,
        status: Sequence[str] | None = None,
        state: str | None = None,
        wake_before: float | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> Sequence[Head]:
        """List heads in the order of creation; see `flowlet.store.Store.scan`."""
        return await self.inner.scan(
            kind=kind,
            definition=definition,
            status=status,
            state=state,
            wake_before=wake_before,
            after=after,
            limit=limit,
        )

    async def claim(
        self,
        worker: str,
        /,
        *,
        definitions: Sequence[tuple[str, str, str]] = (),
        ids: Sequence[str] = (),
        limit: int = 100,
    ) -> Claims:
        """Take entities that nobody alive owns; see `flowlet.store.Store.claim`."""
        return await self.inner.claim(worker, definitions=definitions, ids=ids, limit=limit)

    async def heartbeat(self, worker: str, lease: float, /) -> Sequence[str]:
        """Say that the worker lives for ``lease`` more seconds; return the others on record."""
        return await self.inner.heartbeat(worker, lease)

    async def release(self, worker: str, /, ids: Sequence[str] | None = None) -> None:
        """Give back the worker's leases on these ids, or all of them and its place on record."""
        await self.inner.release(worker, ids)

    async def now(self) -> float:
        """Return the store's own time, in seconds since the epoch."""
        return await self.inner.now()

    async def watch(self, seen: int, timeout: float, /) -> int:
        """Wait until the change counter differs from ``seen``, or ``timeout`` seconds; return it."""
        return await self.inner.watch(seen, timeout)

    async def prune(self, *, closed_before: float, limit: int = 1000) -> int:
        """Delete at most ``limit`` entities closed before this time, oldest first; return how many."""
        return await self.inner.prune(closed_before=closed_before, limit=limit)

    async def close(self) -> None:
        """Close the other store."""
        await self.inner.close()


def _bytes(exchange: Callable[[bytes], object], data: bytes) -> bytes:
    made = exchange(data)
    if not isinstance(made, bytes):
        raise TypeError(f"it returned {type(made).__name__}, not bytes")
    return made
