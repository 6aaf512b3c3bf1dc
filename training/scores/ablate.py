"""Measure what position, neighbours and a head over the series contribute, by training with and without each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from training.errors import ConfigError
from training.report.ablation import write_page
from training.run import config as settings
from training.run import job
from training.run.config import Runtime
from training.run.distributed import Processes
from training.run.tables import write_table
from training.run.task import Task
from training.scores.compare import MAIN_SCORES, compare, read_contestants
from training.series import job as series

TABLE = "ablation.csv"
PAGE = "ablation.html"
# What can be varied: the two kinds of run that differ in it, and the settings that it controls.
VARIED = {
    "position": (("no-position", "position"), ("position",)),
    "context": (("position", "context"), ("context",)),
    "series": (("position", "series"), ("head",)),
}
# The settings of each kind of run. A series run is a head on the run with position.
KINDS: dict[str, dict[str, Any]] = {
    "no-position": {"position": False},
    "position": {"position": True},
    "context": {"position": True, "context": 1},
}


@dataclass(frozen=True)
class Ablation:
    """The inputs of an ablation.

    Attributes:
        cache: folder or address of the cache.
        out: folder for the runs, the table and the page.
        settings: settings of every run on images, except the varied ones. A head has its own defaults.
        predictions: the subset to compare, test or validation.
        local_copy: see `open_cache`.
    """

    cache: str | Path
    out: Path
    settings: Mapping[str, Any]
    runtime: Runtime
    processes: Processes
    predictions: str = "test"
    local_copy: Path | None = None


def ablate(of: Ablation, models: Sequence[str], seeds: Sequence[int], vary: Sequence[str]) -> pd.DataFrame:
    """Train each model with and without each varied part, for each seed, compare the runs, and write table and page.

    A seed also decides the split, so the runs of each seed are compared separately. Finished runs are reused, and
    stopped ones are resumed.

    Args:
        of: the inputs.
        models: names of models, as for --model.
        seeds: seeds of the runs.
        vary: names in VARIED.

    Returns:
        The lines of `compare` for each model, seed and varied part, where a is the run without it and b the run with
        it, preceded by the columns `model`, `seed` and `vary`; the same in every process.

    Raises:
        ConfigError: if the settings of all runs include one that is varied, or `vary` has an unknown name.
        RunError: if a run exists with other settings.
        Stopped: if the process was asked to stop; the same call resumes.
    """
    _check(of, vary)
    tables = []
    for model in models:
        for seed in seeds:
            kinds = dict.fromkeys(kind for name in vary for kind in VARIED[name][0])
            runs = {kind: of.out / f"{model}-{kind}-seed{seed}" for kind in kinds}
            for kind, run in runs.items():
                values = {"model": model, "seed": seed}
                if kind == "series":
                    _train_head(of, run, runs["position"])
                else:
                    _train(of, run, values | KINDS[kind] | dict(of.settings))
            for name in vary:
                pair = [runs[kind] for kind in VARIED[name][0]]
                compared = compare(read_contestants(pair, of.predictions))
                compared.insert(0, "model", model)
                compared.insert(1, "seed", seed)
                compared.insert(2, "vary", name)
                tables.append(compared)
    table = pd.concat(tables, ignore_index=True)
    if of.processes.writes:
        write_table(of.out / TABLE, table)
        write_page(of.out / PAGE, table, over_seeds(table) if len(seeds) > 1 else "", of.predictions)
    return table


def _check(of: Ablation, vary: Sequence[str]) -> None:
    for name in vary:
        if name not in VARIED:
            raise ConfigError(f"--vary {name}: is not one of {', '.join(VARIED)}")
    own = {"model", "seed", *(setting for name in vary for setting in VARIED[name][1])}
    if wrong := sorted(own & of.settings.keys()):
        raise ConfigError(
            f"--set {wrong[0]}: the runs differ in this setting; leave it out, and use --model, --seed and --vary"
        )


def _train_head(of: Ablation, path: Path, base: Path) -> None:
    """Train a head on a run, after computing the run's features."""
    if (path / "report.html").exists():
        return
    if (path / "settings.json").exists():
        run, of_slices, cache = series.resume(path, of.cache, {}, of.local_copy)
    else:
        of_slices, cache = series.open_base(base, of.cache, of.local_copy)
        series.features(Task(of_slices, cache, of.runtime, of.processes), ())
        run, _, _ = series.begin(path, of_slices, cache, {}, of.processes)
    series.complete(Task(run, cache, of.runtime, of.processes), of_slices)


def _train(of: Ablation, path: Path, values: Mapping[str, Any]) -> None:
    if (path / "settings.json").exists():
        run, opened = job.resume(path, of.cache, values, of.local_copy)
    else:
        run, opened = job.begin(path, of.cache, settings.new_settings(values), of.processes, of.local_copy)
    done = (path / "report.html").exists()
    of.processes.wait()  # otherwise a process could find the report that another has just written, and skip training
    if not done:
        job.complete(Task(run, opened, of.runtime, of.processes))


def over_seeds(table: pd.DataFrame) -> str:
    """Return lines to print: mean, smallest and largest difference of each model's main scores over its seeds."""
    lines = []
    for (model, vary), of in table[table["score"].isin(MAIN_SCORES)].groupby(["model", "vary"], sort=False):
        without, with_it = VARIED[str(vary)][0]
        lines += ["", f"{model}: {with_it} minus {without} over {of['seed'].nunique()} seeds", ""]
        lines.append(f"{'score':<20}{'class':<18}{'mean':>9}{'smallest':>9}{'largest':>9}")
        for (score, name), differences in of.groupby(["score", "class"], sort=False)["difference"]:
            values = (differences.mean(), differences.min(), differences.max())
            cells = "".join(f"{value:>+9.4f}" for value in values)
            lines.append(f"{score:<20}{name:<18}{cells if differences.notna().any() else 'undefined':>27}")
    return "\n".join(lines[1:])
