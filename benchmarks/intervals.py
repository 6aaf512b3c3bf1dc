"""This file measures how often 95 % intervals hold the truth on simulated patients, and how fast they are made.

Run: python benchmarks/intervals.py [--simulations 1000] [--slices 750000]
"""

import argparse
import time

import numpy as np

from training.scores.bootstrap import bootstrap, draw_patients, intervals
from training.scores.metrics import Scorer, score

CLASSES = ("bleed", "any")
WEIGHTS = (1.0, 2.0)
HALF = np.full(2, 0.5)


def simulate(rng: np.random.Generator, patients: int, slices: int, correlated: float) -> tuple[np.ndarray, ...]:
    """Return labels (N, 2), probabilities (N, 2), patients (N,): slices share the patient's findings and errors."""
    groups = np.repeat(np.arange(patients), slices)
    shared = rng.normal(0, correlated, (patients, 2))[groups]
    labels = (shared + rng.normal(0, 1, shared.shape) > 1).astype(float)
    error = rng.normal(0, correlated, (patients, 2))[groups] + rng.normal(0, 1, shared.shape)
    return labels, 1 / (1 + np.exp(-(1.5 * labels - 1 + error))), groups


def coverage(simulations: int, patients: int, slices: int, correlated: float, draws: int) -> None:
    """Print the share of intervals that hold the truth, drawn over patients and over slices."""
    labels, probabilities, _ = simulate(np.random.default_rng(10**6), 400_000, 4, correlated)
    truth = score(labels, probabilities, CLASSES, WEIGHTS)["classes"]["any"]
    names = ("log_loss", "roc_auc", "average_precision", "recall", "precision", "brier")
    held: dict[str, dict[str, list[bool]]] = {unit: {name: [] for name in names} for unit in ("patients", "slices")}
    for seed in range(simulations):
        labels, probabilities, groups = simulate(np.random.default_rng(seed), patients, slices, correlated)
        for unit, drawn in (("patients", groups), ("slices", np.arange(len(groups)))):
            scorer = Scorer(labels, probabilities, WEIGHTS, HALF, drawn)
            spans = intervals(bootstrap(scorer, int(drawn.max()) + 1, draws, seed), CLASSES)["classes"]["any"]
            for name in names:
                low, high = spans[name]
                held[unit][name].append(low <= truth[name] <= high)
    print(f"{simulations} simulations of {patients} patients with {slices} slices, {draws} draws each")
    print(f"{'drawn':<10}" + "".join(f"{name:>19}" for name in names))
    for unit, of in held.items():
        print(f"{unit:<10}" + "".join(f"{100 * np.mean(of[name]):>17.1f} %" for name in names))


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
    coverage(options.simulations, patients=200, slices=4, correlated=2.0, draws=500)
    speed(options.slices, patients=max(1, options.slices * 20_000 // 750_000), draws=1000)


if __name__ == "__main__":
    main()
