"""This file measures how often 95 % intervals hold the truth on simulated patients, and how fast they are made.

Run: python benchmarks/intervals.py [--simulations 1000] [--slices 750000]
"""

import argparse
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from training.scores.bootstrap import RESAMPLES, bootstrap, draw_patients, intervals
from training.scores.metrics import Scorer, score

CLASSES = ("bleed", "any")
WEIGHTS = (1.0, 2.0)
HALF = np.full(2, 0.5)
MAIN = "any"
UNITS = ("patients", "slices")


def simulate(rng: np.random.Generator, patients: int, slices: int, correlated: float) -> tuple[np.ndarray, ...]:
    """Return labels (N, 2), probabilities (N, 2), patients (N,): slices share the patient's findings and errors.

    Args:
        correlated: standard deviation of what a patient's slices share, that of each slice alone being 1.
    """
    groups = np.repeat(np.arange(patients), slices)
    shared = rng.normal(0, correlated, (patients, 2))[groups]
    labels = (shared + rng.normal(0, 1, shared.shape) > 1).astype(float)
    error = rng.normal(0, correlated, (patients, 2))[groups] + rng.normal(0, 1, shared.shape)
    return labels, 1 / (1 + np.exp(-(1.5 * labels - 1 + error))), groups


def coverage(simulations: int, patients: int, slices: int, correlated: float, draws: int) -> None:
    """Print for each score the share of intervals that hold the truth, drawn over patients and over slices."""
    labels, probabilities, _ = simulate(np.random.default_rng(10**6), 400_000, slices, correlated)
    truth = flat(score(labels, probabilities, CLASSES, WEIGHTS))
    held = {name: dict.fromkeys(UNITS, 0) for name in truth}
    for seed in range(simulations):
        labels, probabilities, groups = simulate(np.random.default_rng(seed), patients, slices, correlated)
        for unit, drawn in zip(UNITS, (groups, np.arange(len(groups))), strict=True):
            scorer = Scorer(labels, probabilities, WEIGHTS, HALF, drawn)
            spans = flat(intervals(bootstrap(scorer, int(drawn.max()) + 1, draws, seed), CLASSES))
            for name, value in truth.items():
                low, high = spans[name]
                held[name][unit] += low <= value <= high
    # A slice shares correlated^2 of its variance correlated^2 + 1 with the patient's others.
    within = correlated**2 / (correlated**2 + 1)
    print(f"{simulations:,} simulations of {patients} patients with {slices} slices, correlation {within:.1f} within a")
    print(f"patient, {draws:,} draws each: share of the 95 % intervals that hold the truth, when what is drawn are")
    print(f"{'score':<22}{'truth':>8}" + "".join(f"{unit:>12}" for unit in UNITS))
    for name, of in held.items():
        print(f"{name:<22}{truth[name]:>8.3f}" + "".join(f"{100 * of[unit] / simulations:>10.1f} %" for unit in UNITS))


def flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weighted log loss, the scores of the class `any`, and the micro and macro averages, by name."""
    counts = ("n", "positives", "undefined")
    values = {"weighted_log_loss": content["weighted_log_loss"]}
    values |= {name: value for name, value in content["classes"][MAIN].items() if name not in counts}
    return values | {f"{kind} {name}": value for kind in ("micro", "macro") for name, value in content[kind].items()}


def speed(slices: int, patients: int, draws: int) -> None:
    """Print the time for the log loss of all draws at full size, and its ratio to scoring once per draw."""
    rng = np.random.default_rng(0)
    groups = np.sort(rng.integers(0, patients, slices))
    labels = (rng.random((slices, 6)) < 0.06).astype(float)
    probabilities = 1 / (1 + np.exp(-(3 * labels - 3 + rng.normal(0, 1.5, labels.shape))))
    names, weights = tuple("abcdef"), (1.0,) * 6
    start = time.perf_counter()
    score(labels, probabilities, names, weights)
    once = time.perf_counter() - start
    start = time.perf_counter()
    scorer = Scorer(labels, probabilities, weights, np.full(6, 0.5), groups)
    for drawn in draw_patients(patients, draws, 0):
        scorer.summed(drawn)
    sums = time.perf_counter() - start
    start = time.perf_counter()
    bootstrap(scorer, patients, draws // 20)
    everything = (time.perf_counter() - start) * 20
    print(f"{slices:,} slices of {patients:,} patients, 6 classes, {draws:,} draws:")
    print(f"log loss and all other summed scores: {sums:.1f} s, 1/{draws * once / sums:,.0f} of scoring draw by draw")
    print(f"ROC AUC and average precision too: {everything:.0f} s (from a twentieth of the draws)")


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--slices", type=int, default=750_000)
    options = parser.parse_args()
    if options.simulations:
        coverage(options.simulations, patients=200, slices=4, correlated=2.0, draws=RESAMPLES)
    speed(options.slices, patients=max(1, options.slices * 20_000 // 750_000), draws=RESAMPLES)


if __name__ == "__main__":
    main()
