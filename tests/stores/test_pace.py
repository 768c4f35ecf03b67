"""When commits are made in the loop's own thread: only while they are short, and again when they are."""

from __future__ import annotations

import itertools

from flowlet.stores.sqlite_pace import Pace


def test_nothing_known_may_be_tried() -> None:
    assert Pace().is_short(now=0.0)


def test_short_ones_stay() -> None:
    pace = Pace()
    for now in range(100):
        pace.note_here(0.0002, float(now))
    assert pace.is_short(100.0)


def test_a_checkpoint_now_and_then_changes_nothing() -> None:
    pace = Pace()
    for now in range(1000):
        pace.note_here(0.050 if now % 50 == 49 else 0.0002, float(now))
        assert pace.is_short(now + 0.1), now


def test_long_ones_go_to_the_thread_and_come_back_after_a_trial() -> None:
    pace = Pace()
    pace.note_here(0.0002, 0.0)
    while pace.is_short(1.0):
        pace.note_here(0.010, 1.0)
    assert not pace.is_short(1.4)
    assert pace.is_short(2.0), "one is tried after half a second"
    pace.note_here(0.0003, 2.0)
    assert pace.is_short(2.0)
    assert pace.is_short(2.1)


def test_trials_of_what_stays_long_get_rarer() -> None:
    pace, now, trials = Pace(), 0.0, []
    while now < 100.0:
        if pace.is_short(now):
            trials.append(now)
            pace.note_here(0.010, now)
        now += 0.01
    gaps = [round(later - earlier, 1) for earlier, later in itertools.pairwise(trials)]
    assert gaps[:5] == [0.5, 1.0, 2.0, 4.0, 8.0]
    assert set(gaps[5:]) == {8.0}


def test_a_short_one_in_the_thread_brings_it_back_and_a_long_one_says_nothing() -> None:
    pace = Pace()
    pace.note_here(0.010, 0.0)
    pace.note_elsewhere(0.010)
    assert not pace.is_short(0.1)
    pace.note_elsewhere(0.0002)
    assert pace.is_short(0.1)
    pace.note_elsewhere(0.5)
    assert pace.is_short(0.1)
