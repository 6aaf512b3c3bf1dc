"""The share of a head's correction that is used for each class, chosen on validation and stored in the run."""

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
SAME_LOSS = 1e-6  # numerical error of a fitted calibration


def choose_mix(run: Run, known: Predictions, logits: np.ndarray, correction: np.ndarray) -> np.ndarray:
    """Choose the share of the head's correction for each class by its log loss on validation, and write `mix.json`.

    This is the smallest share whose loss is within one standard error, over patients, of the lowest. It is 0 if share 0
    already satisfies this after each share's logits have been calibrated on validation with slope and offset: a second
    training may merely correct the slice model's overconfidence, for which no series is needed. A class therefore keeps
    the slice model if the head does no better than chance, or fewer than two patients have a label. Without a
    validation set, or if the run's `head_share` is "all", the share is 1.

    Args:
        run: the head's run.
        known: the validation slices with their labels; the probabilities are not used.
        logits: (n, K), of the slice model.
        correction: (n, K), of the head.

    Returns:
        (K,) float64 in [0, 1].

    Source: Breiman, Friedman, Olshen, Stone, "Classification and regression trees", 1984, section 3.4.3, for the rule.
    """
    chosen = np.ones(len(run.data.classes))
    by_validation = run.config.head_share == "validation"
    if by_validation and len(known):
        losses, calibrated, owner = _losses(run, known, logits, correction)
        for k in range(len(chosen)):
            helps = smallest_share(calibrated[:, :, k], owner) > 0
            chosen[k] = smallest_share(losses[:, :, k], owner) if helps else 0.0
    mix = dict(zip(run.data.classes, chosen.tolist(), strict=True))
    write_json(run.path / "mix.json", {"chosen_on": "validation" if by_validation else "nothing", "shares": mix})
    return chosen


def _losses(
    run: Run, known: Predictions, logits: np.ndarray, correction: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the losses with each of S shares, plain and calibrated, each (S, n, K), and the patients, (n,)."""
    plain, calibrated, owner = [], [], np.empty(0)
    for share in SHARES:
        mixed = replace(known, probabilities=sigmoid(logits + share * correction))
        pooled = at_level(mixed, run.data.label_level)
        fitted = choose_operating(pooled.labels, pooled.probabilities, pooled.classes)
        plain.append(log_losses(pooled.labels, pooled.probabilities))
        calibrated.append(log_losses(pooled.labels, fitted.calibrate(pooled.probabilities)))
        owner = patient_groups(pooled)[0]  # the order of pooled lines and their patients do not depend on the share
    return np.stack(plain), np.stack(calibrated), owner


def smallest_share(losses: np.ndarray, owner: np.ndarray) -> float:
    """Return the smallest of SHARES whose loss is within one standard error of the lowest.

    Args:
        losses: (S, n), with each share; NaN without a label.
        owner: (n,) int, the patient of each loss.
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
    """Return the share of the head for each class, (K,) float64 in [0, 1].

    Raises:
        RunError: if `mix.json` does not exist yet, or is damaged.
    """
    return np.array(list(read_shares(run.path, run.data.classes).values()))


def read_shares(run: Path, classes: Sequence[str]) -> dict[str, float]:
    """Return class -> share of the head in [0, 1]; raises the same errors as `read_mix`.

    Args:
        run: the head's folder.
        classes: names of the classes.
    """
    path = run / "mix.json"
    try:
        check(path, f"run: train series --resume {run}")
        shares = {name: read_document(path)["shares"][name] for name in classes}
        if not all(type(share) in (int, float) and 0 <= share <= 1 for share in shares.values()):
            raise ValueError("a share is not a number from 0 to 1")
        return shares
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: cannot be read ({error!r}); run: train series --resume {run}") from error


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """Return probabilities, computed in the same way as those of the slice model."""
    return torch.sigmoid(torch.from_numpy(logits)).numpy()
