"""The numbers in the report of a cache agree with independent counts, and it has no patient data."""

import csv
import itertools
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from pydicom import dcmread
from pydicom.dataset import Dataset

from pipeline.report.scans import CODINGS
from pipeline.tables.tables import REJECTS
from testkit.report_page import Page, numbers
from testkit.report_source import EXPLICIT, IMPLICIT, MANUFACTURERS, SERIES, dataset_of, encode, tilted, write_source
from testkit.small import Small, run, write

DOCS = Path(__file__).parents[3] / "docs"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Small:
    folder = tmp_path_factory.mktemp("report")
    small = Small(folder, sizes=(8, 12), rows=4)
    small.labels = write_source(small.src)
    small.build("--max-rejects", 100)
    return small


@pytest.fixture(scope="module")
def slices(cache: Small) -> list[Dataset]:
    """Return the files that must give slices, read with pydicom."""
    return [dcmread(path) for path in sorted((cache.src / "good").iterdir())]


@pytest.fixture(scope="module")
def text(cache: Small) -> str:
    return report(cache)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def report(cache: Small) -> str:
    out = cache.folder / "report.html"
    run("report", cache.out, "--out", out)
    return out.read_text("utf-8")


def counted(slices: list[Dataset]) -> dict[str, dict[str, int]]:
    """Return caption -> first cell of each row -> number of slices, counted with pydicom."""

    def count(value) -> dict[str, int]:
        return dict(Counter(map(value, slices)))

    def stored(of: Dataset) -> str:
        kind = "signed" if of.PixelRepresentation else "unsigned"
        return f"{of.BitsStored} bits, {kind}\nslope {of.RescaleSlope:g}, intercept {of.RescaleIntercept:g}"

    return {
        "Transfer syntax": count(lambda of: f"{CODINGS[syntax(of)]}\n{syntax(of)}"),
        "Manufacturers": count(lambda of: MANUFACTURERS[of.Manufacturer]),
        "Size of the frames": count(lambda of: f"{of.Rows} x {of.Columns}"),
        "Stored values": count(stored),
    }


def syntax(of: Dataset) -> str:
    return str(of.file_meta.TransferSyntaxUID)


def test_counts_agree_with_pydicom(page: Page, slices: list[Dataset]) -> None:
    for caption, wanted in counted(slices).items():
        found = page.table(caption)
        assert numbers(found) == wanted
        assert sum(float(cells[2].removesuffix(" %")) for cells in found.values()) == pytest.approx(100, abs=0.3)
    special = numbers(page.table("Special slices"))
    assert list(special.values()) == [1, sum(not of.PatientID for of in slices)]
    series = {of.SeriesInstanceUID for of in slices if of.Manufacturer == "SIEMENS"}
    assert page.table("Manufacturers")["Siemens"][1] == str(len(series))


def test_key_numbers_and_file_counts(page: Page, cache: Small, slices: list[Dataset]) -> None:
    assert page.tiles["slices"] == str(len(slices))
    assert page.tiles["series"] == str(len({of.SeriesInstanceUID for of in slices}))
    assert page.tiles["studies"] == str(len({of.StudyInstanceUID for of in slices}))
    assert page.tiles["patients"] == str(len({of.PatientID or of.StudyInstanceUID for of in slices}))
    files = numbers(page.table("Every file of the source"))
    assert files.pop("all files") == sum(path.is_file() for path in cache.src.rglob("*")) == sum(files.values())
    assert files == {
        "gave slices": len(slices),
        "duplicates of a slice": 1,
        "DICOM, but not a CT slice": 1,
        "failed": 5,
        "not DICOM": 1,
    }


def test_special_series_are_counted(page: Page) -> None:
    notes = {name.split("\n")[0]: number for name, number in numbers(page.table("Special series")).items()}
    assert notes == {
        "uneven spacing": 1,
        "gaps": 1,
        "repeated positions": 1,
        "mixed orientations": 1,
        "two tilts": 1,
        "rotated in the plane": 1,
        "one position only": 1,
    }
    assert [*numbers(page.table("Source of the position")).values()] == [sum(map(len, SERIES.values())), 0, 2, 0]
    assert any(words.endswith("of another slice of their series: 1.") for words in page.words)


def test_prevalence_by_slice_and_patient(page: Page, cache: Small, slices: list[Dataset]) -> None:
    labels = cache.labels or {}
    known = {of.SOPInstanceUID: of.PatientID or of.StudyInstanceUID for of in slices if of.SOPInstanceUID in labels}
    positive = {uid: patient for uid, patient in known.items() if labels[uid]}
    by_slice, by_patient = (
        f"{len(positive)} / {len(known)}",
        f"{len(set(positive.values()))} / {len(set(known.values()))}",
    )
    assert 0 < len(positive) < len(known) < len(slices)
    for klass in ("bleed", "any"):
        cells = page.table("Labelled slices")[klass]
        assert (cells[0], cells[2]) == (by_slice, by_patient)
        assert float(cells[1].removesuffix(" %")) == pytest.approx(100 * len(positive) / len(known), abs=0.051)
    assert [*numbers(page.table("Labels and slices that do not match")).values()] == [len(slices) - len(known), 1, 0]


def test_rejects_by_code_with_examples(page: Page, cache: Small) -> None:
    with (cache.out / "rejects.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    rows = page.table("Files and frames that gave no slice")
    assert {name.split("\n")[0]: n for name, n in numbers(rows).items()} == Counter(line["code"] for line in lines)
    meaning = {name.split("\n")[0]: cells[1].split("\n") for name, cells in rows.items()}
    assert meaning["truncated"] == [
        REJECTS["truncated"][1],
        "cut/a<b>&amp;.dcm",
        r"cut/b\xe2\x80\xae.dcm",
        "cut/c.dcm",
        "...",
    ]
    assert meaning["localizer"] == [REJECTS["localizer"][1], "scout"]


def test_storage_agrees_with_files_on_disk(page: Page, cache: Small, slices: list[Dataset]) -> None:
    attributes = zarr.open_group(cache.out, mode="r").attrs
    rows = page.table("Images by size")
    for size, path in attributes["sizes"].items():
        size_on_disk = sum(file.stat().st_size for file in (cache.out / path).rglob("c/*/0/0/0"))
        cells = rows[f"{size} x {size} px\n{path}"]
        stored = len(slices) + 1  # including the duplicate
        assert cells[0] == "lz4, level 5"
        assert cells[1] == f"{size_on_disk / stored / 1000:.1f} kB"
        raw = 3 * int(size) ** 2
        assert cells[3] == f"{100 * size_on_disk / stored / raw:.1f} %"


def test_dead_rows_are_counted(tmp_path: Path) -> None:
    small = Small(tmp_path, rows=4)
    small.labels = write_source(small.src)
    small.build("--max-rejects", 100)
    for series, number in itertools.product((0, 1, 2), (0, 2, 3)):
        changed = dataset_of(series, number, *SERIES[series][number], (16, 16))
        changed.RescaleIntercept, changed.Manufacturer = -900 - series, list(MANUFACTURERS)[(series + 1) % 3]
        write(small.src / "good" / f"{series}_{number}", encode(changed, IMPLICIT), 1_600_000_000_000_000_000)
    small.build("--max-rejects", 100)
    page = Page(report(small))
    live = int(page.tiles["slices"])
    # The old rows of the nine files, and that of the duplicate.
    words = (
        f"{live + 10} rows are stored, and {live} of them are in the table. "
        f"The other {100 * 10 / (live + 10):.1f} % are dead"
    )
    assert any(words in found for found in page.words)
    for caption, wanted in counted([dcmread(path) for path in (small.src / "good").iterdir()]).items():
        assert numbers(page.table(caption)) == wanted
    assert len(page.table("Kept commits")) == 2


def test_pictures_are_the_pixels_of_the_cache(page: Page, cache: Small) -> None:
    group = zarr.open_group(cache.out, mode="r")
    table = pd.read_csv(cache.out / "metadata.csv")
    stored = {image.tobytes() for image in group[group.attrs["sizes"]["8"]].oindex[np.sort(table["row"])]}
    assert len(page.pictures) > 12
    for picture in page.pictures:
        assert picture.shape == (24, 8)  # three windows, one below the other
        assert picture.tobytes() in stored


def test_the_report_has_no_patient_data(text: str, slices: list[Dataset]) -> None:
    assert "mark" not in text.lower()
    assert "19610412" not in text
    for of in slices:
        for uid in (of.SOPInstanceUID, of.SeriesInstanceUID, of.StudyInstanceUID):
            assert not re.search(rf"{re.escape(uid)}(?![0-9.])", re.sub(r"data:[^\"]*", "", text))


def test_the_page_is_self_contained(text: str) -> None:
    addresses = re.findall(r'(?:src|href)="([^"]{0,40})', text)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert not re.search(r"<script|@import|url\(|https?:", text)
    anchors = set(re.findall(r'href="#([^"]+)"', text))
    assert anchors == set(re.findall(r'<section id="([^"]+)"', text))


def test_cache_without_labels_and_without_rejects(tmp_path: Path) -> None:
    small = Small(tmp_path)
    write(small.src / "one", encode(dataset_of(0, 0, tilted(0), 0, (16, 16)), EXPLICIT))
    small.build()
    page = Page(report(small))
    assert any(words.startswith("No slice has a label") for words in page.words)
    assert any(words.startswith("Every file gave a slice") for words in page.words)
    assert len(page.pictures) == 1


def test_damage_and_an_invalid_target_are_reported_in_one_line(tmp_path: Path) -> None:
    small = Small(tmp_path)
    write(small.src / "one", encode(dataset_of(0, 0, tilted(0), 0, (16, 16)), EXPLICIT))
    assert "no such cache" in run("report", small.out, "--out", tmp_path / "r.html", code=1).output
    small.build()
    found = run("report", small.out, "--out", tmp_path, code=1)
    assert found.stderr.count("\n") == 1
    assert "--out" in found.stderr
    for pattern in ("images/*/c/0/0/0/0", "tables/*.csv", ".pipeline/rejects/*.csv", ".pipeline/shards/0.json"):
        (file,) = small.out.glob(pattern)
        intact = file.read_bytes()
        for damaged in (intact[:5] + bytes([intact[5] ^ 1]) + intact[6:], None):
            file.unlink() if damaged is None else file.write_bytes(damaged)
            found = run("report", small.out, "--out", tmp_path / "r.html", code=1)
            assert found.stderr.count("\n") == 1
            assert file.name in found.stderr
            assert "verify --repair" in found.stderr
        file.write_bytes(intact)
    assert not (tmp_path / "r.html").exists()


def test_the_documentation_lists_all_reject_codes_and_their_descriptions() -> None:
    text = (DOCS / "accepted_files.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \| (\w+) \| (.+) \|$", text, re.MULTILINE)
    assert {code: (kind, sentence) for code, kind, sentence in listed} == REJECTS
