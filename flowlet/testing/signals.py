"""Signals: kept in order, received once, and no wake-up lost."""

from __future__ import annotations

import anyio
import pytest

from flowlet.errors import Conflict, RunFinished, RunNotFound
from flowlet.store import Signal, Store, Write
from flowlet.testing.calls import create, found, needs, outcome_of, together, versions
from flowlet.testing.clocks import Clock

__all__ = ["SignalChecks"]


class SignalChecks:
    """Signals: kept in order, received once, and no wake-up lost."""

    async def test_signals_are_kept_in_order_and_wake(self, store: Store) -> None:
        needs(store.capabilities, "signals")
        await create(store, "a")
        await store.append([Write(id="a", signals=[Signal("t", b"1"), Signal("u", b"2", "m2")])])
        await store.append([Write(id="a", expect=1, records=[b"second"], signals=[Signal("t", b"3")], wake=9999.0)])
        stored = await found(store, "a")
        assert list(stored.signals) == [
            Signal("t", b"1", None, 1),
            Signal("u", b"2", "m2", 2),
            Signal("t", b"3", None, 3),
        ]
        assert (stored.head.inbox, stored.head.wake, stored.head.version) == (3, 0.0, 2)

    async def test_signals_are_stored_with_their_append_or_not_at_all(self, store: Store) -> None:
        needs(store.capabilities, "signals")
        await create(store, "a", "b")
        signals = [Signal("t", b"hello", "m")]
        for writes in (
            [Write(id="a", expect=7, records=[b"2"], signals=signals)],
            [Write(id="a", signals=signals), Write(id="b", expect=7, records=[b"2"])],
            [Write(id="a", signals=signals), Write(id="nobody", signals=signals)],
        ):
            assert await outcome_of(store.append(writes)) is not None
            assert (await found(store, "a")).head.inbox == 0
        with pytest.raises(RunNotFound, match="nobody"):
            await store.append([Write(id="nobody", signals=signals)])
        await store.append([Write(id="a", expect=1, records=[b"2"]), Write(id="b", signals=signals)])
        assert [signal.payload for signal in (await found(store, "b")).signals] == [b"hello"]
        assert await versions(store, "a", "b") == [2, 1]
        await store.append([Write(id="a", signals=signals)])
        assert len((await found(store, "a")).signals) == 1, "what was refused was not received"

    async def test_a_message_is_received_once(self, store: Store) -> None:
        needs(store.capabilities, "signals")
        await create(store, "a", "b")
        twice = [Signal("t", b"1", "m"), Signal("t", b"2", "m"), Signal("t", b"3")]
        await store.append([Write(id="a", signals=twice)])
        await store.append([Write(id="a", consumed=1, wake=None)])
        await store.append([Write(id="a", signals=[Signal("other", b"4", "m")])])
        stored = await found(store, "a")
        assert list(stored.signals) == [Signal("t", b"3", None, 2)]
        assert (stored.head.inbox, stored.head.wake) == (2, None), "what was dropped wakes nobody"
        await store.append([Write(id="b", signals=[Signal("t", b"1", "m")])])
        stored = await found(store, "b")
        assert len(stored.signals) == 1, "the same message id to another entity is another message"

    async def test_a_message_sent_by_many_at_once_is_received_once(self, store: Store) -> None:
        needs(store.capabilities, "signals")
        await create(store, "a")
        signal = Signal("t", b"1", "m")
        outcomes = await together([lambda: store.append([Write(id="a", signals=[signal])])] * 20)
        assert outcomes == [None] * 20
        stored = await found(store, "a")
        assert (len(stored.signals), stored.head.inbox) == (1, 1)

    async def test_consumed_signals_are_gone_and_their_numbers_stay(self, store: Store) -> None:
        needs(store.capabilities, "signals")
        await create(store, "a")
        await store.append([Write(id="a", signals=[Signal("t", b"%d" % n) for n in range(1, 6)])])
        await store.append([Write(id="a", expect=1, records=[b"second"], consumed=3, signals=[Signal("t", b"6")])])
        stored = await found(store, "a")
        assert [signal.number for signal in stored.signals] == [4, 5, 6]
        await store.append([Write(id="a", consumed=100)])
        await store.append([Write(id="a", signals=[Signal("t", b"7")])])
        stored = await found(store, "a")
        assert [(signal.number, signal.payload) for signal in stored.signals] == [(7, b"7")]

    async def test_a_writer_learns_that_a_signal_came_in(self, store: Store) -> None:
        needs(store.capabilities, "signals")
        await create(store, "a")
        await store.append([Write(id="a", signals=[Signal("t", b"1")])])
        with pytest.raises(Conflict) as caught:
            await store.append([Write(id="a", expect=1, inbox=0, records=[b"waiting"], wake=None)])
        assert caught.value.expected == caught.value.actual == 1
        assert any("signal 1" in note for note in caught.value.__notes__)
        assert await versions(store, "a") == [1]
        await store.append([Write(id="a", expect=1, inbox=1, records=[b"waiting"], wake=None)])
        assert await versions(store, "a") == [2]

    async def test_no_wake_up_is_lost_between_looking_and_waiting(self, store: Store) -> None:
        """A waiter that looks, decides to sleep and says so, against a sender, many times."""
        needs(store.capabilities, "signals")
        await create(store, "a")
        received: list[bytes] = []

        async def wait() -> None:
            version = 1
            while len(received) < 30:
                stored = await found(store, "a")
                received.extend(signal.payload for signal in stored.signals)
                seen, version = stored.head.inbox, stored.head.version
                await anyio.sleep(0.003 * (seen % 2))  # something may come in just now
                write = Write(id="a", expect=version, inbox=seen, records=[b"w"], consumed=seen, wake=None)
                if await outcome_of(store.append([write])) is not None:
                    del received[len(received) - len(stored.signals) :]
                    continue
                head = (await found(store, "a")).head
                assert head.wake == (0.0 if head.inbox > seen else None)
                while head.wake is None and len(received) < 30:
                    await anyio.sleep(0.001)
                    now = await found(store, "a")
                    head = now.head
                    if head.inbox > seen:
                        assert head.wake == 0.0

        async def send() -> None:
            for n in range(30):
                await store.append([Write(id="a", signals=[Signal("t", b"%d" % n)])])
                await anyio.sleep(0.002 * (n % 3))  # sometimes the waiter waits already, sometimes it looks

        with anyio.fail_after(20):
            async with anyio.create_task_group() as group:
                group.start_soon(wait)
                group.start_soon(send)
        assert received == [b"%d" % n for n in range(30)]

    async def test_what_has_ended_takes_no_signals(self, store: Store, clock: Clock) -> None:
        needs(store.capabilities, "signals")
        await create(store, "a", wake=5.0)
        await clock.advance(1)
        closed = await store.now()
        await store.append([Write(id="a", expect=1, records=[b"end"], close=True, status="done")])
        await clock.advance(1)
        with pytest.raises(RunFinished, match="a") as caught:
            await store.append([Write(id="a", signals=[Signal("t", b"")])])
        assert caught.value.id == "a"
        await store.append([Write(id="a", expect=2, records=[b"after"], close=True)])
        stored = await found(store, "a")
        assert (stored.head.closed, stored.head.wake, stored.head.version) == (clock.about(closed), None, 3)
        assert list(stored.signals) == []
