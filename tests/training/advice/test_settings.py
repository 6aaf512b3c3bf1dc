"""Test messages about settings, devices and packages that give a remedy: trigger each, and follow it to the letter."""

import dataclasses
import errno
import os
import sys
import urllib.error
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torchvision
from torch import Tensor, nn

import training.model.export as program
import training.run.loggers as trackers
from testkit.advice import Case, by_hand
from testkit.extras import assert_installs
from testkit.tiny_run import settings
from tests.training.advice.world import CPU, Cases, World, call
from tests.training.run.test_train_cli import train
from training.errors import ConfigError, RunError
from training.model.backbones import _count_features, torchvision_backbone
from training.model.channels import fit_channels
from training.model.export import _write_onnx
from training.model.network import build_model
from training.run.functions import find_function, name_of

CASES = Cases()


# --- wrong options and settings --------------------------------------------------------------------------------------


@CASES.add
def _neither_cache_nor_study(world: World) -> Case:
    out = world.folder / "s.csv"
    advice = "give either --cache CACHE or --dicom STUDY"
    predict = world.on_run("predict", "--out", out)
    return Case(predict, advice, lambda _: [[*predict, "--cache", world.cache]])


@CASES.add
def _a_folder_for_the_csv_file(world: World) -> Case:
    predict = ["predict", "--run", world.run, *CPU, "--cache", world.cache, "--out"]
    (world.folder / "there").mkdir()
    advice = "is a folder; with --cache, give the CSV file"
    return Case([*predict, world.folder / "there"], advice, lambda _: [[*predict, world.folder / "there" / "s.csv"]])


@CASES.add
def _a_run_without_a_folder(world: World) -> Case:
    return Case(["run", *CPU], "give --cache and --out for a new run, or --resume DIR", lambda _: [world.resume()])


@CASES.add
def _a_sample_of_other_slices(world: World) -> Case:
    sample, out = world.folder / "sample.csv", world.folder / "s.csv"
    sample.write_text("ID,Label\nID_other_any,0.5\n")
    predict = world.on_run("predict", "--cache", world.cache, "--out", out)
    return Case([*predict, "--sample", sample], "or leave --sample out", lambda _: [predict])


@CASES.add
def _a_disk_that_refuses(world: World) -> Case:
    """Reported in the same way by every command."""
    out = world.folder / "s.csv"

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out))

    predict = world.on_run("predict", "--cache", world.cache, "--out", out)
    state = lambda: patch("training.cli.bodies.predict.write_predictions", full)  # noqa: E731
    return Case(predict, "No space left on device; fix this and run the same command again", again=True, state=state)


@CASES.add
def _runs_to_compare(world: World) -> Case:
    compare = ["compare", world.run]
    return Case(compare, "compare: give at least two runs", lambda _: [[*compare, world.shared / "run"]])


@CASES.add
def _a_setting_that_ablation_varies(world: World) -> Case:
    ablate = ["ablate", "--cache", world.cache, "--out", world.folder / "a", "--set", "seed=3"]
    follow = by_hand(lambda: _reaches(world, [word for word in ablate if word not in ("--set", "seed=3")]))
    return Case(ablate, "the runs differ in this setting; leave it out, and use --model, --seed and --vary", follow)


def _reaches(world: World, ablate: list[Any]) -> None:
    """Check that an ablation reaches its first run, which would take too long for a test."""
    with patch("training.scores.ablate._train", side_effect=RunError("begun")) as begun:
        assert "begun" in train(*ablate, *CPU, "--vary", "position").stderr
    assert begun.called


@CASES.add
def _batch_norm_over_gpus(world: World) -> Case:
    advice = "sync_batch_norm: works only on GPUs; leave it off"
    return Case(world.new("--set", "sync_batch_norm=true"), advice, lambda _: [world.new(out="off")])


# --- models and weights ----------------------------------------------------------------------------------------------


@CASES.add
def _no_such_weights(world: World) -> Case:
    advice = "no such file; give imagenet, (none), or a file"
    return Case(world.new("--weights", world.folder / "no.pt"), advice, lambda m: [world.new("--weights", m[1])])


@CASES.add
def _weights_that_cannot_be_fetched(world: World) -> Case:
    def offline(*_: Any, **named: Any) -> Any:
        raise urllib.error.URLError("no network")

    file, model = world.folder / "fetched.pt", ["--model", "shufflenet_v2_x0_5", "--weights"]
    torch.save(torchvision.models.shufflenet_v2_x0_5().state_dict(), file)
    state = lambda: patch("torchvision.models.get_model", offline)  # noqa: E731
    advice = "give --weights none, or (--weights) FILE with a state dict fetched elsewhere"
    return Case(world.new(*model, "imagenet"), advice, lambda _: [world.new(*model, file)], state=state)


@CASES.add
def _a_whole_module_for_weights(world: World) -> Case:
    file, net = world.folder / "w.pt", build_model(settings(model="small_resnet"), 6)
    torch.save(net, file)
    save = by_hand(lambda: torch.save(net.state_dict(), file))
    return Case(world.new("--weights", file), "only tensors are read: save just the state dict", save, again=True)


def picky(channels: int) -> nn.Module:
    """A user's own backbone that accepts only images of 32 px."""

    class Picky(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            assert images.shape[-1] == 32, "wants 32 px"
            return images.mean((2, 3))

    return Picky()


def test_an_own_backbone_gets_the_size_that_it_accepts() -> None:
    config = settings(model=f"{__name__}:picky", size_px=48)
    with pytest.raises(ConfigError, match=r"wants 32 px.*give another --size"):
        build_model(config, 6)
    build_model(dataclasses.replace(config, size_px=32), 6)


class InBuffer(nn.Module):
    """A backbone that keeps its state in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3))


class InExtraState(InBuffer):
    """A backbone that keeps its state as extra state, which need not be a tensor."""

    def get_extra_state(self) -> int:
        return 0


def test_a_backbone_keeps_its_state_in_buffers() -> None:
    with pytest.raises(ConfigError, match="keep it in a buffer, or leave get_extra_state out"):
        _count_features(InExtraState(), settings(size_px=32), (0, 1, 2))
    assert _count_features(InBuffer(), settings(size_px=32), (0, 1, 2)) == 3


def test_a_model_that_cannot_be_built_is_replaced_by_another() -> None:
    with patch("torchvision.models.get_model", side_effect=ValueError("no")), pytest.raises(ConfigError) as refused:
        build_model(settings(model="resnet18"), 6)
    assert "choose another model, or another --size" in str(refused.value)
    build_model(settings(model="small_resnet"), 6)


def test_weights_that_rescale_three_channels_are_left_out() -> None:
    backbone, _ = torchvision_backbone("googlenet", imagenet=False)
    backbone.transform_input = True  # as with ImageNet weights
    with pytest.raises(ConfigError, match="choose another model, or --weights none"):
        fit_channels(backbone, (0, 1))
    fit_channels(torchvision_backbone("googlenet", imagenet=False)[0], (0, 1))


# --- the user's own functions ----------------------------------------------------------------------------------------


def test_functions_are_named_as_the_message_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "of_mine_7.py").write_text("number = 3\n\n\ndef loss(*given):\n    return given\n")
    with pytest.raises(ConfigError, match="run the command in the module's folder, or set PYTHONPATH to it"):
        find_function("of_mine_7:loss", "loss")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="is a int; name a function"):
        find_function("of_mine_7:number", "loss")
    found = find_function("of_mine_7:loss", "loss")
    with pytest.raises(ConfigError, match="put it into its own module, as a named function"):
        name_of(lambda *given: given, "loss")
    assert name_of(found, "loss") == "of_mine_7:loss"


# --- packages and trackers -------------------------------------------------------------------------------------------


def _lacking(name: str) -> Any:
    def missing(*_: Any) -> Any:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    return missing


@CASES.add
def _a_tracker_that_is_not_installed(world: World) -> Case:
    state = lambda: patch.dict(trackers.LOGGERS, wandb=_lacking("wandb"))  # noqa: E731
    follow = by_hand(lambda: [assert_installs(name, name) for name in ("wandb", "mlflow")])
    return Case(world.new("--logger", "wandb"), r"run: pip install 'ich-cache\[wandb\]'", follow, state=state)


@CASES.add
def _a_tracker_that_does_not_answer(world: World) -> Case:
    def silent(*_: Any) -> Any:
        raise ConnectionError("refused")

    state = lambda: patch.dict(trackers.LOGGERS, mlflow=silent)  # noqa: E731
    advice = "check its address and your access, or leave it out"
    return Case(world.new("--logger", "mlflow"), advice, lambda _: [world.new(out="without")], state=state)


def test_packages_in_messages_are_in_their_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"'ich-cache\[timm\]'"):
        build_model(settings(model="timm:resnet18"), 6)
    assert_installs("timm", "timm")
    for package in ("onnx", "onnxruntime", "onnxscript"):
        assert_installs("export", package)
    assert_installs("training", "captum")
    assert_installs("s3", "s3fs")


def test_a_missing_onnx_package_is_in_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(RunError, match=r"ONNX needs the package onnx; run: pip install 'ich-cache\[export\]'"):
        _write_onnx(None, tmp_path / "m.onnx", None)  # type: ignore[arg-type]


def test_a_program_that_differs_is_exported_in_the_other_format(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    parity = program._parity
    monkeypatch.setattr(program, "_parity", lambda *given: 1.0 if given[1] == "onnx" else parity(*given))
    monkeypatch.setattr(program, "_write_onnx", lambda *_: None)
    words = ["export", "--run", world.run, "--out"]
    assert "try the other format" in train(*words, world.folder / "m.onnx").stderr
    call(*words, world.folder / "m.pt2", "--format", "torch")


@pytest.mark.parametrize("name", CASES)
def test_the_advice_of_a_message_is_followed_to_success(
    name: str, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without scores and pages, which take most of the time.
    monkeypatch.setattr("training.run.job.finish", lambda *_: {})
    monkeypatch.setattr("training.cli.bodies.run._print_scores", lambda _: None)
    CASES.follow(name, world)
