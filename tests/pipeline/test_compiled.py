"""If compilation fails or gives wrong results, the plain implementations give the same cache."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import kernel
from pipeline.compiled import compiled_or_plain
from pipeline.kernel import plain
from pipeline.planning.catalog import Window
from testkit.small import Small, run, write_slices

ROOT = Path(__file__).parents[2]
NO_NUMBA = """
import sys
sys.modules["numba"] = None
from pipeline.cli.main import main
main()
"""


def test_a_build_without_numba_warns_and_gives_the_same_cache(tmp_path):
    small = Small(tmp_path)
    write_slices(small.src, range(5))
    command = [sys.executable, "-c", NO_NUMBA, "build", *small.options(), "--workers", "0"]
    where = {**os.environ, "PYTHONPATH": str(ROOT)}
    built = subprocess.run(command, capture_output=True, text=True, env=where, timeout=300, check=False)
    assert built.returncode == 0, built.stderr
    for what in ("kernel", "LZ4 encoder", "walk over a header"):
        assert built.stderr.count(f"the compiled {what} cannot be used here") == 1
    small.verify()
    assert small.digest() == small.clean_digest(tmp_path / "clean")


@given(
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.lists(st.integers(1, 48), min_size=1, max_size=2, unique=True),
    st.integers(1, 4),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_the_kernel_equals_its_specification(shape, sizes_px, count, signed, seed):
    rng = np.random.default_rng(seed)
    stored = rng.integers(0, 1 << 16, shape, np.uint16)
    stored = stored.view(np.int16) if signed else stored
    windows = tuple(Window(str(i), float(rng.integers(-500, 900)), float(rng.integers(1, 3000))) for i in range(count))
    outcomes = []
    for render in (kernel.render, plain.render):
        images = [np.empty((count, size_px, size_px), np.uint8) for size_px in sizes_px]
        sums = [np.empty((count, 2), np.uint64) for _ in sizes_px]
        render(stored, 0.5, -1024.0, (60_000, 60_100), windows, images, sums)
        outcomes.append([array.tobytes() for array in (*images, *sums)])
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("fault", ["cannot be loaded", "wrong results"])
def test_a_compiled_form_that_fails_its_test_is_replaced(fault):
    def load():
        if fault == "cannot be loaded":
            raise TypeError("no such operation\nin LLVM")
        return max

    with pytest.warns(RuntimeWarning, match="the compiled sum cannot be used here") as warned:
        assert compiled_or_plain("sum", load, lambda form: form([1, 2]) == 3, sum) is sum
    assert "\n" not in str(warned[0].message)


def test_a_compiled_form_that_passes_its_test_is_used_without_a_warning(recwarn):
    assert compiled_or_plain("sum", lambda: sum, lambda form: form([1, 2]) == 3, max) is sum
    assert not recwarn.list


def test_compiled_code_is_used_here(tmp_path):
    """The other tests would also pass without compilation."""
    small = Small(tmp_path)
    write_slices(small.src, range(2))
    assert "cannot be used" not in run("build", *small.options(), "--workers", "0").stderr
    assert kernel.render is not plain.render
