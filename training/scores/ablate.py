"""This file measures what the slice position adds: it trains with and without, and compares."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from training import config as settings
from training import job
from training.config import Machine
from training.distributed import Processes, join_processes
from training.runs import write_table
from training.scores.compare import compare, read_contestant

PREFERRED_SIZES = {"efficientnet_b3": 380}


def ablate(
    cache: str | Path,
    out: Path,
    models: Sequence[str],
    seeds: Sequence[int],
    others: Mapping[str, Any],
    machine: Machine,
    predictions: str,
    local_copy: Path | None = None,
) -> pd.DataFrame:
    """Train each model with and without the position branch, with each seed, and compare; writes `ablation.csv`.

    A seed decides the split too, so each seed is compared for itself. A run that is done is used as it is, one that
    was stopped goes on.

    Returns:
        the lines of `compare` for each model and seed, a without and b with the position.
    """
    tables = []
    with join_processes(machine.device) as processes:
        for model in models:
            for seed in seeds:
                runs = []
                for position in (False, True):
                    name = f"{model}-{'position' if position else 'no-position'}-seed{seed}"
                    values = {"model": model, "seed": seed, "position": position} | dict(others)
                    values.setdefault("size_px", PREFERRED_SIZES.get(model, 224))
                    _train(cache, out / name, values, machine, processes, local_copy)
                    runs.append(out / name)
                tables.append(compare([read_contestant(run, predictions) for run in runs]))
    table = pd.concat(tables, ignore_index=True)
    write_table(out / "ablation.csv", table)
    return table


def _train(
    cache: str | Path,
    path: Path,
    values: Mapping[str, Any],
    machine: Machine,
    processes: Processes,
    local_copy: Path | None,
) -> None:
    if (path / "scores_test.json").exists():
        return
    if (path / "settings.json").exists():
        run, opened = job.resume(path, cache, values, local_copy)
    else:
        run, opened = job.begin(path, cache, settings.from_mapping(values), processes, local_copy)
    job.complete(run, opened, machine, processes)
