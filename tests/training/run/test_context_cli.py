"""Test runs whose network sees neighbouring slices, as a user would."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from click.testing import CliRunner

from testkit.fake_cache import write_cache
from tests.training.run.test_train_cli import EXPORTS_QUICKLY
from training.cli.main import main
from training.data.cache import open_cache
from training.data.neighbours import Context
from training.report.pictures import read_images

SMALL = ["--model", "small_resnet", "--weights", "none", "--size", "32", "--batch-size", "8", "--device", "cpu"]
QUICK = [*SMALL, *EXPORTS_QUICKLY, "--epochs", "1", "--input-threads", "0", "--set", "fusion_features=16"]


def train(*arguments: object) -> str:
    torch.set_num_threads(1)
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.splitlines()
    return line


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cache(tmp_path_factory.mktemp("context") / "c.zarr", patients=10, slices=4).path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    path = tmp_path_factory.mktemp("context-runs") / "run"
    train(
        "run",
        "--cache",
        cache,
        "--out",
        path,
        *QUICK,
        "--context",
        1,
        "--context-windows",
        "brain,bone",
    )
    return path


def test_every_command_takes_a_run_with_context(run: Path, cache: Path, tmp_path: Path) -> None:
    assert json.loads((run / "settings.json").read_text())["config"]["context"] == 1
    assert "1 slice on each side (brain,bone windows)" in (run / "report.html").read_text()
    before = (run / "scores_test.json").read_bytes()
    train("evaluate", "--run", run, "--device", "cpu")
    assert (run / "scores_test.json").read_bytes() == before
    train("predict", "--run", run, "--cache", cache, "--out", tmp_path / "submission.csv", "--device", "cpu")
    train("export", "--run", run, "--format", "torch", "--out", tmp_path / "model.pt2")
    opened = open_cache(cache)
    stacks = read_images(opened, 32, opened.table["row"].to_numpy()[:3], Context(1, (0, 2)))
    program = torch.export.load(tmp_path / "model.pt2").module()
    place = torch.from_numpy(opened.table["z_norm"].to_numpy(np.float32)[:3])
    wide = pd.read_csv(tmp_path / "submission_wide.csv").filter(like="p_").to_numpy()[:3]
    np.testing.assert_allclose(program(torch.from_numpy(stacks), place).detach().numpy(), wide, atol=1e-4)


def test_impossible_contexts_give_one_line_errors(cache: Path, tmp_path: Path) -> None:
    line = refused(
        "run", "--cache", cache, "--out", tmp_path / "run", *QUICK, "--context", 1, "--context-windows", "bran"
    )
    assert line.endswith("no window 'bran'; did you mean brain?")
    assert "context: 9 is outside [0, 5]" in refused(
        "run", "--cache", cache, "--out", tmp_path / "run", *QUICK, "--context", 9
    )
    flat = write_cache(tmp_path / "flat.zarr", patients=6, slices=2, z=False).path
    line = refused("run", "--cache", flat, "--out", tmp_path / "run", *QUICK, "--context", 1)
    assert "no slice has a z_mm" in line
    assert not (tmp_path / "run").exists()
