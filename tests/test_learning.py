"""Test that the model of `make demo` detects blood in unseen heads, beyond what the slice position tells."""

import json
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import pandas as pd
import torch
from click.testing import CliRunner
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from phantom.dataset import write
from phantom.study import Study, make_study
from pipeline.cli.main import main as pipeline
from training.cli.main import main as train


def twins(seed: int, patient: int, number: int) -> Study:
    """Return the slices of a bleeding patient that show blood, each with a twin: the same scan without blood."""
    shown, bare = (make_study(seed, patient, number, bleeding=10, bloodless=of) for of in (False, True))
    places = np.flatnonzero(shown.labels[:, -1])
    positions = shown.geometry.positions[places]
    return replace(
        shown,
        uids=(*(shown.uids[place] for place in places), *(f"{shown.uids[place]}0" for place in places)),
        geometry=replace(shown.geometry, positions=np.concatenate([positions, positions + np.array([0, 0, 0.1])])),
        stored=np.concatenate([shown.stored[places], bare.stored[places]]),
        blood=np.concatenate([shown.blood[places], 0 * shown.blood[places]]),
        labels=np.concatenate([shown.labels[places], 0 * shown.labels[places]]),
    )


def call(command: click.Command, *arguments: object) -> None:
    torch.set_num_threads(1)
    done = CliRunner().invoke(command, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output


def test_the_model_of_the_demo_finds_blood_better_than_position_alone(tmp_path: Path) -> None:
    write(tmp_path, 40, 3, make=twins)
    options = ("--dataset", "phantom", "--labels", tmp_path / "labels.csv", "--size", 48, "--workers", 0)
    call(pipeline, "build", "--src", tmp_path / "dicoms", "--out", tmp_path / "c.zarr", *options)
    options = ("--preset", "demo", "--size", 48, "--epochs", 12, "--batch-size", 16, "--device", "cpu")
    shares = ("--set", "split_fractions=[0.75,0.1,0.15]")
    call(train, "run", "--cache", tmp_path / "c.zarr", "--out", tmp_path / "run", *options, *shares)
    of_any = json.loads((tmp_path / "run" / "scores_test.json").read_text())["classes"]["any"]
    assert of_any["roc_auc"] > 0.85
    assert by_position(tmp_path) < 0.75


def by_position(folder: Path) -> float:
    """Return the ROC AUC of `any` on the run's test patients from the position alone."""
    table = pd.read_csv(folder / "c.zarr" / "metadata.csv").merge(pd.read_csv(folder / "run" / "split.csv"))
    train, test = (table[table["split"] == subset] for subset in ("train", "test"))
    model = HistGradientBoostingClassifier(random_state=0).fit(train[["z_norm"]], train["any"])
    return float(roc_auc_score(test["any"], model.predict_proba(test[["z_norm"]])[:, 1]))
