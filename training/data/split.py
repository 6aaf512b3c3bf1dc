"""Split patients into training, validation and test sets, and store the split in split.csv."""

from pathlib import Path

import numpy as np
import pandas as pd

from training.data.linked import MOST_JOINED
from training.errors import ConfigError, RunError
from training.run.config import check_fractions
from training.words import counted

SUBSETS = ("train", "validation", "test")


def split_patients(
    table: pd.DataFrame,
    classes: tuple[str, ...],
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
    *,
    seed: int,
    units: np.ndarray | None = None,
) -> np.ndarray:
    """Split the slices by patient, stratified on the findings that each patient has in any slice.

    The result depends only on the patients, their findings and the seed, not on rows or the order of lines.

    Args:
        table: N lines with `patient_id` and one column per class.
        classes: names of the class columns.
        fractions: proportions of patients in the three subsets, which add up to 1.
        seed: seed of the split.
        units: (N,) str, the units to split if some patients are joined (`linked.Links.units`), each of which stays in
            one subset; one with more than MOST_JOINED of all patients goes to the training set, since no other subset
            has room for it.

    Returns:
        (N,) str: one of `SUBSETS` for each line, the same for all lines of a patient and of a unit.

    Raises:
        ConfigError: if the fractions are invalid, or there are too few patients for the requested subsets.
    """
    check_fractions(fractions)
    named = table["patient_id"].to_numpy() if units is None else units
    by_unit = table.groupby(named, sort=True)
    findings = by_unit[list(classes)].max().fillna(0) >= 0.5
    patients = by_unit["patient_id"].nunique().to_numpy()
    names = findings.index.to_numpy()
    free = (patients == 1) | (patients <= MOST_JOINED * patients.sum())
    wanted = [subset for subset, fraction in zip(SUBSETS, fractions, strict=True) if fraction > 0]
    if free.sum() + (not free.all()) < len(wanted):
        joined = f", {len(names)} after those who share slices are joined," if len(names) < patients.sum() else ""
        total = counted(patients.sum(), "patient")
        raise ConfigError(
            f"split: {total}{joined} {'is' if patients.sum() == 1 else 'are'} too few for {', '.join(wanted)}; add "
            "patients, or use fewer subsets: --set split_fractions=[0.5,0.5,0] trains and validates, --set "
            "split_fractions=[1,0,0] trains only, to over-fit on purpose"
        )
    subsets = np.full(len(names), SUBSETS[0], dtype=object)
    subsets[free] = _divide(findings.to_numpy()[free], fractions, seed, keep_one=bool(free.all()))
    return pd.Series(subsets, index=names).loc[named].to_numpy(dtype=str)


def write_split(path: Path, table: pd.DataFrame, subsets: np.ndarray) -> None:
    """Write `split.csv`: patient_id, split; one row per patient, sorted by patient."""
    lines = pd.DataFrame({"patient_id": table["patient_id"].to_numpy(), "split": subsets})
    lines.drop_duplicates().sort_values("patient_id").to_csv(path, index=False, lineterminator="\n")


def read_split(path: Path, table: pd.DataFrame) -> np.ndarray:
    """Return the subset of each line of `table`, (N,) str, as listed in `split.csv` for the line's patient.

    Raises:
        RunError: if the file cannot be read, lists a patient twice, has an unknown subset, or lacks a patient of the
            table.
    """
    subsets = read_lines(path).set_index("patient_id")["split"]
    if not subsets.index.is_unique:
        twice = subsets.index[subsets.index.duplicated()][0]
        raise RunError(f"{path}: lists patient {twice} more than once; restore it, or start a new run")
    if unknown := set(subsets) - set(SUBSETS):
        raise RunError(
            f"{path}: unknown subset {sorted(unknown)[0]!r}, not one of {', '.join(SUBSETS)}; "
            "restore it, or start a new run"
        )
    found = subsets.reindex(table["patient_id"])
    if found.isna().any():
        missing = table["patient_id"].to_numpy()[found.isna().to_numpy()]
        raise RunError(
            f"{path}: lacks {counted(len(set(missing)), 'patient')} of the cache, such as {missing[0]}; "
            "restore it, give the run's own cache, or start a new run"
        )
    return found.to_numpy(dtype=str)


def read_lines(path: Path) -> pd.DataFrame:
    """Return the rows of `split.csv` unchanged: patient_id and split, as str.

    Raises:
        RunError: if the file cannot be read, or is not such a table.
    """
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False)[["patient_id", "split"]]
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RunError(
            f"{path}: not a table of patient_id and split ({reason}); restore it, or start a new run"
        ) from error


def _divide(
    findings: np.ndarray, fractions: tuple[float, float, float], seed: int, *, keep_one: bool = True
) -> np.ndarray:
    """Split P patients with (P, K) bool findings; return their (P,) subsets.

    The held-out patients are chosen first, and then split into validation and test.

    Args:
        keep_one: keep at least one patient in the training set; not needed if it already has others.
    """
    _, validation, test = fractions
    subsets = np.full(len(findings), SUBSETS[0], dtype=object)
    everybody = np.arange(len(findings))
    held_subsets = [share > 0 for share in (validation, test)]
    if not any(held_subsets):
        return subsets
    held_out = _count(len(findings), validation + test, sum(held_subsets), spare=int(keep_one))
    held = everybody if held_out == len(everybody) else _choose(everybody, findings, held_out, seed)
    subsets[held] = SUBSETS[1] if validation else SUBSETS[2]
    if all(held_subsets):
        tested = _count(len(held), test / (validation + test), 1, spare=1)
        subsets[_choose(held, findings[held], tested, seed + 1)] = SUBSETS[2]
    return subsets


def _count(patients: int, share: float, at_least: int, spare: int) -> int:
    return int(np.clip(round(patients * share), at_least, patients - spare))


def _choose(patients: np.ndarray, findings: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Choose `count` of the patients, stratified by scikit-learn as finely as the sizes of the strata allow."""
    from sklearn.model_selection import train_test_split  # takes 0.7 s, which would slow down `train --help`

    strata = _strata(findings, smallest=max(2, -(-len(patients) // max(1, min(count, len(patients) - count)))))
    enough = len(np.unique(strata)) <= min(count, len(patients) - count)
    _, chosen = train_test_split(
        patients, test_size=count, random_state=seed % 2**32, stratify=strata if enough else None
    )
    return np.sort(chosen)


def _strata(findings: np.ndarray, smallest: int) -> np.ndarray:
    """Condense multi-label findings (P, K) to (P,) strata of at least `smallest` patients each.

    A combination of findings that enough patients share is a stratum. Patients with a rarer combination are grouped by
    their rarest finding that enough of them share, since chance would spread that one least evenly; the rest form one
    stratum.
    """
    _, strata, sizes = np.unique(findings, axis=0, return_inverse=True, return_counts=True)
    strata = strata.reshape(-1)
    loose = sizes[strata] < smallest
    next_stratum = len(sizes)
    for k in np.argsort(findings.sum(axis=0), kind="stable"):
        members = loose & findings[:, k]
        if members.sum() >= smallest:
            strata[members] = next_stratum + k
            loose &= ~members
    if 0 < loose.sum() < smallest:
        largest = np.bincount(strata[~loose]).argmax() if not loose.all() else 0
        strata[loose] = largest
    elif loose.any():
        strata[loose] = next_stratum + findings.shape[1]
    return strata
