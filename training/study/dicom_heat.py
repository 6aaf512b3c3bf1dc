"""The heat maps of an answer as DICOM parametric maps, aligned with their slices."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import highdicom as hd
import numpy as np
import pandas as pd
import pydicom
from PIL import Image
from pydicom.sr.codedict import codes

from training.errors import StudyError
from training.study.answer import Answer
from training.study.dicom_sr import MANUFACTURER
from training.study.model import Heat

SERIES_NUMBER = 9902
DESCRIPTION = "Evidence of the likeliest class: above 0 raised, below 0 lowered"


def parametric_map(
    answer: Answer,
    place: tuple[int, int],
    sources: Mapping[str, pydicom.Dataset],
    heat: Heat,
    model: Mapping[str, Any],
) -> hd.pm.ParametricMap:
    """Return the heat maps of one series, float32 in [-1, 1], with the size and position of its slices.

    Args:
        answer: the answer.
        place: number of the study, and of the series in it.
        sources: SOP Instance UID -> header.
        heat: heat maps of all slices of the answer.
        model: description of the model, from `describe`.

    Raises:
        StudyError: if slices differ in size, are not exactly the frames of one file, or lack a required attribute.
    """
    study, series = place
    chosen = ((answer.slices["study"] == study) & (answer.slices["series"] == series)).to_numpy().nonzero()[0]
    lines = answer.slices.iloc[chosen]
    datasets = [sources[uid] for uid in dict.fromkeys(lines["sop_instance_uid"])]
    sizes = {(dataset.Rows, dataset.Columns) for dataset in datasets}
    frames = sum(int(dataset.get("NumberOfFrames") or 1) for dataset in datasets)
    if len(sizes) > 1 or (lines["frame"].any() and (len(datasets) > 1 or frames != len(lines))):
        raise StudyError(
            f"study {study}, series {series}: slices differ in size, or are not exactly the frames of one file, so no "
            "parametric map can refer to them; leave --heatmap out"
        )
    if len(datasets) == 1:  # the frames of the map must be in the order of the file
        chosen = chosen[np.argsort(lines["frame"].to_numpy(), kind="stable")]
    rows, columns = sizes.pop()
    _fill_thickness(datasets, lines["z_mm"])
    maps = np.stack([stretch(one, rows, columns) for one in heat.maps[chosen]])
    mapping = hd.pm.RealWorldValueMapping(
        lut_label="HEAT",
        lut_explanation=DESCRIPTION,
        unit=codes.UCUM.NoUnits,
        value_range=(-1.0, 1.0),
        slope=1.0,
        intercept=0.0,
    )
    try:
        made = hd.pm.ParametricMap(
            source_images=datasets, pixel_array=maps, series_instance_uid=hd.UID(), series_number=SERIES_NUMBER,
            sop_instance_uid=hd.UID(), instance_number=1, manufacturer=MANUFACTURER,
            manufacturer_model_name=str(model["name"])[:64], software_versions=version("ich-cache"),
            device_serial_number="none", contains_recognizable_visual_features=False,
            real_world_value_mappings=[mapping], window_center=0.0, window_width=2.0, content_label="HEAT",
            content_description=DESCRIPTION,
        )  # fmt: skip
    except (AttributeError, KeyError, ValueError) as error:
        raise StudyError(
            f"study {study}, series {series}: a file lacks an attribute that a parametric map requires "
            f"({_name_of(error)}); leave --heatmap out"
        ) from error
    made.Laterality = ""  # required without BodyPartExamined; empty, as the head is not a paired body part
    return made


def _name_of(error: Exception) -> str:
    """Return the name of the missing attribute if known; the message of an error could quote a value."""
    return str(getattr(error, "name", "") or type(error).__name__)


def _fill_thickness(datasets: Sequence[pydicom.Dataset], z_mm: pd.Series) -> None:
    """Set missing slice thicknesses, as in RSNA 2019, to the median distance of slices, because a map requires one."""
    distance = np.median(np.diff(np.sort(z_mm))) if len(z_mm) > 1 else np.nan
    for dataset in datasets:
        if not dataset.get("SliceThickness") and "PerFrameFunctionalGroupsSequence" not in dataset and distance > 0:
            dataset.SliceThickness = f"{distance:.6g}"


def stretch(heat: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Return heat, (S, S) float32, resized to the original size of a slice, (rows, columns) float32."""
    resized = Image.fromarray(heat.astype(np.float32)).resize((columns, rows), Image.Resampling.BILINEAR)
    return np.clip(np.asarray(resized, np.float32), -1, 1)
