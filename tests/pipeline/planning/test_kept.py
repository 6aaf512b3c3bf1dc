"""The sizes, labels and data set of a cache are kept until they are explicitly removed."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from pipeline.cache import drafts
from testkit.small import MADE_UP, Small, counted, run, write_slices


@pytest.fixture
def small(tmp_path: Path) -> Small:
    """Return a cache of four slices at 8 and 12 pixels with labels, all given by options."""
    small = Small(tmp_path, labels={MADE_UP.uid(number): number % 2 for number in range(4)})
    write_slices(small.src, range(4))
    small.build("--size", 8, "--size", 12)
    return small


def without_options(small: Small) -> list[object]:
    """Return only the required options."""
    return ["--src", small.src, "--out", small.out, "--catalog", small.folder / "catalog.yaml"]


def state(small: Small) -> tuple[list[str], list[str]]:
    """Return sizes and label columns of the current commit."""
    attributes = json.loads((small.out / "zarr.json").read_bytes())["attributes"]
    return sorted(attributes["sizes"], key=int), [klass["name"] for klass in attributes["classes"]]


def test_the_same_command_without_options_keeps_sizes_and_labels(small):
    before = small.digest()
    said = run("plan", *without_options(small)).stdout
    assert "nothing to do" in said
    assert "kept: size 12 (--drop-size 12 removes it)" in said
    assert f"kept: labels of {small.folder / 'labels.csv'} (--no-labels removes them)" in said
    with counted() as work:
        run("build", *without_options(small), "--workers", 0)
    assert (work.read, work.shards) == ([], [])
    assert small.digest() == before
    assert state(small) == (["8", "12"], ["bleed", "any"])


def test_a_requested_size_is_added_to_the_existing_ones(small):
    run("build", *without_options(small), "--size", 6, "--workers", 0)
    assert state(small) == (["6", "8", "12"], ["bleed", "any"])


def test_the_catalog_adds_no_size_if_sizes_come_from_options(tmp_path):
    small = Small(tmp_path)  # its catalog says 8
    write_slices(small.src, range(2))
    small.build("--size", 12)
    small.build()
    assert state(small)[0] == ["12"]
    small.build("--size", 8)
    assert state(small)[0] == ["8", "12"]


def test_the_catalog_adds_sizes_but_removes_none(tmp_path):
    small = Small(tmp_path)
    write_slices(small.src, range(2))
    for sizes, there in (((8,), ["8"]), ((8, 12), ["8", "12"]), ((12,), ["8", "12"])):
        small.sizes = sizes
        small.build()
        assert state(small)[0] == there


def test_removed_sizes_and_labels_stay_removed(small):
    assert "other settings of the table" in run("plan", *without_options(small), "--no-labels", code=2).stdout
    run("build", *without_options(small), "--no-labels", "--drop-size", 12, "--workers", 0)
    assert state(small) == (["8"], [])
    run("plan", *without_options(small))
    run("build", *without_options(small), "--workers", 0)
    assert state(small) == (["8"], [])
    run("build", *without_options(small), "--labels", small.folder / "labels.csv", "--workers", 0)
    assert state(small) == (["8"], ["bleed", "any"])


def test_a_changed_label_file_is_noticed_without_its_option(small):
    file = small.folder / "labels.csv"
    file.write_text(file.read_text().replace(",0,0\n", ",1,1\n", 1))
    said = run("plan", *without_options(small), code=2).stdout
    assert f"kept: labels of {file}, which has changed" in said
    run("build", *without_options(small), "--workers", 0)
    assert pd.read_csv(small.out / "metadata.csv")["bleed"].sum() == 3
    run("plan", *without_options(small))


def test_the_labels_of_the_commit_are_kept_if_the_label_file_vanishes(small):
    labels = pd.read_csv(small.out / "metadata.csv").set_index("image_id")["bleed"]
    (small.folder / "labels.csv").unlink()
    said = run("plan", *without_options(small)).stdout
    assert f"kept: the commit's labels, though their file {small.folder / 'labels.csv'} is gone" in said
    write_slices(small.src, range(4, 6))  # the new commit needs labels, which only the old one has
    run("build", *without_options(small), "--workers", 0)
    after = pd.read_csv(small.out / "metadata.csv").set_index("image_id")["bleed"]
    assert after.dropna().to_dict() == labels.to_dict()
    assert after.isna().sum() == 2
    run("plan", *without_options(small))


def test_a_label_file_given_as_an_option_must_exist(small):
    (small.folder / "labels.csv").unlink()
    said = run("build", *without_options(small), "--labels", small.folder / "labels.csv", code=1).stderr
    assert "cannot be read (No such file or directory); give --labels FILE" in said


def test_a_new_class_cannot_come_from_a_vanished_label_file(small):
    (small.folder / "labels.csv").unlink()
    catalog = small.folder / "catalog.yaml"
    catalog.write_text(catalog.read_text().replace("name: bleed", "name: clot"))
    said = run("build", *without_options(small), "--workers", 0, code=1).stderr
    assert "has no labels for the class clot; restore the file" in said


def test_the_data_set_is_kept(tmp_path):
    small = Small(tmp_path)
    write_slices(small.src, range(2))
    small.options()
    catalog = tmp_path / "catalog.yaml"
    catalog.write_text(catalog.read_text().replace("generic:", "named:"))
    run("build", *without_options(small), "--dataset", "named", "--workers", 0)
    said = run("plan", *without_options(small)).stdout
    assert "kept: data set named" in said
    said = run("plan", "--src", small.src, "--out", small.out, code=1).stderr
    assert "the cache was built with --dataset named" in said
    assert "give the --catalog that has it" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--drop-size", 6], "--drop-size 6: the cache does not have this size, but 8, 12"),
        (["--drop-size", 8, "--drop-size", 12], "no size would be left"),
    ],
)
def test_invalid_drop_sizes_are_reported_in_one_line(small, options, said):
    assert said in run("plan", *without_options(small), *options, code=1).stderr


def test_a_running_build_is_not_reported_as_interrupted(small, monkeypatch):
    """Commands report it as running while it is between two shards, and as interrupted after it was interrupted."""
    write_slices(small.src, range(4, 30))
    publish, command, said = drafts.Drafts.publish, [], []

    def publish_and_look(self: drafts.Drafts, *how: object, **more: object) -> None:
        publish(self, *how, **more)
        if not said:
            outcome = subprocess.run(
                [sys.executable, "-c", "from pipeline.cli.main import main; main()", *command],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            said.append(outcome.stdout + outcome.stderr + (page.read_text() if page.exists() else ""))
            raise KeyboardInterrupt

    monkeypatch.setattr(drafts.Drafts, "publish", publish_and_look)
    page, cache = small.out.parent / "page.html", str(small.out)
    looks = ["plan", *map(str, without_options(small))], ["info", cache], ["report", cache, "--out", str(page)]
    for look in (*looks, ["gc", cache]):
        command[:] = look
        page.unlink(missing_ok=True)
        said.clear()
        run("build", *without_options(small), "--workers", 0, code=130)
        assert re.search(r"(build is running \(|build has finished \d of 4 shards: |: )process \d+ on ", said[0])
        assert "interrupted" not in said[0]
    assert "interrupted" in run("plan", *without_options(small), code=2).stdout
    assert "interrupted" in run("info", small.out).stdout
    assert "interrupted" in run("gc", small.out).stdout
    run("report", small.out, "--out", page)
    assert "A later build was interrupted after" in page.read_text()
