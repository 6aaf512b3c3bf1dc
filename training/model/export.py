"""Write a run's network as one file that needs no code of ours, and check that it gives the same."""

import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from training.data.cache import Cache
from training.errors import RunError
from training.model.augment import Normalise
from training.model.network import FusionNet, load_run_weights
from training.report.pictures import read_images
from training.run.runs import Run

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
PARITY = 1e-4
PARITY_SLICES = 32


class Exported(nn.Module):
    """A network with all that stands around it: grey levels and slice position in, probabilities out."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: FusionNet, mean: np.ndarray, std: np.ndarray) -> None:
        """Take a run's network, and the mean and standard deviation by channel of its training slices."""
        super().__init__()
        self.net = net
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.as_tensor(np.where(std > 0, std, 1), dtype=torch.float32).view(-1, 1, 1))

    def forward(self, images: Tensor, z_norm: Tensor) -> Tensor:
        """Return probabilities (B, K) float32 from images (B, C, S, S) uint8 and positions (B,) float32 in [0, 1]."""
        return torch.sigmoid(self.net((images.float() / 255 - self.mean) / self.std, z_norm))


def export(run: Run, cache: Cache, form: str, out: Path) -> float:
    """Write a run's best weights as ONNX or as a torch.export program, for any batch size, and check them.

    Args:
        cache: whose first slices are predicted both ways.
        form: "onnx" or "torch".
        out: the file, .onnx or .pt2.

    Returns:
        the largest difference between a probability of the file and of the run.

    Raises:
        RunError: the run has no weights, a package is missing, or the difference is PARITY or more; then no file stays.
    """
    if out.suffix != SUFFIXES[form]:
        raise RunError(f"{out}: the format {form} is written to a file that ends in {SUFFIXES[form]}")
    if run.has_head:
        raise RunError(
            f"{run.path}: is a head over series, and a file of one slice in, one slice out cannot hold it; export its "
            f"slice model: train export --run {run.data.base}"
        )
    net = load_run_weights(run.config, len(run.data.classes), run.weights, run.channels).eval()
    size, channels = run.config.size_px, len(run.channels)
    whole = Exported(net, *run.mean_std).eval()
    # A batch of 2: torch.export takes 1 for a constant.
    example = (torch.zeros(2, channels, size, size, dtype=torch.uint8), torch.full((2,), 0.5))
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(whole, example, dynamic_shapes=({0: batch}, {0: batch}))
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".partial.{out.name}")
    try:
        if form == "onnx":
            _write_onnx(program, temporary, metadata(run))
        else:
            torch.export.save(program, temporary, extra_files={"metadata.json": json.dumps(metadata(run))})
        difference = _parity(net, run, temporary, form, cache)
        if not difference < PARITY:
            raise RunError(
                f"{out}: not written: a probability would differ from the run's by {difference:.1e}, {PARITY:.0e} is "
                "allowed; try the other format"
            )
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return difference


def metadata(run: Run) -> dict[str, str]:
    """Return what a file says of itself, each as JSON: what goes in, what comes out, and where it comes from."""
    data = run.data
    content = {
        "classes": data.classes,
        "windows": [{"name": name, "level_hu": level, "width_hu": width} for name, level, width in data.windows],
        "channels": run.channels,  # which window each channel shows
        "size_px": run.config.size_px,
        "normalisation": {"mean": data.mean, "std": data.std, "of": "grey level / 255 by window; inside the network"},
        "model": run.config.model,
        "commit": data.commit,
    }
    return {name: json.dumps(value) for name, value in content.items()}


def _write_onnx(program: torch.export.ExportedProgram, path: Path, about: dict[str, str]) -> None:
    try:
        import onnx
        import onnxruntime  # type: ignore[import-untyped]  # noqa: F401
        import onnxscript  # type: ignore[import-untyped]  # noqa: F401
    except ImportError as error:
        raise RunError(f"ONNX needs the package {error.name}; run: pip install onnx onnxscript onnxruntime") from error
    torch.onnx.export(
        program,
        (),
        path,
        input_names=["images", "z_norm"],
        output_names=["probabilities"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    model = onnx.load(path)
    onnx.helper.set_model_props(model, about)
    onnx.save(model, path)


def _parity(net: FusionNet, run: Run, path: Path, form: str, cache: Cache) -> float:
    """Return the largest difference of a probability on the cache's first slices, by a path that shares no code."""
    table = cache.table.iloc[:PARITY_SLICES]
    images = read_images(cache, run.config.size_px, table["row"].to_numpy(), run.context)
    normalise = Normalise(*run.mean_std, torch.device("cpu"))
    z_norm = table["z_norm"].to_numpy(np.float32)
    with torch.inference_mode():
        grey = torch.from_numpy(images).float().div_(255)
        expected = torch.sigmoid(net(normalise(grey), torch.from_numpy(z_norm)).double()).numpy()
    got = np.concatenate([_predict(path, form, images[i : i + 8], z_norm[i : i + 8]) for i in range(0, len(images), 8)])
    return float(np.abs(got - expected).max())


def _predict(path: Path, form: str, images: np.ndarray, z_norm: np.ndarray) -> np.ndarray:
    if form == "torch":
        module = torch.export.load(path).module()
        with torch.inference_mode():
            return module(torch.from_numpy(images), torch.from_numpy(z_norm)).double().numpy()
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images, "z_norm": z_norm})[0].astype(np.float64)
