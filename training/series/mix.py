"""Choose on validation, by class, how much of a head's correction counts, and keep it in the run."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from training.errors import RunError
from training.run.digests import check
from training.run.documents import read_document
from training.run.runs import Run
from training.run.tables import write_json
from training.scores.metrics import log_losses
from training.scores.operating import choose_operating
from training.scores.pooling import at_level, patient_groups
from training.scores.predictions import Predictions

SHARES = np.linspace(0, 1, 21)
SAME_LOSS = 1e-6  # two fits of one thing end so far apart at most


def choose_mix(run: Run, known: Predictions, logits: np.ndarray, correction: np.ndarray) -> np.ndarray:
    """Choose by class the share of the head's correction, from its log loss on validation, and write `mix.json`.

    Taken is the smallest share whose loss is within one standard error, over patients, of the least one; and none where
    that holds of the slice model alone once each share has slope and offset of its own logits fitted on validation. For
    a second training may correct overconfidence of the slice model, which calibration does without series. So where the
    head tells no more than by chance, or fewer than two patients have a label, the class keeps the slice model. Without
    a validation set, or where the run's `head_share` says so, all of the correction counts.

    Args:
        known: the validation slices with their labels; its probabilities are not looked at.
        logits, correction: (n, K), of the same slices.

    Returns:
        (K,) float64 in [0, 1].

    Source: Breiman, Friedman, Olshen, Stone, "Classification and regression trees", 1984, section 3.4.3, for the rule.
    """
    chosen = np.ones(len(run.data.classes))
    asked = run.config.head_share == "validation"
    if asked and len(known):
        losses, calibrated, owner = _losses(run, known, logits, correction)
        for k in range(len(chosen)):
            tells = smallest_share(calibrated[:, :, k], owner) > 0
            chosen[k] = smallest_share(losses[:, :, k], owner) if tells else 0.0
    mix = dict(zip(run.data.classes, chosen.tolist(), strict=True))
    write_json(run.path / "mix.json", {"chosen_on": "validation" if asked else "nothing", "shares": mix})
    return chosen


def _losses(
    run: Run, known: Predictions, logits: np.ndarray, correction: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what has a label's loss with each share, plain and calibrated, (S, n, K), and whose it is, (n,)."""
    plain, calibrated, owner = [], [], np.empty(0)
    for share in SHARES:
        mixed = replace(known, probabilities=sigmoid(logits + share * correction))
        pooled = at_level(mixed, run.data.label_level)
        fitted = choose_operating(pooled.labels, pooled.probabilities, pooled.classes)
        plain.append(log_losses(pooled.labels, pooled.probabilities))
        calibrated.append(log_losses(pooled.labels, fitted.calibrate(pooled.probabilities)))
        owner = patient_groups(pooled)[0]  # which slice stands for a series may change with the share, not its patient
    return np.stack(plain), np.stack(calibrated), owner


def smallest_share(losses: np.ndarray, owner: np.ndarray) -> float:
    """Return the smallest of SHARES whose loss is within one standard error of the least one.

    Args:
        losses: (S, n), with each share; NaN where there is no label.
        owner: (n,) int, the patient of each.
    """
    known = ~np.isnan(losses[0])
    patients, owner = np.unique(owner[known], return_inverse=True)
    if len(patients) < 2:
        return 0.0
    of_patients = np.stack([np.bincount(owner, each[known], len(patients)) for each in losses])
    worse = of_patients - of_patients[of_patients.sum(axis=1).argmin()]
    error = worse.std(axis=1, ddof=1) * np.sqrt(len(patients)) + SAME_LOSS * known.sum()
    return float(SHARES[(worse.sum(axis=1) <= error).argmax()])


def read_mix(run: Run) -> np.ndarray:
    """Return the share of the head for each class, (K,) float64.

    Raises:
        RunError: `mix.json` is not there yet, or damaged.
    """
    return np.array(list(read_shares(run.path, run.data.classes).values()))


def read_shares(run: Path, classes: Sequence[str]) -> dict[str, float]:
    """Return the share of the head by class, in [0, 1]; raises as `read_mix`.

    Args:
        run: its folder.
    """
    path = run / "mix.json"
    try:
        check(path, f"run: train series --resume {run}")
        shares = {name: read_document(path)["shares"][name] for name in classes}
        if not all(type(share) in (int, float) and 0 <= share <= 1 for share in shares.values()):
            raise ValueError("a share is no number from 0 to 1")
        return shares
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: cannot be read ({error!r}); run: train series --resume {run}") from error


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return probabilities, as the slice model's are computed."""
    return torch.sigmoid(torch.from_numpy(logits)).numpy()
