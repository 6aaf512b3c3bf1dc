"""Test the choice of series in the report of a head."""

import numpy as np
import pandas as pd

from training.report.strips import choose_series
from training.scores.predictions import Predictions


def test_a_uid_shared_by_two_studies_stands_for_two_series():
    slices = pd.DataFrame(
        {
            "patient_id": ["P"] * 5 + ["Q"] * 2,
            "study_instance_uid": ["T", "U", "T", "U", "U", "T", "T"],
            "series_instance_uid": ["S"] * 7,
            "z_norm": [1, 0, 0, 1, 0.5, 1, 0],
        }
    )
    labels = np.array([[0.0], [1], [0], [1], [0], [0], [1]])
    chosen = choose_series(Predictions(slices, ("any",), labels, labels), 3)
    assert [lines.tolist() for lines in chosen] == [[1, 4, 3], [6, 5]]
