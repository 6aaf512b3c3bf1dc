"""Test messages about heads over series that give a remedy: trigger each, and follow it to the letter."""

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from testkit.advice import Case
from testkit.tiny_run import HERE
from tests.training.advice.test_runs import _stop
from tests.training.advice.world import CPU, OF_HEADS, Cases, World, advised, call, write_fake
from tests.training.run.test_train_cli import train
from training.data.cache import open_cache
from training.errors import ConfigError, RunError
from training.library import load_model
from training.run.runs import open_run
from training.series.features import check_alone
from training.series.store import open_store

CASES = Cases()


def _base(world: World) -> Path:
    """A copy of the slice model with features, which a test may damage."""
    return Path(shutil.copytree(world.shared / "heads" / "base", world.folder / "base"))


def _series(world: World, *more: object, base: Path | None = None) -> list[Any]:
    return ["series", "--run", base or world.shared / "heads" / "base", "--out", world.folder / "new", *OF_HEADS, *more]


@CASES.add
def _a_head_without_a_folder(world: World) -> Case:
    resume = ["series", "--resume", world.shared / "heads" / "head", *CPU]
    return Case(["series", *CPU], "give --run and --out for a new head, or --resume DIR", lambda _: [resume])


@CASES.add
def _a_head_that_was_stopped(world: World) -> Case:
    state = lambda: patch("training.series.fit.train_to_end", _stop)  # noqa: E731
    advice = "stopped; to continue: (train series --resume .*)"
    return Case(_series(world), advice, lambda m: [advised(m[1])], state=state)


@CASES.add
def _no_features_yet(world: World) -> Case:
    bare = Path(shutil.copytree(world.shared / "run", world.folder / "bare"))
    advice = "run: (train features --run .*)"
    return Case(_series(world, base=bare), advice, lambda m: [advised(m[1])], again=True)


@pytest.mark.parametrize("digests", [True, False])
def test_damaged_features_are_removed_and_recreated(world: World, heads: Path, digests: bool) -> None:
    base = _base(world)
    [store] = base.glob("features*.zarr")
    (store / "zarr.json").write_bytes(b"?")
    if not digests:
        (base / "digests.json").unlink()
    refused = train(*_series(world, base=base))
    found = re.search(r"remove (\S+), then run: (train features --run \S+)", refused.stderr)
    assert found, refused.stderr
    shutil.rmtree(found[1])
    call(*advised(found[2]))
    open_store(open_run(base), open_cache(world.cache), tta=False)


@CASES.add
def _a_head_on_a_head(world: World) -> Case:
    follow = lambda found: [_series(world, base=Path(found[1]))]  # noqa: E731
    advice = r"is itself a head over series; give the slice model's run, (\S+)"
    return Case(_series(world, base=world.shared / "heads" / "head"), advice, follow)


@CASES.add
def _a_setting_of_the_slice_model(world: World) -> Case:
    advice = "is taken from the slice model, .*; leave it out"
    return Case(_series(world, "--set", "size_px=64"), advice, lambda _: [_series(world)])


@CASES.add
def _a_setting_for_images(world: World) -> Case:
    advice = "does not apply to a head, which reads features, not images; leave it out"
    return Case(_series(world, "--set", "mixup_alpha=0.1"), advice, lambda _: [_series(world)])


@CASES.add
def _accumulation(world: World) -> Case:
    advice = "does not apply to a head; set (--batch-size) to the number of series per step"
    return Case(_series(world, "--set", "accumulation=2"), advice, lambda m: [_another(world, m[1], 6)])


def _another(world: World, *more: object) -> list[Any]:
    words = _series(world, *more)
    words[words.index("--out") + 1] = world.folder / "another"
    return words


@CASES.add
def _a_head_that_is_resumed_as_a_run(world: World) -> Case:
    advice = "is a head over series; to continue: (train series --resume .*)"
    return Case(["run", "--resume", world.shared / "heads" / "head", *CPU], advice, lambda m: [advised(m[1])])


@CASES.add
def _a_run_that_is_resumed_as_a_head(world: World) -> Case:
    advice = "is not a head over series; to continue: (train run --resume .*)"
    return Case(["series", "--resume", world.run, *CPU], advice, lambda m: [advised(m[1])])


@CASES.add
def _other_settings(world: World) -> Case:
    resume = ["series", "--resume", world.shared / "heads" / "head", *CPU]
    advice = "was started with other settings: .*; leave them out, or start a new run"
    return Case([*resume, "--lr", 0.3], advice, lambda _: [resume])


def _copied_head(world: World) -> Path:
    return Path(shutil.copytree(world.shared / "heads" / "head", world.folder / "head"))


@CASES.add
def _a_slice_model_that_was_trained_on(world: World) -> Case:
    """Its weights differ from those that the head started with."""
    head = _copied_head(world)
    other = lambda: patch("training.series.job.digest", lambda _: "0" * 64)  # noqa: E731
    resume = ["series", "--resume", head, *CPU]
    return Case(
        resume, "its weights have changed since .*; start a new head on it", lambda _: [_series(world)], state=other
    )


@CASES.add
def _shares_that_are_lost(world: World) -> Case:
    head = _copied_head(world)
    (head / "mix.json").unlink()
    return Case(
        ["evaluate", "--run", head, *CPU], "run: (train series --resume .*)", lambda m: [advised(m[1])], again=True
    )


@CASES.add
def _shares_that_are_damaged(world: World) -> Case:
    head = _copied_head(world)
    (head / "digests.json").unlink()
    (head / "mix.json").write_bytes(b"?")
    return Case(
        ["evaluate", "--run", head, *CPU], "run: (train series --resume .*)", lambda m: [advised(m[1])], again=True
    )


@CASES.add
def _no_weights_yet(world: World) -> Case:
    with patch("training.series.fit.train_to_end", _stop):
        assert train(*_series(world)).exit_code == 143
    advice = "no weights yet; train an epoch first: (train series --resume [^;]*);"
    return Case(["evaluate", "--run", world.folder / "new", *CPU], advice, lambda m: [advised(m[1])], again=True)


@CASES.add
def _a_torch_program_of_a_gru(world: World) -> Case:
    out = world.folder / "m.pt2"
    export = ["export", "--run", world.shared / "heads" / "head", "--format", "torch", "--out", out]
    slice_model = lambda m: [[*advised(m[1]), "--out", out]]  # noqa: E731
    return Case(export, "or export the slice model: (train export --run .* --format torch)", slice_model)


@CASES.add
def _a_commit_that_the_slice_model_was_not_trained_on(world: World) -> Case:
    other = write_fake(world.folder / "other.zarr", seed=8).path
    advice = "give the cache that has it with (--cache), or train a slice model on the new commit"
    series = _series(world, "--cache")
    return Case([*series, other], advice, lambda _: [[*series, world.cache]])


def test_a_head_predicts_through_its_slice_model_or_train_predict(world: World, heads: Path) -> None:
    with pytest.raises(RunError, match="load its slice model's run, or run: train predict"):
        load_model(heads / "head")
    load_model(heads / "base")
    call("predict", "--run", heads / "head", "--cache", world.cache, "--out", world.folder / "p.csv", *CPU)


def test_a_head_is_rejected_under_torchrun() -> None:
    with pytest.raises(ConfigError, match="run the command without torchrun"):
        check_alone(dataclasses.replace(HERE, count=2))
    check_alone(HERE)


@pytest.mark.parametrize("name", CASES)
def test_the_advice_of_a_message_is_followed_to_success(
    name: str, world: World, heads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without scores and pages, which take most of the time.
    for job in ("run", "series"):
        monkeypatch.setattr(f"training.{job}.job.finish", lambda *_: {"weighted_log_loss": 0.5})
    monkeypatch.setattr("training.cli.bodies.run._print_scores", lambda _: None)
    CASES.follow(name, world)
