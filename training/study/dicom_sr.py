"""The DICOM structured report of an answer, with every probability of a study."""

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

from training.study.answer import KINDS, Answer

MANUFACTURER, SCHEME = "ich-cache", "99ICHCACHE"
SERIES_NUMBER = 9901  # above those of scanners
NO_UNITS = codes.UCUM.NoUnits
PROBABILITY = CodedConcept("PROBABILITY", SCHEME, "Probability of the finding, as predicted")
CALIBRATED = CodedConcept("CALIBRATED", SCHEME, "Probability of the finding, calibrated")
DECISION = CodedConcept("DECISION", SCHEME, "Decision at the threshold")
THRESHOLD = CodedConcept("THRESHOLD", SCHEME, "Threshold of the probability")
DECIDED = {1: codes.SCT.Positive, 0: codes.SCT.Negative}  # CID 250
RSNA_CLASSES = {"epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any"}
# From DICOM's context groups, except the two kinds of haemorrhage, for which there is none.
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
    """Return the codes of a class's finding and of its sites.

    Classes of RSNA 2019 have public codes as far as they exist. All others have a private code, because a class of the
    same name in another set of classes may have another meaning.
    """
    own = CodedConcept(f"CLASS_{name.upper()}"[:16], SCHEME, name[:64])
    if set(classes) != RSNA_CLASSES:
        return own, None
    return FINDINGS.get(name, own), [FindingSite(SITES[name])] if name in SITES else None


def structured_report(
    answer: Answer, study: int, datasets: Sequence[pydicom.Dataset], model: Mapping[str, Any]
) -> hd.sr.Comprehensive3DSR:
    """Return the Comprehensive 3D SR of one study, with a measurement group per class of study, series and slice.

    Args:
        answer: the answer.
        study: number of the study.
        datasets: headers of the study's files, in the order of its slices, from `study_sources`.
        model: description of the model, from `describe`.

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
        series_description="Research only: probabilities per slice",
    )


def _groups(
    answer: Answer, study: int, by_uid: Mapping[str, pydicom.Dataset], model: Mapping[str, Any]
) -> Iterator[MeasurementsAndQualitativeEvaluations]:
    algorithm = AlgorithmIdentification(
        name=f"{MANUFACTURER}: {model['model']}, run {model['name']}"[:64],
        version=version("ich-cache"),
        parameters=[f"commit of the training cache: {model['commit']}", "research only, not a medical device"],
    )
    for level in ("studies", "series", "slices"):
        table = answer.table(level)
        for record in table[table["study"] == study].to_dict("records"):
            images = [_source(record, by_uid)] if level == "slices" else None
            for name in answer.classes:
                if np.isfinite(record[f"{name}_probability"]):
                    finding = finding_of(name, answer.classes)
                    values = {kind: record[f"{name}_{kind}"] for kind in KINDS}
                    yield _group(tracking_name(level, record, name), finding, values, algorithm, images)


def _source(record: Mapping[Hashable, Any], by_uid: Mapping[str, pydicom.Dataset]) -> SourceImageForMeasurementGroup:
    dataset = by_uid[record["sop_instance_uid"]]
    frames = [int(record["frame"])] if record["frame"] else None
    return SourceImageForMeasurementGroup(
        referenced_sop_class_uid=str(dataset.SOPClassUID),
        referenced_sop_instance_uid=str(dataset.SOPInstanceUID),
        referenced_frame_numbers=frames,
    )


def tracking_name(level: str, record: Mapping[Hashable, Any], name: str) -> str:
    """Return the tracking identifier of a measurement group, which identifies its line and class in the tables."""
    numbers = [str(record[of]) for of in ("study", "series", "slice") if of in record]
    return f"{level} {'.'.join(numbers)} {name}"


def _group(
    identifier: str,
    finding: tuple[CodedConcept, list[FindingSite] | None],
    values: Mapping[str, Any],
    algorithm: AlgorithmIdentification,
    images: list[SourceImageForMeasurementGroup] | None,
) -> MeasurementsAndQualitativeEvaluations:
    named = [(PROBABILITY, "probability"), (CALIBRATED, "calibrated"), (THRESHOLD, "threshold")]
    measured = [Measurement(of, float(values[kind]), NO_UNITS) for of, kind in named if np.isfinite(values[kind])]
    decision = values["decision"]
    known = decision is not None and decision == decision and str(decision) != "<NA>"
    return MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(identifier=identifier, uid=hd.UID()),
        finding_type=finding[0],
        finding_sites=finding[1],
        algorithm_id=algorithm,
        measurements=measured,
        qualitative_evaluations=[QualitativeEvaluation(DECISION, DECIDED[int(decision)])] if known else None,
        source_images=images,
    )
