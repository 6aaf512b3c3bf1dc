"""The Python interface gives the same results as the commands."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
import zarr

import pipeline
from pipeline.kernel import plain
from testkit import small
from testkit.dicom_files import ct_dataset, encode, enhanced_file, frame_groups, gradient

WINDOWS = (pipeline.Window("brain", 40, 80), pipeline.Window("bone", 600, 2800))


def test_all_public_names_exist_and_importing_the_package_is_fast() -> None:
    heavy = "import pipeline, sys; print(*({'numpy', 'pandas', 'pydicom', 'numba', 'yaml'} & sys.modules.keys()))"
    root = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True, cwd=root).stdout
    assert found.split() == []
    assert all(hasattr(pipeline, name) for name in pipeline.__all__)
    assert set(pipeline.__all__) <= set(dir(pipeline))
    with pytest.raises(AttributeError, match="no attribute 'biuld'"):
        pipeline.biuld  # noqa: B018


def test_build_and_plan_agree_with_the_commands(tmp_path: Path) -> None:
    made = small.Small(tmp_path)
    small.write_slices(made.src, range(3))
    made.build()
    catalog = tmp_path / "catalog.yaml"
    out = tmp_path / "other.zarr"
    before = pipeline.plan(made.src, out, catalog=catalog)
    assert (before.commit, before.slices_expected, out.exists()) == (True, 3, False)
    commit = pipeline.build(made.src, out, catalog=catalog)
    assert commit.attributes.as_json()["counts"]["gave_slices"] == 3
    assert not pipeline.plan(made.src, out, catalog=catalog).commit
    assert pipeline.build(made.src, out, catalog=catalog).id == commit.id
    digests = [small.run("info", "--digest", path).output for path in (made.out, out)]
    assert digests[0] == digests[1]
    with pytest.raises(pipeline.SourceError):
        pipeline.build(tmp_path / "nothing", out, catalog=catalog)


def test_render_gives_the_pixels_that_a_build_stores(tmp_path: Path) -> None:
    made = small.Small(tmp_path)
    small.write_slices(made.src, range(1))
    made.build()
    attributes = zarr.open_group(made.out, mode="r").attrs
    windows = [pipeline.Window(**window) for window in attributes["windows"]]
    ((size, path),) = list(attributes["sizes"].items())[:1]
    stored = zarr.open_array(made.out, path=path, mode="r")[0]
    dataset = pydicom.dcmread(next(file for file in made.src.rglob("*") if file.is_file()))
    assert np.array_equal(pipeline.render(dataset, windows, int(size)), stored)


def test_render_takes_any_windows_and_frame_and_does_not_change_the_dataset() -> None:
    stored = gradient(40, 30)
    dataset = pydicom.dcmread(io.BytesIO(encode(ct_dataset(stored, RescaleIntercept=-1024))))
    before = dataset.to_json()
    image = pipeline.render(dataset, WINDOWS, 20)
    expected, sums = np.empty((2, 20, 20), np.uint8), np.empty((2, 2), np.uint64)
    plain.render(stored, 1.0, -1024.0, None, WINDOWS, [expected], [sums])
    assert np.array_equal(image, expected)
    assert dataset.to_json() == before
    frames = np.stack([stored, stored[::-1]])
    enhanced = pydicom.dcmread(io.BytesIO(enhanced_file(frames, [frame_groups(z, 1, -1024) for z in (0, 5)])))
    assert np.array_equal(pipeline.render(enhanced, WINDOWS, 20), image)
    assert not np.array_equal(pipeline.render(enhanced, WINDOWS, 20, frame=1), image)
    with pytest.raises(pipeline.SourceError, match="no frame 2"):
        pipeline.render(enhanced, WINDOWS, 20, frame=2)


def test_errors_of_render_have_a_reason() -> None:
    dataset = pydicom.dcmread(io.BytesIO(encode(ct_dataset(gradient(), Modality="MR"))))
    with pytest.raises(pipeline.SourceError, match=r"not CT .*accepted_files"):
        pipeline.render(dataset, WINDOWS, 20)
    with pytest.raises(pipeline.CatalogError, match="window thin: "):
        pipeline.render(dataset, [pipeline.Window("thin", 40, 0)], 20)
    with pytest.raises(pipeline.CatalogError, match="give 1 to 8"):
        pipeline.render(dataset, [], 20)
