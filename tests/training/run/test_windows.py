"""Train on caches with one, two and four windows by the command line, through to the exported file."""

import json

import numpy as np
import onnx
import pytest

from testkit.fake_cache import write_cache
from tests.training.run.test_train_cli import EXPORTS_QUICKLY, QUICK, train

WINDOWS = (("brain", 40.0, 80.0), ("subdural", 50.0, 130.0), ("bone", 600.0, 2800.0), ("stroke", 32.0, 8.0))


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_any_number_of_windows_can_be_trained_evaluated_and_exported_by_name(tmp_path, channels):
    cache = write_cache(tmp_path / "c.zarr", patients=8, slices=3, windows=WINDOWS[:channels]).path
    run = tmp_path / "run"
    result = train("run", "--cache", cache, "--out", run, *QUICK, *EXPORTS_QUICKLY)
    assert result.exit_code == 0, result.output
    data = json.loads((run / "settings.json").read_text())["data"]
    assert len(data["mean"]) == len(data["std"]) == channels
    assert train("run", "--resume", run, "--device", "cpu").exit_code == 0
    assert train("evaluate", "--run", run, "--tta", "--device", "cpu").exit_code == 0
    assert train("export", "--run", run).exit_code == 0
    (images, _) = onnx.load(run / "model.onnx").graph.input
    assert images.type.tensor_type.shape.dim[1].dim_value == channels
    report, card = (run / "report.html").read_text(), (run / "model_card.md").read_text()
    names = [name for name, *_ in WINDOWS[:channels]]
    assert ("Window: brain." if channels == 1 else f"Windows from left to right: {', '.join(names)}.") in report
    assert f"windows {', '.join(names)}," in card
    np.testing.assert_array_less(0, data["std"])
