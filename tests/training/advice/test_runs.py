"""Test messages about a run's folder that give a remedy: trigger each, and follow it to the letter."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file, save_file

from testkit.advice import Case, by_hand
from testkit.fake_cache import CLASSES, WINDOWS, commit_table
from tests.training.advice.world import CPU, QUICK, Cases, World, advised, call, write_fake
from tests.training.run.test_train_cli import train
from training.data.cache import open_cache
from training.errors import RunError
from training.library import load_model
from training.run.inference import Stopped
from training.run.owner import owned
from training.run.runs import open_run
from training.scores.content import open_own_cache
from training.scores.evaluation import read_operating
from training.scores.results import read_results

CASES = Cases()


# --- damaged and missing files ---------------------------------------------------------------------------------------


def _subsets(run: Path) -> object:
    opened = open_run(run)
    return opened.subsets(open_cache(opened.data.cache))


# The calls that read each file, as the commands make them.
READERS: dict[str, Callable[[Path], object]] = {
    "settings.json": open_run,
    "split.csv": _subsets,
    "weights.safetensors": load_model,
    "predictions_test.csv": read_results,
    "scores_test.json": read_results,
    "thresholds.json": read_operating,
    "looks.csv": read_results,
    "log.csv": read_results,
    "digests.json": read_results,
}


# How damage is detected: by the digest of the file, or by its content if there are no digests.
@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_restored_as_the_message_says(world: World, name: str, digests: bool) -> None:
    """Files that a command can recreate are recreated by it; all others are restored from a backup."""
    read = READERS[name]
    (world.run / name).write_bytes(b"?")
    if not digests and name != "digests.json":
        (world.run / "digests.json").unlink()
    with pytest.raises(RunError, match=name) as refused:
        read(world.run)
    found = re.search(r"run: (train evaluate [^;]*)|; (restore)", str(refused.value))
    assert found, refused.value
    if found[1]:
        call(*advised(found[1]))
    else:
        world.restore(name)
    read(world.run)


def test_damaged_content_json_asks_for_the_runs_own_commit(world: World) -> None:
    run = open_run(world.run)
    other = write_fake(world.folder / "other.zarr", seed=1).path
    (world.run / "content.npz").write_bytes(b"?")
    with pytest.raises(RunError, match="evaluate on the run's own commit"):
        open_own_cache(run, other)
    assert open_own_cache(run, world.cache).commit == run.data.commit


@CASES.add
def _digests_that_are_damaged(world: World) -> Case:
    file = world.run / "digests.json"
    file.write_bytes(b"?")
    advice = "restore it; or remove it, after which nothing of this run is checked"
    return Case(world.on_run("report"), advice, by_hand(file.unlink), again=True)


@CASES.add
def _a_pipe_in_the_folder(world: World) -> Case:
    pipe = world.run / "pipe"
    os.mkfifo(pipe)
    return Case(world.on_run("report"), "which does not belong in a run; remove it", by_hand(pipe.unlink), again=True)


@CASES.add
def _an_oversized_text(world: World) -> Case:
    os.truncate(world.run / "scores_test.json", 1 << 40)
    back = by_hand(lambda: world.restore("scores_test.json"))
    return Case(world.on_run("report"), "bytes, more than any file of a run; restore or remove it", back, again=True)


@CASES.add
def _weights_that_are_not_finite(world: World) -> Case:
    (world.run / "digests.json").unlink()
    file = world.run / "weights.safetensors"
    save_file({name: of / 0 if of.is_floating_point() else of for name, of in load_file(file).items()}, file)
    back = by_hand(lambda: world.restore("weights.safetensors"))
    return Case(world.on_run("evaluate"), "not finite; restore it, or train a new run", back, again=True)


@CASES.add
def _no_weights_yet(world: World) -> Case:
    """The run was stopped before the end of its first epoch."""
    stopped = world.new(out="run")
    with patch("training.run.loop.train_to_end", _stop):
        assert train(*stopped).exit_code == 143
    advice = "no weights yet; train an epoch first: (train run --resume [^;]*);"
    world.__dict__["run"] = world.folder / "run"
    return Case(world.on_run("evaluate"), advice, lambda m: [advised(m[1])], again=True)


def _stop(*_: Any, **__: Any) -> None:
    raise Stopped


@CASES.add
def _a_run_that_was_stopped(world: World) -> Case:
    state = lambda: patch("training.run.loop.train_to_end", _stop)  # noqa: E731
    advice = "stopped; to continue: (train run --resume .*)"
    return Case(world.new(), advice, lambda m: [advised(m[1])], state=state)


# --- checkpoints -----------------------------------------------------------------------------------------------------


def _checkpoints(world: World) -> list[Path]:
    return sorted((world.run / "checkpoints").iterdir())


@CASES.add
def _the_only_checkpoint_damaged(world: World) -> Case:
    *older, newest = _checkpoints(world)
    for file in older:
        file.unlink()
    newest.write_bytes(b"?")
    advice = "remove it to start from the beginning"
    return Case(world.resume(), advice, by_hand(newest.unlink), again=True)


@CASES.add
def _the_newest_checkpoint_damaged(world: World) -> Case:
    newest = _checkpoints(world)[-1]
    newest.write_bytes(b"?")
    advice = "remove it to resume from the previous one"
    return Case(world.resume(), advice, by_hand(newest.unlink), again=True)


def _edited_checkpoint(world: World, edit: Any) -> Path:
    """Return the newest checkpoint, with modified content and no digest."""
    (world.run / "digests.json").unlink()
    newest = _checkpoints(world)[-1]
    content = torch.load(newest, weights_only=True)
    edit(content)
    torch.save(content, newest)
    return newest


@CASES.add
def _a_checkpoint_of_another_network(world: World) -> Case:
    newest = _edited_checkpoint(world, lambda content: content["model"].popitem())
    return Case(
        world.resume(), "does not fit this network .*; remove it to continue", by_hand(newest.unlink), again=True
    )


@CASES.add
def _a_checkpoint_without_an_optimizer(world: World) -> Case:
    newest = _edited_checkpoint(world, lambda content: content.update(optimizer=3))
    return Case(world.resume(), "; remove it to resume", by_hand(newest.unlink), again=True)


@CASES.add
def _settings_that_were_edited(world: World) -> Case:
    (world.run / "digests.json").unlink()
    file = world.run / "settings.json"
    content = json.loads(file.read_text())
    content["config"]["seed"] = 7
    content.pop("sha256", None)
    file.write_text(json.dumps(content))
    back = by_hand(lambda: world.restore("settings.json"))
    return Case(world.resume(), "belongs to another run: .*restore settings.json, or start", back, again=True)


# --- runs and their options ------------------------------------------------------------------------------------------


@CASES.add
def _no_run_there(world: World) -> Case:
    none = world.folder / "none"

    def follow(found: re.Match[str]) -> list[list[Any]]:
        return [advised(found[1].replace("--cache C", f"--cache {world.cache}")) + QUICK]

    advice = "to make one: (train run .*)"
    return Case(["evaluate", "--run", none, *CPU], advice, follow, again=True)


@CASES.add
def _a_folder_that_is_not_free(world: World) -> Case:
    (world.folder / "new").mkdir()
    (world.folder / "new" / "notes.txt").touch()
    return Case(world.new(), "exists and is not empty; choose another", lambda _: [world.new(out="another")])


@CASES.add
def _other_settings(world: World) -> Case:
    advice = "started with other settings: .*; leave them out, or start a new run"
    return Case(world.resume("--lr", 0.5), advice, lambda _: [world.resume()])


@CASES.add
def _a_run_in_use(world: World) -> Case:
    return Case(world.resume(), "wait for it, or stop it", again=True, state=lambda: owned(world.run))


def _other_patients(world: World) -> Path:
    """Write a cache of patients who are not in the world's cache."""
    fake = write_fake(world.folder / "strangers.zarr", seed=5)
    table = fake.table.assign(patient_id="other_" + fake.table["patient_id"])
    for folder in ("tables", "commits", ".pipeline"):
        shutil.rmtree(fake.path / folder)
    commit_table(fake.path, table, CLASSES, WINDOWS, (32,), 8)
    return fake.path


@CASES.add
def _no_test_set(world: World) -> Case:
    two = world.shared / "two"  # subsets

    def follow(found: re.Match[str]) -> list[list[Any]]:
        return [["evaluate", "--run", two, *found[1].replace("OTHER", str(_other_patients(world))).split(), *CPU]]

    advice = "score another cache with (--split external --cache OTHER), or"
    return Case(["evaluate", "--run", two, *CPU], advice, follow)


@CASES.add
def _an_external_set_that_is_not_named(world: World) -> Case:
    external = world.on_run("evaluate", "--split", "external")
    return Case(
        external,
        "--split external needs the other cache; give (--cache) OTHER",
        lambda m: [[*external, m[1], _other_patients(world)]],
    )


@CASES.add
def _an_external_set_of_known_patients(world: World) -> Case:
    external = ["evaluate", "--run", world.shared / "two", *CPU, "--split", "external", "--cache"]
    advice = "nothing is left to score: .*; give a cache with other patients"
    return Case([*external, world.cache], advice, lambda _: [[*external, _other_patients(world)]])


@pytest.mark.parametrize("name", CASES)
def test_the_advice_of_a_message_is_followed_to_success(name: str, world: World, monkeypatch: Any) -> None:
    # Without scores and pages, which take most of the time.
    monkeypatch.setattr("training.run.job.finish", lambda *_: {})
    monkeypatch.setattr("training.cli.bodies.run._print_scores", lambda _: None)
    CASES.follow(name, world)
