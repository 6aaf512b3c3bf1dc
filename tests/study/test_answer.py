"""Test answers made from probabilities: numbers, order, pooling, and UIDs shared by studies."""

from types import SimpleNamespace

import numpy as np
import pandas as pd

from training.scores.operating import Operating
from training.study.answer import make_answer, series_keys

CLASSES = ("bleed", "any")


def table(*lines: tuple[str, str, str, float]) -> pd.DataFrame:
    """Return a table from lines of patient, study, series and z_norm."""
    names = ["patient_id", "study_instance_uid", "series_instance_uid", "z_norm"]
    made = pd.DataFrame(lines, columns=names)
    return made.assign(sop_instance_uid=[f"1.{at}" for at in range(len(made))], frame=0, z_mm=made["z_norm"] * 100)


def answer(lines: pd.DataFrame, probabilities, warnings=None, operating=None):
    cache = SimpleNamespace(table=lines)
    return make_answer(
        cache, pd.DataFrame(probabilities, columns=list(CLASSES), dtype=float),
        operating=operating or {}, warnings=warnings or {}, left_out=pd.DataFrame(),
    )  # fmt: skip


def test_slices_are_numbered_from_foot_to_head_in_any_order_of_lines():
    lines = table(
        ("p", "1.5", "1.7", 1.0), ("p", "1.5", "1.6", 0.5), ("p", "1.5", "1.7", 0.0), ("p", "1.4", "1.9", 0.5)
    )
    found = answer(lines, [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6], [0.7, 0.8]])
    numbers = found.slices[["study", "series", "slice"]].to_numpy().tolist()
    assert numbers == [[1, 1, 1], [2, 1, 1], [2, 2, 1], [2, 2, 2]]
    assert found.slices["bleed_probability"].tolist() == [0.7, 0.3, 0.5, 0.1]
    assert found.lines.tolist() == [3, 1, 2, 0]
    assert found.studies["bleed_probability"].tolist() == [0.7, 0.5]
    assert found.slices["bleed_decision"].isna().all()


def test_shared_series_and_study_uids_are_distinguished_by_study_and_patient():
    lines = table(("p", "1.4", "1.9", 0.5), ("p", "1.5", "1.9", 0.5), ("q", "1.5", "1.9", 0.5))
    found = answer(lines, [[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]])
    assert found.series[["study", "series", "slices"]].to_numpy().tolist() == [[1, 1, 1], [2, 1, 1], [3, 1, 1]]
    assert found.studies["any_probability"].tolist() == [0.1, 0.2, 0.3]
    assert found.patients == 2


def test_a_series_with_a_warning_has_no_decision_and_does_not_count_in_its_study():
    lines = table(("p", "1.5", "1.6", 0.5), ("p", "1.5", "1.7", 0.5))
    operating = Operating(
        CLASSES, np.array([0.5, 0.5]), np.array([0.7, 0.7]), np.ones(2), np.zeros(2), {"bleed": "one kind only"}
    )
    warnings = {series_keys(lines)[0]: "not a head"}
    levels = dict.fromkeys(("slice", "series", "patient"), operating)
    found = answer(lines, [[0.9, 0.9], [0.2, 0.6]], warnings, levels)
    assert found.studies[["bleed_probability", "any_decision"]].to_numpy().tolist() == [[0.2, 1]]
    assert found.series["warning"].tolist() == ["not a head", ""]
    assert found.series["bleed_decision"].isna().tolist() == [True, False]
    assert found.undefined["patient"] == {"bleed": "one kind only"}
