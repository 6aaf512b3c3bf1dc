"""Make an answer's DICOM structured report: every probability of a study, in a form that others read."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    DeviceObserverIdentifyingAttributes,
    FindingSite,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    SourceImageForMeasurementGroup,
    TrackingIdentifier,
)
from pydicom.sr.codedict import codes

from training.study.answer import Answer

MANUFACTURER, SCHEME = "ich-cache", "99ICHCACHE"
SERIES_NUMBER = 9901  # above those that scanners give
NO_UNITS = codes.UCUM.NoUnits
PROBABILITY = CodedConcept("PROBABILITY", SCHEME, "Probability of the finding, as predicted")
CALIBRATED = CodedConcept("CALIBRATED", SCHEME, "Probability of the finding, calibrated")
DECISION = CodedConcept("DECISION", SCHEME, "Decision at the threshold")
THRESHOLD = CodedConcept("THRESHOLD", SCHEME, "Threshold of the probability")
DECIDED = {1: codes.SCT.Positive, 0: codes.SCT.Negative}  # CID 250
RSNA_CLASSES = {"epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"}
# Of DICOM's own context groups, but for the two that name a kind of bleeding: those have no group.
# Source: SNOMED CT, 274100004 |Cerebral hemorrhage|, 21454007 |Subarachnoid intracranial hemorrhage|.
FINDINGS = {
    "any": codes.SCT.IntracranialHemorrhage,
    "intraparenchymal": CodedConcept("274100004", "SCT", "Cerebral hemorrhage"),
    "subarachnoid": CodedConcept("21454007", "SCT", "Subarachnoid intracranial hemorrhage"),
}
SITES = {
    "intraparenchymal": codes.SCT.Brain,
    "intraventricular": codes.SCT.BrainVentricle,
    "subarachnoid": codes.SCT.CranialSubarachnoidSpace,
}


def finding_of(name: str, classes: Sequence[str]) -> tuple[CodedConcept, list[FindingSite] | None]:
    """Return what a class finds, and where.

    The classes of RSNA 2019 have public codes where we know of one. All others have a code of our own: a class of
    the same name among other classes may mean anything.
    """
    own = CodedConcept(f"CLASS_{name.upper()}"[:16], SCHEME, name[:64])
    if set(classes) != RSNA_CLASSES:
        return own, None
    return FINDINGS.get(name, own), [FindingSite(SITES[name])] if name in SITES else None


def structured_report(
    answer: Answer, study: int, datasets: Sequence[pydicom.Dataset], model: Mapping[str, Any]
) -> hd.sr.Comprehensive3DSR:
    """Return the Comprehensive 3D SR of one study: a measurement group for each class of study, series and slice.

    Args:
        datasets: headers of the study's files, in the order of its slices, as `study_sources` gives them.
        model: as `describe` gives it.

    Source: DICOM PS3.16, TID 1500 (Measurement Report), TID 1501.
    """
    lines = answer.slices[answer.slices["study"] == study]
    by_uid = dict(zip(dict.fromkeys(lines["sop_instance_uid"]), datasets, strict=True))
    groups = list(_groups(answer, study, by_uid, model))
    report = MeasurementReport(
        observation_context=ObservationContext(
            observer_device_context=ObserverContext(
                codes.DCM.Device,
                DeviceObserverIdentifyingAttributes(
                    uid=hd.UID(), manufacturer_name=MANUFACTURER, model_name=str(model["name"])[:64],
                ),
            )
        ),
        procedure_reported=codes.SCT.ComputedTomographyOfHead,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )  # fmt: skip
    return hd.sr.Comprehensive3DSR(
        evidence=list(datasets),
        content=report,
        series_number=SERIES_NUMBER,
        series_instance_uid=hd.UID(),
        sop_instance_uid=hd.UID(),
        instance_number=1,
        manufacturer=MANUFACTURER,
        is_complete=True,
        series_description="Research only: probabilities by slice",
    )


def _groups(
    answer: Answer, study: int, by_uid: Mapping[str, pydicom.Dataset], model: Mapping[str, Any]
) -> Iterator[MeasurementsAndQualitativeEvaluations]:
    algorithm = AlgorithmIdentification(
        name=f"{MANUFACTURER}: {model['model']}, run {model['name']}"[:64],
        version=version("ich-cache"),
        parameters=[f"commit of the training cache: {model['commit']}", "research only, no medical device"],
    )
    for level in ("studies", "series", "slices"):
        table = answer.table(level)
        for record in table[table["study"] == study].to_dict("records"):
            images = [_source(record, by_uid)] if level == "slices" else None
            for name in answer.classes:
                if np.isfinite(record[f"{name}_probability"]):
                    finding = finding_of(name, answer.classes)
                    yield _group(record, level, name, finding=finding, algorithm=algorithm, images=images)


def _source(record: Mapping[Hashable, Any], by_uid: Mapping[str, pydicom.Dataset]) -> SourceImageForMeasurementGroup:
    dataset = by_uid[record["sop_instance_uid"]]
    frames = [int(record["frame"])] if record["frame"] else None
    return SourceImageForMeasurementGroup(
        referenced_sop_class_uid=str(dataset.SOPClassUID),
        referenced_sop_instance_uid=str(dataset.SOPInstanceUID),
        referenced_frame_numbers=frames,
    )


def tracking_name(level: str, record: Mapping[Hashable, Any], name: str) -> str:
    """Return what a measurement group is called, by which its probability is found again."""
    numbers = [str(record[of]) for of in ("study", "series", "slice") if of in record]
    return f"{level} {'.'.join(numbers)} {name}"


def _group(
    record: Mapping[Hashable, Any],
    level: str,
    name: str,
    *,
    finding: tuple[CodedConcept, list[FindingSite] | None],
    algorithm: AlgorithmIdentification,
    images: list[SourceImageForMeasurementGroup] | None,
) -> MeasurementsAndQualitativeEvaluations:
    values = [(PROBABILITY, "probability"), (CALIBRATED, "calibrated"), (THRESHOLD, "threshold")]
    measured = [
        Measurement(of, float(record[f"{name}_{kind}"]), NO_UNITS)
        for of, kind in values
        if np.isfinite(record[f"{name}_{kind}"])
    ]
    decision = record[f"{name}_decision"]
    known = decision is not None and decision == decision and str(decision) != "<NA>"
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(identifier=tracking_name(level, record, name), uid=hd.UID()),
        finding_type=finding[0],
        finding_sites=finding[1],
        algorithm_id=algorithm,
        measurements=measured,
        qualitative_evaluations=[QualitativeEvaluation(DECISION, DECIDED[int(decision)])] if known else None,
        source_images=images,
    )
