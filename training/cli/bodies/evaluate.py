"""The body of `train evaluate`: score one subset and suggest what to run next."""

from pathlib import Path

import click

from training.run import job
from training.run.config import Runtime
from training.run.distributed import join_processes
from training.run.task import Task
from training.scores.evaluation import to_text
from training.words import counted


def evaluate(
    *,
    run_path: Path,
    subset: str,
    tta: bool,
    cache: str | None,
    local_copy: Path | None,
    device: str,
    input_threads: int,
) -> None:
    """Score a run's best weights on its validation or test slices, or on all labelled slices of another cache."""
    with join_processes(device) as processes:
        run, opened = job.open_to_evaluate(run_path, cache, subset, local_copy)
        task = Task(run, opened, Runtime(device, input_threads), processes)
        scores = job.evaluate(task, subset, tta=tta)
        if processes.writes:
            click.echo(to_text(scores, f"{subset}{' with TTA' if tta else ''}"))
            if (gone := scores["source"].get("left_out", {})).get("patients"):
                listed = run_path / f"{job.predictions_name(subset, tta=tta)}_left_out.csv"
                click.echo(
                    f"left out, because the run may have learned from them: {counted(gone['patients'], 'patient')} "
                    f"with {counted(gone['slices'], 'slice')}; {listed}"
                )
            if "at_threshold" not in scores and run.has("validation"):
                wanted = f"train evaluate --run {run_path} --split validation{' --tta' if tta else ''}"
                click.echo(f"no thresholds or calibration yet; to fit them: {wanted}")
            click.echo(f"all scores: {run_path / f'scores_{job.predictions_name(subset, tta=tta)}.json'}")
            click.echo(f"to show them in report.html: train report --run {run_path}")
