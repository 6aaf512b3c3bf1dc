"""Test both packages together by command, from DICOM files to scores, predictions and a report.

The first call of each command uses the installed one in a new process; later calls run in this process.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import zarr
from click.testing import CliRunner, Result

import pipeline.cli.main
import training.cli.main
from training.data.cache import open_cache
from training.data.stream import Stream
from training.errors import CacheError

BIN = Path(sys.executable).parent
CLASSES = ["epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"]


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    command = [str(BIN / str(arguments[0])), *map(str, arguments[1:])]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done


def call(*arguments: object, code: int = 0) -> Result:
    """Do the same as `run` in this process."""
    torch.set_num_threads(1)
    command = {"pipeline": pipeline.cli.main.main, "train": training.cli.main.main}[str(arguments[0])]
    done = CliRunner().invoke(command, [str(argument) for argument in arguments[1:]])
    assert done.exit_code == code, done.output
    return done


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with dicoms/, labels.csv and cache.zarr at 32 px."""
    folder = tmp_path_factory.mktemp("home")
    run("pipeline", "phantom", "--out", folder, "--patients", 9, "--seed", 5)
    options = ("--dataset", "phantom", "--labels", folder / "labels.csv", "--size", 32, "--workers", 0)
    run("pipeline", "build", "--src", folder / "dicoms", "--out", folder / "cache.zarr", *options)
    return folder


@pytest.fixture(scope="module")
def trained(home) -> Path:
    options = ("--model", "squeezenet1_1", "--weights", "none", "--size", 32, "--epochs", 2, "--batch-size", 64)
    run("train", "run", "--cache", home / "cache.zarr", "--out", home / "run", *options, "--device", "cpu")
    return home / "run"


def test_training_reads_the_pixels_that_the_pipeline_wrote(home):
    cache = open_cache(home / "cache.zarr")
    group = zarr.open_group(home / "cache.zarr", mode="r")
    images = group[group.attrs["sizes"]["32"]]
    lines = np.arange(cache.num_slices)
    seen = []
    for batch in Stream(cache, 32, lines, batch_size=50, threads=2).epoch(seed=1, epoch=0):
        for image, line in zip(batch.images, batch.lines.tolist(), strict=True):
            assert torch.equal(image, torch.from_numpy(images[cache.table["row"][line]]))
        seen += batch.lines.tolist()
    assert sorted(seen) == lines.tolist()


def test_a_reader_of_a_commit_continues_during_and_after_the_next_build(home, tmp_path):
    out = tmp_path / "cache.zarr"
    src = tmp_path / "dicoms"
    src.mkdir()
    files = sorted((home / "dicoms").iterdir())
    for file in files[:20]:
        os.link(file, src / file.name)
    call("pipeline", "build", "--src", src, "--out", out, "--size", 16, "--workers", 0)
    before = open_cache(out)
    stream = Stream(before, 16, np.arange(20), batch_size=20)
    [first] = [batch.images.clone() for batch in stream.epoch(0, 0)]
    for file in files[20:30]:
        os.link(file, src / file.name)
    (src / files[0].name).unlink()
    call("pipeline", "build", "--src", src, "--out", out, "--size", 16, "--workers", 0, "--prune")
    assert open_cache(out).num_slices == 29
    [again] = [batch.images.clone() for batch in stream.epoch(0, 0)]
    assert torch.equal(first, again)
    reopened = open_cache(out, before.commit)
    pd.testing.assert_frame_equal(reopened.table, before.table)


def test_the_files_of_a_run_have_the_documented_content(trained, home):
    for name in ("split.csv", "log.csv", "weights.safetensors", "report.html", "settings.json"):
        assert (trained / name).stat().st_size > 0, name
    assert any((trained / "checkpoints").iterdir())
    split = pd.read_csv(trained / "split.csv")
    assert list(split.columns) == ["patient_id", "split"]
    assert set(split["split"]) == {"train", "validation", "test"}
    assert split["patient_id"].is_unique
    table = pd.read_csv(home / "cache.zarr" / "metadata.csv")
    for subset in ("validation", "test"):
        predictions = pd.read_csv(trained / f"predictions_{subset}.csv")
        fixed = ["row", "image_id", "patient_id", "study_instance_uid", "series_instance_uid", "z_norm"]
        assert list(predictions.columns) == [*fixed, *CLASSES, *(f"p_{name}" for name in CLASSES)]
        patients = set(split.loc[split["split"] == subset, "patient_id"])
        assert set(predictions["image_id"]) == set(table.loc[table["patient_id"].isin(patients), "image_id"])
        scores = json.loads((trained / f"scores_{subset}.json").read_text())
        expected = competition_loss(predictions)
        assert scores["weighted_log_loss"] == pytest.approx(expected, abs=1e-12)
        wanted = {"log_loss", "precision", "recall", "f1", "roc_auc", "average_precision"}
        assert all(wanted <= set(scores["classes"][name]) for name in CLASSES)


def competition_loss(predictions: pd.DataFrame) -> float:
    """Return the weighted log loss, computed from its definition."""
    labels = predictions[CLASSES].to_numpy(float)
    p = np.clip(predictions[[f"p_{name}" for name in CLASSES]].to_numpy(float), 1e-15, 1 - 1e-15)
    losses = -(labels * np.log(p) + (1 - labels) * np.log1p(-p))
    return float((losses @ [1, 1, 1, 1, 1, 2]).mean() / 7)


def test_evaluation_with_tta_and_a_submission(trained, home, tmp_path):
    call("train", "evaluate", "--run", trained, "--split", "test", "--tta")
    out = tmp_path / "submission.csv"
    call("train", "predict", "--run", trained, "--cache", home / "cache.zarr", "--out", out)
    submission = pd.read_csv(out)
    truth = pd.read_csv(home / "labels.csv")
    assert list(submission.columns) == ["ID", "Label"]
    assert sorted(submission["ID"]) == sorted(truth["ID"])
    assert submission["Label"].between(0, 1).all()


def test_a_cache_without_the_size_or_labels_is_an_error_in_one_line(trained, home, tmp_path):
    bare = tmp_path / "bare.zarr"
    call("pipeline", "build", "--src", home / "dicoms", "--out", bare, "--size", 16, "--workers", 0)
    options = ("--model", "resnet18", "--weights", "none", "--device", "cpu")
    done = call("train", "run", "--cache", bare, "--out", tmp_path / "a", "--size", 32, *options, code=1)
    assert "pipeline build ... --size 32" in done.stderr
    done = call("train", "run", "--cache", bare, "--out", tmp_path / "b", "--size", 16, *options, code=1)
    assert "labels" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    done = call("train", "predict", "--run", trained, "--cache", bare, "--out", tmp_path / "s.csv", code=1)
    assert "32" in done.stderr
    with pytest.raises(CacheError, match="no cache here"):
        open_cache(tmp_path / "absent.zarr")
    assert not (tmp_path / "s.csv").exists()
