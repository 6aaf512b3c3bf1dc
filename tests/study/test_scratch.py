"""Test temporary folders of studies: removed at the end, or after a kill by the next command."""

import os
import signal
import tempfile
from pathlib import Path

import pytest

from training.study import scratch


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    scratch.remove_left_behind.cache_clear()
    return tmp_path


def test_a_folder_is_private_and_removed_at_the_end(place: Path) -> None:
    with scratch.temporary_folder() as folder:
        assert Path(folder).stat().st_mode & 0o077 == 0
        (Path(folder) / "cache").mkdir()
    assert not list(place.iterdir())


def test_folders_of_killed_processes_are_removed_and_others_stay(place: Path) -> None:
    child = os.fork()
    if child == 0:
        with scratch.temporary_folder() as folder:
            (Path(folder) / "patient").touch()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    [left] = place.iterdir()
    assert (left / "patient").exists()
    (place / "ich-study-being-made").mkdir()
    (place / "ich-study-link").symlink_to(place / "others")
    (place / "others").mkdir()
    (place / "others" / scratch.HELD).touch()
    with scratch.temporary_folder() as folder:
        assert not left.exists()
        scratch.remove_left_behind.cache_clear()
        with scratch.temporary_folder():
            assert Path(folder).exists()
    assert {path.name for path in place.iterdir()} == {"ich-study-being-made", "ich-study-link", "others"}
    assert (place / "others" / scratch.HELD).exists()
