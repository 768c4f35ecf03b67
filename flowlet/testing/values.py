"""Payloads, words and snapshots: what comes back is what was given."""

from __future__ import annotations

import hashlib

import pytest

from flowlet.errors import PayloadTooLarge, StoreError
from flowlet.store import New, Signal, Store, Write
from flowlet.testing.calls import RUN, create, found, together, versions

__all__ = ["ValueChecks"]

_LARGEST_TO_TRY = 64 << 20


def _shown(payload: bytes | None) -> object:
    """Stand for a payload in a comparison: pytest, under CI, takes minutes to show how 16 MB differ."""
    if payload is None or len(payload) < 100:
        return payload
    return len(payload), payload[:10], hashlib.sha256(payload).hexdigest()


class ValueChecks:
    """Payloads, words and snapshots: what comes back is what was given."""

    @pytest.mark.parametrize("payload", [b"", b"\x00\xff\xfe'; DROP TABLE heads; --\x00", bytes(range(256)) * 65536])
    async def test_payloads_of_all_kinds(self, store: Store, payload: bytes) -> None:
        largest = store.capabilities.max_payload
        if largest is not None and len(payload) > largest:
            pytest.skip(f"the store has capabilities.max_payload={largest}")
        signals = [Signal("t", payload)] if store.capabilities.signals else []
        await create(store, "a")
        await store.append([Write(id="a", expect=1, records=[payload], snapshot=payload, signals=signals)])
        stored = await found(store, "a", after=1)
        assert _shown(stored.records[0]) == _shown(payload)
        assert _shown(stored.snapshot) == _shown(payload)
        assert [_shown(signal.payload) for signal in stored.signals] == [_shown(signal.payload) for signal in signals]

    async def test_words_of_all_kinds(self, store: Store) -> None:
        for id in ("", "o'connor", "a/b c", "\u2603" * 300, "%s ?1", "--"):
            await create(store, id, new=New("machine", id, id), status=id, state=id)
            stored = await found(store, id)
            head = stored.head
            assert (head.id, head.definition, head.definition_version, head.status, head.state) == (id,) * 5
            if id:
                heads = await store.scan(kind="machine", definition=id, status=[id], state=id)
                assert [head.id for head in heads] == [id]

    async def test_a_word_that_cannot_be_stored_is_refused_for_itself_alone(self, store: Store) -> None:
        """A NUL is such a word in many databases; a store takes it and gives it back, or says that it does not."""
        await create(store, "a")
        word = "x\x00y"
        writes = [Write(id=word, expect=0, create=RUN, records=[b"1"], state=word), Write(id="a", status="s")]
        error, other = await together([lambda: store.append(writes), lambda: create(store, "b")])
        assert other is None
        if error is None:
            assert (await found(store, word)).head.state == word
        else:
            assert isinstance(error, StoreError)
            assert len(await store.scan()) == 2
        assert (await found(store, "a")).head.status == ("s" if error is None else "")

    async def test_a_value_that_is_too_large_is_refused_before_it_is_sent(self, store: Store) -> None:
        largest = store.capabilities.max_payload
        if largest is None or largest > _LARGEST_TO_TRY:
            pytest.skip(f"the store has capabilities.max_payload={largest}")
        await create(store, "a")
        await store.append([Write(id="a", expect=1, records=[bytes(largest)])])
        too_much = bytes(largest + 1)
        for write in (Write(id="a", expect=2, records=[too_much]), Write(id="a", snapshot=too_much)):
            with pytest.raises(PayloadTooLarge, match="a"):
                await store.append([write])
        assert await versions(store, "a") == [2]

    async def test_what_was_given_may_be_changed_afterwards(self, store: Store) -> None:
        """A store keeps what it was given, and not the caller's list."""
        records = [b"1"]
        await store.append([Write(id="a", expect=0, create=RUN, records=records)])
        before = await found(store, "a")
        records.append(b"2")
        await store.append([Write(id="a", expect=1, records=[b"x"], status="changed")])
        assert (list(before.records), before.head.version, before.head.status) == ([b"1"], 1, "")
        assert list((await found(store, "a")).records) == [b"1", b"x"]

    async def test_a_snapshot_stands_for_the_records_of_its_write(self, store: Store) -> None:
        await create(store, "a")
        await store.append([Write(id="a", expect=1, records=[b"2", b"3"], snapshot=b"old")])
        await store.append([Write(id="a", expect=3, records=[b"4"])])
        stored = await found(store, "a")
        assert (stored.snapshot, stored.snapshot_version, len(stored.records)) == (b"old", 3, 4)
        await store.append([Write(id="a", snapshot=b"new")])
        stored = await found(store, "a", after=4)
        assert (stored.snapshot, stored.snapshot_version, list(stored.records)) == (b"new", 4, [])
