"""The bodies of `train report` and `train export`."""

from pathlib import Path

import click

from training.model.export import SUFFIXES, export
from training.report.report import write_report
from training.run.runs import open_run
from training.scores.content import open_own_cache


def rewrite_report(*, run_path: Path, cache: str | None, local_copy: Path | None) -> None:
    """Rewrite a run's report.html and model_card.md."""
    click.echo(write_report(run_path, open_own_cache(open_run(run_path), cache, local_copy)))


def export_run(*, run_path: Path, form: str, out: Path | None, cache: str | None, local_copy: Path | None) -> None:
    """Export a run's network to one file: uint8 images and slice positions in, probabilities out."""
    run = open_run(run_path)
    out = out or run_path / f"model{SUFFIXES[form]}"
    difference = export(run, open_own_cache(run, cache, local_copy), form, out)
    click.echo(f"{out}: largest difference from the run's probabilities: {difference:.1e}")
