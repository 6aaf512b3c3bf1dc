"""Predictions for studies by one command: from DICOM files to a folder with tables, a page, and DICOM objects."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import StudyError
from training.run.runs import open_run
from training.study.building import begin_build, end, finish_build, make_order
from training.study.scratch import needs_room, temporary_folder
from training.study.sources import Limits, gather
from training.study.writing import check_out, complete_folder, write_tables

if TYPE_CHECKING:
    from training.study.answer import Answer

DICOM_EXTRA = "pip install 'ich-cache[dicom-out]'"


@dataclass(frozen=True)
class AnswerOptions:
    """The options of an answer.

    Attributes:
        sr: whether to write a DICOM structured report per study.
        heatmap: whether to compute heat maps, for the page and as DICOM parametric maps.
        identifiers: whether to show UIDs and file names on the page and in the JSON.
        tta: whether to average over mirror images and small rotations.
    """

    sr: bool = False
    heatmap: bool = False
    identifiers: bool = False
    tta: bool = False


def predict_study(run_path: Path, given: Sequence[Path], out: Path, wanted: AnswerOptions, device: str) -> "Answer":
    """Predict the studies in DICOM files with a run's best weights, and write the answer to a folder.

    Args:
        run_path: the run's folder.
        given: folders, zip archives and DICOM files.
        out: folder to create.
        wanted: the options.
        device: as for --device.

    Raises:
        TrainingError: if there is no slice to predict, or a requirement is missing; no folder is left then.
    """
    run = open_run(run_path)
    check_out(out)
    if wanted.sr or wanted.heatmap:
        check_dicom_out()
    with temporary_folder() as work, complete_folder(out) as folder:
        with needs_room():
            (unpacked := Path(work) / "source").mkdir()
            source = gather(given, unpacked, Limits())
            order = make_order(run, source, Path(work), identifiers=wanted.identifiers)
        build = begin_build(order)
        try:
            # Importing torch takes seconds, during which the pipeline reads the files.
            from training.study.model import answer, describe, heat_maps, heat_of, images_of, open_model

            model = open_model(run, device, tta=wanted.tta)
            cache_path = finish_build(build)
        finally:
            end(build)
        from training.study.document import to_document
        from training.study.page import study_page

        found, cache = answer(model, cache_path)
        images = images_of(found, cache, run.config.size_px)
        heat = heat_of(heat_maps(run), run, found, cache) if wanted.heatmap else None
        document = to_document(found, describe(model), identifiers=wanted.identifiers)
        write_tables(folder, found, document)
        (folder / "report.html").write_text(study_page(document, images, heat), encoding="utf-8")
        if wanted.sr or heat is not None:
            from training.study.dicom_out import open_sources, write_heat_maps, write_replaced_uids, write_reports

            with open_sources(source, found) as sources:
                if wanted.sr:
                    write_reports(folder, sources, found, document["run"])
                if heat is not None:
                    write_heat_maps(folder, sources, found, heat, document["run"])
            write_replaced_uids(folder, found)
        return found


def check_dicom_out() -> None:
    """Raise a StudyError if highdicom is missing, before anything is computed."""
    if find_spec("highdicom") is None:
        raise StudyError(f"--sr and --heatmap need highdicom, which is not installed; run: {DICOM_EXTRA}")
