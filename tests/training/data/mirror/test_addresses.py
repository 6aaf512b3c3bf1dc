"""Test that commands accept an address, and report what is wrong with it in one line."""

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from testkit.fake_cache import write_cache
from testkit.faulty_store import message, shards
from testkit.tiny_run import HERE, SETTINGS, settings
from training.cli.main import main
from training.data.cache import open_cache
from training.model.network import build_model
from training.run.job import begin


def test_an_address_needs_a_folder_for_copies() -> None:
    assert "--local-copy" in message(lambda: open_cache("s3://bucket/cache.zarr"))


@pytest.mark.parametrize(
    ("address", "word"),
    [("memory://nowhere/cache.zarr", "no cache here"), ("no-such://bucket/c.zarr", "check the address")],
)
def test_a_wrong_address_gives_a_one_line_error(address: str, word: str, tmp_path: Path) -> None:
    text = message(lambda: open_cache(address, local_copy=tmp_path))
    assert word in text
    assert address in text


def test_a_missing_package_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "s3fs", None)
    assert "ich-cache[s3]" in message(lambda: open_cache("s3://bucket/cache.zarr", local_copy=tmp_path))


def train(*arguments: object) -> tuple[int, list[str]]:
    """Call the command `train`; return its exit code and its stderr."""
    torch.set_num_threads(1)
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    return result.exit_code, result.stderr.splitlines()


def test_every_command_takes_an_address(tmp_path: Path) -> None:
    fake = write_cache(tmp_path / "cache.zarr", patients=10, slices=4)
    address, run_path, copies = f"faulty://{fake.path}", tmp_path / "run", tmp_path / "copies"
    run, cache = begin(run_path, address, settings(), HERE, copies)
    assert run.data.cache == address
    save_file(build_model(run.config, len(cache.classes)).state_dict(), run.weights)

    small = [f"--set={name}={value}" for name, value in SETTINGS.items()]
    on_cpu = ("--device", "cpu", "--input-threads", 0)
    rehearse = ("run", "--cache", address, "--dry-run", *small, *on_cpu)
    evaluate = ("evaluate", "--run", run_path, *on_cpu)
    predict = ("predict", "--run", run_path, "--cache", address, "--out", tmp_path / "submission.csv", *on_cpu)
    for command in (rehearse, evaluate, predict, ("run", "--resume", run_path, *on_cpu), ("report", "--run", run_path)):
        code, (line,) = train(*command)
        assert (code, "--local-copy" in line) == (1, True)
    for command in (rehearse, evaluate, predict):
        assert train(*command, "--local-copy", copies)[0] == 0
    assert len(shards(copies)) == len(shards(fake.path))
