"""Compare the scores of runs on the same slices, with intervals of the differences."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from training.errors import RunError
from training.run.runs import open_run
from training.scores.bootstrap import MIN_PATIENTS, RESAMPLES, bootstrap, draw_patients, interval
from training.scores.evaluation import read_operating
from training.scores.metrics import Scorer, Scores, class_scores, tally, weighted_log_loss
from training.scores.operating import Operating, logit
from training.scores.pooling import LEVELS, at_level, patient_groups
from training.scores.predictions import Predictions, read_predictions
from training.words import counted

COLUMNS = ("score", "class", "a", "b", "value_a", "value_b", "difference", "low", "high", "no_interval")
CALIBRATED = "calibrated_log_loss"
MAIN_SCORES = ("weighted_log_loss", CALIBRATED, "log_loss", "roc_auc", "average_precision")
HALF = 0.5
# Float32 logits of one network may differ by this much between batches of different sizes.
SAME_LOGIT = 1e-4
# (score, class) -> its R values.
Values = dict[tuple[str, str], np.ndarray]


@dataclass(frozen=True)
class Contestant:
    """The predictions of a run in a comparison.

    Attributes:
        name: name of the run in the comparison.
        known: the predictions with their labels.
        class_weights: K weights, from the cache.
        named_by: columns that together identify a line of `known`.
        calibration: calibration fitted on the run's validation set, None if that has not been scored.
    """

    name: str
    known: Predictions
    class_weights: tuple[float, ...]
    named_by: list[str] = field(default_factory=lambda: ["image_id", "z_norm"])
    calibration: Operating | None = None


def read_contestants(runs: Sequence[Path], predictions: str) -> list[Contestant]:
    """Read the predictions of runs, each named after its folder, or its path if two folders have the same name.

    Args:
        runs: folders of the runs.
        predictions: test, validation, test_tta or validation_tta.

    Raises:
        RunError: if there is no such run, or it has no such predictions.
    """
    names = [run.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run) for run in runs]
    return [_read_contestant(run, name, predictions) for run, name in zip(runs, names, strict=True)]


def _read_contestant(run: Path, name: str, predictions: str) -> Contestant:
    opened = open_run(run)
    file = run / f"predictions_{predictions}.csv"
    subset, _, tta = predictions.partition("_")
    if not file.exists():
        raise RunError(
            f"{file}: does not exist; run: train evaluate --run {run} --split {subset}{' --tta' if tta else ''}"
        )
    level = opened.data.label_level
    known = at_level(read_predictions(file), level)
    names = LEVELS.get(level, ["image_id", "z_norm"])
    calibration = read_operating(run, "_tta" if tta else "").get(level)
    return Contestant(name + (" + TTA" if tta else ""), known, opened.data.class_weights, names, calibration)


def compare(contestants: Sequence[Contestant], resamples: int = RESAMPLES, seed: int = 0) -> pd.DataFrame:
    """Compare every pair of runs by a paired bootstrap over patients, which scores both on the same draws.

    Precision, recall, specificity and F1 are at a threshold of 0.5. CALIBRATED is the log loss after each run's logits
    were calibrated with slope and offset fitted on its own validation set, for pairs in which both have been: a model
    that is merely less overconfident than another has a lower log loss, but not a lower calibrated one.

    Args:
        contestants: two runs or more.
        resamples: number of bootstrap draws.
        seed: seed of the draws.

    Returns:
        One line per pair and score, with COLUMNS: both values, the difference b - a, and its 95 % interval, NaN if
        undefined; `no_interval` then gives the reason, such as fewer than MIN_PATIENTS patients that differ. `class` is
        a class, "all" for a log loss weighted over the classes, "micro" or "macro".

    Raises:
        RunError: if there are fewer than two runs, or they differ in slices, labels or classes.
    """
    if len(contestants) < 2:
        raise RunError("compare: give at least two runs")
    aligned = [_aligned(of, contestants[0]) for of in contestants]
    groups, patients = patient_groups(aligned[0].known)
    scored = [_scored(of, groups, patients, resamples, seed) for of in aligned]
    lines = []
    for a, b in combinations(range(len(aligned)), 2):
        names = {"a": contestants[a].name, "b": contestants[b].name}
        differ = _differing(aligned[a].known, aligned[b].known, groups)
        lines += [names | line for line in _lines(scored[a], scored[b], differ)]
    return pd.DataFrame(lines, columns=list(COLUMNS))


def _aligned(of: Contestant, first: Contestant) -> Contestant:
    """Return a contestant with its slices in the same order as those of `first`."""
    if of.known.classes != first.known.classes:
        raise RunError(
            f"{of.name}: has classes {', '.join(of.known.classes)}; {first.name} has "
            f"{', '.join(first.known.classes)}; compare runs on the same cache"
        )
    places = _identities(of).get_indexer(_identities(first))
    if (places < 0).any() or len(of.known) != len(first.known):
        raise RunError(
            f"{of.name}: was not scored on the same slices as {first.name} ({len(of.known)} and {len(first.known)}, "
            f"{int((places >= 0).sum())} in both); compare runs with the same cache and --seed"
        )
    labels = of.known.labels[places]
    if not np.array_equal(labels, first.known.labels, equal_nan=True):
        raise RunError(
            f"{of.name}: has labels that differ from those of {first.name}; evaluate both again on the same commit"
        )
    known = replace(first.known, probabilities=of.known.probabilities[places])
    return replace(of, known=known)


def _identities(of: Contestant) -> pd.MultiIndex:
    """Return a unique key per slice; numbered, as frames of a file share its image_id and sometimes the position."""
    named = of.known.slices[of.named_by]
    return pd.MultiIndex.from_frame(named.assign(number=named.groupby(of.named_by).cumcount()))


def _differing(a: Predictions, b: Predictions, groups: np.ndarray) -> dict[str, int]:
    """Return the number of patients with a labelled slice whose probabilities differ, by class and in total."""
    apart = np.abs(logit(a.probabilities) - logit(b.probabilities))
    other = (apart > SAME_LOGIT) & ~np.isnan(a.labels)
    counts = {name: len(np.unique(groups[other[:, k]])) for k, name in enumerate(a.classes)}
    return counts | dict.fromkeys(("all", "micro", "macro"), len(np.unique(groups[other.any(axis=1)])))


def _why_none(difference: float, draws: np.ndarray, differ: int) -> str:
    """Return the reason why a difference has no interval, "" if it has one."""
    if np.isnan(difference):
        return "undefined"
    if differ < MIN_PATIENTS:
        return f"{counted(differ, 'patient')} {'differs' if differ == 1 else 'differ'}, it needs {MIN_PATIENTS}"
    return "" if interval(draws) else "too often undefined"


def _scored(of: Contestant, groups: np.ndarray, patients: int, resamples: int, seed: int) -> tuple[Values, Values]:
    """Return a contestant's scores on all patients and on each draw; equal seeds give equal draws."""
    classes, half = of.known.classes, np.full(len(of.known.classes), HALF)
    scorer = Scorer(of.known.labels, of.known.probabilities, of.class_weights, half, groups)
    everyone = np.ones((1, patients), dtype=np.int64)
    measured = _flat(scorer.scores(everyone), classes)
    drawn = _flat(bootstrap(scorer, patients, resamples, seed), classes)
    if of.calibration is None:
        return measured, drawn
    losses = _calibrated(of, of.calibration, groups, patients)
    parts = [losses(draws) for draws in draw_patients(patients, resamples, seed)]
    return measured | losses(everyone), drawn | {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def _calibrated(
    of: Contestant, calibration: Operating, groups: np.ndarray, patients: int
) -> Callable[[np.ndarray], Values]:
    """Return a function from R draws of the patients, (R, P) int, to the log losses of calibrated probabilities."""
    half = np.full(len(of.known.classes), HALF)
    sums = tally(of.known.labels, calibration.calibrate(of.known.probabilities), half, groups, patients)
    weights = np.asarray(of.class_weights, np.float64)

    def losses(draws: np.ndarray) -> Values:
        drawn = sums.weighted(draws.astype(np.float64))
        by_class = class_scores(drawn)["log_loss"]
        total: Values = {(CALIBRATED, "all"): weighted_log_loss(drawn, weights)}
        return total | {(CALIBRATED, name): by_class[:, k] for k, name in enumerate(of.known.classes)}

    return losses


def _lines(a: tuple[Values, Values], b: tuple[Values, Values], differ: Mapping[str, int]) -> list[dict[str, Any]]:
    lines = []
    for key in (key for key in a[0] if key in b[0]):
        value_a, value_b = float(a[0][key][0]), float(b[0][key][0])
        draws = b[1][key] - a[1][key]
        reason = _why_none(value_b - value_a, draws, differ[key[1]])
        low, high = (np.nan, np.nan) if reason else (interval(draws) or (np.nan, np.nan))
        lines.append(
            {"score": key[0], "class": key[1], "value_a": value_a, "value_b": value_b}
            | {"difference": value_b - value_a, "low": low, "high": high, "no_interval": reason}
        )
    return lines


def _flat(values: Scores, classes: Sequence[str]) -> Values:
    flat = {("weighted_log_loss", "all"): values.weighted_log_loss}
    for kind, of in (("macro", values.macro), ("micro", values.micro)):
        flat |= {(score, kind): array for score, array in of.items() if score != "prevalence"}
    for k, name in enumerate(classes):
        flat |= {(score, name): array[:, k] for score, array in values.classes.items() if score != "prevalence"}
    return flat


def to_text(table: pd.DataFrame, *, every_score: bool = False) -> str:
    """Return the comparison as lines to print, for MAIN_SCORES or every score."""
    shown = table if every_score else table[table["score"].isin(MAIN_SCORES)]
    lines = []
    for (a, b), pair in shown.groupby(["a", "b"], sort=False):
        lines += ["", f"{b} minus {a}, 95 % interval by bootstrap over patients", ""]
        lines.append(f"{'score':<20}{'class':<18}{'a':>8}{'b':>8}{'b - a':>9}  {'interval':<19}")
        lines += [_text_line(of) for of in pair.to_dict("records")]
    lines += ["", "* the interval excludes 0, as it does by chance for one in twenty scores that do not differ"]
    return "\n".join(lines[1:])


def _text_line(of: Mapping[Any, Any]) -> str:
    head = f"{of['score']:<20}{of['class']:<18}"
    if np.isnan(of["difference"]):
        return f"{head}{'undefined':>16}"
    span = of["no_interval"] if np.isnan(of["low"]) else f"[{of['low']:+.4f}, {of['high']:+.4f}]"
    clear = "  *" if of["low"] > 0 or of["high"] < 0 else ""
    return f"{head}{of['value_a']:>8.4f}{of['value_b']:>8.4f}{of['difference']:>+9.4f}  {span}{clear}"
