"""A worker of this host that has died is known to have; any doubt means "unknown", which is "not dead"."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from flowlet.errors import ConfigError
from flowlet.runtime.presence import Presence, check_name, new_worker_id


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"flowlet-workers-{os.getuid()}"


def test_ids_differ_and_name_the_host_first() -> None:
    one, two = new_worker_id(), new_worker_id()
    assert one != two
    assert one.partition("-")[0] == two.partition("-")[0]


def test_a_name_is_a_part_of_the_id_and_changes_nothing_else() -> None:
    one, two = Presence(new_worker_id("a-b.c_1")), Presence(new_worker_id("a-b.c_1"))
    assert one.worker != two.worker
    assert "-a-b.c_1-" in one.worker
    for presence in (one, two):
        presence.hold()
    assert not one.is_dead(two.worker)
    one.drop()
    two.drop()


@pytest.mark.parametrize("name", [None, "a", "x" * 64, ".", "..", "-"])
def test_names(name: str | None) -> None:
    assert check_name(name) == name
    longest = Presence(new_worker_id(name))
    longest.hold()
    assert Presence(new_worker_id()).sees(longest.worker)
    longest.drop()


@pytest.mark.parametrize("name", ["", "x" * 65, "a b", "a/b", "a\\b", "a\0", "ü", "a\n", 3, b"a", True])
def test_names_that_are_none(name: Any) -> None:
    with pytest.raises(ConfigError, match="a worker's name is 1 to 64 of the letters a-z and A-Z, digits"):
        check_name(name)


def test_only_a_worker_with_a_lock_here_is_seen(folder: Path) -> None:
    mine, other = Presence(new_worker_id()), Presence(new_worker_id())
    assert not mine.sees(other.worker)
    other.hold()
    assert mine.sees(other.worker)
    other.drop()
    assert not mine.sees(other.worker)
    stranger = "00000000-1-abc"
    (folder / stranger).touch()
    assert not mine.sees(stranger)


def test_a_worker_that_lives_is_not_dead_and_one_that_has_left_is_unknown() -> None:
    mine, other = Presence(new_worker_id()), Presence(new_worker_id())
    other.hold()
    assert not mine.is_dead(other.worker)
    assert not other.is_dead(other.worker)
    other.drop()
    assert not mine.is_dead(other.worker)  # it said good-bye: nothing to conclude
    other.drop()


HOLD = """
import sys, tempfile
tempfile.tempdir = sys.argv[1]
from flowlet.runtime.presence import Presence, new_worker_id
presence = Presence(new_worker_id())
presence.hold()
print(presence.worker, flush=True)
sys.stdin.read()
"""


def test_a_killed_process_is_seen_at_once(tmp_path: Path) -> None:
    mine = Presence(new_worker_id())
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    worker = process.stdout.readline().strip()
    assert not mine.is_dead(worker)
    process.kill()
    process.communicate()
    assert mine.is_dead(worker)
    assert mine.is_dead(worker)  # whoever asks may die before it has done anything about that
    mine.forget(worker)
    assert not mine.is_dead(worker)


def test_workers_of_other_hosts_are_unknown(folder: Path) -> None:
    mine = Presence(new_worker_id())
    stranger = "00000000-1-abc"
    (folder / stranger).touch()
    assert not mine.is_dead(stranger)


def test_a_file_that_nobody_locks_is_a_dead_workers(folder: Path) -> None:
    mine, other = Presence(new_worker_id()), new_worker_id()
    (folder / other).touch()
    assert mine.is_dead(other)


def test_a_folder_that_others_can_write_to_is_not_trusted(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    mine, other = Presence(new_worker_id()), new_worker_id()
    (folder / other).touch()
    assert not mine.is_dead(other)
    mine.hold()
    assert [p.name for p in folder.iterdir()] == [other]
    mine.drop()


def test_a_link_in_its_place_is_not_trusted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    folder.symlink_to(tmp_path / "elsewhere")
    Presence(new_worker_id()).hold()
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_no_place_for_files_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    mine = Presence(new_worker_id())
    mine.hold()
    assert not mine.is_dead(new_worker_id())
    mine.drop()
