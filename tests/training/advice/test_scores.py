"""Test messages about subsets of a split and about scores that give a remedy: trigger each, and follow it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from testkit.tiny_run import HERE, settings
from tests.training.advice.world import Failure, World, advised, call
from training.data.cache import open_cache
from training.data.linked import read_linked
from training.data.split import read_lines, read_split
from training.run.job import begin
from training.run.runs import open_run
from training.run.setup import lines_of
from training.scores.compare import compare, read_contestants
from training.scores.evaluation import assess
from training.scores.leakage import check_run


def _a_set_without_a_label(world: World) -> Failure:
    """There are label columns, but all of them are empty."""
    bare, labelled = world.other(unlabelled=40), world.other()

    def begun(cache: Any) -> object:
        return begin(world.folder / "new", cache.path, settings(), HERE)

    advice = r"no slice with a label would be in the train set; label more .* run: pipeline build \.\.\. --labels FILE"
    return Failure(lambda: begun(bare), advice, lambda: begun(labelled))


def _a_subset_whose_labels_are_gone(world: World) -> Failure:
    run, bare = open_run(world.run), world.other(unlabelled=40)
    advice = "no slice with a label in the train set of split.csv; build with more labels and start a new run"
    return Failure(
        lambda: lines_of(run, bare, "train"), advice, lambda: lines_of(run, open_cache(world.cache), "train")
    )


def _a_split_that_is_not_a_table(world: World) -> Failure:
    file = world.run / "split.csv"
    file.write_bytes(b"?")

    def restored() -> object:
        world.restore("split.csv")
        return read_lines(file)

    return Failure(lambda: read_lines(file), "restore it, or start a new run", restored)


def _edited_split(world: World, edit: Callable[[str], str], advice: str) -> Failure:
    file, table = world.run / "split.csv", open_cache(world.cache).table
    file.write_text(edit(file.read_text()))

    def restored() -> object:
        world.restore("split.csv")
        return read_split(file, table)

    return Failure(lambda: read_split(file, table), advice, restored)


def _a_patient_listed_twice(world: World) -> Failure:
    repeated = lambda text: text + text.splitlines()[1] + "\n"  # noqa: E731
    return _edited_split(world, repeated, "more than once; restore it, or start a new run")


def _an_unknown_subset(world: World) -> Failure:
    renamed = lambda text: text.replace(",train", ",training")  # noqa: E731
    return _edited_split(world, renamed, "unknown subset 'training', .*; restore it, or start a new run")


def _a_split_without_a_patient(world: World) -> Failure:
    shortened = lambda text: text[: text.rstrip().rindex("\n") + 1]  # noqa: E731
    advice = "lacks 1 patient of the cache, .*; restore it, give the run's own cache, or start a new run"
    return _edited_split(world, shortened, advice)


def _a_cache_with_a_patient_that_the_split_lacks(world: World) -> Failure:
    """The run's own cache fits the split again."""
    run = open_run(world.run)
    table = open_cache(world.cache).table
    other = table.assign(patient_id=table["patient_id"].replace(table["patient_id"].iloc[0], "another"))
    advice = "lacks 1 patient of the cache, such as another; .* give the run's own cache"
    return Failure(lambda: read_split(run.split, other), advice, lambda: read_split(run.split, table))


def _a_patient_in_two_subsets(world: World) -> Failure:
    file, cache = world.run / "split.csv", open_cache(world.cache)
    first = file.read_text().splitlines()[1].split(",")
    file.write_text(file.read_text() + f"{first[0]},{'test' if first[1] != 'test' else 'train'}\n")

    def restored() -> None:
        world.restore("split.csv")
        check_run(open_run(world.run), cache)

    return Failure(
        lambda: check_run(open_run(world.run), cache), "in two subsets.* restore the file, or start", restored
    )


def _linked_patients_that_cannot_be_read(world: World) -> Failure:
    file = world.folder / "linked.csv"
    file.write_bytes(b"?")

    def restored() -> object:
        file.write_text("group,patient_id,image_id,frame,done\n")
        return read_linked(file)

    return Failure(lambda: read_linked(file), "linked.csv: cannot be read .*; restore it, or start a new run", restored)


def _predictions_that_are_not_there(world: World) -> Failure:
    def made() -> object:
        call(*advised(f"train evaluate --run {world.run} --split validation --tta"))
        return read_contestants([world.run], "validation_tta")

    advice = "does not exist; run: train evaluate --run .* --split validation --tta"
    return Failure(lambda: read_contestants([world.run], "validation_tta"), advice, made)


def _thresholds_of_other_classes(world: World) -> Failure:
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

    advice = "is for different classes; run: train evaluate --run .* --split validation"
    return Failure(lambda: assess(world.run, "test", fewer, of.class_weights[:2]), advice, chosen_anew)


def _contestants(world: World, change: Callable[[Any], Any], advice: str) -> Failure:
    [of] = read_contestants([world.run], "test")
    other = dataclasses.replace(of, name="other", known=change(of.known))
    same = dataclasses.replace(of, name="same")
    return Failure(lambda: compare([of, other], 10), advice, lambda: compare([of, same], 10))


def _runs_of_other_classes(world: World) -> Failure:
    advice = "compare runs on the same cache"
    return _contestants(world, lambda known: dataclasses.replace(known, classes=known.classes[::-1]), advice)


def _runs_of_other_slices(world: World) -> Failure:
    def fewer(known: Any) -> Any:
        few = {name: getattr(known, name)[:-1] for name in ("labels", "probabilities")}
        return dataclasses.replace(known, slices=known.slices.iloc[:-1], **few)

    return _contestants(world, fewer, "compare runs with the same cache and --seed")


def _runs_of_other_labels(world: World) -> Failure:
    flipped = lambda known: dataclasses.replace(known, labels=1 - known.labels)  # noqa: E731
    return _contestants(world, flipped, "evaluate both again on the same commit")


FAILURES = (
    _a_set_without_a_label,
    _a_subset_whose_labels_are_gone,
    _a_split_that_is_not_a_table,
    _a_patient_listed_twice,
    _an_unknown_subset,
    _a_split_without_a_patient,
    _a_cache_with_a_patient_that_the_split_lacks,
    _a_patient_in_two_subsets,
    _linked_patients_that_cannot_be_read,
    _predictions_that_are_not_there,
    _thresholds_of_other_classes,
    _runs_of_other_classes,
    _runs_of_other_slices,
    _runs_of_other_labels,
)


@pytest.mark.parametrize("make", FAILURES, ids=lambda make: make.__name__.strip("_"))
def test_the_advice_of_a_message_is_followed_to_success(make: Callable[[World], Failure], world: World) -> None:
    make(world).follow()
