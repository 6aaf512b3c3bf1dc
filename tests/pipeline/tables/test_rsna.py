"""Follow docs/rsna.md with a zip of phantom files in Kaggle's layout."""

import zipfile
from pathlib import Path

import pandas as pd
import pytest
import zarr

from testkit.small import run

TOP = "rsna-intracranial-hemorrhage-detection"


@pytest.fixture
def downloaded(tmp_path) -> Path:
    """Return the zip: training files including a truncated one, test files, and labels with four images twice."""
    run("phantom", "--out", tmp_path / "phantom", "--patients", 1)
    files = sorted((tmp_path / "phantom" / "dicoms").glob("*.dcm"))
    train, test = files[:-5], files[-5:]
    head, *lines = (tmp_path / "phantom" / "labels.csv").read_text().splitlines()
    lines = [line for line in lines if not any(line.startswith(file.stem) for file in test)]
    with zipfile.ZipFile(tmp_path / f"{TOP}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for folder, members in (("stage_2_train", train), ("stage_2_test", test)):
            for file in members:
                archive.write(file, f"{TOP}/{folder}/{file.name}")
        archive.writestr(f"{TOP}/stage_2_train/ID_6431af929.dcm", train[0].read_bytes()[:-1000])
        archive.writestr(f"{TOP}/stage_2_train.csv", "\n".join([head, *lines, *lines[12:36]]) + "\n")
        archive.writestr(f"{TOP}/stage_2_sample_submission.csv", "ID,Label\n")
    return tmp_path / f"{TOP}.zip"


def test_a_cache_is_built_from_kaggles_zip(downloaded, tmp_path):
    with zipfile.ZipFile(downloaded) as archive:
        archive.extractall(tmp_path / "unpacked")
    labels = tmp_path / "unpacked" / TOP / "stage_2_train.csv"
    options = ("--dataset", "rsna", "--labels", labels, "--size", 32, "--size", 48)
    out, train = tmp_path / "rsna.zarr", tmp_path / "train.zarr"
    run("plan", "--src", downloaded, "--out", out, *options, code=2)
    first = run("build", "--src", downloaded, "--out", out, *options, "--workers", 0, code=1)
    assert "1 failed, 2 not dicom" in first.stdout
    assert "labels: 5 slices without label" in first.stdout
    run("build", "--src", downloaded, "--out", out, *options, "--workers", 0, "--max-rejects", 1)
    src = labels.with_suffix("")  # stage_2_train
    run("build", "--src", src, "--out", train, *options, "--workers", 0, "--max-rejects", 1)

    both = pd.merge(pd.read_csv(out / "metadata.csv"), pd.read_csv(train / "metadata.csv"), on="image_id")
    assert len(both) == len(list(src.glob("*.dcm"))) - 1
    assert (both["any_x"] == both["any_y"]).all()
    assert both["any_x"].notna().all()
    from_zip, from_folder = zarr.open_group(out, mode="r"), zarr.open_group(train, mode="r")
    for size in ("32", "48"):
        ours, theirs = (group[group.attrs["sizes"][size]] for group in (from_zip, from_folder))
        assert all((ours[row] == theirs[other]).all() for row, other in zip(both["row_x"], both["row_y"], strict=True))
