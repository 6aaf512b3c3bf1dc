"""Write the folder of a trained run, with predictions of a given skill."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from training.data.cache import Cache
from training.data.neighbours import SERIES
from training.data.split import split_patients
from training.run.log import LOG_COLUMNS
from training.run.runs import digest
from training.scores.evaluation import assess
from training.scores.operating import sigmoid
from training.scores.predictions import from_table


def write_run(
    path: Path,
    cache: Cache,
    *,
    seed: int = 0,
    skill: float = 3.0,
    noise: float = 1.2,
    subsets: tuple[str, ...] = ("validation", "test"),
) -> None:
    """Write a run on `cache`, whose mean logits of positives and negatives differ by `skill`."""
    path.mkdir(parents=True)
    subset_of_line = split_patients(cache.table, cache.classes, seed=0, fractions=(0.4, 0.3, 0.3))
    lines = pd.DataFrame({"patient_id": cache.table["patient_id"], "split": subset_of_line})
    lines.drop_duplicates().to_csv(path / "split.csv", index=False)
    (path / "settings.json").write_text(json.dumps(_settings(cache, digest(path / "split.csv"))))
    _log(np.random.default_rng(seed)).to_csv(path / "log.csv", index=False)
    for subset in subsets:
        rng = np.random.default_rng((seed, len(subset)))
        table = cache.table[subset_of_line == subset].reset_index(drop=True)
        labels = table[list(cache.classes)].to_numpy(float)
        logits = skill * (np.nan_to_num(labels) - 0.7) + rng.normal(0, noise, labels.shape)
        columns = ["row", "image_id", *SERIES, "z_norm", *cache.classes]
        named = pd.DataFrame(sigmoid(logits), columns=[f"p_{name}" for name in cache.classes])
        predictions = table[columns].join(named)
        predictions.to_csv(path / f"predictions_{subset}.csv", index=False)
        scores = assess(path, subset, from_table(predictions), cache.class_weights)
        (path / f"scores_{subset}.json").write_text(json.dumps(scores))


def _settings(cache: Cache, split: str) -> dict[str, object]:
    return {
        "config": {"model": "resnet50", "size_px": cache.sizes[0], "seed": 0, "epochs": 4},
        "data": {
            "cache": str(cache.path),
            "commit": cache.commit,
            "classes": list(cache.classes),
            "class_weights": cache.class_weights.tolist(),
            "windows": [[w.name, w.level_hu, w.width_hu] for w in cache.windows],
            "mean": [0.1, 0.2, 0.3],
            "std": [0.1, 0.2, 0.3],
            "split": split,
        },
        "environment": {"torch": "2.8"},
    }


def _log(rng: np.random.Generator) -> pd.DataFrame:
    lines = []
    for step in range(1, 401):
        loss = 0.1 + 0.5 * np.exp(-step / 80) + rng.normal(0, 0.02)
        lines.append(
            {
                "step": step,
                "epoch": (step - 1) // 100,
                "split": "train",
                "loss": loss,
                "learning_rate": 2e-4 * (1 - step / 401),
            }
        )
        if step % 100 == 0:
            lines.append(
                {"step": step, "epoch": step // 100 - 1, "split": "validation", "weighted_log_loss": loss - 0.02}
            )
    return pd.DataFrame(lines, columns=list(LOG_COLUMNS))
