"""Stores that break one promise each, and the checks of the kit that must notice.

`tests/test_testing.py` runs them; pytest does not collect this file by itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path
from typing import Any, ClassVar

import msgspec
from anyio import sleep
from anyio.lowlevel import checkpoint
from custom_store import FolderStore
from dict_store import DictStore
from msgspec.structs import replace

from flowlet.errors import FlowletError, StoreUnavailable
from flowlet.store import Capabilities, Claims, Entity, Head, Signal, Store, Stored, Work, Write
from flowlet.testing import StoreConformance


class Broken(StoreConformance):
    """What the tests below have in common."""

    loops = ("asyncio",)
    kills = 16
    patience = 0.5
    noticed_by: ClassVar[Sequence[str]]
    Faulty: ClassVar[type[DictStore]]

    def open_store(self, place: Path, clock: Callable[[], float]) -> Store:
        return self.Faulty(clock=clock)


class BrokenFolder(StoreConformance):
    """The same of stores that last."""

    loops = ("asyncio",)
    kills = 16
    patience = 0.5
    noticed_by: ClassVar[Sequence[str]]
    Faulty: ClassVar[type[FolderStore]]

    def open_store(self, place: Path, clock: Callable[[], float]) -> Store:
        return self.Faulty(place, clock=clock)


# What it stores -----------------------------------------------------------------------------------
class Alters(DictStore):
    """Changes the writes before it judges them, or the entities before it keeps them."""

    def altered(self, write: Write) -> Write:
        return write

    def kept(self, entity: Entity, before: Entity | None) -> Entity | None:
        return entity

    async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
        writes = [self.altered(write) for write in writes]
        changed = self.apply(writes, self.entities, last=self.last, work=work)
        self.keep({id: entity and self.kept(entity, self.entities.get(id)) for id, entity in changed.items()})
        self.notify(writes)


class TestIgnoresTheFence(Broken):
    noticed_by = (
        "test_a_stale_fence_is_refused_before_the_version",
        "test_release_gives_back_and_fences_off",
    )

    class Faulty(Alters):
        def altered(self, write: Write) -> Write:
            return replace(write, fence=None)


class TestIgnoresTheVersion(Broken):
    noticed_by = (
        "test_a_stale_version_is_refused_and_nothing_stored",
        "test_an_append_that_was_stored_is_not_stored_again",
        "test_of_those_who_follow_one_version_one_succeeds",
    )

    class Faulty(Alters):
        def altered(self, write: Write) -> Write:
            there = self.entities.get(write.id)
            return write if write.expect is None or there is None else replace(write, expect=there.head.version)


class TestIgnoresTheInbox(Broken):
    noticed_by = (
        "test_a_writer_learns_that_a_signal_came_in",
        "test_no_wake_up_is_lost_between_looking_and_waiting",
    )

    class Faulty(Alters):
        def altered(self, write: Write) -> Write:
            return replace(write, inbox=None)


class TestNumbersWithAGap(Broken):
    noticed_by = (
        "test_records_are_numbered_without_gap",
        "test_what_was_created_can_be_loaded",
    )

    class Faulty(Alters):
        def kept(self, entity: Entity, before: Entity | None) -> Entity:
            return replace(entity, head=replace(entity.head, version=entity.head.version + (before is None)))


class TestReversesRecords(Broken):
    noticed_by = (
        "test_records_are_numbered_without_gap",
        "test_load_from_a_version_on",
    )

    class Faulty(Alters):
        def altered(self, write: Write) -> Write:
            return replace(write, records=write.records[::-1])


class TestLosesASignal(Broken):
    noticed_by = ("test_signals_are_kept_in_order_and_wake",)

    class Faulty(Alters):
        def altered(self, write: Write) -> Write:
            return replace(write, signals=write.signals[:1])


class TestDoesNotWakeForASignal(Broken):
    noticed_by = (
        "test_signals_are_kept_in_order_and_wake",
        "test_no_wake_up_is_lost_between_looking_and_waiting",
    )

    class Faulty(Alters):
        def kept(self, entity: Entity, before: Entity | None) -> Entity:
            if before is None or entity.head.inbox == before.head.inbox:
                return entity
            return replace(entity, head=replace(entity.head, wake=before.head.wake))


class TestForgetsMessageIds(Broken):
    noticed_by = (
        "test_a_message_is_received_once",
        "test_a_message_sent_by_many_at_once_is_received_once",
    )

    class Faulty(Alters):
        def kept(self, entity: Entity, before: Entity | None) -> Entity:
            return replace(entity, message_ids=frozenset())


class TestTakesPayloadsForText(Broken):
    noticed_by = ("test_payloads_of_all_kinds",)  # of those that are no text

    class Faulty(Alters):
        def altered(self, write: Write) -> Write:
            return replace(write, records=[record.decode(errors="replace").encode() for record in write.records])


class TestForgetsSnapshots(Broken):
    noticed_by = ("test_a_snapshot_stands_for_the_records_of_its_write",)

    class Faulty(Alters):
        def kept(self, entity: Entity, before: Entity | None) -> Entity:
            return replace(entity, snapshot_version=0)


class TestEndsNothing(Broken):
    noticed_by = (
        "test_what_has_ended_takes_no_signals",
        "test_prune_deletes_the_oldest_and_no_more_than_asked",
    )

    class Faulty(Alters):
        def altered(self, write: Write) -> Write:
            return replace(write, close=False)


class TestMovesWhatIsWritten(Broken):
    """Each write puts its entity at the end of the listing."""

    noticed_by = (
        "test_pages_are_stable_while_others_write",
        "test_scan_by_everything",
    )

    class Faulty(Alters):
        def kept(self, entity: Entity, before: Entity | None) -> Entity:
            if entity.head.order == 0:
                return entity
            return replace(entity, head=replace(entity.head, order=self.last + 1))


class TestGivesOrdersTwice(Broken):
    noticed_by = ("test_a_cursor_stays_valid_when_the_last_was_pruned",)

    class Faulty(Alters):
        def keep(self, changed: dict[str, Entity | None]) -> None:
            super().keep(changed)
            self.last = max((entity.head.order for entity in self.entities.values()), default=0)


class TestCountsNoClaims(Broken):
    noticed_by = ("test_claims_are_counted_until_there_is_progress",)

    class Faulty(Alters):
        def kept(self, entity: Entity, before: Entity | None) -> Entity:
            return replace(entity, head=replace(entity.head, claims=0))


class TestKeepsTheCallersList(Broken):
    noticed_by = ("test_what_was_given_may_be_changed_afterwards",)

    class Faulty(Alters):
        def altered(self, write: Write) -> Write:
            self.given = {**getattr(self, "given", {}), write.id: write.records}
            return write

        async def load(self, id: str, /, **question: Any) -> Stored | None:
            stored = await super().load(id, **question)
            return stored and replace(stored, records=self.given.get(id, ()))


# How it stores ------------------------------------------------------------------------------------
class TestStoresOneByOne(Broken):
    noticed_by = (
        "test_several_ids_are_written_together_or_not_at_all",
        "test_signals_are_stored_with_their_append_or_not_at_all",
    )

    class Faulty(DictStore):
        async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
            for write in writes:
                await super().append([write], work=work)


class TestLosesUpdates(Broken):
    """It lets others in between reading and writing."""

    noticed_by = (
        "test_a_hundred_create_one_id_and_one_succeeds",
        "test_of_those_who_follow_one_version_one_succeeds",
    )

    class Faulty(DictStore):
        async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
            changed = self.apply(writes, self.entities, last=self.last, work=work)
            await checkpoint()
            self.keep(changed)
            self.notify(writes)


class TestStopsHalfwayWhenCancelled(Broken):
    noticed_by = ("test_a_cancelled_append_is_whole_or_not_there",)

    class Faulty(DictStore):
        async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
            changed = self.apply(writes, self.entities, last=self.last, work=work)
            for id, entity in changed.items():
                self.keep({id: entity})
                await checkpoint()


class TestFailsForAll(Broken):
    """One refused append of a group fails the others of its group."""

    noticed_by = ("test_appends_of_different_callers_are_independent",)

    class Faulty(DictStore):
        error: FlowletError | None = None

        async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
            await checkpoint()
            try:
                changed = self.apply(writes, self.entities, last=self.last, work=work)
            except FlowletError as error:
                self.error = error
                raise
            await checkpoint()
            error, self.error = self.error, None
            if error is not None:
                raise error
            self.keep(changed)


class TestLetsItsOwnErrorsPass(Broken):
    noticed_by = ("test_a_write_to_nothing_is_refused",)

    class Faulty(DictStore):
        async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
            for write in writes:
                if write.create is None:
                    self.entities[write.id]
            await super().append(writes, work=work)


class TestIgnoresWork(Broken):
    noticed_by = ("test_what_the_store_cannot_do_is_said_when_it_is_asked_for",)

    class Faulty(DictStore):
        async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
            await super().append(writes)


class TestDoesWorkApart(Broken):
    """It says transactional, and stores what work returns in an append of its own."""

    noticed_by = (
        "test_writes_of_work_are_judged_like_others",
        "test_work_is_not_done_for_an_append_that_is_refused",
    )

    class Faulty(DictStore):
        capabilities = Capabilities(transactional=True)

        async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
            if work is not None:
                await super().append(work(self))
            await super().append(writes)


class TestHoldsUpTheLoop(Broken):
    noticed_by = ("test_the_loop_never_stands_still_beside_heavy_writing",)

    class Faulty(DictStore):
        calls = 0

        async def append(self, writes: Sequence[Write], *, work: Work | None = None) -> None:
            self.calls += 1
            if self.calls % 100 == 0:
                time.sleep(0.2)  # as a slow disk would
            await super().append(writes, work=work)


# How it is read -----------------------------------------------------------------------------------
class TestIgnoresTheLimit(Broken):
    noticed_by = (
        "test_load_from_a_version_on",
        "test_scan_by_everything",
    )

    class Faulty(DictStore):
        async def load(self, id: str, /, *, after: int = 0, limit: int | None = None) -> Stored | None:
            return await super().load(id, after=after)

        async def scan(self, **question: Any) -> Sequence[Head]:
            return await super().scan(**{**question, "limit": 10_000})


class TestListsWorkers(Broken):
    noticed_by = ("test_leases_do_not_show_in_listings",)

    class Faulty(DictStore):
        async def scan(self, **question: Any) -> Sequence[Head]:
            return await super().scan(**{**question, "after": question.get("after", 0) - 1})


class TestWakesNobody(Broken):
    noticed_by = ("test_a_watch_sees",)

    class Faulty(DictStore):
        def notify(self, writes: Sequence[Write]) -> None: ...


class TestForgetsAtClose(Broken):
    noticed_by = ("test_it_opens_again_after_close",)

    class Faulty(DictStore):
        async def close(self) -> None:
            self.entities.clear()


# Leases -------------------------------------------------------------------------------------------
class TestLeasesNeverEnd(Broken):
    noticed_by = (
        "test_entities_of_a_worker_that_fell_silent_can_be_claimed",
        "test_only_a_live_worker_may_claim",
    )

    class Faulty(DictStore):
        async def heartbeat(self, worker: str, lease: float, /) -> Sequence[str]:
            return await super().heartbeat(worker, inf if lease == 0 else lease * 1000)


class TestLeasesEndAtOnce(Broken):
    noticed_by = (
        "test_entities_of_a_worker_that_fell_silent_can_be_claimed",
        "test_no_two_workers_claim_the_same",
    )

    class Faulty(Alters):
        def kept(self, entity: Entity, before: Entity | None) -> Entity:
            return replace(entity, head=replace(entity.head, owner=None))


class TestClaimsWithoutLooking(Broken):
    """Two workers that look at the same time take the same."""

    noticed_by = ("test_no_two_workers_claim_the_same",)

    class Faulty(DictStore):
        async def _take(self, worker: str, heads: Sequence[Head]) -> list[Head]:
            await sleep(0)
            for head in heads:
                entity = self.entities[head.id]
                owned = replace(entity.head, owner=worker, fence=entity.head.fence + 1)
                self.entities[head.id] = replace(entity, head=owned)
            return [self.entities[head.id].head for head in heads]


class TestReleasesWithoutFencing(Broken):
    noticed_by = ("test_release_gives_back_and_fences_off",)

    class Faulty(Alters):
        def kept(self, entity: Entity, before: Entity | None) -> Entity:
            if before is None or entity.head.owner is not None or before.head.owner is None:
                return entity
            return replace(entity, head=replace(entity.head, fence=before.head.fence))


class TestClaimsTellNoTime(Broken):
    noticed_by = (
        "test_a_claim_takes_what_is_due",
        "test_a_claim_wakes_at_the_next_time",
    )

    class Faulty(DictStore):
        async def claim(self, worker: str, /, **options: Any) -> Claims:
            return replace(await super().claim(worker, **options), wake=None)


class TestPrunesEverything(Broken):
    noticed_by = ("test_prune_deletes_the_oldest_and_no_more_than_asked",)

    class Faulty(DictStore):
        async def prune(self, *, closed_before: float, limit: int = 1000) -> int:
            return await super().prune(closed_before=closed_before)


class TestAllFlagsAreLies(Broken):
    """It says that it has no signals and no leases, and takes them all the same."""

    noticed_by = ("test_what_the_store_cannot_do_is_said_when_it_is_asked_for",)

    class Faulty(DictStore):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.capabilities = Capabilities(leases=False)

        def _needs_leases(self, method: str) -> None: ...


# Several processes, and their ends -------------------------------------------------------------------
class TestWritesTwoLines(BrokenFolder):
    """A process that is killed between the two has stored one half."""

    noticed_by = ("test_a_process_killed_at_any_write_leaves_whole_appends",)

    class Faulty(FolderStore):
        def _append(self, writes: Sequence[Write], work: Work | None) -> None:
            self.apply(writes, self._entities, last=self._last, work=work)
            for write in writes:
                super()._append([write], work)


class TestAcknowledgesTooEarly(BrokenFolder):
    """It writes each append when the next one comes."""

    noticed_by = (
        "test_a_process_killed_at_any_write_leaves_whole_appends",
        "test_what_was_stored_is_there_when_it_is_opened_again",
    )

    class Faulty(FolderStore):
        waiting: Sequence[Write] = ()

        def _append(self, writes: Sequence[Write], work: Work | None) -> None:
            if self.waiting:
                super()._append(self.waiting, None)
            for id, entity in self.apply(writes, self._entities, last=self._last, work=work).items():
                if entity is not None:
                    self._entities[id] = entity
            self.waiting = writes


class TestLeavesItsLockBehind(BrokenFolder):
    noticed_by = ("test_a_process_killed_at_any_write_leaves_whole_appends",)

    class Faulty(FolderStore):
        def _append(self, writes: Sequence[Write], work: Work | None) -> None:
            lock = self._path.with_suffix(".lock")
            try:
                lock.touch(exist_ok=False)
            except FileExistsError:
                raise StoreUnavailable("somebody else has the lock") from None
            try:
                super()._append(writes, work)
            finally:
                lock.unlink()


class TestDoesNotLock(BrokenFolder):
    noticed_by = ("test_of_many_processes_one_wins_each_version",)

    class Faulty(FolderStore):
        def _append(self, writes: Sequence[Write], work: Work | None) -> None:
            self._catch_up()
            self.apply(writes, self._entities, last=self._last, work=work)
            time.sleep(0.002)
            with open(self._path, "ab") as file:
                file.write(msgspec.json.encode({"now": self._clock(), "writes": writes}) + b"\n")
            self._catch_up()


class TestMakesItsFileAnew(BrokenFolder):
    """Whoever opens it first begins it, and so does whoever comes at the same time."""

    noticed_by = ("test_many_processes_open_it_at_once_for_the_first_time",)

    class Faulty(FolderStore):
        def _append(self, writes: Sequence[Write], work: Work | None) -> None:
            if not self._path.exists():
                time.sleep(0.05)
                self._path.write_bytes(b"")
            super()._append(writes, work)


class TestDoesNotLookAgain(BrokenFolder):
    """It reads the file once."""

    noticed_by = ("test_two_stores_on_the_same_data_see_each_other",)

    class Faulty(FolderStore):
        def _locked(self, call: Callable[[], Any]) -> Any:
            with self._lock:
                return call()


class TestHearsOfNobody(BrokenFolder):
    noticed_by = ("test_who_watches_hears_what_another_store_has_done",)

    class Faulty(FolderStore):
        poll = 3600.0


class TestForgetsWhatItReceived(BrokenFolder):
    """It knows message ids only while it is open."""

    noticed_by = ("test_what_was_stored_is_there_when_it_is_opened_again",)

    class Faulty(FolderStore):
        def _append(self, writes: Sequence[Write], work: Work | None) -> None:
            known = {id: entity.message_ids for id, entity in self._entities.items()}
            plain = []
            for write in writes:
                new = [s for s in write.signals if s.message_id not in known.get(write.id, ())]
                plain.append(replace(write, signals=[Signal(s.topic, s.payload) for s in new]))
            super()._append(plain, work)


class TestTakesANewerVersion(BrokenFolder):
    noticed_by = ("test_data_of_a_newer_version_is_refused",)
    Faulty = FolderStore

    def make_newer(self, place: Path) -> bool:
        return os.path.exists(place)
