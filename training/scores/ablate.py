"""Measure what position, neighbours and a head over the series add, by training with and without."""

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
from training.scores.compare import MAIN_SCORES, compare, read_contestants
from training.series import job as series

TABLE = "ablation.csv"
PAGE = "ablation.html"
# What may be varied, the two runs that differ in it, and the settings that it decides.
VARIED = {
    "position": (("no-position", "position"), ("position",)),
    "context": (("position", "context"), ("context",)),
    "series": (("position", "series"), ("head",)),
}
# By kind of run; a series run is a head on the run with position.
KINDS: dict[str, dict[str, Any]] = {
    "no-position": {"position": False},
    "position": {"position": True},
    "context": {"position": True, "context": 1},
}


@dataclass(frozen=True)
class Ablation:
    """What an ablation trains on, and how.

    Attributes:
        settings: of every run on images, other than what is varied. A head has its own defaults.
        predictions: what to compare, test or validation.
    """

    cache: str | Path
    out: Path
    settings: Mapping[str, Any]
    runtime: Runtime
    processes: Processes
    predictions: str = "test"
    local_copy: Path | None = None


def ablate(of: Ablation, models: Sequence[str], seeds: Sequence[int], vary: Sequence[str]) -> pd.DataFrame:
    """Train each model with and without what is varied, with each seed, and compare; writes table and page.

    A seed decides the split too, so each seed is compared for itself. A run that is done is used as it is, one that
    was stopped goes on.

    Args:
        vary: names in VARIED.

    Returns:
        the lines of `compare` for each model, seed and thing varied, a without and b with it, after `model`, `seed`
        and `vary`; the same in every process.

    Raises:
        ConfigError: a setting that differs between the runs is among those of all. RunError: a run is there with other
            settings. Stopped: asked to stop; the same call goes on.
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
            f"--set {wrong[0]}: it is what the runs differ in; leave it out, and choose with --model, --seed and --vary"
        )


def _train_head(of: Ablation, path: Path, base: Path) -> None:
    """Write the features of a run on images, and train a head on them."""
    if (path / "report.html").exists():
        return
    lent = {"cache_path": of.cache, "local_copy": of.local_copy}
    if (path / "settings.json").exists():
        opened = series.resume(path, values={}, **lent)  # type: ignore[arg-type]
    else:
        series.features(base, subsets=(), runtime=of.runtime, processes=of.processes, **lent)  # type: ignore[arg-type]
        opened = series.begin(path, base, values={}, processes=of.processes, **lent)  # type: ignore[arg-type]
    series.complete(*opened, of.runtime, of.processes)


def _train(of: Ablation, path: Path, values: Mapping[str, Any]) -> None:
    if (path / "settings.json").exists():
        run, opened = job.resume(path, of.cache, values, of.local_copy)
    else:
        run, opened = job.begin(path, of.cache, settings.new_settings(values), of.processes, of.local_copy)
    done = (path / "report.html").exists()
    of.processes.wait()  # nobody may find the report of another's end and leave it alone
    if not done:
        job.complete(run, opened, of.runtime, of.processes)


def over_seeds(table: pd.DataFrame) -> str:
    """Return lines to print: the differences of each model's main scores over its seeds, and how they vary."""
    lines = []
    for (model, vary), of in table[table["score"].isin(MAIN_SCORES)].groupby(["model", "vary"], sort=False):
        without, with_it = VARIED[str(vary)][0]
        lines += ["", f"{model}: {with_it} minus {without} over {of['seed'].nunique()} seeds", ""]
        lines.append(f"{'score':<20}{'class':<18}{'mean':>9}{'least':>9}{'largest':>9}")
        for (score, name), differences in of.groupby(["score", "class"], sort=False)["difference"]:
            values = (differences.mean(), differences.min(), differences.max())
            cells = "".join(f"{value:>+9.4f}" for value in values)
            lines.append(f"{score:<20}{name:<18}{cells if differences.notna().any() else 'undefined':>27}")
    return "\n".join(lines[1:])
