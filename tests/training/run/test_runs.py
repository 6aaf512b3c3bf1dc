"""Test a run's folder: its files can be read back, and anything that does not fit is rejected."""

import contextlib
import dataclasses
import json
import math
from importlib.metadata import PackageNotFoundError

import numpy as np
import pandas as pd
import pytest

from testkit.fake_cache import CLASSES, write_cache
from testkit.tiny_run import HERE, settings
from training.data.cache import open_cache
from training.data.split import split_patients
from training.errors import CacheError, RunError
from training.run.digests import write_atomically
from training.run.job import environment
from training.run.log import LOG_COLUMNS, Log
from training.run.runs import NewRun, check_compatible, create_run, new_folder, open_run
from training.run.tables import prediction_table, write_json, write_table
from training.scores.predictions import read_predictions

MEAN_STD = (np.array([0.1, 1 / 3, 0.7]), np.array([0.2, math.pi / 10, 1e-17]))


@pytest.fixture
def cache(tmp_path):
    return open_cache(write_cache(tmp_path / "c.zarr", unlabelled=3).path)


@pytest.fixture
def run(tmp_path, cache):
    subsets = split_patients(cache.table, cache.classes, seed=0)
    return create_run(tmp_path / "run", cache, NewRun(settings(), subsets, MEAN_STD, {"torch": "x"}))


def test_a_run_can_be_read_back_exactly(run, cache):
    again = open_run(run.path)
    assert again == run
    assert again.data.mean == tuple(MEAN_STD[0])
    assert again.data.std == tuple(MEAN_STD[1])
    assert again.data.class_weights == (1, 1, 1, 1, 1, 2)
    np.testing.assert_array_equal(again.subsets(cache), split_patients(cache.table, cache.classes, seed=0))


def test_the_same_command_creates_a_run_after_it_was_killed(cache, tmp_path):
    path, subsets = tmp_path / "run", split_patients(cache.table, cache.classes, seed=0)
    with contextlib.suppress(KeyboardInterrupt), new_folder(path):
        (path / "split.csv").write_text("half")
        (path / "checkpoints").mkdir()
        raise KeyboardInterrupt
    with new_folder(path):
        create_run(path, cache, NewRun(settings(), subsets, MEAN_STD, {}))
    assert open_run(path).subsets(cache).tolist() == subsets.tolist()
    assert sorted(file.name for file in path.iterdir() if file.suffix != ".lock") == [
        "checkpoints",
        "digests.json",
        "linked.csv",
        "settings.json",
        "split.csv",
    ]
    with pytest.raises(RunError, match=f"continue it: train run --resume {path}"), new_folder(path):
        pass


def test_a_folder_in_use_is_not_touched(run, cache, tmp_path):
    before = sorted(path.name for path in run.path.iterdir())
    subsets = split_patients(cache.table, cache.classes, seed=0)
    with pytest.raises(RunError, match=f"is not empty; to continue it: train run --resume {run.path}"):
        create_run(run.path, cache, NewRun(settings(), subsets, MEAN_STD, {}))
    assert sorted(path.name for path in run.path.iterdir()) == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(RunError, match="is not empty; choose another"):
        create_run(tmp_path / "other", cache, NewRun(settings(), subsets, MEAN_STD, {}))
    (tmp_path / "empty").mkdir()
    create_run(tmp_path / "empty", cache, NewRun(settings(), subsets, MEAN_STD, {}))


def test_missing_runs_and_damaged_settings_are_reported(tmp_path, run):
    with pytest.raises(RunError, match="not a run, it has no settings"):
        open_run(tmp_path / "nowhere")
    file = run.path / "settings.json"
    content = json.loads(file.read_text())
    content["config"]["batchsize"] = 3
    file.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"settings\.json: is damaged: its SHA-256 is not the one in"):
        open_run(run.path)
    (run.path / "digests.json").unlink()  # from here on nothing is checked
    with pytest.raises(RunError, match="did you mean batch_size"):
        open_run(run.path)
    file.write_text("{")
    with pytest.raises(RunError, match=r"settings\.json: cannot be read"):
        open_run(run.path)


def test_a_different_cache_is_checked_for_windows_size_and_classes(tmp_path, run):
    def changed(**attributes):
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.zarr"
        root = write_cache(path, sizes=attributes.pop("sizes", (32,)), classes=attributes.pop("classes", CLASSES)).path
        return dataclasses.replace(open_cache(root), **attributes)

    check_compatible(run, changed())
    check_compatible(run, changed(classes=()))
    windows = changed().windows
    with pytest.raises(RunError, match=r"built for windows subdural \(50, 130\), brain .* needs brain \(40, 80\)"):
        check_compatible(run, changed(windows=(windows[1], windows[0], windows[2])))
    with pytest.raises(RunError, match="has classes any, "):
        check_compatible(run, changed(classes=tuple(reversed(CLASSES))))
    with pytest.raises(CacheError, match="built at 16 px; this run needs 32"):
        check_compatible(run, changed(sizes=(16,)))


def test_the_log_is_truncated_to_a_length(tmp_path):
    log = Log(tmp_path / "log.csv")
    log.write(step=1, epoch=0, split="train", loss=0.1)
    length = log.flush()
    log.sync(length)
    log.write(step=2, epoch=0, split="train", loss=0.2)
    log.close()
    log = Log(tmp_path / "log.csv", length)
    log.write(step=2, epoch=0, split="train", loss=0.25)
    log.close()
    table = pd.read_csv(tmp_path / "log.csv")
    assert tuple(table.columns) == LOG_COLUMNS
    assert table["loss"].tolist() == [0.1, 0.25]
    with pytest.raises(ValueError, match="not in fieldnames"):
        Log(tmp_path / "log.csv").write(lss=1)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"ne")
        raise OSError("No space left on device")

    with pytest.raises(RunError, match=r"file: cannot be written \(No space left on device\).*: free up space"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_json_has_null_for_nan(tmp_path):
    write_json(tmp_path / "a.json", {"a": [math.nan, 0.1], "b": {"c": None}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None, 0.1], "b": {"c": None}}


def test_predictions_can_be_read_back_exactly_with_the_documented_columns(tmp_path, cache):
    lines = np.array([0, 3, 7])
    p = np.random.default_rng(0).random((3, 6))
    write_table(tmp_path / "p.csv", prediction_table(cache, lines, p, CLASSES))
    read = read_predictions(tmp_path / "p.csv")
    table = pd.read_csv(tmp_path / "p.csv")
    head = ["row", "image_id", "patient_id", "study_instance_uid", "series_instance_uid", "z_norm"]
    assert list(table.columns) == [*head, *CLASSES, *(f"p_{name}" for name in CLASSES)]
    np.testing.assert_array_equal(read.probabilities, p)
    np.testing.assert_array_equal(read.slices["z_norm"], cache.table["z_norm"].iloc[lines])
    np.testing.assert_array_equal(table[list(CLASSES)], cache.labels()[lines])
    text = (tmp_path / "p.csv").read_text().splitlines()
    assert text[1].split(",")[6:12] == [""] * 6
    assert set(text[2].split(",")[6:12]) <= {"0", "1"}


def test_a_package_that_is_not_installed_is_recorded_in_the_environment(monkeypatch):
    """This package itself, if it runs from a folder without being installed."""

    def version_of(name):
        if name == "ich-cache":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr("training.run.job.version", version_of)
    found = environment(settings(), HERE)
    assert found["ich-cache"] == "not installed"
    assert found["torch"] == "1.0"


def test_two_commands_cannot_create_the_same_run(cache, tmp_path):
    """The second starts while the first is writing, and after it; leftovers of a killed one are ignored."""
    path, subsets = tmp_path / "run", split_patients(cache.table, cache.classes, seed=0)
    path.mkdir()
    (path / ".owner.lock").touch()  # killed right after locking the folder
    with new_folder(path):
        with pytest.raises(RunError, match="is creating a run there; wait for it, or stop it"), new_folder(path):
            pass
        assert (path / ".unfinished").exists()
        made = create_run(path, cache, NewRun(settings(), subsets, MEAN_STD, {}))
    with (
        pytest.raises(RunError, match="exists and is not empty; to continue it: train run --resume"),
        new_folder(path),
    ):
        pass
    assert open_run(path) == made
