"""The body of `train ablate`: train runs with and without each part, and measure what it adds."""

import sys
from pathlib import Path

import click

from training.cli.options import STOPPED
from training.run.config import Runtime, parse_setting
from training.run.distributed import join_processes
from training.run.inference import Stopped
from training.run.job import absolute_weights
from training.scores.ablate import PAGE, TABLE, Ablation, ablate, over_seeds
from training.scores.compare import to_text


def run_ablation(
    *,
    cache: str,
    local_copy: Path | None,
    out: Path,
    models: tuple[str, ...],
    seeds: tuple[int, ...],
    on: str,
    vary: str,
    others: tuple[str, ...],
    device: str,
) -> None:
    """Train with and without position, neighbours or a head over the series, and measure what each adds."""
    settings = dict(parse_setting(text) for text in others)
    if "weights" in settings:
        settings["weights"] = absolute_weights(settings["weights"])
    with join_processes(device) as processes:
        try:
            of = Ablation(cache, out, settings, Runtime(device), processes, on, local_copy)
            table = ablate(of, models, seeds, [name.strip() for name in vary.split(",")])
        except Stopped:
            if processes.writes:
                click.echo("stopped; to continue, run the same command again", err=True)
            sys.exit(STOPPED)
        if processes.writes:
            click.echo(to_text(table))
            if len(seeds) > 1:
                click.echo(f"\n{over_seeds(table)}")
            click.echo(f"\n{out / TABLE}\n{out / PAGE}")
