"""A codec that compresses and encrypts, and how its key is rotated without a run in between being lost.

The cipher stands for one: it is built of what the standard library has, so that this example runs
anywhere. Take a reviewed one in its place, such as AES-GCM of the ``cryptography`` package; the rest,
the key's id in front and several keys to read with, stays as it is here.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sqlite3
import zlib
from collections.abc import Mapping
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import pytest

from flowlet import Flowlet, compensate, current_run, state, step, transition
from flowlet.errors import DecodeError, FlowletError
from flowlet.store import PayloadCodec

pytestmark = pytest.mark.anyio


# ------------------------------------------------------------------ the codec
class SealedPayloads:
    """Compress, encrypt, then authenticate; ``keys`` are all that may be read with, ``current`` writes.

    What it makes: 1 byte with the key's id, 16 random bytes, the ciphertext, 16 bytes of authentication
    of all before.
    """

    def __init__(self, keys: Mapping[int, bytes], current: int) -> None:
        self._keys = dict(keys)
        self._current = current

    def encode(self, data: bytes) -> bytes:
        header = bytes([self._current]) + secrets.token_bytes(16)
        sealed = header + self._mix(self._current, header, zlib.compress(data))
        return sealed + self._tag(self._current, sealed)

    def decode(self, data: bytes) -> bytes:
        sealed, tag = data[:-16], data[-16:]
        key = sealed[0]
        if key not in self._keys:
            raise ValueError(f"key {key} is not among {sorted(self._keys)}")
        if not hmac.compare_digest(tag, self._tag(key, sealed)):
            raise ValueError("it was changed after it was written, or with another key of the same id")
        return zlib.decompress(self._mix(key, sealed[:17], sealed[17:]))

    def _tag(self, key: int, sealed: bytes) -> bytes:
        return hashlib.blake2b(sealed, key=self._keys[key], person=b"tag", digest_size=16).digest()

    def _mix(self, key: int, header: bytes, data: bytes) -> bytes:
        """Combine with a stream of bytes that nobody can guess without the key. An illustration, see above."""
        stream = bytearray()
        for block in count():
            if len(stream) >= len(data):
                break
            stream += hashlib.blake2b(header + block.to_bytes(8), key=self._keys[key], person=b"stream").digest()
        return bytes(a ^ b for a, b in zip(data, stream, strict=False))

    def __repr__(self) -> str:
        return f"SealedPayloads(keys {sorted(self._keys)}, writing with {self._current})"


KEY_1, KEY_2 = secrets.token_bytes(32), secrets.token_bytes(32)
BEFORE = SealedPayloads({1: KEY_1}, current=1)
ROTATED = SealedPayloads({1: KEY_1, 2: KEY_2}, current=2)
AFTER = SealedPayloads({2: KEY_2}, current=2)


def test_the_codec_itself() -> None:
    assert isinstance(BEFORE, PayloadCodec)
    data = b"plain text " * 50
    sealed = BEFORE.encode(data)
    assert sealed != BEFORE.encode(data)
    assert len(sealed) < len(data)
    assert BEFORE.decode(sealed) == ROTATED.decode(sealed) == data
    assert BEFORE.decode(BEFORE.encode(b"")) == b""
    with pytest.raises(ValueError, match=r"key 1 is not among \[2\]"):
        AFTER.decode(sealed)
    for place in (3, 20, len(sealed) - 1):
        with pytest.raises(ValueError, match="it was changed"):
            BEFORE.decode(sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :])


# ------------------------------------------------------------------ what is stored with it
NAME = "Ada-Lovelace-of-St-James-Square"
CARD = "4000-1234-5678-9010"
effects: list[str] = []
gate: dict[str, bool] = {}


@pytest.fixture(autouse=True)
def no_effects() -> None:
    effects.clear()
    gate.clear()


@step
async def charge(name: str, card: str) -> str:
    effects.append(current_run().idempotency_key)
    return f"receipt for {name}"


@compensate(charge)
async def refund(name: str, charge: str) -> None:
    effects.append(f"{charge} returned")


@step(retry=1)
async def ship(name: str, receipt: str) -> str:
    effects.append(f"ship {name}")
    if gate.get("shut"):
        await anyio.sleep_forever()  # until the process is left
    if gate.get("refuse"):
        raise ValueError(f"{name} has moved")
    return f"parcel of {name} with {receipt}"


def open_shop(path: Path, codec: PayloadCodec) -> tuple[Flowlet, Any, Any]:
    """Return what one process has: a Flowlet with its definitions, on the file that all share."""
    flow = Flowlet(f"sqlite:///{path}?durability=process", codec=codec, grace=0)

    @flow.saga
    async def order(name: str, card: str) -> str:
        receipt = await charge(name, card)
        return await ship(name, receipt)

    @flow.machine
    class Customer:
        name: str = ""

        @state(initial=True)
        class Known: ...

        @state(final=True)
        class Forgotten: ...

        @transition(Known, Known)
        async def rename(self, name: str) -> None:
            self.name = name

        @transition(Known, Forgotten)
        async def forget(self) -> None:
            self.name = ""

    return flow, order, Customer


def check_sealed(path: Path) -> None:
    """Look for what must not be in the files of the store, and for what is there for tools to read."""
    content = b"".join(file.read_bytes() for file in path.parent.iterdir())
    for secret in (NAME, CARD, "receipt for", "has moved", "parcel of"):
        assert secret.encode() not in content, secret
    for plain in ("o-1", "order", "Customer"):
        assert plain.encode() in content, plain


async def begin(flow: Flowlet, order: Any, *ids: str) -> None:
    """Start runs that come to their second step, in which the process is left."""
    gate["shut"] = True
    async with flow:
        for id in ids:
            await flow.start(order, NAME, CARD, id=id)
        with anyio.fail_after(20):
            while effects.count(f"ship {NAME}") < len(ids):
                await anyio.sleep(0.005)
    gate["shut"] = False


def kept_under(path: Path) -> set[int]:
    """Return the ids of the keys that records of runs and machines are kept under."""
    with closing(sqlite3.connect(path)) as connection:
        plain = "SELECT n FROM heads WHERE id LIKE 'definition/%'"
        return {row[0][0] for row in connection.execute(f"SELECT data FROM records WHERE n NOT IN ({plain})")}


# ------------------------------------------------------------------ the story
async def test_nothing_of_it_is_legible_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    flow, order, customer_type = open_shop(path, BEFORE)
    async with flow:
        await flow.execute(order, NAME, CARD, id="o-1")
        customer = await flow.create(customer_type(), id="c-1")
        await customer.rename(NAME)
        gate["refuse"] = True
        with pytest.raises(ValueError, match="has moved"):
            await flow.execute(order, NAME, CARD, id="o-2")
        check_sealed(path)
    check_sealed(path)


async def test_a_key_is_rotated_while_runs_are_under_way(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    flow, order, customer_type = open_shop(path, BEFORE)
    async with flow:
        customer = await flow.create(customer_type(), id="c-1")
        await customer.rename(NAME)
    await begin(flow, order, "o-1", "o-2")
    assert kept_under(path) == {1}

    # Every process gets the new key beside the old one, and writes with the new one.
    flow, order, customer_type = open_shop(path, ROTATED)
    async with flow:
        for id in ("o-1", "o-2"):
            assert await flow.handle(id, order).result() == f"parcel of {NAME} with receipt for {NAME}"
        customer = await flow.load(customer_type, "c-1")
        assert customer.name == NAME
        await customer.forget()
        gate["refuse"] = True
        with pytest.raises(ValueError, match="has moved"):
            await flow.execute(order, NAME, CARD, id="o-3")
    assert effects.count("o-1/charge") == 1  # under the old key, and known under the new one
    assert kept_under(path) == {1, 2}
    check_sealed(path)

    # What was kept under the old key has ended; when it is pruned, the key may go.
    async with flow:
        assert await flow.prune(older_than=0) == 4
        assert kept_under(path) == set()
    flow, order, _ = open_shop(path, AFTER)
    gate["refuse"] = False
    async with flow:
        assert await flow.execute(order, NAME, CARD, id="o-1") == f"parcel of {NAME} with receipt for {NAME}"
    assert kept_under(path) == {2}


async def test_a_process_without_the_key_ends_nothing(tmp_path: Path) -> None:
    path = tmp_path / "shop.db"
    await begin(*open_shop(path, BEFORE)[:2], "o-1")
    before = version_of(path, "o-1")

    flow, order, _ = open_shop(path, AFTER)
    async with flow:
        with anyio.fail_after(20):
            with pytest.raises(FlowletError, match="cannot be read"):
                await flow.handle("o-1").result()
            with pytest.raises(DecodeError, match="key 1 is not among"):
                await flow.start(order, NAME, CARD, id="o-1")
    assert version_of(path, "o-1") == before  # it has not written what another could not read

    flow, order, _ = open_shop(path, ROTATED)
    async with flow:
        with anyio.fail_after(20):
            await flow.handle("o-1").resume()
            assert await flow.handle("o-1", order).result() == f"parcel of {NAME} with receipt for {NAME}"
    assert effects.count("o-1/charge") == 1


def version_of(path: Path, id: str) -> int:
    with closing(sqlite3.connect(path)) as connection:
        version: int = connection.execute("SELECT version FROM heads WHERE id = ?", (id,)).fetchone()[0]
        return version
