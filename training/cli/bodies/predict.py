"""The body of `train predict`: predict the slices of a cache, or a study of DICOM files."""

from pathlib import Path

import click
import numpy as np

from training.cli.bodies.study import predict_dicom
from training.data.cache import open_cache
from training.run.apply import run_predictions
from training.run.config import Runtime
from training.run.distributed import join_processes
from training.run.predict import check_sample, write_predictions
from training.run.runs import open_run
from training.run.task import Task


def predict(
    *,
    run_path: Path,
    cache: str | None,
    given: tuple[Path, ...],
    local_copy: Path | None,
    out: Path,
    sample: Path | None,
    device: str,
    input_threads: int,
    tta: bool,
    **answer: bool,
) -> None:
    """Predict every slice of a cache, or of a study of DICOM files, with a run's best weights."""
    if (cache is None) == (not given):
        raise click.UsageError("give either --cache CACHE or --dicom STUDY")
    if given:
        if sample is not None or local_copy is not None:
            raise click.UsageError("--sample and --local-copy cannot be used with --dicom")
        return predict_dicom(run_path, given, out, device, tta=tta, **answer)
    if any(answer.values()):
        raise click.UsageError("--sr, --heatmap and --identifiers need --dicom")
    assert cache is not None
    if out.is_dir():
        raise click.UsageError(f"--out {out}: is a folder; with --cache, give the CSV file to write")
    with join_processes(device) as processes:
        run, opened = open_run(run_path), open_cache(cache, local_copy=local_copy)
        if sample is not None:
            check_sample(sample, opened.table, run.data.classes)
        task = Task(run, opened, Runtime(device, input_threads), processes)
        predicted = run_predictions(task, np.arange(opened.num_slices), tta=tta)
        if processes.writes:
            for path in write_predictions(out, task, predicted, sample):
                click.echo(str(path))
