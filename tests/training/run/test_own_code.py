"""Test the user's own models, augmentations and losses, and `training.fit`, which takes them."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import training
from testkit import own_code, tiny_run
from testkit.fake_cache import FakeCache, write_cache
from training.cli.main import main
from training.run.job import begin
from training.run.loop import fit
from training.run.runs import open_run

OWN = {"model": "testkit.own_code:backbone", "augment": "testkit.own_code:dim", "loss": "testkit.own_code:focal"}


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> FakeCache:
    return write_cache(tmp_path_factory.mktemp("own") / "cache.zarr", patients=12)


def test_fit_with_own_functions_trains_scores_and_resumes(fake: FakeCache, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    own_code.SEEN.clear()
    settings = tiny_run.SETTINGS | {"model": own_code.backbone, "augment": own_code.dim, "loss": own_code.focal}
    runtime = training.Runtime(device="cpu", input_threads=0)
    scores = training.fit(fake.path, tmp_path / "run", runtime=runtime, **settings)
    assert scores["weighted_log_loss"] > 0
    assert own_code.SEEN
    kept = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert {name: kept["config"][name] for name in OWN} == OWN
    assert len(kept["environment"]["code of testkit.own_code:dim"]) == 12
    assert training.fit(fake.path, tmp_path / "run", runtime=runtime, **settings) == scores
    with pytest.raises(training.RunError, match="other settings: epochs"):
        training.fit(fake.path, tmp_path / "run", runtime=runtime, **(settings | {"epochs": 3}))
    images = torch.zeros(2, 3, 32, 32, dtype=torch.uint8)
    assert training.load_model(tmp_path / "run")(images, torch.zeros(2)).shape == (2, 6)


def test_random_numbers_of_own_augmentation_are_reproducible(fake: FakeCache, tmp_path: Path) -> None:
    drawn, weights = [], []
    for name in ("a", "b"):
        own_code.SEEN.clear()
        run = tiny_run.train(tmp_path / name, fake.path, tiny_run.settings(epochs=1, **OWN))
        drawn.append(list(own_code.SEEN))
        weights.append(run.weights.read_bytes())
    assert drawn[0] == drawn[1]
    assert len({factor for _, factor in drawn[0]}) > 10
    assert weights[0] == weights[1]


def test_own_loss_affects_the_weights(fake: FakeCache, tmp_path: Path) -> None:
    runs = [
        tiny_run.train(tmp_path / name, fake.path, tiny_run.settings(epochs=1, **changes))
        for name, changes in (("default", {}), ("own", {"loss": OWN["loss"]}))
    ]
    assert runs[0].weights.read_bytes() != runs[1].weights.read_bytes()


def test_a_module_in_the_current_folder_is_found(
    fake: FakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_model_1.py").write_text(Path(own_code.__file__).read_text())
    monkeypatch.chdir(tmp_path)
    small = [text for name in ("size_px", "batch_size", "fusion_features") for text in ("--set", f"{name}=32")]
    arguments = ["run", "--cache", fake.path, "--dry-run", "--model", "my_model_1:backbone", *small, "--epochs", "1"]
    outcome = CliRunner().invoke(main, [*map(str, arguments), "--set", "weights=none", "--device", "cpu"])
    assert outcome.exit_code == 0, outcome.output
    assert "the run will take" in outcome.output


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"model": "nowhere:f"}, ["--model nowhere:f", "No module named", "PYTHONPATH"]),
        ({"loss": "testkit.own_code:nothing"}, ["--loss testkit.own_code:nothing", "no attribute"]),
        ({"augment": "testkit.own_code:SEEN"}, ["--augment testkit.own_code:SEEN", "is a list"]),
        ({"model": "testkit.own_code:maps"}, ["returns (1, 5, 30, 30)", "must return features of shape (1, D)"]),
    ],
)
def test_unusable_functions_give_one_line_errors_and_no_folder(
    fake: FakeCache, tmp_path: Path, settings: dict, words: list[str]
) -> None:
    with pytest.raises(training.ConfigError) as error:
        training.fit(fake.path, tmp_path / "run", **(tiny_run.SETTINGS | settings))
    assert [word for word in words if word not in str(error.value)] == []
    assert not (tmp_path / "run").exists()


def test_a_function_that_cannot_be_imported_again_is_rejected(fake: FakeCache, tmp_path: Path) -> None:
    with pytest.raises(training.ConfigError, match="put it into its own module"):
        training.fit(fake.path, tmp_path / "run", model=lambda channels: torch.nn.Identity())


def test_a_run_with_own_code_resumes_to_the_same_weights(fake: FakeCache, tmp_path: Path) -> None:
    config = tiny_run.settings(epochs=2, **OWN)
    whole = tiny_run.train(tmp_path / "whole", fake.path, config)
    first = tiny_run.train(tmp_path / "cut", fake.path, config)
    checkpoints = sorted(first.checkpoints.glob("step_*.pt"))
    checkpoints[-1].unlink()
    run, opened = tiny_run.resume(tmp_path / "cut", fake.path, {})
    fit(tiny_run.task(run, opened))
    assert run.weights.read_bytes() == whole.weights.read_bytes()


def test_code_in_settings_is_announced_before_it_is_imported(
    fake: FakeCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file of a module that an untrusted run refers to is printed first, and rejected if it is in the run."""
    run = tmp_path / "run"
    begin(run, fake.path, tiny_run.settings(), tiny_run.HERE)
    document = json.loads((run / "settings.json").read_text())
    document["config"]["loss"] = "their_loss_1:loss"
    (run / "settings.json").write_text(json.dumps(document))
    (run / "digests.json").unlink()
    module = tmp_path / "their_loss_1.py"
    module.write_text("raise SystemExit")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    open_run(run)
    assert f"names 'their_loss_1:loss': running code from {str(module)!r}" in capsys.readouterr().err
    assert "their_loss_1" not in sys.modules
    open_run(run)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "path", [*sys.path[:-1], str(run)])
    module.rename(run / module.name)
    importlib.invalidate_caches()
    monkeypatch.chdir(run)
    with pytest.raises(training.RunError, match="came with the run; read it, then move it out of the folder"):
        open_run(run)
    assert "their_loss_1" not in sys.modules
