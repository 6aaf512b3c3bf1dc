"""Run every example on a small phantom, and all cells of the notebook."""

import math
import runpy
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
import torch

import pipeline
from phantom import dataset

FOLDER = Path(__file__).parents[2] / "examples"
SCRIPTS = sorted(FOLDER.glob("*.py"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    dataset.write(folder, 4, 0, lambda patient: None)
    out = folder / "cache.zarr"
    pipeline.build(folder / "dicoms", out, dataset="phantom", labels=folder / "labels.csv", sizes=[32])
    return out


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
@pytest.mark.filterwarnings("ignore")  # warnings of the frameworks about each other
def test_an_example_trains(
    script: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    monkeypatch.setattr(sys, "argv", [script.name, str(cache), "32"])
    runpy.run_path(str(script), run_name="__main__")
    assert math.isfinite(float(capsys.readouterr().out.strip().splitlines()[-1].split(": ")[-1]))
    lines = script.read_text().splitlines()
    assert len(lines) <= 40
    assert f"python examples/{script.name} cache.zarr" in lines[0]


def test_the_notebook_runs_from_dicom_to_a_figure_and_its_file_is_small() -> None:
    file = FOLDER / "dicom_to_figure.ipynb"
    notebook = nbformat.read(file, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(FOLDER.parent)}}).execute()
    *_, last = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [output for output in last.outputs if "image/png" in output.get("data", {})]
    assert file.stat().st_size < 100_000
