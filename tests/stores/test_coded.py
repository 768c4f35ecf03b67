"""A codec sees the bytes of payloads and nothing else, and its failure is nobody's loss."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flowlet import Flowlet, compensate, current_run, state, step, transition
from flowlet.errors import ConfigError, DecodeError, EncodeError, RunParked, StoreUnavailable
from flowlet.store import UNCHANGED, New, PayloadCodec, Signal, Store, Work, Write
from flowlet.stores.coded import CodedStore
from flowlet.stores.memory import MemoryStore
from flowlet.stores.refusal import malformed
from flowlet.stores.sqlite import SQLiteStore

pytestmark = pytest.mark.anyio

RUN = New("run", "checkout")


class Salted:
    """Gives other bytes each time, and refuses those of another name."""

    def __init__(self, name: str = "key") -> None:
        self.name = name.encode()
        self.broken = False

    def encode(self, data: bytes) -> bytes:
        if self.broken:
            raise OSError("no key")
        return self.name + os.urandom(8) + zlib.compress(data)

    def decode(self, data: bytes) -> bytes:
        if not data.startswith(self.name):
            raise ValueError("another key")
        return zlib.decompress(data[len(self.name) + 8 :])

    def __repr__(self) -> str:
        return f"<codec {self.name.decode()}>"


async def contents(store: Store, id: str) -> tuple[Any, ...]:
    stored = await store.load(id)
    assert stored is not None
    return list(stored.records), stored.snapshot, [(s.topic, s.payload) for s in stored.signals]


# ------------------------------------------------------------------ the store
async def test_payloads_are_encoded_and_heads_are_not(new_store: Callable[[], Store]) -> None:
    inner = new_store()
    store = CodedStore(inner, Salted())
    assert isinstance(store, Store)
    assert store.capabilities is inner.capabilities
    signals = [Signal("paid", b"a signal", "m1"), Signal("sent", b"another")]
    await store.append(
        [Write(id="a", expect=0, create=RUN, records=[b"one", b"two"], snapshot=b"snap", signals=signals, status="on")]
    )
    await store.append([Write(id="a", expect=2, records=[b"three"], state="there")])
    assert await contents(store, "a") == (
        [b"one", b"two", b"three"],
        b"snap",
        [("paid", b"a signal"), ("sent", b"another")],
    )
    records, snapshot, inbox = await contents(inner, "a")
    for data in (*records, snapshot, *(payload for _, payload in inbox)):
        assert data.startswith(b"key")
    assert [topic for topic, _ in inbox] == ["paid", "sent"]
    (head,) = await store.scan(status=["on"], state="there")
    assert (head.id, head.version, head.inbox) == ("a", 3, 2)
    part = await store.load("a", after=1, limit=1)
    assert part is not None
    assert list(part.records) == [b"two"]
    assert await store.load("nobody") is None
    await store.close()


async def test_a_write_without_payloads_is_left_alone() -> None:
    inner = MemoryStore()
    codec = Salted()
    store = CodedStore(inner, codec)
    await store.append([Write(id="a", expect=0, create=RUN, records=[b"x"])])
    codec.broken = True
    await store.append([Write(id="a", status="on", wake=5.0)])
    stored = await store.load("a")
    assert stored is not None
    assert (stored.head.status, stored.snapshot, stored.head.wake) == ("on", None, 5.0)
    assert Write(id="a").snapshot is UNCHANGED


async def test_what_tools_read_without_a_key_stays_plain() -> None:
    inner = MemoryStore()
    store = CodedStore(inner, Salted())
    id = "definition/saga/checkout/1"
    await store.append([Write(id=id, expect=0, create=New("definition", "checkout"), records=[b"{}"], snapshot=b"{}")])
    assert await contents(inner, id) == await contents(store, id) == ([b"{}"], b"{}", [])


async def test_what_is_written_inside_a_transaction_is_encoded(new_store: Callable[[], Store]) -> None:
    inner = new_store()
    codec = Salted()
    store = CodedStore(inner, codec)
    await store.append([Write(id="a", expect=0, create=RUN, records=[b"one"])])
    await store.append([], work=lambda connection: [Write(id="a", expect=1, records=[b"two"])])
    assert (await contents(store, "a"))[0] == [b"one", b"two"]
    assert (await contents(inner, "a"))[0][1].startswith(b"key")
    codec.broken = True
    with pytest.raises(EncodeError, match="record 3 of 'a' was not stored"):
        await store.append([], work=lambda connection: [Write(id="a", expect=2, records=[b"three"])])
    assert (await contents(store, "a"))[0] == [b"one", b"two"]
    await store.close()


async def test_a_codec_that_fails_is_a_typed_error_and_changes_nothing() -> None:
    inner, codec = MemoryStore(), Salted()
    store = CodedStore(inner, codec)
    await store.append([Write(id="a", expect=0, create=RUN, records=[b"1", b"2"], signals=[Signal("t", b"s")])])
    before = await contents(inner, "a")
    codec.broken = True
    for write, what in (
        (Write(id="a", expect=2, records=[b"3", b"4"]), "record 3 of 'a'"),
        (Write(id="a", signals=[Signal("t", b"x")]), "a signal about 't' to 'a'"),
        (Write(id="a", snapshot=b"s"), "the snapshot of 'a'"),
    ):
        with pytest.raises(EncodeError, match=rf"^{what} was not stored, because <codec key> .*OSError") as caught:
            await store.append([write])
        assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(DecodeError, match=r"^record 2 of 'a' cannot be read, because <codec wrong> .*er key") as wrong:
        await CodedStore(inner, Salted("wrong")).load("a", after=1)
    assert isinstance(wrong.value.__cause__, ValueError)
    with pytest.raises(DecodeError, match="signal 1 of 'a'"):
        await CodedStore(inner, Salted("wrong")).load("a", limit=0)
    assert await contents(inner, "a") == before


@pytest.mark.parametrize("made", [None, "text", bytearray(b"x"), 3])
async def test_a_codec_that_returns_no_bytes(made: Any) -> None:
    class Odd:
        def encode(self, data: bytes) -> bytes:
            return data if data == b"good" else made  # type: ignore[no-any-return]

        def decode(self, data: bytes) -> bytes:
            return made  # type: ignore[no-any-return]

    store = CodedStore(MemoryStore(), Odd())
    with pytest.raises(EncodeError, match=f"it returned {type(made).__name__}, not bytes"):
        await store.append([Write(id="a", expect=0, create=RUN, records=[b"bad"])])
    await store.append([Write(id="a", expect=0, create=RUN, records=[b"good"])])
    with pytest.raises(DecodeError, match=f"it returned {type(made).__name__}, not bytes"):
        await store.load("a")


def test_things_that_are_no_codec() -> None:
    assert isinstance(Salted(), PayloadCodec)
    for codec in (Salted, 3, "zlib", object(), zlib):
        with pytest.raises(ConfigError, match="codec= takes an object with encode and decode"):
            Flowlet(codec=codec)  # type: ignore[arg-type]
    store = MemoryStore()
    assert Flowlet(store).store is store
    assert isinstance(Flowlet(store, codec=Salted()).store, CodedStore)


# ------------------------------------------------------------------ runs and machines on it
SECRET = "the customer's secret"


def registered(flow: Flowlet) -> Any:
    """Assemble a saga that fails at its last step, and a machine."""

    @step
    async def charge(who: str) -> str:
        calls.append(current_run().idempotency_key)
        return f"charged {who}"

    @compensate(charge)
    async def refund(who: str, charge: str) -> None:
        calls.append(f"refund {who} {charge}")

    @step
    async def ship(who: str) -> None:
        raise ValueError(f"no way to {who}")

    @flow.machine
    class Account:
        owner: str = ""

        @state(initial=True)
        class Open: ...

        @state(final=True)
        class Closed: ...

        @transition(Open, Open)
        async def rename(self, owner: str) -> None:
            self.owner = owner

        @transition(Open, Closed)
        async def close(self) -> None: ...

    return flow.saga("checkout", charge, ship), flow.saga("pay", charge), Account


calls: list[str] = []


@pytest.fixture(autouse=True)
def no_calls() -> None:
    calls.clear()


async def test_a_program_does_not_notice(new_store: Callable[[], Store]) -> None:
    for _ in range(2):  # the second one finds all as it is
        flow = Flowlet(new_store(), codec=Salted())
        checkout, pay, account_type = registered(flow)
        async with flow:
            handle = await flow.start(checkout, SECRET, id="r")
            with pytest.raises(ValueError, match=SECRET):
                await handle.result()
            assert await flow.execute(pay, SECRET, id="p") == f"charged {SECRET}"
            account = await flow.create(account_type(), id="m")
            await account.rename(SECRET)
            assert [t.event async for t in flow.history("m")][-1] == "rename"
    assert calls == ["r/charge", f"refund {SECRET} charged {SECRET}", "p/charge"]


class LostReply:
    """Delegates to a store whose every append succeeds and says that it has not."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self.capabilities = inner.capabilities
        self.losing = True
        self.lost = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def append(self, writes: Any, *, work: Work | None = None) -> None:
        await self._inner.append(writes, work=work)
        if self.losing and any(write.id in ("r", "m") for write in writes):
            self.lost += 1
            raise StoreUnavailable("the reply was lost")


async def test_a_lost_reply_is_recognised_whatever_the_bytes(
    new_store: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flowlet.runtime import journal

    monkeypatch.setattr(journal, "_PAUSES", (0.0, 0.0, 0.0))
    inner: Any = LostReply(new_store())
    flow = Flowlet(inner, codec=Salted())
    checkout, _, account_type = registered(flow)
    async with flow:
        with pytest.raises(ValueError, match=SECRET):
            await flow.execute(checkout, SECRET, id="r")
        account = await flow.create(account_type(), id="m")
        await account.rename(SECRET)
        await account.close()
        assert await flow.handle("r").status() == "compensated"
        assert [t.event async for t in flow.history("m")] == ["rename", "close"]
    assert inner.lost >= 5
    assert calls == ["r/charge", f"refund {SECRET} charged {SECRET}"]


async def test_a_codec_that_fails_for_a_while_loses_nothing(new_store: Callable[[], Store]) -> None:
    codec = Salted()
    flow = Flowlet(new_store(), codec=codec)
    _, pay, account_type = registered(flow)
    async with flow:
        account = await flow.create(account_type(), id="m")
        codec.broken = True
        for begin in (flow.start, flow.execute):
            with pytest.raises(EncodeError, match="record 1 of 'p' was not stored"):
                await begin(pay, SECRET, id="p")
        with pytest.raises(EncodeError, match="record 2 of 'm' was not stored"):
            await account.rename(SECRET)
        assert account.owner == ""
        codec.broken = False
        await account.rename(SECRET)
        assert await flow.execute(pay, SECRET, id="p") == f"charged {SECRET}"
    assert calls == ["p/charge"]


async def test_a_machine_waits_for_the_right_key(tmp_path: Path) -> None:
    for name in ("old", "new", "old"):
        flow = Flowlet(SQLiteStore(tmp_path / "s.db"), codec=Salted(name))
        *_, account_type = registered(flow)
        async with flow:
            if name == "new":
                with pytest.raises(DecodeError, match=r"record 1 of 'm' cannot be read.*codec=\.\.\."):
                    await flow.load(account_type, "m")
                with pytest.raises(DecodeError):
                    await flow.create(account_type(), id="m")
                with pytest.raises(DecodeError):
                    _ = [t async for t in flow.history("m")]
                assert [id async for id in flow.machines(account_type)] == ["m"]
            else:
                account = await flow.create(account_type(), id="m")
                await account.rename(name)
    assert account.owner == "old"


async def test_a_run_of_another_key_is_found_and_not_begun_anew(new_store: Callable[[], Store]) -> None:
    for key in ("key", "wrong", "key"):
        flow = Flowlet(new_store(), codec=Salted(key))
        _, pay, _ = registered(flow)
        async with flow:
            if key == "wrong":
                with pytest.raises(DecodeError, match="record 1 of 'p' cannot be read"):
                    await flow.execute(pay, SECRET, id="p")
                with pytest.raises(DecodeError, match="'p' cannot be read"):
                    await flow.handle("p").result()
                assert await flow.handle("p").status() == "completed"
                assert [run.id async for run in flow.runs()] == ["p"]
            else:
                assert await flow.execute(pay, SECRET, id="p") == f"charged {SECRET}"
    assert calls == ["p/charge"]


@pytest.mark.parametrize("direct", [True, False])
async def test_a_run_whose_step_cannot_be_recorded_waits_for_its_operator(
    new_store: Callable[[], Store], direct: bool
) -> None:
    codec = Salted()
    flow = Flowlet(new_store(), codec=codec)

    @step
    async def work(n: int) -> int:
        calls.append("work")
        codec.broken = calls.count("work") == 1
        return n

    @step
    async def finish(n: int) -> int:
        calls.append("finish")
        return n + 1

    both = flow.saga("both", work, finish)
    async with flow:
        if not direct:
            await flow.start(both, 1, id="r")
        with pytest.raises(RunParked, match=r"^what run 'r' did last cannot be recorded: record [23] of 'r'.*resume"):
            await flow.execute(both, 1, id="r")
        handle = flow.handle("r", both)
        assert await handle.status() == "parked"
        codec.broken = False
        with pytest.raises(RunParked, match=r"set aside by a process that could not .*flow\.handle\('r'\)\.resume"):
            await handle.result()
        assert [record.kind async for record in handle.history()] == ["started"]
        await handle.resume()
        assert await handle.result() == 2
    assert calls.count("work") == 2  # at least once, since it is not on record
    assert calls[-1] == "finish"


async def test_what_a_codec_makes_too_large_for_the_store_waits_too(new_store: Callable[[], Store]) -> None:
    class Padded:
        padding = 0

        def encode(self, data: bytes) -> bytes:
            return data + bytes(self.padding if len(data) > 1000 else 0)

        def decode(self, data: bytes) -> bytes:
            return data

    class Small(MemoryStore):
        """Refuses what a server would."""

        capabilities = MemoryStore.capabilities.__class__(max_payload=5000, durable=True)

        async def append(self, writes: Any, *, work: Work | None = None) -> None:
            if error := malformed(writes, 5000):
                raise error
            await super().append(writes, work=work)

    codec = Padded()
    codec.padding = 5000
    flow = Flowlet(Small(), codec=codec)

    @step
    async def work(n: int) -> bytes:
        return bytes(n)

    @step
    async def finish(work: bytes) -> int:
        return len(work)

    both = flow.saga("both", work, finish)
    async with flow:
        with pytest.raises(RunParked, match=r"cannot be recorded: a value of [67],[0-9]{3} bytes for 'r'"):
            await flow.execute(both, 2000, id="r")
        codec.padding = 0
        await flow.handle("r").resume()
        assert await flow.handle("r").result() == 2000
