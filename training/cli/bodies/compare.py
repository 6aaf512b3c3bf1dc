"""The body of `train compare`: score differences between runs, with confidence intervals."""

from pathlib import Path

import click

from training.run.tables import write_table
from training.scores.compare import compare, read_contestants, to_text


def compare_runs(*, runs: tuple[Path, ...], on: str, tta: bool, every_score: bool, out: Path | None) -> None:
    """Compare runs on the same slices: score differences with 95 % confidence intervals."""
    contestants = read_contestants(runs, on)
    if tta:
        contestants += read_contestants(runs, f"{on.removesuffix('_tta')}_tta")
    table = compare(contestants)
    click.echo(to_text(table, every_score=every_score))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_table(out, table)
        click.echo(str(out))
