"""All scores of a run's predictions: at every level, with intervals, at 0.5 and at the chosen thresholds."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from training.errors import RunError
from training.run.digests import check, write_atomically
from training.run.documents import read_document
from training.run.tables import write_json
from training.scores.bootstrap import LEVEL, MIN_PATIENTS, RESAMPLES, bootstrap, intervals
from training.scores.headline import headline
from training.scores.metrics import Scorer, score, score_at
from training.scores.operating import Operating, choose_operating, from_json, to_json
from training.scores.pooling import COARSER, at_level, patient_groups, pool
from training.scores.predictions import Predictions
from training.words import counted

Weights = Sequence[float] | np.ndarray
SEED = 0  # of the bootstrap draws
EVALUATION_COLUMNS = ("time", "what", "commit", "slices")


def assess(run: Path, name: str, known: Predictions, class_weights: Weights, level: str = "slice") -> dict[str, Any]:
    """Return all scores of a run's predictions; those on validation also choose the thresholds and the calibration.

    If `name` is validation, this writes `thresholds.json` and `calibration.json`; if it is validation_tta,
    `thresholds_tta.json` and `calibration_tta.json`, since TTA changes the probabilities. Other predictions are scored
    with the files that exist.

    Args:
        run: the run's folder.
        name: name of the predictions: validation, test or external, also with _tta.
        known: the predictions, of slices.
        class_weights: (K,), from the cache.
        level: what a label describes: slice, series, study or patient.

    Returns:
        The content of `scores_<name>.json`; see `evaluate_predictions`.

    Raises:
        RunError: if the thresholds are damaged, or for other classes.
    """
    kind = "_tta" if name.endswith("_tta") else ""
    if name == f"validation{kind}":
        operating = choose_levels(known, level)
        thresholds, calibration = to_json(operating)
        write_json(run / f"thresholds{kind}.json", thresholds | {"chosen_on": name})
        write_json(run / f"calibration{kind}.json", calibration | {"fitted_on": name})
    else:
        operating = read_operating(run, kind)
        if any(of.classes != known.classes for of in operating.values()):
            raise RunError(
                f"{run / f'thresholds{kind}.json'}: is for different classes; run: train evaluate --run {run} --split "
                "validation"
            )
    return evaluate_predictions(known, class_weights, operating, level=level)


def choose_levels(known: Predictions, level: str = "slice") -> dict[str, Operating]:
    """Choose thresholds and calibration for slices, series, patients and `level`.

    Each level has its own, because the maximum over many slices is distributed differently from one slice.
    """
    names = dict.fromkeys(("slice", *COARSER["slice"], level))
    levels = {name: at_level(known, name) for name in names}
    return {level: choose_operating(of.labels, of.probabilities, of.classes) for level, of in levels.items()}


def read_operating(run: Path, kind: str = "") -> dict[str, Operating]:
    """Return the thresholds and calibration chosen on validation, by level; empty if it has not been scored.

    Args:
        run: the run's folder.
        kind: "" or "_tta".

    Raises:
        RunError: if a file is damaged.
    """
    files = [run / f"{what}{kind}.json" for what in ("thresholds", "calibration")]
    if not all(file.exists() for file in files):
        return {}
    for file in files:
        check(file, f"run: train evaluate --run {run} --split validation{' --tta' if kind else ''}")
    try:
        return from_json(*(read_document(file) for file in files))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise RunError(
            f"{files[0]}: cannot be read ({error!r}); run: train evaluate --run {run} --split validation"
        ) from error


def log_evaluation(run: Path, what: str, commit: str, slices: int, now: datetime) -> None:
    """Add a line to `looks.csv`, since choices made after an evaluation on test are no longer independent of it.

    Args:
        run: the run's folder.
        what: name of the predictions, such as test or test_tta.
        commit: commit of the cache.
        slices: number of slices scored.
        now: the time, with its time zone.

    Raises:
        RunError: if `looks.csv` is damaged, or cannot be written.
    """
    file = run / "looks.csv"
    check(file, "restore it; it records how often the test set was scored")
    before = file.read_text(encoding="utf-8") if file.exists() else ",".join(EVALUATION_COLUMNS) + "\n"
    line = ",".join((now.isoformat(timespec="seconds"), what, commit, str(slices)))
    write_atomically(file, lambda opened: opened.write(f"{before}{line}\n".encode()))


def evaluate_predictions(
    known: Predictions,
    class_weights: Weights,
    operating: Mapping[str, Operating],
    resamples: int = RESAMPLES,
    *,
    level: str = "slice",
) -> dict[str, Any]:
    """Return the scores of predictions at the level of the labels, and pooled to the levels above it.

    Args:
        known: the predictions, of slices.
        class_weights: (K,), from the cache.
        operating: thresholds and calibration chosen on validation, by level; may be empty.
        resamples: number of bootstrap draws.
        level: what a label describes; if slices carry the label of their series, series are scored.

    Returns:
        The result of `metrics.score` at a threshold of 0.5, and: `intervals`, with the same names; `at_threshold` and
        `at_f1_threshold`, scores at the thresholds chosen by Youden's index and by F1; `calibrated`, scores of
        calibrated probabilities; `level`, as passed; `levels`, all of these for each level above, such as series and
        patient for slices; and `bootstrap`, the parameters of the intervals.
    """
    content = _level(at_level(known, level), class_weights, operating.get(level), resamples)
    content["level"] = level
    content["levels"] = {
        above: _level(pool(known, above), class_weights, operating.get(above), resamples) for above in COARSER[level]
    }
    content["bootstrap"] = {
        "drawn": "patients",
        "patients": patient_groups(known)[1],
        "least_patients": MIN_PATIENTS,
        "resamples": resamples,
        "level": LEVEL,
        "seed": SEED,
    }
    return content


def _level(known: Predictions, class_weights: Weights, operating: Operating | None, resamples: int) -> dict[str, Any]:
    half = np.full(len(known.classes), 0.5)
    content = score(known.labels, known.probabilities, known.classes, class_weights)
    content["intervals"] = score_intervals(known, class_weights, half, resamples, SEED)
    if operating is None:
        return content
    rules = {"at_threshold": operating.thresholds, "at_f1_threshold": operating.f1_thresholds}
    for name, thresholds in rules.items():
        if not np.isnan(thresholds).any():
            at = score_at(known.labels, known.probabilities, known.classes, class_weights, thresholds)
            at["intervals"] = score_intervals(known, class_weights, thresholds, resamples, SEED)
            content[name] = at | {"thresholds": dict(zip(known.classes, thresholds.tolist(), strict=True))}
    calibrated = replace(known, probabilities=operating.calibrate(known.probabilities))
    after = score(known.labels, calibrated.probabilities, known.classes, class_weights)
    after["intervals"] = score_intervals(calibrated, class_weights, half, resamples, SEED)
    return content | {"calibrated": after}


def score_intervals(
    known: Predictions, class_weights: Weights, thresholds: np.ndarray, resamples: int, seed: int
) -> dict[str, Any]:
    """Return the 95 % interval of every score by bootstrap over patients, for JSON.

    An interval is None with fewer than MIN_PATIENTS labelled patients.
    """
    groups, patients = patient_groups(known)
    scorer = Scorer(known.labels, known.probabilities, class_weights, thresholds, groups)
    measured = scorer.scores(np.ones((1, max(1, patients)), np.int64))
    if patients < MIN_PATIENTS:
        return intervals(measured, scorer.scores(np.zeros((1, max(1, patients)), np.int64)), known.classes)
    spans = intervals(measured, bootstrap(scorer, patients, resamples, seed), known.classes)
    for k, name in enumerate(known.classes):
        if len(np.unique(groups[~np.isnan(known.labels[:, k])])) < MIN_PATIENTS:
            spans["classes"][name] = dict.fromkeys(spans["classes"][name])
    return spans


def to_text(content: Mapping[str, Any], what: str) -> str:
    """Return lines to print: positives, log loss and ranked scores per class, with intervals.

    Args:
        content: the result of `evaluate_predictions`.
        what: name of the scored set, such as "test with TTA".
    """
    shown = {"log_loss": "log loss", "roc_auc": "ROC AUC", "average_precision": "average precision"}
    patients = content["bootstrap"]["patients"]
    how = f"95 % intervals by bootstrap over {counted(patients, 'patient')}"
    if patients < MIN_PATIENTS:
        how = f"no intervals: they need at least {MIN_PATIENTS} patients, and there are {patients}"
    level = content.get("level", "slice")
    lines = [f"{what}, {level} by {level}; {how}", ""]
    lines.append(f"{'class':<18}{'positive':>8}   " + "".join(f"{words:<26}" for words in shown.values()).rstrip())
    for name, of in content["classes"].items():
        span = content["intervals"]["classes"][name]
        cells = "".join(f"{_value(of[key], span[key]):<26}" for key in shown)
        lines.append(f"{name:<18}{of['positives']:>8,}   {cells}".rstrip())
    loss = _value(content["weighted_log_loss"], content["intervals"]["weighted_log_loss"])
    return "\n".join([*lines, "", f"weighted log loss on {what}: {loss}"])


def summary_line(content: Mapping[str, Any], what: str) -> str:
    """Return one line to print: the weighted log loss, and the ranked scores of the headline."""
    main = headline(content)
    ranked = (
        f"{words} {main.words} {_value(main.scores.get(key), None)}"
        for key, words in (("roc_auc", "ROC AUC"), ("average_precision", "average precision"))
    )
    loss = _value(content["weighted_log_loss"], content["intervals"]["weighted_log_loss"])
    return ", ".join([f"weighted log loss on {what} {loss}", *ranked])


def _value(value: float | None, span: Sequence[float] | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.4f}" + (f" [{span[0]:.4f}, {span[1]:.4f}]" if span else "")
