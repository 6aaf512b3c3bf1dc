"""Test `train predict --dicom`: pixels as in a build, complete tables, warnings, and no patient names."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from testkit.study import SIZE_PX, write_phantom
from testkit.tiny_run import task
from tests.study.conftest import Answered, predict
from training.data.cache import open_cache
from training.report.palette import colours
from training.report.pictures import read_images
from training.run.apply import run_predictions
from training.run.runs import Run
from training.scores.evaluation import read_operating

PIPELINE = Path(sys.executable).with_name("pipeline")
CLASSES = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")


@pytest.fixture(scope="module")
def built(answered: Answered, tmp_path_factory: pytest.TempPathFactory):
    """The same real study, built by the pipeline with its own catalog."""
    out = tmp_path_factory.mktemp("built") / "cache.zarr"
    options = ("--size", SIZE_PX, "--workers", 0, "--dataset", "rsna")
    command = [PIPELINE, "build", "--src", answered.given[0], "--out", out, *options]
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return open_cache(out)


def of_study(answered: Answered, built, name: str) -> pd.DataFrame:
    table = pd.read_csv(answered.out / f"{name}.csv")
    return table[table["study_instance_uid"] == built.table["study_instance_uid"][0]].reset_index(drop=True)


def test_the_command_prints_a_summary_and_the_path(answered):
    assert answered.said.exit_code == 0, answered.said.output + answered.said.stderr
    assert answered.said.stdout.count("slices; epidural") == 5
    assert "the files belong to 4 patients" in answered.said.stderr
    assert "does not look like a head" in answered.said.stderr
    assert str(answered.out / "report.html") in answered.said.stdout


def test_probabilities_and_positions_are_those_of_a_build(answered, built):
    slices = of_study(answered, built, "slices")
    order = np.argsort(built.table["z_norm"].to_numpy(), kind="stable")
    for column in ("sop_instance_uid", "z_mm", "z_norm"):
        assert slices[column].tolist() == built.table[column].to_numpy()[order].tolist()
    _, probabilities = run_predictions(task(answered.run, built), np.arange(28), tta=False)
    found = slices[[f"{name}_probability" for name in CLASSES]].to_numpy()
    np.testing.assert_allclose(found, probabilities[order], rtol=0, atol=1e-6)  # other batches give other last bits


def test_decisions_follow_the_thresholds_of_each_level(answered, built):
    operating = read_operating(answered.run.path)
    for name, level in (("slices", "slice"), ("series", "series"), ("studies", "patient")):
        table, of = of_study(answered, built, name), operating[level]
        raw = table[[f"{name}_probability" for name in CLASSES]].to_numpy()
        decided = table[[f"{name}_decision" for name in CLASSES]].to_numpy()
        assert (decided == (raw >= of.thresholds)).all()
        assert np.array_equal(table[[f"{name}_calibrated" for name in CLASSES]].to_numpy(), of.calibrate(raw))
    slices, studies = of_study(answered, built, "slices"), of_study(answered, built, "studies")
    assert studies["any_probability"][0] == slices["any_probability"].max()


def test_a_chest_has_a_warning_and_no_decision(answered):
    series = pd.read_csv(answered.out / "series.csv", keep_default_na=False)
    marked = series[series["warning"] != ""]
    assert marked["slices"].tolist() == [3]
    assert (marked["any_decision"] == "").all()
    assert (series[series["warning"] == ""]["any_decision"] != "").all()


def test_left_out_files_have_a_reason(answered):
    rejects = pd.read_csv(answered.out / "rejects.csv")
    codes = rejects["code"].value_counts()
    assert codes["truncated"] == 1
    assert codes["localizer"] >= 1
    document = json.loads((answered.out / "answer.json").read_text())
    assert sum(of["files"] for of in document["left_out"]) == len(rejects)


def test_no_patient_is_named_on_the_page_in_the_json_or_in_the_output(answered):
    slices = pd.read_csv(answered.out / "slices.csv")
    words = {"SECRET", "QMNx85rKkkg", "HEAD PLASTIC", *slices["sop_instance_uid"], *slices["study_instance_uid"]}
    texts = [(answered.out / name).read_text() for name in ("report.html", "answer.json")]
    for text in (*texts, answered.said.stdout, answered.said.stderr):
        assert not [word for word in words if word in text]


def test_other_windows_and_identifiers(run: Run, tmp_path: Path):
    """The cache has the run's windows, not those of the catalog; a run without thresholds has no decisions."""
    other = tmp_path / "run"
    other.mkdir()
    for name in ("weights.safetensors", "split.csv"):
        (other / name).write_bytes((run.path / name).read_bytes())
    settings = json.loads((run.path / "settings.json").read_text())
    settings["data"]["windows"] = [["stroke", 35.0, 35.0], ["blood", 60.0, 120.0], ["soft", 30.0, 350.0]]
    (other / "settings.json").write_text(json.dumps(settings))
    files = write_phantom(tmp_path / "dicom", keep=2, valid=False)
    said = predict(other, (tmp_path / "dicom",), tmp_path / "answer", "--identifiers")
    assert said.exit_code == 0, said.output + said.stderr
    document = json.loads((tmp_path / "answer" / "answer.json").read_text())
    assert [of["name"] for of in document["run"]["windows"]] == ["stroke", "blood", "soft"]
    assert document["slices"][0]["sop_instance_uid"] in {file.stem for file in files}
    assert "train evaluate --run" in document["thresholds_from"]
    assert document["studies"][0]["classes"]["any"]["decision"] is None
    page = (tmp_path / "answer" / "report.html").read_text()
    assert document["slices"][0]["sop_instance_uid"] in page
    assert "train evaluate --run" in page


def test_the_temporary_cache_equals_a_build_bit_for_bit(answered, built, tmp_path):
    from training.study.building import begin_build, finish_build, make_order

    cache = open_cache(finish_build(begin_build(make_order(answered.run, answered.given[0], tmp_path))))
    mine, theirs = (
        read_images(of, SIZE_PX, of.table.sort_values("sop_instance_uid")["row"].to_numpy()) for of in (cache, built)
    )
    assert np.array_equal(mine, theirs)


def test_the_page_of_a_single_slice_shows_its_probabilities_in_the_colours_of_the_report(run: Run, tmp_path: Path):
    assert predict(run.path, (write_phantom(tmp_path / "phantom")[0],), tmp_path / "answer").exit_code == 0
    page = (tmp_path / "answer" / "report.html").read_text()
    assert "The whole study, 1 slice; thresholds" in page
    sets = r"\(\d+ patients in the training set, \d+ patients? in the validation set, \d+ patients? in the test set\)"
    assert re.search(sets, page)
    for name, colour in colours(CLASSES).items():
        assert f'<i style="background: {colour}"></i>{name}<' in page
        assert re.search(rf'<circle [^>]*fill="{colour}"/>', page)
