"""The kernel agrees with its specification: windows in float64 NumPy, and Pillow's resize."""

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import kernel
from pipeline.planning import stages
from pipeline.planning.catalog import Window

WINDOWS = (Window("brain", 40.0, 80.0), Window("subdural", 50.0, 130.0), Window("bone", 600.0, 2800.0))
TEST_DATA = Path(os.environ.get("ICH_TEST_DATA", Path(__file__).parents[3] / "../shared/data"))


def rendered(stored, slope, intercept, padding, windows, sizes_px):
    """Return images and sums by size, rendered to arrays that are not initially zero."""
    images = [np.full((len(windows), s, s), 99, np.uint8) for s in sizes_px]
    sums = [np.full((len(windows), 2), 99, np.uint64) for _ in sizes_px]
    kernel.render(stored, slope, intercept, padding, windows, images, sums)
    return images, sums


def windowed(stored, slope, intercept, padding, windows):
    """Return the windowed slice as specified, computed in float64, (C, H, W) uint8."""
    hu = stored.astype(np.float64) * slope + intercept
    lower = [window.level_hu - window.width_hu / 2 for window in windows]
    x = np.stack([(hu - low) / window.width_hu for low, window in zip(lower, windows, strict=True)]).clip(0, 1)
    if padding is not None:
        x[:, (stored >= padding[0]) & (stored <= padding[1])] = 0
    return np.floor(255 * x + 0.5).astype(np.uint8)


def resized(grey, *sizes):
    """Resize each channel with Pillow, bilinearly, to one (width, height) after another: (C, height, width)."""
    images = [Image.fromarray(channel) for channel in grey]
    for size in sizes:
        images = [image.resize(size, Image.Resampling.BILINEAR) for image in images]
    return np.stack([np.asarray(image) for image in images])


def assert_as_specified(stored, slope, intercept, padding, windows, sizes_px):
    """Assert that images equal Pillow's horizontal, then vertical pass, and are within 1 of its resize; sums are exact.

    Pillow chooses the order of its passes since version 13; before, and for squares, the horizontal pass is first.
    """
    images, sums = rendered(stored, slope, intercept, padding, windows, sizes_px)
    grey = windowed(stored, slope, intercept, padding, windows)
    for image, total, side in zip(images, sums, sizes_px, strict=True):
        assert np.abs(image.astype(int) - resized(grey, (side, side))).max() <= 1
        np.testing.assert_array_equal(image, resized(grey, (side, stored.shape[0]), (side, side)))
        wide = image.astype(np.uint64)
        np.testing.assert_array_equal(total, np.stack([wide.sum((1, 2)), (wide**2).sum((1, 2))], axis=1))


def head(height, width, seed=0):
    """Return an ellipse of brain and skull in air with noise, (H, W) int16 stored values with intercept -1024."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    radius = np.hypot(y * 1.2, x * 1.5)
    hu = np.where(radius < 0.9, 35, np.where(radius < 1, 1200, -1000)) + random.normal(0, 12, (height, width))
    return (hu + 1024).round().astype(np.int16)


@st.composite
def slices(draw):
    """Draw stored values of any shape (noise, a head, a constant or one bright pixel), with rescale and padding."""
    shape = draw(st.tuples(st.integers(1, 90), st.integers(1, 90)))
    dtype = draw(st.sampled_from([np.int16, np.uint16]))
    info = np.iinfo(dtype)
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    stored = np.full(shape, draw(st.integers(info.min, info.max)), dtype)
    kind = draw(st.sampled_from(["constant", "pixel", "head", "noise", "all values"]))
    if kind == "pixel":
        stored[random.integers(shape[0]), random.integers(shape[1])] = draw(st.integers(info.min, info.max))
    elif kind == "head":
        stored = head(*shape, seed=int(random.integers(1000))).astype(dtype)
    elif kind == "noise":
        stored = random.integers(900, 1300, shape).astype(dtype)
    elif kind == "all values":
        stored = random.integers(info.min, info.max + 1, shape).astype(dtype)
    slope = draw(st.sampled_from([1.0, 0.7, 2.0, 0.04, -1.0, 1 / 3, 1e-6]) | st.floats(1e-3, 100))
    intercept = draw(st.sampled_from([0.0, 1.0, -1024.0, -1000.0, 0.5]) | st.floats(-5000, 5000))
    bound = st.integers(info.min, info.max) | st.integers(900, 1300)
    padding = draw(st.none() | st.tuples(bound, bound).map(lambda ends: (min(ends), max(ends))))
    return stored, slope, intercept, padding


any_window = st.builds(Window, st.just("w"), st.floats(-2000, 3000), st.floats(1, 5000))
any_windows = st.just(WINDOWS) | st.lists(any_window, min_size=1, max_size=8).map(tuple)
any_sizes = st.lists(st.integers(1, 130), min_size=1, max_size=3).map(tuple)


@settings(max_examples=300, deadline=None)
@given(slices(), any_windows, any_sizes)
def test_render_equals_float64_windows_and_pillow(a_slice, windows, sizes_px):
    assert_as_specified(*a_slice, windows, sizes_px)


@pytest.mark.parametrize(
    "shape",
    [(512, 512), (256, 512), (638, 490), (408, 374), (666, 512), (768, 768), (1, 1), (1, 700), (300, 2), (17, 31)],
)
def test_frames_of_various_shapes(shape):
    assert_as_specified(head(*shape), 1.0, -1024.0, None, WINDOWS, (224, 380))


@settings(max_examples=200, deadline=None)
@given(slices(), any_windows)
def test_grey_levels_equal_float64_windows(a_slice, windows):
    np.testing.assert_array_equal(kernel.grey_levels(*a_slice, windows), windowed(*a_slice, windows))


def test_hu_is_not_rounded():
    stored = np.arange(1000, 1200, dtype=np.uint16).reshape(10, 20)
    grey = kernel.grey_levels(stored, 0.7, -700.0, None, WINDOWS[:1])
    rounded = windowed(np.round(stored * 0.7 - 700).astype(np.int16), 1.0, 0.0, None, WINDOWS[:1])
    assert np.abs(grey.astype(int) - rounded).max() == 2


def test_signed_and_unsigned_values_agree_unless_negative():
    stored = head(40, 40).clip(0)
    np.testing.assert_array_equal(
        kernel.grey_levels(stored, 1.0, -1024.0, None, WINDOWS),
        kernel.grey_levels(stored.view(np.uint16), 1.0, -1024.0, None, WINDOWS),
    )
    below_zero = np.full((4, 4), -1, np.int16)
    assert not kernel.grey_levels(below_zero, 1.0, 0.0, None, WINDOWS)[0].any()
    assert (kernel.grey_levels(below_zero.view(np.uint16), 1.0, 0.0, None, WINDOWS) == 255).all()


def test_padding_above_the_tissue_is_black():
    stored = head(64, 64)
    stored[:8] = 3000
    images, _ = rendered(stored, 1.0, -1024.0, (2900, 3100), WINDOWS, (64,))
    assert not images[0][:, :8].any()


def test_several_sizes_at_once_equal_separate_ones():
    stored = head(200, 180)
    together, _ = rendered(stored, 1.0, -1024.0, None, WINDOWS, (224, 64, 380))
    for image in together:
        (alone,), _ = rendered(stored, 1.0, -1024.0, None, WINDOWS, image.shape[1:2])
        np.testing.assert_array_equal(image, alone)


def test_nothing_remains_of_the_previous_slice():
    bright, black = np.full((50, 50), 3000, np.int16), np.full((50, 50), -1000, np.int16)
    rendered(bright, 1.0, 0.0, None, WINDOWS, (30,))
    (image,), (total,) = rendered(black, 1.0, 0.0, None, WINDOWS, (30,))
    assert not image.any()
    assert not total.any()


def test_read_only_unaligned_and_strided_views_of_a_shard():
    stored = head(60, 70)
    raw = bytes(1) + stored.tobytes()
    view = np.frombuffer(raw, np.uint8)[1:].view(np.int16).reshape(stored.shape)
    shard, totals = np.empty((5, 3, 24, 24), np.uint8), np.empty((5, 3, 2), np.uint64)
    kernel.render(view, 1.0, -1024.0, None, WINDOWS, [shard[3]], [totals[3]])
    np.testing.assert_array_equal(shard[3], rendered(stored, 1.0, -1024.0, None, WINDOWS, (24,))[0][0])


def test_threads_do_not_share_scratch_memory():
    heads = [head(96, 96, seed) for seed in range(4)]
    wanted = [rendered(stored, 1.0, -1024.0, None, WINDOWS, (64,))[0][0] for stored in heads]

    def repeats(stored):
        return [rendered(stored, 1.0, -1024.0, None, WINDOWS, (64,))[0][0] for _ in range(100)]

    with ThreadPoolExecutor(len(heads)) as threads:
        for images, expected in zip(threads.map(repeats, heads), wanted, strict=True):
            assert all(np.array_equal(image, expected) for image in images)


def digest() -> str:
    """Return the SHA-256 of images and sums of several shapes."""
    found = hashlib.sha256()
    for shape in [(512, 512), (512, 490), (90, 700), (16, 17), (1, 1)]:
        for slope in (1.0, 0.7):
            images, sums = rendered(head(*shape), slope, -1024.0, (1000, 1003), WINDOWS, (224, 380, 20))
            for numbers in (*images, *sums):
                found.update(numbers.tobytes())
    return found.hexdigest()


def test_a_cpu_without_wide_vectors_gives_the_same_pixels():
    command = [sys.executable, "-c", f"from {__name__} import digest; print(digest())"]
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    folder = Path(__file__).parents[3]
    said = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=True).stdout
    assert said.strip() == digest()


@pytest.mark.parametrize(
    ("image_shape", "sums_shape", "windows"),
    [
        ((3, 8, 9), (3, 2), WINDOWS),
        ((2, 8, 8), (3, 2), WINDOWS),
        ((3, 8, 8), (2, 2), WINDOWS),
        ((9, 8, 8), (9, 2), WINDOWS * 3),
    ],
)
def test_a_wrong_shape_raises_before_anything_is_written(image_shape, sums_shape, windows):
    with pytest.raises(ValueError, match="window"):
        kernel.render(
            head(8, 8), 1.0, 0.0, None, windows, [np.empty(image_shape, np.uint8)], [np.empty(sums_shape, np.uint64)]
        )


def test_real_slices():
    pydicom = pytest.importorskip("pydicom")
    files = sorted((TEST_DATA / "head_ct_tilted").glob("*.dcm"))
    if not files:
        pytest.skip("head_ct_tilted is missing: set ICH_TEST_DATA")
    for file in files:
        dataset = pydicom.dcmread(file)
        slope, intercept = float(dataset.RescaleSlope), float(dataset.RescaleIntercept)
        padding = (dataset.PixelPaddingValue, dataset.PixelPaddingValue)
        stored = np.ascontiguousarray(dataset.pixel_array)
        assert_as_specified(stored, slope, intercept, padding, WINDOWS, (224, 380))


STORED_OUTPUTS = {
    1: {
        "grey levels": [
            [[0, 0, 0, 19, 64, 108, 153, 198, 242, 255, 255, 255]],
            [[0, 0, 14, 41, 69, 96, 124, 151, 179, 206, 233, 255]],
            [[0, 71, 72, 73, 75, 76, 77, 79, 80, 81, 82, 84]],
        ],
        "image": [
            [[97, 101, 160], [96, 101, 160], [97, 101, 161]],
            [[88, 90, 129], [87, 91, 129], [88, 91, 130]],
            [[73, 73, 77], [73, 73, 77], [73, 73, 77]],
        ],
        "sums": [[1074, 135758], [923, 97901], [669, 49761]],
    }
}


def test_values_are_those_of_this_version():
    """If a value changes on purpose, increment `stages.RENDER_VERSION` and store the new outputs under it."""
    ramp = np.arange(940, 1180, 20, np.uint16)[None]
    y, x = np.mgrid[:37, :29]
    texture = ((y * 31 + x * 17) % 101 + 980 + 40 * (x > 20)).astype(np.int16)
    (image,), (total,) = rendered(texture, 0.7, -690.5, (1000, 1003), WINDOWS, (3,))
    assert STORED_OUTPUTS[stages.RENDER_VERSION] == {
        "grey levels": kernel.grey_levels(ramp, 0.7, -694.0, (940, 940), WINDOWS).tolist(),
        "image": image.tolist(),
        "sums": total.tolist(),
    }


def test_importing_the_package_does_not_import_numba():
    code = "import sys, pipeline, pipeline.planning.catalog, pipeline.dicom.records; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
