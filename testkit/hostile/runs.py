"""Hostile run folders: damaged ones, and forged ones."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner

from testkit.fake_cache import write_cache
from testkit.hostile.edits import edit, edit_bytes, edit_text, replace, value
from testkit.hostile.engine import Command, Hostile, Kind
from training.cli.main import main
from training.run.digests import FILE

CPU = ("--device", "cpu")
OPTIONS = (
    *("--model", "small_resnet", "--weights", "none", "--size", 32, "--batch-size", 8, "--epochs", 1),
    *("--input-threads", 0, "--set", "fusion_features=16", *CPU),
)
# A command that reads each file; some fail earlier if something else is wrong, and none may write outside the run.
READERS: dict[str, tuple[object, ...]] = {
    "settings.json": ("evaluate", *CPU, "--run"),
    "split.csv": ("evaluate", *CPU, "--run"),
    "linked.csv": ("evaluate", *CPU, "--run"),
    "weights.safetensors": ("evaluate", *CPU, "--run"),
    "predictions_test.csv": ("report", "--run"),
    "scores_test.json": ("report", "--run"),
    "thresholds.json": ("evaluate", *CPU, "--run"),
    "calibration.json": ("report", "--run"),
    "looks.csv": ("evaluate", *CPU, "--run"),
    "log.csv": ("report", "--run"),
    FILE: ("evaluate", *CPU, "--run"),
    "checkpoint": ("run", *CPU, "--resume"),
    "features": ("features", *CPU, "--run"),
}
NAMES = tuple(READERS)


def valid_run(folder: Path) -> None:
    """Train a small run with features, on a cache in the same folder."""
    folder.mkdir(parents=True)
    cache = write_cache(folder / "c.zarr", patients=8, slices=3).path
    run = folder / "run"
    for command in (("run", "--cache", cache, "--out", run, *OPTIONS), ("features", "--run", run, *CPU)):
        result = CliRunner().invoke(main, [str(word) for word in command])
        assert result.exit_code == 0, result.output


def kinds(folder: Path) -> dict[str, Kind]:
    """Return the kinds of hostile runs, edited from one that is trained in a folder."""
    valid_run(folder)
    return {
        "run: a damaged file": Kind(main, folder, _damaged),
        "run: a replaced file": Kind(main, folder, _replaced),
        "run: a forged text file": Kind(main, folder, _forged_text),
        "run: forged tensors": Kind(main, folder, _forged_tensors),
    }


def _file(run: Path, name: str, rng: np.random.Generator) -> Path:
    if name == "checkpoint":
        return sorted((run / "checkpoints").iterdir())[-1]
    if name == "features":
        files = sorted(path for path in (run / "features.zarr").rglob("*") if path.is_file())
        return files[rng.integers(len(files))]
    return run / name


def _hostile(what: str, folder: Path, name: str, check: Callable[[Sequence[int]], str] = lambda codes: "") -> Hostile:
    command: Command = (*READERS[name], folder / "run")
    return Hostile(what, ("run", "c.zarr"), (command,), check)


def _damaged(folder: Path, rng: np.random.Generator) -> Hostile:
    """Damage a file, which its reader must report."""
    name = NAMES[rng.integers(len(NAMES))]
    file = _file(folder / "run", name, rng)
    before = file.read_bytes()
    changed, what = edit_bytes(before, rng)
    file.write_bytes(changed)
    same = changed == before or (name == "log.csv" and changed.startswith(before))

    def check(codes: Sequence[int]) -> str:
        return "a damaged file is used without an error" if not codes[0] and not same and name != "features" else ""

    return _hostile(f"{file.name}: {what}", folder, name, check)


def _replaced(folder: Path, rng: np.random.Generator) -> Hostile:
    name = NAMES[rng.integers(len(NAMES))]
    file = _file(folder / "run", name, rng)
    return _hostile(replace(file, rng, folder.parent / "outside"), folder, name)


def _forged_text(folder: Path, rng: np.random.Generator) -> Hostile:
    """Edit a text file of a folder without digests, as if someone else had put it together."""
    run, outside = folder / "run", folder.parent / "outside"
    (run / FILE).unlink()
    texts = [name for name in NAMES if Path(name).suffix in (".json", ".csv") and name != FILE]
    name = texts[rng.integers(len(texts))]
    file = run / name
    if file.suffix == ".json":
        document = json.loads(file.read_bytes())
        what = edit(document, rng, outside)
        file.write_text(json.dumps(document))
    else:
        text, what = edit_text(file.read_text(), rng, outside, ",")
        file.write_text(text, errors="surrogateescape")
    return _hostile(f"{name}: {what}", folder, name)


class _Evil:
    """An object for which pickle would run a command."""

    def __init__(self, outside: Path) -> None:
        self.outside = outside

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.outside}/x",)


def _forged_tensors(folder: Path, rng: np.random.Generator) -> Hostile:
    """Forge a checkpoint or weights that can be opened."""
    run, outside = folder / "run", folder.parent / "outside"
    (run / FILE).unlink()
    how = rng.integers(4)
    if how == 0:
        file, name = _file(run, "weights.safetensors", rng), "weights.safetensors"
        what = _edit_safetensors(file, rng, outside)
        return _hostile(f"{name}: {what}", folder, name)
    file = _file(run, "checkpoint", rng)
    if how == 1:
        file.write_bytes(pickle.dumps(_Evil(outside)))
        return _hostile("a pickle that runs a command", folder, "checkpoint")
    if how == 2:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps({"model": _Evil(outside)}))
            archive.writestr("archive/version", "3")
            archive.writestr("../../../outside/x", "x")
        return _hostile("a zip with a pickle that runs a command", folder, "checkpoint")
    content = torch.load(file, weights_only=True)
    what = _edit_tensors(content, rng, outside)
    torch.save(content, file)
    return _hostile(f"checkpoint: {what}", folder, "checkpoint")


def _edit_safetensors(file: Path, rng: np.random.Generator, outside: Path) -> str:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    what = edit(header, rng, outside)
    text = json.dumps(header).encode()
    claimed = (len(text), 0, 2**63, len(text) - 1)[rng.choice(4, p=[0.7, 0.1, 0.1, 0.1])]
    file.write_bytes(int(claimed).to_bytes(8, "little") + text + data[8 + length :])
    return f"{what}, {claimed} bytes of header"


def _edit_tensors(content: dict[str, Any], rng: np.random.Generator, outside: Path) -> str:
    """Edit a part of a checkpoint: drop it, replace it, or change a tensor's shape, type or values."""
    part: Any = content
    way = []
    while isinstance(part, dict) and part:
        names = list(part)
        name = names[rng.integers(len(names))]
        way.append(str(name))
        if not isinstance(part[name], dict) or rng.random() < 0.3:
            break
        part = part[name]
    if not isinstance(part, dict) or not part:
        return "nothing"
    old = part[name]
    if isinstance(old, torch.Tensor) and rng.random() < 0.7:
        shapes = (torch.zeros(0), old.flatten()[:1], torch.full_like(old, float("nan")), old.to(torch.int8))
        part[name] = shapes[rng.integers(len(shapes))] if old.is_floating_point() else torch.zeros(3)
        return f"{'.'.join(way)}: another tensor"
    if rng.random() < 0.3:
        del part[name]
        return f"{'.'.join(way)}: dropped"
    part[name] = value(rng, outside)
    return f"{'.'.join(way)} = {str(part[name])[:40]!r}"
