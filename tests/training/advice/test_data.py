"""Messages about a cache, its streams and its scores that name a way out: called up and followed by their own words."""

import dataclasses
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

import training.data.commit
from testkit.tiny_run import HERE, runtime, settings
from tests.training.advice.world import CPU, World, advised, call, write_fake
from tests.training.run.test_train_cli import train
from training.data.cache import open_cache
from training.data.linked import read_linked
from training.data.neighbours import order_series
from training.data.split import read_lines
from training.data.stream import Draw, Stream
from training.errors import TrainingError
from training.run.job import begin
from training.run.runs import check_same_kind, open_run
from training.run.setup import lines_of, open_stream
from training.scores.compare import compare, read_contestants
from training.scores.evaluation import assess
from training.scores.external import external_lines
from training.scores.leakage import check_run


def overflowing(logits: torch.Tensor, labels: torch.Tensor, class_weights: torch.Tensor) -> torch.Tensor:
    """A loss of one's own that is infinite."""
    return logits.sum(1) / 0


@dataclass
class Told:
    """A call that is refused, its advice, and the call that follows it."""

    refused: Callable[[], object]
    advice: str
    right: Callable[[], object]


def _other(world: World, **changes: Any) -> Any:
    """Another cache, as a pipeline with the change that the advice asks for would build it, or without."""
    return open_cache(write_fake(world.folder / f"c{len(list(world.folder.iterdir()))}.zarr", **changes).path)


def _no_labels(world: World) -> Told:
    return Told(_other(world, classes=()).labels, r"run: pipeline build \.\.\. --labels FILE", _other(world).labels)


def _no_label_of_a_slice(world: World) -> Told:
    run, bare = open_run(world.run), _other(world, unlabelled=40)
    advice = r"no slice has a label; run: pipeline build \.\.\. --labels FILE"
    strangers = patch("training.scores.external._seen", lambda *given: np.zeros(len(given[-1]), bool))

    def labelled() -> object:
        cache = _other(world, seed=5)
        cache.table["patient_id"] = "other_" + cache.table["patient_id"]
        with strangers:
            return external_lines(run, cache)

    return Told(lambda: external_lines(run, bare), advice, labelled)


def _another_size(world: World) -> Told:
    small, both = _other(world), _other(world, sizes=(32, 48))
    advice = r"this run wants 48; run: pipeline build \.\.\. --size 48"
    return Told(lambda: small.array(48), advice, lambda: both.array(48))


def _other_windows(world: World) -> Told:
    run, one = open_run(world.run), _other(world, windows=(("brain", 40.0, 80.0),))
    advice = "run: pipeline build with the run's windows in data_catalog.yaml"
    return Told(lambda: check_same_kind(run, one), advice, lambda: check_same_kind(run, _other(world, seed=2)))


def _other_classes(world: World) -> Told:
    run, two = open_run(world.run), _other(world, classes=("bleed", "any"))
    advice = "run: pipeline build with the run's classes in data_catalog.yaml"
    return Told(lambda: check_same_kind(run, two), advice, lambda: check_same_kind(run, _other(world, seed=2)))


def _no_cache_there(world: World) -> Told:
    place = world.folder / "none.zarr"
    advice = f"no cache here; run: pipeline build --src DICOMS --out {place}"
    return Told(lambda: open_cache(place), advice, lambda: open_cache(write_fake(place).path))


def _a_first_build_that_has_not_finished(world: World) -> Told:
    place = world.folder / "begun.zarr"
    (place / ".pipeline").mkdir(parents=True)

    def build() -> object:
        shutil.rmtree(place)
        return open_cache(write_fake(place).path)

    return Told(lambda: open_cache(place), "first build has not finished; run the same pipeline build again", build)


def _a_newer_format(world: World) -> Told:
    def older() -> object:
        with patch.object(training.data.commit, "FORMAT_VERSION", 1):
            return open_cache(world.cache)

    return Told(older, "reads up to 1; upgrade ich-cache", lambda: open_cache(world.cache))


def _no_such_commit(world: World) -> Told:
    current = open_cache(world.cache).commit
    advice = f"the current one is {current}; all: pipeline info"
    return Told(lambda: open_cache(world.cache, "x"), advice, lambda: open_cache(world.cache, current))


def _an_address_without_copies(world: World) -> Told:
    address = world.cache.as_uri()
    advice = "say where they may lie: --local-copy DIR"
    return Told(lambda: open_cache(address), advice, lambda: open_cache(address, local_copy=world.folder / "copies"))


def _a_series_of_two_studies(world: World) -> Told:
    cache = _other(world)
    uid = cache.table["series_instance_uid"].iloc[0]
    cache.table.loc[cache.table.index[:2], "study_instance_uid"] = "another"
    keys = ["patient_id", "study_instance_uid", "series_instance_uid"]

    def chosen() -> None:
        assert {len(lines) for _, lines in cache.table.groupby(keys) if (lines[keys[-1]] == uid).any()} == {2}

    return Told(lambda: cache.series(uid), "choose the lines of one .* by patient_id, study_instance_uid and", chosen)


def _no_positions(world: World) -> Told:
    bare = _other(world, z=False)
    call("run", "--cache", bare.path, "--out", world.folder / "without", *_dry(), "--epochs", 1)
    advice = "use a run without --context and without a head over the series, or build from files with"
    return Told(lambda: order_series(bare), advice, lambda: order_series(_other(world)))


def _dry() -> list[str]:
    return ["--dry-run", "--model", "small_resnet", "--weights", "none", "--size", "32", "--batch-size", "8", *CPU]


def _a_dataloader_of_several_processes(world: World) -> Told:
    stream = Stream(open_cache(world.cache), 32, np.arange(40), 8, 0)
    loader = DataLoader(_Iterable(stream), batch_size=None, num_workers=0)

    def in_worker() -> object:
        with patch("training.data.stream.get_worker_info", lambda: object()):
            return next(iter(loader))

    return Told(in_worker, "give the DataLoader num_workers=0", lambda: next(iter(loader)))


class _Iterable(torch.utils.data.IterableDataset):  # type: ignore[type-arg]
    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def __iter__(self) -> Any:
        return iter(self.stream)


def _slices_that_reach_no_process(world: World) -> Told:
    def epoch(*, drop_last: bool) -> object:
        stream = Stream(open_cache(world.cache), 32, np.arange(33), 8, 0, drop_last=drop_last)
        with patch("training.data.stream._place", lambda: (0, 2)):
            return list(stream)

    return Told(lambda: epoch(drop_last=False), "give drop_last=True", lambda: epoch(drop_last=True))


def _a_batch_that_does_not_divide(world: World) -> Told:
    run, cache, three = open_run(world.run), open_cache(world.cache), dataclasses.replace(HERE, count=3)

    def stream(batch_size: int) -> object:
        changed = dataclasses.replace(run, config=dataclasses.replace(run.config, batch_size=batch_size))
        return open_stream(
            changed, cache, np.arange(40), runtime(), three, draw=Draw(1, lambda *_: np.zeros((1, 1), np.float32))
        )

    advice = "does not divide over 3 processes; set --batch-size to a multiple, or --nproc-per-node"
    return Told(lambda: stream(8), advice, lambda: stream(9))


def _a_set_without_a_label(world: World) -> Told:
    """Columns for labels, and all of them empty."""
    bare, labelled = _other(world, unlabelled=40), _other(world)

    def begun(cache: Any) -> object:
        return begin(world.folder / "new", cache.path, settings(), HERE)

    advice = r"no slice with a label would be on the side train; label more .* run: pipeline build \.\.\. --labels FILE"
    return Told(lambda: begun(bare), advice, lambda: begun(labelled))


def _a_side_whose_labels_are_gone(world: World) -> Told:
    run, bare = open_run(world.run), _other(world, unlabelled=40)
    advice = "no slice with a label on the side train of split.csv; build with more labels and start a new run"
    return Told(lambda: lines_of(run, bare, "train"), advice, lambda: lines_of(run, open_cache(world.cache), "train"))


def _a_split_that_is_no_table(world: World) -> Told:
    file = world.run / "split.csv"
    file.write_bytes(b"?")

    def restored() -> object:
        world.restore("split.csv")
        return read_lines(file)

    return Told(lambda: read_lines(file), "restore it, or begin a new run", restored)


def _a_patient_on_two_sides(world: World) -> Told:
    file, cache = world.run / "split.csv", open_cache(world.cache)
    first = file.read_text().splitlines()[1].split(",")
    file.write_text(file.read_text() + f"{first[0]},{'test' if first[1] != 'test' else 'train'}\n")

    def restored() -> None:
        world.restore("split.csv")
        check_run(open_run(world.run), cache)

    return Told(lambda: check_run(open_run(world.run), cache), "on two sides.* restore the file, or start a", restored)


def _linked_patients_that_cannot_be_read(world: World) -> Told:
    file = world.folder / "linked.csv"
    file.write_bytes(b"?")

    def restored() -> object:
        file.write_text("group,patient_id,image_id,frame,done\n")
        return read_linked(file)

    return Told(lambda: read_linked(file), "linked.csv: cannot be read .*; restore it, or start a new run", restored)


def _predictions_that_are_not_there(world: World) -> Told:
    def made() -> object:
        call(*advised(f"train evaluate --run {world.run} --split validation --tta"))
        return read_contestants([world.run], "validation_tta")

    advice = "not there; run: train evaluate --run .* --split validation --tta"
    return Told(lambda: read_contestants([world.run], "validation_tta"), advice, made)


def _thresholds_of_other_classes(world: World) -> Told:
    [of] = read_contestants([world.run], "test")
    fewer = dataclasses.replace(
        of.known,
        classes=of.known.classes[:2],
        labels=of.known.labels[:, :2],
        probabilities=of.known.probabilities[:, :2],
    )

    def chosen_anew() -> None:
        assess(world.run, "validation", fewer, of.class_weights[:2])
        assess(world.run, "test", fewer, of.class_weights[:2])

    advice = "is for other classes; run: train evaluate --run .* --split validation"
    return Told(lambda: assess(world.run, "test", fewer, of.class_weights[:2]), advice, chosen_anew)


def _contestants(world: World, change: Callable[[Any], Any], advice: str) -> Told:
    [of] = read_contestants([world.run], "test")
    other = dataclasses.replace(of, name="other", known=change(of.known))
    same = dataclasses.replace(of, name="same")
    return Told(lambda: compare([of, other], 10), advice, lambda: compare([of, same], 10))


def _runs_of_other_classes(world: World) -> Told:
    advice = "compare runs on the same cache"
    return _contestants(world, lambda known: dataclasses.replace(known, classes=known.classes[::-1]), advice)


def _runs_of_other_slices(world: World) -> Told:
    def fewer(known: Any) -> Any:
        few = {name: getattr(known, name)[:-1] for name in ("labels", "probabilities")}
        return dataclasses.replace(known, slices=known.slices.iloc[:-1], **few)

    return _contestants(world, fewer, "compare runs with the same cache and --seed")


def _runs_of_other_labels(world: World) -> Told:
    flipped = lambda known: dataclasses.replace(known, labels=1 - known.labels)  # noqa: E731
    return _contestants(world, flipped, "evaluate both again on the same commit")


TOLD = (
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
    _a_set_without_a_label,
    _a_side_whose_labels_are_gone,
    _a_split_that_is_no_table,
    _a_patient_on_two_sides,
    _linked_patients_that_cannot_be_read,
    _predictions_that_are_not_there,
    _thresholds_of_other_classes,
    _runs_of_other_classes,
    _runs_of_other_slices,
    _runs_of_other_labels,
)


@pytest.mark.parametrize("make", TOLD, ids=lambda make: make.__name__.strip("_"))
def test_the_advice_of_a_message_is_followed_to_success(make: Callable[[World], Told], world: World) -> None:
    told = make(world)
    with pytest.raises(TrainingError, match=told.advice):
        told.refused()
    told.right()


def test_another_cache_than_the_runs_is_scored_as_an_external_set(world: World) -> None:
    other = write_fake(world.folder / "other.zarr", seed=5).path
    evaluate = world.on_run("evaluate", "--cache", other)
    assert "give the run's own cache, or score this one by: train evaluate --split external" in train(*evaluate).stderr
    call(*world.on_run("evaluate", "--cache", world.cache))
    call(*evaluate, "--split", "external")


def test_a_loss_that_is_not_finite_ends_with_slices_to_look_at_and_a_lower_rate(world: World) -> None:
    refused = train(*world.new("--lr", "100", "--set", "warmup_fraction=0", "--loss", f"{__name__}:overflowing"))
    assert "look at them, or start anew with a lower --lr" in refused.stderr
    assert len(pd.read_csv(world.folder / "new" / "nonfinite.csv"))
    with patch("training.run.job.finish", lambda *_: {}), patch("training.cli.bodies.run._say_end"):
        call(*world.new("--lr", "1e-4", out="lower"))
