"""The script is killed, goes on where it was, and does nothing twice."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


class Folder:
    def __init__(self, folder: Path, script: Path) -> None:
        self.folder = folder
        self.command = [sys.executable, "-u", str(script), "photos"]
        self.photos = folder / "photos"
        self.photos.mkdir()
        for name in "ab":
            (self.photos / f"{name}.jpg").write_bytes(b"12345678")

    def run(self) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command, cwd=self.folder, capture_output=True, text=True, timeout=60)


@pytest.fixture
def folder(root: Path, tmp_path: Path) -> Folder:
    return Folder(tmp_path, root / "examples" / "script.py")


def test_killed_it_goes_on_where_it_was(folder: Folder) -> None:
    last = folder.photos / "c.jpg"
    os.mkfifo(last)  # whoever reads it waits for somebody who writes
    with subprocess.Popen(folder.command, cwd=folder.folder, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert [next(first.stdout) for _ in "ab"] == ["shrunk photos/a.jpg\n", "shrunk photos/b.jpg\n"]
        with last.open("wb"):  # it has come to the last one: opening waits for who reads
            first.kill()
    last.unlink()
    last.write_bytes(b"1234")
    assert folder.run().stdout.splitlines() == ["shrunk photos/c.jpg", "photos/index.html"]
    assert folder.run().stdout.splitlines() == ["photos/index.html"]
    assert (folder.photos / "index.html").read_text().count("<img") == 3
    (folder.photos / "d.jpg").write_bytes(b"1234")
    assert folder.run().stdout.splitlines()[-2:] == ["shrunk photos/d.jpg", "photos/index.html"]


def test_a_folder_that_is_not_there_begins_nothing(folder: Folder) -> None:
    folder.command[-1] = "nowhere"
    assert folder.run().stderr == "there is no folder nowhere\n"
    assert not (folder.folder / "thumbnails.db").exists()


def test_one_that_failed_says_why(folder: Folder) -> None:
    (folder.photos / "index.html").mkdir()
    failed = folder.run()
    assert failed.returncode == 1
    assert "IsADirectoryError" in failed.stderr
