"""Test the output of `train`: before a run, after each epoch, at its end, and in the exported file."""

import json
import os
import re
import time

import numpy as np
import onnx
import pytest
import torch

from testkit import commands
from testkit.fake_cache import CLASSES, WINDOWS, relabel, write_cache
from testkit.tiny_run import HERE, settings, task
from tests.training.run.test_train_cli import EXPORTS_QUICKLY, QUICK, refused, train
from training.data.cache import open_cache
from training.data.shards import SliceReader
from training.run import loop, rehearsal
from training.run.checkpoints import Progress
from training.run.config import Runtime
from training.run.distributed import Processes
from training.run.job import begin
from training.run.preview import few_images
from training.run.watch import TIMED_STEPS, WARM_UP_STEPS, Watch


@pytest.fixture(scope="module")
def fake(tmp_path_factory):
    fake = write_cache(tmp_path_factory.mktemp("cache") / "c.zarr", patients=10, slices=4)
    relabel(fake, {(line, "epidural"): 0 for line in range(40)})
    return fake


@pytest.fixture(scope="module")
def said(fake, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "run"
    result = train("run", "--cache", fake.path, "--out", run, *QUICK, *EXPORTS_QUICKLY, "--epochs", 2)
    assert result.exit_code == 0, result.output
    return run, result.stdout


def test_a_run_prints_a_summary_and_warnings_before_it_starts(fake, said):
    _, text = said
    before = text[: text.index("epoch 1 of 2")]
    assert "squeezenet1_1 at 32 px, none weights, on cpu" in before
    assert "2 epochs of 4 steps of 8 slices, 8 steps in all" in before
    subsets = re.findall(r"^(train|validation|test) +(\d+) patients?, (\d+) series, (\d+) slices", before, re.MULTILINE)
    assert sum(int(patients) for _, patients, _, _ in subsets) == 10
    assert sum(int(slices) for *_, slices in subsets) == 40
    any_of = [int(count) for count in re.findall(r"any (\d+)$", before, re.MULTILINE)]
    assert sum(any_of) == fake.table["any"].sum()
    assert re.search(r"warning: train has no positive slice of epidural.*: the network cannot learn it", before)
    assert re.search(r"warning: test has no positive slice of epidural.*will be undefined", before)


def test_each_epoch_prints_a_line_and_the_end_has_both_scores(said):
    run, text = said
    lines = re.findall(r"^epoch (\d) of 2: training loss (\d\.\d+), validation log loss (\d\.\d+)", text, re.MULTILINE)
    assert [number for number, *_ in lines] == ["1", "2"]
    for subset in ("validation", "test"):
        scores = json.loads((run / f"scores_{subset}.json").read_text())
        assert f"weighted log loss on {subset} {scores['weighted_log_loss']:.4f}" in text


def test_version_and_common_names_for_settings(fake, tmp_path):
    assert re.fullmatch(r"train, version \d+\.\S+\n", train("--version").stdout)
    line = refused("run", "--cache", fake.path, "--out", tmp_path / "run", *QUICK, "--set", "lr=1")
    assert "did you mean learning_rate?" in line


def test_exported_files_describe_their_inputs_and_outputs(said):
    run, _ = said
    assert train("export", "--run", run).exit_code == 0
    model = onnx.load(run / "model.onnx")
    about = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert about["classes"] == list(CLASSES)
    assert [window["name"] for window in about["windows"]] == [name for name, *_ in WINDOWS]
    assert about["size_px"] == 32
    assert len(about["normalisation"]["mean"]) == 3
    onnx.checker.check_model(model)
    assert train("export", "--run", run, "--format", "torch").exit_code == 0
    extra = {"metadata.json": ""}
    torch.export.load(run / "model.pt2", extra_files=extra)
    assert json.loads(json.loads(extra["metadata.json"])["size_px"]) == 32


def test_memory_of_the_wrong_size_is_not_reported_as_damage(fake):
    reader = SliceReader(open_cache(fake.path), 32, np.arange(4))
    with pytest.raises(ValueError, match=r"arrays of 1024 bytes, but a slice \(3, 32, 32\) has 3072"):
        reader.read(np.arange(2), np.empty((2, 1024), np.uint8))


def end_after_an_epoch():
    loop.save_progress = lambda *_: os._exit(7)


def test_the_time_is_estimated_in_the_first_epoch_and_lines_are_flushed_to_a_pipe(tmp_path):
    """The process ends without flushing after its first epoch, so that buffered output is lost."""
    many = write_cache(tmp_path / "many.zarr", patients=30, slices=5).path
    options = ["run", "--cache", many, "--out", tmp_path / "run", *QUICK, "--epochs", 3]
    code, out, errors = commands.start(tmp_path / "said", *options, before=end_after_an_epoch).end()
    assert code == 7, errors
    *_, estimate, epoch = out.splitlines()
    assert "3 epochs of 14 steps" in out
    assert f"a time estimate follows after {WARM_UP_STEPS + TIMED_STEPS} steps" in out
    assert re.fullmatch(r"\S+ s per step: about \d+ min \d\d s left, if all epochs are needed", estimate)
    assert epoch.startswith("epoch 1 of 3: training loss")


def test_the_estimate_counts_the_remaining_steps_and_evaluations(fake, tmp_path, capsys):
    run, cache = begin(tmp_path / "run", fake.path, settings(epochs=3, batch_size=8), HERE)
    with Watch(task(run, cache), Progress(), 300, num_validation=240) as at_work:
        at_work._print_estimate(Progress(step=10), 2.0)
    # 290 steps, and three evaluations of 30 batches at a third of a step's time.
    assert "2 s per step: about 10 min 40 s left" in capsys.readouterr().out


def test_the_estimate_counts_epochs_with_a_frozen_backbone_as_a_forward_pass(fake, tmp_path, capsys):
    run, cache = begin(tmp_path / "run", fake.path, settings(epochs=3, batch_size=8, frozen_epochs=1), HERE)
    with Watch(task(run, cache), Progress(), 300, num_validation=240) as at_work:
        at_work._print_estimate(Progress(step=10), 2.0)
        # 90 steps of 2 s; then 200 of 6 s; and three evaluations of 30 batches at 2 s.
        assert "2 s per step: about 26 min 00 s left" in capsys.readouterr().out
        at_work._began = time.perf_counter() - 60
        at_work.print_epoch(Progress(), None)
        assert "about 6 min 00 s left" in capsys.readouterr().out


def test_a_rehearsal_takes_steps_with_a_frozen_and_a_trained_backbone(fake, tmp_path, monkeypatch):
    learns = []
    monkeypatch.setattr(rehearsal, "train_step", lambda setup, learner, model, *_: learns.append(
        next(model.backbone.parameters()).requires_grad))  # fmt: skip
    said = rehearsal.rehearse(fake.path, settings(epochs=3, frozen_epochs=1), Runtime(), HERE)
    assert learns == [False, False, True, True]
    assert "the run will take about" in said


def test_too_few_images_for_a_gpu_give_a_warning_with_a_remedy():
    four = Processes(0, 4, torch.device("cuda"))
    (said,) = few_images(settings(batch_size=128), four)
    assert "128 over 4 GPUs has 32 images for each" in said
    assert "--batch-size 256 or more" in said
    assert "--nproc-per-node 2" in said
    assert not few_images(settings(batch_size=256), four)
    (said,) = few_images(settings(batch_size=32), Processes(0, 1, torch.device("cuda")))
    assert "--batch-size 64 or more" in said
    assert "sync_batch_norm" not in said
    assert not few_images(settings(batch_size=8), HERE)
