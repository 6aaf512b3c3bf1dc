"""The part of `train predict` that predicts DICOM files."""

from pathlib import Path

import click

from training.study.command import AnswerOptions, predict_study
from training.words import counted


def predict_dicom(
    run_path: Path, given: tuple[Path, ...], out: Path, device: str, *, sr: bool, heatmap: bool, identifiers: bool,
    tta: bool,
) -> None:  # fmt: skip
    """Predict DICOM files; print one line per study and the path of the report."""
    found = predict_study(run_path, given, out, AnswerOptions(sr, heatmap, identifiers, tta), device)
    for record in found.studies.to_dict("records"):
        scores = [f"{name} {record[f'{name}_probability']:.3f}" for name in found.classes]
        click.echo(f"study {record['study']}: {counted(record['slices'], 'slice')}; {', '.join(scores)}")
    for record in found.series.to_dict("records"):
        if record["warning"]:
            click.echo(f"study {record['study']}, series {record['series']}: {record['warning']}", err=True)
    if found.patients > 1:
        click.echo(f"the files belong to {found.patients} patients, or to studies without a PatientID", err=True)
    if len(found.left_out):
        click.echo(f"left out: {counted(len(found.left_out), 'file')}; see {out / 'rejects.csv'}")
    click.echo(str(out / "report.html"))
