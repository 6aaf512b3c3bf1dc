"""Measure how often 95 % intervals contain the true value on simulated patients, and how fast they are computed.

python benchmarks/intervals.py [--simulations 1000] [--slices 750000]
"""

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np
from frame import machine, timed
from scipy.special import expit, logit, ndtr

from training.scores.bootstrap import RESAMPLES, TAILS, bootstrap, draw_patients, intervals
from training.scores.calibration_error import calibration_interval
from training.scores.metrics import Scorer, Tally, score
from training.scores.ranking import share

CLASSES = ("bleed", "any")
WEIGHTS = (1.0, 2.0)
HALF = np.full(2, 0.5)
MAIN = "any"
UNITS = ("patients", "slices")


def simulate(rng: np.random.Generator, patients: int, slices: int, correlated: float) -> tuple[np.ndarray, ...]:
    """Return labels (N, 2), probabilities (N, 2), patients (N,); a patient's slices share findings and errors.

    Args:
        correlated: standard deviation of the part shared by a patient's slices; that of the other part is 1.
    """
    groups = np.repeat(np.arange(patients), slices)
    shared = rng.normal(0, correlated, (patients, 2))[groups]
    labels = (shared + rng.normal(0, 1, shared.shape) > 1).astype(float)
    error = rng.normal(0, correlated, (patients, 2))[groups] + rng.normal(0, 1, shared.shape)
    return labels, 1 / (1 + np.exp(-(1.5 * labels - 1 + error))), groups


def coverage(simulations: int, patients: int, slices: int, correlated: float, draws: int) -> None:
    """Print the coverage of each score's intervals, drawn over patients and over slices."""
    labels, probabilities, _ = simulate(np.random.default_rng(10**6), 400_000, slices, correlated)
    truth = flat(score(labels, probabilities, CLASSES, WEIGHTS))
    held = {name: dict.fromkeys(UNITS, 0) for name in truth}
    for seed in range(simulations):
        labels, probabilities, groups = simulate(np.random.default_rng(seed), patients, slices, correlated)
        for unit, drawn in zip(UNITS, (groups, np.arange(len(groups))), strict=True):
            scorer = Scorer(labels, probabilities, WEIGHTS, HALF, drawn)
            units = int(drawn.max()) + 1
            measured = scorer.scores(np.ones((1, units), np.int64))
            spans = flat(intervals(measured, bootstrap(scorer, units, draws, seed), CLASSES))
            for name, value in truth.items():
                low, high = spans[name]
                held[name][unit] += low <= value <= high
    # Of its variance correlated^2 + 1, a slice shares correlated^2 with the patient's other slices.
    within = correlated**2 / (correlated**2 + 1)
    print(f"{simulations:,} simulations of {patients} patients with {slices} slices, correlation {within:.1f} within a")
    print(f"patient, {draws:,} draws each: share of the 95 % intervals that contain the true value, when drawing")
    print(f"{'score':<22}{'truth':>8}" + "".join(f"{unit:>12}" for unit in UNITS))
    for name, of in held.items():
        print(f"{name:<22}{truth[name]:>8.3f}" + "".join(f"{100 * of[unit] / simulations:>10.1f} %" for unit in UNITS))


def simulate_sharpness(
    rng: np.random.Generator, patients: int, slices: int, sharpness: float
) -> tuple[np.ndarray, ...]:
    """Return labels (N, 1), probabilities (N, 1), patients (N,), as `simulate` does, for a calibrated model.

    Args:
        sharpness: factor applied to its logits; 1 leaves the model calibrated, more makes it overconfident.
    """
    groups = np.repeat(np.arange(patients), slices)
    seen, hidden = rng.normal(0, 2, (2, patients, 1))[:, groups]
    labels = (seen + hidden + rng.normal(0, 1, seen.shape) > 1).astype(float)
    return labels, expit(sharpness * logit(np.clip(ndtr((seen - 1) / 5**0.5), 1e-9, 1 - 1e-9))), groups


def calibration_coverage(simulations: int, patients: int, slices: int, draws: int) -> None:
    """Print the coverage of the calibration error's interval, and of the percentiles of the draws."""
    print(f"calibration error only, {simulations:,} simulations, drawn over patients:")
    print(f"{'logits times':<22}{'truth':>8}{'interval':>12}{'percentiles':>14}")
    for sharpness in (1.0, 1.25, 1.5, 2.0):
        labels, probabilities, _ = simulate_sharpness(np.random.default_rng(10**6), 400_000, slices, sharpness)
        truth = score(labels, probabilities, (MAIN,), (1.0,))["classes"][MAIN]["calibration_error"]
        held = np.zeros(2)
        for seed in range(simulations):
            labels, probabilities, groups = simulate_sharpness(np.random.default_rng(seed), patients, slices, sharpness)
            scorer = Scorer(labels, probabilities, (1.0,), HALF[:1], groups)
            measured = gaps(scorer.summed(np.ones((1, patients))))[0]
            drawn = np.concatenate([gaps(scorer.summed(some)) for some in draw_patients(patients, draws, seed)])
            both = calibration_interval(measured, drawn, TAILS), np.quantile(np.abs(drawn).sum(axis=-1), TAILS)
            held += [low <= truth <= high for low, high in both]
        shares = 100 * held / simulations
        print(f"{sharpness:<22}{truth:>8.3f}{shares[0]:>10.1f} %{shares[1]:>12.1f} %")


def gaps(sums: Tally) -> np.ndarray:
    """Return the gaps of the only class, (R, bins), as in `Scores.gaps`."""
    return share(sums.gaps, sums.n[..., None])[:, 0]


def flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weighted log loss, the scores of the class `any`, and the micro and macro averages, by name."""
    counts = ("n", "positives", "undefined")
    values = {"weighted_log_loss": content["weighted_log_loss"]}
    values |= {name: value for name, value in content["classes"][MAIN].items() if name not in counts}
    return values | {f"{kind} {name}": value for kind in ("micro", "macro") for name, value in content[kind].items()}


def speed(slices: int, patients: int, draws: int) -> None:
    """Print the time to score all draws at full size, and its ratio to scoring draw by draw."""
    rng = np.random.default_rng(0)
    groups = np.sort(rng.integers(0, patients, slices))
    labels = (rng.random((slices, 6)) < 0.06).astype(float)
    probabilities = 1 / (1 + np.exp(-(3 * labels - 3 + rng.normal(0, 1.5, labels.shape))))
    names, weights = tuple("abcdef"), (1.0,) * 6
    once = timed(lambda: score(labels, probabilities, names, weights)).wall
    scorer = Scorer(labels, probabilities, weights, np.full(6, 0.5), groups)

    def all_sums() -> None:
        for drawn in draw_patients(patients, draws, 0):
            scorer.summed(drawn)

    sums = timed(all_sums).wall
    everything = timed(lambda: bootstrap(scorer, patients, draws // 20)).wall * 20
    print(machine())
    print(f"{slices:,} slices of {patients:,} patients, 6 classes, {draws:,} draws:")
    print(f"log loss and all other summed scores: {sums:.1f} s, 1/{draws * once / sums:,.0f} of scoring draw by draw")
    print(f"with ROC AUC and average precision: {everything:.0f} s (from a twentieth of the draws)")


def main() -> None:
    """Measure coverage and speed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=1000)
    parser.add_argument("--slices", type=int, default=750_000)
    options = parser.parse_args()
    if options.simulations:
        coverage(options.simulations, patients=200, slices=4, correlated=2.0, draws=RESAMPLES)
        calibration_coverage(options.simulations, patients=200, slices=4, draws=RESAMPLES)
    speed(options.slices, patients=max(1, options.slices * 20_000 // 750_000), draws=RESAMPLES)


if __name__ == "__main__":
    main()
