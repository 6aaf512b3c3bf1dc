"""This file measures what the slice position adds: it trains with and without, and compares."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from training.errors import ConfigError
from training.run import config as settings
from training.run import job
from training.run.config import Machine
from training.run.distributed import Processes
from training.run.runs import write_table
from training.scores.compare import MAIN_SCORES, compare, read_contestants

TABLE = "ablation.csv"
OWN = ("model", "seed", "position")


def ablate(
    cache: str | Path,
    out: Path,
    models: Sequence[str],
    seeds: Sequence[int],
    others: Mapping[str, Any],
    machine: Machine,
    processes: Processes,
    predictions: str,
    local_copy: Path | None = None,
) -> pd.DataFrame:
    """Train each model with and without the position branch, with each seed, and compare; writes `ablation.csv`.

    A seed decides the split too, so each seed is compared for itself. A run that is done is used as it is, one that
    was stopped goes on.

    Args:
        others: settings of every run, other than OWN.
        predictions: what to compare, test or validation.

    Returns:
        the lines of `compare` for each model and seed, a without and b with the position, after `model` and `seed`;
        the same in every process.

    Raises:
        ConfigError: a setting that differs between the runs is among the others. RunError: a run is there with other
            settings. Stopped: asked to stop; the same call goes on.
    """
    if own := [name for name in OWN if name in others]:
        raise ConfigError(f"--set {own[0]}: the runs differ in it; leave it out, and choose by --model and --seed")
    tables = []
    for model in models:
        for seed in seeds:
            runs = []
            for position in (False, True):
                run = out / f"{model}-{'position' if position else 'no-position'}-seed{seed}"
                values = {"model": model, "seed": seed, "position": position} | dict(others)
                _train(cache, run, values, machine, processes, local_copy)
                runs.append(run)
            compared = compare(read_contestants(runs, predictions))
            compared.insert(0, "model", model)
            compared.insert(1, "seed", seed)
            tables.append(compared)
    table = pd.concat(tables, ignore_index=True)
    if processes.writes:
        write_table(out / TABLE, table)
    return table


def _train(
    cache: str | Path,
    path: Path,
    values: Mapping[str, Any],
    machine: Machine,
    processes: Processes,
    local_copy: Path | None,
) -> None:
    if (path / "settings.json").exists():
        run, opened = job.resume(path, cache, values, local_copy)
    else:
        run, opened = job.begin(path, cache, settings.new_settings(values), processes, local_copy)
    done = (path / "report.html").exists()
    processes.wait()  # nobody may find the report of another's end and leave it alone
    if not done:
        job.complete(run, opened, machine, processes)


def over_seeds(table: pd.DataFrame) -> str:
    """Return lines to print: the differences of each model's main scores over its seeds, and how they vary."""
    lines = []
    for model, of in table[table["score"].isin(MAIN_SCORES)].groupby("model", sort=False):
        lines += ["", f"{model}: position minus no position over {of['seed'].nunique()} seeds", ""]
        lines.append(f"{'score':<19}{'class':<18}{'mean':>9}{'least':>9}{'largest':>9}")
        for (score, name), differences in of.groupby(["score", "class"], sort=False)["difference"]:
            values = (differences.mean(), differences.min(), differences.max())
            cells = "".join(f"{value:>+9.4f}" for value in values)
            lines.append(f"{score:<19}{name:<18}{cells if differences.notna().any() else 'undefined':>27}")
    return "\n".join(lines[1:])
