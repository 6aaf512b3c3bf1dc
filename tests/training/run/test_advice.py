"""Test messages of `train` that suggest a command or an option: trigger each, and follow it to the letter."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from testkit.fake_cache import write_cache
from tests.training.run.test_train_cli import QUICK, refused, train

CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("advice")
    cache = write_cache(folder / "c.zarr", patients=10, slices=4).path
    result = train("run", "--cache", cache, "--out", folder / "run", *QUICK)
    assert result.exit_code == 0, result.output
    return folder / "run"


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    """A copy of the run that a test may damage."""
    return Path(shutil.copytree(whole, tmp_path / "run"))


def follow(line: str) -> None:
    """Run the `train` command at the end of a message."""
    found = re.search(r"(train (?:run|evaluate) [^;]*?)(?:;|$)", line)
    assert found, line
    result = train(*shlex.split(found[1])[1:], *CPU)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("content", [b"?", None])
def test_lost_predictions_are_recreated_by_the_suggested_command(content, run, whole):
    file = run / "predictions_test.csv"
    file.unlink()
    if content:
        file.write_bytes(content)
    follow(refused("compare", whole, run))
    assert train("compare", whole, run).exit_code == 0


def test_the_message_about_lost_weights_says_to_restore_them(run, whole):
    (run / "weights.safetensors").unlink()
    assert "restore the file" in refused("evaluate", "--run", run, *CPU)
    shutil.copy(whole / "weights.safetensors", run)
    assert train("evaluate", "--run", run, *CPU).exit_code == 0


def test_a_folder_in_use_is_resumed_by_the_suggested_command(run, whole):
    follow(refused("run", "--cache", whole.parent / "c.zarr", "--out", run, *QUICK))


def test_missing_imagenet_weights_are_avoided_by_the_suggested_option(whole, tmp_path):
    words = ["run", "--cache", whole.parent / "c.zarr", "--out", tmp_path / "new", *QUICK, "--model", "small_resnet"]
    found = re.search(r"give (--weights none)", refused(*words, "--weights", "imagenet"))
    assert found
    assert train(*words, *found[1].split()).exit_code == 0
