"""Test the presets: each is a valid group of settings, and options on the command line override it."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from training.cli.main import main
from training.model.network import build_model, check_size
from training.run import config
from training.run.presets import PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_is_a_valid_group_of_settings(name):
    settings = config.new_settings(PRESETS[name])
    assert config.from_mapping(json.loads(json.dumps(config.to_mapping(settings)))) == settings
    assert settings.patience_epochs >= settings.epochs or name == "finetune"


def test_finetune_has_the_defaults():
    assert config.new_settings(PRESETS["finetune"]) == config.TrainConfig()


@pytest.mark.parametrize("name", ["demo", "scratch"])
def test_presets_without_pretrained_weights_can_be_built_offline(name):
    settings = config.new_settings(PRESETS[name])
    assert settings.weights == "none"
    check_size(build_model(settings, 6), settings)


@pytest.mark.parametrize("name", PRESETS)
def test_the_page_has_each_setting_with_its_value(name):
    page = (Path(__file__).parents[3] / "docs" / "presets.md").read_text(encoding="utf-8")
    part = page[page.index(f"\n## {name}") :].split("\n## ")[1]
    rows = [row.split("|") for row in part.splitlines() if row.startswith("| `")]
    shown = {setting.strip(" `"): cells[2].strip() for cells in rows for setting in cells[1].split(",")}
    assert shown == {setting: str(value) for setting, value in PRESETS[name].items()}


def test_options_override_a_preset(monkeypatch):
    seen = {}
    monkeypatch.setattr("training.cli.bodies.run.settings.new_settings", lambda values: seen.update(values))
    monkeypatch.setattr(
        "training.cli.bodies.run.job.begin", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    options = ["--preset", "demo", "--epochs", "3", "--set", "dropout=0.5", "--no-position"]
    CliRunner().invoke(main, ["run", "--cache", "c", "--out", "o", *options])
    expected = {**PRESETS["demo"], "epochs": 3, "dropout": 0.5, "position": False}
    assert seen == expected


def test_an_unknown_preset_and_one_on_a_resumed_run_are_rejected():
    unknown = CliRunner().invoke(main, ["run", "--preset", "quick"])
    assert unknown.exit_code == 2
    assert "demo" in unknown.output
    resumed = CliRunner().invoke(main, ["run", "--resume", "r", "--preset", "demo"])
    assert resumed.exit_code == 2
    assert "--preset" in resumed.output


def test_small_resnet_has_no_imagenet_weights():
    with pytest.raises(config.ConfigError, match="--weights none"):
        build_model(config.new_settings({"model": "small_resnet"}), 6)
