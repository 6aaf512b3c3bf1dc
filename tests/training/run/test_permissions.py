"""Test that runs and copies have the permissions of the umask, and that an error is one short line."""

import os
from pathlib import Path

import numpy as np
import pytest

from testkit.fake_cache import write_cache
from testkit.tiny_run import settings, train
from tests.training.run.test_train_cli import refused
from training.data.cache import open_cache


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_run_and_copies_have_the_permissions_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        fake = write_cache(tmp_path / "c.zarr", patients=10, slices=2)
        open_cache(fake.path, local_copy=tmp_path / "copies").mean_std(32, np.arange(3))
        train(tmp_path / "run", fake.path, settings(epochs=1))
    finally:
        os.umask(before)
    made = [path for part in ("copies", "run") for path in (tmp_path / part).rglob("*")]
    wrong = [path for path in made if path.stat().st_mode & 0o777 != (0o777 if path.is_dir() else 0o666) & ~umask]
    assert not wrong


def test_an_error_is_one_short_line_even_with_strange_names(tmp_path: Path) -> None:
    name = "a\x1b]0;title\x07\nerror: forged\x9b31m" + "/b" * 3000
    line = refused("report", "--run", tmp_path / name)
    assert len(line) <= len("error: ") + 1000
    assert line.isprintable()
    assert "\\x1b]0;title\\x07 error: forged\\x9b31m" in line
