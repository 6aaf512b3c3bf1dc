"""Intervals of scores, by bootstrap over patients."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from training.scores.calibration_error import calibration_interval
from training.scores.metrics import Scorer, Scores

RESAMPLES = 1000
LEVEL = 0.95
# With fewer patients an interval means nothing: the probability that all of n patients differ in one direction by
# chance is 2 x 0.5^n, which is below 5 % only from n = 6. Source: the sign test; Dixon and Mood, JASA 41 (1946).
MIN_PATIENTS = 6
TAILS = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
# Percentiles ignore the draws in which a score is undefined, so only a small share of them may be.
MAX_UNDEFINED = 0.05
DRAWS_AT_ONCE = 50  # 8 MB of weights for 20,000 patients


def draw_patients(num_patients: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yield draws of P patients out of P with replacement, some at a time.

    Yields:
        (r, P) int64, how often each patient is in each draw; the r add up to `resamples`.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), ch. 8: observations that belong together are
        drawn together, here the slices of a patient.
    """
    rng = np.random.default_rng(seed)
    for done in range(0, resamples, DRAWS_AT_ONCE):
        count = min(DRAWS_AT_ONCE, resamples - done)
        drawn = rng.integers(num_patients, size=(count, num_patients))
        drawn += np.arange(count)[:, None] * num_patients
        yield np.bincount(drawn.ravel(), minlength=count * num_patients).reshape(count, num_patients)


def bootstrap(scorer: Scorer, num_patients: int, resamples: int = RESAMPLES, seed: int = 0) -> Scores:
    """Return the scores of `resamples` draws of the scorer's groups, the patients; equal seeds give equal draws."""
    return join([scorer.scores(weights) for weights in draw_patients(num_patients, resamples, seed)])


def join(parts: Sequence[Scores]) -> Scores:
    """Concatenate the draws of several Scores."""
    return _over_arrays(lambda *arrays: np.concatenate(arrays), *parts)


def difference(a: Scores, b: Scores) -> Scores:
    """Return b - a for each draw; n and positives are those of a."""
    values = _over_arrays(lambda of_a, of_b: of_b - of_a, a, b)
    return Scores(**vars(values) | {"n": a.n, "positives": a.positives})


def _over_arrays(function: Callable[..., np.ndarray], *scores: Scores) -> Scores:
    def combine(values: tuple[Any, ...]) -> Any:
        if isinstance(values[0], dict):
            return {key: function(*(value[key] for value in values)) for key in values[0]}
        return function(*values)

    return Scores(**{field.name: combine(tuple(getattr(of, field.name) for of in scores)) for field in fields(Scores)})


def interval(draws: np.ndarray) -> list[float] | None:
    """Return the 95 % percentile interval of (R,) draws, or None if more than 5 % of them are undefined."""
    if (defined := _defined(draws)) is None:
        return None
    low, high = np.quantile(defined, TAILS)
    return [float(low), float(high)]


def _defined(draws: np.ndarray) -> np.ndarray | None:
    """Return the defined ones of (R,) or (R, B) draws, or None if more than 5 % are undefined."""
    defined = draws[~np.isnan(draws.reshape(len(draws), -1)).any(axis=1)]
    return defined if len(defined) and len(defined) >= (1 - MAX_UNDEFINED) * len(draws) else None


def intervals(measured: Scores, draws: Scores, classes: Sequence[str]) -> dict[str, Any]:
    """Return the interval of every score for JSON, under the same names as the scores.

    Args:
        measured: the scores themselves, R = 1.
        draws: the scores of the bootstrap draws.
        classes: names of the K classes.
    """

    def of_each(values: Mapping[str, np.ndarray]) -> dict[str, Any]:
        return {key: interval(array) for key, array in values.items()}

    by_class = {}
    for k, name in enumerate(classes):
        by_class[name] = of_each({key: array[:, k] for key, array in draws.classes.items()})
        if (gaps := _defined(draws.gaps[:, k])) is not None:
            by_class[name]["calibration_error"] = calibration_interval(measured.gaps[0, k], gaps, TAILS)
    return {
        "weighted_log_loss": interval(draws.weighted_log_loss),
        "classes": by_class,
        "micro": of_each(draws.micro),
        "macro": of_each(draws.macro),
    }
