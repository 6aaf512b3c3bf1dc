"""Test messages about a cache, its streams and its scores that give a remedy: trigger each, and follow it."""

import dataclasses
import shutil
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

import training.data.commit
from testkit.tiny_run import HERE, runtime
from tests.training.advice.world import CPU, Failure, World, call, write_fake
from tests.training.run.test_train_cli import train
from training.data.cache import open_cache
from training.data.neighbours import order_series
from training.data.stream import Draw, Stream
from training.run.runs import check_compatible, open_run
from training.run.setup import open_stream
from training.run.task import Task
from training.scores.external import external_lines


def overflowing(logits: torch.Tensor, labels: torch.Tensor, class_weights: torch.Tensor) -> torch.Tensor:
    """A user's own loss that is infinite."""
    return logits.sum(1) / 0


def _no_labels(world: World) -> Failure:
    return Failure(world.other(classes=()).labels, r"run: pipeline build \.\.\. --labels FILE", world.other().labels)


def _no_label_of_a_slice(world: World) -> Failure:
    run, bare = open_run(world.run), world.other(unlabelled=40)
    advice = r"no slice has a label; run: pipeline build \.\.\. --labels FILE"
    strangers = patch("training.scores.external._seen", lambda *given: np.zeros(len(given[-1]), bool))

    def labelled() -> object:
        cache = world.other(seed=5)
        cache.table["patient_id"] = "other_" + cache.table["patient_id"]
        with strangers:
            return external_lines(run, cache)

    return Failure(lambda: external_lines(run, bare), advice, labelled)


def _another_size(world: World) -> Failure:
    small, both = world.other(), world.other(sizes=(32, 48))
    advice = r"this run needs 48; run: pipeline build \.\.\. --size 48"
    return Failure(lambda: small.array(48), advice, lambda: both.array(48))


def _other_windows(world: World) -> Failure:
    run, one = open_run(world.run), world.other(windows=(("brain", 40.0, 80.0),))
    advice = "run: pipeline build with the run's windows in data_catalog.yaml"
    return Failure(lambda: check_compatible(run, one), advice, lambda: check_compatible(run, world.other(seed=2)))


def _other_classes(world: World) -> Failure:
    run, two = open_run(world.run), world.other(classes=("bleed", "any"))
    advice = "run: pipeline build with the run's classes in data_catalog.yaml"
    return Failure(lambda: check_compatible(run, two), advice, lambda: check_compatible(run, world.other(seed=2)))


def _no_cache_there(world: World) -> Failure:
    place = world.folder / "none.zarr"
    advice = f"no cache here; run: pipeline build --src DICOMS --out {place}"
    return Failure(lambda: open_cache(place), advice, lambda: open_cache(write_fake(place).path))


def _a_first_build_that_has_not_finished(world: World) -> Failure:
    place = world.folder / "begun.zarr"
    (place / ".pipeline").mkdir(parents=True)

    def build() -> object:
        shutil.rmtree(place)
        return open_cache(write_fake(place).path)

    return Failure(lambda: open_cache(place), "first build has not finished; run the same pipeline build again", build)


def _a_newer_format(world: World) -> Failure:
    def older() -> object:
        with patch.object(training.data.commit, "FORMAT_VERSION", 1):
            return open_cache(world.cache)

    return Failure(older, "reads up to 1; upgrade ich-cache", lambda: open_cache(world.cache))


def _no_such_commit(world: World) -> Failure:
    current = open_cache(world.cache).commit
    advice = f"the current one is {current}; to list all: pipeline info"
    return Failure(lambda: open_cache(world.cache, "x"), advice, lambda: open_cache(world.cache, current))


def _an_address_without_copies(world: World) -> Failure:
    address = world.cache.as_uri()
    advice = "give a folder for them: --local-copy DIR"
    return Failure(lambda: open_cache(address), advice, lambda: open_cache(address, local_copy=world.folder / "copies"))


def _a_series_of_two_studies(world: World) -> Failure:
    cache = world.other()
    uid = cache.table["series_instance_uid"].iloc[0]
    cache.table.loc[cache.table.index[:2], "study_instance_uid"] = "another"
    keys = ["patient_id", "study_instance_uid", "series_instance_uid"]

    def chosen() -> None:
        assert {len(lines) for _, lines in cache.table.groupby(keys) if (lines[keys[-1]] == uid).any()} == {2}

    return Failure(lambda: cache.series(uid), "choose the rows of one .* by patient_id, study_instance_uid and", chosen)


def _no_positions(world: World) -> Failure:
    bare = world.other(z=False)
    call("run", "--cache", bare.path, "--out", world.folder / "without", *_dry(), "--epochs", 1)
    advice = "use a run without --context and without a head over the series, or build from files with"
    return Failure(lambda: order_series(bare), advice, lambda: order_series(world.other()))


def _dry() -> list[str]:
    return ["--dry-run", "--model", "small_resnet", "--weights", "none", "--size", "32", "--batch-size", "8", *CPU]


def _a_dataloader_of_several_processes(world: World) -> Failure:
    stream = Stream(open_cache(world.cache), 32, np.arange(40), 8, 0)
    loader = DataLoader(_Iterable(stream), batch_size=None, num_workers=0)

    def in_worker() -> object:
        with patch("training.data.stream.get_worker_info", lambda: object()):
            return next(iter(loader))

    return Failure(in_worker, "give the DataLoader num_workers=0", lambda: next(iter(loader)))


class _Iterable(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __iter__(self) -> Any:
        return iter(self.stream)


def _slices_that_reach_no_process(world: World) -> Failure:
    def epoch(*, drop_last: bool) -> object:
        stream = Stream(open_cache(world.cache), 32, np.arange(33), 8, 0, drop_last=drop_last)
        with patch("training.data.stream._place", lambda: (0, 2)):
            return list(stream)

    return Failure(lambda: epoch(drop_last=False), "give drop_last=True", lambda: epoch(drop_last=True))


def _a_batch_that_does_not_divide(world: World) -> Failure:
    run, cache, three = open_run(world.run), open_cache(world.cache), dataclasses.replace(HERE, count=3)

    def stream(batch_size: int) -> object:
        changed = dataclasses.replace(run, config=dataclasses.replace(run.config, batch_size=batch_size))
        draw = Draw(1, lambda *_: np.zeros((1, 1), np.float32))
        return open_stream(Task(changed, cache, runtime(), three), np.arange(40), draw)

    advice = "is not divisible by 3 processes; set --batch-size to a multiple, or --nproc-per-node"
    return Failure(lambda: stream(8), advice, lambda: stream(9))


FAILURES = (
    _no_labels,
    _no_label_of_a_slice,
    _another_size,
    _other_windows,
    _other_classes,
    _no_cache_there,
    _a_first_build_that_has_not_finished,
    _a_newer_format,
    _no_such_commit,
    _an_address_without_copies,
    _a_series_of_two_studies,
    _no_positions,
    _a_dataloader_of_several_processes,
    _slices_that_reach_no_process,
    _a_batch_that_does_not_divide,
)


@pytest.mark.parametrize("make", FAILURES, ids=lambda make: make.__name__.strip("_"))
def test_the_advice_of_a_message_is_followed_to_success(make: Callable[[World], Failure], world: World) -> None:
    make(world).follow()


def test_a_cache_other_than_the_runs_is_scored_as_an_external_set(world: World) -> None:
    other = write_fake(world.folder / "other.zarr", seed=5).path
    evaluate = world.on_run("evaluate", "--cache", other)
    assert (
        "give the run's own cache, or score this one with: train evaluate --split external" in train(*evaluate).stderr
    )
    call(*world.on_run("evaluate", "--cache", world.cache))
    call(*evaluate, "--split", "external")


def test_a_loss_that_is_not_finite_ends_with_slices_to_look_at_and_a_lower_rate(world: World) -> None:
    refused = train(*world.new("--lr", "100", "--set", "warmup_fraction=0", "--loss", f"{__name__}:overflowing"))
    assert "look at them, or start again with a lower --lr" in refused.stderr
    assert len(pd.read_csv(world.folder / "new" / "nonfinite.csv"))
    with patch("training.run.job.finish", lambda *_: {}), patch("training.cli.bodies.run._print_scores"):
        call(*world.new("--lr", "1e-4", out="lower"))
